"""Few steps of trained runs: the run's own grid, the best of fixed grids, and placed nodes.

    python benchmarks/few_steps.py NAME RUN [RUN ...]      # training seeds of one preset

At 4 and 8 evaluations, by DPM-Solver++(2M) and UniPC of order 2. The best fixed grid is Karras's, of a lowest
level and an exponent among those searched, chosen on other draws, by the
distance of where paths end from where converged ones do. Figures are means over three evaluation seeds
against the test split, the spread is that of the training seeds.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from common import one_thread, save  # isort: skip
import torch

from partikel import load
from partikel.app.runs import Run
from partikel.app.tuning import tune_run
from partikel.metrics.evaluation import quick_evaluation
from partikel.metrics.measures import main_measure
from partikel.models import Sampling
from partikel.models.placing import SEARCHED
from partikel.schedules import KarrasGrid, Nodes
from partikel.solvers import SOLVERS, Heun, Solver

STEPS = (4, 8)
BY = ("dpmpp-2m", "unipc-2")
SEEDS = (0, 1, 2)
N = {1: 20_000, 3: 2000}
"""Samples, of points and of images; at most what the split has."""


def best_grid(run: Run, steps: int, solver: Solver) -> tuple[Nodes, list[float]]:
    """The fixed grid whose paths end nearest to converged ones, and its lowest level and exponent."""
    model, generator = run.model, torch.Generator()
    assert model.schedule is not None
    x = model.start(256, generator.manual_seed(11))

    def drawn(nodes: Nodes, by: Solver) -> torch.Tensor:
        return model.sample(256, generator=generator, start=x, grid=nodes, solver=by)

    converged, found = drawn(Nodes(64), Heun()), []
    for place in SEARCHED:
        nodes = Nodes(steps, KarrasGrid(model.schedule, *place))
        missed = (drawn(nodes, solver) - converged).square().sum()
        found.append((float(missed), list(place), nodes))
    _, place, nodes = min(found, key=lambda each: each[0])
    return nodes, place


def measured(run: Run, sampling: Sampling) -> float:
    """The distance to the test split that data of the shape go by, mean over the evaluation seeds."""
    n, key = N[len(run.data.shape)], main_measure(run.data.shape).key
    found = []
    for seed in SEEDS:

        def draw(n: int, generator: torch.Generator) -> torch.Tensor:
            return run.sample(n, generator=generator, sampling=sampling)

        found.append(quick_evaluation(draw, run.dataset, n=n, seed=seed, split="test")[key])
    return statistics.mean(found)


def rows(run: Run) -> dict[str, Any]:
    """One training seed."""
    found: dict[str, Any] = {"28 by the run's own": measured(run, Sampling(grid=Nodes(28)))}
    for steps in STEPS:
        for name in BY:
            solver = SOLVERS[name]()
            nodes, place = best_grid(run, steps, solver)
            started = time.process_time()
            places = tuple(tune_run(run, steps, solver=name)["times"])
            seconds = time.process_time() - started
            grids = {"own": Nodes(steps), "best fixed": nodes, "placed": Nodes(times=places)}
            for grid, of in grids.items():
                found[f"{steps} {name} {grid}"] = measured(run, Sampling(grid=of, solver=solver))
            found[f"{steps} {name} seconds"] = seconds
            found[f"{steps} {name} fixed at"] = place
    return found


def main() -> None:
    """Run the benchmark."""
    one_thread()
    name, runs = sys.argv[1], sys.argv[2:]
    results = [rows(load(run)) for run in runs]
    for key in results[0]:
        values = [each[key] for each in results]
        print(f"{key:28s}", *(f"{v:.4g}" if isinstance(v, float) else v for v in values))
    print(save(f"few-steps-{name}", {"evaluation_seeds": SEEDS, "samples": N, "runs": results}))


if __name__ == "__main__":
    main()
