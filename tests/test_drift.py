"""The drifting field is what its paper's equations and Algorithm 2 say, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import partikel.fields.samples.drift
from conftest import randn, tensor
from partikel.errors import ConfigError
from partikel.fields import At, Context, Field
from partikel.fields.samples.drift import DriftField, Normalisation

BOTH: list[Normalisation] = ["mean shift", "batch"]


def velocity(field: Field, x: Tensor, real: Tensor, particles: Tensor | None = None) -> Tensor:
    bound = field.bind(Context(real=real, particles=particles))
    return bound(x, At(torch.zeros(len(x), dtype=x.dtype)))


def kernel(x: Tensor, y: Tensor, tau: float) -> float:
    return math.exp(-float((x - y).norm()) / tau)


def test_it_is_the_difference_of_two_mean_shifts() -> None:
    """Eqs. 8-10, over the other particles."""
    x, real, tau = randn(5, 3), randn(7, 3, seed=1) + 0.5, 0.6
    expected = torch.zeros_like(x)
    for i in range(5):
        for cloud, sign in ((real, 1), (torch.cat([x[:i], x[i + 1 :]]), -1)):
            weights = [kernel(x[i], y, tau) for y in cloud]
            shift = sum((k * (y - x[i]) for k, y in zip(weights, cloud, strict=True)), tensor(0.0))
            expected[i] += sign * shift / sum(weights)
    assert_close(velocity(DriftField(tau), x, real), expected)


def test_the_batch_is_normalised_as_algorithm_2_does() -> None:
    """Both softmaxes entry by entry, and the double sum over pairs of eq. 11."""
    x, real, tau = randn(5, 3), randn(7, 3, seed=1) + 0.5, 0.6
    targets = torch.cat([real, x])
    k = tensor([[kernel(p, y, tau) for y in targets] for p in x])
    for i in range(5):
        k[i, 7 + i] = 0  # itself
    a = tensor(
        [
            [float(k[i, j]) / math.sqrt(float(k[i].sum() * k[:, j].sum())) for j in range(12)]
            for i in range(5)
        ]
    )
    expected = torch.zeros_like(x)
    for i in range(5):
        for j in range(7):
            for m in range(5):
                expected[i] += a[i, j] * a[i, 7 + m] * (real[j] - x[m])
    assert_close(velocity(DriftField(tau, "batch"), x, real), expected)


@pytest.mark.parametrize("normalisation", BOTH)
def test_exchanging_the_laws_turns_the_field_around(normalisation: Normalisation) -> None:
    """V_{p,ρ} = -V_{ρ,p}, away from the samples; in the batch for the same x that normalise."""
    p, rho = randn(8, 2, seed=1) + 1, randn(6, 2, seed=2)
    if normalisation == "mean shift":
        x, field = randn(5, 2, seed=3), DriftField(0.7)
        there, back = velocity(field, x, p, rho), velocity(field, x, rho, p)
        assert_close(there, -back)
        assert float(there.abs().min()) > 1e-3
        assert_close(velocity(field, x, p, p), torch.zeros_like(x))
        return
    x = randn(5, 2, seed=3)
    field = DriftField(0.7, "batch")

    def drift(real: Tensor, cloud: Tensor) -> Tensor:
        """With the sums over {x} of the algorithm, where negatives come from elsewhere."""
        sums = [torch.logsumexp(-torch.cdist(y, x) / 0.7, 1) for y in (real, cloud)]
        return field._drift(x, real, cloud, (sums[0], sums[1]))

    assert_close(drift(p, rho), -drift(rho, p))
    assert_close(drift(p, p), torch.zeros_like(x))
    assert float(drift(p, rho).abs().min()) > 1e-3


@pytest.mark.parametrize("normalisation", BOTH)
def test_far_away_and_at_any_temperature_it_is_finite(normalisation: Normalisation) -> None:
    """Softmaxes of logarithms: kernels that underflow still have a ratio."""
    x, real = randn(6, 2), randn(8, 2, seed=1) + 1
    for tau, shift in ((1e-4, 0.0), (1e-3, 1e4), (1e4, 0.0)):
        v = velocity(DriftField(tau, normalisation), x, real + shift)
        assert torch.isfinite(v).all()
    cold = velocity(DriftField(1e-6), x, real)  # the nearest of each decides
    gaps = torch.cdist(x, x).fill_diagonal_(math.inf)
    nearest = real[torch.cdist(x, real).argmin(1)] - x[gaps.argmin(1)]
    assert_close(cold, nearest)
    hot = velocity(DriftField(1e8), x, real)  # the means, the particle itself left out
    others = (x.sum(0) - x) / 5
    assert_close(hot, real.mean(0) - others, rtol=1e-6, atol=1e-6)


def test_particles_that_coincide_do_not_repel() -> None:
    real, x = randn(8, 2), torch.zeros(4, 2, dtype=torch.float64)
    attraction = velocity(DriftField(0.5), x, real)
    weights = tensor([kernel(x[0], y, 0.5) for y in real])
    assert_close(attraction, (weights @ real / weights.sum()).expand(4, 2))
    assert torch.isfinite(velocity(DriftField(0.5, "batch"), x, real)).all()


@pytest.mark.parametrize("normalisation", BOTH)
def test_blocks_do_not_matter(
    normalisation: Normalisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, real = randn(40, 3), randn(30, 3, seed=1) + 1
    field = DriftField(0.7, normalisation)
    whole = velocity(field, x, real)
    monkeypatch.setattr(partikel.fields.samples.drift, "PAIRS", 150)
    assert_close(velocity(field, x, real), whole, rtol=1e-12, atol=1e-14)


def test_temperatures_add() -> None:
    x, real = randn(6, 2), randn(8, 2, seed=1) + 1
    both = DriftField(0.2) + DriftField(1.0)
    parts = [velocity(DriftField(tau), x, real) for tau in (0.2, 1.0)]
    assert_close(velocity(both, x, real), parts[0] + parts[1])


def test_a_fitted_generator_takes_the_papers_step() -> None:
    """½‖g(z) - (x + V)‖² with x + V frozen: the gradient of their loss, up to its factor 2."""
    from partikel.models import GeneratorModel
    from partikel.networks import MLP
    from partikel.priors import GaussianPrior
    from partikel.streams import Streams

    net = MLP((2,), (2,), width=8, depth=1, activation="tanh").double()
    for seed, p in enumerate(net.parameters()):
        p.data = randn(*p.shape, seed=seed)
    model = GeneratorModel(DriftField(0.5), net, GaussianPrior((2,)), eta=1.0)
    real, streams = randn(20, 2, seed=9), Streams(0)
    particles = model.particles(10, streams)
    moved = model.move(particles, streams, real).moved
    assert moved is not None
    assert_close(moved - particles.x, velocity(DriftField(0.5), particles.x, real))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_impossible_temperatures(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        DriftField(temperature)


def test_misspelt_normalisation() -> None:
    with pytest.raises(ConfigError, match="did you mean 'batch'"):
        DriftField(1.0, "bacth")  # type: ignore[arg-type]


def test_a_collapsed_cloud_is_driven_as_its_other_points_say() -> None:
    """Of points that coincide each leaves out itself, not all: Algorithm 2 with a mask by index."""
    tau, real = 0.5, randn(7, 2, seed=1)
    x = torch.cat([torch.full((6, 2), 3.0, dtype=torch.float64), randn(2, 2)])
    k = tensor([[kernel(p, y, tau) for y in torch.cat([real, x])] for p in x])
    k[torch.arange(8), 7 + torch.arange(8)] = 0
    a = k / (k.sum(1, keepdim=True) * k.sum(0)).sqrt()
    attract, repel = a[:, :7], a[:, 7:]
    expected = repel.sum(1, keepdim=True) * (attract @ real) - attract.sum(1, keepdim=True) * (
        repel @ x
    )
    for cloud in (None, x):
        assert_close(velocity(DriftField(tau, "batch"), x, real, cloud), expected)
    collapsed = velocity(DriftField(tau, "batch"), x[:6], real)
    assert collapsed.norm(dim=1).min() > 1e-3  # it does not stay
