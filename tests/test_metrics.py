"""Metrics: closed forms, brute force, invariances, and unbiasedness within standard errors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.testing import assert_close

from partikel import metrics
from partikel.data import DataSettings, FiniteDataset, open_dataset
from partikel.errors import CheckpointError, ConfigError, DataError
from partikel.metrics import classifier, distances
from partikel.metrics.features import FeatureSet
from partikel.targets import Gaussian, GaussianMixture

F64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(dim: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=99)).Q


def ring() -> GaussianMixture:
    angles = [2 * math.pi * k / 5 for k in range(5)]
    return GaussianMixture([[4 * math.cos(a), 4 * math.sin(a)] for a in angles], std=0.5)


def all_pairs(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y[None]).square().sum(-1)


def brute_u_statistic(x: Tensor, y: Tensor, f: Callable[[Tensor], Tensor]) -> float:
    """2 E f(x, y) - E f(x, x') - E f(y, y') without tiles or tricks."""
    n, m = len(x), len(y)
    off_x, off_y = ~torch.eye(n, dtype=torch.bool), ~torch.eye(m, dtype=torch.bool)
    return float(
        2 * f(all_pairs(x, y)).mean()
        - f(all_pairs(x, x))[off_x].mean()
        - f(all_pairs(y, y))[off_y].mean()
    )


# --- distances over pairs


@pytest.mark.parametrize("dim", [1, 2, 3, 20])
@pytest.mark.parametrize("bandwidths", [distances.BANDWIDTHS, (0.7, 3.0)])
def test_pairwise_distances_equal_brute_force(dim: int, bandwidths: tuple[float, ...]) -> None:
    # The sizes leave ragged tiles along both axes and off the diagonal.
    x, y = normal(701, dim), 1.3 * normal(530, dim, seed=1) + 0.2
    report = metrics.pairwise_distances_report(x, y, bandwidths)
    energy = brute_u_statistic(x, y, torch.sqrt)
    mmd2 = -sum(
        brute_u_statistic(x, y, lambda d, s=s: (-d / (2 * s**2)).exp()) for s in bandwidths
    ) / len(bandwidths)
    assert report.energy == pytest.approx(energy, rel=1e-10, abs=1e-12)
    assert report.mmd2 == pytest.approx(mmd2, rel=1e-10, abs=1e-12)
    assert metrics.energy_distance(x, y) == report.energy
    assert metrics.mmd2(x, y, bandwidths) == report.mmd2


@pytest.mark.parametrize("dim", [2, 20])
def test_tiles_do_not_change_the_answer(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(333, dim), normal(200, dim, seed=1) + 0.5
    whole = metrics.pairwise_distances_report(x, y)
    monkeypatch.setattr(distances, "_tile_shape", lambda x: (7, 14))
    assert metrics.pairwise_distances_report(x, y) == pytest.approx(whole, rel=1e-11)


def test_kernels_are_averaged_whatever_their_spacing() -> None:
    """A ladder of halved bandwidths, computed by squaring, is the mean of its rungs."""
    x, y = normal(300, 2, dtype=torch.float32), normal(300, 2, seed=1, dtype=torch.float32) + 0.3
    ladder = [2.0**k for k in range(-6, 4)]
    rungs = [metrics.mmd2(x, y, (sigma,)) for sigma in ladder]
    assert metrics.mmd2(x, y, ladder) == pytest.approx(sum(rungs) / len(rungs), abs=1e-7)


@pytest.mark.parametrize("dim", [2, 50])
def test_float32_agrees_with_float64_far_from_the_origin(dim: int) -> None:
    x, y = normal(2000, dim, dtype=torch.float32) + 30, 30.1 + normal(2000, dim, seed=1).float()
    single = metrics.pairwise_distances_report(x, y)
    double = metrics.pairwise_distances_report(x.double(), y.double())
    assert single == pytest.approx(double, abs=1e-6)


@pytest.mark.parametrize("dim", [2, 12])
def test_pairwise_distances_ignore_rigid_motions_and_order(dim: int) -> None:
    x, y = normal(150, dim), normal(120, dim, seed=1) + 0.4
    report = metrics.pairwise_distances_report(x, y)
    turned = metrics.pairwise_distances_report(x.flip(0) @ rotation(dim) + 5, y @ rotation(dim) + 5)
    assert turned == pytest.approx(report, rel=1e-9)
    assert metrics.pairwise_distances_report(y, x) == pytest.approx(report, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_pairwise_distances_are_unbiased(shift: float) -> None:
    """Means over repeated draws hit the closed forms of Gaussians within 4 standard errors."""
    s, repeats, bandwidths = 1.5, 400, (0.5, 1.0)
    reports = torch.tensor(
        [
            metrics.pairwise_distances_report(
                normal(40, 1, seed=2 * i), s * normal(30, 1, seed=2 * i + 1) + shift, bandwidths
            )
            for i in range(repeats)
        ],
        dtype=F64,
    )

    def mean_distance(mean: float, variance: float) -> float:
        """E|Z| for Z ~ N(mean, variance)."""
        std = math.sqrt(variance)
        density = math.sqrt(2 / math.pi) * std * math.exp(-(mean**2) / (2 * variance))
        return density + mean * math.erf(mean / (std * math.sqrt(2)))

    def mean_kernel(mean: float, variance: float) -> float:
        """E exp(-Z²/2σ²), averaged over σ."""
        return sum(
            math.sqrt(b**2 / (b**2 + variance)) * math.exp(-(mean**2) / (2 * (b**2 + variance)))
            for b in bandwidths
        ) / len(bandwidths)

    def statistic(f: Callable[[float, float], float]) -> float:
        return 2 * f(shift, 1 + s**2) - f(0.0, 2.0) - f(0.0, 2 * s**2)

    exact = torch.tensor([-statistic(mean_kernel), statistic(mean_distance)], dtype=F64)
    errors = reports.std(0) / math.sqrt(repeats)
    assert ((reports.mean(0) - exact).abs() < 4 * errors).all()


def test_data_against_data_scatters_around_zero() -> None:
    target, generator = ring(), torch.Generator().manual_seed(0)
    reports = torch.tensor(
        [
            metrics.pairwise_distances_report(
                target.sample(400, generator=generator), target.sample(400, generator=generator)
            )
            for _ in range(60)
        ],
        dtype=F64,
    )
    errors = reports.std(0) / math.sqrt(len(reports))
    assert (reports.mean(0).abs() < 4 * errors).all()
    assert ((reports < 0).any(0) & (reports > 0).any(0)).all()


def test_pairwise_distances_take_images_and_integers() -> None:
    x, y = normal(20, 3, 4, 4), normal(30, 3, 4, 4, seed=1)
    assert metrics.energy_distance(x, y) == metrics.energy_distance(x.flatten(1), y.flatten(1))
    points = torch.tensor([[0], [2]])
    assert metrics.energy_distance(points, points) == 2 * 1 - 2 - 2


def test_pairwise_distances_refuse_what_has_no_answer() -> None:
    x = normal(5, 2)
    with pytest.raises(ValueError, match="at least 2 points"):
        metrics.energy_distance(x[:1], x)
    with pytest.raises(ValueError, match="like points"):
        metrics.mmd2(x, normal(5, 3))
    with pytest.raises(ValueError, match="bandwidths"):
        metrics.mmd2(x, x, (1.0, 0.0))
    with pytest.raises(ValueError, match="bandwidths"):
        metrics.pairwise_distances_report(x, x, ())


@pytest.mark.usefixtures("pot")
def test_points_that_are_not_finite_make_distances_nan() -> None:
    x, y = normal(20, 2), normal(20, 2, seed=1)
    x[3, 1] = math.nan
    assert all(math.isnan(value) for value in metrics.pairwise_distances_report(x, y))
    assert math.isnan(metrics.sliced_wasserstein2(x, y))
    assert math.isnan(metrics.wasserstein2(x, y))
    assert math.isnan(metrics.frechet_distance(gathered(x), gathered(y)))


# --- Wasserstein distances


def test_sliced_wasserstein_of_shifts() -> None:
    x = normal(300, 1)
    assert metrics.sliced_wasserstein2(x, x - 0.7) == pytest.approx(0.7, rel=1e-12)
    # A shift by v measures the root of the mean of (θ·v)² over unit vectors θ: over an orthonormal
    # basis the squares add up to one, whatever the lines.
    x = normal(300, 3)
    squares = [metrics.sliced_wasserstein2(x, x + axis) ** 2 for axis in torch.eye(3, dtype=F64)]
    assert sum(squares) == pytest.approx(1.0, rel=1e-12)
    # Var (θ·v)² = 4/45 for θ uniform on the sphere.
    assert squares == pytest.approx([1 / 3] * 3, abs=4 * math.sqrt(4 / 45 / 512))


@pytest.mark.parametrize("shift", [1e-3, 1e-8, 1e-12])
@pytest.mark.usefixtures("pot")
def test_small_distances_are_measured(shift: float) -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(5), dtype=F64) + 3
    x = (x * 2**20).round() / 2**20  # so that the shift is the only rounding
    expected = float((x + shift - x).square().sum(1).mean().sqrt())
    assert metrics.wasserstein2(x, x + shift) == pytest.approx(expected, rel=1e-3)


def test_sliced_wasserstein_scales_and_ignores_translation_and_order() -> None:
    x, y = normal(200, 2), 2 * normal(200, 2, seed=1)
    distance = metrics.sliced_wasserstein2(x, y)
    assert metrics.sliced_wasserstein2(3 * x, 3 * y) == pytest.approx(3 * distance, rel=1e-12)
    moved = metrics.sliced_wasserstein2(x.flip(0) + 4, y + 4)
    assert moved == pytest.approx(distance, rel=1e-12)
    assert metrics.sliced_wasserstein2(x, y, seed=1) != distance


def test_sliced_wasserstein_leaves_the_points_alone() -> None:
    x, y = normal(50, 1), normal(60, 1, seed=1)
    kept = x.clone(), y.clone()
    metrics.sliced_wasserstein2(x, y)
    assert_close((x, y), kept, rtol=0, atol=0)


@pytest.mark.usefixtures("pot")
def test_sliced_wasserstein_of_unequal_sizes() -> None:
    """A cloud with every point n times is the same law; in one dimension the answer is W2."""
    x, y = normal(24, 2), normal(24, 2, seed=1)
    distance = metrics.sliced_wasserstein2(x, y)
    copied = metrics.sliced_wasserstein2(x.repeat(3, 1), y.repeat(2, 1))
    assert copied == pytest.approx(distance, rel=1e-12)
    x, y = normal(35, 1), normal(50, 1, seed=1) + 0.3
    exact = metrics.wasserstein2(x, y)
    assert metrics.sliced_wasserstein2(x, y) == pytest.approx(exact, rel=1e-9)


@pytest.mark.usefixtures("pot")
def test_wasserstein_of_a_moved_cloud_is_the_shift() -> None:
    x, v = normal(200, 3), torch.tensor([1.0, -2.0, 2.0], dtype=F64)
    assert metrics.wasserstein2(x, x.flip(0) + v) == pytest.approx(3.0, rel=1e-9)


@pytest.mark.usefixtures("pot")
def test_wasserstein_finds_the_best_matching() -> None:
    x, y = normal(6, 2), normal(6, 2, seed=1)
    costs = all_pairs(x, y)
    orders = torch.cartesian_prod(*[torch.arange(6)] * 6)
    orders = orders[(orders.sort(1).values == torch.arange(6)).all(1)]
    best = costs[torch.arange(6), orders].mean(1).min()
    assert metrics.wasserstein2(x, y) == pytest.approx(float(best.sqrt()), rel=1e-9)


def test_wasserstein_refuses_what_costs_too_much() -> None:
    with pytest.raises(ValueError, match=r"20,000 .* GB of memory"):
        metrics.wasserstein2(torch.zeros(20_000, 2), torch.zeros(5, 2))


# --- modes and likelihood


def test_mode_statistics_of_placed_points() -> None:
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    x = torch.tensor([[0.0, 0.0], [0.0, 2.9], [0.0, 3.1], [9.0, 0.0]])
    statistics = metrics.mode_statistics(x, means, std=1.0)
    assert statistics.shares == (0.75, 0.25)
    assert statistics.within_3sigma == 0.75
    assert statistics.total_variation == pytest.approx(0.25)
    assert (statistics.covered, statistics.modes) == (2, 2)
    weighted = metrics.mode_statistics(x, means, std=[1.1, 0.3], weights=[3.0, 1.0])
    assert weighted.total_variation == pytest.approx(0.0)
    assert (weighted.covered, weighted.within_3sigma) == (1, 0.75)


@pytest.mark.parametrize(("held", "covered"), [(10, 2), (9, 1)])
def test_a_mode_is_covered_from_a_fifth_of_its_share_on(held: int, covered: int) -> None:
    means = torch.tensor([[0.0], [10.0]])
    x = torch.tensor([[0.0]] * (100 - held) + [[10.0]] * held)
    assert metrics.mode_statistics(x, means, std=1.0).covered == covered


def test_points_that_are_not_finite_belong_to_no_mode() -> None:
    x = torch.tensor([[0.0], [10.0], [math.nan], [math.inf]])
    statistics = metrics.mode_statistics(x, torch.tensor([[0.0], [10.0]]), std=1.0)
    assert statistics.shares == (0.25, 0.25)
    assert statistics.within_3sigma == 0.5
    assert statistics.total_variation == pytest.approx(0.5)


def test_mode_statistics_of_data() -> None:
    target, n = ring(), 20_000
    x, labels = target.sample_labelled(n, generator=torch.Generator().manual_seed(0))
    statistics = metrics.mode_statistics(x, target.means, target.stds, target.weights)
    inside = 1 - math.exp(-4.5)
    error = math.sqrt(inside * (1 - inside) / n)
    assert abs(statistics.within_3sigma - inside) < 4 * error
    assert statistics.covered == 5
    # Neighbours are 9 standard deviations apart: every point is nearest to where it came from.
    shares = torch.bincount(labels) / n
    assert statistics.shares == pytest.approx(shares.tolist())
    assert statistics.total_variation == pytest.approx(float((shares - 0.2).abs().sum() / 2))


def test_negative_log_likelihood() -> None:
    target = Gaussian([1.0, -1.0], std=2.0)
    at_mean = metrics.negative_log_likelihood(target.mean[None], target)
    assert at_mean == pytest.approx(math.log(2 * math.pi * 4), rel=1e-12)
    n = 20_000
    x = target.sample(n, generator=torch.Generator().manual_seed(0), dtype=F64)
    # -log p has the entropy as its mean and, in two dimensions, standard deviation 1.
    entropy = 1 + math.log(2 * math.pi * 4)
    assert abs(metrics.negative_log_likelihood(x, target) - entropy) < 4 / math.sqrt(n)


# --- feature statistics and the Fréchet distance


def statistics_of(mean: Tensor, covariance: Tensor) -> FeatureSet:
    statistics = FeatureSet("test", len(mean))
    statistics.n, statistics.mean, statistics.scatter = 101, mean, 100 * covariance
    return statistics


def gathered(features: Tensor, sizes: list[int] | None = None) -> FeatureSet:
    statistics = FeatureSet("test", features.shape[1])
    for batch in features.split(sizes or [len(features)]):
        statistics.update(batch)
    return statistics


def test_streaming_statistics_equal_those_of_all_at_once() -> None:
    features = normal(500, 6) @ normal(6, 6, seed=1) + 1e4
    for sizes in ([500], [1, 1, 0, 498], [137, 200, 163], [1] * 500):
        statistics = gathered(features, sizes)
        assert statistics.n == 500
        assert_close(statistics.mean, features.mean(0), rtol=1e-12, atol=0)
        assert_close(statistics.covariance, features.T.cov(), rtol=1e-8, atol=1e-8)


def test_statistics_of_a_stream_of_images() -> None:
    network = metrics.feature_network("digits")
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = metrics.extract_features(network, images, chunk=11)
    statistics = FeatureSet.of(network, features)
    assert features.shape == (30, network.dimension)
    assert not features.requires_grad
    assert_close(statistics.covariance, features.double().T.cov(), rtol=1e-4, atol=1e-4)
    assert statistics.network == "digits"


def test_a_set_keeps_its_first_features_and_statistics_of_all(tmp_path: Path) -> None:
    features = normal(100, 3)
    whole = FeatureSet("test", 3, limit=30)
    for batch in features.split(17):
        whole.update(batch)
    assert whole.kept.dtype == torch.float32
    assert_close(whole.kept, features[:30].float(), rtol=0, atol=0)
    assert whole.n == 100
    assert_close(whole.covariance, features.T.cov(), rtol=1e-10, atol=1e-12)
    path = tmp_path / "set.safetensors"
    whole.save(path, "these images")
    loaded = FeatureSet.load(path, "these images", limit=30)
    assert_close(loaded.kept, whole.kept, rtol=0, atol=0)
    assert (loaded.network, loaded.dimension, loaded.n) == ("test", 3, 100)
    assert_close(loaded.mean, whole.mean, rtol=0, atol=0)
    assert_close(loaded.scatter, whole.scatter, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]
    with pytest.raises(DataError, match="other images"):
        FeatureSet.load(path, "those images")
    assert len(FeatureSet("test", 3).kept) == 0


def test_frechet_distance_of_features_equals_an_independent_one() -> None:
    """NumPy's covariances and SciPy's root of their product, on features of images."""
    data = open_dataset(DataSettings(name="digits"))
    assert isinstance(data, FiniteDataset)
    network = metrics.feature_network("digits")
    halves = [data.take(torch.arange(start, start + 600)).x for start in (0, 600)]
    halves[1] = halves[1] + 0.2 * normal(*halves[1].shape, dtype=torch.float32)
    a, b = (network(half).detach().double().numpy() for half in halves)
    of_a, of_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.asarray(scipy.linalg.sqrtm(of_a @ of_b)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(of_a + of_b - 2 * root)
    one, other = (FeatureSet.of(network, network(half)) for half in halves)
    assert metrics.frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-3)


def test_damaged_or_foreign_statistics_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    gathered(normal(50, 4)).save(path, "")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        FeatureSet.load(path, "")
    with pytest.raises(DataError, match="cannot be read"):
        FeatureSet.load(tmp_path / "missing", "")
    with pytest.raises(DataError, match="holds no feature statistics"):
        FeatureSet.load(classifier.WEIGHTS / "digits_features.safetensors", "")


def test_statistics_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="features must be"):
        gathered(normal(5, 4)).update(normal(5, 3))
    with pytest.raises(ValueError, match="at least two"):
        _ = gathered(normal(1, 4)).covariance


def test_frechet_distance_of_commuting_covariances() -> None:
    """|m - m'|² + Σ (√λ - √λ')² where both covariances have the same eigenvectors."""
    u = rotation(5)
    a, b = torch.tensor([1.0, 4, 9, 0, 2], dtype=F64), torch.tensor([4.0, 1, 0, 0, 2], dtype=F64)
    mean = normal(5)
    one = statistics_of(mean, (u * a) @ u.T)
    other = statistics_of(mean + torch.tensor([3.0, 0, 4, 0, 0], dtype=F64), (u * b) @ u.T)
    expected = 25 + float((a.sqrt() - b.sqrt()).square().sum())
    assert metrics.frechet_distance(one, other) == pytest.approx(expected, rel=1e-7)
    assert metrics.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_equals_the_textbook_formula() -> None:
    a, b = gathered(normal(60, 8) @ normal(8, 8, seed=1)), gathered(normal(60, 8, seed=2) + 0.3)
    root = torch.as_tensor(scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())).real
    apart = (a.mean - b.mean).square().sum()
    expected = float(apart + (a.covariance + b.covariance - 2 * root).trace())
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert metrics.frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_with_fewer_features_than_dimensions() -> None:
    """Both clouds lie in one plane of R^40: the distance is that of their coordinates there."""
    plane = rotation(40)[:2]
    x, y = normal(10, 2), 2 * normal(10, 2, seed=1) + 1
    inside = metrics.frechet_distance(gathered(x), gathered(y))
    outside = metrics.frechet_distance(gathered(x @ plane), gathered(y @ plane))
    assert outside == pytest.approx(inside, rel=1e-6)


def test_frechet_distance_refuses_unlike_features() -> None:
    other = FeatureSet("other", 4)
    with pytest.raises(ConfigError, match="do not compare"):
        metrics.frechet_distance(gathered(normal(9, 4)), other)


# --- kernel distance


def test_kid_of_whole_sets_equals_loops() -> None:
    x, y = normal(12, 3), normal(12, 3, seed=1) + 1

    def k(f: Tensor, g: Tensor) -> float:
        return float((f @ g / 3 + 1) ** 3)

    n = range(12)
    within = sum(k(s[i], s[j]) for s in (x, y) for i in n for j in n if i != j) / (12 * 11)
    across = sum(k(x[i], y[j]) for i in n for j in n) / 144
    result = metrics.kid(x, y, 3, 12, generator=torch.Generator().manual_seed(0))
    assert result.mean == pytest.approx(within - 2 * across, rel=1e-10)
    assert result.std == pytest.approx(0, abs=1e-12)


def test_kid_of_one_law_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = normal(20_000, 4, dtype=torch.float32), normal(20_000, 4, seed=1, dtype=torch.float32)
    # Subsets of 40 out of 20,000 are all but independent.
    result = metrics.kid(x, y, 500, 40, generator=generator)
    assert abs(result.mean) < 4 * result.std / math.sqrt(500)
    shifted = metrics.kid(x, y + 1, 500, 40, generator=generator)
    assert shifted.mean > 4 * shifted.std / math.sqrt(500)


def test_kid_draws_from_its_generator_alone() -> None:
    x, y = normal(50, 4), normal(40, 4, seed=1)
    state = torch.get_rng_state()
    first = metrics.kid(x, y, 5, 20, generator=torch.Generator().manual_seed(3))
    assert metrics.kid(x, y, 5, 20, generator=torch.Generator().manual_seed(3)) == first
    assert metrics.kid(x, y, 5, 20, generator=torch.Generator().manual_seed(4)) != first
    assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    with pytest.raises(ValueError, match="subset_size"):
        metrics.kid(x, y, 5, 41, generator=torch.Generator())


# --- precision, recall, density, coverage


@pytest.mark.parametrize("rows", [3, 512])
def test_prdc_equals_its_definitions(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partikel.metrics.features._ROWS", rows)
    real, fake, k = normal(40, 3), 1.2 * normal(30, 3, seed=1) + 0.5, 4

    def radii(points: Tensor) -> list[float]:
        return [sorted((points - p).norm(dim=1).tolist())[k] for p in points]

    to_real = (real[:, None] - fake).norm(dim=2)
    in_real = to_real <= torch.tensor(radii(real), dtype=F64)[:, None]
    in_fake = to_real <= torch.tensor(radii(fake), dtype=F64)
    result = metrics.prdc(real, fake, k)
    assert result.precision == pytest.approx(float(in_real.any(0).double().mean()))
    assert result.recall == pytest.approx(float(in_fake.any(1).double().mean()))
    assert result.density == pytest.approx(float(in_real.sum()) / (k * 30))
    assert result.coverage == pytest.approx(float(in_real.any(1).double().mean()))
    assert 0 < result.recall < 1
    assert 0 < result.coverage < 1
    assert 0 < result.precision < 1


def test_prdc_tells_quality_from_variety() -> None:
    near, far = normal(60, 8), normal(60, 8, seed=1) + 100
    real = torch.cat([near, far])
    assert metrics.prdc(real, real)[:2] == (1.0, 1.0)
    assert metrics.prdc(real, real).coverage == 1.0
    assert metrics.prdc(real, real - 1000) == (0.0, 0.0, 0.0, 0.0)
    one_mode = metrics.prdc(real, near)
    assert (one_mode.precision, one_mode.recall, one_mode.coverage) == (1.0, 0.5, 0.5)
    junk = metrics.prdc(near, torch.cat([near, far]))
    assert (junk.precision, junk.recall, junk.coverage) == (0.5, 1.0, 1.0)


def test_density_of_one_law_is_one() -> None:
    density = metrics.prdc(normal(1000, 2), normal(1000, 2, seed=1)).density
    assert density == pytest.approx(1.0, abs=0.1)


def test_prdc_refuses_too_few_points() -> None:
    with pytest.raises(ValueError, match="k must be"):
        metrics.prdc(normal(5, 2), normal(50, 2), k=5)


# --- nearest neighbours


@pytest.mark.parametrize("rows", [7, 4096])
def test_nearest_neighbours_equal_brute_force(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partikel.metrics.neighbours._ROWS", rows)
    points, references = normal(15, 4) + 50, normal(40, 4, seed=1) + 50
    found = metrics.nearest_neighbours(points, references, 3)
    distances, indices = (points[:, None] - references).norm(dim=2).sort(1)
    assert_close(found.distances, distances[:, :3], rtol=1e-8, atol=1e-8)
    assert_close(found.indices, indices[:, :3])
    with pytest.raises(ValueError, match="k must be"):
        metrics.nearest_neighbours(points, references, 41)
    with pytest.raises(ValueError, match="points must be"):
        metrics.nearest_neighbours(points, references[:, :3], 1)


def test_memorised_points_stand_out_from_the_next_neighbour() -> None:
    distances = torch.tensor([[1.0, 2.9], [1.0, 3.1], [0.0, 1.0], [0.01, 0.01], [0.0, 0.0]])
    assert metrics.memorised(distances).tolist() == [False, True, True, False, True]
    assert metrics.memorised(distances, exact=0.1).tolist() == [False, True, True, True, True]
    with pytest.raises(ValueError, match="k >= 2"):
        metrics.memorised(distances[:, :1])


# --- feature networks that ship


def right_share(network: metrics.ClassifierFeatures, data: FiniteDataset) -> float:
    right = 0
    for index in torch.arange(data.size("test")).split(250):
        batch = data.take(index, "test")
        right += int((network.logits(batch.x).argmax(1) == batch.cond).sum())
    return right / data.size("test")


def test_digits_classifier_is_as_accurate_as_its_card_says() -> None:
    data = open_dataset(DataSettings(name="digits"))
    assert isinstance(data, FiniteDataset)
    network = metrics.DigitsFeatures.pretrained()
    card = network.card()
    assert card["test_images"] == data.size("test")
    assert card["test_accuracy"] >= 0.97
    # Other processors round otherwise: one image may change sides.
    assert right_share(network, data) == pytest.approx(card["test_accuracy"], abs=1.5 / 359)


@pytest.mark.skipif("PARTIKEL_DATA" not in os.environ, reason="needs MNIST in $PARTIKEL_DATA")
def test_mnist_classifier_is_as_accurate_as_its_card_says() -> None:
    data = open_dataset(DataSettings(name="mnist"))
    assert isinstance(data, FiniteDataset)
    network = metrics.MnistFeatures.pretrained()
    card = network.card()
    assert card["test_accuracy"] >= 0.99
    assert right_share(network, data) == pytest.approx(card["test_accuracy"], abs=5e-4)


def test_features_rank_digits_by_their_damage() -> None:
    data = open_dataset(DataSettings(name="digits"))
    assert isinstance(data, FiniteDataset)
    network = metrics.feature_network("digits", data.shape)
    real = data.take(torch.arange(700)).x
    reference = FeatureSet.of(network, network(real))
    noise = normal(*real.shape, seed=5, dtype=torch.float32)
    scores = [
        metrics.frechet_distance(FeatureSet.of(network, network(images)), reference)
        for images in (data.take(torch.arange(700, 1290)).x, real + 0.3 * noise, real + noise)
    ]
    assert 2 * scores[0] < scores[1] < scores[2]


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_feature_networks_ship_small_and_frozen(name: str) -> None:
    network = classifier.NETWORKS[name].pretrained()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert sum(p.numel() for p in network.parameters()) <= 150_000
    assert (classifier.WEIGHTS / f"{name}_features.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_features_depend_on_nothing_but_the_image(name: str) -> None:
    state = torch.get_rng_state()
    network = classifier.NETWORKS[name].pretrained()
    assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    side = network.side
    images = normal(6, 1, side, side).tanh()
    features = network(images)
    assert features.dtype == F64
    assert features.shape == (6, network.dimension)
    assert_close(network(images[2:3]), features[2:3], rtol=1e-4, atol=1e-4)
    exact = network.double()(images)
    assert_close(exact, features, rtol=1e-4, atol=1e-4)
    assert exact.dtype == F64


def test_the_margin_of_mnist_at_32_is_cropped() -> None:
    network = metrics.MnistFeatures.pretrained()
    images = normal(4, 1, 28, 28, dtype=torch.float32).tanh()
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    assert_close(network(padded), network(images), rtol=0, atol=0)
    with pytest.raises(ValueError, match="mnist features"):
        network(images[..., :20, :20])
    with pytest.raises(ValueError, match="mnist features"):
        network(images.expand(4, 3, 28, 28))


def test_images_of_16_pixels_are_enlarged_for_the_mnist_network() -> None:
    network = metrics.default_feature_network("mnist", (1, 16, 16))
    assert network.name == "mnist (16x16 enlarged to 32x32, bicubic, 5 back-projections)"
    assert network.dimension == 64
    plain = metrics.feature_network("mnist")
    assert isinstance(network, metrics.EnlargedFeatures)
    blocks = torch.nn.functional.avg_pool2d(normal(3, 1, 16, 16).tanh(), 2)
    coarse = torch.nn.functional.interpolate(blocks, (16, 16), mode="bicubic")
    again = torch.nn.functional.avg_pool2d(network.enlarged(coarse), 2)
    assert_close(again, coarse, rtol=0, atol=0.05)  # averages of squares give the image back
    # Enlarging keeps constant images as they are.
    flat = torch.tensor([-1.0, 0.3]).view(2, 1, 1, 1)
    small, large = flat.expand(2, 1, 16, 16), flat.expand(2, 1, 32, 32)
    assert_close(network(small), plain(large), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="1x16x16 or .* not of 1x20x20"):
        metrics.feature_network("mnist", (1, 20, 20))


def test_classifiers_are_of_their_own_data_only() -> None:
    network = metrics.default_classifier("mnist", (1, 16, 16))
    assert isinstance(network, metrics.EnlargedFeatures)
    images = normal(3, 1, 16, 16).tanh()
    logits = network.logits(images)
    assert_close(logits, network.network.logits(network.enlarged(images)))
    digits = metrics.default_classifier("digits", (1, 8, 8))
    assert isinstance(digits, metrics.DigitsFeatures)
    # MNIST's features measure clothes too, but its classes say nothing of them
    assert metrics.default_feature_network("fashion-mnist", (1, 28, 28)).name.startswith("mnist")
    assert metrics.default_classifier("fashion-mnist", (1, 28, 28)) is None
    assert metrics.default_classifier("mnist", (1, 20, 20)) is None


@pytest.mark.skipif("PARTIKEL_DATA" not in os.environ, reason="needs MNIST in $PARTIKEL_DATA")
def test_the_mnist_network_recognises_digits_of_16_pixels() -> None:
    data = open_dataset(DataSettings(name="mnist", size=16))
    assert isinstance(data, FiniteDataset)
    network = metrics.default_feature_network("mnist", data.shape)
    assert isinstance(network, metrics.EnlargedFeatures)
    assert isinstance(network.network, metrics.MnistFeatures)
    batch = data.take(torch.arange(1000), "test")
    features = network(batch.x)
    classes = network.network.output(torch.nn.functional.silu(features)).argmax(1)
    assert float((classes == batch.cond).double().mean()) > 0.965


def test_pixels_of_large_images_are_averaged() -> None:
    small, large = metrics.PixelFeatures((1, 8, 8)), metrics.PixelFeatures((3, 64, 64))
    assert (small.name, small.dimension) == ("pixels", 64)
    assert (large.name, large.dimension) == ("pixels (shrunk to 16x16, averages)", 768)
    images = normal(4, 3, 64, 64)
    expected = images.view(4, 3, 16, 4, 16, 4).mean((3, 5)).flatten(1)
    assert_close(large(images), expected)
    assert_close(small(normal(2, 1, 8, 8)), normal(2, 1, 8, 8).flatten(1))


def test_feature_networks_by_name() -> None:
    assert metrics.feature_network("mnist").dimension == 64
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        metrics.feature_network("mnits")
    with pytest.raises(ConfigError, match=r"1x28x28 or 1x32x32, not of 3x64x64"):
        metrics.feature_network("mnist", (3, 64, 64))
    default = metrics.default_feature_network("mnist", (1, 32, 32))
    assert default is not None
    assert default.name == "mnist"
    assert metrics.default_feature_network("fashion-mnist", (1, 28, 28)).name == "mnist"
    assert metrics.default_feature_network("digits", (1, 8, 8)).name == "digits"
    assert metrics.default_feature_network("mnist", (1, 8, 8)).name == "pixels"


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_damaged_weights_are_refused(
    content: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classifier, "WEIGHTS", tmp_path)
    if content is not None:
        (tmp_path / "digits_features.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        metrics.DigitsFeatures.pretrained()


@pytest.mark.parametrize("dim", [2, 100])
@pytest.mark.usefixtures("pot")
def test_exact_transport_between_clouds_that_nearly_agree(dim: int) -> None:
    """The distance of a shift by far less than the spacing is the shift's, to its own digits."""
    generator = torch.Generator().manual_seed(0)
    x, shift = (torch.randn(60, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    for size in (1e-8, 1e-3):
        moved = x + size * shift
        expected = (moved - x).square().sum(1).mean().sqrt().item()
        assert metrics.wasserstein2(x, moved) == pytest.approx(expected, rel=1e-9)
