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
from partikel.fields.guidance import Guided, LabelDropout
from partikel.fields.particles import At, Particles
from partikel.fields.perturbed import Perturbed, WhiteNoise
from partikel.fields.ratio import DensityRatioField, FDivergenceField, KernelScoreField
from partikel.fields.samples.dmmd import DeepMMDField
from partikel.fields.samples.drift import DriftField
from partikel.fields.samples.mmd import MMDField
from partikel.fields.samples.stein import SteinField
from partikel.fields.samples.transport import SinkhornField, SlicedWassersteinField
from partikel.fields.score import ExactScoreField, ScoreField
from partikel.fields.terms import AtScale, Linear, LogRatioField

__all__ = [
    "At",
    "AtScale",
    "Context",
    "DeepMMDField",
    "DensityRatioField",
    "DiscriminatorField",
    "DriftField",
    "ExactScoreField",
    "FDivergenceField",
    "Field",
    "Guided",
    "KernelScoreField",
    "LabelDropout",
    "Linear",
    "LogRatioField",
    "Loss",
    "LossValue",
    "MMDField",
    "Particles",
    "Perturbed",
    "Scaled",
    "ScoreField",
    "SinkhornField",
    "SlicedWassersteinField",
    "SteinField",
    "Sum",
    "TrainingBatch",
    "WhiteNoise",
]
