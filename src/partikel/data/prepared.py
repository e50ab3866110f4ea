"""Images prepared once, kept as bytes in a memory-mapped file, and the data set that reads them.

A prepared set is a folder of the cache: ``images.bin``, (N, C, H, W) bytes; ``table.npz`` with what is
known of each image; ``about.json``, for people and for checks. Its name ends in a hash of the source
(names, sizes, times) and the settings, so that a changed source is prepared anew. It is written
aside and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import warnings
import weakref
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from partikel.data.base import SPLITS, FiniteDataset, Pair, digests, each, select, split_indices
from partikel.data.files import progress_bar, user_path
from partikel.data.pictures import FORMATS, square
from partikel.errors import DataError
from partikel.files import (
    clear_parts,
    fingerprint,
    plain_file,
    read_text,
    replacing,
    write_json,
)

if TYPE_CHECKING:
    from PIL import Image

FORMAT = 1
"""Of the files, and of how images are prepared: another number, another name in the cache."""
CHUNK = 32
"""Images that a thread prepares at a time."""


@dataclass(frozen=True)
class Listing:
    """The pictures of a source, opened."""

    names: Sequence[str]
    """What messages call each picture."""
    read: Callable[[int], Image.Image]
    """Reads one by its number; called from several threads."""
    labels: np.ndarray | None = None
    """(N,), int64, or None."""
    classes: Sequence[str] | None = None
    """Names of the labels."""
    parts: np.ndarray | None = None
    """(N,), official split of each by its place in :data:`SPLITS`; None where there is none."""


@dataclass(frozen=True)
class Source:
    """Where pictures come from."""

    name: str
    """Of the data set."""
    where: str
    """What messages call the source as a whole."""
    identity: str
    """Changes when the pictures do."""
    open: Callable[[], AbstractContextManager[Listing]]
    """Asked only where the cache has nothing."""


class Prepared:
    """A prepared set, opened; nothing but the table is read.

    Args:
        folder: of the cache.

    Raises:
        DataError: where it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for name in ("table.npz", "images.bin"):
                plain_file(folder / name)
            about = json.loads(read_text(folder / "about.json", DataError))
            with np.load(folder / "table.npz") as table:
                columns = dict(table)
            shape = tuple(about["shape"])
            # Kept open: through it, a file that shrinks is noticed before its pages are touched.
            self._file = (folder / "images.bin").open("rb")
            weakref.finalize(self, self._file.close)
            self._bytes = math.prod(shape)
            self.check()
            self.images = np.memmap(self._file, np.uint8, "r", shape=shape)
            self.moments, self.digests = columns["moments"], columns["digests"]
            self.labels: np.ndarray | None = columns.get("labels")
            self.parts: np.ndarray | None = columns.get("parts")
            self.classes: list[str] | None = about["classes"]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(str(error)) from error
        if any(len(column) != shape[0] for column in columns.values()):
            raise self._damaged("its files do not belong together")

    def check(self) -> None:
        """Refuse a file that was cut off: touching pages that it lacks would kill the process.

        Raises:
            DataError: naming the folder.
        """
        try:
            found = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from error
        if found != self._bytes:
            raise self._damaged(f"images.bin has {found} bytes, not {self._bytes}")

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"the prepared images in {self.folder} are damaged ({reason}): delete that folder, and "
            "they are prepared anew"
        )

    def rows(self, validation: float, split_seed: int, test_share: float) -> dict[str, Tensor]:
        """By split, the numbers of its images.

        Official splits are kept; where there is no official validation split, it is cut from the
        training images, and where there are none at all, the test split is a share of everything.

        Args:
            validation: share of what is not test.
            split_seed: of the random splits.
            test_share: share of everything.
        """
        if self.parts is None:
            shares = {"test": test_share, "validation": validation * (1 - test_share)}
            return split_indices(len(self.images), shares, split_seed)
        parts = {
            split: torch.from_numpy(np.flatnonzero(self.parts == place))
            for place, split in enumerate(SPLITS)
        }
        if len(parts["validation"]):
            return parts
        cut = split_indices(len(parts["train"]), {"validation": validation}, split_seed)
        return {split: parts["train"][index] for split, index in cut.items()} | {
            "test": parts["test"]
        }


class MappedDataset(FiniteDataset):
    """Images that stay on disk, of which the system keeps in memory what it has room for.

    Args:
        name: what the data set is called.
        prepared: the images.
        rows: by split, the numbers of its images.
        flip: see :class:`FiniteDataset`.
    """

    resident = False

    def __init__(
        self, name: str, prepared: Prepared, rows: Mapping[str, Tensor], *, flip: bool = False
    ) -> None:
        with warnings.catch_warnings():  # nothing here writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            points = torch.from_numpy(prepared.images)
        labels = None if prepared.labels is None else torch.from_numpy(prepared.labels)
        # Sums of whole numbers: exact, and no image is read.
        total, squares = (int(s) for s in prepared.moments[rows["train"].numpy()].sum(0))
        count = len(rows["train"]) * points[0].numel()
        super().__init__(
            name,
            dict.fromkeys(SPLITS, points),
            None if labels is None else dict.fromkeys(SPLITS, labels),
            classes=None if prepared.classes is None else len(prepared.classes),
            class_names=None if prepared.classes is None else tuple(prepared.classes),
            flip=flip,
            sigma_data=2 / 255 * math.sqrt(count * squares - total**2) / max(count, 1),
        )
        self.prepared = prepared
        self._rows = dict(rows)

    def size(self, split: str = "train") -> int:
        """Number of points of a split."""
        super().size(split)
        return len(self._rows[split])

    def stored(self, split: str = "train", device: torch.device | str = "cpu") -> Pair:
        """A whole split, read into memory: see :meth:`FiniteDataset.stored`."""
        return self._gather(torch.arange(self.size(split)), split, torch.device(device))

    def _gather(self, index: Tensor, split: str, device: torch.device) -> Pair:
        self.prepared.check()
        rows = select(self._rows[split], index)
        points, labels = each(*self._stored[split], lambda stored: select(stored, rows))
        if device.type == "cuda":  # so that copying need not wait for the device
            points = points.pin_memory()
        return each(points, labels, lambda chosen: chosen.to(device, non_blocking=True))

    def _digests(self, split: str) -> tuple[np.ndarray, Tensor | None]:
        rows = self._rows[split]
        _, labels = self._stored[split]
        return self.prepared.digests[rows.numpy()], None if labels is None else labels[rows]


def cache_folder(cache: str | None = None) -> Path:
    """The folder of all prepared sets: ``cache``, else $PARTIKEL_CACHE, else ~/.cache/partikel/prepared."""
    chosen = cache or os.environ.get("PARTIKEL_CACHE") or "~/.cache/partikel/prepared"
    return user_path(chosen)


def prepare(
    source: Source, *, size: int, channels: int, on_error: str, cache: str | None = None
) -> Prepared:
    """The prepared images of a source, from the cache or prepared now, by one process at a time.

    Args:
        source: of the pictures.
        size: edge length: see :func:`partikel.data.pictures.square`.
        channels: 1 or 3.
        on_error: what a broken picture does: ``"stop"``, or ``"skip"`` with a warning.
        cache: see :func:`cache_folder`.

    Raises:
        DataError: where a picture is broken (if it stops), all are, none is there, or the cache
            cannot be written.
    """
    from filelock import FileLock, Timeout

    key = repr((FORMAT, source.identity, size, channels, on_error))
    root = cache_folder(cache)
    name = f"{source.name}-{size}x{size}x{channels}-{fingerprint(key.encode(), 16)}"
    folder = root / name
    if folder.exists():
        return Prepared(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}.lock")
        try:
            lock.acquire(timeout=2)
        except Timeout:
            print(f"waiting for another process that prepares {source.where}", file=sys.stderr)
            lock.acquire()
        try:
            if not folder.exists():
                clear_parts(root, name)
                with replacing(folder) as part:
                    part.mkdir()
                    _build(source, part, size, channels, on_error)
        finally:
            lock.release()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder} cannot be written ({reason}): free some space, or point data.cache or "
            "$PARTIKEL_CACHE at a folder that can be written to"
        ) from error
    return Prepared(folder)


@dataclass(frozen=True)
class _Piece:
    """Some prepared images."""

    rows: list[int]
    images: np.ndarray
    moments: np.ndarray
    digests: np.ndarray
    broken: list[tuple[str, str]]


def _piece(listing: Listing, numbers: range, size: int, channels: int) -> _Piece:
    rows, images, moments, broken = [], [], [], []
    for i in numbers:
        try:
            image = square(listing.read(i), size, channels)
        except MemoryError:
            raise
        except Exception as error:  # of reading: zip files and file systems raise many kinds
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            broken.append((listing.names[i], reason))
            continue
        flat = image.ravel().astype(np.int64)
        rows.append(i)
        images.append(image)
        moments.append((flat.sum(), flat @ flat))
    stack = np.array(images, np.uint8).reshape(len(images), channels, size, size)
    sums = np.array(moments, np.int64).reshape(len(moments), 2)
    return _Piece(rows, stack, sums, digests(stack), broken)


def _build(source: Source, folder: Path, size: int, channels: int, on_error: str) -> None:
    """Write all files of a prepared set."""
    from PIL import Image

    with source.open() as listing:
        count = len(listing.names)
        if count == 0:
            raise DataError(
                f"{source.where} holds no pictures: check the path, or put some there "
                f"({', '.join(FORMATS)})"
            )
        needed, free = count * channels * size**2, shutil.disk_usage(folder).free
        if needed > free:
            raise DataError(
                f"{folder.parent} has {free / 1e9:.1f} GB left, but the prepared images of "
                f"{source.where} need {needed / 1e9:.1f} GB: free some space, or point data.cache "
                "or $PARTIKEL_CACHE at another folder"
            )
        numbers: list[int] = []
        moments: list[np.ndarray] = []
        hashes: list[np.ndarray] = []
        broken: list[tuple[str, str]] = []
        with (
            (folder / "images.bin").open("wb") as file,
            warnings.catch_warnings(),  # here, as all threads share the filters
            closing(_pieces(source, listing, size, channels)) as prepared,
        ):
            # data.max_pixels says what is too large
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for piece in prepared:
                broken += piece.broken
                if broken and on_error == "stop":
                    name, reason = broken[0]
                    raise DataError(
                        f"{name} in {source.where} cannot be used ({reason}): replace or remove it, "
                        "or set data.on_error to skip"
                    )
                file.write(piece.images.data)
                numbers += piece.rows
                moments.append(piece.moments)
                hashes.append(piece.digests)
    rows = np.array(numbers, np.int64)
    if broken:
        name, reason = broken[0]
        if len(rows) == 0:
            raise DataError(
                f"none of the {count} pictures in {source.where} can be used ({name}: {reason}): "
                "check that it is what data.path should name"
            )
        warnings.warn(
            f"{len(broken)} of {count} pictures in {source.where} are left out, as they cannot be "
            f"used ({name}: {reason}{'; ...' if len(broken) > 1 else ''})",
            stacklevel=4,
        )
    columns: dict[str, Any] = {
        "moments": np.concatenate(moments),
        "digests": np.concatenate(hashes),
    }
    if listing.labels is not None:
        columns["labels"] = listing.labels[rows].astype(np.int64)
    if listing.parts is not None:
        columns["parts"] = listing.parts[rows].astype(np.uint8)
    about: dict[str, Any] = {
        "format": FORMAT,
        "name": source.name,
        "source": source.where,
        "shape": [len(rows), channels, size, size],
        "classes": None if listing.classes is None else list(listing.classes),
        "skipped": dict(broken),
    }
    np.savez(folder / "table.npz", **columns)
    write_json(folder / "about.json", about)


def _pieces(
    source: Source, listing: Listing, size: int, channels: int
) -> Generator[_Piece, None, None]:
    """All pieces in order, prepared by threads a little ahead, with a progress bar on stderr."""
    from rich.progress import MofNCompleteColumn

    bar = progress_bar(MofNCompleteColumn())
    count = len(listing.names)
    ranges = (range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
    threads = min(_processors(), 16)
    with bar:
        task = bar.add_task(f"preparing {source.name}", total=count)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        try:

            def begin(numbers: range) -> Future[_Piece]:
                return pool.submit(_piece, listing, numbers, size, channels)

            ahead = deque(begin(numbers) for numbers in islice(ranges, 2 * threads))
            while ahead:
                piece = ahead.popleft().result()
                bar.update(task, advance=len(piece.rows) + len(piece.broken))
                yield piece
                ahead.extend(begin(numbers) for numbers in islice(ranges, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
