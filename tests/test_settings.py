"""Every number of every setting is finite and in its range, or is refused with its name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import random
import typing
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest

import partikel
from conftest import GAUSSIAN
from partikel.app.config import make_recipe
from partikel.data import DataSettings
from partikel.errors import ConfigError
from partikel.errors.checks import Checked, Natural, Range, checked, options_of, parts_of, types_of
from partikel.fields import (
    DriftField,
    ExactScoreField,
    LabelDropout,
    SlicedWassersteinField,
)
from partikel.kernels import RBFKernel, RieszKernel
from partikel.models import ParticleModel
from partikel.networks import NetworkSettings
from partikel.objectives import GradientPenalty
from partikel.priors import GaussianPrior
from partikel.recipes import RECIPES
from partikel.schedules import EDMSchedule, KarrasGrid
from partikel.solvers import Heun
from partikel.training import EMA, AdamSettings, Engine, Phase

HOSTILE: dict[str, Any] = {
    "null": None,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "word": "x",
    "empty": "",
    "nul": "a\0b",
    "surrogate": "\udcff",
    "true": True,
    "negative": -1,
    "negative number": -0.5,
    "zero": 0,
    "half": 1.5,
    "huge": 10**18,
    "endless": 10**5000,
    "overflow": 1e300,
    "underflow": 1e-300,
    "list": [],
    "nothing": (),
    "long": (1,) * 5000,
    "mapping": {},
    "object": object(),
    "float32": np.float32("nan"),
}


RESULTS = ("Run", "Exported", "Origin")
"""Not settings, though checked."""


def settings_classes() -> list[type]:
    """Every dataclass of settings of the package that can be made without arguments, or nearly."""
    for module in pkgutil.walk_packages(partikel.__path__, "partikel."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type] = []
    todo = [Checked]
    while todo:
        for kind in todo.pop().__subclasses__():
            todo.append(kind)
            concrete = dataclasses.is_dataclass(kind) and not inspect.isabstract(kind)
            if (
                concrete
                and kind.__qualname__ not in RESULTS
                and kind.__module__.startswith("partikel.")
            ):
                found.append(kind)
    return sorted(set(found), key=lambda kind: kind.__qualname__)


GIVEN: dict[str, dict[str, Any]] = {
    "NetworkSettings": {"kind": "mlp"},
    "EMA": {"half_life": 5.0},
    "Phase": {"loss": "score"},
    "KarrasGrid": {"schedule": EDMSchedule()},
    "GeometricGrid": {"schedule": EDMSchedule()},
    "Leaving": {"solver": Heun(), "after": 1},
    "Independent": {"source": GaussianPrior((2,))},
    "OptimalTransport": {"source": GaussianPrior((2,))},
    "Initial": {"run": "runs/edm"},
    "_From": {"path": EDMSchedule(), "level": 2.0},
    "_SameLevels": {
        "flow": ParticleModel(ExactScoreField(GAUSSIAN), GaussianPrior((2,)), steps=2),
        "path": EDMSchedule(),
    },
}
"""What must be given."""


def in_range(value: Any, hint: Any) -> bool:
    """Written again, without the mechanism's own code: finite numbers of the type, inside the bounds."""
    if isinstance(value, (tuple, list)):
        return len(value) <= 1000
    if isinstance(value, bool):
        return any(parts_of(option)[0] is bool for option in options_of(hint))
    if value is None:
        return type(None) in options_of(hint)
    if not isinstance(value, (int, float, np.floating)):
        return isinstance(value, (str, Checked))
    if abs(value) > 3.5e38 or value != value:
        return False
    for option in options_of(hint):
        kind, span = parts_of(option)
        if kind not in (int, float) or (kind is int and value != int(value)):
            continue
        span = span or Range()
        if span.least <= value <= span.most and span.above < value < span.below:
            return True
    return False


def cases() -> Iterator[tuple[type, str, str]]:
    for kind in settings_classes():
        for field in dataclasses.fields(kind):
            for name in HOSTILE:
                yield kind, field.name, name


def held(kind: type, field: str, name: str) -> None:
    given = {**GIVEN.get(kind.__name__, {}), field: HOSTILE[name]}
    try:
        made = kind(**given)
    except ConfigError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < 600
        assert field in said or field.split("_")[0] in said, said
        return
    assert in_range(getattr(made, field), types_of(kind)[field]), (
        kind,
        field,
        getattr(made, field),
    )


def walked(kinds: list[tuple[type, str, str]]) -> None:
    for case in kinds:
        held(*case)


def test_some_fields_of_all_settings_are_held_to_their_ranges() -> None:
    walked(random.Random(0).sample(list(cases()), 600))


@pytest.mark.slow
def test_every_field_of_every_settings_class_is_held_to_its_range() -> None:
    every = list(cases())
    assert len(every) > 3000
    walked(every)


def test_the_walk_knows_the_settings() -> None:
    kinds = set(settings_classes())
    assert {*RECIPES.values(), NetworkSettings, EMA, AdamSettings, Engine, Phase} <= kinds
    assert {GradientPenalty, KarrasGrid, EDMSchedule, Heun} <= kinds


def paths(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a recipe as a user gives them, nested ones by their paths."""
    for name, hint in types_of(kind).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        inner = [o for o in options_of(hint) if dataclasses.is_dataclass(o)]
        if inner and not prefix:
            yield from paths(typing.cast(type, inner[0]), f"{name}.")
        yield f"{prefix}{name}", hint


TEXTS = (
    "null",
    ".nan",
    "inf",
    "-.inf",
    "x",
    "",
    "-1",
    "0",
    "1.5",
    "1" * 19,
    "9" * 5000,
    "[]",
    "{}",
)


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def refused_or_right(name: str, path: str, hint: Any, value: Any) -> None:
    try:
        recipe = make_recipe(name, nested(path, value))
    except ConfigError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < 600
        return
    made: Any = recipe
    for part in path.split("."):
        made = getattr(made, part)
    assert in_range(made, hint), (name, path, made)


def every_setting() -> list[tuple[str, str, Any, Any]]:
    from partikel.app.reading import given

    return [
        (name, path, hint, given(text, path))
        for name, kind in RECIPES.items()
        for path, hint in paths(kind)
        for text in TEXTS
    ]


def test_some_settings_from_text() -> None:
    for case in random.Random(1).sample(every_setting(), 300):
        refused_or_right(*case)


@pytest.mark.slow
def test_every_setting_of_every_recipe_from_text() -> None:
    for case in every_setting():
        refused_or_right(*case)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: AdamSettings(eps=-1),
            "eps of AdamSettings must be a finite number above 0, got -1",
        ),
        (lambda: AdamSettings(decay="x"), "decay of AdamSettings must be 'constant' or"),  # type: ignore[arg-type]
        (lambda: AdamSettings(lr="1e-3"), "lr of AdamSettings"),  # type: ignore[arg-type]
        (lambda: Phase("score", batch=10**18), "at most 16777216"),
        (lambda: EMA(half_life=math.inf), "half_life"),
        (lambda: DataSettings("digits", split_seed=2**32), "split_seed of DataSettings"),
        (lambda: GaussianPrior((2,), std=math.nan), r"GaussianPrior\(std="),
        (lambda: RBFKernel(0.0), r"RBFKernel\(bandwidth=...\) takes .* or 'median'"),
        (lambda: RieszKernel(2.0), r"in \(0, 2\)"),
        (lambda: DriftField(-1.0), r"DriftField\(temperature="),
        (lambda: SlicedWassersteinField(1.5), r"SlicedWassersteinField\(projections="),  # type: ignore[arg-type]
        (lambda: LabelDropout(DriftField(1.0), 3, 1.0), r"LabelDropout\(rate="),
        (lambda: Heun(churn=math.inf), "churn of Heun"),
    ],
)
def test_python_callers_are_told_too(make: Any, said: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=said):
        make()


def test_ranges_in_words() -> None:
    assert Range(least=0, below=1).words == "in [0, 1)"
    assert Range(below=2.5).words == "below 2.5"
    assert Range(least=2, even=True).words == "even and of at least 2"


def test_a_value_that_fits_vouches_for_no_other_of_its_type() -> None:
    @checked
    def build(kind: Literal["a", "b"], count: Natural) -> None:
        pass

    build("a", np.int64(3))  # type: ignore[arg-type]
    for kind, count, said in (("c", 3, "c"), ("b", np.int64(-1), "-1")):
        with pytest.raises(ConfigError, match=f"got .*{said}"):
            build(kind, count)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    assert AdamSettings(lr=float(np.float64(1e-3)), warmup=np.int64(3)).warmup == 3  # type: ignore[arg-type]
