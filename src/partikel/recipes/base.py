"""What a recipe is: typed settings that compose fields, a carrier and phases into a system.

A recipe is a frozen dataclass whose fields are what a user may choose; its :meth:`Recipe.compose`
is the page that shows what the model is made of. All recipes train through the same loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from partikel.data import Dataset, DataSettings, FiniteDataset
from partikel.data.known import KnownData
from partikel.errors import ConfigError
from partikel.errors.checks import MAY_DIFFER, Checked, Iterations, Seed, Size
from partikel.fields import DiscriminatorField, Field, LabelDropout, Scaled
from partikel.fields.velocity import velocity_in
from partikel.models import Carrier
from partikel.networks import NetworkSettings
from partikel.objectives import objective_name
from partikel.streams import seeded
from partikel.targets import GaussianMixture
from partikel.training import EMA, AdamSettings, Engine, Phase
from partikel.training.ema import Decay

MLP = NetworkSettings(kind="mlp")


@dataclass(frozen=True)
class System:
    """A composed model and how it is trained.

    Attributes:
        model: the carrier with its field.
        phases: what an iteration does.
    """

    model: Carrier
    phases: tuple[Phase, ...]


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked, ABC):
    """Settings that all recipes share.

    Those that are marked ``MAY_DIFFER`` may be others when a run goes on.

    Attributes:
        name: what configurations call the recipe.
        title: what people call it.
        symbol: its field as a formula; recipes with the same field have the same.
        builds_on: the settings that name the run of what is trained first, and its recipe.
        data: which data, and how they are split.
        conditional: train on the data's labels, so that a class can be asked for.
        seed: of initial weights and all random streams.
        iterations: length of training; an iteration runs every phase once.
        ema: average of the weights that sampling uses: a decay, or a half_life or sigma_rel (see
            :class:`~partikel.training.EMA`); null keeps none.
        engine: how training is computed: precision, micro-batches, compilation.
        evaluate_every: iterations between quick evaluations; null for none.
        evaluate_samples: samples of a quick evaluation.
        checkpoint_every: iterations between checkpoints.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    symbol: ClassVar[str]
    builds_on: ClassVar[tuple[str, str]] = ("data_score", "score")

    data: DataSettings = field(default_factory=DataSettings)
    conditional: bool = False
    seed: Seed = 0
    iterations: Iterations = 10_000
    ema: Decay | EMA | None = None
    engine: Engine = field(default_factory=Engine, metadata=MAY_DIFFER)
    evaluate_every: Iterations | None = field(default=1000, metadata=MAY_DIFFER)
    evaluate_samples: Size = field(default=2000, metadata=MAY_DIFFER)
    checkpoint_every: Iterations = field(default=1000, metadata=MAY_DIFFER)

    @property
    def required(self) -> Recipe | None:
        """The recipe of the model that must be trained first, if there is one."""
        return None

    @property
    def unused(self) -> frozenset[str]:
        """Settings that have no effect beside the others, for whoever says what a model is made of."""
        return frozenset() if self.conditional else frozenset({"label_dropout", "guidance"})

    @property
    def of_length(self) -> tuple[str, ...]:
        """The settings that refer to the number of iterations; a run that has one cannot be made longer.

        These are rates that fall, and what a recipe whose :meth:`compose` reads ``iterations`` adds. No
        average of the weights is among them: all of their rules count the iterations so far.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        rates = {name: v for name, v in values.items() if isinstance(v, AdamSettings)}
        return tuple(f"{name}.decay" for name, rate in rates.items() if rate.falls)

    @abstractmethod
    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """Build the untrained system.

        Args:
            dataset: what ``data`` names.
            required: the trained (or to be loaded) model of :attr:`required`.

        Returns:
            The system, a deterministic function of the settings.
        """

    def system(self, dataset: Dataset, trained: Carrier | None = None) -> System:
        """:meth:`compose`, with the model of :attr:`required` untrained unless it is given."""
        if trained is None and self.required is not None:
            trained = self.required.system(dataset).model
        return self.compose(dataset, trained)

    @property
    def training(self) -> dict[str, Any]:
        """The settings of the loop, as :class:`~partikel.training.Trainer` and ``fit`` take them."""
        names = ("iterations", "seed", "ema", "engine")
        return {name: getattr(self, name) for name in names}

    def classes(self, dataset: Dataset) -> int | None:
        """Number of labels that the networks of a conditional model take; None of another one.

        Raises:
            ConfigError: if the data have no labels.
        """
        if not self.conditional:
            return None
        if dataset.classes is None:
            raise ConfigError(
                f"'{dataset.name}' has no labels: set conditional to false, or choose labelled data."
            )
        return dataset.classes

    def label_weights(self, dataset: Dataset) -> Tensor | None:
        """(K,) shares of the classes in the training data, for the carrier of a conditional model."""
        classes = self.classes(dataset)
        return None if classes is None else class_shares(dataset, classes)

    def init_generator(self, part: str) -> torch.Generator:
        """The source of the initial weights of one network."""
        return seeded(self.seed, "init", part)


class ScoreModel(Recipe):
    """A recipe whose model gives the data's score, for others to build on."""


def score_in(flow: Field) -> Field:
    """s_p of an EDM's field |σ'|σ s_p, its weight along the path taken off, or of a learned velocity.

    Raises:
        ConfigError: for a velocity without a score.
    """
    velocity = velocity_in(flow)
    if velocity is not None:
        return velocity.score.freeze() if velocity.frozen else velocity.score
    return flow.field if isinstance(flow, Scaled) else flow


def class_shares(dataset: Dataset, classes: int) -> Tensor:
    """(K,) shares of the classes: counted where data are finite, else estimated from fresh points."""
    if isinstance(dataset, KnownData) and dataset.shares is not None:
        return dataset.shares
    if isinstance(dataset, FiniteDataset):
        labels = dataset.stored("train")[1]
    elif isinstance(dataset.target, GaussianMixture) and len(dataset.target.weights) == classes:
        return dataset.target.weights.float()
    else:
        labels = dataset.draw(10_000, generator=torch.Generator().manual_seed(0)).cond
    assert labels is not None
    counts = torch.bincount(labels.long().flatten().cpu(), minlength=classes)
    return counts.float() / counts.sum()


def hiding_labels(field: Field, classes: int | None, rate: float) -> Field:
    """The field of a conditional model trained with label dropout; other fields as they are."""
    return field if classes is None or rate == 0 else LabelDropout(field, classes, rate)


def without_pairs(critic: DiscriminatorField, classes: int | None) -> None:
    """Refuse a conditional discriminator that is asked about pairs.

    Raises:
        ConfigError: for a relativistic objective with labels.
    """
    if classes is not None and critic.objective.paired:
        raise ConfigError(
            f"'{objective_name(critic.objective)}' compares particles with all real samples, whatever "
            "their labels: choose another objective for a conditional model."
        )


def same_data(recipe: Recipe, score: Recipe) -> None:
    """Refuse a data score of other data, or one that differs in whether it takes labels.

    Raises:
        ConfigError: naming both.
    """
    if score.conditional != recipe.conditional:
        without = "score" if recipe.conditional else "model"
        raise ConfigError(
            f"the model and its data score must agree on labels, but the {without} is unconditional: "
            "set score.conditional and conditional alike."
        )
    if score.data != recipe.data:
        raise ConfigError(
            f"the data score is of '{score.data.name}' but the model is trained on "
            f"'{recipe.data.name}': set score.data to the same settings as data."
        )


def field_of(model: Carrier | None) -> Field:
    """The frozen field of a trained model, to build on.

    Raises:
        ConfigError: if there is none.
    """
    if model is None:
        raise ConfigError("this recipe builds on a trained model: train or load it first.")
    return model.field.freeze()
