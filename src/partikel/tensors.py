"""Helpers on tensors that every room may use."""

from __future__ import annotations

import math

from torch import Tensor

from partikel.errors import ConfigError

MOST = 4 * 2**30
"""Bytes of samples that are held at a time."""


def check_memory(n: int, shape: tuple[int, ...], width: int = 4) -> None:
    """Refuse samples that would fill the memory, before any is drawn.

    Args:
        n: how many.
        shape: of one.
        width: bytes of a number.

    Raises:
        ConfigError: where they take more than :data:`MOST` bytes.
    """
    each = math.prod(shape) * width
    if n * each > MOST:
        size = min(n * each, 10**21) / 1e9  # whole numbers are larger than any float
        raise ConfigError(
            f"{n:,} samples take {size:.1f} GB, more than the {MOST / 1e9:.1f} GB that are "
            f"drawn at a time: ask for at most {MOST // each:,}, and for more with other seeds."
        )


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
