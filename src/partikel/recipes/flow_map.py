"""Flow maps (framework §11): MeanFlow and consistency from data, the distillation of any flow of particles.

All are a :class:`~partikel.models.FlowMapModel`: from data its flow is the map's own diagonal; in a
distillation it is a trained model's, along the linear path where it is one of noised data, at its own N
nodes where it is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from partikel.data import Dataset
from partikel.errors import ConfigError
from partikel.errors.checks import Count, Level, NotNegative, Part, Share, Size
from partikel.fields import At, Field
from partikel.fields.velocity import velocity_in
from partikel.likelihood import probability_flow
from partikel.models import (
    Carrier,
    Consistency,
    Endpoints,
    FlowMapModel,
    ImprovedMeanFlow,
    Lagrangian,
    MapLoss,
    MeanFlow,
    ParticleModel,
    Semigroup,
    free_particles,
    own_flow,
)
from partikel.models.flow_map import GuidanceWeight
from partikel.networks import NetworkSettings, build_network
from partikel.recipes.base import Recipe, System
from partikel.recipes.edm import EDM
from partikel.recipes.flow_matching import Interpolants
from partikel.schedules import PATHS, Interpolant, Schedule, TimeGrid, TimeLaw, UniformTimeLaw
from partikel.solvers import DDIM
from partikel.training import EMA, AdamSettings, Phase
from partikel.training.ema import Decay

Learned: TypeAlias = Literal[
    "mean-flow", "improved-mean-flow", "lagrangian", "semigroup", "consistency"
]
Distilled: TypeAlias = Learned | Literal["endpoints"]
LOSSES: dict[str, type[MapLoss]] = {
    "mean-flow": MeanFlow,
    "improved-mean-flow": ImprovedMeanFlow,
    "lagrangian": Lagrangian,
    "semigroup": Semigroup,
    "consistency": Consistency,
    "endpoints": Endpoints,
}
"""Losses by the names that configurations use."""


@dataclass(frozen=True, kw_only=True)
class _Mapped(Interpolants):
    """What maps that learn from data share.

    Attributes:
        loss: "mean-flow", "improved-mean-flow", "lagrangian", "semigroup" or "consistency".
        diagonal: share of points with s = t, where the loss is flow matching.
        power: p of the loss's weight 1/(‖Δ‖² + c)^p; 0 learns the mean.
        intervals: steps of T that consistency compares.
        average: decay of the average of weights in targets; null takes the present ones.
        guidance: weight of the labels that is learned, or a pair between which it is an input.
        steps: K, jumps of sampling.
    """

    symbol: ClassVar[str] = "E[a'x_1 + b'x_0 | x]"

    loss: Learned = "mean-flow"
    diagonal: Share = 0.5
    power: NotNegative = 0.0
    intervals: Count = 64
    average: Part | None = None
    guidance: GuidanceWeight | tuple[GuidanceWeight, GuidanceWeight] = 1.0
    steps: Count = 1

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """A map of its own diagonal, one phase."""
        prior, scalars = self.prior(dataset), 2 + isinstance(self.guidance, tuple)
        network = build_network(
            self.network,
            "denoiser",
            shape=dataset.shape,
            scalars=scalars,
            classes=self.classes(dataset),
            generator=self.init_generator("map"),
        )
        flow = own_flow(
            network,
            prior,
            self.schedule,
            coupling=self.coupled(prior),
            scalars=scalars,
            label_weights=self.label_weights(dataset),
        )
        loss = _loss(self.loss, self.times, self.diagonal, self.power, self.intervals)
        model = FlowMapModel(
            flow,
            network,
            loss,
            steps=self.steps,
            teacher=self.average,
            guidance=self.guidance,
            label_dropout=self.label_dropout,
        )
        return System(model, (Phase("map", self.optimizer, self.batch),))


@dataclass(frozen=True, kw_only=True)
class MeanFlowMap(_Mapped):
    """MeanFlow (Geng et al. 2025), or another loss of a flow map that is learned from data."""

    name: ClassVar[str] = "mean-flow"
    title: ClassVar[str] = "MeanFlow"

    law: Literal["uniform", "logit-normal"] = "logit-normal"
    law_mean: float = 0.4


@dataclass(frozen=True, kw_only=True)
class ConsistencyMap(_Mapped):
    """Consistency training (Song et al. 2023): a map that jumps to the data from anywhere."""

    name: ClassVar[str] = "consistency"
    title: ClassVar[str] = "Consistency"

    loss: Learned = "consistency"


@dataclass(frozen=True, kw_only=True)
class Distillation(Recipe):
    """A flow of free particles, whatever it is, as a map: one call instead of all of its steps.

    A model of noised data (EDM, flow matching, a point of the plane, whose probability flow it is) is taken
    along ``path`` and learned by the Lagrangian equation. Of a flow of N trained steps (Discriminator Flow,
    DiffODE-GAN) one call learns where it ends, and more jumps learn its own nodes by the semigroup. A Score
    Flow's field draws noise wherever it is asked, so that it has no map.

    Attributes:
        run: folder of the teacher's run; null trains ``teacher`` first.
        teacher: its recipe, any of free particles, which 'partikel distil RUN' fills in.
        network: of U(x, s, t); null takes one like the teacher's.
        path: of noised data: "linear" or "trigonometric".
        loss: as of mean-flow, or "endpoints", of one call: simulated pairs of where the flow starts and ends;
            null chooses by what the teacher is.
        diagonal: share of short jumps: s = t, or one step of N.
        power: as of mean-flow.
        intervals: as of consistency.
        simulated: learn at the teacher's own particles instead of noised data.
        average: decay of the average of weights in targets; null takes the present ones.
        steps: K, jumps of sampling.
        label_dropout: share of labels hidden in training; of conditional models.
        batch: samples of an update.
        optimizer: of the map.
    """

    name: ClassVar[str] = "distillation"
    title: ClassVar[str] = "Distilled"
    symbol: ClassVar[str] = "the teacher's"
    builds_on: ClassVar[tuple[str, str]] = ("run", "teacher")

    run: str | None = None
    teacher: EDM | Recipe = field(default_factory=EDM)
    network: NetworkSettings | None = None
    path: Literal["linear", "trigonometric"] = "linear"
    loss: Distilled | None = None
    diagonal: Share = 0.25
    power: NotNegative = 0.0
    intervals: Count = 64
    simulated: bool = False
    average: Part | None = None
    steps: Count = 1
    label_dropout: Part = 0.1
    batch: Size = 256
    iterations: int = 8000
    ema: Decay | EMA | None = 0.999
    optimizer: AdamSettings = field(default_factory=lambda: AdamSettings(lr=1e-3, decay="cosine"))

    @property
    def required(self) -> Recipe:
        """The teacher."""
        return self.teacher

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """A map of the teacher's flow, one phase."""
        if required is None:
            raise ConfigError("a distillation builds on a trained model: train or load it first.")
        if required.conditional is not self.conditional:
            knows = "knows labels" if required.conditional else "knows no labels"
            raise ConfigError(f"the teacher {knows}: its map is conditional just as it is.")
        kind = self.loss or self._usual(required)  # asks what is frozen next
        flow = deterministic(required, self.batch)
        path = PATHS[self.path]()
        if flow.follows_path and _has_score(flow.field) and flow.schedule != path:
            flow = _same_steps(flow, path) if kind == "endpoints" else flow.along(path)
            flow.field.freeze()
        network = build_network(
            self.network or network_like(self.teacher),
            "denoiser",
            shape=dataset.shape,
            scalars=2,
            classes=self.classes(dataset),
            generator=self.init_generator("map"),
        )
        loss = _loss(kind, UniformTimeLaw(), self.diagonal, self.power, self.intervals)
        if not flow.follows_path and isinstance(loss, Semigroup):
            loss = replace(loss, solver=flow.solver)
        model = FlowMapModel(
            flow,
            network,
            replace(loss, simulated=self.simulated or None),
            steps=self.steps,
            teacher=self.average,
            label_dropout=self.label_dropout,
        )
        return System(model, (Phase("map", self.optimizer, self.batch),))

    def _usual(self, required: Carrier) -> str:
        """The loss that a teacher is learned by.

        What was trained at its own particles moves them by its own steps, and is less good elsewhere.
        """
        own = any("particles" in loss.needs for loss in required.losses())
        still = isinstance(required, ParticleModel) and required.diffusion is None
        if own and still and self.steps == 1:
            return "endpoints"
        return "lagrangian" if required.follows_path else "semigroup"


class _ProbabilityFlow(Field):
    """The velocity of a model that moves with noise, by which its particles have the same laws."""

    def __init__(self, model: ParticleModel) -> None:
        super().__init__()
        self.field = model.field
        self._velocity = probability_flow(model).velocity

    def forward(self, x: Tensor, at: At) -> Tensor:
        """V(x, t)."""
        return self._velocity(x, at.t, at.cond)


def deterministic(model: Carrier, batch: int = 1) -> ParticleModel:
    """A trained flow as a teacher: frozen, without noise, its probability flow where it has some.

    Args:
        model: free particles.
        batch: of training; simulated paths give as many of its particles each as divide it.

    Raises:
        ConfigError: for a generator, or noise without a probability flow (a temperature).
    """
    model = free_particles(
        model,
        "only flows of free particles are distilled, and this model makes samples in one call already.",
    )
    model.field.freeze()
    field = model.field if model.diffusion is None else _ProbabilityFlow(model).freeze()
    (score,) = model._score
    return ParticleModel(
        field,
        model.prior,
        steps=model.steps,
        eta=model.eta if model.diffusion is None else 1.0,
        schedule=model.schedule,
        grid=model.grid,
        solver=model.solver if model.diffusion is None else None,
        score=score,
        times_per_path=max(n for n in range(1, model.steps + 1) if batch % n == 0),
        label_weights=model.label_weights,
    )


@dataclass(frozen=True)
class _From(Interpolant):
    """A path from a level of noise on, in the same time from 0 to 1."""

    path: Schedule
    level: Level

    def scale(self, t: Tensor) -> Tensor:
        return self.path.scale(self._there(t))

    def spread(self, t: Tensor) -> Tensor:
        return self.path.spread(self._there(t))

    def _there(self, t: Tensor) -> Tensor:
        begin = float(self.path.time(torch.tensor(self.level, dtype=torch.float64)))
        return begin + (self.path.horizon - begin) * t


@dataclass(frozen=True)
class _SameLevels(TimeGrid):
    """The nodes at which another path's particles pass the levels of a flow's own."""

    flow: ParticleModel
    path: Schedule

    def nodes(self, steps: Count) -> Tensor:
        """(N + 1,), of as many steps as asked for."""
        assert self.flow.schedule is not None
        times = self.flow.grid.nodes(steps)
        inner = self.path.time(self.flow.schedule.sigma(times[1:-1]))
        ends = times.new_tensor([0.0, self.path.horizon])
        return torch.cat([ends[:1], inner, ends[1:]])


def _same_steps(flow: ParticleModel, path: Schedule) -> ParticleModel:
    """The same steps of a probability flow along another path, from its highest level of noise to the end.

    Euler's steps in σ are DDIM's, and those are the same along any path.
    """
    assert flow.schedule is not None
    highest = flow.schedule.sigma_max
    path = _From(path, highest) if math.isfinite(highest) else path
    moved = flow.along(path)
    moved.grid, moved.solver = _SameLevels(flow, path), DDIM()
    return moved


def _has_score(field: Field) -> bool:
    velocity = velocity_in(field)
    return velocity is None or velocity.coupling is None or velocity.coupling.has_score


def _loss(kind: str, law: TimeLaw, diagonal: float, power: float, intervals: int) -> MapLoss:
    if kind == "consistency":
        return Consistency(law=law, diagonal=diagonal, power=power, intervals=intervals)
    return LOSSES[kind](law=law, diagonal=diagonal, power=power)


def network_like(teacher: Recipe) -> NetworkSettings:
    """A network for U(x, s, t) like the teacher's, smooth in time.

    Args:
        teacher: the recipe of a flow.
    """
    named = ("network", "score", "discriminator")
    found = next((each for name in named if (each := getattr(teacher, name, None))), None)
    given = getattr(found, "network", found)
    if not isinstance(given, NetworkSettings) or given.kind == "mlp":
        width, depth = (512, 4) if given is None else (given.width, given.depth)
        return NetworkSettings(
            "mlp",
            width=width,
            depth=depth,
            activation="silu",
            init="he",
            fourier_scale=0.3,
            embedding_features=16,
        )
    return given if given.kind in ("unet", "dit", "edm2") else NetworkSettings("unet", channels=32)
