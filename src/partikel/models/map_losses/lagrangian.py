"""The Lagrangian loss (Boffi et al. 2024, arXiv 2406.07507; 2025, arXiv 2505.18825)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partikel.models.map_losses.base import LearnedMap, MapLoss, Points
from partikel.tensors import expand_like


@dataclass(frozen=True)
class Lagrangian(MapLoss):
    """∂_t X_{s→t}(x) = v(X_{s→t}(x), t): the map's end moves as the flow does there.

    At X no pair of data is known, so that v is a teacher's, or the map's own U(X, t, t), which the points
    with s = t train.
    """

    def target(self, model: LearnedMap, points: Points) -> Tensor:
        """v(X, t) - (t - s) ∂_t U."""
        x, s, t = points.x, points.s, points.t
        average, slope = model.derivative(points, torch.zeros_like(x), 0.0, 1.0)
        length = expand_like(t - s, x)
        there = model.velocity(points.like(x + length * average, t, t))
        if points.velocity is not None:
            there = torch.where(length == 0, points.velocity, there)
        return there - length * slope
