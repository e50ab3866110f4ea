"""Arguments are what their annotations say: one mechanism for every public function and class.

A misplaced argument ends in one sentence before anything is computed, and the annotations are the only
list of what is taken. A type that has passed once is remembered: a call costs about a microsecond.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from itertools import repeat
from numbers import Integral, Real
from types import FunctionType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, cast, get_args, get_origin

from partikel.errors import ConfigError, nearest

Natural: TypeAlias = Annotated[int, 0]
"""A whole number >= 0."""

Count: TypeAlias = Annotated[int, 1]
"""A whole number >= 1."""

Made = TypeVar("Made", bound=Callable[..., Any])

_WORDS = {
    **{"int": "a whole number", "float": "a number", "str": "a word", "NoneType": "None"},
    "Tensor": "a tensor (torch.as_tensor makes one)",
    "Generator": "a generator (torch.Generator().manual_seed(0) is one)",
}


def checked(made: Made) -> Made:
    """Check the arguments of a function, or of a class when it is made, by its annotations.

    Raises:
        TypeError: (from a call) for an argument of another type.
        ValueError: for a whole number that is smaller than its annotation allows.
        ConfigError: for a word that is none of those that a ``Literal`` lists.
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
                rule.check(value)
        for name, value in options.items():
            if name in rules and type(value) not in rules[name].known:
                rules[name].check(value)
        return made(*args, **options)

    return call  # type: ignore[return-value]


class Checked:
    """A base of classes whose constructors and public methods are :func:`checked`, our own at least."""

    unchecked: frozenset[str] = frozenset()
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


class Asking:
    """A block that asks a module about points; what does not fit ends in one sentence, at no cost.

    Args:
        module: a network or a field.
        x: (B, ...) points.
        others: what else it is told, by name.

    Raises:
        TypeError: for points of another dtype than the weights, or a network of fewer arguments.
        ValueError: where PyTorch says that shapes, or labels, do not fit.
    """

    __slots__ = ("_module", "_others", "_x")

    def __init__(self, module: Any, x: Any, **others: Any) -> None:
        self._module, self._x, self._others = module, x, others

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Say what does not fit; running out of memory is not of that kind."""
        if kind is TypeError and "positional argument" in str(error):
            raise TypeError(
                f"a {type(self._module).__name__} is called as network(x, c, cond), all three: wrap "
                "what takes fewer in a module with forward(self, x, c=None, cond=None)."
            ) from error
        if kind not in (RuntimeError, IndexError):
            return
        x, cond = self._x, self._others.get("cond")
        asked = f"a {type(self._module).__name__} cannot be asked about points {tuple(x.shape)}"
        dtype = next(self._module.parameters(), x).dtype
        if dtype != x.dtype:
            raise TypeError(
                f"{asked} of {x.dtype}, as its weights are {dtype}: give x.to({dtype})."
            ) from error
        if kind is IndexError and cond is not None:
            raise ValueError(
                f"{asked} with labels from {cond.min()} to {cond.max()}: it does not know all of them."
            ) from error
        shapes = [f"{name} {tuple(v.shape)}" for name, v in self._others.items() if v is not None]
        raise ValueError(f"{asked}, {', '.join(shapes)}: {str(error).splitlines()[0]}.") from error


class _Rule:
    """What one argument may be."""

    def __init__(self, made: Callable[..., Any], parameter: inspect.Parameter) -> None:
        written = parameter.annotation
        various = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        try:
            wanted = eval(written, made.__globals__) if isinstance(written, str) else written
        except (NameError, TypeError):  # known to type checkers only
            wanted = Any
        self.wanted = Any if wanted is parameter.empty or various else wanted
        self.name = f"{made.__qualname__.removesuffix('.__init__')}({parameter.name}=...)"
        self.known: set[type] = set()
        self.members = get_args(wanted) if _is_union(wanted) else (wanted,)
        least = [get_args(part)[1] for part in self.members if get_origin(part) is Annotated]
        self.least = least[0] if least else math.inf
        # of counts, words and sequences the type does not tell all
        self._by_value = {Annotated, Literal, tuple, Sequence}

    def check(self, value: object) -> None:
        """Raise unless the value fits."""
        if type(value) is int and self.least <= value:
            return
        if not _fits(value, self.wanted):
            self._refuse(value)
        if self._by_value.isdisjoint(
            {m for part in self.members for m in (part, get_origin(part))}
        ):
            self.known.add(type(value))

    def _refuse(self, value: object) -> None:
        kind = value.__name__ if isinstance(value, type) else f"a {type(value).__name__}"
        plain = value is None or isinstance(value, (str, Real, tuple))
        shown = " ".join(repr(value)[:80].split()) if plain else kind
        wanted = dict.fromkeys(map(_words, self.members))
        takes = f"{self.name} takes {' or '.join(wanted)}, got {shown}"
        for part in self.members:
            if isinstance(value, str) and get_origin(part) is Literal:
                raise ConfigError(f"{takes}: {nearest(value, [*map(str, get_args(part))])}")
            if isinstance(value, str) and isinstance(part, type):
                like = [k for k in _kinds(part) if k.lower() == value.replace("_", "").lower()]
                takes += f": give an object, {like[0]}(...), not its name" if like else ""
            if get_origin(part) is Annotated and _fits(value, int):
                raise ValueError(f"{takes}.")
        raise TypeError(f"{takes}.")


def _words(wanted: Any) -> str:
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is Annotated:
        return f"a whole number >= {parts[1]}"
    name = getattr(origin or wanted, "__name__", str(wanted))
    several = origin in (tuple, Sequence)
    return f"a {name} of {_words(parts[0])}" if several else _WORDS.get(name, f"a {name}")


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _fits(value: Any, annotation: Any) -> bool:
    origin, parts = get_origin(annotation), get_args(annotation)
    if _is_union(annotation):
        return any(_fits(value, part) for part in parts)
    if origin is Annotated:
        return _fits(value, int) and value >= parts[1]
    if origin is Literal:
        return isinstance(value, (str, int, float, type(None))) and value in parts
    if annotation in (int, float):
        number = isinstance(value, Real) and not isinstance(value, bool)
        return number and (annotation is float or isinstance(value, Integral))
    if origin in (tuple, Sequence):
        kinds = repeat(parts[0]) if origin is Sequence or parts[-1] is ... else parts
        several = isinstance(value, (Sequence if origin is Sequence else (tuple, list)))
        return several and not isinstance(value, str) and all(map(_fits, value, kinds))
    if annotation is None or annotation is Any:
        return annotation is Any or value is None
    kind = origin or annotation
    return (
        callable(value)
        if kind is Callable
        else not isinstance(kind, type)
        or getattr(kind, "_is_protocol", False)
        or isinstance(value, kind)
    )


def _kinds(wanted: Any) -> list[str]:
    return [name for each in wanted.__subclasses__() for name in [each.__name__, *_kinds(each)]]
