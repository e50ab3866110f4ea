"""The one training loop: it runs phases and knows nothing of GANs or diffusion.

It is a generator: each iteration is handed to the caller, who logs, evaluates and saves. Every model
of both papers passes through it; what differs is the list of phases.

A phase's batch is that of all processes together. Each process takes its share of the data, draws its
share of the particles, once for all micro-batches of an update, and adds their gradients up; one
all-reduce then makes the mean over processes. Real and generated rows that a relativistic objective
compares in pairs stay paired, and a field that compares with real samples is bound to the whole batch. A
field that depends on the cloud is asked about the whole batch at once: of several processes, each draws a
cloud of that size and keeps its share of it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from partikel.data import Batch, BatchStream, Dataset
from partikel.errors import ConfigError, DataError, NumericsError, nearest
from partikel.errors.checks import Checked, Natural
from partikel.fields import Loss, TrainingBatch
from partikel.fields.particles import Particles
from partikel.models import Carrier
from partikel.networks import force_weights
from partikel.streams import Streams
from partikel.training.ema import EMA, averaged_model
from partikel.training.engine import (
    Engine,
    accelerator_for,
    start_alike,
    synchronise_batch_norm,
)
from partikel.training.phases import Phase


@dataclass(frozen=True)
class Iteration:
    """What one iteration did.

    Attributes:
        step: number of iterations done, this one included.
        metrics: detached scalars by "loss name/metric" (the last of a phase's repeats), means over
            micro-batches and processes.
    """

    step: int
    metrics: dict[str, Tensor]


class Trainer(Checked):
    """State of a training run: model, optimisers, average, random streams, counter.

    The one counter of progress is ``step``, the number of iterations done; an iteration runs every
    phase once, with its repeats. ``cpu_seconds`` is the process time spent in iterations alone.

    Args:
        model: a carrier with its field.
        dataset: the data.
        phases: what an iteration does, in order.
        iterations: length of the run, which decaying learning rates refer to.
        seed: of all random streams.
        ema: how the sampled weights are averaged (a number is a decay); None keeps no average. It
            lives on the main process.
        engine: how it is computed.
        accelerator: processes and devices; those that the launcher made unless given.

    Raises:
        ConfigError: if a phase names a loss the model lacks, no phase trains anything, or a batch
            cannot be shared by the processes.
    """

    def __init__(
        self,
        model: Carrier,
        dataset: Dataset,
        phases: Sequence[Phase],
        *,
        iterations: Natural,
        seed: int = 0,
        ema: float | EMA | None = None,
        engine: Engine | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.engine = engine or Engine()
        self.accelerator = accelerator or accelerator_for(self.engine)
        self.model = model.to(self.accelerator.device)
        if model.shape not in (None, tuple(dataset.shape)):
            raise ConfigError(
                f"the model is of points {model.shape}, the data '{dataset.name}' of "
                f"{tuple(dataset.shape)}: give its prior their shape."
            )
        self.dataset = dataset
        self.phases = tuple(phases)
        self.iterations = iterations
        self.step = 0
        self.cpu_seconds = 0.0
        device, world = self.accelerator.device, self.accelerator.num_processes
        self._shares = [self.engine.share(p.batch, world, p.loss) for p in self.phases]
        self.streams = Streams(seed, self.accelerator.process_index, device)
        self._losses = _losses_of(model, self.phases)
        # losses of a carrier that only binds its field to the real samples, where it compares with any
        names = {loss.name for loss in model.losses()} if "real" in model.field.needs else set()
        self._binding = names - {loss.name for loss in model.field.losses()}
        # a cloud is that of the whole batch: each process draws as many, and keeps its share
        self._clouds = world if "particles" in model.field.needs else 1
        self._drops_out = any(map(_drops, model.modules()))
        self._field_dropouts = [m for m in model.field.modules() if _drops(m)]
        if world > 1:
            start_alike(model)
            synchronise_batch_norm(model)
        if not self.accelerator.is_main_process:
            ema = None
        self.average = None if ema is None else averaged_model(model.sampled, ema)
        self.engine.install(model, device)
        self.scalers = [self.engine.scaler(device) for _ in self.phases]
        self._found, self._one = torch.tensor([0.0, 1.0], dtype=torch.float32, device=device)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._others: dict[nn.Module | None, list[nn.Parameter]] = {}
        self.optimizers: list[torch.optim.Adam] = []
        self.batches: list[BatchStream | None] = []
        for phase, loss, share in zip(self.phases, self._losses, self._shares, strict=True):
            settings = phase.optimizer
            self.optimizers.append(
                torch.optim.Adam(
                    [p for p in loss.module.parameters() if p.requires_grad],
                    lr=settings.lr,
                    betas=(settings.beta1, settings.beta2),
                    eps=settings.eps,
                    fused=True,
                )
            )
            if force_weights(loss.module):
                self.optimizers[-1].register_step_post_hook(partial(_force, loss.module))
            needs_real = "real" in loss.needs or (model.conditional and "particles" in loss.needs)
            stream = None
            if needs_real or ("particles" in loss.needs and "real" in model.field.needs):
                stream = dataset.batches(
                    share,
                    generator=self.streams.data,
                    device=device,
                    dtype=next(model.parameters()).dtype,
                    shard=(self.accelerator.process_index, world),
                )
            self.batches.append(stream)

    def run(self) -> Iterator[Iteration]:
        """Train until ``iterations``, handing out each iteration after it is done.

        Raises:
            NumericsError: before a non-finite loss or gradient changes any weight.
        """
        self.model.train()
        while self.step < self.iterations:
            started = time.process_time()
            metrics: dict[str, Tensor] = {}
            stage = self.model.stage_of_training
            for index, phase in enumerate(self.phases):
                if self.step % phase.every == 0:
                    metrics.update(self._run_phase(index, phase))
            self.step += 1
            self.model.updated()
            if self.average is not None:
                if self.model.stage_of_training != stage:
                    self.average.restart()
                self.average.update_parameters(self.model.sampled)
            self.cpu_seconds += time.process_time() - started
            yield Iteration(self.step, metrics)

    def _run_phase(self, index: int, phase: Phase) -> dict[str, Tensor]:
        loss, optimizer, stream = self._losses[index], self.optimizers[index], self.batches[index]
        share = self._shares[index]
        rate = phase.optimizer.rate(self.step, self.iterations)
        for group in optimizer.param_groups:
            group["lr"] = rate
        draw: Particles | None = None
        metrics: dict[str, Tensor] = {}
        for repeat in range(phase.repeats):
            real = None if stream is None else self._next(stream)
            particles = None
            if "particles" in loss.needs:
                place = repeat % phase.reuse
                if place == 0:
                    updates = 1 if phase.same else min(phase.reuse, phase.repeats - repeat)
                    with self._training(None), self._dropout():
                        draw = self._draw(share * updates, real, loss, updates)
                assert draw is not None
                particles = draw
                if len(draw) > share:
                    particles = draw[place * share : (place + 1) * share]
            cond = None if real is None else real.cond
            if loss.name in self._binding and "particles" not in loss.needs:
                real = self._context(real)
            batch = TrainingBatch(real, particles, share, self.streams, cond)
            if loss.whole is not None and self.engine.accumulate * self._clouds > 1:
                everyone = self._of_all(cond) if self._clouds > 1 else cond
                whole = replace(batch, size=share * self._clouds, cond=everyone)
                with self._training(None), self._dropout():
                    whole = loss.whole(whole)
                assert whole.particles is not None
                batch = replace(batch, particles=whole.particles[:share])
            metrics = self._update(batch, index)
        return {f"{loss.name}/{name}": value for name, value in metrics.items()}

    def _of_all(self, rows: Tensor | None) -> Tensor | None:
        """The rows of all processes, this one's first."""
        if rows is None or self.accelerator.num_processes == 1:
            return rows
        found = cast(Tensor, self.accelerator.gather(rows))
        return found.roll(-len(rows) * self.accelerator.process_index, 0)

    def _context(self, real: Batch | None) -> Batch | None:
        """The real samples of all processes, if a field compares with them; else this one's."""
        if real is None or "real" not in self.model.field.needs:
            return real
        return Batch(cast(Tensor, self._of_all(real.x)), self._of_all(real.cond))

    def _draw(self, n: int, real: Batch | None, loss: Loss, updates: int) -> Particles:
        context, cond = self._context(real), None
        moves = "moved" in loss.needs
        clouds = self._clouds if moves or self.model.steps is not None else 1
        if self.model.conditional and real is not None and real.cond is not None:
            cond = real.cond.repeat(updates)
            cond = self._of_all(cond) if clouds > 1 else cond
        x = None if context is None else context.x
        particles = self.model.particles(n * clouds, self.streams, cond=cond, real=x)
        if updates > 1:
            device = self.accelerator.device
            particles = particles[
                torch.randperm(n * clouds, generator=self.streams.time, device=device)
            ]
        if moves:
            particles = self.model.move(particles, self.streams, context)
        return particles if clouds == 1 else particles[:n]

    def _update(self, batch: TrainingBatch, index: int) -> dict[str, Tensor]:
        loss, optimizer, scaler = self._losses[index], self.optimizers[index], self.scalers[index]
        optimizer.zero_grad(set_to_none=True)
        count = self.engine.accumulate
        metrics: dict[str, Tensor] = {}
        for part in _parts(batch, count, split_real=loss.name not in self._binding):
            with self._training(loss.module), self._dropout():
                value = loss.compute(part)
            with torch.no_grad():
                mean = value.loss.mean()
            slope = torch.full_like(value.loss, 1 / (value.loss.numel() * count))  # of that mean
            value.loss.backward(slope if scaler is None else scaler.scale(slope))
            for name, figure in {"loss": mean, **value.metrics}.items():
                part_of = figure if count == 1 else figure / count
                metrics[name] = metrics[name] + part_of if name in metrics else part_of
        parameters = optimizer.param_groups[0]["params"]
        if self.accelerator.num_processes > 1:
            metrics = self._reduced(parameters, metrics)
        gradients = [] if scaler else [p.grad for p in parameters if p.grad is not None]
        finite = self._finite([metrics["loss"].float(), *gradients])
        if not finite and not torch.isfinite(metrics["loss"]):
            raise NumericsError(
                f"the loss '{loss.name}' became {metrics['loss'].item()} at iteration "
                f"{self.step + 1}: lower {self._exploded(index)} learning rate, clip its gradients "
                "(optimizer.clip), or check the data."
            )
        clip = self.phases[index].optimizer.clip
        if scaler is not None:
            scaler.unscale_(optimizer)
        elif not finite:
            raise NumericsError(
                f"the gradient of '{loss.name}' became infinite or nan at iteration {self.step + 1}: "
                "lower its learning rate or check the data."
            )
        if clip is not None:
            metrics["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, clip).detach()
        if scaler is None:
            optimizer.step()
            return metrics
        scaler.step(optimizer)  # not where a gradient overflowed; the next loss is scaled less
        scaler.update()
        if scaler.get_scale() < 1:
            raise NumericsError(
                f"the gradient of '{loss.name}' does not fit into fp16 at iteration {self.step + 1}, "
                "however it is scaled: train with engine.precision bf16."
            )
        return metrics

    def _finite(self, numbers: list[Tensor]) -> bool:
        """Whether numbers are finite, in one pass: the operation that GradScaler asks with, by 1."""
        ask = torch._amp_foreach_non_finite_check_and_unscale_  # type: ignore[attr-defined]  # pyright: ignore
        ask(numbers, self._found, self._one)
        if found := bool(self._found.item()):
            self._found.zero_()
        return not found

    def _exploded(self, index: int) -> str:
        """Whose weights are by far the largest where a phase's loss is not finite: its own, or another's."""
        sizes = []
        for optimizer in self.optimizers:
            size = sum(float(p.detach().abs().max()) for p in optimizer.param_groups[0]["params"])
            sizes.append(size if math.isfinite(size) else math.inf)
        worst = max(range(len(sizes)), key=lambda each: (sizes[each], each == index))
        return (
            f"the '{self.phases[worst].loss}' phase's"
            if sizes[worst] > 1e3 * sizes[index]
            else "its"
        )

    def _reduced(self, parameters: list[nn.Parameter], metrics: dict[str, Tensor]) -> dict:
        """Means over all processes of gradients (in place) and metrics, by one all-reduce.

        A weight has a gradient, if it has one on any process (of a bank's networks, a process's
        particles may miss some).
        """
        figures = torch.stack([value.to(metrics["loss"]) for value in metrics.values()])
        present = figures.new_tensor([p.grad is not None for p in parameters])
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(gradient.flatten() for gradient in own), present, figures])
        sizes = [*(p.numel() for p in parameters), len(present), len(figures)]
        *parts, present, figures = self.accelerator.reduce(flat, "mean").split(sizes)  # type: ignore
        for parameter, gradient, part, there in zip(
            parameters, own, parts, present.tolist(), strict=True
        ):
            parameter.grad = gradient.copy_(part.view_as(gradient)) if there > 0 else None
        return dict(zip(metrics, figures.unbind(), strict=True))

    @contextlib.contextmanager
    def _training(self, module: nn.Module | None) -> Iterator[None]:
        """Gradients for the weights of ``module`` alone: none are kept or computed for others.

        Nor is there dropout in other networks of the field: what is followed is the field as it is.
        """
        if module not in self._others:  # to look for them takes as long as to freeze them
            own = set() if module is None else {id(p) for p in module.parameters()}
            self._others[module] = [p for p in self._trained if id(p) not in own]
        others = self._others[module]
        still = [m for m in self._field_dropouts if m.training]
        if still and module is not None:
            still = [m for m in still if m not in set(module.modules())]
        for parameter in others:
            parameter.requires_grad_(False)
        for dropout in still:
            dropout.eval()
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
            for dropout in still:
                dropout.train()

    def _dropout(self) -> contextlib.AbstractContextManager[None]:
        """A block whose dropout draws from its own stream."""
        return self.streams.dropout() if self._drops_out else contextlib.nullcontext()

    def _next(self, stream: BatchStream) -> Batch:
        try:
            batch = next(stream)
        except OSError as error:
            raise DataError(
                f"the data '{self.dataset.name}' could not be read at iteration {self.step + 1} "
                f"({error.strerror or error}): bring them back, and the same command resumes."
            ) from error
        return batch if self.model.conditional else Batch(batch.x, None)


def _force(module: nn.Module, *_: object) -> None:
    force_weights(module)


def _parts(batch: TrainingBatch, count: int, *, split_real: bool) -> Iterator[TrainingBatch]:
    """Equal parts of a batch, pairs of real and generated rows kept."""
    if count == 1:
        yield batch
        return
    size = batch.size // count
    for start in range(0, batch.size, size):
        rows = slice(start, start + size)
        real, particles = batch.real, batch.particles
        if real is not None and split_real:
            real = Batch(real.x[rows], None if real.cond is None else real.cond[rows])
        particles = None if particles is None else particles[rows]
        cond = None if batch.cond is None else batch.cond[rows]
        yield TrainingBatch(real, particles, size, batch.streams, cond)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _losses_of(model: Carrier, phases: Sequence[Phase]) -> list[Loss]:
    available = {loss.name: loss for loss in model.losses()}
    if available and not phases:
        raise ConfigError(
            f"no phase trains anything: give one for {', '.join(available)}, or freeze the field."
        )
    for phase in phases:
        if phase.loss not in available:
            raise ConfigError(
                f"the model has no loss '{phase.loss}': {nearest(phase.loss, list(available))}"
            )
    return [available[phase.loss] for phase in phases]
