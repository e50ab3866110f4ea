"""Particles: a record of points on the path and of what made them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


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
    """

    x: Tensor
    t: Tensor
    sigma: Tensor | None = None
    cond: Tensor | None = None
    latent: Tensor | None = None
    clean: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Particles:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Particles(**{k: v if v is None else v[index] for k, v in parts.items()})
