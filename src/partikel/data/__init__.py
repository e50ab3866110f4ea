"""Data: two-dimensional laws drawn fresh, and sets of images kept in memory, behind one interface.

:func:`open_dataset` opens by name what :data:`DATASETS` lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from partikel.data import synthetic
from partikel.data.base import (
    SPLITS,
    Batch,
    BatchStream,
    Dataset,
    FiniteDataset,
    SyntheticDataset,
)
from partikel.data.digits import digits
from partikel.data.idx import FASHION_MNIST, MNIST, SIZES, IdxSource, idx_images
from partikel.errors import ConfigError, nearest

__all__ = [
    "DATASETS",
    "SPLITS",
    "Batch",
    "BatchStream",
    "DataSettings",
    "Dataset",
    "Entry",
    "FiniteDataset",
    "SyntheticDataset",
    "open_dataset",
]


@dataclass(frozen=True)
class DataSettings:
    """Which data, and how they are prepared.

    Options that a data set has no use for stay as they are.

    Args:
        name: one of :data:`DATASETS`.
        root: folder of all data files; $PARTIKEL_DATA, else ~/.cache/partikel, where None.
        size: edge length of the images; as published where None.
        download: fetch files that the folder lacks.
        validation: share of the training data that is kept for validation, in [0, 0.9].
        split_seed: of the random splits, in [0, 2³²); resuming keeps the splits by keeping it.
    """

    name: str = "gaussians"
    root: str | None = None
    size: int | None = None
    download: bool = False
    validation: float = 0.1
    split_seed: int = 0


@dataclass(frozen=True)
class Entry:
    """A line of :data:`DATASETS`."""

    about: str
    """What it is, in a few words."""
    open: Callable[[DataSettings], Dataset]
    """Opens it with settings that have been checked."""
    options: tuple[str, ...] = ()
    """The fields of :class:`DataSettings` that apply to it."""
    sizes: tuple[int, ...] = ()
    """Values of ``size`` it accepts, the default first."""


def _points(about: str, make: Callable[[], Dataset]) -> Entry:
    return Entry(about, lambda settings: make())


def _idx(about: str, source: IdxSource) -> Entry:
    def make(settings: DataSettings) -> Dataset:
        return idx_images(
            source,
            root=settings.root,
            size=settings.size or SIZES[0],
            download=settings.download,
            validation=settings.validation,
            split_seed=settings.split_seed,
        )

    return Entry(about, make, ("root", "size", "download", "validation", "split_seed"), SIZES)


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
        lambda settings: digits(settings.validation, settings.split_seed),
        ("size", "validation", "split_seed"),
        (8,),
    ),
    "mnist": _idx("handwritten digits, 28 x 28", MNIST),
    "fashion-mnist": _idx("articles of clothing, 28 x 28", FASHION_MNIST),
}
"""Every data set that can be opened by name."""


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
        valid = ", ".join(map(str, entry.sizes))
        raise ConfigError(f"data.size of '{name}' cannot be {settings.size}: choose from {valid}")
    if not 0 <= settings.validation <= 0.9:
        raise ConfigError(f"data.validation must be in [0, 0.9], not {settings.validation}")
    if not 0 <= settings.split_seed < 2**32:
        raise ConfigError(f"data.split_seed must be in [0, 2^32), not {settings.split_seed}")
    return entry.open(settings)
