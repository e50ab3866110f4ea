"""Few steps of trained runs: the run's own grid, the best of fixed grids, placed nodes, and the defaults.

    python benchmarks/few_steps.py PRESET RUN [RUN ...]             # its training seeds
    python benchmarks/few_steps.py PRESET RUN [RUN ...] --peers     # beside k-diffusion and diffusers

At 4, 8 and 16 evaluations, by DPM-Solver++(2M) and UniPC of order 2. The best fixed grid is Karras's by
lowest level and exponent, beyond the geometric one too; the search has no edges. It is chosen by the
distance to training data. Placed nodes of images are chosen likewise, those of points by where paths end.
"default" is what --steps takes with nothing tuned, the preset's nodes; "rule" what it takes of a run of
one's own. Figures are against the test split, of training seeds that took no part in a choice.

Peers: their recommended levels by their samplers, on the same denoiser from the same highest level.
k-diffusion's grids are formulas of the literature (Karras et al. 2022, eq. 5, with ρ = 7; levels of equal
ratios), with the lowest level 0.01 of its configurations, by this library's samplers of the same methods;
its polyexponential grid is the exponential one at its default exponent. The schedulers of diffusers choose
their levels and make their steps themselves. Heun's method has one evaluation less than is allowed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import RESULTS, one_thread, save  # isort: skip
import torch
from torch import Tensor

from partikel import load
from partikel.app.runs import Run, draw_samples
from partikel.app.tuning import tune_run
from partikel.data import Dataset
from partikel.metrics import FeatureSet, energy_distance, extract_features, frechet_distance
from partikel.metrics.evaluation import choose_features
from partikel.metrics.measures import main_measure
from partikel.models import Carrier, ParticleModel, Sampling, place_nodes
from partikel.models.placing import few_steps
from partikel.schedules import GeometricGrid, KarrasGrid, Nodes
from partikel.solvers import DPMSolver2M, Heun, Solver, UniPC
from partikel.streams import derive_seed

BY: dict[str, Callable[[], Solver]] = {"dpmpp-2m": DPMSolver2M, "unipc-2": UniPC}
CELLS = ["14:heun", "4:dpmpp-2m", *(f"{steps}:unipc-2" for steps in (4, 8, 16))]
PEERS = (4, 6, 8, 14, 28)
LOWEST = 0.01
"""Of k-diffusion's configurations."""


def generator(*path: object) -> torch.Generator:
    """A stream for one purpose."""
    return torch.Generator().manual_seed(derive_seed(0, "few steps", *path))


class Protocol:
    """How samples of a data set are measured, against its training data ("choice") or its test data ("test").

    Args:
        dataset: points or images.
        n: samples; of points, as many of the data each time. Images are compared with the whole split,
            or its first 10,000.
        chosen: samples for a choice.
        seeds: of the samples that are measured.
    """

    def __init__(
        self, dataset: Dataset, n: int, chosen: int, seeds: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        self.dataset, self.n, self.chosen, self.seeds = dataset, n, chosen, seeds
        self.measure = main_measure(dataset.shape).key
        if len(dataset.shape) > 1:
            self.network = choose_features(None, dataset)
            self.references = {
                "choice": self._seen(self._all("train")),
                "test": self._seen(self._all("test")),
            }

    def distance(self, samples: Tensor, draw: str, seed: int = 0) -> float:
        """Of samples to the draw's reference; infinite where samples are."""
        if not samples.isfinite().all():
            return math.inf
        if len(self.dataset.shape) > 1:
            return frechet_distance(self._seen(samples), self.references[draw])
        source = generator("reference", draw, seed)
        return energy_distance(samples, self.dataset.draw(len(samples), generator=source).x)

    def measured(self, draw: Callable[[int, torch.Generator], Tensor]) -> list[float]:
        """Distances to the test data of samples of each seed."""
        return [
            self.distance(draw(self.n, generator("samples", seed)), "test", seed)
            for seed in self.seeds
        ]

    def of(self, model: Carrier, sampling: Sampling, real: Tensor | None = None) -> float:
        """The mean of :meth:`measured` for a model."""
        found = self.measured(lambda n, g: draw_samples(model, n, g, real, sampling=sampling))
        return sum(found) / len(found)

    def choice(self, model: Carrier, sampling: Sampling) -> float:
        """The distance to training data, for a choice."""
        source = generator("samples", "choice")
        return self.distance(draw_samples(model, self.chosen, source, sampling=sampling), "choice")

    def best_fixed(self, model: Carrier, steps: int, solver: Solver) -> Nodes:
        """The grid of two numbers whose samples are nearest to training data."""
        return self.placed(model, steps, solver, fixed=True)

    def placed(self, model: Carrier, steps: int, solver: Solver, **options: Any) -> Nodes:
        """Nodes placed by the distance to training data."""
        return place_nodes(
            model,
            steps,
            solver=solver,
            distance=lambda x: self.distance(x, "choice"),
            starts=2 * self.chosen,
            seed=1,
            **options,
        ).nodes

    def _all(self, split: str) -> Tensor:
        n = self.dataset.at_most(10_000, split)
        return self.dataset.draw(n, split, generator=generator("reference", split)).x

    def _seen(self, images: Tensor) -> FeatureSet:
        return FeatureSet.of(self.network, extract_features(self.network, images))


def protocol_of(dataset: Dataset) -> Protocol:
    """10,000 points, 2,000 digits or 10,000 images; of three seeds, but for 10,000 images."""
    if len(dataset.shape) == 1:
        return Protocol(dataset, 10_000, 5000)
    if dataset.name == "digits":
        return Protocol(dataset, 2000, 1000)
    return Protocol(dataset, 10_000, 1000, seeds=(0,))


def rows(
    run: Run,
    protocol: Protocol,
    cells: list[tuple[int, str]],
    placing: bool,
    fixed: dict[tuple[int, str], Nodes],
) -> dict[str, Any]:
    """One training seed: steps and solvers, each by all grids; a fixed grid that is known is not searched."""
    model, found = run.model, {}

    def measure(key: str, sampling: Sampling) -> None:
        assert sampling.grid is not None
        found[key] = protocol.of(model, sampling)
        found[f"{key} at"] = sampling.grid.times
        print(f"{key:32s} {found[key]:.4g}", flush=True)

    for steps, name in cells:
        if name == "heun":  # the run's own way
            found[f"{steps} {name} own"] = protocol.of(model, Sampling(Nodes(steps)))
            continue
        solver, key = BY[name](), f"{steps} {name}"
        plain = Sampling(Nodes(steps), solver=solver)
        measure(f"{key} own", plain)
        nodes = fixed.get((steps, name)) or protocol.best_fixed(model, steps, solver)
        measure(f"{key} best fixed", replace(plain, grid=nodes))
        if placing:
            started = time.process_time()
            times = tuple(tune_run(run, steps, solver=name)["times"])
            found[f"{key} seconds"] = time.process_time() - started
            measure(f"{key} placed", replace(plain, grid=Nodes(times=times)))
        default = without_own(run).sampling(steps=steps, solver=solver)
        if default.grid != plain.grid:
            measure(f"{key} default", default)
        measure(f"{key} rule", few_steps(model, plain, run.data.sigma_data))
    return found


def peers(run: Run, protocol: Protocol, placing: bool) -> dict[str, list[float]]:
    """Row by row, the distance at each number of evaluations."""
    found: dict[str, list[float]] = {}
    for name, draw in samplers(run, placing):
        found[name] = []
        for count in PEERS:
            values = protocol.measured(lambda n, g, count=count, draw=draw: draw(n, g, count))
            found[name].append(sum(values) / len(values))
        print(f"{name:50s}", *(f"{v:.4g}" for v in found[name]), flush=True)
    return found


Draw = Callable[[int, torch.Generator, int], Tensor]
"""(n, generator, evaluations) -> samples."""


def samplers(run: Run, placing: bool) -> Iterator[tuple[str, Draw]]:
    """Ours, then the peers'."""
    model = run.model
    assert isinstance(model, ParticleModel)
    assert model.schedule is not None

    def ours(sampling: Callable[[int], Sampling]) -> Draw:
        return lambda n, g, count: draw_samples(model, n, g, sampling=sampling(count))

    known: dict[int, Sampling] = {}

    def placed(count: int) -> Sampling:
        if count not in known:
            found = Sampling(Nodes(count), solver=UniPC())
            if len(run.data.shape) == 1 or count <= 8:
                tune_run(run, count)
                found = run.sampling(steps=count)
            known[count] = found
        return known[count]

    def by_grid(rule: Any, kind: type[Solver]) -> Callable[[int], Sampling]:
        def sampling(count: int) -> Sampling:
            steps = count // 2 if kind is Heun else count  # 2N - 1 evaluations
            return Sampling(Nodes(steps, rule), solver=kind())

        return sampling

    default = without_own(run)
    if placing:
        yield "partikel, placed for the run", ours(placed)

    def by_default(count: int) -> Sampling:
        found = default.sampling(
            steps=count
        )  # by a rule for few steps, or Heun's of twice as many calls
        return Sampling(Nodes(count // 2)) if found.solver is None else found

    yield "partikel, default", ours(by_default)
    grids = {
        "Karras, ρ = 7": KarrasGrid(model.schedule, LOWEST),
        "exponential": GeometricGrid(model.schedule, LOWEST),
    }
    for grid, rule in grids.items():
        for kind in (Heun, DPMSolver2M, UniPC):
            yield f"k-diffusion, {grid}, {kind.__name__}", ours(by_grid(rule, kind))
    yield from by_diffusers(model, run.data.sigma_data)


def by_diffusers(model: ParticleModel, sigma_data: float) -> Iterator[tuple[str, Draw]]:
    """The schedulers of diffusers, with their own choices of levels."""
    import diffusers

    assert model.schedule is not None
    highest = model.schedule.sigma_max
    low, last = 1e-4, 0.5  # the last beta of DDPM's even ones that reach the model's highest level
    for _ in range(60):
        middle = (low + last) / 2
        betas = torch.linspace(1e-4, middle, 1000, dtype=torch.float64)
        reached = -(-betas).log1p().sum() > math.log1p(highest**2)
        low, last = (low, middle) if reached else (middle, last)
    options: dict[str, dict[str, Any]] = {}
    for name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        for grid in ("karras", "exponential"):
            made = {"sigma_max": highest, "sigma_data": sigma_data, "sigma_schedule": grid}
            options[f"{name}, {grid}"] = made
    for grid in ("its own", "karras", "exponential", "beta"):
        made = {"beta_end": last, "prediction_type": "sample"}
        own = {} if grid == "its own" else {f"use_{grid}_sigmas": True}
        options[f"UniPCMultistepScheduler, {grid}"] = made | own
    for name, each in options.items():
        kind = getattr(diffusers, name.partition(",")[0])
        yield f"diffusers, {name}", _followed(model, kind(**each))


def _followed(model: ParticleModel, scheduler: Any) -> Draw:
    """Samples by a scheduler's steps, of x scaled as it scales it, from the model's D."""
    edm = hasattr(scheduler, "precondition_outputs")
    schedule = model.schedule
    assert schedule is not None

    def draw(n: int, g: torch.Generator, count: int) -> Tensor:
        scheduler.set_timesteps(count)
        scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True  # x is scaled here
        levels = scheduler.sigmas.tolist()
        x = model.start(n, g)  # at σ_max
        scale = 1.0 if edm else math.sqrt(1 + levels[0] ** 2)
        y = x * (levels[0] / schedule.sigma_max) / scale
        for level, t in zip(levels, scheduler.timesteps, strict=False):
            scale = 1.0 if edm else math.sqrt(1 + level**2)
            told = _denoised(model, y * scale, level)
            if edm:  # the scheduler asks for the network behind D
                level_ = torch.tensor(level)
                zero = scheduler.precondition_outputs(y, torch.zeros_like(y), level_)
                one = scheduler.precondition_outputs(y, torch.ones_like(y), level_)
                told = (told - zero) / (one - zero)
            y = scheduler.step(told, t, y, return_dict=False)[0]
        return y

    return draw


@torch.no_grad()
def _denoised(model: ParticleModel, x: Tensor, level: float) -> Tensor:
    """D(x, σ) of a model along EDM's path, whose velocity is (D - x)/σ."""
    assert model.schedule is not None
    time = torch.tensor(max(0.0, model.schedule.sigma_max - level))
    parts = [some + level * model.velocity(some, time) for some in x.split(1000)]
    return torch.cat(parts)


def without_own(run: Run) -> Run:
    """The run as if nothing had been tuned."""
    return replace(run, path=Path("no such folder"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--cells", nargs="+", default=CELLS, help="as 4:unipc-2")
    parser.add_argument(
        "--fixed-on", help="run that the fixed grids are chosen on, instead of each"
    )
    parser.add_argument(
        "--keep-fixed", action="store_true", help="fixed grids as in the results of before"
    )
    parser.add_argument("--samples", type=int, help="instead of the protocol's")
    parser.add_argument("--no-placing", action="store_true", help="the presets' nodes only")
    given = parser.parse_args()
    one_thread()
    opened = [load(run) for run in given.runs]
    protocol = protocol_of(opened[0].dataset)
    protocol.n = given.samples or protocol.n
    split = [each.split(":") for each in given.cells]
    cells = [(int(steps), name) for steps, name in split]
    fixed: dict[tuple[int, str], Nodes] = {}
    if given.keep_fixed:
        before = json.loads((RESULTS / f"few-steps-{given.name}.json").read_text())["runs"][0]
        times = {(k, name): before.get(f"{k} {name} best fixed at") for k, name in cells}
        fixed = {cell: Nodes(times=tuple(found)) for cell, found in times.items() if found}
    if given.fixed_on is not None:
        other = load(given.fixed_on).model
        searched = [(k, name) for k, name in cells if name in BY]
        fixed = {(k, name): protocol.best_fixed(other, k, BY[name]()) for k, name in searched}
    if given.peers:
        protocol.seeds = protocol.seeds[:1]
    record: dict[str, Any] = {
        "measure": protocol.measure,
        "samples": protocol.n,
        "evaluation_seeds": protocol.seeds,
        "runs": [],
        **({"evaluations": PEERS} if given.peers else {"cells": cells}),
    }
    name = f"few-steps-{'peers-' if given.peers else ''}{given.name}"
    for run in opened:
        placing = not given.no_placing
        made = (
            peers(run, protocol, placing)
            if given.peers
            else rows(run, protocol, cells, placing, fixed)
        )
        record["runs"].append(made)
        print(save(name, record), flush=True)


if __name__ == "__main__":
    main()
