"""The loop that all solvers share, and what it integrates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from partikel.errors import ConfigError, NumericsError
from partikel.errors.checks import Checked, checked
from partikel.schedules import Schedule
from partikel.solvers.noise import Brownian, brownian_increments
from partikel.tensors import all_finite, expand_like

Drift = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> dx/dt, shaped like x."""


@checked
@dataclass
class Dynamics:
    """What is integrated; all particles stand at one time t, ().

    Attributes:
        drift: (x (B, ...), t) -> velocity (B, ...). Where particles leave, fewer come, from the front.
        diffusion: t -> noise scale, (); None for an ODE.
        schedule: the path of noise levels, for solvers that churn or integrate its linear part.
        defined_at_end: whether the drift exists at the last node (a score at σ = 0 does not).
        score: (x (B, ...), t) -> ∇log ρ_t(x) (B, ...), for correctors: u s_p(u x, σ) where the
            law ρ_t is that of the data noised by the schedule.
        evaluations: number of drift and score evaluations so far.
    """

    drift: Drift
    diffusion: Callable[[Tensor], Tensor] | None = None
    schedule: Schedule | None = None
    defined_at_end: bool = True
    score: Drift | None = None
    evaluations: int = field(default=0, init=False)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """The drift at one time for all particles, counted."""
        self.evaluations += 1
        return self.drift(x, x.new_tensor(t))

    def noise_scale(self, x: Tensor, t: float) -> Tensor | None:
        """The diffusion at one time, broadcastable over x."""
        if self.diffusion is None:
            return None
        return expand_like(self.diffusion(x.new_tensor(t)), x)

    def log_gradient(self, x: Tensor, t: float) -> Tensor:
        """The score at one time for all particles, counted."""
        if self.score is None:
            raise ConfigError(
                "a corrector follows the score of the particles' law, which this model does not "
                "give: choose another solver, or a predictor-corrector without corrections."
            )
        self.evaluations += 1
        return self.score(x, x.new_tensor(t))


@dataclass(frozen=True)
class State:
    """A node of a trajectory.

    Attributes:
        step: number of steps taken so far.
        t: generation time.
        x: (B, ...) particles.
        evaluations: drift and score evaluations so far (NFE).
    """

    step: int
    t: float
    x: Tensor
    evaluations: int


class Step(NamedTuple):
    """One step of a run along nodes t_0 < ... < t_N (or falling ones: the same path backwards).

    Attributes:
        t: where it starts.
        t_next: where it ends.
        number: of the step, from 0.
        of: N, the number of steps of the whole path.
        noise: source of noise; None for deterministic runs.
        end: t_N, where the path ends; at its horizon unless given.
    """

    t: float
    t_next: float
    number: int = 0
    of: int = 1
    noise: Brownian | None = None
    end: float | None = None

    @property
    def last(self) -> bool:
        """Whether it ends where the path does."""
        return self.number == self.of - 1

    @property
    def dt(self) -> float:
        """Its length."""
        return self.t_next - self.t


class Solver(Checked, ABC):
    """Base of all solvers; it owns the loop. A solver is a setting and remembers nothing.

    Attributes:
        stochastic: whether steps use noise even without a diffusion.
        multistep: whether a step looks back at earlier ones of its run (see :meth:`advance`).
    """

    stochastic: bool = False
    multistep: bool = False

    @abstractmethod
    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """Move particles (B, ...) along a step, where nothing is known of earlier ones."""

    def advance(self, dynamics: Dynamics, x: Tensor, step: Step, memory: Any) -> tuple[Tensor, Any]:
        """:meth:`step`, with what a multistep method remembers handed along.

        Args:
            dynamics: what is integrated.
            x: (B, ...) particles at the start of the step.
            step: from where to where.
            memory: what the last step returned (of these particles and, at the end, of some that have
                left since); None at first.

        Returns:
            (B, ...) particles at the end of the step, and what to remember.
        """
        return self.step(dynamics, x, step), None

    def stream(
        self,
        dynamics: Dynamics,
        x: Tensor,
        times: Tensor,
        *,
        start: int = 0,
        stop: int | None = None,
        generator: torch.Generator | None = None,
        brownian: Brownian | None = None,
        keep: Sequence[int] | None = None,
    ) -> Iterator[State]:
        """Integrate, handing out every node; the caller keeps what it needs.

        The one loop through which particles are sampled, simulated for training, and moved in pools.

        Args:
            dynamics: what is integrated.
            x: (B, ...) particles at times[start].
            times: (N + 1,) increasing nodes in float64 (or falling ones).
            start: node to start from.
            stop: node at which to stop early; None for the last, N.
            generator: source of noise, where the dynamics or the solver need any.
            brownian: the noise itself, instead of a generator (a :class:`BrownianPath`, say).
            keep: how many particles, from the front, go on from each node; None for all.

        Yields:
            States at the nodes from ``start`` to ``stop``.

        Raises:
            ConfigError: for an impossible ``stop``, noise without a source, or dynamics that the
                solver cannot integrate.
            NumericsError: if particles leave the finite numbers.
        """
        if not (x.is_floating_point() and times.ndim == 1 and times.isfinite().all()):
            raise ValueError(
                "particles are floating-point numbers and times finite ones, (N + 1,): got "
                f"{x.dtype} and times {tuple(times.shape)}."
            )
        nodes = times.tolist()
        of = len(nodes) - 1
        stop = of if stop is None else stop
        if not start <= stop <= of:
            raise ConfigError(
                f"cannot stop after {stop} steps: the grid has {of}; choose {start} to that."
            )
        if brownian is None and generator is not None:
            brownian = brownian_increments(generator)
        if brownian is None and (self.stochastic or dynamics.diffusion is not None):
            raise ConfigError("this sampler draws noise: pass a generator.")
        evaluations, memory = dynamics.evaluations, None
        yield State(start, nodes[start], x, 0)
        for i in range(start, stop):
            if keep is not None:
                x = x[: keep[i]]
            step = Step(nodes[i], nodes[i + 1], i, of, brownian, nodes[-1])
            x, memory = self.advance(dynamics, x, step, memory)
            if not all_finite(x):
                raise NumericsError(
                    f"particles left the finite numbers at step {i + 1} of {stop} (t = "
                    f"{nodes[i + 1]:.4g}): take more steps or a weaker field (smaller eta)."
                )
            yield State(i + 1, nodes[i + 1], x, dynamics.evaluations - evaluations)

    def solve(
        self,
        dynamics: Dynamics,
        x: Tensor,
        times: Tensor,
        *,
        stop: int | None = None,
        generator: torch.Generator | None = None,
        brownian: Brownian | None = None,
    ) -> State:
        """The last state of :meth:`stream`."""
        states = self.stream(dynamics, x, times, stop=stop, generator=generator, brownian=brownian)
        return deque(states, maxlen=1).pop()
