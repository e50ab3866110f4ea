"""Every preset of the plane with exact fields: does it end in the law that the theory says?

    python benchmarks/exact_presets.py [--dims 2 16]

10,000 particles from the exact law at t = 0, at a stated number of steps, against the 99% quantile
of two draws of the end's law: energy distance and sliced W2. Then what each solver of the ODE needs at
σ_max = 40, by its best grid, and solvers of the SDE at the same evaluations. Takes about ten minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from common import one_thread, save  # isort: skip
from exact_trials import PATHS, Endings, limits, matched_trial, run_trial, trials  # isort: skip
import torch

from partikel.schedules import KarrasGrid
from partikel.solvers import (
    DDIM,
    SRA1,
    DPMSolver2M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Solver,
    StochasticHeun,
)
from partikel.studies.theory import Trial

N = 10_000
LEVEL = 0.99
GRIDS = [(sigma_min, rho) for sigma_min in (0.02, 0.05, 0.1) for rho in (7.0, 20.0)]
NEEDED: Mapping[str, tuple[Solver, range]] = {
    "dpmpp-2m": (DPMSolver2M(), range(6, 31)),
    "heun": (Heun(), range(6, 31)),
    "ddim": (DDIM(), range(20, 141, 10)),
}
"""Solvers of the ODE and numbers of steps, in which the first that holds is looked for."""
SDE_SOLVERS: Mapping[str, tuple[Solver, int]] = {
    "stochastic-heun": (StochasticHeun(), 100),
    "sra1": (SRA1(), 100),
    "euler-maruyama": (EulerMaruyama(), 800),
    "predictor-corrector": (PredictorCorrector(EulerMaruyama(), snr=0.05), 400),
}


def row(trial: Trial, found: Endings) -> dict[str, Any]:
    """A line of the table; of the runs, the one in the middle."""
    middle = len(found.energy) // 2
    return {
        "preset": trial.preset,
        "law": trial.law,
        "solver": type(trial.solver).__name__,
        "steps": trial.steps,
        "evaluations": found.evaluations,
        "energy": sorted(found.energy)[middle],
        "energy_limit": found.energy_limit,
        "sliced_w2": sorted(found.sliced_w2)[middle],
        "sliced_w2_limit": found.sliced_w2_limit,
        "below": found.below,
        "holds": found.holds,
    }


def table(dim: int, known: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Every trial at its own number of steps."""
    rows = []
    for trial in trials(dim):
        if trial.law not in known:
            known[trial.law] = limits(trial.end, N, level=LEVEL)
        started = time.process_time()
        rows.append(row(trial, run_trial(trial, known[trial.law], N)))
        print(dim, round(time.process_time() - started, 1), rows[-1], flush=True)
    return rows


def needed(dim: int, quantiles: tuple[float, float]) -> dict[str, Any]:
    """Evaluations from which on a solver of the Karras ODE holds at σ_max = 40, by its best grid."""
    path, found = PATHS["Karras"], {}
    base = matched_trial("Karras ODE", dim, path, 2.0, 2.0)
    for name, (solver, counts) in NEEDED.items():
        fewest: dict[str, Any] | None = None
        for sigma_min, rho in GRIDS:
            for steps in counts:
                if fewest is not None and steps >= fewest["steps"]:
                    break
                grid = KarrasGrid(path, sigma_min, rho)
                trial = replace(base, solver=solver, steps=steps, grid=grid)
                one = run_trial(trial, quantiles, N, runs=5)
                if one.holds:
                    fewest = {**row(trial, one), "grid": {"sigma_min": sigma_min, "rho": rho}}
        found[name] = fewest
        print(dim, "needed:", name, fewest, flush=True)
    return found


def sde_solvers(dim: int, quantiles: tuple[float, float]) -> list[dict[str, Any]]:
    """The VE SDE by other solvers."""
    rows = []
    base = matched_trial("VE SDE", dim, PATHS["VE"], 2.0, 1.0)
    for solver, steps in SDE_SOLVERS.values():
        trial = replace(base, solver=solver, steps=steps)
        rows.append(row(trial, run_trial(trial, quantiles, N)))
        print(dim, rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", nargs="+", type=int, default=[2, 16])
    arguments = parser.parse_args()
    one_thread()
    record: dict[str, Any] = {}
    for dim in arguments.dims:
        known: dict[str, tuple[float, float]] = {}
        rows = table(dim, known)
        record[f"{dim}-D"] = {
            "presets": rows,
            "holds": all(each["holds"] for each in rows),
            "sde_solvers": sde_solvers(dim, known["mixture"]),
            "ode_needs": needed(dim, known["mixture"]),
        }
        print(
            save(
                "exact-presets",
                {
                    "samples": N,
                    "level": LEVEL,
                    "runs": "at most 3 (5 where a number of steps is looked for), until most agree",
                    "left_out": "saturating and non-saturating GAN: no closed form for their laws",
                    **record,
                },
            )
        )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
