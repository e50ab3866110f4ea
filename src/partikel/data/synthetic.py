"""Laws of the plane and one of 16 dimensions, drawn fresh on the generator's device, four units across or so.

The mixtures know their exact density (``target``) and label each point with its component.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from partikel.data.base import SyntheticDataset
from partikel.streams import normal
from partikel.targets import GaussianMixture


def mixture(name: str, target: GaussianMixture) -> SyntheticDataset:
    """A Gaussian mixture as a data set, labelled by component."""
    return SyntheticDataset(
        name,
        lambda n, generator, dtype: target.sample_labelled(n, generator=generator, dtype=dtype),
        shape=target.shape,
        sigma_data=target.sigma_data,
        classes=len(target.weights),
        target=target,
    )


def ring(
    modes: int = 8,
    radius: float = 3.0,
    std: float = 0.5,
    weights: Sequence[float] | None = None,
    *,
    name: str = "ring",
) -> SyntheticDataset:
    """Isotropic Gaussians evenly spaced on a circle, the first at angle 0.

    Args:
        modes: number of components.
        radius: of the circle.
        std: standard deviation of each component, positive.
        weights: share of each component, positive; equal where None.
        name: what the data set is called.

    Raises:
        ValueError: where ``std`` or a weight is not positive, or their number is not ``modes``.
    """
    angles = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angles.cos(), angles.sin()], 1)
    return mixture(name, GaussianMixture(means, std=std, weights=weights))


def gaussians() -> SyntheticDataset:
    """The Gaussians of the GPM paper: 5 equal components, means 3(cos, sin)(2πk/5), std 0.5."""
    return ring(5, 3.0, 0.5, name="gaussians")


def unequal() -> SyntheticDataset:
    """The paper's Gaussians with unequal weights: 0.4, 0.25, 0.2, 0.1, 0.05."""
    return ring(5, 3.0, 0.5, (0.4, 0.25, 0.2, 0.1, 0.05), name="unequal")


def grid25() -> SyntheticDataset:
    """25 narrow components (std 0.05) on the grid {-4, -2, 0, 2, 4}² (Lin et al. 2018, PacGAN)."""
    line = torch.arange(-4, 5, 2, dtype=torch.float64)
    return mixture("grid25", GaussianMixture(torch.cartesian_prod(line, line), std=0.05))


def anisotropic() -> SyntheticDataset:
    """Six components in 16 dimensions, weights 0.35 to 0.04, stretched ten times more one way than another.

    Its density is not handed on: what counts modes takes them to be round.
    """
    draws, dim, weights = torch.Generator().manual_seed(16), 16, (0.35, 0.25, 0.2, 0.1, 0.06, 0.04)
    means = 1.5 * torch.randn(len(weights), dim, generator=draws, dtype=torch.float64)
    axes, _ = torch.linalg.qr(torch.randn(len(weights), dim, dim, generator=draws).double())
    stds = torch.logspace(-1, 0, dim, dtype=torch.float64)
    target = GaussianMixture(means, axes * stds.square() @ axes.mT, weights=weights)
    return SyntheticDataset(
        "anisotropic",
        lambda n, generator, dtype: target.sample_labelled(n, generator=generator, dtype=dtype),
        shape=target.shape,
        sigma_data=target.sigma_data,
        classes=len(weights),
    )


def moons() -> SyntheticDataset:
    """Two interleaved half circles, blurred, point-symmetric; labels: which one."""
    scale, blur = 2.5, 0.25

    def sampler(n: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (n,), generator=generator, device=generator.device)
        angle = _uniform(n, generator, dtype) * math.pi
        arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1) * scale
        return _turn(arc, labels) + blur * normal(n, 2, generator=generator, dtype=dtype), labels

    # E(cos a - ½)² = ½ + ¼ and E(sin a - ¼)² = ½ - 1/π + 1/16 over half a turn.
    square = scale**2 * (0.75 + 0.5625 - 1 / math.pi) / 2
    sigma_data = math.sqrt(square + blur**2)
    return SyntheticDataset("moons", sampler, shape=(2,), sigma_data=sigma_data, classes=2)


def spiral() -> SyntheticDataset:
    """Two arms of one and a half turns each, blurred, point-symmetric; labels: which arm.

    Points are close to evenly spread along the arms.
    """
    turns, radius, blur = 1.5, 4.0, 0.1

    def sampler(n: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (n,), generator=generator, device=generator.device)
        # Arc length grows as the square of the radius, hence the root.
        along = _uniform(n, generator, dtype).sqrt_()
        angle = along * (2 * math.pi * turns)
        arm = torch.stack([angle.cos(), angle.sin()], 1) * (radius * along)[:, None]
        return _turn(arm, labels) + blur * normal(n, 2, generator=generator, dtype=dtype), labels

    # E r² = radius² E along² = radius² / 2, half of it in each coordinate.
    sigma_data = math.sqrt(radius**2 / 4 + blur**2)
    return SyntheticDataset("spiral", sampler, shape=(2,), sigma_data=sigma_data, classes=2)


def checkerboard() -> SyntheticDataset:
    """Uniform on the 8 dark squares, of side 2, of a 4 x 4 board over [-4, 4]²; no labels."""

    def sampler(n: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, None]:
        column = torch.randint(4, (n,), generator=generator, device=generator.device)
        half = torch.randint(2, (n,), generator=generator, device=generator.device)
        corner = torch.stack([column, 2 * half + column % 2], 1)
        inside = torch.rand((n, 2), generator=generator, dtype=dtype, device=generator.device)
        return (corner + inside) * 2 - 4, None

    # Each coordinate by itself is uniform on [-4, 4].
    return SyntheticDataset("checkerboard", sampler, shape=(2,), sigma_data=8 / math.sqrt(12))


def _uniform(n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.rand(n, generator=generator, dtype=dtype, device=generator.device)


def _turn(x: Tensor, labels: Tensor) -> Tensor:
    """Reflect the points with label 1 in the origin."""
    return x * (1 - 2 * labels)[:, None].to(x.dtype)
