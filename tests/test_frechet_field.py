"""The Fréchet distance of features as a field, and minimising movements of any field."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import randn, seeded, tensor
from partikel.data import DataSettings, open_dataset
from partikel.errors import ConfigError
from partikel.fields import At, Context, Field, FrechetField, JKOField, Linear, MMDField
from partikel.kernels import RandomFourierFeatures, RBFKernel, RieszKernel
from partikel.metrics import energy_distance, mode_statistics
from partikel.metrics.features import FeatureSet, frechet_distance
from partikel.models import GeneratorModel, ParticleModel
from partikel.networks import MLP
from partikel.priors import GaussianPrior
from partikel.training import AdamSettings, Phase, fit

NOW = At(torch.zeros((), dtype=torch.float64))
RING = open_dataset(DataSettings("gaussians"))


def features() -> nn.Module:
    """Of points (3,): not linear, six of them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)).double()


def bound(field: Field, real: Tensor, particles: Tensor | None = None) -> Field:
    return field.bind(Context(real=real, particles=particles))


# --- the Fréchet distance


@pytest.mark.parametrize("network", [None, features()])
def test_it_is_the_gradient_of_the_distance(network: nn.Module | None) -> None:
    """-P ∇F by autograd, the moments of the cloud differentiated too."""
    field, real = FrechetField(network), randn(60, 3, seed=1) * tensor([1.0, 2.0, 0.5]) + 1
    cloud = randn(40, 3).requires_grad_()
    (slope,) = torch.autograd.grad(field.distance(cloud, real), cloud)
    assert_close(bound(field, real)(cloud.detach(), NOW), -len(cloud) * slope, rtol=1e-6, atol=1e-9)


def test_its_distance_is_the_metrics() -> None:
    """Up to the divisor of the covariance."""
    x, real = randn(50, 3), 2 * randn(50, 3, seed=1) + 1
    sets = []
    for cloud in (x, real):
        sets.append(FeatureSet("points", 3))
        sets[-1].update(cloud)
        sets[-1].scatter *= 49 / 50
    found = FrechetField().distance(x, real)
    assert float(found) == pytest.approx(frechet_distance(*sets), rel=1e-9)


def test_half_of_it_takes_one_gaussian_to_the_other() -> None:
    x, real = randn(400, 3), randn(300, 3, seed=1) @ randn(3, 3, seed=2) + 1
    moved = x + bound(FrechetField(), real)(x, NOW) / 2
    assert_close(moved.mean(0), real.mean(0))
    assert_close(torch.cov(moved.T, correction=0), torch.cov(real.T, correction=0))
    assert float(FrechetField().distance(moved, real)) == pytest.approx(0, abs=1e-9)


def test_with_fewer_points_than_features_it_is_still_the_gradient_on_their_span() -> None:
    """And finite: particles do not leave the space that they span, but for the mean."""
    x, real = randn(3, 5), randn(40, 5, seed=1) + 2
    moved = bound(FrechetField(), real)(x, NOW)
    assert torch.isfinite(moved).all()
    gap = real.mean(0) - x.mean(0)
    assert_close(moved.mean(0), 2 * gap)


def test_other_points_are_driven_by_a_bound_cloud() -> None:
    field, real, cloud = FrechetField(features()), randn(60, 3, seed=1), 2 * randn(40, 3)
    together = bound(field, real)(cloud, NOW)
    assert_close(bound(field, real, cloud)(cloud[:7], NOW), together[:7])


def test_its_network_is_a_copy_that_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)).double()
    field = FrechetField(network).train()
    x, real = randn(20, 3), randn(30, 3, seed=1)
    assert_close(bound(field, real)(x, NOW), bound(field, real)(x, NOW))
    assert field.losses() == ()
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in field.parameters())


def test_fourier_features_stand_for_their_kernel() -> None:
    x, y = randn(6, 2), randn(5, 2, seed=1)
    features = RandomFourierFeatures((2,), 100_000, 1.5)
    assert_close(features(x) @ features(y).T, RBFKernel(1.5)(x, y), rtol=0, atol=0.02)


def test_of_fourier_features_it_finds_the_five_gaussians() -> None:
    """By free particles and by a generator; without features it sees one Gaussian."""
    assert RING.target is not None
    g = seeded(0)
    real, test = (RING.target.sample(n, generator=g).float() for n in (1000, 4000))
    field = FrechetField(RandomFourierFeatures((2,), 16, 1.5))
    model = ParticleModel(field, GaussianPrior((2,)), steps=80, eta=100.0)
    found = model.sample(1000, real=real, generator=g)
    blind = ParticleModel(FrechetField(), GaussianPrior((2,)), steps=60, eta=6.0)
    unseen = blind.sample(1000, real=real, generator=g)
    target = RING.target
    assert mode_statistics(found, target.means, target.stds, target.weights).covered == 5
    assert energy_distance(found, test) < 0.01
    assert float(FrechetField().distance(unseen, real)) < 1e-3
    assert energy_distance(unseen, test) > 0.1


def test_what_it_remembers_is_an_average_over_updates() -> None:
    """-P/(1 - β) times the gradient of F of the averaged moments, of particles and data."""
    field, beta = FrechetField(features(), memory=0.75), 0.75
    clouds = [randn(12, 3, seed=s) for s in range(7)]
    reals = [2 * randn(15, 3, seed=10 + s) + 1 for s in range(7)]
    found = [bound(field, real)(cloud, NOW) for cloud, real in zip(clouds, reals, strict=True)]
    weights = [1.0, 1 / 2, 1 / 3, *[1 - beta] * 4]

    def averaged(some: list[Tensor]) -> tuple[Tensor, Tensor]:
        mean = square = torch.zeros(())
        for x, weight in zip(some, weights, strict=True):
            y = field._moments(x)
            second = y.covariance + y.mean.outer(y.mean)
            mean, square = mean + weight * (y.mean - mean), square + weight * (second - square)
        return mean, square - mean.outer(mean)

    last = clouds[-1].requires_grad_()
    (m, c), (m_own, c_own) = averaged(reals), averaged([*clouds[:-1], last])
    roots = torch.linalg.eigvals(c @ c_own).real.clamp(min=0).sqrt()
    loss = (m - m_own).square().sum() + c.trace() + c_own.trace() - 2 * roots.sum()
    (slope,) = torch.autograd.grad(loss, last)
    assert_close(found[-1], -len(last) / (1 - beta) * slope, rtol=1e-6, atol=1e-9)


def test_its_memory_is_of_training_and_of_a_checkpoint() -> None:
    field, x, real = FrechetField(memory=0.9), randn(12, 3), 2 * randn(15, 3, seed=1)
    plain = bound(FrechetField(), real)(x, NOW)
    assert_close(bound(field, real)(x, NOW), plain)  # the first update is the batch alone
    bound(field, real)(3 * x, NOW)
    other = FrechetField(memory=0.9)
    other.load_state_dict(field.state_dict())
    assert_close(bound(other, real)(x, NOW), bound(field, real)(x, NOW))
    assert int(other.updates) == 3
    assert_close(bound(field.eval(), real)(x, NOW), plain)
    assert_close(bound(field.train(), real, x)(x, NOW), plain)  # of a bound cloud
    assert int(field.updates) == 3
    with pytest.raises(ConfigError):
        FrechetField(memory=1.0)
    labelled = At(tensor(0.0), None, torch.zeros(12, dtype=torch.int64))
    bound(FrechetField(), real)(x, labelled)
    with pytest.raises(ConfigError, match="leave out memory"):  # of one class after another
        bound(field, real)(x, labelled)


# --- minimising movements


def test_an_implicit_step_of_a_linear_field_is_known() -> None:
    """F = ½E‖x‖²: x/(1 + η), however long the step."""
    x = randn(8, 2)
    for eta in (0.5, 3.0, 50.0):
        field = JKOField(Linear(-1.0), eta, steps=4000, rate=min(1.0, 1 / (1 + eta)))
        assert_close(x + eta * field(x, NOW), x / (1 + eta))


def test_one_inner_step_is_the_explicit_one() -> None:
    x, real = randn(12, 2), randn(20, 2, seed=1) + 2
    inner = MMDField(RieszKernel())
    plain = bound(inner, real)(x, NOW)
    assert_close(bound(JKOField(inner, 0.7, steps=1, rate=1.0), real)(x, NOW), plain)


def test_the_cloud_moves_along() -> None:
    """x' = x + η field_{ρ'}(x'), asked of the cloud where it came to; bound or not."""
    x, real, eta = randn(12, 2), randn(20, 2, seed=1) + 2, 2.0
    inner = MMDField(RBFKernel(2.0))
    field = JKOField(inner, eta, steps=300, rate=0.3)
    moved = x + eta * bound(field, real)(x, NOW)
    assert_close(moved, x + eta * bound(inner, real)(moved, NOW), rtol=1e-6, atol=1e-8)
    other = bound(field, real, x)(x[:5], NOW)
    assert_close(x[:5] + eta * other, moved[:5])


def test_points_of_several_times_each_see_the_cloud_of_theirs() -> None:
    field = bound(JKOField(torch.exp * MMDField(RBFKernel(2.0)), 0.5), randn(9, 2) + 1, randn(8, 2))
    x, t = randn(4, 2, seed=3), tensor([0.0, 0.5, 0.0, 0.5])
    apart = [field(x[i : i + 1], At(t[i])) for i in range(4)]
    assert_close(field(x, At(t)), torch.cat(apart))


def test_it_lowers_what_its_field_descends_where_an_explicit_step_raises_it() -> None:
    x, real = randn(200, 2), 0.2 * randn(200, 2, seed=1) + 1
    frechet, eta = FrechetField(), 3.0
    before = float(frechet.distance(x, real))
    explicit = x + eta * bound(frechet, real)(x, NOW)
    field = JKOField(frechet, eta, steps=60, rate=0.1)
    implicit = x + eta * bound(field, real)(x, NOW)
    assert float(frechet.distance(explicit, real)) > 4 * before
    assert float(frechet.distance(implicit, real)) < 0.1 * before


def test_a_generator_is_fitted_to_it() -> None:
    field = JKOField(FrechetField(), 0.5, steps=8, rate=0.5)
    model = GeneratorModel(field, MLP((2,), (2,), width=32, depth=2), GaussianPrior((2,)), eta=0.5)
    phases = [Phase("generator", AdamSettings(lr=3e-3), batch=256)]
    fit(model, RING, phases, iterations=150)
    assert RING.target is not None
    g = seeded(1)
    x, real = model.sample(2000, generator=g), RING.target.sample(2000, generator=g).float()
    assert float(FrechetField().distance(x, real)) < 0.5


def test_what_cannot_be() -> None:
    for options in ({"rate": 0.0}, {"rate": 1.5}, {"steps": 0}):
        with pytest.raises(ConfigError):
            JKOField(Linear(-1.0), 1.0, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        JKOField(Linear(-1.0), 0.0)
