"""Configurations: presets, YAML files and command-line settings become typed recipes.

A configuration is ``{recipe: name, settings: {...}}``. What is left out has the recipe's default;
defaults live in the recipes' signatures only. Types are checked by jsonargparse. A configuration may
build on another one (``extends: preset``), and take the model of its data score from one
(``score: preset`` under settings).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from partikel.errors import ConfigError, nearest
from partikel.recipes import RECIPES, Recipe

SCHEMA = 1
_PRESETS = resources.files("partikel.recipes") / "presets"


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
    """

    name: str
    about: str
    recipe: str
    settings: dict[str, Any]
    measured: dict[str, Any]
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def preset_names() -> list[str]:
    """All presets that ship."""
    return sorted(p.name[:-5] for p in _PRESETS.iterdir() if p.name.endswith(".yaml"))


def load_preset(name: str | Path, extended: tuple[str, ...] = ()) -> Preset:
    """A shipped preset by name, or a YAML file of the same form by path.

    Args:
        name: of the preset, or path of the file.
        extended: the configurations that extend this one.

    Raises:
        ConfigError: if there is no such preset or file, or it is not a configuration.
    """
    name = str(name)
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"there is no configuration file {path}.")
        text, label = path.read_text(encoding="utf-8"), path.stem
    elif name in preset_names():
        text, label = (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8"), name
    else:
        raise ConfigError(
            f"there is no preset '{name}': {nearest(name, preset_names())} "
            "(a path to a .yaml file works too)"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not {"recipe", "extends"} & set(content):
        raise ConfigError(
            f"{name} is no configuration: it needs a line 'recipe: NAME' or 'extends: PRESET'."
        )
    allowed = ["about", "extends", "measured", "preset", "recipe", "schema", "settings"]
    for key in content:
        if key not in allowed:
            hint = nearest(str(key), allowed)
            raise ConfigError(f"unknown key '{key}' in {name} ({hint}); put it under 'settings'.")
    if content.get("schema", SCHEMA) != SCHEMA:
        raise ConfigError(
            f"{name} has configuration schema {content['schema']}, this version reads {SCHEMA}."
        )
    recipe, settings = content.get("recipe", ""), content.get("settings") or {}
    given = {} if name in preset_names() else settings
    if "extends" in content:
        if name in extended:
            raise ConfigError(f"{name} extends itself: name another preset.")
        base = load_preset(content["extends"], (*extended, name))
        if recipe not in ("", base.recipe):
            raise ConfigError(
                f"{name} is of the recipe '{recipe}' but extends '{base.name}', which is of "
                f"'{base.recipe}': leave out one of the two lines."
            )
        recipe, settings = base.recipe, _merge(base.settings, _with_named_score(settings))
    settings = dict(_with_named_score(settings))
    return Preset(
        label, content.get("about", ""), recipe, settings, content.get("measured") or {}, given
    )


def make_recipe(recipe: str, *settings: Mapping[str, Any]) -> Recipe:
    """A typed recipe from nested settings; later mappings win.

    Raises:
        ConfigError: for an unknown recipe or key (with the nearest valid one), a wrong type or an
            impossible value.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe '{recipe}': {nearest(str(recipe), list(RECIPES))}")
    kind = RECIPES[recipe]
    merged: dict[str, Any] = {}
    for more in settings:
        more = _with_named_score(more)
        check_keys(kind, more)
        merged = _merge(merged, more)
    if "score" in kind.__dataclass_fields__:  # one data set, with or without labels, serves both
        shared = {key: merged[key] for key in ("data", "conditional") if key in merged}
        merged = _merge({"score": shared}, merged)
    parser = recipe_parser(kind)
    try:
        parsed = parser.parse_object(_complete(kind, merged))
        made = parser.instantiate(parsed)
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse raises several kinds
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ConfigError):
            raise ConfigError(str(cause)) from error
        raise ConfigError(_explain(kind, merged, str(error))) from error
    values = {f.name: getattr(made, f.name) for f in dataclasses.fields(kind)}
    return kind(**values)


def _with_named_score(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings whose ``score`` is written out where it names a preset; its data give way to others."""
    named = settings.get("score")
    if not isinstance(named, str):
        return settings
    preset = load_preset(named)
    if preset.recipe != "edm":
        raise ConfigError(
            f"score names the preset '{named}' of the recipe '{preset.recipe}': name one of 'edm'."
        )
    return {**settings, "score": {k: v for k, v in preset.settings.items() if k != "data"}}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """All settings of a recipe as plain values, for YAML and JSON."""
    return _plain(dataclasses.asdict(recipe))


def dump_config(recipe: Recipe, preset: str) -> str:
    """The resolved configuration as YAML."""
    content = {
        "schema": SCHEMA,
        "preset": preset,
        "recipe": recipe.name,
        "settings": settings_of(recipe),
    }
    return yaml.safe_dump(content, sort_keys=False)


def recipe_parser(kind: type[Recipe], prog: str | None = None) -> ArgumentParser:
    """The typed options of a recipe, made from its signature."""
    parser = ArgumentParser(exit_on_error=False, prog=prog, default_env=False)
    parser.add_class_arguments(kind)
    return parser


def parse_overrides(tokens: Sequence[str]) -> dict[str, Any]:
    """``--key value`` and ``--key=value`` pairs as nested settings; values are YAML.

    Raises:
        ConfigError: for a token without a key, or a key without a value.
    """
    settings: dict[str, Any] = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or token == "--":
            raise ConfigError(f"'{token}' belongs to no setting: write --key value.")
        key, equals, text = token[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value: write --{key} VALUE.")
            text = rest.pop(0)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of --{key} is not valid YAML: {text}") from error
        if isinstance(value, str):  # YAML 1.1 takes 2e-4 for a word
            with contextlib.suppress(ValueError):
                value = float(value)
        place = settings
        *path, last = key.replace("-", "_").split(".")
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--{key} contradicts another setting of '{part}'.")
        place[last] = value
    return settings


def check_keys(kind: type, settings: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse keys that a dataclass (or a nested one) does not have.

    Raises:
        ConfigError: naming the key and the nearest valid one.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"'{prefix.rstrip('.')}' holds several settings, not {settings!r}.")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key, value in settings.items():
        if key not in names:
            deeper = [f"{prefix}{path}" for path in _paths(kind) if path.split(".")[-1] == key]
            hint = (
                f"did you mean '{deeper[0]}'?" if deeper else nearest(str(key), names)
            )  # the right name at another depth
            raise ConfigError(f"unknown setting '{prefix}{key}': {hint}")
        inner = _dataclass_in(hints[key])
        required = dataclasses.is_dataclass(hints[key])
        if inner is not None and (required or isinstance(value, Mapping)):
            check_keys(inner, value, f"{prefix}{key}.")


def _dataclass_in(hint: Any) -> type | None:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    return next((o for o in options if dataclasses.is_dataclass(o) and isinstance(o, type)), None)


def _paths(kind: type) -> list[str]:
    hints = typing.get_type_hints(kind)
    found = []
    for f in dataclasses.fields(kind):
        inner = _dataclass_in(hints[f.name])
        found += [f.name] if inner is None else [f"{f.name}.{path}" for path in _paths(inner)]
    return found


def _complete(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of partly given nested settings."""
    hints = typing.get_type_hints(kind)
    full: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        inner = _dataclass_in(hints[f.name])
        if f.name not in settings:
            continue
        value = settings[f.name]
        if inner is not None and isinstance(value, Mapping):
            default = _default(f)
            base = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else {}  # type: ignore[arg-type]
            if value.get("kind", base.get("kind")) != base.get("kind"):  # nothing of the default's
                base = {g.name: _default(g) for g in dataclasses.fields(inner)}
            value = _plain(_merge(base, value))
        full[f.name] = value
    return full


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return None if f.default_factory is dataclasses.MISSING else f.default_factory()


def _merge(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``more`` over ``base``; settings of another ``kind`` replace the old kind's as a whole."""
    merged = dict(base)
    for key, value in more.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            other_kind = value.get("kind", old.get("kind")) != old.get("kind")
            merged[key] = dict(value) if other_kind else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _explain(kind: type, settings: Mapping[str, Any], message: str) -> str:
    """A parser's complaint about a type, in one sentence."""
    found = re.search(r'[Kk]ey "([^"]+)"', message)
    if found is None:
        return " ".join(message.split())
    path = found.group(1)
    hint: Any = kind
    value: Any = settings
    for part in path.split("."):
        hint = typing.get_type_hints(_dataclass_in(hint) or kind).get(part, Any)
        value = value.get(part) if isinstance(value, Mapping) else None
    reason = re.search(r"(Option '[^']+' is not accepted)", message)
    because = f" ({reason.group(1)})" if reason else ""
    return f"the setting '{path}' must be {_type_name(hint)}, got {value!r}{because}."


def _type_name(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(repr(option) for option in options)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(option) for option in options)
    if origin is tuple:
        inner = [_type_name(option) for option in options if option is not Ellipsis]
        return f"a list of {', '.join(inner)}"
    plain = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    return "null" if hint is type(None) else plain.get(hint, getattr(hint, "__name__", str(hint)))
