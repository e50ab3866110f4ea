"""The density of a model's own Euler map, by change of variables (framework §8).

A Discriminator Flow samples by N steps x' = x + (η/N) v(x, t_n). Where each of them is invertible,

    log ρ(x_N) = log π(x_0) - Σ_n log|det(I + (η/N) ∇v(x_n, t_n))|,

which is the density of the samples that the model draws, however coarse its steps; the probability flow's
is that of infinitely many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.errors.checks import checked
from partikel.fields import Context
from partikel.likelihood.flow import probability_flow
from partikel.models import Carrier, ParticleModel, free_particles
from partikel.solvers import Euler

JACOBIAN_DIM = 64
"""Largest D whose Jacobians are formed."""


@dataclass(frozen=True)
class MapDensity:
    """Densities of an Euler map at points.

    Attributes:
        log_prob: (B,) log ρ(x) in nats, float64; nan where no origin was found.
        invertible: (B,) whether the step was a local diffeomorphism that keeps orientation all along
            the path (the symmetric part of I + (η/N)∇v is positive definite) and the origin maps back.
        residual: (B,) distance of the origin's image from the point.
        latent: (B, ...) where the points come from.
    """

    log_prob: Tensor
    invertible: Tensor
    residual: Tensor
    latent: Tensor

    @property
    def share(self) -> float:
        """Share of points at which the density is that of the samples."""
        return float(self.invertible.double().mean())


@checked
def map_density(
    model: Carrier,
    x: Tensor,
    *,
    cond: Tensor | None = None,
    real: Tensor | None = None,
    iterations: int = 50,
    tolerance: float = 1e-8,
) -> MapDensity:
    """Density of the model's own samples at points x (B, ...), D <= :data:`JACOBIAN_DIM`.

    Each step is inverted by Newton's method, started from the point itself. A point with several origins,
    which a map that is not monotone may have, gets the density of one; it is then most often not
    ``invertible``.

    Args:
        model: free particles moved by Euler's method without noise.
        x: (B, ...) points among the samples.
        cond: (B,) labels.
        real: samples of the data, for a field that compares with them.
        iterations: most Newton steps for each step of the map.
        tolerance: largest distance that counts as an inverse, relative to 1 + |x|.

    Raises:
        ConfigError: for another sampler, or too many dimensions.
    """
    step = _own_step(model, real)
    model = step.model
    flow = probability_flow(model, real=real)
    flow.check_points(x)
    if flow.dim > JACOBIAN_DIM:
        raise ConfigError(
            f"a change of variables forms Jacobians of {flow.dim} rows, of at most {JACOBIAN_DIM}: take "
            "the probability flow's likelihood for larger points."
        )
    times = model.grid.nodes(model.steps).tolist()
    volume = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    good = torch.ones(len(x), dtype=torch.bool, device=x.device)
    residual = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    after = x
    eye = torch.eye(flow.dim, dtype=x.dtype, device=x.device)
    for n in reversed(range(len(times) - 1)):
        dt = times[n + 1] - times[n]
        allowed = tolerance * (1 + after.flatten(1).norm(dim=1))
        before, origin = after, after.clone()
        error, jacobian = torch.zeros_like(after.flatten(1)), eye.expand(len(x), -1, -1).clone()
        distance, length = torch.full_like(allowed, torch.inf), torch.ones_like(allowed)
        for _ in range(iterations):
            moved, derivative = step(before, times[n], dt, cond, eye)
            missed = (moved - after).flatten(1)
            closer = missed.norm(dim=1) < distance
            origin[closer], error[closer] = before[closer], missed[closer]
            jacobian[closer], distance[closer] = derivative[closer], missed.norm(dim=1)[closer]
            if bool((distance <= allowed).all()):
                break
            length = torch.where(closer, 1.0, length / 2)  # a move that led away is shortened
            move = torch.linalg.lstsq(jacobian, error[..., None]).solution[..., 0]
            before = origin - (length[:, None] * move).view_as(origin)
        symmetric = (jacobian + jacobian.mT) / 2
        good &= torch.linalg.eigvalsh(symmetric)[:, 0] > 0
        good &= distance <= allowed
        residual = torch.maximum(residual, distance.double())
        volume += torch.linalg.slogdet(jacobian)[1].double()
        after = origin
    log_prob = flow.prior.log_density(after.double()) - volume
    found = residual <= 1e-3 * (1 + x.flatten(1).norm(dim=1))
    return MapDensity(torch.where(found, log_prob, torch.nan), good, residual, after)


@checked
def map_samples(
    model: Carrier,
    n: int,
    *,
    generator: torch.Generator,
    real: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, MapDensity]:
    """Samples of the model with the density of each, forwards: nothing needs inverting.

    Args:
        model: as for :func:`map_density`; without labels.
        n: how many.
        generator: source of the prior's draws.
        real: samples of the data, for a field that compares with them.
        dtype: of the points; the model's weights must have it.

    Returns:
        (n, ...) samples and their densities (with a residual of 0).
    """
    step = _own_step(model, real)
    model = step.model
    times = model.grid.nodes(model.steps).tolist()
    start = x = model.prior.sample(n, generator=generator, dtype=dtype)
    eye = torch.eye(x[0].numel(), dtype=dtype, device=x.device)
    log_prob = model.prior.log_density(x).double()
    good = torch.ones(n, dtype=torch.bool, device=x.device)
    for k in range(model.steps):
        x, jacobian = step(x, times[k], times[k + 1] - times[k], None, eye)
        log_prob -= torch.linalg.slogdet(jacobian)[1].double()
        good &= torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)[:, 0] > 0
    return x, MapDensity(log_prob, good, torch.zeros_like(log_prob), start)


class _Step:
    """One step of Euler's method and its Jacobian (B, D, D)."""

    def __init__(self, model: ParticleModel, real: Tensor | None) -> None:
        self.model = model
        field = model.field
        self.field = field.bind(Context(real=real))

    def __call__(
        self, x: Tensor, t: float, dt: float, cond: Tensor | None, eye: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            v = self.model.velocity(point, x.new_tensor(t), cond, self.field)
            flat = v.flatten(1)
            rows = [
                torch.autograd.grad(
                    flat[:, i].sum(),
                    point,
                    retain_graph=True,
                    materialize_grads=True,
                    allow_unused=True,
                )[0].flatten(1)
                for i in range(flat.shape[1])
            ]
        return (x + dt * v).detach(), eye + dt * torch.stack(rows, 1)


def _own_step(model: Carrier, real: Tensor | None) -> _Step:
    """The model's sampler as a map.

    Raises:
        ConfigError: where it is none (see :func:`probability_flow` too).
    """
    probability_flow(model, real=real)  # refuses a field that is no velocity
    model = free_particles(model, "a change of variables is of free particles.")
    if model.diffusion is not None or not isinstance(model.solver, Euler):
        raise ConfigError(
            "a change of variables is of Euler's method without noise, and this model is sampled by "
            f"{type(model.solver).__name__}: take the probability flow's likelihood (method ode)."
        )
    return _Step(model, real)
