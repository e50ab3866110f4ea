"""Defaults are promises: what a public name does when nothing is said, written down in defaults.json.

A default that changes changes the results of those who never named it: then write the file anew,
``python tests/test_defaults.py``, read the difference, and say it in CHANGELOG.md.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import partikel

FILE = Path(__file__).with_name("defaults.json")


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, classes and methods of the library by what they are called."""
    for module in pkgutil.walk_packages(partikel.__path__, "partikel."):
        room = module.name.split(".")[1]  # commands and items only hand on what is theirs
        if room in ("app", "studies") or room.startswith("_"):
            continue
        for name, made in vars(importlib.import_module(module.name)).items():
            if name.startswith("_") or getattr(made, "__module__", None) != module.name:
                continue
            if isinstance(made, FunctionType | type):
                yield f"{module.name}.{name}", made
            for method in vars(made).values() if isinstance(made, type) else ():
                if isinstance(method, FunctionType) and not method.__name__.startswith("_"):
                    yield f"{module.name}.{name}.{method.__name__}", method


def defaults_of(made: Callable[..., Any]) -> dict[str, str]:
    """Parameters that may be left out, with what they are then."""
    try:
        parameters = inspect.signature(made).parameters.items()
    except ValueError:  # of a class that is made in C
        return {}
    inner = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
    factory = {
        each.name: each.default_factory()
        for each in inner
        if each.default_factory is not dataclasses.MISSING
    }
    values = {name: factory.get(name, each.default) for name, each in parameters}
    unsaid = (None, inspect.Parameter.empty)  # None stands for what is worked out
    return {k: _said(v) for k, v in values.items() if not any(v is each for each in unsaid)}


def _said(value: Any) -> str:
    """A value; of a dataclass what is not as its own defaults, which have a line of their own."""
    if dataclasses.is_dataclass(value):
        own = defaults_of(type(value))
        all_said = {
            each.name: _said(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
        chosen = (f"{k}={v}" for k, v in all_said.items() if v != own.get(k, "None"))
        return f"{type(value).__name__}({', '.join(chosen)})"
    return value.__qualname__ if inspect.isroutine(value) else repr(value)


def every_default() -> dict[str, dict[str, str]]:
    """Of all public names that have any."""
    found = {name: defaults_of(made) for name, made in public()}
    return {name: found[name] for name in sorted(found) if found[name]}


def test_defaults_are_those_that_were_written_down() -> None:
    assert every_default() == json.loads(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    rows = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in every_default().items()]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    sys.stdout.write(f"{FILE}: {len(rows)} names\n")
