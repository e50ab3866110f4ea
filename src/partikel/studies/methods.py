"""The league's methods: what carries the data's law to one call, or to a few, on equal terms.

Equal are: one network from points to points of the data's shape for all that makes samples or denoises, one
law of starts of that shape, the batch, the average of the weights, the fall of the learning rate, the search
for it, and the units of training, those of a teacher included. :data:`METHODS` has a line for each.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from partikel.data import Dataset
from partikel.denoising import EDMDenoiser
from partikel.errors import ConfigError, DataError, NumericsError
from partikel.fields import (
    DeepMMDField,
    DiscriminatorField,
    DriftField,
    FDivergenceField,
    Field,
    FrechetField,
    MMDField,
    Perturbed,
    ScoreField,
    SinkhornField,
    SlicedWassersteinField,
)
from partikel.files import read_json, reading, replacing, write_json
from partikel.kernels import MultiRBFKernel, RandomFourierFeatures
from partikel.metrics import sliced_wasserstein2
from partikel.metrics.evaluation import choose_features, quick_evaluation
from partikel.metrics.features import FeatureSet, extract_features, frechet_distance
from partikel.metrics.measures import FRECHET, Measure, main_measure
from partikel.models import Carrier, GeneratorModel, Sampling
from partikel.models.placing import place_nodes
from partikel.networks import MLP, Conditioning, NetworkSettings, build_network, initialise
from partikel.objectives import GradientPenalty
from partikel.priors import GaussianPrior
from partikel.recipes import (
    EDM,
    ConsistencyMap,
    DiscriminatorFlow,
    Distillation,
    FlowMatching,
    MeanFlowMap,
    Recipe,
    System,
)
from partikel.recipes.base import field_of, score_in
from partikel.schedules import KarrasLaw, Nodes
from partikel.solvers import UniPC
from partikel.streams import seeded
from partikel.studies.lab import Lab
from partikel.studies.units import in_turns, unit
from partikel.training import EMA, AdamSettings, Phase, Trainer
from partikel.training.ema import swapped_in

BATCH = {True: 256, False: 64}
"""Samples of every update: where a multilayer perceptron computes, and where convolutions do."""
AVERAGE = EMA(sigma_rel=0.05)
"""Of the weights, as wide for a long training as for a short one."""
FACTOR = 3.0
"""Between two learning rates of the search."""
LOST = 1e30
"""The distance of a trial that left the finite numbers."""
TRIAL = 0.25
"""Share of the units that a trial of a rate takes."""
TRIED = 1000
"""Seed of the trials, which no training has."""
WATCHED = 8
"""Places of a training's curve."""
SAMPLES = {1: 10_000, 3: 2000}
"""Of a final figure, points and images (at most as many as the test split has); a fifth of a curve's."""
SHOWN = {1: 1000, 3: 36}
"""Of a picture."""
MANY = 8
"""Steps by which a flow that takes steps is watched and tried."""


@dataclass(frozen=True)
class Seat:
    """What a method is given.

    Attributes:
        dataset: the data.
        seed: of initial weights and all random draws.
        rate: factor on its learning rates.
        iterations: of its training.
        teacher: the trained model that it builds on.
    """

    dataset: Dataset
    seed: int = 0
    rate: float = 1.0
    iterations: int = 1
    teacher: Carrier | None = None

    @property
    def planar(self) -> bool:
        """Whether the data are points, not images."""
        return len(self.dataset.shape) == 1

    @property
    def flat(self) -> bool:
        """Whether the network is a multilayer perceptron: of points, and of images up to 8 pixels."""
        return self.planar or self.dataset.shape[-1] <= 8

    @property
    def batch(self) -> int:
        """Samples of every update."""
        return BATCH[self.flat]

    @property
    def length(self) -> float:
        """Root mean square distance of two points of the data, about."""
        return self.dataset.sigma_data * math.sqrt(2 * math.prod(self.dataset.shape))

    def settings(self, role: Literal["denoiser", "logit"], scale: float = 1.0) -> NetworkSettings:
        """The network: a multilayer perceptron, or a U-Net and a small convolutional discriminator."""
        size = math.prod(self.dataset.shape)
        if self.flat:
            return NetworkSettings(
                "mlp",
                width=128 if size <= 16 else 384,
                depth=3,
                activation="silu" if role == "denoiser" else "leaky_relu",
                init="he",
                fourier_scale=scale,
                embedding_features=16,
            )
        if role == "logit":
            return NetworkSettings("small", width=32, init="he")
        return NetworkSettings(
            "unet",
            channels=16,
            multipliers=(1, 2, 2),
            blocks=1,
            attention_resolutions=(),
            embedding="fourier",
            fourier_scale=scale,
            embedding_features=16,
        )

    def network(self, role: Literal["denoiser", "logit"], part: str, scalars: int = 0) -> nn.Module:
        """A network with weights of its own seed, told so many scalars."""
        settings = self.settings(role)
        if not scalars and settings.kind == "mlp":
            settings = replace(settings, fourier_scale=None, embedding_features=None)
        return build_network(
            settings,
            role,
            shape=self.dataset.shape,
            scalars=scalars,
            generator=seeded(self.seed, "league", part),
        )

    def adam(self, lr: float, beta1: float = 0.9, beta2: float = 0.99) -> AdamSettings:
        """Adam of a rate that is searched and falls."""
        return AdamSettings(lr=lr * self.rate, beta1=beta1, beta2=beta2, decay="cosine")

    @property
    def law(self) -> KarrasLaw:
        """σ of fields that are asked at noised points."""
        low, high = (0.05, 3.0) if self.planar else (0.25, 7.0)
        return KarrasLaw(low * self.dataset.sigma_data, high * self.dataset.sigma_data)


Make: TypeAlias = Callable[[Seat], Field]
Build: TypeAlias = Callable[[Seat], System]


@dataclass(frozen=True)
class Method:
    """A line of the league.

    Attributes:
        name: what tables call it.
        source: where it comes from.
        family: what it is shown among.
        build: composes it, untrained.
        teacher: the method whose trained model it builds on; half of its units then are the teacher's.
        descends: key of the measure that its field descends, by which it is not judged.
        calls: evaluations of a sample, at each of which it is measured.
        simulates: whether paths are simulated before its first iteration.
    """

    name: str
    source: str
    family: str
    build: Build
    teacher: str = ""
    descends: str = ""
    calls: tuple[int, ...] = (1,)
    simulates: bool = False


def followed(
    make: Make,
    lr: float = 2e-3,
    eta: float | None = None,
    phases: Mapping[str, tuple[float, int]] = MappingProxyType({}),
) -> Build:
    """A generator that follows a field.

    Args:
        make: the field.
        lr: of the generator.
        eta: step of the outputs, where the generator is fitted to moved ones.
        phases: of the field's own training: loss -> its learning rate, and its updates in an iteration.
    """

    def build(seat: Seat) -> System:
        shape, network = seat.dataset.shape, seat.network("denoiser", "generator")
        model = GeneratorModel(make(seat), network, GaussianPrior(shape), eta=eta)
        own = (
            Phase(loss, seat.adam(rate, 0.5), seat.batch, repeats)
            for loss, (rate, repeats) in phases.items()
        )
        return System(model, (*own, Phase("generator", seat.adam(lr, 0.5), seat.batch)))

    return build


def learned(
    kind: Callable[..., Recipe],
    lr: float = 2e-3,
    scale: float = 0.3,
    role: Literal["denoiser", "logit"] = "denoiser",
    more: Callable[[Seat], Mapping[str, Any]] = lambda seat: {},
    **settings: Any,
) -> Build:
    """What a recipe composes.

    Args:
        kind: the recipe.
        lr: of its network.
        scale: of the frequencies by which the network is told times or levels.
        role: of the network.
        more: settings that depend on the data.
        settings: others.
    """

    def build(seat: Seat) -> System:
        recipe = kind(
            network=seat.settings(role, scale),
            optimizer=seat.adam(lr),
            batch=seat.batch,
            seed=seat.seed,
            iterations=seat.iterations,
            **settings,
            **more(seat),
        )
        return recipe.compose(seat.dataset, seat.teacher)

    return build


# --- fields


def _critic(
    objective: str, *penalties: GradientPenalty, noised: bool = False
) -> Callable[[Seat], DiscriminatorField]:
    def make(seat: Seat) -> DiscriminatorField:
        network = seat.network("logit", "discriminator", int(noised))
        told = ("log sigma",) if noised else ()
        return DiscriminatorField(network, objective, conditions=told, penalties=penalties)

    return make


def _gap(seat: Seat) -> Field:
    """s_p - s_ρ."""
    denoiser = EDMDenoiser(seat.network("denoiser", "own score", 1), seat.dataset.sigma_data)
    own = ScoreField(denoiser, seat.law, of="particles", name="own score")
    return score_in(field_of(seat.teacher)) - own


def _score_gan(seat: Seat) -> Field:
    return Perturbed(_gap(seat), seat.law)


def _f_distill(seat: Seat) -> Field:
    critic = _critic("non-saturating", noised=True)(seat)
    weighed = FDivergenceField(critic, "jensen-shannon", gradient=_gap(seat), clip=3.0)
    return Perturbed(weighed, seat.law)


def _deep_mmd(seat: Seat) -> Field:
    told = Conditioning(scalars=1, embedding_features=16, fourier_scale=1.0)
    size = seat.settings("logit").width or 384
    network = MLP(seat.dataset.shape, (64,), size, 3, "silu", conditions=told)
    network = initialise(network, "he", generator=seeded(seat.seed, "league", "features"))
    high = seat.law.sigma_max
    levels = tuple(high * share for share in (0.03, 0.1, 0.3, 0.7, 1.0))
    return DeepMMDField(network, seat.law, levels=levels, l2_penalty=0.0)


def _fourier(seat: Seat) -> Field:
    count = 16 if math.prod(seat.dataset.shape) <= 2 else 64
    features = RandomFourierFeatures(seat.dataset.shape, count, seat.length / 2)
    return FrechetField(features, memory=0.9)


def _sinkhorn(seat: Seat) -> Field:
    return SinkhornField(seat.length / 6, iterations=5, tolerance=1e-2, halves=True)


# --- the methods

_R1 = GradientPenalty(0.05, at="real")
_R2 = GradientPenalty(0.05, at="fake")
_STEPS = (2, 4, 8)
ADVERSARY, SAMPLED, MAPS, FLOWS = (
    "a learned field, followed by a generator",
    "a field of samples, followed by a generator",
    "a flow map",
    "a flow, by few steps",
)
"""Families."""


def _edm(seat: Seat) -> dict[str, Any]:
    return {"law_mean": math.log(0.3 * seat.dataset.sigma_data)}


def _paired(seat: Seat) -> dict[str, Any]:
    return {"over_batch": seat.planar}


def _pull(seat: Seat) -> dict[str, Any]:
    penalties = () if seat.planar else (GradientPenalty(0.25, at="real"),)
    return {"eta": 10.0 if seat.planar else 30.0, "penalties": penalties}


_map = partial(learned, MeanFlowMap, 3e-3, more=_paired, law="uniform")
_CRITIC, _OWN = {"discriminator": (1e-3, 1)}, {"own score": (2e-3, 3)}
_LIST = (
    Method(
        *("GAN", "Goodfellow et al. 2014", ADVERSARY),
        followed(_critic("non-saturating", _R1), 5e-4, phases=_CRITIC),
    ),
    Method(
        *("R3GAN", "Huang et al. 2024", ADVERSARY),
        followed(_critic("relativistic", _R1, _R2), 5e-4, phases=_CRITIC),
    ),
    Method(
        *("Score GAN", "DMD, Yin et al. 2024", ADVERSARY),
        followed(_score_gan, 1e-3, phases=_OWN),
        teacher="EDM",
    ),
    Method(
        *("f-distill", "Xu et al. 2025", ADVERSARY),
        followed(_f_distill, 1e-3, phases={"discriminator": (2e-3, 2), **_OWN}),
        teacher="EDM",
    ),
    Method(
        *("DMMD", "Galashov et al. 2025", ADVERSARY),
        followed(_deep_mmd, 1e-3, phases={"features": (1e-3, 1)}),
    ),
    Method(
        *("MMD", "Arbel et al. 2019", SAMPLED),
        followed(lambda seat: MMDField(MultiRBFKernel(seat.length / 3))),
        descends="mmd2",
    ),
    Method(
        *("sliced", "Bonneel et al. 2015", SAMPLED),
        followed(lambda seat: SlicedWassersteinField(64)),
        descends="sliced_w2",
    ),
    Method(
        *("W-Flow", "Sinkhorn, Han et al. 2026", SAMPLED),
        followed(_sinkhorn, eta=1.0),
        descends="w2",
    ),
    Method(
        *("drifting", "Deng et al. 2026", SAMPLED),
        followed(lambda seat: DriftField(seat.length / 6), eta=1.0),
    ),
    Method(*("FD field", "FD loss, 2026", SAMPLED), followed(_fourier)),
    Method(*("MeanFlow", "Geng et al. 2025", MAPS), _map()),
    Method(*("iMF", "Geng et al. 2025, improved", MAPS), _map(loss="improved-mean-flow")),
    Method(*("consistency", "Song et al. 2023", MAPS), learned(ConsistencyMap, 3e-3, more=_paired)),
    Method(*("distilled EDM", "Boffi et al. 2025", MAPS), learned(Distillation), teacher="EDM"),
    Method(
        *("distilled DF", "Discriminator Flow, its endpoints", MAPS),
        learned(Distillation),
        teacher="DF",
        simulates=True,
    ),
    Method(
        *("EDM", "Karras et al. 2022", FLOWS),
        learned(EDM, scale=1.0, more=_edm, sigma_max=40.0),
        calls=_STEPS,
    ),
    Method(
        *("flow matching", "Lipman et al. 2022", FLOWS),
        learned(FlowMatching, 3e-3, more=_paired),
        calls=_STEPS,
    ),
    Method(
        *("DF", "Discriminator Flow, GPM", FLOWS),
        learned(
            *(DiscriminatorFlow, 2e-3, 1.0, "logit", _pull),
            steps=MANY,
            times_per_path=MANY // 2,
        ),
        calls=_STEPS,
    ),
)


METHODS: dict[str, Method] = {method.name: method for method in _LIST}
"""Every method by its name."""


# --- training and measuring


@dataclass
class Played:
    """A training.

    Attributes:
        model: with the averaged weights.
        iterations: of training.
        units: of its own training.
        teacher_units: of its teacher's.
        curve: (units, distance) on validation data, along its own training.
        cpu_seconds: of its own training.
    """

    model: Carrier
    iterations: int
    units: float
    teacher_units: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    cpu_seconds: float = 0.0


class League:
    """Trains and measures methods on one data set, and keeps what was measured.

    Args:
        dataset: the data.
        units: of each training, with those of its teacher.
        lab: where.
        features: the network that images are measured by; None chooses one.

    Raises:
        ConfigError: for an unknown network, or one whose package is missing.
        DataError: where a split has no two points.
    """

    def __init__(
        self, dataset: Dataset, units: float, lab: Lab, features: str | None = None
    ) -> None:
        for split in ("validation", "test"):
            if dataset.at_most(2, split) < 2:
                raise DataError(
                    f"'{dataset.name}' has no two points in its {split} split: give it more data."
                )
        self.dataset, self.features = dataset, features
        pictures = len(dataset.shape) > 1
        self.network = choose_features(features, dataset) if pictures else None
        self.units = units
        self.lab = lab
        self._teachers: dict[tuple[Any, ...], Played] = {}
        self._references: dict[tuple[str, int, int], FeatureSet] = {}

    @property
    def measure(self) -> Measure:
        """That decides."""
        return main_measure(self.dataset.shape)

    @property
    def kind(self) -> int:
        """1 of points, 3 of images."""
        return len(self.dataset.shape)

    @property
    def seen_by(self) -> str:
        """For protocols: the network that images are measured by."""
        return "" if self.network is None else f", by {self.network.name}"

    def floor(self, n: int) -> float:
        """What two draws of n points of the data differ by."""
        return self.lab.floor(self.dataset, n, self.features)

    def cost(self, method: Method) -> float:
        """Units of an iteration, measured once."""

        def measured() -> float:
            steps = self._untrained(method)
            works = {"unit": unit(), "step": lambda: next(steps)}
            seconds = in_turns(works, 12, {"step": 4})
            return seconds["step"] / seconds["unit"]

        return self.lab.once(f"cost-{_slug(method.name)}", measured)

    def before(self, method: Method) -> float:
        """Units of the paths that are simulated before the first iteration, measured once."""

        def measured() -> float:
            steps = self._untrained(method)
            started = time.process_time()
            next(steps)
            seconds = time.process_time() - started
            return seconds / in_turns({"unit": unit()}, 12)["unit"]

        return self.lab.once(f"before-{_slug(method.name)}", measured) if method.simulates else 0.0

    def _untrained(self, method: Method) -> Iterator[Any]:
        """The iterations of a training that nobody waits for."""
        teacher = METHODS.get(method.teacher)
        known = None if teacher is None else teacher.build(Seat(self.dataset)).model
        seat = Seat(self.dataset, iterations=10**6, teacher=known)
        return self._trainer(method.build(seat), seat).run()

    def rate(self, method: Method) -> float:
        """The factor on its learning rates that the search chose."""
        tried = self.lab.once(f"rate-{_slug(method.name)}", lambda: self._searched(method))
        return min(tried)[1]

    def check_units(self, methods: Iterable[Method]) -> None:
        """Refuse (ConfigError) units of which a trial is no iteration, before anything is trained."""
        for method in methods:
            teacher = METHODS.get(method.teacher)
            step = max(self.cost(each) for each in (method, teacher) if each is not None)
            least = max(step / TRIAL, self.before(method) + step) * (1 if teacher is None else 2)
            if self.units < least:
                raise ConfigError(
                    f"{self.units:g} units are too few for '{method.name}': an iteration takes {step:.3g}, "
                    f"and a trial has a quarter; give a --budget of {math.ceil(least)} units or more."
                )

    def entry(self, method: Method, seed: int, given: bool = False) -> Path:
        """The folder of a training that was measured: ``entry.json``, and samples of each number of calls.

        Args:
            method: which.
            seed: of its training.
            given: whether its teacher is given: trained with all units, not with half of them.
        """
        name = _slug(method.name) + ("-given" if given else "")

        def play(folder: Path) -> None:
            self.lab.say(f"{method.name}{', its teacher given' if given else ''}, seed {seed}")
            record: dict[str, Any] = {"figures": {}, "failed": None}
            try:
                played = self._final(method, seed, given)
                record |= {
                    "iterations": played.iterations,
                    "units": [played.units, played.teacher_units],
                    "curve": played.curve,
                    "cpu_seconds": played.cpu_seconds,
                }
                for calls in method.calls:
                    samples = self._drawn(played.model, SAMPLES[self.kind], seed, calls, True)
                    record["figures"][str(calls)] = self._figures(samples, seed)
                    with replacing(folder / f"{calls}.npy") as part:
                        np.save(part, samples[: SHOWN[self.kind]].numpy())
            except NumericsError as error:
                record["failed"] = str(error)
            write_json(folder / "entry.json", record)

        return self.lab.folder(f"{name}-seed-{seed}", play)

    def record(self, method: Method, seed: int, given: bool = False) -> dict[str, Any]:
        """``entry.json``.

        Raises:
            DataError: where it is gone or damaged.
        """
        path = self.entry(method, seed, given) / "entry.json"
        with _entry(path):
            found = read_json(path)
            if not {"figures", "failed"} <= found.keys():
                raise ValueError
            return found

    def shown(self, method: Method, seed: int, calls: int) -> Tensor:
        """Samples by so many calls that were kept for a picture.

        Raises:
            DataError: where they are gone or damaged.
        """
        path = self.entry(method, seed) / f"{calls}.npy"
        with _entry(path):
            return torch.from_numpy(np.load(path))

    def forget(self) -> None:
        """Let go of the teachers of a seed."""
        self._teachers.clear()

    def _searched(self, method: Method) -> list[tuple[float, float]]:
        """(distance on validation data, factor on the learning rates) of trials.

        From 1 on to the better neighbour, until neither is: the search has no edge. A trial that left the
        finite numbers is the farthest.
        """
        found: dict[int, float] = {}

        def tried(power: int) -> float:
            if power not in found:
                rate = FACTOR**power
                try:
                    played = self._played(method, TRIED, TRIAL * self.units, rate)
                    found[power] = self._watched(played.model, method.calls[-1])
                except NumericsError:
                    found[power] = LOST
                if not math.isfinite(found[power]):  # of samples that are, but far away
                    found[power] = LOST
                self.lab.say(
                    f"{method.name}, trial at {rate:.2g} times its rates: {found[power]:.4g}"
                )
            return found[power]

        best = 0
        while (nearest := min((best, best + 1, best - 1), key=tried)) != best:
            best = nearest
        return [(distance, FACTOR**power) for power, distance in sorted(found.items())]

    def _played(
        self,
        method: Method,
        seed: int,
        units: float,
        rate: float,
        given: bool = False,
        watched: bool = False,
    ) -> Played:
        """A training by so many units, those of its teacher included unless it is given."""
        teacher, of_teacher = METHODS.get(method.teacher), 0.0
        known: Carrier | None = None
        if teacher is not None:
            of_teacher = units if given else units / 2
            known = self._taught(teacher, seed, of_teacher).model
        own = units if given else units - of_teacher
        # a trial is for the rate, and as long without paths that take longer than it
        simulated = self.before(method) if watched else 0.0
        iterations = int((own - simulated) / self.cost(method))
        seat = Seat(self.dataset, seed, rate, iterations, copy.deepcopy(known))
        system = method.build(seat)
        trainer = self._trainer(system, seat)
        played = Played(system.model, iterations, own, of_teacher)
        places = {round(iterations * (k + 1) / WATCHED) for k in range(WATCHED)} if watched else {}
        for done in trainer.run():
            if done.step in places:
                with swapped_in(system.model.sampled, trainer.average):
                    distance = self._watched(system.model, method.calls[-1])
                share = done.step / iterations
                played.curve.append((simulated + (own - simulated) * share, distance))
                system.model.train()
        with swapped_in(system.model.sampled, trainer.average):
            played.model = copy.deepcopy(system.model).eval()
        played.cpu_seconds = round(trainer.cpu_seconds, 2)
        return played

    def _final(self, method: Method, seed: int, given: bool) -> Played:
        """A training by all units; one that others build on is kept for them."""
        if any(other.teacher == method.name for other in METHODS.values()):
            return self._taught(method, seed, self.units)
        return self._played(method, seed, self.units, self.rate(method), given, True)

    def _taught(self, method: Method, seed: int, units: float) -> Played:
        key = (method.name, seed, units)
        if key not in self._teachers:
            self._teachers[key] = self._played(method, seed, units, self.rate(method), watched=True)
        return self._teachers[key]

    def _trainer(self, system: System, seat: Seat) -> Trainer:
        options = {"iterations": seat.iterations, "seed": seat.seed, "ema": AVERAGE}
        return Trainer(system.model, self.dataset, system.phases, **options)

    def _drawn(self, model: Carrier, n: int, seed: int, calls: int, placed: bool = False) -> Tensor:
        """(n, ...) samples; of a flow by so many evaluations, at its own nodes or at placed ones."""
        generator, sampling = seeded(seed, "league", "samples"), None
        n = self.dataset.at_most(n, "test")
        if model.steps is not None and calls > 1:
            solver = UniPC() if model.follows_path else None
            nodes = Nodes(calls)
            if placed:
                nodes = place_nodes(
                    model, calls, solver=solver, distance=self._to_validation(), seed=seed
                ).nodes
            sampling = Sampling(grid=nodes, solver=solver)
        return model.sample(n, generator=generator, sampling=sampling)

    def _to_validation(self) -> Callable[[Tensor], float] | None:
        """What nodes for images are placed by; for points they are by where paths end."""
        if self.kind == 1:
            return None
        return lambda x: self._distance(x, "validation", 0)

    def _distance(self, samples: Tensor, split: str, seed: int) -> float:
        return self._quick(samples, split, seed)[self.measure.key]

    def _quick(self, samples: Tensor, split: str, seed: int) -> dict[str, float]:
        def draw(n: int, _: torch.Generator) -> Tensor:
            return samples[:n]

        n = self.dataset.at_most(len(samples), split)
        if self.network is None:
            return quick_evaluation(draw, self.dataset, n=n, seed=seed, split=split)
        if (split, n, seed) not in self._references:
            generator = seeded(seed, "league", "reference")
            self._references[split, n, seed] = self._seen(
                self.dataset.draw(n, split, generator=generator).x
            )
        reference = self._references[split, n, seed]
        return {FRECHET.key: frechet_distance(self._seen(samples[:n]), reference)}

    def _seen(self, images: Tensor) -> FeatureSet:
        assert self.network is not None
        return FeatureSet.of(self.network, extract_features(self.network, images))

    def _watched(self, model: Carrier, calls: int) -> float:
        samples = self._drawn(model, SAMPLES[self.kind] // 5, TRIED, calls)
        return self._distance(samples, "validation", TRIED)

    def _figures(self, samples: Tensor, seed: int) -> dict[str, float]:
        figures = self._quick(samples, "test", seed)
        if not all(map(math.isfinite, figures.values())):
            raise NumericsError("samples are too far from the data for a distance.")
        if self.kind == 1:
            generator = seeded(seed, "league", "reference")
            reference = self.dataset.draw(len(samples), "test", generator=generator).x
            figures["sliced_w2"] = sliced_wasserstein2(samples, reference)
        return figures


def _entry(path: Path) -> AbstractContextManager[None]:
    """A block that reads what was kept of a training."""
    made = f"{path.parent}-made.json"
    return reading(path, f"is gone or damaged: remove {made}, and it is trained again.", DataError)


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")
