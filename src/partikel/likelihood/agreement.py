"""Whether a probability flow's samples are those of the model whose likelihood is asked for.

The likelihood of the ODE says nothing about samples that are drawn in another way: with noise, or by a
few steps of Euler's method. Both are compared, against what two draws of the data differ by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.errors.checks import checked
from partikel.likelihood.flow import ProbabilityFlow
from partikel.likelihood.ode import DOPRI5, Integrator, decode
from partikel.metrics import energy_distance


@dataclass(frozen=True)
class Agreement:
    """Two samplers compared.

    Attributes:
        distance: energy distance between the ODE's samples and the model's own.
        quantile: the 95% quantile of that distance between equal numbers of the same law.
        agrees: whether the distance is below; else the likelihood is that of another model.
    """

    distance: float
    quantile: float

    @property
    def agrees(self) -> bool:
        """Whether nothing tells the two apart."""
        return self.distance <= self.quantile


@checked
def agreement(
    flow: ProbabilityFlow,
    own: Tensor,
    *,
    generator: torch.Generator,
    cond: Tensor | None = None,
    data: Tensor | None = None,
    integrator: Integrator = DOPRI5,
    repeats: int = 100,
) -> Agreement:
    """Compare the ODE's samples with the model's own.

    Args:
        flow: the probability flow.
        own: (n, ...) samples of the model's own sampler.
        generator: source of the prior's draws and of splits.
        cond: (n,) labels of ``own``, which the ODE's samples get too.
        data: (m, ...) points whose halves set the quantile; both clouds together unless given (a
            permutation test).
        integrator: of the ODE.
        repeats: splits that the quantile is taken of.
    """
    n = len(own)
    if n < 40:
        raise ConfigError(f"two samplers are compared by at least 40 samples each, got {n}.")
    z = flow.prior.sample(n, generator=generator, dtype=own.dtype).to(own)
    other = torch.cat(
        [
            decode(
                flow, part, cond=None if cond is None else cond[k : k + 500], integrator=integrator
            )
            for k, part in zip(range(0, n, 500), z.split(500), strict=True)
        ]
    )
    distance = energy_distance(other, own)
    pool = torch.cat([other, own]) if data is None else data
    half = min(n, len(pool) // 2)
    distances = []
    for _ in range(repeats):
        order = torch.randperm(len(pool), generator=generator, device=generator.device)
        pair = pool[order[: 2 * half].to(pool.device)]
        distances.append(energy_distance(pair[:half], pair[half:]))
    quantile = float(torch.tensor(distances).quantile(0.95)) * half / n
    return Agreement(distance, quantile)
