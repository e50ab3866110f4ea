"""Solvers of ODEs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

from partikel.errors import ConfigError, NumericsError, nearest
from partikel.errors.checks import NotNegative, Positive, checked
from partikel.solvers.base import Dynamics, Solver, Step
from partikel.solvers.noise import motion

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
"""Methods of torchdiffeq whose steps follow the error."""

MOST_STEPS = 2**12
"""Steps of an interval, tried or taken, after which an adaptive method gives up."""

Integrated = TypeVar("Integrated", Tensor, tuple[Tensor, Tensor])


class ODESolver(Solver):
    """Base of solvers that refuse a diffusion."""

    def _refuse_noise(self, dynamics: Dynamics) -> None:
        if dynamics.diffusion is not None:
            raise ConfigError(
                f"{type(self).__name__} integrates ODEs: "
                "use EulerMaruyama, StochasticHeun or SRA1 for a model with noise."
            )


@dataclass(frozen=True)
class Euler(ODESolver):
    """x + v dt: order 1; refuses a diffusion (see :class:`EulerMaruyama`)."""

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """One Euler step."""
        self._refuse_noise(dynamics)
        return x + step.dt * dynamics.velocity(x, step.t)


@dataclass(frozen=True)
class Heun(ODESolver):
    """Heun's second-order method, with the churn of Karras et al. 2022 (their Algorithm 2).

    The last step is Euler's where the drift does not exist at the end (σ = 0): N steps then cost
    2N - 1 evaluations.

    Args:
        churn: S_churn; each step first raises σ by the factor 1 + min(churn/N, √2 - 1).
        churn_min: S_tmin, the lowest σ at which to churn.
        churn_max: S_tmax, the highest; None for all.
        churn_noise: S_noise, standard deviation of the added noise.
    """

    churn: NotNegative = 0.0
    churn_min: NotNegative = 0.0
    churn_max: NotNegative | None = None
    churn_noise: NotNegative = 1.0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether there is churn."""
        return self.churn > 0

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """One Heun step, after churning."""
        self._refuse_noise(dynamics)
        t = step.t
        if self.churn > 0:
            x, t = self._churned(dynamics, x, step)
        dt = step.t_next - t
        velocity = dynamics.velocity(x, t)
        moved = x + dt * velocity
        if step.last and not dynamics.defined_at_end:
            return moved
        return x + dt / 2 * (velocity + dynamics.velocity(moved, step.t_next))

    def _churned(self, dynamics: Dynamics, x: Tensor, step: Step) -> tuple[Tensor, float]:
        schedule = dynamics.schedule
        if schedule is None:
            raise ConfigError("churn raises the noise level: it needs a model with a schedule.")
        now = torch.tensor(step.t, dtype=torch.float64)
        sigma = float(schedule.sigma(now))
        if sigma < self.churn_min or (self.churn_max is not None and sigma > self.churn_max):
            return x, step.t
        raised = sigma * (1 + min(self.churn / step.of, math.sqrt(2) - 1))
        time = schedule.time(torch.tensor(raised, dtype=torch.float64))
        extra = math.sqrt(raised**2 - sigma**2) * self.churn_noise
        kicked = x * float(schedule.u(now)) + extra * motion(step.noise).kick(x, step.t)
        return kicked / float(schedule.u(time)), float(time)  # x is y/u, and y has the noise


@dataclass(frozen=True)
class Midpoint(ODESolver):
    """The explicit midpoint method: order 2; it asks for no drift at the end."""

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """One step of two drifts."""
        self._refuse_noise(dynamics)
        half = x + step.dt / 2 * dynamics.velocity(x, step.t)
        return x + step.dt * dynamics.velocity(half, step.t + step.dt / 2)


@dataclass(frozen=True)
class RK4(ODESolver):
    """The classical Runge-Kutta method: order 4; a last step without a drift at its end is Euler's."""

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """One step of four drifts."""
        self._refuse_noise(dynamics)
        dt, middle = step.dt, step.t + step.dt / 2
        first = dynamics.velocity(x, step.t)
        if step.last and not dynamics.defined_at_end:
            return x + dt * first
        second = dynamics.velocity(x + dt / 2 * first, middle)
        third = dynamics.velocity(x + dt / 2 * second, middle)
        fourth = dynamics.velocity(x + dt * third, step.t_next)
        return x + dt / 6 * (first + 2 * second + 2 * third + fourth)


@dataclass(frozen=True)
class AdaptiveODE(ODESolver):
    """Runge-Kutta methods of torchdiffeq, whose steps follow the error; states at the grid's nodes.

    The error is that of the whole batch, so that a particle's path depends (within the tolerance) on
    its companions. Every interval of the grid starts anew and costs some eight evaluations at least: a
    grid of few nodes is cheapest. Where the drift does not exist at the end, the last interval is a
    step of Euler's.

    Args:
        method: "dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun".
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.

    Raises:
        ConfigError: for another method, or tolerances that are not positive.
        NumericsError: (from a step) where the tolerance cannot be reached.
    """

    method: str = "dopri5"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.method not in ADAPTIVE:
            raise ConfigError(
                f"no adaptive method is called '{self.method}': {nearest(self.method, ADAPTIVE)}."
            )

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """As many steps as the tolerance asks for."""
        self._refuse_noise(dynamics)
        if step.last and not dynamics.defined_at_end:
            return x + step.dt * dynamics.velocity(x, step.t)
        return solve_adaptively(
            dynamics.velocity, x, step, method=self.method, rtol=self.rtol, atol=self.atol
        )


@checked
def solve_adaptively(
    rate: Callable[[Integrated, float], Integrated],
    state: Integrated,
    step: Step,
    *,
    method: str,
    rtol: float,
    atol: float,
) -> Integrated:
    """Integrate d(state)/dt = rate(state, t) along a step, forwards or backwards, by torchdiffeq.

    Args:
        rate: asked within the step only.
        state: a tensor, or a tuple of tensors, each of which keeps the tolerance.
        step: from where to where.
        method: one of :data:`ADAPTIVE`.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Raises:
        NumericsError: where the tolerance cannot be reached, in :data:`MOST_STEPS` steps at least.
    """
    from torchdiffeq import odeint  # it brings scipy's integrators along

    low, high = sorted((step.t, step.t_next))
    first = state if isinstance(state, Tensor) else state[0]
    ends = torch.tensor([step.t, step.t_next], dtype=torch.float64, device=first.device)

    def at(time: Tensor, state: Integrated) -> Integrated:
        # The search for a first step may look beyond the interval, and so beyond the path.
        return rate(state, min(max(float(time), low), high))

    options = {"step_t": ends[1:], "max_num_steps": MOST_STEPS}
    try:
        path = odeint(at, state, ends, rtol=rtol, atol=atol, method=method, options=options)
    except AssertionError as failure:  # its steps shrank to nothing, or were too many
        raise NumericsError(
            f"the adaptive solver cannot keep its tolerance after t = {step.t:.4g}, in {MOST_STEPS} "
            "steps or at all (a field that jumps, or is very steep): raise rtol and atol, compute in "
            "float64, or choose a solver of fixed steps (heun, rk4)."
        ) from failure
    ended = path[-1] if isinstance(path, Tensor) else tuple(part[-1] for part in path)
    return cast(Integrated, ended)
