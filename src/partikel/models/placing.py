"""Where to put few steps: nodes placed for a model, a solver and a number of steps (framework §12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from partikel.errors import ConfigError, NumericsError
from partikel.errors.checks import Count, Range, checked
from partikel.models.base import Carrier, Sampling
from partikel.models.particle import ParticleModel, free_particles
from partikel.schedules import Nodes, karras_level
from partikel.solvers import AdaptiveODE, DPMSolver2M, Heun, Solver, UniPC

Told = Callable[[int, int], None]
"""Of progress: (done, total)."""

FINE = 64
"""Steps of Heun's method that count as converged."""
LOWEST = 0.002
"""Level of noise below which no node is placed, where the path goes on to 0."""
FEW = range(4, 17)
"""Numbers of steps that have a rule."""
FEW_LOWEST = 0.64
"""Lowest level of the rule for points, in standard deviations of the data over the number of steps."""
FEW_OF_IMAGES = 2.8
"""Least second level of the rule for images, in standard deviations of the data."""
EVEN = 1.0, -3.0
"""Logarithms, to the base 2, of the first and the last level of even steps that a search begins with."""
HALVINGS = 3
"""Sizes of the steps of the search for a fixed grid, each half of the one before."""
ROUNDS = 12
"""Gauss-Newton steps, or exchanges of a node."""
TRIALS = 40
"""Of a distance to data, for each step."""


@dataclass(frozen=True)
class Placement:
    """Nodes for few steps, and what they are worth on starts that were not searched with.

    Attributes:
        nodes: the times.
        error: the criterion with them.
        before: with the model's own grid of as many steps, or with evenly spread nodes of a chain.
        criterion: "path", root mean square distance of where paths end from where converged ones do; "data",
            a distance of the samples to data.
        evaluations: of the field, for one sample.
    """

    nodes: Nodes
    error: float
    before: float
    criterion: str
    evaluations: int


@checked
def place_nodes(
    model: Carrier,
    steps: Count,
    *,
    solver: Solver | None = None,
    guidance: float | None = None,
    distance: Callable[[Tensor], float] | None = None,
    held_out: Callable[[Tensor], float] | None = None,
    fixed: bool = False,
    starts: Annotated[int, Range(least=2, most=2**24)] = 512,
    real: Tensor | None = None,
    known: Nodes | None = None,
    seed: int = 0,
    told: Told | None = None,
) -> Placement:
    """Place the nodes of few steps.

    Half of the starts are searched with, the others decide: what is handed out is never worse on them
    than the model's own grid, or ``known`` nodes. For a field that was trained at its nodes only (a
    Discriminator Flow) they are some of these, never worse than evenly spread ones, and the reference is its
    own chain.

    Args:
        model: free particles.
        steps: how many.
        solver: a deterministic one; the model's own unless given.
        guidance: weight of the labels.
        distance: of samples (n, ...) to data, the criterion; without, that of the path's end.
        held_out: distance to data that are not searched with, which decides, where there are enough.
        fixed: only the best of the grids that two numbers describe, Karras's by lowest level and exponent.
        starts: how many particles, both halves together, >= 2; labels are drawn for them.
        real: samples of the data, for a field that compares with them.
        known: nodes of as many steps along a path, that the search may begin with.
        seed: of the starts.
        told: hears how far the search has come.

    Raises:
        NumericsError: for a distance that is not a number.
        ConfigError: for a model without steps, one that moves with noise, a stochastic or an adaptive solver,
            more steps than it has nodes, or than count as converged, or known nodes of another number.
    """
    free = free_particles(
        model, "only free particles take steps: a generator, or a flow map, is one call."
    )
    chosen = solver or free.solver
    if chosen.stochastic or free.diffusion is not None or free.field.draws:
        raise ConfigError(
            "nodes are placed for a path without noise: choose a deterministic solver and a model that moves "
            "by an ODE."
        )
    if isinstance(chosen, AdaptiveODE):
        raise ConfigError(
            "an adaptive solver chooses its steps itself: name one whose steps are the nodes, such as heun."
        )
    if free.follows_path and steps >= FINE:
        raise ConfigError(
            f"nodes are placed for few steps, and {FINE} count as converged: ask for fewer."
        )
    if known is not None:
        known = Nodes(times=tuple(known.of(free.grid, free.steps, free.horizon).tolist()))
        if len(known.times or ()) != steps + 1:
            raise ConfigError(f"known nodes to begin with are {steps + 1}, as those to place.")
    x, cond, sampling = *_starts(free, starts, seed), Sampling(solver=chosen, guidance=guidance)
    distances = None if distance is None else (distance, held_out or distance)
    search = _Search(free, steps, sampling, x, cond, distances, real, seed, told)
    found, plain = search.anywhere(fixed, known) if free.follows_path else search.among_own()
    before, after = search.worth(1, plain), search.worth(1, found)
    if not after < before:
        found, after = plain, before
    times = found.of(free.grid, free.steps, free.horizon)
    nodes = Nodes(times=tuple(times.tolist()))
    count = model.evaluations(real=real, sampling=replace(sampling, grid=nodes))
    return Placement(nodes, after, before, "path" if distance is None else "data", count)


def few_steps(model: Carrier, sampling: Sampling, sigma_data: float) -> Sampling:
    """How so many steps are taken where nothing was placed for them: the rule for few steps.

    In :data:`FEW`, but for its own number, steps of a model whose particles follow a path of noised data
    without noise are UniPC's, of order 2. For N steps of images the first leads from the highest level to
    max(2.8, N/2) standard deviations of the data, above which a denoiser knows little but their mean; even
    ones lead to 1/16 + 1/(2N), and the last to the end. For points it is Karras's grid of 1/ρ = -1/N, finest
    at its lowest level of .64/N, or even times where the path begins at infinite noise. They were chosen on
    Gaussians and digits.
    More steps, other models, and solvers that are asked for and not of UniPC's family keep the model's own
    grid.

    Args:
        model: any carrier.
        sampling: that asks for a number of steps.
        sigma_data: standard deviation of the data.
    """
    steps = None if sampling.grid is None else sampling.grid.steps
    if steps is None or not isinstance(model, ParticleModel) or not model.follows_path:
        return sampling
    noisy = model.diffusion is not None or model.solver.stochastic
    known = sampling.solver is None or isinstance(sampling.solver, (UniPC, DPMSolver2M))
    if noisy or not known or steps not in FEW or steps == model.steps:
        return sampling
    place = _Places(model, steps)
    if len(model.shape or ()) > 1:
        ends = max(FEW_OF_IMAGES, steps / 2), 1 / 16 + 1 / (2 * steps)
        nodes = place.even(*(math.log2(share * sigma_data) for share in ends))
    elif place.by_level:
        lowest = max(FEW_LOWEST / steps * sigma_data, LOWEST)
        nodes = place.fixed(math.log2(lowest), -1 / steps)
    else:
        nodes = place.fixed(0.0, 0.0)
    if nodes is None:
        return sampling
    return replace(sampling, grid=nodes, solver=sampling.solver or UniPC())


def may_be_of(model: Carrier, nodes: Nodes) -> bool:
    """Whether nodes may have been placed for a model: to its horizon, among its own if it knows no others."""
    if not isinstance(model, ParticleModel) or nodes.times is None:
        return False
    own = model.grid.nodes(model.steps).tolist()
    at_end = math.isclose(nodes.times[-1], model.horizon)
    return at_end and (model.follows_path or {*nodes.times} <= {*own})


def _starts(model: ParticleModel, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
    device = next(model.parameters(), torch.empty(0)).device
    generator = torch.Generator(device).manual_seed(seed)
    return model.start(n, generator), model.labels(n, generator=generator)


@dataclass
class _Search:
    """Starts in two halves, the first to search with, and what a set of nodes makes of them."""

    model: ParticleModel
    steps: int
    sampling: Sampling
    x: Tensor
    cond: Tensor | None
    distances: tuple[Callable[[Tensor], float], Callable[[Tensor], float]] | None
    real: Tensor | None
    seed: int
    told: Told | None
    done: int = 0

    def __post_init__(self) -> None:
        """Follow all starts to where converged paths end, or a field's own chain."""
        self.ends: list[Tensor] = []
        if self.distances is None:
            fine = replace(self.sampling, grid=Nodes(FINE), solver=Heun())
            if not self.model.follows_path:
                fine = replace(self.sampling, solver=None)
            self.ends = [self._drawn(half, fine) for half in (0, 1)]

    def _drawn(self, half: int, sampling: Sampling) -> Tensor:
        middle = len(self.x) // 2
        rows = slice(middle) if half == 0 else slice(middle, None)
        generator = torch.Generator(self.x.device).manual_seed(self.seed)
        return self.model.sample(
            len(self.x[rows]),
            generator=generator,
            start=self.x[rows],
            cond=None if self.cond is None else self.cond[rows],
            real=self.real,
            sampling=sampling,
        )

    def residuals(self, half: int, nodes: Nodes) -> Tensor:
        """(n, D) where paths end less where they should, each entry over √n."""
        ends = self._drawn(half, replace(self.sampling, grid=nodes))
        return ((ends - self.ends[half]).flatten(1) / math.sqrt(len(ends))).double().cpu()

    def worth(self, half: int, nodes: Nodes) -> float:
        """The criterion: lower is better."""
        if self.distances is not None:
            found = float(
                self.distances[half](self._drawn(half, replace(self.sampling, grid=nodes)))
            )
            if math.isnan(found):
                raise NumericsError(
                    "the distance of samples to data is not a number: choose another."
                )
            return found
        return float(self.residuals(half, nodes).norm())

    def counted(self, total: int) -> None:
        """One more trial."""
        self.done += 1
        if self.told is not None:
            self.told(min(self.done, total), total)

    @property
    def _own(self) -> Nodes:
        """The model's own grid."""
        return Nodes(times=tuple(self.model.grid.nodes(self.steps).tolist()))

    # --- along a path of noise

    def anywhere(self, fixed: bool, known: Nodes | None) -> tuple[Nodes, Nodes]:
        """What was found, and the model's own grid.

        By Gauss-Newton steps on the logarithms of the gaps, from the best fixed grid, of even steps or of
        Karras's, or from known nodes; by a search without derivatives, where the criterion has none.
        """
        from scipy.optimize import least_squares, minimize  # a tenth of a second

        place, own = _Places(self.model, self.steps), self._own
        trials = 0 if fixed else (ROUNDS if self.distances is None else TRIALS) * self.steps
        total = (1 if fixed else 2) * TRIALS + trials
        best = self._fixed(place.fixed, place.begin, place.strides, total)
        if not fixed:
            even = self._fixed(place.even, EVEN, (1.0, 1.0), total)
            best = min(best, even, known or even, key=lambda nodes: self.worth(0, nodes))
        if fixed or self.steps == 1:
            return best, own
        theta = place.gaps(best)

        def missed(gaps: np.ndarray) -> Any:
            self.counted(total)
            nodes = place.nodes(gaps)
            if self.distances is not None:
                return self.worth(0, nodes)
            return self.residuals(0, nodes).flatten().numpy()

        if self.distances is None:
            # a few paths that go astray do not decide
            scale = 0.2 / math.sqrt(len(self.x) // 2)
            result = least_squares(
                missed, theta, diff_step=1e-2, max_nfev=ROUNDS, loss="soft_l1", f_scale=scale
            )
        else:
            result = minimize(missed, theta, method="Nelder-Mead", options={"maxfev": trials})
        tried = [best, place.nodes(result.x), known or best]
        return min(tried, key=lambda nodes: self.worth(1, nodes)), own

    def _fixed(
        self,
        grid: Callable[[float, float], Nodes | None],
        begin: tuple[float, float],
        strides: tuple[float, float],
        total: int,
    ) -> Nodes:
        """The best of grids of two numbers: to the best neighbour until there is none, without edges."""
        known: dict[tuple[float, float], float] = {}

        def worth(at: tuple[float, float]) -> float:
            if at not in known:
                self.counted(total)
                nodes = grid(*at)
                known[at] = math.inf if nodes is None else self.worth(0, nodes)
            return known[at]

        best = begin
        for halving in range(HALVINGS):
            first, second = (step / 2**halving for step in strides)
            while True:
                a, b = best
                around = [(a - first, b), (a + first, b), (a, b - second), (a, b + second)]
                nearest = min(around, key=worth)
                if worth(nearest) >= worth(best):
                    break
                best = nearest
        return grid(*best) or self._own

    # --- among the nodes that a field was trained at

    def among_own(self) -> tuple[Nodes, Nodes]:
        """What was found, and evenly spread ones: exchanges of single nodes, until none is better."""
        count = self.model.steps
        times = self.model.grid.nodes(count).tolist()
        if self.steps > count:
            raise ConfigError(
                f"this model's field was trained at its {count} nodes: ask for at most {count} steps."
            )

        def nodes(of: list[int]) -> Nodes:
            return Nodes(times=tuple(times[k] for k in (0, *sorted(of), count)))

        inner = [round(k * count / self.steps) for k in range(1, self.steps)]
        even, total = nodes(inner), ROUNDS * self.steps
        best, improved = self.worth(0, even), self.steps < count
        while improved and self.done < total:
            improved = False
            for place in range(len(inner)):
                for shift in (-1, 1, -3, 3):
                    other = inner.copy()
                    other[place] += shift
                    if len({0, count, *other}) < self.steps + 1 or not 0 < other[place] < count:
                        continue
                    self.counted(total)
                    if (worth := self.worth(0, nodes(other))) < best:
                        best, inner, improved = worth, other, True
        return nodes(inner), even


class _Places:
    """Between n nodes and what describes them: along log σ, or along t where σ begins at infinity.

    Attributes:
        begin: the two numbers of a fixed grid that a search begins with.
        strides: the first steps from there.
    """

    def __init__(self, model: ParticleModel, steps: int) -> None:
        assert model.schedule is not None
        self.schedule, self.steps, self.horizon = model.schedule, steps, model.horizon
        self.by_level = math.isfinite(self.schedule.sigma_max)
        self.lowest = max(self.schedule.sigma_end, LOWEST)
        if self.by_level:
            self.ends = math.log(self.schedule.sigma_max), math.log(self.lowest)
            begin = min(max(-3.0, math.log2(self.lowest)), math.log2(self.schedule.sigma_max / 2))
            self.begin, self.strides = (begin, 0.25), (2.0, 0.25)
        else:
            self.ends = 0.0, self.horizon
            self.begin, self.strides = (0.0, 0.0), (1.0, 1.0)

    def fixed(self, first: float, second: float) -> Nodes | None:
        """The grid of two numbers, or None where there is none.

        Along σ they are the logarithm of the lowest level, to the base 2, and 1/ρ of Karras's grid: at 0 the
        geometric one, with finer steps at low levels below. Along t nodes are T (1 - (1 - w^p)^q) of even w,
        with the logarithms of p and q.
        """
        if self.by_level:
            low, high = 2.0**first, self.schedule.sigma_max
            if not self.lowest <= low <= high / 2:
                return None
            place = torch.linspace(0, 1, self.steps, dtype=torch.float64)[1:]
            even = high * torch.pow(low / high, place)
            levels = karras_level(place, low, high, 1 / second) if second else even
            times = self.schedule.time(levels)
        else:
            place = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)[1:-1]
            times = self.horizon * (1 - (1 - place**2.0**first) ** 2.0**second)
        times = [0.0, *times.tolist(), self.horizon]
        return Nodes(times=tuple(times)) if all(a < b for a, b in pairwise(times)) else None

    def even(self, first: float, last: float) -> Nodes | None:
        """From the highest level to one below, by even steps along σ to the last, and to the end; or None.

        Args:
            first: logarithm of the level below the highest, to the base 2.
            last: of the last one.
        """
        first, last = 2.0**first, max(2.0**last, self.lowest)
        if self.steps < 3 or not last < first <= self.schedule.sigma_max * (1 - 1 / self.steps):
            return None
        levels = torch.linspace(first, last, self.steps - 1, dtype=torch.float64)
        return Nodes(times=(0.0, *self.schedule.time(levels).tolist(), self.horizon))

    def gaps(self, nodes: Nodes) -> np.ndarray:
        """(n,) logarithms of the gaps."""
        assert nodes.times is not None
        inner = torch.tensor(nodes.times[1:-1], dtype=torch.float64)
        places = self.schedule.sigma(inner).log() if self.by_level else inner
        first, last = self.ends
        share = ((places - first) / (last - first)).clamp(1e-4, 1 - 1e-4).tolist()
        return np.log([max(1e-4, b - a) for a, b in pairwise([0.0, *share, 1.0])])

    def nodes(self, gaps: np.ndarray) -> Nodes:
        """Nodes of these gaps, which sum to the whole path."""
        share = np.exp(gaps - gaps.max())
        inner = torch.from_numpy(np.cumsum(share / share.sum())[:-1])
        first, last = self.ends
        places = first + (last - first) * inner
        times = self.schedule.time(places.exp()) if self.by_level else places
        return Nodes(times=(0.0, *times.tolist(), self.horizon))
