"""GPM Figure 4: a Score GAN with α = 2, β = 1 (EDM's weights in place of NCSN's) collapses.

What a model covers is a number here: of images, the effective number of classes (e^entropy of a
classifier's predictions), and the recall and coverage of the data's features; of points, the modes that
they reach and how wide they lie around them. A collapse shows in any of these. The paper finds none without
a generator, in models with other fields. On points a Score Flow tells more: Score GAN's very field,
carried by free particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.data import Dataset
from partikel.metrics import default_classifier, mode_statistics
from partikel.streams import seeded
from partikel.studies.benches import (
    BENCHES,
    EDM,
    FLOW,
    SCORE_GAN,
    Bench,
    Scale,
    Training,
    benches,
    score_flow,
)
from partikel.studies.item import Item, Outcome, spread
from partikel.studies.judgement import HOLDS, INDICATED, LOG, QUARTER, Claim, Finding, judge
from partikel.studies.lab import Lab
from partikel.studies.panel import END, Panel, measured
from partikel.studies.sheets import Reading, class_weights, classes_of, read, real_images
from partikel.targets import GaussianMixture

SOURCE = "GPM §C.2, Figure 4"
ALPHA, WEIGHTS = 2.0, "α = 2, β = 1"
CHANGED = f"{SCORE_GAN}, {WEIGHTS}"
FREE = "Score Flow"
FREE_CHANGED = f"{FREE}, {WEIGHTS}"
HALF = 0.5
"""Share of what another one covers that is lost, by one of the measures at least, in a collapse."""
_ABSENT = (
    "Collapse is absent from the models without a generator, EDM and Discriminator Flow.",
    SOURCE,
    f"{HALF:g} less the largest share, by any measure, of what data cover and one of the two does not",
    0.0,
)
_FIRST = "it left out coverage, the share of test images that have a sample near them"
CLAIMS = {
    "collapse": Claim(
        f"With {WEIGHTS} (EDM's weights), a Score GAN collapses: it loses more than half of what it covers "
        "with α = β = 1.",
        SOURCE,
        f"the largest share, by any measure, of what it covers with α = β = 1 that is lost, less {HALF:g}",
        0.0,
    ),
    "absent": Claim(*_ABSENT),
    "absent, first": Claim(*_ABSENT, replaced=_FIRST),
    "generator": Claim(
        f"Collapse is primarily caused by the generator: free particles with the same field ({WEIGHTS}) do "
        "not collapse.",
        SOURCE,
        f"where a Score GAN collapses, {HALF:g} less the largest share, by any measure, of what a Score Flow "
        "covers with α = β = 1 that is lost",
        0.0,
    ),
    "better": Claim(
        f"The weights of NCSN, α = β = 1, are better for a Score GAN than those of EDM, {WEIGHTS}.",
        SOURCE,
        f"log of the distance with {WEIGHTS} over that with α = β = 1",
        *(QUARTER, LOG),
    ),
}


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

    def lost(self, left: Coverage, but: str = "") -> float:
        """The largest share, by any measure but one, of what this covers and ``left`` does not."""
        pairs = ((v, left.measures[name]) for name, v in self.measures.items() if name != but)
        return max(1 - less / value if value else 0.0 for value, less in pairs)


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Train α = 2 beside α = 1, count, and draw."""
    return Outcome.of(
        {bench.key: _of_bench(plan, bench, lab) for bench in plan.benches},
        notes=[
            f"Classes and modes are counted on {plan.samples} samples. Recall is the share of test images "
            "that lie among samples, coverage the share that have a sample near them.",
            "EDM and Discriminator Flow differ from the collapsed Score GAN in their field as well as in "
            "their carrier. At a large σ, where p_σ is nearly N(0, σ²), the field 2 s_p - s_ρ draws "
            "particles of a matching law to the centre of the data, -x/σ², whatever carries it; the "
            "Score Flow with the same weights shows how much of a collapse is the field's.",
        ],
    )


def _of_bench(plan: Plan, bench: Bench, lab: Lab) -> Outcome:
    models = {name: bench.models[name] for name in (EDM, FLOW, SCORE_GAN)}
    models[CHANGED] = bench.models[SCORE_GAN].but("alpha-2", alpha=ALPHA)
    if bench.key in plan.free:
        free = plan.free[bench.key]
        models |= {FREE: free, FREE_CHANGED: free.but("alpha-2", alpha=ALPHA)}
    panel = measured(lab, bench, models)
    dataset = panel.runs[EDM][0].dataset
    images = len(dataset.shape) > 1
    count = plan.sheet if images else 1000
    data = real_images(dataset, plan.samples, lab.generator(0, bench.key, "data"))
    of_data = _of_data(dataset, data, panel.reference)
    covered = {
        name: [
            _coverage(lab, run, plan.samples, row)
            for run, row in zip(runs, panel.rows[name][END], strict=True)
        ]
        for name, runs in panel.runs.items()
    }
    sheets = {
        n: lab.sample(each[0], count, 0, bench.key, "sheet") for n, each in panel.runs.items()
    }
    rows = {"data vs data": [of_data], **covered}
    _draw(lab, bench, sheets, data[:count], rows)

    def column(value: Callable[[Coverage], float]) -> Callable[[str], str]:
        return lambda name: spread([value(each) for each in rows[name]])

    columns = {what: column(lambda c, w=what: c.measures[w]) for what in of_data.measures}
    columns[f"held, of {len(of_data.shares)}"] = column(lambda c: c.held)
    also = () if images else ("mode_tv",)
    table = panel.table(*also, columns=columns, title="What is covered")
    outcome = panel.outcome(findings(panel, covered, of_data), [table])
    counted = {name: [vars(each) for each in those] for name, those in rows.items()}
    return replace(outcome, values={**outcome.values, "covered": counted})


def findings(
    panel: Panel, covered: Mapping[str, Sequence[Coverage]], of_data: Coverage
) -> list[Finding]:
    """Who collapses, and with which weights a Score GAN is nearer to the data.

    Args:
        panel: distances of the models.
        covered: by the same names, for each seed.
        of_data: coverage by the data themselves.
    """
    rows = {**covered, "data": [of_data]}

    def lost(name: str, than: Sequence[Coverage], but: str = "") -> list[float]:
        pairs = zip(covered[name], than, strict=True)
        return [theirs.lost(own, but) for own, theirs in pairs]

    def said(*names: str) -> str:
        return "; ".join(f"{name}: {numbers(rows[name])}" for name in names)

    def numbers(those: Sequence[Coverage]) -> str:
        parts = (f"{what} {spread([c.measures[what] for c in those])}" for what in of_data.measures)
        return ", ".join(parts)

    data = [of_data] * len(covered[EDM])

    def absent(but: str = "") -> list[float]:
        pairs = zip(lost(EDM, data, but), lost(FLOW, data, but), strict=True)
        return [HALF - max(pair) for pair in pairs]

    collapse = [share - HALF for share in lost(CHANGED, covered[SCORE_GAN])]
    free_or_not = said(EDM, FLOW, "data")
    effects = {"collapse": (said(SCORE_GAN, CHANGED, "data"), collapse)}
    effects["absent"] = (free_or_not, absent())
    if "coverage" in of_data.measures:
        effects["absent, first"] = (free_or_not, absent("coverage"))
    if FREE in covered:
        collapsed = judge(CLAIMS["collapse"], collapse).verdict in (HOLDS, INDICATED)
        free = [HALF - share for share in lost(FREE_CHANGED, covered[FREE])] if collapsed else []
        aside = "" if collapsed else "; no Score GAN collapses here, so that nothing is caused"
        effects["generator"] = (said(FREE, FREE_CHANGED) + aside, free)
    effects["better"] = (panel.said([SCORE_GAN, CHANGED]), panel.ratios(CHANGED, SCORE_GAN))
    return [
        CLAIMS[key].found(panel.where, f"{said}.", values)
        for key, (said, values) in effects.items()
    ]


def _coverage(lab: Lab, run: Run, n: int, row: Mapping[str, float]) -> Coverage:
    target = run.dataset.target
    if not isinstance(target, GaussianMixture):
        found = classes_of(lab, run, n)
        assert found is not None
        return _of_images(found, row)

    def work() -> dict[str, Any]:
        return vars(_of_points(target, run.sample(n, generator=seeded(0, "modes"))))

    return Coverage(**lab.once(f"{run.path.parent.name}-{run.path.name}", work))


def _of_images(found: Reading, figures: Mapping[str, float]) -> Coverage:
    measures = {"effective classes": found.effective}
    measures |= {key: figures[key] for key in ("recall", "coverage")}
    return Coverage(found.shares, measures, found.held)


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
    return _of_images(read(classifier, data, class_weights(dataset)), reference)


def _draw(
    lab: Lab,
    bench: Bench,
    sheets: Mapping[str, Tensor],
    data: Tensor,
    rows: Mapping[str, Sequence[Coverage]],
) -> None:
    what, columns = ("classes", 5) if data.ndim > 2 else ("modes", 3)
    figure = plots.comparison_figure(sheets, data, columns=columns, most=len(data))
    lab.draw(figure, f"{bench.data}: uncurated samples of the first seed.", bench.key)
    shares = {name: torch.tensor([c.shares for c in those]).mean(0) for name, those in rows.items()}
    count = len(next(iter(shares.values())))
    bars = plots.bars_figure(
        {name: each.tolist() for name, each in shares.items()},
        [str(k) for k in range(count)],
        f"share of the samples in each of the {what}, {bench.where}",
        level=("equal shares", 1 / count),
    )
    caption = f"{bench.data}: shares of the {what}, mean over seeds."
    lab.draw(bars, caption, f"{bench.key}-{what}")


def _free(scale: Scale) -> dict[str, Training]:
    return {"gaussians": score_flow(BENCHES[scale]["gaussians"])}


ITEM = Item(
    "fig4",
    SOURCE,
    "Mode collapse of Score GANs",
    "Uncurated samples of a Score GAN on MNIST whose weights are EDM's, α = 2 and β = 1, in place of "
    "NCSN's, α = β = 1: strong mode collapse, intended. The paper takes the generator for its cause, "
    "as the models without one do not collapse.",
    {
        "smoke": Plan(benches("smoke", "gaussians", "digits"), 100, 16, _free("smoke")),
        "cpu": Plan(benches("cpu", "gaussians", "digits", "mnist"), free=_free("cpu")),
        "paper": Plan(benches("paper", "gaussians", "mnist"), 10_000),
    },
    measure,
    CLAIMS,
)
