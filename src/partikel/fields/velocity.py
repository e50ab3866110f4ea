"""Velocities of paths as fields: learned by flow matching, or made of another path's (framework §10)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from partikel.denoising import (
    VelocityDenoiser,
    denoiser_from_velocity,
    onto_path,
    path_score,
    velocity_from_denoiser,
)
from partikel.errors import ConfigError
from partikel.fields.base import At, Field, Loss, LossValue, TrainingBatch
from partikel.fields.couplings import Coupling, Independent, Pairs
from partikel.fields.score import ScoreField
from partikel.priors import GaussianPrior
from partikel.schedules import Schedule, TimeLaw
from partikel.tensors import expand_like


class VelocityField(Field):
    """v(x, t) = E[a'x_1 + b'x_0 | X_t = x], which a network learns by regression: flow matching.

    Source: Lipman et al. 2022; Liu et al. 2022; Albergo et al. 2023.

    Args:
        denoiser: the network with its path.
        law: the law of t that it is trained on; None for a field that is only evaluated.
        coupling: the law of (x_0, x_1); N(0, I) and the data, independent, unless given.
        weighting: "velocity" for ‖v - v_c‖², "denoiser" for ‖D - x_1‖², which is (a' - ab'/b)² times less.
        name: the name of its loss.
    """

    def __init__(
        self,
        denoiser: VelocityDenoiser,
        law: TimeLaw | None = None,
        coupling: Coupling | None = None,
        *,
        weighting: Literal["velocity", "denoiser"] = "velocity",
        name: str = "velocity",
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.path = denoiser.path
        self.law = law
        self.coupling = coupling
        self.weighting = weighting
        self.name = name

    @property
    def defined_at_end(self) -> bool:
        """True: it is trained up to the data."""
        return True

    def forward(self, x: Tensor, at: At) -> Tensor:
        """v(x, t)."""
        return self.denoiser.velocity(x, at.t, at.cond)

    @property
    def score(self) -> ScoreField:
        """The score of the data that the same network gives.

        Raises:
            ConfigError: where the coupling has none.
        """
        if not (self.coupling is None or self.coupling.has_score):
            raise ConfigError(
                "this velocity has no score: its paths do not start at independent noise N(0, I), but "
                f"by {type(self.coupling).__name__}: train one that does, or take the velocity itself."
            )
        return ScoreField(self.denoiser)

    def own_losses(self) -> tuple[Loss, ...]:
        """Flow matching, unless without a law of t."""
        if self.law is None:
            return ()
        network = self.denoiser.network
        return (Loss(self.name, network, frozenset({"real"}), self._matching, adds_noise=True),)

    def _matching(self, batch: TrainingBatch) -> LossValue:
        assert self.law is not None
        assert batch.real is not None
        real = batch.real.x
        coupling = self.coupling or Independent(GaussianPrior(real.shape[1:]))
        pairs = coupling.pairs(batch.real, batch.streams)
        t = self.law.sample(
            len(real), self.path.horizon, generator=batch.streams.time, dtype=real.dtype
        )
        t = expand_like(t, real)
        x, velocity, pairs = through(coupling, self.path, pairs, t)
        missed = self.denoiser.velocity(x, t, pairs.cond) - velocity
        error = missed.square().flatten(1).mean(1)
        if self.weighting == "denoiser":
            a, b = self.path.scale(t), self.path.spread(t)
            share = b / (self.path.scale_rate(t) * b - a * self.path.spread_rate(t))
            error = error * share.flatten() ** 2
        return LossValue(error)


class AlongPath(Field):
    """A probability flow along another path: the D of its velocity, in that path's clothes.

    At every level of noise both paths have the same law, up to scale, and so the same D: whatever was
    trained along one can be sampled along the other.

    Args:
        field: a velocity along ``path``.
        path: its own path.
        other: the other one.
    """

    def __init__(self, field: Field, path: Schedule, other: Schedule) -> None:
        super().__init__()
        self.field = field
        self.path = path
        self.other = other

    @property
    def defined_at_end(self) -> bool:
        """False: where b = 0, a velocity is not told by D."""
        return False

    def forward(self, x: Tensor, at: At) -> Tensor:
        """v(x, t) of the other path."""
        t = at.t.to(x.dtype)
        a, b = self.other.scale(t), self.other.spread(t)
        point, there = onto_path(self.path, x, a, b)
        # the level itself, which the time would round to 0 near the data
        sigma = (b / a).clamp(self.path.sigma_end, self.path.sigma_max)
        velocity = self.field(point, At(there, sigma, at.cond))
        denoised = denoiser_from_velocity(velocity, point, self.path, there)
        return velocity_from_denoiser(denoised, x, self.other, t)


class PathScore(Field):
    """∇log ρ_t of a path's own law, made of its velocity: finite from t = 0 on.

    With it particles may move with any noise ς(t): drift v + ½ς² ∇log ρ_t (framework §10). Unlike
    :class:`AtScale` it asks no score at the infinite noise level at which an interpolant begins.

    Args:
        field: the velocity.
        path: its path.
    """

    def __init__(self, field: Field, path: Schedule) -> None:
        super().__init__()
        self.field = field
        self.path = path

    @property
    def defined_at_end(self) -> bool:
        """False: no score is."""
        return False

    def forward(self, x: Tensor, at: At) -> Tensor:
        """(aD - x)/b²."""
        denoised = denoiser_from_velocity(self.field(x, at), x, self.path, at.t)
        return path_score(denoised, x, self.path, at.t)


def on_the_way(path: Schedule, pairs: Pairs, t: Tensor) -> tuple[Tensor, Tensor]:
    """X_t = a x_1 + b x_0 and its conditional velocity v_c = a'x_1 + b'x_0, at times (B,)."""
    x0, x1, t = pairs.x0, pairs.x1, expand_like(t, pairs.x1)
    return path.scale(t) * x1 + path.spread(t) * x0, path.velocity_between(x0, x1, t)


def through(
    coupling: Coupling, path: Schedule, pairs: Pairs, t: Tensor
) -> tuple[Tensor, Tensor, Pairs]:
    """X_t of pairs, and what is regressed on there: a draw of which v is the mean, and its ends."""
    t = expand_like(t, pairs.x1)
    a, b = path.scale(t), path.spread(t)
    ends = coupling.expected(pairs, a, b)
    return a * pairs.x1 + b * pairs.x0, path.velocity_between(ends.x0, ends.x1, t), ends


def velocity_in(field: Field) -> VelocityField | None:
    """The learned velocity in a field, if there is one."""
    return next((part for part in field.modules() if isinstance(part, VelocityField)), None)
