"""Fields: what moves particles. See :mod:`partikel.fields.base` for what a field is."""

from partikel.fields.base import (
    Context,
    Field,
    Loss,
    LossValue,
    Scaled,
    Sum,
    TrainingBatch,
)
from partikel.fields.discriminator import DiscriminatorField
from partikel.fields.perturbed import Perturbed, WhiteNoise
from partikel.fields.score import ExactScoreField, ScoreField
from partikel.fields.terms import AtScale, Linear, LogRatioField

__all__ = [
    "AtScale",
    "Context",
    "DiscriminatorField",
    "ExactScoreField",
    "Field",
    "Linear",
    "LogRatioField",
    "Loss",
    "LossValue",
    "Perturbed",
    "Scaled",
    "ScoreField",
    "Sum",
    "TrainingBatch",
    "WhiteNoise",
]
