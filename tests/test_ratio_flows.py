"""Density-ratio flows: h(r) against autodiff of f, against functionals, and over every estimator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.testing import assert_close

from conftest import (
    GAUSSIAN,
    MIXTURE,
    OTHER,
    Quadratic,
    assert_mean,
    assert_moments,
    randn,
    seeded,
    slope,
    tensor,
)
from partikel.data import Batch
from partikel.data.synthetic import gaussians
from partikel.denoising import EDMDenoiser
from partikel.divergences import from_convex, get_divergence, weight
from partikel.errors import ConfigError, DataError, NumericsError
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    ExactScoreField,
    Field,
    LogRatioField,
    Perturbed,
    ScoreField,
    TrainingBatch,
)
from partikel.fields import ratio as ratio_module
from partikel.fields.particles import Particles
from partikel.fields.ratio import (
    DensityRatioField,
    FDivergenceField,
    KernelScoreField,
    kernel_density,
)
from partikel.metrics import energy_distance, mode_statistics
from partikel.models import GeneratorModel, ParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.objectives import DIVERGENCES, FGAN, GradientPenalty
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, KarrasGrid, KarrasLaw
from partikel.solvers import Heun
from partikel.streams import Streams
from partikel.targets import Gaussian, GaussianMixture, Target
from partikel.training import AdamSettings, Phase, fit


def neyman(u: Tensor) -> Tensor:
    """Neyman's χ²: no row of the table; h(r) = 2 r²."""
    return (1 - u).square() / u


LIKE = {**dict.fromkeys(DIVERGENCES), "neyman": neyman}
"""Every row, and one of a user's."""


def field_of(name: str, ratio: Field, **options: object) -> FDivergenceField:
    return FDivergenceField(ratio, LIKE[name] or name, clip=80.0, **options)  # type: ignore[arg-type]


def at(x: Tensor, sigma: Tensor | None = None) -> At:
    return At(torch.ones(len(x), dtype=x.dtype), sigma)


# --- divergences ---


@pytest.mark.parametrize("name", DIVERGENCES)
def test_rows_are_derivatives_of_f(name: str) -> None:
    """All that a row says follows from its f; most f are not self-dual, and would show f_N for f."""
    row = DIVERGENCES[name]
    derived = from_convex(row.f)
    d = torch.linspace(-4, 4, 41, dtype=torch.float64)
    assert_close(derived.h(d.exp()), row.h(d.exp()))
    assert_close(derived.activation(d), row.activation(d))
    assert_close(derived.conjugate(d), row.conjugate(d))


@pytest.mark.parametrize("name", LIKE)
def test_a_weight_is_the_slope_of_its_f_gan(name: str) -> None:
    """h(r) = d/d(log r) f_N*(g_f(log r)), for a user's f too, and where gradients are off."""
    divergence = get_divergence(LIKE[name] or name)
    d = torch.linspace(-4, 4, 41, dtype=torch.float64)
    expected = vmap(grad(divergence.conjugate))(d)
    with torch.no_grad():
        assert_close(weight(divergence, d, 80.0), expected)


def test_a_users_f() -> None:
    r = tensor([0.1, 0.7, 3.0])
    assert_close(from_convex(neyman).h(r), 2 * r**2)
    alpha = from_convex(lambda u: (u**3 - 1) / 6 + 5 * u - 2)  # linear terms change nothing
    assert_close(alpha.h(r), r**-2)


def test_weights_stop_growing_at_the_clip() -> None:
    d = torch.tensor([-200.0, -10.0, 0.0, 10.0, 200.0])
    for name in DIVERGENCES:
        h = weight(DIVERGENCES[name], d)
        assert h.isfinite().all()
        assert h.dtype == d.dtype
        assert_close(h[[0, 4]], h[[1, 3]])
    assert_close(weight(DIVERGENCES["reverse-kl"], d, 2.0)[-1], torch.tensor(2.0).exp())


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda u: -(u - 1).square(), "convex"),
        (lambda u: u.log().sin(), "convex"),
        (lambda u: (u - 1).square() / 2 + (-2 * (u - 1).square()).exp(), "convex"),  # but near 1
        (lambda u: (u - 1).abs() / 2, "no curvature"),
        (lambda u: 3 * u, "no curvature"),
        (lambda u: u.square().sum(), "elementwise"),
        (lambda u: 1.0, "elementwise"),
        ("kll", "did you mean 'kl'"),
    ],
)
def test_what_is_no_divergence(f: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_divergence(f)  # type: ignore[arg-type]


# --- fields against functionals, by quadrature on a line ---

P = Gaussian([0.3], [[0.9]])
RHO = Gaussian([-0.4], [[1.0]])
NODES = torch.linspace(-11, 11, 4401, dtype=torch.float64)
STEP = float(NODES[1] - NODES[0])


def density(law: Target) -> Tensor:
    return law.log_density(NODES[:, None]).exp()


def derivative(values: Tensor) -> Tensor:
    """Central differences of fourth order; the two nodes at each end are lost."""
    a, b, _, c, d = (values[i : len(values) - 4 + i] for i in range(5))
    return (a - 8 * b + 8 * c - d) / (12 * STEP)


def flow(functional: Callable[[Tensor], Tensor], rho: Tensor) -> Tensor:
    """-∇ of the first variation of F[ρ], F a function of the values of ρ at the nodes."""
    values = rho.clone().requires_grad_()
    (first,) = torch.autograd.grad(functional(values), values)
    return -derivative(first / STEP)


def functional_of(name: str) -> Callable[[Tensor], Tensor]:
    f, p = get_divergence(LIKE[name] or name).f, density(P)
    return lambda rho: (f(rho / p) * p).sum() * STEP


def near(values: Tensor) -> Tensor:
    """Those at nodes within 4 of 0, of values at nodes or of their differences."""
    lost = (len(NODES) - len(values)) // 2
    nodes = NODES[lost : len(NODES) - lost]
    return values[nodes.abs() < 4]


@pytest.mark.parametrize("name", LIKE)
def test_the_field_is_minus_the_gradient_of_the_first_variation(name: str) -> None:
    x = NODES[:, None]
    velocity = field_of(name, DensityRatioField(P, RHO))(x, at(x))
    assert_close(
        near(velocity[:, 0]), near(flow(functional_of(name), density(RHO))), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("name", LIKE)
def test_divergences_dissipate(name: str) -> None:
    """d F/dt = -E_ρ ‖V‖², and F after a step of size η is F - η E‖V‖² + O(η²)."""
    field = field_of(name, DensityRatioField(P, RHO))
    x = NODES[NODES.abs() < 10, None].requires_grad_()
    velocity = field(x, at(x))
    (stretch,) = torch.autograd.grad(velocity.sum(), x)
    x, velocity, stretch = x.detach(), velocity.detach(), stretch.detach()[:, 0]
    f, log_rho = get_divergence(LIKE[name] or name).f, RHO.log_density(x)

    def value(eta: Tensor) -> Tensor:
        """F of the particles' law after a step: its density is ρ/(1 + η V') at x + η V."""
        log_moved = log_rho - (1 + eta * stretch).log()
        u = (log_moved - P.log_density(x + eta * velocity)).exp()
        return (log_rho.exp() * f(u) / u).sum() * STEP

    power = (log_rho.exp() * velocity[:, 0].square()).sum() * STEP
    zero = torch.zeros((), dtype=torch.float64)
    assert power > 0.1
    assert_close(grad(value)(zero), -power, rtol=1e-6, atol=0)
    if name in (
        "kl",
        "jensen-shannon",
        "hellinger",
        "non-saturating",
    ):  # others step too far in tails
        etas = tensor([1e-4, 3e-4, 1e-3, 3e-3])
        errors = torch.stack([(value(eta) - value(zero) + eta * power).abs() for eta in etas])
        assert abs(slope(etas, errors) - 2) < 0.1


def test_a_flow_at_its_target_stands_still() -> None:
    x = randn(5, 2)
    for name in LIKE:
        velocity = field_of(name, DensityRatioField(GAUSSIAN, GAUSSIAN))(x, at(x))
        assert_close(velocity, torch.zeros_like(x))


def test_entropy_and_weighted_sums_are_algebra() -> None:
    """F = KL(ρ‖p) + 2 Pearson + τ ∫ρ log ρ, the last with a weight in t."""
    ratio, s_rho = DensityRatioField(P, RHO), ExactScoreField(RHO)
    field = field_of("kl", ratio) + 2 * field_of("pearson", ratio) + (lambda t: -t) * s_rho
    kl, pearson = functional_of("kl"), functional_of("pearson")
    x = NODES[:, None]
    for tau in (0.0, 0.7):

        def total(rho: Tensor, tau: float = tau) -> Tensor:
            return kl(rho) + 2 * pearson(rho) + tau * (rho * rho.log()).sum() * STEP

        velocity = field(x, At(tau * at(x).t))
        expected = flow(total, density(RHO))
        assert_close(near(velocity[:, 0]), near(expected), rtol=1e-6, atol=1e-7)


def test_entropy_flattens_the_target() -> None:
    """KL + τ entropy stands still at ρ ∝ p^(1/(1+τ)), for a Gaussian with covariance (1+τ) C."""
    tau, x = 0.6, randn(5, 2)
    flat = Gaussian(GAUSSIAN.mean, (1 + tau) * GAUSSIAN.covariance)
    field = DensityRatioField(GAUSSIAN, flat) - tau * ExactScoreField(flat)
    assert_close(field(x, at(x)), torch.zeros_like(x))


def test_densities_are_smoothed_like_scores() -> None:
    x, sigma = randn(5, 2), torch.linspace(0.1, 2, 5, dtype=torch.float64)
    ratio = DensityRatioField(MIXTURE, OTHER)
    expected = MIXTURE.log_density(x, sigma) - OTHER.log_density(x, sigma)
    assert_close(ratio.log_ratio(x, at(x, sigma)), expected)
    difference = ExactScoreField(MIXTURE) - ExactScoreField(OTHER)
    assert_close(ratio(x, at(x, sigma)), difference(x, at(x, sigma)))


# --- estimators: a discriminator ---


@pytest.mark.parametrize("name", LIKE)
def test_a_logistic_discriminator_gives_every_row(name: str) -> None:
    network, x = Quadratic(2), 0.3 * randn(6, 2)
    field = field_of(name, DiscriminatorField(network))
    d, divergence = network(x).detach(), get_divergence(LIKE[name] or name)
    assert_close(field(x, at(x)), divergence.h(d.exp())[:, None] * network.gradient(x))
    if name in DIVERGENCES:  # trained by the f-GAN's own loss, it is the f-GAN
        own = DiscriminatorField(network, FGAN(name))
        assert_close(field(x, at(x)), own(x, at(x)))


def test_the_discriminator_trains_by_its_own_loss() -> None:
    critic = DiscriminatorField(Quadratic(2))
    field = FDivergenceField(critic, "pearson")
    assert field.losses() == critic.losses()
    assert field.freeze().losses() == ()
    velocity = FDivergenceField(DiscriminatorField(Quadratic(2)), "kl")(
        randn(3, 2), at(randn(3, 2))
    )
    assert not velocity.requires_grad


def test_ratios_that_are_none() -> None:
    with pytest.raises(ConfigError, match="relativistic.*no log-ratio"):
        FDivergenceField(DiscriminatorField(Quadratic(2), "relativistic"), "kl")
    with pytest.raises(TypeError, match="takes a DiscriminatorField or a RatioField"):
        FDivergenceField(ExactScoreField(P), "kl")  # type: ignore[arg-type]
    denoiser = ScoreField(EDMDenoiser(nn.Identity()))
    with pytest.raises(ConfigError, match="density and score are known"):
        DensityRatioField(GAUSSIAN, denoiser)
    with pytest.raises(TypeError, match="takes a Target or a Field"):
        DensityRatioField(GAUSSIAN, object())  # type: ignore[arg-type]
    for clip in (0.0, -1.0, 100.0, float("nan")):
        with pytest.raises(ConfigError, match="clip"):
            FDivergenceField(DensityRatioField(P, RHO), "kl", clip=clip)


# --- estimators: a score difference, weighted (DMD, Diff-Instruct, f-distill) ---


def test_a_discriminator_weighs_a_score_difference() -> None:
    """h(r)(s_p - s_ρ): with exact parts it is the flow; h = 1 is the score difference alone."""
    x, sigma = randn(5, 2), torch.linspace(0.3, 2, 5, dtype=torch.float64)
    ratio = DensityRatioField(GAUSSIAN, OTHER)
    difference = ExactScoreField(GAUSSIAN) - ExactScoreField(OTHER)
    assert_close(
        FDivergenceField(ratio, gradient=difference)(x, at(x, sigma)), difference(x, at(x, sigma))
    )
    for name in LIKE:
        weighted = field_of(name, ratio, gradient=difference)
        assert_close(weighted(x, at(x, sigma)), field_of(name, ratio)(x, at(x, sigma)))
    critic, score = DiscriminatorField(Quadratic(2)), ExactScoreField(OTHER)
    h = get_divergence("jensen-shannon").h(critic.network(x).detach().exp())
    mixed = FDivergenceField(critic, "jensen-shannon", gradient=score, clip=80)
    assert_close(mixed(x, at(x)), h[:, None] * score(x, at(x)))


@pytest.mark.parametrize("name", LIKE)
def test_f_distill(name: str) -> None:
    """∇_θ D_f(p_σ ‖ ρ_σ) = -E[f_N''(r) r² (s_p - s_ρ) ∂x/∂θ] in the paper's convention, f_N(r) = r f(1/r)."""
    f, sigma = get_divergence(LIKE[name] or name).f, 0.5
    noise = torch.full_like(NODES, sigma)
    x, log_p = NODES[:, None], P.log_density(NODES[:, None], noise)

    def log_rho(theta: Tensor) -> Tensor:
        variance = 1.0 + sigma**2
        return -0.5 * (
            (NODES - theta).square() / variance + torch.tensor(2 * torch.pi * variance).log()
        )

    def value(theta: Tensor) -> Tensor:
        r = (log_p - log_rho(theta)).exp()
        return (log_rho(theta).exp() * r * f(1 / r)).sum() * STEP

    theta = tensor(-0.4)
    difference = ExactScoreField(P) - ExactScoreField(RHO)
    field = field_of(name, DensityRatioField(P, RHO), gradient=difference)
    inner = NODES.abs() < 8
    velocity = field(x[inner], at(x[inner], noise[inner]))[:, 0]
    expected = -(log_rho(theta).exp()[inner] * velocity).sum() * STEP
    assert_close(grad(value)(theta), expected, rtol=1e-6, atol=1e-9)


def test_all_parts_are_trained_once() -> None:
    law = KarrasLaw(0.1, 2.0)
    s_rho = ScoreField(EDMDenoiser(nn.Identity()), law, of="particles", name="own score")
    critic = DiscriminatorField(Quadratic(2), conditions=("log sigma",))
    h = Perturbed(FDivergenceField(critic, gradient=ExactScoreField(MIXTURE) - s_rho), law)
    assert [loss.name for loss in h.losses()] == ["discriminator", "own score"]


# --- estimators: kernel densities ---


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_a_kernel_density_is_a_mean_of_gaussians(shape: tuple[int, ...], monkeypatch) -> None:
    """In blocks of rows or at once; the gradient is that of its logarithm by autograd."""
    x, y = randn(7, *shape).requires_grad_(), randn(9, *shape, seed=1)
    variance = torch.linspace(0.2, 1.5, 7, dtype=torch.float64)
    means = y.flatten(1)
    logs = [
        GaussianMixture(means, std=float(v) ** 0.5).log_density(row[None].flatten(1))
        for row, v in zip(x, variance, strict=True)
    ]
    expected = torch.cat(logs)
    (score,) = torch.autograd.grad(expected.sum(), x)
    for pairs in (2**22, 20):
        monkeypatch.setattr(ratio_module, "PAIRS", pairs)
        found = kernel_density(x, y, variance)
        assert_close(found[0], expected.detach())
        assert_close(found[1], score)
        assert not found[1].requires_grad


def test_kernel_densities_far_away_are_finite() -> None:
    x = torch.tensor([[1e3, -1e3], [0.0, 0.0]])
    log_density, score = kernel_density(
        x, torch.randn(5, 2, generator=seeded()), 0.01 * torch.ones(2)
    )
    assert log_density.isfinite().all()
    assert score.isfinite().all()


def kernel_ratio(bandwidth: float = 0.5) -> DensityRatioField:
    return DensityRatioField(KernelScoreField(bandwidth, "data"), KernelScoreField(bandwidth))


def test_a_kernel_ratio_compares_data_and_particles() -> None:
    x, p, rho = randn(4, 2), randn(6, 2, seed=1), randn(5, 2, seed=2)
    sigma = torch.full((4,), 0.3, dtype=torch.float64)
    bound = kernel_ratio().bind(Context(real=p, particles=rho))
    assert not bound.needs
    variance = 0.25 + sigma**2
    a, b = kernel_density(x, p, variance), kernel_density(x, rho, variance)
    assert isinstance(bound, DensityRatioField)
    assert_close(bound.log_ratio(x, at(x, sigma)), a[0] - b[0])
    assert_close(bound(x, at(x, sigma)), a[1] - b[1])
    swapped = kernel_ratio().bind(Context(real=rho, particles=p))
    assert_close(swapped(x, at(x, sigma)), -bound(x, at(x, sigma)))
    half = DensityRatioField(OTHER, KernelScoreField(0.5)).bind(Context(particles=rho))
    assert_close(half(x, at(x)), OTHER.score(x) - kernel_density(x, rho, 0.25 * at(x).t)[1])


def test_without_a_cloud_the_points_are_the_cloud() -> None:
    x, real = randn(6, 2), randn(5, 2, seed=1)
    field = FDivergenceField(kernel_ratio(), "pearson")
    assert field.needs == {"real", "particles"}
    carried = field.bind(Context(real=real))
    assert carried.needs == {"particles"}
    bound = field.bind(Context(real=real, particles=x))
    assert_close(carried(x, at(x)), bound(x, at(x)))
    assert_close(bound(x[:2], at(x[:2])), bound(x, at(x))[:2])


def test_kernel_flows_stand_still_at_the_target() -> None:
    """Clouds of one law: the field is 0 on average, at any fixed point, in every row of odd symmetry."""
    x, generator = randn(3, 2), seeded()
    draws = []
    for _ in range(300):
        both = MIXTURE.sample(100, generator=generator, dtype=torch.float64)
        draws.append(kernel_ratio().bind(Context(real=both[:50], particles=both[50:]))(x, at(x)))
    assert_mean(torch.stack(draws), 0.0)


def test_a_kernel_density_needs_a_cloud_and_a_bandwidth() -> None:
    x, t = randn(3, 2), torch.ones(3, dtype=torch.float64)
    for bandwidth in (0, -1.0, float("inf"), float("nan"), "median"):
        with pytest.raises((ConfigError, TypeError), match="KernelScoreField.bandwidth="):
            KernelScoreField(bandwidth)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="takes 'data' or 'particles'"):
        KernelScoreField(1.0, "real")  # type: ignore[arg-type]
    field = kernel_ratio()
    with pytest.raises(
        ConfigError, match="a KernelScoreField compares particles with real samples"
    ):
        field(x, At(t))
    for empty in (None, x[:0]):
        with pytest.raises(ConfigError, match="compares particles with real samples: pass some"):
            field.bind(Context(real=empty))
    with pytest.raises(DataError, match="finite"):
        field.bind(Context(real=x / 0))
    with pytest.raises(NumericsError, match="finite"):
        field.bind(Context(real=x, particles=x / 0))
    with pytest.raises(NumericsError, match="finite"):
        field.bind(Context(real=x))(x / 0, At(t))
    with pytest.raises(ConfigError, match="at least two particles"):
        field.bind(Context(real=x, particles=x[:1]))
    with pytest.raises(ConfigError, match="at least two particles"):
        field.bind(Context(real=x))(x[:1], At(t[:1]))
    with pytest.raises(ValueError, match="differ"):
        field.bind(Context(real=randn(4, 3)))(x, At(t))


# --- discriminator guidance (Kim et al. 2023) ---


class ExactLogit(nn.Module):
    """Log(p_σ/q_σ), plus an error: what a discriminator of noised data and noised samples learns."""

    def __init__(self, p: Target, q: Target) -> None:
        super().__init__()
        self.laws = p, q
        self.error = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        sigma = (4 * c[:, 0]).exp()
        p, q = self.laws
        exact = p.log_density(x, sigma) - q.log_density(x, sigma)
        return exact + x @ self.error[:2] + self.error[2]


def guided(p: Target, q: Target, w: float = 1.0) -> tuple[Field, LogRatioField]:
    critic = DiscriminatorField(ExactLogit(p, q), conditions=("log sigma",))
    ratio = LogRatioField(critic)
    return ExactScoreField(q) + w * ratio, ratio


def test_a_log_ratio_corrects_a_wrong_score() -> None:
    x, sigma = randn(5, 2), torch.linspace(0.1, 4, 5, dtype=torch.float64)
    field, _ = guided(MIXTURE, OTHER)
    assert_close(field(x, at(x, sigma)), MIXTURE.score(x, sigma))
    half, _ = guided(MIXTURE, OTHER, 0.5)
    mean = (MIXTURE.score(x, sigma) + OTHER.score(x, sigma)) / 2
    assert_close(half(x, at(x, sigma)), mean)


def test_guided_samples_are_those_of_the_data() -> None:
    """The ODE of EDM with a wrong score lands elsewhere; with the guidance, on the data."""
    schedule = EDMSchedule(40.0)
    options = {
        "steps": 24,
        "schedule": schedule,
        "grid": KarrasGrid(schedule, 0.002, 7.0),
        "solver": Heun(),
    }
    prior = GaussianPrior((2,), std=40.0)

    def sample(score: Field, law: GaussianMixture) -> Tensor:
        """From the noised law itself: N(0, 40² I) is a standard error off, for its mean is not 0."""
        model = ParticleModel(schedule.half_rate * score, prior, **options)  # type: ignore[arg-type]
        x = law.sample(4000, generator=seeded(2), dtype=torch.float64)
        x = x + prior.sample(4000, generator=seeded(1), dtype=torch.float64)
        return model.sample(len(x), generator=seeded(), start=x)

    assert_moments(sample(guided(GAUSSIAN, OTHER)[0], GAUSSIAN), GAUSSIAN.mean, GAUSSIAN.covariance)
    assert_moments(sample(ExactScoreField(OTHER), OTHER), OTHER.mean, OTHER.covariance)


def test_guidance_is_learned_from_noised_data_and_noised_samples() -> None:
    """Perturbed, the discriminator's loss is stationary at log(p_σ/q_σ); on clean points it is not."""
    n, law = 20_000, KarrasLaw(0.2, 3.0)
    _, ratio = guided(GAUSSIAN, OTHER)
    network = ratio.critic.network
    assert isinstance(network, ExactLogit)
    real = Batch(GAUSSIAN.sample(n, generator=seeded(), dtype=torch.float64), None)
    samples = OTHER.sample(n, generator=seeded(1), dtype=torch.float64)

    def slopes(field: Field, sigma: Tensor | None = None) -> Tensor:
        """Derivatives of each sample's loss in the three terms of the error."""
        (loss,) = field.losses()

        def losses(error: Tensor) -> Tensor:
            with torch.no_grad():
                network.error.copy_(error)
                particles = Particles(samples, at(samples).t, sigma)
                return loss.compute(TrainingBatch(real, particles, n, Streams(0))).loss

        steps = 1e-4 * torch.eye(3, dtype=torch.float64)
        return torch.stack([(losses(step) - losses(-step)) / 2e-4 for step in steps], 1)

    assert_mean(slopes(Perturbed(ratio, law)), 0.0)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(slopes(ratio, 2 * at(samples).t), 0.0)


# --- both carriers ---


def measured(x: Tensor) -> tuple[int, float]:
    data = gaussians().target
    assert isinstance(data, GaussianMixture)
    real = data.sample(2000, generator=seeded(9), dtype=x.dtype)
    return mode_statistics(x, data.means.to(x.dtype), 0.5).covered, float(energy_distance(x, real))


@pytest.mark.parametrize(
    ("name", "eta", "clip"),
    [
        ("kl", 5.0, 3.0),
        ("reverse-kl", 10.0, 3.0),
        ("jensen-shannon", 10.0, 3.0),
        ("non-saturating", 10.0, 3.0),
        ("pearson", 5.0, 1.0),
        ("hellinger", 10.0, 3.0),
        ("jeffreys", 4.0, 1.0),
        ("neyman", 2.0, 1.0),
    ],
)
def test_particles_follow_every_divergence(name: str, eta: float, clip: float) -> None:
    """Five Gaussians from samples alone, by kernel densities."""
    data = gaussians().target
    assert data is not None
    field = FDivergenceField(kernel_ratio(0.4), LIKE[name] or name, clip=clip)
    model = ParticleModel(field, GaussianPrior((2,), std=2.0), steps=60, eta=eta)
    real = data.sample(400, generator=seeded(), dtype=torch.float32)
    covered, energy = measured(model.sample(400, generator=seeded(1), real=real))
    assert covered == 5
    assert energy < 0.05


@pytest.mark.parametrize(
    "name",
    ["reverse-kl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("kl", "jensen-shannon"))],
)
def test_a_generator_follows_them_too(name: str) -> None:
    """The same field object's class, summed over bandwidths so that no mode is out of reach."""
    field: Field = 4.0 * FDivergenceField(kernel_ratio(2.0), name, clip=3)
    for bandwidth in (1.0, 0.5):
        field = field + bandwidth**2 * FDivergenceField(kernel_ratio(bandwidth), name, clip=3)
    network = build_network(
        NetworkSettings(kind="mlp", width=128, depth=2, activation="relu"),
        "generator",
        shape=(2,),
        latent=8,
        generator=seeded(),
    )
    model = GeneratorModel(field, network, GaussianPrior((8,)))
    phase = Phase("generator", AdamSettings(lr=2e-3, beta1=0.5, decay="linear"), 256)
    fit(model, gaussians(), [phase], iterations=300)
    covered, energy = measured(model.sample(2000, generator=seeded(1)))
    assert covered == 5
    assert energy < 0.05


def small(role: str, scalars: int = 0) -> nn.Module:
    settings = NetworkSettings(kind="mlp", width=64, depth=3, activation="relu")
    return build_network(
        settings,
        role,  # type: ignore[arg-type]
        shape=(2,),
        scalars=scalars,
        latent=8,
        generator=seeded(3),
    )


@pytest.mark.parametrize(
    ("name", "eta"), [pytest.param("jensen-shannon", 15.0, marks=pytest.mark.slow), ("kl", 8.0)]
)
def test_particles_follow_a_learned_ratio(name: str, eta: float) -> None:
    """A Discriminator Flow whose divergence is chosen apart from the discriminator's loss."""
    critic = DiscriminatorField(
        small("logit", 1), conditions=("t",), penalties=(GradientPenalty(0.05),)
    )
    field = FDivergenceField(critic, name, clip=3)
    model = ParticleModel(field, GaussianPrior((2,)), steps=16, eta=eta, times_per_path=8)
    phase = Phase("discriminator", AdamSettings(lr=2e-3, decay="linear"), 512)
    fit(model, gaussians(), [phase], iterations=400)
    covered, energy = measured(model.sample(2000, generator=seeded(1)))
    assert covered == 5
    assert energy < 0.05


@pytest.mark.parametrize("name", [pytest.param("jensen-shannon", marks=pytest.mark.slow), "kl"])
def test_a_generator_distils(name: str) -> None:
    """f-distill from an exact teacher: own score and discriminator learned, both on noised points."""
    law, target = KarrasLaw(0.2, 4.0), gaussians().target
    assert target is not None
    critic = DiscriminatorField(small("logit", 1), conditions=("log sigma",))
    denoiser = EDMDenoiser(small("denoiser", 1), 2.0)
    s_rho = ScoreField(denoiser, law, of="particles", name="own score")
    field = FDivergenceField(critic, name, gradient=ExactScoreField(target) - s_rho)
    model = GeneratorModel(Perturbed(field, law), small("generator"), GaussianPrior((8,)))
    adam = AdamSettings(lr=2e-3, beta1=0.5)
    phases = [
        Phase("discriminator", adam, 256, repeats=2),
        Phase("own score", adam, 256, repeats=3),
        Phase("generator", AdamSettings(lr=2e-3, beta1=0.5, decay="linear"), 256),
    ]
    fit(model, gaussians(), phases, iterations=400)
    covered, energy = measured(model.sample(2000, generator=seeded(1)))
    assert covered == 5
    assert energy < 0.05


def test_particles_sample_from_a_known_density() -> None:
    """No data and no network: an exact score against the particles' kernel density."""
    target = gaussians().target
    assert target is not None
    field = FDivergenceField(DensityRatioField(target, KernelScoreField(0.2)), "kl")
    model = ParticleModel(field, GaussianPrior((2,), std=2.0), steps=100, eta=5.0)
    covered, energy = measured(model.sample(400, generator=seeded(1)))
    assert covered == 5
    assert energy < 0.05
