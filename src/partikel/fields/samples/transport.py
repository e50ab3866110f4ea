"""Flows of transport distances: sliced Wasserstein and the Sinkhorn divergence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from partikel.errors.checks import Count, NotNegative, Range
from partikel.fields.base import At, Field
from partikel.kernels import squared_distances
from partikel.streams import normal
from partikel.tensors import sorted_rows

PAIRS = 2**22
"""Most numbers held at once: values on lines, or pairs of points."""

CACHED = 2**18
"""Pairs of points that stay in a processor's cache."""

ANNEALING = 4.0
"""Ratio of successive ε while Sinkhorn's iterations approach the one asked for."""


class SlicedWassersteinField(Field):
    """-δ/δρ ½ SW2²: E_θ θ (T_θ(⟨θ, x⟩) - ⟨θ, x⟩), θ uniform on the sphere (Bonneel et al. 2015).

    T_θ is the optimal transport between the projections of ρ and p on a line, which sorting solves:
    the i-th of P particles goes to the mean of p's quantile function over [(i-1)/P, i/P], whatever
    the number of real samples. The field is -P times the gradient of ½ SW2² of the samples, along
    lines that are drawn afresh in every call; unbiased over them. Time is of the order n log n a
    line, for n particles and real samples.

    In R^D a shift by v gives the field -v/D: take steps of up to D.

    Between the points of a bound cloud the displacement is interpolated linearly along each line,
    beyond them it is that of the last one.

    Args:
        projections: number of lines a call, at least 1.

    Raises:
        ConfigError: for fewer lines.
    """

    requires = frozenset({"real", "particles", "generator"})

    def __init__(self, projections: Count = 64) -> None:
        super().__init__()
        self.projections = projections

    def forward(self, x: Tensor, at: At) -> Tensor:
        """The mean over fresh lines of the way to go along each."""
        real, cloud = self.bound_real(x), self.bound_cloud(x)
        flat, real, cloud = x.detach().flatten(1), real.flatten(1), cloud.flatten(1)
        generator, size = self.bound_generator(), (self.projections, flat.shape[1])
        lines = normal(*size, generator=generator, dtype=flat.dtype).to(flat.device)
        lines = lines / lines.norm(dim=1, keepdim=True)
        velocity = torch.zeros_like(flat)
        for some in lines.split(max(1, PAIRS // max(len(real), len(cloud), len(flat)))):
            places = some @ cloud.T
            order = _argsort(places)
            places = places.gather(1, order)
            ways = _quantile_means(sorted_rows(some @ real.T), len(cloud)) - places
            if self.context.particles is None:
                ways = torch.empty_like(ways).scatter_(1, order, ways)
            else:
                ways = _interpolated(some @ flat.T, places, _shared(places, ways))
            velocity.addmm_(ways.T, some)
        return (velocity / self.projections).view_as(x)


class Potentials(NamedTuple):
    """Dual potentials of entropic transport."""

    real: Tensor
    """(R,) of the transport from the cloud, at the real samples."""
    cloud: Tensor
    """(P,) of the transport from the cloud to itself (or to another), where it goes."""


class SinkhornField(Field):
    """-δ/δρ of the debiased Sinkhorn divergence S_ε(ρ, p): the difference of two transport maps.

        V(x) = T_{ρ,p}(x) - T_{ρ,ρ}(x)

    with S_ε(ρ, p) = OT_ε(ρ, p) - ½ OT_ε(ρ, ρ) - ½ OT_ε(p, p), the cost ½‖x - y‖² and ε = blur² times the
    relative entropy of the plan to the product of its marginals (Feydy et al. 2019). T is the
    barycentric map of the entropic plan, the mean of where x goes; by the envelope theorem it holds
    the whole gradient, that of the potentials included. The field is -P times the gradient of S_ε of P
    particles, as far as the iterations have converged. For blur -> 0 it is the displacement of exact
    transport, for blur -> ∞ it is the difference of the two means.

    A cloud is closer to itself than to any fresh draw, so that V at a point of the target is biased,
    less and less as the clouds grow. With ``halves`` no point meets itself (W-Flow, Han et al. 2026,
    "One-step generative modeling via Wasserstein gradient flows", arXiv:2605.11755, eq. 13):

        V(x) = T_{q,p}(x) - T_{q,q'}(x),    x in q, and q' a second, independent batch of ρ

    At the target it is 0 on average, if q' is as large as the real batch. Where W-Flow draws two
    batches of outputs and moves one, here q and q' are halves of the cloud, drawn afresh in every call,
    and each is the other's second batch. (Two batches that stay the same drive each other apart: the
    difference of their means grows as e^t. Fresh halves of the same particles do not.) In a generator
    model with ``eta=1`` the generator is fitted to x + V(x), as theirs is. An encoder's features, which
    they compare, are :class:`~partikel.fields.InFeatures`. Not here: their guidance by labels (eq. 16),
    their scaling of costs and of V.

    Sinkhorn's iterations run on logarithms, in blocks of rows, from a large ε down, in step for both
    maps, so that where ρ = p the field is 0 after any number of them. For a bound cloud they run once,
    at binding; its halves are then those of its order, and points are driven by the mean of what drives
    either. Small blurs converge slowly; each iteration is four passes over all pairs.

    Args:
        blur: √ε, a length > 0.
        iterations: most of them at the last ε.
        tolerance: stop when a step moves all potentials by less than this times ε; about the
            relative error of the plan's marginals.
        halves: whether the own map is between halves of the cloud.

    Raises:
        ConfigError: for values out of range.
    """

    requires = frozenset({"real", "particles"})

    def __init__(
        self,
        blur: Annotated[float, Range(least=1e-12)],
        *,
        iterations: Count = 200,
        tolerance: NotNegative = 1e-3,
        halves: bool = False,
    ) -> None:
        super().__init__()
        if halves:
            self.requires = self.requires | {"generator"}
        self.blur = blur
        self.iterations = iterations
        self.tolerance = tolerance
        self.halves = halves
        self._solved: tuple[Potentials, ...] = ()

    def forward(self, x: Tensor, at: At) -> Tensor:
        """T_{ρ,p}(x) - T_{ρ,ρ}(x)."""
        real, cloud = self.bound_real(x), self.bound_cloud(x)
        flat, real, cloud = x.detach().flatten(1), real.flatten(1), cloud.flatten(1)
        with torch.no_grad():
            if not self.halves or self.context.particles is not None:
                solved = self._solved or self._solve(cloud, real)
                velocity = torch.stack(self._driven((flat,) * len(solved), cloud, real, solved))
                return velocity.mean(0).view_as(x)
            order = torch.randperm(len(x), generator=self.bound_generator(), device=x.device)
            cloud, velocity = flat[order], torch.empty_like(flat)
            halves = cloud.tensor_split(2)
            velocity[order] = torch.cat(self._driven(halves, cloud, real, self._solve(cloud, real)))
        return velocity.view_as(x)

    def _driven(
        self,
        points: tuple[Tensor, ...],
        cloud: Tensor,
        real: Tensor,
        solved: tuple[Potentials, ...],
    ) -> list[Tensor]:
        """What each part of the cloud makes of the points that it is asked about."""
        others = cloud.tensor_split(len(solved))[::-1]
        return [
            _barycentres(some, real, each.real.to(some), self.blur**2)
            - _barycentres(some, other, each.cloud.to(some), self.blur**2)
            for some, other, each in zip(points, others, solved, strict=True)
        ]

    def potentials(self, cloud: Tensor, real: Tensor, other: Tensor | None = None) -> Potentials:
        """Sinkhorn's iterations for points (P, D) and (R, D).

        Args:
            cloud: (P, D).
            real: (R, D).
            other: (Q, D), where the cloud's own transport goes; itself where None.
        """
        other = cloud if other is None else other
        both = torch.cat([cloud, real] if other is cloud else [cloud, other, real])
        span = 4 * float((both - both.mean(0)).square().sum(1).max())
        levels, eps = [], max(span, self.blur**2)
        while eps > self.blur**2:
            levels.append(eps)
            eps /= ANNEALING
        g, p = real.new_zeros(len(real)), other.new_zeros(len(other))
        for eps in levels + [self.blur**2] * self.iterations:
            # the same steps for both: what is left of their errors cancels as ρ nears p
            before = g, p
            g = _softmin(real, cloud, _softmin(cloud, real, g, eps), eps)
            p = _softmin(other, cloud, _softmin(cloud, other, p, eps), eps)
            moved = torch.maximum((g - before[0]).abs().max(), (p - before[1]).abs().max())
            if eps == self.blur**2 and moved <= self.tolerance * eps:
                break
        return Potentials(g, p)

    def _solve(self, cloud: Tensor, real: Tensor) -> tuple[Potentials, ...]:
        """Potentials of the cloud, or of its two halves."""
        parts = cloud.tensor_split(2) if self.halves else (cloud,)
        pairs = zip(parts, parts[::-1], strict=True)
        return tuple(self.potentials(own, real, other) for own, other in pairs)

    def prepare(self) -> None:
        """Solve for the potentials of a bound cloud, once."""
        cloud, real = self.context.particles, self.context.real
        if cloud is not None and real is not None:
            self.requires = self.requires - {"generator"}  # its halves are those of its order
            with torch.no_grad():
                self._solved = self._solve(cloud.flatten(1), real.to(cloud).flatten(1))


def _quantile_means(ordered: Tensor, n: int) -> Tensor:
    """Means of the quantile function of m sorted points over n equal shares: (p, m) -> (p, n)."""
    p, m = ordered.shape
    if m % n == 0:
        return ordered.view(p, n, m // n).mean(2)
    # its integral up to i/n: whole points, and a part (in units of 1/n) of the next
    ends = torch.arange(n + 1, device=ordered.device) * m
    whole, part = ends // n, (ends % n).double() / n
    integral = torch.nn.functional.pad(ordered.double().cumsum(1), (1, 0))
    after = ordered.double()[:, whole.clamp(max=m - 1)]
    integral = integral[:, whole] + part * after
    return (integral.diff(dim=1) * (n / m)).to(ordered.dtype)


def _shared(places: Tensor, ways: Tensor) -> Tensor:
    """Displacements (p, n) of sorted places, those of places that coincide replaced by their mean."""
    if not (places.diff(dim=1) == 0).any():
        return ways
    first, last = (torch.searchsorted(places, places, right=right) for right in (False, True))
    total = torch.nn.functional.pad(ways.double().cumsum(1), (1, 0))
    return ((total.gather(1, last) - total.gather(1, first)) / (last - first)).to(ways)


def _interpolated(points: Tensor, places: Tensor, ways: Tensor) -> Tensor:
    """Displacements of sorted places (p, n), linearly interpolated at other points (p, b)."""
    above = torch.searchsorted(places, points.contiguous()).clamp(1, places.shape[1] - 1)
    low, high = places.gather(1, above - 1), places.gather(1, above)
    share = ((points - low) / (high - low)).nan_to_num(0.0).clamp(0, 1)
    return torch.lerp(ways.gather(1, above - 1), ways.gather(1, above), share)


def _argsort(values: Tensor) -> Tensor:
    if values.device.type == "cpu":  # NumPy sorts with vector instructions, several times faster
        return torch.from_numpy(values.numpy().argsort(axis=1))
    return values.argsort(dim=1)


def _softmin(x: Tensor, y: Tensor, potential: Tensor, eps: float) -> Tensor:
    """-ε log E_y exp((potential(y) - ½‖x - y‖²)/ε) at every x: (n, D), (m, D), (m,) -> (n,)."""
    sums = [plan.sum(1).log_().add_(peak[:, 0]) for plan, peak in _plans(x, y, potential, eps)]
    shift = torch.tensor(len(y), dtype=x.dtype, device=x.device).log()
    return -eps * (torch.cat(sums) - shift)


def _barycentres(x: Tensor, y: Tensor, potential: Tensor, eps: float) -> Tensor:
    """Where the entropic plan sends each x, on average: (n, D)."""
    centre = y.mean(0)
    parts = [(p @ (y - centre)) / p.sum(1, keepdim=True) for p, _ in _plans(x, y, potential, eps)]
    return torch.cat(parts) + centre


def _plans(x: Tensor, y: Tensor, potential: Tensor, eps: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of exp((potential(y) - ½‖x - y‖²)/ε - peak) and their peaks, (n, m) and (n, 1)."""
    centre = y.mean(0)  # which leaves less to round
    x, y, potential = x - centre, y - centre, potential / eps
    pairs = min(PAIRS, CACHED) if x.device.type == "cpu" else PAIRS
    for rows in x.split(max(1, pairs // len(y))):
        logits = squared_distances(rows, y, exact=False).mul_(-0.5 / eps).add_(potential)
        peak = logits.amax(1, keepdim=True)
        # what is below e^-80 of the peak counts for nothing, and processors are slow at it
        yield logits.sub_(peak).clamp_(min=-80).exp_(), peak
