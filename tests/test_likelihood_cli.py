"""'partikel likelihood', and the likelihood of whole data sets: resumed, in bits, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import MIXTURE, LinearField, seeded
from partikel import streams
from partikel.app.cli import main
from partikel.app.config import load_preset, make_recipe
from partikel.app.runs import Run, load, train_run
from partikel.data import DataSettings, FiniteDataset, open_dataset
from partikel.data.synthetic import mixture
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError, DataError, NumericsError
from partikel.fields import ExactScoreField
from partikel.likelihood import (
    Elbo,
    GenerativeSDE,
    Integrator,
    Map,
    Ode,
    Points,
    ProbabilityFlow,
    agreement,
    dataset_likelihood,
    probability_flow,
)
from partikel.models import ParticleModel
from partikel.networks import NetworkSettings
from partikel.priors import GaussianPrior
from partikel.recipes import EDM, GAN, DiscriminatorFlow, PlanePoint, Recipe

TINY = NetworkSettings(kind="mlp", width=16, depth=1, activation="silu")
POINTS = DataSettings(name="gaussians")
SHORT = {"iterations": 3, "evaluate_every": None, "checkpoint_every": 3, "batch": 16}


def run_of(recipe: Recipe, folder: Path) -> str:
    train_run(recipe, folder)
    return str(folder)


@pytest.fixture(scope="module")
def edm(tmp_path_factory: pytest.TempPathFactory) -> str:
    recipe = EDM(data=POINTS, network=TINY, sigma_min=0.05, **SHORT)  # type: ignore[arg-type]
    return run_of(recipe, tmp_path_factory.mktemp("runs") / "edm")


def exact_flow() -> ProbabilityFlow:
    flow = DiffFlow.vp(ode=True)
    model = ParticleModel(
        flow.field(ExactScoreField(MIXTURE)), flow.prior((2,)), steps=9, schedule=flow.schedule
    )
    return probability_flow(model)


# --- data sets


def test_a_data_sets_mean_is_its_entropy() -> None:
    data, how = mixture("mixture", MIXTURE), Integrator("rk4", steps=40)
    x = data.draw(200, generator=streams.seeded(0, "likelihood", "points"), dtype=torch.float64).x
    points = Points(n=200, batch=64, dtype=torch.float64)
    report = dataset_likelihood(Ode(integrator=how), exact_flow(), data, points)
    exact = MIXTURE.log_density(x)
    assert report.log_prob == pytest.approx(float(exact.mean()), abs=0.01)
    assert report.standard_error == pytest.approx(float(exact.std()) / 200**0.5, rel=0.05)
    assert report.bits_per_dim is None
    assert report.converged
    sde = GenerativeSDE.of(DiffFlow.vp(), (2,), ExactScoreField(MIXTURE))
    bound = dataset_likelihood(Elbo(draws=64), sde, data, points)
    each = Elbo(draws=64).log_prob(sde, x, generator=seeded()).standard_error
    error = float(each.square().mean()) ** 0.5 / 200**0.5  # tight: only draws are between
    assert abs(bound.log_prob - float(exact.mean())) < 4 * error
    assert bound.solver_error is None


def test_it_resumes_batch_by_batch(tmp_path: Path) -> None:
    data, how = mixture("mixture", MIXTURE), Integrator("rk4", steps=10)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 40:
            raise KeyboardInterrupt

    asked = Ode(integrator=how, strict=False), exact_flow(), data
    points = Points(n=60, batch=20, dtype=torch.float64)
    with pytest.raises(KeyboardInterrupt):
        dataset_likelihood(*asked, points, folder=tmp_path, progress=stop)
    (file,) = tmp_path.iterdir()
    with file.open("a") as end:  # a line that was cut short
        end.write('{"start": 40, "log_p')
    rest: list[int] = []
    again = dataset_likelihood(
        *asked, points, folder=tmp_path, progress=lambda d, t: rest.append(d)
    )
    whole = dataset_likelihood(*asked, points)
    assert rest == [60]
    assert again == whole
    dataset_likelihood(*asked, points, folder=tmp_path)
    dataset_likelihood(*asked, replace(points, batch=30), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # other settings, another file


def test_unconverged_data_sets_are_refused_or_flagged() -> None:
    data, how = mixture("mixture", MIXTURE), Integrator("euler", steps=4)
    asked = exact_flow(), data, Points(n=20, dtype=torch.float64)
    with pytest.raises(NumericsError, match="not converged"):
        dataset_likelihood(Ode(integrator=how), *asked)
    report = dataset_likelihood(Ode(integrator=how, strict=False), *asked)
    assert not report.converged


def test_bits_of_digits_have_the_jacobian_of_their_scaling() -> None:
    """A prior alone: bits/dim is that of N(0, 1) at dequantised digits."""
    data = open_dataset(DataSettings(name="digits"))
    flow = ProbabilityFlow(lambda x, t, cond: 0 * x, GaussianPrior(data.shape), 1.0, data.shape)
    how = Integrator("euler", steps=2)
    report = dataset_likelihood(Ode(integrator=how), flow, data, Points(n=50, bits=True))
    x = data.draw(50, "test", generator=streams.seeded(0, "likelihood", "points")).x
    noise_free = -flow.prior.log_density(x).mean() / 64 / torch.log(torch.tensor(2.0)) + 3
    assert report.bits_per_dim == pytest.approx(float(noise_free), abs=0.02)  # log₂(16/2) = 3
    assert report.bits_error is not None


def test_the_split_that_is_named_is_measured() -> None:
    """The test split unless another one is: grey images are likelier than white ones under N(0, 1)."""
    greys = {"train": 255, "validation": 190, "test": 127}
    data = FiniteDataset(
        "greys", {k: torch.full((4, 1, 2, 2), v).byte() for k, v in greys.items()}, sigma_data=1.0
    )
    flow = ProbabilityFlow(lambda x, t, cond: 0 * x, GaussianPrior(data.shape), 1.0, data.shape)
    how = Ode(integrator=Integrator("euler", steps=2))
    for points, grey in ((Points() if k == "test" else Points(k), v) for k, v in greys.items()):
        report = dataset_likelihood(how, flow, data, points)
        x = torch.full((1, *data.shape), (2 * grey - 255) / 255)
        assert report.log_prob == pytest.approx(float(flow.prior.log_density(x)), abs=0.03)


def test_bad_input_is_refused_in_a_sentence() -> None:
    data = mixture("mixture", MIXTURE)
    with pytest.raises(ConfigError, match="leave out bits"):
        dataset_likelihood(Ode(), exact_flow(), data, Points(bits=True))
    with pytest.raises(ConfigError, match="at least 2 points"):
        dataset_likelihood(Ode(), exact_flow(), data, Points(n=1))
    digits = open_dataset(DataSettings(name="digits"))
    with pytest.raises(DataError, match="more than"):
        dataset_likelihood(Ode(), exact_flow(), digits, Points(n=10**6))


# --- the command


def test_a_learned_density_sums_to_one(edm: str) -> None:
    model = load(edm).model.double()
    side = torch.linspace(-14, 14, 41, dtype=torch.float64)
    x, area = torch.cartesian_prod(side, side), float(side[1] - side[0]) ** 2
    found = Ode(strict=False).log_prob(probability_flow(model), x, generator=seeded())
    assert float(found.log_prob.exp().sum()) * area == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("method", ["ode", "elbo"])
def test_the_command_measures_a_run(
    edm: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", method, "--n", "40", "--agree", "60", "--solver", "rk4"]
    main(["likelihood", edm, *options, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["points"] == 40
    assert record["protocol"]["method"] == method
    assert record == json.loads((Path(edm) / f"likelihood-{method}.json").read_text())
    if method == "ode":
        assert record["converged"]
        assert {"ode_to_sampler", "same_law_quantile", "agrees"} <= record.keys()
    main(["likelihood", edm, *options])
    assert "nats per point" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "marked"), [(2, True), (400, False)])
def test_the_ode_of_a_coarse_flow_is_marked(
    steps: int,
    marked: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Along dx = 3x dt the ODE widens the prior e³ times, two of Euler's steps 2.5² times.

    The field is put in by hand, so that no figure is near a limit: the solver's error on it is a
    thousandth of what is refused, the two laws are 50 times as far apart as chance puts samples of
    one law, and those of 400 steps differ by 1 %: with this seed, samples are closer than chance puts
    most.
    """

    def linear(folder: str, *allowed: object) -> Run:
        run = load(folder)
        run.model.field = LinearField(torch.eye(2).double(), torch.zeros(2).double())
        return run

    recipe = DiscriminatorFlow(data=POINTS, network=TINY, steps=steps, eta=3.0, **SHORT)  # type: ignore[arg-type]
    run = run_of(recipe, tmp_path / "df")
    monkeypatch.setattr("partikel.app.runs.load", linear)
    main(["likelihood", run, "--n", "20", "--agree", "400", "--seed", "1"])
    assert ("another model" in capsys.readouterr().out) is marked
    record = json.loads((Path(run) / "likelihood-ode.json").read_text())
    assert record["solver_error"] < 0.001
    apart = record["ode_to_sampler"] / record["same_law_quantile"]
    assert apart > 20 if marked else apart < 0.5


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["likelihood", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_refusals_name_what_to_use(
    edm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "leave out bits" in refusal([edm, "--bits"], capsys)
    assert "method ode" in refusal([edm, "--method", "map", "--n", "4"], capsys)
    gan = GAN(data=POINTS, discriminator=TINY, generator=TINY, **SHORT)  # type: ignore[arg-type]
    assert "partikel evaluate" in refusal([run_of(gan, tmp_path / "gan")], capsys)
    still = PlanePoint(
        data=POINTS, score=EDM(data=POINTS, network=TINY, **SHORT), joint=True, discriminator=TINY,  # type: ignore[arg-type]
        g2=2.0, lambda2=2.0, **SHORT,  # type: ignore[arg-type]
    )  # fmt: skip
    run = run_of(still, tmp_path / "still")
    assert "method ode" in refusal([run, "--method", "elbo"], capsys)
    kinked = DiscriminatorFlow(
        data=POINTS,
        objective="ipm",  # its field is ∇d, of slope 0 but at kinks: all of the change is missed
        network=NetworkSettings(kind="mlp", width=64, depth=2),
        **SHORT,  # type: ignore[arg-type]
    )
    run = run_of(kinked, tmp_path / "kinked")
    assert "smooth activation" in refusal([run, "--n", "100"], capsys)


@pytest.mark.parametrize("method", ["ode", "map"])
def test_a_relativistic_flow_is_measured_against_its_real_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    recipe = DiscriminatorFlow(
        data=POINTS,
        objective="relativistic",
        network=TINY,
        steps=3,
        eta=0.5,
        **SHORT,  # type: ignore[arg-type]
    )
    run = run_of(recipe, tmp_path / "run")
    main(["likelihood", run, "--method", method, "--n", "6", "--agree", "0", "--json"])
    record = json.loads(capsys.readouterr().out)
    loaded = load(run)
    context = loaded.context()
    assert context is not None
    model, real = loaded.model.double(), context.double()
    x = loaded.dataset.draw(
        6, generator=streams.seeded(0, "likelihood", "points"), dtype=torch.float64
    ).x
    if method == "map":
        exact = Map(strict=False).log_prob(model, x, real=real, generator=seeded()).log_prob
        with pytest.raises(ConfigError, match="pass samples of them as real"):
            dataset_likelihood(Map(), model, loaded.dataset, Points(n=6, dtype=torch.float64))
    else:
        flow = probability_flow(model, real=real)
        exact = Ode().log_prob(flow, x, generator=seeded()).log_prob
    assert record["log_prob"] == pytest.approx(float(exact.mean()), abs=1e-9)


def test_small_smooth_steps_have_the_odes_likelihood(tmp_path: Path) -> None:
    """The preset for it, after a few iterations: its ODE, its map and its sampler are one law."""
    preset = load_preset("discriminator-flow-gaussians-smooth")
    short = {"iterations": 60, "evaluate_every": None, "network": {"width": 64}, "batch": 60}
    recipe = make_recipe(preset.recipe, preset.settings, short)
    run = train_run(recipe, tmp_path / "run")
    model = run.model.double()
    flow = probability_flow(model)
    x = run.sample(100, generator=seeded(1))
    assert float(x.std()) > 1.3  # it has left its prior
    own = Map().log_prob(model, x[:20], generator=seeded())
    assert not own.flaws.any()
    ode = Ode(integrator=Integrator(tolerance=1e-4)).log_prob(flow, x[:20], generator=seeded())
    torch.testing.assert_close(own.log_prob, ode.log_prob, atol=0.1, rtol=0)
    how = Integrator("rk4", steps=20)
    assert agreement(flow, x, generator=seeded(), integrator=how, repeats=20).agrees


# --- training by likelihood


@pytest.mark.parametrize("joint", [False, True])
def test_a_point_of_the_plane_trains_by_the_elbo(tmp_path: Path, joint: bool) -> None:
    """Only what is to be trained moves."""
    score = EDM(data=POINTS, network=TINY, **SHORT)  # type: ignore[arg-type]
    recipe = PlanePoint(
        data=POINTS, score=score, joint=joint, discriminator=TINY, objective="elbo", g2=1.5,
        sigma_min=0.05, **{**SHORT, "iterations": 60},  # type: ignore[arg-type]
    )  # fmt: skip
    run = train_run(recipe, tmp_path / "run")
    assert run.model.losses()[0].name == "elbo"
    untrained = recipe.compose(
        run.dataset, None if joint else load(tmp_path / "run/required").model
    )
    before, after = (
        {type(part).__name__: [*part.parameters()] for part in model.field.modules()}
        for model in (untrained.model, run.model)
    )
    for name, moves in (("ScoreField", joint), ("DiscriminatorField", True)):
        same = all(torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
        assert same is not moves
    x = run.dataset.draw(4, generator=seeded()).x
    assert run.sample(4, generator=seeded()).shape == x.shape


def test_nothing_to_train_by_the_elbo_is_refused() -> None:
    recipe = PlanePoint(data=POINTS, score=EDM(data=POINTS), objective="elbo", g2=2.0)
    dataset = open_dataset(POINTS)
    required = recipe.score.compose(dataset).model
    with pytest.raises(ConfigError, match="nothing is left to train"):
        recipe.compose(dataset, required)


def test_likelihood_weighting_is_a_setting_of_edm(tmp_path: Path) -> None:
    recipe = EDM(data=POINTS, network=TINY, weighting="likelihood", **SHORT)  # type: ignore[arg-type]
    run = train_run(recipe, tmp_path / "run")
    assert run.step == 3
