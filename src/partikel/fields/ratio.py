"""Density-ratio flows: h(r) ∇log r for every f-divergence, over every estimator of r = p/ρ.

The estimators (framework §2) are a logistic discriminator, two densities (exact, or of kernels on
samples), and a score difference, which gives ∇log r but not h(r). The rest is algebra: entropy is
``-tau * s_rho``, several divergences are a sum of fields.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from partikel.divergences import CLIP, DivergenceLike, get_divergence, weight
from partikel.errors import ConfigError, DataError
from partikel.fields.base import Context, Field, Loss
from partikel.fields.discriminator import DiscriminatorField
from partikel.fields.samples.base import check_cloud
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
        samples: bound samples (n, ...).

    Raises:
        ConfigError: for another bandwidth or law.
    """

    def __init__(
        self,
        bandwidth: float,
        of: Literal["data", "particles"] = "particles",
        *,
        samples: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not (isinstance(bandwidth, (int, float)) and 0 < bandwidth < math.inf):
            raise ConfigError(
                f"the bandwidth of a kernel density estimate is a length > 0, got {bandwidth!r}."
            )
        if of not in ("data", "particles"):
            raise ConfigError(f"a kernel density is of 'data' or of 'particles', not '{of}'.")
        self.bandwidth = float(bandwidth)
        self.of: Literal["data", "particles"] = of
        self.samples = samples
        if samples is None:
            self.requires = frozenset({"real" if of == "data" else "particles"})

    def estimate(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The values log ρ̂(x) (B,) and ∇log ρ̂(x) (B, ...), without a graph.

        Raises:
            ConfigError: if it is not bound to the data, or there are fewer than two particles.
            NumericsError: for particles that are not finite.
        """
        if self.samples is None:
            if self.of == "data":
                raise ConfigError(
                    "a kernel density of the data must be bound to real samples before it is asked: "
                    "field.bind(Context(real=...))."
                )
            check_cloud(x)
        samples = x if self.samples is None else self.samples.to(x)
        if samples.shape[1:] != x.shape[1:]:
            raise ValueError(f"samples {samples.shape[1:]} and points {x.shape[1:]} differ")
        variance = torch.full_like(x.flatten(1)[:, 0], self.bandwidth**2)
        if sigma is not None:
            variance = variance + sigma.to(x) ** 2
        return kernel_density(x, samples, variance)

    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """(E_y[y | x] - x)/(h² + σ²)."""
        return self.estimate(x, t, sigma, cond)[1]

    def bind(self, context: Context) -> Field:
        """Fix the samples; what the context does not have stays as it was.

        Raises:
            ConfigError: without real samples for a density of the data, with fewer than two particles.
            DataError: if a real sample is not finite.
            NumericsError: if a particle is not.
        """
        samples = context.real if self.of == "data" else context.particles
        if samples is None:
            samples = self.samples
        if samples is None and self.of == "particles":
            return self
        if self.of == "particles" and samples is not None:
            check_cloud(samples)
        elif samples is None or not len(samples):
            raise ConfigError(
                "a kernel density of the data needs real samples: pass some (Context(real=...))."
            )
        elif not samples.isfinite().all():
            raise DataError("real samples must be finite numbers: look for NaN or inf in the data.")
        bound = KernelScoreField(self.bandwidth, self.of, samples=samples)
        bound._frozen = self._frozen
        return bound


class RatioField(Field):
    """∇log r, r = p/ρ, from an estimator that knows log r too: the flow of KL(ρ‖p)."""

    @abstractmethod
    def estimate(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The values log r(x) (B,) and ∇log r(x) (B, ...)."""

    def log_ratio(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """The value log r(x), (B,)."""
        return self.estimate(x, t, sigma, cond)[0]

    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """∇log r(x)."""
        return self.estimate(x, t, sigma, cond)[1]


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
        self.requires = self.data.requires | self.own.requires

    def estimate(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The values log r and ∇log r, differentiable in x where both laws are exact."""
        log_p, s_p = _density(self.data, x, t, sigma)
        log_rho, s_rho = _density(self.own, x, t, sigma)
        return log_p - log_rho, s_p - s_rho

    def bind(self, context: Context) -> Field:
        """Fix the samples of kernel densities."""
        data, own = self.data.bind(context), self.own.bind(context)
        if data is self.data and own is self.own:
            return self
        bound = DensityRatioField(data, own)
        bound._frozen = self._frozen
        return bound


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
        clip: float = CLIP,
    ) -> None:
        super().__init__()
        if not isinstance(ratio, (DiscriminatorField, RatioField)):
            raise ConfigError(
                f"a {type(ratio).__name__} has no log r to weigh by: give an f-divergence a "
                "DiscriminatorField or a DensityRatioField, and other fields as its gradient."
            )
        if isinstance(ratio, DiscriminatorField) and not ratio.objective.is_log_ratio:
            raise ConfigError(
                f"the objective '{objective_name(ratio.objective)}' has no log-ratio at its optimum: "
                "train the discriminator with 'non-saturating' (or another one whose logit is a "
                "log-ratio)."
            )
        if not 0 < clip <= 80:
            raise ConfigError(f"clip bounds |log r| in h(r) and lies in (0, 80], got {clip}.")
        self.ratio = ratio
        self.divergence = get_divergence(divergence)
        self.gradient = gradient
        self.clip = clip
        self.requires = ratio.requires | (frozenset() if gradient is None else gradient.requires)

    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """h(r(x)) ∇log r(x)."""
        if self.gradient is not None:
            direction = self.gradient(x, t, sigma, cond)
            log_ratio = self.ratio.log_ratio(x, t, sigma, cond)
            if not x.requires_grad:
                log_ratio = log_ratio.detach()
        elif isinstance(self.ratio, RatioField):
            log_ratio, direction = self.ratio.estimate(x, t, sigma, cond)
        else:
            followed = torch.is_grad_enabled() and x.requires_grad
            with torch.enable_grad():
                point = x if followed else x.detach().requires_grad_()
                value = self.ratio.log_ratio(point, t, sigma, cond)
                (direction,) = torch.autograd.grad(value.sum(), point, create_graph=followed)
            log_ratio = value if followed else value.detach()
        return expand_like(weight(self.divergence, log_ratio, self.clip), x) * direction

    def bind(self, context: Context) -> Field:
        """Bind the ratio and the gradient."""
        ratio = self.ratio.bind(context)
        gradient = None if self.gradient is None else self.gradient.bind(context)
        if ratio is self.ratio and gradient is self.gradient:
            return self
        assert isinstance(ratio, (DiscriminatorField, RatioField))
        bound = FDivergenceField(ratio, self.divergence, gradient=gradient, clip=self.clip)
        bound._frozen = self._frozen
        return bound

    def losses(self) -> tuple[Loss, ...]:
        """Those of the ratio, then those of the gradient."""
        if self.frozen:
            return ()
        parts = self.ratio if self.gradient is None else self.ratio + self.gradient
        return parts.losses()


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


def _density(law: Field, x: Tensor, t: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
    if isinstance(law, ExactScoreField):
        return law.target.log_density(x, sigma), law(x, t, sigma)
    assert isinstance(law, KernelScoreField)
    return law.estimate(x, t, sigma)
