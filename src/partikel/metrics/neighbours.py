"""Nearest neighbours among training points, and what they tell of memorisation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from partikel.errors.checks import checked
from partikel.kernels import squared_distances

RATIO = 1 / 3
"""How much nearer than the second a memorised point's nearest neighbour is, see :func:`memorised`."""

_ROWS = 4096


class Neighbours(NamedTuple):
    """The k nearest references of n points, nearest first."""

    distances: Tensor
    """(n, k) float64."""
    indices: Tensor
    """(n, k) int64: which references."""


@checked
def nearest_neighbours(points: Tensor, references: Tensor, k: int) -> Neighbours:
    """The nearest references of each point, by Euclidean distances in float64.

    Args:
        points: (n, D).
        references: (m, D), visited a few thousand at a time.
        k: how many neighbours, at most m.

    Raises:
        ValueError: for unlike shapes, or a k that does not fit.
    """
    if points.ndim != 2 or references.ndim != 2 or points.shape[1] != references.shape[1]:
        raise ValueError(
            f"points must be (n, D) and (m, D), not {tuple(points.shape)} and "
            f"{tuple(references.shape)}"
        )
    if not 1 <= k <= len(references):
        raise ValueError(f"k must be between 1 and {len(references)}, not {k}")
    # Centred, because distances by the scalar product are exact to the size of the points only.
    centre = references.mean(0).double().to(points.device)
    points = points.double() - centre
    squared = points.new_empty(len(points), 0)
    indices = torch.empty(len(points), 0, dtype=torch.int64, device=points.device)
    for start in range(0, len(references), _ROWS):
        some = references[start : start + _ROWS].to(points) - centre
        which = torch.arange(start, start + len(some), device=points.device)
        squared = torch.cat([squared, squared_distances(points, some, exact=False)], 1)
        indices = torch.cat([indices, which.expand(len(points), -1)], 1)
        squared, order = squared.topk(min(k, squared.shape[1]), largest=False)
        indices = indices.gather(1, order)
    return Neighbours(squared.sqrt(), indices)


@checked
def memorised(distances: Tensor, exact: float = 0.0) -> Tensor:
    """Which points are copies of a training point rather than new ones.

    A point x is memorised where |x - NN₁| < ⅓ |x - NN₂|: its nearest training point stands out from
    the next (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize";
    Gu et al. 2023, "On memorization in diffusion models", both on pixels). Data that hold the same
    point several times would hide its copies: those nearer than ``exact`` count too.

    Args:
        distances: (n, k) to the nearest training points, nearest first, k >= 2.
        exact: distance below which a point is a copy.

    Returns:
        (n,) bool.

    Raises:
        ValueError: for fewer than two neighbours.
    """
    if distances.ndim != 2 or distances.shape[1] < 2:
        raise ValueError(f"distances must be (n, k) with k >= 2, not {tuple(distances.shape)}")
    return (distances[:, 0] < RATIO * distances[:, 1]) | (distances[:, 0] <= exact)
