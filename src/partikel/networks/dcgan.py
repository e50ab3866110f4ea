"""DCGAN (Radford et al. 2016) with the GPM paper's modulation by time, and its relative for small images.

A discriminator is a chain of convolutions that halve the image and double the channels, up to eight
times as many, then one linear layer; a generator is its mirror image. Conditions modulate the output
of every convolution but the last, before its activation (``partikel.networks.conditions``).

For square images of 16 to 256 the strides are DCGAN's: convolutions (4x4, stride 2) halve the image
down to 4x4 pixels. For 64x64 that is the original. For 32x32 the discriminator's first convolution
and the generator's last keep the image's size (3x3, stride 1), as in the GPM paper; 16x16 has one
convolution less, 128x128 one more, 256x256 two more. With the strides :data:`SMALL` the same chain
takes images of 8x8, or any size divisible by 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from partikel.networks.activations import activation as find_activation
from partikel.networks.conditions import UNCONDITIONAL, Conditioned, Conditioning, ConditionNetwork
from partikel.networks.conv import Stages, image_size, square_side, weight_normed

SMALL = (1, 2, 2)
"""Strides for small images: three convolutions, of which two halve."""


class ConvDiscriminator(Conditioned):
    """Convolutions of (1, 2, 4, 8, 8, ...)·width channels, then a linear layer.

    As in DCGAN the first convolution's output is not normalised. A convolution has a bias where
    neither normalisation nor modulation shifts its output; the first always has.

    Args:
        shape: (C, H, W).
        width: channels of the first convolution.
        strides: of each convolution, 1 (3x3 kernels) or 2 (4x4 kernels); None for DCGAN's, of
            (C, H, H) with H = 16, 32, 64, 128 or 256.
        activation: name of the nonlinearity.
        norm: "batch" (the original), "none" (Discriminator Flow), or another one of ``NORMS``.
        conditions: what the network is told.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 64,
        strides: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        norm: str = "batch",
        conditions: Conditioning = UNCONDITIONAL,
    ) -> None:
        super().__init__(ConditionNetwork(conditions))
        strides, channels, size = _chain(shape, width, strides)
        make = Stages(norm, self.conditions.dim, activation)
        self.stages = nn.ModuleList(
            make.conv(before, after, 2 + stride, stride, raw=index == 0)
            for index, (before, after, stride) in enumerate(
                zip((shape[0], *channels), channels, strides, strict=False)
            )
        )
        self.last = weight_normed(nn.Linear(channels[-1] * math.prod(size), 1), norm)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Logits (B,) of images."""
        for stage in self.stages:
            x = stage(x, e)
        return self.last(x.flatten(1)).squeeze(1)


class ConvGenerator(Conditioned):
    """The mirror image: a linear layer to the smallest image, then (transposed) convolutions.

    All but the last, which makes the image, are normalised, modulated and activated.

    Args:
        latent: size of z.
        shape: (C, H, W) of the images.
        width: channels before the last convolution.
        strides: of the mirror image; 2 is a transposed convolution with 4x4 kernels here.
        final_activation: nonlinearity of the image.

    The other arguments are those of ``ConvDiscriminator``.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, ...],
        width: int = 64,
        strides: Sequence[int] | None = None,
        activation: str = "relu",
        norm: str = "batch",
        final_activation: str = "tanh",
        conditions: Conditioning = UNCONDITIONAL,
    ) -> None:
        super().__init__(ConditionNetwork(conditions))
        strides, channels, size = _chain(shape, width, strides)
        channels, strides = channels[::-1], strides[::-1]
        make = Stages(norm, self.conditions.dim, activation)
        self.final_activation = find_activation(final_activation)
        self.stages = nn.ModuleList([make.projection(latent, (channels[0], *size))])
        for (before, after), stride in zip(pairwise(channels), strides, strict=False):
            conv = _upward(before, after, stride, make.bias)
            self.stages.append(make(weight_normed(conv, norm), after))
        self.last = weight_normed(_upward(channels[-1], shape[0], strides[-1], True), norm)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Images (B, C, H, W) of latents."""
        for stage in self.stages:
            x = stage(x, e)
        return self.final_activation(self.last(x))


def _chain(
    shape: tuple[int, ...], width: int, strides: Sequence[int] | None
) -> tuple[Sequence[int], list[int], tuple[int, int]]:
    """Strides and channels from the image inwards, and the height and width that they leave."""
    if strides is None:
        side = square_side(shape)
        halvings = side.bit_length() - 3  # down to 4
        strides = [2] * halvings if side > 32 else [1] + [2] * halvings
    factor = math.prod(strides)
    height, across = image_size(shape)
    if height % factor or across % factor:
        raise ValueError(f"height and width must be divisible by {factor}, not {height}x{across}")
    channels = [width * min(2**i, 8) for i in range(len(strides))]
    return strides, channels, (height // factor, across // factor)


def _upward(before: int, after: int, stride: int, bias: bool) -> nn.Module:
    """A convolution that multiplies the image's size by its stride."""
    if stride == 1:
        return nn.Conv2d(before, after, 3, padding=1, bias=bias)
    return nn.ConvTranspose2d(before, after, 4, stride, padding=1, bias=bias)
