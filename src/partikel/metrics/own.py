"""Measures of one's own, and of other packages, beside those of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partikel.data import Dataset
from partikel.errors import ConfigError
from partikel.extensions import Registry
from partikel.metrics.evaluation import Evaluation, Sampler, _Work
from partikel.metrics.measures import MEASURES, Measure
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


OWN_MEASURES: Registry[Measure] = Registry("measure", "measures", MEASURES, _own)
"""Measures by name; of ours, which every evaluation has, none is computed here."""


def add_own(
    result: Evaluation,
    names: Sequence[str],
    sampler: Sampler,
    dataset: Dataset,
    device: torch.device | str = "cpu",
) -> None:
    """Add measures of other packages to an evaluation: of its samples, and of the data in their place.

    Args:
        result: the evaluation, which says how many samples of which seed there are.
        names: of the measures; those that it has already are left as they are.
        sampler: draws the samples again, as the evaluation drew them.
        dataset: points or images.
        device: where samples are drawn.

    Raises:
        ConfigError: for an unknown measure, one of other data, or more samples than memory should hold.
    """
    kind = "points" if len(dataset.shape) == 1 else "images"
    found = [OWN_MEASURES.find(name) for name in dict.fromkeys(names)]
    for each in found:
        if each.of != kind:
            raise ConfigError(f"'{each.key}' is a measure of {each.of}, and these are {kind}.")
    own = [each for each in found if isinstance(each, OwnMeasure)]
    if not own:
        return
    protocol = result.protocol
    n, split = protocol["samples"], protocol["split"]
    check_memory(3 * n, dataset.shape)
    work = _Work(dataset, protocol["seed"], device)
    other = "test" if split == "train" else "train"
    samples = torch.cat([x.cpu() for x in work.samples(sampler, n)])
    real = work.held(n, split, "reference")
    second = work.held(dataset.at_most(n, other), other, "second")
    for each in own:
        result.metrics[each.key] = float(each.compute(samples, real))
        result.reference[each.key] = float(each.compute(second, real))
