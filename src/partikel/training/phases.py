"""Phases: alternating training as data. One iteration runs every phase of a list in order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from partikel.checks import checked
from partikel.errors import ConfigError


@dataclass(frozen=True)
class AdamSettings:
    """Adam and what goes with it.

    Attributes:
        lr: learning rate, > 0.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: added to the denominator.
        clip: largest norm of the gradient; None for no clipping.
        warmup: iterations of linear warm-up.
        decay: how the rate falls from its peak to 0 at the last iteration.
    """

    lr: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float | None = None
    warmup: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.lr > 0:
            raise ConfigError(f"a learning rate must be positive, got lr = {self.lr}.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(
                f"Adam's beta1 and beta2 lie in [0, 1), got {self.beta1} and {self.beta2}."
            )
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip is a largest norm > 0 (or null), got {self.clip}.")
        if self.warmup < 0:
            raise ConfigError(f"warmup counts iterations, so it is >= 0, got {self.warmup}.")

    def rate(self, step: int, iterations: int) -> float:
        """Learning rate at an iteration of a run of ``iterations``."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decay == "constant":
            return self.lr
        progress = (step - self.warmup) / max(1, iterations - self.warmup)
        progress = min(1.0, progress)
        if self.decay == "linear":
            return self.lr * (1 - progress)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))


@checked
@dataclass(frozen=True)
class Phase:
    """One line of the alternating training.

    Attributes:
        loss: name of one of the model's losses.
        optimizer: Adam's settings; each phase has its own optimiser.
        batch: samples of one update.
        repeats: K, updates of an iteration.
        reuse: consecutive updates that share one draw of particles (a simulated trajectory serves
            several discriminator updates); 1 draws anew for each.
        same: updates that share a draw see all of the same particles (frozen targets, for several steps
            of a fit), instead of each its own part of a larger draw.
        every: run the phase in every so many iterations.
    """

    loss: str
    optimizer: AdamSettings = field(default_factory=AdamSettings)
    batch: int = 128
    repeats: int = 1
    reuse: int = 1
    same: bool = False
    every: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("batch", "repeats", "reuse", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"a phase's {name} must be at least 1, got {getattr(self, name)}."
                )
