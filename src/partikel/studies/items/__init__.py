"""The papers' tables, figures and claims, one file each."""

from __future__ import annotations

from typing import Any

from partikel.studies.item import Item
from partikel.studies.items import (
    a1,
    claim1,
    diffflow_fig1,
    diffflow_improved_gan,
    diffflow_theory,
    fig1,
    fig2,
    fig3,
    fig4,
    fig5,
    fig6,
    fig7a,
    fig7b,
    fig8_12,
    table1,
    table2,
    table3,
)

_MODULES = (
    table1,
    table2,
    table3,
    fig1,
    fig2,
    fig3,
    fig4,
    fig5,
    fig6,
    fig7a,
    fig7b,
    fig8_12,
    a1,
    claim1,
    diffflow_fig1,
    diffflow_theory,
    diffflow_improved_gan,
)
ITEMS: dict[str, Item[Any]] = {module.ITEM.name: module.ITEM for module in _MODULES}
"""Every item by its name, in the order of the papers."""
