"""Training: phases, the one loop, averages, checkpoints, and the engine that computes it."""

from partikel.training.checkpoint import (
    Initial,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from partikel.training.ema import EMA
from partikel.training.engine import Engine
from partikel.training.fit import Interrupted, fit
from partikel.training.loop import Iteration, Trainer
from partikel.training.phases import AdamSettings, Phase

__all__ = [
    "EMA",
    "AdamSettings",
    "Engine",
    "Initial",
    "Interrupted",
    "Iteration",
    "Phase",
    "Trainer",
    "fit",
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
