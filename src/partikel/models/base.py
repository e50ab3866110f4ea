"""What every carrier is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError
from partikel.fields import Context, Field, Loss
from partikel.fields.particles import Particles
from partikel.streams import Streams


class Carrier(nn.Module, ABC):
    """What a field moves.

    Attributes:
        field: the field.
        conditional: whether particles carry labels; in training they are those of the data.
        label_weights: (K,) shares of the classes, by which labels are drawn for samples that are
            asked for without; None where they are unknown.
    """

    field: Field
    conditional: bool
    label_weights: Tensor | None

    def __init__(self, conditional: bool = False, label_weights: Tensor | None = None) -> None:
        super().__init__()
        self.conditional = conditional or label_weights is not None
        # saved with the weights: samples keep the shares of the data that the model was trained on
        self.register_buffer("label_weights", label_weights)

    @property
    @abstractmethod
    def sampled(self) -> nn.Module:
        """The module that sampling evaluates, whose moving average is worth keeping."""

    @abstractmethod
    def losses(self) -> tuple[Loss, ...]:
        """What trains the field, then what trains the carrier, in the order of an iteration."""

    @abstractmethod
    def particles(
        self,
        n: int,
        streams: Streams,
        *,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Particles:
        """Particles to train the field on, without gradients.

        Args:
            n: how many.
            streams: random streams (latent, time, noise).
            cond: (n,) labels.
            real: samples of the data, for a field that compares with them.
        """

    @abstractmethod
    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """Draw samples, without gradients.

        Args:
            n: how many.
            generator: source of all randomness.
            cond: (n,) labels, for a conditional model; drawn by ``label_weights`` unless given.
            real: samples of the data, for a field that compares with them.

        Returns:
            (n, ...) samples.

        Raises:
            ConfigError: for labels that the model does not know.
        """

    def labels(self, n: int, *, generator: torch.Generator) -> Tensor | None:
        """(n,) labels at the data's frequencies, where they are known; else None, and no draw."""
        if self.label_weights is None:
            return None
        shares = self.label_weights.to(generator.device)
        return torch.multinomial(shares, n, replacement=True, generator=generator)

    def _labels(self, n: int, cond: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Labels to sample: those given, if they are the model's, or drawn."""
        if cond is None:
            return self.labels(n, generator=generator)
        if self.label_weights is not None:
            count = len(self.label_weights)
            wrong = cond[(cond < 0) | (cond > count)]  # the null label, K, is one of the networks'
            if len(wrong):
                raise ConfigError(
                    f"the labels of this model are 0 to {count - 1}, got {int(wrong[0])}."
                )
        return cond

    def move(self, particles: Particles, streams: Streams, real: Tensor | None) -> Particles:
        """The particles with where one step takes them, for losses that need it.

        Raises:
            ConfigError: if the carrier has no such loss.
        """
        raise ConfigError(f"a {type(self).__name__} has no loss that needs moved particles.")

    def _bound(
        self, real: Tensor | None, generator: torch.Generator, field: Field | None = None
    ) -> Field:
        field = self.field if field is None else field
        if not field.requires:
            return field
        return field.bind(Context(real=real, generator=generator))
