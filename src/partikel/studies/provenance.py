"""What a result depends on, as fingerprints: settings, the rule of judgement, what measures.

A result stores them. One whose fingerprints are no longer today's is *stale*: it says what it was made of,
and nothing is claimed of today's code. Source counts without comments and docstrings.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from partikel.app.config import load_preset, make_recipe, settings_of
from partikel.errors import ConfigError
from partikel.files import fingerprint

RULE = "partikel.studies.judgement"
_ROOMS = ("partikel.studies", "partikel.metrics")
"""Where what measures is. Code that is measured (fields, carriers, training) is left out: a change there
has to be followed by measuring again."""
_SHOWING = {"partikel.studies." + name for name in ("page", "reproduce", "provenance", "judgement")}
"""Modules that decide on no figure."""
_UNTOUCHED = ("data_score",)
"""Settings that name a place, not a content."""


def metrics() -> str:
    """Fingerprint of everything that measures samples."""
    return _code(frozenset({"partikel.metrics"}))


def measuring(module: str) -> str:
    """Fingerprint of a module, and of all it uses to measure.

    Args:
        module: that holds an item's measurement.
    """
    return _code(frozenset({module}))


def rule() -> str:
    """Fingerprint of the rule of judgement."""
    return fingerprint(_meaning(RULE))


def settings(trained: Mapping[str, Mapping[str, Any]]) -> str:
    """Fingerprint of the resolved settings of runs, as today's presets have them.

    Args:
        trained: "name/seed-k" -> "preset" and "changes" of the run.

    Raises:
        ConfigError: where a preset is no more, or does not take the changes.
    """
    resolved = {}
    for run, each in trained.items():
        preset = load_preset(each["preset"])
        changes = {key: value for key, value in each["changes"].items() if key not in _UNTOUCHED}
        seed = int(run.rpartition("seed-")[2])
        recipe = make_recipe(preset.recipe, preset.settings, {**changes, "seed": seed})
        known = settings_of(recipe)
        resolved[run] = {key: value for key, value in known.items() if key not in _UNTOUCHED}
    return fingerprint(resolved)


def stamps(plan: Any, trained: Mapping[str, Mapping[str, Any]], module: str) -> dict[str, str]:
    """Fingerprints of all that a result depends on, by what they are of."""
    try:
        resolved = settings(trained)
    except ConfigError:
        resolved = ""
    return {
        "plan": fingerprint(plan),
        "settings": resolved,
        "rule": rule(),
        "measuring": measuring(module),
    }


@functools.cache
def _code(modules: frozenset[str]) -> str:
    """Fingerprint of modules and of those in :data:`_ROOMS` that they import, at any depth."""
    found: dict[str, str] = {}
    waiting = set(modules)
    while waiting:
        name = waiting.pop()
        if name in found or name in _SHOWING:
            continue
        found[name] = fingerprint(_meaning(name))
        waiting |= set(_imported(name))
    return fingerprint(found)


@functools.cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _imported(module: str) -> Iterable[str]:
    for node in ast.walk(_tree(module)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            names = [node.module, *(name for name in inner if _exists(name))]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.startswith(_ROOMS))


@functools.cache
def _exists(module: str) -> bool:
    if not module.startswith(_ROOMS):
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent is no package
        return False


def _meaning(module: str) -> list[Any]:
    """The syntax tree of a module without docstrings, in the form that all versions of Python share."""
    return _plain(_tree(module))


def _plain(node: Any) -> Any:
    if isinstance(node, ast.AST):
        fields = ((name, _plain(value)) for name, value in ast.iter_fields(node))
        return [type(node).__name__, *([n, v] for n, v in fields if v not in (None, []))]
    if isinstance(node, list):
        return [_plain(each) for each in node if not _silent(each)]
    return repr(node) if node is not None else None


def _silent(node: Any) -> bool:
    """Whether a statement is a docstring, of an attribute too."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
