"""How runs go on: what may differ when one is resumed, and what a new one takes from another.

What a run was told later, and where it began, stands in its config.yaml:

from:              the run whose weights it began with, at which iteration, and their fingerprint
history:           settings that were others until an iteration
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from partikel.app.config import (
    Preset,
    built,
    load_preset,
    load_started,
    make_recipe,
    read_configuration,
    settings_of,
)
from partikel.data.folder import find
from partikel.errors import CheckpointError, ConfigError
from partikel.errors.checks import MAY_DIFFER, Natural, settings_in, types_of
from partikel.files import read_json, reading
from partikel.networks.weights import checksum
from partikel.recipes import Recipe
from partikel.training import Initial, latest_checkpoint
from partikel.training.checkpoint import check_length, read_part, read_step

Change: TypeAlias = tuple[tuple[str, ...], Any, Any]
"""Path of a setting, what it was, and what it is."""

DATA = "data.json"
"""What is known of a run's data."""


@dataclass(frozen=True)
class Origin(Initial):
    """The run that another one began with, as its config.yaml has it under ``from``.

    Attributes:
        iteration: its iterations until then; its newest checkpoint is taken where None.
        weights: a fingerprint of them.
        earlier: where it began itself, if it did with another run.
    """

    iteration: Natural | None = None
    weights: str | None = None
    earlier: dict[str, Any] | None = None

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint that is meant.

        Raises:
            CheckpointError: if it is gone.
        """
        if self.iteration is None:
            return super().checkpoint
        step = f"step-{self.iteration:08d}"
        folder = Path(self.run)
        folder = folder if folder.name == step else folder / "checkpoints" / step
        if not folder.exists() or self.weights not in (None, _fingerprint(folder)):
            raise CheckpointError(
                f"the weights of iteration {self.iteration} of {self.run}, which this configuration begins "
                "with, are gone, as that run has gone on: give the run to start from with --from."
            )
        return folder

    @property
    def folder(self) -> Path:
        """The run's folder, also where one of its checkpoints is named."""
        path = Path(self.run)
        return path.parent.parent if (path / "state.json").exists() else path

    @property
    def record(self) -> dict[str, Any]:
        """What config.yaml keeps."""
        found = dataclasses.asdict(self)
        return {key: value for key, value in found.items() if value is not None}

    def same(self, given: Initial) -> bool:
        """Whether a run that is given now is this one; it may have moved with the folder it is in."""
        then, now = Path(self.run), _place(given.run)
        moved = not then.exists() and then.name == now.name
        return self.optimizers == given.optimizers and (then == now or moved)


def _place(run: str) -> Path:
    return Path(run).expanduser().resolve()


def _fingerprint(checkpoint: Path) -> str:
    return checksum(read_part(checkpoint, "model"), {})


def origin_of(initial: Initial | None, out: Path) -> Origin | None:
    """Where the run in a folder begins, or has begun; then the other run is not needed any more.

    Args:
        initial: the run that is asked for.
        out: the folder.

    Raises:
        ConfigError: if the folder holds a run that began otherwise.
        CheckpointError: if there is nothing to begin with.
    """
    begun = latest_checkpoint(out / "checkpoints") is not None
    there = _recorded(out) if begun else None
    if begun and not (initial is None if there is None else initial and there.same(initial)):
        began = "was not started from another" if there is None else f"was started from {there.run}"
        repeat = "leave out --from" if there is None else f"repeat --from {there.run}"
        if there is not None and there.optimizers:
            repeat += " --from-optimizers"
        raise ConfigError(
            f"the run in {out} {began}: {repeat} to resume it, or choose another --out."
        )
    if begun or initial is None:
        return there
    run = _place(initial.run)
    if run == out.resolve():
        raise ConfigError(f"a new run from {out} needs a folder of its own: choose another --out.")
    checkpoint = dataclasses.replace(initial, run=str(run)).checkpoint
    origin = Origin(str(run), initial.optimizers, read_step(checkpoint), _fingerprint(checkpoint))
    earlier = _recorded(origin.folder)
    return dataclasses.replace(origin, earlier=earlier and earlier.record)


def _recorded(folder: Path) -> Origin | None:
    """What a run's config.yaml says of where it began."""
    file = folder / "config.yaml"
    return _origin_in(_configuration(folder)) if file.exists() else None


def _origin_in(content: Mapping[str, Any]) -> Origin | None:
    given = content.get("from")
    return None if given is None else built(Origin, given, prefix="from.")


def _configuration(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    with reading(file, "is no configuration: choose another --out.", ConfigError):
        try:
            return read_configuration(file)
        except ConfigError as error:
            raise ConfigError(f"{error} Choose another --out, or mend the file.") from error


def with_its_score(recipe: Recipe, origin: Origin, out: Path) -> Recipe:
    """The recipe with what it builds on (a data score, a teacher) as it comes with the weights of a run.

    Args:
        recipe: of the run that begins or goes on.
        origin: the run whose weights it begins with.
        out: its folder.

    Raises:
        ConfigError: where another one is asked for, or the run is itself what the recipe builds on.
    """
    begun = latest_checkpoint(out / "checkpoints") is not None
    file = (out if begun else origin.folder) / "config.yaml"
    if not file.exists() or recipe.required is None:
        return recipe
    config = load_preset(file)
    theirs = make_recipe(config.recipe, config.settings)
    place, part = recipe.builds_on
    option = f"--{place.replace('_', '-')}"
    if type(theirs) is type(recipe.required):
        raise ConfigError(
            f"{origin.run} is a run of '{theirs.name}', which '{recipe.name}' builds on: give it as "
            f"{option} {origin.run} instead of --from."
        )
    if theirs.required is None:
        return recipe
    named: str | None = getattr(theirs, theirs.builds_on[0])
    asked: str | None = getattr(recipe, place)
    if asked not in (None, named):
        raise ConfigError(
            f"the model that it builds on comes with the weights of {origin.run}: leave out {option} {asked}."
        )
    score = dataclasses.replace(theirs.required, data=recipe.data)  # which must be of the same data
    if theirs.data.name != recipe.data.name:
        score = theirs.required
    return dataclasses.replace(recipe, **{place: named, part: score})


def started(
    preset: str | None, initial: Initial | None, out: str | None
) -> tuple[Preset, Initial | None, Path | None]:
    """What a line of 'partikel train' starts from.

    Args:
        preset: a preset's or recipe's name or a .yaml file; where None, the settings are those of the run to
            begin with, or of the run in ``out`` that did.
        initial: the run to begin with; the one that the file names where None.
        out: the run's folder.

    Returns:
        The preset, the run to begin with, and the folder: RUN-2 beside the run to begin with unless it was
        given, None where there is neither.

    Raises:
        ConfigError: where neither a preset nor a run is given, or they cannot be read.
    """
    if preset is None and initial is None:
        raise ConfigError(
            "name a preset ('partikel presets' lists them), or a run to start from with --from."
        )
    folder = None if out is None else Path(out)
    if initial is not None and folder is None:
        run = _place(initial.run)
        folder = Path(initial.run).with_name(f"{run.name}-2") if run.name else None
    if preset is None:
        assert initial is not None
        assert folder is not None
        there = Origin(initial.run).folder
        same = folder if _recorded(folder) is not None else there
        if not (same / "config.yaml").exists():
            raise ConfigError(
                f"{there} has no config.yaml that says what to train: name a preset or a .yaml file too, "
                f"as in partikel train PRESET --from {there}."
            )
        loaded = load_started(str(same / "config.yaml"))
        data = where_they_lie(same, loaded.settings.get("data") or {})
        loaded = dataclasses.replace(loaded, settings={**loaded.settings, "data": data})
    else:
        loaded = load_started(preset)
    if initial is None and loaded.initial is not None:
        initial = built(Origin, loaded.initial, prefix="from.")
    return loaded, initial, folder


def where_they_lie(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run's data, which lead to them from another directory too.

    Args:
        folder: of the run.
        data: what its config.yaml says.
    """
    path, known = data.get("path"), dict[str, str]()
    if path is not None and not find(path, data.get("root")).exists():
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            known = dict(read_json(folder / DATA)["places"])
    return {**data, **{key: place for key, place in known.items() if Path(place).exists()}}


def continued(out: Path, recipe: Recipe, origin: Origin | None) -> dict[str, Any]:
    """What the config.yaml of a run that begins or goes on says beside its settings.

    Args:
        out: the run's folder.
        recipe: its settings from now on.
        origin: where it began.

    Raises:
        ConfigError: if the run in the folder cannot go on with these settings, with the way on.
    """
    began = {} if origin is None else {"from": origin.record}
    if not (out / "config.yaml").exists():
        if (out / "checkpoints").exists():
            raise ConfigError(f"{out} holds checkpoints but no config.yaml: choose another --out.")
        return began
    old = _configuration(out)
    if old.get("recipe") != recipe.name:
        raise ConfigError(
            f"{out} holds a run of '{old.get('recipe')}', not of '{recipe.name}': "
            "choose another --out."
        )
    settings = old.get("settings") or {}
    with contextlib.suppress(ConfigError):  # settings younger than the run have their defaults
        settings = settings_of(make_recipe(old["recipe"], settings))
    changes = changes_of(settings, settings_of(recipe))
    length = [each for each in changes if each[0] == ("iterations",)]
    others = [each for each in changes if each not in length]
    told = told_changes(each for each in others if not may_differ(type(recipe), each[0]))
    if told:
        raise ConfigError(
            f"{out} holds a run with other settings ({told}): repeat its settings to resume it, "
            f"or choose another --out, where --from {out} starts a new run from its weights."
        )
    checkpoint = latest_checkpoint(out / "checkpoints")
    done = 0 if checkpoint is None else read_step(checkpoint)
    for _, then, now in length:
        check_length(done, then, now, recipe.of_length, out)
    history = old.get("history") or []
    if changes and done:
        were = {".".join(path): then for path, then, _ in changes}
        history = [*history, {"until": done, "settings": were}]
    return began | ({"history": history} if history else {})


def may_differ(kind: type, path: Sequence[str]) -> bool:
    """Whether a run may go on with another value of a setting.

    Args:
        kind: the recipe.
        path: names of the setting, from the outermost settings to the innermost.
    """
    inner: type | None = kind
    for name in path:
        marks = {each.name: each.metadata for each in dataclasses.fields(inner)} if inner else {}
        if name not in marks:
            return False
        if MAY_DIFFER.items() <= marks[name].items():
            return True
        inner = settings_in(types_of(inner)[name])
    return False


def changes_of(
    old: Mapping[str, Any], new: Mapping[str, Any], path: tuple[str, ...] = ()
) -> list[Change]:
    """Path, old and new value of every setting that differs.

    Args:
        old: settings, nested.
        new: others of the same kind.
        path: of both, within others.
    """
    found: list[Change] = []
    for key in sorted({*old, *new}):
        a, b, here = old.get(key), new.get(key), (*path, key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += changes_of(a, b, here)
        elif a != b:
            found.append((here, a, b))
    return found


def told_changes(changes: Iterable[Change]) -> str:
    """Changes in a sentence, without what is not set in groups of settings."""

    def told(value: Any) -> Any:
        group = isinstance(value, Mapping)
        return {k: v for k, v in value.items() if v is not None} if group else value

    return ", ".join(
        f"{'.'.join(path)}: {told(then)} there, {told(now)} now" for path, then, now in changes
    )
