"""What may be chosen about data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from partikel.data.files import LIMITS, Limits
from partikel.errors.checks import MAY_DIFFER, Checked, Range, SplitSeed, Width


@dataclass(frozen=True)
class DataSettings(Checked):
    """Which data, and how they are prepared.

    Options that a data set has no use for stay as they are.

    Args:
        name: one of :data:`partikel.data.DATASETS`.
        root: folder of all data files; $PARTIKEL_DATA, else ~/.cache/partikel, where None.
        size: edge length of the images; as published where None.
        download: fetch files that the folder lacks.
        validation: share of the training data that is kept for validation, in [0, 0.9].
        split_seed: of the random splits, in [0, 2³²); resuming keeps the splits by keeping it.
        path: for ``folder`` a folder or zip file, here or under the root; for ``hub`` the name of a
            Hugging Face data set, or a local one.
        channels: 3 for colour, 1 for grey.
        flip: mirror each image of a training batch, left to right, with probability ½.
        labels: false for none, true to insist on them; labels where there are any where None.
        on_error: what an image does that cannot be used: stop, or be skipped with a warning.
        cache: folder of prepared images; $PARTIKEL_CACHE, else ~/.cache/partikel/prepared, where
            None.
        subset: configuration of the Hugging Face data set, where it has several.
        split: its split that everything is taken from.
        image_column: its column of pictures.
        label_column: its column of labels.
        max_bytes: largest file that is read, unpacked; at least 1.
        max_pixels: largest picture that is decoded, 1 to 178,000,000 pixels (Pillow's own limit).
    """

    name: str = "gaussians"
    root: str | None = field(default=None, metadata=MAY_DIFFER)
    size: Width | None = None
    download: bool = field(default=False, metadata=MAY_DIFFER)
    validation: Annotated[float, Range(least=0, most=0.9)] = 0.1
    split_seed: SplitSeed = 0
    path: str | None = field(default=None, metadata=MAY_DIFFER)
    channels: Literal[1, 3] = 3
    flip: bool = False
    labels: bool | None = None
    on_error: Literal["stop", "skip"] = "stop"
    cache: str | None = field(default=None, metadata=MAY_DIFFER)
    subset: str | None = None
    split: str = "train"
    image_column: str = "image"
    label_column: str = "label"
    max_bytes: Annotated[int, Range(least=1)] = LIMITS.bytes
    max_pixels: Annotated[int, Range(1, 178_000_000)] = LIMITS.pixels

    @property
    def title(self) -> str:
        """What people call the data: the folder or file by its own name, the others as they are named."""
        if self.path is None or not self.path.strip():
            return self.name
        place = Path(self.path)
        if self.name == "folder" and not place.name.strip("."):  # "." and ".."
            place = place.resolve()
        return place.stem if place.suffix.lower() == ".zip" else place.name or self.name

    @property
    def limits(self) -> Limits:
        """What is read at most."""
        return Limits(self.max_bytes, self.max_pixels)
