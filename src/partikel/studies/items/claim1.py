"""GPM Claim 1 with Findings 4 and 8: one field in either carrier.

(i) A generator learns from the score difference, and a discriminator does without a generator: Score GAN
and Discriminator Flow are compared with the same systems untrained. (ii) A generator's particles move by
A_θ[∇h], not by ∇h: during the training of a Score GAN the motion of its particles, in one of its own
iterations and in one small step of plain gradient descent, is compared with both, and with both after
the field's values have been permuted among the particles, which is chance. A shift that all particles
have in common survives permutation and says little, so it is taken off both. (iii) The law of the Score GAN
is compared with that of a Score Flow, free particles in the very same field, with what two draws of one
law differ by, and with how far each is from the data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from partikel.studies.benches import FLOW, SCORE_GAN, Bench, Training, benches, score_flow
from partikel.studies.item import Item, Outcome, Table, log_ratios, means, spread
from partikel.studies.judgement import LOG, QUARTER, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.panel import Panel, measured, seeds_figure
from partikel.training import Trainer

SOURCE = "GPM Claim 1"
FREE = "Score Flow"
TENTH = math.log(10)
"""A trained model is better than chance where it leaves at most a tenth of the untrained distance."""
DOUBLE = math.log(2)
"""Two laws are one up to twice what two draws of one law differ by."""
RATE = 1e-4
"""Of the step of plain gradient descent: small, as eq. 13 is of continuous time."""
LEARNED = {
    SCORE_GAN: "A generator can be trained with the flow of a score-based diffusion model.",
    FLOW: "The generator of a GAN can be removed: the discriminator alone makes samples.",
}
MOVES = {
    "A_θ[∇h]": "A generator's particles move by A_θ[∇h] (GPM eq. 13): nearer to it than by chance.",
    "∇h": "A Score GAN follows its field's particle flow ∇h better than by chance.",
}
ONE_LAW = (
    "A functional used with a generator may be used without one, and vice versa: the same field leads both "
    "carriers to one law.",
    "GPM Claim 1, §4",
)
CLAIMS = {
    **{
        name: Claim(
            text,
            SOURCE,
            "log of the untrained system's distance to the data over the trained one's",
            TENTH,
            LOG,
        )
        for name, text in LEARNED.items()
    },
    **{
        field: Claim(
            text,
            "GPM Definition 2, Findings 4 and 8",
            "cosine of the particles' motion with the field less the largest with a permuted one, at the "
            "moment of training where that is least",
            0.0,  # chance is in the effect
            "cosine",
        )
        for field, text in MOVES.items()
    },
    "one law": Claim(
        *ONE_LAW,
        "log of the energy distance between the two carriers' laws over what two draws of the data differ by",
        DOUBLE,
        LOG,
        "same",
    ),
    "nearer": Claim(
        *ONE_LAW,
        "log of the energy distance of the nearer carrier to the data over that between the two carriers",
        QUARTER,
        LOG,
    ),
    "far from chance": Claim(
        *ONE_LAW,
        "log of the untrained generator's energy distance to the Score Flow over the trained one's",
        TENTH,
        LOG,
        replaced="two rough models of the data are much nearer to each other than an untrained one is",
    ),
}
MOTIONS = ("its own update", "gradient descent")
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
            "One law: the two carriers differ by less than twice what two draws of the data do. Where both "
            "are as near to the data as draws are, that they are nearer to each other cannot be seen.",
        ],
    )


# --- (i) quality against chance


def _against_chance(bench: Bench, lab: Lab) -> Outcome:
    panel = measured(lab, bench, bench.models)
    untrained = {
        name: [_untrained(lab, bench, bench.models[name], seed) for seed in bench.seeds]
        for name in LEARNED
    }
    chance = {name: [each[panel.measure.key] for each in untrained[name]] for name in LEARNED}
    columns = {"untrained": lambda name: spread(chance[name]) if name in chance else None}
    outcome = panel.outcome(chance_findings(panel, chance), [panel.table(columns=columns)])
    return replace(outcome, values={**outcome.values, "untrained": chance})


def chance_findings(panel: Panel, chance: Mapping[str, Sequence[float]]) -> list[Finding]:
    """Whether training left a small part of the distance.

    Args:
        panel: of the trained models.
        chance: name -> distance of the untrained system, seed by seed.
    """
    return [
        CLAIMS[name].found(
            panel.where,
            f"{panel.said([name])}, {spread(chance[name])} untrained, {panel.data:.2g} for data.",
            log_ratios(chance[name], panel.figures(name), panel.floor),
        )
        for name in LEARNED
    ]


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

    def values(moment: int, motion: str, field: str, what: str) -> list[float]:
        return [moments[str(moment)][motion][field][what] for moments in seeds.values()]

    curves, strokes = {}, {}
    for field, color in zip(FIELDS, plots.SERIES, strict=False):
        shown = field.replace("A_θ", r"$A_\theta$")
        for name, what in ((shown, "cosine"), (f"{shown}, permuted", "chance")):
            curves[name] = [(m, values(m, MOTIONS[0], field, what)) for m in plan.moments]
            strokes[name] = plots.Stroke(color, dashed=what == "chance")
    figure = seeds_figure(
        curves,
        "iteration of the Score GAN",
        f"cosine of the particles' motion with the field, {bench.where}",
        strokes=strokes,
        ticks=plan.moments,
    )
    lab.draw(
        figure,
        f"{bench.data}: motion of a Score GAN's particles in its own updates, their common shift taken off, "
        f"mean and range of seeds; dashed: the largest of {plan.permutations} permutations of the field's "
        "values.",
        "motion",
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
    findings = motion_findings(bench.where, list(seeds.values()))
    return Outcome(findings, [table], {str(seed): each for seed, each in seeds.items()})


def motion_findings(where: str, seeds: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Whether a generator's own updates move particles by the field, more than by chance.

    Args:
        where: on what.
        seeds: for each moment -> motion -> field -> "cosine" and "chance", as :func:`_followed` says.
    """
    findings = []
    for field in FIELDS:
        own = {moment: [each[moment][MOTIONS[0]][field] for each in seeds] for moment in seeds[0]}
        margins = [[x["cosine"] - x["chance"] for x in those] for those in own.values()]
        said = [
            f"after {moment} iterations {spread([x['cosine'] for x in those])} (chance: at most "
            f"{spread([x['chance'] for x in those])})"
            for moment, those in own.items()
        ]
        findings.append(
            CLAIMS[field].found(
                where,
                f"Cosine of the motion in one of its own updates with {field}, the common shift taken "
                f"off: {'; '.join(said)}.",
                [min(each) for each in zip(*margins, strict=True)],
            )
        )
    return findings


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
    n = plan.samples

    def work(seed: int) -> dict[str, float]:
        gan, flow = lab.run(bench.models[SCORE_GAN], seed), lab.run(plan.free, seed)
        trainer = lab.trainer(bench.models[SCORE_GAN], seed)

        def apart(draw: int) -> dict[str, float]:
            draws = lab.generator(seed, "law", draw)
            clouds = {
                SCORE_GAN: lab.sample(gan, n, seed, "law", SCORE_GAN, draw),
                FREE: lab.sample(flow, n, seed, "law", FREE, draw),
                "data": gan.dataset.draw(n, "test", generator=draws).x,
                "untrained": _drawn(trainer, n, _on(trainer, draws)).cpu(),
            }
            return {f"{a} to {b}": energy_distance(clouds[a], clouds[b]) for a, b in PAIRS}

        return means([apart(draw) for draw in range(bench.evaluations)])

    found = [lab.once(f"laws-{seed}", lambda seed=seed: work(seed)) for seed in bench.seeds]
    for seed in bench.seeds:  # kept values do not say what they are of
        lab.run(plan.free, seed)
    floor = lab.floor(lab.run(plan.free, bench.seeds[0]).dataset, n)
    far: dict[str, list[float]] = {name: [each[name] for each in found] for name in found[0]}
    table = Table.of(
        f"Energy distances of the two carriers of one field, {bench.where}",
        far,
        {"of": str, "energy distance": lambda name: spread(far[name]), "floor": lambda _: floor},
    )
    return Outcome(law_findings(bench.where, far, floor), [table], {**far, "floor": floor})


PAIRS = ((SCORE_GAN, FREE), (SCORE_GAN, "data"), (FREE, "data"), ("untrained", FREE))
"""Laws that are compared."""


def law_findings(where: str, far: Mapping[str, Sequence[float]], floor: float) -> list[Finding]:
    """Whether the two carriers of one field end in one law, by three rules.

    Args:
        where: on what.
        far: "A to B" -> energy distance, seed by seed, of :data:`PAIRS`.
        floor: between draws of one law.
    """
    both, gan, free, untrained = (far[f"{a} to {b}"] for a, b in PAIRS)
    said = (
        f"Energy distance of Score GAN to Score Flow {spread(both)} (two draws of the data: up to "
        f"{floor:.2g}); of Score GAN to the data {spread(gan)}, of Score Flow {spread(free)}; of the "
        f"untrained generator to Score Flow {spread(untrained)}."
    )
    nearest = [min(pair) for pair in zip(gan, free, strict=True)]
    effects = {
        "one law": log_ratios(both, [floor] * len(both), floor),
        "nearer": log_ratios(nearest, both, floor),
        "far from chance": log_ratios(untrained, both, floor),
    }
    return [CLAIMS[key].found(where, said, those) for key, those in effects.items()]


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
    CLAIMS,
)
