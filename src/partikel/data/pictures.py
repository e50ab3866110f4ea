"""Pictures: found in a folder or a zip file, and made into squares of bytes."""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from partikel.data.files import LIMITS, Limits
from partikel.errors import DataError
from partikel.files import fingerprint, plain_file

if TYPE_CHECKING:
    from PIL import Image

ENLARGE = 2
"""Pictures that would have to be enlarged by more are refused: there is nothing to learn in between."""

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000")
FORMATS += ("QOI", "TGA")
"""Formats of pictures, as Pillow calls them. It reads more, but what lies beside pictures is seldom one
of them (data in HDF5, films, fonts), and some it has other programs read."""

TOGETHER = 256_000_000
"""Pixels that are decoded at a time, by all threads."""


class BrokenPicture(Exception):
    """Why a picture cannot be used."""


class _Room:
    """Lets threads work on so many pixels at a time; on a larger picture one by itself."""

    def __init__(self, pixels: int) -> None:
        self._pixels, self._taken = pixels, 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Waits until there is room."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._pixels)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_ROOM = _Room(TOGETHER)


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
    with _ROOM.take(picture.width * picture.height):
        return _square(picture, size, channels)


def _square(picture: Image.Image, size: int, channels: int) -> np.ndarray:
    """What :func:`square` makes of a picture that it does not refuse."""
    from PIL import Image, ImageOps

    try:
        picture.load()
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
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    return Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))


def _plain(picture: Image.Image, channels: int) -> Image.Image:
    """In mode L or RGB."""
    from PIL import Image

    if picture.mode in ("F", "I"):
        raise ValueError(f"the range of its values is unknown (mode {picture.mode})")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("L" if channels == 1 else "RGB")


def decoded(content: bytes, limits: Limits = LIMITS) -> Image.Image:
    """The picture that a file holds. Its pixels are decoded when they are asked for.

    Raises:
        BrokenPicture: where it is of none of the :data:`FORMATS`, or has too many pixels.
    """
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(content), formats=_formats())
    except MemoryError:
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenPicture("it is no picture that Pillow can read") from error
    except Exception as error:
        raise BrokenPicture(str(error) or type(error).__name__) from error
    most = limits.pixels
    if picture.width * picture.height > most:
        raise BrokenPicture(
            f"it is {picture.width}x{picture.height}, more than the {most:,} pixels of data.max_pixels"
        )
    return picture


@cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """Endings of the names of pictures, in lower case."""
    from PIL import Image

    known = Image.registered_extensions()
    strange = {".pfm", ".icb", ".vda", ".vst"}  # heights; and what most programs mean otherwise
    return frozenset(suffix for suffix, kind in known.items() if kind in _formats()) - strange


def is_picture(name: str) -> bool:
    """Whether a path looks like a picture, and not like what systems leave lying around."""
    return not _hidden(name) and PurePosixPath(name).suffix.lower() in suffixes()


def _hidden(name: str) -> bool:
    """Whether systems hide a path, or leave it lying around."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result | OSError]]:
    """Pictures below a folder; links are followed, but none of them round and round.

    What cannot be looked at is a picture that cannot be read: a link to nowhere by its name, a folder by
    its name with a slash.

    Raises:
        OSError: where the folder itself cannot be read.
    """
    seen = set()
    unread: list[OSError] = []
    for here, folders, names in os.walk(folder, followlinks=True, onerror=unread.append):
        found = os.stat(here)
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders.sort()
        for name in names:
            relative = Path(here, name).relative_to(folder).as_posix()
            if is_picture(relative):
                try:
                    yield relative, os.stat(Path(here, name))
                except OSError as error:
                    yield relative, error
    for error in unread:
        if Path(error.filename) == folder:
            raise error
        name = Path(error.filename).relative_to(folder).as_posix()
        if not _hidden(name):
            yield f"{name}/", error


def identity(path: Path) -> str:
    """A hash of what lies at ``path`` by names, sizes and times, without reading it.

    Raises:
        DataError: where there is nothing, or it cannot be looked at.
    """
    try:
        if path.is_dir():
            entries = sorted(
                (name, -1, -1) if isinstance(s, OSError) else (name, s.st_size, s.st_mtime_ns)
                for name, s in _walk(path)
            )
        else:
            found = plain_file(path)
            entries = [(path.name, found.st_size, found.st_mtime_ns)]
    except OSError as error:
        raise _unreadable(path, error) from error
    return fingerprint(repr((str(path.resolve()), entries)).encode(), 64)


@contextmanager
def opened(path: Path, limits: Limits) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The pictures in a folder or a zip file: their relative paths in order, and how to read one.

    Reading is safe in several threads; it raises what the system raises.

    Raises:
        DataError: where there is nothing, or no whole zip file.
    """
    archive = None
    entries: dict[str, zipfile.ZipInfo] = {}
    faults: dict[str, OSError] = {}
    try:
        if path.is_dir():
            found = dict(_walk(path))
            faults = {name: s for name, s in found.items() if isinstance(s, OSError)}
            names = sorted(found)
        else:
            plain_file(path)
            archive = zipfile.ZipFile(path)
            entries = _entries(archive)
            names = sorted(entries)
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError:
        raise
    except Exception as error:  # of damaged lists of entries: many kinds
        raise DataError(
            f"{path} is damaged or no zip file ({error}): put a good copy there"
        ) from error
    if archive is None:

        def load(name: str) -> bytes:
            if name in faults:
                raise faults[name]
            return limits.plain(path / name)

        yield names, load
        return
    with archive:
        lock = threading.Lock()

        def read(name: str) -> bytes:
            entry = entries[name]
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
                raise BrokenPicture("it is a link or a device, not a plain file")
            if entry.flag_bits & 1:
                raise BrokenPicture("it is encrypted")
            # Of other methods than these two, Python unpacks all that a step reads.
            simple = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            with lock, archive.open(entry) as file:
                packed = cast(IO[bytes], file)
                return limits.whole(packed, said=entry.file_size, step=2**20 if simple else 2**12)

        yield names, read


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The pictures in a zip file by the paths that they have where it is unpacked.

    Some systems write backslashes, names in UTF-8 that are not marked as such, and entries for folders.
    """
    entries = {}
    for entry in archive.infolist():
        name = entry.filename.replace("\\", "/")
        if not entry.flag_bits & 0x800:
            with contextlib.suppress(UnicodeError):
                name = name.encode("cp437").decode("utf-8")
        is_folder = name.endswith("/") or entry.external_attr & 0x10
        name = posixpath.normpath(name).lstrip("/")
        if not is_folder and is_picture(name):
            entries[name] = entry
    return entries


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{error.filename or path} cannot be read ({error.strerror or error}): check that it is "
        f"there{'' if path.is_absolute() else ', or in $PARTIKEL_DATA,'} and may be read"
    )
