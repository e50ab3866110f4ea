"""What a user can mend: every such failure is one clear sentence and exit code 2.

Functions raise the most specific class; the command line prints the message without a traceback.
Mistakes of a programmer (wrong shapes, wrong types) stay ordinary ``ValueError`` and ``TypeError``.

Here too is the one check of settings against their types: a type says what is in range
(``Annotated[float, Range(above=0)]``), and whatever reads or takes settings asks :func:`check`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, ParamSpec, TypeVar, cast


class PartikelError(Exception):
    """Base of all failures that the user can mend; the message names the cause and the mend."""

    def __str__(self) -> str:
        """The sentence, on one line and without endless words, whatever the names in it hold."""
        line = "".join(map(_visible, super().__str__()))
        return re.sub(r"(\S{60})\S{400,}", r"\1...", line)


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


LISTED = 40
"""Names that are listed in full."""


def nearest(name: str, valid: list[str] | tuple[str, ...]) -> str:
    """A phrase that helps with a misspelt name.

    Args:
        name: what the user wrote.
        valid: the names that exist.

    Returns:
        ``"did you mean 'x'?"`` where something is close, else the valid names, or the nearest few of
        very many.
    """
    import difflib

    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    if len(valid) <= LISTED:
        return f"valid: {', '.join(sorted(valid))}"
    some = difflib.get_close_matches(name, valid, n=5, cutoff=0.0)
    return f"valid: {', '.join(some)} and {len(valid) - len(some)} more"


LONGEST = 1000
"""Entries of a list among settings."""


@dataclass(frozen=True)
class Range:
    """Which numbers a setting may be, or of how many entries a list; all that is finite unless said.

    Attributes:
        least: the smallest one.
        most: the largest one.
        above: a bound that is not reached.
        below: likewise.
        even: no odd ones.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    even: bool = False

    def __contains__(self, value: float) -> bool:
        if not (self.least <= value <= self.most and self.above < value < self.below):
            return False
        return not (self.even and value % 2) and (self.above != 0 or value >= 1.2e-38)

    @property
    def words(self) -> str:
        """For a sentence: "of at least 1", or "above 0", or "in [0, 1)"."""
        low = self.above if self.above > -math.inf else self.least
        high = self.below if self.below < math.inf else self.most
        if math.inf not in (high, -low) and not isinstance(self.most, int):
            left, right = "[("[self.above > -math.inf], "])"[self.below < math.inf]
            return f"in {left}{low:g}, {high:g}{right}"
        ends = (self.least, self.above, self.most, self.below)
        names = ("of at least", "above", "at most", "below")
        said = [
            f"{name} {end}" for name, end in zip(names, ends, strict=True) if abs(end) < math.inf
        ]
        return " and ".join(["even"] * self.even + said)


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0.0, most=1.0)]
Part = Annotated[float, Range(least=0, below=1)]
"""Of a whole that is never all of it: a dropout, a decay of moments."""
Level = Annotated[float, Range(1e-12, 1e9)]
"""Of noise: what squares and powers of it leave finite."""
Exponent = Annotated[float, Range(0.1, 100.0)]
"""Karras's ρ."""
Count = Annotated[int, Range(1, 10**5)]
"""Of what is repeated (steps, updates), or built so many times."""
Size = Annotated[int, Range(1, 2**24)]
"""Of what is computed at once: a batch, an evaluation."""
Width = Annotated[int, Range(1, 2**16)]
"""Of a network's layer."""
Depth = Annotated[int, Range(1, 1000)]
Seed = Annotated[int, Range(-(2**63), 2**63 - 1)]

# single precision is infinite beyond 3.4e38, and 0 below 1.2e-38
_LIMITS = {int: Range(-(2**63), 2**63 - 1), float: Range(-3.4e38, 3.4e38)}
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a word",
    bool: "true or false",
    dict: "a mapping",
}


def parts_of(hint: Any) -> tuple[Any, Range | None]:
    """A type without its annotation, and the range in it."""
    if typing.get_origin(hint) is not Annotated:
        return hint, None
    kind, *notes = typing.get_args(hint)
    return kind, next((note for note in notes if isinstance(note, Range)), None)


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union; a type that is none alone."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type and in its range. A truth value is no number, NaN in no range."""
    options = options_of(hint)
    if len(options) > 1:
        return any(fits(value, option) for option in options)
    kind, span = parts_of(hint)
    origin = typing.get_origin(kind)
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
            return False
        limits, number = _LIMITS[kind], cast(float, value)  # whole ones stay exact
        return number in limits and (span is None or number in span)
    if origin is typing.Literal:
        return any(value == each and type(value) is type(each) for each in typing.get_args(kind))
    if origin in (tuple, list):
        inner = typing.get_args(kind)
        if not isinstance(value, (tuple, list)) or len(value) not in (span or Range(most=LONGEST)):
            return False
        if origin is list or (len(inner) == 2 and inner[1] is Ellipsis):
            return all(fits(each, inner[0]) for each in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    if kind in (None, type(None)):
        return value is None
    if kind is str:  # what can neither name a file nor be written into one is no word
        return isinstance(value, str) and _writable(value) and "\0" not in value
    if origin is Callable:
        return callable(value)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _writable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def words_of(hint: Any) -> str:
    """A type and its range in words: "a whole number of at least 1 or null"."""
    kind, span = parts_of(hint)
    options = options_of(kind)
    if len(options) > 1:
        return " or ".join(words_of(option) for option in options)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        said = " or ".join(repr(option) for option in inner)
    elif origin is tuple and Ellipsis not in inner:
        said = f"({', '.join(words_of(each) for each in inner)})"
    elif origin in (tuple, list):
        said = f"a list of {', '.join(words_of(each) for each in inner if each is not Ellipsis)}"
        return said if span is None else f"{said} ({span.words.removeprefix('of ')} of them)"
    elif kind in (None, type(None)):
        said = "null"
    elif origin is Callable:
        said = "a function"
    elif dataclasses.is_dataclass(kind):
        said = f"settings of {getattr(kind, '__name__', kind)}"
    else:
        said = _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
    return said if span is None else f"{said} {span.words}"


def shown(value: Any, longest: int = 60) -> str:
    """A value in a sentence, cut where it is long."""
    huge = (
        isinstance(value, int) and abs(value) > 10**longest
    )  # Python refuses to write the longest
    text = f"{type(value).__name__} of very many digits" if huge else repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def check(value: Any, hint: Any, name: str) -> None:
    """Refuse a value that is not of a type, or not in its range.

    Args:
        value: the setting.
        hint: its type, as ``typing.get_type_hints(..., include_extras=True)`` gives it.
        name: what the sentence calls it.

    Raises:
        ConfigError: with the name, what it must be, and what it is.
    """
    if isinstance(value, str) and not (_writable(value) and "\0" not in value):
        raise ConfigError(f"{name} has letters that no file can hold, got {shown(value)}.")
    if not fits(value, hint):
        raise ConfigError(f"{name} must be {words_of(hint)}, got {shown(value)}.")


@functools.cache
def types_of(of: Any) -> dict[str, Any]:
    """The types of a class's fields, or of a function's arguments, their ranges included."""
    return typing.get_type_hints(of, include_extras=True)


class Checked:
    """Base of dataclasses of settings: every field is of its type and in its range, or it is refused."""

    def __post_init__(self) -> None:
        """Check every field (what concerns several of them, a subclass adds)."""
        hints = types_of(type(self))
        for each in dataclasses.fields(cast(Any, self)):
            check(
                getattr(self, each.name), hints[each.name], f"{each.name} of {type(self).__name__}"
            )


P = ParamSpec("P")
T = TypeVar("T")


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a constructor: its arguments that are numbers are of their types and in their ranges.

    Arguments that are no numbers are not looked at: fields, networks and tensors are checked by their use.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            hint = types_of(function).get(name)
            if hint is not None and _has_number(hint):
                check(value, hint, f"{name} of {type(args[0]).__name__}")
        return function(*args, **kwargs)

    return asked


def _has_number(hint: Any) -> bool:
    kind = parts_of(hint)[0]
    inner = options_of(kind) if typing.get_origin(kind) is not tuple else typing.get_args(kind)
    return kind in (int, float) or (inner != (kind,) and any(map(_has_number, inner)))
