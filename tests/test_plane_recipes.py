"""The plane's recipes are composed as DiffFlow says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from conftest import MIXTURE, Recorder, assert_moments, randn, seeded
from partikel.app.config import make_recipe
from partikel.data import open_dataset
from partikel.errors import ConfigError
from partikel.fields import At, DiscriminatorField, Particles, Scaled
from partikel.models import StagedParticleModel
from partikel.recipes import DiffFlowGAN, DiffODEGAN, PlanePoint, System
from partikel.streams import Streams
from partikel.training import Trainer
from partikel.training.ema import swapped_in

TINY = {"kind": "mlp", "width": 8, "depth": 2, "embedding_features": 4}


def point(**settings: object) -> PlanePoint:
    recipe = make_recipe(
        "diffflow",
        {"score": {"network": TINY, "sigma_max": 40.0}, "discriminator": TINY, "steps": 5},
        settings,
    )
    assert isinstance(recipe, PlanePoint)
    return recipe


def composed(recipe: PlanePoint) -> tuple[System, Scaled]:
    """The system and the EDM field it was built on."""
    dataset = open_dataset(recipe.data)
    required = recipe.score.compose(dataset).model
    field = required.field
    assert isinstance(field, Scaled)
    return recipe.compose(dataset, required), field


@pytest.mark.parametrize(("lambda2", "scores"), [(1.0, 2.0), (2.0, 1.0), (0.5, 4.0)])
def test_the_score_alone_drives_langevin_sde_and_ode(lambda2: float, scores: float) -> None:
    """At g² = 2β the drift is β s_p with β = g_s²/(λ²/β), the noise² 2β - g_s²."""
    system, edm = composed(point(g2=2.0, lambda2=lambda2))
    assert system.phases == ()
    model = system.model
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 39.5, 6)
    sigma = 40 - t
    at = At(t, sigma)
    # EDM's own field is half_rate · s_p = ½ g_s² s_p
    assert_close(model.field(x, at), scores * edm(x, at), rtol=1e-4, atol=1e-5)
    if lambda2 == 2:
        assert model.diffusion is None  # type: ignore[union-attr]
    else:
        noise = model.diffusion(t)  # type: ignore[union-attr, misc]
        assert_close(noise**2, (2 / lambda2 - 1) * 2 * sigma)


@pytest.mark.parametrize("path", ["karras", "ve", "vp", "sub-vp"])
def test_diffusion_gan_trains_its_discriminator_along_the_path(path: str) -> None:
    recipe = point(path=path, g2=1.0, sigma_min=0.01, batch=16, iterations=3)
    system, edm = composed(recipe)
    (phase,) = system.phases
    assert phase.loss == "discriminator"
    dataset, schedule = open_dataset(recipe.data), recipe.flow.schedule
    before = {k: v.clone() for k, v in system.model.state_dict().items()}
    for _ in Trainer(system.model, dataset, system.phases, iterations=3).run():
        pass
    changed = {k for k, v in system.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    frozen = {id(p) for p in edm.parameters()}
    assert not any(id(p) in frozen for p in system.model.parameters() if p.requires_grad)
    # it sees (x + σε)/u of the data beside particles of the same t, and is told ln(σ)/4
    critic = next(m for m in system.model.modules() if isinstance(m, DiscriminatorField))
    critic.network = network = Recorder(lambda x: 0 * x[:, 0])
    n = 4000
    t = 0.9 * schedule.horizon * torch.rand(n, generator=seeded(), dtype=torch.float64)
    real, particles = MIXTURE.sample(n, generator=seeded()).double(), Particles(randn(n, 2), t)
    system.model.field.loss(real, particles, streams=Streams(0))
    ((shown, told, _),) = network.calls
    u, sigma = schedule.u(t)[:, None], schedule.sigma(t)[:, None]
    noise = (u * shown[:n] - real) / sigma
    assert_moments(noise, torch.zeros(2).double(), torch.eye(2).double())
    assert torch.equal(shown[n:], particles.x)
    assert_close(told, (sigma.log() / 4).repeat(2, 1))


def test_a_joint_score_is_trained_beside_the_discriminator() -> None:
    recipe = point(joint=True)
    assert recipe.required is None
    system = recipe.compose(open_dataset(recipe.data))
    assert [phase.loss for phase in system.phases] == ["score", "discriminator"]
    with pytest.raises(ConfigError, match="not loaded"):
        point(joint=True, data_score="somewhere")


def test_diffode_gan_moves_by_the_log_ratio() -> None:
    recipe = dataclasses.replace(DiffODEGAN(), steps=4, eta=3.0, sigma_max=2.0, sigma_end=0.1)
    model = recipe.compose(open_dataset(recipe.data)).model
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    t = torch.full((5,), 0.25)
    point = x.clone().requires_grad_()
    critic = next(m for m in model.modules() if type(m).__name__ == "DiscriminatorField")
    (gradient,) = torch.autograd.grad(critic.network(point, t[:, None]).sum(), point)
    assert_close(model.field(x, At(t)), 3.0 * gradient, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="forget"):
        dataclasses.replace(recipe, staged=True).compose(open_dataset(recipe.data))


def test_a_pool_is_trained_node_by_node() -> None:
    recipe = dataclasses.replace(
        DiffODEGAN(), steps=3, discriminators="independent", staged=True, pool=50, iterations=6
    )
    model = recipe.compose(open_dataset(recipe.data)).model
    assert isinstance(model, StagedParticleModel)
    assert model.stage_draws == 2
    streams = Streams(0)
    nodes, pools = [], []
    for _ in range(8):
        particles = model.particles(10, streams)
        nodes.append(float(particles.t[0]))
        pools.append(model.pool.clone())
    assert_close(torch.tensor(nodes), torch.tensor([0, 0, 1, 1, 2, 2, 2, 2]) / 3)
    assert torch.equal(pools[0], pools[1])
    start = pools[0]
    assert_close(pools[2], start + model.velocity(start, torch.zeros(50)) / 3)
    assert torch.equal(pools[5], pools[7])
    rows = {tuple(row) for row in pools[7].tolist()}
    assert all(tuple(row) in rows for row in particles.x.tolist())


def test_diffflow_gan_fits_the_generator_to_moved_outputs() -> None:
    recipe = DiffFlowGAN(fit_steps=4, eta=0.5)
    system = recipe.compose(open_dataset(recipe.data))
    critic, fit = system.phases
    assert critic.loss == "discriminator"
    assert (fit.loss, fit.repeats, fit.reuse, fit.same) == ("generator", 4, 4, True)
    assert system.model.eta == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("classes", [False, True])
def test_samples_of_averaged_weights_are_what_the_pool_is(classes: bool) -> None:
    """Node by node, the pool is moved by weights that sampling replays, whatever is averaged."""
    recipe = make_recipe(
        "diffode-gan",
        {
            "discriminator": {"kind": "mlp", "width": 8, "depth": 2},
            "discriminators": "independent",
            "optimizer": {"lr": 0.02},
            "staged": True,
            "pool": 64,
            "steps": 4,
            "batch": 32,
            "iterations": 60,
            "ema": 0.9,
            "conditional": classes,
        },
    )
    dataset = open_dataset(recipe.data)
    system = recipe.compose(dataset)
    model = system.model
    assert isinstance(model, StagedParticleModel)
    trainer = Trainer(model, dataset, system.phases, iterations=60, ema=0.9)
    run = trainer.run()
    next(run)
    start = model.pool.clone()
    for _ in run:
        pass
    assert int(model.stage) == 3
    assert trainer.average is not None
    assert int(trainer.average.n_averaged) == 15  # of the last node alone
    raw = [p.detach().clone() for p in model.field.parameters()]
    with swapped_in(model.sampled, trainer.average):
        differ = [not torch.equal(p, q) for p, q in zip(model.field.parameters(), raw, strict=True)]
        ends = model.sample(
            64,
            generator=torch.Generator().manual_seed(0),
            start=start,
            cond=model.pool_labels,
            stop=3,
        )
    assert any(differ)  # the last network is averaged
    assert_close(ends, model.pool)
    assert float((model.pool - start).norm()) > 0.5
