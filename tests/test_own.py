"""``fit`` takes what one has; models of one's own are saved and loaded; fields say what they lack."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

import partikel
from conftest import seeded
from partikel import (
    At,
    CheckpointError,
    ConfigError,
    DataError,
    DiscriminatorField,
    Field,
    GaussianPrior,
    GeneratorModel,
    ParticleModel,
    Phase,
    fit,
    load_into,
    save,
)
from partikel.data import in_memory
from partikel.fields import Linear, MMDField
from partikel.kernels import RBFKernel
from partikel.models import Carrier
from partikel.networks import MLP, Conditioning
from partikel.training import EMA, Trainer, default_phases

X = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(300) % 3


def flow(shape: tuple[int, ...] = (2,), seed: int = 0) -> ParticleModel:
    torch.manual_seed(seed)
    network = MLP(shape, (), width=16, depth=1, conditions=Conditioning(scalars=1))
    critic = DiscriminatorField(network, conditions=("t",))
    return ParticleModel(critic, GaussianPrior(shape), steps=4, eta=5.0)


def gan(classes: int | None = None, **options: Any) -> GeneratorModel:
    torch.manual_seed(0)
    told = Conditioning(classes=classes)
    critic = DiscriminatorField(MLP((2,), (), width=16, depth=1, conditions=told))
    generator = MLP((4,), (2,), width=16, depth=1, conditions=told)
    return GeneratorModel(critic, generator, GaussianPrior((4,)), **options)


class Items(TorchDataset):
    def __init__(self, make: Callable[[int], Any], length: int = 300) -> None:
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter(X)


def weights(model: Carrier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# --- what fit takes


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.double(),
        X.clone().requires_grad_(),
        X.numpy(),
        np.asfortranarray(X.numpy()).astype(">f8"),
        TensorDataset(X),
        TensorDataset(X, Y),
        Items(lambda i: X[i]),
        Items(lambda i: (X[i].numpy(), int(Y[i]))),
    ],
)
def test_what_one_has_trains_alike(data: Any) -> None:
    model, same = flow(), flow()
    fit(model, data, [Phase("discriminator")], iterations=3)
    fit(same, in_memory(X), iterations=3)  # the default phases are the losses
    for name, value in weights(model).items():
        assert_close(value, weights(same)[name], rtol=0, atol=0)


@pytest.mark.parametrize("how", ["labels", "list", "pair", "torch"])
def test_labels_come_in_any_form(how: str) -> None:
    model, same = gan(3, conditional=True), gan(3, conditional=True)
    if how in ("labels", "list"):
        fit(model, X, iterations=3, labels=Y if how == "labels" else Y.tolist())
    else:
        fit(model, (X, Y.numpy()) if how == "pair" else TensorDataset(X, Y), iterations=3)
    phases = [Phase("discriminator"), Phase("generator")]
    fit(same, in_memory(X, Y), phases, iterations=3)
    before = weights(gan(3, conditional=True))
    for name, value in weights(model).items():
        assert_close(value, weights(same)[name], rtol=0, atol=0)
    assert not torch.equal(before["generator.first.weight"], model.generator.first.weight)  # type: ignore[union-attr]


def test_bytes_are_images_and_numbers_stay() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(3, 1, 1, 1)
    seen = in_memory(images).take(torch.tensor([0])).x
    assert (float(seen.min()), float(seen.max())) == (-1, 1)
    far = 100 * X.double()
    data = in_memory(far)
    assert_close(data.take(torch.arange(300), dtype=torch.float64).x, far, rtol=0, atol=0)
    assert data.sigma_data == pytest.approx(float(far.std(correction=0)))
    data.take(torch.arange(3)).x.zero_()
    assert far.abs().sum() > 0


def test_splits_are_parts_of_the_points() -> None:
    data = in_memory(X, Y, validation=0.1, test=0.2)
    sizes = {split: data.size(split) for split in ("train", "validation", "test")}
    assert sizes == {"train": 210, "validation": 30, "test": 60}
    together = torch.cat([data.stored(split)[0] for split in sizes])
    assert_close(together.sort(0)[0], X.sort(0)[0], rtol=0, atol=0)
    assert data.classes == 3


def test_default_phases_have_batches_that_data_fill() -> None:
    assert [p.loss for p in default_phases(gan())] == ["discriminator", "generator"]
    assert default_phases(flow())[0] == Phase("discriminator")
    assert default_phases(flow(), 50, 4)[0].batch == 48
    fit(flow(), X[:7], iterations=1)


NAN = X.clone()
NAN[3, 1] = torch.nan


@pytest.mark.parametrize(
    ("data", "labels", "error", "match"),
    [
        ([[1.0, 2.0]], None, TypeError, "torch.as_tensor"),
        (["a.png", "b.png"], None, TypeError, "DataSettings..folder."),
        ([Path("a.png")], None, TypeError, "DataSettings..folder."),
        ("pictures", None, TypeError, "a path: pictures in files"),
        (None, None, TypeError, "data are a tensor or an array"),
        (DataLoader(TensorDataset(X)), None, TypeError, "loader.dataset"),
        (Endless(), None, TypeError, "no length"),
        (Items(lambda i: "a"), None, TypeError, "ToTensor"),
        (Items(lambda i: {"x": X[i]}), None, TypeError, "got .dict."),
        (Items(lambda i: X[i, : 1 + i % 2]), None, DataError, "item 1 of the data has shape"),
        (Items(lambda i: X[i], 0), None, DataError, "hold no points"),
        (Items(lambda i: X[:1].expand(10**7, 2)), None, DataError, "kept in memory"),
        (NAN, None, DataError, "first of them number 3"),
        (X[:0], None, DataError, "hold no points"),
        (X.long(), None, TypeError, r"x.float\(\)"),
        (torch.complex(X, X), None, TypeError, "view_as_real"),
        (X.to_sparse(), None, TypeError, r"x.to_dense\(\)"),
        (np.ma.masked_array(X.numpy(), X.numpy() > 0), None, TypeError, "masked array hides"),
        (Items(lambda i: (X[i], torch.eye(2)[i % 2])), None, TypeError, r"labels.argmax\(1\)"),
        (X[:, 0], None, DataError, r"x\[:, None\]"),
        (torch.randn(10, 3), None, ConfigError, r"points \(2,\), the data of \(3,\)"),
        (np.array([["a", "b"]]), None, TypeError, "are no numbers"),
        ((X,), None, TypeError, "a pair is"),
        (X, Y[:-1], DataError, "300 points but 299 labels"),
        (X, Y, ConfigError, "takes no labels"),
        (X, Y.float(), TypeError, "labels are whole numbers"),
        (X, ["cat"] * 300, TypeError, "labels are whole numbers"),
        (X, Y - 1, DataError, "labels are 0, 1, 2"),
        (TensorDataset(X, Y), Y, TypeError, "leave out labels"),
        (in_memory(X), Y, TypeError, "leave out labels"),
    ],
)
def test_what_is_no_data_is_a_sentence(data: Any, labels: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match) as refused:
        fit(flow(), data, iterations=1, labels=labels)
    assert "\n" not in str(refused.value)


def test_what_does_not_suit_the_model_is_a_sentence() -> None:
    image = ParticleModel(Linear(1.0), GaussianPrior((3, 8, 8)), steps=2)
    with pytest.raises(ConfigError, match=r"movedim\(-1, 1\)"):
        fit(image, torch.zeros(4, 8, 8, 3), iterations=1)
    with pytest.raises(ConfigError, match=r"points \(2,\), the data of \(3,\)"):
        fit(gan(), torch.zeros(4, 3), iterations=1)
    with pytest.raises(DataError, match=r"fit\(..., labels=y\)"):
        fit(gan(3, conditional=True), X, iterations=1)
    with pytest.raises(DataError, match="labels of this model are 0 to 2"):
        fit(gan(3, label_weights=torch.ones(3)), X, iterations=1, labels=torch.arange(300) % 4)
    with pytest.raises(ConfigError, match="nothing trains .* real=X"):
        fit(ParticleModel(MMDField(RBFKernel(1.0)), GaussianPrior((2,)), steps=2), X, iterations=1)


# --- runs that go on, saved models


def test_a_folder_resumes_with_the_same_tensors_and_no_others(tmp_path: Path) -> None:
    straight = flow()
    fit(straight, X, iterations=6)
    for iterations in (3, 6):
        model = flow()
        fit(model, X, iterations=iterations, folder=tmp_path, checkpoint_every=3)
    for name, value in weights(model).items():
        assert_close(value, weights(straight)[name], rtol=0, atol=0)
    for other in (X + 1, X.flip(0)):
        with pytest.raises(CheckpointError, match="other data"):
            fit(flow(), other, iterations=9, folder=tmp_path)


def trained(folder: Path | None = None) -> Trainer:
    return fit(flow(), X, iterations=4, ema=EMA(half_life=2.0), folder=folder)


def drawn(model: Carrier) -> Tensor:
    return model.eval().sample(5, generator=seeded())


@pytest.mark.parametrize("by", ["save", "fit"])
def test_a_saved_model_samples_as_it_did(by: str, tmp_path: Path) -> None:
    trainer = trained(tmp_path / "fit")
    if by == "save":
        save(trainer, tmp_path / "save")
    raw = drawn(load_into(flow(seed=1), tmp_path / by, raw=True))
    assert_close(raw, drawn(trainer.model), rtol=0, atol=0)
    averaged = load_into(flow(seed=1), tmp_path / by)
    assert trainer.average is not None
    for name, value in trainer.average.module.state_dict().items():
        assert_close(averaged.sampled.state_dict()[name], value, rtol=0, atol=0)
    assert not averaged.training
    assert not torch.equal(drawn(averaged), raw)


def test_a_model_alone_is_saved_with_its_buffers(tmp_path: Path) -> None:
    model = gan(annealing=7, label_weights=torch.tensor([0.2, 0.8]))
    model.draws += 3
    save(model, tmp_path / "a")
    save(model, tmp_path / "a")  # again, in its place
    other = load_into(gan(annealing=7, label_weights=torch.ones(2)), tmp_path / "a")
    assert int(other.draws) == 3  # type: ignore[arg-type]
    assert_close(other.label_weights, model.label_weights)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "model.safetensors",
        "state.json",
    ]


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    save(flow(), tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "a"):
        with pytest.raises(ConfigError, match="holds something else"):
            save(flow(), folder)
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_into(flow(), tmp_path)


def test_what_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    save(flow(), tmp_path / "a")
    with pytest.raises(CheckpointError, match="'field.network.first.weight' is .* of shape"):
        load_into(flow((3,)), tmp_path / "a")
    with pytest.raises(CheckpointError, match="is (missing|unknown)"):
        load_into(gan(), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"partikel.load_into\(model, "):
        partikel.load(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged.*save the model again"):
        load_into(flow(), tmp_path / "a")


def test_nothing_that_is_not_finite_is_saved(tmp_path: Path) -> None:
    model = flow()
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(partikel.NumericsError):
        save(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


# --- fields that lack something


def own(forward: Callable[..., Any], *requires: str) -> Field:
    return type("Own", (Field,), {"requires": frozenset(requires), "forward": forward})()


def pulled(self: Field, x: Tensor, at: At) -> Tensor:
    return self.bound_real(x).mean(0) - x


def raw_real(self: Field, x: Tensor, at: At) -> Tensor:
    return self.context.real[:3].mean(0) - x  # type: ignore[index]


def raw_cloud(self: Field, x: Tensor, at: At) -> Tensor:
    return self.context.particles.mean(0) - x  # type: ignore[union-attr]


def random(self: Field, x: Tensor, at: At) -> Tensor:
    return torch.randn(x.shape, generator=self.bound_generator())


def noised(self: Field, x: Tensor, at: At) -> Tensor:
    return -x * at.sigma[:, None]  # type: ignore[index]


LACKING: list[tuple[Field, Any, str]] = [
    (own(pulled, "real"), ConfigError, r"an? Own compares .* model.sample\(..., real=X\)"),
    (own(pulled), ConfigError, "declare it, requires = frozenset.{'real'}."),
    (own(raw_real), TypeError, r"self.context.real .declare .* model.sample\(..., real=X\)"),
    (own(raw_cloud, "particles"), TypeError, r"ask for bound_cloud\(x\)"),
    (own(random), ConfigError, "declare it, requires = frozenset.{'generator'}."),
    (own(noised), TypeError, "at.sigma .the noise level: give the model a schedule"),
    (own(lambda self, x, at: None), TypeError, "returned None: return the velocities"),
    (own(lambda self, x, at: (x,)), TypeError, "returned a tuple"),
    (own(lambda self, x, at: x.sum(1)), ValueError, "points and velocities have one shape"),
]


@pytest.mark.parametrize(("field", "error", "match"), LACKING)
@pytest.mark.parametrize("inside", [False, True])
def test_a_field_says_what_it_lacks(field: Field, error: Any, match: str, inside: bool) -> None:
    moves = field + Linear(0.5) if inside else field
    free = ParticleModel(moves, GaussianPrior((2,)), steps=2)
    carried = GeneratorModel(moves, MLP((4,), (2,), width=8, depth=1), GaussianPrior((4,)))
    asked: list[Callable[[], object]] = [lambda: free.sample(9, generator=seeded())]
    if "declare" in match or "real" not in match:  # a generator's field is bound to the data
        asked.append(lambda: fit(carried, X, iterations=1))
    for ask in asked:
        with pytest.raises(error, match=match) as refused:
            ask()
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 400


def test_a_field_that_has_what_it_needs_is_asked() -> None:
    model = ParticleModel(own(pulled, "real"), GaussianPrior((2,)), steps=100, eta=20.0)
    x = model.sample(9, generator=seeded(), real=X)
    assert_close(x, X.mean(0).expand(9, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("requires", ["real", frozenset({"reals"}), ("real",)])
def test_what_cannot_be_required_is_refused_where_it_stands(requires: Any) -> None:
    with pytest.raises(
        TypeError, match="Own.requires is a set of 'real', 'particles', 'generator'"
    ):
        type("Own", (Field,), {"requires": requires, "forward": pulled})


# --- the page


def test_the_page_about_ones_own_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("iterations=500", "iterations=2"), names)
    to_data = torch.cdist(names["samples"], names["x"]).min(1).values
    assert float(to_data.max()) < 0.5  # the last block's free particles have reached real samples
