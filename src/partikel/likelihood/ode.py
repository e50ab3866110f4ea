"""Exact log-likelihood by the probability flow, and its inversion (framework §8; Song et al. 2021, §4.3).

    log ρ(x_T) = log π(x_0) - ∫ ∇·v(x_t, t) dt        along dx = v dt, followed from x_T back to x_0

It is the likelihood of the *ODE's* law: not of a sampler with noise, nor of a coarse Euler map (see
:mod:`partikel.likelihood.maps` and :mod:`partikel.likelihood.agreement`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from partikel.errors import ConfigError, NumericsError, nearest
from partikel.errors.checks import Checked, Count, Positive, checked
from partikel.likelihood.flow import (
    ProbabilityFlow,
    check_derivative,
    divergence,
    probability_flow,
    probes_of,
)
from partikel.likelihood.method import Densities, Method, Worth, check_points
from partikel.models import Carrier
from partikel.solvers import ADAPTIVE, SOLVERS, Dynamics, Step, solve_adaptively

FIXED = ("euler", "midpoint", "heun", "rk4")
"""Solvers of fixed steps."""

EXACT_DIM = 32
"""Largest D for which the divergence is exact unless asked otherwise."""

Divergence: TypeAlias = Literal["auto", "exact", "rademacher", "gaussian"]

_State: TypeAlias = tuple[Tensor, Tensor]
_Rate: TypeAlias = Callable[[float, Tensor], _State]


@dataclass(frozen=True)
class Integrator(Checked):
    """How the ODE is integrated.

    Attributes:
        method: "dopri5", "dopri8", "bosh3", "adaptive_heun" (torchdiffeq, whose steps follow the error), or
            "rk4", "heun", "midpoint", "euler" with fixed steps.
        tolerance: of an adaptive step, relative and absolute.
        steps: of a fixed method, equal in log σ (or in t, without a path).

    Raises:
        ConfigError: for another method, or settings out of range.
    """

    method: str = "dopri5"
    tolerance: Positive = 1e-5
    steps: Count = 100

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        methods = (*ADAPTIVE, *FIXED)
        if self.method not in methods:
            raise ConfigError(
                f"no method is called '{self.method}': {nearest(self.method, methods)}."
            )

    @property
    def adaptive(self) -> bool:
        """Whether steps follow the error."""
        return self.method in ADAPTIVE

    @property
    def protocol(self) -> dict[str, Any]:
        """For the record."""
        setting = {"tolerance": self.tolerance} if self.adaptive else {"steps": self.steps}
        return {"solver": self.method, **setting}

    @property
    def coarser(self) -> Integrator:
        """Ten times the tolerance, or half the steps: what the result is checked against."""
        return Integrator(self.method, 10 * self.tolerance, max(1, self.steps // 2))

    def solve(self, rate: _Rate, x: Tensor, extra: Tensor, start: float, end: float) -> _State:
        """Integrate (x, extra) from one place of the clock to another; memory is flat in the steps."""
        if self.adaptive:

            def both(state: _State, place: float) -> _State:
                slope, growth = rate(place, state[0])
                return slope, growth.to(state[1])

            tolerance = self.tolerance
            moved, total = solve_adaptively(
                both,
                (x, extra.to(x)),
                Step(start, end),
                method=self.method,
                rtol=tolerance,
                atol=tolerance,
            )
            return moved, total.to(extra)
        width = x[0].numel()

        def drift(state: Tensor, place: Tensor) -> Tensor:
            slope, growth = rate(float(place), state[:, :width].to(x.dtype).reshape(x.shape))
            return torch.cat([slope.flatten(1).to(state), growth.to(state)], 1)

        places = torch.linspace(start, end, self.steps + 1, dtype=torch.float64)
        joined = torch.cat([x.flatten(1).double(), extra.double()], 1)
        final = SOLVERS[self.method]().solve(Dynamics(drift), joined, places).x
        return final[:, :width].to(x.dtype).reshape(x.shape), final[:, width:].to(extra)


DOPRI5 = Integrator()


@dataclass(frozen=True)
class Ode(Method):
    """Log ρ(x) of the probability flow, and whether it converged.

    The ODE is integrated twice, the second time more coarsely with the same probes; the difference is the
    solver's error. Probes stay the same along a path (Grathwohl et al. 2019), so that the ODE is smooth.

    Attributes:
        divergence: "exact" (D derivatives an evaluation), "rademacher" or "gaussian" probes
            (Hutchinson); "auto" is exact up to D = :data:`EXACT_DIM`, else Rademacher.
        probes: number of probes, for the estimators.
        integrator: dopri5 at 1e-5 unless given.
        limit: largest mean error of the solver, in nats per dimension.
        strict: refuse a result beyond the limit; False returns it with ``converged`` false.
        checked: compare the velocity's derivative with its change first
            (:func:`~partikel.likelihood.flow.check_derivative`).

    Raises:
        ConfigError: for settings that cannot be.
    """

    divergence: Divergence = "auto"
    probes: Count = 1
    integrator: Integrator = DOPRI5
    limit: Positive = 0.01
    strict: bool = True
    checked: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not self.integrator.adaptive and self.integrator.steps < 2:
            raise ConfigError("convergence is checked against half the steps: take at least 2.")

    @property
    def protocol(self) -> dict[str, Any]:
        """See :class:`Method`."""
        how = {"divergence": self.divergence, "probes": self.probes}
        return {"method": "ode", **how, **self.integrator.protocol}

    def law(self, model: Carrier | ProbabilityFlow, real: Tensor | None = None) -> ProbabilityFlow:
        """The probability flow of a model, see :func:`~partikel.likelihood.flow.probability_flow`."""
        if isinstance(model, ProbabilityFlow):
            return model
        return probability_flow(model, real=real)

    def check(
        self, law: ProbabilityFlow, x: Tensor, cond: Tensor | None, *, generator: torch.Generator
    ) -> None:
        """Refuse a velocity whose derivative misses its changes."""
        if self.checked:
            check_derivative(law, x, cond, generator=generator)

    def densities(
        self, law: ProbabilityFlow, x: Tensor, cond: Tensor | None, *, generator: torch.Generator
    ) -> Densities:
        """Integrate from the points back to the prior."""
        kind = self.divergence
        if kind == "auto":
            kind = "exact" if law.dim <= EXACT_DIM else "rademacher"
        probes = probes_of(kind, self.probes, x, generator)
        evaluations = 0

        def ask(points: Tensor, t: Tensor) -> _State:
            nonlocal evaluations
            evaluations += 1
            return divergence(law.velocity, points, t, cond, probes)

        def run(how: Integrator) -> tuple[Tensor, Tensor]:
            volume = x.new_zeros(len(x), 1 if probes is None else len(probes)).double()
            latent, volume = _along(law, ask, (x, volume), how, backwards=True)
            if not (latent.isfinite().all() and volume.isfinite().all()):
                raise NumericsError(
                    "points left the finite numbers on their way to the prior: take more steps or a "
                    "smaller tolerance, or compute in float64."
                )
            with torch.no_grad():
                prior = law.prior.log_density(latent.double())
            return latent, prior[:, None] + volume

        latent, each = run(self.integrator)
        _, coarse = run(self.integrator.coarser)
        log_prob = each.mean(1)
        error = torch.zeros_like(log_prob)
        if probes is not None:
            error = each.std(1) / self.probes**0.5 if self.probes > 1 else error * torch.nan
        flaws = (log_prob - coarse.mean(1)).abs()
        return Densities(log_prob, error, flaws, evaluations, latent)

    def worth(self, log_prob: Tensor, flaws: Tensor, dim: int) -> Worth:
        """Whether the solver has converged, in the mean."""
        error = float(flaws.mean())
        converged = error / dim <= self.limit
        if self.strict and not converged:
            mend = "a smaller tolerance" if self.integrator.adaptive else "more steps"
            raise NumericsError(
                f"the likelihood has not converged: half the work changes it by {error / dim:.3g} nats "
                f"per dimension, more than {self.limit:g} (limit): take {mend}."
            )
        return Worth(error, converged)


@checked
def encode(
    flow: ProbabilityFlow,
    x: Tensor,
    *,
    cond: Tensor | None = None,
    integrator: Integrator = DOPRI5,
) -> Tensor:
    """Data -> prior: where points at the flow's end come from at t = 0; (B, ...) -> (B, ...)."""
    return _transport(flow, x, cond, integrator, backwards=True)


@checked
def decode(
    flow: ProbabilityFlow,
    z: Tensor,
    *,
    cond: Tensor | None = None,
    integrator: Integrator = DOPRI5,
) -> Tensor:
    """Prior -> data: the inverse of :func:`encode`."""
    return _transport(flow, z, cond, integrator, backwards=False)


@checked
def reconstruction_error(
    flow: ProbabilityFlow,
    x: Tensor,
    *,
    cond: Tensor | None = None,
    integrator: Integrator = DOPRI5,
) -> Tensor:
    """Root mean square over the coordinates of data -> prior -> data, minus the data: (B,)."""
    z = encode(flow, x, cond=cond, integrator=integrator)
    again = decode(flow, z, cond=cond, integrator=integrator)
    return (again - x).flatten(1).square().mean(1).sqrt()


def _transport(
    flow: ProbabilityFlow,
    x: Tensor,
    cond: Tensor | None,
    integrator: Integrator,
    *,
    backwards: bool,
) -> Tensor:
    check_points(x, flow.shape)
    nothing = x.new_zeros(len(x), 0)

    @torch.no_grad()
    def ask(points: Tensor, t: Tensor) -> _State:
        return flow.velocity(points, t, cond), nothing

    return _along(flow, ask, (x, nothing), integrator, backwards=backwards)[0]


def _along(
    flow: ProbabilityFlow,
    ask: Callable[[Tensor, Tensor], _State],
    state: _State,
    how: Integrator,
    *,
    backwards: bool,
) -> _State:
    """Points, and the integral of what else ``ask(points, t)`` tells, at the flow's other end."""
    start, end = flow.places

    def rate(place: float, points: Tensor) -> _State:
        t, speed = flow.time(place)
        v, growth = ask(points, points.new_tensor(t))
        return speed * v, speed * growth

    return how.solve(rate, *state, *((end, start) if backwards else (start, end)))
