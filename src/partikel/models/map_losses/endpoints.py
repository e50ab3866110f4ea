"""Regression on simulated ends (Luhman & Luhman 2021, arXiv 2101.02388; Liu et al. 2022, 2209.03003)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from partikel.errors.checks import Size
from partikel.models.map_losses.base import LearnedMap, MapLoss, Points
from partikel.tensors import expand_like


@dataclass(frozen=True)
class Endpoints(MapLoss):
    """X_{0→T}(x_0) = x_1, where the flow has taken x_0: one call, and nothing between.

    The target has neither the noise of data nor the errors of the map's own shorter jumps, and the network
    one jump to learn. Needs a trained flow: its pairs are those of :class:`~partikel.models.Reflow`.

    Attributes:
        size: number of pairs, simulated once.
    """

    to_end = True

    size: Size = 50_000

    def target(self, model: LearnedMap, points: Points) -> Tensor:
        """(x_1 - x_0)/T."""
        assert points.pairs is not None
        return (points.pairs.x1 - points.x) / expand_like(points.t - points.s, points.x)
