"""Helpers on tensors that every room may use."""

from __future__ import annotations

from torch import Tensor


def expand_like(values: Tensor, x: Tensor) -> Tensor:
    """Shape per-sample values so that they broadcast over ``x``.

    Args:
        values: (B,), or a scalar tensor.
        x: (B, ...).

    Returns:
        ``values`` as (B, 1, ..., 1) with as many dimensions as ``x``, in its dtype.
    """
    values = values.to(x.dtype)
    return values if values.ndim == 0 else values.view(-1, *([1] * (x.ndim - 1)))


def flat_sum(x: Tensor) -> Tensor:
    """Sum of all entries of each sample: (B, ...) -> (B,)."""
    return x.flatten(1).sum(1)


def shared(values: Tensor) -> Tensor:
    """The same per-sample values, as (1,) where one number was expanded over the batch.

    A solver moves all particles through one time; what a network makes of that time (an embedding)
    then needs computing once, not B times.

    Args:
        values: (B,), possibly made by ``expand`` (its stride is then 0).

    Returns:
        (1,) if ``values`` is an expanded scalar, else ``values`` itself.
    """
    return values[:1] if values.shape[0] > 1 and values.stride(0) == 0 else values
