"""FastGAN (Liu et al. 2021): skip-layer excitation and gated units, for square images of 16 to 256.

The paper's networks are for images of 256 and more; as in the GPM paper, smaller images lose the
layers at higher resolutions. The generator's convolutions end in gated linear units, and its
features at each resolution r from 64 up are excited by those at r/16. The discriminator's blocks
halve the image by a convolution beside an average, and its features at r/8 are excited by those at r.
Where an image is too small for either, the largest and smallest features are paired. Two things of
the paper's are left out: noise between the layers, because a generator here is a function of z, and
the decoders of its self-supervised loss.
"""

from __future__ import annotations

from itertools import cycle

import torch.nn.functional as F
from torch import Tensor, nn

from partikel.networks.activations import activation as find_activation
from partikel.networks.conditions import UNCONDITIONAL, Conditioned, Conditioning, ConditionNetwork
from partikel.networks.conv import Stage, Stages, doubled, square_side, weight_normed


class FastGANDiscriminator(Conditioned):
    """Blocks that halve the image down to 4x4 pixels, then a 1x1 convolution and a linear layer.

    Args:
        shape: (C, H, H) with H = 16, 32, 64, 128 or 256.
        width: channels at 64x64 pixels; they double with each halving, up to 16·width at 4x4.
        activation: name of the nonlinearity.
        norm: one of ``NORMS``; the first convolution's output is not normalised.
        conditions: what the network is told.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 32,
        activation: str = "leaky_relu",
        norm: str = "batch",
        conditions: Conditioning = UNCONDITIONAL,
    ) -> None:
        super().__init__(ConditionNetwork(conditions))
        side = square_side(shape)
        make = Stages(norm, self.conditions.dim, activation)
        channels = {r: max(1, 64 * width // r) for r in _sides(side)}
        self.sides = [r for r in reversed(_sides(side)) if r < side]
        # Where excited -> by which.
        self.sources = {r // 8: r for r in self.sides if r >= 32} or {4: side // 2}
        self.first = make.conv(shape[0], channels[side], 3, raw=True)
        self.blocks = nn.ModuleList(
            _DownBlock(channels[2 * r], channels[r], make) for r in self.sides
        )
        self.excitations = _excitations(self.sources, channels, norm)
        self.mix = make.conv(channels[4], channels[4], 1)
        self.last = weight_normed(nn.Linear(16 * channels[4], 1), norm)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Logits (B,) of images."""
        h = self.first(x, e)
        seen: dict[int, Tensor] = {}
        for side, block in zip(self.sides, self.blocks, strict=True):
            h = block(h, e)
            if side in self.sources:
                h = self.excitations[str(side)](h, seen[self.sources[side]])
            seen[side] = h
        return self.last(self.mix(h, e).flatten(1)).squeeze(1)


class FastGANGenerator(Conditioned):
    """A linear layer to 4x4 pixels, then upsampling, convolutions and gated linear units.

    Args:
        latent: size of z.
        shape: (C, H, H) of the images, H = 16, 32, 64, 128 or 256.
        width: half the channels at 64x64 pixels and at 32x32; those at 4x4 are 16·width.
        norm: one of ``NORMS``.
        final_activation: nonlinearity of the image.

    The other arguments are those of ``FastGANDiscriminator``.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, ...],
        width: int = 32,
        norm: str = "batch",
        final_activation: str = "tanh",
        conditions: Conditioning = UNCONDITIONAL,
    ) -> None:
        super().__init__(ConditionNetwork(conditions))
        side = square_side(shape)
        make = Stages(norm, self.conditions.dim)
        self.final_activation = find_activation(final_activation)
        channels = {r: max(1, (64 if r <= 32 else 128) * width // r) for r in _sides(side)}
        self.sides = _sides(side)[1:]
        # Where excited -> by which.
        self.sources = {r: r // 16 for r in self.sides if r >= 64} or {side: 4}
        # Stages have twice the channels, which the gate halves.
        self.first = make.projection(latent, (2 * channels[4], 4, 4))

        def conv(before: int, after: int) -> Stage:
            return make.conv(channels[before], 2 * channels[after], 3)

        # Blocks of two convolutions and of one take turns, beginning with two at 8x8.
        self.blocks = nn.ModuleList(
            _UpBlock([conv(r // 2, r), conv(r, r)] if two else [conv(r // 2, r)])
            for r, two in zip(self.sides, cycle((True, False)), strict=False)
        )
        self.excitations = _excitations(self.sources, channels, norm)
        self.last = weight_normed(nn.Conv2d(channels[side], shape[0], 3, padding=1), norm)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Images (B, C, H, H) of latents."""
        h = F.glu(self.first(x, e), 1)
        seen = {4: h}
        for side, block in zip(self.sides, self.blocks, strict=True):
            h = block(h, e)
            if side in self.sources:
                h = self.excitations[str(side)](h, seen[self.sources[side]])
            seen[side] = h
        return self.final_activation(self.last(h))


class SkipLayerExcitation(nn.Module):
    """h -> h · sigmoid(W₂ act(W₁ pool(source))), one factor per channel (Liu et al. 2021, eq. 2).

    The source is averaged to 4x4 pixels, W₁ is a 4x4 convolution to one, W₂ a 1x1 convolution.

    Args:
        source: channels of the features that excite.
        channels: of the features that are excited.
        side: of the former, a multiple of 4.
        norm: one of ``NORMS``, for the weights.
    """

    def __init__(self, source: int, channels: int, side: int, norm: str) -> None:
        super().__init__()
        self.factor = side // 4
        self.squeeze = weight_normed(nn.Conv2d(source, channels, 4, bias=False), norm)
        self.excite = weight_normed(nn.Conv2d(channels, channels, 1, bias=False), norm)

    def forward(self, h: Tensor, source: Tensor) -> Tensor:
        """Scale h (B, channels, H, W) by what the source (B, source, side, side) tells."""
        squeezed = self.squeeze(F.avg_pool2d(source, self.factor))
        return h * self.excite(F.leaky_relu(squeezed, 0.2)).sigmoid()


class _UpBlock(nn.Module):
    """Twice the size, then convolutions, each of them gated: a, b -> a·sigmoid(b)."""

    def __init__(self, stages: list[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        h = doubled(x)
        for stage in self.stages:
            h = F.glu(stage(h, e), 1)
        return h


class _DownBlock(nn.Module):
    """The mean of two halvings: convolutions of strides 2 and 1, and a 1x1 one of the average."""

    def __init__(self, before: int, after: int, make: Stages) -> None:
        super().__init__()
        self.main = nn.ModuleList([make.conv(before, after, 4, 2), make.conv(after, after, 3)])
        self.direct = make.conv(before, after, 1)

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        h = x
        for stage in self.main:
            h = stage(h, e)
        return (h + self.direct(F.avg_pool2d(x, 2), e)) / 2


def _excitations(sources: dict[int, int], channels: dict[int, int], norm: str) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            str(side): SkipLayerExcitation(channels[source], channels[side], source, norm)
            for side, source in sources.items()
        }
    )


def _sides(side: int) -> list[int]:
    """4, 8, ..., side."""
    return [2**i for i in range(2, side.bit_length())]
