"""DCGAN (Radford et al. 2016) for square images of 16 to 256, with the GPM paper's modulation by time.

Convolutions (4x4, stride 2) halve the image down to 4x4 pixels and double the channels, up to eight
times as many. For 64x64 that is the original. For 32x32 the discriminator's first convolution and
the generator's last keep the image's size (3x3, stride 1), as in the GPM paper; 16x16 has one
convolution less, 128x128 one more, 256x256 two more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from partikel.networks.conv import ConditionOptions, ConvDiscriminator, ConvGenerator, square_side

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DCGANDiscriminator(ConvDiscriminator):
    """Convolutions of (1, 2, 4, 8, ...)·width channels, then a linear layer on 4x4 pixels.

    Args:
        shape: (C, H, H) with H = 16, 32, 64, 128 or 256.
        width: channels of the first convolution.
        norm: "batch" (the original), "none" (Discriminator Flow), or another one of ``NORMS``.

    The other arguments are those of ``ConvDiscriminator``.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 64,
        activation: str = "leaky_relu",
        norm: str = "batch",
        **conditions: Unpack[ConditionOptions],
    ) -> None:
        multipliers, strides = _stages(shape)
        channels = [width * multiplier for multiplier in multipliers]
        super().__init__(shape, channels, strides, activation, norm, **conditions)


class DCGANGenerator(ConvGenerator):
    """The mirror image: (up to) 8·width channels on 4x4 pixels, then convolutions.

    Args:
        latent: size of z.
        shape: (C, H, H) of the images, H = 16, 32, 64, 128 or 256.
        width: channels before the last convolution.

    The other arguments are those of ``ConvGenerator``.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, ...],
        width: int = 64,
        activation: str = "relu",
        norm: str = "batch",
        final_activation: str = "tanh",
        **conditions: Unpack[ConditionOptions],
    ) -> None:
        multipliers, strides = _stages(shape)
        channels = [width * multiplier for multiplier in reversed(multipliers)]
        super().__init__(
            latent, shape, channels, strides[::-1], activation, norm, final_activation, **conditions
        )


def _stages(shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Channels in units of the width, and strides, from the image's side inwards."""
    side = square_side(shape)
    halvings = side.bit_length() - 3  # down to 4
    strides = [2] * halvings if side > 32 else [1] + [2] * halvings
    return [min(2**i, 8) for i in range(len(strides))], strides
