"""What is taken: types, with the ranges of their numbers, are the only list, for everything.

A type says what is in range (``Annotated[float, Range(above=0)]``). Whatever reads settings asks
:func:`check`; dataclasses of settings and public classes descend from :class:`Checked`; public functions are
:func:`checked`. A misplaced argument ends in one sentence before anything is computed, at about a
microsecond a call.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import FunctionType
from typing import Annotated, Any, ClassVar, TypeVar, cast

from partikel.errors import ConfigError, nearest

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


Natural = Annotated[int, Range(least=0)]
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
Iterations = Annotated[int, Range(least=1)]
"""Of a training, or from one evaluation or checkpoint to the next."""
Size = Annotated[int, Range(1, 2**24)]
"""Of what is computed at once: a batch, an evaluation."""
Width = Annotated[int, Range(1, 2**16)]
"""Of a network's layer."""
Depth = Annotated[int, Range(1, 1000)]
Seed = Annotated[int, Range(-(2**63), 2**63 - 1)]
SplitSeed = Annotated[int, Range(0, 2**32 - 1)]

# single precision is infinite beyond 3.4e38, and 0 below 1.2e-38
_LIMITS = {int: Range(-(2**63), 2**63 - 1), float: Range(-3.4e38, 3.4e38)}
MAY_DIFFER = {"may differ": True}
"""Metadata of a setting that a run may go on with another value of: nothing that is trained depends on it."""

_PLAIN = (Real, str, tuple, list, dict, type(None))
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    str: "a word",
    bool: "true or false",
    dict: "a mapping",
    "Tensor": "a tensor (torch.as_tensor makes one)",
    "Generator": "a generator (torch.Generator().manual_seed(0) is one)",
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


def settings_in(hint: Any) -> type | None:
    """The dataclass among the types of a setting, if there is one."""
    kinds = options_of(hint)
    return next((o for o in kinds if dataclasses.is_dataclass(o) and isinstance(o, type)), None)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type and in its range. A truth value is no number, NaN in no range."""
    options = options_of(hint)
    if len(options) > 1:
        return any(fits(value, option) for option in options)
    kind, span = parts_of(hint)
    origin = typing.get_origin(kind)
    if kind in (int, float):
        if not _is_number(value, kind):
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
    if origin is Sequence:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        return several and all(fits(each, typing.get_args(kind)[0]) for each in value)
    if kind is Any:
        return True
    bare = origin or kind
    if bare is Callable:
        return callable(value)
    known = isinstance(bare, type) and not getattr(bare, "_is_protocol", False)
    return isinstance(value, bare) if known else True


def _writable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def words_of(hint: Any, none: str = "null") -> str:
    """A type and its range in words: "a whole number of at least 1 or null"."""
    kind, span = parts_of(hint)
    options = options_of(kind)
    if len(options) > 1:
        return " or ".join(words_of(option, none) for option in options)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        said = " or ".join(repr(option) for option in inner)
    elif origin is tuple and Ellipsis not in inner:
        said = f"({', '.join(words_of(each, none) for each in inner)})"
    elif origin in (tuple, list, Sequence):
        said = (
            f"a list of {', '.join(words_of(each, none) for each in inner if each is not Ellipsis)}"
        )
        return said if span is None else f"{said} ({span.words.removeprefix('of ')} of them)"
    elif kind in (None, type(None)):
        said = none
    elif origin is Callable:
        said = "a function"
    elif dataclasses.is_dataclass(kind):
        said = f"settings of {getattr(kind, '__name__', kind)}"
    else:
        name = getattr(origin or kind, "__name__", str(kind))
        said = _WORDS.get(kind, _WORDS.get(name, f"a {name}"))
    return said if span in (None, _LIMITS.get(kind)) else f"{said} {span.words}"


def shown(value: Any, longest: int = 60) -> str:
    """A value in a sentence, cut where it is long."""
    huge = (
        isinstance(value, int) and abs(value) > 10**longest
    )  # Python refuses to write the longest
    if isinstance(value, (list, tuple)) and len(value) > LONGEST:
        return f"{len(value)} entries, of which at most {LONGEST} are taken"
    if isinstance(value, type) or not isinstance(value, _PLAIN):
        return value.__name__ if isinstance(value, type) else f"a {type(value).__name__}"
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


def _is_number(value: Any, kind: Any) -> bool:
    numbers = Integral if kind is int else Real
    return kind in (int, float) and isinstance(value, numbers) and not isinstance(value, bool)


def _of_numbers(value: Any, hint: Any) -> bool:
    """Whether numbers are asked for and given, so that only a range can be broken."""
    kind = parts_of(hint)[0]
    if typing.get_origin(kind) in (tuple, list, Sequence) and isinstance(value, (tuple, list)):
        return all(_of_numbers(each, typing.get_args(kind)[0]) for each in value)
    return _is_number(value, kind)


@functools.cache
def types_of(of: Any) -> dict[str, Any]:
    """The types of a class's fields, or of a function's arguments, their ranges included."""
    return typing.get_type_hints(of, include_extras=True)


Made = TypeVar("Made", bound=Callable[..., Any])


def checked(made: Made) -> Made:
    """Check the arguments of a function, or of a class when it is made, by its annotations.

    Raises:
        TypeError: (from a call) for an argument of another type.
        ConfigError: for a number that is not in its range (or not finite), or a word that is none of
            those that a ``Literal`` lists.
    """
    if isinstance(made, type):
        made.__init__ = checked(made.__init__)  # type: ignore[misc]
        return cast(Made, made)
    rules: dict[str, _Rule] = {}
    places: list[_Rule] = []

    @functools.wraps(made)
    def call(*args: Any, **options: Any) -> Any:
        if not rules:  # now, as an annotation may name what is defined later
            for name, parameter in inspect.signature(made).parameters.items():
                rules[name] = _Rule(made, parameter)
            places.extend(rules.values())
        for value, rule in zip(args, places):  # noqa: B905 - too many are Python's to refuse
            if type(value) not in rule.known:
                rule.check(value, args)
        for name, value in options.items():
            if name in rules and type(value) not in rules[name].known:
                rules[name].check(value, args)
        return made(*args, **options)

    return call  # type: ignore[return-value]


class Checked:
    """Base of classes whose constructors and public methods are :func:`checked`, our own at least.

    Of a dataclass, which is settings, every field is checked whenever one is made.
    """

    unchecked: ClassVar[frozenset[str]] = frozenset()
    """Methods that are not, as their caller is."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, method in [*vars(cls).items()]:
            public = name == "__init__" or not name.startswith("_")
            if (
                public
                and name not in cls.unchecked
                and isinstance(method, FunctionType)
                and cls.__module__[:9] == "partikel."
            ):
                setattr(cls, name, checked(method))

    def __post_init__(self) -> None:
        """Check every field (what concerns several of them, a subclass adds)."""
        hints = types_of(type(self))
        for each in dataclasses.fields(cast(Any, self)):
            name = f"{each.name} of {type(self).__name__}"
            check(getattr(self, each.name), hints[each.name], name)


class _Rule:
    """What one argument may be."""

    def __init__(self, made: Callable[..., Any], parameter: inspect.Parameter) -> None:
        written = parameter.annotation
        various = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        try:
            names = inspect.unwrap(made).__globals__  # a decorator's own are others
            wanted = eval(written, names) if isinstance(written, str) else written
        except (NameError, TypeError):  # known to type checkers only
            wanted = Any
        self.wanted = Any if wanted is parameter.empty or various else wanted
        self.of, self.name = made.__qualname__, parameter.name
        self.members = options_of(self.wanted)
        self.known: set[type] = set()
        self._within: dict[type, tuple[Range, Range]] = {}  # most numbers are these, and in range
        for kind, span in map(parts_of, self.members):
            if kind in (int, float):
                self._within[kind] = (_LIMITS[kind], span or _LIMITS[kind])
        kinds = [typing.get_origin(parts_of(part)[0]) or parts_of(part)[0] for part in self.members]
        # of numbers, words and sequences the type does not tell all
        self._by_value = not {int, float, typing.Literal, tuple, list, Sequence}.isdisjoint(kinds)

    def check(self, value: Any, args: tuple[Any, ...]) -> None:
        """Raise unless the value, of a call with these arguments, fits."""
        within = self._within.get(type(value))
        if within is not None and value in within[0] and value in within[1]:
            return
        if not fits(value, self.wanted):
            self._refuse(value, args)
        if not self._by_value:
            self.known.add(type(value))

    def _refuse(self, value: object, args: tuple[Any, ...]) -> None:
        of, name = self.of, self.name
        if of.endswith(".__init__"):  # a base's, often
            of = type(args[0]).__qualname__ if args else of.removesuffix(".__init__")
        takes = f"{of}({name}=...) takes {words_of(self.wanted, 'None')}, got {shown(value)}"
        for part in self.members:
            kind = parts_of(part)[0]
            if isinstance(value, str) and typing.get_origin(kind) is typing.Literal:
                near = nearest(value, [*map(str, typing.get_args(kind))])
                raise ConfigError(f"{takes}: {near}" if near.startswith("did") else f"{takes}.")
            if isinstance(value, str) and isinstance(kind, type):
                like = [k for k in _kinds(kind) if k.lower() == value.replace("_", "").lower()]
                takes += f": give an object, {like[0]}(...), not its name" if like else ""
            if _of_numbers(value, kind):
                raise ConfigError(f"{takes}.")
        raise TypeError(f"{takes}.")


def _kinds(wanted: type) -> list[str]:
    return [name for each in wanted.__subclasses__() for name in [each.__name__, *_kinds(each)]]
