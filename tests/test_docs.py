"""The documentation's own rules that need no build; ``make docs`` checks links, formulas and tutorials."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import partikel

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("_ext.api")


def test_every_public_name_has_a_place_in_the_reference(api, tmp_path: Path) -> None:
    api.write(tmp_path)
    index = (tmp_path / "index.rst").read_text(encoding="utf-8")
    for name in partikel.__all__:
        (home,) = re.findall(rf"`{name} <([\w.]+)\.{name}>`", index)
        assert f"{home}\n" in index  # in the tree of pages
    for module in api.modules():
        listed = getattr(importlib.import_module(module), "__all__", ())
        page = (tmp_path / f"{module}.rst").read_text(encoding="utf-8")
        assert set(listed) <= set(re.findall(r"\w+", page.partition(":members:")[2]))


def test_links_lead_to_pages_of_the_site(api, tmp_path: Path) -> None:
    pages = importlib.import_module("_ext.pages")
    root = DOCS.parent
    for text, folder, told in (
        ("[a](docs/fields.md#x)", root, "[a](/fields.md#x)"),
        ("[a](../README.md)", DOCS, "[a](/index.md)"),
        ("[a](README.md)", DOCS / "reproduce", "[a](/papers.md)"),
        ("![a](map.png)", DOCS, "![a](/map.png)"),
        ("[a](../src/partikel/priors.py)", DOCS, "a (`src/partikel/priors.py`)"),
        ("[a](https://github.com/x/y/blob/main/docs/rule.md)", root, "[a](/rule.md)"),
        ("[a](https://example.org/docs/rule.md)", root, "[a](https://example.org/docs/rule.md)"),
        ("$[a](b)$", root, "$[a](b)$"),
        ("[a](#b) and `[a](docs/fields.md)`", root, "[a](#b) and `[a](docs/fields.md)`"),
    ):
        assert pages.relinked(text, folder) == told
