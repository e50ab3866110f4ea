"""Feature networks by name, and which one suits which images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError
from partikel.errors.checks import checked
from partikel.extensions import Registry
from partikel.metrics import pretrained
from partikel.metrics.classifier import NETWORKS, ClassifierFeatures
from partikel.metrics.features import FeatureNetwork
from partikel.metrics.pretrained import (
    available,
    is_photograph_network,
    photograph_network,
    resized,
)

PIXELS = 1024
"""Most features that pixels make: larger images are shrunk first."""


BACK_PROJECTIONS = 5
"""Of enlarged images: on MNIST at 16x16 the classifier is right on 89% without, 97.5% with them."""


def _features(name: str, found: object) -> _Make:
    """What another package has under the name of a feature network."""
    if not callable(found) or isinstance(found, type):
        raise TypeError("it must be a function of the images' shape and a device")
    return cast(_Make, found)


_Make: TypeAlias = Callable[[tuple[int, ...] | None, torch.device | str], FeatureNetwork]
FEATURES: Registry[type[ClassifierFeatures] | _Make] = Registry(
    "feature network", "features", NETWORKS, _features, ("pixels", *pretrained.NAMES)
)
"""Feature networks that ship, by name, and those of other packages."""


class Classifier(FeatureNetwork, Protocol):
    """A feature network that also says what an image shows."""

    def logits(self, images: Tensor, /) -> Tensor:
        """Images in [-1, 1], (B, C, H, W) -> unnormalised log-probabilities of classes (B, K)."""
        ...


@checked
class PixelFeatures:
    """Pixels as features, of images shrunk to at most :data:`PIXELS` numbers.

    Args:
        shape: (C, H, W) of the images.

    Attributes:
        name: "pixels", and the size that images are shrunk to.
        dimension: number of features.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        channels, side = shape[0], shape[-1]
        while channels * side**2 > PIXELS and side % 2 == 0:
            side //= 2
        self._factor = shape[-1] // side
        self.dimension = int(torch.Size(shape).numel()) // self._factor**2
        self.name = "pixels"
        if self._factor > 1:
            self.name += f" (shrunk to {side}x{side}, averages)"

    def __call__(self, images: Tensor, /) -> Tensor:
        """(B, C, H, W) -> (B, dimension)."""
        if self._factor > 1:
            images = nn.functional.avg_pool2d(images, self._factor)
        return images.flatten(1)


@checked
class EnlargedFeatures(nn.Module):
    """A feature network that sees small images enlarged, undoing averages over squares of pixels.

    Antialiased bicubic interpolation, which blurs, is followed by back-projections (Irani & Peleg
    1991): what the averages of the large image differ by from the small one is enlarged and added.

    Args:
        network: the classifier whose features they are.
        before: height and width of the images.
        after: height and width that the network takes, a multiple.
    """

    def __init__(self, network: ClassifierFeatures, before: int, after: int) -> None:
        super().__init__()
        self.network = network
        self.after = after
        self.factor = after // before
        self.dimension = network.dimension
        how = f"bicubic, {BACK_PROJECTIONS} back-projections"
        self.name = f"{network.name} ({before}x{before} enlarged to {after}x{after}, {how})"
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, before, before) -> (B, dimension)."""
        return self.network(self.enlarged(images))

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, before, before) -> (B, K), the classifier's."""
        return self.network.logits(self.enlarged(images))

    def enlarged(self, images: Tensor) -> Tensor:
        """(B, C, before, before) -> (B, C, after, after) in [-1, 1]."""
        large = resized(images, self.after).clamp(-1, 1)
        for _ in range(BACK_PROJECTIONS):
            missing = images - nn.functional.avg_pool2d(large, self.factor)
            large = (large + resized(missing, self.after)).clamp(-1, 1)
        return large


@checked
def feature_network(
    name: str, shape: tuple[int, ...] | None = None, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """A feature network by name.

    Args:
        name: of a network that ships ("mnist", "digits"), "pixels", or of one for photographs, see
            :mod:`partikel.metrics.pretrained`.
        shape: (C, H, W) of the images that it shall measure, to be checked at once.
        device: where it runs.

    Raises:
        ConfigError: where the name is unknown, an optional package is missing, or the network cannot
            see images of this shape.
        CheckpointError: where its weights are missing or damaged.
    """
    if name == "pixels":
        if shape is None:
            raise ConfigError("'pixels' are the features of images of one shape: name it")
        return PixelFeatures(shape)
    if is_photograph_network(name):
        return photograph_network(name, device)
    kind = FEATURES.find(name)
    if not isinstance(kind, type):
        return kind(shape, device)
    if shape is None or kind.accepts(shape):
        return kind.pretrained(device)
    if _enlarges(kind, shape):
        return EnlargedFeatures(kind.pretrained(device), shape[-1], kind.enlarged[shape[-1]])
    sizes = " or ".join(f"1x{side}x{side}" for side in sorted((*kind.sides, *kind.enlarged)))
    raise ConfigError(
        f"the feature network '{name}' measures images of {sizes}, not of "
        f"{'x'.join(map(str, shape))}: choose another"
    )


@checked
def default_feature_network(
    dataset_name: str, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """The feature network that suits a data set's images and needs no download.

    The one trained on the data set; else that of MNIST for grey images of 16, 28 or 32 pixels; else
    EfficientNet-Lite0 where its packages are installed and the images have 16 pixels a side or more;
    else pixels.

    Args:
        dataset_name: name of the data set.
        shape: (C, H, W) of its images.
        device: where it runs.
    """
    for name in (dataset_name, "mnist"):
        if _measures(name, shape):
            return feature_network(name, shape, device)
    if shape[-1] >= 16 and available("efficientnet-lite0"):
        return photograph_network("efficientnet-lite0", device)
    return PixelFeatures(shape)


@checked
def default_classifier(
    dataset_name: str, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Classifier | None:
    """The classifier that was trained on a data set, or None where none ships.

    Args:
        dataset_name: name of the data set.
        shape: (C, H, W) of its images.
        device: where it runs.
    """
    if not _measures(dataset_name, shape):
        return None
    network = feature_network(dataset_name, shape, device)
    assert isinstance(network, (ClassifierFeatures, EnlargedFeatures))
    return network


def _measures(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a network of this name ships that measures images of this shape."""
    kind = NETWORKS.get(name)
    return kind is not None and (kind.accepts(shape) or _enlarges(kind, shape))


def _enlarges(kind: type[ClassifierFeatures], shape: tuple[int, ...]) -> bool:
    return shape in {(1, side, side) for side in kind.enlarged}
