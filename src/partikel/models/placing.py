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

from partikel.errors import ConfigError
from partikel.errors.checks import Count, Range, checked
from partikel.models.base import Carrier, Sampling
from partikel.models.particle import ParticleModel, free_particles
from partikel.schedules import KarrasGrid, Nodes
from partikel.solvers import Heun, Solver

Told = Callable[[int, int], None]
"""Of progress: (done, total)."""

FINE = 64
"""Steps of Heun's method that count as converged."""
LOWEST = 0.002
"""Level of noise below which no node is placed, where the path goes on to 0."""
SEARCHED = tuple(
    (low, rho) for low in (0.002, 0.02, 0.1, 0.2, 0.4, 0.8) for rho in (3.0, 7.0, 20.0, 60.0)
)
"""Karras's grids that the search begins from: the best of them, by lowest level and exponent."""
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
    starts: Annotated[int, Range(least=2, most=2**24)] = 512,
    real: Tensor | None = None,
    seed: int = 0,
    told: Told | None = None,
) -> Placement:
    """Place the nodes of few steps.

    Half of the starts are searched with, the others decide: what is handed out is never worse on them
    than the model's own grid. For a field that was trained at its nodes only (a Discriminator Flow) they
    are some of these, never worse than evenly spread ones, and the reference is its own chain.

    Args:
        model: free particles.
        steps: how many.
        solver: a deterministic one; the model's own unless given.
        guidance: weight of the labels.
        distance: of samples (n, ...) to data, the criterion; without, that of the path's end.
        starts: how many particles, both halves together, >= 2; labels are drawn for them.
        real: samples of the data, for a field that compares with them.
        seed: of the starts.
        told: hears how far the search has come.

    Raises:
        ConfigError: for a model without steps, one that moves with noise, a stochastic solver, or more steps
            than it has nodes.
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
    x, cond, sampling = *_starts(free, starts, seed), Sampling(solver=chosen, guidance=guidance)
    search = _Search(free, steps, sampling, x, cond, distance, real, seed, told)
    found, plain = search.anywhere() if free.follows_path else search.among_own()
    before, after = search.worth(1, plain), search.worth(1, found)
    if not after < before:
        found, after = plain, before
    times = found.of(free.grid, free.steps, free.horizon)
    nodes = Nodes(times=tuple(times.tolist()))
    count = model.evaluations(real=real, sampling=replace(sampling, grid=nodes))
    return Placement(nodes, after, before, "path" if distance is None else "data", count)


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
    distance: Callable[[Tensor], float] | None
    real: Tensor | None
    seed: int
    told: Told | None
    done: int = 0

    def __post_init__(self) -> None:
        """Follow all starts to where converged paths end, or a field's own chain."""
        self.ends: list[Tensor] = []
        if self.distance is None:
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
        if self.distance is not None:
            return self.distance(self._drawn(half, replace(self.sampling, grid=nodes)))
        return float(self.residuals(half, nodes).norm())

    def counted(self, total: int) -> None:
        """One more trial."""
        self.done += 1
        if self.told is not None:
            self.told(min(self.done, total), total)

    # --- along a path of noise

    def anywhere(self) -> tuple[Nodes, Nodes]:
        """What was found, and the model's own grid.

        By Gauss-Newton steps on the logarithms of the gaps, from the best of Karras's grids; by a search
        without derivatives, where the criterion has none.
        """
        from scipy.optimize import least_squares, minimize  # a tenth of a second

        place = _Places(self.model, self.steps)
        trials = (ROUNDS if self.distance is None else TRIALS) * self.steps
        total = len(place.grids) + trials
        found: list[tuple[float, int, Nodes]] = []
        for grid in place.grids:
            found.append((self.worth(0, grid), len(found), grid))
            self.counted(total)
        best = min(found)
        if self.steps == 1:
            return best[2], Nodes(self.steps)
        theta = place.gaps(best[2])

        def missed(gaps: np.ndarray) -> Any:
            self.counted(total)
            nodes = place.nodes(gaps)
            if self.distance is not None:
                return self.worth(0, nodes)
            return self.residuals(0, nodes).flatten().numpy()

        if self.distance is None:
            # a few paths that go astray do not decide
            scale = 0.2 / math.sqrt(len(self.x) // 2)
            result = least_squares(
                missed, theta, diff_step=1e-2, max_nfev=ROUNDS, loss="soft_l1", f_scale=scale
            )
        else:
            result = minimize(missed, theta, method="Nelder-Mead", options={"maxfev": trials})
        tried = [best[2], place.nodes(result.x)]
        return min(tried, key=lambda nodes: self.worth(1, nodes)), Nodes(self.steps)

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
    """Between the gaps of n nodes and their times: along log σ, or along t where σ begins at infinity."""

    def __init__(self, model: ParticleModel, steps: int) -> None:
        assert model.schedule is not None
        self.schedule, self.steps, self.horizon = model.schedule, steps, model.horizon
        self.by_level = math.isfinite(self.schedule.sigma_max)
        lowest = max(self.schedule.sigma_end, LOWEST)
        times = [Nodes(steps).of(model.grid, model.steps, model.horizon)]
        if self.by_level:
            self.ends = math.log(self.schedule.sigma_max), math.log(lowest)
            times += [
                KarrasGrid(self.schedule, low, rho).nodes(steps)
                for low, rho in SEARCHED
                if lowest <= low < self.schedule.sigma_max
            ]
        else:
            self.ends = 0.0, self.horizon
            times += [
                self.horizon * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power
                for power in (0.5, 0.7, 1.0, 1.5, 2.0)
            ]
        self.grids = [Nodes(times=tuple(each.tolist())) for each in times]

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
