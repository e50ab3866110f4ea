"""Generators as carriers: the surrogate loss and the operator A_θ (GPM eqs. 10-14; framework §1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from partikel.tensors import flat_sum


def surrogate_loss(x: Tensor, velocity: Tensor) -> Tensor:
    """-⟨g_θ(z), stopgrad ∇h(g_θ(z))⟩ for each sample: its gradient is -J_θ g(z)ᵀ ∇h (GPM eq. 11).

    Args:
        x: (B, ...) generated points, with a graph to the generator's weights.
        velocity: (B, ...) the field there; detached here.

    Returns:
        (B,) losses. Their value means nothing, their gradient does.
    """
    return -flat_sum(x * velocity.detach())


def ntk_operator(
    generator: nn.Module, z: Tensor, velocity: Callable[[Tensor], Tensor] | Tensor
) -> Tensor:
    """A_θ[V](z) = E_{z'}[K(z, z') V(g(z'))], K the generator's neural tangent kernel (GPM eq. 13).

    One SGD step of rate η on the mean surrogate loss moves every g(z) by η A_θ[∇h](z) + O(η²).
    Computed as a Jacobian-vector product of a vector-Jacobian product; no kernel is built.

    Args:
        generator: g_θ, without batch statistics.
        z: (B, ...) latents; the expectation runs over them.
        velocity: V as a function of points, or its (B, ...) values at g(z).

    Returns:
        (B, ...) A_θ[V](z).
    """
    weights = {name: p.detach() for name, p in generator.named_parameters() if p.requires_grad}

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(generator, parameters, (z,))

    x, pull_back, *_ = vjp(outputs, weights)
    values = velocity(x.detach()) if callable(velocity) else velocity
    (direction,) = pull_back(values / len(z))
    _, moved, *_ = jvp(outputs, (weights,), (direction,))
    return moved.detach()


def generate(generator: nn.Module, z: Tensor, cond: Tensor | None = None) -> Tensor:
    """g(z), without gradients."""
    with torch.no_grad():
        return generator(z, None, cond)
