"""A package that adds one of each to partikel: what docs/extending.md shows, whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from partikel import At, DiscriminatorField, Field, GaussianPrior, ParticleModel, Phase
from partikel.data import Dataset, DataSettings, in_memory
from partikel.metrics.own import OwnMeasure
from partikel.models import Carrier
from partikel.networks import Conditioning, NetworkSettings, build_network
from partikel.recipes import Recipe, System

NOTHING = Conditioning()


class Shift(Field):
    """∇h(x) = mean of the data - x."""

    requires = frozenset({"real"})

    def forward(self, x: Tensor, at: At) -> Tensor:
        """The velocity."""
        return self.bound_real(x).mean(0) - x


def shift(kit: object) -> Field:
    """A row of the matrix."""
    return Shift()


def lumps(settings: DataSettings) -> Dataset:
    """Two lumps in the plane."""
    x = 0.3 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    x[::2] += 2
    return in_memory(x, name="lumps", validation=0.2, test=0.2, split_seed=settings.split_seed)


class Layered(nn.Module):
    """Linear, LayerNorm, ReLU, Linear, for every role."""

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        width: int = 16,
        conditions: Conditioning = NOTHING,
    ) -> None:
        super().__init__()
        self.out_shape = out_shape
        self.layers = nn.Sequential(
            nn.Linear(math.prod(in_shape) + conditions.scalars, width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, math.prod(out_shape)),
        )

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Real conditions c, (B, S) or (1, S), join the input."""
        h = x.flatten(1)
        if c is not None:
            h = torch.cat([h, c.expand(len(h), -1)], 1)
        return self.layers(h).view(len(x), *self.out_shape)


@dataclass(frozen=True, kw_only=True)
class Flow(Recipe):
    """A Discriminator Flow in a few lines.

    Attributes:
        network: of the discriminator.
        steps: N.
        batch: points of an update.
    """

    name: ClassVar[str] = "own-flow"
    title: ClassVar[str] = "Own Flow"
    symbol: ClassVar[str] = "∇d"

    network: NetworkSettings = NetworkSettings(kind="layered")
    steps: int = 4
    batch: int = 32

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """One field, one carrier, one phase."""
        network = build_network(
            self.network,
            "logit",
            shape=dataset.shape,
            scalars=1,
            generator=self.init_generator("network"),
        )
        field = DiscriminatorField(network, conditions=("t",))
        model = ParticleModel(field, GaussianPrior(dataset.shape), steps=self.steps)
        return System(model, (Phase("discriminator", batch=self.batch),))


def distance(samples: Tensor, reference: Tensor) -> float:
    """Distance of the means."""
    return float((samples.mean(0) - reference.mean(0)).norm())


mean_shift = OwnMeasure(
    key="mean-shift",
    head="shift",
    label="distance of the means",
    unit="length",
    better="lower",
    of="points",
    compute=distance,
)
