"""What a recipe is: typed settings that compose fields, a carrier and phases into a system.

A recipe is a frozen dataclass whose fields are what a user may choose; its :meth:`Recipe.compose`
is the page that shows what the model is made of. All recipes train through the same loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from partikel.data import Dataset, DataSettings
from partikel.errors import ConfigError
from partikel.fields import Field, Scaled
from partikel.models import Carrier
from partikel.networks import NetworkSettings
from partikel.streams import derive_seed
from partikel.training import Phase

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
class Recipe(ABC):
    """Settings that all recipes share.

    Attributes:
        name: what configurations call the recipe.
        title: what people call it.
        symbol: its field as a formula; recipes with the same field have the same.
        data: which data, and how they are split.
        seed: of initial weights and all random streams.
        iterations: length of training; an iteration runs every phase once.
        ema: decay of the average of the weights that sampling uses; null keeps none.
        evaluate_every: iterations between quick evaluations; null for none.
        evaluate_samples: samples of a quick evaluation.
        checkpoint_every: iterations between checkpoints.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    symbol: ClassVar[str]

    data: DataSettings = field(default_factory=DataSettings)
    seed: int = 0
    iterations: int = 10_000
    ema: float | None = None
    evaluate_every: int | None = 1000
    evaluate_samples: int = 2000
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        """Check the ranges."""
        for key in ("iterations", "checkpoint_every", "evaluate_samples"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, got {getattr(self, key)}.")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ConfigError(
                f"evaluate_every must be at least 1 (or null), got {self.evaluate_every}."
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"the EMA's decay lies in (0, 1) (or is null), got {self.ema}.")

    @property
    def required(self) -> Recipe | None:
        """The recipe of the model that must be trained first, if there is one."""
        return None

    @abstractmethod
    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """Build the untrained system.

        Args:
            dataset: what ``data`` names.
            required: the trained (or to be loaded) model of :attr:`required`.

        Returns:
            The system, a deterministic function of the settings.
        """

    def init_generator(self, part: str) -> torch.Generator:
        """The source of the initial weights of one network."""
        return torch.Generator().manual_seed(derive_seed(self.seed, "init", part))


def score_in(flow: Field) -> Field:
    """s_p of an EDM's field |σ'|σ s_p, its weight along the path taken off."""
    return flow.field if isinstance(flow, Scaled) else flow


def same_data(recipe: Recipe, score: Recipe) -> None:
    """Refuse a data score of other data.

    Raises:
        ConfigError: naming both.
    """
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
