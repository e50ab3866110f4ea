"""What figures are called, what is better, and which one goes by: one record a measure.

Whoever shows, compares or judges a figure asks here; what two draws of the data differ by in it is said
by :mod:`partikel.metrics.chance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """A figure of samples beside the data.

    Attributes:
        key: its name among the figures of an evaluation.
        head: a short name, for columns.
        label: in words, for sentences and axes.
        unit: of its values, in words.
        better: "lower", "higher", or "like data": as near as can be to what data themselves have,
            where that is known, else ``fallback``. Points crowded on the modes have a *lower*
            negative log-likelihood and a *larger* share within 3σ than data have.
        of: what it is of.
        fallback: the direction without a reference.
    """

    key: str
    head: str
    label: str
    unit: str
    better: Literal["lower", "higher", "like data"]
    of: Literal["points", "images"]
    fallback: Literal["lower", "higher"] = "lower"


ENERGY = Measure("energy", "energy", "energy distance", "length", "lower", "points")
"""What points go by."""
FRECHET = Measure("frechet", "Fréchet", "Fréchet distance", "squared features", "lower", "images")
"""What images go by."""

MEASURES: dict[str, Measure] = {
    measure.key: measure
    for measure in (
        ENERGY,
        Measure("mmd2", "MMD²", "squared MMD", "kernel", "lower", "points"),
        Measure("sliced_w2", "sliced W₂", "sliced W2", "length", "lower", "points"),
        Measure("w2", "W₂", "W2", "length", "lower", "points"),
        Measure(
            "within_3sigma",
            "within 3σ",
            "share within 3σ",
            "share",
            "like data",
            "points",
            "higher",
        ),
        Measure("modes", "modes", "modes covered", "count", "higher", "points"),
        Measure("mode_tv", "mode TV", "total variation of the modes", "share", "lower", "points"),
        Measure("nll", "NLL", "negative log-likelihood", "nats", "like data", "points"),
        FRECHET,
        Measure("kid", "KID", "kernel distance", "squared features", "lower", "images"),
        Measure("precision", "precision", "precision", "share", "higher", "images"),
        Measure("recall", "recall", "recall", "share", "higher", "images"),
        Measure("density", "density", "density", "share", "higher", "images"),
        Measure("coverage", "coverage", "coverage", "share", "higher", "images"),
    )
}
"""Figures of an evaluation whose direction is known, by key."""


def main_measure(shape: Sequence[int]) -> Measure:
    """The measure that data of a shape go by: (D,) for points, (C, H, W) for images."""
    return ENERGY if len(shape) == 1 else FRECHET
