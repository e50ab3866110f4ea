"""What every public field, objective, schedule, solver and recipe must do: listed, it is tested.

A new entry of a registry is picked up by itself; a new field class needs one line in FIELDS.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import partikel.fields
import partikel.schedules
from conftest import GAUSSIAN, OTHER, LinearField, randn, seeded, tensor
from partikel.data import SPLITS, Dataset, FiniteDataset, SyntheticDataset, open_dataset
from partikel.denoising import EDMDenoiser, VelocityDenoiser
from partikel.errors import ConfigError
from partikel.fields import (
    AlongPath,
    At,
    AtScale,
    Context,
    DeepMMDField,
    DensityRatioField,
    DiscriminatorField,
    DriftField,
    ExactScoreField,
    FDivergenceField,
    Field,
    FrechetField,
    Guided,
    InFeatures,
    JKOField,
    KernelScoreField,
    LabelDropout,
    Linear,
    LogRatioField,
    MMDField,
    PathScore,
    Perturbed,
    ScoreField,
    SinkhornField,
    SlicedWassersteinField,
    SteinField,
    VelocityField,
    WhiteNoise,
)
from partikel.kernels import (
    IMQKernel,
    LaplaceKernel,
    MultiRBFKernel,
    NTKKernel,
    RandomFourierFeatures,
    RBFKernel,
    RieszKernel,
)
from partikel.models import Carrier, GeneratorModel, ParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.objectives import DIVERGENCES, OBJECTIVES, GradientPenalty
from partikel.priors import GaussianPrior
from partikel.recipes import EDM, RECIPES, Recipe, System
from partikel.recipes.score_gan import ScoreDifference
from partikel.schedules import (
    ConstantSchedule,
    EDMSchedule,
    Interpolant,
    KarrasLaw,
    LinearSchedule,
    NoiseLaw,
    Schedule,
    TimeGrid,
    UniformGrid,
    UniformTimeLaw,
    VESchedule,
    VPSchedule,
)
from partikel.solvers import SOLVERS, Dynamics
from partikel.training import AdamSettings, Engine, Phase, Trainer

SHAPES = [(3,), (2, 3), (1, 4, 4), (2, 2, 3, 3)]
DTYPES = [torch.float32, torch.float64]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TINY = NetworkSettings(kind="mlp", width=16, depth=1, embedding_features=8)


def network(shape: tuple[int, ...], role: Any, scalars: int = 0, seed: int = 0) -> nn.Module:
    return build_network(TINY, role, shape=shape, latent=4, scalars=scalars, generator=seeded(seed))


def critic(shape: tuple[int, ...], objective: str = "non-saturating", **options: Any) -> Field:
    scalars = len(options.get("conditions", ()))
    return DiscriminatorField(network(shape, "logit", scalars), objective, **options)


def score(shape: tuple[int, ...]) -> Field:
    return ScoreField(EDMDenoiser(network(shape, "denoiser", 1)), KarrasLaw())


def velocity(shape: tuple[int, ...]) -> VelocityField:
    denoiser = VelocityDenoiser(network(shape, "denoiser", 1), LinearSchedule())
    return VelocityField(denoiser, UniformTimeLaw())


# --- fields ---

# Class -> fields of it for data of a shape.
FIELDS: dict[str, Callable[[tuple[int, ...]], list[Field]]] = {
    "AlongPath": lambda shape: [AlongPath(velocity(shape), LinearSchedule(), EDMSchedule(2.0))],
    "AtScale": lambda shape: [AtScale(score(shape), VPSchedule(0.1, 2.0))],
    "DeepMMDField": lambda shape: [
        DeepMMDField(network(shape, "denoiser", 1), KarrasLaw()),
        DeepMMDField(network(shape, "denoiser", 1), KarrasLaw(), levels=(0.5, 2.0)),
    ],
    "DensityRatioField": lambda shape: [
        DensityRatioField(KernelScoreField(1.0, "data"), KernelScoreField(1.0)),
        *([DensityRatioField(GAUSSIAN, OTHER)] if shape == (2,) else []),
    ],
    "DiscriminatorField": lambda shape: [
        *(critic(shape, name) for name in OBJECTIVES),
        critic(shape, conditions=("t",)),
        critic(shape, conditions=("t", "sigma")),
        critic(shape, "relativistic", conditions=("t",)),
    ],
    "DriftField": lambda shape: [DriftField(1.0), DriftField(1.0, "batch")],
    "ExactScoreField": lambda shape: [ExactScoreField(GAUSSIAN)] if shape == (2,) else [],
    "FDivergenceField": lambda shape: [
        *(FDivergenceField(critic(shape), name) for name in DIVERGENCES),
        FDivergenceField(critic(shape), lambda u: (1 - u).square() / u),
        FDivergenceField(
            DensityRatioField(KernelScoreField(3.0, "data"), KernelScoreField(3.0)), "pearson"
        ),
        FDivergenceField(critic(shape), "jensen-shannon", gradient=score(shape)),
    ],
    "FrechetField": lambda shape: [
        FrechetField(),
        FrechetField(RandomFourierFeatures(shape, 8, 2.0)),
    ],
    "InFeatures": lambda shape: [
        InFeatures(field, RandomFourierFeatures(shape, 8, 2.0))
        for field in (DriftField(1.0), MMDField(RBFKernel()), SinkhornField(1.0))
    ],
    "Guided": lambda shape: [Guided(score(shape), 2.0), Guided(critic(shape), torch.exp)],
    "JKOField": lambda shape: [
        JKOField(critic(shape), 0.5, steps=3),
        JKOField(MMDField(RieszKernel()), 0.5, steps=3),
    ],
    "KernelScoreField": lambda shape: [KernelScoreField(0.5), KernelScoreField(0.5, "data")],
    "LabelDropout": lambda shape: [LabelDropout(score(shape), 3)],
    "Linear": lambda shape: [Linear(0.5), Linear(torch.exp)],
    "LogRatioField": lambda shape: [
        LogRatioField(critic(shape)),
        LogRatioField(critic(shape), "saturating", VESchedule(horizon=2.0)),
    ],
    "MMDField": lambda shape: [
        *(MMDField(kernel()) for kernel in (RBFKernel, MultiRBFKernel, LaplaceKernel, RieszKernel)),
        MMDField(IMQKernel(1.0)),
        MMDField(NTKKernel(network(shape, "logit"))),
        MMDField(RBFKernel(1.0), noise=torch.sqrt),
    ],
    "PathScore": lambda shape: [PathScore(velocity(shape), EDMSchedule(2.0))],
    "Perturbed": lambda shape: [Perturbed(score(shape), KarrasLaw())],
    "Scaled": lambda shape: [2 * critic(shape), torch.exp * score(shape)],
    "ScoreField": lambda shape: [score(shape)],
    "SinkhornField": lambda shape: [SinkhornField(1.0), SinkhornField(1.0, halves=True)],
    "SlicedWassersteinField": lambda shape: [SlicedWassersteinField(8)],
    "SteinField": lambda shape: [
        SteinField(score(shape), kernel) for kernel in (RBFKernel(), LaplaceKernel(1.0))
    ],
    "Sum": lambda shape: [critic(shape) - torch.exp * score(shape)],
    "VelocityField": lambda shape: [velocity(shape)],
    "WhiteNoise": lambda shape: [WhiteNoise(0.5), WhiteNoise(torch.sqrt)],
}


def test_every_public_field_is_listed() -> None:
    public = [getattr(partikel.fields, name) for name in partikel.fields.__all__]
    classes = {c.__name__ for c in public if issubclass(c, Field) and c is not Field}
    assert classes == set(FIELDS)


def examples() -> Iterator[Any]:
    for name, make in FIELDS.items():
        for shape in [(2,), *SHAPES]:
            for number in range(len(make(shape))):
                yield pytest.param(name, number, shape, id=f"{name}-{number}-{len(shape)}d")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "number", "shape"), list(examples()))
def test_field(name: str, number: int, shape: tuple[int, ...], device: str) -> None:
    """Velocities are shaped, typed and placed like the points; nothing else changes."""
    for dtype in DTYPES:
        field = FIELDS[name](shape)[number].to(device, dtype)

        def points(n: int, seed: int, dtype: torch.dtype = dtype) -> Tensor:
            return randn(n, *shape, seed=seed).to(device, dtype)

        generator = torch.Generator(device)
        x, real = points(6, 0), points(5, 1)
        t = torch.linspace(0, 1, 6, dtype=dtype, device=device)
        sigma = t + 0.5
        before = x.clone(), copy.deepcopy(field.state_dict())
        state = torch.get_rng_state()
        bound = field.bind(Context(real=real, particles=x, generator=generator.manual_seed(0)))
        velocity = bound(x, At(t, sigma))
        assert velocity.shape == x.shape
        assert velocity.dtype == dtype
        assert velocity.device == x.device
        assert torch.isfinite(velocity).all()
        assert velocity.abs().sum() > 0
        assert torch.equal(x, before[0])
        assert not x.requires_grad
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is None for p in field.parameters())
        for key, value in field.state_dict().items():
            assert torch.equal(value, before[1][key])
        with torch.no_grad():
            generator.manual_seed(0)
            again = bound(x, At(t, sigma))
            assert not again.requires_grad
            assert_close(again, velocity.detach())
            if not field.draws:
                rows = [bound(x[i : i + 2], At(t[i : i + 2], sigma[i : i + 2])) for i in (0, 2, 4)]
                assert_close(torch.cat(rows), again)
            moving = field.bind(Context(real=real, generator=generator))  # the points are the cloud
            for asked in {id(some): some for some in (bound, moving)}.values():
                generator.manual_seed(0)
                each = asked(x, At(t[2].repeat(6), sigma[2].repeat(6)))
                for shared in (At(t[2], sigma[2]), At(t[2], sigma[2].repeat(6))):
                    generator.manual_seed(0)  # what all points share is ()
                    assert_close(asked(x, shared), each)
        assert not bound.needs
        names = [loss.name for loss in field.losses()]
        assert len(names) == len(set(names))
        assert [loss.name for loss in bound.losses()] == names
        assert all(loss.needs <= {"real", "particles"} for loss in field.losses())


# What a field may be inside of.
WHOLES: dict[str, Callable[[Field], Field]] = {
    "itself": lambda field: field,
    "sum": lambda field: critic((2,), name="other") - field,
    "scaled": lambda field: torch.exp * field,
    "perturbed": lambda field: Perturbed(field, KarrasLaw()),
    "with white noise": lambda field: field + WhiteNoise(0.1),
    "guided": lambda field: Guided(field, 2.0),
    "label dropout": lambda field: LabelDropout(field, 3),
    "nested": lambda field: Guided(2 * LabelDropout(field, 3) + WhiteNoise(0.1), torch.exp),
}


def wholes() -> Iterator[Any]:
    for name, make in FIELDS.items():
        for number, field in enumerate(make((2,))):
            for whole in WHOLES:
                if whole != "perturbed" or "real" not in field.needs:  # which is refused
                    yield pytest.param(name, number, whole, id=f"{name}-{number}-{whole}")


@pytest.mark.parametrize(("name", "number", "whole"), list(wholes()))
def test_binding_keeps_what_is_frozen(name: str, number: int, whole: str) -> None:
    """What is bound is as frozen as what it was made of: the whole, or the field inside of it."""
    x, real = randn(4, 2).float(), randn(5, 2, seed=1).float()
    context = Context(real=real, particles=x, generator=seeded())
    field = WHOLES[whole](FIELDS[name]((2,))[number])
    assert not field.bind(context).frozen
    bound = field.freeze().bind(context)
    assert type(bound) is type(field)
    assert bound.frozen
    assert not bound.losses()
    inside = WHOLES[whole](FIELDS[name]((2,))[number].freeze())
    part = inside.bind(context)
    assert part.frozen is (whole == "itself")
    assert [loss.name for loss in part.losses()] == (["other"] if whole == "sum" else [])
    frozen, same = (
        [m for m in of.modules() if isinstance(m, Field) and m.frozen] for of in (part, inside)
    )
    assert len(frozen) == len(same) > 0
    for module in (bound, *frozen):
        assert not any(each.training for each in module.train().modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


# --- schedules, laws and grids ---


def public(base: type) -> list[type]:
    return [
        c
        for c in vars(partikel.schedules).values()
        if isinstance(c, type) and issubclass(c, base) and c is not base
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "cls",
    [
        c for c in public(Schedule) if c not in (ConstantSchedule, Interpolant)
    ],  # without an inverse, or a path
    ids=lambda c: c.__name__,
)
def test_schedule(cls: type[Schedule], device: str) -> None:
    path = cls()
    for dtype in DTYPES:
        t = path.horizon * torch.linspace(0, 0.9, 10, dtype=dtype, device=device)
        level = path.sigma(t)
        assert_close(level, path.sigma(t.double()).to(dtype))
        assert_close(path.time(level), t, rtol=1e-4, atol=1e-4 * path.horizon)
        for value in (level, path.sigma_rate(t), path.u(t), path.half_rate(t)):
            assert value.shape == t.shape
            assert value.dtype == dtype
            assert value.device == t.device
        assert (level.diff() < 0).all()
        assert (path.sigma_rate(t) < 0).all()
    ends = path.sigma(tensor([0.0, path.horizon]))
    assert_close(ends, tensor([path.sigma_max, path.sigma_end]))
    t = (path.horizon * torch.linspace(0, 1, 9, dtype=torch.float64)).requires_grad_()
    (rate,) = torch.autograd.grad(path.sigma(t).sum(), t)
    assert_close(path.sigma_rate(t).detach(), rate)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cls", public(NoiseLaw), ids=lambda c: c.__name__)
def test_noise_law(cls: type[NoiseLaw], device: str) -> None:
    generator, state = torch.Generator(device), torch.get_rng_state()
    for dtype in DTYPES:
        first, again, other = (
            cls().sample(50, generator=generator.manual_seed(seed), dtype=dtype)
            for seed in (1, 1, 2)
        )
        assert first.shape == (50,)
        assert first.dtype == dtype
        assert first.device.type == device
        assert (first > 0).all()
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cls", public(TimeGrid), ids=lambda c: c.__name__)
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_grid(cls: type[Any], steps: int) -> None:
    path = partikel.schedules.EDMSchedule()
    nodes = cls(path.horizon if cls is UniformGrid else path).nodes(steps)
    assert nodes.shape == (steps + 1,)
    assert nodes.dtype == torch.float64
    assert nodes[0] == 0
    assert nodes[-1] == path.horizon
    assert (nodes.diff() > 0).all()


# --- solvers ---

NOISELESS: dict[str, dict[str, float]] = {"dpmpp-2m-sde": {"eta": 0.0}}
"""Settings of solvers that would bring noise along, which have no one answer here."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_solver(name: str, shape: tuple[int, ...], device: str) -> None:
    """dx = -x dt, in small steps, for data of any shape; the grid is float64, x keeps its dtype."""
    nodes = torch.linspace(0, 1, 201, dtype=torch.float64)
    for dtype in DTYPES:
        x = randn(4, *shape).to(device, dtype)
        start = x.clone()

        def drift(x: Tensor, t: Tensor) -> Tensor:
            assert t.shape == ()  # all particles stand at one time
            assert t.dtype == x.dtype
            return -x

        dynamics = Dynamics(
            drift,
            schedule=partikel.schedules.EDMSchedule(2.0, 1.0),
            score=lambda x, t: -1e12 * x,  # so steep that a corrector stands still
        )
        solver = SOLVERS[name](**NOISELESS.get(name, {}))
        end = solver.solve(dynamics, x, nodes, generator=torch.Generator(device))
        assert end.x.dtype == dtype
        assert end.x.device == x.device
        assert end.step == 200
        assert end.t == 1
        assert end.evaluations == dynamics.evaluations
        assert torch.equal(x, start)
        assert_close(end.x, x * torch.e**-1, rtol=5e-3, atol=0)
        chunks = [
            solver.solve(dynamics, x[i : i + 2], nodes, generator=torch.Generator(device)).x
            for i in (0, 2)
        ]
        assert_close(torch.cat(chunks), end.x)


# --- training ---


def mixture(shape: tuple[int, ...] = (2,)) -> Dataset:
    """Fresh labelled points of two Gaussians."""

    def sample(n: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (n,), generator=generator)
        noise = torch.randn(n, *shape, generator=generator, dtype=dtype)
        return noise + 2 * labels.view(-1, *[1] * len(shape)), labels

    return SyntheticDataset("two", sample, shape=shape, sigma_data=1.4, classes=2)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {n for n, value in module.state_dict().items() if not torch.equal(value, before[n])}


def fit(
    model: Carrier, phases: tuple[Phase, ...], dataset: Dataset, *, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Three iterations through the one loop, without the global random state."""
    trainer = Trainer(model, dataset, phases, iterations=3, seed=seed)
    state = torch.get_rng_state()
    metrics = [iteration.metrics for iteration in trainer.run()]
    assert torch.equal(torch.get_rng_state(), state)
    return metrics


def carried(field: Field, carrier: str, shape: tuple[int, ...]) -> Carrier:
    if carrier == "particles":
        return ParticleModel(field, GaussianPrior(shape), steps=3, eta=0.1)
    return GeneratorModel(field, network(shape, "generator", seed=1), GaussianPrior((4,)))


CARRIERS = ["particles", "generator"]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_in_both_carriers(name: str, carrier: str) -> None:
    field = critic((2,), name, penalties=(GradientPenalty(0.1), GradientPenalty.r1(0.1)))
    model = carried(field, carrier, (2,))
    before, dataset = weights(model), mixture()
    phases = [Phase("discriminator", batch=16, repeats=2)]
    if carrier == "generator":
        phases.append(Phase("generator", batch=16))
    for metrics in fit(model, tuple(phases), dataset):
        assert all(torch.isfinite(value) for value in metrics.values())
    modules = {name.split(".")[0] for name in changed(model, before)}
    assert modules == ({"field"} if carrier == "particles" else {"field", "generator"})
    real = dataset.draw(16, generator=seeded()).x
    x = model.sample(8, generator=seeded(), real=real)
    assert x.shape == (8, 2)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("shape", [(3,), (1, 4, 4)], ids=str)
def test_a_gan_and_a_discriminator_flow_differ_by_one_argument(
    carrier: str, shape: tuple[int, ...]
) -> None:
    model = carried(critic(shape, conditions=("t",)), carrier, shape)
    fit(model, tuple(Phase(loss.name, batch=8) for loss in model.losses()), mixture(shape))
    assert model.sample(5, generator=seeded()).shape == (5, *shape)


def learned() -> Iterator[Any]:
    for name, make in FIELDS.items():
        for number, field in enumerate(make((3,))):
            if field.losses():
                yield pytest.param(name, number, id=f"{name}-{number}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "number"), list(learned()))
def test_every_learned_field_trains_in_either_precision(
    name: str, number: int, dtype: torch.dtype
) -> None:
    """All that a loss sees, data included, has the precision of the model."""
    field = FIELDS[name]((3,))[number]
    path = partikel.schedules.EDMSchedule(2.0)
    model = ParticleModel(field, GaussianPrior((3,)), steps=3, eta=0.01, schedule=path).to(dtype)
    seen: set[torch.dtype] = set()
    for module in {loss.module for loss in model.losses()}:
        module.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    before = weights(model)
    fit(model, tuple(Phase(loss.name, batch=8) for loss in model.losses()), mixture((3,)))
    assert changed(model, before)
    assert seen == {dtype}
    real = mixture((3,)).draw(4, generator=seeded(), dtype=dtype).x
    assert model.sample(5, generator=seeded(), real=real).dtype == dtype


def test_data_keep_the_precision_of_the_model() -> None:
    """Not rounded on their way in."""
    seen: list[Tensor] = []

    def sample(n: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, None]:
        return torch.full((n, 2), 1 / 3, dtype=dtype), None

    third = SyntheticDataset("third", sample, shape=(2,), sigma_data=1.0)
    field = critic((2,), penalties=(GradientPenalty.r1(0.1),))
    model = carried(field, "particles", (2,)).double()
    module = model.losses()[0].module
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:8].detach()))
    fit(model, (Phase("discriminator", batch=8),), third)
    real = [x for x in seen if (x - 1 / 3).abs().max() < 1e-3]  # those of the data
    assert real
    for x in real:
        assert_close(x, torch.full((8, 2), 1 / 3, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_labels_travel_with_the_data(carrier: str) -> None:
    """A conditional model trains on labelled points and samples the labels it is asked for."""

    def labelled(role: Any) -> nn.Module:
        return build_network(TINY, role, shape=(2,), latent=4, classes=2, generator=seeded())

    field = DiscriminatorField(labelled("logit"))
    model: Carrier
    if carrier == "particles":
        model = ParticleModel(field, GaussianPrior((2,)), steps=3, eta=0.1, conditional=True)
    else:
        latent = GaussianPrior((4,))
        model = GeneratorModel(field, labelled("generator"), latent, conditional=True)
    before = weights(model)
    fit(model, tuple(Phase(loss.name, batch=16) for loss in model.losses()), mixture())
    assert any("conditions" in name for name in changed(model, before))
    zero, one = (
        model.sample(6, generator=seeded(), cond=torch.full((6,), label)) for label in (0, 1)
    )
    assert zero.shape == (6, 2)
    assert not torch.equal(zero, one)


def by_generators() -> Iterator[Any]:
    """Every field that a generator can carry: asked at samples, where there is no noise level."""
    real = randn(4, 2).float()
    for name, make in FIELDS.items():
        for number, field in enumerate(make((2,))):
            for whole in ("itself", "perturbed"):
                if whole == "perturbed" and "real" in field.needs:
                    continue
                try:
                    asked = WHOLES[whole](field).bind(Context(real=real, generator=seeded()))
                    finite = asked(real, At(torch.tensor(1.0))).isfinite().all()
                except (ConfigError, ValueError):  # it needs a noise level
                    continue
                if finite:
                    yield pytest.param(name, number, whole, id=f"{name}-{number}-{whole}")


@pytest.mark.parametrize(("name", "number", "whole"), list(by_generators()))
def test_labels_reach_every_generator(name: str, number: int, whole: str) -> None:
    """In one batch or in micro-batches: the data's labels, never the null one, or a sentence."""
    for accumulate in (1, 2):
        generator = build_network(
            TINY, "generator", shape=(2,), latent=4, classes=2, generator=seeded()
        )
        field = WHOLES[whole](_Labelled.of(FIELDS[name]((2,))[number]))
        model = GeneratorModel(field, generator, GaussianPrior((4,)), conditional=True)
        seen: list[Tensor] = []
        generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))  # noqa: B023
        phases = (Phase("generator", batch=16),)
        trainer = Trainer(
            model, mixture(), phases, iterations=2, engine=Engine(accumulate=accumulate)
        )
        critic = next((m for m in field.modules() if isinstance(m, DiscriminatorField)), None)
        if critic is not None and critic.objective.paired:
            with pytest.raises(ConfigError, match="whatever their labels"):
                next(trainer.run())
            continue
        assert len(list(trainer.run())) == 2
        assert set(torch.cat(seen).tolist()) == {0, 1}


class _Labelled(nn.Module):
    """A network without labels, of which a conditional model asks none."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        return self.inner(x, c, None)

    @staticmethod
    def of(field: Field) -> Field:
        for part in list(field.modules()):
            inner = part._modules.get("network")
            if isinstance(inner, nn.Module) and not isinstance(part, (_Labelled, NTKKernel)):
                part._modules["network"] = _Labelled(inner)
        return field


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_frozen_field_is_carried_but_not_trained(carrier: str) -> None:
    exact = LinearField(-torch.eye(2), torch.zeros(2))
    field = critic((2,)) + critic((2,)).freeze() + exact
    model = carried(field, carrier, (2,))
    before = weights(model)
    names = [loss.name for loss in model.losses()]
    fit(model, tuple(Phase(name, batch=8) for name in names), mixture())
    moved = {name for name in changed(model, before) if name.startswith("field")}
    assert moved
    assert all(name.startswith("field.terms.0.") for name in moved)


# --- recipes ---


def shrunk(name: str, **options: Any) -> Recipe:
    recipe = tiny_recipe(RECIPES[name]())
    return replace(recipe, **options)


def tiny_recipe(recipe: Recipe) -> Recipe:
    """Settings made small, whatever the recipe: networks, batches, repeats, steps."""
    small = {"batch": 8, "latent": 4, "steps": 4, "score_steps": 2, "discriminator_steps": 2}
    changes: dict[str, Any] = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if isinstance(value, NetworkSettings):
            changes[field.name] = TINY
        elif isinstance(value, Recipe):
            changes[field.name] = tiny_recipe(value)
        elif field.name in small:
            changes[field.name] = small[field.name]
    return replace(recipe, **changes)


def composed(recipe: Recipe, dataset: Dataset) -> System:
    required = recipe.required
    return recipe.compose(dataset, composed(required, dataset).model if required else None)


@pytest.fixture(params=RECIPES, ids=str)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return shrunk(request.param)


def owned(system: System) -> dict[str, set[str]]:
    """By loss, the names of the weights that it trains."""
    names = {id(p): name for name, p in system.model.named_parameters()}
    return {
        loss.name: {names[id(p)] for p in loss.module.parameters()}
        for loss in system.model.losses()
    }


def test_every_recipe_trains_what_its_phases_own(recipe: Recipe) -> None:
    dataset = open_dataset(recipe.data)
    state = torch.get_rng_state()
    system = composed(recipe, dataset)
    assert torch.equal(torch.get_rng_state(), state)
    owners = owned(system)
    assert {phase.loss for phase in system.phases} == set(owners)  # nothing is left untrained
    before = weights(system.model)
    for metrics in fit(system.model, system.phases, dataset):
        assert all(torch.isfinite(value) for value in metrics.values())
        assert {name.split("/")[0] for name in metrics} == set(owners)
    assert changed(system.model, before) == set().union(*owners.values())
    x = system.model.sample(6, generator=seeded())
    assert x.shape == (6, *dataset.shape)
    assert torch.isfinite(x).all()


def test_every_recipe_is_a_function_of_its_seed(recipe: Recipe) -> None:
    dataset = open_dataset(recipe.data)

    def trained(seed: int, noise: int) -> dict[str, Tensor]:
        torch.manual_seed(noise)  # which must not matter
        system = composed(replace(recipe, seed=seed), dataset)
        fit(system.model, system.phases, dataset, seed=seed)
        return weights(system.model)

    first, again, other = trained(0, 1), trained(0, 2), trained(1, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    trains = set().union(*owned(composed(recipe, dataset)).values())
    assert not any(torch.equal(first[name], other[name]) for name in trains)


@pytest.mark.parametrize("name", [name for name in RECIPES if shrunk(name).required])
def test_what_a_recipe_builds_on_stays_as_it_was(name: str) -> None:
    """The score of the data: its weights, its evaluation mode, no gradients, no loss."""
    recipe = shrunk(name)
    dataset = open_dataset(recipe.data)
    assert recipe.required is not None
    required = recipe.required.compose(dataset)
    fit(required.model, required.phases, dataset)
    required.model.zero_grad()
    before = weights(required.model)
    network = required.model.field
    system = recipe.compose(dataset, required.model)
    shared = {id(p) for p in network.parameters()} & {id(p) for p in system.model.parameters()}
    assert shared
    assert not shared & {id(p) for loss in system.model.losses() for p in loss.module.parameters()}
    modes: list[bool] = []
    inner = next(m for m in network.modules() if isinstance(m, EDMDenoiser)).network
    inner.register_forward_hook(lambda module, *_: modes.append(module.training))
    fit(system.model, system.phases, dataset)
    assert not changed(required.model, before)
    assert all(p.grad is None for p in network.parameters())
    system.model.train()
    inner(torch.zeros(1, 2), torch.zeros(1, 1))
    assert not any(modes)


@pytest.mark.parametrize(
    "name", [name for name, kind in RECIPES.items() if issubclass(kind, ScoreDifference)]
)
def test_score_differences_are_composed_as_the_paper_says(name: str) -> None:
    """E_{σ,ε} σ (α s_p - β_own s_ρ)(x + σε), s_p of the diffusion model, s_ρ of the own score."""
    recipe = shrunk(name, alpha=2.0, beta_own=0.5, sigma_min=0.3, sigma_max=2.0, rho=2.0)
    dataset = open_dataset(recipe.data)
    assert recipe.required is not None
    required = recipe.required.compose(dataset)
    system = recipe.compose(dataset, required.model)
    (own,) = (loss.module for loss in system.model.losses() if loss.name == "own score")
    (data,) = (m for m in required.model.modules() if isinstance(m, EDMDenoiser))
    assert isinstance(own, EDMDenoiser)
    assert own.timed is isinstance(system.model, ParticleModel)
    h = 2.0 * ScoreField(data) - 0.5 * ScoreField(own)
    x, t = torch.randn(6, 2, generator=seeded()), torch.linspace(0, 1, 6)
    fields = (system.model.field, Perturbed(h, KarrasLaw(0.3, 2.0, 2.0)))
    composed, expected = (f.bind(Context(generator=seeded()))(x, At(t)) for f in fields)
    assert_close(composed, expected)


def test_edm_moves_by_the_probability_flow() -> None:
    """With σ the clock, |σ'|σ s_p = (D - x)/σ (Karras et al. 2022, eq. 3, reversed)."""
    recipe = shrunk("edm")
    dataset = open_dataset(recipe.data)
    model = recipe.compose(dataset).model
    assert isinstance(model, ParticleModel)
    assert model.schedule is not None
    (denoiser,) = (m for m in model.modules() if isinstance(m, EDMDenoiser))
    x, t = torch.randn(6, 2, generator=seeded()), torch.linspace(0, 70, 6)
    sigma = 80 - t
    assert_close(model.velocity(x, t), (denoiser(x, sigma) - x) / sigma[:, None])
    assert_close(model.schedule.sigma(t), sigma)


def test_dropout_has_its_own_stream() -> None:
    """A U-Net on images: dropout acts in training, from the run's seed, and not in sampling."""
    points = torch.randint(256, (64, 1, 8, 8), generator=seeded()).to(torch.uint8)
    dataset = FiniteDataset("noise", dict.fromkeys(SPLITS, points))
    unet = NetworkSettings(kind="unet", channels=8, multipliers=(1,), blocks=1, dropout=0.3)
    recipe = EDM(network=unet, batch=4, steps=2, optimizer=AdamSettings())

    def trained(settings: EDM, noise: int) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(noise)
        system = settings.compose(dataset)
        fit(system.model, system.phases, dataset)
        system.model.eval()
        return weights(system.model), system.model.sample(2, generator=seeded())

    first, again = trained(recipe, 1), trained(recipe, 2)
    assert all(torch.equal(first[0][name], again[0][name]) for name in first[0])
    assert torch.equal(first[1], again[1])
    without = trained(replace(recipe, network=replace(unet, dropout=0.0)), 1)
    assert any(not torch.equal(first[0][name], without[0][name]) for name in without[0])


# --- exactness of what the contract uses ---


def test_the_algebra_of_listed_fields_keeps_their_requirements() -> None:
    for make in FIELDS.values():
        for field in make((2,)):
            other = ExactScoreField(OTHER)
            for combined in (field - 2 * other, torch.exp * field):
                assert combined.needs == field.needs
                assert combined.draws == field.draws
