"""What every carrier is asked, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from partikel.data import Batch
from partikel.errors import ConfigError, NumericsError, nearest
from partikel.errors.checks import Checked, Natural, checked
from partikel.fields import Context, Field, Loss
from partikel.fields.base import Weight
from partikel.fields.particles import Particles
from partikel.priors import Prior
from partikel.schedules import Nodes, Schedule
from partikel.solvers import Solver, State
from partikel.streams import Streams
from partikel.tensors import all_finite


@checked
@dataclass(frozen=True)
class Sampling:
    """How samples are drawn, where not as the model says.

    Attributes:
        grid: the nodes, by a rule or in fixed places.
        stop: stop after so many steps.
        solver: instead of the model's own.
        guidance: weight of the labels, see :class:`~partikel.fields.Guided`; one evaluation of a guided
            field is two of its network's.
        path: along which a probability flow is followed instead of its own path, see
            :meth:`~partikel.models.ParticleModel.along`.
    """

    grid: Nodes | None = None
    stop: Natural | None = None
    solver: Solver | None = None
    guidance: Weight | None = None
    path: Schedule | None = None

    @classmethod
    def of(
        cls, sampling: Sampling | None = None, *, steps: int | None = None, **options: Any
    ) -> Sampling:
        """A record, or one made of options by name.

        Args:
            sampling: the record; then there are no options.
            steps: number of steps of the model's own grid.
            options: other attributes.
        """
        if steps is not None:
            if options.get("grid") is not None:
                raise ConfigError(
                    "a grid has its own number of steps: leave out steps, or the grid."
                )
            options["grid"] = Nodes(steps)
        if sampling is not None and options:
            raise TypeError(f"{', '.join(options)}: give these in the record of sampling.")
        valid = [each.name for each in fields(cls)]
        for name in options.keys() - valid:
            raise TypeError(f"sampling has no option '{name}': {nearest(name, ['steps', *valid])}")
        return cls(**options) if sampling is None else sampling

    @property
    def protocol(self) -> dict[str, Any]:
        """What departs from the model's own way, by name, for the record."""
        grid, solver = self.grid or Nodes(), self.solver
        named = {
            "steps": grid.steps,
            "grid": None if grid.rule is None else repr(grid.rule),
            "times": None if grid.times is None else list(grid.times),
            "stop": self.stop,
            "solver": None if solver is None else _named(solver),
            "guidance": self.guidance,
            "path": None if self.path is None else type(self.path).__name__,
        }
        return {key: value for key, value in named.items() if value is not None}


def _named(solver: Solver) -> str:
    """Its class, with what differs from the defaults."""
    told = fields(solver) if is_dataclass(solver) else ()
    values = [(each.name, getattr(solver, each.name), each.default) for each in told]
    settings = ", ".join(f"{name}={value!r}" for name, value, usual in values if value != usual)
    return f"{type(solver).__name__}({settings})" if settings else type(solver).__name__


class Carrier(Checked, nn.Module, ABC):
    """What a field moves.

    Hardly anything outside of this folder asks which class a carrier is: it asks for what it needs.

    Attributes:
        kind: "particles", "generator" or "flow map", for what is shown to people.
        field: the field.
        prior: where it starts: the law of particles at t = 0, or of a generator's latents.
        horizon: T, the generation time of a sample.
        schedule: the path of noise levels, of particles on one.
        shape: of one sample, where it is known from the start on; None for a generator.
        steps: how many steps sampling takes unless asked for another number; None where it is one call,
            and the samples move in training time.
        stage_of_training: in which stage of a training that has several it is. Averages of weights start
            anew with each: what earlier stages left is what particles were moved by.
        shared_calls: whether all processes of a training call every network equally often.
        conditional: whether particles carry labels; in training they are those of the data.
        label_weights: (K,) shares of the classes, by which labels are drawn for samples that are
            asked for without; None where they are unknown.

    Args:
        field: what moves.
        prior: where it starts.
        conditional: whether particles carry labels.
        label_weights: (K,) shares of the classes, of a conditional model.
    """

    kind: ClassVar[str]
    horizon: float
    schedule: Schedule | None = None
    shape: tuple[int, ...] | None = None
    steps: int | None = None
    stage_of_training: int = 0
    shared_calls: ClassVar[bool] = False
    label_weights: Tensor | None

    def __init__(
        self,
        field: Field,
        prior: Prior,
        conditional: bool = False,
        label_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.field = field
        self.prior = prior
        self.conditional = conditional or label_weights is not None
        shares = label_weights
        if shares is not None and not (
            shares.ndim == 1 and (shares >= 0).all() and shares.sum() > 0
        ):
            raise ConfigError("label_weights are the shares of the classes, (K,) numbers >= 0.")
        # saved with the weights: samples keep the shares of the data that the model was trained on
        self.register_buffer("label_weights", label_weights)

    @property
    @abstractmethod
    def sampled(self) -> nn.Module:
        """The module that sampling evaluates, whose moving average is worth keeping."""

    def losses(self) -> tuple[Loss, ...]:
        """What trains the field, then what trains the carrier, in the order of an iteration."""
        return self.field.losses()

    @property
    def follows_path(self) -> bool:
        """Whether samples follow a velocity that is known all along a path of noised data."""
        return False

    def alone(self) -> Carrier:
        """Leave behind what only its training asks; its samples stay what they are."""
        return self

    def updated(self) -> None:
        """Called by the loop after each iteration.

        A carrier whose loss follows an average of its own network, a *teacher*, moves it here: it belongs
        to the carrier, and is not the average that sampling uses.
        """

    @abstractmethod
    def particles(
        self,
        n: int,
        streams: Streams,
        *,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Particles:
        """Particles to train the field on, without gradients.

        Args:
            n: how many.
            streams: random streams (latent, time, noise).
            cond: (n, ...) labels.
            real: samples of the data, for a field that compares with them.

        Raises:
            NumericsError: if particles leave the finite numbers.
        """

    def sample(
        self,
        n: Natural,
        *,
        generator: torch.Generator,
        start: Tensor | None = None,
        cond: Tensor | None = None,
        real: Tensor | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Tensor:
        """Draw samples, without gradients.

        Args:
            n: how many.
            generator: source of all randomness.
            start: (n, ...) where they start, instead of draws of the prior.
            cond: (n, ...) labels, for a conditional model; drawn by ``label_weights`` unless given.
            real: samples of the data, for a field that compares with them.
            sampling: how they are drawn; as the model says unless given.
            options: or what of it departs: ``steps``, ``grid``, ``stop``, ``solver``, ``guidance``,
                ``path``.

        Returns:
            (n, ...) samples.

        Raises:
            ConfigError: for labels that the model does not know, or options that it does not have.
            NumericsError: if samples leave the finite numbers.
            ValueError: for other numbers of starts or labels than n.
        """
        sampling, cond = Sampling.of(sampling, **options), self._labels(n, cond, generator)
        start = self.start(n, generator) if start is None else self._begun(start, n)
        x = self._sampled(start, cond, Context(real=real, generator=generator), sampling)
        if not all_finite(x):
            raise NumericsError(
                f"samples of this {self.kind} model left the finite numbers: its weights grew too large "
                "in training, or are damaged; train it again with a lower learning rate or clipping."
            )
        return x

    @abstractmethod
    def _sampled(
        self, start: Tensor, cond: Tensor | None, context: Context, sampling: Sampling
    ) -> Tensor:
        """Samples from where they start, in a context of real samples and a generator."""

    def stream(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        real: Tensor | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Iterator[State]:
        """Move given starts (B, ...) to samples, handing out what is on the way; arguments as of sampling.

        Raises:
            ConfigError: for a model with nothing on the way.
        """
        raise ConfigError(f"samples of a {self.kind} model do not move while they are generated.")

    def paths(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        steps: int | None = None,
    ) -> Iterator[State] | None:
        """Where the flow that a flow map has learned takes starts (B, ...), at the times of :meth:`stream`.

        Nothing where that is not known; None of carriers whose particles follow the field themselves.
        """
        return None

    def evaluations(
        self, *, real: Tensor | None = None, sampling: Sampling | None = None, **options: Any
    ) -> int:
        """How often the field (or a generator, once) is evaluated to draw a sample, the NFE.

        Args:
            real: samples of the data, for a field that compares with them.
            sampling: as of :meth:`sample`.
            options: likewise.
        """
        return 1

    def pull(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor | None:
        """The field at the model's samples (n, ...), which is nothing where they have the data's law.

        None of carriers that tell nothing by it: whose field is a path's, or compares class by class.
        """
        return None

    def move(
        self, particles: Particles, streams: Streams, real: Batch | Tensor | None
    ) -> Particles:
        """The particles with where one step takes them, for losses that need it.

        Args:
            particles: all of an update.
            streams: random streams.
            real: samples of the data, with labels where the model is conditional.

        Raises:
            ConfigError: if the carrier has no such loss.
        """
        raise ConfigError(f"a {type(self).__name__} has no loss that needs moved particles.")

    def labels(self, n: int, *, generator: torch.Generator) -> Tensor | None:
        """(n,) labels at the data's frequencies, where they are known; else None, and no draw."""
        if self.label_weights is None:
            return None
        shares = self.label_weights.to(generator.device)
        return torch.multinomial(shares, n, replacement=True, generator=generator)

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, ...) draws of the prior, in the dtype of the model's weights."""
        like = next(self.sampled.parameters(), None)
        dtype = torch.get_default_dtype() if like is None else like.dtype
        return self.prior.sample(n, generator=generator, dtype=dtype)

    def _begun(self, start: Tensor, n: int | None = None) -> Tensor:
        """Where samples are told to start, if samples of this model can."""
        shape = (len(start) if n is None else n, *self.prior.shape)
        if tuple(start.shape) != shape:
            raise ValueError(f"samples start at points {shape}, got {tuple(start.shape)}.")
        dtype = next(self.sampled.parameters(), start).dtype
        if start.dtype != dtype:
            raise TypeError(f"this model's weights are {dtype}: start at start.to({dtype}).")
        if not start.isfinite().all():
            raise ValueError("samples start at finite points: look for NaN or inf in start.")
        return start

    def _labels(self, n: int, cond: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Labels to sample: those given, if they are the model's, or drawn."""
        if cond is None:
            return self.labels(n, generator=generator)
        if len(cond) != n:
            raise ValueError(f"{n} samples have {n} labels, got {len(cond)}.")
        if self.label_weights is not None:
            count = len(self.label_weights)
            wrong = cond[(cond < 0) | (cond > count)]  # the null label, K, is one of the networks'
            if len(wrong):
                raise ConfigError(
                    f"the labels of this model are 0 to {count - 1}, got {int(wrong[0])}."
                )
        return cond
