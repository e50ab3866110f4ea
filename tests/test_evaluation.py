"""Evaluation: figures with their protocol; a perfect sampler looks like the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from conftest import seeded
from partikel.app.config import load_preset, make_recipe
from partikel.app.gallery import curve_run, evaluate_run, neighbours_run
from partikel.app.runs import Run
from partikel.data import SPLITS, DataSettings, FiniteDataset, SyntheticDataset, open_dataset
from partikel.errors import ConfigError
from partikel.metrics import FeatureSet, evaluation
from partikel.metrics.evaluation import (
    choose_features,
    evaluate,
    find_memorised,
    in_chunks,
    quick_evaluation,
)
from partikel.schedules import Nodes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the features of data."""
    monkeypatch.setenv("PARTIKEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


@pytest.fixture(scope="module")
def digits() -> FiniteDataset:
    data = open_dataset(DataSettings("digits"))
    assert isinstance(data, FiniteDataset)
    return data


def noise(n: int, g: torch.Generator) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=g) * 2 - 1


def test_a_perfect_sampler_of_points_is_within_the_noise() -> None:
    dataset = open_dataset(DataSettings("gaussians"))
    result = evaluate(lambda n, g: dataset.draw(n, generator=g).x, dataset, n=3000)
    assert result.metrics["modes"] == 5
    assert abs(result.metrics["energy"]) < 0.006  # ten times its spread at 10,000 points is .005
    assert result.metrics["within_3sigma"] == pytest.approx(0.989, abs=0.007)
    assert result.metrics.keys() == result.reference.keys()
    assert result.protocol["samples"] == 3000


@pytest.mark.usefixtures("pot")
def test_a_shifted_sampler_of_points_is_seen() -> None:
    dataset = open_dataset(DataSettings("moons"))
    result = evaluate(lambda n, g: dataset.draw(n, generator=g).x + 0.3, dataset, n=1000)
    assert result.metrics["w2"] == pytest.approx(0.3 * 2**0.5, abs=0.1)
    assert result.metrics["energy"] > 5 * abs(result.reference["energy"])
    assert "modes" not in result.metrics


def test_images_are_measured_on_the_features_of_their_data(digits: FiniteDataset) -> None:
    good = evaluate(lambda n, g: digits.draw(n, "train", generator=g).x, digits)
    assert good.protocol["features"] == "digits"
    assert good.protocol["samples"] == digits.size("test")
    noisy = evaluate(noise, digits)
    assert good.metrics["frechet"] < 1 < 10 < noisy.metrics["frechet"]
    assert good.metrics["coverage"] > 0.9 > noisy.metrics["coverage"]
    pixels = evaluate(
        lambda n, g: digits.draw(n, "train", generator=g).x, digits, features="pixels"
    )
    assert pixels.protocol["dimension"] == 64


@pytest.mark.parametrize("split", SPLITS)
def test_samples_are_measured_against_the_split_that_is_named(split: str) -> None:
    """The test split unless another one is; while a model is trained, the validation split."""
    greys = {"train": 40, "validation": 120, "test": 200}
    data = FiniteDataset(
        "greys",
        {
            name: (grey + torch.randint(0, 20, (60, 1, 4, 4), generator=seeded(grey))).byte()
            for name, grey in greys.items()
        },
    )

    def sampler(n: int, g: torch.Generator) -> Tensor:
        return data.draw(n, split, generator=g).x

    assert evaluate(sampler, data, n=50, split=split).metrics["frechet"] < 1
    assert (evaluate(sampler, data, n=50).metrics["frechet"] < 1) is (split == "test")
    assert (quick_evaluation(sampler, data, n=50)["frechet"] < 1) is (split == "validation")


def test_features_that_do_not_fit_are_refused(digits: FiniteDataset) -> None:
    with pytest.raises(ConfigError, match="28x28"):
        choose_features("mnist", digits)
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        choose_features("digit", digits)


def test_the_quick_evaluation_repeats_itself(digits: FiniteDataset) -> None:
    dataset = open_dataset(DataSettings("gaussians"))

    def sampler(n: int, g: torch.Generator) -> Tensor:
        return dataset.draw(n, generator=g).x + 1

    first = quick_evaluation(sampler, dataset, n=500)
    assert first == quick_evaluation(sampler, dataset, n=500)
    assert first["energy"] > 0.1
    assert first["modes"] <= 5
    assert quick_evaluation(noise, digits, n=100) == quick_evaluation(noise, digits, n=100)


def test_too_few_samples_are_refused(digits: FiniteDataset) -> None:
    dataset = open_dataset(DataSettings("gaussians"))
    with pytest.raises(ConfigError, match="at least 2"):
        evaluate(lambda n, g: dataset.draw(n, generator=g).x, dataset, n=1)
    with pytest.raises(ConfigError, match="5 nearest neighbours.* more than 5"):
        evaluate(noise, digits, n=5)


# --- the reference, and what is no model


def test_the_reference_may_be_the_training_split(digits: FiniteDataset) -> None:
    copies = evaluate(
        lambda n, g: digits.take(torch.randperm(digits.size(), generator=g)[:n]).x,
        digits,
        n=600,
        split="train",
        baselines=True,
    )
    assert copies.protocol["samples"] == 600
    assert f"{digits.size('test')} points of the data (test)" in copies.protocol["reference"]
    assert copies.baselines.keys() == {"noise", "mean image", "training copies"}
    assert copies.baselines["training copies"]["frechet"] < 0.5
    assert copies.metrics["precision"] > copies.reference["precision"]


def test_images_of_a_law_are_drawn_by_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def sampler(n: int, g: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, None]:
        return noise(n, g).to(dtype), None

    law = SyntheticDataset("noise", sampler, shape=(1, 8, 8), sigma_data=0.6)
    found = []
    for folder in ("one", "other"):  # features are measured anew
        monkeypatch.setenv("PARTIKEL_CACHE", str(Path(os.environ["PARTIKEL_CACHE"], folder)))
        found.append(evaluate(noise, law, n=200, features="digits").metrics)
    assert found[0] == found[1]


def test_baselines_are_worse_than_data(digits: FiniteDataset) -> None:
    result = evaluate(lambda n, g: digits.draw(n, generator=g).x, digits, baselines=True)
    assert result.baselines.keys() == {"noise", "mean image"}
    for row in result.baselines.values():
        assert row.keys() == result.metrics.keys()
        assert row["frechet"] > 10 * result.reference["frechet"]
        assert row["coverage"] < 0.2
    points = open_dataset(DataSettings("moons"))
    with pytest.raises(ConfigError, match="baselines"):
        evaluate(lambda n, g: points.draw(n, generator=g).x, points, n=9, baselines=True)


def test_the_mean_image_is_that_of_the_training_split(digits: FiniteDataset) -> None:
    work = evaluation._Work(digits, 0, "cpu", None)
    network = choose_features("pixels", digits)
    features = work.of_mean(network, 7)
    mean = digits.take(torch.arange(digits.size())).x.mean(0).flatten()
    assert_close(features.kept, mean.expand(7, -1), rtol=1e-5, atol=1e-6)


# --- chunks and processes


def test_memory_does_not_depend_on_the_number_of_images(
    digits: FiniteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are asked for in chunks of one size, each from a seed of its own."""
    monkeypatch.setattr(evaluation, "chunk_size", lambda shape: 50)
    monkeypatch.setattr(evaluation, "KEPT", 60)
    asked: list[tuple[int, int]] = []

    def sampler(n: int, g: torch.Generator) -> Tensor:
        asked.append((n, g.initial_seed()))
        return noise(n, g)

    evaluate(sampler, digits, n=130)
    assert [n for n, _ in asked] == [50, 50, 30]
    assert len({seed for _, seed in asked}) == 3


def test_chunks_hold_about_as_many_pixels() -> None:
    assert [evaluation.chunk_size((1, s, s)) for s in (8, 16, 32, 64, 256)] == [
        1000,
        1000,
        256,
        64,
        16,
    ]
    assert evaluation.chunk_size((2,)) == 10_000


class Processes:
    """Accelerate's view of several processes, played by threads."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._barrier = threading.Barrier(world)
        self._given: list[Tensor] = [torch.empty(0)] * world

    def run(self, work: Callable[[Any], Any]) -> list[Any]:
        results: list[Any] = [None] * self.world

        def process(rank: int) -> None:
            def gather(x: Tensor) -> Tensor:
                self._given[rank] = x
                self._barrier.wait(600)
                everything = torch.cat([y.view(-1, *x.shape[1:]) for y in self._given])
                self._barrier.wait(600)
                return everything

            try:
                results[rank] = work(
                    SimpleNamespace(
                        num_processes=self.world,
                        process_index=rank,
                        is_main_process=rank == 0,
                        device=torch.device("cpu"),
                        gather=gather,
                    )
                )
            except BaseException:
                self._barrier.abort()
                raise

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.mark.parametrize("n", [1, 7, 10, 23])
def test_processes_take_chunks_in_turn(n: int) -> None:
    whole = torch.randn(n, 3, generator=seeded())
    made: list[list[int]] = [[], [], []]

    def work(accelerator: Any) -> Tensor:
        def make(number: int, rows: int) -> Tensor:
            made[accelerator.process_index].append(number)
            return whole[number * 5 :][:rows]

        return torch.cat(list(in_chunks(make, n, 5, (3,), accelerator)))

    for result in Processes(3).run(work):
        assert_close(result, whole, rtol=0, atol=0)
    chunks = -(-n // 5)
    assert made == [list(range(rank, chunks, 3)) for rank in range(3)]


def test_two_processes_measure_what_one_does(
    digits: FiniteDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "chunk_size", lambda shape: 100)
    alone = evaluate(noise, digits, baselines=True)
    for path in cache.iterdir():
        path.unlink()
    together = Processes(2).run(
        lambda accelerator: evaluate(noise, digits, baselines=True, accelerator=accelerator)
    )
    assert together == [alone, alone]
    again = Processes(2).run(lambda a: evaluate(noise, digits, accelerator=a).metrics)
    assert again == [alone.metrics] * 2  # and what is kept is read by both


SCRIPT = """
import json, sys, torch
from accelerate import Accelerator
from partikel.metrics import evaluation
from partikel.data import DataSettings, open_dataset
torch.set_num_threads(1)
evaluation.chunk_size = lambda shape: 100
accelerator = Accelerator(cpu=True)
data = open_dataset(DataSettings("digits"))
sampler = lambda n, g: torch.rand(n, 1, 8, 8, generator=g) * 2 - 1
result = evaluation.evaluate(sampler, data, accelerator=accelerator)
if accelerator.is_main_process:
    print(json.dumps([accelerator.num_processes, result.metrics]))
"""


@pytest.mark.slow
def test_two_gloo_processes_measure_what_one_does(
    digits: FiniteDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "chunk_size", lambda shape: 100)
    port = str(20_000 + os.getpid() % 20_000)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    folder = {"PARTIKEL_CACHE": str(tmp_path / "other")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **shared, **folder, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    world, metrics = json.loads(processes[0].communicate(timeout=600)[0])
    assert processes[1].wait(600) == 0
    assert world == 2
    assert metrics == evaluate(noise, digits).metrics


# --- what is kept of the data


def count_features(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the feature network is shown."""
    seen: list[int] = []
    original = evaluation._features
    monkeypatch.setattr(
        evaluation, "_features", lambda network, x: (seen.append(len(x)), original(network, x))[1]
    )
    return seen


def test_features_of_data_are_kept(
    digits: FiniteDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_features(monkeypatch)
    first = evaluate(noise, digits, n=100)
    assert sum(seen) == 300
    assert len(list(cache.iterdir())) == 2
    seen.clear()
    assert evaluate(noise, digits, n=100) == first
    assert sum(seen) == 100  # the samples
    for change in ({"n": 90}, {"seed": 1}, {"features": "pixels"}, {"split": "validation"}):
        seen.clear()
        evaluate(noise, digits, **cast("dict[str, Any]", {"n": 100, **change}))
        assert sum(seen) > change.get("n", 100)


def test_other_data_have_other_features(
    digits: FiniteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_features(monkeypatch)
    evaluate(noise, digits, n=100)
    stored = {split: digits.stored(split)[0].clone() for split in ("train", "validation", "test")}
    stored["test"][0, 0, 0, 0] += 1
    other = FiniteDataset("digits", stored, top=16)
    seen.clear()
    evaluate(noise, other, n=100)
    assert sum(seen) >= 200


@pytest.mark.parametrize("damage", ["cut", "other", "folder"])
def test_damaged_features_are_computed_again(
    damage: str, digits: FiniteDataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(noise, digits, n=100)
    for path in cache.iterdir():
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-100])
        elif damage == "other":
            wrong = FeatureSet("digits", 32)
            wrong.update(torch.randn(100, 32, generator=seeded()))
            wrong.save(path, "something else")
        else:  # cannot be read, nor replaced
            path.unlink()
            path.mkdir()
    seen = count_features(monkeypatch)
    assert evaluate(noise, digits, n=100) == first
    assert sum(seen) == 300
    assert not [path for path in cache.iterdir() if path.name.startswith(".writing-")]


# --- memorisation


def test_copies_are_found_and_new_images_are_not(digits: FiniteDataset) -> None:
    def copies(n: int, g: torch.Generator) -> Tensor:
        x = digits.draw(n, "train", generator=g).x
        x[n // 2 :] = digits.draw(n - n // 2, "validation", generator=g).x
        return x

    found = find_memorised(copies, digits, n=100, k=3, features="pixels")
    assert found.neighbours.distances.shape == (100, 3)
    figures = found.figures
    assert figures["memorised samples"] == pytest.approx(0.5, abs=0.02)
    assert figures["memorised test images"] <= 0.02
    # the nearest image of a copy is the image itself
    nearest = digits.take(found.neighbours.indices[:50, 0]).x
    assert_close(nearest, found.samples[:50])


def test_memorisation_needs_a_finite_set_of_images(digits: FiniteDataset) -> None:
    points = open_dataset(DataSettings("moons"))
    with pytest.raises(ConfigError, match="nothing to memorise"):
        find_memorised(lambda n, g: points.draw(n, generator=g).x, points)
    with pytest.raises(ConfigError, match="2 <= k"):
        find_memorised(noise, digits, k=1)


# --- runs


def untrained(preset: str, folder: Path) -> Run:
    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings)
    dataset = open_dataset(recipe.data)
    return Run(folder, preset, recipe, dataset, recipe.compose(dataset), 0)


def test_a_curve_is_measured_at_the_numbers_asked_for(tmp_path: Path) -> None:
    run = untrained("edm-gaussians", tmp_path)
    path = curve_run(run, "nfe", at=[6, 3, 3], n=100)
    assert path == tmp_path / "curve-nfe.json"
    record = json.loads(path.read_text())
    assert [p["steps"] for p in record["points"]] == [3, 6]
    assert [p["nfe"] for p in record["points"]] == [run.model.evaluations(steps=s) for s in (3, 6)]
    alone = evaluate_run(run, n=100, grid=Nodes(6))  # the run's own, as a curve's
    assert record["points"][1]["metrics"] == alone.metrics
    assert record["reference"] == alone.reference
    assert Image.open(tmp_path / "curve-nfe.png").width > 500
    stopped = json.loads(curve_run(run, "stop", n=50).read_text())
    steps = cast("Any", run.model).steps
    assert [p["stop"] for p in stopped["points"]][-1] == steps
    assert stopped["points"][-1]["metrics"] == evaluate_run(run, n=50).metrics


def test_a_curve_that_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in one call"):
        curve_run(untrained("gan-gaussians", tmp_path), "nfe", n=50)
    run = untrained("edm-gaussians", tmp_path)
    for at in ([0, 3], []):
        with pytest.raises(ConfigError, match="at least 1"):
            curve_run(run, "nfe", at=at, n=50)
    with pytest.raises(ConfigError, match="at most"):
        curve_run(run, "stop", at=[10**6], n=50)


def test_neighbours_are_drawn_beside_samples(tmp_path: Path) -> None:
    run = untrained("gan-digits", tmp_path)
    path = tmp_path / "pictures" / "neighbours.png"
    found = neighbours_run(run, path, n=20, k=4, rows=3)
    assert Image.open(path).width > 500
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["figures"] == found.figures
    assert record["protocol"]["samples"] == 20
    with pytest.raises(ConfigError, match="rows"):
        neighbours_run(run, path, n=20, rows=0)


def test_the_nfe_of_a_generator_is_one(tmp_path: Path) -> None:
    run = untrained("gan-digits", tmp_path)
    result = evaluate_run(run, n=20)
    assert result.protocol["nfe"] == 1
    assert result.protocol["iteration"] == 0
