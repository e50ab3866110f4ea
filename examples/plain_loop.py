"""A GAN, a Discriminator Flow and an EDM in plain torch: a field's ``loss``, a carrier's ``particles``.

No trainer, no recipe, no configuration: what moves particles is trained by your own loop.

    python examples/plain_loop.py
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Adam

from partikel import (
    At,
    DiscriminatorField,
    GaussianPrior,
    GeneratorModel,
    ParticleModel,
    ScoreField,
)
from partikel.data import DataSettings, open_dataset
from partikel.denoising import EDMDenoiser
from partikel.metrics import energy_distance
from partikel.models import Carrier, surrogate_loss
from partikel.networks import MLP, Conditioning
from partikel.schedules import EDMSchedule, KarrasGrid, LogNormalLaw
from partikel.solvers import Heun
from partikel.streams import Streams

DATA = open_dataset(DataSettings("gaussians"))
SMALL = {"width": 128, "depth": 3}
ONE_TIME = Conditioning(scalars=1, embedding_features=32, fourier_scale=1.0)
TIMED = {**SMALL, "conditions": ONE_TIME}


def batches(iterations: int, streams: Streams, size: int = 128) -> Iterator[Tensor]:
    """Fresh points of five Gaussians."""
    for _ in range(iterations):
        yield DATA.draw(size, generator=streams.data).x


def step(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step down the loss's gradient."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def gan(iterations: int = 4000, seed: int = 0) -> GeneratorModel:
    """The discriminator's field, carried by a generator."""
    torch.manual_seed(seed)
    streams = Streams(seed)
    critic = DiscriminatorField(MLP((2,), (), **SMALL), "non-saturating")
    model = GeneratorModel(critic, MLP((16,), (2,), **SMALL), GaussianPrior((16,)))
    d = Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.99))
    g = Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    for x in batches(iterations, streams):
        step(critic.loss(x, model.particles(len(x), streams), streams=streams), d)
        fake = model.generator(model.start(len(x), streams.latent))
        velocity = critic(fake.detach(), At(torch.ones(())))
        step(surrogate_loss(fake, velocity).mean(), g)
    return model


def discriminator_flow(iterations: int = 2000, seed: int = 0) -> ParticleModel:
    """The same field, told the time, carried by free particles."""
    torch.manual_seed(seed)
    streams = Streams(seed)
    critic = DiscriminatorField(MLP((2,), (), **TIMED), "non-saturating", conditions=("t",))
    model = ParticleModel(critic, GaussianPrior((2,)), steps=20, eta=20.0)
    d = Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.99))
    for x in batches(iterations, streams):
        step(critic.loss(x, model.particles(len(x), streams), streams=streams), d)
    return model


def edm(iterations: int = 4000, seed: int = 0) -> ParticleModel:
    """The score of the data, carried by free particles along the probability flow."""
    torch.manual_seed(seed)
    streams, schedule = Streams(seed), EDMSchedule(sigma_max=40.0)
    denoiser = EDMDenoiser(MLP((2,), (2,), **TIMED), sigma_data=2.2)
    score = ScoreField(denoiser, LogNormalLaw(0.0, 1.5))
    model = ParticleModel(
        schedule.half_rate * score,
        GaussianPrior((2,), std=schedule.sigma_max),
        steps=28,
        schedule=schedule,
        grid=KarrasGrid(schedule, sigma_min=0.02),
        solver=Heun(),
    )
    optimizer = Adam(score.parameters(), lr=1e-3)
    for x in batches(iterations, streams):
        step(score.loss(x, streams=streams), optimizer)
    return model


def distance(model: Carrier, n: int = 4000) -> float:
    """Energy distance of samples to fresh data; two draws of the data have about 0."""
    generator = torch.Generator().manual_seed(1)
    x = model.eval().sample(n, generator=generator)
    return energy_distance(x, DATA.draw(n, generator=generator).x)


if __name__ == "__main__":
    for train in (gan, discriminator_flow, edm):
        print(f"{train.__name__}: energy distance {distance(train()):.4f}")
