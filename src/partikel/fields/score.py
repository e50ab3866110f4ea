"""Scores as fields: of a learned denoiser, or of an exact target (GPM eqs. 4-9, 19, 23-24)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from partikel.denoising import EDMDenoiser, Weighting, dsm_loss, score_from_denoiser
from partikel.errors import ConfigError
from partikel.fields.base import At, Field, Loss, LossValue, TrainingBatch
from partikel.schedules import NoiseLaw
from partikel.streams import normal_like
from partikel.targets import Target


class ScoreField(Field):
    """s(x, σ) = ∇log(law ⋆ k_σ)(x) of a law that a denoiser learns from samples.

    Args:
        denoiser: D(x; σ), or D(x; σ, t) where it is ``timed``: the law then moves with t.
        law: the law of σ that it is trained on; None for a field that is only evaluated.
        of: whose score it is: "data" trains on real samples, "particles" on the carrier's own, all
            along its path.
        weighting: of denoising score matching.
        name: the name of its loss.
    """

    def __init__(
        self,
        denoiser: EDMDenoiser,
        law: NoiseLaw | None = None,
        *,
        of: Literal["data", "particles"] = "data",
        weighting: Weighting = "edm",
        name: str = "score",
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.law = law
        self.of = of
        self.weighting: Weighting = weighting
        self.name = name

    def forward(self, x: Tensor, at: At) -> Tensor:
        """(D(x; σ) - x)/σ²."""
        if at.sigma is None:
            raise ConfigError(
                "a score field is asked at a noise level: give its carrier a schedule, "
                "or perturb it (Perturbed)."
            )
        denoised = self.denoiser(x, at.sigma, at.t if self.denoiser.timed else None, at.cond)
        return score_from_denoiser(denoised, x, at.sigma)

    def own_losses(self) -> tuple[Loss, ...]:
        """Denoising score matching, unless without a law of σ."""
        if self.law is None:
            return ()
        needs = frozenset({"real" if self.of == "data" else "particles"})
        return (Loss(self.name, self.denoiser, needs, self._dsm, adds_noise=True),)

    def _dsm(self, batch: TrainingBatch) -> LossValue:
        if self.of == "data":
            assert batch.real is not None
            clean, cond, t = batch.real.x, batch.real.cond, None
        else:
            assert batch.particles is not None
            clean, cond, t = batch.particles.x, batch.particles.cond, batch.particles.t
        assert self.law is not None
        sigma = self.law.sample(len(clean), generator=batch.streams.time, dtype=clean.dtype)
        noise = normal_like(clean, batch.streams.noise)
        t = t if self.denoiser.timed else None
        return LossValue(dsm_loss(self.denoiser, clean, sigma, noise, t, cond, self.weighting))


class ExactScoreField(Field):
    """The score of an exact target, ∇log p_σ(x); at σ = 0 where no noise level is given.

    Args:
        target: a law with a closed-form score.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor, at: At) -> Tensor:
        """∇log p_σ(x)."""
        return self.target.score(x, at.sigma)

    def estimate(self, x: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """The values log p_σ(x) (B,) and ∇log p_σ(x) (B, ...)."""
        return self.target.log_density(x, at.sigma), self(x, at)
