"""Labels and guidance: exact conditional laws, label dropout, conditional models of every recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import (
    MIXTURE,
    Quadratic,
    Recorder,
    assert_mean,
    assert_moments,
    randn,
    seeded,
    tensor,
)
from partikel.app.cli import main
from partikel.app.config import make_recipe
from partikel.app.runs import classes_in, draw_samples, load, train_run
from partikel.data import SPLITS, Dataset, DataSettings, FiniteDataset, open_dataset
from partikel.denoising import EDMDenoiser
from partikel.errors import CheckpointError, ConfigError
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    ExactScoreField,
    Field,
    Guided,
    LabelDropout,
    Perturbed,
    ScoreField,
    TrainingBatch,
    WhiteNoise,
)
from partikel.fields.guidance import hide_labels
from partikel.fields.particles import Particles
from partikel.models import Carrier, ParticleModel, StagedParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.recipes import EDM, GAN, RECIPES, DiffODEGAN, Recipe, ScoreGAN, System
from partikel.recipes.base import class_shares
from partikel.schedules import EDMSchedule, KarrasGrid, KarrasLaw
from partikel.solvers import SOLVERS
from partikel.streams import Streams
from partikel.targets import Gaussian, GaussianMixture, Target
from partikel.training import AdamSettings, Trainer, load_checkpoint, save_checkpoint
from partikel.training.engine import networks_of

COMPONENTS = [Gaussian(m, c) for m, c in zip(MIXTURE.means, MIXTURE.covariances, strict=True)]


class ClassScore(Field):
    """The exact score of a mixture's component, or of the whole mixture where there is no label."""

    def __init__(self, whole: Target, classes: list[Gaussian]) -> None:
        super().__init__()
        self.whole = whole
        self.classes = classes

    def forward(self, x: Tensor, at: At) -> Tensor:
        if at.cond is None:
            return self.whole.score(x, at.sigma)
        scores = torch.stack([law.score(x, at.sigma) for law in self.classes])
        return scores[at.cond, torch.arange(len(x))]


SCORE = ClassScore(MIXTURE, COMPONENTS)
X, T, COND = 2 * randn(12, 2, seed=3), torch.linspace(0, 0.9, 12).double(), torch.arange(12) % 3
SIGMA = T + 0.2


# --- the guided field ---


@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.7, 1.0, 3.0])
def test_guidance_is_the_score_of_the_sharpened_law(weight: float) -> None:
    """∇ log p_σ(x) p_σ(c|x)^w, by autograd, at every noise level."""
    x = X.clone().requires_grad_()
    posterior = MIXTURE.responsibilities(x, SIGMA)[torch.arange(len(x)), COND]
    log_law = MIXTURE.log_density(x, SIGMA) + weight * posterior.log()
    (expected,) = torch.autograd.grad(log_law.sum(), x)
    assert_close(Guided(SCORE, weight)(X, At(T, SIGMA, COND)), expected)


def test_weights_one_and_zero_are_the_fields_with_and_without_the_label() -> None:
    assert torch.equal(Guided(SCORE, 1)(X, At(T, SIGMA, COND)), SCORE(X, At(T, SIGMA, COND)))
    assert torch.equal(Guided(SCORE, 0)(X, At(T, SIGMA, COND)), MIXTURE.score(X, SIGMA))
    for weight in (0.0, 1.0, 5.0):  # without a label there is nothing to guide to
        assert torch.equal(Guided(SCORE, weight)(X, At(T, SIGMA)), MIXTURE.score(X, SIGMA))


def test_guidance_is_linear_in_the_field() -> None:
    """It is closed under the algebra, and weights, sums and guidance commute."""
    tilt = ClassScore(COMPONENTS[0], [COMPONENTS[2], COMPONENTS[0], COMPONENTS[1]])
    together = Guided(2 * SCORE - torch.exp * tilt, 2.5)
    apart = 2 * Guided(SCORE, 2.5) - torch.exp * Guided(tilt, 2.5)
    assert_close(together(X, At(T, SIGMA, COND)), apart(X, At(T, SIGMA, COND)))
    nested = Guided(Guided(SCORE, 3.0), 2.0)
    assert_close(nested(X, At(T, SIGMA, COND)), Guided(SCORE, 6.0)(X, At(T, SIGMA, COND)))


def test_the_weight_may_depend_on_time_and_costs_nothing_where_it_is_one() -> None:
    calls: list[Tensor | None] = []

    class Counted(ClassScore):
        def forward(self, x: Tensor, at: At) -> Tensor:
            calls.append(at.cond)
            return super().forward(x, at)

    def inside(t: Tensor) -> Tensor:
        return torch.where((t > 0.3) & (t < 0.6), 4.0, 1.0)

    field = Guided(Counted(MIXTURE, COMPONENTS), inside)
    mixed = field(X, At(T, SIGMA, COND))
    rows = [
        Guided(SCORE, float(inside(T[i])))(
            X[i : i + 1], At(*(v[i : i + 1] for v in (T, SIGMA, COND)))
        )
        for i in range(len(X))
    ]
    assert_close(mixed, torch.cat(rows))
    assert len(calls) == 2
    for time, count in ((0.1, 1), (0.5, 2), (0.8, 1)):  # all particles of a solver share a time
        calls.clear()
        shared = field(X, At(tensor(time), SIGMA, COND))
        assert len(calls) == count
        assert any(cond is COND for cond in calls)
        assert_close(shared, field(X, At(tensor(time).repeat(len(X)), SIGMA, COND)))
    for wrong in (nn.Linear(1, 1), "2"):
        with pytest.raises(TypeError, match="a (finite )?number or a function"):
            Guided(SCORE, wrong)  # type: ignore[arg-type]


class Labelled(nn.Module):
    """Quadratic logits, one for each of three labels and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.ModuleList(Quadratic(2, seed) for seed in range(4))

    def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        cond = torch.full((len(x),), 3) if cond is None else cond
        return torch.stack([logit(x, c) for logit in self.logits])[cond, torch.arange(len(x))]


def test_a_discriminator_is_guided_by_the_same_formula() -> None:
    """∇ of (1 - w) c(d(x, ∅)) + w c(d(x, c))."""
    critic = DiscriminatorField(Labelled().double(), "non-saturating", conditions=("t",))
    x = X.clone().requires_grad_()
    potential = -0.7 * critic.potential(x, At(T)) + 1.7 * critic.potential(x, At(T, None, COND))
    (expected,) = torch.autograd.grad(potential.sum(), x)
    assert_close(Guided(critic, 1.7)(X, At(T, None, COND)), expected)


def test_both_labels_see_the_same_random_draws() -> None:
    """Noise that does not depend on the label passes guidance once, whatever the weight."""
    guided = Guided(SCORE + WhiteNoise(2.0), 5.0).bind(Context(generator=seeded(4)))
    noise = WhiteNoise(2.0).bind(Context(generator=seeded(4)))
    expected = Guided(SCORE, 5.0)(X, At(T, SIGMA, COND)) + noise(X, At(T))
    assert_close(guided(X, At(T, SIGMA, COND)), expected)
    once = Perturbed(Guided(SCORE, 5.0), KarrasLaw()).bind(Context(generator=seeded(5)))
    outside = Guided(Perturbed(SCORE, KarrasLaw()), 5.0).bind(Context(generator=seeded(5)))
    assert_close(outside(X, At(T, None, COND)), once(X, At(T, None, COND)))


def carried(field: Field, **options: Any) -> ParticleModel:
    path = EDMSchedule(30.0)
    return ParticleModel(
        path.half_rate * field,
        GaussianPrior((2,), std=30.0),
        steps=24,
        schedule=path,
        grid=KarrasGrid(path, 0.01),
        conditional=True,
        label_weights=MIXTURE.weights,
        **options,
    ).double()


def start(model: ParticleModel, n: int) -> Tensor:
    return model.prior.sample(n, generator=seeded(1), dtype=torch.float64)


def test_samples_follow_the_law_of_the_label_or_of_none() -> None:
    model, n = carried(SCORE, solver=SOLVERS["heun"]()), 4000
    for label, law in enumerate(COMPONENTS):
        cond = torch.full((n,), label)
        x = model.sample(n, generator=seeded(), start=start(model, n), cond=cond, guidance=1.0)
        assert_moments(x, law.mean, law.covariance)
    cond = torch.zeros(n, dtype=torch.int64)
    x = model.sample(n, generator=seeded(), start=start(model, n), cond=cond, guidance=0.0)
    assert_moments(x, MIXTURE.mean, MIXTURE.covariance)
    assert_mean(MIXTURE.responsibilities(x), MIXTURE.weights)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_is_guided_wherever_it_asks(name: str) -> None:
    """Correctors ask the score beside the field: with w = 0 nothing may see the label."""
    model = carried(SCORE, solver=SOLVERS[name](), score=SCORE)
    x, cond = start(model, 6), torch.arange(6) % 3

    def end(**options: Any) -> Tensor:
        *_, last = model.stream(x, generator=seeded(2), **options)
        return last.x

    assert torch.equal(end(cond=cond, guidance=0.0), end())
    assert torch.equal(end(cond=cond, guidance=1.0), end(cond=cond))
    assert not torch.equal(end(cond=cond, guidance=2.0), end(cond=cond))


# --- label dropout ---


def test_labels_are_hidden_as_often_as_asked() -> None:
    n, rate = 40_000, 0.13
    cond = torch.arange(n) % 5
    seen = hide_labels(cond, 5, rate, generator=seeded())
    assert seen is not None
    hidden = seen == 5
    assert_mean(hidden.double(), rate)
    for label in range(5):  # whatever the label
        assert_mean(hidden[cond == label].double(), rate)
    assert torch.equal(seen[~hidden], cond[~hidden])
    assert hide_labels(None, 5, rate, generator=seeded()) is None
    assert hide_labels(cond, 5, 0.0, generator=seeded()) is cond
    again = hide_labels(cond, 5, rate, generator=seeded())
    assert torch.equal(seen, again if again is not None else cond)


def test_losses_see_hidden_labels_and_nothing_else_changes() -> None:
    """Real points and particles lose labels; positions, noise levels and the batch itself stay."""
    from partikel.data import Batch

    n = 20_000
    network = Recorder(lambda x: x.sum(1) * 0)
    field = LabelDropout(DiscriminatorField(network), 3, 0.25)
    (loss,) = field.losses()
    assert loss.module is network
    real = Batch(randn(n, 2), torch.arange(n) % 3)
    points = Particles(randn(n, 2, seed=1), torch.zeros(n).double(), cond=torch.arange(n) % 3)
    loss.compute(TrainingBatch(real, points, n, Streams(0)))
    ((x, _, seen),) = network.calls
    assert seen is not None
    assert torch.equal(x, torch.cat([real.x, points.x]))
    for part in seen.chunk(2):
        assert_mean((part == 3).double(), 0.25)
    kept = seen < 3
    assert torch.equal(seen[kept], (torch.arange(n) % 3).repeat(2)[kept])
    assert int(torch.as_tensor(points.cond).max()) == 2
    score = LabelDropout(ScoreField(EDMDenoiser(Recorder()), KarrasLaw()), 3)
    assert [each.adds_noise for each in score.losses()] == [True]
    assert score.losses() == (score + 2 * score).losses()  # trained once
    assert not LabelDropout(ExactScoreField(MIXTURE), 3).losses()
    assert not score.freeze().losses()
    for rate in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="LabelDropout.rate="):
            LabelDropout(SCORE, 3, rate)


TINY = NetworkSettings(kind="mlp", width=16, depth=1, embedding_features=8)


def test_the_null_label_is_no_label() -> None:
    networks: dict[str, nn.Module] = {
        role: build_network(TINY, role, shape=(2,), latent=2, classes=3, generator=seeded())
        for role in ("logit", "denoiser", "generator")  # type: ignore[misc]
    }
    x = torch.randn(6, 2, generator=seeded())
    for network in networks.values():
        null = network(x, None, torch.full((6,), 3))
        assert_close(network(x, None, None), null)
        assert not torch.allclose(null, network(x, None, torch.zeros(6, dtype=torch.int64)))


# --- recipes ---

SMALL: dict[str, Any] = {
    "network": TINY, "discriminator": TINY, "generator": TINY, "own_score": TINY, "batch": 16,
    "latent": 4, "steps": 4, "score_steps": 2, "discriminator_steps": 2, "ema": 0.9,
    "iterations": 12, "conditional": True, "score": EDM(conditional=True, network=TINY),
    "teacher": EDM(conditional=True, network=TINY),
}  # fmt: skip


def small(name: str, **settings: Any) -> Recipe:
    kind = RECIPES[name]
    chosen = {key: value for key, value in SMALL.items() if key in kind.__dataclass_fields__}
    return kind(**{**chosen, **settings})


RECIPES_AND_STAGED: list[Any] = [
    *(pytest.param(name, {}, id=name) for name in RECIPES),
    pytest.param("diffflow", {"joint": True}, id="joint"),
    pytest.param(
        "diffode-gan", {"discriminators": "independent", "staged": True, "pool": 32}, id="staged"
    ),
    pytest.param("score-gan", {"guidance": 2.0, "gamma": 0.5}, id="guided score-gan"),
    pytest.param(
        "discriminator-flow", {"times_per_path": 2, "reuse": 2, "updates": 2}, id="shares"
    ),
]


def composed(recipe: Recipe, dataset: Dataset | None = None) -> tuple[System, Dataset]:
    dataset = dataset or open_dataset(recipe.data)
    required = recipe.required and recipe.required.compose(dataset).model
    return recipe.compose(dataset, required), dataset


def trainer_of(recipe: Recipe) -> Trainer:
    system, dataset = composed(recipe)
    return Trainer(
        system.model, dataset, system.phases, iterations=recipe.iterations, ema=recipe.ema
    )


def advance(trainer: Trainer, steps: int) -> None:
    run = trainer.run()
    for _ in range(steps):
        next(run)


def embeddings_of(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().clone()
        for name, value in module.named_parameters()
        if name.endswith("label.weight") and value.requires_grad
    }


@pytest.mark.parametrize(("name", "settings"), RECIPES_AND_STAGED)
def test_every_recipe_is_conditional_and_resumes_bit_for_bit(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    recipe = small(name, **settings)
    straight = trainer_of(recipe)
    before = embeddings_of(straight.model)
    assert before
    advance(straight, 8)
    hides = hasattr(recipe, "label_dropout")
    for key, weight in embeddings_of(straight.model).items():
        changed = (weight != before[key]).any(1)
        if "staged" in settings and not changed.any():  # a discriminator whose turn has not come
            continue
        assert changed[:-1].all(), key  # every label was learned from
        assert bool(changed[-1]) is hides, key  # and so was the null label, where guidance needs it
    first = trainer_of(recipe)
    advance(first, 3)
    path = save_checkpoint(first, tmp_path)
    second = trainer_of(recipe)
    load_checkpoint(second, path)
    advance(second, 5)
    for key, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    model = straight.model
    cond = torch.arange(10) % 5
    x = model.sample(10, generator=seeded(), cond=cond)
    assert x.shape == (10, 2)
    assert torch.isfinite(x).all()
    other = model.sample(10, generator=seeded(), cond=(cond + 1) % 5)
    assert not torch.isclose(x, other).all(1).any()


def test_hidden_labels_teach_the_field_without_them() -> None:
    """The null label's vector is trained with label dropout, and only with it."""
    for rate in (0.0, 0.5):
        trainer = trainer_of(small("edm", label_dropout=rate))
        (before,) = embeddings_of(trainer.model).values()
        advance(trainer, 5)
        (after,) = embeddings_of(trainer.model).values()
        assert bool((after[-1] != before[-1]).any()) is (rate > 0)


def test_unconditional_models_know_nothing_of_labels() -> None:
    for name in RECIPES:
        built_on = {"score", "teacher"} & {*RECIPES[name].__dataclass_fields__}
        recipe = small(name, conditional=False, **dict.fromkeys(built_on, EDM(network=TINY)))
        model = composed(recipe)[0].model
        assert not model.conditional
        assert not any(isinstance(module, LabelDropout) for module in model.modules())
        assert not any("label" in key for key in model.state_dict())
        generator = seeded()
        state = generator.get_state()
        assert model.labels(5, generator=generator) is None
        assert torch.equal(generator.get_state(), state)


def test_a_pool_keeps_its_labels() -> None:
    recipe = small("diffode-gan", discriminators="independent", staged=True, pool=32, iterations=4)
    assert isinstance(recipe, DiffODEGAN)
    model = composed(recipe)[0].model
    assert isinstance(model, StagedParticleModel)
    streams = Streams(0)
    model.particles(4, streams)
    assert model.pool_labels is not None
    labels = model.pool_labels.clone()
    assert len(labels.unique()) > 1
    stages = []
    for _ in range(4):
        points = model.particles(16, streams)
        stages.append(int(model.stage))
        assert points.cond is not None
        rows = (points.x[:, None] == model.pool[None]).all(-1).long().argmax(1)
        assert torch.equal(points.cond, labels[rows])
        assert torch.equal(model.pool_labels, labels)
    assert stages[-1] > 0
    with pytest.raises(ConfigError, match="shares of the classes"):
        StagedParticleModel(
            SCORE, GaussianPrior((2,)), pool=4, stage_draws=1, steps=2, conditional=True
        )


def test_a_guided_score_gan_descends_the_guided_score() -> None:
    """E_{σ,ε} σ (s_p^w - s_ρ)(x + σε, c), with both scores of the label."""
    recipe = small("score-gan", guidance=3.0)
    assert isinstance(recipe, ScoreGAN)
    dataset = open_dataset(recipe.data)
    required = recipe.score.compose(dataset).model
    model = recipe.compose(dataset, required).model
    (data,) = (m for m in required.modules() if isinstance(m, EDMDenoiser))
    (own,) = (loss.module for loss in model.losses() if loss.name == "own score")
    assert isinstance(own, EDMDenoiser)
    x, t, cond = X.float(), T.float(), COND

    class Explicit(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            s_p, s_rho = ScoreField(data), ScoreField(own)
            guided = 3 * s_p(x, at) - 2 * s_p(x, at._replace(cond=None))
            return guided - s_rho(x, at)

    law = KarrasLaw(recipe.sigma_min, recipe.sigma_max, recipe.rho)
    fields = (model.field, Perturbed(Explicit(), law))
    got, expected = (f.bind(Context(generator=seeded()))(x, At(t, None, cond)) for f in fields)
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


# --- labels of samples ---


def test_labels_are_drawn_at_the_frequencies_of_the_data() -> None:
    dataset = open_dataset(DataSettings(name="unequal"))
    seen: list[Tensor | None] = []

    class Listener(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            seen.append(at.cond)
            return torch.zeros_like(x)

    model = ParticleModel(
        Listener(), GaussianPrior((2,)), steps=1, label_weights=class_shares(dataset, 5)
    )
    assert model.conditional
    n = 25_000  # several chunks
    draw_samples(model, n, seeded())
    drawn = torch.cat([cond for cond in seen if cond is not None])
    assert len(drawn) == n
    assert_mean(nn.functional.one_hot(drawn, 5).double(), tensor([0.4, 0.25, 0.2, 0.1, 0.05]))
    seen.clear()
    cond = torch.arange(n) % 5
    draw_samples(model, n, seeded(), cond=cond)
    assert torch.equal(torch.cat([c for c in seen if c is not None]), cond)


def test_shares_of_classes() -> None:
    labels = torch.tensor([0] * 5 + [2] * 3 + [3] * 2, dtype=torch.uint8)
    points = torch.zeros(10, 1, 2, 2, dtype=torch.uint8)
    finite = FiniteDataset("ten", dict.fromkeys(SPLITS, points), dict.fromkeys(SPLITS, labels))
    assert_close(class_shares(finite, 4), torch.tensor([0.5, 0.0, 0.3, 0.2]))
    assert_close(class_shares(open_dataset(DataSettings()), 5), torch.full((5,), 0.2))
    moons = class_shares(open_dataset(DataSettings(name="moons")), 2)
    assert_close(moons, torch.full((2,), 0.5), atol=0.025, rtol=0)


def test_labels_asked_for() -> None:
    model = carried(SCORE)
    assert classes_in(model, 2) == [2]
    assert classes_in(model, "2") == [2]
    assert classes_in(model, "2,0") == classes_in(model, (2, 0)) == [2, 0]
    assert classes_in(model, "all") == [0, 1, 2]
    for wrong in (3, -1, "3", "", "x", "0,3", "1.5", ()):
        with pytest.raises(ConfigError, match="label is a class of this model, 0 to 2"):
            classes_in(model, wrong)
    with pytest.raises(ConfigError, match="labels of this model are 0 to 2, got 7"):
        model.sample(3, generator=seeded(), cond=torch.tensor([0, 7, 1]))
    plain = ParticleModel(SCORE, GaussianPrior((2,)), steps=2)
    with pytest.raises(ConfigError, match="trained without labels"):
        classes_in(plain, 0)
    with pytest.raises(ConfigError, match="trained without labels"):
        plain.sample(3, generator=seeded(), guidance=2.0)


# --- refusals in words ---


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: composed(EDM(conditional=True, data=BOARD)), "'checkerboard' has no labels"),
        (lambda: composed(GAN(conditional=True, data=BOARD)), "'checkerboard' has no labels"),
        (lambda: composed(small("gan", objective="relativistic")), "choose another objective"),
        (
            lambda: composed(small("discriminator-flow", objective="relativistic")),
            "choose another objective",
        ),
        (lambda: ScoreGAN(conditional=True), "the score is unconditional"),
        (lambda: ScoreGAN(score=EDM(conditional=True)), "the model is unconditional"),
        (lambda: small("score-flow", score=EDM()), "must agree on labels"),
        (lambda: small("diffflow", score=EDM()), "must agree on labels"),
        (lambda: ScoreGAN(guidance=2.0), "set conditional to true"),
        (
            lambda: small("score-gan", guidance=2.0, score=EDM(conditional=True, label_dropout=0)),
            "label_dropout above 0",
        ),
        (lambda: composed(small("edm", label_dropout=1.0)), "[0, 1)"),
    ],
)
def test_refusals(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


BOARD = DataSettings(name="checkerboard")


# --- runs and the command line ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Barely trained runs: a conditional EDM, GAN and image model, an unconditional EDM."""
    folder = tmp_path_factory.mktemp("runs")
    few = {"iterations": 2, "evaluate_every": 2, "evaluate_samples": 20, "ema": None}
    edm = small("edm", **few)
    images = replace(edm, data=DataSettings(name="digits"))
    made = {
        "edm": edm,
        "gan": small("gan", **few),
        "images": images,
        "plain": replace(edm, conditional=False),
        "careless": replace(edm, label_dropout=0.0),
        "score-gan": small("score-gan", **few, score=edm),
    }
    for name, recipe in made.items():
        train_run(recipe, folder / name)
    return {name: folder / name for name in made}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("partikel: ")
    return said


def test_samples_of_a_class_from_the_command_line(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "x.npz"

    def drawn(run: str, *options: str) -> Any:
        main(["sample", str(runs[run]), "--out", str(out), *options])
        return np.load(out)

    one = drawn("edm", "--label", "3", "-n", "6")
    assert one["cond"].tolist() == [3] * 6
    guided = drawn("edm", "--label", "3", "-n", "6", "--guidance", "2.5")
    assert np.abs(one["x"] - guided["x"]).max() > 1e-6
    same = drawn("edm", "--label", "3", "-n", "6", "--guidance", "1")
    np.testing.assert_array_equal(one["x"], same["x"])
    assert drawn("gan", "--label", "4,1")["cond"].tolist() == [4] * 8 + [1] * 8
    assert drawn("gan", "--label", "all", "-n", "10")["cond"].tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]
    free = drawn("gan")
    assert free["x"].shape == (64, 2)
    assert set(free["cond"].tolist()) == set(range(5))
    assert "cond" not in drawn("plain", "-n", "3").files
    run = load(runs["edm"])
    by_hand = run.sample(6, generator=seeded(), label=3, guidance=2.5)
    np.testing.assert_array_equal(by_hand.numpy(), guided["x"])
    again = run.sample(7, generator=seeded())
    torch.testing.assert_close(again, run.sample(7, generator=seeded()))


def test_each_class_is_a_row_of_the_picture(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from partikel.app.show import plots

    shown: list[tuple[int, int | None]] = []
    grid = plots.image_grid

    def spy(images: Tensor, columns: int | None = None, scale: int | None = None) -> Any:
        shown.append((len(images), columns))
        return grid(images, columns, scale)

    monkeypatch.setattr(plots, "image_grid", spy)
    out = str(tmp_path / "x.png")
    main(["sample", str(runs["images"]), "--label", "all", "--out", out, "--steps", "2"])
    main(["sample", str(runs["images"]), "--label", "1,5", "-n", "6", "--out", out, "--steps", "2"])
    main(["sample", str(runs["images"]), "--label", "1", "--out", out, "--steps", "2"])
    assert shown == [(80, 8), (6, 3), (64, None)]
    assert Path(out).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("run", "options", "said"),
    [
        ("edm", ["--label", "5"], "0 to 4, several (0,4), or all; got 5."),
        ("edm", ["--label", "-1"], "0 to 4"),
        ("edm", ["--label", "cat"], "got cat"),
        ("edm", ["--label", "all", "-n", "7"], "7 samples cannot be shared equally by 5 labels"),
        ("edm", ["--label", "1", "-n", "0"], "at least 1"),
        ("edm", ["--guidance", "much"], "must be a finite number"),
        ("plain", ["--label", "1"], "trained without labels: leave out label"),
        ("plain", ["--guidance", "2"], "trained without labels: leave guidance out"),
        ("careless", ["--guidance", "2"], "label_dropout above 0"),
        ("gan", ["--guidance", "2"], "leave out guidance"),
        ("score-gan", ["--label", "1", "--guidance", "2"], "learns it in training"),
    ],
)
def test_the_command_line_refuses(
    run: str, options: list[str], said: str, runs: dict[str, Path],
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "x.npz"
    assert said in refused(capsys, "sample", str(runs[run]), "--out", str(out), *options)
    assert not out.exists()


def test_data_with_other_classes_do_not_fit_a_checkpoint(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(runs["edm"], copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["settings"]["data"]["name"] = "ring"  # as a folder of images that got more classes
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match="was changed since the run was trained"):
        load(copy)
    (copy / "data.json").unlink()  # as version 0.1 had none
    with pytest.raises(CheckpointError, match="is of 5 classes, but 'ring' now has 8"):
        load(copy)
    recipe = make_recipe(config["recipe"], config["settings"])
    with pytest.raises(CheckpointError, match="is of 5 classes, but 'ring' now has 8"):
        train_run(replace(recipe, iterations=2), copy)


def test_runs_older_than_a_setting_resume(runs: dict[str, Path], tmp_path: Path) -> None:
    """What a configuration does not mention has its default, in old runs as in new ones."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(runs["plain"], copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    for younger in ("conditional", "label_dropout"):
        del config["settings"][younger]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    run = train_run(load(runs["plain"]).recipe, copy)
    assert run.step == 2
    with pytest.raises(ConfigError, match="conditional: False there, True now"):
        train_run(load(runs["edm"]).recipe, copy)


def test_evaluations_and_pages_work_for_conditional_runs(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main(["evaluate", str(runs["edm"]), "-n", "100", "--json"])
    assert json.loads(capsys.readouterr().out)["protocol"]["nfe"] == 2 * 4 - 1
    assert len(list((runs["gan"] / "frames").glob("step-*"))) == 2


# --- trained models keep classes apart ---

WIDE = NetworkSettings(
    kind="mlp", width=96, depth=2, init="he", fourier_scale=1.0, embedding_features=16
)
FAST = AdamSettings(lr=2e-3, beta1=0.5, beta2=0.99, decay="cosine")


def near(model: Carrier, dataset: Dataset, **options: Any) -> Tensor:
    """(5, 200): whether samples of each class lie nearest to the mode of their class, within 4σ."""
    assert isinstance(dataset.target, GaussianMixture)
    means = dataset.target.means.float()
    cond = torch.arange(5).repeat_interleave(200)
    x = model.sample(1000, generator=seeded(), cond=cond, **options)
    nearest = torch.cdist(x, means).argmin(1) == cond
    return (nearest & ((x - means[cond]).norm(dim=1) < 2)).view(5, 200)


def purity(model: Carrier, dataset: Dataset, **options: Any) -> float:
    return float(near(model, dataset, **options).float().mean(1).min())


def share(model: Carrier, dataset: Dataset, **options: Any) -> float:
    return float(near(model, dataset, **options).float().mean())


def trained(recipe: Recipe, required: Carrier | None = None) -> tuple[Carrier, Dataset]:
    dataset = open_dataset(recipe.data)
    system = recipe.compose(dataset, required)
    trainer = Trainer(system.model, dataset, system.phases, iterations=recipe.iterations, seed=1)
    for _ in trainer.run():
        pass
    return system.model.eval(), dataset


SCORE_OF_DATA = EDM(
    conditional=True, network=replace(WIDE, activation="silu"), sigma_max=20.0, law_mean=-0.4,
    batch=128, iterations=1200, optimizer=replace(FAST, beta1=0.9), steps=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def edm() -> tuple[Carrier, Dataset]:
    return trained(SCORE_OF_DATA)


def test_a_conditional_edm_samples_its_classes(edm: tuple[Carrier, Dataset]) -> None:
    model, dataset = edm
    assert purity(model, dataset) > 0.9
    assert purity(model, dataset, guidance=2.0) > 0.97
    assert share(model, dataset, guidance=0.0) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gan", {"iterations": 700, "latent": 4}),
        ("discriminator-flow", {"iterations": 500, "steps": 10, "eta": 20.0}),
        ("score-gan", {"iterations": 400, "latent": 4, "score_steps": 3, "weighting": "edm"}),
        ("score-flow", {"iterations": 80, "steps": 5, "weighting": "edm"}),
    ],
)
def test_conditional_models_sample_their_classes(
    name: str, settings: dict[str, Any], edm: tuple[Carrier, Dataset]
) -> None:
    options: dict[str, Any] = {
        "conditional": True, "score": SCORE_OF_DATA, "network": WIDE, "discriminator": WIDE,
        "own_score": replace(WIDE, activation="silu"), "batch": 128,
        "generator": replace(WIDE, activation="relu"), "optimizer": replace(FAST, lr=1e-3),
        "discriminator_optimizer": FAST, "generator_optimizer": replace(FAST, lr=1e-3),
        "score_optimizer": replace(FAST, beta1=0.9),
    }  # fmt: skip
    kind = RECIPES[name]
    known = {key: value for key, value in options.items() if key in kind.__dataclass_fields__}
    recipe = kind(**known, **settings)
    model, dataset = trained(recipe, edm[0] if recipe.required else None)
    assert purity(model, dataset) > 0.9
    if isinstance(model, ParticleModel):  # without its label, a particle goes anywhere
        assert share(model, dataset, guidance=0.0) < 0.4


HIDING: list[Any] = [
    ("edm", {"label_dropout": 0.15}, {"score": 0.15}),
    ("discriminator-flow", {"label_dropout": 0.15}, {"discriminator": 0.15}),
    ("score-flow", {"label_dropout": 0.15}, {"own score": 0.15}),
    ("diffode-gan", {"label_dropout": 0.15}, {"discriminator": 0.15}),
    ("diffflow", {"label_dropout": 0.15}, {"discriminator": 0.15}),
    ("diffflow", {"joint": True, "label_dropout": 0.15}, {"score": 0.5, "discriminator": 0.15}),
    ("diffflow", {"objective": "elbo", "g2": 1.5, "label_dropout": 0.15}, {"elbo": 0.15}),
    ("diffflow", {"objective": "elbo", "g2": 1.5, "label_dropout": 0.0}, {"elbo": 0.0}),
    ("diffflow", {"objective": "elbo", "g2": 2.0, "joint": True}, {"elbo": 0.5}),
    ("diffflow", {"objective": "elbo", "g2": 1.5, "joint": True}, {"elbo": 0.5}),
]


@pytest.mark.parametrize(("name", "settings", "shares"), HIDING)
def test_every_loss_hides_its_share_of_labels(
    name: str, settings: dict[str, Any], shares: dict[str, float]
) -> None:
    """What the networks that a loss trains are shown, counted."""
    n, rate = 4000, 0.5 if "joint" in settings else 0.1
    if name == "diffflow":
        settings = {**settings, "score": EDM(conditional=True, network=TINY, label_dropout=rate)}
    system, dataset = composed(small(name, **settings))
    model, real = system.model, dataset.draw(n, generator=seeded())
    t = torch.rand(n, generator=seeded(1)) * 0.9 * model.horizon
    path = getattr(model, "schedule", None)
    sigma = None if path is None else path.sigma(t)
    points = Particles(real.x.flip(0), t, sigma, cond=real.cond)
    losses = {loss.name: loss for loss in model.losses()}
    assert set(losses) == set(shares)
    for key, loss in losses.items():
        seen: list[Tensor] = []
        hooks = [
            network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))  # noqa: B023
            for network in networks_of(loss.module)
        ]
        loss.compute(TrainingBatch(real, points, n, Streams(0)))
        assert seen
        for labels in seen:
            assert_mean(
                (labels == dataset.classes).double() + 1e-9 * randn(len(labels)), shares[key]
            )
        if len(seen) > 1:  # of several networks at once: none of no label beside one of a label
            assert all(torch.equal(labels, seen[0]) for labels in seen)
        for hook in hooks:
            hook.remove()
