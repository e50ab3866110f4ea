"""Nodes placed for few steps of a run, kept beside it (:mod:`partikel.models.placing`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any, Literal, TypeAlias

from torch import Tensor

from partikel.app.placed import beside, write_beside
from partikel.app.runs import Run
from partikel.errors import CheckpointError
from partikel.errors.checks import Count, checked
from partikel.files import writing_to
from partikel.metrics.evaluation import quick_evaluation
from partikel.metrics.measures import main_measure
from partikel.models.placing import place_nodes
from partikel.solvers import SOLVERS

SEVERAL_STEPS = "unipc-2"
"""The solver along a path of noised data, unless another one is asked for."""
HELD_OUT = 100
"""Validation data, at least, that decide between nodes that were searched with training data."""
ELSEWHERE = "placed nodes are kept in the run's folder, so tune a copy of it"

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

    On particles that did not take part in the search they are never worse than what as many steps take
    without them, where that is of the same solver.

    Args:
        run: of free particles.
        steps: how many.
        solver: a name of :data:`partikel.solvers.SOLVERS`; UniPC of order 2 along a path of noised data, else
            the run's own, unless given.
        criterion: "path", how far paths end from where converged ones do; "data", the distance of samples to
            training data, where validation data, if there are some, decide at the end. Unless given, data
            for images, whose best sampler is often not the converged one, and path for points.
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
    if not os.access(run.path, os.W_OK):
        raise CheckpointError(f"{run.path} may not be written: {ELSEWHERE}.")
    images = len(run.data.shape) > 1
    criterion = criterion or ("data" if images else "path")
    half, held_out = 256, False
    if criterion == "data":
        half = run.dataset.at_most(1000 if images else 2048)
        held_out = run.dataset.at_most(HELD_OUT, "validation") == HELD_OUT

    def distance(x: Tensor, split: str = "train") -> float:
        of = run.dataset.at_most(len(x), split)
        parts = [
            quick_evaluation(lambda n, _, part=part: part[:n], run.dataset, n=of, seed=seed, split=split)
            for part in x.split(of)[: len(x) // of]
        ]
        return mean(part[main_measure(run.data.shape).key] for part in parts)

    chosen = None if name is None else SOLVERS[name]()
    untuned = run.sampling(tuned=False, steps=steps, solver=chosen, guidance=guidance).grid
    found = place_nodes(
        run.model,
        steps,
        solver=chosen,
        guidance=guidance,
        distance=distance if criterion == "data" else None,
        held_out=partial(distance, split="validation") if held_out else None,
        starts=2 * half,
        real=run.context(),
        known=untuned,
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
    with writing_to(run.path, ELSEWHERE):
        write_beside(run.path, [*kept, entry])
    return entry
