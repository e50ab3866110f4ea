"""The flow of the maximum mean discrepancy (Arbel et al. 2019; GPM Table 2; framework §2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from partikel.errors.checks import NotNegative
from partikel.fields.base import At, Field
from partikel.kernels import Kernel
from partikel.streams import normal_like
from partikel.tensors import expand_like


class MMDField(Field):
    """E_{y~p} ∇_x k(x, y) - E_{y~ρ} ∇_x k(x, y): minus the gradient of ½ MMD²(ρ, p).

    Each x ascends the witness function E_p k(x, ·) - E_ρ k(x, ·). Both means are sums over all samples,
    in tiles: time grows as B (R + P), memory does not.

    A particle's own term is part of E_ρ, so that for P particles the field is -P times the gradient of the
    V-statistic ½ MMD², exactly. ∇_x k vanishes at x = y for every kernel but the NTK, so that this only
    decides between 1/P and 1/(P - 1). For particles, which are the law themselves, 1/P is right. The P
    outputs of a generator are a draw from ρ: over draws their mean repulsion is (1 - 1/P) of that by ρ, and
    the unbiased choice would be 1/(P - 1), the field of the U-statistic. The difference is of the order of
    1/P, that between two draws of 1/√P: large batches make both small.

    Args:
        kernel: k; a bandwidth of "median" is measured on what the field is bound to: the real samples
            and, if they are bound, the particles.
        noise: β, a number >= 0 or a function of generation times: the field is asked at x + β ξ, ξ
            standard normal and fresh for each point and call (Arbel et al. 2019, §4.1). It lets
            particles leave the places where the field vanishes; β must decrease for them to settle.

    Raises:
        ConfigError: if ``noise`` is negative.
    """

    requires = frozenset({"real", "particles"})

    def __init__(
        self, kernel: Kernel, *, noise: NotNegative | Callable[[Tensor], Tensor] = 0.0
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.noise = noise
        if callable(noise) or noise > 0:
            self.requires = self.requires | {"generator"}

    def forward(self, x: Tensor, at: At) -> Tensor:
        """∇ of the witness function at x, or at x + β ξ."""
        real, cloud = self.bound_real(x), self.bound_cloud(x)
        point = x.detach()
        if "generator" in self.requires:
            draw = normal_like(x, self.bound_generator())
            beta = expand_like(self.noise(at.t), x) if callable(self.noise) else self.noise
            point = point + beta * draw
        return self.kernel.gradient(point, real) - self.kernel.gradient(point, cloud)

    def prepare(self) -> None:
        """Measure a bandwidth of "median"."""
        clouds = (self.context.real, self.context.particles)
        self.kernel = self.kernel.fitted(*(cloud for cloud in clouds if cloud is not None))
