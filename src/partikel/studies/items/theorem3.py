"""DiffFlow Theorem 3: a lower bound of the log-likelihood, and training by it.

With exact fields the bound is compared with the exact log-density, at points of the plane where linear
inference is tight (g² = 2λ²) and where it is loose. Then models are trained by it: an EDM with the weights of
the bound beside EDM's own, and a Diffusion-GAN at (1.5, 1) whose score and discriminator are trained
jointly by the bound beside adversarial training. All see the same held-out points, noise and probes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from partikel.app.runs import Run
from partikel.diffflow import DiffFlow
from partikel.fields import ExactScoreField
from partikel.likelihood import (
    Elbo,
    GenerativeSDE,
    Integrator,
    Ode,
    generative_sde,
    probability_flow,
)
from partikel.metrics import energy_distance
from partikel.schedules import VESchedule
from partikel.studies.benches import FIVE, Training, on
from partikel.studies.item import Item, Outcome, Table, spread
from partikel.studies.judgement import Claim, Finding
from partikel.studies.lab import Lab
from partikel.targets import GaussianMixture

SOURCE = "DiffFlow Theorem 3"
SIGMA_MIN = 0.02
"""At which particles count as samples: densities are those of the data with so much noise."""
LEAST = 0.005
"""Nats a point that are of interest: the bounds of three trainings of one EDM lay within .002."""
CENTRES, STD = [[2.0, 0.5], [-1.0, 1.5], [-0.5, -2.0]], 0.6
"""Of the mixture whose fields are exact."""
PLANE = {
    "(2, 1)": (2.0, 1.0),
    "(1.5, 0.75)": (1.5, 0.75),
    "(1.5, 1)": (1.5, 1.0),
    "(3, 1)": (3.0, 1.0),
}
"""Points (g²/β, λ²/β); the first two have g² = 2λ²."""
TIGHT = ("(2, 1)", "(1.5, 0.75)")
EDM, LIKELIHOOD = "EDM's weights", "likelihood weights"
ADVERSARIAL, JOINT = "adversarial", "by the bound, jointly"

CLAIMS = {
    "bound": Claim(
        "The log-likelihood of the terminal marginal has a lower bound.",
        SOURCE,
        "least mean of log-density less bound over four points of the plane, in nats, exact fields",
        0.02,
        kind="same",
    ),
    "loose": Claim(
        "Where g² is not 2λ², the bound of linear inference is loose even for exact fields.",
        "framework §8",
        "least mean of log-density less bound over two points of the plane, in nats",
        0.02,
    ),
    "elbo": Claim(
        "Training by the bound is a maximum-likelihood scheme: an EDM with its weights has a better bound.",
        SOURCE,
        "bound with likelihood weights less that with EDM's, nats a held-out point",
        LEAST,
    ),
    "ode": Claim(
        "... and a better likelihood.",
        SOURCE,
        "log-likelihood of the ODE with likelihood weights less that with EDM's, nats a held-out point",
        LEAST,
    ),
    "joint": Claim(
        "Score and discriminator can be trained jointly by the bound: it is better than after adversarial "
        "training.",
        SOURCE,
        "bound of the jointly trained Diffusion-GAN less that of the adversarial one, nats a point",
        LEAST,
    ),
    "joint ode": Claim(
        "... and so is the likelihood.",
        SOURCE,
        "log-likelihood of the ODE, jointly trained less adversarial, nats a held-out point",
        LEAST,
    ),
}


def models(**changes: Any) -> dict[str, Training]:
    """What is trained on the five Gaussians."""
    edm = Training(
        "edm-gaussians", {"sigma_min": SIGMA_MIN, "iterations": 2500, **changes}, "bound"
    )
    inner = {"sigma_min": SIGMA_MIN, "iterations": edm.changes["iterations"]}
    point = {
        "g2": 1.5,
        "lambda2": 1.0,
        "sigma_min": SIGMA_MIN,
        "iterations": 625,
        "discriminator": {"activation": "silu"},
        "score": inner,
        **changes,
    }
    gan = Training("diffusion-gan-gaussians", point, "bound", score=edm)
    # from scratch: as many updates as score and discriminator have together
    total = {"iterations": inner["iterations"] + point["iterations"]}
    joint = Training(
        "diffusion-gan-gaussians",
        {
            **point,
            **total,
            "objective": "elbo",
            "joint": True,
            "optimizer": {"lr": 1.0e-3, "beta1": 0.9},
            "batch": changes.get("batch", 256),
        },
        "bound-joint",
    )
    return {
        EDM: edm,
        LIKELIHOOD: edm.but("likelihood", weighting="likelihood"),
        ADVERSARIAL: gan,
        JOINT: joint,
    }


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        seeds: of trainings, and of the points of exact fields.
        models: trained.
        points: held out, at which densities are taken.
        draws: of noise for each bound.
    """

    seeds: tuple[int, ...] = FIVE
    models: Mapping[str, Training] = field(default_factory=models)
    points: int = 2000
    draws: int = 64


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Exact gaps, then trained models."""
    gaps = [lab.once(f"exact-{seed}", functools.partial(_gaps, plan, seed)) for seed in plan.seeds]
    figures = {
        name: [
            lab.once(
                f"{training.name}-{seed}", functools.partial(_of_run, lab.run(training, seed), plan)
            )
            for seed in plan.seeds
        ]
        for name, training in plan.models.items()
    }
    tables = [
        Table.of(
            f"Log-density less bound, exact fields, {on('a mixture', plan.seeds)}",
            PLANE,
            {"(g²/β, λ²/β)": str, "nats": lambda name: spread([gap[name] for gap in gaps])},
        ),
        Table.of(
            f"Trained models, {on('five Gaussians', plan.seeds)}",
            figures,
            {
                "trained": str,
                "ODE, nats": lambda name: spread([f["ode"] for f in figures[name]]),
                "bound, nats": lambda name: spread([f["elbo"] for f in figures[name]]),
                "energy distance": lambda name: spread([f["energy"] for f in figures[name]]),
            },
        ),
    ]
    return Outcome(
        findings(plan, gaps, figures),
        tables,
        {"exact": gaps, "trained": figures},
        {"points": plan.points, "draws": plan.draws, "ode": "rk4, 100 steps", "σ_min": SIGMA_MIN},
        [
            "The bound of linear inference may be above the log-density by chance, as it is an estimate: the "
            "two are the same where it is tight.",
            "[likelihood](../likelihood.md) has more: digits, cost, where likelihood weights win and lose.",
        ],
    )


def findings(
    plan: Plan,
    gaps: Sequence[Mapping[str, float]],
    figures: Mapping[str, Sequence[Mapping[str, float]]],
) -> list[Finding]:
    """What gaps and trained models say.

    Args:
        plan: of the measurement.
        gaps: log-density less bound, by point of the plane, for each seed.
        figures: for each model and seed, "ode" and "elbo" in nats.
    """
    exact, where = on("a mixture, exact fields", plan.seeds), on("five Gaussians", plan.seeds)

    def gained(key: str, what: str, better: str, than: str) -> Finding:
        first, second = ([row[what] for row in figures[name]] for name in (better, than))
        noun = {"elbo": "Bound", "ode": "Log-likelihood"}[what]
        said = f"{noun} {spread(first)} nats {better}, {spread(second)} {than}."
        return CLAIMS[key].found(where, said, [a - b for a, b in zip(first, second, strict=True)])

    tight = [max((gap[name] for name in TIGHT), key=abs) for gap in gaps]
    loose = [min(gap[name] for name in PLANE if name not in TIGHT) for gap in gaps]
    said = ", ".join(f"{spread([gap[name] for gap in gaps])} at {name}" for name in PLANE)
    return [
        CLAIMS["bound"].found(exact, f"Log-density less bound: {said}.", tight),
        CLAIMS["loose"].found(exact, f"Log-density less bound: {said}.", loose),
        gained("elbo", "elbo", LIKELIHOOD, EDM),
        gained("ode", "ode", LIKELIHOOD, EDM),
        gained("joint", "elbo", JOINT, ADVERSARIAL),
        gained("joint ode", "ode", JOINT, ADVERSARIAL),
    ]


def _gaps(plan: Plan, seed: int) -> dict[str, float]:
    """Mean of log ρ(x) less its bound at points of the exact law, for each point of the plane."""
    path = VESchedule(40.0, SIGMA_MIN)
    target = GaussianMixture(CENTRES, std=STD)
    start, end = (
        GaussianMixture(CENTRES, std=(STD**2 + sigma**2) ** 0.5) for sigma in (40.0, SIGMA_MIN)
    )
    x = end.sample(plan.points, generator=_generator(seed), dtype=torch.float64)
    own, found = ExactScoreField(target), {}
    for name, (g2, lambda2) in PLANE.items():
        flow = DiffFlow.reverse(path, g2=g2, lambda2=lambda2)
        sde = GenerativeSDE.of(
            flow, (2,), own, 0.0 * own, prior=start, sigma_data=target.sigma_data
        )
        bound = Elbo(draws=plan.draws).log_prob(sde, x, generator=_generator(seed + 100))
        found[name] = float((end.log_density(x) - bound.log_prob).mean())
    return found


def _of_run(run: Run, plan: Plan) -> dict[str, float]:
    """Mean log-likelihood of the ODE, mean bound, and energy distance of samples."""
    model = run.model.double()
    data = functools.partial(run.dataset.draw, split="test", dtype=torch.float64)
    x = data(plan.points, generator=_generator(7)).x
    ode = Ode(integrator=Integrator("rk4", steps=100), strict=False)
    likelihood = ode.log_prob(
        probability_flow(model, sigma_min=SIGMA_MIN), x, generator=_generator(0)
    )
    sde = generative_sde(
        model,
        getattr(run.recipe, "flow", None),
        sigma_min=SIGMA_MIN,
        sigma_data=run.dataset.sigma_data,
    )
    bound = Elbo(draws=plan.draws).log_prob(sde, x, generator=_generator(0))
    own = run.sample(10_000, generator=_generator(3))
    return {
        "ode": float(likelihood.log_prob.mean()),
        "elbo": float(bound.log_prob.mean()),
        "energy": energy_distance(own, data(10_000, generator=_generator(4)).x),
    }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ITEM = Item(
    "theorem3",
    SOURCE,
    "A lower bound of the likelihood, and training by it",
    "The log-likelihood of the SDE's terminal marginal has a continuous lower bound, of which denoising "
    "score matching is the trainable part: a maximum-likelihood scheme for the joint model of score and "
    "discriminator. The paper proves it and reports no experiment.",
    {
        "smoke": Plan((0,), models(iterations=6, batch=32, evaluate_every=None), 20, 2),
        "cpu": Plan(),
        "paper": Plan(points=10_000, draws=256),
    },
    measure,
    CLAIMS,
)
