"""The deep MMD field: a gradient, an MMD flow of its own features, and a loss that needs nothing but data."""

from __future__ import annotations

import copy
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import MIXTURE, OTHER, assert_mean, randn, seeded, tensor
from partikel.data import Batch
from partikel.errors import ConfigError
from partikel.fields import At, Context, DeepMMDField, Field, MMDField, TrainingBatch
from partikel.kernels import Kernel
from partikel.models import GeneratorModel, ParticleModel
from partikel.networks import MLP, Conditioning
from partikel.priors import GaussianPrior
from partikel.schedules import KarrasLaw, NoiseLaw, VESchedule
from partikel.streams import Streams
from partikel.training import AdamSettings, Phase, Trainer
from test_contract import mixture

LAW = KarrasLaw(0.1, 3.0)


def network(features: int = 5, seed: int = 0) -> MLP:
    net = MLP(
        (2,), (features,), width=8, depth=2, activation="tanh", conditions=Conditioning(1)
    ).double()
    for i, p in enumerate(net.parameters()):
        p.data = randn(*p.shape, seed=seed + i) / 2
    return net


class FeatureKernel(Kernel):
    """⟨φ(x, σ), φ(y, σ)⟩ at a fixed σ, as a matrix."""

    def __init__(self, net: nn.Module, sigma: float) -> None:
        super().__init__()
        self.net = net
        self.c = tensor([[sigma]]).log() / 4

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x, self.c) @ self.net(y, self.c).T


def asked(
    field: Field,
    x: Tensor,
    real: Tensor,
    sigma: Tensor | None,
    particles: Tensor | None = None,
) -> Tensor:
    return field.bind(Context(real=real, particles=particles))(x, At(torch.zeros(len(x)), sigma))


def at(sigma: float, n: int) -> Tensor:
    return tensor(sigma).expand(n)


# --- the field


def test_it_is_the_gradient_of_the_witness() -> None:
    """Pair by pair, at a level for each point; the cloud is bound."""
    net, x, real, cloud = network(), randn(4, 2), randn(5, 2, seed=1), randn(6, 2, seed=2)
    sigma = tensor([0.2, 1.0, 0.2, 2.5])
    point = x.clone().requires_grad_()
    total = tensor(0.0)
    for i in range(4):
        kernel = FeatureKernel(net, float(sigma[i]))
        total = total + kernel(point[i : i + 1], real).mean()
        total = total - kernel(point[i : i + 1], cloud).mean()
    (gradient,) = torch.autograd.grad(total, point)
    assert_close(asked(DeepMMDField(net), x, real, sigma, cloud), gradient)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_at_one_level_it_is_the_mmd_field_of_that_kernel(sigma: float) -> None:
    net, x, real = network(), randn(7, 2), randn(9, 2, seed=1) + 1
    expected = asked(MMDField(FeatureKernel(net, sigma)), x, real, None)
    assert_close(asked(DeepMMDField(net), x, real, at(sigma, 7)), expected)
    assert_close(asked(DeepMMDField(net, levels=(sigma,)), x, real, None), expected)


def test_without_a_level_it_is_the_mean_of_several() -> None:
    net, x, real = network(), randn(7, 2), randn(9, 2, seed=1) + 1
    fields = [asked(DeepMMDField(net), x, real, at(s, 7)) for s in (0.3, 2.0)]
    mean = torch.stack(fields).mean(0)
    assert_close(asked(DeepMMDField(net, levels=(0.3, 2.0)), x, real, None), mean)
    with pytest.raises(ConfigError, match="give its carrier a schedule"):
        asked(DeepMMDField(net), x, real, None)


def test_it_descends_the_mmd_of_its_features() -> None:
    """V = -P ∇ ½ ‖E_ρ φ - E_p φ‖², the particles' own terms included."""
    net, x, real = network(), randn(7, 2), randn(9, 2, seed=1) + 1
    field, sigma = DeepMMDField(net), at(0.7, 7)
    point = x.clone().requires_grad_()
    gap = field.features(point, sigma).mean(0) - field.features(real, sigma[:1]).mean(0)
    (gradient,) = torch.autograd.grad(gap.square().sum() / 2, point)
    assert_close(asked(field, x, real, sigma), -7 * gradient)


def test_at_the_target_it_vanishes_on_average() -> None:
    """Particles and data that are fresh draws of one law; of two laws, not."""
    field, points = DeepMMDField(network(), levels=(0.2, 2.0)), randn(4, 2, seed=9)

    def drawn(own: object) -> Tensor:
        laws = [(MIXTURE, 0), (own, 1)]
        draws = [
            [
                law.sample(80, generator=seeded(2 * s + k), dtype=torch.float64)  # type: ignore[attr-defined]
                for law, k in laws
            ]
            for s in range(150)
        ]
        return torch.stack([asked(field, points, p, None, rho) for p, rho in draws])

    assert_mean(drawn(MIXTURE), 0.0)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(drawn(OTHER), 0.0)


def test_blocks_of_points_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    field, x, real = DeepMMDField(network()), randn(20, 2), randn(30, 2, seed=1)
    whole = asked(field, x, real, at(1.0, 20))
    monkeypatch.setattr("partikel.fields.samples.dmmd._PASS", 7)
    assert_close(asked(field, x, real, at(1.0, 20)), whole)


# --- the loss


class Levels(NoiseLaw):
    """A law whose draws are given."""

    def __init__(self, *levels: float) -> None:
        self.levels = levels

    def sample(self, n: int, *, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        assert n == len(self.levels)
        return torch.tensor(self.levels, dtype=dtype)


def value(field: DeepMMDField, x: Tensor, seed: int = 0) -> Tensor:
    """The (B,) losses of a batch of data alone."""
    (loss,) = field.losses()
    assert loss.needs == {"real"}
    assert loss.adds_noise
    return loss.compute(TrainingBatch(Batch(x, None), None, len(x), Streams(seed))).loss


def plain(law: NoiseLaw, groups: int = 1, features: int = 5) -> DeepMMDField:
    options = {"groups": groups, "gradient_penalty": 0.0, "l2_penalty": 0.0}
    return DeepMMDField(network(features), law, **options)  # type: ignore[arg-type]


def test_the_loss_is_an_enumerated_u_statistic() -> None:
    """-MMD²_u of each group, as the mean over all pairs of different pairs (x_i, y_i), (x_j, y_j)."""
    field, x = plain(Levels(0.5, 2.0), groups=2), randn(9, 2)
    noise = torch.randn(9, 2, generator=Streams(3).noise, dtype=torch.float64)
    expected, total = tensor(0.0), 0
    for sigma, rows in ((0.5, range(5)), (2.0, range(5, 9))):
        kernel, pairs = FeatureKernel(field.network, sigma), list(permutations(rows, 2))
        y = x + sigma * noise
        for i, j in pairs:
            a, b, c, d = x[i : i + 1], x[j : j + 1], y[i : i + 1], y[j : j + 1]
            h = kernel(a, b) + kernel(c, d) - kernel(a, d) - kernel(c, b)
            expected = expected - h[0, 0] * len(rows) / len(pairs)
        total += len(rows)
    assert_close(value(field, x, seed=3).mean(), expected / total)


def test_the_loss_is_unbiased() -> None:
    """Over batches of four points of a law on three, with noise on them, against large samples."""
    places, sigma = tensor([[0.0, 1.0], [2.0, -1.0], [-1.0, -1.0]]), 0.8
    field = plain(Levels(sigma))
    draws = [
        value(field, places[torch.randint(3, (4,), generator=seeded(s))], seed=s).mean()
        for s in range(1000)
    ]
    many = places.repeat(60_000, 1)
    noised = many + sigma * randn(len(many), 2, seed=5)
    with torch.no_grad():
        gap = field.features(places, tensor([sigma])).mean(0)
        gap = gap - field.features(noised, tensor([sigma])).mean(0)
    assert_mean(torch.stack(draws), -gap.square().sum())


def test_the_penalties_are_what_they_say() -> None:
    """λ_l2 (‖φ(x)‖² + ‖φ(x_σ)‖²) and λ_∇ (‖∇f‖ - 1)², f the witness of the batch, at interpolates."""
    x, law = randn(6, 2), Levels(1.5)
    base = value(plain(law), x)
    net, streams = network(), Streams(0)
    noised = x + 1.5 * torch.randn(6, 2, generator=streams.noise, dtype=torch.float64)
    share = torch.rand(6, 1, generator=streams.noise, dtype=torch.float64)
    field = DeepMMDField(net, law, groups=1, gradient_penalty=0.0, l2_penalty=0.3)
    clean, dirty = (field.features(points, tensor([1.5])) for points in (x, noised))
    size = (clean.square() + dirty.square()).sum(1)
    assert_close(value(field, x), base + 0.3 * size)
    field = DeepMMDField(net, law, groups=1, gradient_penalty=2.0, l2_penalty=0.0)
    point = (noised + share * (x - noised)).requires_grad_()
    kernel = FeatureKernel(net, 1.5)
    witness = kernel(point, x).mean(1) - kernel(point, noised).mean(1)
    (gradient,) = torch.autograd.grad(witness.sum(), point)
    assert_close(value(field, x), base + 2 * (gradient.norm(dim=1) - 1).square())
    slope = torch.autograd.grad(value(field, x).mean(), list(net.parameters()))
    assert all(part.isfinite().all() for part in slope)


def test_small_batches_have_fewer_levels() -> None:
    field = DeepMMDField(network(), LAW, groups=8)
    assert value(field, randn(5, 2)).shape == (5,)
    with pytest.raises(ConfigError, match="at least 2 points"):
        value(field, randn(1, 2))


# --- in the carriers


@pytest.mark.parametrize("carrier", ["particles", "generator"])
def test_nothing_is_simulated_in_training(carrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both carriers train the features without asking for particles, and then sample."""
    field = DeepMMDField(network().float(), LAW, levels=(0.3, 1.0))
    phases = [Phase("features", batch=16)]
    if carrier == "particles":
        schedule = VESchedule(3.0, 0.1)
        model = ParticleModel(field, GaussianPrior((2,)), steps=3, eta=0.1, schedule=schedule)
    else:
        model = GeneratorModel(field, MLP((4,), (2,), width=8, depth=1), GaussianPrior((4,)))
        phases.append(Phase("generator", batch=16))

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("particles were asked for")

    monkeypatch.setattr(type(model), "particles", refuse)
    before = copy.deepcopy(field.network.state_dict())
    for _ in Trainer(model, mixture(), tuple(phases), iterations=3, seed=0).run():
        pass
    assert not all(torch.equal(v, before[k]) for k, v in field.network.state_dict().items())
    x = model.sample(5, generator=seeded(), real=randn(20, 2).float())
    assert x.shape == (5, 2)
    assert x.isfinite().all()


def test_training_tells_noised_from_clean_data() -> None:
    """The MMD of fresh data to their noised copies grows, in units of the features' size."""
    x = mixture().draw(400, generator=seeded(7), dtype=torch.float64).x
    field = DeepMMDField(network(16), LAW)
    probe = plain(Levels(2.0), features=16)
    probe.network = field.network

    def mmd2() -> float:
        with torch.no_grad():
            size = field.features(x, tensor([2.0])).square().sum(1).mean()
        return float(-value(probe, x).mean().detach() / size)

    before = mmd2()
    model = ParticleModel(field, GaussianPrior((2,)), steps=2).double()
    phase = Phase("features", AdamSettings(lr=1e-2), 128)
    for _ in Trainer(model, mixture(), (phase,), iterations=60, seed=0).run():
        pass
    assert mmd2() > 5 * max(before, 0.001)


def test_a_checkpoint_brings_the_field_back() -> None:
    x, real = randn(6, 2), randn(8, 2, seed=1)
    field, other = (DeepMMDField(network(seed=s), LAW) for s in (0, 50))
    expected = asked(field, x, real, at(0.5, 6))
    assert not torch.allclose(asked(other, x, real, at(0.5, 6)), expected)
    other.load_state_dict(field.state_dict())
    assert torch.equal(asked(other, x, real, at(0.5, 6)), expected)
    bound = field.bind(Context(real=real))
    assert isinstance(bound, DeepMMDField)
    assert bound.network is field.network  # what is trained on goes on in what was bound
    assert bound.losses()[0].name == field.losses()[0].name


def test_what_is_frozen_or_has_no_law_does_not_learn() -> None:
    assert DeepMMDField(network()).losses() == ()
    frozen = DeepMMDField(network(), LAW).freeze()
    assert frozen.losses() == frozen.bind(Context(real=randn(4, 2))).losses() == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (1.0, 0.0)}, "DeepMMDField.levels="),
        ({"groups": 0}, "DeepMMDField.groups="),
        ({"l2_penalty": -1.0}, "DeepMMDField.l2_penalty="),
        ({"gradient_penalty": -1.0}, "of at least 0"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DeepMMDField(network(), **options)
