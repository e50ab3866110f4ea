"""How conditions enter a network: what it is told, as one vector, and what the vector does in images.

The convention of every network of this package, ``forward(x, c=None, cond=None)``, is written in
:class:`Conditioned`:

* ``c`` (B, S) are S real conditions, S fixed at construction (``scalars``; 0 = none, then ``c`` is
  None). Shape (1, S) is shorthand for the same condition in all rows, and cheaper: its embedding is
  computed once.
* ``cond`` (B,) are integer labels in [0, classes). None, or the label ``classes``, means "no label"
  and has a learned vector of its own.

In convolutional networks the conditions' embedding goes through a small network
e = SiLU(Linear(SiLU(Linear(emb)))), and each layer's output h becomes (1 + scale(e))·h + shift(e)
(FiLM, Perez et al. 2018; GPM paper, appendix D.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partikel.networks.embeddings import EMBEDDINGS, FourierEmbedding, PositionalEmbedding
from partikel.networks.initialise import ZeroLinear


@dataclass(frozen=True)
class Conditioning:
    """What a network is told, besides x.

    Attributes:
        scalars: S, the number of real conditions; 0 = none. They share one embedding's frequencies.
        classes: number of labels, or None for a network that knows no labels.
        embedding: of each scalar, "fourier" or "positional".
        embedding_features: size of each embedding; even.
        fourier_scale: scale of the Fourier frequencies (unused by "positional").
        late: whether a label's vector is added after the layers of :class:`ConditionNetwork`, as diffusers
            does, not embedded beside the scalars.

    Raises:
        ValueError: an unknown embedding, or a number out of range.
    """

    scalars: int = 0
    classes: int | None = None
    embedding: str = "fourier"
    embedding_features: int = 128
    fourier_scale: float = 16.0
    late: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        scalars, classes = self.scalars, self.classes
        if self.embedding not in EMBEDDINGS:
            names = ", ".join(EMBEDDINGS)
            raise ValueError(f"embedding must be one of {names}, not '{self.embedding}'")
        if scalars < 0 or (classes is not None and classes < 1):
            raise ValueError(f"scalars must be >= 0 and classes >= 1, not {scalars} and {classes}")


UNCONDITIONAL = Conditioning()
"""Nothing but x."""


class Conditions(nn.Module):
    """What makes a vector of conditions: called as :meth:`ScalarConditions.forward` is.

    Attributes:
        dim: size of the vector; 0 = unconditional.
    """

    dim: int


class ScalarConditions(Conditions):
    """All conditions of a network as one vector: embeddings of S scalars and a label, concatenated.

    Args:
        told: the conditions.

    Raises:
        ValueError: features that are odd or less than 2.
    """

    def __init__(self, told: Conditioning) -> None:
        super().__init__()
        self.told, features = told, told.embedding_features
        beside = told.classes is not None and not told.late
        self.dim = features * (told.scalars + beside)
        self.embed = self.label = None
        if told.scalars:
            self.embed = (
                FourierEmbedding(features, told.fourier_scale)
                if told.embedding == "fourier"
                else PositionalEmbedding(features)
            )
        if told.classes is not None and beside:
            self.label = nn.Embedding(told.classes + 1, features)

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
            shapes = (batch, self.told.scalars), (1, self.told.scalars)
            if c is None or tuple(c.shape) not in shapes:
                got = "None" if c is None else tuple(c.shape)
                raise ValueError(f"c must have shape {shapes[0]} or {shapes[1]}, got {got}")
            parts.append(self.embed(c).flatten(1))
        elif c is not None:
            raise ValueError("c was given to a network built with scalars=0")
        if self.label is not None:
            parts.append(looked_up(self.label.weight, batch, cond))
        elif cond is not None:
            raise ValueError("cond was given to a network built without classes")
        if len(parts) < 2:
            return parts[0] if parts else None
        rows = max(part.shape[0] for part in parts)  # len would fix it where a graph is recorded
        return torch.cat([part.expand(rows, -1) for part in parts], 1)


def looked_up(vectors: Tensor, batch: int, cond: Tensor | None) -> Tensor:
    """The vectors of labels, (B, features), or the one of no label, (1, features).

    Args:
        vectors: (classes + 1, features), that of no label last.
        batch: B.
        cond: (B,) integer labels, or None.

    Raises:
        ValueError: ``cond`` is no integer for each row.
    """
    if cond is None:
        return vectors[-1:]
    if cond.shape != (batch,) or cond.is_floating_point():
        raise ValueError(
            f"cond must be ({batch},) integers, got {tuple(cond.shape)} of {cond.dtype}"
        )
    return F.embedding(cond, vectors)


class ConditionNetwork(Conditions):
    """Conditions to the vector that modulates: emb -> SiLU(Linear(SiLU(Linear(emb)))).

    Labels that are told late (:attr:`Conditioning.late`) are added before the last SiLU.

    Args:
        told: the conditions; none give no vector.
        width: size of the vector, and of the layer between; twice that of one embedding where None
            (GPM paper, appendix D.2).

    Raises:
        ValueError: features that are odd or less than 2.
    """

    def __init__(self, told: Conditioning, width: int | None = None) -> None:
        super().__init__()
        self.conditions = ScalarConditions(told)
        width = 2 * told.embedding_features if width is None else width
        self.dim = width if self.conditions.dim else 0
        self.layers = nn.ModuleList()
        if self.dim:
            self.layers.extend([nn.Linear(self.conditions.dim, width), nn.Linear(width, width)])
        late = told.late and told.classes is not None
        self.label = nn.Embedding((told.classes or 0) + 1, width) if late else None

    def forward(self, batch: int, c: Tensor | None, cond: Tensor | None) -> Tensor | None:
        """The modulating vector: (B, dim), or (1, dim) for all rows, or None if unconditional.

        Raises:
            ValueError: ``c`` or ``cond`` is not what the network was built for.
        """
        e = self.conditions(batch, c, cond if self.label is None else None)
        if e is None:
            return None
        first, second = self.layers
        e = second(F.silu(first(e)))
        return F.silu(e if self.label is None else e + looked_up(self.label.weight, batch, cond))


class Conditioned(nn.Module, ABC):
    """A network: embeds its conditions, and computes under the vector that they give.

    A subclass writes ``__init__`` and :meth:`compute`.

    Args:
        conditions: of the network.
    """

    def __init__(self, conditions: Conditions) -> None:
        super().__init__()
        self.conditions = conditions

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: (B, ...) points or images; latents z, (B, latent), of a generator.
            c: (B, S), or (1, S) for the same conditions in all rows; None if S = 0.
            cond: (B,) labels, or None.

        Returns:
            (B,) logits, (B, ...) in the shape of x, or (B, ...) points or images of a generator.

        Raises:
            ValueError: ``c`` or ``cond`` is not what the network was built for.
        """
        return self.compute(x, self.conditions(x.shape[0], c, cond))

    @abstractmethod
    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """What :meth:`forward` gives under a vector of conditions, (B, dim), (1, dim), or None."""


class Modulation(nn.Module):
    """h -> (1 + scale(e))·h + shift(e), channel-wise; at first the identity under "default".

    Args:
        features: size of the modulating vector; 0 = unconditional, the identity for good.
        channels: channels of h.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.head = ZeroLinear(features, 2 * channels) if features else None

    def forward(self, h: Tensor, e: Tensor | None) -> Tensor:
        """Modulate h (B, channels, H, W) by e (B, features) or (1, features)."""
        if self.head is None:
            return h
        scale, shift = self.head(e)[..., None, None].chunk(2, 1)
        return torch.addcmul(shift, h, 1 + scale)
