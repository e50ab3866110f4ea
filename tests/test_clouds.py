"""Fields of samples in training: labels, micro-batches and processes leave them what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import OTHER, randn, seeded
from partikel.data import Batch, Dataset, SyntheticDataset
from partikel.errors import ConfigError
from partikel.fields import (
    At,
    Context,
    DriftField,
    ExactScoreField,
    Field,
    MMDField,
    SinkhornField,
    SlicedWassersteinField,
    SteinField,
)
from partikel.kernels import RBFKernel
from partikel.models import GeneratorModel, ParticleModel
from partikel.networks import MLP
from partikel.priors import GaussianPrior
from partikel.streams import Streams
from partikel.training import AdamSettings, Engine, Phase, Trainer

CLASSES = 3
CENTRES = torch.tensor([[4.0, 0.0], [-4.0, 1.0], [0.0, -5.0]])


def labelled_points() -> Dataset:
    """Three Gaussians far from each other, each with its label."""

    def sample(n: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (n,), generator=generator)
        noise = 0.3 * torch.randn(n, 2, generator=generator, dtype=dtype)
        return CENTRES.to(dtype)[labels] + noise, labels

    return SyntheticDataset("three", sample, shape=(2,), sigma_data=3.0, classes=CLASSES)


class Table(nn.Module):
    """G(z, label) = W z + the label's row of a table; the null label's is the last."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * randn(2, 2, seed=3))
        self.rows = nn.Parameter(torch.zeros(CLASSES + 1, 2).double())
        self.asked: list[Tensor] = []

    def forward(self, z: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        label = torch.full((len(z),), CLASSES) if cond is None else cond
        self.asked.append(label)
        return z @ self.weight.T + self.rows[label]


CLOUDS: dict[str, Callable[[], Field]] = {
    "mmd": lambda: MMDField(RBFKernel("median")),
    "drift": lambda: DriftField(1.0, "batch"),
    "sinkhorn": lambda: SinkhornField(1.0, halves=True),
    "sliced": lambda: SlicedWassersteinField(16),
    "stein": lambda: SteinField(ExactScoreField(OTHER), RBFKernel("median")),
}


def model_of(name: str, *, conditional: bool = True, eta: float | None = None) -> GeneratorModel:
    weights = torch.full((CLASSES,), 1 / CLASSES) if conditional else None
    return GeneratorModel(
        CLOUDS[name](), Table(), GaussianPrior((2,)), eta=eta, label_weights=weights
    )


def trainer_of(
    model: GeneratorModel, accumulate: int = 1, batch: int = 24, **phase: Any
) -> Trainer:
    return Trainer(
        model,
        labelled_points(),
        (Phase("generator", AdamSettings(lr=0.1), batch=batch, **phase),),
        iterations=150,
        engine=Engine(accumulate=accumulate),
    )


@pytest.mark.parametrize("eta", [None, 1.0])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_conditional_generator_of_a_field_of_samples_learns_its_classes(
    accumulate: int, eta: float | None
) -> None:
    model = model_of("sliced", eta=eta)
    for _ in trainer_of(model, accumulate).run():
        pass
    for label in range(CLASSES):
        x = model.sample(400, generator=seeded(), cond=torch.full((400,), label))
        assert float((x.mean(0) - CENTRES[label]).norm()) < 0.8
    assert model.generator.rows[CLASSES].abs().max() == 0  # nobody asks for the null label


def test_outputs_of_a_class_are_compared_with_the_data_of_that_class() -> None:
    """The field of each class by itself, in any order of labels; single points wait."""
    model = model_of("mmd")
    x, y = randn(9, 2), randn(12, 2, seed=1)
    mine = torch.tensor([0, 1, 0, 2, 1, 0, 1, 0, 1])
    theirs = torch.tensor([1, 1, 0, 2, 2, 0, 0, 1, 0, 2, 1, 2])
    velocity = model._velocity(x, At(torch.tensor(1.0), None, mine), Batch(y, theirs), Streams(0))
    for label in range(2):
        field = model.field.bind(Context(real=y[theirs == label]))
        expected = field(x[mine == label], At(torch.tensor(1.0)))
        assert_close(velocity[mine == label], expected)
    assert velocity[mine == 2].abs().max() == 0
    at = At(torch.tensor(1.0), None, torch.arange(3))
    with pytest.raises(ConfigError, match="enlarge the batch"):
        model._velocity(x[:3], at, Batch(y[:3], torch.arange(3)), Streams(0))


def test_free_particles_of_a_class_cannot_follow_a_field_without_labels() -> None:
    for name, make in CLOUDS.items():
        with pytest.raises(ConfigError, match="whatever their labels"):
            ParticleModel(make(), GaussianPrior((2,)), steps=2, conditional=True)
        assert ParticleModel(make(), GaussianPrior((2,)), steps=2).field, name


@contextmanager
def processes(trainer: Trainer, world: int, rank: int) -> Iterator[None]:
    """The trainer as one of several processes, which all saw the same batch."""
    accelerator = trainer.accelerator

    class Several:
        num_processes = world
        process_index = rank
        device = accelerator.device

        def gather(self, x: Tensor) -> Tensor:
            others = torch.full_like(x, 7) if x.is_floating_point() else torch.ones_like(x)
            return torch.cat([x if k == rank else others for k in range(world)])

        def reduce(self, x: Tensor, how: str) -> Tensor:
            return x

    trainer.accelerator = Several()  # type: ignore[assignment]
    trainer._clouds = world if "particles" in trainer.model.field.needs else 1
    yield
    trainer.accelerator = accelerator


def gradient(model: GeneratorModel, accumulate: int) -> dict[str, Tensor]:
    """Of the first update, by what plain Adam remembers of it."""
    trainer = trainer_of(model, accumulate)
    next(trainer.run())
    (optimizer,) = trainer.optimizers
    beta = trainer.phases[0].optimizer.beta1
    return {
        name: optimizer.state[p]["exp_avg"] / (1 - beta)
        for name, p in model.generator.named_parameters()
    }


@pytest.mark.parametrize("eta", [None, 1.0], ids=["surrogate", "fit"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", CLOUDS)
def test_micro_batches_leave_the_gradient_of_a_cloud(
    name: str, conditional: bool, eta: float | None
) -> None:
    """The cloud is that of the whole update: gradients are equal, to rounding."""
    whole, parts = (
        gradient(model_of(name, conditional=conditional, eta=eta), accumulate)
        for accumulate in (1, 4)
    )
    for key, value in whole.items():
        assert_close(parts[key], value, rtol=1e-9, atol=1e-12)
    assert whole["rows"].abs().sum() > 0


@pytest.mark.parametrize("eta", [None, 1.0], ids=["surrogate", "fit"])
def test_a_process_draws_the_whole_cloud_and_keeps_its_share(eta: float | None) -> None:
    """Of 3 processes each asks the field about 24 points, with the labels of all, and learns 8."""
    for rank in range(3):
        model = model_of("drift", eta=eta)
        trainer = trainer_of(model, batch=8)
        clouds: list[tuple[int, Tensor]] = []
        inner = model._velocity

        def listening(x: Tensor, at: At, real: Batch, streams: Streams) -> Tensor:
            clouds.append((len(x), torch.as_tensor(at.cond)))  # noqa: B023
            assert real.cond is not None
            assert_close(real.cond, torch.as_tensor(at.cond))  # as the data, class by class
            return inner(x, at, real, streams)  # noqa: B023

        model._velocity = listening  # type: ignore[method-assign]
        with processes(trainer, 3, rank):
            next(trainer.run())
        ((size, labels),) = clouds
        assert size == 24
        assert (labels[8:] == 1).all()  # this process's own come first
        own = model.generator.asked[-1]  # type: ignore[union-attr, index]
        assert torch.equal(own, labels[:8])


def test_particles_of_a_process_move_in_the_whole_cloud() -> None:
    field = MMDField(RBFKernel(1.0))
    model = ParticleModel(field, GaussianPrior((2,)), steps=4)
    model.register_parameter("unused", nn.Parameter(torch.zeros(())))
    critic = replace(_loss(model), needs=frozenset({"particles"}))
    model.losses = lambda: (critic,)  # type: ignore[method-assign]
    seen: list[int] = []
    inner = model.particles

    def listening(n: int, streams: Streams, **options: Any) -> Any:
        seen.append(n)
        return inner(n, streams, **options)

    model.particles = listening  # type: ignore[method-assign]
    trainer = Trainer(model, labelled_points(), (Phase("own", batch=8),), iterations=1)
    with processes(trainer, 3, 1):
        next(trainer.run())
    assert seen == [24]


def _loss(model: ParticleModel) -> Any:
    from partikel.fields import Loss, LossValue

    def compute(batch: Any) -> LossValue:
        assert len(batch.particles) == 8
        return LossValue(batch.particles.x.sum(1) * 0 + model.unused)

    return Loss("own", model, frozenset(), compute)


def test_a_micro_batch_of_a_pointwise_field_draws_as_before() -> None:
    """Where no point looks at another, latents are drawn micro-batch by micro-batch."""
    generator = MLP((2,), (2,), width=4, depth=1)
    model = GeneratorModel(ExactScoreField(OTHER), generator, GaussianPrior((2,)))
    (loss,) = model.losses()
    assert loss.whole is None


def test_labels_of_micro_batches_are_those_of_their_rows() -> None:
    model = model_of("mmd")
    trainer = trainer_of(model, 4)
    next(trainer.run())
    asked = model.generator.asked  # type: ignore[union-attr]
    whole, parts = asked[0], asked[1:]  # type: ignore[index]
    assert torch.equal(torch.cat([*parts]), whole)
    assert len(parts) == 4
    assert set(whole.tolist()) == {0, 1, 2}
