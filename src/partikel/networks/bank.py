"""Several networks in the place of one: a network of its own for each range of a condition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """K networks; the k-th answers where the last condition lies in [k/K, (k+1)/K).

    DiffODE-GAN's independent discriminators (DiffFlow Algorithm 2) are a bank over generation time.

    Args:
        networks: K networks of the same signature, which are given the remaining conditions.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Evaluate each row by its own network.

        Args:
            x: (B, ...).
            c: (B, S), or (1, S) for the same conditions in all rows; S >= 1, the last in [0, 1].
            cond: (B,) labels, or None.

        Returns:
            What the networks return, (B, ...).
        """
        if c is None or c.shape[1] < 1:
            raise ValueError("a bank chooses its network by a condition: pass c")
        count = len(self.networks)
        # a node k/K may be rounded to just below itself
        chosen = (c[:, -1] * count + 1e-4).long().clamp(0, count - 1)
        rest = c[:, :-1] if c.shape[1] > 1 else None
        if len(c) == 1:
            return self.networks[int(chosen)](x, rest, cond)
        groups = [(chosen == k).nonzero()[:, 0] for k in range(count)]
        parts = [
            network(
                x[rows],
                None if rest is None else rest[rows],
                None if cond is None else cond[rows],
            )
            for network, rows in zip(self.networks, groups, strict=True)
            if len(rows)
        ]
        return torch.cat(parts)[torch.cat(groups).argsort()]
