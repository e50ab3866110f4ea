"""Training: phases, the one loop, averages, checkpoints, and the engine that computes it."""

from partikel.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_into,
    save,
    save_checkpoint,
)
from partikel.training.ema import EMA
from partikel.training.engine import Engine
from partikel.training.fit import Interrupted, default_phases, fit
from partikel.training.loop import Iteration, Trainer
from partikel.training.phases import AdamSettings, Phase

__all__ = [
    "EMA",
    "AdamSettings",
    "Engine",
    "Interrupted",
    "Iteration",
    "Phase",
    "Trainer",
    "default_phases",
    "fit",
    "latest_checkpoint",
    "load_checkpoint",
    "load_into",
    "save",
    "save_checkpoint",
]
