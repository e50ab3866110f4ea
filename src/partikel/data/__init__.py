"""Data: two-dimensional laws drawn fresh, and sets of images, behind one interface.

Small images are kept in memory; others are prepared once and memory-mapped (:mod:`.prepared`).

:func:`open_dataset` opens by name what :data:`DATASETS` lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from partikel.data import synthetic
from partikel.data.base import (
    SPLITS,
    Batch,
    BatchStream,
    Dataset,
    FiniteDataset,
    SyntheticDataset,
)
from partikel.data.celeba import celeba
from partikel.data.cifar import cifar10
from partikel.data.digits import digits
from partikel.data.files import Limits
from partikel.data.folder import find, folder
from partikel.data.hub import hub
from partikel.data.idx import FASHION_MNIST, MNIST, SIZES, IdxSource, idx_images
from partikel.data.prepared import MappedDataset, Source, prepare
from partikel.errors import ConfigError, nearest
from partikel.errors.checks import Checked, Range, Width, checked

__all__ = [
    "DATASETS",
    "SPLITS",
    "Batch",
    "BatchStream",
    "DataSettings",
    "Dataset",
    "Entry",
    "FiniteDataset",
    "MappedDataset",
    "SyntheticDataset",
    "open_dataset",
]


@dataclass(frozen=True)
class DataSettings(Checked):
    """Which data, and how they are prepared.

    Options that a data set has no use for stay as they are.

    Args:
        name: one of :data:`DATASETS`.
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
    root: str | None = None
    size: Width | None = None
    download: bool = False
    validation: Annotated[float, Range(least=0, most=0.9)] = 0.1
    split_seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    path: str | None = None
    channels: Literal[1, 3] = 3
    flip: bool = False
    labels: bool | None = None
    on_error: Literal["stop", "skip"] = "stop"
    cache: str | None = None
    subset: str | None = None
    split: str = "train"
    image_column: str = "image"
    label_column: str = "label"
    max_bytes: Annotated[int, Range(least=1)] = Limits().bytes
    max_pixels: Annotated[int, Range(1, 178_000_000)] = Limits().pixels

    @property
    def limits(self) -> Limits:
        """What is read at most."""
        return Limits(self.max_bytes, self.max_pixels)


@dataclass(frozen=True)
class Entry:
    """A line of :data:`DATASETS`."""

    about: str
    """What it is, in a few words."""
    open: Callable[[DataSettings], Dataset]
    """Opens it with settings that have been checked."""
    options: tuple[str, ...] = ()
    """The fields of :class:`DataSettings` that apply to it."""
    sizes: Sequence[int] = ()
    """Values of ``size`` it accepts."""
    needs_path: bool = False
    """Whether ``path`` must be given."""


def _points(about: str, make: Callable[[], Dataset]) -> Entry:
    return Entry(about, lambda settings: make())


def _given(settings: DataSettings, *names: str) -> dict[str, Any]:
    """Some settings by their names."""
    return {name: getattr(settings, name) for name in names}


def _idx(about: str, source: IdxSource) -> Entry:
    options = ("root", "download", "validation", "split_seed", "flip")

    def make(settings: DataSettings) -> Dataset:
        how = _given(settings, *options, "limits")
        return idx_images(source, size=settings.size or SIZES[0], **how)

    return Entry(about, make, (*options, "size", "max_bytes"), SIZES)


def _prepared(
    about: str,
    source: Callable[[DataSettings], Source],
    size: int,
    *options: str,
    sizes: Sequence[int] = range(16, 257),
) -> Entry:
    def make(settings: DataSettings) -> Dataset:
        found = source(settings)
        if settings.limits != Limits():  # others leave out other pictures
            found = replace(found, identity=f"{found.identity} {tuple(settings.limits)}")
        how = _given(settings, "channels", "on_error", "cache")
        images = prepare(found, size=settings.size or size, **how)
        rows = images.rows(settings.validation, settings.split_seed, TEST_SHARE)
        return MappedDataset(found.name, images, rows, flip=settings.flip)

    every = ("size", "channels", "flip", "cache", "max_bytes", "max_pixels")
    return Entry(about, make, (*every, *options), sizes, "path" in options)


_HUB = ("subset", "split", "image_column", "label_column")

TEST_SHARE = 0.1
"""Share of pictures that is kept for testing where no official split says which."""


DATASETS: dict[str, Entry] = {
    "gaussians": _points("five equal Gaussians on a ring: the GPM paper's", synthetic.gaussians),
    "ring": _points("eight equal Gaussians on a ring", synthetic.ring),
    "unequal": _points("five Gaussians on a ring, weights .4 to .05", synthetic.unequal),
    "grid25": _points("25 narrow Gaussians on a grid", synthetic.grid25),
    "moons": _points("two interleaved half circles", synthetic.moons),
    "spiral": _points("two spiral arms", synthetic.spiral),
    "checkerboard": _points("uniform on the dark squares of a 4 x 4 board", synthetic.checkerboard),
    "digits": Entry(
        "scikit-learn's 8 x 8 handwritten digits: no download",
        lambda settings: digits(**_given(settings, "validation", "split_seed", "flip")),
        ("size", "validation", "split_seed", "flip"),
        (8,),
    ),
    "mnist": _idx("handwritten digits, 28 x 28", MNIST),
    "fashion-mnist": _idx("articles of clothing, 28 x 28", FASHION_MNIST),
    "cifar10": _prepared(
        "photographs of ten kinds of things, 32 x 32",
        lambda settings: cifar10(**_given(settings, "root", "download", "limits")),
        32,
        *("root", "download", "validation", "split_seed"),
        sizes=range(16, 65),
    ),
    "celeba": _prepared(
        "faces, 64 x 64, in their official partition",
        lambda settings: celeba(**_given(settings, "root", "limits")),
        64,
        *("root", "on_error"),
    ),
    "folder": _prepared(
        "your own pictures: a folder or a zip file, 64 x 64",
        lambda settings: folder(
            find(settings.path or "", settings.root), **_given(settings, "labels", "limits")
        ),
        64,
        *("root", "path", "labels", "on_error", "validation", "split_seed"),
    ),
    "hub": _prepared(
        "pictures from Hugging Face datasets, 64 x 64",
        lambda settings: hub(settings.path or "", **_given(settings, "labels", "limits", *_HUB)),
        64,
        *("path", "labels", "on_error", "validation", "split_seed", *_HUB),
    ),
}
"""Every data set that can be opened by name."""


@checked
def open_dataset(settings: DataSettings) -> Dataset:
    """Open the data set that the settings name.

    Raises:
        ConfigError: where the name is unknown, an option does not apply to the data set, or a value
            is out of range.
        DataError: where files are missing or damaged.
    """
    name = settings.name
    if name not in DATASETS:
        raise ConfigError(f"there is no data set '{name}': {nearest(name, list(DATASETS))}")
    entry = DATASETS[name]
    for field in fields(settings):
        changed = getattr(settings, field.name) != field.default
        if changed and field.name not in ("name", *entry.options):
            raise ConfigError(f"data.{field.name} does not apply to '{name}': leave it out")
    if settings.size is not None and settings.size not in entry.sizes:
        valid = (
            f"{entry.sizes[0]} to {entry.sizes[-1]}"
            if isinstance(entry.sizes, range)
            else ", ".join(map(str, entry.sizes))
        )
        raise ConfigError(f"data.size of '{name}' cannot be {settings.size}: choose from {valid}")
    if entry.needs_path and not settings.path:
        raise ConfigError(f"'{name}' needs data.path: say where the pictures are")
    return entry.open(settings)
