"""Fields with randomness: asked at noised points, or noise themselves (GPM §4.1, §A.1, §B.1.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from partikel.data import Batch
from partikel.errors import ConfigError
from partikel.fields.base import Context, Field, Loss, LossValue, TrainingBatch
from partikel.schedules import NoiseLaw
from partikel.tensors import expand_like


class Perturbed(Field):
    """V(x) = E_{σ,ε} w(σ) field(x + σε; σ), one draw of (σ, ε) for each point and call.

    This is all that Score GAN adds to a GAN: the field compares laws after smoothing by k_σ, at every
    σ of a law. As a field, it goes into either carrier. Losses that compare real and generated points
    see both through the same perturbation; losses that add noise themselves see clean points.

    Args:
        field: a field that is asked at noise levels.
        law: the law of σ.
        power: w(σ) = σ^power; 1 is the paper's choice (GPM §B.1.2), which only reweights the law.
        generator: the source of randomness, once bound.
    """

    requires = frozenset({"generator"})

    def __init__(
        self,
        field: Field,
        law: NoiseLaw,
        power: float = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if "real" in field.requires:
            raise ConfigError(
                "a field that compares particles with real samples cannot be perturbed: the samples "
                "would have to share each particle's noise level; choose another objective."
            )
        self.field = field
        self.law = law
        self.power = power
        self.generator = generator
        self.requires = field.requires | {"generator"}

    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """w(σ) field(x + σε, t, σ, cond) at fresh draws; a given ``sigma`` is not used."""
        generator = _bound(self.generator, "a perturbed field")
        sigma, noised = _perturb(x, self.law, generator)
        return expand_like(sigma**self.power, x) * self.field(noised, t, sigma, cond)

    def bind(self, context: Context) -> Field:
        """Fix the source of randomness, and the inner field's context."""
        return Perturbed(
            self.field.bind(context), self.law, self.power, generator=context.generator
        )

    def losses(self) -> tuple[Loss, ...]:
        """The inner field's losses, at perturbed points where they do not add noise themselves."""
        if self.frozen:
            return ()
        return tuple(
            loss if loss.adds_noise else replace(loss, compute=self._at_noised(loss))
            for loss in self.field.losses()
        )

    def _at_noised(self, loss: Loss) -> Callable[[TrainingBatch], LossValue]:
        def compute(batch: TrainingBatch) -> LossValue:
            assert batch.real is not None
            assert batch.particles is not None
            generator = batch.streams.noise
            sigma, fake = _perturb(batch.particles.x, self.law, generator)
            noise = torch.randn(
                fake.shape, generator=generator, dtype=fake.dtype, device=fake.device
            )
            real = Batch(batch.real.x + expand_like(sigma, noise) * noise, batch.real.cond)
            particles = replace(batch.particles, x=fake, sigma=sigma, clean=batch.particles.x)
            return loss.compute(replace(batch, real=real, particles=particles))

        return compute


class WhiteNoise(Field):
    """A field of independent standard normal draws times ``std``.

    Added to another field in a step of size η, ``std = √(2γβ_own/η)`` stands for √(2γβ_own) dW and
    gives the stochastic versions of both carriers (GPM eqs. 21-22; framework §1, which says why a
    generator does not keep the marginals).

    Args:
        std: a number, or a function (B,) -> (B,) of noise levels.
        generator: the source of randomness, once bound.
    """

    requires = frozenset({"generator"})

    def __init__(
        self,
        std: float | Callable[[Tensor], Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.std = std
        self.generator = generator

    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """Std · ξ."""
        generator = _bound(self.generator, "a white noise field")
        draw = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        if not callable(self.std):
            return self.std * draw
        if sigma is None:
            raise ConfigError("this white noise depends on σ: give its carrier a schedule.")
        return expand_like(self.std(sigma), x) * draw

    def bind(self, context: Context) -> Field:
        """Fix the source of randomness."""
        return WhiteNoise(self.std, generator=context.generator)


def _perturb(x: Tensor, law: NoiseLaw, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    sigma = law.sample(len(x), generator=generator, dtype=x.dtype)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return sigma, x + expand_like(sigma, x) * noise


def _bound(generator: torch.Generator | None, what: str) -> torch.Generator:
    if generator is None:
        raise ConfigError(f"{what} draws random numbers: bind it first, Context(generator=...).")
    return generator
