"""GPM Table 3: test FID of EDM, Discriminator Flow, GAN and Score GAN.

Distances to the test data, beside those of training data, of noise and of the mean of the data. On
points it is the energy distance; on images the Fréchet distance on the features of a classifier of the
very data, with KID, precision and recall, and on request on Inception's, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.data import Dataset
from partikel.metrics.evaluation import evaluate
from partikel.metrics.pretrained import PACKAGES, available
from partikel.studies.benches import EDM, FLOW, FOUR, GAN, Bench, benches
from partikel.studies.curves import LEAST, noise, protocol_of
from partikel.studies.distances import ENERGY, FRECHET, Distance, Evaluated
from partikel.studies.item import Finding, Item, Outcome, Table, log_ratio, means, spread
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


@dataclass(frozen=True)
class _Column:
    """Everything measured on one data set with one feature network.

    Attributes:
        where: for findings.
        evaluations: that each figure is the mean of.
        models: name -> figures for each seed.
        classes: name -> classes held, of how many, seed by seed.
        others: name -> figures of what is no model.
    """

    where: str
    evaluations: int
    models: Mapping[str, Evaluated]
    classes: Mapping[str, list[tuple[int, int]]]
    others: Mapping[str, Mapping[str, float]]

    @property
    def distance(self) -> Distance:
        """To the data."""
        return self.models[EDM].distance

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Of the evaluations."""
        return self.models[FOUR[-1]].rows[-1]["protocol"]

    @property
    def noise(self) -> float:
        """Log ratios of distances up to this one are taken for noise."""
        return noise(self.distance, self.protocol["samples"], self.evaluations)

    def calls(self, name: str) -> int:
        """Evaluations of a network for a sample of a model."""
        return self.models[name].rows[-1]["protocol"]["nfe"]

    def seconds(self, name: str) -> list[float]:
        """CPU seconds of a model's training, seed by seed."""
        return [run.cpu_seconds for run in self.models[name].runs]


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
                {name: each.far for name, each in column.models.items()},
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
    where, n = bench.where, bench.samples
    options: dict[str, Any] = {}
    dataset = lab.run(bench.models[EDM], bench.seeds[0]).dataset
    if features is not None:  # the paper's protocol: as many samples as there are test images
        where, options = f"{where}, {features}", {"features": features}
        n = dataset.size("test") or n
    models: dict[str, Evaluated] = {}
    classes: dict[str, list[tuple[int, int]]] = {}
    for name in FOUR:
        runs = [lab.run(bench.models[name], seed) for seed in bench.seeds]
        models[name] = Evaluated(runs, [_repeated(lab, run, times, n=n, **options) for run in runs])
        if isinstance(dataset.target, GaussianMixture):
            modes = len(dataset.target.means)
            classes[name] = [(math.floor(held), modes) for held in models[name].figures("modes")]
        else:
            readings = [classes_of(lab, run, plan.class_samples) for run in runs]
            classes[name] = [(each.held, each.classes) for each in readings if each is not None]
    key = f"{bench.key}-{features or 'own'}"
    nothing = lab.once(key, lambda: _no_models(dataset, n, features))
    data = models[FOUR[-1]].rows[-1]["reference"]
    return _Column(where, times, models, classes, {"data vs data": data, **nothing})


def _repeated(lab: Lab, run: Run, times: int, **options: Any) -> dict[str, Any]:
    """An evaluation whose figures are means over evaluations with seeds of their own."""
    seeds: list[dict[str, Any]] = [{}, *({"seed": k} for k in range(1, times))]
    results = [lab.evaluate(run, **options, **each) for each in seeds]
    figures = [{key: each[key] for key in ("metrics", "reference")} for each in results]
    return {**results[0], **means(figures)}


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
    far = {name: each.far for name, each in column.models.items()}
    seeds = range(len(far[EDM]))
    nearest = min(column.others[name][key] for name in ("noise", "mean"))

    def nearness(name: str, k: int) -> float:
        """How much nearer than demanded, or the share of classes that is missing, negative."""
        if column.classes[name]:
            held, classes = column.classes[name][k]
            if held < classes:
                return held / classes - 1
        return log_ratio(nearest, far[name][k], LEAST) - math.log(NEARER)

    def over(name: str, k: int) -> float:
        """Log of a distance over that of the worse baseline."""
        worse = max(far[each][k] for each in (EDM, GAN))
        return log_ratio(far[name][k], worse, LEAST)

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

    distances = {name: spread(each) for name, each in far.items()}
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
    models = column.models

    def shown(name: str, key: str) -> str:
        return spread(models[name].figures(key) if name in models else [column.others[name][key]])

    def classes(name: str) -> str:
        return str(min(column.classes[name])[0]) if column.classes.get(name) else ""

    columns: dict[str, Callable[[str], str]] = {"model": str}
    columns[column.distance.name] = partial(shown, key=column.distance.key)
    columns |= {HEADS[key]: partial(shown, key=key) for key in COLUMNS[column.distance.key]}
    if column.distance is FRECHET:
        columns["classes"] = classes
    columns["evaluations a sample"] = lambda name: str(column.calls(name)) if name in models else ""
    columns["CPU s of training"] = lambda name: (
        spread(column.seconds(name)) if name in models else ""
    )
    names = (*models, *column.others)
    return Table.of(f"Distances to the test data, {column.where}", names, columns)


def _values(column: _Column) -> dict[str, Any]:
    return {
        "models": {n: [row["metrics"] for row in e.rows] for n, e in column.models.items()},
        "others": {name: dict(row) for name, row in column.others.items()},
        "classes held": column.classes,
        "evaluations": {name: column.calls(name) for name in column.models},
        "cpu seconds": {name: column.seconds(name) for name in column.models},
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
