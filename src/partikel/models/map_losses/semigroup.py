"""The semigroup loss (Boffi et al. 2025, arXiv 2505.18825; shortcut models, Frans et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from partikel.errors.checks import NotNegative
from partikel.models.map_losses.base import LearnedMap, MapLoss, Points
from partikel.solvers import Euler, Solver
from partikel.tensors import expand_like


@dataclass(frozen=True)
class Semigroup(MapLoss):
    """X_{s→t} = X_{r→t} ∘ X_{s→r}, r drawn between; short jumps are steps of the flow.

    Every flow satisfies the equation, the one that stands still too: the share ``diagonal`` of short jumps
    says which one it is. Of a flow that is only known at its own N nodes these are its own steps,
    x + (η/N) ∇h(x, t_k), and s, r, t are nodes.

    Attributes:
        step: length of the short jumps; 0 for the velocity itself (not of nodes).
        solver: of the short jumps.
    """

    step: NotNegative = 0.0
    solver: Solver = field(default_factory=Euler)

    def times(
        self,
        n: int,
        model: LearnedMap,
        s: Tensor | None,
        *,
        generator: torch.Generator,
        like: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`MapLoss.times`; short jumps have length ``step``, or lead to the next node."""
        nodes = model.nodes
        if nodes is None:
            s, t = super().times(n, model, s, generator=generator, like=like)
            return s, torch.where(t == s, (s + self.step).clamp(max=model.horizon), t)
        draws = torch.rand(3, n, generator=generator, device=generator.device, dtype=like.dtype)
        nodes, last = nodes.to(like), len(nodes) - 1
        first = (draws[0] * last).long() if s is None else _places(nodes, s)
        further = first + 1 + (draws[1] * (last - first)).long()
        further = torch.where(draws[2] < self.diagonal, first + 1, further)
        return nodes[first], nodes[further]

    def target(self, model: LearnedMap, points: Points) -> Tensor:
        """(X_{r→t}(X_{s→r}(x)) - x)/(t - s), or the average velocity of a short jump."""
        x, s, t, nodes = points.x, points.s, points.t, model.nodes
        place = torch.full_like(s, 0.5) if points.place is None else points.place
        if nodes is None:
            short = t - s <= self.step * (1 + 1e-6)
            r = s + (t - s) * place
        else:
            nodes = nodes.to(x)
            first, last = _places(nodes, s), _places(nodes, t)
            short = last == first + 1
            r = nodes[torch.minimum(first + 1 + (place * (last - first - 1)).long(), last)]
        half = x + expand_like(r - s, x) * model.average(points.like(x, s, r))
        end = half + expand_like(t - r, x) * model.average(points.like(half, r, t))
        length = expand_like(t - s, x)
        if nodes is None and self.step == 0:
            base = self.velocity(model, points)
        else:
            base = (model.stepped(points, self.solver) - x) / length
        return torch.where(expand_like(short, x) > 0, base, (end - x) / length.clamp(min=1e-12))


def _places(nodes: Tensor, times: Tensor) -> Tensor:
    """The numbers of the nodes that times are."""
    return (nodes[None] - times[:, None]).abs().argmin(1)
