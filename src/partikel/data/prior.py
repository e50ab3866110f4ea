"""A data set as the law that particles start from: flows from one data set to another."""

from __future__ import annotations

import torch
from torch import Tensor

from partikel.data.base import SPLITS, Dataset, FiniteDataset
from partikel.errors import ConfigError
from partikel.errors.checks import Natural, checked
from partikel.priors import Prior


class DataPrior(Prior):
    """The points of a data set, as a prior: moons to Gaussians, one class of digits to another.

    Args:
        dataset: the data; of finite ones the training points are drawn, again and again.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.shape, self.std = tuple(dataset.shape), dataset.sigma_data

    def sample(
        self,
        n: Natural,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """See :meth:`Prior.sample`."""
        dtype, device = dtype or torch.get_default_dtype(), device or generator.device
        most = self.dataset.at_most(max(n, 1))
        parts = [
            self.dataset.draw(
                min(most, n - first), generator=generator, device=device, dtype=dtype
            ).x
            for first in range(0, n, most)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, *self.shape, dtype=dtype)

    def __deepcopy__(self, memo: object) -> DataPrior:
        """The same: averages of a model's weights need no second copy of its data."""
        return self

    def log_density(self, x: Tensor) -> Tensor:
        """None is known.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"particles that start at the data '{self.dataset.name}' have no density to begin with: "
            "measure the samples ('partikel evaluate'), or start from a Gaussian."
        )


@checked
def one_class(dataset: Dataset, label: int) -> Dataset:
    """The points of one class, without labels.

    Args:
        dataset: finite data with labels.
        label: the class.

    Raises:
        ConfigError: for other data, or a class without training points.
    """
    if not isinstance(dataset, FiniteDataset) or dataset.classes is None:
        raise ConfigError(
            f"'{dataset.name}' is no finite data with labels: it has no classes to take."
        )
    points: dict[str, Tensor] = {}
    for split in SPLITS:
        rows, labels = dataset.stored(split)
        assert labels is not None
        points[split] = rows[labels == label]
    if not len(points["train"]):
        raise ConfigError(f"'{dataset.name}' has classes 0 to {dataset.classes - 1}, not {label}.")
    return FiniteDataset(f"{dataset.name} {label}", points, top=dataset.top or 255)
