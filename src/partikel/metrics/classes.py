"""How samples spread over classes, by a classifier's predictions: mode collapse as a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from partikel.errors.checks import checked

HELD_SHARE = 0.1
"""A class counts as held from this part of its fair share of samples on."""


@dataclass(frozen=True)
class ClassStatistics:
    """How samples spread over classes.

    Attributes:
        shares: share of the samples in each class.
        entropy: of the shares, in nats; at most log K.
        effective: e^entropy, the number of equal classes with this entropy, in [1, K].
        held: classes that hold at least a tenth of their fair share.
        classes: number of classes K.
    """

    shares: tuple[float, ...]
    entropy: float
    effective: float
    held: int
    classes: int


@checked
def class_statistics(
    labels: Tensor, classes: int, weights: Tensor | Sequence[float] | None = None
) -> ClassStatistics:
    """Count samples by class.

    Args:
        labels: (n,) integers in [0, classes), such as a classifier's predictions.
        classes: K.
        weights: (K,) the data's shares; equal where None.

    Raises:
        ValueError: for no samples, or labels that are not such integers.
    """
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point():
        raise ValueError(f"labels (n,) of whole numbers expected, not {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in [0, {classes})")
    shares = torch.bincount(labels.cpu(), minlength=classes).double() / len(labels)
    fair = torch.ones(classes) if weights is None else torch.as_tensor(weights).cpu()
    fair = fair.double() / fair.double().sum()
    value = entropy(shares)
    return ClassStatistics(
        shares=tuple(shares.tolist()),
        entropy=value,
        effective=math.exp(value),
        held=int((shares >= HELD_SHARE * fair).sum()),
        classes=classes,
    )


@checked
def entropy(shares: Tensor | Sequence[float]) -> float:
    """-Σ q log q of shares, in nats, with 0 log 0 = 0.

    Args:
        shares: (K,), not negative and not all 0; they are divided by their sum.

    Raises:
        ValueError: for other shares.
        ConfigError: for a list of numbers that are not finite.
    """
    q = torch.as_tensor(shares, dtype=torch.float64)
    if q.ndim != 1 or not (q >= 0).all() or not q.sum() > 0:
        raise ValueError("an entropy is of shares (K,) that are not negative and not all 0")
    return float(torch.special.entr(q / q.sum()).sum())
