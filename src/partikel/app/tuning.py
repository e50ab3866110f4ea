"""Nodes placed for few steps of a run, kept beside it (:mod:`partikel.models.placing`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from torch import Tensor

from partikel.app.placed import beside, write_beside
from partikel.app.runs import Run
from partikel.errors.checks import Count, checked
from partikel.metrics.evaluation import quick_evaluation
from partikel.metrics.measures import main_measure
from partikel.models.placing import place_nodes
from partikel.solvers import SOLVERS

SEVERAL_STEPS = "unipc-2"
"""The solver along a path of noised data, unless another one is asked for."""

Criterion: TypeAlias = Literal["path", "data"]


@checked
def tune_run(
    run: Run,
    steps: Count,
    *,
    solver: str | None = None,
    criterion: Criterion | None = None,
    guidance: float | None = None,
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Place the nodes of few steps of a run and keep them beside it: samples of as many steps take them.

    Args:
        run: of free particles.
        steps: how many.
        solver: a name of :data:`partikel.solvers.SOLVERS`; UniPC of order 2 along a path of noised data, else
            the run's own, unless given.
        criterion: "path", how far paths end from where converged ones do; "data", the distance of samples to
            validation data, or to training data where those are fewer. Unless given, data for images,
            whose best sampler is often not the converged one, and path for points.
        guidance: weight of the labels.
        seed: of the starts.
        told: hears how far it has come.

    Returns:
        What was kept.

    Raises:
        ConfigError: for a run that takes no steps, moves with noise, or a stochastic solver.
        CheckpointError: where the file beside the run is damaged, or cannot be written.
    """
    name = solver or (SEVERAL_STEPS if run.model.follows_path else None)
    beside(run.path)  # a damaged file is told before the search, not after
    images = len(run.data.shape) > 1
    criterion = criterion or ("data" if images else "path")
    starts = (2000 if images else 4096) if criterion == "data" else 512
    half = starts // 2

    def distance(x: Tensor) -> float:
        enough = run.dataset.at_most(half, "validation") == half
        found = quick_evaluation(
            lambda n, _: x[:n],
            run.dataset,
            n=half,
            seed=seed,
            split="validation" if enough else "train",
        )
        return found[main_measure(run.data.shape).key]

    found = place_nodes(
        run.model,
        steps,
        solver=None if name is None else SOLVERS[name](),
        guidance=guidance,
        distance=distance if criterion == "data" else None,
        starts=starts,
        real=run.context(),
        seed=seed,
        told=told,
    )
    entry = {
        "steps": steps,
        "solver": name,
        "guidance": guidance,
        "times": found.nodes.times,
        "criterion": criterion,
        "error": found.error,
        "before": found.before,
        "evaluations": found.evaluations,
        "seed": seed,
        "step": run.step,
    }
    same = ("steps", "solver", "guidance")
    kept = beside(run.path)  # by now another process may have placed others
    kept = [each for each in kept if any(each[key] != entry[key] for key in same)]
    write_beside(run.path, [*kept, entry])
    return entry
