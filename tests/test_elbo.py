"""The likelihood bound: tight where it should be, loose by its closed form elsewhere (DiffFlow Theorem 3)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from conftest import GAUSSIAN, MIXTURE, assert_mean, randn, seeded, slope, tensor
from partikel.data import Batch
from partikel.denoising import EDMDenoiser, dsm_loss
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError
from partikel.fields import (
    At,
    DiscriminatorField,
    ExactScoreField,
    Field,
    LogRatioField,
    ScoreField,
)
from partikel.fields.base import TrainingBatch
from partikel.likelihood import (
    Elbo,
    GenerativeSDE,
    Inference,
    MaximumLikelihood,
    Ode,
    elbo_loss,
    generative_sde,
    probability_flow,
)
from partikel.models import ParticleModel
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, Schedule, SubVPSchedule, VESchedule, VPSchedule
from partikel.streams import Streams
from partikel.targets import GaussianMixture
from partikel.tensors import expand_like

PATHS: dict[str, Schedule] = {
    "ve": VESchedule(30.0, 0.02),
    "karras": EDMSchedule(30.0),
    "vp": VPSchedule(),
    "sub-vp": SubVPSchedule(),
}


def law(target: GaussianMixture, schedule: Schedule, t: float) -> GaussianMixture:
    """The law of (x + σε)/u."""
    time = tensor(t)
    sigma, u = float(schedule.sigma(time)), float(schedule.u(time))
    noise = sigma**2 * torch.eye(target.dim, dtype=torch.float64)
    return GaussianMixture(
        target.means / u, (target.covariances + noise) / u**2, weights=target.weights
    )


def exact_sde(
    target: GaussianMixture,
    schedule: Schedule,
    g2: float = 2.0,
    lambda2: float = 1.0,
    score: Field | None = None,
    sigma_min: float | None = None,
) -> GenerativeSDE:
    """A point of the plane with exact networks, from the exact law at t = 0."""
    own = ExactScoreField(target)
    return GenerativeSDE.of(
        DiffFlow.reverse(schedule, g2=g2, lambda2=lambda2),
        target.shape,
        score or own,
        0.0 * own,
        prior=law(target, schedule, 0.0),
        sigma_min=sigma_min,
        sigma_data=target.sigma_data,
    )


def gap(
    sde: GenerativeSDE, target: GaussianMixture, n: int = 200, draws: int = 64
) -> tuple[float, float]:
    """Mean of log ρ - ELBO over points of the law, and its standard error."""
    exact = law(target, sde.flow.schedule, sde.end)
    x = exact.sample(n, generator=seeded(1), dtype=torch.float64)
    found = Elbo(draws=draws).log_prob(sde, x, generator=seeded(2))
    error = float(found.standard_error.square().sum().sqrt()) / n
    return float((exact.log_density(x) - found.log_prob).mean()), error


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_the_reverse_sde_has_a_tight_bound(name: str, target: GaussianMixture) -> None:
    loose, error = gap(exact_sde(target, PATHS[name]), target)
    assert error < 0.1
    assert abs(loose) < 3 * error


@pytest.mark.parametrize("trace", ["free", "exact", "rademacher"])
def test_traces_agree(trace: str) -> None:
    sde = exact_sde(MIXTURE, PATHS["vp"])
    x = MIXTURE.sample(100, generator=seeded(1), dtype=torch.float64)
    found = Elbo(draws=64, trace=trace).log_prob(sde, x, generator=seeded(2))  # type: ignore[arg-type]
    exact = law(MIXTURE, PATHS["vp"], sde.end).log_density(x)
    error = float(found.standard_error.square().sum().sqrt()) / 100
    assert abs(float((found.log_prob - exact).mean())) < 3 * error


def closed_gap(sde: GenerativeSDE, x: Tensor, target: GaussianMixture) -> Tensor:
    """½∫ ((½g² - λ²)/ς)² E‖u s_p(uY)‖² ds for exact networks and a Gaussian target: (B,)."""
    q = torch.linspace(0, 1, 2001, dtype=torch.float64)
    t, speed, scale, std = sde.inference.at(q)
    c, schedule = sde.flow.coefficients(t), sde.flow.schedule
    sigma, u = schedule.sigma(t), schedule.u(t)
    eye = torch.eye(2, dtype=torch.float64)
    precision = torch.linalg.inv(target.covariance + sigma[:, None, None] ** 2 * eye)
    offset = target.mean - (u * scale)[:, None, None] * x  # (Q, B, D)
    mean = (precision[:, None] @ offset[..., None])[..., 0].square().sum(-1)
    spread = (u * std) ** 2 * precision.square().sum((-2, -1))
    rate = u**2 * (mean + spread[:, None]).T
    weight = (0.5 * c.g2 - c.lambda2) ** 2 / (2 * (c.g2 - c.lambda2))
    return torch.trapezoid(rate * weight * speed, q)


@pytest.mark.parametrize("g2", [1.5, 3.0])
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_elsewhere_it_is_loose_by_the_closed_form(name: str, g2: float) -> None:
    sde = exact_sde(GAUSSIAN, PATHS[name], g2=g2)
    exact = law(GAUSSIAN, PATHS[name], sde.end)
    x = exact.sample(200, generator=seeded(1), dtype=torch.float64)
    found = Elbo(draws=64).log_prob(sde, x, generator=seeded(2))
    expected = closed_gap(sde, x, GAUSSIAN)
    error = float(found.standard_error.square().sum().sqrt()) / 200
    loose = float((exact.log_density(x) - found.log_prob).mean())
    assert loose > 3 * error
    assert abs(loose - float(expected.mean())) < 3 * error


class Wrong(Field):
    """A score that is off by a constant times u(t)⁻¹, in size ``error``."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.exact, self.error = ExactScoreField(GAUSSIAN), error

    def forward(self, x: Tensor, at: At) -> Tensor:
        assert at.sigma is not None
        error = self.error / (1 + expand_like(at.sigma, x))
        return self.exact(x, at) + error * tensor([0.6, -0.8])


def test_a_wrong_score_costs_its_squared_error() -> None:
    """The gap to the *data's* log p is ½∫ (½g²)²/ς² E‖error‖² ds."""
    schedule, size = PATHS["ve"], 0.7
    sde = exact_sde(GAUSSIAN, schedule, score=Wrong(size))
    loose, error = gap(sde, GAUSSIAN, n=400)
    q = torch.linspace(0, 1, 4001, dtype=torch.float64)
    t, speed, _, _ = sde.inference.at(q)
    c = sde.flow.coefficients(t)
    wrong = (size / (1 + schedule.sigma(t))) ** 2
    weight = (0.5 * c.g2) ** 2 / (2 * (c.g2 - c.lambda2))
    expected = float(torch.trapezoid(weight * wrong * speed, q))
    assert expected > 5 * error
    assert abs(loose - expected) < 3 * error


@pytest.mark.parametrize(("g2", "lambda2"), [(1.5, 1.0), (2.0, 1.0), (3.0, 1.0), (2.0, 0.5)])
def test_tight_inference_is_tight_for_every_g(g2: float, lambda2: float) -> None:
    """A chain of N steps is a lower bound whose gap falls as 1/N; the limit is log p."""
    schedule = VPSchedule(beta_max=12.0, epsilon=1e-2)
    sde = exact_sde(GAUSSIAN, schedule, g2=g2, lambda2=lambda2)
    exact = law(GAUSSIAN, schedule, sde.end)
    x = exact.sample(300, generator=seeded(1), dtype=torch.float64)
    means, errors = [], []
    for steps in (200, 400):
        options = {"inference": "tight", "draws": 4, "steps": steps}
        found = Elbo(**options).log_prob(sde, x, generator=seeded(2))  # type: ignore[arg-type]
        means.append(float((found.log_prob - exact.log_density(x)).mean()))
        errors.append(float(found.standard_error.square().sum().sqrt()) / 300)
    coarse, fine = means
    error = math.hypot(2 * errors[1], errors[0])
    assert abs(2 * fine - coarse) < 3 * error
    assert error < 0.05


def test_the_elbo_is_below_the_odes_likelihood_of_the_same_law() -> None:
    """Exact networks at (1.5, 1): one law, both numbers of it."""
    schedule = PATHS["vp"]
    sde = exact_sde(MIXTURE, schedule, g2=1.5)
    flow = DiffFlow.reverse(schedule, g2=2.0, lambda2=2.0)
    model = ParticleModel(
        flow.field(ExactScoreField(MIXTURE)), flow.prior((2,)), steps=9, schedule=schedule
    )
    ode = probability_flow(model, prior=law(MIXTURE, schedule, 0.0))
    x = MIXTURE.sample(200, generator=seeded(1), dtype=torch.float64)
    exact = Ode().log_prob(ode, x, generator=seeded()).log_prob
    found = Elbo(draws=64).log_prob(sde, x, generator=seeded(2))
    assert float(found.log_prob.mean()) < float(exact.mean())


def test_a_known_prior_needs_no_draws() -> None:
    """E log N(Y_T; 0, std²) in closed form, against draws."""
    sde = exact_sde(GAUSSIAN, PATHS["vp"])
    closed = GenerativeSDE.of(sde.flow, (2,), ExactScoreField(GAUSSIAN), 0.0 * sde.field)
    drawn = GenerativeSDE.of(
        sde.flow,
        (2,),
        ExactScoreField(GAUSSIAN),
        0.0 * sde.field,
        prior=GaussianMixture([[0.0, 0.0]], std=closed.prior.std),  # type: ignore[union-attr]
    )
    x = randn(1, 2).expand(4000, 2)
    difference = [
        Elbo(draws=1).log_prob(each, x, generator=seeded(3)).log_prob for each in (closed, drawn)
    ]
    assert_mean(difference[0], float(difference[1].mean()), errors=6)


@pytest.mark.parametrize("name", PATHS)
def test_inference_is_the_forward_process(name: str) -> None:
    """At g² - λ² = g_s², Y | x is the path's own: m = u_end/u, V = (σ² - σ_end²)/u²."""
    schedule = PATHS[name]
    end = float(schedule.time(tensor(0.05)))
    table = Inference(DiffFlow.reverse(schedule), end)
    q = torch.rand(50, generator=seeded(), dtype=torch.float64)
    t, speed, scale, std = table.at(q)
    u, sigma = schedule.u(t), schedule.sigma(t)
    at_end = tensor(end)
    torch.testing.assert_close(scale, schedule.u(at_end) / u, rtol=1e-5, atol=0)
    variance = (sigma**2 - schedule.sigma(at_end) ** 2) / u**2
    torch.testing.assert_close(std**2, variance, rtol=1e-4, atol=1e-9)
    whole = torch.trapezoid(table.speed, table.q)
    torch.testing.assert_close(whole, at_end, rtol=1e-5, atol=0)


def test_error_falls_with_the_draws() -> None:
    sde = exact_sde(GAUSSIAN, PATHS["vp"])
    x = randn(50, 2)
    errors = [
        float(Elbo(draws=draws).log_prob(sde, x, generator=seeded(2)).standard_error.mean())
        for draws in (16, 64, 256)
    ]
    assert slope(tensor([16.0, 64.0, 256.0]), tensor(errors)) == pytest.approx(-0.5, abs=0.15)


@pytest.mark.parametrize("draws", [2, 3])
def test_the_standard_error_is_unbiased(draws: int) -> None:
    """Independent paths: the mean of its square is the variance of the bound, however few they are."""
    sde = exact_sde(GAUSSIAN, PATHS["vp"])
    x = randn(1, 2).expand(6000, 2)
    found = Elbo("tight", draws, steps=6).log_prob(sde, x, generator=seeded(2))
    assert_mean(found.standard_error**2, found.log_prob.var(), errors=6)


# --- training


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2)).double()
        with torch.no_grad():
            for k, weight in enumerate(self.parameters()):
                weight.copy_(0.5 * randn(*weight.shape, seed=k))

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.layers(torch.cat([x, c.expand(len(x), -1)], 1))


class Logit(Net):
    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x, c)[:, 0]


def test_on_the_sde_row_the_loss_is_likelihood_weighted_score_matching() -> None:
    """d/dθ of the ELBO is that of E ∫ ‖D - x‖²/σ³ dσ (Song et al. 2021): weight 1/σ² in log σ."""
    denoiser = EDMDenoiser(Net(), 1.0)
    schedule = VESchedule(10.0, 0.1)
    sde = GenerativeSDE.of(DiffFlow.reverse(schedule), (2,), ScoreField(denoiser))
    x = MIXTURE.sample(20_000, generator=seeded(1), dtype=torch.float64)
    loss = elbo_loss(sde, x, time=seeded(2), noise=seeded(3)).mean()
    ours = torch.autograd.grad(loss, list(denoiser.parameters()))
    # noise is counted from σ_min = 0.1, so that data are compared at √(σ² - σ_min²) of the same time
    q = (torch.arange(20_000) + torch.rand(20_000, generator=seeded(4)).double()) / 20_000
    t, speed, _, std = sde.inference.at(q)
    sigma = schedule.sigma(t)
    y = x + std[:, None] * randn(20_000, 2, seed=5)
    s = sde.score
    assert s is not None
    target = -(y - x) / std[:, None] ** 2
    weight = speed * sde.flow.coefficients(t).lambda2 / 2
    plain = (
        weight * ((s(y, At(t, sigma)) - target).square().sum(1) - target.square().sum(1))
    ).mean()
    theirs = torch.autograd.grad(plain / 2, list(denoiser.parameters()))
    a, b = (torch.cat([g.flatten() for g in each]) for each in (ours, theirs))
    assert float((a - b).norm() / b.norm()) < 0.1


def test_likelihood_weighting_is_one_over_sigma_squared() -> None:
    denoiser = EDMDenoiser(Net(), 1.0)
    x, noise, sigma = randn(6, 2), randn(6, 2, seed=1), 0.1 + randn(6, seed=2).abs()
    plain = dsm_loss(denoiser, x, sigma, noise, weighting="none")
    weighted = dsm_loss(denoiser, x, sigma, noise, weighting="likelihood")
    torch.testing.assert_close(weighted, plain / sigma**2)


def joint() -> tuple[MaximumLikelihood, ScoreField, DiscriminatorField]:
    schedule = VESchedule(10.0, 0.1)
    score = ScoreField(EDMDenoiser(Net(), 1.0))
    critic = DiscriminatorField(Logit(), conditions=("log sigma",))
    flow = DiffFlow.reverse(schedule, g2=1.5)
    log_ratio = LogRatioField(critic, "logit", schedule)
    return MaximumLikelihood(GenerativeSDE.of(flow, (2,), score, log_ratio)), score, critic


def test_the_loss_trains_score_and_discriminator_jointly() -> None:
    """Its gradient is that of finite differences, for the weights of both."""
    field, score, critic = joint()
    x = MIXTURE.sample(64, generator=seeded(1), dtype=torch.float64)
    (loss,) = field.losses()
    assert loss.name == "elbo"
    assert loss.needs == {"real"}

    def value() -> Tensor:
        return loss.compute(TrainingBatch(Batch(x, None), None, 64, Streams(0))).loss.mean()

    for module in (score, critic):
        weight = next(module.parameters())
        (gradient,) = torch.autograd.grad(value(), weight)
        direction = randn(*weight.shape, seed=7)
        with torch.no_grad():
            weight += 1e-5 * direction
            up = value()
            weight -= 2e-5 * direction
            down = value()
            weight += 1e-5 * direction
        slope_ = float((up - down) / 2e-5)
        assert slope_ != 0
        assert float((gradient * direction).sum()) == pytest.approx(slope_, rel=1e-5)


def test_the_loss_is_the_elbo_up_to_a_constant() -> None:
    """Two drifts differ by the same in both."""
    bounds, losses = [], []
    x = GAUSSIAN.sample(4000, generator=seeded(1), dtype=torch.float64)
    for size in (0.0, 2.0):
        sde = exact_sde(GAUSSIAN, PATHS["ve"], score=Wrong(size), sigma_min=0.1)
        bounds.append(Elbo(draws=8).log_prob(sde, x, generator=seeded(2)).log_prob)
        losses.append(
            torch.cat([elbo_loss(sde, x, time=seeded(k), noise=seeded(k)) for k in range(8)])
        )
    drop = bounds[0] - bounds[1]
    rise = 2 * (losses[1] - losses[0])
    assert_mean(rise, float(drop.mean()))


# --- refusals


def test_models_without_noise_have_no_bound() -> None:
    score = ExactScoreField(GAUSSIAN)
    with pytest.raises(ConfigError, match="method ode"):
        GenerativeSDE.of(DiffFlow.ve(ode=True), (2,), score)
    flow = ParticleModel(score, GaussianPrior((2,)), steps=5)
    with pytest.raises(ConfigError, match="method ode"):
        generative_sde(flow)


def test_bad_input_is_refused_in_a_sentence() -> None:
    sde = exact_sde(GAUSSIAN, PATHS["vp"])
    with pytest.raises(ConfigError, match="of shape"):
        Elbo().log_prob(sde, randn(3, 4), generator=seeded())
    with pytest.raises(ConfigError, match="linear"):
        Elbo(inference="liner").log_prob(sde, randn(3, 2), generator=seeded())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        Elbo(draws=0).log_prob(sde, randn(3, 2), generator=seeded())
    with pytest.raises(ConfigError, match="level of the path"):
        exact_sde(GAUSSIAN, PATHS["ve"], sigma_min=1e-4)
