"""The map: the plane (g²/β, λ²/β) on which DiffFlow's models stand (DiffFlow Figure 1), with samples.

At each place particles run from one start, driven by one Brownian motion, along one σ(t): what differs is
the place. By default all fields are exact. Where λ² > 0, β = g_s²/(λ²/β) matches the forward SDE:
ρ_t = p_σ(t), and the optimal discriminator is constant. Where λ² <= 0 no β does. There β is
:data:`STRENGTH` times g_s², the laws follow (p_σ)^{β/(β - ½λ²)} with a lag, and the discriminator's
∇d = ∇log p_σ - ∇log ρ_t comes from the Fokker-Planck equation, solved on a grid, once for each λ²: g
does not enter it (Proposition 2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from scipy.linalg import solve_banded
from torch import Tensor
from torch.nn.functional import grid_sample

from partikel import plots
from partikel.data import Dataset, DataSettings, open_dataset
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError
from partikel.fields import ExactScoreField, Field
from partikel.fields.terms import AtScale
from partikel.metrics import energy_distance, sliced_wasserstein2
from partikel.models import ParticleModel
from partikel.schedules import GeometricGrid, Schedule, VESchedule
from partikel.solvers import StochasticHeun
from partikel.streams import derive_seed
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
"""The models that stand at a point."""
STRENGTH = 8.0
"""β/g_s² where λ² <= 0."""
PATHS = 14
"""Trajectories in a panel."""
PAIRS = 20
"""Pairs of draws of the data that samples are compared with."""


@dataclass(frozen=True)
class Place:
    """A point of the plane and what particles do there.

    Attributes:
        g2: g²/β.
        lambda2: λ²/β.
        name: of the models there.
        law: what ρ_t is.
        samples: (n, 2) particles at T.
        paths: (k, N + 1, 2) some of their trajectories.
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


def draw_map(
    out: Path,
    *,
    dataset: Dataset | None = None,
    score: Field | None = None,
    critic: Field | None = None,
    schedule: Schedule | None = None,
    points: Sequence[tuple[float, float]] | None = None,
    samples: int = 10_000,
    steps: int = 240,
    seed: int = 0,
) -> Path:
    """Draw the map with samples, trajectories and measured quality; takes about a minute.

    Args:
        out: a folder, into which ``map.png`` and ``map.json`` are written.
        dataset: points of the plane; the unequal Gaussians unless given.
        score: a learned data score s_p. Without one all fields are exact, and the data a mixture.
        critic: a discriminator learned along the path, or its ∇d, to go with a learned score where
            λ² > 0 and g² ≠ 2β; without it d is constant, as the theory has it for exact scores.
        schedule: the path σ(t); VE from 4 to 0.02 unless given.
        points: places (g²/β, λ²/β); :data:`POINTS` unless given, as far as the fields reach: with a
            learned score, places with λ² <= 0 have none but at g² = 2β.
        samples: particles at each place.
        steps: of the solver, two evaluations each.
        seed: of all random draws.

    Returns:
        The path of the picture.

    Raises:
        ConfigError: for data that are not points of the plane, or no mixture where fields are exact; a
            critic without a score; places that are not on the plane, or out of reach.
    """
    dataset = dataset or open_dataset(DataSettings("unequal"))
    schedule = schedule or VESchedule(4.0, 0.02)
    chosen = _chosen(points, dataset, score, critic)
    generator = _stream(seed, "data")
    first, data = dataset.draw(2 * samples, generator=generator).x.split(samples)
    start = schedule.noised(first, torch.zeros(samples), generator=generator)
    simulate = _Simulator(dataset, score, critic, schedule, start, data, steps, seed)
    places = [simulate.place(*point) for point in chosen]
    pairs = [dataset.draw(2 * samples, generator=generator).x.split(samples) for _ in range(PAIRS)]
    reference = {
        "energy": sorted(energy_distance(*pair) for pair in pairs),
        "sliced_w2": sorted(sliced_wasserstein2(*pair) for pair in pairs),
    }
    protocol = {
        "data": dataset.name,
        "fields": "exact" if score is None else "learned",
        "discriminator": "exact" if score is None else "constant" if critic is None else "learned",
        "schedule": repr(schedule),
        "beta": f"g_s²/(λ²/β) where λ² > 0, {STRENGTH:g} g_s² where λ² <= 0",
        "start": "exact law at t = 0, the same particles everywhere",
        "solver": "stochastic Heun, nodes geometric in σ, the same Brownian increments everywhere",
        "steps": steps,
        "samples": samples,
        "seed": seed,
    }
    numbers = [
        {k: v for k, v in vars(place).items() if k not in ("samples", "paths")} for place in places
    ]
    with plots.replacing(out / "map.json") as part:
        found = {
            "protocol": protocol,
            "points": numbers,
            "data_vs_data": {
                name: {"median": values[len(values) // 2], "largest": values[-1], "pairs": PAIRS}
                for name, values in reference.items()
            },
        }
        part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plots.save_figure(_drawn(places, data, score is None), out / "map.png")
    return out / "map.png"


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
    return "DiffODE-GAN" if g2 == 0 else "Diffusion-GAN" if g2 < 2 else "SLCD"


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
        for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            first, second = (self._rates((t + t_next) / 2, axis) for axis in (0, 1))
            self._sweep(first, (t_next - t) / 2, 0)
            self._sweep(second, t_next - t, 1)
            self._sweep(first, (t_next - t) / 2, 0)
            maps.append(self._slopes())
        self._maps = torch.from_numpy(np.stack(maps))

    def forward(
        self, x: Tensor, t: Tensor, sigma: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """∇log ρ_t(x) at the node nearest to the time that all points share, by bicubic interpolation."""
        place = int((self.times - t[0]).abs().argmin())
        scale, shift = self._frame(float(self.times[place]))
        y = ((x - shift.to(x)) / scale).to(self._maps.dtype)
        at = (y / self._half).flip(1)[None, None]  # grid_sample counts columns first
        slopes = grid_sample(
            self._maps[place][None], at, "bicubic", padding_mode="border", align_corners=True
        )
        return (slopes[0, :, 0].T / scale).to(x.dtype)

    def points(self) -> Tensor:
        """(side², 2) places of the cells at the last node, in the order of ``density``."""
        y = torch.cartesian_prod(self._nodes, self._nodes)
        return self._seen(y, float(self.times[-1]))[0]

    def _frame(self, t: float) -> tuple[float, Tensor]:
        """C and m/u."""
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
        return np.stack(np.gradient(log, self._width)).astype(np.float32)


def _bernoulli(z: np.ndarray) -> np.ndarray:
    """z/(e^z - 1)."""
    small = np.abs(z) < 1e-5
    safe = np.where(small, 1.0, np.clip(z, -600, 600))
    return np.where(small, 1 - z / 2, safe / np.expm1(safe))


# --- particles


class _Simulator:
    """Runs particles at places of the plane; holds everything that places share."""

    def __init__(
        self,
        dataset: Dataset,
        score: Field | None,
        critic: Field | None,
        schedule: Schedule,
        start: Tensor,
        data: Tensor,
        steps: int,
        seed: int,
    ) -> None:
        self.target = dataset.target
        self.score = score
        self.critic = critic
        self.schedule = schedule
        self.grid = GeometricGrid(schedule)
        self.start = start
        self.data = data
        self.steps = steps
        self.seed = seed
        self._own: dict[float, GridLaw] = {}

    def place(self, g2: float, lambda2: float) -> Place:
        """Run particles at a place and measure where they end."""
        flow = flow_at(self.schedule, g2, lambda2)
        model = ParticleModel(
            flow.field(*self._fields(flow, lambda2)),
            flow.prior((2,)),
            steps=self.steps,
            schedule=self.schedule,
            grid=self.grid,
            diffusion=flow.diffusion,
            solver=StochasticHeun(),
        )
        view = plots.view_of(self.data)
        followed = _inside(self.start, view, 0.45).nonzero()[:PATHS, 0]
        states = list(model.stream(self.start, generator=_stream(self.seed, "noise")))
        return Place(
            g2,
            lambda2,
            model_name(g2, lambda2),
            "p_σ" if lambda2 > 0 else "about p_σ" + _power(lambda2),
            states[-1].x,
            torch.stack([state.x[followed] for state in states], 1),
            states[-1].evaluations,
            energy_distance(states[-1].x, self.data),
            sliced_wasserstein2(states[-1].x, self.data),
        )

    def _fields(self, flow: DiffFlow, lambda2: float) -> tuple[Field, Field]:
        """s_p and ∇d."""
        if self.score is not None:
            return self.score, 0.0 * self.score if self.critic is None else self.critic
        assert isinstance(self.target, GaussianMixture)
        score = ExactScoreField(self.target)
        if lambda2 > 0:
            return score, 0.0 * score
        if lambda2 not in self._own:
            nodes = self.grid.nodes(self.steps)
            self._own[lambda2] = GridLaw(flow, self.target, nodes)
        return score, AtScale(score, self.schedule) - self._own[lambda2]


def _power(lambda2: float) -> str:
    return f" to the power {1 / (1 - lambda2 / 2):.2g}" if lambda2 else ""


def _chosen(
    points: Sequence[tuple[float, float]] | None,
    dataset: Dataset,
    score: Field | None,
    critic: Field | None,
) -> list[tuple[float, float]]:
    """The places to show, all of which can be reached."""
    if dataset.shape != (2,):
        raise ConfigError(
            f"the map shows points of the plane, not '{dataset.name}' of shape {dataset.shape}: "
            "choose two-dimensional data such as 'gaussians'."
        )
    if critic is not None and score is None:
        raise ConfigError("a learned discriminator goes with a learned score: pass score too.")
    if score is None and not isinstance(dataset.target, GaussianMixture):
        raise ConfigError(
            f"exact fields need a Gaussian mixture, which '{dataset.name}' is not: "
            "pass a learned score, or choose data such as 'gaussians'."
        )
    chosen = []
    for g2, lambda2 in POINTS if points is None else points:
        reached = score is None or lambda2 > 0 or g2 == 2
        if not (g2 >= 0 and g2 >= lambda2):
            raise ConfigError(
                f"({g2:g}, {lambda2:g}) is not on the plane: g² >= 0 and g² >= λ² there."
            )
        if not reached and points is not None:
            raise ConfigError(
                f"at ({g2:g}, {lambda2:g}) a discriminator of that place is needed: with learned "
                "fields choose places with λ² > 0 or g² = 2β."
            )
        if reached:
            chosen.append((float(g2), float(lambda2)))
    if not chosen:
        raise ConfigError("the map has no places to show: give at least one point.")
    return chosen


def _inside(x: Tensor, view: plots.Extent, share: float) -> Tensor:
    left, right, bottom, top = view
    centre = x.new_tensor([left + right, bottom + top]) / 2
    return (x - centre).abs().amax(1) < share * (right - left)


def _stream(seed: int, *path: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "map", *path))


# --- the picture

_UNIT = 2.7
"""Inches of one β."""
_PANEL = 0.6
"""Width of a panel, in β."""
_FORBIDDEN, _CONTINUED = "#f4f5f7", "#eceef1"


def _drawn(places: Sequence[Place], data: Tensor, exact: bool) -> Figure:
    """The plane with its regions, lines and places."""
    right = max(3.0, *(place.g2 for place in places)) + 0.5
    top = max(2.0, *(place.lambda2 for place in places)) + 0.5
    left, bottom = -0.5, min(-1.0, *(place.lambda2 for place in places)) - 0.5
    margin, foot = 0.62, 0.62
    figure = plots.new_figure((right - left) * _UNIT + margin, (top - bottom) * _UNIT + foot)
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        (margin / width, foot / height, 1 - margin / width, 1 - foot / height),
        xlim=(left, right),
        ylim=(bottom, top),
    )
    _draw_ground(axes)
    view = plots.view_of(data)
    for place in places:
        _draw_place(axes, place, data, view)
    _write_legend(axes, exact, top)
    return figure


def _draw_ground(axes: Axes) -> None:
    """Regions, lines, coordinates."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for corners, color, hatch in (
        ([(left, top), (left, 0), (0, 0), (top, top)], _FORBIDDEN, "////"),
        ([(left, 0), (left, bottom), (0, bottom), (0, 0)], _FORBIDDEN, "////"),
        ([(0, 0), (0, bottom), (right, bottom), (right, 0)], _CONTINUED, None),
    ):
        axes.add_patch(
            Polygon(corners, facecolor=color, edgecolor=plots.HAIRLINE, hatch=hatch, linewidth=0)
        )
    line = {"color": plots.INK, "solid_capstyle": "round", "zorder": 1.5}
    axes.plot([0, top], [0, top], linewidth=2.2, **line)
    axes.plot([0, 0], [bottom, 0], linewidth=1.2, **line)
    axes.plot([0, right], [0, 0], linewidth=1.2, **line)
    axes.plot([2, 2], [bottom, 2], color=plots.GENERATED, linewidth=2.2, zorder=1.4)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(range(math.ceil(left), math.floor(right) + 1))
    axes.set_yticks(range(math.ceil(bottom), math.floor(top) + 1))
    axes.tick_params(length=0, labelsize=10, labelcolor=plots.MUTED)
    axes.set_xlabel("g²/β", color=plots.INK, size=11)
    axes.set_ylabel("λ²/β", color=plots.INK, size=11)


def _draw_place(axes: Axes, place: Place, data: Tensor, view: plots.Extent) -> None:
    x, y, half = place.g2, place.lambda2, _PANEL / 2
    panel = axes.inset_axes(
        (x - half, y - half, 2 * half, 2 * half), transform=axes.transData, zorder=5
    )
    plots.frame_axes(panel, view)
    inches = _PANEL * _UNIT
    plots.draw_clouds(panel, place.samples[:1500], data[:1500], inches)
    paths = place.paths.double().numpy()
    panel.add_collection(
        LineCollection(list(paths), colors=plots.INK, linewidths=0.7, alpha=0.75, zorder=6)
    )
    panel.plot(*paths[:, 0].T, "o", markersize=2.4, color=plots.PAPER, markeredgecolor=plots.INK,
        markeredgewidth=0.6, zorder=7)
    panel.plot(*paths[:, -1].T, "o", markersize=2.2, color=plots.INK, markeredgewidth=0, zorder=8)
    strong = "bold" if (x, y) in CORNERS else "normal"
    axes.text(x - half, y + half + 0.02, place.name, size=10.5, weight=strong, color=plots.INK,
        va="bottom", zorder=6)
    axes.text(x + half, y + half + 0.02, f"({x:g}, {y:g})", size=8.5, color=plots.MUTED,
        va="bottom", ha="right", zorder=6)
    axes.text(x - half, y - half - 0.02, f"energy {place.energy:.4f}   sliced W₂ {place.sliced_w2:.2f}",
        size=8, color=plots.MUTED, va="top", zorder=6)


def _write_legend(axes: Axes, exact: bool, top: float) -> None:
    pass
