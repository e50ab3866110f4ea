"""The density of a model's own Euler map, by change of variables (framework §8).

A Discriminator Flow samples by N steps x' = x + (η/N) v(x, t_n). Where each of them is invertible,

    log ρ(x_N) = log π(x_0) - Σ_n log|det(I + (η/N) ∇v(x_n, t_n))|,

which is the density of the samples that the model draws, however coarse its steps; the probability flow's
is that of infinitely many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from partikel.errors import ConfigError, NumericsError
from partikel.errors.checks import Count, Positive
from partikel.fields import Context
from partikel.likelihood.flow import probability_flow
from partikel.likelihood.method import Densities, Method, Worth
from partikel.models import Carrier, free_particles
from partikel.solvers import Euler

JACOBIAN_DIM = 64
"""Largest D whose Jacobians are formed."""

INVERTIBLE = 0.99
"""Share of points at which a map has to be invertible for its density to be given."""


class EulerMap:
    """A model's own sampler as a map: N steps of Euler's method, with their Jacobians.

    Args:
        model: free particles moved by Euler's method without noise.
        real: samples of the data, for a field that compares with them.

    Raises:
        ConfigError: for another sampler, a field that is no velocity (see
            :func:`~partikel.likelihood.flow.probability_flow`), or too many dimensions.
    """

    def __init__(self, model: Carrier, real: Tensor | None = None) -> None:
        probability_flow(model, real=real)  # refuses a field that is no velocity
        self.model = free_particles(model, "a change of variables is of free particles.")
        if self.model.diffusion is not None or not isinstance(self.model.solver, Euler):
            raise ConfigError(
                "a change of variables is of Euler's method without noise, and this model is sampled by "
                f"{type(self.model.solver).__name__}: take the probability flow's likelihood (method ode)."
            )
        self.field = self.model.field.bind(Context(real=real))
        self.prior, self.shape = self.model.prior, self.model.prior.shape
        self.times = self.model.grid.nodes(self.model.steps).tolist()
        if (dim := math.prod(self.shape)) > JACOBIAN_DIM:
            raise ConfigError(
                f"a change of variables forms Jacobians of {dim} rows, of at most {JACOBIAN_DIM}: take "
                "the probability flow's likelihood for larger points."
            )

    def step(self, x: Tensor, n: int, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Points after step n, and its Jacobians (B, D, D)."""
        dt = self.times[n + 1] - self.times[n]
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            v = self.model.velocity(point, x.new_tensor(self.times[n]), cond, self.field)
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
        eye = torch.eye(flat.shape[1], dtype=x.dtype, device=x.device)
        return (x + dt * v).detach(), eye + dt * torch.stack(rows, 1)

    def sample(
        self, n: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Densities]:
        """Samples (n, ...) of the model, without labels, with the density of each: nothing is inverted."""
        start = x = self.prior.sample(n, generator=generator, dtype=dtype)
        along = _Along(x)
        for k in range(self.model.steps):
            x, jacobian = self.step(x, k)
            along.add(jacobian)
            along.evaluations += 1
        return x, along.densities(self, start)


class _Along:
    """What the steps of a map add up to."""

    def __init__(self, x: Tensor) -> None:
        self.volume = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.residual = torch.zeros_like(self.volume)
        self.good = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.evaluations = 0

    def add(self, jacobian: Tensor) -> None:
        """A step: log|det|, and whether it keeps orientation everywhere nearby."""
        self.volume += torch.linalg.slogdet(jacobian)[1].double()
        self.good &= torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)[:, 0] > 0

    def densities(self, law: EulerMap, latent: Tensor) -> Densities:
        """Of points that come from these."""
        log_prob = law.prior.log_density(latent.double()) - self.volume
        flaws = (~self.good).double()
        return Densities(log_prob, torch.zeros_like(flaws), flaws, self.evaluations, latent)


@dataclass(frozen=True)
class Map(Method):
    """Density of the model's own samples at points among them, D <= :data:`JACOBIAN_DIM`.

    Each step is inverted by Newton's method, started from the point itself. A point with several origins,
    which a map that is not monotone may have, gets the density of one; it is then most often flawed. A
    point has no flaw where each step was a local diffeomorphism that keeps orientation all along its path
    (the symmetric part of I + (η/N)∇v is positive definite), and its origin maps back to it.

    Attributes:
        iterations: most Newton steps for each step of the map.
        tolerance: largest distance that counts as an inverse, relative to 1 + |x|.
        strict: refuse densities of points of which less than :data:`INVERTIBLE` have no flaw.
    """

    iterations: Count = 50
    tolerance: Positive = 1e-8
    strict: bool = True

    @property
    def protocol(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return {"method": "map"}

    def law(self, model: Carrier | EulerMap, real: Tensor | None = None) -> EulerMap:
        """The model's own sampler."""
        return model if isinstance(model, EulerMap) else EulerMap(model, real)

    def densities(
        self, law: EulerMap, x: Tensor, cond: Tensor | None, *, generator: torch.Generator
    ) -> Densities:
        """Go back step by step; nothing is drawn."""
        along, after = _Along(x), x
        for n in reversed(range(law.model.steps)):
            after = self._back(law, after, n, cond, along)
        found = along.densities(law, after)
        lost = along.residual > 1e-3 * (1 + x.flatten(1).norm(dim=1))
        return replace(found, log_prob=found.log_prob.masked_fill(lost, torch.nan))

    def _back(
        self, law: EulerMap, after: Tensor, n: int, cond: Tensor | None, along: _Along
    ) -> Tensor:
        """Where step n came from."""
        flat = after.flatten(1)
        allowed = self.tolerance * (1 + flat.norm(dim=1))
        before, origin, error = after, after.clone(), torch.zeros_like(flat)
        jacobian = torch.eye(flat.shape[1]).to(flat).repeat(len(flat), 1, 1)
        distance, length = torch.full_like(allowed, torch.inf), torch.ones_like(allowed)
        for _ in range(self.iterations):
            moved, derivative = law.step(before, n, cond)
            along.evaluations += 1
            missed = (moved - after).flatten(1)
            closer = missed.norm(dim=1) < distance
            origin[closer], error[closer] = before[closer], missed[closer]
            jacobian[closer], distance[closer] = derivative[closer], missed.norm(dim=1)[closer]
            if bool((distance <= allowed).all()):
                break
            length = torch.where(closer, 1.0, length / 2)  # a move that led away is shortened
            move = torch.linalg.lstsq(jacobian, error[..., None]).solution[..., 0]
            before = origin - (length[:, None] * move).view_as(origin)
        along.add(jacobian)
        along.good &= distance <= allowed
        along.residual = torch.maximum(along.residual, distance.double())
        return origin

    def worth(self, log_prob: Tensor, flaws: Tensor, dim: int) -> Worth:
        """Whether steps can be inverted at nearly all points."""
        share = 1 - float(flaws.mean())
        if self.strict and (share < INVERTIBLE or not log_prob.isfinite().all()):
            raise NumericsError(
                f"the model's steps can be inverted at {share:.1%} of the points only, so that change of "
                "variables is no density: train it with smaller steps (more of them, or a smaller eta) "
                "and a smooth activation."
            )
        return Worth(found={"invertible": share})
