"""Phases: alternating training as data. One iteration runs every phase of a list in order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from partikel.errors.checks import Checked, Count, Part, Positive, Range, Size


@dataclass(frozen=True)
class AdamSettings(Checked):
    """Adam and what goes with it.

    Attributes:
        lr: learning rate, > 0.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: added to the denominator, > 0.
        clip: largest norm of the gradient; None for no clipping.
        warmup: iterations of linear warm-up.
        decay: how the rate falls from its peak to 0 at the last iteration.
    """

    lr: Positive = 2e-4
    beta1: Part = 0.9
    beta2: Part = 0.999
    eps: Positive = 1e-8
    clip: Positive | None = None
    warmup: Annotated[int, Range(least=0)] = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"

    @property
    def falls(self) -> bool:
        """Whether the rate refers to the number of iterations."""
        return self.decay != "constant"

    def rate(self, step: int, iterations: int) -> float:
        """Learning rate at an iteration of a run of ``iterations``."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if not self.falls:
            return self.lr
        progress = (step - self.warmup) / max(1, iterations - self.warmup)
        progress = min(1.0, progress)
        if self.decay == "linear":
            return self.lr * (1 - progress)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Phase(Checked):
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
    batch: Size = 128
    repeats: Count = 1
    reuse: Count = 1
    same: bool = False
    every: Annotated[int, Range(least=1)] = 1
