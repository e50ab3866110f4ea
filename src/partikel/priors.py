"""The laws that generation starts from: the latents of a generator, the particles at t = 0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from partikel.errors.checks import Checked, Level, Natural
from partikel.streams import normal
from partikel.tensors import flat_sum


class Prior(Checked, ABC):
    """A law that points can be drawn from.

    Attributes:
        shape: of one sample, without the batch.
        std: standard deviation of all entries.
    """

    shape: tuple[int, ...]
    std: float

    @abstractmethod
    def sample(
        self,
        n: Natural,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw ``n`` independent samples.

        Args:
            n: number of samples.
            generator: source of randomness; the numbers are drawn on its device.
            dtype: torch's default where None.
            device: where the result goes; the generator's device where None.

        Returns:
            (n, *shape).
        """

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """Natural logarithm of the density: (B, *shape) -> (B,).

        Raises:
            ConfigError: for a law that has none.
        """


class GaussianPrior(Prior):
    """N(0, std² I): the particle prior π, or the latent law p_z.

    Args:
        shape: shape of one sample, without the batch.
        std: standard deviation of every entry, positive.

    Raises:
        ConfigError: where ``std`` is not positive.
    """

    def __init__(self, shape: Sequence[Natural], std: Level = 1.0) -> None:
        self.shape = tuple(shape)
        self.std = float(std)

    def sample(
        self,
        n: Natural,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """See :meth:`Prior.sample`."""
        noise = normal(n, *self.shape, generator=generator, dtype=dtype)
        return (noise if self.std == 1 else noise.mul_(self.std)).to(device or generator.device)

    def log_density(self, x: Tensor) -> Tensor:
        """Natural logarithm of the density: (B, *shape) -> (B,)."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"this prior is of points (B, *{self.shape}), got {tuple(x.shape)}")
        entries = math.prod(self.shape)
        return -0.5 * (
            flat_sum((x / self.std) ** 2) + entries * math.log(2 * math.pi * self.std**2)
        )

    def __repr__(self) -> str:
        return f"GaussianPrior(shape={self.shape}, std={self.std})"
