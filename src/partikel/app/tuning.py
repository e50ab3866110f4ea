"""Nodes placed for few steps of a run, kept beside it (:mod:`partikel.models.placing`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from torch import Tensor

from partikel.app.placed import beside, write_beside
from partikel.app.runs import Run
from partikel.data import Dataset
from partikel.errors import CheckpointError
from partikel.errors.checks import Count, checked
from partikel.files import writing_to
from partikel.metrics import FeatureSet, energy_distance, extract_features, frechet_distance
from partikel.metrics.evaluation import QUICK_PHOTOGRAPHS, choose_features
from partikel.metrics.features import FeatureNetwork
from partikel.metrics.pretrained import PhotographFeatures
from partikel.models.placing import place_nodes
from partikel.solvers import SOLVERS
from partikel.streams import seeded

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
    half, distances = 256, None
    if criterion == "data":
        network = choose_features(None, run.dataset) if images else None
        half = QUICK_PHOTOGRAPHS if isinstance(network, PhotographFeatures) else 1000
        half = run.dataset.at_most(half if images else 2048)
        enough = run.dataset.at_most(HELD_OUT, "validation") == HELD_OUT
        held_out = "validation" if enough else "train"
        distances = [_distance(run.dataset, half, s, seed, network) for s in ("train", held_out)]

    chosen = None if name is None else SOLVERS[name]()
    untuned = run.sampling(tuned=False, steps=steps, solver=chosen, guidance=guidance).grid
    found = place_nodes(
        run.model,
        steps,
        solver=chosen,
        guidance=guidance,
        distance=None if distances is None else distances[0],
        held_out=None if distances is None else distances[1],
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


def _distance(
    dataset: Dataset, n: int, split: str, seed: int, network: FeatureNetwork | None
) -> Callable[[Tensor], float]:
    """To at most n data of a split: Fréchet's of images by their features, the energy distance of points."""
    n = dataset.at_most(n, split)
    real = dataset.draw(n, split, generator=seeded(seed, "tuning", split)).x
    if network is None:
        return lambda x: energy_distance(x.cpu(), real)

    def seen(images: Tensor) -> FeatureSet:
        return FeatureSet.of(network, extract_features(network, images.cpu()))

    known = seen(real)
    return lambda x: frechet_distance(seen(x), known)
