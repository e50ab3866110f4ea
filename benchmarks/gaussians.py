"""Quality of the presets on the paper's Gaussians, with CPU seconds, over seeds.

    python benchmarks/gaussians.py [--presets edm-gaussians gan-gaussians ...] [--seeds 0 1 2]
    python benchmarks/gaussians.py --distil --presets edm-gaussians discriminator-flow-gaussians

Each preset is trained by ``partikel``'s own loop in one thread; 50,000 samples are compared with
50,000 fresh points of the data, beside the spread of data-vs-data draws of the same size. Writes one
results/gaussians-PRESET.json for each preset, so that an interrupted run keeps what it has. With --distil
each is then distilled, and the flow map is measured beside it, in results/gaussians-PRESET-distilled.json; a
teacher with noise is measured as the ODE that is distilled, too. With --runs, FOLDER/PRESET/seed-N are taken
where they are there, and trained to there where not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, cpu_seconds, distances, one_thread, save  # isort: skip
import torch

from partikel.app.config import load_preset, make_recipe
from partikel.app.gallery import distillation_of
from partikel.app.runs import Run, load, train_run
from partikel.data import open_dataset
from partikel.models import FlowMapModel, ParticleModel
from partikel.recipes import Recipe
from partikel.recipes.flow_map import deterministic
from partikel.schedules import Nodes
from partikel.streams import derive_seed
from partikel.studies.units import unit
from partikel.targets import GaussianMixture

N = 50_000
PRESETS = (
    "edm-gaussians",
    "gan-gaussians",
    "score-gan-gaussians",
    "discriminator-flow-gaussians",
)

MAP = {"batch": 128, "iterations": 4000, "optimizer": {"lr": 3e-3, "decay": "cosine"}}
"""Settings of a distillation by the Lagrangian equation; ends of steps are learned as the recipe says."""


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
        few = {f"{steps} evaluations, default": {"steps": steps} for steps in (4, 8)}
        return {
            "heun 28": {},
            "heun 7": {"grid": Nodes(7)},
            **few,
        }  # both of Heun's on its own grid
    if run.recipe.name == "discriminator-flow":
        steps = run.recipe.steps  # type: ignore[attr-defined]
        return {f"{steps} steps": {}, f"first {steps // 4} of {steps}": {"stop": steps // 4}}
    steps = getattr(run.recipe, "steps", None)
    if isinstance(run.model, FlowMapModel):
        one = {"one call": {}}
        return one if run.model.one_call else {**one, "4 calls": {"steps": 4}}
    return {"one call" if steps is None else f"{steps} steps": {}}


def measure(run: Run) -> dict[str, dict[str, float]]:
    """Distances of every sampling of a run."""
    return {
        label: compared(run, run.sample(N, generator=generator("samples"), **options))
        for label, options in samplings(run).items()
    }


def compared(run: Run, samples: torch.Tensor) -> dict[str, float]:
    """Distances of samples to fresh points of a run's data."""
    target = run.dataset.target
    assert isinstance(target, GaussianMixture)
    reference = run.dataset.draw(N, generator=generator("reference")).x
    return distances(samples, reference, target)


def trained(preset: str, seed: int, folder: Path) -> tuple[Run, float]:
    """A preset's run at one seed, and the CPU seconds of what it builds on, trained unless it is there."""
    path = folder / preset / f"seed-{seed}"
    if path.exists():
        return load(path), 0.0
    loaded = load_preset(preset)
    recipe: Recipe = make_recipe(loaded.recipe, loaded.settings, {"seed": seed})
    recipe = dataclasses.replace(recipe, evaluate_every=None, checkpoint_every=recipe.iterations)
    required_seconds = 0.0
    if recipe.required is not None:
        required = dataclasses.replace(
            recipe.required, evaluate_every=None, checkpoint_every=recipe.required.iterations
        )
        built_on = train_run(required, folder / f"{preset}-required", preset="required")
        required_seconds = built_on.cpu_seconds
        recipe = dataclasses.replace(recipe, data_score=str(built_on.path))  # type: ignore[call-arg]
    return train_run(recipe, path, preset=preset), required_seconds


def one(preset: str, seed: int, folder: Path, distil: bool) -> dict[str, Any]:
    """Train and measure one preset at one seed, or its flow map beside it."""
    run, required_seconds = trained(preset, seed, folder)
    found = {} if distil else measure(run)
    if distil:
        teacher, required_seconds = run, run.cpu_seconds
        assert isinstance(teacher.model, ParticleModel)
        settings = MAP if run.recipe.name in ("edm", "flow-matching") else {}
        settings = {**settings, "seed": seed, "evaluate_every": None}
        path = folder / f"{preset}-distilled" / f"seed-{seed}"
        run = train_run(distillation_of(teacher, settings), path, preset=f"{preset}-distilled")
        found = measure(run)
        found |= {f"teacher, {label}": row for label, row in measure(teacher).items()}
        if teacher.model.diffusion is not None:
            samples = deterministic(teacher.model).sample(N, generator=generator("samples"))
            found["teacher as an ODE"] = compared(teacher, samples)
    return {
        "seed": seed,
        "iterations": run.step,
        "cpu_seconds": run.cpu_seconds,
        "units": round(run.cpu_seconds / cpu_seconds(unit(), 40)),
        "required_cpu_seconds": required_seconds,
        "samplings": found,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--runs", type=Path)
    arguments = parser.parse_args()
    one_thread()
    reference = RESULTS / "gaussians-data.json"
    if not reference.exists():
        save("gaussians-data", {"samples": N, "draws": 12, "data vs data": spread()})
    for preset in arguments.presets:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.runs or Path(temporary)
            rows = [one(preset, seed, folder, arguments.distil) for seed in arguments.seeds]
        name = preset + "-distilled" * arguments.distil
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
            f"gaussians-{name}",
            {"preset": name, "samples": N, "summary": summary, "seeds": rows},
        )
        print(path, json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
