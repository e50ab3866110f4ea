"""Generators: the surrogate's gradient, the operator A_θ, and particles as their own generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from conftest import GAUSSIAN, MIXTURE, LinearField, assert_mean, randn, seeded, slope, tensor
from partikel.fields import At, ExactScoreField, Field, TrainingBatch, WhiteNoise
from partikel.models import GeneratorModel, ParticleModel, generate, ntk_operator, surrogate_loss
from partikel.networks import MLP, NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.streams import Streams

SCORE = ExactScoreField(MIXTURE)


@pytest.fixture
def network() -> MLP:
    settings = NetworkSettings(kind="mlp", width=8, depth=2, activation="tanh")
    built = build_network(settings, "generator", shape=(2,), latent=3, generator=seeded())
    assert isinstance(built, MLP)
    return built.double()


def jacobians(network: nn.Module, z: Tensor) -> Tensor:
    """J_θ g(z_i) of all latents: (B, D, parameters)."""
    weights = {name: p.detach() for name, p in network.named_parameters()}
    rows = jacrev(lambda w: functional_call(network, w, (z,)))(weights)
    return torch.cat([row.flatten(2) for row in rows.values()], 2)


def flat_gradient(network: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def field_at(x: Tensor, field: Field = SCORE) -> Tensor:
    return field(x, At(torch.ones(len(x), dtype=x.dtype)))


def test_the_surrogate_is_the_vector_jacobian_product(network: MLP) -> None:
    """∇_θ L = -E_z J_θ g(z)ᵀ ∇h(g(z))."""
    z = randn(6, 3)
    x = network(z)
    velocity = field_at(x.detach())
    expected = -torch.einsum("bdp,bd->p", jacobians(network, z), velocity) / 6
    assert_close(flat_gradient(network, surrogate_loss(x, velocity).mean()), expected)


def test_the_field_is_held_fixed(network: MLP) -> None:
    z = randn(6, 3)
    x, other = network(z), network(z)
    assert_close(
        flat_gradient(network, surrogate_loss(x, x**2).sum()),
        flat_gradient(network, surrogate_loss(other, (other**2).detach()).sum()),
    )


def test_the_surrogate_of_images_sums_over_all_entries() -> None:
    x, velocity = randn(4, 2, 3, 3), randn(4, 2, 3, 3, seed=1)
    assert_close(surrogate_loss(x, velocity), -torch.einsum("bchw,bchw->b", x, velocity))


def test_a_generator_model_descends_the_surrogate(network: MLP) -> None:
    latent = GaussianPrior((3,))
    model = GeneratorModel(SCORE, network, latent)
    (loss,) = model.losses()
    assert loss.module is network
    value = loss.compute(TrainingBatch(None, None, 6, Streams(4)))
    z = latent.sample(6, generator=Streams(4).latent, dtype=torch.float64)
    x = network(z)
    assert_close(
        flat_gradient(network, value.loss.mean()),
        flat_gradient(network, surrogate_loss(x, field_at(x.detach())).mean()),
    )
    assert_close(value.metrics["field_rms"], field_at(x.detach()).square().mean().sqrt())


def test_a_small_step_moves_the_outputs_by_the_operator(network: MLP) -> None:
    """g(z) moves by η A_θ[∇h](z) + O(η²): the error's slope over η is 2."""
    z = randn(16, 3)
    before = network(z).detach()
    moved = ntk_operator(network, z, field_at)
    x = network(z)
    gradient = torch.autograd.grad(
        surrogate_loss(x, field_at(x.detach())).mean(), list(network.parameters())
    )
    rates = tensor([1e-4, 3e-4, 1e-3, 3e-3])
    errors = []
    for rate in rates:
        stepped = {
            name: p - rate * g
            for (name, p), g in zip(network.named_parameters(), gradient, strict=True)
        }
        after = functional_call(network, stepped, (z,)).detach()
        errors.append((after - before - rate * moved).norm())
    assert abs(slope(rates, torch.stack(errors)) - 2) < 0.1


def test_the_operator_is_the_neural_tangent_kernel(network: MLP) -> None:
    """A_θ[V](z) = E_{z'} K(z, z') V(g(z')) with K = J Jᵀ: linear, symmetric, positive."""
    z, v, w = randn(7, 3), randn(7, 2, seed=1), randn(7, 2, seed=2)
    j = jacobians(network, z)
    kernel = torch.einsum("aip,bjp->aibj", j, j)
    of_v = ntk_operator(network, z, v)
    assert_close(of_v, torch.einsum("aibj,bj->ai", kernel, v) / 7)
    assert_close(ntk_operator(network, z, lambda x: v), of_v)
    of_w = ntk_operator(network, z, w)
    assert_close(ntk_operator(network, z, 2 * v - 3 * w), 2 * of_v - 3 * of_w)
    assert_close((w * of_v).sum(), (v * of_w).sum())
    assert (v * of_v).sum() > 0
    assert not of_v.requires_grad


def test_only_what_trains_moves(network: MLP) -> None:
    network.first.requires_grad_(False)
    z, v = randn(7, 3), randn(7, 2, seed=1)
    fixed = sum(p.numel() for p in network.first.parameters())
    names = [name for name, _ in network.named_parameters()]
    assert names[:2] == ["first.weight", "first.bias"]
    j = jacobians(network, z)[:, :, fixed:]
    expected = torch.einsum("aip,bjp,bj->ai", j, j, v) / 7
    assert_close(ntk_operator(network, z, v), expected)


def test_generating_tracks_no_gradients(network: MLP) -> None:
    z = randn(4, 3)
    x = generate(network, z)
    assert_close(x, network(z).detach())
    assert not x.requires_grad


class OwnParticles(nn.Module):
    """Outputs that are the parameters: K(z, z') = δ I (GPM Finding 4)."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x.clone())

    def forward(self, z: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        return self.x


@pytest.mark.parametrize("steps", [1, 5])
def test_particles_that_are_their_own_generator_are_a_particle_model(steps: int) -> None:
    """A batch mean moves each of n particles by η∇h/n, so SGD of rate n·η is Euler's method."""
    n, eta, start = 8, 0.3, randn(8, 2)
    own = OwnParticles(start)
    carried = GeneratorModel(SCORE, own, GaussianPrior((1,)))
    optimizer = torch.optim.SGD(own.parameters(), lr=n * eta / steps)
    (loss,) = carried.losses()
    for _ in range(steps):
        optimizer.zero_grad()
        loss.compute(TrainingBatch(None, None, n, Streams(0))).loss.mean().backward()
        optimizer.step()
    free = ParticleModel(SCORE, GaussianPrior((2,)), steps=steps, eta=eta)
    assert_close(own.x.detach(), free.sample(n, generator=seeded(), start=start))
    assert_close(ntk_operator(OwnParticles(start), randn(n, 1), field_at), field_at(start) / n)


# --- stochastic versions (GPM eqs. 21-22; framework §1) ---

ALPHA, BETA = 1.0, 0.7
VARIANCES = tensor([1.5, 0.8])


class MovingScore(Field):
    """∇log ρ_t of a Gaussian cloud that starts as N(0, I) and moves by α s_p - β s_ρ."""

    def variances(self, t: Tensor) -> Tensor:
        rest = BETA / ALPHA * VARIANCES
        return rest + (1 - rest) * torch.exp(-2 * ALPHA * t / VARIANCES)

    def mean(self, t: Tensor) -> Tensor:
        return GAUSSIAN.mean * (1 - torch.exp(-ALPHA * t / VARIANCES))

    def forward(self, x: Tensor, at: At) -> Tensor:
        t = at.t[..., None]
        return -(x - self.mean(t)) / self.variances(t)


def data_score() -> Field:
    return LinearField(-(1 / VARIANCES).diag(), GAUSSIAN.mean / VARIANCES)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_free_particles_keep_their_marginals_when_noise_replaces_score(gamma: float) -> None:
    """α s_p - (1-γ) β s_ρ with noise √(2γβ) dW, or the same noise as a field."""
    n, steps, rho = 10_000, 150, MovingScore()
    drift = ALPHA * data_score() - (1 - gamma) * BETA * rho
    std = (2 * gamma * BETA) ** 0.5
    prior = GaussianPrior((2,))
    models = [
        ParticleModel(drift + WhiteNoise(std * steps**0.5), prior, steps=steps),
        ParticleModel(drift, prior, steps=steps, diffusion=lambda t: torch.full_like(t, std)),
    ]
    end = torch.ones(1, dtype=torch.float64)
    for model in models:
        x = model.sample(n, generator=seeded())
        assert_mean(x, rho.mean(end))
        assert_mean((x - rho.mean(end)) ** 2, rho.variances(end))


class OwnScore(Field):
    """∇log ρ of a linear generator's present outputs W z ~ N(0, W Wᵀ)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = [linear]  # not a part of the field

    def forward(self, x: Tensor, at: At) -> Tensor:
        weight = self.linear[0].weight.detach()
        return -torch.linalg.solve(weight @ weight.T, x.T).T


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.copy_(tensor([[0.9, 0.3], [-0.2, 0.7]]))

    def forward(self, z: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        return self.linear(z)


@pytest.mark.parametrize(("gamma", "limit"), [(0.0, 1e-4), (0.5, 0.04)])
def test_a_generator_does_not(gamma: float, limit: float) -> None:
    """The noise averages out in A_θ, the score that it replaced is missed: C shrinks to (1-γ) C.

    The limit is 4 standard deviations over seeds of the mean over the last 100 updates.
    """
    rate, n, streams = 0.05, 2000, Streams(0)
    network = Linear()
    h = (
        LinearField(-(1 / VARIANCES).diag(), torch.zeros(2).double())
        - (1 - gamma) * OwnScore(network.linear)
        + WhiteNoise((2 * gamma / rate) ** 0.5)
    )
    (loss,) = GeneratorModel(h, network, GaussianPrior((2,))).losses()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    batch = TrainingBatch(None, None, n, streams)
    found = []
    for _ in range(250):
        optimizer.zero_grad()
        loss.compute(batch).loss.mean().backward()
        optimizer.step()
        weight = network.linear.weight.detach()
        found.append(weight @ weight.T)
    mean = torch.stack(found[150:]).mean(0)
    assert_close(mean, (1 - gamma) * VARIANCES.diag(), atol=limit, rtol=0)
