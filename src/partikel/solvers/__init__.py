"""Solvers: one loop, in which a subclass writes one ``step``.

They integrate ``dx = drift(x, t) dt + diffusion(t) dW`` forward in generation time. Noise enters as
Brownian increments asked for by time interval, so that it is independent of the steps taken.

The orders of convergence are what the tests measure; "evaluations" are those of N steps.

| solver | integrates | order | evaluations |
|---|---|---|---|
| :class:`Euler` | ODEs | 1 | N |
| :class:`Heun` | ODEs (and churns) | 2 | 2N |
| :class:`Midpoint` | ODEs | 2 | 2N |
| :class:`RK4` | ODEs | 4 | 4N |
| :class:`DDIM` | ODEs with a schedule, the linear part exactly | 1 | N |
| :class:`DPMSolver2M` | likewise | 2 | N |
| :class:`UniPC` of order p | likewise, corrected | p + 1, after short first steps | N |
| :class:`DPMSolver2MSDE` | a flow's reverse SDE, its linear part exactly | weak 1 | N |
| :class:`AdaptiveODE` | ODEs, to a tolerance | that of its method | as many as it takes |
| :class:`EulerMaruyama` | SDEs | strong 1, weak 1 | N |
| :class:`StochasticHeun` | SDEs | strong 1, weak 2 | 2N |
| :class:`SRA1` | SDEs | strong 3/2, weak 2 | 2N |
| :class:`PredictorCorrector` | whatever its predictor does | see there | the predictor's + N n |

Methods that need the drift at the end of a step make their last step Euler's where it does not exist
there (a score at σ = 0), and save an evaluation.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from partikel.solvers.base import Drift, Dynamics, Solver, State, Step
from partikel.solvers.exponential import DDIM, DPMSolver2M, DPMSolver2MSDE, UniPC
from partikel.solvers.noise import Brownian, BrownianMotion, BrownianPath, brownian_increments
from partikel.solvers.ode import (
    ADAPTIVE,
    RK4,
    AdaptiveODE,
    Euler,
    Heun,
    Midpoint,
    solve_adaptively,
)
from partikel.solvers.sde import SRA1, EulerMaruyama, PredictorCorrector, StochasticHeun

SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": Euler,
    "heun": Heun,
    "midpoint": Midpoint,
    "rk4": RK4,
    "ddim": DDIM,
    "dpmpp-2m": DPMSolver2M,
    "unipc-2": UniPC,
    "unipc-3": partial(UniPC, 3),
    "dpmpp-2m-sde": DPMSolver2MSDE,
    "adaptive": AdaptiveODE,
    "euler-maruyama": EulerMaruyama,
    "stochastic-heun": StochasticHeun,
    "sra1": SRA1,
    "predictor-corrector": PredictorCorrector,
}
"""Every solver by the name that configurations use."""

Deterministic: TypeAlias = Literal["heun", "euler", "ddim", "dpmpp-2m", "unipc-2", "unipc-3"]
"""Names of those that carry a probability flow of noised data."""

__all__ = [
    "ADAPTIVE",
    "DDIM",
    "RK4",
    "SOLVERS",
    "SRA1",
    "AdaptiveODE",
    "Brownian",
    "BrownianMotion",
    "BrownianPath",
    "DPMSolver2M",
    "DPMSolver2MSDE",
    "Deterministic",
    "Drift",
    "Dynamics",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Midpoint",
    "PredictorCorrector",
    "Solver",
    "State",
    "Step",
    "StochasticHeun",
    "UniPC",
    "brownian_increments",
    "solve_adaptively",
]
