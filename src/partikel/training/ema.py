"""Exponential moving averages of the weights that sampling uses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from partikel.errors import Checked, ConfigError, Positive, Range, check

RAMP = 0.05
"""A half-life is never longer than this share of the training so far (EDM, Karras et al. 2022)."""


@dataclass(frozen=True)
class EMA(Checked):
    """How weights are averaged, where a plain decay does not say it; one of the two is given.

    Attributes:
        half_life: iterations after which weights count half; shorter in the beginning (EDM).
        sigma_rel: width of the average relative to the length of training, in (0, 0.288]: the power
            function average of Karras et al. 2024 (EDM2), whose memory grows with training.
    """

    half_life: Positive | None = None
    sigma_rel: Annotated[float, Range(above=0, most=12**-0.5)] | None = None

    def __post_init__(self) -> None:
        """Check the ranges, and that one of both is given."""
        super().__post_init__()
        if (self.half_life is None) == (self.sigma_rel is None):
            raise ConfigError(
                "an average of the weights has either a half_life or a sigma_rel: give one of both "
                "(or a plain decay, ema: 0.999)."
            )


Decay = Annotated[float, Range(above=0, below=1)]
"""d of a plain decay, θ̄ <- d θ̄ + (1-d) θ."""


def decay_rule(ema: float | EMA) -> Callable[[float], float]:
    """The d of θ̄ <- d θ̄ + (1-d) θ, as a function of n >= 1, the number of weights averaged so far.

    A plain decay is warmed up, d = min(decay, (1+n)/(10+n)), so that early averages do not remember
    the initialisation. A half-life h gives 2^(-1/h). A power function average weighs the weights of
    iteration k by k^γ: d = (1 - 1/(n+1))^(γ+1) (EDM2 eq. 123).

    Raises:
        ConfigError: for a decay outside of (0, 1).
    """
    if not isinstance(ema, EMA):
        check(ema, Decay, "the EMA's decay")
        return lambda n: min(ema, (1 + n) / (10 + n))
    if ema.half_life is not None:
        half_life = ema.half_life
        return lambda n: 0.5 ** (1 / min(half_life, RAMP * n))
    assert ema.sigma_rel is not None
    gamma = power_of_width(ema.sigma_rel)
    return lambda n: (1 - 1 / (n + 1)) ** (gamma + 1)


def power_of_width(sigma_rel: float) -> float:
    """γ >= 0 of the profile t^γ on [0, 1] whose standard deviation is ``sigma_rel``.

    It solves σ² = (γ+1)/((γ+2)²(γ+3)) (EDM2 eq. 126).
    """
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def averaged_model(module: nn.Module, ema: float | EMA) -> AveragedModel:
    """An average of ``module``, its buffers included."""
    rule = decay_rule(ema)

    @torch.no_grad()
    def update(
        averages: tuple[Tensor, ...] | list[Tensor],
        values: tuple[Tensor, ...] | list[Tensor],
        count: Tensor | int,
    ) -> None:
        if averages[0].is_floating_point():
            get_ema_multi_avg_fn(rule(float(count)))(averages, values, count)
        else:  # counters of batch norm
            _copy([*values], [*averages])

    return AveragedModel(module, multi_avg_fn=update, use_buffers=True).requires_grad_(False)


@contextlib.contextmanager
def swapped_in(module: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """Run a block with the averaged weights in ``module``'s place, in evaluation mode."""
    training = module.training
    module.eval()
    own, theirs = [], []
    if average is not None:
        own = [*module.parameters(), *module.buffers()]
        theirs = [*average.module.parameters(), *average.module.buffers()]
    kept = [tensor.detach().clone() for tensor in own]
    try:
        _copy(theirs, own)
        yield
    finally:
        _copy(kept, own)
        module.train(training)


@torch.no_grad()
def _copy(values: list[Tensor], tensors: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
