"""What a discriminator repairs: Diffusion-GANs whose score, grid or prior is at fault.

    python benchmarks/repair.py [--seeds 0 1 2]

With an exact score, fine steps and the right prior, the optimal discriminator of DiffFlow's
Diffusion-GAN is constant: it has nothing to do. Here one of the three is wrong at a time, on the five
Gaussians. Each point (g²/β, λ²/β) is sampled with its trained discriminator and, as the control, as the
point (2, 2 λ²/g²), which is the same equation with d = const: the score alone with the same steps.
Energy distance of 10,000 samples to 10,000 points; "d" is the standard deviation of the
discriminator's output over its particles, averaged over the path.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path

from common import one_thread, save  # isort: skip
import torch

from few_steps import Protocol, protocol_of
from partikel.app.config import load_preset, make_recipe
from partikel.data import open_dataset
from partikel.fields import DiscriminatorField
from partikel.models import ParticleModel, Sampling
from partikel.priors import GaussianPrior
from partikel.recipes import EDM, Recipe
from partikel.streams import Streams
from partikel.training import Trainer
from partikel.training.ema import swapped_in
from plane import Row, Runs

FAULTS: dict[str, Row] = {
    "none": {"steps": 28},
    "7 steps": {"steps": 7},
    "4 steps": {"steps": 4},
    "prior of half the width": {"steps": 28, "sigma_max": 4.0, "prior_std": 2.0},
    "score trained for 150 of 8000 iterations": {"steps": 28, "score_iterations": 150},
}
POINTS = ((1.0, 1.0), (1.0, 0.5), (0.5, 0.5))


def with_prior(model: ParticleModel, std: float | None) -> ParticleModel:
    """A model that starts from another standard deviation."""
    if std is not None:
        model.prior = GaussianPrior(model.prior.shape, std=std)
    return model


def spread(model: ParticleModel) -> float:
    """Standard deviation of d over particles at one node, averaged over the path."""
    (critic,) = {m for m in model.modules() if isinstance(m, DiscriminatorField)}
    points = model.particles(4000, Streams(0))
    logits = critic.logit(points.x, points.at)
    assert points.t is not None
    groups = [logits[points.t == t].std() for t in points.t.unique()]
    return float(torch.stack(groups).detach().nanmean())


def rows_of(seed: int, protocol: Protocol, runs: Runs) -> Iterator[Row]:
    """Every fault at every point."""
    loaded = load_preset("diffusion-gan-gaussians")
    for fault, setting in FAULTS.items():
        iterations = setting.get("score_iterations")
        changes = {"iterations": iterations} if iterations else {}
        scored = runs("edm-gaussians", seed, changes)
        edm, score = scored.recipe, scored.model
        assert isinstance(edm, EDM)
        path = {
            "steps": setting["steps"],
            "sigma_max": setting.get("sigma_max", 40.0),
            "seed": seed,
        }

        def point(g2: float, lambda2: float, path: Row = path, edm: EDM = edm) -> Recipe:
            recipe = make_recipe(
                loaded.recipe, loaded.settings, {**path, "g2": g2, "lambda2": lambda2}
            )
            return dataclasses.replace(recipe, score=edm)  # type: ignore[call-arg]

        std = setting.get("prior_std")
        for g2, lambda2 in POINTS:
            alone = point(2.0, 2 * lambda2 / g2).compose(protocol.dataset, score)
            recipe = point(g2, lambda2)
            system = recipe.compose(protocol.dataset, score)
            model = with_prior(system.model, std)  # type: ignore[arg-type]
            trainer = Trainer(
                model,
                protocol.dataset,
                system.phases,
                iterations=recipe.iterations,
                seed=seed,
                ema=recipe.ema,
            )
            for _ in trainer.run():
                pass
            control = protocol.of(with_prior(alone.model.eval(), std), Sampling())  # type: ignore[arg-type]
            with swapped_in(model.sampled, trainer.average):
                repaired = protocol.of(model, Sampling())
                d = spread(model)
            yield {
                "fault": fault,
                "g2": g2,
                "lambda2": lambda2,
                "steps": setting["steps"],
                "score_alone": control,
                "with_discriminator": repaired,
                "d": d,
            }


def summary(rows: list[Row]) -> list[Row]:
    """Means over seeds."""
    keys = dict.fromkeys((r["fault"], r["g2"], r["lambda2"], r["steps"]) for r in rows)
    figures = ("score_alone", "with_discriminator", "d")
    return [
        dict(zip(("fault", "g2", "lambda2", "steps"), key, strict=True))
        | {
            name: statistics.mean(
                r[name] for r in rows if (r["fault"], r["g2"], r["lambda2"], r["steps"]) == key
            )
            for name in figures
        }
        for key in keys
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/plane"))
    arguments = parser.parse_args()
    one_thread()
    protocol = protocol_of(open_dataset(make_recipe("edm", {"data": {"name": "gaussians"}}).data))
    runs = Runs(arguments.runs, {})
    rows: list[Row] = []
    for seed in arguments.seeds:
        for row in rows_of(seed, protocol, runs):
            rows.append({"seed": seed, **row})
            print(rows[-1], flush=True)
            save("repair", {"samples": protocol.n, "summary": summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
