"""Few steps: nodes placed for a model, a solver and a number of steps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import MIXTURE, seeded
from partikel.app.cli import main
from partikel.app.config import load_preset, make_recipe, preset_names
from partikel.app.export import export_run, load_export
from partikel.app.placed import PLACED, checked_entries
from partikel.app.runs import Run, train_run
from partikel.denoising import VelocityDenoiser
from partikel.errors import ConfigError
from partikel.fields import AtScale, DiscriminatorField, ExactScoreField, MMDField, VelocityField
from partikel.files import sealed, write_json
from partikel.kernels import RieszKernel
from partikel.models import GeneratorModel, ParticleModel, Sampling
from partikel.models.placing import FEW, Placement, few_steps, may_be_of, place_nodes
from partikel.networks import MLP, Conditioning
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, KarrasGrid, LinearSchedule, Nodes, Schedule
from partikel.solvers import (
    AdaptiveODE,
    DPMSolver2M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    UniPC,
)

PATH = EDMSchedule(40.0)
SEARCHED = [
    (low, rho) for low in (0.002, 0.02, 0.1, 0.2, 0.4, 0.8) for rho in (3.0, 7.0, 20.0, 60.0)
]
"""Karras's grids, by lowest level and exponent."""


def noised(steps: int = 28) -> ParticleModel:
    """The exact probability flow of a mixture along EDM's path."""
    field = PATH.half_rate * ExactScoreField(MIXTURE)
    return ParticleModel(
        field,
        GaussianPrior((2,), PATH.prior_std),
        steps=steps,
        schedule=PATH,
        grid=KarrasGrid(PATH),
        score=AtScale(ExactScoreField(MIXTURE), PATH),
    )


class Velocity(nn.Module):
    """The exact velocity along the linear path, as a network."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        from test_interpolants import ExactVelocity

        return ExactVelocity(LinearSchedule())(x, t, cond)


def interpolated() -> ParticleModel:
    path = LinearSchedule()
    field = VelocityField(VelocityDenoiser(Velocity(), path))
    return ParticleModel(field, GaussianPrior((2,)), steps=14, schedule=path, solver=Heun())


def chain(steps: int = 20) -> ParticleModel:
    """A Discriminator Flow, not trained: a field at its nodes alone."""
    torch.manual_seed(1)
    network = MLP((2,), (), width=32, depth=2, conditions=Conditioning(scalars=1)).double()
    field = DiscriminatorField(network, "logit", conditions=("t",))
    return ParticleModel(field, GaussianPrior((2,)), steps=steps, eta=30.0)


def error(model: ParticleModel, nodes: Nodes, solver: Any, seed: int = 77) -> float:
    """Root mean square distance from converged paths, of fresh starts."""
    x = model.prior.sample(1000, generator=seeded(seed), dtype=torch.float64)
    fine = model.sample(1000, generator=seeded(), start=x, grid=Nodes(200), solver=Heun())
    found = model.sample(1000, generator=seeded(), start=x, grid=nodes, solver=solver)
    return float((found - fine).square().sum(1).mean().sqrt())


@pytest.mark.parametrize("steps", [4, 8])
def test_placed_levels_beat_every_karras_grid(steps: int) -> None:
    """On starts that took no part, and the model's own grid by far."""
    model, solver = noised(), DPMSolver2M()
    placed = place_nodes(model, steps, solver=solver)
    grids = [Nodes(steps, KarrasGrid(PATH, low, rho)) for low, rho in SEARCHED]
    best = min(error(model, grid, solver) for grid in grids)
    found = error(model, placed.nodes, solver)
    assert found < 0.9 * best
    assert found < 0.4 * error(model, Nodes(steps), solver)
    assert placed.evaluations == steps
    assert placed.nodes.times is not None
    assert len(placed.nodes.times) == steps + 1
    assert (placed.nodes.times[0], placed.nodes.times[-1]) == (0.0, PATH.horizon)
    assert placed.error < placed.before


@pytest.mark.parametrize("steps", [4, 8])
def test_the_search_of_a_fixed_grid_has_no_edges(steps: int) -> None:
    """Two numbers: better than a table of them, and worth less than placed nodes."""
    model, solver = noised(), DPMSolver2M()
    fixed = place_nodes(model, steps, solver=solver, fixed=True)
    grids = [Nodes(steps, KarrasGrid(PATH, low, rho)) for low, rho in SEARCHED]
    found = error(model, fixed.nodes, solver)
    assert found < 1.02 * min(error(model, grid, solver) for grid in grids)
    assert place_nodes(model, steps, solver=solver).error < fixed.error


def test_a_path_that_begins_at_infinite_noise() -> None:
    model, solver = interpolated(), UniPC(2)
    placed = place_nodes(model, 5, solver=solver)
    assert error(model, placed.nodes, solver) < 0.95 * error(model, Nodes(5), solver)


def test_few_steps_have_a_rule() -> None:
    """Far better than a grid that was made for many; all else stays the model's own."""
    model = noised()
    spread = float(MIXTURE.sample(4000, generator=seeded(), dtype=torch.float64).std())
    for steps in (4, 8, 16):
        told = few_steps(model, Sampling(Nodes(steps)), spread)
        assert told.grid is not None
        assert isinstance(told.solver, UniPC)
        assert model.evaluations(sampling=told) == steps
        own = error(model, Nodes(steps), UniPC())
        assert error(model, told.grid, told.solver) < (0.7 if steps < 16 else 1.0) * own
        assert (
            few_steps(noised(5), Sampling(Nodes(steps)), spread) == told
        )  # more than its own, too
    levels = few_steps(model, Sampling(Nodes(4), solver=DPMSolver2M()), spread)
    assert isinstance(levels.solver, DPMSolver2M)
    assert levels.grid != Nodes(4)
    noisy = ParticleModel(
        model.field, model.prior, steps=28, schedule=PATH, diffusion=torch.ones_like
    )
    for of, asked in (
        (model, Sampling(Nodes(28))),
        (model, Sampling(Nodes(min(FEW) - 1))),
        (model, Sampling(Nodes(4), solver=Heun())),
        (model, Sampling()),
        (noised(4), Sampling(Nodes(4))),
        (noisy, Sampling(Nodes(4))),
        (chain(), Sampling(Nodes(4))),
    ):
        assert few_steps(of, asked, spread) == asked


def pictures(path: Schedule) -> ParticleModel:
    """A model of pictures of two pixels; its field is not asked."""
    prior = GaussianPrior((1, 1, 2), path.prior_std)
    score = AtScale(ExactScoreField(MIXTURE), path)
    return ParticleModel(score, prior, steps=28, schedule=path, score=score)


@pytest.mark.parametrize("steps", [4, 7, 16])
def test_few_steps_of_pictures_are_even_once_they_are_near_the_data(steps: int) -> None:
    """After one step from the highest level, that is; along any path."""
    for path, spread in ((PATH, 0.5), (PATH, 1.3), (LinearSchedule(), 0.5)):
        told = few_steps(pictures(path), Sampling(Nodes(steps)), spread)
        assert told.grid is not None
        assert told.grid.times is not None
        assert (told.grid.times[0], told.grid.times[-1]) == (0.0, path.horizon)
        inner = path.sigma(torch.tensor(told.grid.times[1:-1], dtype=torch.float64)) / spread
        first, last = {4: (2.8, 3 / 16), 7: (3.5, 15 / 112), 16: (8.0, 3 / 32)}[steps]
        assert_close(inner, torch.linspace(first, last, steps - 1, dtype=torch.float64))
    low = Sampling(Nodes(steps))
    assert few_steps(pictures(EDMSchedule(steps / 2)), low, 1.0) == low  # there is no room for them


def test_a_protocol_tells_solvers_apart() -> None:
    said = [Sampling(solver=each).protocol["solver"] for each in (UniPC(), UniPC(3), Heun(churn=2))]
    assert said == ["UniPC", "UniPC(order=3)", "Heun(churn=2)"]


def test_the_same_seed_places_the_same_nodes() -> None:
    one, two, other = (place_nodes(noised(), 4, solver=UniPC(2), seed=s) for s in (3, 3, 4))
    assert one == two
    assert one.nodes != other.nodes


def test_what_is_handed_out_is_never_worse_than_the_own_grid() -> None:
    """Few starts mislead the search, not the verdict."""
    for seed in range(4):
        for steps in (1, 3):
            placed = place_nodes(noised(), steps, solver=DPMSolver2M(), starts=8, seed=seed)
            assert placed.error <= placed.before


def test_a_distance_can_be_the_criterion() -> None:
    """Here of the spread: the nodes follow what is asked, not the path."""
    asked: list[int] = []

    def distance(x: Tensor) -> float:
        asked.append(len(x))
        return abs(float(x.var(0).sum()) - 5.0)

    placed = place_nodes(noised(), 3, solver=DPMSolver2M(), distance=distance, starts=400)
    assert placed.criterion == "data"
    assert placed.error < placed.before
    assert set(asked) == {200}


def test_known_nodes_are_beaten_or_kept_by_data_that_were_not_searched_with() -> None:
    """Here the search goes to where samples are far from those."""
    model, solver = noised(), DPMSolver2M()

    def held_out(x: Tensor) -> float:
        return abs(float(x.var(0).sum()) - 5.0)

    known = place_nodes(model, 3, solver=solver, distance=held_out, starts=400)
    again = place_nodes(
        model,
        3,
        solver=solver,
        distance=lambda x: -held_out(x),
        held_out=held_out,
        starts=400,
        known=known.nodes,
    )
    assert (again.nodes, again.error) == (known.nodes, known.error)
    with pytest.raises(ConfigError, match="are 3, as"):
        place_nodes(model, 2, solver=solver, known=known.nodes)


def test_nodes_of_another_model_are_told() -> None:
    own = chain().grid.nodes(20)[[0, 3, 20]].tolist()
    network = MLP((2,), (2,), width=8, depth=1).double()
    generator = GeneratorModel(MMDField(RieszKernel()), network, GaussianPrior((2,)))
    assert may_be_of(chain(), Nodes(times=tuple(own)))
    assert may_be_of(interpolated(), Nodes(times=(0.0, 0.123, 1.0)))
    assert not may_be_of(chain(), Nodes(times=(0.0, 0.123, 1.0)))  # it knows no such time
    assert not may_be_of(noised(), Nodes(times=(0.0, 0.123, 1.0)))
    assert not may_be_of(generator, Nodes(times=(0.0, 0.123, 1.0)))


def test_of_a_discriminator_flow_they_are_among_its_own() -> None:
    model = chain()
    placed = place_nodes(model, 5)
    own = model.grid.nodes(20).tolist()
    assert placed.nodes.times is not None
    assert {*placed.nodes.times} <= {*own}
    assert len(placed.nodes.times) == 6
    assert placed.error < placed.before
    x = model.prior.sample(500, generator=seeded(9), dtype=torch.float64)
    ends = model.sample(500, generator=seeded(), start=x)
    few = model.sample(500, generator=seeded(), start=x, grid=placed.nodes)
    even = model.sample(500, generator=seeded(), start=x, grid=Nodes(5))
    assert (few - ends).square().sum() < (even - ends).square().sum()
    all_of_them = place_nodes(model, 20)
    assert_close(torch.tensor(all_of_them.nodes.times), torch.tensor(own))
    assert all_of_them.error == 0


def test_what_cannot_be_placed() -> None:
    network = MLP((2,), (2,), width=8, depth=1).double()
    generator = GeneratorModel(MMDField(RieszKernel()), network, GaussianPrior((2,)))
    with pytest.raises(ConfigError, match="one call"):
        place_nodes(generator, 4)
    with pytest.raises(ConfigError, match="without noise"):
        place_nodes(noised(), 4, solver=PredictorCorrector())
    assert isinstance(place_nodes(noised(), 2, solver=EulerMaruyama(), starts=8), Placement)
    with pytest.raises(ConfigError, match="at most 20"):
        place_nodes(chain(), 21)
    with pytest.raises(ConfigError):
        place_nodes(noised(), 0)


# --- beside a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "edm"
    changed = {"iterations": 60, "network": {"width": 32, "depth": 2}, "evaluate_every": None}
    return train_run(make_recipe("edm", load_preset("edm-gaussians").settings, changed), out)


def protocol(capsys: pytest.CaptureFixture[str], run: Run, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    main(["evaluate", str(run.path), "--n", "200", "--json", *options])
    return json.loads(capsys.readouterr().out)["protocol"]


def stopped(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*line])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_tuned_steps_are_taken_from_then_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """By as many steps, of that solver or of none in particular; and by an export."""
    assert "times" not in protocol(capsys, run, "--steps", "3")
    main(["tune", str(run.path), "--steps", "3", "--json"])
    kept = json.loads(capsys.readouterr().out)
    assert (kept["steps"], kept["solver"], kept["criterion"]) == (3, "unipc-2", "path")
    assert kept["error"] <= kept["before"]
    said = protocol(capsys, run, "--steps", "3")
    assert (said["times"], said["solver"], said["nfe"]) == (kept["times"], "UniPC", 3)
    assert protocol(capsys, run, "--steps", "3", "--solver", "unipc-2")["times"] == kept["times"]
    for other in (["--steps", "3", "--solver", "heun"], ["--steps", "28"], []):
        assert "times" not in protocol(capsys, run, *other)
    levels = protocol(capsys, run, "--levels", "[5,1,0.2]")
    assert levels["times"] != kept["times"]

    main(["tune", str(run.path), "--steps", "3", "--solver", "dpmpp-2m", "--criterion", "data"])
    capsys.readouterr()
    assert protocol(capsys, run, "--steps", "3")["solver"] == "DPMSolver2M"  # the latest
    assert protocol(capsys, run, "--steps", "3", "--solver", "unipc-2")["times"] == kept["times"]
    exported = export_run(run, run.path.parent / "export")
    assert protocol(capsys, load_export(exported), "--steps", "3")["solver"] == "DPMSolver2M"
    main(["sample", str(run.path), "--steps", "3", "--n", "8"])


def test_what_tune_refuses(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(run.path)
    said = stopped(capsys, "tune", place, "--solver", "dpmpp-2m-sde")
    assert "without noise" in said
    assert "chooses its steps itself" in stopped(capsys, "tune", place, "--solver", "adaptive")
    assert "at least 1" in stopped(capsys, "tune", place, "--steps", "0")
    assert "without labels" in stopped(capsys, "tune", place, "--guidance", "2")
    before = (run.path / PLACED).read_bytes() if (run.path / PLACED).exists() else b"{}"
    for damaged in (
        b"{",
        b'{"placed": []}',
        before[: len(before) // 2],
        before.replace(b"3", b"4", 1),
    ):
        (run.path / PLACED).write_bytes(damaged)
        assert "remove it" in stopped(capsys, "sample", place, "--steps", "3", "--n", "4")
    for times in (
        [0, 1, 2, 3],
        [0, 20, 40],
        [0, 2, 1, 40],
    ):  # of another run, of two steps, of none
        entry = {"steps": 3, "solver": None, "guidance": None, "times": times}
        write_json(run.path / PLACED, sealed({"placed": [entry]}))
        assert "remove it" in stopped(capsys, "sample", place, "--steps", "3", "--n", "4")
    (run.path / PLACED).unlink()
    os.mkfifo(run.path / PLACED)  # nothing waits for it
    for line in (["export", place, "--out", str(run.path / "x")], ["tune", place, "--steps", "3"]):
        assert "remove it" in stopped(capsys, *line)
    (run.path / PLACED).unlink()


def test_nodes_of_an_earlier_iteration_are_left(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is trained further is another model."""
    for step, taken in ((run.step, True), (run.step - 1, False)):
        times = [0.0, 20.0, 38.0, 40.0]
        entry = {"steps": 3, "solver": None, "guidance": None, "times": times, "step": step}
        write_json(run.path / PLACED, sealed({"placed": [entry]}))
        assert (protocol(capsys, run, "--steps", "3").get("times") == times) is taken
    (run.path / PLACED).unlink()


def test_a_folder_that_may_not_be_written_is_told_before_the_search(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partikel.app.tuning.os.access", lambda *_: False)  # root may always
    monkeypatch.setattr("partikel.app.tuning.place_nodes", None)
    assert "tune a copy" in stopped(capsys, "tune", str(run.path), "--steps", "3")


def test_guidance_is_tuned_of_models_that_were_trained_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"iterations": 5, "network": {"width": 16, "depth": 2}, "evaluate_every": None}
    settings = load_preset("edm-gaussians").settings
    for dropout in (0.0, 0.2):
        more = {"conditional": True, "label_dropout": dropout}
        run = train_run(make_recipe("edm", settings, changed, more), tmp_path / str(dropout))
        line = ("tune", str(run.path), "--steps", "3", "--guidance", "2")
        if not dropout:
            assert "without labels too" in stopped(capsys, *line)
            continue
        main([*line, "--json"])
        times = json.loads(capsys.readouterr().out)["times"]
        assert protocol(capsys, run, "--steps", "3", "--guidance", "2")["times"] == times
        assert "times" not in protocol(capsys, run, "--steps", "3")


def test_levels_are_those_of_the_path_that_is_followed(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    said = protocol(capsys, run, "--levels", "[3,1]", "--path", "linear")
    assert_close(said["times"], [0.0, 0.25, 0.5, 1.0])  # t = 1/(1 + σ)


def test_an_adaptive_solver_has_no_nodes_to_place() -> None:
    """It chooses its steps between them itself."""
    with pytest.raises(ConfigError, match="chooses its steps itself"):
        place_nodes(noised(4), 2, solver=AdaptiveODE(), starts=4)


# --- with a preset


def test_presets_ship_nodes_of_their_paths() -> None:
    shipped = {name: load_preset(name).placed for name in preset_names()}
    assert {"edm-gaussians", "edm-digits", "edm-mnist-fast", "flow-matching-gaussians"} == {
        name for name, entries in shipped.items() if entries
    }
    for name, entries in shipped.items():
        loaded = load_preset(name)
        horizon = getattr(make_recipe(loaded.recipe, loaded.settings), "sigma_max", 1.0)
        for entry in checked_entries(entries):
            assert len(entry["times"]) == entry["steps"] + 1
            assert (entry["times"][0], entry["times"][-1]) == (0.0, horizon)
        # where they beat the rule
        assert not entries or {4, 8} & {entry["steps"] for entry in entries}


def test_runs_of_a_preset_take_its_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If they have its levels; what was placed for the run goes first; Python and commands agree."""
    small = {"iterations": 20, "network": {"width": 16, "depth": 2}, "evaluate_every": None}
    settings = load_preset("edm-gaussians").settings
    shipped = {each["steps"]: each for each in load_preset("edm-gaussians").placed}
    run, other = (
        train_run(
            make_recipe("edm", settings, small, more), tmp_path / name, preset="edm-gaussians"
        )
        for name, more in (("same", {}), ("other", {"sigma_max": 30.0}))
    )
    for steps in (8, 16):
        said = protocol(capsys, run, "--steps", str(steps))
        assert (said["times"], said["solver"]) == (shipped[steps]["times"], "UniPC")
    said = protocol(capsys, other, "--steps", "8")
    assert said["times"][-1] == 30.0
    assert "times" not in protocol(capsys, run, "--steps", "8", "--path", "linear")
    placed = Sampling(Nodes(times=tuple(shipped[8]["times"])), solver=UniPC())
    assert_close(
        run.sample(50, generator=seeded(), steps=8),
        run.sample(50, generator=seeded(), sampling=placed),
    )
    own = run.sample(50, generator=seeded(), sampling=Sampling(Nodes(8)))
    assert not torch.equal(own, run.sample(50, generator=seeded(), steps=8))
    main(["tune", str(run.path), "--steps", "8", "--json"])
    tuned = json.loads(capsys.readouterr().out)["times"]
    assert tuned != shipped[8]["times"]
    assert protocol(capsys, run, "--steps", "8")["times"] == tuned
    assert run.sampling(steps=8, tuned=False) == placed
