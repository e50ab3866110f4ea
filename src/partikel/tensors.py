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

    Raises:
        TypeError: if the values are no tensor.
        ValueError: if they are neither one, nor one for each sample.
    """
    if not isinstance(values, Tensor):
        raise TypeError(
            f"times and noise levels are tensors, () or (B,), not a {type(values).__name__}: "
            "torch.as_tensor makes one."
        )
    if values.ndim and values.numel() not in (1, len(x)) and len(x) != 1:
        raise ValueError(
            f"times and noise levels are () or (B,), got {tuple(values.shape)} for points "
            f"{tuple(x.shape)}."
        )
    values = values.to(x.dtype)
    return values if values.ndim == 0 else values.view(-1, *([1] * (x.ndim - 1)))


def flat_sum(x: Tensor) -> Tensor:
    """Sum of all entries of each sample: (B, ...) -> (B,)."""
    return x.flatten(1).sum(1)
