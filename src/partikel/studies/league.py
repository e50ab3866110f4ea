"""The league: which way of carrying a field to one call, or to a few, is best for equal means.

All methods of :data:`~partikel.studies.methods.METHODS` on one data set: trained with equal units, those of a
teacher included, measured by what none of them was trained on, and three hypotheses judged that were
written down before.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console

from partikel.app.show import plots
from partikel.data import DataSettings, open_dataset
from partikel.errors import ConfigError, nearest
from partikel.errors.checks import Count, Positive, checked
from partikel.files import plain, read_json, reading, write_json, write_whole, writing_to
from partikel.metrics.measures import MEASURES
from partikel.streams import seeded
from partikel.studies.benches import on
from partikel.studies.item import Table, Value, log_ratios, spread
from partikel.studies.judgement import LOG, QUARTER, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.methods import MANY, METHODS, SAMPLES, SHOWN, League, Method
from partikel.studies.page import league as page
from partikel.studies.panel import seeds_figure
from partikel.studies.provenance import measuring, rule
from partikel.studies.reproduce import MEND, machine
from partikel.training.engine import one_thread

Place: TypeAlias = tuple[str, int]
"""A method's name, and how many evaluations a sample takes."""

HYPOTHESES: dict[str, tuple[Claim, Place, Place]] = {
    key: (
        Claim(
            text, "before the run", f"log of the distance of {worse} over {better}", QUARTER, LOG
        ),
        a,
        b,
    )
    for key, text, worse, better, a, b in (
        (
            "adversary",
            "A generator needs no adversary: one that follows the Sinkhorn flow of samples is nearer to the "
            "data than a GAN.",
            *("a GAN", "that of W-Flow", ("GAN", 1), ("W-Flow", 1)),
        ),
        (
            "teacher",
            "A flow map needs no teacher: MeanFlow is nearer than an EDM that is distilled, whose teacher "
            "takes half of the units.",
            *("a distilled EDM", "that of MeanFlow", ("distilled EDM", 1), ("MeanFlow", 1)),
        ),
        (
            "calls",
            "Four calls buy more than a second training: an EDM at four placed levels is nearer than its "
            "distillation at one call.",
            *("a distilled EDM", "that of EDM at four calls", ("distilled EDM", 1), ("EDM", 4)),
        ),
    )
}
"""What is judged: a claim, the place that it says is farther from the data, and the one that is nearer."""

APART = 10.0
"""Ratio of the distances of two seeds from which on a mean of them says little."""

LIMITS = (
    "Networks are small, and trainings last a minute or less: what a method becomes with a thousand times as "
    "many units is not seen here.",
    "In few dimensions a kernel, a sorting or a transport of a batch sees all there is to see. Of large "
    "images it does not; there such fields compare features (`InFeatures`). Here all of them compare pixels.",
    "A unit is a time on one thread of a CPU, where small operations cost more than their numbers. On other "
    "machines methods of many small steps change places with those of few large ones.",
    "The trials of a rate are short, which favours large ones. A flow that takes "
    "steps is tried by eight of its own grid, though it is measured by placed ones; a Discriminator Flow is "
    "also trained with eight, where its presets have twenty. What else a paper tunes "
    "(penalties, bandwidths, updates between two of the generator) has one value for all data, found "
    "elsewhere, in proportion to the data's size.",
    "The hypotheses were written down before the first league was run, after a look at single trainings of "
    "300 units on five Gaussians, in which all three of them held.",
    "Of images with more than 8 pixels a side six methods are run, which were chosen before any was: GAN, "
    "Score GAN, W-Flow, MeanFlow, distilled EDM and EDM.",
)
"""What the page leaves open."""


@checked
def run_league(
    data: DataSettings,
    *,
    units: Positive,
    seeds: Count,
    out: Path,
    runs: Path,
    names: Sequence[str] | None = None,
    features: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train and measure what was not measured yet, judge, and write the page.

    Args:
        data: which; a size given to images is part of their name on the page.
        units: of each training, with those of its teacher.
        seeds: how many, from 0 on.
        out: folder of ``league-DATA.json`` with its pictures, and of ``league.md``, a page of all of them.
        runs: folder of what was measured; an interrupted call goes on from there.
        names: of methods; all of them unless given.
        features: the network that images are measured by; None chooses one.
        console: where progress is shown.

    Returns:
        What was written as JSON.

    Raises:
        ConfigError: for an unknown method or data set, or too few units for an iteration.
        DataError: where the data cannot be had.
        CheckpointError: where a folder cannot be written, or a result in it cannot be read.
    """
    if names is not None and not names:
        raise ConfigError("a league needs a method: name one or more, or leave --methods out.")
    for name in names or ():
        if name not in METHODS:
            raise ConfigError(f"there is no method '{name}': {nearest(name, list(METHODS))}")
    chosen = [method for method in METHODS.values() if names is None or method.name in names]
    code = measuring(League.__module__)
    dataset = open_dataset(data)
    name = data.title if data.size is None else f"{data.title}-{data.size}"
    plan = [dataset.fingerprint(), dataset.fingerprint("validation"), units, features]
    lab = Lab(f"league-{name}", "cpu", plan, out=out, runs=runs, code=code, console=console)
    with one_thread(), writing_to(out, MEND):
        league = League(dataset, units, lab, features)
        season = Season(league, chosen, tuple(range(seeds)), name)
        result = season.result()
        given = {
            **{"data": data.path or data.name, "size": data.size},
            **{"budget": f"{units:g}", "seeds": seeds, "features": features},
            "methods": names and f"[{','.join(method.name for method in chosen)}]",
        }
        line = [w for key, v in given.items() if v is not None for w in (f"--{key}", str(v))]
        command = shlex.join(["partikel", "league", *line])
        result |= {"command": command, "pictures": lab.pictures}
        result |= {"machine": machine(torch.get_num_threads())}
        result |= {"made of": {"rule": rule(), "measuring": code}}
        written = write_json(out / f"{lab.item}.json", plain(result))
        write_whole(
            out / "league.md", page([_read(path) for path in sorted(out.glob("league-*.json"))])
        )
    return written


_SHOWN = {"title", "ranks", "findings", "tables", "pictures", "values", "command", "machine"}
"""What the page takes of a result."""


def _read(path: Path) -> dict[str, Any]:
    with reading(path, "is no result of 'partikel league': remove it, or choose another --out."):
        found = read_json(path)
        if not found.keys() >= _SHOWN:
            raise ValueError
        return found


class Season:
    """What methods came to on one data set.

    Attributes:
        name: of the data.
        rows: place -> figures for each seed; of a seed that failed none.
        given: the same of methods whose teacher is given.
        records: method's name -> what was kept of each seed.
    """

    def __init__(
        self, league: League, chosen: Sequence[Method], seeds: Sequence[int], name: str
    ) -> None:
        self.league, self.chosen, self.seeds, self.name = league, chosen, seeds, name
        self.rows: dict[Place, list[Mapping[str, float]]] = {}
        self.given: dict[str, list[Mapping[str, float]]] = {}
        self.records: dict[str, list[Mapping[str, Any]]] = {}
        league.check_units(chosen)
        for method in chosen:
            league.rate(method)
        for seed in seeds:
            for method in chosen:
                record = league.record(method, seed)
                self.records.setdefault(method.name, []).append(record)
                for calls in method.calls:
                    figures = record["figures"].get(str(calls), {})
                    self.rows.setdefault((method.name, calls), []).append(figures)
                if method.teacher:
                    figures = league.record(method, seed, given=True)["figures"]
                    self.given.setdefault(method.name, []).append(figures.get("1", {}))
            league.forget()

    @property
    def where(self) -> str:
        """For findings."""
        return on(self.name, self.seeds)

    def figures(self, rows: Sequence[Mapping[str, float]], key: str | None = None) -> list[float]:
        """One value a seed, of the measure that decides unless named; none where a seed has none."""
        key = key or self.league.measure.key
        found = [row[key] for row in rows if key in row]
        return found if len(found) == len(rows) else []

    def result(self) -> dict[str, Any]:
        """Everything but where and when, drawn and judged."""
        league, measure = self.league, self.league.measure
        floor, watched = league.floor(self.samples), self._watched_floor()
        self._draw(watched)
        return {
            "data": self.name,
            "title": f"{self.where.capitalize()}, {league.units:g} units",
            "concluded": self.concluded(floor) + self.risen(watched),
            "ranks": [self.ranks(floor, few) for few in (False, True)],
            "findings": self.findings(floor),
            "tables": [self.table(), *([self.given_table()] if self.given else [])],
            "limits": LIMITS,
            "protocol": f"{measure.label.capitalize()} of {self.samples} samples to as many test points"
            f"{league.seen_by}: mean over seeds, and the range.",
            "cpu_seconds": sum(
                r.get("cpu_seconds", 0.0) for those in self.records.values() for r in those
            ),
            "values": {
                "floor": floor,
                "figures": {f"{name}, {calls}": rows for (name, calls), rows in self.rows.items()},
                "given": self.given,
                "rates": {method.name: league.rate(method) for method in self.chosen},
                "units of an iteration": {m.name: league.cost(m) for m in self.chosen},
                "units before the first": {m.name: league.before(m) for m in self.chosen},
                "trainings": self.records,
            },
        }

    @property
    def samples(self) -> int:
        """Of a final figure."""
        return self.league.dataset.at_most(SAMPLES[self.league.kind], "test")

    def ranked(self, few: bool) -> list[Place]:
        """Places of one call, or of more, from the nearest on."""
        those = {
            place: statistics.fmean(found)
            for place, rows in self.rows.items()
            if (place[1] > 1) == few and (found := self.figures(rows))
        }
        return sorted(those, key=lambda place: those[place])

    def concluded(self, floor: float) -> list[str]:
        """The order, in words.

        Args:
            floor: what two draws of the data differ by.
        """
        said = []
        for few, what in ((False, "At one call"), (True, "At two, four or eight calls")):
            first = [
                f"{_named(place)} {spread(self.figures(self.rows[place]))}"
                for place in self.ranked(few)
            ]
            if first:
                last = f"; farthest: {first[-1]}" if len(first) > 4 else ""
                said.append(
                    f"{what} the nearest are, by {self.league.measure.label}: {', '.join(first[:4])}{last}."
                )
        tied = [
            _named(place)
            for place, rows in self.rows.items()
            if (found := self.figures(rows)) and statistics.fmean(found) < floor
        ]
        said.append(
            f"Two draws of the data differ by less than {floor:.2g} in 19 cases of 20; below it are "
            f"{', '.join(tied)}, whose order says nothing."
            if tied
            else f"Two draws of the data differ by less than {floor:.2g} in 19 cases of 20; none is below it."
        )
        apart = [
            _named(place)
            for place, rows in self.rows.items()
            if (found := self.figures(rows)) and max(found) > APART * max(min(found), floor)
        ]
        if apart:
            said.append(
                f"Seeds of {', '.join(apart)} are more than a factor of {APART:g} apart: a training "
                "failed, or a few of its samples went far, which the short trials of its rate did not show."
            )
        lost = [name for name, those in self.records.items() if any(r["failed"] for r in those)]
        if lost:
            said.append(f"A training left the finite numbers: {', '.join(lost)}.")
        return said

    def ranks(self, floor: float, few: bool) -> dict[str, int]:
        """Of places of one call, or of more: 1 for the nearest to the data, and as many below the floor.

        Args:
            floor: what two draws of the data differ by.
            few: whether those of more calls.
        """
        far = {place: max(self._mean(place), floor) for place in self.ranked(few)}
        return {
            _named(place): 1 + sum(other < own for other in far.values())
            for place, own in far.items()
        }

    def risen(self, floor: float) -> list[str]:
        """Whose trainings had been nearer to the data than at their end, by a quarter or more, in words.

        Args:
            floor: what two draws of the data differ by, of as many samples as a training is watched by.
        """
        named = []
        for name, records in self.records.items():
            if curves := [[far for _, far in r["curve"]] for r in records if r.get("curve")]:
                ends, best = ([pick(c) for c in curves] for pick in (lambda c: c[-1], min))
                if statistics.fmean(log_ratios(ends, best, floor)) > QUARTER:
                    named.append(name)
        if not named:
            return []
        return [
            f"The trainings of {', '.join(named)} had been nearer to validation data than at their end, by a "
            "quarter or more in the mean over seeds: their rates were found by shorter ones."
        ]

    def findings(self, floor: float) -> list[Finding]:
        """The hypotheses whose methods are there.

        Args:
            floor: what two draws of the data differ by.
        """
        found = []
        for claim, *places in HYPOTHESES.values():
            if not all(place in self.rows for place in places):
                continue
            far, near = (self.figures(self.rows[place]) for place in places)
            effects = log_ratios(far, near, floor) if far and near else []
            said = ", ".join(
                f"{spread(v) if v else '-'} for {_named(p)}"
                for p, v in zip(places, (far, near), strict=True)
            )
            found.append(claim.found(self.where, f"{self.league.measure.label} {said}", effects))
        return found

    def table(self) -> Table:
        """A line for each place, from the nearest on."""
        places = sorted(self.ranked(False) + self.ranked(True), key=self._mean)
        places += [place for place in self.rows if place not in places]
        keys = [
            key
            for key in ("sliced_w2", "modes")
            if any(key in r for rows in self.rows.values() for r in rows)
        ]

        def shown(place: Place, key: str) -> Value:
            found = self.figures(self.rows[place], key)
            if METHODS[place[0]].descends == key:
                return "descended"
            return spread(found) if found else None

        def of_training(place: Place, key: str) -> Value:
            values = [r[key] for r in self.records[place[0]] if key in r]
            return round(statistics.fmean(values)) if values else None

        heads = {MEASURES[key].label: key for key in (self.league.measure.key, *keys)}
        columns: dict[str, Any] = {
            "method": lambda place: place[0],
            "from": lambda place: METHODS[place[0]].source,
            "calls": lambda place: place[1],
            **{head: lambda place, key=key: shown(place, key) for head, key in heads.items()},
            "iterations": lambda place: of_training(place, "iterations"),
            "rate": lambda place: f"x {self.league.rate(METHODS[place[0]]):.2g}",
        }
        return Table.of("All methods, the units of a teacher included", places, columns)

    def given_table(self) -> Table:
        """Methods with a teacher, with half of its units and with the teacher given."""

        def shown(rows: Sequence[Mapping[str, float]]) -> Value:
            found = self.figures(rows)
            return spread(found) if found else None

        columns: dict[str, Any] = {
            "method": str,
            "teacher": lambda name: METHODS[name].teacher,
            "teacher included": lambda name: shown(self.rows[name, 1]),
            "teacher given": lambda name: shown(self.given[name]),
        }
        title = f"{self.league.measure.label.capitalize()} where the teacher had all units, and was given"
        return Table.of(title, self.given, columns)

    def _mean(self, place: Place) -> float:
        return statistics.fmean(self.figures(self.rows[place]))

    def _watched_floor(self) -> float:
        of = self.league
        return of.floor(of.dataset.at_most(SAMPLES[of.kind] // 5, "validation"))

    def _draw(self, floor: float) -> None:
        league, name, level = self.league, self.name, ("two draws", floor)
        families = dict.fromkeys(method.family for method in METHODS.values())
        for number, family in enumerate(families):
            lines = {
                m.name: line
                for m in self.chosen
                if m.family == family and (line := self._curve(self.records[m.name]))
            }
            if lines:
                label = f"{league.measure.label}, {name}: {family}"
                many = any(METHODS[each].calls != (1,) for each in lines)
                how = f", by {MANY} steps of their own grid, which are not placed" if many else ""
                options = {"log": True, "level": level, "marked": True}
                figure = seeds_figure(
                    lines, "units of training, a teacher's first", label, **options
                )
                league.lab.draw(
                    figure,
                    f"{family.capitalize()}: quality against units{how}.",
                    f"curves-{number + 1}",
                )
        panels = {
            _named((method.name, calls)): league.shown(method, self.seeds[0], calls)
            for method in self.chosen
            for calls in method.calls
            if not self.records[method.name][0]["failed"]
        }
        if panels and (league.kind == 3 or league.dataset.shape == (2,)):
            generator = seeded(0, "league", "picture")
            data = league.dataset.draw(SHOWN[league.kind], generator=generator).x
            figure = plots.comparison_figure(panels, data, inches=1.9, columns=6)
            caption = f"Samples of each method at so many calls, seed {self.seeds[0]}, not chosen."
            league.lab.draw(figure, caption, "sheets")

    def _curve(self, records: Sequence[Mapping[str, Any]]) -> list[tuple[float, Sequence[float]]]:
        """(units, distances of the seeds)."""
        lines = [record["curve"] for record in records if record.get("curve")]
        before = records[0].get("units", [0, 0])[1]
        return [
            (before + places[0][0], [distance for _, distance in places])
            for places in zip(*lines, strict=True)
        ]


def _named(place: Place) -> str:
    name, calls = place
    return name if METHODS[name].calls == (1,) else f"{name}, {calls} calls"
