"""The matrix: every field of the catalogue in all carriers, on points of the plane (framework §1-2, §11).

A row of :data:`CATALOGUE` is a field; free particles carry it, a generator does, and a flow map learns
where the particles go, if their velocity is one of (x, t). Each cell is a small
composition of public parts with settings that were found on the paper's five Gaussians: lengths are those
of data about four units across. A pair that cannot work is a cell too, with the reason, and is run and
measured like all others.

Fields that learn nothing need no network where particles carry them: such cells are samplers.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from partikel.app.show import plots
from partikel.data import Dataset, DataSettings, open_dataset
from partikel.denoising import EDMDenoiser
from partikel.divergences import DivergenceLike
from partikel.errors import CheckpointError, ConfigError, NumericsError
from partikel.errors.checks import Count, checked
from partikel.extensions import Registry
from partikel.fields import (
    At,
    DeepMMDField,
    DensityRatioField,
    DiscriminatorField,
    DriftField,
    ExactScoreField,
    FDivergenceField,
    Field,
    FrechetField,
    JKOField,
    KernelScoreField,
    LogRatioField,
    Loss,
    LossValue,
    MMDField,
    Perturbed,
    ScoreField,
    SinkhornField,
    SlicedWassersteinField,
    SteinField,
    Sum,
    TrainingBatch,
    WhiteNoise,
)
from partikel.fields.particles import Particles
from partikel.files import replacing, write_json
from partikel.kernels import (
    IMQKernel,
    Kernel,
    LaplaceKernel,
    MultiRBFKernel,
    NTKKernel,
    RandomFourierFeatures,
    RBFKernel,
    RieszKernel,
)
from partikel.metrics import energy_distance, mode_statistics, sliced_wasserstein2
from partikel.models import (
    NO_MAP,
    Carrier,
    FlowMapModel,
    GeneratorModel,
    ParticleModel,
    free_particles,
    no_map,
)
from partikel.networks import MLP, Conditioning, NetworkSettings, build_network, initialise
from partikel.objectives import GradientPenalty
from partikel.priors import GaussianPrior
from partikel.recipes.flow_map import deterministic
from partikel.schedules import (
    EDMSchedule,
    KarrasGrid,
    KarrasLaw,
    LinearSchedule,
    LogNormalLaw,
    VESchedule,
)
from partikel.solvers import Heun
from partikel.streams import seeded
from partikel.targets import GaussianMixture, Target
from partikel.training import AdamSettings, Phase, Trainer
from partikel.training.ema import swapped_in
from partikel.training.engine import one_thread

CarrierName = Literal["particles", "generator", "flow map"]
CARRIERS: tuple[CarrierName, ...] = ("particles", "generator", "flow map")

SAMPLES = 1000
"""Samples of a cell; a field of samples is bound to as many of the data."""
REFERENCE = 10_000
"""Fresh points of the data that they are compared with."""
LIMIT = 0.05
"""Energy distance up to which a cell is said to have reached the data."""

WIDTH, LATENT = 128, 8
LAW = KarrasLaw(0.1, 6.0)
"""σ of fields that are asked at noised points."""


class Kit:
    """What the fields of one data set are built with.

    Args:
        dataset: points of the plane with a density.
        carrier: what will carry the field; ρ moves along t where particles do.
        seed: of initial weights.
        score: gives the trained, frozen s_p.
    """

    def __init__(
        self, dataset: Dataset, carrier: CarrierName, seed: int, score: Callable[[], ScoreField]
    ) -> None:
        assert dataset.target is not None
        self.dataset = dataset
        self.target: Target = dataset.target
        self.timed = carrier != "generator"
        self.seed = seed
        self._score = score

    @property
    def exact(self) -> ExactScoreField:
        """The exact score of the target."""
        return ExactScoreField(self.target)

    @property
    def score(self) -> ScoreField:
        """s_p, learned by denoising score matching and frozen."""
        return self._score()

    def network(
        self, role: Literal["logit", "denoiser", "generator"], scalars: int = 0, part: str = ""
    ) -> nn.Module:
        """A multilayer perceptron with weights of its own seed."""
        conditioned = {"fourier_scale": 1.0, "embedding_features": 16} if scalars else {}
        return build_network(
            NetworkSettings(
                kind="mlp",
                width=WIDTH,
                depth=3,
                activation={"logit": "leaky_relu", "denoiser": "silu", "generator": "relu"}[role],
                init="he",
                **conditioned,  # type: ignore[arg-type]
            ),
            role,
            shape=(2,),
            scalars=scalars,
            latent=LATENT if role == "generator" else None,
            generator=seeded(self.seed, "matrix", part or role),
        )

    def critic(
        self, objective: str = "non-saturating", *penalties: GradientPenalty, noised: bool = False
    ) -> DiscriminatorField:
        """A discriminator, conditional on t along particles' paths, and on σ where points are noised."""
        told = (*(("t",) if self.timed else ()), *(("log sigma",) if noised else ()))
        return DiscriminatorField(
            self.network("logit", len(told)),
            objective,
            conditions=told,  # type: ignore[arg-type]
            penalties=penalties,
        )

    def features(self, count: int = 64) -> nn.Module:
        """A multilayer perceptron of features at a noise level."""
        network = MLP(
            (2,),
            (count,),
            width=WIDTH,
            depth=3,
            activation="silu",
            conditions=Conditioning(scalars=1, embedding_features=16, fourier_scale=1.0),
        )
        return initialise(network, "he", generator=seeded(self.seed, "matrix", "features"))

    def own_score(self) -> ScoreField:
        """s_ρ, to be learned from the carrier's particles."""
        network = self.network("denoiser", 1 + self.timed, "own score")
        denoiser = EDMDenoiser(network, self.dataset.sigma_data, timed=self.timed)
        return ScoreField(denoiser, LAW, of="particles", name="own score")


@dataclass(frozen=True)
class Composition:
    """A cell to run.

    Attributes:
        model: the carrier with its field.
        phases: of its training; empty where nothing learns.
        iterations: of its training.
        ema: decay of the average of the weights that are sampled.
    """

    model: Carrier
    phases: tuple[Phase, ...] = ()
    iterations: int = 0
    ema: float = 0.995


Build = Callable[[Kit], Composition]
Made = TypeVar("Made")
MakeField = Callable[[Kit], Field]


@dataclass(frozen=True)
class Row:
    """A field of the catalogue.

    Attributes:
        name: what ``--rows`` calls it.
        formula: ∇h(x).
        paper: where it comes from.
        learns: which networks the field trains.
        particles: composes it with free particles.
        generator: composes it with a generator.
        misses: why a carrier cannot work, by carrier.
    """

    name: str
    formula: str
    paper: str
    learns: str
    particles: Build
    generator: Build
    misses: Mapping[str, str] = field(default_factory=dict)


def flow(
    make: MakeField,
    *,
    eta: float,
    steps: int,
    start: float = 1.0,
    temperature: float = 0.0,
    phases: tuple[Phase, ...] = (),
    iterations: int = 0,
) -> Build:
    """Free particles from N(0, start² I); a field that learns is trained along their paths.

    Args:
        make: the field.
        eta: η, the time that the flow runs for.
        steps: N.
        start: standard deviation of the particles at t = 0.
        temperature: τ of the noise √(2τη) dW.
        phases: of the field's training.
        iterations: of its training.
    """

    def build(kit: Kit) -> Composition:
        model = ParticleModel(
            make(kit),
            GaussianPrior((2,), std=start),
            steps=steps,
            eta=eta,
            temperature=temperature,
            times_per_path=steps // 2 if phases else 1,
        )
        return Composition(model, phases, iterations)

    return build


def trained(
    make: MakeField,
    *,
    iterations: int = 1000,
    lr: float = 2e-3,
    batch: int = 256,
    eta: float | None = None,
    phases: tuple[Phase, ...] = (),
) -> Build:
    """A generator that follows the field, after the phases of the field's own training.

    Args:
        make: the field.
        iterations: of training.
        lr: learning rate of the generator, which falls linearly.
        batch: samples of an update of the generator.
        eta: step of the outputs, where they are fitted to moved ones.
        phases: of the field's training.
    """
    adam = AdamSettings(lr=lr, beta1=0.5, beta2=0.99, decay="linear")

    def build(kit: Kit) -> Composition:
        network = kit.network("generator")
        model = GeneratorModel(make(kit), network, GaussianPrior((LATENT,)), eta=eta)
        return Composition(model, (*phases, Phase("generator", adam, batch)), iterations)

    return build


# --- the catalogue

_ADAM = AdamSettings(lr=2e-3, decay="linear")
_SLOW = AdamSettings(lr=1e-3, decay="linear")
_NOISING = KarrasLaw(0.1, 3.0)
_NOISE = math.sqrt(2 / 2e-3)  # in a step of the learning rate η, √(2/η) ξ stands for √2 dW
_JKO = 10.0  # a step that is implicit
_FAR = "a generator starts in one place, where this field does not show it the far modes"


def _row(
    name: str,
    formula: str,
    paper: str,
    make: MakeField,
    particles: Build | Mapping[str, Any],
    generator: Mapping[str, Any] | None = None,
    *,
    learns: str = "nothing",
    miss: str = "",
) -> Row:
    """A field in both carriers, each composed with options of :func:`flow` or :func:`trained`.

    Args:
        name: of the row.
        formula: ∇h(x).
        paper: where it comes from.
        make: the field, which knows its carrier from the kit.
        particles: options of free particles, or what composes them.
        generator: options of a generator.
        learns: which networks the field trains.
        miss: why a generator cannot follow it.
    """
    free = flow(make, **particles) if isinstance(particles, Mapping) else particles
    carried = trained(make, **(generator or {}))
    return Row(name, formula, paper, learns, free, carried, {"generator": miss} if miss else {})


def _adversarial(
    name: str,
    formula: str,
    paper: str,
    objective: str,
    eta: float,
    *penalties: GradientPenalty,
) -> Row:
    """A discriminator's potential."""
    free = Phase("discriminator", AdamSettings(lr=2e-3, beta1=0.5, decay="linear"), 512)
    return _row(
        name,
        formula,
        paper,
        lambda kit: kit.critic(objective, *penalties),
        {"eta": eta, "steps": 16, "phases": (free,), "iterations": 1200},
        {"iterations": 2500, "lr": 5e-4, "batch": 128, "phases": (_critic(128),)},
        learns="discriminator",
    )


def _critic(batch: int) -> Phase:
    adam = AdamSettings(lr=1e-3, beta1=0.5, beta2=0.99, decay="linear")
    return Phase("discriminator", adam, batch)


def _divergence(
    name: str,
    formula: str,
    eta: float,
    clip: float,
    divergence: DivergenceLike | None = None,
    paper: str = "GPM Table 2",
) -> Row:
    """An f-divergence over kernel densities."""

    def at(bandwidth: float) -> Field:
        laws = KernelScoreField(bandwidth, "data"), KernelScoreField(bandwidth)
        return FDivergenceField(DensityRatioField(*laws), divergence or name, clip=clip)

    def make(kit: Kit) -> Field:
        return at(0.4) if kit.timed else 4.0 * at(2.0) + at(1.0) + 0.25 * at(0.5)

    options = {"eta": eta, "steps": 60, "start": 2.0}, {"iterations": 500}
    return _row(f"{name}-kernels", formula, paper, make, *options)


def _mmd(
    name: str, formula: str, kernel: Kernel, eta: float, steps: int, iterations: int = 1000
) -> Row:
    """½ MMD² of a kernel."""
    options = {"eta": eta, "steps": steps}, {"iterations": iterations}
    return _row(f"mmd-{name}", formula, "Arbel et al. 2019", lambda kit: MMDField(kernel), *options)


def _stein_levels(kit: Kit) -> Field:
    def at(sigma: float) -> Field:
        field = SteinField(kit.exact, RBFKernel(max(sigma, 0.5)))
        return Perturbed(field, KarrasLaw(sigma, 1.01 * sigma), power=0.5)

    return Sum(tuple(at(sigma) for sigma in (0.05, 0.3, 1.0, 2.0)))


def _difference(kit: Kit) -> Field:
    return Perturbed(kit.score - kit.own_score(), LAW)


def _distilled(kit: Kit) -> Field:
    gradient = kit.score - kit.own_score()
    critic = kit.critic(noised=True)
    return Perturbed(FDivergenceField(critic, "jensen-shannon", gradient=gradient, clip=3), LAW)


def _noised_critic(kit: Kit) -> Field:
    return Perturbed(kit.critic(noised=True), KarrasLaw(0.1, 2.0))


def _noisy_mmd(kit: Kit) -> Field:
    noise = (lambda t: 2 * (1 - t)) if kit.timed else 1.0
    return MMDField(RBFKernel(1.0), noise=noise)


def _to_density(kit: Kit) -> Field:
    return FDivergenceField(DensityRatioField(kit.target, KernelScoreField(0.2)), "kl")


def _deep_mmd(kit: Kit) -> Field:
    """A generator asks about all levels at once; large features then repel its outputs."""
    if kit.timed:
        return DeepMMDField(kit.features(), _NOISING)
    levels = (0.1, 0.3, 1.0, 2.0, 3.0)
    return DeepMMDField(kit.features(), _NOISING, levels=levels, l2_penalty=0.0)


def _deep_mmd_flow(kit: Kit) -> Composition:
    model = ParticleModel(
        _deep_mmd(kit),
        GaussianPrior((2,), std=_NOISING.sigma_max),
        steps=60,
        eta=30,
        schedule=VESchedule(_NOISING.sigma_max, _NOISING.sigma_min),
    )
    return Composition(model, (Phase("features", _ADAM, 512),), 1000)


class _Blurred(ExactScoreField):
    """A score that is wrong: of the data with noise of standard deviation ``BLUR``, for no noise."""

    BLUR = 1.0

    def forward(self, x: Tensor, at: At) -> Tensor:
        assert at.sigma is not None
        return self.target.score(x, (at.sigma.square() + self.BLUR**2).sqrt())


class _AgainstSamples(Field):
    """∇log(p_σ/q_σ), learned from noised data and noised samples of a model, drawn once."""

    def __init__(self, ratio: LogRatioField, samples: Tensor) -> None:
        super().__init__()
        self.ratio = ratio
        self.samples = samples

    def forward(self, x: Tensor, at: At) -> Tensor:
        return self.ratio(x, at)

    def own_losses(self) -> tuple[Loss, ...]:
        (loss,) = Perturbed(self.ratio, KarrasLaw(0.02, 40.0, 7.0)).losses()

        def compute(batch: TrainingBatch) -> LossValue:
            generator = batch.streams.latent
            rows = torch.randint(len(self.samples), (batch.size,), generator=generator)
            drawn = self.samples[rows]
            particles = Particles(drawn, drawn.new_ones(len(drawn)))
            return loss.compute(replace(batch, particles=particles))

        return (replace(loss, needs=frozenset({"real"}), compute=compute, adds_noise=True),)


def _guided(kit: Kit) -> Field:
    score = _Blurred(kit.target)
    drawn = _diffused(score).sample(
        10 * SAMPLES, generator=seeded(kit.seed, "matrix", "wrong samples")
    )
    critic = DiscriminatorField(kit.network("logit", 1), conditions=("log sigma",))
    return score + _AgainstSamples(LogRatioField(critic), drawn)


def _sinkhorn(iterations: int, *, halves: bool = False) -> Field:
    return SinkhornField(0.5, iterations=iterations, tolerance=1e-2, halves=halves)


def _frechet(kit: Kit) -> Field:
    """Of a batch's moments alone a generator would see more noise than data."""
    return FrechetField(RandomFourierFeatures((2,), 16, 1.5), memory=0.0 if kit.timed else 0.9)


def _own(repeats: int) -> Phase:
    return Phase("own score", _ADAM, 256, repeats)


def _le_cam(u: Tensor) -> Tensor:
    return (u - 1).square() / (u + 1)


def _diffused(score: Field) -> ParticleModel:
    """The probability flow of a score."""
    schedule = EDMSchedule(40.0)
    return ParticleModel(
        schedule.half_rate * score,
        GaussianPrior((2,), std=40.0),
        steps=18,
        schedule=schedule,
        grid=KarrasGrid(schedule),
        solver=Heun(),
        score=score,
    )


_GUIDE, _CRITIC = (Phase("discriminator", _ADAM, batch) for batch in (512, 256))
_R1 = GradientPenalty(0.05, at="real")
_STRONG = GradientPenalty(1.0, at="real")

_ROWS = (
    _adversarial("non-saturating", "∇ log sigmoid d", "Goodfellow 2014", "non-saturating", 20, _R1),
    _adversarial("saturating", "∇ softplus d", "Goodfellow 2014", "saturating", 15, _R1),
    _adversarial("least-squares", "-∇ (d - 1)²", "Mao et al. 2017", "lsgan", 15, _STRONG),
    _adversarial("hinge", "∇d, hinge loss", "Lim & Ye 2017", "hinge", 8, GradientPenalty(0.05)),
    _adversarial(
        "ipm", "∇d, E_ρ d - E_p d + penalty", "Arjovsky 2017", "ipm", 8, GradientPenalty(1.0)
    ),
    _adversarial("relativistic", "∇d, paired", "Huang et al. 2024", "relativistic", 15, _R1),
    _adversarial("kl-critic", "∇d = ∇ log r", "GPM Table 2", "logit", 5, _R1),
    _row(
        *("noised-critic", "E σ ∇ log sigmoid d(x + σε, σ)", "GPM §B.1.2"),
        _noised_critic,
        {"eta": 20, "steps": 16, "phases": (_GUIDE,), "iterations": 1200},
        {"iterations": 2000, "lr": 5e-4, "phases": (_critic(256),)},
        learns="discriminator",
    ),
    _divergence("kl", "∇ log r", 5, 3),
    _divergence("reverse-kl", "r ∇ log r", 10, 3),
    _divergence("jensen-shannon", "r/(1+r) ∇ log r", 10, 3),
    _divergence("non-saturating", "1/(1+r) ∇ log r", 10, 3),
    _divergence("pearson", "2/r ∇ log r", 5, 1),
    _divergence("hellinger", "√r/2 ∇ log r", 10, 3),
    _divergence("jeffreys", "(1+r) ∇ log r", 4, 1),
    _divergence("le-cam", "h(r) ∇ log r, f = (u-1)²/(u+1)", 10, 3, _le_cam, "f by autodiff"),
    _row(
        *("kl-density", "s_p - ∇ log ρ̂", "GPM eqs. 2-3"),
        _to_density,
        {"eta": 5, "steps": 100, "start": 2.0},
        {"iterations": 600},
        miss=_FAR,
    ),
    _row(
        *("score", "|σ'|σ s_p(x, σ)", "Karras et al. 2022"),
        lambda kit: Perturbed(kit.score, LAW),
        lambda kit: Composition(_diffused(kit.score)),
        {"iterations": 600},
        learns="data score",
        miss="nothing repels: without s_ρ the outputs crowd where p is high",
    ),
    _row(
        *("guidance", "|σ'|σ (s + ∇ log p_σ/q_σ)", "Kim et al. 2023"),
        lambda kit: Perturbed(_guided(kit), LAW),
        lambda kit: Composition(_diffused(_guided(kit)), (_GUIDE,), 2000),
        {"iterations": 600, "phases": (_GUIDE,)},
        learns="discriminator",
        miss="nothing repels: without s_ρ the outputs crowd in one place",
    ),
    _row(
        *("score-difference", "E σ (s_p - s_ρ)(x + σε)", "GPM Algorithm 1"),
        _difference,
        {"eta": 10, "steps": 32, "phases": (_own(1),), "iterations": 2000},
        {"iterations": 1500, "lr": 1e-3, "phases": (_own(3),)},
        learns="data score, own score",
    ),
    _row(
        *("f-distill", "E σ r/(1+r) (s_p - s_ρ)(x + σε)", "Xu et al. 2025"),
        _distilled,
        {"eta": 20, "steps": 16, "phases": (_CRITIC, _own(1)), "iterations": 1000},
        {"iterations": 1200, "lr": 1e-3, "phases": (replace(_CRITIC, repeats=2), _own(3))},
        learns="data score, own score, discriminator",
    ),
    _row(
        *("langevin", "s_p + √2 noise", "GPM eq. 21"),
        lambda kit: kit.exact if kit.timed else kit.exact + WhiteNoise(_NOISE),
        {"eta": 4, "steps": 400, "start": 2.0, "temperature": 1.0},
        {"iterations": 600},
        miss="noise averages out in the weights: what is left climbs to the modes",
    ),
    _row(
        *("svgd", "E_y [k s_p(y) + ∇_y k]", "Liu & Wang 2016"),
        lambda kit: SteinField(kit.exact, RBFKernel(0.5)),
        {"eta": 50, "steps": 200, "start": 2.0},
        {"iterations": 600},
        miss=_FAR,
    ),
    _row(
        *("svgd-levels", "Σ_σ E [k s_p(y, σ) + ∇_y k]", "Liu & Wang 2016"),
        _stein_levels,
        {"eta": 20, "steps": 150, "start": 2.0},
        {"iterations": 800},
    ),
    _mmd("rbf", "k = exp(-d²/2h²), h the median", RBFKernel(), 3000, 600, 5000),
    _mmd("multi-rbf", "k = mean of five widths", MultiRBFKernel(1.0), 150, 100),
    _mmd("laplace", "k = exp(-d/2)", LaplaceKernel(2.0), 150, 150),
    _mmd("imq", "k = (1 + d²)^(-1/2)", IMQKernel(1.0), 150, 150),
    _mmd("energy", "k = -d", RieszKernel(), 60, 120),
    _row(
        *("mmd-ntk", "k = ⟨∂_w f(x), ∂_w f(y)⟩", "Jacot et al. 2018"),
        lambda kit: MMDField(NTKKernel(kit.network("logit", part="kernel"))),
        {"eta": 0.5, "steps": 300},
        miss="two smooth kernels, this one and the generator's own: what tells points within a mode "
        "apart does not get through (0.07 after 2,500 iterations, too)",
    ),
    _row(
        *("mmd-noise", "k = exp(-d²/2), at x + βξ", "Arbel et al. 2019, §4.1"),
        _noisy_mmd,
        {"eta": 150, "steps": 150, "start": 2.0},
    ),
    _row(
        *("mmd-entropy", "k = -d, and -τ ∇ log ρ̂", "GPM Table 2"),
        lambda kit: MMDField(RieszKernel()) - 0.02 * KernelScoreField(0.2),
        {"eta": 60, "steps": 120},
    ),
    _row(
        *("dmmd", "k = ⟨φ(x, σ), φ(y, σ)⟩", "Galashov et al. 2025"),
        _deep_mmd,
        _deep_mmd_flow,
        {"iterations": 1500, "lr": 1e-3, "phases": (Phase("features", _SLOW, 128),)},
        learns="features",
    ),
    _row(
        *("sliced", "E_θ θ (T_θ⟨θ,x⟩ - ⟨θ,x⟩)", "Bonneel et al. 2015"),
        lambda kit: SlicedWassersteinField(32),
        {"eta": 30, "steps": 60},
    ),
    _row(
        *("sinkhorn", "T_ρp(x) - T_ρρ(x)", "Feydy et al. 2019"),
        lambda kit: _sinkhorn(5 if kit.timed else 3),
        {"eta": 10, "steps": 12},
        {"iterations": 600},
    ),
    _row(
        *("w-flow", "T_qp(x) - T_qq'(x)", "Han et al. 2026"),
        lambda kit: _sinkhorn(5, halves=True),
        {"eta": 10, "steps": 12},
        {"iterations": 600, "eta": 1.0},
    ),
    _row(
        *("drifting", "V_p⁺(x) - V_ρ⁻(x)", "Deng et al. 2026"),
        lambda kit: DriftField(0.5),
        {"eta": 30, "steps": 40},
        {"eta": 1.0},
    ),
    _row(
        *("frechet", "Jᵀ 2 [(m - m_ρ) + (T - I)(φ - m_ρ)]", "FD loss, 2026"),
        _frechet,
        {"eta": 100, "steps": 80},
    ),
    _row(
        *("jko", "(x' - x)/η, x' = x + η V_ρ'(x')", "Jordan et al. 1998"),
        lambda kit: JKOField(MMDField(MultiRBFKernel(1.0)), _JKO),
        {"eta": 15 * _JKO, "steps": 15},
        {"eta": _JKO, "iterations": 500},
    ),
)


def _foreign_row(name: str, found: Any) -> Row:
    """What another package has under the name of a field: a row, or what makes the field of a kit."""
    if isinstance(found, Row) and found.name == name:
        return found
    if isinstance(found, Row) or not callable(found):
        raise TypeError(
            f"it must be a function that makes a field of a Kit, or a Row called '{name}'"
        )

    def carried(by: Callable[..., Build], iterations: int, **options: Any) -> Build:
        def build(kit: Kit) -> Composition:
            made = found(kit)
            if not isinstance(made, Field):
                raise ConfigError(
                    f"'{name}' made a {type(made).__name__} of the kit: return a Field."
                )
            phases = tuple(Phase(loss.name, _ADAM, 256) for loss in made.losses())
            length = iterations if phases or by is trained else 0
            return by(lambda kit: made, phases=phases, iterations=length, **options)(kit)

        return build

    free = carried(flow, 1200, eta=5.0, steps=60)
    return Row(name, name, "of another package", "its own", free, carried(trained, 2500))


CATALOGUE: Registry[Row] = Registry(
    "field", "fields", {row.name: row for row in _ROWS}, _foreign_row
)
"""Every row by its name."""


# --- running


@dataclass(frozen=True)
class Cell:
    """A field in a carrier, measured.

    Attributes:
        row: of :data:`CATALOGUE`.
        carrier: of :data:`CARRIERS`.
        seed: of initial weights and all random draws.
        energy: energy distance to the data; None where there are no finite samples.
        sliced_w2: sliced Wasserstein-2 distance.
        modes: covered, where the target is a mixture.
        cpu_seconds: of training and sampling, without those of s_p.
        score_seconds: of training s_p, which rows share.
        iterations: of training that were run.
        stopped: whether the cap made its training shorter than the catalogue's.
        reason: why the pair cannot be; where a flow has no map, in a word (:func:`partikel.models.no_map`).
    """

    row: str
    carrier: CarrierName
    seed: int
    energy: float | None
    sliced_w2: float | None
    modes: int | None
    cpu_seconds: float
    score_seconds: float
    iterations: int
    stopped: bool
    reason: str | None

    @property
    def has_no_map(self) -> bool:
        """Whether its flow has none, so that nothing was run."""
        return self.reason in NO_MAP

    def reaches(self, modes: int | None) -> bool:
        """Whether it covers that many modes with an energy of at most :data:`LIMIT`."""
        return self.energy is not None and self.energy <= LIMIT and self.modes == modes


@checked
def run_matrix(
    out: Path,
    *,
    target: str = "gaussians",
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    cap: Count | None = None,
    carriers: Sequence[CarrierName] = CARRIERS,
    console: Console | None = None,
) -> list[Cell]:
    """Run the cells that are not in ``matrix.json`` yet, and draw all of them.

    Args:
        out: folder for ``matrix.json``, ``matrix.png`` and the cells' samples.
        target: name of two-dimensional data with a density.
        rows: names in :data:`CATALOGUE`; all of them unless given.
        seeds: each cell is run with each of them.
        cap: iterations of any training, at most; the catalogue's own unless given. Learning rates
            then fall over so many.
        carriers: the columns.
        console: where progress is shown.

    Returns:
        The chosen cells, in the catalogue's order.

    Raises:
        ConfigError: for an unknown row, data without a density in the plane, no seeds, or a folder with
            a matrix of another target or cap.
        CheckpointError: if ``matrix.json`` cannot be read.
    """
    chosen = _chosen(rows)
    dataset = _opened(target)
    if not seeds:
        raise ConfigError("a matrix needs a seed: give one or more, such as [0].")
    protocol = {
        "data": dataset.name,
        "iterations": "the catalogue's" if cap is None else f"at most {cap}",
        "samples": SAMPLES,
        "reference": REFERENCE,
        "limit": LIMIT,
    }
    folder = _Folder(out, protocol)
    with one_thread():
        for seed in seeds:
            scores = _Scores(dataset, seed, cap)
            for row in chosen:
                for carrier in carriers:
                    if folder.done(row.name, carrier, seed):
                        continue
                    cell, samples = _run(row, carrier, dataset, seed, cap, scores)
                    folder.add(cell, samples)
                    if console is not None:
                        console.print(_line(cell), highlight=False)
    cells = [folder.cells[r.name, c, seed] for r in chosen for c in carriers for seed in seeds]
    shown = [cell for cell in cells if cell.seed == seeds[0]]
    data = dataset.draw(SAMPLES, generator=seeded(0, "matrix", "picture")).x
    clouds = {(c.row, c.carrier): folder.samples(c) for c in shown}
    figure = matrix_figure(
        shown, clouds, data, modes_of(dataset.target), _caption(protocol, seeds, carriers)
    )
    plots.save_figure(figure, out / "matrix.png", dpi=110)
    return cells


def modes_of(target: Target | None) -> int | None:
    """Number of components of a mixture; None of another law."""
    return len(target.weights) if isinstance(target, GaussianMixture) else None


def pairs(cells: Sequence[Cell]) -> dict[tuple[str, CarrierName], list[Cell]]:
    """The cells of each field and carrier, seed by seed."""
    found: dict[tuple[str, CarrierName], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.row, cell.carrier), []).append(cell)
    return found


HEADER = ["field", "carrier", "energy", "SW2", "modes", "CPU s", "note"]
"""Of :func:`table`."""


def table(cells: Sequence[Cell], target: str) -> list[list[str]]:
    """A line for each pair: the worst figures of its seeds, their mean CPU seconds, and a note.

    The note says why a flow has no map, "cannot" where the catalogue or the run has a reason
    (:func:`reasons`), "misses" where a seed leaves out a mode or ends above :data:`LIMIT`, "capped" where
    the cap shortened a training.

    Args:
        cells: of one target.
        target: its name.
    """
    modes, lines = modes_of(_opened(target).target), []
    for (name, carrier), those in pairs(cells).items():
        notes = ["capped"] if any(cell.stopped for cell in those) else []
        if any(cell.has_no_map for cell in those):
            notes = [f"no map: {those[0].reason}"]
        elif not all(cell.reaches(modes) for cell in those):
            notes.insert(0, "cannot" if any(cell.reason for cell in those) else "misses")
        lines.append(
            [
                name,
                carrier,
                _worst([cell.energy for cell in those], max, "{:.3f}"),
                _worst([cell.sliced_w2 for cell in those], max, "{:.2f}"),
                _worst([cell.modes for cell in those], min, "{}"),
                f"{sum(cell.cpu_seconds for cell in those) / len(those):.0f}",
                ", ".join(notes),
            ]
        )
    return lines


def reasons(cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    """Why pairs that were run cannot be, by row and carrier."""
    said = (cell for cell in cells if cell.reason and not cell.has_no_map)
    return {(cell.row, cell.carrier): str(cell.reason) for cell in said}


def _worst(values: Sequence[float | None], worst: Callable[..., float], shape: str) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return shape.format(worst(known)).replace("-0.000", "0.000")


def _line(cell: Cell) -> str:
    energy = "-" if cell.energy is None else f"{cell.energy:.4f}"
    modes = "" if cell.modes is None else f", {cell.modes} modes"
    stopped = ", capped" if cell.stopped else ""
    return (
        f"{cell.row}, {cell.carrier}, seed {cell.seed}: energy {energy}{modes}, "
        f"{cell.cpu_seconds:.1f} s{stopped}"
    )


def _chosen(rows: Sequence[str] | None) -> list[Row]:
    for name in rows or ():
        CATALOGUE.find(name)
    ours = [row for row in CATALOGUE.values() if rows is None or row.name in rows]
    return ours + [
        CATALOGUE.find(name) for name in dict.fromkeys(rows or ()) if name not in CATALOGUE
    ]


def _opened(name: str) -> Dataset:
    dataset = open_dataset(DataSettings(name))
    if dataset.shape != (2,) or dataset.target is None:
        raise ConfigError(
            f"the matrix needs points of the plane with a known density, which '{name}' are not: "
            "choose 'gaussians', 'unequal', 'ring' or 'grid25'."
        )
    return dataset


class _Folder:
    """``matrix.json`` and the samples of its cells, written cell by cell."""

    def __init__(self, out: Path, protocol: dict[str, Any]) -> None:
        self.out = out
        self.protocol = protocol
        self.cells: dict[tuple[str, str, int], Cell] = {}
        path = out / "matrix.json"
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            cells = [Cell(**each) for each in found["cells"]]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is not a matrix that can be read: remove it, or choose another folder."
            ) from error
        if found["protocol"] != protocol:
            raise ConfigError(
                f"{path} is a matrix of other settings ({found['protocol']}): give the same target "
                "and cap to continue it, or choose another folder."
            )
        self.cells = {(cell.row, cell.carrier, cell.seed): cell for cell in cells}

    def done(self, row: str, carrier: str, seed: int) -> bool:
        """Whether a cell was run, and its samples are there."""
        cell = self.cells.get((row, carrier, seed))
        return cell is not None and (cell.energy is None or self._path(cell).exists())

    def add(self, cell: Cell, samples: Tensor | None) -> None:
        """Keep a cell: its samples, then its line."""
        if samples is not None:
            with replacing(self._path(cell)) as part:
                np.save(part, samples.numpy().astype(np.float32))
        self.cells[cell.row, cell.carrier, cell.seed] = cell
        cells = [asdict(each) for each in self.cells.values()]
        write_json(self.out / "matrix.json", {"protocol": self.protocol, "cells": cells})

    def samples(self, cell: Cell) -> Tensor | None:
        """What was kept."""
        return None if cell.energy is None else torch.from_numpy(np.load(self._path(cell)))

    def _path(self, cell: Cell) -> Path:
        return self.out / "samples" / f"{cell.row}-{cell.carrier}-{cell.seed}.npy"


@dataclass
class _Scores:
    """s_p of a data set and seed, trained when it is first asked for."""

    dataset: Dataset
    seed: int
    cap: int | None
    seconds: float = 0.0
    asked: bool = False
    _field: ScoreField | None = None

    def __call__(self) -> ScoreField:
        self.asked = True
        if self._field is None:
            kit = Kit(self.dataset, "generator", self.seed, self)
            denoiser = EDMDenoiser(kit.network("denoiser", 1), self.dataset.sigma_data)
            score = ScoreField(denoiser, LogNormalLaw(-0.4, 1.2))
            model = ParticleModel(score, GaussianPrior((2,)), steps=1)
            composition = Composition(model, (Phase("score", _ADAM, 256),), 4000, 0.999)
            trainer = _train(composition, self.dataset, self.seed, self.cap)
            with swapped_in(model.sampled, trainer.average):
                self._field = copy.deepcopy(score)
            self._field.freeze()
            self.seconds = trainer.cpu_seconds
        return self._field


def _run(
    row: Row, carrier: CarrierName, dataset: Dataset, seed: int, cap: int | None, scores: _Scores
) -> tuple[Cell, Tensor | None]:
    """Train, sample and measure one cell."""
    scores.asked = False
    kit = Kit(dataset, carrier, seed, scores)
    composition = (row.generator if carrier == "generator" else row.particles)(kit)
    of_map = carrier == "flow map"
    samples, iterations, reason = None, 0, row.misses.get(carrier)
    if of_map and (why := no_map(free_particles(composition.model, "no flow"))) is not None:
        return Cell(row.name, carrier, seed, None, None, None, 0.0, 0.0, 0, False, why), None
    planned = composition.iterations + of_map * _MAP_ITERATIONS

    def drawn(model: Carrier) -> Tensor:
        return _sampled(model, dataset, seed)

    def mapped(flow: Carrier) -> tuple[Tensor, int]:
        return _made(_map_of(flow, kit), dataset, seed, cap, drawn)

    started = time.process_time()
    try:
        if of_map:
            (samples, more), iterations = _made(composition, dataset, seed, cap, mapped)
            iterations += more
        else:
            samples, iterations = _made(composition, dataset, seed, cap, drawn)
        if not samples.isfinite().all():
            raise NumericsError("particles left the finite numbers.")
    except NumericsError as error:
        samples, reason = None, str(error)
    seconds = time.process_time() - started
    figures: dict[str, Any] = {"energy": None, "sliced_w2": None, "modes": None}
    if samples is not None:
        figures |= _measured(samples, dataset)
    cell = Cell(
        row.name,
        carrier,
        seed,
        **figures,
        cpu_seconds=round(seconds, 2),
        score_seconds=round(scores.seconds, 2) if scores.asked else 0.0,
        iterations=iterations,
        stopped=iterations < planned,
        reason=reason,
    )
    return cell, samples


_MAP_ITERATIONS = 4000
"""Of the training of a flow map."""


def _map_of(flow: Carrier, kit: Kit) -> Composition:
    """The map of a trained flow: of noised data along the linear path, or of its own steps."""
    taught = deterministic(flow, 256)
    if taught.follows_path:
        taught = taught.along(LinearSchedule())
        taught.field.freeze()
    model = FlowMapModel(taught, kit.network("denoiser", 2, "map"))
    phase = Phase("map", AdamSettings(lr=2e-3, decay="cosine"), 256)
    return Composition(model, (phase,), _MAP_ITERATIONS, 0.998)


def _made(
    of: Composition, dataset: Dataset, seed: int, cap: int | None, make: Callable[[Carrier], Made]
) -> tuple[Made, int]:
    """What is made of a trained model with its averaged weights, and how many iterations that took."""
    if not of.phases:
        return make(of.model.eval()), 0
    trainer = _train(of, dataset, seed, cap)
    with swapped_in(of.model.sampled, trainer.average):
        return make(of.model), trainer.step


def _train(of: Composition, dataset: Dataset, seed: int, cap: int | None) -> Trainer:
    """Train until the end, or the cap."""
    iterations = of.iterations if cap is None else min(cap, of.iterations)
    trainer = Trainer(of.model, dataset, of.phases, iterations=iterations, seed=seed, ema=of.ema)
    deque(trainer.run(), maxlen=0)
    return trainer


def _sampled(model: Carrier, dataset: Dataset, seed: int) -> Tensor:
    generator = seeded(seed, "matrix", "samples")
    real = dataset.draw(SAMPLES, generator=seeded(seed, "matrix", "real")).x
    return model.sample(SAMPLES, generator=generator, real=real)


def _measured(samples: Tensor, dataset: Dataset) -> dict[str, Any]:
    reference = dataset.draw(REFERENCE, generator=seeded(0, "matrix", "reference")).x
    figures: dict[str, Any] = {
        "energy": round(energy_distance(samples, reference), 5),
        "sliced_w2": round(sliced_wasserstein2(samples, reference), 4),
    }
    target = dataset.target
    if isinstance(target, GaussianMixture):
        modes = mode_statistics(samples, target.means, target.stds, target.weights)
        figures["modes"] = modes.covered
    return figures


# --- the picture

_SIDE, _HEAD, _FOOT, _GAP = 1.42, 0.42, 0.2, 0.22
"""Inches of a panel, over and under it, and between pairs."""
_ACROSS = 3
"""Fields in a line."""


def matrix_figure(
    cells: Sequence[Cell],
    samples: Mapping[tuple[str, str], Tensor | None],
    data: Tensor,
    modes: int | None,
    caption: str,
) -> Figure:
    """Small scatters, each field's carriers side by side, with what was measured below.

    Args:
        cells: one for each row and carrier.
        samples: (n, 2) by row and carrier; None where there are none.
        data: (m, 2).
        modes: of the target.
        caption: under the picture.
    """
    names = list(dict.fromkeys(cell.row for cell in cells))
    across = min(_ACROSS, len(names))
    lines = math.ceil(len(names) / across)
    carriers = sorted({cell.carrier for cell in cells}, key=CARRIERS.index)
    wide, high = len(carriers) * _SIDE + _GAP, _HEAD + _SIDE + _FOOT
    foot = 0.5
    figure = plots.new_figure(across * wide + _GAP / 2, lines * high + foot)
    view = plots.view_of(data)
    for cell in cells:
        line, column = divmod(names.index(cell.row), across)
        left = _GAP / 2 + column * wide + carriers.index(cell.carrier) * _SIDE
        bottom = foot + (lines - 1 - line) * high + _FOOT
        cloud, axes = (
            samples[cell.row, cell.carrier],
            plots.add_panel(figure, (left, bottom), _SIDE),
        )
        plots.frame_axes(axes, view)
        plots.draw_clouds(axes, data[:0] if cloud is None else cloud, data, _SIDE)
        if cloud is not None:
            plots.note_outside(axes, cloud, view)
        at, row, above = left + plots.MARGIN, CATALOGUE.find(cell.row), bottom + _SIDE
        if cell.carrier == carriers[0]:
            end = left + len(carriers) * _SIDE - plots.MARGIN
            plots.write_at(figure, at, above + 0.17, row.name, 9.5, plots.INK)
            plots.write_at(figure, at, above + 0.02, row.formula, 7)
            plots.write_at(figure, end, above + 0.17, row.paper, 6, ha="right")
        color = plots.MUTED if cell.reaches(modes) or cell.has_no_map else plots.SERIES[0]
        plots.write_at(figure, at, bottom - 0.07, _measures(cell), 7, color, va="center")
    plots.write_at(figure, _GAP, 0.12, caption, 7.5)
    return figure


def _measures(cell: Cell) -> str:
    if cell.has_no_map:
        return f"no map: {cell.reason}"
    seconds = f"{cell.cpu_seconds:.0f} s" + ("*" if cell.stopped else "")
    if cell.energy is None:
        return f"no samples · {seconds}"
    energy = f"{cell.energy:.3f}" if cell.energy < 100 else f"{cell.energy:.0e}"
    modes = "" if cell.modes is None else f"{cell.modes} modes · "
    return f"{energy.replace('-0.000', '0.000').replace('-', '−')} · {modes}{seconds}"


_CARRIED = {
    "particles": "free particles",
    "generator": "a generator",
    "flow map": "the map of the particles' flow",
}


def _caption(
    protocol: Mapping[str, Any], seeds: Sequence[int], carriers: Sequence[CarrierName]
) -> str:
    by = ", ".join(_CARRIED[each] for each in carriers)
    return (
        f"Each field carried by (from the left): {by}. Below: energy distance, modes covered, CPU seconds.\n"
        f"Data: {protocol['data']}; {SAMPLES} samples, seed {seeds[0]}; "
        f"iterations: {protocol['iterations']} (*: fewer than the catalogue's). Red: a mode is missing, or "
        f"energy > {LIMIT:g}."
    )
