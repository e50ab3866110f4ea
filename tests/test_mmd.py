"""The MMD field is the gradient of an independent MMD, and its flow descends it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import partikel.kernels
from conftest import GAUSSIAN, OTHER, assert_mean, randn, seeded, slope, tensor
from partikel.errors import ConfigError
from partikel.fields import At, Context, Field
from partikel.fields.base import Weight
from partikel.fields.samples.mmd import MMDField
from partikel.kernels import (
    IMQKernel,
    Kernel,
    LaplaceKernel,
    MultiRBFKernel,
    NTKKernel,
    RBFKernel,
    RieszKernel,
)
from partikel.metrics import energy_distance, mmd2
from partikel.networks import MLP


def network() -> MLP:
    net = MLP((2,), (), width=8, depth=2, activation="tanh").double()
    for seed, p in enumerate(net.parameters()):
        p.data = randn(*p.shape, seed=seed) / 2
    return net


KERNELS: dict[str, Kernel] = {
    "rbf": RBFKernel(0.7),
    "multi-rbf": MultiRBFKernel(0.7),
    "laplace": LaplaceKernel(0.7),
    "imq": IMQKernel(0.7),
    "energy": RieszKernel(),
    "riesz": RieszKernel(1.5),
    "ntk": NTKKernel(network()),
}


def squared_mmd(kernel: Kernel, x: Tensor, real: Tensor) -> Tensor:
    """MMD² as a V-statistic, pair by pair."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        pairs = [kernel(p[None], q[None])[0, 0] for p in a for q in b]
        return torch.stack(pairs).mean()

    return mean(x, x) + mean(real, real) - 2 * mean(x, real)


def velocity(field: Field, x: Tensor, real: Tensor, particles: Tensor | None = None) -> Tensor:
    bound = field.bind(Context(real=real, particles=particles, generator=seeded()))
    return bound(x, At(torch.zeros(len(x), dtype=x.dtype)))


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_the_gradient_of_half_the_squared_mmd(name: str) -> None:
    """V = -P ∇ ½ MMD², the particles' own terms included."""
    x, real = randn(5, 2), randn(7, 2, seed=1) + 0.5
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(squared_mmd(KERNELS[name], point, real), point)
    assert_close(velocity(MMDField(KERNELS[name]), x, real), -5 * gradient / 2)


def test_the_functional_is_the_one_that_is_measured() -> None:
    """Dissipation against the library's own (unbiased) estimates: the offsets do not move."""
    x, real = randn(40, 2), randn(50, 2, seed=1) + 0.5
    eps = 1e-5
    for kernel, measure in (
        (RieszKernel(), energy_distance),
        (MultiRBFKernel(1.0), mmd2),
    ):
        v = velocity(MMDField(kernel), x, real)
        change = (measure(x + eps * v, real) - measure(x - eps * v, real)) / (4 * eps)
        # the U-statistic weighs pairs of particles by P²/P(P-1)
        extra = kernel.gradient(x, x) / 39
        expected = -(v * (v - extra)).sum(1).mean()
        assert change == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_the_flow_dissipates_the_functional(name: str) -> None:
    """A step of size η changes ½ MMD² by -η E‖V‖² + O(η²)."""
    kernel, x, real = KERNELS[name], randn(30, 2), randn(40, 2, seed=1) + 0.5

    def functional(points: Tensor) -> Tensor:
        parts = [(points, points, 1), (real, real, 1), (points, real, -2)]
        return sum((w * kernel(a, b).mean() for a, b, w in parts), tensor(0.0)).detach() / 2

    v = velocity(MMDField(kernel), x, real)
    power = v.square().sum(1).mean()
    etas = tensor([0.02, 0.01, 0.005, 0.0025])
    errors = torch.stack([functional(x + e * v) - functional(x) + e * power for e in etas])
    assert slope(etas, errors.abs()) == pytest.approx(2, abs=0.1)


def test_gaussians_have_a_closed_form() -> None:
    """E_{y~N(m, C)} of an RBF kernel is one of covariance C + h²I: the field of the laws themselves."""
    h, points, n = 0.9, randn(4, 2, seed=3), 400

    def mean(x: Tensor, law: object) -> Tensor:
        m, c = law.mean, law.covariances[0] + h**2 * torch.eye(2)  # type: ignore[attr-defined]
        gap = torch.linalg.solve(c, (x - m).T).T
        density = (-((x - m) * gap).sum(1) / 2).exp() / torch.linalg.det(c).sqrt() * h**2
        return -density[:, None] * gap

    expected = mean(points, GAUSSIAN) - mean(points, OTHER)
    draws = [
        velocity(
            MMDField(RBFKernel(h)),
            points,
            GAUSSIAN.sample(n, generator=seeded(2 * s), dtype=torch.float64),
            OTHER.sample(n, generator=seeded(2 * s + 1), dtype=torch.float64),
        )
        for s in range(60)
    ]
    assert_mean(torch.stack(draws), expected)


@pytest.mark.parametrize("name", KERNELS)
def test_tiles_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, real = randn(300, 2), randn(500, 2, seed=1)
    whole = velocity(MMDField(KERNELS[name]), x, real)
    monkeypatch.setattr(partikel.kernels, "TILE", 2**14)
    monkeypatch.setattr(partikel.kernels, "_PASS", 64)
    assert_close(velocity(MMDField(KERNELS[name]), x, real), whole, rtol=1e-12, atol=1e-14)


def test_injected_noise_moves_where_the_field_is_asked() -> None:
    """V(x + β ξ), of the cloud as it is; β may depend on time."""
    x, real = randn(9, 2), randn(20, 2, seed=1)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    plain = MMDField(RieszKernel()).bind(Context(real=real, particles=x))
    for noise, beta in ((0.3, torch.full_like(t, 0.3)), (lambda t: 1 - t, 1 - t)):
        noisy = MMDField(RieszKernel(), noise=noise)
        bound = noisy.bind(Context(real=real, generator=seeded(4)))
        assert_close(bound(x, At(t)), plain(x + beta[:, None] * randn(9, 2, seed=4), At(t)))


def test_noise_brings_back_particles_that_the_field_lost() -> None:
    """From one of two modes repulsion throws some out of reach of the kernel; noise finds them."""
    real = torch.cat([randn(50, 1), randn(50, 1, seed=2) + 40]) / 10
    start = randn(100, 1, seed=1) / 10

    def flow(noise: Weight) -> float:
        field = MMDField(RBFKernel(1.0), noise=noise)
        bound = field.bind(Context(real=real, generator=seeded()))
        x = start
        for i in range(1000):
            x = x + bound(x, At(tensor(i / 1000)))
        return energy_distance(x, real)

    assert flow(0.0) > 0.05
    assert flow(lambda t: 2 * (1 - t)) < 0


def test_the_median_is_that_of_what_is_bound() -> None:
    x, real = tensor([[0.0], [9.0]]), tensor([[1.0], [2.0], [4.0]])  # distances 1, 2, 3 of the real
    field, t = MMDField(LaplaceKernel()), torch.zeros(2)
    apart = field.bind(Context(real=real))
    fixed = MMDField(LaplaceKernel(2.0)).bind(Context(real=real))
    assert_close(apart(x, At(t)), fixed(x, At(t)))
    both = field.bind(
        Context(real=real, particles=x)
    )  # 1 2 4 9 1 3 8 2 7 5: their lower median is 3
    fixed = MMDField(LaplaceKernel(3.0)).bind(Context(real=real, particles=x))
    assert_close(both(x, At(t)), fixed(x, At(t)))
    with pytest.raises(ConfigError, match="a MMDField compares particles with real samples"):
        field(x, At(t))


def test_errors() -> None:
    with pytest.raises(ConfigError, match="MMDField.noise="):
        MMDField(RieszKernel(), noise=-0.1)
    with pytest.raises(ConfigError, match="MMDField.noise="):
        MMDField(RieszKernel(), noise=math.nan)
