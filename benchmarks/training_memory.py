"""Peak memory and time of one training iteration at the papers' image settings, on black images.

    python benchmarks/training_memory.py [--presets score-gan-mnist-paper ...]

Each preset is measured in a process of its own: peak resident memory of a CPU process that composes the
untrained system and runs two iterations, and the seconds of the second one, with one thread. Score GAN
at the MNIST setting has to stay below 5 GB (the GPM reference takes 10.2).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from common import one_thread, save, system_of  # isort: skip
import torch

from partikel.app.config import load_preset, make_recipe
from partikel.data import SPLITS, FiniteDataset
from partikel.training import Trainer

LIMITS = {"score-gan-mnist-paper": 5.0}
"""Gigabytes."""

PRESETS = (
    "edm-mnist-paper",
    "gan-mnist-paper",
    "discriminator-flow-mnist-paper",
    "discriminator-flow-mnist-paper-quick",
    "score-gan-mnist-paper",
)


def measure(preset: str) -> dict[str, float]:
    """Peak memory and the time of an iteration, in this process."""
    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings)
    size = recipe.data.size or 32
    shape = (1 if recipe.data.name.endswith("mnist") else 3, size, size)
    images = {split: torch.zeros(512, *shape, dtype=torch.uint8) for split in SPLITS}
    dataset = FiniteDataset(recipe.data.name, images, sigma_data=0.5)
    _, _, system = system_of(preset, dataset=dataset)
    trainer = Trainer(system.model, dataset, system.phases, iterations=2, ema=recipe.ema)
    steps = trainer.run()
    next(steps)
    started = time.process_time()
    next(steps)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"gigabytes": peak / 1e9, "cpu_seconds_an_iteration": seconds}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    one_thread()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    results: dict[str, dict[str, float]] = {}
    for preset in arguments.presets:
        command = [sys.executable, __file__, "--measure", preset]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[preset] = json.loads(done.stdout.splitlines()[-1])
        print(preset, results[preset], flush=True)
    save("training-memory", {"limits_gigabytes": LIMITS, "results": results})
    above = [k for k, v in LIMITS.items() if k in results and results[k]["gigabytes"] > v]
    if above:
        sys.exit(f"above the limit: {', '.join(above)}")


if __name__ == "__main__":
    main()
