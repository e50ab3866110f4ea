"""What DiffFlow's theory says, in numbers: laws of Gaussians in closed form (framework §6-7, §9).

From a Gaussian start towards a Gaussian target N(μ, C) every score is linear, so ρ_t = N(m, S) stays
Gaussian and the whole SDE is an ODE for (m, S). The Marginal Preserving Property (DiffFlow Proposition
2), the decay of KL(ρ_t ‖ p_σ) (Lemma 1) and its log-Sobolev rate (Theorem 2) are then statements
about a few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError, NumericsError
from partikel.schedules import Schedule
from partikel.targets import Gaussian, gaussian_kl


def gaussian_marginals(
    flow: DiffFlow,
    target: Gaussian,
    start: Gaussian,
    times: Tensor | Sequence[float],
    *,
    tolerance: float = 1e-12,
) -> tuple[Tensor, Tensor]:
    """Means and covariances of ρ_t, from ``start`` at t = 0, with exact fields.

    The moments are those of the SDE as it is simulated, drift and noise each with its g²:

        dm = E[drift] dt,   dS = (A S + S Aᵀ + (g² - λ²) I) dt,   A the drift's matrix,

    so that their independence of g is a result.

    Args:
        flow: any flow whose β depends on t only.
        target: N(μ, C), the data.
        start: ρ_0.
        times: (N,) increasing generation times in [0, T].
        tolerance: of the integrator (an eighth-order Runge-Kutta method), relative and absolute.

    Returns:
        Means (N, D) and covariances (N, D, D), float64.

    Raises:
        ConfigError: for times that do not increase within [0, T], or a β that depends on d.
        NumericsError: where the law degenerates (λ² > 2β collapses it in finite time).
    """
    if flow.potential != "logit":
        raise ConfigError(
            f"with the potential '{flow.potential}' the drift is not linear: "
            "closed-form laws need potential='logit'."
        )
    nodes = torch.as_tensor(times, dtype=torch.float64)
    _check_times(flow.schedule, nodes)
    dim = target.dim
    mu = target.mean.numpy()
    variances, axes = np.linalg.eigh(target.covariance.numpy())
    eye = np.eye(dim)

    def moments(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return state[:dim], state[dim:].reshape(dim, dim)

    def rate(t: float, state: np.ndarray) -> np.ndarray:
        m, S = moments(state)
        time = torch.tensor([t], dtype=torch.float64)
        f, beta, g2, lambda2 = torch.cat(flow.coefficients(time)).tolist()
        sigma, u = flow.schedule.sigma(time).item(), flow.schedule.u(time).item()
        # ∇log p_σ(uX) = u P (μ - uX) and ∇log ρ_t(X) = S⁻¹ (m - X)
        P = (axes / (variances + sigma**2)) @ axes.T
        pull = u * P @ (mu - u * m)
        gan = beta - 0.5 * g2
        A = f * eye + gan * (np.linalg.inv(S) - u**2 * P) - 0.5 * g2 * u**2 * P
        drift = f * m + gan * pull + 0.5 * g2 * pull
        spread = A @ S + S @ A.T + (g2 - lambda2) * eye
        return np.concatenate([drift, spread.ravel()])

    def margin(t: float, state: np.ndarray) -> float:
        spectrum = np.linalg.eigvalsh(moments(state)[1])
        return float(spectrum[0] - 1e-10 * np.abs(spectrum).max())

    margin.terminal = True  # type: ignore[attr-defined]  # how solve_ivp is told to stop there
    state = np.concatenate([start.mean.numpy(), start.covariance.numpy().ravel()])
    found, t = [], 0.0
    for end in nodes.tolist():
        if end > t:
            run = solve_ivp(
                rate, (t, end), state, "DOP853", events=margin, rtol=tolerance, atol=tolerance
            )
            if run.status != 0:
                raise NumericsError(
                    f"the law degenerates at t = {run.t[-1]:.4g}, before {end:.4g}: lower λ² (beyond 2β "
                    "laws collapse), or stop earlier."
                )
            state, t = run.y[:, -1], end
        found.append(state)
    means = np.stack([moments(state)[0] for state in found])
    covariances = np.stack([moments(state)[1] for state in found])
    return torch.from_numpy(means), torch.from_numpy((covariances + covariances.swapaxes(1, 2)) / 2)


def path_marginals(
    schedule: Schedule, target: Gaussian, times: Tensor | Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Means (N, D) and covariances (N, D, D) of the path's own laws, those of (x + σε)/u.

    A flow that is :attr:`~partikel.diffflow.DiffFlow.matched` has them from its exact start.
    """
    nodes = torch.as_tensor(times, dtype=torch.float64)
    _check_times(schedule, nodes)
    sigma, u = schedule.sigma(nodes), schedule.u(nodes)
    noise = sigma[:, None, None] ** 2 * torch.eye(target.dim, dtype=torch.float64)
    return target.mean / u[:, None], (target.covariance + noise) / u[:, None, None] ** 2


def stationary_law(flow: DiffFlow, target: Gaussian) -> Gaussian:
    """Where ρ_t settles at a constant noise level: N(μ, (1 - λ²/2β)(C + σ²I)) (framework §6).

    λ² > 0 sharpens, λ² < 0 flattens, g² does nothing.

    Raises:
        ConfigError: if f, u, σ, β or λ² change along the path, or λ² >= 2β (there is no such law).
    """
    beta, lambda2, sigma = _constants(flow)
    if not 2 * beta > lambda2:
        raise ConfigError(
            f"laws settle where λ² < 2β only, got λ² = {lambda2:.4g} and β = {beta:.4g}."
        )
    smoothed = target.covariance + sigma**2 * torch.eye(target.dim, dtype=torch.float64)
    return Gaussian(target.mean, (1 - lambda2 / (2 * beta)) * smoothed)


def gaussian_fisher(
    mean: Tensor, covariance: Tensor, to_mean: Tensor, to_covariance: Tensor
) -> Tensor:
    """Fisher divergence E_ρ ‖∇log(ρ/p)‖² of ρ = N(mean, covariance) from p = N(to_mean, ...).

    Args:
        mean: (..., D).
        covariance: (..., D, D), positive definite.
        to_mean: (..., D).
        to_covariance: (..., D, D), positive definite.

    Returns:
        (...), the leading dimensions broadcast together.
    """
    own, to = torch.linalg.inv(covariance), torch.linalg.inv(to_covariance)
    # ∇log(ρ/p)(x) = (P - S⁻¹)(x - m) + P (m - μ)
    matrix, offset = to - own, (to @ (mean - to_mean)[..., None])[..., 0]
    return (matrix @ covariance * matrix).sum((-2, -1)) + offset.square().sum(-1)


def log_sobolev_constant(target: Gaussian, sigma: float = 0.0) -> float:
    """C = 1/λ_max(covariance + σ²I): KL(ρ ‖ p_σ) <= I(ρ ‖ p_σ)/(2C) for every ρ (framework §7)."""
    return 1 / (float(torch.linalg.eigvalsh(target.covariance)[-1]) + sigma**2)


@dataclass(frozen=True)
class Convergence:
    """KL along a run, against what the theorems say.

    Attributes:
        times: (N,) generation times.
        kl: (N,) KL(ρ_t ‖ p_σ), in nats.
        fisher: (N,) I(ρ_t ‖ p_σ) = E ‖∇log(ρ_t/p_σ)‖².
        slope: (N,) dKL/dt = -β I (Lemma 1).
        bound: (N,) KL(ρ_0) e^{-2βCt} >= kl (Theorem 2).
        rate: 2βC.
    """

    times: Tensor
    kl: Tensor
    fisher: Tensor
    slope: Tensor
    bound: Tensor
    rate: float


def convergence(
    flow: DiffFlow, target: Gaussian, start: Gaussian, times: Tensor | Sequence[float]
) -> Convergence:
    """KL and Fisher divergence along a flow of constant coefficients (DiffFlow Lemma 1, Theorem 2).

    Args:
        flow: f = 0, u = 1, λ = 0, constant σ and β; any g².
        target: the data.
        start: ρ_0.
        times: (N,) increasing generation times in [0, T].

    Raises:
        ConfigError: for a flow that the theorems do not speak of, and see :func:`gaussian_marginals`.
    """
    beta, lambda2, sigma = _constants(flow)
    if lambda2 != 0:
        raise ConfigError(
            f"Lemma 1 and Theorem 2 hold at λ² = 0, got {lambda2:.4g}: take with_lambda2(0)."
        )
    nodes = torch.as_tensor(times, dtype=torch.float64)
    means, covariances = gaussian_marginals(flow, target, start, nodes)
    smoothed = target.covariance + sigma**2 * torch.eye(target.dim, dtype=torch.float64)
    laws = means, covariances, target.mean, smoothed
    kl, fisher = gaussian_kl(*laws), gaussian_fisher(*laws)
    rate = 2 * beta * log_sobolev_constant(target, sigma)
    at_start = gaussian_kl(start.mean, start.covariance, target.mean, smoothed)
    return Convergence(nodes, kl, fisher, -beta * fisher, at_start * torch.exp(-rate * nodes), rate)


def _constants(flow: DiffFlow) -> tuple[float, float, float]:
    """β, λ² and σ of a flow with f = 0 and u = 1 in which they do not change."""
    t = torch.linspace(0, flow.schedule.horizon, 33, dtype=torch.float64)
    c = flow.coefficients(t)
    levels = torch.stack([c.beta, c.lambda2, flow.schedule.sigma(t), c.f, flow.schedule.u(t)])
    beta, lambda2, sigma, f, u = levels[:, 0].tolist()
    if flow.potential != "logit" or (levels != levels[:, :1]).any() or f != 0 or u != 1:
        raise ConfigError(
            "this theorem needs constant β, λ² and σ with f = 0, u = 1 and potential='logit', as "
            "DiffFlow.langevin and its moves over the plane have."
        )
    return beta, lambda2, sigma


def _check_times(schedule: Schedule, times: Tensor) -> None:
    horizon = schedule.horizon
    if not (times.ndim == 1 and len(times) and (times.diff() > 0).all()):
        raise ConfigError("give generation times as an increasing list.")
    if times[0] < 0 or times[-1] > horizon * (1 + 1e-12):
        raise ConfigError(
            f"the schedule covers [0, {horizon:.6g}], not t = {float(times[0]):.6g} to "
            f"{float(times[-1]):.6g}: choose times inside, or a longer horizon."
        )
