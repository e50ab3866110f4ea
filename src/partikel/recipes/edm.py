"""EDM: the score of the data, carried by free particles along the probability flow.

GPM eqs. 7-9 and Karras et al. 2022. The field is |σ'|σ s_p(x, σ(t)), which equals the exact flow
2|σ'|σ s_p - |σ'|σ s_ρ while ρ_t = p_σ(t).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from partikel.data import Dataset
from partikel.denoising import EDMDenoiser
from partikel.errors import ConfigError
from partikel.errors.checks import Count, Exponent, Level, NotNegative, Part, Size
from partikel.fields import ScoreField
from partikel.models import Carrier, ParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.recipes.base import MLP, ScoreModel, System, hiding_labels
from partikel.schedules import (
    EDMSchedule,
    KarrasGrid,
    LogLevel,
    LogNormalLaw,
    LogSpread,
    LogUniformLaw,
)
from partikel.solvers import SOLVERS, Deterministic, Heun
from partikel.training import AdamSettings, Phase


@dataclass(frozen=True, kw_only=True)
class EDM(ScoreModel):
    """A denoising diffusion model (Karras et al. 2022).

    Attributes:
        network: F inside the preconditioned denoiser.
        sigma_data: σ_d; null takes the data's own standard deviation.
        sigma_min: lowest noise level of sampling.
        sigma_max: highest; the prior is N(0, sigma_max² I).
        rho: exponent of the sampling grid.
        law_mean: mean of ln σ in training.
        law_std: standard deviation of ln σ in training.
        weighting: "edm", or "likelihood": the bound of log p itself, 1/σ² with ln σ uniform over the
            sampler's levels (law_mean and law_std are then not used).
        solver: "heun" (2N - 1 evaluations for N steps), "euler", "ddim", "dpmpp-2m", "unipc-2" or
            "unipc-3" (N).
        steps: N, steps of sampling.
        churn: S_churn of the stochastic sampler; 0 is deterministic.
        label_dropout: share of labels hidden in training, which guidance needs; of conditional models.
        batch: samples of an update.
        optimizer: of the denoiser.
    """

    name: ClassVar[str] = "edm"
    title: ClassVar[str] = "EDM"
    symbol: ClassVar[str] = "|σ'|σ s_p"

    network: NetworkSettings = MLP
    sigma_data: Level | None = None
    sigma_min: Level = 0.002
    sigma_max: Level = 80.0
    rho: Exponent = 7.0
    law_mean: LogLevel = -1.2
    law_std: LogSpread = 1.2
    weighting: Literal["edm", "likelihood"] = "edm"
    solver: Deterministic = "heun"
    steps: Count = 28
    churn: NotNegative = 0.0
    label_dropout: Part = 0.1
    batch: Size = 128
    optimizer: AdamSettings = field(default_factory=AdamSettings)

    def __post_init__(self) -> None:
        """Check what only concerns this recipe."""
        super().__post_init__()
        if self.churn != 0 and self.solver != "heun":
            raise ConfigError("only Heun's solver churns: set solver to heun, or churn to 0.")

    @property
    def unused(self) -> frozenset[str]:
        """See :attr:`Recipe.unused`."""
        law = {"law_mean", "law_std"} if self.weighting == "likelihood" else set()
        return super().unused | law

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """One score field, particles from N(0, σ_max²), one phase of denoising score matching."""
        classes = self.classes(dataset)
        score = ScoreField(
            EDMDenoiser(
                build_network(
                    self.network,
                    "denoiser",
                    shape=dataset.shape,
                    scalars=1,
                    classes=classes,
                    generator=self.init_generator("denoiser"),
                ),
                dataset.sigma_data if self.sigma_data is None else self.sigma_data,
            ),
            LogNormalLaw(self.law_mean, self.law_std)
            if self.weighting == "edm"
            else LogUniformLaw(self.sigma_min, self.sigma_max),
            weighting=self.weighting,
        )
        score = hiding_labels(score, classes, self.label_dropout)
        schedule = EDMSchedule(self.sigma_max)
        solver = Heun(churn=self.churn) if self.solver == "heun" else SOLVERS[self.solver]()
        model = ParticleModel(
            schedule.half_rate * score,
            GaussianPrior(dataset.shape, std=self.sigma_max),
            steps=self.steps,
            schedule=schedule,
            grid=KarrasGrid(schedule, self.sigma_min, self.rho),
            solver=solver,
            score=score,
            label_weights=self.label_weights(dataset),
        )
        return System(model, (Phase("score", self.optimizer, self.batch),))
