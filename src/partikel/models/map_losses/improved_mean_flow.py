"""Improved MeanFlow (iMF; Geng et al. 2025, arXiv 2512.02012)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from partikel.models.map_losses.base import LearnedMap, Points
from partikel.models.map_losses.mean_flow import MeanFlow


@dataclass(frozen=True)
class ImprovedMeanFlow(MeanFlow):
    """V = U - (t - s) stopgrad[∂_s U + (v_θ·∇) U] regressed on v_c, with the map's own v_θ = U(x, s, s).

    The same as MeanFlow with another tangent. Its loss at the exact U is that of flow matching.
    """

    def tangent(self, model: LearnedMap, points: Points, velocity: Tensor) -> Tensor:
        """The flow's velocity itself."""
        return velocity if points.velocity is None else model.velocity(points)
