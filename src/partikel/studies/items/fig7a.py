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
from partikel.studies.curves import Line, Points, curves_of, measure_curves, outcome_of
from partikel.studies.item import Finding, Item, Outcome, spread
from partikel.studies.lab import Lab

CLAIM = "Stopped early, a Discriminator Flow is nearer to the data than EDM: it converges faster."
DENOISED = "EDM, then denoised"
STROKES = {
    name: plots.Stroke(plots.SERIES[color])
    for name, color in {EDM: 0, DENOISED: 3, FLOW: 1}.items()
}
HALF = 0.5
"""Share of the steps at which the models are compared."""


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
    parts = {}
    for bench in plan.benches:
        edm = bench.models[EDM]
        lines = {
            EDM: Line(edm, stopped),
            DENOISED: Line(edm, denoised),
            FLOW: Line(bench.models[FLOW], stopped),
        }
        found = measure_curves(lab, bench, lines)
        figure = curves_of(found, bench, "percent of the steps taken", strokes=STROKES)
        lab.draw(figure, f"{bench.data}: generation stopped early, mean over seeds.", bench.key)
        half = 100 * HALF
        finding = Finding.of(
            CLAIM,
            "GPM §4.3, §C.5, Figure 7a",
            bench.where,
            f"After half of the steps the {found.unit} is {spread(found.column(FLOW, half))} for "
            f"Discriminator Flow and {spread(found.column(EDM, half))} for EDM "
            f"({spread(found.column(DENOISED, half))} when that is then denoised at once).",
            found.ratios(EDM, FLOW, half),
            found.noise,
        )
        percent = ("percent", [100 * share for share in plan.shares])
        written = "{:.3g} %".format
        parts[bench.key] = outcome_of(found, bench, percent, [finding], "steps taken", written)
    notes = [
        "An EDM's steps are Heun's, at two evaluations of its network each, a Discriminator Flow's "
        "are Euler's at one: [fig7b](fig7b.md) compares at equal evaluations.",
        f"'{DENOISED}' is not in the paper: one more evaluation takes the stopped points to σ = 0, so "
        "that it shows how much of EDM's distance is the noise of intermediate points.",
    ]
    return Outcome.of(parts, notes=notes)


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
)
