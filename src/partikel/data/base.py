"""What a data set is, and the stream of batches that a training loop draws from it.

A data set either draws fresh points from a law for ever, or holds finitely many. Both answer the
same questions. All randomness comes from the generator that is passed; the generator's own state
belongs to the caller, what a stream has to remember beside it is its ``state_dict``.

Several processes share a stream by shards: each draws the numbers of the whole global batch from a
generator in the same state, and takes its rows. So the processes together see what one process
with the global batch would see, row for row, whatever their number.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from partikel.errors import CheckpointError, DataError
from partikel.errors.checks import Checked, Natural
from partikel.targets import Target
from partikel.tensors import check_memory

SPLITS = ("train", "validation", "test")
"""The names of the splits."""

Pair: TypeAlias = tuple[Tensor, Tensor | None]
"""Points, and their labels where there are any."""


@dataclass(frozen=True)
class Batch:
    """Points with their labels."""

    x: Tensor
    """(B, *shape); images are in [-1, 1]."""
    cond: Tensor | None
    """(B,), int64, or None where the data have no labels."""


@dataclass(frozen=True)
class Draws:
    """From where points are drawn, and to where."""

    split: str
    generator: torch.Generator
    device: torch.device | str
    dtype: torch.dtype

    def permutation(self, n: int) -> Tensor:
        """Of 0, ..., n - 1, on the generator's device."""
        return torch.randperm(n, generator=self.generator, device=self.generator.device)


def each(points: Tensor, labels: Tensor | None, do: Callable[[Tensor], Tensor]) -> Pair:
    """The same done with points, and with labels where there are any."""
    return do(points), None if labels is None else do(labels)


class BatchStream(ABC, Iterator[Batch]):
    """An endless iterator over batches of one size, on one device.

    Making a stream does not touch its generator; drawing does. A run that saves the generator's
    state and the stream's ``state_dict`` between two batches, and restores both, continues bit for
    bit. The ``state_dict`` is that of the global batch: the same in every shard.
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


class Dataset(Checked, ABC):
    """A named source of points."""

    name: str
    """What :class:`DataSettings` calls it."""
    shape: tuple[int, ...]
    """Shape of one point: (D,) for vectors, (C, H, W) for images."""
    classes: int | None
    """Number of labels, which are 0, ..., classes - 1; None where there are none."""
    class_names: tuple[str, ...] | None = None
    """What the labels are called, in their order; None where they are numbers only."""
    target: Target | None
    """The exact law, where it is known."""
    sigma_data: float
    """Standard deviation of all entries of all points, taken as one list of numbers: exact for
    fresh points, measured on the training split where the data are finite."""

    def at_most(self, n: int, split: str = "train") -> int:
        """``n``, or how many points the split has where these are fewer: for what nobody asked for.

        Raises:
            ValueError: where ``split`` is not one of :data:`SPLITS`.
        """
        size = self.size(split)
        return n if size is None else min(n, size)

    @abstractmethod
    def size(self, split: str = "train") -> int | None:
        """Number of points of a split, or None where every draw is fresh.

        Raises:
            ValueError: where ``split`` is not one of :data:`SPLITS`.
        """

    def draw(
        self,
        n: Natural,
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
            ConfigError: for more fresh points than memory should hold.
            DataError: where the split has fewer than ``n`` points.
            ValueError: where ``split`` is not one of :data:`SPLITS`.
        """
        _check(split, dtype=dtype)
        return self._draw(n, Draws(split, generator, device or generator.device, dtype))

    def batches(
        self,
        n: int,
        split: str = "train",
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        shard: tuple[int, int] = (0, 1),
    ) -> BatchStream:
        """An endless stream of batches of exactly ``n`` points.

        Finite data come in epochs: each is a permutation of the split drawn from the generator,
        the permutations are laid end to end and cut into pieces of ``n``. So every point appears
        exactly once an epoch, every batch is full, and a batch may hold the last points of one
        epoch and the first of the next.

        Args:
            n: size of the batches (of this process), at least 1.
            split: one of :data:`SPLITS`.
            generator: source of randomness; the numbers are drawn on its device. It must be in the
                same state in all processes that share the batches.
            device: where the batches lie; the generator's device where None.
            dtype: of the points.
            shard: (rank, world): of global batches of n·world points, those numbered rank·n, ...,
                (rank + 1)·n - 1.

        Raises:
            DataError: where the split has fewer than n·world points.
            ValueError: where ``split`` is not one of :data:`SPLITS`, ``n`` is less than 1, or there
                is no such shard.
        """
        _check(split, n, shard, dtype)
        draws = Draws(split, generator, device or generator.device, dtype)
        return self._stream(n * shard[1], slice(shard[0] * n, (shard[0] + 1) * n), draws)

    @abstractmethod
    def _draw(self, n: int, draws: Draws) -> Batch:
        """See :meth:`draw`."""

    @abstractmethod
    def _stream(self, n: int, own: slice, draws: Draws) -> BatchStream:
        """A stream of the process's own rows of global batches of n points; see :meth:`batches`."""

    @abstractmethod
    def fingerprint(self, split: str = "train") -> str:
        """Names the content of a split: what statistics of it can be stored under.

        For finite data the name and a hash of all points, in their order, and labels: it does not
        depend on where they are kept. For fresh points the name of the law.

        Raises:
            ValueError: where ``split`` is not one of :data:`SPLITS`.
        """


def _check(
    split: str,
    n: int = 1,
    shard: tuple[int, int] = (0, 1),
    dtype: torch.dtype = torch.float32,
) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if n < 1:
        raise ValueError(f"a batch has at least 1 point, not {n}")
    rank, world = shard
    if not 0 <= rank < world:
        raise ValueError(f"the shards of {world} processes are 0 to {world - 1}, not {rank}")
    if not dtype.is_floating_point:
        raise ValueError(f"points are floating-point numbers, not {dtype}")


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
        sampler: Callable[[int, torch.Generator, torch.dtype], Pair],
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

    def _draw(self, n: int, draws: Draws) -> Batch:
        check_memory(n, self.shape, draws.dtype.itemsize)
        x, cond = self._sampler(n, draws.generator, draws.dtype)
        return Batch(*each(x, cond, lambda rows: rows.to(draws.device)))

    def _stream(self, n: int, own: slice, draws: Draws) -> BatchStream:
        def draw() -> Batch:
            batch = self._draw(n, draws)
            if own.start == 0 and own.stop == n:  # most are
                return batch
            return Batch(*each(batch.x, batch.cond, lambda rows: rows[own]))

        return _FreshStream(draw)

    def fingerprint(self, split: str = "train") -> str:
        """See :meth:`Dataset.fingerprint`."""
        _check(split)
        return self.name


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
    """Points kept in memory: bytes, which become numbers in [-1, 1] batch by batch, or numbers as they are.

    Args:
        name: what the data set is called.
        points: by split, (N, *shape), uint8 in 0, ..., ``top``, or floating-point numbers.
        labels: by split, (N,), whole numbers; None where there are none.
        top: the byte that becomes 1; 0 becomes -1. Of no meaning for numbers.
        classes: number of labels.
        class_names: what they are called.
        flip: mirror each image of a batch, left to right, with probability ½. What :meth:`draw` and
            :meth:`take` give is never mirrored: it is what models are measured against.
        sigma_data: see :attr:`Dataset.sigma_data`; measured where None.
    """

    top: int | None
    """The byte that becomes 1: neighbouring values of the data are 2/top apart; None of numbers."""
    resident: ClassVar[bool] = True
    """Whether whole splits are copied to the device of the batches, or batches one by one."""

    def __init__(
        self,
        name: str,
        points: Mapping[str, Tensor],
        labels: Mapping[str, Tensor] | None = None,
        *,
        top: int = 255,
        classes: int | None = None,
        class_names: tuple[str, ...] | None = None,
        flip: bool = False,
        sigma_data: float | None = None,
    ) -> None:
        for split in SPLITS:
            rows, number = points.get(split), (labels or {}).get(split)
            held = rows is not None and (rows.dtype == torch.uint8 or rows.is_floating_point())
            if rows is None or not held or rows.ndim < 2 or rows.dtype != points["train"].dtype:
                raise ValueError(
                    f"points are bytes or numbers (N, ...) of each split: not so those of '{split}'"
                )
            if labels is not None and (number is None or len(number) != len(rows)):
                raise ValueError(f"the points of '{split}' have another number of labels")
        self.name = name
        self.shape = tuple(points["train"].shape[1:])
        self.classes = classes
        self.class_names = class_names
        self.target = None
        self.flip = flip
        self.top = None if points["train"].is_floating_point() else top
        self._stored = {
            split: (points[split], None if labels is None else labels[split]) for split in SPLITS
        }
        self._copies: dict[tuple[str, torch.device], Pair] = {}
        self._fingerprints: dict[str, str] = {}
        if sigma_data is None and self.top is None:
            sigma_data = float(points["train"].double().std(correction=0))
        elif sigma_data is None:
            # From the histogram of the bytes: exact, and no float copy of the data is made.
            counts = torch.bincount(points["train"].flatten(), minlength=top + 1)
            shares = counts.double() / counts.sum()
            values = torch.arange(len(shares), dtype=torch.float64) * (2 / top)
            sigma_data = math.sqrt((shares * (values - (shares * values).sum()) ** 2).sum())
        self.sigma_data = sigma_data

    def size(self, split: str = "train") -> int:
        """Number of points of a split."""
        _check(split)
        return len(self._stored[split][0])

    def stored(self, split: str = "train", device: torch.device | str = "cpu") -> Pair:
        """A whole split as it is stored, not to be changed.

        Args:
            split: one of :data:`SPLITS`.
            device: where it lies; a copy is made once and kept.

        Returns:
            Points (N, *shape), as they are kept, and labels (N,) or None.
        """
        _check(split)
        points, labels = self._stored[split]
        device = torch.device(device)
        if device == points.device:
            return points, labels
        if (split, device) not in self._copies:
            self._copies[split, device] = each(points, labels, lambda rows: rows.to(device))
        return self._copies[split, device]

    def take(
        self,
        index: Tensor,
        split: str = "train",
        *,
        mirrored: Tensor | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """The points of a split with the given numbers.

        Args:
            index: (B,), int64.
            split: one of :data:`SPLITS`.
            mirrored: (B,), bool: images to be mirrored left to right; None for none.
            device: where the batch lies.
            dtype: of the points.
        """
        points, labels = self._gather(index, split, torch.device(device))
        if mirrored is not None:
            points = _mirror(points, mirrored.to(points.device))
        x = points.to(dtype)
        if self.top is not None:
            x.div_(self.top / 2).sub_(1)
        return Batch(x, None if labels is None else labels.long())

    def _gather(self, index: Tensor, split: str, device: torch.device) -> Pair:
        """Copies of some points and labels, as they are stored, on a device."""
        try:
            return each(*self.stored(split, device), lambda rows: select(rows, index))
        except IndexError as error:
            raise ValueError(
                f"the {split} split of '{self.name}' has no such point: {error}"
            ) from error

    def _draw(self, n: int, draws: Draws) -> Batch:
        size = self.size(draws.split)
        if n > size:
            raise DataError(
                f"{n} points are more than the {draws.split} split of '{self.name}' has ({size}): "
                f"ask for at most {size}"
            )
        order = draws.permutation(size)
        return self.take(order[:n], draws.split, device=draws.device, dtype=draws.dtype)

    def _stream(self, n: int, own: slice, draws: Draws) -> BatchStream:
        size, mine = self.size(draws.split), own.stop - own.start
        if n > size:
            world = n // mine
            processes = "" if world == 1 else f" for each of {world} processes"
            raise DataError(
                f"a batch of {mine}{processes} is larger than the {draws.split} split of "
                f"'{self.name}' ({size} points): choose a batch of at most {size // world}"
            )
        return _EpochStream(self, n, own, draws)

    def fingerprint(self, split: str = "train") -> str:
        """See :meth:`Dataset.fingerprint`."""
        _check(split)
        if split not in self._fingerprints:
            digests, labels = self._digests(split)
            content = hashlib.blake2b(repr((self.shape, self.top)).encode(), digest_size=16)
            content.update(digests.tobytes())
            if labels is not None:
                content.update(labels.to(torch.int64).numpy().tobytes())
            self._fingerprints[split] = f"{self.name}-{content.hexdigest()}"
        return self._fingerprints[split]

    def _digests(self, split: str) -> tuple[np.ndarray, Tensor | None]:
        """A hash of each point, (N, 16) bytes, and the labels."""
        points, labels = each(*self._stored[split], Tensor.cpu)
        return digests(points.numpy()), labels


class _EpochStream(BatchStream):
    """Permutations of a split, laid end to end and cut into batches."""

    def __init__(self, data: FiniteDataset, n: int, own: slice, draws: Draws) -> None:
        self._data, self._n, self._own, self._draws = data, n, own, draws
        # Points are looked up where they lie.
        self._home = torch.device(draws.device if data.resident else "cpu")
        # An epoch that is over: the first batch begins a new one.
        self._order = torch.empty(0, dtype=torch.int64, device=self._home)
        self._position = 0

    def __next__(self) -> Batch:
        index = self._order[self._position : self._position + self._n]
        self._position += len(index)
        draws = self._draws
        if missing := self._n - len(index):
            self._order = draws.permutation(self._data.size(draws.split)).to(self._home)
            self._position = missing
            index = torch.cat([index, self._order[:missing]])
        mirrored = None
        if self._data.flip:
            source = draws.generator
            mirrored = torch.rand(self._n, generator=source, device=source.device)[self._own] < 0.5
        own, place = index[self._own], draws.device
        return self._data.take(own, draws.split, mirrored=mirrored, device=place, dtype=draws.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        return {"order": self._order.cpu().clone(), "position": torch.tensor(self._position)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        split = self._draws.split
        size = self._data.size(split)
        if set(state) != {"order", "position"}:
            raise CheckpointError(
                f"the checkpoint holds no data order for '{self._data.name}': "
                "resume with the data set that the run was started with"
            )
        order, position = state["order"], int(state["position"])
        if len(order) not in (0, size) or not 0 <= position <= len(order):
            raise CheckpointError(
                f"the checkpoint's data order is for {len(order)} points, but the {split} "
                f"split of '{self._data.name}' has {size}: resume with the data and the split "
                "settings that the run was started with"
            )
        if order.dtype != torch.int64 or not torch.equal(order.sort()[0], torch.arange(len(order))):
            raise CheckpointError(
                f"the checkpoint's data order is none of the {len(order)} points of '{self._data.name}' "
                "(it is damaged): remove it, and the run resumes from the one before."
            )
        # A copy: the checkpoint's tensors stay the caller's.
        self._order = order.to(self._home, torch.int64, copy=True)
        self._position = position


def select(rows: Tensor, index: Tensor) -> Tensor:
    """Copies of some rows, where they lie."""
    if rows.device.type == "cpu":
        # NumPy stays in one thread: waking others costs more than such small copies do.
        return torch.from_numpy(rows.numpy()[index.cpu().numpy()])
    return rows.index_select(0, index.to(rows.device))


def _mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Images (B, C, H, W), which may be changed, with the chosen (B,) mirrored left to right."""
    if images.device.type == "cpu":
        values, which = images.numpy(), chosen.numpy()
        values[which] = values[which][..., ::-1]
        return images
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)  # no waiting


def digests(points: np.ndarray) -> np.ndarray:
    """A hash of each of the points (N, ...): (N, 16), uint8."""
    rows = (hashlib.blake2b(point.tobytes(), digest_size=16) for point in points)
    joined = b"".join(row.digest() for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(len(points), 16)


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
