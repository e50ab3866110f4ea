"""Composed models are what their settings say, setting by setting; phases run when they say they do."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from conftest import Recorder, randn, seeded, tensor
from partikel.data import DataPrior, DataSettings, open_dataset
from partikel.denoising import PreconditionedLogit
from partikel.errors import ConfigError
from partikel.fields import (
    At,
    AtScale,
    Context,
    DiscriminatorField,
    Independent,
    OptimalTransport,
    Particles,
    Perturbed,
    ScoreField,
    VelocityField,
    WhiteNoise,
)
from partikel.models import (
    Carrier,
    Consistency,
    Endpoints,
    FlowMapModel,
    GeneratorModel,
    Lagrangian,
    MeanFlow,
    ParticleModel,
    Semigroup,
    StagedParticleModel,
    free_particles,
)
from partikel.networks import MLP, DiT, EDM2UNet, NetworkSettings, UNet
from partikel.objectives import GradientPenalty
from partikel.priors import GaussianPrior
from partikel.recipes import RECIPES, System
from partikel.recipes.diffflow import DiffFlowGAN, DiffODEGAN, PlanePoint
from partikel.recipes.discriminator_flow import DiscriminatorFlow
from partikel.recipes.edm import EDM
from partikel.recipes.flow_map import ConsistencyMap, Distillation, MeanFlowMap
from partikel.recipes.flow_matching import FlowMatching
from partikel.recipes.gan import GAN
from partikel.recipes.score_gan import ScoreFlow, ScoreGAN
from partikel.schedules import (
    EDMSchedule,
    KarrasGrid,
    KarrasLaw,
    LinearSchedule,
    LogitNormalTimeLaw,
    LogNormalLaw,
    LogUniformLaw,
    TrigonometricSchedule,
    UniformGrid,
    UniformTimeLaw,
    VESchedule,
    karras_level,
)
from partikel.solvers import SOLVERS, EulerMaruyama, Heun
from partikel.streams import Streams
from partikel.training import AdamSettings, Phase, Trainer, fit

TINY = NetworkSettings(kind="mlp", width=8, depth=1)
SMOOTH = NetworkSettings(kind="mlp", width=8, depth=1, activation="silu", fourier_scale=1.0)
DATA = open_dataset(DataSettings("gaussians"))
PENALTIES = (GradientPenalty(0.3, centre=1.0, at="real"), GradientPenalty(0.7, at="fake"))
SLOW, FAST = AdamSettings(lr=1e-3, beta1=0.3), AdamSettings(lr=5e-3, beta2=0.9)


def particle(system: System) -> ParticleModel:
    return free_particles(system.model, "a particle model")


def critic_of(model: Carrier) -> DiscriminatorField:
    (critic,) = (part for part in model.field.modules() if isinstance(part, DiscriminatorField))
    return critic


def scores_of(model: Carrier) -> list[ScoreField]:
    return [part for part in model.field.modules() if isinstance(part, ScoreField)]


def small_edm(**settings: Any) -> EDM:
    return EDM(network=TINY, **settings)


def test_an_edm_is_what_its_settings_say() -> None:
    recipe = small_edm(
        sigma_min=0.01,
        sigma_max=30.0,
        rho=4.0,
        law_mean=-0.4,
        law_std=0.9,
        steps=9,
        churn=3.0,
        batch=77,
        optimizer=FAST,
    )
    system = recipe.compose(DATA)
    model = particle(system)
    assert (model.prior.std, model.prior.shape) == (30.0, (2,))
    assert model.schedule == EDMSchedule(30.0)
    assert model.grid == KarrasGrid(EDMSchedule(30.0), 0.01, 4.0)
    assert model.solver == Heun(churn=3.0)
    assert model.steps == 9
    assert system.phases == (Phase("score", FAST, 77),)
    levels = 30.0 - model.grid.nodes(9)[:-1]
    assert_close(levels, karras_level(torch.linspace(0, 1, 9).double(), 0.01, 30.0, 4.0))
    (score,) = scores_of(model)
    assert (score.law, score.weighting, score.of) == (LogNormalLaw(-0.4, 0.9), "edm", "data")
    assert score.denoiser.sigma_data == DATA.sigma_data
    (own,) = scores_of(small_edm(sigma_data=0.7, weighting="likelihood").compose(DATA).model)
    assert own.denoiser.sigma_data == 0.7
    assert (own.law, own.weighting) == (LogUniformLaw(0.002, 80.0), "likelihood")


@pytest.mark.parametrize("solver", ["heun", "euler", "ddim", "dpmpp-2m", "unipc-2", "unipc-3"])
def test_an_edms_solver_is_the_named_one(solver: str) -> None:
    model = particle(small_edm(solver=solver).compose(DATA))
    assert type(model.solver) is type(SOLVERS[solver]())


def test_a_gan_is_what_its_settings_say() -> None:
    recipe = GAN(
        objective="hinge",
        penalties=PENALTIES,
        discriminator=TINY,
        generator=TINY,
        latent=5,
        discriminator_steps=3,
        batch=33,
        discriminator_optimizer=SLOW,
        generator_optimizer=FAST,
    )
    system = recipe.compose(DATA)
    assert isinstance(system.model, GeneratorModel)
    assert (system.model.prior.std, system.model.prior.shape) == (1.0, (5,))
    assert critic_of(system.model).penalties == PENALTIES
    assert type(critic_of(system.model).objective).__name__ == "Hinge"
    assert critic_of(system.model).schedule is None
    assert system.model.eta is None
    assert system.phases == (
        Phase("discriminator", SLOW, 33, repeats=3),
        Phase("generator", FAST, 33),
    )


def test_a_gans_noise_falls_over_the_share_of_training_that_it_says() -> None:
    recipe = GAN(
        discriminator=TINY,
        generator=TINY,
        sigma_max=2.0,
        annealed=0.25,
        iterations=40,
        discriminator_steps=3,
    )
    model = recipe.compose(DATA).model
    assert isinstance(model, GeneratorModel)
    assert critic_of(model).schedule == EDMSchedule(2.0)
    assert model.horizon == 2.0
    assert model.annealing == 30  # draws of a quarter of the iterations
    settings = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    moved = DiffFlowGAN(**settings).compose(DATA).model
    assert isinstance(moved, GeneratorModel)
    assert moved.annealing == 40  # an iteration draws what is moved, too


def test_a_diffflow_gan_moves_and_fits() -> None:
    recipe = DiffFlowGAN(
        discriminator=TINY, generator=TINY, eta=0.3, fit_steps=4, batch=9, generator_optimizer=SLOW
    )
    system = recipe.compose(DATA)
    assert isinstance(system.model, GeneratorModel)
    assert system.model.eta == 0.3
    assert system.phases[1] == Phase("generator", SLOW, 9, repeats=4, reuse=4, same=True)


def test_a_discriminator_flow_is_what_its_settings_say() -> None:
    recipe = DiscriminatorFlow(
        objective="ipm",
        penalties=PENALTIES,
        network=TINY,
        steps=12,
        eta=3.0,
        temperature=0.1,
        prior_std=1.7,
        updates=4,
        reuse=2,
        times_per_path=3,
        truncate=False,
        batch=24,
        optimizer=SLOW,
    )
    system = recipe.compose(DATA)
    model = particle(system)
    assert critic_of(model).penalties == PENALTIES
    assert type(critic_of(model).objective).__name__ == "IPM"
    assert critic_of(model).conditions == ("t",)
    assert (model.prior.std, model.steps, model.eta) == (1.7, 12, 3.0)
    assert (model.times_per_path, model.truncate) == (3, False)
    assert isinstance(model.solver, EulerMaruyama)
    assert not model.solver.noise_in_last_step
    assert model.diffusion is not None
    assert_close(model.diffusion(tensor([0.5])), tensor([math.sqrt(2 * 0.1 * 3.0)]))
    assert system.phases == (Phase("discriminator", SLOW, 24, repeats=4, reuse=2),)


@pytest.mark.parametrize("kind", [ScoreGAN, ScoreFlow])
def test_a_score_difference_is_what_its_settings_say(kind: type) -> None:
    """At (x, σ): α s_p - β_own s_ρ, asked at the levels of its law and weighted by σ."""
    recipe = kind(
        score=small_edm(),
        own_score=TINY,
        alpha=1.5,
        beta_own=0.6,
        sigma_min=0.2,
        sigma_max=5.0,
        rho=4.0,
        own_sigma_data=0.8,
        weighting="edm",
        score_steps=6,
        batch=21,
        score_optimizer=SLOW,
    )
    teacher = recipe.required.compose(DATA).model
    system = recipe.compose(DATA, teacher)
    assert system.phases[0] == Phase("own score", SLOW, 21, repeats=6)
    assert len(system.phases) == (2 if kind is ScoreGAN else 1)
    perturbed = system.model.field
    assert isinstance(perturbed, Perturbed)
    assert (perturbed.law, perturbed.power) == (KarrasLaw(0.2, 5.0, 4.0), 1.0)
    s_p, s_rho = scores_of(system.model)
    assert s_p.frozen
    assert s_p.denoiser is scores_of(teacher)[0].denoiser
    assert (s_rho.law, s_rho.weighting, s_rho.of) == (perturbed.law, "edm", "particles")
    assert (s_rho.denoiser.sigma_data, s_rho.denoiser.timed) == (0.8, kind is ScoreFlow)
    x, at = randn(6, 2).float(), At(torch.linspace(0, 1, 6), torch.linspace(0.3, 2, 6))
    assert_close(perturbed.field(x, at), 1.5 * s_p(x, at) - 0.6 * s_rho(x, at))


def test_a_score_gan_carries_noise_for_a_share_of_its_own_score() -> None:
    """γ of β_own is noise of √(2γβ_own/lr), and 1/√σ of that at σ."""
    recipe = ScoreGAN(
        score=small_edm(), own_score=TINY, generator=TINY, latent=7, beta_own=0.6, gamma=0.25,
        batch=21, generator_optimizer=FAST,
    )  # fmt: skip
    system = recipe.compose(DATA, small_edm().compose(DATA).model)
    assert isinstance(system.model, GeneratorModel)
    assert (system.model.prior.std, system.model.prior.shape) == (1.0, (7,))
    assert system.phases[1] == Phase("generator", FAST, 21)
    perturbed = system.model.field
    assert isinstance(perturbed, Perturbed)
    (noise,) = (part for part in perturbed.modules() if isinstance(part, WhiteNoise))
    assert callable(noise.std)
    assert_close(noise.std(tensor([4.0])), tensor([math.sqrt(2 * 0.25 * 0.6 / 5e-3) / 2]))
    s_p, s_rho = scores_of(system.model)
    x, at = randn(6, 2).float(), At(torch.linspace(0, 1, 6), torch.linspace(0.3, 2, 6))
    draw = Context(generator=seeded())
    drawn = perturbed.field.bind(draw)(x, at) - noise.bind(Context(generator=seeded()))(x, at)
    assert_close(drawn, s_p(x, at) - 0.75 * 0.6 * s_rho(x, at), rtol=1e-4, atol=1e-3)


def test_a_score_flow_starts_and_moves_as_its_settings_say() -> None:
    recipe = ScoreFlow(score=small_edm(), own_score=TINY, steps=13, eta=2.5, prior_std=1.7)
    model = particle(recipe.compose(DATA, small_edm().compose(DATA).model))
    assert (model.prior.std, model.steps, model.eta) == (1.7, 13, 2.5)


@pytest.mark.parametrize("kind", [ScoreGAN, ScoreFlow])
def test_a_level_weighs_as_its_power_says(kind: type) -> None:
    """σ^power h: at the same draws of σ and noise, the fields of powers 0, 1 and 2 are geometric."""
    x, at = randn(64, 2).float(), At(tensor(1.0).float())

    def force(**power: float) -> torch.Tensor:
        recipe = kind(score=small_edm(), own_score=TINY, own_sigma_data=3.0, **power)
        field = recipe.compose(DATA, recipe.required.compose(DATA).model).model.field
        context = Context(generator=torch.Generator().manual_seed(0))
        return field.bind(context)(x, at).detach()

    none, paper, two = force(power=0.0), force(), force(power=2.0)
    sigma = (paper / none).clamp(min=0)
    assert_close(two, sigma**2 * none, rtol=1e-4, atol=1e-6)
    assert sigma.amin() >= 0.0999
    assert sigma.amax() <= 10.001
    assert sigma.std() > 0.5


@pytest.mark.parametrize("conditional", [False, True])
def test_an_own_score_that_starts_as_a_copy_is_no_force_until_it_has_learned(
    conditional: bool,
) -> None:
    score = small_edm(conditional=conditional, sigma_data=0.7)
    recipe = ScoreGAN(score=score, conditional=conditional, own_score=None, generator=TINY, batch=8)
    required = recipe.required
    assert required is not None
    teacher = required.compose(DATA).model
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    system = recipe.compose(DATA, teacher)
    labels = torch.arange(16) % 5 if conditional else None
    x, at = randn(16, 2).float(), At(tensor([1.0]).float(), None, labels)

    def force() -> torch.Tensor:
        context = Context(generator=torch.Generator().manual_seed(0))
        return system.model.field.bind(context)(x, at).detach()

    assert not force().any()
    next(Trainer(system.model, DATA, system.phases, iterations=1).run())
    assert force().any()
    assert_close(teacher.state_dict(), before, rtol=0, atol=0)


def test_what_an_own_score_cannot_copy_is_refused() -> None:
    with pytest.raises(ConfigError, match="generation time.*give own_score a network"):
        ScoreFlow(own_score=None)
    with pytest.raises(ConfigError, match="leave out own_sigma_data"):
        ScoreGAN(own_score=None, own_sigma_data=1.0)


PATHS = {
    "karras": (40.0, True),
    "ve": (40.0, True),
    "vp": (1.0, False),
    "sub-vp": (1.0, False),
}


@pytest.mark.parametrize("path", list(PATHS))
def test_a_point_of_the_plane_is_what_its_settings_say(path: Any) -> None:
    std, preconditioned = PATHS[path]
    recipe = PlanePoint(
        path=path,
        rho=3.0,
        g2=0.8,
        lambda2=0.6,
        steps=11,
        score=small_edm(),
        discriminator=TINY,
        penalties=PENALTIES,
        batch=19,
        optimizer=SLOW,
    )
    required = recipe.required
    assert required is not None
    system = recipe.compose(DATA, required.compose(DATA).model)
    model = particle(system)
    assert (model.prior.std, model.steps) == (std, 11)
    if path == "karras":
        assert model.grid == KarrasGrid(EDMSchedule(40.0), 0.002, 3.0)
    else:
        assert isinstance(model.grid, UniformGrid)
    critic = critic_of(model)
    assert critic.penalties == PENALTIES
    assert critic.conditions == ("log sigma",)
    assert isinstance(critic.network, PreconditionedLogit) is preconditioned
    # what a corrector follows is ∇log ρ_t of particles X, u s_p(uX, σ), not s_p itself
    (score,) = model._score
    assert isinstance(score, AtScale)
    assert score.schedule == model.schedule
    t = torch.linspace(0, 0.9, 7, dtype=torch.float64) * model.horizon
    g2, lambda2 = recipe.flow.coordinates(t)
    assert_close(g2, torch.full_like(t, 0.8))
    assert_close(lambda2, torch.full_like(t, 0.6))
    assert system.phases == (Phase("discriminator", SLOW, 19),)


def test_a_staged_diffode_gan_moves_on_after_its_share_of_iterations() -> None:
    recipe = DiffODEGAN(
        sigma_max=3.0,
        sigma_end=0.1,
        steps=5,
        eta=2.0,
        prior_std=1.3,
        discriminators="independent",
        staged=True,
        pool=64,
        discriminator=TINY,
        iterations=100,
    )
    model = recipe.compose(DATA).model
    assert isinstance(model, StagedParticleModel)
    assert (model.stage_draws, len(model.pool), model.steps) == (20, 64, 5)
    assert model.schedule == VESchedule(3.0, 0.1)
    assert model.prior.std == 1.3
    whole = replace(recipe, staged=False, discriminators="shared", times_per_path=2)
    assert particle(whole.compose(DATA)).times_per_path == 2


@pytest.mark.parametrize("weighting", ["velocity", "denoiser"])
@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_flow_matching(path: Any, weighting: Any) -> None:
    recipe = FlowMatching(
        network=TINY,
        path=path,
        weighting=weighting,
        law="logit-normal",
        law_mean=0.3,
        law_std=0.7,
        solver="midpoint",
        steps=9,
        batch=17,
        optimizer=SLOW,
    )
    system = recipe.compose(DATA)
    model = particle(system)
    (velocity,) = (part for part in model.field.modules() if isinstance(part, VelocityField))
    assert velocity.law == LogitNormalTimeLaw(0.3, 0.7)
    assert velocity.weighting == weighting
    assert (
        model.schedule
        == velocity.denoiser.path
        == {
            "linear": LinearSchedule(),
            "trigonometric": TrigonometricSchedule(),
        }[path]
    )
    assert velocity.coupling == Independent(model.prior)
    assert type(model.solver) is SOLVERS["midpoint"]
    assert (model.steps, model.prior.std, model.shape) == (9, 1.0, (2,))
    assert system.phases == (Phase("velocity", SLOW, 17),)


def test_flow_matching_from_data_and_by_transport() -> None:
    moons = FlowMatching(network=TINY, source=DataSettings("moons"), coupling="transport", blur=0.2)
    model = particle(moons.compose(DATA))
    (velocity,) = (part for part in model.field.modules() if isinstance(part, VelocityField))
    assert isinstance(model.prior, DataPrior)
    assert model.prior.dataset.name == "moons"
    assert velocity.coupling == OptimalTransport(model.prior, 0.2)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        (MeanFlowMap, MeanFlow(LogitNormalTimeLaw(0.4, 0.8), 0.3, 0.5)),
        (ConsistencyMap, Consistency(UniformTimeLaw(), 0.3, 0.5, intervals=7)),
    ],
)
def test_maps_from_data(kind: Any, loss: Any) -> None:
    recipe = kind(
        network=SMOOTH, diagonal=0.3, power=0.5, intervals=7, average=0.9, steps=3, law_std=0.8
    )
    system = recipe.compose(DATA)
    model = system.model
    assert isinstance(model, FlowMapModel)
    assert model.loss == loss
    assert (model.steps, model.decay, model.guidance) == (3, 0.9, 1.0)
    assert model.learns_itself
    assert model.schedule == LinearSchedule()
    assert [phase.loss for phase in system.phases] == ["map"]


def test_distillation() -> None:
    teacher = EDM(network=TINY, steps=5, sigma_max=30.0)
    required = teacher.compose(DATA).model
    recipe = Distillation(
        teacher=teacher,
        network=SMOOTH,
        path="trigonometric",
        diagonal=0.4,
        average=0.8,
        simulated=True,
        batch=15,
        optimizer=FAST,
    )
    system = recipe.compose(DATA, required)
    model = system.model
    assert isinstance(model, FlowMapModel)
    assert model.loss == Lagrangian(UniformTimeLaw(), 0.4, simulated=True)
    assert model.schedule == TrigonometricSchedule()
    assert (model.decay, model.flow.steps, model.flow.times_per_path) == (0.8, 5, 5)
    assert not any(weight.requires_grad for weight in model.field.parameters())
    assert system.phases == (Phase("map", FAST, 15),)
    flow = DiscriminatorFlow(network=TINY, steps=4, eta=2.0)
    own = replace(recipe, teacher=flow, simulated=False, average=None)
    nodes = own.compose(DATA, flow.compose(DATA).model).model
    assert isinstance(nodes, FlowMapModel)
    assert nodes.loss == Endpoints(UniformTimeLaw(), 0.4)
    further = replace(own, steps=2).compose(DATA, flow.compose(DATA).model).model
    assert isinstance(further, FlowMapModel)
    assert isinstance(further.loss, Semigroup)
    assert nodes.nodes is not None
    assert len(nodes.nodes) == 5
    with pytest.raises(ConfigError, match="the teacher knows no labels"):
        replace(recipe, conditional=True).compose(DATA, required)


@pytest.mark.parametrize(
    ("of_teacher", "of_map"),
    [("mlp", MLP), ("unet", UNet), ("dit", DiT), ("edm2", EDM2UNet), ("unet2d", UNet)],
)
def test_a_map_has_a_network_like_its_teacher_s(of_teacher: str, of_map: type) -> None:
    """Where none is given; diffusers' U-Net is told one time only."""
    sizes = {"mlp": {"width": 16, "depth": 2}, "dit": {"width": 32, "depth": 1}}
    narrow = {"channels": 32, "multipliers": (1,), "blocks": 1, "attention_resolutions": ()}
    network = NetworkSettings(of_teacher, **sizes.get(of_teacher, narrow))  # type: ignore[arg-type]
    digits = open_dataset(DataSettings("digits"))
    teacher = EDM(data=DataSettings("digits"), network=network)
    model = Distillation(teacher=teacher).compose(digits, teacher.compose(digits).model).model
    assert isinstance(model, FlowMapModel)
    assert type(model.network) is of_map


def test_every_recipe_is_composed_here() -> None:
    assert {kind.__name__ for kind in RECIPES.values()} == {
        "EDM",
        "FlowMatching",
        "MeanFlowMap",
        "ConsistencyMap",
        "Distillation",
        "GAN",
        "ScoreGAN",
        "ScoreFlow",
        "DiscriminatorFlow",
        "PlanePoint",
        "DiffODEGAN",
        "DiffFlowGAN",
    }


# --- what a network is shown


def test_a_preconditioned_logit_sees_particles_at_unit_scale() -> None:
    """F(x/√(σ² + σ_d²); c), c_0 = ln(σ)/4."""
    network = Recorder(lambda x: x.sum(1))
    logit = PreconditionedLogit(network, sigma_data=2.0)
    sigma, x = tensor([0.5, 3.0, 40.0]), randn(3, 2)
    c = (sigma.log() / 4)[:, None]
    logit(x, c)
    shown, conditions, _ = network.calls[0]
    assert_close(shown, x / (sigma**2 + 4).sqrt()[:, None])
    assert_close(conditions, c)


def test_a_point_of_the_planes_logit_has_the_datas_scale() -> None:
    recipe = PlanePoint(score=small_edm(), discriminator=TINY)
    network = critic_of(recipe.compose(DATA, small_edm().compose(DATA).model).model).network
    assert isinstance(network, PreconditionedLogit)
    assert network.sigma_data == DATA.sigma_data


# --- phases


class Counting(DiscriminatorField):
    """A critic that counts its updates, and the draws of particles that they see."""

    def __init__(self) -> None:
        super().__init__(MLP((2,), (), width=4, depth=1))
        self.seen: list[torch.Tensor] = []

    def _loss(self, batch):
        self.seen.append(batch.particles.x.clone())
        return super()._loss(batch)


def trained(phases: list[Phase], iterations: int) -> tuple[Counting, Counter[int]]:
    critic = Counting()
    model = GeneratorModel(critic, MLP((3,), (2,), width=4, depth=1), GaussianPrior((3,)))
    trainer = Trainer(model, DATA, phases, iterations=iterations)
    ran = Counter[int]()
    for done in trainer.run():
        ran[done.step] += any(name.startswith("generator") for name in done.metrics)
    return critic, ran


def test_a_phase_runs_in_every_so_many_iterations() -> None:
    critic, ran = trained(
        [Phase("discriminator", batch=8, repeats=2), Phase("generator", batch=8, every=3)], 7
    )
    assert len(critic.seen) == 14
    assert [step for step, times in ran.items() if times] == [1, 4, 7]


def test_reused_draws_are_shared_out() -> None:
    """Four updates on two draws of 16: each update has eight particles, no two the same ones."""
    draws: list[int] = []

    class Drawing(GeneratorModel):
        def particles(self, n: int, streams: Streams, **given: Any) -> Particles:
            draws.append(n)
            return super().particles(n, streams, **given)

    critic = Counting()
    model = Drawing(critic, MLP((3,), (2,), width=4, depth=1), GaussianPrior((3,)))
    phases = [Phase("discriminator", batch=8, repeats=4, reuse=2)]
    list(Trainer(model, DATA, phases, iterations=1).run())
    assert draws == [16, 16]
    assert [len(x) for x in critic.seen] == [8] * 4
    assert len(torch.unique(torch.cat(critic.seen), dim=0)) == 32
    draws.clear()
    same = [Phase("discriminator", batch=8, repeats=4, reuse=4, same=True)]
    critic.seen.clear()
    list(Trainer(model, DATA, same, iterations=1).run())
    assert draws == [8]
    assert all(torch.equal(x, critic.seen[0]) for x in critic.seen)


def test_the_average_is_what_evaluation_sees() -> None:
    """Evaluated weights are the average's, and the raw ones are back afterwards."""
    model = small_edm().compose(DATA).model
    averaged: list[torch.Tensor] = []

    def watch(model: Carrier, step: int) -> dict[str, float]:
        averaged.append(next(model.sampled.parameters()).detach().clone())
        return {}

    trainer = fit(
        model,
        DATA,
        [Phase("score", AdamSettings(lr=1e-2), 16)],
        iterations=12,
        ema=0.9,
        evaluate=watch,
        evaluate_every=12,
    )
    assert trainer.average is not None
    kept = next(trainer.average.module.parameters())
    assert_close(averaged[-1], kept.detach())
    raw = next(model.sampled.parameters()).detach()
    assert not torch.allclose(averaged[-1], raw, rtol=1e-4, atol=1e-6)


def test_the_loop_lets_a_carrier_move_its_teacher() -> None:
    """After each iteration, when its phases have run."""

    class Taught(GeneratorModel):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.seen: list[torch.Tensor] = []

        def updated(self) -> None:
            self.seen.append(next(self.generator.parameters()).detach().clone())

    critic = DiscriminatorField(MLP((2,), (), width=4, depth=1))
    model = Taught(critic, MLP((3,), (2,), width=4, depth=1), GaussianPrior((3,)))
    phases = [Phase("discriminator", batch=8), Phase("generator", batch=8)]
    weights = [
        next(model.generator.parameters()).detach().clone()
        for _ in Trainer(model, DATA, phases, iterations=3).run()
    ]
    assert len(model.seen) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.seen, weights, strict=True))
    assert not torch.equal(weights[0], weights[2])
