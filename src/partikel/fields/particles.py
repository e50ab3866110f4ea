"""Records of points on the path: where a field is asked, and particles with what made them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class At(NamedTuple):
    """Where on the path a field is asked. What all points share is (), what each has of its own (B,).

    Networks never see it: they keep raw tensors.

    Attributes:
        t: generation times, () or (B,); in training always (B,).
        sigma: noise levels, () or (B,), where the path has them.
        cond: (B, ...) what the networks were conditioned on in training: integer labels (B,), usually.
    """

    t: Tensor
    sigma: Tensor | None = None
    cond: Tensor | None = None


@dataclass(frozen=True)
class Particles:
    """A batch of particles.

    Attributes:
        x: (B, ...) positions.
        t: (B,) generation times.
        sigma: (B,) noise levels, where the path has them.
        cond: (B,) integer labels, where the model is conditional.
        latent: (B, ...) the z that a generator mapped to ``x``.
        clean: (B, ...) the positions before a perturbation of noise level ``sigma``.
        moved: (B, ...) where one step of a field has taken them.
        velocity: (B, ...) what the field says there, where the whole batch was asked at once.
    """

    x: Tensor
    t: Tensor
    sigma: Tensor | None = None
    cond: Tensor | None = None
    latent: Tensor | None = None
    clean: Tensor | None = None
    moved: Tensor | None = None
    velocity: Tensor | None = None

    @property
    def at(self) -> At:
        """Where on the path they are."""
        return At(self.t, self.sigma, self.cond)

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Particles:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value[index] for name, value in given.items()})
