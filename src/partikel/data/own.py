"""Data of one's own: tensors, arrays and torch's data sets, as a :class:`Dataset` in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from partikel.data.base import FiniteDataset, split_indices
from partikel.errors import DataError
from partikel.errors.checks import Part, SplitSeed, checked
from partikel.tensors import MOST

if TYPE_CHECKING:  # what is no data is refused here, with what to pass instead
    Points: TypeAlias = Tensor | np.ndarray | TorchDataset | tuple[Any, Any]
    """What :func:`in_memory` takes: points, a torch data set of them, or (points, labels)."""
    Labels: TypeAlias = Tensor | np.ndarray | Sequence[int]
    """Classes, one for each point."""

WANTED = (
    "a tensor or an array of points (N, ...), a torch Dataset, a pair (points, labels), or what "
    "partikel.data.open_dataset opens"
)


@checked
def in_memory(
    points: Points,
    labels: Labels | None = None,
    *,
    name: str = "own data",
    validation: Part = 0.0,
    test: Part = 0.0,
    split_seed: SplitSeed = 0,
) -> FiniteDataset:
    """A data set of what one has: points as they are, or bytes, which become numbers in [-1, 1].

    Args:
        points: (N, D) points or (N, C, H, W) images, as a tensor or an array; or a torch ``Dataset`` of
            them, or of (point, label), which is read once (random transforms are drawn once); or a pair
            (points, labels).
        labels: (N,) whole numbers 0, ..., K-1.
        name: what it is called.
        validation: share of the points that is kept for validation.
        test: share that is kept for testing.
        split_seed: of the splits.

    Returns:
        The data set, with the points that no other split has for training.

    Raises:
        TypeError: for something else, with what to pass instead.
        DataError: for points or labels that cannot be used: none, not finite, of other numbers.
    """
    read, given = _opened(points)
    if given is not None and labels is not None:
        raise TypeError("the points come with labels of their own: leave out labels.")
    x, cond = _points(read), _labels(given if labels is None else labels)
    if cond is not None and len(cond) != len(x):
        raise DataError(f"there are {len(x)} points but {len(cond)} labels: give each point one.")
    parts = split_indices(len(x), {"test": test, "validation": validation}, split_seed)
    whole = len(parts["train"]) == len(x)
    if whole:  # in their own order, without a copy
        parts["train"] = torch.arange(len(x))
    elif not len(parts["train"]):
        raise DataError("no point is left for training: lower the shares of validation and test.")
    rows = {split: x if whole and len(i) else x[i] for split, i in parts.items()}
    numbers = None if cond is None else {split: cond[index] for split, index in parts.items()}
    classes = None if cond is None else int(cond.max()) + 1
    return FiniteDataset(name, rows, numbers, classes=classes)


def _opened(points: Any) -> tuple[Any, Any]:
    """Points and labels out of what may hold both."""
    if isinstance(points, DataLoader):
        raise TypeError(
            "fit draws its own batches: pass the loader's data set, loader.dataset, not the DataLoader."
        )
    if isinstance(points, tuple):
        if len(points) != 2:
            raise TypeError(f"a pair is (points, labels), got {len(points)} things: pass {WANTED}.")
        return points
    if isinstance(points, TensorDataset) and len(points.tensors) in (1, 2):
        return points.tensors[0], None if len(points.tensors) == 1 else points.tensors[1]
    if isinstance(points, TorchDataset):
        return _read(points)
    return points, None


def _read(dataset: TorchDataset) -> tuple[Tensor, Any]:
    """All items of a torch data set, x or (x, label)."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"a {type(dataset).__name__} has no length: pass a torch Dataset with __len__ and "
            "__getitem__, or stack its points into a tensor."
        )
    rows: list[Tensor] = []
    labels: list[Any] = []
    for number in range(len(dataset)):  # type: ignore[arg-type]
        item = dataset[number]
        pair = item if isinstance(item, (tuple, list)) else (item,)
        x = torch.as_tensor(pair[0]) if isinstance(pair[0], (Tensor, np.ndarray)) else None
        if x is None or len(pair) > 2 or len(pair) != 1 + bool(labels or (not rows and pair[1:])):
            got = ", ".join(type(each).__name__ for each in pair)
            raise TypeError(
                f"the items of a torch Dataset are x or (x, label), x a tensor, got ({got}): give it a "
                "transform (torchvision's ToTensor makes tensors of pictures)."
            )
        if not rows and x.numel() * x.itemsize * len(dataset) > MOST:  # type: ignore[arg-type]
            raise DataError(
                f"{len(dataset):,} points {tuple(x.shape)} "  # type: ignore[arg-type]
                f"are more than the {MOST / 1e9:.1f} GB that are kept in memory: images that are files "
                "are read from the disk by open_dataset(DataSettings('folder', path=...))."
            )
        if rows and x.shape != rows[0].shape:
            raise DataError(
                f"item {number} of the data has shape {tuple(x.shape)}, the first one "
                f"{tuple(rows[0].shape)}: give all points one shape."
            )
        rows.append(x)
        labels += pair[1:]
    alike = labels and all(isinstance(y, Tensor) and y.shape == labels[0].shape for y in labels)
    cond = torch.stack(labels) if alike else labels or None
    return torch.stack(rows) if rows else torch.empty(0, 1), cond


def _tensor(values: Any, what: str) -> Tensor:
    """An array as a tensor on the CPU, without a copy where there need be none."""
    if isinstance(values, Tensor):
        if values.layout is not torch.strided:
            raise TypeError(f"{what} are a dense tensor, got a sparse one: pass x.to_dense().")
        return values.detach().cpu()
    try:
        array = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError as error:
        raise TypeError(f"{what} of {values.dtype} are no numbers: pass {WANTED}.") from error


def _points(values: Any) -> Tensor:
    """Points (N, ...), bytes or finite floating-point numbers."""
    if not isinstance(values, (Tensor, np.ndarray)):
        raise TypeError(f"data are {WANTED}; got {_said(values)}")
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError("a masked array hides points: pass those that count, or x.filled(value).")
    x = _tensor(values, "points")
    shape = tuple(x.shape)
    if x.ndim < 2:
        more = f": {shape[0]} numbers are x[:, None]" if x.ndim else ""
        raise DataError(f"points are (N, D) or (N, C, H, W), got shape {shape}{more}.")
    if 0 in shape:
        raise DataError(f"data of shape {shape} hold no points: pass at least one.")
    if x.dtype == torch.uint8:
        return x.contiguous()
    if not x.is_floating_point():
        mend = "torch.view_as_real(x).flatten(1)" if x.is_complex() else "x.float()"
        raise TypeError(
            f"points are floating-point numbers, or bytes (uint8) for images, got {x.dtype}: pass {mend}."
        )
    bad = (~x.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(x)} points are not finite, the first of them number {int(bad[0])}: "
            "look for NaN or inf in the data."
        )
    return (x if x.dtype in (torch.float32, torch.float64) else x.float()).contiguous()


def _labels(values: Any) -> Tensor | None:
    """Labels (N,), whole numbers from 0 on."""
    if values is None:
        return None
    if isinstance(values, (Tensor, np.ndarray)):
        labels = _tensor(values, "labels")
    else:
        try:
            labels = torch.as_tensor([int(each) if each == int(each) else each for each in values])
        except (TypeError, ValueError) as error:
            raise TypeError(f"labels are whole numbers (N,), got {_said(values)}") from error
    kinds = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if labels.ndim != 1 or labels.dtype not in kinds:
        raise TypeError(
            f"labels are whole numbers (N,), got {labels.dtype} of shape {tuple(labels.shape)}: number "
            f"the classes 0, 1, 2, ...{' (of one-hot rows, labels.argmax(1))' * (labels.ndim == 2)}"
        )
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"labels are 0, 1, 2, ..., got {int(labels.min())}: number the classes so.")
    return labels.long()


def _said(values: Any) -> str:
    """What was given, and what to do with it."""
    if isinstance(values, (str, os.PathLike)) or (
        isinstance(values, (list, tuple)) and any(isinstance(v, (str, os.PathLike)) for v in values)
    ):
        paths = "a path" if isinstance(values, (str, os.PathLike)) else "a list of words"
        return (
            f"{paths}: pictures in files are opened by open_dataset(DataSettings('folder', path=...)), "
            "and labels are numbered."
        )
    if isinstance(values, list):
        return "a list: torch.as_tensor(...) makes a tensor of numbers."
    more = ": its .to_numpy() is an array." if hasattr(values, "to_numpy") else "."
    return f"a {type(values).__name__}{more}"
