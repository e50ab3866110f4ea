"""What an earlier version wrote is read: run folders and exports made by 0.1, before the rooms moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from torch.testing import assert_close

import partikel
from conftest import seeded, tensor
from partikel.app.runs import train_run

MADE = Path(__file__).parent / "made_by_0.1"
SAMPLES = json.loads((MADE / "samples.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["gan", "discriminator-flow"])
def test_runs_load_and_sample_as_they_did(name: str) -> None:
    run = partikel.load(MADE / name)
    samples = run.sample(4, generator=seeded())
    assert_close(samples.double(), tensor(SAMPLES[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gan", "discriminator-flow"])
def test_finished_runs_are_not_trained_again(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(MADE / name, tmp_path / name)
    recipe = partikel.load(folder).recipe
    weights = next(folder.glob("checkpoints/*/model.safetensors"))
    before = weights.stat().st_mtime_ns
    assert train_run(recipe, folder).step == 4
    assert weights.stat().st_mtime_ns == before


def test_exports_load_and_sample_as_they_did() -> None:
    generator = partikel.load_generator(MADE / "export")
    samples = generator.sample(4, generator=seeded())
    assert_close(samples.double(), tensor(SAMPLES["export"]), rtol=1e-4, atol=1e-5)
