"""The field: what moves particles (GPM Definition 1; framework §1-2).

A field is called on points of the path and returns a velocity for each. Fields form an algebra:
``f + g``, ``f - g``, ``2 * f``, ``weight * f`` with a function ``weight(t)``. A field that depends on
the whole cloud, on real samples or on random draws is *bound* to them first and is then a plain
function of its points. A learned field says through :meth:`Field.losses` what trains it.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from partikel.data import Batch
from partikel.errors import ConfigError, DataError, NumericsError
from partikel.errors.checks import Checked, checked
from partikel.fields.particles import At, Particles
from partikel.objectives import exact
from partikel.schedules import Schedule
from partikel.streams import Streams
from partikel.tensors import Asking, all_finite, expand_like

if TYPE_CHECKING:
    from typing_extensions import Self

Weight: TypeAlias = float | Callable[[Tensor], Tensor]
"""A number, or a function of generation times, () or (B,), shaped like them."""


@checked
@dataclass(frozen=True)
class Context:
    """What a context-dependent field is bound to.

    Attributes:
        real: (R, ...) samples of the data.
        particles: (P, ...) samples of the generated law.
        generator: source of the random draws of a stochastic field.
    """

    real: Tensor | None = None
    particles: Tensor | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class TrainingBatch:
    """What one update of a loss may use.

    Attributes:
        real: a batch of data, where the loss needs it.
        particles: particles of the carrier, without gradients, where the loss needs them.
        size: number of samples of the update.
        streams: the random streams to draw from.
        cond: (size,) labels for what a generator makes; those of ``real`` unless given. (A generator whose
            field compares with real samples has those of the whole batch in ``real``.)
    """

    real: Batch | None
    particles: Particles | None
    size: int
    streams: Streams
    cond: Tensor | None = None

    @property
    def labels(self) -> Tensor | None:
        """``cond``, or that of ``real``."""
        return self.real.cond if self.cond is None and self.real is not None else self.cond


@dataclass(frozen=True)
class LossValue:
    """A loss and what is worth logging beside it.

    Attributes:
        loss: (B,) losses, whose mean is minimised.
        metrics: detached scalars by name.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = dataclass_field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """A loss that trains (a part of) a field or a carrier.

    Attributes:
        name: how phases refer to it; unique within a model.
        module: whose parameters it trains.
        needs: of {"real", "particles", "moved"}: what :class:`TrainingBatch` must hold; "moved" goes
            with "particles" and asks for where one step of the carrier takes them.
        compute: the loss itself.
        adds_noise: whether the loss perturbs clean points itself (denoising score matching), so that
            nothing else may noise them first.
        whole: called with the whole batch before it is split into micro-batches or over processes, by
            losses whose value at one sample depends on the others; returns it with ``particles``.
    """

    name: str
    module: nn.Module
    needs: frozenset[str]
    compute: Callable[[TrainingBatch], LossValue]
    adds_noise: bool = False
    whole: Callable[[TrainingBatch], TrainingBatch] | None = None


CONTEXTS = {
    "real": (
        "compares particles with real samples",
        "pass some, as model.sample(..., real=X) or field.bind(Context(real=X))",
    ),
    "particles": (
        "compares particles with their cloud",
        "ask for bound_cloud(x), which is the points themselves unless it is bound",
    ),
    "generator": (
        "draws random numbers",
        "bind it first, as field.bind(Context(generator=...)); model.sample binds its own",
    ),
}
"""What a field may require of its context: what it does then, and where that comes from."""
_AT = {
    "sigma": "at.sigma (the noise level: give the model a schedule, or the point At(t, sigma))",
    "cond": "at.cond (the labels: only a conditional model has them)",
}


class Field(Checked, nn.Module, ABC):
    """What moves particles: a velocity at points of the path, ``field(x, At(t, sigma, cond))``.

    A subclass writes ``__init__`` and ``forward``, and says what it ``requires``; what was bound it asks
    for by :meth:`bound_real`, :meth:`bound_cloud` and :meth:`bound_generator`. A learned one says in
    :meth:`own_losses` what trains it. Everything else is done here: fields inside of a field are bound,
    frozen and trained with it.

    Attributes:
        requires: of {"real", "particles", "generator"}: the context without which this field by itself
            cannot be evaluated (see :attr:`needs` for those inside of it, too). Without bound particles
            the points that it is asked about are the cloud: they then have to be asked about together.
        context: what it is bound to.
    """

    requires: frozenset[str] = frozenset()
    context: Context = Context()
    unchecked = frozenset({"forward"})  # as it is asked through a call

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse the signature of earlier versions, (x, t, sigma, cond), where a field is defined."""
        super().__init_subclass__(**options)
        written = cls.__dict__.get("forward")
        if written is not None and [*inspect.signature(written).parameters] != ["self", "x", "at"]:
            raise TypeError(
                f"{cls.__name__}.forward takes (self, x, at): read t, sigma and cond from the record "
                "at, and call inner fields as field(x, at)."
            )
        requires = cls.__dict__.get("requires", frozenset())
        if not isinstance(requires, (set, frozenset)) or not requires <= set(CONTEXTS):
            raise TypeError(
                f"{cls.__name__}.requires is a set of {', '.join(map(repr, CONTEXTS))}, got {requires!r}."
            )

    def __init__(self) -> None:
        super().__init__()
        self._frozen = False

    def __call__(self, x: Tensor, at: At, *earlier: object) -> Tensor:
        """See :meth:`forward`; what does not fit together is a TypeError or a ValueError."""
        if earlier or not isinstance(at, At):
            raise TypeError("a field is asked as field(x, At(t, sigma, cond)), with one record.")
        if not (isinstance(x, Tensor) and isinstance(at.t, Tensor) and x.is_floating_point()):
            raise TypeError(
                f"a field is asked at points (B, ...) and times, () or (B,), floating-point tensors: "
                f"got {getattr(x, 'dtype', x)!r:.60} and {getattr(at.t, 'dtype', at.t)!r:.60}."
            )
        try:
            with Asking(self, x, t=at.t, sigma=at.sigma, cond=at.cond):
                velocity = super().__call__(x, at)
        except (TypeError, AttributeError) as error:
            if (said := self._met_none(at, error)) is None:
                raise
            raise TypeError(said) from error
        if not isinstance(velocity, Tensor):
            got = "None" if velocity is None else f"a {type(velocity).__name__}"
            raise TypeError(
                f"the forward of {type(self).__name__} returned {got}: return the velocities, a tensor of "
                f"the shape of x, {tuple(x.shape)}."
            )
        if velocity.shape != x.shape:
            raise ValueError(
                f"a {type(self).__name__} answered {tuple(velocity.shape)} at points of shape "
                f"{tuple(x.shape)}: points and velocities have one shape, (B, ...)."
            )
        return velocity

    def _met_none(self, at: At, error: Exception) -> str | None:
        """What the line that failed has asked for and is None here, and how to come by it."""
        if "NoneType" not in str(error):
            return None
        told = {name: how for name, how in _AT.items() if getattr(at, name) is None}
        for name, (_, how) in CONTEXTS.items():
            if getattr(self.context, name) is None:
                declare = (
                    "" if name in self.requires else f"declare requires = frozenset({{'{name}'}}), "
                )
                told[name] = f"self.context.{name} ({declare}{how})"
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        used = [told[name] for name in frame.f_code.co_names if name in told]
        of = type(self).__name__
        return f"the forward of {of} used what is None here: {'; '.join(used)}." if used else None

    @abstractmethod
    def forward(self, x: Tensor, at: At) -> Tensor:
        """The velocity at points of the path.

        Args:
            x: (B, ...) positions.
            at: generation times, noise levels and labels.

        Returns:
            (B, ...) velocities.

        Raises:
            ConfigError: if the field needs a context (see ``needs``) or a noise level it has not.
        """

    # --- what it is bound to

    @property
    def needs(self) -> frozenset[str]:
        """What it, or a field inside of it, requires and is not bound to."""
        own = {name for name in self.requires if getattr(self.context, name) is None}
        return frozenset(own).union(*(inner.needs for inner in self._inner()))

    @property
    def draws(self) -> bool:
        """Whether it, or a field inside of it, draws random numbers wherever it is asked."""
        return "generator" in self.requires or any(inner.draws for inner in self._inner())

    @property
    def defined_at_end(self) -> bool:
        """Whether it has a velocity at σ = 0, which scores have not; where all fields inside of it have."""
        inner = [field.defined_at_end for field in self._inner()]
        return bool(inner) and all(inner)

    def bind(self, context: Context) -> Self:
        """The same field with its context fixed; a field that requires none of it returns itself.

        What the context does not have stays as it was bound before.

        Raises:
            ConfigError: without real samples that are required, or with fewer than two particles.
            DataError: if a real sample is not finite.
            NumericsError: if a particle is not.
        """
        given = {
            name: value
            for name in self.requires
            if (value := getattr(context, name)) is not None
            and value is not getattr(self.context, name)
        }
        if "real" in self.requires:
            real = context.real if context.real is not None else self.context.real
            if real is None or not len(real):
                raise self._unbound("real")
            if not all_finite(real):
                raise DataError("real samples must be finite: look for NaN or inf in the data.")
        if "particles" in given:
            check_cloud(given["particles"])
        modules = {name: _bound(module, context) for name, module in self._modules.items()}
        if not given and all(modules[name] is self._modules[name] for name in modules):
            return self
        bound = copy(self)
        bound._modules = modules
        bound.context = replace(self.context, **given)
        bound.prepare()
        return bound

    def prepare(self) -> None:
        """Compute once what follows from the context, for a field that can; called when it is bound."""

    def bound_real(self, x: Tensor) -> Tensor:
        """The real samples (R, ...) that it is bound to, typed like ``x``.

        Raises:
            ConfigError: if it is bound to none.
            ValueError: if they are of another shape than the points.
        """
        real = self.context.real
        if real is None:
            raise self._unbound("real")
        if real.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"real samples of shape {tuple(real.shape[1:])} and points of {tuple(x.shape[1:])} differ: "
                "pass samples of the data that the points are of."
            )
        return real.to(x)

    def bound_cloud(self, x: Tensor) -> Tensor:
        """The cloud (P, ...) that it is bound to, or the points themselves, without gradients.

        Raises:
            ConfigError: for fewer than two particles.
            NumericsError: if a particle is not finite.
        """
        if self.context.particles is not None:
            return self.context.particles.to(x).detach()
        check_cloud(x)
        return x.detach()

    def bound_generator(self) -> torch.Generator:
        """The source of randomness that it is bound to.

        Raises:
            ConfigError: if it is bound to none.
        """
        if self.context.generator is None:
            raise self._unbound("generator")
        return self.context.generator

    def _unbound(self, name: str) -> ConfigError:
        """What is missing of the context, or was not declared."""
        does, how = CONTEXTS[name]
        if name not in self.requires:
            how = f"declare it, requires = frozenset({{'{name}'}}) in the class, and it is bound"
        return ConfigError(f"a {type(self).__name__} {does}: {how}.")

    # --- what trains it

    def own_losses(self) -> tuple[Loss, ...]:
        """What trains the field while it is not frozen, in the order of an iteration.

        Those of the fields inside of it, unless overridden; a field that occurs twice is trained once.
        """
        found = [loss for inner in self._inner() for loss in inner.losses()]
        return tuple(loss for i, loss in enumerate(found) if loss not in found[:i])

    def losses(self) -> tuple[Loss, ...]:
        """What trains the field; empty if it is frozen or nothing does.

        Raises:
            ConfigError: if two losses share a name.
        """
        return () if self._frozen else unique_losses(self.own_losses())

    def loss(
        self,
        real: Batch | Tensor | None = None,
        particles: Particles | None = None,
        *,
        streams: Streams,
    ) -> Tensor:
        """The mean loss, for a loop of one's own: ``field.loss(x, particles, streams=s).backward()``.

        Args:
            real: a batch of data, (B, ...) or with labels.
            particles: as many particles of a carrier, for a field that looks at them.
            streams: source of times and noise.

        Returns:
            The sum over :meth:`losses` of their means, with a graph.

        Raises:
            ConfigError: if nothing trains the field, or points that a loss needs are missing.
        """
        losses = self.losses()
        if isinstance(real, Tensor):
            real = Batch(real, None)
        given = {
            name
            for name, points in (("real", real), ("particles", particles))
            if points is not None
        }
        missing = sorted(frozenset[str]().union(*(loss.needs for loss in losses)) - given)
        if missing or not losses:
            raise ConfigError(
                f"a loss of this {type(self).__name__} needs "
                f"{' and '.join(missing).replace('real', 'real points')}: pass them."
                if missing
                else f"nothing trains this {type(self).__name__}: it has no loss."
            )
        points = real.x if real is not None else particles.x if particles is not None else ()
        batch = TrainingBatch(real, particles, len(points), streams)
        return torch.stack([loss.compute(batch).loss.mean() for loss in losses]).sum()

    def freeze(self) -> Self:
        """Keep this field as it is: no losses, no gradients, evaluation mode for good."""
        self.requires_grad_(False)
        for module in self.modules():  # what is taken out of a frozen field stays frozen
            if isinstance(module, Field):
                module._frozen = True
        return self.eval()

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` was called."""
        return self._frozen

    def train(self, mode: bool = True) -> Self:
        """Set training mode, which a frozen field ignores (dropout stays off in it)."""
        return super().train(mode and not self._frozen)

    def _inner(self) -> Iterator[Field]:
        """The fields right inside of this one."""
        for module in self._modules.values():
            members = module if isinstance(module, nn.ModuleList) else [module]
            yield from (each for each in members if isinstance(each, Field))

    # --- the algebra

    def __add__(self, other: Field) -> Field:
        return Sum(_terms(self) + _terms(other)) if isinstance(other, Field) else NotImplemented

    def __sub__(self, other: Field) -> Field:
        return self + (-1.0) * other if isinstance(other, Field) else NotImplemented

    def __mul__(self, weight: Weight) -> Field:
        return Scaled(self, weight)

    __rmul__ = __mul__

    def __neg__(self) -> Field:
        return Scaled(self, -1.0)


def check_weight(weight: object, what: str) -> None:
    """Refuse what is no weight (TypeError)."""
    if isinstance(weight, nn.Module) or not (isinstance(weight, (int, float)) or callable(weight)):
        raise TypeError(f"{what} is a number or a function of t, not {type(weight).__name__}")


class Scaled(Field):
    """``weight * field``: a field multiplied by a number or a function of generation time.

    Args:
        field: any field.
        weight: a number, or a function of generation times, () or (B,), shaped like them.
    """

    def __init__(self, field: Field, weight: Weight) -> None:
        super().__init__()
        check_weight(weight, "what multiplies a field")
        self.field = field
        self.weight = weight

    def forward(self, x: Tensor, at: At) -> Tensor:
        """weight(t) · field(x, at)."""
        velocity = self.field(x, at)
        if callable(self.weight):
            return expand_like(self.weight(at.t), x) * velocity
        return self.weight * velocity


class Sum(Field):
    """The sum of several fields ("additively combined", GPM §3).

    Args:
        terms: at least one field.
    """

    def __init__(self, terms: tuple[Field, ...]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, x: Tensor, at: At) -> Tensor:
        """The sum of the terms' velocities."""
        return reduce(operator.add, (term(x, at) for term in self.terms))


def ascent(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A potential and its gradient at points; with a graph only where x has one (divergence, training).

    Args:
        potential: (B, ...) -> (B,), differentiable.
        x: (B, ...).

    Returns:
        (B,) values and (B, ...) gradients.
    """
    followed = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad(), exact() if followed else nullcontext():  # differentiated once more
        point = x if followed else x.detach().requires_grad_()
        value = potential(point)
        (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=followed)
    return (value if followed else value.detach()), gradient


@dataclass(frozen=True)
class Along:
    """A loss whose real samples are what the data are along a path, (x + σ(t)ε)/u(t) (framework §6).

    A dataclass, so that two of the same loss are equal.

    Attributes:
        compute: the loss.
        schedule: the path; particles that have no noise level get its.
        noised: whether real samples are noised here.
    """

    compute: Callable[[TrainingBatch], LossValue]
    schedule: Schedule
    noised: bool = True

    def __call__(self, batch: TrainingBatch) -> LossValue:
        """The loss of a batch of clean data."""
        real, particles = batch.real, batch.particles
        assert real is not None
        assert particles is not None
        if self.noised:
            x = self.schedule.noised(real.x, particles.t, generator=batch.streams.noise)
            real = replace(real, x=x)
        if particles.sigma is None:
            particles = replace(particles, sigma=self.schedule.sigma(particles.t))
        return self.compute(replace(batch, real=real, particles=particles))


def check_cloud(cloud: Tensor) -> None:
    """Refuse a cloud that is too small (ConfigError) or not finite (NumericsError)."""
    if len(cloud) < 2:
        raise ConfigError(
            f"a field of samples needs a cloud of at least two particles, got {len(cloud)}: move them "
            "together, or bind it to a cloud (Context(particles=...))."
        )
    if not all_finite(cloud):
        raise NumericsError(
            "particles left the finite numbers: take more steps or a weaker field (smaller eta)."
        )


def _bound(module: nn.Module | None, context: Context) -> nn.Module | None:
    if isinstance(module, Field):
        return module.bind(context)
    if isinstance(module, nn.ModuleList):
        parts = [_bound(each, context) for each in module]
        same = all(new is old for new, old in zip(parts, module, strict=True))
        return module if same else nn.ModuleList(parts)  # type: ignore[arg-type]
    return module


def unique_losses(losses: Sequence[Loss]) -> tuple[Loss, ...]:
    """The losses, whose names and trained modules must all be different.

    Raises:
        ConfigError: if two share a name, or train the same network in different ways.
    """
    names = [loss.name for loss in losses]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ConfigError(
            f"two losses of a model are called '{twice[0]}': give one of the fields another name "
            "(or train a network that occurs twice in one way only)."
        )
    return tuple(losses)


def _terms(field: Field) -> tuple[Field, ...]:
    if isinstance(field, Sum):
        return tuple(term for term in field.terms if isinstance(term, Field))
    return (field,)
