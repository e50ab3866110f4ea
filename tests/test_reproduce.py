"""Every item of the papers runs, its result is whole and read back, and its page says what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partikel.app.cli import main
from partikel.errors import CheckpointError, ConfigError
from partikel.files import fingerprint, plain
from partikel.studies.benches import BENCHES, FOUR, SCALES, Training
from partikel.studies.items import ITEMS
from partikel.studies.judgement import OPEN
from partikel.studies.lab import Lab
from partikel.studies.page import index, labelled, page
from partikel.studies.reproduce import changed, check, reproduce
from partikel.training.fit import Interrupted


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("reproduce")
    return root / "out", root / "runs"


# these take half the time of all items, and the others have what they are made of
LONG = {"table1", "table3", "fig4", "diffflow-improved-gan"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else []) for n in ITEMS]
)
def test_every_item_runs_at_smoke(name: str, folders: tuple[Path, Path]) -> None:
    out, runs = folders
    results, errors = reproduce([name], "smoke", out=out, runs=runs)
    assert not errors
    (result,) = results
    assert result["findings"]
    # a few iterations decide nothing, whatever the numbers
    assert {finding["judgement"]["verdict"] for finding in result["findings"]} == {OPEN}
    claims = [plain(claim) for claim in ITEMS[name].claims.values()]
    assert all(finding["claim"] in claims for finding in result["findings"])
    assert result["pictures"] or result["tables"]
    for picture in result["pictures"]:
        assert (out / picture).stat().st_size > 0
    text = (out / f"{name}.md").read_text()
    assert text == page(result)
    assert f"partikel reproduce {name} --scale smoke" in text
    for finding in result["findings"]:
        assert finding["claim"]["text"] in text
        assert finding["measured"] in text
    assert f"[{name}]({name}.md)" in (out / "README.md").read_text()
    # what is there is read, not measured
    before = (out / f"{name}.json").stat().st_mtime_ns
    again, _ = reproduce([name], "smoke", out=out, runs=runs)
    assert again == results
    assert (out / f"{name}.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", list(ITEMS))
def test_every_item_has_plans_that_can_be_told_apart(name: str) -> None:
    plans = ITEMS[name].plans
    assert {"smoke", "cpu"} <= set(plans) <= set(SCALES)
    assert len({fingerprint(plan) for plan in plans.values()}) == len(plans)
    json.dumps(plain(plans["cpu"]))


def test_a_kept_part_is_not_measured_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> list[int]:
        calls.append(1)
        return [len(calls)]

    for _ in range(2):
        lab = Lab("item", "smoke", {"plan": 1}, out=tmp_path, runs=tmp_path)
        assert lab.once("part", work) == [1]
    other = Lab("item", "smoke", {"plan": 2}, out=tmp_path, runs=tmp_path)
    assert other.once("part", work) == [2]  # of another plan


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        (folder / "count").write_text(f"{len(list(folder.iterdir()))}")

    def lab(plan: int) -> Lab:
        return Lab("item", "smoke", {"plan": plan}, out=tmp_path, runs=tmp_path)

    for _ in range(2):
        assert (lab(1).folder("a", work) / "count").read_text() == "0"
    assert lab(2).folder("a", work) != lab(1).folder("a", work)


def test_an_interrupted_item_goes_on_from_its_trained_runs(tmp_path: Path) -> None:
    model = BENCHES["smoke"]["digits"].models["EDM"]
    first = Lab("a", "smoke", {}, out=tmp_path, runs=tmp_path)
    run = first.run(model, 0)
    checkpoint = max((run.path / "checkpoints").iterdir())
    stamp = checkpoint.stat().st_mtime_ns
    again = Lab("b", "smoke", {}, out=tmp_path, runs=tmp_path).run(model, 0)
    assert again.path == run.path
    assert max((run.path / "checkpoints").iterdir()).stat().st_mtime_ns == stamp


def test_a_model_with_other_settings_under_the_same_name_is_refused(tmp_path: Path) -> None:
    model = BENCHES["smoke"]["digits"].models["EDM"]
    Lab("a", "smoke", {}, out=tmp_path, runs=tmp_path).run(model, 0)
    changed = Training(model.preset, {**model.changes, "batch": 16})
    with pytest.raises(ConfigError, match="other settings"):
        Lab("a", "smoke", {}, out=tmp_path, runs=tmp_path).run(changed, 0)
    assert model.but("small", batch=16).name == "edm-digits-small"


def test_all_scales_have_the_four_models() -> None:
    for benches in BENCHES.values():
        for bench in benches.values():
            assert tuple(bench.models) == FOUR


def test_errors_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'fig7a'"):
        reproduce(["fig7aa"], "smoke", out=tmp_path, runs=tmp_path)
    (tmp_path / "fig7a.json").write_text("{}")
    with pytest.raises(CheckpointError, match="remove it"):
        reproduce(["fig7a"], "smoke", out=tmp_path, runs=tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", "fig99"])
    assert stop.value.code == 2
    assert "there is no item 'fig99'" in capsys.readouterr().err
    main(["reproduce", "list"])
    assert "fig7a" in capsys.readouterr().out


def test_missing_data_leave_the_other_items_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTIKEL_DATA", str(tmp_path / "nothing"))
    results, errors = reproduce(["fig7a"], "paper", out=tmp_path / "out", runs=tmp_path / "runs")
    assert not results
    assert "MNIST" in str(errors["fig7a"]) or "mnist" in str(errors["fig7a"])


def test_an_interruption_stops_all_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted("stopped", 130)

    monkeypatch.setattr("partikel.studies.reproduce._measured", interrupted)
    with pytest.raises(Interrupted):
        reproduce(["fig7a", "fig7b"], "smoke", out=tmp_path, runs=tmp_path)


DOCS = Path(__file__).parents[1] / "docs" / "reproduce"


def test_the_committed_pages_say_whether_they_are_stale() -> None:
    """``partikel reproduce --check --out docs/reproduce`` writes what is asked here."""
    results, missing, stale = [], [], {}
    for name, item in ITEMS.items():
        file = DOCS / f"{name}.json"
        if not file.exists():
            missing.append((name, item.title))
            continue
        result = json.loads(file.read_text())
        stale[name] = changed(result)
        text = (DOCS / f"{name}.md").read_text()
        assert text.startswith("> **Stale**") == bool(stale[name]), "run partikel reproduce --check"
        if "rule" not in stale[name]:  # a page in today's form
            assert text == labelled(page(result), stale[name])
        assert all((DOCS / picture).is_file() for picture in result["pictures"])
        results.append(result)
    assert (DOCS / "README.md").read_text() == index(results, missing, stale)
    shown = {path.name for path in DOCS.iterdir()} - {"README.md"}
    named = {r["item"] for r in results}
    assert shown == {p for r in results for p in r["pictures"]} | {
        f"{name}.{kind}" for name in named for kind in ("json", "md")
    }


def test_check_labels_stale_pages_and_takes_the_label_off(tmp_path: Path) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    (result,), _ = reproduce(["fig2"], "smoke", out=out, runs=runs)
    assert check(out) == {"fig2": []}
    assert (out / "fig2.md").read_text() == page(result)
    for key in ("plan", "settings", "rule", "measuring"):
        made = {**result["made of"], key: "another"}
        (out / "fig2.json").write_text(json.dumps({**result, "made of": made}))
        assert check(out) == {"fig2": [key]}
        text = (out / "fig2.md").read_text()
        assert text == labelled(page(result), [key])
        assert f"stale ({key})" in (out / "README.md").read_text()
        # a stale result is measured again, and fresh afterwards
    (again,), _ = reproduce(["fig2"], "smoke", out=out, runs=runs)
    assert again["made of"] == result["made of"]
    assert check(out) == {"fig2": []}
    with pytest.raises(ConfigError, match="has no results"):
        check(tmp_path / "nothing")
    for damage in ({"item": "fig7a"}, {"scale": "no"}, {"trained": [1]}, {"findings": [{}]}):
        (out / "fig2.json").write_text(json.dumps({**again, **damage}))
        with pytest.raises(CheckpointError, match=r"fig2.json is no result .* remove it"):
            check(out)
    (out / "fig2.json").write_text(json.dumps(again))
    (out / "fig2.md").unlink()
    with pytest.raises(CheckpointError, match=r"reproduce fig2 --again"):
        check(out)
