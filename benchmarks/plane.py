"""Quality against cost: every model with its levels placed, at 1 to 28 network passes, flow maps beside them.

    python benchmarks/plane.py [--data gaussians] [--seeds 0 1 2] [--runs RUNS] [--only MODEL ...]

Cost is in network passes for one sample: a forward is 1, an input gradient 2. At each budget a model has the
solver, the nodes and the settings that are best on draws of the training data, and is measured on others
(few_steps.py says how), so that all are chosen alike. Candidates are, of models of noised data, the run's
own grid, the best fixed one and placed nodes, by five solvers; of SLCD, which moves with noise, its λ² on
the grids that suit the score; of flow maps, where their jumps lie; of models with a discriminator, trained
anew for each number of steps, their step sizes. A Discriminator Flow is also measured as it was trained, by
some of its nodes, and stopped early.

Runs are taken from RUNS/PRESET/seed-k, and trained there where they are missing; models that a budget
trains anew are in RUNS/PRESET-N-steps... The result is saved after each row.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common import one_thread, save  # isort: skip
import torch

from few_steps import Protocol, protocol_of
from partikel.app.config import load_preset, make_recipe, preset_names
from partikel.app.runs import Run, train_run
from partikel.data import open_dataset
from partikel.diffflow import DiffFlow
from partikel.errors import PartikelError
from partikel.models import Carrier, ParticleModel, Sampling, place_nodes
from partikel.recipes.base import score_in
from partikel.schedules import EDMSchedule, Nodes
from partikel.solvers import SOLVERS, Solver
from partikel.studies.judgement import interval_of

BUDGETS = (1, 2, 4, 8, 14, 28)
PURE = ("ddim", "dpmpp-2m", "unipc-2", "unipc-3", "heun")
CHURN = (0.5, 1.0, 1.5, 1.9)
BENDS = (0.5, 0.7, 1.0, 1.5, 2.0)
"""Exponents of the times that flow maps jump between."""
STEP_SIZES = {"gaussians": (0.7, 1.4, 2.8), "digits": (1.0, 2.5), "mnist-fast": (1.0, 2.5)}
"""η/N of models whose particles follow a discriminator alone, by the end of their presets' names."""
DATA = {"gaussians": "gaussians", "digits": "digits", "mnist": "mnist-fast"}

Row = dict[str, Any]
Candidate = tuple[Row, Carrier, Sampling]
"""What it is, and how its samples are drawn."""


class Runs:
    """Trained runs in a folder.

    Args:
        folder: holds PRESET/seed-k.
        smaller: settings of all trainings, for a test.
    """

    def __init__(self, folder: Path, smaller: Mapping[str, Any]) -> None:
        self.folder, self.smaller = folder, smaller

    def __call__(self, preset: str, seed: int, changes: Mapping[str, Any] | None = None) -> Run:
        """A run, trained if it has to be."""
        changes, loaded = dict(changes or {}), load_preset(preset)
        named = {k: v for k, v in changes.items() if k != "data_score"}
        name = "-".join([preset, *(f"{v:g}-{k}" for k, v in named.items())])
        if changes:  # of a search: no pictures on the way
            changes["evaluate_every"] = None
        recipe = make_recipe(
            loaded.recipe, loaded.settings, {**self.smaller, **changes, "seed": seed}
        )
        return train_run(recipe, self.folder / name / f"seed-{seed}", preset=preset)


def chosen(protocol: Protocol, candidates: Iterable[Candidate]) -> Row | None:
    """The candidate that is best on the choosing draw, measured on the others."""
    best: tuple[float, Candidate] | None = None
    for candidate in candidates:
        row, model, sampling = candidate
        value = protocol.choice(model, sampling)
        if best is None or value < best[0]:
            best = (value, candidate)
    if best is None or math.isinf(best[0]):
        return None
    row, model, sampling = best[1]
    times = None if sampling.grid is None else sampling.grid.times
    return {**row, "times": times, protocol.measure: protocol.of(model, sampling)}


def placed(
    model: Carrier, steps: int, solver: Solver, protocol: Protocol, fixed: bool = False
) -> Nodes:
    """Nodes as 'partikel tune' places them: for points by where paths end, for images by data."""
    if len(protocol.dataset.shape) == 1:
        return place_nodes(model, steps, solver=solver, fixed=fixed, seed=1).nodes
    return protocol.placed(model, steps, solver, fixed=fixed)


def along_levels(model: Carrier, passes: int, protocol: Protocol) -> Iterator[Candidate]:
    """A model of noised data by each solver and grid; a step of Heun's takes two passes, EDM's last one."""
    last = 0 if isinstance(model.schedule, EDMSchedule) else 1
    for name in PURE:
        steps = (passes + 1 - last) // 2 if name == "heun" else passes
        if steps == 0:
            continue
        solver = SOLVERS[name]()
        grids = {"own": Nodes(steps)}
        if steps > 1:
            grids["best fixed"] = placed(model, steps, solver, protocol, fixed=True)
            grids["placed"] = placed(model, steps, solver, protocol)
        for grid, nodes in grids.items():
            yield {"solver": name, "grid": grid}, model, Sampling(nodes, solver=solver)


def churned(model: ParticleModel, passes: int, protocol: Protocol) -> Iterator[Candidate]:
    """Stochastic Langevin Churn: the score alone at g² = 2."""
    schedule = model.schedule
    assert isinstance(schedule, EDMSchedule)
    grids = {"own": Nodes(passes)}
    if passes > 1:
        for name in ("ddim", "unipc-2"):
            grids[f"best of {name}"] = placed(model, passes, SOLVERS[name](), protocol, fixed=True)
    for lambda2 in CHURN:
        flow = DiffFlow.reverse(schedule, g2=2.0, lambda2=lambda2)
        point = ParticleModel(
            flow.field(score_in(model.field)),
            flow.prior(protocol.dataset.shape),
            steps=passes,
            schedule=schedule,
            grid=model.grid,
            diffusion=flow.diffusion,
        )
        for grid, nodes in grids.items():
            yield {"lambda2": lambda2, "grid": grid}, point, Sampling(nodes)


def jumping(model: Carrier, passes: int) -> Iterator[Candidate]:
    """A flow map's jumps."""
    even = torch.linspace(0, 1, passes + 1, dtype=torch.float64)
    for bend in BENDS if passes > 1 else (1.0,):
        times = tuple((model.horizon * even**bend).tolist())
        yield {"bend": bend}, model, Sampling(Nodes(times=times))


def as_trained(model: Carrier, passes: int, protocol: Protocol) -> Iterator[Candidate]:
    """A Discriminator Flow with the steps it was trained at: stopped early, or by some of its nodes."""
    assert model.steps is not None
    steps = min(passes // 2, model.steps)
    if steps == 0:
        return
    yield {"grid": "stopped early"}, model, Sampling(stop=steps)
    assert isinstance(model, ParticleModel)
    yield {"grid": "placed by data"}, model, Sampling(protocol.placed(model, steps, model.solver))


def measured(
    seed: int, data: str, budgets: list[int], protocol: Protocol, runs: Runs, only: list[str]
) -> Iterator[Row]:
    """Every row of one training seed."""
    end = DATA[data]
    there = set(preset_names())

    def wanted(name: str) -> str | None:
        preset = f"{name}-{end}"
        return preset if preset in there and (not only or name in only) else None

    def rows(name: str, candidates: Any) -> Iterator[Row]:
        for passes in budgets:
            try:
                row = chosen(protocol, candidates(passes))
            except PartikelError as error:  # an ending of its own: a row without a figure
                row = {"stopped": str(error)}
            if row is not None:
                yield {"model": name, "passes": passes, **row}

    def trained_anew(preset: str, settings: list[Row], passes_per_step: int, more: Row) -> Any:
        def candidates(passes: int) -> Iterator[Candidate]:
            steps = passes // passes_per_step
            for setting in settings if steps else []:
                values = {k: v * steps if k == "eta" else v for k, v in setting.items()}
                run = runs(preset, seed, {"steps": steps, **values, **more})
                yield {"steps": steps, **values}, run.model, Sampling()

        return candidates

    for name in ("edm", "flow-matching"):
        preset = wanted(name)
        if preset is not None:
            model = runs(preset, seed).model
            yield from rows(name, lambda k, model=model: along_levels(model, k, protocol))
    if wanted("slcd"):
        score = runs(f"edm-{end}", seed).model
        assert isinstance(score, ParticleModel)
        yield from rows("slcd", lambda k: churned(score, k, protocol))
    for name in ("mean-flow", "consistency"):
        preset = wanted(name)
        if preset is not None:
            model = runs(preset, seed).model
            yield from rows(name, lambda k, model=model: jumping(model, k))
    for name in ("gan", "score-gan"):
        preset = wanted(name)
        if preset is not None:
            model = runs(preset, seed).model
            one = protocol.of(model, Sampling())
            yield {"model": name, "passes": 1, protocol.measure: one}
    sizes: list[Row] = [{"eta": size} for size in STEP_SIZES[end]]
    preset = wanted("discriminator-flow")
    if preset is not None:
        model = runs(preset, seed).model
        name = f"discriminator-flow, some of {model.steps}"
        yield from rows(name, lambda k: as_trained(model, k, protocol))
    for name in ("discriminator-flow", "diffode-gan"):
        preset = wanted(name)
        if preset is not None:
            yield from rows(name, trained_anew(preset, sizes, 2, {}))
    preset = wanted("diffusion-gan")
    if preset is not None:
        points: list[Row] = [{"lambda2": 1.0}, {"lambda2": 0.5}]
        more = {"data_score": str(runs(f"edm-{end}", seed).path)}
        yield from rows("diffusion-gan", trained_anew(preset, points, 3, more))


def summary(rows: list[Row], measure: str) -> dict[int, list[Row]]:
    """For each budget, the models with their means over training seeds and 95 % intervals, best first."""
    found: dict[int, list[Row]] = {}
    for budget in sorted({row["passes"] for row in rows}):
        models: dict[str, list[float]] = {}
        for row in rows:
            if row["passes"] == budget and measure in row:
                models.setdefault(row["model"], []).append(row[measure])
        told = [
            {
                "model": model,
                measure: statistics.fmean(values),
                "interval": interval_of(values, 0.95) if len(values) > 1 else None,
                "seeds": len(values),
            }
            for model, values in models.items()
        ]
        found[budget] = sorted(told, key=lambda each: each[measure])
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="gaussians", choices=sorted(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/plane"))
    parser.add_argument("--only", nargs="+", default=[], help="models, as edm mean-flow")
    parser.add_argument("--passes", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--iterations", type=int, help="of all trainings, for a test")
    parser.add_argument("--samples", type=int, help="of all measurements, for a test")
    arguments = parser.parse_args()
    one_thread()
    named = load_preset(f"edm-{DATA[arguments.data]}")
    protocol = protocol_of(open_dataset(make_recipe("edm", named.settings).data))
    name, n = f"plane-{arguments.data}", arguments.samples
    if n is not None:
        name, protocol.n, protocol.chosen = f"{name}-test", n, n
    smaller = {} if arguments.iterations is None else {"iterations": arguments.iterations}
    runs = Runs(arguments.runs, smaller)
    rows: list[Row] = []
    for seed in arguments.seeds:
        made = measured(seed, arguments.data, arguments.passes, protocol, runs, arguments.only)
        for row in made:
            rows.append({"seed": seed, **row})
            print(rows[-1], flush=True)
            record = {
                "samples": protocol.n,
                "evaluation_seeds": protocol.seeds,
                "rows": rows,
                "summary": summary(rows, protocol.measure),
            }
            save(name, record)


if __name__ == "__main__":
    main()
