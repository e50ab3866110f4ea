"""GPM Figure 7a: quality of generation that is stopped early.

Free particles are measured after each eighth of their steps. A diffusion model's intermediate points
still carry the noise of their level; a Discriminator Flow is near the data early. For comparison EDM is
also stopped and then denoised at once, by one step of Euler's to σ = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from partikel.app.show import plots
from partikel.models import ParticleModel
from partikel.solvers import Dynamics, Solver, Step
from partikel.studies.benches import EDM, FLOW, Bench, benches
from partikel.studies.item import Item, Outcome, spread
from partikel.studies.judgement import LOG, QUARTER, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.panel import Panel, Points, measured

CLAIMS = {
    "nearer": Claim(
        "Stopped early, a Discriminator Flow is nearer to the data than EDM: it converges faster.",
        "GPM §4.3, §C.5, Figure 7a",
        "after half of the steps, log of EDM's distance over Discriminator Flow's",
        *(QUARTER, LOG),
    )
}
DENOISED = "EDM, then denoised"
STROKES = {
    name: plots.Stroke(plots.SERIES[color])
    for name, color in {EDM: 0, DENOISED: 3, FLOW: 1}.items()
}
HALF = 50.0
"""Percent of the steps at which the models are compared."""


@dataclass(frozen=True)
class Leaving(Solver):
    """A solver that leaves its path after some steps and goes to the end by one of Euler's.

    On EDM's path that step ends at the denoiser's output D(x, σ).

    Args:
        solver: of the first steps.
        after: how many they are.
    """

    solver: Solver
    after: int

    def step(self, dynamics: Dynamics, x: Tensor, step: Step) -> Tensor:
        """A step that knows nothing of earlier ones."""
        return self.advance(dynamics, x, step, None)[0]

    def advance(self, dynamics: Dynamics, x: Tensor, step: Step, memory: Any) -> tuple[Tensor, Any]:
        """A step of the solver, the last one to the end, or none."""
        assert dynamics.schedule is not None
        if step.number < self.after:
            return self.solver.advance(dynamics, x, step, memory)
        if step.number > self.after:
            return x, None
        return x + (dynamics.schedule.horizon - step.t) * dynamics.velocity(x, step.t), None


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        benches: models and data.
        shares: of the steps, after which generation stops.
    """

    benches: tuple[Bench, ...]
    shares: tuple[float, ...] = tuple(k / 8 for k in range(1, 9))


def _along(
    shares: tuple[float, ...], how: Callable[[ParticleModel, int], Mapping[str, Any]]
) -> Points:
    def points(model: ParticleModel) -> list[tuple[float, Mapping[str, Any]]]:
        return [(100 * s, how(model, max(1, round(s * model.steps)))) for s in shares]

    return points


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Measure and draw the curves of each data set."""
    stopped = _along(plan.shares, lambda model, stop: {"stop": stop})
    before = tuple(share for share in plan.shares if share < 1)
    denoised = _along(before, lambda model, stop: {"solver": Leaving(model.solver, stop)})
    points = {EDM: stopped, DENOISED: denoised, FLOW: stopped}
    parts = {}
    for bench in plan.benches:
        models = {name: bench.models[EDM] for name in (EDM, DENOISED)} | {FLOW: bench.models[FLOW]}
        panel = measured(lab, bench, models, points)
        figure = panel.curves("percent of the steps taken", strokes=STROKES)
        lab.draw(figure, f"{bench.data}: generation stopped early, mean over seeds.", bench.key)
        table = panel.places_table("steps taken", "{:.3g} %".format)
        parts[bench.key] = panel.outcome([finding(panel)], [table])
    notes = [
        "An EDM's steps are Heun's, at two evaluations of its network each, a Discriminator Flow's "
        "are Euler's at one: [fig7b](fig7b.md) compares at equal evaluations.",
        f"'{DENOISED}' is not in the paper: one more evaluation takes the stopped points to σ = 0, so "
        "that it shows how much of EDM's distance is the noise of intermediate points.",
    ]
    return Outcome.of(parts, notes=notes)


def finding(panel: Panel) -> Finding:
    """Of the two models after half of their steps."""
    flow, edm, denoised = (spread(panel.figures(n, place=HALF)) for n in (FLOW, EDM, DENOISED))
    return CLAIMS["nearer"].found(
        panel.where,
        f"After half of the steps the {panel.measure.label} is {flow} for Discriminator Flow and {edm} for "
        f"EDM ({denoised} when that is then denoised at once).",
        panel.ratios(EDM, FLOW, HALF),
    )


ITEM = Item(
    "fig7a",
    "GPM Figure 7a, §C.5",
    "Quality of generation that is stopped early",
    "The FID of EDM and Discriminator Flow on MNIST for intermediate distributions. Intermediate points "
    "of a diffusion model are noisy, so that Discriminator Flow converges faster.",
    {
        "smoke": Plan(benches("smoke", "gaussians", "digits"), (0.25, 0.5, 1.0)),
        "cpu": Plan(benches("cpu", "gaussians", "digits", "mnist")),
        "paper": Plan(benches("paper", "mnist")),
    },
    measure,
    CLAIMS,
)
