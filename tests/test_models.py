"""The two carriers: free particles, what training sees of them, generators, one field in both."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import (
    GAUSSIAN,
    MIXTURE,
    LinearField,
    Quadratic,
    Recorder,
    assert_mean,
    assert_moments,
    randn,
    seeded,
    tensor,
)
from partikel.data import Batch
from partikel.denoising import EDMDenoiser
from partikel.errors import ConfigError, NumericsError
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    ExactScoreField,
    Field,
    Perturbed,
    ScoreField,
    TrainingBatch,
    WhiteNoise,
)
from partikel.fields.particles import Particles
from partikel.fields.samples.drift import DriftField
from partikel.metrics import energy_distance, sliced_wasserstein2
from partikel.models import (
    Carrier,
    GeneratorModel,
    ParticleModel,
    PooledParticleModel,
    Sampling,
    StagedParticleModel,
    free_particles,
    nodes_at,
    surrogate_loss,
)
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, KarrasGrid, KarrasLaw, Nodes, VESchedule
from partikel.solvers import DPMSolver2M, Euler, EulerMaruyama, Heun
from partikel.streams import Streams
from partikel.tensors import all_finite

MATRIX, OFFSET = tensor([[-0.8, 0.5], [-0.3, 0.4]]), tensor([0.6, -0.2])
PRIOR = GaussianPrior((2,), std=1.5)


def linear() -> LinearField:
    return LinearField(MATRIX, OFFSET)


def still() -> LinearField:
    return LinearField(torch.zeros(2, 2).double(), torch.zeros(2).double())


def after(steps: int, of: int, eta: float) -> tuple[Tensor, Tensor]:
    """The affine map (M, m) of so many Euler steps of size η/N along the linear field."""
    step = torch.eye(2).double() + eta / of * MATRIX
    whole, shift = torch.eye(2).double(), torch.zeros(2).double()
    for _ in range(steps):
        whole, shift = step @ whole, step @ shift + eta / of * OFFSET
    return whole, shift


# --- free particles ---


def test_a_linear_field_carries_the_prior_in_closed_form() -> None:
    """x_{n+1} = x_n + (η/N) field(x_n): exactly for given particles, in moments from the prior."""
    model = ParticleModel(linear(), PRIOR, steps=7, eta=1.8)
    whole, shift = after(7, 7, 1.8)
    x = randn(5, 2)
    assert_close(model.sample(5, generator=seeded(), start=x), x @ whole.T + shift)
    samples = model.sample(20_000, generator=seeded())
    assert samples.dtype == torch.float64
    assert_moments(samples, shift, 1.5**2 * whole @ whole.T)


def test_steps_and_stop_may_differ_from_training() -> None:
    model = ParticleModel(linear(), PRIOR, steps=7, eta=1.8)
    x = randn(5, 2)
    for steps, stop in ((3, None), (20, None), (7, 2), (20, 11), (3, 0)):
        whole, shift = after(steps if stop is None else stop, steps, 1.8)
        end = model.sample(5, generator=seeded(), start=x, steps=steps, stop=stop)
        assert_close(end, x @ whole.T + shift)
    fine = model.sample(5, generator=seeded(), start=x, steps=64, solver=Heun())
    augmented = torch.zeros(3, 3).double()
    augmented[:2, :2], augmented[:2, 2] = 1.8 * MATRIX, 1.8 * OFFSET
    exact = torch.linalg.matrix_exp(augmented)
    assert_close(fine, x @ exact[:2, :2].T + exact[:2, 2], atol=1e-3, rtol=0)


def test_streaming_hands_out_every_node_and_leaves_gradients_to_the_consumer() -> None:
    model = ParticleModel(linear(), PRIOR, steps=4, eta=1.8)
    x = randn(5, 2)
    for n, state in enumerate(model.stream(x, generator=seeded())):
        whole, shift = after(n, 4, 1.8)
        assert state.step == n
        assert state.t == n / 4
        assert_close(state.x, x @ whole.T + shift)
        assert torch.is_grad_enabled()
    critic = ParticleModel(DiscriminatorField(Quadratic(2)), PRIOR, steps=2)
    assert not any(state.x.requires_grad for state in critic.stream(x, generator=seeded()))


def test_the_field_is_asked_at_the_times_and_noise_levels_of_the_path() -> None:
    seen: list[At] = []

    class Listener(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            seen.append(at)
            return torch.zeros_like(x)

    path, cond = VESchedule(10.0, 0.1), torch.tensor([2, 0, 1])
    grid = KarrasGrid(path, 0.1)
    model = ParticleModel(Listener(), PRIOR, steps=4, schedule=path, grid=grid)
    model.sample(3, generator=seeded(), start=randn(3, 2), cond=cond)
    nodes = grid.nodes(4)[:4]
    assert_close(torch.stack([at.t for at in seen]), nodes)  # one time for all particles
    levels = torch.stack([at.sigma for at in seen if at.sigma is not None])
    assert_close(levels, path.sigma(nodes))
    assert all(torch.equal(at.cond, cond) for at in seen if at.cond is not None)
    assert all(at.cond is not None for at in seen)


def test_temperature_is_noise_in_all_steps_but_the_last() -> None:
    """√(2τη/N) ξ a step (GPM Algorithm 3)."""
    model = ParticleModel(still(), PRIOR, steps=5, eta=0.7, temperature=0.3)
    noise = 2 * 0.3 * 0.7 / 5
    states = list(model.stream(torch.zeros(20_000, 2).double(), generator=seeded()))
    for n, state in enumerate(states):
        variance = noise * min(n, 4)
        if n:
            assert_moments(state.x, torch.zeros(2).double(), variance * torch.eye(2).double())
    assert torch.equal(states[4].x, states[5].x)


def test_sampling_is_a_function_of_the_generator() -> None:
    field = linear() + WhiteNoise(0.5)
    for model in (
        ParticleModel(field, PRIOR, steps=3),
        ParticleModel(linear(), PRIOR, steps=3, temperature=0.2),
    ):
        first, again, other = (model.sample(4, generator=seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("churn", [0.0, 10.0])
def test_edm_with_the_exact_score_reproduces_the_law(churn: float) -> None:
    """From the exact law at σ_max, distances are those between two draws of the data."""
    path, n = EDMSchedule(20.0), 3000
    score = ExactScoreField(MIXTURE)
    model = ParticleModel(
        path.half_rate * score,
        GaussianPrior((2,), std=20.0),
        steps=40,
        schedule=path,
        grid=KarrasGrid(path),
        solver=Heun(churn=churn),
    )

    def data(seed: int) -> Tensor:
        return MIXTURE.sample(n, generator=seeded(seed), dtype=torch.float64)

    samples = model.sample(n, generator=seeded(2), start=data(0) + 20 * randn(n, 2, seed=1))
    for distance in (energy_distance, sliced_wasserstein2):
        spread = tensor([distance(data(10 + i), data(50 + i)) for i in range(12)])
        assert distance(samples, data(100)) < spread.mean() + 4 * spread.std()


def test_the_lowest_noise_levels_survive_float32() -> None:
    """σ = σ_max - t cancels: at the paper's settings 80 - t must still tell 0.002."""
    path = EDMSchedule(80.0)
    seen: list[Tensor] = []

    class Listener(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            assert at.sigma is not None
            seen.append(at.sigma)
            return torch.zeros_like(x)

    grid = KarrasGrid(path, 0.002)
    model = ParticleModel(Listener(), PRIOR, steps=28, schedule=path, grid=grid)
    model.sample(2, generator=seeded(), start=torch.zeros(2, 2))
    exact = path.sigma(grid.nodes(28))[:-1]
    assert_close(torch.stack(seen).double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["score", "critic"])
def test_what_all_particles_share_is_embedded_once(kind: str) -> None:
    """A solver moves all particles through one time: networks get it as (1, S), not (B, S)."""
    path = EDMSchedule(2.0)
    network = Recorder() if kind == "score" else Recorder(lambda x: x.sum(1))
    field: Field
    if kind == "score":
        field = ScoreField(EDMDenoiser(network))
    else:
        field = DiscriminatorField(network, conditions=("t", "sigma"))
    model = ParticleModel(field, PRIOR, steps=3, schedule=path)
    model.sample(5, generator=seeded())
    shapes = [c.shape for _, c, _ in network.calls if c is not None]
    assert shapes == [(1, 1 if kind == "score" else 2)] * 3


# --- particles to train on ---


def closed_form(points: Particles, x: Tensor, steps: int, eta: float) -> Tensor:
    """Where the linear field has taken starting points by each particle's own time."""
    expected = torch.empty_like(x)
    for i, t in enumerate(points.t.tolist()):
        whole, shift = after(round(t * steps), steps, eta)
        expected[i] = whole @ x[i] + shift
    return expected


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("shares", [1, 3])
def test_particles_are_where_the_simulation_takes_them(truncate: bool, shares: int) -> None:
    n, steps = 60, 6
    model = ParticleModel(
        linear(), PRIOR, steps=steps, eta=1.8, times_per_path=shares, truncate=truncate
    )
    points = model.particles(n, Streams(3))
    start = PRIOR.sample(n // shares, generator=Streams(3).latent, dtype=torch.float64)
    start = start.repeat_interleave(shares, 0)
    assert_close(points.x, closed_form(points, start, steps, 1.8))
    assert points.sigma is None
    assert not points.x.requires_grad
    nodes = (points.t * steps).round().long()
    assert set(nodes.tolist()) == set(range(steps))  # 0, ..., N - 1
    ranges = nodes.view(-1, shares) * shares // steps  # one particle of a path in each range
    assert torch.equal(ranges, torch.arange(shares).expand(n // shares, shares))


@pytest.mark.parametrize(("steps", "shares"), [(7, 1), (6, 3), (7, 2), (1, 1)])
def test_nodes_are_uniform(steps: int, shares: int) -> None:
    n = 6000
    model = ParticleModel(still(), PRIOR, steps=steps, times_per_path=shares)
    nodes = (model.particles(n, Streams(1)).t * steps).round().long()
    counts = torch.bincount(nodes, minlength=steps).double()
    expected = n / steps
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert len(counts) == steps
    assert chi_squared < steps - 1 + 6 * math.sqrt(2 * steps)


def test_simulating_only_what_is_needed_keeps_the_law() -> None:
    """With noise, truncated and whole simulations agree in every node's law."""
    for truncate in (True, False):
        model = ParticleModel(linear(), PRIOR, steps=4, eta=1.8, temperature=0.4, truncate=truncate)
        points = model.particles(40_000, Streams(5))
        step = torch.eye(2).double() + 1.8 / 4 * MATRIX
        mean, covariance = torch.zeros(2).double(), 1.5**2 * torch.eye(2).double()
        for node in range(4):
            assert_moments(points.x[points.t == node / 4], mean, covariance)
            mean = step @ mean + 1.8 / 4 * OFFSET
            noise = 2 * 0.4 * 1.8 / 4 * torch.eye(2).double()
            covariance = step @ covariance @ step.T + noise


@pytest.mark.parametrize("truncate", [True, False])
def test_labels_stay_with_their_particles(truncate: bool) -> None:
    """A field that moves each label its own way, at the schedule's noise levels."""

    class ByLabel(Field):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1).double())

        def forward(self, x: Tensor, at: At) -> Tensor:
            assert at.cond is not None
            return at.cond[:, None].expand_as(x).double()

    path, prior = VESchedule(5.0, 0.1), GaussianPrior((2,), std=1e-6)
    for shares in (1, 2):
        model = ParticleModel(
            ByLabel(),
            prior,
            steps=5,
            schedule=path,
            times_per_path=shares,
            truncate=truncate,
            conditional=True,
        )
        points = model.particles(40, Streams(0), cond=torch.arange(40) % 7)
        assert points.cond is not None
        assert points.sigma is not None
        assert_close(points.x, (points.t * points.cond)[:, None].expand(40, 2), atol=1e-5, rtol=0)
        assert_close(points.sigma, path.sigma(points.t))
        first = (torch.arange(40 // shares) % 7).repeat_interleave(shares)
        assert torch.equal(points.cond, first)


def test_a_pool_holds_every_age_with_the_law_of_simulated_particles() -> None:
    """Particles that took up to three steps of an affine SDE, whose moments are a recursion."""
    prior, matrix, offset = GaussianPrior((1,), std=1.5), -0.8, 0.6
    field = LinearField(torch.full((1, 1), matrix), torch.full((1,), offset))
    model = PooledParticleModel(field, prior, pool=8000, steps=4, eta=2.0, temperature=0.1)
    streams, drawn = Streams(0), 2000
    for _ in range(27):  # six times all of the pool and more, so that all have started anew
        points = model.particles(drawn, streams)
    mean, variance = 0.0, 1.5**2
    for node in range(4):
        x = points.x[points.t == node / 4].double()
        assert len(x) == drawn / 4
        assert abs(float(x.mean()) - mean) < 4.5 * (variance / len(x)) ** 0.5
        assert abs(float(x.var()) - variance) < 4.5 * variance * (2 / len(x)) ** 0.5
        rate = 1 + 2.0 * matrix / 4
        mean, variance = rate * mean + 2.0 * offset / 4, rate**2 * variance + 2 * 0.1 * 2.0 / 4


def test_a_pool_keeps_labels_until_a_particle_starts_anew() -> None:
    model = PooledParticleModel(
        still(), PRIOR, pool=60, steps=3, conditional=True, label_weights=torch.ones(50) / 50
    ).double()
    streams = Streams(0)
    before, after = (model.particles(60, streams) for _ in range(2))
    same = after.t > 0
    assert before.cond is not None
    assert after.cond is not None
    assert torch.equal(before.cond[same], after.cond[same])
    assert not torch.equal(before.cond[~same], after.cond[~same])
    assert torch.equal(before.x[same], after.x[same])


def test_particles_of_a_relativistic_field_compare_with_real_samples() -> None:
    critic = DiscriminatorField(Quadratic(2), "relativistic")
    model, real = ParticleModel(critic, PRIOR, steps=2, eta=0.1), randn(9, 2, seed=3)
    points = model.particles(50, Streams(0), real=real)
    x = PRIOR.sample(50, generator=Streams(0).latent, dtype=torch.float64)
    moved = x + 0.05 * critic.bind(Context(real=real))(x, At(torch.zeros(50).double()))
    assert_close(points.x, torch.where(points.t[:, None] > 0, moved, x))
    assert_close(model.sample(50, generator=seeded(), start=x, stop=1, real=real), moved)
    for ask in (
        lambda: model.particles(4, Streams(0)),
        lambda: model.sample(4, generator=seeded()),
    ):
        with pytest.raises(ConfigError, match="real"):
            ask()


def test_numbers_may_be_too_large_to_be_added_up() -> None:
    """But none may be infinite, or nan."""
    assert all(all_finite(torch.tensor(x)) for x in ([], [1.0], [3e38, 3e38], [3e38, 3e38, -3e38]))
    inf, nan = math.inf, math.nan
    wrong = ([inf], [-inf, 1.0], [inf, -inf], [nan, 0.0])
    assert not any(all_finite(torch.tensor(x)) for x in wrong)


@pytest.mark.parametrize("truncate", [True, False])
def test_an_explosion_in_training_is_reported(truncate: bool) -> None:
    wild = LinearField(1e200 * torch.eye(2).double(), torch.zeros(2).double())
    model = ParticleModel(wild, PRIOR, steps=6, truncate=truncate)
    with pytest.raises(NumericsError, match=r"particles left the finite numbers at step 2 of"):
        model.particles(30, Streams(0))
    staged = StagedParticleModel(wild, PRIOR, steps=6, pool=30, stage_draws=1).double()
    for _ in range(2):  # the pool's start, and its first step
        assert staged.particles(10, Streams(0)).x.isfinite().all()
    with pytest.raises(NumericsError, match=r"particles left the finite numbers at step 2 of"):
        staged.particles(10, Streams(0))
    assert staged.pool.isfinite().all()  # it stays where it was
    pooled = PooledParticleModel(wild, PRIOR, steps=6, pool=30).double()
    pooled.turn.zero_()
    pooled.pool.fill_(1.0)
    assert pooled.particles(30, Streams(0)).x.isfinite().all()
    with pytest.raises(NumericsError, match="particles of the pool left the finite numbers"):
        pooled.particles(30, Streams(0))
    assert pooled.pool.isfinite().all()


def test_paths_end_at_their_last_node_in_training() -> None:
    """What happens after it is nobody's business: neither drawn nor computed."""
    asked: list[tuple[float, int]] = []

    class Listener(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            asked.append((round(float(5 * at.t)), len(x)))
            return torch.zeros_like(x)

    points = ParticleModel(Listener(), PRIOR, steps=5).particles(40, Streams(2))
    nodes = (points.t * 5).round().long()
    assert asked == [(i, int((nodes > i).sum())) for i in range(int(nodes.max()))]


def test_records_are_cut_whole() -> None:
    points = Particles(randn(6, 2), torch.arange(6.0), cond=torch.arange(6), clean=randn(6, 2))
    assert len(points) == 6
    for index in (slice(1, 4), torch.tensor([5, 0, 2])):
        part = points[index]
        assert torch.equal(part.x, points.x[index])
        assert torch.equal(part.t, points.t[index])
        assert part.cond is not None
        assert torch.equal(part.cond, torch.arange(6)[index])
        assert part.sigma is None
        assert part.latent is None


# --- generators ---


class Affine(nn.Module):
    """W z + b, plus the label."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(2, inputs, seed=21))
        self.bias = nn.Parameter(randn(2, seed=22))

    def forward(self, z: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        x = z @ self.weight.T + self.bias
        return x if cond is None else x + cond[:, None]


@pytest.fixture
def generator_network() -> Affine:
    return Affine(3)


def test_a_generator_gives_particles_and_samples(generator_network: Affine) -> None:
    latent = GaussianPrior((3,))
    model = GeneratorModel(ExactScoreField(GAUSSIAN), generator_network, latent, horizon=2.0)
    points = model.particles(6, Streams(1))
    z = latent.sample(6, generator=Streams(1).latent, dtype=torch.float64)
    assert_close(points.latent, z)
    assert_close(points.x, generator_network(z).detach())
    assert_close(points.t, torch.full((6,), 2.0).double())
    assert not points.x.requires_grad
    cond = torch.arange(6)
    assert_close(model.sample(6, generator=seeded(), start=z, cond=cond), points.x + cond[:, None])
    drawn = latent.sample(6, generator=seeded(), dtype=torch.float64)
    assert_close(model.sample(6, generator=seeded()), generator_network(drawn).detach())


def test_latents_have_the_dtype_of_the_generator(generator_network: Affine) -> None:
    model = GeneratorModel(linear(), generator_network.float(), GaussianPrior((3,)))
    assert model.particles(2, Streams(0)).x.dtype == torch.float32
    assert model.sample(2, generator=seeded()).dtype == torch.float32


def test_the_surrogate_asks_at_samples_with_labels_and_context(
    generator_network: Affine,
) -> None:
    seen: list[tuple[At, Tensor | None]] = []

    class Listener(Field):
        requires = frozenset({"real"})

        def forward(self, x: Tensor, at: At) -> Tensor:
            seen.append((at, self.context.real))
            return torch.ones_like(x)

    real = Batch(randn(4, 2), torch.tensor([3, 1, 0, 2]))
    model = GeneratorModel(
        Listener(), generator_network, GaussianPrior((3,)), horizon=2.0, conditional=True
    )
    (loss,) = model.losses()
    assert loss.needs == {"real"}
    value = loss.compute(TrainingBatch(real, None, 4, Streams(1)))
    for label, (at, bound) in enumerate(seen):  # class by class
        assert bound is not None
        assert_close(bound, real.x[real.cond == label])
        assert_close(at.t, tensor(2.0))
        assert at.sigma is None
        assert_close(at.cond, torch.tensor([label]))
    assert len(seen) == 4
    z = GaussianPrior((3,)).sample(4, generator=Streams(1).latent, dtype=torch.float64)
    x = generator_network(z, None, real.cond)
    assert_close(value.loss, surrogate_loss(x, torch.ones_like(x)))


def test_losses_come_in_the_order_of_an_iteration(generator_network: Affine) -> None:
    own = ScoreField(EDMDenoiser(Recorder()), KarrasLaw(), of="particles", name="own")
    field = Perturbed(DiscriminatorField(Quadratic(2)) - own, KarrasLaw())
    carried = GeneratorModel(field, generator_network, GaussianPrior((3,)))
    assert [loss.name for loss in carried.losses()] == ["discriminator", "own", "generator"]
    free = ParticleModel(field, PRIOR, steps=2)
    assert [loss.name for loss in free.losses()] == ["discriminator", "own"]
    assert free.sampled is field
    assert carried.sampled is generator_network


def test_loss_names_are_unique_within_a_model(generator_network: Affine) -> None:
    """Phases name losses: one that hides another would leave it untrained without a word."""
    critic = DiscriminatorField(Quadratic(2), name="generator")
    with pytest.raises(ConfigError, match="generator"):
        GeneratorModel(critic, generator_network, GaussianPrior((3,))).losses()


def test_a_field_without_noise_level_says_what_to_do(generator_network: Affine) -> None:
    score = ScoreField(EDMDenoiser(Recorder()), KarrasLaw())
    carried = GeneratorModel(score, generator_network, GaussianPrior((3,)))
    with pytest.raises(ConfigError, match="Perturbed"):
        carried.losses()[-1].compute(TrainingBatch(None, None, 4, Streams(0)))


def test_a_generator_has_no_steps_solver_or_guidance(generator_network: Affine) -> None:
    model = GeneratorModel(ExactScoreField(GAUSSIAN), generator_network, GaussianPrior((3,)))
    for options in ({"steps": 3}, {"stop": 1}, {"solver": Heun()}, {"guidance": 2.0}):
        (name,) = options
        with pytest.raises(ConfigError, match=f"one call: leave out {name}"):
            model.sample(4, generator=seeded(), **options)  # type: ignore[arg-type]
    assert (model.kind, model.steps, model.shape, model.evaluations()) == (
        "generator",
        None,
        None,
        1,
    )


def test_a_grid_is_a_rule_or_nodes() -> None:
    """Given as a rule with a number, or node by node, the same grid gives the same samples."""
    path = EDMSchedule(3.0, 0.1)
    rule = KarrasGrid(path, 0.2)
    score = ExactScoreField(GAUSSIAN)
    model = ParticleModel(score, GaussianPrior((2,), 3.0), steps=4, schedule=path)
    by_rule = Sampling(Nodes(7, rule))
    by_nodes = Sampling(Nodes(times=tuple(rule.nodes(7).tolist())))
    one, other, own = (
        model.sample(5, generator=seeded(), sampling=each) for each in (by_rule, by_nodes, None)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.allclose(one, own, atol=1e-3)
    assert (by_rule.protocol["steps"], model.evaluations(sampling=by_nodes)) == (7, 7)
    torch.testing.assert_close(
        model.sample(5, generator=seeded(), steps=7),
        model.sample(5, generator=seeded(), sampling=Sampling(Nodes(7))),
        rtol=0,
        atol=0,
    )
    levels = [2.0, 0.5, 0.2]
    times = nodes_at(model, [3.0, *levels, 0.1]).times
    assert times is not None
    assert_close(path.sigma(torch.tensor(times[1:-1]).double()), torch.tensor(levels).double())
    assert (times, times[0], times[-1]) == (nodes_at(model, levels).times, 0, path.horizon)
    with pytest.raises(ConfigError, match="beyond the horizon"):
        model.sample(5, generator=seeded(), grid=Nodes(times=(0.0, 99.0)))
    for times in ((0.0,), (1.0, 2.0), (0.0, 2.0, 1.0), (0.0, math.nan)):
        with pytest.raises(ConfigError, match="increase from 0|finite"):
            Nodes(times=times)
    with pytest.raises(ConfigError, match="either given or placed"):
        Nodes(3, times=(0.0, 1.0))
    with pytest.raises(TypeError, match="in the record"):
        model.sample(5, generator=seeded(), sampling=by_rule, stop=3)


# --- one question, every carrier ---


def carriers(base: type[Carrier] = Carrier) -> list[type[Carrier]]:
    below = [each for each in base.__subclasses__() if each.__module__.startswith("partikel.")]
    return below + [each for direct in below for each in carriers(direct)]


@pytest.mark.parametrize("question", ["sample", "particles", "move", "start", "evaluations"])
def test_every_carrier_is_asked_alike(question: str) -> None:
    found = carriers()
    assert {GeneratorModel, ParticleModel, StagedParticleModel} <= set(found)
    asked = inspect.signature(getattr(Carrier, question))
    assert all(inspect.signature(getattr(each, question)) == asked for each in found)


def test_free_particles_are_asked_for_by_what_they_do(generator_network: Affine) -> None:
    free = ParticleModel(still(), PRIOR, steps=3, solver=Heun())
    assert free_particles(free, "") is free
    assert (free.kind, free.steps, free.shape) == ("particles", 3, (2,))
    assert (free.evaluations(), free.evaluations(steps=5, stop=2, solver=Euler())) == (6, 2)
    carried = GeneratorModel(still(), generator_network, GaussianPrior((3,)))
    with pytest.raises(ConfigError, match="take another model"):
        free_particles(carried, "take another model")


# --- one field, two carriers ---


@pytest.mark.parametrize("kind", ["critic", "score difference"])
def test_the_same_field_object_goes_into_both_carriers(
    kind: str, generator_network: Affine
) -> None:
    """Its weights are one set: a change is felt by the Discriminator Flow and by the GAN."""
    field: Field
    if kind == "critic":
        network: nn.Module = Quadratic(2)
        field = DiscriminatorField(network, conditions=("t",))
    else:
        network = Affine(2)
        own = ScoreField(EDMDenoiser(network), KarrasLaw(), of="particles")
        field = Perturbed(ExactScoreField(MIXTURE) - own, KarrasLaw())
    free = ParticleModel(field, PRIOR, steps=1, eta=0.1)
    carried = GeneratorModel(field, generator_network, GaussianPrior((3,)))
    models: tuple[Carrier, ...] = (free, carried)
    assert all(model.field is field for model in models)

    def answers() -> tuple[Tensor, Tensor]:
        x = free.sample(4, generator=seeded(), start=randn(4, 2))
        value = carried.losses()[-1].compute(TrainingBatch(None, None, 4, Streams(0)))
        return x, value.loss.detach()

    before = answers()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    for old, new in zip(before, answers(), strict=True):
        assert (old - new).abs().min() > 1e-8
    trained = [model.losses()[0].module for model in models]
    assert trained[0] is trained[1]


def test_the_field_moves_both_carriers_alike(generator_network: Affine) -> None:
    """At the same points, the surrogate's gradient is minus the free particles' velocity."""
    critic = DiscriminatorField(Quadratic(2), conditions=("t",))
    carried = GeneratorModel(critic, generator_network, GaussianPrior((3,)), horizon=0.0)
    free = ParticleModel(critic, PRIOR, steps=1)
    x = carried.sample(5, generator=Streams(2).latent)
    value = carried.losses()[-1].compute(TrainingBatch(None, None, 5, Streams(2)))
    velocity = free.sample(5, generator=seeded(), start=x) - x
    assert_close(value.loss.detach(), -(x * velocity).sum(1))
    (in_bias,) = torch.autograd.grad(value.loss.sum(), generator_network.bias)
    assert_close(in_bias, -velocity.sum(0))


# --- errors ---


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: ParticleModel(still(), PRIOR, steps=0), "step"),
        (lambda: ParticleModel(still(), PRIOR, steps=2, temperature=-0.1), "temperature"),
        (
            lambda: ParticleModel(
                still(), PRIOR, steps=2, temperature=0.1, diffusion=torch.ones_like
            ),
            "temperature",
        ),
        (lambda: ParticleModel(still(), PRIOR, steps=2, times_per_path=3), "times_per_path"),
        (lambda: ParticleModel(still(), PRIOR, steps=2, times_per_path=0), "times_per_path"),
        (
            lambda: ParticleModel(still(), PRIOR, steps=2, times_per_path=2).particles(
                3, Streams(0)
            ),
            "times_per_path",
        ),
        (
            lambda: StagedParticleModel(
                still(), PRIOR, steps=2, pool=2, stage_draws=1, solver=DPMSolver2M()
            ),
            "multistep",
        ),
        (
            lambda: PooledParticleModel(still(), PRIOR, steps=2, pool=2, solver=Heun()),
            "Euler",
        ),
        (
            lambda: PooledParticleModel(still(), PRIOR, steps=2, pool=2, times_per_path=2),
            "times_per_path",
        ),
        (
            lambda: PooledParticleModel(still(), PRIOR, steps=2, pool=2).particles(3, Streams(0)),
            "a pool of 2",
        ),
        (
            lambda: PooledParticleModel(DriftField(0.5), PRIOR, steps=2, pool=2),
            "cloud",
        ),
        (
            lambda: ParticleModel(still(), PRIOR, steps=2).sample(1, generator=seeded(), stop=3),
            "stop",
        ),
        (
            lambda: ParticleModel(still(), PRIOR, steps=2, temperature=0.1, solver=Euler()).sample(
                1, generator=seeded()
            ),
            "EulerMaruyama",
        ),
        (
            lambda: ParticleModel(still(), PRIOR, steps=2, solver=Heun(churn=1.0)).sample(
                1, generator=seeded()
            ),
            "schedule",
        ),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build()


def test_a_given_diffusion_is_kept_in_all_steps_by_its_own_solver() -> None:
    """Langevin: dx = s_p dt + √2 dW keeps the law it starts from."""
    model = ParticleModel(
        ExactScoreField(GAUSSIAN),
        PRIOR,
        steps=100,
        diffusion=lambda t: torch.full_like(t, 2**0.5),
        solver=EulerMaruyama(),
    )
    x = GAUSSIAN.sample(10_000, generator=seeded(), dtype=torch.float64)
    end = model.sample(len(x), generator=seeded(1), start=x)
    assert_mean(end, GAUSSIAN.mean)
    assert_close(torch.cov(end.T), GAUSSIAN.covariance, atol=0.05, rtol=0)


# --- random streams ---


def draws(streams: Streams) -> dict[str, Tensor]:
    names = ("data", "latent", "noise", "time")
    numbers = {name: torch.rand(4, generator=getattr(streams, name)) for name in names}
    with streams.dropout():
        return {**numbers, "dropout": torch.rand(4)}


def test_streams_differ_by_name_seed_and_rank_and_do_not_shift_each_other() -> None:
    one = draws(Streams(0))
    rows = torch.stack([*one.values(), *draws(Streams(1)).values(), *draws(Streams(0, 1)).values()])
    assert len(rows.unique(dim=0)) == 14  # all ranks see one order of the data, and nothing else
    streams = Streams(0)
    torch.rand(100, generator=streams.data)
    after_data = draws(streams)
    assert not torch.equal(after_data.pop("data"), one["data"])
    assert all(torch.equal(value, one[name]) for name, value in after_data.items())


def test_streams_continue_where_they_were_saved() -> None:
    streams, other = Streams(0), Streams(7)
    draws(streams)
    other.load_state_dict(streams.state_dict())
    expected = draws(streams)
    assert all(torch.equal(value, expected[name]) for name, value in draws(other).items())


def test_the_dropout_stream_borrows_the_global_generator() -> None:
    torch.manual_seed(5)
    expected, whole = torch.rand(6), Streams(0)
    with whole.dropout():
        sequence = torch.rand(4)
    torch.manual_seed(5)
    streams, seen, outside = Streams(0), [], []
    for _ in range(2):
        outside.append(torch.rand(3))
        with streams.dropout():
            seen.append(torch.rand(2))
    assert torch.equal(torch.cat(outside), expected)
    assert torch.equal(torch.cat(seen), sequence)
