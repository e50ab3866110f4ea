"""Pictures from Hugging Face datasets: of the Hub, of a local folder, or saved to disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from partikel.data.files import Limits, user_path
from partikel.data.pictures import BrokenPicture, decoded
from partikel.data.prepared import Listing, Source
from partikel.data.settings import DataSettings
from partikel.errors import ConfigError, DataError, nearest, optional
from partikel.files import plain_file

if TYPE_CHECKING:
    from PIL import Image


def hub(settings: DataSettings) -> Source:
    """The pictures of one published split: of a name on the Hub, or a folder.

    The folder is of files that ``datasets`` reads, or made by its ``save_to_disk``. Labels are class
    labels, words or numbers.

    Raises:
        ConfigError: where ``datasets`` is not installed, or a column or split does not exist.
        DataError: where the data cannot be loaded.
    """
    path, split, labels = settings.path or "", settings.split, settings.labels
    image_column, label_column = settings.image_column, settings.label_column
    data = _load(path, settings.subset, split)
    columns = list(data.column_names)
    needed = {"image_column": image_column, **({"label_column": label_column} if labels else {})}
    for option, column in needed.items():
        if column not in columns:
            raise ConfigError(
                f"'{path}' has no column '{column}' for data.{option}: {nearest(column, columns)}"
            )
    read = label_column if labels is not False and label_column in columns else None
    where = f"'{path}' ({split})"
    identity = (path, settings.subset, split, data._fingerprint, image_column, label_column, labels)
    return Source(
        "hub",
        where,
        repr(identity),
        lambda: _listing(data, where, image_column, read, settings.limits),
    )


def find_columns(settings: DataSettings) -> dict[str, str]:
    """The first column of pictures and the first of class labels, where the usual ones are not there."""
    features = _load(settings.path or "", settings.subset, settings.split).features
    found = {}
    for option, kind in (("image_column", "Image"), ("label_column", "ClassLabel")):
        named = [column for column, each in features.items() if type(each).__name__ == kind]
        if named and getattr(settings, option) not in features:
            found[option] = named[0]
    return found


def _load(path: str, subset: str | None, split: str) -> Any:
    datasets = optional("datasets", "datasets", "data.name hub needs the package datasets")
    local = user_path(path)
    if local.exists() and not local.is_dir():
        try:
            plain_file(local)
        except OSError as error:
            raise DataError(f"{local} cannot be read ({error.strerror}): name a folder") from error
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
def _listing(
    data: Any, where: str, images: str, labels: str | None, limits: Limits
) -> Iterator[Listing]:
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
        whole = limits.plain(Path(entry["path"])) if content is None else content
        return decoded(whole, limits)

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
