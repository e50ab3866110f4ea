"""Flow matching: the velocity of an interpolant, carried by free particles (framework §10).

Lipman et al. 2022, Liu et al. 2022 (rectified flow), Albergo et al. 2023. The field is v(x, t) = E[a'x_1 +
b'x_0 | X_t = x], an EDM's denoiser in another clothing: along the same paths both give the same particles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from partikel.data import DataPrior, Dataset, DataSettings, open_dataset
from partikel.denoising import VelocityDenoiser
from partikel.errors import ConfigError
from partikel.errors.checks import Count, Part, Positive, Size
from partikel.fields import Coupling, Independent, OptimalTransport, PathScore, VelocityField
from partikel.models import Carrier, ParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.priors import GaussianPrior, Prior
from partikel.recipes.base import MLP, Recipe, ScoreModel, System, hiding_labels
from partikel.schedules import (
    PATHS,
    LogitNormalTimeLaw,
    LogLevel,
    LogSpread,
    Schedule,
    TimeLaw,
    UniformTimeLaw,
)
from partikel.solvers import SOLVERS, Deterministic
from partikel.training import AdamSettings, Phase


@dataclass(frozen=True, kw_only=True)
class Interpolants(Recipe):
    """What models of interpolants share.

    Attributes:
        network: of the velocity.
        path: "linear", "trigonometric" or "vp".
        coupling: "independent", or "transport" (optimal transport within each batch).
        blur: of an entropic plan, with coupling "transport"; null for the exact one.
        over_batch: regress on the mean velocity of all ends in the batch that may lead through a point, not
            on that of its own pair: the same mean, less noise. Of independent noise only.
        source: data that particles start from; null for N(0, 1).
        law: of times in training, "uniform" or "logit-normal".
        law_mean: of the logit of t, in generation time (data are at 1).
        law_std: its standard deviation.
        label_dropout: share of labels hidden in training, which guidance needs; of conditional models.
        batch: samples of an update.
        optimizer: of the network.
    """

    network: NetworkSettings = MLP
    path: Literal["linear", "trigonometric", "vp"] = "linear"
    coupling: Literal["independent", "transport"] = "independent"
    blur: Positive | None = None
    over_batch: bool = False
    source: DataSettings | None = None
    law: Literal["uniform", "logit-normal"] = "uniform"
    law_mean: LogLevel = 0.0
    law_std: LogSpread = 1.0
    label_dropout: Part = 0.1
    batch: Size = 128
    optimizer: AdamSettings = field(default_factory=AdamSettings)

    @property
    def schedule(self) -> Schedule:
        """The path."""
        return PATHS[self.path]()

    @property
    def times(self) -> TimeLaw:
        """The law of t."""
        if self.law == "uniform":
            return UniformTimeLaw()
        return LogitNormalTimeLaw(self.law_mean, self.law_std)

    def prior(self, dataset: Dataset) -> Prior:
        """Where particles start."""
        if self.source is None:
            return GaussianPrior(dataset.shape)
        return DataPrior(open_dataset(self.source))

    def coupled(self, prior: Prior) -> Coupling:
        """How ends are paired."""
        if self.coupling != "transport":
            return Independent(prior, self.over_batch)
        if self.over_batch:
            raise ConfigError(
                "over_batch takes ends that are drawn independently, and optimal transport pairs them: "
                "leave one of them out."
            )
        return OptimalTransport(prior, self.blur)


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Interpolants, ScoreModel):
    """A flow that matches the velocity of an interpolant.

    Attributes:
        weighting: of the regression, "velocity" (‖v - v_c‖²) or "denoiser" (‖D - x_1‖²).
        solver: "heun" (2N evaluations for N steps), "midpoint" (2N), "rk4" (4N), "euler", "ddim", "dpmpp-2m",
            "unipc-2" or "unipc-3" (N).
        steps: N, steps of sampling.
    """

    name: ClassVar[str] = "flow-matching"
    title: ClassVar[str] = "Flow matching"
    symbol: ClassVar[str] = "E[a'x_1 + b'x_0 | x]"

    weighting: Literal["velocity", "denoiser"] = "velocity"
    solver: Literal[Deterministic, "midpoint", "rk4"] = "heun"
    steps: Count = 14

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """One velocity field, particles from the source, one phase of flow matching."""
        classes, prior = self.classes(dataset), self.prior(dataset)
        network = build_network(
            self.network,
            "denoiser",
            shape=dataset.shape,
            scalars=1,
            classes=classes,
            generator=self.init_generator("velocity"),
        )
        velocity = VelocityField(
            VelocityDenoiser(network, self.schedule),
            self.times,
            self.coupled(prior),
            weighting=self.weighting,
        )
        scored = velocity.coupling is not None and velocity.coupling.has_score
        model = ParticleModel(
            hiding_labels(velocity, classes, self.label_dropout),
            prior,
            steps=self.steps,
            schedule=self.schedule,
            solver=SOLVERS[self.solver](),
            score=PathScore(velocity, self.schedule) if scored else None,
            label_weights=self.label_weights(dataset),
        )
        return System(model, (Phase("velocity", self.optimizer, self.batch),))
