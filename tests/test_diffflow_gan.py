"""DiffFlow's readings of a GAN: moved outputs and their fit, discriminators on noised data."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import GAUSSIAN, Quadratic, assert_moments, randn, seeded, tensor
from partikel.app.config import make_recipe
from partikel.data import Batch, DataSettings, open_dataset
from partikel.errors import ConfigError
from partikel.fields import At, Context, DiscriminatorField, TrainingBatch
from partikel.fields.discriminator import Condition
from partikel.fields.particles import Particles
from partikel.models import GeneratorModel, ParticleModel
from partikel.networks import MLP
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, VESchedule, VPSchedule
from partikel.streams import Streams
from partikel.training import AdamSettings, Phase, Trainer


def carrier(eta: float | None) -> GeneratorModel:
    torch.manual_seed(0)
    generator = MLP((3,), (2,), width=12, depth=2).double()
    return GeneratorModel(DiscriminatorField(Quadratic(2)), generator, GaussianPrior((3,)), eta=eta)


def gradients(model: GeneratorModel, batch: TrainingBatch) -> list[Tensor]:
    loss = {loss.name: loss for loss in model.losses()}["generator"]
    loss.compute(batch).loss.mean().backward()
    found = [p.grad.clone() for p in model.generator.parameters() if p.grad is not None]
    model.generator.zero_grad()
    return found


def test_one_step_of_the_fit_is_the_gan_update() -> None:
    """SGD of rate lr/η on ½‖g(z) - x'‖² and of rate lr on the surrogate (DiffFlow Algorithm 1)."""
    eta = 0.3
    fitting, following = carrier(eta), carrier(None)
    particles = fitting.particles(20, Streams(4))
    moved = fitting.move(particles, Streams(4), None)
    assert moved.moved is not None
    velocity = fitting.field(particles.x, particles.at)
    assert_close(moved.moved, particles.x + eta * velocity)
    fit = gradients(fitting, TrainingBatch(None, moved, 20, Streams(4)))
    surrogate = gradients(following, TrainingBatch(None, None, 20, Streams(4)))
    for ours, theirs in zip(fit, surrogate, strict=True):
        assert_close(ours / eta, theirs)


def test_several_steps_chase_frozen_targets() -> None:
    """With ``same``, all repeats see one set of latents and targets, and the fit's loss falls."""
    data = open_dataset(DataSettings("gaussians"))
    model = carrier(0.5)
    seen: list[Particles] = []
    fit = model._fit
    model._fit = lambda batch: (seen.append(batch.particles), fit(batch))[1]  # type: ignore[method-assign]
    phase = Phase("generator", AdamSettings(lr=1e-2), 32, repeats=5, reuse=5, same=True)
    next(Trainer(model, data, [phase], iterations=1).run())
    assert len(seen) == 5
    assert all(particles is seen[0] for particles in seen)
    losses = [float(fit(TrainingBatch(None, seen[0], 32, Streams(0))).loss.detach().mean())]
    fresh = carrier(0.5)
    losses.insert(
        0, float(fresh._fit(TrainingBatch(None, seen[0], 32, Streams(0))).loss.detach().mean())
    )
    assert losses[1] < 0.9 * losses[0]


def test_impossible_moves() -> None:
    with pytest.raises(ConfigError, match="GeneratorModel.eta="):
        carrier(0.0)
    flow = ParticleModel(DiscriminatorField(Quadratic(2)), GaussianPrior((2,)), steps=3)
    particles = flow.particles(4, Streams(0))
    with pytest.raises(ConfigError, match="no loss that needs moved"):
        flow.move(particles, Streams(0), None)


def test_data_are_noised_to_the_particles_times() -> None:
    """A discriminator with a schedule compares ρ_t with (x + σ(t)ε)/u(t), each at its own t."""
    schedule = VESchedule(3.0, 0.5)
    t = torch.tensor([0.2, 0.9]).double().repeat_interleave(40_000)
    point = torch.tensor([1.0, -2.0]).double()
    noised = schedule.noised(point.expand(len(t), 2), t, generator=seeded())
    for half in (slice(0, 40_000), slice(40_000, None)):
        sigma = schedule.sigma(t[half][:1])
        assert_moments(noised[half], point, sigma**2 * torch.eye(2).double())

    seen: list[Tensor] = []

    class Spy(Quadratic):
        def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    critic = DiscriminatorField(Spy(2), schedule=schedule)
    real, fake = randn(6, 2, seed=1), randn(6, 2, seed=2)
    batch = TrainingBatch(
        Batch(real, None), Particles(fake, torch.linspace(0, 1, 6).double()), 6, Streams(3)
    )
    expected = schedule.noised(
        real, torch.linspace(0, 1, 6).double(), generator=copy.deepcopy(Streams(3)).noise
    )
    (loss,) = critic.losses()
    loss.compute(batch)
    assert_close(seen[0], torch.cat([expected, fake]))


def test_noise_on_real_samples_falls_with_the_training_of_a_generator() -> None:
    # DiffFlow §3.3.2 for a generator: time is training time, at which data have the noise σ(t)
    settings = {
        "iterations": 40,
        "sigma_max": 2.0,
        "annealed": 0.5,
        "batch": 16,
        "discriminator_steps": 2,
        "discriminator": {"width": 16, "depth": 1},
        "generator": {"width": 16, "depth": 1},
    }
    for name in ("gan", "diffflow-gan"):  # which draws once more in an iteration
        recipe = make_recipe(name, settings)
        dataset = open_dataset(recipe.data)
        system = recipe.compose(dataset)
        model = system.model
        assert isinstance(model, GeneratorModel)
        assert isinstance(model.field, DiscriminatorField)
        schedule = model.field.schedule
        assert schedule is not None
        trainer = Trainer(model, dataset, system.phases, iterations=40, seed=0)
        levels = []
        for _ in trainer.run():
            draw = model.particles(1, Streams(1))
            model.draws -= 1  # looking is not training
            levels.append(float(schedule.sigma(draw.t)))
        expected = [2.0 * max(0.0, 1 - k / 20) for k in range(1, 41)]
        assert_close(torch.tensor(levels), torch.tensor(expected))


def test_a_discriminator_told_of_noise_learns_the_ratio_of_noised_data() -> None:
    # at the start real samples are p ⋆ N(0, σ_max²): its loss is that of samples noised by hand
    critic = DiscriminatorField(MLP((2,), (), width=8, depth=1), schedule=EDMSchedule(2.0))
    generator = MLP((3,), (2,), width=8, depth=1)
    model = GeneratorModel(critic, generator, GaussianPrior((3,)), horizon=2.0, annealing=4)
    for sigma in (2.0, 1.5, 1.0, 0.5, 0.0, 0.0):
        streams = Streams(0)
        particles = model.particles(64, streams)
        real = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
        batch = TrainingBatch(Batch(real, None), particles, 64, streams)
        noised = real + sigma * torch.randn(64, 2, generator=Streams(0).noise)
        clean = DiscriminatorField(critic.network)
        plain = TrainingBatch(Batch(noised, None), particles, 64, streams)
        expected = clean.losses()[0].compute(plain).loss
        assert_close(critic.losses()[0].compute(batch).loss, expected)


def test_the_clock_of_annealing_is_in_the_checkpoint_and_only_there_where_it_runs() -> None:
    critic, generator = DiscriminatorField(MLP((2,), ())), MLP((3,), (2,))
    plain = GeneratorModel(critic, generator, GaussianPrior((3,)))
    annealed = GeneratorModel(critic, generator, GaussianPrior((3,)), annealing=3)
    annealed.particles(1, Streams(0))
    assert set(annealed.state_dict()) - set(plain.state_dict()) == {"draws"}
    assert int(annealed.state_dict()["draws"]) == 1
    with pytest.raises(ConfigError, match="GeneratorModel.annealing="):
        GeneratorModel(critic, generator, GaussianPrior((3,)), annealing=-1)


def test_impossible_annealing_is_refused() -> None:
    with pytest.raises(ConfigError, match="(sigma_max|annealed)' must be"):
        make_recipe("gan", {"sigma_max": -1.0})
    with pytest.raises(ConfigError, match="annealed"):
        make_recipe("gan", {"sigma_max": 1.0, "annealed": 0.0})


@pytest.mark.parametrize("conditions", [(), ("t",)])
def test_a_paired_critic_compares_with_data_along_its_path(
    conditions: tuple[Condition, ...],
) -> None:
    """∇ E_y c(d(x), d(y)) with y ~ (x + σ(t)ε)/u(t) at each particle's own t, in closed form."""
    path, n = VPSchedule(), 20_000
    critic = DiscriminatorField(Line(), "relativistic", conditions=conditions, schedule=path)
    assert critic.needs == {"real", "generator"}
    real = GAUSSIAN.sample(n, generator=seeded(), dtype=torch.float64)
    bound = critic.bind(Context(real=real, generator=seeded(1)))
    x, t = randn(3, 2, seed=2), tensor([0.3, 0.9, 0.3])
    for at in (At(t), At(t[0])):
        velocity = bound(x, at)
        for i, time in enumerate(at.t.expand(3)):
            shown = path.noised(real, time.expand(n), generator=seeded(3)).sum(1)
            slopes = torch.sigmoid(shown - x[i].sum())  # d(x) = x_1 + x_2
            error = float(slopes.std()) * (2 / n) ** 0.5
            assert abs(float(velocity[i, 0] - slopes.mean())) < 4.5 * error
    assert not torch.equal(bound(x, At(t)), bound(x, At(t)))  # fresh noise


class Line(nn.Module):
    """d(x) = x_1 + x_2, whatever the conditions."""

    def forward(self, x: Tensor, c: Tensor | None, cond: Tensor | None) -> Tensor:
        return x.sum(1)
