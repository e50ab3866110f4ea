"""Exponential moving averages of the weights that sampling uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from partikel.errors import ConfigError


class WarmEMA:
    """The averaging rule θ̄ <- d θ̄ + (1-d) θ with d = min(decay, (1+n)/(10+n)) after n updates.

    The ramp keeps early averages from remembering the initialisation.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"the EMA's decay lies in (0, 1), got {decay}.")
        self.decay = decay

    @torch.no_grad()
    def __call__(
        self,
        averages: tuple[Tensor, ...] | list[Tensor],
        values: tuple[Tensor, ...] | list[Tensor],
        count: Tensor | int,
    ) -> None:
        """Update a list of averages in place (AveragedModel's ``multi_avg_fn``)."""
        n = float(count)
        if averages[0].is_floating_point():
            update = get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))
            update(averages, values, count)
        else:  # counters of batch norm
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)


def averaged_model(module: nn.Module, decay: float) -> AveragedModel:
    """An average of ``module``, its buffers included."""
    average = AveragedModel(module, multi_avg_fn=WarmEMA(decay), use_buffers=True)
    return average.requires_grad_(False)


@contextlib.contextmanager
def swapped_in(module: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """Run a block with the averaged weights in ``module``'s place, in evaluation mode."""
    training = module.training
    module.eval()
    if average is None:
        try:
            yield
        finally:
            module.train(training)
        return
    own = [*module.parameters(), *module.buffers()]
    theirs = [*average.module.parameters(), *average.module.buffers()]
    kept = [tensor.detach().clone() for tensor in own]
    with torch.no_grad():
        for tensor, value in zip(own, theirs, strict=True):
            tensor.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(own, kept, strict=True):
                tensor.copy_(value)
        module.train(training)
