"""Denoisers: preconditioning, conversions to scores and velocities, denoising score matching.

A network in four clothes: D = E[x | X], noise, score, and the velocity of a path (framework §10).

Source: Karras et al. 2022 (EDM); GPM eqs. 23-24; framework §4, §10.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from partikel.errors.checks import Level, checked
from partikel.schedules import Schedule
from partikel.tensors import columns, expand_like

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


def velocity_from_denoiser(denoised: Tensor, x: Tensor, path: Schedule, t: Tensor) -> Tensor:
    """v(X, t) = a'D + b'(X - aD)/b: how particles of a path move; finite at t = 0, not where b = 0.

    Args:
        denoised: (B, ...) D = E[x | X].
        x: (B, ...) particles X = a x + b ε, on the path.
        path: a and b.
        t: generation times, () or (B,).
    """
    a, b, a_rate, b_rate = _coefficients(path, t, x)
    return a_rate * denoised + b_rate * (x - a * denoised) / b


def denoiser_from_velocity(velocity: Tensor, x: Tensor, path: Schedule, t: Tensor) -> Tensor:
    """D = (b v - b'X)/(a'b - ab'), the inverse of :func:`velocity_from_denoiser`; finite where b = 0 too.

    It holds of any coupling: D is then E[x_1 | X].
    """
    a, b, a_rate, b_rate = _coefficients(path, t, x)
    return (b * velocity - b_rate * x) / (a_rate * b - a * b_rate)


def path_score(denoised: Tensor, x: Tensor, path: Schedule, t: Tensor) -> Tensor:
    """∇log ρ_t(X) = (aD - X)/b², at t = 0 too, where no u s_p(uX, σ) is; of a Gaussian source only."""
    a, b, *_ = _coefficients(path, t, x)
    return (a * denoised - x) / b**2


def onto_path(path: Schedule, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Points a x + b ε of another path as points of this one, at the same level b/a of noise.

    Beyond the path's own levels it is asked at its ends: in the same direction ε at the highest one, where
    D hardly depends on the level, and at the same x at the lowest.

    Args:
        path: this one.
        x: (B, ...) points.
        a: how much of the data is in them, () or (B,).
        b: how much noise, likewise; not both 0.

    Returns:
        (B, ...) points, and their generation times, () or (B,).
    """
    level = b / a
    t = path.time(level.clamp(path.sigma_end, path.sigma_max))
    # where its levels end at 0, the lowest ones round to that, where nothing is known
    t = torch.where((path.sigma(t) > 0) | (level == 0), t, torch.nextafter(t, torch.zeros_like(t)))
    beyond = level >= path.sigma_max  # elsewhere both ratios are one, but for how t is rounded
    return expand_like(torch.where(beyond, path.spread(t) / b, path.scale(t) / a), x) * x, t


def _coefficients(path: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    each = (path.scale, path.spread, path.scale_rate, path.spread_rate)
    return tuple(expand_like(coefficient(t), x) for coefficient in each)


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
        unit = total.rsqrt()
        conditions = [level.log() / 4]
        if self.timed:
            if t is None:
                raise ValueError("a timed denoiser needs generation times t")
            conditions.append(t.to(x.dtype))
        out = self.network(x * unit, columns(*conditions), cond)
        return (data**2 / total) * x + (level * data * unit) * out

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """(σ² + σ_d²)/(σ σ_d)², (B,): evens the gradient over noise levels."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class VelocityDenoiser(EDMDenoiser):
    """D(x; σ) of a network of the velocity itself, v(X, t) along a path (flow matching).

    Args:
        network: v, called as ``network(X, t, cond)`` with t (B, 1) or (1, 1).
        path: along which it has been, or will be, trained.
    """

    def __init__(self, network: nn.Module, path: Schedule) -> None:
        super().__init__(network, sigma_data=1.0)
        self.path = path

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """V(X, t): points of the path (B, ...), generation times () or (B,)."""
        return self.network(x, columns(t.to(x.dtype)), cond)

    def forward(
        self, x: Tensor, sigma: Tensor, t: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """Denoise; see :meth:`EDMDenoiser.forward`."""
        point, time = onto_path(self.path, x, torch.ones_like(sigma), sigma)
        velocity = self.velocity(point, time, cond)
        return denoiser_from_velocity(velocity, point, self.path, time)


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
