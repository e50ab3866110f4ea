"""Every public function and class refuses what it cannot take: one sentence, nothing silent."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import partikel
from conftest import GAUSSIAN, Recorder, randn, seeded
from partikel.data import FiniteDataset, SyntheticDataset
from partikel.denoising import EDMDenoiser
from partikel.errors import ConfigError, NumericsError, PartikelError
from partikel.errors.checks import Count, Natural, Range, checked
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    ExactScoreField,
    Field,
    FrechetField,
    MMDField,
    OptimalTransport,
    ScoreField,
    SinkhornField,
    SlicedWassersteinField,
)
from partikel.kernels import LaplaceKernel, MultiRBFKernel, RBFKernel
from partikel.models import FlowMapModel, GeneratorModel, ParticleModel, own_flow, place_nodes
from partikel.networks import NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, KarrasLaw, LinearSchedule, Nodes, UniformGrid
from partikel.solvers import Dynamics, Euler
from partikel.training import AdamSettings, Phase, Trainer, fit

REFUSALS = (TypeError, ValueError, PartikelError)
ROOMS = (
    *("fields", "models", "solvers", "schedules", "priors", "kernels", "targets", "metrics"),
    *("data", "training", "likelihood"),
)
CRITIC = DiscriminatorField(Recorder(lambda x: x.sum(1)))


def callables() -> Iterator[Any]:
    """Public functions, constructors and methods."""
    found: dict[str, Callable[..., Any]] = {}
    for room in ("", *(f".{room}" for room in ROOMS)):
        module = importlib.import_module(f"partikel{room}")
        own = [
            n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        for name in getattr(module, "__all__", own):
            made = getattr(module, name)
            if isinstance(made, FunctionType) and not name.startswith("_"):
                found[made.__qualname__] = made
            for method in vars(made).values() if isinstance(made, type) else ():
                if isinstance(method, FunctionType) and "partikel.errors.checks" in str(
                    method.__code__.co_filename
                ).replace("/", "."):
                    found[method.__qualname__] = method
    yield from (pytest.param(made, id=name) for name, made in sorted(found.items()))


@pytest.mark.parametrize("made", list(callables()))
def test_wrong_types_are_refused(made: Callable[..., Any]) -> None:
    """Each argument in turn is an object that nothing takes."""
    assert hasattr(made, "__wrapped__"), "not checked"
    parameters = inspect.signature(made).parameters
    for name, parameter in parameters.items():
        unchecked = name == "self" or parameter.annotation in ("Any", "object")
        if unchecked or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        loose = (
            "T",
            "LearnedMap",
            "Integrated",
            "Law",
            "FeatureNetwork",
            "HasLogDensity",
            "Law | None",
            "Console | None",  # of rich, which is imported where something is shown
        )
        if parameter.annotation in loose or "Labels" in str(parameter.annotation):
            continue
        if (made.__qualname__, name) in (("fit", "dataset"), ("in_memory", "points")):
            continue  # which say what to pass instead, see test_own.py
        with pytest.raises((TypeError, PartikelError)) as caught:
            made(**{**({"self": None} if "self" in parameters else {}), name: object()})
        message = str(caught.value)
        assert f"({name}=...) takes" in message, message
        assert "\n" not in message


def test_the_walk_reaches_the_public_interface() -> None:
    names = {case.id for case in callables()}
    assert {
        "fit",
        "ParticleModel.__init__",
        "Carrier.sample",
        "Dataset.draw",
        "Run.sample",
    } <= names
    assert {"kid", "Method.log_prob", "GaussianMixture.score", "Solver.stream", "load"} <= names
    assert len(names) > 200


def test_what_annotations_say() -> None:
    @checked
    def example(
        n: Count,
        m: Natural = 0,
        word: str = "",
        *,
        t: Tensor | None = None,
        shape: tuple[int, ...] = (),
    ) -> int:
        return n

    assert example(3, 0, "x", t=torch.ones(()), shape=[2]) == 3
    for wrong, error in (
        (lambda: example(0), ConfigError),
        (lambda: example(True), TypeError),
        (lambda: example(1.0), TypeError),
        (lambda: example(1, -1), ConfigError),
        (lambda: example(1, 0, 3), TypeError),
        (lambda: example(1, t=0.5), TypeError),
        (lambda: example(1, shape=2), TypeError),
        (lambda: example(1, shape=(2.5,)), TypeError),
        (lambda: example(1, shape="ab"), TypeError),
        (lambda: example(1, shape=(1, "a")), TypeError),
        (lambda: example(1, shape=(2**63,)), ConfigError),
    ):
        with pytest.raises(error, match=r"example\(\w+=...\) takes"):
            wrong()


def test_bounds_are_reached_or_not() -> None:
    assert [x in Range(least=1, most=3) for x in (0.5, 1, 3, 3.5)] == [False, True, True, False]
    assert [x in Range(above=1, below=3) for x in (1, 1.5, 3)] == [False, True, False]
    assert [x in Range(even=True) for x in (2, 3)] == [True, False]
    assert math.nan not in Range()


# --- values that types do not tell ---


def network(role: Any, scalars: int = 0, classes: int | None = None) -> nn.Module:
    tiny = NetworkSettings(kind="mlp", width=16, depth=1, embedding_features=8)
    options = {"shape": (2,), "latent": 2, "scalars": scalars, "classes": classes}
    return build_network(tiny, role, generator=seeded(), **options)


def points(*shape: int) -> Tensor:
    return randn(*shape).float()


DATA = SyntheticDataset(
    "normal",
    lambda n, generator, dtype: (torch.randn(n, 2, generator=generator, dtype=dtype), None),
    shape=(2,),
    sigma_data=1.0,
)
BYTES = {
    s: torch.arange(20, dtype=torch.uint8).view(10, 2) for s in ("train", "validation", "test")
}
FINITE = FiniteDataset("bytes", BYTES)
PRIOR = GaussianPrior((2,))
SCORE = ScoreField(EDMDenoiser(network("denoiser", 1)), KarrasLaw())
LABELLED = ScoreField(EDMDenoiser(network("denoiser", 1, 3)))
FLOW = ParticleModel(ExactScoreField(GAUSSIAN), PRIOR, steps=3)
EDM = ParticleModel(SCORE, PRIOR, steps=3, schedule=EDMSchedule(2.0, 0.1))
CLASSES = ParticleModel(LABELLED, PRIOR, steps=3, schedule=EDMSchedule(2.0, 0.1), conditional=True)
GAN = GeneratorModel(DiscriminatorField(network("logit")), network("generator"), PRIOR)
CLASS_GAN = GeneratorModel(SCORE, network("generator", 0, 3), PRIOR, conditional=True)
PHASES = (Phase("score", batch=4),)
LINEAR = LinearSchedule()


def flow_map(scalars: int = 2, **options: Any) -> FlowMapModel:
    labelled = network("denoiser", scalars, 3)
    shares = {"label_weights": torch.ones(3) / 3}
    return FlowMapModel(
        own_flow(labelled, PRIOR, LINEAR, scalars=scalars, **shares), labelled, **options
    )


MAP = flow_map()
T = torch.tensor(0.5)


class Needy(Field):
    """A field of one's own that compares with data."""

    requires = frozenset({"real"})

    def forward(self, x: Tensor, at: At) -> Tensor:
        return self.bound_real(x).mean(0) - x


class Shrinking(Field):
    def forward(self, x: Tensor, at: At) -> Tensor:
        return x[:, :1]


OWN = ParticleModel(Needy(), PRIOR, steps=2)

BAD: dict[str, Callable[[], object]] = {
    "draw(-1)": lambda: DATA.draw(-1, generator=seeded()),
    "draw(-1) of finite data": lambda: FINITE.draw(-1, generator=seeded()),
    "draw(1.5)": lambda: DATA.draw(1.5, generator=seeded()),  # type: ignore[arg-type]
    "draw without a generator": lambda: DATA.draw(2, generator=None),  # type: ignore[arg-type]
    "draw as whole numbers": lambda: FINITE.draw(2, generator=seeded(), dtype=torch.int64),
    "batches(0)": lambda: DATA.batches(0, generator=seeded()),
    "batches of no split": lambda: DATA.batches(2, "trian", generator=seeded()),
    "take out of range": lambda: FINITE.take(torch.tensor([10])),
    "points that are no bytes": lambda: FiniteDataset("x", {s: points(3, 2).long() for s in BYTES}),
    "points of one split": lambda: FiniteDataset("x", {"train": BYTES["train"]}),
    "labels of other data": lambda: FiniteDataset("x", BYTES, {s: torch.zeros(3) for s in BYTES}),
    "fit(iterations=-1)": lambda: fit(EDM, DATA, PHASES, iterations=-1),
    "fit(iterations=1.5)": lambda: fit(EDM, DATA, PHASES, iterations=1.5),  # type: ignore[arg-type]
    "checkpoint_every=0": lambda: fit(EDM, DATA, PHASES, iterations=1, checkpoint_every=0),
    "evaluate_every=0": lambda: fit(EDM, DATA, PHASES, iterations=1, evaluate_every=0),
    "fit(a list)": lambda: fit(EDM, [[1.0, 2.0]], PHASES, iterations=1),  # type: ignore[arg-type]
    "fit(a phase)": lambda: fit(EDM, DATA, PHASES[0], iterations=1),  # type: ignore[arg-type]
    "fit(names)": lambda: fit(EDM, DATA, ["score"], iterations=1),  # type: ignore[list-item]
    "a seed that is none": lambda: Trainer(EDM, DATA, PHASES, iterations=1, seed="x"),  # type: ignore
    "data of another shape": lambda: fit(
        ParticleModel(SCORE, GaussianPrior((3,)), steps=2), DATA, PHASES, iterations=1
    ),
    "Phase(batch=1.5)": lambda: Phase("score", batch=1.5),  # type: ignore[arg-type]
    "Phase(every=0)": lambda: Phase("score", every=0),
    "sample(-1)": lambda: FLOW.sample(-1, generator=seeded()),
    "sample(2.0)": lambda: FLOW.sample(2.0, generator=seeded()),  # type: ignore[arg-type]
    "generator=0": lambda: FLOW.sample(2, generator=0),  # type: ignore[arg-type]
    "generator=None": lambda: FLOW.sample(2, generator=None),  # type: ignore[arg-type]
    "solver='heun'": lambda: FLOW.sample(2, generator=seeded(), solver="heun"),
    "solver=Heun": lambda: FLOW.sample(2, generator=seeded(), solver=Euler),
    "steps=0": lambda: FLOW.sample(2, generator=seeded(), steps=0),
    "steps=1.5": lambda: FLOW.sample(2, generator=seeded(), steps=1.5),
    "stop=-1": lambda: FLOW.sample(2, generator=seeded(), stop=-1),
    "stop=9": lambda: FLOW.sample(2, generator=seeded(), stop=9),
    "an unknown option": lambda: FLOW.sample(2, generator=seeded(), step=3),
    "seven starts of three": lambda: FLOW.sample(3, generator=seeded(), start=randn(7, 2)),
    "starts of another shape": lambda: FLOW.sample(3, generator=seeded(), start=randn(3, 3)),
    "seven latents of three": lambda: GAN.sample(3, generator=seeded(), start=points(7, 2)),
    "float64 starts": lambda: EDM.sample(3, generator=seeded(), start=randn(3, 2)),
    "float64 latents": lambda: GAN.sample(3, generator=seeded(), start=randn(3, 2)),
    "stream of another shape": lambda: [*EDM.stream(points(3, 4), generator=seeded())],
    "stream of float64": lambda: [*EDM.stream(randn(3, 2), generator=seeded())],
    "labels of another number": lambda: CLASSES.sample(
        3, generator=seeded(), cond=torch.tensor([0])
    ),
    "labels out of range": lambda: CLASSES.sample(2, generator=seeded(), cond=torch.tensor([0, 9])),
    "negative labels": lambda: CLASSES.sample(2, generator=seeded(), cond=torch.tensor([0, -1])),
    "labels that are no numbers": lambda: CLASSES.sample(2, generator=seeded(), cond=points(2)),
    "a generator's labels": lambda: CLASS_GAN.sample(
        2, generator=seeded(), cond=torch.tensor([0, 9])
    ),
    "a list of labels": lambda: CLASSES.sample(2, generator=seeded(), cond=[0, 1]),  # type: ignore
    "label_weights": lambda: ParticleModel(
        SCORE, PRIOR, steps=2, label_weights=torch.tensor([-1.0, 2.0])
    ),
    "temperature=nan": lambda: ParticleModel(SCORE, PRIOR, steps=2, temperature=math.nan),
    "eta=nan": lambda: ParticleModel(SCORE, PRIOR, steps=2, eta=math.nan),
    "steps=True": lambda: ParticleModel(SCORE, PRIOR, steps=True),
    "a network of z only": lambda: GeneratorModel(SCORE, nn.Linear(2, 2), PRIOR).sample(
        2, generator=seeded()
    ),
    "a critic of x only": lambda: DiscriminatorField(nn.Sequential(nn.Linear(2, 1)))(
        points(3, 2), At(T)
    ),
    "no real samples": lambda: OWN.sample(3, generator=seeded()),
    "real samples of another shape": lambda: OWN.sample(3, generator=seeded(), real=randn(3, 4)),
    "no real samples for MMD": lambda: ParticleModel(
        MMDField(RBFKernel(1.0)), PRIOR, steps=2
    ).sample(3, generator=seeded()),
    "one particle": lambda: SlicedWassersteinField().bind(
        Context(real=randn(3, 2), generator=seeded())
    )(randn(1, 2), At(T)),
    "one bound particle": lambda: SlicedWassersteinField().bind(
        Context(real=randn(3, 2), particles=randn(1, 2), generator=seeded())
    ),
    "t=0.5": lambda: SCORE(points(3, 2), At(0.5, torch.ones(3))),  # type: ignore[arg-type]
    "sigma=0.5": lambda: SCORE(points(3, 2), At(T, 0.5)),  # type: ignore[arg-type]
    "x=None": lambda: SCORE(None, At(T, torch.ones(3))),  # type: ignore[arg-type]
    "whole numbers": lambda: SCORE(torch.ones(3, 2, dtype=torch.int64), At(T, torch.ones(3))),
    "score at 0": lambda: SCORE(points(3, 2), At(T, torch.zeros(()))),
    "score at some 0": lambda: SCORE(points(3, 2), At(T, torch.tensor([1.0, 0.0, 1.0]))),
    "score at nan": lambda: SCORE(points(3, 2), At(T, torch.tensor(math.nan))),
    "points of another shape": lambda: SCORE(points(3, 5), At(T, torch.ones(3))),
    "points of another law": lambda: ExactScoreField(GAUSSIAN)(randn(3, 1), At(T)),
    "float64 into float32": lambda: SCORE(randn(3, 2), At(T, torch.ones(3))),
    "levels of another number": lambda: SCORE(points(3, 2), At(T, torch.ones(2))),
    "labels of other points": lambda: LABELLED(
        points(3, 2), At(T, torch.ones(3), torch.tensor([0, 1]))
    ),
    "a velocity of another shape": lambda: Shrinking()(randn(3, 2), At(T)),
    "prior.sample(-1)": lambda: PRIOR.sample(-1, generator=seeded()),
    "prior.sample(0.5)": lambda: PRIOR.sample(0.5, generator=seeded()),  # type: ignore[arg-type]
    "GaussianPrior(2)": lambda: GaussianPrior(2),  # type: ignore[arg-type]
    "GaussianPrior((-2,))": lambda: GaussianPrior((-2,)),
    "GaussianPrior(std=inf)": lambda: GaussianPrior((2,), math.inf),
    "density of another shape": lambda: PRIOR.log_density(randn(3, 5)),
    "target.sample(-1)": lambda: GAUSSIAN.sample(-1, generator=seeded()),
    "target at levels": lambda: GAUSSIAN.score(randn(3, 2), torch.ones(2)),
    "law.sample(-1)": lambda: KarrasLaw().sample(-1, generator=seeded(), dtype=torch.float32),
    "nodes(2.5)": lambda: UniformGrid(1.0).nodes(2.5),  # type: ignore[arg-type]
    "sigma(0.5)": lambda: EDMSchedule().sigma(0.5),  # type: ignore[arg-type]
    "kernels of unlike points": lambda: RBFKernel(1.0)(randn(3, 2), randn(3, 3)),
    "kernel means of unlike points": lambda: LaplaceKernel(1.0).mean(randn(3, 2), randn(3, 3)),
    "kernel gradients": lambda: RBFKernel(1.0).gradient(randn(3, 2), randn(4, 3)),
    "kernels of unlike types": lambda: MultiRBFKernel(1.0).mean(points(3, 2), randn(3, 2)),
    "times that are a list": lambda: Euler().solve(Dynamics(lambda x, t: x), randn(3, 2), [0, 1]),  # type: ignore
    "times of another shape": lambda: Euler().solve(Dynamics(lambda x, t: x), randn(3, 2), T),
    "times that are nan": lambda: Euler().solve(
        Dynamics(lambda x, t: x), randn(3, 2), torch.tensor([0.0, math.nan])
    ),
    "whole particles": lambda: Euler().solve(
        Dynamics(lambda x, t: x), torch.ones(3, 2, dtype=torch.int64), torch.tensor([0.0, 1.0])
    ),
    "a jump back": lambda: MAP.jump(points(3, 2), T, torch.tensor(0.2)),
    "a jump beyond the end": lambda: MAP.jump(points(3, 2), T, torch.tensor(1.5)),
    "a jump to nan": lambda: MAP.jump(points(3, 2), T, torch.tensor(math.nan)),
    "a jump to 0.7": lambda: MAP.jump(points(3, 2), T, 0.7),  # type: ignore[arg-type]
    "a map of float64": lambda: MAP.sample(3, generator=seeded(), start=randn(3, 2)),
    "starts that are nan": lambda: MAP.sample(2, generator=seeded(), start=points(2, 2) / 0),
    "guidance from 4 to 1": lambda: flow_map(3, guidance=(4.0, 1.0)),
    "guidance of 9": lambda: flow_map(3, guidance=(1.0, 4.0)).sample(
        2, generator=seeded(), guidance=9.0
    ),
    "placed for one start": lambda: place_nodes(MAP.flow, 2, starts=1),
    "placed for very many steps": lambda: place_nodes(MAP.flow, 64),
    "placed by nan": lambda: place_nodes(MAP.flow, 2, starts=4, distance=lambda x: math.nan),
    "very many nodes": lambda: Nodes(times=tuple(map(float, range(5000)))),
    "pairs of unlike points": lambda: OptimalTransport(PRIOR).partners(
        randn(3, 2), randn(3, 4), generator=seeded()
    ),
    "pairs of nan": lambda: OptimalTransport(PRIOR).partners(
        randn(3, 2) / 0, randn(3, 2), generator=seeded()
    ),
    "times beyond a path": lambda: LINEAR.noised(
        randn(3, 2), torch.tensor(1.5), generator=seeded()
    ),
    "times before it": lambda: EDMSchedule().noised(randn(3, 2), -T, generator=seeded()),
    "times of nan": lambda: LINEAR.noised(randn(3, 2), T / 0 * 0, generator=seeded()),
    "a blur of nothing": lambda: SinkhornField(1e-20),
    "Fréchet distance of unlike points": lambda: FrechetField().distance(randn(4, 3), randn(4, 2)),
    "load(None)": lambda: partikel.load(None),  # type: ignore[arg-type]
    "load a folder that is none": lambda: partikel.load("/no/such/folder"),
    "load_generator(7)": lambda: partikel.load_generator(7),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
def test_impossible_values_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(REFUSALS) as caught:
        call()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert "'NoneType'" not in message
    assert "object has no attribute" not in message


def test_a_solver_by_its_name_is_told_which_object_to_give() -> None:
    with pytest.raises(TypeError, match=r"give an object, Heun\(...\), not its name"):
        FLOW.sample(2, generator=seeded(), solver="heun")


def test_real_samples_are_asked_for_where_samples_are() -> None:
    with pytest.raises(PartikelError, match=r"sample\(..., real=X\)"):
        OWN.sample(3, generator=seeded())
    assert OWN.sample(3, generator=seeded(), real=randn(5, 2).float()).shape == (3, 2)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_changes_no_weight(clip: float | None, bad: float) -> None:
    """The loss is finite and its gradient is not: nothing is stepped."""
    denoiser = EDMDenoiser(network("denoiser", 1))
    weight = next(denoiser.parameters())
    weight.register_hook(lambda gradient: torch.full_like(gradient, bad))
    model = ParticleModel(ScoreField(denoiser, KarrasLaw()), PRIOR, steps=2)
    before = [p.detach().clone() for p in denoiser.parameters()]
    phase = Phase("score", AdamSettings(clip=clip), batch=4)
    with pytest.raises(NumericsError, match="gradient of 'score' became infinite or nan"):
        fit(model, DATA, [phase], iterations=3)
    assert all(map(torch.equal, before, denoiser.parameters()))
