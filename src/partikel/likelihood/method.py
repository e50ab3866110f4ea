"""The three likelihoods ask one question, and get one answer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from partikel.errors import ConfigError
from partikel.errors.checks import Checked


@dataclass(frozen=True)
class Densities:
    """Log-densities with what they are worth.

    Attributes:
        log_prob: (B,) log ρ(x) in nats, float64; unbiased estimates of the lower bound for an ELBO,
            nan where a map leads back to no origin.
        standard_error: (B,) over the probes, or the draws of an ELBO; 0 where nothing is drawn, nan
            for one draw, of which no error can be told.
        flaws: (B,) what speaks against each: the solver's error in nats of an ODE (the distance from the
            result at half the steps, or ten times the tolerance); 1 where a map cannot be inverted, else
            0; 0 for an ELBO.
        evaluations: of the velocity or the drift, those of the check included.
        latent: (B, ...) where the points come from at t = 0; None for an ELBO.
        converged: whether the flaws are within the limit.
    """

    log_prob: Tensor
    standard_error: Tensor
    flaws: Tensor
    evaluations: int
    latent: Tensor | None = None
    converged: bool = True


class Worth(NamedTuple):
    """What many densities are worth together."""

    solver_error: float | None = None
    """Mean distance from half the work, in nats; None where nothing is integrated."""
    converged: bool = True
    """Whether that is within the limit."""
    found: dict[str, Any] = {}
    """For the record."""


class Method(Checked, ABC):
    """A way to log-densities: its settings, and one question, :meth:`log_prob`.

    A subclass says which law of a model it follows, and how.
    """

    @property
    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """For the record: its name, and the settings that the numbers depend on."""

    @abstractmethod
    def law(self, model: Any, real: Tensor | None = None) -> Any:
        """What gives densities, with a ``shape``; what was made of a model before stays as it is.

        Args:
            model: a trained or exact model, or what this method made of it.
            real: samples of the data, for a field that compares with them.

        Raises:
            ConfigError: for a model without such a law, naming what to use instead.
        """

    def check(
        self, law: Any, x: Tensor, cond: Tensor | None, *, generator: torch.Generator
    ) -> None:
        """Refuse a law whose densities cannot be followed near some points; all are looked at once."""

    @abstractmethod
    def densities(
        self, law: Any, x: Tensor, cond: Tensor | None, *, generator: torch.Generator
    ) -> Densities:
        """Log-densities of a law, whatever they are worth."""

    def worth(self, log_prob: Tensor, flaws: Tensor, dim: int) -> Worth:
        """What densities of points of ``dim`` coordinates are worth.

        Raises:
            NumericsError: where it is nothing (if strict).
        """
        return Worth()

    def log_prob(
        self,
        model: Any,
        x: Tensor,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Densities:
        """Log ρ(x), and what it is worth.

        Args:
            model: see :meth:`law`.
            x: (B, ...) points.
            generator: source of probes, times and noise; the same state gives the same result.
            cond: (B,) labels, whose log ρ(x | label) it then is.
            real: samples of the data, for a field that compares with them.

        Raises:
            ConfigError: for points or settings that cannot be, or a model without such a law.
            NumericsError: where the result is none (if strict), or leaves the finite numbers.
        """
        law = self.law(model, real)
        check_points(x, law.shape)
        self.check(law, x, cond, generator=generator)
        found = self.densities(law, x, cond, generator=generator)
        worth = self.worth(found.log_prob, found.flaws, math.prod(law.shape))
        return replace(found, converged=worth.converged)


def check_points(x: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse points that are not of a model's shape, or not finite.

    Raises:
        ConfigError: saying which.
    """
    if x.ndim != len(shape) + 1 or tuple(x.shape[1:]) != shape:
        raise ConfigError(
            f"this model is of points of shape {shape}, got {tuple(x.shape[1:])}: give a batch of "
            "such points."
        )
    if not x.isfinite().all():
        raise ConfigError("a likelihood is of finite points: leave out those with nan or inf.")
