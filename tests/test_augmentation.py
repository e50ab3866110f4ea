"""Augmentation: exact moves, gradients, the same law for both classes, adaptive probability."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.testing import assert_close

from conftest import assert_mean, randn, seeded, tensor
from partikel.app.config import make_recipe
from partikel.data import Batch, FiniteDataset, open_dataset
from partikel.errors import ConfigError
from partikel.fields import At, Context, DiscriminatorField, LossValue, TrainingBatch
from partikel.fields.augmentation import (
    CEILING,
    INTERVAL,
    POLICIES,
    Augmentation,
    AugmentSettings,
    Transformation,
    brighten,
    contrast,
    cut_out,
    saturate,
    translate,
)
from partikel.fields.particles import Particles
from partikel.models import GeneratorModel, ParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.objectives import GradientPenalty
from partikel.priors import GaussianPrior
from partikel.streams import Streams
from partikel.training import Phase
from partikel.training.checkpoint import load_checkpoint, save_checkpoint
from partikel.training.loop import Trainer

SHAPE = (3, 8, 8)
STEPS = [step for policy in POLICIES.values() for step in policy]


def augmentation(**settings: object) -> Augmentation:
    return Augmentation(AugmentSettings(**settings), SHAPE)  # type: ignore[arg-type]


# --- the transformations ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_probability_0_images_stay_bit_for_bit(dtype: torch.dtype) -> None:
    x = randn(6, *SHAPE).to(dtype)
    x[0, 0, 0, 0] = -0.0
    out = augmentation(p=0.0)(x, generator=seeded())
    assert torch.equal(out, x)
    assert torch.equal(torch.signbit(out), torch.signbit(x))


def test_brightness_adds_one_number_to_an_image() -> None:
    x = randn(4000, *SHAPE)
    offset = brighten(x, seeded()) - x
    per_image = offset[:, 0, 0, 0]
    assert_close(offset, per_image.view(-1, 1, 1, 1).expand_as(x))
    assert float(per_image.abs().max()) <= 0.5
    assert_mean(per_image, 0.0)
    assert_mean(per_image.square(), 1 / 12)


def test_saturation_scales_around_each_pixels_mean() -> None:
    x = randn(4000, *SHAPE)
    out = saturate(x, seeded())
    assert_close(out.mean(1), x.mean(1))
    factor = (out - out.mean(1, keepdim=True)) / (x - x.mean(1, keepdim=True))
    per_image = factor[:, 0, 0, 0]
    assert_close(factor, per_image.view(-1, 1, 1, 1).expand_as(x))
    assert 0 <= float(per_image.min()) < float(per_image.max()) <= 2
    assert_mean(per_image, 1.0)
    grey = randn(5, 1, 8, 8)
    assert_close(saturate(grey, seeded()), grey)  # which has no colour


def test_contrast_scales_around_the_images_mean() -> None:
    x = randn(4000, *SHAPE)
    out = contrast(x, seeded())
    mean = x.mean((1, 2, 3), keepdim=True)
    assert_close(out.mean((1, 2, 3), keepdim=True), mean)
    factor = (out - mean) / (x - mean)
    per_image = factor[:, 0, 0, 0]
    assert_close(factor, per_image.view(-1, 1, 1, 1).expand_as(x))
    assert 0.5 <= float(per_image.min()) < float(per_image.max()) <= 1.5
    assert_mean(per_image, 1.0)


def test_translation_moves_exactly_by_every_shift_alike() -> None:
    x = randn(1, 2, 16, 8).repeat(3000, 1, 1, 1)
    out = translate(x, seeded())
    expected = {}
    for dy in range(-2, 3):
        for dx in range(-1, 2):
            moved = torch.zeros_like(x[0])
            rows, columns = slice(max(dy, 0), 16 + min(dy, 0)), slice(max(dx, 0), 8 + min(dx, 0))
            from_rows, from_columns = (
                slice(max(-dy, 0), 16 + min(-dy, 0)),
                slice(max(-dx, 0), 8 + min(-dx, 0)),
            )
            moved[:, rows, columns] = x[0][:, from_rows, from_columns]
            expected[dy, dx] = moved
    hits = torch.stack([(out == image).flatten(1).all(1) for image in expected.values()], dim=1)
    assert (hits.sum(1) == 1).all()
    assert_mean(hits.double(), 1 / 15)


def test_cutout_removes_a_square_of_half_the_side() -> None:
    x = torch.ones(4000, 2, 8, 8, dtype=torch.float64)
    hole = 1 - cut_out(x, seeded())
    assert set(hole.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hole[:, 0], hole[:, 1])
    rows, columns = hole[:, 0].amax(2), hole[:, 0].amax(1)
    assert torch.equal(hole[:, 0], rows[:, :, None] * columns[:, None, :])
    assert (rows.diff(dim=1).abs().sum(1) <= 2).all()  # one piece
    # centres 0, ..., 8 are alike: a place is covered from 4 of 9 of them, from 3 at the edges
    covered = tensor([3, 4, 4, 4, 4, 4, 4, 3]) / 9
    assert_mean(hole[:, 0], covered[:, None] * covered)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_gradients_pass_through(step: Transformation) -> None:
    """First derivatives for fields, second ones for penalties."""
    x = randn(2, 2, 4, 4).requires_grad_()

    def value(x: Tensor) -> Tensor:
        return step(x, seeded(3)).pow(3)

    assert torch.autograd.gradcheck(value, (x,))
    assert torch.autograd.gradgradcheck(value, (x,))


def test_each_transformation_comes_with_probability_p() -> None:
    x = randn(4000, *SHAPE)
    out = augmentation(policy=("cutout",), p=0.3)(x, generator=seeded())
    assert_mean((out != x).flatten(1).any(1).double(), 0.3)
    both = augmentation(policy=("colour", "cutout"), p=0.3)(x, generator=seeded())
    untouched = (both == x).flatten(1).all(1).double()
    assert_mean(untouched, 0.7**4)


def test_settings_are_checked() -> None:
    refused = [
        ({"policy": ("color",)}, "did you mean 'colour'"),
        ({"policy": ()}, "one or more"),
        ({"policy": ("cutout", "cutout")}, "once"),
        ({"p": 1.5}, r"\[0, 1\]"),
        ({"p": 1.0, "adaptive": True}, "begin at 0"),
        ({"target": 1.0}, "target of AugmentSettings must be"),
        ({"speed": 0.0}, "speed of AugmentSettings must be"),
    ]
    for settings, message in refused:
        with pytest.raises(ConfigError, match=message):
            AugmentSettings(**settings)
    with pytest.raises(ConfigError, match="only images"):
        Augmentation(AugmentSettings(), (2,))


# --- the discriminator ---


class Cubic(nn.Module):
    """d(x) = mean of w x³ + x², far from invariant to any augmentation; keeps what it was asked."""

    def __init__(self, shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(*shape, seed=9))
        self.asked: list[tuple[Tensor, Tensor | None, Tensor | None]] = []

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        self.asked.append((x.detach(), c, cond))
        return (self.weight * x**3 + x**2).flatten(1).mean(1)


def batch(real: Tensor, fake: Tensor, seed: int = 0, cond: Tensor | None = None) -> TrainingBatch:
    t = torch.linspace(0, 1, len(fake), dtype=fake.dtype)
    particles = Particles(fake, t, cond=cond)
    return TrainingBatch(Batch(real, cond), particles, len(fake), Streams(seed))


def loss_of(field: DiscriminatorField, data: TrainingBatch) -> LossValue:
    (loss,) = field.losses()
    return loss.compute(data)


def test_the_field_is_the_gradient_through_the_augmentation() -> None:
    network = Cubic().double()
    field = DiscriminatorField(network, "non-saturating", augmentation=augmentation(p=0.7))
    x, t = randn(4, *SHAPE), torch.ones(4, dtype=torch.float64)
    velocity = field.bind(Context(generator=seeded(5)))(x, At(t))
    assert not velocity.requires_grad

    def potential(x: Tensor) -> Tensor:
        shown = augmentation(p=0.7)(x, generator=seeded(5))
        return nn.functional.logsigmoid(network(shown)).sum()

    direction, h = randn(4, *SHAPE, seed=2), 1e-5
    slope = (potential(x + h * direction) - potential(x - h * direction)) / (2 * h)
    assert_close((velocity * direction).sum(), slope.detach(), rtol=1e-7, atol=1e-9)
    with pytest.raises(ConfigError, match="bind it first"):
        field(x, At(t))
    with pytest.raises(ConfigError, match="augmented laws"):
        field.log_ratio(x, At(t))


def test_without_probability_an_augmented_discriminator_is_the_plain_one() -> None:
    penalties = (GradientPenalty.r1(0.5), GradientPenalty.r2(0.5))
    plain = DiscriminatorField(Cubic().double(), penalties=penalties)
    other = DiscriminatorField(plain.network, penalties=penalties, augmentation=augmentation(p=0.0))
    x, t = randn(4, *SHAPE), torch.ones(4, dtype=torch.float64)
    assert torch.equal(plain(x, At(t)), other.bind(Context(generator=seeded()))(x, At(t)))
    data = batch(randn(4, *SHAPE, seed=1), x)
    assert torch.equal(loss_of(plain, data).loss, loss_of(other, data).loss)


def test_penalties_are_on_the_gradient_before_the_augmentation() -> None:
    """R1 of a cut out image: what the hole hides has no gradient."""
    network = Cubic().double()
    field = DiscriminatorField(
        network,
        "ipm",
        penalties=(GradientPenalty.r1(2.0),),
        augmentation=augmentation(policy=("cutout",), p=1.0),
    )
    real, fake = randn(3, *SHAPE, seed=1), randn(3, *SHAPE, seed=2)
    network.asked.clear()
    value = loss_of(field, batch(real, fake))
    shown = network.asked[-1][0]
    assert (shown == 0).flatten(1).any(1).all()
    gradient = torch.where(shown == 0, 0, 3 * network.weight * real**2 + 2 * real)
    gradient = gradient / network.weight.numel()
    expected = gradient.square().flatten(1).sum(1).mean()
    assert_close(value.metrics["penalty_real"], expected.detach())


def test_both_laws_are_augmented_alike() -> None:
    """A fixed d has no advantage on identical laws, but much on one that is augmented alone."""
    network = Cubic().double()
    augment = augmentation(policy=("translation", "cutout"))
    field = DiscriminatorField(network, "ipm", augmentation=augment)
    real, fake = randn(20_000, *SHAPE, seed=1), randn(20_000, *SHAPE, seed=2)
    assert_mean(loss_of(field, batch(real, fake)).loss, 0.0)
    shown_real, shown_fake = network.asked[-1][0].chunk(2)
    assert not torch.equal(shown_real, real)
    assert not torch.equal(shown_fake, fake)
    alone = network(augment(real, generator=seeded())) - network(fake)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(alone, 0.0)


def test_conditions_and_labels_pass_through() -> None:
    network = Cubic().double()
    field = DiscriminatorField(network, conditions=("t",), augmentation=augmentation())
    cond = torch.arange(4)
    data = batch(randn(4, *SHAPE), randn(4, *SHAPE, seed=1), cond=cond)
    loss_of(field, data)
    _, c, labels = network.asked[-1]
    assert data.particles is not None
    assert c is not None
    assert labels is not None
    assert torch.equal(c, torch.cat([data.particles.t] * 2)[:, None])
    assert torch.equal(labels, torch.cat([cond, cond]))


def test_a_relativistic_discriminator_augments_the_samples_it_is_bound_to() -> None:
    network = Cubic().double()
    field = DiscriminatorField(network, "relativistic", augmentation=augmentation())
    assert field.requires == {"real", "generator"}
    real, x = randn(5, *SHAPE, seed=1), randn(4, *SHAPE)
    field.bind(Context(real=real, generator=seeded()))(x, At(torch.ones(4, dtype=torch.float64)))
    shown = [asked[0] for asked in network.asked]
    assert sorted(len(points) for points in shown) == [4, 5]
    assert not any(torch.equal(points, raw) for points in shown for raw in (real, x))


# --- adaptive probability ---


def test_p_rises_above_the_target_and_falls_below_it() -> None:
    augment = augmentation(p=0.5, adaptive=True, target=0.6, speed=1000.0)
    sure, unsure = torch.ones(10), torch.tensor([1.0, -1.0] * 5)
    for _ in range(INTERVAL - 1):
        augment.adapt(sure)
    assert_close(augment.p, torch.tensor(0.5))  # after every fourth batch
    augment.adapt(sure)
    assert_close(augment.p, torch.tensor(0.54))  # 40 of 1000 images
    for _ in range(INTERVAL):
        augment.adapt(unsure)
    assert_close(augment.p, torch.tensor(0.5))
    on_target = torch.tensor([1.0] * 8 + [-1.0] * 2)  # mean sign 0.6
    for _ in range(INTERVAL):
        augment.adapt(on_target)
    assert abs(float(augment.p) - 0.5) < 0.05


@pytest.mark.parametrize(("evidence", "end"), [(1.0, CEILING), (-1.0, 0.0)])
def test_p_stays_inside(evidence: float, end: float) -> None:
    augment = augmentation(p=0.5, adaptive=True, speed=30.0)
    for _ in range(20 * INTERVAL):
        augment.adapt(torch.full((4,), evidence))
        assert 0 <= float(augment.p) < 1
    assert_close(augment.p, torch.tensor(end))


def test_a_fixed_p_stays() -> None:
    augment = augmentation(p=0.5, speed=1.0)
    for _ in range(INTERVAL):
        augment.adapt(torch.ones(4))
    assert float(augment.p) == 0.5


@pytest.mark.parametrize("objective", ["non-saturating", "lsgan", "hinge", "f-kl"])
@pytest.mark.parametrize("wins", [True, False])
def test_p_follows_the_discriminators_decision(objective: str, wins: bool) -> None:
    """The sign that counts is that of the evidence: d = 0.4 is 'fake' to LSGAN, 'real' to others."""

    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

        def forward(self, x: Tensor, c: Tensor | None, cond: Tensor | None) -> Tensor:
            return self.value.expand(len(x))

    real, fake = (0.6, 0.4) if objective == "lsgan" else (0.4, -0.4)
    augment = augmentation(p=0.5, adaptive=True, speed=400.0)
    field = DiscriminatorField(Constant(real if wins else fake), objective, augmentation=augment)
    data = batch(randn(4, *SHAPE), randn(4, *SHAPE, seed=1))
    *_, value = (loss_of(field, data) for _ in range(INTERVAL))
    assert_close(augment.p, torch.tensor(0.54 if wins else 0.46))
    assert_close(value.metrics["augment_p"], augment.p)


@pytest.mark.parametrize("objective", ["ipm", "relativistic"])
def test_a_logit_without_a_sign_cannot_lead(objective: str) -> None:
    with pytest.raises(ConfigError, match="sign of d"):
        DiscriminatorField(Cubic(), objective, augmentation=augmentation(p=0.0, adaptive=True))


def adapt_in_a_group(rank: int, folder: str) -> None:
    """One of two processes: rank 0 sees certainty, rank 1 doubt; p is the same on both."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    augment = augmentation(p=0.5, adaptive=True, target=0.4, speed=1000.0)
    for _ in range(INTERVAL):
        augment.adapt(torch.tensor([1.0] * 5) if rank == 0 else torch.tensor([1.0, 1, 1, -1, -1]))
    torch.save(augment.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_move_p_together(tmp_path: Path) -> None:
    spawn(adapt_in_a_group, (str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for state in states:  # the mean sign of all is 0.6, above the target; each saw 20 of 40 images
        assert_close(state["p"], torch.tensor(0.54))


# --- training ---


def images() -> FiniteDataset:
    dataset = open_dataset(make_recipe("gan", {"data": {"name": "digits"}}).data)
    assert isinstance(dataset, FiniteDataset)
    return dataset


TINY = NetworkSettings(kind="mlp", width=16, depth=1, embedding_features=8)


def critic(scalars: int = 0) -> DiscriminatorField:
    settings = AugmentSettings(p=0.2, adaptive=True, target=0.1, speed=600.0)
    return DiscriminatorField(
        build_network(TINY, "logit", shape=(1, 8, 8), scalars=scalars, generator=seeded()),
        conditions=("t",) if scalars else (),
        augmentation=Augmentation(settings, (1, 8, 8)),
    )


def gan() -> tuple[GeneratorModel, tuple[Phase, ...]]:
    generator = build_network(TINY, "generator", shape=(1, 8, 8), latent=4, generator=seeded(1))
    model = GeneratorModel(critic(), generator, GaussianPrior((4,)))
    return model, (Phase("discriminator", batch=12, repeats=3), Phase("generator", batch=12))


def flow() -> tuple[ParticleModel, tuple[Phase, ...]]:
    model = ParticleModel(critic(1), GaussianPrior((1, 8, 8)), steps=3, eta=0.1)
    return model, (Phase("discriminator", batch=12, repeats=3),)


@pytest.mark.parametrize("make", [gan, flow], ids=["gan", "flow"])
def test_resuming_an_adaptive_run_is_exact(
    make: Callable[[], tuple[GeneratorModel, tuple[Phase, ...]]], tmp_path: Path
) -> None:
    def trainer() -> Trainer:
        model, phases = make()
        return Trainer(model, images(), phases, iterations=10, ema=0.9)

    whole, first = trainer(), trainer()
    for _ in whole.run():
        pass
    for done in first.run():
        if done.step == 5:  # between two moves of p: 15 batches are no multiple of 4
            break
    second = trainer()
    load_checkpoint(second, save_checkpoint(first, tmp_path))
    for _ in second.run():
        pass
    end = whole.model.state_dict()
    assert float(end["field.augmentation.p"]) not in (0.2, 0.0)
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, end[name]), name


@pytest.mark.parametrize("recipe", ["gan", "discriminator-flow", "diffflow-gan"])
def test_recipes_augment_on_request(recipe: str) -> None:
    settings = {"data": {"name": "digits"}, "augment": {"policy": ["cutout"], "p": 0.5}}
    made = make_recipe(recipe, settings)
    model = made.compose(images()).model
    assert model.field.draws
    plain = make_recipe(recipe, {"data": {"name": "digits"}}).compose(images()).model
    assert not plain.field.draws
    assert set(model.state_dict()) - set(plain.state_dict()) == {
        f"field.augmentation.{name}" for name in ("p", "signs", "seen", "batches")
    }
    points = make_recipe(recipe, {"augment": {"p": 0.5}})
    dataset = open_dataset(points.data)
    with pytest.raises(ConfigError, match="only images"):
        points.compose(dataset)
