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
from partikel.fields.couplings import Coupling, Independent, OptimalTransport, Pairs
from partikel.fields.discriminator import DiscriminatorField
from partikel.fields.guidance import Guided, LabelDropout
from partikel.fields.particles import At, Particles
from partikel.fields.perturbed import Perturbed, WhiteNoise
from partikel.fields.proximal import JKOField
from partikel.fields.ratio import DensityRatioField, FDivergenceField, KernelScoreField
from partikel.fields.samples.dmmd import DeepMMDField
from partikel.fields.samples.drift import DriftField
from partikel.fields.samples.features import InFeatures
from partikel.fields.samples.frechet import FrechetField
from partikel.fields.samples.mmd import MMDField
from partikel.fields.samples.stein import SteinField
from partikel.fields.samples.transport import SinkhornField, SlicedWassersteinField
from partikel.fields.score import ExactScoreField, ScoreField
from partikel.fields.terms import AtScale, Linear, LogRatioField
from partikel.fields.velocity import AlongPath, PathScore, VelocityField

__all__ = [
    "AlongPath",
    "At",
    "AtScale",
    "Context",
    "Coupling",
    "DeepMMDField",
    "DensityRatioField",
    "DiscriminatorField",
    "DriftField",
    "ExactScoreField",
    "FDivergenceField",
    "Field",
    "FrechetField",
    "Guided",
    "InFeatures",
    "Independent",
    "JKOField",
    "KernelScoreField",
    "LabelDropout",
    "Linear",
    "LogRatioField",
    "Loss",
    "LossValue",
    "MMDField",
    "OptimalTransport",
    "Pairs",
    "Particles",
    "PathScore",
    "Perturbed",
    "Scaled",
    "ScoreField",
    "SinkhornField",
    "SlicedWassersteinField",
    "SteinField",
    "Sum",
    "TrainingBatch",
    "VelocityField",
    "WhiteNoise",
]
