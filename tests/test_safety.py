"""Long runs: whatever stops one, at most the work since the last checkpoint is lost, and it says why."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from partikel import files
from partikel.app.config import make_recipe
from partikel.app.runs import train_run
from partikel.data import BatchStream, Dataset, open_dataset
from partikel.errors import CheckpointError, ConfigError, DataError, NumericsError
from partikel.fields import LossValue
from partikel.files import write_whole
from partikel.recipes import Recipe
from partikel.training import (
    Phase,
    Trainer,
    checkpoint,
    fit,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from partikel.training.checkpoint import read_step

MLP = {"kind": "mlp", "width": 8, "depth": 2}


def gan(**settings: Any) -> Recipe:
    nets = {"discriminator": MLP, "generator": MLP, "latent": 3, "batch": 8, "ema": 0.9}
    return make_recipe("gan", nets, {"iterations": 60}, settings)


def parts(recipe: Recipe) -> tuple[Any, Dataset, tuple[Phase, ...]]:
    dataset = open_dataset(recipe.data)
    system = recipe.compose(dataset)
    return system.model, dataset, system.phases


def trained(folder: Path, iterations: int, every: int = 1, **options: Any) -> Trainer:
    model, dataset, phases = parts(gan())
    dataset = options.pop("dataset", dataset)
    return fit(
        model,
        dataset,
        phases,
        iterations=iterations,
        ema=0.9,
        folder=folder,
        checkpoint_every=every,
        **options,
    )


def trainer() -> Trainer:
    model, dataset, phases = parts(gan())
    return Trainer(model, dataset, phases, iterations=60, ema=0.9)


def state(folder: Path) -> dict[str, bytes]:
    """The newest checkpoint's files, but for the clock's."""
    path = latest_checkpoint(folder / "checkpoints")
    assert path is not None
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if f.suffix == ".safetensors"}


def steps(folder: Path) -> list[int]:
    return [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def killer(folder: Path, kills: int, iterations: int) -> None:
    """Train in children that are killed at any moment, then to the end, and once without a kill."""
    torch.set_num_threads(1)

    def child(name: str) -> int:
        if pid := os.fork():
            return pid
        trained(folder / name, iterations)
        os._exit(0)

    def step() -> int:
        path = latest_checkpoint(folder / "killed" / "checkpoints")
        return 0 if path is None else int(path.name.removeprefix("step-"))

    dice, reached = random.Random(0), [0]
    for _ in range(kills):
        pid = child("killed")
        while step() == reached[-1]:
            time.sleep(0.002)
        time.sleep(0.05 * dice.random())  # some checkpoints further on, and anywhere between two
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        reached.append(step())
    for name in ("killed", "straight"):
        assert os.waitpid(child(name), 0)[1] == 0
    (folder / "reached.json").write_text(json.dumps(reached))


@pytest.mark.parametrize(
    ("kills", "iterations"), [(1, 20), pytest.param(6, 60, marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_a_run_goes_on_as_if_nothing_had_been(
    kills: int, iterations: int, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, str(tmp_path), str(kills), str(iterations)]
    subprocess.run(command, env=environment, check=True)
    reached = json.loads((tmp_path / "reached.json").read_text())
    assert reached == sorted(set(reached))
    assert reached[-1] < iterations
    assert state(tmp_path / "killed") == state(tmp_path / "straight")
    assert steps(tmp_path / "killed") == steps(tmp_path / "straight")
    left = sorted(p.name for p in (tmp_path / "killed" / "checkpoints").iterdir())
    assert left == [f"step-{step:08d}" for step in (iterations - 1, iterations)]


class Crash(BaseException):
    """The power goes."""


@pytest.mark.parametrize("function", ["write_tensors", "_flush", "rename", "prune"])
def test_a_crash_at_any_step_of_saving_leaves_a_whole_checkpoint(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer()
    iterations = run.run()
    next(iterations)
    save_checkpoint(run, tmp_path, keep=1)
    place = {
        "write_tensors": "partikel.training.checkpoint.write_tensors",
        "_flush": "partikel.files._flush",
        "rename": "os.replace",
        "prune": "shutil.rmtree",
    }[function]
    original: Callable[..., Any] = {
        "write_tensors": checkpoint.write_tensors,
        "_flush": files._flush,
        "rename": os.replace,
        "prune": shutil.rmtree,
    }[function]
    crashes = 0
    for moment in range(20):
        next(iterations)
        before = latest_checkpoint(tmp_path)
        calls = iter(range(100))

        def crash(*arguments: Any, moment: int = moment, **options: Any) -> Any:
            if next(calls) == moment:  # noqa: B023
                raise Crash
            return original(*arguments, **options)

        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            patch.setattr(place, crash)
            save_checkpoint(run, tmp_path, keep=1)
            moment = -1
        crashes += moment >= 0
        found = latest_checkpoint(tmp_path)
        assert found is not None
        if moment >= 0:
            assert found == before or read_step(found) == run.step
        else:
            assert read_step(found) == run.step
        again = trainer()
        load_checkpoint(again, found)
        if moment < 0:
            break
    assert crashes > 0
    save_checkpoint(run, tmp_path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == [f"step-{run.step:08d}"]


def test_old_checkpoints_are_removed_only_when_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer()
    iterations = run.run()
    for _ in range(2):
        next(iterations)
        save_checkpoint(run, tmp_path, keep=2)
    next(iterations)
    original, loaded = shutil.rmtree, []

    def remove(path: Path, **options: Any) -> None:
        if path.name == "step-00000001":
            other = trainer()
            load_checkpoint(other, tmp_path / "step-00000003")
            loaded.append(other.step)
        original(path, **options)

    monkeypatch.setattr("shutil.rmtree", remove)
    save_checkpoint(run, tmp_path, keep=2)
    assert loaded == [3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [100, 3000])  # the log does not fit; the checkpoint does not
def test_a_full_disk_ends_in_a_sentence_and_the_run_resumes(size: int, tmp_path: Path) -> None:
    trained(tmp_path / "straight", 6, every=2)
    trained(tmp_path / "full", 2, every=2)
    with small_disk(size), pytest.raises(CheckpointError, match="cannot write") as error:
        trained(tmp_path / "full", 6, every=2)
    assert "\n" not in str(error.value)
    found = latest_checkpoint(tmp_path / "full" / "checkpoints")
    assert found is not None
    assert read_step(found) == 2
    trained(tmp_path / "full", 6, every=2)
    assert state(tmp_path / "full") == state(tmp_path / "straight")


def test_a_full_disk_spoils_no_file_that_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_whole(path, "old")
    with small_disk(10), pytest.raises(OSError, match="large"):
        write_whole(path, "new" * 100)
    assert path.read_text() == "old"
    recipe = gan(iterations=1, evaluate_every=None)
    train_run(recipe, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    with small_disk(10), pytest.raises(CheckpointError, match="cannot write to"):
        train_run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == text
    with pytest.raises(ConfigError, match="batch: 8 there, 4 now"):
        train_run(gan(iterations=1, evaluate_every=None, batch=4), tmp_path / "run")


def test_an_evaluation_that_cannot_write_says_so(tmp_path: Path) -> None:
    def evaluate(model: object, step: int) -> dict[str, float]:
        if step == 4:
            raise OSError(28, "No space left on device", "picture.png")
        return {}

    with pytest.raises(CheckpointError, match=r"picture.png \(No space left on device\)"):
        trained(tmp_path, 6, every=3, evaluate=evaluate, evaluate_every=2)
    assert read_step(latest_checkpoint(tmp_path / "checkpoints") or tmp_path) == 3


class Vanishing(BatchStream):
    """A stream whose file is gone after some batches."""

    def __init__(self, stream: BatchStream, left: int) -> None:
        self._stream, self._left = stream, left

    def __next__(self) -> Any:
        self._left -= 1
        if self._left < 0:
            raise FileNotFoundError(2, "No such file or directory", "images.npy")
        return next(self._stream)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._stream.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._stream.load_state_dict(state)


def test_data_that_vanish_end_in_a_sentence_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "straight", 6, every=2)
    dataset = open_dataset(gan().data)
    original = dataset.batches
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "batches", lambda *a, **k: Vanishing(original(*a, **k), 4))
        with pytest.raises(DataError, match="could not be read at iteration 5") as error:
            trained(tmp_path / "run", 6, every=2, dataset=dataset)
    assert dataset.name in str(error.value)
    trained(tmp_path / "run", 6, every=2)
    assert state(tmp_path / "run") == state(tmp_path / "straight")


def test_a_nan_leaves_the_last_checkpoint_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "straight", 6, every=2)
    calls = iter(range(100))
    original = LossValue.__init__

    def spoilt(self: LossValue, loss: torch.Tensor, *others: Any) -> None:
        bad = next(calls) == 9  # the generator's, in the fifth iteration
        original(self, loss * torch.nan if bad else loss, *others)

    with monkeypatch.context() as patch:
        patch.setattr(LossValue, "__init__", spoilt)
        with pytest.raises(NumericsError, match="'generator' became nan at iteration 5"):
            trained(tmp_path / "run", 6, every=2)
    trained(tmp_path / "run", 6, every=2)
    assert state(tmp_path / "run") == state(tmp_path / "straight")


if __name__ == "__main__":
    killer(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
