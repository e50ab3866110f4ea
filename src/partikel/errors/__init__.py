"""What a user can mend: every such failure is one clear sentence and exit code 2.

Functions raise the most specific class; the command line prints the message without a traceback.
Mistakes of a programmer (wrong shapes, wrong types) stay ordinary ``ValueError`` and ``TypeError``.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from typing import Any


class PartikelError(Exception):
    """Base of all failures that the user can mend; the message names the cause and the mend."""

    def __str__(self) -> str:
        """The sentence, on one line and without endless words, whatever the names in it hold."""
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """A text on one line and without endless words, whatever the names of files in it hold."""
    return re.sub(r"(\S{60})\S{400,}", r"\1...", "".join(map(_visible, text)))


def _visible(letter: str) -> str:
    surrogate = "\ud800" <= letter <= "\udfff"
    return letter if surrogate or letter.isprintable() else letter.encode("unicode_escape").decode()


class ConfigError(PartikelError):
    """A configuration key, type, range or combination that cannot work."""


class DataError(PartikelError):
    """Data that is missing, corrupt, or not what the configuration says."""


class CheckpointError(PartikelError):
    """A checkpoint or run folder that is missing, truncated, foreign or of another model."""


class NumericsError(PartikelError):
    """Training or sampling left the finite numbers."""


def installed(*modules: str) -> bool:
    """Whether packages are installed; imports none of them."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def mend_of(extra: str) -> str:
    """What installs the packages of one of Partikel's extras (``pyproject.toml`` lists them)."""
    return f'pip install "partikel[{extra}]"'


def optional(module: str, extra: str, need: str) -> Any:
    """A package that is imported where it is used, as Partikel does without it elsewhere.

    Args:
        module: to import.
        extra: what brings it.
        need: the beginning of a sentence: what needs which package.

    Raises:
        ConfigError: where it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        there = installed(module.partition(".")[0])
        why = f"cannot be imported ({error})" if there else "is not installed"
        raise ConfigError(f"{need}, which {why}: {mend_of(extra)}.") from error


LISTED = 40
"""Names that are listed in full."""


def nearest(name: str, valid: list[str] | tuple[str, ...]) -> str:
    """A phrase that helps with a misspelt name.

    Args:
        name: what the user wrote.
        valid: the names that exist.

    Returns:
        ``"did you mean 'x'?"`` where a name, or a word of one, is close, the nearest first where there
        are very many names, which are alike; else the valid names, unless they are so many.
    """
    import difflib

    many = len(valid) > LISTED
    few = 4 if many else 1
    known, wanted = {each.casefold(): each for each in valid}, name.casefold()
    close = difflib.get_close_matches(wanted, known, n=few, cutoff=0.5)
    if not close:  # as a word of theirs: mnst of edm-mnist-fast
        words = {word: None for each in known for word in each.split("-")}
        near = difflib.get_close_matches(wanted, words, n=1, cutoff=0.7)
        close = sorted((k for k in known if {*near} & {*k.split("-")}), key=len)[:few]
    if close:
        *others, last = (f"'{known[each]}'" for each in close)
        return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
    return f"none of {len(valid)} is near" if many else f"valid: {enumerated(sorted(valid))}"


def enumerated(names: Iterable[str]) -> str:
    """Names with commas between, in quotes those whose own commas or blanks would mislead."""
    return ", ".join(f"'{each}'" if "," in each or each != each.strip() else each for each in names)
