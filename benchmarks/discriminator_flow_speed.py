"""How fast a Discriminator Flow reaches energy <= .03 on the paper's Gaussians, and what each idea brings.

    python benchmarks/discriminator_flow_speed.py [--seeds 0 1 2] [--cap 400]

Measured: CPU seconds of training (evaluation excluded, one thread) at the first of 3 evaluations in a
row with energy <= .03 (5,000 samples against 5,000 points), the median over seeds; a run that does
not get there counts as the cap. The baseline is Algorithm 3 as written with the paper's settings, at
the best of several learning rates. The variants change one thing after another.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from typing import Any

from common import one_thread, save, cpu_seconds, unit  # isort: skip
import torch

from partikel.config import load_preset, make_recipe
from partikel.data import open_dataset
from partikel.metrics import energy_distance
from partikel.recipes import DiscriminatorFlow
from partikel.runs import draw_samples
from partikel.streams import derive_seed
from partikel.training import Trainer
from partikel.training.ema import swapped_in

GOAL = 0.03
POINTS = 5000


def preset(name: str, *settings: dict[str, Any]) -> DiscriminatorFlow:
    """A recipe that is trained until the goal."""
    loaded = load_preset(name)
    recipe = make_recipe(loaded.recipe, loaded.settings, {"iterations": 10**6}, *settings)
    assert isinstance(recipe, DiscriminatorFlow)
    return recipe


def time_to_goal(recipe: DiscriminatorFlow, cap: float, every: float) -> dict[str, Any]:
    """Train until three evaluations in a row are at the goal, or until the cap.

    Args:
        recipe: what is trained.
        cap: CPU seconds of training.
        every: CPU seconds of training between evaluations.
    """
    dataset = open_dataset(recipe.data)
    system = recipe.compose(dataset)
    trainer = Trainer(
        system.model,
        dataset,
        system.phases,
        iterations=recipe.iterations,
        seed=recipe.seed,
        ema=recipe.ema,
    )
    stream = torch.Generator().manual_seed(derive_seed(0, "speed"))
    reference = dataset.draw(POINTS, generator=stream).x
    curve: list[tuple[float, float]] = []
    next_at = every
    for _ in trainer.run():
        if trainer.cpu_seconds < next_at:
            continue
        next_at = trainer.cpu_seconds + every
        with swapped_in(system.model.sampled, trainer.average):
            stream.manual_seed(derive_seed(1, "speed"))
            energy = energy_distance(draw_samples(system.model, POINTS, stream), reference)
        curve.append((round(trainer.cpu_seconds, 2), round(energy, 5)))
        if len(curve) >= 3 and all(value <= GOAL for _, value in curve[-3:]):
            return {"seconds": curve[-3][0], "iterations": trainer.step, "curve": curve}
        if trainer.cpu_seconds > cap:
            break
    return {"seconds": None, "iterations": trainer.step, "curve": curve}


def variants() -> dict[str, DiscriminatorFlow]:
    """From Algorithm 3 as written to the tuned preset, one change after another."""
    paper = "discriminator-flow-gaussians-paper"
    tuned = preset("discriminator-flow-gaussians")
    smooth = {"network": {"fourier_scale": 1.0, "init": "default"}}
    he = {"network": {"fourier_scale": 1.0, "init": "he", "embedding_features": 32}}
    small = {"network": {"width": 256, "depth": 3}}
    constant = {"decay": "constant", "lr": tuned.optimizer.lr, "beta1": 0.5, "beta2": 0.999}
    return {
        "A3, lr 1e-4": preset(paper, {"optimizer": {"lr": 1e-4}}),
        "A3, lr 2e-4 (the paper's)": preset(paper),
        "A3, lr 4e-4": preset(paper, {"optimizer": {"lr": 4e-4}}),
        "A3, lr 8e-4": preset(paper, {"optimizer": {"lr": 8e-4}}),
        "only the steps a particle needs": preset(paper, {"truncate": True}),
        "+ Fourier scale 1, default init": preset(paper, {"truncate": True}, smooth),
        "+ 14 steps": preset(paper, {"truncate": True, "steps": 14}, smooth),
        "+ He init, 32 embedding features": preset(paper, {"truncate": True, "steps": 14}, he),
        "+ width 256, depth 3": preset(paper, {"truncate": True, "steps": 14}, he, small),
        "+ EMA": preset(paper, {"truncate": True, "steps": 14, "ema": 0.99}, he, small),
        "+ lr 5e-4": preset(
            paper,
            {"truncate": True, "steps": 14, "ema": 0.99, "optimizer": {"lr": 5e-4}},
            he,
            small,
        ),
        "4 updates a trajectory": preset(
            paper,
            {
                "truncate": True,
                "steps": 14,
                "ema": 0.99,
                "updates": 4,
                "reuse": 4,
                "optimizer": {"lr": 5e-4},
            },
            he,
            small,
        ),
        "2 times a path, batch 256": preset(
            paper,
            {
                "truncate": True,
                "steps": 14,
                "ema": 0.99,
                "batch": 256,
                "times_per_path": 2,
                "optimizer": {"lr": 5e-4},
            },
            he,
            small,
        ),
        "tuned preset": dataclasses.replace(
            tuned, optimizer=dataclasses.replace(tuned.optimizer, **constant)
        ),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cap", type=float, default=400.0)
    arguments = parser.parse_args()
    one_thread()
    results: dict[str, Any] = {}
    for label, recipe in variants().items():
        slow = recipe.steps > 20
        rows = [
            time_to_goal(
                dataclasses.replace(recipe, seed=seed), arguments.cap, 5.0 if slow else 0.5
            )
            for seed in arguments.seeds
        ]
        seconds = [arguments.cap if r["seconds"] is None else r["seconds"] for r in rows]
        results[label] = {
            "median_seconds": statistics.median(seconds),
            "reached": sum(r["seconds"] is not None for r in rows),
            "milliseconds_per_iteration": 1e3
            * statistics.median(r["curve"][-1][0] / r["iterations"] for r in rows),
            "seeds": rows,
        }
        print(label, seconds, flush=True)
        baselines = [v["median_seconds"] for k, v in results.items() if k.startswith("A3")]
        best = min(baselines)
        save(
            "discriminator-flow-speed",
            {
                "goal": f"energy <= {GOAL} in 3 evaluations in a row, {POINTS} points",
                "cap_seconds": arguments.cap,
                "unit_milliseconds": 1e3 * cpu_seconds(unit(), 30),
                "baseline_seconds": best,
                "ratios": {k: best / v["median_seconds"] for k, v in results.items()},
                "variants": results,
            },
        )
    print(json.dumps({k: v["median_seconds"] for k, v in results.items()}, indent=1))


if __name__ == "__main__":
    main()
