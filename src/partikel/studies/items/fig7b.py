"""GPM Figure 7b: quality against the number of network evaluations of a sample.

EDM by Euler's and Heun's method on grids of several sizes (placed by its own rule), and Discriminator
Flow with fewer evaluations in two ways: on coarser grids than it was trained on, and stopped early. The
paper trains a model for each way, with 2N steps of strength η and with N steps of strength 2η, so that
a step of the first is a quarter of one of the second; the second is tried on coarser grids too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from partikel.app.config import load_preset
from partikel.app.show import plots
from partikel.models import ParticleModel
from partikel.solvers import Euler, Heun
from partikel.studies.benches import EDM, FLOW, Bench, Training, benches
from partikel.studies.item import Item, Outcome, spread
from partikel.studies.judgement import LOG, QUARTER, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.panel import Panel, Points, measured

EULER, HEUN = "EDM, Euler", "EDM, Heun"
STOPPED, COARSER = "Flow, stopped early", "Flow, coarser grids"
DOUBLE = "Flow of 2N steps, coarser"
XLABEL = "network evaluations of a sample"
FEW = 11
"""Most evaluations that count as few."""
FACTOR = 2.0
"""Distances within this factor of each other count as comparable."""
SPANS = {"few": (0, FEW), "many": (FEW + 1, math.inf), "all": (0, math.inf)}
"""Least and most evaluations of what is judged together."""
_FIRST = "its mean over all evaluations was that of the few, at which distances are far apart"
_SAID: dict[str, tuple[str, str, float, Literal["greater", "same"]]] = {
    "efficient": (
        "The first-order version of EDM is more efficient than the second-order version at few evaluations.",
        *("Heun's distance over Euler's", QUARTER, "greater"),
    ),
    "comparable": (
        "Discriminator Flow is comparable to the second-order version of EDM.",
        *("Heun's distance over that of Discriminator Flow", math.log(FACTOR), "same"),
    ),
    "outperformed": (
        "Discriminator Flow and the second-order version of EDM are outperformed by the first-order version.",
        *("the lower of Discriminator Flow's and Heun's distance over Euler's", QUARTER, "greater"),
    ),
}
CLAIMS = {
    f"{what}, {span}": Claim(
        *(text, "GPM §C.5, Figure 7b"),
        f"log of {ratio}, mean over {span} numbers of evaluations",
        *(least, LOG, kind, _FIRST if span == "all" else ""),
    )
    for span in SPANS
    for what, (text, ratio, least, kind) in _SAID.items()
    if span == "few" or what != "efficient"
}
STROKES = {
    name: plots.Stroke(plots.SERIES[color])
    for name, color in {EULER: 0, HEUN: 3, STOPPED: 1, COARSER: 4, DOUBLE: 2}.items()
}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data.
        evaluations: of a sample, odd numbers (Heun's method needs 2N - 1 for N steps); a
            Discriminator Flow is measured at those below its number of steps, and at that.
        doubles: by data set, the Discriminator Flow of twice the steps and half the strength.
    """

    benches: tuple[Bench, ...]
    evaluations: tuple[int, ...]
    doubles: Mapping[str, Training] = field(default_factory=dict)


def _double(bench: Bench) -> Training:
    model = bench.models[FLOW]
    settings = load_preset(model.preset).settings
    return model.but("double", steps=2 * settings["steps"], eta=settings["eta"] / 2)


def _points(
    evaluations: tuple[int, ...], how: Callable[[int], Mapping[str, Any]], within: bool = False
) -> Points:
    def points(model: ParticleModel) -> list[tuple[float, Mapping[str, Any]]]:
        budgets = evaluations
        if within:
            budgets = (*(k for k in evaluations if k < model.steps), model.steps)
        return [(k, how(k)) for k in budgets]

    return points


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Measure and draw the curves of each data set."""
    parts = {}
    budgets = plan.evaluations
    coarser = _points(budgets, lambda k: {"steps": k}, within=True)
    points = {
        EULER: _points(budgets, lambda k: {"solver": Euler(), "steps": k}),
        HEUN: _points(budgets, lambda k: {"solver": Heun(), "steps": (k + 1) // 2}),
        STOPPED: _points(budgets, lambda k: {"stop": k}, within=True),
        COARSER: coarser,
        DOUBLE: coarser,
    }
    for bench in plan.benches:
        edm, flow = bench.models[EDM], bench.models[FLOW]
        models = {EULER: edm, HEUN: edm, STOPPED: flow, COARSER: flow}
        if bench.key in plan.doubles:
            models[DOUBLE] = plan.doubles[bench.key]
        panel = measured(lab, bench, models, points)
        figure = panel.curves(XLABEL, strokes=STROKES, ticks=budgets, size=(7.6, 3.8))
        lab.draw(figure, f"{bench.data}: quality against evaluations, mean over seeds.", bench.key)
        parts[bench.key] = panel.outcome(findings(panel), [panel.places_table("evaluations")])
    notes = [
        "Comparisons over several numbers of evaluations are of geometric means of distances; a flow "
        "that has fewer steps counts with all of them, and with the best of its curves there. Comparable "
        f"is taken to mean within a factor of {FACTOR:g}, few to mean at most {FEW}; more are judged apart.",
        f"'{COARSER}' takes the very model that is stopped early, which the paper does not show; "
        f"'{DOUBLE}' is the paper's way.",
    ]
    return Outcome.of(parts, notes=notes)


def findings(panel: Panel) -> list[Finding]:
    """Few and many evaluations apart, and all of them by the first rule."""
    found = []
    flows = [name for name in (STOPPED, COARSER, DOUBLE) if name in panel.rows]
    for span, (least, most) in SPANS.items():
        budgets = [budget for budget in panel.at(EULER) if least <= budget <= most]
        levels = {name: _levels(panel, name, budgets) for name in panel.rows}
        best = min(flows, key=lambda name: statistics.fmean(levels[name]))
        three = list(zip(levels[EULER], levels[HEUN], levels[best], strict=True))
        effects = {
            "efficient": [heun - euler for euler, heun, _ in three],
            "comparable": [heun - flow for _, heun, flow in three],
            "outperformed": [min(heun, flow) - euler for euler, heun, flow in three],
        }
        each = (f"{spread([*map(math.exp, levels[n])])} for '{n}'" for n in (EULER, HEUN, best))
        over = f"over {budgets[0]:g} to {budgets[-1]:g} evaluations"
        said = f"{panel.measure.label.capitalize()} {over}: {', '.join(each)}."
        keys = {f"{what}, {span}": values for what, values in effects.items()}
        found += [CLAIMS[k].found(panel.where, said, keys[k]) for k in keys if k in CLAIMS]
    return found


def _levels(panel: Panel, name: str, budgets: list[float]) -> list[float]:
    """Mean log distance over budgets, seed by seed; a flow needs no more than all its steps."""
    most = max(panel.at(name))
    columns = zip(*(panel.figures(name, place=min(b, most)) for b in budgets), strict=True)
    return [statistics.fmean(math.log(max(d, panel.floor)) for d in column) for column in columns]


ITEM = Item(
    "fig7b",
    "GPM Figure 7b, §C.5",
    "Quality against network evaluations",
    "The FID on MNIST of EDM by Euler's and by Heun's method, and of Discriminator Flow on coarser grids "
    "and stopped early, against the number of network evaluations of a sample (NFE). Overall, "
    "Discriminator Flow is comparable to the second-order version of EDM, and both are outperformed by "
    "the first-order version, which is more efficient especially at few evaluations.",
    {
        "smoke": Plan(benches("smoke", "gaussians", "digits"), (3, 15)),
        "cpu": Plan(
            benches("cpu", "gaussians", "digits", "mnist"),
            (3, 5, 7, 11, 15, 23, 35),
            {bench.key: _double(bench) for bench in benches("cpu", "gaussians", "digits")},
        ),
        "paper": Plan(
            benches("paper", "mnist"),
            (3, 5, 7, 11, 15, 23, 35, 63),
            {"mnist": Training("discriminator-flow-mnist-paper-128")},
        ),
    },
    measure,
    CLAIMS,
)
