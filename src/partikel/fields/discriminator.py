"""The discriminator as a field: ∇_x (c∘d)(x) (GPM eqs. 15-16, 20; DiffFlow eqs. 19-27)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError
from partikel.fields.augmentation import Augmentation
from partikel.fields.base import Along, At, Field, Loss, LossValue, TrainingBatch, ascent
from partikel.objectives import (
    GradientPenalty,
    Hinge,
    Objective,
    exact,
    get_objective,
    objective_name,
)
from partikel.schedules import Schedule
from partikel.tensors import columns

Condition = Literal["t", "sigma", "log sigma"]

_NORMALISED = (nn.modules.batchnorm._BatchNorm,)


class DiscriminatorField(Field):
    """∇_x c(d(x)), with d trained to tell data from particles.

    The same object is a GAN's critic in a generator model and a Discriminator Flow in a particle
    model.

    Args:
        network: d, called as ``network(x, c, cond)`` -> (B,) logits, high on real data; c holds the
            ``conditions`` in their order.
        objective: a, b and c; an :class:`Objective` or the name of one.
        conditions: what the network is told of the path: "t" (time-conditional, GPM eq. 20),
            "sigma", "log sigma" (ln(σ)/4, EDM's c_noise), several, or nothing.
        penalties: added to its loss.
        name: the name of its loss.
        schedule: a path of noise levels; real data at generation time t are then (x + σ(t)ε)/u(t), the
            law that ρ_t is compared with in DiffFlow (framework §6); so are the samples that the field of
            a paired objective is bound to, with fresh ε in each call. None compares with clean data.
        augmentation: T, drawn anew for every image that the network is shown, real or generated, in
            the loss and in the field: ∇_x c(d(Tx)), one draw for each point and call. All penalties
            are on that gradient too, ∇_x d(Tx), with respect to the image before T.

    Raises:
        ConfigError: if an adaptive augmentation is to follow an objective whose d has no sign.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective | str = "non-saturating",
        *,
        conditions: tuple[Condition, ...] = (),
        penalties: tuple[GradientPenalty, ...] = (),
        name: str = "discriminator",
        schedule: Schedule | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.objective = get_objective(objective) if isinstance(objective, str) else objective
        self.conditions = conditions
        self.penalties = penalties
        self.name = name
        self.schedule = schedule
        self.augmentation = augmentation
        noisy = self.objective.paired and schedule is not None
        needs = {"real": self.objective.paired, "generator": augmentation is not None or noisy}
        self.requires = frozenset(name for name, needed in needs.items() if needed)
        decides = self.objective.is_log_ratio or isinstance(self.objective, Hinge)
        if augmentation is not None and augmentation.settings.adaptive and not decides:
            raise ConfigError(
                f"with the objective '{objective_name(self.objective)}' the sign of d says nothing, "
                "so that no augmentation can adapt to it: set augment.adaptive to false, or choose "
                "'non-saturating'."
            )
        # one forward of real and generated points together is faster, but batch statistics differ
        self._joint = not any(isinstance(module, _NORMALISED) for module in network.modules())

    def logit(self, x: Tensor, at: At) -> Tensor:
        """d(x), (B,); d(Tx) where images are augmented."""
        return self._logit(x, at)

    def potential(self, x: Tensor, at: At) -> Tensor:
        """c(d(x)), (B,): what particles ascend."""
        fake = self.logit(x, at)
        if not self.objective.paired:
            return self.objective.potential(fake)
        if at.cond is not None:
            raise ConfigError(
                "a relativistic discriminator compares particles with all real samples, whatever "
                "their labels: choose another objective for a conditional model."
            )
        return self.objective.potential(fake, self._real_logits(x, at))

    def log_ratio(self, x: Tensor, at: At) -> Tensor:
        """log(p/ρ)(x), (B,), as far as d is optimal.

        Raises:
            ConfigError: if the objective's optimum is no log-ratio, or images are augmented.
        """
        if self.augmentation is not None:
            raise ConfigError(
                "an augmented discriminator compares augmented laws, which is no log(p/ρ): leave "
                "the augmentation out."
            )
        return self.objective.log_ratio(self.logit(x, at))

    def forward(self, x: Tensor, at: At) -> Tensor:
        """∇_x c(d(x)), (B, ...); with a graph only where x has one (its divergence, training)."""
        return ascent(lambda point: self.potential(point, at), x)[1]

    def own_losses(self) -> tuple[Loss, ...]:
        """B on data, a on particles, and the penalties."""
        compute = self._loss if self.schedule is None else Along(self._loss, self.schedule)
        return (Loss(self.name, self.network, frozenset({"real", "particles"}), compute),)

    def estimate(self, x: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """The values log(p/ρ)(x) (B,) and ∇log(p/ρ)(x) (B, ...), see :meth:`log_ratio`."""
        return ascent(lambda point: self.log_ratio(point, at), x)

    def _logit(self, x: Tensor, at: At, generator: torch.Generator | None = None) -> Tensor:
        return self.network(self._shown(x, generator), self._conditions(at), at.cond)

    def _shown(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Tx, or x."""
        if self.augmentation is None:
            return x
        return self.augmentation(x, generator=generator or self.bound_generator())

    def _conditions(self, at: At) -> Tensor | None:
        """(B, S), or (1, S) where all points share them."""
        if not self.conditions:
            return None
        if at.sigma is None and any(name != "t" for name in self.conditions):
            raise ConfigError(
                "this discriminator is conditioned on σ: give its carrier a schedule, or perturb it."
            )
        values: list[Tensor] = []
        for name in self.conditions:
            value = at.t if name == "t" else at.sigma
            assert value is not None
            values.append(value.log() / 4 if name == "log sigma" else value)
        return columns(*values)

    def _real_logits(self, x: Tensor, at: At) -> Tensor:
        """D of the bound real samples, as the path shows them, under each particle's conditions.

        Returns:
            (B, R), or (1, R) where they are the same for all particles.
        """
        real, conditions = self.bound_real(x), self._conditions(at)
        rows = [] if conditions is None else [conditions]
        if self.schedule is not None:
            rows.append(torch.atleast_1d(at.t)[:, None].to(x))
        if not rows:
            return self.network(self._shown(real), None, None)[None]
        most = max(map(len, rows))
        told = torch.cat([row.expand(most, -1) for row in rows], 1)
        distinct, place = torch.unique(told, dim=0, return_inverse=True)
        logits = []
        for row in distinct:
            shown, c = real, row[None, : len(self.conditions)]
            if self.schedule is not None:
                t = row[-1].expand(len(real))
                shown = self.schedule.noised(real, t, generator=self.bound_generator())
            logits.append(self.network(self._shown(shown), c if self.conditions else None, None))
        return torch.stack(logits)[place]

    def _loss(self, batch: TrainingBatch) -> LossValue:
        assert batch.real is not None
        assert batch.particles is not None
        real, fake, generator = batch.real, batch.particles, batch.streams.noise
        t, sigma = fake.t, fake.sigma
        at_fake, at_real = fake.at, At(t, sigma, real.cond)
        if self._joint:
            both = torch.cat([real.x, fake.x])
            labels = None if real.cond is None else torch.cat([real.cond, _labels(fake.cond)])
            twice = None if sigma is None else torch.cat([sigma, sigma])
            times = torch.cat([t, t]) if self.conditions else t
            d_both = self._logit(both, At(times, twice, labels), generator)
            d_real, d_fake = d_both.chunk(2)
        else:
            d_real = self._logit(real.x, at_real, generator)
            d_fake = self._logit(fake.x, at_fake, generator)
        loss = self.objective.discriminator_loss(d_real, d_fake)
        metrics = {"d_real": d_real.detach().mean(), "d_fake": d_fake.detach().mean()}
        for penalty in self.penalties:
            points = penalty.points(real.x, fake.x, generator=generator)
            at = at_real if penalty.at == "real" else at_fake
            with exact():
                d = self._logit(points, at, generator)
            (gradient,) = torch.autograd.grad(d.sum(), points, create_graph=True)
            value = penalty.value(gradient, t)
            metrics[f"penalty_{penalty.at}"] = value.detach().mean()
            loss = loss + value
        if self.augmentation is not None and self.augmentation.settings.adaptive:
            logits = d_real.detach()
            ratio = self.objective.is_log_ratio
            self.augmentation.adapt(self.objective.log_ratio(logits) if ratio else logits)
            metrics["augment_p"] = self.augmentation.p.clone()
        return LossValue(loss, metrics)


def _labels(cond: Tensor | None) -> Tensor:
    if cond is None:
        raise ConfigError("real points carry labels but particles do not: give the carrier labels.")
    return cond
