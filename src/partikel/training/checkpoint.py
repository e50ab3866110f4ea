"""Checkpoints: all of a trainer's state, written whole or not at all, read without executing code.

A checkpoint is a folder ``step-00001000`` of safetensors files and one JSON. It is written beside its
place under a temporary name, flushed to disk and then renamed, so that a crash at any moment leaves
either the whole checkpoint or none. Checkpoints are only taken between iterations.

With several processes the main one writes for all: beside what they share, a file for each other
process holds what it has of its own (random streams, buffers such as a pool of particles).
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from partikel.checks import checked
from partikel.errors import CheckpointError, NumericsError
from partikel.files import clear_parts, replacing, write_json
from partikel.training.engine import on_main
from partikel.training.loop import Trainer

SCHEMA = 1
_STATE = "state.json"
_SCALE = ("scale", "_growth_tracker")  # of loss scaling


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
        NumericsError: if weights are not finite; nothing is written.
        CheckpointError: if the disk is full or not writable; older checkpoints stay.
    """
    everyone = gather_object([_own_state(trainer)]) if _world(trainer) > 1 else []
    return on_main(lambda: _write(trainer, folder, keep, everyone[1:]))


def _write(trainer: Trainer, folder: Path, keep: int, others: list[dict[str, Tensor]]) -> Path:
    model = trainer.model.state_dict()
    bad = [k for k, v in model.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise NumericsError(
            f"the weights '{bad[0]}' are not finite after iteration {trainer.step}, so they were not "
            "saved: resume from the last checkpoint with a lower learning rate or clipping."
        )
    parts = {
        "model": model,
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
    target = folder / f"step-{trainer.step:08d}"
    state = {"schema": SCHEMA, "step": trainer.step, "cpu_seconds": trainer.cpu_seconds}
    state |= {"processes": len(others) + 1, "parts": sorted(parts)}
    try:
        clear_parts(folder)
        with replacing(target) as part:
            part.mkdir()
            for name, tensors in parts.items():
                whole = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
                save_file(whole, part / f"{name}.safetensors")
            write_json(part / _STATE, state)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)
        cause = "the disk is full" if full else str(error)
        raise CheckpointError(
            f"could not write the checkpoint {target} ({cause}): free some space or choose another "
            "--out, then run the same command; the last whole checkpoint is kept."
        ) from error
    kept = _checkpoints(folder)[-keep:]
    for old in folder.glob("step-*"):
        if old not in kept:  # older ones, and what is left of one whose removal was cut short
            shutil.rmtree(old, ignore_errors=True)
    return target


@checked
def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder, or None."""
    found = _checkpoints(folder)
    return found[-1] if found else None


@checked
def load_checkpoint(trainer: Trainer, checkpoint: Path) -> None:
    """Put a trainer exactly where :func:`save_checkpoint` left another one.

    Raises:
        CheckpointError: if files are missing, truncated, or of another model, schema or number of
            processes; the trainer must not be used then.
    """
    state = _read_state(checkpoint)
    then, now = state.get("processes", 1), _world(trainer)
    finished = int(state["step"]) >= trainer.iterations  # nothing is drawn any more
    if then != now and not finished:
        raise CheckpointError(
            f"the checkpoint {checkpoint} was made by {then} process(es), each with its own random "
            f"streams, and this run has {now}: launch {then} to resume, or start in another --out."
        )
    load_weights(trainer.model, checkpoint, "model")
    if trainer.average is not None:
        load_weights(trainer.average, checkpoint, "average")
    try:
        _load_optimizers(trainer, _read(checkpoint, "optimizers"))
        rank = trainer.accelerator.process_index
        if then != now:
            pass
        elif rank == 0:
            trainer.streams.load_state_dict(_read(checkpoint, "streams"))
        else:
            _load_own_state(trainer, _read(checkpoint, _rank_part(rank)))
        if "scales" in state["parts"]:
            scales = _read(checkpoint, "scales")
            for i, scaler in enumerate(trainer.scalers):
                if scaler is not None:  # a run may go on in another precision
                    own = {key: value.item() for key, value in _group(scales, i).items()}
                    scaler.load_state_dict({**scaler.state_dict(), **own})
        batches = _read(checkpoint, "batches")
        for i, stream in enumerate(trainer.batches):
            if stream is not None:
                stream.load_state_dict(_group(batches, i))
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {checkpoint} does not fit this model's training ({error}): resume with "
            "the configuration it was made with, or start in another --out."
        ) from error
    trainer.step = int(state["step"])
    trainer.cpu_seconds = float(state["cpu_seconds"])


def load_weights(module: nn.Module, checkpoint: Path, part: str) -> None:
    """Load the weights of one part ("model", "average") of a checkpoint into ``module``.

    Raises:
        CheckpointError: if the file is missing or truncated, or of another architecture.
    """
    weights = _read(checkpoint, part)
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(weights)) or sorted(
        key for key in own if own[key].shape != weights[key].shape
    )
    if wrong:
        raise CheckpointError(
            f"the checkpoint {checkpoint} is of another model: '{wrong[0]}' "
            f"({len(wrong)} in all) is missing, unknown or of another shape; use the configuration "
            "it was made with."
        )
    module.load_state_dict(weights)


def has_average(checkpoint: Path) -> bool:
    """Whether a checkpoint holds averaged weights."""
    return "average" in _read_state(checkpoint)["parts"]


def read_step(checkpoint: Path) -> int:
    """The iteration after which a checkpoint was taken."""
    return int(_read_state(checkpoint)["step"])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / _STATE).is_file())


def _read_state(checkpoint: Path) -> dict:
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        schema = state["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint} is no whole checkpoint ({_STATE} cannot be read): remove it, and the "
            "run resumes from the one before."
        ) from error
    if schema != SCHEMA:
        raise CheckpointError(
            f"the checkpoint {checkpoint} has schema {schema}, this version reads {SCHEMA}: "
            "use the version of partikel that wrote it."
        )
    return state


def _read(checkpoint: Path, part: str) -> dict[str, Tensor]:
    path = checkpoint / f"{part}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is missing, truncated or no safetensors file: remove the folder "
            f"{checkpoint.name}, and the run resumes from the checkpoint before."
        ) from error


def _world(trainer: Trainer) -> int:
    return trainer.accelerator.num_processes


def _rank_part(rank: int) -> str:
    return f"process-{rank:05d}"


def _own_state(trainer: Trainer) -> dict[str, Tensor]:
    """What a process does not share with the others, on the CPU."""
    buffers = dict(trainer.model.named_buffers())
    state = _flat({"streams": trainer.streams.state_dict(), "buffers": buffers})
    return {key: value.detach().cpu() for key, value in state.items()}


def _load_own_state(trainer: Trainer, state: dict[str, Tensor]) -> None:
    trainer.streams.load_state_dict(_group(state, "streams"))
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


def _load_optimizers(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    for i, optimizer in enumerate(trainer.optimizers):
        state = optimizer.state_dict()
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in _group(tensors, i).items():
            parameter, name = key.split(".")
            entries.setdefault(int(parameter), {})[name] = value
        weights = optimizer.param_groups[0]["params"]
        if entries and max(entries) >= len(weights):  # weights without a gradient yet have no state
            raise ValueError("another number of trained weights")
        for parameter, values in entries.items():
            weight = weights[parameter]
            for key, value in values.items():
                if value.shape == weight.shape:  # fused steps need the memory format of the weight
                    values[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})
