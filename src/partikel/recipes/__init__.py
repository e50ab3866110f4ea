"""Recipes: named models as compositions, one file a system, and presets with measured results."""

from partikel.recipes.base import Recipe, System
from partikel.recipes.discriminator_flow import DiscriminatorFlow
from partikel.recipes.edm import EDM
from partikel.recipes.gan import GAN
from partikel.recipes.score_gan import ScoreFlow, ScoreGAN

RECIPES: dict[str, type[Recipe]] = {
    recipe.name: recipe for recipe in (EDM, GAN, ScoreGAN, ScoreFlow, DiscriminatorFlow)
}
"""Every recipe by the name that presets use."""

__all__ = [
    "EDM",
    "GAN",
    "RECIPES",
    "DiscriminatorFlow",
    "Recipe",
    "ScoreFlow",
    "ScoreGAN",
    "System",
]
