"""GPM Table 2: gradient flows for standard objectives, their functional measured along the flow.

A field -∇_W F has dF/dt = -E‖∇h‖². That is measured twice. Exactly: a known law is moved by x + ε∇h(x), so
that its density follows from the change of variables, and dF/dε by quadrature. And along the whole flow: free
particles follow the field of their kernel density ρ_h, of which F is computed at every moment.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from partikel.app.show import plots
from partikel.divergences import get_divergence
from partikel.fields import (
    Context,
    DensityRatioField,
    ExactScoreField,
    FDivergenceField,
    Field,
    KernelScoreField,
    MMDField,
)
from partikel.kernels import Kernel, RBFKernel, RieszKernel
from partikel.models import ParticleModel
from partikel.priors import GaussianPrior
from partikel.schedules import TimeGrid
from partikel.solvers import Heun
from partikel.studies.item import Item, Outcome, Table, spread
from partikel.studies.items.findings6_7 import HERE, START, TARGET
from partikel.studies.judgement import Claim, Finding
from partikel.studies.lab import Lab
from partikel.targets import Gaussian

# TARGET and START have tails alike, so that every objective of the table, and its slope, is finite
HALF = 6.0
"""The grid covers [-6, 6]², all but a billionth of p."""
STEP = 1e-6
"""ε of the differences that slopes are."""
TOLERANCE = 1e-3
"""How far a slope may be from -E‖∇h‖²: what the grid and ε leave."""
RISE = 1e-3
"""Rises of F up to this share of its range are rounding."""
_EFFECT = (
    f"over all objectives and draws the lesser of: {TOLERANCE:g} less how far dF/dt over -E‖∇h‖² is from 1, "
    f"with exact laws; {RISE:g} less the largest rise of F along a flow of particles, as a share of its range"
)


def _claim(text: str, source: str = "GPM §2.1, Table 2") -> Claim:
    return Claim(text, source, _EFFECT, 0.0, kind="exact")


CLAIMS = {
    "forward KL": _claim("The forward KL has the Wasserstein gradient flow ∇log p - ∇log ρ."),
    "f-divergence": _claim("f-divergences have Wasserstein gradient flows in closed form."),
    "squared MMD": _claim("So has the squared MMD with regard to a kernel."),
    "entropy": _claim("So has the entropy."),
    "sums": _claim("Flows can be additively combined for a variety of objectives.", "GPM §2.1"),
}
MOMENTS = (0.0, 0.3, 0.6, 1.0)
"""Of √(t/T): when snapshots are taken."""


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Attributes:
        seeds: of particles, and of the laws whose slope is measured.
        particles: of a flow, and samples of p that an MMD compares with.
        bandwidth: h of the kernel densities.
        steps: of Heun's method.
        intervals: of time, after which F is computed.
        side: points along each axis of the grid.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    particles: int = 1000
    bandwidth: float = 0.3
    steps: int = 96
    intervals: int = 16
    side: int = 121


Law = Gaussian | KernelScoreField
"""ρ: a density in closed form, or that of kernels on particles."""


@dataclass(frozen=True)
class Flow:
    """A row of the table.

    Attributes:
        name: of the objective.
        claim: the row of the paper's table that it is an instance of.
        functional: F as a formula.
        formula: ∇h.
        horizon: T.
        field: ∇h, given ρ and samples of p.
        integrand: of F = ∫ integrand(log ρ, log p) dx; None for an MMD.
        kernel: of an MMD.
    """

    name: str
    claim: str
    functional: str
    formula: str
    horizon: float
    field: Callable[[Law, Tensor], Field]
    integrand: Callable[[Tensor, Tensor], Tensor] | None = None
    kernel: Kernel | None = None


def _divergence_field(name: str, own: Law, real: Tensor) -> Field:
    return FDivergenceField(DensityRatioField(TARGET, own), name)


def _divergence(name: str, log_rho: Tensor, log_p: Tensor) -> Tensor:
    return get_divergence(name).f((log_rho - log_p).exp()) * log_p.exp()


def _entropy_field(own: Law, real: Tensor) -> Field:
    return -1.0 * (ExactScoreField(own) if isinstance(own, Gaussian) else own)


def _entropy(log_rho: Tensor, log_p: Tensor) -> Tensor:
    return log_rho.exp() * log_rho


def _of_divergence(name: str, called: str, f: str, h: str, horizon: float) -> Flow:
    return Flow(
        called,
        "f-divergence",
        f"∫ f(ρ/p) dp, f(u) = {f}",
        f"{h} ∇log r",
        horizon,
        partial(_divergence_field, name),
        partial(_divergence, name),
    )


def _of_mmd(kernel: Kernel, called: str, horizon: float) -> Flow:
    return Flow(
        f"½ MMD², {called}",
        "squared MMD",
        "½ E k(x, x') - E k(x, y) + ½ E k(y, y')",
        "E_p ∇k - E_ρ ∇k",
        horizon,
        lambda own, real: MMDField(kernel).bind(Context(real=real)),
        kernel=kernel,
    )


FLOWS = (
    Flow(
        "forward KL",
        "forward KL",
        "∫ ρ log(ρ/p)",
        "∇log p - ∇log ρ",
        2.0,
        partial(_divergence_field, "kl"),
        partial(_divergence, "kl"),
    ),
    _of_divergence("reverse-kl", "KL(p‖ρ)", "-log u", "r", 1.5),
    _of_divergence("jensen-shannon", "2 JS", "u log u - (u+1) log((u+1)/2)", "r/(1+r)", 5.0),
    _of_divergence("non-saturating", "2 KL((ρ+p)/2‖p)", "(u+1) log((u+1)/2)", "1/(1+r)", 4.0),
    _of_divergence("pearson", "Pearson χ²", "(u-1)²", "2/r", 1.0),
    _of_divergence("hellinger", "squared Hellinger", "(√u-1)²", "½ √r", 4.0),
    _of_divergence("jeffreys", "Jeffreys", "(u-1) log u", "(1+r)", 1.0),
    _of_mmd(RBFKernel(1.0), "RBF kernel", 40.0),
    _of_mmd(RieszKernel(), "k = -‖x - y‖", 15.0),
    Flow("entropy", "entropy", "∫ ρ log ρ", "-∇log ρ", 0.5, _entropy_field, _entropy),
    Flow(
        "forward KL + ½ entropy",
        "sums",
        "∫ ρ log(ρ/p) + ½ ∫ ρ log ρ",
        "∇log p - 3/2 ∇log ρ",
        2.0,
        lambda own, real: _divergence_field("kl", own, real) + 0.5 * _entropy_field(own, real),
        lambda log_rho, log_p: _divergence("kl", log_rho, log_p) + 0.5 * _entropy(log_rho, log_p),
    ),
)
SHOWN = ("forward KL", "Pearson χ²", "½ MMD², RBF kernel", "entropy")


# --- exact slopes


def slope(flow: Flow, lab: Lab, plan: Plan, seed: int) -> float:
    """dF/dε of a law moved by x + ε∇h(x), over -E‖∇h‖².

    The law is a Gaussian near :data:`START`, another one for each seed; an MMD is that of clouds.
    """
    law = _law(lab.generator(seed, "law"))
    if flow.kernel is not None:
        x = law.sample(plan.particles, generator=lab.generator(seed, "x"), dtype=torch.float64)
        y = TARGET.sample(plan.particles, generator=lab.generator(seed, "y"), dtype=torch.float64)
        velocity = flow.field(law, y)(x, HERE)
        power = float(velocity.square().sum(1).mean())
        ends = [_mmd(flow.kernel, x + sign * STEP * velocity, y) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * STEP) / -power
    assert flow.integrand is not None
    points, cell = _grid(plan.side)
    points.requires_grad_()
    velocity = flow.field(law, points)(points, HERE)
    rows = [torch.autograd.grad(v.sum(), points, retain_graph=True)[0] for v in velocity.unbind(1)]
    jacobian, velocity, points = torch.stack(rows, 1), velocity.detach(), points.detach()
    log_rho = law.log_density(points)
    power = float((log_rho.exp() * velocity.square().sum(1)).sum()) * cell
    ends = []
    for step in (STEP, -STEP):
        moved = points + step * velocity
        volume = torch.linalg.det(torch.eye(2, dtype=torch.float64) + step * jacobian)
        values = flow.integrand(log_rho - volume.log(), TARGET.log_density(moved)) * volume
        ends.append(float(values.sum()) * cell)
    return (ends[0] - ends[1]) / (2 * STEP) / -power


def _law(generator: torch.Generator) -> Gaussian:
    offset = 0.2 * torch.randn(2, generator=generator, dtype=torch.float64)
    angle = math.pi * float(torch.rand((), generator=generator))
    axis = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    spread = 0.7 * torch.eye(2, dtype=torch.float64) + 0.1 * torch.outer(axis, axis)
    return Gaussian(START.mean + offset, spread)


def _grid(side: int) -> tuple[Tensor, float]:
    """(side², 2) points and the area of a cell."""
    axis = torch.linspace(-HALF, HALF, side, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def _mmd(kernel: Kernel, x: Tensor, y: Tensor) -> float:
    """½ MMD² of two clouds as laws, own pairs included."""
    within = kernel.mean(x, x).mean() + kernel.mean(y, y).mean()
    return float(within / 2 - kernel.mean(x, y).mean())


# --- particles


@dataclass(frozen=True)
class _Early(TimeGrid):
    """t = T (n/N)²: short steps while F falls fast."""

    horizon: float

    def nodes(self, steps: int) -> Tensor:
        """(steps + 1,) times."""
        return self.horizon * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2


def followed(flow: Flow, lab: Lab, plan: Plan, seed: int) -> dict[str, Any]:
    """F of particles at the ends of the intervals, ∫E‖∇h‖²dt up to there, and snapshots."""
    n, stride = plan.particles, plan.steps // plan.intervals
    start = START.sample(n, generator=lab.generator(seed, "start"), dtype=torch.float64)
    real = TARGET.sample(n, generator=lab.generator(seed, "real"), dtype=torch.float64)
    field = flow.field(KernelScoreField(plan.bandwidth), real)
    points, cell = _grid(plan.side)
    log_p = TARGET.log_density(points)

    def functional(x: Tensor) -> float:
        if flow.kernel is not None:
            return _mmd(flow.kernel, x, real)
        assert flow.integrand is not None
        own = KernelScoreField(plan.bandwidth).bind(Context(particles=x))
        log_rho = own.estimate(points, HERE)[0]
        return float(flow.integrand(log_rho, log_p).sum()) * cell

    model = ParticleModel(
        field,
        GaussianPrior((2,)),
        steps=plan.steps,
        eta=flow.horizon,
        grid=_Early(1.0),
        solver=Heun(),
    )
    times, values, powers, snapshots = [], [], [], {}
    moments = {round(moment * plan.steps) for moment in MOMENTS}
    for state in model.stream(start, generator=torch.Generator()):
        velocity = field(state.x, HERE)
        times.append(flow.horizon * state.t)
        powers.append(float(velocity.square().sum(1).mean()))
        if state.step % stride == 0:
            values.append(functional(state.x))
        if state.step in moments and flow.name in SHOWN:
            snapshots[f"{times[-1]:.2g}"] = state.x[:400].tolist()
    predicted = torch.cumulative_trapezoid(torch.tensor(powers), torch.tensor(times))
    return {
        "t": times[::stride],
        "F": values,
        "predicted": [0.0, *predicted[stride - 1 :: stride].tolist()],
        "snapshots": snapshots,
    }


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Measure slopes, run every flow, and draw."""
    slopes: dict[str, list[float]] = {flow.name: [] for flow in FLOWS}
    flows: dict[str, list[dict[str, Any]]] = {flow.name: [] for flow in FLOWS}
    for seed in plan.seeds:
        for place, flow in enumerate(FLOWS):
            exact = partial(slope, flow, lab, plan, seed)
            whole = partial(followed, flow, lab, plan, seed)
            slopes[flow.name].append(lab.once(f"slope-{place}-seed-{seed}", exact))
            flows[flow.name].append(lab.once(f"flow-{place}-seed-{seed}", whole))
    _draw(flows, lab)
    table = Table.of(
        "Slopes, and functionals along their flows",
        FLOWS,
        {
            "objective": lambda flow: flow.name,
            "F(ρ)": lambda flow: flow.functional,
            "∇h": lambda flow: flow.formula,
            "dF/dt over -E‖∇h‖², exact laws": lambda flow: _farthest(slopes[flow.name]),
            "F at t = 0, particles": lambda flow: spread([f["F"][0] for f in flows[flow.name]]),
            "F at T": lambda flow: spread([f["F"][-1] for f in flows[flow.name]]),
            "T": lambda flow: flow.horizon,
            "fall of F over ∫E‖∇h‖²dt": lambda flow: spread([*map(_whole, flows[flow.name])]),
        },
    )
    values = {
        name: {
            "slopes": slopes[name],
            "flows": [{k: v for k, v in each.items() if k != "snapshots"} for each in flows[name]],
        }
        for name in flows
    }
    protocol = {
        "particles": plan.particles,
        "bandwidth": plan.bandwidth,
        "grid": f"{plan.side}² points on [-{HALF:g}, {HALF:g}]²",
        "solver": f"Heun, {plan.steps} steps",
        "draws": len(plan.seeds),
    }
    notes = (
        "Exact laws: Gaussians, another one for each seed, moved by x + ε∇h(x), with F by quadrature; an "
        "MMD is that of clouds. The table shows the slope that is farthest from 1.",
        f"Particles: {plan.particles} of them, whose kernel density ρ_h is what both the field and F know. "
        "ρ_h moves by the field smoothed over h, so that the last column is near 1 where the field varies "
        "little over h, and off where h(r) weighs the few particles in the tails.",
        "What the paper calls forward KL is KL(ρ‖p), which the literature on distillation calls reverse KL. "
        "r = p/ρ.",
        _heat(flows["entropy"]),
    )
    findings = [_finding(claim, plan, slopes, flows) for claim in CLAIMS]
    return Outcome(findings, (table,), values, protocol, notes)


def _farthest(ratios: Sequence[float]) -> str:
    """The ratio that is farthest from 1."""
    return f"{max(ratios, key=lambda ratio: abs(ratio - 1)):.5f}"


def _whole(flow: Mapping[str, Any]) -> float:
    """How the fall of F compares with the prediction."""
    return (flow["F"][0] - flow["F"][-1]) / flow["predicted"][-1]


def _rise(flow: Mapping[str, Any]) -> float:
    """The largest rise of F, as a share of its range."""
    rises = [after - before for before, after in itertools.pairwise(flow["F"])]
    return max(0.0, *rises) / (max(flow["F"]) - min(flow["F"]))


def _finding(
    claim: str,
    plan: Plan,
    slopes: Mapping[str, list[float]],
    flows: Mapping[str, list[dict[str, Any]]],
) -> Finding:
    """One row of the paper's table, over all flows that are instances of it."""
    names = [flow.name for flow in FLOWS if flow.claim == claim]
    off = max(abs(ratio - 1) for name in names for ratio in slopes[name])
    rise = max(_rise(each) for name in names for each in flows[name])
    course = f"rises by at most {rise:.1g} of its range" if rise > 0 else "falls all the way"
    if len(names) == 1:
        start, end = ([each["F"][k] for each in flows[names[0]]] for k in (0, -1))
        course += f", from {spread(start)} to {spread(end)}"
    whole = [_whole(each) for name in names for each in flows[name]]
    draws, of = len(plan.seeds), f"{len(names)} objectives, " if len(names) > 1 else ""
    return CLAIMS[claim].found(
        f"a mixture in the plane, {of}{draws} draw{'s' if draws > 1 else ''} of laws and particles",
        f"dF/dt over -E‖∇h‖² is {_farthest([s for name in names for s in slopes[name]])} where it is "
        f"farthest from 1, with exact laws. Along flows of particles F {course}; its fall over ∫E‖∇h‖²dt is "
        f"{spread(whole)}.",
        [min(TOLERANCE - off, RISE - rise)],
    )


def _heat(flows: Sequence[Mapping[str, Any]]) -> str:
    """How far the entropy's flow is from the heat equation, which it is."""
    variance = float(START.covariance[0, 0])
    off = [
        flow["F"][-1] + math.log(2 * math.pi * math.e * (variance + 2 * flow["t"][-1]))
        for flow in flows
    ]
    return (
        "The flow of the entropy is the heat equation, under which the Gaussian start has a closed form: "
        f"at T the particles' F is off by {statistics.fmean(off):+.3f}."
    )


def _draw(flows: Mapping[str, list[dict[str, Any]]], lab: Lab) -> None:
    """F relative to its start on a logarithmic axis, and snapshots."""
    curves, strokes = {}, {}
    colors = dict(zip(CLAIMS, plots.SERIES, strict=False))
    for flow in FLOWS:
        if "entropy" in flow.name:  # no ratio of what is below zero
            continue
        first = flows[flow.name][0]
        points = zip(first["t"], first["F"], strict=True)
        curves[flow.name] = [(math.sqrt(t / flow.horizon), F / first["F"][0]) for t, F in points]
        strokes[flow.name] = plots.Stroke(colors[flow.claim])
    figure = plots.curves_figure(
        curves,
        r"$\sqrt{t/T}$",
        "F as a share of what it is at t = 0",
        log=True,
        strokes=strokes,
        size=(7.6, 4.4),
    )
    lab.draw(figure, "Objectives along their own gradient flows, seed 0.", "objectives")
    panels = {
        f"{name}, t = {t}": torch.tensor(x)
        for name in SHOWN
        for t, x in flows[name][0]["snapshots"].items()
    }
    data = TARGET.sample(400, generator=lab.generator(0, "data"))
    figure = plots.comparison_figure(panels, data, inches=2.2, columns=len(MOMENTS))
    lab.draw(figure, "Particles (orange) along four of the flows; blue: samples of p.", "particles")


ITEM = Item(
    "table2",
    "GPM Table 2, §2.1",
    "Gradient flows for standard objectives",
    "The Wasserstein gradients of the forward KL, of f-divergences, of the squared MMD and of the "
    "entropy, in closed form. Particles that follow them descend the objective; they can be added.",
    {
        "smoke": Plan((0,), 120, 0.3, 8, 4, 41),
        "cpu": Plan(),
        "paper": Plan(particles=4000, steps=192, side=241),
    },
    measure,
    CLAIMS,
)
