"""A transformer on the patches of images: DiT (Peebles and Xie 2023), of a velocity SiT (Ma et al. 2024).

The image is cut into squares, each a token; what the network is told modulates every block through adaptive
layer normalisation whose gates start at zero (adaLN-Zero), so that each block is at first the identity.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partikel.networks.conditions import Conditioned, Conditioning, ConditionNetwork
from partikel.networks.conv import image_size
from partikel.networks.initialise import ZeroLinear

TOLD = Conditioning(scalars=1, embedding="positional", embedding_features=256)
"""One condition, embedded as the paper does."""

ACROSS = 16
"""Most patches a side, so that there are 256 tokens at most, as of the paper's latents."""
_HEAD = 64  # features of a head, at least, as in all of the paper's sizes but the largest


class DiT(Conditioned):
    """Images to images of the same shape, through blocks of self-attention over patches.

    Patches are of 2 x 2 pixels up to 32 x 32, of larger images a sixteenth of their side. The paper's sizes
    are S (width 384, depth 12), B (768, 12), L (1024, 24) and XL (1152, 28). Under the "default" and "he"
    initialisations the output is zero.

    Args:
        shape: (C, H, H), H even, and divisible by 16 where it is more than 32.
        width: features of a token; divisible by 4.
        depth: blocks.
        conditions: what the network is told.

    Raises:
        ValueError: images of another size, or a width that is none.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 384,
        depth: int = 12,
        conditions: Conditioning = TOLD,
    ) -> None:
        super().__init__(ConditionNetwork(conditions, width))
        height, side = image_size(shape)
        self.patch = 2 if side <= 2 * ACROSS else side // ACROSS
        if height != side or side % (2 if side <= 2 * ACROSS else ACROSS):
            raise ValueError(
                "a dit takes square images with an even side, divisible by 16 beyond 32, not "
                f"{height}x{side}"
            )
        if width < 4 or width % 4 or depth < 1:
            raise ValueError(
                f"width must be a multiple of 4 and depth at least 1, not {width}, {depth}"
            )
        self.shape = tuple(shape)
        entries = shape[0] * self.patch**2
        # without conditions what would follow from them is learned
        told = self.conditions.dim or 1
        self.enter = nn.Linear(entries, width)
        self.register_buffer("places", _places(side // self.patch, width), persistent=False)
        self.blocks = nn.ModuleList(_Block(width, told) for _ in range(depth))
        self.modulate = ZeroLinear(told, 2 * width)
        self.leave = ZeroLinear(width, entries)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """See :class:`Conditioned`."""
        if e is None:
            e = x.new_ones(1, 1)
        h = self.enter(F.pixel_unshuffle(x, self.patch).flatten(2).mT) + self.get_buffer("places")
        for block in self.blocks:
            h = block(h, e)
        scale, shift = self.modulate(e)[:, None].chunk(2, -1)
        h = self.leave(_modulated(h, scale, shift)).mT
        across = self.shape[-1] // self.patch
        return F.pixel_shuffle(h.unflatten(2, (across, across)), self.patch)


class _Block(nn.Module):
    """Tokens h -> h + gate·attention(norm h) and then h + gate·mlp(norm h), both norms modulated."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        fits = (n for n in range(max(1, width // _HEAD), 0, -1) if width % n == 0)
        self.heads = next(fits)
        self.modulate = ZeroLinear(told, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, shift, gate, *others = self.modulate(e)[:, None].chunk(6, -1)
        h = h + gate * self.attention(_modulated(h, scale, shift))
        scale, shift, gate = others
        inner = F.gelu(self.wide(_modulated(h, scale, shift)), approximate="tanh")
        return h + gate * self.narrow(inner)

    def attention(self, h: Tensor) -> Tensor:
        """Several heads of self-attention over all tokens: (B, N, width) -> same."""
        # Written out, since the fused kernels have neither forward-mode nor second derivatives.
        q, k, v = self.qkv(h).unflatten(2, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def _modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _places(across: int, width: int) -> Tensor:
    """(across², width) sines and cosines of a patch's row and column, half of the features each."""
    rates = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(across, dtype=torch.float64)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = line.repeat_interleave(across, 0), line.repeat(across, 1)
    return torch.cat([rows, columns], 1).to(torch.get_default_dtype())
