"""How ends of an interpolant's paths are paired: x_0 of the source, x_1 of the data (framework §10)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from partikel.data import Batch
from partikel.errors import ConfigError, NumericsError, optional
from partikel.errors.checks import Checked, Positive
from partikel.priors import GaussianPrior, Prior
from partikel.streams import Streams
from partikel.tensors import columns

_SMALL = 1e-6
"""Levels of noise b/a are kept from this to its inverse, where one x_1 is likely, and where all are."""


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

    def expected(self, pairs: Pairs, scale: Tensor, spread: Tensor) -> Pairs:
        """The ends that a path through X = a x_1 + b x_0 is taken to have: those of the pair itself.

        Args:
            pairs: the ends that made X.
            scale: a, (B,) or shaped to broadcast over the ends.
            spread: b, likewise.
        """
        return pairs


@dataclass(frozen=True)
class Independent(Coupling):
    """x_0 drawn from the source, whatever x_1 is.

    Args:
        source: N(0, I), or any other law.
        over_batch: of N(0, I), take for the ends of a path through X their mean over the x_1 of the batch
            (of its class), given X: any of them may have made it. Regressions on what is linear in the
            ends, as flow matching's and MeanFlow's at power 0, keep their mean, and have less noise
            (Rao-Blackwell); the most near t = 0, where any x_1 is as likely.

    Raises:
        ConfigError: for ``over_batch`` of another source.
    """

    source: Prior
    over_batch: bool = False

    def __post_init__(self) -> None:
        """Check that the mean is known."""
        super().__post_init__()
        if self.over_batch and not self.has_score:
            raise ConfigError(
                "the mean over a batch (over_batch) is known of independent noise N(0, I) only: leave it "
                "out, or leave out another source."
            )

    @property
    def has_score(self) -> bool:  # type: ignore[override]
        """Whether the source is N(0, I)."""
        return isinstance(self.source, GaussianPrior) and self.source.std == 1

    def pairs(self, real: Batch, streams: Streams) -> Pairs:
        """See :meth:`Coupling.pairs`."""
        x0 = self.source.sample(len(real.x), generator=streams.latent, dtype=real.x.dtype)
        return Pairs(x0.to(real.x), real.x, real.cond)

    def expected(self, pairs: Pairs, scale: Tensor, spread: Tensor) -> Pairs:
        """See :meth:`Coupling.expected`."""
        if not self.over_batch:
            return pairs
        x0, x1 = pairs.x0.flatten(1), pairs.x1.flatten(1)
        level = columns((spread / scale.clamp(min=_SMALL)).clamp(min=_SMALL))
        # differences, not products: near the data one x_1 is left, and its own noise is small
        exact = "donot_use_mm_for_euclid_dist"
        far = torch.cdist(x1 + level * x0, x1, compute_mode=exact) / level
        if pairs.cond is not None:
            far = far.masked_fill(pairs.cond[:, None] != pairs.cond, torch.inf)
        mean = (-far.square() / 2).softmax(1) @ x1
        start = x0 + (x1 - mean) / level  # X is the same
        return Pairs(start.view_as(pairs.x0), mean.view_as(pairs.x1), pairs.cond)


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
            NumericsError: for points that are not finite.
        """
        if x0.shape != x1.shape:
            raise ConfigError(
                f"a coupling pairs batches of one size, got {tuple(x0.shape)} and {tuple(x1.shape)}: draw as "
                "many points."
            )
        ot = optional("ot", "transport", "optimal transport needs POT")  # slow to import
        start, end = (x.detach().flatten(1).double() for x in (x0, x1))
        cost = torch.cdist(end, start).square().cpu().numpy()
        if not np.isfinite(cost).all():  # POT would pair them somehow
            raise NumericsError(
                "points to pair left the finite numbers: look for NaN or inf in them."
            )
        if not len(cost):  # of which POT crashes
            return torch.arange(0, device=x0.device)
        if self.blur is None:
            plan = torch.from_numpy(ot.emd(ot.unif(len(cost)), ot.unif(len(cost)), cost))
            return plan.argmax(1).to(x0.device)
        shifted = ot.sinkhorn([], [], cost, self.blur**2, method="sinkhorn_log", warn=False)
        plan = torch.from_numpy(np.asarray(shifted)).to(generator.device)
        return torch.multinomial(plan, 1, generator=generator)[:, 0].to(x0.device)
