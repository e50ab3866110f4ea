"""The score difference in both carriers: Score GAN (GPM Algorithm 1) and its particle flow.

The field is h(x̃, σ) = α s_p(x̃, σ) - β_own s_ρ(x̃, σ) at x̃ = x + σε, times σ^power, with s_p frozen
from a diffusion model and s_ρ learned online from the carrier's own particles.

* :class:`ScoreGAN` carries it with a generator. ρ moves with training only, so that its own denoiser
  is conditioned on σ alone.
* :class:`ScoreFlow` carries the same field with free particles. ρ_t also moves along the path, so
  that its own denoiser is conditioned on (σ, t) and is trained by denoising score matching on
  particles of the simulated path at random times, as a Discriminator Flow trains its discriminator.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

from partikel.data import Dataset
from partikel.denoising import EDMDenoiser, Weighting
from partikel.denoising.diffusers import load_diffusers
from partikel.errors import ConfigError
from partikel.errors.checks import Count, Exponent, Level, NotNegative, Part, Share, Size, Width
from partikel.fields import Field, Guided, Perturbed, ScoreField, WhiteNoise
from partikel.models import Carrier, GeneratorModel, ParticleModel
from partikel.networks import NetworkSettings, build_network
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
from partikel.schedules import KarrasLaw
from partikel.training import AdamSettings, Phase

DIFFUSERS = "diffusers:"
"""What a data score's name begins with where it is a folder of diffusers."""


@dataclass(frozen=True, kw_only=True)
class ScoreDifference(Recipe):
    """What Score GAN and Score Flow share.

    Attributes:
        data_score: the run folder of a trained EDM, or of flow matching, to take s_p from, or
            "diffusers:FOLDER" for a UNet2DModel and its scheduler; null trains ``score`` first.
        score: the recipe of s_p, an EDM or flow matching.
        alpha: α, weight of the data's score.
        guidance: w of the data's score in training, of conditional models: s_p(x, ∅) +
            w (s_p(x, c) - s_p(x, ∅)), so that samples need no guidance; 1 is the label's score.
        beta_own: β_own, weight of the own score; (α, β_own) = (1, 1) is NCSN's flow, (2, 1) EDM's.
        sigma_min: lowest σ of the law (GPM eq. 28).
        sigma_max: highest σ.
        rho: exponent of the law.
        power: a level weighs σ^power in the field; 1 is the paper's (GPM §B.1.2), 2 gives coarse
            levels, which settle how often a kind of sample comes, about as much say as fine ones.
        own_score: network of the own denoiser; null starts it as a copy of the data's denoiser, which
            is near the score of any generator worth training (Yin et al. 2024, DMD).
        own_sigma_data: its σ_d; null takes the data's standard deviation (a copy has the original's).
        weighting: of the own denoising score matching, "none" (the paper's) or "edm".
        score_steps: K, updates of the own score in an iteration.
        batch: samples of an update.
        score_optimizer: Adam of the own score.
    """

    data_score: str | None = None
    score: EDM | FlowMatching = field(default_factory=EDM)
    alpha: float = 1.0
    guidance: float = 1.0
    beta_own: NotNegative = 1.0
    sigma_min: Level = 0.1
    sigma_max: Level = 10.0
    rho: Exponent = 3.0
    power: NotNegative = 1.0
    own_score: NetworkSettings | None = MLP
    own_sigma_data: Level | None = None
    weighting: Weighting = "none"
    score_steps: Count = 10
    batch: Size = 128
    score_optimizer: AdamSettings = field(default_factory=AdamSettings)

    def __post_init__(self) -> None:
        """Check that both models are of the same data, and that guidance has what it needs."""
        super().__post_init__()
        if self.foreign is None:
            same_data(self, self.score)
        if self.own_score is None and self.own_sigma_data is not None:
            raise ConfigError(
                "an own score that starts as a copy has the data score's sigma_data: leave out "
                "own_sigma_data, or give own_score a network."
            )
        if self.guidance != 1 and not self.conditional:
            raise ConfigError("guidance weighs labels: set conditional to true, or guidance to 1.")
        if self.guidance != 1 and self.foreign is not None:
            raise ConfigError(
                "guidance needs a data score without labels too, which a network of diffusers does "
                "not have: set guidance to 1."
            )
        if self.guidance != 1 and self.score.label_dropout == 0:
            raise ConfigError(
                "guidance needs a data score that was trained without labels too: give it a "
                "score.label_dropout above 0, or set guidance to 1."
            )

    @property
    def foreign(self) -> str | None:
        """The folder of the diffusers network that the data's score comes from, if it does."""
        name = self.data_score or ""
        return name.removeprefix(DIFFUSERS) if name.startswith(DIFFUSERS) else None

    @property
    def unused(self) -> frozenset[str]:
        """See :attr:`Recipe.unused`."""
        return super().unused | (frozenset() if self.foreign is None else {"score"})

    @property
    def required(self) -> Recipe | None:
        """The EDM that the data's score comes from, if it does."""
        return self.score if self.foreign is None else None

    def difference(
        self,
        dataset: Dataset,
        required: Carrier | None,
        *,
        timed: bool,
        own: float,
        noise: float,
        label_dropout: float = 0.0,
    ) -> Field:
        """E_{σ,ε} σ^power (α s_p - own s_ρ + noise σ^(-power/2) ξ)(x + σε).

        Args:
            dataset: the data.
            required: the trained EDM.
            timed: whether the own score is conditioned on generation time.
            own: what is left of β_own beside the noise.
            noise: scale of the white noise.
            label_dropout: of the own score.
        """
        classes = self.classes(dataset)
        if self.foreign is None:
            s_p = score_in(field_of(required))
        else:
            s_p = ScoreField(load_diffusers(self.foreign, dataset.shape, classes)).freeze()
        law = KarrasLaw(self.sigma_min, self.sigma_max, self.rho)
        if self.own_score is None:
            known = next(part for part in s_p.modules() if isinstance(part, EDMDenoiser))
            denoiser = deepcopy(known).requires_grad_()
        else:
            denoiser = EDMDenoiser(
                build_network(
                    self.own_score,
                    "denoiser",
                    shape=dataset.shape,
                    scalars=2 if timed else 1,
                    classes=classes,
                    generator=self.init_generator("own score"),
                ),
                dataset.sigma_data if self.own_sigma_data is None else self.own_sigma_data,
                timed=timed,
            )
        s_rho = ScoreField(
            denoiser, law, of="particles", weighting=self.weighting, name="own score"
        )
        s_rho = hiding_labels(s_rho, classes, label_dropout)
        if self.guidance != 1:
            s_p = Guided(s_p, self.guidance)
        h = self.alpha * s_p - own * s_rho
        if noise > 0:
            h = h + WhiteNoise(lambda sigma: noise * sigma ** (-self.power / 2))
        return Perturbed(h, law, self.power)

    def score_phase(self) -> Phase:
        """K updates of the own score."""
        return Phase("own score", self.score_optimizer, self.batch, repeats=self.score_steps)


@dataclass(frozen=True, kw_only=True)
class ScoreGAN(ScoreDifference):
    """A Score GAN: the score difference carried by a generator (GPM §4.1).

    Attributes:
        generator: its network.
        latent: size of the latent z ~ N(0, I).
        gamma: γ in [0, 1], the share of the own score replaced by noise (GPM eqs. 21-22); it does
            not keep the marginals (framework §1), 0 is the paper's model.
        generator_optimizer: Adam of the generator.
    """

    name: ClassVar[str] = "score-gan"
    title: ClassVar[str] = "Score GAN"
    symbol: ClassVar[str] = "σ(α s_p - β s_ρ)"

    generator: NetworkSettings = NetworkSettings(kind="mlp", activation="relu")
    latent: Width = 128
    gamma: Share = 0.0
    generator_optimizer: AdamSettings = field(default_factory=AdamSettings)

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """The score difference and a generator; K updates of the own score, one of the generator."""
        # in a step of size η the noise √(2γβ_own/η) ξ stands for √(2γβ_own) dW (framework §1)
        noise = math.sqrt(2 * self.gamma * self.beta_own / self.generator_optimizer.lr)
        own = (1 - self.gamma) * self.beta_own
        h = self.difference(dataset, required, timed=False, own=own, noise=noise)
        generator = build_network(
            self.generator,
            "generator",
            shape=dataset.shape,
            latent=self.latent,
            classes=self.classes(dataset),
            generator=self.init_generator("generator"),
        )
        return System(
            GeneratorModel(
                h,
                generator,
                GaussianPrior((self.latent,)),
                label_weights=self.label_weights(dataset),
            ),
            (self.score_phase(), Phase("generator", self.generator_optimizer, self.batch)),
        )


@dataclass(frozen=True, kw_only=True)
class ScoreFlow(ScoreDifference):
    """The score difference carried by free particles: a smoothed flow of KL(ρ‖p).

    Attributes:
        steps: N, of training and sampling.
        eta: η, strength of the field.
        prior_std: standard deviation of the particles at t = 0.
        label_dropout: share of labels hidden from the own score in training, which guidance of
            sampling needs; of conditional models.
    """

    name: ClassVar[str] = "score-flow"
    title: ClassVar[str] = "Score Flow"
    symbol: ClassVar[str] = "σ(α s_p - β s_ρ)"

    steps: Count = 32
    eta: float = 10.0
    prior_std: Level = 1.0
    label_dropout: Part = 0.1

    def __post_init__(self) -> None:
        """Check what only concerns free particles."""
        super().__post_init__()
        if self.own_score is None:
            raise ConfigError(
                "a Score Flow's own score knows generation time, which the data's does not, and cannot "
                "start as a copy of it: give own_score a network."
            )

    def compose(self, dataset: Dataset, required: Carrier | None = None) -> System:
        """The same score difference and free particles; only the own score is trained."""
        h = self.difference(
            dataset,
            required,
            timed=True,
            own=self.beta_own,
            noise=0.0,
            label_dropout=self.label_dropout,
        )
        model = ParticleModel(
            h,
            GaussianPrior(dataset.shape, std=self.prior_std),
            steps=self.steps,
            eta=self.eta,
            label_weights=self.label_weights(dataset),
        )
        return System(model, (self.score_phase(),))
