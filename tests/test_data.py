"""Data: the laws drawn, the splits, the order of batches, and files that are damaged."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import math
import os
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from partikel.data import (
    DATASETS,
    SPLITS,
    Batch,
    BatchStream,
    Dataset,
    DataSettings,
    FiniteDataset,
    files,
    idx,
    open_dataset,
    synthetic,
)
from partikel.data.base import split_indices
from partikel.errors import CheckpointError, ConfigError, DataError

SYNTHETIC = [name for name, entry in DATASETS.items() if not entry.options]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int = 37, name: str = "numbered") -> FiniteDataset:
    """Points that can be told apart: point i of each split is i in both its bytes and its label."""
    points = torch.arange(count, dtype=torch.uint8)
    return FiniteDataset(
        name,
        dict.fromkeys(SPLITS, points[:, None].expand(count, 2)),
        dict.fromkeys(SPLITS, points),
        classes=count,
    )


# --- fresh points ---


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fresh_points(name: str, dtype: torch.dtype) -> None:
    data = open_dataset(DataSettings(name))
    n, before = 100_000, torch.get_rng_state()
    batch = data.draw(n, generator=seeded(), dtype=dtype)
    assert data.name == name
    assert batch.x.shape == (n, *data.shape)
    assert batch.x.dtype == dtype
    assert (batch.cond is None) == (data.classes is None)
    if batch.cond is not None:
        assert batch.cond.dtype == torch.int64
        assert batch.cond.unique().tolist() == list(range(data.classes or 0))
    assert [data.size(split) for split in SPLITS] == [None] * 3

    # sigma_data is exact: the error of a measured second moment is that of a mean.
    squares = batch.x.double() ** 2
    mean = batch.x.double().mean()
    error = squares.mean() - mean**2 - data.sigma_data**2
    assert error.abs() < 5 * squares.mean(1).std() / math.sqrt(n)

    again = data.draw(n, "test", generator=seeded(), dtype=dtype)
    other = data.draw(n, generator=seeded(1), dtype=dtype)
    assert torch.equal(batch.x, again.x)
    assert not torch.equal(batch.x, other.x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_fresh_points_under_their_target(name: str) -> None:
    data = open_dataset(DataSettings(name))
    if data.target is None:
        assert name in ("anisotropic", "moons", "spiral", "checkerboard")
        return
    # E[s_p] = 0 and E[x·s_p] = -D hold under the target only.
    x = data.draw(50_000, generator=seeded(), dtype=torch.float64).x
    score = data.target.score(x)
    assert (score.mean(0).abs() < 5 * score.std(0) / math.sqrt(len(x))).all()
    products = (x * score).sum(1) + data.target.dim
    assert products.mean().abs() < 5 * products.std() / math.sqrt(len(x))


def test_gaussians_are_the_papers() -> None:
    target = synthetic.gaussians().target
    assert target is not None
    angles = [2 * math.pi * k / 5 for k in range(5)]
    means = torch.tensor([[3 * math.cos(a), 3 * math.sin(a)] for a in angles]).double()
    assert_close(target.means, means, rtol=1e-6, atol=1e-6)
    assert_close(target.stds, torch.full((5,), 0.5).double())
    assert_close(target.weights, torch.full((5,), 0.2).double())


def test_the_mixture_of_16_dimensions_is_unequal_and_stretched() -> None:
    batch = synthetic.anisotropic().draw(60_000, generator=seeded(), dtype=torch.float64)
    assert batch.cond is not None
    shares = torch.bincount(batch.cond) / len(batch.x)
    assert_close(shares, torch.tensor([0.35, 0.25, 0.2, 0.1, 0.06, 0.04]), rtol=0, atol=0.01)
    some = batch.x[batch.cond == 0]
    spread = torch.linalg.eigvalsh(torch.cov(some.T)).sqrt()
    assert_close(spread, torch.logspace(-1, 0, 16, dtype=torch.float64), rtol=0.05, atol=0)


def test_ring_takes_weights_and_refuses_wrong_ones() -> None:
    data = synthetic.ring(3, 2.0, 0.1, (1.0, 2.0, 5.0))
    cond = data.draw(80_000, generator=seeded()).cond
    shares = torch.bincount(cond) / len(cond)
    assert_close(shares, torch.tensor([0.125, 0.25, 0.625]), rtol=0, atol=0.01)
    with pytest.raises(ValueError, match="weights must be"):
        synthetic.ring(3, 2.0, 0.1, (1.0, 2.0))


@pytest.mark.parametrize(("name", "blur"), [("moons", 0.25), ("spiral", 0.1)])
def test_arms_are_blurred_curves_and_point_symmetric(name: str, blur: float) -> None:
    batch = open_dataset(DataSettings(name)).draw(3000, generator=seeded(), dtype=torch.float64)
    along = torch.linspace(0, 1, 2000, dtype=torch.float64)
    if name == "moons":
        angle = along * math.pi
        curve = 2.5 * torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    else:
        angle = along * 3 * math.pi
        curve = (4 * along)[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    assert batch.cond is not None
    for label, sign in ((0, 1), (1, -1)):
        distance = torch.cdist(batch.x[batch.cond == label], sign * curve).amin(1)
        assert distance.max() < 5 * blur
        # The distance to a smooth curve is half-normal; ends and curvature spoil a little.
        assert_close((distance**2).mean().sqrt().item(), blur, rtol=0.1, atol=0)


def test_checkerboard_is_uniform_on_the_dark_squares() -> None:
    n = 80_000
    x = synthetic.checkerboard().draw(n, generator=seeded()).x
    cells = ((x + 4) / 2).floor().long()
    assert cells.amin() == 0
    assert cells.amax() == 3
    assert (cells.sum(1) % 2 == 0).all()
    counts = torch.bincount(4 * cells[:, 0] + cells[:, 1], minlength=16)
    filled = counts[counts > 0]
    assert len(filled) == 8
    assert ((filled / n - 1 / 8).abs() < 5 * math.sqrt(7 / 64 / n)).all()


def test_stream_of_fresh_points_continues_from_the_generator() -> None:
    data = synthetic.gaussians()
    source = seeded()
    stream = data.batches(16, generator=source)
    next(stream)
    state, saved = stream.state_dict(), source.get_state()
    expected = [next(stream).x for _ in range(3)]
    source.set_state(saved)
    resumed = data.batches(16, generator=source)
    resumed.load_state_dict(state)
    assert all(torch.equal(next(resumed).x, x) for x in expected)
    with pytest.raises(CheckpointError, match="finite"):
        resumed.load_state_dict({"order": torch.arange(3), "position": torch.tensor(0)})


# --- finite data ---


@pytest.mark.parametrize("n", [1, 5, 36, 37])
def test_every_epoch_shows_every_point_once(n: int) -> None:
    stream = numbered().batches(n, generator=seeded())
    seen = torch.cat([next(stream).cond for _ in range(37)])
    epochs = seen.view(-1, 37)
    assert len(epochs) == n
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(37))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == n


@pytest.mark.parametrize("before", [0, 1, 3, 4, 11])
def test_stream_resumes_bit_for_bit(before: int) -> None:
    source = seeded(4)
    stream = numbered(12).batches(4, generator=source)
    for _ in range(before):
        next(stream)
    state, saved = stream.state_dict(), source.get_state()
    copy = {key: value.clone() for key, value in state.items()}
    expected = [next(stream) for _ in range(9)]
    assert_close(state, copy, rtol=0, atol=0)  # what was saved does not move on

    source = seeded(99)
    resumed = numbered(12).batches(4, generator=source)
    resumed.load_state_dict(state)
    state["order"].zero_()  # nor does the stream hang on what the caller keeps
    source.set_state(saved)
    for batch in expected:
        again = next(resumed)
        assert torch.equal(again.x, batch.x)
        assert torch.equal(again.cond, batch.cond)


def test_making_a_stream_leaves_the_generator_alone() -> None:
    source = seeded()
    before = source.get_state()
    numbered().batches(4, generator=source).state_dict()
    assert torch.equal(source.get_state(), before)


def test_order_follows_the_generator() -> None:
    def order(seed: int) -> list[int]:
        stream = numbered().batches(37, generator=seeded(seed))
        return next(stream).cond.tolist()

    assert order(0) == order(0) != order(1)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no data order"),
        ({"order": torch.arange(12)}, "no data order"),
        ({"order": torch.arange(12), "position": torch.tensor(0)}, "for 12 points.* has 37"),
        ({"order": torch.arange(37), "position": torch.tensor(38)}, "for 37 points"),
    ],
)
def test_foreign_stream_states(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        numbered(37).batches(4, generator=seeded()).load_state_dict(state)


def test_draw_gives_distinct_points() -> None:
    data = numbered()
    cond = data.draw(20, generator=seeded()).cond
    assert cond is not None
    assert len(cond.unique()) == 20
    everything = data.draw(37, "test", generator=seeded()).cond
    assert everything is not None
    assert everything.sort().values.tolist() == list(range(37))


def test_more_than_there_is() -> None:
    with pytest.raises(DataError, match="38 .*train.*'numbered'.*37"):
        numbered().batches(38, generator=seeded())
    with pytest.raises(DataError, match="38 .*test.*'numbered'.*37"):
        numbered().draw(38, "test", generator=seeded())


@pytest.mark.parametrize("data", [numbered(), synthetic.gaussians()], ids=["finite", "fresh"])
def test_misuse(data: Dataset) -> None:
    with pytest.raises(ValueError, match="split must be"):
        data.draw(1, "valid", generator=seeded())
    with pytest.raises(ValueError, match="split must be"):
        data.size("valid")
    with pytest.raises(ValueError, match="at least 1"):
        data.batches(0, generator=seeded())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top", [16, 255])
def test_bytes_become_minus_one_to_one(dtype: torch.dtype, top: int) -> None:
    values = torch.arange(top + 1, dtype=torch.uint8)
    data = FiniteDataset("bytes", dict.fromkeys(SPLITS, values[:, None]), top=top)
    batch = data.take(torch.arange(top + 1), dtype=dtype)
    assert data.draw(3, generator=seeded(), dtype=dtype).x.dtype == dtype
    assert batch.cond is None
    assert_close(batch.x[:, 0], torch.linspace(-1, 1, top + 1, dtype=dtype))
    assert batch.x[0] == -1
    assert batch.x[-1] == 1


def test_split_indices_part_everything() -> None:
    parts = split_indices(1000, {"test": 0.2, "validation": 0.08}, seed=3)
    assert {split: len(index) for split, index in parts.items()} == {
        "test": 200,
        "validation": 80,
        "train": 720,
    }
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(1000))
    again = split_indices(1000, {"test": 0.2, "validation": 0.5}, seed=3)
    other = split_indices(1000, {"test": 0.2, "validation": 0.08}, seed=4)
    assert torch.equal(parts["test"], again["test"])
    assert not torch.equal(parts["test"], other["test"])


def test_splits_are_the_same_in_every_version() -> None:
    # Runs that were saved with these splits must find them again.
    assert split_indices(10, {"validation": 0.3}, 0)["validation"].tolist() == [2, 8, 4]


def rows(data: FiniteDataset, split: str) -> list[bytes]:
    points, labels = data.stored(split)
    assert labels is not None
    return [
        bytes(point.flatten().tolist()) + bytes([label])
        for point, label in zip(points, labels.tolist(), strict=True)
    ]


def test_digits() -> None:
    from sklearn.datasets import load_digits

    data = open_dataset(DataSettings("digits"))
    assert isinstance(data, FiniteDataset)
    assert [data.size(split) for split in SPLITS] == [1294, 144, 359]
    images, labels = load_digits(return_X_y=True)
    everything = [
        bytes(image.astype("uint8").tolist()) + bytes([label])
        for image, label in zip(images, labels, strict=True)
    ]
    assert sorted(everything) == sorted(sum((rows(data, split) for split in SPLITS), []))
    batch = data.draw(1294, generator=seeded(), dtype=torch.float64)
    assert batch.x.shape == (1294, 1, 8, 8)
    assert batch.x.amin() == -1
    assert batch.x.amax() == 1
    assert_close(batch.x.std(correction=0).item(), data.sigma_data)
    assert batch.cond is not None
    assert batch.cond.unique().tolist() == list(range(10))


def test_splits_depend_on_their_seed_and_nothing_else() -> None:
    first = open_dataset(DataSettings("digits"))
    assert isinstance(first, FiniteDataset)
    kept = {split: rows(first, split) for split in SPLITS}
    stream = first.batches(64, generator=seeded(8))
    for _ in range(30):
        next(stream)
    first.draw(100, "validation", generator=seeded(9))
    torch.randn(3)
    again = open_dataset(DataSettings("digits"))
    assert isinstance(again, FiniteDataset)
    assert {split: rows(again, split) for split in SPLITS} == kept
    assert {split: rows(first, split) for split in SPLITS} == kept
    other = open_dataset(DataSettings("digits", split_seed=1))
    assert isinstance(other, FiniteDataset)
    assert rows(other, "test") != kept["test"]
    more = open_dataset(DataSettings("digits", validation=0.5))
    assert isinstance(more, FiniteDataset)
    assert rows(more, "test") == kept["test"]
    assert set(kept["validation"]) <= set(rows(more, "validation"))


# --- shards, flips, fingerprints ---


def pictures(count: int = 24, flip: bool = True) -> FiniteDataset:
    """Random images, none its own mirror image; the label of image i is i."""
    values = torch.randint(256, (count, 3, 4, 5), generator=seeded(7)).to(torch.uint8)
    labels = torch.arange(count)
    return FiniteDataset(
        "pictures",
        dict.fromkeys(SPLITS, values),
        dict.fromkeys(SPLITS, labels),
        classes=count,
        flip=flip,
    )


def joined(batches: list[Batch]) -> Batch:
    cond = [batch.cond for batch in batches if batch.cond is not None]
    return Batch(torch.cat([batch.x for batch in batches]), torch.cat(cond) if cond else None)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "data",
    [
        pictures(),
        pictures(13),
        pictures(flip=False),
        synthetic.gaussians(),
        synthetic.checkerboard(),
    ],
    ids=["flips", "flips, uneven", "no flips", "fresh", "fresh, no labels"],
)
def test_shards_are_the_rows_of_one_process(data: Dataset, world: int) -> None:
    n = 12 // world
    sources = [seeded(5) for _ in range(world + 1)]
    whole = data.batches(12, generator=sources[0])
    shards = [
        data.batches(n, generator=source, shard=(rank, world))
        for rank, source in enumerate(sources[1:])
    ]
    for _ in range(9):
        expected, found = next(whole), joined([next(shard) for shard in shards])
        assert torch.equal(found.x, expected.x)
        assert (found.cond is None) == (expected.cond is None)
        if found.cond is not None and expected.cond is not None:
            assert torch.equal(found.cond, expected.cond)
    for source, shard in zip(sources[1:], shards, strict=True):
        assert torch.equal(source.get_state(), sources[0].get_state())
        assert_close(shard.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("worlds", [(1, 1), (2, 2), (2, 1), (1, 3)])
@pytest.mark.parametrize("before", [1, 2, 5])
def test_shards_with_flips_resume_bit_for_bit(worlds: tuple[int, int], before: int) -> None:
    """With the same number of processes or another one, as long as the global batch is the same."""
    data = pictures(10)

    def streams(world: int) -> tuple[list[torch.Generator], list[BatchStream]]:
        sources = [seeded(6) for _ in range(world)]
        return sources, [
            data.batches(6 // world, generator=source, shard=(rank, world))
            for rank, source in enumerate(sources)
        ]

    sources, shards = streams(worlds[0])
    for _ in range(before):
        for shard in shards:
            next(shard)
    state, saved = shards[0].state_dict(), sources[0].get_state()
    expected = [joined([next(shard) for shard in shards]).x for _ in range(7)]
    sources, shards = streams(worlds[1])
    for source, shard in zip(sources, shards, strict=True):
        source.set_state(saved)
        shard.load_state_dict(state)
    for x in expected:
        assert torch.equal(joined([next(shard) for shard in shards]).x, x)


def test_shards_that_cannot_be() -> None:
    for data in (numbered(), synthetic.gaussians()):
        for shard in ((2, 2), (-1, 2), (0, 0)):
            with pytest.raises(ValueError, match="the shards of"):
                data.batches(4, generator=seeded(), shard=shard)
    with pytest.raises(DataError, match="19 for each of 2 processes .* at most 18"):
        numbered().batches(19, generator=seeded(), shard=(0, 2))


def test_half_of_a_batch_is_mirrored() -> None:
    data, plain = pictures(24), pictures(24, flip=False)
    stream, epochs = data.batches(24, generator=seeded(1)), 400
    mirrored = torch.zeros(epochs, 24)
    for epoch in range(epochs):
        batch = next(stream)
        assert batch.cond is not None
        original = plain.take(batch.cond).x
        same = (batch.x == original).flatten(1).all(1)
        turned = (batch.x == original.flip(-1)).flatten(1).all(1)
        assert (same ^ turned).all()  # these pixels or these pixels mirrored, nothing else
        mirrored[epoch, batch.cond] = turned.float()
    assert abs(float(mirrored.mean()) - 0.5) < 4.5 * 0.5 / (epochs * 24) ** 0.5
    # Each image, and each pair of neighbours, as of independent coins.
    assert (mirrored.mean(0) - 0.5).abs().max() < 4.5 * 0.5 / epochs**0.5
    both = (mirrored[:, 1:] * mirrored[:, :-1]).mean()
    assert abs(float(both) - 0.25) < 4.5 * 0.25 * 3**0.5 / (epochs * 23) ** 0.5 * 2


def test_reference_sets_are_not_mirrored() -> None:
    data, plain = pictures(), pictures(flip=False)
    drawn, expected = (d.draw(24, generator=seeded(2)).x for d in (data, plain))
    assert torch.equal(drawn, expected)
    assert torch.equal(data.take(torch.arange(24)).x, plain.take(torch.arange(24)).x)
    chosen = torch.arange(24) % 3 == 0
    found = data.take(torch.arange(24), mirrored=chosen).x
    assert torch.equal(found[chosen], plain.take(torch.arange(24)[chosen]).x.flip(-1))
    assert torch.equal(found[~chosen], plain.take(torch.arange(24)[~chosen]).x)
    assert torch.equal(data.stored()[0], plain.stored()[0])  # nothing was mirrored in place


def test_fingerprint_is_of_the_content() -> None:
    points, labels = pictures().stored()
    assert labels is not None

    def fingerprint(points: Tensor, labels: Tensor | None, **options: Any) -> str:
        tags = None if labels is None else {split: labels for split in SPLITS}
        data = FiniteDataset("pictures", {split: points for split in SPLITS}, tags, **options)
        assert data.fingerprint("train") == data.fingerprint("test")
        return data.fingerprint()

    first = pictures().fingerprint()
    assert first.startswith("pictures-")
    assert fingerprint(points, labels) == fingerprint(points, labels, flip=True) == first
    assert fingerprint(points, labels.to(torch.int32)) == first
    changed = points.clone()
    changed[3, 1, 2, 2] ^= 1
    others = {
        fingerprint(changed, labels),
        fingerprint(points, labels.flip(0)),
        fingerprint(points, None),
        fingerprint(points.flip(0), labels),
        fingerprint(points.reshape(24, 3, 5, 4), labels),
        fingerprint(points.clamp(max=254), labels),
        fingerprint(points, labels, top=256),
        first,
    }
    assert len(others) == 8
    assert synthetic.gaussians().fingerprint("test") == "gaussians"
    with pytest.raises(ValueError, match="split must be"):
        pictures().fingerprint("valid")


# --- IDX files ---

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
NAMES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


def packed(values: Tensor) -> bytes:
    """The IDX format, written down once more."""
    header = bytes((0, 0, 8, values.ndim))
    for length in values.shape:
        header += length.to_bytes(4, "big")
    return header + values.numpy().tobytes()


def contents(train: int = 20, test: int = 5) -> dict[str, bytes]:
    source = seeded(1)
    files = {}
    for images, labels, n in (
        (TRAIN_IMAGES, TRAIN_LABELS, train),
        (TEST_IMAGES, TEST_LABELS, test),
    ):
        pixels = torch.randint(256, (n, 28, 28), generator=source, dtype=torch.uint8)
        files[images] = packed(pixels)
        files[labels] = packed(torch.arange(n, dtype=torch.uint8) % 10)
    return files


def small(mirrors: tuple[str, ...] = ()) -> idx.IdxSource:
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents().items()}
    return idx.IdxSource("small", mirrors, sums)


@pytest.fixture(params=["raw", "gz"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    for name, content in contents().items():
        if request.param == "raw":
            (folder / name).write_bytes(content)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


def test_idx_images_are_the_files(root: Path) -> None:
    data = idx.idx_images(small(), DataSettings("small", root=str(root), validation=0.25))
    assert [data.size(split) for split in SPLITS] == [15, 5, 5]
    files = contents()
    test = torch.frombuffer(bytearray(files[TEST_IMAGES]), dtype=torch.uint8)[16:]
    points, labels = data.stored("test")
    assert torch.equal(points, test.view(5, 1, 28, 28))
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 4]
    train = torch.frombuffer(bytearray(files[TRAIN_IMAGES]), dtype=torch.uint8)[16:]
    expected = [
        bytes(image.tolist()) + bytes([i % 10]) for i, image in enumerate(train.view(20, -1))
    ]
    assert sorted(rows(data, "train") + rows(data, "validation")) == sorted(expected)


def test_idx_sizes(root: Path) -> None:
    at = {
        size: idx.idx_images(small(), DataSettings("small", root=str(root), size=size))
        for size in idx.SIZES
    }
    images = {size: data.stored("test")[0] for size, data in at.items()}
    assert torch.equal(images[32][..., 2:-2, 2:-2], images[28])
    assert images[32].sum() == images[28].sum()  # the frame is black
    assert at[32].take(torch.tensor([0])).x[0, 0, 0, 0] == -1
    for size in (16, 8):
        assert at[size].shape == (1, size, size)
        means = functional.avg_pool2d(images[32].double(), 32 // size)
        assert_close(images[size].double(), means, rtol=0, atol=0.5)
    with pytest.raises(ValueError, match="size must be"):
        idx.idx_images(small(), DataSettings("small", root=str(root), size=20))


def test_folder_comes_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTIKEL_DATA", str(root))
    assert idx.idx_images(small(), DataSettings("small")).size("test") == 5
    monkeypatch.delenv("PARTIKEL_DATA")
    assert files.data_root() == Path.home() / ".cache" / "partikel"
    assert files.data_root("~/elsewhere") == Path.home() / "elsewhere"


def spoil(change: Callable[[bytes], bytes], name: str) -> Callable[[Path], None]:
    """Change the unpacked content of a file, however it is packed."""

    def apply(folder: Path) -> None:
        path = folder / name
        if path.exists():
            path.write_bytes(change(path.read_bytes()))
        else:
            path = folder / f"{name}.gz"
            path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))

    return apply


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (lambda c: c[:-1], TRAIN_IMAGES, "has 15695 bytes where its header says 15696"),
        (lambda c: c + b"\0", TEST_LABELS, "has 14 bytes where its header says 13"),
        (lambda c: c[:6], TRAIN_LABELS, "inside its header"),
        (lambda c: b"", TRAIN_LABELS, "begins with"),
        (lambda c: b"<html>" + c[6:], TEST_IMAGES, "begins with 3c 68 74 6d, not 00 00 08 03"),
        (lambda c: contents()[TEST_LABELS], TEST_IMAGES, "begins with 00 00 08 01"),
        (lambda c: c[:-1] + bytes([c[-1] ^ 1]), TRAIN_IMAGES, "MD5"),
    ],
)
def test_damaged_files_are_named(
    root: Path, change: Callable[[bytes], bytes], name: str, message: str
) -> None:
    spoil(change, name)(root / "small")
    with pytest.raises(DataError, match=f"{name}.*{message}.*delete it.*data.download"):
        idx.idx_images(small(), DataSettings("small", root=str(root)))


@pytest.mark.parametrize(
    "change",
    [lambda c: c[: len(c) // 2], lambda c: b"no gzip", lambda c: c[:40] + b"\xff" * 9 + c[49:]],
    ids=["truncated", "foreign", "corrupt"],
)
def test_damaged_gzip_is_named(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(change(gzip.compress(contents()[TEST_IMAGES])))
    with pytest.raises(DataError, match=r"labels\.gz is damaged \(gzip"):
        idx.read_idx(path, 3)


def test_what_unpacks_to_too_much_stops_early(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    header = b"\0\0\x08\x01" + (60_000).to_bytes(4, "big")
    path.write_bytes(gzip.compress(header + bytes(2 * 10**7)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="1108584 bytes or more where its header says 60008"):
            idx.read_idx(path, 1)
        assert tracemalloc.get_traced_memory()[1] < 5 * 10**6
    finally:
        tracemalloc.stop()
    path.write_bytes(gzip.compress(header + bytes(60_000)))
    assert len(idx.read_idx(path, 1)) == 60_000
    with pytest.raises(DataError, match=r"more than the 50,000 bytes of data\.max_bytes"):
        idx.read_idx(path, 1, limits=files.Limits(50_000))


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, kind in (("labels", "a pipe"), ("endless", "a device"), ("folder", "a folder")):
        with pytest.raises(
            DataError, match=f"{name} cannot be read .it is {kind}, not a plain file"
        ):
            idx.read_idx(tmp_path / name, 1)


def test_no_more_is_read_than_allowed() -> None:
    class Endless(io.BytesIO):
        given = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.given += size or 0
            return bytes(size or 0)

    stream = Endless()
    with pytest.raises(OSError, match="more than the 5,000 bytes of a.setting"):
        files.read_whole(stream, 5000, "a.setting", step=100)
    assert stream.given == 5001
    with pytest.raises(OSError, match="more than 10 bytes"):
        files.read_whole(stream, 10, said=11)
    assert stream.given == 5001
    assert files.read_whole(io.BytesIO(b"words"), 5) == b"words"


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing cannot be read \(No such file"):
        idx.read_idx(tmp_path / "nothing", 3)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (TRAIN_IMAGES, torch.zeros(20, 14, 14), "images of 14x14"),
        (TRAIN_IMAGES, torch.zeros(19, 28, 28), "19 images.*20 labels"),
        (TEST_LABELS, torch.full((5,), 10), "label 10"),
    ],
)
def test_files_that_do_not_belong_are_named(
    root: Path, name: str, values: Tensor, message: str
) -> None:
    spoil(lambda _: packed(values.to(torch.uint8)), name)(root / "small")
    source = idx.IdxSource("small", (), {})
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        idx.idx_images(source, DataSettings("small", root=str(root)))


@pytest.mark.parametrize("name", NAMES)
def test_missing_file_is_named(root: Path, name: str) -> None:
    for path in (root / "small").glob(f"{name}*"):
        path.unlink()
    with pytest.raises(DataError, match=f"needs {name}.*{root / 'small'}.*data.download"):
        idx.idx_images(small(), DataSettings("small", root=str(root)))


# --- downloads ---


class Mirror:
    """A server on this machine; ``respond`` says what a request gets, by path."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.faults: dict[str, list[int | str]] = {}
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.requests.append(self.path)
                where, name = self.path.strip("/").split("/")
                content = gzip.compress(contents()[name.removesuffix(".gz")])
                faults = mirror.faults.get(where, [])
                fault = faults.pop(0) if len(faults) > 1 else (faults or [""])[0]
                if isinstance(fault, int):
                    return self.send_error(fault)
                if fault == "wrong":
                    content = gzip.compress(b"\0\0\x08\x03 of another kind")
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:10] if fault == "short" else content)
                return None

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    # A proxy, where the environment names one, must not be asked for this machine.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Mirror()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(files.time, "sleep", made.append)
    return made


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_download_fetches_what_is_missing_and_only_that(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / TEST_LABELS).write_bytes(contents()[TEST_LABELS])
    source = small((f"{mirror.address}/a/",))
    first = idx.idx_images(source, DataSettings("small", root=str(tmp_path), download=True))
    assert mirror.requests == [f"/a/{TRAIN_IMAGES}.gz", f"/a/{TRAIN_LABELS}.gz"] + [
        f"/a/{TEST_IMAGES}.gz"
    ]
    assert listing(folder) == sorted(
        [TEST_LABELS, *(f"{name}.gz" for name in NAMES if name != TEST_LABELS)]
    )
    again = idx.idx_images(source, DataSettings("small", root=str(tmp_path), download=True))
    assert len(mirror.requests) == 3
    assert torch.equal(first.stored("train")[0], again.stored("train")[0])


@pytest.mark.parametrize(
    ("faults", "asked", "waits"),
    [
        ([503, 503, ""], "aaa", [1.0, 2.0]),  # may pass: tried again, waiting longer
        (["short", ""], "aa", [1.0]),
        ([429, ""], "aa", [1.0]),
        ([503], "aaab", [1.0, 2.0]),  # does not pass: the next mirror
        ([404], "ab", []),  # cannot pass
        (["wrong"], "ab", []),
    ],
)
def test_download_survives_faults(
    mirror: Mirror,
    pauses: list[float],
    tmp_path: Path,
    faults: list[int | str],
    asked: str,
    waits: list[float],
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    for name in NAMES[1:]:
        (folder / name).write_bytes(contents()[name])
    mirror.faults["a"] = faults
    source = small((f"{mirror.address}/a", f"{mirror.address}/b"))
    assert (
        idx.idx_images(source, DataSettings("small", root=str(tmp_path), download=True)).size(
            "test"
        )
        == 5
    )
    assert [path[1] for path in mirror.requests] == list(asked)
    assert pauses == waits
    assert (
        gzip.decompress((folder / f"{TRAIN_IMAGES}.gz").read_bytes()) == (contents()[TRAIN_IMAGES])
    )


def test_download_that_fails_everywhere_leaves_nothing(
    mirror: Mirror, pauses: list[float], tmp_path: Path
) -> None:
    mirror.faults = {"a": [404], "b": ["wrong"]}
    closed = "http://127.0.0.1:1"
    source = small((f"{mirror.address}/a", f"{mirror.address}/b", closed))
    with pytest.raises(DataError) as caught:
        idx.idx_images(source, DataSettings("small", root=str(tmp_path), download=True))
    message = str(caught.value)
    assert TRAIN_IMAGES in message
    for reason in ("/a/.*HTTP 404", "/b/.*has 20 bytes", f"{closed}/.*refused", "by hand"):
        assert re.search(reason, message), reason
    assert listing(tmp_path / "small") == []


def test_download_without_space_leaves_nothing(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DataError, match="cannot be written .No space left.*free some space"):
        idx.idx_images(
            small((f"{mirror.address}/a",)),
            DataSettings("small", root=str(tmp_path), download=True),
        )
    assert listing(tmp_path / "small") == []


# --- by name ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DataSettings("gausians"), "no data set 'gausians': did you mean 'gaussians'"),
        (DataSettings("moons", size=32), "data.size does not apply to 'moons'"),
        (DataSettings("gaussians", root="here"), "data.root does not apply to 'gaussians'"),
        (DataSettings("digits", download=True), "data.download does not apply to 'digits'"),
        (DataSettings("digits", size=16), "data.size of 'digits' cannot be 16: choose from 8"),
        (DataSettings("mnist", size=64), "data.size of 'mnist' cannot be 64: .*28, 32, 16, 8"),
        (DataSettings("mnist", max_pixels=9), "data.max_pixels does not apply to 'mnist'"),
    ],
)
def test_settings_that_cannot_work(settings: DataSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_dataset(settings)


def test_empty_validation_split_is_said() -> None:
    data = open_dataset(DataSettings("digits", validation=0.0))
    assert data.size("validation") == 0
    with pytest.raises(DataError, match="a batch of 4 .*validation.*0 points"):
        data.batches(4, "validation", generator=seeded())


def test_every_published_file_has_a_checksum() -> None:
    for source in (idx.MNIST, idx.FASHION_MNIST):
        assert sorted(source.md5) == sorted(NAMES)
        assert len(set(source.md5.values())) == 4


def real(name: str) -> str:
    root = os.environ.get("PARTIKEL_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"needs PARTIKEL_DATA, a folder that contains {name}/")
    return root


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_files(name: str) -> None:
    """Opening checks the MD5 sums of all four files."""
    data = open_dataset(DataSettings(name, root=real(name), size=32))
    assert data.shape == (1, 32, 32)
    assert [data.size(split) for split in SPLITS] == [54_000, 6_000, 10_000]
    assert isinstance(data, FiniteDataset)
    counts = sum(torch.bincount(data.stored(split)[1]) for split in ("train", "validation"))
    assert isinstance(counts, Tensor)
    # The published counts of each label in the official training files.
    mnist = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts.tolist() == (mnist if name == "mnist" else [6000] * 10)
    x = data.draw(10_000, generator=seeded()).x
    assert x.amin() == -1
    assert x.amax() == 1
    assert_close(x.std().item(), data.sigma_data, rtol=0.02, atol=0)
