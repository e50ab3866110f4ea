"""Quality of free particles along an option of sampling: shared by Figures 7a and 7b."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from partikel.app.show import plots
from partikel.models import ParticleModel, free_particles
from partikel.studies.benches import Bench, Model
from partikel.studies.item import Table, log_ratio, spread
from partikel.studies.lab import Lab

UNITS = {"frechet": "Fréchet distance", "energy": "energy distance"}
LEAST = {"frechet": 1e-3, "energy": 1e-3}
"""Distances below these are not told from the data's: energy distances of two draws of 10,000 points
of the five Gaussians have a standard deviation of .0005."""


def noise(measure: str, samples: int, evaluations: int = 1) -> float:
    """Log ratios of two distances up to this one are taken for noise.

    It is about two standard deviations of such a ratio when only the seed of the evaluation changes:
    log Fréchet distances of one model have .19 with 359 samples (digits) and .06 with 2,000 (MNIST);
    log energy distances have .5 near .003 with 10,000 points of the Gaussians.

    Args:
        measure: "frechet" or "energy".
        samples: of an evaluation.
        evaluations: with seeds of their own, whose mean the distances are.
    """
    single = 10 / math.sqrt(samples) if measure == "frechet" else 1.0
    return single / math.sqrt(evaluations)


Points = Callable[[ParticleModel], Sequence[tuple[float, Mapping[str, Any]]]]
"""Of a model: the place of each point on the axis, and how it is sampled (see :meth:`Lab.evaluate`)."""


@dataclass(frozen=True)
class Line:
    """A curve to measure.

    Attributes:
        model: which is trained.
        points: how it is sampled at each point.
    """

    model: Model
    points: Points


@dataclass
class Curves:
    """What was measured on one data set.

    Attributes:
        measure: "frechet" or "energy".
        at: name -> places of the points on the axis.
        lines: name -> a distance for each point, for each seed.
        floor: distance of the data from themselves.
        protocol: of the evaluations.
    """

    measure: str = ""
    at: dict[str, list[float]] = field(default_factory=dict)
    lines: dict[str, list[list[float]]] = field(default_factory=dict)
    floor: float = 0.0
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The measure in words."""
        return UNITS[self.measure]

    @property
    def noise(self) -> float:
        """Log ratios of distances up to this one are taken for noise."""
        return noise(self.measure, self.protocol["samples"])

    def column(self, name: str, place: float) -> list[float]:
        """Distances of a line at a place of the axis, seed by seed."""
        k = self.at[name].index(place)
        return [line[k] for line in self.lines[name]]

    def ratios(self, first: str, second: str, place: float) -> list[float]:
        """log(first/second) at a place, seed by seed: positive where the second is nearer."""
        pairs = zip(self.column(first, place), self.column(second, place), strict=True)
        return [log_ratio(a, b, LEAST[self.measure]) for a, b in pairs]


def measure_curves(lab: Lab, bench: Bench, lines: Mapping[str, Line]) -> Curves:
    """Measure lines, by name, on all seeds of a bench."""
    found = Curves()
    for name, line in lines.items():
        found.lines[name] = []
        for seed in bench.seeds:
            run = lab.run(line.model, seed)
            points = line.points(free_particles(run.model, "only free particles have steps."))
            rows = [lab.evaluate(run, n=bench.curve_samples, **how) for _, how in points]
            found.measure = "frechet" if "frechet" in rows[0]["metrics"] else "energy"
            found.at[name] = [place for place, _ in points]
            found.lines[name].append([row["metrics"][found.measure] for row in rows])
            found.floor = rows[-1]["reference"][found.measure]
            found.protocol = rows[-1]["protocol"]
    return found


def curves_of(found: Curves, bench: Bench, xlabel: str, **options: Any) -> Figure:
    """The figure: means over seeds, shaded between the best and the worst."""
    means = {
        name: [
            (x, statistics.fmean(column))
            for x, column in zip(found.at[name], zip(*runs, strict=True), strict=True)
        ]
        for name, runs in found.lines.items()
    }
    bands = {
        name: [
            (x, min(column), max(column))
            for x, column in zip(found.at[name], zip(*runs, strict=True), strict=True)
        ]
        for name, runs in found.lines.items()
        if len(runs) > 1
    }
    return plots.curves_figure(
        means,
        xlabel,
        f"{found.unit}, {bench.where}",
        log=True,
        level=("data vs data", found.floor),
        bands=bands,
        marked=True,
        **options,
    )


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
    return Table(
        f"{found.unit}, {bench.where}",
        (head, *found.lines),
        tuple(
            (
                write(x),
                *(spread(found.column(n, x)) if x in found.at[n] else None for n in found.lines),
            )
            for x in places
        ),
    )
