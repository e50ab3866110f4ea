"""Quality against cost: every model with its levels placed, at 1 to 28 network passes, flow maps beside them.

    python benchmarks/plane.py [--data gaussians] [--seeds 0 1 2] [--runs RUNS] [--only MODEL ...]

Cost is in network passes for one sample: a forward is 1, an input gradient 2. At each budget a model has the
solver, the nodes and the settings that are best on draws of the training data, and is measured on others
(few_steps.py says how), so that all are chosen alike. Candidates are, of models of noised data, the run's
own grid, what --steps takes, and the best fixed grid, by five solvers, and nodes placed for the solver that
is best with these; of SLCD, which moves with noise, its λ² on the grids that suit the score; of flow maps,
where their jumps lie; of models with a discriminator, trained anew for each number of steps, their step
sizes (those of the first seed's choice serve the others). Only the λ² are of a list. A Discriminator Flow is
also measured as it was trained, by some of its nodes, and stopped early. EFFORT says what larger data leave
out.

Runs are taken from RUNS/PRESET/seed-k, and trained there where they are missing; models that a budget
trains anew are in RUNS/PRESET-N-steps... The result is saved after each row, and goes on from there: rows
that it holds by the same protocol are kept (delete the file to measure them again).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from common import RESULTS, one_thread, save  # isort: skip
import torch

from few_steps import Protocol, protocol_of, without_own
from partikel.app.config import load_preset, make_recipe, preset_names
from partikel.app.runs import Run, train_run
from partikel.data import open_dataset
from partikel.diffflow import DiffFlow
from partikel.errors import NumericsError
from partikel.models import Carrier, ParticleModel, Sampling, place_nodes
from partikel.recipes.base import score_in
from partikel.schedules import EDMSchedule, Nodes
from partikel.solvers import SOLVERS, Solver
from partikel.studies.judgement import interval_of

BUDGETS = (1, 2, 4, 8, 14, 28)
CHURN = (0.5, 1.0, 1.5, 1.9)
STEP_SIZES = {"gaussians": 0.7, "digits": 1.0}
"""η/N that a search begins with, of models that are trained anew and follow a discriminator alone, by the end
of their presets' names; of MNIST each training takes ten minutes, and there is none."""
DATA = {"gaussians": "gaussians", "digits": "digits", "mnist": "mnist-fast"}


@dataclass(frozen=True)
class Effort:
    """How far a data set's grids are searched.

    Attributes:
        solvers: that are tried.
        fixed: most passes with a search for a fixed grid.
        placed: most passes with nodes placed for the run; above, the presets' nodes and the rule are tried.
    """

    solvers: tuple[str, ...] = ("ddim", "dpmpp-2m", "unipc-2", "unipc-3", "heun")
    fixed: int = 28
    placed: int = 28


EFFORT = {
    "gaussians": Effort(),
    "digits": Effort(placed=14),
    "mnist-fast": Effort(("dpmpp-2m", "unipc-2"), fixed=14, placed=0),
}
"""By the end of the presets' names: a node's place takes some forty draws of a thousand images."""

Row = dict[str, Any]
Candidate = tuple[Row, Carrier, Sampling]
"""What it is, and how its samples are drawn."""
Fixed = Callable[[int, str], Nodes]
"""The best fixed grid of so many steps by a solver of that name."""


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
        changes = dict(changes or {})
        named = {k: v for k, v in changes.items() if k != "data_score"}
        name = "-".join([preset, *(f"{v:g}-{k}" for k, v in named.items())])
        out = self.folder / name / f"seed-{seed}"
        recorded = out / "config.yaml"  # of a training elsewhere, from a score elsewhere
        loaded = load_preset(recorded if recorded.exists() else preset)
        if changes:  # of a search: no pictures on the way
            changes["evaluate_every"] = None
        changes |= {**self.smaller, "seed": seed}
        recipe = make_recipe(loaded.recipe, loaded.settings, changes)
        return train_run(recipe, out, preset=preset)


def best_of(protocol: Protocol, candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate that is best on the choosing draw; None where all of them end in nothing."""
    best, least = None, math.inf
    for candidate in candidates:
        value = protocol.choice(*candidate[1:])
        if value < least:
            best, least = candidate, value
    return best


def chosen(protocol: Protocol, candidates: Iterable[Candidate]) -> Row | None:
    """The candidate that is best on the choosing draw, measured on the others."""
    best = best_of(protocol, candidates)
    if best is None:
        return None
    row, model, sampling = best
    times = None if sampling.grid is None else sampling.grid.times
    return {**row, "times": times, protocol.measure: protocol.of(model, sampling)}


def placed(
    model: Carrier, steps: int, solver: Solver, protocol: Protocol, fixed: bool = False
) -> Nodes:
    """Nodes as 'partikel tune' places them: for points by where paths end, for images by data."""
    if len(protocol.dataset.shape) == 1:
        return place_nodes(model, steps, solver=solver, fixed=fixed, seed=1).nodes
    return protocol.placed(model, steps, solver, fixed=fixed)


def fixed_grids(model: Carrier, protocol: Protocol) -> Fixed:
    """Searches of a model, each done once."""
    return cache(
        lambda steps, solver: placed(model, steps, SOLVERS[solver](), protocol, fixed=True)
    )


def along_levels(
    run: Run, passes: int, protocol: Protocol, fixed: Fixed, effort: Effort
) -> Iterator[Candidate]:
    """A model of noised data by each solver and grid; a step of Heun's takes two passes, EDM's last one."""
    last = 0 if isinstance(run.model.schedule, EDMSchedule) else 1

    def by_solvers() -> Iterator[Candidate]:
        for name in effort.solvers:
            steps = (passes + 1 - last) // 2 if name == "heun" else passes
            if steps == 0:
                continue
            own = Sampling(Nodes(steps), solver=SOLVERS[name]())
            grids = {"own": own}
            default = without_own(run).sampling(steps=steps, solver=own.solver)
            if default.grid != own.grid:
                grids["default"] = default
            if steps > 1 and passes <= effort.fixed:
                grids["best fixed"] = replace(own, grid=fixed(steps, name))
            for grid, sampling in grids.items():
                yield {"solver": name, "grid": grid}, run.model, sampling

    best = best_of(protocol, by_solvers())
    if best is None:
        return
    yield best
    row, model, sampling = best
    if passes <= effort.placed and sampling.grid is not None and sampling.solver is not None:
        steps = sampling.grid.steps or len(sampling.grid.times or ()) - 1
        if steps > 1:
            nodes = placed(model, steps, sampling.solver, protocol)
            yield {**row, "grid": "placed"}, model, replace(sampling, grid=nodes)


def churned(
    model: ParticleModel, passes: int, protocol: Protocol, fixed: Fixed, effort: Effort
) -> Iterator[Candidate]:
    """Stochastic Langevin Churn: the score alone at g² = 2."""
    schedule = model.schedule
    assert isinstance(schedule, EDMSchedule)
    grids = {"own": Nodes(passes)}
    if 1 < passes <= effort.fixed:
        for name in (each for each in effort.solvers if each in ("ddim", "unipc-2")):
            grids[f"best of {name}"] = fixed(passes, name)
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


def climbed(protocol: Protocol, candidate: Callable[[int], Candidate]) -> Candidate:
    """From number 0 on to the better neighbour, until neither is: a search without edges."""
    made = cache(candidate)
    value = cache(lambda number: protocol.choice(*made(number)[1:]))
    best = 0
    while (nearest := min((best, best - 1, best + 1), key=value)) != best:
        best = nearest
    return made(best)


def jumping(model: Carrier, passes: int, protocol: Protocol) -> Iterator[Candidate]:
    """A flow map's jumps, between powers of even times."""
    even = torch.linspace(0, 1, passes + 1, dtype=torch.float64)

    def bent(number: int) -> Candidate:
        bend = 2 ** (number / 2)
        times = tuple((model.horizon * even**bend).tolist())
        return {"bend": bend}, model, Sampling(Nodes(times=times))

    yield climbed(protocol, bent) if passes > 1 else bent(0)


def as_trained(
    model: Carrier, passes: int, protocol: Protocol, effort: Effort
) -> Iterator[Candidate]:
    """A Discriminator Flow with the steps it was trained at: stopped early, or by some of its nodes."""
    assert model.steps is not None
    steps = min(passes // 2, model.steps)
    if steps == 0:
        return
    yield {"grid": "stopped early"}, model, Sampling(stop=steps)
    if passes <= effort.placed:
        assert isinstance(model, ParticleModel)
        nodes = protocol.placed(model, steps, model.solver)
        yield {"grid": "placed by data"}, model, Sampling(nodes)


def measured(
    seed: int,
    data: str,
    budgets: list[int],
    protocol: Protocol,
    runs: Runs,
    only: list[str],
    before: list[Row],
) -> Iterator[Row]:
    """Every row of one training seed but those of models and passes that were measured before."""
    there_are = {(row["model"], row["passes"]) for row in before if row["seed"] == seed}
    end = DATA[data]
    effort = EFFORT[end]
    there = set(preset_names())

    def wanted(name: str) -> str | None:
        preset = f"{name}-{end}"
        return preset if preset in there and (not only or name in only) else None

    def rows(name: str, candidates: Any) -> Iterator[Row]:
        for passes in budgets:
            if (name, passes) in there_are:
                continue
            try:
                row = chosen(protocol, candidates(passes))
            except NumericsError as error:  # an ending of its own: a row without a figure
                row = {"stopped": str(error)}
            if row is not None:
                yield {"model": name, "passes": passes, **row}

    def trained(name: str, values: Row, more: Mapping[str, Any]) -> Candidate:
        run = runs(f"{name}-{end}", seed, {**values, **more})
        return values, run.model, Sampling()

    def by_step_size(name: str, size: float, passes: int) -> Iterator[Candidate]:
        steps = passes // 2
        if steps == 0:
            return

        def of(number: int) -> Candidate:
            return trained(name, {"steps": steps, "eta": size * 2.0**number * steps}, {})

        first = [r for r in before if (r["model"], r["passes"]) == (name, passes) and "eta" in r]
        if first:
            yield trained(name, {"steps": steps, "eta": first[0]["eta"]}, {})
        else:
            yield climbed(protocol, of)

    def by_lambda2(passes: int, score: str) -> Iterator[Candidate]:
        steps = passes // 3
        for lambda2 in (1.0, 0.5) if steps else ():
            values = {"steps": steps, "lambda2": lambda2}
            yield trained("diffusion-gan", values, {"data_score": score})

    for name in ("edm", "flow-matching"):
        preset = wanted(name)
        if preset is not None:
            run = runs(preset, seed)
            fixed = fixed_grids(run.model, protocol)
            found = partial(along_levels, run, protocol=protocol, fixed=fixed, effort=effort)
            yield from rows(name, found)
    if wanted("slcd"):
        score = runs(f"edm-{end}", seed).model
        assert isinstance(score, ParticleModel)
        fixed = fixed_grids(score, protocol)
        found = partial(churned, score, protocol=protocol, fixed=fixed, effort=effort)
        yield from rows("slcd", found)
    for name in ("mean-flow", "consistency"):
        preset = wanted(name)
        if preset is not None:
            model = runs(preset, seed).model
            yield from rows(name, lambda k, model=model: jumping(model, k, protocol))
    for name in ("gan", "score-gan"):
        preset = wanted(name)
        if preset is not None and (name, 1) not in there_are:
            one = protocol.of(runs(preset, seed).model, Sampling())
            yield {"model": name, "passes": 1, protocol.measure: one}
    preset = wanted("discriminator-flow")
    if preset is not None:
        model = runs(preset, seed).model
        name = f"discriminator-flow, some of {model.steps}"
        yield from rows(name, lambda k: as_trained(model, k, protocol, effort))
    for name in ("discriminator-flow", "diffode-gan"):
        if wanted(name) is not None and end in STEP_SIZES:
            yield from rows(name, partial(by_step_size, name, STEP_SIZES[end]))
    if wanted("diffusion-gan") is not None:
        score = str(runs(f"edm-{end}", seed).path)
        yield from rows("diffusion-gan", partial(by_lambda2, score=score))


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
    by = {"samples": protocol.n, "evaluation_seeds": list(protocol.seeds)}
    kept = RESULTS / f"{name}.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    rows: list[Row] = before["rows"] if by.items() <= before.items() else []
    for seed in arguments.seeds:
        chosen_so = arguments.data, arguments.passes, protocol, runs, arguments.only, list(rows)
        for row in measured(seed, *chosen_so):
            rows.append({"seed": seed, **row})
            print(rows[-1], flush=True)
            save(name, {**by, "rows": rows, "summary": summary(rows, protocol.measure)})


if __name__ == "__main__":
    main()
