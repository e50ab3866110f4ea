"""Solvers: one loop, in which a subclass writes one ``step``.

They integrate ``dx = drift(x, t) dt + diffusion(t) dW`` forward in generation time. Noise enters as
Brownian increments asked for by time interval, so that it is independent of the steps taken.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from partikel.errors import ConfigError, NumericsError
from partikel.schedules import Schedule
from partikel.tensors import expand_like

Drift = Callable[[Tensor, Tensor], Tensor]
Brownian = Callable[[Tensor, float, float], Tensor]
"""(x, t, t_next) -> W(t_next) - W(t), shaped like x."""


def brownian_increments(generator: torch.Generator) -> Brownian:
    """Independent increments N(0, (t_next - t) I) from a generator."""

    def increment(x: Tensor, t: float, t_next: float) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return noise * math.sqrt(t_next - t)

    return increment


@dataclass
class Dynamics:
    """What is integrated.

    Attributes:
        drift: (x (B, ...), t (B,)) -> velocity (B, ...).
        diffusion: t (B,) -> noise scale (B,); None for an ODE.
        schedule: the path of noise levels, for solvers that churn.
        defined_at_end: whether the drift exists at the last node (a score at σ = 0 does not).
        evaluations: number of drift evaluations so far.
    """

    drift: Drift
    diffusion: Callable[[Tensor], Tensor] | None = None
    schedule: Schedule | None = None
    defined_at_end: bool = True
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


@dataclass(frozen=True)
class State:
    """A node of a trajectory.

    Attributes:
        step: number of steps taken so far.
        t: generation time.
        x: (B, ...) particles.
        evaluations: drift evaluations so far (NFE).
    """

    step: int
    t: float
    x: Tensor
    evaluations: int


class Solver(ABC):
    """Base of all solvers; it owns the loop.

    Attributes:
        stochastic: whether steps use noise even without a diffusion.
    """

    stochastic: bool = False

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
        """This solver, told how many steps the whole path takes."""
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
            brownian: the noise itself, instead of a generator (a fixed path, say).

        Yields:
            N + 1 states (or stop + 1), the first being the start.

        Raises:
            ConfigError: for an impossible ``stop``, or noise without a source.
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


@dataclass(frozen=True)
class Euler(Solver):
    """x + v dt: order 1; ignores a diffusion (see :class:`EulerMaruyama`)."""

    def step(
        self,
        dynamics: Dynamics,
        x: Tensor,
        t: float,
        t_next: float,
        brownian: Brownian | None,
        last: bool,
    ) -> Tensor:
        """One Euler step."""
        if dynamics.diffusion is not None:
            raise ConfigError("Euler integrates ODEs: use EulerMaruyama for a model with noise.")
        return x + (t_next - t) * dynamics.velocity(x, t)


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x + v dt + g dW: strong order 1/2 (1 for additive noise), weak order 1.

    Args:
        noise_in_last_step: False leaves the last step without noise, as samplers of images do and
            GPM's Algorithm 3 with temperature asks.
    """

    noise_in_last_step: bool = True

    def step(
        self,
        dynamics: Dynamics,
        x: Tensor,
        t: float,
        t_next: float,
        brownian: Brownian | None,
        last: bool,
    ) -> Tensor:
        """One Euler-Maruyama step."""
        moved = x + (t_next - t) * dynamics.velocity(x, t)
        scale = dynamics.noise_scale(x, t)
        if scale is None or (last and not self.noise_in_last_step):
            return moved
        assert brownian is not None
        return moved + scale * brownian(x, t, t_next)


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's second-order method, with the churn of Karras et al. 2022 (their Algorithm 2).

    The last step is Euler's where the drift does not exist at the end (σ = 0): N steps then cost
    2N - 1 evaluations.

    Args:
        churn: S_churn; each step first raises σ by the factor 1 + min(churn/N, √2 - 1).
        churn_min: S_tmin, the lowest σ at which to churn.
        churn_max: S_tmax, the highest.
        churn_noise: S_noise, standard deviation of the added noise.
        steps: N, which churn is divided by; set by :meth:`prepared`.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.churn < 0 or self.churn_noise < 0:
            raise ConfigError(
                f"churn and churn_noise must be >= 0, got {self.churn} and {self.churn_noise}."
            )

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether there is churn."""
        return self.churn > 0

    def prepared(self, steps: int) -> Solver:
        """With the number of steps that the churn is divided by."""
        return replace(self, steps=steps)

    def step(
        self,
        dynamics: Dynamics,
        x: Tensor,
        t: float,
        t_next: float,
        brownian: Brownian | None,
        last: bool,
    ) -> Tensor:
        """One Heun step, after churning."""
        if dynamics.diffusion is not None:
            raise ConfigError("Heun integrates ODEs: use EulerMaruyama for a model with noise.")
        if self.churn > 0:
            x, t = self._churned(dynamics, x, t, brownian)
        dt = t_next - t
        velocity = dynamics.velocity(x, t)
        moved = x + dt * velocity
        if last and not dynamics.defined_at_end:
            return moved
        return x + dt / 2 * (velocity + dynamics.velocity(moved, t_next))

    def _churned(
        self, dynamics: Dynamics, x: Tensor, t: float, brownian: Brownian | None
    ) -> tuple[Tensor, float]:
        schedule = dynamics.schedule
        if schedule is None:
            raise ConfigError("churn raises the noise level: it needs a model with a schedule.")
        assert brownian is not None
        assert self.steps is not None
        sigma = float(schedule.sigma(torch.tensor(t, dtype=torch.float64)))
        if not self.churn_min <= sigma <= self.churn_max:
            return x, t
        raised = sigma * (1 + min(self.churn / self.steps, math.sqrt(2) - 1))
        time = float(schedule.time(torch.tensor(raised, dtype=torch.float64)))
        extra = math.sqrt(raised**2 - sigma**2) * self.churn_noise
        return x + extra * brownian(x, 0.0, 1.0), time


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": Euler,
    "heun": Heun,
    "euler-maruyama": EulerMaruyama,
}
"""Every solver by the name that configurations use."""
