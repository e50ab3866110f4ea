"""Formulas as MathML, which browsers draw by themselves: no script, no font, no network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


def _mathml(node: nodes.Element, display: str) -> str:
    formula = node.astext()
    try:
        drawn = convert(formula, display=display)
    except Exception as error:  # whatever it is, the page must not be built without the formula
        raise ExtensionError(f"the formula {formula!r} cannot be read: {error!r}") from error
    if "\\" in drawn:
        raise ExtensionError(f"the formula {formula!r} has a command that is not known: {drawn}")
    return drawn.replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em"/>')


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node, "inline"))
    raise nodes.SkipNode


def _display(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{_mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Draw formulas in pages."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
