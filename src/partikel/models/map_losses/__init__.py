"""Losses of flow maps, each a file of its paper: what U(x, s, t) is regressed on (framework §11)."""

from partikel.models.map_losses.base import MapLoss, Points
from partikel.models.map_losses.consistency import Consistency
from partikel.models.map_losses.endpoints import Endpoints
from partikel.models.map_losses.improved_mean_flow import ImprovedMeanFlow
from partikel.models.map_losses.lagrangian import Lagrangian
from partikel.models.map_losses.mean_flow import MeanFlow
from partikel.models.map_losses.semigroup import Semigroup

__all__ = [
    "Consistency",
    "Endpoints",
    "ImprovedMeanFlow",
    "Lagrangian",
    "MapLoss",
    "MeanFlow",
    "Points",
    "Semigroup",
]
