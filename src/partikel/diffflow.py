"""DiffFlow: one SDE from GANs over Langevin dynamics to diffusion SDEs and ODEs (framework §6).

    dX = [ f + (β - ½g²) ∇log(p_σ(uX)/ρ_t(X)) + ½g² ∇log p_σ(uX) ] dt + √(g² - λ²) dW
               GAN part: a discriminator            score part: a denoiser

A :class:`DiffFlow` holds f, β, g², λ² and the path (σ, u); given a data score s_p and a discriminator's
∇d it composes the drift, which is a field like any other:

    flow = DiffFlow.vp()
    ParticleModel(
        flow.field(score, critic), flow.prior(shape),
        schedule=flow.schedule, diffusion=flow.diffusion, steps=100,
    )

Moving over the plane (g²/β, λ²/β) of the paper's Figure 1 is one argument. g² does not change the law
ρ_t (Marginal Preserving Property, Proposition 2); λ² does, at fixed β. On the line β = g_s²/(λ²/β), where
λ² is the forward SDE's own g_s², it does not either: :meth:`DiffFlow.reverse` stays on it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.fields.base import Field, Weight
from partikel.fields.discriminator import DiscriminatorField
from partikel.fields.perturbed import WhiteNoise
from partikel.fields.terms import AtScale, Linear, LogRatioField, Potential
from partikel.priors import GaussianPrior
from partikel.schedules import (
    ConstantSchedule,
    EDMSchedule,
    Schedule,
    SubVPSchedule,
    VESchedule,
    VPSchedule,
)

ROUNDING = 1e-12
"""Coefficients that differ by less, relative to the largest, count as equal."""


class Coefficients(NamedTuple):
    """f, β, g² and λ² at generation times, shaped like them; f(X, t) = f · X."""

    f: Tensor
    beta: Tensor
    g2: Tensor
    lambda2: Tensor


@dataclass(frozen=True)
class DiffFlow:
    """The scaling functions of the SDE (DiffFlow eq. 4), as numbers or functions of t, shaped like it.

    Args:
        schedule: σ(t), u(t) and T.
        f: a(t), with f(X, t) = a(t) X; None for 0.
        beta: β >= 0.
        g2: g² >= 0, from GANs (0) to Langevin dynamics (2β).
        lambda2: λ² <= g², signed: λ² < 0 is the analytic continuation (DiffFlow §3.4.3).
        potential: what the discriminator's part ascends. "logit" is log r, the paper's SDE. The
            others make β a function of the discriminator too, β(x, t) = beta(t) c'(d), as vanilla
            GANs do; they stand at g² = λ² = 0 only.
        prior_std: standard deviation of the prior at t = 0; None leaves it to the schedule.

    Raises:
        ConfigError: for coefficients that cannot be (β < 0, g² < 0, g² < λ², numbers that are not
            finite), or a schedule that does not cover [0, T].
    """

    schedule: Schedule
    f: Weight | None = None
    beta: Weight = 1.0
    g2: Weight = 0.0
    lambda2: Weight = 0.0
    potential: Potential = "logit"
    prior_std: float | None = None

    def __post_init__(self) -> None:
        """Check the path, then the coefficients along it."""
        t = self._grid
        sigma, u = self.schedule.sigma(t), self.schedule.u(t)
        covered = sigma.isfinite() & (sigma >= 0) & u.isfinite() & (u > 0)
        self._refuse(
            ~covered, "the schedule does not cover [0, {T:.4g}]: it has no σ >= 0 and u > 0"
        )
        c = self.coefficients(t)
        finite = torch.stack(c).isfinite().all(0)
        self._refuse(~finite, "f, β, g² and λ² must be finite, and are not")
        slack = ROUNDING * self._scale
        self._refuse(c.beta < 0, "β must be >= 0, and is not")
        self._refuse(c.g2 < 0, "g² must be >= 0, and is not")
        self._refuse(
            c.g2 - c.lambda2 < -slack,
            "the noise √(g² - λ²) needs g² >= λ² (raise g² or lower λ²), and g² is smaller",
        )
        if self.potential != "logit" and torch.stack([c.g2, c.lambda2]).any():
            raise ConfigError(
                f"with the potential '{self.potential}', β depends on the discriminator and the flow "
                "stands at g² = λ² = 0: take potential='logit' to move over the plane."
            )

    # --- the named points of the plane (framework §6) ---

    @classmethod
    def reverse(cls, schedule: Schedule, *, g2: float = 2.0, lambda2: float = 1.0) -> DiffFlow:
        """The reverse of the schedule's forward SDE, at any (g²/β, λ²/β) with λ² = g_s² > 0.

        f = -u'/u and β = g_s²/lambda2 match the forward SDE: from the exact law at t = 0, ρ_t is p_σ(t)
        (scaled by 1/u) for every ``g2`` and ``lambda2``. (2, 1) is the diffusion SDE, (2, 2) its
        probability-flow ODE, 0 < g2 < 2 Diffusion-GANs, g2 = 2 with other lambda2 SLCD.

        Args:
            schedule: the path.
            g2: g²/β.
            lambda2: λ²/β, > 0: towards 0, β grows without bound.
        """
        if not lambda2 > 0:
            raise ConfigError(
                f"a flow along the path's own laws needs lambda2 > 0, got {lambda2}: move with "
                "with_lambda2 instead, which keeps β and not the laws."
            )
        growth = None if type(schedule).u is Schedule.u else schedule.drift_rate
        flow = cls(schedule, growth, _combined(lambda rate: rate / lambda2, schedule.noise_rate))
        return flow.at(g2, lambda2)

    @classmethod
    def langevin(
        cls,
        sigma: float = 0.01,
        beta: Weight = 1.0,
        *,
        horizon: float = 1.0,
        prior_std: float = 1.0,
    ) -> DiffFlow:
        """Langevin dynamics at a single noise level (DiffFlow eq. 5): g² = 2β, λ² = 0, σ = σ_0."""
        flow = cls(ConstantSchedule(sigma, horizon), beta=beta, prior_std=prior_std)
        return flow.with_g2(2.0)

    @classmethod
    def annealed_langevin(cls, schedule: Schedule, beta: Weight = 1.0) -> DiffFlow:
        """NCSN (Song and Ermon 2019; DiffFlow §3.1): g² = 2β, λ² = 0, σ(t) falls."""
        return cls(schedule, beta=beta).with_g2(2.0)

    @classmethod
    def ve(cls, sigma_max: float = 50.0, sigma_end: float = 0.01, *, ode: bool = False) -> DiffFlow:
        """The geometric VE SDE of Song et al. 2021 (DiffFlow eq. 7), or its ODE (eq. 18)."""
        return cls._sde(VESchedule(sigma_max, sigma_end), ode)

    @classmethod
    def karras(cls, sigma_max: float = 80.0, *, ode: bool = False) -> DiffFlow:
        """The VE SDE of Karras et al. 2022, σ as the clock (DiffFlow eq. 6), or its ODE (eq. 18)."""
        return cls._sde(EDMSchedule(sigma_max), ode)

    @classmethod
    def vp(
        cls,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        epsilon: float = 1e-3,
        *,
        ode: bool = False,
    ) -> DiffFlow:
        """The VP SDE of Song et al. 2021 (DiffFlow eqs. 8-17), or its ODE."""
        return cls._sde(VPSchedule(beta_min, beta_max, epsilon), ode)

    @classmethod
    def sub_vp(
        cls,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        epsilon: float = 1e-3,
        *,
        ode: bool = False,
    ) -> DiffFlow:
        """The sub-VP SDE of Song et al. 2021 (an exercise in DiffFlow §3.2.2), or its ODE."""
        return cls._sde(SubVPSchedule(beta_min, beta_max, epsilon), ode)

    @classmethod
    def gan(
        cls,
        potential: Potential = "non-saturating",
        *,
        beta: Weight = 1.0,
        sigma: float = 0.01,
        horizon: float = 1.0,
        prior_std: float = 1.0,
    ) -> DiffFlow:
        """Vanilla GAN as DiffODE (DiffFlow eqs. 19-27): g² = λ² = 0, f = 0, σ = σ_0.

        Args:
            potential: "saturating" (β = sigmoid(d)), "non-saturating" (β = sigmoid(-d)) or "logit"
                (β = 1, the paper's first improvement).
            beta: multiplies that.
            sigma: σ_0, how much the real samples are noised; may be 0.
            horizon: T.
            prior_std: of the particles at t = 0.
        """
        path = ConstantSchedule(sigma, horizon)
        return cls(path, beta=beta, potential=potential, prior_std=prior_std)

    @classmethod
    def diffode_gan(
        cls, schedule: Schedule, beta: Weight = 1.0, potential: Potential = "logit"
    ) -> DiffFlow:
        """The improved GAN (DiffFlow Algorithms 2-3): g² = λ² = 0, an annealed discriminator.

        Args:
            schedule: of the noise on real data.
            beta: β, or the factor of c'(d) where the potential is a GAN's.
            potential: as for :meth:`gan`.
        """
        return cls(schedule, beta=beta, potential=potential)

    def diffusion_gan(self, g2: float) -> DiffFlow:
        """Diffusion-GAN (DiffFlow eqs. 29-30) on this flow: g² = g2·β with 0 < g2 < 2."""
        if not 0 < g2 < 2:
            raise ConfigError(
                f"a Diffusion-GAN mixes both networks at 0 < g2 < 2, got {g2}: "
                "use with_g2 for the ends."
            )
        return self.with_g2(g2)

    def slcd(self, lambda2: float, *, g2: float = 2.0) -> DiffFlow:
        """Stochastic Langevin Churn (DiffFlow §3.4.2) on this flow: g² >= 2β, 0 <= λ² <= 2β.

        β is kept, so the laws move with ``lambda2``; :meth:`reverse` takes λ²/β and keeps the laws.
        """
        if not (g2 >= 2 and 0 <= lambda2 <= 2):
            raise ConfigError(
                f"SLCD needs g2 >= 2 and 0 <= lambda2 <= 2, got {g2} and {lambda2}: "
                "use at() for other points."
            )
        return self.at(g2, lambda2)

    def continuation(self, lambda2: float) -> DiffFlow:
        """Analytic continuation (DiffFlow §3.4.3) on this flow: λ² = lambda2·β < 0, more noise."""
        if not lambda2 < 0:
            raise ConfigError(
                f"the analytic continuation needs lambda2 < 0, got {lambda2}: use with_lambda2."
            )
        return self.with_lambda2(lambda2)

    # --- moving over the plane, at fixed β ---

    def at(self, g2: Weight, lambda2: Weight) -> DiffFlow:
        """The flow at (g²/β, λ²/β) = (g2, lambda2) with this f, β and path."""
        return replace(
            self,
            g2=_combined(operator.mul, g2, self.beta),
            lambda2=_combined(operator.mul, lambda2, self.beta),
        )

    def with_g2(self, ratio: Weight) -> DiffFlow:
        """g² = ratio·β: weight moves from the discriminator (0) to the score (2); ρ_t stays."""
        return replace(self, g2=_combined(operator.mul, ratio, self.beta))

    def with_lambda2(self, ratio: Weight) -> DiffFlow:
        """λ² = ratio·β: from Langevin (0) over the SDE (1) towards the ODE (2); ρ_t changes."""
        return replace(self, lambda2=_combined(operator.mul, ratio, self.beta))

    # --- what it is made of ---

    def coefficients(self, t: Tensor) -> Coefficients:
        """f, β, g² and λ² at generation times (B,)."""
        values = (self.f or 0.0, self.beta, self.g2, self.lambda2)
        return Coefficients(*(_value(value, t) for value in values))

    def coordinates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(g²/β, λ²/β) at generation times (B,): the point of Figure 1; nan where β = 0."""
        c = self.coefficients(t)
        return c.g2 / c.beta, c.lambda2 / c.beta

    def noise(self, t: Tensor) -> Tensor:
        """√(g² - λ²) at generation times (B,)."""
        c = self.coefficients(t)
        return (c.g2 - c.lambda2).clamp(min=0).sqrt()

    @property
    def deterministic(self) -> bool:
        """Whether g² = λ² all along the path."""
        return self._vanishes(_combined(operator.sub, self.g2, self.lambda2))

    @property
    def diffusion(self) -> Callable[[Tensor], Tensor] | None:
        """:meth:`noise` as a carrier takes it: None where there is none."""
        return None if self.deterministic else self.noise

    def noise_field(self, eta: float) -> Field:
        """The noise as a field, for a carrier that moves points by eta times its field.

        Added to the drift it gives x + η·drift + √η noise(t) ξ: the SDE's own step for particles. For a
        generator drift and noise pass through A_θ:

            field = flow.field(score, log_ratio) + flow.noise_field(eta)
            model = GeneratorModel(field, generator, latent, horizon=t)  # stands at t of the path
            phases = (Phase("generator", AdamSettings(lr=eta), batch=128),)

        A step of plain SGD of rate η moves g(z) by η A_θ[drift] in the mean, with the covariance
        η noise² E_z'[K(z, z') K(z', z)]/batch: noise averages out over the batch, and the outputs follow
        the laws of (g², g²), on the diagonal of the plane, not of (g², λ²) (framework §1). Those are
        kept by :meth:`velocity` in place of ``field``, without noise.
        """
        return _combined(lambda scale: scale / eta**0.5, self.noise) * WhiteNoise(1.0)

    @property
    def matched(self) -> bool:
        """Whether f and λ² are the forward SDE's: then ρ_t = p_σ(t) from the exact law at t = 0."""
        t, c = self._grid, self.coefficients(self._grid)
        drift, noise = self.schedule.drift_rate(t), self.schedule.noise_rate(t)
        close = partial(torch.allclose, rtol=1e-9, atol=ROUNDING * self._scale)
        return close(c.f, drift) and close(c.lambda2, noise)

    def prior(self, shape: tuple[int, ...]) -> GaussianPrior:
        """π: N(0, σ_max²) for VE paths, N(0, I) for VP and sub-VP, else what the preset was given."""
        return GaussianPrior(
            shape, self.schedule.prior_std if self.prior_std is None else self.prior_std
        )

    # --- the fields ---

    def field(self, score: Field | None = None, log_ratio: Field | None = None) -> Field:
        """The drift f + (β - ½g²) ∇d + ½g² u s_p(uX, σ) (DiffFlow eq. 28).

        A network whose weight is 0 all along the path is left out, and its losses with it.

        Args:
            score: s_p, a data score at noise levels; may be None where g² = 0.
            log_ratio: ∇d = ∇log(p_σ(uX)/ρ_t(X)), or a discriminator, of which it is taken (its losses
                then see the data along the path); may be None where β = ½g².

        Raises:
            ConfigError: if a network that the drift needs is missing, a discriminator's objective has
                no log-ratio, or a score would be asked at σ = 0 inside the path.
        """
        return self._mixture(score, log_ratio, self.g2)

    def velocity(self, score: Field | None = None, log_ratio: Field | None = None) -> Field:
        """The probability-flow velocity f + (β - ½λ²) ∇d + ½λ² u s_p(uX, σ): the same ρ_t, no noise.

        Args:
            score: as for :meth:`field`; may be None where λ² = 0.
            log_ratio: as for :meth:`field`; may be None where β = ½λ².

        Raises:
            ConfigError: see :meth:`field`.
        """
        return self._mixture(score, log_ratio, self.lambda2)

    def first_form(self, score: Field, own_score: Field) -> Field:
        """The drift as DiffFlow eq. 4 has it: f + β (u s_p(uX, σ) - s_ρ(X)) + ½g² s_ρ(X).

        Args:
            score: s_p.
            own_score: s_ρ, the score of ρ_t itself at (X, t).

        Raises:
            ConfigError: if β depends on a discriminator, or a score is asked at σ = 0.
        """
        if self.potential != "logit":
            raise ConfigError(
                f"with the potential '{self.potential}', β depends on the discriminator: "
                "use field(log_ratio=...)."
            )
        own = _combined(lambda g2, beta: 0.5 * g2 - beta, self.g2, self.beta)
        return self._sum((self.beta, self._score(score)), (own, own_score))

    def _mixture(self, score: Field | None, log_ratio: Field | None, k: Weight) -> Field:
        """The field f + (β - ½k) ∇d + ½k u s_p, k being g² or λ²."""
        gan = _combined(lambda beta, k: beta - 0.5 * k, self.beta, k)
        terms: list[tuple[Weight, Field]] = []
        if not self._vanishes(gan):
            if log_ratio is None:
                raise ConfigError(
                    "this flow has a GAN part (β > ½g², or ½λ² in the velocity): "
                    "pass a discriminator as log_ratio."
                )
            terms.append((gan, self._log_ratio(log_ratio)))
        if not self._vanishes(k):
            if score is None:
                raise ConfigError(
                    "this flow has a score part (g² > 0, or λ² in the velocity): pass a data score."
                )
            terms.append((_combined(lambda k: 0.5 * k, k), self._score(score)))
        return self._sum(*terms)

    def _sum(self, *terms: tuple[Weight, Field]) -> Field:
        fields: list[Field] = [weight * field for weight, field in terms]
        if self.f is not None:
            fields.insert(0, Linear(_combined(lambda a: a, self.f)))
        if not fields:
            raise ConfigError("nothing moves the particles (f = β = g² = 0): give β a value.")
        return reduce(operator.add, fields)

    def _score(self, score: Field) -> Field:
        inside = self._grid[:-1]  # solvers need no score at the end of the path itself
        self._refuse(
            self.schedule.sigma(inside) == 0,
            "a score is asked at σ = 0 inside the path: give the schedule a σ > 0",
        )
        return AtScale(score, self.schedule)

    def _log_ratio(self, log_ratio: Field) -> Field:
        if isinstance(log_ratio, DiscriminatorField):
            return LogRatioField(log_ratio, self.potential, self.schedule)
        if self.potential != "logit":
            raise ConfigError(
                f"the potential '{self.potential}' needs the value of d: pass the discriminator "
                "itself (DiscriminatorField), not the gradient of a log-ratio."
            )
        return log_ratio

    # --- checks along the path ---

    @property
    def _grid(self) -> Tensor:
        return torch.linspace(0.0, self.schedule.horizon, 257, dtype=torch.float64)

    @property
    def _scale(self) -> float:
        c = self.coefficients(self._grid)
        return float(torch.stack([c.beta, c.g2, c.lambda2]).abs().max())

    def _vanishes(self, weight: Weight) -> bool:
        return float(_value(weight, self._grid).abs().max()) <= ROUNDING * self._scale

    def _refuse(self, wrong: Tensor, message: str) -> None:
        if wrong.any():
            t = float(self._grid[: len(wrong)][wrong][0])
            raise ConfigError(f"{message.format(T=self.schedule.horizon)} at t = {t:.4g}.")

    @classmethod
    def _sde(cls, schedule: Schedule, ode: bool) -> DiffFlow:
        """Reverse SDE at (2, 1), or probability-flow ODE at (2, 2): β = ½g_s², no noise."""
        return cls.reverse(schedule, lambda2=2.0 if ode else 1.0)


PRESETS: dict[str, Callable[[], DiffFlow]] = {
    "langevin": DiffFlow.langevin,
    "annealed-langevin": lambda: DiffFlow.annealed_langevin(VESchedule()),
    "ve": DiffFlow.ve,
    "karras": DiffFlow.karras,
    "vp": DiffFlow.vp,
    "sub-vp": DiffFlow.sub_vp,
    "ve-ode": lambda: DiffFlow.ve(ode=True),
    "karras-ode": lambda: DiffFlow.karras(ode=True),
    "vp-ode": lambda: DiffFlow.vp(ode=True),
    "sub-vp-ode": lambda: DiffFlow.sub_vp(ode=True),
    "gan": lambda: DiffFlow.gan("non-saturating"),
    "gan-saturating": lambda: DiffFlow.gan("saturating"),
    "gan-logit": lambda: DiffFlow.gan("logit"),
    "diffode-gan": lambda: DiffFlow.diffode_gan(VESchedule()),
    "diffusion-gan": lambda: DiffFlow.ve().diffusion_gan(1.5),
    "slcd": lambda: DiffFlow.reverse(VESchedule(), lambda2=1.5),
    "continuation": lambda: DiffFlow.ve().continuation(-0.5),
}
"""Every row of framework §6 by name, at default settings."""


def _value(weight: Weight, t: Tensor) -> Tensor:
    """A number or function of t, shaped like t."""
    return weight(t) if callable(weight) else torch.full_like(t, weight)


def _combined(formula: Callable[..., Tensor | float], *weights: Weight) -> Weight:
    """formula(weights): a number where all are, else a function of t."""
    numbers = [weight for weight in weights if not callable(weight)]
    if len(numbers) == len(weights):
        return float(formula(*numbers))
    return lambda t: torch.as_tensor(formula(*(_value(weight, t) for weight in weights)))
