"""The league: which way of carrying a field to one call, or to a few, is best for equal means.

All methods of :data:`~partikel.studies.methods.METHODS` on one data set: trained with equal units, those of a
teacher included, measured by what none of them was trained on, and three hypotheses judged that were
written down before.
"""

from __future__ import annotations

from typing import TypeAlias

from partikel.studies.judgement import LOG, QUARTER, Claim

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
