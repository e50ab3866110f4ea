"""Kernels: their values, gradients and streamed means against autograd and double loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import partikel.kernels
from conftest import randn, tensor
from partikel.errors import ConfigError, DataError
from partikel.kernels import (
    IMQKernel,
    Kernel,
    LaplaceKernel,
    MultiRBFKernel,
    NTKKernel,
    RadialKernel,
    RBFKernel,
    RieszKernel,
    median_distance,
    squared_distances,
)
from partikel.networks import MLP


def network(dim: int = 3) -> nn.Module:
    net = MLP((dim,), (), width=8, depth=2, activation="tanh").double()
    for seed, p in enumerate(net.parameters()):
        p.data = randn(*p.shape, seed=seed) / 2
    return net


RADIAL = {
    "rbf": RBFKernel(0.7),
    "multi-rbf": MultiRBFKernel(0.7, (0.5, 1, 3)),
    "laplace": LaplaceKernel(0.7),
    "imq": IMQKernel(0.7),
    "energy": RieszKernel(),
    "riesz": RieszKernel(1.5),
}
KERNELS: dict[str, Kernel] = {**RADIAL, "ntk": NTKKernel(network())}

# of the distance r, by hand
CLOSED = {
    "rbf": lambda r: math.exp(-(r**2) / 0.98),
    "multi-rbf": lambda r: sum(math.exp(-(r**2) / 0.98 / f**2) for f in (0.5, 1, 3)) / 3,
    "laplace": lambda r: math.exp(-r / 0.7),
    "imq": lambda r: 1 / math.sqrt(1 + r**2 / 0.49),
    "energy": lambda r: -r,
    "riesz": lambda r: -(r**1.5),
}


def pairs(kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
    """∇_x k(x_i, y_j), (n, m, D), one pair at a time."""
    rows = []
    for a in x:
        point = a.clone().requires_grad_()
        entries = [kernel(point[None], b[None])[0, 0] for b in y]
        rows.append(torch.stack([torch.autograd.grad(k, point)[0] for k in entries]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", RADIAL)
def test_values(name: str) -> None:
    x, y = randn(4, 3), randn(5, 3, seed=1)
    expected = [[CLOSED[name](float((a - b).norm())) for b in y] for a in x]
    assert_close(KERNELS[name](x, y), tensor(expected))


def test_the_neural_tangent_kernel_is_the_product_of_the_gradients() -> None:
    net, x, y = network(), randn(4, 3), randn(5, 3, seed=1)

    def slopes(point: Tensor) -> Tensor:
        parts = torch.autograd.grad(net(point[None])[0], list(net.parameters()))
        return torch.cat([part.flatten() for part in parts])

    expected = tensor([[float(slopes(a) @ slopes(b)) for b in y] for a in x])
    assert_close(NTKKernel(net)(x, y), expected)


@pytest.mark.parametrize("dim", [1, 3, 9])
@pytest.mark.parametrize("name", KERNELS)
def test_streamed_means_are_those_of_the_pairs(
    name: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever tiles, in few dimensions (differences) or many (products), for data of any shape."""
    kernel = NTKKernel(network(dim)) if name == "ntk" else KERNELS[name]
    x, y = randn(7, dim), randn(11, dim, seed=1)
    matrix, slopes = kernel(x, y).detach(), pairs(kernel, x, y)
    values = randn(11, 2, seed=2)
    for tile, passes in ((2**20, 4096), (64, 3)):
        monkeypatch.setattr(partikel.kernels, "TILE", tile)
        monkeypatch.setattr(partikel.kernels, "_PASS", passes)
        assert_close(kernel.mean(x, y), matrix.mean(1))
        assert_close(kernel.mean(x, y, values), matrix @ values / 11)
        assert_close(kernel.gradient(x, y), slopes.mean(1))
        assert_close(kernel.gradient(x[:3], y), slopes[:3].mean(1))
        assert_close(Kernel.gradient(kernel, x, y), slopes.mean(1))
        if name != "ntk":
            shaped = kernel.gradient(x.view(7, 1, dim, 1), y.view(11, 1, dim, 1))
            assert_close(shaped, slopes.mean(1).view(7, 1, dim, 1))


def test_more_pairs_than_one_tile_of_them_holds() -> None:
    """Real tiles: 600 x 2500 pairs."""
    x, y = randn(600, 2), randn(2500, 2, seed=1)
    gap = x[:, None] - y
    weights = -torch.exp(-gap.square().sum(2) / 2)
    assert_close(RBFKernel(1.0).gradient(x, y), (weights[..., None] * gap).mean(1))
    assert_close(RBFKernel(1.0).mean(x, y), -weights.mean(1))


@pytest.mark.parametrize("name", KERNELS)
def test_repulsion_is_the_gradient_in_the_other_point(name: str) -> None:
    """By symmetry the gradient of k(y, x) in its first."""
    kernel, x, y = KERNELS[name], randn(4, 3), randn(5, 3, seed=1)
    assert_close(kernel.repulsion(x, y), pairs(kernel, y, x).mean(0))
    assert_close(Kernel.repulsion(kernel, x, y), pairs(kernel, y, x).mean(0))


@pytest.mark.parametrize("name", KERNELS)
def test_what_a_stein_field_asks_for_is_both_halves(name: str) -> None:
    kernel, x, y, values = KERNELS[name], randn(4, 3), randn(5, 3, seed=1), randn(5, 3, seed=2)
    halves = kernel(x, y).detach() @ values / 5 + pairs(kernel, y, x).mean(0)
    assert_close(kernel.stein(x, y, values), halves)
    if name != "ntk":
        shaped = [each.view(len(each), 1, 3, 1) for each in (x, y, values)]
        assert_close(kernel.stein(*shaped), halves.view(4, 1, 3, 1))


@pytest.mark.parametrize("name", RADIAL)
def test_no_gradient_where_points_coincide(name: str) -> None:
    x = randn(3, 9)
    x[1] = x[0]
    assert_close(KERNELS[name].gradient(x[:1], x[:2]), torch.zeros(1, 9, dtype=torch.float64))
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(KERNELS[name](point[:1], point[1:2]).sum(), point)
    assert_close(slope, torch.zeros_like(x))


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_positive(name: str) -> None:
    """Σ c_i c_j k(x_i, x_j) >= 0: for all c, or (Riesz) for those that sum to zero."""
    x = randn(30, 3)
    matrix = KERNELS[name](x, x).detach()
    assert_close(matrix, matrix.T)
    if isinstance(KERNELS[name], RieszKernel):
        centre = torch.eye(30, dtype=torch.float64) - 1 / 30
        matrix = centre @ matrix @ centre
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-10


@pytest.mark.parametrize("name", RADIAL)
def test_far_from_the_origin_float32_keeps_its_precision(name: str) -> None:
    """Products of coordinates of 100 would lose four digits: sums are taken about the mean."""
    x, y = randn(50, 9), randn(60, 9, seed=1)
    kernel = KERNELS[name]
    far = kernel.gradient((x + 100).float(), (y + 100).float())
    assert_close(far.double(), kernel.gradient(x, y), rtol=1e-3, atol=1e-5)


def test_distances_agree() -> None:
    for dim in (1, 4, 5, 20):
        x, y = randn(6, dim), randn(7, dim, seed=1)
        expected = (x[:, None] - y).square().sum(2)
        assert_close(squared_distances(x, y), expected)
        assert_close(squared_distances(x, y, exact=False), expected)
        assert (squared_distances(x, x).diagonal() == 0).all()


def test_the_median_heuristic() -> None:
    x = tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
    assert median_distance(x) == 2
    assert median_distance(x[:1], x[1:]) == 2
    assert median_distance(5 * x + 7) == 10
    kernel = LaplaceKernel()
    fitted = kernel.fitted(x)
    assert kernel.bandwidth == "median"
    assert_close(fitted(x, x), LaplaceKernel(2.0)(x, x))
    many = randn(20_000, 2)  # distances of two standard normal points are √2 times a Rayleigh law
    assert median_distance(many) == pytest.approx(2 * math.sqrt(math.log(2)), rel=0.03)
    assert RBFKernel(0.3).fitted(x).bandwidth == 0.3  # type: ignore[union-attr]


@pytest.mark.parametrize("cls", [RBFKernel, MultiRBFKernel, LaplaceKernel, IMQKernel])
@pytest.mark.parametrize("bandwidth", [0, -1.0, math.nan, math.inf, "mean"])
def test_impossible_bandwidths(cls: type[RadialKernel], bandwidth: object) -> None:
    with pytest.raises(ConfigError, match="takes a finite number above 0|'median'"):
        cls(bandwidth)  # type: ignore[call-arg]


def test_other_errors() -> None:
    for power in (0.0, 2.0):
        with pytest.raises(ConfigError, match=r"in \(0, 2\)"):
            RieszKernel(power)
    with pytest.raises(ConfigError, match="factors"):
        MultiRBFKernel(1.0, (1.0, 0.0))
    with pytest.raises(ConfigError, match="fit it"):
        RBFKernel()(randn(2, 1), randn(2, 1))
    with pytest.raises(DataError, match="two points"):
        median_distance(randn(1, 2))
    with pytest.raises(DataError, match="no bandwidth"):
        median_distance(torch.zeros(5, 2))


@pytest.mark.parametrize("kernel", [RBFKernel(1.0), MultiRBFKernel(1.0), IMQKernel(1.0)], ids=repr)
def test_kernels_do_not_lose_digits_far_from_the_origin(kernel: Kernel) -> None:
    """A shift of everything changes nothing: matrix, mean and gradient in float32, at 1000."""
    x, y = randn(20, 16).float() + 1000, randn(30, 16, seed=1).float() + 1000
    there = x.double(), y.double()
    for near, far in (
        (kernel(*there), kernel(x, y)),
        (kernel.mean(*there), kernel.mean(x, y)),
        (kernel.mean(*there, there[1]), kernel.mean(x, y, y)),
        (kernel.gradient(*there), kernel.gradient(x, y)),
        (kernel.repulsion(*there), kernel.repulsion(x, y)),
    ):
        assert_close(far.double(), near, rtol=1e-4, atol=1e-6)
