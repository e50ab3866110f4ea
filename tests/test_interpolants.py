"""Interpolants: one law in four clothes, any path, couplings (framework §10). Exact laws, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import GAUSSIAN, MIXTURE, assert_mean, assert_moments, randn, seeded, slope, tensor
from partikel.data import Batch, DataPrior, DataSettings, one_class, open_dataset
from partikel.denoising import (
    EDMDenoiser,
    VelocityDenoiser,
    denoiser_from_velocity,
    onto_path,
    path_score,
    score_from_denoiser,
    velocity_from_denoiser,
)
from partikel.errors import ConfigError
from partikel.fields import (
    AlongPath,
    At,
    AtScale,
    ExactScoreField,
    Field,
    Independent,
    OptimalTransport,
    Pairs,
    PathScore,
    ScoreField,
    TrainingBatch,
    VelocityField,
)
from partikel.fields.velocity import on_the_way
from partikel.likelihood import Ode
from partikel.models import GeneratorModel, ParticleModel, Sampling
from partikel.models.reflow import Reflow
from partikel.priors import GaussianPrior
from partikel.recipes import FlowMatching
from partikel.recipes.base import score_in
from partikel.schedules import (
    EDMSchedule,
    InterpolantSchedule,
    LinearSchedule,
    LogitNormalTimeLaw,
    Schedule,
    TrigonometricSchedule,
    UniformTimeLaw,
    VPSchedule,
)
from partikel.solvers import RK4, SOLVERS, EulerMaruyama
from partikel.streams import Streams

PATHS = {
    "linear": LinearSchedule(),
    "trigonometric": TrigonometricSchedule(),
    "vp": VPSchedule(epsilon=1e-3),
    "karras": EDMSchedule(10.0),
    "any": InterpolantSchedule(lambda t: t * (3 - t) / 2, lambda t: (1 - t) * (1 + t / 2)),
}
INTERPOLANTS = ("linear", "trigonometric", "any")


class ExactVelocity(nn.Module):
    """v of a target along a path, called as a network; at t = 0 too."""

    def __init__(self, path: Schedule, target: object = MIXTURE) -> None:
        super().__init__()
        self.path, self.target = path, target

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        t = c[:, 0].expand(len(x)).clamp(max=self.path.horizon - 1e-7)  # D is x at the end itself
        a, b = self.path.scale(t), self.path.spread(t)
        low = a < 1e-8 * b
        a = torch.where(low, 1e-8 * b, a)  # D is E[x_1] there, to 1e-8
        denoised = self.target.denoiser(x / a[:, None], b / a)  # type: ignore[attr-defined]
        return velocity_from_denoiser(denoised, x, self.path, t)


def exact(path: Schedule, **options: object) -> VelocityField:
    return VelocityField(VelocityDenoiser(ExactVelocity(path), path), **options)  # type: ignore[arg-type]


def points(path: Schedule, t: Tensor, seed: int = 0) -> Tensor:
    clean = MIXTURE.sample(len(t), generator=seeded(seed), dtype=torch.float64)
    return path.noised(clean, t, generator=seeded(seed + 1))


# --- clothes


@pytest.mark.parametrize("name", PATHS)
def test_a_denoiser_has_four_clothes(name: str) -> None:
    """v, D and both scores of one law, each from each, and v from f and g_s² where these are finite."""
    path = PATHS[name]
    t = path.horizon * tensor([0.1, 0.3, 0.6, 0.9, 0.97, 0.5])
    x = points(path, t)
    u, sigma = path.u(t), path.sigma(t)
    denoised = MIXTURE.denoiser(u[:, None] * x, sigma)
    velocity = velocity_from_denoiser(denoised, x, path, t)
    assert_close(denoiser_from_velocity(velocity, x, path, t), denoised)
    score = u[:, None] * MIXTURE.score(u[:, None] * x, sigma)
    assert_close(path_score(denoised, x, path, t), score)
    assert_close(AtScale(ExactScoreField(MIXTURE), path)(x, At(t)), score)
    half = path.noise_rate(t)[:, None] / 2
    assert_close(velocity, path.drift_rate(t)[:, None] * x + half * score)
    network = VelocityDenoiser(ExactVelocity(path), path)
    assert_close(network(u[:, None] * x, sigma), denoised)
    assert_close(network.loss_weight(sigma), 1 + sigma**-2)  # 1/c_out² at σ_d = 1
    assert_close(
        ScoreField(network)(u[:, None] * x, At(t, sigma)), MIXTURE.score(u[:, None] * x, sigma)
    )


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_what_is_finite_at_the_start_is_right_there(name: str) -> None:
    """At t = 0 the law is N(0, I): ∇log ρ = -x, D = E x_1, v = a' E x_1 + b' x."""
    path, t, x = PATHS[name], torch.zeros(4, dtype=torch.float64), randn(4, 2)
    field = exact(path)
    assert_close(PathScore(field, path)(x, At(t)), -x, atol=1e-6, rtol=0)
    rates = path.scale_rate(t)[:, None] * MIXTURE.mean + path.spread_rate(t)[:, None] * x
    assert_close(field(x, At(t)), rates, atol=1e-6, rtol=0)
    assert path.sigma_max == torch.inf
    assert path.prior_std == 1


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_rates_and_inverse_of_an_interpolant(name: str) -> None:
    path = PATHS[name]
    t = tensor([0.05, 0.4, 0.8]).requires_grad_()
    for value, rate in ((path.scale, path.scale_rate), (path.spread, path.spread_rate)):
        (slopes,) = torch.autograd.grad(value(t).sum(), t)
        assert_close(rate(t).detach(), slopes)
    (slopes,) = torch.autograd.grad(path.sigma(t).sum(), t)
    assert_close(path.sigma_rate(t).detach(), slopes)
    assert_close(path.time(path.sigma(t)), t)
    assert float(path.time(tensor(torch.inf))) < 1e-15
    assert float(path.time(tensor(0.0))) == 1


def test_functions_that_do_not_lead_to_data_are_refused() -> None:
    for a, b in (
        (torch.clone, torch.clone),
        (lambda t: 1 - t, torch.clone),
        (torch.clone, lambda t: 1 - t + 0.1 * torch.sin(20 * t) * t),
        (torch.square, lambda t: 1 - t),  # at t = 0 the velocity does not tell D
    ):
        with pytest.raises(ConfigError, match="ends at a = 1 and b = 0"):
            InterpolantSchedule(a, b)


@pytest.mark.parametrize("name", PATHS)
def test_every_schedule_is_an_interpolant(name: str) -> None:
    """Noised data are a x + b ε, and a, b change as their rates say."""
    path = PATHS[name]
    t = (path.horizon * tensor([0.2, 0.5, 0.8])).requires_grad_()
    clean, noise = randn(3, 2, seed=2), torch.randn(3, 2, generator=seeded(7), dtype=torch.float64)
    noised = path.noised(clean, t, generator=seeded(7))
    assert_close(noised, path.scale(t)[:, None] * clean + path.spread(t)[:, None] * noise)
    (rate,) = torch.autograd.grad(path.spread(t).sum(), t)
    assert_close(path.spread_rate(t).detach(), rate)
    moved, velocity = on_the_way(path, Pairs(noise, clean), t.detach())
    assert_close(moved, noised.detach())
    step = 1e-6
    later = on_the_way(path, Pairs(noise, clean), t.detach() + step)[0]
    assert_close(velocity, (later - moved) / step, rtol=1e-4, atol=1e-4)


# --- along other paths


@pytest.mark.parametrize("own", PATHS)
@pytest.mark.parametrize("other", PATHS)
def test_a_flow_runs_along_every_path(own: str, other: str) -> None:
    path, to = PATHS[own], PATHS[other]
    t = to.horizon * tensor([0.6, 0.75, 0.9])
    x = points(to, t)
    assert_close(
        AlongPath(exact(path), path, to)(x, At(t)), exact(to)(x, At(t)), rtol=1e-6, atol=1e-6
    )


def test_the_last_levels_of_noise_are_asked_at_the_same_points_in_single_precision() -> None:
    """Where times of the other path round to its end, or to a level next to the one that is meant."""
    edm, left = EDMSchedule(40.0), torch.tensor([1e-3, 1e-5, 1e-6, 2**-24])
    x = torch.randn(4, 2, generator=seeded())
    point, there = onto_path(edm, x, 1 - left, left)
    assert (edm.sigma(there) > 0).all()
    assert_close(point, x / (1 - left)[:, None])
    assert_close(edm.sigma(there), left, rtol=1e-6, atol=4e-6)


def test_an_edm_starts_along_the_linear_path_at_its_highest_level() -> None:
    """At t = 0 it is asked about 40 ε at σ = 40, and is off by O(1/40)."""
    path, x = LinearSchedule(), randn(50, 2)
    errors = []
    levels = tensor([20.0, 40.0, 80.0])
    for level in levels.tolist():
        edm = EDMSchedule(level)
        found = AlongPath(edm.half_rate * ExactScoreField(MIXTURE), edm, path)(x, At(tensor(0.0)))
        errors.append(float((found - (MIXTURE.mean - x)).norm()))
    assert slope(levels, tensor(errors)) == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize("left", [1e-3, 1e-5, 6e-8])
def test_an_edm_is_asked_as_close_to_the_data_as_float32_goes(left: float) -> None:
    """Its time t = 40 - σ rounds a σ of 1e-6 to 0: it is asked at that σ all the same, and at the same x.

    The denoiser of N(0, 4) makes the velocity (4t - (1 - t)) x/(4t² + (1 - t)²).
    """
    path = EDMSchedule(40.0)
    edm = ScoreField(EDMDenoiser(Silent(), sigma_data=2.0))
    along, x = AlongPath(path.half_rate * edm, path, LinearSchedule()), randn(5, 2).float()
    t = torch.full((5,), 1 - left)
    found = x + left * along(x, At(t, (1 - t) / t))
    s = 1 - left
    expected = x + left * (4 * s - left) * x / (4 * s**2 + left**2)
    assert_close(found, expected, rtol=0, atol=max(0.02 * left, 2e-6))


class Silent(nn.Module):
    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    "solver",
    ["heun", "rk4", "ddim", "dpmpp-2m", "unipc-2", "unipc-3", "midpoint", "adaptive"],
)
def test_solvers_reach_the_data_along_both_paths(solver: str) -> None:
    """From the same noise, the same samples: a flow-matching model's own, and along EDM's path."""
    path = LinearSchedule()
    model = ParticleModel(exact(path), GaussianPrior((2,)), steps=60, schedule=path)
    x = randn(40, 2)
    best = model.sample(40, generator=seeded(), start=x, solver=RK4(), steps=400)
    own = model.sample(40, generator=seeded(), start=x, solver=SOLVERS[solver]())
    assert float((own - best).abs().mean()) < 0.03
    along = Sampling.of(path=EDMSchedule(80.0), solver=SOLVERS[solver](), steps=60)
    other = model.sample(40, generator=seeded(), start=x, sampling=along)
    assert float((other - best).abs().mean()) < 0.06
    assert model.evaluations(sampling=along) > 0


def test_likelihood_and_noise_from_the_infinite_level() -> None:
    path = LinearSchedule()
    field = VelocityField(VelocityDenoiser(ExactVelocity(path, GAUSSIAN), path))
    model = ParticleModel(field, GaussianPrior((2,)), steps=30, schedule=path)
    x = GAUSSIAN.sample(20, generator=seeded(), dtype=torch.float64)
    found = Ode().log_prob(model, x, generator=seeded()).log_prob
    assert_close(found, GAUSSIAN.log_density(x), atol=2e-3, rtol=0)
    edm = Ode().log_prob(model.along(EDMSchedule(400.0)), x, generator=seeded()).log_prob
    assert_close(edm, found, atol=2e-2, rtol=0)
    rate = 0.7
    noisy = ParticleModel(
        field + (rate**2 / 2) * PathScore(field, path),
        GaussianPrior((2,)),
        steps=400,
        schedule=path,
        diffusion=lambda t: torch.full_like(t, rate),
        solver=EulerMaruyama(),
        score=PathScore(field, path),
    ).double()
    start = randn(20_000, 2)
    drawn = noisy.sample(20_000, generator=seeded(), start=start, stop=380)
    t = tensor(0.95)  # close to the end, where the law is known too
    expected = GAUSSIAN.covariance * t**2 + (1 - t) ** 2 * torch.eye(2, dtype=torch.float64)
    assert_moments(drawn, t * GAUSSIAN.mean, expected, errors=6)


# --- learning


def batch(n: int, seed: int = 0, labels: bool = False) -> TrainingBatch:
    x, cond = MIXTURE.sample_labelled(n, generator=seeded(seed), dtype=torch.float64)
    return TrainingBatch(Batch(x, cond if labels else None), None, n, Streams(seed))


class Moved(nn.Module):
    """The exact velocity plus weights, whose gradient at 0 says whether it is the optimum."""

    def __init__(self, path: Schedule, by: float = 0.0) -> None:
        super().__init__()
        self.inner = ExactVelocity(path)
        self.shift = nn.Parameter(torch.full((2,), by, dtype=torch.float64))
        self.turn = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.inner(x, c) + self.shift + c * (x @ self.turn)


@pytest.mark.parametrize("law", [UniformTimeLaw(), LogitNormalTimeLaw(0.4, 1.0)], ids=repr)
@pytest.mark.parametrize("name", ["linear", "trigonometric"])
def test_the_velocity_is_the_optimum_of_flow_matching(name: str, law: object) -> None:
    path = PATHS[name]
    for by, stationary in ((0.0, True), (0.2, False)):
        network = Moved(path, by)
        (loss,) = VelocityField(VelocityDenoiser(network, path), law).losses()  # type: ignore[arg-type]
        gradients = []
        for seed in range(60):
            value = loss.compute(batch(400, seed)).loss.mean()
            parts = torch.autograd.grad(value, [network.shift, network.turn])
            gradients.append(torch.cat([part.flatten() for part in parts]))
        found = torch.stack(gradients)
        if stationary:
            assert_mean(found, 0.0)
        else:
            assert float((found.mean(0).abs() * 60**0.5 / found.std(0)).max()) > 10


@pytest.mark.parametrize("labels", [False, True])
def test_means_over_a_batch_have_the_same_optimum_and_less_noise(labels: bool) -> None:
    """E[v_c | X, batch] has the mean E[v_c | X]: the exact v stays the optimum."""
    path, spreads = PATHS["trigonometric"], []
    for over_batch in (False, True):
        network = Moved(path)
        coupling = Independent(GaussianPrior((2,)), over_batch)
        field = VelocityField(VelocityDenoiser(network, path), UniformTimeLaw(), coupling)
        (loss,) = field.losses()
        gradients = []
        for seed in range(200):
            value = loss.compute(batch(20, seed, labels)).loss.mean()
            parts = torch.autograd.grad(value, [network.shift, network.turn])
            gradients.append(torch.cat([part.flatten() for part in parts]))
        found = torch.stack(gradients)
        assert_mean(found, 0.0)
        spreads.append(found.var(0).sum())
    assert spreads[1] < 0.85 * spreads[0]


def test_means_over_a_batch_lead_through_the_same_point() -> None:
    real = batch(30, labels=True).real
    assert real is not None
    assert real.cond is not None
    coupling = Independent(GaussianPrior((2,)), over_batch=True)
    pairs = coupling.pairs(real, Streams(0))
    for a, b in ((0.0, 1.0), (0.3, 0.7), (1 - 1e-7, 1e-7), (1.0, 0.0)):
        scale, spread = (torch.full((30,), each, dtype=torch.float64) for each in (a, b))
        ends = coupling.expected(pairs, scale, spread)
        x = a * pairs.x1 + b * pairs.x0
        assert_close(a * ends.x1 + b * ends.x0, x, rtol=0, atol=1e-5 if a == 0 else 1e-12)
        if a == 0:  # anything of the class may have led there
            means = torch.stack([real.x[real.cond == each].mean(0) for each in real.cond])
            assert_close(ends.x1, means, rtol=0, atol=1e-4)
        if b < 1e-6:  # nothing else may
            assert_close(ends.x1, pairs.x1)


def test_both_weightings_are_the_same_error() -> None:
    """‖v - v_c‖² = (a' - ab'/b)² ‖D - x_1‖², (1 - t)^-2 on the linear path."""
    path = LinearSchedule()
    fields = [exact(path, law=UniformTimeLaw(), weighting=w) for w in ("velocity", "denoiser")]
    velocity, denoiser = (f.losses()[0].compute(batch(50)).loss for f in fields)
    t = UniformTimeLaw().sample(50, generator=Streams(0).time, dtype=torch.float64)
    assert_close(denoiser, (1 - t) ** 2 * velocity)


def test_laws_of_times() -> None:
    t = LogitNormalTimeLaw(0.4, 1.0).sample(20_000, 2.0, generator=seeded(), dtype=torch.float64)
    assert_mean((t / 2).logit(), 0.4)
    assert 0.97 < float((t / 2).logit().std()) < 1.03
    uniform = UniformTimeLaw().sample(20_000, 2.0, generator=seeded(), dtype=torch.float64)
    assert_mean(uniform, 1.0)
    assert 0 <= float(uniform.min()) <= float(uniform.max()) < 2


# --- couplings


def curvature(pairs: Pairs) -> float:
    """E Var(x_1 - x_0 | X_t): what the velocity cannot know of where a particle goes, by neighbours."""
    x, velocity = on_the_way(LinearSchedule(), pairs, torch.full((len(pairs.x1),), 0.5).double())
    near = torch.cdist(x, x).topk(8, largest=False).indices
    return float(velocity[near].var(1).mean())


@pytest.mark.parametrize("blur", [None, 0.5])
def test_transport_shortens_and_straightens(blur: float | None) -> None:
    source, n = GaussianPrior((2,)), 1000
    real = batch(n).real
    assert real is not None
    apart = Independent(source).pairs(real, Streams(0))
    near = OptimalTransport(source, blur).pairs(real, Streams(0))
    cost = [float((p.x1 - p.x0).square().sum(1).mean()) for p in (apart, near)]
    assert cost[1] < 0.6 * cost[0]
    assert curvature(near) < 0.3 * curvature(apart)
    assert torch.equal(near.x1, real.x)
    if blur is None:  # the same points, in another order
        assert_close(near.x0.sort(0).values, apart.x0.sort(0).values)
        swapped = near.x0.clone()
        swapped[[0, 1]] = near.x0[[1, 0]]
        assert float((near.x1 - swapped).square().sum()) >= n * cost[1] - 1e-9
    else:
        assert_moments(near.x0, torch.zeros(2).double(), torch.eye(2).double(), errors=5)


def test_transport_keeps_the_source_of_each_class() -> None:
    real = batch(900, labels=True).real
    assert real is not None
    assert real.cond is not None
    pairs = OptimalTransport(GaussianPrior((2,))).pairs(real, Streams(0))
    assert torch.equal(pairs.cond, real.cond)  # type: ignore[arg-type]
    for label in range(3):
        assert_mean(pairs.x0[real.cond == label], 0.0)
    mixed = OptimalTransport(GaussianPrior((2,))).pairs(Batch(real.x, None), Streams(0))
    shifted = mixed.x0[real.cond == 0]
    assert float(shifted.mean(0).norm()) > 0.3


def test_reflow_ends_where_its_flow_does() -> None:
    path = LinearSchedule()
    flow = ParticleModel(exact(path), GaussianPrior((2,)), steps=8, schedule=path)
    reflow = Reflow(flow, 500)
    pairs = reflow.pairs(batch(64).real, Streams(0))  # type: ignore[arg-type]
    again = Reflow(flow, 500).pairs(batch(64).real, Streams(0))  # type: ignore[arg-type]
    assert torch.equal(pairs.x0, again.x0)
    ends = flow.sample(64, generator=seeded(), start=pairs.x0.float())
    assert_close(ends.double(), pairs.x1, atol=1e-4, rtol=1e-4)
    generator = GeneratorModel(exact(path), nn.Linear(2, 2), GaussianPrior((2,)))
    with pytest.raises(ConfigError, match="free particles"):
        Reflow(generator, 500)  # type: ignore[arg-type]


def test_other_laws_have_a_velocity_and_no_score() -> None:
    path = LinearSchedule()
    moons = DataPrior(open_dataset(DataSettings("moons")))
    for coupling in (
        OptimalTransport(GaussianPrior((2,))),
        Independent(moons),
        Independent(GaussianPrior((2,), 2.0)),
    ):
        field = exact(path, coupling=coupling)
        assert not coupling.has_score
        model = ParticleModel(field, coupling.source, steps=4, schedule=path)
        for ask in (lambda f=field: score_in(f), lambda m=model: m.along(EDMSchedule(10.0))):
            with pytest.raises(ConfigError, match="no score"):
                ask()
    with pytest.raises(ConfigError, match="no density"):
        moons.log_density(torch.zeros(1, 2))
    assert isinstance(score_in(exact(path, coupling=Independent(GaussianPrior((2,))))), ScoreField)


def test_means_over_a_batch_of_other_couplings_are_refused() -> None:
    with pytest.raises(ConfigError, match="independent noise"):
        Independent(DataPrior(open_dataset(DataSettings("moons"))), over_batch=True)
    recipe = FlowMatching(coupling="transport", over_batch=True)
    with pytest.raises(ConfigError, match="leave one"):
        recipe.system(open_dataset(recipe.data))


def test_batches_of_two_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="one size"):
        OptimalTransport(GaussianPrior((2,))).partners(randn(3, 2), randn(4, 2), generator=seeded())


def test_a_data_set_is_a_prior() -> None:
    digits = open_dataset(DataSettings("digits"))
    three = one_class(digits, 3)
    drawn = DataPrior(three).sample(500, generator=seeded())  # more than there are
    assert drawn.shape == (500, 1, 8, 8)
    points, labels = digits.stored("train")  # type: ignore[attr-defined]
    threes = points[labels == 3].float() / (digits.top / 2) - 1  # type: ignore[attr-defined]
    assert float(torch.cdist(drawn[:40].flatten(1), threes.flatten(1)).amin(1).max()) < 1e-3
    with pytest.raises(ConfigError, match="0 to 9"):
        one_class(digits, 10)


def test_scores_and_velocities_of_one_network_are_frozen_together() -> None:
    field = exact(LinearSchedule(), law=UniformTimeLaw())
    assert field.losses()
    assert not score_in(field.freeze()).losses()
    assert score_in(field).frozen
    edm = EDMDenoiser(nn.Identity())
    assert replace(Sampling(), path=LinearSchedule()).protocol == {"path": "LinearSchedule"}
    assert edm.sigma_data == 0.5
    x, sigma = randn(3, 2), tensor([0.5, 1.0, 2.0])
    denoised = MIXTURE.denoiser(x, sigma)
    assert_close(score_from_denoiser(denoised, x, sigma), MIXTURE.score(x, sigma))
    assert isinstance(field, Field)
