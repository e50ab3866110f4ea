"""GPM §A.1: a stochastic component in interacting particle models.

A share γ of the own score is replaced by noise (GPM eqs. 21-22). Free particles keep their laws, with
exact fields to the last digit of their moments. A generator passes both parts through A_θ, which averages
independent noise away and leaves the field without what was removed (framework §1): its law is then that
of the deterministic flow with (1 - γ) of the own score, and Score GANs with γ > 0 are measured.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch

from partikel.diffflow import DiffFlow
from partikel.schedules import VESchedule
from partikel.studies.benches import SCORE_GAN, Bench, benches
from partikel.studies.curves import seeds_figure
from partikel.studies.distances import FRECHET, Evaluated
from partikel.studies.gaussian_laws import gaussian_marginals
from partikel.studies.item import Finding, Item, Outcome, Table, log_ratios, spread
from partikel.studies.lab import Lab
from partikel.studies.theory import exact_targets, limits, matched_trial, run_trial
from partikel.targets import Gaussian

SOURCE = "GPM §A.1"
PATH = VESchedule(40.0)
EXACT = 1e-6
"""Relative differences of covariances up to this one are rounding."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data.
        gammas: shares by the data's key.
        seeds: by the data's key.
        shares: γ of the free particles.
        particles: of a simulation.
        runs: simulations of each γ, odd.
    """

    benches: tuple[Bench, ...]
    gammas: dict[str, tuple[float, ...]]
    seeds: dict[str, tuple[int, ...]]
    shares: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0)
    particles: int = 10_000
    runs: int = 3


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Free particles with exact fields, then generators."""
    parts = {"particles": _particles(plan, lab)}
    parts |= {bench.key: _generators(plan, bench, lab) for bench in plan.benches}
    return Outcome.of(
        parts,
        {"particles": plan.particles, "level of the quantiles": 0.99},
        [
            "The flow of the free particles is GPM's eq. 21 with EDM's weights: |σ'|σ (2 s_p - (1 - γ) s_ρ) "
            "with noise √(2γ|σ'|σ) dW, from the exact law at σ = 40.",
            "A Score GAN's noise has the scale √(2γβ/η), η the generator's learning rate, which makes it "
            "Brownian for free particles that move by η times the field (framework §1).",
        ],
    )


def _flow(gamma: float) -> DiffFlow:
    """Eq. 21 on the plane: α = 2, β_own = 1 are β = g_s², λ² = g_s²; g² = λ² + 2γβ_own."""
    return DiffFlow.reverse(PATH, g2=1 + gamma, lambda2=1.0)


def _particles(plan: Plan, lab: Lab) -> Outcome:
    mixture, gaussian = exact_targets(2)

    def work() -> dict[str, Any]:
        trials = {
            gamma: matched_trial(f"γ = {gamma:g}", 2, PATH, 1 + gamma, 1.0) for gamma in plan.shares
        }
        end = next(iter(trials.values())).end
        quantiles = limits(end, plan.particles, pairs=50)
        ended = {
            f"{gamma:g}": run_trial(trial, quantiles, plan.particles, runs=plan.runs)
            for gamma, trial in trials.items()
        }
        kept, lost = (
            {f"{gamma:g}": _moved(gamma, gaussian, noise=noise) for gamma in plan.shares}
            for noise in (True, False)
        )
        return {
            "energy": {gamma: each.energy for gamma, each in ended.items()},
            "sliced W2": {gamma: each.sliced_w2 for gamma, each in ended.items()},
            "limits": {"energy": quantiles[0], "sliced W2": quantiles[1]},
            "covariance": kept,
            "covariance without noise": lost,
        }

    values = lab.once("particles", work)
    limit = values["limits"]["energy"]
    table = Table.of(
        "Free particles and exact fields: the law at the end",
        values["energy"],
        {
            "γ": str,
            "energy distance to the mixture": lambda gamma: spread(values["energy"][gamma]),
            "between draws of it (99 %)": lambda _: limit,
            "Gaussian: relative error of the covariance": values["covariance"].get,
            "the same where noise averages out": values["covariance without noise"].get,
        },
    )
    # the median of the runs: one of a hundred is above the quantile by its meaning
    worst = max(statistics.median(each) for each in values["energy"].values())
    closed = max(values["covariance"].values())
    finding = Finding.of(
        "Replacing a share γ of the own score by noise leaves the laws of free particles as they are.",
        f"{SOURCE}, eq. 21",
        f"exact fields in the plane, γ from {plan.shares[0]:g} to {plan.shares[-1]:g}",
        f"On a mixture the energy distance at the end is at most {worst:.2g} (draws of the mixture: "
        f"{limit:.2g}, 99 % quantile); on a Gaussian the covariance is exact to {closed:.1g}.",
        [limit - worst, EXACT - closed],
    )
    return Outcome([finding], [table], values)


def _moved(gamma: float, target: Gaussian, *, noise: bool) -> float:
    """Relative error of the covariance at the end, by its moments' equations.

    Without the noise but with (1 - γ) of the own score, the flow is the one at (g², g²) of the plane.
    """
    flow = _flow(gamma) if noise else _flow(gamma).at(1 + gamma, 1 + gamma)
    level = PATH.sigma_max**2 * torch.eye(2, dtype=torch.float64)
    start = Gaussian(target.mean, target.covariance + level)
    _, covariances = gaussian_marginals(flow, target, start, [0.0, PATH.horizon], tolerance=1e-10)
    end = target.covariance + PATH.sigma_end**2 * torch.eye(2, dtype=torch.float64)
    return float((covariances[-1] - end).norm() / end.norm())


def _generators(plan: Plan, bench: Bench, lab: Lab) -> Outcome:
    seeds = plan.seeds[bench.key]
    where = replace(bench, seeds=seeds).where
    training = bench.models[SCORE_GAN]
    found: dict[float, Evaluated] = {}
    for gamma in (0.0, *plan.gammas[bench.key]):
        changed = training.but(f"gamma-{gamma:g}", gamma=gamma) if gamma else training
        found[gamma] = lab.evaluated(changed, seeds, bench.samples)
    none = found[0.0]
    unit = none.distance.name
    also = ("precision", "recall") if none.distance is FRECHET else ("modes", "within_3sigma")
    lab.draw(
        seeds_figure(
            {"Score GAN": [(gamma, each.far) for gamma, each in found.items()]},
            "γ, share of the own score replaced by noise",
            f"{unit}, {where}",
            log=True,
            level=("data vs data", none.floor),
        ),
        f"{bench.data}: Score GANs with noise in their field; mean and range of seeds.",
        bench.key,
    )
    table = Table(
        f"Score GANs with noise, {where}",
        ("γ", unit, *(each.replace("_", " ") for each in also)),
        tuple(
            (f"{gamma:g}", spread(each.far), *(spread(each.figures(key)) for key in also))
            for gamma, each in found.items()
        ),
    )
    far = {f"{gamma:g}": each.far for gamma, each in found.items()}
    return Outcome([_verdict(found, where)], [table], far)


def _verdict(found: dict[float, Evaluated], where: str) -> Finding:
    """By the mean log ratio over γ > 0: "often" speaks of most, not of all."""
    none = found[0.0]
    shown = ", ".join(f"{spread(each.far)} at γ = {gamma:g}" for gamma, each in found.items())
    ratios = [
        log_ratios(each.far, none.far, none.distance.floor)
        for gamma, each in found.items()
        if gamma
    ]
    return Finding.of(
        "A stochastic component in a Score GAN is often detrimental to its quality.",
        SOURCE,
        where,
        f"{none.distance.name}: {shown}.",
        [statistics.fmean(each) for each in zip(*ratios, strict=True)],
        0.1,
    )


ITEM = Item(
    "a1",
    SOURCE,
    "Stochastic interacting particle models",
    "Brownian noise may replace a share of the own score in a particle model without changing its laws, "
    "and the same exchange can be made in a Score GAN's field; the paper found in preliminary experiments "
    "that it is often detrimental to the FID.",
    {
        "smoke": Plan(
            benches("smoke", "gaussians"),
            {"gaussians": (0.5,)},
            {"gaussians": (0,)},
            (0.0, 0.5),
            300,
            1,
        ),
        "cpu": Plan(
            benches("cpu", "gaussians", "digits"),
            {"gaussians": (0.1, 0.5, 1.0), "digits": (0.1, 0.5)},
            {"gaussians": (0, 1, 2), "digits": (0,)},
        ),
        "paper": Plan(
            benches("paper", "gaussians", "mnist"),
            {"gaussians": (0.1, 0.5, 1.0), "mnist": (0.1, 0.5, 1.0)},
            {"gaussians": (0, 1, 2), "mnist": (0,)},
        ),
    },
    measure,
)
