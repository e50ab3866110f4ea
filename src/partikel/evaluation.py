"""Evaluation: figures with their protocol, beside those of the data against itself.

For points: energy distance, MMD², sliced and exact W2, and for mixtures the modes. For images: a
Fréchet distance, KID and precision/recall/density/coverage on a named feature network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from partikel.data import Dataset
from partikel.errors import ConfigError
from partikel.metrics import (
    BANDWIDTHS,
    FeatureNetwork,
    FeatureStatistics,
    default_feature_network,
    extract_features,
    feature_network,
    frechet_distance,
    kid,
    mode_statistics,
    negative_log_likelihood,
    pairwise_distances_report,
    prdc,
    sliced_wasserstein2,
    wasserstein2,
)
from partikel.streams import derive_seed
from partikel.targets import GaussianMixture

Sampler = Callable[[int, torch.Generator], Tensor]
"""(n, generator) -> (n, ...) samples."""

EXACT_W2_POINTS = 2000
"""Points of each cloud for the exact W2, whose cost grows as the cube of their number."""


@dataclass(frozen=True)
class Evaluation:
    """Figures and what they mean.

    Attributes:
        metrics: name -> value for the model's samples.
        reference: the same figures for a second, independent draw of the data.
        protocol: number of samples, seed, reference split, features.
    """

    metrics: dict[str, float]
    reference: dict[str, float]
    protocol: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class PixelFeatures:
    """Pixels as features: what is left where no feature network fits the images.

    Args:
        shape: (C, H, W) of the images.
    """

    name = "pixels"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.dimension = int(torch.Size(shape).numel())

    def __call__(self, images: Tensor, /) -> Tensor:
        """(B, C, H, W) -> (B, C·H·W)."""
        return images.flatten(1)


def choose_features(name: str | None, dataset: Dataset) -> FeatureNetwork:
    """The feature network for a data set's images.

    Args:
        name: a shipped network, "pixels", or None for the data set's own network, else that of MNIST
            where it can see the images, else pixels.
        dataset: images.

    Raises:
        ConfigError: for an unknown name, or images that the network cannot see.
    """
    if name == "pixels":
        return PixelFeatures(dataset.shape)
    if name is not None:
        return feature_network(name, dataset.shape)
    own = default_feature_network(dataset.name, dataset.shape)
    return own or default_feature_network("mnist", dataset.shape) or PixelFeatures(dataset.shape)


def evaluate(
    sampler: Sampler,
    dataset: Dataset,
    *,
    n: int = 10_000,
    seed: int = 0,
    split: str = "test",
    features: str | None = None,
) -> Evaluation:
    """Measure samples against a split of the data, and the data against themselves.

    Args:
        sampler: draws the model's samples.
        dataset: points or images.
        n: samples, and reference points; images are capped by the size of the split.
        seed: of samples and reference.
        split: reference split; the data-vs-data row compares it with as many training points.
        features: a feature network for images; None chooses one.

    Returns:
        The figures.

    Raises:
        ConfigError: for impossible numbers or features.
    """
    if n < 2:
        raise ConfigError(f"an evaluation compares at least 2 samples, got n = {n}.")
    size = dataset.size(split)
    n = n if size is None else min(n, size)
    reference = dataset.draw(n, split, generator=_generator(seed, "reference")).x
    samples = sampler(n, _generator(seed, "samples"))
    other_split = "train"
    others = dataset.size(other_split)
    m = n if others is None else min(n, others)
    second = dataset.draw(m, other_split, generator=_generator(seed, "second")).x
    protocol: dict[str, Any] = {
        "data": dataset.name,
        "samples": n,
        "split": split,
        "seed": seed,
        "reference": f"{m} points of the data ({other_split}) in the samples' place",
    }
    if len(dataset.shape) == 1:
        protocol |= {
            "mmd2": f"unbiased, mean of RBF kernels of σ in {list(BANDWIDTHS)}",
            "energy": "2E|x-y| - E|x-x'| - E|y-y'|, unbiased",
            "sliced_w2": "root of the mean squared W2 over 512 fixed projections",
            "w2": f"exact, {min(n, EXACT_W2_POINTS)} points",
        }
        return Evaluation(
            point_metrics(samples, reference, dataset),
            point_metrics(second, reference, dataset),
            protocol,
        )
    network = choose_features(features, dataset)
    protocol |= {"features": network.name, "dimension": network.dimension}
    return Evaluation(
        image_metrics(samples, reference, network, seed),
        image_metrics(second, reference, network, seed),
        protocol,
    )


def quick_evaluation(
    sampler: Sampler, dataset: Dataset, *, n: int, seed: int = 0
) -> dict[str, float]:
    """The one or two figures worth watching during training, on the validation split.

    Args:
        sampler: draws the model's samples.
        dataset: points or images.
        n: samples.
        seed: of samples and reference; the same at each call, so that curves are smooth.

    Returns:
        "energy" (and "modes" for mixtures) of points, "frechet" of images.
    """
    size = dataset.size("validation")
    n = n if size is None else min(n, size)
    reference = dataset.draw(n, "validation", generator=_generator(seed, "watched reference")).x
    samples = sampler(n, _generator(seed, "watched samples"))
    if len(dataset.shape) > 1:
        network = choose_features(None, dataset)
        return {"frechet": _frechet(samples, reference, network)}
    report = pairwise_distances_report(samples, reference)
    figures = {"energy": report.energy}
    if isinstance(dataset.target, GaussianMixture):
        target = dataset.target
        figures["modes"] = mode_statistics(
            samples, target.means, target.stds, target.weights
        ).covered
    return figures


def point_metrics(samples: Tensor, reference: Tensor, dataset: Dataset) -> dict[str, float]:
    """All figures of points (n, D) against a reference (m, D)."""
    distances = pairwise_distances_report(samples, reference)
    few = slice(None, EXACT_W2_POINTS)
    figures = {
        "energy": distances.energy,
        "mmd2": distances.mmd2,
        "sliced_w2": sliced_wasserstein2(samples, reference),
        "w2": wasserstein2(samples[few], reference[few]),
    }
    target = dataset.target
    if isinstance(target, GaussianMixture):
        modes = mode_statistics(samples, target.means, target.stds, target.weights)
        figures |= {
            "modes": modes.covered,
            "within_3sigma": modes.within_3sigma,
            "mode_tv": modes.total_variation,
        }
    if target is not None:
        figures["nll"] = negative_log_likelihood(samples, target)
    return figures


def image_metrics(
    samples: Tensor, reference: Tensor, network: FeatureNetwork, seed: int
) -> dict[str, float]:
    """All figures of images (n, C, H, W) in [-1, 1] against a reference."""
    fake = extract_features(network, samples)
    real = extract_features(network, reference)
    subset = min(1000, len(fake), len(real))
    distance = kid(
        fake.double(), real.double(), subset_size=subset, generator=_generator(seed, "kid")
    )
    quality = prdc(real, fake)
    return {
        "frechet": frechet_distance(_statistics(network, fake), _statistics(network, real)),
        "kid": distance.mean,
        "precision": quality.precision,
        "recall": quality.recall,
        "density": quality.density,
        "coverage": quality.coverage,
    }


def _frechet(samples: Tensor, reference: Tensor, network: FeatureNetwork) -> float:
    fake, real = extract_features(network, samples), extract_features(network, reference)
    return frechet_distance(_statistics(network, fake), _statistics(network, real))


def _statistics(network: FeatureNetwork, features: Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(network.name, network.dimension)
    statistics.update(features)
    return statistics


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "evaluation", purpose))
