"""How well samples cover a mixture whose components are known, and their likelihood under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from partikel.errors.checks import checked

COVERED_SHARE = 0.2
"""A mode counts as covered from this part of its fair share of points on."""


class HasLogDensity(Protocol):
    """A law whose density is known."""

    def log_density(self, x: Tensor) -> Tensor:
        """Natural logarithm of the density: (B, ...) -> (B,)."""
        ...


@dataclass(frozen=True)
class ModeStatistics:
    """Where the points are, mode by mode.

    Attributes:
        covered: modes that hold, within 3 standard deviations, at least 20 % of their fair share.
        modes: number of modes K.
        within_3sigma: share of all points within 3 standard deviations of their nearest mean, in
            [0, 1]; isotropic Gaussian modes in two dimensions that do not overlap have .989.
        total_variation: ½ Σ_k |share_k - weight_k|, in [0, 1].
        shares: share of points whose nearest mean is that of mode k.
    """

    covered: int
    modes: int
    within_3sigma: float
    total_variation: float
    shares: tuple[float, ...]


@checked
def mode_statistics(
    x: Tensor,
    means: Tensor,
    std: float | Tensor | Sequence[float],
    weights: Tensor | Sequence[float] | None = None,
) -> ModeStatistics:
    """Count points by their nearest mean.

    Args:
        x: (n, D); points that are not finite are near no mean and count as missing from every mode.
        means: (K, D), of the mixture's components.
        std: standard deviation of every component, or (K,) one of each.
        weights: (K,), the components' probabilities; equal where None.

    Raises:
        ValueError: for no points, or shapes that disagree.
    """
    if x.ndim != 2 or means.ndim != 2 or x.shape[1] != means.shape[1] or len(x) == 0:
        raise ValueError(
            f"points (n, D), n >= 1, and means (K, D) expected, not {tuple(x.shape)} and "
            f"{tuple(means.shape)}"
        )
    count = len(means)
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))

    def numbers(values: object) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64).to(x.device)

    stds = numbers(std).expand(count)
    fair = numbers([1 / count] * count if weights is None else weights).expand(count)
    fair = fair / fair.sum()
    held = torch.zeros(count, dtype=torch.float64, device=x.device)
    close = torch.zeros_like(held)
    for some in x.split(max(1, 2**20 // means.numel())):
        some = some[some.isfinite().all(1)]
        squares = (some[:, None] - means.to(x)).square().sum(-1)
        nearest = squares.argmin(1)
        inside = squares.gather(1, nearest[:, None])[:, 0] <= (3 * stds[nearest]).square()
        held += torch.bincount(nearest, minlength=count)
        close += torch.bincount(nearest[inside], minlength=count)
    shares = held / len(x)
    missing = 1 - shares.sum()
    return ModeStatistics(
        covered=int((close / len(x) >= COVERED_SHARE * fair).sum()),
        modes=count,
        within_3sigma=float(close.sum() / len(x)),
        total_variation=float((shares - fair).abs().sum() + missing) / 2,
        shares=tuple(shares.tolist()),
    )


@checked
def negative_log_likelihood(x: Tensor, target: HasLogDensity) -> float:
    """Mean of -log p(x) over samples, in nats: their cross-entropy under the exact density p.

    Not a distance: samples of p itself have its entropy, and samples crowded on the highest mode
    have less. Read it beside the entropy of p and the mode statistics.

    Args:
        x: (n, ...), n >= 1.
        target: the law p.

    Raises:
        ValueError: for no points.
    """
    if len(x) == 0:
        raise ValueError("the mean log-likelihood of no points does not exist")
    with torch.no_grad():
        total = sum(target.log_density(some).sum(dtype=torch.float64) for some in x.split(2**16))
    return -float(total) / len(x)
