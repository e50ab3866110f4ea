"""A small U-Net for denoising, after DDPM (Ho et al. 2020).

On the way down each resolution has residual blocks and a strided convolution, on the way up one
block more, each fed with what the way down left behind, then nearest-neighbour upsampling and a
convolution. Self-attention stands in the middle and after the blocks of chosen resolutions.
Conditions modulate the blocks by scale and shift (Dhariwal and Nichol 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from partikel.networks.conditions import Conditioned, Conditioning, ConditionNetwork, Modulation
from partikel.networks.conv import doubled, group_norm, image_size
from partikel.networks.initialise import ZeroConv2d

NOISE_LEVEL = Conditioning(scalars=1, embedding="positional", embedding_features=256)
"""One condition, embedded as in DDPM."""

AS_CHANNELS = replace(NOISE_LEVEL, embedding_features=0)
"""The same, with as many features as there are channels."""


class Recomputing(nn.Module):
    """A network that may compute its blocks again in the backward pass instead of keeping them.

    Attributes:
        recompute: whether it does, in training.
    """

    recompute: bool

    def through(self, layer: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """``layer`` of some inputs."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(layer, *inputs, use_reentrant=False))
        return layer(*inputs)


def check_halves(size: tuple[int, int], levels: int) -> None:
    """Refuse images that cannot be halved between so many resolutions.

    Raises:
        ValueError: for those.
    """
    factor = 2 ** (levels - 1)
    if size[0] % factor or size[1] % factor:
        raise ValueError(
            f"height and width must be divisible by {factor} for {levels} multipliers, "
            f"not {size[0]}x{size[1]}"
        )


class UNet(Recomputing, Conditioned):
    """Images to images of the same shape; the "default" initialisation makes its output zero.

    Args:
        shape: (C, H, W); H and W divisible by 2 once for every multiplier but the first.
        channels: channels at full resolution; the modulating vector has four times as many entries.
        multipliers: channels at each resolution, from full resolution down by halving, in units of
            ``channels``.
        blocks: residual blocks per resolution on the way down.
        attention_resolutions: heights with attention after each block, beside the middle's; those
            that do not occur have no effect.
        dropout: probability inside residual blocks, in training mode.
        recompute: keep only what goes into each block for the backward pass and compute the rest again
            (Chen et al. 2016): the same gradients, a third more time, a fraction of the memory.
        conditions: what the network is told.
        groups: of every group norm; what suits the channels of each unless given.

    Raises:
        ValueError: the image does not fit the multipliers, or an unknown name.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 16,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 1,
        attention_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.0,
        recompute: bool = False,
        conditions: Conditioning = NOISE_LEVEL,
        *,
        groups: int | None = None,
    ) -> None:
        super().__init__(ConditionNetwork(conditions, 4 * channels))
        size = image_size(shape)
        levels = len(multipliers)
        check_halves(size, levels)
        self.recompute = recompute

        def block(before: int, after: int, attend: bool) -> _Block:
            return _Block(before, after, self.conditions.dim, dropout, attend, groups)

        self.first = nn.Conv2d(shape[0], channels, 3, padding=1)
        now, left = channels, [channels]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            attend = size[0] >> level in attention_resolutions
            for _ in range(blocks):
                self.down.append(block(now, channels * multiplier, attend))
                now = channels * multiplier
                left.append(now)
            if level + 1 < levels:
                self.down.append(Resample(now, up=False))
                left.append(now)
        self.middle = nn.ModuleList([block(now, now, True), block(now, now, False)])
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            attend = size[0] >> level in attention_resolutions
            for _ in range(blocks + 1):
                self.up.append(block(now + left.pop(), channels * multiplier, attend))
                now = channels * multiplier
            if level:
                self.up.append(Resample(now, up=True))
        self.norm = group_norm(now, groups)
        self.last = ZeroConv2d(now, shape[0], 3, padding=1)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """See :class:`Conditioned`."""
        h = self.first(x)
        left = [h]
        for layer in self.down:
            h = self.through(layer, h, e)
            left.append(h)
        for layer in self.middle:
            h = self.through(layer, h, e)
        for layer in self.up:
            beside = (left.pop(),) if isinstance(layer, _Block) else ()
            h = self.through(layer, h, e, *beside)
        return self.last(F.silu(self.norm(h)))


class UNet2D(UNet):
    """A U-Net that diffusers' UNet2DModel computes too, so that its runs become folders of diffusers.

    All group norms have one number of groups, which suits ``channels``, and the embedding of the noise
    level has ``channels`` features.

    Args:
        shape: see :class:`UNet`, as for the others.
        channels: even.
        multipliers: the first is 1.
        blocks: see :class:`UNet`.
        attention_resolutions: likewise.
        dropout: likewise.
        recompute: likewise.
        conditions: the noise level, and labels, which are told late.

    Raises:
        ValueError: as :class:`UNet`, or for what a UNet2DModel has not.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 16,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 1,
        attention_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.0,
        recompute: bool = False,
        conditions: Conditioning = AS_CHANNELS,
    ) -> None:
        if conditions.embedding_features not in (0, channels):
            raise ValueError("embedding_features are its channels: leave them out")
        conditions = replace(conditions, embedding_features=channels, late=True)
        super().__init__(
            *(shape, channels, multipliers, blocks, attention_resolutions, dropout, recompute),
            conditions,
            groups=group_norm(channels).num_groups,
        )
        wrong = not_unet2d(self)
        if wrong is not None:
            raise ValueError(f"{wrong}: choose kind 'unet'")


def not_unet2d(network: UNet) -> str | None:
    """What makes a U-Net another function than any UNet2DModel of diffusers, in a few words, or None."""
    assert isinstance(network.conditions, ConditionNetwork)
    told, channels = network.conditions.conditions.told, network.first.out_channels
    groups = {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)}
    if told.classes is not None and not told.late:
        return "its labels enter beside the noise level (a UNet2DModel adds them after its layers of time)"
    if (told.scalars, told.embedding) != (1, "positional"):
        return f"it has {told.scalars} {told.embedding} embeddings (a UNet2DModel one, positional)"
    if told.embedding_features != channels:
        count = told.embedding_features
        return (
            f"its embedding has {count} features (a UNet2DModel's as many as channels, {channels})"
        )
    if len(groups) > 1:
        return f"its group norms have {min(groups)} to {max(groups)} groups (a UNet2DModel's one number)"
    if network.norm.num_channels != channels:
        return "its multipliers do not begin with 1 (a UNet2DModel's do)"
    return None


class _Block(nn.Module):
    """x + conv(SiLU(modulate(norm(conv(SiLU(norm(x))))))), then attention where wanted."""

    def __init__(
        self,
        before: int,
        after: int,
        features: int,
        dropout: float,
        attend: bool,
        groups: int | None,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(before, groups)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = group_norm(after, groups)
        self.modulation = Modulation(features, after)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = ZeroConv2d(after, after, 3, padding=1)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.attention = Attention(after, groups) if attend else nn.Identity()

    def forward(self, x: Tensor, e: Tensor | None, beside: Tensor | None = None) -> Tensor:
        x = x if beside is None else torch.cat([x, beside], 1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        h = self.conv2(self.dropout(F.silu(self.modulation(h, e))))
        return self.attention(self.skip(x) + h)


class Attention(nn.Module):
    """One head of self-attention over all pixels, added to its input."""

    def __init__(self, channels: int, groups: int | None = None) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = ZeroConv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (B, channels, H, W) -> the same shape."""
        # Written out, since the fused kernels have neither forward-mode nor second derivatives.
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        weights = (q.mT @ k / math.sqrt(q.shape[1])).softmax(-1)
        return x + self.out((v @ weights.mT).view_as(x))


class Resample(nn.Module):
    """A strided convolution to half the resolution, or one to twice of it with pixels copied."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Resample (B, channels, H, W); no condition matters."""
        return self.conv(doubled(x) if self.up else x)
