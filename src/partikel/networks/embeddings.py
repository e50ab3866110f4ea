"""How numbers and labels enter a network: as vectors.

``FourierEmbedding`` is the random Fourier feature map of Tancik et al. (2020) as score models use
it (Song et al. 2021), ``PositionalEmbedding`` the sinusoids of Vaswani et al. (2017) as in DDPM (Ho
et al. 2020). ``ScalarConditions`` joins the embeddings of all conditions of a network and guards
its signature.

The convention of every network of this package, ``forward(x, c=None, cond=None)``:

* ``c`` (B, S) are S real conditions, S fixed at construction (``scalars``; 0 = none, then ``c`` is
  None). Shape (1, S) is shorthand for the same condition in all rows, and cheaper: its embedding is
  computed once.
* ``cond`` (B,) are integer labels in [0, classes). None, or the label ``classes``, means "no label"
  and has a learned vector of its own.
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


class ScalarConditions(nn.Module):
    """All conditions of a network as one vector: embeddings of S scalars and a label, concatenated.

    Args:
        scalars: S, the number of real conditions; 0 = none. They share one embedding's frequencies.
        features: size of each embedding; even.
        embedding: "fourier" or "positional".
        fourier_scale: scale of the Fourier frequencies (unused by "positional").
        classes: number of labels, or None for a network that knows no labels.

    Attributes:
        dim: size of the vector, ``features`` times the number of conditions; 0 = unconditional.

    Raises:
        ValueError: an unknown embedding, or a number out of range.
    """

    def __init__(
        self,
        scalars: int,
        features: int = 128,
        embedding: str = "fourier",
        fourier_scale: float = 16.0,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if embedding not in EMBEDDINGS:
            raise ValueError(f"embedding must be one of {', '.join(EMBEDDINGS)}, not '{embedding}'")
        if scalars < 0 or (classes is not None and classes < 1):
            raise ValueError(f"scalars must be >= 0 and classes >= 1, not {scalars} and {classes}")
        self.scalars, self.classes = scalars, classes
        self.dim = features * (scalars + (classes is not None))
        self.embed = self.label = None
        if scalars:
            self.embed = (
                FourierEmbedding(features, fourier_scale)
                if embedding == "fourier"
                else PositionalEmbedding(features)
            )
        if classes is not None:
            self.label = nn.Embedding(classes + 1, features)

    def forward(self, batch: int, c: Tensor | None, cond: Tensor | None) -> Tensor | None:
        """Embed the conditions of one batch.

        Args:
            batch: B, the number of rows of the input that is conditioned.
            c: (B, S) or (1, S); None if S = 0.
            cond: (B,) integer labels, or None.

        Returns:
            (B, dim), or (1, dim) where the conditions are the same for all rows; None for an
            unconditional network.

        Raises:
            ValueError: ``c`` or ``cond`` is not what the network was built for.
        """
        parts: list[Tensor] = []
        if self.embed is not None:
            if (
                c is None
                or c.ndim != 2
                or c.shape[0] not in (1, batch)
                or c.shape[1] != self.scalars
            ):
                got = "None" if c is None else tuple(c.shape)
                raise ValueError(
                    f"c must have shape ({batch}, {self.scalars}) or (1, {self.scalars}), got {got}"
                )
            parts.append(self.embed(c).flatten(1))
        elif c is not None:
            raise ValueError("c was given to a network built with scalars=0")
        if self.label is not None:
            if cond is None:
                parts.append(self.label.weight[-1:])
            elif cond.shape != (batch,) or cond.is_floating_point():
                raise ValueError(
                    f"cond must be ({batch},) integers, got {tuple(cond.shape)} of {cond.dtype}"
                )
            else:
                parts.append(self.label(cond))
        elif cond is not None:
            raise ValueError("cond was given to a network built without classes")
        if len(parts) < 2:
            return parts[0] if parts else None
        rows = max(map(len, parts))
        return torch.cat([part.expand(rows, -1) for part in parts], 1)


def _half(features: int) -> int:
    if features < 2 or features % 2:
        raise ValueError(f"embedding features must be even and at least 2, not {features}")
    return features // 2
