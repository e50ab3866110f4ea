"""Where items are measured: trained runs, cached measurements, pictures.

Everything that takes time is kept in the folder of runs: trainings resume from their checkpoints, and
what was measured once is read back, so that an interrupted command goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from torch import Tensor

from partikel.app.config import load_preset, make_recipe, settings_of
from partikel.app.gallery import evaluate_run, on_device
from partikel.app.runs import Run, train_run
from partikel.app.show.plots import save_figure, save_image
from partikel.data import Dataset, open_dataset
from partikel.files import fingerprint, kept_json
from partikel.metrics.chance import LEVEL, floor
from partikel.recipes import Recipe
from partikel.solvers import Solver
from partikel.streams import seeded
from partikel.studies.benches import Scale, Training
from partikel.studies.provenance import metrics
from partikel.training import Trainer

T = TypeVar("T")

FIGURE_DPI = 130
"""Of the pages' pictures, which are kept in a repository."""


class Lab:
    """Trains, measures and draws for one item, and keeps account of it.

    Attributes:
        trained: the runs that the item used, by folder.
        pictures: file name -> caption, in the order of drawing.
        seconds: process time of the measurements, those of earlier calls included.
    """

    def __init__(
        self,
        item: str,
        scale: Scale,
        plan: Any,
        *,
        out: Path,
        runs: Path,
        code: str = "",
        console: Console | None = None,
    ) -> None:
        """Prepare the lab of an item.

        Args:
            item: its name.
            scale: one of :data:`~partikel.studies.item.SCALES`.
            plan: what is measured; kept parts of another plan are not used.
            out: folder of results.
            runs: folder of trained runs and kept parts, which all items share.
            code: fingerprint of what measures; parts kept of other code are not used.
            console: where progress is shown.
        """
        self.item, self.scale, self.out = item, scale, out
        self.runs = runs / scale
        self.console = console
        self.trained: dict[str, tuple[Training, Run]] = {}
        self.pictures: dict[str, str] = {}
        self.seconds = 0.0
        self._parts = self.runs / "parts" / f"{item}-{fingerprint([plan, code])}"

    def run(self, training: Training, seed: int) -> Run:
        """The trained run of a preset, trained first (or to its end) where it is not.

        Raises:
            PartikelError: as :func:`partikel.app.runs.train_run`.
        """
        folder = self.runs / training.name / f"seed-{seed}"
        key = f"{training.name}/seed-{seed}"
        if key in self.trained:
            return self.trained[key][1]
        recipe = self.recipe(training, seed)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # another item's process may train it too
            run = train_run(recipe, folder, preset=training.preset, console=self.console)
        self.trained[key] = (training, run)
        return run

    def recipe(self, training: Training, seed: int) -> Recipe:
        """The settings of a run; the model that it builds on is trained first."""
        changes: dict[str, Any] = {**training.changes, "seed": seed}
        if training.score is not None:
            changes["data_score"] = str(self.run(training.score, seed).path)
        preset = load_preset(training.preset)
        return make_recipe(preset.recipe, preset.settings, changes)

    def trainer(self, training: Training, seed: int) -> Trainer:
        """The training of a run before its first iteration, to be followed step by step.

        It takes the same steps as the run's (:meth:`run`), and leaves nothing on disk.
        """
        recipe = self.recipe(training, seed)
        dataset = open_dataset(recipe.data)
        required = None if training.score is None else self.run(training.score, seed).model
        system = recipe.system(dataset, required)
        return Trainer(system.model, dataset, system.phases, **recipe.training)

    def evaluate(self, run: Run, *, solver: Solver | None = None, **options: Any) -> dict[str, Any]:
        """Figures of a run's samples, with those of the data and the protocol, kept in its folder.

        Args:
            run: trained.
            solver: another solver.
            options: of :func:`partikel.app.gallery.evaluate_run`.
        """
        named = {**options, "solver": None if solver is None else repr(solver)}
        return self.of_run(
            run, named, lambda: evaluate_run(run, solver=solver, **options).as_dict()
        )

    def floor(
        self, dataset: Dataset, n: int, features: str | None = None, *, among: int = 1
    ) -> float:
        """What two draws of n points of the data differ by, see :mod:`partikel.metrics.chance`.

        Args:
            dataset: the data.
            n: points of a draw.
            features: a feature network for images; None chooses one.
            among: distances of which the largest is compared: each is beyond the floor as much more
                seldom (Bonferroni).
        """
        options = {"features": features, "level": 1 - (1 - LEVEL) / among}
        about = {"data": dataset.fingerprint(), "n": n, **options, "by": metrics()}
        path = self.runs / "chance" / f"{dataset.name}-{n}-{fingerprint(about)}.json"
        return self._kept(path, lambda: floor(dataset, n, **options))

    def of_run(self, run: Run, about: Mapping[str, Any], work: Callable[[], T]) -> T:
        """The JSON value of ``work()``, which is of a run alone: all items share it.

        Args:
            run: trained.
            about: what is measured, and how.
            work: measures it.
        """
        key = {"settings": settings_of(run.recipe), "step": run.step, "by": metrics(), **about}
        path = run.path / "measured" / f"{fingerprint(key)}.json"

        def measured() -> T:
            self.say(f"measuring {run.path.parent.name}, {run.path.name} {_shown(about)}")
            return work()

        return self._kept(path, measured)

    def sample(self, run: Run, n: int, seed: int, *path: object, **options: Any) -> Tensor:
        """(n, ...) samples of a run, drawn on the accelerator where there is one, on the CPU.

        Args:
            run: trained.
            n: how many.
            seed: of the samples: the same latents or prior points for all models on one data set.
            path: names this use of randomness.
            options: of :meth:`partikel.app.runs.Run.sample`.
        """
        started = time.process_time()
        with on_device(run) as device:
            generator = self.generator(seed, *path, device=device)
            samples = run.sample(n, generator=generator, **options).cpu()
        self.seconds += time.process_time() - started
        return samples

    def once(self, key: str, work: Callable[[], T]) -> T:
        """The JSON value of ``work()``, computed once for the plan and read back afterwards."""
        return self._kept(self._parts / f"{key}.json", work)

    def folder(self, key: str, work: Callable[[Path], object]) -> Path:
        """A folder of files that ``work(folder)`` makes, once for the plan."""
        path = self._parts / key

        def made() -> None:
            path.mkdir(parents=True, exist_ok=True)  # what an interrupted call left is still there
            work(path)

        self.once(f"{key}-made", made)
        return path

    def generator(
        self, seed: int, *path: object, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """A stream of its own for one use of randomness."""
        return seeded(seed, "reproduce", self.item, *path, device=device)

    def draw(self, picture: Figure | Image.Image, caption: str, part: str = "") -> Path:
        """Write a picture beside the result.

        Args:
            picture: a figure, or an image as it is.
            caption: under it on the page.
            part: which of the item's pictures it is; empty for the only one.
        """
        name = f"{self.item}-{part}.png" if part else f"{self.item}.png"
        if isinstance(picture, Figure):
            save_figure(picture, self.out / name, dpi=FIGURE_DPI)
        else:
            save_image(picture, self.out / name)
        self.pictures[name] = caption
        return self.out / name

    def keep(self, name: str, caption: str) -> Path:
        """The path of a further file (an animation) that the page shows as a picture."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.pictures[f"{self.item}-{name}"] = caption
        return self.out / f"{self.item}-{name}"

    def say(self, text: str) -> None:
        """Show a line of progress."""
        if self.console is not None:
            self.console.print(text, highlight=False)

    def _kept(self, path: Path, work: Callable[[], T]) -> T:
        def timed() -> dict[str, Any]:
            started = time.process_time()
            return {"value": work(), "cpu_seconds": time.process_time() - started}

        record = kept_json(path, timed)
        self.seconds += record["cpu_seconds"]
        return record["value"]


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
