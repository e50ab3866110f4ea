"""The flow of an MMD whose kernel is learned along a noising path: DMMD (Galashov et al. 2025).

Galashov, de Bortoli and Gretton, "Deep MMD gradient flow without adversarial training" (ICLR 2025,
arXiv:2405.06780).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError
from partikel.errors.checks import Count, Level, NotNegative
from partikel.fields.base import At, Field, Loss, LossValue, TrainingBatch
from partikel.objectives import GradientPenalty, exact
from partikel.schedules import NoiseLaw
from partikel.streams import normal_like
from partikel.tensors import expand_like, flat_sum

_PASS = 4096  # points that go through the network together


class DeepMMDField(Field):
    """The MMD flow of a kernel of features that were learned at each noise level.

        V(x, σ) = ∇_x (E_{y~p} k_σ(x, y) - E_{y~ρ} k_σ(x, y)),    k_σ(x, y) = ⟨φ(x, σ), φ(y, σ)⟩

    φ learns to tell clean data from data noised to σ, at all σ of a law: neither particles nor a
    generator take part, so that nothing is simulated and nothing adversarial. Particles are then
    moved down the levels, each of which compares them with the clean data by the kernel that knows
    how data of this level differ from clean ones. A kernel that is linear in φ makes time and memory
    linear in all numbers of points.

    What was read of the paper is its abstract and what its reviewers say of it: a discriminator of
    clean from noised data for each level, of features with a linear kernel for speed; its flow in
    several steps at each level, down the levels; data needed while sampling. Not read were its
    formulae. Here the loss is

        -MMD²_u + λ_l2 (‖φ(x, σ)‖² + ‖φ(x_σ, σ)‖²) + λ_∇ (‖∇f(x̃)‖ - 1)²,    x_σ = x + σε

    MMD²_u being unbiased, f the witness E_x k_σ(·, x) - E_x k_σ(·, x_σ), x̃ uniform between x and its
    x_σ: the penalties' forms and default weights are ours, after those of MMD GANs (Bińkowski et al.
    2018) and WGAN-GP. Ours too are a variance-exploding path, one step at each of many levels, and what
    a carrier without noise levels does (a generator): it follows the mean of the fields at
    ``levels``, which does vanish at ρ = p.

    Args:
        network: φ, called as ``network(x, c, None)`` -> (B, ...) features; c, (B, 1) or (1, 1), is
            ln(σ)/4, EDM's c_noise.
        law: of σ in training; None for a field that is only evaluated.
        levels: σ > 0 that are asked about where the carrier has no noise level.
        groups: levels in a batch, which is split into as many groups of (nearly) the same size, each
            with a level and an MMD of its own; fewer, if they would be of less than two points.
        gradient_penalty: λ_∇ >= 0.
        l2_penalty: λ_l2 >= 0.
        name: the name of its loss.

    Raises:
        ConfigError: for values out of range.
    """

    requires = frozenset({"real", "particles"})

    def __init__(
        self,
        network: nn.Module,
        law: NoiseLaw | None = None,
        *,
        levels: tuple[Level, ...] = (),
        groups: Count = 8,
        gradient_penalty: float = 1.0,
        l2_penalty: NotNegative = 0.1,
        name: str = "features",
    ) -> None:
        super().__init__()
        self.network = network
        self.law = law
        self.levels = levels
        self.groups = groups
        self.penalty = GradientPenalty(gradient_penalty, centre=1.0)
        self.l2_penalty = l2_penalty
        self.name = name

    def features(self, x: Tensor, sigma: Tensor) -> Tensor:
        """φ(x, σ): (B, ...), and (B,) or (1,) -> (B, F)."""
        return self.network(x, sigma[:, None].log() / 4, None).view(len(x), -1)

    def forward(self, x: Tensor, at: At) -> Tensor:
        """∇ of the witness function at σ; without σ, the mean over ``levels``."""
        real, cloud = self.bound_real(x), self.bound_cloud(x)
        if at.sigma is None:
            if not self.levels:
                raise ConfigError(
                    "a deep MMD field is asked at a noise level: give its carrier a schedule, or the "
                    "field levels=(...)."
                )
            fields = [self._at(x, real, cloud, x.new_tensor([level])) for level in self.levels]
            return torch.stack(fields).mean(0)
        distinct, place = torch.unique(torch.atleast_1d(at.sigma), return_inverse=True)
        if len(distinct) == 1:
            return self._at(x, real, cloud, distinct)
        velocity = torch.empty_like(x)
        for i, level in enumerate(distinct):
            rows = place == i
            velocity[rows] = self._at(x[rows], real, cloud, level[None])
        return velocity

    def own_losses(self) -> tuple[Loss, ...]:
        """Clean data against noised, unless without a law of σ."""
        if self.law is None:
            return ()
        return (Loss(self.name, self.network, frozenset({"real"}), self._loss, adds_noise=True),)

    def _at(self, x: Tensor, real: Tensor, cloud: Tensor, sigma: Tensor) -> Tensor:
        """The field at one level (1,)."""
        witness = self._mean(real, sigma) - self._mean(cloud, sigma)
        parts = []
        for block in x.split(_PASS):
            with torch.enable_grad():
                point = block.detach().requires_grad_()
                value = (self.features(point, sigma) @ witness).sum()
                parts.append(torch.autograd.grad(value, point)[0])
        return torch.cat(parts)

    def _mean(self, points: Tensor, sigma: Tensor) -> Tensor:
        """E φ(y, σ), (F,)."""
        with torch.no_grad():
            sums = [self.features(block, sigma).sum(0) for block in points.split(_PASS)]
        return torch.stack(sums).sum(0) / len(points)

    def _loss(self, batch: TrainingBatch) -> LossValue:
        assert batch.real is not None
        assert self.law is not None
        clean, streams = batch.real.x, batch.streams
        groups = min(self.groups, len(clean) // 2)
        if groups < 1:
            raise ConfigError("the loss of a deep MMD field needs batches of at least 2 points.")
        levels = self.law.sample(groups, generator=streams.time, dtype=clean.dtype)
        sizes = [len(part) for part in clean.tensor_split(groups)]
        sigma = levels.repeat_interleave(torch.tensor(sizes, device=levels.device))
        noise = normal_like(clean, streams.noise)
        noised = clean + expand_like(sigma, noise) * noise
        both = self.features(torch.cat([clean, noised]), torch.cat([sigma, sigma]))
        of_clean, of_noised = both.chunk(2)
        # of pairs (x, x_σ), i != j, so that x_σ may be made from its own x: Gretton et al. 2012, eq. 4
        pairs = (of_clean - of_noised).split(sizes)
        mmd2 = torch.cat([(p @ p.sum(0) - flat_sum(p.square())) / (len(p) - 1) for p in pairs])
        witness = torch.cat([p.mean(0).expand_as(p) for p in pairs])
        points = self.penalty.points(clean, noised, generator=streams.noise)
        with exact():
            value = (self.features(points, sigma) * witness).sum()
        (gradient,) = torch.autograd.grad(value, points, create_graph=True)
        slope = self.penalty.value(gradient, sigma)
        size = flat_sum(of_clean.square() + of_noised.square())
        metrics = {"mmd2": mmd2, "penalty_interpolated": slope, "features": size}
        return LossValue(
            slope + self.l2_penalty * size - mmd2,
            {name: value.detach().mean() for name, value in metrics.items()},
        )
