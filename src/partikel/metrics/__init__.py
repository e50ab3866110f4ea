"""Measures of samples: pure functions of points, or of the features of images."""

from partikel.metrics.choice import (
    Classifier,
    EnlargedFeatures,
    PixelFeatures,
    default_classifier,
    default_feature_network,
    feature_network,
)
from partikel.metrics.classes import class_statistics, entropy
from partikel.metrics.classifier import ClassifierFeatures, DigitsFeatures, MnistFeatures
from partikel.metrics.distances import (
    BANDWIDTHS,
    energy_distance,
    mmd2,
    pairwise_distances_report,
    sliced_wasserstein2,
    wasserstein2,
)
from partikel.metrics.features import (
    KEPT,
    PRDC,
    FeatureNetwork,
    FeatureSet,
    extract_features,
    frechet_distance,
    kid,
    prdc,
)
from partikel.metrics.modes import ModeStatistics, mode_statistics, negative_log_likelihood
from partikel.metrics.neighbours import Neighbours, memorised, nearest_neighbours
from partikel.metrics.paths import class_changes, path_smoothness
from partikel.metrics.pretrained import PhotographFeatures, photograph_network

__all__ = [
    "BANDWIDTHS",
    "KEPT",
    "PRDC",
    "Classifier",
    "ClassifierFeatures",
    "DigitsFeatures",
    "EnlargedFeatures",
    "FeatureNetwork",
    "FeatureSet",
    "MnistFeatures",
    "ModeStatistics",
    "Neighbours",
    "PhotographFeatures",
    "PixelFeatures",
    "class_changes",
    "class_statistics",
    "default_classifier",
    "default_feature_network",
    "energy_distance",
    "entropy",
    "extract_features",
    "feature_network",
    "frechet_distance",
    "kid",
    "memorised",
    "mmd2",
    "mode_statistics",
    "nearest_neighbours",
    "negative_log_likelihood",
    "pairwise_distances_report",
    "path_smoothness",
    "photograph_network",
    "prdc",
    "sliced_wasserstein2",
    "wasserstein2",
]
