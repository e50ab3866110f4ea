"""Denoisers: preconditioning, conversions to scores, denoising score matching.

Source: Karras et al. 2022 (EDM); GPM eqs. 23-24; framework §4.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from partikel.errors.checks import Level, checked
from partikel.tensors import expand_like

Weighting = Literal["edm", "none", "likelihood"]
"""Weights of the levels of noise in denoising score matching, see :func:`dsm_loss`."""


def score_from_denoiser(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """s(x, σ) = (D(x; σ) - x)/σ² (GPM eq. 24); shapes (B, ...), (B, ...), () or (B,)."""
    return (denoised - x) / expand_like(sigma, x) ** 2


def denoiser_from_score(score: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """D(x; σ) = x + σ² s(x, σ): Tweedie's formula, the inverse of :func:`score_from_denoiser`."""
    return x + expand_like(sigma, x) ** 2 * score


def noise_from_denoiser(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """ε(x, σ) = (x - D(x; σ))/σ: the noise that a denoiser sees in ``x``."""
    return (x - denoised) / expand_like(sigma, x)


class EDMDenoiser(nn.Module):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise): EDM's preconditioning of a network F.

    Args:
        network: F, called as ``network(x, c, cond)`` with c = (c_noise,), or (c_noise, t) where
            ``timed``: the score of a moving law depends on generation time as well.
        sigma_data: σ_d, standard deviation of what is denoised; > 0.
        timed: whether generation time is a second condition.
    """

    @checked
    def __init__(self, network: nn.Module, sigma_data: Level = 0.5, *, timed: bool = False) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.timed = timed

    def forward(
        self, x: Tensor, sigma: Tensor, t: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """Denoise.

        Args:
            x: (B, ...) noisy points.
            sigma: their noise levels > 0, () or (B,).
            t: generation times, () or (B,), for a ``timed`` denoiser.
            cond: (B,) labels.

        Returns:
            (B, ...) the estimate of E[clean | x].
        """
        level = expand_like(sigma, x)
        if not (sigma.amin() if sigma.ndim else sigma).item() > 0:
            raise ValueError(
                "a denoiser is asked at noise levels sigma > 0: its score has no limit at 0 (stop at the "
                "lowest level of training, or ask an ExactScoreField)."
            )
        data = self.sigma_data
        total = level**2 + data**2
        conditions = [sigma.to(x.dtype).log() / 4]
        if self.timed:
            if t is None:
                raise ValueError("a timed denoiser needs generation times t")
            conditions.append(t.to(x.dtype))
        c = torch.stack(torch.broadcast_tensors(*map(torch.atleast_1d, conditions)), dim=1)
        out = self.network(x * total.rsqrt(), c, cond)
        return (data**2 / total) * x + (level * data * total.rsqrt()) * out

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """(σ² + σ_d²)/(σ σ_d)², (B,): evens the gradient over noise levels."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class PreconditionedLogit(nn.Module):
    """A discriminator's network at unit scale: d(x; σ) = F(x/√(σ² + σ_d²); c) with c_0 = ln(σ)/4.

    EDM's c_in and c_noise for a network that sees particles of every noise level of a VE path.

    Args:
        network: F, called as ``network(x, c, cond)``; the first of its conditions is ln(σ)/4.
        sigma_data: σ_d, standard deviation of the data; > 0.
    """

    @checked
    def __init__(self, network: nn.Module, sigma_data: Level) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B,) logits of points (B, ...) under conditions (B, S) or (1, S)."""
        sigma = expand_like((4 * c[:, 0]).exp(), x)
        return self.network(x * (sigma**2 + self.sigma_data**2).rsqrt(), c, cond)


def dsm_loss(
    denoiser: EDMDenoiser,
    clean: Tensor,
    sigma: Tensor,
    noise: Tensor,
    t: Tensor | None = None,
    cond: Tensor | None = None,
    weighting: Weighting = "edm",
) -> Tensor:
    """Denoising score matching: w(σ) ‖D(x + σε; σ) - x‖²/D for each sample (GPM eq. 23).

    Args:
        denoiser: D.
        clean: (B, ...) x.
        sigma: (B,) noise levels.
        noise: (B, ...) standard normal ε.
        t: (B,) generation times, for a timed denoiser.
        cond: (B,) labels.
        weighting: "edm" for (σ²+σ_d²)/(σσ_d)², "none" for 1, "likelihood" for 1/σ²: with σ uniform
            in its logarithm (:class:`LogUniformLaw`) the maximum-likelihood weight (Song et al. 2021,
            "Maximum likelihood training of score-based diffusion models"; framework §8).

    Returns:
        (B,) losses, divided by the dimension D so that data sizes compare.
    """
    denoised = denoiser(clean + expand_like(sigma, clean) * noise, sigma, t, cond)
    error = (denoised - clean).square().flatten(1).mean(1)
    if weighting == "likelihood":
        return error / sigma**2
    return error * denoiser.loss_weight(sigma) if weighting == "edm" else error
