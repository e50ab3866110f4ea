"""Denoisers, their clothes (score, noise, velocity), their loss; those of other libraries."""

from partikel.denoising.denoisers import (
    EDMDenoiser,
    PreconditionedLogit,
    VelocityDenoiser,
    Weighting,
    denoiser_from_score,
    denoiser_from_velocity,
    dsm_loss,
    noise_from_denoiser,
    onto_path,
    path_score,
    score_from_denoiser,
    velocity_from_denoiser,
)

__all__ = [
    "EDMDenoiser",
    "PreconditionedLogit",
    "VelocityDenoiser",
    "Weighting",
    "denoiser_from_score",
    "denoiser_from_velocity",
    "dsm_loss",
    "noise_from_denoiser",
    "onto_path",
    "path_score",
    "score_from_denoiser",
    "velocity_from_denoiser",
]
