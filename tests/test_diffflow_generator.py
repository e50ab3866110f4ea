"""DiffFlow carried by a generator: drift and noise pass through A_θ, and what becomes of the law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import GAUSSIAN, MIXTURE, LinearField, assert_moments, randn, seeded, tensor
from partikel.diffflow import DiffFlow
from partikel.fields import At, ExactScoreField, Field, TrainingBatch
from partikel.fields.terms import AtScale
from partikel.metrics import energy_distance
from partikel.models import GeneratorModel, ntk_operator
from partikel.priors import GaussianPrior
from partikel.streams import Streams
from partikel.studies.gaussian_laws import gaussian_marginals
from partikel.targets import Gaussian, GaussianMixture

FLOW = DiffFlow.langevin(0.3, 0.8)


class Affine(nn.Module):
    """g(z) = W z + b: its outputs are Gaussian, and its kernel K(z, z') = (z·z' + 1) I."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, z: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        return z @ self.weight.T + self.bias

    def log_density(self, x: Tensor) -> Tensor:
        return self.law.log_density(x)

    @property
    def law(self) -> Gaussian:
        """Of the outputs, as the weights are now."""
        weight = self.weight.detach()
        return Gaussian(self.bias.detach().clone(), weight @ weight.T)


class Couplings(nn.Module):
    """An invertible g in the plane: each coordinate in turn is scaled and shifted as the other says."""

    def __init__(self, layers: int = 4, width: int = 32) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 2))
            for _ in range(layers)
        )
        self.double()
        for i, weight in enumerate(self.parameters()):
            weight.data = 0.5 * randn(*weight.shape, seed=i) / weight.shape[-1] ** 0.5

    def forward(self, z: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        still, moving = z[:, :1], z[:, 1:]
        for network in self.networks:
            scale, shift = network(still).chunk(2, 1)
            still, moving = moving * torch.exp(scale.tanh()) + shift, still
        return torch.cat([still, moving], 1)

    def log_density(self, x: Tensor) -> Tensor:
        still, moving, growth = x[:, :1], x[:, 1:], 0.0
        for network in reversed(list(self.networks)):
            scale, shift = network(moving).chunk(2, 1)
            still, moving = moving, (still - shift) * torch.exp(-scale.tanh())
            growth = growth + scale.tanh()[:, 0]
        z = torch.cat([still, moving], 1)
        return GaussianPrior((2,)).log_density(z) - growth


class OwnScore(Field):
    """s_ρ of a generator whose density is known, as it stands."""

    def __init__(self, generator: Affine | Couplings) -> None:
        super().__init__()
        self.generator = (generator,)  # in a tuple: the field does not own its weights

    def forward(self, x: Tensor, at: At) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.generator[0].log_density(point).sum(), point)
        return score


class Cubature(GaussianPrior):
    """±√D e_i instead of draws: points with the moments of N(0, I), up to the third."""

    def sample(self, n: int, **options: object) -> Tensor:
        (dim,) = self.shape
        points = dim**0.5 * torch.cat([torch.eye(dim), -torch.eye(dim)]).double()
        return points.repeat(n // len(points), 1)


def exact(
    flow: DiffFlow, generator: Affine | Couplings, target: GaussianMixture
) -> tuple[Field, Field]:
    """s_p and ∇d = u s_p - s_ρ."""
    score = ExactScoreField(target)
    return score, AtScale(score, flow.schedule) - OwnScore(generator)


def descend(model: GeneratorModel, optimiser: torch.optim.Optimizer, n: int, steps: int) -> None:
    """Train the generator alone."""
    (loss,) = (loss for loss in model.losses() if loss.name == "generator")
    streams = Streams(3)
    for _ in range(steps):
        optimiser.zero_grad()
        loss.compute(TrainingBatch(None, None, n, streams)).loss.mean().backward()
        optimiser.step()


def test_the_densities_are_those_of_the_outputs() -> None:
    generator, z = Couplings(), randn(5, 2)
    rows = torch.autograd.functional.jacobian(lambda z: generator(z).sum(0), z)  # rows do not meet
    jacobian = rows.transpose(0, 1)
    log_density = GaussianPrior((2,)).log_density(z) - jacobian.det().abs().log()
    assert_close(generator.log_density(generator(z)), log_density)


def test_a_step_moves_outputs_by_the_operator_of_drift_and_noise() -> None:
    """Δg = η A_θ[drift] in the mean, covariance η (g² - λ²) E_{z''}[K(z, z'') K(z'', z')]/B."""
    eta, size, draws = 0.05, 6, 2000
    flow = FLOW.at(1.5, -0.5)
    ratio = LinearField(tensor([[0.2, 0.1], [0.1, -0.3]]), tensor([0.1, 0.4]))
    drift = flow.field(ExactScoreField(GAUSSIAN), ratio)
    generator = Affine(randn(2, 3, seed=1), randn(2, seed=2))
    start = {name: value.clone() for name, value in generator.state_dict().items()}
    model = GeneratorModel(drift + flow.noise_field(eta), generator, GaussianPrior((3,)), eta=eta)
    optimiser, streams = torch.optim.SGD(generator.parameters(), lr=1.0), Streams(0)
    points, moves = model.particles(size, streams), []
    (fit,) = model.losses()
    z = points.latent
    assert z is not None
    for _ in range(draws):
        generator.load_state_dict(start)
        optimiser.zero_grad()
        moved = model.move(points, streams, None)
        fit.compute(TrainingBatch(None, moved, size, streams)).loss.mean().backward()
        optimiser.step()
        moves.append((generator(z) - points.x).detach()[:2].flatten())
    generator.load_state_dict(start)
    values = drift(points.x, points.at)
    mean = eta * ntk_operator(generator, z, values)
    kernel = z @ z.T + 1
    assert_close(mean, eta * kernel @ values / size)
    c = flow.coefficients(points.t[:1])
    spread = eta * (c.g2 - c.lambda2) * kernel[:2] @ kernel[:2].T / size**2
    covariance = torch.kron(spread, torch.eye(2).double())
    assert_moments(torch.stack(moves), mean[:2].flatten(), covariance)


CARRIED = {
    "the SDE's drift": (lambda flow, score, ratio: flow.field(score, ratio), True),
    "the flow's velocity": (lambda flow, score, ratio: flow.velocity(score, ratio), False),
}


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize(("g2", "lambda2"), [(0.0, 0.0), (1.2, 0.5), (2.0, 0.0), (1.0, -0.6)])
def test_the_law_of_a_linear_generator(g2: float, lambda2: float, name: str) -> None:
    """Noise averages out: a generator with the drift stands at (g², g²), on the diagonal of the plane.

    With the velocity it keeps to (g², λ²). The operator of a linear generator is the identity on linear
    fields, so that its outputs move exactly as particles do.
    """
    build, diagonal = CARRIED[name]
    steps, end = 200, 0.8
    flow = DiffFlow.langevin(0.3, 0.8, horizon=end).at(g2, lambda2)
    generator = Affine(tensor([[1.1, 0.0], [0.4, 0.6]]), tensor([-0.6, 1.1]))
    start = generator.law
    field = build(flow, *exact(flow, generator, GAUSSIAN))
    model = GeneratorModel(field, generator, Cubature((2,)))
    descend(model, torch.optim.SGD(generator.parameters(), lr=end / steps), 4, steps)
    base = flow.at(g2, g2) if diagonal else flow
    means, covariances = gaussian_marginals(base.with_g2(2.0), GAUSSIAN, start, [end])
    assert_close(generator.law.mean, means[0], rtol=0, atol=0.01)
    assert_close(generator.law.covariance, covariances[0], rtol=0, atol=0.01)


def test_noise_averages_out_over_the_batch() -> None:
    """With its noise, in batches of thousands: still the law on the diagonal, not the SDE's."""
    steps, end = 200, 0.8
    flow = DiffFlow.langevin(0.3, 0.8, horizon=end).at(1.6, 0.0)
    generator = Affine(tensor([[1.1, 0.0], [0.4, 0.6]]), tensor([-0.6, 1.1]))
    start = generator.law
    drift = flow.field(*exact(flow, generator, GAUSSIAN))
    model = GeneratorModel(drift + flow.noise_field(end / steps), generator, GaussianPrior((2,)))
    descend(model, torch.optim.SGD(generator.parameters(), lr=end / steps), 4096, steps)
    laws = (
        gaussian_marginals(base, GAUSSIAN, start, [end])[1] for base in (flow, flow.at(1.6, 1.6))
    )
    sde, diagonal = ((generator.law.covariance - law[0]).norm() / law[0].norm() for law in laws)
    assert diagonal < 0.03
    assert sde > 0.3


@pytest.mark.parametrize(("g2", "factor"), [(0.0, 200), (0.3, 30)], ids=["GAN", "Diffusion-GAN"])
def test_a_generator_learns_a_mixture(g2: float, factor: float) -> None:
    """An invertible generator and the exact score difference: the energy distance falls so many times.

    With noise it ends near p^{β/(β - ½g²)}, where the diagonal does, and so falls less.
    """
    rate, level, n = 0.02, 0.5, 4000
    target = GaussianMixture(
        MIXTURE.means + tensor([3.0, -2.0]), MIXTURE.covariances, weights=MIXTURE.weights
    )
    flow, generator = DiffFlow.langevin(level).with_g2(g2), Couplings()
    drift = flow.field(*exact(flow, generator, target))
    field = drift + flow.noise_field(rate) if g2 > 0 else drift
    model = GeneratorModel(field, generator, GaussianPrior((2,)))
    data = target.sample(n, generator=seeded(1), dtype=torch.float64) + level * randn(n, 2)
    before = energy_distance(model.sample(n, generator=seeded(2)), data)
    descend(model, torch.optim.Adam(generator.parameters(), lr=rate), 256, 300)
    after = energy_distance(model.sample(n, generator=seeded(2)), data)
    assert after < before / factor
