"""What fields share that compare the cloud of particles with real samples, and learn nothing."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from partikel.errors import ConfigError, DataError, NumericsError
from partikel.fields.base import Context, Field


class SampleField(Field):
    """A velocity that depends on the whole cloud ρ and on real samples p.

    Bound to both, it is a plain function of its points. Bound to real samples only, which is what the
    carriers do, the points it is asked about are the cloud: those of one step of a particle model, or
    of one batch of a generator. It then has to be asked about all of them together.

    There is no field of one label: real samples of all labels are compared with, whatever ``cond``.

    Args:
        real: bound samples of the data (R, ...).
        particles: bound cloud (P, ...).
        generator: bound source of random draws, for a field that makes any.
    """

    requires = frozenset({"real", "particles"})

    def __init__(
        self,
        *,
        real: Tensor | None = None,
        particles: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.real = real
        self.particles = particles
        self.generator = generator
        if particles is not None:
            self.requires = self.requires - {"particles"}

    def bind(self, context: Context) -> Field:
        """Fix the real samples, the cloud where the context has one, and the source of draws.

        What the context does not have stays as it was bound before.

        Raises:
            ConfigError: without real samples, or with fewer than two particles.
            DataError: if a real sample is not finite.
            NumericsError: if a particle is not.
        """
        real = self.real if context.real is None else context.real
        particles = self.particles if context.particles is None else context.particles
        generator = self.generator if context.generator is None else context.generator
        if real is None or not len(real):
            raise ConfigError(
                "a field of samples compares particles with real samples: pass some "
                "(Context(real=...))."
            )
        if not torch.isfinite(real).all():
            raise DataError("real samples must be finite numbers: look for NaN or inf in the data.")
        if particles is not None:
            check_cloud(particles)
        bound = self._bound(real, particles, generator)
        bound._frozen = self._frozen
        return bound

    @abstractmethod
    def _bound(
        self, real: Tensor, particles: Tensor | None, generator: torch.Generator | None
    ) -> SampleField:
        """The same field, bound to these."""

    def _clouds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Real samples and particles, shaped and typed like ``x``."""
        if self.real is None:
            raise ConfigError(
                "a field of samples must be bound to real samples before it is asked: "
                "field.bind(Context(real=...))."
            )
        if self.real.shape[1:] != x.shape[1:]:
            raise ValueError(f"real samples {self.real.shape[1:]} and points {x.shape[1:]} differ")
        if self.particles is None:
            check_cloud(x)
        cloud = x if self.particles is None else self.particles
        return self.real.to(x), cloud.to(x).detach()

    def _random(self) -> torch.Generator:
        if self.generator is None:
            raise ConfigError(
                "this field draws random numbers: bind it first, Context(generator=...)."
            )
        return self.generator


def check_cloud(cloud: Tensor) -> None:
    """Refuse a cloud that is too small (ConfigError) or not finite (NumericsError)."""
    if len(cloud) < 2:
        raise ConfigError(
            f"a field of samples needs a cloud of at least two particles, got {len(cloud)}: move them "
            "together, or bind it to a cloud (Context(particles=...))."
        )
    if not torch.isfinite(cloud).all():
        raise NumericsError(
            "particles left the finite numbers: take more steps or a weaker field (smaller eta)."
        )
