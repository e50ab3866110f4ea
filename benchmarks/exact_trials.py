"""Every preset of the plane as a trial (``partikel.studies.theory``), and whether its particles end right.

For tests/test_exact_presets.py and benchmarks/exact_presets.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from partikel.diffflow import DiffFlow
from partikel.fields import ExactScoreField
from partikel.metrics import energy_distance, sliced_wasserstein2
from partikel.metrics.chance import energy_quantile, quantile_between
from partikel.schedules import (
    ConstantSchedule,
    EDMSchedule,
    Schedule,
    SubVPSchedule,
    UniformGrid,
    VESchedule,
    VPSchedule,
)
from partikel.streams import derive_seed, seeded
from partikel.studies import theory
from partikel.studies.theory import (
    GAUSSIAN,
    MIXTURE,
    Draw,
    Trial,
    drawn_from,
    known_laws,
    noised_by,
)
from partikel.targets import Gaussian, GaussianMixture

PATHS: dict[str, Schedule] = {
    "VE": VESchedule(40.0),
    "Karras": EDMSchedule(40.0),
    "VP": VPSchedule(),
    "sub-VP": SubVPSchedule(),
}
"""The paths of :func:`trials`."""
MATCHED = {
    "SDE": (2.0, 1.0),
    "ODE": (2.0, 2.0),
    "Diffusion-GAN, g² = 1.5β": (1.5, 1.0),
    "Diffusion-GAN without noise": (1.0, 1.0),
    "SLCD, λ² = 1.5β": (2.0, 1.5),
    "SLCD, λ² = 0.5β": (2.0, 0.5),
    "SLCD, g² = 3β": (3.0, 1.0),
}
"""Points at which the optimal discriminator is constant, from the exact law at t = 0."""


def exact_targets(dim: int) -> tuple[GaussianMixture, Gaussian]:
    """A mixture of three components and a Gaussian in R^dim, both asymmetric and anisotropic."""
    if dim == 2:
        return MIXTURE, GAUSSIAN
    generator = seeded(0, "verify", "targets", dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    roots = normal(3, dim, dim) / dim**0.5
    widths = torch.tensor([0.5, 0.25, 0.3], dtype=torch.float64)[:, None, None]
    covariances = widths * (roots @ roots.mT) + 0.05 * torch.eye(dim, dtype=torch.float64)
    axes, _ = torch.linalg.qr(normal(dim, dim))
    variances = torch.linspace(0.2, 1.5, dim, dtype=torch.float64)
    return (
        GaussianMixture(normal(3, dim), covariances, weights=[0.5, 0.3, 0.2]),
        Gaussian(normal(dim), (axes * variances) @ axes.mT),
    )


def matched_trial(preset: str, dim: int, path: Schedule, g2: float, lambda2: float) -> Trial:
    """A point on the line of the forward SDE, on the mixture of :func:`exact_targets`."""
    return theory.matched_trial(preset, exact_targets(dim)[0], path, g2, lambda2)


def trials(dim: int) -> Iterator[Trial]:
    """Every preset of framework §6 whose end the theory knows, with exact fields, in R^dim.

    Where d is constant, and for annealed Langevin dynamics, which needs no discriminator, the target
    is a mixture, and the start its exact law at σ_max. Where ∇d needs ρ_t's own score, it is a Gaussian.
    The saturating and the non-saturating GAN are not among them: their β(d) makes laws that have no
    closed form even there.
    """
    for name, path in PATHS.items():
        for preset, (g2, lambda2) in MATCHED.items():
            yield matched_trial(f"{name} {preset}", dim, path, g2, lambda2)
    yield annealed_trial(dim)
    for preset in CLOSED_FORM:
        yield closed_form_trial(preset, dim)


def annealed_trial(dim: int, *, strength: float = 100.0, steps: int = 800) -> Trial:
    """Annealed Langevin dynamics on the mixture.

    β = strength (σ² + 0.2) keeps pace with p_σ, whose relaxation takes a time of (variance + σ²)/β: with
    β in proportion to g_s² the last levels would pass too fast for it.
    """
    target, _ = exact_targets(dim)
    path, beta = _paced(strength)
    flow, grid = DiffFlow.annealed_langevin(path, beta), UniformGrid(path.horizon)
    start, end = noised_by(target, path, 0.0, torch.float32), drawn_from(target, torch.float32)
    exact = ExactScoreField(target)
    return Trial("annealed Langevin", "mixture", flow, exact, None, grid, steps, start, end)


CLOSED_FORM: dict[str, tuple[Callable[[], DiffFlow], int, str]] = {
    "Langevin": (lambda: DiffFlow.langevin(horizon=16.0), 640, "Gaussian"),
    "GAN, β = 1": (lambda: DiffFlow.gan("logit", horizon=16.0), 640, "Gaussian"),
    "DiffODE-GAN": (lambda: DiffFlow.diffode_gan(*_paced(100.0)), 800, "Gaussian"),
    "Diffusion-GAN, λ² = 0": (
        lambda: DiffFlow.diffode_gan(*_paced(100.0)).diffusion_gan(1.0),
        800,
        "Gaussian",
    ),
    "SLCD at the SDE's β, λ² = 1.5β": (
        lambda: DiffFlow.reverse(PATHS["VE"]).slcd(1.5),
        400,
        "SLCD's own",
    ),
    "continuation, g² = β, λ² = -0.5β": (
        lambda: DiffFlow.reverse(PATHS["VE"]).continuation(-0.5).with_g2(1.0),
        400,
        "the continuation's own",
    ),
}
"""Points at which d is not constant: how they are made, steps, and where they end."""


def closed_form_trial(preset: str, dim: int) -> Trial:
    """One of :data:`CLOSED_FORM`, on a Gaussian: ∇d = u s_p - s_ρ, with ρ_t by its moments.

    It starts from N(0, I) at a single noise level, and from the exact law at σ_max along a path.
    """
    _, target = exact_targets(dim)
    build, steps, law = CLOSED_FORM[preset]
    flow = build()
    path = flow.schedule
    start = Gaussian([0.0] * dim, std=1.0)
    if not isinstance(path, ConstantSchedule):
        noise = path.sigma_max**2 * torch.eye(dim, dtype=torch.float64)
        start = Gaussian(target.mean, target.covariance + noise)
    trial, settled = known_laws(flow, target, start, steps)
    first = drawn_from(start, torch.float32)
    last = drawn_from(target if law == "Gaussian" else settled, torch.float32)
    return replace(trial, preset=preset, law=law, start=first, end=last)


def _paced(strength: float) -> tuple[Schedule, Callable[[Tensor], Tensor]]:
    """The VE path, and β = strength (σ² + 0.2) along it."""
    path = PATHS["VE"]
    return path, lambda t: strength * (path.sigma(t) ** 2 + 0.2)


@dataclass(frozen=True)
class Endings:
    """Distances of a trial's particles to the law they should end in, and what draws of it have.

    Attributes:
        evaluations: of the drift, for each particle.
        energy: energy distance, of each run.
        sliced_w2: sliced Wasserstein-2 distance, of each run.
        energy_limit: the quantile between two draws of the law.
        sliced_w2_limit: the same.
        below: whether each run is below both quantiles.
    """

    evaluations: int
    energy: list[float]
    sliced_w2: list[float]
    energy_limit: float
    sliced_w2_limit: float

    @property
    def below(self) -> list[bool]:
        """Whether each run is below both quantiles."""
        pairs = zip(self.energy, self.sliced_w2, strict=True)
        return [e < self.energy_limit and w < self.sliced_w2_limit for e, w in pairs]

    @property
    def holds(self) -> bool:
        """Whether most runs are below: one of a hundred is not, by the quantile's meaning."""
        return sum(self.below) > len(self.below) / 2


def limits(
    draw: Draw,
    n: int,
    *,
    level: float = 0.99,
    pairs: int = 200,
    projections: int = 512,
    seed: int = 0,
) -> tuple[float, float]:
    """Quantiles of the energy distance and of sliced W2 between two draws of n points of one law.

    Args:
        draw: draws of the law.
        n: points of a draw.
        level: in (0, 1).
        pairs: draws of sliced W2; those of the energy distance are
            :func:`partikel.metrics.chance.energy_quantile`'s.
        projections: lines of sliced W2.
        seed: of all draws.
    """
    energy = energy_quantile(draw(1000, seeded(seed, "verify", "cloud")), n, n, level, seed)
    sliced = partial(sliced_wasserstein2, projections=projections)
    source = seeded(seed, "verify", "pairs")
    return energy, quantile_between(sliced, draw, n, pairs, level, source)


def run_trial(
    trial: Trial,
    quantiles: tuple[float, float],
    n: int,
    *,
    runs: int = 3,
    projections: int = 512,
    seed: int = 0,
) -> Endings:
    """Run a trial until most of ``runs`` agree on whether it is below the :func:`limits`.

    Args:
        trial: what to run.
        quantiles: :func:`limits` of the trial's end, at as many points and lines.
        n: particles.
        runs: odd.
        projections: lines of sliced W2.
        seed: of all draws.
    """
    found = Endings(0, [], [], *quantiles)
    for run in range(runs):
        own = derive_seed(seed, trial.preset, run)
        state, data = trial.run(n, own), trial.end(n, seeded(own, "verify", "reference"))
        found.energy.append(energy_distance(state.x, data))
        found.sliced_w2.append(sliced_wasserstein2(state.x, data, projections))
        found = replace(found, evaluations=state.evaluations)
        if max(sum(found.below), run + 1 - sum(found.below)) > runs / 2:
            break
    return found
