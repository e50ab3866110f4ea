"""Initial weights as a function of one generator.

PyTorch's layers draw their weights from the global random state while they are built.
``initialise`` draws them all again from the generator it is given, so that a network's start is
decided by that generator alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from partikel.networks.embeddings import FourierEmbedding

Module = TypeVar("Module", bound=nn.Module)


class ZeroInit:
    """Marks a layer that the schemes "default" and "he" start at zero."""


class ZeroLinear(ZeroInit, nn.Linear):
    """A linear layer that starts at zero under "default"."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        _zero(self.weight, self.bias)


class ZeroConv2d(ZeroInit, nn.Conv2d):
    """A convolution that starts at zero under "default"."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        _zero(self.weight, self.bias)


_GAIN = "gain_at_first"


def starts_with(layer: Module, gain: float) -> Module:
    """Mark a layer whose weights the scheme "default" draws from N(0, gain²/fan_in), its bias zero.

    Args:
        layer: a linear or convolution layer.
        gain: γ of its paper's law, √2 of He's.

    Returns:
        ``layer``.
    """
    setattr(layer, _GAIN, gain)
    return layer


class Gain(nn.Module):
    """x -> γ·x with one learned number γ, which starts at zero under every scheme."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """γ·x."""
        return self.weight * x


def initialise(module: Module, scheme: str = "default", *, generator: torch.Generator) -> Module:
    """Draw all weights of a network, in place, in the order in which its layers are registered.

    Linear and convolution layers, by scheme:

    * "default": PyTorch's own law, weight and bias ~ U(-1/√fan_in, 1/√fan_in); marked layers
      (``ZeroInit``: the heads of modulations, last convolutions of a U-Net's blocks) are zero, and
      those whose paper tells a normal law (:func:`starts_with`) have it.
    * "normal0.02": weight ~ N(0, 0.02²), bias 0, marked layers included (DCGAN; Radford et al.
      2016).
    * "he": weight ~ N(0, 2/fan_in), bias 0, marked layers zero; it keeps a signal's size through
      rectifiers, so that a deep MLP sees small inputs beside a wide embedding (He et al. 2015).
    * "orthogonal": weight orthogonal with gain 1.41 (rows or columns orthonormal, times 1.41), bias
      0, marked layers included.

    Normalisation layers: weight 1 and bias 0, but weight ~ N(1, 0.02²) under "normal0.02"; running
    statistics are reset. Under every scheme gains are zero, label embeddings are N(0, 1), Fourier
    frequencies are redrawn, and spectral normalisation starts from fresh vectors with 15 power
    iterations.

    Args:
        module: the network; any device and floating dtype.
        scheme: a key of ``SCHEMES``.
        generator: the only source of randomness; it may live on another device than the network.

    Returns:
        ``module``.

    Raises:
        ValueError: an unknown scheme.
        TypeError: the network owns parameters in a layer of a kind not listed above.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"init must be one of {', '.join(SCHEMES)}, not '{scheme}'")
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                if scheme in ("default", "he") and isinstance(layer, ZeroInit):
                    _zero(layer.weight, layer.bias)
                elif scheme == "default" and hasattr(layer, _GAIN):
                    _scaled(layer.weight, layer.bias, generator, getattr(layer, _GAIN))
                else:
                    SCHEMES[scheme](_original(layer), layer.bias, generator)
                _restart_power_iterations(layer, generator)
            elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
                if isinstance(layer, nn.BatchNorm2d):
                    layer.reset_running_stats()
                nn.init.ones_(layer.weight)
                nn.init.zeros_(layer.bias)
                if scheme == "normal0.02":
                    layer.weight.add_(_normal(layer.weight, generator), alpha=0.02)
            elif isinstance(layer, Gain):
                nn.init.zeros_(layer.weight)
            elif isinstance(layer, nn.Embedding):
                layer.weight.copy_(_normal(layer.weight, generator))
            elif isinstance(layer, FourierEmbedding):
                layer.redraw(generator=generator)
            elif not isinstance(layer, parametrize.ParametrizationList) and any(
                True for _ in layer.parameters(recurse=False)
            ):
                raise TypeError(f"initialise does not know the layer {type(layer).__name__}")
    return module


def _fan_in(weight: Tensor, bias: Tensor | None, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(weight[0].numel())
    for parameter in (weight,) if bias is None else (weight, bias):
        fresh = _empty(parameter, generator).uniform_(-bound, bound, generator=generator)
        parameter.copy_(fresh)


def _normal_002(weight: Tensor, bias: Tensor | None, generator: torch.Generator) -> None:
    weight.copy_(_normal(weight, generator).mul_(0.02))
    _zero(bias)


def _scaled(
    weight: Tensor, bias: Tensor | None, generator: torch.Generator, gain: float = math.sqrt(2)
) -> None:
    weight.copy_(_normal(weight, generator).mul_(gain / math.sqrt(weight[0].numel())))
    _zero(bias)


def _orthogonal(weight: Tensor, bias: Tensor | None, generator: torch.Generator) -> None:
    fresh = _empty(weight, generator)
    weight.copy_(nn.init.orthogonal_(fresh, gain=1.41, generator=generator))
    _zero(bias)


SCHEMES: dict[str, Callable[[Tensor, Tensor | None, torch.Generator], None]] = {
    "default": _fan_in,
    "normal0.02": _normal_002,
    "he": _scaled,
    "orthogonal": _orthogonal,
}
"""Name -> how a linear or convolution layer's weight and bias are drawn."""


def _empty(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=generator.device)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return _empty(like, generator).normal_(generator=generator).to(like.device)


def _zero(*parameters: Tensor | None) -> None:
    for parameter in parameters:
        if parameter is not None:
            nn.init.zeros_(parameter)


def _original(layer: nn.Module) -> Tensor:
    """The weight that is trained, below spectral normalisation if there is any."""
    holder = layer.get_submodule("parametrizations.weight") if _is_spectral(layer) else layer
    weight = holder.original if _is_spectral(layer) else holder.weight
    assert isinstance(weight, Tensor)
    return weight


def _is_spectral(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight")


def _restart_power_iterations(layer: nn.Module, generator: torch.Generator) -> None:
    if not _is_spectral(layer):
        return
    norm = layer.get_submodule("parametrizations.weight.0")
    u, v = norm.get_buffer("_u"), norm.get_buffer("_v")
    # A transposed convolution's matrix has its outputs, the second dimension of the weight, as
    # rows.
    rows_first = _original(layer).transpose(0, 1 if isinstance(layer, nn.ConvTranspose2d) else 0)
    matrix = rows_first.flatten(1)
    u.copy_(F.normalize(_normal(u, generator), dim=0))
    for _ in range(15):
        v.copy_(F.normalize(matrix.T @ u, dim=0))
        u.copy_(F.normalize(matrix @ v, dim=0))
