"""The operator A_θ: what a generator makes of a field (GPM eqs. 12-14; framework §1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from partikel.errors import ConfigError
from partikel.errors.checks import checked
from partikel.kernels import Kernel, Output, pulled_back, pushed_forward, weight_jacobian

MOST_ENTRIES = 2**27
"""Entries of the largest Jacobian that is built."""


@checked
def ntk_operator(
    generator: nn.Module,
    z: Tensor,
    velocity: Callable[[Tensor], Tensor] | Tensor,
    *,
    at: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """A_θ[V](z) = E_{z'}[K(z, z') V(g(z'))], K the generator's neural tangent kernel (GPM eq. 13).

    One SGD step of rate η on the mean surrogate loss moves every g(z) by η A_θ[∇h](z) + O(η²).
    Computed as a Jacobian-vector product of vector-Jacobian products; no kernel is built.

    Args:
        generator: g_θ, without batch statistics.
        z: (B, ...) latents z'; the expectation runs over them.
        velocity: V as a function of points, or its (B, ...) values at g(z'). The function is asked
            once, about all points.
        at: (A, ...) latents z at which A_θ[V] is wanted; the same where None.
        chunk: latents that go through the generator together, to save memory; all where None.

    Returns:
        (A, ...) A_θ[V](z).
    """
    output, weights = _output(generator), _weights(generator)
    size = len(z) if chunk is None else chunk
    if callable(velocity):
        with torch.no_grad():
            x = torch.cat([output(weights, part) for part in z.split(size)])
        velocity = velocity(x)
    direction = pulled_back(output, weights, z, velocity / len(z), size)
    return pushed_forward(output, weights, z if at is None else at, direction, size).detach()


@checked
def kernel_operator(
    kernel: Kernel, z: Tensor, velocity: Tensor, *, at: Tensor | None = None
) -> Tensor:
    """A_k[V](z) = E_{z'}[k(z, z') V(z')]: what a fixed kernel of latents makes of a field (GPM eq. 18).

    With V = s_p - s_ρ at the particles x(z'), dx(z) = A_k[V](z) dt is the latent-driven Stein flow: the
    training of a generator whose NTK is k(z, z') I and stays so. Where k is a kernel of the particles
    themselves, ``kernel_operator(k, x, V)``, it is the Stein flow (:class:`~partikel.fields.SteinField`).

    Args:
        kernel: k, with a number for its bandwidth.
        z: (B, ...) latents z'.
        velocity: (B, ...) V at the particles of those latents.
        at: (A, ...) latents z; the same where None.

    Returns:
        (A, ...) with the shape of one velocity.
    """
    return kernel.mean(z if at is None else at, z, velocity)


@checked
def ntk_matrix(generator: nn.Module, z: Tensor, other: Tensor | None = None) -> Tensor:
    """K(z, z') = J_θ g(z) J_θ g(z')ᵀ as a matrix, through both Jacobians: for small sizes.

    Args:
        generator: g_θ, without batch statistics.
        z: (B, ...) latents.
        other: (B', ...) latents z'; the same where None.

    Returns:
        (B D, B' D), rows ordered by latent, then by entry of g(z): A_θ[V] is K @ V.flatten() / B'.

    Raises:
        ConfigError: if a Jacobian would have more than :data:`MOST_ENTRIES` entries.
    """
    jacobian = _jacobian(generator, z)
    return jacobian @ (jacobian if other is None else _jacobian(generator, other)).T


@checked
def ntk_spectrum(generator: nn.Module, z: Tensor) -> Tensor:
    """Eigenvalues of A_θ on fields given at g(z), in descending order: (B D,), >= 0.

    Along the eigenvector of λ, one SGD step of rate η moves the outputs by ηλ times the field: what
    has a small λ is smoothed away.

    Raises:
        ConfigError: for too large sizes, see :func:`ntk_matrix`.
    """
    return torch.linalg.eigvalsh(ntk_matrix(generator, z)).flip(0).clamp(min=0) / len(z)


def _weights(generator: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in generator.named_parameters() if p.requires_grad}


def _output(generator: nn.Module) -> Output:
    return lambda weights, z: functional_call(generator, weights, (z,))


def _jacobian(generator: nn.Module, z: Tensor) -> Tensor:
    """(B D, number of weights)."""
    weights = _weights(generator)
    with torch.no_grad():
        size = generator(z[:1]).numel() * len(z)
    size *= sum(value.numel() for value in weights.values())
    if size > MOST_ENTRIES:
        raise ConfigError(
            f"the Jacobian of this generator would have {size:.2g} entries: take fewer latents, or "
            "ntk_operator, which builds none."
        )
    return weight_jacobian(_output(generator), weights, z)
