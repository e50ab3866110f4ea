"""Quality of the image presets, with CPU seconds, baselines and a sheet of samples.

    python benchmarks/images.py [--presets edm-mnist-fast ...] [--seeds 0] [--runs FOLDER]

Protocol: as many samples as the test split has images, features of the network that evaluation chooses
for the data; beside the model, the same figures for as many training images (which is also what copies
of training images would get), for noise and for the mean image. With --runs, runs are kept there, resumed
and not trained twice; a Score GAN then takes its data score from the EDM run beside it. A Fréchet
distance above the preset's ceiling, set from the first honest run, ends in exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, one_thread, save  # isort: skip
import torch

from partikel.app.config import load_preset, make_recipe
from partikel.app.gallery import evaluate_run
from partikel.app.runs import train_run
from partikel.app.show.plots import save_picture
from partikel.metrics.measures import MEASURES

CEILINGS = {
    "edm-digits": 1.4,
    "gan-digits": 2.0,
    "discriminator-flow-digits": 1.3,
    "score-gan-digits": 2.8,
    "edm-mnist-fast": 1.2,
    "gan-mnist-fast": 1.9,
    "discriminator-flow-mnist-fast": 2.1,
    "score-gan-mnist-fast": 7.5,
}
"""Fréchet distances that later versions have to keep below, by preset."""

PRESETS = list(CEILINGS)


def measured(preset: str, seed: int, runs: Path, sheet: bool) -> dict[str, Any]:
    """Train (or find) and evaluate one preset with one seed."""
    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings, {"seed": seed})
    score = runs / f"{preset.replace('score-gan', 'edm')}-{seed}"
    if recipe.required is not None and (score / "config.yaml").exists():
        recipe = dataclasses.replace(recipe, data_score=str(score))  # type: ignore[call-arg]
    run = train_run(recipe, runs / f"{preset}-{seed}", preset=preset)
    result = evaluate_run(run, baselines=True).as_dict()
    if sheet:
        images = run.sample(64, generator=torch.Generator().manual_seed(1))
        save_picture(images, RESULTS / f"{preset}.png")
    return {"seed": seed, "iterations": run.step, "cpu_seconds": run.cpu_seconds, **result}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and worst values over seeds."""
    figures = {
        key: {
            "mean": statistics.mean(row["metrics"][key] for row in rows),
            "worst": (max if MEASURES[key].better == "lower" else min)(
                row["metrics"][key] for row in rows
            ),
        }
        for key in rows[0]["metrics"]
    }
    return {"cpu_seconds": statistics.median(row["cpu_seconds"] for row in rows), **figures}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path)
    arguments = parser.parse_args()
    one_thread()
    above: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        for preset in arguments.presets:
            rows = [
                measured(preset, seed, runs, sheet=seed == arguments.seeds[0])
                for seed in arguments.seeds
            ]
            figures = summary(rows)
            save(preset, {"preset": preset, "summary": figures, "seeds": rows})
            print(preset, json.dumps(figures), flush=True)
            if figures["frechet"]["mean"] > CEILINGS.get(preset, float("inf")):
                above.append(preset)
    if above:
        sys.exit(f"above their ceilings: {', '.join(above)}")


if __name__ == "__main__":
    main()
