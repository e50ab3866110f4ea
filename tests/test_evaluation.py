"""Evaluation: figures with their protocol; a perfect sampler looks like the data."""

from __future__ import annotations

import pytest
import torch

from partikel.data import DataSettings, open_dataset
from partikel.errors import ConfigError
from partikel.evaluation import choose_features, evaluate, quick_evaluation


def test_a_perfect_sampler_of_points_is_within_the_noise() -> None:
    dataset = open_dataset(DataSettings("gaussians"))
    result = evaluate(lambda n, g: dataset.draw(n, generator=g).x, dataset, n=3000)
    assert result.metrics["modes"] == 5
    assert abs(result.metrics["energy"]) < 0.006  # ten times its spread at 10,000 points is .005
    assert result.metrics["within_3sigma"] == pytest.approx(0.989, abs=0.007)
    assert result.metrics.keys() == result.reference.keys()
    assert result.protocol["samples"] == 3000


def test_a_shifted_sampler_of_points_is_seen() -> None:
    dataset = open_dataset(DataSettings("moons"))
    result = evaluate(lambda n, g: dataset.draw(n, generator=g).x + 0.3, dataset, n=1000)
    assert result.metrics["w2"] == pytest.approx(0.3 * 2**0.5, abs=0.1)
    assert result.metrics["energy"] > 5 * abs(result.reference["energy"])
    assert "modes" not in result.metrics


def test_images_are_measured_on_the_features_of_their_data() -> None:
    dataset = open_dataset(DataSettings("digits"))
    good = evaluate(lambda n, g: dataset.draw(n, "train", generator=g).x, dataset)
    assert good.protocol["features"] == "digits"
    assert good.protocol["samples"] == dataset.size("test")
    noise = evaluate(lambda n, g: torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, dataset)
    assert good.metrics["frechet"] < 1 < 10 < noise.metrics["frechet"]
    assert good.metrics["coverage"] > 0.9 > noise.metrics["coverage"]
    pixels = evaluate(
        lambda n, g: dataset.draw(n, "train", generator=g).x, dataset, features="pixels"
    )
    assert pixels.protocol["dimension"] == 64


def test_features_that_do_not_fit_are_refused() -> None:
    dataset = open_dataset(DataSettings("digits"))
    with pytest.raises(ConfigError, match="28x28"):
        choose_features("mnist", dataset)
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        choose_features("digit", dataset)


def test_the_quick_evaluation_repeats_itself() -> None:
    dataset = open_dataset(DataSettings("gaussians"))

    def sampler(n: int, g: torch.Generator) -> torch.Tensor:
        return dataset.draw(n, generator=g).x + 1

    first = quick_evaluation(sampler, dataset, n=500)
    assert first == quick_evaluation(sampler, dataset, n=500)
    assert first["energy"] > 0.1
    assert first["modes"] <= 5


def test_one_sample_is_not_enough() -> None:
    dataset = open_dataset(DataSettings("gaussians"))
    with pytest.raises(ConfigError, match="at least 2"):
        evaluate(lambda n, g: dataset.draw(n, generator=g).x, dataset, n=1)
