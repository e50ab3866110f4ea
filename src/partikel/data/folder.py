"""A folder or a zip file of one's own pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from partikel.data.files import Limits, data_root, user_path
from partikel.data.pictures import decoded, identity, opened
from partikel.data.prepared import Listing, Source
from partikel.data.settings import DataSettings
from partikel.errors import DataError
from partikel.files import readable


def find(path: str, root: str | None = None) -> Path:
    """``path`` as it is, or below the root of all data, whichever is there."""
    given = user_path(path)
    below = data_root(root) / given
    return below if not os.path.exists(given) and os.path.exists(below) else given


def folder(settings: DataSettings) -> Source:
    """All pictures below a folder or in a zip file, in the order of their paths.

    Where every picture lies in one of two or more sub-folders, these are the classes, numbered in
    the order of their names; what is below them belongs to them. A folder around everything does
    not count.

    Raises:
        DataError: where there is nothing.
    """
    path, labels = find(settings.path or "", settings.root), settings.labels
    return Source(
        "folder",
        str(path),
        f"{identity(path)} {labels}",
        lambda: _listing(path, labels, settings.limits),
    )


@contextmanager
def _listing(path: Path, labels: bool | None, limits: Limits) -> Iterator[Listing]:
    with opened(path, limits) as (names, read):
        tops = [None] * len(names) if labels is False else top_folders(names)
        classes = sorted({top for top in tops if top is not None})
        labelled = len(classes) > 1 and None not in tops
        if labels and not labelled:
            loose = next((name for name, top in zip(names, tops, strict=True) if top is None), None)
            reason = f"{loose} lies in none" if loose and classes else "there are not two of them"
            raise DataError(
                f"{path} has no labels, as these are its sub-folders ({reason}): put every picture "
                "into the sub-folder of its class, or set data.labels to false"
            )
        number = {name: i for i, name in enumerate(classes)}
        yield Listing(
            names,
            lambda i: decoded(read(names[i]), limits),
            np.array([number[top] for top in tops if top is not None]) if labelled else None,
            list(map(readable, classes)) if labelled else None,
        )


def top_folders(names: Sequence[str]) -> list[str | None]:
    """The first folder of each path that is not around all of them; None where there is none."""
    parts = [name.split("/") for name in names]
    depth = 0
    while parts and all(len(p) > depth + 1 and p[depth] == parts[0][depth] for p in parts):
        depth += 1
    return [p[depth] if len(p) > depth + 1 else None for p in parts]
