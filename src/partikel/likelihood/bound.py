"""The likelihood bound of DiffFlow's SDEs (DiffFlow Theorem 3, after Huang et al. 2021; framework §8).

For dX = μ dt + ς dW from π, and an inference process dY = φ ds + ς dB from Y_0 = x with s = T - t,

    log ρ_T(x) >= E[log π(Y_T)] - E ∫ [ ∇·μ(Y_s) + ‖φ + μ‖²/(2ς²) ] ds,     ς² = g² - λ² > 0.

*Linear* inference, φ = -f, makes Y_s | x Gaussian, N(m x, V I): times are drawn, and no trace is needed.
It is tight for exact networks on the rows g² = 2λ² only. *Tight* inference, φ = -f + (½g² - λ²) u s_p,
is so for every g; its paths are simulated, and bound the likelihood of the model's own Euler-Maruyama
chain with that many steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError
from partikel.errors.checks import Count, checked
from partikel.fields import At, AtScale, Field, Loss, LossValue, ScoreField, TrainingBatch
from partikel.fields.guidance import hiding_labels_of
from partikel.likelihood.flow import Law, divergence, log_ratio_in, probes_of, sample_time
from partikel.likelihood.method import Densities, Method
from partikel.models import Carrier, free_particles
from partikel.priors import GaussianPrior
from partikel.schedules import ConstantSchedule
from partikel.streams import normal_like
from partikel.tensors import expand_like, flat_sum

NODES = 4097
"""Nodes of the tables along the path."""

Trace = Literal["free", "exact", "rademacher"]


@checked
class Inference:
    """The linear inference process: Y_s | x ~ N(m x, V I), and a law of times for importance sampling.

    Times are drawn by a place q, uniform in [0, 1]: σ = σ_min cosh(A q), which is uniform in log σ far
    above σ_min and in √V close to it, where the trace-free integrand grows as 1/√V. On a path of one
    level, s = q² T.

    Args:
        flow: f, g² - λ² and the path.
        end: generation time of the data.
    """

    def __init__(self, flow: DiffFlow, end: float) -> None:
        q = torch.linspace(0, 1, NODES, dtype=torch.float64)
        schedule = flow.schedule
        if isinstance(schedule, ConstantSchedule):
            t, speed = end * (1 - q**2), 2 * end * q
        else:
            ends = schedule.sigma(torch.tensor([end, 0.0], dtype=torch.float64))
            low, high = ends.tolist()
            width = math.acosh(high / low)
            t = schedule.time(low * torch.cosh(width * q)).clamp(0, end)
            speed = low * width * torch.sinh(width * q) / schedule.sigma_rate(t).abs()
        c = flow.coefficients(t)
        growth = self._integral(c.f * speed, q)
        spread = self._integral((c.g2 - c.lambda2) * speed * (2 * growth).exp(), q)
        self.q, self.t, self.speed = q, t, speed
        self.log_scale = -growth
        self.std = (spread.clamp(min=0).sqrt() * (-growth).exp()).clamp(min=0)

    @staticmethod
    def _integral(values: Tensor, q: Tensor) -> Tensor:
        from scipy.integrate import cumulative_simpson  # half a second to import

        return torch.from_numpy(cumulative_simpson(values.numpy(), x=q.numpy(), initial=0))

    def at(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Time t, ds/dq, m and √V at places (B,), float64."""
        place = q.double().cpu() * (NODES - 1)
        low = place.long().clamp(0, NODES - 2)
        part = place - low
        tables = (self.t, self.speed, self.log_scale, self.std)
        t, speed, log_scale, std = (
            (torch.lerp(table[low], table[low + 1], part)).to(q.device) for table in tables
        )
        return t, speed, log_scale.exp(), std


@dataclass(frozen=True)
class GenerativeSDE:
    """A point of the plane with noise, from a prior at t = 0 to data at t = ``end``.

    Attributes:
        flow: f, β, g² > λ² and the path.
        field: the drift μ, asked as (x, t, σ, cond).
        prior: the law at t = 0.
        shape: of one particle.
        end: generation time of the data.
        score: s_p, which tight inference follows; None where there is none.
        sigma_data: σ_d of the linear score -u²x/(σ² + σ_d²), whose trace is taken exactly.

    Raises:
        ConfigError: for g = λ, where there is no bound.
    """

    flow: DiffFlow
    field: Field
    prior: Law
    shape: tuple[int, ...]
    end: float
    score: Field | None = None
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        """Check the noise."""
        t = torch.linspace(0, self.end, 257, dtype=torch.float64)
        c = self.flow.coefficients(t)
        if not (c.g2 - c.lambda2 > 1e-9 * c.g2.abs().max()).all():
            raise ConfigError(
                "the ELBO needs noise, g² > λ², and this flow has g = λ: take the exact likelihood of "
                "its ODE (method ode), or a larger g²."
            )

    @classmethod
    def of(
        cls,
        flow: DiffFlow,
        shape: tuple[int, ...],
        score: Field | None = None,
        log_ratio: Field | None = None,
        *,
        prior: Law | None = None,
        sigma_min: float | None = None,
        sigma_data: float = 1.0,
    ) -> GenerativeSDE:
        """The SDE of a flow with its networks, as :meth:`DiffFlow.field` takes them."""
        end = flow.schedule.horizon
        if not isinstance(flow.schedule, ConstantSchedule):
            end = sample_time(flow.schedule, sigma_min)
        field = flow.field(score, log_ratio)
        return cls(flow, field, prior or flow.prior(shape), shape, end, score, sigma_data)

    @property
    def dim(self) -> int:
        """Number of coordinates D."""
        return math.prod(self.shape)

    @cached_property
    def inference(self) -> Inference:
        """The linear inference process."""
        return Inference(self.flow, self.end)

    def drift(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """μ(x, t), (B, ...)."""
        sigma = self.flow.schedule.sigma(t)
        return self.field(x, At(t.to(x.dtype), sigma.to(x.dtype), cond))

    def correction(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """What the networks add: b = μ - f."""
        return self.drift(x, t, cond) - expand_like(self.flow.coefficients(t).f, x) * x


@checked
def generative_sde(
    model: Carrier,
    flow: DiffFlow | None = None,
    *,
    sigma_min: float | None = None,
    sigma_data: float = 1.0,
) -> GenerativeSDE:
    """The SDE of a trained model.

    Args:
        model: a diffusion model, or a point of the plane.
        flow: the point of the plane that it was trained on; a model of a score alone is taken at its
            own reverse SDE, (g²/β, λ²/β) = (2, 1), unless given.
        sigma_min: noise level at which particles count as samples; the sampler's lowest unless given.
        sigma_data: σ_d of the data.

    Raises:
        ConfigError: for a model without a data score and a path of noise levels, or at g = λ.
    """
    scores = [part for part in model.field.modules() if isinstance(part, ScoreField)]
    scores = [part for part in scores if part.of == "data"]
    refusal = (
        f"the ELBO is of an SDE with a data score, and this {type(model).__name__} is none: take the "
        "exact likelihood of its ODE (method ode) if it is of free particles, else its samples."
    )
    model = free_particles(model, refusal)
    if model.schedule is None or model.dynamics().score is None or not scores:
        raise ConfigError(refusal)
    if flow is None:
        flow = DiffFlow.reverse(model.schedule)
        field = flow.field(scores[0])
    else:
        critic = log_ratio_in(model)
        field = flow.field(scores[0], critic)
    end = sample_time(model.schedule, sigma_min, getattr(model.grid, "sigma_min", None))
    return GenerativeSDE(flow, field, model.prior, model.prior.shape, end, scores[0], sigma_data)


@dataclass(frozen=True)
class Elbo(Method):
    """A lower bound of log ρ(x) (DiffFlow Theorem 3).

    Attributes:
        inference: "linear" (times drawn, no simulation; tight at g² = 2λ²) or "tight" (paths simulated;
            tight for every g where the networks are exact).
        draws: times for each point, stratified (linear), or paths (tight).
        trace: ∇·μ of linear inference: "free" (E ∇·b = E b·ε/√V), "exact", or "rademacher" (one probe
            a draw).
        steps: of the paths of tight inference.

    Raises:
        ConfigError: for settings that cannot be, or (when asked) tight inference without a score.
    """

    inference: Literal["linear", "tight"] = "linear"
    draws: Count = 32
    trace: Trace = "free"
    steps: Count = 256

    @property
    def protocol(self) -> dict[str, Any]:
        """See :class:`Method`."""
        how = {"trace": self.trace} if self.inference == "linear" else {"steps": self.steps}
        return {"method": "elbo", "inference": self.inference, "draws": self.draws, **how}

    def law(self, model: Carrier | GenerativeSDE, real: Tensor | None = None) -> GenerativeSDE:
        """The SDE of a model, see :func:`generative_sde`."""
        return model if isinstance(model, GenerativeSDE) else generative_sde(model)

    @torch.no_grad()
    def densities(
        self, law: GenerativeSDE, x: Tensor, cond: Tensor | None, *, generator: torch.Generator
    ) -> Densities:
        """Average over the draws."""
        total, square = (
            torch.zeros(len(x), dtype=torch.float64, device=x.device) for _ in range(2)
        )
        for k in range(self.draws):  # one at a time: memory does not grow with the draws
            if self.inference == "linear":
                q = (k + _uniform(x, generator)) / self.draws
                value = _prior_term(law, x, generator)
                value = value - _integrand(law, x, q, cond, generator, self.trace)
            else:
                value = _path(law, x, cond, self.steps, generator)
            total += value
            square += value**2
        mean = total / self.draws
        variance = (square / self.draws - mean**2).clamp(min=0) / max(self.draws - 1, 1)
        error = variance.sqrt() if self.draws > 1 else torch.full_like(mean, torch.nan)
        asked = self.draws * (1 if self.inference == "linear" else self.steps)
        return Densities(mean, error, torch.zeros_like(mean), asked)


@checked
def elbo_loss(
    sde: GenerativeSDE,
    x: Tensor,
    *,
    time: torch.Generator,
    noise: torch.Generator,
    cond: Tensor | None = None,
) -> Tensor:
    """-ELBO/D for each sample up to a constant: the paper's maximum-likelihood training.

    One time a sample, spread evenly over the batch, trace-free; gradients reach the score and the
    discriminator alike. On the rows g² = 2λ² this is likelihood-weighted denoising score matching.

    Args:
        sde: the model.
        x: (B, ...) data.
        time: source of times.
        noise: source of ε.
        cond: (B,) labels.

    Returns:
        (B,).
    """
    n = len(x)
    q = (torch.arange(n, device=x.device) + _uniform(x, time)) / n
    return _integrand(sde, x, q, cond, noise, "free", constant=False) / sde.dim


class MaximumLikelihood(Field):
    """A drift that is trained by the ELBO: its networks jointly, on real samples only.

    The field is the drift itself; :meth:`losses` has one, "elbo", in place of those of its networks.

    Args:
        sde: the model, whose ``field`` it is.
    """

    def __init__(self, sde: GenerativeSDE) -> None:
        super().__init__()
        self.field = sde.field
        self.sde = sde

    def forward(self, x: Tensor, at: At) -> Tensor:
        """The drift."""
        return self.field(x, at)

    def own_losses(self) -> tuple[Loss, ...]:
        """The negative ELBO per dimension, up to a constant; labels are hidden as the networks ask."""
        compute = hiding_labels_of(self.field, self._loss)
        return (Loss("elbo", self.field, frozenset({"real"}), compute, adds_noise=True),)

    def _loss(self, batch: TrainingBatch) -> LossValue:
        assert batch.real is not None
        streams = batch.streams
        return LossValue(
            elbo_loss(
                self.sde,
                batch.real.x,
                time=streams.time,
                noise=streams.noise,
                cond=batch.real.cond,
            )
        )


def _integrand(
    sde: GenerativeSDE,
    x: Tensor,
    q: Tensor,
    cond: Tensor | None,
    generator: torch.Generator,
    trace: Trace,
    *,
    constant: bool = True,
) -> Tensor:
    """(ds/dq)(∇·μ + ‖b‖²/(2ς²)) at one noised point each, an unbiased estimate of the integral: (B,)."""
    t, speed, scale, std = sde.inference.at(q)
    c = sde.flow.coefficients(t)
    eps = normal_like(x, generator)
    y = expand_like(scale, x) * x + expand_like(std, x) * eps
    if torch.is_grad_enabled():  # a discriminator's gradient keeps its graph where points have one
        y.requires_grad_()
    b = sde.correction(y, t, cond)
    noise = c.g2 - c.lambda2
    estimate = flat_sum(b * eps).double() / std
    cost = flat_sum(b**2).double() / (2 * noise)
    if constant:
        # the linear part -κy of b, of which both terms are known: its estimates are swapped for them
        sigma, u = sde.flow.schedule.sigma(t), sde.flow.schedule.u(t)
        kappa = 0.5 * c.g2 * u**2 / (sigma**2 + sde.sigma_data**2)
        estimate = estimate + kappa * (flat_sum(y * eps).double() / std - sde.dim)
        mean_square = scale**2 * flat_sum(x.double() ** 2) + std**2 * sde.dim
        cost = cost - kappa**2 / (2 * noise) * (flat_sum(y.double() ** 2) - mean_square)
    if trace == "free":
        growth = estimate
    else:

        def network(points: Tensor, _: Tensor, labels: Tensor | None) -> Tensor:
            return sde.correction(points, t, labels)

        probes = probes_of(trace, 1, x, generator)
        growth = divergence(network, y, t, cond, probes)[1][:, 0].double()
    whole = growth + cost
    return speed * (whole + c.f * sde.dim if constant else whole)


def _prior_term(sde: GenerativeSDE, x: Tensor, generator: torch.Generator) -> Tensor:
    """E log π(Y_T), where it is known, or log π at one Y_T for each point."""
    _, _, scale, std = sde.inference.at(torch.ones(1, dtype=torch.float64, device=x.device))
    if isinstance(sde.prior, GaussianPrior):  # E‖Y_T‖² is known
        mean = sde.prior.log_density(float(scale) * x.double())
        return mean - 0.5 * sde.dim * float(std / sde.prior.std) ** 2
    eps = normal_like(x, generator)
    return sde.prior.log_density(float(scale) * x.double() + float(std) * eps.double())


def _path(
    sde: GenerativeSDE, x: Tensor, cond: Tensor | None, steps: int, generator: torch.Generator
) -> Tensor:
    """Log of (chain of the sampler)/(chain of tight inference) along one path from each point: (B,).

    Both chains have Gaussian steps of the same noise, so that the mean is a bound for the sampler with
    these steps, whatever their number.
    """
    if sde.score is None:
        raise ConfigError("tight inference follows a data score, and there is none: use 'linear'.")
    own = AtScale(sde.score, sde.flow.schedule)
    q = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=x.device)
    times = sde.inference.at(q)[0]
    times[0] = sde.end
    c = sde.flow.coefficients(times)
    y = x.double()
    log_weight = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for k in range(steps):
        t, ahead = times[k], times[k + 1]
        step = float(times[k] - times[k + 1])
        variance = float(c.g2[k + 1] - c.lambda2[k + 1]) * step
        pull = own(y.to(x.dtype), At(t.to(x.dtype), None, cond)).double()
        phi = -c.f[k] * y + (0.5 * c.g2[k] - c.lambda2[k]) * pull
        eps = normal_like(x, generator).to(y)
        after = y + phi * step + variance**0.5 * eps
        back = y - after - sde.drift(after.to(x.dtype), ahead, cond).double() * step
        log_weight += 0.5 * flat_sum(eps**2) - flat_sum(back**2) / (2 * variance)
        y = after
    return log_weight + sde.prior.log_density(y)


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    draws = torch.rand(len(x), generator=generator, dtype=torch.float64, device=generator.device)
    return draws.to(x.device)
