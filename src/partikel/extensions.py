"""Parts of other packages: found by their entry points, imported when they are named, never otherwise.

A package says in its ``pyproject.toml`` what it has, ``[project.entry-points."partikel.recipes"]`` with
lines ``my-recipe = "my_package:MyRecipe"``. The names are listed without importing anything. What they
stand for is imported when somebody names it: in Python code, as a word of a command, or by allowing its
package. A file that was written by somebody else (a run, an export, a configuration) names nothing by
itself: code that reads one does so within :func:`naming`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from partikel.errors import ConfigError, nearest

T = TypeVar("T")

ROOM = "partikel."
"""What the groups of entry points begin with."""
VARIABLE = "PARTIKEL_ALLOW"
"""Packages that may be imported whatever names them, with commas between."""


@dataclass(frozen=True)
class _Named:
    """What a user has named: packages, and words that may be names of their parts."""

    packages: frozenset[str]
    words: frozenset[str]


_named: ContextVar[_Named | None] = ContextVar("named", default=None)
"""None where a program runs whose author names what he wants, and everything may be imported."""


class Registry(dict[str, T]):
    """Ours by name, and those that other packages register; of two of a name, ours is meant.

    Args:
        kind: what they are called in a sentence, such as "recipe".
        group: their entry points', without "partikel.".
        ours: by name.
        accept: called with a name and what a package has under it; returns what belongs here, or raises
            a TypeError that says what must be there instead.
        also: names of ours that are found elsewhere, for the sentence about a name that there is not.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        ours: Mapping[str, T],
        accept: Callable[[str, Any], T],
        also: Iterable[str] = (),
    ) -> None:
        super().__init__(ours)
        self.kind, self.group, self._accept = kind, f"{ROOM}{group}", accept
        self._also = tuple(also)

    def others(self) -> dict[str, str]:
        """The names that other packages add, and the package of each; nothing is imported."""
        return {name: of for name, of in entries(self.group).items() if name not in self}

    def find(self, name: str) -> T:
        """Ours of this name, or another package's, which is imported now.

        Raises:
            ConfigError: where there is none, or it is of a package that nobody named, of several, or
                cannot be imported or used.
        """
        if name in self:
            return self[name]
        found = [each for each in entry_points(group=self.group) if each.name == name]
        if not found:
            known = [*self, *self._also, *self.others()]
            raise ConfigError(f"there is no {self.kind} '{name}': {nearest(name, known)}")
        packages = sorted({_package(each) for each in found})
        if len(found) > 1:
            raise ConfigError(
                f"the {self.kind} '{name}' is registered {len(found)} times, by "
                f"{' and '.join(packages)}: uninstall all of these packages but one."
            )
        (package,) = packages
        _check_named(package, f"the {self.kind} '{name}'")
        of = f"the {self.kind} '{name}' of the package {package}"
        try:
            part = found[0].load()
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"{of} cannot be imported ({said[:300]}): mend or uninstall the package."
            ) from error
        try:
            return self._accept(name, part)
        except TypeError as error:
            raise ConfigError(f"{of} cannot be used: {error}.") from error


def entries(group: str) -> dict[str, str]:
    """The names that packages register in a group, such as "recipes", and the package of each, sorted."""
    group = group if group.startswith(ROOM) else f"{ROOM}{group}"
    return {
        each.name: _package(each)
        for each in sorted(entry_points(group=group), key=lambda e: e.name)
    }


class NotNamedError(ConfigError):
    """A file names a part of a package, and nobody allowed it."""


@contextlib.contextmanager
def naming(packages: Iterable[str] | str = (), words: Iterable[str] = ()) -> Iterator[None]:
    """A block in which other packages are imported only where they are named.

    Named are the packages given here, those of $PARTIKEL_ALLOW, those a part of which has one of the words
    as its name, and what a block around this one named.

    Args:
        packages: names of installed packages.
        words: what a user wrote, names of parts perhaps.

    Raises:
        ConfigError: for a package that registers nothing.
    """
    given = frozenset(map(_plain, [packages] if isinstance(packages, str) else packages))
    known = {_package(each) for each in _all()} if given else set()
    for package in sorted(given - known):
        hint = nearest(package, sorted(known)) if known else "no installed package does"
        raise ConfigError(f"the package '{package}' adds nothing to partikel: {hint}")
    around = _named.get() or _Named(frozenset(), frozenset())
    allowed = frozenset(_plain(each) for each in os.environ.get(VARIABLE, "").split(",") if each)
    token = _named.set(_Named(around.packages | given | allowed, around.words | frozenset(words)))
    try:
        yield
    finally:
        _named.reset(token)


def _check_named(package: str, what: str) -> None:
    named = _named.get()
    if named is None or package in named.packages:
        return
    if not named.words.isdisjoint(each.name for each in _all() if _package(each) == package):
        return
    raise NotNamedError(
        f"{what} is code of the package {package}, and what names it is a file: if you trust both, allow "
        f"it with --allow {package} (in Python allow={{'{package}'}}, for good {VARIABLE}={package})."
    )


def _all() -> list[EntryPoint]:
    """The entry points of all groups of ours."""
    every = entry_points()
    return [
        each
        for group in every.groups
        if group.startswith(ROOM)
        for each in every.select(group=group)
    ]


def _package(entry: EntryPoint) -> str:
    """The name of the package that an entry point is of."""
    return _plain(entry.value.split(".")[0] if entry.dist is None else entry.dist.name)


def _plain(package: str) -> str:
    """A package's name as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package.strip()).lower()
