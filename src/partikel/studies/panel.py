"""Models x places x seeds: what was measured on one data set, and its effects, curves, tables, sentences.

A place is where on an axis a model was measured, such as the number of its steps; a model that is measured
once has the place :data:`END`. Figures of a training seed are means over seeds of evaluation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.metrics.measures import MEASURES, Measure, main_measure
from partikel.models import ParticleModel, free_particles
from partikel.studies.benches import Bench, Training
from partikel.studies.item import Outcome, Table, Value, log_ratios, means, spread
from partikel.studies.judgement import Finding
from partikel.studies.lab import Lab

END = 0.0
"""Where a model without an axis is measured."""

Points: TypeAlias = Callable[[ParticleModel], Sequence[tuple[float, Mapping[str, Any]]]]
"""Of a model: the places where it is measured, and how it is sampled there (see :meth:`Lab.evaluate`)."""


@dataclass(frozen=True)
class Panel:
    """What was measured on one data set.

    Attributes:
        bench: the data, with the seeds.
        measure: that the data go by.
        floor: distances below it are not told from those of the data.
        runs: name -> a run for each training seed.
        rows: name -> place -> figures for each training seed, means over evaluations.
        reference: figures of the data in the samples' place.
        protocols: name -> that of its evaluations.
    """

    bench: Bench
    measure: Measure
    floor: float
    runs: Mapping[str, Sequence[Run]]
    rows: Mapping[str, Mapping[float, Sequence[Mapping[str, float]]]]
    reference: Mapping[str, float]
    protocols: Mapping[str, Mapping[str, Any]]

    @property
    def samples(self) -> int:
        """Of each evaluation: as many as were asked for, or there are test images."""
        return next(iter(self.protocols.values()))["samples"]

    @property
    def where(self) -> str:
        """For findings: "8x8 digits, 5 seeds"."""
        return self.bench.where

    @property
    def data(self) -> float:
        """Distance of the data from themselves."""
        return self.reference[self.measure.key]

    def at(self, name: str) -> list[float]:
        """Places of a model."""
        return list(self.rows[name])

    def figures(self, name: str, key: str | None = None, place: float = END) -> list[float]:
        """A figure of a model, seed by seed; the measure that the data go by unless named."""
        return [row[key or self.measure.key] for row in self.rows[name][place]]

    def ratios(self, first: str, second: str, place: float = END) -> list[float]:
        """log(first/second) of the distances, seed by seed: positive where the second is nearer."""
        a, b = (self.figures(name, place=place) for name in (first, second))
        return log_ratios(a, b, self.floor)

    def said(self, names: Iterable[str] | None = None, place: float = END) -> str:
        """Distances in words: "energy distance .0036 (.0031 to .0041) for EDM, ..."."""
        each = (
            f"{spread(self.figures(name, place=place))} for {name}" for name in names or self.rows
        )
        return f"{self.measure.label} {', '.join(each)}"

    def calls(self, name: str) -> int:
        """Evaluations of a network for a sample of a model, at its end."""
        return self.protocols[name]["nfe"]

    def seconds(self, name: str) -> list[float]:
        """CPU seconds of a model's training, seed by seed."""
        return [run.cpu_seconds for run in self.runs[name]]

    def values(self) -> dict[str, Any]:
        """Everything, as plain JSON: figures of each model, place and seed."""
        return {
            "measure": self.measure.key,
            "floor": self.floor,
            "data vs data": dict(self.reference),
            "models": {
                name: rows[END] if list(rows) == [END] else {f"{k:g}": v for k, v in rows.items()}
                for name, rows in self.rows.items()
            },
        }

    def table(
        self,
        *keys: str,
        others: Mapping[str, Mapping[str, float]] | None = None,
        columns: Mapping[str, Callable[[str], Value]] | None = None,
        title: str = "Distances to the data",
    ) -> Table:
        """A row for each model, with figures at its end, and one for the data.

        Args:
            keys: further figures, beside the measure that the data go by.
            others: figures of what is no model, by name.
            columns: further columns, of a name.
            title: without where.
        """
        aside = {**(others or {}), "data vs data": self.reference}

        def shown(name: str, key: str) -> Value:
            if name in aside:
                return aside[name].get(key)
            return spread(self.figures(name, key))

        heads = {MEASURES[key].label: partial(shown, key=key) for key in (self.measure.key, *keys)}
        names = (*self.rows, *aside)
        return Table.of(f"{title}, {self.where}", names, {"of": str, **heads, **(columns or {})})

    def places_table(self, head: str, write: Callable[[float], str] = "{:g}".format) -> Table:
        """A row for each place of the axis, a column for each model."""
        places = sorted({place for each in self.rows.values() for place in each})

        def value(place: float, name: str) -> Value:
            return spread(self.figures(name, place=place)) if place in self.rows[name] else None

        columns: dict[str, Callable[[float], Value]] = {head: write}
        columns |= {name: partial(value, name=name) for name in self.rows}
        return Table.of(f"{self.measure.label}, {self.where}", places, columns)

    def curves(self, xlabel: str, **options: Any) -> Figure:
        """Distances along the axis: means over seeds, shaded between the least and the largest."""
        lines = {
            name: [(place, self.figures(name, place=place)) for place in each]
            for name, each in self.rows.items()
        }
        label = f"{self.measure.label}, {self.where}"
        level = ("data vs data", self.data)
        return seeds_figure(lines, xlabel, label, log=True, level=level, marked=True, **options)

    def outcome(self, findings: Sequence[Finding], tables: Sequence[Table]) -> Outcome:
        """What an item says of this data set."""
        return Outcome(findings, tables, self.values(), {self.bench.data: self.evaluated})

    @property
    def evaluated(self) -> str:
        """How samples were measured: "359 samples, test split, features of digits, 3 evaluations"."""
        protocol = next(iter(self.protocols.values()))
        features = protocol.get("features")
        times = self.bench.evaluations
        return ", ".join(
            [
                f"{protocol['samples']} samples",
                f"{protocol['split']} split",
                *([] if features is None else [f"features of {features}"]),
                "one evaluation" if times == 1 else f"mean of {times} evaluations",
                f"floor {self.floor:.2g}",
            ]
        )


def measured(
    lab: Lab,
    bench: Bench,
    models: Mapping[str, Training],
    points: Mapping[str, Points] | None = None,
    *,
    samples: int | None = None,
    features: str | None = None,
) -> Panel:
    """Train and measure models on all seeds of a bench.

    Args:
        lab: where.
        bench: the data and seeds.
        models: by name.
        points: by the same names, where a model is measured along an axis; else it is at its end.
        samples: of each evaluation; the bench's unless given.
        features: a feature network for images; the data's own where None.
    """
    n = samples or (bench.samples if points is None else bench.curve_samples)
    runs = {name: [lab.run(each, seed) for seed in bench.seeds] for name, each in models.items()}
    rows: dict[str, dict[float, list[dict[str, float]]]] = {name: {} for name in models}
    references: list[Mapping[str, float]] = []
    protocols: dict[str, Mapping[str, Any]] = {}
    for name, trained in runs.items():
        for run in trained:
            for place, how in _places(run, None if points is None else points[name]):
                results = [
                    lab.evaluate(run, n=n, seed=seed, features=features, **how)
                    for seed in range(bench.evaluations)
                ]
                rows[name].setdefault(place, []).append(means([r["metrics"] for r in results]))
                references += [result["reference"] for result in results]
                protocols[name] = results[0]["protocol"]
    dataset = next(iter(runs.values()))[0].dataset
    reference = means(references)
    measure = main_measure(dataset.shape)
    some = next(iter(protocols.values()))["samples"]
    floor = max(lab.floor(dataset, some, features), reference[measure.key])
    return Panel(bench, measure, floor, runs, rows, reference, protocols)


def _places(run: Run, points: Points | None) -> Sequence[tuple[float, Mapping[str, Any]]]:
    if points is None:
        return [(END, {})]
    return points(free_particles(run.model, "only free particles have steps."))


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
    middle = {n: [(x, statistics.fmean(values)) for x, values in each] for n, each in lines.items()}
    bands = {
        name: [(x, min(values), max(values)) for x, values in each]
        for name, each in lines.items()
        if len(each[0][1]) > 1
    }
    return plots.curves_figure(middle, xlabel, ylabel, bands=bands, **options)


def course(run: Run) -> list[tuple[float, float]]:
    """(percent of the iterations, energy distance) that a run's training logged."""
    return [(100 * line["step"] / run.step, line["energy"]) for line in run.log if "energy" in line]
