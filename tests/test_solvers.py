"""Solvers: orders of convergence, noise, churn, the loop's nodes and counts, and its errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import (
    GAUSSIAN,
    MIXTURE,
    assert_mean,
    assert_moments,
    randn,
    seeded,
    slope,
    tensor,
)
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError, NumericsError
from partikel.fields import At, AtScale, ExactScoreField, Field
from partikel.models import ParticleModel
from partikel.schedules import (
    EDMSchedule,
    GeometricGrid,
    KarrasGrid,
    SubVPSchedule,
    UniformGrid,
    VESchedule,
    VPSchedule,
)
from partikel.solvers import (
    RK4,
    AdaptiveODE,
    DPMSolver2M,
    Dynamics,
    Euler,
    EulerMaruyama,
    Heun,
    Midpoint,
    PredictorCorrector,
    Solver,
    StochasticHeun,
)
from partikel.targets import Gaussian, GaussianMixture


def edm(target: GaussianMixture, path: EDMSchedule | VESchedule) -> Dynamics:
    """The exact probability flow |σ'|σ s_p of a law."""
    field: Field = path.half_rate * ExactScoreField(target)
    return Dynamics(
        lambda x, t: field(x, At(t, path.sigma(t))),
        schedule=path,
        defined_at_end=path.sigma_end > 0,
    )


def decay(rate: float = 1.0) -> Dynamics:
    return Dynamics(lambda x, t: -rate * x)


# --- orders of convergence ---


@pytest.mark.parametrize(
    ("solver", "order"),
    [(Euler(), 1), (EulerMaruyama(), 1), (Heun(), 2), (Midpoint(), 2), (RK4(), 4)],
)
@pytest.mark.parametrize("path", [EDMSchedule(3.0, 0.2), VESchedule(3.0, 0.2)], ids=["edm", "ve"])
def test_order_on_the_flow_of_a_mixture(
    solver: Solver, order: int, path: EDMSchedule | VESchedule
) -> None:
    x = MIXTURE.sample(64, generator=seeded(), dtype=torch.float64) + 3.0 * randn(64, 2, seed=1)
    grid = KarrasGrid(path, path.sigma_end, rho=3.0)
    dynamics = edm(MIXTURE, path)
    exact = RK4().solve(dynamics, x, grid.nodes(1500)).x
    steps = [32, 64, 128, 256]
    errors = [(solver.solve(dynamics, x, grid.nodes(n)).x - exact).norm() for n in steps]
    assert abs(slope(1 / tensor(steps), torch.stack(errors)) - order) < 0.2


@pytest.mark.parametrize(
    ("solver", "order"), [(Euler(), 1), (Heun(), 2), (Midpoint(), 2), (RK4(), 4)]
)
def test_order_where_the_drift_depends_on_time(solver: Solver, order: int) -> None:
    """dx = cos(t) x dt, so that a node's time is used where it should be."""
    dynamics = Dynamics(lambda x, t: torch.cos(t) * x)
    exact = math.exp(math.sin(1.0))
    steps = [16, 32, 64, 128]
    ends = [solver.solve(dynamics, tensor([[1.0]]), UniformGrid().nodes(n)).x for n in steps]
    assert abs(slope(1 / tensor(steps), (torch.cat(ends)[:, 0] - exact).abs()) - order) < 0.2


def ornstein_uhlenbeck() -> Dynamics:
    """dx = -2x dt + (1 + t) dW."""
    return Dynamics(lambda x, t: -2 * x, lambda t: 1 + t)


class BrownianPath:
    """Fixed paths on a fine grid of [0, 1], told at the nodes of any coarser one."""

    def __init__(self, paths: int, cells: int) -> None:
        increments = randn(cells, paths, 1, seed=2) / cells**0.5
        self.cells = cells
        self.w = torch.cat([torch.zeros(1, paths, 1).double(), increments.cumsum(0)])

    def __call__(self, x: Tensor, t: float, t_next: float) -> Tensor:
        return self.w[round(t_next * self.cells)] - self.w[round(t * self.cells)]


def test_strong_order_of_euler_maruyama_with_additive_noise() -> None:
    """One path of noise, refined: the error of each particle, in the mean."""
    brownian, x, steps = BrownianPath(300, 4096), randn(300, 1), [8, 16, 32, 64]

    def end(n: int) -> Tensor:
        dynamics, times = ornstein_uhlenbeck(), UniformGrid().nodes(n)
        return EulerMaruyama().solve(dynamics, x, times, brownian=brownian).x

    errors = [(end(n) - end(4096)).abs().mean() for n in steps]
    assert abs(slope(1 / tensor(steps), torch.stack(errors)) - 1) < 0.2


def test_weak_order_of_euler_maruyama() -> None:
    """The variance at the end, without sampling: the map is linear, so impulses add up to it."""
    exact_start = math.exp(-4)
    exact_noise = 25 / 32 - 5 / 32 * math.exp(-4)  # ∫ e^{-4(1-t)} (1+t)² dt
    steps, errors = [16, 32, 64, 128], []
    for n in steps:
        x = torch.zeros(n + 1, 1, dtype=torch.float64)
        x[n] = 1  # the start; row i is the i-th increment

        def impulse(x: Tensor, t: float, t_next: float, n: int = n) -> Tensor:
            rows = torch.arange(len(x), dtype=x.dtype)[:, None]
            return (rows == round(t * n)) * math.sqrt(t_next - t)

        end = EulerMaruyama().solve(
            ornstein_uhlenbeck(), x, UniformGrid().nodes(n), brownian=impulse
        )
        errors.append((end.x.square().sum() - exact_start - exact_noise).abs())
    assert abs(slope(1 / tensor(steps), torch.stack(errors)) - 1) < 0.2


# --- noise ---


def test_increments_have_the_variance_of_their_interval() -> None:
    dynamics = Dynamics(lambda x, t: torch.zeros_like(x), lambda t: 1 + t)
    nodes, x = tensor([0.0, 0.1, 0.7, 1.0]), torch.zeros(20_000, 2).double()
    states = list(EulerMaruyama().stream(dynamics, x, nodes, generator=seeded()))
    moves = torch.cat([b.x - a.x for a, b in zip(states, states[1:], strict=False)], 1)
    variances = tensor([0.1, 0.6 * 1.1**2, 0.3 * 1.7**2]).repeat_interleave(2)
    assert_moments(moves, torch.zeros(6).double(), variances.diag())


def test_noise_in_the_last_step_is_a_choice() -> None:
    dynamics = Dynamics(lambda x, t: torch.zeros_like(x), torch.ones_like)
    nodes, x = tensor([0.0, 0.5, 1.0]), torch.zeros(8, 2).double()
    for kept in (False, True):
        solver = EulerMaruyama(noise_in_last_step=kept)
        _, middle, end = solver.stream(dynamics, x, nodes, generator=seeded())
        assert not torch.equal(middle.x, x)
        assert torch.equal(middle.x, end.x) is not kept


@pytest.mark.parametrize("churn", [0.0, 10.0, 40.0])
def test_heun_keeps_the_marginals_under_churn(churn: float) -> None:
    path = EDMSchedule(10.0)
    nodes = KarrasGrid(path, 0.01).nodes(64)
    n = 20_000
    x = GAUSSIAN.sample(n, generator=seeded(), dtype=torch.float64) + 10 * randn(n, 2, seed=1)
    end = Heun(churn=churn).solve(edm(GAUSSIAN, path), x, nodes, generator=seeded(2))
    assert_moments(end.x, GAUSSIAN.mean, GAUSSIAN.covariance)


@pytest.mark.parametrize("path", [VPSchedule(), SubVPSchedule()], ids=["vp", "sub-vp"])
@pytest.mark.parametrize(
    ("solver", "grid"),
    [
        (Heun(churn=20.0), KarrasGrid),
        (PredictorCorrector(Heun(), snr=0.03), GeometricGrid),
        (PredictorCorrector(Heun(churn=20.0), snr=0.03), KarrasGrid),
        (DPMSolver2M(), GeometricGrid),
        (StochasticHeun(), KarrasGrid),
    ],
    ids=["churn", "corrector", "churn and corrector", "dpm", "stochastic"],
)
def test_moments_along_scaled_paths(
    solver: Solver, path: VPSchedule, grid: type[KarrasGrid] | type[GeometricGrid]
) -> None:
    """Where u is not 1 particles are y/u: whatever moves them ends at the law (Gaussian scores)."""
    stochastic = isinstance(solver, StochasticHeun)
    flow = DiffFlow.reverse(path, lambda2=1.0 if stochastic else 2.0)
    score = ExactScoreField(GAUSSIAN)
    n, steps = 6000, 150
    model = ParticleModel(
        flow.field(score),
        flow.prior((2,)),
        steps=steps,
        schedule=path,
        grid=grid(path, 0.02),
        diffusion=flow.diffusion,
        solver=solver,
        score=AtScale(score, path),
    )
    clean = GAUSSIAN.sample(n, generator=seeded(), dtype=torch.float64)
    x = path.noised(clean, torch.zeros(n).double(), generator=seeded(1))
    for state in model.stream(x, generator=seeded(2)):
        if state.step in (steps // 2, steps):
            t = tensor(state.t)
            u, sigma = path.u(t), path.sigma(t)
            covariance = GAUSSIAN.covariance + sigma**2 * torch.eye(2).double()
            assert_moments(state.x, GAUSSIAN.mean / u, covariance / u**2)


def test_churn_raises_the_noise_level_within_its_range_only() -> None:
    """σ̂ = σ (1 + min(churn/N, √2-1)) with noise S_noise √(σ̂²-σ²), for S_tmin <= σ <= S_tmax."""
    path = EDMSchedule(4.0)
    asked: list[Tensor] = []

    def drift(x: Tensor, t: Tensor) -> Tensor:
        asked.append(path.sigma(t))
        return torch.zeros_like(x)

    nodes = path.time(tensor([4.0, 3.1, 2.0, 1.0, 0.0]))  # in float32 3.1 is another level
    for churn, factor in ((1.0, 1.25), (8.0, math.sqrt(2))):
        asked.clear()
        solver = Heun(churn=churn, churn_min=1.5, churn_max=3.5, churn_noise=1.1)
        dynamics = Dynamics(drift, schedule=path, defined_at_end=False)
        x = torch.zeros(20_000, 1).double()
        end = solver.solve(dynamics, x, nodes, generator=seeded())
        churned = tensor([4.0, 3.1, 3.1 * factor, 2.0, 2 * factor, 1.0, 1.0])
        assert_close(torch.stack(asked), churned, rtol=1e-12, atol=0)
        variance = 1.1**2 * (factor**2 - 1) * (3.1**2 + 2**2)
        assert_mean(end.x**2, variance)


def test_noise_is_a_function_of_the_generator() -> None:
    x, nodes = randn(4, 2), UniformGrid().nodes(5)
    churned = edm(GAUSSIAN, EDMSchedule(1.0))
    for solver, dynamics in ((EulerMaruyama(), ornstein_uhlenbeck()), (Heun(churn=2.0), churned)):
        first, again, other = (
            solver.solve(dynamics, x, nodes, generator=seeded(seed)).x for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


# --- the loop ---


@pytest.mark.parametrize(
    ("solver", "path", "evaluations"),
    [
        (Euler(), EDMSchedule(3.0), lambda n: n),
        (EulerMaruyama(), EDMSchedule(3.0), lambda n: n),
        (Heun(), EDMSchedule(3.0), lambda n: 2 * n - 1),  # no score at σ = 0
        (Heun(), VESchedule(3.0, 0.1), lambda n: 2 * n),
        (Midpoint(), EDMSchedule(3.0), lambda n: 2 * n),
        (RK4(), EDMSchedule(3.0), lambda n: 4 * n - 3),
        (RK4(), VESchedule(3.0, 0.1), lambda n: 4 * n),
    ],
)
@pytest.mark.parametrize("n", [1, 2, 28])
def test_evaluations(
    solver: Solver,
    path: EDMSchedule | VESchedule,
    evaluations: Callable[[int], int],
    n: int,
) -> None:
    dynamics = edm(GAUSSIAN, path)
    for _ in range(2):  # of this run, not of all runs
        end = solver.solve(dynamics, randn(3, 2), UniformGrid(path.horizon).nodes(n))
        assert end.evaluations == evaluations(n)
        assert end.step == n


def test_streaming_hands_out_every_node() -> None:
    nodes = tensor([0.0, 0.1, 0.4, 1.0])
    states = list(Euler().stream(decay(2.0), tensor([[1.0]]), nodes))
    assert [state.step for state in states] == [0, 1, 2, 3]
    assert [state.evaluations for state in states] == [0, 1, 2, 3]
    assert_close(tensor([state.t for state in states]), nodes)
    expected = [1.0, 0.8, 0.8 * 0.4, 0.8 * 0.4 * (1 - 1.2)]
    assert_close(torch.cat([state.x for state in states])[:, 0], tensor(expected))


@pytest.mark.parametrize("solver", [Euler(), Heun(), EulerMaruyama(), Midpoint(), RK4()])
@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_stopping_early_is_the_whole_run_cut_off(solver: Solver, stop: int) -> None:
    path = EDMSchedule(3.0)
    nodes, x = KarrasGrid(path).nodes(4), randn(5, 2)
    whole = list(solver.stream(edm(GAUSSIAN, path), x, nodes))
    cut = list(solver.stream(edm(GAUSSIAN, path), x, nodes, stop=stop))
    assert len(cut) == stop + 1
    for a, b in zip(whole, cut, strict=False):
        assert torch.equal(a.x, b.x)
        assert (a.step, a.t, a.evaluations) == (b.step, b.t, b.evaluations)


def test_churn_is_divided_by_the_steps_of_the_whole_path() -> None:
    path, nodes = EDMSchedule(3.0), UniformGrid(3.0).nodes(8)
    whole = list(
        Heun(churn=2.0).stream(edm(GAUSSIAN, path), randn(3, 2), nodes, generator=seeded())
    )
    cut = Heun(churn=2.0).solve(edm(GAUSSIAN, path), randn(3, 2), nodes, stop=2, generator=seeded())
    assert torch.equal(cut.x, whole[2].x)


def test_the_start_is_not_changed() -> None:
    x = randn(5, 2)
    Euler().solve(decay(), x, UniformGrid().nodes(3))
    assert torch.equal(x, randn(5, 2))


def test_the_flow_of_a_gaussian_has_a_closed_form() -> None:
    """Along each axis of C, (x_T - m) = √(c/(c + σ_max²)) (x_0 - m)."""
    path = EDMSchedule(80.0)
    law = Gaussian([1.0, -2.0], [[0.9, 0.0], [0.0, 0.2]])
    x = 80 * randn(16, 2)
    variances = tensor([0.9, 0.2])
    exact = law.mean + (variances / (variances + 80.0**2)).sqrt() * (x - law.mean)
    end = Heun().solve(edm(law, path), x, KarrasGrid(path, 0.002).nodes(256))
    assert end.evaluations == 511
    assert_close(end.x, exact, atol=1e-3, rtol=0)


# --- errors ---


def test_an_explosion_is_reported() -> None:
    with pytest.raises(NumericsError, match="at step 3 of 10"):
        Euler().solve(Dynamics(lambda x, t: x**3 * 1e60), tensor([[1.0]]), UniformGrid().nodes(10))


@pytest.mark.parametrize("stop", [-1, 5])
def test_stop_lies_on_the_grid(stop: int) -> None:
    with pytest.raises(ConfigError, match=f"{stop} steps"):
        Euler().solve(decay(), randn(1, 1), UniformGrid().nodes(4), stop=stop)


def test_a_run_does_not_stop_before_it_starts() -> None:
    with pytest.raises(ConfigError, match="the grid has 4; choose 2 to that"):
        next(Euler().stream(decay(), randn(1, 1), UniformGrid().nodes(4), start=2, stop=1))


@pytest.mark.parametrize(
    ("solver", "dynamics"),
    [
        (EulerMaruyama(), ornstein_uhlenbeck()),
        (Heun(churn=1.0), edm(GAUSSIAN, EDMSchedule(1.0))),
    ],
)
def test_noise_needs_a_generator(solver: Solver, dynamics: Dynamics) -> None:
    with pytest.raises(ConfigError, match="generator"):
        solver.solve(dynamics, randn(2, 2), UniformGrid().nodes(4))


@pytest.mark.parametrize("solver", [Euler(), Heun(), Midpoint(), RK4()])
def test_solvers_of_odes_refuse_noise(solver: Solver) -> None:
    with pytest.raises(ConfigError, match="EulerMaruyama"):
        solver.solve(ornstein_uhlenbeck(), randn(2, 2), UniformGrid().nodes(4), generator=seeded())


def test_churn_needs_a_schedule_and_sensible_numbers() -> None:
    with pytest.raises(ConfigError, match="schedule"):
        Heun(churn=1.0).solve(decay(), randn(2, 2), UniformGrid().nodes(4), generator=seeded())
    for build in (lambda: Heun(churn=-1.0), lambda: Heun(churn_noise=-1.0)):
        with pytest.raises(ConfigError, match="churn"):
            build()


@pytest.mark.parametrize("drift", [lambda x, t: -20 * x.sign(), lambda x, t: -1e8 * x])
def test_adaptive_steps_are_bounded(
    drift: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that jumps, or is very steep, ends in a sentence."""
    monkeypatch.setattr("partikel.solvers.ode.MOST_STEPS", 100)
    counted = Dynamics(drift)
    with pytest.raises(NumericsError, match="in 100 steps or at all.*fixed steps"):
        AdaptiveODE().solve(counted, randn(5, 2), tensor([0.0, 1.0]))
    assert counted.evaluations < 1000
