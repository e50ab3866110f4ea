"""Solvers for the plane: orders on exact targets, exponential integrators, fixed paths of noise,
correctors, adaptive steps, and how few evaluations sample a mixture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

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
from partikel.errors import ConfigError, NumericsError
from partikel.metrics import energy_distance, sliced_wasserstein2
from partikel.schedules import (
    EDMSchedule,
    KarrasGrid,
    LinearSchedule,
    Schedule,
    SubVPSchedule,
    UniformGrid,
    VESchedule,
    VPSchedule,
)
from partikel.solvers import (
    DDIM,
    RK4,
    SOLVERS,
    SRA1,
    AdaptiveODE,
    BrownianMotion,
    BrownianPath,
    DPMSolver2M,
    DPMSolver2MSDE,
    Dynamics,
    Euler,
    EulerMaruyama,
    Heun,
    Midpoint,
    PredictorCorrector,
    Solver,
    Step,
    StochasticHeun,
    UniPC,
    brownian_increments,
)
from partikel.targets import Gaussian, GaussianMixture
from partikel.tensors import expand_like


@dataclass(frozen=True)
class Scaled(Schedule):
    """A geometric σ(t) and a mean scale 1/u(t) that have nothing to do with each other."""

    sigma_max: float = 3.0
    sigma_end: float = 0.2
    horizon: float = 2.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * (self.sigma_end / self.sigma_max) ** (t / self.horizon)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.log(self.sigma_end / self.sigma_max) / self.horizon

    def time(self, sigma: Tensor) -> Tensor:
        place = torch.log(sigma / self.sigma_max) / math.log(self.sigma_end / self.sigma_max)
        return self.horizon * place

    def u(self, t: Tensor) -> Tensor:
        return 1 + (self.horizon - t) ** 2

    def u_rate(self, t: Tensor) -> Tensor:
        return -2 * (self.horizon - t)


PATHS = {
    "edm": EDMSchedule(3.0, 0.2),
    "ve": VESchedule(3.0, 0.2),
    "vp": VPSchedule(0.1, 5.0, 0.1),
    "sub-vp": SubVPSchedule(0.1, 5.0, 0.2),
    "scaled": Scaled(),
}
on_every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def reverse(target: GaussianMixture, path: Schedule, noise: float = 0.0) -> Dynamics:
    """A flow with the law of (x_0 + σε)/u: by ODE, reverse SDE (noise 1), or with more noise."""

    def half_rate(t: Tensor) -> Tensor:
        return -path.sigma(t) * path.sigma_rate(t)

    def score(x: Tensor, t: Tensor) -> Tensor:
        u = expand_like(path.u(t), x)
        return u * target.score(u * x, path.sigma(t))

    def drift(x: Tensor, t: Tensor) -> Tensor:
        u = path.u(t)
        strength = (1 + noise) * half_rate(t) / u**2
        scaling = path.u_rate(t) / u
        return expand_like(strength, x) * score(x, t) - expand_like(scaling, x) * x

    def diffusion(t: Tensor) -> Tensor:
        return (2 * noise * half_rate(t)).sqrt() / path.u(t)

    end = path.sigma_end > 0
    return Dynamics(drift, diffusion if noise else None, path, defined_at_end=end, score=score)


def start(target: GaussianMixture, path: Schedule, n: int, seed: int = 0) -> Tensor:
    """n points of the exact law at t = 0."""
    x = target.sample(n, generator=seeded(seed), dtype=torch.float64)
    return path.noised(x, torch.zeros(n).double(), generator=seeded(seed + 1))


def decay() -> Dynamics:
    return Dynamics(lambda x, t: -x)


# --- orders of convergence: ODEs ---


@on_every_path
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (DDIM(), 1),
        (DPMSolver2M(), 2),
        (UniPC(1), 2),
        (UniPC(2), 3),
        (UniPC(3, corrector=False), 3),
        (UniPC(3), 4),
        (Heun(), 2),
        (Midpoint(), 2),
        (RK4(), 4),
        (StochasticHeun(), 2),
        (SRA1(), 2),
    ],
)
def test_order_on_the_flow_of_a_mixture(solver: Solver, order: int, path: Schedule) -> None:
    """Multistep methods begin by short steps, since their first ones have lower orders."""
    x, dynamics = start(MIXTURE, path, 64), reverse(MIXTURE, path)
    grid = KarrasGrid(path, path.sigma_end, rho=3.0)
    exact = AdaptiveODE("dopri8", rtol=1e-12, atol=1e-12).solve(dynamics, x, grid.nodes(1)).x
    steps, errors = [32, 64, 128], []
    for n in steps:
        nodes = grid.nodes(n)
        short = float(nodes[1]) * tensor([0.0, 1.0, 2.0, 4.0]) / n**1.5
        end = solver.solve(dynamics, x, torch.cat([short, nodes[1:]]))
        errors.append((end.x - exact).norm())
    assert abs(slope(1 / tensor(steps), torch.stack(errors)) - order) < 0.25


@pytest.mark.parametrize("path", [EDMSchedule(3.0), LinearSchedule()], ids=["edm", "linear"])
@pytest.mark.parametrize("backwards", [False, True])
def test_order_where_a_path_stops_before_its_end_or_runs_backwards(
    path: Schedule, backwards: bool
) -> None:
    """Only where σ = 0 or ∞ is reached do the last steps have a lower order."""
    x = MIXTURE.sample(64, generator=seeded(), dtype=torch.float64)
    dynamics = reverse(MIXTURE, path)
    dynamics.defined_at_end = True  # at that of these nodes
    steps, errors = [32, 64, 128], []
    for n in steps:
        nodes = path.time(0.2 * (2.5 / 0.2) ** torch.linspace(1, 0, n + 1, dtype=torch.float64))
        nodes = nodes.flip(0) if backwards else nodes
        exact = AdaptiveODE("dopri8", rtol=1e-12, atol=1e-12).solve(dynamics, x, nodes[[0, -1]]).x
        errors.append((UniPC(2).solve(dynamics, x, nodes).x - exact).norm())
    assert abs(slope(1 / tensor(steps), torch.stack(errors)) - 3) < 0.25


def test_levels_of_noise_have_a_direction() -> None:
    path, x = EDMSchedule(3.0), randn(4, 2)
    with pytest.raises(ConfigError, match="begin at an earlier time"):
        UniPC(2).solve(reverse(MIXTURE, path), x, tensor([3.0, 1.0, 0.0]))
    with pytest.raises(ConfigError, match="towards lower levels only"):
        DPMSolver2MSDE().solve(
            reverse(MIXTURE, path), x, tensor([2.0, 1.0, 0.0]), generator=seeded()
        )


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_errors_of_adaptive_steps_are_in_proportion_to_the_tolerance(method: str) -> None:
    path = PATHS["edm"]
    x, dynamics = start(MIXTURE, path, 64), reverse(MIXTURE, path)
    nodes = UniformGrid(path.horizon).nodes(2)
    exact = AdaptiveODE("dopri8", rtol=1e-12, atol=1e-12).solve(dynamics, x, nodes).x
    tolerances = [1e-5, 1e-6, 1e-7, 1e-8] if method == "bosh3" else [1e-7, 1e-8, 1e-9, 1e-10]
    ends = [
        AdaptiveODE(method, rtol=each, atol=each).solve(dynamics, x, nodes) for each in tolerances
    ]
    errors = torch.stack([(end.x - exact).norm() for end in ends])
    assert abs(slope(tensor(tolerances), errors) - 1) < 0.2
    assert all(a.evaluations < b.evaluations for a, b in pairwise(ends))


# --- orders of convergence: SDEs ---


class GivenNoise(BrownianMotion):
    """The same two standard normals for every step, or those that a function of its start gives."""

    def __init__(self, normals: Callable[[float], tuple[Tensor, Tensor]]) -> None:
        self.normals = normals

    def __call__(self, x: Tensor, t: float, t_next: float) -> Tensor:
        return self.with_area(x, t, t_next)[0]

    def with_area(self, x: Tensor, t: float, t_next: float) -> tuple[Tensor, Tensor]:
        step, (first, second) = t_next - t, self.normals(t)
        return math.sqrt(step) * first, step**1.5 * (first / 2 + second / math.sqrt(12))

    def kick(self, x: Tensor, t: float, index: int = 0) -> Tensor:
        raise NotImplementedError


STOCHASTIC = [(EulerMaruyama(), 1.0, 1), (StochasticHeun(), 1.0, 2), (SRA1(), 1.5, 2)]


@cache
def refined(path: Schedule) -> tuple[Tensor, Dynamics, BrownianPath, Tensor]:
    """Particles, a reverse SDE with four times its noise, one path of it, and where they end."""
    x, dynamics = start(MIXTURE, path, 800), reverse(MIXTURE, path, noise=4)
    brownian = BrownianPath(x.shape, path.horizon, generator=seeded(2))
    nodes = UniformGrid(path.horizon).nodes(1024)
    return x, dynamics, brownian, SRA1().solve(dynamics, x, nodes, brownian=brownian).x


@pytest.mark.parametrize("path", [EDMSchedule(2.0, 0.6), VESchedule(2.0, 0.6), Scaled(2.0, 0.6)])
@pytest.mark.parametrize(("solver", "strong"), [row[:2] for row in STOCHASTIC])
def test_strong_order_on_the_reverse_sde_of_a_mixture(
    solver: Solver, strong: float, path: Schedule
) -> None:
    """The same path of noise with ever smaller steps: the error of each particle, in the mean."""
    x, dynamics, brownian, exact = refined(path)
    steps, grid = [16, 32, 64, 128], UniformGrid(path.horizon)
    ends = [solver.solve(dynamics, x, grid.nodes(n), brownian=brownian).x for n in steps]
    errors = torch.stack([(end - exact).norm(dim=1).mean() for end in ends])
    assert abs(slope(1 / tensor(steps), errors) - strong) < 0.2


@on_every_path
@pytest.mark.parametrize(("solver", "weak"), [row[::2] for row in STOCHASTIC])
def test_weak_order_on_the_reverse_sde_of_a_gaussian(
    solver: Solver, weak: int, path: Schedule
) -> None:
    """The variance at the end, without sampling: the map is linear, so impulses add up to it."""
    dynamics = reverse(Gaussian([0.0], [[0.7]]), path, noise=2)
    exact = (0.7 + path.sigma_end**2) / path.u(tensor(path.horizon)) ** 2
    steps, errors = [32, 64, 128], []
    for n in steps:
        x = torch.zeros(2 * n + 1, 1).double()  # a row for each normal, and one for the start
        x[-1] = (0.7 + path.sigma_max**2) ** 0.5 / path.u(tensor(0.0))

        def impulses(t: float, n: int = n, rows: Tensor = torch.arange(len(x))) -> tuple:  # noqa: B008
            i = round(t / path.horizon * n)
            return (rows == i).double()[:, None], (rows == n + i).double()[:, None]

        end = solver.solve(
            dynamics, x, UniformGrid(path.horizon).nodes(n), brownian=GivenNoise(impulses)
        )
        errors.append((end.x.square().sum() - exact).abs())
    assert abs(slope(1 / tensor(steps), torch.stack(errors)) - weak) < 0.2


@pytest.mark.parametrize(("solver", "weak"), [row[::2] for row in STOCHASTIC])
def test_weak_order_on_a_nonlinear_sde(solver: Solver, weak: int) -> None:
    """E f(X_1) from every start on a circle, by quadrature over the noise of each step.

    Exact: Kolmogorov's backward equation v_t + a v' + b²/2 v'' = 0 for the Fourier series of v.
    """
    modes = torch.arange(-20, 21, dtype=torch.float64)
    grid = torch.arange(41, dtype=torch.float64) * 2 * math.pi / 41
    to_points = torch.exp(1j * grid[:, None] * modes)
    to_modes = to_points.mH / len(grid)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x) + 0.5 * (1 + t) * torch.cos(2 * x)

    dynamics = Dynamics(drift, lambda t: 0.5 * (1 + t))
    final = (torch.sin(grid) + torch.cos(grid)).to(to_modes.dtype)

    def backward(v: Tensor, t: float) -> Tensor:
        coefficients = to_modes @ v
        first, second = (
            to_points @ (1j * modes * coefficients),
            to_points @ (modes**2 * coefficients),
        )
        a = drift(grid[:, None], tensor(t))[:, 0]
        return a * first - (0.5 * (1 + t)) ** 2 / 2 * second

    exact, n = final, 400
    for i in reversed(range(n)):
        t, h = (i + 1) / n, 1 / n
        k1 = backward(exact, t)
        k2 = backward(exact + h / 2 * k1, t - h / 2)
        k3 = backward(exact + h / 2 * k2, t - h / 2)
        exact = exact + h / 6 * (k1 + 2 * k2 + 2 * k3 + backward(exact + h * k3, t - h))

    # Gauss-Hermite nodes are eigenvalues of the recurrence's matrix, weights come with its vectors.
    normals, vectors = torch.linalg.eigh(torch.diag(tensor(range(1, 9)).sqrt(), 1), UPLO="U")
    weights = vectors[0] ** 2
    first, second = torch.cartesian_prod(normals, normals).repeat(len(grid), 1).T[..., None]
    noise = GivenNoise(lambda t: (first, second))
    steps, errors = [8, 16, 32], []
    for n in steps:
        v, times = final, UniformGrid().nodes(n).tolist()
        for i, (t, t_next) in reversed(list(enumerate(pairwise(times)))):
            x = grid.repeat_interleave(len(weights) ** 2)[:, None]
            x = solver.step(dynamics, x, Step(t, t_next, i, n, noise))
            ends = (torch.exp(1j * x * modes) @ (to_modes @ v)).real
            ends = ends.view(len(grid), len(weights), len(weights))
            v = (ends @ weights @ weights).to(final.dtype)
        errors.append((v - exact).abs().square().mean().sqrt())
    assert abs(slope(1 / tensor(steps), torch.stack(errors)) - weak) < 0.2


@pytest.mark.parametrize("solver", [StochasticHeun(), SRA1(), PredictorCorrector(snr=0.03)])
def test_the_reverse_sde_of_a_gaussian_ends_in_it(solver: Solver) -> None:
    path = EDMSchedule(10.0)
    dynamics, x = reverse(GAUSSIAN, path, noise=1), start(GAUSSIAN, path, 20_000)
    nodes = KarrasGrid(path, 0.01).nodes(256 if isinstance(solver, PredictorCorrector) else 48)
    end = solver.solve(dynamics, x, nodes, generator=seeded(2))
    assert_moments(end.x, GAUSSIAN.mean, GAUSSIAN.covariance)


def test_sra1_never_asks_at_the_end() -> None:
    asked: list[float] = []
    dynamics = Dynamics(lambda x, t: asked.append(float(t)) or -x, defined_at_end=False)
    SRA1().solve(dynamics, randn(2, 2), UniformGrid().nodes(2))
    assert asked == [0, 0.375, 0.5, 0.875]


# --- exponential integrators ---

EXPONENTIAL = (DDIM(), DPMSolver2M(), UniPC(2), UniPC(3))


def constant_denoiser(path: Schedule, denoised: Tensor) -> Dynamics:
    """dy/dσ = (y - D)/σ in x = y/u: the flow towards one point."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        u, sigma, rate = (expand_like(f(t), x) for f in (path.u, path.sigma, path.sigma_rate))
        return ((u * x - denoised) / sigma * rate - expand_like(path.u_rate(t), x) * x) / u

    return Dynamics(drift, schedule=path, defined_at_end=path.sigma_end > 0)


@pytest.mark.parametrize("solver", EXPONENTIAL)
@pytest.mark.parametrize("path", [*PATHS.values(), EDMSchedule(40.0), VPSchedule(epsilon=0.0)])
def test_one_step_reaches_a_point(solver: Solver, path: Schedule) -> None:
    """A constant denoiser is integrated exactly, to whatever level: D itself at σ = 0."""
    denoised, x = tensor([2.0, -1.0]), randn(5, 2) * 3
    first, second = tensor([0.0, path.horizon])
    ratio = path.sigma(second) / path.sigma(first)
    exact = (denoised + ratio * (path.u(first) * x - denoised)) / path.u(second)
    for n in (1, 5):
        nodes = UniformGrid(path.horizon).nodes(n)
        assert_close(solver.solve(constant_denoiser(path, denoised), x, nodes).x, exact)


def test_ddim_is_eulers_method_where_sigma_is_the_clock() -> None:
    path = EDMSchedule(3.0)
    nodes, x = KarrasGrid(path).nodes(7), start(MIXTURE, path, 20)
    ends = [solver.solve(reverse(MIXTURE, path), x, nodes).x for solver in (DDIM(), Euler())]
    assert_close(*ends)


@pytest.mark.parametrize("solver", EXPONENTIAL)
def test_steps_depend_on_levels_not_on_the_schedule(solver: Solver) -> None:
    levels, y = tensor([2.9, 1.7, 0.9, 0.5, 0.3]), 3 * randn(20, 2)
    ends = []
    for path in PATHS.values():
        nodes = path.time(levels)
        (u, *_, u_end) = path.u(nodes)
        ends.append(u_end * solver.solve(reverse(MIXTURE, path), y / u, nodes).x)
    for end in ends[1:]:
        assert_close(end, ends[0])


def test_dpm_solver_is_the_papers_algorithm() -> None:
    """Lu et al. 2022, Algorithm 2, in α_t = 1/u, σ_t = σ/u, λ_t = log(α_t/σ_t)."""
    path = PATHS["scaled"]
    nodes = path.time(tensor([3.0, 1.7, 0.9, 0.5, 0.2]))
    alpha, noise = 1 / path.u(nodes), path.sigma(nodes) / path.u(nodes)
    log_snr = (alpha / noise).log()
    expected = [start(MIXTURE, path, 20)]
    denoised: list[Tensor] = []
    for i in range(1, 5):
        x, before = expected[-1], nodes[i - 1].expand(20)
        denoised.append(MIXTURE.denoiser(x / alpha[i - 1], path.sigma(before)))
        h, ahead = log_snr[i] - log_snr[i - 1], denoised[-1]
        if i > 1:
            r = (log_snr[i - 1] - log_snr[i - 2]) / h
            ahead = (1 + 1 / (2 * r)) * denoised[-1] - 1 / (2 * r) * denoised[-2]
        expected.append(noise[i] / noise[i - 1] * x - alpha[i] * ((-h).exp() - 1) * ahead)
    states = list(DPMSolver2M().stream(reverse(MIXTURE, path), expected[0], nodes))
    assert_close([state.x for state in states], expected)


@pytest.mark.parametrize("solver", EXPONENTIAL[:2])
def test_the_step_to_zero_is_the_denoisers_output(solver: Solver) -> None:
    path = EDMSchedule(3.0)
    *_, before, end = solver.stream(
        reverse(MIXTURE, path), start(MIXTURE, path, 9), KarrasGrid(path, 0.3).nodes(6)
    )
    assert_close(end.x, MIXTURE.denoiser(before.x, torch.full((9,), 0.3).double()))


def test_single_precision_keeps_the_end_of_a_long_path() -> None:
    """σ_max - t loses digits where σ is small; D and the steps must not."""
    path = EDMSchedule(80.0)
    x, nodes = start(MIXTURE, path, 200), KarrasGrid(path).nodes(24)
    single, double = (
        DPMSolver2M().solve(reverse(MIXTURE, path), x.to(dtype), nodes).x
        for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32
    assert_close(single.double(), double, atol=1e-3, rtol=0)


@pytest.mark.parametrize("cut", [20, 3])
def test_runs_of_a_multistep_method_do_not_meet(cut: int) -> None:
    """Two streams of one solver on the same dynamics, in turns; particles may leave from the end."""
    path, solver = EDMSchedule(3.0), DPMSolver2M()
    dynamics, nodes = reverse(MIXTURE, path), KarrasGrid(path).nodes(6)
    starts = [start(MIXTURE, path, 20, seed) for seed in (0, 5)]
    alone = [[state.x for state in DPMSolver2M().stream(dynamics, x, nodes)] for x in starts]
    turns = zip(*(solver.stream(dynamics, x, nodes) for x in starts), strict=True)
    for i, pair in enumerate(turns):
        for state, states in zip(pair, alone, strict=True):
            assert torch.equal(state.x, states[i])
    *_, end = solver.stream(dynamics, starts[0], nodes, keep=[20] * 3 + [cut] * 3)
    assert_close(end.x, alone[0][-1][:cut])


def test_a_step_without_a_past_is_ddims() -> None:
    path = PATHS["edm"]
    x, dynamics = start(MIXTURE, path, 9), reverse(MIXTURE, path)
    ends = [solver.step(dynamics, x, Step(0.5, 1.5, 2, 4)) for solver in (DPMSolver2M(), DDIM())]
    assert torch.equal(*ends)


def test_the_sde_without_noise_is_its_flow() -> None:
    path = PATHS["vp"]
    x, dynamics, nodes = (
        start(MIXTURE, path, 9),
        reverse(MIXTURE, path),
        UniformGrid(path.horizon).nodes(5),
    )
    assert torch.equal(
        DPMSolver2MSDE(eta=0.0).solve(dynamics, x, nodes).x,
        DPMSolver2M().solve(dynamics, x, nodes).x,
    )


@on_every_path
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_sdes_steps_add_the_noise_of_their_law(eta: float, path: Schedule) -> None:
    """Of a Gaussian the variance is known: its error falls as the step, the weak order being 1."""
    dynamics = reverse(Gaussian([0.0], [[0.7]]), path)
    exact = (0.7 + path.sigma_end**2) / path.u(tensor(path.horizon)) ** 2
    steps, errors = [32, 64, 128], []
    for n in steps:
        x = torch.zeros(n + 1, 1).double()  # a row for each normal, and one for the start
        x[-1] = (0.7 + path.sigma_max**2) ** 0.5 / path.u(tensor(0.0))

        def impulse(x: Tensor, t: float, t_next: float, n: int = n) -> Tensor:
            row = torch.arange(len(x)) == round(t / path.horizon * n)
            return (t_next - t) ** 0.5 * row.double()[:, None]

        nodes = UniformGrid(path.horizon).nodes(n)
        end = DPMSolver2MSDE(eta).solve(dynamics, x, nodes, brownian=impulse)
        errors.append((end.x.square().sum() - exact).abs())
    assert errors[-1] < 0.05 * exact
    assert slope(1 / tensor(steps), torch.stack(errors)) > 0.8


# --- the loop ---


def plain(name: str) -> Solver:
    return SOLVERS[name]()


@pytest.mark.parametrize("stop", [0, 1, 3, 4])
@pytest.mark.parametrize("name", SOLVERS)
def test_stopping_early_is_the_whole_run_cut_off(name: str, stop: int) -> None:
    path = EDMSchedule(3.0)
    nodes, x = KarrasGrid(path).nodes(4), start(MIXTURE, path, 5)
    whole, cut = (
        list(plain(name).stream(reverse(MIXTURE, path), x, nodes, stop=end, generator=seeded()))
        for end in (None, stop)
    )
    assert len(cut) == stop + 1
    for a, b in zip(whole, cut, strict=False):
        assert torch.equal(a.x, b.x)
        assert (a.step, a.t, a.evaluations) == (b.step, b.t, b.evaluations)


ONE_STEP = [name for name in SOLVERS if not SOLVERS[name]().multistep]


@pytest.mark.parametrize("solver", [*(SOLVERS[name]() for name in ONE_STEP), Heun(churn=2.0)])
@pytest.mark.parametrize(("begin", "stop"), [(0, 2), (1, 4), (2, 3), (3, None), (4, None)])
def test_a_run_from_a_node_is_a_part_of_the_whole_run(
    solver: Solver, begin: int, stop: int | None
) -> None:
    """Also of its noise, which comes by time, and of its churn, which counts the path's steps."""
    path = EDMSchedule(3.0)
    nodes, x = KarrasGrid(path).nodes(4), start(MIXTURE, path, 5)
    takes_noise = isinstance(solver, EulerMaruyama | StochasticHeun | SRA1 | PredictorCorrector)
    dynamics = reverse(MIXTURE, path, noise=1.0 if takes_noise else 0.0)
    brownian = BrownianPath(x.shape, path.horizon, generator=seeded(3))
    whole = list(solver.stream(dynamics, x, nodes, brownian=brownian))
    part = list(
        solver.stream(dynamics, whole[begin].x, nodes, start=begin, stop=stop, brownian=brownian)
    )
    assert len(part) == (4 if stop is None else stop) - begin + 1
    for a, b in zip(whole[begin:], part, strict=False):
        assert torch.equal(a.x, b.x)
        assert (a.step, a.t, a.evaluations - whole[begin].evaluations) == (
            b.step,
            b.t,
            b.evaluations,
        )


@pytest.mark.parametrize(
    "name", [name for name in SOLVERS if name not in ("adaptive", "predictor-corrector")]
)
def test_particles_that_leave_early_stand_where_the_whole_run_takes_them(name: str) -> None:
    """From the back; the two left out take their step's size from the whole batch."""
    path, keep = EDMSchedule(3.0), [6, 4, 4, 1]
    nodes, x, dynamics = KarrasGrid(path).nodes(4), start(MIXTURE, path, 6), reverse(MIXTURE, path)
    noise = BrownianPath(x.shape, path.horizon, generator=seeded(3))

    def front(x: Tensor, t: float, t_next: float) -> Tensor:
        return noise(start(MIXTURE, path, 6), t, t_next)[: len(x)]

    whole = list(plain(name).stream(dynamics, x, nodes, brownian=front))
    kept = list(plain(name).stream(dynamics, x, nodes, keep=keep, brownian=front))
    assert [len(state.x) for state in kept] == [6, *keep]
    for a, b in zip(whole, kept, strict=True):
        assert_close(a.x[: len(b.x)], b.x)
        assert (a.step, a.t, a.evaluations) == (b.step, b.t, b.evaluations)
    later = list(plain(name).stream(dynamics, x, nodes, start=1, stop=3, keep=keep, brownian=front))
    assert [len(state.x) for state in later] == [6, 4, 4]  # keep counts from the path's start


@on_every_path
@pytest.mark.parametrize(
    ("solver", "order"),
    [(Euler(), 1), (DDIM(), 1), (DPMSolver2M(), 2), (Heun(), 2), (Midpoint(), 2), (RK4(), 4)],
)
def test_there_and_back_again(solver: Solver, order: int, path: Schedule) -> None:
    """Falling nodes integrate backwards, to the start: up to the method's order at least."""
    x, dynamics = start(MIXTURE, path, 64), reverse(MIXTURE, path)
    grid, steps, errors = KarrasGrid(path, path.sigma_end, rho=3.0), [32, 64, 128], []
    for n in steps:
        there = solver.solve(dynamics, x, grid.nodes(n))
        back = list(solver.stream(dynamics, there.x, grid.nodes(n).flip(0)))
        assert [state.t for state in back] == grid.nodes(n).flip(0).tolist()
        errors.append((back[-1].x - x).norm())
    assert slope(1 / tensor(steps), torch.stack(errors)) > order - 0.2
    assert errors[-1] < 0.1 * (there.x - x).norm()


def test_adaptive_steps_there_and_back_again() -> None:
    path, solver = PATHS["vp"], AdaptiveODE(rtol=1e-9, atol=1e-9)
    x, dynamics = start(MIXTURE, path, 64), reverse(MIXTURE, path)
    nodes = UniformGrid(path.horizon).nodes(3)
    there = solver.solve(dynamics, x, nodes).x
    assert_close(solver.solve(dynamics, there, nodes.flip(0)).x, x, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("solver", "inside", "to_zero"),  # evaluations of one step
    [
        (DDIM(), 1, 1),
        (DPMSolver2M(), 1, 1),
        (UniPC(3), 1, 1),
        (DPMSolver2MSDE(), 1, 1),
        (EulerMaruyama(), 1, 1),
        (StochasticHeun(), 2, 1),
        (SRA1(), 2, 2),
        (Midpoint(), 2, 2),
        (RK4(), 4, 1),
        (PredictorCorrector(), 2, 1),
        (PredictorCorrector(Heun(), corrections=3), 5, 1),
        (PredictorCorrector(Heun(), corrections=0), 2, 1),
    ],
)
@pytest.mark.parametrize("n", [1, 6])
def test_evaluations(solver: Solver, inside: int, to_zero: int, n: int) -> None:
    for path, last in ((EDMSchedule(3.0), to_zero), (VESchedule(3.0, 0.1), inside)):
        dynamics, nodes = reverse(GAUSSIAN, path), UniformGrid(path.horizon).nodes(n)
        end = solver.solve(dynamics, randn(3, 2), nodes, generator=seeded())
        assert end.evaluations == (n - 1) * inside + last


# --- noise ---


@pytest.mark.parametrize("kind", ["fresh", "path"])
def test_increments_and_areas_have_their_covariance(kind: str) -> None:
    """Over a step h: h, h²/2 and h³/3; nothing in common between steps, or with kicks."""
    times, x = (0.13, 0.4, 1.9), torch.zeros(20_000, 1).double()
    noise = (
        brownian_increments(seeded(1))
        if kind == "fresh"
        else BrownianPath(x.shape, 2.0, generator=seeded(1))
    )
    draws = [part for step in pairwise(times) for part in noise.with_area(x, *step)]
    kicks = [noise.kick(x, 0.4), noise.kick(x, 0.4, 1), noise.kick(x, 0.5)]
    blocks = [tensor([[h, h**2 / 2], [h**2 / 2, h**3 / 3]]) for h in (0.27, 1.5)]
    covariance = torch.block_diag(*blocks, torch.eye(3).double())
    assert_moments(torch.cat([*draws, *kicks], 1), torch.zeros(7).double(), covariance)


def test_a_path_is_halved_by_levys_construction() -> None:
    """Given W and its area over an interval, what is left to chance in its left half: h/16, h/12."""
    x = torch.zeros(20_000, 1).double()
    path = BrownianPath(x.shape, generator=seeded(4))
    (w, area), (half, below) = path.with_area(x, 0.0, 1.0), path.with_area(x, 0.0, 0.5)
    lean = area - w / 2
    tilt = half - w / 2 - 1.5 * lean
    split = 2 * (2 * below - half / 2) - lean / 2 + tilt
    covariance = tensor([1.0, 1 / 12, 1 / 16, 1 / 12]).diag()
    assert_moments(torch.cat([w, lean, tilt, split], 1), torch.zeros(4).double(), covariance)


def test_a_path_is_one_path() -> None:
    """Finer increments and areas add up to coarser ones, whatever is asked first."""
    x = torch.zeros(3, 2).double()
    times = [0.0, 0.25, 0.3, 1 / 3, 0.75, 1.1, 1.5]  # 0.75 is a node of the tree, others are not
    steps = list(pairwise(times))
    path = BrownianPath((3, 2), 1.5, generator=seeded())
    forward = [path.with_area(x, *step) for step in steps]
    again = BrownianPath((3, 2), 1.5, generator=seeded())
    backward = [again.with_area(x, *step) for step in reversed(steps)][::-1]
    assert_close(forward, backward, rtol=0, atol=0)
    whole, whole_area = again.with_area(x, 0.0, 1.5)
    assert_close(sum(w for w, _ in forward), whole)
    risen, area = torch.zeros_like(x), torch.zeros_like(x)
    for (t, t_next), (w, below) in zip(steps, forward, strict=True):
        risen, area = risen + w, area + below + (t_next - t) * risen
    assert_close(area, whole_area)
    assert_close(path(x, 0.25, 0.75), again.with_area(x, 0.25, 0.75)[0])
    assert path(x.float(), 0.25, 0.75).dtype == torch.float32
    other = BrownianPath((3, 2), 1.5, generator=seeded(1))
    assert not torch.equal(other(x, 0.0, 1.5), whole)


def test_a_path_below_its_finest_interval_follows_its_mean() -> None:
    """So that it converges as levels are added: by the root of the finest interval."""
    x = torch.zeros(2000, 1).double()
    ends = [
        BrownianPath(x.shape, generator=seeded(), levels=n).with_area(x, 0.1, 0.777)
        for n in (2, 4, 6, 8, 20)
    ]
    errors = torch.stack([(w - ends[-1][0]).norm() for w, _ in ends[:-1]])
    assert abs(slope(tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256]), errors) - 0.5) < 0.2
    parabola = BrownianPath(x.shape, generator=seeded(), levels=0)
    half, end = parabola(x, 0.0, 0.4), parabola(x, 0.0, 0.8)
    assert_close(parabola.with_area(x, 0.0, 0.8)[1], 0.8 / 6 * (4 * half + end))  # Simpson's rule


def test_noise_is_a_function_of_the_path() -> None:
    """Kicks of churn and corrections included: the same path, the same particles."""
    schedule = EDMSchedule(3.0)
    x, nodes = start(MIXTURE, schedule, 5), UniformGrid(3.0).nodes(6)
    for solver in (Heun(churn=3.0), PredictorCorrector(Heun(churn=3.0), corrections=2)):
        first, again, other = (
            solver.solve(
                reverse(MIXTURE, schedule),
                x,
                nodes,
                brownian=BrownianPath(x.shape, 3.0, generator=seeded(seed)),
            ).x
            for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_no_kick_is_asked_for_twice() -> None:
    asked: list[tuple[float, int]] = []

    class Recorder(GivenNoise):
        def kick(self, x: Tensor, t: float, index: int = 0) -> Tensor:
            asked.append((t, index))
            return torch.ones_like(x)

    schedule, x = EDMSchedule(3.0), randn(2, 2)
    noise = Recorder(lambda t: (x, x))
    solver = PredictorCorrector(Heun(churn=3.0), corrections=2)
    solver.solve(reverse(MIXTURE, schedule), x, UniformGrid(3.0).nodes(4), brownian=noise)
    assert len(asked) == len(set(asked)) == 4 + 3 * 2


# --- correctors ---


def test_a_correction_is_the_papers() -> None:
    """x + ε s + √(2ε) z, ε = 2 (r ‖z‖/‖s‖)², norms in the mean over the batch."""
    x, path = randn(7, 2), EDMSchedule(3.0)
    nodes, still = tensor([0.0, 1.0, 3.0]), Dynamics(lambda x, t: torch.zeros_like(x))
    still.score = lambda x, t: MIXTURE.score(x, path.sigma(t))
    solver = PredictorCorrector(corrections=2, snr=0.3)
    end = solver.solve(still, x, nodes, stop=1, generator=seeded()).x
    generator = seeded()
    for _ in range(2):
        z = torch.randn(7, 2, generator=generator, dtype=x.dtype)
        s = MIXTURE.score(x, torch.full((7,), 2.0).double())
        lengths = [sum(math.hypot(*row) for row in rows.tolist()) / 7 for rows in (z, s)]
        size = 2 * (0.3 * lengths[0] / lengths[1]) ** 2
        x = x + size * s + math.sqrt(2 * size) * z
    assert_close(end, x)


@pytest.mark.parametrize("snr", [0.1, 0.5])
def test_corrections_settle_at_a_bias_of_snr_squared(snr: float) -> None:
    law, n = Gaussian([0.0], [[0.7]]), 40_000
    still = Dynamics(lambda x, t: torch.zeros_like(x), score=lambda x, t: law.score(x))
    x = law.sample(n, generator=seeded(), dtype=torch.float64) * 1.2  # and forget the start
    solver = PredictorCorrector(corrections=20 if snr > 0.3 else 200, snr=snr)
    end = solver.solve(still, x, tensor([0.0, 1.0]), generator=seeded(1)).x
    assert_mean(end.square(), 0.7 * (1 + snr**2))


@pytest.mark.parametrize("predictor", [Euler(), Heun(), DDIM(), AdaptiveODE(), Heun(churn=5.0)])
def test_corrections_keep_the_marginals_of_the_flow(predictor: Solver) -> None:
    path = EDMSchedule(10.0)
    nodes = KarrasGrid(path, 0.01).nodes(256 if isinstance(predictor, (Euler, DDIM)) else 32)
    x = start(GAUSSIAN, path, 20_000)
    solver = PredictorCorrector(predictor, snr=0.03)
    end = solver.solve(reverse(GAUSSIAN, path), x, nodes, generator=seeded(2)).x
    assert_moments(end, GAUSSIAN.mean, GAUSSIAN.covariance)


def test_corrections_repair_a_wrong_start() -> None:
    """The flow alone carries a wrong variance along; Langevin steps forget it."""
    path = EDMSchedule(10.0)
    x, nodes = 1.3 * start(GAUSSIAN, path, 4000), KarrasGrid(path, 0.01).nodes(40)
    errors = {}
    for n in (0, 4):
        solver = PredictorCorrector(Heun(), corrections=n, snr=0.1)
        end = solver.solve(reverse(GAUSSIAN, path), x, nodes, generator=seeded(2)).x
        errors[n] = (end.T.cov() - GAUSSIAN.covariance).norm() / GAUSSIAN.covariance.norm()
    assert errors[0] > 0.6
    assert errors[4] < 0.06


def test_without_corrections_the_predictor_is_left() -> None:
    path = EDMSchedule(3.0)
    x, nodes = start(MIXTURE, path, 5), UniformGrid(3.0).nodes(6)
    dynamics = reverse(MIXTURE, path)
    dynamics.score = None
    for predictor in (Heun(), Heun(churn=2.0)):
        ends = [
            solver.solve(dynamics, x, nodes, generator=seeded()).x
            for solver in (predictor, PredictorCorrector(predictor, corrections=0))
        ]
        assert torch.equal(*ends)


# --- adaptive steps ---


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"])
def test_adaptive_steps_give_the_nodes_of_the_grid(method: str) -> None:
    calls = 0

    def drift(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.cos(t) * x

    nodes = tensor([0.0, 0.3, 2.0, 5.0])
    solver = AdaptiveODE(method, rtol=1e-6, atol=1e-6)
    states = list(solver.stream(Dynamics(drift), tensor([[1.0]]), nodes))
    assert [state.t for state in states] == nodes.tolist()
    values = torch.cat([state.x for state in states])[:, 0]
    assert_close(values, torch.sin(nodes).exp(), atol=1e-3, rtol=0)
    assert states[-1].evaluations == calls
    counts = [state.evaluations for state in states]
    assert counts == sorted(counts)


def test_adaptive_steps_never_leave_the_path() -> None:
    """Not even to look for a first step; the last interval, to σ = 0, is Euler's."""
    path, asked = EDMSchedule(3.0), []
    exact = reverse(MIXTURE, path).drift

    def drift(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t))
        return exact(x, t)

    dynamics = Dynamics(drift, schedule=path, defined_at_end=False)
    nodes = path.time(tensor([3.0, 1e-4, 1e-5, 0.0]))
    *_, before, end = AdaptiveODE().stream(dynamics, start(MIXTURE, path, 9), nodes)
    assert max(asked) == float(nodes[2])
    assert end.evaluations == before.evaluations + 1
    assert_close(end.x, MIXTURE.denoiser(before.x, torch.full((9,), 1e-5).double()))


# --- quality ---


@pytest.mark.slow
def test_dpm_solver_samples_a_mixture_in_20_evaluations() -> None:
    """From the exact law at σ_max = 40, below the 99% quantile of data against data.

    On this grid 14 are enough; Heun's method needs about 30, Euler's, which is DDIM's here, 60.
    """
    n, path = 10_000, EDMSchedule(40.0)
    grid = KarrasGrid(path, 0.05, rho=20.0)

    def distances(x: Tensor, y: Tensor) -> Tensor:
        return tensor([energy_distance(x, y), sliced_wasserstein2(x, y, projections=64)])

    def draw(seed: int) -> Tensor:
        return MIXTURE.sample(n, generator=seeded(seed))

    data = [distances(draw(2 * i), draw(2 * i + 1)) for i in range(100)]
    limits = torch.stack(data).quantile(0.99, dim=0)

    def excess(solver: Solver, steps: int, evaluations: int) -> Tensor:
        """Both distances over their quantiles, in the mean of runs: one can be unlucky."""
        ratios = []
        for seed in (200, 300, 400, 500):
            x = start(MIXTURE, path, n, seed).float()
            end = solver.solve(reverse(MIXTURE, path), x, grid.nodes(steps))
            assert end.evaluations == evaluations
            ratios.append(distances(end.x, draw(seed + 50)) / limits)
        return torch.stack(ratios).mean(0)

    assert (excess(DPMSolver2M(), 20, 20) < 1).all()
    assert (excess(DPMSolver2M(), 14, 14) < 1).all()
    assert (excess(Heun(), 10, 19) > 1).all()
    assert (excess(DDIM(), 20, 20) > 1).all()


# --- errors ---


@pytest.mark.parametrize("solver", EXPONENTIAL)
def test_exponential_integrators_need_levels(solver: Solver) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        solver.solve(decay(), randn(2, 2), UniformGrid().nodes(4))


@pytest.mark.parametrize("solver", [DDIM(), DPMSolver2M(), AdaptiveODE(), Midpoint(), RK4()])
def test_solvers_of_odes_refuse_noise(solver: Solver) -> None:
    dynamics = reverse(GAUSSIAN, PATHS["edm"], noise=1)
    with pytest.raises(ConfigError, match=f"{type(solver).__name__} integrates ODEs"):
        solver.solve(dynamics, randn(2, 2), UniformGrid().nodes(4), generator=seeded())


def test_a_corrector_needs_a_score_noise_and_sense() -> None:
    nodes, x = UniformGrid().nodes(4), randn(2, 2)
    with pytest.raises(ConfigError, match="score"):
        PredictorCorrector().solve(decay(), x, nodes, generator=seeded())
    with pytest.raises(ConfigError, match="generator"):
        PredictorCorrector().solve(reverse(GAUSSIAN, PATHS["edm"]), x, nodes)
    with pytest.raises(ConfigError, match="DPMSolver2M looks back"):
        PredictorCorrector(DPMSolver2M())
    for build in (lambda: PredictorCorrector(corrections=-1), lambda: PredictorCorrector(snr=0.0)):
        with pytest.raises(ConfigError, match="(corrections|snr) of PredictorCorrector must be"):
            build()


def test_increments_alone_do_not_do_for_all() -> None:
    noise, nodes = Dynamics(lambda x, t: -x, torch.ones_like), UniformGrid().nodes(4)
    with pytest.raises(ConfigError, match="BrownianPath"):
        SRA1().solve(noise, randn(2, 2), nodes, brownian=lambda x, t, t_next: x)


def test_adaptive_settings_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dopri5'"):
        AdaptiveODE("dopri55")
    for rtol, atol in ((0.0, 1e-5), (1e-5, -1.0)):
        with pytest.raises(ConfigError, match="above 0"):
            AdaptiveODE(rtol=rtol, atol=atol)


def test_a_tolerance_that_cannot_be_kept_is_reported() -> None:
    singular = Dynamics(lambda x, t: x**2)  # reaches infinity at t = 1
    with pytest.raises(NumericsError, match="raise rtol and atol"):
        AdaptiveODE().solve(singular, tensor([[1.0]]), UniformGrid(2.0).nodes(1))


def test_a_path_of_noise_is_asked_where_it_lives() -> None:
    with pytest.raises(ConfigError, match="horizon"):
        BrownianPath((2, 2), 0.0, generator=seeded())
    path = BrownianPath((2, 2), generator=seeded())
    for x, t in ((randn(3, 2), 1.0), (randn(2, 2), 1.5), (randn(2, 2), -0.5)):
        with pytest.raises(ValueError, match="this path"):
            path(x, 0.0, t)
