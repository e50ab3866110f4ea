"""Pages that are read in two places, beside the code and in the site; tutorials that are read in three.

README, ARCHITECTURE, CONTRIBUTING and CHANGELOG lie above this folder and are included in pages of it. Links
to one another and to pages of this folder lead to pages; links to anything else of the repository are
shown as the path that they are. A tutorial is offered as the notebook that it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jupytext
from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
INCLUDED = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/reproduce/README.md": "papers.md",
}
"""The pages that include a file."""

PUBLISHED = re.compile(r"^https://github\.com/[^/]+/[^/]+/(?:blob|tree)/main/")
NOTEBOOK = """

```{{raw}} html
<p class="notebook"><a href="{0}.ipynb" download>Download as a notebook</a></p>
```
"""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")


def relinked(text: str, folder: Path) -> str:
    """Markdown whose relative links start at the site's page, not at the file they were written in.

    Args:
        text: the Markdown.
        folder: of the file that the links are relative to.
    """

    def one(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        words = LINK.sub(one, words)
        path, mark, anchor = PUBLISHED.sub(f"{ROOT}/", target).partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return f"{picture}[{words}]({target})"
        file = Path(os.path.normpath(folder / path))
        inside = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else path
        if inside in INCLUDED:
            file = DOCS / INCLUDED[inside]
        if file.is_relative_to(DOCS) and file.exists():
            return f"{picture}[{words}](/{file.relative_to(DOCS).as_posix()}{mark}{anchor})"
        return words if words.strip("`") == inside else f"{words} (`{inside}`)"

    apart = r"(^```.*?^```|`[^`\n]+`(?!\])|\$\$.*?\$\$|\$[^$\n]+\$)"  # code and formulas
    blocks = re.split(apart, text, flags=re.DOTALL | re.MULTILINE)
    blocks[::2] = [LINK.sub(one, block) for block in blocks[::2]]
    return "".join(blocks)


def _read(app: Sphinx, name: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    if page.suffix != ".md":
        return
    content[0] = relinked(content[0], page.parent)
    if _is_notebook(page):
        title = re.search(r"^# .*$", content[0], re.MULTILINE)
        assert title is not None, f"{page} has no title"
        link = NOTEBOOK.format(Path(name).name)
        content[0] = content[0][: title.end()] + link + content[0][title.end() :]


def _included(app: Sphinx, path: Path, name: str, content: list[str]) -> None:
    content[0] = relinked(content[0], (Path(app.srcdir) / path).resolve().parent)


def _is_notebook(page: Path) -> bool:
    return page.read_text(encoding="utf-8").startswith("---\nfile_format: mystnb\n")


def _write_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Beside each tutorial's page the notebook that it was made from."""
    if error is None and app.builder.format == "html":
        for name in app.env.found_docs:
            page = Path(app.env.doc2path(name))
            if page.suffix == ".md" and _is_notebook(page):
                notebook = jupytext.read(page, fmt="md:myst")
                jupytext.write(notebook, Path(app.outdir, f"{name}.ipynb"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Mend links as files are read, and offer tutorials as notebooks."""
    app.connect("source-read", _read)
    app.connect("include-read", _included)
    app.connect("build-finished", _write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
