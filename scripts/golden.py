"""Golden numbers: what training and measuring give for fixed seeds, to compare two commits on one machine.

    python scripts/golden.py OUT.json                  # of the partikel that is imported
    python scripts/golden.py NEW.json --against OLD.json

Of every preset on small data the losses of 20 iterations and 64 samples; of every item of the papers its
values at the scale smoke. Equal numbers, bit for bit, mean an unchanged computation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from partikel.app.config import load_preset, make_recipe, preset_names
from partikel.app.runs import context_for
from partikel.data import open_dataset
from partikel.studies.items import ITEMS
from partikel.studies.reproduce import reproduce
from partikel.training import Trainer

ITERATIONS = 20


def of_preset(name: str) -> dict[str, Any] | None:
    """Losses and samples of a preset; None where its data are large."""
    preset = load_preset(name)
    recipe = make_recipe(preset.recipe, preset.settings, {"iterations": ITERATIONS})
    dataset = open_dataset(recipe.data)
    if dataset.name not in ("gaussians", "digits"):
        return None
    system = recipe.system(dataset)
    trainer = Trainer(
        system.model,
        dataset,
        system.phases,
        iterations=ITERATIONS,
        seed=recipe.seed,
        ema=recipe.ema,
    )
    losses = [{k: float(v) for k, v in done.metrics.items()} for done in trainer.run()]
    model = system.model.eval()
    generator = torch.Generator().manual_seed(1)
    samples = model.sample(64, generator=generator, real=context_for(model, dataset))
    return {"losses": losses, "samples": samples.flatten().tolist()}


def of_item(name: str) -> dict[str, Any]:
    """Values and tables of an item at the scale smoke."""
    with tempfile.TemporaryDirectory() as folder:
        (result,), errors = reproduce(
            [name], "smoke", out=Path(folder) / "out", runs=Path(folder) / "runs"
        )
    assert not errors, errors
    return {key: result[key] for key in ("values", "tables", "findings")}


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Places where two JSON values differ, process times apart."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b})
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{path}/{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            d
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{path}/{i}")
        ]
    same = a == b or (a != a and b != b)
    return [] if same or "seconds" in path else [f"{path}: {a} -> {b}"]


def main() -> None:
    """Compute, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", default="", help="names that contain this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in preset_names():
        if given.only in name and not any(
            w in name for w in ("mnist", "celeba", "cifar", "fashion")
        ):
            found[name] = of_preset(name)
    for name in ITEMS:
        if given.only in name:
            found[f"item {name}"] = of_item(name)
    found = json.loads(json.dumps(found))
    given.out.write_text(json.dumps(found))
    if given.against is None:
        return
    old = json.loads(given.against.read_text())
    for name in found:
        differing = differences(old.get(name), found[name])
        print(f"{name}: " + (f"{len(differing)} differ, {differing[:2]}" if differing else "equal"))


if __name__ == "__main__":
    main()
