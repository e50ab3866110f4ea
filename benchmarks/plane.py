"""Quality against cost on the DiffFlow plane: new points beside the pure ends with their best solvers.

    python benchmarks/plane.py [--data gaussians] [--seeds 0 1 2]

Cost is in network passes of one sample: a forward is 1, an input gradient 2. The score is one trained
EDM, frozen, for every model that uses one; models with a discriminator are trained anew for each
number of steps. EDM is given its best solver and grid for each budget, chosen on other draws than
those it is measured on. Distances between 10,000 samples and 10,000 points.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import Any

from common import one_thread, save  # isort: skip
import torch

from partikel.config import load_preset, make_recipe
from partikel.data import Dataset, open_dataset
from partikel.metrics import energy_distance, sliced_wasserstein2
from partikel.models import Carrier, ParticleModel
from partikel.recipes import EDM, Recipe
from partikel.schedules import EDMSchedule, KarrasGrid
from partikel.solvers import SOLVERS
from partikel.streams import derive_seed
from partikel.training import Trainer
from partikel.training.ema import swapped_in

BUDGETS = (2, 4, 8, 14, 28)
N = 10_000
GRIDS = [(sigma_min, rho) for sigma_min in (0.002, 0.02, 0.1, 0.3) for rho in (3.0, 7.0)]
PURE = ("euler", "heun", "ddim", "dpmpp-2m")


def generator(*path: object) -> torch.Generator:
    """A stream for one purpose."""
    return torch.Generator().manual_seed(derive_seed(0, "plane", *path))


def measured(
    model: ParticleModel, dataset: Dataset, draw: object, **options: Any
) -> dict[str, float]:
    """Distances of a model's samples to the data, and the CPU seconds of drawing them."""
    reference = dataset.draw(N, generator=generator("reference", draw)).x
    started = time.process_time()
    samples = model.sample(N, generator=generator("samples", draw), **options)
    seconds = time.process_time() - started
    return {
        "energy": energy_distance(samples, reference),
        "sliced_w2": sliced_wasserstein2(samples, reference),
        "cpu_seconds": seconds,
    }


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


def steps_of(solver: str, passes: int) -> int:
    """Steps of an EDM sampler within so many passes; 0 if there are none."""
    return (passes + 1) // 2 if solver == "heun" else passes


def pure_edm(model: ParticleModel, dataset: Dataset) -> list[dict[str, Any]]:
    """EDM at each budget, by its best solver and grid of each kind."""
    schedule = model.schedule
    assert isinstance(schedule, EDMSchedule)
    rows: list[dict[str, Any]] = []
    for passes in BUDGETS:
        for name in PURE:
            steps, solver = steps_of(name, passes), SOLVERS[name]()
            found = []
            for sigma_min, rho in GRIDS:
                model.grid = KarrasGrid(schedule, sigma_min, rho)
                figures = measured(model, dataset, "choice", steps=steps, solver=solver)
                found.append((figures["energy"], sigma_min, rho))
            _, sigma_min, rho = min(found)
            model.grid = KarrasGrid(schedule, sigma_min, rho)
            figures = measured(model, dataset, "test", steps=steps, solver=solver)
            rows.append(
                {
                    "model": f"EDM, {name}",
                    "passes": passes,
                    "steps": steps,
                    "grid": {"sigma_min": sigma_min, "rho": rho},
                    **figures,
                }
            )
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="gaussians")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    one_thread()
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        loaded = load_preset(f"edm-{arguments.data}")
        edm = make_recipe(loaded.recipe, loaded.settings, {"seed": seed})
        assert isinstance(edm, EDM)
        dataset = open_dataset(edm.data)
        score, seconds = trained(edm, dataset)
        rows += [
            {**row, "seed": seed, "training_seconds": seconds} for row in pure_edm(score, dataset)
        ]
        for preset, passes_per_step in (
            (f"discriminator-flow-{arguments.data}", 2),
            (f"diffode-gan-{arguments.data}", 2),
            (f"diffusion-gan-{arguments.data}", 3),
            (f"slcd-{arguments.data}", 1),
        ):
            loaded = load_preset(preset)
            for passes in BUDGETS:
                steps = passes // passes_per_step
                if steps == 0:
                    continue
                recipe = make_recipe(loaded.recipe, loaded.settings, {"seed": seed, "steps": steps})
                if recipe.required is not None:
                    recipe = dataclasses.replace(recipe, score=edm)  # type: ignore[call-arg]
                model, seconds = trained(recipe, dataset, score)
                row = {
                    "model": preset,
                    "passes": steps * passes_per_step,
                    "steps": steps,
                    "seed": seed,
                    "training_seconds": seconds,
                    **measured(model, dataset, "test"),
                }
                rows.append(row)
                print(row, flush=True)
        save(f"plane-{arguments.data}", {"samples": N, "rows": rows, "best": best(rows)})


def best(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """For each budget, the models that fit it, by mean energy over seeds."""
    ranked: dict[int, list[dict[str, Any]]] = {}
    for budget in BUDGETS:
        models: dict[str, list[float]] = {}
        for row in rows:
            if row["passes"] <= budget:
                key = f"{row['model']} ({row['steps']} steps)"
                models.setdefault(key, []).append(row["energy"])
        means = sorted((statistics.mean(v), k) for k, v in models.items())
        ranked[budget] = [{"model": k, "energy": e} for e, k in means[:6]]
    return ranked


if __name__ == "__main__":
    main()
