"""A training step against a loop written by hand: same networks, same arithmetic, nothing else.

    python benchmarks/hand_written.py

The loops by hand are what a paper's code would hold: batch, loss, backward, Adam, the average of the
weights, and neither checks nor metrics. Process time of blocks of steps, the two in turns; the ratio is the
median of the pairs, with the interval that holds the true median in 95 % of cases. Operations are ATen calls
of one step.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from common import one_thread, save, system_of  # isort: skip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from partikel.networks import MLP
from partikel.training import Trainer

PRESETS = (
    "edm-gaussians",
    "flow-matching-gaussians",
    "gan-gaussians",
    "discriminator-flow-gaussians",
)
PAIRS, STEPS, STEPS_OF_A_FLOW = 60, 20, 4
LIMITS = {"time": 1.05, "operations": 1.1}
LENGTH = 10**6
"""Iterations that the falling rates refer to."""
CHANGES: dict[str, dict[str, Any]] = {"flow-matching-gaussians": {"over_batch": False}}
"""Settings of presets whose arithmetic a loop by hand would not have."""

Step: TypeAlias = Callable[[], Any]


def settings(preset: str) -> dict[str, Any]:
    """Of both loops, beside the preset's own."""
    return {"iterations": LENGTH, **CHANGES.get(preset, {})}


class Hand:
    """What the loops by hand share: data, optimisers, the average."""

    def __init__(self, preset: str) -> None:
        self.recipe, dataset, system = system_of(preset, settings(preset))
        self.model = system.model
        target = dataset.target
        assert target is not None
        self.means, self.std = target.means.float(), target.stds.float().flatten()[0]
        self.draws = torch.Generator().manual_seed(0)
        self.average = [p.detach().clone() for p in self.model.sampled.parameters()]
        self.count = 0

    @property
    def network(self) -> MLP:
        """The network whose weights are sampled."""
        return next(part for part in self.model.sampled.modules() if isinstance(part, MLP))

    def data(self, n: int) -> Tensor:
        """(n, 2)."""
        which = torch.randint(len(self.means), (n,), generator=self.draws)
        return self.means[which] + self.std * self.noise(n, 2)

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.draws)

    def adam(self, network: nn.Module, settings: Any) -> torch.optim.Adam:
        """An optimiser."""
        betas = (settings.beta1, settings.beta2)
        return torch.optim.Adam(network.parameters(), lr=settings.lr, betas=betas, fused=True)

    def update(self, optimizer: torch.optim.Adam, loss: Tensor, rate: float) -> None:
        """One step, at a rate that falls with a cosine."""
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * self.count / LENGTH)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def averaged(self) -> None:
        """θ̄ <- d θ̄ + (1 - d) θ."""
        self.count += 1
        decay = min(0.999, (1 + self.count) / (10 + self.count))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.model.sampled.parameters()), 1 - decay)


def edm(hand: Hand) -> Iterator[None]:
    """Denoising with EDM's preconditioning."""
    recipe, network = hand.recipe, hand.network
    deviation = math.sqrt(float(hand.means.square().mean() + hand.std**2))
    optimizer = hand.adam(network, recipe.optimizer)
    while True:
        x, eps = hand.data(recipe.batch), hand.noise(recipe.batch, 2)
        sigma = (recipe.law_mean + recipe.law_std * hand.noise(recipe.batch)).exp()[:, None]
        noisy, total = x + sigma * eps, sigma**2 + deviation**2
        told = network(noisy * total.rsqrt(), sigma.log() / 4, None)
        denoised = noisy * (deviation**2 / total) + told * (sigma * deviation * total.rsqrt())
        weight = total / (sigma * deviation) ** 2
        hand.update(optimizer, (weight * (denoised - x) ** 2).mean(), recipe.optimizer.lr)
        hand.averaged()
        yield


def flow_matching(hand: Hand) -> Iterator[None]:
    """The velocity of the linear path."""
    recipe, network = hand.recipe, hand.network
    optimizer = hand.adam(network, recipe.optimizer)
    while True:
        x, noise = hand.data(recipe.batch), hand.noise(recipe.batch, 2)
        t = torch.rand(recipe.batch, 1, generator=hand.draws)
        told = network(t * x + (1 - t) * noise, t, None)
        hand.update(optimizer, ((told - (x - noise)) ** 2).mean(), recipe.optimizer.lr)
        hand.averaged()
        yield


def gan(hand: Hand) -> Iterator[None]:
    """Non-saturating, with the gradient penalty on data."""
    recipe = hand.recipe
    critic, generator = hand.model.field.network, hand.network
    of_critic = hand.adam(critic, recipe.discriminator_optimizer)
    of_generator = hand.adam(generator, recipe.generator_optimizer)
    n, weight = recipe.batch, recipe.penalties[0].weight
    while True:
        real = hand.data(n).requires_grad_()
        with torch.no_grad():
            fake = generator(hand.noise(n, recipe.latent))
        d_real, d_fake = critic(torch.cat([real, fake]), None, None).chunk(2)
        loss = F.softplus(-d_real).mean() + F.softplus(d_fake).mean()
        (slope,) = torch.autograd.grad(critic(real, None, None).sum(), real, create_graph=True)
        loss = loss + weight * slope.square().sum(1).mean()
        hand.update(of_critic, loss, recipe.discriminator_optimizer.lr)
        for p in critic.parameters():
            p.requires_grad_(False)
        loss = F.softplus(-critic(generator(hand.noise(n, recipe.latent)), None, None)).mean()
        hand.update(of_generator, loss, recipe.generator_optimizer.lr)
        for p in critic.parameters():
            p.requires_grad_(True)
        hand.averaged()
        yield


def discriminator_flow(hand: Hand) -> Iterator[None]:
    """Particles ascend log sigmoid d for a random number of steps; d learns on them and on data."""
    recipe, critic = hand.recipe, hand.network
    optimizer = hand.adam(critic, recipe.optimizer)
    n, steps = recipe.batch, recipe.steps
    times = torch.linspace(0, 1, steps + 1)
    while True:
        x, node = hand.noise(n, 2), torch.randint(steps, (n,), generator=hand.draws)
        fake = torch.empty_like(x)
        for k in range(steps):
            arrived = node == k
            fake[arrived] = x[arrived]
            if k == steps - 1:
                break
            point = x.requires_grad_()
            ascended = F.logsigmoid(critic(point, times[k].view(1, 1), None)).sum()
            (slope,) = torch.autograd.grad(ascended, point)
            x = (point + (recipe.eta / steps) * slope).detach()
        t = times[node][:, None]
        both = critic(torch.cat([hand.data(n), fake]), torch.cat([t, t]), None)
        d_real, d_fake = both.chunk(2)
        loss = F.softplus(-d_real).mean() + F.softplus(d_fake).mean()
        hand.update(optimizer, loss, recipe.optimizer.lr)
        hand.averaged()
        yield


LOOPS = {
    "edm-gaussians": edm,
    "flow-matching-gaussians": flow_matching,
    "gan-gaussians": gan,
    "discriminator-flow-gaussians": discriminator_flow,
}


class Operations(TorchDispatchMode):
    """Counts ATen calls."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count, and call."""
        self.count += str(func).startswith("aten.")
        return func(*args, **(kwargs or {}))


def operations(step: Step) -> int:
    """ATen calls of one step."""
    with Operations() as counted:
        step()
    return counted.count


def ratios(ours: Step, theirs: Step, steps: int) -> list[float]:
    """Process times of blocks of steps, in turns, the order changing from pair to pair."""
    found = []
    for pair in range(PAIRS):
        seconds = {}
        for step in (ours, theirs) if pair % 2 else (theirs, ours):
            started = time.process_time()
            for _ in range(steps):
                step()
            seconds[step] = time.process_time() - started
        found.append(seconds[ours] / seconds[theirs])
    return sorted(found)


def steps_of(preset: str) -> tuple[Step, Step]:
    """A step of ours and one by hand, after some of each."""
    _, dataset, system = system_of(preset, settings(preset))
    iterations = Trainer(system.model, dataset, system.phases, iterations=LENGTH, ema=0.999).run()
    loop = LOOPS[preset](Hand(preset))
    ours, theirs = (lambda: next(iterations)), (lambda: next(loop))
    for step in (ours, theirs):
        for _ in range(5):
            step()
    return ours, theirs


def compare(preset: str) -> dict[str, Any]:
    """One preset."""
    ours, theirs = steps_of(preset)
    calls = [operations(ours), operations(theirs)]
    found = ratios(ours, theirs, STEPS_OF_A_FLOW if "flow-g" in preset else STEPS)
    rank = math.floor(PAIRS / 2 - 0.98 * math.sqrt(PAIRS))  # order statistics around the median
    return {
        "ratio": statistics.median(found),
        "interval": [found[rank], found[-1 - rank]],
        "operations": calls,
        "ratio_of_operations": calls[0] / calls[1],
    }


def main() -> None:
    """Run the benchmark and hold it against its limits."""
    one_thread()
    results = {preset: compare(preset) for preset in PRESETS}
    path = save("hand-written", {"pairs": PAIRS, "limits": LIMITS, "results": results})
    for preset, found in results.items():
        low, high = found["interval"]
        ours, theirs = found["operations"]
        print(f"{preset}: {found['ratio']:.3f} [{low:.3f}, {high:.3f}]; {ours} / {theirs} calls")
    print(path)


if __name__ == "__main__":
    main()
