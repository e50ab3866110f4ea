"""Quality of the digits presets (8x8 images), with CPU seconds and a sheet of samples.

    python benchmarks/digits.py [--presets edm-digits ...] [--seeds 0 1 2]

Protocol: as many samples as the test split has images (359), features of the shipped digits network;
beside it the same figures for as many training images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, one_thread, save  # isort: skip
import torch

from partikel.config import load_preset, make_recipe
from partikel.gallery import evaluate_run
from partikel.plots import save_picture
from partikel.runs import train_run

PRESETS = ("edm-digits", "gan-digits", "discriminator-flow-digits", "score-gan-digits")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    one_thread()
    for preset in arguments.presets:
        rows: list[dict[str, Any]] = []
        for seed in arguments.seeds:
            loaded = load_preset(preset)
            recipe = make_recipe(loaded.recipe, loaded.settings, {"seed": seed})
            recipe = dataclasses.replace(
                recipe, evaluate_every=None, checkpoint_every=recipe.iterations
            )
            with tempfile.TemporaryDirectory() as folder:
                run = train_run(recipe, Path(folder) / preset, preset=preset)
                result = evaluate_run(run)
                rows.append(
                    {
                        "seed": seed,
                        "iterations": run.step,
                        "cpu_seconds": run.cpu_seconds,
                        **result.as_dict(),
                    }
                )
                if seed == arguments.seeds[0]:
                    sheet = run.sample(64, generator=torch.Generator().manual_seed(1))
                    save_picture(sheet, RESULTS / f"{preset}.png")
        metrics = {
            key: {
                "mean": statistics.mean(row["metrics"][key] for row in rows),
                "worst": (max if key in ("frechet", "kid") else min)(
                    row["metrics"][key] for row in rows
                ),
            }
            for key in rows[0]["metrics"]
        }
        summary = {"cpu_seconds": statistics.median(r["cpu_seconds"] for r in rows), **metrics}
        save(preset, {"preset": preset, "summary": summary, "seeds": rows})
        print(preset, json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
