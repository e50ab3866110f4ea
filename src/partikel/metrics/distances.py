"""Distances between two clouds of points: MMD², energy distance, sliced and exact Wasserstein-2.

All are estimated from samples x ~ p (n points) and y ~ q (m points). MMD² and the energy distance
are U-statistics: unbiased, so that between two draws of the same law they scatter around zero and
are negative about half of the time. Both are sums over all pairs of points; the pairs are visited
in tiles that stay in the processor's cache, and :func:`pairwise_distances_report` computes both in
one visit. Terms have the dtype of the points, sums are float64. Points that are not finite make the
answer NaN.

Sources: Gretton et al. 2012 (MMD); Székely & Rizzo 2013 (energy distance); Rabin et al. 2011
(sliced Wasserstein distance).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from partikel.errors import optional
from partikel.errors.checks import checked
from partikel.kernels import squared_distances
from partikel.streams import normal
from partikel.tensors import sorted_rows

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""σ of the RBF kernels over which :func:`mmd2` averages."""

EXACT_LIMIT = 10_000
"""Most points a side that :func:`wasserstein2` accepts."""

PLAIN_DIM = 64
"""Up to so many coordinates its distances are exact however small; beyond, to about 1e-8 of the points."""


class PairwiseReport(NamedTuple):
    """What the distances between all pairs of points tell."""

    mmd2: float
    """Unbiased MMD², see :func:`mmd2`."""
    energy: float
    """Unbiased energy distance, see :func:`energy_distance`."""


@checked
def pairwise_distances_report(
    x: Tensor, y: Tensor, bandwidths: Sequence[float] = BANDWIDTHS
) -> PairwiseReport:
    """:func:`mmd2` and :func:`energy_distance` from one visit of all pairs.

    Args:
        x: (n, ...), n >= 2.
        y: (m, ...), m >= 2, points shaped like those of ``x``.
        bandwidths: standard deviations σ of the RBF kernels.

    Raises:
        ValueError: for fewer than two points, unlike shapes, or bandwidths that are not positive.
    """
    energy, kernel = _u_statistics(x, y, bandwidths, energy=True)
    return PairwiseReport(kernel, -energy)


@checked
def mmd2(x: Tensor, y: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> float:
    """Squared maximum mean discrepancy E k(x, x') + E k(y, y') - 2 E k(x, y), unbiased.

    Gretton et al. 2012, eq. 3. The kernel is the mean over σ of exp(-|x - y|² / 2σ²).

    Args:
        x: (n, ...), n >= 2.
        y: (m, ...), m >= 2, points shaped like those of ``x``.
        bandwidths: standard deviations σ of the RBF kernels.

    Raises:
        ValueError: for fewer than two points, unlike shapes, or bandwidths that are not positive.
    """
    return _u_statistics(x, y, bandwidths, energy=False)[1]


@checked
def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, unbiased.

    Székely & Rizzo 2013, eq. 2.2. It is a squared distance: the MMD² of the kernel -|x - y|.

    Args:
        x: (n, ...), n >= 2.
        y: (m, ...), m >= 2, points shaped like those of ``x``.

    Raises:
        ValueError: for fewer than two points or unlike shapes.
    """
    return -_u_statistics(x, y, None, energy=True)[0]


@checked
def sliced_wasserstein2(x: Tensor, y: Tensor, projections: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance: root of the mean of W2² over random lines.

    Rabin et al. 2011. Sorting solves the problem on each line exactly; clouds of different sizes
    are compared by their quantile functions, exactly too. A shift by v in R^D measures about
    |v|/√D.

    Args:
        x: (n, ...).
        y: (m, ...), points shaped like those of ``x``.
        projections: number of lines.
        seed: which lines; the same for the same number of coordinates, on every device.

    Raises:
        ValueError: for empty clouds or unlike shapes.
    """
    x, y = _clouds(x, y, least=1)
    generator = torch.Generator().manual_seed(seed)
    lines = normal(projections, x.shape[1], generator=generator, dtype=torch.float64)
    lines = (lines / lines.norm(dim=1, keepdim=True)).to(x)
    of_x, of_y, weights = _quantile_steps(len(x), len(y), x.device)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for some in lines.split(max(1, 2**22 // max(len(x), len(y)))):
        gaps = sorted_rows(some @ x.T)[:, of_x] - sorted_rows(some @ y.T)[:, of_y]
        total += (gaps.square_().double() @ weights).sum()
    return math.sqrt(total.item() / projections)


@checked
def wasserstein2(x: Tensor, y: Tensor) -> float:
    """Wasserstein-2 distance between the two clouds, exact: root of the cost of the best transport.

    Solved by POT's network simplex on the CPU in float64: memory grows as n·m, time faster; 4,000
    points a side take seconds, 10,000 tens of seconds and four gigabytes.

    Args:
        x: (n, ...), at most 10,000 points.
        y: (m, ...), at most 10,000 points shaped like those of ``x``.

    Raises:
        ValueError: for empty clouds, unlike shapes, or more points than is sensible.
    """
    x, y = _clouds(x, y, least=1)
    if max(len(x), len(y)) > EXACT_LIMIT:
        raise ValueError(
            f"exact W2 of {len(x):,} against {len(y):,} points would take minutes to hours and "
            f"{len(x) * len(y) * 40 / 1e9:.0f} GB of memory: give at most {EXACT_LIMIT:,} points "
            "or use sliced W2"
        )
    ot = optional("ot", "transport", "the exact W2 needs POT")  # slow to import

    x, y = x.cpu().double(), y.cpu().double()
    centre = y.mean(0)
    costs = squared_distances(x - centre, y - centre, exact=x.shape[1] <= PLAIN_DIM)
    if not costs.isfinite().all():
        return math.nan
    plan = torch.as_tensor(ot.emd([], [], costs.numpy(), numItermax=10**9))
    rows, columns = plan.nonzero(as_tuple=True)  # and what they cost, without cancellation
    return math.sqrt(plan[rows, columns] @ (x[rows] - y[columns]).square().sum(1))


def _clouds(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both clouds as (n, D), (m, D) in a common dtype of at least 32 bits, on the device of x."""
    if x.ndim < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"clouds must be (n, ...) and (m, ...) of like points, not {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    if min(len(x), len(y)) < least:
        raise ValueError(f"each cloud needs at least {least} points, not {len(x)} and {len(y)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.detach().flatten(1).to(dtype), y.detach().flatten(1).to(x.device, dtype)
    return x, y


def _u_statistics(
    x: Tensor, y: Tensor, bandwidths: Sequence[float] | None, *, energy: bool
) -> tuple[float, float]:
    """E f(x, x') + E f(y, y') - 2 E f(x, y), for f the distance and f the mean of the RBF kernels.

    Zero stands for what was not asked for: the distance without ``energy``, the kernel where
    ``bandwidths`` are None.
    """
    if bandwidths is None:
        bandwidths = ()
    elif not bandwidths or not all(sigma > 0 for sigma in bandwidths):
        raise ValueError(f"bandwidths must be positive numbers, not {tuple(bandwidths)}")
    x, y = _clouds(x, y, least=2)
    if x.shape[1] > _DIRECT:
        centre = torch.cat([x, y]).mean(0, dtype=torch.float64).to(x.dtype)
        x, y = x - centre, y - centre
    n, m = len(x), len(y)
    terms = (
        _pair_sums(x, None, bandwidths, energy=energy) / (n * (n - 1))
        + _pair_sums(y, None, bandwidths, energy=energy) / (m * (m - 1))
        - _pair_sums(x, y, bandwidths, energy=energy) * (2 / (n * m))
    )
    distance, kernel = terms.tolist()
    return distance, kernel / max(1, len(bandwidths))


def _pair_sums(x: Tensor, y: Tensor | None, bandwidths: Sequence[float], *, energy: bool) -> Tensor:
    """Sums over all pairs of the distance and of all kernels, (2,) float64.

    With ``y`` None, over the pairs i ≠ j of ``x``.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=x.device)
    rates = sorted(math.log2(math.e) / (2 * sigma**2) for sigma in bandwidths)
    for squared, scratch, weight in _tiles(x, y):
        climbed = 0
        for i, rate in enumerate(rates):
            # Halving σ raises the kernel to its fourth power: two squarings cost less than an
            # exponential. Each climb multiplies the rounding error by four, so few in a row.
            if i and climbed < 4 and math.isclose(rate, 4 * rates[i - 1]):
                scratch.square_().square_()
                climbed += 1
            else:
                torch.mul(squared, -rate, out=scratch).exp2_()
                climbed = 0
            totals[1] += scratch.sum() * weight
        if energy:
            totals[0] += squared.sqrt_().sum() * weight
    if y is None:
        totals[1] -= len(x) * len(rates)  # k(x_i, x_i) = 1
    return totals


_DIRECT = 8
"""Coordinates up to which squared distances are summed one by one, without cancellation."""


def _tile_shape(x: Tensor) -> tuple[int, int]:
    """Rows and columns of a tile, these a multiple of those; on a CPU sized for its cache."""
    return (256, 512) if x.device.type == "cpu" else (4096, 8192)


def _tiles(x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Squared distances of all pairs, tile by tile, as (tile, scratch of its shape, weight).

    With ``y`` None the pairs of ``x`` with itself: tiles left of the diagonal are skipped, those
    right of it have weight 2. Both tensors are overwritten by the next step.
    """
    rows, columns = _tile_shape(x)
    other = (x if y is None else y).T.contiguous()
    x_squares, other_squares = x.square().sum(1), other.square().sum(0)
    buffers = x.new_empty(2, rows * columns)
    for j in range(0, other.shape[1], columns):
        right = other[:, j : j + columns]
        width = right.shape[1]
        for i in range(0, len(x) if y is not None else min(len(x), j + columns), rows):
            left = x[i : i + rows]
            squared, scratch = (b[: len(left) * width].view(-1, width) for b in buffers)
            if len(right) <= _DIRECT:
                torch.sub(left[:, :1], right[0], out=squared).square_()
                for k in range(1, len(right)):
                    torch.sub(left[:, k : k + 1], right[k], out=scratch)
                    squared.addcmul_(scratch, scratch)
            else:
                squares = x_squares[i : i + rows, None], other_squares[j : j + columns]
                torch.add(*squares, out=squared)
                squared.addmm_(left, right, alpha=-2).clamp_(min=0)
            diagonal = y is None and i >= j
            if diagonal:
                squared.diagonal(i - j).zero_()
            yield squared, scratch, 1 if y is not None or diagonal else 2


def _quantile_steps(
    n: int, m: int, device: torch.device
) -> tuple[Tensor | slice, Tensor | slice, Tensor]:
    """Where the quantile functions of n and of m sorted points are both constant.

    Returns:
        For every such step: the index of the first cloud's point, that of the second's, and the
        step's length, float64, summing to one.
    """
    if n == m:
        return slice(None), slice(None), torch.full((n,), 1 / n, dtype=torch.float64, device=device)
    # The functions jump at multiples of 1/n and 1/m: whole numbers in units of 1/nm.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
    lengths = (ends - starts).double() / (n * m)
    return (starts // m).to(device), (starts // n).to(device), lengths.to(device)
