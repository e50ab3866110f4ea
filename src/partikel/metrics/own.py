"""Measures beside those of an evaluation: further ones of ours, one's own, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partikel.data import Dataset
from partikel.errors import ConfigError
from partikel.extensions import Registry
from partikel.metrics.evaluation import Evaluation, Sampler, _Work, choose_features
from partikel.metrics.features import FeatureSet, frechet_distance
from partikel.metrics.measures import MEASURES, Measure
from partikel.metrics.several import FDR, MIND, fd_ratio, mind, networks_without_download
from partikel.tensors import check_memory


@dataclass(frozen=True, kw_only=True)
class OwnMeasure(Measure):
    """A measure with what computes it.

    Attributes:
        compute: called with samples and a reference, (n, ...) and (m, ...) on the CPU, images in [-1, 1];
            returns a number.
    """

    compute: Callable[[Tensor, Tensor], float]


def _own(name: str, found: Any) -> Measure:
    """What another package has under the name of a measure."""
    if not isinstance(found, OwnMeasure) or found.key != name:
        raise TypeError(f"it must be a partikel.metrics.own.OwnMeasure with the key '{name}'")
    return found


OWN_MEASURES: Registry[Measure] = Registry(
    "measure", "measures", {**MEASURES, MIND.key: MIND, FDR.key: FDR}, _own
)
"""Measures by name; of ours only those are computed here which not every evaluation has."""


def add_own(
    result: Evaluation,
    names: Sequence[str],
    sampler: Sampler,
    dataset: Dataset,
    device: torch.device | str = "cpu",
    features: str | None = None,
) -> None:
    """Add measures to an evaluation that not every one has: of its samples, and of the data in their place.

    Args:
        result: the evaluation, which says how many samples of which seed there are.
        names: of the measures; those that it has already are left as they are.
        sampler: draws the samples again, as the evaluation drew them.
        dataset: points or images.
        device: where samples are drawn.
        features: the feature network of MIND; what suits the data unless given. FDr takes all that need no
            download.

    Raises:
        ConfigError: for an unknown measure, one of other data, or more samples than memory should hold.
    """
    kind = "points" if len(dataset.shape) == 1 else "images"
    found = [OWN_MEASURES.find(name) for name in dict.fromkeys(names)]
    for each in found:
        if each.of != kind:
            raise ConfigError(f"'{each.key}' is a measure of {each.of}, and these are {kind}.")
    own = [each for each in found if isinstance(each, OwnMeasure)]
    protocol = result.protocol
    n, split = protocol["samples"], protocol["split"]
    work = _Work(dataset, protocol["seed"], device)
    other = "test" if split == "train" else "train"

    def sets(name: str | None) -> tuple[FeatureSet, FeatureSet, FeatureSet]:
        """Of the samples, the data in their place, and the reference, on a network."""
        network = choose_features(name, dataset, device)
        held = work.of_data(network, dataset.at_most(n, other), other, "second")
        real = work.of_data(network, n, split, "reference")
        return work.of_samples(network, n, sampler, "samples"), held, real

    few = min(n, dataset.at_most(n, other))
    for each in (MIND, FDR):
        if each in found and few < 2:
            result.left_out[each.key] = f"needs 2 images of a split, there are {few}"
            found.remove(each)
    if MIND in found:
        fake, held, real = sets(features)
        result.metrics[MIND.key] = mind(fake.kept, real.kept)
        result.reference[MIND.key] = mind(held.kept, real.kept)
        protocol[MIND.key] = "squared sliced W2 of features, 1024 directions"
    if FDR in found:
        known = [sets(name) for name in networks_without_download(dataset.shape)]
        model, data = zip(
            *((frechet_distance(x, y), frechet_distance(z, y)) for x, z, y in known), strict=True
        )
        if all(data):
            result.metrics[FDR.key], result.reference[FDR.key] = fd_ratio(model, data), 1.0
        else:
            result.left_out[FDR.key] = "needs held-out data at a distance from the reference"
        protocol[FDR.key] = (
            f"mean over {len(known)} networks: {', '.join(fake.network for fake, *_ in known)}"
        )
    if not own:
        return
    check_memory(3 * n, dataset.shape)
    samples = torch.cat([x.cpu() for x in work.samples(sampler, n)])
    real = work.held(n, split, "reference")
    second = work.held(dataset.at_most(n, other), other, "second")
    for each in own:
        result.metrics[each.key] = float(each.compute(samples, real))
        result.reference[each.key] = float(each.compute(second, real))
