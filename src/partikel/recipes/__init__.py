"""Recipes: named models as compositions, one file a system, and presets with measured results."""

from inspect import isabstract
from typing import Any

from partikel.extensions import Registry
from partikel.recipes.base import Recipe, System
from partikel.recipes.diffflow import DiffFlowGAN, DiffODEGAN, PlanePoint
from partikel.recipes.discriminator_flow import DiscriminatorFlow
from partikel.recipes.edm import EDM
from partikel.recipes.flow_map import ConsistencyMap, Distillation, MeanFlowMap
from partikel.recipes.flow_matching import FlowMatching
from partikel.recipes.gan import GAN
from partikel.recipes.score_gan import ScoreFlow, ScoreGAN

_OURS: dict[str, type[Recipe]] = {
    recipe.name: recipe
    for recipe in (
        EDM,
        FlowMatching,
        MeanFlowMap,
        ConsistencyMap,
        GAN,
        ScoreGAN,
        ScoreFlow,
        DiscriminatorFlow,
        PlanePoint,
        DiffODEGAN,
        DiffFlowGAN,
        Distillation,
    )
}


def _recipe(name: str, found: Any) -> type[Recipe]:
    """What another package has under the name of a recipe."""
    if not (isinstance(found, type) and issubclass(found, Recipe)) or isabstract(found):
        raise TypeError("it must be a subclass of partikel.recipes.Recipe with a compose")
    if "__dataclass_params__" not in vars(found):
        raise TypeError("its class must be decorated by @dataclass(frozen=True, kw_only=True)")
    missing = [each for each in ("name", "title", "symbol") if not hasattr(found, each)]
    if missing or found.name != name:
        raise TypeError(
            f"its class must have a name, '{name}', a title and a symbol, each a ClassVar[str]"
        )
    return found


RECIPES: Registry[type[Recipe]] = Registry("recipe", "recipes", _OURS, _recipe)
"""Every recipe by the name that presets use."""

__all__ = [
    "EDM",
    "GAN",
    "ConsistencyMap",
    "DiffFlowGAN",
    "DiffODEGAN",
    "RECIPES",
    "DiscriminatorFlow",
    "Distillation",
    "FlowMatching",
    "MeanFlowMap",
    "PlanePoint",
    "Recipe",
    "ScoreFlow",
    "ScoreGAN",
    "System",
]
