"""Flow maps: exact maps of Gaussians and mixtures, stationarity of every loss, jumps (framework §11)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import GAUSSIAN, MIXTURE, LinearField, assert_mean, randn, seeded, slope, tensor
from partikel.data import Batch, SyntheticDataset
from partikel.denoising import VelocityDenoiser
from partikel.errors import ConfigError
from partikel.fields import (
    At,
    DiscriminatorField,
    ExactScoreField,
    Field,
    MMDField,
    TrainingBatch,
    VelocityField,
    WhiteNoise,
)
from partikel.kernels import RBFKernel
from partikel.models import (
    Consistency,
    Endpoints,
    FlowMapModel,
    GeneratorModel,
    ImprovedMeanFlow,
    Lagrangian,
    MapLoss,
    MeanFlow,
    ParticleModel,
    Semigroup,
    own_flow,
)
from partikel.models.map_losses import Points
from partikel.networks import NETWORKS, NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, LinearSchedule
from partikel.solvers import RK4, Euler, Heun
from partikel.streams import Streams
from partikel.training import AdamSettings, Phase, Trainer, fit

PATH = LinearSchedule()
TIMED = NetworkSettings("mlp", width=16, depth=1, activation="silu", fourier_scale=1.0)


class ExactMap(nn.Module):
    """U(x, s, t) of the linear path to N(m, C): X = A(t) A(s)^-1 (x - s m) + t m, A² = t² C + (1-t)² I.

    Weights at 0 move it: U + shift + (t - s + s) turn x.
    """

    def __init__(self, by: float = 0.0) -> None:
        super().__init__()
        self.values, self.axes = torch.linalg.eigh(GAUSSIAN.covariance)
        self.mean = GAUSSIAN.mean
        self.shift = nn.Parameter(torch.full((2,), by, dtype=torch.float64))
        self.turn = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        s, length = c[:, :1].expand(len(x), 1), c[:, 1:2].expand(len(x), 1)
        t, y = s + length, (x - s * self.mean) @ self.axes

        def root(t: Tensor) -> Tensor:
            return (t**2 * self.values + (1 - t) ** 2).sqrt()

        rate = (s * self.values - (1 - s)) / root(s) ** 2  # of the diagonal
        small = length.abs() < 1e-9
        ratio = (root(t) / root(s) - 1) / torch.where(small, torch.ones_like(length), length)
        exact = (torch.where(small, rate, ratio) * y) @ self.axes.T + self.mean
        return exact + self.shift + (1 + length) * (x @ self.turn)


def from_data(loss: MapLoss, by: float = 0.0) -> FlowMapModel:
    network = ExactMap(by)
    return FlowMapModel(own_flow(network, GaussianPrior((2,)), PATH), network, loss).double()


class Velocity(nn.Module):
    """V of the linear path, the diagonal of :class:`ExactMap`."""

    def __init__(self) -> None:
        super().__init__()
        self.map = ExactMap()

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.map(x, torch.cat([c, torch.zeros_like(c)], 1))


def teacher() -> ParticleModel:
    field = VelocityField(VelocityDenoiser(Velocity(), PATH)).freeze()
    return ParticleModel(field, GaussianPrior((2,)), steps=20, schedule=PATH).double()


def distilled(loss: MapLoss, by: float = 0.0) -> FlowMapModel:
    return FlowMapModel(teacher(), ExactMap(by), loss)


def points(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    s, t = torch.rand(2, n, generator=seeded(3), dtype=torch.float64).sort(0).values
    return randn(n, 2), s, t


# --- characterisations


def test_the_exact_map_is_where_the_flow_goes() -> None:
    model, (x, _, _) = distilled(Lagrangian()), points()
    start = model.flow.sample(6, generator=seeded(), start=x, solver=RK4(), steps=200)
    assert_close(model.sample(6, generator=seeded(), start=x), start, rtol=1e-6, atol=1e-6)
    for nodes in (2, 5):
        jumped = model.sample(6, generator=seeded(), start=x, steps=nodes)
        assert_close(jumped, model.sample(6, generator=seeded(), start=x))
        assert model.evaluations(steps=nodes) == nodes


@pytest.mark.parametrize(
    "loss", [MeanFlow(), ImprovedMeanFlow(), Lagrangian(), Semigroup(), Consistency(solver=RK4())]
)
def test_the_exact_map_satisfies_every_equation(loss: MapLoss) -> None:
    """Eulerian (MeanFlow's), Lagrangian, semigroup: U is its own target, and a moved one is not."""
    x, s, t = points()
    t = torch.ones_like(t) if isinstance(loss, Consistency) else t
    place = torch.full_like(s, 0.3)
    for by, holds in ((0.0, True), (0.3, False)):
        model = distilled(loss, by)
        velocity = teacher().velocity(x, s)
        asked = Points(x, s, t, velocity, place=place)
        missed = float((model.average(asked) - loss.target(model, asked)).norm().detach())
        assert (missed < 1e-6) is holds


def test_semigroup_alone_does_not_say_which_flow() -> None:
    """U = 0 satisfies it; the short jumps are what it is told by."""
    x, s, t = points()
    still = FlowMapModel(teacher(), ExactMap(), Semigroup())
    still.network = nn.Module()
    still.network.forward = lambda x, c, cond: torch.zeros_like(x)  # type: ignore[method-assign]
    asked = Points(x, s, t, teacher().velocity(x, s), place=torch.full_like(s, 0.5))
    assert torch.equal(Semigroup().target(still, asked), torch.zeros_like(x))
    short = Semigroup(step=1.0, solver=RK4()).target(still, asked)
    assert float(short.norm()) > 0.1


# --- learning


def batch(n: int, seed: int) -> TrainingBatch:
    x = GAUSSIAN.sample(n, generator=seeded(seed), dtype=torch.float64)
    return TrainingBatch(Batch(x, None), None, n, Streams(seed))


def gradients(model: FlowMapModel, draws: int = 40, n: int = 300) -> Tensor:
    (loss,) = model.losses()
    network: Any = model.network
    found = []
    for seed in range(draws):
        value = loss.compute(batch(n, seed)).loss.mean()
        parts = torch.autograd.grad(value, [network.shift, network.turn])
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


FROM_DATA = [MeanFlow(), ImprovedMeanFlow(), Lagrangian(), Semigroup()]


@pytest.mark.parametrize("loss", FROM_DATA, ids=lambda loss: type(loss).__name__)
def test_the_exact_map_is_stationary_from_data(loss: MapLoss) -> None:
    """With conditional velocities the gradient is 0 in the mean, at p = 0; a moved map's is not."""
    assert_mean(gradients(from_data(loss)), 0.0)
    moved = gradients(from_data(loss, by=0.2))
    assert float((moved.mean(0).abs() * 40**0.5 / moved.std(0)).max()) > 8


@pytest.mark.parametrize("loss", FROM_DATA, ids=lambda loss: type(loss).__name__)
def test_the_exact_map_is_stationary_from_a_teacher(loss: MapLoss) -> None:
    assert float(gradients(distilled(loss), 2).abs().max()) < 1e-9
    assert float(gradients(distilled(loss, by=0.2), 2).abs().max()) > 1e-3


def test_the_target_of_mean_flow_is_unbiased() -> None:
    """Given x, the mean over pairs of the target is that with the velocity itself."""
    model, loss, n = from_data(MeanFlow()), MeanFlow(), 4000
    x, s, t = (each[:1].expand(n, *each.shape[1:]).clone() for each in points())
    velocity = teacher().velocity(x, s)
    exact = loss.target(model, Points(x, s, t, velocity))
    noisy = velocity + randn(n, 2, seed=4) @ tensor([[1.0, 0.4], [0.0, 2.0]])
    assert_mean(loss.target(model, Points(x, s, t, noisy)) - exact, 0.0)


def test_a_weight_turns_the_mean_into_something_else() -> None:
    """v_c = ±1 with odds 7:3: p = 0 learns 0.4, p = 1 nearly 1 (framework §11)."""
    v = torch.where(torch.arange(1000) < 700, 1.0, -1.0).double()
    ends = {}
    for power in (0.0, 1.0):
        u = torch.full((1,), 0.4, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([u], lr=0.02)
        for _ in range(800):
            optimiser.zero_grad()
            MeanFlow(power=power).weighted((u - v)[:, None]).mean().backward()
            optimiser.step()
        ends[power] = float(u.detach())
    assert ends[0.0] == pytest.approx(0.4, abs=1e-3)
    assert ends[1.0] > 0.98


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
def test_consistency_vanishes_at_the_order_of_the_solver(solver: Any, order: int) -> None:
    """A step of length h is off by h^(order + 1), and so is the gradient at the exact map."""
    counts = tensor([8.0, 16.0, 32.0])
    sizes = [
        gradients(distilled(Consistency(intervals=int(n), solver=solver)), 3).mean(0).norm()
        for n in counts
    ]
    assert slope(1 / counts, torch.stack(sizes)) == pytest.approx(order + 1, abs=0.4)


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
def test_short_jumps_vanish_at_the_order_of_the_solver(solver: Any, order: int) -> None:
    lengths = tensor([0.05, 0.1, 0.2])
    sizes = [
        gradients(distilled(Semigroup(step=h, solver=solver, diagonal=1.0)), 3).mean(0).norm()
        for h in lengths.tolist()
    ]
    assert slope(lengths, torch.stack(sizes)) == pytest.approx(order, abs=0.4)


def test_consistency_from_data_is_right_as_steps_shrink() -> None:
    counts = tensor([4.0, 8.0, 16.0])
    x = GAUSSIAN.sample(6000, generator=seeded(), dtype=torch.float64)
    sizes = []
    for n in counts.tolist():
        model = from_data(Consistency(intervals=int(n)))
        sizes.append(gradients(model, 30, 2000).mean(0).norm())
    assert x.isfinite().all()
    assert slope(1 / counts, torch.stack(sizes)) > 0.8


def test_many_jumps_follow_the_diagonal() -> None:
    """K → ∞ jumps of any network converge to the flow of its own diagonal, at order 1."""
    network = build_network(TIMED, "denoiser", shape=(2,), scalars=2, generator=seeded()).double()
    model = FlowMapModel(own_flow(network, GaussianPrior((2,)), PATH), network).double()
    x = randn(30, 2)
    flow = model.flow.sample(30, generator=seeded(), start=x.clone(), solver=RK4(), steps=200)
    counts = tensor([16.0, 32.0, 64.0])
    missed = [
        (model.sample(30, generator=seeded(), start=x, steps=int(k)) - flow).norm() for k in counts
    ]
    assert slope(1 / counts, torch.stack(missed)) == pytest.approx(1, abs=0.15)


# --- a flow of N trained steps


class Nodes(LinearField):
    """A linear field that differs at every node, and is nothing between them."""

    def forward(self, x: Tensor, at: At) -> Tensor:
        assert float((at.t * 4 - (at.t * 4).round()).abs().max()) < 1e-6
        return super().forward(x, at) * (1 + expand(at.t, x))


def expand(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, 1) if t.ndim else t


def flow_of_steps() -> ParticleModel:
    field = Nodes(tensor([[-1.0, 0.4], [0.2, -0.6]]), tensor([2.0, -1.0])).freeze()
    prior = GaussianPrior((2,))
    return ParticleModel(field, prior, steps=4, eta=0.8, times_per_path=4).double()


def small_network() -> nn.Module:
    settings = NetworkSettings("mlp", width=64, depth=2, activation="silu", fourier_scale=1.0)
    return build_network(settings, "denoiser", shape=(2,), scalars=2, generator=seeded()).double()


@pytest.mark.parametrize("loss", [None, Endpoints(size=2000)])
def test_a_flow_of_trained_steps_is_learned(loss: MapLoss | None) -> None:
    """At its nodes, or where it ends: its N steps are what the map learns."""
    flow = flow_of_steps()
    model = FlowMapModel(flow, small_network(), loss)
    phases = [Phase("map", AdamSettings(lr=3e-3, decay="cosine"), 128)]
    fit(model, law(), phases, iterations=700)
    x = randn(200, 2)
    steps = flow.sample(200, generator=seeded(), start=x)
    start = float((x - steps).square().mean().sqrt())
    missed = (model.sample(200, generator=seeded(), start=x) - steps).square().mean().sqrt()
    assert float(missed) < 0.08 * start


def test_a_flow_of_trained_steps_is_known_at_its_nodes() -> None:
    flow, network = flow_of_steps(), small_network()
    model = FlowMapModel(flow, network)
    assert isinstance(model.loss, Semigroup)
    assert model.simulated
    assert model.evaluations(steps=3) == 3
    with pytest.raises(ConfigError, match="nodes of its flow"):
        model.sample(2, generator=seeded(), grid=times(0.0, 0.4, 1.0))
    model.sample(2, generator=seeded(), grid=times(0.0, 0.25, 1.0))
    with pytest.raises(ConfigError, match="not known between"):
        FlowMapModel(flow, network, MeanFlow())


def test_ends_are_one_call() -> None:
    """Pairs say nothing of what lies between, nor of what other weights of the labels would do."""
    model = FlowMapModel(flow_of_steps(), small_network(), Endpoints(size=10))
    assert model.evaluations() == 1
    with pytest.raises(ConfigError, match="in one call"):
        model.sample(2, generator=seeded(), steps=2)
    with pytest.raises(ConfigError, match="in one call"):  # before it is trained
        FlowMapModel(flow_of_steps(), small_network(), Endpoints(size=10), steps=2)
    start = randn(2, 2)
    assert torch.equal(model.sample(2, generator=seeded(), start=start, stop=0), start)
    with pytest.raises(ConfigError, match="no flow to simulate"):
        from_data(Endpoints())
    with pytest.raises(ConfigError, match="leave out simulated"):
        FlowMapModel(flow_of_steps(), small_network(), Endpoints(simulated=True))
    with pytest.raises(ConfigError, match="as they are"):
        FlowMapModel(flow_of_steps(), small_network(), Endpoints(), guidance=2.0)
    states = list(model.stream(randn(5, 2), generator=seeded()))
    ways = torch.stack([(state.x - states[0].x) for state in states[1:]])
    shares = tensor([state.t for state in states[1:]])
    assert ways.allclose(shares.view(-1, 1, 1) * ways[-1])  # straight, as nothing else is known


def test_the_exact_map_has_no_loss_on_the_ends_of_its_flow() -> None:
    """But for the flow's own steps: their error falls with their square."""

    def loss(steps: int) -> float:
        flow = teacher()
        flow.steps, flow.solver = steps, Heun()
        model = FlowMapModel(flow, ExactMap(), Endpoints(size=500))
        return float(model.losses()[-1].compute(batch(500, 0)).loss.detach().mean())

    counts = tensor([8.0, 16.0, 32.0])
    errors = tensor([loss(int(n)) for n in counts])  # squares
    assert slope(1 / counts, errors) == pytest.approx(4, abs=0.5)
    model = FlowMapModel(teacher(), ExactMap(0.1), Endpoints(size=500))
    assert float(model.losses()[-1].compute(batch(500, 0)).loss.detach().mean()) > 1e-3


def times(*values: float) -> Any:
    from partikel.schedules import Nodes as Grid

    return Grid(times=values)


def law() -> SyntheticDataset:
    def sampler(n: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return MIXTURE.sample_labelled(n, generator=generator, dtype=dtype)

    return SyntheticDataset("mixture", sampler, shape=(2,), sigma_data=1.0, classes=3)


# --- training


def labelled(guidance: Any = 1.0, loss: MapLoss | None = None, **options: Any) -> FlowMapModel:
    scalars = 2 + isinstance(guidance, tuple)
    network = build_network(
        TIMED, "denoiser", shape=(2,), scalars=scalars, classes=3, generator=seeded()
    )
    shares = torch.full((3,), 1 / 3)
    flow = own_flow(network, GaussianPrior((2,)), PATH, scalars=scalars, label_weights=shares)
    return FlowMapModel(flow, network, loss, guidance=guidance, **options)


@pytest.mark.parametrize("guidance", [1.0, 2.0, (1.0, 4.0)], ids=str)
@pytest.mark.parametrize("loss", [MeanFlow(power=1.0), Lagrangian(), Semigroup()], ids=type)
def test_labels_and_guidance(guidance: Any, loss: MapLoss) -> None:
    model = labelled(guidance, loss, teacher=0.9)
    before = [p.detach().clone() for p in model.network.parameters()]
    trainer = fit(model, law(), [Phase("map", batch=32)], iterations=3, ema=0.9)
    assert all(
        not torch.equal(a, b) for a, b in zip(before, model.network.parameters(), strict=True)
    )
    assert trainer.average is not None
    drawn = model.sample(6, generator=seeded(), cond=torch.zeros(6, dtype=torch.int64))
    assert drawn.shape == (6, 2)
    if isinstance(guidance, tuple):
        more = model.sample(6, generator=seeded(), cond=torch.zeros(6).long(), guidance=3.0)
        assert not torch.equal(more, drawn)
    with pytest.raises(ConfigError, match="guidance"):
        model.sample(6, generator=seeded(), guidance=7.0)


def test_guidance_learns_the_guided_velocity() -> None:
    """v_c + (1 - 1/w)(v_w - v_∅) has the mean v_∅ + w (v - v_∅) where U(x, s, s | c) = v_w already."""
    model, w = labelled(2.0), 2.0
    x, s = randn(5, 2).float(), torch.rand(5, generator=seeded())
    cond = torch.tensor([0, 1, 2, 3, 3])  # the null label, 3, stays unguided
    guided = model.velocity(Points(x, s, s, None, cond))
    without = model.velocity(Points(x, s, s))
    plain = without + (guided - without) / w
    plain[3:] = guided[3:]
    found = model._guided(Points(x, s, s, None, cond), plain)
    assert_close(found, guided)


def test_a_teacher_average_is_the_carriers_and_resumes(tmp_path: Any) -> None:
    """Bit for bit, its average of weights too."""

    def trained(folder: Any, iterations: int) -> FlowMapModel:
        model = labelled(loss=Semigroup(), teacher=0.8)
        fit(model, law(), [Phase("map", batch=16)], iterations=iterations, folder=folder)
        return model

    whole = trained(tmp_path / "whole", 4)
    trainer = Trainer(
        labelled(loss=Semigroup(), teacher=0.8), law(), [Phase("map", batch=16)], iterations=4
    )
    from partikel.training import load_checkpoint, save_checkpoint

    run = trainer.run()
    for _ in range(2):
        next(run)
    kept = save_checkpoint(trainer, tmp_path / "part")
    other = Trainer(
        labelled(loss=Semigroup(), teacher=0.8), law(), [Phase("map", batch=16)], iterations=4
    )
    load_checkpoint(other, kept)
    list(other.run())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    assert any(name.startswith("teacher.") for name in whole.state_dict())
    ours = dict(whole.network.named_parameters())["first.weight"]
    assert whole.teacher is not None
    theirs = dict(whole.teacher.named_parameters())["first.weight"]
    assert 0 < float((ours - theirs).abs().max()) < 1


def test_points_of_the_flow_itself() -> None:
    """Trained on simulated particles: no data are asked for, and the exact map stays where it is."""
    model = distilled(Lagrangian(simulated=True))
    (loss,) = model.losses()
    assert loss.needs == {"particles"}
    particles = model.particles(40, Streams(0))
    value = loss.compute(TrainingBatch(None, particles, 40, Streams(0))).loss
    assert float(value.detach().max()) < 1e-12


# --- forward derivatives of networks

ROLES = [(kind, role) for kind, roles in NETWORKS.items() for role in roles]


@pytest.mark.parametrize("norm", [None, "none", "group", "spectral", "batch"])
@pytest.mark.parametrize(("kind", "role"), ROLES)
def test_networks_have_forward_derivatives_in_training(
    kind: str, role: Any, norm: str | None
) -> None:
    """In (x, s, t), then backward through a plain forward; or a sentence."""
    try:
        extra: dict[str, Any] = {"attention_resolutions": (8,)} if kind == "unet" else {}
        extra |= {"edm2": {"channels": 16, "blocks": 1}, "r3gan": {"width": 32}}.get(kind, {})
        network = build_network(
            NetworkSettings(kind, norm=norm, **extra),
            role,
            shape=(1, 16, 16),
            latent=4,
            scalars=2,
            generator=seeded(),
        ).train()
    except ConfigError:
        pytest.skip("no such network")
    network.double()
    for number, weight in enumerate(network.parameters()):  # some begin with an output of 0
        weight.data += 0.05 * randn(1, *weight.shape, seed=number)[0]
    x = randn(2, 4) if role == "generator" else randn(2, 1, 16, 16)
    still = LinearField(torch.eye(2), torch.zeros(2))
    flow = ParticleModel(still, GaussianPrior(x.shape[1:]), steps=2)
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        with pytest.raises(ConfigError, match="cannot be differentiated forward"):
            FlowMapModel(flow, network)
        return
    model = FlowMapModel(flow, network).train()
    s, t = tensor([0.1, 0.2]), tensor([0.6, 0.7])
    direction, h = randn(*x.shape, seed=1), 1e-7
    asked = Points(x, s, t)
    value, found = model.derivative(asked, direction, 1.0, 0.5)
    (model._asked(network, asked) - found).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    network.eval()  # power iterations stand still
    value, found = model.derivative(asked, direction, 1.0, 0.5)
    after, before = (model.average(Points(x + k * direction, s + k, t + 0.5 * k)) for k in (h, -h))
    missed = found - (after - before) / (2 * h)
    assert float(missed.norm()) < 0.05 * float(found.norm())  # kinks of leaky ReLU are some of it
    assert found.shape == value.shape


def test_a_network_without_a_forward_derivative_is_refused() -> None:
    class Kinked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            return g

    class Odd(nn.Module):
        def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
            return Kinked.apply(x)  # type: ignore[return-value]

    x, s, t = points()
    model = FlowMapModel(teacher(), Odd(), MeanFlow())
    with pytest.raises(ConfigError, match="cannot be differentiated forward"):
        model.derivative(Points(x, s, t), x, 1.0, 0.0)


# --- what has no map


def test_flows_without_a_velocity_of_their_own_are_refused() -> None:
    network, prior = ExactMap(), GaussianPrior((2,))
    critic = DiscriminatorField(
        build_network(TIMED, "logit", shape=(2,), generator=seeded()), "relativistic"
    )
    cases: list[tuple[Any, str]] = [
        (ParticleModel(MMDField(RBFKernel(1.0)), prior, steps=2), "velocity of"),
        (ParticleModel(critic, prior, steps=2), "velocity of"),
        (
            ParticleModel(
                LinearField(torch.eye(2), torch.zeros(2)) + WhiteNoise(1.0), prior, steps=2
            ),
            "velocity of",
        ),
        (
            ParticleModel(
                LinearField(torch.eye(2), torch.zeros(2)), prior, steps=2, temperature=0.1
            ),
            "no map",
        ),
        (
            GeneratorModel(LinearField(torch.eye(2), torch.zeros(2)), nn.Linear(2, 2), prior),
            "free particles|none",
        ),
    ]
    for flow, words in cases:
        with pytest.raises(ConfigError, match=words):
            FlowMapModel(flow, network)


def test_a_map_is_shown_on_its_way() -> None:
    """By one jump to each time; a consistency model shows straight ways to its ends."""
    x = randn(3, 2)
    for loss in (Lagrangian(), Consistency()):
        model = distilled(loss)
        states = list(model.stream(x, generator=seeded(), steps=None))
        assert len(states) == 25
        assert torch.equal(states[0].x, x)
        assert_close(states[-1].x, model.sample(3, generator=seeded(), start=x).detach())
        middle = model.jump(x, tensor(0.0), tensor(0.5)).detach()
        if loss.to_end:
            middle = (x + states[-1].x) / 2
        assert_close(states[12].x.detach(), middle)
    two = model.sample(3, generator=seeded(), start=x, steps=2)
    assert not torch.equal(two, states[-1].x)  # noised in between


def test_a_map_is_compared_with_the_paths_of_its_flow() -> None:
    """At the same times; an exact map is where its flow is, up to the error of Heun's steps."""
    x = randn(3, 2)
    for model in (distilled(Lagrangian()), distilled(Consistency()), from_data(MeanFlow())):
        for steps in (None, 6):
            shown = list(model.stream(x, generator=seeded(), steps=steps))
            paths = list(model.paths(x, generator=seeded(), steps=steps))
            assert [state.t for state in paths] == [state.t for state in shown]
        assert_close(paths[-1].x, shown[-1].x.detach(), rtol=0, atol=0.02)
    assert not list(from_data(Consistency()).paths(x, generator=seeded()))  # knows no velocity
    field = Nodes(tensor([[-1.0, 0.4], [0.2, -0.6]]), tensor([2.0, -1.0])).freeze()
    nodes = FlowMapModel(ParticleModel(field, GaussianPrior((2,)), steps=4), ExactMap()).double()
    own = list(nodes.flow.stream(x, generator=seeded()))
    for state, there in zip(nodes.paths(x, generator=seeded(), steps=2), own[::2], strict=True):
        assert torch.equal(state.x, there.x)
    assert nodes.flow.paths(x, generator=seeded()) is None


def test_options_of_other_carriers_are_refused() -> None:
    model = distilled(Lagrangian())
    with pytest.raises(ConfigError, match="solver"):
        model.sample(2, generator=seeded(), solver=Heun())
    with pytest.raises(ConfigError, match="forward in time"):
        model.jump(randn(2, 2), tensor(0.5), tensor(0.4))
    with pytest.raises(ConfigError, match="simulate"):
        from_data(MeanFlow(simulated=True))
    assert isinstance(model.field, Field)


def test_an_edm_is_distilled_along_the_linear_path() -> None:
    """The map of an EDM's exact flow, in a time where its velocity is O(1)."""
    edm = EDMSchedule(40.0)
    flow = ParticleModel(
        edm.half_rate * ExactScoreField(GAUSSIAN),
        GaussianPrior((2,), 40.0),
        steps=18,
        schedule=edm,
        score=ExactScoreField(GAUSSIAN),
    ).along(PATH)
    exact = FlowMapModel(flow.double(), ExactMap(), Lagrangian())
    x, s, t = points()
    s, t = 0.1 + 0.8 * s, 0.1 + 0.8 * t
    velocity = flow.velocity(x, s)
    missed = exact.average(Points(x, s, t, velocity)) - Lagrangian().target(
        exact, Points(x, s, t, velocity)
    )
    assert float(missed.norm()) < 1e-6
