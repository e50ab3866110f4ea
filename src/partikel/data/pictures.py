"""Pictures: found in a folder or a zip file, and made into squares of bytes."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from partikel.errors import DataError
from partikel.files import fingerprint

ENLARGE = 2
"""Pictures that would have to be enlarged by more are refused: there is nothing to learn in between."""


class BrokenPicture(Exception):
    """Why a picture cannot be used."""


def square(picture: Image.Image, size: int, channels: int) -> np.ndarray:
    """A picture as bytes: shorter side to ``size`` (Lanczos), then the square in its centre.

    Colours with an opacity are laid on white; grey is luminance (ITU-R 601). A turn that the camera
    noted down is carried out.

    Args:
        picture: of any mode, read or not; its first frame if it moves.
        size: edge length.
        channels: 1 for grey, 3 for colour.

    Returns:
        (channels, size, size), uint8.

    Raises:
        BrokenPicture: where the shorter side is less than ``size`` / :data:`ENLARGE`, or the bytes
            are not a whole picture.
    """
    if min(picture.size) * ENLARGE < size:
        raise BrokenPicture(
            f"it is {picture.width}x{picture.height}, too small for data.size {size}: "
            f"at least {-(-size // ENLARGE)} is needed"
        )
    try:
        deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")
        picture = ImageOps.exif_transpose(picture)
        picture = _plain(_shallow(picture) if deep else picture, channels)
        width, height = picture.size
        if (short := min(width, height)) != size:
            width, height = (max(size, round(side * size / short)) for side in (width, height))
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - size) // 2, (height - size) // 2
        values = np.asarray(picture.crop((left, top, left + size, top + size)))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds
        raise BrokenPicture(str(error) or type(error).__name__) from error
    return values[None] if channels == 1 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _shallow(picture: Image.Image) -> Image.Image:
    """16 bits of grey as 8: Pillow would cut off, not scale, what lies above 255."""
    values = np.asarray(picture).astype(np.int64)
    return Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))


def _plain(picture: Image.Image, channels: int) -> Image.Image:
    """In mode L or RGB."""
    if picture.mode in ("F", "I"):
        raise ValueError(f"the range of its values is unknown (mode {picture.mode})")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("L" if channels == 1 else "RGB")


def decoded(content: bytes) -> Image.Image:
    """The picture that a file holds.

    Raises:
        BrokenPicture: where Pillow cannot read it.
    """
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except MemoryError:
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenPicture("it is no picture that Pillow can read") from error
    except Exception as error:
        raise BrokenPicture(str(error) or type(error).__name__) from error
    return picture


@cache
def suffixes() -> frozenset[str]:
    """Endings of the names of files that Pillow can read, in lower case."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN)


def is_picture(name: str) -> bool:
    """Whether a path looks like a picture, and not like what systems leave lying around."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in suffixes()


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Pictures below a folder; links are followed, but none of them round and round."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        found = os.stat(here)
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders.sort()
        for name in names:
            path = Path(here, name)
            relative = path.relative_to(folder).as_posix()
            if is_picture(relative):
                yield relative, path.stat()


def identity(path: Path) -> str:
    """A hash of what lies at ``path`` by names, sizes and times, without reading it.

    Raises:
        DataError: where there is nothing, or it cannot be looked at.
    """
    try:
        if path.is_dir():
            entries = sorted((name, s.st_size, s.st_mtime_ns) for name, s in _walk(path))
        else:
            stat = path.stat()
            entries = [(path.name, stat.st_size, stat.st_mtime_ns)]
    except OSError as error:
        raise _unreadable(path, error) from error
    return fingerprint(repr((str(path.resolve()), entries)).encode(), 64)


@contextmanager
def opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The pictures in a folder or a zip file: their relative paths in order, and how to read one.

    Reading is safe in several threads; it raises what the system raises.

    Raises:
        DataError: where there is nothing, or no whole zip file.
    """
    archive = None
    try:
        if path.is_dir():
            names = sorted(name for name, _ in _walk(path))
        else:
            archive = zipfile.ZipFile(path)
            names = sorted(name for name in archive.namelist() if is_picture(name))
    except OSError as error:
        raise _unreadable(path, error) from error
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path} is damaged or no zip file ({error}): put a good copy there"
        ) from error
    if archive is None:
        yield names, lambda name: (path / name).read_bytes()
        return
    with archive:
        lock = threading.Lock()

        def read(name: str) -> bytes:
            with lock:
                return archive.read(name)

        yield names, read


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{error.filename or path} cannot be read ({error.strerror or error}): check that it is "
        "there and may be read"
    )
