"""Files of data: where they lie, and how they are fetched."""

from __future__ import annotations

import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from partikel.errors import DataError
from partikel.files import read_plain, read_whole, write_whole

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


_SETTING = "data.max_bytes"


class ContentError(Exception):
    """What is wrong with the content of a file."""


class _TransferError(Exception):
    """What went wrong on the way, and whether it is worth another try."""

    def __init__(self, message: str, again: bool) -> None:
        super().__init__(message)
        self.again = again


class Limits(NamedTuple):
    """What is read at most of what others made: files unpack to far more than they hold."""

    bytes: int = 10**9
    """Of a file, unpacked."""
    pixels: int = 89_000_000
    """Of a picture; Pillow warns of more, and refuses twice as many."""

    def whole(self, stream: IO[bytes], **how: int) -> bytes:
        """All that a stream gives, see :func:`read_whole`."""
        return read_whole(stream, self.bytes, _SETTING, **how)

    def plain(self, path: Path) -> bytes:
        """The content of a plain file."""
        return read_plain(path, self.bytes, _SETTING)


LIMITS = Limits()
"""Unless others are set."""


def check_md5(content: bytes, md5: str) -> None:
    """Refuse other content than was published.

    Raises:
        ContentError: with both sums.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ContentError(f"its content has MD5 {found}, not {md5}")


def user_path(path: str) -> Path:
    """A path as a user writes it, with ~ for the home folder.

    Raises:
        DataError: where it can be no path.
    """
    try:
        if "\0" in path:
            raise RuntimeError("it holds a zero byte")
        return Path(path).expanduser()
    except RuntimeError as error:  # there is no such user
        raise DataError(
            f"{path!r} is no path ({str(error).rstrip('.')}): name a folder or a file"
        ) from error


def data_root(root: str | None = None) -> Path:
    """The folder of all data: ``root``, else $PARTIKEL_DATA, else ~/.cache/partikel."""
    return user_path(root or os.environ.get("PARTIKEL_DATA") or "~/.cache/partikel")


def fetch(
    addresses: Sequence[str],
    path: Path,
    check: Callable[[bytes], object],
    *,
    attempts: int = 3,
    pause: float = 1.0,
) -> None:
    """Download a file from the first address that gives it whole.

    Failures that may pass are tried again after ``pause``, 2 ``pause``, ... seconds.

    Args:
        addresses: tried in turn.
        path: where the file goes; its folder names the data set in messages.
        check: raises :class:`ContentError` where the content is not what it should be.
        attempts: of each address.
        pause: in seconds.

    Raises:
        DataError: where no address gives the file, with the reason for each, or it cannot be written.
    """
    source = path.parent.name
    failures: dict[str, Exception] = {}
    for address in addresses:
        for attempt in range(attempts):
            try:
                content = _transfer(address, f"{source}/{path.name}")
                check(content)
                return write(path, content)
            except ContentError as error:
                failures[address] = error
                break
            except _TransferError as error:
                failures[address] = error
                if not error.again:
                    break
                if attempt + 1 < attempts:
                    time.sleep(pause * 2**attempt)
    reasons = "; ".join(f"{address}: {error}" for address, error in failures.items())
    raise DataError(
        f"{path.name} of '{source}' could not be downloaded ({reasons}): try again later, or put "
        f"the file into the folder {source}/ under data.root by hand"
    )


def _transfer(address: str, label: str, timeout: float = 30.0) -> bytes:
    """The bytes at an address, with a progress bar on stderr."""
    from http.client import HTTPException

    from rich.progress import DownloadColumn, TransferSpeedColumn

    bar = progress_bar(DownloadColumn(), TransferSpeedColumn())
    content = bytearray()
    try:
        with urllib.request.urlopen(address, timeout=timeout) as response, bar:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            task = bar.add_task(label, total=total)
            while chunk := response.read(1 << 16):
                content += chunk
                if len(content) > LIMITS.bytes:
                    raise _TransferError(f"more than {LIMITS.bytes:,} bytes", False)
                bar.update(task, advance=len(chunk))
    except urllib.error.HTTPError as error:
        # "Too many requests" and "timeout" may pass; any other fault of the request stays.
        again = error.code >= 500 or error.code in (408, 429)
        raise _TransferError(f"HTTP {error.code} {error.reason}", again) from error
    except (OSError, HTTPException) as error:
        raise _TransferError(str(error) or type(error).__name__, True) from error
    if total is not None and len(content) != total:
        raise _TransferError(f"the connection ended after {len(content)} of {total} bytes", True)
    return bytes(content)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar on stderr with these columns beside it, which goes away when it is full."""
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        *(progress.TextColumn("{task.description}"), progress.BarColumn()),
        *(*columns, progress.TimeRemainingColumn()),
        console=Console(stderr=True),
        transient=True,
    )


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        DataError: where it cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}): free some space, or point "
            "data.root at a folder that can be written to"
        ) from error
