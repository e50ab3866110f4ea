"""Density-ratio flows: h(r) ∇log r for every f-divergence, over every estimator of r = p/ρ.

The estimators (framework §2) are a logistic discriminator, two densities (exact, or of kernels on
samples), and a score difference, which gives ∇log r but not h(r). The rest is algebra: entropy is
``-tau * s_rho``, several divergences are a sum of fields.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
from torch import Tensor

from partikel.divergences import CLIP, DivergenceLike, get_divergence, weight
from partikel.errors import ConfigError
from partikel.errors.checks import Level, Range
from partikel.fields.base import At, Field
from partikel.fields.discriminator import DiscriminatorField
from partikel.fields.score import ExactScoreField
from partikel.kernels import squared_distances
from partikel.objectives import objective_name
from partikel.targets import Target
from partikel.tensors import expand_like

PAIRS = 2**20
"""Most pairs of points held at once."""


class KernelScoreField(Field):
    """∇log of a kernel density estimate, ρ̂(x) = E_y N(x; y, (h² + σ²) I): of the cloud, or of the data.

    ``-tau * KernelScoreField(h)`` is an entropy term without a network and without noise. At σ the
    estimate is smoothed by k_σ too, as every score is. Sums run over blocks of rows, so that memory
    grows with the samples, not with their pairs.

    A point's own term is part of the estimate of a cloud that it belongs to: it bounds log ρ̂ from
    below, and weakens the score where points are further apart than h.

    Not bound to a cloud, the points that it is asked about are the cloud; they then have to be asked
    about together. Labels are not told apart.

    Args:
        bandwidth: h > 0, the standard deviation of the kernel.
        of: "particles" or "data", whose density it is.

    Raises:
        ConfigError: for another bandwidth or law.
    """

    def __init__(
        self,
        bandwidth: Level,
        of: Literal["data", "particles"] = "particles",
    ) -> None:
        super().__init__()
        self.bandwidth = float(bandwidth)
        self.of: Literal["data", "particles"] = of
        self.requires = frozenset({"real" if of == "data" else "particles"})

    def estimate(self, x: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """The values log ρ̂(x) (B,) and ∇log ρ̂(x) (B, ...), without a graph.

        Raises:
            ConfigError: if it is not bound to the data, or there are fewer than two particles.
            NumericsError: for particles that are not finite.
        """
        samples = self.bound_real(x) if self.of == "data" else self.bound_cloud(x)
        if samples.shape[1:] != x.shape[1:]:
            raise ValueError(f"samples {samples.shape[1:]} and points {x.shape[1:]} differ")
        variance = torch.full_like(x.flatten(1)[:, 0], self.bandwidth**2)
        if at.sigma is not None:
            variance = variance + at.sigma.to(x) ** 2
        return kernel_density(x, samples, variance)

    def forward(self, x: Tensor, at: At) -> Tensor:
        """(E_y[y | x] - x)/(h² + σ²)."""
        return self.estimate(x, at)[1]


class RatioField(Field):
    """∇log r, r = p/ρ, from an estimator that knows log r too: the flow of KL(ρ‖p)."""

    @abstractmethod
    def estimate(self, x: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """The values log r(x) (B,) and ∇log r(x) (B, ...)."""

    def log_ratio(self, x: Tensor, at: At) -> Tensor:
        """The value log r(x), (B,)."""
        return self.estimate(x, at)[0]

    def forward(self, x: Tensor, at: At) -> Tensor:
        """∇log r(x)."""
        return self.estimate(x, at)[1]


class DensityRatioField(RatioField):
    """∇log r of two laws whose densities are known, exactly or by kernels on samples.

    ``DensityRatioField(KernelScoreField(h, "data"), KernelScoreField(h))`` needs samples only. With the
    same h for both, r is the ratio of both laws after smoothing by the same kernel, which is 1 where
    they agree. ``DensityRatioField(target, KernelScoreField(h))`` samples from a given density.

    Args:
        data: p, a target or a kernel density.
        own: ρ, likewise.

    Raises:
        ConfigError: for a law without a density and a score.
    """

    def __init__(self, data: Target | Field, own: Target | Field) -> None:
        super().__init__()
        self.data = _law(data)
        self.own = _law(own)

    def estimate(self, x: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """The values log r and ∇log r, differentiable in x where both laws are exact."""
        log_p, s_p = self.data.estimate(x, at)
        log_rho, s_rho = self.own.estimate(x, at)
        return log_p - log_rho, s_p - s_rho


class FDivergenceField(Field):
    """h(r) ∇log r: the gradient flow of an f-divergence F(ρ) = ∫ f(ρ/p) dp (framework §2).

        FDivergenceField(critic, "pearson")                       # r from a logistic discriminator
        FDivergenceField(DensityRatioField(target, kde), "kl")    # from densities
        FDivergenceField(critic, "jensen-shannon", gradient=s_p - s_rho)

    The last is f-distill (Xu et al. 2025, "One-step diffusion models with f-divergence distribution
    matching"): the discriminator gives the weight, the scores give the direction. Perturbed, it is
    carried by their one-step generator; with h = 1, so without any of this, ``s_p - s_rho`` is that of
    DMD (Yin et al. 2024) and Diff-Instruct (Luo et al. 2023). Their weight f_N''(r) r² is this h(r), as
    f_N(r) = r f(1/r); they also divide it by its mean over a batch, which is left out here: a field must
    not depend on the batch.

    Estimates of r extrapolate badly, and h grows without bounds: |log r| enters h at most as ``clip``.
    Beyond it h is constant; ∇log r is never clipped.

    Args:
        ratio: log r and, without a ``gradient``, ∇log r: a discriminator whose objective has a
            log-ratio (it trains by its own loss), or a :class:`RatioField`.
        divergence: a name of :data:`~partikel.objectives.DIVERGENCES`, or f(u) as torch code.
        gradient: another field for ∇log r.
        clip: largest |log r| in h, in (0, 80].

    Raises:
        ConfigError: for a ratio, a divergence or a clip that cannot be.
    """

    def __init__(
        self,
        ratio: DiscriminatorField | RatioField,
        divergence: DivergenceLike = "kl",
        *,
        gradient: Field | None = None,
        clip: Annotated[float, Range(above=0, most=80.0)] = CLIP,
    ) -> None:
        super().__init__()
        if isinstance(ratio, DiscriminatorField) and not ratio.objective.is_log_ratio:
            raise ConfigError(
                f"the objective '{objective_name(ratio.objective)}' has no log-ratio at its optimum: "
                "train the discriminator with 'non-saturating' (or another one whose logit is a "
                "log-ratio)."
            )
        self.ratio = ratio
        self.divergence = get_divergence(divergence)
        self.gradient = gradient
        self.clip = clip

    def forward(self, x: Tensor, at: At) -> Tensor:
        """h(r(x)) ∇log r(x)."""
        if self.gradient is None:
            log_ratio, direction = self.ratio.estimate(x, at)
        else:
            log_ratio, direction = self.ratio.log_ratio(x, at), self.gradient(x, at)
            if not x.requires_grad:
                log_ratio = log_ratio.detach()
        return expand_like(weight(self.divergence, log_ratio, self.clip), x) * direction


def kernel_density(x: Tensor, samples: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The log-density of E_y N(y, variance I) and its gradient, without a graph.

    Args:
        x: (B, ...) points.
        samples: (n, ...) y.
        variance: (B,), one for each point.

    Returns:
        (B,) and (B, ...).
    """
    flat, others = x.detach().flatten(1), samples.detach().flatten(1)
    centre = others.mean(0)  # cancels in differences, and leaves less to round
    flat, others = flat - centre, others - centre
    rows = max(1, PAIRS // len(others))
    log_density, score = flat.new_empty(len(flat)), torch.empty_like(flat)
    with torch.no_grad():
        for top in range(0, len(flat), rows):
            some, spread = flat[top : top + rows], variance[top : top + rows]
            logits = squared_distances(some, others).div_(-2 * spread[:, None])
            total = torch.logsumexp(logits, 1, out=log_density[top : top + rows])
            mean = logits.sub_(total[:, None]).exp_() @ others
            score[top : top + rows] = (mean - some) / spread[:, None]
        constant = math.log(len(others)) + 0.5 * flat.shape[1] * (2 * math.pi * variance).log()
        log_density = log_density - constant
    return log_density, score.view_as(x)


def _law(law: Target | Field) -> ExactScoreField | KernelScoreField:
    if isinstance(law, Target):
        return ExactScoreField(law)
    if isinstance(law, (ExactScoreField, KernelScoreField)):
        return law
    raise ConfigError(
        f"a density ratio needs laws whose density and score are known, and a {type(law).__name__} is "
        "none: give a Target, a KernelScoreField, or use a discriminator (LogRatioField)."
    )
