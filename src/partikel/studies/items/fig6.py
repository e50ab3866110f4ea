"""GPM Figure 6: how many updates of the own score a Score GAN needs between two of its generator.

(a) From a moment of training, the generator is held and the own score alone is trained on; its denoising
loss on one large fixed set (less noisy than that of training) tells how far from its optimum it was. (b)
Score GANs with different K, at one ratio of learning rates and equally many generator updates.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from partikel.fields import TrainingBatch
from partikel.recipes import ScoreGAN
from partikel.streams import Streams, derive_seed
from partikel.studies.benches import SCORE_GAN, Bench, Scale, Training, benches
from partikel.studies.curves import along, seeds_figure
from partikel.studies.distances import Evaluated
from partikel.studies.item import Finding, Item, Outcome, Table, log_ratios, spread
from partikel.studies.lab import Lab
from partikel.training import Trainer

SOURCE = "GPM §C.4"
OWN = "own score"
NEAR = 0.05
"""A loss is near its optimum where it is at most so much above it, as a share of it."""
SHOWN = 64
"""Updates that the figure shows; the lowest loss may come later."""
SIMILAR = 2.0
"""Distances within this factor of each other count as similar: seeds of one K differ by up to so much."""


@dataclass(frozen=True)
class Case:
    """What is measured on a data set.

    Attributes:
        bench: the data.
        model: the Score GAN.
        late: generator updates before the second moment.
        at: updates of the own score, with the generator held, after which its loss is measured.
        rows: generated points of the fixed set.
        ks: the numbers of score updates compared.
        seeds: of that comparison.
    """

    bench: Bench
    model: Training
    late: int
    at: tuple[int, ...]
    rows: int
    ks: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        cases: by data set.
        early: generator updates before the first moment; the paper's is 50.
    """

    cases: tuple[Case, ...]
    early: int = 50


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Hold generators, train with other K, and draw both."""
    return Outcome.of(
        {case.bench.key: _of_case(plan, case, lab) for case in plan.cases},
        {"loss": "denoising score matching of the own score on fixed generated points and noise"},
        [
            "With the generator held, the own score keeps its optimiser, at the learning rate of that "
            "moment. Its optimum is the lowest loss measured from there on. Denoising leaves a loss even "
            "at the true score, so that a small excess is not a small error of the score.",
            "Every K has as many generator updates; a larger K costs that much more score updates.",
        ],
    )


def _of_case(plan: Plan, case: Case, lab: Lab) -> Outcome:
    held = {seed: _held_twice(plan, case, lab, seed) for seed in case.bench.seeds}
    findings, values = _convergence(plan, case, lab, held), {"held": held}
    if len(case.ks) < 2:
        return Outcome(findings, values=values)
    more, table, far = _quality(case, lab)
    return Outcome([*findings, *more], [table], {**values, "K": far})


def _held_twice(plan: Plan, case: Case, lab: Lab, seed: int) -> dict[str, list[float]]:
    """Losses from the early and from the late moment of one training."""

    def work() -> dict[str, list[float]]:
        lab.say(f"following {case.model.name}, seed {seed}")
        trainer = lab.trainer(case.model, seed)
        losses: dict[str, list[float]] = {}
        for done in trainer.run():
            if done.step == plan.early:
                losses["early"] = held_losses(trainer, case.at, case.rows, seed)
            if done.step == case.late:
                losses["late"] = held_losses(trainer, case.at, case.rows, seed)
                break
        return losses

    return lab.once(f"{case.model.name}-{seed}", work)


def held_losses(trainer: Trainer, at: Sequence[int], rows: int, seed: int) -> list[float]:
    """The own score's loss while it is trained and its generator is held.

    The trainer and its model are left as they are.

    Args:
        trainer: of a Score GAN, between two iterations.
        at: increasing numbers of updates.
        rows: generated points of the set that the loss is measured on.
        seed: of all draws.
    """
    model = copy.deepcopy(trainer.model)
    (index,) = (i for i, phase in enumerate(trainer.phases) if phase.loss == OWN)
    phase = trainer.phases[index]
    rate = phase.optimizer.rate(trainer.step, trainer.iterations)
    settings = dataclasses.replace(phase.optimizer, lr=rate, warmup=0, decay="constant")
    alone = Trainer(
        model,
        trainer.dataset,
        (dataclasses.replace(phase, optimizer=settings, repeats=1),),
        iterations=at[-1],
        seed=derive_seed(seed, "held"),
        engine=trainer.engine,
    )
    state = copy.deepcopy(trainer.optimizers[index].state_dict())
    alone.optimizers[0].load_state_dict(state)
    device = trainer.accelerator.device
    model.train()
    points = model.particles(rows, Streams(derive_seed(seed, "points"), device=device))
    (loss,) = (each for each in model.losses() if each.name == OWN)

    def measured() -> float:
        streams = Streams(derive_seed(seed, "noise"), device=device)
        loss.module.eval()
        with torch.no_grad():
            value = loss.compute(TrainingBatch(None, points, rows, streams)).loss.mean()
        loss.module.train()
        return float(value)

    losses = [measured()] if at[0] == 0 else []
    for done in alone.run():
        if done.step in at:
            losses.append(measured())
    return losses


def _convergence(
    plan: Plan, case: Case, lab: Lab, held: Mapping[int, Mapping[str, list[float]]]
) -> list[Finding]:
    recipe = lab.recipe(case.model, case.bench.seeds[0])
    assert isinstance(recipe, ScoreGAN)
    moments = {"early": plan.early, "late": case.late}
    excess = {
        moment: [
            [loss / min(losses[moment]) - 1 for loss in losses[moment]] for losses in held.values()
        ]
        for moment in moments
    }
    needed = {
        moment: [_needed(curve, case.at) for curve in curves] for moment, curves in excess.items()
    }
    lines = {}
    for moment, updates in moments.items():
        percent = [[100 * each for each in curve] for curve in excess[moment]]
        shown = [(at, column) for at, column in along(case.at, percent) if at <= SHOWN]
        lines[f"after {updates} generator updates"] = shown
    figure = seeds_figure(
        lines,
        "updates of the own score, the generator held",
        f"percent of its loss above the lowest, {case.bench.where}",
    )
    lab.draw(
        figure,
        f"{case.bench.data}: loss of the own score between two generator updates; mean and range of seeds.",
        case.bench.key,
    )
    first = {moment: [curve[0] for curve in curves] for moment, curves in excess.items()}
    k = recipe.score_steps

    def said(moment: str) -> str:
        above = spread([100 * each for each in first[moment]])
        return (
            f"After {moments[moment]} generator updates the loss is {above} % above its lowest, and "
            f"{spread(needed[moment])} updates bring it within {NEAR:.0%}"
        )

    return [
        Finding.of(
            "Early in training the own score needs many updates to converge, more than the K that it "
            "has between two generator updates.",
            f"{SOURCE}, Figure 6a",
            case.bench.where,
            f"{said('early')}; K = {k}.",
            [each - k for each in needed["early"]],
        ),
        Finding.of(
            "Later the own score is close to its optimum before its first update.",
            f"{SOURCE}, Figure 6b",
            case.bench.where,
            f"{said('late')}.",
            [NEAR - each for each in first["late"]],
            0.01,
        ),
    ]


def _needed(excess: Sequence[float], at: Sequence[int]) -> int:
    """Updates after which the loss is near its lowest, for good."""
    far = [place for place, value in enumerate(excess) if value > NEAR]
    return at[far[-1] + 1] if far else 0


def _quality(case: Case, lab: Lab) -> tuple[list[Finding], Table, dict[str, list[float]]]:
    """Distances to the data with each K."""
    recipe = lab.recipe(case.model, case.seeds[0])
    assert isinstance(recipe, ScoreGAN)
    bench = dataclasses.replace(case.bench, seeds=case.seeds)
    found: dict[int, Evaluated] = {}
    for k in case.ks:
        own = k == recipe.score_steps
        training = case.model if own else case.model.but(f"k-{k}", score_steps=k)
        found[k] = lab.evaluated(training, case.seeds, bench.samples)
    few = found[case.ks[0]]
    unit = few.distance.name
    figure = seeds_figure(
        {"Score GAN": [(k, each.far) for k, each in found.items()]},
        "K, updates of the own score for each of the generator",
        f"{unit}, {bench.where}",
        log=True,
        level=("data vs data", few.floor),
        ticks=case.ks,
    )
    lab.draw(figure, f"{bench.data}: quality against K; mean and range of seeds.", f"{bench.key}-k")
    shown = ", ".join(f"{spread(each.far)} with K = {k}" for k, each in found.items())
    by_seed = list(zip(*(each.far for each in found.values()), strict=True))
    best, worst = [min(each) for each in by_seed], [max(each) for each in by_seed]
    ratio = recipe.score_optimizer.lr / recipe.generator_optimizer.lr
    rates = f"the score's learning rate is {ratio:.3g} times the generator's"

    def within(distances: list[float]) -> list[float]:
        """How far distances are below the factor, as log ratios."""
        ratios = log_ratios(distances, best, few.distance.floor)
        return [math.log(SIMILAR) - each for each in ratios]

    findings = [
        Finding.of(
            f"Results are similar over a range of K (here: within a factor of {SIMILAR:g}).",
            SOURCE,
            bench.where,
            f"{unit}: {shown}; {rates}.",
            within(worst),
            0.05,
        ),
        Finding.of(
            f"A small K suffices: K = {case.ks[0]} comes within a factor of {SIMILAR:g} of the best K.",
            SOURCE,
            bench.where,
            f"{unit}: {spread(few.far)} with K = {case.ks[0]}, {spread(best)} with the best K of "
            "each seed.",
            within(few.far),
            0.05,
        ),
    ]
    table = Table.of(
        f"Quality against K, {bench.where}",
        case.ks,
        {
            "K": int,
            unit: lambda k: spread(found[k].far),
            "CPU s of training": lambda k: spread([run.cpu_seconds for run in found[k].runs]),
        },
    )
    return findings, table, {str(k): each.far for k, each in found.items()}


def _cases(scale: Scale) -> tuple[Case, ...]:
    found = []
    places = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    for bench in benches(scale, "gaussians", "digits", "mnist"):
        model = bench.models[SCORE_GAN]
        if scale == "smoke":
            ks = (1, 2) if bench.key == "gaussians" else ()
            found.append(Case(bench, model, 5, (0, 1, 2), 64, ks, (0,)))
        elif scale == "paper":
            if bench.key == "mnist":  # the paper's: equal learning rates, and K = 64 for (a)
                model = model.but("k-64", score_steps=64, score_optimizer={"lr": 2e-4})
            at = tuple(place for place in places if place <= 64)
            ks = (1, 4, 16, 64) if bench.key == "mnist" else (1, 2, 5, 10, 20)
            late = 3200 if bench.key == "mnist" else 3000
            found.append(Case(bench, model, late, at, 4096, ks, bench.seeds))
        elif bench.key == "gaussians":
            found.append(Case(bench, model, 1200, places, 4096, (1, 2, 5, 10), bench.seeds))
        elif bench.key == "digits":
            found.append(Case(bench, model, 1500, places, 4096, (1, 4, 8), bench.seeds[:1]))
        else:
            at = tuple(place for place in places if place <= 64)
            found.append(Case(bench, model, 750, at, 1024, (), ()))
    return tuple(found)


ITEM = Item(
    "fig6",
    "GPM Figure 6, §C.4",
    "Updates of the own score between two generator updates",
    "The training loss of a Score GAN's own score on MNIST between two updates of its generator, at equal "
    "learning rates: at the 50th generator update it needs many updates to converge, at the 3200th it is "
    "close to its optimum before the first. Results are similar for a range of K.",
    {
        "smoke": Plan(_cases("smoke"), 2),
        "cpu": Plan(_cases("cpu")),
        "paper": Plan(_cases("paper")),
    },
    measure,
)
