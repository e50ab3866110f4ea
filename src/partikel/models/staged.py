"""Free particles in a pool that training draws from, instead of simulating them for each update."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.errors.checks import Range, Size
from partikel.fields import Context, Field
from partikel.fields.particles import Particles
from partikel.models.particle import ParticleModel
from partikel.priors import Prior
from partikel.streams import Streams


class PoolOfParticles(ParticleModel):
    """What models have in common whose training particles stand in a pool.

    Pool and labels are buffers, so that a checkpoint holds them. Sampling is that of a
    :class:`ParticleModel`. Particles of a conditional model keep the labels that they are drawn with, at
    the data's frequencies.

    Args:
        field: what moves the particles.
        prior: the law at t = 0.
        pool: number of particles in the pool.
        options: as for :class:`ParticleModel`.
    """

    pool: Tensor
    pool_labels: Tensor | None

    def __init__(self, field: Field, prior: Prior, *, pool: Size, **options: Any) -> None:
        super().__init__(field, prior, **options)
        if self.conditional and self.label_weights is None:
            raise ConfigError("a pool of labelled particles needs the shares of the classes.")
        self.register_buffer("pool", torch.zeros(pool, *prior.shape))
        labels = torch.zeros(pool, dtype=torch.int64) if self.conditional else None
        self.register_buffer("pool_labels", labels)

    def _start_anew(self, rows: Tensor, streams: Streams) -> None:
        """Put these particles at t = 0, with labels of their own."""
        if len(rows):
            self.pool[rows] = self.start(len(rows), streams.latent)
            labels = self.labels(len(rows), generator=streams.latent)
            if self.pool_labels is not None and labels is not None:
                self.pool_labels[rows] = labels

    def _labels_of(self, rows: Tensor) -> Tensor | None:
        return None if self.pool_labels is None else self.pool_labels[rows]


class StagedParticleModel(PoolOfParticles):
    """Free particles that are trained node by node, as DiffODE-GAN's are (DiffFlow Algorithm 2).

    A pool of particles stands at one node while the field is trained there; then it takes one step
    along the field as it has become, and training goes on at the next node.

    Sampling replays what moved the pool: the weights as they were at the end of each stage. An average of
    weights therefore starts anew at each node, where it holds the present ones of all earlier nodes'
    networks, and averages the network of this node alone.

    Args:
        field: what moves the particles; a field whose nodes share weights forgets earlier ones.
        prior: the law at t = 0.
        pool: number of particles in the pool.
        stage_draws: how often particles are drawn at a node before the pool moves on.
        options: as for :class:`ParticleModel`.
    """

    stage: Tensor
    draws: Tensor

    def __init__(
        self,
        field: Field,
        prior: Prior,
        *,
        pool: Size,
        stage_draws: Annotated[int, Range(least=1)],
        **options: Any,
    ) -> None:
        super().__init__(field, prior, pool=pool, **options)
        if self.solver.multistep:
            raise ConfigError("a multistep solver cannot move a pool that stops at every node.")
        self.stage_draws = stage_draws
        self.register_buffer("stage", torch.tensor(-1))
        self.register_buffer("draws", torch.tensor(0))

    @property
    def stage_of_training(self) -> int:  # type: ignore[override]
        """The node that the pool stands at."""
        return int(self.stage)

    def particles(
        self,
        n: int,
        streams: Streams,
        *,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Particles:
        """Draws from the pool, which stands at one node."""
        times = self.grid.nodes(self.steps)
        stage = int(self.stage)
        if stage < 0:
            self._start_anew(torch.arange(len(self.pool), device=self.pool.device), streams)
            stage = 0
        elif int(self.draws) >= self.stage_draws and stage < self.steps - 1:
            field = self.field.bind(Context(real=real, generator=streams.noise))
            states = self.solver.stream(
                self.dynamics(self.pool_labels, field),
                self.pool,
                times,
                start=stage,
                stop=stage + 1,
                generator=streams.noise,
            )
            with torch.no_grad():
                *_, moved = states
            self.pool.copy_(moved.x)
            stage += 1
            self.draws.zero_()
        self.stage.fill_(stage)
        self.draws += 1
        device = self.pool.device
        rows = torch.randint(len(self.pool), (n,), generator=streams.time, device=device)
        t = self.pool.new_tensor(float(times[stage])).expand(n)
        return Particles(self.pool[rows], *self._at(t, self._labels_of(rows)))
