"""DiffFlow §3.3.2: three improvements of the vanilla GAN, alone and together.

A vanilla GAN's outputs move by β∇d with β = sigmoid(d), which vanishes where the discriminator is sure.
The paper proposes β = 1; a time-indexed discriminator whose gradients move particles in place of the
generator; and noise on the real samples that falls along time, so that the discriminator is weak at
first. It reports no experiment; here are all eight combinations, and the usual mend beside them.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.fields import At
from partikel.models import free_particles
from partikel.studies.benches import Training, on
from partikel.studies.curves import course
from partikel.studies.item import Finding, Item, Outcome, Table, log_ratios, spread
from partikel.studies.lab import Lab

VANILLA, UNIT, TIMED, ANNEALED = "vanilla", "β = 1", "time-indexed", "annealed"
ALL = "all three"
USUAL = "non-saturating"
SOURCE = "DiffFlow §3.3.2"
LEAST = 1e-4
"""Energy distances below this one are not told from the data's (10,000 points)."""
NOISE = 0.2
"""Log ratios up to this one are within what another draw of samples or of weights changes."""


def variants(**changes: Any) -> dict[str, Training]:
    """The vanilla GAN, the three improvements in all combinations, and the non-saturating loss."""
    gan = Training("gan-gaussians", {"iterations": 3000, "ema": None, "penalties": [], **changes})
    timed = {"iterations": 1500, "ema": None, **changes}
    flow, ode = (
        Training("discriminator-flow-gaussians", timed),
        Training("diffode-gan-gaussians", timed),
    )
    noise = {"sigma_max": 2.0}
    return {
        VANILLA: gan.but("vanilla", objective="saturating"),
        UNIT: gan.but("unit", objective="logit"),
        TIMED: flow.but("saturating", objective="saturating"),
        ANNEALED: gan.but("vanilla-annealed", objective="saturating", **noise),
        f"{UNIT}, {TIMED}": flow.but("logit", objective="logit"),
        f"{UNIT}, {ANNEALED}": gan.but("unit-annealed", objective="logit", **noise),
        f"{TIMED}, {ANNEALED}": ode.but("saturating", potential="saturating"),
        ALL: ode.but("plain"),
        USUAL: gan.but("non-saturating", objective="non-saturating"),
    }


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        models: by what is improved.
        seeds: of each model.
        samples: of an evaluation.
        early: iterations over which a generator's gradient is averaged.
    """

    models: Mapping[str, Training] = field(default_factory=variants)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    samples: int = 10_000
    early: int = 100

    @property
    def where(self) -> str:
        """For findings."""
        return on("five Gaussians", self.seeds)


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Train all variants, measure their samples, their training's unrest and their early field."""
    values: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    protocol: dict[str, Any] = {}
    floor = LEAST
    for name, training in plan.models.items():
        found = lab.evaluated(training, plan.seeds, plan.samples)
        floor, protocol = max(LEAST, found.floor), found.rows[0]["protocol"]
        courses = [course(run) for run in found.runs]
        late = [course[-max(1, len(course) // 3) :] for course in courses]
        early = [partial(_early, training, run, plan, lab) for run in found.runs]
        values[name] = {
            "energy": found.far,
            "modes": found.figures("modes"),
            "worst late": [max(energy for _, energy in course) for course in late],
            "field": [
                lab.once(f"field-{training.name}-{seed}", field)
                for seed, field in zip(plan.seeds, early, strict=True)
            ],
        }
        curves[name] = courses[0]
    main = [name for name in (VANILLA, UNIT, TIMED, ANNEALED, ALL, USUAL) if name in curves]
    lab.draw(
        plots.curves_figure(
            {name: curves[name] for name in main},
            "percent of training",
            f"energy distance along training, seed {plan.seeds[0]}",
            log=True,
            level=("data vs data", floor),
        ),
        "The vanilla GAN, each improvement, all of them, and the usual non-saturating loss.",
    )
    table = Table.of(
        f"Energy distance and its unrest, {plan.where}",
        values,
        {
            "": str,
            "energy": lambda name: spread(values[name]["energy"]),
            "worst of the last third of training": lambda name: spread(values[name]["worst late"]),
            "modes, worst seed": lambda name: f"{min(values[name]['modes']):.0f}",
            "early field": lambda name: spread(values[name]["field"]),
        },
    )
    return Outcome(
        _findings(plan, values, floor),
        [table],
        values,
        {k: protocol[k] for k in ("samples", "seed", "split")},
        [
            "The early field is the root mean square of what moves the outputs: of a generator over "
            f"its first {plan.early} iterations, of free particles at t = 0 under the trained "
            "discriminator.",
            "The worst of the last third is over quick evaluations of 2,000 samples, without any "
            "average of weights: what stopping at a bad moment would give.",
            "All GANs have the same networks, rates and lengths, no penalty and no average; so have "
            "the time-indexed ones among themselves.",
        ],
    )


def _findings(plan: Plan, values: dict[str, dict[str, list[float]]], floor: float) -> list[Finding]:
    base = values[VANILLA]

    def field_claim(claim: str, name: str) -> Finding:
        theirs = values[name]["field"]
        effects = [math.log(a / b) for a, b in zip(theirs, base["field"], strict=True)]
        said = (
            f"Early field {spread(theirs)} against {spread(base['field'])} of the vanilla GAN; "
            f"final energy {spread(values[name]['energy'])} against {spread(base['energy'])}."
        )
        return Finding.of(claim, SOURCE, plan.where, said, effects, NOISE)

    def better(claim: str, name: str, what: str = "energy", than: str = VANILLA) -> Finding:
        theirs, others = values[name][what], values[than][what]
        effects = log_ratios(others, theirs, floor)
        noun = {"energy": "Final energy", "worst late": "Worst late energy"}[what]
        said = f"{noun} {spread(theirs)} against {spread(others)} ({than})."
        return Finding.of(claim, SOURCE, plan.where, said, effects, NOISE)

    return [
        field_claim("β = 1 alleviates the vanishing of gradients early in training.", UNIT),
        field_claim("The non-saturating loss avoids it too (Remark 1).", USUAL),
        field_claim("So does an annealed discriminator, by itself.", ANNEALED),
        better("Annealing makes the training of a GAN smoother.", ANNEALED, "worst late"),
        better("Time-indexed discriminators follow the ODE better than a generator.", TIMED),
        better("The three together improve the vanilla GAN.", ALL),
        better("The three together improve on the non-saturating loss.", ALL, than=USUAL),
        better("Annealing adds to the other two improvements.", ALL, than=f"{UNIT}, {TIMED}"),
    ]


def _early(training: Training, run: Run, plan: Plan, lab: Lab) -> float:
    """RMS of the field early: of particles at t = 0, or in the first iterations of a generator."""
    carrier, seed = run.model, run.recipe.seed
    if carrier.steps is not None:
        carrier = free_particles(carrier, "only free particles have a field of strength eta.")
        x = carrier.prior.sample(4096, generator=lab.generator(seed, "early"))
        with torch.no_grad():
            velocity = carrier.eta * carrier.field(x, At(x.new_zeros(())))
        return float(velocity.square().mean().sqrt())
    first = itertools.islice(lab.trainer(training, seed).run(), plan.early)
    squares = [float(done.metrics["generator/field_rms"]) ** 2 for done in first]
    return math.sqrt(statistics.fmean(squares))


ITEM = Item(
    "diffflow-improved-gan",
    SOURCE,
    "Three improvements on vanilla GANs",
    "DiffFlow reads the vanilla GAN as a coarse ODE whose speed vanishes where the discriminator is sure, "
    "and proposes β = 1, time-indexed discriminators in place of the generator, and an annealed "
    "discriminator. The paper states what each should do and reports no experiment.",
    {
        "smoke": Plan(
            variants(iterations=6, batch=32, evaluate_every=2, evaluate_samples=50), (0,), 200, 3
        ),
        "cpu": Plan(),
    },
    measure,
)
