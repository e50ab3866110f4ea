"""CIFAR-10 (Krizhevsky 2009) from its binary version, as it is published.

Five files of training images and one of test images, each a row of records: a byte for the label, then
32 x 32 bytes of red, of green, of blue. The version for Python is a pickle, which can run any program:
it is not read.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from partikel.data.files import ContentError, Limits, check_md5, data_root, fetch
from partikel.data.pictures import identity
from partikel.data.prepared import Listing, Source
from partikel.data.settings import DataSettings
from partikel.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class CifarSource:
    """Where the archive is found, and its sum."""

    address: str = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
    md5: str = "c32a1d4ab5d03f1284b67883e8d87530"


PUBLISHED = CifarSource()


def cifar10(settings: DataSettings, source: CifarSource = PUBLISHED) -> Source:
    """The archive, or the folder it unpacks to, in the folder cifar10 of the root.

    Args:
        settings: with the root, and whether to fetch the archive where neither is there.
        source: address and sum of the archive.

    Raises:
        DataError: where neither is there, or the archive cannot be fetched.
    """
    folder = data_root(settings.root) / "cifar10"
    unpacked, archive = folder / FOLDER, folder / ARCHIVE
    if unpacked.is_dir():
        return Source(
            "cifar10",
            str(unpacked),
            "".join(identity(unpacked / name) for name in FILES),
            lambda: _listing(unpacked, _from_folder(unpacked, settings.limits)),
        )
    if not archive.exists():
        if not settings.download:
            raise DataError(
                f"'cifar10' needs {ARCHIVE} (the binary version) or the folder {FOLDER} in "
                f"{folder}: put it there, point data.root or $PARTIKEL_DATA at the folder above, "
                "or set data.download to true"
            )
        fetch([source.address], archive, lambda content: check_md5(content, source.md5))
    return Source(
        "cifar10",
        str(archive),
        identity(archive),
        lambda: _listing(archive, _from_archive(archive, source.md5, settings.limits)),
    )


def _from_folder(folder: Path, limits: Limits) -> Iterator[tuple[str, bytes]]:
    for name in FILES:
        yield name, limits.plain(folder / name)


def _from_archive(path: Path, md5: str, limits: Limits) -> Iterator[tuple[str, bytes]]:
    content = limits.plain(path)
    check_md5(content, md5)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for name in FILES:
            member = archive.extractfile(f"{FOLDER}/{name}")  # KeyError where it is not there
            assert member is not None
            yield name, limits.whole(member)


@contextmanager
def _listing(path: Path, files: Iterator[tuple[str, bytes]]) -> Iterator[Listing]:
    records, names, parts = [], [], []
    try:
        for name, content in files:
            if not content or len(content) % RECORD:
                raise ContentError(
                    f"{name} has {len(content)} bytes, which are no records of {RECORD}"
                )
            block = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
            if (top := block[:, 0].max()) >= len(CLASSES):
                raise ContentError(f"{name} holds the label {top}, above {len(CLASSES) - 1}")
            records.append(block)
            names += [f"image {i} of {name}" for i in range(len(block))]
            parts += [2 if name == FILES[-1] else 0] * len(block)
    except (ContentError, tarfile.TarError, OSError, EOFError, KeyError, zlib.error) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise DataError(
            f"{path} is damaged ({reason}): delete it, then put a good copy there or set "
            "data.download to true"
        ) from error
    everything = np.concatenate(records)
    planes = everything[:, 1:].reshape(-1, 3, 32, 32)

    def read(i: int) -> Image.Image:
        from PIL import Image

        return Image.fromarray(np.ascontiguousarray(planes[i].transpose(1, 2, 0)))

    labels = everything[:, 0].astype(np.int64)
    yield Listing(names, read, labels, CLASSES, np.array(parts))
