"""How conditions act inside convolutional networks: every channel is scaled and shifted.

The conditions' embedding goes through a small network c = SiLU(Linear(SiLU(Linear(emb)))), and each
layer's output h becomes (1 + scale(c))·h + shift(c) (FiLM, Perez et al. 2018; GPM paper, appendix
D.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partikel.networks.embeddings import ScalarConditions
from partikel.networks.initialise import ZeroLinear


class ConditionNetwork(nn.Module):
    """Conditions to the vector that modulates: emb -> SiLU(Linear(SiLU(Linear(emb)))).

    Args:
        conditions: embeds ``c`` and ``cond``; unconditional ones give no vector.
        width: size of the vector, and of the layer between.

    Attributes:
        dim: ``width``, or 0 if there are no conditions.
    """

    def __init__(self, conditions: ScalarConditions, width: int) -> None:
        super().__init__()
        self.conditions = conditions
        self.dim = width if conditions.dim else 0
        self.layers = nn.ModuleList()
        if conditions.dim:
            self.layers.extend([nn.Linear(conditions.dim, width), nn.Linear(width, width)])

    def forward(self, batch: int, c: Tensor | None, cond: Tensor | None) -> Tensor | None:
        """The modulating vector: (B, dim), or (1, dim) for all rows, or None if unconditional.

        Raises:
            ValueError: ``c`` or ``cond`` is not what the network was built for.
        """
        e = self.conditions(batch, c, cond)
        if e is not None:
            for layer in self.layers:
                e = F.silu(layer(e))
        return e


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
