"""The terms of DiffFlow's drift as fields: weight decay, denoising, discriminator (DiffFlow eqs. 4, 28).

Each lives on a path of particles X at which the data appear as (x + σε)/u, so that u X ~ p_σ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

from torch import Tensor

from partikel.errors import ConfigError
from partikel.fields.base import Along, At, Field, Loss, Weight, ascent
from partikel.fields.discriminator import DiscriminatorField
from partikel.objectives import Vanilla, objective_name
from partikel.schedules import Schedule
from partikel.tensors import expand_like

Potential: TypeAlias = Literal["logit", "saturating", "non-saturating"]
"""c of :class:`~partikel.objectives.Vanilla`: what particles ascend, as a function of log r."""


class Linear(Field):
    """a(t) x: the "weight decay" of DiffFlow (which grows where a > 0).

    Args:
        rate: a, a number or a function of generation times.
    """

    def __init__(self, rate: Weight) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, at: At) -> Tensor:
        """a(t) x."""
        return expand_like(self.rate(at.t), x) * x if callable(self.rate) else self.rate * x


class AtScale(Field):
    """u s(u x, σ): the gradient in x of log p_σ(u x), for a score s = ∇log p_σ (framework §6).

    Args:
        field: a score.
        schedule: the path: u(t), and σ(t) where the carrier gives no noise level.
    """

    def __init__(self, field: Field, schedule: Schedule) -> None:
        super().__init__()
        self.field = field
        self.schedule = schedule
        self._scaled = type(schedule).u is not Schedule.u

    def forward(self, x: Tensor, at: At) -> Tensor:
        """u(t) s(u(t) x, σ)."""
        if at.sigma is None:
            at = at._replace(sigma=self.schedule.sigma(at.t))
        if not self._scaled:
            return self.field(x, at)
        u = expand_like(self.schedule.u(at.t), x)
        return u * self.field(u * x, at)


class LogRatioField(Field):
    """∇(c∘log r)(x), r = p/ρ by a discriminator: ∇log r, or the β(d) ∇d of a GAN (DiffFlow eqs. 19-27).

    The discriminator learns by the loss of its own objective; what is ascended is chosen here. On a
    path it tells particles from the data as the path shows them, (x + σε)/u: where it has no
    schedule of its own, its real samples are noised here.

    Args:
        critic: a discriminator whose objective has a log-ratio.
        potential: c. "logit": c(d) = d, the field is ∇log r. "saturating": softplus(d), so β =
            sigmoid(d). "non-saturating": log sigmoid(d), so β = sigmoid(-d).
        schedule: the path; None leaves the real samples as the discriminator takes them.

    Raises:
        ConfigError: where the objective has no log-ratio, or the discriminator is on another path.
    """

    def __init__(
        self,
        critic: DiscriminatorField,
        potential: Potential = "logit",
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        if not critic.objective.is_log_ratio:
            raise ConfigError(
                f"the objective '{objective_name(critic.objective)}' has no log-ratio at its optimum: "
                "train the discriminator with 'non-saturating' (or another one whose logit is a "
                "log-ratio)."
            )
        if None not in (schedule, critic.schedule) and schedule != critic.schedule:
            raise ConfigError(
                f"the discriminator compares with data along {critic.schedule}, the flow runs "
                f"along {schedule}: give them the same schedule (or the discriminator none)."
            )
        self.critic = critic
        self.ascended = Vanilla(potential)
        self.schedule = schedule

    def forward(self, x: Tensor, at: At) -> Tensor:
        """∇_x c(log r(x)), (B, ...); with a graph only where x has one (its divergence, training)."""
        if at.sigma is None and self.schedule is not None:
            at = at._replace(sigma=self.schedule.sigma(at.t))
        return ascent(lambda point: self.ascended.potential(self.critic.log_ratio(point, at)), x)[1]

    def own_losses(self) -> tuple[Loss, ...]:
        """The discriminator's, along the path."""
        losses = self.critic.losses()
        if self.schedule is None:
            return losses
        noised = self.critic.schedule is None
        return tuple(
            replace(loss, compute=Along(loss.compute, self.schedule, noised)) for loss in losses
        )
