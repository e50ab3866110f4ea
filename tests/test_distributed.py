"""Two processes do what one does on the same global batch and noise, and draw their own otherwise.

The processes are started once, by torchrun on the CPU; each runs every case of ``CASES`` and leaves what
it found in a file, which the tests read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from partikel.app.config import make_recipe
from partikel.data import open_dataset
from partikel.errors import CheckpointError, ConfigError, NumericsError
from partikel.fields import Loss, LossValue
from partikel.streams import Streams
from partikel.training import (
    Engine,
    Interrupted,
    Trainer,
    fit,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from partikel.training.engine import on_main, processes

WORLD = 2
MLP = {"kind": "mlp", "width": 8, "depth": 2, "embedding_features": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "edm": ("edm", {"network": MLP}),
    "edm-digits": ("edm", {"network": MLP, "data": {"name": "digits"}}),
    "gan": (
        "gan",
        {
            "discriminator": MLP,
            "generator": MLP,
            "latent": 4,
            "penalties": [{"weight": 0.1, "at": "interpolated"}],
        },
    ),
    "relativistic": (
        "gan",
        {"discriminator": MLP, "generator": MLP, "latent": 4, "objective": "relativistic"},
    ),
    "score-gan": (
        "score-gan",
        {"own_score": MLP, "generator": MLP, "score": {"network": MLP}, "score_steps": 2},
    ),
    "discriminator-flow": (
        "discriminator-flow",
        {"network": MLP, "steps": 4, "times_per_path": 2, "objective": "relativistic"},
    ),
    "bank": (  # a network of its own for each node: a process may have particles at none of them
        "diffode-gan",
        {"discriminator": MLP, "discriminators": "independent", "steps": 16},
    ),
    "staged": (
        "diffode-gan",
        {
            "discriminator": MLP,
            "discriminators": "independent",
            "staged": True,
            "pool": 24,
            "steps": 4,
        },
    ),
}


def trainer_of(name: str, **engine: Any) -> Trainer:
    kind, settings = MODELS[name]
    recipe = make_recipe(kind, {"iterations": 8, "batch": 16, "ema": 0.9}, settings)
    dataset = open_dataset(recipe.data)
    system = recipe.system(dataset)
    return Trainer(
        system.model.double(),
        dataset,
        system.phases,
        iterations=8,
        ema=recipe.ema,
        engine=Engine(**engine),
    )


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}


def advance(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    run = trainer.run()
    return [{k: float(v) for k, v in next(run).metrics.items()} for _ in range(steps)]


@contextlib.contextmanager
def global_noise(trainer: Trainer, rank: int, world: int) -> Iterator[None]:
    """Every process draws for the whole batch, from the same streams, and takes its own rows."""
    trainer.streams = Streams(0)
    kept = {name: getattr(torch, name) for name in ("randn", "rand")}

    def sharing(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(*shape: Any, **options: Any) -> Tensor:
            if options.get("generator") not in vars(trainer.streams).values():
                return draw(*shape, **options)  # the data, which are shared already
            n, *rest = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
            return draw((n * world, *rest), **options)[rank * n : (rank + 1) * n]

        return drawn

    try:
        for name, draw in kept.items():
            setattr(torch, name, sharing(draw))
        yield
    finally:
        for name, draw in kept.items():
            setattr(torch, name, draw)


def shared_noise(name: str, rank: int, world: int, **engine: Any) -> dict[str, Any]:
    trainer = trainer_of(name, **engine)
    with global_noise(trainer, rank, world):
        metrics = advance(trainer, 4)
    gradients = {
        f"{i}.{j}": p.grad.clone()
        for i, optimizer in enumerate(trainer.optimizers)
        for j, p in enumerate(optimizer.param_groups[0]["params"])
        if p.grad is not None
    }
    return {"weights": weights(trainer), "gradients": gradients, "metrics": metrics}


SHARED = [name for name in MODELS if name != "staged"]


def _own_noise(folder: Path, rank: int) -> Any:
    trainer = trainer_of("gan")
    with torch.no_grad():
        x = trainer.model.particles(8, trainer.streams).x
    advance(trainer, 3)
    return {
        "particles": x,
        "streams": trainer.streams.state_dict(),
        "weights": weights(trainer),
        "average": trainer.average is not None,
    }


def _resumed(name: str) -> Callable[[Path, int], Any]:
    def case(folder: Path, rank: int) -> Any:
        straight = trainer_of(name)
        advance(straight, 8)
        first = trainer_of(name)
        advance(first, 3)
        path = save_checkpoint(first, folder / name)
        second = trainer_of(name)
        load_checkpoint(second, path)
        advance(second, 5)
        states = [weights(t) | t.streams.state_dict() for t in (straight, second)]
        return {"straight": states[0], "resumed": states[1]}

    return case


def _alike(folder: Path, rank: int) -> Any:
    trainer = trainer_of("gan")
    with torch.no_grad():
        next(trainer.model.parameters()).add_(rank)
    again = Trainer(trainer.model, trainer.dataset, trainer.phases, iterations=8)
    return weights(again)


def _fitted(folder: Path, rank: int) -> Any:
    """Each process has a folder of its own; only the main one may make it."""
    trainer = trainer_of("gan")
    calls = []
    fit(
        trainer.model,
        trainer.dataset,
        trainer.phases,
        iterations=4,
        folder=folder / f"fit-{rank}",
        checkpoint_every=2,
        evaluate=lambda model, step: calls.append(step) or {"figure": 1.0},
        evaluate_every=2,
    )
    return calls


def _stopped(folder: Path, rank: int) -> Any:
    """A signal that one process gets in its sixth iteration."""
    trainer = trainer_of("edm")
    calls = iter(range(1000))

    def signalled(*arguments: Any) -> None:
        if rank == 1 and next(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer._losses[0].module.register_forward_hook(signalled)
    try:
        fit(
            trainer.model,
            trainer.dataset,
            trainer.phases,
            iterations=40,
            folder=folder / "stopped",
        )
    except Interrupted as error:
        return {"code": error.exit_code, "message": str(error)}


def _message(error: type[Exception], work: Callable[[], Any]) -> str:
    try:
        work()
    except error as found:
        return str(found)
    return "no error"


def _errors(folder: Path, rank: int) -> Any:
    trainer = trainer_of("edm")
    loss = trainer._losses[0]

    def compute(batch: Any) -> LossValue:
        value = loss.compute(batch)
        return LossValue(value.loss * (torch.nan if rank == 1 else 1))

    trainer._losses[0] = Loss(loss.name, loss.module, loss.needs, compute)
    before = weights(trainer)
    nan = _message(NumericsError, lambda: advance(trainer, 1))
    after = weights(trainer)

    def refuse() -> None:
        raise CheckpointError("the main process cannot write")

    return {
        "nan": nan,
        "unspoilt": all(torch.equal(before[k], after[k]) for k in before),
        "main": _message(CheckpointError, lambda: on_main(refuse)),
        "share": _message(ConfigError, lambda: trainer_of("edm", accumulate=3)),
    }


CASES: dict[str, Callable[[Path, int], Any]] = {
    **{n: lambda folder, rank, n=n: shared_noise(n, rank, WORLD) for n in SHARED},
    "own noise": _own_noise,
    "resumed gan": _resumed("gan"),
    "resumed staged": _resumed("staged"),
    "alike": _alike,
    "fitted": _fitted,
    "stopped": _stopped,
    "errors": _errors,
}


def worker(folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    rank = processes().process_index
    found = {name: case(folder, rank) for name, case in CASES.items()}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What each process found, and where they worked."""
    folder = tmp_path_factory.mktemp("processes")
    launch(2, str(Path(__file__)), str(folder))
    return folder, [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(WORLD)]


def launch(count: int, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, f"--nproc_per_node={count}", *command],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_have_the_gradients_of_one(name: str, found: Any) -> None:
    alone = shared_noise(name, 0, 1)
    for each in found[1]:
        torch.testing.assert_close(
            each[name]["gradients"], alone["gradients"], rtol=1e-7, atol=1e-9
        )
        torch.testing.assert_close(each[name]["weights"], alone["weights"], rtol=1e-7, atol=1e-9)
        for ours, theirs in zip(each[name]["metrics"], alone["metrics"], strict=True):
            losses = [k for k in theirs if k.endswith("/loss") or "/d_" in k]
            assert [ours[k] for k in losses] == pytest.approx([theirs[k] for k in losses], rel=1e-7)
    assert_same(found[1][0][name]["weights"], found[1][1][name]["weights"])


def test_processes_draw_their_own_noise_and_agree_on_the_data(found: Any) -> None:
    first, second = (each["own noise"] for each in found[1])
    assert not (first["particles"] == second["particles"]).any()
    same = {name for name, s in first["streams"].items() if torch.equal(s, second["streams"][name])}
    assert same == {"data"}
    assert_same(first["weights"], second["weights"])
    assert (first["average"], second["average"]) == (True, False)


@pytest.mark.parametrize("name", ["gan", "staged"])
def test_two_processes_resume_bit_for_bit(name: str, found: Any) -> None:
    for each in found[1]:
        assert_same(each[f"resumed {name}"]["straight"], each[f"resumed {name}"]["resumed"])
    if name == "staged":  # each has particles of its own
        pools = [each["resumed staged"]["straight"]["pool"] for each in found[1]]
        assert not (pools[0] == pools[1]).any()


def test_all_processes_start_with_the_weights_of_the_main_one(found: Any) -> None:
    assert_same(found[1][0]["alike"], found[1][1]["alike"])
    trainer = trainer_of("gan")
    assert_same(found[1][0]["alike"], weights(trainer))


def test_only_the_main_process_evaluates_and_writes(found: Any) -> None:
    folder, each = found
    assert [one["fitted"] for one in each] == [[0, 2, 4], []]
    assert (folder / "fit-0" / "metrics.jsonl").is_file()
    assert latest_checkpoint(folder / "fit-0" / "checkpoints") is not None
    assert not (folder / "fit-1").exists()


def test_a_signal_to_one_process_stops_all_after_the_same_iteration(found: Any) -> None:
    first, second = (each["stopped"] for each in found[1])
    assert first == second
    assert first["code"] == 143
    assert first["message"].startswith("stopped after iteration 6 of 40")
    path = latest_checkpoint(found[0] / "stopped" / "checkpoints")
    assert path is not None
    assert path.name == "step-00000006"


def test_errors_reach_all_processes(found: Any) -> None:
    for each in found[1]:
        assert each["errors"]["nan"].startswith("the loss 'score' became nan at iteration 1")
        assert each["errors"]["unspoilt"]
        assert each["errors"]["main"] == "the main process cannot write"
        assert (
            "a batch of 16 ('score') cannot be shared by 2 process(es)" in each["errors"]["share"]
        )
        assert "a multiple of 6" in each["errors"]["share"]


def test_another_number_of_processes_is_refused(found: Any) -> None:
    path = latest_checkpoint(found[0] / "gan")
    assert path is not None
    with pytest.raises(CheckpointError, match=r"made by 2 process\(es\).* and this run has 1"):
        load_checkpoint(trainer_of("gan"), path)


@pytest.mark.slow
def test_the_command_line_trains_on_two_processes_and_speaks_once(tmp_path: Path) -> None:
    command = ["-m", "partikel", "train", "gan-gaussians", "--out", str(tmp_path / "run")]
    small = ["--iterations", "6", "--evaluate_every", "3", "--evaluate_samples", "50"]
    done = launch(2, *command, *small)
    assert done.stdout.count("trained gan-gaussians for 6 iterations") == 1
    refused = launch(2, *command, *small, "--batch", "7", check=False)
    assert refused.returncode != 0
    assert refused.stderr.count("partikel: ") == 1


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
