"""GPM Figure 4: a Score GAN with α = 2, β = 1 (EDM's weights in place of NCSN's) collapses.

What a model covers is a number here: of images, the effective number of classes (e^entropy of a
classifier's predictions) and the recall of the data's features; of points, the modes that they reach and
how wide they lie around them. The paper finds no collapse without a generator, in models with other
fields. On points a Score Flow tells more: Score GAN's very field, carried by free particles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.data import Dataset
from partikel.metrics import default_classifier, mode_statistics
from partikel.studies.benches import EDM, FLOW, SCORE_GAN, Bench, Training, benches, score_flow
from partikel.studies.distances import Evaluated
from partikel.studies.item import Finding, Item, Outcome, Table, log_ratio, log_ratios, spread
from partikel.studies.lab import Lab
from partikel.studies.sheets import class_weights, classes_of, read, real_images
from partikel.targets import GaussianMixture

SOURCE = "GPM §C.2, Figure 4"
ALPHA, WEIGHTS = 2.0, "α = 2, β = 1"
CHANGED = f"{SCORE_GAN}, {WEIGHTS}"
FREE = "Score Flow"
FREE_CHANGED = f"{FREE}, {WEIGHTS}"
HALF = math.log(2)
"""What is lost in a collapse: more than half of what the other model covers, as a log ratio."""
LEAST = 0.05
"""Of a log ratio of coverages: those of thousands of samples are known to a few hundredths."""
FLOOR = 0.01
"""Coverages below this one are not told from nothing."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data.
        samples: whose classes or modes are counted.
        sheet: images of a sheet.
        free: by the data's key, the Score Flow with Score GAN's field.
    """

    benches: tuple[Bench, ...]
    samples: int = 2000
    sheet: int = 64
    free: Mapping[str, Training] = field(default_factory=dict)


@dataclass(frozen=True)
class Coverage:
    """How much of the data samples cover.

    Attributes:
        shares: of the samples, by class or by the mode that is nearest.
        measures: by name; each is 0 where nothing is covered, and largest for the data.
        held: classes with at least a tenth of their fair share; modes with at least a fifth of
            theirs within three standard deviations.
    """

    shares: tuple[float, ...]
    measures: Mapping[str, float]
    held: int


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Train α = 2 beside α = 1, count, and draw."""
    parts = {bench.key: _of_bench(plan, bench, lab) for bench in plan.benches}
    *_, last = parts.values()
    return Outcome.of(
        parts,
        {"samples whose classes or modes are counted": plan.samples, **last.protocol},
        [
            "EDM and Discriminator Flow differ from the collapsed Score GAN in their field as well as in "
            "their carrier. At a large σ, where p_σ is nearly N(0, σ²), the field 2 s_p - s_ρ draws "
            "particles of a matching law to the centre of the data, -x/σ², whatever carries it; the "
            "Score Flow with the same weights shows how much of a collapse is the field's.",
        ],
    )


def _of_bench(plan: Plan, bench: Bench, lab: Lab) -> Outcome:
    trainings = {name: bench.models[name] for name in (EDM, FLOW, SCORE_GAN)}
    trainings[CHANGED] = bench.models[SCORE_GAN].but("alpha-2", alpha=ALPHA)
    if bench.key in plan.free:
        free = plan.free[bench.key]
        trainings |= {FREE: free, FREE_CHANGED: free.but("alpha-2", alpha=ALPHA)}
    dataset = lab.run(trainings[EDM], bench.seeds[0]).dataset
    images = len(dataset.shape) > 1
    count = plan.sheet if images else 1000
    found: dict[str, Evaluated] = {}
    covered: dict[str, list[Coverage]] = {}
    panels: dict[str, Tensor] = {}
    for name, training in trainings.items():
        found[name] = each = lab.evaluated(training, bench.seeds, bench.samples)
        covered[name] = [
            _coverage(lab, run, plan.samples, row)
            for run, row in zip(each.runs, each.rows, strict=True)
        ]
        panels[name] = lab.sample(each.runs[0], count, 0, bench.key, "sheet")
    reference, protocol = (found[EDM].rows[0][key] for key in ("reference", "protocol"))
    data = real_images(dataset, plan.samples, lab.generator(0, bench.key, "data"))
    of_data = _of_data(dataset, data, reference)
    distance = found[EDM].distance
    also = "coverage" if images else "mode_tv"
    far, rest = (
        {**{name: each.figures(key) for name, each in found.items()}, "data": [reference[key]]}
        for key in (distance.key, also)
    )
    heads = {also if images else "total variation of modes": rest, distance.name: far}
    values = {
        "data": vars(of_data),
        **{name: [vars(each) for each in those] for name, those in covered.items()},
        distance.key: far,
    }
    _draw(lab, bench, panels, data[:count], covered, of_data)
    keys = ("features", "samples", "seed", "split")
    return Outcome(
        _findings(bench, covered, of_data, found),
        [_table(bench, covered, of_data, heads)],
        values,
        {key: protocol[key] for key in keys if key in protocol},
    )


def _findings(
    bench: Bench,
    covered: Mapping[str, Sequence[Coverage]],
    of_data: Coverage,
    evaluated: Mapping[str, Evaluated],
) -> list[Finding]:
    def lost(name: str, than: Sequence[Coverage]) -> list[float]:
        """Of each seed, the largest log ratio of coverages, less that of a half."""
        pairs = zip(covered[name], than, strict=True)
        return [max(_losses(theirs, own)) - HALF for own, theirs in pairs]

    def said(*names: str) -> str:
        parts = []
        for name in names:
            numbers = (
                f"{what} {spread([each.measures[what] for each in covered[name]])}"
                for what in of_data.measures
            )
            parts.append(f"{name}: {', '.join(numbers)}")
        return "; ".join(parts)

    def found(claim: str, measured: str, effects: list[float], least: float = LEAST) -> Finding:
        return Finding.of(claim, SOURCE, bench.where, measured, effects, least)

    collapse = lost(CHANGED, covered[SCORE_GAN])
    data = [of_data] * len(bench.seeds)
    without = [max(each) for each in zip(lost(EDM, data), lost(FLOW, data), strict=True)]
    of_the_data = ", ".join(f"{what} {value:.3g}" for what, value in of_data.measures.items())
    findings = [
        found(
            f"With {WEIGHTS} (EDM's weights), a Score GAN collapses: it loses more than half of what "
            "it covers with α = β = 1.",
            f"{said(SCORE_GAN, CHANGED)} (data: {of_the_data}).",
            collapse,
        ),
        found(
            "Collapse is absent from the models without a generator, EDM and Discriminator Flow.",
            f"{said(EDM, FLOW)} (data: {of_the_data}).",
            [-each for each in without],
        ),
    ]
    if FREE in covered:
        of_free = lost(FREE_CHANGED, covered[FREE])
        findings.append(
            found(
                "Collapse is primarily caused by the generator: free particles with the same field "
                f"({WEIGHTS}) do not collapse.",
                f"{said(FREE, FREE_CHANGED)}.",
                # where no Score GAN collapses, nothing is caused
                [-each for each in of_free] if min(collapse) > LEAST else [],
            )
        )
    own, changed = evaluated[SCORE_GAN], evaluated[CHANGED]
    findings.append(
        found(
            "The weights of NCSN, α = β = 1, are better for a Score GAN than those of EDM, "
            f"{WEIGHTS}.",
            f"{own.distance.name}: {spread(own.far)} with α = β = 1, {spread(changed.far)} with "
            f"{WEIGHTS}.",
            log_ratios(changed.far, own.far, own.distance.floor),
            0.1,
        )
    )
    return findings


def _losses(of: Coverage, left: Coverage) -> list[float]:
    """log(covered/left) by measure."""
    return [log_ratio(value, left.measures[name], FLOOR) for name, value in of.measures.items()]


def _table(
    bench: Bench,
    covered: Mapping[str, Sequence[Coverage]],
    of_data: Coverage,
    others: Mapping[str, Mapping[str, Sequence[float]]],
) -> Table:
    rows: dict[str, Sequence[Coverage]] = {"data": [of_data], **covered}
    return Table(
        f"What is covered, {bench.where}",
        ("", *of_data.measures, f"held, of {len(of_data.shares)}", *others),
        tuple(
            (
                name,
                *(spread([each.measures[what] for each in those]) for what in of_data.measures),
                spread([each.held for each in those]),
                *(spread(other[name]) for other in others.values()),
            )
            for name, those in rows.items()
        ),
    )


def _coverage(lab: Lab, run: Run, n: int, row: Mapping[str, Any]) -> Coverage:
    target = run.dataset.target
    if not isinstance(target, GaussianMixture):
        found = classes_of(lab, run, n)
        assert found is not None
        return Coverage(found.shares, _of_images(found.effective, row["metrics"]), found.held)

    def work() -> dict[str, Any]:
        points = run.sample(n, generator=torch.Generator().manual_seed(0))
        return vars(_of_points(target, points))

    return Coverage(**lab.of_run(run, {"modes": n, "width": "median"}, work))


def _of_images(effective: float, metrics: Mapping[str, float]) -> dict[str, float]:
    return {"effective classes": effective, "recall": metrics["recall"]}


def _of_points(target: GaussianMixture, points: Tensor) -> Coverage:
    """Modes reached, and how wide the points lie within them.

    The width is the median distance from the points' own centre, of those nearest to a mode, over that
    of the mode's points: strays between modes do not widen it, nor does a shift.
    """
    found = mode_statistics(points, target.means, target.stds, target.weights)
    points = points.double()
    nearest = (points[:, None] - target.means).square().sum(-1).argmin(1)
    unit = math.sqrt(chi2.ppf(0.5, points.shape[1]))
    widths = [0.0]
    for mode, std in enumerate(target.stds.tolist()):
        group = points[nearest == mode]
        if len(group) > 1:
            radii = (group - group.median(0).values).norm(dim=1)
            widths.append(float(radii.median()) / (unit * std))
    width = sum(widths) / max(1, len(widths) - 1)
    return Coverage(found.shares, {"modes": found.covered, "width": width}, found.covered)


def _of_data(dataset: Dataset, data: Tensor, reference: Mapping[str, float]) -> Coverage:
    if isinstance(dataset.target, GaussianMixture):
        return _of_points(dataset.target, data)
    classifier = default_classifier(dataset.name, dataset.shape)
    assert classifier is not None
    found = read(classifier, data, class_weights(dataset))
    return Coverage(found.shares, _of_images(found.effective, reference), found.held)


def _draw(
    lab: Lab,
    bench: Bench,
    panels: Mapping[str, Tensor],
    data: Tensor,
    covered: Mapping[str, Sequence[Coverage]],
    of_data: Coverage,
) -> None:
    images = data.ndim > 2
    what = "classes" if images else "modes"
    columns = 5 if images else 3
    figure = plots.comparison_figure(panels, data, columns=columns, most=len(data))
    lab.draw(figure, f"{bench.data}: uncurated samples of the first seed.", bench.key)
    means = {
        name: [sum(column) / len(those) for column in zip(*(c.shares for c in those), strict=True)]
        for name, those in {"data": [of_data], **covered}.items()
    }
    count = len(of_data.shares)
    bars = plots.bars_figure(
        means,
        [str(k) for k in range(count)],
        f"share of the samples in each of the {what}, {bench.where}",
        level=("equal shares", 1 / count),
    )
    caption = f"{bench.data}: shares of the {what}, mean over seeds."
    lab.draw(bars, caption, f"{bench.key}-{what}")


def _free(*those: Bench) -> dict[str, Training]:
    return {bench.key: score_flow(bench) for bench in those if bench.key == "gaussians"}


ITEM = Item(
    "fig4",
    SOURCE,
    "Mode collapse of Score GANs",
    "Uncurated samples of a Score GAN on MNIST whose weights are EDM's, α = 2 and β = 1, in place of "
    "NCSN's, α = β = 1: strong mode collapse, intended. The paper takes the generator for its cause, "
    "as the models without one do not collapse.",
    {
        "smoke": Plan(
            benches("smoke", "gaussians", "digits"), 100, 16, _free(*benches("smoke", "gaussians"))
        ),
        "cpu": Plan(
            benches("cpu", "gaussians", "digits", "mnist"),
            free=_free(*benches("cpu", "gaussians")),
        ),
        "paper": Plan(benches("paper", "gaussians", "mnist"), 10_000),
    },
    measure,
)
