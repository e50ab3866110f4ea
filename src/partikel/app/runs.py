"""Runs: a folder that explains itself, made by training and read back by everything else.

run/
config.yaml        resolved configuration: the same command, or this file, makes it again
data.json          what is known of the data, so that samples need them no more, and where they lie
environment.json   versions, machine, git state
metrics.jsonl      one line per logged iteration
checkpoints/       all state, newest last
context.safetensors  real samples, if the field of free particles compares them with the data
frames/            what the animation of a generator's training needs
samples/           pictures along the way
required/          the run of the model that this one builds on, if it had to be trained
report.html        the run on one page
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from partikel.app.config import (
    SCHEMA,
    dump_config,
    load_preset,
    make_recipe,
    read_configuration,
)
from partikel.app.continuing import (
    DATA,
    changes_of,
    continued,
    may_differ,
    origin_of,
    told_changes,
    with_its_score,
)
from partikel.app.moments import Moment, paint
from partikel.app.placed import with_nodes
from partikel.app.progress import progress_bar
from partikel.data import Dataset, DataSettings, open_dataset
from partikel.data.folder import find
from partikel.data.known import KnownData
from partikel.errors import CheckpointError, ConfigError, DataError, nearest
from partikel.errors.checks import Checked, checked
from partikel.extensions import naming
from partikel.files import (
    clear_parts,
    fingerprint,
    plain_file,
    read_json,
    reading,
    replacing,
    sealed,
    write_json,
    write_whole,
    writing_to,
)
from partikel.metrics.evaluation import chunk_size, quick_evaluation
from partikel.models import Carrier, Sampling
from partikel.networks.weights import read_tensors, write_tensors
from partikel.recipes import Recipe, System
from partikel.recipes.base import ScoreModel
from partikel.streams import seeded
from partikel.tensors import check_memory
from partikel.training import Engine, Initial, fit, latest_checkpoint
from partikel.training.checkpoint import load_sampled, read_step
from partikel.training.engine import holding, on_main, processes
from partikel.training.fit import read_lines

if TYPE_CHECKING:
    from rich.console import Console

_CONTEXT = "context.safetensors"

CONTEXT = 256
"""Real samples that a field is bound to, where it compares particles with data."""

FRAMES = 48
"""Frames recorded while a generator is trained."""

Labels: TypeAlias = int | Sequence[int | str] | str
"""Classes to sample, by number or by name: one, several (a string has commas between them), or "all"."""


@dataclass(frozen=True)
class Run(Checked):
    """A trained run, ready to use.

    Attributes:
        path: its folder.
        preset: what it was started from.
        recipe: its settings.
        data: what is known of its data; the run can be sampled where they are gone.
        system: the model, with averaged weights where there are any, in evaluation mode.
        step: iterations done.
    """

    path: Path
    preset: str
    recipe: Recipe
    data: Dataset
    system: System
    step: int

    @property
    def dataset(self) -> Dataset:
        """The data themselves, opened when they are first asked for.

        Raises:
            DataError: where they are gone, or are others now.
        """
        return self.data.opened if isinstance(self.data, KnownData) else self.data

    def beside(self, n: int, generator: torch.Generator) -> Tensor | None:
        """Up to n real points to show beside samples; None where the data are gone, or have none."""
        try:
            return shown_data(self.dataset, n, generator)
        except DataError:
            return None

    @property
    def made(self) -> Path:
        """The folder for what is made of it: samples, pictures, figures."""
        return self.path

    @property
    def model(self) -> Carrier:
        """The carrier with its field."""
        return self.system.model

    def context(self, seed: int = 0) -> Tensor | None:
        """Real samples for a field that compares particles with data, or None."""
        kept = self.path / _CONTEXT
        if seed or "real" not in self.model.field.needs or not kept.exists():
            return context_for(self.model, self.data, seed)
        x = read_tensors(kept, "remove it, and it is drawn anew from the data.")[0].get("x")
        if x is None or x.shape[1:] != self.data.shape or not x.is_floating_point():
            raise CheckpointError(f"{kept} is of another run: remove it.")
        return x.to(next(self.model.parameters()).device)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator,
        label: Labels | None = None,
        cond: Tensor | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Tensor:
        """(n, ...) samples, drawn in chunks.

        Args:
            n: how many.
            generator: source of all randomness.
            label: a class, several or "all", see :meth:`labels`.
            cond: (n,) labels instead.
            sampling: how samples are drawn; as the run says unless given.
            options: or what of it departs, see :meth:`sampling`.

        Raises:
            ConfigError: for an impossible n or label, options that a generator model does not have,
                or guidance of a model that was not trained for it.
        """
        sampling = self.sampling(sampling, **options)
        if label is not None:
            cond = self.labels(n, label, generator=generator)
        return draw_samples(self.model, n, generator, self.context(), cond=cond, sampling=sampling)

    def sampling(
        self, sampling: Sampling | None = None, *, tuned: bool = True, **options: Any
    ) -> Sampling:
        """How samples are drawn: a record, or one made of options by name.

        A number of ``steps`` takes nodes that were placed for as many (see :mod:`partikel.app.placed`).

        Args:
            sampling: the record; then there are no options.
            tuned: by the nodes beside the run too, where some were placed.
            options: see :meth:`partikel.models.Sampling.of`.

        Raises:
            CheckpointError: where the file of placed nodes is damaged.
            ConfigError: for guidance of a model that was not trained for it.
        """
        found = Sampling.of(sampling, **options)
        if found.guidance is not None:
            _check_guidance(self.recipe)
        if options.get("steps") is None or found.path is not None:
            return found
        return with_nodes(
            found,
            path=self.path if tuned else None,
            step=self.step,
            preset=self.preset,
            recipe=self.recipe,
            model=self.model,
            sigma_data=self.data.sigma_data,
        )

    def labels(
        self, n: int, label: Labels | None = None, *, generator: torch.Generator
    ) -> Tensor | None:
        """(n,) labels to sample, or None for a model without.

        Args:
            n: how many.
            label: a class, several or "all", one after the other in equal shares; drawn at the
                training data's frequencies unless given.
            generator: source of the draws.

        Raises:
            ConfigError: for a label that the model does not have, or an n that cannot be shared, or
                for which memory should not hold samples.
        """
        check_memory(n, self.data.shape)
        if label is None:
            return self.model.labels(n, generator=generator)
        return labels_of(self.model, n, label, self.data.class_names, generator.device)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``.

        Raises:
            CheckpointError: for a line that cannot be read; the last one may have been cut short.
        """
        path = self.path / "metrics.jsonl"
        with reading(path, "is no log of a training: move it away."):
            lines = read_lines(path)
        if lines and lines[-1] is None:
            lines.pop()
        for number, line in enumerate(lines, start=1):
            if not isinstance(line, dict) or type(line.get("step")) is not int:
                raise CheckpointError(f"line {number} of {path} cannot be read: remove that line.")
        return lines

    @property
    def title(self) -> str:
        """Its data and its model, as people call them."""
        return f"{self.recipe.data.title}: {self.recipe.title}"

    @property
    def command(self) -> str:
        """The command line that trained it, as it was given, options and all."""
        try:
            program, *options = map(str, read_json(self.path / "environment.json")["command"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        ours = Path(program).stem in ("partikel", "__main__")
        return shlex.join(["partikel" if ours else program, *options])

    @property
    def cpu_seconds(self) -> float:
        """Process time of training, evaluation excluded."""
        spent = self.log[-1].get("cpu_seconds") if self.log else 0.0
        return float(spent) if isinstance(spent, (int, float)) else 0.0


def draw_samples(
    model: Carrier,
    n: int,
    generator: torch.Generator,
    real: Tensor | None = None,
    *,
    cond: Tensor | None = None,
    start: Tensor | None = None,
    sampling: Sampling | None = None,
) -> Tensor:
    """(n, ...) samples, drawn in chunks, so that only they themselves fill more memory with n.

    Args:
        model: a carrier.
        n: how many.
        generator: source of all randomness.
        real: samples of the data, for a field that compares with them.
        cond: (n,) labels; those of a conditional model are drawn unless given.
        start: (n, ...) where they start, instead of draws of the prior.
        sampling: how they are drawn; as the model says unless given.

    Raises:
        ConfigError: for n < 1, or one for which memory should not hold the samples (see
            :func:`partikel.tensors.check_memory`), or a ``sampling`` that departs from a generator's.
    """
    if n < 1:
        raise ConfigError(f"the number of samples must be at least 1, got {n}.")
    check_memory(n, model.shape or (2,))  # a label takes as much as a point of the plane
    if cond is None:
        cond = model.labels(n, generator=generator)
    for given, what in ((cond, "labels"), (start, "starts")):
        if given is not None and len(given) != n:
            raise ValueError(f"{n} samples have {n} {what}, got {len(given)}.")
    # a generator's latents do not tell the size of its outputs
    chunk = 1000 if model.shape is None else chunk_size(model.shape)
    samples = None
    for first in range(0, n, chunk):
        some = model.sample(
            min(chunk, n - first),
            generator=generator,
            cond=None if cond is None else cond[first : first + chunk],
            start=None if start is None else start[first : first + chunk],
            real=real,
            sampling=sampling,
        )
        if samples is None:
            check_memory(n, some.shape[1:], some.itemsize)
            samples = some.new_empty(n, *some.shape[1:])
        samples[first : first + chunk] = some
    assert samples is not None
    return samples


def labels_of(
    model: Carrier,
    n: int,
    label: Labels,
    names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(n,) labels, those of :func:`classes_in` one after the other in equal shares.

    Raises:
        ConfigError: as that, and for an n that cannot be shared.
    """
    classes = classes_in(model, label, names)
    if n % len(classes):
        raise ConfigError(
            f"{n} samples cannot be shared equally by {len(classes)} labels: make their number "
            "a multiple of that."
        )
    return torch.tensor(classes, device=device).repeat_interleave(n // len(classes))


def classes_in(model: Carrier, label: Labels, names: Sequence[str] | None = None) -> list[int]:
    """The classes that a label asks for: one, several, or "all".

    Args:
        model: a carrier.
        label: numbers or names; a text that is a name is that class, though it be a number.
        names: of the classes.

    Raises:
        ConfigError: for a model without labels, or a label that it does not have.
    """
    if model.label_weights is None:
        raise ConfigError("this model was trained without labels: leave out label.")
    count, known = len(model.label_weights), list(names or ())
    if isinstance(label, str) and label not in known:
        if label == "all":
            return list(range(count))
        label = _several(label, known)
    asked = [label] if isinstance(label, (int, str)) else list(label)
    numbers = [str(each) for each in range(count)]
    chosen = []
    for each in asked:
        if isinstance(each, str) and each in known:
            chosen.append(known.index(each))
        elif str(each) in numbers and not (isinstance(each, str) and set(numbers) & set(known)):
            chosen.append(numbers.index(str(each)))
        elif known:
            raise ConfigError(f"there is no class '{each}': {nearest(str(each), known)}")
    if not asked or len(chosen) < len(asked):
        raise ConfigError(
            f"label is a class of this model, 0 to {count - 1}, several (0,{count - 1}), or all; "
            f"got {', '.join(map(str, asked)) or 'none'}."
        )
    return chosen


def _several(text: str, known: Sequence[str]) -> list[str]:
    """The labels in a text with commas between them; names may have commas of their own."""
    parts, found = text.split(","), []
    while parts:
        joined = [",".join(parts[:end]).strip() for end in range(len(parts), 0, -1)]
        name = next((each for each in joined if each in known), joined[-1])
        found.append(name)
        del parts[: name.count(",") + 1]
    return found


def _check_guidance(recipe: Recipe) -> None:
    """Refuse guidance of a model whose field never saw points without labels."""
    for part, setting in ((recipe, ""), (getattr(recipe, "score", None), "score.")):
        if recipe.conditional and getattr(part, "label_dropout", None) == 0:
            raise ConfigError(
                f"guidance needs a model that was trained without labels too: train one with "
                f"{setting}label_dropout above 0."
            )


def context_for(model: Carrier, dataset: Dataset, seed: int = 0) -> Tensor | None:
    """:data:`CONTEXT` real samples if the model's field needs them to be asked, else None."""
    if "real" not in model.field.needs:
        return None
    generator = seeded(seed, "context")
    device = next(model.parameters()).device
    n = dataset.at_most(CONTEXT)
    return dataset.draw(n, "train", generator=generator, device=device).x


def shown_data(dataset: Dataset, n: int, generator: torch.Generator) -> Tensor:
    """Up to n points for a picture: held-out ones, training points where none are held out."""
    split = "train" if dataset.size("validation") == 0 else "validation"
    return dataset.draw(dataset.at_most(n, split), split, generator=generator).x


@checked
def train_run(
    recipe: Recipe,
    out: Path | str,
    *,
    preset: str = "",
    initial: Initial | Path | str | None = None,
    console: Console | None = None,
    given: Sequence[Mapping[str, Any]] | None = None,
    show: Callable[[Moment], object] = paint,
) -> Run:
    """Train a recipe in a folder, or resume what is there, and load the result.

    Args:
        recipe: the settings.
        out: the run's folder.
        preset: the name it was started from, for the record.
        initial: the run whose weights this one begins with, by its folder. A data score comes with them.
        console: where progress is shown; None shows nothing.
        given: where somebody chose settings: a batch that is in none of them gives way to a smaller
            training split, see :func:`fit_batches`. All were chosen where None.
        show: is handed what the model looks like at each evaluation, and shows it.

    Returns:
        The run.

    Raises:
        ConfigError: if the folder holds a run of settings that may not differ, or that began otherwise, or
            the settings cannot work.
        DataError, CheckpointError, NumericsError, Interrupted: see :func:`partikel.training.fit`.
    """
    out = Path(out)
    if out.is_file():
        raise ConfigError(f"{out} is a file, not a folder: choose another --out.")
    initial = None if initial is None else Initial.of(initial)
    with holding(out):
        origin, required_path = on_main(partial(origin_of, initial, out)), None
        if origin is None:
            recipe, required_path = _with_required(recipe, out)
        else:
            recipe = with_its_score(recipe, origin, out)
        with processes().main_process_first():  # which prepares what the others then find
            dataset = open_dataset(recipe.data)
        shown = console if processes().is_main_process else None
        say = None if shown is None else partial(shown.print, markup=False, soft_wrap=True)
        recipe = fit_batches(recipe, dataset, given, say)
        recorded = on_main(lambda: continued(out, recipe, origin))
        text = dump_config(recipe, preset, recorded)
        _check_data(out, dataset)
        required = None
        if recipe.required is not None and required_path is not None:
            _check_data(required_path, dataset)
            if (required_path / "config.yaml").exists() and required_path != out / "required":
                required = load(required_path).model
            else:
                first = recipe.required
                if first.engine == Engine():
                    first = dataclasses.replace(first, engine=recipe.engine)
                required = train_run(first, required_path, console=console, show=show).model
        system = recipe.system(dataset, required)
        checkpoint = latest_checkpoint(out / "checkpoints")
        if checkpoint is not None:
            _check_classes(system.model, dataset, checkpoint)
        elif origin is not None:
            origin.weights_for(system.model)  # which may not fit: then nothing is written
        on_main(lambda: _describe(out, text, recipe, dataset, system.model))
        fit(
            system.model,
            dataset,
            system.phases,
            **recipe.training,
            folder=out,
            initial=origin,
            checkpoint_every=recipe.checkpoint_every,
            evaluate=_Watch(recipe, dataset, out, show),
            evaluate_every=recipe.evaluate_every,
            progress=progress_bar(console, preset or recipe.name),
        )
        return _loaded(out)


@checked
def load(path: Path | str, allow: str | Collection[str] = ()) -> Run:
    """Load a run's newest checkpoint.

    Args:
        path: the run's folder.
        allow: packages whose recipes, networks and data a run may name (see docs/extending.md); a run
            imports nothing else.

    Returns:
        The run; weights are read without executing code. Its data are opened when they are needed (at
        once for a run of version 0.1, which knows nothing of them).

    Raises:
        CheckpointError: if the folder is no run, has no checkpoint yet, or is damaged.
        ConfigError: if it names parts of a package that was not allowed.
    """
    with naming(allow):
        return _loaded(Path(path))


def _loaded(path: Path) -> Run:
    """A run; what it names of other packages must have been named by the user."""
    file = path / "config.yaml"
    with reading(file, "cannot be read: name a folder that 'partikel train' made."):
        if not file.is_file() and any(
            map(os.path.lexists, (path / "state.json", path / "checkpoints"))
        ):
            raise CheckpointError(
                f"{path} holds the weights of a model that is built in Python: build it, then call "
                f"partikel.load_into(model, '{path}')."
            )
        if not file.is_file():
            raise CheckpointError(
                f"{path} is no run folder (it has no config.yaml): name a folder that "
                "'partikel train' made."
            )
        try:
            config = load_preset(file)
            recipe = make_recipe(config.recipe, config.settings)
        except ConfigError as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        preset = read_configuration(file).get("preset") or recipe.name
    if latest_checkpoint(path / "checkpoints") is None:
        raise CheckpointError(
            f"the run {path} has no checkpoint yet: run 'partikel train' with --out {path} first."
        )
    data = _known_data(path, recipe, config.settings) or open_dataset(recipe.data)
    system = recipe.system(data)  # the weights of what is required are part of its checkpoint
    step = _load_newest(system.model, data, path / "checkpoints")
    return Run(path, preset, recipe, data, system, step)


def _load_newest(model: Carrier, data: Dataset, checkpoints: Path) -> int:
    """Load the newest weights, the average where there is one; the iteration they are of."""
    while True:
        checkpoint = latest_checkpoint(checkpoints)
        assert checkpoint is not None
        try:
            _check_classes(model, data, checkpoint)
            load_sampled(model, checkpoint)
            return read_step(checkpoint)
        except CheckpointError:
            if latest_checkpoint(checkpoints) in (checkpoint, None):
                raise
            # a training goes on there, and has removed what was being read


def field_norm(
    model: Carrier,
    samples: Tensor,
    cond: Tensor | None = None,
    real: Tensor | None = None,
    seed: int = 0,
) -> float | None:
    """Root mean square of what still pulls at samples, which adversaries' losses do not tell.

    A GAN's or a Discriminator Flow's losses hover about a constant, however near the data the samples
    are, and the surrogate loss of a generator has no value at all; the field does fall.

    Args:
        model: in evaluation mode.
        samples: (n, ...) of the model.
        cond: their labels, of a conditional model.
        real: of the data, for a field that compares with them.
        seed: of a field's own draws.

    Returns:
        None where it would tell nothing (:meth:`partikel.models.Carrier.pull`), or labels are not known.
    """
    if model.conditional and cond is None:
        return None
    generator = seeded(seed, "field", device=samples.device)
    with torch.no_grad():
        pull = model.pull(samples, generator=generator, cond=cond, real=real)
    return None if pull is None else float(pull.flatten(1).square().sum(1).mean().sqrt())


class _Watch:
    """Evaluates a model while it is trained, and hands what it looks like to whoever shows it."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, out: Path, show: Callable[[Moment], object]
    ) -> None:
        self._recipe, self._dataset, self._out, self._show = recipe, dataset, out, show
        self._every = recipe.evaluate_every or recipe.iterations
        # evaluations become frames, thinned out where there are many
        self._stride = max(1, recipe.iterations // self._every // FRAMES)

    def __call__(self, model: Carrier, step: int) -> dict[str, float]:
        recipe, dataset = self._recipe, self._dataset
        real = context_for(model, dataset)  # now, since training has moved the model to its device
        device = next(model.parameters()).device

        def sampler(n: int, generator: torch.Generator) -> Tensor:
            return draw_samples(model, n, generator, real)

        figures = quick_evaluation(
            sampler, dataset, n=recipe.evaluate_samples, device=device, unbiased=True
        )
        generator = seeded(recipe.seed, "pictures", device=device)
        few = 400 if len(dataset.shape) == 1 else 64
        data = shown_data(dataset, few, generator)
        moment = Moment(self._out, step, model, recipe.seed, data, data, real=real)
        moves = model.steps is None  # samples move in training, so that frames are recorded there
        z = model.start(few, generator) if moves else None
        cond = model.labels(few, generator=generator)
        samples = draw_samples(model, few, generator, real, cond=cond, start=z)
        if moves and (step // self._every) % self._stride == 0:
            moment = dataclasses.replace(moment, start=z, cond=cond)
        norm = field_norm(model, samples, cond, real, recipe.seed)
        figures |= {} if norm is None else {"field": norm}
        self._show(dataclasses.replace(moment, samples=samples))
        return figures


def _with_required(recipe: Recipe, out: Path) -> tuple[Recipe, Path | None]:
    """The recipe with the settings of the trained model it names, and that model's folder."""
    if recipe.required is None:
        return recipe, None
    place, part = recipe.builds_on
    named = getattr(recipe, place, None)
    if named is None:
        return recipe, out / "required"
    other = load(named)
    if part == "score" and not isinstance(other.recipe, ScoreModel):
        raise ConfigError(
            f"data_score names a run of '{other.recipe.name}', but a run of "
            f"'{recipe.required.name}' is needed."
        )
    theirs, ours = (dataclasses.asdict(each.data) for each in (other.recipe, recipe))
    changes = changes_of(theirs, ours, ("data",))
    told = told_changes(each for each in changes if not may_differ(type(recipe), each[0]))
    if told:
        raise ConfigError(f"the run {named} is of other data ({told}): train on the same data.")
    return dataclasses.replace(recipe, **{part: other.recipe}), Path(named)


def _describe(out: Path, text: str, recipe: Recipe, data: Dataset, model: Carrier) -> None:
    """Write what the run is; a full disk leaves what was there."""
    known = {
        "schema": SCHEMA,
        "name": data.name,
        "shape": list(data.shape),
        "classes": data.classes,
        "class_names": None if data.class_names is None else list(data.class_names),
        "sigma_data": data.sigma_data,
        "shares": None if model.label_weights is None else model.label_weights.tolist(),
        "places": _places(recipe.data),
        "settings": _seal(yaml.safe_load(text)["settings"]),
    }
    with writing_to(out):
        for pictures in ("frames", "samples"):  # where a training was killed while it drew
            clear_parts(out / pictures)
        write_whole(out / "config.yaml", text)
        write_json(out / DATA, sealed(known))
        write_json(out / "environment.json", _environment())
        if model.steps is not None and data.size("train") is not None:
            context = context_for(model, data)
            if context is not None:
                with replacing(out / _CONTEXT) as part:
                    write_tensors(part, {"x": context})


def _seal(settings: Mapping[str, Any]) -> str:
    """A fingerprint of the settings that samples depend on: not of how or where they were computed."""

    def kept(settings: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
        places = ("root", "cache", "path", "download")
        free = places if inside == "data" else ("engine", "data_score", "run")
        chosen = {k: v for k, v in settings.items() if k not in free}
        return {k: kept(v, k) if isinstance(v, Mapping) else v for k, v in chosen.items()}

    return fingerprint(kept(settings), 32)


def _places(data: DataSettings) -> dict[str, str]:
    """The absolute paths of the settings that are paths, which may be relative to where training was."""
    found = {key: Path(value) for key in ("root", "cache") if (value := getattr(data, key))}
    if data.path is not None:
        found["path"] = find(data.path, data.root)
    return {k: str(v.expanduser().absolute()) for k, v in found.items() if v.expanduser().exists()}


def _known_data(path: Path, recipe: Recipe, settings: Mapping[str, Any]) -> Dataset | None:
    """What a run keeps of its data; None for one of version 0.1."""
    file = path / DATA
    if not file.exists():
        return None
    again = "run the same 'partikel train' command, which writes it anew."
    with reading(file, f"is damaged: {again}"):
        known = read_json(file, must_be_sealed=True)
        if known["settings"] != _seal(settings):
            raise CheckpointError(
                f"{path / 'config.yaml'} was changed since the run was trained: put its settings back, "
                "or train with the new ones in another --out."
            )
        if known["schema"] != SCHEMA:
            raise CheckpointError(f"{file} has schema {known['schema']}: use a newer partikel.")
        # where the data lie now: as the run was told, should they not be where they were
        there = {key: place for key, place in known["places"].items() if Path(place).exists()}
        shares = known["shares"]
        named = copy_context()  # by whoever loads the run, not by whoever asks for its data

        def find() -> Dataset:
            try:
                return named.run(open_dataset, dataclasses.replace(recipe.data, **there))
            except DataError as error:
                if recipe.data.path is None:
                    raise
                raise DataError(
                    f"{error}; a run learns where its data lie now by 'partikel train "
                    f"{file.parent / 'config.yaml'} --out {path} --data.path PLACE'."
                ) from error

        return KnownData(
            known["name"],
            tuple(known["shape"]),
            known["classes"],
            known["sigma_data"],
            None if shares is None else torch.tensor(shares),
            find,
            tuple(known.get("class_names") or ()) or None,
        )


def _check_data(path: Path, dataset: Dataset) -> None:
    """Refuse to go on with other data than a run began with, wherever they lie now."""
    try:
        with reading(path / DATA, "is damaged"):
            known = read_json(path / DATA, must_be_sealed=True)
            there = (tuple(known["shape"]), known["classes"], float(known["sigma_data"]))
    except CheckpointError:  # it is written anew
        return
    found = (dataset.shape, dataset.classes, dataset.sigma_data)
    if there[:2] != found[:2] or not math.isclose(there[2], found[2], rel_tol=1e-6):
        told = "{} with {} classes and a standard deviation of {:.6g}"
        raise CheckpointError(
            f"{path} was trained on other data ({told.format(*there)}; '{dataset.name}' now has "
            f"{told.format(*found)}): give the run the data it was trained on, or choose another --out, "
            f"where --from {path} starts a new run from its weights."
        )


def _check_classes(model: Carrier, dataset: Dataset, checkpoint: Path) -> None:
    """Refuse data whose classes are not as many as those that a checkpoint was trained on."""
    try:
        plain_file(checkpoint / "model.safetensors")
        with safe_open(checkpoint / "model.safetensors", "pt") as file:
            names = set(file.keys())
            known = file.get_slice("label_weights").get_shape() if "label_weights" in names else []
    except (OSError, SafetensorError):  # which loading explains
        return
    if model.label_weights is not None and known not in ([], [len(model.label_weights)]):
        raise CheckpointError(
            f"the checkpoint {checkpoint} is of {known[0]} classes, but '{dataset.name}' now has "
            f"{len(model.label_weights)}: give the run the data it was trained on."
        )


def fit_batches(
    recipe: Recipe,
    dataset: Dataset,
    given: Sequence[Mapping[str, Any]] | None = None,
    say: Callable[[str], object] | None = None,
    prefix: str = "",
) -> Recipe:
    """The recipe with batches that the training split can fill.

    Args:
        recipe: with its score, where it has one.
        dataset: its data.
        given: where somebody chose settings; all were chosen where None. A batch that is in one of them
            is refused where it is too large, another is made as large as it can be.
        say: told of each that was changed.
        prefix: of its name.

    Raises:
        DataError: for a batch that is too large, or a split that fills none.
    """
    size, batch = dataset.size("train"), getattr(recipe, "batch", 1)
    changed: dict[str, Any] = {}
    if size is not None and batch > size:
        unit = processes().num_processes * recipe.engine.accumulate
        most = size // unit * unit
        sentence = f"the training split of '{dataset.name}' ({size} points)"
        if most == 0:
            raise DataError(
                f"{sentence} fills no batch: give it more points, or lower data.validation, "
                "engine.accumulate or the number of processes."
            )
        if given is None or any("batch" in settings for settings in given):
            raise DataError(f"a batch of {batch} is larger than {sentence}: lower {prefix}batch.")
        if say is not None:
            say(f"{prefix}batch: {most} instead of {batch}, as that is larger than {sentence}")
        changed["batch"] = most
    score = getattr(recipe, "score", None)
    if isinstance(score, Recipe) and given is not None:  # else checked where it is trained
        named = [settings.get("score") for settings in given]
        chosen = [each for each in named if isinstance(each, Mapping)]
        changed["score"] = fit_batches(score, dataset, chosen, say, "score.")
    return dataclasses.replace(recipe, **changed)


def _environment() -> dict[str, Any]:
    packages = ("partikel", "torch", "numpy", "accelerate", "safetensors")
    return {
        "command": sys.argv,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {each: str(import_module(each).__version__) for each in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the package's checkout, and whether it was changed; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
