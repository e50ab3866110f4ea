"""DiffFlow's theory, run: every claim as a number beside what the paper says it is (framework §6-7).

On Gaussians laws are closed-form moments. Elsewhere particles are simulated with exact fields, and what
they end in is compared with the law they should end in, by the energy distance and its own
fluctuations between two draws of that law. Two cases have exact fields without being Gaussian: a matched
flow towards a mixture, where the optimal discriminator is constant, and a flow from a mixture
towards a Gaussian, where it is not (:func:`propagated`). :class:`Trial` is any of these in any dimension.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from partikel.app.show import plots
from partikel.data import Batch
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError
from partikel.fields import At, DiscriminatorField, ExactScoreField, Field, TrainingBatch
from partikel.fields.particles import Particles
from partikel.fields.terms import AtScale, Potential
from partikel.files import write_json
from partikel.metrics import energy_distance
from partikel.metrics.chance import energy_quantile
from partikel.models import GeneratorModel, ParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.schedules import (
    ConstantSchedule,
    EDMSchedule,
    GeometricGrid,
    KarrasGrid,
    Schedule,
    SubVPSchedule,
    TimeGrid,
    UniformGrid,
    VESchedule,
    VPSchedule,
)
from partikel.solvers import Heun, Solver, State, StochasticHeun
from partikel.streams import Streams, derive_seed, seeded
from partikel.studies.gaussian_laws import (
    Convergence,
    convergence,
    gaussian_marginals,
    log_sobolev_constant,
    path_marginals,
    stationary_law,
)
from partikel.targets import Gaussian, GaussianMixture, gaussian_kl

PROPOSITION = "DiffFlow Proposition 2"
"""Source of most of the checks."""
CHANCE = 0.01
"""Probability that any of the simulated laws is found to differ when all of them are right."""
FEWEST = 500
"""Particles below which the fluctuations of an energy distance are not those of the limit law."""
STEPS = 60
"""Steps of a simulation, by a method of weak order 2 (120 evaluations)."""

Draw: TypeAlias = Callable[[int, torch.Generator], Tensor]
"""(n, generator) -> (n, D) draws of a law."""

Part: TypeAlias = Literal[
    "forms", "gan", "invariance", "matched", "simulated", "lambda", "convergence"
]
PARTS: tuple[Part, ...] = get_args(Part)
"""Parts of the theory, in the order of the paper."""

# Asymmetric and anisotropic: symmetry would hide errors of sign and of transposition.
GAUSSIAN = Gaussian([1.0, -0.5], [[0.8, 0.3], [0.3, 0.4]])
OTHER = Gaussian([-0.6, 1.1], [[0.5, -0.2], [-0.2, 1.1]])
MIXTURE = GaussianMixture(
    [[2.0, 1.0], [-1.0, 0.5], [0.3, -2.0]],
    [[[0.5, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 0.6]], [[0.4, -0.1], [-0.1, 0.2]]],
    weights=[0.5, 0.3, 0.2],
)


@dataclass(frozen=True)
class Check:
    """A claim, and what was found.

    Attributes:
        claim: in words.
        source: where it is made.
        measured: the number found.
        relation: "=" where it should be ``expected``, "<=" where that is a bound.
        expected: what the claim says.
        tolerance: what it may be off by: rounding, an integrator's error, or statistical error.
        drawn: whether chance enters, as particles were simulated.
    """

    claim: str
    source: str
    measured: float
    relation: Literal["=", "<="]
    expected: float
    tolerance: float
    drawn: bool = False

    @property
    def holds(self) -> bool:
        """Whether it does: its margin is an effect like those of all claims."""
        return self.margin >= 0

    @property
    def margin(self) -> float:
        """How far it is from failing, as a share of what is allowed; negative where it fails."""
        off = self.measured - self.expected
        off = abs(off) if self.relation == "=" else off
        scale = self.tolerance
        if self.relation == "<=":
            scale = max(abs(self.expected), self.tolerance)
        return (self.tolerance - off) / scale if scale > 0 else (1.0 if off <= 0 else -1.0)


def verify(out: Path, *, samples: int = 10_000, seed: int = 0) -> list[Check]:
    """Check DiffFlow's theory; takes about half a minute.

    Args:
        out: a folder, into which ``verify.json`` and ``kl.png`` are written.
        samples: particles of each simulation.
        seed: of all random draws.

    Returns:
        The checks, in the order of the paper.

    Raises:
        ConfigError: for too few samples.
    """
    _enough(samples)
    runs = convergence_runs()
    checks = measured(runs, samples=samples, seed=seed)
    found = {
        "samples": samples,
        "seed": seed,
        "holds": all(check.holds for check in checks),
        "checks": [{**asdict(check), "holds": check.holds} for check in checks],
        "kl": {
            name: {key: getattr(run, key).tolist() for key in ("times", "kl", "bound")}
            for name, run in runs.items()
        },
    }
    write_json(out / "verify.json", found)
    plots.save_figure(kl_figure(runs, samples, seed), out / "kl.png")
    return checks


def measured(
    runs: Mapping[str, Convergence],
    *,
    samples: int = 10_000,
    seed: int = 0,
    parts: Sequence[Part] = PARTS,
    chance: float = CHANCE,
) -> list[Check]:
    """The checks of some parts of the theory.

    Args:
        runs: of :func:`convergence_runs`.
        samples: particles of each simulation.
        seed: of all random draws.
        parts: which.
        chance: probability that any simulated law is found to differ when all of them are right.

    Returns:
        The checks, in the order of the paper.

    Raises:
        ConfigError: for too few samples.
    """
    _enough(samples)
    made: dict[Part, Callable[[], Iterator[Check]]] = {
        "forms": lambda: _forms(seed),
        "gan": lambda: _gan(seed),
        "invariance": _invariance_in_closed_form,
        "matched": _matched_in_closed_form,
        "simulated": lambda: _simulated(samples, seed, chance),
        "lambda": lambda: _dependence_on_lambda(samples, seed, chance),
        "convergence": lambda: _convergence(runs),
    }
    return [check for part in PARTS if part in parts for check in made[part]()]


def _enough(samples: int) -> None:
    if samples < FEWEST:
        raise ConfigError(f"simulated laws are compared with samples >= {FEWEST}, got {samples}.")


# --- exact laws that are not Gaussian


def propagated(
    flow: DiffFlow, target: Gaussian, start: GaussianMixture, times: Tensor
) -> list[GaussianMixture]:
    """ρ_t at (N,) times, from a mixture towards a Gaussian.

    By Proposition 2 ρ_t is that of g² = 2β, where the drift does not depend on ρ_t: the equation for
    ρ_t is linear, so that components move as if alone, and remain Gaussian as the score is linear.
    """
    alone = flow.with_g2(2.0)
    moved = [
        gaussian_marginals(alone, target, Gaussian(m, C), times)
        for m, C in zip(start.means, start.covariances, strict=True)
    ]
    means, covariances = (torch.stack(moments, 1) for moments in zip(*moved, strict=True))
    return [
        GaussianMixture(m, C, weights=start.weights)
        for m, C in zip(means, covariances, strict=True)
    ]


class OwnScore(Field):
    """∇log ρ_t of laws known at the nodes of a grid.

    Args:
        laws: one for each node.
        times: (N,) the nodes.
    """

    def __init__(self, laws: Sequence[GaussianMixture], times: Tensor) -> None:
        super().__init__()
        self.laws = laws
        self.times = times

    def forward(self, x: Tensor, at: At) -> Tensor:
        """∇log ρ_t(x) at the node nearest to the time that all points share."""
        return self.laws[int((self.times - at.t).abs().argmin())].score(x)


# --- eqs. 4 and 28: the forms of the SDE


def _forms(seed: int) -> Iterator[Check]:
    x = 2 * torch.randn(256, 2, generator=seeded(seed, "verify", "forms"), dtype=torch.float64)
    score, own = ExactScoreField(MIXTURE), ExactScoreField(OTHER)
    worst = 0.0
    for flow in _FLOWS.values():
        flow = flow.with_g2(lambda t: 2.5 + torch.cos(5 * t))
        ratio = AtScale(score, flow.schedule) - own
        for place in (0.0, 0.4, 0.9):
            at = At(x.new_tensor(place * flow.schedule.horizon))
            first, second = flow.first_form(score, own)(x, at), flow.field(score, ratio)(x, at)
            worst = max(worst, _relative(second, first))
    claim = "difference between the two forms of the drift"
    yield _equal(claim, "DiffFlow eqs. 4, 28", worst, 0.0, 1e-12)


# --- eqs. 19-27: GANs

_BETAS: dict[Potential, tuple[str, str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "saturating": ("eqs. 23-25", "sigmoid(d)", torch.sigmoid, lambda D: torch.log(1 - D)),
    "non-saturating": (
        "eqs. 26-27",
        "sigmoid(-d)",
        lambda d: torch.sigmoid(-d),
        lambda D: -torch.log(D),
    ),
    "logit": (
        "§3.3.2",
        "1",
        torch.ones_like,
        lambda D: torch.log(1 - D) - torch.log(D),
    ),
}
"""Potential -> source, β in words, β(d), and the generator's loss in D = sigmoid(d)."""


def _gan(seed: int) -> Iterator[Check]:
    stream = seeded(seed, "verify", "gan")

    def network(role: Literal["logit", "generator"]) -> nn.Module:
        settings = NetworkSettings("mlp", width=32, depth=2, activation="tanh")
        return build_network(settings, role, shape=(2,), latent=3, generator=stream).double()

    critic = DiscriminatorField(network("logit"))
    real, fake = torch.randn(2, 64, 2, generator=stream, dtype=torch.float64)

    def D(x: Tensor) -> Tensor:
        return torch.sigmoid(critic.network(x, None, None))

    goodfellow = -(torch.log(D(real)) + torch.log(1 - D(fake))).mean()
    weights = [w for w in critic.network.parameters() if w.requires_grad]
    batch = TrainingBatch(
        Batch(real, None), Particles(fake, torch.zeros(64).double()), 64, Streams(seed)
    )
    (loss,) = critic.losses()
    own = torch.autograd.grad(loss.compute(batch).loss.mean(), weights, allow_unused=True)
    theirs = torch.autograd.grad(goodfellow, weights, allow_unused=True)
    claim = "difference between logistic regression and the GAN's discriminator update"
    off = _relative(_flat(own), _flat(theirs))
    yield _equal(claim, "DiffFlow eqs. 20, 22", off, 0.0, 1e-10)
    for name, (equations, words, beta, loss_of) in _BETAS.items():
        field = DiffFlow.gan(name).field(log_ratio=critic)
        point = fake.clone().requires_grad_()
        d = critic.network(point, None, None)
        (gradient,) = torch.autograd.grad(d.sum(), point)
        expected = beta(d.detach())[:, None] * gradient
        claim = f"difference between the {name} GAN's field and β∇d, β = {words}"
        off = _relative(field(fake, At(torch.zeros(64).double())), expected)
        yield _equal(claim, f"DiffFlow {equations}", off, 0.0, 1e-12)
        generator = network("generator")
        fit = _fitted(copy.deepcopy(generator), field, seed)
        update = _trained(generator, lambda x, of=loss_of: of(D(x)), seed)
        claim = f"difference between one step of the fit and the {name} GAN's generator update"
        source = f"DiffFlow {equations}, Algorithm 1"
        yield _equal(claim, source, _relative(fit, update), 0.0, 1e-9)


_ETA, _RATE = 0.3, 0.05


def _fitted(generator: nn.Module, field: Field, seed: int) -> Tensor:
    """Change of a generator's weights by one step of rate lr/η towards x + η β∇d."""
    model = GeneratorModel(field, generator, GaussianPrior((3,)), eta=_ETA)
    moved = model.move(model.particles(64, Streams(seed)), Streams(seed), None)
    (fit,) = (loss for loss in model.losses() if loss.name == "generator")
    loss = fit.compute(TrainingBatch(None, moved, 64, Streams(seed))).loss.mean()
    return _step(generator, loss, _RATE / _ETA)


def _trained(generator: nn.Module, loss: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """Change of the weights by one step of rate lr down a GAN's loss, on the same latents."""
    z = GaussianPrior((3,)).sample(64, generator=Streams(seed).latent, dtype=torch.float64)
    return _step(generator, loss(generator(z, None, None)).mean(), _RATE)


def _step(module: nn.Module, loss: Tensor, rate: float) -> Tensor:
    before = _flat([w.detach().clone() for w in module.parameters()])
    optimiser = torch.optim.SGD(module.parameters(), lr=rate)
    loss.backward()
    optimiser.step()
    return _flat([w.detach() for w in module.parameters()]) - before


# --- Proposition 2: ρ_t does not depend on g

_SHORT = VESchedule(3.0, 0.2)
_FLOWS: dict[str, DiffFlow] = {
    "Langevin": DiffFlow.langevin(0.3, 0.8),
    "annealed Langevin": DiffFlow.annealed_langevin(_SHORT, 2.0),
    "VE, λ² = 1.4β": DiffFlow.reverse(_SHORT).with_lambda2(1.4),
    "VP, λ² = 0.5β": DiffFlow.vp(0.3, 6.0).with_lambda2(0.5),
    "sub-VP, λ² = β": DiffFlow.sub_vp(0.3, 6.0),
    "continuation, λ² = -0.7β": DiffFlow.langevin(0.3, 0.8).with_lambda2(-0.7),
    "f < 0, β and λ² of t": DiffFlow(_SHORT, -0.5, torch.exp, lambda t: 2 * t.exp(), torch.cos),
}


def _invariance_in_closed_form() -> Iterator[Check]:
    for name, flow in _FLOWS.items():
        times = flow.schedule.horizon * torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)
        reference = gaussian_marginals(flow.with_g2(2.0), GAUSSIAN, OTHER, times)
        worst = 0.0
        for ratio in (1.4, 3.7, lambda t: 2.5 + torch.cos(5 * t)):
            moved = gaussian_marginals(flow.with_g2(ratio), GAUSSIAN, OTHER, times)
            worst = max(worst, *map(_relative, moved, reference))
        claim = f"change of a Gaussian's moments with g: {name}"
        yield _equal(claim, PROPOSITION, worst, 0.0, 1e-10)


def _matched_in_closed_form() -> Iterator[Check]:
    paths = {
        "VE": VESchedule(),
        "Karras": EDMSchedule(),
        "VP": VPSchedule(),
        "sub-VP": SubVPSchedule(),
    }
    for name, path in paths.items():
        times = path.horizon * torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
        expected = path_marginals(path, GAUSSIAN, times)
        start = Gaussian(expected[0][0], expected[1][0])
        worst = 0.0
        for g2, lambda2 in ((2.0, 1.0), (2.0, 2.0), (0.5, 0.5), (3.0, 1.7)):
            flow = DiffFlow.reverse(path, g2=g2, lambda2=lambda2)
            found = gaussian_marginals(flow, GAUSSIAN, start, times)
            worst = max(worst, *map(_relative, found, expected))
        claim = "distance of ρ_t's moments from p_σ(t)'s, λ² = g_s², exact start, any g and β"
        yield _equal(f"{claim}: {name}", "framework §6", worst, 0.0, 1e-9)


@dataclass(frozen=True)
class _Simulation:
    """Particles of several flows that should end in one law.

    Attributes:
        name: of the law they end in, and of the flows.
        source: of the claim.
        flows: at their places on the plane, by what these are called.
        trial: of any of them.
        log_density: of ρ_T, but for a constant.
    """

    name: str
    source: str
    flows: Mapping[str, DiffFlow]
    trial: Trial
    log_density: Callable[[Tensor], Tensor]

    def run(self, flow: DiffFlow, n: int, seed: int) -> Tensor:
        """Where n particles of a flow end."""
        return replace(self.trial, flow=flow).run(n, seed).x


def _matched(name: str, path: Schedule, grid: TimeGrid) -> _Simulation:
    """A mixture as target, from the exact law at t = 0: the optimal d is constant, ∇d = 0."""

    def log_density(x: Tensor) -> Tensor:
        t = torch.full_like(x[:, 0], path.horizon)
        return MIXTURE.log_density(path.u(t)[:, None] * x, path.sigma(t))

    flows = {
        _place(*point): DiffFlow.reverse(path, g2=point[0], lambda2=point[1])
        for point in ((2.0, 1.0), (2.0, 2.0), (1.5, 1.0), (3.0, 0.5))
    }
    start, end = (noised_by(MIXTURE, path, t) for t in (0.0, path.horizon))
    flow, exact = DiffFlow.reverse(path), ExactScoreField(MIXTURE)
    trial = Trial(name, "mixture", flow, exact, None, grid, STEPS, start, end)
    return _Simulation(f"the mixture: {name}", PROPOSITION, flows, trial, log_density)


def _unmatched(name: str, base: DiffFlow, points: Sequence[float]) -> _Simulation:
    """From a mixture towards a Gaussian: ρ_t is known, and the optimal d is not constant."""
    trial, end = known_laws(base, GAUSSIAN, MIXTURE)
    flows = {f"g² = {_times(g2)}": base.with_g2(g2) for g2 in points}
    claim = f"the law at g² = 2β: {name}"
    return _Simulation(claim, PROPOSITION, flows, trial, end.log_density)


def _to_the_mixture() -> _Simulation:
    """Theorem 1 on a mixture: Langevin dynamics, which needs the score alone."""
    level = 0.4
    path = ConstantSchedule(level, 30.0)
    flow, grid = DiffFlow(path).with_g2(2.0), UniformGrid(path.horizon)
    start, end, exact = drawn_from(OTHER), noised_by(MIXTURE, path, 0.0), ExactScoreField(MIXTURE)
    return _Simulation(
        "the mixture, from another law: Langevin, λ² = 0",
        "DiffFlow Theorem 1",
        {"g² = 2β": flow},
        Trial("Langevin", "mixture", flow, exact, None, grid, 300, start, end),
        lambda x: MIXTURE.log_density(x, torch.full_like(x[:, 0], level)),
    )


def _simulations() -> Iterator[_Simulation]:
    paths = {"VE": VESchedule(20.0), "VP": VPSchedule(), "sub-VP": SubVPSchedule()}
    for name, path in paths.items():
        yield _matched(name, path, GeometricGrid(path))
    langevin = DiffFlow.langevin(0.3, 0.8)
    yield _unmatched("Langevin, λ² = 0", langevin, (0.0, 1.0, 3.5))
    yield _unmatched("Langevin, λ² = 0.6β", langevin.at(2.0, 0.6), (0.6, 1.2, 3.5))
    yield _unmatched("continuation, λ² = -0.5β", langevin.at(2.0, -0.5), (0.0, 1.0, 3.0))
    yield _unmatched("VP, λ² = 0.5β", DiffFlow.vp(0.3, 3.0).at(2.0, 0.5), (0.5, 1.0, 3.0))
    yield _to_the_mixture()


def _simulated(samples: int, seed: int, chance: float = CHANCE) -> Iterator[Check]:
    simulations = list(_simulations())
    each = chance / (2 * sum(len(simulation.flows) for simulation in simulations))
    for simulation in simulations:
        cloud = simulation.trial.end(1000, seeded(seed, "verify", simulation.name, "null"))
        bound = energy_quantile(cloud, samples, samples, 1 - each, seed)
        for place, flow in simulation.flows.items():
            own = derive_seed(seed, simulation.name, place)
            ended = simulation.run(flow, samples, own)
            reference = simulation.trial.end(samples, seeded(own, "verify", "reference"))
            name = f"{simulation.name}, {place}"
            energy = energy_distance(ended.float(), reference.float())
            claim = f"energy distance of particles to {name}"
            yield replace(_at_most(claim, simulation.source, energy, bound), drawn=True)
            # the energy distance sees where mass is, this how wide each component is
            found, expected = map(simulation.log_density, (ended, reference))
            error = float((found.var() + expected.var()) / samples) ** 0.5
            claim = f"mean log-density of particles in {name}"
            yield _mean(claim, simulation.source, found, float(expected.mean()), error, each)


# --- points of the plane, from their exact start


@dataclass(frozen=True)
class Trial:
    """A point of the plane with exact fields, and the law that its particles should end in.

    Attributes:
        preset: what stands there.
        law: the law at T: one name for each law.
        flow: the point.
        score: s_p.
        log_ratio: ∇d, exact; None where the optimal d is constant, or has no weight.
        grid: of the solver.
        steps: of the solver.
        start: draws of ρ_0.
        end: draws of ρ_T.
        solver: of the SDE or ODE.
    """

    preset: str
    law: str
    flow: DiffFlow
    score: Field
    log_ratio: Field | None
    grid: TimeGrid
    steps: int
    start: Draw
    end: Draw
    solver: Solver = field(default_factory=StochasticHeun)

    def run(self, n: int, seed: int) -> State:
        """The end of n particles' paths."""
        start = self.start(n, seeded(seed, "verify", "start"))
        *_, end = self.stream(start, seeded(seed, "verify", "noise"))
        return end

    def stream(self, start: Tensor, generator: torch.Generator) -> Iterator[State]:
        """Particles at the nodes of the grid."""
        log_ratio = 0.0 * self.score if self.log_ratio is None else self.log_ratio
        model = ParticleModel(
            self.flow.field(self.score, log_ratio),
            self.flow.prior(start.shape[1:]),
            steps=self.steps,
            schedule=self.flow.schedule,
            grid=self.grid,
            diffusion=self.flow.diffusion,
            solver=self.solver,
            score=AtScale(self.score, self.flow.schedule) if self.flow.matched else None,
        )
        return model.stream(start, generator=generator)


def matched_trial(
    preset: str, target: GaussianMixture, path: Schedule, g2: float, lambda2: float
) -> Trial:
    """A point on the line of the forward SDE, on a mixture, with the constant d that is exact there."""
    flow = DiffFlow.reverse(path, g2=g2, lambda2=lambda2)
    grid = KarrasGrid(path, max(path.sigma_end, 0.02))
    steps, solver = (40, Heun()) if flow.deterministic else (100, StochasticHeun())
    start, end = noised_by(target, path, 0.0, torch.float32), drawn_from(target, torch.float32)
    exact = ExactScoreField(target)
    return Trial(preset, "mixture", flow, exact, None, grid, steps, start, end, solver)


def known_laws(
    flow: DiffFlow, target: Gaussian, start: GaussianMixture, steps: int = STEPS
) -> tuple[Trial, GaussianMixture]:
    """From a mixture towards a Gaussian, with ρ_t by its moments, and the law at the end.

    Args:
        flow: the point; its path is passed evenly in t.
        target: p.
        start: ρ_0.
        steps: of the solver.
    """
    grid = UniformGrid(flow.schedule.horizon)
    laws = propagated(flow, target, start, nodes := grid.nodes(steps))
    score, first, last = ExactScoreField(target), drawn_from(laws[0]), drawn_from(laws[-1])
    ratio = AtScale(score, flow.schedule) - OwnScore(laws, nodes)
    return Trial("", "", flow, score, ratio, grid, steps, first, last), laws[-1]


def drawn_from(law: GaussianMixture, dtype: torch.dtype = torch.float64) -> Draw:
    """Draws of a law."""
    return lambda n, generator: law.sample(n, generator=generator, dtype=dtype)


def noised_by(
    target: GaussianMixture, path: Schedule, t: float, dtype: torch.dtype = torch.float64
) -> Draw:
    """Draws of the path's own law at a time."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        data = target.sample(n, generator=generator, dtype=dtype)
        return path.noised(data, torch.full_like(data[:, 0], t), generator=generator)

    return draw


# --- what λ does


def _dependence_on_lambda(samples: int, seed: int, chance: float) -> Iterator[Check]:
    source = "framework §6 (stationary law)"
    level, horizon = 0.4, 60.0
    smoothed = GAUSSIAN.covariance + level**2 * torch.eye(2, dtype=torch.float64)
    for lambda2 in (-2.0, -0.5, 0.0, 0.5, 1.0, 1.6):
        flow = DiffFlow.langevin(level, horizon=horizon).at(2.4, lambda2)
        _, covariances = gaussian_marginals(flow, GAUSSIAN, OTHER, [horizon])
        factors = torch.linalg.eigvals(covariances[0] @ torch.linalg.inv(smoothed)).real
        expected = 1 - lambda2 / 2
        worst = factors[(factors - expected).abs().argmax()]
        claim = f"ρ_t settles at so many times the data's covariance: λ² = {_times(lambda2)}"
        yield _equal(claim, source, float(worst), expected, 1e-9)
    places = ((1.0, 0.8), (3.0, -1.0))
    for g2, lambda2 in places:
        base = DiffFlow.langevin(level, horizon=2.0).at(2.0, lambda2)
        trial = replace(_settled(base), flow=base.with_g2(g2))
        end = trial.run(samples, derive_seed(seed, "settled", lambda2))
        offsets = end.x - GAUSSIAN.mean
        squares = (offsets @ torch.linalg.inv(smoothed) * offsets).sum(1) / 2
        error = float(squares.std()) / samples**0.5
        claim = f"particles keep to that multiple: {_place(g2, lambda2)}"
        yield _mean(claim, source, squares, 1 - lambda2 / 2, error, chance / len(places))


def _settled(base: DiffFlow) -> Trial:
    """From the stationary law, where s_ρ is s_p/(1 - λ²/2β)."""
    settled = stationary_law(base, GAUSSIAN)
    score, draw = ExactScoreField(GAUSSIAN), drawn_from(settled)
    ratio = AtScale(score, base.schedule) - OwnScore([settled], torch.zeros(1))
    grid = UniformGrid(base.schedule.horizon)
    return Trial("", "settled", base, score, ratio, grid, STEPS, draw, draw)


# --- Lemma 1, Theorems 1 and 2

_SIGMA, _BETA, _END = 0.3, 0.7, 3.0
_STEP = 0.02
_AWAY = GaussianMixture(
    [[-1.5, -1.0], [2.5, -1.5], [0.5, 2.5]], std=[0.4, 0.6, 0.5], weights=[0.5, 0.3, 0.2]
)


def convergence_runs() -> dict[str, Convergence]:
    """KL towards a Gaussian at λ² = 0 from four starts, by name; the mixture's by quadrature."""
    flow = DiffFlow.langevin(_SIGMA, _BETA, horizon=_END).with_g2(1.0)
    times = torch.linspace(0, _END, round(_END / _STEP) + 1, dtype=torch.float64)
    smoothed = GAUSSIAN.covariance + _SIGMA**2 * torch.eye(2, dtype=torch.float64)
    fastest, slowest = torch.linalg.eigh(smoothed).eigenvectors.T
    starts = {
        "offset, slowest axis": Gaussian(GAUSSIAN.mean + 2 * slowest, smoothed),
        "another Gaussian": OTHER,
        "offset, fastest axis": Gaussian(GAUSSIAN.mean + 2 * fastest, smoothed),
    }
    runs = {name: convergence(flow, GAUSSIAN, start, times) for name, start in starts.items()}
    rate = 2 * _BETA * log_sobolev_constant(GAUSSIAN, _SIGMA)
    settled = Gaussian(GAUSSIAN.mean, smoothed)
    found = [_divergences(law, settled) for law in propagated(flow, GAUSSIAN, _AWAY, times)]
    kl, fisher = torch.tensor(found, dtype=torch.float64).T
    bound = kl[0] * torch.exp(-rate * times)
    runs["a mixture"] = Convergence(times, kl, fisher, -_BETA * fisher, bound, rate)
    return runs


def _divergences(law: GaussianMixture, target: Gaussian, side: int = 140) -> tuple[float, float]:
    """KL and Fisher divergence of a law of the plane from a target, by the trapezoidal rule."""
    low, high = law.means.amin(0) - 8, law.means.amax(0) + 8
    axes = [torch.linspace(a, b, side, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    x = torch.cartesian_prod(*axes)
    weight = law.log_density(x).exp() * float(torch.prod((high - low) / (side - 1)))
    log_ratio = law.log_density(x) - target.log_density(x)
    gaps = (law.score(x) - target.score(x)).square().sum(1)
    return float(weight @ log_ratio), float(weight @ gaps)


def _convergence(runs: Mapping[str, Convergence]) -> Iterator[Check]:
    constant = log_sobolev_constant(GAUSSIAN, _SIGMA)
    for name, run in runs.items():
        # central differences of order 6
        differences = sum(
            weight * (run.kl[3 + k : len(run.kl) - 3 + k] - run.kl[3 - k : len(run.kl) - 3 - k])
            for k, weight in ((1, 45), (2, -9), (3, 1))
        ) / (60 * _STEP)
        inside = run.kl[3:-3] > 1e-4 * run.kl[0]
        ratio = (differences / run.slope[3:-3])[inside]
        worst = float(ratio[(ratio - 1).abs().argmax()])
        claim = f"-dKL/dt over βI, where it is worst: from {name}"
        yield _equal(claim, "DiffFlow Lemma 1", worst, 1.0, 1e-5)
    for name, run in runs.items():
        ratio = run.kl / run.bound
        claim = f"largest KL(ρ_t) over KL(ρ_0) e^(-2βCt): from {name}"
        yield _at_most(claim, "DiffFlow Theorem 2", float(ratio.max()), 1.0, 1e-9)
        if name == "offset, slowest axis":
            claim = f"smallest KL(ρ_t) over KL(ρ_0) e^(-2βCt): from {name}"
            yield _equal(claim, "framework §7", float(ratio.min()), 1.0, 1e-8)
    worst = max(float((2 * constant * run.kl / run.fisher).max()) for run in runs.values())
    claim = "largest KL over I/(2C), along all these runs"
    yield _at_most(claim, "DiffFlow §4.2", worst, 1.0, 1e-9)
    flow = DiffFlow.langevin(_SIGMA, _BETA, horizon=40.0)
    for g2 in (0.0, 1.0, 3.0):
        end = convergence(flow.with_g2(g2), GAUSSIAN, OTHER, [40.0])
        claim = f"KL(ρ_t) at t = 40: another Gaussian, g² = {_times(g2)}"
        yield _equal(claim, "DiffFlow Theorem 1", float(end.kl[0]), 0.0, 1e-12)


# --- the picture


def kl_figure(runs: Mapping[str, Convergence], samples: int = 10_000, seed: int = 0) -> Figure:
    """KL against the log-Sobolev bound, relative to its start, with what particles have at several g.

    Args:
        runs: of :func:`convergence_runs`.
        samples: particles of each simulation.
        seed: of all random draws.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, run in runs.items():
        share = run.kl / run.kl[0]
        curves[name] = list(zip(run.times.tolist(), share.tolist(), strict=True))
    *_, last = runs.values()  # all have one rate; drawn over the curve that meets it
    curves["log-Sobolev bound"] = [(t, math.exp(-last.rate * t)) for t in last.times.tolist()]
    strokes = {name: plots.Stroke(color) for name, color in zip(runs, plots.SERIES, strict=False)}
    strokes["log-Sobolev bound"] = plots.Stroke(plots.INK, dashed=True)
    figure = plots.curves_figure(
        curves,
        "generation time t",
        r"$\mathrm{KL}(\rho_t\,\Vert\,p_{\sigma_0})$ as a share of what it was at $t = 0$",
        log=True,
        strokes=strokes,
        size=(7.6, 4.2),
    )
    axes = figure.axes[0]
    at_start = float(runs["another Gaussian"].kl[0])
    noise = 5 / (2 * samples)  # KL between a Gaussian and one fitted to so many of its points
    handles = []
    for place, (g2, marker) in enumerate(_MARKERS.items()):
        found = _particles_kl(g2, samples, seed)[place + 1 :: len(_MARKERS)]
        points = [(t, kl / at_start) for t, kl in found if kl > 30 * noise]
        style = {"marker": marker, "color": plots.GENERATED, "markersize": 6, "linestyle": ""}
        axes.plot(*np.array(points).T, markeredgecolor=plots.PAPER, zorder=6, **style)
        handles.append(Line2D([], [], label=f"g² = {_times(g2)}", **style))
    axes.legend(
        handles=handles,
        title=f"{samples:,} particles",
        title_fontproperties={"size": 8.5},
        loc="lower left",
        frameon=False,
        fontsize=8.5,
        labelcolor=plots.INK,
        handletextpad=0.2,
        alignment="left",
    )
    return figure


_MARKERS = {0.0: "o", 1.0: "D", 2.0: "s", 3.5: "^"}
"""g²/β -> marker."""


def _particles_kl(g2: float, samples: int, seed: int) -> list[tuple[float, float]]:
    """(t, KL) of simulated particles, whose law is taken to be Gaussian with their moments."""
    flow = DiffFlow.langevin(_SIGMA, _BETA, horizon=_END).with_g2(g2)
    trial, _ = known_laws(flow, GAUSSIAN, OTHER)
    start = OTHER.sample(samples, generator=seeded(seed, "verify", "kl", g2), dtype=torch.float64)
    smoothed = GAUSSIAN.covariance + _SIGMA**2 * torch.eye(2, dtype=torch.float64)
    found = []
    for state in trial.stream(start, seeded(seed, "verify", "kl noise", g2)):
        kl = gaussian_kl(state.x.mean(0), state.x.T.cov(), GAUSSIAN.mean, smoothed)
        found.append((state.t, float(kl)))
    return found[::3]


# --- small things


def _equal(claim: str, source: str, measured: float, expected: float, tolerance: float) -> Check:
    return Check(claim, source, measured, "=", expected, tolerance)


def _at_most(
    claim: str, source: str, measured: float, bound: float, tolerance: float = 0.0
) -> Check:
    return Check(claim, source, measured, "<=", bound, tolerance)


def _mean(
    claim: str, source: str, values: Tensor, expected: float, error: float, chance: float
) -> Check:
    """Of a mean with a standard error: it is off by chance with that probability."""
    allowed = NormalDist().inv_cdf(1 - chance / 2) * error
    return replace(_equal(claim, source, float(values.mean()), expected, allowed), drawn=True)


def _relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def _flat(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors if x is not None])


def _place(g2: float, lambda2: float) -> str:
    return f"g² = {_times(g2)}, λ² = {_times(lambda2)}"


def _times(ratio: float) -> str:
    """So many times β."""
    return "0" if ratio == 0 else "β" if ratio == 1 else f"{ratio:g}β"
