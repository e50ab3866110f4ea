"""The papers' tables, figures and claims, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from partikel.studies.item import Item

_FILES = (
    *("table1", "table2", "table3"),
    *("fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7a", "fig7b", "fig8_12"),
    *("a1", "claim1", "findings6_7", "speed", "theorem3"),
    *("diffflow_fig1", "diffflow_theory", "diffflow_improved_gan"),
)
_FOUND: list[Item[Any]] = [import_module(f"{__name__}.{file}").ITEM for file in _FILES]
ITEMS: dict[str, Item[Any]] = {item.name: item for item in _FOUND}
"""Every item by its name, in the order of the papers."""
