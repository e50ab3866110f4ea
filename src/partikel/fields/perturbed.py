"""Fields with randomness: asked at noised points, or noise themselves (GPM §4.1, §A.1, §B.1.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.fields.base import At, Field, Loss, LossValue, TrainingBatch
from partikel.schedules import NoiseLaw
from partikel.streams import normal_like
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
    """

    requires = frozenset({"generator"})

    def __init__(self, field: Field, law: NoiseLaw, power: float = 1.0) -> None:
        super().__init__()
        if "real" in field.needs:
            raise ConfigError(
                "a field that compares particles with real samples cannot be perturbed: the samples "
                "would have to share each particle's noise level; choose another objective."
            )
        self.field = field
        self.law = law
        self.power = power

    def forward(self, x: Tensor, at: At) -> Tensor:
        """w(σ) field(x + σε; σ) at fresh draws; a given σ is not used."""
        sigma, noised = _perturb(x, self.law, self.bound_generator())
        return expand_like(sigma**self.power, x) * self.field(noised, at._replace(sigma=sigma))

    def own_losses(self) -> tuple[Loss, ...]:
        """The inner field's losses, at perturbed points where they do not add noise themselves."""
        return tuple(
            loss if loss.adds_noise else replace(loss, compute=_AtNoised(loss.compute, self.law))
            for loss in self.field.losses()
        )


@dataclass(frozen=True)
class _AtNoised:
    """A loss at perturbed points; a dataclass, so that two of the same loss are equal."""

    compute: Callable[[TrainingBatch], LossValue]
    law: NoiseLaw

    def __call__(self, batch: TrainingBatch) -> LossValue:
        assert batch.real is not None
        assert batch.particles is not None
        generator = batch.streams.noise
        sigma, fake = _perturb(batch.particles.x, self.law, generator)
        noise = normal_like(fake, generator)
        real = replace(batch.real, x=batch.real.x + expand_like(sigma, noise) * noise)
        particles = replace(batch.particles, x=fake, sigma=sigma, clean=batch.particles.x)
        return self.compute(replace(batch, real=real, particles=particles))


class WhiteNoise(Field):
    """A field of independent standard normal draws times ``std``.

    Added to another field in a step of size η, ``std = √(2γβ_own/η)`` stands for √(2γβ_own) dW and
    gives the stochastic versions of both carriers (GPM eqs. 21-22; framework §1, which says why a
    generator does not keep the marginals).

    Args:
        std: a number, or a function of noise levels, () or (B,), shaped like them.
    """

    requires = frozenset({"generator"})

    def __init__(self, std: float | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor, at: At) -> Tensor:
        """Std · ξ."""
        draw = normal_like(x, self.bound_generator())
        if not callable(self.std):
            return self.std * draw
        if at.sigma is None:
            raise ConfigError("this white noise depends on σ: give its carrier a schedule.")
        return expand_like(self.std(at.sigma), x) * draw


def _perturb(x: Tensor, law: NoiseLaw, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    sigma = law.sample(len(x), generator=generator, dtype=x.dtype)
    return sigma, x + expand_like(sigma, x) * normal_like(x, generator)
