"""Measures of images beside those that every evaluation has: MIND, and a Fréchet ratio of several networks.

They are asked for by name (``partikel evaluate RUN --measures mind,fdr``).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from torch import Tensor

from partikel.errors.checks import Count, checked
from partikel.metrics.choice import NETWORKS, _measures
from partikel.metrics.distances import sliced_wasserstein2
from partikel.metrics.measures import Measure
from partikel.metrics.pretrained import IN_PACKAGES, available

MIND = Measure("mind", "MIND", "sliced W2² of features", "squared features", "lower", "images")
"""Of one feature network."""
FDR = Measure("fdr", "FDr", "Fréchet ratio", "ratio", "lower", "images")
"""Of several."""


@checked
def mind(x: Tensor, y: Tensor, projections: Count = 1024, seed: int = 0) -> float:
    """MIND (arXiv:2605.06797): squared sliced W2 between two clouds of features of equal size.

    The mean over random directions of the mean squared difference of sorted projections. Unlike a Fréchet
    distance it takes the clouds for no Gaussians, and needs no covariance of as many samples as features.
    It has a bias that falls with their number: read it beside its value for two draws of the data.

    Args:
        x: (n, D) features; of two numbers of them the smaller is taken of both.
        y: (m, D).
        projections: directions.
        seed: of the directions.
    """
    n = min(len(x), len(y))
    return sliced_wasserstein2(x[:n], y[:n], projections, seed) ** 2


@checked
def fd_ratio(model: Sequence[float], held_out: Sequence[float]) -> float:
    """FDr^k (arXiv:2604.28190): the mean over k feature networks of FD(model)/FD(held-out data).

    1 where a model is as near to the reference as held-out data are. A network whose scale is large does
    not decide alone.

    Args:
        model: Fréchet distances of the model's samples to a reference, one for each network.
        held_out: of held-out data to the same reference, positive.

    Raises:
        ValueError: for no network, other numbers of distances, or data at no distance.
    """
    if not model or len(model) != len(held_out):
        raise ValueError("a ratio of Fréchet distances takes two for each feature network")
    if min(held_out) <= 0:
        raise ValueError("held-out data must be at a distance from the reference")
    return statistics.fmean(a / b for a, b in zip(model, held_out, strict=True))


def networks_without_download(shape: tuple[int, ...]) -> list[str]:
    """Feature networks that can measure images of a shape here, at once: all that download nothing.

    Args:
        shape: (C, H, W).
    """
    known = [name for name in NETWORKS if _measures(name, shape)]
    lite = [name for name in IN_PACKAGES if shape[-1] >= 16 and available(name)]
    return [*known, *lite, "pixels"]
