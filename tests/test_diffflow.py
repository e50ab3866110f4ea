"""The DiffFlow plane: its rows are Song's SDEs and Goodfellow's GAN, its forms agree, its walls hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.testing import assert_close

from conftest import (
    GAUSSIAN,
    MIXTURE,
    OTHER,
    LinearField,
    Quadratic,
    Recorder,
    assert_moments,
    randn,
    seeded,
    tensor,
)
from partikel.data import Batch
from partikel.denoising import EDMDenoiser
from partikel.diffflow import PRESETS, DiffFlow
from partikel.errors import ConfigError
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    ExactScoreField,
    Field,
    ScoreField,
    TrainingBatch,
)
from partikel.fields.particles import Particles
from partikel.fields.terms import AtScale, Linear, LogRatioField
from partikel.models import ParticleModel
from partikel.objectives import Vanilla
from partikel.schedules import (
    ConstantSchedule,
    EDMSchedule,
    GeometricGrid,
    KarrasGrid,
    KarrasLaw,
    Schedule,
    SubVPSchedule,
    UniformGrid,
    VESchedule,
    VPSchedule,
)
from partikel.streams import Streams
from partikel.targets import GaussianMixture

FALLING: dict[str, Schedule] = {
    "edm": EDMSchedule(),
    "ve": VESchedule(),
    "vp": VPSchedule(),
    "vp to 0": VPSchedule(0.2, 12.0, 0.0),
    "vp constant": VPSchedule(3.0, 3.0),
    "sub-vp": SubVPSchedule(),
    "sub-vp to 0": SubVPSchedule(0.2, 12.0, 0.0),
}
NOWHERE = LinearField(torch.zeros(3, 3).double(), torch.zeros(3).double())  # ∇d of a constant d


def inside(path: Schedule, n: int = 65) -> Tensor:
    return path.horizon * torch.linspace(0, 1, n + 1, dtype=torch.float64)[:-1]


# --- the paths ---


@pytest.mark.parametrize("path", FALLING.values(), ids=FALLING)
def test_paths_invert_and_their_rates_are_derivatives(path: Schedule) -> None:
    t = inside(path).requires_grad_()
    sigma, u = path.sigma(t), path.u(t)
    assert_close(path.time(sigma), t, atol=1e-12, rtol=1e-11)
    assert_close(path.sigma(path.time(sigma)), sigma, atol=1e-12, rtol=1e-11)
    (sigma_rate,) = torch.autograd.grad(sigma.sum(), t, retain_graph=True)
    assert_close(path.sigma_rate(t), sigma_rate, rtol=1e-11, atol=0)
    assert_close(path.half_rate(t), -sigma * sigma_rate, rtol=1e-11, atol=0)
    u_rate = torch.zeros_like(t)
    if u.requires_grad:
        (u_rate,) = torch.autograd.grad(u.sum(), t)
    assert_close(path.u_rate(t), u_rate, rtol=1e-11, atol=0)
    assert_close(path.drift_rate(t), -u_rate / u, rtol=1e-11, atol=0)
    assert_close(path.noise_rate(t), -2 * sigma * sigma_rate / u**2, rtol=1e-11, atol=0)


@pytest.mark.parametrize("path", FALLING.values(), ids=FALLING)
def test_rates_are_finite_where_a_path_ends(path: Schedule) -> None:
    end = tensor([path.horizon])
    for rate in (path.half_rate, path.noise_rate, path.drift_rate):
        assert_close(rate(end), rate(end - 1e-9), rtol=1e-4, atol=1e-8)


def test_vp_scales() -> None:
    """α² + (ασ)² = 1 keeps unit variance; sub-VP's variance is below it, and both end in N(0, I)."""
    for path in (VPSchedule(), VPSchedule(0.3, 9.0, 0.01)):
        t = inside(path)
        assert_close(path.u(t) * path.alpha(t), torch.ones_like(t))
        assert_close(path.alpha(t) ** 2 * (1 + path.sigma(t) ** 2), torch.ones_like(t))
        below = SubVPSchedule(path.beta_min, path.beta_max, path.epsilon)
        assert_close(below.sigma(t) * path.alpha(t), 1 - path.alpha(t) ** 2)
        assert (below.sigma(t) < path.sigma(t)).all()
    long = VPSchedule()
    assert_close(
        long.sigma(tensor([0.0])) / long.u(tensor([0.0])), tensor([1.0]), atol=1e-4, rtol=0
    )


def test_a_constant_path() -> None:
    path = ConstantSchedule(0.3, 2.0)
    t = inside(path)
    assert_close(path.sigma(t), torch.full_like(t, 0.3))
    for rate in (path.sigma_rate, path.u_rate, path.noise_rate, path.drift_rate):
        assert_close(rate(t), torch.zeros_like(t))
    with pytest.raises(ConfigError, match="schedule that falls"):
        path.time(tensor([0.3]))


@pytest.mark.parametrize(
    "grid",
    [
        GeometricGrid(EDMSchedule(80.0)),
        GeometricGrid(EDMSchedule(10.0, 0.1)),
        GeometricGrid(VPSchedule()),
        GeometricGrid(SubVPSchedule(epsilon=0.0), 0.01),
        KarrasGrid(VPSchedule(), 0.05),
        UniformGrid(VPSchedule().horizon),
    ],
    ids=repr,
)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_grids(grid: GeometricGrid, steps: int) -> None:
    nodes = grid.nodes(steps)
    assert nodes.shape == (steps + 1,)
    assert nodes[0] == 0
    assert nodes[-1] == (grid.horizon if isinstance(grid, UniformGrid) else grid.schedule.horizon)
    assert (nodes.diff() > 0).all()


def test_the_geometric_grid_is_uniform_in_log_snr() -> None:
    for grid, ends in [
        (GeometricGrid(VPSchedule()), True),
        (GeometricGrid(EDMSchedule(80.0)), False),  # then one step from 0.002 to 0
        (GeometricGrid(EDMSchedule(80.0, 0.01), 0.02), False),
    ]:
        path = grid.schedule
        nodes = grid.nodes(9)[: None if ends else -1]
        log_snr = -2 * path.sigma(nodes).log()  # (α/std)² with α = 1/u and std = σ/u
        assert_close(
            log_snr.diff(), log_snr.diff().mean().expand(len(nodes) - 1), rtol=1e-9, atol=0
        )
        lowest = grid.sigma_min or path.sigma_end or 0.002
        assert_close(path.sigma(nodes[-1]), tensor(lowest))


# --- Song et al. 2021, from their paper: forward SDEs in their time, reverse drifts, kernels ---


@dataclass(frozen=True)
class Song:
    """A forward SDE dx = a(τ) x dτ + g(τ) dw and its kernel N(m(τ) x_0, s²(τ) I)."""

    a: Callable[[Tensor], Tensor]
    g2: Callable[[Tensor], Tensor]
    m: Callable[[Tensor], Tensor]
    s2: Callable[[Tensor], Tensor]
    start: float  # τ = start - t
    flow: DiffFlow
    ode: DiffFlow

    def score(self, x: Tensor, tau: Tensor, law: GaussianMixture) -> Tensor:
        """∇ log p_τ by autograd of a density that owes nothing to partikel.targets."""
        rows = []
        for point, time in zip(x, tau, strict=True):
            m, s2 = self.m(time), self.s2(time)
            parts = MultivariateNormal(
                m * law.means, m**2 * law.covariances + s2 * torch.eye(3).double()
            )
            density = MixtureSameFamily(Categorical(law.weights), parts)
            leaf = point.clone().requires_grad_()
            rows.append(torch.autograd.grad(density.log_prob(leaf), leaf)[0])
        return torch.stack(rows)

    def reverse(self, x: Tensor, tau: Tensor, law: GaussianMixture, weight: float) -> Tensor:
        """Their eqs. 6 and 13: dx/dτ = f(x, τ) - weight·g² ∇ log p_τ(x)."""
        g2 = self.g2(tau)[:, None]
        return self.a(tau)[:, None] * x - weight * g2 * self.score(x, tau, law)


LOW, HIGH, BMIN, BMAX = 0.02, 30.0, 0.1, 20.0


def rate(tau: Tensor) -> Tensor:
    return BMIN + tau * (BMAX - BMIN)


def scale(tau: Tensor) -> Tensor:
    return torch.exp(-0.25 * tau**2 * (BMAX - BMIN) - 0.5 * tau * BMIN)


SONG = {
    "ve": Song(
        a=torch.zeros_like,
        g2=lambda tau: (LOW * (HIGH / LOW) ** tau) ** 2 * 2 * math.log(HIGH / LOW),
        m=torch.ones_like,
        s2=lambda tau: (LOW * (HIGH / LOW) ** tau) ** 2,
        start=1.0,
        flow=DiffFlow.ve(HIGH, LOW),
        ode=DiffFlow.ve(HIGH, LOW, ode=True),
    ),
    "karras": Song(
        a=torch.zeros_like,
        g2=lambda tau: 2 * tau,
        m=torch.ones_like,
        s2=lambda tau: tau**2,
        start=HIGH,
        flow=DiffFlow.karras(HIGH),
        ode=DiffFlow.karras(HIGH, ode=True),
    ),
    "vp": Song(
        a=lambda tau: -0.5 * rate(tau),
        g2=rate,
        m=scale,
        s2=lambda tau: -torch.expm1(-0.5 * tau**2 * (BMAX - BMIN) - tau * BMIN),
        start=1.0,
        flow=DiffFlow.vp(BMIN, BMAX),
        ode=DiffFlow.vp(BMIN, BMAX, ode=True),
    ),
    "sub-vp": Song(
        a=lambda tau: -0.5 * rate(tau),
        g2=lambda tau: -rate(tau) * torch.expm1(-(tau**2) * (BMAX - BMIN) - 2 * tau * BMIN),
        m=scale,
        s2=lambda tau: torch.expm1(-0.5 * tau**2 * (BMAX - BMIN) - tau * BMIN) ** 2,
        start=1.0,
        flow=DiffFlow.sub_vp(BMIN, BMAX),
        ode=DiffFlow.sub_vp(BMIN, BMAX, ode=True),
    ),
}


def random_mixture(seed: int) -> GaussianMixture:
    roots = randn(4, 3, 3, seed=seed)
    covariances = roots @ roots.mT + 0.05 * torch.eye(3).double()
    weights = randn(4, seed=seed + 1).softmax(0)
    return GaussianMixture(2 * randn(4, 3, seed=seed + 2), covariances, weights=weights)


@pytest.mark.parametrize("song", SONG.values(), ids=SONG)
def test_songs_kernels_solve_their_own_moment_equations(song: Song) -> None:
    """dm/dτ = a m, d(s²)/dτ = 2 a s² + g²: what is compared with below is right."""
    tau = (song.start * torch.linspace(0.01, 1, 40)).double().requires_grad_()
    m, s2 = song.m(tau), song.s2(tau)
    m_rate = torch.zeros_like(tau)
    if m.requires_grad:
        (m_rate,) = torch.autograd.grad(m.sum(), tau, retain_graph=True)
    (s2_rate,) = torch.autograd.grad(s2.sum(), tau)
    assert_close(m_rate, song.a(tau) * m)
    assert_close(s2_rate, 2 * song.a(tau) * s2 + song.g2(tau))


@pytest.mark.parametrize("seed", [0, 10, 20])
@pytest.mark.parametrize("song", SONG.values(), ids=SONG)
def test_reverse_sdes_and_odes_are_songs(song: Song, seed: int) -> None:
    law, score = random_mixture(seed), ExactScoreField(random_mixture(seed))
    path = song.flow.schedule
    place = torch.rand(40, generator=seeded(seed), dtype=torch.float64)
    t = path.horizon * place
    tau = song.start - t
    x = song.m(tau)[:, None] * law.sample(40, generator=seeded(seed), dtype=torch.float64)
    x = x + 1.5 * song.s2(tau).sqrt()[:, None] * randn(40, 3, seed=seed + 3)
    sigma = path.sigma(t)

    def same(field: Field, expected: Tensor) -> None:
        assert_close(field(x, At(t, sigma)), expected, rtol=1e-10, atol=1e-10)
        assert_close(field(x, At(t)), expected, rtol=1e-10, atol=1e-10)  # the path knows its σ

    backward, flowing = song.reverse(x, tau, law, 1.0), song.reverse(x, tau, law, 0.5)
    same(song.flow.field(score), -backward)  # dτ = -dt
    assert_close(song.flow.noise(t), song.g2(tau).sqrt(), rtol=1e-10, atol=1e-10)
    same(song.ode.field(score), -flowing)
    assert song.ode.diffusion is None
    # the SDE's own probability flow, where ρ_t = p_σ(t) and so d is constant
    same(song.flow.velocity(score, NOWHERE), -flowing)
    # their time: dx = v dτ with v the drift of the flow run backwards
    at = At(song.start - tau, path.sigma(song.start - tau))
    later = song.flow.field(score)(x, at)
    assert_close(-later, backward, rtol=1e-10, atol=1e-10)


# --- the rows of framework §6 ---

ROWS: dict[str, tuple[float, float, bool, float]] = {
    # name: g²/β, λ²/β, matched, standard deviation of the prior
    "langevin": (2, 0, True, 1.0),
    "annealed-langevin": (2, 0, False, 50.0),
    "ve": (2, 1, True, 50.0),
    "karras": (2, 1, True, 80.0),
    "vp": (2, 1, True, 1.0),
    "sub-vp": (2, 1, True, 1.0),
    "ve-ode": (2, 2, True, 50.0),
    "karras-ode": (2, 2, True, 80.0),
    "vp-ode": (2, 2, True, 1.0),
    "sub-vp-ode": (2, 2, True, 1.0),
    "gan": (0, 0, True, 1.0),
    "gan-saturating": (0, 0, True, 1.0),
    "gan-logit": (0, 0, True, 1.0),
    "diffode-gan": (0, 0, False, 50.0),
    "diffusion-gan": (1.5, 1, True, 50.0),
    "slcd": (2, 1.5, True, 50.0),
    "continuation": (2, -0.5, False, 50.0),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_stand_where_figure_1_has_them(name: str) -> None:
    g2, lambda2, matched, std = ROWS[name]
    flow = PRESETS[name]()
    t = inside(flow.schedule)
    for found, ratio in zip(flow.coordinates(t), (g2, lambda2), strict=True):
        assert_close(found, torch.full_like(t, ratio))
    c = flow.coefficients(t)
    assert_close(flow.noise(t), ((g2 - lambda2) * c.beta).sqrt())
    assert flow.deterministic == (g2 == lambda2)
    assert (flow.diffusion is None) == flow.deterministic
    assert flow.matched == matched
    assert flow.prior((2, 3)).std == std
    assert flow.prior((2, 3)).shape == (2, 3)
    if flow.matched and lambda2 > 0:  # the forward SDE's own noise
        assert_close(c.lambda2, flow.schedule.noise_rate(t))


def test_the_vp_rows_in_numbers() -> None:
    for flow, noise in [
        (DiffFlow.vp(), lambda rate, alpha: rate),
        (DiffFlow.sub_vp(), lambda rate, alpha: rate * (1 - alpha**4)),
    ]:
        path = flow.schedule
        assert isinstance(path, VPSchedule)
        t = inside(path)
        rate, alpha = path.beta_vp(t), path.alpha(t)
        c = flow.coefficients(t)
        assert_close(c.f, 0.5 * rate)
        assert_close(c.beta, noise(rate, alpha))
        assert_close(c.g2, 2 * c.beta)
        assert_close(c.lambda2, c.beta)


def test_moving_over_the_plane_keeps_beta() -> None:
    base = DiffFlow.vp()
    t = inside(base.schedule)
    for moved, g2, lambda2 in [
        (base.with_g2(1.2), 1.2, 1.0),
        (base.with_lambda2(0.3), 2.0, 0.3),
        (base.with_lambda2(-3.0), 2.0, -3.0),
        (base.at(0.0, -0.7), 0.0, -0.7),
        (base.diffusion_gan(1.1), 1.1, 1.0),
        (base.slcd(0.4), 2.0, 0.4),
        (base.slcd(2.0, g2=3.0), 3.0, 2.0),
        (base.continuation(-0.5), 2.0, -0.5),
    ]:
        c, beta = moved.coefficients(t), base.coefficients(t).beta
        assert_close(c.beta, beta)
        assert_close(c.g2, g2 * beta)
        assert_close(c.lambda2, lambda2 * beta)
        assert_close(c.f, base.coefficients(t).f)
    kept = DiffFlow.reverse(VPSchedule(), g2=1.0, lambda2=0.5)  # here λ² stays and β moves
    assert_close(kept.coefficients(t).lambda2, base.schedule.noise_rate(t))
    assert_close(kept.coefficients(t).beta, 2 * base.schedule.noise_rate(t))
    assert_close(kept.coefficients(t).g2, 2 * base.schedule.noise_rate(t))
    varying = DiffFlow.langevin(beta=3.0).with_g2(lambda t: 2 * t)
    assert_close(varying.coefficients(t).g2, 6 * t)


# --- the two forms, the terms, the velocity ---


def exact_ratio(path: Schedule) -> Field:
    """∇log(p_σ(uX)/ρ(X)) with ρ = OTHER and p = MIXTURE, by autograd of the two densities."""

    class Ratio(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            leaf = x.clone().requires_grad_()
            scaled = path.u(at.t)[:, None] * leaf
            d = MIXTURE.log_density(scaled, path.sigma(at.t)) - OTHER.log_density(leaf)
            return torch.autograd.grad(d.sum(), leaf)[0]

    return Ratio()


COEFFICIENTS: dict[str, DiffFlow] = {
    "vp": DiffFlow.vp().at(1.3, 0.4),
    "sub-vp, beyond": DiffFlow.sub_vp().at(3.0, -1.0),
    "ve": DiffFlow.ve().diffusion_gan(1.5),
    "numbers": DiffFlow(ConstantSchedule(0.4), -0.3, 0.8, 0.5, 0.2),
    "functions": DiffFlow(
        VESchedule(2.0, 0.3), torch.cos, torch.exp, lambda t: 1 + t, lambda t: t - 0.2
    ),
}


@pytest.mark.parametrize("flow", COEFFICIENTS.values(), ids=COEFFICIENTS)
def test_both_forms_and_the_velocity(flow: DiffFlow) -> None:
    path, score, own = flow.schedule, ExactScoreField(MIXTURE), ExactScoreField(OTHER)
    ratio = exact_ratio(path)
    x = randn(30, 2)
    t = path.horizon * torch.rand(30, generator=seeded(), dtype=torch.float64)
    sigma = path.sigma(t)
    at = At(t, sigma)

    class Own(Field):  # s_ρ of ρ_t itself: σ is the path's, not its own
        def forward(self, x: Tensor, at: At) -> Tensor:
            return own(x, At(at.t))

    drift = flow.field(score, ratio)(x, at)
    assert_close(drift, flow.first_form(score, Own())(x, at), rtol=1e-11, atol=1e-11)
    # from the equations, with nothing composed
    c = flow.coefficients(t)
    f, beta, g2, lambda2, u = (v[:, None] for v in (*c, path.u(t)))
    s_p, s_rho = u * MIXTURE.score(u * x, sigma), OTHER.score(x)
    assert_close(drift, f * x + beta * (s_p - s_rho) + 0.5 * g2 * s_rho, rtol=1e-11, atol=1e-11)
    velocity = flow.velocity(score, ratio)(x, at)
    expected = f * x + beta * s_p - (beta - 0.5 * lambda2) * s_rho
    assert_close(velocity, expected, rtol=1e-11, atol=1e-11)
    # moving noise into drift, λ² = g², is the same velocity
    if (c.lambda2 >= 0).all():
        still = DiffFlow(path, flow.f, flow.beta, flow.lambda2, flow.lambda2)
        assert still.diffusion is None
        assert_close(still.field(score, ratio)(x, at), velocity)


def test_the_own_score_is_the_scaled_score_less_the_ratio() -> None:
    flow, score = DiffFlow.vp().at(0.6, -0.1), ExactScoreField(MIXTURE)
    critic = LogRatioField(DiscriminatorField(Quadratic(2)))
    own = AtScale(score, flow.schedule) - critic
    x, t = randn(9, 2), inside(flow.schedule, 9)
    at = At(t)
    assert_close(flow.first_form(score, own)(x, at), flow.field(score, critic)(x, at))


@pytest.mark.parametrize("path", [VPSchedule(), SubVPSchedule(), VESchedule()], ids=repr)
def test_at_scale_is_a_gradient_in_x(path: Schedule) -> None:
    t = inside(path, 20)
    x = (randn(20, 2) * (path.sigma(t) / path.u(t))[:, None]).requires_grad_()
    density = MIXTURE.log_density(path.u(t)[:, None] * x, path.sigma(t))
    (gradient,) = torch.autograd.grad(density.sum(), x)
    field = AtScale(ExactScoreField(MIXTURE), path)
    assert_close(field(x.detach(), At(t)), gradient)
    assert_close(field(x.detach(), At(t, path.sigma(t))), gradient)


def test_linear() -> None:
    x, t = randn(5, 2, 3), torch.linspace(0, 1, 5).double()
    assert_close(Linear(-2.5)(x, At(t)), -2.5 * x)
    assert_close(Linear(torch.exp)(x, At(t)), t.exp()[:, None, None] * x)


def test_shapes_dtypes_shared_times_and_conditions() -> None:
    network, judge = Recorder(), Recorder(lambda x: x.square().flatten(1).sum(1))
    score = ScoreField(EDMDenoiser(network), KarrasLaw())
    critic = DiscriminatorField(judge, conditions=("t", "sigma"))
    flow = DiffFlow.vp().diffusion_gan(1.5)
    drift = flow.field(score, critic).float()
    x = randn(4, 1, 3, 3).float()
    labels = torch.arange(4)
    shared = torch.tensor(0.3)
    level = flow.schedule.sigma(shared)
    out = drift(x, At(shared, level, labels))
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert torch.equal(network.calls[0][2], labels)
    assert torch.equal(judge.calls[0][2], labels)
    assert_close(judge.calls[0][1], torch.stack([shared, level])[None])  # embedded once
    own = At(shared.expand(4), None, labels)
    assert_close(drift(x, own), out)  # times of their own, the path's σ
    assert_close(judge.calls[-1][1], torch.stack([shared, level]).expand(4, 2))
    assert_close(copy.deepcopy(drift)(x, At(shared)), out)
    assert torch.equal(judge.calls[-1][0], x)  # the discriminator lives at particles' scale


# --- vanilla GANs (DiffFlow eqs. 19-27) ---

BETA: dict[str, Callable[[Tensor], Tensor]] = {
    "saturating": torch.sigmoid,
    "non-saturating": lambda d: torch.sigmoid(-d),
    "logit": torch.ones_like,
}


@pytest.mark.parametrize("name", ["saturating", "non-saturating", "logit"])
def test_a_gans_drift_is_beta_of_d_times_the_gradient(name: str) -> None:
    network = Quadratic(2)
    x, t = randn(20, 2), torch.zeros(20).double()
    drift = DiffFlow.gan(name).field(log_ratio=DiscriminatorField(network, "saturating"))  # type: ignore[arg-type]
    assert_close(drift(x, At(t)), BETA[name](network(x)).detach()[:, None] * network.gradient(x))
    critic = DiscriminatorField(network, name)
    drift = DiffFlow.gan(name, beta=2.0).field(log_ratio=critic)  # type: ignore[arg-type]
    assert_close(drift(x, At(t)), 2 * critic(x, At(t)), rtol=1e-14, atol=1e-14)


class Bent(nn.Module):
    """A generator whose Jacobian depends on z and on every weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(randn(4, 3, seed=1))
        self.outer = nn.Parameter(randn(2, 4, seed=2))

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.inner.T).tanh() @ self.outer.T


def generator_losses() -> dict[str, Callable[[Tensor], Tensor]]:
    """What a generator minimises, in D = sigmoid(d): Goodfellow's two losses, and -d."""
    return {
        "saturating": lambda d: torch.log(1 - torch.sigmoid(d)),
        "non-saturating": lambda d: -torch.log(torch.sigmoid(d)),
        "logit": lambda d: -d,
    }


@pytest.mark.parametrize("eta", [0.1, 1.0])
@pytest.mark.parametrize("name", ["saturating", "non-saturating", "logit"])
def test_one_fit_step_is_the_gan_update(name: str, eta: float) -> None:
    """Eqs. 23-27: the least-squares step of rate lr/η to x + ηβ∇d is the GAN's step of rate lr."""
    network, z, lr = Quadratic(2), randn(16, 3, seed=7), 0.03
    gan, fit = Bent(), Bent()
    loss = generator_losses()[name](network(gan(z))).mean()
    expected = torch.autograd.grad(loss, list(gan.parameters()))
    drift = DiffFlow.gan(name).field(log_ratio=DiscriminatorField(network))  # type: ignore[arg-type]
    x = fit(z)
    with torch.no_grad():
        moved = x + eta * drift(x, At(torch.zeros(16).double()))
    error = 0.5 * (x - moved).square().sum(1).mean()
    found = torch.autograd.grad(error, list(fit.parameters()))
    for a, b in zip(expected, found, strict=True):
        assert_close((lr / eta) * b, lr * a, rtol=1e-11, atol=1e-13)


def test_the_logistic_loss_is_the_gans() -> None:
    """Eqs. 20, 22: logistic regression between data and particles is the discriminator's update."""
    network, real, fake = Quadratic(2), randn(8, 2, seed=1), randn(8, 2, seed=2)
    goodfellow = -torch.log(network(real).sigmoid()) - torch.log(1 - network(fake).sigmoid())
    expected = torch.autograd.grad(goodfellow.mean(), list(network.parameters())[:2])
    ours = Vanilla().discriminator_loss(network(real), network(fake))
    assert_close(ours, goodfellow)
    found = torch.autograd.grad(ours.mean(), list(network.parameters())[:2])
    assert_close(found, expected)


# --- discriminators on the path ---


def test_log_ratio_field_uses_the_objectives_reading() -> None:
    network = Quadratic(2)
    x, t = 0.1 * randn(10, 2), torch.zeros(10).double()
    for name in ("non-saturating", "saturating", "f-pearson", "f-kl-trick"):
        critic = DiscriminatorField(network, name)
        assert_close(LogRatioField(critic)(x, At(t)), network.gradient(x))

    class Likely(nn.Module):  # LSGAN's optimum r/(1+r)
        def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
            return network(x).sigmoid()

    assert_close(
        LogRatioField(DiscriminatorField(Likely(), "lsgan"))(x, At(t)), network.gradient(x)
    )
    for name in ("hinge", "ipm", "relativistic"):
        with pytest.raises(ConfigError, match=f"'{name}' has no log-ratio"):
            DiffFlow.vp().with_g2(1.0).field(
                ExactScoreField(GAUSSIAN), DiscriminatorField(network, name)
            )


@pytest.mark.parametrize("own_schedule", [False, True])
def test_discriminators_see_data_along_the_path(own_schedule: bool) -> None:
    flow = DiffFlow.vp().diffusion_gan(1.4)
    path = flow.schedule
    spy = Recorder(lambda x: x.sum(1))
    critic = DiscriminatorField(
        spy, conditions=("sigma",), schedule=VPSchedule() if own_schedule else None
    )
    drift = flow.field(ScoreField(EDMDenoiser(nn.Identity())), critic)
    (loss,) = drift.losses()
    real, fake, t = randn(6, 2, seed=1), randn(6, 2, seed=2), inside(path, 6)
    batch = TrainingBatch(Batch(real, None), Particles(fake, t), 6, Streams(3))
    loss.compute(batch)
    sigma = path.sigma(t)
    noise = torch.randn(6, 2, generator=Streams(3).noise, dtype=torch.float64)
    expected = path.alpha(t)[:, None] * (real + sigma[:, None] * noise)  # type: ignore[attr-defined]
    assert_close(spy.calls[0][0], torch.cat([expected, fake]))
    assert_close(spy.calls[0][1], torch.cat([sigma, sigma])[:, None])
    assert not drift.freeze().losses()


def test_noised_data_have_the_paths_law() -> None:
    """U X ~ p_σ for X = (x + σε)/u."""
    flow = DiffFlow.sub_vp()
    x = GAUSSIAN.sample(60_000, generator=seeded(), dtype=torch.float64)
    t = tensor([0.7]).expand(len(x))
    noised = flow.schedule.noised(x, t, generator=seeded(1))
    sigma, u = flow.schedule.sigma(t[:1]), flow.schedule.u(t[:1])
    covariance = GAUSSIAN.covariance + sigma**2 * torch.eye(2).double()
    assert_moments(u * noised, GAUSSIAN.mean, covariance)


def test_a_network_without_weight_is_left_out() -> None:
    network = Recorder(lambda x: x.sum(1))
    critic, score = DiscriminatorField(network), ScoreField(EDMDenoiser(Recorder()), KarrasLaw())
    x, t = randn(3, 2), torch.zeros(3).double()
    for flow, names in [
        (DiffFlow.vp(), ["score"]),
        (DiffFlow.vp(ode=True), ["score"]),
        (DiffFlow.diffode_gan(VESchedule()), ["discriminator"]),
        (DiffFlow.ve().diffusion_gan(1.5), ["discriminator", "score"]),
    ]:
        drift = flow.field(score, critic)
        network.calls.clear()
        drift(x, At(t))
        assert len(network.calls) == ("discriminator" in names)
        assert sorted(loss.name for loss in drift.losses()) == names


# --- carried ---


def test_noise_as_a_field_is_a_step_of_the_sde() -> None:
    flow, eta, n = DiffFlow.vp().at(1.5, -0.5), 0.04, 40_000
    score, t = ExactScoreField(GAUSSIAN), tensor([0.6]).expand(n)
    ratio = LinearField(tensor([[0.2, 0.1], [0.1, -0.3]]), tensor([0.1, 0.4]))
    drift = flow.field(score, ratio)
    step = drift + flow.noise_field(eta)
    x = tensor([[0.3, -1.0]]).expand(n, 2)
    moved = x + eta * step.bind(Context(generator=seeded()))(x, At(t))
    variance = eta * (flow.coefficients(t).g2 - flow.coefficients(t).lambda2)[0]
    assert_moments(moved, (x + eta * drift(x, At(t)))[0], variance * torch.eye(2).double())


@pytest.mark.parametrize(("g2", "lambda2"), [(2.0, 1.0), (1.2, 1.0), (2.0, 2.0), (3.0, 1.4)])
def test_every_g_carries_a_mixture_home(g2: float, lambda2: float) -> None:
    """From the exact law, with exact fields (d constant), particles end as data, whatever g and λ."""
    flow = DiffFlow.reverse(VPSchedule(epsilon=0.002), g2=g2, lambda2=lambda2)
    nowhere = LinearField(torch.zeros(2, 2).double(), torch.zeros(2).double())
    model = ParticleModel(
        flow.field(ExactScoreField(MIXTURE), nowhere),
        flow.prior((2,)),
        steps=250,
        schedule=flow.schedule,
        grid=KarrasGrid(flow.schedule, flow.schedule.sigma_end, 7.0),
        diffusion=flow.diffusion,
    )
    data = MIXTURE.sample(2000, generator=seeded(4), dtype=torch.float64)
    start = flow.schedule.noised(data, torch.zeros(2000).double(), generator=seeded(5))
    end = model.sample(2000, generator=seeded(6), start=start)
    assert_moments(end, MIXTURE.mean, MIXTURE.covariance)


# --- what cannot be ---


class Short(VESchedule):
    """A path that was defined up to t = 1 and claims more."""

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - t).sqrt()


class Touching(EDMSchedule):
    """Σ reaches 0 on the way."""

    def sigma(self, t: Tensor) -> Tensor:
        return (self.sigma_max / 2 - t).clamp(min=0)


SCORE, CRITIC = ExactScoreField(GAUSSIAN), DiscriminatorField(Quadratic(2))
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "negative β": (lambda: DiffFlow(VESchedule(), beta=-1.0), "β must be >= 0"),
    "β that turns negative": (lambda: DiffFlow(VESchedule(), beta=lambda t: 0.5 - t), "β must"),
    "negative g²": (lambda: DiffFlow(VESchedule(), g2=-0.1, lambda2=-1.0), "g² must be >= 0"),
    "g² < λ²": (lambda: DiffFlow.vp().with_g2(0.9), "needs g² >= λ²"),
    "λ² > g²": (lambda: DiffFlow.vp().with_lambda2(2.1), "needs g² >= λ²"),
    "g² < λ² at the end": (
        lambda: DiffFlow(VESchedule(), g2=1.0, lambda2=lambda t: 1.01 * t), "t = 0.99"),
    "not finite": (lambda: DiffFlow(VESchedule(), beta=lambda t: 1 / t), "must be finite"),
    "f not finite": (lambda: DiffFlow(VESchedule(), f=lambda t: t.log()), "must be finite"),
    "too short a path": (lambda: DiffFlow(Short(horizon=1.5)), r"does not cover \[0, 1.5\]"),
    "σ = 0 on the way": (lambda: DiffFlow(Touching(), g2=2.0).field(SCORE), "σ = 0 inside"),
    "σ = 0": (lambda: DiffFlow.langevin(0.0).field(SCORE), "score is asked at σ = 0"),
    "σ = 0, first form": (
        lambda: DiffFlow.gan("logit", sigma=0.0).first_form(SCORE, SCORE), "σ = 0"),
    "no score": (lambda: DiffFlow.vp().field(None, CRITIC), "pass a data score"),
    "no critic": (lambda: DiffFlow.vp().with_g2(1.5).field(SCORE), "pass a discriminator"),
    "no critic for the velocity": (lambda: DiffFlow.vp().velocity(SCORE), "pass a discriminator"),
    "nothing": (lambda: DiffFlow(VESchedule(), beta=0.0).field(SCORE, CRITIC), "nothing moves"),
    "a Langevin GAN": (lambda: DiffFlow.gan("saturating").with_g2(1.0), "g² = λ² = 0"),
    "a GAN's β without d": (lambda: DiffFlow.gan().field(None, SCORE), "pass the discriminator"),
    "a GAN's first form": (lambda: DiffFlow.gan().first_form(SCORE, SCORE), "depends on the disc"),
    "another path": (
        lambda: DiffFlow.ve().with_g2(1.0).field(
            SCORE, DiscriminatorField(Quadratic(2), schedule=VPSchedule())
        ), "same schedule"),
    "an end of the Diffusion-GANs": (lambda: DiffFlow.ve().diffusion_gan(2.0), "0 < g2 < 2"),
    "SLCD below": (lambda: DiffFlow.ve().slcd(0.5, g2=1.5), "SLCD needs"),
    "SLCD continued": (lambda: DiffFlow.ve().slcd(-0.5), "SLCD needs"),
    "a continuation that is none": (lambda: DiffFlow.ve().continuation(0.5), "lambda2 < 0"),
    "a matched Langevin": (lambda: DiffFlow.reverse(VESchedule(), lambda2=0.0), "lambda2 > 0"),
    "VP rates": (lambda: VPSchedule(0.0, 1.0), "beta_min"),
    "VP rates reversed": (lambda: SubVPSchedule(2.0, 1.0), "beta_min"),
    "VP end": (lambda: VPSchedule(epsilon=1.0), "epsilon"),
    "constant level": (lambda: ConstantSchedule(-0.1), "level of ConstantSchedule must be"),
    "constant horizon": (lambda: ConstantSchedule(0.1, 0.0), "horizon of ConstantSchedule must be"),
    "geometric to 0": (lambda: GeometricGrid(EDMSchedule(), 0.0), "sigma_min of GeometricGrid must be"),
    "geometric below the end": (lambda: GeometricGrid(VESchedule(), 0.001), "must lie between"),
    "geometric on a constant": (lambda: GeometricGrid(ConstantSchedule(0.1)), "must lie between"),
    "no steps": (lambda: GeometricGrid(VESchedule()).nodes(0), "at least 1 step"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_coefficients_are_refused(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_end_of_the_path_may_be_clean() -> None:
    """Solvers ask no score at T, so σ(T) = 0 is no fault; a GAN needs no σ at all."""
    x, t = randn(3, 2), torch.full((3,), 0.5).double()
    assert DiffFlow.karras().field(SCORE)(x, At(40 * t)).isfinite().all()
    assert DiffFlow.gan(sigma=0.0).field(log_ratio=CRITIC)(x, At(t)).isfinite().all()
