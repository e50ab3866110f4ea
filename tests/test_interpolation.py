"""Interpolations: laws of their points, ends, symmetry, and what they keep."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from partikel.app.show.latent_paths import METHODS, interpolate
from partikel.errors import ConfigError

F64 = torch.float64


def latents(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    return latents(*shape, seed=1), latents(*shape, seed=2)


@pytest.mark.parametrize("fraction", [0.5, 0.1])
@pytest.mark.parametrize("method", ["cauchy-linear", "spherical-cauchy-linear"])
@pytest.mark.parametrize("dim", [2, 16, 128])
def test_points_of_cauchy_paths_have_normal_coordinates(
    dim: int, method: str, fraction: float
) -> None:
    a, b = pair(32_000 // dim, dim)
    x = interpolate(a, b, [fraction], method)[:, 0]
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
    # the variance of n independent squares of N(0, 1) is 2/n: 4 standard errors
    n = x.numel()
    assert abs(float(x.square().mean()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float(x.mean())) < 4 / math.sqrt(n)


@pytest.mark.parametrize("dim", [2, 16, 128])
def test_spherical_cauchy_paths_keep_the_law_of_the_norm(dim: int) -> None:
    a, b = pair(4000, dim)
    x = interpolate(a, b, [0.3, 0.5], "spherical-cauchy-linear")
    squares = x.square().sum(-1)
    for place in range(2):
        assert stats.kstest(squares[:, place].numpy(), stats.chi2(dim).cdf).pvalue > 1e-3
    # which the spherical path does not: its norms are too much alike
    squares = interpolate(a, b, [0.5], "spherical").square().sum(-1).flatten()
    assert stats.kstest(squares.numpy(), stats.chi2(dim).cdf).pvalue < 1e-6


def test_cauchy_paths_of_dependent_coordinates_need_no_joint_law() -> None:
    # each coordinate travels alone: permuting coordinates permutes the path
    a, b = pair(5, 7)
    order = torch.tensor([3, 1, 0, 6, 5, 2, 4])
    x = interpolate(a, b, [0.4], "cauchy-linear")
    assert_close(interpolate(a[:, order], b[:, order], [0.4], "cauchy-linear"), x[..., order])


def test_midpoints_of_lines_have_half_the_variance() -> None:
    a, b = pair(4000, 16)
    x = interpolate(a, b, [0.5], "linear")
    assert_close(x[:, 0], (a + b) / 2)
    assert abs(float(x.square().mean()) - 0.5) < 4 * 0.5 * math.sqrt(2 / x.numel())


@pytest.mark.parametrize("method", METHODS)
def test_ends_are_exact(method: str) -> None:
    for dtype in (torch.float32, F64):
        a, b = latents(6, 3, 4, dtype=dtype), latents(6, 3, 4, seed=3, dtype=dtype)
        x = interpolate(a, b, torch.linspace(0, 1, 5), method)
        assert x.shape == (6, 5, 3, 4)
        assert x.dtype == dtype
        assert torch.equal(x[:, 0], a)
        assert torch.equal(x[:, -1], b)


@pytest.mark.parametrize("method", METHODS)
def test_paths_arrive_at_their_ends(method: str) -> None:
    a, b = pair(50, 8)
    x = interpolate(a, b, [1e-12, 1 - 1e-12], method)
    assert_close(x[:, 0], a, rtol=0, atol=1e-8)
    assert_close(x[:, 1], b, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_the_way_back_is_the_same(method: str) -> None:
    a, b = pair(20, 8)
    there = interpolate(a, b, [0.0, 0.2, 0.7, 1.0], method)
    back = interpolate(b, a, [1.0, 0.8, 0.3, 0.0], method)
    assert_close(back, there, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_std_only_scales(method: str) -> None:
    a, b = pair(20, 8)
    x = interpolate(a, b, [0.25, 0.5], method)
    assert_close(interpolate(40 * a, 40 * b, [0.25, 0.5], method, std=40.0), 40 * x)


@pytest.mark.parametrize("method", METHODS)
def test_a_path_to_itself_stands_still(method: str) -> None:
    # far in the tails too: 12 standard deviations have probability 2e-33
    a = torch.tensor([[0.0, 1e-9, -3.0, 8.0], [12.0, -12.0, 1.0, 0.5]], dtype=F64)
    x = interpolate(a, a, [0.3], method)[:, 0]
    assert_close(x, a, rtol=1e-9, atol=1e-12)


def test_spherical_paths_keep_the_norm_between_and_turn_evenly() -> None:
    a, b = pair(200, 5)
    fractions = torch.linspace(0, 1, 9, dtype=F64)
    x = interpolate(a, 3 * b, fractions, "spherical")
    norms = x.norm(dim=-1)
    ends = norms[:, [0, -1]]
    assert (norms >= ends.amin(1, keepdim=True) * (1 - 1e-12)).all()
    assert (norms <= ends.amax(1, keepdim=True) * (1 + 1e-12)).all()
    units = x / norms[..., None]
    steps = torch.acos((units[:, :-1] * units[:, 1:]).sum(-1))
    assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["spherical", "spherical-cauchy-linear"])
def test_spherical_paths_to_the_opposite_go_around(method: str) -> None:
    a = latents(10, 6)
    x = interpolate(a, -a, [0.25, 0.5, 0.75], method)
    assert_close(x.norm(dim=-1), a.norm(dim=-1, keepdim=True).expand(10, 3))
    assert_close((x[:, 1] * a).sum(-1), torch.zeros(10, dtype=F64), rtol=0, atol=1e-12)


def test_mistakes_are_named() -> None:
    a, b = pair(2, 3)
    with pytest.raises(ConfigError, match="did you mean 'spherical'"):
        interpolate(a, b, [0.5], "sferical")
    with pytest.raises(ConfigError, match="single entry"):
        interpolate(a[:, :1], b[:, :1], [0.5], "spherical")
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        interpolate(a, b, [1.5])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        interpolate(a, b, [math.nan])
    with pytest.raises(ValueError, match="one shape"):
        interpolate(a, b[:1], [0.5])
    with pytest.raises(ValueError, match="std"):
        interpolate(a, b, [0.5], std=0.0)
