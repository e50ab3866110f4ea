"""Sliced Wasserstein and Sinkhorn fields against POT, finite differences and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import partikel.fields.samples.transport
from conftest import GAUSSIAN, MIXTURE, OTHER, assert_mean, randn, seeded, slope, tensor
from partikel.errors import ConfigError
from partikel.fields import At, Context, Field
from partikel.fields.samples.transport import SinkhornField, SlicedWassersteinField, _barycentres
from partikel.metrics import wasserstein2

POT: Any = pytest.importorskip("ot", reason="needs the extra 'transport'")


def velocity(
    field: Field, x: Tensor, real: Tensor, particles: Tensor | None = None, seed: int = 0
) -> Tensor:
    bound = field.bind(Context(real=real, particles=particles, generator=seeded(seed)))
    return bound(x, At(torch.zeros(len(x), dtype=x.dtype)))


# --- sliced Wasserstein ---


def lines(count: int, dim: int, seed: int = 0) -> Tensor:
    """What the field draws."""
    drawn = torch.randn(count, dim, generator=seeded(seed), dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def half_sw2(x: Tensor, real: Tensor, thetas: Tensor) -> Tensor:
    """½ SW2² by POT, line by line."""
    values = [POT.wasserstein_1d(x @ theta, real @ theta, p=2) for theta in thetas]
    return torch.stack(values).mean() / 2


@pytest.mark.parametrize("count", [8, 16, 5, 13])
def test_sliced_is_the_gradient_of_pots_distance(count: int) -> None:
    """V = -P ∇ ½ SW2², for as many, for more and for fewer real samples than particles."""
    x, real = randn(8, 3), randn(count, 3, seed=1) + 0.5
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(half_sw2(point, real, lines(10, 3)), point)
    assert_close(velocity(SlicedWassersteinField(10), x, real), -8 * gradient)


@pytest.mark.parametrize("count", [12, 30])
def test_the_sliced_flow_dissipates_its_functional(count: int) -> None:
    """Along fixed lines ½ SW2² is quadratic until ranks change: dF = -η E‖V‖² + O(η²)."""
    x, real, thetas = randn(12, 2), randn(count, 2, seed=1) + 0.5, lines(10, 2)
    v = velocity(SlicedWassersteinField(10), x, real)
    etas = tensor([1e-3, 5e-4, 2.5e-4])
    start, power = half_sw2(x, real, thetas), v.square().sum(1).mean()
    steps = torch.stack([half_sw2(x + e * v, real, thetas) - start + e * power for e in etas])
    assert slope(etas, steps.abs()) == pytest.approx(2, abs=0.05)


def test_a_whole_step_along_an_axis_arrives() -> None:
    """On one line the field is the whole way: sorted particles become sorted data."""
    x, real = randn(20, 1), randn(20, 1, seed=1)
    moved = x + velocity(SlicedWassersteinField(3), x, real)
    assert_close(moved.sort(0).values, real.sort(0).values)
    fewer = x + velocity(SlicedWassersteinField(3), x, real[:10])  # each twice
    assert_close(fewer.sort(0).values, real[:10].sort(0).values.repeat_interleave(2, 0))


def test_sliced_is_unbiased_over_lines() -> None:
    """Few lines, often, against many lines once."""
    x, real = randn(9, 2), randn(14, 2, seed=1) + 1
    angle = torch.arange(4000, dtype=torch.float64) * torch.pi / 4000
    thetas = torch.stack([angle.cos(), angle.sin()], 1)
    point = x.clone().requires_grad_()
    # POT sorts each line: all of them together
    places, goals = point @ thetas.T, real @ thetas.T
    total = POT.wasserstein_1d(places, goals, p=2).mean() / 2
    (gradient,) = torch.autograd.grad(total, point)
    draws = [velocity(SlicedWassersteinField(2), x, real, seed=s) for s in range(400)]
    assert_mean(torch.stack(draws), -9 * gradient)


@pytest.mark.parametrize("dim", [2, 5])
def test_a_shift_of_the_cloud_is_driven_back(dim: int) -> None:
    """Displaced by v, every particle is driven by -E θθᵀ v = -v/D."""
    real = randn(40, dim)
    shift = torch.arange(1.0, dim + 1, dtype=torch.float64)
    draws = [velocity(SlicedWassersteinField(4), real + shift, real, seed=s) for s in range(300)]
    assert_mean(torch.stack(draws), (-shift / dim).expand(40, dim), errors=5.5)


def test_between_bound_particles_it_is_interpolated() -> None:
    """On a line: linearly between the particles, with the last one's way beyond them."""
    cloud, real = tensor([[3.0], [0.0], [1.0]]), tensor([[2.0], [3.0], [7.0]])
    # 0 -> 2, 1 -> 3, 3 -> 7
    points = tensor([[-5.0], [0.0], [0.25], [1.0], [2.0], [3.0], [9.0]])
    expected = tensor([[2.0], [2.0], [2.0], [2.0], [3.0], [4.0], [4.0]])
    assert_close(velocity(SlicedWassersteinField(4), points, real, particles=cloud), expected)


def test_particles_that_coincide() -> None:
    """They share the goals between them, and nothing breaks."""
    real, x = randn(6, 2), torch.zeros(4, 2, dtype=torch.float64)
    x[3] = 1
    free = velocity(SlicedWassersteinField(16), x, real)
    bound = velocity(SlicedWassersteinField(16), x, real, particles=x)
    assert torch.isfinite(free).all()
    assert torch.isfinite(bound).all()
    assert_close(free.mean(0), velocity(SlicedWassersteinField(16), x, real).mean(0))


@pytest.mark.parametrize("count", [60, 45])
def test_blocks_of_lines_do_not_matter(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, real = randn(60, 3), randn(count, 3, seed=1)
    whole = velocity(SlicedWassersteinField(10), x, real)
    monkeypatch.setattr(partikel.fields.samples.transport, "PAIRS", 150)
    assert_close(velocity(SlicedWassersteinField(10), x, real), whole, rtol=1e-12, atol=1e-14)


# --- Sinkhorn ---


def converged(blur: float) -> SinkhornField:
    return SinkhornField(blur, iterations=5000, tolerance=1e-13)


def plan(x: Tensor, y: Tensor, blur: float) -> Tensor:
    """POT's entropic plan for the cost ½‖x - y‖²."""
    cost = (x[:, None] - y).square().sum(2) / 2
    a, b = (torch.full((len(z),), 1 / len(z), dtype=torch.float64) for z in (x, y))
    return POT.bregman.sinkhorn_log(a, b, cost, blur**2, numItermax=20_000, stopThr=1e-12)


def transport_cost(x: Tensor, y: Tensor, blur: float) -> Tensor:
    """OT_ε: the cost of POT's plan, and ε times its relative entropy."""
    pi = plan(x, y, blur)
    cost = (x[:, None] - y).square().sum(2) / 2
    entropy = (pi * (pi * len(x) * len(y)).clamp(min=1e-300).log()).sum()
    return (pi * cost).sum() + blur**2 * entropy


def divergence(x: Tensor, y: Tensor, blur: float) -> Tensor:
    """S_ε up to what does not depend on x."""
    return transport_cost(x, y, blur) - transport_cost(x, x, blur) / 2


@pytest.mark.parametrize("blur", [0.5, 1.5])
def test_sinkhorn_is_the_difference_of_pots_barycentres(blur: float) -> None:
    x, real = randn(9, 2), randn(14, 2, seed=1) + 0.5
    forth = plan(x, real, blur) @ real * 9
    back = plan(x, x, blur) @ x * 9
    assert_close(velocity(converged(blur), x, real), forth - back, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("blur", [1.0, 2.0])
def test_sinkhorn_is_the_gradient_of_the_divergence(blur: float) -> None:
    """V = -P ∇S_ε by finite differences of POT's value, the potentials' gradient included."""
    x, real, h = randn(4, 2), randn(5, 2, seed=1) + 0.5, 1e-4
    gradient = torch.zeros_like(x)
    for i in range(4):
        for d in range(2):
            step = torch.zeros_like(x)
            step[i, d] = h
            ahead, behind = (divergence(x + s * step, real, blur) for s in (1, -1))
            gradient[i, d] = (ahead - behind) / (2 * h)
    assert_close(velocity(converged(blur), x, real), -4 * gradient, rtol=1e-5, atol=1e-6)


def test_the_sinkhorn_flow_dissipates_the_divergence() -> None:
    x, real = randn(12, 2), randn(15, 2, seed=1) + 0.5
    v = velocity(converged(0.8), x, real)
    start, power = divergence(x, real, 0.8), v.square().sum(1).mean()
    etas = tensor([0.1, 0.05, 0.025])
    steps = [divergence(x + e * v, real, 0.8) - start + e * power for e in etas]
    assert slope(etas, torch.stack(steps).abs()) == pytest.approx(2, abs=0.1)


def test_a_large_blur_sees_the_means_only() -> None:
    x, real = randn(10, 3), randn(15, 3, seed=1) + 2
    v = velocity(SinkhornField(300.0), x, real)
    assert_close(v, (real.mean(0) - x.mean(0)).expand(10, 3), rtol=1e-3, atol=1e-3)


def test_a_small_blur_is_exact_transport() -> None:
    """One whole step arrives at the data by the cheapest way, which is not to the nearest."""
    real = 2 * torch.cartesian_prod(*[torch.arange(3, dtype=torch.float64)] * 2)
    goals = real[torch.randperm(9, generator=seeded())]
    x = goals + tensor([1.3, 0.0]) + randn(9, 2) / 10
    v = velocity(SinkhornField(0.15), x, real)
    assert_close(x + v, goals, rtol=0, atol=1e-4)
    assert v.square().sum(1).mean().sqrt() == pytest.approx(wasserstein2(x, real), rel=1e-4)


def test_two_gaussians_have_a_closed_form() -> None:
    """In one dimension, with equal variances, the entropic maps are parallel: V is the displacement."""
    real = GAUSSIAN.sample(300, generator=seeded(), dtype=torch.float64)[:, :1]
    x = real + 1.5
    assert_close(velocity(converged(0.7), x, real), torch.full_like(x, -1.5))


@pytest.mark.parametrize("iterations", [1, 10, 1000])
def test_sinkhorn_stands_still_at_the_data(iterations: int) -> None:
    """Converged or not: whatever is wrong with one map is wrong with the other."""
    x = OTHER.sample(30, generator=seeded(), dtype=torch.float64)
    v = velocity(SinkhornField(0.2, iterations=iterations), x, x.flip(0))
    assert_close(v, torch.zeros_like(x), rtol=0, atol=1e-9)


def test_two_batches_are_unbiased_and_one_is_not() -> None:
    """At the target, transport to the data and to a second cloud differ by chance only (W-Flow)."""
    field, points, eps = SinkhornField(0.8, iterations=20), randn(5, 2, seed=9), 0.8**2
    one, two = [], []
    for s in range(300):
        cloud, real, second = (
            MIXTURE.sample(25, generator=seeded(3 * s + k), dtype=torch.float64) for k in range(3)
        )
        forth, back = (
            _barycentres(points, other, field.potentials(cloud, other).real, eps)
            for other in (real, second)
        )
        two.append(forth - back)
        one.append(velocity(field, points, real, cloud))
    assert_mean(torch.stack(two), 0.0)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(torch.stack(one), 0.0)


# --- W-Flow's two batches, as halves of the cloud ---


def halved(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The rows of the halves that the field draws."""
    first, second = torch.randperm(n, generator=seeded(seed)).tensor_split(2)
    return first, second


def test_halves_are_each_others_second_batch() -> None:
    """POT's plans to the data, and of each half to the other one."""
    x, real = randn(11, 2), randn(8, 2, seed=1) + 0.5
    field = SinkhornField(0.8, iterations=5000, tolerance=1e-13, halves=True)
    v = velocity(field, x, real, seed=3)
    first, second = halved(11, 3)
    for rows, others in ((first, second), (second, first)):
        q, n = x[rows], len(rows)
        forth, back = plan(q, real, 0.8) @ real * n, plan(q, x[others], 0.8) @ x[others] * n
        assert_close(v[rows], forth - back, rtol=1e-6, atol=1e-8)
        # so that halves which stay the same are driven apart: d(A - B)/dt = A - B, in the mean
        assert_close(v[rows].mean(0), real.mean(0) - x[others].mean(0), rtol=1e-6, atol=1e-8)


def test_halves_are_unbiased_at_the_target() -> None:
    """E⟨V(x), x⟩ = 0 over the cloud, where the other half is as large as the real batch."""

    def moments(halves: bool, own: int) -> Tensor:
        field = SinkhornField(0.8, iterations=20, halves=halves)
        draws = []
        for s in range(150):
            x, real = (
                MIXTURE.sample(n, generator=seeded(2 * s + k), dtype=torch.float64)
                for k, n in enumerate((own, 20))
            )
            draws.append((velocity(field, x, real, seed=s) * x).mean(0))
        return torch.stack(draws)

    assert_mean(moments(True, 40), 0.0)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(moments(False, 20), 0.0)


def test_a_bound_cloud_drives_by_the_mean_of_its_halves() -> None:
    """Without a draw, as a function of points; the halves are those of its order."""
    x, real, cloud = randn(6, 2), randn(9, 2, seed=1) + 0.5, randn(10, 2, seed=2)
    field, eps = SinkhornField(0.8, iterations=20, halves=True), 0.8**2
    bound = field.bind(Context(real=real, particles=cloud))
    assert field.requires == {"real", "particles", "generator"}
    assert field.draws
    assert not bound.needs
    assert not bound.draws
    parts = []
    for own, other in ((cloud[:5], cloud[5:]), (cloud[5:], cloud[:5])):
        solved = field.potentials(own, real, other)
        parts.append(
            _barycentres(x, real, solved.real, eps) - _barycentres(x, other, solved.cloud, eps)
        )
    t = torch.zeros(6)
    assert_close(bound(x, At(t)), (parts[0] + parts[1]) / 2)
    assert_close(torch.cat([bound(x[:2], At(t[:2])), bound(x[2:], At(t[2:]))]), bound(x, At(t)))
    with pytest.raises(ConfigError, match="a SinkhornField draws random numbers: bind it first"):
        field.bind(Context(real=real))(x, At(t))


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, real = randn(40, 3), randn(30, 3, seed=1) + 1
    whole = velocity(SinkhornField(0.7), x, real)
    monkeypatch.setattr(partikel.fields.samples.transport, "PAIRS", 100)
    assert_close(velocity(SinkhornField(0.7), x, real), whole, rtol=1e-9, atol=1e-12)


def test_few_iterations_bring_the_marginals_close() -> None:
    """The closer, the smaller the tolerance."""
    x, real = randn(50, 2), randn(60, 2, seed=1) + 0.5
    exact = velocity(SinkhornField(0.5, iterations=2000, tolerance=1e-9), x, real)
    errors = [
        float((velocity(SinkhornField(0.5, tolerance=tol), x, real) - exact).abs().max())
        for tol in (1e-1, 1e-2, 1e-3)
    ]
    assert errors[2] < 2e-2
    assert errors == sorted(errors, reverse=True)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="takes a whole number of at least 1"):
        SlicedWassersteinField(0)
    for blur in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="blur"):
            SinkhornField(blur)
    with pytest.raises(ConfigError, match="iteration"):
        SinkhornField(1.0, iterations=0)
    with pytest.raises(ConfigError, match="tolerance"):
        SinkhornField(1.0, tolerance=-1.0)


def test_a_collapsed_cloud_is_moved_as_one_where_it_is_bound() -> None:
    """Points that coincide go to the mean of where each of them would go."""
    x, real = torch.zeros(6, 2, dtype=torch.float64) + 3, randn(9, 2)
    apart, together = (
        SlicedWassersteinField(16).bind(Context(real=real, particles=cloud, generator=seeded()))(
            x, At(tensor(0.5))
        )
        for cloud in (None, x)
    )
    assert_close(together, apart.mean(0).expand(6, 2))
    assert (apart - apart.mean(0)).abs().max() > 0.1  # and, unbound, they part


def test_sinkhorn_passes_keep_the_digits_of_float32() -> None:
    """Far from and near to the samples of the plan, next to float64."""
    for dim in (2, 30):
        x, real = randn(60, dim), randn(50, dim, seed=1) + 3
        field = SinkhornField(0.2 * dim**0.5, iterations=20)
        exact = field.bind(Context(real=real))(x, At(tensor(0.0)))
        single = field.bind(Context(real=real.float()))(x.float(), At(tensor(0.0).float()))
        assert_close(single.double(), exact, atol=1e-4, rtol=1e-4)


def test_means_of_quantiles_keep_the_precision_of_the_points() -> None:
    # on a line there is one direction; far from 0 sums of float32 would lose three digits
    x, real = (100 + randn(n, 1, seed=n).float() for n in (1000, 1501))
    exact = velocity(SlicedWassersteinField(1), x.double(), real.double())
    single = velocity(SlicedWassersteinField(1), x, real)
    assert_close(single.double(), exact, rtol=0, atol=3e-5)  # 4 ulp of 100
