"""MIND and the Fréchet ratio: laws, and what a run's evaluation says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from conftest import LinearField, randn, tensor
from partikel.app.cli import main
from partikel.app.runs import field_norm
from partikel.data import DataSettings, FiniteDataset, in_memory, open_dataset
from partikel.errors import ConfigError
from partikel.fields import MMDField
from partikel.kernels import RBFKernel
from partikel.metrics.evaluation import evaluate
from partikel.metrics.own import add_own
from partikel.metrics.several import fd_ratio, mind, networks_without_download
from partikel.models import GeneratorModel, ParticleModel
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule

DIGITS = DataSettings("digits")


def test_mind_of_a_shift_is_its_square_over_the_dimension() -> None:
    x = randn(400, 5)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    found = mind(x, x + shift, projections=100_000)
    assert found == pytest.approx(float(shift @ shift) / 5, rel=0.02)
    assert mind(x, x.flip(0)) == pytest.approx(0, abs=1e-12)


def test_mind_sees_what_mean_and_covariance_do_not() -> None:
    """Two points against a Gaussian of the same moments, on a line: ∫ (|Φ⁻¹| - 1)² = 2 - 2√(2/π)."""
    n = 100_000
    gaussian = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    found = mind(gaussian.sign(), gaussian, projections=2)
    assert found == pytest.approx(2 - 2 * (2 / torch.pi) ** 0.5, rel=1e-4)


def test_mind_compares_clouds_of_one_size() -> None:
    x, y = randn(50, 3), randn(80, 3, seed=1)
    assert mind(x, y) == mind(x, y[:50])


def test_a_ratio_is_one_where_a_model_is_as_near_as_data() -> None:
    assert fd_ratio([0.2, 30.0], [0.2, 30.0]) == 1
    assert_close(fd_ratio([0.4, 30.0], [0.2, 30.0]), 1.5)  # no network's scale decides alone
    with pytest.raises(ValueError, match="two for each"):
        fd_ratio([], [])
    with pytest.raises(ValueError, match="two for each"):
        fd_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at a distance"):
        fd_ratio([1.0], [0.0])


def test_networks_are_those_that_see_the_images_here() -> None:
    assert networks_without_download((1, 8, 8)) == ["digits", "pixels"]
    assert networks_without_download((1, 28, 28))[0] == "mnist"
    assert networks_without_download((3, 16, 16))[-1] == "pixels"
    assert "mnist" not in networks_without_download((3, 16, 16))


def test_both_rise_with_noise_and_are_small_for_data() -> None:
    """Training images in the samples' place, then with more and more noise."""
    data = open_dataset(DIGITS)
    found = []
    for noise in (0.0, 0.3, 1.0):

        def draw(n: int, generator: torch.Generator, noise: float = noise) -> torch.Tensor:
            x = data.draw(n, generator=generator).x
            return (x + noise * torch.randn(x.shape, generator=generator)).clamp(-1, 1)

        result = evaluate(draw, data, n=300)
        add_own(result, ["mind", "fdr"], draw, data)
        found.append((result.metrics["mind"], result.metrics["fdr"]))
        assert result.reference["fdr"] == 1
        assert "2 networks" in result.protocol["fdr"]
    clean, some, much = found
    assert clean[0] < some[0] / 3 < much[0] / 3
    assert clean[1] < some[1] / 3 < much[1] / 3
    assert clean[0] == pytest.approx(result.reference["mind"], rel=1)
    assert clean[1] == pytest.approx(1, abs=0.5)


def test_what_too_few_or_equal_images_do_not_tell_is_left_out() -> None:
    x = torch.rand(9, 1, 8, 8)

    def draw(n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(n, 1, 8, 8, generator=generator)

    same = {split: x[:1].repeat(8, 1, 1, 1) for split in ("train", "validation", "test")}
    equal = FiniteDataset("equal", same, sigma_data=1.0)
    for data, missing in ((in_memory(x), {"mind", "fdr"}), (equal, {"fdr"})):
        result = evaluate(draw, data, n=8)
        add_own(result, ["mind", "fdr"], draw, data)
        assert missing == {"mind", "fdr"} & set(result.left_out)
        assert missing == {"mind", "fdr"} - set(result.metrics)


def test_what_pulls_at_samples_is_the_field_there() -> None:
    """Of a generator at its horizon, of free particles at the last node; of a path of noise nothing."""
    x = randn(30, 2)
    field = LinearField(2 * torch.eye(2, dtype=torch.float64), tensor([1.0, 0.0]))
    norm = float((2 * x + tensor([1.0, 0.0])).square().sum(1).mean().sqrt())
    prior = GaussianPrior((2,))
    for model in (
        GeneratorModel(field, torch.nn.Linear(2, 2), prior),
        ParticleModel(field, prior, steps=4),
    ):
        assert field_norm(model, x) == pytest.approx(norm)
    schedule = EDMSchedule(10.0)
    path = ParticleModel(schedule.half_rate * field, prior, steps=4, schedule=schedule)
    assert field_norm(path, x) is None
    timed = ParticleModel((lambda t: t) * field, prior, steps=4)
    assert field_norm(timed, x) == pytest.approx(0.75 * norm)
    # a field of samples compares with the data, and with the samples as their cloud
    mean = GeneratorModel(MMDField(RBFKernel(1.0)), torch.nn.Linear(2, 2), prior)
    assert field_norm(mean, x, real=x) == pytest.approx(0, abs=1e-12)
    far = field_norm(mean, x, real=x + 1)
    assert far is not None
    assert far > 0.1


def test_a_training_is_watched_by_what_can_be_trusted(tmp_path: Path) -> None:
    small = "--iterations 4 --batch 8 --evaluate-samples 40 --evaluate-every 2 --checkpoint-every 4"
    networks = "--discriminator.width 8 --generator.width 8"
    main(f"train gan-digits {small} {networks} --out {tmp_path / 'gan'}".split())
    lines = [
        json.loads(line) for line in (tmp_path / "gan" / "metrics.jsonl").read_text().splitlines()
    ]
    watched = [line for line in lines if "frechet" in line]
    assert [line["step"] for line in watched] == [0, 2, 4]
    for line in watched:
        assert line["kid"] > 0
        assert line["field"] > 0
    page = (tmp_path / "gan" / "report.html").read_text()
    assert "field at samples, its norm, during training" in page
    assert "KID during training" in page


def test_a_conditional_flow_is_watched_by_its_field_too(tmp_path: Path) -> None:
    small = "--iterations 2 --batch 8 --evaluate-samples 20 --evaluate-every 2 --checkpoint-every 2"
    model = "--conditional true --steps 2 --network.width 8 --network.depth 1"
    main(f"train discriminator-flow-digits {small} {model} --out {tmp_path / 'run'}".split())
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert [json.loads(line)["field"] > 0 for line in text.splitlines()] == [True, True]


def test_what_is_due_after_the_end_is_measured_at_the_end(tmp_path: Path) -> None:
    rarely = "--evaluate-every 1000000 --checkpoint-every 1000000"
    small = "--iterations 2 --batch 8 --evaluate-samples 20 --generator.width 8"
    main(f"train gan-gaussians {rarely} {small} --out {tmp_path / 'run'}".split())
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    assert all({"energy", "field"} <= set(line) for line in lines)


def test_the_command_adds_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    small = "--iterations 2 --batch 8 --network.width 8 --evaluate-samples 20 --evaluate-every 2"
    main(f"train edm-digits {small} --out {run}".split())
    capsys.readouterr()
    main(f"evaluate {run} -n 40 --measures mind,fdr --steps 2 --json".split())
    record = json.loads(capsys.readouterr().out)
    assert record["metrics"]["mind"] > record["reference"]["mind"] > 0
    assert record["metrics"]["fdr"] > record["reference"]["fdr"] == 1
    points = open_dataset(DataSettings("gaussians"))

    def draw(n: int, generator: torch.Generator) -> torch.Tensor:
        return points.draw(n, generator=generator).x

    with pytest.raises(ConfigError, match="is a measure of images"):
        add_own(evaluate(draw, points, n=50), ["mind"], draw, points)
