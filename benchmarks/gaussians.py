"""Quality of the presets on the paper's Gaussians, with CPU seconds, over seeds.

    python benchmarks/gaussians.py [--presets edm-gaussians gan-gaussians ...] [--seeds 0 1 2]

Each preset is trained by ``partikel``'s own loop in one thread; 50,000 samples are compared with
50,000 fresh points of the data, beside the spread of data-vs-data draws of the same size. Writes one
results/gaussians-PRESET.json for each preset, so that an interrupted run keeps what it has.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, distances, one_thread, save  # isort: skip
import torch

from partikel.app.config import load_preset, make_recipe
from partikel.app.runs import Run, train_run
from partikel.data import open_dataset
from partikel.models import FlowMapModel
from partikel.recipes import Recipe
from partikel.streams import derive_seed
from partikel.targets import GaussianMixture

N = 50_000
PRESETS = (
    "edm-gaussians",
    "gan-gaussians",
    "score-gan-gaussians",
    "discriminator-flow-gaussians",
)


def generator(*path: object) -> torch.Generator:
    """A stream for one purpose."""
    return torch.Generator().manual_seed(derive_seed(0, "benchmark", *path))


def spread(draws: int = 12) -> dict[str, Any]:
    """Data-vs-data figures at N points: mean, standard deviation and largest."""
    dataset = open_dataset(make_recipe("edm").data)
    target = dataset.target
    assert isinstance(target, GaussianMixture)
    rows = []
    for i in range(draws):
        x = dataset.draw(N, generator=generator("data", i, 0)).x
        y = dataset.draw(N, generator=generator("data", i, 1)).x
        rows.append(distances(x, y, target))
    return {
        key: {
            "mean": statistics.mean(r[key] for r in rows),
            "sd": statistics.stdev(r[key] for r in rows),
            "largest": max(r[key] for r in rows),
        }
        for key in rows[0]
    }


def samplings(run: Run) -> dict[str, dict[str, Any]]:
    """How a run is sampled: as it is set, and as the reference's table also reports."""
    if run.recipe.name == "edm":
        return {"heun 28": {"steps": 28}, "heun 7": {"steps": 7}}
    if run.recipe.name == "discriminator-flow":
        steps = run.recipe.steps  # type: ignore[attr-defined]
        return {f"{steps} steps": {}, f"first {steps // 4} of {steps}": {"stop": steps // 4}}
    steps = getattr(run.recipe, "steps", None)
    if isinstance(run.model, FlowMapModel):
        return {"one call": {}, "2 calls": {"steps": 2}, "4 calls": {"steps": 4}}
    return {"one call" if steps is None else f"{steps} steps": {}}


def measure(run: Run) -> dict[str, dict[str, float]]:
    """Distances of every sampling of a run."""
    target = run.dataset.target
    assert isinstance(target, GaussianMixture)
    reference = run.dataset.draw(N, generator=generator("reference")).x
    found = {}
    for label, options in samplings(run).items():
        samples = run.sample(N, generator=generator("samples"), **options)
        found[label] = distances(samples, reference, target)
    return found


def one(preset: str, seed: int, folder: Path, shared: Path) -> dict[str, Any]:
    """Train and measure one preset at one seed."""
    loaded = load_preset(preset)
    recipe: Recipe = make_recipe(loaded.recipe, loaded.settings, {"seed": seed})
    recipe = dataclasses.replace(recipe, evaluate_every=None, checkpoint_every=recipe.iterations)
    required_seconds = 0.0
    if recipe.required is not None:
        required = dataclasses.replace(
            recipe.required, evaluate_every=None, checkpoint_every=recipe.required.iterations
        )
        trained = train_run(required, shared / f"{preset}-required", preset="required")
        required_seconds = trained.cpu_seconds
        recipe = dataclasses.replace(recipe, data_score=str(trained.path))  # type: ignore[call-arg]
    run = train_run(recipe, folder / f"{preset}-{seed}", preset=preset)
    return {
        "seed": seed,
        "iterations": run.step,
        "cpu_seconds": run.cpu_seconds,
        "required_cpu_seconds": required_seconds,
        "samplings": measure(run),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    one_thread()
    reference = RESULTS / "gaussians-data.json"
    if not reference.exists():
        save("gaussians-data", {"samples": N, "draws": 12, "data vs data": spread()})
    for preset in arguments.presets:
        with tempfile.TemporaryDirectory() as folder:
            rows = [one(preset, seed, Path(folder), Path(folder)) for seed in arguments.seeds]
        summary: dict[str, Any] = {
            "cpu_seconds": statistics.median(row["cpu_seconds"] for row in rows)
        }
        for label in rows[0]["samplings"]:
            values = [row["samplings"][label] for row in rows]
            summary[label] = {
                key: {
                    "mean": statistics.mean(v[key] for v in values),
                    "worst": (min if key in ("modes", "within_3sigma") else max)(
                        v[key] for v in values
                    ),
                }
                for key in values[0]
            }
        path = save(
            f"gaussians-{preset}",
            {"preset": preset, "samples": N, "summary": summary, "seeds": rows},
        )
        print(path, json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
