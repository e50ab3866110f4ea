"""What the tests share: one thread, seeded randomness, exact laws and fields, real data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch loads OpenMP

import pytest
import torch
from torch import Tensor, nn

from partikel.app import gallery
from partikel.fields import At, Field
from partikel.targets import Gaussian, GaussianMixture

torch.set_num_threads(1)

# Asymmetric and anisotropic on purpose: symmetry hides errors of sign and of transposition.
GAUSSIAN = Gaussian([1.0, -0.5], [[0.8, 0.3], [0.3, 0.4]])
OTHER = Gaussian([-0.4, 0.7], [[0.5, -0.2], [-0.2, 1.1]])
MIXTURE = GaussianMixture(
    [[2.0, 1.0], [-1.0, 0.5], [0.3, -2.0]],
    [[[0.5, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 0.6]], [[0.4, -0.1], [-0.1, 0.2]]],
    weights=[0.5, 0.3, 0.2],
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests prepare and measure is cached in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        if "PARTIKEL_CACHE" not in os.environ:
            patch.setenv("PARTIKEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def small_pages() -> Iterator[None]:
    """The page of a run that a test trains is measured by 300 samples, which takes 4 s less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "write_run_page", partial(gallery.write_run_page, n=300))
        yield


@pytest.fixture
def generator() -> torch.Generator:
    return seeded()


@pytest.fixture
def pot() -> None:
    """What the exact W2 needs: the test skips without."""
    pytest.importorskip("ot", reason="needs the extra 'transport'")


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """``real_data("mnist")`` is that entry of the folder $PARTIKEL_DATA; the test skips without."""

    def find(name: str) -> Path:
        root = os.environ.get("PARTIKEL_DATA")
        if root is None or not (Path(root) / name).exists():
            pytest.skip(f"needs PARTIKEL_DATA, a folder that contains {name}")
        return Path(root) / name

    return find


def slope(x: Tensor, y: Tensor) -> float:
    """Exponent of the power law y ~ x^slope, by least squares of the logarithms."""
    u, v = x.log() - x.log().mean(), y.log() - y.log().mean()
    return float((u * v).sum() / u.square().sum())


def assert_mean(draws: Tensor, expected: Tensor | float, errors: float = 4.5) -> None:
    """The mean of independent draws (n, ...) is ``expected`` within so many standard errors."""
    draws = draws.detach()
    standard_error = draws.std(0) / len(draws) ** 0.5
    distance = float(((draws.mean(0) - expected).abs() / standard_error).max())
    assert distance < errors, f"off by {distance:.1f} standard errors"


def assert_moments(x: Tensor, mean: Tensor, covariance: Tensor, errors: float = 4.5) -> None:
    """Points (n, D) have this mean and this covariance, within so many standard errors."""
    assert_mean(x, mean, errors)
    centred = x - mean
    assert_mean(centred[:, :, None] * centred[:, None, :], covariance, errors)


def assert_uniform(places: Tensor) -> None:
    """Draws (n,) are uniform on [0, 1] (Kolmogorov-Smirnov at a level of 1e-6)."""
    ordered = places.sort().values
    steps = torch.arange(1, len(ordered) + 1, dtype=ordered.dtype) / len(ordered)
    assert float((ordered - steps).abs().max()) * len(ordered) ** 0.5 < 2.7


class LinearField(Field):
    """x -> A x + b, whose flows are known in closed form."""

    def __init__(self, matrix: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix, requires_grad=False)
        self.offset = nn.Parameter(offset, requires_grad=False)

    def forward(self, x: Tensor, at: At) -> Tensor:
        return x @ self.matrix.T + self.offset


class Quadratic(nn.Module):
    """The logit d(x) = ½ xᵀQx + bᵀx, plus c_k wᵀx for each condition c_k."""

    def __init__(self, dim: int, seed: int = 5) -> None:
        super().__init__()
        root = randn(dim, dim, seed=seed)
        self.curvature = nn.Parameter(root + root.T)
        self.linear = nn.Parameter(randn(dim, seed=seed + 1))
        self.coupling = nn.Parameter(randn(dim, seed=seed + 2))

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        slopes = self.linear if c is None else self.linear + c.sum(1, keepdim=True) * self.coupling
        return 0.5 * ((flat @ self.curvature) * flat).sum(1) + (slopes * flat).sum(1)

    def gradient(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        slopes = self.linear if c is None else self.linear + c.sum(1, keepdim=True) * self.coupling
        return (x.flatten(1) @ self.curvature + slopes).detach().view_as(x)


class Recorder(nn.Module):
    """A network that returns zeros (or a fixed output) and remembers what it was called with."""

    def __init__(self, output: Callable[[Tensor], Tensor] = torch.zeros_like) -> None:
        super().__init__()
        self.output = output
        self.calls: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        self.calls.append((x.detach().clone(), c, cond))
        return self.output(x) + self.weight
