"""GPM Figure 5: interpolations of latents, by four methods in four models.

Smoothness is measured in a classifier's features: the perceptual path length, the largest step of a path
as a share of the whole, and how often the predicted class changes. Particle models interpolate between
points of their prior and sample without noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from partikel.app.gallery import interpolated, on_device
from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.app.show.latent_paths import METHODS
from partikel.metrics import class_changes, default_classifier, path_smoothness
from partikel.metrics.evaluation import choose_features, chunk_size
from partikel.studies.benches import EDM, FLOW, FOUR, GAN, SCORE_GAN, Bench, benches
from partikel.studies.item import Item, Outcome, Table, log_ratios, spread
from partikel.studies.judgement import LOG, QUARTER, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.sheets import real_images

SOURCE = "GPM §C.3, Figure 5"
SHOWN = "spherical-cauchy-linear"
"""The method of the paper's figure."""
GENERATORS, PARTICLES = (GAN, SCORE_GAN), (EDM, FLOW)
SMOOTHNESS = {
    "length": (
        "perceptual path length",
        "Generators (GAN, Score GAN) interpolate more smoothly than particle models (EDM, Discriminator "
        "Flow), whatever the method: their paths are shorter.",
    ),
    "largest": (
        "largest step, as a share of the path",
        "Particle models change abruptly between consecutive steps of an interpolation, generators do not: "
        "their largest steps are smaller.",
    ),
    "changes": (
        "changes of class on a path",
        "Digits change their identity more often along the interpolations of particle models than of "
        "generators.",
    ),
}
"""What is measured on paths, in words, and what the paper says of it."""
CLAIMS = {
    key: Claim(
        text,
        SOURCE,
        f"{what}: by the method where it is least, log of the smoother particle model's over the rougher "
        "generator's",
        *(QUARTER, LOG),
    )
    for key, (what, text) in SMOOTHNESS.items()
}
Smoothness: TypeAlias = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
"""Model -> method -> figures for each seed."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data, of images with a classifier.
        pairs: paths of each model and method.
        points: on a path, its ends included.
        rows: paths shown.
        columns: points shown of each, at even distances.
        real: images that give the unit of length.
    """

    benches: tuple[Bench, ...]
    pairs: int = 100
    points: int = 17
    rows: int = 4
    columns: int = 9
    real: int = 2000


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Interpolate, measure and draw the sheets."""
    parts: dict[str, Outcome] = {}
    features = ""
    for bench in plan.benches:
        found: dict[str, dict[str, list[dict[str, float]]]] = {}
        sheets: dict[str, Tensor] = {}
        for name in FOUR:
            runs = [lab.run(bench.models[name], seed) for seed in bench.seeds]
            found[name] = {
                method: [_of_paths(plan, lab, run, method) for run in runs] for method in METHODS
            }
            sheets[name] = _sheet(plan, lab, runs[0])
            features = choose_features(None, runs[0].dataset).name
        places = torch.linspace(0, 1, plan.columns)
        lab.draw(
            plots.strips_figure(sheets, {n: [f"{x:.3g}" for x in places] for n in sheets}),
            f"{bench.data}: interpolations of latents ({SHOWN}), uncurated, first seed.",
            bench.key,
        )
        tables = [
            Table(
                f"{what.capitalize()}, {bench.where}",
                ("method", *FOUR),
                tuple((m, *(spread(_of(found, n, m, key)) for n in FOUR)) for m in METHODS),
            )
            for key, (what, _) in SMOOTHNESS.items()
        ]
        parts[bench.key] = Outcome(findings(bench, plan.pairs, found), tables, found)
    jump, even = plan.points - 1, 1 / (plan.points - 1)
    return Outcome.of(
        parts,
        {"paths": plan.pairs, "points of a path": plan.points, "features": features},
        [
            "The perceptual path length is 1 for a straight path at even speed between ends as far apart "
            f"as two test images (root mean square), and {jump} for one that jumps there in one step. The "
            f"largest step of an even path has the share {even:.3g}.",
        ],
    )


def _of_paths(plan: Plan, lab: Lab, run: Run, method: str) -> dict[str, float]:
    def work() -> dict[str, float]:
        with on_device(run) as device:
            data = run.dataset
            network = choose_features(None, data, device)
            classifier = default_classifier(data.name, data.shape, device)
            generator = lab.generator(0, "pairs")
            samples = interpolated(run, method, plan.pairs, plan.points, generator=generator)
            real = real_images(data, plan.real, lab.generator(0, "real")).to(device)
            with torch.no_grad():
                parts = samples.flatten(0, 1).split(chunk_size(data.shape))
                shape = samples.shape[:2]
                paths = torch.cat([network(some) for some in parts]).unflatten(0, shape)
                result = vars(path_smoothness(paths, network(real)))
                if classifier is not None:
                    logits = torch.cat([classifier.logits(some) for some in parts])
                    result["changes"] = class_changes(logits.argmax(1).unflatten(0, shape))
        return result

    return lab.once(f"{run.path.parent.name}-{run.path.name}-{method}", work)


def _sheet(plan: Plan, lab: Lab, run: Run) -> Tensor:
    with on_device(run):
        generator = lab.generator(0, "sheet")
        return interpolated(run, SHOWN, plan.rows, plan.columns, generator=generator).cpu()


def _of(found: Smoothness, name: str, method: str, key: str) -> list[float]:
    return [each[key] for each in found[name][method]]


def findings(bench: Bench, pairs: int, found: Smoothness) -> list[Finding]:
    """One for each measure: the roughest generator beside the smoothest particle model.

    Args:
        bench: the data.
        pairs: paths of each model and method; less than one change on all of them is not seen.
        found: figures of each of the four models.
    """
    result = []
    for key, (what, _) in SMOOTHNESS.items():
        ratios = []
        for m in METHODS:
            low = map(min, *(_of(found, name, m, key) for name in PARTICLES))
            high = map(max, *(_of(found, name, m, key) for name in GENERATORS))
            ratios.append(log_ratios([*low], [*high], 1 / pairs))
        said = ", ".join(f"{name} {spread(_of(found, name, SHOWN, key))}" for name in FOUR)
        agree = sum(min(each) > 0 for each in ratios)
        measured = (
            f"{what.capitalize()} ({SHOWN}): {said}. Every particle model is above every generator, in each "
            f"seed, by {agree} of the {len(METHODS)} methods."
        )
        least = [min(each) for each in zip(*ratios, strict=True)]
        result.append(CLAIMS[key].found(bench.where, measured, least))
    return result


ITEM = Item(
    "fig5",
    SOURCE,
    "Interpolations of latents",
    "Rows of samples between two latents of each of the four models on MNIST, by spherical Cauchy-linear "
    "interpolation; linear, spherical and Cauchy-linear ones lead to the same conclusion. Generators show "
    "smoother transitions, particle models abrupt changes of digit and shape.",
    {
        "smoke": Plan(benches("smoke", "digits"), 4, 5, 2, 5, 50),
        "cpu": Plan(benches("cpu", "digits", "mnist")),
        "paper": Plan(benches("paper", "mnist"), 500),
    },
    measure,
    CLAIMS,
)
