"""Sheets of uncurated samples, and what can be counted on them: shared by Figures 2 and 3 and Table 3.

How many samples a classifier is *sure* of is shown, but decides nothing: it is sure of much pure noise.
A sample is *near the data* if it is nearer to a training image, in the classifier's features, than that
image's fifth neighbour is (the precision of Kynkäänniemi et al. 2019). A sheet counts as reasonable
where every class appears on it and at least half as many samples are near as of test images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partikel.app.gallery import on_device
from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.data import Dataset, FiniteDataset
from partikel.metrics import (
    Classifier,
    class_statistics,
    default_classifier,
    extract_features,
    prdc,
)
from partikel.metrics.evaluation import NEIGHBOUR
from partikel.streams import seeded
from partikel.studies.benches import EDM, FLOW, FOUR, SCORE_GAN, Bench
from partikel.studies.item import Outcome, Table, spread
from partikel.studies.judgement import Claim, Finding
from partikel.studies.lab import Lab

SURE = 0.9
"""A classifier is sure of an image to whose class it gives this probability or more."""
HALF = 0.5
"""Of the share of test images that are near the training data: a reasonable sheet has more."""
REFERENCE = 2000
"""Training images, at most, that samples are compared with."""
CLAIM = "Both introduced models, Discriminator Flow and Score GAN, produce reasonable results."
TEST, NOISE = "test images", "Gaussian noise"
NEW = (FLOW, SCORE_GAN)
"""The models that GPM introduces."""


@dataclass(frozen=True)
class Plan:
    """What is drawn.

    Attributes:
        benches: models and data.
        samples: of each model and seed.
    """

    benches: tuple[Bench, ...]
    samples: int


@dataclass(frozen=True)
class Reading:
    """What a classifier says of a set of images.

    Attributes:
        images: how many.
        sure: share of which it is sure.
        shares: share of each class.
        effective: e^entropy of the shares: as many classes in equal shares have it.
        held: classes with at least a tenth of their fair share.
        seen: classes with at least one image.
    """

    images: int
    sure: float
    shares: tuple[float, ...]
    effective: float
    held: int
    seen: int

    @property
    def classes(self) -> int:
        """Number of classes there are."""
        return len(self.shares)


@torch.no_grad()
def read(classifier: Classifier, images: Tensor, weights: Tensor | None = None) -> Reading:
    """Let a classifier read images.

    Args:
        classifier: of these data.
        images: (n, C, H, W) in [-1, 1], on its device.
        weights: (K,) the classes' shares among the data.
    """
    logits = torch.cat([classifier.logits(some) for some in images.split(500)]).cpu()
    found = class_statistics(logits.argmax(1), logits.shape[1], weights)
    return Reading(
        len(images),
        float((logits.softmax(1).amax(1) >= SURE).double().mean()),
        found.shares,
        found.effective,
        found.held,
        sum(share > 0 for share in found.shares),
    )


def class_weights(dataset: Dataset) -> Tensor | None:
    """(K,) shares of the classes among training images, where there are labels."""
    labels = dataset.stored("train")[1] if isinstance(dataset, FiniteDataset) else None
    return None if labels is None else torch.bincount(labels.long().cpu()).double()


def outcome(
    plan: Plan,
    lab: Lab,
    judged: Mapping[str, Claim],
    caption: str,
    *,
    beside: bool = False,
    columns: int = 5,
    inches: float = 2.6,
) -> Outcome:
    """Draw each data set's sheets and read them.

    Args:
        plan: what is drawn.
        lab: where.
        judged: the :func:`claims`.
        caption: of the picture.
        beside: whether test images have a panel too.
        columns: panels side by side.
        inches: width of a panel.
    """
    n = plan.samples
    parts = {}
    for bench in plan.benches:
        found = sheet(lab, bench, n)
        figure = plots.comparison_figure(
            found.pictures,
            found.real if beside else None,
            inches=inches,
            columns=columns,
            most=n,
        )
        lab.draw(figure, f"{bench.data}: {caption}", bench.key)
        if found.readings:
            findings = sheet_findings(bench, found, judged)
            parts[bench.key] = Outcome(findings, [sheet_table(bench, found)], sheet_values(found))
        else:
            note = f"No classifier of {bench.data} ships: its sheet is for the eye only."
            parts[bench.key] = Outcome([], notes=[note])
    notes = [
        "Near the data: nearer to some training image, in the classifier's features, than that image's "
        f"fifth neighbour. Sure: the classifier gives the likeliest class {SURE:g} or more; as the row of "
        "noise shows, it may be sure of what nobody can read, so that this decides nothing.",
        "Reasonable is taken to mean: every class appears on the sheet, and at least half as many "
        "samples are near the data as test images are.",
        f"What {n} samples cannot decide: what one sample in {n} shows is missing from a third of all "
        f"such sheets, shares are known to ±{n**-0.5:.2f}, and neither copies of training images nor "
        "sameness within a class are counted. Distances to the data are in [table3](table3.md).",
    ]
    return Outcome.of(parts, {"samples": n, "sampling seed": 0}, notes)


def real_images(
    dataset: Dataset, n: int, generator: torch.Generator, split: str = "test"
) -> Tensor:
    """Images of a split: n of them, or all if there are fewer."""
    size = dataset.size(split)
    return dataset.draw(n if size is None else min(n, size), split, generator=generator).x


def classes_of(lab: Lab, run: Run, n: int) -> Reading | None:
    """What the classifier says of n samples of a run, kept with the run; None without one."""
    dataset = run.dataset
    if default_classifier(dataset.name, dataset.shape) is None:
        return None

    def work() -> dict[str, Any]:
        with on_device(run) as device:
            classifier = default_classifier(dataset.name, dataset.shape, device)
            assert classifier is not None
            generator = seeded(0, "classes", device=device)
            samples = run.sample(n, generator=generator)
            return vars(read(classifier, samples, class_weights(dataset)))

    values = lab.of_run(run, {"classes": n}, work)
    return Reading(**{**values, "shares": tuple(values["shares"])})


@dataclass(frozen=True)
class Sheet:
    """The sheets of one data set.

    Attributes:
        pictures: name -> (n, C, H, W) samples of the first seed.
        real: (n, C, H, W) test images.
        readings: name -> a reading for each seed, also of test images and of noise; empty without a
            classifier.
        near: name -> the share that is near the data, likewise.
    """

    pictures: Mapping[str, Tensor]
    real: Tensor
    readings: Mapping[str, list[Reading]]
    near: Mapping[str, list[float]]


def sheet(lab: Lab, bench: Bench, n: int) -> Sheet:
    """Draw n samples of each model and seed from the same random numbers, and read them."""
    data = lab.run(bench.models[EDM], bench.seeds[0]).dataset
    real = real_images(data, n, lab.generator(0, bench.key, "real"))
    noise = torch.randn(n, *data.shape, generator=lab.generator(0, bench.key, "noise"))
    samples = {
        name: [
            lab.sample(lab.run(bench.models[name], seed), n, 0, bench.key, "sheet")
            for seed in bench.seeds
        ]
        for name in FOUR
    }
    pictures = {name: those[0] for name, those in samples.items()}
    classifier = default_classifier(data.name, data.shape)
    if classifier is None:
        return Sheet(pictures, real, {}, {})
    training = real_images(data, REFERENCE, lab.generator(0, bench.key, "reference"), "train")
    known = extract_features(classifier, training)

    def nearness(images: Tensor) -> float:
        return prdc(known, extract_features(classifier, images), NEIGHBOUR).precision

    every = {TEST: [real], **samples, NOISE: [noise.clamp(-1, 1)]}
    return Sheet(
        pictures,
        real,
        {name: [read(classifier, each) for each in those] for name, those in every.items()},
        {name: [nearness(each) for each in those] for name, those in every.items()},
    )


def sheet_table(bench: Bench, found: Sheet) -> Table:
    """What is counted on each model's sheets, on test images and on noise."""

    def counted(count: Callable[[Reading], float]) -> Callable[[str], str]:
        return lambda name: spread([count(each) for each in found.readings[name]])

    return Table.of(
        f"{found.readings[TEST][0].images} samples, {bench.where}",
        found.readings,
        {
            "of": str,
            "near the data": lambda name: spread(found.near[name]),
            "sure of": counted(lambda each: each.sure),
            "classes seen": lambda name: min(each.seen for each in found.readings[name]),
            "e^entropy of classes": counted(lambda each: each.effective),
            "rarest class": counted(lambda each: min(each.shares)),
            "commonest": counted(lambda each: max(each.shares)),
        },
    )


def claims(source: str) -> dict[str, Claim]:
    """What is judged on sheets: reasonable, and the rule that this replaced.

    Args:
        source: of the claim.
    """

    def claim(what: str, replaced: str = "") -> Claim:
        effect = (
            f"of the worse of the two, the share of samples {what} less half of that of test images; where a "
            "class is missing, minus the share of classes that are"
        )
        return Claim(CLAIM, source, effect, 0.0, replaced=replaced)

    why = "a classifier is sure of much pure noise, as the row of noise shows"
    return {"near": claim("near the data"), "sure": claim("that a classifier is sure of", why)}


def sheet_findings(bench: Bench, found: Sheet, judged: Mapping[str, Claim]) -> list[Finding]:
    """Whether the two introduced models' sheets are reasonable, by :func:`claims`."""
    sure = {name: [each.sure for each in those] for name, those in found.readings.items()}
    real = found.readings[TEST][0]

    def effect(shares: Mapping[str, Sequence[float]], name: str, k: int) -> float:
        reading = found.readings[name][k]
        if reading.seen < reading.classes:
            return reading.seen / reading.classes - 1
        return shares[name][k] - HALF * shares[TEST][0]

    def finding(key: str, what: str, shares: Mapping[str, Sequence[float]]) -> Finding:
        said = "; ".join(
            f"{name}: {spread(shares[name])}, "
            f"{min(each.seen for each in found.readings[name])} of {real.classes} classes"
            for name in FOUR
        )
        measured = (
            f"Share of {real.images} samples {what}, and classes seen: {said} (test images: "
            f"{shares[TEST][0]:.3g}; noise: {shares[NOISE][0]:.3g})."
        )
        seeds = range(len(bench.seeds))
        effects = [min(effect(shares, name, k) for name in NEW) for k in seeds]
        return judged[key].found(bench.where, measured, effects)

    return [
        finding("near", "that are near the data", found.near),
        finding("sure", "of which the classifier is sure", sure),
    ]


def sheet_values(found: Sheet) -> dict[str, Any]:
    """Everything that was counted, seed by seed, as plain JSON."""
    return {
        name: [
            {"near": near, **vars(reading)}
            for near, reading in zip(found.near[name], readings, strict=True)
        ]
        for name, readings in found.readings.items()
    }
