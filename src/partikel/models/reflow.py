"""Reflow: pairs of where a flow's particles start and where it takes them (Liu et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from partikel.data import Batch
from partikel.errors.checks import Size
from partikel.fields import Coupling, Pairs
from partikel.models.base import Carrier
from partikel.models.particle import free_particles
from partikel.streams import Streams, seeded


class Reflow(Coupling):
    """Pairs (x_0, where a trained flow takes it): a flow that learns them is straighter.

    Its ends are the model's law, not the data's; the data only say how many. The pairs are drawn once,
    from a seed of their own, when the first are asked for.

    Args:
        flow: free particles that move without noise.
        size: number of pairs.

    Raises:
        ConfigError: for a model whose samples are no particles.
    """

    def __init__(self, flow: Carrier, size: Size = 50_000) -> None:
        self.flow = free_particles(
            flow,
            "reflow takes pairs of where free particles start and end, and this model has none: name an "
            "EDM, flow matching, or another flow.",
        )
        self.size = size
        self._drawn: tuple[Tensor, Tensor, Tensor | None] | None = None

    def pairs(self, real: Batch, streams: Streams) -> Pairs:
        """As many pairs as there are data."""
        x0, x1, cond = self._drawn or self._draw()
        rows = torch.randint(self.size, (len(real.x),), generator=streams.latent, device=x0.device)
        return Pairs(x0[rows].to(real.x), x1[rows].to(real.x), None if cond is None else cond[rows])

    def _draw(self) -> tuple[Tensor, Tensor, Tensor | None]:
        weight = next(self.flow.parameters(), torch.zeros(()))
        generator = seeded(0, "reflow", device=weight.device)
        starts, ends, labels = [], [], []
        for rows in torch.arange(self.size).split(1000):
            cond = self.flow.labels(len(rows), generator=generator)
            starts.append(self.flow.start(len(rows), generator))
            ends.append(
                self.flow.sample(len(rows), generator=generator, start=starts[-1], cond=cond)
            )
            labels += [] if cond is None else [cond]
        self._drawn = torch.cat(starts), torch.cat(ends), torch.cat(labels) if labels else None
        return self._drawn
