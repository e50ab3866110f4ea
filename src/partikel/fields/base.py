"""The field: what moves particles (GPM Definition 1; framework §1-2).

A field is called on points of the path and returns a velocity for each. Fields form an algebra:
``f + g``, ``f - g``, ``2 * f``, ``weight * f`` with a function ``weight(t)``. A field that depends on
the whole cloud, on real samples or on random draws is *bound* to them first and is then a plain
function of its points. A learned field says through :meth:`Field.losses` what trains it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from partikel.data import Batch
from partikel.errors import ConfigError
from partikel.fields.particles import Particles
from partikel.streams import Streams
from partikel.tensors import expand_like

Weight: TypeAlias = float | Callable[[Tensor], Tensor]
"""A number, or a function of generation times (B,) -> (B,)."""


@dataclass(frozen=True)
class Context:
    """What a context-dependent field is bound to.

    Attributes:
        real: (R, ...) samples of the data.
        particles: (P, ...) samples of the generated law.
        generator: source of the random draws of a stochastic field.
    """

    real: Tensor | None = None
    particles: Tensor | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class TrainingBatch:
    """What one update of a loss may use.

    Attributes:
        real: a batch of data, where the loss needs it.
        particles: particles of the carrier, without gradients, where the loss needs them.
        size: number of samples of the update.
        streams: the random streams to draw from.
    """

    real: Batch | None
    particles: Particles | None
    size: int
    streams: Streams


@dataclass(frozen=True)
class LossValue:
    """A loss and what is worth logging beside it.

    Attributes:
        loss: (B,) losses, whose mean is minimised.
        metrics: detached scalars by name.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = dataclass_field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """A loss that trains (a part of) a field or a carrier.

    Attributes:
        name: how phases refer to it; unique within a model.
        module: whose parameters it trains.
        needs: of {"real", "particles", "moved"}: what :class:`TrainingBatch` must hold; "moved" goes
            with "particles" and asks for where one step of the carrier takes them.
        compute: the loss itself.
        adds_noise: whether the loss perturbs clean points itself (denoising score matching), so that
            nothing else may noise them first.
    """

    name: str
    module: nn.Module
    needs: frozenset[str]
    compute: Callable[[TrainingBatch], LossValue]
    adds_noise: bool = False


class Field(nn.Module, ABC):
    """What moves particles: (x, t, σ, cond) -> velocity.

    Attributes:
        requires: of {"real", "particles", "generator"}: the context without which the field cannot
            be evaluated.
    """

    requires: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self._frozen = False

    @abstractmethod
    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """The velocity at points of the path.

        Args:
            x: (B, ...) positions.
            t: (B,) generation times.
            sigma: (B,) noise levels, where the path has them.
            cond: (B,) integer labels.

        Returns:
            (B, ...) velocities.

        Raises:
            ConfigError: if the field needs a context (see ``requires``) or a noise level it has not.
        """

    def bind(self, context: Context) -> Field:
        """The same field with its context fixed; a field without one returns itself."""
        return self

    def losses(self) -> tuple[Loss, ...]:
        """What trains the field, in the order of an iteration; empty if nothing does."""
        return ()

    def freeze(self) -> Field:
        """Keep this field as it is: no losses, no gradients, evaluation mode for good."""
        self.requires_grad_(False)
        for module in self.modules():  # what is taken out of a frozen field stays frozen
            if isinstance(module, Field):
                module._frozen = True
        return self.eval()

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` was called."""
        return self._frozen

    def train(self, mode: bool = True) -> Field:
        """Set training mode, which a frozen field ignores (dropout stays off in it)."""
        return super().train(mode and not self._frozen)

    def __add__(self, other: Field) -> Field:
        return Sum(_terms(self) + _terms(other)) if isinstance(other, Field) else NotImplemented

    def __sub__(self, other: Field) -> Field:
        return self + (-1.0) * other if isinstance(other, Field) else NotImplemented

    def __mul__(self, weight: Weight) -> Field:
        return Scaled(self, weight)

    __rmul__ = __mul__

    def __neg__(self) -> Field:
        return Scaled(self, -1.0)


class Scaled(Field):
    """``weight * field``: a field multiplied by a number or a function of generation time.

    Args:
        field: any field.
        weight: a number, or a function (B,) -> (B,) of generation times.
    """

    def __init__(self, field: Field, weight: Weight) -> None:
        super().__init__()
        number = isinstance(weight, (int, float))
        if isinstance(weight, nn.Module) or not (number or callable(weight)):
            raise TypeError(
                f"a field is multiplied by a number or a function of t, not {type(weight).__name__}"
            )
        self.field = field
        self.weight = weight
        self.requires = field.requires

    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """weight(t) · field(x, t, σ, cond)."""
        velocity = self.field(x, t, sigma, cond)
        if callable(self.weight):
            return expand_like(self.weight(t), x) * velocity
        return self.weight * velocity

    def bind(self, context: Context) -> Field:
        """Bind the inner field."""
        inner = self.field.bind(context)
        return self if inner is self.field else Scaled(inner, self.weight)

    def losses(self) -> tuple[Loss, ...]:
        """Those of the inner field."""
        return () if self.frozen else self.field.losses()


class Sum(Field):
    """The sum of several fields ("additively combined", GPM §3).

    Args:
        terms: at least one field.
    """

    def __init__(self, terms: tuple[Field, ...]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.requires = frozenset().union(*(term.requires for term in terms))

    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """The sum of the terms' velocities."""
        first, *rest = self.terms
        velocity = first(x, t, sigma, cond)
        for term in rest:
            velocity = velocity + term(x, t, sigma, cond)
        return velocity

    def bind(self, context: Context) -> Field:
        """Bind each term."""
        terms = [term for term in self.terms if isinstance(term, Field)]
        bound = tuple(term.bind(context) for term in terms)
        return self if all(b is a for a, b in zip(terms, bound, strict=True)) else Sum(bound)

    def losses(self) -> tuple[Loss, ...]:
        """Those of all terms; a field that occurs twice is trained once."""
        if self.frozen:
            return ()
        found = [loss for term in _terms(self) for loss in term.losses()]
        distinct = [loss for i, loss in enumerate(found) if loss not in found[:i]]
        return unique_losses(distinct)


def unique_losses(losses: Sequence[Loss]) -> tuple[Loss, ...]:
    """The losses, whose names and trained modules must all be different.

    Raises:
        ConfigError: if two share a name, or train the same network in different ways.
    """
    names = [loss.name for loss in losses]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ConfigError(
            f"two losses of a model are called '{twice[0]}': give one of the fields another name "
            "(or train a network that occurs twice in one way only)."
        )
    return tuple(losses)


def _terms(field: Field) -> tuple[Field, ...]:
    if isinstance(field, Sum):
        return tuple(term for term in field.terms if isinstance(term, Field))
    return (field,)
