"""CelebA (Liu et al. 2015): faces, aligned and cropped, in their official partition.

The files are fetched by hand, as their licence must be agreed to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from partikel.data.files import Limits, data_root
from partikel.data.pictures import decoded, identity, opened
from partikel.data.prepared import Listing, Source
from partikel.data.settings import DataSettings
from partikel.errors import DataError
from partikel.files import read_text

IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"


def celeba(settings: DataSettings) -> Source:
    """The images and their partition, in the folder celeba of the root.

    Raises:
        DataError: where files are missing.
    """
    folder = data_root(settings.root) / "celeba"
    partition = folder / PARTITION
    candidates = (folder / IMAGES, folder / f"{IMAGES}.zip")
    images = next((path for path in candidates if path.exists()), None)
    if images is None or not partition.exists():
        raise DataError(
            f"'celeba' needs {IMAGES}.zip (or that folder) and {PARTITION} in {folder}: get them "
            "from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, or point data.root or "
            "$PARTIKEL_DATA at the folder above"
        )
    return Source(
        "celeba",
        str(images),
        identity(images) + identity(partition),
        lambda: _listing(images, partition, settings.limits),
    )


@contextmanager
def _listing(images: Path, partition: Path, limits: Limits) -> Iterator[Listing]:
    parts = _parts(partition)
    with opened(images, limits) as (paths, read):
        names = [PurePosixPath(path).name for path in paths]
        unlisted, missing = set(names) - set(parts), set(parts) - set(names)
        for found, words in ((unlisted, "does not list"), (missing, "lists, but does not find")):
            if found:
                raise DataError(
                    f"{partition} {words} {len(found)} images of {images} ({min(found)}): replace "
                    "the one that does not belong there"
                )
        yield Listing(
            names,
            lambda i: decoded(read(paths[i]), limits),
            parts=np.array([parts[name] for name in names], np.int64),
        )


def _parts(path: Path) -> dict[str, int]:
    """By image, 0, 1 or 2 for training, validation and test: the order of SPLITS."""
    parts = {}
    for number, line in enumerate(read_text(path, DataError).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise DataError(
                f"{path} is damaged (line {number} is '{line[:40]}', not a name and 0, 1 or 2): "
                "put a good copy there"
            )
        parts[words[0]] = int(words[1])
    return parts
