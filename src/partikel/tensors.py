"""Helpers on tensors, and on what modules are asked about them, that every room may use."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
        values: (B,), or a scalar tensor; what is shaped so already stays as it is.
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
    return values if values.ndim in (0, x.ndim) else values.view(-1, *([1] * (x.ndim - 1)))


def columns(*values: Tensor) -> Tensor:
    """Per-sample values side by side, as networks are told conditions.

    Args:
        values: S of them, (), (B,), or (B, 1, ..., 1).

    Returns:
        (B, S), or (1, S) where all samples share them.
    """
    each = [value.flatten(1) if value.ndim > 1 else value.view(-1, 1) for value in values]
    return each[0] if len(each) == 1 else torch.cat(torch.broadcast_tensors(*each), 1)


def all_finite(x: Tensor) -> bool:
    """Whether all numbers are finite: their sum tells, unless it is too large for itself."""
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())


def flat_sum(x: Tensor) -> Tensor:
    """Sum of all entries of each sample: (B, ...) -> (B,)."""
    return x.flatten(1).sum(1)


def sorted_rows(x: Tensor) -> Tensor:
    """Each row in ascending order, (P, n); may reuse the memory of ``x``."""
    if x.device.type == "cpu":
        # NumPy sorts with vector instructions, an order of magnitude faster than PyTorch.
        x.numpy().sort(axis=1)
        return x
    return x.sort(dim=1).values


class Asking:
    """A block that asks a module about points; what does not fit ends in one sentence, at no cost.

    Args:
        module: a network or a field.
        x: (B, ...) points.
        others: what else it is told, by name.

    Raises:
        TypeError: for points of another dtype than the weights, or a network of fewer arguments.
        ValueError: where PyTorch says that shapes, or labels, do not fit.
    """

    __slots__ = ("_module", "_others", "_x")

    def __init__(self, module: nn.Module, x: Tensor, **others: Tensor | None) -> None:
        self._module, self._x, self._others = module, x, others

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Say what does not fit; running out of memory is not of that kind."""
        if kind is TypeError and "positional argument" in str(error):
            raise TypeError(
                f"a {type(self._module).__name__} is called as network(x, c, cond), all three: wrap "
                "what takes fewer in a module with forward(self, x, c=None, cond=None)."
            ) from error
        if kind not in (RuntimeError, IndexError):
            return
        x, cond = self._x, self._others.get("cond")
        asked = f"a {type(self._module).__name__} cannot be asked about points {tuple(x.shape)}"
        dtype = next(self._module.parameters(), x).dtype
        if dtype != x.dtype:
            raise TypeError(
                f"{asked} of {x.dtype}, as its weights are {dtype}: give x.to({dtype})."
            ) from error
        if kind is IndexError and cond is not None:
            raise ValueError(
                f"{asked} with labels from {cond.min()} to {cond.max()}: it does not know all of them."
            ) from error
        shapes = [f", {name} {tuple(v.shape)}" for name, v in self._others.items() if v is not None]
        raise ValueError(f"{asked}{''.join(shapes)}: {str(error).splitlines()[0]}.") from error
