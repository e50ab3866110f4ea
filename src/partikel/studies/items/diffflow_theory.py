"""DiffFlow's theory, measured: Proposition 2, Lemma 1, Theorems 1 and 2, and what it says of GANs.

The checks are those of ``partikel verify``: exact fields, laws in closed form where there are any, and
simulated particles against the fluctuations of draws where there are none. Here they stand by theorem.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from partikel.metrics.chance import LEVEL
from partikel.studies.benches import FIVE, on
from partikel.studies.item import Item, Outcome, Table
from partikel.studies.judgement import Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.theory import PARTS, Check, Part, convergence_runs, kl_figure, measured

FIXED: tuple[Part, ...] = ("invariance", "matched", "convergence")
"""Parts without a random draw."""


@dataclass(frozen=True)
class Plan:
    """What is checked.

    Attributes:
        seeds: of networks and particles; what is exact is computed once.
        samples: particles of each simulation.
        parts: of the theory.
    """

    seeds: tuple[int, ...] = FIVE
    samples: int = 10_000
    parts: tuple[Part, ...] = PARTS


GROUPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "forms": (
        "Two forms of the drift, by the generated law's score and by a discriminator's, are equal.",
        "DiffFlow §3.4.1, eq. 28",
        ("DiffFlow eqs. 4, 28",),
    ),
    "gan": (
        "A GAN's updates are those of the DiffODE: logistic regression, and one step of the generator's "
        "least-squares fit to moved particles, with β = sigmoid(±d) or 1.",
        "DiffFlow §3.3.1, eqs. 19-27",
        ("DiffFlow eqs. 20, 22", "DiffFlow eqs. 23-25", "DiffFlow eqs. 26-27", "DiffFlow §3.3.2"),
    ),
    "invariance": (
        "The marginal laws do not change with g (Marginal Preserving Property).",
        "DiffFlow Proposition 2",
        ("DiffFlow Proposition 2",),
    ),
    "points": (
        "Diffusion SDEs and ODEs are points of the plane: from the exact start their laws are the forward "
        "process's; λ sets how stochastic they are.",
        "DiffFlow §3.2, §3.4.3",
        ("framework §6",),
    ),
    "descent": (
        "The KL divergence falls along the flow, at the rate β times the Fisher divergence.",
        "DiffFlow Lemma 1",
        ("DiffFlow Lemma 1",),
    ),
    "convergence": (
        "The law converges to the smoothed data.",
        "DiffFlow Theorem 1",
        ("DiffFlow Theorem 1",),
    ),
    "rate": (
        "Under a log-Sobolev inequality KL(ρ_t) ≤ KL(ρ_0) exp(-2βCt).",
        "DiffFlow Theorem 2, §4.2",
        ("DiffFlow Theorem 2", "DiffFlow §4.2", "framework §7"),
    ),
}
"""Claim, where the paper makes it, and what the sources of its checks begin with."""
SIMULATED = ("invariance", "points", "convergence")
"""Those that particles are simulated for, too."""
_LEFT = "what the check that is nearest to failing leaves of what it is allowed to be off by"
CLAIMS = {
    name: Claim(text, source, f"{_LEFT}: rounding, or an integrator's error", 0.0, kind="exact")
    for name, (text, source, _) in GROUPS.items()
} | {
    f"{name}, simulated": Claim(
        *GROUPS[name][:2],
        f"{_LEFT}: what all simulations together are off by with a probability of {1 - LEVEL:.0%}",
        0.0,
        "share of what is allowed",
    )
    for name in SIMULATED
}


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Run the checks, and set them by theorem."""
    runs = functools.cache(convergence_runs)

    def checked(fixed: bool, seed: int) -> list[dict[str, Any]]:
        parts: tuple[Part, ...] = tuple(p for p in plan.parts if (p in FIXED) is fixed)
        lab.say(f"checking {', '.join(parts)}, seed {seed}")
        options: dict[str, Any] = {"samples": plan.samples, "seed": seed, "parts": parts}
        return [asdict(check) for check in measured(runs(), chance=1 - LEVEL, **options)]

    fixed = lab.once("exact", lambda: checked(True, 0))
    own = [lab.once(f"seed-{s}", lambda s=s: checked(False, s)) for s in plan.seeds]
    seeds = [[Check(**each) for each in (*fixed, *those)] for those in own]
    if "convergence" in plan.parts:
        caption = (
            "KL along flows of constant noise, towards a Gaussian: lines are closed forms or quadrature, "
            "markers particles at several g."
        )
        lab.draw(kl_figure(runs(), plan.samples, plan.seeds[0]), caption)
    table = Table.of(
        f"All checks, seed {plan.seeds[0]}",
        [check for name in GROUPS for check in seeds[0] if _of(name, check)],
        {
            "claim": lambda check: check.claim,
            "source": lambda check: check.source,
            "measured": lambda check: check.measured,
            "": lambda check: check.relation,
            "expected": lambda check: check.expected,
            "may be off by": lambda check: check.tolerance,
            "holds": lambda check: "yes" if check.holds else "NO",
        },
    )
    protocol = {"particles": plan.samples, "seeds": len(plan.seeds), "solver": "stochastic Heun"}
    notes = (
        "`partikel verify` runs the same checks, and allows simulations more, so that it is wrong in one of "
        "a hundred runs. Sources named framework are consequences of the paper's equations that it does "
        "not state itself.",
        "Simulated laws are compared with draws of the law they should end in: by the energy distance and "
        "its quantile between two such draws, and by the mean log-density and its standard error.",
    )
    return Outcome(findings(seeds), (table,), {"exact": fixed, "seeds": own}, protocol, notes)


def findings(seeds: Sequence[Sequence[Check]]) -> list[Finding]:
    """A finding of what is exact, and one of what was simulated, for each claim that was checked.

    Args:
        seeds: all checks, seed by seed.
    """
    found = []
    for key, claim in CLAIMS.items():
        name, _, simulated = key.partition(", ")
        own = [[c for c in those if _of(name, c) and c.drawn is bool(simulated)] for those in seeds]
        every = list(dict.fromkeys(check for those in own for check in those))
        if not every:
            continue
        nearest = min(every, key=lambda check: check.margin)
        tolerance = f" ± {nearest.tolerance:.2g}" if nearest.relation == "=" else ""
        effects = [min(check.margin for check in those) for those in own]
        found.append(
            claim.found(
                on("exact fields", seeds) if simulated else "exact fields",
                f"{sum(check.holds for check in every)} of {len(every)} checks hold. Nearest to failing: "
                f"{nearest.claim}: {nearest.measured:.3g}, claimed {nearest.relation} "
                f"{nearest.expected:.3g}{tolerance}.",
                effects if simulated else [min(effects)],
            )
        )
    return found


def _of(name: str, check: Check) -> bool:
    return check.source.startswith(GROUPS[name][2])


ITEM = Item(
    "diffflow-theory",
    "DiffFlow Propositions 1-2, Lemma 1, Theorems 1-2",
    "DiffFlow's theory, measured",
    "The marginal laws of the SDE do not depend on g, so that GANs turn into diffusion models smoothly; KL "
    "falls along it, the law converges to the smoothed data, and at a linear rate under a log-Sobolev "
    "inequality. GANs are coarse approximations of its ODE.",
    {
        "smoke": Plan((0,), 500, ("forms", "gan", "lambda", "convergence")),
        "cpu": Plan(),
        "paper": Plan(samples=50_000),
    },
    measure,
    CLAIMS,
)
