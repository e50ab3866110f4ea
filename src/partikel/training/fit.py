"""``fit``: the loop with everything around it that a user wants of a training run.

Progress on the terminal, a log of metrics, TensorBoard where it is installed, checkpoints, resuming, and
a clean end on Ctrl-C or SIGTERM. The loop itself is :class:`partikel.training.loop.Trainer`. Of several
processes only the main one evaluates, logs and writes, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator

from partikel.data import Dataset, in_memory
from partikel.errors import ConfigError, DataError, PartikelError, installed
from partikel.errors.checks import Count, Iterations, Natural, checked
from partikel.files import check_held, plain_file, write_whole, writing_to
from partikel.models import Carrier
from partikel.objectives import exact
from partikel.streams import seeded
from partikel.training.checkpoint import (
    Initial,
    latest_checkpoint,
    load_checkpoint,
    load_initial,
    save_checkpoint,
)
from partikel.training.ema import EMA, swapped_in
from partikel.training.engine import Engine, accelerator_for, holding, on_main
from partikel.training.loop import Trainer
from partikel.training.phases import Phase

if TYPE_CHECKING:  # what is no data is refused by in_memory, which knows what to pass instead
    from partikel.data.own import Labels, Points

Evaluate = Callable[[Carrier, int], dict[str, float]]
"""(model with averaged weights in evaluation mode, iteration) -> figures to log."""

Progress = Callable[[Trainer], AbstractContextManager[Callable[[Mapping[str, Any]], None]]]
"""Made for a trainer, it is entered for the time of training and called after each iteration with what was
measured, or with that iteration's losses (scalars, on the device)."""


_MEND = "free some space, then run the same command; the last whole checkpoint is kept"


class Interrupted(PartikelError):
    """Training was asked to stop and has saved what it had.

    Attributes:
        exit_code: 130 for Ctrl-C, 143 for SIGTERM, by convention of shells.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@checked
def fit(
    model: Carrier,
    dataset: Dataset | Points,
    phases: Sequence[Phase] | None = None,
    *,
    iterations: Natural,
    labels: Labels | None = None,
    seed: int = 0,
    ema: float | EMA | None = None,
    engine: Engine | None = None,
    folder: Path | str | None = None,
    initial: Initial | Path | str | None = None,
    checkpoint_every: Iterations = 1000,
    evaluate: Evaluate | None = None,
    evaluate_every: Iterations | None = None,
    progress: Progress | None = None,
) -> Trainer:
    """Train a model; with a folder, resume what is there and leave checkpoints and a log.

    Args:
        model: a carrier with its field.
        dataset: the data: a tensor or an array of points (N, ...), a torch ``Dataset`` of x or
            (x, label), a pair (x, labels), see :func:`partikel.data.in_memory`; or a data set of
            :func:`partikel.data.open_dataset`.
        phases: what an iteration does; one update of each of the model's losses unless given, see
            :func:`default_phases`.
        iterations: length of the run, in iterations.
        labels: (N,) classes of the points, of a conditional model.
        seed: of all random streams.
        ema: how the sampled weights are averaged (a number is a decay); None keeps no average.
        engine: how it is computed.
        folder: for ``checkpoints/``, ``metrics.jsonl`` and, where TensorBoard is installed,
            ``tensorboard/``; None keeps nothing.
        initial: a run to begin with the weights of, by its folder; once this one's folder has a checkpoint,
            it goes on from there.
        checkpoint_every: iterations between checkpoints.
        evaluate: called with the model (averaged weights in place, networks as they are written,
            whatever the engine) and the iteration.
        evaluate_every: iterations between evaluations; the last iteration is evaluated too. None
            for no evaluation.
        progress: what shows it, such as :func:`partikel.app.progress.progress_bar`; None shows
            nothing.

    Returns:
        The trainer, whose ``model`` has its raw weights; averaged ones are in ``average``.

    Raises:
        NumericsError: if losses or weights leave the finite numbers; the last checkpoint stays.
        ConfigError: if another process trains in the folder, nothing trains the model, or the folder holds
            more iterations, or as many others as a falling rate does not allow.
        CheckpointError: if the folder cannot be written to or vanishes, a checkpoint cannot be read or is
            of other data, or the weights of ``initial`` do not fit.
        DataError: for points or labels that the model cannot be trained on; if the data vanish, where
            the last checkpoint stays.
        TypeError: for what are no data, with what to pass.
        Interrupted: on Ctrl-C or SIGTERM, after saving (in the main thread).
    """
    folder = None if folder is None else Path(folder)
    dataset = _data_for(model, dataset, labels)
    with holding(folder):
        engine = engine or Engine()
        tracked: dict[str, str] = {}
        if folder is not None and installed("tensorboard"):
            tracked = {"log_with": "tensorboard", "project_dir": str(folder)}
        accelerator = accelerator_for(engine, **tracked)
        main, alone = accelerator.is_main_process, accelerator.num_processes == 1
        if phases is None:
            unit = engine.accumulate * accelerator.num_processes
            phases = default_phases(model, dataset.size("train"), unit)
        trainer = Trainer(
            model,
            dataset,
            phases,
            iterations=iterations,
            seed=seed,
            ema=ema,
            engine=engine,
            accelerator=accelerator,
        )
        checkpoints = None if folder is None else folder / "checkpoints"
        found = None if checkpoints is None else latest_checkpoint(checkpoints)
        if found is not None:
            load_checkpoint(trainer, found)
        elif initial is not None:
            load_initial(trainer, initial)
        log = _Log(folder if main else None, trainer.step, accelerator)

        def there() -> None:
            if folder is not None:
                check_held(folder)

        def save() -> None:
            if checkpoints is not None:
                on_main(there)
                save_checkpoint(trainer, checkpoints)

        def evaluated() -> dict[str, float]:
            if evaluate is None:
                return {}
            there()
            with swapped_in(model.sampled, trainer.average), exact(), writing_to(folder, _MEND):
                return evaluate(model, trainer.step)

        if found is None and initial is not None:
            save()  # what this run goes on from, whatever becomes of the other
        if found is None and evaluate_every is not None:
            log.write(trainer, on_main(evaluated))
        shown = progress if main and progress is not None else _silent
        with _stop_signals(alone) as stop, shown(trainer) as show:
            for done in trainer.run():
                last = done.step == iterations
                due = evaluate_every is not None and (last or done.step % evaluate_every == 0)
                figures: dict[str, float] = {}
                if due:
                    figures = on_main(evaluated)
                if main and (due or last or done.step % 50 == 0):
                    figures = {k: float(v) for k, v in done.metrics.items()} | figures
                    log.write(trainer, figures)
                show(figures or done.metrics)
                saved = last or done.step % checkpoint_every == 0
                if saved:
                    save()
                code = stop.code if alone else _agreed(stop.code, accelerator)
                if code is not None and not last:
                    if not saved:
                        save()
                    log.close()
                    raise _interrupted(trainer, code, kept=checkpoints is not None)
        log.close()
        return trainer


def _interrupted(trainer: Trainer, code: int, kept: bool) -> Interrupted:
    on = ": the same command continues from there." if kept else "."
    return Interrupted(f"stopped after iteration {trainer.step} of {trainer.iterations}{on}", code)


@checked
def default_phases(
    model: Carrier, size: Natural | None = None, unit: Count = 1
) -> tuple[Phase, ...]:
    """One update of each loss of a model, in their order, with a phase's own optimiser and batch.

    Args:
        model: a carrier with its field.
        size: number of points; a batch has no more.
        unit: what batches are multiples of.

    Raises:
        ConfigError: if nothing trains the model.
    """
    losses = model.losses()
    if not losses:
        raise ConfigError(
            f"nothing trains this {type(model).__name__}: its field has no loss, or is frozen. Sample it "
            "as it is (where its field compares with data, by model.sample(..., real=X))."
        )
    most = Phase.batch if size is None else min(Phase.batch, size)
    batch = max(unit, most // unit * unit)
    return tuple(Phase(loss.name, batch=batch) for loss in losses)


def _data_for(model: Carrier, data: Dataset | Points, labels: Labels | None) -> Dataset:
    """The data set that a model is trained on, if it can be."""
    if isinstance(data, Dataset):
        if labels is not None:
            raise TypeError(f"the data set '{data.name}' has labels of its own: leave out labels.")
        return data
    found = in_memory(data, labels)
    shape, own = tuple(found.shape), _shape_of(model)
    if own != shape:
        last = own == (shape[-1], *shape[:-1])
        mend = "x.movedim(-1, 1) puts channels first" if last else "give it their shape"
        raise ConfigError(f"the model is of points {own}, the data of {shape}: {mend}.")
    if model.conditional and found.classes is None:
        raise DataError(
            "the model is conditional: pass the labels of the points, fit(..., labels=y)."
        )
    if not model.conditional and (labels is not None or isinstance(data, tuple)):
        raise ConfigError(
            "the model takes no labels: leave them out, or make it (and its networks) conditional."
        )
    if model.label_weights is not None and (found.classes or 0) > len(model.label_weights):
        raise DataError(
            f"the labels of this model are 0 to {len(model.label_weights) - 1}, but the data have "
            f"{(found.classes or 0) - 1}: give it label_weights of as many classes."
        )
    return found


def _shape_of(model: Carrier) -> tuple[int, ...]:
    """The shape of a model's samples; of one that does not know it, that of one sample."""
    if model.shape is not None:
        return model.shape
    like = next(model.sampled.parameters(), torch.empty(0))
    cond = torch.zeros(1, dtype=torch.int64, device=like.device) if model.conditional else None
    with swapped_in(model.sampled, None):
        x = model.sample(1, generator=seeded(0, "shape", device=like.device), cond=cond)
    return tuple(x.shape[1:])


def _silent(trainer: Trainer) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    return nullcontext(lambda figures: None)


def _agreed(code: int | None, accelerator: Accelerator) -> int | None:
    """The signal that any process was sent, on all of them after the same iteration."""
    own = torch.tensor(code or 0, device=accelerator.device)
    return int(cast(torch.Tensor, accelerator.reduce(own, "max"))) or None


class _Log:
    """``metrics.jsonl``, and TensorBoard where there is one; what lies after a resumed iteration goes."""

    def __init__(self, folder: Path | None, step: int, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._path = None if folder is None else folder / "metrics.jsonl"
        if self._path is None:
            return
        with writing_to(folder, _MEND):
            kept = [line for line in read_lines(self._path) if 0 <= _step_of(line) <= step]
            kept = kept if step else []
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            if not accelerator.log_with:
                return
            for old in (self._path.parent / "tensorboard").glob("events.out.tfevents.*"):
                old.unlink()
            accelerator.init_trackers("tensorboard")
            writer: Any = accelerator.get_tracker("tensorboard", unwrap=True)
            for line in kept:  # of a run that was resumed, TensorBoard has one file too
                for name in sorted({*line} - {"step", "cpu_seconds"}):
                    writer.add_scalar(name, line[name], global_step=line["step"])

    def write(self, trainer: Trainer, figures: dict[str, float]) -> None:
        if self._path is None:
            return
        check_held(self._path.parent)
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        record = {"step": trainer.step, "cpu_seconds": round(trainer.cpu_seconds, 3), **figures}
        with writing_to(self._path.parent, _MEND):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self._accelerator.log(figures, step=trainer.step)

    def close(self) -> None:
        if self._path is not None:
            for tracker in self._accelerator.trackers:  # end_training would end the processes, too
                tracker.finish()


def read_lines(path: Path) -> list[Any]:
    """The values in a file of JSON lines, None for a line that is none (cut short by a crash, say)."""

    def value(line: bytes) -> Any:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(line)

    if not path.exists():
        return []
    plain_file(path)
    return [value(line) for line in path.read_bytes().splitlines()]


def _step_of(line: Any) -> int:
    """The iteration of a line of the log; -1 of what is none."""
    if not isinstance(line, dict) or any(type(v) not in (int, float) for v in line.values()):
        return -1
    return int(line.get("step", -1))


class _Stop:
    code: int | None = None


@contextlib.contextmanager
def _stop_signals(alone: bool) -> Iterator[_Stop]:
    """Turn SIGINT and SIGTERM into a wish that is granted between iterations.

    A second Ctrl-C does not wait, unless a launcher of several processes may have passed the first on.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.code is not None and number == signal.SIGINT and alone:
            raise KeyboardInterrupt
        stop.code = 128 + number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
