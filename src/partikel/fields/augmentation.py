"""Augmentation of what a discriminator sees, differentiable and of adaptive strength.

A discriminator of few data remembers them. Random transformations T of real and generated images
alike take that away without leaking into what is generated, as long as gradients pass through them:
particles then ascend E_T c(d(Tx)) (DiffAugment, Zhao et al. 2020). How often they are made can follow
how much the discriminator overfits (ADA, Karras et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError, nearest
from partikel.errors.checks import Checked, Positive, Range, Share

Transformation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""(images (B, C, H, W), generator) -> images, each transformed at random by itself."""

SHIFT = 1 / 8
"""Largest translation, as a share of the side."""

HOLE = 1 / 2
"""Side of the square that is cut out, as a share of the image's."""

INTERVAL = 4
"""Batches between two moves of an adaptive probability."""

CEILING = 0.99
"""Largest adaptive probability: some images must stay as they are, or what T loses is lost."""


def brighten(x: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness: x + b, b ~ U[-½, ½]."""
    return x + (_uniform(x, generator) - 0.5)


def saturate(x: Tensor, generator: torch.Generator) -> Tensor:
    """Saturation: m + s (x - m), m the mean of a pixel's channels, s ~ U[0, 2]."""
    mean = x.mean(1, keepdim=True)
    return mean + 2 * _uniform(x, generator) * (x - mean)


def contrast(x: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast: m + c (x - m), m the mean of the image, c ~ U[½, 3/2]."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (_uniform(x, generator) + 0.5) * (x - mean)


def translate(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move by whole pixels, up to an eighth of each side, over a ground of zeros."""
    for dim in (2, 3):
        side = x.shape[dim]
        reach = round(side * SHIFT)
        shift = _integer(x, -reach, reach + 1, generator)
        source = _along(torch.arange(side, device=x.device), dim) - shift
        moved = x.gather(dim, source.clamp(0, side - 1).expand_as(x))
        x = torch.where((source >= 0) & (source < side), moved, 0)
    return x


def cut_out(x: Tensor, generator: torch.Generator) -> Tensor:
    """Set to zero a square of half the side, centred anywhere in the image."""
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    for dim in (2, 3):
        side = x.shape[dim]
        width = round(side * HOLE)
        start = _integer(x, 0, side + 1 - width % 2, generator) - width // 2
        place = _along(torch.arange(side, device=x.device), dim)
        inside = inside & (place >= start) & (place < start + width)
    return torch.where(inside, 0, x)


POLICIES: dict[str, tuple[Transformation, ...]] = {
    "colour": (brighten, saturate, contrast),
    "translation": (translate,),
    "cutout": (cut_out,),
}
"""Name -> what is done, in this order."""


@dataclass(frozen=True)
class AugmentSettings(Checked):
    """How a discriminator's images are augmented.

    Attributes:
        policy: which transformations: "colour" (brightness, saturation, contrast), "translation",
            "cutout".
        p: the probability of each transformation of each image, in [0, 1]; where adaptive, at the
            beginning.
        adaptive: move p towards overfitting no more than ``target`` says.
        target: E[sign d] on real images, in (-1, 1); above it, p grows.
        speed: images seen while p moves by 1.
    """

    policy: tuple[str, ...] = tuple(POLICIES)
    p: Share = 1.0
    adaptive: bool = False
    target: Annotated[float, Range(above=-1, below=1)] = 0.6
    speed: Positive = 500_000

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        for name in self.policy:
            if name not in POLICIES:
                raise ConfigError(
                    f"there is no augmentation '{name}': {nearest(name, list(POLICIES))}"
                )
        if not self.policy or len(set(self.policy)) < len(self.policy):
            raise ConfigError(
                "augment.policy names one or more transformations, each once "
                "(for none, set augment to null)."
            )
        if self.adaptive and self.p > CEILING:
            raise ConfigError(
                f"an adaptive augment.p stays in [0, {CEILING}], got {self.p}: begin at 0."
            )


class Augmentation(nn.Module):
    """T: each transformation of the policy, on each image, with probability p.

    Real and generated images go through independent draws of the same law. p and what it follows are
    buffers, so that checkpoints hold them.

    Args:
        settings: policy and probability.
        shape: of the images, (C, H, W).

    Raises:
        ConfigError: where the data are no images.
    """

    p: Tensor
    signs: Tensor
    seen: Tensor
    batches: Tensor

    def __init__(self, settings: AugmentSettings, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ConfigError(
                f"only images are augmented, these data have the shape {tuple(shape)}: "
                "set augment to null."
            )
        self.settings = settings
        self.steps = tuple(step for name in settings.policy for step in POLICIES[name])
        self.register_buffer("p", torch.tensor(float(settings.p)))
        self.register_buffer("signs", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0.0))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """T(x), (B, C, H, W), differentiable; at p = 0 it is x."""
        for step in self.steps:
            chosen = _uniform(x, generator) < self.p
            x = torch.where(chosen, step(x, generator), x)
        return x

    @torch.no_grad()
    def adapt(self, evidence: Tensor) -> None:
        """Move p by a fixed amount every few batches (Karras et al. 2020, §3.1).

        Nothing moves unless the settings say ``adaptive``. All processes of a training move alike.

        Args:
            evidence: (B,) positive where the discriminator takes a real image for real.
        """
        settings = self.settings
        if not settings.adaptive:
            return
        news = torch.stack([evidence.sign().sum(), evidence.new_tensor(len(evidence))])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(news)
        self.signs += news[0]
        self.seen += news[1]
        self.batches += 1
        due = self.batches % INTERVAL == 0  # no branch: it would wait for the device
        step = (self.signs / self.seen - settings.target).sign() * self.seen / settings.speed
        self.p.add_(torch.where(due, step, 0)).clamp_(0, CEILING)
        self.signs.mul_(~due)
        self.seen.mul_(~due)


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    """One draw of U[0, 1) for each image, (B, 1, 1, 1)."""
    return torch.rand(len(x), 1, 1, 1, generator=generator, dtype=x.dtype, device=x.device)


def _integer(x: Tensor, low: int, high: int, generator: torch.Generator) -> Tensor:
    """One draw from low, ..., high - 1 for each image, (B, 1, 1, 1)."""
    return torch.randint(low, high, (len(x), 1, 1, 1), generator=generator, device=x.device)


def _along(values: Tensor, dim: int) -> Tensor:
    """(N,) -> a tensor of 4 dimensions, with N in place ``dim``."""
    return values.view([-1 if d == dim else 1 for d in range(4)])
