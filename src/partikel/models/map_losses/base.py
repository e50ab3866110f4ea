"""What a loss of a flow map is asked: times to train on, and what U is regressed on (framework §11).

All of them are regressions E ‖U_θ(x, s, t) - stopgrad target‖², on points of which a share has s = t,
where the target is the velocity itself: flow matching. They differ in what they make of s < t.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from partikel.errors.checks import Checked, NotNegative, Share
from partikel.fields import Pairs
from partikel.schedules import TimeLaw, UniformTimeLaw
from partikel.solvers import Solver


class Points(NamedTuple):
    """Points that a map is trained at, and where from there.

    Attributes:
        x: (B, ...) points at s.
        s: (B,) times.
        t: (B,) times t >= s.
        velocity: (B, ...) at (x, s), of a pair of data: a draw whose mean is the flow's; None for a teacher.
        cond: (B,) labels.
        weight: (B,) of the labels, where the map knows guidance.
        pairs: the ends of the paths that x is on, where they are known.
        place: (B,) uniform draws in [0, 1), for a time between s and t.
    """

    x: Tensor
    s: Tensor
    t: Tensor
    velocity: Tensor | None = None
    cond: Tensor | None = None
    weight: Tensor | None = None
    pairs: Pairs | None = None
    place: Tensor | None = None

    def like(self, x: Tensor, s: Tensor, t: Tensor) -> Points:
        """Other points and times with these labels."""
        return self._replace(x=x, s=s, t=t)


class LearnedMap(Protocol):
    """What losses ask of :class:`~partikel.models.FlowMapModel`; nothing of it has gradients."""

    horizon: float
    learns_itself: bool

    @property
    def nodes(self) -> Tensor | None:
        """(N + 1,) the only times at which the flow is known; None where it is known at all."""
        ...

    def average(self, points: Points) -> Tensor:
        """U(x, s, t), (B, ...), of the network whose targets are followed."""
        ...

    def derivative(
        self, points: Points, velocity: Tensor, ds: float, dt: float
    ) -> tuple[Tensor, Tensor]:
        """U(x, s, t) and its derivative in the direction (velocity, ds, dt)."""
        ...

    def velocity(self, points: Points) -> Tensor:
        """The flow's velocity at (x, s): a teacher's, or U(x, s, s)."""
        ...

    def stepped(self, points: Points, solver: Solver) -> Tensor:
        """Where one step of a solver takes x from s to t."""
        ...

    def on_the_way(self, pairs: Pairs, t: Tensor) -> Tensor:
        """Points of the paths between pairs, at times (B,)."""
        ...


@dataclass(frozen=True)
class MapLoss(Checked, ABC):
    """A way to learn a flow map.

    Attributes:
        law: of the two times, drawn and sorted.
        diagonal: share of points with s = t.
        power: p of the weight 1/(‖Δ‖² + c)^p, ‖Δ‖² a coordinate. Above 0 a map of data does not learn the
            mean velocity any more, but something between mean and mode.
        offset: c.
        simulated: train on particles of the flow itself, not on noised data; None does where there is no
            path of noised data.
        to_end: whether the map learns to jump to T only.
    """

    to_end: ClassVar[bool] = False

    law: TimeLaw = field(default_factory=UniformTimeLaw)
    diagonal: Share = 0.5
    power: NotNegative = 0.0
    offset: NotNegative = 1e-3
    simulated: bool | None = None

    def times(
        self,
        n: int,
        model: LearnedMap,
        s: Tensor | None,
        *,
        generator: torch.Generator,
        like: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Times s <= t, (n,) each.

        Args:
            n: how many.
            model: the map.
            s: where they are given.
            generator: source of the draws.
            like: of their dtype.
        """
        draw = {"generator": generator, "dtype": like.dtype}
        later = self.law.sample(n, model.horizon, **draw)
        if s is None:
            s, later = (
                torch.stack([self.law.sample(n, model.horizon, **draw), later]).sort(0).values
            )
        else:
            later = s + (model.horizon - s) * later / model.horizon
        same = torch.rand(n, **draw, device=generator.device) < self.diagonal
        return s, torch.where(same, s, later)

    @staticmethod
    def velocity(model: LearnedMap, points: Points) -> Tensor:
        """What is known of v(x, s): that of a pair, or the flow's."""
        return model.velocity(points) if points.velocity is None else points.velocity

    @abstractmethod
    def target(self, model: LearnedMap, points: Points) -> Tensor:
        """What U(x, s, t) is regressed on, (B, ...), without gradients."""

    def weighted(self, residual: Tensor) -> Tensor:
        """(B,) losses."""
        square = residual.square().flatten(1).mean(1)
        return square if self.power == 0 else square / (square.detach() + self.offset) ** self.power
