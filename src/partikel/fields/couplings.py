"""How ends of an interpolant's paths are paired: x_0 of the source, x_1 of the data (framework §10)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from partikel.data import Batch
from partikel.errors import ConfigError
from partikel.errors.checks import Checked, Positive
from partikel.priors import GaussianPrior, Prior
from partikel.streams import Streams


class Pairs(NamedTuple):
    """Ends of paths X_t = a x_1 + b x_0."""

    x0: Tensor
    """(B, ...) of the source."""
    x1: Tensor
    """(B, ...) of the data."""
    cond: Tensor | None = None
    """(B,) labels."""


class Coupling(Checked, ABC):
    """A law of pairs.

    Attributes:
        has_score: whether x_0 ~ N(0, I) independently of x_1. Only then do the points of a path have the
            score of noised data; of any other law there is a velocity, and no score.
    """

    has_score: bool = False

    @abstractmethod
    def pairs(self, real: Batch, streams: Streams) -> Pairs:
        """Pairs for a batch of data."""


@dataclass(frozen=True)
class Independent(Coupling):
    """x_0 drawn from the source, whatever x_1 is.

    Args:
        source: N(0, I), or any other law.
    """

    source: Prior

    @property
    def has_score(self) -> bool:  # type: ignore[override]
        """Whether the source is N(0, I)."""
        return isinstance(self.source, GaussianPrior) and self.source.std == 1

    def pairs(self, real: Batch, streams: Streams) -> Pairs:
        """See :meth:`Coupling.pairs`."""
        x0 = self.source.sample(len(real.x), generator=streams.latent, dtype=real.x.dtype)
        return Pairs(x0.to(real.x), real.x, real.cond)


@dataclass(frozen=True)
class OptimalTransport(Coupling):
    """x_0 drawn from the source, then paired within a batch by optimal transport, at the cost ‖x_1 - x_0‖².

    Both marginals stay as they are; the coupling is biased by the batch's size. Points with labels are
    paired within their class, so that the source of each class stays the same.

    Source: Tong et al. 2023; Pooladian et al. 2023.

    Args:
        source: any law.
        blur: ε^½ of an entropic plan, from whose rows x_0 is drawn; None for the exact plan (POT).
    """

    source: Prior
    blur: Positive | None = None

    def pairs(self, real: Batch, streams: Streams) -> Pairs:
        """See :meth:`Coupling.pairs`."""
        x0, x1, cond = Independent(self.source).pairs(real, streams)
        chosen = torch.arange(len(x1), device=x1.device)
        for label in [None] if cond is None else cond.unique():
            rows = chosen if label is None else torch.nonzero(cond == label)[:, 0]
            chosen = chosen.clone()
            chosen[rows] = rows[self.partners(x0[rows], x1[rows], generator=streams.latent)]
        return Pairs(x0[chosen], x1, cond)

    def partners(self, x0: Tensor, x1: Tensor, *, generator: torch.Generator) -> Tensor:
        """(B,) numbers of the x_0 that goes with each x_1.

        Args:
            x0: (B, ...) points of the source.
            x1: (B, ...) points of the data.
            generator: draws from an entropic plan's rows.

        Raises:
            ConfigError: for batches of different sizes, or without POT.
        """
        if len(x0) != len(x1):
            raise ConfigError(
                f"a coupling pairs batches of one size, got {len(x0)} and {len(x1)} points: draw as many."
            )
        try:
            import ot  # slow to import, and only needed here
        except ImportError as error:
            raise ConfigError(
                "optimal transport needs the package POT: pip install 'partikel[transport]'."
            ) from error
        start, end = (x.detach().flatten(1).double() for x in (x0, x1))
        cost = torch.cdist(end, start).square().cpu().numpy()
        if self.blur is None:
            plan = torch.from_numpy(ot.emd(ot.unif(len(cost)), ot.unif(len(cost)), cost))
            return plan.argmax(1).to(x0.device)
        shifted = ot.sinkhorn([], [], cost, self.blur**2, method="sinkhorn_log", warn=False)
        plan = torch.from_numpy(np.asarray(shifted)).to(generator.device)
        return torch.multinomial(plan, 1, generator=generator)[:, 0].to(x0.device)
