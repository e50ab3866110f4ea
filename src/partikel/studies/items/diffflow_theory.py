"""DiffFlow's theory, measured: Proposition 2, Lemma 1, Theorems 1 and 2, and what it says of GANs.

The checks are those of ``partikel verify``: exact fields, laws in closed form where there are any, and
simulated particles against the fluctuations of draws where there are none. Here they stand by theorem.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from partikel.studies.benches import on
from partikel.studies.item import Finding, Item, Outcome, Table
from partikel.studies.lab import Lab
from partikel.studies.theory import PARTS, Check, Part, convergence_runs, kl_figure, measured

EXACT: tuple[Part, ...] = ("invariance", "matched", "convergence")
"""Parts without a random draw."""


@dataclass(frozen=True)
class Plan:
    """What is checked.

    Attributes:
        seeds: of networks and particles; what is exact is computed once.
        samples: particles of each simulation.
        parts: of the theory.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 10_000
    parts: tuple[Part, ...] = PARTS


@dataclass(frozen=True)
class Group:
    """Checks of one claim.

    Attributes:
        claim: what the paper says.
        source: where it says so.
        checks: what the checks' sources begin with; with ``source`` itself unless given.
    """

    claim: str
    source: str
    checks: tuple[str, ...] = ()


GROUPS = (
    Group(
        "Two forms of the drift, by the generated law's score and by a discriminator's, are equal.",
        "DiffFlow §3.4.1, eq. 28",
        ("DiffFlow eqs. 4, 28",),
    ),
    Group(
        "A GAN's updates are those of the DiffODE: logistic regression, and one step of the generator's "
        "least-squares fit to moved particles, with β = sigmoid(±d) or 1.",
        "DiffFlow §3.3.1, eqs. 19-27",
        ("DiffFlow eqs. 20, 22", "DiffFlow eqs. 23-25", "DiffFlow eqs. 26-27", "DiffFlow §3.3.2"),
    ),
    Group(
        "The marginal laws do not change with g (Marginal Preserving Property).",
        "DiffFlow Proposition 2",
    ),
    Group(
        "Diffusion SDEs and ODEs are points of the plane: from the exact start their laws are the forward "
        "process's; λ sets how stochastic they are.",
        "DiffFlow §3.2, §3.4.3",
        ("framework §6",),
    ),
    Group(
        "The KL divergence falls along the flow, at the rate β times the Fisher divergence.",
        "DiffFlow Lemma 1",
    ),
    Group("The law converges to the smoothed data.", "DiffFlow Theorem 1"),
    Group(
        "Under a log-Sobolev inequality KL(ρ_t) ≤ KL(ρ_0) exp(-2βCt).",
        "DiffFlow Theorem 2, §4.2",
        ("DiffFlow Theorem 2", "DiffFlow §4.2", "framework §7"),
    ),
)


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Run the checks, and set them by theorem."""
    runs = functools.cache(convergence_runs)

    def checked(exact: bool, seed: int) -> list[dict[str, Any]]:
        parts: tuple[Part, ...] = tuple(p for p in plan.parts if (p in EXACT) is exact)
        lab.say(f"checking {', '.join(parts)}, seed {seed}")
        return [asdict(c) for c in measured(runs(), samples=plan.samples, seed=seed, parts=parts)]

    exact = lab.once("exact", lambda: checked(True, 0))
    drawn = [lab.once(f"seed-{s}", lambda s=s: checked(False, s)) for s in plan.seeds]
    findings = []
    for group in GROUPS:
        fixed, *own = ([Check(**c) for c in some if _of(group, c)] for some in (exact, *drawn))
        if fixed or own[0]:
            findings.append(_finding(group, fixed, own))
    if "convergence" in plan.parts:
        caption = (
            "KL along flows of constant noise, towards a Gaussian: lines are closed forms or quadrature, "
            "markers particles at several g."
        )
        lab.draw(kl_figure(runs(), plan.samples, plan.seeds[0]), caption)
    named = ("claim", "source", "measured", "relation", "expected", "tolerance")
    table = Table(
        f"All checks, seed {plan.seeds[0]}",
        ("claim", "source", "measured", "", "expected", "may be off by", "holds"),
        tuple(
            (*(check[key] for key in named), "yes" if check["holds"] else "NO")
            for group in GROUPS
            for check in (*exact, *drawn[0])
            if _of(group, check)
        ),
    )
    protocol = {"particles": plan.samples, "seeds": len(plan.seeds), "solver": "stochastic Heun"}
    notes = (
        "`partikel verify` runs the same checks. Sources named framework are consequences of the paper's "
        "equations that it does not state itself.",
        "Simulated laws are compared with draws of the law they should end in: by the energy distance and "
        "its quantile between two such draws, and by the mean log-density within 4.5 standard errors.",
    )
    values = {"exact": exact, "seeds": drawn}
    return Outcome(findings, (table,), values, protocol, notes)


def margin(check: Check) -> float:
    """How far a check is from failing, as a share of what is allowed; negative where it fails."""
    off = check.measured - check.expected
    off = abs(off) if check.relation == "=" else off
    scale = check.tolerance if check.relation == "=" else max(abs(check.expected), check.tolerance)
    return (check.tolerance - off) / scale if scale > 0 else math.copysign(1.0, -off)


def _of(group: Group, check: dict[str, Any]) -> bool:
    return check["source"].startswith(group.checks or group.source)


def _finding(group: Group, fixed: Sequence[Check], drawn: Sequence[Sequence[Check]]) -> Finding:
    """A group's checks, those without a random draw and those of each seed; the worst is named."""
    every = [*fixed, *(check for checks in drawn for check in checks)]
    held = sum(check.holds for check in every)
    nearest = min(every, key=margin)
    tolerance = f" ± {nearest.tolerance:.2g}" if nearest.relation == "=" else ""
    effects = [min(margin(check) for check in (*fixed, *checks)) for checks in drawn]
    return Finding.of(
        group.claim,
        group.source,
        on("exact fields", drawn),
        f"{held} of {len(every)} checks hold. Nearest to failing: {nearest.claim}: {nearest.measured:.3g}, "
        f"claimed {nearest.relation} {nearest.expected:.3g}{tolerance}.",
        effects,
    )


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
        "paper": Plan((0, 1, 2, 3, 4), 50_000),
    },
    measure,
)
