"""Residual discriminator and generator with self-attention: SNGAN (Miyato et al. 2018), SAGAN.

SAGAN (Zhang et al. 2019) puts self-attention into the residual networks of spectral normalisation's
paper. Blocks have two 3x3 convolutions beside a 1x1 one; those of the discriminator halve the image
by average pooling, those of the generator double it by copying pixels, between the image and 4x4
pixels. Channels double with each halving, up to sixteen times as many.

Conditions modulate every normalised output, in the generator before its activation: with batch
normalisation this is the conditional batch normalisation of SAGAN. In the discriminator they
modulate the output of every convolution, the 1x1 ones included, as the GPM paper has it: its
Discriminator Flow on CelebA is ``norm="none", attention_resolutions=(), conditions=Conditioning(1)``.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from partikel.networks.activations import activation as find_activation
from partikel.networks.conditions import UNCONDITIONAL, Conditioned, Conditioning, ConditionNetwork
from partikel.networks.conv import Stages, doubled, square_side, weight_normed
from partikel.networks.initialise import Gain


class ResNetDiscriminator(Conditioned):
    """Blocks that halve the image to 4x4 pixels, one more, then a linear layer on the pixels' sum.

    Args:
        shape: (C, H, H) with H = 16, 32, 64, 128 or 256.
        width: channels of the first block.
        activation: name of the nonlinearity.
        norm: one of ``NORMS``; outputs of the first block's convolutions of the image are not
            normalised.
        attention_resolutions: heights with self-attention after each block that ends there; those
            that do not occur have no effect.
        conditions: what the network is told.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 64,
        activation: str = "leaky_relu",
        norm: str = "spectral",
        attention_resolutions: tuple[int, ...] = (32,),
        conditions: Conditioning = UNCONDITIONAL,
    ) -> None:
        super().__init__(ConditionNetwork(conditions))
        channels, side = _channels(shape, width), square_side(shape)
        self.activation = find_activation(activation)
        make = Stages(norm, self.conditions.dim, activation)
        self.blocks = nn.ModuleList()
        before = shape[0]
        for index, after in enumerate(channels):
            halve = side > 4
            side = side // 2 if halve else side
            attend = side in attention_resolutions
            self.blocks.append(_DownBlock(before, after, make, attend, index == 0, halve))
            before = after
        self.last = weight_normed(nn.Linear(before, 1), norm)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Logits (B,) of images."""
        for block in self.blocks:
            x = block(x, e)
        return self.last(self.activation(x).sum((2, 3))).squeeze(1)


class ResNetGenerator(Conditioned):
    """A linear layer to 4x4 pixels, blocks that double the image, a last convolution.

    Args:
        latent: size of z.
        shape: (C, H, H) of the images, H = 16, 32, 64, 128 or 256.
        width: channels before the last convolution.
        final_activation: nonlinearity of the image.

    The other arguments are those of ``ResNetDiscriminator``.

    Raises:
        ValueError: images of another size, or an unknown name.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, ...],
        width: int = 64,
        activation: str = "relu",
        norm: str = "spectral+batch",
        final_activation: str = "tanh",
        attention_resolutions: tuple[int, ...] = (32,),
        conditions: Conditioning = UNCONDITIONAL,
    ) -> None:
        super().__init__(ConditionNetwork(conditions))
        channels = _channels(shape, width)[::-1]
        make = Stages(norm, self.conditions.dim, activation)
        self.final_activation = find_activation(final_activation)
        self.first = nn.Sequential(
            weight_normed(nn.Linear(latent, 16 * channels[0]), norm),
            nn.Unflatten(1, (channels[0], 4, 4)),
        )
        self.blocks = nn.ModuleList(
            _UpBlock(before, after, make, 8 << i in attention_resolutions)
            for i, (before, after) in enumerate(pairwise(channels))
        )
        self.enter_last = make(nn.Identity(), width)
        self.last = weight_normed(nn.Conv2d(width, shape[0], 3, padding=1), norm)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """Images (B, C, H, H) of latents."""
        h = self.first(x)
        for block in self.blocks:
            h = block(h, e)
        return self.final_activation(self.last(self.enter_last(h, e)))


class SelfAttention(nn.Module):
    """x + γ·W_v(Σ_i β_ji W_h x_i), the identity at first (Zhang et al. 2019, equations 1 to 3).

    β_j is the softmax over pixels i of ⟨W_f x_i, W_g x_j⟩; W_f, W_g, W_h map to an eighth of the
    channels, and γ starts at zero.

    Args:
        channels: of x.
        norm: one of ``NORMS``, for the weights.
    """

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.keys, self.queries, self.values, self.out = (
            weight_normed(nn.Conv2d(i, o, 1, bias=False), norm)
            for i, o in [(channels, inner)] * 3 + [(inner, channels)]
        )
        self.gain = Gain()

    def forward(self, x: Tensor) -> Tensor:
        """Attend over all pixels: (B, channels, H, W) -> same."""
        # Written out, since the fused kernels have neither forward-mode nor second derivatives.
        f, g, h = (layer(x).flatten(2) for layer in (self.keys, self.queries, self.values))
        weights = (g.mT @ f).softmax(-1)
        mixed = (h @ weights.mT).unflatten(2, x.shape[2:])
        return x + self.gain(self.out(mixed))


class _DownBlock(nn.Module):
    """pool(conv(act(conv(act(x))))) + conv(pool(x)); the first block does not activate its input."""

    def __init__(
        self, before: int, after: int, make: Stages, attend: bool, first: bool, halve: bool
    ) -> None:
        super().__init__()
        linear = replace(make, activation="identity")
        self.enter = find_activation("identity" if first else make.activation)
        self.conv1 = make.conv(before, after, 3, raw=first)
        self.conv2 = linear.conv(after, after, 3)
        self.skip = None
        if halve or before != after:
            self.skip = linear.conv(before, after, 1, raw=first)
        self.halve = halve
        self.attention = SelfAttention(after, make.norm) if attend else nn.Identity()

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        h = self.conv2(self.conv1(self.enter(x), e), e)
        if self.halve:
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        return self.attention(h + (x if self.skip is None else self.skip(x, e)))


class _UpBlock(nn.Module):
    """conv(n(conv(up(n(x))))) + up(conv(x)) with n = activate(modulate(normalise(.)))."""

    def __init__(self, before: int, after: int, make: Stages, attend: bool) -> None:
        super().__init__()
        self.enter = make(nn.Identity(), before)
        self.conv1 = make.conv(before, after, 3)
        self.conv2 = weight_normed(nn.Conv2d(after, after, 3, padding=1), make.norm)
        self.skip = weight_normed(nn.Conv2d(before, after, 1, bias=False), make.norm)
        self.attention = SelfAttention(after, make.norm) if attend else nn.Identity()

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        h = self.conv2(self.conv1(doubled(self.enter(x, e)), e))
        return self.attention(h + doubled(self.skip(x)))


def _channels(shape: tuple[int, ...], width: int) -> list[int]:
    """Channels after each block of the discriminator, from the image to 4x4 pixels."""
    return [width * min(2**i, 16) for i in range(square_side(shape).bit_length() - 2)]
