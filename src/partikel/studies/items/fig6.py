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
from partikel.streams import Streams, seeded
from partikel.studies.benches import SCORE_GAN, Bench, Scale, Training, benches
from partikel.studies.item import Item, Outcome, log_ratios, spread
from partikel.studies.judgement import LOG, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.panel import Panel, along, measured, seeds_figure
from partikel.training import Trainer

OWN = "own score"
NEAR = 0.05
"""A loss is near its optimum where it is at most so much above it, as a share of it."""
SHOWN = 64
"""Updates that the figure shows; the lowest loss may come later."""
SIMILAR = 2.0
"""Distances within this factor of each other count as similar: seeds of one K differ by up to so much."""


CLAIMS = {
    "early": Claim(
        "Early in training the own score needs many updates to converge, more than the K that it has between "
        "two generator updates.",
        "GPM §C.4, Figure 6a",
        f"updates until its loss stays within {NEAR:.0%} of the lowest, less K",
        *(0.0, "updates"),
    ),
    "late": Claim(
        "Later the own score is close to its optimum before its first update.",
        "GPM §C.4, Figure 6b",
        f"{NEAR:g} less the share by which its loss is above the lowest before its first update",
        0.0,
    ),
    "similar": Claim(
        f"Results are similar over a range of K (here: within a factor of {SIMILAR:g}).",
        "GPM §C.4",
        f"log of {SIMILAR:g} times the distance of the best K over that of the worst",
        *(0.0, LOG),
    ),
    "small": Claim(
        f"A small K suffices: the smallest one comes within a factor of {SIMILAR:g} of the best.",
        "GPM §C.4",
        f"log of {SIMILAR:g} times the distance of the best K over that of the smallest",
        *(0.0, LOG),
    ),
}


@dataclass(frozen=True)
class Case:
    """What is measured on a data set.

    Attributes:
        bench: the data.
        model: the Score GAN.
        late: generator updates before the second moment.
        at: updates of the own score, with the generator held, after which its loss is measured.
        rows: generated points of the fixed set.
        ks: the numbers of score updates compared; none, or increasing ones.
    """

    bench: Bench
    model: Training
    late: int
    at: tuple[int, ...]
    rows: int
    ks: tuple[int, ...]


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
        notes=[
            "The loss is denoising score matching of the own score, on fixed generated points and noise.",
            "With the generator held, the own score keeps its optimiser, at the learning rate of that "
            "moment. Its optimum is the lowest loss measured from there on. Denoising leaves a loss even "
            "at the true score, so that a small excess is not a small error of the score.",
            "Every K has as many generator updates; a larger K costs that much more score updates.",
        ],
    )


def _of_case(plan: Plan, case: Case, lab: Lab) -> Outcome:
    held = {seed: _held_twice(plan, case, lab, seed) for seed in case.bench.seeds}
    recipe = lab.recipe(case.model, case.bench.seeds[0])
    assert isinstance(recipe, ScoreGAN)
    moments = {"early": plan.early, "late": case.late}
    _draw(case, lab, moments, held)
    found = convergence(case, moments, recipe.score_steps, list(held.values()))
    values = {"held": held}
    if not case.ks:
        return Outcome(found, values=values)
    panel = _panel(case, lab, recipe.score_steps)
    ratio = recipe.score_optimizer.lr / recipe.generator_optimizer.lr
    rates = f"the score's learning rate is {ratio:.3g} times the generator's"

    def seconds(name: str) -> str | None:
        return spread(panel.seconds(name)) if name in panel.runs else None

    table = panel.table(columns={"CPU s of training": seconds}, title="Quality against K")
    outcome = panel.outcome([*found, *quality(panel, rates)], [table])
    return dataclasses.replace(outcome, values={**values, "K": outcome.values})


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

    def own(purpose: str) -> int:
        return seeded(seed, "held", purpose).initial_seed()

    alone = Trainer(
        model,
        trainer.dataset,
        (dataclasses.replace(phase, optimizer=settings, repeats=1),),
        iterations=at[-1],
        seed=own("training"),
        engine=trainer.engine,
    )
    state = copy.deepcopy(trainer.optimizers[index].state_dict())
    alone.optimizers[0].load_state_dict(state)
    device = trainer.accelerator.device
    model.train()
    points = model.particles(rows, Streams(own("points"), device=device))
    (loss,) = (each for each in model.losses() if each.name == OWN)

    def loss_now() -> float:
        streams = Streams(own("noise"), device=device)
        loss.module.eval()
        with torch.no_grad():
            value = loss.compute(TrainingBatch(None, points, rows, streams)).loss.mean()
        loss.module.train()
        return float(value)

    losses = [loss_now()] if at[0] == 0 else []
    for done in alone.run():
        if done.step in at:
            losses.append(loss_now())
    return losses


def _excess(losses: Sequence[float]) -> list[float]:
    """How far losses are above the lowest of them, as shares of it."""
    return [loss / min(losses) - 1 for loss in losses]


def _draw(
    case: Case, lab: Lab, moments: Mapping[str, int], held: Mapping[int, Mapping[str, list[float]]]
) -> None:
    lines = {}
    for moment, updates in moments.items():
        percent = [[100 * each for each in _excess(losses[moment])] for losses in held.values()]
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


def convergence(
    case: Case, moments: Mapping[str, int], k: int, held: Sequence[Mapping[str, Sequence[float]]]
) -> list[Finding]:
    """How far the own score is from its optimum, early and late.

    Args:
        case: with the updates after which its loss was measured.
        moments: "early" and "late", generator updates before them.
        k: updates of the own score for each of the generator.
        held: for each seed, the losses from both moments on.
    """
    excess = {moment: [_excess(losses[moment]) for losses in held] for moment in moments}
    needed = {m: [_needed(curve, case.at) for curve in excess[m]] for m in moments}

    def said(moment: str) -> str:
        above = spread([100 * curve[0] for curve in excess[moment]])
        return (
            f"After {moments[moment]} generator updates the loss is {above} % above its lowest, and "
            f"{spread(needed[moment])} updates bring it within {NEAR:.0%}"
        )

    early = [each - k for each in needed["early"]]
    late = [NEAR - curve[0] for curve in excess["late"]]
    return [
        CLAIMS["early"].found(case.bench.where, f"{said('early')}; K = {k}.", early),
        CLAIMS["late"].found(case.bench.where, f"{said('late')}.", late),
    ]


def _needed(excess: Sequence[float], at: Sequence[int]) -> int:
    """Updates after which the loss is near its lowest, for good."""
    far = [place for place, value in enumerate(excess) if value > NEAR]
    return at[far[-1] + 1] if far else 0


def _panel(case: Case, lab: Lab, own: int) -> Panel:
    """Distances to the data with each K, of which ``own`` is the model's."""
    model = case.model
    models = {
        f"K = {k}": model if k == own else model.but(f"k-{k}", score_steps=k) for k in case.ks
    }
    panel = measured(lab, case.bench, models)
    figure = seeds_figure(
        {SCORE_GAN: [(k, panel.figures(f"K = {k}")) for k in case.ks]},
        "K, updates of the own score for each of the generator",
        f"{panel.measure.label}, {panel.where}",
        log=True,
        level=("data vs data", panel.data),
        ticks=case.ks,
    )
    key = case.bench.key
    lab.draw(figure, f"{case.bench.data}: quality against K; mean and range of seeds.", f"{key}-k")
    return panel


def quality(panel: Panel, rates: str) -> list[Finding]:
    """Whether K matters.

    Args:
        panel: of a model for each K, the smallest first.
        rates: the learning rates in words.
    """
    every = [panel.figures(name) for name in panel.rows]
    best, worst = ([most(each) for each in zip(*every, strict=True)] for most in (min, max))

    def within(far: Sequence[float]) -> list[float]:
        """How far distances are below the factor, as log ratios."""
        return [math.log(SIMILAR) - ratio for ratio in log_ratios(far, best, panel.floor)]

    said = f"{panel.said()}; {rates}."
    return [
        CLAIMS["similar"].found(panel.where, said, within(worst)),
        CLAIMS["small"].found(panel.where, said, within(every[0])),
    ]


def _cases(scale: Scale) -> tuple[Case, ...]:
    found = []
    places = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    shown = tuple(place for place in places if place <= SHOWN)
    for bench in benches(scale, "gaussians", "digits", "mnist"):
        model = bench.models[SCORE_GAN]
        if scale == "smoke":
            ks = (1, 2) if bench.key == "gaussians" else ()
            case = Case(bench, model, 5, (0, 1, 2), 64, ks)
        elif scale == "paper" and bench.key == "mnist":
            # the paper's: equal learning rates, and K = 64 for (a)
            model = model.but("k-64", score_steps=64, score_optimizer={"lr": 2e-4})
            case = Case(bench, model, 3200, shown, 4096, (1, 4, 16, 64))
        elif scale == "paper":
            case = Case(bench, model, 3000, shown, 4096, (1, 2, 5, 10, 20))
        elif bench.key == "gaussians":
            case = Case(bench, model, 1200, places, 4096, (1, 2, 5, 10))
        elif bench.key == "digits":
            case = Case(bench, model, 1500, places, 4096, (1, 4, 8))
        else:
            case = Case(bench, model, 750, shown, 1024, ())
        found.append(case)
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
    CLAIMS,
)
