"""Pictures from Hugging Face datasets: of the Hub, of a local folder, or saved to disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from partikel.data.pictures import BrokenPicture, decoded
from partikel.data.prepared import Listing, Source
from partikel.errors import ConfigError, DataError, nearest
from partikel.files import expanded


def hub(
    path: str,
    *,
    subset: str | None = None,
    split: str = "train",
    image_column: str = "image",
    label_column: str = "label",
    labels: bool | None = None,
) -> Source:
    """The pictures of one published split.

    Args:
        path: name on the Hub, or a folder: of files that ``datasets`` reads, or made by its
            ``save_to_disk``.
        subset: configuration of the data set, where it has several.
        split: the published split.
        image_column: column of the pictures.
        label_column: column of the labels: class labels, words or numbers.
        labels: False for none, True to insist, None for labels where there are any.

    Raises:
        ConfigError: where ``datasets`` is not installed, or a column or split does not exist.
        DataError: where the data cannot be loaded.
    """
    data = _load(path, subset, split)
    columns = list(data.column_names)
    needed = {"image_column": image_column, **({"label_column": label_column} if labels else {})}
    for option, column in needed.items():
        if column not in columns:
            raise ConfigError(
                f"'{path}' has no column '{column}' for data.{option}: {nearest(column, columns)}"
            )
    labelled = labels is not False and label_column in columns
    where = f"'{path}' ({split})"
    identity = (path, subset, split, data._fingerprint, image_column, label_column, labels)
    return Source(
        "hub",
        where,
        repr(identity),
        lambda: _listing(data, where, image_column, label_column if labelled else None),
    )


def _load(path: str, subset: str | None, split: str) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "data.name hub needs the package datasets: pip install 'partikel[datasets]'"
        ) from error
    local = expanded(path)
    saved = any((local / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        if not saved:
            return datasets.load_dataset(
                str(local) if local.exists() else path, subset, split=split
            )
        data = datasets.load_from_disk(str(local))
    except Exception as error:  # of the network, of files, of names: many kinds
        reason = " ".join(str(error).split())
        raise DataError(
            f"'{path}' ({split}) could not be loaded ({reason}): check data.path, data.subset and "
            "data.split"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ConfigError(
                f"'{path}' has no split '{split}' for data.split: {nearest(split, list(data))}"
            )
        return data[split]
    return data


@contextmanager
def _listing(data: Any, where: str, images: str, labels: str | None) -> Iterator[Listing]:
    import datasets  # pyright: ignore[reportMissingImports]

    try:  # the files as they are: decoding is ours, and names what is broken
        pictures = data.select_columns([images]).cast_column(images, datasets.Image(decode=False))
    except Exception as error:
        raise DataError(
            f"the column '{images}' of {where} holds no pictures ({' '.join(str(error).split())}): "
            "choose another data.image_column"
        ) from error

    def read(i: int) -> Image.Image:
        entry = pictures[i][images]
        if entry is None:
            raise BrokenPicture("there is none in this row")
        content = entry["bytes"]
        return decoded(Path(entry["path"]).read_bytes() if content is None else content)

    names = [f"row {i}" for i in range(len(pictures))]
    if labels is None:
        yield Listing(names, read)
        return
    numbers, classes = _numbered(data, where, labels)
    yield Listing(names, read, numbers, classes)


def _numbered(data: Any, where: str, column: str) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers, and their names."""
    kind = data.features[column]
    values = list(data[column])
    names = getattr(kind, "names", None)
    if names is not None:
        bad = next((i for i, v in enumerate(values) if v is None or not 0 <= v < len(names)), None)
    else:
        bad = next((i for i, v in enumerate(values) if not isinstance(v, (str, int))), None)
    if bad is not None:
        raise DataError(
            f"the column '{column}' of {where} holds {values[bad]!r} in row {bad}, which is no label: "
            "choose another data.label_column, or set data.labels to false"
        )
    if names is not None:
        return np.array(values, np.int64), list(names)
    known = sorted(set(values))
    number = {value: i for i, value in enumerate(known)}
    return np.array([number[value] for value in values], np.int64), [str(v) for v in known]
