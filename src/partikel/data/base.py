"""What a data set is, and the stream of batches that a training loop draws from it.

A data set either draws fresh points from a law for ever, or holds finitely many in memory. Both
answer the same questions. All randomness comes from the generator that is passed; the generator's
own state belongs to the caller, what a stream has to remember beside it is its ``state_dict``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from partikel.errors import CheckpointError, DataError
from partikel.targets import Target

SPLITS = ("train", "validation", "test")
"""The names of the splits."""


@dataclass(frozen=True)
class Batch:
    """Points with their labels."""

    x: Tensor
    """(B, *shape); images are in [-1, 1]."""
    cond: Tensor | None
    """(B,), int64, or None where the data have no labels."""


class BatchStream(ABC, Iterator[Batch]):
    """An endless iterator over batches of one size, on one device.

    Making a stream does not touch its generator; drawing does. A run that saves the generator's
    state and the stream's ``state_dict`` between two batches, and restores both, continues bit for
    bit.
    """

    def __iter__(self) -> BatchStream:
        return self

    @abstractmethod
    def __next__(self) -> Batch:
        """The next batch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What has to be saved beside the generator's state; tensors on the CPU."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where the stream that gave ``state`` stood.

        Raises:
            CheckpointError: where ``state`` is of another kind of data or of another split.
        """


class Dataset(ABC):
    """A named source of points."""

    name: str
    """What :class:`DataSettings` calls it."""
    shape: tuple[int, ...]
    """Shape of one point: (D,) for vectors, (C, H, W) for images."""
    classes: int | None
    """Number of labels, which are 0, ..., classes - 1; None where there are none."""
    target: Target | None
    """The exact law, where it is known."""
    sigma_data: float
    """Standard deviation of all entries of all points, taken as one list of numbers: exact for
    fresh points, measured on the training split where the data are finite."""

    @abstractmethod
    def size(self, split: str = "train") -> int | None:
        """Number of points of a split, or None where every draw is fresh.

        Raises:
            ValueError: where ``split`` is not one of :data:`SPLITS`.
        """

    @abstractmethod
    def draw(
        self,
        n: int,
        split: str = "train",
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """Draw ``n`` points: fresh ones, or ``n`` distinct ones where the data are finite.

        Args:
            n: number of points.
            split: one of :data:`SPLITS`.
            generator: source of randomness; the numbers are drawn on its device.
            device: where the batch lies; the generator's device where None.
            dtype: of the points.

        Raises:
            DataError: where the split has fewer than ``n`` points.
            ValueError: where ``split`` is not one of :data:`SPLITS`.
        """

    @abstractmethod
    def batches(
        self,
        n: int,
        split: str = "train",
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> BatchStream:
        """An endless stream of batches of exactly ``n`` points.

        Finite data come in epochs: each is a permutation of the split drawn from the generator,
        the permutations are laid end to end and cut into pieces of ``n``. So every point appears
        exactly once an epoch, every batch is full, and a batch may hold the last points of one
        epoch and the first of the next.

        Args:
            n: size of the batches, at least 1.
            split: one of :data:`SPLITS`.
            generator: source of randomness; the numbers are drawn on its device.
            device: where the batches lie; the generator's device where None.
            dtype: of the points.

        Raises:
            DataError: where the split has fewer than ``n`` points.
            ValueError: where ``split`` is not one of :data:`SPLITS`, or ``n`` is less than 1.
        """


def _check(split: str, n: int = 1) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if n < 1:
        raise ValueError(f"a batch has at least 1 point, not {n}")


class SyntheticDataset(Dataset):
    """Fresh points of a law; the splits differ only by the generators they are drawn with.

    Args:
        name: what the data set is called.
        sampler: called as ``sampler(n, generator, dtype)``, returns points (n, *shape) and labels
            (n,) or None, on the generator's device.
        shape: shape of one point.
        sigma_data: see :attr:`Dataset.sigma_data`.
        classes: number of labels.
        target: the exact law, where it is known.
    """

    def __init__(
        self,
        name: str,
        sampler: Callable[[int, torch.Generator, torch.dtype], tuple[Tensor, Tensor | None]],
        *,
        shape: tuple[int, ...],
        sigma_data: float,
        classes: int | None = None,
        target: Target | None = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.classes = classes
        self.target = target
        self.sigma_data = sigma_data
        self._sampler = sampler

    def size(self, split: str = "train") -> None:
        """None: every draw is fresh."""
        _check(split)

    def draw(
        self,
        n: int,
        split: str = "train",
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """See :meth:`Dataset.draw`."""
        _check(split)
        x, cond = self._sampler(n, generator, dtype)
        if device is None:
            return Batch(x, cond)
        return Batch(x.to(device), None if cond is None else cond.to(device))

    def batches(
        self,
        n: int,
        split: str = "train",
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> BatchStream:
        """See :meth:`Dataset.batches`."""
        _check(split, n)
        return _FreshStream(
            lambda: self.draw(n, split, generator=generator, device=device, dtype=dtype)
        )


class _FreshStream(BatchStream):
    """Independent draws: nothing to remember but the generator."""

    def __init__(self, draw: Callable[[], Batch]) -> None:
        self._draw = draw

    def __next__(self) -> Batch:
        return self._draw()

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise CheckpointError(
                "the checkpoint's data order is of finite data, but this run draws fresh points: "
                "resume with the data set that the run was started with"
            )


class FiniteDataset(Dataset):
    """Points kept in memory as bytes, converted to [-1, 1] batch by batch.

    Args:
        name: what the data set is called.
        points: by split, (N, *shape), uint8 in 0, ..., ``top``.
        labels: by split, (N,), uint8; None where there are none.
        top: the byte that becomes 1; 0 becomes -1.
        classes: number of labels.
    """

    def __init__(
        self,
        name: str,
        points: Mapping[str, Tensor],
        labels: Mapping[str, Tensor] | None = None,
        *,
        top: int = 255,
        classes: int | None = None,
    ) -> None:
        self.name = name
        self.shape = tuple(points["train"].shape[1:])
        self.classes = classes
        self.target = None
        self._top = top
        self._stored = {
            split: (points[split], None if labels is None else labels[split]) for split in SPLITS
        }
        self._copies: dict[tuple[str, torch.device], tuple[Tensor, Tensor | None]] = {}
        # From the histogram of the bytes: exact, and no float copy of the data is made.
        counts = torch.bincount(points["train"].flatten(), minlength=top + 1)
        shares = counts.double() / counts.sum()
        values = torch.arange(len(shares), dtype=torch.float64) * (2 / top)
        self.sigma_data = math.sqrt((shares * (values - (shares * values).sum()) ** 2).sum())

    def size(self, split: str = "train") -> int:
        """Number of points of a split."""
        _check(split)
        return len(self._stored[split][0])

    def stored(
        self, split: str = "train", device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor | None]:
        """A whole split as it is stored, not to be changed.

        Args:
            split: one of :data:`SPLITS`.
            device: where it lies; a copy is made once and kept.

        Returns:
            Points (N, *shape) and labels (N,) or None, uint8.
        """
        _check(split)
        points, labels = self._stored[split]
        device = torch.device(device)
        if device == points.device:
            return points, labels
        if (split, device) not in self._copies:
            self._copies[split, device] = (
                points.to(device),
                None if labels is None else labels.to(device),
            )
        return self._copies[split, device]

    def take(
        self,
        index: Tensor,
        split: str = "train",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """The points of a split with the given numbers.

        Args:
            index: (B,), int64.
            split: one of :data:`SPLITS`.
            device: where the batch lies.
            dtype: of the points.
        """
        points, labels = self.stored(split, device)
        index = index.to(points.device)
        x = points.index_select(0, index).to(dtype).div_(self._top / 2).sub_(1)
        return Batch(x, None if labels is None else labels.index_select(0, index).long())

    def draw(
        self,
        n: int,
        split: str = "train",
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """See :meth:`Dataset.draw`."""
        size = self.size(split)
        if n > size:
            raise DataError(
                f"{n} points are more than the {split} split of '{self.name}' has ({size}): "
                f"ask for at most {size}"
            )
        order = torch.randperm(size, generator=generator, device=generator.device)
        return self.take(order[:n], split, device=device or generator.device, dtype=dtype)

    def batches(
        self,
        n: int,
        split: str = "train",
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> BatchStream:
        """See :meth:`Dataset.batches`."""
        _check(split, n)
        size = self.size(split)
        if n > size:
            raise DataError(
                f"a batch of {n} is larger than the {split} split of '{self.name}' ({size} "
                f"points): choose a batch of at most {size}"
            )
        return _EpochStream(self, n, split, generator, device or generator.device, dtype)


class _EpochStream(BatchStream):
    """Permutations of a split, laid end to end and cut into batches."""

    def __init__(
        self,
        data: FiniteDataset,
        n: int,
        split: str,
        generator: torch.Generator,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self._data = data
        self._n = n
        self._split = split
        self._generator = generator
        self._device = torch.device(device)
        self._dtype = dtype
        # An epoch that is over: the first batch begins a new one.
        self._order = torch.empty(0, dtype=torch.int64, device=self._device)
        self._position = 0

    def __next__(self) -> Batch:
        index = self._order[self._position : self._position + self._n]
        self._position += len(index)
        if missing := self._n - len(index):
            source = self._generator
            order = torch.randperm(
                self._data.size(self._split), generator=source, device=source.device
            )
            self._order = order.to(self._device)
            self._position = missing
            index = torch.cat([index, self._order[:missing]])
        return self._data.take(index, self._split, device=self._device, dtype=self._dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return {"order": self._order.cpu().clone(), "position": torch.tensor(self._position)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        size = self._data.size(self._split)
        if set(state) != {"order", "position"}:
            raise CheckpointError(
                f"the checkpoint holds no data order for '{self._data.name}': "
                "resume with the data set that the run was started with"
            )
        order, position = state["order"], int(state["position"])
        if len(order) not in (0, size) or not 0 <= position <= len(order):
            raise CheckpointError(
                f"the checkpoint's data order is for {len(order)} points, but the {self._split} "
                f"split of '{self._data.name}' has {size}: resume with the data and the split "
                "settings that the run was started with"
            )
        # A copy: the checkpoint's tensors stay the caller's.
        self._order = order.to(self._device, torch.int64, copy=True)
        self._position = position


def split_indices(count: int, shares: Mapping[str, float], seed: int) -> dict[str, Tensor]:
    """Part 0, ..., count - 1 into disjoint splits at random.

    Args:
        count: number of points.
        shares: by split, in the order in which they are dealt out, the share of all points each
            gets, rounded to whole points; "train" gets the rest.
        seed: the same seed gives the same splits, whatever else happens.

    Returns:
        By split, the numbers of its points, int64.
    """
    # NumPy freezes the numbers that RandomState draws; torch does not promise to keep a permutation
    # from one version to the next, and a split that moves under a saved run leaks test data.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count).astype(np.int64))
    parts: dict[str, Tensor] = {}
    start = 0
    for split, share in shares.items():
        stop = start + round(share * count)
        parts[split] = order[start:stop]
        start = stop
    parts["train"] = order[start:]
    return parts
