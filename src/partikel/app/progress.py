"""The progress of a training on a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from partikel.training import Trainer
from partikel.training.fit import Progress as Shown


def progress_bar(console: Console | None, title: str) -> Shown | None:
    """A progress bar on a terminal, a line now and then elsewhere, nothing without a console."""
    if console is None:
        return None

    @contextlib.contextmanager
    def shown_on(trainer: Trainer) -> Iterator[Callable[[dict[str, float]], None]]:
        started, begun = time.monotonic(), trainer.step
        shown = {"text": "", "at": 0.0}

        def describe(figures: dict[str, float]) -> str:
            measured = {k: v for k, v in figures.items() if "/" not in k}
            if measured:
                shown["text"] = "  ".join(f"{k} {v:.4g}" for k, v in measured.items())
            rate = (trainer.step - begun) / max(1e-9, time.monotonic() - started)
            return f"{rate:.1f} it/s  {shown['text']}"

        if not console.is_terminal:

            def line(figures: dict[str, float]) -> None:
                last = trainer.step == trainer.iterations
                text = describe(figures)
                if last or time.monotonic() - float(shown["at"]) > 10:
                    shown["at"] = time.monotonic()
                    console.print(f"{title}: {trainer.step}/{trainer.iterations}  {text}")

            yield line
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(
                title, total=trainer.iterations, completed=trainer.step, figures=""
            )
            yield lambda figures: progress.update(
                task, completed=trainer.step, figures=describe(figures)
            )

    return shown_on


@contextlib.contextmanager
def progress_of(title: str, console: Console | None) -> Iterator[Callable[[int, int], None] | None]:
    """A bar that goes when the work is done: what is given is told (done, total). None for no console."""
    if console is None:
        yield None
        return
    with Progress(console=console, transient=True) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
