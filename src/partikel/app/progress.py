"""The progress of a training on a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from partikel.training import Trainer
from partikel.training.fit import Progress as Shown

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


def progress_bar(console: Console | None, title: str) -> Shown | None:
    """A bar on a terminal, a line now and then elsewhere, nothing without a console.

    Both tell the iterations, their rate, the time that is left, the losses and what was measured last.
    """
    if console is None:
        return None
    from rich import progress  # where something is shown

    @contextlib.contextmanager
    def shown_on(trainer: Trainer) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        started, begun = time.monotonic(), trainer.step
        told: dict[str, float] = {}
        bar = progress.Progress(
            *(progress.TextColumn("{task.description}"), progress.BarColumn()),
            *(progress.MofNCompleteColumn(), progress.TimeRemainingColumn()),
            progress.TextColumn("{task.fields[figures]}"),
            console=console,
        )
        task = bar.add_task(title, total=trainer.iterations, completed=begun, figures="")
        said, every = started, 0.2 if console.is_terminal else EVERY

        def show(figures: Mapping[str, Any]) -> None:
            nonlocal said
            now, left = time.monotonic(), trainer.iterations - trainer.step
            measured = {name: value for name, value in figures.items() if "/" not in name}
            told.update((name, float(value)) for name, value in measured.items())
            if left and now - said < every:
                return
            said = now  # losses are tensors, which their device is asked for only now
            losses = {name: v for name, v in figures.items() if name.endswith("/loss")}
            told.update((name.replace("/", " "), float(v)) for name, v in losses.items())
            rate = max(1e-9, trainer.step - begun) / max(1e-9, now - started)
            pace = f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it"
            text = "  ".join((pace, *(f"{k} {v:.4g}" for k, v in told.items())))
            if console.is_terminal:
                bar.update(task, completed=trainer.step, figures=text)
            else:
                eta = timedelta(seconds=round(left / rate))
                done = f"{trainer.step}/{trainer.iterations}"
                console.print(f"{title}: {done}  {eta} left  {text}", markup=False, soft_wrap=True)

        with bar if console.is_terminal else contextlib.nullcontext():
            yield show

    return shown_on


@contextlib.contextmanager
def progress_of(title: str, console: Console | None) -> Iterator[Callable[[int, int], None] | None]:
    """A bar that goes when the work is done: what is given is told (done, total). None for no terminal."""
    if console is None or not console.is_terminal:
        yield None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
