"""MeanFlow (Geng et al. 2025, arXiv 2505.13447): the Eulerian equation in U."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from partikel.models.map_losses.base import LearnedMap, MapLoss, Points
from partikel.tensors import expand_like


@dataclass(frozen=True)
class MeanFlow(MapLoss):
    """U(x, s, t) = v(x, s) + (t - s) [∂_s U + (v·∇) U](x, s, t).

    Learned from data, v is the conditional velocity in the sum and in the tangent: the target stays right
    in the mean, as it is linear in v, and as nothing is differentiated through it.
    """

    def target(self, model: LearnedMap, points: Points) -> Tensor:
        """The right-hand side."""
        velocity = self.velocity(model, points)
        slope = model.derivative(points, self.tangent(model, points, velocity), 1.0, 0.0)[1]
        return velocity + expand_like(points.t - points.s, points.x) * slope

    def tangent(self, model: LearnedMap, points: Points, velocity: Tensor) -> Tensor:
        """The direction of the spatial derivative: the velocity in the sum."""
        return velocity
