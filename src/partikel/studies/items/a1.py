"""GPM §A.1: a stochastic component in interacting particle models.

A share γ of the own score is replaced by noise (GPM eqs. 21-22). Free particles keep their laws, with
exact fields to the last digit of their moments. A generator passes both parts through A_θ, which averages
independent noise away and leaves the field without what was removed (framework §1): its law is then that
of the deterministic flow with (1 - γ) of the own score, and Score GANs with γ > 0 are measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from partikel.diffflow import DiffFlow
from partikel.metrics import energy_distance
from partikel.metrics.chance import LEVEL, energy_quantile
from partikel.metrics.measures import MEASURES
from partikel.schedules import VESchedule
from partikel.studies.benches import FIVE, SCORE_GAN, Bench, benches
from partikel.studies.gaussian_laws import gaussian_marginals
from partikel.studies.item import Item, Outcome, Table, spread
from partikel.studies.judgement import LOG, QUARTER, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.panel import Panel, measured, seeds_figure
from partikel.studies.theory import GAUSSIAN, MIXTURE, matched_trial
from partikel.targets import Gaussian

SOURCE = "GPM §A.1"
PATH = VESchedule(40.0)
EXACT = 1e-6
"""Relative differences of covariances up to this one are rounding."""
ADAM, DESCENT = "Adam", "gradient descent"
OPTIMIZERS: dict[str, dict[str, Any]] = {
    ADAM: {},
    DESCENT: {"generator_optimizer": {"lr": 0.05, "beta1": 0.0, "eps": 1.0, "decay": "linear"}},
}
"""What is changed. Gradients of these generators are far below 1 (99 % of them below .02, with noise below
.12), beside which an eps of 1 leaves Adam's steps those of plain descent."""
KEPT = (
    "Replacing a share γ of the own score by noise leaves the laws of free particles as they are."
)
CLAIMS = {
    "moments": Claim(
        KEPT,
        f"{SOURCE}, eq. 21",
        f"{EXACT:g} less the largest relative error of a Gaussian's covariance at the end, over γ",
        0.0,
        kind="exact",
    ),
    "laws": Claim(
        KEPT,
        f"{SOURCE}, eq. 21",
        "what the largest energy distance at the end, over γ, leaves of the 95 % quantile of the largest of "
        "as many between draws of the mixture",
        0.0,
        "share of the quantile",
    ),
    **{
        by: Claim(
            "A stochastic component in a Score GAN is often detrimental to its quality.",
            SOURCE,
            f"mean over γ > 0 of the log of the distance with noise over that without, trained by {by}",
            QUARTER,
            LOG,
        )
        for by in OPTIMIZERS
    },
}
ALSO = ("modes", "within_3sigma", "precision", "recall")
"""Shown beside the distance: of points, of images."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data; the first are points, on which gradient descent is tried too.
        gammas: shares by the data's key.
        shares: γ of the free particles.
        particles: of a simulation.
        runs: seeds of the simulations of each γ.
    """

    benches: tuple[Bench, ...]
    gammas: dict[str, tuple[float, ...]]
    shares: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0)
    particles: int = 10_000
    runs: tuple[int, ...] = FIVE


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Free particles with exact fields, then generators."""
    parts = {"particles": _particles(plan, lab)}
    parts |= {bench.key: _generators(plan, bench, ADAM, lab) for bench in plan.benches}
    points = plan.benches[0]
    parts[f"{points.key}-descent"] = _generators(plan, points, DESCENT, lab)
    return Outcome.of(
        parts,
        notes=[
            "The flow of the free particles is GPM's eq. 21 with EDM's weights: |σ'|σ (2 s_p - (1 - γ) s_ρ) "
            "with noise √(2γ|σ'|σ) dW, from the exact law at σ = 40.",
            "A Score GAN's noise has the scale √(2γβ/η), η the generator's learning rate, which makes it "
            "Brownian for particles that move by η times the field, as under plain gradient descent "
            "(framework §1). Adam, by which all presets train, divides by the size of the gradients, which "
            "this noise raises, so that the field's share of a step falls too: under it the harm is not that "
            "of Brownian motion alone. So both are measured on points.",
        ],
    )


def _flow(gamma: float) -> DiffFlow:
    """Eq. 21 on the plane: α = 2, β_own = 1 are β = g_s², λ² = g_s²; g² = λ² + 2γβ_own."""
    return DiffFlow.reverse(PATH, g2=1 + gamma, lambda2=1.0)


def _particles(plan: Plan, lab: Lab) -> Outcome:
    n = plan.particles

    def ended(gamma: float) -> list[float]:
        trial = matched_trial(f"γ = {gamma:g}", MIXTURE, PATH, 1 + gamma, 1.0)
        draws = [trial.end(n, lab.generator(seed, "reference", gamma)) for seed in plan.runs]
        return [
            energy_distance(trial.run(n, seed).x, data)
            for seed, data in zip(plan.runs, draws, strict=True)
        ]

    def work() -> dict[str, Any]:
        cloud = MIXTURE.sample(1000, generator=lab.generator(0, "cloud"))
        level = 1 - (1 - LEVEL) / len(plan.shares)
        kept, lost = (
            {f"{gamma:g}": _moved(gamma, GAUSSIAN, noise=noise) for gamma in plan.shares}
            for noise in (True, False)
        )
        return {
            "energy": {f"{gamma:g}": ended(gamma) for gamma in plan.shares},
            "limit": energy_quantile(cloud, n, n, level),
            "covariance": kept,
            "covariance without noise": lost,
        }

    values = lab.once("particles", work)
    table = Table.of(
        "Free particles and exact fields: the law at the end",
        values["energy"],
        {
            "γ": str,
            "energy distance to the mixture": lambda gamma: spread(values["energy"][gamma]),
            "largest between draws of it (95 %)": lambda _: values["limit"],
            "Gaussian: relative error of the covariance": values["covariance"].get,
            "the same where noise averages out": values["covariance without noise"].get,
        },
    )
    where = f"exact fields in the plane, γ from {plan.shares[0]:g} to {plan.shares[-1]:g}"
    protocol = {"particles": f"{n}, {len(plan.runs)} seeds of simulation"}
    return Outcome(particles_findings(where, values), [table], values, protocol)


def particles_findings(where: str, values: Mapping[str, Any]) -> list[Finding]:
    """Of free particles: a Gaussian's moments, and the law of a mixture.

    Args:
        where: what was simulated.
        values: "energy" by γ and seed, the "limit" of draws, "covariance": errors by γ.
    """
    closed, limit = max(values["covariance"].values()), values["limit"]
    largest = [max(each) for each in zip(*values["energy"].values(), strict=True)]
    return [
        CLAIMS["moments"].found(
            where,
            f"On a Gaussian the covariance at the end is exact to {closed:.1g}.",
            [EXACT - closed],
        ),
        CLAIMS["laws"].found(
            f"{where}, {len(largest)} simulations",
            f"On a mixture the largest energy distance at the end is {spread(largest)} (between draws of the "
            f"mixture: up to {limit:.2g}).",
            [1 - each / limit for each in largest],
        ),
    ]


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


def _generators(plan: Plan, bench: Bench, by: str, lab: Lab) -> Outcome:
    training = bench.models[SCORE_GAN]
    if OPTIMIZERS[by]:
        training = training.but(by.replace(" ", "-"), **OPTIMIZERS[by])
    models = {"0": training}
    models |= {f"{g:g}": training.but(f"gamma-{g:g}", gamma=g) for g in plan.gammas[bench.key]}
    panel = measured(lab, bench, models)
    lab.draw(
        seeds_figure(
            {SCORE_GAN: [(float(gamma), panel.figures(gamma)) for gamma in models]},
            "γ, share of the own score replaced by noise",
            f"{panel.measure.label}, {panel.where}",
            log=True,
            level=("data vs data", panel.data),
        ),
        f"{bench.data}: Score GANs with noise in their field, by {by}; mean and range of seeds.",
        f"{bench.key}-{by.split()[-1].lower()}",
    )
    also = [key for key in ALSO if MEASURES[key].of == panel.measure.of]
    table = panel.table(*also, title=f"Score GANs by γ, the share that is noise, by {by}")
    return panel.outcome([verdict(panel, by)], [table])


def verdict(panel: Panel, by: str) -> Finding:
    """By the mean log ratio over γ > 0: "often" speaks of most, not of all."""
    none, *noisy = panel.rows
    ratios = [panel.ratios(gamma, none) for gamma in noisy]
    shown = ", ".join(f"{spread(panel.figures(g))} at γ = {g}" for g in panel.rows)
    effects = [statistics.fmean(each) for each in zip(*ratios, strict=True)]
    return CLAIMS[by].found(panel.where, f"By {by}, {panel.measure.label}: {shown}.", effects)


ITEM = Item(
    "a1",
    SOURCE,
    "Stochastic interacting particle models",
    "Brownian noise may replace a share of the own score in a particle model without changing its laws, "
    "and the same exchange can be made in a Score GAN's field; the paper found in preliminary experiments "
    "that it is often detrimental to the FID.",
    {
        "smoke": Plan(benches("smoke", "gaussians"), {"gaussians": (0.5,)}, (0.0, 0.5), 300, (0,)),
        "cpu": Plan(
            benches("cpu", "gaussians", "digits"),
            {"gaussians": (0.1, 0.5, 1.0), "digits": (0.1, 0.5)},
        ),
        "paper": Plan(
            benches("paper", "gaussians", "mnist"),
            {"gaussians": (0.1, 0.5, 1.0), "mnist": (0.1, 0.5, 1.0)},
        ),
    },
    measure,
    CLAIMS,
)
