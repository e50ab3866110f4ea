"""Damaged, edited, locked and moved files: the same numbers, or one sentence."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import partikel
from conftest import seeded
from partikel.app.cli import main
from partikel.app.config import make_recipe
from partikel.app.export import export_run
from partikel.app.gallery import distillation_of
from partikel.app.runs import Run, load, train_run
from partikel.data import open_dataset
from partikel.errors import CheckpointError, ConfigError, DataError, NumericsError, PartikelError
from partikel.files import locked
from partikel.training import Trainer, latest_checkpoint, load_checkpoint, save_checkpoint

MLP = {"kind": "mlp", "width": 8, "depth": 2, "embedding_features": 4}
SMALL = {"iterations": 2, "evaluate_every": 1, "evaluate_samples": 20, "batch": 8, "seed": 3}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "gan": (
        "gan",
        {"discriminator": MLP, "generator": MLP, "latent": 3, "ema": 0.9, "conditional": True},
    ),
    "flow": (
        "discriminator-flow",
        {"network": MLP, "steps": 3, "objective": "relativistic", "data": {"name": "digits"}},
    ),
}
MADE = Path(__file__).parent / "made_by_0.1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and an export."""
    folder = tmp_path_factory.mktemp("whole")
    for name, (kind, settings) in RUNS.items():
        run = train_run(make_recipe(kind, SMALL, settings), folder / name)
        if name == "gan":
            export_run(run, folder / "export")
    return folder


def trainer_of(run: Run) -> Trainer:
    recipe = run.recipe
    system = recipe.compose(open_dataset(recipe.data))
    iterations = 2 * recipe.iterations  # so that it is no finished run, which needs less
    return Trainer(system.model, run.dataset, system.phases, iterations=iterations, ema=recipe.ema)


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that training goes on from."""
    found = dict(trainer.model.state_dict()) | trainer.streams.state_dict()
    if trainer.average is not None:
        found |= {f"average.{k}": v for k, v in trainer.average.state_dict().items()}
    for i, optimizer in enumerate(trainer.optimizers):
        for j, entry in optimizer.state_dict()["state"].items():
            found |= {f"{i}.{j}.{k}": v for k, v in entry.items()}
    for i, stream in enumerate(trainer.batches):
        if stream is not None:
            found |= {f"batches.{i}.{k}": v for k, v in stream.state_dict().items()}
    return {k: v.clone() for k, v in found.items()} | {"done": torch.tensor(trainer.step)}


def numbers(path: Path) -> list[dict[str, Tensor]]:
    """What is made of a run or an export."""
    if path.name == "export":
        exported = partikel.load_generator(path)
        return [{"x": exported.sample(4, generator=seeded())}]
    run = load(path)
    trainer = trainer_of(run)
    checkpoint = latest_checkpoint(path / "checkpoints")
    assert checkpoint is not None
    load_checkpoint(trainer, checkpoint)
    assert run.step == trainer.step
    assert isinstance(run.log, list)
    return [{"x": run.sample(4, generator=seeded())}, state(trainer)]


def same(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> bool:
    return all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
        for x, y in zip(a, b, strict=True)
    )


VALUES = [None, -1, 1e999, "x", [], {}, True, 10**30, 0.5, [[[[]]]]]


def edited(file: Path, dice: random.Random) -> None:
    """One edit: a bit, an end, a value, a line."""
    content = file.read_bytes()
    kinds = ["bit", "bit", "cut", "empty", "junk", "pipe", "missing"]
    if file.suffix == ".json":
        kinds = ["bit", "cut", "value", "value", "value", "gone", "gone", "deep", "latin"]
    if file.suffix in (".yaml", ".jsonl"):
        kinds += ["latin", "deep"]
    kind = dice.choice(kinds)
    if kind == "bit":
        at = dice.randrange(len(content))
        file.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]
        )
    elif kind == "cut":
        file.write_bytes(content[: dice.randrange(len(content))])
    elif kind in ("pipe", "missing"):
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "junk":
        file.write_bytes(dice.randbytes(100))
    elif kind == "latin":
        file.write_bytes(content[:-2] + "µ".encode("latin-1") + content[-2:])
    elif kind == "deep":
        file.write_bytes(b"[" * 100_000)
    else:
        value = json.loads(content)
        place = value
        while True:
            key = dice.choice(sorted(place))
            if not isinstance(place[key], dict) or not place[key] or dice.random() < 0.3:
                break
            place = place[key]
        if kind == "gone":
            del place[key]
        else:
            place[key] = dice.choice(VALUES)
        file.write_text(json.dumps(value))


def walk(whole: Path, folder: Path, cases: int) -> tuple[int, int]:
    """Damage files one at a time; how many cases were as before, and how many refused."""
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    files = [p for p in files if "tensorboard" not in p.parts and p.name != ".lock"]
    names = sorted({p.parts[0] for p in files})
    before = {name: numbers(whole / name) for name in names}
    kept = refused = 0
    for case in range(cases):
        dice = random.Random(case)
        file = files[case % len(files)]
        name = file.parts[0]
        copy = Path(shutil.copytree(whole / name, folder / str(case) / name))
        edited(folder / str(case) / file, dice)
        said = None
        try:
            after = numbers(copy)
        except PartikelError as error:
            said = str(error)
        if said is None:
            assert same(before[name], after), (case, file)
        else:
            assert "\n" not in said, (case, file)
            assert len(said) < 600, (case, file)
        kept, refused = kept + (said is None), refused + (said is not None)
        shutil.rmtree(folder / str(case))
    return kept, refused


@pytest.mark.parametrize("cases", [32, pytest.param(400, marks=pytest.mark.slow)])
def test_damage_changes_nothing_or_is_told(whole: Path, tmp_path: Path, cases: int) -> None:
    kept, refused = walk(whole, tmp_path, cases)
    assert kept > 0
    assert refused > cases // 4


# --- weights that are whole but wrong ---


def rewritten(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def _typed(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], Any]:
    def change(tensors: dict[str, Tensor]) -> None:
        for key in [k for k in tensors if k.endswith("weight")]:
            tensors[key] = tensors[key].to(dtype)

    return change


def _nan(tensors: dict[str, Tensor]) -> None:
    tensors[sorted(k for k, v in tensors.items() if v.is_floating_point())[0]].fill_(torch.nan)


def _pop(tensors: dict[str, Tensor]) -> None:
    tensors.pop(sorted(tensors)[-1])


WRONG: list[tuple[str, Callable[[dict[str, Tensor]], Any]]] = [
    ("model", _nan),
    ("model", _pop),
    ("model", _typed(torch.int64)),
    ("model", _typed(torch.bool)),
    ("model", _typed(torch.float64)),
    ("average", _nan),
    ("average", _typed(torch.int32)),
    ("optimizers", _nan),
    ("optimizers", _pop),
    ("optimizers", lambda tensors: tensors.clear()),
    ("optimizers", lambda t: t.update({k: v[:-1].clone() for k, v in t.items() if v.ndim})),
    ("streams", lambda t: t.update({k: v.to(torch.int32) for k, v in t.items()})),
    ("streams", lambda t: t.update({k: v[:100].clone() for k, v in t.items()})),
    ("streams", _pop),
]


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("wrong", range(len(WRONG)))
def test_weights_that_do_not_fit_are_refused(
    whole: Path, tmp_path: Path, wrong: int, old: bool
) -> None:
    """Without checksums, as version 0.1 wrote them, too."""
    part, change = WRONG[wrong]
    copy = Path(shutil.copytree(whole / "gan", tmp_path / "gan"))
    checkpoint = latest_checkpoint(copy / "checkpoints")
    assert checkpoint is not None
    if old:
        record = json.loads((checkpoint / "state.json").read_text())
        del record["checksum"], record["checksums"]
        (checkpoint / "state.json").write_text(json.dumps(record))
        (copy / "data.json").unlink()
        assert same(numbers(copy), numbers(whole / "gan"))
    rewritten(checkpoint / f"{part}.safetensors", change)
    with pytest.raises(CheckpointError) as error:
        numbers(copy)
    assert "\n" not in str(error.value)


def test_a_data_order_that_is_none_is_refused(whole: Path, tmp_path: Path) -> None:
    run = load(whole / "flow")
    stream = trainer_of(run).batches[0]
    assert stream is not None
    next(stream)
    order = stream.state_dict()["order"]
    for bad in (order.clamp(max=5), order.double(), order + 1):
        with pytest.raises(CheckpointError, match="order"):
            stream.load_state_dict({"order": bad, "position": torch.tensor(0)})


@pytest.mark.parametrize(
    "changes",
    [
        {"label_weights": [float("nan")] * 5, "classes": 5},
        {"label_weights": [-1.0, 0.5, 0.5, 0.5, 0.5], "classes": 5},
        {"label_weights": [0.5, 0.5], "classes": 5},
        {"latent": {"size": 10**9, "std": 1.0}},
        {"latent": {"size": 3, "std": float("inf")}},
        {"latent": None},
        {"shape": [10**6, 10**6]},
        {"network": {"kind": "mlp", "width": 10**8, "depth": 2}},
        {"classes": "many"},
    ],
)
def test_an_export_of_bad_values_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    copy = Path(shutil.copytree(MADE / "export", tmp_path / "export"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError) as error:
        partikel.load_generator(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [1e30, torch.inf, torch.nan])
def test_samples_that_are_not_finite_are_an_error(value: float, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(MADE / "export", tmp_path / "export"))
    rewritten(
        copy / "generator.safetensors", lambda t: [v.fill_(value) for v in t.values() if v.ndim > 1]
    )
    with pytest.raises((NumericsError, CheckpointError), match="finite"):
        partikel.load_generator(copy).sample(3, generator=seeded())
    run = load(MADE / "gan")
    with torch.no_grad():
        for weight in run.model.sampled.parameters():
            weight.fill_(value)
    with pytest.raises(NumericsError, match="generator model left the finite numbers"):
        run.sample(3, generator=seeded())


def test_infinite_moments_are_not_saved(tmp_path: Path) -> None:
    recipe = make_recipe(
        "discriminator-flow", {"network": MLP, "eta": 1e30, "iterations": 6, "batch": 16}
    )
    recipe = make_recipe(
        "discriminator-flow",
        {"network": MLP, "batch": 16, "iterations": 6, "evaluate_every": None},
        {"checkpoint_every": 2},
    )
    dataset = open_dataset(recipe.data)
    system = recipe.compose(dataset)
    trainer = Trainer(system.model, dataset, system.phases, iterations=6)
    steps = trainer.run()
    next(steps)
    kept = save_checkpoint(trainer, tmp_path)
    next(steps)
    moments = next(iter(trainer.optimizers[0].state.values()))["exp_avg_sq"]
    moments.view(-1)[0] = torch.inf
    with pytest.raises(
        NumericsError, match=r"'discriminator' are not finite after iteration 2.*eta"
    ):
        save_checkpoint(trainer, tmp_path)
    assert latest_checkpoint(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


# --- permissions ---


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def as_other(work: Callable[[], Any], without_rights: bool = False) -> str:
    """What the error of another process says."""
    read, write = os.pipe()
    if pid := os.fork():
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
        return said
    try:
        if without_rights and os.getuid() == 0:
            os.setuid(65534)
        work()
        said = "no error"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    os.write(write, said.encode())
    os._exit(0)


@pytest.mark.parametrize(
    "closed",
    ["checkpoints", "checkpoints/*", "checkpoints/*/model.safetensors", "checkpoints/*/state.json",
     "config.yaml", "data.json"],
)  # fmt: skip
def test_what_may_not_be_read_is_not_called_damaged(whole: Path, shared: Path, closed: str) -> None:
    copy = Path(shutil.copytree(whole / "gan", shared / "gan"))
    place = sorted(copy.glob(closed))[-1]
    os.chmod(place, 0)
    said = as_other(lambda: load(copy), without_rights=True)
    os.chmod(place, 0o755)
    assert said.startswith("CheckpointError: ")
    assert "may not be read (Permission denied)" in said
    assert "remove" not in said
    assert as_other(lambda: load(copy), without_rights=True) == "no error"


def test_files_have_the_mode_that_the_umask_gives(whole: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run = train_run(make_recipe("gan", SMALL, RUNS["gan"][1]), tmp_path / "run")
        export_run(run, tmp_path / "export")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o640}


# --- two processes ---


def test_a_second_process_is_told_and_changes_nothing(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole / "gan", tmp_path / "gan"))
    recipe = load(copy).recipe
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with locked(copy):
        said = as_other(lambda: train_run(recipe, copy))
        assert "ConfigError: another process trains in" in said
        assert as_other(lambda: load(copy).sample(2, generator=seeded())) == "no error"
        assert load(copy).step == 2
        after = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
        assert {p: after[p] for p in before} == before
    assert as_other(lambda: train_run(recipe, copy)) == "no error"


def test_a_kill_releases_the_lock(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from partikel.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another process trains"), locked(tmp_path):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    with locked(tmp_path), locked(tmp_path):  # the same thread may ask again
        pass


def test_a_folder_is_made_where_none_was_and_removed_where_nothing_came_of_it(
    tmp_path: Path,
) -> None:
    deep = tmp_path / "runs" / "run"
    with locked(deep):
        assert deep.is_dir()
    assert not any(tmp_path.iterdir())


def test_without_locks_there_is_a_warning_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked") as found:
        run = train_run(make_recipe("gan", SMALL, RUNS["gan"][1]), tmp_path / "run")
    assert run.step == 2
    assert len([each for each in found if "locked" in str(each.message)]) == 1


def test_a_refused_training_leaves_no_folder(tmp_path: Path) -> None:
    recipe = make_recipe(
        "gan", SMALL, RUNS["gan"][1], {"data": {"name": "folder", "path": "nowhere"}}
    )
    with pytest.raises(PartikelError):
        train_run(recipe, tmp_path / "runs" / "run")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_folder_that_vanishes_is_told(
    how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    recipe = make_recipe(
        "gan", {**SMALL, "iterations": 100, "checkpoint_every": 10}, RUNS["gan"][1],
        {"evaluate_every": None},
    )  # fmt: skip
    original = Trainer._run_phase
    moved = []

    def phase(self: Trainer, *arguments: Any) -> Any:
        if self.step == 55 and not moved:
            moved.append(1)
            if how == "removed":
                shutil.rmtree(out)
            else:
                out.rename(tmp_path / "elsewhere")
            if how == "replaced":
                out.mkdir()
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_run_phase", phase)
        with pytest.raises(CheckpointError, match="was moved, removed or replaced") as error:
            train_run(recipe, out)
    assert "\n" not in str(error.value)
    assert not out.exists() or not any(out.iterdir())
    assert "Traceback" not in capfd.readouterr().err
    if how == "moved":
        (tmp_path / "elsewhere").rename(out)
        assert train_run(recipe, out).step == 100


def test_a_resumed_run_has_one_file_of_tensorboard(tmp_path: Path) -> None:
    events_of = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(events_of, reason="needs the extra 'tensorboard'")

    model = RUNS["gan"][1]
    for iterations in (2, 4):
        recipe = make_recipe("gan", {**SMALL, "iterations": 4}, model)
        dataset = open_dataset(recipe.data)
        system = recipe.compose(dataset)
        from partikel.training import fit

        fit(
            system.model, dataset, system.phases, iterations=iterations, folder=tmp_path,
            evaluate=lambda model, step: {"figure": float(step)}, evaluate_every=1,
        )  # fmt: skip
    (events,) = (tmp_path / "tensorboard").glob("events*")
    found = accumulator.EventAccumulator(str(events)).Reload().Scalars("figure")
    assert [(each.step, each.value) for each in found] == [(k, k) for k in range(5)]


# --- logs ---


def test_a_log_cut_short_is_read_and_a_damaged_one_told(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole / "gan", tmp_path / "gan"))
    file, run = copy / "metrics.jsonl", load(copy)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines) + lines[-1][:10])
    assert run.log == load(whole / "gan").log
    file.write_bytes(lines[0] + b'{"step": \n' + b"".join(lines[1:]))
    with pytest.raises(CheckpointError, match="line 2 of .* cannot be read"):
        _ = run.log


# --- without the data ---


def pictures(folder: Path, count: int = 40) -> Path:
    from PIL import Image

    dice = np.random.RandomState(0)
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for i in range(count // 2):
            pixels = dice.randint(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((16, 16)).save(folder / kind / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", ["gan", "flow"])
def test_a_run_is_used_without_its_pictures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARTIKEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "own")
    data = {"name": "folder", "path": "own", "size": 16, "validation": 0.2}
    kind, settings = RUNS[name]
    recipe = make_recipe(
        kind, {**SMALL, "evaluate_every": None}, settings, {"conditional": True}, {"data": data},
        {"objective": "logit"} if name == "flow" else {},
    )  # fmt: skip
    run = train_run(recipe, tmp_path / "run")
    expected = run.sample(6, generator=seeded())
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    again = load(tmp_path / "run")
    assert torch.equal(again.sample(6, generator=seeded()), expected)
    assert again.dataset.size() == run.dataset.size()  # found from another working directory
    if name == "flow":
        small = {"iterations": 1, "batch": 8, "evaluate_every": None, "loss": "semigroup"}
        small["network"] = {"kind": "mlp", "width": 8, "depth": 1}
        train_run(distillation_of(again, small), "map")
        pictures(tmp_path / "others", 20)
        moved = {**small, "data": {"path": "../others"}}
        with pytest.raises(CheckpointError, match="run was trained on other data"):
            train_run(distillation_of(again, moved), "map2")
    (tmp_path / "own").rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "cache")
    again = load(tmp_path / "run")
    assert torch.equal(again.sample(6, generator=seeded()), expected)
    with pytest.raises(DataError):
        _ = again.dataset
    main(["sample", str(tmp_path / "run"), "-n", "4"])
    main(["interpolate", str(tmp_path / "run"), "--pairs", "2", "--points", "3"])
    if name == "gan":
        main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "export")])
        assert partikel.load_generator(tmp_path / "export").classes == 2


def test_a_field_that_compares_with_data_keeps_some(whole: Path, tmp_path: Path) -> None:
    run = load(whole / "flow")
    expected = run.sample(3, generator=seeded())
    assert "opened" not in vars(run.data)  # nothing was opened
    copy = Path(shutil.copytree(whole / "flow", tmp_path / "flow"))
    (copy / "context.safetensors").unlink()
    assert torch.equal(load(copy).sample(3, generator=seeded()), expected)


# --- nothing half-made ---


def test_a_comparison_that_fails_leaves_no_folder(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from partikel.app import gallery

    def broken(*_: Any, **__: Any) -> None:
        raise DataError("no data.")

    monkeypatch.setattr(gallery, "evaluate_run", broken)
    with pytest.raises(DataError):
        gallery.compare_runs([load(whole / "gan")], tmp_path / "comparison")
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").touch()
    with pytest.raises(DataError):
        gallery.compare_runs([load(whole / "gan")], tmp_path / "mine")
    assert (tmp_path / "mine" / "note").exists()
