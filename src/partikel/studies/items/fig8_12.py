"""GPM Figures 8-12: the four models on Gaussians, with fields, potentials and both scores.

For free particles a picture is a moment of generation, for a generator a moment of its training. Beside
the pictures the energy distance is measured along the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from partikel.app.gallery import run_frames
from partikel.app.runs import Run
from partikel.app.show.animation import Frame, film_strip, render
from partikel.metrics import energy_distance
from partikel.models import free_particles
from partikel.studies.benches import BENCHES, EDM, FLOW, FOUR, GAN, SCORE_GAN, Bench
from partikel.studies.item import Item, Outcome, Table, spread
from partikel.studies.judgement import Claim
from partikel.studies.lab import Lab
from partikel.studies.panel import along, course, seeds_figure

NEAR = 0.05
"""Energy distance that counts as near: the data's own scatter is below .001, and one mode of five that
gets all of another's points costs more than .1."""
CLAIMS = {
    "faster": Claim(
        "Discriminator Flows converge faster than EDM towards the data distribution.",
        "GPM §C.6, Figures 8 and 9",
        f"percent of its own steps after which the energy distance stays below {NEAR:g} (100 where it does "
        "not), of EDM less that of Discriminator Flow",
        5.0,  # one of a Discriminator Flow's twenty steps
        "percent of the steps",
    )
}
ARROWS = "arrows: the field at the particles, on a scale of their own in every picture"
KINDS = {EDM: "sampling", FLOW: "sampling", GAN: "training", SCORE_GAN: "training"}
"""What percent are of."""
PICTURES = (
    (EDM, False, f"Figure 8, sampling by EDM; {ARROWS}."),
    (
        FLOW,
        False,
        "Figure 9, sampling by Discriminator Flow; shaded: the discriminator's potential, darker "
        "where the generator's loss is lower.",
    ),
    (GAN, False, "Figure 10, training of a GAN; shaded: the discriminator's potential."),
    (
        SCORE_GAN,
        False,
        "Figure 11, training of a Score GAN; arrows: the mean of its perturbed field.",
    ),
    (
        SCORE_GAN,
        True,
        "Figure 12, the same training seen from inside: outputs perturbed by noise of one σ, "
        "with the data score (blue) and minus the score of the generated law (brown).",
    ),
)
"""Models, whether the parts of the field are drawn, and captions; from Figure 8 on."""


@dataclass(frozen=True)
class Plan:
    """What is drawn and measured.

    Attributes:
        bench: the models, on Gaussians.
        frames: of an animation, at most.
        size: of it, in pixels.
        samples: of each energy distance.
    """

    bench: Bench
    frames: int = 32
    size: int = 320
    samples: int = 10_000


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Draw the models of the first seed, and measure all."""
    bench = plan.bench
    runs = {name: [lab.run(bench.models[name], seed) for seed in bench.seeds] for name in FOUR}
    first = {name: those[0] for name, those in runs.items()}
    curves = {name: [_curve(name, run, plan, lab) for run in those] for name, those in runs.items()}
    for number, (name, parts, caption) in enumerate(PICTURES, start=8):
        _draw(number, first[name], parts, caption, plan, lab)
    floor = lab.floor(first[EDM].dataset, plan.samples)
    lines = {
        f"{name}, {KINDS[name]}": along(
            [percent for percent, _ in each[0]], [[energy for _, energy in run] for run in each]
        )
        for name, each in curves.items()
    }
    figure = seeds_figure(
        lines,
        "percent of the steps of sampling, or of the iterations of training",
        f"energy distance, {bench.where}",
        log=True,
        level=("near", NEAR),
        floor=floor,
    )
    lab.draw(figure, "Energy distance along generation and training; mean and range.", "energy")
    reached = {name: [arrival(curve) for curve in each] for name, each in curves.items()}
    ends = {name: spread([curve[-1][1] for curve in each]) for name, each in curves.items()}
    finding = CLAIMS["faster"].found(
        bench.where,
        f"Share of the steps after which the energy distance stays below {NEAR:g}: "
        f"{_percent(reached[FLOW])} for Discriminator Flow, {_percent(reached[EDM])} for EDM. "
        f"At the end it is {ends[FLOW]} and {ends[EDM]}.",
        lead(reached[EDM], reached[FLOW]),
    )
    table = Table.of(
        f"Energy distance, {bench.where}",
        FOUR,
        {
            "model": str,
            "percent of": KINDS.get,
            f"below {NEAR:g} after": lambda name: _percent(reached[name]),
            "at the end": ends.get,
        },
    )
    steps = {name: run.model.steps for name, run in first.items() if run.model.steps is not None}
    notes = (
        f"EDM samples by {steps[EDM]} steps of Heun's method, Discriminator Flow by {steps[FLOW]} of "
        "Euler's, which cost half as much; percent are of each one's own steps.",
        "A generator's percent are of its training and say nothing about sampling, which is one call.",
    )
    values = {"near": NEAR, "floor": floor, "reached": reached, "curves": curves}
    protocol = {
        "samples": plan.samples,
        "reference": f"{plan.samples} fresh points",
        "floor": f"{floor:.2g}",
        "energy in training": "the runs' quick evaluations",
    }
    return Outcome((finding,), (table,), values, protocol, notes)


def _curve(name: str, run: Run, plan: Plan, lab: Lab) -> list[tuple[float, float]]:
    """(percent, energy distance) of free particles along generation, of a generator along training."""
    if run.model.steps is None:
        return course(run)
    seed = run.recipe.seed
    key = f"generation-{name.lower().replace(' ', '-')}-seed-{seed}"
    found = lab.once(key, lambda: generation(run, plan, lab, seed))
    return [(percent, energy) for percent, energy in found]


def lead(edm: Sequence[float], flow: Sequence[float]) -> list[float]:
    """How many percent earlier a Discriminator Flow arrives, seed by seed."""
    return [min(a, 100.0) - min(b, 100.0) for a, b in zip(edm, flow, strict=True)]


def generation(run: Run, plan: Plan, lab: Lab, seed: int) -> list[tuple[float, float]]:
    """(percent of the steps, energy distance) at every node of a particle model's path."""
    model = free_particles(run.model, "only free particles are followed while they are generated.")
    generator = lab.generator(seed, "generation")
    data = run.dataset.draw(plan.samples, "test", generator=generator).x
    start = model.prior.sample(plan.samples, generator=generator)
    return [
        (100 * state.step / model.steps, energy_distance(state.x, data))
        for state in model.stream(start, generator=generator, real=run.context())
    ]


def arrival(curve: Sequence[tuple[float, float]]) -> float:
    """Percent after which the energy distance stays at most :data:`NEAR`; infinite where it does not."""
    after = math.inf
    for percent, energy in reversed(curve):
        if not energy <= NEAR:
            break
        after = percent
    return after


def _percent(values: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):
        return f"never in {sum(map(math.isinf, values))} of {len(values)} seeds"
    return f"{spread(values)} %"


def _draw(number: int, run: Run, parts: bool, caption: str, plan: Plan, lab: Lab) -> None:
    """A film strip and an animation."""
    generator = lab.generator(0, "pictures", number)
    data = run.dataset.draw(1000, "validation", generator=generator).x
    frames = run_frames(run, generator=generator, frames=plan.frames, parts=parts)
    shown = frames if run.model.steps is not None else _earlier(frames, 8)
    strip = film_strip(shown, data, columns=4, rows=2, inches=2.4)
    lab.draw(strip, caption, f"{number}")
    kept = lab.keep(f"{number}.gif", f"Figure {number}, animated.")
    render(frames, kept, data, fps=8, size=plan.size)


def _earlier(frames: Sequence[Frame], count: int) -> list[Frame]:
    """Frames that are nearer to each other at the beginning of training, where more happens."""
    last = len(frames) - 1
    places = sorted({round(last * (k / (count - 1)) ** 1.6) for k in range(count)})
    return [frames[place] for place in places]


ITEM = Item(
    "fig8-12",
    "GPM Figures 8-12, §C.6",
    "The four models on Gaussians: fields, potentials, both scores",
    "EDM, Discriminator Flow, GAN and Score GAN on five Gaussians: moments of sampling or of training, "
    "with the directions that particles follow. Discriminator Flows are seen to converge faster than EDM.",
    {
        "smoke": Plan(BENCHES["smoke"]["gaussians"], 3, 96, 200),
        "cpu": Plan(BENCHES["cpu"]["gaussians"]),
        "paper": Plan(BENCHES["paper"]["gaussians"]),
    },
    measure,
    CLAIMS,
)
