"""Mutants: what is changed and what is not, who is drawn, and which tests are asked."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "mutate.py"
FILE = "src/partikel/room/a.py"
SOURCE = '''
import math
Kind = Literal["a", "b"]


def f(x, y, kind: Kind = "a", *, deep: bool = False):
    """Take 2 - 1."""
    if x < 3:
        raise ValueError("y - 1" + f"{x - 1}", 7)
    g(y)  # a note: x + y
    total = 0.5 * x - y
    for _ in range(x):
        total += h(x, y, scale=-z)
    return math.exp(total).sum(encoding="é")
'''


@pytest.fixture(scope="module")
def mutate() -> Any:
    spec = importlib.util.spec_from_file_location("mutate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_each_operator_changes_what_it_says(mutate: Any) -> None:
    found = mutate.mutants_of({FILE: SOURCE})
    assert {(m.line, m.operator, m.before, m.after) for m in found} == {
        (6, "default", '"a"', '"b"'),
        (6, "default", "False", "True"),
        (8, "off by one", "<", "<="),
        (8, "off by one", "3", "4"),
        (10, "dropped call", "g(y)", "pass"),
        (11, "factor", "0.5", "1.0"),
        (11, "sign", "-", "+"),
        (12, "off by one", "x", "(x) + 1"),
        (12, "dropped call", "range(x)", "x"),
        (13, "sign", "+=", "-="),
        (13, "swapped", "x, y", "y, x"),
        (13, "dropped keyword", ", scale=-z", ""),
        (13, "sign", "-", ""),
        (14, "dropped call", 'math.exp(total).sum(encoding="é")', "math.exp(total)"),
        (14, "dropped call", "math.exp(total)", "total"),
    }
    assert all(mutate.compiles(mutant, SOURCE) for mutant in found)


def test_rooms_have_equal_shares_and_a_longer_draw_begins_with_a_shorter_one(mutate: Any) -> None:
    sources = {FILE: SOURCE, FILE.replace("room/a", "other"): SOURCE}
    found = mutate.mutants_of(sources)
    few, more = (mutate.drawn(found, sources, number, seed=3) for number in (6, 10))
    assert more[:6] == few
    assert {mutate.room_of(m.file): 0 for m in more}.keys() == {"room", "other"}
    assert sum(mutate.room_of(m.file) == "room" for m in more) == 5
    assert len({(m.file, m.line) for m in more}) == 10
    assert mutate.drawn(found, sources, 10, seed=4) != more


def test_tests_are_those_that_run_the_line_or_what_it_is_written_in(mutate: Any) -> None:
    by_text = {m.before: m for m in mutate.mutants_of({FILE: SOURCE})}
    known = {
        "tests/test_a.py::slow": {"seconds": 2.0, "lines": {FILE: [8, 10]}},
        "tests/test_a.py::fast": {"seconds": 1.0, "lines": {FILE: [8, 11]}},
        "tests/test_b.py": {"seconds": 0.0, "lines": {FILE: [13]}},  # in what its tests share
        "tests/test_b.py::any": {"seconds": 3.0, "lines": {}},
    }
    slow, fast, shared = (t for t in known if "::" in t)
    assert mutate.tests_of(by_text["<"], known) == [fast, slow]
    assert mutate.tests_of(by_text["g(y)"], known) == [slow]
    assert mutate.tests_of(by_text["x, y"], known) == [shared]
    assert mutate.tests_of(by_text["False"], known) == [fast, slow, shared]  # runs at import
    assert mutate.tests_of(by_text["0.5"], {}) == []
