"""GPM Claim 1 with Findings 4 and 8: one field in either carrier.

(i) A generator learns from the score difference, and a discriminator does without a generator: Score GAN
and Discriminator Flow are compared with the same systems untrained. (ii) A generator's particles move by
A_θ[∇h], not by ∇h: during the training of a Score GAN the motion of its particles, in one of its own
iterations and in one small step of plain gradient descent, is compared with both, and with both after
the field's values have been permuted among the particles, which is chance. A shift that all particles
have in common survives permutation and says little, so it is taken off both. (iii) The law of the Score GAN
is compared with that of a Score Flow, free particles in the very same field.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from partikel.app.runs import context_for, draw_samples
from partikel.app.show import plots
from partikel.fields import At, Context, Field
from partikel.metrics import energy_distance
from partikel.metrics.evaluation import evaluate
from partikel.models import generate, ntk_operator, surrogate_loss
from partikel.studies.benches import (
    EDM,
    FLOW,
    FOUR,
    SCORE_GAN,
    Bench,
    Training,
    benches,
    score_flow,
)
from partikel.studies.distances import ENERGY, Evaluated
from partikel.studies.item import Finding, Item, Outcome, Table, log_ratios, means, spread
from partikel.studies.lab import Lab
from partikel.training import Trainer

SOURCE = "GPM Claim 1"
FREE = "Score Flow"
TENTH = 10.0
"""A trained model is better than chance where it leaves at most a tenth of the untrained distance."""
RATE = 1e-4
"""Of the step of plain gradient descent: small, as eq. 13 is of continuous time."""
CLAIMS = {
    SCORE_GAN: "A generator can be trained with the flow of a score-based diffusion model.",
    FLOW: "The generator of a GAN can be removed: the discriminator alone makes samples.",
}
MOTIONS = ("its own update", "gradient descent")
MOVES = {
    "A_θ[∇h]": "A generator's particles move by A_θ[∇h] (GPM eq. 13): nearer to it than by chance.",
    "∇h": "A Score GAN follows its field's particle flow ∇h better than by chance.",
}
FIELDS = tuple(MOVES)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data; the first are points, whose motion is followed.
        free: the Score Flow on those points.
        moments: iterations of the Score GAN after which motions are compared.
        steps: iterations at each moment, over which cosines are averaged.
        particles: that are followed.
        draws: of noise that a perturbed field is averaged over.
        permutations: that say what chance is.
        samples: of each law that are compared.
    """

    benches: tuple[Bench, ...]
    free: Training
    moments: tuple[int, ...] = (50, 200, 800, 1600)
    steps: int = 4
    particles: int = 512
    draws: int = 64
    permutations: int = 39
    samples: int = 5000


def measure(plan: Plan, lab: Lab) -> Outcome:
    """The three comparisons."""
    points = plan.benches[0]
    parts = {bench.key: _against_chance(bench, lab) for bench in plan.benches}
    parts |= {"motion": _motion(plan, points, lab), "laws": _laws(plan, points, lab)}
    return Outcome.of(
        parts,
        {
            "particles followed": plan.particles,
            "iterations at each moment": plan.steps,
            "permutations": plan.permutations,
            "draws of noise in the field": plan.draws,
            "rate of gradient descent": RATE,
        },
        [
            "Cosines are of the motions of all particles taken together, as one vector, from which the "
            "particles' common shift is taken off except where the whole motion is named. Their latents "
            "are not those of the update's batch. Chance is the largest of all permutations.",
            "A Score GAN's own update is Adam's, on a batch with one draw of noise for each sample, so "
            "that it follows A_θ[∇h] less closely than gradient descent on the mean field does.",
        ],
    )


# --- (i) quality against chance


def _against_chance(bench: Bench, lab: Lab) -> Outcome:
    found: dict[str, Evaluated] = {}
    chance: dict[str, list[float]] = {}
    for name in FOUR:
        found[name] = lab.evaluated(bench.models[name], bench.seeds, bench.samples)
        if name in CLAIMS:
            untrained = [_untrained(lab, bench, bench.models[name], seed) for seed in bench.seeds]
            chance[name] = [figures[found[name].distance.key] for figures in untrained]
    distance, floor = found[EDM].distance, found[EDM].floor
    far = {name: each.far for name, each in found.items()}
    findings = [
        Finding.of(
            claim,
            SOURCE,
            bench.where,
            f"{distance.name}: {spread(far[name])} for {name}, {spread(chance[name])} untrained, "
            f"{floor:.2g} for data.",
            _above_a_tenth(chance[name], far[name], distance.floor),
        )
        for name, claim in CLAIMS.items()
    ]
    table = Table(
        f"{distance.name}, {bench.where}",
        ("model", "trained", "untrained"),
        (
            *((k, spread(far[k]), spread(chance[k]) if k in chance else None) for k in far),
            ("data", floor, None),
        ),
    )
    return Outcome(findings, [table], {"trained": far, "untrained": chance})


def _above_a_tenth(untrained: list[float], trained: list[float], floor: float) -> list[float]:
    return [ratio - math.log(TENTH) for ratio in log_ratios(untrained, trained, floor)]


def _untrained(lab: Lab, bench: Bench, training: Training, seed: int) -> dict[str, float]:
    """Figures of the same system before its first iteration."""

    def work() -> dict[str, float]:
        trainer = lab.trainer(training, seed)
        device, sampler = trainer.accelerator.device, partial(_drawn, trainer)
        return evaluate(sampler, trainer.dataset, n=bench.samples, device=device).metrics

    return lab.once(f"untrained-{training.name}-{seed}", work)


def _drawn(trainer: Trainer, n: int, generator: torch.Generator) -> Tensor:
    model = trainer.model
    return draw_samples(model.eval(), n, generator, context_for(model, trainer.dataset))


# --- (ii) the motion of a generator's particles


def _motion(plan: Plan, bench: Bench, lab: Lab) -> Outcome:
    training = bench.models[SCORE_GAN]
    seeds = {
        seed: lab.once(f"motion-{seed}", lambda seed=seed: _followed(plan, lab, training, seed))
        for seed in bench.seeds
    }
    own = MOTIONS[0]

    def values(moment: int, motion: str, field: str, what: str) -> list[float]:
        return [moments[str(moment)][motion][field][what] for moments in seeds.values()]

    curves, strokes = {}, {}
    for field, color in zip(FIELDS, plots.SERIES, strict=False):
        shown = field.replace("A_θ", r"$A_\theta$")
        for name, what in ((shown, "cosine"), (f"{shown}, permuted", "chance")):
            points = [(m, statistics.fmean(values(m, own, field, what))) for m in plan.moments]
            curves[name] = points
            strokes[name] = plots.Stroke(color, dashed=what == "chance")
    figure = plots.curves_figure(
        curves,
        "iteration of the Score GAN",
        f"cosine of the particles' motion with the field, {bench.where}",
        strokes=strokes,
        ticks=plan.moments,
    )
    lab.draw(
        figure,
        f"{bench.data}: motion of a Score GAN's particles in its own updates, their common shift taken off, "
        f"mean over seeds; dashed: the "
        f"largest of {plan.permutations} permutations of the field's values.",
        "motion",
    )
    findings = []
    for field, claim in MOVES.items():
        said, margins = [], []
        for moment in plan.moments:
            cosines, chances = (values(moment, own, field, each) for each in ("cosine", "chance"))
            margins.append([a - b for a, b in zip(cosines, chances, strict=True)])
            said.append(
                f"after {moment} iterations {spread(cosines)} (chance: at most {spread(chances)})"
            )
        findings.append(
            Finding.of(
                claim,
                "GPM Definition 2, Findings 4 and 8",
                bench.where,
                f"Cosine of the motion in one of its own updates with {field}, the common shift taken "
                f"off: {'; '.join(said)}.",
                [min(each) for each in zip(*margins, strict=True)],
            )
        )
    measured = [(field, what) for field in FIELDS for what in ("cosine", "chance", "whole")]
    heads = (x for field in FIELDS for x in (f"with {field}", "chance, at most", "whole motion"))
    table = Table(
        f"Cosines of the motion of a Score GAN's particles, {bench.where}",
        ("iteration", "motion", *heads),
        tuple(
            (moment, motion, *(spread(values(moment, motion, *each)) for each in measured))
            for moment in plan.moments
            for motion in MOTIONS
        ),
    )
    return Outcome(findings, [table], {str(seed): each for seed, each in seeds.items()})


def _followed(plan: Plan, lab: Lab, training: Training, seed: int) -> dict[str, Any]:
    """Mean cosines at each moment: moment -> motion -> field -> cosine and chance."""
    lab.say(f"following {training.name}, seed {seed}")
    trainer = lab.trainer(training, seed)
    steps = trainer.run()
    found: dict[str, Any] = {}
    for moment in plan.moments:
        while trainer.step < moment:
            next(steps)
        compared = [_compared(plan, lab, trainer, steps, seed) for _ in range(plan.steps)]
        found[str(moment)] = means(compared)
    return found


def _compared(plan: Plan, lab: Lab, trainer: Trainer, steps: Any, seed: int) -> dict[str, Any]:
    """One iteration of the training, and one step of gradient descent from the same weights."""
    model = trainer.model
    device = trainer.accelerator.device
    draws = lab.generator(seed, "motion", trainer.step)
    z = model.prior.sample(2 * plan.particles, generator=draws).to(device)
    others, seen = z.split(plan.particles)
    before = copy.deepcopy(model.sampled)
    next(steps)
    x, elsewhere = generate(before, seen), generate(before, others)
    moved = generate(model.sampled, seen) - x
    # the field is that of the iteration's own score, which is trained before the generator is
    noise = torch.Generator(device).manual_seed(draws.initial_seed())
    field = model.field.bind(Context(generator=noise))
    velocity = _averaged(field, x, model.horizon, plan.draws)
    source = _averaged(field, elsewhere, model.horizon, plan.draws)
    descended = _descended(before, others, source, seen) - x
    transported = ntk_operator(before, others, source, at=seen)
    orders = [torch.randperm(len(x), generator=draws) for _ in range(plan.permutations)]
    chance = {
        "A_θ[∇h]": [ntk_operator(before, others, source[o], at=seen) for o in orders],
        "∇h": [velocity[o] for o in orders],
    }
    exact = {"A_θ[∇h]": transported, "∇h": velocity}

    def cosines(by: Tensor, name: str) -> dict[str, float]:
        return {
            "cosine": _cosine(_centred(by), _centred(exact[name])),
            "chance": max(_cosine(_centred(by), _centred(each)) for each in chance[name]),
            "whole": _cosine(by, exact[name]),
        }

    motions = zip(MOTIONS, (moved, descended), strict=True)
    return {motion: {name: cosines(by, name) for name in FIELDS} for motion, by in motions}


def _averaged(field: Field, x: Tensor, t: float, draws: int) -> Tensor:
    """The mean of a perturbed field over its own noise."""
    at = At(x.new_tensor(t))
    with torch.no_grad():
        return torch.stack([field(x, at) for _ in range(draws)]).mean(0)


def _descended(generator: torch.nn.Module, z: Tensor, velocity: Tensor, at: Tensor) -> Tensor:
    """g(at) after one small step of gradient descent on the surrogate loss at z."""
    moved = copy.deepcopy(generator)
    optimizer = torch.optim.SGD(moved.parameters(), lr=RATE)
    surrogate_loss(moved(z, None, None), velocity).mean().backward()
    optimizer.step()
    return generate(moved, at)


def _centred(motion: Tensor) -> Tensor:
    """A motion without the shift that all particles have in common."""
    return motion - motion.mean(0)


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten().double(), b.flatten().double()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))


# --- (iii) the laws of both carriers


def _laws(plan: Plan, bench: Bench, lab: Lab) -> Outcome:
    def work(seed: int) -> dict[str, float]:
        gan, flow = lab.run(bench.models[SCORE_GAN], seed), lab.run(plan.free, seed)
        trainer = lab.trainer(bench.models[SCORE_GAN], seed)
        n = plan.samples
        clouds = {
            SCORE_GAN: lab.sample(gan, n, seed, "law", SCORE_GAN),
            FREE: lab.sample(flow, n, seed, "law", FREE),
            "data": gan.dataset.draw(n, "test", generator=lab.generator(seed, "law", "data")).x,
            "untrained": _drawn(trainer, n, _on(trainer, lab.generator(seed, "law"))).cpu(),
        }
        pairs = ((SCORE_GAN, FREE), (SCORE_GAN, "data"), (FREE, "data"), ("untrained", FREE))
        return {f"{a} to {b}": energy_distance(clouds[a], clouds[b]) for a, b in pairs}

    found = [lab.once(f"laws-{seed}", lambda seed=seed: work(seed)) for seed in bench.seeds]
    for seed in bench.seeds:  # kept values do not say what they are of
        lab.run(plan.free, seed)
    far: dict[str, list[float]] = {name: [each[name] for each in found] for name in found[0]}
    both, apart = far[f"{SCORE_GAN} to {FREE}"], far[f"untrained to {FREE}"]
    finding = Finding.of(
        "A functional used with a generator may be used without one, and vice versa: the same field leads "
        "both carriers to one law.",
        f"{SOURCE}, §4",
        bench.where,
        f"Energy distance of Score GAN to Score Flow {spread(both)}, of the untrained generator to it "
        f"{spread(apart)}; of Score GAN to the data {spread(far[f'{SCORE_GAN} to data'])}, of Score "
        f"Flow {spread(far[f'{FREE} to data'])}.",
        _above_a_tenth(apart, both, ENERGY.floor),
    )
    table = Table.of(
        f"Energy distances of the two carriers of one field, {bench.where}",
        far,
        {"of": str, "energy distance": lambda name: spread(far[name])},
    )
    return Outcome([finding], [table], far)


def _on(trainer: Trainer, generator: torch.Generator) -> torch.Generator:
    device = trainer.accelerator.device
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed())


def _plan(scale: Any, *keys: str, **others: Any) -> Plan:
    those: Sequence[Bench] = benches(scale, *keys)
    return Plan(tuple(those), score_flow(those[0]), **others)


ITEM = Item(
    "claim1",
    "GPM Claim 1, Findings 4 and 8",
    "One field in either carrier",
    "A generator can be trained with the gradient flow of a score-based diffusion model, and the generator "
    "of a GAN can be removed. An interacting particle model moves its particles by its generator's "
    "operator A_θ of the field that would move free particles.",
    {
        "smoke": _plan(
            "smoke",
            "gaussians",
            moments=(1, 3),
            steps=1,
            particles=32,
            draws=4,
            permutations=3,
            samples=200,
        ),
        "cpu": _plan("cpu", "gaussians", "digits", "mnist"),
        "paper": _plan("paper", "gaussians", "mnist"),
    },
    measure,
)
