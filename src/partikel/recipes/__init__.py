"""Recipes: named models as compositions, one file a system, and presets with measured results."""

from partikel.recipes.base import Recipe, System
from partikel.recipes.diffflow import DiffFlowGAN, DiffODEGAN, PlanePoint
from partikel.recipes.discriminator_flow import DiscriminatorFlow
from partikel.recipes.edm import EDM
from partikel.recipes.gan import GAN
from partikel.recipes.score_gan import ScoreFlow, ScoreGAN

RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (
        EDM,
        GAN,
        ScoreGAN,
        ScoreFlow,
        DiscriminatorFlow,
        PlanePoint,
        DiffODEGAN,
        DiffFlowGAN,
    )
}
"""Every recipe by the name that presets use."""

__all__ = [
    "EDM",
    "GAN",
    "DiffFlowGAN",
    "DiffODEGAN",
    "RECIPES",
    "DiscriminatorFlow",
    "PlanePoint",
    "Recipe",
    "ScoreFlow",
    "ScoreGAN",
    "System",
]
