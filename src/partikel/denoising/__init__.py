"""Denoisers, their clothes (score, noise), their loss; those of other libraries."""

from partikel.denoising.denoisers import (
    EDMDenoiser,
    PreconditionedLogit,
    Weighting,
    denoiser_from_score,
    dsm_loss,
    noise_from_denoiser,
    score_from_denoiser,
)

__all__ = [
    "EDMDenoiser",
    "PreconditionedLogit",
    "Weighting",
    "denoiser_from_score",
    "dsm_loss",
    "noise_from_denoiser",
    "score_from_denoiser",
]
