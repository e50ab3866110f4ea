"""The multilayer perceptron of the GPM paper's two-dimensional experiments, for every role."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from partikel.networks.activations import activation as find_activation
from partikel.networks.conditions import UNCONDITIONAL, Conditioned, Conditioning, ScalarConditions


class MLP(Conditioned):
    """Linear(in, width), then ``depth`` times [activation, Linear]; conditions join the input.

    The paper's "MLP 4x512" is ``width=512, depth=4``.

    Args:
        in_shape: shape of one input, (D,) or an image's; flattened.
        out_shape: shape of one output; () gives logits (B,).
        width: units of each hidden layer.
        depth: hidden layers.
        activation: "leaky_relu", "relu", "silu", "softplus", "tanh" or "identity".
        final_activation: applied to the output; None = "identity".
        norm: "none", or "spectral" normalisation of all weights (Miyato et al. 2018).
        conditions: what the network is told.

    Raises:
        ValueError: an unknown name or a number out of range.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        width: int = 512,
        depth: int = 4,
        activation: str = "leaky_relu",
        final_activation: str | None = None,
        norm: str = "none",
        conditions: Conditioning = UNCONDITIONAL,
    ) -> None:
        super().__init__(ScalarConditions(conditions))
        if norm not in ("none", "spectral"):
            raise ValueError(f"norm of an MLP must be none or spectral, not '{norm}'")
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be at least 1, not {width} and {depth}")
        self.inputs = math.prod(in_shape)
        self.out_shape = tuple(out_shape)
        self.activation = find_activation(activation)
        self.final_activation = find_activation(final_activation or "identity")
        self.first = nn.Linear(self.inputs + self.conditions.dim, width)
        self.rest = nn.ModuleList(
            nn.Linear(i, o) for i, o in pairwise([width] * depth + [math.prod(out_shape)])
        )
        if norm == "spectral":
            for layer in (self.first, *self.rest):
                spectral_norm(layer)

    def compute(self, x: Tensor, e: Tensor | None) -> Tensor:
        """See :class:`Conditioned`; where all rows share ``e``, the first layer meets it once."""
        h = x.flatten(1)
        weight, bias = self.first.weight, self.first.bias
        if e is not None and e.shape[0] == h.shape[0]:
            h = torch.cat([h, e], 1)
        elif e is not None:
            # W [x, e] + b = W_x x + (W_e e + b): what all rows share is a bias.
            bias = F.linear(e, weight[:, self.inputs :], bias)[0]
            weight = weight[:, : self.inputs]
        h = F.linear(h, weight, bias)
        for layer in self.rest:
            h = layer(self.activation(h))
        return self.final_activation(h).view(h.shape[0], *self.out_shape)
