"""Numbers as vectors: how real conditions enter a network.

``FourierEmbedding`` is the random Fourier feature map of Tancik et al. (2020) as score models use
it (Song et al. 2021), ``PositionalEmbedding`` the sinusoids of Vaswani et al. (2017) as in DDPM (Ho
et al. 2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

EMBEDDINGS = ("fourier", "positional")
"""The embeddings of a scalar, by name."""


class FourierEmbedding(nn.Module):
    """Random Fourier features t -> [cos 2πft, sin 2πft] with fixed frequencies f ~ scale·N(0, 1).

    The frequencies are a buffer: saved with the weights, never trained. The larger ``scale``, the
    less the network's outputs at neighbouring t have to agree.

    Args:
        features: size of the embedding; even.
        scale: standard deviation of the frequencies.
        generator: draws the frequencies; by default a fresh one with seed 0, so that they are the
            same everywhere.

    Raises:
        ValueError: ``features`` is odd or less than 2.
    """

    frequencies: Tensor

    def __init__(
        self, features: int = 128, scale: float = 16.0, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", torch.empty(_half(features)))
        self.redraw(generator=generator or torch.Generator().manual_seed(0))

    def redraw(self, *, generator: torch.Generator) -> None:
        """Draw the frequencies anew, in place."""
        f = self.frequencies
        fresh = torch.empty(f.shape, dtype=f.dtype, device=generator.device)
        f.copy_(fresh.normal_(generator=generator).mul_(self.scale))

    def forward(self, t: Tensor) -> Tensor:
        """Embed every number: (...) -> (..., features)."""
        angles = t.unsqueeze(-1) * (2 * math.pi * self.frequencies)
        return torch.cat([angles.cos(), angles.sin()], -1)


class PositionalEmbedding(nn.Module):
    """Sinusoids t -> [cos ωt, sin ωt] with ω from 1 down to 1/max_period, geometrically spaced.

    No frequency exceeds one radian per unit: meant for smooth conditions such as c_noise = ln(σ)/4
    (EDM), or for integer steps.

    Args:
        features: size of the embedding; even.
        max_period: 2π times this is the longest period.

    Raises:
        ValueError: ``features`` is odd or less than 2.
    """

    frequencies: Tensor

    def __init__(self, features: int, max_period: float = 10_000.0) -> None:
        super().__init__()
        half = _half(features)
        frequencies = max_period ** (-torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()))

    def forward(self, t: Tensor) -> Tensor:
        """Embed every number: (...) -> (..., features)."""
        angles = t.unsqueeze(-1) * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], -1)


def _half(features: int) -> int:
    if features < 2 or features % 2:
        raise ValueError(f"embedding features must be even and at least 2, not {features}")
    return features // 2
