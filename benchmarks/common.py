"""What the benchmarks share: systems of presets, distances, JSON with its protocol."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from partikel.app.config import load_preset, make_recipe
from partikel.data import Dataset, open_dataset
from partikel.metrics import (
    mode_statistics,
    pairwise_distances_report,
    sliced_wasserstein2,
)
from partikel.models import Carrier
from partikel.recipes import Recipe, System
from partikel.targets import GaussianMixture

RESULTS = Path(__file__).parent / "results"


def one_thread() -> None:
    """All figures are of one thread."""
    torch.set_num_threads(1)


def cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median process time of one call, after a warm-up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times)


def system_of(
    preset: str,
    *settings: dict[str, Any],
    dataset: Dataset | None = None,
    required: Carrier | None = None,
) -> tuple[Recipe, Dataset, System]:
    """The untrained system of a preset with changes, on its data or on others.

    The model that it builds on is untrained too unless ``required`` is given.
    """
    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings, *settings)
    dataset = open_dataset(recipe.data) if dataset is None else dataset
    return recipe, dataset, recipe.system(dataset, required)


def distances(x: torch.Tensor, y: torch.Tensor, target: GaussianMixture) -> dict[str, float]:
    """Energy distance, MMD², sliced W2 and mode figures of x against y."""
    report = pairwise_distances_report(x, y)
    modes = mode_statistics(x, target.means, target.stds, target.weights)
    return {
        "energy": report.energy,
        "mmd2": report.mmd2,
        "sliced_w2": sliced_wasserstein2(x, y),
        "modes": modes.covered,
        "within_3sigma": modes.within_3sigma,
        "mode_tv": modes.total_variation,
    }


def machine() -> dict[str, Any]:
    """What this process measures on."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def save(name: str, record: dict[str, Any]) -> Path:
    """Write a result with the machine it was measured on."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **record}, indent=1) + "\n")
    return path


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
