"""What pyproject.toml cannot say: the README as an index shows it, and where the project lives."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = ""
"""Where the project is published, as in https://github.com/OWNER/partikel: the one place that says so.

Fill it in before a release (CONTRIBUTING.md); without it nothing is linked.
"""

PAPERS = {
    "Paper (GPM)": "https://arxiv.org/abs/2305.16150",
    "Paper (DiffFlow)": "https://arxiv.org/abs/2307.02159",
}
PAGES = {"Source": "", "Documentation": "/tree/main/docs", "Changelog": "/blob/main/CHANGELOG.md"}
PAGES |= {"Issues": "/issues"}


def readme(text: str, repository: str = REPOSITORY) -> str:
    """The README without links to files beside it: an index of packages has none of them.

    They lead into the repository. Where none is named, links become their words, and pictures go.
    """

    def absolute(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if repository:
            return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/main/{path})"
        return "" if picture else words

    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)", absolute, text)


def urls(repository: str = REPOSITORY) -> dict[str, str]:
    """The links that an index shows beside the README."""
    own = {name: f"{repository}{page}" for name, page in PAGES.items()} if repository else {}
    return own | PAPERS


if __name__ == "__main__":
    setup(
        long_description=readme(Path("README.md").read_text("utf-8")),
        long_description_content_type="text/markdown",
        project_urls=urls(),
    )
