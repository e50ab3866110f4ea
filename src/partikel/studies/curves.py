"""Quality along an option, of training or (Figures 7a and 7b) of the sampling of free particles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.models import ParticleModel, free_particles
from partikel.studies.benches import Bench, Training
from partikel.studies.distances import ENERGY, FRECHET, Distance, Evaluated
from partikel.studies.item import Finding, Outcome, Table, log_ratios, spread
from partikel.studies.lab import Lab

LEAST = 1e-3
"""Distances below these are not told from the data's: energy distances of two draws of 10,000 points
of the five Gaussians have a standard deviation of .0005."""


def noise(distance: Distance, samples: int, evaluations: int = 1) -> float:
    """Log ratios of two distances up to this one are taken for noise.

    It is about two standard deviations of such a ratio when only the seed of the evaluation changes:
    log Fréchet distances of one model have .19 with 359 samples (digits) and .06 with 2,000 (MNIST);
    log energy distances have .5 near .003 with 10,000 points of the Gaussians.

    Args:
        distance: which.
        samples: of an evaluation.
        evaluations: with seeds of their own, whose mean the distances are.
    """
    single = 10 / math.sqrt(samples) if distance is FRECHET else 1.0
    return single / math.sqrt(evaluations)


Points = Callable[[ParticleModel], Sequence[tuple[float, Mapping[str, Any]]]]
"""Of a model: the place of each point on the axis, and how it is sampled (see :meth:`Lab.evaluate`)."""


@dataclass(frozen=True)
class Line:
    """A curve to measure.

    Attributes:
        training: of the model.
        points: how it is sampled at each point.
    """

    training: Training
    points: Points


@dataclass
class Curves:
    """What was measured on one data set.

    Attributes:
        distance: that lines are of.
        at: name -> places of the points on the axis.
        lines: name -> a distance for each point, for each seed.
        floor: distance of the data from themselves.
        protocol: of the evaluations.
    """

    distance: Distance = ENERGY
    at: dict[str, list[float]] = field(default_factory=dict)
    lines: dict[str, list[list[float]]] = field(default_factory=dict)
    floor: float = 0.0
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The distance in words."""
        return self.distance.name

    @property
    def noise(self) -> float:
        """Log ratios of distances up to this one are taken for noise."""
        return noise(self.distance, self.protocol["samples"])

    def column(self, name: str, place: float) -> list[float]:
        """Distances of a line at a place of the axis, seed by seed."""
        k = self.at[name].index(place)
        return [line[k] for line in self.lines[name]]

    def ratios(self, first: str, second: str, place: float) -> list[float]:
        """log(first/second) at a place, seed by seed: positive where the second is nearer."""
        return log_ratios(self.column(first, place), self.column(second, place), LEAST)


def measure_curves(lab: Lab, bench: Bench, lines: Mapping[str, Line]) -> Curves:
    """Measure lines, by name, on all seeds of a bench."""
    found = Curves()
    for name, line in lines.items():
        found.lines[name] = []
        for seed in bench.seeds:
            run = lab.run(line.training, seed)
            points = line.points(free_particles(run.model, "only free particles have steps."))
            rows = [lab.evaluate(run, n=bench.curve_samples, **how) for _, how in points]
            evaluated = Evaluated([run], rows)
            found.at[name] = [place for place, _ in points]
            found.lines[name].append(evaluated.far)
            found.distance, found.floor = evaluated.distance, evaluated.floor
            found.protocol = rows[-1]["protocol"]
    return found


def curves_of(found: Curves, bench: Bench, xlabel: str, **options: Any) -> Figure:
    """The figure: means over seeds, shaded between the best and the worst."""
    lines = {name: along(found.at[name], runs) for name, runs in found.lines.items()}
    level = ("data vs data", found.floor)
    label = f"{found.unit}, {bench.where}"
    return seeds_figure(lines, xlabel, label, log=True, level=level, marked=True, **options)


def along(
    places: Iterable[float], runs: Iterable[Sequence[float]]
) -> list[tuple[float, Sequence[float]]]:
    """Each place of an axis with what all runs have there, from a line of values for each run."""
    return list(zip(places, zip(*runs, strict=True), strict=True))


def seeds_figure(
    lines: Mapping[str, Sequence[tuple[float, Sequence[float]]]],
    xlabel: str,
    ylabel: str,
    **options: Any,
) -> Figure:
    """Means over seeds, shaded between the least and the largest value.

    Args:
        lines: name -> places of the axis, each with a value for each seed.
        xlabel: under the horizontal axis.
        ylabel: over the vertical axis.
        options: of :func:`partikel.app.show.plots.curves_figure`.
    """
    means = {n: [(x, statistics.fmean(values)) for x, values in each] for n, each in lines.items()}
    bands = {
        name: [(x, min(values), max(values)) for x, values in each]
        for name, each in lines.items()
        if len(each[0][1]) > 1
    }
    return plots.curves_figure(means, xlabel, ylabel, bands=bands, **options)


def outcome_of(
    found: Curves,
    bench: Bench,
    places: tuple[str, Any],
    findings: Sequence[Finding],
    head: str,
    write: Callable[[float], str] = "{:g}".format,
) -> Outcome:
    """What was measured on a data set, with its table.

    Args:
        found: the curves.
        bench: the data.
        places: what the axis is called among the values, and the places on it.
        findings: on them.
        head: of the table's first column.
        write: a place of the axis in the table.
    """
    name, those = places
    values = {name: those, "data vs data": found.floor, **found.lines}
    protocol = {bench.data: protocol_of(found.protocol)}
    return Outcome(findings, [table_of(found, bench, head, write)], values, protocol)


def course(run: Run) -> list[tuple[float, float]]:
    """(percent of the iterations, energy distance) that a run's training logged."""
    return [(100 * line["step"] / run.step, line["energy"]) for line in run.log if "energy" in line]


def protocol_of(protocol: Mapping[str, Any]) -> str:
    """How samples were measured, for a page: "359 samples, test split, features of digits, seed 0"."""
    features = protocol.get("features")
    return ", ".join(
        [
            f"{protocol['samples']} samples",
            f"{protocol['split']} split",
            *([] if features is None else [f"features of {features}"]),
            f"seed {protocol['seed']}",
        ]
    )


def table_of(
    found: Curves, bench: Bench, head: str, write: Callable[[float], str] = "{:g}".format
) -> Table:
    """A row for each place of the axis, a column for each line."""
    places = sorted({x for each in found.at.values() for x in each})

    def value(x: float, name: str) -> str | None:
        return spread(found.column(name, x)) if x in found.at[name] else None

    columns = {name: partial(value, name=name) for name in found.lines}
    return Table.of(f"{found.unit}, {bench.where}", places, {head: write, **columns})
