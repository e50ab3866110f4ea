"""The Stein field: its double sum, the score difference behind it, and its two carriers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import GAUSSIAN, MIXTURE, OTHER, assert_mean, randn, seeded, tensor
from partikel.data.synthetic import gaussians
from partikel.errors import ConfigError, NumericsError
from partikel.fields import At, Context, ExactScoreField, Field, LossValue, Perturbed, TrainingBatch
from partikel.fields.samples.stein import SteinField
from partikel.kernels import IMQKernel, Kernel, LaplaceKernel, MultiRBFKernel, RBFKernel
from partikel.metrics import energy_distance, mode_statistics
from partikel.models import GeneratorModel, ParticleModel, kernel_operator, ntk_operator
from partikel.networks import NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.schedules import KarrasLaw
from partikel.streams import Streams
from partikel.targets import GaussianMixture
from partikel.training import AdamSettings, Phase, fit

KERNELS = [RBFKernel(0.7), IMQKernel(1.3), MultiRBFKernel(0.8), LaplaceKernel(1.1)]
SCORE = ExactScoreField(MIXTURE)


def at(x: Tensor, sigma: Tensor | None = None) -> At:
    return At(torch.ones(len(x), dtype=x.dtype), sigma)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
def test_the_field_is_a_double_sum(kernel: Kernel) -> None:
    x, cloud = randn(4, 2), randn(7, 2, seed=1).requires_grad_()
    field = SteinField(SCORE, kernel).bind(Context(particles=cloud.detach()))
    expected = []
    for point in x:
        row = kernel(point[None], cloud)[0]
        (repulsion,) = torch.autograd.grad(row.sum(), cloud)
        expected.append((row[:, None] * MIXTURE.score(cloud) + repulsion).mean(0).detach())
    assert_close(field(x, at(x)), torch.stack(expected))
    assert not field(x, at(x)).requires_grad


def quadrature(order: int = 40) -> tuple[Tensor, Tensor]:
    """Points and weights of OTHER, by Gauss and Hermite."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(order))
    grid = torch.cartesian_prod(nodes, nodes)
    points = OTHER.mean + grid @ torch.linalg.cholesky(OTHER.covariance).T
    product = torch.outer(weights, weights).flatten()
    return points, product / product.sum()


def difference(x: Tensor) -> Tensor:
    return GAUSSIAN.score(x) - OTHER.score(x)


@pytest.mark.parametrize("kernel", KERNELS[:3], ids=lambda k: type(k).__name__)
def test_the_field_is_the_score_difference_through_the_kernel(kernel: Kernel) -> None:
    """φ(x) = ∫ k(x, y) (s_p - s_ρ)(y) ρ(dy), by quadrature; of a cloud, within standard errors."""
    x = randn(3, 2)
    y, weights = quadrature()
    y.requires_grad_()
    expected = kernel(x, y.detach()) @ (weights[:, None] * difference(y.detach()))
    k = kernel(x, y)
    repulsion = [torch.autograd.grad(row @ weights, y, retain_graph=True)[0].sum(0) for row in k]
    by_parts = k @ (weights[:, None] * GAUSSIAN.score(y)) + torch.stack(repulsion)
    assert_close(by_parts.detach(), expected, rtol=1e-4, atol=1e-4)
    field, generator = SteinField(ExactScoreField(GAUSSIAN), kernel), seeded()
    draws = []
    for _ in range(200):
        cloud = OTHER.sample(50, generator=generator, dtype=torch.float64)
        draws.append(field.bind(Context(particles=cloud))(x, at(x)))
    assert_mean(torch.stack(draws), expected)


def test_a_cloud_of_the_target_stands_still() -> None:
    x, generator, draws = randn(3, 2), seeded(), []
    for _ in range(200):
        cloud = MIXTURE.sample(50, generator=generator, dtype=torch.float64)
        draws.append(SteinField(SCORE, RBFKernel(0.7)).bind(Context(particles=cloud))(x, at(x)))
    assert_mean(torch.stack(draws), 0.0)


def test_without_a_cloud_the_points_are_the_cloud() -> None:
    x, sigma = randn(6, 2), torch.full((6,), 0.4, dtype=torch.float64)
    field = SteinField(SCORE, RBFKernel())
    assert field.needs == {"particles"}
    bound = field.bind(Context(particles=x))
    assert not bound.needs
    assert_close(field(x, at(x, sigma)), bound(x, at(x, sigma)))
    assert_close(bound(x[:2], at(x[:2], sigma[:2])), bound(x, at(x, sigma))[:2])
    expected = SteinField(SCORE, RBFKernel().fitted(x)).bind(Context(particles=x))
    assert_close(bound(x, at(x)), expected(x, at(x)))


def test_each_point_is_asked_at_its_own_noise_level() -> None:
    x, cloud = randn(4, 2), randn(6, 2, seed=1)
    sigma = tensor([0.2, 1.0, 0.2, 2.0])
    field = SteinField(SCORE, RBFKernel(0.7)).bind(Context(particles=cloud))
    rows = [field(x[i : i + 1], at(x[:1], sigma[i : i + 1])) for i in range(4)]
    assert_close(field(x, at(x, sigma)), torch.cat(rows))
    assert (field(x[:1], at(x[:1], sigma[1:2])) - rows[0]).abs().min() > 1e-3


def test_particles_settle_on_the_target() -> None:
    """The moments of a Gaussian that SVGD's stationary cloud has: its mean exactly, its spread nearly."""
    model = ParticleModel(
        SteinField(ExactScoreField(GAUSSIAN), RBFKernel()),
        GaussianPrior((2,)),
        steps=400,
        eta=200.0,
    )
    x = randn(100, 2)
    x = model.sample(len(x), generator=seeded(), start=x)
    assert_close(x.mean(0), GAUSSIAN.mean, rtol=0, atol=0.01)
    assert_close(torch.cov(x.T), GAUSSIAN.covariance, rtol=0, atol=0.1)


def test_what_has_no_stein_flow() -> None:
    x = randn(3, 2)
    with pytest.raises(TypeError, match="takes a Field, got a Gaussian"):
        SteinField(GAUSSIAN, RBFKernel(1.0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="RBFKernel.bandwidth="):
        SteinField(SCORE, RBFKernel(0))
    field = SteinField(SCORE, RBFKernel(1.0))
    with pytest.raises(ConfigError, match="at least two particles"):
        field(x[:1], at(x[:1]))
    with pytest.raises(ConfigError, match="at least two particles"):
        field.bind(Context(particles=x[:1]))
    for bad in (x / 0, x * torch.nan):
        with pytest.raises(NumericsError, match="finite"):
            field(bad, at(x))
        with pytest.raises(NumericsError, match="finite"):
            field.bind(Context(particles=bad))


# --- latent-driven: the score difference carried by a generator (GPM eq. 18, Finding 7) ---


class Features(nn.Module):
    """g(z) = x_0(z) + W φ(z) with W = 0 at first: the tangent kernel is φ(z)·φ(z') I, and stays so."""

    def __init__(self, start: nn.Module, count: int = 60) -> None:
        super().__init__()
        self.start = [start]  # fixed
        self.frequencies = 1.3 * randn(count, 2, seed=3)
        self.weight = nn.Parameter(torch.zeros(2, 2 * count, dtype=torch.float64))

    def features(self, z: Tensor) -> Tensor:
        phase = z @ self.frequencies.T
        return torch.cat([phase.cos(), phase.sin()], 1) / len(self.frequencies) ** 0.5

    def forward(self, z: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        return self.start[0](z).detach() + self.features(z) @ self.weight.T


class FeatureKernel(Kernel):
    def __init__(self, network: Features) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network.features(x) @ self.network.features(y).T


def trained(model: GeneratorModel, rate: float, steps: int, n: int) -> None:
    """SGD on the same latents, which the streams draw again and again."""
    (loss,) = model.losses()
    optimizer = torch.optim.SGD(model.generator.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        value: LossValue = loss.compute(TrainingBatch(None, None, n, Streams(0)))
        value.loss.mean().backward()
        optimizer.step()


class Difference(Field):
    """∇h = s_p - s_ρ, both exact."""

    def forward(self, x: Tensor, at: At) -> Tensor:
        return difference(x)


def test_a_generator_with_a_constant_kernel_is_the_latent_driven_stein_flow() -> None:
    """Training on s_p - s_ρ is dx(z) = E_z'[k(z, z') (s_p - s_ρ)(x(z'))], step by step."""
    n, rate, steps, latent = 20, 0.2, 5, GaussianPrior((2,))
    z = latent.sample(n, generator=Streams(0).latent, dtype=torch.float64)
    network = Features(nn.Tanh())
    x = network(z).detach()
    kernel = FeatureKernel(copy.deepcopy(network))
    for _ in range(steps):
        x = x + rate * kernel_operator(kernel, z, difference(x))
    trained(GeneratorModel(Difference(), network, latent), rate, steps, n)
    assert_close(network(z).detach(), x)
    assert_close(ntk_operator(network, z, difference(x)), kernel_operator(kernel, z, difference(x)))


def test_where_the_generator_is_invertible_it_is_the_stein_flow() -> None:
    """With x = z and k(z, z') = k(x, x'), A_k[s_p - s_ρ] is the Stein field, within standard errors."""
    kernel, x, generator = RBFKernel(0.8), randn(3, 2), seeded()
    stein, carried = [], []
    for _ in range(300):
        cloud = OTHER.sample(50, generator=generator, dtype=torch.float64)
        bound = SteinField(ExactScoreField(GAUSSIAN), kernel).bind(Context(particles=cloud))
        stein.append(bound(x, at(x)))
        carried.append(kernel_operator(kernel, cloud, difference(cloud), at=x))
    assert_mean(torch.stack(stein) - torch.stack(carried), 0.0)
    assert (torch.stack(carried).mean(0).abs() > 0.05).any()


# --- both carriers ---


def measured(x: Tensor) -> tuple[int, float]:
    data = gaussians().target
    assert isinstance(data, GaussianMixture)
    real = data.sample(2000, generator=seeded(9), dtype=x.dtype)
    return mode_statistics(x, data.means.to(x.dtype), 0.5).covered, float(energy_distance(x, real))


def stein(bandwidth: float = 0.5) -> SteinField:
    target = gaussians().target
    assert target is not None
    return SteinField(ExactScoreField(target), RBFKernel(bandwidth))


def test_particles_sample_from_five_gaussians() -> None:
    """A sampler of a known density: no data, no network."""
    model = ParticleModel(stein(), GaussianPrior((2,), std=2.0), steps=300, eta=50.0)
    covered, energy = measured(model.sample(400, generator=seeded(1)))
    assert covered == 5
    assert energy < 0.05


@pytest.mark.slow
def test_a_generator_samples_from_five_gaussians() -> None:
    """At several noise levels: a generator starts narrow, and the score of far modes does not reach it."""
    field: Field = Perturbed(stein(), KarrasLaw(0.05, 0.06))
    for sigma in (0.3, 1.0, 2.0):
        field = field + Perturbed(stein(max(sigma, 0.5)), KarrasLaw(sigma, 1.01 * sigma))
    network = build_network(
        NetworkSettings(kind="mlp", width=128, depth=2, activation="relu"),
        "generator",
        shape=(2,),
        latent=8,
        generator=seeded(),
    )
    model = GeneratorModel(field, network, GaussianPrior((8,)))
    phase = Phase("generator", AdamSettings(lr=2e-3, beta1=0.5, decay="linear"), 256)
    fit(model, gaussians(), [phase], iterations=600)
    covered, energy = measured(model.sample(2000, generator=seeded(1)))
    assert covered == 5
    assert energy < 0.05
