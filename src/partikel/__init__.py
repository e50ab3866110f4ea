"""Partikel: a generative model is a field and something that carries it.

A *field* moves particles; free particles (:class:`ParticleModel`) or a generator
(:class:`GeneratorModel`) carry it. GANs, diffusion models, Score GANs and Discriminator Flows are
choices of the two.
"""

from partikel.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    PartikelError,
)
from partikel.fields import (
    Context,
    DiscriminatorField,
    ExactScoreField,
    Field,
    Perturbed,
    ScoreField,
    WhiteNoise,
)
from partikel.models import GeneratorModel, ParticleModel
from partikel.priors import GaussianPrior
from partikel.runs import Run, load, train_run
from partikel.training import AdamSettings, Phase, fit

__all__ = [
    "AdamSettings",
    "CheckpointError",
    "ConfigError",
    "Context",
    "DataError",
    "DiscriminatorField",
    "ExactScoreField",
    "Field",
    "GaussianPrior",
    "GeneratorModel",
    "NumericsError",
    "ParticleModel",
    "PartikelError",
    "Perturbed",
    "Phase",
    "Run",
    "ScoreField",
    "WhiteNoise",
    "fit",
    "load",
    "train_run",
]
