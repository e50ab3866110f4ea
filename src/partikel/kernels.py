"""Kernels: what particles and data are compared through, with the sums that a field needs.

A kernel is called on two clouds, ``k(x, y)`` is the matrix of k(x_i, y_j). Fields need its means over
a cloud, E_y k(x, y) and E_y ∇_x k(x, y): those are summed over tiles of pairs that stay in the
processor's cache, so that 50,000 against 50,000 particles need no more memory than the particles. All
kernels are symmetric, k(x, y) = k(y, x); where one has no gradient at x = y (Laplace, Riesz), it is 0
there.

Sources: Gretton et al. 2012 (median heuristic); Székely & Rizzo 2013 (energy distance, the Riesz
kernel of power 1); Gorham & Mackey 2017 (inverse multiquadric); Jacot et al. 2018 (neural tangent
kernel).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from partikel.errors import ConfigError, DataError
from partikel.errors.checks import Checked, Count, Positive, Range, check, checked

Bandwidth: TypeAlias = Positive | Literal["median"]
"""A length, or the median distance of the points that the kernel is fitted to."""

Factors: TypeAlias = Annotated[tuple[Positive, ...], Range(1)]

TILE = 2**20
"""Bytes of a tile of pairs."""

MEDIAN_POINTS = 1000
"""Most points of each cloud that a median distance is taken over."""

_PASS = 4096  # points that go through a network together
_FEW = 4  # coordinates up to which differences are both faster and more exact than products


class Kernel(Checked, nn.Module, ABC):
    """A symmetric function k of two points.

    Points are (n, ...), of any shape; all results have their dtype and device.
    """

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix k(x_i, y_j): (n, ...), (m, ...) -> (n, m), differentiable in both clouds."""

    def mean(self, x: Tensor, y: Tensor, values: Tensor | None = None) -> Tensor:
        """E_y[k(x, y) v(y)] at every x, without gradients.

        Args:
            x: (n, ...).
            y: (m, ...).
            values: (m, ...) v(y); 1 where None.

        Returns:
            (n,), or (n, ...) with the shape of one value.
        """
        weights = _weights(y, values)
        with torch.no_grad():
            parts = [self(block, y) @ weights for block in _blocks(x, y)]
        return torch.cat(parts).view(len(x), *(() if values is None else values.shape[1:]))

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """E_y ∇_x k(x, y) at every x, without a graph: (n, ...), (m, ...) -> (n, ...)."""
        parts = []
        for block in _blocks(x, y):
            with torch.enable_grad():
                point = block.detach().requires_grad_()
                total = self(point, y.detach()).sum() / len(y)
                parts.append(torch.autograd.grad(total, point)[0])
        return torch.cat(parts)

    def repulsion(self, x: Tensor, y: Tensor) -> Tensor:
        """E_y ∇_y k(x, y) at every x, the second half of a Stein field: (n, ...), (m, ...) -> (n, ...).

        Taken as the gradient in one shift of all y, point by point: kernels that know better do better.
        """

        def total(shift: Tensor, point: Tensor) -> Tensor:
            return self(point[None], y.detach() + shift).mean()

        zeros = torch.zeros_like(x[0])
        return torch.stack([grad(total)(zeros, point) for point in x.detach()])

    def stein(self, x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        """E_y[k(x, y) v(y) + ∇_y k(x, y)] at every x, values of the points' shape: (n, ...)."""
        return self.mean(x, y, values) + self.repulsion(x, y)

    def fitted(self, *clouds: Tensor) -> Kernel:
        """This kernel with a bandwidth of "median" measured on these clouds (n, ...) together."""
        return self


class RadialKernel(Kernel):
    """A function of the distance ‖x - y‖.

    Attributes:
        smooth: whether k is smooth at x = y, so that distances may carry the rounding error of a
            matrix product.
    """

    smooth: bool = True

    @abstractmethod
    def profile(self, squared: Tensor) -> Tensor:
        """K as a function of ‖x - y‖², differentiable; the gradient is 0 at 0."""

    @abstractmethod
    def slope(self, squared: Tensor) -> Tensor:
        """W with ∇_x k(x, y) = w (x - y), 0 at x = y; may overwrite its argument."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix k(x_i, y_j)."""
        _alike(x, y)
        return self.profile(squared_distances(*_centred(x, y), exact=not self.smooth))

    def mean(self, x: Tensor, y: Tensor, values: Tensor | None = None) -> Tensor:
        """E_y[k(x, y) v(y)], in tiles."""
        _alike(x, y)
        weights = _weights(y, values)
        total = x.new_zeros(weights.shape[1], len(x))
        with torch.no_grad():
            for rows, columns, squared in self._tiles(*_centred(x, y)):
                total[:, rows].addmm_(weights[columns].T, self.profile(squared))
        return total.T.reshape(len(x), *(() if values is None else values.shape[1:]))

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """E_y[w (x - y)], in tiles: two sums, of w and of w y."""
        _alike(x, y)
        with torch.no_grad():
            flat, others = _centred(x, y)
            factors = torch.cat([others, torch.ones_like(others[:, :1])], 1).T.contiguous()
            total = flat.new_zeros(len(factors), len(flat))
            for rows, columns, squared in self._tiles(flat, others):
                total[:, rows].addmm_(factors[:, columns], self.slope(squared))
            return ((flat * total[-1, :, None] - total[:-1].T) / len(y)).view_as(x)

    def repulsion(self, x: Tensor, y: Tensor) -> Tensor:
        """-E_y ∇_x k(x, y)."""
        return -self.gradient(x, y)

    def _tiles(self, x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows of x, rows of y, and their squared distances with those of y first."""
        side = max(16, TILE // x.element_size() // 256)
        for top in range(0, len(x), 256):
            for left in range(0, len(y), side):
                rows, columns = slice(top, top + 256), slice(left, left + side)
                yield (
                    rows,
                    columns,
                    squared_distances(y[columns], x[rows], exact=not self.smooth),
                )


class ScaledKernel(RadialKernel):
    """A radial kernel with a bandwidth.

    Args:
        bandwidth: a length > 0, or "median".

    Raises:
        ConfigError: for another bandwidth.
    """

    def __init__(self, bandwidth: Bandwidth = "median") -> None:
        super().__init__()
        self.bandwidth: Bandwidth = bandwidth
        self._measured: float | None = None

    @property
    def length(self) -> float:
        """The bandwidth as a number.

        Raises:
            ConfigError: if it is "median" and the kernel was not fitted.
        """
        length = self._measured if self.bandwidth == "median" else self.bandwidth
        if length is None:
            raise ConfigError(
                "this kernel's bandwidth is the median distance of points that it was not given: "
                "fit it to some (kernel.fitted(points)), or set a number."
            )
        return float(length)

    def fitted(self, *clouds: Tensor) -> Kernel:
        """A kernel whose :attr:`length` is known; "median" is measured anew whenever it is fitted."""
        if self.bandwidth != "median":
            return self
        kernel = copy.copy(self)  # it holds numbers only
        kernel._measured = median_distance(*clouds)
        return kernel

    def extra_repr(self) -> str:
        """The bandwidth."""
        return f"bandwidth={self.bandwidth}"


class RBFKernel(ScaledKernel):
    """exp(-‖x - y‖²/2h²), h the bandwidth."""

    def profile(self, squared: Tensor) -> Tensor:
        """exp(-‖x - y‖²/2h²)."""
        return (squared * (-0.5 / self.length**2)).exp()

    def slope(self, squared: Tensor) -> Tensor:
        """-k/h²."""
        h = self.length
        return squared.mul_(-0.5 / h**2).exp_().mul_(-1 / h**2)

    def stein(self, x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        """E_y[k v + k (x - y)/h²], in one pass: its slope is k, but for a factor."""
        (flat, others), rate = _centred(x, y), self.length**-2
        pulls = torch.cat(
            [values.flatten(1) - rate * others, rate * torch.ones_like(others[:, :1])], 1
        )
        total = self.mean(x, y, pulls)
        return (total[:, :-1] + flat * total[:, -1:]).view_as(x)


class MultiRBFKernel(ScaledKernel):
    """The mean of RBF kernels of several bandwidths.

    Args:
        bandwidth: a length > 0, or "median".
        factors: the kernels' bandwidths, in units of it.

    Raises:
        ConfigError: for another bandwidth, or factors that are not positive.
    """

    def __init__(
        self, bandwidth: Bandwidth = "median", factors: Sequence[float] = (0.25, 0.5, 1, 2, 4)
    ) -> None:
        super().__init__(bandwidth)
        self.factors = tuple(factors)
        check(self.factors, Factors, "the factors of a multi-bandwidth kernel")

    def profile(self, squared: Tensor) -> Tensor:
        """E_h exp(-‖x - y‖²/2h²)."""
        return torch.stack([kernel for _, kernel in self._kernels(squared)]).mean(0)

    def slope(self, squared: Tensor) -> Tensor:
        """-E_h k_h/h²."""
        total = torch.zeros_like(squared)
        for h, kernel in self._kernels(squared):
            total.add_(kernel, alpha=-1 / h**2 / len(self.factors))
        return total

    def _kernels(self, squared: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Each bandwidth h with its kernel, the widest first."""
        kernel, wider, climbed = squared, math.inf, 0
        for factor in sorted(self.factors, reverse=True):
            # at half the bandwidth it is the fourth power, cheaper than an exponential; each climb
            # multiplies the rounding error by four, so few in a row
            if factor == wider / 2 and climbed < 2:
                kernel, climbed = kernel.square().square(), climbed + 1
            else:
                kernel, climbed = (squared * (-0.5 / (factor * self.length) ** 2)).exp(), 0
            yield factor * self.length, kernel
            wider = factor


class LaplaceKernel(ScaledKernel):
    """exp(-‖x - y‖/h), h the bandwidth."""

    smooth = False

    def profile(self, squared: Tensor) -> Tensor:
        """exp(-‖x - y‖/h)."""
        return (_root(squared) / -self.length).exp()

    def slope(self, squared: Tensor) -> Tensor:
        """-k/(h‖x - y‖)."""
        h = self.length
        distance = squared.sqrt_()
        weight = (distance / -h).exp_().div_(distance.mul(-h))
        return weight.masked_fill_(distance == 0, 0)


class IMQKernel(ScaledKernel):
    """The inverse multiquadric (1 + ‖x - y‖²/h²)^(-½), h the bandwidth."""

    def profile(self, squared: Tensor) -> Tensor:
        """(1 + ‖x - y‖²/h²)^(-½)."""
        return (1 + squared / self.length**2).rsqrt()

    def slope(self, squared: Tensor) -> Tensor:
        """-k³/h²."""
        h = self.length
        k = squared.div_(h**2).add_(1).rsqrt_()
        return k.square().mul_(k).mul_(-1 / h**2)


class RieszKernel(RadialKernel):
    """-‖x - y‖^r, conditionally positive definite; its MMD² is the energy distance at r = 1.

    Without a bandwidth: it acts at every scale.

    Args:
        power: r, 0 < r < 2.

    Raises:
        ConfigError: for another power.
    """

    smooth = False

    def __init__(self, power: Annotated[float, Range(above=0, below=2)] = 1.0) -> None:
        super().__init__()
        self.power = power

    def profile(self, squared: Tensor) -> Tensor:
        """-‖x - y‖^r."""
        distance = _root(squared)
        return -distance if self.power == 1 else -(distance**self.power)

    def slope(self, squared: Tensor) -> Tensor:
        """-r ‖x - y‖^(r - 2)."""
        coincide = squared == 0
        weight = squared.rsqrt_() if self.power == 1 else squared.pow_(self.power / 2 - 1)
        return weight.mul_(-self.power).masked_fill_(coincide, 0)

    def extra_repr(self) -> str:
        """The power."""
        return f"power={self.power}"


class NTKKernel(Kernel):
    """The neural tangent kernel of a network f with one output: ⟨∂_w f(x), ∂_w f(y)⟩.

    Its means are exact and cost no more than passes over the points: E_y k(x, y) v(y) is the
    derivative of f(x) in the weights along E_y v(y) ∂_w f(y), and no kernel matrix is built.

    Args:
        network: f, (n, ...) -> (n,), without batch statistics; its weights are read, not trained.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix ⟨∂_w f(x_i), ∂_w f(y_j)⟩, through both Jacobians: for small clouds."""
        jacobians = [weight_jacobian(self._output, self._weights(), cloud) for cloud in (x, y)]
        return jacobians[0] @ jacobians[1].T

    def mean(self, x: Tensor, y: Tensor, values: Tensor | None = None) -> Tensor:
        """E_y[k(x, y) v(y)], one derivative for each entry of a value."""
        moved = [
            pushed_forward(self._output, self._weights(), x.detach(), self._direction(y, column))
            for column in _weights(y, values).T
        ]
        return torch.stack(moved, 1).view(len(x), *(() if values is None else values.shape[1:]))

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """E_y ∇_x k(x, y)."""
        weights, direction = self._weights(), self._direction(y, _weights(y, None)[:, 0])
        along = grad(lambda some: pushed_forward(self._output, weights, some, direction).sum())
        return torch.cat([along(block) for block in x.detach().split(_PASS)])

    def _output(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.network, weights, (x,))

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.network.named_parameters()}

    def _direction(self, y: Tensor, values: Tensor) -> dict[str, Tensor]:
        return pulled_back(self._output, self._weights(), y.detach(), values)


class RandomFourierFeatures(nn.Module):
    """φ with ⟨φ(x), φ(y)⟩ = exp(-‖x - y‖²/2h²) on average (Rahimi & Recht 2007): features of points.

    Args:
        shape: of a point.
        frequencies: how many, each with its cosine and its sine.
        bandwidth: h, a length > 0.
        generator: draws them; a fresh one with seed 0 unless given, so that they are the same everywhere.
    """

    frequencies: Tensor

    @checked
    def __init__(
        self,
        shape: Sequence[int],
        frequencies: Count = 16,
        bandwidth: Positive = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        draws = torch.randn(math.prod(shape), frequencies, generator=generator)
        self.register_buffer("frequencies", draws / bandwidth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, 2 · frequencies)."""
        angles = x.flatten(1) @ self.frequencies.to(x)
        return torch.cat([angles.cos(), angles.sin()], 1) / math.sqrt(self.frequencies.shape[1])


Output: TypeAlias = Callable[[dict[str, Tensor], Tensor], Tensor]
"""(weights, points (n, ...)) -> what a network makes of them, (n, ...)."""


@checked
def pulled_back(
    output: Output, weights: dict[str, Tensor], x: Tensor, values: Tensor, chunk: int = _PASS
) -> dict[str, Tensor]:
    """Σ_x J_w f(x)ᵀ v(x): the direction of the weights that values (n, ...) at f(x) ask for."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for block, some in zip(x.split(chunk), values.split(chunk), strict=True):
        _, pull_back, *_ = vjp(lambda w, points=block: output(w, points), weights)
        (part,) = pull_back(some)
        total = {name: value + part[name] for name, value in total.items()}
    return total


@checked
def pushed_forward(
    output: Output,
    weights: dict[str, Tensor],
    x: Tensor,
    direction: dict[str, Tensor],
    chunk: int = _PASS,
) -> Tensor:
    """J_w f(x) · direction: how f(x) moves where the weights do, (n, ...)."""
    return torch.cat(
        [
            jvp(lambda w, points=block: output(w, points), (weights,), (direction,))[1]
            for block in x.split(chunk)
        ]
    )


@checked
def weight_jacobian(output: Output, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """J_w f, (n · entries of f(x), number of weights): for small sizes."""
    rows = vmap(jacrev(lambda w, point: output(w, point[None])[0].flatten()), in_dims=(None, 0))(
        weights, x
    )
    return torch.cat([part.flatten(2) for part in rows.values()], 2).flatten(0, 1)


@checked
def median_distance(*clouds: Tensor) -> float:
    """The median heuristic: the median distance of the points of all clouds together.

    Args:
        clouds: (n, ...) each; at most :data:`MEDIAN_POINTS` of each are taken, evenly spaced in it.

    Raises:
        DataError: if there are fewer than two points, or half of the pairs coincide.
    """
    some = [cloud[:: -(-len(cloud) // MEDIAN_POINTS)].flatten(1) for cloud in clouds if len(cloud)]
    points = torch.cat(some) if some else torch.zeros(0, 1)
    if len(points) < 2:
        raise DataError("a median distance needs at least two points: give a bandwidth instead.")
    median = float(torch.pdist(points.detach()).median())
    if not 0 < median < torch.inf:
        raise DataError(
            f"the median distance of the points is {median}, which is no bandwidth: give a number."
        )
    return median


@checked
def squared_distances(x: Tensor, y: Tensor, *, exact: bool = True) -> Tensor:
    """‖x_i - y_j‖²: (n, D), (m, D) -> (n, m), new memory, differentiable.

    Args:
        x: (n, D).
        y: (m, D).
        exact: each from the differences of its points, so that it is 0 where they coincide; else, in
            many dimensions, from a matrix product, faster, with an error of the order of the rounding
            of ‖x‖² + ‖y‖².
    """
    if x.shape[1] <= _FEW:
        columns = y.T.contiguous()
        total = (x[:, :1] - columns[0]).square()
        for d in range(1, x.shape[1]):
            gap = x[:, d : d + 1] - columns[d]
            total = torch.addcmul(total, gap, gap)
        return total
    if exact:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    ones = torch.ones_like
    left = torch.cat([-2 * x, x.square().sum(1, keepdim=True), ones(x[:, :1])], 1)
    right = torch.cat([y, ones(y[:, :1]), y.square().sum(1, keepdim=True)], 1)
    return (left @ right.T).clamp_(min=0)


def _alike(x: Tensor, y: Tensor) -> None:
    """Refuse clouds of unlike points (ValueError)."""
    if x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
        raise ValueError(
            f"a kernel compares points of one shape and dtype, not {tuple(x.shape)} of {x.dtype} and "
            f"{tuple(y.shape)} of {y.dtype}"
        )


def _root(squared: Tensor) -> Tensor:
    """√, with derivative 0 at 0."""
    positive = squared > 0
    return squared.where(positive, 1).sqrt().where(positive, 0)


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both clouds less the mean of y, which cancels in x - y and leaves less to round: (n, D), (m, D)."""
    flat, others = x.flatten(1), y.flatten(1)
    centre = others.detach().mean(0)
    return flat - centre, others - centre


def _weights(y: Tensor, values: Tensor | None) -> Tensor:
    """(m, V) what k(x, y) is summed with: the values over m."""
    values = y.new_ones(len(y), 1) if values is None else values.detach().flatten(1)
    return values / len(y)


def _blocks(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x.split(max(1, TILE // x.element_size() // len(y)))
