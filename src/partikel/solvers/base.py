"""The loop that all solvers share, and what it integrates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partikel.errors import ConfigError, NumericsError
from partikel.schedules import Schedule
from partikel.solvers.noise import Brownian, brownian_increments
from partikel.tensors import expand_like

Drift = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Dynamics:
    """What is integrated.

    Attributes:
        drift: (x (B, ...), t (B,)) -> velocity (B, ...).
        diffusion: t (B,) -> noise scale (B,); None for an ODE.
        schedule: the path of noise levels, for solvers that churn or integrate its linear part.
        defined_at_end: whether the drift exists at the last node (a score at σ = 0 does not).
        score: (x (B, ...), t (B,)) -> ∇log ρ_t(x) (B, ...), for correctors: u s_p(u x, σ) where the
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
        return self.drift(x, x.new_tensor(t).expand(len(x)))

    def noise_scale(self, x: Tensor, t: float) -> Tensor | None:
        """The diffusion at one time, broadcastable over x."""
        if self.diffusion is None:
            return None
        return expand_like(self.diffusion(x.new_tensor(t).expand(len(x))), x)

    def log_gradient(self, x: Tensor, t: float) -> Tensor:
        """The score at one time for all particles, counted."""
        if self.score is None:
            raise ConfigError(
                "a corrector follows the score of the particles' law, which this model does not "
                "give: choose another solver, or a predictor-corrector without corrections."
            )
        self.evaluations += 1
        return self.score(x, x.new_tensor(t).expand(len(x)))


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


class Solver(ABC):
    """Base of all solvers; it owns the loop.

    A solver is a setting and remembers nothing. What a run has to remember (the number of its steps,
    what a multistep method saw) belongs to the copy that :meth:`prepared` makes for it.

    Attributes:
        stochastic: whether steps use noise even without a diffusion.
        multistep: whether a step looks back at earlier ones of its run.
    """

    stochastic: bool = False
    multistep: bool = False

    @abstractmethod
    def step(
        self,
        dynamics: Dynamics,
        x: Tensor,
        t: float,
        t_next: float,
        brownian: Brownian | None,
        last: bool,
    ) -> Tensor:
        """Move particles from t to t_next.

        Args:
            dynamics: what is integrated.
            x: (B, ...) particles at t.
            t: start of the step.
            t_next: end of the step.
            brownian: source of noise; None for deterministic runs.
            last: whether t_next is the end of the path.

        Returns:
            (B, ...) particles at t_next.
        """

    def prepared(self, steps: int) -> Solver:
        """This solver for one run along a path of so many steps, to be called once for each run.

        The steps of a run follow each other; particles may leave between them, from the end of x.
        """
        return self

    def stream(
        self,
        dynamics: Dynamics,
        x: Tensor,
        times: Tensor,
        *,
        stop: int | None = None,
        generator: torch.Generator | None = None,
        brownian: Brownian | None = None,
    ) -> Iterator[State]:
        """Integrate, handing out every node; the caller keeps what it needs.

        Args:
            dynamics: what is integrated.
            x: (B, ...) particles at times[0].
            times: (N + 1,) increasing nodes in float64.
            stop: number of steps after which to stop early; None for all N.
            generator: source of noise, where the dynamics or the solver need any.
            brownian: the noise itself, instead of a generator (a :class:`BrownianPath`, say).

        Yields:
            N + 1 states (or stop + 1), the first being the start.

        Raises:
            ConfigError: for an impossible ``stop``, noise without a source, or dynamics that the
                solver cannot integrate.
            NumericsError: if particles leave the finite numbers.
        """
        nodes = times.tolist()
        steps = len(nodes) - 1 if stop is None else stop
        if not 0 <= steps <= len(nodes) - 1:
            raise ConfigError(
                f"cannot stop after {steps} steps: the grid has {len(nodes) - 1}; choose 0 to that."
            )
        if brownian is None and generator is not None:
            brownian = brownian_increments(generator)
        if brownian is None and (self.stochastic or dynamics.diffusion is not None):
            raise ConfigError("this sampler draws noise: pass a generator.")
        start = dynamics.evaluations
        solver = self.prepared(len(nodes) - 1)
        yield State(0, nodes[0], x, 0)
        for i in range(steps):
            last = i == len(nodes) - 2
            x = solver.step(dynamics, x, nodes[i], nodes[i + 1], brownian, last)
            if not torch.isfinite(x).all():
                raise NumericsError(
                    f"particles left the finite numbers at step {i + 1} of {steps} (t = "
                    f"{nodes[i + 1]:.4g}): take more steps or a weaker field (smaller eta)."
                )
            yield State(i + 1, nodes[i + 1], x, dynamics.evaluations - start)

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
        *_, final = self.stream(
            dynamics, x, times, stop=stop, generator=generator, brownian=brownian
        )
        return final
