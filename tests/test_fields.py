"""Fields: their algebra, discriminators against closed forms, scores, perturbation, who trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import (
    GAUSSIAN,
    MIXTURE,
    OTHER,
    LinearField,
    Quadratic,
    Recorder,
    assert_mean,
    assert_moments,
    randn,
    seeded,
    tensor,
)
from partikel.data import Batch
from partikel.data.synthetic import moons
from partikel.denoising import EDMDenoiser, dsm_loss
from partikel.errors import ConfigError
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    ExactScoreField,
    FDivergenceField,
    Field,
    Guided,
    LabelDropout,
    LogRatioField,
    LossValue,
    Perturbed,
    ScoreField,
    SteinField,
    TrainingBatch,
    WhiteNoise,
)
from partikel.fields.particles import Particles
from partikel.kernels import RBFKernel
from partikel.models import Carrier, GeneratorModel, ParticleModel
from partikel.models.particle import depends_on_cloud
from partikel.networks import MLP
from partikel.objectives import DIVERGENCES, FGAN, OBJECTIVES, GradientPenalty, is_exact
from partikel.priors import GaussianPrior
from partikel.schedules import KarrasLaw, LogNormalLaw, NoiseLaw, VESchedule
from partikel.streams import Streams
from partikel.targets import Gaussian
from partikel.training import Phase, Trainer

LAW = KarrasLaw(0.2, 3.0)


def times(n: int) -> Tensor:
    return torch.linspace(0, 1, n, dtype=torch.float64)


def batch(n: int, dim: int = 2, *, sigma: bool = False, seed: int = 0) -> TrainingBatch:
    """Real points and particles, each particle at its own time (and noise level)."""
    levels = times(n) + 0.5 if sigma else None
    particles = Particles(randn(n, dim, seed=11), times(n), levels)
    return TrainingBatch(Batch(randn(n, dim, seed=12), None), particles, n, Streams(seed))


def loss_of(field: Field, of: TrainingBatch) -> LossValue:
    (loss,) = field.losses()
    return loss.compute(of)


# --- algebra ---


@pytest.fixture
def a() -> Field:
    return LinearField(randn(2, 2, seed=1), randn(2, seed=2))


@pytest.fixture
def b() -> Field:
    return ExactScoreField(MIXTURE)


@pytest.fixture
def c() -> Field:
    return DiscriminatorField(Quadratic(2))


def test_fields_are_a_vector_space(a: Field, b: Field, c: Field) -> None:
    x, t = randn(5, 2), times(5)
    va, vb, vc = a(x, At(t)), b(x, At(t)), c(x, At(t))
    assert_close((a + b)(x, At(t)), va + vb)
    assert_close((a - b)(x, At(t)), va - vb)
    assert_close((-a)(x, At(t)), -va)
    assert_close((2 * a)(x, At(t)), 2 * va)
    assert_close((a * 2.5)(x, At(t)), 2.5 * va)
    assert_close((2 * (a - 3 * b))(x, At(t)), 2 * va - 6 * vb)
    assert_close(((a + b) + c)(x, At(t)), (a + (b + c))(x, At(t)))
    assert_close((a - (b - c))(x, At(t)), va - vb + vc)
    assert_close((a - a)(x, At(t)), torch.zeros_like(x))


def test_weights_may_depend_on_time(a: Field, b: Field) -> None:
    t = times(5)

    def weight(t: Tensor) -> Tensor:
        return t.cos()

    for x in (randn(5, 2), randn(5, 2, seed=3)):
        wide = weight(t)[:, None]
        assert_close((weight * a)(x, At(t)), wide * a(x, At(t)))
        assert_close((a * weight - b)(x, At(t)), wide * a(x, At(t)) - b(x, At(t)))
        assert_close((weight * (2 * a + b))(x, At(t)), wide * (2 * a(x, At(t)) + b(x, At(t))))


def test_a_weight_is_spread_over_images() -> None:
    x, t = randn(4, 3, 2, 2), times(4)
    field = DiscriminatorField(Quadratic(12))
    assert_close((torch.exp * field)(x, At(t)), t.exp().view(4, 1, 1, 1) * field(x, At(t)))


def test_terms_see_noise_level_and_labels() -> None:
    seen: list[At] = []

    class Listener(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            seen.append(at)
            return x

    x, t, sigma, cond = randn(3, 2), times(3), times(3) + 1, torch.arange(3)
    (2 * (Listener() - torch.cos * Listener()))(x, At(t, sigma, cond))
    assert len(seen) == 2
    assert all(at.t is t and at.sigma is sigma and at.cond is cond for at in seen)


@pytest.mark.parametrize(
    "combine",
    [lambda f: f + 1, lambda f: 1 - f, lambda f: f * "2", lambda f: f * f, lambda f: f * None],
)
def test_only_fields_are_added_and_only_weights_multiply(
    combine: Callable[[Field], Field], a: Field
) -> None:
    with pytest.raises(TypeError):
        combine(a)


def test_the_signature_of_earlier_versions_is_refused_where_a_field_is_defined() -> None:
    with pytest.raises(
        TypeError, match=r"Old\.forward takes \(self, x, at\): read t, sigma and cond"
    ):

        class Old(Field):
            def forward(  # type: ignore[override]
                self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
            ) -> Tensor:
                return x

    class New(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            return at.t * x

    class Heir(New):
        """Which writes no forward of its own."""

    assert_close(Heir()(randn(3, 2), At(tensor(2.0))), 2 * randn(3, 2))


# --- context ---


def test_what_is_needed_and_drawn_is_that_of_all_fields_inside(a: Field) -> None:
    critic = DiscriminatorField(Quadratic(2), "relativistic")
    noisy = WhiteNoise(0.1)
    stein = SteinField(ExactScoreField(MIXTURE), RBFKernel(1.0))
    for field, needs, draws in (
        (a, set(), False),
        (critic, {"real"}, False),
        (stein, {"particles"}, False),
        (noisy, {"generator"}, True),
        (2 * critic, {"real"}, False),
        (torch.cos * (a + 2 * noisy), {"generator"}, True),
        (a - critic + stein, {"real", "particles"}, False),
        (Perturbed(stein, LAW), {"particles", "generator"}, True),
        (Guided(critic - Perturbed(a, LAW), 2.0), {"real", "generator"}, True),
        (LabelDropout(Guided(critic, 2.0), 3), {"real"}, False),
        (SteinField(Perturbed(a, LAW), RBFKernel(1.0)), {"particles", "generator"}, True),
    ):
        assert field.needs == needs
        assert field.draws is draws
        given = {"real": randn(4, 2), "particles": randn(3, 2), "generator": seeded()}
        bound = field
        for name, value in given.items():  # what was bound before stays
            bound = bound.bind(Context(**{name: value}))  # type: ignore[arg-type]
            needs = needs - {name}
            assert bound.needs == needs
            assert bound.draws is draws
        assert type(bound) is type(field)
        assert bound.requires == field.requires
    assert critic.requires == {"real"}
    assert not (2 * critic).requires  # itself it needs nothing


def test_requirements_and_bindings_pass_through_the_algebra(a: Field) -> None:
    critic = DiscriminatorField(Quadratic(2), "relativistic")
    field = a + 2 * critic - WhiteNoise(0.0)
    assert field.needs == {"real", "generator"}
    x, t, real = randn(5, 2), times(5), randn(7, 2, seed=4)
    with pytest.raises(ConfigError):
        field(x, At(t))
    bound = field.bind(Context(real=real, generator=seeded()))
    alone = critic.bind(Context(real=real))
    assert_close(bound(x, At(t)), a(x, At(t)) + 2 * alone(x, At(t)))


def test_what_needs_no_context_is_bound_to_itself(a: Field, b: Field) -> None:
    for field in (a, 2 * a, a - b, DiscriminatorField(Quadratic(2))):
        assert not field.needs
        assert field.bind(Context(real=randn(2, 2), generator=seeded())) is field


def test_missing_context_is_named() -> None:
    with pytest.raises(ConfigError, match="real samples"):
        DiscriminatorField(Quadratic(2), "relativistic").bind(Context())
    for field in (WhiteNoise(1.0), Perturbed(ExactScoreField(GAUSSIAN), LAW)):
        with pytest.raises(ConfigError, match="bind"):
            field(randn(2, 2), At(times(2)))


def test_missing_noise_level_is_named() -> None:
    x, t = randn(2, 2), times(2)
    noise = WhiteNoise(torch.sqrt).bind(Context(generator=seeded()))
    critic = DiscriminatorField(Quadratic(2), conditions=("sigma",))
    for field in (ScoreField(EDMDenoiser(Recorder()), LAW), critic, noise):
        with pytest.raises(ConfigError, match="schedule"):
            field(x, At(t))


# --- discriminators ---


class LogRatio(nn.Module):
    """The optimal logistic discriminator log p(x) - log ρ(x)."""

    def __init__(self, p: Gaussian, rho: Gaussian) -> None:
        super().__init__()
        self.p, self.rho = p, rho

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        return self.p.log_density(x) - self.rho.log_density(x)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("trick", [False, True])
def test_an_optimal_f_gan_is_the_gradient_flow(name: str, trick: bool) -> None:
    """Framework §2: the field is h(r) ∇log r, with the trick h(r)/r ∇log r."""
    x = randn(16, 2)
    r = (GAUSSIAN.log_density(x) - OTHER.log_density(x)).exp()
    weight = DIVERGENCES[name].h(r) / (r if trick else 1)
    field = DiscriminatorField(LogRatio(GAUSSIAN, OTHER), FGAN(name, trick=trick))
    difference = ExactScoreField(GAUSSIAN) - ExactScoreField(OTHER)
    assert_close(field(x, At(times(16))), weight[:, None] * difference(x, At(times(16))))
    assert_close(field.log_ratio(x, At(times(16))), r.log())


@pytest.mark.parametrize(
    ("objective", "beta"),
    [
        ("non-saturating", lambda d: torch.sigmoid(-d)),
        ("saturating", torch.sigmoid),
        ("logit", torch.ones_like),
        ("lsgan", lambda d: 2 * (1 - d)),
        ("ipm", torch.ones_like),
    ],
)
@pytest.mark.parametrize("shape", [(5, 4), (5, 1, 2, 2)])
def test_the_field_is_the_gradient_of_the_potential(
    objective: str, beta: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    """DiffFlow eqs. 19-27: β(d) ∇d, here with a logit whose gradient is known."""
    critic, x, t = Quadratic(4), randn(*shape), times(5)
    for conditions in ((), ("t",)):
        c = t[:, None] if conditions else None
        weight = beta(critic(x, c).detach()).view(-1, *[1] * (len(shape) - 1))
        field = DiscriminatorField(critic, objective, conditions=conditions)  # type: ignore[arg-type]
        assert_close(field(x, At(t)), weight * critic.gradient(x, c))


def test_conditions_come_in_their_order() -> None:
    x, t, sigma = randn(3, 2), times(3), times(3) + 1
    for conditions, expected in (
        (("t",), [t]),
        (("sigma",), [sigma]),
        (("sigma", "t"), [sigma, t]),
        (("t", "sigma"), [t, sigma]),
    ):
        network = Recorder(lambda x: x.sum(1))
        DiscriminatorField(network, conditions=conditions).logit(x, At(t, sigma))  # type: ignore[arg-type]
        assert_close(network.calls[0][1], torch.stack(expected, 1))


def test_a_time_that_all_particles_share_is_passed_once() -> None:
    network = Recorder(lambda x: x.sum(1))
    field = DiscriminatorField(network, conditions=("t",))
    t = tensor(0.3)
    assert_close(field(randn(4, 2), At(t)), field(randn(4, 2), At(t.repeat(4))))
    assert_close(network.calls[0][1], tensor([[0.3]]))


@pytest.mark.parametrize("conditions", [(), ("t",), ("t", "sigma")])
def test_relativistic_field_against_brute_force(conditions: tuple[str, ...]) -> None:
    """E_{y~p}[sigmoid(d(y) - d(x))] ∇d(x), y under each particle's own conditions."""
    critic = Quadratic(2)
    x, real = randn(6, 2), randn(9, 2, seed=3)
    t, sigma = tensor([0.5, 0.0, 0.5, 1.0, 0.0, 0.5]), tensor([1.0, 2.0, 1.0, 2.0, 2.0, 3.0])
    known = {"t": t, "sigma": sigma}
    c = torch.stack([known[name] for name in conditions], 1) if conditions else None
    expected = torch.empty_like(x)
    for i in range(len(x)):
        own = None if c is None else c[i : i + 1]
        weight = torch.stack(
            [torch.sigmoid(critic(y[None], own) - critic(x[i : i + 1], own)) for y in real]
        ).mean()
        expected[i] = weight.detach() * critic.gradient(x[i : i + 1], own)[0]
    field = DiscriminatorField(critic, "relativistic", conditions=conditions)  # type: ignore[arg-type]
    bound = field.bind(Context(real=real))
    assert_close(bound(x, At(t, sigma)), expected)
    chunks = [bound(x[i : i + 2], At(t[i : i + 2], sigma[i : i + 2])) for i in range(0, 6, 2)]
    assert_close(torch.cat(chunks), expected)
    apart = bound(x, At(t[0].repeat(6), sigma[0].repeat(6)))
    assert_close(bound(x, At(t[0], sigma[0])), apart)
    assert_close(bound(x, At(t[0], sigma[0].repeat(6))), apart)


@pytest.mark.parametrize("objective", ["non-saturating", "lsgan", "relativistic", "f-pearson"])
def test_discriminator_loss(objective: str) -> None:
    """b on data and a on particles, both told the particles' times."""
    critic, some = Quadratic(2), batch(8)
    assert some.real is not None
    assert some.particles is not None
    field = DiscriminatorField(critic, objective, conditions=("t",))
    c = some.particles.t[:, None]
    d_real, d_fake = critic(some.real.x, c), critic(some.particles.x, c)
    value = loss_of(field, some)
    assert_close(value.loss, OBJECTIVES[objective].discriminator_loss(d_real, d_fake))
    assert_close(value.metrics["d_real"], d_real.mean().detach())
    assert_close(value.metrics["d_fake"], d_fake.mean().detach())


def test_batch_norm_sees_real_and_generated_points_apart() -> None:
    some = batch(8)
    assert some.real is not None
    assert some.particles is not None
    network = Recorder()
    network.normalise = nn.BatchNorm1d(2, dtype=torch.float64)
    network.output = lambda x: network.normalise(x).sum(1)  # type: ignore[operator]
    normalised: list[Tensor] = []
    network.normalise.register_forward_hook(lambda module, args, out: normalised.append(out))
    loss_of(DiscriminatorField(network), some)
    calls = normalised
    assert len(calls) == 2
    for x in calls:
        assert_close(x.mean(0), torch.zeros(2).double(), atol=1e-12, rtol=0)


def test_penalties_join_the_loss_and_train_the_network() -> None:
    """R1 of a quadratic logit: γ/2 ‖Qx + b‖², whose gradient in b is γ (Qx + b)."""
    some = batch(8)
    assert some.real is not None
    assert some.particles is not None
    for penalty, x in (
        (GradientPenalty.r1(0.6), some.real.x),
        (GradientPenalty.r2(0.6), some.particles.x),
    ):
        critic = Quadratic(2)
        plain = loss_of(DiscriminatorField(critic), some).loss
        value = loss_of(DiscriminatorField(critic, penalties=(penalty,)), some)
        added = value.loss - plain
        assert_close(added, 0.3 * critic.gradient(x).square().sum(1))
        (in_b,) = torch.autograd.grad(added.sum(), critic.linear)
        assert_close(in_b, 0.6 * critic.gradient(x).sum(0))
        assert_close(value.metrics[f"penalty_{penalty.at}"], added.detach().mean())


def test_several_penalties_add_and_follow_the_particles_time() -> None:
    critic, some = Quadratic(2), batch(8)
    with torch.no_grad():  # ∇d = b + t w: the same at every interpolate
        critic.curvature.zero_()
    assert some.real is not None
    assert some.particles is not None
    t = some.particles.t
    penalties = (GradientPenalty(10.0, 1.0), GradientPenalty(((0.5, 2.0),), at="real"))
    plain = loss_of(DiscriminatorField(critic, conditions=("t",)), some).loss
    field = DiscriminatorField(critic, conditions=("t",), penalties=penalties)
    norm = critic.gradient(some.real.x, t[:, None]).norm(dim=1)
    expected = 10 * (norm - 1) ** 2 + 2 * (t >= 0.5) * norm**2
    assert_close(loss_of(field, some).loss - plain, expected)


def test_labels_reach_the_network_on_both_sides() -> None:
    some = batch(4)
    assert some.real is not None
    assert some.particles is not None
    of_real, of_fake = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 2, 1, 0])
    real, fake = replace(some.real, cond=of_real), replace(some.particles, cond=of_fake)
    network = Recorder(lambda x: x.sum(1))
    penalties = (GradientPenalty.r1(1.0), GradientPenalty.r2(1.0), GradientPenalty(1.0))
    field = DiscriminatorField(network, penalties=penalties)
    loss_of(field, replace(some, real=real, particles=fake))
    expected = [torch.cat([of_real, of_fake]), of_real, of_fake, of_fake]
    assert len(network.calls) == 4
    for (_, _, labels), own in zip(network.calls, expected, strict=True):
        assert_close(labels, own)
    with pytest.raises(ConfigError, match="labels"):
        loss_of(DiscriminatorField(network), replace(some, real=real))


def test_a_relativistic_field_compares_under_the_labels_or_refuses() -> None:
    """It trains on labelled real points; asked without their labels it would be another d."""
    network = Recorder(lambda x: x.sum(1))
    field = DiscriminatorField(network, "relativistic").bind(Context(real=randn(5, 2, seed=3)))
    try:
        field(randn(4, 2), At(times(4), None, torch.tensor([0, 1, 1, 0])))
    except ConfigError:
        return
    assert all(labels is not None for _, _, labels in network.calls)


# --- scores ---


class ExactDenoiser(EDMDenoiser):
    """The posterior mean of an exact law, in a denoiser's place."""

    def __init__(self) -> None:
        super().__init__(Recorder())

    def forward(
        self, x: Tensor, sigma: Tensor, t: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        return MIXTURE.denoiser(x, sigma)


def test_the_score_of_an_exact_denoiser() -> None:
    x, t, sigma = randn(8, 2), times(8), times(8) + 0.2
    expected = MIXTURE.score(x, sigma)
    assert_close(ScoreField(ExactDenoiser())(x, At(t, sigma)), expected)
    assert_close(ExactScoreField(MIXTURE)(x, At(t, sigma)), expected)
    assert_close(ExactScoreField(MIXTURE)(x, At(t)), MIXTURE.score(x))


@pytest.mark.parametrize(
    ("of", "timed"), [("data", False), ("particles", False), ("particles", True)]
)
def test_score_matching_noises_its_own_points(of: str, timed: bool) -> None:
    """Data or particles, these at their own times, with σ and ε from their streams."""
    some = batch(8, seed=3)
    assert some.real is not None
    assert some.particles is not None
    clean = some.real.x if of == "data" else some.particles.x
    network = Recorder()
    denoiser = EDMDenoiser(network, 0.7, timed=timed)
    field = ScoreField(denoiser, LAW, of=of, weighting="none")  # type: ignore[arg-type]
    (loss,) = field.losses()
    assert loss.needs == {"real" if of == "data" else "particles"}
    assert loss.module is denoiser
    value = loss.compute(some)
    c = network.calls[0][1]
    assert c is not None
    sigma = (4 * c[:, 0]).exp()
    if timed:
        assert_close(c[:, 1], some.particles.t)
    assert c.shape == (8, 2 if timed else 1)
    root = (sigma**2 + 0.49).sqrt()[:, None]
    noise = (network.calls[0][0] * root - clean) / sigma[:, None]
    again = dsm_loss(denoiser, clean, sigma, noise, some.particles.t, weighting="none")
    assert_close(value.loss, again)


def test_score_matching_draws_sigma_and_noise_from_their_laws() -> None:
    network = Recorder()
    field = ScoreField(EDMDenoiser(network, 0.7), LogNormalLaw(-0.3, 0.4))
    some = batch(20_000)
    assert some.real is not None
    loss_of(field, some)
    seen, c, _ = network.calls[0]
    assert c is not None
    log_sigma = 4 * c[:, 0]
    sigma = log_sigma.exp()[:, None]
    noise = (seen * (sigma**2 + 0.49).sqrt() - some.real.x) / sigma
    assert_moments(noise, torch.zeros(2).double(), torch.eye(2).double())
    assert_moments(log_sigma[:, None], tensor([-0.3]), tensor([[0.16]]))


# --- randomness ---


class FixedLaw(NoiseLaw):
    """One noise level."""

    def __init__(self, level: float) -> None:
        self.level = level

    def sample(self, n: int, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.full((n,), self.level, dtype=dtype)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_a_perturbed_score_difference_is_the_smoothed_one(power: float) -> None:
    """E_{σ,ε} σ^k (s_p - s_ρ)(x + σε, σ): for Gaussians the scores are linear, so ε drops out."""
    n, x = 40_000, tensor([[1.5, -0.7]])
    difference = ExactScoreField(GAUSSIAN) - ExactScoreField(OTHER)
    field = Perturbed(difference, LAW, power).bind(Context(generator=seeded()))
    draws = field(x.expand(n, 2), At(torch.zeros(n).double()))
    place = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    sigma = (3.0 ** (1 / 3) + place * (0.2 ** (1 / 3) - 3.0 ** (1 / 3))) ** 3
    smooth = GAUSSIAN.score(x.expand(2000, 2), sigma) - OTHER.score(x.expand(2000, 2), sigma)
    assert_mean(draws, (sigma[:, None] ** power * smooth).mean(0))
    again = Perturbed(difference, LAW, power).bind(Context(generator=seeded()))
    assert_close(again(x.expand(n, 2), At(torch.zeros(n).double())), draws)


def test_perturbed_points_and_noise_levels_belong_together() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Listener(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            assert at.sigma is not None
            seen.append((x, at.sigma))
            return torch.ones_like(x)

    n = 20_000
    field = Perturbed(Listener(), LAW, power=2.0).bind(Context(generator=seeded()))
    x = randn(n, 1, 1, 2)
    weight = field(x, At(torch.zeros(n).double()))
    noised, sigma = seen[0]
    assert_close(weight, (sigma**2).view(-1, 1, 1, 1).expand_as(x))
    noise = (noised - x).flatten(1) / sigma[:, None]
    assert_moments(noise, torch.zeros(2).double(), torch.eye(2).double())


def test_perturbed_losses_compare_both_laws_smoothed() -> None:
    """A discriminator sees data and particles at the same σ, with independent noise."""
    n = 20_000
    network = Recorder(lambda x: x.sum(1))
    field = Perturbed(DiscriminatorField(network, conditions=("sigma",)), LAW)
    some = batch(n)
    assert some.real is not None
    assert some.particles is not None
    loss_of(field, some)
    x, c, _ = network.calls[0]
    assert c is not None
    real, fake = c[:, 0].chunk(2)
    assert_close(real, fake)
    clean = torch.cat([some.real.x, some.particles.x])
    noise = torch.cat(((x - clean) / c).chunk(2), 1)
    assert_moments(noise, torch.zeros(4).double(), torch.eye(4).double())


def test_perturbing_leaves_score_matching_on_clean_points() -> None:
    """Score matching adds its own noise: noised twice, it would learn another law."""
    field = ScoreField(EDMDenoiser(Recorder(), 0.7), LAW, of="particles")
    bare, perturbed = loss_of(field, batch(8)), loss_of(Perturbed(field, LAW), batch(8))
    assert_close(perturbed.loss, bare.loss)


def test_a_relativistic_field_cannot_be_perturbed() -> None:
    """At x̃ ~ ρ⋆k_σ it would need samples of p⋆k_σ at each particle's own σ."""
    with pytest.raises(ConfigError, match="cannot be perturbed"):
        Perturbed(DiscriminatorField(Quadratic(2), "relativistic"), FixedLaw(1.5))


def test_white_noise() -> None:
    n = 20_000
    t, sigma = torch.zeros(n).double(), torch.full((n,), 4.0).double()
    x = randn(n, 2, seed=9)
    for field, std in ((WhiteNoise(0.5), 0.5), (WhiteNoise(lambda s: s.rsqrt()), 0.5)):
        draws = field.bind(Context(generator=seeded()))(x, At(t, sigma))
        both = torch.cat([x, draws], 1)  # independent of the points as well
        covariance = torch.eye(4).double()
        covariance[2:, 2:] *= std**2
        assert_moments(both, torch.zeros(4).double(), covariance)
    bound = WhiteNoise(1.0).bind(Context(generator=seeded()))
    assert not torch.equal(bound(x, At(t)), bound(x, At(t)))


# --- what trains ---


def test_who_has_losses_and_what_they_need() -> None:
    critic = DiscriminatorField(Quadratic(2), name="critic")
    own = ScoreField(EDMDenoiser(Recorder()), LAW, of="particles", name="own")
    data = ScoreField(EDMDenoiser(Recorder()), LAW, name="data")
    field = Perturbed(2 * critic - own, LAW) + torch.cos * data + ExactScoreField(GAUSSIAN)
    needs = {loss.name: (loss.needs, loss.module) for loss in field.losses()}
    assert needs == {
        "critic": ({"real", "particles"}, critic.network),
        "own": ({"particles"}, own.denoiser),
        "data": ({"real"}, data.denoiser),
    }
    assert ScoreField(EDMDenoiser(Recorder())).losses() == ()


def test_a_field_that_occurs_twice_trains_once() -> None:
    field = DiscriminatorField(Quadratic(2))
    assert len((field + torch.cos * field).losses()) == 1
    assert len((field - 2 * (field + ExactScoreField(GAUSSIAN))).losses()) == 1


def test_what_is_perturbed_or_loses_labels_trains_once_however_often_it_occurs() -> None:
    """Losses that are made anew in each call are recognised as the same."""
    field = DiscriminatorField(Quadratic(2))
    perturbed, hidden = Perturbed(field, LAW), LabelDropout(field, 3)
    for once in (perturbed, hidden, LabelDropout(perturbed, 3), Guided(perturbed, 2.0)):
        (loss,) = (once + 2.0 * once).losses()
        assert loss == once.losses()[0]
    with pytest.raises(ConfigError, match="one way only"):  # the same network, at other points
        (perturbed + Perturbed(field, KarrasLaw(0.1, 1.0))).losses()


def test_the_loss_of_a_field_is_the_sum_of_the_means_of_its_losses() -> None:
    network = Quadratic(2)
    critic = DiscriminatorField(network, penalties=(GradientPenalty(1.0),))
    own = ScoreField(EDMDenoiser(Recorder()), LAW, of="particles", name="own score")
    field, some = Perturbed(critic - own, LAW), batch(8)
    expected = sum((loss.compute(some).loss.mean() for loss in field.losses()), tensor(0.0))
    assert some.real is not None
    for real in (some.real, some.real.x):
        value = field.loss(real, some.particles, streams=Streams(0))
        assert value.shape == ()
        assert_close(value, expected)
    value.backward()
    (slope,) = torch.autograd.grad(expected, network.linear)
    assert_close(network.linear.grad, slope)
    data = ScoreField(EDMDenoiser(Recorder()), LAW)
    alone = data.loss(some.real.x, streams=Streams(0))
    assert_close(alone, loss_of(data, batch(8)).loss.mean())


def test_a_loss_of_points_that_are_missing_or_of_nothing_is_refused() -> None:
    critic, some = DiscriminatorField(Quadratic(2)), batch(4)
    for real, particles, missing in (
        (None, None, "particles and real points"),
        (None, some.particles, "real points"),
        (some.real, None, "particles"),
    ):
        with pytest.raises(ConfigError, match=f"Sum needs {missing}: pass them"):
            (critic + WhiteNoise(1.0)).loss(real, particles, streams=Streams(0))
    for nothing in (ExactScoreField(MIXTURE), DiscriminatorField(Quadratic(2)).freeze()):
        with pytest.raises(ConfigError, match=f"nothing trains this {type(nothing).__name__}"):
            nothing.loss(some.real, some.particles, streams=Streams(0))


def test_losses_of_one_name_are_refused() -> None:
    twins = DiscriminatorField(Quadratic(2)) + DiscriminatorField(Quadratic(2))
    with pytest.raises(ConfigError, match="discriminator"):
        twins.losses()


def frozen_part(field: Field) -> Field:
    """What a recipe builds on: the score inside the frozen field of a trained diffusion model."""
    (torch.cos * field).freeze()
    return field


@pytest.mark.parametrize(
    "freeze", [Field.freeze, frozen_part], ids=["itself", "inside a frozen field"]
)
@pytest.mark.parametrize("kind", ["score", "critic"])
def test_frozen_fields_stay_as_they_are(freeze: Callable[[Field], Field], kind: str) -> None:
    network = Recorder()
    network.dropout = nn.Dropout()
    field: Field
    if kind == "score":
        field = ScoreField(EDMDenoiser(network), LAW)
    else:
        field = DiscriminatorField(network)
    frozen = freeze(field)
    whole = Perturbed(2 * frozen + DiscriminatorField(Quadratic(2), name="other"), LAW)
    whole.train()
    assert whole.training
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert [loss.name for loss in whole.losses()] == ["other"]
    whole.eval().train()
    assert not network.training


@pytest.mark.parametrize("combine", [Field.__neg__, lambda f: Perturbed(f, LAW), lambda f: f])
def test_freezing_a_combination_freezes_its_losses(combine: Callable[[Field], Field]) -> None:
    whole = combine(DiscriminatorField(Quadratic(2)) - ScoreField(EDMDenoiser(Recorder()), LAW))
    assert len(whole.losses()) == 2
    assert whole.freeze().losses() == ()
    assert whole.frozen


# --- how networks run while a field is followed ---


class Moody(nn.Module):
    """A logit with dropout and batch norm on demand, which remembers the modes it was asked in."""

    def __init__(self, dim: int = 2, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(dim, 8).double()
        self.norm = nn.BatchNorm1d(8).double() if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(0.0 if batch_norm else 0.5)
        self.head = nn.Linear(8, 1).double()
        self.modes: list[bool] = []

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        self.modes.append(self.dropout.training)
        return self.head(self.dropout(self.norm(self.body(x).tanh())))[:, 0]


@pytest.mark.parametrize("carrier", ["particles", "generator"])
def test_dropout_is_for_the_network_that_is_trained(carrier: str) -> None:
    """Off where a field is followed (as in sampling), on in its own loss, and reproducible."""
    critic = Moody()
    field, prior = DiscriminatorField(critic), GaussianPrior((2,))
    model: Carrier = ParticleModel(field, prior, steps=2)
    if carrier == "generator":
        generator = MLP((2,), (2,), width=4, depth=1).double()
        model = GeneratorModel(field, generator, prior)
    names = [loss.name for loss in model.losses()]
    phases = tuple(Phase(name, batch=8) for name in names)
    trainer = Trainer(model, moons(), phases, iterations=2)
    state = torch.get_rng_state()
    assert len(list(trainer.run())) == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert critic.dropout.training
    # trained, then followed; or simulated, then trained
    assert critic.modes == 2 * ([True, False] if carrier == "generator" else [False, True])


@pytest.mark.parametrize("truncate", [False, True])
def test_truncation_leaves_the_particles_of_a_critic_with_batch_norm(truncate: bool) -> None:
    torch.manual_seed(0)
    critic = Moody(batch_norm=True)
    ends = []
    for shorter in (False, truncate):
        field = DiscriminatorField(copy.deepcopy(critic))
        model = ParticleModel(field, GaussianPrior((2,)), steps=6, eta=200.0, truncate=shorter)
        ends.append(model.train().particles(64, Streams(0)).x)
    assert torch.equal(*ends)
    model.eval()  # no statistics of the cloud are taken any more
    assert not depends_on_cloud(model.field)
    assert depends_on_cloud(model.train().field)


def test_what_is_differentiated_twice_runs_exactly() -> None:
    """A critic's gradient with a graph (the ELBO, divergences); not where its gradient is all."""
    modes: list[bool] = []

    class Listening(Quadratic):
        def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
            modes.append(is_exact())
            return super().forward(x, c, cond)

    critic = DiscriminatorField(Listening(2))
    for field in (critic, LogRatioField(critic), FDivergenceField(critic)):
        modes.clear()
        field(randn(3, 2).requires_grad_(), At(tensor(0.5)))
        assert modes == [True]
        modes.clear()
        field(randn(3, 2), At(tensor(0.5)))
        assert modes == [False]


def test_a_field_that_occurs_twice_is_trained_once_whatever_is_around_it() -> None:
    score = ScoreField(EDMDenoiser(Recorder()), KarrasLaw())
    critic = DiscriminatorField(Quadratic(2))
    path = VESchedule()
    for field in (
        Perturbed(critic, KarrasLaw()),
        LabelDropout(score, 3),
        LogRatioField(critic, schedule=path),
        DiscriminatorField(Quadratic(2), schedule=path),
    ):
        assert (field + 2.0 * field).losses() == field.losses()
        assert len(field.losses()) == 1
