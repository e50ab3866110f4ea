"""Exponential multistep methods along noise levels: DDIM, DPM-Solver++(2M), UniPC, and the SDE's 2M.

Every probability flow is dy/dσ = (y - D)/σ in y = u x, VE, VP and sub-VP alike, with D the denoiser's
output; any other drift defines a D by it. Over a step of length h in λ = -log σ the linear part is integrated
exactly,

    y_next = (σ_next/σ) y + (1 - e^-h) D̄,

with D̄ the mean of D along the step, later places weighing more (∝ e^λ). The methods differ in D̄ only:
it is that of the polynomial in λ through D at this node and earlier ones, as many as the order
(Adams-Bashforth), and, where a corrector repeats the step once D is known at its end, through that one too
(Adams-Moulton). So the steps depend on the levels alone, not on the schedule. They may begin at the infinite
level of an interpolant.

Source: Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework ..." (arXiv 2302.04867), in D, with
B(h) = e^h - 1; Lu et al. 2022, "DPM-Solver++" (arXiv 2211.01095).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from partikel.denoising import denoiser_from_velocity
from partikel.errors import ConfigError
from partikel.errors.checks import NotNegative
from partikel.schedules import Schedule
from partikel.solvers.base import Dynamics, Step
from partikel.solvers.ode import ODESolver


class _Known(NamedTuple):
    """D at one node, and its log σ."""

    level: float
    denoised: Tensor


class _Past(NamedTuple):
    """What a step remembers: its start, with the nodes that its D̄ was made of, newest first."""

    x: Tensor
    step: Step
    used: tuple[_Known, ...]
    nodes: tuple[_Known, ...]


class _Exponential(ODESolver):
    """The family; a member says its order, and whether it corrects or draws noise."""

    order: int
    corrector: bool = False
    eta: float = 0.0

    @property
    def multistep(self) -> bool:  # type: ignore[override]
        """Whether D of earlier nodes is used."""
        return self.order > 1 or self.corrector

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether it follows the SDE."""
        return self.eta > 0

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """A step without a past: DDIM's, or the SDE's."""
        return self.advance(dynamics, x, step, None)[0]

    def advance(
        self, dynamics: Dynamics, x: Tensor, step: Step, memory: _Past | None
    ) -> tuple[Tensor, _Past | None]:
        """Correct the last step by D at its end, then predict this one."""
        self._refuse_noise(dynamics)
        schedule = dynamics.schedule
        if schedule is None:
            raise ConfigError(
                f"{type(self).__name__} integrates along noise levels: it needs a model with a "
                "schedule; choose heun for others."
            )
        nodes = torch.tensor([step.t, step.t_next], dtype=torch.float64)
        level, level_next = schedule.sigma(nodes).log().tolist()
        if level == -math.inf:
            raise ConfigError(
                f"{type(self).__name__} steps along log σ, which does not begin at σ = 0: begin at an "
                "earlier time, or choose heun."
            )
        if self.stochastic and level_next > level:
            raise ConfigError(
                f"{type(self).__name__} draws noise towards lower levels only: choose unipc-2 to follow a "
                "path backwards."
            )
        velocity = dynamics.velocity(x, step.t)
        known = _Known(level, denoiser_from_velocity(velocity, x, schedule, x.new_tensor(step.t)))
        before: tuple[_Known, ...] = ()
        if memory is not None:
            before = memory.nodes
            if self.corrector:
                first, *others = memory.used
                first = first._replace(denoised=first.denoised[: len(x)])  # some may have left
                mean = _mean(level, first, (*others, known))
                x = self._moved(schedule, memory.x[: len(x)], mean, memory.step)
        order = min(self.order, 1 + len(before))
        end = schedule.horizon if step.end is None else step.end
        to_zero = schedule.sigma_end == 0 and math.isclose(end, schedule.horizon)
        if to_zero or (end == 0 and math.isinf(schedule.sigma_max)):
            # log σ has no end there, and what it ends by does not extrapolate
            order = min(order, step.of - step.number)
        used = (known, *before[: order - 1])
        ahead = _mean(level_next, known, used[1:])
        moved = self._moved(schedule, x, ahead, step)
        if not (self.multistep and math.isfinite(level)):  # nothing is extrapolated from σ = ∞
            return moved, None
        return moved, _Past(x, step, used, (known, *before)[: self.order - 1])

    def _moved(self, schedule: Schedule, x: Tensor, denoised: Tensor, step: Step) -> Tensor:
        """The solution where D is constant: a_next D + b_next/b (x - aD), or the SDE's."""
        nodes = torch.tensor([step.t, step.t_next], dtype=torch.float64)
        (a, a_next), (b, b_next) = schedule.scale(nodes).tolist(), schedule.spread(nodes).tolist()
        if self.eta == 0:
            return a_next * denoised + b_next / b * (x - a * denoised)
        level, level_next = schedule.sigma(nodes).log().tolist()
        forgotten = math.exp(self.eta * (level_next - level))
        assert step.noise is not None
        noise = step.noise(x, step.t, step.t_next) * abs(step.dt) ** -0.5
        kept = b_next / b * forgotten * (x - a * denoised)
        return a_next * denoised + kept + b_next * (1 - forgotten**2) ** 0.5 * noise


def _mean(level_next: float, known: _Known, others: Sequence[_Known]) -> Tensor:
    """D̄ of a step to ``level_next`` from a node, by the polynomial through D there and at others.

    With places r_k = (λ_k - λ)/h of the others, D̄ = D + Σ ρ_k (D_k - D)/r_k, where Σ ρ_k r_k^(n-1) is the
    mean of s^n along the step, s in [0, 1]. One other has the papers' ρ = 1/2, that mean up to O(h).
    """
    level, denoised = known
    if not others:
        return denoised
    h = level - level_next
    places = [(level - other.level) / h for other in others]
    weights = [0.5]
    if len(others) > 1:
        moments = [1.0]  # of s^n under the density ∝ e^(hs): by parts
        for n in range(1, len(others) + 1):
            moments.append(-1 / math.expm1(-h) - n * moments[-1] / h)
        powers = torch.tensor(places, dtype=torch.float64).pow(
            torch.arange(len(others), dtype=torch.float64)[:, None]
        )
        means = torch.tensor(moments[1:], dtype=torch.float64)
        weights = torch.linalg.solve(powers, means).tolist()
    ahead = denoised
    for weight, place, other in zip(weights, places, others, strict=True):
        ahead = ahead + weight / place * (other.denoised[: len(denoised)] - denoised)
    return ahead


@dataclass(frozen=True)
class DDIM(_Exponential):
    """The exponential Euler method along noise levels: order 1, exact where D does not change.

    Source: Song, Meng & Ermon 2021 (eq. 12, η = 0), in the form of Lu et al. 2022, DPM-Solver++(1).
    Where σ itself is the clock and u = 1, it is Euler's method.
    """

    order = 1


@dataclass(frozen=True)
class DPMSolver2M(_Exponential):
    """DPM-Solver++(2M), which is UniP of order 2: order 2 at one evaluation a step.

    D is extrapolated along log σ from this step's and the last one's. The first step, which has no past,
    and a step to σ = 0, where log σ has no end, are DDIM's.

    Source: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling ...", Algorithm 2.
    """

    order = 2


@dataclass(frozen=True)
class UniPC(_Exponential):
    """UniPC-p: a multistep predictor of order p, and a corrector that costs no evaluation.

    The corrector repeats a step once D is known at its end, by D where the predictor came to; the step
    after starts from there, with that D. It raises the order by one. First steps have a lower one, for want
    of a past, as have the last two before σ = 0.

    Args:
        order: p.
        corrector: whether to correct; without, it is UniP.
    """

    order: Literal[1, 2, 3] = 2  # type: ignore[reportIncompatibleVariableOverride]
    corrector: bool = True


@dataclass(frozen=True)
class DPMSolver2MSDE(_Exponential):
    """SDE-DPM-Solver++(2M): DPM-Solver++(2M) of the reverse SDE whose law is that of the flow.

    y_next = (σ_next/σ) e^-ηh y + (1 - e^-(1+η)h) D̄ + σ_next √(1 - e^-2ηh) ε, exact where D does not
    change. It brings its noise along, so that the model is one of a probability flow.

    Source: Lu et al. 2022, "DPM-Solver++", its SDE version, at η = 1.

    Args:
        eta: η, strength of the noise: 1 is the reverse SDE, 0 DPM-Solver++(2M).
    """

    order = 2
    eta: NotNegative = 1.0
