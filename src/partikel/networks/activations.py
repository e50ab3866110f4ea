"""Pointwise nonlinearities, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "relu": F.relu,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}
"""Name -> function. LeakyReLU has the slope 0.2 of DCGAN and of the GPM paper."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The nonlinearity called ``name``.

    Raises:
        ValueError: no such nonlinearity.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not '{name}'")
    return ACTIVATIONS[name]
