"""What people write, in files and on the command line, read into values of the types that are asked for.

YAML is loaded with limits, and keeps the words: a scalar is a number only where the number is written no
other way, or where it remembers its text, so that a folder called ``2024-05-01`` or ``1e3`` stays one. What
a text means is decided by the type of the setting it is for (:func:`typed`).
"""

from __future__ import annotations

import contextlib
import math
import re
import typing
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, cast

import yaml

from partikel.errors import ConfigError
from partikel.errors.checks import fits, options_of, parts_of, shown
from partikel.extensions import entries

LONGEST_FILE = 200_000
"""Bytes of a configuration."""
DEEPEST = 40
"""Levels of nesting."""
MOST_ENTRIES = 20_000
"""Entries of a configuration, those that aliases repeat included."""


class Written(float):
    """A number that remembers how it was written."""

    text: str = ""


class WrittenList(list[Any]):
    """A list from the command line that remembers how it was written."""

    text: str = ""


class WrittenMap(dict[str, Any]):
    """Settings from the command line that remember how they were written."""

    text: str = ""


class _Loader(yaml.SafeLoader):
    """YAML's core types, nothing that runs or repeats itself without bounds."""

    yaml_constructors: typing.ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]
    yaml_implicit_resolvers: typing.ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            _refuse(f"it nests more than {DEEPEST} levels", self.peek_event())
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_document(self, node: yaml.Node) -> Any:
        _count(node, 0, MOST_ENTRIES)
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            _refuse("what is no mapping is tagged as one", node)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse("a key is a word", key)
            if key.value in seen and not key.tag.endswith(":merge"):
                _refuse(f"the key '{key.value}' stands there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def _number(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        infinite = {f"{sign}.inf": float(f"{sign}inf") for sign in ("", "+", "-")}
        named: dict[str, float] = {**infinite, ".nan": math.nan}
        try:
            value = Written(named.get(text.lower()) or text)
        except ValueError:
            _refuse(f"'{text[:40]}' is no number", node)
        value.text = text
        return value

    def _whole(self, node: yaml.ScalarNode) -> Any:
        try:
            return int(node.value)
        except (
            ValueError
        ):  # too many digits are kept as they stand, and refused by what they are for
            return node.value


def _refuse(problem: str, place: Any) -> typing.NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _count(node: Any, depth: int, left: int) -> int:
    """How many entries are left after those of a node, as often as aliases repeat them."""
    if depth > DEEPEST:
        _refuse("it repeats itself without an end", node)
    if left <= 0:
        _refuse(f"it has more than {MOST_ENTRIES} entries", node)
    left -= 1
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            left = _count(each, depth + 1, left)
    elif isinstance(node, yaml.MappingNode):
        for _, each in node.value:
            left = _count(each, depth + 1, left)
    return left


def _construct(tag: str, how: Callable[[_Loader, Any], Any]) -> None:
    _Loader.add_constructor(f"tag:yaml.org,2002:{tag}", how)


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_construct("str", _Loader.construct_scalar)
_construct("int", _Loader._whole)
_construct("float", _Loader._number)
_construct("bool", lambda loader, node: node.value.lower() == "true")
_construct("null", lambda loader, node: None)
_construct("seq", _Loader.construct_yaml_seq)
_construct("map", _Loader.construct_yaml_map)
_Loader.add_constructor(cast(str, None), _Loader.construct_undefined)
_resolve("bool", r"^(?:true|false)$", "tf")
_resolve("null", r"^(?:null|~|)$", "n~\0")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_resolve("merge", r"^<<$", "<")
_resolve("int", r"^(?:0|-?[1-9][0-9]*)$", "-0123456789")
_resolve("float", r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789")
_resolve("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+.")


def load_yaml(text: str, name: str) -> Any:
    """The value of a YAML text.

    Args:
        text: of a file, or of a setting.
        name: what sentences call it.

    Raises:
        ConfigError: for what is no YAML, has a key twice, or is too long, too deep or too large; with the
            line.
    """
    if len(text) > LONGEST_FILE:
        raise ConfigError(f"{name} is too long: at most {LONGEST_FILE} characters are read.")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        said = " ".join(str(problem).split())
        raise ConfigError(f"{name} is not valid YAML{place}: {said}.") from error
    except (
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:  # a tag of another kind
        raise ConfigError(f"{name} is not valid YAML: leave out its tags (!!...).") from error


def preset_texts(part: str = "") -> dict[str, str]:
    """The files of the presets that ship and whose names hold ``part``, by name."""
    files = (resources.files("partikel") / "recipes" / "presets").iterdir()
    found = {file.name[:-5]: file for file in files if file.name.endswith(".yaml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found) if part in name}


def shipped_presets(part: str = "") -> dict[str, dict[str, Any]]:
    """What stands in those files; they are our own, so that they are read without limits, and fast."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {name: yaml.load(text, loader) for name, text in preset_texts(part).items()}


def foreign_recipes(part: str = "") -> dict[str, dict[str, Any]]:
    """What other packages' recipes whose names hold ``part`` are trained with, as they are, by name."""
    named = entries("recipes").items()
    return {
        name: {"recipe": name, "about": f"the recipe of the package {package}, as it is"}
        for name, package in named
        if part in name
    }


def given(text: str, name: str) -> Any:
    """The value of a text from the command line, which keeps the text where that may be wanted.

    Args:
        text: one word of the command line.
        name: of the setting.
    """
    try:
        value = load_yaml(text, name)
    except ConfigError:
        return text  # a word, or refused by what it is for
    if isinstance(value, (list, dict)):
        kept = WrittenList(value) if isinstance(value, list) else WrittenMap(value)
        kept.text = text
        return kept
    return text if isinstance(value, str) else value


def typed(
    value: Any, hint: Any, build: Callable[[type, Mapping[str, Any]], Any] | None = None
) -> Any:
    """A value as a type has it, where it can be read so; else the value, which :func:`check` refuses.

    Args:
        value: from YAML or the command line.
        hint: the type; of several, the first that fits.
        build: makes a dataclass from settings.
    """
    options = options_of(parts_of(hint)[0])
    if len(options) > 1:
        for option in sorted(options, key=lambda each: each is not type(None)):
            read = typed(value, option, build)
            if fits(read, option):
                return read
        return value
    kind = parts_of(hint)[0]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, Mapping) and isinstance(kind, type) and build is not None:
        return build(kind, value) if hasattr(kind, "__dataclass_fields__") else _text(value, kind)
    if origin in (tuple, list) and isinstance(value, (list, tuple)):
        every = origin is list or inner[-1] is Ellipsis
        kinds = [inner[0]] * len(value) if every else inner
        if len(kinds) != len(value):
            return value
        return origin(typed(each, one, build) for each, one in zip(value, kinds, strict=True))
    if origin is typing.Literal:
        return value if value in inner else _text(value, str)
    return _text(value, kind)


def _text(value: Any, kind: Any) -> Any:
    """A scalar as a plain type has it."""
    if kind is str:
        if isinstance(value, (bool, int)):
            return str(value).lower()
        return getattr(value, "text", value)
    if kind is bool and isinstance(value, str):
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return words.get(value.lower(), value)
    if (
        kind not in (int, float)
        or isinstance(value, bool)
        or not isinstance(value, (str, int, float))
    ):
        return value
    if kind is int and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value, 0)
    with contextlib.suppress(ValueError, OverflowError):
        number = float(value)
        if kind is float:
            return number
        if isinstance(value, (str, Written)) and number.is_integer():
            return int(number)
    return value


def listed(value: Any) -> str:
    """A value in a sentence, as YAML writes it."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    text = getattr(value, "text", None)
    return shown(value) if text is None else text[:60]
