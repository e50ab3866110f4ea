"""Noise along generation: the path σ(t), the law of σ in training, and the grid of a sampler.

They are three things (Karras et al. 2022 chose each separately). Generation time t runs forward from
0, the prior, to ``horizon``, the sample; this is the only room that converts between t and σ.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.tensors import expand_like


class Schedule(ABC):
    """A path of noise levels σ(t), decreasing in generation time, with mean scale 1/u(t).

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

    def u(self, t: Tensor) -> Tensor:
        """The data score is evaluated at (u x, σ) (DiffFlow eq. 4); 1 unless overridden."""
        return torch.ones_like(t)

    def noised(self, x: Tensor, t: Tensor, *, generator: torch.Generator) -> Tensor:
        """(x + σ(t)ε)/u(t), fresh ε: what data are at generation time t (framework §6).

        Args:
            x: (B, ...) data.
            t: (B,) generation times.
            generator: draws ε.
        """
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return (x + expand_like(self.sigma(t), x) * noise) / expand_like(self.u(t), x)

    def u_rate(self, t: Tensor) -> Tensor:
        """du/dt, shaped like ``t``."""
        return torch.zeros_like(t)

    def half_rate(self, t: Tensor) -> Tensor:
        """|σ'(t)| σ(t) = g_s²/2, which carries s_p in the probability flow (GPM eq. 9, right)."""
        return self.sigma_rate(t).abs() * self.sigma(t)


@dataclass(frozen=True)
class EDMSchedule(Schedule):
    """σ(t) = σ_max - t: with σ itself as the clock, Heun steps in t are Heun steps in σ.

    Source: Karras et al. 2022, σ(t) = t, reversed; DiffFlow eq. 6.
    """

    sigma_max: float = 80.0
    sigma_end: float = 0.0

    def __post_init__(self) -> None:
        """Check the range."""
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

    sigma_max: float = 50.0
    sigma_end: float = 0.01
    horizon: float = 1.0

    def __post_init__(self) -> None:
        """Check the range."""
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


class NoiseLaw(ABC):
    """A law of noise levels σ > 0 to train on."""

    @abstractmethod
    def sample(self, n: int, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """(n,) independent levels on the generator's device."""


@dataclass(frozen=True)
class LogNormalLaw(NoiseLaw):
    """ln σ ~ N(mean, std²) (Karras et al. 2022)."""

    mean: float = -1.2
    std: float = 1.2

    def sample(self, n: int, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """(n,) independent levels."""
        normal = torch.randn(n, generator=generator, dtype=dtype, device=generator.device)
        return torch.exp(self.mean + self.std * normal)


def karras_level(u: Tensor, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """(σ_max^{1/ρ} + u (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ (GPM eq. 28): u = 0 is σ_max, u = 1 σ_min."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + u * (low - high)) ** rho


@dataclass(frozen=True)
class KarrasLaw(NoiseLaw):
    """σ at a uniform place u ~ U[0, 1] of Karras's grid (GPM eq. 28)."""

    sigma_min: float = 0.1
    sigma_max: float = 10.0
    rho: float = 3.0

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise ConfigError(
                "Karras noise levels need 0 < sigma_min < sigma_max and rho > 0, "
                f"got {self.sigma_min}, {self.sigma_max} and {self.rho}."
            )

    def sample(self, n: int, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """(n,) independent levels."""
        u = torch.rand(n, generator=generator, dtype=dtype, device=generator.device)
        return karras_level(u, self.sigma_min, self.sigma_max, self.rho)


class TimeGrid(ABC):
    """Where a sampler's nodes lie in generation time."""

    @abstractmethod
    def nodes(self, steps: int) -> Tensor:
        """(steps + 1,) increasing times in float64, from 0 to the horizon."""


@dataclass(frozen=True)
class UniformGrid(TimeGrid):
    """t_n = T n/N."""

    horizon: float = 1.0

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
    sigma_min: float = 0.002
    rho: float = 7.0

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.rho > 0:
            raise ConfigError(f"the grid's exponent rho must be positive, got {self.rho}.")
        if not self.schedule.sigma_end <= self.sigma_min < self.schedule.sigma_max:
            raise ConfigError(
                f"the grid's sigma_min {self.sigma_min} must lie between the schedule's end "
                f"{self.schedule.sigma_end} and its sigma_max {self.schedule.sigma_max}."
            )

    def nodes(self, steps: int) -> Tensor:
        """(steps + 1,) times; the last is the horizon."""
        _check_steps(steps)
        schedule = self.schedule
        reaches_end = schedule.sigma_end == self.sigma_min
        levels = steps + 1 if reaches_end else steps
        place = torch.linspace(0, 1, levels, dtype=torch.float64)
        if levels == 1:
            place = torch.zeros(1, dtype=torch.float64)
        times = schedule.time(karras_level(place, self.sigma_min, schedule.sigma_max, self.rho))
        times[0] = 0.0
        end = torch.tensor([schedule.horizon], dtype=torch.float64)
        return torch.cat([times[:-1], end]) if reaches_end else torch.cat([times, end])


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"a sampler needs at least 1 step, got {steps}.")
