"""What convolutional networks are made of: stages, norms, and the sizes of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from partikel.networks.activations import activation as find_activation
from partikel.networks.conditions import Modulation

Layer = TypeVar("Layer", bound=nn.Module)

NORMS = ("none", "batch", "group", "spectral", "spectral+batch")
"""Batch normalisation of outputs (Ioffe and Szegedy 2015) or group normalisation (Wu and He 2018),
spectral normalisation of weights (Miyato et al. 2018), batch and spectral normalisation."""

SIDES = (16, 32, 64, 128, 256)
"""Sides of the square images that DCGAN, ResNet and FastGAN are made for."""


class Stage(nn.Module):
    """A layer, normalisation, modulation and activation of its output, in this order.

    Args:
        layer: gives (B, channels, H, W).
        channels: of the layer's output.
        norm: one of ``NORMS``; what it says of weights is not done here (``weight_normed``).
        features: size of the modulating vector; 0 = unconditional.
        activation: name of the nonlinearity.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(
        self,
        layer: nn.Module,
        channels: int,
        *,
        norm: str,
        features: int,
        activation: str = "identity",
    ) -> None:
        super().__init__()
        self.layer = layer
        self.norm = nn.Identity()
        if "batch" in _checked(norm):
            self.norm = nn.BatchNorm2d(channels)
        elif norm == "group":
            self.norm = group_norm(channels)
        self.modulation = Modulation(features, channels)
        self.activation = find_activation(activation)

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Apply all of it to x, under the modulating vector e (B, features) or (1, features)."""
        return self.activation(self.modulation(self.norm(self.layer(x)), e))


@dataclass(frozen=True)
class Stages:
    """Makes the stages of a network, all of one kind: called as ``stages(layer, channels)``.

    Attributes:
        norm: one of ``NORMS``.
        features: size of the modulating vector; 0 = unconditional.
        activation: name of the nonlinearity.
    """

    norm: str
    features: int
    activation: str = "identity"

    @property
    def bias(self) -> bool:
        """Whether a layer needs a bias: not where its stage shifts the channels of its output."""
        return not (self.features > 0 or "batch" in self.norm or self.norm == "group")

    def __call__(self, layer: nn.Module, channels: int, *, raw: bool = False) -> Stage:
        """The stage of a layer; a ``raw`` one's output is not normalised."""
        norm = "none" if raw else self.norm
        return Stage(layer, channels, norm=norm, features=self.features, activation=self.activation)

    def conv(
        self, before: int, after: int, size: int, stride: int = 1, *, raw: bool = False
    ) -> Stage:
        """The stage of a convolution that keeps the image's size, or divides it by the stride.

        Args:
            before: channels of its input.
            after: channels of its output.
            size: of the kernel.
            stride: of the convolution.
            raw: with a bias, and no normalisation of the output.
        """
        bias = raw or self.bias
        conv = nn.Conv2d(before, after, size, stride, padding=(size - 1) // 2, bias=bias)
        return self(weight_normed(conv, self.norm), after, raw=raw)

    def projection(self, latent: int, shape: tuple[int, int, int]) -> Stage:
        """The stage of a linear layer from latents to the smallest image, of this shape."""
        project = nn.Linear(latent, math.prod(shape), bias=self.bias)
        layer = nn.Sequential(weight_normed(project, self.norm), nn.Unflatten(1, shape))
        return self(layer, shape[0])


def weight_normed(layer: Layer, norm: str) -> Layer:
    """The layer, its weight spectrally normalised where ``norm`` says so."""
    if "spectral" in _checked(norm):
        spectral_norm(layer)
    return layer


def group_norm(channels: int, groups: int | None = None) -> nn.GroupNorm:
    """Of so many groups; up to 32 of at least 4 channels unless given."""
    fits = (g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels // g >= 4)
    return nn.GroupNorm(next(fits, 1) if groups is None else groups, channels)


def doubled(x: Tensor) -> Tensor:
    """Twice the height and width, every pixel copied."""
    return F.interpolate(x, scale_factor=2.0)


def _checked(norm: str) -> str:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not '{norm}'")
    return norm


def image_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of images of a shape.

    Raises:
        ValueError: ``shape`` is not (C, H, W).
    """
    if len(shape) != 3:
        raise ValueError(f"images of shape (C, H, W) are needed, not {tuple(shape)}")
    return shape[1], shape[2]


def square_side(shape: tuple[int, ...]) -> int:
    """Side of square images of a shape, one of ``SIDES``.

    Raises:
        ValueError: ``shape`` is not (C, H, W), or of another size.
    """
    height, width = image_size(shape)
    if height != width or height not in SIDES:
        able = ", ".join(f"{side}x{side}" for side in SIDES)
        raise ValueError(f"images must have one of the sizes {able}, not {height}x{width}")
    return height
