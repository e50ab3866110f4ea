"""Fields in the space of features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import randn, seeded
from partikel.errors import ConfigError, DataError, NumericsError
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    DriftField,
    Field,
    FrechetField,
    InFeatures,
    JKOField,
    MMDField,
    SinkhornField,
)
from partikel.kernels import RBFKernel, RieszKernel
from partikel.models import GeneratorModel, ParticleModel
from partikel.networks import MLP
from partikel.priors import GaussianPrior

NOW = At(torch.zeros((), dtype=torch.float64))


def features() -> nn.Module:
    """Of points (3,): not linear, six of them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)).double()


class Both(nn.Module):
    """A network that begins with features."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        return self.head(self.network(x), c, cond)


class Half(nn.Module):
    """Features of every other point."""

    def forward(self, x: Tensor) -> Tensor:
        return x[::2]


class Rounded(nn.Module):
    """Features as measures take them, which have no gradient."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


def bound(field: Field, real: Tensor, particles: Tensor | None = None) -> Field:
    return field.bind(Context(real=real, particles=particles))


def test_it_descends_the_distance_of_features() -> None:
    """-P times the gradient of ½MMD² between features, by autograd."""
    kernel, network = RBFKernel(1.5), features()
    x, real = randn(12, 3).requires_grad_(), randn(15, 3, seed=1) + 1

    def pairs(a: Tensor, b: Tensor) -> Tensor:
        return (-(a[:, None] - b[None]).square().sum(-1) / (2 * 1.5**2)).exp()

    y, z = network(x), network(real)
    half = pairs(y, y).mean() / 2 - pairs(y, z).mean()
    (slope,) = torch.autograd.grad(half, x)
    found = bound(InFeatures(MMDField(kernel), network), real)(x.detach(), NOW)
    assert_close(found, -12 * slope, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "outer", [lambda f: f, lambda f: 2.0 * f, lambda f: JKOField(f, 0.1, steps=3)]
)
@pytest.mark.parametrize("inner", [DriftField(1.0), MMDField(RieszKernel()), SinkhornField(0.7)])
def test_a_rotation_of_features_rotates_the_field(inner: Field, outer: object) -> None:
    """These fields depend on distances only: in features that are rotated points it is the field itself."""
    rotation = torch.linalg.qr(randn(3, 3, seed=4))[0]
    network = nn.Linear(3, 3, bias=False).double()
    network.weight = nn.Parameter(rotation)
    x, real = randn(12, 3), randn(15, 3, seed=1) + 1
    assert callable(outer)
    plain, seen = outer(inner), outer(InFeatures(inner, network))
    assert_close(bound(seen, real)(x, NOW), bound(plain, real)(x, NOW), rtol=1e-6, atol=1e-9)
    cloud, asked = torch.cat([x, x + 1]), x[:5]
    if not isinstance(plain, JKOField):  # whose points and cloud come apart by rounding
        assert_close(bound(seen, real, cloud)(asked, NOW), bound(plain, real, cloud)(asked, NOW))


def test_many_points_are_seen_in_parts() -> None:
    """What a cloud larger than one pass gets is what its points get of the same bound cloud."""
    network, real = features(), randn(40, 3, seed=1) + 1
    x = randn(1500, 3)
    field = bound(InFeatures(DriftField(1.0), network), real)
    whole = field(x, NOW)
    some = field.bind(Context(particles=x))(x[1000:1100], NOW)
    assert_close(some, whole[1000:1100], rtol=1e-9, atol=1e-12)


def test_the_frechet_field_is_one_of_features() -> None:
    network, real, x = features(), randn(60, 3, seed=1) + 1, randn(40, 3)
    found = bound(InFeatures(FrechetField(), network), real)(x, NOW)
    assert torch.equal(found, bound(FrechetField(network), real)(x, NOW))


def test_a_generator_learns_by_the_distance_of_its_features() -> None:
    """The gradient of ½‖φ(g(z)) - (φ + W)‖², in either way that generators follow fields."""
    network, real, start = features(), randn(20, 3, seed=1) + 1, randn(16, 2, seed=2)
    generator = MLP((2,), (3,), 8, 1).double()
    field, drift = InFeatures(DriftField(1.0), network), DriftField(1.0)
    y = network(generator(start))
    target = (y + bound(drift, network(real))(y, NOW)).detach()
    loss = (y - target).square().sum() / 2
    expected = torch.autograd.grad(loss, list(generator.parameters()))
    for eta in (None, 1.0):
        model = GeneratorModel(field, generator, GaussianPrior((2,)), eta=eta)
        x = generator(start)
        velocity = model.pull(x, generator=seeded(), real=real)
        assert velocity is not None
        surrogate = (x - (x + velocity).detach()).square().sum() / 2
        found = torch.autograd.grad(surrogate, list(generator.parameters()))
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_particles_reach_the_data_through_an_invertible_map() -> None:
    """Features that stretch one axis; the real samples are float32, the particles float64."""
    network = nn.Linear(2, 2, bias=False).double()
    network.weight = nn.Parameter(torch.tensor([[1.5, 0.0], [0.0, 0.7]], dtype=torch.float64))
    real = randn(400, 2, seed=1).float() * 0.5 + torch.tensor([2.0, -1.0])
    model = ParticleModel(
        InFeatures(FrechetField(), network), GaussianPrior((2,)), steps=60, eta=12.0
    )
    x = model.sample(400, start=randn(400, 2), real=real, generator=seeded())
    assert_close(x.mean(0), real.double().mean(0), rtol=0, atol=1e-3)
    assert_close(x.std(0), real.double().std(0), rtol=0, atol=1e-3)


def test_features_stay_as_they_are() -> None:
    """They are copied, not trained, and in evaluation mode whatever happens around them."""
    network = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5)).double()
    field = bound(InFeatures(DriftField(1.0), network).train(), randn(9, 3, seed=1))
    x = randn(8, 3)
    before = field(x, NOW)
    with torch.no_grad():
        network[0].weight.zero_()
    assert torch.equal(field(x, NOW), before)
    assert not [p for p in field.parameters() if p.requires_grad]


def test_a_trained_field_puts_features_into_its_network() -> None:
    network, head = features(), MLP((6,), (), 8, 1).double()
    critic = DiscriminatorField(head)
    with pytest.raises(ConfigError, match="DiscriminatorField is trained.*begins with them"):
        InFeatures(critic, network)
    inside = DiscriminatorField(Both(network, head))
    x = randn(7, 3)
    assert_close(InFeatures(critic.freeze(), network)(x, NOW), inside(x, NOW))


def test_what_is_missing_or_not_finite_is_said() -> None:
    field, x = InFeatures(DriftField(1.0), features()), randn(6, 3)
    with pytest.raises(ConfigError, match="real samples"):
        field.bind(Context())
    with pytest.raises(DataError, match="finite"):
        bound(field, torch.full((4, 3), torch.nan, dtype=torch.float64))
    with pytest.raises(NumericsError, match="left the finite numbers"):
        bound(field, x, torch.full((4, 3), torch.inf, dtype=torch.float64))
    with pytest.raises(ConfigError, match="at least two particles"):
        bound(field, x)(x[:1], NOW)
    blind = InFeatures(DriftField(1.0), Rounded())
    for count in (6, 1030):
        with pytest.raises(ConfigError, match="these have none: give a network"):
            bound(blind, x)(randn(count, 3), NOW)
    with pytest.raises(
        ValueError, match=r"a Sequential cannot be asked about points \(4, 5\): mat1"
    ):
        bound(field, randn(4, 5))
    with pytest.raises(ValueError, match=r"one row a point, \(B, ...\): got \(3, 3\) of \(6, 3\)"):
        bound(InFeatures(DriftField(1.0), Half()), x)
    with pytest.raises(TypeError, match="takes a Module, got a function"):
        InFeatures(DriftField(1.0), lambda x: x)  # type: ignore[arg-type]
