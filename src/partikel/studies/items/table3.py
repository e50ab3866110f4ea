"""GPM Table 3: test FID of EDM, Discriminator Flow, GAN and Score GAN.

Distances to the test data, beside those of training data, of noise and of the mean of the data. On
points it is the energy distance; on images the Fréchet distance on the features of a classifier of the
very data, with KID, precision and recall, and on request on Inception's, as in the paper.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from partikel.app.show import plots
from partikel.data import Dataset
from partikel.metrics.evaluation import evaluate
from partikel.metrics.pretrained import PACKAGES, available
from partikel.studies.benches import EDM, FLOW, FOUR, GAN, Bench, benches
from partikel.studies.curves import LEAST, noise, protocol_of
from partikel.studies.distances import ENERGY, FRECHET, Distance, distance_of
from partikel.studies.item import Finding, Item, Outcome, Table, log_ratio, spread
from partikel.studies.lab import Lab
from partikel.studies.sheets import CLAIM as REASONABLE
from partikel.studies.sheets import NEW, classes_of
from partikel.targets import GaussianMixture
from partikel.training.engine import processes

SOURCE = "GPM §4.3, Table 3"
NEARER = 5.0
"""Reasonable samples are this many times nearer to the data than noise and the mean of the data."""
GOOD = 2.0
"""Performance within this factor of the worse baseline's counts as good."""
COLUMNS = {
    "frechet": ("kid", "precision", "recall"),
    "energy": ("sliced_w2", "modes", "within_3sigma"),
}
"""What is shown beside each distance."""
HEADS = {
    "kid": "KID",
    "sliced_w2": "sliced W2",
    "modes": "modes",
    "within_3sigma": "within 3σ",
    "precision": "precision",
    "recall": "recall",
}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data.
        evaluations: by data set, with seeds of their own, whose means are taken; one unless given.
        class_samples: from which the classes that are there are counted.
        features: further feature networks for images, beside the data's own.
    """

    benches: tuple[Bench, ...]
    evaluations: Mapping[str, int] = field(default_factory=dict)
    class_samples: int = 2000
    features: tuple[str, ...] = ()


@dataclass
class _Column:
    """Everything measured on one data set with one feature network.

    Attributes:
        where: for findings.
        evaluations: that each figure is the mean of.
        distance: to the data.
        rows: name -> figures for each seed.
        others: name -> figures of what is no model.
        protocol: of the evaluations.
        seconds: name -> CPU seconds of training, seed by seed.
        classes: name -> classes held, of how many, seed by seed.
    """

    where: str
    evaluations: int = 1
    distance: Distance = ENERGY
    rows: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)
    others: dict[str, Mapping[str, float]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    classes: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def noise(self) -> float:
        """Log ratios of distances up to this one are taken for noise."""
        return noise(self.distance, self.protocol["samples"], self.evaluations)

    def distances(self, name: str) -> list[float]:
        """Of a model, seed by seed."""
        return [row[self.distance.key] for row in self.rows[name]]


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Measure all models on each data set."""
    findings, tables, values, notes, protocol = [], [], {}, [], {}
    for bench in plan.benches:
        points = False
        for features in (None, *plan.features):
            if features is not None and (points or not available(features)):
                continue
            column = _measured(lab, bench, plan, features)
            points = column.distance is ENERGY
            findings += _findings(column)
            tables.append(_table(column))
            key = bench.key if features is None else f"{bench.key}-{features}"
            values[key] = _values(column)
            protocol[column.where] = protocol_of(column.protocol)
            if column.evaluations > 1:
                protocol[column.where] += f" to {column.evaluations - 1}, means"
            figure = plots.dots_figure(
                {name: column.distances(name) for name in FOUR},
                f"{column.distance.name.capitalize()} to test data, {column.where}",
                levels={name: row[column.distance.key] for name, row in column.others.items()},
            )
            lab.draw(figure, f"{bench.data}: distances, a dot for each seed.", key)
    notes += [
        f"'{features}' features are left out where {' and '.join(PACKAGES[features])} is not installed: "
        f"pip install partikel[{features}] brings the paper's protocol."
        for features in plan.features
        if not available(features)
    ]
    notes += [
        f"Reasonable is taken to mean: at least {NEARER:g} times nearer to the test data than the "
        "nearer of noise (a Gaussian with the data's moments for points, N(0, 1) clamped for images) "
        "and the mean of the data, with all classes or modes present (a tenth of a class's fair share, a "
        f"fifth of a mode's). Good is taken to mean within a factor of {GOOD:g} of the worse baseline.",
        "The paper's FIDs are on Inception's features, of images of 32 or 64 pixels a side and of longer "
        "training: they do not compare with distances on other features, so they are not repeated here.",
        "CPU seconds of a Score GAN are without those of the EDM whose score it takes.",
    ]
    return Outcome(findings, tables, values, protocol, notes)


def _measured(lab: Lab, bench: Bench, plan: Plan, features: str | None) -> _Column:
    times = plan.evaluations.get(bench.key, 1)
    column = _Column(bench.where if features is None else f"{bench.where}, {features}", times)
    n = bench.samples
    options: dict[str, Any] = {} if features is None else {"features": features}
    dataset = lab.run(bench.models[EDM], bench.seeds[0]).dataset
    if features is not None:  # the paper's protocol: as many samples as there are test images
        n = dataset.size("test") or n
    for name in FOUR:
        column.rows[name], column.seconds[name], column.classes[name] = [], [], []
        for seed in bench.seeds:
            run = lab.run(bench.models[name], seed)
            seeds: list[dict[str, Any]] = [{}, *({"seed": k} for k in range(1, times))]
            results = [lab.evaluate(run, n=n, **options, **each) for each in seeds]
            result, metrics = results[0], _mean([each["metrics"] for each in results])
            column.rows[name].append(metrics)
            column.distance = distance_of(metrics)
            column.others["data vs data"] = _mean([each["reference"] for each in results])
            column.protocol = result["protocol"]
            column.calls[name] = result["protocol"]["nfe"]
            column.seconds[name].append(run.cpu_seconds)
            if isinstance(dataset.target, GaussianMixture):
                held = (math.floor(metrics["modes"]), len(dataset.target.means))
            else:
                reading = classes_of(lab, run, plan.class_samples)
                held = None if reading is None else (reading.held, reading.classes)
            if held is not None:
                column.classes[name].append(held)
    key = f"{bench.key}-{features or 'own'}"
    column.others |= lab.once(key, lambda: _no_models(dataset, n, features))
    return column


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(each[key] for each in figures) for key in figures[0]}


def _no_models(dataset: Dataset, n: int, features: str | None) -> dict[str, dict[str, float]]:
    """Figures of noise and of the mean of the data."""
    if len(dataset.shape) > 1:
        result = evaluate(
            lambda count, generator: torch.zeros(count, *dataset.shape),
            dataset,
            n=n,
            features=features,
            baselines=True,
            device=processes().device or "cpu",
        )
        return {"noise": result.baselines["noise"], "mean": result.baselines["mean image"]}
    some = dataset.draw(10_000, "train", generator=torch.Generator().manual_seed(0)).x
    mean, std = some.mean(0), some.std(0)

    def normal(count: int, generator: torch.Generator) -> Tensor:
        return mean + std * torch.randn(count, *dataset.shape, generator=generator)

    def centre(count: int, generator: torch.Generator) -> Tensor:
        return mean.expand(count, *dataset.shape)

    return {
        "noise": evaluate(normal, dataset, n=n).metrics,
        "mean": evaluate(centre, dataset, n=n).metrics,
    }


def _findings(column: _Column) -> list[Finding]:
    unit, key = column.distance.name.capitalize(), column.distance.key
    seeds = range(len(column.rows[EDM]))
    nearest = min(column.others[name][key] for name in ("noise", "mean"))

    def nearness(name: str, k: int) -> float:
        """How much nearer than demanded, or the share of classes that is missing, negative."""
        if column.classes[name]:
            held, classes = column.classes[name][k]
            if held < classes:
                return held / classes - 1
        return log_ratio(nearest, column.distances(name)[k], LEAST) - math.log(NEARER)

    def over(name: str, k: int) -> float:
        """Log of a distance over that of the worse baseline."""
        worse = max(column.distances(each)[k] for each in (EDM, GAN))
        return log_ratio(column.distances(name)[k], worse, LEAST)

    def present(name: str) -> str:
        if not column.classes[name]:
            return ""
        held, classes = min(column.classes[name])
        kind = "classes" if column.distance is FRECHET else "modes"
        return f" ({held} of {classes} {kind})"

    def found(claim: str, measured: str, effects: list[float]) -> Finding:
        return Finding.of(
            claim, SOURCE, column.where, f"{unit}: {measured}.", effects, column.noise
        )

    distances = {name: spread(column.distances(name)) for name in FOUR}
    baselines = f"{distances[EDM]} for EDM and {distances[GAN]} for GAN"
    reasonable = "; ".join(f"{distances[name]} for {name}{present(name)}" for name in NEW)
    findings = [
        found(
            REASONABLE,
            f"{reasonable}; noise {column.others['noise'][key]:.3g}, "
            f"mean {column.others['mean'][key]:.3g}",
            [min(nearness(name, k) for name in NEW) for k in seeds],
        )
    ]
    findings += [
        found(
            f"{name} exhibits worse (higher) FID than the baselines.",
            f"{distances[name]}, against {baselines}",
            [over(name, k) for k in seeds],
        )
        for name in NEW
    ]
    if column.distance is FRECHET and column.classes[FLOW]:
        findings.append(
            found(
                "Discriminator Flow provides good performance on MNIST.",
                f"{distances[FLOW]}, against {baselines}",
                [math.log(GOOD) - over(FLOW, k) for k in seeds],
            )
        )
    return findings


def _table(column: _Column) -> Table:
    figures = {**column.rows, **{name: [row] for name, row in column.others.items()}}

    def shown(name: str, key: str) -> str:
        return spread([each[key] for each in figures[name]])

    def classes(name: str) -> str:
        return str(min(column.classes[name])[0]) if column.classes.get(name) else ""

    def seconds(name: str) -> str:
        return spread(column.seconds[name]) if name in column.seconds else ""

    columns: dict[str, Callable[[str], str]] = {"model": str}
    columns[column.distance.name] = partial(shown, key=column.distance.key)
    columns |= {HEADS[key]: partial(shown, key=key) for key in COLUMNS[column.distance.key]}
    if column.distance is FRECHET:
        columns["classes"] = classes
    columns["evaluations a sample"] = lambda name: str(column.calls.get(name, ""))
    columns["CPU s of training"] = seconds
    return Table.of(f"Distances to the test data, {column.where}", figures, columns)


def _values(column: _Column) -> dict[str, Any]:
    return {
        "models": {name: [dict(row) for row in rows] for name, rows in column.rows.items()},
        "others": {name: dict(row) for name, row in column.others.items()},
        "classes held": column.classes,
        "evaluations": column.calls,
        "cpu seconds": column.seconds,
        "protocol": column.protocol,
    }


ITEM = Item(
    "table3",
    "GPM Table 3, §4.3",
    "Distances of the four models to the test data",
    "Test FID of EDM and Discriminator Flow (no generator), GAN and Score GAN (generator) on MNIST and "
    "CelebA. Both introduced models produce reasonable results, with worse FID than the baselines, "
    "although Discriminator Flow provides good performance on MNIST.",
    {
        "smoke": Plan(benches("smoke", "gaussians", "digits"), {"digits": 2}, 200),
        "cpu": Plan(benches("cpu", "gaussians", "digits", "mnist"), {"gaussians": 5, "digits": 5}),
        "paper": Plan(
            benches("paper", "gaussians", "mnist", "celeba"),
            {"gaussians": 5},
            10_000,
            ("inception",),
        ),
    },
    measure,
)
