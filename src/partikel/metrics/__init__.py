"""Measures of samples: pure functions of points, or of the features of images."""

from partikel.metrics.classifier import (
    ClassifierFeatures,
    DigitsFeatures,
    MnistFeatures,
    default_feature_network,
    feature_network,
)
from partikel.metrics.distances import (
    BANDWIDTHS,
    EXACT_LIMIT,
    PairwiseReport,
    energy_distance,
    mmd2,
    pairwise_distances_report,
    sliced_wasserstein2,
    wasserstein2,
)
from partikel.metrics.features import (
    PRDC,
    FeatureNetwork,
    FeatureStatistics,
    KernelDistance,
    extract_features,
    frechet_distance,
    kid,
    prdc,
)
from partikel.metrics.modes import ModeStatistics, mode_statistics, negative_log_likelihood

__all__ = [
    "BANDWIDTHS",
    "EXACT_LIMIT",
    "PRDC",
    "ClassifierFeatures",
    "DigitsFeatures",
    "FeatureNetwork",
    "FeatureStatistics",
    "KernelDistance",
    "MnistFeatures",
    "ModeStatistics",
    "PairwiseReport",
    "default_feature_network",
    "energy_distance",
    "extract_features",
    "feature_network",
    "frechet_distance",
    "kid",
    "mmd2",
    "mode_statistics",
    "negative_log_likelihood",
    "pairwise_distances_report",
    "prdc",
    "sliced_wasserstein2",
    "wasserstein2",
]
