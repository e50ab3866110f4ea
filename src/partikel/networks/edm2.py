"""EDM2's U-Net, whose layers keep magnitudes (Karras et al. 2024, config G).

Signals, weights and updates have magnitude 1 by construction: every weight vector is divided by its length
where it is used, so that a layer's output is as large as its input, and sums, concatenations and
nonlinearities divide by what they would enlarge a signal of unit variance by. There are no biases and no
learned norms; the input has a channel of ones beside it, and what may be small or large is a :class:`Gain`,
a number that starts at zero.

In training the stored weights are brought back to unit magnitude after every update as well
(:func:`force_weights`): the gradient is orthogonal to a weight that is divided by its length, so that steps
would only lengthen it, and each later step would turn it less. With the length forced, Adam's learning rate
is the relative size of an update.

The magnitude-preserving Fourier features are the sines and cosines of the other networks, times √2: of
length exactly one for each condition, where the paper's random phases give it on average. The uncertainty
by which the paper weighs its loss is a matter of the loss, and not here.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partikel.networks.conditions import (
    Conditioned,
    Conditioning,
    Conditions,
    ScalarConditions,
    looked_up,
)
from partikel.networks.conv import doubled, image_size
from partikel.networks.initialise import Gain, starts_with
from partikel.networks.unet import Recomputing, check_halves

AS_CHANNELS = Conditioning(scalars=1, fourier_scale=1.0, embedding_features=0)
"""One condition, by as many features as there are channels."""

RESIDUAL, SKIP, TOLD = 0.3, 0.5, 0.5
"""Shares of a block's branch in its sum, of what the way down left, and of the label: those of the paper."""
LARGEST = 256.0
"""Bound on what a block hands on."""
_EPSILON = 1e-4
_HEAD = 64  # channels of a head of attention, as in the paper
_SILU = 0.596  # root mean square of SiLU of a normal variable


class Forced(nn.Module):
    """A layer whose weight vectors, one for each output, are used with length 1, whatever is stored."""

    weight: Tensor

    def unit(self) -> Tensor:
        """The weight in use, in the shape of the stored one."""
        each = tuple(range(1, self.weight.ndim))
        return F.normalize(self.weight, dim=each, eps=_EPSILON)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def force(self) -> None:
        """Give the stored weight the magnitude 1, vectors the length √fan_in."""
        self.weight.copy_(self.unit() * math.sqrt(self.weight[0].numel()))


class ForcedLinear(Forced, nn.Linear):
    """Without bias.

    Args:
        before: entries of the input.
        after: of the output.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, bias=False)
        starts_with(self, math.sqrt(before))

    def forward(self, input: Tensor) -> Tensor:
        """(..., before) -> (..., after)."""
        return F.linear(input, self.unit())


class ForcedConv2d(Forced, nn.Conv2d):
    """Of odd size, without bias; keeps the image's size.

    Args:
        before: channels of the input.
        after: of the output.
        size: of the kernel.
    """

    def __init__(self, before: int, after: int, size: int) -> None:
        super().__init__(before, after, size, padding=size // 2, bias=False)
        starts_with(self, math.sqrt(before) * size)

    def forward(self, input: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H, W)."""
        return self._conv_forward(input, self.unit(), None)


def force_weights(module: nn.Module) -> bool:
    """Bring the stored weights of all :class:`Forced` layers to magnitude 1, in place.

    The trainer does so before the first update and after each; a loop of one's own calls it after each step
    of the optimiser. It changes no output. The paper does it in each forward of training, which comes to the
    same, but derivatives taken forward (``torch.func.jvp``) cannot pass through a weight that is written to.

    Returns:
        Whether there are any.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Forced)]
    for layer in layers:
        layer.force()
    return bool(layers)


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """Each x divided by its root mean square along a dimension; computed in float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    size = (wide.square().mean(dim, keepdim=True) + _EPSILON**2).rsqrt()
    return (wide * size).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU, of magnitude 1 where x is normal."""
    return F.silu(x) / _SILU


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1-share)·a + share·b, of magnitude 1 where a and b have it and are uncorrelated.

    Args:
        a: any shape.
        b: the same.
        share: in [0, 1].
    """
    size = math.hypot(1 - share, share)
    return a * ((1 - share) / size) + b * (share / size)


def mp_cat(a: Tensor, b: Tensor, share: float = SKIP) -> Tensor:
    """Channels of a and b, of magnitude 1, b contributing a share whatever the numbers of channels are.

    Args:
        a: (B, C_a, H, W).
        b: (B, C_b, H, W).
        share: in [0, 1].

    Returns:
        (B, C_a + C_b, H, W).
    """
    whole = math.sqrt((a.shape[1] + b.shape[1]) / (share**2 + (1 - share) ** 2))
    parts = ((a, 1 - share), (b, share))
    return torch.cat([x * (whole * part / math.sqrt(x.shape[1])) for x, part in parts], 1)


class EDM2UNet(Recomputing, Conditioned):
    """Images to images of the same shape; at first its output is zero, and conditions do not matter.

    The paper's sizes have 128 (XS), 192 (S), 256 (M), 320 (L), 384 (XL) or 448 (XXL) channels, on its latents
    of 64x64. It is trained with large learning rates (0.01) and an average of a given width
    (``ema.sigma_rel``).

    Args:
        shape: (C, H, W); H and W divisible by 2 once for every multiplier but the first.
        channels: channels at full resolution.
        multipliers: channels at each resolution, from full resolution down by halving, in units of
            ``channels``.
        blocks: residual blocks per resolution on the way down, one more on the way up.
        attention_resolutions: heights with attention after each of these, beside the middle's.
        dropout: probability inside residual blocks, in training mode.
        recompute: compute blocks again in the backward pass, see :class:`partikel.networks.UNet`.
        conditions: what the network is told; no ``embedding_features`` are as many as channels.

    Raises:
        ValueError: the image does not fit the multipliers, or an unknown name.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 3, 4),
        blocks: int = 3,
        attention_resolutions: tuple[int, ...] = (16, 8),
        dropout: float = 0.0,
        recompute: bool = False,
        conditions: Conditioning = AS_CHANNELS,
    ) -> None:
        features = conditions.embedding_features or channels + channels % 2
        told = _Told(replace(conditions, embedding_features=features), channels * max(multipliers))
        super().__init__(told)
        check_halves(image_size(shape), len(multipliers))
        self.recompute = recompute

        def block(before: int, level: int, attend: bool | None = None, **others: bool) -> _Block:
            if attend is None:
                attend = shape[1] >> level in attention_resolutions
            after = before if others.get("resample") else channels * multipliers[level]
            return _Block(before, after, told.dim, dropout, attend, **others)

        now = channels * multipliers[0]
        self.first = ForcedConv2d(shape[0] + 1, now, 3)
        left = [now]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(block(now, level, False, resample=True))
                left.append(now)
            for _ in range(blocks):
                self.down.append(block(now, level))
                now = channels * multiplier
                left.append(now)
        deepest = len(multipliers) - 1
        self.up = nn.ModuleList([block(now, deepest, a, up=True) for a in (True, False)])
        for level, multiplier in reversed(list(enumerate(multipliers))):
            if level < deepest:
                self.up.append(block(now, level, False, resample=True, up=True))
            for _ in range(blocks + 1):
                self.up.append(block(now + left.pop(), level, up=True, joins=True))
                now = channels * multiplier
        self.last, self.gain = ForcedConv2d(now, shape[0], 3), Gain()

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """See :class:`Conditioned`."""
        h = self.first(torch.cat([x, torch.ones_like(x[:, :1])], 1))
        left = [h]
        for layer in self.down:
            h = self.through(layer, h, e)
            left.append(h)
        for layer in self.up:
            inputs = (h, e, left.pop()) if layer.joins else (h, e)
            h = self.through(layer, *inputs)
        return self.gain(self.last(h))


class _Told(Conditions):
    """Conditions to the vector that modulates: mp_silu(mp_sum(Linear(features), Linear(label)))."""

    def __init__(self, told: Conditioning, width: int) -> None:
        super().__init__()
        self.scalars = ScalarConditions(replace(told, classes=None))
        self.first = ForcedLinear(self.scalars.dim, width) if told.scalars else None
        # one column for each label and for none; of a row over all of them the length is 1
        self.label = None if told.classes is None else ForcedLinear(told.classes + 1, width)
        self.dim = width if told.scalars or told.classes else 0

    def forward(self, batch: int, c: Tensor | None, cond: Tensor | None) -> Tensor | None:
        """See :class:`partikel.networks.conditions.ConditionNetwork`."""
        features = self.scalars(batch, c, cond if self.label is None else None)
        parts: list[Tensor] = []
        if self.first is not None and features is not None:
            parts.append(self.first(features * math.sqrt(2)))
        if self.label is not None:
            vectors = self.label.unit().T * math.sqrt(self.label.in_features)
            parts.append(looked_up(vectors, batch, cond))
        if not parts:
            return None
        return mp_silu(parts[0] if len(parts) == 1 else mp_sum(parts[0], parts[1], TOLD))


class _Block(nn.Module):
    """mp_sum(x, conv(mp_silu(modulate(conv(mp_silu(x)))))), then attention where wanted.

    On the way down x is halved first where it is, brought to its channels, and normed pixel by pixel; on the
    way up it is joined or doubled, and brought to its channels beside the branch.
    """

    def __init__(
        self,
        before: int,
        after: int,
        told: int,
        dropout: float,
        attend: bool,
        *,
        resample: bool = False,
        up: bool = False,
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.up, self.joins = resample, up, joins
        self.skip = nn.Identity() if before == after else ForcedConv2d(before, after, 1)
        self.conv1 = ForcedConv2d(before if up else after, after, 3)
        self.told = ForcedLinear(told, after) if told else None
        self.gain = Gain() if told else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = ForcedConv2d(after, after, 3)
        self.attention = _Attention(after) if attend else nn.Identity()

    def forward(self, x: Tensor, e: Tensor | None, beside: Tensor | None = None) -> Tensor:
        if beside is not None:
            x = mp_cat(x, beside)
        if self.resample:
            x = doubled(x) if self.up else F.avg_pool2d(x, 2)
        x = x if self.up else pixel_norm(self.skip(x))
        h = self.conv1(mp_silu(x))
        if self.told is not None and self.gain is not None and e is not None:
            h = h * (1 + self.gain(self.told(e)))[..., None, None]
        h = self.conv2(self.dropout(mp_silu(h)))
        x = mp_sum(self.skip(x) if self.up else x, h, RESIDUAL)
        return self.attention(x).clamp(-LARGEST, LARGEST)


class _Attention(nn.Module):
    """Self-attention over all pixels by cosines: queries, keys and values of magnitude 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        fits = (n for n in range(max(1, channels // _HEAD), 0, -1) if channels % n == 0)
        self.heads = next(fits)
        self.qkv, self.out = (
            ForcedConv2d(channels, 3 * channels, 1),
            ForcedConv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (B, channels, H, W) -> the same shape."""
        # Written out, since the fused kernels have neither forward-mode nor second derivatives.
        parts = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = pixel_norm(parts, 3).unbind(1)
        weights = (q.mT @ k / math.sqrt(q.shape[2])).softmax(-1)
        mixed = (v @ weights.mT).flatten(1, 2).view_as(x)
        return mp_sum(x, self.out(mixed), RESIDUAL)
