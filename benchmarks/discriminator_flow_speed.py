"""How fast a Discriminator Flow reaches energy <= .03, and what each idea brings.

    python benchmarks/discriminator_flow_speed.py [--seeds 0 1 2] [--cap 240] [--slow]

Measured: CPU seconds of training (evaluation excluded, one thread) at the first of 3 evaluations in a
row with energy <= .03 (2,000 samples against 2,000 points), the median over seeds; a run that does
not get there counts as the cap (a quarter of it for variants). Evaluations are 12 s apart for models
of 56 steps, .5 s for others: some 30 to 50 iterations either way.

The baseline is Algorithm 3 as written ("A3") with the paper's settings, at the best of three learning
rates (chosen on the first seed); once measured it is kept in results/discriminator-flow-baseline.json.
The rungs of the ladder between it and "all of the above" are run with one seed. Variants of 56 steps
are slow: --slow runs them too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from typing import Any

from common import RESULTS, cpu_seconds, one_thread, save  # isort: skip
import torch

from partikel.app.config import load_preset, make_recipe
from partikel.app.runs import draw_samples
from partikel.data import open_dataset
from partikel.metrics import energy_distance
from partikel.recipes import DiscriminatorFlow
from partikel.streams import derive_seed
from partikel.studies.units import unit
from partikel.training import Trainer
from partikel.training.ema import swapped_in

GOAL = 0.03
POINTS = 2000


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


RATES = (1e-4, 2e-4, 5e-4)
"""Learning rates of Algorithm 3 as written; the paper's is 2e-4."""

PAPER = "discriminator-flow-gaussians-paper"


def variants() -> dict[str, DiscriminatorFlow]:
    """From the paper's settings to the tuned preset, one change after another, then single ideas."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("only the steps a particle needs", {"truncate": True}),
        ("+ Fourier scale 1, default init", {"network": {"fourier_scale": 1.0, "init": "default"}}),
        ("+ 20 steps", {"steps": 20}),
        ("+ He init, 32 embedding features", {"network": {"init": "he", "embedding_features": 32}}),
        ("+ width 256, depth 3", {"network": {"width": 256, "depth": 3}}),
        ("+ lr 5e-4", {"optimizer": {"lr": 5e-4}}),
        ("+ EMA .99 (all of the above)", {"ema": 0.99}),
    ]
    made: dict[str, DiscriminatorFlow] = {}
    settings: list[dict[str, Any]] = []
    for label, change in changes:
        settings.append(change)
        made[label] = preset(PAPER, *settings)
    ideas: dict[str, dict[str, Any]] = {
        "all, 14 steps": {"steps": 14},
        "all, 2 updates a trajectory": {"updates": 2, "reuse": 2},
        "all, 4 updates a trajectory": {"updates": 4, "reuse": 4},
        "all, 2 times a path": {"times_per_path": 2},
        "all, batch 256, 2 times a path": {"times_per_path": 2, "batch": 256},
        "all, lr 1e-3": {"optimizer": {"lr": 1e-3}},
        "all, R1 penalty .02": {"penalties": [{"weight": 0.01, "at": "real"}]},
    }
    for label, change in ideas.items():
        made[label] = preset(PAPER, *settings, change)
    return made


def race(
    recipe: DiscriminatorFlow,
    seeds: list[int],
    cap: float,
    known: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Times to the goal over seeds (added to ``known`` ones)."""
    every = 12.0 if recipe.steps > 20 else 0.5
    rows = (known or []) + [
        {"seed": seed} | time_to_goal(dataclasses.replace(recipe, seed=seed), cap, every)
        for seed in seeds
    ]
    seconds = [cap if r["seconds"] is None else r["seconds"] for r in rows]
    return {
        "median_seconds": statistics.median(seconds),
        "reached": f"{sum(r['seconds'] is not None for r in rows)} of {len(rows)}",
        "milliseconds_per_iteration": 1e3
        * statistics.median(r["curve"][-1][0] / r["iterations"] for r in rows),
        "seeds": rows,
    }


def baseline(seeds: list[int], cap: float) -> dict[str, Any]:
    """Algorithm 3 as written at each learning rate, then at the best one with all seeds."""
    written = {rate: preset(PAPER, {"optimizer": {"lr": rate}}) for rate in RATES}
    results = {rate: race(written[rate], seeds[:1], cap) for rate in RATES}

    def rank(rate: float) -> tuple[float, float]:  # where none gets there, the last energies decide
        curve = results[rate]["seeds"][0]["curve"]
        return results[rate]["median_seconds"], statistics.mean(e for _, e in curve[-5:])

    best = min(RATES, key=rank)
    results[best] = race(written[best], seeds[1:], cap, results[best]["seeds"])
    return {
        "baseline": f"A3, lr {best:g}",
        "variants": {f"A3, lr {rate:g}": found for rate, found in results.items()},
    }


def main() -> None:
    """Run the benchmark: the baseline (unless it has been measured), then the variants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cap", type=float, default=240.0)
    parser.add_argument("--slow", action="store_true", help="also the variants of 56 steps")
    arguments = parser.parse_args()
    one_thread()
    protocol = {
        "goal": f"energy <= {GOAL} in 3 evaluations in a row, {POINTS} points",
        "cap_seconds": arguments.cap,
        "unit_milliseconds": 1e3 * cpu_seconds(unit(), 30),
    }
    file = RESULTS / "discriminator-flow-baseline.json"
    if not file.exists():
        save(file.stem, {**protocol, **baseline(arguments.seeds, arguments.cap)})
    measured = json.loads(file.read_text())
    slow = measured["variants"][measured["baseline"]]["median_seconds"]
    results: dict[str, Any] = {}
    found = variants()
    for label in sorted(
        found, key=lambda label: "all" not in label
    ):  # the rungs of the ladder last
        recipe = found[label]
        if recipe.steps > 20 and not arguments.slow:
            continue
        seeds = arguments.seeds if "all" in label else arguments.seeds[:1]
        results[label] = race(recipe, seeds, arguments.cap / 4)
        print(label, results[label]["median_seconds"], results[label]["reached"], flush=True)
        save(
            "discriminator-flow-speed",
            {
                **protocol,
                "baseline": measured["baseline"],
                "baseline_seconds": slow,
                "ratios": {k: slow / v["median_seconds"] for k, v in results.items()},
                "variants": results,
            },
        )
    print(json.dumps({k: slow / v["median_seconds"] for k, v in results.items()}, indent=1))


if __name__ == "__main__":
    main()
