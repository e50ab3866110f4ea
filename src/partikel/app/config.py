"""Configurations: presets, YAML files and command-line settings become typed recipes.

A configuration is ``{recipe: name, settings: {...}}``. What is left out has the recipe's default;
defaults, types and ranges live in the recipes' signatures only. A configuration may
build on another one (``extends: preset``), and take the model of its data score from one
(``score: preset`` under settings).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from partikel.app.reading import (
    LONGEST_FILE,
    foreign_recipes,
    listed,
    load_yaml,
    preset_texts,
    typed,
)
from partikel.errors import ConfigError, nearest
from partikel.errors.checks import check, fits, settings_in, types_of, words_of
from partikel.files import read_text
from partikel.recipes import RECIPES, Recipe
from partikel.recipes.base import ScoreModel

T = TypeVar("T")

SCHEMA = 1
LONGEST_CHAIN = 20
"""Configurations that build on one another."""
_ALLOWED: dict[str, Any] = {
    **dict.fromkeys(("about", "preset"), str | None),
    **dict.fromkeys(("extends", "recipe"), str),
    **dict.fromkeys(("measured", "settings", "from"), dict | None),
    **dict.fromkeys(("history", "placed"), list | None),
    "schema": int,
}
_PRESETS = preset_texts()


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        name: of the file.
        about: one line.
        recipe: name of the recipe.
        settings: what differs from the recipe's defaults.
        measured: results with their protocol, as committed; empty before they are measured.
        given: settings that stand in the user's own file; none of a preset that ships.
        placed: nodes for few steps (see :mod:`partikel.app.placed`), as committed.
        initial: the run whose weights a training begins with (see :class:`partikel.app.continuing.Origin`),
            which a file may name under ``from``.
    """

    name: str
    about: str
    recipe: str
    settings: dict[str, Any]
    measured: dict[str, Any]
    placed: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    initial: Mapping[str, Any] | None = None


def preset_names() -> list[str]:
    """All presets that ship."""
    return list(_PRESETS)


def load_preset(name: str | Path, extended: tuple[str, ...] = ()) -> Preset:
    """A shipped preset by name, or a YAML file of the same form by path.

    What a file names is looked for beside it: the files that it extends, or names as its score, and its
    relative paths (``root`` and ``cache`` of the data in any case, other paths where there is such a file).
    The paths in a run's own config.yaml are left as they were given.

    Args:
        name: of the preset, or path of the file.
        extended: the configurations that build on this one.

    Raises:
        ConfigError: if there is no such preset or file, or it is not a configuration.
    """
    name = str(name)
    if name in extended:
        raise ConfigError(f"{name} extends itself, or is its own score: name another preset.")
    if len(extended) > LONGEST_CHAIN:
        raise ConfigError(
            f"{name} is the end of more than {LONGEST_CHAIN} files that build on others."
        )
    content = read_configuration(name)
    chain, folder = (*extended, name), Path(name).parent
    recipe = content.get("recipe", "")
    settings = _with_named_score(content.get("settings") or {}, folder, chain)
    if _is_file(name) and isinstance(settings, Mapping):
        settings = _with_places(settings, folder, by_a_run="schema" in content)
    chosen = {} if name in _PRESETS else settings
    if "extends" in content:
        base = load_preset(_beside(content["extends"], folder), chain)
        if recipe not in ("", base.recipe):
            raise ConfigError(
                f"{name} is of the recipe '{recipe}' but extends '{base.name}', which is of "
                f"'{base.recipe}': leave out one of the two lines."
            )
        recipe, settings = base.recipe, _merge(base.settings, settings)
    label = content.get("preset") or (Path(name).stem if _is_file(name) else name)
    measured = content.get("measured") or {}
    about = content.get("about") or ""
    initial = content.get("from")
    if initial is not None and "run" in initial:
        initial = {**initial, "run": str(folder / str(initial["run"]))}  # as other relative paths
    placed = content.get("placed") or []
    return Preset(label, about, recipe, dict(settings), measured, placed, dict(chosen), initial)


def load_started(name: str) -> Preset:
    """What a training is started from: a preset, a file, or a recipe by its name, which sets nothing.

    Raises:
        ConfigError: as :func:`load_preset`.
    """
    if name in RECIPES and name not in _PRESETS:
        return Preset(name, RECIPES[name].title, name, {}, {})
    return load_preset(name)


def read_configuration(name: str | Path) -> dict[str, Any]:
    """What stands in a configuration, its keys and their types checked, its settings not.

    Args:
        name: of a preset, or path of a file.

    Raises:
        ConfigError: as :func:`load_preset`, for this file alone.
    """
    name = str(name)
    if _is_file(name):
        if not os.path.exists(name):
            raise ConfigError(f"there is no configuration file {name}.")
        text = read_text(Path(name), ConfigError, LONGEST_FILE)
    elif name in _PRESETS:
        text = _PRESETS[name]
    elif name in RECIPES.others():
        return foreign_recipes(name)[name]
    else:
        raise ConfigError(
            f"there is no preset '{name}': {nearest(name, [*preset_names(), *RECIPES, *foreign_recipes()])} "
            "('partikel presets' lists them all; a path to a .yaml file works too)"
        )
    content = load_yaml(text, name)
    if not isinstance(content, dict) or not {"recipe", "extends"} & set(content):
        raise ConfigError(
            f"{name} is no configuration: it needs a line 'recipe: NAME' or 'extends: PRESET'."
        )
    for key, value in content.items():
        if key not in _ALLOWED:
            hint = nearest(str(key), list(_ALLOWED))
            raise ConfigError(f"unknown key '{key}' in {name} ({hint}); put it under 'settings'.")
        content[key] = typed(value, _ALLOWED[key])
        check(content[key], _ALLOWED[key], f"'{key}' in {name}")
    if content.get("schema", SCHEMA) != SCHEMA:
        raise ConfigError(
            f"{name} has configuration schema {content['schema']}, this version reads {SCHEMA}."
        )
    return content


def _is_file(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml"))


def _beside(name: str, folder: Path) -> str:
    """The path of a file that is named in a file of ``folder``; the names of presets as they are."""
    return str(folder / name) if _is_file(name) else name


def _with_places(settings: Mapping[str, Any], folder: Path, by_a_run: bool) -> dict[str, Any]:
    """Settings whose relative paths, given in a file of ``folder``, are what they are from here."""

    def beside(given: Any, there: bool) -> Any:
        value = typed(given, str)
        if not isinstance(value, str) or value.startswith("~") or not value or "\0" in value:
            return given
        kind, colon, path = value.rpartition("diffusers:")
        place = folder / path
        return f"{kind}{colon}{place}" if not there or os.path.exists(place) else given

    data = settings.get("data")
    found = dict(settings)
    if not by_a_run and isinstance(data, Mapping):
        rules = {"path": True, "root": False, "cache": False}  # a path may be a name, of the Hub
        places = {k: beside(v, rules[k]) for k, v in data.items() if k in rules}
        found["data"] = {**data, **places}
    if not by_a_run and "data_score" in settings:
        found["data_score"] = beside(settings["data_score"], True)
    return found


def make_recipe(recipe: str, *settings: Mapping[str, Any]) -> Recipe:
    """A typed recipe from nested settings; later mappings win.

    Raises:
        ConfigError: for an unknown recipe or key (with the nearest valid one), a wrong type or an
            impossible value.
    """
    kind = RECIPES.find(recipe)
    merged: dict[str, Any] = {}
    for more in settings:
        more = _with_named_score(more)
        check_keys(kind, more)
        merged = _merge(merged, more)
    shared = {key: merged[key] for key in ("data", "conditional") if key in merged}
    for f in dataclasses.fields(kind):  # one data set, with or without labels, serves both
        inner = merged.get(f.name, {})
        if isinstance(_default(f), Recipe) and isinstance(inner, Mapping):
            merged[f.name] = shared | dict(inner)
    return built(kind, merged)


def built(kind: type[T], settings: Mapping[str, Any], base: Any = None, prefix: str = "") -> T:
    """A dataclass of settings; what is left out is as in ``base``, or has its default.

    Raises:
        ConfigError: for a value of another type or out of range, with its path.
    """
    kind, settings = _named(kind, settings)
    check_keys(kind, settings, prefix)
    if base is not None and typed(settings.get("kind", MISSING), str) not in (
        MISSING,
        getattr(base, "kind", None),
    ):
        base = None  # nothing of the settings of another kind
    given = (
        {} if base is None else {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    )
    hints = types_of(kind)
    for f in dataclasses.fields(cast(Any, kind)):
        path = f"{prefix}{f.name}"
        if f.name in settings:
            default = given.get(f.name, _default(f))

            def build(
                inner: type, more: Mapping[str, Any], default: Any = default, path: str = path
            ) -> Any:
                same = type(default) is _named(inner, more)[0]
                return built(inner, more, default if same else None, f"{path}.")

            value = typed(settings[f.name], hints[f.name], build)
            if not fits(value, hints[f.name]):
                if isinstance(value, str):
                    check(value, str, f"the setting '{path}'")
                what = words_of(hints[f.name])
                raise ConfigError(
                    f"the setting '{path}' must be {what}, got {listed(settings[f.name])}."
                )
            given[f.name] = value
        elif f.name not in given and _default(f) is MISSING:
            raise ConfigError(
                f"the setting '{path}' is missing: it must be {words_of(hints[f.name])}."
            )
    return kind(**given)


def _named(kind: type, settings: Mapping[str, Any]) -> tuple[type, Mapping[str, Any]]:
    """The recipe that settings of a recipe name, where another than the usual one may stand."""
    name = typed(settings.get("recipe"), str) if isinstance(settings, Mapping) else None
    if name is None or not issubclass(kind, Recipe):
        return kind, settings
    return RECIPES.find(name), {key: value for key, value in settings.items() if key != "recipe"}


def _with_named_score(
    settings: Any, folder: Path = Path(), extended: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    """Settings whose ``score`` is written out where it names a preset; its data give way to others."""
    if not isinstance(settings, Mapping):
        return settings
    named = settings.get("score")
    if not isinstance(named, str):
        return settings
    preset = load_preset(_beside(named, folder), extended)
    if not issubclass(RECIPES.find(preset.recipe), ScoreModel):
        raise ConfigError(
            f"score names the preset '{named}' of the recipe '{preset.recipe}', which has no score of the "
            "data: name one of 'edm' or 'flow-matching'."
        )
    score = {k: v for k, v in preset.settings.items() if k != "data"}
    other = {} if preset.recipe == "edm" else {"recipe": preset.recipe}
    return {**settings, "score": other | score}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """All settings of a recipe as plain values; recipes within it say their names, if not the usual ones."""
    plain = _plain(dataclasses.asdict(recipe))
    for f in dataclasses.fields(recipe):
        inner = getattr(recipe, f.name)
        if isinstance(inner, Recipe):
            usual = type(inner) is type(_default(f))
            plain[f.name] = ({} if usual else {"recipe": inner.name}) | settings_of(inner)
    return plain


def dump_config(recipe: Recipe, preset: str, more: Mapping[str, Any] | None = None) -> str:
    """The resolved configuration as YAML, with what else is known of a run."""
    content = {
        "schema": SCHEMA,
        "preset": preset,
        "recipe": recipe.name,
        "settings": settings_of(recipe),
        **(more or {}),
    }
    return yaml.safe_dump(content, sort_keys=False)


def check_keys(kind: type, settings: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse keys that a dataclass (or a nested one) does not have.

    Raises:
        ConfigError: naming the key and the nearest valid one.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"'{prefix.rstrip('.')}' holds several settings, not {listed(settings)}.")
    hints = types_of(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key, value in settings.items():
        if key not in names:
            from partikel.app.arguments import options_in  # and the command line's library

            paths = (each.key for each in options_in(kind, told=False))
            deeper = [f"{prefix}{path}" for path in paths if path.split(".")[-1] == key]
            hint = (
                f"did you mean '{deeper[0]}'?" if deeper else nearest(str(key), names)
            )  # the right name at another depth
            raise ConfigError(f"unknown setting '{prefix}{key}': {hint}")
        inner = settings_in(hints[key])
        required = dataclasses.is_dataclass(hints[key])
        if inner is not None and (required or isinstance(value, Mapping)):
            check_keys(*_named(inner, value), f"{prefix}{key}.")


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _merge(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``more`` over ``base``; settings of another ``kind`` or ``recipe`` replace the old one's as a whole."""
    merged = dict(base)
    for key, value in more.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            other_kind = any(value.get(k, old.get(k)) != old.get(k) for k in ("kind", "recipe"))
            merged[key] = dict(value) if other_kind else _merge(old, value)
        else:
            merged[key] = value
    return merged


def shown_preset(name: str) -> str:
    """A preset whole: what it is, its resolved configuration, what was measured."""
    loaded = load_preset(name)
    text = dump_config(make_recipe(loaded.recipe, loaded.settings), loaded.name)
    known = {"measured": loaded.measured, "placed": loaded.placed}
    more = "".join(f"# {key}: {json.dumps(value)}\n" for key, value in known.items() if value)
    return f"# {loaded.about}\n{text}{more}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
