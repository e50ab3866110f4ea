"""Interpolations between Gaussian latents whose points are Gaussian latents again.

Leśniak et al. 2018, "Distribution-interpolation trade off in generative models". The mean of two
independent draws of N(0, I) has half their variance, so that a generator is asked where it was
never trained. The law that survives means is Cauchy's: of two independent standard Cauchy
variables, (1-λ) c_a + λ c_b is one, for every λ in [0, 1]. So carry each coordinate (or the norm)
to a Cauchy variable by its own distribution function, interpolate there, and come back.

===========================  ==============================================  =====================
method                       path                                            law of its points
===========================  ==============================================  =====================
``linear``                   (1-λ)a + λb                                     N(0, ((1-λ)² + λ²) I)
``spherical``                direction on the sphere, norm linear            norm too concentrated
``cauchy-linear``            each coordinate through Cauchy's law            each coordinate N(0, 1)
``spherical-cauchy-linear``  direction on the sphere, norm through Cauchy's  N(0, I)
===========================  ==============================================  =====================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from partikel.errors import ConfigError, nearest

_SMALLEST = 1e-300  # of a tail's probability: keeps its Cauchy variable finite


def interpolate(
    a: Tensor,
    b: Tensor,
    fractions: Sequence[float] | Tensor,
    method: str = "spherical-cauchy-linear",
    *,
    std: float = 1.0,
) -> Tensor:
    """Points between latents.

    Args:
        a: (B, *shape), where the paths start: draws of N(0, std² I).
        b: (B, *shape), where they end.
        fractions: (F,) places λ in [0, 1]; 0 gives exactly ``a``, 1 exactly ``b``.
        method: one of :data:`METHODS`.
        std: standard deviation of the latents' law.

    Returns:
        (B, F, *shape), in the dtype and on the device of ``a``; computed in float64.

    Raises:
        ConfigError: for an unknown method, or directions of latents with a single entry.
        ValueError: for shapes that differ, fractions outside [0, 1], or a std that is not positive.
    """
    if method not in METHODS:
        raise ConfigError(f"there is no interpolation '{method}': {nearest(method, list(METHODS))}")
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(
            f"latents (B, ...) of one shape expected, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if not std > 0:
        raise ValueError(f"std must be positive, not {std}")
    places = torch.as_tensor(fractions, dtype=torch.float64).cpu()
    if places.ndim != 1 or not ((places >= 0) & (places <= 1)).all():
        raise ValueError("fractions must be a list of numbers in [0, 1]")
    start, end = (z.detach().flatten(1).to("cpu", torch.float64) / std for z in (a, b))
    points = METHODS[method](start[:, None], end[:, None], places[:, None]) * std
    points = points.view(len(a), len(places), *a.shape[1:]).to(a)
    points[:, places == 0] = a.detach()[:, None]
    points[:, places == 1] = b.detach().to(a)[:, None]
    return points


def _linear(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    return (1 - fraction) * a + fraction * b


def _spherical(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    # White 2016's slerp where the norms are equal; his weights leave [|a|, |b|] where they are not
    return _linear(_norm(a), _norm(b), fraction) * _directions(a, b, fraction)


def _cauchy_linear(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    from scipy.special import ndtr, ndtri  # a tenth of PyTorch's time

    def to_cauchy(z: Tensor) -> Tensor:
        return _to_cauchy(_numpy(ndtr, z), _numpy(ndtr, -z))

    mixed = _linear(to_cauchy(a), to_cauchy(b), fraction)
    tail = _numpy(ndtri, _tail(mixed))
    return torch.where(mixed < 0, tail, -tail)


def _spherical_cauchy_linear(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    from scipy.special import gammainc, gammaincc, gammainccinv, gammaincinv

    shape = a.shape[-1] / 2  # |z|²/2 has the Gamma law of this shape

    def to_cauchy(z: Tensor) -> Tensor:
        half_square = _norm(z).square() / 2
        below = _numpy(lambda r: gammainc(shape, r), half_square)
        above = _numpy(lambda r: gammaincc(shape, r), half_square)
        return _to_cauchy(below, above)

    mixed = _linear(to_cauchy(a), to_cauchy(b), fraction)
    tail = _tail(mixed)
    half_square = torch.where(
        mixed < 0,
        _numpy(lambda p: gammaincinv(shape, p), tail),
        _numpy(lambda p: gammainccinv(shape, p), tail),
    )
    return (2 * half_square).sqrt() * _directions(a, b, fraction)


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": _linear,
    "spherical": _spherical,
    "cauchy-linear": _cauchy_linear,
    "spherical-cauchy-linear": _spherical_cauchy_linear,
}
"""Every interpolation by its name: (B, 1, D), (B, 1, D), (F, 1) -> (B, F, D), of unit variance."""


def _numpy(function: Callable[[np.ndarray], np.ndarray], values: Tensor) -> Tensor:
    # scipy's: torch.special.ndtr has no digits left 8 standard deviations below 0
    return torch.from_numpy(np.asarray(function(values.numpy())))


def _to_cauchy(below: Tensor, above: Tensor) -> Tensor:
    """tan(π(F - 1/2)) from F and 1 - F: the smaller of them keeps its digits in the tails."""
    cauchy = 1 / torch.tan(math.pi * torch.minimum(below, above).clamp(min=_SMALLEST))
    return torch.where(below < above, -cauchy, cauchy)


def _tail(cauchy: Tensor) -> Tensor:
    """The probability beyond a standard Cauchy variable, away from 0."""
    return torch.atan2(torch.ones_like(cauchy), cauchy.abs()) / math.pi


def _norm(z: Tensor) -> Tensor:
    return torch.linalg.vector_norm(z, dim=-1, keepdim=True)


def _directions(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    """Unit vectors on the great circle from a's direction to b's, at even angles."""
    if a.shape[-1] < 2:
        raise ConfigError(
            "latents with a single entry have no directions to interpolate: "
            "use 'linear' or 'cauchy-linear'."
        )
    u, w = (z / _norm(z).clamp(min=_SMALLEST) for z in (a, b))
    angle = 2 * torch.atan2(_norm(w - u), _norm(w + u))  # Kahan's: exact near 0 and π too
    across = w - (w * u).sum(-1, keepdim=True) * u
    # from z to -z all great circles are equally short: take one that is easy to compute
    easy = torch.zeros_like(u).scatter_(-1, u.abs().argmin(-1, keepdim=True), 1.0)
    easy = easy - (easy * u).sum(-1, keepdim=True) * u
    across = torch.where(_norm(across) > 1e-9, across, easy)
    across = across / _norm(across).clamp(min=_SMALLEST)
    return torch.cos(fraction * angle) * u + torch.sin(fraction * angle) * across
