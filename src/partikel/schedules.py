"""Noise along generation: the path σ(t), the law of σ or t in training, and the grid of a sampler.

They are three things (Karras et al. 2022 chose each separately). Generation time t runs forward from
0, the prior, to ``horizon``, the sample; this is the only room that converts between t and σ.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.errors.checks import (
    Checked,
    Exponent,
    Level,
    Natural,
    NotNegative,
    Positive,
    Range,
    checked,
)
from partikel.streams import normal, normal_like
from partikel.tensors import expand_like

LogLevel = Annotated[float, Range(-20.0, 20.0)]
"""A mean of ln σ."""
LogSpread = Annotated[float, Range(0.0, 10.0)]
"""A standard deviation of ln σ."""


class Schedule(Checked, ABC):
    """A path of noise levels σ(t), falling with generation time, and scales u(t).

    Particles at t are compared with (x + σε)/u, the data as the path shows them: u X ~ p_σ. The path is
    that of a forward SDE dX = -a X dτ + g_s dW (τ runs against t), whose a and g_s² it knows. It is an
    interpolant too, X = a x + b ε: a = 1/u is its :meth:`scale`, b = σ/u its :meth:`spread` (framework
    §10).

    Attributes:
        horizon: T, the generation time of a sample.
        sigma_max: σ(0).
        sigma_end: σ(T); 0 where the path reaches the clean data.
    """

    horizon: float
    sigma_max: float
    sigma_end: float

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σ(t), shaped like ``t``."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """dσ/dt, shaped like ``t``; negative."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """T with σ(t) = ``sigma``: the inverse of :meth:`sigma`."""

    @property
    def prior_std(self) -> float:
        """Standard deviation of the Gaussian prior at t = 0: b(0) = σ(0)/u(0), pure noise."""
        return float(self.spread(torch.zeros(1, dtype=torch.float64)))

    def u(self, t: Tensor) -> Tensor:
        """The data score is evaluated at (u x, σ) (DiffFlow eq. 4); 1 unless overridden."""
        return torch.ones_like(t)

    def scale(self, t: Tensor) -> Tensor:
        """a(t) = 1/u, how much of the data there is at t; shaped like ``t``."""
        return 1 / self.u(t)

    def spread(self, t: Tensor) -> Tensor:
        """b(t) = σ/u, how much noise there is at t; shaped like ``t``."""
        return self.sigma(t) / self.u(t)

    def scale_rate(self, t: Tensor) -> Tensor:
        """da/dt, shaped like ``t``."""
        return -self.u_rate(t) / self.u(t) ** 2

    def spread_rate(self, t: Tensor) -> Tensor:
        """db/dt, shaped like ``t``."""
        return (self.sigma_rate(t) + self.sigma(t) * self.drift_rate(t)) / self.u(t)

    def velocity_between(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """a'x_1 + b'x_0, how X = a x_1 + b x_0 moves, (B, ...); times broadcast over the ends."""
        return self.scale_rate(t) * x1 + self.spread_rate(t) * x0

    def noised(self, x: Tensor, t: Tensor, *, generator: torch.Generator) -> Tensor:
        """(x + σ(t)ε)/u(t), fresh ε: what data are at generation time t (framework §6).

        Args:
            x: (B, ...) data.
            t: (B,) generation times.
            generator: draws ε.

        Raises:
            ConfigError: for times that are not of the path.
        """
        self._check_times(t)
        noised = x + expand_like(self.sigma(t), x) * normal_like(x, generator)
        return noised / expand_like(self.u(t), x)

    def _check_times(self, t: Tensor) -> None:
        first, last = torch.aminmax(t) if t.numel() else (0.0, 0.0)
        if not (first >= 0 and last <= self.horizon * (1 + 1e-6)):
            raise ConfigError(
                f"times on this path lie from 0 to {self.horizon:g}: give t of these."
            )

    def u_rate(self, t: Tensor) -> Tensor:
        """du/dt, shaped like ``t``."""
        return torch.zeros_like(t)

    def half_rate(self, t: Tensor) -> Tensor:
        """|σ'(t)| σ(t), which carries s_p in the probability flow (GPM eq. 9, right); g_s²/2 at u = 1."""
        return self.sigma_rate(t).abs() * self.sigma(t)

    def drift_rate(self, t: Tensor) -> Tensor:
        """a(t) = -u'/u: the f(X, t) = a(t) X of the reverse drift (framework §6)."""
        return -self.u_rate(t) / self.u(t)

    def noise_rate(self, t: Tensor) -> Tensor:
        """g_s²(t) = 2 σ|σ'|/u²: squared noise scale of the forward SDE (framework §6)."""
        return 2 * self.half_rate(t) / self.u(t) ** 2


@dataclass(frozen=True)
class EDMSchedule(Schedule):
    """σ(t) = σ_max - t: with σ itself as the clock, Heun steps in t are Heun steps in σ.

    Source: Karras et al. 2022, σ(t) = t, reversed; DiffFlow eq. 6.
    """

    sigma_max: Level = 80.0
    sigma_end: NotNegative = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.sigma_end < self.sigma_max:
            raise ConfigError(
                f"an EDM schedule needs 0 <= sigma_end < sigma_max, "
                f"got {self.sigma_end} and {self.sigma_max}: enlarge sigma_max."
            )

    @property
    def horizon(self) -> float:  # type: ignore[override]
        """T = σ_max - σ_end."""
        return self.sigma_max - self.sigma_end

    def sigma(self, t: Tensor) -> Tensor:
        """σ_max - t."""
        return self.sigma_max - t

    def sigma_rate(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        """σ_max - σ."""
        return self.sigma_max - sigma


@dataclass(frozen=True)
class VESchedule(Schedule):
    """σ(t) = σ_max (σ_end/σ_max)^t on [0, 1]: the geometric path of Song et al. 2021 (VE)."""

    sigma_max: Level = 50.0
    sigma_end: Level = 0.01
    horizon: Positive = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 < self.sigma_end < self.sigma_max:
            raise ConfigError(
                f"a VE schedule needs 0 < sigma_end < sigma_max, "
                f"got {self.sigma_end} and {self.sigma_max}: its levels are spaced geometrically."
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_end / self.sigma_max)

    def sigma(self, t: Tensor) -> Tensor:
        """σ_max (σ_end/σ_max)^(t/T)."""
        return self.sigma_max * torch.exp(self._log_ratio * t / self.horizon)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """σ(t) log(σ_end/σ_max)/T."""
        return self.sigma(t) * self._log_ratio / self.horizon

    def time(self, sigma: Tensor) -> Tensor:
        """T log(σ/σ_max)/log(σ_end/σ_max)."""
        return self.horizon * torch.log(sigma / self.sigma_max) / self._log_ratio


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """σ(t) = ``level`` on [0, ``horizon``]: a single noise level (DiffFlow §3.1, §3.3, §4).

    The prior is not set by such a path; :attr:`prior_std` is 1.
    """

    level: NotNegative = 0.01
    horizon: Positive = 1.0

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """The level."""
        return self.level

    @property
    def sigma_end(self) -> float:  # type: ignore[override]
        """The level."""
        return self.level

    @property
    def prior_std(self) -> float:
        """1."""
        return 1.0

    def sigma(self, t: Tensor) -> Tensor:
        """The level."""
        return torch.full_like(t, self.level)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        """Not defined: one level holds at all times."""
        raise ConfigError(
            "a constant noise level cannot be turned into a time: choose a schedule that falls."
        )


@dataclass(frozen=True)
class VPSchedule(Schedule):
    """u = 1/α, σ = √(1 - α²)/α: the variance-preserving SDE of Song et al. 2021 (their eqs. 11, 33).

    Their time τ = 1 - t falls from 1 to ``epsilon``; β_vp(τ) = β_min + τ (β_max - β_min), B = ∫_0^τ β_vp
    and the mean scale is α = e^{-B/2} (DiffFlow eqs. 8-17).

    Args:
        beta_min: β_vp at τ = 0, > 0.
        beta_max: β_vp at τ = 1.
        epsilon: τ of the sample; 1e-3 is theirs, 0 reaches σ = 0.
    """

    beta_min: Positive = 0.1
    beta_max: Annotated[float, Range(above=0, most=80.0)] = 20.0
    epsilon: Annotated[float, Range(least=0, below=1)] = 1e-3

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 < self.beta_min <= self.beta_max:
            raise ConfigError(
                f"the rate of a VP schedule needs 0 < beta_min <= beta_max, "
                f"got {self.beta_min} and {self.beta_max}."
            )

    @property
    def horizon(self) -> float:  # type: ignore[override]
        """T = 1 - ε."""
        return 1.0 - self.epsilon

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """σ(0)."""
        return float(self.sigma(torch.zeros((), dtype=torch.float64)))

    @property
    def sigma_end(self) -> float:  # type: ignore[override]
        """σ(T)."""
        return float(self.sigma(torch.tensor(self.horizon, dtype=torch.float64)))

    @property
    def prior_std(self) -> float:
        """1: the prior of Song et al. is N(0, I), the limit of long paths."""
        return 1.0

    def beta_vp(self, t: Tensor) -> Tensor:
        """β_vp at generation times, shaped like ``t``."""
        return self.beta_min + (1 - t) * (self.beta_max - self.beta_min)

    def alpha(self, t: Tensor) -> Tensor:
        """α, shaped like ``t``."""
        return torch.exp(-0.5 * self._exponent(t))

    def sigma(self, t: Tensor) -> Tensor:
        """√(1 - α²)/α = √(e^B - 1)."""
        return torch.expm1(self._exponent(t)).sqrt()

    def sigma_rate(self, t: Tensor) -> Tensor:
        """-½ β_vp u²/σ; -∞ where σ = 0."""
        return -self.half_rate(t) / self.sigma(t)

    def time(self, sigma: Tensor) -> Tensor:
        """T where B = log(1 + σ²)."""
        return self._time_at(torch.log1p(sigma**2))

    def u(self, t: Tensor) -> Tensor:
        """1/α."""
        return torch.exp(0.5 * self._exponent(t))

    def u_rate(self, t: Tensor) -> Tensor:
        """-½ β_vp u."""
        return -0.5 * self.beta_vp(t) * self.u(t)

    def half_rate(self, t: Tensor) -> Tensor:
        """½ β_vp u²: finite where σ = 0 as well."""
        return 0.5 * self.beta_vp(t) * torch.exp(self._exponent(t))

    def drift_rate(self, t: Tensor) -> Tensor:
        """½ β_vp."""
        return 0.5 * self.beta_vp(t)

    def noise_rate(self, t: Tensor) -> Tensor:
        """β_vp."""
        return self.beta_vp(t)

    def _exponent(self, t: Tensor) -> Tensor:
        tau = 1 - t
        return tau * (self.beta_min + tau * (0.5 * (self.beta_max - self.beta_min)))

    def _time_at(self, exponent: Tensor) -> Tensor:
        """T where B is ``exponent``: the root of a quadratic, in the form that keeps its digits."""
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * exponent).sqrt()
        return 1 - 2 * exponent / (self.beta_min + root)


@dataclass(frozen=True)
class SubVPSchedule(VPSchedule):
    """u = 1/α, σ = (1 - α²)/α: the sub-VP SDE of Song et al. 2021 (their eq. 12), scaled as VP's is."""

    def sigma(self, t: Tensor) -> Tensor:
        """(1 - α²)/α = 2 sinh(B/2)."""
        return 2 * torch.sinh(0.5 * self._exponent(t))

    def sigma_rate(self, t: Tensor) -> Tensor:
        """-β_vp cosh(B/2)."""
        return -self.beta_vp(t) * torch.cosh(0.5 * self._exponent(t))

    def time(self, sigma: Tensor) -> Tensor:
        """T where B = 2 asinh(σ/2)."""
        return self._time_at(2 * torch.asinh(0.5 * sigma))

    def half_rate(self, t: Tensor) -> Tensor:
        """β_vp sinh(B)."""
        return self.beta_vp(t) * torch.sinh(self._exponent(t))

    def noise_rate(self, t: Tensor) -> Tensor:
        """β_vp (1 - α⁴)."""
        return -self.beta_vp(t) * torch.expm1(-2 * self._exponent(t))


class Interpolant(Schedule):
    """X = a(t) x + b(t) ε, a rising to 1 and b falling to 0 (framework §10); a subclass says a and b.

    Where a(0) = 0, as of the paths of flow matching, particles start at ε itself: a, b, their rates, the
    velocity and the score are finite there; σ = b/a, u = 1/a and what is made of them are not.

    Source: Albergo et al. 2023, "Stochastic interpolants"; Liu et al. 2022; Lipman et al. 2022.
    """

    horizon: float = 1.0
    sigma_end: float = 0.0

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """σ(0); infinite where a(0) = 0."""
        return float(self.sigma(torch.zeros((), dtype=torch.float64)))

    def scale_rate(self, t: Tensor) -> Tensor:
        """The rate a', by forward differentiation."""
        return torch.func.jvp(self.scale, (t,), (torch.ones_like(t),))[1]

    def spread_rate(self, t: Tensor) -> Tensor:
        """b', likewise."""
        return torch.func.jvp(self.spread, (t,), (torch.ones_like(t),))[1]

    def sigma(self, t: Tensor) -> Tensor:
        """b/a."""
        return self.spread(t) / self.scale(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """(ab' - a'b)/a²."""
        a, b = self.scale(t), self.spread(t)
        return (a * self.spread_rate(t) - b * self.scale_rate(t)) / a**2

    def time(self, sigma: Tensor) -> Tensor:
        """Where b/a = σ, by bisection."""
        low, high = torch.zeros_like(sigma), torch.full_like(sigma, self.horizon)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.spread(middle) > sigma * self.scale(middle)
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return high

    def u(self, t: Tensor) -> Tensor:
        """1/a."""
        return 1 / self.scale(t)

    def u_rate(self, t: Tensor) -> Tensor:
        """-a'/a²."""
        return -self.scale_rate(t) / self.scale(t) ** 2

    def noised(self, x: Tensor, t: Tensor, *, generator: torch.Generator) -> Tensor:
        """See :meth:`Schedule.noised`; at t = 0, too."""
        self._check_times(t)
        noise = expand_like(self.spread(t), x) * normal_like(x, generator)
        return expand_like(self.scale(t), x) * x + noise


@dataclass(frozen=True)
class LinearSchedule(Interpolant):
    """a = t, b = 1 - t on [0, 1]: rectified flow (Liu et al. 2022), flow matching (Lipman et al. 2022)."""

    def scale(self, t: Tensor) -> Tensor:
        """A = t."""
        return t

    def spread(self, t: Tensor) -> Tensor:
        """B = 1 - t."""
        return 1 - t

    def scale_rate(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def spread_rate(self, t: Tensor) -> Tensor:
        """-1."""
        return torch.full_like(t, -1)

    def velocity_between(self, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        """x_1 - x_0."""
        return x1 - x0

    def time(self, sigma: Tensor) -> Tensor:
        """1/(1 + σ)."""
        return 1 / (1 + sigma)


@dataclass(frozen=True)
class TrigonometricSchedule(Interpolant):
    """a = sin(πt/2), b = cos(πt/2) on [0, 1] (Albergo et al. 2023): a² + b² = 1."""

    def scale(self, t: Tensor) -> Tensor:
        """sin(πt/2)."""
        return (t * (math.pi / 2)).sin()

    def spread(self, t: Tensor) -> Tensor:
        """cos(πt/2), exact where it vanishes."""
        return ((1 - t) * (math.pi / 2)).sin()

    def scale_rate(self, t: Tensor) -> Tensor:
        """π/2 cos(πt/2)."""
        return self.spread(t) * (math.pi / 2)

    def spread_rate(self, t: Tensor) -> Tensor:
        """-π/2 sin(πt/2)."""
        return self.scale(t) * (-math.pi / 2)

    def time(self, sigma: Tensor) -> Tensor:
        """2/π arccot σ."""
        return torch.atan2(torch.ones_like(sigma), sigma) * (2 / math.pi)


@dataclass(frozen=True)
class InterpolantSchedule(Interpolant):
    """Any a and b.

    Args:
        a: of times, shaped like them, differentiable.
        b: likewise; b/a falls to 0.
        horizon: T, where a = 1 and b = 0.
    """

    a: Callable[[Tensor], Tensor] = field(default_factory=lambda: torch.clone)
    b: Callable[[Tensor], Tensor] = field(default_factory=lambda: lambda t: 1 - t)
    horizon: Positive = 1.0

    def __post_init__(self) -> None:
        """Check that a and b lead from noise to data."""
        super().__post_init__()
        t = torch.linspace(0.0, self.horizon, 257, dtype=torch.float64)
        a, b = self.scale(t), self.spread(t)
        ends = torch.stack([a[-1] - 1, b[-1]]).abs().max()
        # what D is divided by, at t = 0 too
        turning = self.scale_rate(t) * b - a * self.spread_rate(t)
        if not (ends < 1e-6 and (a[1:] > 0).all() and (turning > 1e-6 / self.horizon).all()):
            raise ConfigError(
                "an interpolant a(t) x + b(t) ε ends at a = 1 and b = 0, and b/a falls all along (a'b > "
                "ab', at both ends too): choose other functions, or another horizon."
            )

    def scale(self, t: Tensor) -> Tensor:
        """The function a."""
        return self.a(t)

    def spread(self, t: Tensor) -> Tensor:
        """The function b."""
        return self.b(t)


PATHS: dict[str, Callable[[], Schedule]] = {
    "linear": LinearSchedule,
    "trigonometric": TrigonometricSchedule,
    "vp": VPSchedule,
    "karras": EDMSchedule,
}
"""Paths along which a velocity can be learned, or a data score carry particles, by name."""


class TimeLaw(Checked, ABC):
    """A law of generation times in [0, T] to train on."""

    @abstractmethod
    def sample(
        self, n: Natural, horizon: float = 1.0, *, generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """(n,) independent times up to ``horizon`` on the generator's device."""


@dataclass(frozen=True)
class UniformTimeLaw(TimeLaw):
    """T uniform."""

    def sample(
        self, n: Natural, horizon: float = 1.0, *, generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """(n,) independent times."""
        return horizon * torch.rand(n, generator=generator, dtype=dtype, device=generator.device)


@dataclass(frozen=True)
class LogitNormalTimeLaw(TimeLaw):
    """T = sigmoid of N(mean, std²), times the horizon: Esser et al. 2024 (SD3).

    On the linear path this is ln σ ~ N(-mean, std²). MeanFlow's (-0.4, 1) is in noise time: here its mean
    is 0.4.
    """

    mean: LogLevel = 0.0
    std: LogSpread = 1.0

    def sample(
        self, n: Natural, horizon: float = 1.0, *, generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """(n,) independent times."""
        place = self.mean + self.std * normal(n, generator=generator, dtype=dtype)
        return horizon * place.sigmoid()


class NoiseLaw(Checked, ABC):
    """A law of noise levels σ > 0 to train on."""

    @abstractmethod
    def sample(self, n: Natural, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """(n,) independent levels on the generator's device."""


@dataclass(frozen=True)
class LogNormalLaw(NoiseLaw):
    """ln σ ~ N(mean, std²) (Karras et al. 2022)."""

    mean: LogLevel = -1.2
    std: LogSpread = 1.2

    def sample(self, n: Natural, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """(n,) independent levels."""
        return torch.exp(self.mean + self.std * normal(n, generator=generator, dtype=dtype))


@dataclass(frozen=True)
class LogUniformLaw(NoiseLaw):
    """ln σ uniform: the law whose "likelihood" weighting has no weights to even out."""

    sigma_min: Level = 0.002
    sigma_max: Level = 80.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        _check_levels(self.sigma_min, self.sigma_max)

    def sample(self, n: Natural, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """(n,) independent levels."""
        place = torch.rand(n, generator=generator, dtype=dtype, device=generator.device)
        return self.sigma_min * (math.log(self.sigma_max / self.sigma_min) * place).exp()


@checked
def karras_level(u: Tensor, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """(σ_max^{1/ρ} + u (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ (GPM eq. 28): u = 0 is σ_max, u = 1 σ_min."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + u * (low - high)) ** rho


@dataclass(frozen=True)
class KarrasLaw(NoiseLaw):
    """σ at a uniform place u ~ U[0, 1] of Karras's grid (GPM eq. 28)."""

    sigma_min: Level = 0.1
    sigma_max: Level = 10.0
    rho: Exponent = 3.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        _check_levels(self.sigma_min, self.sigma_max)

    def sample(self, n: Natural, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """(n,) independent levels."""
        u = torch.rand(n, generator=generator, dtype=dtype, device=generator.device)
        return karras_level(u, self.sigma_min, self.sigma_max, self.rho)


class TimeGrid(Checked, ABC):
    """Where a sampler's nodes lie in generation time."""

    @abstractmethod
    def nodes(self, steps: int) -> Tensor:
        """(steps + 1,) increasing times in float64, from 0 to the horizon."""


@dataclass(frozen=True)
class UniformGrid(TimeGrid):
    """t_n = T n/N."""

    horizon: Positive = 1.0

    def nodes(self, steps: int) -> Tensor:
        """(steps + 1,) equally spaced times."""
        _check_steps(steps)
        return torch.linspace(0.0, self.horizon, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class KarrasGrid(TimeGrid):
    """N levels from σ_max to ``sigma_min`` spaced by the exponent ρ, then the path's end.

    Source: Karras et al. 2022, eq. 5. The last step, from ``sigma_min`` to the end of the path, is
    left out where the path itself ends at ``sigma_min``.
    """

    schedule: Schedule
    sigma_min: NotNegative = 0.002
    rho: Exponent = 7.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        _check_lowest(self.schedule, self.sigma_min)

    def nodes(self, steps: int) -> Tensor:
        """(steps + 1,) times; the last is the horizon."""
        high = self.schedule.sigma_max
        return _through_levels(
            self.schedule,
            self.sigma_min,
            steps,
            lambda place: karras_level(place, self.sigma_min, high, self.rho),
        )


@dataclass(frozen=True)
class GeometricGrid(TimeGrid):
    """N levels from σ_max to ``sigma_min`` with equal ratios, then the path's end.

    As the signal-to-noise ratio of p_σ is 1/σ² whatever the scale u, this is also the grid that is
    uniform in log-SNR (Lu et al. 2022). The last step, from ``sigma_min`` to the end of the path, is left
    out where the path itself ends at ``sigma_min``.

    Args:
        schedule: a path that falls.
        sigma_min: the lowest level; None is the path's end, or 0.002 where that is 0.
    """

    schedule: Schedule
    sigma_min: Level | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        _check_lowest(self.schedule, self._lowest)

    @property
    def _lowest(self) -> float:
        return (self.schedule.sigma_end or 0.002) if self.sigma_min is None else self.sigma_min

    def nodes(self, steps: int) -> Tensor:
        """(steps + 1,) times; the last is the horizon."""
        low, high = self._lowest, self.schedule.sigma_max
        return _through_levels(
            self.schedule, low, steps, lambda place: high * torch.pow(low / high, place)
        )


@checked
@dataclass(frozen=True)
class Nodes:
    """The nodes of one sampling: a rule with their number, or places of one's own.

    Attributes:
        steps: N, how many steps; the model's own number unless given.
        rule: places N + 1 nodes; the model's own unless given.
        times: (N + 1,) the nodes themselves, generation times that increase from 0, instead of both.
    """

    steps: int | None = None
    rule: TimeGrid | None = None
    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.steps is not None:
            _check_steps(self.steps)
        if self.times is None:
            return
        if self.steps is not None or self.rule is not None:
            raise ConfigError(
                "nodes are either given or placed: leave out times, or steps and rule."
            )
        rising = all(a < b for a, b in pairwise(self.times))
        if len(self.times) < 2 or self.times[0] != 0 or not rising:
            raise ConfigError(f"nodes are times that increase from 0, got {list(self.times)}.")

    def of(self, rule: TimeGrid, steps: int, horizon: float) -> Tensor:
        """(N + 1,) increasing times in float64, with what is not given from a model's own.

        Raises:
            ConfigError: for times beyond the horizon.
        """
        if self.times is None:
            return (self.rule or rule).nodes(self.steps or steps)
        if self.times[-1] > horizon:
            raise ConfigError(
                f"the last node, {self.times[-1]:g}, lies beyond the horizon, {horizon:g}."
            )
        return torch.tensor(self.times, dtype=torch.float64)


def _through_levels(
    schedule: Schedule, sigma_min: float, steps: int, level: Callable[[Tensor], Tensor]
) -> Tensor:
    """Times of level(0) = σ_max, ..., level(1) = ``sigma_min``, and of the path's end."""
    _check_steps(steps)
    reaches_end = schedule.sigma_end == sigma_min
    levels = steps + 1 if reaches_end else steps
    place = torch.linspace(0, 1, levels, dtype=torch.float64)
    times = schedule.time(level(place))
    times[0] = 0.0
    end = torch.tensor([schedule.horizon], dtype=torch.float64)
    return torch.cat([times[:-1], end]) if reaches_end else torch.cat([times, end])


def _check_levels(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ConfigError(
            f"noise levels need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}."
        )


def _check_lowest(schedule: Schedule, sigma_min: float) -> None:
    if not math.isfinite(schedule.sigma_max):
        raise ConfigError(
            f"a {type(schedule).__name__} begins at σ = ∞, where no levels can be spaced: place its nodes "
            "in t (a UniformGrid)."
        )
    if not schedule.sigma_end <= sigma_min < schedule.sigma_max:
        raise ConfigError(
            f"the grid's sigma_min {sigma_min} must lie between the schedule's end "
            f"{schedule.sigma_end} and its sigma_max {schedule.sigma_max}."
        )


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"a sampler needs at least 1 step, got {steps}.")
