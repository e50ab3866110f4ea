"""Partikel: a generative model is a field and something that carries it.

A *field* moves particles; free particles (:class:`ParticleModel`), a generator
(:class:`GeneratorModel`) or a flow map (:class:`partikel.models.FlowMapModel`) carry it. GANs,
diffusion models, Score GANs and Discriminator Flows are choices of the two.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from partikel.app.export import load, load_generator
    from partikel.app.runs import Run, train_run
    from partikel.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        NumericsError,
        PartikelError,
    )
    from partikel.fields import (
        At,
        Context,
        DiscriminatorField,
        ExactScoreField,
        Field,
        Guided,
        Perturbed,
        ScoreField,
        WhiteNoise,
    )
    from partikel.models import GeneratorModel, ParticleModel
    from partikel.priors import GaussianPrior
    from partikel.training import AdamSettings, Phase, fit, load_into, save

__version__ = "0.1.0"

__all__ = [
    "AdamSettings",
    "At",
    "CheckpointError",
    "ConfigError",
    "Context",
    "DataError",
    "DiscriminatorField",
    "ExactScoreField",
    "Field",
    "GaussianPrior",
    "GeneratorModel",
    "Guided",
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
    "load_generator",
    "load_into",
    "save",
    "train_run",
]

_HOMES = {
    "AdamSettings": "partikel.training",
    "At": "partikel.fields",
    "CheckpointError": "partikel.errors",
    "ConfigError": "partikel.errors",
    "Context": "partikel.fields",
    "DataError": "partikel.errors",
    "DiscriminatorField": "partikel.fields",
    "ExactScoreField": "partikel.fields",
    "Field": "partikel.fields",
    "GaussianPrior": "partikel.priors",
    "GeneratorModel": "partikel.models",
    "Guided": "partikel.fields",
    "NumericsError": "partikel.errors",
    "ParticleModel": "partikel.models",
    "PartikelError": "partikel.errors",
    "Perturbed": "partikel.fields",
    "Phase": "partikel.training",
    "Run": "partikel.app.runs",
    "ScoreField": "partikel.fields",
    "WhiteNoise": "partikel.fields",
    "fit": "partikel.training",
    "load": "partikel.app.export",
    "load_generator": "partikel.app.export",
    "load_into": "partikel.training",
    "save": "partikel.training",
    "train_run": "partikel.app.runs",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``partikel --help`` needs no PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'partikel' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
