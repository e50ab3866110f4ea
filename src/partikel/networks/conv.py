"""What convolutional networks are made of, chains of it, and a small pair for 8x8 images.

A discriminator is a chain of convolutions that halve the image and double the channels, then one
linear layer; a generator is its mirror image. Conditions modulate the output of every convolution
but the last, before its activation (``partikel.networks.modulation``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from partikel.networks.activations import activation as find_activation
from partikel.networks.embeddings import ScalarConditions
from partikel.networks.modulation import ConditionNetwork, Modulation

if TYPE_CHECKING:
    from typing_extensions import Unpack

Layer = TypeVar("Layer", bound=nn.Module)

NORMS = ("none", "batch", "group", "spectral", "spectral+batch")
"""Batch normalisation of outputs (Ioffe and Szegedy 2015) or group normalisation (Wu and He 2018),
spectral normalisation of weights (Miyato et al. 2018), batch and spectral normalisation."""

SIDES = (16, 32, 64, 128, 256)
"""Sides of the square images that DCGAN, ResNet and FastGAN are made for."""


class ConditionOptions(TypedDict, total=False):
    """What a network may be told, besides x; see :func:`condition_network`, which has the defaults."""

    scalars: int
    """S, the number of real conditions."""
    embedding: str
    """Of each scalar, "fourier" or "positional"."""
    embedding_features: int
    """e, size of each embedding; the modulating vector has 2e."""
    fourier_scale: float
    """Scale of the Fourier frequencies."""
    classes: int | None
    """Number of labels, or None."""


class ConvDiscriminator(nn.Module):
    """Images to logits: convolutions of given channels and strides, then a linear layer.

    Strides are 1 (3x3 kernels) or 2 (4x4 kernels). As in DCGAN the first convolution's output is not
    normalised. A convolution has a bias where neither normalisation nor modulation shifts its
    output; the first always has.

    Args:
        shape: (C, H, W).
        channels: of each convolution.
        strides: of each convolution.
        activation: name of the nonlinearity.
        norm: one of ``NORMS``.
        conditions: the network's conditions, see :class:`ConditionOptions`.

    Raises:
        ValueError: the image does not fit the strides, or an unknown name.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: Sequence[int],
        strides: Sequence[int],
        activation: str,
        norm: str,
        **conditions: Unpack[ConditionOptions],
    ) -> None:
        super().__init__()
        height, width = _reduced(shape, strides)
        self.conditions = condition_network(**conditions)
        make = Stages(norm, self.conditions.dim, activation)
        self.stages = nn.ModuleList()
        before = shape[0]
        for index, (after, stride) in enumerate(zip(channels, strides, strict=True)):
            self.stages.append(make.conv(before, after, 2 + stride, stride, raw=index == 0))
            before = after
        self.last = weight_normed(nn.Linear(before * height * width, 1), norm)

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Logits of images.

        Args:
            x: (B, C, H, W).
            c: (B, S), or (1, S) for the same conditions in all rows; None if S = 0.
            cond: (B,) labels, or None.

        Returns:
            (B,).

        Raises:
            ValueError: ``c`` or ``cond`` is not what the network was built for.
        """
        e = self.conditions(len(x), c, cond)
        for stage in self.stages:
            x = stage(x, e)
        return self.last(x.flatten(1)).squeeze(1)


class ConvGenerator(nn.Module):
    """Latents to images: a linear layer to the smallest image, then (transposed) convolutions.

    Strides are 2 (transposed convolution with 4x4 kernels) or 1 (3x3 convolution). All but the
    last, which makes the image, are normalised, modulated and activated.

    Args:
        latent: size of z.
        shape: (C, H, W) of the images.
        channels: of the smallest image, and of the output of each convolution but the last.
        strides: of each convolution.
        activation: name of the nonlinearity.
        norm: one of ``NORMS``.
        final_activation: nonlinearity of the image.
        conditions: the network's conditions, see :class:`ConditionOptions`.

    Raises:
        ValueError: the image does not fit the strides, or an unknown name.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, ...],
        channels: Sequence[int],
        strides: Sequence[int],
        activation: str,
        norm: str,
        final_activation: str,
        **conditions: Unpack[ConditionOptions],
    ) -> None:
        super().__init__()
        start = (channels[0], *_reduced(shape, strides))
        self.conditions = condition_network(**conditions)
        self.final_activation = find_activation(final_activation)
        make = Stages(norm, self.conditions.dim, activation)
        self.stages = nn.ModuleList([make.projection(latent, start)])
        for i, stride in enumerate(strides[:-1]):
            conv = _upward(channels[i], channels[i + 1], stride, make.bias)
            self.stages.append(make(weight_normed(conv, norm), channels[i + 1]))
        self.last = weight_normed(_upward(channels[-1], shape[0], strides[-1], True), norm)

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Images from latents.

        Args:
            x: latents z, (B, latent).
            c: (B, S), or (1, S) for the same conditions in all rows; None if S = 0.
            cond: (B,) labels, or None.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: ``c`` or ``cond`` is not what the network was built for.
        """
        e = self.conditions(len(x), c, cond)
        for stage in self.stages:
            x = stage(x, e)
        return self.final_activation(self.last(x))


class SmallDiscriminator(ConvDiscriminator):
    """Three convolutions and a linear layer, for images of 8x8 or any size divisible by 4.

    Args:
        shape: (C, H, W).
        width: channels of the first convolution; they double with each of the two halvings.

    The other arguments are those of ``ConvDiscriminator``.

    Raises:
        ValueError: the image's size is not divisible by 4, or an unknown name.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 32,
        activation: str = "leaky_relu",
        norm: str = "none",
        **conditions: Unpack[ConditionOptions],
    ) -> None:
        channels = (width, 2 * width, 4 * width)
        super().__init__(shape, channels, (1, 2, 2), activation, norm, **conditions)


class SmallGenerator(ConvGenerator):
    """The mirror image of ``SmallDiscriminator``: a linear layer, two doublings, a convolution.

    Args:
        latent: size of z.
        shape: (C, H, W) of the images; H and W divisible by 4.
        width: channels at full size; twice and four times that before.

    The other arguments are those of ``ConvGenerator``.

    Raises:
        ValueError: the image's size is not divisible by 4, or an unknown name.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, ...],
        width: int = 32,
        activation: str = "relu",
        norm: str = "batch",
        final_activation: str = "tanh",
        **conditions: Unpack[ConditionOptions],
    ) -> None:
        channels = (4 * width, 2 * width, width)
        super().__init__(
            latent, shape, channels, (2, 2, 1), activation, norm, final_activation, **conditions
        )


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


def condition_network(
    scalars: int = 0,
    embedding: str = "fourier",
    embedding_features: int = 128,
    fourier_scale: float = 16.0,
    classes: int | None = None,
) -> ConditionNetwork:
    """The GPM paper's (appendix D.2): a modulating vector twice as large as one embedding.

    Arguments as in :class:`ConditionOptions`.

    Raises:
        ValueError: an unknown embedding, or a number out of range.
    """
    conditions = ScalarConditions(scalars, embedding_features, embedding, fourier_scale, classes)
    return ConditionNetwork(conditions, 2 * embedding_features)


def weight_normed(layer: Layer, norm: str) -> Layer:
    """The layer, its weight spectrally normalised where ``norm`` says so."""
    if "spectral" in _checked(norm):
        spectral_norm(layer)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Up to 32 groups of at least 4 channels."""
    fits = (g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels // g >= 4)
    return nn.GroupNorm(next(fits, 1), channels)


def doubled(x: Tensor) -> Tensor:
    """Twice the height and width, every pixel copied."""
    return F.interpolate(x, scale_factor=2.0)


def _upward(before: int, after: int, stride: int, bias: bool) -> nn.Module:
    """A convolution that multiplies the image's size by its stride."""
    if stride == 1:
        return nn.Conv2d(before, after, 3, padding=1, bias=bias)
    return nn.ConvTranspose2d(before, after, 4, stride, padding=1, bias=bias)


def _checked(norm: str) -> str:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not '{norm}'")
    return norm


def _reduced(shape: tuple[int, ...], strides: Sequence[int]) -> tuple[int, int]:
    """Height and width after all strides."""
    height, width = image_size(shape)
    factor = math.prod(strides)
    if height % factor or width % factor:
        raise ValueError(f"height and width must be divisible by {factor}, not {height}x{width}")
    return height // factor, width // factor


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
