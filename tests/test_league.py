"""The league: equal units, a search, resuming, its page, and verdicts on known values."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from partikel.app.cli import main
from partikel.data import SPLITS, Dataset, DataSettings, FiniteDataset, open_dataset
from partikel.errors import CheckpointError, ConfigError, NumericsError
from partikel.fields import At, Context, DiscriminatorField
from partikel.files import plain
from partikel.metrics.measures import MEASURES, main_measure
from partikel.models import GeneratorModel
from partikel.objectives import Relativistic
from partikel.streams import seeded
from partikel.studies import league as studied
from partikel.studies import methods as played
from partikel.studies.judgement import FAILS, HOLDS, OPEN
from partikel.studies.lab import Lab
from partikel.studies.league import HYPOTHESES, Season
from partikel.studies.methods import FACTOR, METHODS, TRIAL, League, Played, Seat
from partikel.studies.page import league as page
from partikel.studies.reproduce import machine

TINY = ("GAN", "W-Flow", "distilled EDM", "EDM")
UNITS = 20.0


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny league, by the command line, twice: what was measured is not measured again."""
    root = tmp_path_factory.mktemp("league")
    line = ["league", "--budget", f"{UNITS}", "--seeds", "2", "--methods", f"[{','.join(TINY)}]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(played, "SAMPLES", {1: 300, 3: 60})
        patch.setattr(studied, "SAMPLES", {1: 300, 3: 60})
        patch.setattr(played, "WATCHED", 2)
        patch.setitem(METHODS, "EDM", replace(METHODS["EDM"], calls=(4,)))
        patch.chdir(root)
        main(line)
        page = (root / "league" / "league.md").read_text()

        def refuse(*_: Any) -> None:
            raise AssertionError("what was measured is trained again")

        patch.setattr(League, "_trainer", refuse)
        main(line)
        assert (root / "league" / "league.md").read_text() == page
    return root / "league"


def test_every_method_is_measured_and_shown(out: Path) -> None:
    result = json.loads((out / "league-gaussians.json").read_text())
    page = (out / "league.md").read_text()
    assert set(result["values"]["figures"]) == {"GAN, 1", "W-Flow, 1", "distilled EDM, 1", "EDM, 4"}
    for rows in result["values"]["figures"].values():
        assert len(rows) == 2
        assert all(math.isfinite(row["energy"]) for row in rows)
    assert len(result["tables"][0]["rows"]) == len(TINY)
    assert result["tables"][1]["rows"][0][:2] == ["distilled EDM", "EDM"]
    for picture in result["pictures"]:
        assert (out / picture).stat().st_size > 1000
        assert f"]({picture})" in page
    assert {f["claim"]["text"] for f in result["findings"]} == {
        claim.text for claim, *places in HYPOTHESES.values() if all(n in TINY for n, _ in places)
    }
    assert result["command"] in page
    assert shlex.split(result["command"])[-2:] == ["--methods", f"[{','.join(TINY)}]"]


def test_units_are_equal_and_a_teacher_is_among_them(out: Path) -> None:
    values = json.loads((out / "league-gaussians.json").read_text())["values"]
    for name, trainings in values["trainings"].items():
        for training in trainings:
            own, teacher = training["units"]
            assert own + teacher == UNITS
            assert (teacher > 0) == bool(METHODS[name].teacher)
            assert training["iterations"] == int(own / values["units of an iteration"][name])
            assert [place for place, _ in training["curve"]][-1] == own
    assert (
        values["given"]["distilled EDM"][0]["energy"]
        != (values["figures"]["distilled EDM, 1"][0]["energy"])
    )


def test_bad_lines_end_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["--methods", "[GANN]"], "did you mean 'GAN'"),
        (["--methods", "[]"], "needs a method"),
        (["--methods", "GAN,Score GAN"], "write --methods '[GAN,Score GAN]'"),
        (["--data", "nothing"], "nothing"),
        (["--budget", "0"], "budget"),
        (["--budget", "0.01", "--methods", "[GAN]"], "too few for 'GAN'"),
        (["--seeds", "0"], "seeds"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["league", *options, "--out", str(tmp_path / "o"), "--runs", str(tmp_path / "r")])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "o" / "league.md").exists()


@pytest.mark.parametrize("file", ["cost-gan.json", "gan-seed-0/entry.json", "gan-seed-0/1.npy"])
def test_what_was_kept_and_is_damaged_is_named_with_its_mend(
    file: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(out.parent)
    monkeypatch.setitem(METHODS, "EDM", replace(METHODS["EDM"], calls=(4,)))
    line = next(
        x for x in (out / "league.md").read_text().splitlines() if x.startswith("`partikel")
    )
    (kept,) = Path("runs").rglob(file)
    whole = kept.read_bytes()
    for damaged in (b"", b"[]", b"{}", b"\xff"):
        kept.write_bytes(damaged)
        with pytest.raises(SystemExit) as stop:
            main(shlex.split(line.strip("`"))[1:])  # as the page has it
        assert stop.value.code == 2
        said = capsys.readouterr().err
        assert "damaged: remove" in said
        assert "again" in said or "anew" in said
    kept.write_bytes(whole)


def test_a_damaged_result_beside_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "league-x.json").write_text("{}")
    with pytest.raises(CheckpointError, match="league-x.json is no result of 'partikel league'"):
        studied._read(tmp_path / "league-x.json")


@pytest.mark.parametrize("name", ["GAN", "f-distill", "DMMD", "MeanFlow", "distilled EDM"])
def test_large_images_train(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab("league-pictures", "cpu", [], out=tmp_path, runs=tmp_path)
    monkeypatch.setattr(played, "BATCH", {False: 4})
    league = League(colours(), 1.0, lab)
    steps: list[dict[str, float]] = []

    def step(works: dict[str, Any], *_: Any) -> dict[str, float]:
        steps.append(works["step"]().metrics)
        return {"unit": 1.0, "step": 2.0}

    monkeypatch.setattr(played, "in_turns", step)
    assert league.cost(METHODS[name]) == 2.0
    assert steps[0]
    assert all(math.isfinite(value) for value in steps[0].values())


def test_pictures_of_ones_own_are_named_with_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, picture in enumerate(colours(64).draw(64, "train", generator=seeded(1)).x):
        values = ((picture + 1) * 127.5).to(torch.uint8)[0].numpy()
        (tmp_path / "faces").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "faces" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(played, "SAMPLES", {1: 300, 3: 20})
    monkeypatch.setattr(studied, "SAMPLES", {1: 300, 3: 20})
    monkeypatch.setattr(played, "WATCHED", 1)
    monkeypatch.setattr(played, "BATCH", {False: 4})
    monkeypatch.setattr(Lab, "floor", lambda *_: 1.0)  # of so many pixels it takes a minute
    line = ["--data", "faces", "--size", "16", "--budget", "60", "--seeds", "1"]
    line += ["--features", "pixels"]
    main(["league", *line, "--methods", "[sliced]"])
    page = (tmp_path / "league" / "league.md").read_text()
    assert "## Faces-16, one seed, 60 units" in page
    assert f"partikel league {' '.join(line)} --methods '[sliced]'" in page
    assert "of 6 samples to as many test points, by pixels:" in page
    result = json.loads((tmp_path / "league" / "league-faces-16.json").read_text())
    assert result["data"] == "faces-16"
    assert math.isfinite(result["values"]["figures"]["sliced, 1"][0]["frechet"])
    # few pictures
    for file in sorted((tmp_path / "faces").iterdir())[3:]:
        file.unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["league", *line, "--methods", "[sliced]"])
    assert stop.value.code == 2
    assert "no two points" in capsys.readouterr().err


def of(name: str) -> Dataset:
    return open_dataset(DataSettings(name))


def colours(count: int = 12) -> Dataset:
    """Pictures of 16x16, which take convolutions."""
    values = torch.randint(256, (count, 3, 16, 16), generator=seeded(7)).to(torch.uint8)
    return FiniteDataset("pictures", dict.fromkeys(SPLITS, values))


def season(figures: dict[tuple[str, int], list[float]], tmp_path: Path) -> Season:
    """Of known energy distances."""
    lab = Lab("league-gaussians", "cpu", [], out=tmp_path, runs=tmp_path)
    league = League(of("gaussians"), 1.0, lab)
    made = Season.__new__(Season)
    names = dict.fromkeys(name for name, _ in figures)
    made.league, made.chosen, made.seeds = league, [METHODS[n] for n in names], (0, 1, 2)
    made.name = "gaussians"
    made.rows = {place: [{"energy": v} for v in values] for place, values in figures.items()}
    made.records = {name: [{"failed": None}] * 3 for name in names}
    made.given = {}
    lab.once = lambda key, work: [0.0, 0.0, 0.0]  # of the search
    return made


def test_verdicts_are_the_rules(tmp_path: Path) -> None:
    near, far, apart = [0.011, 0.01, 0.012], [0.1, 0.11, 0.09], [0.001, 0.4, 0.02]
    known = {
        ("GAN", 1): far,
        ("W-Flow", 1): near,
        ("distilled EDM", 1): near,
        ("MeanFlow", 1): far,
        ("EDM", 4): apart,
    }
    found = season(known, tmp_path).findings(1e-4)
    assert [f.judgement.verdict for f in found] == [HOLDS, FAILS, OPEN]
    # below what two draws of the data differ by nothing is told apart
    below = season(known, tmp_path).findings(1.0)
    assert {f.judgement.verdict for f in below} == {OPEN}
    assert all(f.judgement.mean == 0 for f in below)
    # a training that left the finite numbers decides nothing
    broken = season(known, tmp_path)
    broken.rows["GAN", 1][1] = {}
    assert broken.findings(1e-4)[0].judgement.verdict == OPEN
    # what is nearer than two draws of the data is named, as its order says nothing
    assert "below it are W-Flow, distilled EDM, whose order" in " ".join(broken.concluded(0.05))
    assert "none is below it" in " ".join(broken.concluded(1e-4))
    assert "Seeds of EDM, 4 calls are more than" in " ".join(broken.concluded(1e-4))
    assert "Seeds of" not in " ".join(broken.concluded(0.05))
    assert {name for name, _ in broken.ranked(False)} == {"W-Flow", "distilled EDM", "MeanFlow"}


def test_ranks_stand_side_by_side(tmp_path: Path) -> None:
    """Those that are no farther than two draws of the data share the first place."""
    known = {
        ("GAN", 1): [0.3] * 3,
        ("W-Flow", 1): [0.01] * 3,
        ("MeanFlow", 1): [0.02] * 3,
        ("drifting", 1): [0.1] * 3,
        ("EDM", 4): [0.2, 0.1, 0.3],
        ("EDM", 8): [0.1] * 3,
    }
    made = season(known, tmp_path)
    assert made.ranks(1e-4, False) == {"W-Flow": 1, "MeanFlow": 2, "drifting": 3, "GAN": 4}
    assert made.ranks(0.03, False) == {"W-Flow": 1, "MeanFlow": 1, "drifting": 3, "GAN": 4}
    assert made.ranks(1e-4, True) == {"EDM, 4 calls": 2, "EDM, 8 calls": 1}
    found = {"findings": made.findings(1e-4), "limits": (), "tables": [], "pictures": {}}
    found |= {"concluded": [], "command": "", "protocol": "", "cpu_seconds": 0.0, "title": ""}
    found |= {"machine": machine(1), "values": {"trainings": made.records}}
    one = plain(
        {**found, "data": "points", "ranks": [made.ranks(0.03, few) for few in (False, True)]}
    )
    made.rows["drifting", 1][0] = {}  # left the finite numbers
    two = plain(
        {**found, "data": "images", "ranks": [made.ranks(1e-4, few) for few in (False, True)]}
    )
    small = {**one, "data": "colour", "values": {"trainings": {}}}
    text = page([one, two, small])
    assert "| rank, one call | points | images |" in text
    rows = [
        line for line in text.splitlines() if re.match(r"\| (GAN|W-Flow|MeanFlow|drifting) ", line)
    ]
    assert rows == [
        "| W-Flow | 1 | 1 |",
        "| MeanFlow | 1 | 2 |",
        "| GAN | 4 | 3 |",
        "| drifting | 3 |  |",
    ]
    assert re.search(r"\| A generator needs no adversary.* \| holds \| holds \|", text)
    assert "On all data sets" not in page([one, small])


def test_trainings_that_had_been_nearer_are_named(tmp_path: Path) -> None:
    known = {("GAN", 1): [0.1] * 3, ("W-Flow", 1): [0.1] * 3, ("MeanFlow", 1): [0.1] * 3}
    found = season(known, tmp_path)
    assert found.risen(1e-3) == []

    def watched(*ends: float) -> list[dict[str, Any]]:
        return [{"failed": None, "curve": [(1.0, 0.1), (2.0, 0.03), (3.0, end)]} for end in ends]

    found.records["GAN"] = watched(0.04, 0.04, 0.03)  # by 1.21 in the mean
    found.records["W-Flow"] = watched(0.02, 0.02, 0.02)
    found.records["MeanFlow"] = watched(0.06, 0.03, 0.04)  # by 1.39
    (said,) = found.risen(1e-3)
    assert "trainings of MeanFlow had been nearer" in said
    assert found.risen(0.05) == []  # what two draws differ by


def test_no_method_is_judged_by_what_it_descends() -> None:
    judges = {main_measure(shape).key for shape in ((2,), (1, 8, 8))}
    for method in METHODS.values():
        assert method.descends not in judges
        assert not method.descends or method.descends in MEASURES
        assert not method.teacher or method.teacher in METHODS


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("data", ["gaussians", "digits", "pictures"])
def test_all_share_the_network_and_start_in_the_shape_of_the_data(name: str, data: str) -> None:
    dataset, method = colours() if data == "pictures" else of(data), METHODS[name]
    taught = METHODS.get(method.teacher)
    seat = Seat(dataset, teacher=taught and taught.build(Seat(dataset)).model)
    model = method.build(seat).model
    assert model.prior.shape == dataset.shape
    assert {phase.batch for phase in method.build(seat).phases} == {seat.batch}
    layers = 4 if data == "pictures" else 2  # convolutions; how a network is told times differs
    weights = [w for w in model.sampled.parameters() if w.ndim == layers][1:]
    known = [w for w in seat.network("denoiser", "x").parameters() if w.ndim == layers][1:]
    assert known
    if name != "DF":  # which has no network of samples, but a logit
        assert [w.shape for w in weights] == [w.shape for w in known]
    x = model.sample(2, generator=torch.Generator().manual_seed(0))
    assert x.shape == (2, *dataset.shape)
    assert x.isfinite().all()


def test_r3gan_compares_pairs_and_penalises_both_laws() -> None:
    dataset = of("gaussians")
    model = METHODS["R3GAN"].build(Seat(dataset)).model
    assert isinstance(model, GeneratorModel)
    field = model.field
    assert isinstance(field, DiscriminatorField)
    assert isinstance(field.objective, Relativistic)
    assert {penalty.at for penalty in field.penalties} == {"real", "fake"}
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    real = x + 1
    found = field.bind(Context(real=real))(x, At(torch.ones(())))
    point = x.clone().requires_grad_()
    gaps = field.network(real, None, None)[None] - field.network(point, None, None)[:, None]
    (slope,) = torch.autograd.grad(-torch.nn.functional.softplus(gaps).mean(1).sum(), point)
    torch.testing.assert_close(found, slope)


@pytest.mark.parametrize(
    ("best", "trials"), [(0, [0, 1, -1]), (3, [0, 1, -1, 2, 3, 4]), (-1, [0, 1, -1, -2])]
)
def test_the_search_goes_on_to_the_rate_that_is_nearest_on_validation_data(
    best: int, trials: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab("league-gaussians", "cpu", [], out=tmp_path, runs=tmp_path)
    league = League(of("gaussians"), 100.0, lab)
    asked: list[tuple[int, float, float]] = []

    def trial(method: Any, seed: int, units: float, rate: float) -> Any:
        asked.append((seed, units, rate))
        if rate > FACTOR**3:
            raise NumericsError("the loss became nan")
        return type("Played", (), {"model": rate})

    monkeypatch.setattr(league, "_played", trial)
    monkeypatch.setattr(league, "_watched", lambda rate, calls: abs(math.log(rate, FACTOR) - best))
    assert league.rate(METHODS["GAN"]) == FACTOR**best
    assert league.rate(METHODS["GAN"]) == FACTOR**best
    assert asked == [(played.TRIED, TRIAL * 100.0, FACTOR**power) for power in trials]


def test_paths_that_are_simulated_first_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab("league-gaussians", "cpu", [], out=tmp_path, runs=tmp_path)
    league, method = League(of("gaussians"), 400.0, lab), METHODS["distilled DF"]
    taught = Played(METHODS["DF"].build(Seat(league.dataset)).model, 1, 200.0)
    monkeypatch.setattr(played, "SAMPLES", {1: 300})
    monkeypatch.setattr(played, "WATCHED", 2)
    monkeypatch.setattr(league, "cost", lambda _: 10.0)
    monkeypatch.setattr(league, "_taught", lambda *_: taught)
    assert 10 < league.before(method) < 2000  # 400,000 gradients of a small network
    assert league.before(METHODS["distilled EDM"]) == 0.0
    monkeypatch.setattr(league, "before", lambda each: 100.0 if each.simulates else 0.0)
    final = league._played(method, 0, 400.0, 1.0, watched=True)
    assert (final.units, final.teacher_units, final.iterations) == (200.0, 200.0, 10)
    assert [units for units, _ in final.curve] == [150.0, 200.0]
    assert league._played(method, 0, 400.0, 1.0).iterations == 20  # a trial, for the rate
    league.check_units([method])
    monkeypatch.setattr(league, "before", lambda _: 200.0)
    with pytest.raises(ConfigError, match="--budget of 420 units"):
        league.check_units([method])


@pytest.mark.parametrize("far", [math.inf, math.nan])
def test_a_trial_without_a_distance_is_lost(
    far: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab("league-gaussians", "cpu", [], out=tmp_path, runs=tmp_path)
    league = League(of("gaussians"), 100.0, lab)
    monkeypatch.setattr(league, "_played", lambda *_: type("Played", (), {"model": _[3]}))
    monkeypatch.setattr(league, "_watched", lambda rate, _: far if rate > 1 else 1 / rate)
    assert league.rate(METHODS["GAN"]) == 1.0
