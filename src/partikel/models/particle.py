"""Free particles: the field is integrated at each sampling (GPM Definition 1)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError
from partikel.errors.checks import Count, NotNegative, checked
from partikel.fields import AlongPath, At, Context, Field, Guided, PathScore
from partikel.fields.base import Weight
from partikel.fields.particles import Particles
from partikel.fields.velocity import velocity_in
from partikel.models.base import Carrier, Sampling
from partikel.priors import GaussianPrior, Prior
from partikel.schedules import KarrasGrid, Nodes, Schedule, TimeGrid, UniformGrid
from partikel.solvers import (
    Dynamics,
    Euler,
    EulerMaruyama,
    Solver,
    State,
)
from partikel.streams import Streams


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
        diffusion: a noise scale of t instead, shaped like it.
        score: ∇log ρ_t, or what stands for it, for solvers with a corrector. A model that gives one on a
            path is one of noised data.
        times_per_path: how many training particles are taken from each simulated path, at different
            times; 1 is the paper's Algorithm 3.
        truncate: simulate each training particle only up to its own time. The law is the same;
            False is Algorithm 3 as written, as happens for fields that depend on the whole cloud, by
            what they compare or by batch norm, which in training takes its statistics from it.
        conditional: whether the field takes labels.
        label_weights: (K,) shares of the classes, of a conditional model.
    """

    kind = "particles"

    def __init__(
        self,
        field: Field,
        prior: Prior,
        *,
        steps: Count,
        eta: float = 1.0,
        schedule: Schedule | None = None,
        grid: TimeGrid | None = None,
        solver: Solver | None = None,
        temperature: NotNegative = 0.0,
        diffusion: Callable[[Tensor], Tensor] | None = None,
        score: Field | None = None,
        times_per_path: Count = 1,
        truncate: bool = True,
        conditional: bool = False,
        label_weights: Tensor | None = None,
    ) -> None:
        super().__init__(field, prior, conditional, label_weights)
        if self.conditional and field.needs & {"real", "particles"}:
            raise ConfigError(
                "this field compares particles with all samples, whatever their labels, so that free "
                "particles of one class would follow all of the data: leave the labels out, or carry it "
                "by a generator, whose training compares class by class."
            )
        if temperature > 0 and eta < 0:
            raise ConfigError(f"noise needs a field of strength eta >= 0, got {eta}.")
        if temperature > 0 and diffusion is not None:
            raise ConfigError("give either a temperature or a diffusion, not both.")
        if not 1 <= times_per_path <= steps:
            raise ConfigError(
                f"times_per_path must lie between 1 and the number of steps ({steps}), "
                f"got {times_per_path}."
            )
        self.shape = prior.shape
        self.steps: int = steps  # type: ignore[override]  # no call without steps here
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

    def velocity(
        self, x: Tensor, t: Tensor, cond: Tensor | None = None, field: Field | None = None
    ) -> Tensor:
        """η·field at generation times, () or (B,), at the schedule's noise levels."""
        field = self.field if field is None else field
        velocity = field(x, self._at(t, cond))
        return velocity if self.eta == 1 else self.eta * velocity

    def dynamics(
        self,
        cond: Tensor | None = None,
        field: Field | None = None,
        guidance: Weight | None = None,
    ) -> Dynamics:
        """What a solver integrates, for a field that is bound (and guided) if it has to be.

        Args:
            cond: (n, ...) labels of all particles; of those that are left, where some leave from the end.
            field: in place of the model's own.
            guidance: of the score.
        """
        (score,) = self._score
        if guidance is not None and score is not None:
            score = Guided(score, guidance)

        def of_rest(x: Tensor) -> Tensor | None:
            return None if cond is None else cond[: len(x)]

        def log_gradient(x: Tensor, t: Tensor) -> Tensor:
            assert score is not None
            return score(x, self._at(t, of_rest(x)))

        return Dynamics(
            lambda x, t: self.velocity(x, t, of_rest(x), field),
            self.diffusion,
            self.schedule,
            defined_at_end=self.schedule is None
            or self.schedule.sigma_end > 0
            or (self.field if field is None else field).defined_at_end,
            score=None if score is None else log_gradient,
        )

    @property
    def follows_path(self) -> bool:
        """See :attr:`Carrier.follows_path`: not where it is known at trained nodes only."""
        return self.schedule is not None and (
            self._score[0] is not None or velocity_in(self.field) is not None
        )

    def along(self, path: Schedule, steps: Count | None = None) -> ParticleModel:
        """The same probability flow along another path: an EDM's along a linear one, and the other way round.

        Args:
            path: the other path.
            steps: even ones in its time, or Karras's where it begins at a finite level of noise; as many as
                this model's unless given.

        Raises:
            ConfigError: for particles on no path of noised data, or that move with noise.
        """
        velocity = velocity_in(self.field)
        if velocity is not None:
            velocity.score  # noqa: B018  refused where the source is no noise, which a path needs
        if not self.follows_path or self.diffusion is not None:
            raise ConfigError(
                "only the probability flow of noised data runs along other paths (an EDM, flow matching, an "
                "ODE of the plane): this model's particles are on no such path, or move with noise."
            )
        assert self.schedule is not None
        field = self.field if self.eta == 1 else self.eta * self.field
        field = AlongPath(field, self.schedule, path)
        finite = math.isfinite(path.sigma_max)
        return ParticleModel(
            field,
            GaussianPrior(self.prior.shape, path.prior_std),
            steps=steps or self.steps,
            schedule=path,
            grid=KarrasGrid(path, max(0.002, path.sigma_end)) if finite else None,
            score=PathScore(field, path),
            times_per_path=self.times_per_path if steps is None else 1,
            conditional=self.conditional,
            label_weights=self.label_weights,
        )

    def pull(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor | None:
        """See :meth:`Carrier.pull`: at the last node that the field knows, where no path carries noise."""
        if self.schedule is not None:
            return None
        at = At(self.grid.nodes(self.steps)[-2].to(x), None, cond)
        return self.field.bind(Context(real=real, generator=generator))(x, at)

    def stream(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        real: Tensor | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Iterator[State]:
        """Move given particles along the whole path, handing out every node.

        Args:
            x: (B, ...) particles at t = 0.
            generator: source of noise.
            cond: (B,) labels; None moves the particles by the field of no label.
            real: samples of the data, for a field that compares with them.
            sampling: how, as of :meth:`sample`.
            options: likewise.

        Yields:
            States at t = 0, ..., the last one holding the samples.

        Raises:
            ConfigError: for guidance of a model without labels.
            NumericsError: if particles leave the finite numbers.
        """
        cond = None if cond is None else self._labels(len(x), cond, generator)
        context = Context(real=real, generator=generator)
        return self._states(self._begun(x), cond, context, Sampling.of(sampling, **options))

    def _states(
        self, x: Tensor, cond: Tensor | None, context: Context, sampling: Sampling
    ) -> Iterator[State]:
        if sampling.path is not None:
            other = self.along(sampling.path)
            x = x * (other.prior.std / self.prior.std)
            yield from other._states(x, cond, context, replace(sampling, path=None))
            return
        field, guidance = self.field, sampling.guidance
        if guidance is not None:
            if not self.conditional:
                raise ConfigError(
                    "guidance weighs what labels add to a field, and this model was trained without "
                    "labels: leave guidance out."
                )
            field = Guided(field, guidance)
        states = (sampling.solver or self.solver).stream(
            self.dynamics(cond, field.bind(context), guidance),
            x,
            (sampling.grid or Nodes()).of(self.grid, self.steps, self.horizon),
            stop=sampling.stop,
            generator=context.generator,
        )
        while True:  # gradients are off inside a step, not in the consumer's code between steps
            with torch.no_grad():
                state = next(states, None)
            if state is None:
                return
            yield state

    def _sampled(
        self, start: Tensor, cond: Tensor | None, context: Context, sampling: Sampling
    ) -> Tensor:
        return deque(self._states(start, cond, context, sampling), maxlen=1).pop().x

    def evaluations(
        self, *, real: Tensor | None = None, sampling: Sampling | None = None, **options: Any
    ) -> int:
        """Counted on two particles."""
        weight = next(self.parameters(), None)
        generator = torch.Generator("cpu" if weight is None else weight.device).manual_seed(0)
        x, cond = self.start(2, generator), self.labels(2, generator=generator)
        context = Context(real=real, generator=generator)
        states = self._states(x, cond, context, Sampling.of(sampling, **options))
        return deque(states, maxlen=1).pop().evaluations

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
        with torch.no_grad():
            x = self._at_nodes(self.start(paths, streams.latent), node, streams, cond, real)
        t = self.grid.nodes(self.steps).to(device=device, dtype=x.dtype)[node.flatten()]
        cond = None if cond is None else cond.repeat_interleave(shares, 0)
        return Particles(x, *self._at(t, cond))

    def _at_nodes(
        self,
        x: Tensor,
        node: Tensor,
        streams: Streams,
        cond: Tensor | None,
        real: Tensor | None,
    ) -> Tensor:
        """Positions of path i at nodes node[i, :], as (paths · shares, ...)."""
        field = self.field.bind(Context(real=real, generator=streams.noise))
        order = node[:, -1].argsort(descending=True)  # nodes increase along a row
        x, node = x[order], node[order]
        cond = None if cond is None else cond[order]
        keep = None
        if self.truncate and not depends_on_cloud(field):  # a path ends at its last node
            keep = (node[:, -1:] > torch.arange(self.steps, device=x.device)).sum(0).tolist()
        places = node.flatten()
        by_node = places.argsort(stable=True)
        met = torch.bincount(places, minlength=self.steps).tolist()
        states = self.solver.stream(
            self.dynamics(cond, field),
            x,
            self.grid.nodes(self.steps),
            stop=self.steps - 1 if keep is None else int(places.max()),
            generator=streams.noise,
            keep=keep,
        )
        paths = (by_node // node.shape[1]).split(met)
        points = torch.cat([state.x[paths[state.step]] for state in states])
        unsorted = torch.empty_like(points).unflatten(0, node.shape)
        unsorted[order] = torch.empty_like(points).index_copy_(0, by_node, points).view_as(unsorted)
        return unsorted.flatten(0, 1)

    def _at(self, t: Tensor, cond: Tensor | None) -> At:
        return At(t, None if self.schedule is None else self.schedule.sigma(t), cond)


def depends_on_cloud(field: Field) -> bool:
    """Whether the velocity of a particle depends on which others are there."""
    return "particles" in field.needs or any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for module in field.modules()
    )


@checked
def free_particles(model: Carrier, otherwise: str) -> ParticleModel:
    """The model itself, if a velocity moves its particles.

    Args:
        model: a carrier.
        otherwise: a sentence that says what to use instead.

    Raises:
        ConfigError: with that sentence, if it makes samples in another way.
    """
    if not isinstance(model, ParticleModel):
        raise ConfigError(otherwise)
    return model


@checked
def nodes_at(model: Carrier, levels: Sequence[float], path: Schedule | None = None) -> Nodes:
    """The nodes at which particles pass through noise levels, from the path's beginning to its end.

    Args:
        model: free particles on a path of noise levels.
        levels: falling ones, below σ_max; that of the beginning may stand there.
        path: another one along which they are followed.

    Raises:
        ConfigError: for a model without such a path, or levels that do not fall along it.
    """
    otherwise = "only free particles pass through noise levels: leave out levels."
    particles = free_particles(model, otherwise)
    schedule = (particles if path is None else particles.along(path)).schedule
    if schedule is None or schedule.sigma_max == schedule.sigma_end:
        raise ConfigError(
            "this model's particles are on no path of noise levels: leave out levels."
        )
    above = any(a <= b for a, b in pairwise((math.inf, *levels)))
    if above or not levels or levels[0] > schedule.sigma_max or levels[-1] < schedule.sigma_end:
        raise ConfigError(
            f"levels fall from {schedule.sigma_max:g} to {schedule.sigma_end:g}, got {list(levels)}."
        )
    times = schedule.time(torch.tensor(levels, dtype=torch.float64)).tolist()
    inner = [t for t in times if 1e-9 < t / schedule.horizon < 1 - 1e-9]
    return Nodes(times=(0.0, *inner, schedule.horizon))
