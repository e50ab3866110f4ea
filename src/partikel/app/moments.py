"""What a training looks like on its way: a picture now and then, and frames for an animation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from partikel.fields import Perturbed
from partikel.models import Carrier
from partikel.streams import seeded

PARTS_SIGMA = 0.5
"""Noise level at which a score difference's two parts are recorded for animations."""


@dataclass(frozen=True)
class Moment:
    """An evaluation of a model that is being trained.

    Attributes:
        folder: of the run.
        step: iterations done.
        model: as it stands.
        seed: of the run.
        data: real points, and as many samples at most.
        samples: of the model.
        start: the latents that they were made of, where they are to be a frame; else None.
        cond: the labels of those.
        real: samples of the data, for a field that compares with them.
    """

    folder: Path
    step: int
    model: Carrier
    seed: int
    data: Tensor
    samples: Tensor
    start: Tensor | None = None
    cond: Tensor | None = None
    real: Tensor | None = None


def paint(moment: Moment) -> None:
    """Draw the samples, and record a frame: of points of the plane, and of images."""
    from partikel.app.show.animation import save_frame, training_frame  # these bring matplotlib
    from partikel.app.show.plots import save_picture

    step, data = moment.step, moment.data
    if moment.start is not None and (data.ndim > 2 or data.shape[1] == 2):
        frames: dict[str, float | None] = {"step": None}
        if isinstance(moment.model.field, Perturbed) and data.ndim == 2:  # GPM Figure 12
            frames["parts"] = PARTS_SIGMA
        for kind, sigma in frames.items():
            frame = training_frame(
                moment.model,
                moment.start,
                step=step,
                generator=seeded(moment.seed, "frames", device=data.device),
                view=data,
                real=moment.real,
                sigma=sigma,
                cond=moment.cond,
            )
            save_frame(frame, moment.folder / "frames" / f"{kind}-{step:08d}.npz")
    picture = moment.folder / "samples" / f"step-{step:08d}.png"
    save_picture(moment.samples, picture, data=data, title=f"iteration {step}")
