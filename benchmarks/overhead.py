"""What the plane costs over the two networks: one sample of a Diffusion-GAN against its bare calls.

    python benchmarks/overhead.py

A step of a Diffusion-GAN is one forward of F (the score's network) and one input gradient of d (the
discriminator's): MLPs of width 512 and depth 4 on 2,000 particles. Process time of ``model.sample`` and of
the same calls in a bare loop, in turns, at two solvers; the ratio must stay within 1.05.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from common import one_thread, save  # isort: skip
import torch

from partikel.denoising import EDMDenoiser
from partikel.diffflow import DiffFlow
from partikel.fields import DiscriminatorField, ScoreField
from partikel.models import ParticleModel
from partikel.networks import NetworkSettings, build_network
from partikel.schedules import KarrasGrid
from partikel.solvers import EulerMaruyama, Solver, StochasticHeun

PARTICLES, STEPS, ROUNDS = 2000, 3, 15
LIMIT = 1.05
SOLVERS: Mapping[str, tuple[Solver, int]] = {
    "euler-maruyama": (EulerMaruyama(), STEPS),
    "stochastic-heun": (StochasticHeun(), 2 * STEPS - 1),
}
"""Solvers, with the evaluations of their steps: the last one of Heun's ends at σ = 0."""


def networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    """F and d, told the noise level as the recipes tell them."""
    settings = NetworkSettings("mlp", width=512, depth=4)
    generator = torch.Generator().manual_seed(0)
    made = [
        build_network(settings, role, shape=(2,), scalars=1, generator=generator)
        for role in ("denoiser", "logit")
    ]
    return made[0], made[1]


def works(solver: Solver, evaluations: int) -> dict[str, Callable[[], Any]]:
    """The sampler, and the calls that it makes."""
    denoiser, critic = networks()
    flow = DiffFlow.karras(40.0).diffusion_gan(1.5)
    field = flow.field(
        ScoreField(EDMDenoiser(denoiser, 1.0)),
        DiscriminatorField(critic, conditions=("log sigma",)),
    )
    model = ParticleModel(
        field,
        flow.prior((2,)),
        steps=STEPS,
        schedule=flow.schedule,
        grid=KarrasGrid(flow.schedule),
        diffusion=flow.diffusion,
        solver=solver,
    )
    x = torch.randn(PARTICLES, 2, generator=torch.Generator().manual_seed(1))
    level = torch.full((1, 1), 0.3)

    def calls() -> None:
        for _ in range(evaluations):
            with torch.no_grad():
                denoiser(x, level, None)
            point = x.detach().requires_grad_()
            torch.autograd.grad(critic(point, level, None).sum(), point)

    def sample() -> None:
        model.sample(PARTICLES, generator=torch.Generator().manual_seed(2), start=40 * x)

    return {"calls": calls, "sample": sample}


def in_turns(work: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Median process times, and the median of the ratios of neighbours, in alternating order."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for each in work.values():
        each()
    for turn in range(ROUNDS):
        for name in sorted(work, reverse=turn % 2 == 1):
            started = time.process_time()
            work[name]()
            times[name].append(time.process_time() - started)
    pairs = zip(times["sample"], times["calls"], strict=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "milliseconds": {name: 1e3 * value for name, value in medians.items()},
        "ratio_of_medians": medians["sample"] / medians["calls"],
        "median_of_ratios": statistics.median(a / b for a, b in pairs),
    }


def main() -> None:
    """Run the benchmark and hold it against its limit."""
    one_thread()
    results = {name: in_turns(works(*choice)) for name, choice in SOLVERS.items()}
    within = all(result["ratio_of_medians"] <= LIMIT for result in results.values())
    for name, result in results.items():
        print(name, result)
    path = save(
        "overhead",
        {
            "particles": PARTICLES,
            "steps": STEPS,
            "networks": "MLP, width 512, depth 4",
            "limit": LIMIT,
            "results": results,
            "within": within,
        },
    )
    print(path)
    if not within:
        raise SystemExit(f"beyond the limit of {LIMIT}")


if __name__ == "__main__":
    main()
