"""What two draws of the data differ by: below it, a distance does not tell samples from data.

It follows from the number of points and from the data: the unbiased energy distance of two draws is
centred at zero and has a spread that falls as 1/n, a Fréchet distance of features has a bias and a
spread that do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from partikel.data import Dataset
from partikel.errors import ConfigError
from partikel.errors.checks import Natural, Seed, Share, checked
from partikel.metrics.evaluation import choose_features
from partikel.metrics.features import FeatureSet, extract_features, frechet_distance
from partikel.metrics.measures import FRECHET, main_measure
from partikel.streams import seeded

LEVEL = 0.95
"""Of the quantile that is a floor."""
SPLITS = 40
"""Pairs of draws of images whose distances give a quantile."""
CLOUD = 1000
"""Points of the data that the law of the energy distance between draws is computed from."""


@checked
def floor(
    dataset: Dataset,
    n: Natural,
    *,
    level: Share = LEVEL,
    features: str | None = None,
    seed: Seed = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Quantile of the distance between two draws of ``n`` points of the data.

    The distance is the one that the data go by (:func:`partikel.metrics.measures.main_measure`): of points
    the energy distance, of images Fréchet's, between disjoint draws of the training images. Where there
    are fewer than 2n of these, halves of them are compared, and scaled by their number over n.

    Args:
        dataset: points or images.
        n: points of each draw.
        level: of the quantile.
        features: a feature network for images; None chooses one.
        seed: of the draws.
        device: where images are measured.
    """
    measure = main_measure(dataset.shape)
    generator = seeded(seed, "chance", measure.key)
    if measure is not FRECHET:
        cloud = dataset.draw(dataset.at_most(CLOUD), generator=generator).x
        return energy_quantile(cloud, n, n, level, seed)
    pool = dataset.draw(dataset.at_most(2 * n), generator=generator).x
    half = len(pool) // 2
    if half < 2:
        raise ConfigError(
            f"what two draws of '{dataset.name}' differ by takes 4 training images or more, there are "
            f"{len(pool)}."
        )
    network = choose_features(features, dataset, device)
    known = extract_features(network, pool.to(device)).cpu()

    def apart(x: Tensor, y: Tensor) -> float:
        return frechet_distance(*(FeatureSet.of(network, some) for some in (x, y)))

    def draw(_: int, source: torch.Generator) -> Tensor:
        return known[torch.randperm(len(known), generator=source)[: 2 * half]]

    return quantile_between(apart, draw, half, SPLITS, level, generator) * half / n


def quantile_between(
    distance: Callable[[Tensor, Tensor], float],
    draw: Callable[[int, torch.Generator], Tensor],
    n: Natural,
    pairs: Natural,
    level: Share,
    generator: torch.Generator,
) -> float:
    """Quantile of a distance between two draws of ``n`` points, from so many pairs of draws.

    Args:
        distance: of two clouds (n, ...).
        draw: (2n, generator) -> (2n, ...) points, whose halves are compared.
        n: points of a draw.
        pairs: how many distances.
        level: of the quantile.
        generator: source of randomness.
    """
    found = [distance(*draw(2 * n, generator).split(n)) for _ in range(pairs)]
    return float(torch.tensor(found).quantile(level))


@checked
def energy_quantile(cloud: Tensor, n: Natural, m: Natural, level: Share, seed: Seed = 0) -> float:
    """Quantile of the energy distance between n and m draws of one law, given some of its points.

    The unbiased distance is (1/n + 1/m) Σ λ_i (z_i² - 1) in the limit, z_i ~ N(0, 1), with λ_i the
    eigenvalues of the centred kernel -|x - y| (Gretton et al. 2009, "A fast, consistent kernel
    two-sample test"): those of its matrix on the cloud, divided by its size.

    Args:
        cloud: (k, D) points of the law; a thousand do.
        n: points of one sample.
        m: of the other.
        level: in (0, 1).
        seed: of the draws of z.
    """
    kernel = -torch.cdist(cloud, cloud).double()
    kernel = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    largest = torch.linalg.eigvalsh(kernel)[-64:] / len(cloud)
    draws = torch.randn(200_000, len(largest), generator=seeded(seed, "verify", "quantile"))
    null = (draws.square_() - 1) @ largest.float()
    return float(null.quantile(level)) * (1 / n + 1 / m)
