"""Classifier-free guidance as a field, and the label dropout that makes it possible (Ho & Salimans 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from partikel.data import Batch
from partikel.errors.checks import Count, Part
from partikel.fields.base import At, Field, Loss, LossValue, TrainingBatch, Weight, check_weight
from partikel.fields.particles import Particles
from partikel.tensors import expand_like

_Points = TypeVar("_Points", Batch | None, Particles | None)


class Guided(Field):
    """V_w(x, c) = V(x, ∅) + w (V(x, c) - V(x, ∅)): a field that overstates what a label adds.

    For scores, V_w is the gradient of log p(x) + w log p(c|x): w = 1 is the field of the label, w = 0
    that of no label, w > 1 trades diversity for typicality. The null label ∅ is ``cond`` = None, which
    the field must have been trained on (:class:`LabelDropout`). Being linear in V, guidance commutes
    with weights and sums; a field of random draws shows both labels the same ones.

    Args:
        field: a field that takes labels.
        weight: w, a number or a function of generation times. Where it is 1 for all
            particles, as outside of a guidance interval (Kynkäänniemi et al. 2024), the field is
            evaluated once instead of twice.
    """

    def __init__(self, field: Field, weight: Weight) -> None:
        super().__init__()
        check_weight(weight, "guidance")
        self.field = field
        self.weight = weight

    def forward(self, x: Tensor, at: At) -> Tensor:
        """V(x, ∅) + w(t) (V(x, cond) - V(x, ∅)); without labels, V(x, ∅)."""
        weight = self.weight(at.t) if callable(self.weight) else self.weight
        unlabelled = at._replace(cond=None)
        if at.cond is None or (not isinstance(weight, Tensor) or weight.numel() == 1):
            if at.cond is None or float(weight) == 0:
                return self.field(x, unlabelled)
            if float(weight) == 1:
                return self.field(x, at)
        drawing = (each.context.generator for each in self.modules() if isinstance(each, Field))
        generator = next((each for each in drawing if each is not None), None)
        state = None if generator is None else generator.get_state()
        without = self.field(x, unlabelled)
        if generator is not None and state is not None:
            generator.set_state(state)
        given = self.field(x, at)
        if isinstance(weight, Tensor):
            weight = expand_like(weight, x)
        return without + weight * (given - without)


class LabelDropout(Field):
    """A field whose losses hide labels at random, so that it learns the field of no label as well.

    The field itself is left as it is. Real and generated points lose their labels alike, each with the
    same probability: a discriminator then also tells all of the data from all particles.

    Args:
        field: a field that takes labels.
        classes: number of labels; the null label of the networks is ``classes`` itself.
        rate: share of labels that are hidden, in [0, 1); 0.1 is usual.

    Raises:
        ConfigError: for a share out of range.
    """

    def __init__(self, field: Field, classes: Count, rate: Part = 0.1) -> None:
        super().__init__()
        self.field = field
        self.classes = classes
        self.rate = rate

    def forward(self, x: Tensor, at: At) -> Tensor:
        """The inner field."""
        return self.field(x, at)

    def own_losses(self) -> tuple[Loss, ...]:
        """Those of the inner field, on points some of which have lost their labels."""
        return tuple(
            replace(loss, compute=_Hiding(loss.compute, self.classes, self.rate))
            for loss in self.field.losses()
        )


def hiding_labels_of(
    field: Field, compute: Callable[[TrainingBatch], LossValue]
) -> Callable[[TrainingBatch], LossValue]:
    """A loss of several networks at once, with labels hidden as :class:`LabelDropout` inside asks for.

    All networks lose the same labels, so that the loss is that of the field of a label or of no label,
    and of no mixture of both: where shares differ, the largest one. What is frozen asks for nothing.
    """
    inside = [m for m in field.modules() if isinstance(m, LabelDropout) and not m.frozen]
    if not inside:
        return compute
    most = max(inside, key=lambda dropout: dropout.rate)
    return _Hiding(compute, most.classes, most.rate)


def hide_labels(
    cond: Tensor | None, classes: int, rate: float, *, generator: torch.Generator
) -> Tensor | None:
    """Labels (B,), each replaced by the null label ``classes`` with probability ``rate``."""
    if cond is None or rate == 0:
        return cond
    hidden = torch.rand(len(cond), generator=generator, device=cond.device) < rate
    return cond.masked_fill(hidden, classes)


@dataclass(frozen=True)
class _Hiding:
    """A loss that hides labels; a dataclass, so that two of the same loss are equal."""

    compute: Callable[[TrainingBatch], LossValue]
    classes: int
    rate: float

    def __call__(self, batch: TrainingBatch) -> LossValue:
        def hide(points: _Points) -> _Points:
            if points is None:
                return points
            cond = hide_labels(points.cond, self.classes, self.rate, generator=batch.streams.time)
            return replace(points, cond=cond)

        real, particles = hide(batch.real), hide(batch.particles)
        return self.compute(replace(batch, real=real, particles=particles))
