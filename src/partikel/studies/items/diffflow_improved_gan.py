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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.fields import At
from partikel.models import ParticleModel, free_particles, generate
from partikel.solvers import State
from partikel.studies.benches import EVALUATIONS, FIVE, Bench, Training
from partikel.studies.item import Item, Outcome, log_ratios, spread
from partikel.studies.judgement import LOG, QUARTER, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.panel import Panel, course, measured
from partikel.training.loop import Trainer

VANILLA, UNIT, TIMED, ANNEALED = "vanilla", "β = 1", "time-indexed", "annealed"
ALL = "all three"
USUAL = "non-saturating"
SOURCE = "DiffFlow §3.3.2"
Figures: TypeAlias = Mapping[str, Sequence[float]]
"""Of a model by name, seed by seed."""
FINE = 20
"""Steps that stand for an ODE over one of a solver's."""
FOLLOWS = "Time-indexed discriminators follow the ODE better than a generator."
EARLY = {
    "unit field": ("β = 1 alleviates the vanishing of gradients early in training.", UNIT),
    "usual field": ("The non-saturating loss avoids it too (Remark 1).", USUAL),
    "annealed field": ("So does an annealed discriminator, by itself.", ANNEALED),
}
"""Claims about the field early in training, and whose."""
COMPARED = {
    "follows, first": (FOLLOWS, TIMED, VANILLA),
    "timed": ("Time-indexed discriminators make better samples than a generator.", TIMED, VANILLA),
    "unit": ("β = 1 makes better samples, by itself.", UNIT, VANILLA),
    "all": ("The three together improve the vanilla GAN.", ALL, VANILLA),
    "than usual": ("The three together improve on the non-saturating loss.", ALL, USUAL),
    "annealing adds": ("Annealing adds to the other two improvements.", ALL, f"{UNIT}, {TIMED}"),
    "unit adds": ("β = 1 adds to the other two improvements.", ALL, f"{TIMED}, {ANNEALED}"),
}
"""Claims about final samples: whose, and what they are compared with."""
REPLACED = {"follows, first": "good samples do not say how particles came to them"}


def _ratio(text: str, effect: str, replaced: str = "") -> Claim:
    return Claim(text, SOURCE, f"log of {effect}", QUARTER, LOG, replaced=replaced)


CLAIMS = {
    **{
        key: _ratio(text, f"the early field of '{name}' over that of '{VANILLA}'")
        for key, (text, name) in EARLY.items()
    },
    "smoother": _ratio(
        "Annealing makes the training of a GAN smoother.",
        f"the worst energy distance of the last third of training, of '{VANILLA}' over '{ANNEALED}'",
    ),
    "follows": Claim(
        FOLLOWS,
        SOURCE,
        "cosine of the particles' motion in a step with that of the ODE of their discriminator, of "
        f"'{TIMED}' less that of '{VANILLA}'",
        0.1,  # directions 26° apart have it from equal ones
        "cosine",
    ),
    **{
        key: _ratio(
            text,
            f"the final energy distance of '{than}' over that of '{name}'",
            REPLACED.get(key, ""),
        )
        for key, (text, name, than) in COMPARED.items()
    },
}


def variants(**changes: Any) -> dict[str, Training]:
    """The vanilla GAN, the three improvements in all combinations, and the non-saturating loss."""
    gan = Training("gan-gaussians", {"iterations": 3000, "ema": None, "penalties": [], **changes})
    timed = {"iterations": 1500, "ema": None, **changes}
    flow = Training("discriminator-flow-gaussians", timed)
    ode = Training("diffode-gan-gaussians", timed)
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
        bench: the models by what is improved, with seeds.
        early: iterations over which a generator's gradient is averaged.
        moments: iterations of a generator after which its outputs' motion is compared with the field.
        particles: whose motion is.
    """

    bench: Bench
    early: int = 100
    moments: tuple[int, ...] = (100, 400, 1000)
    particles: int = 1000


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Train all variants, measure their samples, their training's unrest, field and motion."""
    panel = measured(lab, plan.bench, plan.bench.models)
    courses = {name: [course(run) for run in runs] for name, runs in panel.runs.items()}

    def kept(what: str, work: Callable[[Training, Run], float], *names: str) -> Figures:
        trainings = {name: panel.bench.models[name] for name in names}
        return {
            name: [
                lab.once(f"{what}-{each.name}-{run.recipe.seed}", partial(work, each, run))
                for run in panel.runs[name]
            ]
            for name, each in trainings.items()
        }

    aside = {
        "worst late": {
            name: [max(e for _, e in each[-max(1, len(each) // 3) :]) for each in those]
            for name, those in courses.items()
        },
        "field": kept("field", partial(_early, plan, lab), *panel.runs),
        "motion": kept("motion", partial(_motion, plan, lab), VANILLA, TIMED),
    }
    lab.draw(
        plots.curves_figure(
            {name: courses[name][0] for name in (VANILLA, UNIT, TIMED, ANNEALED, ALL, USUAL)},
            "percent of training",
            f"energy distance along training, seed {plan.bench.seeds[0]}",
            log=True,
            level=("floor", panel.floor),
        ),
        "The vanilla GAN, each improvement, all of them, and the usual non-saturating loss.",
    )
    heads = {
        "worst of the last third of training": "worst late",
        "early field": "field",
        "cosine with the ODE": "motion",
    }

    def shown(key: str, name: str) -> str | None:
        return spread(aside[key][name]) if name in aside[key] else None

    columns = {head: partial(shown, key) for head, key in heads.items()}
    table = panel.table("modes", columns=columns, title="Energy distance and its unrest")
    outcome = panel.outcome(findings(panel, aside), [table])
    notes = [
        "The early field is the root mean square of what moves the outputs: of a generator over "
        f"its first {plan.early} iterations, of free particles at t = 0 under the trained "
        "discriminator.",
        "The worst of the last third is over quick evaluations of 2,000 samples, without any "
        "average of weights: what stopping at a bad moment would give.",
        "Motion: of all particles in a step taken as one vector. A generator's are its outputs at latents of "
        "their own in one update (after "
        f"{', '.join(map(str, plan.moments))} iterations), its ODE's motion is that of the field. Free "
        f"particles follow theirs but for the length of a step, which is compared with {FINE} steps in its "
        "place: that they do better follows from how they are made, and by how much is measured.",
        "All GANs have the same networks, rates and lengths, no penalty and no average; so have "
        "the time-indexed ones among themselves.",
    ]
    return replace(outcome, values={**outcome.values, **aside}, notes=notes)


def findings(panel: Panel, aside: Mapping[str, Figures]) -> list[Finding]:
    """All claims.

    Args:
        panel: of the final samples.
        aside: "worst late", "field", "motion" -> model -> a value for each seed.
    """
    field, worst, motion = (aside[key] for key in ("field", "worst late", "motion"))

    def against(of: Figures, name: str) -> str:
        return f"{spread(of[name])} against {spread(of[VANILLA])} ({VANILLA})"

    found = {
        key: (
            f"Early field {against(field, name)}; final {panel.said([name, VANILLA])}.",
            log_ratios(field[name], field[VANILLA], panel.floor),
        )
        for key, (_, name) in EARLY.items()
    }
    found["smoother"] = (
        f"Worst late energy {against(worst, ANNEALED)}.",
        log_ratios(worst[VANILLA], worst[ANNEALED], panel.floor),
    )
    found["follows"] = (
        f"Cosine with the motion of the ODE {against(motion, TIMED)}.",
        [a - b for a, b in zip(motion[TIMED], motion[VANILLA], strict=True)],
    )
    found |= {
        key: (f"Final {panel.said([name, than])}.", panel.ratios(than, name))
        for key, (_, name, than) in COMPARED.items()
    }
    return [CLAIMS[key].found(panel.where, *each) for key, each in found.items()]


def _early(plan: Plan, lab: Lab, training: Training, run: Run) -> float:
    """RMS of the field early: of particles at t = 0, or in the first iterations of a generator."""
    seed = run.recipe.seed
    if run.model.steps is not None:
        carrier = free_particles(run.model, "only free particles have a field of strength eta.")
        x = carrier.prior.sample(4096, generator=lab.generator(seed, "early"))
        with torch.no_grad():
            return float(carrier.velocity(x, x.new_zeros(())).square().mean().sqrt())
    first = itertools.islice(lab.trainer(training, seed).run(), plan.early)
    squares = [float(done.metrics["generator/field_rms"]) ** 2 for done in first]
    return math.sqrt(statistics.fmean(squares))


def _motion(plan: Plan, lab: Lab, training: Training, run: Run) -> float:
    """Cosine of the particles' motion in a step with that of their ODE, mean over steps."""
    n, draws = plan.particles, lab.generator(run.recipe.seed, "motion")
    if run.model.steps is not None:
        model = free_particles(run.model, "only free particles have a path.")
        states = model.stream(model.prior.sample(n, generator=draws), generator=draws)
        moves = [
            (after.x - before.x, _fine(model, before, after.t) - before.x)
            for before, after in itertools.pairwise(states)
        ]
    else:
        moves = _updates(plan, lab.trainer(training, run.recipe.seed), draws)
    return statistics.fmean(float(cosine_similarity(a.flatten(), b.flatten(), 0)) for a, b in moves)


@torch.no_grad()
def _fine(model: ParticleModel, start: State, end: float) -> Tensor:
    """Where the ODE takes particles from a node to the next."""
    x, step = start.x, (end - start.t) / FINE
    for k in range(FINE):
        x = x + step * model.velocity(x, x.new_tensor(start.t + k * step))
    return x


def _updates(
    plan: Plan, trainer: Trainer, draws: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """How a generator's outputs move in one of its updates, and the field that they should follow."""
    model, steps = trainer.model, trainer.run()
    z = model.prior.sample(plan.particles, generator=draws).to(trainer.accelerator.device)
    for moment in plan.moments:
        while trainer.step < moment:
            next(steps)
        x = generate(model.sampled, z)
        next(steps)  # its discriminator is trained before the generator is
        field = model.field(x, At(x.new_tensor(model.horizon))).detach()
        yield generate(model.sampled, z) - x, field


def _bench(seeds: tuple[int, ...], samples: int, evaluations: int, **changes: Any) -> Bench:
    models = variants(**changes)
    return Bench("gaussians", "five Gaussians", models, seeds, samples, samples, evaluations)


ITEM = Item(
    "diffflow-improved-gan",
    SOURCE,
    "Three improvements on vanilla GANs",
    "DiffFlow reads the vanilla GAN as a coarse ODE whose speed vanishes where the discriminator is sure, "
    "and proposes β = 1, time-indexed discriminators in place of the generator, and an annealed "
    "discriminator. The paper states what each should do and reports no experiment.",
    {
        "smoke": Plan(
            _bench((0,), 200, 1, iterations=6, batch=32, evaluate_every=2, evaluate_samples=50),
            early=3,
            moments=(1, 3),
            particles=50,
        ),
        "cpu": Plan(_bench(FIVE, 10_000, EVALUATIONS)),
    },
    measure,
    CLAIMS,
)
