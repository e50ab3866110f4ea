"""Noise by time interval: fresh increments of a Brownian motion, or one fixed path of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.errors.checks import Checked, checked
from partikel.streams import derive_seed, normal, normal_like

Brownian = Callable[[Tensor, float, float], Tensor]
"""(x, t, t_next) -> W(t_next) - W(t), shaped like x: all that Euler-Maruyama asks for."""


class BrownianMotion(Checked, ABC):
    """All the noise that solvers ask for: increments, the areas under them, and kicks."""

    @abstractmethod
    def __call__(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """W(t_next) - W(t), shaped like x."""

    @abstractmethod
    def with_area(self, x: Tensor, t: float, t_next: float) -> tuple[Tensor, Tensor]:
        """The increment, and the area ∫ (W(s) - W(t)) ds from t to t_next: both shaped like x.

        Over a step h the area has variance h³/3 and covariance h²/2 with the increment; it is the
        iterated integral I_(1,0) of Kloeden & Platen 1992.
        """

    @abstractmethod
    def kick(self, x: Tensor, t: float, index: int = 0) -> Tensor:
        """N(0, I) shaped like x, independent of W: for moves at a time t that take no time.

        Args:
            x: (B, ...) particles.
            t: when.
            index: number of the kick among those at t.
        """


@checked
def brownian_increments(generator: torch.Generator) -> BrownianMotion:
    """Independent increments N(0, (t_next - t) I), drawn in the order in which they are asked for."""
    return _FreshNoise(generator)


def motion(brownian: Brownian | None) -> BrownianMotion:
    """A source of noise from which more is wanted than increments.

    Raises:
        ConfigError: if it gives increments only.
    """
    if not isinstance(brownian, BrownianMotion):
        raise ConfigError(
            "this solver asks for areas or kicks, not for increments of noise only: "
            "pass a generator or a BrownianPath."
        )
    return brownian


class _FreshNoise(BrownianMotion):
    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, x: Tensor, t: float, t_next: float) -> Tensor:
        return self.kick(x, t) * math.sqrt(t_next - t)

    def with_area(self, x: Tensor, t: float, t_next: float) -> tuple[Tensor, Tensor]:
        step = t_next - t
        increment = self(x, t, t_next)
        # The mean of W over the step, given its ends, is N(half the increment, step/12).
        return increment, step * (increment / 2 + math.sqrt(step / 12) * self.kick(x, t))

    def kick(self, x: Tensor, t: float, index: int = 0) -> Tensor:
        return normal_like(x, self._generator)


class BrownianPath(BrownianMotion):
    """One fixed path of W on [0, horizon] for every coordinate: the same noise for every grid.

    Runs of different step sizes driven by the same path are strong approximations of the same
    solution, so that their distance measures the strong order; and the common noise takes most of the
    variance out of weak errors. What is returned is a function of the seed and the times alone: it does
    not depend on what was asked before, and finer increments (and areas) add up to coarser ones.

    This is Lévy's construction by halving, as a tree that is not stored: W and its area on an interval
    determine both on its halves up to two Gaussians (Foster, Lyons & Oberhauser 2020), which are
    drawn from a seed of that interval's own, as in the virtual Brownian tree of Li et al. 2020.
    Below the finest interval the path is continued by its mean.

    Args:
        shape: (B, ...) of the particles.
        horizon: T, where the path ends.
        generator: gives the seed; the path lives on its device.
        levels: the finest interval is T/2^levels. A query draws at most ``levels`` times, and only k
            times at multiples of T/2^k.

    Raises:
        ConfigError: for a horizon that is not positive.
        ValueError: when asked outside [0, T] or for another shape.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        horizon: float = 1.0,
        *,
        generator: torch.Generator,
        levels: int = 24,
    ) -> None:
        if not horizon > 0:
            raise ConfigError(f"a path of noise needs a positive horizon, got {horizon}.")
        self.shape = tuple(shape)
        self.horizon = horizon
        self.levels = levels
        self._device = generator.device
        self._seed = int(
            torch.randint(2**62, (1,), generator=generator, device=self._device).item()
        )
        self._latest: tuple[float, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """W(t_next) - W(t), shaped like x."""
        return self.with_area(x, t, t_next)[0]

    def with_area(self, x: Tensor, t: float, t_next: float) -> tuple[Tensor, Tensor]:
        """The increment and the area under it."""
        self._check(x, t)
        self._check(x, t_next)
        latest = self._latest  # where the last step ended, this one most often starts
        w, area = latest[1:] if latest is not None and latest[0] == t else self._at(t)
        w_next, area_next = self._at(t_next)
        self._latest = (t_next, w_next, area_next)
        return (w_next - w).to(x), (area_next - area - (t_next - t) * w).to(x)

    def kick(self, x: Tensor, t: float, index: int = 0) -> Tensor:
        """N(0, I), a function of t and index."""
        self._check(x, t)
        return self._draws(1, "kick", float(t).hex(), index)[0].to(x)

    def _draws(self, count: int, *path: object) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(derive_seed(self._seed, *path))
        return normal(count, *self.shape, generator=generator, dtype=torch.float64)

    def _at(self, t: float) -> tuple[Tensor, Tensor]:
        """W(t) and ∫_0^t W ds in float64."""
        place = t / self.horizon * 2**self.levels
        if abs(place - round(place)) < 1e-6:  # a rounded multiple of the finest interval
            place = round(place)
        start, length = 0, 2**self.levels  # the interval around t, in finest ones
        step = self.horizon
        w, lean = self._draws(2, "whole")
        w, lean = math.sqrt(step) * w, math.sqrt(step / 12) * lean
        value, area = torch.zeros_like(w), torch.zeros_like(w)
        while length > 1 and 0 < place - start < length:
            tilt, split = self._draws(2, start / 2**self.levels, length / 2**self.levels)
            tilt, split = math.sqrt(step / 16) * tilt, math.sqrt(step / 12) * split
            step, length = step / 2, length // 2
            half = w / 2 + 1.5 * lean + tilt  # W's increment over the left half
            if place < start + length:
                w, lean = half, lean / 4 - tilt / 2 + split / 2
            else:
                left = lean / 4 - tilt / 2 + split / 2
                area = area + step * (value + half / 2 + left)
                value, start = value + half, start + length
                w, lean = w - half, lean / 4 - tilt / 2 - split / 2
        share = (place - start) / length
        # The mean path between two ends, given its own mean there, is a parabola.
        part = share * w + 6 * share * (1 - share) * lean
        below = share**2 / 2 * w + (3 - 2 * share) * share**2 * lean
        return value + part, area + step * (share * value + below)

    def _check(self, x: Tensor, t: float) -> None:
        if x.shape != self.shape:
            raise ValueError(
                f"this path drives {self.shape}, not {tuple(x.shape)}: make another one"
            )
        if not -1e-9 * self.horizon <= t <= (1 + 1e-9) * self.horizon:
            raise ValueError(f"this path lives on [0, {self.horizon}]: it cannot be asked at {t}")
