"""Quality against cost on the DiffFlow plane: new points beside the pure ends with their best solvers.

    python benchmarks/plane.py [--data gaussians] [--seeds 0 1 2]

Cost is in network passes for one sample: a forward is 1, an input gradient 2. The score is one trained
EDM, frozen, for every model that uses one. At each budget every model gets its best setting, chosen on
other draws than those it is measured on: EDM its solver's grid, Stochastic Langevin Churn (the score
alone at g² = 2) its λ² and grid, models with a discriminator, trained anew for each number of steps,
their step size (η/N, or λ²). Discriminator Flow is also measured stopped early, as it was trained.

Points: energy distance of 10,000 samples to 10,000 points. Digits: Fréchet distance of 2,000 samples
to the test images on the shipped digits network (choices: to the training images).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

from common import one_thread, save  # isort: skip
import torch
from torch import Tensor

from partikel.app.config import load_preset, make_recipe
from partikel.data import Dataset, open_dataset
from partikel.diffflow import DiffFlow
from partikel.metrics import FeatureSet, energy_distance, extract_features, frechet_distance
from partikel.metrics.evaluation import choose_features
from partikel.metrics.measures import main_measure
from partikel.models import Carrier, ParticleModel
from partikel.recipes import EDM, Recipe
from partikel.recipes.base import score_in
from partikel.schedules import EDMSchedule, KarrasGrid
from partikel.solvers import SOLVERS
from partikel.streams import derive_seed
from partikel.training import Trainer
from partikel.training.ema import swapped_in

BUDGETS = (2, 4, 8, 14, 28)
GRIDS = [(sigma_min, rho) for sigma_min in (0.002, 0.02, 0.1, 0.3) for rho in (3.0, 7.0)]
PURE = ("euler", "heun", "ddim", "dpmpp-2m")
CHURN = (0.25, 0.5, 1.0, 1.5, 1.7, 1.9)
STEP_SIZES = {"gaussians": (0.7, 1.4, 2.8), "digits": (1.0, 2.5)}
"""η/N of models whose particles follow a discriminator alone."""

Row = dict[str, Any]


class Protocol:
    """How samples of a data set are measured."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.images = len(dataset.shape) > 1
        self.n = 2_000 if self.images else 10_000
        self.measure = main_measure(dataset.shape).key
        if self.images:
            self.network = choose_features(None, dataset)
            self.references = {
                "choice": self._seen(self._all("train")),
                "test": self._seen(self._all("test")),
            }

    def __call__(self, model: ParticleModel, draw: str, **options: Any) -> Row:
        """Distance of a model's samples to the data, and the CPU seconds of drawing them."""
        started = time.process_time()
        samples = model.sample(self.n, generator=generator("samples", draw), **options)
        seconds = time.process_time() - started
        return {self.measure: self.distance(samples, draw), "cpu_seconds": seconds}

    def distance(self, samples: Tensor, draw: str) -> float:
        """Of samples to the draw's reference; infinite where samples are."""
        if not samples.isfinite().all():
            return float("inf")
        if self.images:
            return frechet_distance(self._seen(samples), self.references[draw])
        reference = self.dataset.draw(self.n, generator=generator("reference", draw)).x
        return energy_distance(samples, reference)

    def _all(self, split: str) -> Tensor:
        size = self.dataset.size(split)
        assert size is not None
        return self.dataset.draw(size, split, generator=generator("reference", split)).x

    def _seen(self, images: Tensor) -> FeatureSet:
        return FeatureSet.of(self.network, extract_features(self.network, images))


def generator(*path: object) -> torch.Generator:
    """A stream for one purpose."""
    return torch.Generator().manual_seed(derive_seed(0, "plane", *path))


def trained(recipe: Recipe, dataset: Dataset, score: Carrier | None = None) -> tuple[Any, float]:
    """A model with its averaged weights, and the CPU seconds of training."""
    system = recipe.compose(dataset, score)
    if not system.phases:
        return system.model.eval(), 0.0
    trainer = Trainer(
        system.model,
        dataset,
        system.phases,
        iterations=recipe.iterations,
        seed=recipe.seed,
        ema=recipe.ema,
    )
    for _ in trainer.run():
        pass
    with swapped_in(system.model.sampled, trainer.average):
        weights = {k: v.clone() for k, v in system.model.state_dict().items()}
    system.model.load_state_dict(weights)
    return system.model.eval(), trainer.cpu_seconds


def chosen(protocol: Protocol, candidates: Iterable[tuple[Row, ParticleModel, Row]]) -> Row:
    """The best of (setting, model, options of its sampling) on the choosing draw, measured on the other.

    Candidates may be one model whose settings change as they are handed out, so the best one's own
    figure of the test draw is taken at once.
    """
    best: tuple[float, Row] | None = None
    for setting, model, options in candidates:
        value = protocol(model, "choice", **options)[protocol.measure]
        if best is None or value < best[0]:
            best = (value, {**setting, **protocol(model, "test", **options)})
    assert best is not None
    return best[1]


def score_alone(model: ParticleModel, protocol: Protocol) -> Iterator[Row]:
    """EDM by each solver, and Stochastic Langevin Churn, at each budget."""
    schedule = model.schedule
    assert isinstance(schedule, EDMSchedule)
    s_p = score_in(model.field)

    def with_grids(name: str, steps: int) -> Iterator[tuple[Row, ParticleModel, Row]]:
        for sigma_min, rho in GRIDS:
            model.grid = KarrasGrid(schedule, sigma_min, rho)
            grid = {"sigma_min": sigma_min, "rho": rho}
            yield grid, model, {"steps": steps, "solver": SOLVERS[name]()}

    def churned(steps: int) -> Iterator[tuple[Row, ParticleModel, Row]]:
        for lambda2 in CHURN:
            flow = DiffFlow.reverse(schedule, g2=2.0, lambda2=lambda2)
            for sigma_min, rho in GRIDS:
                point = ParticleModel(
                    flow.field(s_p),
                    flow.prior(protocol.dataset.shape),
                    steps=steps,
                    schedule=schedule,
                    grid=KarrasGrid(schedule, sigma_min, rho),
                    diffusion=flow.diffusion,
                )
                yield {"lambda2": lambda2, "sigma_min": sigma_min, "rho": rho}, point, {}

    for passes in BUDGETS:
        for name in PURE:
            steps = (passes + 1) // 2 if name == "heun" else passes
            row = chosen(protocol, with_grids(name, steps))
            yield {"model": f"EDM, {name}", "passes": passes, "steps": steps, **row}
        row = chosen(protocol, churned(passes))
        yield {"model": "SLCD", "passes": passes, "steps": passes, **row}


def with_discriminator(
    preset: str,
    settings: list[Row],
    passes_per_step: int,
    seed: int,
    protocol: Protocol,
    **score: Any,
) -> Iterator[Row]:
    """A preset trained for each budget's number of steps, with the best of the given settings."""
    loaded = load_preset(preset)
    name = preset.removesuffix(f"-{protocol.dataset.name}")
    for passes in BUDGETS:
        steps = passes // passes_per_step
        if steps == 0:
            continue
        seconds: list[float] = []

        def candidates(
            steps: int = steps, seconds: list[float] = seconds
        ) -> Iterator[tuple[Row, ParticleModel, Row]]:
            for setting in settings:
                values = {k: v * steps if k == "eta" else v for k, v in setting.items()}
                recipe = make_recipe(
                    loaded.recipe, loaded.settings, {"seed": seed, "steps": steps, **values}
                )
                if score:
                    recipe = dataclasses.replace(recipe, score=score["recipe"])  # type: ignore[call-arg]
                model, cost = trained(recipe, protocol.dataset, score.get("model"))
                seconds.append(cost)
                yield values, model, {}

        row = chosen(protocol, candidates())
        yield {
            "model": name,
            "passes": steps * passes_per_step,
            "steps": steps,
            "training_seconds": statistics.mean(seconds),
            **row,
        }


def stopped_early(preset: str, seed: int, protocol: Protocol) -> Iterator[Row]:
    """A preset as it was trained, sampled by the first of its steps only."""
    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings, {"seed": seed})
    model, seconds = trained(recipe, protocol.dataset)
    for passes in (*BUDGETS, 2 * model.steps):
        stop = min(passes // 2, model.steps)
        yield {
            "model": f"discriminator-flow, first of {model.steps}",
            "passes": 2 * stop,
            "steps": stop,
            "training_seconds": seconds,
            **protocol(model, "test", stop=stop),
        }


def measured(seed: int, data: str, protocol: Protocol) -> Iterator[Row]:
    """Every row of one seed."""
    loaded = load_preset(f"edm-{data}")
    edm = make_recipe(loaded.recipe, loaded.settings, {"seed": seed})
    assert isinstance(edm, EDM)
    score, seconds = trained(edm, protocol.dataset)
    for row in score_alone(score, protocol):
        yield {**row, "training_seconds": seconds}
    yield from stopped_early(f"discriminator-flow-{data}", seed, protocol)
    step_sizes: list[Row] = [{"eta": size} for size in STEP_SIZES[data]]
    yield from with_discriminator(f"discriminator-flow-{data}", step_sizes, 2, seed, protocol)
    yield from with_discriminator(f"diffode-gan-{data}", step_sizes, 2, seed, protocol)
    points: list[Row] = [{"lambda2": 1.0}, {"lambda2": 0.5}]
    yield from with_discriminator(
        f"diffusion-gan-{data}", points, 3, seed, protocol, recipe=edm, model=score
    )


def best(rows: list[Row], measure: str) -> dict[int, list[Row]]:
    """For each budget, the models that fit it, by their mean over seeds, best first."""
    ranked: dict[int, list[Row]] = {}
    for budget in BUDGETS:
        models: dict[str, list[float]] = {}
        for row in rows:
            if row["passes"] <= budget:
                key = f"{row['model']} ({row['steps']} steps)"
                models.setdefault(key, []).append(row[measure])
        means = sorted((statistics.mean(v), k) for k, v in models.items())
        ranked[budget] = [{"model": k, measure: value} for value, k in means[:8]]
    return ranked


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="gaussians", choices=sorted(STEP_SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    one_thread()
    protocol = Protocol(open_dataset(make_recipe("edm", {"data": {"name": arguments.data}}).data))
    rows: list[Row] = []
    for seed in arguments.seeds:
        for row in measured(seed, arguments.data, protocol):
            rows.append({"seed": seed, **row})
            print(rows[-1], flush=True)
            result = {"samples": protocol.n, "rows": rows, "best": best(rows, protocol.measure)}
            save(f"plane-{arguments.data}", result)


if __name__ == "__main__":
    main()
