"""Solvers of SDEs with additive noise, dx = drift(x, t) dt + diffusion(t) dW, and correctors.

Without a diffusion each of them integrates the ODE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from partikel.errors import ConfigError
from partikel.errors.checks import Positive, Range
from partikel.solvers.base import Dynamics, Solver, Step
from partikel.solvers.noise import motion


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x + v dt + g dW: strong order 1/2 (1 for additive noise), weak order 1.

    Args:
        noise_in_last_step: False leaves the last step without noise, as samplers of images do and
            GPM's Algorithm 3 with temperature asks.
    """

    noise_in_last_step: bool = True

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """One Euler-Maruyama step."""
        moved = x + step.dt * dynamics.velocity(x, step.t)
        scale = dynamics.noise_scale(x, step.t)
        if scale is None or (step.last and not self.noise_in_last_step):
            return moved
        assert step.noise is not None
        return moved + scale * step.noise(x, step.t, step.t_next)


@dataclass(frozen=True)
class StochasticHeun(Solver):
    """Heun's method with the same noise in both stages: strong order 1, weak order 2.

    Both drifts are averaged, and both noise scales; the last step has one drift where there is none at
    the end. It needs increments only. Source: Kloeden & Platen 1992, §15.1 (additive noise).
    """

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """One step: predict with noise, then average the drifts."""
        t, t_next, dt = step.t, step.t_next, step.dt
        start = x
        scale, scale_next = dynamics.noise_scale(x, t), dynamics.noise_scale(x, t_next)
        if scale is not None and scale_next is not None:
            assert step.noise is not None
            start = x + (scale + scale_next) / 2 * step.noise(x, t, t_next)
        velocity = dynamics.velocity(x, t)
        moved = start + dt * velocity
        if step.last and not dynamics.defined_at_end:
            return moved
        return start + dt / 2 * (velocity + dynamics.velocity(moved, t_next))


@dataclass(frozen=True)
class SRA1(Solver):
    """Rößler's stochastic Runge-Kutta method for additive noise: strong order 3/2, weak order 2.

    It asks for the area under the noise as well (:meth:`BrownianMotion.with_area`), and for the drift
    at t and three quarters of the step: never at the end. Source: Rößler 2010, Table 6.3 (SRA1).
    """

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """One step of two drifts."""
        t, t_next, dt = step.t, step.t_next, step.dt
        velocity = dynamics.velocity(x, t)
        inner, noise = x + 0.75 * dt * velocity, 0.0
        scale, scale_next = dynamics.noise_scale(x, t), dynamics.noise_scale(x, t_next)
        if scale is not None and scale_next is not None:
            increment, area = motion(step.noise).with_area(x, t, t_next)
            inner = inner + 1.5 * scale_next * area / dt
            noise = scale_next * increment + (scale - scale_next) * area / dt
        later = dynamics.velocity(inner, t + 0.75 * dt)
        return x + dt * (velocity + 2 * later) / 3 + noise


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """A solver's step, then Langevin steps along the score of the law that it should have reached.

    A corrector step is x + ε s + √(2ε) z with z ~ N(0, I), s = ∇log ρ_t(x) and ε = 2 (r ‖z‖/‖s‖)²:
    Song et al. 2021, Algorithms 4 and 5 (whose α_i tends to 1 for small steps). The norms are means
    over the batch, as in the authors' code: a size of each particle's own would depend on x and so
    change the law; chunks of particles therefore move by slightly different ε.

    The steps leave the law unchanged but for their finite size: on a Gaussian with D = 1 they settle at
    1 + r² times its variance. That bias stays however many steps the predictor takes, and vanishes
    with r. There is no correction at σ = 0, where there is no score.

    Args:
        predictor: any solver that does not look back at earlier steps (a corrector's noise would be
            taken for the path's curvature).
        corrections: n, Langevin steps after each of the predictor's.
        snr: r > 0, the ratio of the lengths of a correction's drift and noise (0.16 in the paper for
            images, VE).

    Raises:
        ConfigError: for a multistep predictor or settings out of range; from a step, without a score.
    """

    predictor: Solver = field(default_factory=EulerMaruyama)
    corrections: Annotated[int, Range(0, 10**5)] = 1
    snr: Positive = 0.16

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.predictor.multistep:
            raise ConfigError(
                f"{type(self.predictor).__name__} looks back at steps that a corrector disturbs: "
                "choose a predictor of one step."
            )

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether the corrector or the predictor draws noise."""
        return self.corrections > 0 or self.predictor.stochastic

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """The predictor's step, and the corrections at its end."""
        x = self.predictor.step(dynamics, x, step)
        if step.last and not dynamics.defined_at_end:
            return x
        for index in range(self.corrections):
            score = dynamics.log_gradient(x, step.t_next)
            # A churning predictor kicks at t_next too, as the first there.
            noise = motion(step.noise).kick(x, step.t_next, index + 1)
            ratio = noise.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
            size = 2 * (self.snr * ratio) ** 2
            x = x + size * score + (2 * size).sqrt() * noise
        return x
