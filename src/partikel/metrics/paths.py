"""How smoothly samples change along paths, such as interpolations of latents: in features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partikel.errors.checks import checked


@dataclass(frozen=True)
class PathSmoothness:
    """Smoothness of paths, means over them.

    Attributes:
        length: perceptual path length: the mean of (K-1) Σ |step|² over paths, in units of the mean
            squared distance of two real samples. A straight path at even speed between ends as far
            apart as those has 1; one that does all of it in a single step has K - 1.
        error: standard error of the length.
        largest: the largest step of a path over the sum of its steps, in [1/(K-1), 1]: how abrupt
            it is, whatever its length.
    """

    length: float
    error: float
    largest: float


@checked
def path_smoothness(features: Tensor, real: Tensor) -> PathSmoothness:
    """Measure paths in the space of features.

    The length is the energy ∫|x'(λ)|² dλ by differences, as the perceptual path length of Karras et
    al. 2019 ("A style-based generator architecture"), at the scale of the steps that are shown.

    Args:
        features: (P, K, D) of K points at even fractions of each path, K >= 2.
        real: (n, D) of real samples, n >= 2, not all the same.

    Raises:
        ValueError: for other shapes, or real samples without any spread.
    """
    if features.ndim != 3 or features.shape[1] < 2 or len(features) == 0:
        raise ValueError(f"paths (P, K, D) of K >= 2 points expected, not {tuple(features.shape)}")
    if real.ndim != 2 or len(real) < 2 or real.shape[1] != features.shape[2]:
        raise ValueError(
            f"real features (n, {features.shape[2]}), n >= 2, expected, not {tuple(real.shape)}"
        )
    between = 2 * float(real.double().var(0).sum())  # E|y - y'|²
    if not between > 0:
        raise ValueError("real samples that are all the same give paths no unit of length")
    steps = features.double().diff(dim=1).square().sum(-1)
    count = steps.shape[1]
    lengths = count * steps.sum(1) / between
    sizes = steps.sqrt()
    whole = sizes.sum(1)
    largest = torch.where(whole > 0, sizes.amax(1) / whole.clamp(min=1e-300), 1 / count)
    spread = float(lengths.std()) if len(lengths) > 1 else float("nan")
    return PathSmoothness(
        float(lengths.mean()), spread / len(lengths) ** 0.5, float(largest.mean())
    )


@checked
def class_changes(labels: Tensor) -> float:
    """How often the class changes from one point to the next, mean over paths.

    Args:
        labels: (P, K) integers, such as a classifier's predictions along each path.

    Raises:
        ValueError: for another shape.
    """
    if labels.ndim != 2 or labels.shape[1] < 2 or len(labels) == 0:
        raise ValueError(f"labels (P, K), K >= 2, expected, not {tuple(labels.shape)}")
    return float((labels.diff(dim=1) != 0).double().sum(1).mean())
