"""The probability flow of a particle model: the ODE whose law can be followed exactly (framework §6, §8).

A model without noise is its own probability flow. One with noise ς has the velocity drift - ½ς² s_ρ,
with s_ρ = u s_p(uX, σ) - ∇d where a discriminator corrects the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.errors.checks import checked
from partikel.fields import At, Context, LogRatioField
from partikel.models import Carrier, ParticleModel, free_particles
from partikel.schedules import ConstantSchedule, Schedule
from partikel.streams import normal_like
from partikel.tensors import expand_like

SIGMA_MIN = 0.002
"""Noise level of the samples where neither the path nor its grid names one (Karras et al. 2022)."""

KINK = 0.25
"""Share of a field's change along a segment that its derivative may miss."""

Probing: TypeAlias = Literal["exact", "rademacher", "gaussian"]

Velocity = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""(x (B, ...), t () or (B,), cond) -> (B, ...)."""


class Law(Protocol):
    """A law at t = 0: a :class:`~partikel.priors.GaussianPrior`, or an exact target."""

    def log_density(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B,)."""
        ...

    def sample(
        self, n: int, *, generator: torch.Generator, dtype: torch.dtype | None = None
    ) -> Tensor:
        """(n, ...) points."""
        ...


@dataclass(frozen=True)
class ProbabilityFlow:
    """dx = v(x, t) dt from a prior at t = 0 to samples at t = ``end``.

    Attributes:
        velocity: v.
        prior: the law at t = 0.
        end: generation time of the samples, before T where the path reaches σ = 0.
        shape: of one particle.
        schedule: the path, whose log σ is then the clock of integration; None for t itself, as for a path
            that begins at σ = ∞.
    """

    velocity: Velocity
    prior: Law
    end: float
    shape: tuple[int, ...]
    schedule: Schedule | None = None

    @property
    def dim(self) -> int:
        """Number of coordinates D."""
        return math.prod(self.shape)

    @property
    def sigma_min(self) -> float:
        """Noise level of the law whose density is followed; 0 without a path."""
        if self.schedule is None:
            return 0.0
        return float(self.schedule.sigma(torch.tensor(self.end, dtype=torch.float64)))

    @property
    def places(self) -> tuple[float, float]:
        """The clock at t = 0 and at the end: log σ, or t."""
        if self.schedule is None:
            return 0.0, self.end
        sigma = self.schedule.sigma(torch.tensor([0.0, self.end], dtype=torch.float64))
        start, end = sigma.log().tolist()
        return start, end

    def time(self, place: float) -> tuple[float, float]:
        """Generation time t and dt/dplace at a place of the clock."""
        if self.schedule is None:
            return place, 1.0
        sigma = torch.tensor(place, dtype=torch.float64).exp()
        t = self.schedule.time(sigma).clamp(0.0, self.end)
        return float(t), float(sigma / self.schedule.sigma_rate(t))


@checked
def probability_flow(
    model: Carrier,
    *,
    prior: Law | None = None,
    sigma_min: float | None = None,
    real: Tensor | None = None,
) -> ProbabilityFlow:
    """The probability flow of a trained or exact particle model.

    Args:
        model: free particles.
        prior: the law at t = 0; the model's own unless given (exact laws at σ_max, in tests).
        sigma_min: noise level at which particles count as samples; the sampler's lowest unless given.
        real: samples of the data, for a field that compares with them.

    Raises:
        ConfigError: for a model without a velocity (a generator, a field that draws random numbers or
            looks at the whole cloud, noise without a score, or with one of other laws than its own),
            naming what to use instead.
    """
    model = free_particles(
        model,
        f"a {type(model).__name__} makes samples in one call and has no velocity, so no likelihood "
        "can be followed: measure it by its samples ('partikel evaluate'), or take a model of "
        "free particles.",
    )
    field = model.field
    if "particles" in field.needs:
        raise ConfigError(
            "this field depends on the whole cloud, so that no single particle has a density to "
            "follow: measure the samples ('partikel evaluate')."
        )
    if field.draws:
        raise ConfigError(
            "this field draws random numbers wherever it is asked, so that it is no ODE: leave out "
            "its noise, perturbation or augmentation."
        )
    if field.needs:
        if real is None:
            raise ConfigError(
                "this field compares particles with data: pass samples of them as real."
            )
        field = field.bind(Context(real=real))

    def drift(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        return model.velocity(x, t, cond, field)

    schedule = model.schedule
    falls = schedule is not None and not isinstance(schedule, ConstantSchedule)
    flow = ProbabilityFlow(
        drift if model.diffusion is None else _without_noise(model, drift, prior is not None),
        model.prior if prior is None else prior,
        model.horizon,
        model.prior.shape,
        schedule if falls else None,
    )
    if schedule is None or not falls:
        return flow
    if not math.isfinite(schedule.sigma_max):
        flow = replace(flow, schedule=None)
        if field.defined_at_end and sigma_min is None:
            return flow
    return replace(
        flow, end=sample_time(schedule, sigma_min, getattr(model.grid, "sigma_min", None))
    )


def sample_time(schedule: Schedule, sigma_min: float | None, lowest: float | None = None) -> float:
    """Generation time of the samples: where σ is ``sigma_min``, else ``lowest``, else the path's end.

    Raises:
        ConfigError: for a level that is not on the path.
    """
    if sigma_min is None:
        if schedule.sigma_end > 0:
            return schedule.horizon
        sigma_min = lowest or SIGMA_MIN
    if not max(schedule.sigma_end, 1e-12) <= sigma_min < schedule.sigma_max:
        raise ConfigError(
            f"sigma_min is a level of the path, from {schedule.sigma_end:g} (above 0) to "
            f"{schedule.sigma_max:g}, got {sigma_min:g}: densities are not followed to σ = 0."
        )
    return float(schedule.time(torch.tensor(sigma_min, dtype=torch.float64)))


@checked
def log_ratio_in(model: Carrier) -> LogRatioField | None:
    """The discriminator's part of a DiffFlow model, if it has one."""
    found = [part for part in model.field.modules() if isinstance(part, LogRatioField)]
    return found[0] if found else None


def _without_noise(model: ParticleModel, drift: Velocity, starts_right: bool) -> Velocity:
    """The velocity drift - ½ς² s_ρ.

    Args:
        model: with noise.
        drift: of the model.
        starts_right: whether the law at t = 0 was given; the model's own prior is checked otherwise.
    """
    diffusion, critic = model.diffusion, log_ratio_in(model)
    assert diffusion is not None
    if model.dynamics().score is None:
        raise ConfigError(
            "this model moves with noise and gives no score of its law, so that it has no velocity: "
            "train it at temperature 0, or take a point of the plane (recipe 'diffflow')."
        )

    def velocity(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        score = model.dynamics(cond).score
        assert score is not None
        own = score(x, t)
        if critic is not None:
            own = own - critic(x, At(t, None, cond))
        rate = expand_like(diffusion(t), x) ** 2
        return drift(x, t, cond) - 0.5 * rate * own

    if not (starts_right or _starts_at_noise(model)) or not _follows_its_path(model, velocity):
        raise ConfigError(
            "this model moves with noise, and the laws of its particles are not those of the noised data "
            "(another prior, f or λ² than the path's), whose score is all that it has: measure its "
            "samples ('partikel evaluate'), bound its likelihood (method elbo), or take a point of the "
            "plane along the path's own laws (DiffFlow.reverse)."
        )
    return velocity


def _starts_at_noise(model: ParticleModel) -> bool:
    """Whether the prior is what data are at t = 0: noise, as far as its size tells."""
    schedule = model.schedule
    if schedule is None or isinstance(schedule, ConstantSchedule):
        return False
    return 2 / 3 < model.prior.std / schedule.prior_std < 3 / 2


def _follows_its_path(model: ParticleModel, velocity: Velocity) -> bool:
    """Whether v is a(t) x + ½g_s² u s_p(ux, σ) + c(t) ∇d, so that ρ_t is p_σ(t) for exact networks.

    Tried at a few points: v has λ² for g_s² and f for a x (:attr:`DiffFlow.matched`), and says so by
    itself, whatever the model was made of.
    """
    schedule, critic = model.schedule, log_ratio_in(model)
    if schedule is None:
        return False
    generator = torch.Generator().manual_seed(0)
    like = next(model.parameters(), torch.zeros(()))
    clean = torch.randn(8, *model.prior.shape, generator=generator, dtype=torch.float64)
    score, diffusion = model.dynamics().score, model.diffusion
    assert score is not None
    assert diffusion is not None
    for share in (0.1, 0.5, 0.9):
        t = torch.full((8,), share * schedule.horizon, dtype=torch.float64)
        x = schedule.noised(clean, t, generator=generator).to(like)
        t = t.to(like)
        with torch.no_grad():
            s = score(x, t)
            removed = 0.5 * expand_like(diffusion(t), x) ** 2 * s
            parts = [expand_like(schedule.drift_rate(t), x) * x]
            parts.append(0.5 * expand_like(schedule.noise_rate(t), x) * s)
            rest = velocity(x, t, None) - sum(parts)
            if critic is not None:  # the best multiple of ∇d is taken off
                d = critic(x, At(t))
                rest = rest - (rest * d).sum() / d.square().sum().clamp(min=1e-30) * d
        size = max(float(part.norm()) for part in (removed, *parts))
        if float(rest.norm()) > 1e-3 * size:
            return False
    return True


def probes_of(kind: Probing, count: int, x: Tensor, generator: torch.Generator) -> Tensor | None:
    """Probes (K, B, ...) of Hutchinson's estimator for points x (B, ...); None of the exact divergence."""
    if kind == "exact":
        return None
    many = x.expand(count, *x.shape)
    if kind == "gaussian":
        return normal_like(many, generator)
    signs = torch.randint(0, 2, many.shape, generator=generator, device=generator.device)
    return (signs * 2 - 1).to(x)


@checked
def divergence(
    velocity: Velocity,
    x: Tensor,
    t: Tensor,
    cond: Tensor | None = None,
    probes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Velocity and divergence, exact or by Hutchinson's estimator.

    Args:
        velocity: v.
        x: (B, ...).
        t: () or (B,).
        cond: (B,) labels.
        probes: (K, B, ...) random vectors with E[e eᵀ] = I; None sums over all D axes.

    Returns:
        v (B, ...) without a graph, and eᵀ∇v e for each probe (B, K), or ∇·v (B, 1).

    A velocity without a derivative has the divergence 0 here: see :func:`check_derivative`.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        v = velocity(point, t, cond)
        flat = v.flatten(1)

        def vjp(direction: Tensor, keep: bool) -> Tensor:
            if not v.requires_grad:
                return torch.zeros_like(flat)
            (row,) = torch.autograd.grad(
                flat, point, direction, retain_graph=keep, allow_unused=True
            )
            return torch.zeros_like(flat) if row is None else row.flatten(1)

        if probes is None:
            total = torch.zeros_like(flat[:, :1])
            for i in range(flat.shape[1]):
                axis = torch.zeros_like(flat)
                axis[:, i] = 1
                total = total + vjp(axis, i < flat.shape[1] - 1)[:, i : i + 1]
            return v.detach(), total
        parts = []
        for k, probe in enumerate(probes.flatten(2)):
            parts.append((vjp(probe, k < len(probes) - 1) * probe).sum(1))
        return v.detach(), torch.stack(parts, 1)


@checked
def check_derivative(
    flow: ProbabilityFlow,
    x: Tensor,
    cond: Tensor | None = None,
    *,
    generator: torch.Generator,
) -> None:
    """Compare the velocity's change along short segments with its derivative there (Newton-Leibniz).

    A discriminator of piecewise linear activations has a gradient that jumps and a Hessian that is 0 in
    between; a field that is estimated from samples gives autograd nothing to follow.

    Args:
        flow: a probability flow.
        x: (B, ...) points at its end; some are looked at.
        cond: (B,) their labels.
        generator: source of directions.

    Raises:
        ConfigError: where the derivative misses more than :data:`KINK` of the change.
    """
    x, cond = x[:128], None if cond is None else cond[:128]
    times = [flow.end]
    if flow.schedule is not None:
        spread = float(x.std()) if x.numel() > 1 else 1.0
        low, high = flow.sigma_min, flow.schedule.sigma_max
        times = [flow.time(math.log(min(max(spread * k, low), high)))[0] for k in (0.1, 1.0)]
    for time in times:
        t = x.new_tensor(time).expand(len(x))
        points = x
        if flow.schedule is not None:
            points = flow.schedule.noised(x, t, generator=generator)
        signs = probes_of("rademacher", 1, x, generator)
        assert signs is not None
        step = 0.1 * float(points.std() if points.numel() > 1 else 1.0) * signs[0]
        # a stratified average of the derivative along the segment from -step to +step
        strata = 16
        jitter = torch.rand(strata, generator=generator, device=x.device).tolist()
        inside = torch.zeros_like(t)
        for k, offset in enumerate(jitter):
            place = points + (2 * (k + offset) / strata - 1) * step
            inside += divergence(flow.velocity, place, t, cond, step[None])[1][:, 0]
        with torch.no_grad():
            ends = flow.velocity(points + step, t, cond) - flow.velocity(points - step, t, cond)
        change = (ends * step).flatten(1).sum(1)
        missed = (change - 2 * inside / strata).square().mean().sqrt()
        if float(missed) > KINK * float(change.square().mean().sqrt()) + 1e-6 * float(
            step.abs().max()
        ):
            raise ConfigError(
                "the derivative of this model's velocity misses its changes, so that no density can be "
                "followed: a discriminator needs a smooth activation (silu, softplus or tanh, not "
                "leaky_relu or relu); for a field that is estimated from samples, measure the samples."
            )
