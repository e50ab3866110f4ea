"""Data: two-dimensional laws drawn fresh, and sets of images, behind one interface.

Small images are kept in memory; others are prepared once and memory-mapped (:mod:`.prepared`).

:func:`open_dataset` opens by name what :data:`DATASETS` lists.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

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
from partikel.data.files import LIMITS
from partikel.data.folder import folder
from partikel.data.hub import hub
from partikel.data.idx import FASHION_MNIST, MNIST, SIZES, IdxSource, idx_images
from partikel.data.own import in_memory
from partikel.data.prepared import MappedDataset, Source, prepare
from partikel.data.prior import DataPrior, one_class
from partikel.data.settings import DataSettings
from partikel.errors import ConfigError
from partikel.errors.checks import checked
from partikel.extensions import Registry

__all__ = [
    "DATASETS",
    "SPLITS",
    "Batch",
    "BatchStream",
    "DataPrior",
    "DataSettings",
    "Dataset",
    "Entry",
    "FiniteDataset",
    "MappedDataset",
    "SyntheticDataset",
    "in_memory",
    "one_class",
    "open_dataset",
]


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
    source: Callable[[DataSettings], Source] | None = None
    """Lists the pictures, where they lie one by one."""


def _points(about: str, make: Callable[[], Dataset]) -> Entry:
    return Entry(about, lambda settings: make())


def _idx(about: str, source: IdxSource) -> Entry:
    options = ("root", "download", "validation", "split_seed", "flip", "size", "max_bytes")
    return Entry(about, partial(idx_images, source), options, SIZES)


def _prepared(
    about: str,
    source: Callable[[DataSettings], Source],
    size: int,
    *options: str,
    sizes: Sequence[int] = range(16, 257),
) -> Entry:
    def make(settings: DataSettings) -> Dataset:
        found = source(settings)
        if settings.limits != LIMITS:  # others leave out other pictures
            found = replace(found, identity=f"{found.identity} {tuple(settings.limits)}")
        images = prepare(
            found,
            size=settings.size or size,
            channels=settings.channels,
            on_error=settings.on_error,
            cache=settings.cache,
        )
        rows = images.rows(settings.validation, settings.split_seed, TEST_SHARE)
        return MappedDataset(found.name, images, rows, flip=settings.flip)

    every = ("size", "channels", "flip", "cache", "max_bytes", "max_pixels")
    return Entry(about, make, (*every, *options), sizes, "path" in options, source)


TEST_SHARE = 0.1
"""Share of pictures that is kept for testing where no official split says which."""


_OURS: dict[str, Entry] = {
    "gaussians": _points("five equal Gaussians on a ring: the GPM paper's", synthetic.gaussians),
    "ring": _points("eight equal Gaussians on a ring", synthetic.ring),
    "unequal": _points("five Gaussians on a ring, weights .4 to .05", synthetic.unequal),
    "grid25": _points("25 narrow Gaussians on a grid", synthetic.grid25),
    "anisotropic": _points(
        "six stretched Gaussians in 16 dimensions, weights .35 to .04", synthetic.anisotropic
    ),
    "moons": _points("two interleaved half circles", synthetic.moons),
    "spiral": _points("two spiral arms", synthetic.spiral),
    "checkerboard": _points("uniform on the dark squares of a 4 x 4 board", synthetic.checkerboard),
    "digits": Entry(
        "scikit-learn's 8 x 8 handwritten digits: no download",
        digits,
        ("size", "validation", "split_seed", "flip"),
        (8,),
    ),
    "mnist": _idx("handwritten digits, 28 x 28", MNIST),
    "fashion-mnist": _idx("articles of clothing, 28 x 28", FASHION_MNIST),
    "cifar10": _prepared(
        "photographs of ten kinds of things, 32 x 32",
        cifar10,
        32,
        *("root", "download", "validation", "split_seed"),
        sizes=range(16, 65),
    ),
    "celeba": _prepared(
        "faces, 64 x 64, in their official partition",
        celeba,
        64,
        *("root", "on_error"),
    ),
    "folder": _prepared(
        "your own pictures: a folder or a zip file, 64 x 64",
        folder,
        64,
        *("root", "path", "labels", "on_error", "validation", "split_seed"),
    ),
    "hub": _prepared(
        "pictures from Hugging Face datasets, 64 x 64",
        hub,
        64,
        *("path", "labels", "on_error", "validation", "split_seed"),
        *("subset", "split", "image_column", "label_column"),
    ),
}


def _entry(name: str, found: Any) -> Entry:
    """What another package has under the name of a data set: an entry, or what opens it."""
    if isinstance(found, Entry):
        return found
    if not callable(found):
        raise TypeError(
            "it must be a function of DataSettings that returns a Dataset, or a partikel.data.Entry"
        )
    about = (inspect.getdoc(found) or name).splitlines()[0]
    every = tuple(each.name for each in fields(DataSettings))
    return Entry(about, cast(Callable[[DataSettings], Dataset], found), every, range(1, 2**16))


DATASETS: Registry[Entry] = Registry("data set", "datasets", _OURS, _entry)
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
    entry = DATASETS.find(name)
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
    opened = entry.open(settings)
    if not isinstance(opened, Dataset):
        raise ConfigError(
            f"the data set '{name}' opened as a {type(opened).__name__}: let it return a Dataset "
            "(partikel.data.in_memory makes one of tensors)."
        )
    return opened
