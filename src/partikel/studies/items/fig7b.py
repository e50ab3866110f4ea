"""GPM Figure 7b: quality against the number of network evaluations of a sample.

EDM by Euler's and Heun's method on grids of several sizes (placed by its own rule), and Discriminator
Flow with fewer evaluations in two ways: on coarser grids than it was trained on, and stopped early. The
paper trains a model for each way, with 2N steps of strength η and with N steps of strength 2η, so that
a step of the first is a quarter of one of the second; the second is tried on coarser grids too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from partikel.app.config import load_preset
from partikel.app.show import plots
from partikel.models import ParticleModel
from partikel.solvers import Euler, Heun
from partikel.studies.benches import EDM, FLOW, Bench, Training, benches
from partikel.studies.curves import (
    LEAST,
    Curves,
    Line,
    Points,
    curves_of,
    measure_curves,
    outcome_of,
)
from partikel.studies.item import Finding, Item, Outcome, spread
from partikel.studies.lab import Lab

SOURCE = "GPM §C.5, Figure 7b"
EULER, HEUN = "EDM, Euler", "EDM, Heun"
STOPPED, COARSER = "Flow, stopped early", "Flow, coarser grids"
DOUBLE = "Flow of 2N steps, coarser"
FEW = 11
"""Most evaluations that count as few."""
FACTOR = 2.0
"""Distances within this factor of each other count as comparable."""
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
    for bench in plan.benches:
        edm, flow = bench.models[EDM], bench.models[FLOW]
        lines = {
            EULER: Line(edm, _points(budgets, lambda k: {"solver": Euler(), "steps": k})),
            HEUN: Line(edm, _points(budgets, lambda k: {"solver": Heun(), "steps": (k + 1) // 2})),
            STOPPED: Line(flow, _points(budgets, lambda k: {"stop": k}, within=True)),
            COARSER: Line(flow, _points(budgets, lambda k: {"steps": k}, within=True)),
        }
        if bench.key in plan.doubles:
            coarser = _points(budgets, lambda k: {"steps": k}, within=True)
            lines[DOUBLE] = Line(plan.doubles[bench.key], coarser)
        found = measure_curves(lab, bench, lines)
        label = "network evaluations of a sample"
        figure = curves_of(found, bench, label, strokes=STROKES, ticks=budgets, size=(7.6, 3.8))
        lab.draw(figure, f"{bench.data}: quality against evaluations, mean over seeds.", bench.key)
        axis = ("evaluations", found.at)
        parts[bench.key] = outcome_of(found, bench, axis, _findings(found, bench), "evaluations")
    notes = [
        "Comparisons over several numbers of evaluations are of geometric means of distances; a flow "
        "that has fewer steps counts with all of them, and with the better of its curves. Comparable is "
        f"taken to mean within a factor of {FACTOR:g}, few to mean at most {FEW}.",
        f"'{COARSER}' takes the very model that is stopped early, which the paper does not show; "
        f"'{DOUBLE}' is the paper's way.",
    ]
    return Outcome.of(parts, notes=notes)


def _findings(found: Curves, bench: Bench) -> list[Finding]:
    budgets = found.at[EULER]
    few = [budget for budget in budgets if budget <= FEW]

    def means(name: str, places: list[float]) -> list[float]:
        """Geometric means over budgets, seed by seed; a flow needs no more than all its steps."""
        places = [min(place, max(found.at[name])) for place in places]
        columns = zip(*(found.column(name, place) for place in places), strict=True)
        return [statistics.geometric_mean([max(d, LEAST) for d in column]) for column in columns]

    flows = [name for name in (STOPPED, COARSER, DOUBLE) if name in found.at]
    best = min(flows, key=lambda name: statistics.fmean(map(math.log, means(name, budgets))))
    euler, heun, flow = (means(name, budgets) for name in (EULER, HEUN, best))
    euler_few, heun_few = means(EULER, few), means(HEUN, few)
    over = f"over {budgets[0]:g} to {budgets[-1]:g} evaluations"

    def judging(claim: str, measured: str, effects: Iterable[float]) -> Finding:
        said = f"{found.unit.capitalize()} {measured}"
        return Finding.of(claim, SOURCE, bench.where, said, list(effects), found.noise)

    return [
        judging(
            "The first-order version of EDM is more efficient than the second-order version at few "
            "evaluations.",
            f"over {few[0]:g} to {few[-1]:g} evaluations: {spread(euler_few)} by Euler, "
            f"{spread(heun_few)} by Heun.",
            (math.log(h / e) for h, e in zip(heun_few, euler_few, strict=True)),
        ),
        judging(
            "Discriminator Flow is comparable to the second-order version of EDM.",
            f"{over}: {spread(flow)} for '{best}', {spread(heun)} for '{HEUN}'.",
            (math.log(FACTOR) - abs(math.log(f / h)) for f, h in zip(flow, heun, strict=True)),
        ),
        judging(
            "Discriminator Flow and the second-order version of EDM are outperformed by the "
            "first-order version.",
            f"{over}: {spread(euler)} for '{EULER}', {spread(flow)} for '{best}', {spread(heun)} for "
            f"'{HEUN}'.",
            (math.log(min(f, h) / e) for e, h, f in zip(euler, heun, flow, strict=True)),
        ),
    ]


ITEM = Item(
    "fig7b",
    "GPM Figure 7b, §C.5",
    "Quality against network evaluations",
    "The FID on MNIST of EDM by Euler's and by Heun's method, and of Discriminator Flow on coarser grids "
    "and stopped early, against the number of network evaluations of a sample (NFE). Overall, "
    "Discriminator Flow is comparable to the second-order version of EDM, and both are outperformed by "
    "the first-order version, which is more efficient especially at few evaluations.",
    {
        "smoke": Plan(benches("smoke", "gaussians", "digits"), (3, 7)),
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
)
