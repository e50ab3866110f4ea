"""DCGAN (Radford et al. 2016) for 32x32 and 64x64 images, with the GPM paper's modulation by time.

At 32x32 the discriminator's first convolution and the generator's last keep the image's size (3x3,
stride 1); at 64x64 they halve and double it (4x4, stride 2). In between, three 4x4 convolutions
lead to (from) 4x4 pixels.
"""

from __future__ import annotations

from partikel.networks.conv import ConvDiscriminator, ConvGenerator, image_size


class DCGANDiscriminator(ConvDiscriminator):
    """Four convolutions of (1, 2, 4, 8)·width channels, then a linear layer on 4x4 pixels.

    Args:
        shape: (C, 32, 32) or (C, 64, 64).
        width: channels of the first convolution.
        norm: "batch" (the original), "none" (Discriminator Flow), "spectral" or "spectral+batch".

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
        scalars: int = 0,
        embedding: str = "fourier",
        embedding_features: int = 128,
        fourier_scale: float = 16.0,
        classes: int | None = None,
    ) -> None:
        super().__init__(
            shape,
            (width, 2 * width, 4 * width, 8 * width),
            (_outer_stride(shape), 2, 2, 2),
            activation,
            norm,
            scalars,
            embedding,
            embedding_features,
            fourier_scale,
            classes,
        )


class DCGANGenerator(ConvGenerator):
    """The mirror image: 8·width channels on 4x4 pixels, then four convolutions.

    Args:
        latent: size of z.
        shape: (C, 32, 32) or (C, 64, 64) of the images.
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
        scalars: int = 0,
        embedding: str = "fourier",
        embedding_features: int = 128,
        fourier_scale: float = 16.0,
        classes: int | None = None,
    ) -> None:
        super().__init__(
            latent,
            shape,
            (8 * width, 4 * width, 2 * width, width),
            (2, 2, 2, _outer_stride(shape)),
            activation,
            norm,
            final_activation,
            scalars,
            embedding,
            embedding_features,
            fourier_scale,
            classes,
        )


def _outer_stride(shape: tuple[int, ...]) -> int:
    size = image_size(shape)
    if size not in ((32, 32), (64, 64)):
        raise ValueError(f"DCGAN is for 32x32 or 64x64 images, not {size[0]}x{size[1]}")
    return size[0] // 32
