"""Free particles of all ages, moved by one step for each update (a pool instead of simulations)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from partikel.errors import ConfigError, NumericsError
from partikel.errors.checks import Size
from partikel.fields import Context, Field
from partikel.fields.particles import Particles
from partikel.models.particle import depends_on_cloud
from partikel.models.staged import PoolOfParticles
from partikel.priors import Prior
from partikel.solvers import Euler, EulerMaruyama
from partikel.streams import Streams
from partikel.tensors import all_finite, expand_like


class PooledParticleModel(PoolOfParticles):
    """Free particles of all ages in a pool: a draw moves some by one step, and hands them out.

    A :class:`ParticleModel` takes N/2 steps on average for each particle that the field is trained
    on; here it is one. The pool is drawn from in turns; ages are spread evenly, and particles at the
    last node t_{N-1} start anew from the prior. The law of a particle at a node is that of simulated
    ones as far as the field has changed little since it started, N draws of it ago: each of its steps
    was along the field of that time. Nodes and turn are buffers too.

    Args:
        field: what moves the particles; of each one alone.
        prior: the law at t = 0.
        pool: number of particles in the pool, at least as many as are drawn at once.
        options: as for :class:`ParticleModel`, with Euler's steps.
    """

    nodes: Tensor
    turn: Tensor

    def __init__(self, field: Field, prior: Prior, *, pool: Size, **options: Any) -> None:
        super().__init__(field, prior, pool=pool, **options)
        if depends_on_cloud(field) or not isinstance(self.solver, Euler | EulerMaruyama):
            raise ConfigError(
                "particles of all ages take Euler's steps, along a field that does not depend on the "
                "cloud at one time (by what it compares, or batch norm): leave the pool out."
            )
        if self.times_per_path > 1:
            raise ConfigError(
                "a pool has no paths to take from: set times_per_path to 1, or no pool."
            )
        self.register_buffer("nodes", torch.arange(pool) % self.steps)
        self.register_buffer("turn", torch.tensor(-1))

    @torch.no_grad()
    def particles(
        self,
        n: int,
        streams: Streams,
        *,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Particles:
        """The next n particles of the pool, moved by one step each; the first draw simulates the pool."""
        every = torch.arange(len(self.pool), device=self.pool.device)
        if n > len(every):
            raise ConfigError(
                f"a pool of {len(every)} particles has no {n} to draw at once: make it at least as large "
                "as batch (times reuse)."
            )
        if int(self.turn) < 0:
            self._start_anew(every, streams)
            start, nodes = self.pool.clone(), self.nodes[:, None]
            self.pool.copy_(self._at_nodes(start, nodes, streams, self.pool_labels, real))
            self.turn.zero_()
        rows = (self.turn + every[:n]) % len(every)
        times = self.grid.nodes(self.steps).to(self.pool)
        going = self.nodes[rows] < self.steps - 1
        ended, moving = rows[~going], rows[going]
        x, t, t_next = self.pool[moving], times[self.nodes[moving]], times[self.nodes[moving] + 1]
        field = self.field.bind(Context(real=real, generator=streams.noise))
        x = x + expand_like(t_next - t, x) * self.velocity(x, t, self._labels_of(moving), field)
        if self.diffusion is not None:
            noise = torch.empty_like(x).normal_(generator=streams.noise)
            x += expand_like(self.diffusion(t) * (t_next - t).sqrt(), x) * noise
        if not all_finite(x):
            raise NumericsError(
                "particles of the pool left the finite numbers: take more steps or a weaker field "
                "(smaller eta)."
            )
        self.pool[moving] = x
        self.nodes[rows] = (self.nodes[rows] + 1) % self.steps
        self._start_anew(ended, streams)
        self.turn.copy_((self.turn + n) % len(every))
        at = self._at(times[self.nodes[rows]], self._labels_of(rows))
        return Particles(self.pool[rows], *at)
