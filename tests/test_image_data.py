"""Sets of images: geometry, colours, labels, archives, the cache, and what can be wrong with them."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import sys
import tarfile
import threading
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from partikel.data import (
    SPLITS,
    DataSettings,
    FiniteDataset,
    MappedDataset,
    files,
    open_dataset,
    pictures,
    prepared,
)
from partikel.data.cifar import ARCHIVE, CLASSES, FILES, FOLDER, CifarSource, cifar10
from partikel.data.folder import top_folders
from partikel.data.pictures import BrokenPicture, square
from partikel.errors import ConfigError, DataError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own cache."""
    monkeypatch.setenv("PARTIKEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_image(seed: int, width: int = 20, height: int = 20) -> Image.Image:
    values = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def fill(folder: Path, names: list[str]) -> Path:
    """A folder in which the picture ``names[i]`` is ``random_image(i)``."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(random_image(i)))
    return folder


def zipped(folder: Path, wrapper: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, Path(wrapper, file.relative_to(folder)))
    return path


def mapped(name: str = "folder", **settings: Any) -> MappedDataset:
    data = open_dataset(DataSettings(name, **{"size": 16, **settings}))
    assert isinstance(data, MappedDataset)
    return data


def everything(data: MappedDataset) -> np.ndarray:
    """All images in the order in which they were prepared."""
    return np.array(data.prepared.images)


def pixels(image: Image.Image, size: int = 16, channels: int = 3) -> np.ndarray:
    return square(image, size, channels)


LETTERS = [f"{letter}.png" for letter in "abcdefghijkl"]

# --- from a picture to a square ---


@pytest.mark.parametrize("turned", [False, True], ids=["portrait", "landscape"])
def test_shorter_side_is_resized_and_the_centre_is_kept(turned: bool) -> None:
    """CelebA's 178 x 218 at 64: scaled to 64 x 78, rows 7 to 70 remain. A ramp shows which."""
    width, height, size, long = 178, 218, 64, 78
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    ramps = np.stack([x, y, 0 * x], 2)
    ramps = ramps.transpose(1, 0, 2) if turned else ramps
    result = square(Image.fromarray(ramps.astype(np.uint8)), size, 3).astype(float)
    along = (np.arange(size) + 0.5) * width / size
    across = (np.arange(size) + 0.5 + (long - size) // 2) * height / long
    if turned:
        result = result.transpose(0, 2, 1)
    # Lanczos keeps ramps but at the border; the bytes were cut down by a half and rounded.
    inner = slice(3, -3)
    assert np.abs(result[0] + 0.5 - along[None, :])[:, inner].max() <= 1
    assert np.abs(result[1] + 0.5 - across[:, None])[:, inner].max() <= 1


def test_what_fits_is_not_touched() -> None:
    image = random_image(0, 32, 32)
    assert np.array_equal(square(image, 32, 3), np.asarray(image).transpose(2, 0, 1))
    wide = random_image(0, 41, 32)
    assert np.array_equal(square(wide, 32, 3), np.asarray(wide)[:, 4:36].transpose(2, 0, 1))


def test_enlarging_has_a_limit() -> None:
    assert square(random_image(0, 8, 99), 16, 3).shape == (3, 16, 16)
    with pytest.raises(BrokenPicture, match=r"7x99, too small for data.size 16: at least 8"):
        square(random_image(0, 7, 99), 16, 3)


def flat(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (16, 16), value)


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    if transparent:
        image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (flat("RGB", (200, 100, 50)), (200, 100, 50)),
        (flat("RGBA", (200, 100, 50, 255)), (200, 100, 50)),
        (flat("RGBA", (200, 100, 50, 0)), (255, 255, 255)),
        (flat("RGBA", (255, 0, 0, 51)), (255, 204, 204)),
        (flat("LA", (0, 51)), (204, 204, 204)),
        (palette(False), (200, 100, 50)),
        (palette(True), (255, 255, 255)),
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), (255, 255, 255)),
        (flat("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (flat("I;16", 65535), (255, 255, 255)),
        (flat("I;16", 100 * 257 + 128), (100, 100, 100)),
        (flat("I;16", 0), (0, 0, 0)),
    ],
)
def test_every_mode_becomes_colour(image: Image.Image, colour: tuple[int, int, int]) -> None:
    result = square(image, 16, 3)
    assert result.shape == (3, 16, 16)
    for channel, value in zip(result, colour, strict=True):
        assert (channel == value).all()


def test_colour_becomes_luminance() -> None:
    result = square(flat("RGB", (200, 100, 50)), 16, 1)
    assert result.shape == (1, 16, 16)
    assert np.abs(result.astype(float) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)).max() <= 1


def test_unknown_ranges_are_refused() -> None:
    for mode in ("F", "I"):
        with pytest.raises(BrokenPicture, match="range of its values is unknown"):
            square(Image.new(mode, (16, 16), 3), 16, 3)


def test_turned_pictures_are_turned_back() -> None:
    image = random_image(0, 16, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter clockwise
    content = io.BytesIO()
    image.save(content, "PNG", exif=exif)
    result = square(pictures.decoded(content.getvalue()), 16, 3)
    assert np.array_equal(result, np.rot90(square(image, 16, 3), -1, (1, 2)))


# --- folders and zip files ---


@pytest.mark.parametrize("kind", ["folder", "zip", "wrapped zip"])
def test_pictures_of_all_kinds_are_found_in_order(tmp_path: Path, kind: str) -> None:
    folder = fill(tmp_path / "own", ["b/2.PNG", "a.png", "b/1.png", "c/d/e.png"])
    for name in (".hidden.png", "notes.txt", "__MACOSX/a.png", ".git/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"?")
    path = folder if kind == "folder" else zipped(folder, "top" if "wrapped" in kind else "")
    data = mapped(path=str(path))
    # "a.png" is image 1, "b/1.png" image 2, "b/2.PNG" image 0, "c/d/e.png" image 3.
    expected = np.stack([pixels(random_image(i)) for i in (1, 2, 0, 3)])
    assert np.array_equal(everything(data), expected)
    assert data.classes is None  # a.png lies in no class
    assert data.draw(2, generator=seeded()).cond is None


@pytest.mark.parametrize("kind", ["folder", "zip", "wrapped zip"])
def test_sub_folders_are_labels(tmp_path: Path, kind: str) -> None:
    names = ["dog/1.png", "cat/x/2.png", "cat/1.png", "ant/9.png", "dog/x/2.png"]
    folder = fill(tmp_path / "own", names)
    path = folder if kind == "folder" else zipped(folder, "top/of" if "wrapped" in kind else "")
    data = mapped(path=str(path), validation=0.0)
    assert data.classes == 3
    assert data.prepared.classes == ["ant", "cat", "dog"]
    batch = data.take(torch.arange(5))
    assert batch.cond is not None
    assert batch.cond.dtype == torch.int64
    kind_of = {i: ["ant", "cat", "dog"].index(name.split("/")[0]) for i, name in enumerate(names)}
    for image, label in zip(data.stored()[0].numpy(), batch.cond.tolist(), strict=True):
        found = [i for i in range(5) if np.array_equal(image, pixels(random_image(i)))]
        assert label == kind_of[found[0]]
    assert mapped(path=str(path), labels=False).classes is None
    assert mapped(path=str(path), labels=True).classes == 3


def test_top_folders() -> None:
    assert top_folders(["w/a/1", "w/b/2", "w/b/c/3"]) == ["a", "b", "b"]
    assert top_folders(["w/a/1", "w/2"]) == ["a", None]
    assert top_folders(["w/1", "w/2"]) == [None, None]
    assert top_folders([]) == []


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a/1.png", "b/2.png", "3.png"], r"3\.png lies in none"),
        (["a/1.png", "a/2.png"], "there are not two"),
    ],
)
def test_labels_that_are_not_there(tmp_path: Path, names: list[str], reason: str) -> None:
    folder = fill(tmp_path / "own", names)
    assert mapped(path=str(folder)).classes is None
    with pytest.raises(DataError, match=f"no labels.*{reason}.*data.labels to false"):
        mapped(path=str(folder), labels=True)


def test_path_is_looked_for_under_the_root(tmp_path: Path) -> None:
    fill(tmp_path / "root" / "own", LETTERS)
    data = mapped(path="own", root=str(tmp_path / "root"))
    assert len(everything(data)) == 12


def test_random_splits(tmp_path: Path) -> None:
    folder = fill(tmp_path / "own", [f"{i:02}.png" for i in range(40)])
    data = mapped(path=str(folder), validation=0.25)
    assert [data.size(split) for split in SPLITS] == [27, 9, 4]
    found = np.concatenate([data.stored(split)[0].numpy() for split in SPLITS])
    assert {x.tobytes() for x in found} == {x.tobytes() for x in everything(data)}
    other = mapped(path=str(folder), validation=0.25, split_seed=1)
    assert not torch.equal(other.stored("test")[0], data.stored("test")[0])
    more = mapped(path=str(folder), validation=0.5)
    assert torch.equal(more.stored("test")[0], data.stored("test")[0])


def test_grey_sets(tmp_path: Path) -> None:
    data = mapped(path=str(fill(tmp_path / "own", LETTERS)), channels=1)
    assert data.shape == (1, 16, 16)
    assert np.array_equal(everything(data)[3], pixels(random_image(3), channels=1))


# --- the cache ---


@pytest.fixture
def prepared_names(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (size, channels) of every picture that is prepared."""
    made: list[tuple[int, int]] = []

    def counted(image: Image.Image, size: int, channels: int) -> np.ndarray:
        made.append((size, channels))
        return square(image, size, channels)

    monkeypatch.setattr(prepared, "square", counted)
    return made


def test_cache_is_built_once(
    tmp_path: Path, cache: Path, prepared_names: list[tuple[int, int]]
) -> None:
    folder = fill(tmp_path / "own", LETTERS)
    first = mapped(path=str(folder))
    assert len(prepared_names) == 12
    again = mapped(path=str(folder), flip=True, validation=0.3, split_seed=4)  # same images
    assert len(prepared_names) == 12
    assert np.array_equal(everything(first), everything(again))

    mapped(path=str(folder), size=17)
    assert prepared_names[12:] == [(17, 3)] * 12
    mapped(path=str(folder), channels=1)
    assert prepared_names[24:] == [(16, 1)] * 12
    os.utime(folder / "a.png", ns=(0, 0))
    mapped(path=str(folder))
    assert len(prepared_names) == 48
    fill(folder, [*LETTERS, "m.png"])
    assert len(everything(mapped(path=str(folder)))) == 13
    folders = [path for path in cache.iterdir() if path.is_dir()]
    assert len(folders) == 5
    elsewhere = tmp_path / "elsewhere"
    mapped(path=str(folder), cache=str(elsewhere))
    assert any(path.is_dir() for path in elsewhere.iterdir())


def test_one_of_many_processes_prepares(
    tmp_path: Path, prepared_names: list[tuple[int, int]]
) -> None:
    folder = fill(tmp_path / "own", LETTERS)
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.append(everything(mapped(path=str(folder)))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(prepared_names) == 12
    assert len(found) == 4
    assert all(np.array_equal(images, found[0]) for images in found)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), MemoryError(), RuntimeError("bug")])
def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    folder = fill(tmp_path / "own", [f"{i:03}.png" for i in range(3 * prepared.CHUNK)])
    pieces = prepared._pieces

    def interrupted(*given: Any) -> Any:
        for i, piece in enumerate(pieces(*given)):
            if i == 2:
                assert list(cache.glob(".writing-*/images.bin"))  # some of it is written
                raise fault
            yield piece

    monkeypatch.setattr(prepared, "_pieces", interrupted)
    with pytest.raises(type(fault)):
        mapped(path=str(folder))
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == []
    monkeypatch.undo()
    assert len(everything(mapped(path=str(folder), cache=str(cache)))) == 3 * prepared.CHUNK


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, cache: Path) -> None:
    folder = fill(tmp_path / "own", LETTERS)
    whole = everything(mapped(path=str(folder)))
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    part = cache / f".writing-0-{made.name}"
    made.rename(part)  # killed just before the end
    os.truncate(part / "images.bin", 5)
    assert np.array_equal(everything(mapped(path=str(folder))), whole)
    assert not part.exists()


def test_images_are_mapped_not_loaded(tmp_path: Path) -> None:
    data = mapped(path=str(fill(tmp_path / "own", LETTERS)))
    images = data.prepared.images
    assert isinstance(images, np.memmap)
    assert images.mode == "r"
    points, _ = data._stored["train"]
    assert points.data_ptr() == images.ctypes.data  # no copy
    assert points.untyped_storage().data_ptr() == data._stored["test"][0].data_ptr()


def test_preparing_takes_no_memory_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    count, size = 1500, 64
    image = random_image(0, size, size)

    class Opened:
        def __enter__(self) -> prepared.Listing:
            return prepared.Listing([str(i) for i in range(count)], lambda i: image)

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(prepared, "_processors", lambda: 2)
    source = prepared.Source("same", "the same picture", "", Opened)
    tracemalloc.start()
    try:
        prepared.prepare(source, size=size, channels=3, on_error="stop")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * 3 * size**2 / 2


def spoiled(change: Callable[[Path], object], tmp_path: Path, cache: Path) -> Path:
    """A folder whose prepared images were changed."""
    folder = fill(tmp_path / "own", LETTERS)
    mapped(path=str(folder))
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    change(made)
    return folder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda made: os.truncate(made / "images.bin", 100), "images.bin has 100 bytes, not 9216"),
        (lambda made: (made / "images.bin").unlink(), "No such file"),
        (lambda made: os.truncate(made / "table.npz", 100), "not a zip file"),
        (lambda made: (made / "about.json").write_text("{"), "Expecting"),
        (lambda made: (made / "about.json").write_text("{}"), "shape"),
    ],
)
def test_damaged_cache_is_said(
    tmp_path: Path, cache: Path, change: Callable[[Path], object], reason: str
) -> None:
    folder = spoiled(change, tmp_path, cache)
    with pytest.raises(DataError, match=f"damaged .*{reason}.*delete that folder"):
        mapped(path=str(folder))
    shutil.rmtree(cache)  # the mend
    assert len(everything(mapped(path=str(folder)))) == 12


def test_cache_that_shrinks_under_a_run_is_said(tmp_path: Path, cache: Path) -> None:
    data = mapped(path=str(fill(tmp_path / "own", LETTERS)))
    stream = data.batches(4, generator=seeded())
    next(stream)
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    os.truncate(made / "images.bin", 100)
    with pytest.raises(DataError, match="damaged .images.bin has 100 bytes"):
        next(stream)


def test_cache_that_vanishes_under_a_run_does_no_harm(tmp_path: Path, cache: Path) -> None:
    data = mapped(path=str(fill(tmp_path / "own", LETTERS)))
    before = everything(data)
    shutil.rmtree(cache)
    assert np.array_equal(everything(data), before)
    assert len(next(data.batches(4, generator=seeded())).x) == 4


def test_full_disk_is_said(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "own", LETTERS)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as m:
        m.setattr(prepared.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(DataError, match="0.0 GB left.*need 0.0 GB: free some space"):
            mapped(path=str(folder))

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(prepared.os, "fsync", full)
        with pytest.raises(DataError, match="cannot be written .No space left.*data.cache"):
            mapped(path=str(folder))
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == []


# --- broken pictures ---


@pytest.fixture
def with_broken(tmp_path: Path) -> Path:
    """Twelve pictures in two classes, of which 03, 05 and 08 are broken, each in its way."""
    names = [f"{'odd' if i % 2 else 'even'}/{i:02}.png" for i in range(12)]
    folder = fill(tmp_path / "own", names)
    whole = (folder / names[3]).read_bytes()
    (folder / names[3]).write_bytes(whole[: len(whole) // 2])
    (folder / names[5]).write_bytes(b"these are words")
    (folder / names[8]).write_bytes(encoded(random_image(8, 5, 40)))
    return folder


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_broken_pictures_stop_or_are_skipped(with_broken: Path, kind: str, cache: Path) -> None:
    path = str(with_broken if kind == "folder" else zipped(with_broken))
    with pytest.raises(DataError, match=r"even/08\.png in .*5x40, too small.*data.on_error"):
        mapped(path=path)
    assert [p.name for p in cache.iterdir() if p.suffix != ".lock"] == []
    with pytest.warns(UserWarning, match=r"3 of 12 pictures .* left out.*even/08\.png"):
        data = mapped(path=path, on_error="skip")
    order = [0, 2, 4, 6, 10, 1, 7, 9, 11]
    assert np.array_equal(everything(data), np.stack([pixels(random_image(i)) for i in order]))
    assert data.prepared.labels is not None
    assert data.prepared.labels.tolist() == [i % 2 for i in order]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(everything(mapped(path=path, on_error="skip")), everything(data))


@pytest.mark.parametrize(
    ("name", "reason"), [("odd/03.png", "truncated"), ("odd/05.png", "no picture that Pillow")]
)
def test_broken_pictures_say_why(with_broken: Path, name: str, reason: str) -> None:
    for other in {"even/08.png", "odd/03.png", "odd/05.png"} - {name}:
        (with_broken / other).unlink()
    with pytest.raises(DataError, match=f"{name} in .*own cannot be used .*{reason}"):
        mapped(path=str(with_broken))


def test_only_broken_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"words")
    with pytest.raises(DataError, match=r"none of the 1 pictures .*a\.png"):
        mapped(path=str(folder), on_error="skip")


def test_picture_that_vanishes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "own", LETTERS)
    build = prepared._build

    def late(source: Any, *rest: Any) -> None:
        with source.open() as listing:
            (folder / "c.png").unlink()
            fixed = prepared.Source("folder", str(folder), "", lambda: nothing(listing))
            build(fixed, *rest)

    class nothing:
        def __init__(self, listing: prepared.Listing) -> None:
            self.listing = listing

        def __enter__(self) -> prepared.Listing:
            return self.listing

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(prepared, "_build", late)
    with pytest.raises(DataError, match=r"c\.png in .* cannot be used \(No such file"):
        mapped(path=str(folder))


def test_empty_missing_and_damaged_sources(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match="own holds no pictures"):
        mapped(path=str(tmp_path / "own"))
    with pytest.raises(DataError, match="nowhere cannot be read .No such file"):
        mapped(path=str(tmp_path / "nowhere"))
    path = zipped(fill(tmp_path / "own", LETTERS))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"own\.zip is damaged or no zip file"):
        mapped(path=str(path))
    at = content.index(encoded(random_image(2))[:200])
    path.write_bytes(content[: at + 300] + b"\0\0\0\0" + content[at + 304 :])
    with pytest.raises(DataError, match=r"c\.png in .*own\.zip cannot be used \(Bad CRC"):
        mapped(path=str(path))


# --- what is no picture, and what is too much ---


def unread(tmp_path: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Four pictures in two classes, and something else that is called ``name``."""
    folder = fill(tmp_path / "own", ["cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"])
    make(folder / name)
    return folder


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**12)  # a file with a hole


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
        (endless, "it is a device, not a plain file"),
        (lambda path: os.mkfifo(path), "it is a pipe, not a plain file"),
        (huge, r"more than the 1,000,000,000 bytes of data\.max_bytes"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "no picture that Pillow"),
    ],
    ids=["dangling", "loop", "device", "pipe", "huge", "eps"],
)
def test_what_is_no_plain_picture_obeys_on_error(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    folder = unread(tmp_path, "dog/x.png", make)
    with pytest.raises(DataError, match=rf"dog/x\.png in .* cannot be used \(.*{reason}.*on_error"):
        mapped(path=str(folder))
    with pytest.warns(UserWarning, match=rf"1 of 5 pictures.*dog/x\.png: .*{reason}"):
        data = mapped(path=str(folder), on_error="skip")
    assert data.prepared.labels is not None
    assert data.prepared.labels.tolist() == [0, 0, 1, 1]


def test_folders_that_cannot_be_read_obey_on_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unread(tmp_path, "dog/closed", lambda path: path.mkdir())
    (folder / ".hidden").mkdir()
    scandir = os.scandir

    def closed(path: str) -> Any:
        if str(path).endswith(("closed", ".hidden")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match="dog/closed/ in .* cannot be used .Permission denied"):
        mapped(path=str(folder))
    with pytest.warns(UserWarning, match="1 of 5 pictures .*dog/closed/"):
        assert mapped(path=str(folder), on_error="skip").classes == 2
    (folder / "closed").mkdir()
    with pytest.raises(DataError, match="own/closed cannot be read .Permission denied"):
        mapped(path=str(folder / "closed"))


@pytest.mark.parametrize("name", ["/dev/zero", "pipe.zip", "a\0b", "~nobody-at-all/x"])
def test_paths_that_are_no_data(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(
        (ConfigError, DataError), match="not a plain file|is no path|no file can hold"
    ):
        mapped(path=str(tmp_path / name) if name == "pipe.zip" else name)


def test_what_lies_beside_pictures_is_left_alone(tmp_path: Path) -> None:
    folder = fill(tmp_path / "own", LETTERS)
    for ending in (
        "h5",
        "mpg",
        "eps",
        "fits",
        "pdf",
        "wmf",
        "psd",
        "fit",
        "ico",
        "txt",
        "db",
        "rgb",
    ):
        (folder / f"junk.{ending}").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    for path in (folder, zipped(folder)):
        assert len(everything(mapped(path=str(path)))) == 12


def test_pictures_have_a_size_limit(tmp_path: Path) -> None:
    folder = fill(tmp_path / "own", LETTERS)
    Image.new("1", (13_000, 13_000)).save(folder / "m.png")
    Image.new("1", (99_000, 17)).save(folder / "n.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            DataError, match=r"m\.png .*13000x13000, more than the 89,000,000 pixels"
        ):
            mapped(path=str(folder))
    with pytest.warns(UserWarning, match="2 of 14 pictures"):
        data = mapped(path=str(folder), on_error="skip", max_pixels=10**6)
    assert len(everything(data)) == 12
    with pytest.warns(UserWarning, match="1 of 14 pictures"):  # other limits, another set
        assert len(everything(mapped(path=str(folder), on_error="skip"))) == 13


def test_threads_share_the_room_for_pixels() -> None:
    room, most, inside = pictures._Room(100), [], []
    lock = threading.Lock()

    def work(pixels: int) -> None:
        with room.take(pixels):
            with lock:
                inside.append(pixels)
                most.append(sum(inside))
            time.sleep(0.001)
            with lock:
                inside.remove(pixels)

    sizes = [30, 60, 500, 10, 100, 99] * 20  # more than the room, too: by themselves
    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == len(sizes)
    assert max(total for total in most if total != 500) <= 100


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_bombs_are_not_unpacked(tmp_path: Path, method: int) -> None:
    path = tmp_path / "own.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for i in range(4):
            archive.writestr(f"{i}.png", encoded(random_image(i)))
        archive.writestr("x.png", bytes(6 * 10**7))
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"x\.png .*more than the 100,000 bytes of data.max_bytes"
        ):
            mapped(path=str(path), max_bytes=100_000)
        assert (
            tracemalloc.get_traced_memory()[1] < 4 * 10**7
        )  # of which LZMA's dictionaries take most
    finally:
        tracemalloc.stop()
    with pytest.warns(UserWarning, match="1 of 5"):
        assert len(everything(mapped(path=str(path), max_bytes=10**5, on_error="skip"))) == 4


@pytest.mark.parametrize("system", ["backslashes", "unmarked", "marked", "links"])
def test_zip_files_of_other_systems_are_as_the_tree(tmp_path: Path, system: str) -> None:
    names = ["zoo/Äpfel/1.png", "zoo/birnen/2.png", "zoo/birnen/one.png/3.png"]
    tree = mapped(path=str(fill(tmp_path / "own", names)))
    path = tmp_path / "own.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate([*names, "zoo/birnen/one.png/", "__MACOSX/zoo/._1.png"]):
            written = name.replace("/", "\\") if system == "backslashes" else name
            if system == "unmarked":
                written = name.replace("Ä", "XX")  # as long as in UTF-8
            entry = zipfile.ZipInfo(written)
            archive.writestr(entry, encoded(random_image(i)) if i < len(names) else b"")
        if system == "links":
            link = zipfile.ZipInfo("zoo/birnen/link.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "2.png")
    if system == "unmarked":
        path.write_bytes(path.read_bytes().replace(b"XX", "Ä".encode()))
    if system == "links":
        with pytest.raises(DataError, match=r"link\.png .*a link or a device"):
            mapped(path=str(path))
        return
    data = mapped(path=str(path))
    assert np.array_equal(everything(data), everything(tree))
    assert data.prepared.classes == tree.prepared.classes == ["birnen", "Äpfel"]
    assert np.array_equal(data.stored()[0].numpy(), tree.stored()[0].numpy())


# --- CelebA ---


def celeba(root: Path, count: int = 9, packed: bool = False) -> Path:
    """Faces 000001.jpg, ... in the published layout: every third for validation, then test."""
    folder = root / "celeba"
    for i in range(1, count + 1):
        path = folder / "img_align_celeba" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(random_image(i, 89, 109), "JPEG"))
    lines = [f"{i:06}.jpg {i % 3}\n" for i in range(1, count + 1)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    if packed:
        zipped(folder / "img_align_celeba", "img_align_celeba")
        shutil.rmtree(folder / "img_align_celeba")
    return folder


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_celeba_keeps_the_official_partition(tmp_path: Path, packed: bool) -> None:
    folder = celeba(tmp_path, 9, packed)
    data = mapped("celeba", root=str(tmp_path), size=None)
    assert data.shape == (3, 64, 64)
    assert data.classes is None
    for part, split in enumerate(SPLITS):
        numbers = [i for i in range(1, 10) if i % 3 == part]
        jpegs = [encoded(random_image(i, 89, 109), "JPEG") for i in numbers]
        expected = [square(pictures.decoded(content), 64, 3) for content in jpegs]
        assert np.array_equal(data.stored(split)[0].numpy(), np.stack(expected))
    assert (folder / "list_eval_partition.txt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + "000010.jpg 0\n", r"lists, but does not find 1 images.*000010\.jpg"),
        (lambda text: text[13:], r"does not list 1 images.*000001\.jpg"),
        (lambda text: text.replace("04.jpg 1", "04.jpg 3"), r"line 4 is '000004\.jpg 3'"),
        (lambda text: text + "x", "line 10 is 'x'"),
        (lambda text: text + "é", "line 10 is 'é'"),
    ],
)
def test_partition_that_does_not_match(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = celeba(tmp_path) / "list_eval_partition.txt"
    text = path.read_text()
    path.write_bytes(change(text).encode())
    with pytest.raises(DataError, match=message):
        mapped("celeba", root=str(tmp_path))
    path.write_text(text)
    assert len(everything(mapped("celeba", root=str(tmp_path)))) == 9


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        *((encoding, "") for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32")),
        ("utf-16-le", "no text in UTF-8 .*save it as UTF-8"),
        ("cp1252", "no text in UTF-8 .*save it as UTF-8"),
    ],
)
def test_partitions_in_other_encodings(tmp_path: Path, encoding: str, message: str) -> None:
    path = celeba(tmp_path) / "list_eval_partition.txt"
    (path.parent / "img_align_celeba" / "000001.jpg").rename(
        path.parent / "img_align_celeba" / "é.jpg"
    )
    text = path.read_text().replace("000001.jpg", "é.jpg")
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    if message:
        with pytest.raises(DataError, match=message):
            mapped("celeba", root=str(tmp_path))
    else:
        assert len(everything(mapped("celeba", root=str(tmp_path)))) == 9


def test_celeba_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"img_align_celeba\.zip .*list_eval_partition\.txt in"):
        mapped("celeba", root=str(tmp_path))


# --- CIFAR-10 ---


def batches(count: int = 4, seed: int = 0) -> dict[str, bytes]:
    """Files of records, as they are published but for their number."""
    source = np.random.RandomState(seed)
    made = {}
    for name in FILES:
        records = source.randint(0, 256, (count, 3073), np.uint8)
        records[:, 0] %= 10
        made[name] = records.tobytes()
    return made


def archived(contents: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def opened_cifar(root: Path, md5: str = "", **options: Any) -> prepared.Prepared:
    settings = DataSettings("cifar10", root=str(root), **options)
    source = cifar10(settings, CifarSource("http://nowhere/x", md5))
    return prepared.prepare(source, size=32, channels=3, on_error="stop")


@pytest.mark.parametrize("kind", ["archive", "folder", "download"])
def test_cifar_is_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    contents = batches()
    packed, folder = archived(contents), tmp_path / "cifar10"
    if kind == "folder":
        (folder / FOLDER).mkdir(parents=True)
        for name, content in contents.items():
            (folder / FOLDER / name).write_bytes(content)
    elif kind == "archive":
        folder.mkdir()
        (folder / ARCHIVE).write_bytes(packed)
    else:
        monkeypatch.setattr(files, "_transfer", lambda address, label: packed)
    md5 = hashlib.md5(packed).hexdigest()
    images = opened_cifar(tmp_path, md5, download=kind == "download")
    records = np.concatenate(
        [np.frombuffer(c, np.uint8).reshape(-1, 3073) for c in contents.values()]
    )
    assert np.array_equal(images.images, records[:, 1:].reshape(-1, 3, 32, 32))
    assert images.labels is not None
    assert images.labels.tolist() == records[:, 0].tolist()
    assert images.classes == list(CLASSES)
    rows = images.rows(0.25, 0, 0.1)
    assert [len(rows[split]) for split in SPLITS] == [15, 5, 4]
    assert rows["test"].tolist() == [20, 21, 22, 23]
    assert torch.cat([rows[s] for s in SPLITS]).sort().values.tolist() == list(range(24))


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_other_records_in_the_same_place_are_prepared_anew(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "cifar10"
    (folder / FOLDER).mkdir(parents=True)
    if kind == "archive":
        (folder / FOLDER).rmdir()
    for seed in (0, 1):
        contents = batches(seed=seed)
        packed = archived(contents)
        laid = {folder / FOLDER / name: content for name, content in contents.items()}
        for path, content in ({folder / ARCHIVE: packed} if kind == "archive" else laid).items():
            path.write_bytes(content)
            os.utime(path, ns=(seed, seed))
        images = opened_cifar(tmp_path, hashlib.md5(packed).hexdigest())
        assert images.images[0].reshape(-1)[:9].tolist() == list(contents[FILES[0]][1:10])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c | {FILES[1]: c[FILES[1]][:-1]}, r"data_batch_2\.bin has 12291 bytes"),
        (lambda c: c | {FILES[5]: b"\x0a" + c[FILES[5]][1:]}, "test_batch.bin holds the label 10"),
        (lambda c: {k: v for k, v in c.items() if k != FILES[0]}, r"data_batch_1\.bin.* not found"),
    ],
)
def test_damaged_cifar_is_said(
    tmp_path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], reason: str
) -> None:
    packed = archived(change(batches()))
    (tmp_path / "cifar10").mkdir()
    path = tmp_path / "cifar10" / ARCHIVE
    path.write_bytes(packed)
    with pytest.raises(DataError, match=f"{ARCHIVE} is damaged .*{reason}.*data.download"):
        opened_cifar(tmp_path, hashlib.md5(packed).hexdigest())
    with pytest.raises(DataError, match="damaged .its content has MD5"):
        opened_cifar(tmp_path, "0" * 32)
    path.write_bytes(packed[:-20])
    with pytest.raises(DataError, match="is damaged"):
        opened_cifar(tmp_path, hashlib.md5(packed[:-20]).hexdigest())


def test_cifar_downloads_nothing_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_transfer", lambda address, label: b"an error page")
    with pytest.raises(DataError, match="could not be downloaded .*its content has MD5"):
        opened_cifar(tmp_path, "0" * 32, download=True)
    assert not (tmp_path / "cifar10").exists()
    with pytest.raises(DataError, match="binary version.*data.download"):
        opened_cifar(tmp_path)


# --- Hugging Face datasets ---


def test_hub_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r'pip install "partikel\[datasets\]"'):
        mapped("hub", path="nobody/nothing")


def saved(folder: Path, labels: list[Any] | None, feature: Any = None, broken: int = -1) -> str:
    datasets = pytest.importorskip("datasets", reason="needs the extra datasets")
    count = 8
    content = [
        {"bytes": b"?" if i == broken else encoded(random_image(i)), "path": None}
        for i in range(count)
    ]
    columns: dict[str, Any] = {"image": content}
    features = {"image": datasets.Image()}
    if labels is not None:
        columns["label"] = labels
        features["label"] = feature(datasets)
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict({"train": data}).save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("labels", "feature", "numbers", "names"),
    [
        (None, None, None, None),
        ([1, 0] * 4, lambda d: d.ClassLabel(names=["no", "yes"]), [1, 0] * 4, ["no", "yes"]),
        (["b", "a"] * 4, lambda d: d.Value("string"), [1, 0] * 4, ["a", "b"]),
        ([7, 3] * 4, lambda d: d.Value("int64"), [1, 0] * 4, ["3", "7"]),
    ],
)
def test_hub_images_and_labels(
    tmp_path: Path,
    prepared_names: list[tuple[int, int]],
    labels: list[Any] | None,
    feature: Any,
    numbers: list[int] | None,
    names: list[str] | None,
) -> None:
    path = saved(tmp_path / "saved", labels, feature)
    for _ in range(2):
        data = mapped("hub", path=path)
        assert len(prepared_names) == 8
        assert np.array_equal(
            everything(data), np.stack([pixels(random_image(i)) for i in range(8)])
        )
        assert data.prepared.classes == names
        found = data.prepared.labels
        assert (None if found is None else found.tolist()) == numbers
    assert mapped("hub", path=path, labels=False).classes is None


def test_hub_errors(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", [1, 0] * 3 + [-1, 0], lambda d: d.ClassLabel(names=["n", "y"]))
    with pytest.raises(DataError, match="'label' of .* holds -1 in row 6, which is no label"):
        mapped("hub", path=path)
    with pytest.raises(ConfigError, match="no column 'picture' for data.image_column"):
        mapped("hub", path=path, image_column="picture")
    with pytest.raises(DataError, match="column 'label' of .* holds no pictures"):
        mapped("hub", path=path, image_column="label", labels=False)
    with pytest.raises(ConfigError, match="no column 'kind' for data.label_column"):
        mapped("hub", path=path, label_column="kind", labels=True)
    with pytest.raises(ConfigError, match="no split 'tran' .*did you mean 'train'"):
        mapped("hub", path=path, split="tran")
    with pytest.raises(DataError, match="row 5 in .* cannot be used"):
        mapped("hub", path=saved(tmp_path / "b", None, broken=5))


# --- the data set ---


def test_mapped_is_like_in_memory(tmp_path: Path) -> None:
    names = [f"{'odd' if i % 2 else 'even'}/{i:02}.png" for i in range(40)]
    data = mapped(path=str(fill(tmp_path / "own", names)), flip=True)
    stored = {split: data.stored(split) for split in SPLITS}
    labels = {split: pair[1] for split, pair in stored.items() if pair[1] is not None}
    memory = FiniteDataset(
        "folder", {k: v[0] for k, v in stored.items()}, labels, classes=2, flip=True
    )
    assert_close(data.sigma_data, memory.sigma_data, rtol=1e-12, atol=0)
    for split in SPLITS:
        assert data.fingerprint(split) == memory.fingerprint(split)
    ours, theirs = (d.batches(7, generator=seeded(3)) for d in (data, memory))
    for _ in range(20):
        mine, other = next(ours), next(theirs)
        assert torch.equal(mine.x, other.x)
        assert mine.cond is not None
        assert other.cond is not None
        assert torch.equal(mine.cond, other.cond)
    assert_close(data.take(torch.arange(3)).x, stored["train"][0][:3] / 127.5 - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DataSettings("folder"), "'folder' needs data.path"),
        (DataSettings("hub"), "'hub' needs data.path"),
        (DataSettings("folder", path="x", size=15), "cannot be 15: choose from 16 to 256"),
        (DataSettings("folder", path="x", size=257), "cannot be 257"),
        (DataSettings("cifar10", size=128), "cannot be 128: choose from 16 to 64"),
        (DataSettings("celeba", path="x"), "data.path does not apply to 'celeba'"),
        (DataSettings("celeba", validation=0.2), "data.validation does not apply to 'celeba'"),
        (DataSettings("celeba", labels=True), "data.labels does not apply"),
        (DataSettings("folder", path="x", split="test"), "data.split does not apply to 'folder'"),
        (DataSettings("mnist", channels=1), "data.channels does not apply to 'mnist'"),
        (DataSettings("gaussians", flip=True), "data.flip does not apply to 'gaussians'"),
        (DataSettings("digits", cache="x"), "data.cache does not apply to 'digits'"),
    ],
)
def test_settings_that_cannot_work(settings: DataSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_dataset(settings)


def test_real_colour_pictures(real_data: Callable[[str], Path]) -> None:
    path = real_data("emoji64.zip")
    data = mapped(path=str(path), size=64, flip=True)
    assert data.shape == (3, 64, 64)
    assert data.classes is None
    assert [data.size(split) for split in SPLITS] == [3066, 341, 379]
    with zipfile.ZipFile(path) as archive:
        first = min(archive.namelist())
        image = pictures.decoded(archive.read(first)).convert("RGB")
    assert np.array_equal(data.prepared.images[0], np.asarray(image).transpose(2, 0, 1))
    x = data.draw(1000, generator=seeded()).x
    assert_close(x.std().item(), data.sigma_data, rtol=0.05, atol=0)
    assert_close(x[..., 0, 0].mean().item(), 1.0, rtol=0, atol=0.1)  # on white
    small = mapped(path=str(path), size=16, channels=1)
    red, green, blue = everything(data).mean((0, 2, 3))
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    assert_close(everything(small).mean(), grey, rtol=0.01, atol=0)
