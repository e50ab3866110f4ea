"""Bits per dimension of images that are stored as bytes: uniform dequantisation, and its Jacobian.

A byte b in 0, ..., ``top`` stands at x = 2b/top - 1. Uniform noise as wide as the distance of two levels,
w = 2/top, makes a density of it: E log[ρ(x + w(U - ½)) w^D] <= log P(b), so

    bits/dim = -(log ρ(x + w(U - ½)) + D log w) / (D log 2),

which for x = (b + U)/128 - 1, w = 1/128, is the -log₂ρ/D + 7 of framework §8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from partikel.errors import DataError
from partikel.errors.checks import checked


@checked
def dequantised(x: Tensor, width: float, *, generator: torch.Generator) -> Tensor:
    """Images (B, ...) at levels ``width`` apart, plus uniform noise in [-width/2, width/2).

    Raises:
        DataError: for points outside of [-1, 1], or that are no levels.
    """
    _check_range(x, width)
    place = (x.double() + 1) / width
    if float((place - place.round()).abs().max()) > 0.05:
        raise DataError(
            f"these images are not at levels {width:.4g} apart, so that noise would be added twice: "
            "give the bytes as they are stored, scaled to [-1, 1]."
        )
    u = torch.rand(x.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return (x.double() + width * (u.to(x.device) - 0.5)).to(x.dtype)


@checked
def bits_per_dim(log_prob: Tensor, dim: int, width: float) -> Tensor:
    """Bits per dimension of bytes from log-densities (nats) of dequantised points in [-1, 1]."""
    return -(log_prob / dim + math.log(width)) / math.log(2)


@checked
def byte_width(top: int) -> float:
    """Distance of two levels of bytes 0, ..., ``top`` scaled to [-1, 1]."""
    return 2 / top


def _check_range(x: Tensor, width: float) -> None:
    largest = float(x.abs().max())
    if largest > 1 + width:
        raise DataError(
            f"images are in [-1, 1], got values up to {largest:.4g}: scale bytes b of 0 to 255 to "
            "2b/255 - 1."
        )
