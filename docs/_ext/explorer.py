"""The explorer's page beside those of the site, which embed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from partikel.app.explorer import write_explorer


def _write(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        write_explorer(Path(app.outdir, "explorer-page.html"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the page when the others are."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
