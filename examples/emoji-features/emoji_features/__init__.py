"""64 features of small colour pictures, of a classifier of emoji: ``partikel evaluate --features emoji``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError
from partikel.metrics.features import FeatureNetwork
from partikel.metrics.pretrained import resized
from partikel.networks.weights import read_tensors

WEIGHTS = Path(__file__).with_name("emoji.safetensors")
SIDE = 32
KINDS = 10


class EmojiFeatures(nn.Module):
    """A convolutional classifier, asked for what enters its last nonlinearity, normalised.

    Attributes:
        name: as protocols call it.
        dimension: number of features.
    """

    name = "emoji"
    dimension = 64

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_block(3, 16, 5),
            nn.MaxPool2d(2),
            *_block(16, 32),
            nn.MaxPool2d(2),
            *_block(32, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (SIDE // 8) ** 2, self.dimension, bias=False),
            nn.BatchNorm1d(self.dimension, affine=False),  # kernels on features need a scale
        )
        self.output = nn.Linear(self.dimension, KINDS)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], H = W; other sizes than 32 are resized -> (B, 64)."""
        if images.shape[-1] != SIDE:
            images = resized(images, SIDE).clamp(-1, 1)
        return self.layers(images.to(self.output.weight.dtype)).to(images.dtype)

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the kinds, (B, 10)."""
        return self.output(nn.functional.silu(self(images)))


def emoji(shape: tuple[int, ...] | None, device: torch.device | str) -> FeatureNetwork:
    """The trained network, frozen.

    Args:
        shape: (C, H, W) of the images that it shall measure.
        device: where it runs.

    Raises:
        ConfigError: where these are not square colour images.
        CheckpointError: where the weights are missing or damaged.
    """
    if shape is not None and (len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]):
        raise ConfigError(
            f"the feature network 'emoji' measures square colour images, not {'x'.join(map(str, shape))}: "
            "choose another"
        )
    network = EmojiFeatures()
    state = read_tensors(WEIGHTS, "install emoji-features again.")[0]
    network.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    )
    return network.to(device).eval().requires_grad_(False)


def _block(inputs: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    ]
