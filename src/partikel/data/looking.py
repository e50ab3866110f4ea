"""A look at pictures before anything is made of them: how many, how large, of which colours and classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from partikel.data import DATASETS, DataSettings, open_dataset
from partikel.data.hub import find_columns
from partikel.data.pictures import square
from partikel.data.prepared import Listing
from partikel.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

LOOKED_AT = 128
"""Pictures that are opened, evenly spread over all of them."""

THUMB = 16
"""Side of the thumbnails that colours are looked for in."""

TINT, SPECK = 24, 0.01
"""A picture has colours where its channels differ by more than so many of 255 in more than a share of it."""


@dataclass(frozen=True)
class Seen:
    """What there is to see of a set of pictures.

    Attributes:
        count: of all pictures, or of what is listed as one.
        sides: shorter sides of those that were opened, in ascending order.
        side: the edge that all of them have, where all are squares of one size; else None.
        colour: whether any of them has colours.
        transparent: share of them that has transparent parts.
        classes: names of the labels, in their order; empty where there are none.
        counts: pictures of each class.
        unreadable: those that could not be opened, and why.
        sizes: edge lengths that the data can have.
        changes: what settings of the data should be, to find these pictures.
    """

    count: int
    sides: tuple[int, ...]
    side: int | None = None
    colour: bool = True
    transparent: float = 0.0
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    unreadable: Mapping[str, str] | None = None
    sizes: tuple[int, ...] = tuple(range(16, 257))
    changes: Mapping[str, Any] | None = None


def look(settings: DataSettings) -> Seen:
    """Look at the pictures that settings of data name; only some of them are opened.

    Raises:
        ConfigError: for data that are no pictures.
        DataError: where there are none, or none that can be read.
    """
    entry = DATASETS.find(settings.name)
    sizes = tuple(entry.sizes)
    if entry.source is None:
        data = open_dataset(settings)
        if len(data.shape) != 3:
            raise ConfigError(
                f"'{settings.name}' holds points, not pictures: name a preset for it ('partikel "
                f"presets {settings.name}')."
            )
        size, side = data.size("train") or 0, data.shape[-1]
        names = tuple(data.class_names or map(str, range(data.classes or 0)))
        counts = (size // max(1, len(names)),) * len(names)
        return Seen(size, (side,), side, data.shape[0] == 3, 0.0, names, counts, None, sizes)
    changes = find_columns(settings) if settings.name == "hub" else {}
    source = entry.source(replace(settings, **changes))
    with source.open() as listing:
        if not listing.names:
            raise DataError(
                f"{source.where} holds no pictures (what is in a zip file inside is not seen): check the "
                "path, or put some there."
            )
        return replace(_seen(listing, source.where), sizes=sizes, changes=changes)


def _seen(listing: Listing, where: str) -> Seen:
    count = len(listing.names)
    chosen = np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).round().astype(int))
    edges: list[tuple[int, int]] = []
    colours = transparent = 0
    unreadable: dict[str, str] = {}
    for i in map(int, chosen):
        try:
            picture = listing.read(i)
            edges.append(picture.size)
            transparent += picture.has_transparency_data
            colours += _coloured(picture)
        except MemoryError:
            raise
        except Exception as error:  # of files, file systems, decoders: many kinds
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            unreadable[listing.names[i]] = reason
    if len(unreadable) == len(chosen):
        name, reason = next(iter(unreadable.items()))
        raise DataError(
            f"no picture in {where} can be used ({name}: {reason}): check that it is what --data should "
            "name."
        )
    classes = tuple(listing.classes or ())
    counts: tuple[int, ...] = ()
    if listing.labels is not None:
        counts = tuple(np.bincount(listing.labels, minlength=len(classes)).tolist())
    whole = edges[0][0] if len(set(edges)) == 1 and edges[0][0] == edges[0][1] else None
    return Seen(
        count,
        tuple(sorted(min(edge) for edge in edges)),
        whole,
        colours > 0,
        transparent / len(edges),
        classes,
        counts,
        unreadable,
    )


def _coloured(picture: Image.Image) -> bool:
    """Whether a picture has colours; its pixels are decoded, at a lower resolution where that is possible."""
    picture.draft("RGB", (4 * THUMB, 4 * THUMB))
    pixels = square(picture, min(THUMB, *picture.size), 3).astype(int)
    spread = pixels.max(0) - pixels.min(0)
    return bool((spread > TINT).mean() > SPECK)
