"""Free particles: the field is integrated at each sampling (GPM Definition 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError
from partikel.fields import Field, Guided, Loss
from partikel.fields.base import Weight
from partikel.fields.particles import Particles
from partikel.models.base import Carrier
from partikel.priors import GaussianPrior
from partikel.schedules import Schedule, TimeGrid, UniformGrid
from partikel.solvers import (
    Dynamics,
    Euler,
    EulerMaruyama,
    Solver,
    State,
    brownian_increments,
)
from partikel.streams import Streams
from partikel.tensors import shared


class ParticleModel(Carrier):
    """Free particles: dx = η·field(x, t) dt (+ noise), from a prior at t = 0 to T.

    Args:
        field: what moves the particles.
        prior: their law at t = 0.
        steps: N, the number of steps.
        eta: η, the field's strength.
        schedule: the path of noise levels, for fields that are asked at σ(t); sets T.
        grid: the nodes of sampling; uniform unless given.
        solver: Euler's unless given (Euler-Maruyama with noise).
        temperature: τ >= 0, weight of an entropy regulariser: noise √(2τη) dW, except in the last
            step (GPM Algorithm 3).
        diffusion: a noise scale of t instead, (B,) -> (B,).
        score: ∇log ρ_t, or what stands for it, for solvers with a corrector.
        times_per_path: how many training particles are taken from each simulated path, at different
            times; 1 is the paper's Algorithm 3.
        truncate: simulate each training particle only up to its own time. The law is the same;
            False is Algorithm 3 as written, as happens for fields that depend on the whole cloud.
        conditional: whether the field takes labels.
        label_weights: (K,) shares of the classes, of a conditional model.
    """

    def __init__(
        self,
        field: Field,
        prior: GaussianPrior,
        *,
        steps: int,
        eta: float = 1.0,
        schedule: Schedule | None = None,
        grid: TimeGrid | None = None,
        solver: Solver | None = None,
        temperature: float = 0.0,
        diffusion: Callable[[Tensor], Tensor] | None = None,
        score: Field | None = None,
        times_per_path: int = 1,
        truncate: bool = True,
        conditional: bool = False,
        label_weights: Tensor | None = None,
    ) -> None:
        super().__init__(conditional, label_weights)
        if steps < 1:
            raise ConfigError(f"a particle model needs at least 1 step, got {steps}.")
        if temperature > 0 and eta < 0:
            raise ConfigError(f"noise needs a field of strength eta >= 0, got {eta}.")
        if temperature < 0:
            raise ConfigError(f"the temperature must be >= 0, got {temperature}.")
        if temperature > 0 and diffusion is not None:
            raise ConfigError("give either a temperature or a diffusion, not both.")
        if not 1 <= times_per_path <= steps:
            raise ConfigError(
                f"times_per_path must lie between 1 and the number of steps ({steps}), "
                f"got {times_per_path}."
            )
        self.field = field
        self.prior = prior
        self.steps = steps
        self.eta = eta
        self.schedule = schedule
        self.horizon = schedule.horizon if schedule is not None else 1.0
        self.grid = grid or UniformGrid(self.horizon)
        self.temperature = temperature
        self.diffusion = diffusion
        # in a tuple, since it shares the field's networks: as a submodule they would be saved twice
        self._score = (score,)
        if temperature > 0:
            scale = (2 * temperature * eta) ** 0.5
            self.diffusion = lambda t: torch.full_like(t, scale)
        maruyama = EulerMaruyama(noise_in_last_step=temperature == 0)
        self.solver = solver or (Euler() if self.diffusion is None else maruyama)
        self.times_per_path = times_per_path
        self.truncate = truncate

    @property
    def sampled(self) -> nn.Module:
        """The field."""
        return self.field

    def losses(self) -> tuple[Loss, ...]:
        """The field's: free particles have nothing to train."""
        return self.field.losses()

    def velocity(
        self, x: Tensor, t: Tensor, cond: Tensor | None = None, field: Field | None = None
    ) -> Tensor:
        """η·field at generation times (B,), at the schedule's noise levels."""
        field = self.field if field is None else field
        sigma = None
        if self.schedule is not None:  # one time for all particles stays one σ for all of them
            sigma = self.schedule.sigma(shared(t)).expand(len(t))
        velocity = field(x, t, sigma, cond)
        return velocity if self.eta == 1 else self.eta * velocity

    def dynamics(
        self,
        cond: Tensor | None = None,
        field: Field | None = None,
        guidance: Weight | None = None,
    ) -> Dynamics:
        """What a solver integrates, for a field that is bound (and guided) if it has to be."""
        schedule, (score,) = self.schedule, self._score
        if guidance is not None and score is not None:
            score = Guided(score, guidance)

        def log_gradient(x: Tensor, t: Tensor) -> Tensor:
            assert score is not None
            sigma = None if schedule is None else schedule.sigma(shared(t)).expand(len(t))
            return score(x, t, sigma, cond)

        return Dynamics(
            lambda x, t: self.velocity(x, t, cond, field),
            self.diffusion,
            schedule,
            defined_at_end=schedule is None or schedule.sigma_end > 0,
            score=None if score is None else log_gradient,
        )

    def stream(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        steps: int | None = None,
        stop: int | None = None,
        solver: Solver | None = None,
        cond: Tensor | None = None,
        guidance: Weight | None = None,
        real: Tensor | None = None,
    ) -> Iterator[State]:
        """Move given particles along the whole path, handing out every node.

        Args:
            x: (B, ...) particles at t = 0.
            generator: source of noise.
            steps: number of steps instead of the model's own.
            stop: stop after so many of them.
            solver: instead of the model's own.
            cond: (B,) labels; None moves the particles by the field of no label.
            guidance: weight of the labels, see :class:`~partikel.fields.Guided`; one evaluation of
                a guided field is two of its network's.
            real: samples of the data, for a field that compares with them.

        Yields:
            States at t = 0, ..., the last one holding the samples.

        Raises:
            ConfigError: for guidance of a model without labels.
        """
        field = self.field
        if guidance is not None:
            if not self.conditional:
                raise ConfigError(
                    "guidance weighs what labels add to a field, and this model was trained without "
                    "labels: leave guidance out."
                )
            field = Guided(field, guidance)
        field = self._bound(real, generator, field)
        times = self.grid.nodes(self.steps if steps is None else steps)
        states = (solver or self.solver).stream(
            self.dynamics(cond, field, guidance), x, times, stop=stop, generator=generator
        )
        while True:  # gradients are off inside a step, not in the consumer's code between steps
            with torch.no_grad():
                state = next(states, None)
            if state is None:
                return
            yield state

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        guidance: Weight | None = None,
        real: Tensor | None = None,
        steps: int | None = None,
        stop: int | None = None,
        solver: Solver | None = None,
        x: Tensor | None = None,
    ) -> Tensor:
        """Draw samples: integrate from the prior (or from given ``x``) and return the end."""
        cond = self._labels(n, cond, generator)
        if x is None:
            x = self._start(n, generator)
        final = x
        for state in self.stream(
            x,
            generator=generator,
            steps=steps,
            stop=stop,
            solver=solver,
            cond=cond,
            guidance=guidance,
            real=real,
        ):
            final = state.x
        return final

    def particles(
        self,
        n: int,
        streams: Streams,
        *,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Particles:
        """Simulated particles at random nodes t_0, ..., t_{N-1} (GPM Algorithms 2-3).

        With ``times_per_path`` = m, n/m paths are simulated and each gives m particles, one from each
        of m equal ranges of nodes.
        """
        shares = self.times_per_path
        if n % shares:
            raise ConfigError(
                f"a batch of {n} particles cannot be taken from paths that give {shares} each: "
                "make the batch a multiple of times_per_path."
            )
        paths = n // shares
        if cond is not None and shares > 1:
            cond = cond[:paths]
        device = streams.latent.device
        place = torch.rand(paths, shares, generator=streams.time, device=device)
        place = (place + torch.arange(shares, device=device)) / shares
        node = (place * self.steps).long().clamp(max=self.steps - 1)
        x = self._start(paths, streams.latent)
        with torch.no_grad():
            points = self._at_nodes(x, node, streams, cond, real)
        times = self.grid.nodes(self.steps)
        t = times.to(device=device, dtype=x.dtype)[node.flatten()]
        return Particles(
            x=points,
            t=t,
            sigma=None if self.schedule is None else self.schedule.sigma(t),
            cond=None if cond is None else cond.repeat_interleave(shares),
        )

    def _at_nodes(
        self,
        x: Tensor,
        node: Tensor,
        streams: Streams,
        cond: Tensor | None,
        real: Tensor | None,
    ) -> Tensor:
        """Positions of path i at nodes node[i, :], as (paths · shares, ...)."""
        field = self._bound(real, streams.noise)
        truncate = self.truncate and "particles" not in field.requires
        order = node[:, -1].argsort(descending=True)  # nodes increase along a row
        x, node = x[order], node[order]
        cond = None if cond is None else cond[order]
        ends = node[:, -1].tolist()
        points = x.new_empty(*node.shape, *x.shape[1:])
        times = self.grid.nodes(self.steps).tolist()
        solver = self.solver.prepared(self.steps)
        brownian = brownian_increments(streams.noise)
        dynamics = self.dynamics(cond, field)
        for step in range(self.steps):
            if truncate:
                alive = sum(end >= step for end in ends)
                if not alive:
                    break
                if alive < len(x):
                    x = x[:alive]
                    cond = None if cond is None else cond[:alive]
                    dynamics = self.dynamics(cond, field)
            path, share = (node[: len(x)] == step).nonzero(as_tuple=True)
            points[path, share] = x[path]
            if step < self.steps - 1:
                x = solver.step(dynamics, x, times[step], times[step + 1], brownian, False)
        unsorted = torch.empty_like(points)
        unsorted[order] = points
        return unsorted.flatten(0, 1)

    def _start(self, n: int, generator: torch.Generator) -> Tensor:
        like = next(self.parameters(), None)
        dtype = torch.get_default_dtype() if like is None else like.dtype
        return self.prior.sample(n, generator=generator, dtype=dtype)
