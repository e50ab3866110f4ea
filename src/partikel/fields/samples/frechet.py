"""The Fréchet distance of features as a field (FD loss, arXiv:2604.28190; framework §13)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError
from partikel.errors.checks import Part
from partikel.fields.base import At, Field
from partikel.fields.samples.features import kept_as_is, pulled_back, seen

_RANK = 1e-10  # of the largest eigenvalue: what lies below is rounding, not a direction


class Moments(NamedTuple):
    """Of a cloud of features (n, D), in float64: the mean, and the covariance divided by n."""

    mean: Tensor
    covariance: Tensor


class FrechetField(Field):
    """Minus the first variation of F(ρ) = ‖m - m_ρ‖² + tr(C + C_ρ - 2 (C C_ρ)^½), moments of features φ.

        V(x) = Jφ(x)ᵀ 2 [(m - m_ρ) + (T - I)(φ(x) - m_ρ)],    T = C^½ (C^½ C_ρ C^½)^-½ C^½

    T is the optimal map from N(m_ρ, C_ρ) to N(m, C), so that V is, in feature space, twice the displacement
    which takes one Gaussian to the other. It is -P times the gradient of F of the P particles, with
    covariances divided by P. Nothing is learned. It is blind to what mean and covariance of the features
    do not tell: in the plane and without φ a ring of modes is a Gaussian to it. And it *is* the
    metric that goes by the name of FID: do not report that metric, on these features, of what it made.

    With no more points than features the covariances are singular, and T is taken on the space that they
    span (pseudo-inverse): bind, or train on, more points than there are features. Or let the field
    remember: with a ``memory`` β its moments, of particles and data, are averages over the updates of a
    generator's training, with the weight 1 - β on the batch, and V is -P/(1 - β) times the gradient of
    their F. Every call in training mode whose cloud is not bound counts as an update.

    Args:
        features: φ, (B, ...) -> (B, D), differentiable; it is copied, frozen and asked in evaluation
            mode. None takes the points themselves.
        memory: β of [0, 1); the first updates weigh 1, 1/2, 1/3, ... Not of a conditional model, whose
            classes are asked about one after another: the average of all would stand for each.
    """

    requires = frozenset({"real", "particles"})
    remembered: Tensor
    updates: Tensor

    def __init__(self, features: nn.Module | None = None, *, memory: Part = 0.0) -> None:
        super().__init__()
        self.features = None if features is None else kept_as_is(features)
        self.memory = memory
        self._map: tuple[Tensor, Tensor, Tensor] | None = None
        if memory:  # buffers: a checkpoint remembers too
            self.register_buffer("remembered", torch.zeros(0, dtype=torch.float64))
            self.register_buffer("updates", torch.tensor(0))

    def forward(self, x: Tensor, at: At) -> Tensor:
        """Twice the displacement, pulled back through φ."""
        if self.memory and at.cond is not None:
            raise ConfigError(
                "a FrechetField with a memory averages over all points, and a conditional model asks it "
                "about one class after another: leave out memory."
            )
        mean, mean_own, transport = self._map or self._gaussian_map(
            self.bound_cloud(x), self.bound_real(x)
        )

        def velocity(y: Tensor) -> Tensor:
            gap = y.flatten(1).double() - mean_own
            return 2 * ((mean - mean_own) + gap @ transport - gap).to(y).view_as(y)

        if self.features is None:
            return velocity(x.detach())
        return pulled_back(self.features, x, velocity)

    def prepare(self) -> None:
        """The Gaussian map of a bound cloud, once."""
        self._map = None
        if self.context.particles is not None and self.context.real is not None:
            cloud = self.context.particles.detach()
            self._map = self._gaussian_map(cloud, self.context.real.to(cloud))

    def distance(self, cloud: Tensor, real: Tensor) -> Tensor:
        """F of two clouds (P, ...), (R, ...), (), with a graph where they have one."""
        if cloud.shape[1:] != real.shape[1:]:
            shapes = f"{tuple(cloud.shape)} and {tuple(real.shape)}"
            raise ValueError(f"clouds are of like points, got {shapes}.")
        own, data = self._moments(cloud), self._moments(real)
        root = _power(data.covariance, 0.5)
        overlap = torch.linalg.eigvalsh(root @ own.covariance @ root).clamp(min=0).sqrt().sum()
        traces = own.covariance.trace() + data.covariance.trace()
        return (own.mean - data.mean).square().sum() + traces - 2 * overlap

    def train(self, mode: bool = True) -> FrechetField:
        """Set training mode, which φ ignores."""
        super().train(mode)
        if self.features is not None:
            self.features.eval()
        return self

    def _moments(self, x: Tensor) -> Moments:
        if self.features is not None:
            x = seen(self.features, x)
        y = x.flatten(1).double()
        mean = y.mean(0)
        return Moments(mean, (y - mean).T @ (y - mean) / len(y))

    def _gaussian_map(self, cloud: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The data's mean, the cloud's, and T."""
        with torch.no_grad():
            own, data = self._moments(cloud), self._moments(real)
            if self.memory and self.training and self.context.particles is None:
                own, data = self._averaged(own, data)
            root = _power(data.covariance, 0.5)
            inner = _power(root @ own.covariance @ root, -0.5)
            return data.mean, own.mean, root @ inner @ root

    def _averaged(self, *now: Moments) -> list[Moments]:
        """Averages over the updates so far, of means and of second moments."""
        rows = [torch.cat([m.mean[None], m.covariance + m.mean.outer(m.mean)]) for m in now]
        self.updates += 1
        weight = max(1 - self.memory, 1 / int(self.updates))
        present = torch.stack(rows)
        self.remembered = present if weight == 1 else self.remembered.lerp(present, weight)
        return [Moments(e[0], e[1:] - e[0].outer(e[0])) for e in self.remembered]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **options: Any
    ) -> None:
        # the features decide on the size of what is remembered
        if (kept := state_dict.get(f"{prefix}remembered")) is not None:
            self.remembered = torch.empty_like(kept, device=self.remembered.device)
        super()._load_from_state_dict(state_dict, prefix, *others, **options)


def _power(matrix: Tensor, power: float) -> Tensor:
    """M^power of a positive semi-definite matrix (D, D); of its pseudo-inverse where power < 0."""
    values, vectors = torch.linalg.eigh(matrix)
    there = values > _RANK * values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    powers = torch.where(there, values.where(there, 1).pow(power), 0)
    return (vectors * powers) @ vectors.T
