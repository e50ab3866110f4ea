"""Exact likelihood by the ODE, latents, maps, bits: laws on exact targets (framework §8)."""

from __future__ import annotations

import contextlib
import gc
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from conftest import GAUSSIAN, MIXTURE, randn, seeded, slope, tensor
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError, DataError, NumericsError
from partikel.fields import (
    At,
    AtScale,
    DiscriminatorField,
    ExactScoreField,
    Field,
    LogRatioField,
    WhiteNoise,
)
from partikel.fields.ratio import DensityRatioField, FDivergenceField
from partikel.likelihood import (
    EulerMap,
    Integrator,
    Map,
    Ode,
    agreement,
    bits_per_dim,
    byte_width,
    check_derivative,
    decode,
    dequantised,
    divergence,
    encode,
    probability_flow,
    reconstruction_error,
)
from partikel.models import GeneratorModel, ParticleModel
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, Schedule, SubVPSchedule, VESchedule, VPSchedule
from partikel.solvers import Heun
from partikel.targets import Gaussian, GaussianMixture

PATHS: dict[str, Schedule] = {
    "ve": VESchedule(30.0, 0.02),
    "karras": EDMSchedule(30.0),
    "vp": VPSchedule(),
    "sub-vp": SubVPSchedule(),
}
FINE = Integrator(tolerance=1e-8)


def law(target: GaussianMixture, schedule: Schedule, t: float) -> GaussianMixture:
    """The law of (x + σε)/u."""
    time = tensor(t)
    sigma, u = float(schedule.sigma(time)), float(schedule.u(time))
    noise = sigma**2 * torch.eye(target.dim, dtype=torch.float64)
    return GaussianMixture(
        target.means / u, (target.covariances + noise) / u**2, weights=target.weights
    )


def diffusion(
    target: GaussianMixture, schedule: Schedule, g2: float = 2.0, lambda2: float = 1.0
) -> ParticleModel:
    """A point of the plane with exact networks."""
    flow, score = DiffFlow.reverse(schedule, g2=g2, lambda2=lambda2), ExactScoreField(target)
    return ParticleModel(
        flow.field(score, 0.0 * ExactScoreField(target)),
        flow.prior(target.shape),
        steps=10,
        schedule=schedule,
        diffusion=flow.diffusion,
        score=AtScale(score, schedule),
    )


class Wave(nn.Module):
    """A smooth time-conditional discriminator with curvature of both signs."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor | None, cond: Tensor | None = None) -> Tensor:
        assert c is not None
        wave = torch.tanh(x[:, 0] - 0.4 * x[:, 1] + c[:, 0]) + 0.3 * torch.sin(x[:, 1] + x[:, 0])
        return self.scale * wave - 0.05 * x.square().sum(1)


class Kinks(nn.Module):
    """A piecewise linear discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)).double()
        with torch.no_grad():
            for k, weight in enumerate(self.parameters()):
                weight.copy_(randn(*weight.shape, seed=k))

    def forward(self, x: Tensor, c: Tensor | None, cond: Tensor | None = None) -> Tensor:
        return self.layers(x)[:, 0]


def euler_flow(network: nn.Module, steps: int = 12, eta: float = 1.5) -> ParticleModel:
    field = DiscriminatorField(network, "logit", conditions=("t",))
    return ParticleModel(field, GaussianPrior((2,)), steps=steps, eta=eta)


# --- the ODE on exact laws


def carried_by(flow: DiffFlow, log_ratio: Field | None = None) -> ParticleModel:
    score = ExactScoreField(GAUSSIAN)
    return ParticleModel(
        flow.field(score, log_ratio),
        flow.prior((2,)),
        steps=10,
        schedule=flow.schedule,
        diffusion=flow.diffusion,
        score=AtScale(score, flow.schedule),
    )


@pytest.mark.parametrize(
    "flow",
    [
        DiffFlow.langevin(0.3),
        DiffFlow.annealed_langevin(VESchedule(30.0, 0.02)),
        DiffFlow.ve().with_lambda2(0.5),
        DiffFlow.vp().with_lambda2(0.3),
        DiffFlow.ve().continuation(-0.5),
        DiffFlow.reverse(VESchedule(30.0, 0.02)).with_lambda2(1.5),
        replace(DiffFlow.ve(), prior_std=1.0),
        replace(DiffFlow.vp(), f=0.5),
    ],
    ids=lambda flow: type(flow.schedule).__name__,
)
def test_noise_along_other_laws_than_the_path_s_is_refused(flow: DiffFlow) -> None:
    """The data's score is that of ρ_t for matched flows only; without noise none is asked for."""
    log_ratio = LogRatioField(DiscriminatorField(Wave(), conditions=("t",)))
    ratio = None if float((flow.coordinates(tensor([0.5]))[0] - 2).abs()) < 1e-9 else log_ratio
    with pytest.raises(ConfigError, match="not those of the noised data"):
        probability_flow(carried_by(flow, ratio))
    assert probability_flow(euler_flow(Wave())).schedule is None


@pytest.mark.parametrize("g2", [1.0, 2.0])
def test_what_follows_its_path_is_not_refused(g2: float) -> None:
    """With a discriminator that is not optimal, too."""
    log_ratio = None if g2 == 2 else LogRatioField(DiscriminatorField(Wave(), conditions=("t",)))
    for schedule in PATHS.values():
        probability_flow(carried_by(DiffFlow.reverse(schedule, g2=g2), log_ratio))


def test_langevin_dynamics_from_its_own_law_keep_it() -> None:
    flow = DiffFlow.langevin(0.3)
    prior = law(GAUSSIAN, flow.schedule, 0.0)
    x = GAUSSIAN.sample(8, generator=seeded(1), dtype=torch.float64)
    found = Ode(integrator=FINE).log_prob(
        probability_flow(carried_by(flow), prior=prior), x, generator=seeded()
    )
    torch.testing.assert_close(found.log_prob, prior.log_density(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_exact_divergence_gives_the_density(name: str, target: GaussianMixture) -> None:
    schedule = PATHS[name]
    flow = probability_flow(diffusion(target, schedule), prior=law(target, schedule, 0.0))
    x = target.sample(32, generator=seeded(1), dtype=torch.float64)
    found = Ode(integrator=FINE).log_prob(flow, x, generator=seeded())
    exact = law(target, schedule, flow.end).log_density(x)
    torch.testing.assert_close(found.log_prob, exact, atol=1e-5, rtol=0)
    assert found.converged
    assert float(found.flaws.max()) < 1e-4
    assert float(found.standard_error.abs().max()) == 0


@pytest.mark.parametrize("point", [(1.0, 1.0), (1.5, 1.0), (2.0, 0.5), (2.0, 2.0)])
def test_noise_does_not_change_the_likelihood(point: tuple[float, float]) -> None:
    schedule = PATHS["ve"]
    model = diffusion(MIXTURE, schedule, *point)
    flow = probability_flow(model, prior=law(MIXTURE, schedule, 0.0))
    x = MIXTURE.sample(8, generator=seeded(1), dtype=torch.float64)
    found = Ode(integrator=FINE).log_prob(flow, x, generator=seeded())
    exact = law(MIXTURE, schedule, flow.end).log_density(x)
    torch.testing.assert_close(found.log_prob, exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_probes_are_unbiased_and_average(kind: str) -> None:
    schedule = PATHS["vp"]
    flow = probability_flow(diffusion(MIXTURE, schedule), prior=law(MIXTURE, schedule, 0.0))
    x = MIXTURE.sample(256, generator=seeded(1), dtype=torch.float64)
    exact = law(MIXTURE, schedule, flow.end).log_density(x)
    how = Integrator("rk4", steps=30)
    variances = []
    for probes in (1, 4, 16):
        method = Ode(kind, probes, integrator=how, checked=False)  # type: ignore[arg-type]
        found = method.log_prob(flow, x, generator=seeded(3))
        error = found.log_prob - exact
        assert abs(float(error.mean())) < 3 * float(error.std()) / 16
        variances.append(float(error.square().mean()))
        if probes == 16:
            within = (error.abs() < 3 * found.standard_error).double().mean()
            assert float(within) > 0.9  # a share of 0.99 at 16 normal draws; these are skewed
    assert slope(tensor([1.0, 4.0, 16.0]), tensor(variances)) == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize(
    ("method", "order", "path"),  # where its errors are a power of the step from 32 steps on
    [("euler", 1, "vp"), ("heun", 2, "ve"), ("midpoint", 2, "ve"), ("rk4", 4, "ve")],
)
def test_fixed_solvers_have_their_order(method: str, order: int, path: str) -> None:
    schedule = PATHS[path]
    flow = probability_flow(diffusion(MIXTURE, schedule), prior=law(MIXTURE, schedule, 0.0))
    x = MIXTURE.sample(8, generator=seeded(1), dtype=torch.float64)
    exact = law(MIXTURE, schedule, flow.end).log_density(x)
    steps, errors = [32, 64, 128], []
    for n in steps:
        how = Integrator(method, steps=n)
        found = Ode(integrator=how, strict=False, checked=False).log_prob(
            flow, x, generator=seeded()
        )
        errors.append(float((found.log_prob - exact).abs().mean()))
    assert slope(tensor(steps), tensor(errors)) == pytest.approx(-order, abs=0.25)


def test_the_same_seed_gives_the_same_number() -> None:
    flow = probability_flow(diffusion(GAUSSIAN, PATHS["vp"]))
    x = randn(4, 2)
    first, second = (
        Ode(divergence="rademacher", probes=2).log_prob(flow, x, generator=seeded(5)).log_prob
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_few_steps_are_refused_or_flagged() -> None:
    flow = probability_flow(diffusion(MIXTURE, PATHS["ve"]))
    x, how = randn(8, 2), Integrator("heun", steps=6)
    with pytest.raises(NumericsError, match="not converged"):
        Ode(integrator=how).log_prob(flow, x, generator=seeded())
    found = Ode(integrator=how, strict=False).log_prob(flow, x, generator=seeded())
    assert not found.converged
    assert float(found.flaws.mean()) > 0.02


def test_memory_does_not_grow_with_the_steps() -> None:
    flow = probability_flow(diffusion(MIXTURE, PATHS["vp"]))
    alive: list[int] = []
    calls: list[int] = []

    def counted(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        calls.append(0)
        if len(calls) % 12 == 0:
            alive.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))
        return flow.velocity(x, t, cond)

    x, most = randn(4, 2), []
    watched = type(flow)(counted, flow.prior, flow.end, flow.shape, flow.schedule)
    for steps in (3, 9):
        alive.clear()
        Ode(integrator=Integrator("rk4", steps=steps), strict=False, checked=False).log_prob(
            watched, x, generator=seeded()
        )
        most.append(max(alive))
    assert abs(most[1] - most[0]) <= 8


# --- divergences and what has none


def test_divergence_of_a_discriminator_is_its_laplacian() -> None:
    field = DiscriminatorField(Wave(), "logit", conditions=("t",))
    x, t = randn(6, 2), torch.full((6,), 0.3, dtype=torch.float64)

    def potential(point: Tensor) -> Tensor:
        return field.potential(point[None], At(t[:1])).sum()

    laplacian = torch.stack(
        [torch.trace(torch.autograd.functional.hessian(potential, p)) for p in x]  # type: ignore[arg-type]
    )
    v, found = divergence(lambda x, t, cond: field(x, At(t)), x, t)
    torch.testing.assert_close(found[:, 0], laplacian)
    torch.testing.assert_close(v, field(x, At(t)))
    basis = torch.eye(2, dtype=torch.float64)[:, None].expand(2, 6, 2)
    parts = divergence(lambda x, t, cond: field(x, At(t)), x, t, None, basis)[1]
    torch.testing.assert_close(parts.sum(1), laplacian)


def test_a_kl_flow_has_a_density() -> None:
    """On a quadratic ratio the KL flow is linear, and the density a Gaussian's."""
    wide = Gaussian([0.3, -0.2], [[2.0, 0.3], [0.3, 1.5]])
    field = FDivergenceField(DensityRatioField(GAUSSIAN, wide), "kl")
    model = ParticleModel(field, GaussianPrior((2,), 1.3), steps=20, eta=0.7)
    matrix = torch.linalg.inv(wide.covariance) - torch.linalg.inv(GAUSSIAN.covariance)
    shift = (
        torch.linalg.inv(GAUSSIAN.covariance) @ GAUSSIAN.mean
        - torch.linalg.inv(wide.covariance) @ wide.mean
    )
    flow = torch.linalg.matrix_exp(0.7 * matrix)
    mean = torch.linalg.solve(matrix, (flow - torch.eye(2).double()) @ shift)
    exact = Gaussian(mean, 1.3**2 * flow @ flow.mT)
    x = randn(8, 2)
    found = Ode(integrator=FINE).log_prob(probability_flow(model), x, generator=seeded())
    torch.testing.assert_close(found.log_prob, exact.log_density(x), atol=1e-5, rtol=0)


def test_jumping_gradients_are_refused() -> None:
    flow = probability_flow(euler_flow(Kinks()))
    with pytest.raises(ConfigError, match="smooth activation"):
        Ode().log_prob(flow, randn(64, 2), generator=seeded())


def test_a_field_without_derivative_is_refused() -> None:
    class Detached(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            return -x.detach()

    flow = probability_flow(ParticleModel(Detached(), GaussianPrior((2,)), steps=5))
    with pytest.raises(ConfigError, match="estimated from samples"):
        Ode().log_prob(flow, randn(64, 2), generator=seeded())


@pytest.mark.parametrize(("share", "refused"), [(0.2, False), (0.3, True)])
def test_a_derivative_may_miss_a_quarter_of_the_change(share: float, refused: bool) -> None:
    class Partly(Field):
        """A linear field, a share of which autograd does not see."""

        def forward(self, x: Tensor, at: At) -> Tensor:
            return -(1 - share) * x - share * x.detach()

    flow = probability_flow(ParticleModel(Partly(), GaussianPrior((2,)), steps=5))
    with pytest.raises(ConfigError, match="misses") if refused else contextlib.nullcontext():
        check_derivative(flow, randn(64, 2), generator=seeded())


def test_models_without_a_velocity_are_refused() -> None:
    field = ExactScoreField(GAUSSIAN)
    gan = GeneratorModel(field, nn.Linear(2, 2), GaussianPrior((2,)))
    with pytest.raises(ConfigError, match="partikel evaluate"):
        probability_flow(gan)
    noisy = ParticleModel(field, GaussianPrior((2,)), steps=5, temperature=0.1)
    with pytest.raises(ConfigError, match="no score of its law"):
        probability_flow(noisy)
    random = ParticleModel(field + WhiteNoise(1.0), GaussianPrior((2,)), steps=5)
    with pytest.raises(ConfigError, match="random numbers"):
        probability_flow(random)


def test_bad_input_is_refused_in_a_sentence() -> None:
    flow = probability_flow(diffusion(GAUSSIAN, PATHS["vp"]))
    with pytest.raises(ConfigError, match="of shape"):
        Ode().log_prob(flow, randn(4, 3), generator=seeded())
    with pytest.raises(ConfigError, match="finite points"):
        Ode().log_prob(flow, tensor([[0.0, math.nan]]), generator=seeded())
    with pytest.raises(ConfigError, match="probes of Ode must be a whole number of at least 1"):
        Ode(probes=0).log_prob(flow, randn(4, 2), generator=seeded())
    with pytest.raises(ConfigError, match="rademacher"):
        Ode(divergence="rademaker").log_prob(flow, randn(4, 2), generator=seeded())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean"):
        Integrator("dopri6")
    with pytest.raises(ConfigError, match="level of the path"):
        probability_flow(diffusion(GAUSSIAN, EDMSchedule(30.0)), sigma_min=0.0)


# --- inversion, and whether two samplers agree


def test_data_to_prior_and_back() -> None:
    flow = probability_flow(diffusion(MIXTURE, PATHS["ve"]))
    x = MIXTURE.sample(32, generator=seeded(1), dtype=torch.float64)
    assert float(reconstruction_error(flow, x, integrator=FINE).max()) < 1e-5
    z = flow.prior.sample(16, generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(
        encode(flow, decode(flow, z, integrator=FINE), integrator=FINE), z, atol=1e-3, rtol=1e-5
    )


def test_far_points_are_out_of_distribution() -> None:
    flow = probability_flow(diffusion(MIXTURE, PATHS["ve"]))
    x = MIXTURE.sample(16, generator=seeded(1), dtype=torch.float64)
    inside, outside = (
        Ode().log_prob(flow, points, generator=seeded()).log_prob for points in (x, x + 6)
    )
    assert float(inside.min()) > float(outside.max())


def test_agreement_tells_two_samplers_apart() -> None:
    flow = probability_flow(diffusion(MIXTURE, PATHS["vp"]), prior=law(MIXTURE, PATHS["vp"], 0.0))
    same = law(MIXTURE, PATHS["vp"], flow.end).sample(400, generator=seeded(1), dtype=torch.float64)
    assert agreement(flow, same, generator=seeded(2), repeats=40).agrees
    found = agreement(flow, same + 0.3, generator=seeded(2), repeats=40)
    assert not found.agrees
    assert found.distance > 2 * found.quantile


# --- the Euler map's own density


def test_a_linear_map_has_its_gaussian_density() -> None:
    """One law for every N: x' = (I + hA) x."""
    model = ParticleModel(ExactScoreField(GAUSSIAN), GaussianPrior((2,), 1.5), steps=7, eta=0.3)
    precision = torch.linalg.inv(GAUSSIAN.covariance)
    step = torch.eye(2).double() - 0.3 / 7 * precision
    mean, covariance = torch.zeros(2).double(), 1.5**2 * torch.eye(2).double()
    for _ in range(7):
        mean = step @ mean + 0.3 / 7 * precision @ GAUSSIAN.mean
        covariance = step @ covariance @ step.mT
    x = randn(16, 2)
    found = Map().log_prob(model, x, generator=seeded())
    torch.testing.assert_close(found.log_prob, Gaussian(mean, covariance).log_density(x))
    assert not found.flaws.any()


def test_the_map_is_inverted_where_it_went() -> None:
    model = euler_flow(Wave())
    x, forwards = EulerMap(model).sample(64, generator=seeded(1))
    found = Map().log_prob(model, x, generator=seeded())
    torch.testing.assert_close(found.log_prob, forwards.log_prob, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.latent, forwards.latent, atol=1e-6, rtol=0)
    assert not found.flaws.any()
    assert not forwards.flaws.any()


def test_the_maps_density_sums_to_one_and_the_odes_is_another() -> None:
    model = euler_flow(Wave(), steps=3, eta=1.8)
    side = torch.linspace(-9, 9, 91, dtype=torch.float64)
    x, area = torch.cartesian_prod(side, side), float(side[1] - side[0]) ** 2
    found = Map().log_prob(model, x, generator=seeded())
    assert not found.flaws.any()
    assert float(found.log_prob.exp().sum()) * area == pytest.approx(1, abs=0.02)
    how = Integrator("rk4", steps=20)
    flow = probability_flow(model)
    ode = Ode(integrator=how).log_prob(flow, x, generator=seeded())
    assert float(ode.log_prob.exp().sum()) * area == pytest.approx(1, abs=0.02)
    assert float((ode.log_prob - found.log_prob).abs().max()) > 0.2
    own = EulerMap(model).sample(2000, generator=seeded(1))[0]
    assert not agreement(flow, own, generator=seeded(2), integrator=how, repeats=20).agrees


def test_fine_maps_have_the_odes_density() -> None:
    x = randn(16, 2)
    ode = Ode().log_prob(probability_flow(euler_flow(Wave())), x, generator=seeded()).log_prob
    steps, errors = [20, 40, 80], []
    for n in steps:
        own = Map().log_prob(euler_flow(Wave(), steps=n), x, generator=seeded()).log_prob
        errors.append(float((own - ode).abs().mean()))
    assert slope(tensor(steps), tensor(errors)) == pytest.approx(-1, abs=0.15)


def test_folding_maps_are_marked() -> None:
    folding, x = euler_flow(Wave(8.0), steps=1, eta=3.0), randn(32, 2)
    with pytest.raises(
        NumericsError, match="points only, so that change of variables is no density"
    ):
        Map().log_prob(folding, x, generator=seeded())
    found = Map(strict=False).log_prob(folding, x, generator=seeded())
    assert found.flaws.mean() > 0.1
    heun = ParticleModel(ExactScoreField(GAUSSIAN), GaussianPrior((2,)), steps=3, solver=Heun())
    with pytest.raises(ConfigError, match="Heun"):
        Map().log_prob(heun, randn(4, 2), generator=seeded())


# --- images


def test_bits_per_dim_of_eight_bits_is_the_formula() -> None:
    log_prob = randn(5) * 30
    expected = -log_prob / 12 / math.log(2) + 7
    torch.testing.assert_close(bits_per_dim(log_prob, 12, 1 / 128), expected)


def test_a_uniform_density_has_the_bits_of_its_levels() -> None:
    """On [-1 - w/2, 1 + w/2]^D every byte of 256 is as likely: 8 bits."""
    width = byte_width(255)
    log_prob = tensor([-10 * math.log(256 * width)])
    torch.testing.assert_close(bits_per_dim(log_prob, 10, width), tensor([8.0]))


def test_dequantised_bits_bound_those_of_the_bytes() -> None:
    """The bound E log ∫ >= E log is tight for a density that is flat within levels."""
    width, scale = byte_width(16), 0.3
    levels = torch.arange(17, dtype=torch.float64) * width - 1
    mass = torch.special.ndtr((levels + width / 2) / scale) - torch.special.ndtr(
        (levels - width / 2) / scale
    )
    bytes_ = torch.multinomial(mass, 100_000, True, generator=seeded())
    x = dequantised(levels[bytes_][:, None], width, generator=seeded(1))
    found = bits_per_dim(GaussianPrior((1,), scale).log_density(x), 1, width).mean()
    entropy = -(mass * mass.log2()).sum()
    exact = -mass[bytes_].log2().mean()
    assert float(found) > float(exact)
    assert float(found) == pytest.approx(float(entropy), abs=0.03)


def test_wrong_images_are_refused() -> None:
    width = byte_width(255)
    levels = torch.arange(256, dtype=torch.float64).view(1, 1, 16, 16) * width - 1
    noisy = dequantised(levels, width, generator=seeded())
    assert float((noisy - levels).abs().max()) <= width / 2
    with pytest.raises(DataError, match="noise would be added twice"):
        dequantised(noisy, width, generator=seeded())
    with pytest.raises(DataError, match=r"in \[-1, 1\]"):
        dequantised(levels * 100, width, generator=seeded())
