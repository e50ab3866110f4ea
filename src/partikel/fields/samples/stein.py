"""The Stein flow of a target's score (SVGD; Liu & Wang 2016; GPM eqs. 17-18, Finding 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from partikel.fields.base import At, Field
from partikel.kernels import Kernel


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
    """

    requires = frozenset({"particles"})

    def __init__(self, score: Field, kernel: Kernel) -> None:
        super().__init__()
        self.score = score
        self.kernel = kernel

    def forward(self, x: Tensor, at: At) -> Tensor:
        """E_y[k(x, y) s_p(y)] + E_y[∇_y k(x, y)].

        Raises:
            ConfigError: for fewer than two particles.
            NumericsError: for particles that are not finite.
        """
        point, cloud = x.detach(), self.bound_cloud(x)
        kernel = self.kernel if self.context.particles is not None else self.kernel.fitted(cloud)
        if self.context.particles is None or max(map(Tensor.numel, self._levels(at))) == 1:
            return kernel.stein(point, cloud, self._score(cloud, at))
        attraction = torch.empty_like(point)
        levels = torch.stack(torch.broadcast_tensors(*self._levels(at)), 1)
        distinct, place = torch.unique(levels, dim=0, return_inverse=True)
        for number, level in enumerate(distinct):  # the cloud's scores under each point's own
            rows = place == number
            here = At(level[0], None if at.sigma is None else level[1])
            attraction[rows] = kernel.mean(point[rows], cloud, self._score(cloud, here))
        return attraction + kernel.repulsion(point, cloud)

    def prepare(self) -> None:
        """Measure a bandwidth of "median" on a bound cloud."""
        if self.context.particles is not None:
            self.kernel = self.kernel.fitted(self.context.particles)

    @staticmethod
    def _levels(at: At) -> list[Tensor]:
        return [torch.atleast_1d(value) for value in (at.t, at.sigma) if value is not None]

    def _score(self, x: Tensor, at: At) -> Tensor:
        with torch.no_grad():
            return self.score(x, at._replace(cond=None))
