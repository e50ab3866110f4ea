"""The map: the plane (g²/β, λ²/β) on which DiffFlow's models stand (DiffFlow Figure 1), with samples.

At each place particles run from one start, driven by one Brownian motion, along one σ(t): what differs is
the place. By default all fields are exact. Where λ² > 0, β = g_s²/(λ²/β) matches the forward SDE:
ρ_t = p_σ(t), and the optimal discriminator is constant. Where λ² <= 0 no β does. There β is
:data:`STRENGTH` times g_s², the laws follow (p_σ)^{β/(β - ½λ²)} with a lag, and the discriminator's
∇d = ∇log p_σ - ∇log ρ_t comes from the Fokker-Planck equation, solved on a grid, once for each λ²: g
does not enter it (Proposition 2).

With a trained model's score and discriminator the places are those that they reach: a discriminator
knows the laws of the place that it was trained at, which are those of all places with λ² > 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon
from matplotlib.text import Text
from scipy.linalg import solve_banded
from torch import Tensor
from torch.nn.functional import grid_sample

from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.data import Dataset, DataSettings, open_dataset
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError, NumericsError
from partikel.fields import At, ExactScoreField, Field, ScoreField
from partikel.fields.terms import AtScale, LogRatioField
from partikel.files import write_json
from partikel.metrics import energy_distance, sliced_wasserstein2
from partikel.models import Carrier, ParticleModel, free_particles
from partikel.recipes import PlanePoint
from partikel.schedules import GeometricGrid, Schedule, VESchedule
from partikel.solvers import StochasticHeun
from partikel.streams import seeded
from partikel.targets import GaussianMixture

POINTS = (
    *((2.0, 2.0), (3.0, 2.0)),
    *((1.0, 1.0), (2.0, 1.0), (3.0, 1.0)),
    *((0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 0.0)),
    *((0.0, -1.0), (1.0, -1.0), (2.0, -1.0), (3.0, -1.0)),
)
"""Where samples are shown: (g²/β, λ²/β)."""
CORNERS = {
    (0.0, 0.0): "GAN",
    (2.0, 0.0): "Langevin",
    (2.0, 1.0): "Diffusion SDE",
    (2.0, 2.0): "Diffusion ODE",
}
"""The models that stand at a point; along a falling σ(t), a GAN is a DiffODE-GAN, Langevin NCSN."""
STRENGTH = 8.0
"""β/g_s² where λ² <= 0."""
PATHS = 7
"""Trajectories in a panel."""
PAIRS = 20
"""Pairs of draws of the data that samples are compared with."""
FINEST = 100
"""Steps of the Fokker-Planck equation, at least."""
FEWEST = 100
"""Particles below which distances tell nothing."""
SIGMAS = (10.0, 0.02)
"""σ(t) falls from the first to the second, geometrically."""
STEPS, LEARNED_STEPS = 240, 120
"""Steps of the solver with exact fields, and with learned ones, which cost more."""


@dataclass(frozen=True)
class Place:
    """A point of the plane and what particles do there.

    Attributes:
        g2: g²/β.
        lambda2: λ²/β.
        name: of the models there.
        law: what ρ_t is.
        samples: (n, 2) particles at T.
        paths: (k, N + 1, 2) some of their trajectories, as u X/√(1 + σ²): in the variance-preserving
            scale, where noise is no wider than data.
        evaluations: of the drift, for each particle.
        energy: energy distance between the samples and data.
        sliced_w2: sliced Wasserstein-2 distance.
    """

    g2: float
    lambda2: float
    name: str
    law: str
    samples: Tensor
    paths: Tensor
    evaluations: int
    energy: float
    sliced_w2: float


class Learned(NamedTuple):
    """What a trained model brings to a map.

    Attributes:
        score: its data score s_p.
        critic: a discriminator learned along the path, or its ∇d, to go with the score where λ² > 0
            and g² ≠ 2β.
        schedule: the path σ(t) that both know.
        label: where they come from, for the caption.
    """

    score: Field
    critic: Field | None = None
    schedule: Schedule = VESchedule(*SIGMAS)
    label: str | None = None


def draw_map(
    out: Path,
    *,
    dataset: Dataset | None = None,
    learned: Learned | None = None,
    points: Sequence[tuple[float, float]] | None = None,
    samples: int = 10_000,
    steps: int | None = None,
    seed: int = 0,
) -> Path:
    """Draw the map with samples, trajectories and measured quality; takes about a minute.

    Args:
        out: a folder, into which ``map.png`` and ``map.json`` are written.
        dataset: points of the plane; the unequal Gaussians unless given.
        learned: fields of a model, with their path. Without them all fields are exact, the data a
            mixture, and the path is VE between :data:`SIGMAS`.
        points: places (g²/β, λ²/β); :data:`POINTS` unless given, as far as learned fields reach: g² = 2β,
            and with a critic λ² > 0. Those left out are marked.
        samples: particles at each place.
        steps: of the solver, two evaluations each; :data:`STEPS`, or :data:`LEARNED_STEPS`, unless
            given.
        seed: of all random draws.

    Returns:
        The path of the picture.

    Raises:
        ConfigError: for data that are not points of the plane, or no mixture where fields are exact;
            places that are not on the plane, or out of reach; too few samples.
        NumericsError: where particles run away because steps are too large.
    """
    dataset = dataset or open_dataset(DataSettings("unequal"))
    schedule = VESchedule(*SIGMAS) if learned is None else learned.schedule
    steps = (STEPS if learned is None else LEARNED_STEPS) if steps is None else steps
    chosen = _chosen(points, dataset, learned)
    if samples < FEWEST:
        raise ConfigError(f"clouds are compared with samples >= {FEWEST}, got {samples}.")
    generator = seeded(seed, "map", "data")
    first, data = dataset.draw(2 * samples, generator=generator).x.split(samples)
    start = schedule.noised(first, torch.zeros(samples), generator=generator)
    simulate = _Simulator(dataset, learned, schedule, start, data, steps, seed)
    places = [simulate.place(*point) for point in chosen]
    pairs = [dataset.draw(2 * samples, generator=generator).x.split(samples) for _ in range(PAIRS)]
    reference = {
        "energy": sorted(energy_distance(x, y) for x, y in pairs),
        "sliced_w2": sorted(sliced_wasserstein2(x, y) for x, y in pairs),
    }
    told = "exact"
    if learned is not None:
        told = "none" if learned.critic is None else "learned"
    protocol = {
        "data": dataset.name,
        "fields": "exact" if learned is None else "learned",
        "discriminator": told,
        "label": None if learned is None else learned.label,
        "schedule": repr(schedule),
        "sigma_max": schedule.sigma_max,
        "sigma_end": schedule.sigma_end,
        "beta": f"g_s²/(λ²/β) where λ² > 0, {STRENGTH:g} g_s² where λ² <= 0",
        "start": "exact law at t = 0, the same particles everywhere",
        "solver": "stochastic Heun, nodes geometric in σ, the same Brownian increments everywhere",
        "steps": steps,
        "samples": samples,
        "seed": seed,
    }
    left_out = [] if points is not None else [each for each in POINTS if each not in chosen]
    between = {
        lambda2: max(energy_distance(x.samples, y.samples) for x, y in combinations(row, 2))
        for lambda2, row in _rows(places).items()
        if len(row) > 1
    }
    numbers = [
        {k: v for k, v in vars(place).items() if k not in ("samples", "paths")} for place in places
    ]
    found = {
        "protocol": protocol,
        "points": numbers,
        "left_out": [{"g2": g2, "lambda2": lambda2} for g2, lambda2 in left_out],
        "between_g2": [{"lambda2": k, "largest_energy": v} for k, v in between.items()],
        "data_vs_data": {
            name: {"median": values[len(values) // 2], "largest": values[-1], "pairs": PAIRS}
            for name, values in reference.items()
        },
    }
    write_json(out / "map.json", found)
    plots.save_figure(
        _drawn(places, left_out, data, _caption(protocol, reference, left_out), learned is None),
        out / "map.png",
    )
    return out / "map.png"


def draw_map_of(run: Run, out: Path, **options: Any) -> Path:
    """Draw the map of what a run has learned, at the points that its networks reach.

    Args:
        run: of the recipe "edm" or "diffflow", on points of the plane.
        out: folder for map.png and map.json.
        options: of :func:`draw_map`.
    """
    learned = learned_fields(run.model)
    label = f"Learned: the score of '{run.preset}', iteration {run.step}"
    if learned.critic is not None and isinstance(run.recipe, PlanePoint):
        place, n = f"({run.recipe.g2:g}, {run.recipe.lambda2:g})", run.recipe.steps
        label += f"; the discriminator, trained on particles of {n} steps at {place}"
    return draw_map(out, dataset=run.dataset, learned=learned._replace(label=label), **options)


def learned_fields(model: Carrier) -> Learned:
    """The data score of a trained model, its log-ratio discriminator if it has one, and a path for both.

    Both are asked at noise levels, so that any VE path will do; the discriminator of a path that scales
    its particles knows that path only.

    Args:
        model: the carrier of a recipe "edm" or "diffflow".

    Raises:
        ConfigError: for a model without a data score.
    """
    parts = list(model.field.modules())
    scores = [part for part in parts if isinstance(part, ScoreField) and part.of == "data"]
    critics = [part.critic for part in parts if isinstance(part, LogRatioField)]
    refusal = (
        "the map needs a learned data score, which this model does not have: choose a run of the "
        "recipe 'edm' or 'diffflow'."
    )
    model = free_particles(model, refusal)
    if model.schedule is None or not scores:
        raise ConfigError(refusal)
    own = model.schedule
    if critics and type(own).u is not Schedule.u:
        return Learned(scores[0], critics[0], own)
    path = VESchedule(min(SIGMAS[0], own.sigma_max), SIGMAS[1])
    return Learned(scores[0], critics[0] if critics else None, path)


def flow_at(schedule: Schedule, g2: float, lambda2: float) -> DiffFlow:
    """The flow of the map at (g²/β, λ²/β): matched where λ² > 0, annealed where it is not.

    Args:
        schedule: the path.
        g2: g²/β.
        lambda2: λ²/β.
    """
    if lambda2 > 0:
        return DiffFlow.reverse(schedule, g2=g2, lambda2=lambda2)
    growth = DiffFlow.reverse(schedule).f
    flow = DiffFlow(schedule, growth, lambda t: STRENGTH * schedule.noise_rate(t))
    return flow.at(g2, lambda2)


def model_name(g2: float, lambda2: float) -> str:
    """What stands at a point of the plane (DiffFlow §3; framework §6)."""
    if (g2, lambda2) in CORNERS:
        return CORNERS[g2, lambda2]
    if lambda2 < 0:
        return "Continuation"
    return "Diffusion-GAN" if g2 < 2 else "SLCD"


# --- the laws where λ² <= 0


class GridLaw(Field):
    """∇log ρ_t of a flow, from the Fokker-Planck equation on a grid of the plane.

    By Proposition 2 ρ_t is that of g² = 2β, whose drift does not depend on it:

        ∂ρ/∂t = -∇·((f + β u s_p(uX, σ)) ρ) + (β - ½λ²) Δρ,   from ρ_0 = the path's own law.

    The grid moves with the path: Y = (X - m/u)/c, c² = (s² + σ²)/u² with the data's mean m and standard
    deviation s, so that laws keep their size. Finite volumes with exponentially fitted fluxes (Scharfetter
    and Gummel 1969), Strang splitting of the axes and Crank-Nicolson steps: second order in both.

    Args:
        flow: anywhere with λ² < 2β; its g² does not matter.
        target: the data, in the plane.
        times: (N + 1,) the nodes at which the field will be asked.
        side: cells along an axis.
        half: the grid covers [-half, half]², in standard deviations of p_σ.
    """

    def __init__(
        self,
        flow: DiffFlow,
        target: GaussianMixture,
        times: Tensor,
        *,
        side: int = 220,
        half: float = 6.5,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.target = target
        self.times = times
        self._half = half
        self._std = math.sqrt(float(target.covariance.trace()) / 2)
        self._nodes = torch.linspace(-half, half, side, dtype=torch.float64)
        self._width = 2 * half / (side - 1)
        x, sigma, u, _ = self._seen(torch.cartesian_prod(self._nodes, self._nodes), 0.0)
        density = target.log_density(u * x, sigma).exp().view(side, side).numpy()
        self.density: np.ndarray = density / density.sum()
        """(side, side) masses of the cells at the last node."""
        maps = [self._slopes()]
        parts = math.ceil(FINEST / (len(times) - 1))
        for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            dt = (t_next - t) / parts
            for part in range(parts):
                first, second = (self._rates(t + (part + 0.5) * dt, axis) for axis in (0, 1))
                self._sweep(first, dt / 2, 0)
                self._sweep(second, dt, 1)
                self._sweep(first, dt / 2, 0)
            maps.append(self._slopes())
        self._maps = torch.from_numpy(np.stack(maps))

    def forward(self, x: Tensor, at: At) -> Tensor:
        """∇log ρ_t(x) at the node nearest to the time that all points share, by bicubic interpolation."""
        place = int((self.times - at.t).abs().argmin())
        scale, shift = self._frame(float(self.times[place]))
        y = ((x - shift.to(x)) / scale).to(self._maps.dtype)
        cells = (y / self._half).flip(1)[None, None]  # grid_sample counts columns first
        slopes = grid_sample(
            self._maps[place][None], cells, "bicubic", padding_mode="border", align_corners=True
        )
        return (slopes[0, :, 0].T / scale).to(x.dtype)

    def points(self) -> Tensor:
        """(side², 2) places of the cells at the last node, in the order of ``density``."""
        y = torch.cartesian_prod(self._nodes, self._nodes)
        return self._seen(y, float(self.times[-1]))[0]

    def _frame(self, t: float) -> tuple[float, Tensor]:
        """How the grid lies at a time: c and m/u."""
        time = torch.tensor([t], dtype=torch.float64)
        sigma, u = self.flow.schedule.sigma(time), self.flow.schedule.u(time)
        return float((self._std**2 + sigma**2).sqrt() / u), self.target.mean / u

    def _seen(self, y: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X at grid coordinates (M, 2), with σ, u and t there, (M,), (1,) and (1,)."""
        scale, shift = self._frame(t)
        time = torch.tensor([t], dtype=torch.float64)
        sigma = self.flow.schedule.sigma(time)
        return shift + scale * y, sigma.expand(len(y)), self.flow.schedule.u(time), time

    def _rates(self, t: float, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Rates at which mass moves up and down between neighbours along an axis: (lines, faces)."""
        faces = (self._nodes[1:] + self._nodes[:-1]) / 2
        y = torch.cartesian_prod(*((faces, self._nodes) if axis == 0 else (self._nodes, faces)))
        x, sigma, u, time = self._seen(y, t)
        scale, shift = self._frame(t)
        path, c = self.flow.schedule, self.flow.coefficients(time)
        drift = c.f * x + c.beta * u * self.target.score(u * x, sigma)
        carried = path.drift_rate(time)
        growing = carried - path.half_rate(time) / (self._std**2 + sigma[:1] ** 2)  # c'/c
        speed = ((drift - carried * shift) / scale - growing * y)[:, axis]
        along = speed.view(len(faces), -1).T if axis == 0 else speed.view(-1, len(faces))
        spread = float((c.beta - 0.5 * c.lambda2) / scale**2)
        peclet = along.numpy() * self._width / spread
        down = spread / self._width**2 * _bernoulli(peclet)
        return down + along.numpy() / self._width, down

    def _sweep(self, rates: tuple[np.ndarray, np.ndarray], dt: float, axis: int) -> None:
        """A Crank-Nicolson step along an axis, for all its lines as one tridiagonal system."""
        mass = self.density.T if axis == 0 else self.density
        up, down = (0.5 * dt * rate for rate in rates)
        moved = mass.copy()
        flux = up * mass[:, :-1] - down * mass[:, 1:]
        moved[:, :-1] -= flux
        moved[:, 1:] += flux
        edge = np.zeros((len(mass), 1))
        bands = np.zeros((3, mass.size))
        bands[1] = 1 + (np.hstack([up, edge]) + np.hstack([edge, down])).ravel()
        bands[0] = -np.hstack([edge, down]).ravel()  # of column j in row j - 1
        bands[2] = -np.hstack([up, edge]).ravel()
        solved = solve_banded((1, 1), bands, moved.ravel(), check_finite=False)
        solved = solved.reshape(mass.shape)
        self.density = solved.T if axis == 0 else solved

    def _slopes(self) -> np.ndarray:
        """(2, side, side) gradient of the logarithm in grid coordinates."""
        log = np.log(np.maximum(self.density, 1e-290))
        along = [np.gradient(log, self._width, axis=axis) for axis in (0, 1)]
        return np.stack(along).astype(np.float32)


def _bernoulli(z: np.ndarray) -> np.ndarray:
    """z/(e^z - 1)."""
    small = np.abs(z) < 1e-5
    safe = np.where(small, 1.0, np.clip(z, -600, 600))
    return np.where(small, 1 - z / 2, safe / np.expm1(safe))


# --- particles


@dataclass
class _Simulator:
    """Runs particles at places of the plane; holds everything that places share."""

    dataset: Dataset
    learned: Learned | None
    schedule: Schedule
    start: Tensor
    data: Tensor
    steps: int
    seed: int
    _own: dict[float, GridLaw] = field(default_factory=dict)

    @property
    def grid(self) -> GeometricGrid:
        """Nodes of all places."""
        return GeometricGrid(self.schedule)

    def place(self, g2: float, lambda2: float) -> Place:
        """Run particles at a place and measure where they end."""
        flow = flow_at(self.schedule, g2, lambda2)
        model = ParticleModel(
            flow.field(*self._fields(flow, g2, lambda2)),
            flow.prior((2,)),
            steps=self.steps,
            schedule=self.schedule,
            grid=self.grid,
            diffusion=flow.diffusion,
            solver=StochasticHeun(),
        )
        end, paths = None, []
        for end in model.stream(self.start, generator=seeded(self.seed, "map", "noise")):
            t = end.x.new_tensor([end.t])
            shrunk = self.schedule.u(t) / (1 + self.schedule.sigma(t) ** 2).sqrt()
            paths.append(shrunk * end.x[:PATHS])
        assert end is not None
        if float(end.x.abs().max()) > 100 * float(self.data.abs().max()):
            raise NumericsError(
                f"particles ran away at (g²/β, λ²/β) = ({g2:g}, {lambda2:g}): take more than "
                f"{self.steps} steps."
            )
        return Place(
            g2,
            lambda2,
            model_name(g2, lambda2),
            ("p_σ" if lambda2 > 0 else "about p_σ" + _power(lambda2))
            + ("" if self.learned is None else ", were the fields exact"),
            end.x,
            torch.stack(paths, 1),
            end.evaluations,
            energy_distance(end.x, self.data),
            sliced_wasserstein2(end.x, self.data),
        )

    def _fields(self, flow: DiffFlow, g2: float, lambda2: float) -> tuple[Field, Field]:
        """s_p and ∇d, which has no weight at g² = 2β."""
        if self.learned is not None:
            score, critic, *_ = self.learned
            return score, 0.0 * score if critic is None else critic
        target = self.dataset.target
        assert isinstance(target, GaussianMixture)
        score = ExactScoreField(target)
        if lambda2 > 0 or g2 == 2:
            return score, 0.0 * score
        if lambda2 not in self._own:  # one row at a time: a law takes a hundred megabytes
            self._own = {lambda2: GridLaw(flow, target, self.grid.nodes(self.steps))}
        return score, AtScale(score, self.schedule) - self._own[lambda2]


def _caption(
    protocol: Mapping[str, Any],
    reference: Mapping[str, Sequence[float]],
    left_out: Sequence[tuple[float, float]],
) -> str:
    energy, sliced = reference["energy"], reference["sliced_w2"]
    fields, n = f"{protocol['fields']} fields", f"{protocol['samples']:,}"
    lines = [
        f"Data: {protocol['data']}; {fields}; {n} particles at each place, from one start with one "
        "Brownian motion;",
        f"{protocol['steps']} steps of stochastic Heun along σ from {protocol['sigma_max']:g} to "
        f"{protocol['sigma_end']:g}, seed {protocol['seed']}.",
    ]
    if protocol["label"] is not None:
        lines.append(f"{protocol['label']}.")
    if left_out:
        none = protocol["discriminator"] == "none"
        lines.append(
            "Empty places need a discriminator, "
            + ("and there is none." if none else "but of laws that this one has not seen.")
        )
    lines.append(
        _signed(
            f"Data against data, in {PAIRS} pairs of as many points: energy "
            f"{energy[PAIRS // 2]:.4f} (at most {energy[-1]:.4f}), sliced W₂ "
            f"{sliced[PAIRS // 2]:.2f} (at most {sliced[-1]:.2f})."
        )
    )
    return "\n".join(lines)


def _rows(places: Sequence[Place]) -> dict[float, list[Place]]:
    """Places that differ in g² only, whose laws are the same (Proposition 2)."""
    rows: dict[float, list[Place]] = {}
    for place in places:
        rows.setdefault(place.lambda2, []).append(place)
    return rows


def _power(lambda2: float) -> str:
    return f" to the power {1 / (1 - lambda2 / 2):.2g}" if lambda2 else ""


def _chosen(
    points: Sequence[tuple[float, float]] | None,
    dataset: Dataset,
    learned: Learned | None,
) -> list[tuple[float, float]]:
    """The places to show, all of which can be reached."""
    if dataset.shape != (2,):
        raise ConfigError(
            f"the map shows points of the plane, not '{dataset.name}' of shape {dataset.shape}: "
            "choose two-dimensional data such as 'gaussians'."
        )
    if learned is None and not isinstance(dataset.target, GaussianMixture):
        raise ConfigError(
            f"exact fields need a Gaussian mixture, which '{dataset.name}' is not: "
            "pass a learned score, or choose data such as 'gaussians'."
        )
    chosen = []
    for g2, lambda2 in POINTS if points is None else points:
        reached = learned is None or g2 == 2 or (learned.critic is not None and lambda2 > 0)
        if not (g2 >= 0 and g2 >= lambda2):
            raise ConfigError(
                f"({g2:g}, {lambda2:g}) is not on the plane: g² >= 0 and g² >= λ² there."
            )
        if not reached and points is not None:
            raise ConfigError(
                f"at ({g2:g}, {lambda2:g}) a discriminator of that place is needed: with a learned "
                "score choose places with g² = 2β, or λ² > 0 with a critic."
            )
        if reached:
            chosen.append((float(g2), float(lambda2)))
    if not chosen:
        raise ConfigError("the map has no places to show: give at least one point.")
    return chosen


# --- the picture

_ACROSS, _UP = 2.75, 3.15
"""Inches of one β along each axis."""
_PANEL, _CARD = 1.9, (2.12, 2.62)
"""Sides in inches of a picture and of the card that it lies on."""
_TITLE = 0.36
"""Inches of a card over its picture."""
_FORBIDDEN, _HATCH, _CONTINUED, _EDGE = "#f3f4f6", "#dfe2e7", "#e6e8ec", "#c3c8d0"
_DISCRIMINATOR, _SCORE = plots.SERIES[0], plots.SERIES[1]


def _drawn(
    places: Sequence[Place],
    left_out: Sequence[tuple[float, float]],
    data: Tensor,
    caption: str,
    exact: bool,
) -> Figure:
    """The plane with its regions, lines and places."""
    across = [place.g2 for place in places] + [g2 for g2, _ in left_out]
    upwards = [place.lambda2 for place in places] + [lambda2 for _, lambda2 in left_out]
    right, top = max([2.0, *across]) + 0.5, max([2.0, *upwards]) + 0.52
    left, bottom = -0.5, min([0.0, *upwards]) - 0.5
    gaps = [max(abs(a.g2 - b.g2), abs(a.lambda2 - b.lambda2)) for a, b in combinations(places, 2)]
    scale = min([1.0, *gaps])

    def free(low: float, high: float, y: float) -> bool:
        """Whether no card is in the way of a text from x = low to high."""
        across, up = scale * _CARD[0] / _ACROSS / 2, scale * _CARD[1] / _UP / 2 + 0.03
        return y > bottom and not any(
            low - across < place.g2 < high + across and abs(place.lambda2 - y) < up
            for place in places
        )

    said = [
        (0.64, 0.5, plots.PAPER, _MATCHED if exact else _TRAINED),
        (0.1, -0.5, _CONTINUED, _ANNEALED),
    ]
    inside = [free(x, right, y) for x, y, _, _ in said]
    lines = [text for (*_, text), placed in zip(said, inside, strict=True) if not placed]
    lines += caption.split("\n")
    margin, foot = 0.6, 0.95 + 0.2 * len(lines)
    size = (right - left) * _ACROSS, (top - bottom) * _UP
    figure = plots.new_figure(size[0] + margin, size[1] + foot)
    axes = plots.place_axes(figure, (margin, foot), size, xlim=(left, right), ylim=(bottom, top))
    _draw_ground(axes)
    for (x, y, ground, text), placed in zip(said, inside, strict=True):
        if placed:
            _write(axes, x, y, text, ground, size=10)
    if free(-0.1, 0.42, 0.56):
        _write(axes, 0.42, 0.56, "g = λ: no noise", _FORBIDDEN, size=10, ha="right")
    if free(left, 0.3, 0.98):
        _write(axes, left + 0.12, 0.98, "λ² > g²: impossible", _FORBIDDEN, size=10)
    for place in places:
        _draw_place(axes, place, data, scale)
    for g2, lambda2 in left_out:
        _draw_empty(axes, g2, lambda2)
    _write_notes(axes)
    below = {"va": "bottom", "linespacing": 1.5}
    plots.write_at(figure, margin + 0.12 * _ACROSS, 0.14, "\n".join(lines), 8.5, **below)
    return figure


_MATCHED = (
    r"$\lambda^2 > 0$: $\beta$ matches the forward SDE, $\rho_t = p_\sigma$, and $d$ is constant. "
    "All end in the data"
)
_TRAINED = (
    r"$\lambda^2 > 0$: $\beta$ matches the forward SDE: with exact networks $\rho_t = p_\sigma$, and "
    "all would end in the data"
)
_ANNEALED = (
    rf"$\lambda^2 \leq 0$: $\beta = {STRENGTH:g}\,g_s^2$. At $0$ laws follow $p_\sigma$; below, the "
    r"analytic continuation, noise flattens them to about $p_\sigma^{\beta/(\beta-\lambda^2/2)}$: "
    "not the data"
)


def _draw_ground(axes: Axes) -> None:
    """Regions, lines, coordinates."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    outside = [(left, bottom), (0, bottom), (0, 0), (top, top), (left, top)]
    with matplotlib.rc_context({"hatch.linewidth": 0.6}):
        axes.add_patch(
            Polygon(outside, facecolor=_FORBIDDEN, edgecolor=_HATCH, hatch="///", linewidth=0)
        )
    axes.add_patch(Polygon([(0, 0), (0, bottom), (right, bottom), (right, 0)], color=_CONTINUED))
    axes.plot([0, top], [0, top], color=plots.INK, linewidth=2.4)
    axes.plot([0, right], [0, 0], color=plots.MUTED, linewidth=1.0)
    axes.plot([0, 0], [bottom, 0], color=_DISCRIMINATOR, linewidth=2.4)
    axes.plot([2, 2], [bottom, 2], color=_SCORE, linewidth=2.4)
    for spine in axes.spines.values():
        spine.set_visible(False)
    ticks = range(math.floor(right - 0.3) + 1)
    said = {0: "\nthe discriminator alone", 1: "\nboth", 2: "\nthe score alone"}
    said[3] = "\nStochastic Langevin Churn"
    axes.set_xticks(ticks, [f"{k}{said.get(k, '')}" for k in ticks])
    axes.set_yticks(range(math.ceil(bottom), math.floor(top) + 1))
    axes.tick_params(length=0, labelsize=10.5, labelcolor=plots.MUTED)
    for k, color in ((0, _DISCRIMINATOR), (2, _SCORE)):
        axes.get_xticklabels()[k].set_color(color)
    axes.set_xlabel("g²/β", color=plots.INK, size=12)
    axes.set_ylabel("λ²/β", color=plots.INK, size=12)


def _draw_place(axes: Axes, place: Place, data: Tensor, scale: float) -> None:
    """A card: what stands there, where particles go and end, and how near to the data."""
    x, y = place.g2, place.lambda2
    wide, high = scale * _PANEL / _ACROSS, scale * _PANEL / _UP
    across, up, title = scale * _CARD[0] / _ACROSS, scale * _CARD[1] / _UP, scale * _TITLE / _UP
    bottom = y + high / 2 + title - up
    axes.add_patch(
        FancyBboxPatch(
            (x - across / 2, bottom),
            across,
            up,
            boxstyle="round,pad=0,rounding_size=0.03",
            facecolor=plots.PAPER,
            edgecolor=_EDGE,
            linewidth=0.9,
            zorder=4,
        )
    )
    corner = (x - wide / 2, y - high / 2, wide, high)
    panel = axes.inset_axes(corner, transform=axes.transData, zorder=5)
    view = plots.view_of(data)
    plots.frame_axes(panel, view)
    plots.draw_clouds(panel, place.samples[:1200], data[:1200], scale * _PANEL)
    _draw_paths(panel, place.paths.double().numpy(), view[1] - view[0])
    text = {"zorder": 6, "va": "center"}
    over, under = y + high / 2 + title / 2, (bottom + y - high / 2) / 2
    strong = {"weight": "bold" if (x, y) in CORNERS else "normal", "size": 11 * scale}
    axes.text(x - wide / 2, over, place.name, color=plots.INK, **strong, **text)
    small = {"color": plots.MUTED, "size": 8.5 * scale, **text}
    axes.text(x + wide / 2, over, _signed(f"({x:g}, {y:g})"), ha="right", **small)
    axes.text(x - wide / 2, under, _signed(f"energy {place.energy:.4f}"), **small)
    axes.text(x + wide / 2, under, f"sliced W₂ {place.sliced_w2:.2f}", ha="right", **small)


def _draw_empty(axes: Axes, g2: float, lambda2: float) -> None:
    """A place that the fields do not reach."""
    style = {"color": plots.PAPER, "markeredgecolor": plots.MUTED, "markersize": 11, "zorder": 4}
    axes.plot([g2], [lambda2], "o", **style)
    text = f"{model_name(g2, lambda2)} {_signed(f'({g2:g}, {lambda2:g})')}"
    ground = _CONTINUED if lambda2 <= 0 else plots.PAPER
    right = g2 + 0.55 < axes.get_xlim()[1]  # else the label would leave the picture
    x, ha = (g2 + 0.05, "left") if right else (g2 - 0.05, "right")
    _write(axes, x, lambda2 - 0.075, text, ground, color=plots.MUTED, size=8.5, ha=ha)


def _draw_paths(panel: Axes, paths: np.ndarray, width: float) -> None:
    """Trajectories (k, N + 1, 2), the fainter the faster they go, so that noise does not hide all."""
    segments = np.stack([paths[:, :-1], paths[:, 1:]], 2).reshape(-1, 2, 2)
    lengths = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1)
    opacity = np.clip(0.012 * width / np.maximum(lengths, 1e-9), 0.06, 0.9)
    lines = LineCollection(list(segments), colors=plots.INK, linewidths=0.85, zorder=6)
    lines.set_alpha(opacity)  # type: ignore[arg-type]  # an array is one for each line
    panel.add_collection(lines)
    ends = {"markersize": 3.2, "markeredgecolor": plots.INK, "linestyle": ""}
    panel.plot(*paths[:, 0].T, "o", color=plots.PAPER, markeredgewidth=0.8, zorder=7, **ends)
    panel.plot(*paths[:, -1].T, "o", color=plots.INK, markeredgewidth=0, zorder=8, **ends)


_NOTES = (
    "Along g², weight moves from the discriminator to the score:",
    "paths change, laws do not. Along λ², noise is taken away: from",
    "Langevin dynamics over the diffusion SDE to its ODE.",
)


def _write_notes(axes: Axes) -> None:
    """Title, equation and key, in the corner that no model stands in."""
    x, y = axes.get_xlim()[0] + 0.12, axes.get_ylim()[1] - 0.16
    _write(axes, x, y, "The DiffFlow plane", _FORBIDDEN, size=23, weight="bold")
    _write_equation(axes, x, y - 0.19)
    for line, note in enumerate(_NOTES):
        _write(axes, x, y - 0.43 - 0.085 * line, note, _FORBIDDEN)
    y -= 0.47 + 0.085 * len(_NOTES)
    for name, color, kind in (("data", plots.DATA, "D"), ("generated", plots.GENERATED, "o")):
        axes.plot([x + 0.02], [y], kind, color=color, markersize=4.5, zorder=6)
        _write(axes, x + 0.06, y, name, _FORBIDDEN)
        x += 0.3
    x += 0.12
    axes.plot([x + 0.02, x + 0.16], [y, y], color=plots.INK, linewidth=0.9, zorder=5)
    ends = {"markersize": 4, "markeredgecolor": plots.INK, "markeredgewidth": 0.8, "zorder": 6}
    axes.plot([x + 0.02], [y], "o", color=plots.PAPER, **ends)
    axes.plot([x + 0.16], [y], "o", color=plots.INK, **ends)
    _write(axes, x + 0.2, y, r"paths, as $u X/\sqrt{1+\sigma^2}$", _FORBIDDEN)


def _write(axes: Axes, x: float, y: float, text: str, ground: str, **style: Any) -> Text:
    """A text on a patch of the ground's colour, over hatching and lines."""
    box = {"facecolor": ground, "linewidth": 0, "pad": 2.5}
    style = {"color": plots.INK, "size": 9.5, **style}
    return axes.text(x, y, text, va="center", bbox=box, **style)


def _write_equation(axes: Axes, x: float, y: float) -> None:
    """The SDE, its parts named."""
    parts = [
        (r"$dX = [\,f +$", plots.INK, ""),
        (
            r"$(\beta - \frac{1}{2}g^2)\,\nabla\log(p_\sigma/\rho_t)$",
            _DISCRIMINATOR,
            "discriminator: $\\nabla d$",
        ),
        (r"$+$", plots.INK, ""),
        (r"$\frac{1}{2}g^2\,\nabla\log p_\sigma$", _SCORE, "score"),
        (r"$]\,dt +$", plots.INK, ""),
        (r"$\sqrt{g^2 - \lambda^2}\,dW$", plots.INK, "noise"),
    ]
    for formula, color, name in parts:
        part = _write(axes, x, y, formula, _FORBIDDEN, size=12, color=color)
        extent = part.get_window_extent().transformed(axes.transData.inverted())
        middle = (x + extent.x1) / 2
        _write(axes, middle, y - 0.085, name, _FORBIDDEN, size=9, color=color, ha="center")
        x = extent.x1 + 0.02


def _signed(text: str) -> str:
    """With a proper minus, and none before zero."""
    return text.replace("-0.0000", "0.0000").replace("-", "−")
