"""Training: phases, the one loop, averages, checkpoints."""

from partikel.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from partikel.training.loop import Iteration, Trainer
from partikel.training.phases import AdamSettings, Phase

__all__ = [
    "AdamSettings",
    "Iteration",
    "Phase",
    "Trainer",
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
