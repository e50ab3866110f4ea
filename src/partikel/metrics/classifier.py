"""Small classifiers whose inner features tell handwritten digits apart: feature networks that ship.

Inception's features, made for photographs, say little about grey digits; these are trained on the
very data (``scripts/train_mnist_features.py``). Accuracy on held-out images, seed and command stand
in the JSON file beside the weights. Features are what enters the last nonlinearity: standardised
over the training images, and not rectified, so nearer to the Gaussians that a Fréchet distance
supposes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from partikel.errors import CheckpointError
from partikel.networks.weights import read_tensors

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the weights, NAME_features.safetensors, each with a JSON file that describes it."""

CLASSES = 10

Net = TypeVar("Net", bound="ClassifierFeatures")


class ClassifierFeatures(nn.Module, ABC):
    """A convolutional classifier of ten digits, asked for its penultimate features.

    Subclasses say for which images, and of what layers. A network made by the constructor is
    untrained; :meth:`pretrained` gives one with the weights that ship.

    Attributes:
        name: see :class:`FeatureNetwork`.
        dimension: number of features.
        side: height and width that the layers are made for.
        sides: heights and widths accepted; larger images are cropped at their centre.
        enlarged: what other images have to be enlarged to, by their height and width.
    """

    name: str
    dimension: int
    side: int
    sides: tuple[int, ...]
    enlarged: Mapping[int, int] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        # The last normalisation gives every feature mean 0 and variance 1 over the training images:
        # kernels on features need a scale.
        self.layers = nn.Sequential(*self._layers(), nn.BatchNorm1d(self.dimension, affine=False))
        self.output = nn.Linear(self.dimension, CLASSES)

    @abstractmethod
    def _layers(self) -> list[nn.Module]:
        """From images (B, 1, side, side) to (B, dimension), not yet normalised."""

    @classmethod
    def accepts(cls, shape: tuple[int, ...]) -> bool:
        """Whether images of this shape (C, H, W) can be measured."""
        return shape in {(1, side, side) for side in cls.sides}

    @classmethod
    def pretrained(cls: type[Net], device: torch.device | str = "cpu") -> Net:
        """The trained network, frozen and in eval mode; draws no random numbers.

        Raises:
            CheckpointError: where the weights are missing or damaged.
        """
        path = WEIGHTS / f"{cls.name}_features.safetensors"
        with torch.device("meta"):
            network = cls()
        state = read_tensors(path, "install partikel again.")[0]
        try:
            network.load_state_dict(
                {k: v.float() if v.is_floating_point() else v for k, v in state.items()},
                assign=True,
            )
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights of the feature network '{cls.name}' cannot be read from {path} "
                f"({type(error).__name__}): install partikel again"
            ) from error
        return network.to(device).eval().requires_grad_(False)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """What is known of the shipped weights: accuracy, seed, epochs, data, command."""
        return json.loads((WEIGHTS / f"{cls.name}_features.json").read_text(encoding="utf-8"))

    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: (B, 1, side, side) in [-1, 1], or larger ones of ``sides``.

        Returns:
            (B, dimension), in the dtype of the images.

        Raises:
            ValueError: for images of another shape.
        """
        if not self.accepts(tuple(images.shape[1:])):
            raise ValueError(
                f"{self.name} features are of images (B, 1, H, W) with H = W in {self.sides}, not "
                f"{tuple(images.shape)}"
            )
        margin = (images.shape[-1] - self.side) // 2
        inner = images[..., margin : margin + self.side, margin : margin + self.side]
        return self.layers(inner.to(self.output.weight.dtype)).to(images.dtype)

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the classes, (B, 10); images as in :meth:`forward`."""
        features = self(images).to(self.output.weight.dtype)
        return self.output(nn.functional.silu(features)).to(images.dtype)


class MnistFeatures(ClassifierFeatures):
    """64 features of 28x28 grey images; 32x32 are taken for 28x28 with a margin of 2.

    16x16 are taken for 32x32 with every square of four averaged.
    """

    name = "mnist"
    dimension = 64
    side = 28
    sides = (28, 32)
    enlarged = MappingProxyType({16: 32})

    def _layers(self) -> list[nn.Module]:
        return [
            *_block(1, 16, kernel=5),
            nn.MaxPool2d(2),
            *_block(16, 32),
            nn.MaxPool2d(2),
            *_block(32, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, self.dimension, bias=False),
        ]


class DigitsFeatures(ClassifierFeatures):
    """32 features of the 8x8 digits of scikit-learn."""

    name = "digits"
    dimension = 32
    side = 8
    sides = (8,)

    def _layers(self) -> list[nn.Module]:
        return [
            *_block(1, 16),
            *_block(16, 32),
            *_block(32, 32, stride=2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, self.dimension, bias=False),
        ]


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    ]


NETWORKS: dict[str, type[ClassifierFeatures]] = {
    network.name: network for network in (MnistFeatures, DigitsFeatures)
}
"""The feature networks that ship, by name."""
