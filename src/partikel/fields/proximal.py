"""Minimising movements (Jordan, Kinderlehrer & Otto 1998): implicit steps of any field (framework §14)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from partikel.errors.checks import Count, Positive, Range
from partikel.fields.base import At, Field


class JKOField(Field):
    """V(x) = (x' - x)/η with x' = x + η field_{ρ'}(x'), ρ' the law of all x': a JKO step as a field.

    Of a gradient flow of F, ρ' minimises F(ρ') + E‖x' - x‖²/(2η): a step of size η along V is the implicit
    one of Euler, which is stable however stiff the field. A carrier takes it when its own steps are of that
    size: N steps and ``eta`` = N η of free particles, ``eta`` = η of a generator, which is fitted to x'.

    It is solved by inner steps y <- y + rη (field_{ρ_y}(y) - (y - x)/η) of the whole cloud from y = x;
    one with r = 1 is the explicit step, and V is the field. They converge for small enough r. Of a bound
    cloud the points asked about and the cloud's own come apart by rounding, which a kernel that is not
    smooth at 0 (Riesz, Laplace) takes for a distance.

    Args:
        field: which; nothing in it is trained here that it does not train itself.
        eta: η > 0, the carrier's step.
        steps: inner ones, >= 1.
        rate: r of (0, 1].
    """

    requires = frozenset({"particles"})

    def __init__(
        self,
        field: Field,
        eta: Positive,
        *,
        steps: Count = 10,
        rate: Annotated[float, Range(above=0, most=1)] = 0.5,
    ) -> None:
        super().__init__()
        self.field = field
        self.eta = eta
        self.steps = steps
        self.rate = rate

    def forward(self, x: Tensor, at: At) -> Tensor:
        """(x' - x)/η; a bound cloud moves along, anew for each time that is asked about."""
        if self.context.particles is None:
            return self._moved(x.detach(), at, None) / self.eta
        cloud, moved = self.bound_cloud(x), torch.empty_like(x)
        levels = [torch.atleast_1d(value) for value in (at.t, at.sigma) if value is not None]
        rows = torch.stack(torch.broadcast_tensors(*levels, x.new_zeros(len(x)))[:-1], 1)
        distinct, place = torch.unique(rows, dim=0, return_inverse=True)
        for number, level in enumerate(distinct):
            here = place == number
            cond = None if at.cond is None else at.cond[here]
            moved[here] = self._moved(x.detach()[here], At(*level, cond=cond), cloud)
        return moved / self.eta

    def _moved(self, start: Tensor, at: At, cloud: Tensor | None) -> Tensor:
        """How far points come; with a cloud that is not the points themselves, at one time."""
        y, others, field = start, cloud, self.field
        for _ in range(self.steps):
            if cloud is not None and others is not None:
                field = self.field.bind(replace(self.context, particles=others))
                others = self._nearer(others, cloud, field(others, at._replace(cond=None)))
            y = self._nearer(y, start, field(y, at))
        return y - start

    def _nearer(self, y: Tensor, start: Tensor, velocity: Tensor) -> Tensor:
        return (y + self.rate * (self.eta * velocity.detach() - (y - start))).detach()
