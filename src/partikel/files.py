"""Files: written whole or not at all, read with a check, locked. The one place that does each.

What is written goes under a temporary name beside its place, is flushed to the disk, and is then renamed,
so that a crash or a full disk at any moment leaves either the new file or what was there before. Tensors
and the JSON beside them carry a checksum, so that a flipped bit is found when they are read; files without
one, of earlier versions, are read too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from partikel.errors import CheckpointError, ConfigError, NumericsError, PartikelError

if TYPE_CHECKING:  # the command line imports this module, and its help needs no PyTorch
    from torch import Tensor

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

T = TypeVar("T")

_PART, _LOCK = ".writing-", ".lock"
_CHECKSUM = "checksum"
JSON_LIMIT = 1 << 24
"""Bytes of the largest JSON file that is read."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, with its suffix, that takes its place when the block succeeds.

    The block writes a file there, or makes a folder and fills it. The folder around it is created where it
    is missing; nothing half-written stays behind, unless the process is killed (:func:`clear_parts`).

    Args:
        path: the file or folder to make or to replace.

    Yields:
        Where to write.
    """
    path = Path(path)
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
    with replacing(path) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> Any:
    """Write a value as JSON, whole or not at all.

    Returns:
        The value as it will be read back (lists for tuples, words for keys).
    """
    text = json.dumps(value, indent=1, ensure_ascii=False)
    write_whole(path, text + "\n")
    return json.loads(text)


def kept_json(path: str | Path, work: Callable[[], Any]) -> Any:
    """The JSON value in a file; computed by ``work()`` and written, where the file is not there."""
    path = Path(path)
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return write_json(path, work())


def read_json(path: str | Path) -> Any:
    """The value in a JSON file that may have been damaged.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is no JSON, or too large or too deep.
    """
    check_plain(path)
    if os.path.getsize(path) > JSON_LIMIT:
        raise ValueError("too large")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def write_sealed(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with its checksum, whole or not at all."""
    write_json(path, {**record, _CHECKSUM: fingerprint(record, 32)})


def read_sealed(path: str | Path) -> dict[str, Any]:
    """What :func:`write_sealed` wrote; a file without a checksum is taken as it is.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is no JSON mapping, or was changed.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError("it holds no mapping")
    claimed = record.pop(_CHECKSUM, None)
    try:
        if claimed is not None and fingerprint(record, 32) != claimed:
            raise ValueError("it was changed after it was written")
    except RecursionError:
        raise ValueError("nested too deep") from None
    return record


def check_plain(path: str | Path) -> None:
    """Refuse what is no plain file, such as a pipe, from which reading may never end.

    Raises:
        OSError: where it is none, or is not there.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(0, "it is no plain file", str(path))


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
        PartikelError: of the given class, for what reading damaged files raises.
    """
    try:
        yield
    except PermissionError as fault:
        raise error(
            f"{fault.filename or place} may not be read ({fault.strerror}): ask its owner, or give "
            "yourself the permission (chmod u+rX); nothing is wrong with it."
        ) from fault
    except (OSError, SafetensorError, ValueError, TypeError, LookupError) as fault:
        raise error(f"{place} {what}") from fault


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal digits that change with any name, type, shape or bit of some tensors on the CPU."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that has an entry which is not finite, if there is one."""
    return next((k for k, v in tensors.items() if not v.isfinite().all()), None)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors into a safetensors file, with their checksum.

    Args:
        path: the file, in a place that :func:`replacing` gave.
        tensors: by name, on any device.
        metadata: words to be kept with them.

    Returns:
        The checksum.

    Raises:
        NumericsError: where a number is not finite; nothing is written.
    """
    from safetensors.torch import save

    bad = not_finite(tensors)
    if bad is not None:
        raise NumericsError(f"'{bad}' is not finite, so that {path.name} was not written.")
    whole = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    found = checksum(whole)
    # not save_file, whose files nobody else may read, whatever the umask
    path.write_bytes(save(whole, {**(metadata or {}), _CHECKSUM: found}))
    return found


def read_tensors(
    path: Path,
    mend: str,
    *,
    seal: str | None = None,
    error: type[PartikelError] = CheckpointError,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file and check it; no code is run.

    Args:
        path: the file.
        mend: what the user can do about a damaged one.
        seal: the checksum that it must have; its own, where it has one, unless given.
        error: what is raised.

    Returns:
        The tensors by name, on the CPU, and the metadata.

    Raises:
        PartikelError: of the given class, where the file is missing, truncated or changed, or holds
            numbers that are not finite, or may not be read.
    """
    with reading(path, f"is missing, truncated or no safetensors file: {mend}", error):
        check_plain(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    seal = seal or metadata.get(_CHECKSUM)
    if seal is not None and checksum(tensors) != seal:
        raise error(f"{path} is damaged (it was changed after it was written): {mend}")
    bad = not_finite(tensors)
    if bad is not None:
        raise error(f"{path} is damaged ('{bad}' is not finite): {mend}")
    return tensors, metadata


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """What keeps tensors from taking the place of others, in a few words; None where nothing does."""
    for name in sorted({*own, *given}):
        if name not in given:
            return f"'{name}' is missing"
        if name not in own:
            return f"'{name}' is unknown"
        ours, theirs = own[name], given[name]
        if ours.shape != theirs.shape:
            return f"'{name}' is of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}"
        if ours.dtype != theirs.dtype:
            return f"'{name}' is of {theirs.dtype}, not {ours.dtype}"
    return None


class Lock:
    """A folder that this process writes, see :func:`locked`."""

    def __init__(self, folder: Path, file: os.stat_result) -> None:
        self._folder, self._file = folder, file

    @property
    def there(self) -> bool:
        """Whether the folder is still where it was, and still the same."""
        with contextlib.suppress(OSError):
            return os.path.samestat(self._file, os.stat(self._folder / _LOCK))
        return False

    def check(self) -> None:
        """Refuse to go on in a folder that is not there any more.

        Raises:
            CheckpointError: where it was moved or removed; nothing is made in its place.
        """
        if not self.there:
            raise CheckpointError(
                f"the run folder {self._folder} was moved, removed or replaced while it was trained: "
                "put it back, and the same command resumes from its last checkpoint."
            )


_held: dict[tuple[int, ...], Lock] = {}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Hold a folder against other processes (and threads) that would write it too.

    The lock is the operating system's: it ends with the process, however that ends. It does not bind
    readers, nor processes on other machines. Where the file system has no locks, a warning says so and
    the block goes on. Inside of the block the same thread may ask again.

    Args:
        folder: made if missing, and removed again if nothing came into it.

    Yields:
        What tells whether the folder is still there.

    Raises:
        ConfigError: where another one holds it.
        CheckpointError: where it cannot be written.
    """
    path, handle, mine = folder / _LOCK, None, None
    with contextlib.suppress(OSError):  # not opened twice: on some systems closing lets go
        mine = _held.get(_key(os.stat(path)))
    if mine is not None:
        yield mine
        return
    there = folder.is_dir()
    while handle is None:
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        lock = Lock(folder, os.fstat(handle))
        try:
            _lock(folder, handle)
            if lock.there:
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # who had it has just taken its file away
        handle = None
    key = _key(os.fstat(handle))
    _held[key] = lock
    try:
        yield lock
    finally:
        del _held[key]
        with contextlib.suppress(OSError):
            if lock.there:
                path.unlink()
            if not there:
                folder.rmdir()
        os.close(handle)


def _key(file: os.stat_result) -> tuple[int, ...]:
    """Of a lock's file, for this process and thread (a fork inherits what its parent holds)."""
    return file.st_dev, file.st_ino, os.getpid(), threading.get_ident()


def _lock(folder: Path, handle: int) -> None:
    """Take the lock and leave this process's number in the file, for the sentence of a second one."""
    try:
        if fcntl is None:
            raise OSError(0, "the system has none")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        who = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
        number = f" (number {who})" if who.isdigit() else ""
        raise ConfigError(
            f"another process{number} trains in {folder}: wait for it or stop it, or choose another "
            "--out."
        ) from None
    except OSError as fault:
        warnings.warn(
            f"{folder} cannot be locked ({fault.strerror}): see to it that no second process trains "
            "there.",
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
