"""Fields in the space of features: what compares samples compares what a network sees of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError
from partikel.fields.base import At, Context, Field
from partikel.tensors import Asking

if TYPE_CHECKING:
    from typing_extensions import Self

_PASS = 1024  # points that go through the network together


class InFeatures(Field):
    """V(x) = Jφ(x)ᵀ W(φ(x)), W a field of samples that sees the features φ of points, cloud and data.

    Where W is minus the gradient of the first variation of a functional of laws, V is that of the functional
    of their features: ``InFeatures(MMDField(k), φ)`` descends the MMD of the kernel k(φ(x), φ(y)). A
    generator that follows it learns by the gradient of ½‖φ(g(z)) - (φ + W)‖² with φ + W held fixed, as
    drifting and W-Flow do on large images, where a distance of pixels says little (Deng et al. 2026; Han
    et al. 2026).

    It is blind to what φ does not see. Do not judge by the same features what it made.

    Args:
        field: of samples, or another one that nothing trains.
        features: φ, (B, ...) -> (B, ...), differentiable; its answer at a point depends on nothing else.
            It is copied, frozen and asked in evaluation mode.

    Raises:
        ConfigError: for a field that is trained; where it is asked, for features without a gradient.
        ValueError: where it is bound or asked, for features that are not one row a point.
    """

    def __init__(self, field: Field, features: nn.Module) -> None:
        super().__init__()
        if field.losses():
            raise ConfigError(
                f"a {type(field).__name__} is trained, and what trains it would see no features: freeze it, "
                "or give it a network that begins with them."
            )
        self.field = field
        self.features = kept_as_is(features)

    def bind(self, context: Context) -> Self:
        """The same field with the field inside of it bound to features."""
        fields = [inner for inner in self.modules() if isinstance(inner, Field)]
        wanted = frozenset[str]().union(*(inner.requires for inner in fields))
        given = {
            name: self._seen(points)
            for name, points in (("real", context.real), ("particles", context.particles))
            if points is not None and name in wanted
        }
        return super().bind(replace(context, **given))

    def forward(self, x: Tensor, at: At) -> Tensor:
        """The velocities of features, pulled back through φ."""
        return pulled_back(self.features, x, lambda y: self.field(y, at))

    def train(self, mode: bool = True) -> Self:
        """Set training mode, which φ ignores."""
        super().train(mode)
        self.features.eval()
        return self

    def _seen(self, x: Tensor) -> Tensor:
        like = next(self.features.parameters(), x)
        return seen(self.features, x.detach().to(like))


def kept_as_is(features: nn.Module) -> nn.Module:
    """A copy of a network that is not trained."""
    return copy.deepcopy(features).requires_grad_(False).eval()


def seen(features: nn.Module, x: Tensor) -> Tensor:
    """Features of many points, some at a time; with a graph where x has one.

    Raises:
        TypeError: for points of another dtype than the network's.
        ValueError: for points of a shape that it does not take, or features of another number.
    """
    return torch.cat([_asked(features, block) for block in x.split(_PASS)])


def _asked(features: nn.Module, x: Tensor) -> Tensor:
    with Asking(features, x):
        y = features(x)
    if y.ndim < 2 or len(y) != len(x):
        raise ValueError(
            f"features are one row a point, (B, ...): got {tuple(y.shape)} of {tuple(x.shape)}."
        )
    return y


def pulled_back(features: nn.Module, x: Tensor, velocity: Callable[[Tensor], Tensor]) -> Tensor:
    """Jφ(x)ᵀ v(φ(x)), without a graph.

    Args:
        features: φ.
        x: (B, ...).
        velocity: v, asked once, at the features of all points.

    Returns:
        (B, ...).

    Raises:
        ConfigError: for features without a gradient.
        TypeError: as :func:`seen`.
        ValueError: as :func:`seen`.
    """
    points = [block.clone().requires_grad_() for block in x.detach().split(_PASS)]

    def followed(block: Tensor) -> Tensor:
        y = _asked(features, block)
        if not y.requires_grad:
            raise ConfigError(
                "features that move particles have a gradient, and these have none: give a network that "
                "neither rounds nor computes under torch.no_grad."
            )
        return y

    few = len(points) == 1  # one graph is kept; many are made again, one at a time
    with torch.enable_grad():
        first = [followed(block) if few else followed(block).detach() for block in points]
        velocities = velocity(torch.cat(first).detach()).split(_PASS)
        again = first if few else map(followed, points)
        pulled = [
            torch.autograd.grad(y, point, v)[0]
            for y, point, v in zip(again, points, velocities, strict=True)
        ]
    return torch.cat(pulled)
