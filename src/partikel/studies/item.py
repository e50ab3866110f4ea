"""What an item is: claims, a plan for each scale, and a measurement.

An item's file says in its docstring what the paper shows. It holds the claims with the effects that
decide on them (:class:`~partikel.studies.judgement.Claim`), one plan for each scale, and a function
``measure(plan, lab)`` that trains through the lab, measures, draws, and returns an :class:`Outcome`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from partikel.studies.benches import Scale
from partikel.studies.judgement import Claim, Finding
from partikel.studies.lab import Lab

P = TypeVar("P")
S = TypeVar("S")
Value: TypeAlias = float | int | str | None


@dataclass(frozen=True)
class Table:
    """Figures for the page.

    Attributes:
        title: what it shows.
        columns: their names.
        rows: values in the order of the columns; numbers are rounded on the page only.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    @classmethod
    def of(
        cls, title: str, subjects: Iterable[S], columns: Mapping[str, Callable[[S], Value]]
    ) -> Table:
        """A row for each subject.

        Args:
            title: what it shows.
            subjects: what rows are of, such as names.
            columns: head -> what stands there of a subject.
        """
        rows = tuple(tuple(value(each) for value in columns.values()) for each in subjects)
        return cls(title, tuple(columns), rows)


@dataclass(frozen=True)
class Outcome:
    """What an item measured.

    Attributes:
        findings: claims with verdicts.
        tables: figures for the page.
        values: everything measured, seed by seed, as plain JSON.
        protocol: how it was measured: samples, features, reference.
        notes: what a reader must know besides, each in a sentence or two.
    """

    findings: Sequence[Finding]
    tables: Sequence[Table] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        parts: Mapping[str, Outcome],
        protocol: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> Outcome:
        """Parts one after the other, the values of each under its key.

        Args:
            parts: by key, such as the data's.
            protocol: of all; those of the parts together unless given.
            notes: on all, after those of the parts.
        """
        merged = {key: each for part in parts.values() for key, each in part.protocol.items()}
        return cls(
            [finding for part in parts.values() for finding in part.findings],
            [table for part in parts.values() for table in part.tables],
            {key: part.values for key, part in parts.items() if part.values},
            merged if protocol is None else protocol,
            [*(note for part in parts.values() for note in part.notes), *notes],
        )


@dataclass(frozen=True)
class Item(Generic[P]):
    """A table, a figure or a theorem of the papers that one command reproduces.

    Attributes:
        name: what the command line calls it.
        source: where it stands in the papers.
        title: what it shows.
        about: what the paper reports there, in a few sentences.
        plans: what is trained and measured at each scale.
        measure: trains, measures and draws.
        claims: what is judged; no finding is of another claim.
    """

    name: str
    source: str
    title: str
    about: str
    plans: Mapping[Scale, P]
    measure: Callable[[P, Lab], Outcome]
    claims: Mapping[str, Claim]


def log_ratios(first: Sequence[float], second: Sequence[float], floor: float) -> list[float]:
    """log(a/b) of distances, seed by seed: positive where the second is nearer.

    Args:
        first: distances.
        second: as many others.
        floor: positive; what two draws of the data differ by. Distances below it say no more.
    """
    pairs = zip(first, second, strict=True)
    return [math.log(max(a, floor) / max(b, floor)) for a, b in pairs]


def means(those: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of figures over evaluations, key by key, at any depth."""
    columns = {key: [each[key] for each in those] for key in those[0]}
    return {
        key: means(values) if isinstance(values[0], Mapping) else statistics.fmean(values)
        for key, values in columns.items()
    }


def spread(values: Sequence[float]) -> str:
    """Mean and range of values over seeds, for a sentence or a table: "1.96 (1.80 to 2.11)"."""
    mean = f"{statistics.fmean(values):.3g}"
    if min(values) == max(values):
        return mean
    return f"{mean} ({min(values):.3g} to {max(values):.3g})"
