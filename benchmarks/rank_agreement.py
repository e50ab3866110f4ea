"""Do few samples rank models as many do? MIND, KID and Fréchet at 1,000 beside Fréchet at 10,000.

    python benchmarks/rank_agreement.py --runs FOLDER [--seed 0] [--train]

The models are the `-fast` presets for MNIST, as runs `PRESET-SEED` in the folder, each at the end of its
training and at an earlier checkpoint: the one nearest to half of it that the run has kept. With --train
what is missing is trained, to its whole length and to half of it; without, it is left out, and said.

Each model draws 10,000 samples (flows by 8 evaluations at their placed levels, or at their own grid's).
Fréchet at 10,000 is against the 10,000 images of the test split, on the digits network that ships. The
others take ten parts of 1,000 samples: MIND and KID beside 1,000 test images, Fréchet beside all. Kendall's
τ over the models is the mean over parts; its interval is a percentile bootstrap over models, of one part
drawn each time. Measured models are kept in results/rank-agreement.json by name, and not drawn again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import RESULTS, one_thread, save  # isort: skip
import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from partikel import load
from partikel.app.config import load_preset, make_recipe
from partikel.app.runs import Run, draw_samples, train_run
from partikel.data import open_dataset
from partikel.metrics import FeatureSet, extract_features, frechet_distance, kid
from partikel.metrics.choice import feature_network
from partikel.metrics.several import mind
from partikel.recipes import Recipe
from partikel.solvers import UniPC
from partikel.streams import derive_seed
from partikel.training import Trainer, latest_checkpoint, save_checkpoint
from partikel.training.checkpoint import load_sampled, read_step

MODELS = (
    "gan",
    "score-gan",
    "mean-flow",
    "consistency",
    "flow-matching",
    "edm",
    "discriminator-flow",
)
"""The quickest to sample first."""
MANY, FEW, STEPS, DRAWS = 10_000, 1000, 8, 2000
MEASURES = ("mind", "kid", "frechet")


def generator(*path: object) -> torch.Generator:
    """A stream for one purpose."""
    return torch.Generator().manual_seed(derive_seed(0, "rank agreement", *path))


def recipe_of(preset: str, seed: int, runs: Path) -> Recipe:
    """A preset's recipe; a Score GAN with the EDM run beside it."""
    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings, {"seed": seed})
    score = runs / f"edm-mnist-fast-{seed}"
    if recipe.required is not None and (score / "config.yaml").exists():
        recipe = replace(recipe, data_score=str(score))  # type: ignore[call-arg]
    return recipe


def trained_to_half(recipe: Recipe, folder: Path) -> Path:
    """A checkpoint at half of a training, whose rates fall as in the whole one."""
    dataset = open_dataset(recipe.data)
    required = recipe.required
    known = None if required is None else load(getattr(recipe, "data_score", "")).model
    system = recipe.system(dataset, known)
    options = {"iterations": recipe.iterations, "seed": recipe.seed, "ema": recipe.ema}
    trainer = Trainer(system.model, dataset, system.phases, **options)
    for done in trainer.run():
        if done.step == recipe.iterations // 2:
            break
    return save_checkpoint(trainer, folder)


def models(runs: Path, seed: int, train: bool) -> Iterator[tuple[str, Run, Path]]:
    """Name, run and checkpoint of every model that is there, or is trained."""
    for model in MODELS:
        preset = f"{model}-mnist-fast"
        folder = runs / f"{preset}-{seed}"
        if train:
            train_run(recipe_of(preset, seed, runs), folder, preset=preset)
        elif latest_checkpoint(folder / "checkpoints") is None:
            print(f"{preset}: no run", flush=True)
            continue
        run = load(folder)
        last = latest_checkpoint(folder / "checkpoints")
        assert last is not None
        if run.step < run.recipe.iterations:
            print(f"{preset}: not trained to the end", flush=True)
            continue
        yield f"{preset} at the end", run, last
        half = runs / f"{preset}-{seed}-half"
        kept = [*(folder / "checkpoints").glob("step-*"), *half.glob("step-*")]
        middle = run.recipe.iterations / 2
        nearest = min(kept, key=lambda each: (abs(read_step(each) - middle), str(each)))
        if train and read_step(nearest) != run.recipe.iterations // 2:
            nearest = trained_to_half(recipe_of(preset, seed, runs), half)
        if nearest != last:
            share = read_step(nearest) / run.recipe.iterations
            yield f"{preset} at {share:.0%}", run, nearest


def figures(run: Run, checkpoint: Path, test: Tensor, network: Any) -> dict[str, Any]:
    """Fréchet of all samples, and of every part each measure."""
    load_sampled(run.model, checkpoint)
    flows = run.model.steps is not None and run.model.follows_path
    options = {"steps": STEPS, "solver": UniPC()} if flows else {}
    x = draw_samples(
        run.model,
        MANY,
        generator("samples", run.preset, checkpoint.name),
        run.context(),
        sampling=run.sampling(**options),
    )
    features = extract_features(network, x)
    parts: dict[str, list[float]] = {key: [] for key in MEASURES}
    everything = FeatureSet.of(network, test)
    for part, beside in zip(features.split(FEW), test.split(FEW), strict=True):
        parts["mind"].append(mind(part, beside))
        parts["kid"].append(kid(part, beside, 1, FEW, generator=generator("kid")).mean)
        parts["frechet"].append(frechet_distance(FeatureSet.of(network, part), everything))
    whole = frechet_distance(FeatureSet.of(network, features), everything)
    return {"frechet of all": whole, "parts": parts}


def agreement(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Kendall's τ of a measure of 1,000 samples with Fréchet of 10,000, and its interval."""
    whole = np.array([row["frechet of all"] for row in rows])
    parts = np.array([row["parts"][key] for row in rows])
    found = [kendalltau(whole, column)[0] for column in parts.T]
    rng = np.random.default_rng(derive_seed(0, "rank agreement", key))
    drawn = []
    while len(drawn) < DRAWS:
        chosen = rng.integers(len(rows), size=len(rows))
        part = rng.integers(parts.shape[1])
        tau = kendalltau(whole[chosen], parts[chosen, part])[0]
        if not math.isnan(tau):  # all the same model
            drawn.append(tau)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"tau": statistics.fmean(found), "low": float(low), "high": float(high)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", action="store_true")
    chosen = parser.parse_args()
    one_thread()
    kept = RESULTS / "rank-agreement.json"
    known = json.loads(kept.read_text())["models"] if kept.exists() else {}
    dataset = open_dataset(make_recipe("gan", load_preset("gan-mnist-fast").settings).data)
    network = feature_network("mnist", dataset.shape)
    test = extract_features(network, dataset.draw(MANY, "test", generator=generator("test")).x)
    what = f"seed {chosen.seed}; {MANY} samples a model, in parts of {FEW}; flows by {STEPS} steps"
    about = {"what": what, "features": network.name}
    rows: dict[str, Any] = dict(known)
    found: dict[str, Any] = {}
    for name, run, checkpoint in models(chosen.runs, chosen.seed, chosen.train):
        started = time.process_time()
        if name not in rows:
            rows[name] = figures(run, checkpoint, test, network)
        whole, few = rows[name]["frechet of all"], rows[name]["parts"]["mind"]
        seconds = time.process_time() - started
        print(f"{name}: {whole:.3f}, MIND {statistics.fmean(few):.4f}, {seconds:.0f} s", flush=True)
        if len(rows) > 2:
            found = {key: agreement(list(rows.values()), key) for key in MEASURES}
            save("rank-agreement", {**about, "models": rows, "agreement": found})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
