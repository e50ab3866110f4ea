"""What a run keeps of its data, so that its model can be built and sampled without them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

from partikel.data.base import Batch, BatchStream, Dataset, Draws
from partikel.errors import DataError
from partikel.targets import Target


class KnownData(Dataset):
    """A data set of which shape, labels and scale are known; it is opened when asked for more.

    Args:
        name: see :class:`Dataset`, as the next three.
        shape: of one point.
        classes: number of labels.
        sigma_data: standard deviation of all entries.
        shares: (K,) of the classes, where a conditional model was trained on them.
        class_names: of the labels; None where the run does not say.
        find: opens the data.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        classes: int | None,
        sigma_data: float,
        shares: torch.Tensor | None,
        find: Callable[[], Dataset],
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        self.name, self.shape, self.classes = name, shape, classes
        self.sigma_data, self.shares = sigma_data, shares
        self.class_names = class_names
        self._find = find

    @cached_property
    def opened(self) -> Dataset:
        """The data themselves.

        Raises:
            DataError: where they are not there, or are others now.
        """
        found = self._find()
        if found.shape != self.shape or found.classes != self.classes:
            raise DataError(
                f"the data of this run had shape {self.shape} and {self.classes or 'no'} classes, but "
                f"'{found.name}' now has shape {found.shape} and {found.classes or 'no'} classes: give "
                "the run the data it was trained on."
            )
        return found

    @property
    def target(self) -> Target | None:  # type: ignore[override]
        """See :attr:`Dataset.target`."""
        return self.opened.target

    def size(self, split: str = "train") -> int | None:
        """See :meth:`Dataset.size`."""
        return self.opened.size(split)

    def fingerprint(self, split: str = "train") -> str:
        """See :meth:`Dataset.fingerprint`."""
        return self.opened.fingerprint(split)

    def _draw(self, n: int, draws: Draws) -> Batch:
        return self.opened._draw(n, draws)

    def _stream(self, n: int, own: slice, draws: Draws) -> BatchStream:
        return self.opened._stream(n, own, draws)
