"""Schedules: paths that invert, rates that are derivatives, Karras's grid, the laws of σ."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from conftest import assert_uniform, seeded
from partikel.errors import ConfigError
from partikel.schedules import (
    EDMSchedule,
    KarrasGrid,
    KarrasLaw,
    LogNormalLaw,
    Nodes,
    Schedule,
    UniformGrid,
    VESchedule,
)

PATHS: dict[str, Schedule] = {
    "edm": EDMSchedule(),
    "edm cut": EDMSchedule(10.0, 0.1),
    "ve": VESchedule(),
    "ve long": VESchedule(80.0, 0.02, horizon=3.0),
}


@pytest.fixture(params=PATHS, ids=str)
def path(request: pytest.FixtureRequest) -> Schedule:
    return PATHS[request.param]


def times(path: Schedule) -> torch.Tensor:
    return torch.linspace(0, path.horizon, 33, dtype=torch.float64)


def test_the_path_falls_from_sigma_max_to_its_end(path: Schedule) -> None:
    levels = path.sigma(times(path))
    assert_close(levels[[0, -1]], levels.new_tensor([path.sigma_max, path.sigma_end]))
    assert (levels.diff() < 0).all()


def test_time_inverts_sigma(path: Schedule) -> None:
    t = times(path)
    assert_close(path.time(path.sigma(t)), t, atol=1e-12, rtol=1e-12)
    levels = torch.logspace(
        math.log10(path.sigma_end + 0.01), math.log10(path.sigma_max), 20
    ).double()
    assert_close(path.sigma(path.time(levels)), levels, atol=1e-12, rtol=1e-12)


def test_rates_are_derivatives(path: Schedule) -> None:
    t = times(path).requires_grad_()
    (rate,) = torch.autograd.grad(path.sigma(t).sum(), t)
    assert_close(path.sigma_rate(t.detach()), rate)
    (variance_rate,) = torch.autograd.grad(path.sigma(t).square().sum(), t)
    assert_close(path.half_rate(t.detach()), -0.5 * variance_rate)


def test_the_edm_path_has_sigma_as_its_clock_and_the_ve_path_is_geometric() -> None:
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert_close(EDMSchedule(40.0).sigma(40 * t), 40 * (1 - t))
    assert_close(VESchedule(50.0, 0.01).sigma(t), 50 * (0.01 / 50) ** t)


@pytest.mark.parametrize("rho", [1.0, 7.0])
@pytest.mark.parametrize("steps", [2, 5, 28])
def test_karras_grid(steps: int, rho: float) -> None:
    high, low = 80.0, 0.002
    expected = [
        (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(steps)
    ] + [0.0]
    path = EDMSchedule(high)
    nodes = KarrasGrid(path, low, rho).nodes(steps)
    assert nodes.dtype == torch.float64
    assert_close(path.sigma(nodes), nodes.new_tensor(expected), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "grid",
    [
        KarrasGrid(EDMSchedule(80.0)),
        KarrasGrid(EDMSchedule(10.0, 0.1), 0.1),  # the path ends at sigma_min: no further step
        KarrasGrid(EDMSchedule(10.0), 0.0),
        KarrasGrid(VESchedule(50.0, 0.01), 0.02),
        KarrasGrid(VESchedule(50.0, 0.01), 0.01),
        UniformGrid(2.5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_grids_climb_from_the_prior_to_the_sample(
    grid: KarrasGrid | UniformGrid, steps: int
) -> None:
    nodes = grid.nodes(steps)
    horizon = grid.horizon if isinstance(grid, UniformGrid) else grid.schedule.horizon
    assert nodes.shape == (steps + 1,)
    assert nodes[0] == 0
    assert nodes[-1] == horizon
    assert (nodes.diff() > 0).all()


def test_a_grid_without_a_last_step_is_karras_between_both_ends() -> None:
    path = VESchedule(50.0, 0.01)
    place = torch.linspace(0, 1, 9, dtype=torch.float64)
    expected = (50 ** (1 / 7) + place * (0.01 ** (1 / 7) - 50 ** (1 / 7))) ** 7
    assert_close(path.sigma(KarrasGrid(path, 0.01).nodes(8)), expected)


def test_the_uniform_grid_is_uniform() -> None:
    assert_close(UniformGrid(2.0).nodes(4), torch.tensor([0, 0.5, 1, 1.5, 2.0]).double())


def test_log_normal_law() -> None:
    sigma = LogNormalLaw(-1.2, 0.7).sample(50_000, generator=seeded(), dtype=torch.float64)
    assert_uniform(torch.special.ndtr((sigma.log() + 1.2) / 0.7))


def test_karras_law_is_a_uniform_place_on_the_grid() -> None:
    low, high, rho = 0.1, 10.0, 3.0
    sigma = KarrasLaw(low, high, rho).sample(50_000, generator=seeded(), dtype=torch.float64)
    assert low <= sigma.min()
    assert sigma.max() <= high
    ends = high ** (1 / rho), low ** (1 / rho)
    assert_uniform((sigma ** (1 / rho) - ends[0]) / (ends[1] - ends[0]))


@pytest.mark.parametrize(
    "build",
    [
        lambda: EDMSchedule(1.0, 1.0),
        lambda: EDMSchedule(1.0, -0.1),
        lambda: VESchedule(1.0, 0.0),
        lambda: VESchedule(0.1, 1.0),
        lambda: KarrasLaw(0.0, 1.0),
        lambda: KarrasLaw(2.0, 1.0),
        lambda: KarrasLaw(0.1, 1.0, rho=0.0),
        lambda: KarrasGrid(EDMSchedule(1.0), 1.0),
        lambda: KarrasGrid(EDMSchedule(1.0), -0.1),
        lambda: KarrasGrid(VESchedule(50.0, 0.01), 0.001),
        lambda: KarrasGrid(EDMSchedule(1.0), rho=0.0),
        lambda: KarrasGrid(EDMSchedule(1.0)).nodes(0),
        lambda: UniformGrid().nodes(0),
        lambda: Nodes(times=(0.0,)),
        lambda: Nodes(times=(0.1, 1.0)),
        lambda: Nodes(times=(0.0, 0.5, 0.4, 1.0)),
        lambda: Nodes(times=(0.0, 0.5, 0.5, 1.0)),
        lambda: Nodes(4, times=(0.0, 1.0)),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        build()
