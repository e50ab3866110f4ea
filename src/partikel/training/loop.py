"""The one training loop: it runs phases and knows nothing of GANs or diffusion.

It is a generator: each iteration is handed to the caller, who logs, evaluates and saves. Every model
of both papers passes through it; what differs is the list of phases.

A phase's batch is that of all processes together. Each process takes its share of the data, draws its
share of the particles, once for all micro-batches of an update, and adds their gradients up; one
all-reduce then makes the mean over processes. Real and generated rows that a relativistic objective
compares in pairs stay paired, and a field that compares with real samples is bound to the whole batch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from partikel.checks import Checked, Natural
from partikel.data import Batch, BatchStream, Dataset
from partikel.errors import ConfigError, DataError, NumericsError, nearest
from partikel.fields import Loss, TrainingBatch
from partikel.fields.particles import Particles
from partikel.models import Carrier
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
        self._drops_out = any(
            isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules()
        )
        if world > 1:
            start_alike(model)
            synchronise_batch_norm(model)
        if not self.accelerator.is_main_process:
            ema = None
        self.average = None if ema is None else averaged_model(model.sampled, ema)
        self.engine.install(model, device)
        self.scalers = [self.engine.scaler(device) for _ in self.phases]
        self._trained = [p for p in model.parameters() if p.requires_grad]
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
            for index, phase in enumerate(self.phases):
                if self.step % phase.every == 0:
                    metrics.update(self._run_phase(index, phase))
            self.step += 1
            self.model.updated()
            if self.average is not None:
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
                    with self._training(None):
                        context = self._context(real)
                        draw = self._draw(share * updates, real, context, updates)
                        if "moved" in loss.needs:
                            draw = self.model.move(draw, self.streams, context)
                assert draw is not None
                part = slice(place * share, (place + 1) * share)
                particles = draw if phase.same else draw[part]
            elif real is not None and loss.name in self._binding:
                context = self._context(real)
                assert context is not None
                real = Batch(context, None)
            batch = TrainingBatch(real, particles, share, self.streams)
            metrics = self._update(batch, index)
        return {f"{loss.name}/{name}": value for name, value in metrics.items()}

    def _context(self, real: Batch | None) -> Tensor | None:
        """The real samples of all processes, if a field compares with them; else this one's."""
        if real is None or "real" not in self.model.field.needs:
            return None if real is None else real.x
        return cast(Tensor, self.accelerator.gather(real.x))

    def _draw(self, n: int, real: Batch | None, context: Tensor | None, updates: int) -> Particles:
        cond = None
        if self.model.conditional and real is not None and real.cond is not None:
            cond = real.cond.repeat(updates)
        particles = self.model.particles(n, self.streams, cond=cond, real=context)
        if updates == 1:
            return particles
        shuffle = torch.randperm(n, generator=self.streams.time, device=self.accelerator.device)
        return particles[shuffle]

    def _update(self, batch: TrainingBatch, index: int) -> dict[str, Tensor]:
        loss, optimizer, scaler = self._losses[index], self.optimizers[index], self.scalers[index]
        optimizer.zero_grad(set_to_none=True)
        count = self.engine.accumulate
        metrics: dict[str, Tensor] = {}
        for part in _parts(batch, count, split_real=loss.name not in self._binding):
            with self._training(loss.module):
                if self._drops_out:
                    with self.streams.dropout():
                        value = loss.compute(part)
                else:
                    value = loss.compute(part)
            mean = value.loss.mean()
            share = mean if count == 1 else mean / count
            (share if scaler is None else scaler.scale(share)).backward()
            for name, figure in {"loss": mean.detach(), **value.metrics}.items():
                metrics[name] = (
                    metrics[name] + figure / count if name in metrics else figure / count
                )
        parameters = optimizer.param_groups[0]["params"]
        if self.accelerator.num_processes > 1:
            metrics = self._reduced(parameters, metrics)
        if not torch.isfinite(metrics["loss"]):
            raise NumericsError(
                f"the loss '{loss.name}' became {metrics['loss'].item()} at iteration "
                f"{self.step + 1}: lower its learning rate, clip its gradients (optimizer.clip), or "
                "check the data."
            )
        clip = self.phases[index].optimizer.clip
        if scaler is not None:
            scaler.unscale_(optimizer)
        elif not _all_finite([p.grad for p in parameters if p.grad is not None]):
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
        """Gradients for the weights of ``module`` alone: none are kept or computed for others."""
        own = set() if module is None else {id(p) for p in module.parameters()}
        others = [p for p in self._trained if id(p) not in own]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _next(self, stream: BatchStream) -> Batch:
        try:
            batch = next(stream)
        except OSError as error:
            raise DataError(
                f"the data '{self.dataset.name}' could not be read at iteration {self.step + 1} "
                f"({error.strerror or error}): bring them back, and the same command resumes."
            ) from error
        return batch if self.model.conditional else Batch(batch.x, None)


def _all_finite(gradients: list[Tensor]) -> bool:
    """Whether gradients are finite, in one pass: the operation that GradScaler asks with, by 1."""
    if not gradients:
        return True
    found = gradients[0].new_zeros((), dtype=torch.float32)
    ask = torch._amp_foreach_non_finite_check_and_unscale_  # type: ignore[attr-defined]  # pyright: ignore
    ask(gradients, found, torch.ones_like(found))
    return not found.item()


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
        yield TrainingBatch(real, particles, size, batch.streams)


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
