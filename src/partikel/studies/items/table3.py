"""GPM Table 3: test FID of EDM, Discriminator Flow, GAN and Score GAN.

Distances to the test data, beside those of training data, of noise and of the mean of the data. On
points it is the energy distance; on images the Fréchet distance on the features of a classifier of the
very data, with KID, precision and recall, and on request on Inception's, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from partikel.app.show import plots
from partikel.data import Dataset
from partikel.errors import mend_of
from partikel.metrics.evaluation import evaluate
from partikel.metrics.measures import FRECHET
from partikel.metrics.pretrained import EXTRAS, PACKAGES, available
from partikel.studies.benches import EDM, FLOW, FOUR, GAN, Bench, benches
from partikel.studies.item import Item, Outcome, log_ratios, spread
from partikel.studies.judgement import LOG, QUARTER, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.panel import Panel, measured
from partikel.studies.sheets import CLAIM as REASONABLE
from partikel.studies.sheets import NEW, classes_of
from partikel.targets import GaussianMixture
from partikel.training.engine import processes

SOURCE = "GPM §4.3, Table 3"
NEARER = 5.0
"""Reasonable samples are this many times nearer to the data than noise and the mean of the data."""
GOOD = 2.0
"""Performance within this factor of the worse baseline's counts as good."""
CLAIMS = {
    "reasonable": Claim(
        REASONABLE,
        SOURCE,
        f"of the worse of the two, log of how many times nearer to the data it is than a {NEARER:g}th of "
        "the nearer distance of noise and the mean of the data; where a class or mode is missing, minus the "
        "share that is",
        0.0,
        LOG,
    ),
    **{
        name: Claim(
            f"{name} exhibits worse (higher) FID than the baselines.",
            SOURCE,
            f"log of the distance of {name} over that of the worse of EDM and GAN",
            QUARTER,
            LOG,
        )
        for name in NEW
    },
    "good": Claim(
        "Discriminator Flow provides good performance on MNIST.",
        SOURCE,
        f"log of {GOOD:g} times the distance of the worse of EDM and GAN over that of Discriminator Flow",
        0.0,
        LOG,
    ),
}
COLUMNS = {
    "frechet": ("kid", "precision", "recall"),
    "energy": ("sliced_w2", "modes", "within_3sigma"),
}
"""What is shown beside each distance."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data.
        class_samples: from which the classes that are there are counted.
        features: further feature networks for images, beside the data's own.
        judged: the key of the data of which "good performance" speaks.
    """

    benches: tuple[Bench, ...]
    class_samples: int = 2000
    features: tuple[str, ...] = ()
    judged: str = "mnist"


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Measure all models on each data set."""
    parts: dict[str, Outcome] = {}
    notes = []
    for bench in plan.benches:
        own = _column(lab, bench, plan, None)
        parts[bench.key] = own
        for features in plan.features:
            if not available(features):
                brought = " and ".join(PACKAGES[features])
                notes.append(
                    f"'{features}' features are left out where {brought} is not installed: "
                    f"{mend_of(EXTRAS[features])} brings the paper's protocol."
                )
            elif own.values["measure"] == FRECHET.key:
                parts[f"{bench.key}-{features}"] = _column(lab, bench, plan, features)
    notes += [
        f"Reasonable is taken to mean: at least {NEARER:g} times nearer to the test data than the "
        "nearer of noise (a Gaussian with the data's moments for points, N(0, 1) clamped for images) "
        "and the mean of the data, with all classes or modes present (a tenth of a class's fair share, a "
        f"fifth of a mode's). Good is taken to mean within a factor of {GOOD:g} of the worse baseline.",
        "The paper's FIDs are on Inception's features, of images of 32 or 64 pixels a side and of longer "
        "training: they do not compare with distances on other features, so they are not repeated here.",
        "CPU seconds of a Score GAN are without those of the EDM whose score it takes.",
    ]
    return Outcome.of(parts, notes=list(dict.fromkeys(notes)))


def _column(lab: Lab, bench: Bench, plan: Plan, features: str | None) -> Outcome:
    """Everything about one data set with one feature network."""
    dataset = lab.run(bench.models[EDM], bench.seeds[0]).dataset
    # the paper's protocol: as many samples as there are test images
    n = bench.samples if features is None else dataset.size("test")
    panel = measured(lab, bench, bench.models, samples=n, features=features)
    key = f"{bench.key}-{features or 'own'}"
    others = lab.once(key, lambda: _no_models(dataset, panel.samples, features))
    held = {name: _held(lab, panel, name, plan.class_samples) for name in FOUR}
    distances = {name: panel.figures(name) for name in FOUR}
    levels = {name: row[panel.measure.key] for name, row in others.items()}
    figure = plots.dots_figure(
        distances,
        f"{panel.measure.label} to test data, {panel.where}",
        levels={"data vs data": panel.data, **levels},
    )
    lab.draw(figure, f"{bench.data}: distances, a dot for each seed.", key.removesuffix("-own"))
    columns = {
        "present": lambda name: _present(held.get(name, [])),
        "evaluations a sample": lambda name: panel.calls(name) if name in panel.runs else None,
        "CPU s of training": lambda name: (
            spread(panel.seconds(name)) if name in panel.runs else None
        ),
    }
    table = panel.table(*COLUMNS[panel.measure.key], others=others, columns=columns)
    outcome = panel.outcome(findings(panel, levels, held, judged=bench.key == plan.judged), [table])
    more = {"others": others, "present": held, "cpu seconds": {n: panel.seconds(n) for n in FOUR}}
    return replace(outcome, values={**outcome.values, **more})


Held = Sequence[tuple[int, int]]
"""Classes or modes present, of how many, seed by seed; nothing where they cannot be told."""


def _held(lab: Lab, panel: Panel, name: str, samples: int) -> Held:
    target = panel.runs[name][0].dataset.target
    if isinstance(target, GaussianMixture):
        return [(round(held), len(target.means)) for held in panel.figures(name, "modes")]
    readings = [classes_of(lab, run, samples) for run in panel.runs[name]]
    return [(each.held, each.classes) for each in readings if each is not None]


def _present(held: Held) -> str | None:
    return "{} of {}".format(*min(held)) if held else None


def findings(
    panel: Panel, levels: Mapping[str, float], held: Mapping[str, Held], *, judged: bool
) -> list[Finding]:
    """What the distances say.

    Args:
        panel: of the four models.
        levels: distances of what is no model.
        held: classes or modes that each model has.
        judged: whether these are the data of which "good performance" speaks.
    """
    far = {name: panel.figures(name) for name in FOUR}
    nearest = min(levels.values())
    worse = [max(pair) for pair in zip(far[EDM], far[GAN], strict=True)]
    said = panel.said(FOUR)

    def nearness(name: str) -> list[float]:
        """Log of how many times nearer than demanded; minus the share that is missing."""
        ratios = log_ratios([nearest / NEARER] * len(far[name]), far[name], panel.floor)
        shares = [have / every for have, every in held[name]] or [1.0] * len(ratios)
        return [
            ratio if have == 1 else have - 1 for ratio, have in zip(ratios, shares, strict=True)
        ]

    over = {name: log_ratios(far[name], worse, panel.floor) for name in NEW}
    both = [min(pair) for pair in zip(*map(nearness, NEW), strict=True)]
    there = "; ".join(f"{name}: {_present(held[name])}" for name in NEW if held[name])
    no_models = ", ".join(f"{value:.3g} for {name}" for name, value in levels.items())
    found = [
        CLAIMS["reasonable"].found(
            panel.where,
            f"{said}; {no_models}. Classes or modes present: {there or 'not known'}.",
            both,
        ),
        *(CLAIMS[name].found(panel.where, f"{said}.", over[name]) for name in NEW),
    ]
    if judged:
        effects = [math.log(GOOD) - ratio for ratio in over[FLOW]]
        found.append(CLAIMS["good"].found(panel.where, f"{said}.", effects))
    return found


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


ITEM = Item(
    "table3",
    "GPM Table 3, §4.3",
    "Distances of the four models to the test data",
    "Test FID of EDM and Discriminator Flow (no generator), GAN and Score GAN (generator) on MNIST and "
    "CelebA. Both introduced models produce reasonable results, with worse FID than the baselines, "
    "although Discriminator Flow provides good performance on MNIST.",
    {
        "smoke": Plan(benches("smoke", "gaussians", "digits"), 200, judged="digits"),
        "cpu": Plan(benches("cpu", "gaussians", "digits", "mnist")),
        "paper": Plan(benches("paper", "gaussians", "mnist", "celeba"), 10_000, ("inception",)),
    },
    measure,
    CLAIMS,
)
