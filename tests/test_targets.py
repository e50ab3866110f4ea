"""Exact laws: their densities, scores, samplers and denoisers agree with each other at every σ."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, distributions
from torch.testing import assert_close

from partikel.errors import ConfigError
from partikel.priors import GaussianPrior
from partikel.targets import Gaussian, GaussianMixture, Target, gaussian_kl


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def covariances(count: int, dim: int) -> Tensor:
    root = randn(count, dim, dim, seed=7)
    return root @ root.mT + 0.1 * torch.eye(dim, dtype=torch.float64)


# Asymmetric and anisotropic on purpose: a symmetric law hides errors of sign and of transposition.
LAWS = {
    "gaussian": Gaussian([1.0, -2.0], [[2.0, 0.7], [0.7, 0.5]]),
    "isotropic": GaussianMixture(
        [[2.0, 1.0], [-1.0, 0.5], [0.0, -3.0]], std=[0.3, 0.8, 0.5], weights=[0.6, 0.3, 0.1]
    ),
    "anisotropic": GaussianMixture(
        1.5 * randn(3, 2), covariances(3, 2), weights=torch.tensor([1.0, 2.0, 4.0])
    ),
    "five-dimensional": GaussianMixture(
        1.5 * randn(4, 5), covariances(4, 5), weights=[0.1, 0.2, 0.3, 0.4]
    ),
}


@pytest.fixture(params=LAWS, ids=str)
def law(request: pytest.FixtureRequest) -> GaussianMixture:
    return LAWS[request.param]


def points(law: Target, n: int = 64) -> tuple[Tensor, Tensor]:
    """Points in and around the law, each with its own σ, from nothing to far more than the law."""
    return 2 * randn(n, law.dim, seed=3), torch.logspace(-3, 2, n, dtype=torch.float64)


def independent(law: GaussianMixture, sigma: float) -> distributions.Distribution:
    noisy = law.covariances + sigma**2 * torch.eye(law.dim, dtype=torch.float64)
    return distributions.MixtureSameFamily(
        distributions.Categorical(law.weights),
        distributions.MultivariateNormal(law.means, noisy),
    )


@pytest.mark.parametrize("sigma", [None, 0.0, 0.2, 3.0])
def test_log_density_is_that_of_the_noised_components(
    law: GaussianMixture, sigma: float | None
) -> None:
    x, _ = points(law)
    levels = None if sigma is None else torch.full((len(x),), sigma, dtype=torch.float64)
    assert_close(law.log_density(x, levels), independent(law, sigma or 0.0).log_prob(x))


def test_each_sample_has_its_own_noise_level(law: GaussianMixture) -> None:
    x, sigma = points(law)
    alone = [law.log_density(x[i : i + 1], sigma[i : i + 1]) for i in range(len(x))]
    assert_close(law.log_density(x, sigma), torch.cat(alone))
    alone = [law.score(x[i : i + 1], sigma[i : i + 1]) for i in range(len(x))]
    assert_close(law.score(x, sigma), torch.cat(alone))


@pytest.mark.parametrize("noisy", [False, True])
def test_score_is_the_gradient_of_log_density(law: GaussianMixture, noisy: bool) -> None:
    x, sigma = points(law)
    levels = sigma if noisy else None
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_density(x, levels).sum(), x)
    assert_close(law.score(x, levels), gradient)


def test_score_and_denoiser_are_differentiable(law: GaussianMixture) -> None:
    x, sigma = randn(3, law.dim).requires_grad_(), torch.tensor([0.1, 0.5, 2.0]).double()
    assert torch.autograd.gradcheck(lambda x: law.score(x, sigma), x)
    assert torch.autograd.gradcheck(lambda x: law.denoiser(x, sigma), x)


@pytest.mark.parametrize("name", ["gaussian", "isotropic", "anisotropic"])
@pytest.mark.parametrize("sigma", [None, 0.3, 1.0])
def test_density_integrates_to_one(name: str, sigma: float | None) -> None:
    line = torch.linspace(-16, 16, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    levels = None if sigma is None else torch.full((len(grid),), sigma, dtype=torch.float64)
    mass = LAWS[name].log_density(grid, levels).exp().sum() * (line[1] - line[0]) ** 2
    # The trapezium rule is exponentially good for Gaussians wider than the cells.
    assert_close(mass.item(), 1.0, rtol=1e-6, atol=0)


def test_tweedie(law: GaussianMixture) -> None:
    x, sigma = points(law)
    assert_close(law.denoiser(x, sigma), Target.denoiser(law, x, sigma), rtol=1e-9, atol=1e-9)
    assert_close(
        law.denoiser(x, sigma), x + sigma[:, None] ** 2 * law.score(x, sigma), rtol=1e-9, atol=1e-9
    )


def test_denoiser_without_noise_is_the_identity_and_with_all_of_it_the_mean(
    law: GaussianMixture,
) -> None:
    x, _ = points(law)
    none = torch.zeros(len(x), dtype=torch.float64)
    assert_close(law.denoiser(x, none), x)
    assert_close(law.denoiser(x, none + 1e8), law.mean.expand_as(x), rtol=0, atol=1e-6)


def test_denoiser_keeps_its_digits_at_large_noise_in_float32(law: GaussianMixture) -> None:
    x, sigma = 1000 * randn(64, law.dim), torch.full((64,), 1000.0, dtype=torch.float64)
    assert_close(
        law.denoiser(x.float(), sigma.float()).double(),
        law.denoiser(x, sigma),
        rtol=1e-4,
        atol=1e-5,
    )


def test_denoiser_is_the_best_guess_of_the_clean_point(law: GaussianMixture) -> None:
    # E[x_0 | x] leaves an error orthogonal to every function of x.
    n, source = 100_000, seeded(11)
    clean = law.sample(n, generator=source, dtype=torch.float64)
    sigma = 0.2 + torch.rand(n, generator=source, dtype=torch.float64)
    noise = torch.randn(clean.shape, generator=source, dtype=torch.float64)
    x = clean + sigma[:, None] * noise
    error = clean - law.denoiser(x, sigma)
    for probe in (torch.ones_like(x), x, (2 * x).sin(), x.roll(1, 1), sigma[:, None] * x):
        product = error * probe
        assert (product.mean(0).abs() < 5 * product.std(0) / math.sqrt(n)).all()


def test_samples_with_noise_have_the_moments_of_the_noised_law(law: GaussianMixture) -> None:
    n, sigma, source = 200_000, 0.7, seeded(5)
    x = law.sample(n, generator=source, dtype=torch.float64)
    x = x + sigma * torch.randn(x.shape, generator=source, dtype=torch.float64)
    exact = law.covariance + sigma**2 * torch.eye(law.dim, dtype=torch.float64)
    offset = x - law.mean
    assert (offset.mean(0).abs() < 5 * (exact.diagonal() / n).sqrt()).all()
    products = offset[:, :, None] * offset[:, None]
    assert ((products.mean(0) - exact).abs() < 5 * products.std(0) / math.sqrt(n)).all()
    # Integration by parts: E_p[s_p] = 0 and E_p[x s_pᵀ] = -I, at this σ.
    score = law.score(x, torch.full((n,), sigma, dtype=torch.float64))
    stein = x[:, :, None] * score[:, None] + torch.eye(law.dim, dtype=torch.float64)
    assert (score.mean(0).abs() < 5 * score.std(0) / math.sqrt(n)).all()
    assert (stein.mean(0).abs() < 5 * stein.std(0) / math.sqrt(n)).all()


def test_labels_are_the_components(law: GaussianMixture) -> None:
    n = 200_000
    x, labels = law.sample_labelled(n, generator=seeded(2), dtype=torch.float64)
    for k, share in enumerate(law.weights):
        own = x[labels == k]
        spread = (share * (1 - share) / n).sqrt()
        assert abs(len(own) / n - share) <= 5 * spread
        exact = law.covariances[k]
        offset = own - law.means[k]
        assert (offset.mean(0).abs() < 5 * (exact.diagonal() / len(own)).sqrt()).all()
        products = offset[:, :, None] * offset[:, None]
        error = products.mean(0) - exact
        assert (error.abs() < 5 * products.std(0) / math.sqrt(len(own))).all()


def test_responsibilities_are_the_shares_of_the_density(law: GaussianMixture) -> None:
    x, sigma = points(law)
    shares = law.responsibilities(x, sigma)
    assert_close(shares.sum(1), torch.ones(len(x), dtype=torch.float64))
    for k, weight in enumerate(law.weights):
        alone = Gaussian(law.means[k], law.covariances[k]).log_density(x, sigma)
        expected = (weight.log() + alone - law.log_density(x, sigma)).exp()
        assert_close(shares[:, k], expected, rtol=1e-8, atol=1e-12)


def test_isotropic_and_full_covariances_are_the_same_law() -> None:
    short = LAWS["isotropic"]
    full = GaussianMixture(short.means, short.covariances, weights=short.weights)
    x, sigma = points(short)
    assert_close(full.log_density(x, sigma), short.log_density(x, sigma))
    assert_close(full.score(x, sigma), short.score(x, sigma))
    assert_close(full.denoiser(x, sigma), short.denoiser(x, sigma))
    assert_close(full.stds, torch.tensor([0.3, 0.8, 0.5]).double(), rtol=1e-6, atol=0)


def test_far_away_the_nearest_component_pulls() -> None:
    law = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], std=0.01)
    x = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]])
    assert law.log_density(x).isfinite().all()
    assert_close(law.score(x), torch.tensor([[-999e4, 0.0], [999e4, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_follow_the_input(law: GaussianMixture, dtype: torch.dtype) -> None:
    x, sigma = points(law)
    exact = law.score(x, sigma)
    x, sigma = x.to(dtype), sigma.to(dtype)
    for result in (law.log_density(x, sigma), law.score(x, sigma), law.denoiser(x, sigma)):
        assert result.dtype == dtype
    scale = exact.norm(dim=1, keepdim=True)
    error = (law.score(x, sigma) - exact) / scale
    assert_close(error, torch.zeros_like(error), rtol=0, atol=1e3 * torch.finfo(dtype).eps)
    assert law.sample(3, generator=seeded(), dtype=dtype).dtype == dtype


def test_use_in_inference_mode_does_not_forbid_gradients_later() -> None:
    law = GaussianMixture([[1.0, 0.0]], [[[2.0, 1.0], [1.0, 3.0]]])
    x = torch.ones(4, 2)
    with torch.inference_mode():
        law.score(x)
    x.requires_grad_()
    law.score(x).sum().backward()
    precision = torch.linalg.inv(law.covariances[0]).float()
    assert_close(x.grad, -precision.sum(0).expand(4, 2))


def test_samples_come_from_the_generator_alone(law: GaussianMixture) -> None:
    before = torch.get_rng_state()
    first = law.sample_labelled(100, generator=seeded(1))
    again = law.sample_labelled(100, generator=seeded(1))
    other = law.sample(100, generator=seeded(2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first[0], other)
    assert torch.equal(torch.get_rng_state(), before)


def test_sigma_data_is_the_standard_deviation_of_all_entries(law: GaussianMixture) -> None:
    x = law.sample(400_000, generator=seeded(4), dtype=torch.float64)
    assert_close(x.std().item(), law.sigma_data, rtol=0.01, atol=0)


def test_kl_of_gaussians_is_torchs_and_is_the_mean_log_ratio() -> None:
    one = Gaussian([1.0, -2.0], [[2.0, 0.7], [0.7, 0.5]])
    two = Gaussian([0.0, -1.0], [[1.0, -0.3], [-0.3, 0.6]])
    normal = distributions.MultivariateNormal
    reference = distributions.kl_divergence(
        normal(one.mean, one.covariance), normal(two.mean, two.covariance)
    )
    assert_close(one.kl(two), reference)
    assert_close(one.kl(one).item(), 0.0, rtol=0, atol=1e-12)
    x = one.sample(100_000, generator=seeded(), dtype=torch.float64)
    ratio = one.log_density(x) - two.log_density(x)
    assert abs(ratio.mean() - one.kl(two)) < 5 * ratio.std() / math.sqrt(len(x))


def test_kl_broadcasts_over_leading_dimensions() -> None:
    means, matrices = randn(4, 3), covariances(4, 3)
    to_mean, to_matrix = randn(3, seed=1), covariances(1, 3)[0]
    together = gaussian_kl(means, matrices, to_mean, to_matrix)
    alone = [
        Gaussian(m, c).kl(Gaussian(to_mean, to_matrix))
        for m, c in zip(means, matrices, strict=True)
    ]
    assert_close(together, torch.stack(alone))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"means": [0.0, 1.0], "std": 1.0}, "means="),
        ({"means": [[0.0, 1.0]]}, "either"),
        ({"means": [[0.0]], "std": 1.0, "covariances": [[[1.0]]]}, "either"),
        ({"means": [[0.0, 1.0]], "std": 0.0}, "std must be"),
        ({"means": [[0.0, 1.0]], "std": [1.0, 1.0]}, "std must be"),
        ({"means": [[0.0, 1.0]], "covariances": [[[1.0]]]}, "covariances must be"),
        ({"means": [[0.0, 1.0]], "covariances": [[[1.0, 0.5], [0.0, 1.0]]]}, "symmetric"),
        ({"means": [[0.0, 1.0]], "covariances": [[[1.0, 1.0], [1.0, 1.0]]]}, "positive definite"),
        ({"means": [[0.0, 1.0]], "covariances": [[[1.0, 2.0], [2.0, 1.0]]]}, "positive definite"),
        ({"means": [[0.0], [1.0]], "std": 1.0, "weights": [1.0, 0.0]}, "weights must be"),
        ({"means": [[0.0], [1.0]], "std": 1.0, "weights": [1.0]}, "weights must be"),
    ],
)
def test_laws_that_do_not_exist(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        GaussianMixture(**arguments)


def test_prior_density_and_moments() -> None:
    prior = GaussianPrior((2, 3), std=1.7)
    x = prior.sample(50_000, generator=seeded(), dtype=torch.float64)
    assert x.shape == (50_000, 2, 3)
    count = x.numel()
    assert abs(x.mean()) < 5 * 1.7 / math.sqrt(count)
    assert abs(x.var() - 1.7**2) < 5 * 1.7**2 * math.sqrt(2 / count)
    reference = distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.7).double())
    assert_close(prior.log_density(x), reference.log_prob(x).sum((1, 2)))


def test_prior_draws_from_the_generator_alone() -> None:
    prior = GaussianPrior((4,))
    before = torch.get_rng_state()
    first, again = (prior.sample(8, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.get_default_dtype()
    assert torch.equal(torch.get_rng_state(), before)


def test_prior_needs_a_positive_std() -> None:
    with pytest.raises(ConfigError, match="GaussianPrior.std=...."):
        GaussianPrior((2,), std=0.0)
