"""The examples run as they stand in their folder."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("model", "iterations"), [("gan", 250), ("discriminator_flow", 250), ("edm", 1000)]
)
def test_a_loop_of_ones_own_trains(model: str, iterations: int) -> None:
    names = runpy.run_path(str(EXAMPLES / "plain_loop.py"))
    before, after = (names["distance"](names[model](k), n=1000) for k in (0, iterations))
    assert after < before / 3


def test_the_readme_shows_the_plain_loop() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    example = (EXAMPLES / "plain_loop.py").read_text(encoding="utf-8")
    block = readme.split("## A loop of your own")[1].split("```python\n")[1].split("```")[0]
    shown = [line.strip() for line in block.splitlines() if line.strip()]
    written = [line.strip() for line in example.splitlines()]
    assert len(shown) >= 8
    assert not [line for line in shown if line not in written and not line.startswith("#")]
