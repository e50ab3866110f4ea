"""Denoisers: conversions, EDM's preconditioning, and the minimiser of denoising score matching."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.testing import assert_close

from conftest import GAUSSIAN, MIXTURE, Recorder, assert_mean, randn, seeded
from partikel.denoising import (
    EDMDenoiser,
    denoiser_from_score,
    dsm_loss,
    noise_from_denoiser,
    score_from_denoiser,
)
from partikel.errors import ConfigError
from partikel.targets import GaussianMixture

SIGMA_DATA = 0.7


def points(*shape: int) -> tuple[Tensor, Tensor]:
    """Points, and a noise level for each, from far below to far above them."""
    return randn(*shape), torch.logspace(-2, 1, shape[0], dtype=torch.float64)


@pytest.mark.parametrize("shape", [(8, 3), (8, 2, 3, 3)])
def test_conversions_are_inverses(shape: tuple[int, ...]) -> None:
    x, sigma = points(*shape)
    score = randn(*shape, seed=1)
    denoised = denoiser_from_score(score, x, sigma)
    assert_close(score_from_denoiser(denoised, x, sigma), score)
    wide = sigma.view(-1, *[1] * (len(shape) - 1))
    assert_close(noise_from_denoiser(denoised, x, sigma), -wide * score)


def test_clean_points_give_back_their_noise() -> None:
    x, sigma = points(8, 3)
    noise = randn(8, 3, seed=1)
    assert_close(noise_from_denoiser(x, x + sigma[:, None] * noise, sigma), noise)


@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_the_exact_denoiser_gives_the_exact_score(target: GaussianMixture) -> None:
    x, sigma = points(32, 2)
    point = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(target.log_density(point, sigma).sum(), point)
    denoised = target.denoiser(x, sigma)
    assert_close(score_from_denoiser(denoised, x, sigma), score, rtol=1e-8, atol=1e-8)
    assert_close(denoiser_from_score(score, x, sigma), denoised)


def test_preconditioning() -> None:
    x, sigma = points(8, 2, 3, 3)
    output = randn(8, 2, 3, 3, seed=1)
    network = Recorder(lambda _: output)
    cond = torch.arange(8)
    denoised = EDMDenoiser(network, SIGMA_DATA)(x, sigma, cond=cond)
    ((seen, c, labels),) = network.calls
    s, root = sigma.view(-1, 1, 1, 1), (sigma**2 + SIGMA_DATA**2).sqrt().view(-1, 1, 1, 1)
    assert c is not None
    assert_close(seen, x / root)
    assert_close(c, sigma.log()[:, None] / 4)
    assert labels is cond
    assert_close(denoised, SIGMA_DATA**2 / root**2 * x + s * SIGMA_DATA / root * output)


def test_preconditioning_has_unit_variances() -> None:
    """What Karras et al. derive it from: input and training target of F have variance 1."""
    x, noise, sigma = SIGMA_DATA * randn(40_000, 1), randn(40_000, 1, seed=1), 1.3
    noisy = x + sigma * noise
    network = Recorder()
    skipped = EDMDenoiser(network, SIGMA_DATA)(noisy, torch.full((len(x),), sigma).double())
    network.output = torch.ones_like
    out = EDMDenoiser(network, SIGMA_DATA)(noisy, torch.full((len(x),), sigma).double()) - skipped
    assert_mean(network.calls[0][0] ** 2, 1.0)
    assert_mean(((x - skipped) / out) ** 2, 1.0)


def test_a_timed_denoiser_is_told_noise_level_and_time() -> None:
    x, sigma = points(8, 3)
    t = torch.linspace(0, 1, 8, dtype=torch.float64)
    network = Recorder()
    denoiser = EDMDenoiser(network, SIGMA_DATA, timed=True)
    denoiser(x, sigma, t)
    denoiser(x, sigma, t[3].expand(8))
    assert_close(network.calls[0][1], torch.stack([sigma.log() / 4, t], 1))
    assert_close(network.calls[1][1], torch.stack([sigma.log() / 4, t[3].expand(8)], 1))
    with pytest.raises(ValueError, match="timed"):
        denoiser(x, sigma)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0])
def test_sigma_data_is_positive(sigma_data: float) -> None:
    with pytest.raises(ConfigError, match="sigma_data"):
        EDMDenoiser(Recorder(), sigma_data)


@pytest.mark.parametrize("weighting", ["edm", "none"])
def test_dsm_loss_is_the_weighted_mean_square(weighting: Literal["edm", "none"]) -> None:
    clean, sigma = points(8, 2, 3, 3)
    noise = randn(*clean.shape, seed=1)
    denoiser = EDMDenoiser(Recorder(), SIGMA_DATA)
    noisy = clean + sigma.view(-1, 1, 1, 1) * noise
    error = (denoiser(noisy, sigma) - clean).square().sum((1, 2, 3)) / math.prod(clean.shape[1:])
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    expected = error if weighting == "none" else weight * error
    assert_close(dsm_loss(denoiser, clean, sigma, noise, weighting=weighting), expected)


def test_the_edm_weight_makes_it_the_loss_of_the_raw_network() -> None:
    """w c_out² = 1: all noise levels ask F for its target with the same strength."""
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    denoiser = EDMDenoiser(Recorder(), SIGMA_DATA)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    assert_close(denoiser.loss_weight(sigma) * c_out**2, torch.ones_like(sigma))


class ExactNetwork(nn.Module):
    """The F whose denoiser is exact where ``shift`` is 0, and off by four features elsewhere."""

    def __init__(self, target: GaussianMixture) -> None:
        super().__init__()
        self.target = target
        self.shift = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        sigma = (4 * c[:, 0]).exp()
        root = (sigma**2 + SIGMA_DATA**2).sqrt()[:, None]
        noisy = x * root
        skipped = noisy * SIGMA_DATA**2 / root**2
        exact = (self.target.denoiser(noisy, sigma) - skipped) / (
            sigma[:, None] * SIGMA_DATA / root
        )
        one, two = self.shift[:2], self.shift[2:]
        return exact + one + two * torch.sin(x.flip(1) + c)


@pytest.mark.parametrize("weighting", ["edm", "none"])
def test_the_exact_denoiser_minimises_dsm(weighting: Literal["edm", "none"]) -> None:
    """There, and not beside it, the gradient of the loss has mean zero."""
    n = 20_000
    denoiser = EDMDenoiser(ExactNetwork(MIXTURE), SIGMA_DATA)
    clean = MIXTURE.sample(n, generator=seeded(), dtype=torch.float64)
    noise, sigma = randn(n, 2, seed=1), (0.8 * randn(n, seed=2)).exp()

    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = denoiser

        def forward(self) -> Tensor:
            return dsm_loss(self.denoiser, clean, sigma, noise, weighting=weighting)

    def losses(shift: Tensor) -> Tensor:
        return functional_call(Losses(), {"denoiser.network.shift": shift}, ())

    def gradients(shift: Tensor) -> Tensor:
        rows = torch.eye(4, dtype=torch.float64)
        return torch.stack([jvp(losses, (shift,), (row,))[1] for row in rows], 1)

    assert_mean(gradients(torch.zeros(4).double()), 0.0)
    beside = gradients(torch.full((4,), 0.1).double())
    assert ((beside.mean(0) / beside.std(0) * n**0.5).abs() > 10).any()
