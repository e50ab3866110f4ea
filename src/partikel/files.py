"""Files: read if plain and with a check, written whole or not at all, locked. One place for each.

What is written goes under a temporary name beside its place, is flushed to the disk, and is then renamed,
so that a crash or a full disk at any moment leaves either the new file or what was there before.
JSON that others rely on carries a checksum.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from partikel.errors import CheckpointError, ConfigError, DataError, PartikelError

T = TypeVar("T")

_PART, _LOCK, _CHECKSUM = ".writing-", ".lock", "checksum"
_JSON_LIMIT = 1 << 24

TEXT = 10**8
"""Most bytes of a text."""

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def plain_file(path: str | Path) -> os.stat_result:
    """What the system says of a plain file, links followed; it is not opened.

    Everything that a user names, or that lies in a user's folder, is looked at by this before it is
    opened: a pipe would be waited for without end, and some devices never end.

    Raises:
        OSError: where there is nothing, or what is there is no plain file; ``strerror`` says what.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise OSError(errno.EINVAL, f"it is {kind}, not a plain file", str(path))
    return found


def read_whole(
    stream: IO[bytes], most: int, setting: str = "", *, said: int = 0, step: int = 2**20
) -> bytes:
    """All that a stream gives, which may unpack to more than it holds, a piece at a time.

    Args:
        stream: read from where it stands.
        most: bytes.
        setting: what the user can set ``most`` with.
        said: bytes that it says it has; if these are too many, nothing is read.
        step: bytes of a piece.

    Raises:
        OSError: as soon as there are more.
    """
    content = bytearray()
    while said <= most and (chunk := stream.read(min(step, most + 1 - len(content)))):
        content += chunk
        said = len(content)
    if said > most:
        allowed = f"the {most:,} bytes of {setting}" if setting else f"{most:,} bytes"
        raise OSError(errno.EFBIG, f"it has more than {allowed}")
    return bytes(content)


def read_plain(path: str | Path, most: int, setting: str = "") -> bytes:
    """The content of a plain file; see :func:`plain_file` and :func:`read_whole`."""
    size = plain_file(path).st_size
    with Path(path).open("rb") as file:
        return read_whole(file, most, setting, said=size)


def read_text(path: str | Path, error: type[PartikelError], most: int = TEXT) -> str:
    """The text of a plain file: UTF-8, or what a byte order mark says. All texts are read by this.

    Args:
        path: the file.
        error: what is raised.
        most: bytes.

    Raises:
        PartikelError: of the given class, where the file cannot be read, is larger, or is in
            another encoding.
    """
    try:
        content = read_plain(path, most)
        encoding = next((e for mark, e in _MARKS.items() if content.startswith(mark)), "utf-8")
        text = content.decode(encoding)
    except PermissionError as fault:
        raise error(_forbidden(path, fault)) from fault
    except OSError as fault:
        raise error(f"{path} cannot be read ({fault.strerror or fault}).") from fault
    except UnicodeDecodeError as fault:
        line = fault.object[: fault.start].count(b"\n") + 1
        raise error(
            f"{path} is no text in UTF-8 (line {line}: {fault.reason}): save it as UTF-8."
        ) from fault
    if "\0" in text:
        raise error(f"{path} is no text in UTF-8 (it holds zero bytes): save it as UTF-8.")
    return text.replace("\r\n", "\n")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, with its suffix, that takes its place when the block succeeds.

    The block writes a file there, or makes a folder and fills it. The folder around it is created where it
    is missing; nothing half-written stays behind, unless the process is killed (:func:`clear_parts`).

    Args:
        path: the file or folder to make or to replace.

    Yields:
        Where to write.

    Raises:
        ConfigError: for a path that names nothing ("." or "/").
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise ConfigError(f"'{path}' is no name for something new: choose another --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{_PART}{secrets.token_hex(4)}-{path.name}")
    try:
        yield part
        for made in (*(sorted(part.rglob("*")) if part.is_dir() else ()), part):
            _flush(made)
        if part.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
        _flush(path.parent)
    except OSError as fault:  # which may name the temporary path, or none
        if fault.filename is None or _PART in str(fault.filename):
            fault.filename = str(path)
        raise
    finally:
        _remove(part)


def clear_parts(folder: Path, name: str = "") -> None:
    """Remove what killed processes left half-written in a folder: all, or what was to have a name.

    No other process may be writing it.
    """
    for part in folder.glob(f"{_PART}*"):
        if part.name.endswith(name):
            _remove(part)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file (text in UTF-8) so that it is there whole or not at all."""
    if isinstance(content, str):  # which may hold a file's name that is no UTF-8
        content = content.encode("utf-8", "backslashreplace")
    with replacing(path) as part:
        part.write_bytes(content)


def readable(name: str) -> str:
    r"""A file's name as a text; its bytes that are no UTF-8 as \xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_json(path: str | Path, value: Any) -> Any:
    """Write a value as JSON, whole or not at all.

    Returns:
        The value as it will be read back (lists for tuples, words for keys).
    """
    text = json_text(value, ensure_ascii=False)
    write_whole(path, text + "\n")
    return json.loads(text)


def json_text(value: Any, **options: Any) -> str:
    """A value as JSON, which has no numbers that are not finite: they are null."""
    try:
        return json.dumps(value, indent=1, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), indent=1, allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kept_json(path: str | Path, work: Callable[[], Any]) -> Any:
    """The JSON object in a file; computed by ``work()`` and written, where the file is not there."""
    path = Path(path)
    if path.exists():
        with reading(path, "is damaged: remove it, and it is measured anew.", DataError):
            found = json.loads(read_plain(path, TEXT).decode("utf-8"))
            if not isinstance(found, dict) or not found:
                raise ValueError
            return found
    return write_json(path, work())


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with its checksum, which :func:`read_json` verifies."""
    return {**record, _CHECKSUM: fingerprint(record, 32)}


def read_json(path: str | Path, must_be_sealed: bool = False) -> Any:
    """The value in a JSON file that may have been damaged.

    Args:
        path: the file.
        must_be_sealed: whether one without a checksum is refused.

    Raises:
        OSError: where it cannot be read, or is too large.
        ValueError, RecursionError: where it is no JSON, too deep, or not what its checksum
            says (:func:`reading` makes a sentence of it).
    """
    value = json.loads(read_plain(path, _JSON_LIMIT).decode("utf-8"))
    if must_be_sealed or (isinstance(value, dict) and _CHECKSUM in value):
        claimed = value.pop(_CHECKSUM)
        if fingerprint(value, 32) != claimed:
            raise ValueError("it was changed after it was written")
    return value


@contextlib.contextmanager
def reading(
    place: str | Path, what: str, error: type[PartikelError] = CheckpointError
) -> Iterator[None]:
    """A block that reads a file, whose failure ends in one sentence.

    Args:
        place: of the file.
        what: the rest of the sentence for a file that is missing or damaged, and its mend. A file that
            one may not read is not damaged: it has a sentence of its own.
        error: what is raised.

    Raises:
        PartikelError: of the given class, for an OSError or what damaged content raises.
    """
    try:
        yield
    except PermissionError as fault:
        raise error(_forbidden(place, fault)) from fault
    except _DAMAGED as fault:
        raise error(f"{place} {what}") from fault


_DAMAGED = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What reading raises of what is missing or damaged."""


def _forbidden(place: str | Path, fault: PermissionError) -> str:
    return (
        f"{fault.filename or place} may not be read ({fault.strerror}), though nothing is wrong with it: "
        "ask its owner for the permission, or give it to yourself (chmod u+rX)."
    )


_held: set[tuple[int, ...]] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes (and threads) that would write it too.

    The lock is the operating system's: it ends with the process, however that ends. It does not bind
    readers, nor, on most file systems, processes on other machines. Where there are no locks, a warning
    says so and the block goes on. Inside of the block the same thread may ask again.

    Args:
        folder: made if missing, and removed again if nothing comes into it.

    Raises:
        ConfigError: where another one holds it.
        CheckpointError: where it cannot be made.
    """
    handles: list[int] = []
    with writing_to(folder):
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        if (key := _key(folder)) not in _held:
            handles.append(os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666))
            handles.append(os.open(folder, os.O_RDONLY))  # so that no other folder gets its number
    if not handles:
        yield
        return
    try:
        _lock(handles[0], folder)
        _held.add(key)
        yield
    finally:
        if key in _held:
            _held.remove(key)
            with contextlib.suppress(OSError):
                if os.listdir(folder) == [_LOCK]:
                    (folder / _LOCK).unlink()
                for each in missing:
                    each.rmdir()  # where nothing came of it
        for handle in handles:
            os.close(handle)


def check_held(folder: Path) -> None:
    """Refuse to go on in a folder that this thread holds no more.

    Raises:
        CheckpointError: where it was moved, removed or replaced; nothing is made in its place.
    """
    with contextlib.suppress(OSError):
        if _key(folder) in _held:
            return
    raise CheckpointError(
        f"the run folder {folder} was moved, removed or replaced while it was trained: put it back, and "
        "the same command resumes from its last checkpoint."
    )


def _key(folder: Path) -> tuple[int, ...]:
    own = os.stat(folder)  # a fork inherits the set, but holds nothing
    return own.st_dev, own.st_ino, os.getpid(), threading.get_ident()


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl  # of POSIX systems

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another process trains in {folder}: wait for it or stop it, or choose another --out."
        ) from None
    except (ImportError, OSError) as fault:
        reason = getattr(fault, "strerror", None) or "the system has no locks"
        warnings.warn(
            f"{folder} cannot be locked ({reason}): let no second process train there.",
            stacklevel=2,
        )


@contextlib.contextmanager
def writing_to(
    place: str | Path | None,
    mend: str = "free some space or choose another --out",
    error: type[PartikelError] = CheckpointError,
) -> Iterator[None]:
    """A block whose failure to write (a full disk, say) ends in one sentence.

    Args:
        place: what the sentence names where the fault names no file.
        mend: what the user can do.
        error: what is raised.

    Raises:
        PartikelError: of the given class, for an OSError inside of the block.
    """
    try:
        yield
    except OSError as fault:
        named, reason = fault.filename or place, fault.strerror or fault
        raise error(f"cannot write to {named} ({reason}): {mend}.") from fault


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as JSON has them.

    Raises:
        TypeError: for a value that JSON has not.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"plain values are kept, not {type(value).__name__}")


def fingerprint(value: Any, digits: int = 12) -> str:
    """Hexadecimal digits that change with any part of a value (bytes, or what :func:`plain` takes)."""
    if not isinstance(value, bytes):
        value = json.dumps(plain(value), sort_keys=True).encode()
    return hashlib.sha256(value).hexdigest()[:digits]


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
