"""The Stein flow of a target's score (SVGD; Liu & Wang 2016; GPM eqs. 17-18, Finding 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.fields.base import Context, Field, Loss
from partikel.fields.samples.base import check_cloud
from partikel.kernels import Kernel
from partikel.tensors import shared


class SteinField(Field):
    """φ(x) = E_{y~ρ}[k(x, y) s_p(y) + ∇_y k(x, y)]: Stein variational gradient descent.

    By parts it is ∫ k(x, y) (s_p - s_ρ)(y) ρ(dy): the score difference, seen through a kernel, without
    ρ's score. A generator sees the same difference through its NTK, a kernel of latents: carrying
    ``s_p - s_rho`` by a :class:`~partikel.models.GeneratorModel` is the latent-driven Stein flow (GPM
    Finding 7; :func:`~partikel.models.ntk.kernel_operator` has it for any kernel).

    Bound to a cloud, it is a plain function of its points. Not bound, which is what the carriers do,
    the points that it is asked about are the cloud, each at its own t and σ, and have to be asked about
    together. Sums run over tiles of pairs (:mod:`partikel.kernels`). Labels are not told apart.

    Args:
        score: s_p, the score of a target: exact, learned, or any other field.
        kernel: k; a bandwidth of "median" is measured on the cloud, anew in each call where it moves.
        particles: bound cloud (P, ...).

    Raises:
        ConfigError: if ``score`` is no field.
    """

    def __init__(self, score: Field, kernel: Kernel, *, particles: Tensor | None = None) -> None:
        super().__init__()
        if not isinstance(score, Field):
            raise ConfigError(
                f"a Stein field follows a target's score, and a {type(score).__name__} is no field: "
                "give ExactScoreField(target), or a ScoreField that was learned."
            )
        self.score = score
        self.kernel = kernel
        self.particles = particles
        own = frozenset({"particles"} if particles is None else ())
        self.requires = score.requires | own

    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """E_y[k(x, y) s_p(y)] + E_y[∇_y k(x, y)].

        Raises:
            ConfigError: for fewer than two particles.
            NumericsError: for particles that are not finite.
        """
        point = x.detach()
        if self.particles is None:
            check_cloud(point)
            kernel = self.kernel.fitted(point)
            attraction = kernel.mean(point, point, self._score(point, t, sigma))
            return attraction + kernel.repulsion(point, point)
        cloud, kernel = self.particles.to(point), self.kernel.fitted(self.particles)
        attraction = torch.empty_like(point)
        conditions = [c for c in (t, sigma) if c is not None]
        levels = torch.stack(torch.broadcast_tensors(*map(shared, conditions)), 1)
        distinct, place = torch.unique(levels, dim=0, return_inverse=True)
        for number, level in enumerate(distinct):  # the cloud's scores under each point's own
            rows = (place == number).expand(len(x))
            at = [value.expand(len(cloud)) for value in level]
            attraction[rows] = kernel.mean(point[rows], cloud, self._score(cloud, *at))
        return attraction + kernel.repulsion(point, cloud)

    def bind(self, context: Context) -> Field:
        """Fix the cloud, where the context has one, and bind the score.

        Raises:
            ConfigError: for fewer than two particles.
            NumericsError: if a particle is not finite.
        """
        score = self.score.bind(context)
        particles = self.particles if context.particles is None else context.particles
        if score is self.score and particles is self.particles:
            return self
        if particles is not None:
            check_cloud(particles)
        kernel = self.kernel if particles is None else self.kernel.fitted(particles)
        bound = SteinField(score, kernel, particles=particles)
        bound._frozen = self._frozen
        return bound

    def losses(self) -> tuple[Loss, ...]:
        """The score's."""
        return () if self.frozen else self.score.losses()

    def _score(self, x: Tensor, t: Tensor, sigma: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return self.score(x, t, sigma)
