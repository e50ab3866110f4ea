"""GAN: a discriminator's field, carried by a generator (GPM eqs. 10-16, Finding 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from partikel.data import Dataset
from partikel.errors.checks import Count, NotNegative, Range, Size, Width
from partikel.fields import DiscriminatorField
from partikel.fields.augmentation import Augmentation, AugmentSettings
from partikel.models import Carrier, GeneratorModel
from partikel.networks import NetworkSettings, build_network
from partikel.objectives import GradientPenalty
from partikel.priors import GaussianPrior
from partikel.recipes.base import MLP, Recipe, System, without_pairs
from partikel.schedules import EDMSchedule
from partikel.training import AdamSettings, Phase


@dataclass(frozen=True, kw_only=True)
class GAN(Recipe):
    """A generative adversarial network (Goodfellow et al. 2014).

    Attributes:
        objective: of a GAN: one of :data:`partikel.objectives.OBJECTIVES`.
        penalties: on the discriminator's gradient.
        augment: of the discriminator's images; null for none.
        discriminator: its network.
        generator: its network.
        latent: size of the latent z ~ N(0, I).
        sigma_max: noise on the real samples at the start of training, which the discriminator then
            cannot tell from generated ones so easily (DiffFlow §3.3.2); it falls linearly to 0.
        annealed: share of the iterations after which it is 0.
        discriminator_steps: K, discriminator updates of an iteration.
        batch: samples of an update.
        discriminator_optimizer: Adam of the discriminator.
        generator_optimizer: Adam of the generator.
    """

    name: ClassVar[str] = "gan"
    title: ClassVar[str] = "GAN"
    symbol: ClassVar[str] = "∇(c∘d)"

    objective: str = "non-saturating"
    penalties: tuple[GradientPenalty, ...] = ()
    augment: AugmentSettings | None = None
    discriminator: NetworkSettings = MLP
    generator: NetworkSettings = MLP
    latent: Width = 128
    sigma_max: NotNegative = 0.0
    annealed: Annotated[float, Range(above=0, most=1.0)] = 0.5
    discriminator_steps: Count = 1
    batch: Size = 128
    discriminator_optimizer: AdamSettings = field(default_factory=lambda: AdamSettings(beta1=0.5))
    generator_optimizer: AdamSettings = field(default_factory=lambda: AdamSettings(beta1=0.5))

    @property
    def draws(self) -> int:
        """How often an iteration draws particles."""
        return self.discriminator_steps

    @property
    def _annealing(self) -> int:
        """Draws until real samples are clean."""
        share = self.annealed if self.sigma_max else 0.0
        return math.ceil(share * self.iterations * self.draws)

    @property
    def _step(self) -> float | None:
        """η of outputs that are moved before they are fitted; None for the surrogate loss."""
        return None

    @property
    def unused(self) -> frozenset[str]:
        """See :attr:`Recipe.unused`."""
        return super().unused | (frozenset() if self.sigma_max else {"sigma_max", "annealed"})

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """A discriminator field and a generator; K critic updates, then one of the generator."""
        classes = self.classes(dataset)
        critic = DiscriminatorField(
            build_network(
                self.discriminator,
                "logit",
                shape=dataset.shape,
                classes=classes,
                generator=self.init_generator("discriminator"),
            ),
            self.objective,
            penalties=self.penalties,
            schedule=EDMSchedule(self.sigma_max) if self.sigma_max else None,
            augmentation=self.augment and Augmentation(self.augment, dataset.shape),
        )
        without_pairs(critic, classes)
        generator = build_network(
            self.generator,
            "generator",
            shape=dataset.shape,
            latent=self.latent,
            classes=classes,
            generator=self.init_generator("generator"),
        )
        return System(
            GeneratorModel(
                critic,
                generator,
                GaussianPrior((self.latent,)),
                horizon=self.sigma_max or 1.0,
                eta=self._step,
                annealing=self._annealing,
                label_weights=self.label_weights(dataset),
            ),
            (
                Phase(
                    "discriminator",
                    self.discriminator_optimizer,
                    self.batch,
                    repeats=self.discriminator_steps,
                ),
                Phase("generator", self.generator_optimizer, self.batch),
            ),
        )
