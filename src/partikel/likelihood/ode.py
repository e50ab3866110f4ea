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
from partikel.likelihood.flow import ProbabilityFlow, check_derivative, divergence
from partikel.solvers import (
    ADAPTIVE,
    RK4,
    Dynamics,
    Euler,
    Heun,
    Midpoint,
    Solver,
    Step,
    solve_adaptively,
)

FIXED: dict[str, Callable[[], Solver]] = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "rk4": RK4,
}
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
        final = FIXED[self.method]().solve(Dynamics(drift), joined, places).x
        return final[:, :width].to(x.dtype).reshape(x.shape), final[:, width:].to(extra)


@dataclass(frozen=True)
class LogLikelihood:
    """Log-densities with what they are worth.

    Attributes:
        log_prob: (B,) log ρ(x) in nats, float64.
        standard_error: (B,) of Hutchinson's estimator over its probes; 0 where the divergence is exact,
            nan for one probe, of which no error can be told.
        solver_error: (B,) distance from the result at half the steps, or ten times the tolerance.
        latent: (B, ...) where the points come from at t = 0.
        evaluations: of the velocity, those of the check included.
        converged: whether the solver's error is within the limit.
        protocol: how it was computed.
    """

    log_prob: Tensor
    standard_error: Tensor
    solver_error: Tensor
    latent: Tensor
    evaluations: int
    converged: bool
    protocol: dict[str, Any]


@checked
def log_likelihood(
    flow: ProbabilityFlow,
    x: Tensor,
    *,
    generator: torch.Generator,
    cond: Tensor | None = None,
    divergence: Divergence = "auto",
    probes: int = 1,
    integrator: Integrator | None = None,
    limit: float = 0.01,
    strict: bool = True,
    checked: bool = True,
) -> LogLikelihood:
    """Log ρ(x) of the probability flow, and whether it converged.

    The ODE is integrated twice, the second time more coarsely with the same probes; the difference is the
    solver's error. Probes stay the same along a path (Grathwohl et al. 2019), so that the ODE is smooth.

    Args:
        flow: from :func:`~partikel.likelihood.flow.probability_flow`.
        x: (B, ...) points.
        generator: source of probes; the same state gives the same result.
        cond: (B,) labels, whose log ρ(x | label) it then is.
        divergence: "exact" (D derivatives an evaluation), "rademacher" or "gaussian" probes
            (Hutchinson); "auto" is exact up to D = :data:`EXACT_DIM`, else Rademacher.
        probes: number of probes, for the estimators.
        integrator: dopri5 at 1e-5 unless given.
        limit: largest mean error of the solver, in nats per dimension.
        strict: refuse a result beyond the limit; False returns it with ``converged`` false.
        checked: compare the velocity's derivative with its change first
            (:func:`~partikel.likelihood.flow.check_derivative`).

    Raises:
        ConfigError: for points or settings that cannot be, or a velocity without a derivative.
        NumericsError: where the ODE has not converged (if strict), or leaves the finite numbers.
    """
    flow.check_points(x)
    integrator = integrator or Integrator()
    if divergence == "auto":
        divergence = "exact" if flow.dim <= EXACT_DIM else "rademacher"
    if probes < 1:
        raise ConfigError(f"Hutchinson's estimator needs at least 1 probe, got {probes}.")
    if not integrator.adaptive and integrator.steps < 2:
        raise ConfigError("convergence is checked against half the steps: take at least 2.")
    if checked:
        check_derivative(flow, x, cond, generator=generator)
    vectors = _probes(divergence, probes, x, generator)
    count = [0]

    def run(how: Integrator) -> tuple[Tensor, Tensor]:
        latent, volume = _follow(flow, x, cond, vectors, how, count)
        if not (latent.isfinite().all() and volume.isfinite().all()):
            raise NumericsError(
                "points left the finite numbers on their way to the prior: take more steps or a "
                "smaller tolerance, or compute in float64."
            )
        with torch.no_grad():
            prior = flow.prior.log_density(latent.double())
        return latent, prior[:, None] - volume

    latent, each = run(integrator)
    _, coarse = run(integrator.coarser)
    log_prob = each.mean(1)
    error = (log_prob - coarse.mean(1)).abs()
    standard = torch.zeros_like(log_prob)
    if vectors is not None:
        standard = each.std(1) / each.shape[1] ** 0.5 if probes > 1 else standard * torch.nan
    worst = float(error.mean()) / flow.dim
    converged = worst <= limit
    if strict and not converged:
        mend = "a smaller tolerance" if integrator.adaptive else "more steps"
        raise NumericsError(
            f"the likelihood has not converged: half the work changes it by {worst:.3g} nats per "
            f"dimension, more than {limit:g}; take {mend}, or allow more (limit)."
        )
    protocol = {
        "divergence": divergence
        if vectors is None
        else f"Hutchinson, {probes} {divergence} probes",
        **integrator.protocol,
        "sigma_min": flow.sigma_min,
    }
    return LogLikelihood(log_prob, standard, error, latent, count[0], converged, protocol)


@checked
def encode(
    flow: ProbabilityFlow,
    x: Tensor,
    *,
    cond: Tensor | None = None,
    integrator: Integrator | None = None,
) -> Tensor:
    """Data -> prior: where points at the flow's end come from at t = 0; (B, ...) -> (B, ...)."""
    return _transport(flow, x, cond, integrator, backwards=True)


@checked
def decode(
    flow: ProbabilityFlow,
    z: Tensor,
    *,
    cond: Tensor | None = None,
    integrator: Integrator | None = None,
) -> Tensor:
    """Prior -> data: the inverse of :func:`encode`."""
    return _transport(flow, z, cond, integrator, backwards=False)


@checked
def reconstruction_error(
    flow: ProbabilityFlow,
    x: Tensor,
    *,
    cond: Tensor | None = None,
    integrator: Integrator | None = None,
) -> Tensor:
    """Root mean square over the coordinates of data -> prior -> data, minus the data: (B,)."""
    z = encode(flow, x, cond=cond, integrator=integrator)
    again = decode(flow, z, cond=cond, integrator=integrator)
    return (again - x).flatten(1).square().mean(1).sqrt()


def _follow(
    flow: ProbabilityFlow,
    x: Tensor,
    cond: Tensor | None,
    probes: Tensor | None,
    integrator: Integrator,
    count: list[int],
) -> tuple[Tensor, Tensor]:
    """Points at t = 0, and ∫ ∇·v dt for each probe, (B, K) in float64."""
    start, end = flow.places

    def rate(place: float, points: Tensor) -> _State:
        count[0] += 1
        t, speed = flow.time(place)
        v, growth = divergence(flow.velocity, points, points.new_tensor(t), cond, probes)
        return speed * v, speed * growth

    volume = torch.zeros(len(x), 1 if probes is None else len(probes), device=x.device).double()
    latent, volume = integrator.solve(rate, x, volume, end, start)
    return latent, -volume


def _transport(
    flow: ProbabilityFlow,
    x: Tensor,
    cond: Tensor | None,
    integrator: Integrator | None,
    *,
    backwards: bool,
) -> Tensor:
    flow.check_points(x)
    start, end = flow.places
    nothing = x.new_zeros(len(x), 0)

    def rate(place: float, points: Tensor) -> _State:
        t, speed = flow.time(place)
        with torch.no_grad():
            return speed * flow.velocity(points, points.new_tensor(t), cond), nothing

    ends = (end, start) if backwards else (start, end)
    return (integrator or Integrator()).solve(rate, x, nothing, *ends)[0]


def _probes(kind: Divergence, count: int, x: Tensor, generator: torch.Generator) -> Tensor | None:
    shape, device = (count, *x.shape), generator.device
    if kind == "exact":
        return None
    if kind == "rademacher":
        signs = torch.randint(0, 2, shape, generator=generator, device=device)
        return (signs * 2 - 1).to(x)
    if kind == "gaussian":
        return torch.randn(shape, generator=generator, device=device, dtype=x.dtype).to(x)
    raise ConfigError(
        f"no divergence is called '{kind}': {nearest(kind, ('exact', 'rademacher', 'gaussian'))}."
    )
