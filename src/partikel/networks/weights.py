"""Weights in files: written with a checksum and without what is not finite, checked when they are read.

The one place for safetensors files. A flipped bit is found by the checksum; files without one, of earlier
versions, are read too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from partikel.errors import CheckpointError, NumericsError, PartikelError
from partikel.files import plain_file, reading

_CHECKSUM = "checksum"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors into a safetensors file, with their checksum.

    Args:
        path: the file, in a place that :func:`partikel.files.replacing` gave.
        tensors: by name, on any device.
        metadata: words to be kept with them.

    Returns:
        The checksum.

    Raises:
        NumericsError: where a number is not finite; nothing is written.
    """
    bad = not_finite(tensors)
    if bad is not None:
        raise NumericsError(f"'{bad}' is not finite, so that {path.name} was not written.")
    whole = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    found = checksum(whole, metadata or {})
    path.touch()
    mode = (
        path.stat().st_mode & 0o777
    )  # save_file's files may be read by nobody else, whatever the umask
    try:
        save_file(whole, path, {**(metadata or {}), _CHECKSUM: found})
    except SafetensorError as fault:
        raise OSError(None, str(fault), str(path)) from fault
    path.chmod(mode)
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
        PartikelError: of the given class, where the file is missing, truncated or changed, holds
            numbers that are not finite, or may not be read.
    """
    with reading(
        path, f"cannot be read (it is missing, truncated or no safetensors file): {mend}", error
    ):
        plain_file(path)
        open(path, "rb").close()  # a file that one may not read is not damaged
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as fault:
            raise ValueError(str(fault)) from fault
    own = metadata.pop(_CHECKSUM, None)
    if (seal or own) not in (None, checksum(tensors, metadata)):
        raise error(f"{path} is damaged (it was changed after it was written): {mend}")
    bad = not_finite(tensors)
    if bad is not None:
        raise error(f"{path} is damaged ('{bad}' is not finite): {mend}")
    return tensors, metadata


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hexadecimal digits that change with any name, type, shape or bit of some tensors on the CPU."""
    found = hashlib.blake2b(repr(sorted(metadata.items())).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that has an entry which is not finite, if there is one."""
    return next((k for k, v in tensors.items() if not v.isfinite().all()), None)


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """The first of :func:`misfits`; None where nothing keeps the tensors from taking the place of others."""
    return next(misfits(own, given), None)


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    """What keeps tensors from taking the place of others, in a few words each, by name.

    Names and shapes are the same, and types, but for floating numbers that a wider type takes exactly.
    """
    for name in sorted({*own, *given}):
        if name not in given or name not in own:
            yield f"'{name}' is {'missing' if name in own else 'unknown'}"
            continue
        ours, theirs = own[name], given[name]
        floats = ours.is_floating_point() and theirs.is_floating_point()
        kept = torch.promote_types(ours.dtype, theirs.dtype) if floats else theirs.dtype
        if ours.shape != theirs.shape or ours.dtype != kept:
            yield (
                f"'{name}' is {theirs.dtype} of shape {tuple(theirs.shape)}, not {ours.dtype} of "
                f"shape {tuple(ours.shape)}"
            )
