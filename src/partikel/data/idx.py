"""MNIST and Fashion-MNIST from files in the IDX format, as they are published.

The format (LeCun's MNIST page): two zero bytes, a byte for the type (8: unsigned byte), a byte for
the number of dimensions, each dimension as a big-endian 32-bit integer, then the values. Files are
read as they are or gzipped. The MD5 sums are of the unpacked content, so it does not matter who
compressed it.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor
from torch.nn import functional

from partikel.data.base import FiniteDataset, split_indices
from partikel.data.files import LIMITS, ContentError, Limits, check_md5, data_root, fetch
from partikel.data.settings import DataSettings
from partikel.errors import DataError
from partikel.files import plain_file

SIZES = (28, 32, 16, 8)
"""Edge lengths the images come in."""

SPARE = 2**20
"""Bytes by which more is read than there should be, to say how many there are."""

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class IdxSource:
    """Where a set of IDX files is found, and what is in it."""

    name: str
    """Of the data set, and of its folder under the root."""
    mirrors: tuple[str, ...]
    """Addresses that the names of the files, with .gz, are appended to; tried in turn."""
    md5: Mapping[str, str]
    """By file, without .gz, the MD5 sum of the unpacked content; files left out are not checked."""
    class_names: tuple[str, ...] | None = None
    """What the labels are called."""


MNIST = IdxSource(
    "mnist",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
)

FASHION_MNIST = IdxSource(
    "fashion-mnist",
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    (
        *("t-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
)


def idx_images(source: IdxSource, settings: DataSettings) -> FiniteDataset:
    """The images of a source, (1, size, size), labelled 0, ..., 9.

    The test split is the official one; validation is cut from the official training images. The size
    is 28 as published; 32 padded with black; 16 and 8 are averages over squares of the padded ones,
    rounded to bytes.

    Args:
        source: :data:`MNIST` or :data:`FASHION_MNIST`.
        settings: the files are in the folder named like the source inside of its root.

    Raises:
        DataError: where a file is missing, damaged or not what its name says, or cannot be fetched.
        ValueError: where the size is not one of :data:`SIZES`.
    """
    size = settings.size or SIZES[0]
    if size not in SIZES:
        raise ValueError(f"size must be one of {SIZES}, not {size}")
    folder = data_root(settings.root) / source.name
    parts = {split: _read_pair(source, folder, *names, settings) for split, names in _FILES.items()}
    images = {split: _resize(pair[0], size)[:, None] for split, pair in parts.items()}
    shares = {"validation": settings.validation}
    index = split_indices(len(images["train"]), shares, settings.split_seed)

    def by_split(train: Tensor, test: Tensor) -> dict[str, Tensor]:
        return {split: train[chosen] for split, chosen in index.items()} | {"test": test}

    return FiniteDataset(
        source.name,
        by_split(images["train"], images["test"]),
        by_split(parts["train"][1], parts["test"][1]),
        classes=10,
        class_names=source.class_names,
        flip=settings.flip,
    )


def read_idx(path: Path, ndim: int, md5: str | None = None, limits: Limits = LIMITS) -> Tensor:
    """Read one IDX file of unsigned bytes, gzipped where its name ends in .gz.

    Args:
        path: the file.
        ndim: number of dimensions it must have.
        md5: MD5 sum that the unpacked content must have; None: not checked.
        limits: of files.

    Returns:
        A uint8 tensor of ``ndim`` dimensions.

    Raises:
        DataError: where the file cannot be read, is truncated, corrupt, or of another format.
    """
    try:
        plain_file(path)
        with path.open("rb") as file:
            return _parse(file, path.name, ndim, md5, limits)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    except ContentError as error:
        raise DataError(
            f"{path} is damaged ({error}): delete it, then put a good copy there or set "
            "data.download to true"
        ) from error


def _parse(file: IO[bytes], name: str, ndim: int, md5: str | None, limits: Limits) -> Tensor:
    """The numbers in a file, gzipped where its name says so.

    Hardly more is unpacked than its header says, nor than the limit.
    """
    if name.endswith(".gz"):
        file = cast(IO[bytes], gzip.GzipFile(fileobj=file))
    magic, header = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    try:
        content = file.read(header)
        if content[:4] != magic:
            raise ContentError(f"it begins with {content[:4].hex(' ')}, not {magic.hex(' ')}")
        if len(content) < header:
            raise ContentError(f"it ends after {len(content)} bytes, inside its header")
        shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
        expected = header + math.prod(shape)
        most = min(expected, limits.bytes) + SPARE
        content += file.read(most - header)
        if len(content) > limits.bytes:
            raise ContentError(f"it has more than the {limits.bytes:,} bytes of data.max_bytes")
        if len(content) != expected:
            more = " or more" if len(content) == most else ""
            raise ContentError(
                f"it has {len(content)} bytes{more} where its header says {expected}"
            )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ContentError(f"gzip: {error}") from error
    if md5 is not None:
        check_md5(content, md5)
    # A bytearray, as torch wants memory that may be written.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].view(shape)


def _read_pair(
    source: IdxSource, folder: Path, images_name: str, labels_name: str, settings: DataSettings
) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) and labels (N,)."""
    images_path = _locate(source, folder, images_name, 3, settings.download)
    labels_path = _locate(source, folder, labels_name, 1, settings.download)
    images = read_idx(images_path, 3, source.md5.get(images_name), settings.limits)
    labels = read_idx(labels_path, 1, source.md5.get(labels_name), settings.limits)
    if images.shape[1:] != (28, 28):
        edges = "x".join(map(str, images.shape[1:]))
        raise DataError(f"{images_path} holds images of {edges}, not of 28x28: replace it")
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images)} images, but {labels_path} holds {len(labels)} "
            "labels: replace the file that does not belong there"
        )
    if labels.numel() and labels.max() > 9:
        raise DataError(f"{labels_path} holds the label {int(labels.max())}, above 9: replace it")
    return images, labels


def _resize(images: Tensor, size: int) -> Tensor:
    """(N, 28, 28) -> (N, size, size), uint8."""
    if size == 28:
        return images
    padded = functional.pad(images, (2, 2, 2, 2))
    if size == 32:
        return padded
    edge = 32 // size
    sums = padded.view(-1, size, edge, size, edge).sum((2, 4), dtype=torch.int32)
    return ((sums + edge**2 // 2) // edge**2).to(torch.uint8)


def _locate(source: IdxSource, folder: Path, name: str, ndim: int, download: bool) -> Path:
    """The file called ``name`` or ``name``.gz in the folder, fetched where it is missing."""
    packed = folder / f"{name}.gz"
    for path in (folder / name, packed):
        if path.exists():
            return path
    if not download:
        raise DataError(
            f"'{source.name}' needs {name} or {name}.gz in {folder}: put it there, point data.root "
            "or $PARTIKEL_DATA at the folder above, or set data.download to true"
        )
    fetch(
        [f"{mirror.rstrip('/')}/{packed.name}" for mirror in source.mirrors],
        packed,
        lambda content: _parse(
            io.BytesIO(content), packed.name, ndim, source.md5.get(name), LIMITS
        ),
    )
    return packed
