"""Checkpoints: all of a trainer's state, written whole or not at all, read without executing code.

A checkpoint is a folder ``step-00001000`` of safetensors files and one JSON. It is written beside its
place under a temporary name, flushed to disk and then renamed, so that a crash at any moment leaves
either the whole checkpoint or none. Checkpoints are only taken between iterations.

With several processes the main one writes for all: beside what they share, a file for each other
process holds what it has of its own (random streams, buffers such as a pool of particles).

Nothing that is not finite is written, and what is read is checked: names, types, shapes, finiteness, and
the checksums that ``state.json`` holds of all parts (those of version 0.1 have none).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from partikel.errors import CheckpointError, ConfigError, NumericsError
from partikel.errors.checks import Checked, checked
from partikel.files import (
    clear_parts,
    read_json,
    reading,
    replacing,
    sealed,
    write_json,
    writing_to,
)
from partikel.models import Carrier
from partikel.networks.weights import misfit, misfits, not_finite, read_tensors, write_tensors
from partikel.training.ema import averaged_model
from partikel.training.engine import on_main
from partikel.training.loop import Trainer

SCHEMA = 1
_STATE = "state.json"
_MEND = (
    "free some space or choose another --out, then run the same command; the last whole checkpoint is "
    "kept"
)
_SCALE = ("scale", "_growth_tracker")  # of loss scaling
_OF_TRAINING = re.compile(r"[^.]+|.*\baugmentation\.(p|signs|seen|batches)")
"""Names of what a training keeps beside networks: pools, stages, counters, shares of classes."""


@dataclass(frozen=True)
class Initial(Checked):
    """A run whose weights another one begins with.

    Attributes:
        run: its folder, of 'partikel train' or of :func:`partikel.training.fit`, or that of one of its
            checkpoints; its newest one is taken.
        optimizers: take Adam's moments too, instead of beginning them anew.
    """

    run: str
    optimizers: bool = False

    @classmethod
    def of(cls, run: Initial | Path | str) -> Initial:
        """What is given, or the run in a folder, whose optimisers are left out."""
        return run if isinstance(run, Initial) else cls(str(run))

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint.

        Raises:
            CheckpointError: if there is none.
        """
        folder = Path(self.run)
        found = folder if _there(folder / _STATE) else latest_checkpoint(folder / "checkpoints")
        if found is None:
            raise CheckpointError(
                f"{folder} holds no checkpoint to start from: name the folder of a run that has trained."
            )
        return found

    def weights_for(self, model: nn.Module) -> dict[str, Tensor]:
        """The state of ``model`` with the weights of this run's networks in it.

        Pools of particles, stages, counters, the shares of classes and an augmentation that adapts belong
        to a training, and stay the model's own.

        Raises:
            CheckpointError: where names or shapes differ, with the first of them.
        """
        found = read_part(self.checkpoint, "model")
        own = model.state_dict()
        kept = {name: value for name, value in own.items() if _OF_TRAINING.fullmatch(name)}
        found = {k: v for k, v in found.items() if not _OF_TRAINING.fullmatch(k)}
        differing = misfits({k: v for k, v in own.items() if k not in kept}, found)
        if first := "; ".join(islice(differing, 3)):
            raise CheckpointError(
                f"the weights of {self.run} do not fit this model ({first}{'; ...' * any(differing)}): "
                "start from a run of the same kind, and give this one its networks' settings."
            )
        return found | kept


@checked
def save_checkpoint(trainer: Trainer, folder: Path, keep: int = 2) -> Path:
    """Write a checkpoint and remove older ones once it is whole; called by all processes at once.

    Args:
        trainer: between two iterations.
        folder: the run's folder of checkpoints; made if missing.
        keep: how many checkpoints to leave, >= 1.

    Returns:
        The new checkpoint's folder.

    Raises:
        NumericsError: if weights or an optimiser's state are not finite; nothing is written.
        CheckpointError: if the disk is full or not writable; older checkpoints stay.
    """
    everyone = gather_object([_own_state(trainer)]) if _world(trainer) > 1 else []
    return on_main(lambda: _write(trainer, folder, keep, everyone[1:]))


def _write(trainer: Trainer, folder: Path, keep: int, others: list[dict[str, Tensor]]) -> Path:
    parts = {
        "model": trainer.model.state_dict(),
        "optimizers": _flat(_flat(each.state_dict()["state"]) for each in trainer.optimizers),
        "streams": trainer.streams.state_dict(),
        "batches": _flat(stream.state_dict() if stream else {} for stream in trainer.batches),
        **{_rank_part(rank): state for rank, state in enumerate(others, start=1)},
    }
    if trainer.average is not None:
        parts["average"] = trainer.average.state_dict()
    scales = [scaler.state_dict() if scaler else {} for scaler in trainer.scalers]
    if any(scales):
        parts["scales"] = _flat(
            {k: torch.tensor(each[k]) for k in _SCALE if each} for each in scales
        )
    _check_finite(trainer, parts)
    target = folder / f"step-{trainer.step:08d}"
    state = {"cpu_seconds": trainer.cpu_seconds, "processes": len(others) + 1}
    state |= {"iterations": trainer.iterations}
    if trainer.dataset.size("train") is not None:
        state["data"] = trainer.dataset.fingerprint("train")
    with writing_to(target, _MEND):
        clear_parts(folder)
        _write_parts(target, parts, {"step": trainer.step, **state})
    kept = _checkpoints(folder)[-keep:]
    for old in folder.glob("step-*"):
        if old not in kept:  # older ones, and what is left of one whose removal was cut short
            shutil.rmtree(old, ignore_errors=True)
    return target


def _write_parts(
    target: Path, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    """Write a folder of tensors and the state that says what they are, whole or not at all."""
    with replacing(target) as part:
        part.mkdir()
        sums = {
            name: write_tensors(part / f"{name}.safetensors", tensors)
            for name, tensors in parts.items()
        }
        written = {"schema": SCHEMA, **state, "parts": sorted(parts), "checksums": sums}
        write_json(part / _STATE, sealed(written))


def _check_finite(trainer: Trainer, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    for part, tensors in parts.items():
        bad = not_finite(tensors)
        if bad is None:
            continue
        what, mend = f"the weights '{bad}' are", "a lower learning rate or clipping"
        if part == "optimizers":
            loss = trainer.phases[int(bad.split(".")[0])].loss
            what = f"Adam's moments of the gradient of '{loss}' are"
            mend = "clipping (optimizer.clip), or a weaker field (a smaller eta)"
        raise NumericsError(
            f"{what} not finite after iteration {trainer.step}, so they were not saved: train "
            f"with {mend} in another --out; the last checkpoint stays."
        )


@checked
def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder, or None.

    Raises:
        CheckpointError: if the folder may not be read.
    """
    found = _checkpoints(folder)
    return found[-1] if found else None


@checked
def load_checkpoint(trainer: Trainer, checkpoint: Path) -> None:
    """Put a trainer exactly where :func:`save_checkpoint` left another one.

    Raises:
        CheckpointError: if files are missing, damaged, or of another model, schema or number of
            processes; the trainer must not be used then.
        ConfigError: if the trainer's number of iterations cannot follow, see :func:`check_length`.
    """
    state = _read_state(checkpoint, ("model", "optimizers", "streams", "batches"))
    falling = [f"the rate of '{phase.loss}'" for phase in trainer.phases if phase.optimizer.falls]
    lengths = (state.get("iterations", trainer.iterations), trainer.iterations)
    check_length(state["step"], *lengths, falling, checkpoint.parent.parent)
    then, now = state["processes"], _world(trainer)
    finished = state["step"] >= trainer.iterations  # nothing is drawn any more
    if then != now and not finished:
        raise CheckpointError(
            f"the checkpoint {checkpoint} was made by {then} process(es), each with its own random "
            f"streams, and this run has {now}: launch {then} to resume, or start in another --out."
        )
    data = trainer.dataset
    if not finished and state["data"] not in (None, data.fingerprint("train")):
        raise CheckpointError(
            f"the checkpoint {checkpoint} was made with other data than '{data.name}' is now: resume with "
            "the points and labels that it was made with, in their order, or start in another folder."
        )
    load_weights(trainer.model, checkpoint, "model")
    if trainer.average is not None:
        load_weights(trainer.average, checkpoint, "average")
    try:
        _load_optimizers(trainer, _read(checkpoint, state, "optimizers"), state["step"])
        rank = trainer.accelerator.process_index
        if not finished and rank == 0:
            _load_streams(trainer, _read(checkpoint, state, "streams"))
        elif not finished:
            _load_own_state(trainer, _read(checkpoint, state, _rank_part(rank)))
        if "scales" in state["parts"]:
            scales = _read(checkpoint, state, "scales")
            for i, scaler in enumerate(trainer.scalers):
                if scaler is not None:  # a run may go on in another precision
                    own = {key: value.item() for key, value in _group(scales, i).items()}
                    scaler.load_state_dict({**scaler.state_dict(), **own})
        batches = _read(checkpoint, state, "batches")
        for i, stream in enumerate(trainer.batches):
            if stream is not None:
                stream.load_state_dict(_group(batches, i))
    except (LookupError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint {checkpoint} does not fit this model's training ({error}): resume with "
            "the configuration it was made with, or start in another --out."
        ) from error
    trainer.step = state["step"]
    trainer.cpu_seconds = state["cpu_seconds"]


def load_weights(module: nn.Module, checkpoint: Path, part: str) -> None:
    """Load the weights of one part ("model", "average") of a checkpoint into ``module``.

    Raises:
        CheckpointError: if the file is missing or damaged, or of another architecture.
    """
    weights = read_part(checkpoint, part)
    wrong = misfit(module.state_dict(), weights)
    if wrong is not None:
        raise CheckpointError(
            f"the checkpoint {checkpoint} is of another model ({wrong}): build the model as it was when "
            "the weights were saved (use the configuration it was made with)."
        )
    module.load_state_dict(weights)


def load_sampled(model: Carrier, checkpoint: Path, raw: bool = False) -> None:
    """Load a checkpoint's weights, averaged ones where there are any, into a model that is sampled.

    Args:
        model: of the same architecture; it is in evaluation mode then.
        checkpoint: the folder.
        raw: leave the average out.

    Raises:
        CheckpointError: as :func:`load_weights`.
    """
    load_weights(model, checkpoint, "model")
    if not raw and has_average(checkpoint):
        average = averaged_model(model.sampled, 0.5)
        load_weights(average, checkpoint, "average")
        model.sampled.load_state_dict(average.module.state_dict())
    model.eval()


@checked
def load_initial(trainer: Trainer, initial: Initial | Path | str) -> None:
    """Put the weights of another run into a trainer that has not begun, and its average where both have one.

    Raises:
        CheckpointError: if the other run has none, is damaged, or is of another model.
    """
    initial = Initial.of(initial)
    checkpoint = initial.checkpoint
    trainer.model.load_state_dict(initial.weights_for(trainer.model))
    if trainer.average is not None:
        if has_average(checkpoint):
            load_weights(trainer.average, checkpoint, "average")
        else:  # it begins with these weights
            trainer.average.module.load_state_dict(trainer.model.sampled.state_dict())
    if initial.optimizers:
        try:
            _load_optimizers(trainer, read_part(checkpoint, "optimizers"), read_step(checkpoint))
        except (LookupError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"the optimisers of {initial.run} do not fit this training ({error}): start from its "
                "weights alone."
            ) from error


def check_length(done: int, then: int, now: int, tied: Sequence[str], folder: Path) -> None:
    """Refuse to go on with another number of iterations, where the first ones depended on it.

    Args:
        done: iterations that are done.
        then: the number of which they were the first.
        now: the number that is asked for.
        tied: what refers to it.
        folder: of the run.

    Raises:
        ConfigError: naming what refers to it, or where more are done.
    """
    if now < done:
        raise ConfigError(
            f"{folder} has done {done} iterations, and {now} are asked for: ask for at least {done}, or "
            "choose another folder (--out)."
        )
    if now != then and done and tied:
        raise ConfigError(
            f"{folder} is a run of {then} iterations, on whose number {' and '.join(tied)} "
            f"depend{'s' * (len(tied) == 1)}: it cannot become one of {now}, so repeat {then}, or start a "
            f"new run from its weights (--from {folder}, initial in Python)."
        )


def read_part(checkpoint: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part ("model", "average", "optimizers") of a checkpoint, by name.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    return _read(checkpoint, _read_state(checkpoint), part)


def has_average(checkpoint: Path) -> bool:
    """Whether a checkpoint holds averaged weights."""
    return "average" in _read_state(checkpoint)["parts"]


def read_step(checkpoint: Path) -> int:
    """The iteration after which a checkpoint was taken."""
    return _read_state(checkpoint)["step"]


@checked
def save(model: Carrier | Trainer, folder: Path | str) -> Path:
    """Save a model of one's own: weights and buffers, and of a trainer the average that sampling uses.

    The folder is a checkpoint without what only its training needs. :func:`load_into` reads it.

    Args:
        model: a carrier with its field, or the trainer that ``fit`` returned.
        folder: new, empty, or one with a saved model, which it replaces.

    Returns:
        The folder.

    Raises:
        ConfigError: for a folder that holds something else.
        NumericsError: if weights are not finite; nothing is written.
        CheckpointError: if the disk is full or not writable.
    """
    target = Path(folder)
    trainer = model if isinstance(model, Trainer) else None
    carrier = model.model if isinstance(model, Trainer) else model
    parts = {"model": carrier.state_dict()}
    if trainer is not None and trainer.average is not None:
        parts["average"] = trainer.average.state_dict()
    state = {"step": 0 if trainer is None else trainer.step, "cpu_seconds": 0.0}

    def write() -> None:
        with writing_to(target, "free some space or choose another folder"):
            holds = [] if not target.exists() else os.listdir(target)
            if holds and not _is_saved(holds):
                raise ConfigError(f"{target} holds something else: choose a new or empty folder.")
            _write_parts(target, parts, state)

    on_main(write)
    return target


@checked
def load_into(model: Carrier, folder: Path | str, raw: bool = False) -> Carrier:
    """Load the weights of a saved model into one that is built alike; no code is run.

    Args:
        model: a carrier with its field, as it was built for the one that was saved.
        folder: what :func:`save` wrote, ``fit(folder=...)`` or 'partikel train', of which the newest
            checkpoint is read; or one checkpoint.
        raw: the weights themselves, instead of their average where there is one.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: for a folder that holds no weights, damaged ones, or those of another model.
    """
    path = Path(folder)
    found = path if _there(path / _STATE) else latest_checkpoint(path / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{path} holds no weights of a model: name a folder that partikel.save, fit(folder=...) or "
            "'partikel train' wrote (what 'partikel export' wrote, partikel.load_generator reads)."
        )
    load_sampled(model, found, raw)
    return model


def _is_saved(names: Collection[str]) -> bool:
    """Whether files of these names are what :func:`save` wrote, and nothing else."""
    return _STATE in names and {*names} <= {_STATE, "model.safetensors", "average.safetensors"}


def _checkpoints(folder: Path) -> list[Path]:
    with reading(folder, "is no folder of checkpoints: move it away, or choose another --out."):
        if not _there(folder):
            return []
        found = [name for name in os.listdir(folder) if re.fullmatch(r"step-\d{8,18}", name)]
        found.sort(key=lambda name: int(name.removeprefix("step-")))
        return [folder / name for name in found if _there(folder / name / _STATE)]


def _there(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return bool(os.stat(path))  # a PermissionError is told, which Path.exists may not
    return False


def _read_state(checkpoint: Path, needed: Collection[str] = ("model",)) -> dict[str, Any]:
    mend = _mend(checkpoint)
    with reading(checkpoint, f"is no whole checkpoint ({_STATE} cannot be read): {mend}"):
        state = {"processes": 1, "checksums": {}, "data": None, **read_json(checkpoint / _STATE)}
        if state["schema"] != SCHEMA:
            raise CheckpointError(
                f"the checkpoint {checkpoint} has schema {state['schema']}, this version reads "
                f"{SCHEMA}: use the version of partikel that wrote it."
            )
        counts = [state["step"], state["processes"]]
        if {*needed} - {*state["parts"]} or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError
        state["checksums"] = dict(state["checksums"])
        state["cpu_seconds"] = float(state["cpu_seconds"])
    return state


def _mend(checkpoint: Path) -> str:
    """What to do about a damaged one."""
    if checkpoint.name.startswith("step-"):
        return (
            f"remove the folder {checkpoint.name}, and the run resumes from the checkpoint before."
        )
    return "save the model again."


def _read(checkpoint: Path, state: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    path = checkpoint / f"{part}.safetensors"
    return read_tensors(path, _mend(checkpoint), seal=state["checksums"].get(part))[0]


def _world(trainer: Trainer) -> int:
    return trainer.accelerator.num_processes


def _rank_part(rank: int) -> str:
    return f"process-{rank:05d}"


def _own_state(trainer: Trainer) -> dict[str, Tensor]:
    """What a process does not share with the others, on the CPU."""
    buffers = dict(trainer.model.named_buffers())
    state = _flat({"streams": trainer.streams.state_dict(), "buffers": buffers})
    return {key: value.detach().cpu() for key, value in state.items()}


def _load_streams(trainer: Trainer, state: dict[str, Tensor]) -> None:
    own, device = trainer.streams.state_dict(), trainer.accelerator.device.type
    if own.keys() == state.keys() and own["noise"].shape != state["noise"].shape:
        raise CheckpointError(
            f"the checkpoint was made on another kind of device (or is damaged), so that its random "
            f"numbers cannot go on on this one ({device}): resume where it was made, or start in "
            "another --out."
        )
    _check(misfit(own, state))
    trainer.streams.load_state_dict(state)


def _check(wrong: str | None) -> None:
    if wrong is not None:
        raise ValueError(wrong)


def _load_own_state(trainer: Trainer, state: dict[str, Tensor]) -> None:
    _load_streams(trainer, _group(state, "streams"))
    _check(misfit(dict(trainer.model.named_buffers()), _group(state, "buffers")))
    with torch.no_grad():
        for name, buffer in trainer.model.named_buffers():
            buffer.copy_(state[f"buffers.{name}"])


def _flat(
    groups: Mapping[Any, Mapping[str, Tensor]] | Iterable[Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Groups of tensors as one: "name.key", or "number.key"."""
    named = groups.items() if isinstance(groups, Mapping) else enumerate(groups)
    return {f"{name}.{key}": value for name, group in named for key, value in group.items()}


def _group(tensors: Mapping[str, Tensor], name: str | int) -> dict[str, Tensor]:
    """One group out of what :func:`_flat` joined."""
    start = f"{name}."
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


def _load_optimizers(trainer: Trainer, tensors: dict[str, Tensor], step: int) -> None:
    known: set[str] = set()
    for i, optimizer in enumerate(trainer.optimizers):
        state = optimizer.state_dict()
        weights = optimizer.param_groups[0]["params"]
        entries: dict[int, dict[str, Tensor]] = {}
        for j, weight in enumerate(weights):
            start = f"{i}.{j}"
            values = _group(tensors, start)
            if not values:  # a weight that has had no gradient yet has no state
                continue
            own = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": weight,
                "exp_avg_sq": weight,
            }
            wrong = misfit(_flat({start: own}), _flat({start: values}))
            _check(wrong and f"of the optimiser of '{trainer.phases[i].loss}' {wrong}")
            known |= {f"{start}.{key}" for key in values}
            entries[j] = {"step": values.pop("step")}
            for key, value in values.items():  # fused steps need the memory format of the weight
                entries[j][key] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        if step and not entries and trainer.scalers[i] is None:  # Adam would begin anew
            raise ValueError(f"there is no state of the optimiser of '{trainer.phases[i].loss}'")
        optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})
    if unknown := sorted({*tensors} - known):
        raise ValueError(
            f"its optimisers have another number of weights: '{unknown[0]}' is unknown"
        )
