"""With exact fields, from the exact law at t = 0, presets end in the law that the theory says.

10,000 samples against the 99% quantile of two draws of that law, by the majority of at most three
runs, in 2-D and, where ``make check`` runs them, 16-D. The whole table is benchmarks/exact_presets.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import GAUSSIAN, assert_moments, seeded, tensor
from exact_trials import (
    MATCHED,
    PATHS,
    Endings,
    annealed_trial,
    closed_form_trial,
    exact_targets,
    limits,
    matched_trial,
    run_trial,
    trials,
)
from partikel.diffflow import DiffFlow
from partikel.metrics import energy_distance, sliced_wasserstein2
from partikel.schedules import EDMSchedule, KarrasGrid
from partikel.solvers import DPMSolver2M, EulerMaruyama, Heun
from partikel.studies.theory import Trial
from partikel.targets import Gaussian

N, LINES = 10_000, 64


@cache
def quantiles(dim: int) -> tuple[float, float]:
    """Those of the mixture."""
    trial = matched_trial("", dim, PATHS["VE"], 2.0, 2.0)
    return limits(trial.end, N, projections=LINES)


def tried(trial: Trial, dim: int) -> Endings:
    return run_trial(trial, quantiles(dim), N, projections=LINES)


in_16_dimensions = pytest.param(16, marks=pytest.mark.slow)
in_both = pytest.mark.parametrize("dim", [2, in_16_dimensions])


# --- presets ---


@in_both
@pytest.mark.parametrize(("preset", "steps"), [("SDE", 50), ("ODE", 25)])
@pytest.mark.parametrize("path", PATHS)
def test_diffusions_end_in_the_data(path: str, preset: str, steps: int, dim: int) -> None:
    trial = matched_trial(f"{path} {preset}", dim, PATHS[path], *MATCHED[preset])
    found = tried(replace(trial, steps=steps), dim)
    assert found.holds
    assert found.evaluations <= 2 * steps


@pytest.mark.parametrize(
    ("preset", "dim"),
    [
        ("Diffusion-GAN, g² = 1.5β", 2),
        pytest.param("Diffusion-GAN, g² = 1.5β", 16, marks=pytest.mark.slow),
        pytest.param("Diffusion-GAN without noise", 16, marks=pytest.mark.slow),
        ("SLCD, λ² = 1.5β", 2),
        ("SLCD, λ² = 0.5β", 2),
        pytest.param("SLCD, g² = 3β", 16, marks=pytest.mark.slow),
    ],
)
def test_other_points_end_in_the_data(preset: str, dim: int) -> None:
    trial = matched_trial(preset, dim, PATHS["VP"], *MATCHED[preset])
    assert tried(replace(trial, steps=30 if trial.flow.deterministic else 70), dim).holds


def test_annealed_langevin_dynamics_keep_pace() -> None:
    assert tried(annealed_trial(2, strength=60.0, steps=300), 2).holds


@pytest.mark.parametrize(
    ("preset", "dim", "n"),
    [
        ("continuation, g² = β, λ² = -0.5β", 2, 2000),
        pytest.param("GAN, β = 1", 16, N, marks=pytest.mark.slow),
        pytest.param("DiffODE-GAN", 2, N, marks=pytest.mark.slow),
        pytest.param("continuation, g² = β, λ² = -0.5β", 2, N, marks=pytest.mark.slow),
    ],
)
def test_laws_in_closed_form(preset: str, dim: int, n: int) -> None:
    """Where ∇d is not zero, on Gaussians; the continuation's law is not the data's."""
    trial = closed_form_trial(preset, dim)
    bounds = limits(trial.end, n, pairs=60, projections=LINES)
    assert run_trial(trial, bounds, n, projections=LINES).holds
    if trial.law != "Gaussian":
        _, target = exact_targets(dim)
        data = replace(trial, end=lambda n, generator: target.sample(n, generator=generator))
        assert not run_trial(data, bounds, n, runs=1, projections=LINES).holds


@in_both
def test_dpm_solver_needs_few_evaluations(dim: int) -> None:
    """From σ_max = 40; Heun's method needs more on the same grid."""
    path = PATHS["Karras"]
    base = matched_trial("Karras ODE", dim, path, *MATCHED["ODE"])
    base = replace(base, grid=KarrasGrid(path, 0.05, rho=20.0))
    found = tried(replace(base, solver=DPMSolver2M(), steps=20), dim)
    assert found.holds
    assert found.evaluations == 20
    assert not tried(replace(base, solver=Heun(), steps=8), dim).holds


# --- what would be found ---


@in_both
def test_what_is_wrong_is_found(dim: int) -> None:
    """A Gaussian start, a law that is not the data's, too few steps: each is above both quantiles."""
    path = PATHS["VP"]
    sde = matched_trial("SDE", dim, path, *MATCHED["SDE"])
    mixture, _ = exact_targets(dim)
    moments = Gaussian(mixture.mean, mixture.covariance)
    wrong = {
        "end": replace(sde, end=lambda n, generator: moments.sample(n, generator=generator)),
        "λ² = 0.8β, at the SDE's β": replace(sde, flow=sde.flow.with_lambda2(0.8)),
        "steps": replace(sde, steps=15, solver=EulerMaruyama()),
    }
    for name, trial in wrong.items():
        found = run_trial(trial, quantiles(dim), N, runs=1, projections=LINES)
        assert not found.holds, name


def test_a_gaussian_start_is_found() -> None:
    """At σ_max = 1 the law of the noised data ends right, the Gaussian of its moments does not."""
    path = EDMSchedule(1.0)
    trial = matched_trial("short ODE", 2, path, *MATCHED["ODE"])
    mixture, _ = exact_targets(2)
    spread = mixture.covariance + torch.eye(2).double()
    moments = Gaussian(mixture.mean, spread)
    wrong = replace(trial, start=lambda n, generator: moments.sample(n, generator=generator))
    assert tried(trial, 2).holds
    assert not tried(wrong, 2).holds


# --- its tools ---


def test_trials_are_those_of_the_table() -> None:
    found = list(islice(trials(2), len(PATHS) * len(MATCHED)))
    t = tensor([0.2, 0.5])
    for trial in found:
        point = MATCHED[trial.preset.split(" ", 1)[1]]
        for ratio, expected in zip(trial.flow.coordinates(t), point, strict=True):
            assert_close(ratio, tensor([expected] * 2))
        assert trial.flow.matched
        assert (trial.solver == Heun()) == trial.flow.deterministic


def test_targets_in_many_dimensions() -> None:
    mixture, gaussian = exact_targets(16)
    again, _ = exact_targets(16)
    assert_close(mixture.means, again.means, rtol=0, atol=0)
    assert mixture.dim == gaussian.dim == 16
    for law in (mixture, gaussian):  # neither symmetric nor isotropic
        spread = torch.linalg.eigvalsh(law.covariance)
        assert spread[0] > 0.1
        assert spread[-1] > 4 * spread[0]
        assert law.mean.norm() > 1


def test_starts_are_exact() -> None:
    path = PATHS["VP"]
    trial = matched_trial("SDE", 2, path, *MATCHED["SDE"])
    mixture, _ = exact_targets(2)
    u, sigma = path.u(tensor([0.0])), path.sigma(tensor([0.0]))
    noise = sigma**2 * torch.eye(2).double()
    covariance = (mixture.covariance + noise) / u**2
    x = trial.start(100_000, seeded()).double()
    assert_moments(x, mixture.mean / u, covariance)


def test_limits_are_quantiles_of_pairs() -> None:
    """A share of 1 - level of pairs lies above each."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return GAUSSIAN.sample(n, generator=generator)

    n, pairs = 300, 400
    bounds = limits(draw, n, level=0.9, pairs=400, projections=LINES)
    found = []
    for pair in range(pairs):
        x, y = draw(2 * n, seeded(1000 + pair)).split(n)
        found.append([energy_distance(x, y), sliced_wasserstein2(x, y, LINES)])
    shares = (tensor(found) > tensor(bounds)).double().mean(0)
    assert ((shares - 0.1).abs() < 0.06).all()


def test_the_majority_decides() -> None:
    below, above = 0.5, 1.5
    rows = [([below], True), ([above], False), ([above, below, below], True)]
    rows.append(([below, above, above], False))
    for energy, holds in rows:
        assert Endings(1, energy, [below] * len(energy), 1.0, 1.0).holds == holds
        assert Endings(1, [below] * len(energy), energy, 1.0, 1.0).holds == holds
    still = DiffFlow.langevin(0.3, 1e-9, horizon=1e-6)
    trial = matched_trial("", 2, PATHS["VE"], 2.0, 2.0)
    base = replace(trial, flow=still, steps=1, start=trial.end, solver=EulerMaruyama())
    assert len(run_trial(base, (1.0, 1.0), 600).energy) == 2
    assert len(run_trial(base, (-1.0, -1.0), 600).energy) == 2
    assert len(run_trial(base, (1.0, 1.0), 600, runs=1).energy) == 1
