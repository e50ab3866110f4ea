"""What all fields of samples have in common: equivariances, binding, errors, both carriers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import GAUSSIAN, MIXTURE, assert_mean, randn, seeded, slope, tensor
from partikel.data.synthetic import gaussians
from partikel.errors import ConfigError, DataError, NumericsError
from partikel.fields import At, Context, Field, FrechetField, JKOField
from partikel.fields.samples.drift import DriftField
from partikel.fields.samples.mmd import MMDField
from partikel.fields.samples.transport import SinkhornField, SlicedWassersteinField
from partikel.kernels import LaplaceKernel, MultiRBFKernel, RBFKernel, RieszKernel
from partikel.metrics import energy_distance, mode_statistics
from partikel.models import GeneratorModel, ParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.targets import GaussianMixture
from partikel.training import AdamSettings, Phase, Trainer

FIELDS: dict[str, Callable[[], Field]] = {
    "rbf": lambda: MMDField(RBFKernel(0.8)),
    "rbf-median": lambda: MMDField(RBFKernel()),
    "multi-rbf": lambda: MMDField(MultiRBFKernel(0.8)),
    "laplace": lambda: MMDField(LaplaceKernel(0.8)),
    "energy": lambda: MMDField(RieszKernel()),
    "noisy": lambda: MMDField(RieszKernel(), noise=0.3),
    "sliced": lambda: SlicedWassersteinField(32),
    "sinkhorn": lambda: SinkhornField(1.2, tolerance=1e-4),
    "drift": lambda: DriftField(0.8),
    "drift-batch": lambda: DriftField(0.8, "batch"),
    "frechet": lambda: FrechetField(),
    "jko": lambda: JKOField(MMDField(RBFKernel(2.0)), 0.5, steps=3),
}


@pytest.fixture(params=FIELDS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def velocity(
    field: Field, x: Tensor, real: Tensor, particles: Tensor | None = None, seed: int = 0
) -> Tensor:
    bound = field.bind(Context(real=real, particles=particles, generator=seeded(seed)))
    return bound(x, At(torch.zeros(len(x), dtype=x.dtype)))


def test_permuted_particles_have_permuted_velocities(name: str) -> None:
    """And the order of the real samples does not matter."""
    x, real = randn(12, 3), randn(20, 3, seed=1) + 1
    if name == "noisy":
        pytest.skip("its draws belong to places in the batch")
    order = torch.randperm(12, generator=seeded(5))
    moved = velocity(FIELDS[name](), x, real)
    assert_close(velocity(FIELDS[name](), x[order], real.flip(0)), moved[order])


def test_a_shift_of_everything_changes_nothing(name: str) -> None:
    x, real = randn(12, 3), randn(20, 3, seed=1)
    shift = torch.tensor([3.0, -2.0, 7.0], dtype=torch.float64)
    moved = velocity(FIELDS[name](), x, real)
    assert_close(velocity(FIELDS[name](), x + shift, real + shift), moved, rtol=1e-6, atol=1e-9)


def test_a_rotation_rotates(name: str) -> None:
    """Exactly, or for random lines and draws in the mean."""
    x, real = randn(9, 2), randn(9, 2, seed=1) + 1
    turn = torch.linalg.qr(randn(2, 2, seed=2)).Q
    if FIELDS[name]().draws:
        draws = range(300)
        straight = [velocity(FIELDS[name](), x, real, seed=s) for s in draws]
        turned = [velocity(FIELDS[name](), x @ turn.T, real @ turn.T, seed=-1 - s) for s in draws]
        pairs = zip(straight, turned, strict=True)
        assert_mean(torch.stack([b - a @ turn.T for a, b in pairs]), 0.0)
    else:
        moved = velocity(FIELDS[name](), x, real)
        assert_close(velocity(FIELDS[name](), x @ turn.T, real @ turn.T), moved @ turn.T)


def test_bound_to_the_cloud_it_is_a_function_of_points(name: str) -> None:
    """Asked in pieces it answers the same, and what it answers is what the cloud itself would do."""
    x, real = randn(12, 3), randn(20, 3, seed=1) + 1
    field = FIELDS[name]()
    apart = field.bind(Context(real=real, generator=seeded()))
    assert apart.needs == {"particles"}
    t = torch.zeros(12, dtype=torch.float64)
    whole = velocity(field, x, real, particles=x)
    if name != "rbf-median":  # whose bandwidth then sees the cloud
        assert_close(whole, apart(x, At(t)))
    bound = field.bind(Context(real=real, particles=x, generator=seeded()))
    assert not bound.needs
    if not field.draws:
        assert_close(torch.cat([bound(x[i : i + 1], At(t[:1])) for i in range(12)]), whole)
    again = bound.bind(Context(generator=seeded()))  # as a carrier without real samples does
    assert_close(again(x, At(t)), whole)


def test_data_of_any_shape(name: str) -> None:
    x, real = randn(6, 8), randn(10, 8, seed=1) + 1
    images = velocity(FIELDS[name](), x.view(6, 2, 2, 2), real.view(10, 2, 2, 2))
    assert_close(images, velocity(FIELDS[name](), x, real).view(6, 2, 2, 2))


def test_float32_is_float64_rounded(name: str) -> None:
    x, real = randn(30, 2), randn(50, 2, seed=1) + 1
    if FIELDS[name]().draws:
        pytest.skip("the draws of the two precisions differ")
    single = velocity(FIELDS[name](), x.float(), real.float())
    assert single.dtype == torch.float32
    double = velocity(FIELDS[name](), x, real)
    assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


def at_target(field: Field, n: int, draws: int) -> Tensor:
    """Velocities at fixed points between two fresh draws of n of one law, (draws, 5, 2)."""
    points = randn(5, 2, seed=9)

    def fresh(seed: int) -> Tensor:
        return MIXTURE.sample(n, generator=seeded(seed), dtype=torch.float64)

    pairs = [(fresh(2 * s), fresh(2 * s + 1)) for s in range(draws)]
    return torch.stack([velocity(field, points, *pair, seed=s) for s, pair in enumerate(pairs)])


@pytest.mark.parametrize("kind", [k for k in FIELDS if k not in ("sliced", "sinkhorn")])
def test_at_the_target_nothing_is_driven_on_average(kind: str) -> None:
    """Exactly, by exchange of the two draws; a shifted law is noticed."""
    assert_mean(at_target(FIELDS[kind](), 60, 200), 0.0)
    points = randn(5, 2, seed=9)
    clouds = [MIXTURE.sample(60, generator=seeded(s), dtype=torch.float64) for s in range(80)]
    moved = [velocity(FIELDS[kind](), points, clouds[s] + 1, clouds[s + 40]) for s in range(40)]
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(torch.stack(moved), 0.0)


@pytest.mark.parametrize("kind", ["sliced", "sinkhorn"])
def test_at_the_target_transport_vanishes_as_clouds_grow(kind: str) -> None:
    """At a point it is biased (a cloud is closer to itself than to a fresh draw): with it it goes."""
    sizes = (30, 120, 480)
    power = [float(at_target(FIELDS[kind](), n, 12).square().mean().sqrt()) for n in sizes]
    assert slope(tensor(sizes), tensor(power)) < -0.35


def test_particles_go_to_the_data(name: str) -> None:
    """A far cloud moves towards the data, one displaced cloud against the displacement."""
    real = GAUSSIAN.sample(200, generator=seeded(), dtype=torch.float64)
    x = GAUSSIAN.sample(200, generator=seeded(1), dtype=torch.float64) + 1.0
    assert (velocity(FIELDS[name](), x, real).mean(0) < 0).all()


@pytest.mark.parametrize("what", ["noisy", "sliced"])
def test_the_same_bound_field_draws_anew(what: str) -> None:
    field = FIELDS[what]()
    bound = field.bind(Context(real=randn(9, 2) + 1, generator=seeded()))
    x, t = randn(7, 2, seed=1), torch.zeros(7)
    assert not torch.equal(bound(x, At(t)), bound(x, At(t)))


def test_errors(name: str) -> None:
    field, x, real = FIELDS[name](), randn(6, 2), randn(8, 2)
    t = torch.zeros(6)
    with pytest.raises(ConfigError, match="compares particles with real samples: pass some"):
        field(x, At(t))
    for nothing in (None, real[:0]):
        with pytest.raises(ConfigError, match="pass some"):
            field.bind(Context(real=nothing, generator=seeded()))
    with pytest.raises(ConfigError, match="two particles, got 1"):
        velocity(field, x[:1], real)
    with pytest.raises(ConfigError, match="two particles, got 1"):
        field.bind(Context(real=real, particles=x[:1], generator=seeded()))
    for bad in (math.nan, math.inf):
        with pytest.raises(NumericsError, match="finite"):
            velocity(field, x.index_fill(0, torch.tensor([2]), bad), real)
        with pytest.raises(NumericsError, match="finite"):
            velocity(field, x, real, particles=x.index_fill(0, torch.tensor([2]), bad))
        with pytest.raises(DataError, match="finite"):
            velocity(field, x, real.index_fill(0, torch.tensor([2]), bad))
    with pytest.raises(ValueError, match="differ"):
        velocity(field, x, randn(8, 3))
    if field.draws:
        with pytest.raises(ConfigError, match="draws random numbers: bind it first"):
            field.bind(Context(real=real))(x, At(t))


def test_a_frozen_field_stays_frozen(name: str) -> None:
    field = FIELDS[name]().freeze()
    bound = field.bind(Context(real=randn(4, 2), generator=seeded()))
    assert bound.frozen
    assert bound.losses() == field.losses() == ()


def test_a_particle_model_sees_its_whole_cloud() -> None:
    """Training particles of a sum with a learned field are simulated together, not truncated."""
    model = ParticleModel(MMDField(RieszKernel()), GaussianPrior((2,)), steps=5, eta=2.0)
    x, real = randn(10, 2), randn(20, 2, seed=1) + 2
    states = list(model.stream(x, generator=seeded(), real=real))
    expected = x
    for _ in range(5):
        expected = expected + 0.2 * 2.0 * velocity(MMDField(RieszKernel()), expected, real)
    assert_close(states[-1].x, expected)


# --- the five Gaussians of the paper ---

# Field, strength and steps: the flow runs for a time eta.
FLOWS: dict[str, tuple[Field, float, int]] = {
    "energy": (MMDField(RieszKernel()), 60.0, 120),
    "laplace": (MMDField(LaplaceKernel(2.0)), 200.0, 200),
    "multi-rbf": (MMDField(MultiRBFKernel(1.0)), 150.0, 150),
    "sliced": (SlicedWassersteinField(32), 30.0, 60),
    "sinkhorn": (SinkhornField(0.5, iterations=5, tolerance=1e-2), 10.0, 12),
    "drift": (DriftField(0.5), 30.0, 40),
}


def covers(x: Tensor) -> tuple[int, float]:
    """Modes covered, and the energy distance to fresh data."""
    target = gaussians().target
    assert isinstance(target, GaussianMixture)
    fresh = target.sample(4000, generator=seeded(99), dtype=x.dtype)
    modes = mode_statistics(x, target.means, target.stds, target.weights)
    return modes.covered, energy_distance(x, fresh)


@pytest.mark.parametrize("flow", FLOWS)
def test_free_particles_cover_the_five_gaussians(flow: str) -> None:
    field, eta, steps = FLOWS[flow]
    real = gaussians().draw(600, generator=seeded()).x
    model = ParticleModel(field, GaussianPrior((2,)), steps=steps, eta=eta)
    x = model.sample(600, generator=seeded(1), real=real)
    modes, energy = covers(x)
    assert modes == 5
    assert energy < 0.05


TRAINED: dict[str, Field] = {
    "energy": MMDField(RieszKernel()),
    "sliced": SlicedWassersteinField(32),
    "sinkhorn": SinkhornField(0.7, iterations=3, tolerance=1e-2),
    "drift": DriftField(0.5),
}


@pytest.mark.parametrize(
    "flow",
    [pytest.param(n, marks=pytest.mark.slow if n == "sinkhorn" else []) for n in TRAINED],
)
def test_a_generator_covers_the_five_gaussians(flow: str) -> None:
    settings = NetworkSettings(kind="mlp", width=128, depth=3)
    generator = build_network(settings, "generator", shape=(2,), latent=2, generator=seeded())
    model = GeneratorModel(TRAINED[flow], generator, GaussianPrior((2,)))
    phase = Phase("generator", batch=256, optimizer=AdamSettings(lr=1e-3))
    for _ in Trainer(model, gaussians(), (phase,), iterations=800, seed=0).run():
        pass
    modes, energy = covers(model.sample(4000, generator=seeded(1)))
    assert modes == 5
    assert energy < 0.05
