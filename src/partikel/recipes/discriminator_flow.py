"""Discriminator Flow: a GAN's field without its generator, carried by free particles.

GPM eq. 20, Algorithms 2-3: x_{n+1} = x_n + (η/N) ∇(c∘d)(x_n, t_n), with d conditional on t.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from partikel.data import Dataset
from partikel.errors.checks import Count, Level, NotNegative, Part, Size
from partikel.fields import DiscriminatorField
from partikel.fields.augmentation import Augmentation, AugmentSettings
from partikel.models import Carrier, ParticleModel, PooledParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.objectives import GradientPenalty
from partikel.priors import GaussianPrior
from partikel.recipes.base import MLP, Recipe, System, hiding_labels, without_pairs
from partikel.training import AdamSettings, Phase


@dataclass(frozen=True, kw_only=True)
class DiscriminatorFlow(Recipe):
    """A Discriminator Flow (GPM §4.2).

    Attributes:
        objective: of a GAN: one of :data:`partikel.objectives.OBJECTIVES`.
        penalties: on the discriminator's gradient.
        augment: of the discriminator's images; null for none.
        network: the time-conditional discriminator.
        steps: N, of training and sampling.
        eta: η, strength of the field.
        temperature: τ, weight of an entropy regulariser.
        prior_std: standard deviation of the particles at t = 0.
        updates: discriminator updates of an iteration.
        reuse: consecutive updates that share one simulation; 1 is Algorithm 3.
        times_per_path: particles taken from each simulated path; 1 is Algorithm 3.
        pool: particles that are kept and moved by one step for each update, instead of being simulated
            anew (see :class:`~partikel.models.PooledParticleModel`); null simulates, as Algorithm 3.
        truncate: simulate each particle only up to its own time; false is Algorithm 3 to the letter, as
            happens with batch norm.
        label_dropout: share of labels hidden in training, which guidance needs; of conditional models.
        batch: samples of an update.
        optimizer: of the discriminator.
    """

    name: ClassVar[str] = "discriminator-flow"
    title: ClassVar[str] = "Discriminator Flow"
    symbol: ClassVar[str] = "∇(c∘d)"

    objective: str = "non-saturating"
    penalties: tuple[GradientPenalty, ...] = ()
    augment: AugmentSettings | None = None
    network: NetworkSettings = MLP
    steps: Count = 56
    eta: float = 20.0
    temperature: NotNegative = 0.0
    prior_std: Level = 1.0
    updates: Count = 1
    reuse: Count = 1
    times_per_path: Count = 1
    pool: Size | None = None
    truncate: bool = True
    label_dropout: Part = 0.1
    batch: Size = 128
    optimizer: AdamSettings = field(default_factory=lambda: AdamSettings(beta1=0.5))

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """A time-conditional discriminator field and free particles; one phase."""
        classes = self.classes(dataset)
        critic = DiscriminatorField(
            build_network(
                self.network,
                "logit",
                shape=dataset.shape,
                scalars=1,
                classes=classes,
                generator=self.init_generator("discriminator"),
            ),
            self.objective,
            conditions=("t",),
            penalties=self.penalties,
            augmentation=self.augment and Augmentation(self.augment, dataset.shape),
        )
        without_pairs(critic, classes)
        carry = ParticleModel if self.pool is None else partial(PooledParticleModel, pool=self.pool)
        model = carry(
            hiding_labels(critic, classes, self.label_dropout),
            GaussianPrior(dataset.shape, std=self.prior_std),
            steps=self.steps,
            eta=self.eta,
            temperature=self.temperature,
            times_per_path=self.times_per_path,
            truncate=self.truncate,
            label_weights=self.label_weights(dataset),
        )
        phase = Phase(
            "discriminator", self.optimizer, self.batch, repeats=self.updates, reuse=self.reuse
        )
        return System(model, (phase,))
