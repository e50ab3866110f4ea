"""The matrix of fields and carriers, and the fields that learn nothing as samplers of a density."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from conftest import GAUSSIAN, assert_moments, seeded
from partikel.app.cli import main
from partikel.data import DataSettings, open_dataset
from partikel.errors import CheckpointError, ConfigError
from partikel.fields import ExactScoreField, Field, MMDField, SteinField
from partikel.kernels import RBFKernel, RieszKernel
from partikel.models import FlowMapModel, GeneratorModel, Lagrangian, ParticleModel, Semigroup
from partikel.objectives import DIVERGENCES
from partikel.priors import GaussianPrior
from partikel.solvers import EulerMaruyama
from partikel.studies import catalogue as matrix
from partikel.studies.catalogue import CARRIERS, CATALOGUE, Cell, Kit, run_matrix, table

TINY = ("non-saturating", "langevin", "mmd-energy")
CAP = 65
DOCS = Path(__file__).parents[1] / "docs" / "matrix.md"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("matrix")
    run_matrix(out, rows=TINY, cap=CAP)
    return out


def cells_of(out: Path) -> list[Cell]:
    return [Cell(**each) for each in json.loads((out / "matrix.json").read_text())["cells"]]


# --- the command


def test_every_pair_is_run_and_measured(tiny: Path) -> None:
    cells = cells_of(tiny)
    assert [(c.row, c.carrier) for c in cells] == [(r, c) for r in TINY for c in CARRIERS]
    for cell in cells:
        assert (cell.energy is None) == cell.has_no_map
        assert (cell.cpu_seconds > 0) != cell.has_no_map
    words = {cell.row: cell.reason for cell in cells if cell.carrier == "flow map"}
    assert words == {"non-saturating": None, "langevin": "noise", "mmd-energy": "cloud"}
    notes = {(row, carrier): note for row, carrier, *_, note in table(cells, "gaussians")}
    assert notes["langevin", "flow map"] == "no map: noise"
    assert ("langevin", "flow map") not in matrix.reasons(cells)
    with Image.open(tiny / "matrix.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.parametrize(("name", "loss"), [("score", Lagrangian), ("kl-critic", Semigroup)])
def test_a_map_learns_the_trained_flow_of_its_row(
    name: str, loss: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the averaged weights that particles of the row are drawn with, and by the loss that suits it."""
    found: list[FlowMapModel] = []

    def untrained(of: Any, dataset: Any, seed: int, cap: Any, make: Any) -> Any:
        if isinstance(of.model, FlowMapModel):
            found.append(of.model)
            return make(of.model), 0
        return made(of, dataset, seed, cap, make)

    made = matrix._made
    monkeypatch.setattr(matrix, "_made", untrained)
    data = open_dataset(DataSettings("gaussians"))
    scores = matrix._Scores(data, 0, 20)
    matrix._run(CATALOGUE[name], "particles", data, 0, 20, scores)
    cell, _ = matrix._run(CATALOGUE[name], "flow map", data, 0, 20, scores)
    (model,) = found
    assert isinstance(model.loss, loss)
    assert cell.reason is None
    assert not any(p.requires_grad for p in model.field.parameters())


def test_the_picture_says_what_was_run_and_what_was_missed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(matrix.plots, "save_figure", lambda figure, *_, **__: drawn.append(figure))
    cells = run_matrix(tiny, rows=TINY, cap=CAP)
    (texts,) = ([text for text in figure.findobj(Text) if text.get_text()] for figure in drawn)
    assert f"at most {CAP}" in texts[-1].get_text()
    red = [text for text in texts if text.get_color() == matrix.plots.SERIES[0]]
    assert len(red) == sum(not (cell.reaches(5) or cell.has_no_map) for cell in cells)


def test_a_sampler_arrives_and_a_collapsed_generator_is_told_apart(tiny: Path) -> None:
    cells = {(cell.row, cell.carrier): cell for cell in cells_of(tiny)}
    assert cells["langevin", "particles"].reaches(5)
    assert cells["mmd-energy", "particles"].reaches(5)
    lost = cells["langevin", "generator"]
    assert not lost.reaches(5)
    assert lost.reason == CATALOGUE["langevin"].misses["generator"]


def test_the_cap_is_of_iterations(tiny: Path) -> None:
    """It shortens trainings; a flow that learns nothing has none."""
    cells = {(cell.row, cell.carrier): cell for cell in cells_of(tiny)}
    for carrier in CARRIERS:
        cell = cells["non-saturating", carrier]
        assert cell.stopped
        assert cell.iterations == (
            2 * CAP if carrier == "flow map" else CAP
        )  # the flow's, then the map's
    sampler = cells["langevin", "particles"]
    assert not sampler.stopped
    assert sampler.iterations == 0


def test_done_cells_are_skipped(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (tiny / "matrix.json").read_text()

    def refuse(*arguments: object) -> None:
        raise AssertionError("a done cell is run again")

    with monkeypatch.context() as patch:
        patch.setattr(matrix, "_run", refuse)
        again = run_matrix(tiny, rows=TINY, cap=CAP)
        assert (tiny / "matrix.json").read_text() == before
        assert again == run_matrix(tiny, rows=TINY[::-1], cap=CAP)
        with pytest.raises(AssertionError, match="run again"):
            run_matrix(tiny, rows=TINY, seeds=[1], cap=CAP)


def test_a_cell_whose_samples_are_gone_is_run_again(tmp_path: Path) -> None:
    def particles() -> Cell:
        cells = run_matrix(tmp_path, rows=["langevin"], cap=CAP)
        return next(cell for cell in cells if cell.carrier == "particles")

    first = particles()
    path = tmp_path / "samples" / "langevin-particles-0.npy"
    kept = path.read_bytes()
    path.unlink()
    second = particles()
    assert path.read_bytes() == kept
    assert (second.energy, second.sliced_w2) == (first.energy, first.sliced_w2)


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rows", "[langevin]", "--target", "unequal", "--cap", "20"]
    main(["matrix", "--out", str(tmp_path), *options])
    said = capsys.readouterr().out
    assert "langevin" in said
    assert "SW2" in said
    assert "cannot" in said
    assert "noise averages out" in " ".join(said.split())
    assert json.loads((tmp_path / "matrix.json").read_text())["protocol"]["data"] == "unequal"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ["svdg"]}, "no field 'svdg': did you mean 'svgd'"),
        ({"target": "gausians"}, "did you mean 'gaussians'"),
        ({"target": "moons"}, "known density"),
        ({"target": "digits"}, "points of the plane"),
        ({"cap": 0}, "run_matrix.cap=.* at least 1"),
        ({"seeds": []}, "needs a seed"),
    ],
)
def test_what_cannot_be_run(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_matrix(tmp_path, **options)
    assert not (tmp_path / "matrix.json").exists()


def test_folders_that_cannot_be_continued(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        run_matrix(tiny, rows=TINY, cap=2 * CAP)
    (tmp_path / "matrix.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a matrix that can be read"):
        run_matrix(tmp_path, rows=["langevin"])


def test_the_table_is_of_the_worst_seed() -> None:
    def cell(seed: int, energy: float, modes: int, stopped: bool = False) -> Cell:
        figures = {"energy": energy, "sliced_w2": 0.1, "modes": modes, "cpu_seconds": 2.0 + seed}
        rest = {"score_seconds": 0.0, "iterations": 1, "stopped": stopped, "reason": None}
        return Cell("svgd", "particles", seed, **figures, **rest)

    (line,) = table([cell(0, 0.01, 5), cell(2, 0.02, 5)], "gaussians")
    assert line == ["svgd", "particles", "0.020", "0.10", "5", "3", ""]
    (line,) = table([cell(0, 0.01, 5), cell(1, 0.01, 4)], "gaussians")
    assert line[4] == "4"
    assert line[-1] == "misses"
    (line,) = table([cell(0, 0.01, 5), cell(1, 0.06, 5)], "gaussians")
    assert line[-1] == "misses"
    (line,) = table([cell(0, 0.01, 5, stopped=True)], "gaussians")
    assert line[-1] == "capped"
    (line,) = table([replace(cell(0, 3.0, 1), reason="it is alone")], "gaussians")
    assert line[-1] == "cannot"


# --- the catalogue


def test_every_row_trains_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that says it learns nothing has no losses of its field; others train all of them."""
    monkeypatch.setattr(matrix, "SAMPLES", 50)
    dataset = open_dataset(DataSettings("gaussians"))

    def score() -> Field:
        denoiser = Kit(dataset, "generator", 0, score).own_score()  # type: ignore[arg-type]
        return denoiser.freeze()

    for row in CATALOGUE.values():
        for carrier in ("particles", "generator"):
            kit = Kit(dataset, carrier, 0, score)  # type: ignore[arg-type]
            build = row.particles if carrier == "particles" else row.generator
            plan = build(kit)
            losses = {loss.name for loss in plan.model.field.losses()}
            own = {name for name in row.learns.split(", ") if name not in ("nothing", "data score")}
            assert losses == own
            trained = own | ({"generator"} if carrier == "generator" else set())
            assert {phase.loss for phase in plan.phases} == trained
            wanted = ParticleModel if carrier == "particles" else GeneratorModel
            assert isinstance(plan.model, wanted)
            if plan.phases:
                matrix._train(plan, dataset, 0, 1)
            options: dict[str, Any] = {"stop": 1} if carrier == "particles" else {}
            options |= {"generator": seeded(), "real": dataset.draw(50, generator=seeded()).x}
            samples = plan.model.eval().sample(50, **options)
            assert samples.isfinite().all()


def test_the_catalogue_has_every_divergence_and_kernel() -> None:
    for name in DIVERGENCES:
        assert f"{name}-kernels" in CATALOGUE
    assert {"dmmd", "w-flow", "guidance", "mmd-entropy", "le-cam-kernels"} <= set(CATALOGUE)
    assert {"mmd-rbf", "mmd-multi-rbf", "mmd-laplace", "mmd-imq", "mmd-energy"} <= set(CATALOGUE)


def test_the_score_that_is_guided_is_wrong() -> None:
    """Its samples are the data with noise: E‖x‖² = 3² + 2 (0.5² + BLUR²)."""
    target = open_dataset(DataSettings("gaussians")).target
    assert target is not None
    x = matrix._diffused(matrix._Blurred(target)).sample(4000, generator=seeded())
    expected = 9.5 + 2 * matrix._Blurred.BLUR**2
    assert float(x.square().sum(1).mean()) == pytest.approx(expected, rel=0.06)  # of 18 steps


# --- samplers of a given density


def sampled(model: ParticleModel, n: int, real: Tensor | None = None) -> Tensor:
    start = model.prior.sample(n, generator=seeded(1), dtype=torch.float64)
    return model.sample(n, generator=seeded(2), start=start, real=real)


def test_langevin_samples_a_gaussian() -> None:
    """Euler's steps of dt widen a variance v to v/(1 - dt/2v), by 1 % here at most."""
    noise = EulerMaruyama()
    model = ParticleModel(
        ExactScoreField(GAUSSIAN),
        GaussianPrior((2,)),
        steps=1000,
        eta=4.0,
        diffusion=lambda t: torch.full_like(t, 8.0**0.5),
        solver=noise,
    )
    assert_moments(sampled(model, 4000), GAUSSIAN.mean, GAUSSIAN.covariance)


def test_svgd_samples_a_gaussian() -> None:
    field = SteinField(ExactScoreField(GAUSSIAN), RBFKernel("median"))
    model = ParticleModel(field, GaussianPrior((2,)), steps=400, eta=80.0)
    x = sampled(model, 300)
    assert_moments(x, GAUSSIAN.mean, GAUSSIAN.covariance)
    # it is a quadrature: the mean is far closer than that of independent draws
    torch.testing.assert_close(x.mean(0), GAUSSIAN.mean, atol=5e-3, rtol=0)


def test_an_mmd_flow_samples_a_gaussian() -> None:
    real = GAUSSIAN.sample(500, generator=seeded(), dtype=torch.float64)
    model = ParticleModel(MMDField(RieszKernel()), GaussianPrior((2,)), steps=60, eta=30.0)
    assert_moments(sampled(model, 500, real), GAUSSIAN.mean, GAUSSIAN.covariance)


def test_the_examples_of_the_docs_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    exec(blocks[0], names)
    for name in ("langevin", "svgd", "mmd"):
        x = names[name]
        assert isinstance(x, Tensor)
        assert x.shape == (500, 2)
        assert matrix._measured(x, open_dataset(DataSettings("gaussians")))["modes"] == 5
