"""R3GAN's pair: residual networks without normalisation (Huang et al. 2024, config E).

Both are chains of stages, one a resolution from 4x4 pixels to the image's, each of a transition (bilinear
resampling, and a 1x1 convolution where the number of channels changes) and of residual blocks with an
inverted bottleneck: 1x1 convolution to twice the channels, 3x3 convolution in groups of 16, 1x1 convolution
back. In the place of a transition the generator begins with learned maps of 4x4 pixels, scaled by a linear
function of z, and the discriminator ends in one number of each map and a linear layer.

Nothing is normalised. By fix-up initialisation (Zhang et al. 2019) a block's last convolution starts at
zero and the two others are He's, times L^(-1/4) of L blocks: at first both networks are linear.

Conditions are not modulated: the generator's are appended to z, the discriminator's give a vector whose
product with the features is added to the logit (projection, Miyato and Koyama 2018). The paper's loss is
``objective="relativistic"`` with the penalties R1 and R2 (``GradientPenalty``, at "real" and at "fake").
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partikel.networks.activations import activation as find_activation
from partikel.networks.conditions import UNCONDITIONAL, Conditioned, Conditioning, ConditionNetwork
from partikel.networks.conv import square_side
from partikel.networks.initialise import ZeroConv2d, starts_with

FULL = 32
"""Side up to which stages have all channels; beyond it they have half as many with each doubling."""
_GROUP = 16  # channels of a group
_WIDER = 2  # channels inside of a block, in units of those outside


class R3GANDiscriminator(Conditioned):
    """Stages that halve the image down to 4x4 pixels, then a linear layer; at first linear in x.

    The paper's network for images of 256x256, of 23.0 million weights, is the default.

    Args:
        shape: (C, H, H) with H = 16, 32, 64, 128 or 256.
        width: channels of stages up to 32x32.
        blocks: residual blocks of a stage.
        activation: name of the nonlinearity.
        conditions: what the network is told.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 768,
        blocks: int = 2,
        activation: str = "leaky_relu",
        conditions: Conditioning = UNCONDITIONAL,
    ) -> None:
        super().__init__(ConditionNetwork(conditions))
        channels = _channels(shape, width)[::-1]
        self.enter = starts_with(nn.Conv2d(shape[0], channels[0], 1, bias=False), 1)
        self.stages = _stages(channels, blocks, activation)
        self.collect = starts_with(
            nn.Conv2d(channels[-1], channels[-1], 4, groups=channels[-1], bias=False), 1
        )
        self.last = starts_with(nn.Linear(channels[-1], 1, bias=False), 1)
        told = self.conditions.dim
        self.told = starts_with(nn.Linear(told, channels[-1], bias=False), 1) if told else None

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Logits (B,) of images."""
        h = self.enter(x)
        for index, stage in enumerate(self.stages):
            h = stage(F.avg_pool2d(h, 2) if index else h)  # bilinear where every pixel is halved
        h = self.collect(h).flatten(1)
        logits = self.last(h).squeeze(1)
        if self.told is None or e is None:
            return logits
        return logits + (self.told(e) * h).mean(1) * math.sqrt(h.shape[1])


class R3GANGenerator(Conditioned):
    """4x4 learned maps that z scales, then stages that double the image; at first linear in z.

    Args:
        latent: size of z; 64 in the paper.
        shape: (C, H, H) of the images, H = 16, 32, 64, 128 or 256.
        final_activation: nonlinearity of the image; the paper has none.

    The other arguments are those of :class:`R3GANDiscriminator`.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, ...],
        width: int = 768,
        blocks: int = 2,
        activation: str = "leaky_relu",
        final_activation: str = "identity",
        conditions: Conditioning = UNCONDITIONAL,
    ) -> None:
        super().__init__(ConditionNetwork(conditions))
        channels = _channels(shape, width)
        self.final_activation = find_activation(final_activation)
        given = latent + self.conditions.dim
        self.scale = starts_with(nn.Linear(given, channels[0], bias=False), 1)
        # the maps, each times a number: a convolution of one pixel, of a channel each
        maps = nn.ConvTranspose2d(channels[0], channels[0], 4, groups=channels[0], bias=False)
        self.maps = starts_with(maps, 4)
        self.stages = _stages(channels, blocks, activation)
        self.leave = starts_with(nn.Conv2d(channels[-1], shape[0], 1, bias=False), 1)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Images (B, C, H, H) of latents."""
        if e is not None:
            x = torch.cat([x, e.expand(x.shape[0], -1)], 1)
        h = self.maps(self.scale(x)[..., None, None])
        for index, stage in enumerate(self.stages):
            # a 1x1 convolution and resampling commute; the smaller image is the cheaper one
            h = stage(h, doubles=index > 0)
        return self.final_activation(self.leave(h))


class _Stage(nn.Module):
    """A change of channels where there is one, and residual blocks."""

    def __init__(self, before: int, after: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        change = nn.Conv2d(before, after, 1, bias=False)
        self.change = nn.Identity() if before == after else starts_with(change, 1)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, doubles: bool = False) -> Tensor:
        x = self.change(x)
        if doubles:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        for block in self.blocks:
            x = block(x)
        return x


class _Block(nn.Module):
    """x + conv(act(conv(act(conv(x))))), at first the identity."""

    def __init__(self, channels: int, count: int, activation: str) -> None:
        super().__init__()
        inner = _WIDER * channels
        sizes = (size for size in range(_GROUP, inner) if inner % size == 0)
        groups = inner // next(sizes, inner)
        gain = math.sqrt(2) * count**-0.25
        self.activation = find_activation(activation)
        self.conv1 = starts_with(nn.Conv2d(channels, inner, 1), gain)
        self.conv2 = starts_with(nn.Conv2d(inner, inner, 3, padding=1, groups=groups), gain)
        self.conv3 = ZeroConv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.activation(self.conv1(x)))
        return x + self.conv3(self.activation(h))


def _stages(channels: list[int], blocks: int, activation: str) -> nn.ModuleList:
    count = len(channels) * blocks
    return nn.ModuleList(
        _Stage(before, after, [_Block(after, count, activation) for _ in range(blocks)])
        for before, after in zip([channels[0], *channels], channels, strict=False)
    )


def _channels(shape: tuple[int, ...], width: int) -> list[int]:
    """Channels of the generator's stages, from 4x4 pixels to the image."""
    sides = (4 << level for level in range(square_side(shape).bit_length() - 2))
    return [max(1, width * FULL // max(side, FULL)) for side in sides]
