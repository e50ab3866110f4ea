"""Consistency (Song et al. 2023, arXiv 2303.01469; iCT, Song & Dhariwal 2023, arXiv 2310.14189)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from partikel.errors.checks import Count
from partikel.models.map_losses.base import LearnedMap, MapLoss, Points
from partikel.solvers import Heun, Solver
from partikel.tensors import expand_like


@dataclass(frozen=True)
class Consistency(MapLoss):
    """X_{s→T}(x_s) = X_{s'→T}(x_{s'}), s' one step on: all points of a path end where it ends.

    Of a teacher x_{s'} is a solver's step from x_s; from data it is a point of the same x_1 and x_0, which
    is right up to O((s' - s)²) a step. The map jumps to T only.

    Attributes:
        intervals: N; a step is T/N long, or what is left.
        solver: of a teacher's steps.
    """

    to_end = True

    intervals: Count = 64
    solver: Solver = field(default_factory=Heun)

    def times(
        self,
        n: int,
        model: LearnedMap,
        s: Tensor | None,
        *,
        generator: torch.Generator,
        like: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """S of the law, t = T."""
        if s is None:
            s = self.law.sample(n, model.horizon, generator=generator, dtype=like.dtype)
        return s, torch.full_like(s, model.horizon)

    def target(self, model: LearnedMap, points: Points) -> Tensor:
        """(X_{s'→T}(x_{s'}) - x_s)/(T - s)."""
        x, s, t = points.x, points.s, points.t
        after = torch.minimum(s + model.horizon / self.intervals, t)
        if model.learns_itself:
            assert points.pairs is not None
            moved = model.on_the_way(points.pairs, after)
        else:
            moved = model.stepped(points.like(x, s, after), self.solver)
        end = moved + expand_like(t - after, x) * model.average(points.like(moved, after, t))
        return (end - x) / expand_like(t - s, x)
