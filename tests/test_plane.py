"""The map of the plane: exact laws on a grid, places and their models, what is written, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from conftest import GAUSSIAN, MIXTURE, assert_moments, seeded, tensor
from partikel.app.cli import main
from partikel.app.runs import Run, load
from partikel.data import DataSettings, open_dataset
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError, NumericsError
from partikel.fields import At, DiscriminatorField, ExactScoreField
from partikel.fields.terms import AtScale
from partikel.models import ParticleModel
from partikel.schedules import GeometricGrid, Schedule, VESchedule, VPSchedule
from partikel.solvers import StochasticHeun
from partikel.studies import plane
from partikel.studies.gaussian_laws import gaussian_marginals, path_marginals
from partikel.studies.plane import GridLaw, Learned, draw_map, flow_at, learned_fields, model_name
from partikel.targets import Gaussian

PATHS: dict[str, Schedule] = {"ve": VESchedule(4.0, 0.02), "vp": VPSchedule(0.1, 12.0)}


def moments(law: GridLaw) -> tuple[Tensor, Tensor]:
    mass, x = torch.from_numpy(law.density).flatten(), law.points()
    mean = mass @ x
    return mean, (x - mean).T @ (mass[:, None] * (x - mean))


@pytest.mark.parametrize("lambda2", [0.0, -1.0])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_laws_of_gaussians(path: Schedule, lambda2: float) -> None:
    """Against the closed form: moments at the end, scores on the way. The mean is exact."""
    flow, times = flow_at(path, 2.0, lambda2), GeometricGrid(path).nodes(100)
    start = path_marginals(path, GAUSSIAN, times[:1])
    means, covariances = gaussian_marginals(
        flow, GAUSSIAN, Gaussian(start[0][0], start[1][0]), times
    )
    law = GridLaw(flow, GAUSSIAN, times, side=140)
    mean, covariance = moments(law)
    assert_close(mean, means[-1], rtol=1e-3, atol=0)
    assert_close(covariance, covariances[-1], rtol=5e-3, atol=0)
    for node in (0, 40, 100):
        exact = Gaussian(means[node], covariances[node])
        x = exact.sample(300, generator=seeded(), dtype=torch.float64)
        error = law(x, At(times[node])) - exact.score(x)
        assert float(error.norm() / exact.score(x).norm()) < 0.02


def test_laws_of_mixtures() -> None:
    """Where λ² matches the forward SDE, the equation's solution is p_σ(t) (scaled by 1/u)."""
    for path in PATHS.values():
        times = GeometricGrid(path).nodes(100)
        law = GridLaw(DiffFlow.reverse(path), MIXTURE, times, side=180)
        for node in (0, 50, 100):
            t = times[node].expand(300)
            data = MIXTURE.sample(300, generator=seeded(), dtype=torch.float64)
            x, u = path.noised(data, t, generator=seeded(1)), path.u(times[node])
            exact = u * MIXTURE.score(u * x, path.sigma(t))
            assert float((law(x, At(times[node])) - exact).norm() / exact.norm()) < 0.04


def test_mass_is_kept_and_g_does_not_matter() -> None:
    path = PATHS["ve"]
    times = GeometricGrid(path).nodes(12)
    laws = [GridLaw(flow_at(path, g2, -1.0), MIXTURE, times, side=60) for g2 in (0.0, 3.0)]
    assert_close(laws[0].density.sum(), 1.0, check_dtype=False)
    assert laws[0].density.min() > -1e-18
    assert (laws[0].density == laws[1].density).all()


@pytest.fixture(scope="module")
def kept_law() -> GridLaw:
    """One for every g, as the test above says."""
    path = PATHS["ve"]
    return GridLaw(flow_at(path, 2.0, -1.0), MIXTURE, GeometricGrid(path).nodes(150), side=160)


@pytest.mark.parametrize("g2", [0.0, 3.0])
def test_particles_keep_the_law_whatever_g(g2: float, kept_law: GridLaw) -> None:
    """Proposition 2 on a mixture where the optimal discriminator is not constant."""
    path, law = PATHS["ve"], kept_law
    grid = GeometricGrid(path)
    flow = flow_at(path, g2, -1.0)
    score = ExactScoreField(MIXTURE)
    model = ParticleModel(
        flow.field(score, AtScale(score, path) - law),
        flow.prior((2,)),
        steps=150,
        schedule=path,
        grid=grid,
        diffusion=flow.diffusion,
        solver=StochasticHeun(),
    )
    data = MIXTURE.sample(3000, generator=seeded(4), dtype=torch.float64)
    start = path.noised(data, torch.zeros(3000).double(), generator=seeded(5))
    assert_moments(model.sample(3000, generator=seeded(6), start=start), *moments(law))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_flows_stand_at_their_places(path: Schedule) -> None:
    t = tensor([0.1, 0.5, 0.9])
    for point in plane.POINTS:
        flow = flow_at(path, *point)
        for found, expected in zip(flow.coordinates(t), point, strict=True):
            assert_close(found, tensor([expected] * 3))
        assert flow.matched == (point[1] > 0)
        c = flow.coefficients(t)
        assert_close(c.f, path.drift_rate(t))
        if point[1] <= 0:
            assert_close(c.beta, plane.STRENGTH * path.noise_rate(t))


def test_names() -> None:
    named = {point: model_name(*point) for point in plane.POINTS}
    assert named[2.0, 1.0] == "Diffusion SDE"
    assert model_name(0.7, 0.2) == model_name(1.0, 0.0) == "Diffusion-GAN"
    assert model_name(2.0, 1.5) == model_name(3.0, 0.0) == "SLCD"
    assert model_name(0.0, -0.1) == "Continuation"


def protocol(folder: Path) -> dict[str, object]:
    return json.loads((folder / "map.json").read_text(encoding="utf-8"))["protocol"]


def left_out(folder: Path) -> set[tuple[float, float]]:
    found = json.loads((folder / "map.json").read_text(encoding="utf-8"))
    return {(point["g2"], point["lambda2"]) for point in found["left_out"]}


def numbers(folder: Path) -> dict[tuple[float, float], dict[str, float]]:
    found = json.loads((folder / "map.json").read_text(encoding="utf-8"))
    return {(point["g2"], point["lambda2"]): point for point in found["points"]}


@pytest.mark.slow
def test_a_map_with_exact_fields(tmp_path: Path) -> None:
    """The GAN row's particles end in the data though only the discriminator moves them."""
    points = [(2.0, 2.0), (0.0, 0.0), (2.0, 1.0), (1.0, 0.0), (2.0, -1.0)]
    options = {"points": points, "samples": 1500, "steps": 50}
    picture = draw_map(tmp_path / "a", **options)
    with Image.open(picture) as image:
        assert min(image.size) > 1500
    found = numbers(tmp_path / "a")
    assert list(found) == points
    data = json.loads((tmp_path / "a" / "map.json").read_text(encoding="utf-8"))
    assert data["protocol"]["samples"] == 1500
    assert data["protocol"]["fields"] == "exact"
    for point in points[:-1]:
        assert found[point]["energy"] < 0.012  # the start has 8
        assert found[point]["evaluations"] == 100
    assert found[2.0, -1.0]["energy"] > 0.02
    assert "power 0.67" in str(found[2.0, -1.0]["law"])
    draw_map(tmp_path / "b", **{**options, "points": points[2:3]})
    assert numbers(tmp_path / "b") == {points[2]: found[points[2]]}  # places do not meet
    draw_map(tmp_path / "c", **{**options, "points": points[2:3], "seed": 1})
    assert numbers(tmp_path / "c")[points[2]]["energy"] != found[points[2]]["energy"]


def test_a_map_with_learned_fields(tmp_path: Path) -> None:
    """A score that happens to be exact gives the exact map; a discriminator is asked where g² ≠ 2β."""
    dataset = open_dataset(DataSettings("gaussians"))
    assert dataset.target is not None
    options = {"dataset": dataset, "samples": 200, "steps": 80}
    draw_map(tmp_path / "exact", points=[(1.5, 1.0), (2.0, 0.0)], **options)
    score = ExactScoreField(dataset.target)
    draw_map(tmp_path / "score", learned=Learned(score), **options)
    between = json.loads((tmp_path / "score" / "map.json").read_text())["between_g2"]
    assert between == []  # one place in each row
    found, exact = numbers(tmp_path / "score"), numbers(tmp_path / "exact")
    assert found[2.0, 0.0]["energy"] == exact[2.0, 0.0]["energy"]
    assert set(found) == {point for point in plane.POINTS if point[0] == 2}
    assert left_out(tmp_path / "score") == set(plane.POINTS) - set(found)
    assert left_out(tmp_path / "exact") == set()
    draw_map(tmp_path / "constant", learned=Learned(score, 0.0 * score), **options)
    constant = numbers(tmp_path / "constant")
    assert set(constant) == {point for point in plane.POINTS if point[1] > 0 or point[0] == 2}
    assert constant[2.0, 1.0]["energy"] == found[2.0, 1.0]["energy"]

    class Steep(torch.nn.Module):
        def forward(self, x: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
            return 3 * x.sum(1)

    critic = DiscriminatorField(Steep())
    points = [(1.5, 1.0), (2.0, 1.0)]
    learned = Learned(score, critic, label="made up")
    draw_map(tmp_path / "critic", learned=learned, **{**options, "points": points})
    moved = numbers(tmp_path / "critic")
    (row,) = json.loads((tmp_path / "critic" / "map.json").read_text())["between_g2"]
    assert row["lambda2"] == 1.0
    assert row["largest_energy"] > 10 * abs(exact[1.5, 1.0]["energy"])  # the same law it is not
    assert moved[1.5, 1.0]["energy"] > 10 * abs(exact[1.5, 1.0]["energy"])
    assert moved[2.0, 1.0]["energy"] == found[2.0, 1.0]["energy"]
    assert (protocol(tmp_path / "critic")["label"], left_out(tmp_path / "critic")) == (
        "made up",
        set(),
    )
    assert "were the fields exact" in str(found[2.0, 1.0]["law"])


# --- what a run has learned

TINY = ["--evaluate-every", "9", "--evaluate-samples", "50", "--iterations", "2"]
NETWORKS = {
    "edm-gaussians": ["network"],
    "diffusion-gan-gaussians": ["score.network", "discriminator"],
    "gan-gaussians": ["generator", "discriminator"],
}


def trained(preset: str, folder: Path, *options: str) -> Run:
    """A run of two iterations and small networks."""
    small = [f"--{name}.{key}" for name in NETWORKS[preset] for key in ("width=8", "depth=1")]
    main(["train", preset, "--out", str(folder), *TINY, *small, *options])
    return load(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    joint = ["--score.iterations", "2", "--steps", "4", "--lambda2", "0.5"]
    return {
        "edm": trained("edm-gaussians", folder / "edm", "--sigma-max", "5"),
        "ve": trained("diffusion-gan-gaussians", folder / "ve", *joint),
        "vp": trained("diffusion-gan-gaussians", folder / "vp", *joint, "--path", "vp"),
    }


def test_fields_of_a_run(runs: dict[str, Run]) -> None:
    """Its score is s_p itself, at any noise level; its discriminator is that of its drift."""
    x, t = torch.randn(5, 2, generator=seeded()), torch.full((5,), 3.0)
    score, critic, path, _ = learned_fields(runs["edm"].model)
    sigma = torch.full((5,), 2.0)  # EDM's at t = 3
    at = At(t, sigma)
    assert_close(2 * score(x, at), runs["edm"].model.field(x, at))
    assert critic is None
    assert path == VESchedule(5.0, 0.02)
    for name, expected in (("ve", VESchedule(10.0, 0.02)), ("vp", VPSchedule())):
        model = runs[name].model
        score, critic, path, _ = learned_fields(model)
        assert path == expected
        assert critic is not None
        assert isinstance(model, ParticleModel)
        assert model.schedule is not None
        t = torch.full((5,), 0.4) * model.schedule.horizon
        flow = DiffFlow.reverse(model.schedule, g2=1.0, lambda2=0.5)
        assert_close(flow.field(score, critic)(x, At(t)), model.field(x, At(t)))


@pytest.mark.parametrize("name", ["edm", "ve", "vp"])
def test_a_map_of_a_run(
    name: str, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ((2.0, 2.0), (1.0, 1.0), (1.0, 0.0), (2.0, -1.0))
    monkeypatch.setattr(plane, "POINTS", few)
    monkeypatch.setattr(plane.plots, "save_figure", lambda figure, path: path.touch())
    folder = runs[name].path / "map"
    main(["map", "--run", str(runs[name].path), "--samples", "100", "--steps", "90"])
    reached = {(2.0, 2.0), (2.0, -1.0)} | ({(1.0, 1.0)} if name != "edm" else set())
    assert set(numbers(folder)) == reached
    assert left_out(folder) == set(few) - reached
    said = protocol(folder)
    assert (said["fields"], said["data"], said["steps"]) == ("learned", "gaussians", 90)
    assert said["discriminator"] == ("none" if name == "edm" else "learned")
    assert f"'{runs[name].preset}', iteration 2" in str(said["label"])
    assert ("trained on particles of 4 steps at (1, 0.5)" in str(said["label"])) == (name != "edm")


def test_runs_without_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gan = trained("gan-gaussians", tmp_path / "gan")
    for folder, message in (
        (gan.path, "needs a learned data score, which this model does not have"),
        (tmp_path / "nothing", "is no run folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["map", "--run", str(folder), "--out", str(tmp_path / "map")])
        assert stopped.value.code == 2
        (said,) = capsys.readouterr().err.splitlines()[-1:]
        assert message in said
    assert not (tmp_path / "map").exists()


SCORE = ExactScoreField(GAUSSIAN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: {"dataset": open_dataset(DataSettings("digits"))}, "points of the plane"),
        (lambda: {"dataset": open_dataset(DataSettings("moons"))}, "need a Gaussian mixture"),
        (lambda: {"points": [(1.0, 1.5)]}, "not on the plane"),
        (lambda: {"points": [(-0.5, -1.0)]}, "not on the plane"),
        (lambda: {"points": []}, "no places"),
        (lambda: {"points": [(1.0, 0.0)], "learned": Learned(SCORE)}, "of that place is needed"),
        (lambda: {"samples": 20}, "samples >= 100"),
        (lambda: {"points": [(2.0, 1.0)], "steps": 0}, "of at least 1"),
        (lambda: {"points": [(2.0, 0.0)], "steps": 12, "samples": 100}, "take more than 12 steps"),
    ],
)
def test_impossible_maps(
    options: Callable[[], dict[str, object]], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, NumericsError), match=message):
        draw_map(tmp_path, **options())  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())
