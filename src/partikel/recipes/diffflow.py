"""DiffFlow's models: points of the plane, DiffODE-GAN, DiffFlow-GAN (DiffFlow §3, Algorithms 1-3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn

from partikel.data import Dataset
from partikel.denoising import PreconditionedLogit
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError
from partikel.errors.checks import Count, Exponent, Level, NotNegative, Part, Positive, Size
from partikel.fields import AtScale, DiscriminatorField, LogRatioField
from partikel.fields.terms import Potential
from partikel.likelihood import GenerativeSDE, MaximumLikelihood
from partikel.likelihood.flow import sample_time
from partikel.models import Carrier, ParticleModel, StagedParticleModel
from partikel.networks import Bank, NetworkSettings, build_network
from partikel.objectives import GradientPenalty
from partikel.priors import GaussianPrior
from partikel.recipes.base import (
    MLP,
    Recipe,
    System,
    field_of,
    hiding_labels,
    same_data,
    score_in,
)
from partikel.recipes.edm import EDM
from partikel.recipes.flow_matching import FlowMatching
from partikel.recipes.gan import GAN
from partikel.schedules import (
    EDMSchedule,
    KarrasGrid,
    Schedule,
    SubVPSchedule,
    TimeGrid,
    UniformGrid,
    VESchedule,
    VPSchedule,
)
from partikel.solvers import SOLVERS, Deterministic
from partikel.training import AdamSettings, Phase


@dataclass(frozen=True, kw_only=True)
class PlanePoint(Recipe):
    """A point (g²/β, λ²/β) of the plane along a diffusion's own laws (DiffFlow eq. 4, framework §6).

    With exact networks every point has the same laws ρ_t = p_σ(t), and the discriminator's optimum is
    constant: it only corrects errors of the score, the grid and the prior. g2 = 2 is the score alone
    (diffusion SDE at lambda2 = 1, its ODE at 2, Stochastic Langevin Churn between and below), 0 < g2 <
    2 is Diffusion-GAN.

    Attributes:
        path: "karras" (σ is the clock), "ve" (geometric), "vp" or "sub-vp".
        sigma_max: highest noise level of "karras" and "ve".
        sigma_min: lowest noise level of the grid ("karras"), end of the path ("ve").
        rho: exponent of the grid of "karras".
        g2: g²/β >= lambda2: which network carries the weight; the laws do not depend on it.
        lambda2: λ²/β > 0: from Langevin (towards 0) over the SDE (1) to the ODE (2).
        steps: N, of training and sampling.
        solver: of both; null is Euler-Maruyama, or Euler where there is no noise.
        data_score: the run folder of a trained EDM, or of flow matching, to take s_p from; null trains
            ``score``.
        score: the recipe of s_p (its network, law, optimiser, batch), an EDM or flow matching.
        joint: train s_p together with the discriminator, instead of before it.
        objective: "adversarial" (denoising score matching, and a discriminator against particles) or
            "elbo": the drift as a whole by the bound of DiffFlow's Theorem 3, on data only; the score
            and the discriminator jointly, or one alone (g2 = 2, or joint false). Needs g2 > lambda2.
        label_dropout: share of labels hidden from the discriminator in training, which guidance needs
            (beside score.label_dropout); of conditional models. By the ELBO both networks are trained at
            once and lose the same labels: the larger share.
        discriminator: network of d(x, σ), used where g2 < 2.
        penalties: on the discriminator's gradient.
        batch: samples of a discriminator's update.
        optimizer: of the discriminator.
    """

    name: ClassVar[str] = "diffflow"
    title: ClassVar[str] = "DiffFlow"
    symbol: ClassVar[str] = "f + (β-½g²)∇d + ½g² u s_p"

    path: Literal["karras", "ve", "vp", "sub-vp"] = "karras"
    sigma_max: Level = 40.0
    sigma_min: Level = 0.002
    rho: Exponent = 7.0
    g2: NotNegative = 1.0
    lambda2: Positive = 1.0
    steps: Count = 28
    solver: Literal["euler-maruyama", "stochastic-heun", "sra1", Deterministic] | None = None
    data_score: str | None = None
    score: EDM | FlowMatching = field(default_factory=EDM)
    joint: bool = False
    objective: Literal["adversarial", "elbo"] = "adversarial"
    label_dropout: Part = 0.1
    discriminator: NetworkSettings = MLP
    penalties: tuple[GradientPenalty, ...] = ()
    batch: Size = 128
    optimizer: AdamSettings = field(default_factory=lambda: AdamSettings(beta1=0.5))

    def __post_init__(self) -> None:
        """Check what only concerns this recipe."""
        super().__post_init__()
        same_data(self, self.score)
        if self.joint and self.data_score is not None:
            raise ConfigError("a joint score is not loaded: leave out data_score, or joint.")
        if self.joint and isinstance(self.score, FlowMatching):
            raise ConfigError(
                "only an EDM's score is trained together with the discriminator: leave out joint."
            )

    @property
    def unused(self) -> frozenset[str]:
        """See :attr:`Recipe.unused`."""
        levels = {"karras": (), "ve": ("rho",)}.get(self.path, ("rho", "sigma_max"))
        critic = ("discriminator", "penalties", "label_dropout") if self.g2 == 2 else ()
        its = ("batch", "optimizer") if self.g2 == 2 and self.objective == "adversarial" else ()
        return super().unused | {*levels, *critic, *its}

    @property
    def required(self) -> Recipe | None:
        """The EDM of the score, unless it is trained jointly."""
        return None if self.joint else self.score

    @property
    def of_length(self) -> tuple[str, ...]:
        """See :attr:`Recipe.of_length`: a joint score's optimiser follows the same iterations."""
        theirs = self.score.of_length if self.joint else ()
        return (*super().of_length, *(f"score.{name}" for name in theirs))

    @property
    def flow(self) -> DiffFlow:
        """The SDE."""
        return DiffFlow.reverse(self._schedule, g2=self.g2, lambda2=self.lambda2)

    @property
    def _schedule(self) -> Schedule:
        if self.path == "karras":
            return EDMSchedule(self.sigma_max)
        if self.path == "ve":
            return VESchedule(self.sigma_max, self.sigma_min)
        return VPSchedule() if self.path == "vp" else SubVPSchedule()

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """Score and discriminator mixed by the plane's coordinates, carried by free particles."""
        flow, classes = self.flow, self.classes(dataset)
        phases: list[Phase] = []
        if self.joint:
            trained = self.score.compose(dataset)
            phases += trained.phases
            s_p = score_in(trained.model.field)
        else:
            s_p = score_in(field_of(required))
        log_ratio = None
        if self.g2 != 2:
            log_ratio = hiding_labels(
                LogRatioField(self._critic(dataset), flow.potential, flow.schedule),
                classes,
                self.label_dropout,
            )
            phases.append(Phase("discriminator", self.optimizer, self.batch))
        grid: TimeGrid = UniformGrid(flow.schedule.horizon)
        if self.path == "karras":
            grid = KarrasGrid(flow.schedule, self.sigma_min, self.rho)
        prior, drift = flow.prior(dataset.shape), flow.field(s_p, log_ratio)
        if self.objective == "elbo":
            if not (self.joint or log_ratio is not None):
                raise ConfigError("nothing is left to train by the ELBO: set joint, or g2 below 2.")
            end = sample_time(flow.schedule, None, self.sigma_min)
            drift = MaximumLikelihood(
                GenerativeSDE(flow, drift, prior, dataset.shape, end, s_p, dataset.sigma_data)
            )
            phases = [Phase("elbo", self.optimizer, self.batch)]
        model = ParticleModel(
            drift,
            prior,
            steps=self.steps,
            schedule=flow.schedule,
            grid=grid,
            diffusion=flow.diffusion,
            solver=None if self.solver is None else SOLVERS[self.solver](),
            score=AtScale(s_p, flow.schedule),
            label_weights=self.label_weights(dataset),
        )
        return System(model, tuple(phases))

    def _critic(self, dataset: Dataset) -> DiscriminatorField:
        network = build_network(
            self.discriminator,
            "logit",
            shape=dataset.shape,
            scalars=1,
            classes=self.classes(dataset),
            generator=self.init_generator("discriminator"),
        )
        if self.path in ("karras", "ve"):  # particles are of size σ; VP's are of size 1
            network = PreconditionedLogit(network, dataset.sigma_data)
        return DiscriminatorField(network, conditions=("log sigma",), penalties=self.penalties)


@dataclass(frozen=True, kw_only=True)
class DiffODEGAN(Recipe):
    """DiffODE-GAN: X_{k+1} = X_k + (η/K) ∇d_k(X_k), d_k on data noised to σ_k (DiffFlow Algorithms 2-3).

    Attributes:
        sigma_max: noise on the real samples at t = 0.
        sigma_end: at t = T; it falls geometrically between.
        steps: K.
        eta: η.
        potential: what particles ascend: "logit" (β = 1, the paper's), or a GAN's "saturating" or
            "non-saturating" loss (β = sigmoid(±d)).
        prior_std: standard deviation of the particles at t = 0.
        discriminators: "shared" (one time-conditional network) or "independent" (one for each step).
        staged: train node by node with a pool of particles (Algorithm 2 to the letter) instead of all
            nodes at once on simulated paths; for independent discriminators. An average of the weights
            (ema) starts anew at each node.
        pool: particles of the pool, where staged.
        discriminator: the network, or each of them.
        penalties: on its gradient.
        times_per_path: particles taken from each simulated path.
        label_dropout: share of labels hidden in training, which guidance needs; of conditional models.
        batch: samples of an update.
        optimizer: of the discriminators.
    """

    name: ClassVar[str] = "diffode-gan"
    title: ClassVar[str] = "DiffODE-GAN"
    symbol: ClassVar[str] = "∇d, d on p_σ(t)"

    sigma_max: Level = 2.0
    sigma_end: Level = 0.05
    steps: Count = 20
    eta: float = 20.0
    potential: Potential = "logit"
    prior_std: Level = 1.0
    discriminators: Literal["shared", "independent"] = "shared"
    staged: bool = False
    pool: Size = 8192
    discriminator: NetworkSettings = MLP
    penalties: tuple[GradientPenalty, ...] = ()
    times_per_path: Count = 1
    label_dropout: Part = 0.1
    batch: Size = 128
    optimizer: AdamSettings = field(default_factory=lambda: AdamSettings(beta1=0.5))

    @property
    def unused(self) -> frozenset[str]:
        """See :attr:`Recipe.unused`."""
        return super().unused | ({"times_per_path"} if self.staged else {"pool"})

    @property
    def of_length(self) -> tuple[str, ...]:
        """See :attr:`Recipe.of_length`: stages share the iterations."""
        return super().of_length + (("staged",) if self.staged else ())

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """∇d on annealed data, carried by free particles; one phase."""
        if self.staged and self.discriminators == "shared":
            raise ConfigError(
                "training node by node makes a shared discriminator forget: set discriminators to "
                "independent, or staged to false."
            )
        schedule = VESchedule(self.sigma_max, self.sigma_end)
        critic = DiscriminatorField(
            self._network(dataset), conditions=("t",), penalties=self.penalties
        )
        h = DiffFlow.diffode_gan(schedule, self.eta, self.potential).field(log_ratio=critic)
        h = hiding_labels(h, self.classes(dataset), self.label_dropout)
        weights = self.label_weights(dataset)
        prior = GaussianPrior(dataset.shape, std=self.prior_std)
        if self.staged:
            model: ParticleModel = StagedParticleModel(
                h,
                prior,
                pool=self.pool,
                stage_draws=max(1, self.iterations // self.steps),
                steps=self.steps,
                schedule=schedule,
                label_weights=weights,
            )
        else:
            model = ParticleModel(
                h,
                prior,
                steps=self.steps,
                schedule=schedule,
                times_per_path=self.times_per_path,
                label_weights=weights,
            )
        return System(model, (Phase("discriminator", self.optimizer, self.batch),))

    def _network(self, dataset: Dataset) -> nn.Module:
        if self.discriminators == "shared":
            return build_network(
                self.discriminator,
                "logit",
                shape=dataset.shape,
                scalars=1,
                classes=self.classes(dataset),
                generator=self.init_generator("discriminator"),
            )
        networks = [
            build_network(
                self.discriminator,
                "logit",
                shape=dataset.shape,
                classes=self.classes(dataset),
                generator=self.init_generator(f"discriminator {k}"),
            )
            for k in range(self.steps)
        ]
        return Bank(networks)


@dataclass(frozen=True, kw_only=True)
class DiffFlowGAN(GAN):
    """DiffFlow-GAN: move outputs by η β∇d, fit the generator to them (DiffFlow Algorithm 1).

    Attributes:
        eta: η, the step of the outputs.
        fit_steps: gradient steps of the fit for each move; one, with plain SGD, would be the GAN.
    """

    name: ClassVar[str] = "diffflow-gan"
    title: ClassVar[str] = "DiffFlow-GAN"

    eta: Positive = 1.0
    fit_steps: Count = 5

    @property
    def draws(self) -> int:
        """Those of the discriminator, and those that are moved."""
        return self.discriminator_steps + 1

    @property
    def _step(self) -> float:
        return self.eta

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """A GAN whose generator phase fits moved outputs."""
        gan = super().compose(dataset)
        critic, _ = gan.phases
        fit = Phase(
            "generator",
            self.generator_optimizer,
            self.batch,
            repeats=self.fit_steps,
            reuse=self.fit_steps,
            same=True,
        )
        return System(gan.model, (critic, fit))
