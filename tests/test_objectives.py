"""Objectives: the h(r) table, f-GAN's conjugates, the optimal logits, relativism, penalties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.testing import assert_close

from conftest import Quadratic, assert_uniform, randn, seeded
from partikel.errors import ConfigError
from partikel.objectives import (
    DIVERGENCES,
    FGAN,
    OBJECTIVES,
    Divergence,
    GradientPenalty,
    Objective,
    Relativistic,
    get_objective,
    objective_name,
)

LOGITS = torch.linspace(-3, 3, 13, dtype=torch.float64)

# Framework §2, not from the package.
F: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda u: u * u.log(),
    "reverse-kl": lambda u: -u.log(),
    "jensen-shannon": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "non-saturating": lambda u: (u + 1) * ((u + 1) / 2).log(),
    "pearson": lambda u: (u - 1) ** 2,
    "hellinger": lambda u: (u.sqrt() - 1) ** 2,
    "jeffreys": lambda u: (u - 1) * u.log(),
}
H: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda r: r / r,
    "reverse-kl": lambda r: r,
    "jensen-shannon": lambda r: r / (1 + r),
    "non-saturating": lambda r: 1 / (1 + r),
    "pearson": lambda r: 2 / r,
    "hellinger": lambda r: r.sqrt() / 2,
    "jeffreys": lambda r: 1 + r,
}


def derivative(function: Callable[[Tensor], Tensor], at: Tensor, order: int = 1) -> Tensor:
    """Derivative of an elementwise function, by autodiff."""
    at = at.clone().requires_grad_()
    values = function(at)
    for _ in range(order):
        (values,) = torch.autograd.grad(values.sum(), at, create_graph=True)
    return values.detach()


# --- divergences ---


def test_the_table_is_complete() -> None:
    assert set(DIVERGENCES) == set(F) == set(H)


@pytest.fixture(params=F, ids=str)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def divergence(name: str) -> Divergence:
    return DIVERGENCES[name]


def of_data(name: str) -> Callable[[Tensor], Tensor]:
    """Nowozin's f_N(r) = r f(1/r)."""
    return lambda r: r * F[name](1 / r)


def test_f_and_h(name: str, divergence: Divergence) -> None:
    r = LOGITS.exp()
    assert_close(divergence.f(r), F[name](r))
    assert_close(divergence.h(r), H[name](r))
    assert_close(H[name](r), derivative(F[name], 1 / r, order=2) / r)
    assert_close(divergence.f(torch.ones(1).double()), torch.zeros(1).double())


def test_the_activation_is_the_derivative_of_f_of_data(name: str, divergence: Divergence) -> None:
    assert_close(divergence.activation(LOGITS), derivative(of_data(name), LOGITS.exp()))


def test_the_conjugate_is_convex_conjugation(name: str, divergence: Divergence) -> None:
    """f_N*(g) = sup_r (g r - f_N(r)), on a grid that holds the optimal r = e^d."""
    ratios = torch.linspace(-8, 8, 321, dtype=torch.float64).exp()
    logits = torch.linspace(-3, 3, 61, dtype=torch.float64)
    gains = divergence.activation(logits)[:, None] * ratios - of_data(name)(ratios)
    assert_close(divergence.conjugate(logits), gains.amax(1))


def test_particles_move_by_h_and_with_the_trick_by_h_over_r(name: str) -> None:
    r = LOGITS.exp()
    assert_close(derivative(FGAN(name).potential, LOGITS), H[name](r))
    assert_close(derivative(FGAN(name, trick=True).potential, LOGITS), H[name](r) / r)


# --- discriminators at their optimum ---

SINGLE = [name for name, objective in OBJECTIVES.items() if not objective.paired]


@pytest.mark.parametrize("name", SINGLE)
def test_the_optimal_logit_gives_the_log_ratio_or_none(name: str) -> None:
    """Minimise p b(d) + ρ a(d) over a grid of d at each point; compare with framework §3."""
    objective = get_objective(name)
    log_ratio = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid, zero = torch.linspace(-4, 4, 8001, dtype=torch.float64)[None], torch.zeros(1).double()
    loss = log_ratio.exp() * objective.discriminator_loss(
        grid, zero
    ) + objective.discriminator_loss(zero, grid)
    best = grid[0, loss.argmin(1)]
    if objective.is_log_ratio:
        r = log_ratio[:, 0].exp()
        optimum = r / (1 + r) if name == "lsgan" else r.log()
        assert_close(best, optimum, atol=6e-4, rtol=0)
        assert_close(objective.log_ratio(optimum), r.log())
        return
    real, fake = log_ratio[:, 0] > 0, log_ratio[:, 0] < 0
    ends = {"hinge": 1.0, "ipm": 4.0}  # ±1; without bound, here the ends of the grid
    assert_close(best[real], torch.full((4,), ends[name]).double())
    assert_close(best[fake], torch.full((4,), -ends[name]).double())
    with pytest.raises(ConfigError, match=name):
        objective.log_ratio(best)


def test_the_optimal_relativistic_logit_is_the_log_ratio_up_to_a_constant() -> None:
    p, rho = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([0.6, 0.1, 0.3]).double()
    weights = (p[:, None] * rho).flatten()
    logits = torch.zeros(3, dtype=torch.float64)

    def loss(d: Tensor) -> Tensor:
        real, fake = d.repeat_interleave(3), d.repeat(3)
        return (weights * Relativistic().discriminator_loss(real, fake)).sum()

    for _ in range(20):  # Newton; the constant is a null direction
        step = torch.linalg.pinv(hessian(loss, logits)) @ jacobian(loss, logits)
        logits = logits - step
    assert_close(logits - logits.mean(), (p / rho).log() - (p / rho).log().mean())
    with pytest.raises(ConfigError, match="relativistic"):
        Relativistic().log_ratio(logits)


def test_exactly_these_logits_are_log_ratios() -> None:
    without = {name for name, objective in OBJECTIVES.items() if not objective.is_log_ratio}
    assert without == {"hinge", "ipm", "relativistic"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_discriminator_is_high_on_real_data_and_every_potential_rises(name: str) -> None:
    objective = get_objective(name)
    inside = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)  # where LSGAN's and hinge's d live
    other = torch.full_like(inside, 0.5)
    assert (derivative(lambda d: objective.discriminator_loss(d, other), inside) < 0).all()
    assert (derivative(lambda d: objective.discriminator_loss(other, d), inside) > 0).all()
    assert (derivative(lambda d: objective.potential(d, other[None]), inside) > 0).all()


@pytest.mark.parametrize(
    ("name", "beta"),
    [
        ("saturating", torch.sigmoid(LOGITS)),
        ("non-saturating", torch.sigmoid(-LOGITS)),
        ("logit", torch.ones_like(LOGITS)),
        ("lsgan", -2 * (LOGITS - 1)),
        ("hinge", torch.ones_like(LOGITS)),
        ("ipm", torch.ones_like(LOGITS)),
    ],
)
def test_the_weights_of_diffflow(name: str, beta: Tensor) -> None:
    """DiffFlow eqs. 19-27: the generator's gradient is β ∇d."""
    assert_close(derivative(get_objective(name).potential, LOGITS), beta)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("non-saturating", lambda r, f: -r.sigmoid().log() - (1 - f.sigmoid()).log()),
        ("lsgan", lambda r, f: (r - 1) ** 2 + f**2),
        ("hinge", lambda r, f: (1 - r).clamp(min=0) + (1 + f).clamp(min=0)),
        ("ipm", lambda r, f: f - r),
        ("relativistic", lambda r, f: -(r - f).sigmoid().log()),
        ("f-reverse-kl", lambda r, f: f.exp() - 1 - r),
    ],
)
def test_discriminator_losses(name: str, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    real, fake = randn(64), randn(64, seed=1)
    assert_close(get_objective(name).discriminator_loss(real, fake), loss(real, fake))


def test_relativistic_potential() -> None:
    """-E_{y~p} softplus(-(d(x) - d(y))), whose derivative is E_{y~p} sigmoid(d(y) - d(x))."""
    fake, real = randn(5), randn(5, 7, seed=1)
    objective = Relativistic()
    gaps = fake[:, None] - real
    assert_close(objective.potential(fake, real), gaps.sigmoid().log().mean(1))
    common = (fake[:, None] - real[:1]).sigmoid().log().mean(1)
    assert_close(objective.potential(fake, real[:1]), common)
    moved = derivative(lambda d: objective.potential(d, real), fake)
    assert_close(moved, torch.sigmoid(-gaps).mean(1))
    with pytest.raises(ConfigError, match="real samples"):
        objective.potential(fake)


def test_names() -> None:
    assert [objective_name(objective) for objective in OBJECTIVES.values()] == list(OBJECTIVES)
    with pytest.raises(ConfigError, match="'hinge'"):
        get_objective("hing")
    with pytest.raises(ConfigError, match="'pearson'"):
        FGAN("person")

    class Mine(Objective):
        def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
            return fake - real

        def potential(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
            return fake

    assert objective_name(Mine()) == "Mine"


# --- penalties ---


def input_gradient(critic: Quadratic, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(critic(x).sum(), x)[0]


@pytest.mark.parametrize("centre", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(6, 3), (6, 1, 2, 2)])
def test_penalty_values(centre: float, shape: tuple[int, ...]) -> None:
    x = randn(*shape)
    critic = Quadratic(x[0].numel())
    norm = critic.gradient(x).flatten(1).norm(dim=1)
    value = GradientPenalty(0.3, centre).value(input_gradient(critic, x), torch.zeros(6).double())
    assert_close(value, 0.3 * (norm - centre) ** 2)


def test_a_penalty_has_wgan_gps_weight_and_place_unless_told() -> None:
    gradient, penalty = randn(6, 3), GradientPenalty(centre=1.0)
    value = penalty.value(gradient, torch.zeros(6).double())
    assert_close(value, 10 * (gradient.norm(dim=1) - 1) ** 2)
    assert penalty.at == "interpolated"


def test_r1_and_r2_have_mescheders_weight_and_place() -> None:
    real, fake, gradient, t = randn(6, 3), randn(6, 3, seed=1), randn(6, 3, seed=2), torch.zeros(6)
    for penalty, at in ((GradientPenalty.r1(0.8), real), (GradientPenalty.r2(0.8), fake)):
        assert_close(penalty.value(gradient, t.double()), 0.4 * gradient.square().sum(1))
        points = penalty.points(real, fake, generator=seeded())
        assert_close(points.detach(), at)
        assert points.requires_grad
    assert not real.requires_grad
    assert not fake.requires_grad


def test_interpolates_are_uniform_on_the_segments() -> None:
    real, fake = randn(20_000, 2, 2, 2), randn(20_000, 2, 2, 2, seed=1)
    points = GradientPenalty().points(real, fake, generator=seeded()).detach()
    share = ((points - fake) * (real - fake)).flatten(1).sum(1)
    share = share / (real - fake).flatten(1).square().sum(1)
    assert_close(points, fake + share[:, None, None, None] * (real - fake))
    assert_uniform(share)


def test_piecewise_weights() -> None:
    penalty = GradientPenalty(((0.25, 2.0), (0.5, 0.5)))
    t = torch.tensor([0.0, 0.24, 0.25, 0.49, 0.5, 1.0]).double()
    expected = torch.tensor([0, 0, 2, 2, 0.5, 0.5]).double()
    assert_close(penalty.weight_at(t), expected)
    gradient = randn(6, 3)
    assert_close(penalty.value(gradient, t), expected * gradient.square().sum(1))


@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_a_flat_discriminator_has_finite_second_derivatives(centre: float) -> None:
    gradient = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    value = GradientPenalty(1.0, centre).value(gradient, torch.zeros(3).double())
    assert_close(value.detach(), torch.full((3,), centre**2).double())
    (second,) = torch.autograd.grad(value.sum(), gradient)
    assert_close(second, torch.zeros_like(second))


@pytest.mark.parametrize(
    "build",
    [
        lambda: GradientPenalty(-1.0),
        lambda: GradientPenalty(((0.0, 1.0), (0.5, -1.0))),
        lambda: GradientPenalty(((0.5, 1.0), (0.0, 1.0))),
        lambda: GradientPenalty(1.0, centre=-1.0),
        lambda: GradientPenalty(1.0, at="nowhere"),  # type: ignore[arg-type]
    ],
)
def test_impossible_penalties_are_refused(build: Callable[[], GradientPenalty]) -> None:
    with pytest.raises(ConfigError):
        build()


def test_the_log_ratio_of_lsgan_still_moves_what_has_left_its_range() -> None:
    """The logit inside of [1e-6, 1 - 1e-6]; beyond it grows on, continuously and with its slope."""
    d = torch.linspace(-3, 4, 1401, dtype=torch.float64, requires_grad=True)
    ratio = OBJECTIVES["lsgan"].log_ratio(d)
    (slope,) = torch.autograd.grad(ratio.sum(), d)
    assert (slope > 0.2).all()
    assert (ratio.diff() > 0).all()
    inside = (d > 1e-3) & (d < 1 - 1e-3)
    torch.testing.assert_close(ratio[inside], torch.logit(d[inside]))
    beyond = (d < -1e-3) | (d > 1 + 1e-3)
    distance = torch.where(d < 0, -d, d - 1)[beyond]
    torch.testing.assert_close(slope[beyond], 1 / distance, rtol=3e-3, atol=0)
    for edge in (1e-6, 1 - 1e-6):
        near = torch.tensor([edge - 1e-12, edge + 1e-12], dtype=torch.float64, requires_grad=True)
        values = OBJECTIVES["lsgan"].log_ratio(near)
        (slopes,) = torch.autograd.grad(values.sum(), near)
        torch.testing.assert_close(*values.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=0)
