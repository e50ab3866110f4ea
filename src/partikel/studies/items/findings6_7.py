"""GPM Findings 6 and 7: GANs and Stein flows as (interacting) particle models.

(6) A discriminator trained to tell p from ρ has ∇log(p/ρ) for its gradient, so that an f-divergence GAN's
field is an f-divergence flow's, KL's among them; one that is trained on an IPM, in the regime where its
tangent kernel stays as it is, moves particles as the MMD with that kernel does. (7) A generator in
that regime, trained on s_p - s_ρ, carries the latent-driven Stein flow of its kernel (eq. 18); with an
invertible generator that is the Stein flow (eq. 17). Laws and scores are exact, networks small.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from partikel.fields import (
    At,
    Context,
    DensityRatioField,
    ExactScoreField,
    FDivergenceField,
    KernelScoreField,
    MMDField,
    SteinField,
)
from partikel.kernels import NTKKernel, RBFKernel
from partikel.models import generate, kernel_operator, ntk_matrix, surrogate_loss
from partikel.networks import MLP
from partikel.networks.initialise import initialise
from partikel.objectives import get_objective
from partikel.studies.benches import FIVE, on
from partikel.studies.item import Item, Outcome, Table, spread
from partikel.studies.judgement import LOG, Claim, Finding
from partikel.studies.lab import Lab
from partikel.targets import Gaussian, GaussianMixture

TARGET = GaussianMixture(
    [[1.3, 0.8], [-1.0, 0.9], [0.3, -1.2]], std=[0.7, 0.9, 0.8], weights=[0.4, 0.35, 0.25]
)
"""p."""
START = Gaussian([-0.5, -0.4], std=0.8)
"""ρ."""
HERE = At(torch.zeros((), dtype=torch.float64))
"""These fields do not depend on time."""
POTENTIALS = {"logit": "kl", "saturating": "jensen-shannon", "non-saturating": "non-saturating"}
"""What the generator ascends -> the divergence whose flow it is (framework §2)."""
SMALL = 1e-4
"""ε of the one step that the tangent kernel is exact for, to first order."""
EXACT = 1e-2
"""How far that step may be from its kernel's flow: what ε leaves."""

SOURCE6, SOURCE7 = "GPM Finding 6, §3.2", "GPM Finding 7, §3.3"
CLAIMS = {
    "f": Claim(
        "f-divergence GANs as Int-PMs generalize the forward KL gradient flow: their fields are those of "
        "f-divergence flows.",
        SOURCE6,
        "least cosine, over three generator losses, of the trained discriminator's field with "
        "h(r) ∇log r, less 0.9",
        0.0,
    ),
    "ipm": Claim(
        "IPM GANs generalize MMD gradient flows: a small step of the discriminator moves particles as the "
        "MMD with its tangent kernel does.",
        SOURCE6,
        f"{EXACT:g} less the relative difference of the two fields",
        0.0,
        kind="exact",
    ),
    "lazy": Claim(
        "In the kernel regime a trained IPM discriminator's field stays that of the MMD: wider networks "
        "are nearer to it.",
        SOURCE6,
        "log of the relative difference of the two fields, of the narrowest network over the widest",
        math.log(2),
        LOG,
    ),
    "stein": Claim(
        "A generator in the NTK regime, trained on s_p - s_ρ, carries the latent-driven Stein flow: wider "
        "generators are nearer to it.",
        SOURCE7,
        "log of the particles' relative distance from that flow, of the narrowest generator over the widest",
        math.log(2),
        LOG,
    ),
    "invertible": Claim(
        "Where the generator is invertible the latent-driven flow is the Stein flow in data space.",
        SOURCE7,
        "mean difference of the two fields along the latter, relative to it",
        0.05,
        kind="same",
    ),
}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        seeds: of networks and draws.
        iterations: of a discriminator's training.
        batch: points of each law in it.
        widths: of the networks in the kernel regime, from narrow to wide.
        steps: of training there.
        particles: that are followed.
        clouds: over which the Stein field is averaged.
    """

    seeds: tuple[int, ...] = FIVE
    iterations: int = 2000
    batch: int = 256
    widths: tuple[int, ...] = (32, 128, 512)
    steps: int = 100
    particles: int = 100
    clouds: int = 1000


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Train discriminators and generators, and compare fields."""
    parts: dict[str, Callable[[Plan, Lab, int], Any]] = {
        "f": _ratio_fields,
        "ipm": _ipm_fields,
        "stein": _latent_flows,
        "invertible": _invertible,
    }
    found = {
        name: [lab.once(f"{name}-{seed}", partial(part, plan, lab, seed)) for seed in plan.seeds]
        for name, part in parts.items()
    }
    tables = [
        Table.of(
            "Cosine of a trained discriminator's field with the exact flow's",
            POTENTIALS,
            {"generator loss": str, "cosine": lambda name: spread([f[name] for f in found["f"]])},
        ),
        Table.of(
            "Relative distance from the kernel's flow, by width",
            [str(width) for width in plan.widths],
            {
                "width": str,
                "IPM discriminator": lambda w: spread([f["trained"][w] for f in found["ipm"]]),
                "generator": lambda w: spread([f[w] for f in found["stein"]]),
            },
        ),
    ]
    return Outcome(
        findings(plan, found),
        tables,
        found,
        {"laws": "a mixture of three Gaussians, and a Gaussian", "iterations": plan.iterations},
        [
            "Discriminators of (6) see fresh draws of both laws; cosines are over particles of ρ. In the "
            "kernel regime rates fall as 1/width, so that outputs move alike and weights ever less.",
            "The own score of (7) is that of a kernel density of the particles.",
        ],
    )


def findings(plan: Plan, found: Mapping[str, Sequence[Any]]) -> list[Finding]:
    """What the parts say that are measured for each seed, by name."""
    where = on("laws in closed form", plan.seeds)
    narrow, wide = str(plan.widths[0]), str(plan.widths[-1])
    small = max(each["step"] for each in found["ipm"])

    def falls(rows: Sequence[Mapping[str, float]]) -> tuple[str, list[float]]:
        first, last = ([row[width] for row in rows] for width in (narrow, wide))
        said = f"{spread(first)} at width {narrow}, {spread(last)} at width {wide}."
        return said, [math.log(a / b) for a, b in zip(first, last, strict=True)]

    cosines = [min(each.values()) for each in found["f"]]
    trained, ipm = falls([each["trained"] for each in found["ipm"]])
    followed, stein = falls(found["stein"])
    return [
        CLAIMS["f"].found(
            where, f"Least cosine {spread(cosines)}.", [cosine - 0.9 for cosine in cosines]
        ),
        CLAIMS["ipm"].found(
            where, f"Relative difference after one step of {SMALL:g}: {small:.1g}.", [EXACT - small]
        ),
        CLAIMS["lazy"].found(where, f"After {plan.steps} steps {trained}", ipm),
        CLAIMS["stein"].found(where, f"After {plan.steps} steps {followed}", stein),
        CLAIMS["invertible"].found(
            where, f"Relative difference {spread(found['invertible'])}.", found["invertible"]
        ),
    ]


def _ratio_fields(plan: Plan, lab: Lab, seed: int) -> dict[str, float]:
    """Cosines of ∇(c∘d), d trained by logistic regression, with h(r) ∇log r at particles of ρ."""
    draws = lab.generator(seed, "logistic")
    network = _network((), 128, lab.generator(seed, "critic"))
    objective = get_objective("non-saturating")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.iterations)
    for _ in range(plan.iterations):
        real, fake = (law.sample(plan.batch, generator=draws).double() for law in (TARGET, START))
        loss = objective.discriminator_loss(network(real), network(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    x = START.sample(2000, generator=draws).double()
    ratio = DensityRatioField(TARGET, START)

    def cosine(loss: str, divergence: str) -> float:
        ascended = get_objective(loss).potential
        moved = _gradient(lambda y: ascended(network(y)), x)
        return _cosine(moved, FDivergenceField(ratio, divergence)(x, HERE))

    return {loss: cosine(loss, divergence) for loss, divergence in POTENTIALS.items()}


def _ipm_fields(plan: Plan, lab: Lab, seed: int) -> dict[str, Any]:
    """Relative difference of an IPM discriminator's field to that of the MMD with its first kernel.

    After one small step, and for each width after a training; both on the same fixed clouds.
    """
    draws = lab.generator(seed, "ipm")
    real, fake = (law.sample(plan.particles, generator=draws).double() for law in (TARGET, START))

    def apart(network: nn.Module, rate: float, steps: int) -> float:
        first = copy.deepcopy(network)
        _descend(network, lambda: network(fake).mean() - network(real).mean(), rate, steps)
        moved = _gradient(lambda y: (network(y) - first(y)) / (rate * steps), fake)
        field = MMDField(NTKKernel(first)).bind(Context(real=real, particles=fake))
        return _relative(moved, field(fake, HERE))

    networks = {w: _network((), w, lab.generator(seed, "ipm", w)) for w in plan.widths}
    wide = copy.deepcopy(networks[plan.widths[-1]])
    return {
        "step": apart(wide, SMALL, 1),
        "trained": {str(w): apart(net, 0.02 / w, plan.steps) for w, net in networks.items()},
    }


def _latent_flows(plan: Plan, lab: Lab, seed: int) -> dict[str, float]:
    """For each width, how far trained outputs are from the Stein flow of the generator's first kernel."""
    z = torch.randn(
        plan.particles, 2, generator=lab.generator(seed, "latents"), dtype=torch.float64
    )
    data = ExactScoreField(TARGET)

    def velocity(x: Tensor) -> Tensor:
        return (data - KernelScoreField(0.5).bind(Context(particles=x)))(x, HERE).detach()

    def apart(width: int) -> float:
        network = _network((2,), width, lab.generator(seed, "generator", width))
        rate, kernel = 2.0 / width, ntk_matrix(network, z) / len(z)
        x = first = generate(network, z)
        for _ in range(plan.steps):
            x = x + rate * (kernel @ velocity(x).flatten()).view_as(x)

        def loss() -> Tensor:
            own = network(z)
            return surrogate_loss(own, velocity(own.detach())).mean()

        _descend(network, loss, rate, plan.steps)
        return float((generate(network, z) - x).norm() / (x - first).norm())

    return {str(width): apart(width) for width in plan.widths}


def _invertible(plan: Plan, lab: Lab, seed: int) -> float:
    """With x = z: mean of A_k[s_p - s_ρ] less the Stein field, along the latter, relative to it."""
    kernel, source = RBFKernel(0.8), lab.generator(seed, "clouds")
    x = START.sample(20, generator=source).double()
    data, own = ExactScoreField(TARGET), ExactScoreField(START)
    stein, carried = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(plan.clouds):
        cloud = START.sample(50, generator=source).double()
        stein += SteinField(data, kernel).bind(Context(particles=cloud))(x, HERE)
        carried += kernel_operator(kernel, cloud, (data - own)(cloud, HERE), at=x)
    return float(((carried - stein) * stein).sum() / stein.square().sum())


def _network(shape: tuple[int, ...], width: int, generator: torch.Generator) -> nn.Module:
    network = MLP((2,), shape, width=width, depth=2, activation="silu").double()
    return initialise(network, "he", generator=generator)


def _descend(network: nn.Module, loss: Callable[[], Tensor], rate: float, steps: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _gradient(potential: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(potential(x).sum(), x)[0]


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


ITEM = Item(
    "findings6-7",
    "GPM Findings 6 and 7, §3.2-3.3",
    "GANs and Stein flows as interacting particle models",
    "f-divergence GANs generalize the forward KL gradient flow and Langevin diffusion, IPM GANs the MMD "
    "gradient flow; Stein flows are Int-PMs of an invertible generator in the NTK regime, and generalize to "
    "a latent-driven flow. The paper derives it under assumptions and reports no experiment.",
    {
        "smoke": Plan((0,), 20, 32, (16, 64), 5, 20, 20),
        "cpu": Plan(),
        "paper": Plan(particles=200, clouds=5000, widths=(32, 128, 512, 2048)),
    },
    measure,
    CLAIMS,
)
