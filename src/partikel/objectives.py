"""GAN objectives a, b, c, and penalties on the discriminator (GPM eqs. 15-16; framework §3).

A discriminator d minimises ``E_p[b(d)] + E_ρ[a(d)] + R(d)``; a generator, or the particles
themselves, ascend the potential ``c(d)``. The sign of d is the same for every objective: high on real
data. Its value is the log-ratio log(p/ρ) only where :attr:`Objective.is_log_ratio` says so.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu, softplus

from partikel.errors import ConfigError, nearest
from partikel.errors.checks import Checked, NotNegative
from partikel.tensors import flat_sum


class Objective(Checked, ABC):
    """A discriminator's loss and the potential that particles ascend.

    Attributes:
        paired: whether the loss compares real and generated points in pairs; the potential then
            needs the logits of real samples wherever it is evaluated.
        is_log_ratio: whether the optimal logit determines log(p/ρ).
    """

    paired: bool = False
    is_log_ratio: bool = False

    @abstractmethod
    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """b(real) + a(fake), to minimise.

        Args:
            real: (B,) logits of real points.
            fake: (B,) logits of generated points; pair i is (real[i], fake[i]) where ``paired``.

        Returns:
            (B,) losses.
        """

    def potential(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """c(d), to ascend; d itself unless overridden.

        Args:
            fake: (B,) logits of the particles.
            real: (B, R) or (1, R) logits of real samples to compare each particle with; used by
                paired objectives only.

        Returns:
            (B,) potentials.
        """
        return fake

    def log_ratio(self, logit: Tensor) -> Tensor:
        """log(p/ρ) as the optimal discriminator gives it; d itself unless overridden.

        Args:
            logit: (B,) values of d.

        Raises:
            ConfigError: where this objective's optimum is no log-ratio.
        """
        if self.is_log_ratio:
            return logit
        raise ConfigError(
            f"the objective '{objective_name(self)}' has no log-ratio at its optimum: train the "
            "discriminator with 'non-saturating' (or another one whose logit is a log-ratio)."
        )


@dataclass(frozen=True)
class Vanilla(Objective):
    """Logistic training (Goodfellow et al. 2014): b = softplus(-d), a = softplus(d), d* = log r.

    Args:
        potential_form: what is ascended. "non-saturating": log sigmoid(d); "saturating":
            softplus(d); "logit": d, which is the gradient flow of KL(ρ‖p) (framework §2).
    """

    potential_form: Literal["non-saturating", "saturating", "logit"] = "non-saturating"
    is_log_ratio = True

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """softplus(-real) + softplus(fake)."""
        return softplus(-real) + softplus(fake)

    def potential(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Log sigmoid(d), softplus(d) or d."""
        if self.potential_form == "non-saturating":
            return logsigmoid(fake)
        return softplus(fake) if self.potential_form == "saturating" else fake


EDGE = 1e-6
"""How far from 0 and 1 a least-squares discriminator's log-ratio is the logit."""


@dataclass(frozen=True)
class LSGAN(Objective):
    """Least squares (Mao et al. 2017): b = (d-1)², a = d², c = -(d-1)², d* = r/(1+r)."""

    is_log_ratio = True

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """(real-1)² + fake²."""
        return (real - 1).square() + fake.square()

    def potential(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """-(d-1)²."""
        return -(fake - 1).square()

    def log_ratio(self, logit: Tensor) -> Tensor:
        """logit(d) = log d - log(1-d) where d lies in [e, 1 - e], as its optimum does; e = 1e-6.

        Beyond, where a discriminator that is not optimal may be, it goes on by ∓log(1 + distance/e): it
        grows everywhere, and its slope there is one over the distance, which still moves particles.
        """
        inside = logit.clamp(EDGE, 1 - EDGE)
        beyond = logit - inside
        return torch.logit(inside) + beyond.sign() * torch.log1p(beyond.abs() / EDGE)


@dataclass(frozen=True)
class Hinge(Objective):
    """Hinge, or geometric GAN (Lim and Ye 2017): b = relu(1-d), a = relu(1+d), c = d."""

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """relu(1-real) + relu(1+fake)."""
        return relu(1 - real) + relu(1 + fake)


@dataclass(frozen=True)
class IPM(Objective):
    """Integral probability metric, WGAN's (Arjovsky et al. 2017): b = -d, a = d, c = d."""

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Fake - real."""
        return fake - real


@dataclass(frozen=True)
class Divergence:
    """An f-divergence F(ρ) = ∫ f(ρ/p) dp in what an f-GAN needs of it, as functions of d = log r.

    With f_N(r) = r f(1/r) (Nowozin et al. 2016 take r = p/ρ), every f-GAN here has the output
    activation g_f(d) = f_N'(e^d), so that its optimal logit is log r for every divergence.

    Attributes:
        activation: g_f(d) = f_N'(e^d).
        conjugate: f_N*(g_f(d)) = e^d f_N'(e^d) - f_N(e^d); its derivative in d is the h(r) of
            framework §2.
        f: f(u) with u = ρ/p.
        h: h(r) = f''(1/r)/r.
    """

    activation: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    f: Callable[[Tensor], Tensor]
    h: Callable[[Tensor], Tensor]


LOG2 = 0.6931471805599453

DIVERGENCES: dict[str, Divergence] = {
    # KL(ρ‖p): f_N(r) = -log r
    "kl": Divergence(
        activation=lambda d: -torch.exp(-d),
        conjugate=lambda d: d - 1,
        f=lambda u: u * torch.log(u),
        h=lambda r: torch.ones_like(r),
    ),
    # KL(p‖ρ): f_N(r) = r log r
    "reverse-kl": Divergence(
        activation=lambda d: 1 + d,
        conjugate=torch.exp,
        f=lambda u: -torch.log(u),
        h=lambda r: r,
    ),
    # 2 JS: f_N(r) = r log r - (1+r) log((1+r)/2), self-dual
    "jensen-shannon": Divergence(
        activation=lambda d: LOG2 - softplus(-d),
        conjugate=lambda d: softplus(d) - LOG2,
        f=lambda u: u * torch.log(u) - (u + 1) * torch.log((u + 1) / 2),
        h=lambda r: r / (1 + r),
    ),
    # 2 KL((ρ+p)/2 ‖ p): f_N(r) = (1+r) log((1+r)/2r)
    "non-saturating": Divergence(
        activation=lambda d: softplus(-d) - LOG2 - torch.exp(-d),
        conjugate=lambda d: LOG2 - softplus(-d) - 1,
        f=lambda u: (u + 1) * torch.log((u + 1) / 2),
        h=lambda r: 1 / (1 + r),
    ),
    # Pearson χ²: f_N(r) = (1-r)²/r
    "pearson": Divergence(
        activation=lambda d: 1 - torch.exp(-2 * d),
        conjugate=lambda d: 2 - 2 * torch.exp(-d),
        f=lambda u: (u - 1).square(),
        h=lambda r: 2 / r,
    ),
    # squared Hellinger: f_N(r) = (1-√r)², self-dual
    "hellinger": Divergence(
        activation=lambda d: 1 - torch.exp(-d / 2),
        conjugate=lambda d: torch.exp(d / 2) - 1,
        f=lambda u: (u.sqrt() - 1).square(),
        h=lambda r: r.sqrt() / 2,
    ),
    # Jeffreys: f_N(r) = (r-1) log r, self-dual
    "jeffreys": Divergence(
        activation=lambda d: d + 1 - torch.exp(-d),
        conjugate=lambda d: torch.exp(d) + d - 1,
        f=lambda u: (u - 1) * torch.log(u),
        h=lambda r: 1 + r,
    ),
}
"""The h(r) table of framework §2. "kl" is KL(ρ‖p), which GPM calls forward KL."""


@dataclass(frozen=True)
class FGAN(Objective):
    """f-GAN (Nowozin et al. 2016): b = -g_f(d), a = f_N*(g_f(d)), with d* = log r.

    Args:
        divergence: a key of :data:`DIVERGENCES`.
        trick: ascend g_f(d) (their §3.2), which moves particles by (h(r)/r) ∇log r, instead of
            f_N*(g_f(d)), which moves them by h(r) ∇log r.
    """

    divergence: str = "kl"
    trick: bool = False
    is_log_ratio = True

    def __post_init__(self) -> None:
        """Check the name."""
        super().__post_init__()
        if self.divergence not in DIVERGENCES:
            hint = nearest(self.divergence, list(DIVERGENCES))
            raise ConfigError(f"there is no divergence '{self.divergence}': {hint}")

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """f_N*(g_f(fake)) - g_f(real)."""
        divergence = DIVERGENCES[self.divergence]
        return divergence.conjugate(fake) - divergence.activation(real)

    def potential(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """f_N*(g_f(d)), or g_f(d) with the trick."""
        divergence = DIVERGENCES[self.divergence]
        return divergence.activation(fake) if self.trick else divergence.conjugate(fake)


@dataclass(frozen=True)
class Relativistic(Objective):
    """Relativistic pairing (Jolicoeur-Martineau 2019; R3GAN, Huang et al. 2024).

    The optimal logit is log r + const: its gradient is that of the log-ratio, its value is not.
    """

    paired = True

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """softplus(-(real - fake)) on pairs."""
        return softplus(fake - real)

    def potential(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """-E_{y~p} softplus(-(d(x) - d(y))), the mean over the R real logits."""
        if real is None:
            raise ConfigError(
                "the relativistic objective compares particles with real samples: bind the field "
                "to some first, field.bind(real=...)."
            )
        return -softplus(real - fake[:, None]).mean(1)


OBJECTIVES: dict[str, Objective] = {
    "non-saturating": Vanilla("non-saturating"),
    "saturating": Vanilla("saturating"),
    "logit": Vanilla("logit"),
    "lsgan": LSGAN(),
    "hinge": Hinge(),
    "ipm": IPM(),
    "relativistic": Relativistic(),
    **{f"f-{name}": FGAN(name) for name in DIVERGENCES},
    **{f"f-{name}-trick": FGAN(name, trick=True) for name in DIVERGENCES},
}
"""Every objective by the name that configurations use."""


def get_objective(name: str) -> Objective:
    """The objective of this name.

    Raises:
        ConfigError: for a name that is not in :data:`OBJECTIVES`.
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"there is no objective '{name}': {nearest(name, list(OBJECTIVES))}")
    return OBJECTIVES[name]


def objective_name(objective: Objective) -> str:
    """The registered name of ``objective``, or its class's name."""
    names = [name for name, known in OBJECTIVES.items() if known == objective]
    return names[0] if names else type(objective).__name__


_EXACT = ContextVar("exact", default=False)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """A block in which networks run as they are written: uncompiled and in their weights' precision.

    Penalties and divergences differentiate a network's derivative, which compiled code cannot and
    half precision should not. :mod:`partikel.training.engine` honours it.
    """
    token = _EXACT.set(True)
    try:
        yield
    finally:
        _EXACT.reset(token)


def is_exact() -> bool:
    """Whether this is inside of :func:`exact`."""
    return _EXACT.get()


@dataclass(frozen=True)
class GradientPenalty(Checked):
    """A penalty on ‖∇_x d‖: ``weight · (‖∇d‖ - centre)²``, or weight·‖∇d‖² at centre 0.

    WGAN-GP is (weight 10, centre 1, interpolated); the GPM runs use centre 0; R1 and R2 are
    ``GradientPenalty(gamma/2, at="real")`` and ``at="fake"`` (:meth:`r1`, :meth:`r2`).

    Args:
        weight: λ >= 0, or breakpoints ((t_0, λ_0), (t_1, λ_1), ...) of a step function of
            generation time: λ_i holds from t_i on, and before t_0 the penalty is 0.
        centre: the norm that costs nothing.
        at: where it is taken: on uniform interpolates of real and generated points, on either.
    """

    weight: NotNegative | tuple[tuple[float, NotNegative], ...] = 10.0
    centre: NotNegative = 0.0
    at: Literal["interpolated", "real", "fake"] = "interpolated"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        steps = ((0.0, self.weight),) if isinstance(self.weight, (int, float)) else self.weight
        if [t for t, _ in steps] != sorted(t for t, _ in steps):
            raise ConfigError(f"a penalty's breakpoints must increase in t, got {self.weight}.")

    @classmethod
    def r1(cls, gamma: float) -> GradientPenalty:
        """γ/2 E_p ‖∇d‖² (Mescheder et al. 2018)."""
        return cls(gamma / 2, at="real")

    @classmethod
    def r2(cls, gamma: float) -> GradientPenalty:
        """γ/2 E_ρ ‖∇d‖² (Mescheder et al. 2018)."""
        return cls(gamma / 2, at="fake")

    def weight_at(self, t: Tensor) -> Tensor:
        """(B,) penalty weights at generation times ``t``."""
        if isinstance(self.weight, (int, float)):
            return torch.full_like(t, self.weight)
        value = torch.zeros_like(t)
        for start, weight in self.weight:
            value = torch.where(t >= start, torch.full_like(t, weight), value)
        return value

    def points(self, real: Tensor, fake: Tensor, *, generator: torch.Generator) -> Tensor:
        """(B, ...) where the gradient is taken, with gradients enabled."""
        if self.at == "interpolated":
            share = torch.rand(
                real.shape[0], *([1] * (real.ndim - 1)),
                generator=generator, dtype=real.dtype, device=real.device,
            )  # fmt: skip
            points = fake + share * (real - fake)
        else:
            points = real if self.at == "real" else fake
        return points.detach().requires_grad_()

    def value(self, gradient: Tensor, t: Tensor) -> Tensor:
        """(B,) penalties of input gradients (B, ...) at times (B,), in float32 or better."""
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        squared = flat_sum(gradient.square())
        if self.centre == 0:  # no root: its gradient at 0 would be NaN
            return self.weight_at(t) * squared
        return self.weight_at(t) * ((squared + 1e-24).sqrt() - self.centre).square()
