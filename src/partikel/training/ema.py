"""Exponential moving averages of the weights that sampling uses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.optim.swa_utils import AveragedModel

from partikel.errors import ConfigError
from partikel.errors.checks import Checked, Positive, Range, check

RAMP = 0.05
"""A half-life is never longer than this share of the training so far (EDM, Karras et al. 2022)."""

ITERATIONS = 10
"""Steps of a spectral norm's power iteration on averaged weights, from where the present ones left it."""

SETTLING = 200
"""Steps of a power iteration that starts from nothing of use."""


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


class WeightAverage(AveragedModel):
    """An average of a module's weights, and what goes with it of its buffers.

    What becomes of a buffer follows from its kind:

    * running statistics (of batch and instance norm) are means already, and are averaged;
    * the vectors of a spectral norm's power iteration belong to the weights that they are of: they are
      iterated on the averaged ones (their average would be of no length and of no matrix);
    * anything else, counters, adaptive settings, constants, has no meaning but its present value, which
      is copied.

    Args:
        module: what is averaged.
        decay: see :func:`decay_rule`.
    """

    def __init__(self, module: nn.Module, decay: Callable[[float], float]) -> None:
        super().__init__(module, use_buffers=True)
        self.requires_grad_(False)
        means = {
            id(buffer)
            for part in self.module.modules()
            if isinstance(part, nn.modules.batchnorm._NormBase)
            for buffer in (part.running_mean, part.running_var)
        }
        buffers = dict(self.module.named_buffers())
        self._copied = [name for name, buffer in buffers.items() if id(buffer) not in means]
        self._averaged = [name for name, _ in self.module.named_parameters()]
        self._averaged += [name for name, buffer in buffers.items() if id(buffer) in means]
        self._decay = decay
        self._count = 0  # n_averaged, as a number
        self._places: tuple[Any, ...] = (None,)
        self._iterates = any(True for _ in _power_iterations(self.module))
        self.register_load_state_dict_post_hook(_settle)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of ``model`` in."""
        if self._places[0] is not model:  # to look for tensors takes as long as to average them
            lists, both = (self._averaged, self._copied), (self.module, model)
            found = ([_place(each, name) for name in names] for names in lists for each in both)
            self._places = model, *found
        averages, values, copies, present = (
            [held[name] for held, name in places] for places in self._places[1:]
        )
        share = 1 - self._decay(self._count) if self._count else 1.0
        # all at once: AveragedModel's own update takes longer to gather them than to average
        torch._foreach_lerp_(averages, values, share)  # pyright: ignore
        self._count += 1
        self.n_averaged += 1
        if copies:
            torch._foreach_copy_(copies, present)  # pyright: ignore
        if self._iterates:
            for _, iterate in _power_iterations(self.module):
                iterate(ITERATIONS)

    def restart(self) -> None:
        """Forget: the next weights that are taken in are the first."""
        self.n_averaged.zero_()
        self._count = 0


def averaged_model(module: nn.Module, ema: float | EMA) -> WeightAverage:
    """An average of ``module``, its buffers included."""
    return WeightAverage(module, decay_rule(ema))


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Where a module holds a tensor, which may be replaced there."""
    path, _, last = name.rpartition(".")
    part = module.get_submodule(path)
    return (part._parameters if last in part._parameters else part._buffers), last


def _power_iterations(module: nn.Module) -> Iterator[tuple[Tensor, Callable[[int], object]]]:
    """A vector of each spectral norm, and what takes so many steps of its power iteration."""
    for part in module.modules():
        if isinstance(part, ParametrizationList):
            for norm in part:
                if isinstance(norm, _SpectralNorm) and hasattr(norm, "_u"):  # a bias has none
                    matrix = norm._reshape_weight_to_matrix(cast(Tensor, part.original))
                    yield norm._u, partial(norm._power_method, matrix)
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):  # torch.nn.utils.spectral_norm
                vector = getattr(part, f"{hook.name}_u")
                yield vector, partial(_iterate, hook, part)


def _iterate(norm: SpectralNorm, part: nn.Module, steps: int) -> None:
    for _ in range(steps):
        norm.compute_weight(part, do_power_iteration=True)


def _settle(average: WeightAverage, keys: object) -> None:
    """Go on from what was loaded: vectors of no length 1, which earlier versions averaged, iterate anew."""
    average._count = int(average.n_averaged)
    for vector, iterate in _power_iterations(average):
        if abs(float(vector.norm()) - 1) > 1e-3:
            iterate(SETTLING)


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
