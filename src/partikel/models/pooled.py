"""Free particles that are kept from update to update, instead of simulated anew for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from partikel.errors import ConfigError, NumericsError
from partikel.errors.checks import Size
from partikel.fields import Context, Field
from partikel.fields.particles import Particles
from partikel.models.particle import ParticleModel, depends_on_cloud
from partikel.priors import GaussianPrior
from partikel.solvers import Euler, EulerMaruyama
from partikel.streams import Streams
from partikel.tensors import expand_like


class PooledParticleModel(ParticleModel):
    """Free particles of all ages in a pool: a draw takes some, and has moved them by one step each.

    A :class:`ParticleModel` simulates N/2 steps on average for each particle that the field is trained
    on; here it is one. The pool is drawn from in turns; particles that reach the last node t_{N-1}
    start anew from the prior, and their ages are spread evenly. The law of a particle at a node is that
    of the simulated ones, as long as the field changes little within N of its draws: each step is along
    the field of its time. Pool, nodes and turn are buffers, so that a checkpoint holds them. Sampling is
    that of a :class:`ParticleModel`. Particles of a conditional model keep the labels that they start
    with, drawn at the data's frequencies.

    Args:
        field: what moves the particles; of each one alone.
        prior: the law at t = 0.
        pool: number of particles in the pool, at least as many as are drawn at once.
        options: as for :class:`ParticleModel`, with Euler's steps.
    """

    pool: Tensor
    pool_labels: Tensor | None
    nodes: Tensor
    turn: Tensor

    def __init__(self, field: Field, prior: GaussianPrior, *, pool: Size, **options: Any) -> None:
        super().__init__(field, prior, **options)
        if not isinstance(self.solver, Euler | EulerMaruyama):
            raise ConfigError("a pool of particles of all ages moves by Euler's steps only.")
        if depends_on_cloud(field):
            raise ConfigError(
                "the particles of a pool are of all ages, and this field depends on the cloud at one "
                "time (by what it compares, or batch norm): leave the pool out."
            )
        if self.times_per_path > 1:
            raise ConfigError(
                "particles of a pool are not taken from simulated paths: leave out pool, or "
                "times_per_path."
            )
        if self.conditional and self.label_weights is None:
            raise ConfigError("a pool of labelled particles needs the shares of the classes.")
        self.register_buffer("pool", torch.zeros(pool, *prior.shape))
        labels = torch.zeros(pool, dtype=torch.int64) if self.conditional else None
        self.register_buffer("pool_labels", labels)
        self.register_buffer("nodes", torch.arange(pool) % self.steps)
        self.register_buffer("turn", torch.tensor(-1))

    def particles(
        self,
        n: int,
        streams: Streams,
        *,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Particles:
        """The next n particles of the pool, moved by one step each; the first draw simulates the pool."""
        if n > len(self.pool):
            raise ConfigError(
                f"{n} particles cannot be drawn at once from a pool of {len(self.pool)}: make pool at "
                "least as large as batch (times reuse)."
            )
        if int(self.turn) < 0:
            start, labels = self._fresh(len(self.pool), streams)
            with torch.no_grad():
                self.pool.copy_(self._at_nodes(start, self.nodes[:, None], streams, labels, real))
            if self.pool_labels is not None and labels is not None:
                self.pool_labels.copy_(labels)
            self.turn.zero_()
        device = self.pool.device
        rows = (self.turn + torch.arange(n, device=device)) % len(self.pool)
        with torch.no_grad():
            self._move(rows, streams, real)
        self.turn.copy_((self.turn + n) % len(self.pool))
        x, t = self.pool[rows], self.grid.nodes(self.steps).to(self.pool)[self.nodes[rows]]
        return Particles(x, *self._at(t, self._labels_of(rows)))

    def _move(self, rows: Tensor, streams: Streams, real: Tensor | None) -> None:
        """One step of these particles; those that stand at the last node t_{N-1} start anew."""
        field = self.field.bind(Context(real=real, generator=streams.noise))
        going = self.nodes[rows] < self.steps - 1
        ended, rows = rows[~going], rows[going]
        times = self.grid.nodes(self.steps).to(self.pool)
        t, t_next = times[self.nodes[rows]], times[self.nodes[rows] + 1]
        x = self.pool[rows]
        moved = x + expand_like(t_next - t, x) * self.velocity(x, t, self._labels_of(rows), field)
        if self.diffusion is not None:
            scale = self.diffusion(t) * (t_next - t).sqrt()
            noise = torch.empty_like(x).normal_(generator=streams.noise)
            moved += expand_like(scale, x) * noise
        if not moved.isfinite().all():
            raise NumericsError(
                "particles of the pool left the finite numbers: take more steps or a weaker field "
                "(smaller eta)."
            )
        start, labels = self._fresh(len(ended), streams)
        self.pool[rows], self.pool[ended] = moved, start
        self.nodes[rows] += 1
        self.nodes[ended] = 0
        if self.pool_labels is not None and labels is not None:
            self.pool_labels[ended] = labels

    def _fresh(self, n: int, streams: Streams) -> tuple[Tensor, Tensor | None]:
        """Particles at t = 0, and their labels."""
        labels = None if n == 0 else self.labels(n, generator=streams.latent)
        return self.start(n, streams.latent), labels

    def _labels_of(self, rows: Tensor) -> Tensor | None:
        return None if self.pool_labels is None else self.pool_labels[rows]
