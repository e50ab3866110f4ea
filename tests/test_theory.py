"""DiffFlow's theorems on Gaussians, where every law is a mean and a covariance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import GAUSSIAN, OTHER, LinearField, assert_mean, randn, seeded, tensor
from partikel.diffflow import PRESETS, DiffFlow
from partikel.errors import ConfigError, NumericsError
from partikel.fields import At, ExactScoreField
from partikel.schedules import ConstantSchedule, SubVPSchedule, VESchedule, VPSchedule
from partikel.studies.gaussian_laws import (
    convergence,
    gaussian_fisher,
    gaussian_marginals,
    log_sobolev_constant,
    path_marginals,
    stationary_law,
)
from partikel.targets import Gaussian, gaussian_kl

IDENTITY = torch.eye(2, dtype=torch.float64)
SHORT = VESchedule(3.0, 0.2)
BASES: dict[str, DiffFlow] = {
    "langevin": DiffFlow.langevin(0.3, 0.8),
    "continued": DiffFlow.langevin(0.3, 0.8).with_lambda2(-0.7),
    "f": DiffFlow(ConstantSchedule(0.2), -0.5, 1.3, 2.0, 0.9),
    "functions": DiffFlow(SHORT, torch.sin, torch.exp, lambda t: 2 * t.exp(), lambda t: t - 0.5),
    "annealed": DiffFlow.annealed_langevin(SHORT, 2.0),
    "ve, λ² = 1.4β": DiffFlow.reverse(SHORT).with_lambda2(1.4),
    "vp, λ² = 0.5β": DiffFlow.vp(0.3, 6.0).with_lambda2(0.5),
    "sub-vp": DiffFlow.sub_vp(0.3, 6.0),
}


@pytest.mark.parametrize("flow", BASES.values(), ids=BASES)
def test_laws_do_not_depend_on_g(flow: DiffFlow) -> None:
    """The Marginal Preserving Property (Proposition 2), drift and noise each with its own g²."""
    times = flow.schedule.horizon * tensor([0.2, 0.6, 1.0])
    reference = gaussian_marginals(flow, GAUSSIAN, OTHER, times)
    for ratio in (1.5, 3.7, lambda t: 2.5 + torch.cos(5 * t)):
        moved = gaussian_marginals(flow.with_g2(ratio), GAUSSIAN, OTHER, times)
        for found, expected in zip(moved, reference, strict=True):
            assert_close(found, expected, rtol=3e-12, atol=3e-12)


@pytest.mark.parametrize("flow", BASES.values(), ids=BASES)
def test_moments_move_as_the_composed_field_moves_points(flow: DiffFlow) -> None:
    """dm/dt = v(m), dS/dt = J S + S Jᵀ + noise² I for the drift of flow.field and flow.noise."""
    step, middle = 1e-4, 0.45 * flow.schedule.horizon
    times = tensor([middle - step, middle, middle + step])
    means, covariances = gaussian_marginals(flow.with_g2(1.6), GAUSSIAN, OTHER, times)
    m, S, t = means[1], covariances[1], times[1:2]
    sigma, u = flow.schedule.sigma(t), flow.schedule.u(t)
    # ∇d = u s_p(uX, σ) - s_ρ(X) is linear
    P = torch.linalg.inv(GAUSSIAN.covariance + sigma**2 * IDENTITY)
    own = torch.linalg.inv(S)
    ratio = LinearField(own - u**2 * P, u * P @ GAUSSIAN.mean - own @ m)
    drift = flow.with_g2(1.6).field(ExactScoreField(GAUSSIAN), ratio)
    assert_close((means[2] - means[0]) / (2 * step), drift(m[None], At(t))[0], rtol=1e-5, atol=1e-7)
    jacobian = torch.autograd.functional.jacobian(lambda x: drift(x[None], At(t))[0], m)
    assert isinstance(jacobian, Tensor)
    noise = flow.with_g2(1.6).noise(t) ** 2 * IDENTITY
    expected = jacobian @ S + S @ jacobian.T + noise
    assert_close((covariances[2] - covariances[0]) / (2 * step), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ratio", [-1.0, 0.0, 0.6, 1.9])
def test_laws_at_a_fixed_level_are_known(ratio: float) -> None:
    """m = μ + E (m_0 - μ) and S = S_∞ + E (S_0 - S_∞) E with E = exp(-βPt), S_∞ = (1 - λ²/2β) P⁻¹."""
    beta, sigma, t = 0.8, 0.5, 1.3
    flow = DiffFlow.langevin(sigma, beta, horizon=t).with_lambda2(ratio)
    means, covariances = gaussian_marginals(flow, GAUSSIAN, OTHER, [t])
    smoothed = GAUSSIAN.covariance + sigma**2 * IDENTITY
    decay = torch.linalg.matrix_exp(-beta * t * torch.linalg.inv(smoothed))
    settled = stationary_law(flow, GAUSSIAN)
    assert_close(settled.covariance, (1 - ratio / 2) * smoothed)
    expected = GAUSSIAN.mean + decay @ (OTHER.mean - GAUSSIAN.mean)
    assert_close(means[0], expected, rtol=1e-11, atol=1e-12)
    spread = settled.covariance + decay @ (OTHER.covariance - settled.covariance) @ decay
    assert_close(covariances[0], spread, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("g2", [1.9, 2.0, 3.0])
@pytest.mark.parametrize("lambda2", [-2.0, 0.0, 1.0, 1.8])
def test_lambda_sharpens_or_flattens_where_laws_settle(lambda2: float, g2: float) -> None:
    flow = DiffFlow.langevin(0.4, 1.0, horizon=60.0).at(g2, lambda2)
    means, covariances = gaussian_marginals(flow, GAUSSIAN, OTHER, [60.0])
    settled = stationary_law(flow, GAUSSIAN)
    assert_close(means[0], settled.mean, rtol=1e-10, atol=1e-10)
    assert_close(covariances[0], settled.covariance, rtol=1e-10, atol=1e-10)
    # ρ ∝ p_σ^{β/(β - ½λ²)}
    x, sigma = randn(6, 2), tensor(0.4).expand(6)
    power = 1 / (1 - lambda2 / 2)
    assert_close(settled.score(x), power * GAUSSIAN.score(x, sigma), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "flow",
    [
        *(PRESETS[name]() for name in ("ve", "karras", "vp", "sub-vp", "vp-ode", "diffusion-gan")),
        DiffFlow.reverse(VPSchedule(), g2=0.5, lambda2=0.5),
        DiffFlow.reverse(SubVPSchedule(0.2, 9.0, 0.0), g2=3.0, lambda2=1.7),
        DiffFlow.reverse(SHORT, g2=4.0, lambda2=3.0),
    ],
    ids=lambda flow: type(flow.schedule).__name__,
)
def test_matched_flows_run_along_the_path(flow: DiffFlow) -> None:
    """With λ² = g_s² and the exact start, ρ_t is the law of (x + σε)/u, whatever β and g."""
    assert flow.matched
    times = flow.schedule.horizon * tensor([0.0, 0.3, 0.7, 1.0])
    means, covariances = path_marginals(flow.schedule, GAUSSIAN, times)
    start = Gaussian(means[0], covariances[0])
    found = gaussian_marginals(flow, GAUSSIAN, start, times)
    assert_close(found[0], means, rtol=1e-10, atol=1e-11)
    assert_close(found[1], covariances, rtol=1e-10, atol=1e-11)


def test_only_matched_flows_do_and_only_from_the_exact_start() -> None:
    def end(flow: DiffFlow, start: Gaussian) -> Tensor:
        return gaussian_marginals(flow, GAUSSIAN, start, [flow.schedule.horizon])[1][0]

    data = path_marginals(SHORT, GAUSSIAN, [0.0, 1.0])[1]
    exact = Gaussian(GAUSSIAN.mean, data[0])
    base = DiffFlow.reverse(SHORT)
    for moved in (base.with_lambda2(0.5), base.with_lambda2(1.5), base.continuation(-1.0)):
        assert not moved.matched
        assert (end(moved, exact) - data[1]).abs().max() > 0.02
    prior = Gaussian([0.0, 0.0], std=3.0)
    sde, ode = end(base, prior), end(DiffFlow.reverse(SHORT, lambda2=2.0), prior)
    assert (sde - ode).abs().max() > 0.02
    assert (sde - data[1]).abs().max() < (ode - data[1]).abs().max()  # noise forgets the start


def test_the_paths_laws_are_those_of_noised_data() -> None:
    times = tensor([0.1, 0.8])
    flow = DiffFlow.vp()
    means, covariances = path_marginals(flow.schedule, GAUSSIAN, times)
    x = GAUSSIAN.sample(50_000, generator=seeded(), dtype=torch.float64)
    for i in range(2):
        noised = flow.schedule.noised(x, times[i].expand(50_000), generator=seeded(1))
        assert_mean(noised, means[i])
        centred = noised - means[i]
        assert_mean(centred[:, :, None] * centred[:, None, :], covariances[i])


# --- Lemma 1 and Theorem 2 ---


def test_fisher_divergence() -> None:
    x = OTHER.sample(100_000, generator=seeded(), dtype=torch.float64)
    gap = (OTHER.score(x) - GAUSSIAN.score(x)).square().sum(1)
    laws = OTHER.mean, OTHER.covariance, GAUSSIAN.mean, GAUSSIAN.covariance
    assert_mean(gap, float(gaussian_fisher(*laws)))
    same = gaussian_fisher(*(law[None] for law in (*laws[2:], *laws[2:])))
    assert_close(same, tensor([0.0]), atol=1e-14, rtol=0)


@pytest.mark.parametrize("g2", [0.0, 1.0, 2.0, 3.0])
def test_kl_falls_at_lemma_1s_rate_and_below_theorem_2s_bound(g2: float) -> None:
    flow = DiffFlow.langevin(0.3, 0.7, horizon=3.0).with_g2(g2)
    times = torch.linspace(0, 3, 31, dtype=torch.float64)
    run = convergence(flow, GAUSSIAN, OTHER, times)
    assert (run.kl.diff() < 0).all()
    assert (run.kl <= run.bound * (1 + 1e-12)).all()
    assert run.kl[-1] < 0.5 * run.bound[-1]  # loose for this start
    assert_close(run.kl[0], run.bound[0])
    constant = log_sobolev_constant(GAUSSIAN, 0.3)
    assert_close(run.rate, 2 * 0.7 * constant)
    assert (run.kl <= run.fisher / (2 * constant) * (1 + 1e-12)).all()  # the inequality itself
    # dKL/dt = -β I, by central differences of order 4
    step = 0.02
    for t in (0.1, 0.7, 2.5):
        near = [t - 2 * step, t - step, t, t + step, t + 2 * step]
        there = convergence(flow, GAUSSIAN, OTHER, near)
        kl = there.kl
        slope = (kl[0] - 8 * kl[1] + 8 * kl[3] - kl[4]) / (12 * step)
        assert_close(slope, there.slope[2], rtol=1e-5, atol=0)
        assert_close(there.slope[2], -0.7 * there.fisher[2])


def test_the_bound_is_met_along_the_slowest_axis_only() -> None:
    """Framework §7: equality from the target's covariance and an offset along its top eigenvector."""
    sigma, flow = 0.3, DiffFlow.langevin(0.3, 0.7, horizon=3.0)
    smoothed = GAUSSIAN.covariance + sigma**2 * IDENTITY
    axes = torch.linalg.eigh(GAUSSIAN.covariance).eigenvectors
    times = torch.linspace(0, 3, 7, dtype=torch.float64)
    for axis, met in ((axes[:, 1], True), (axes[:, 0], False)):
        run = convergence(flow, GAUSSIAN, Gaussian(GAUSSIAN.mean + 2 * axis, smoothed), times)
        if met:
            assert_close(run.kl, run.bound, rtol=1e-9, atol=1e-12)
        else:
            assert (run.kl[1:] < 0.8 * run.bound[1:]).all()


def test_the_constant_is_the_best() -> None:
    """No Gaussian has KL > I/(2C), and an offset along the top axis reaches it."""
    constant = log_sobolev_constant(GAUSSIAN)
    target = GAUSSIAN.mean, GAUSSIAN.covariance
    roots = randn(200, 2, 2, seed=3)
    covariances = roots @ roots.mT + 0.05 * IDENTITY
    means = 2 * randn(200, 2, seed=4)
    kl = gaussian_kl(means, covariances, *target)
    ratio = kl / gaussian_fisher(means, covariances, *target)
    assert (ratio <= 1 / (2 * constant)).all()
    top = torch.linalg.eigh(GAUSSIAN.covariance).eigenvectors[:, 1]
    offset = GAUSSIAN.mean + top, GAUSSIAN.covariance
    reached = gaussian_kl(*offset, *target) / gaussian_fisher(*offset, *target)
    assert_close(float(reached), 1 / (2 * constant))


# --- what cannot be ---

LANGEVIN = DiffFlow.langevin(0.3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gaussian_marginals(LANGEVIN, GAUSSIAN, OTHER, [0.5, 1.1]), "schedule covers"),
        (lambda: gaussian_marginals(LANGEVIN, GAUSSIAN, OTHER, [-0.1]), "schedule covers"),
        (lambda: gaussian_marginals(LANGEVIN, GAUSSIAN, OTHER, [0.5, 0.5]), "increasing"),
        (lambda: gaussian_marginals(LANGEVIN, GAUSSIAN, OTHER, []), "increasing"),
        (lambda: path_marginals(VPSchedule(), GAUSSIAN, [1.0]), "schedule covers"),
        (lambda: gaussian_marginals(DiffFlow.gan(), GAUSSIAN, OTHER, [1.0]), "not linear"),
        (lambda: stationary_law(LANGEVIN.with_lambda2(2.0), GAUSSIAN), "λ² < 2β"),
        (lambda: stationary_law(DiffFlow.ve(), GAUSSIAN), "constant"),
        (lambda: convergence(LANGEVIN.with_lambda2(0.5), GAUSSIAN, OTHER, [1.0]), "λ² = 0"),
        (lambda: convergence(DiffFlow.annealed_langevin(SHORT), GAUSSIAN, OTHER, [1.0]), "constant"),
        (lambda: convergence(DiffFlow.gan(), GAUSSIAN, OTHER, [1.0]), "constant"),
    ],
)  # fmt: skip
def test_impossible_questions_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_law_that_collapses_is_reported() -> None:
    flow = DiffFlow.langevin(0.3, 1.0, horizon=20.0).at(4.0, 3.0)
    with pytest.raises(NumericsError, match="degenerates at t = "):
        gaussian_marginals(flow, GAUSSIAN, OTHER, [20.0])
