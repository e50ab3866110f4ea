"""How fast models sample, and what of it costs quality: GPM §4.3, DiffFlow's aim.

All models of a data set draw the same number of samples in turn, on one thread, as their presets say;
seconds are process time, and only ratios within one round are compared. Beside them stand the distances
to the data and the evaluations of a network.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from partikel.app.show import plots
from partikel.streams import seeded
from partikel.studies.benches import EDM, FLOW, GAN, SCORE_GAN, Bench, Training, benches
from partikel.studies.item import Item, Outcome, spread
from partikel.studies.judgement import LOG, QUARTER, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.panel import Panel, measured

DIFFUSION_GAN, DIFFODE_GAN = "Diffusion-GAN", "DiffODE-GAN"
BETWEEN = (DIFFUSION_GAN, DIFFODE_GAN)
"""Points of DiffFlow's plane between GANs and diffusion."""
GENERATORS = (GAN, SCORE_GAN)
ORDER = 10.0
"""Times faster that count as orders of magnitude."""
SOURCE, AIM = "GPM §4.3", "DiffFlow §1, §3.3-3.4"
CLAIMS = {
    "orders": Claim(
        "One evaluation draws a sample of a Score GAN, orders of magnitude faster than EDM.",
        SOURCE,
        f"log of EDM's seconds over {ORDER:g} times Score GAN's",
        0.0,
        LOG,
    ),
    "slower": Claim(
        "Discriminator Flows are slower at inference than generator-based models.",
        SOURCE,
        "log of Discriminator Flow's seconds over those of the slower of GAN and Score GAN",
        QUARTER,
        LOG,
    ),
    "training": Claim(
        "Discriminator Flows are slower at training than generator-based models.",
        SOURCE,
        "log of the CPU seconds of an iteration of Discriminator Flow over those of GAN",
        QUARTER,
        LOG,
    ),
    **{
        name: Claim(
            f"Between GANs and diffusion lie models that trade quality for speed: {name} is nearer to the "
            "data than a GAN and faster than EDM.",
            AIM,
            f"the lesser of log of GAN's distance over that of {name}, and of log of EDM's seconds over its",
            QUARTER,
            LOG,
        )
        for name in BETWEEN
    },
}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data.
        rounds: in which all models draw, one after the other.
        draws: samples of each in a round.
    """

    benches: tuple[Bench, ...]
    rounds: int = 7
    draws: int = 2000


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Train, draw in turn, and measure quality."""
    return Outcome.of(
        {bench.key: _of_bench(plan, bench, lab) for bench in plan.benches},
        notes=[
            "Seconds depend on the machine, their ratios little; they are medians over rounds, and one "
            "process's own time. Networks differ between models as their presets do.",
            "Every model has the steps of its preset. EDM with fewer, better placed levels may be as fast as "
            "the models between: this says that they lie between, not that they win.",
        ],
    )


def _models(bench: Bench) -> dict[str, Training]:
    edm = bench.models[EDM]
    own = {
        DIFFUSION_GAN: Training(f"diffusion-gan-{bench.key}", edm.changes, score=edm),
        DIFFODE_GAN: Training(f"diffode-gan-{bench.key}", edm.changes),
    }
    return {**bench.models, **(own if bench.key in ("gaussians", "digits") else {})}


def _of_bench(plan: Plan, bench: Bench, lab: Lab) -> Outcome:
    panel = measured(lab, bench, _models(bench))
    drawn = lab.once(f"{bench.key}-seconds", lambda: _drawn(plan, panel))
    seconds = {name: [each[name] for each in drawn] for name in panel.runs}
    figure = plots.curves_figure(
        {
            name: [(statistics.fmean(seconds[name]), statistics.fmean(panel.figures(name)))]
            for name in panel.runs
        },
        f"CPU seconds for {plan.draws} samples",
        f"{panel.measure.label}, {panel.where}",
        log=True,
        level=("data vs data", panel.data),
        marked=True,
    )
    lab.draw(figure, f"{bench.data}: quality beside seconds, means over seeds.", bench.key)
    each = {
        name: [run.cpu_seconds / run.step for run in runs]
        for name, runs in panel.runs.items()
        if name in (FLOW, GAN)
    }
    table = panel.table(
        columns={
            "evaluations a sample": lambda name: panel.calls(name) if name in panel.runs else None,
            f"CPU s for {plan.draws} samples": lambda name: (
                spread(seconds[name]) if name in seconds else None
            ),
        },
        title="Speed and quality",
    )
    outcome = panel.outcome(findings(panel, seconds, each), [table])
    return replace(outcome, values={**outcome.values, "seconds": seconds})


def _drawn(plan: Plan, panel: Panel) -> list[dict[str, float]]:
    """For each training seed, seconds of each model: the median over rounds in which all take turns."""
    found = []
    for place, seed in enumerate(panel.bench.seeds):
        times: dict[str, list[float]] = {name: [] for name in panel.runs}
        for turn in range(plan.rounds + 1):
            for name, runs in panel.runs.items():
                started = time.process_time()
                runs[place].sample(plan.draws, generator=seeded(seed, "speed", turn))
                times[name].append(time.process_time() - started)
        found.append({name: statistics.median(each[1:]) for name, each in times.items()})
    return found


def findings(
    panel: Panel, seconds: Mapping[str, list[float]], each: Mapping[str, list[float]]
) -> list[Finding]:
    """What the seconds and distances say.

    Args:
        panel: of the models.
        seconds: of drawing the same number of samples, by name and training seed.
        each: CPU seconds of an iteration of training, likewise.
    """

    def over(first: str, second: str) -> list[float]:
        return [math.log(a / b) for a, b in zip(seconds[first], seconds[second], strict=True)]

    def took(*names: str) -> str:
        return ", ".join(f"{spread(seconds[name])} s for {name}" for name in names)

    slower = [min(pair) for pair in zip(*(over(FLOW, name) for name in GENERATORS), strict=True)]
    training = [math.log(a / b) for a, b in zip(each[FLOW], each[GAN], strict=True)]
    milliseconds = {
        name: spread([1000 * value for value in values]) for name, values in each.items()
    }
    found = [
        CLAIMS["orders"].found(
            panel.where,
            f"{took(SCORE_GAN, EDM)}.",
            [ratio - math.log(ORDER) for ratio in over(EDM, SCORE_GAN)],
        ),
        CLAIMS["slower"].found(panel.where, f"{took(FLOW, *GENERATORS)}.", slower),
        CLAIMS["training"].found(
            panel.where,
            f"{milliseconds[FLOW]} ms an iteration for {FLOW}, {milliseconds[GAN]} ms for {GAN}.",
            training,
        ),
    ]
    for name in BETWEEN:
        if name in panel.rows:
            pairs = zip(panel.ratios(GAN, name), over(EDM, name), strict=True)
            said = f"{panel.said((GAN, name, EDM))}; {took(name, EDM)}."
            found.append(CLAIMS[name].found(panel.where, said, [min(pair) for pair in pairs]))
    return found


ITEM = Item(
    "speed",
    f"{SOURCE}; {AIM}",
    "Sampling speed, and what of it costs quality",
    "Score GANs draw a sample with one evaluation, orders of magnitude faster than EDM; Discriminator Flows "
    "are slower at training and at inference than models with a generator (GPM). DiffFlow aims at a flexible "
    "trade-off between sample quality and sampling speed, by models between GANs and diffusion.",
    {
        "smoke": Plan(benches("smoke", "gaussians"), 1, 100),
        "cpu": Plan(benches("cpu", "gaussians", "digits", "mnist")),
        "paper": Plan(benches("paper", "gaussians", "mnist")),
    },
    measure,
    CLAIMS,
)
