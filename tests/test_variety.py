"""Classes of samples and smoothness of paths: exact values, invariances, and what they tell apart."""

from __future__ import annotations

import math

import pytest
import torch

from partikel import metrics
from partikel.errors import ConfigError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_entropy_of_known_shares() -> None:
    assert metrics.entropy([1, 1, 1, 1]) == pytest.approx(math.log(4))
    assert metrics.entropy([0, 3, 0]) == 0
    assert metrics.entropy([2, 1, 1]) == pytest.approx(1.5 * math.log(2))
    # grouping: H(ab, a(1-b), 1-a) = H(a, 1-a) + a H(b, 1-b)
    a, b = 0.3, 0.2
    together = metrics.entropy([a * b, a * (1 - b), 1 - a])
    assert together == pytest.approx(metrics.entropy([a, 1 - a]) + a * metrics.entropy([b, 1 - b]))
    for wrong in ([], [0.0, 0.0], [1.0, -0.1], [math.nan]):
        with pytest.raises((ValueError, ConfigError), match="entropy"):
            metrics.entropy(wrong)


def test_class_statistics_count() -> None:
    labels = torch.tensor([0] * 50 + [1] * 49 + [2])
    found = metrics.class_statistics(labels, 4)
    assert found.shares == (0.5, 0.49, 0.01, 0.0)
    assert found.effective == pytest.approx(math.exp(found.entropy))
    assert (found.held, found.classes) == (2, 4)  # .01 is less than a tenth of a quarter
    assert (
        metrics.class_statistics(labels, 4, [48, 48, 4, 0.1]).held == 3
    )  # of a rare class it is not
    shuffled = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert metrics.class_statistics(shuffled, 4) == found
    for wrong in (labels.float(), labels[:0], labels[:, None], torch.tensor([4])):
        with pytest.raises(ValueError, match="labels"):
            metrics.class_statistics(wrong, 4)


@pytest.mark.parametrize("points", [2, 9, 33])
def test_straight_even_paths_have_the_squared_distance_of_their_ends(points: int) -> None:
    ends, real = normal(5, 2, 3), normal(400, 3, seed=1)
    fractions = torch.linspace(0, 1, points, dtype=torch.float64)[None, :, None]
    paths = torch.lerp(ends[:, :1], ends[:, 1:], fractions)
    found = metrics.path_smoothness(paths, real)
    squares = (ends[:, 0] - ends[:, 1]).square().sum(-1)
    pairs = torch.pdist(real).square().mean()
    assert found.length == pytest.approx(float(squares.mean() / pairs), rel=1e-9)
    assert found.error == pytest.approx(float(squares.std() / pairs) / 5**0.5, rel=1e-9)
    assert found.largest == pytest.approx(1 / (points - 1))


def test_a_path_in_one_jump_is_as_long_as_it_has_steps() -> None:
    ends, real = normal(6, 2, 3), normal(50, 3, seed=1)
    straight = metrics.path_smoothness(ends, real)
    jump = metrics.path_smoothness(ends[:, [0, 0, 0, 1, 1]], real)
    assert jump.length == pytest.approx(4 * straight.length)
    assert jump.largest == 1


def test_path_smoothness_ignores_rigid_motions_and_scale() -> None:
    paths, real = normal(7, 9, 4), normal(50, 4, seed=1)
    turn, _ = torch.linalg.qr(normal(4, 4, seed=2))
    found = metrics.path_smoothness(paths, real)
    moved = metrics.path_smoothness(3 * paths @ turn + 5, 3 * real @ turn + 5)
    for name in ("length", "error", "largest"):
        assert getattr(moved, name) == pytest.approx(getattr(found, name), rel=1e-9)
    assert metrics.path_smoothness(paths.flip(1), real).length == pytest.approx(found.length)


def test_independent_points_make_paths_of_known_length() -> None:
    # E (K-1) Σ |x - x'|² = (K-1)² E|x - x'|²
    paths, real = normal(4000, 5, 3), normal(4000, 3, seed=1)
    found = metrics.path_smoothness(paths, real)
    assert abs(found.length - 16) < 4 * (found.error + 16 * 0.02)


def test_path_smoothness_refuses_what_has_no_answer() -> None:
    still = metrics.path_smoothness(torch.zeros(2, 5, 3), normal(5, 3))
    assert (still.length, still.largest) == (0, 0.25)
    assert math.isnan(metrics.path_smoothness(normal(1, 3, 2), normal(5, 2)).error)
    for features, real in (
        (normal(3, 4), normal(5, 4)),
        (normal(3, 1, 4), normal(5, 4)),
        (normal(3, 4, 2), normal(5, 3)),
        (normal(3, 4, 2), normal(1, 2)),
        (normal(3, 4, 2), torch.ones(5, 2)),
    ):
        with pytest.raises(ValueError, match=r"paths|real"):
            metrics.path_smoothness(features, real)


def test_class_changes() -> None:
    assert metrics.class_changes(torch.tensor([[1, 1, 1, 1], [1, 2, 1, 1]])) == 1
    assert metrics.class_changes(torch.tensor([[3, 0, 3, 0]])) == 3
    with pytest.raises(ValueError, match="labels"):
        metrics.class_changes(torch.tensor([1, 2]))
