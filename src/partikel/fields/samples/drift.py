"""Drifting: the difference of two mean shifts (Deng et al. 2026, "Generative modeling via drifting")."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from partikel.errors import ConfigError, nearest
from partikel.errors.checks import Positive
from partikel.fields.base import At, Field
from partikel.kernels import squared_distances

Normalisation: TypeAlias = Literal["mean shift", "batch"]
"""Of the kernel: over the samples of each law, or over both laws together and over the batch."""

PAIRS = 2**22
"""Most pairs of points held at once."""


class DriftField(Field):
    """V = V_p⁺ - V_ρ⁻: attraction by the data, repulsion by the other particles (Deng et al. 2026).

        V_p(x) = E_{y~p}[k(x, y) (y - x)] / E_{y~p}[k(x, y)],    k(x, y) = exp(-‖x - y‖/τ)     (eqs. 8-12)

    It is anti-symmetric, V_{p,ρ} = -V_{ρ,p}, so that it vanishes where ρ = p. It is no gradient of a
    potential. In a generator model with ``eta = 1`` it is their training: the generator is fitted to
    the frozen x + V(x) (their eq. 6). Several temperatures are a sum of fields;
    an encoder's features, which they compare for images, are :class:`~partikel.fields.InFeatures`.

    A particle does not repel itself: of the cloud's points that coincide with x, one is left out of ρ.

    With the normalisation "batch" it is what their Algorithm 2 computes:

        V(x) = Σ_{y⁺, y⁻} A(x, y⁺) A(x, y⁻) (y⁺ - y⁻),    A² = softmax_y(-‖x - y‖/τ) softmax_x(-‖x - y‖/τ)

    with softmax_y over real samples and cloud together, and softmax_x over the cloud. It is
    anti-symmetric too, but smaller where one law outweighs the other, and depends on the sample sizes.

    Args:
        temperature: τ, a length > 0.
        normalisation: "mean shift" (the definition) or "batch" (the algorithm).

    Raises:
        ConfigError: for another temperature or normalisation.
    """

    requires = frozenset({"real", "particles"})

    def __init__(self, temperature: Positive, normalisation: Normalisation = "mean shift") -> None:
        super().__init__()
        if normalisation not in ("mean shift", "batch"):
            raise ConfigError(
                f"there is no normalisation '{normalisation}' of a drifting field: "
                f"{nearest(normalisation, ['mean shift', 'batch'])}"
            )
        self.temperature = temperature
        self.normalisation: Normalisation = normalisation

    def forward(self, x: Tensor, at: At) -> Tensor:
        """V_p⁺(x) - V_ρ⁻(x)."""
        real, cloud = self.bound_real(x), self.bound_cloud(x)
        flat, real, cloud = x.detach().flatten(1), real.flatten(1), cloud.flatten(1)
        with torch.no_grad():
            batch = self._batch_sums(real, cloud) if self.normalisation == "batch" else None
            blocks = flat.split(max(1, PAIRS // (len(real) + len(cloud))))
            velocity = torch.cat([self._drift(rows, real, cloud, batch) for rows in blocks])
        return velocity.view_as(x)

    def _drift(
        self, x: Tensor, real: Tensor, cloud: Tensor, batch: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        to_real, to_cloud = self._logits(x, real), self._logits(x, cloud, others=True)
        if batch is None:
            return to_real.softmax(1) @ real - to_cloud.softmax(1) @ cloud
        rows = torch.logaddexp(to_real.logsumexp(1), to_cloud.logsumexp(1))[:, None]
        attract = (to_real - (rows + batch[0]) / 2).exp()
        repel = (to_cloud - (rows + batch[1]) / 2).exp()
        pull = repel.sum(1, keepdim=True) * (attract @ real)
        return pull - attract.sum(1, keepdim=True) * (repel @ cloud)

    def _batch_sums(self, real: Tensor, cloud: Tensor) -> tuple[Tensor, Tensor]:
        """Log Σ_{x in the cloud} k(x, y), at every real sample and at every cloud point."""
        rows = max(1, PAIRS // len(cloud))
        of_real = [self._logits(y, cloud).logsumexp(1) for y in real.split(rows)]
        of_cloud = [self._logits(y, cloud, others=True).logsumexp(1) for y in cloud.split(rows)]
        return torch.cat(of_real), torch.cat(of_cloud)

    def _logits(self, x: Tensor, y: Tensor, *, others: bool = False) -> Tensor:
        """-‖x - y‖/τ, and one of the y that are x left out where only others count: (n, m)."""
        logits = squared_distances(x, y).sqrt_().div_(-self.temperature)
        if not others:
            return logits
        here = logits == 0
        count = here.sum(1, keepdim=True)  # the k that coincide weigh k - 1 together
        return torch.where(here, ((count - 1) / count).to(logits).log(), logits)
