"""The one training loop: it runs phases and knows nothing of GANs or diffusion.

It is a generator: each iteration is handed to the caller, who logs, evaluates and saves. Every model
of both papers passes through it; what differs is the list of phases.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from partikel.data import Batch, BatchStream, Dataset
from partikel.errors import ConfigError, NumericsError, nearest
from partikel.fields import Loss, TrainingBatch
from partikel.models import Carrier
from partikel.particles import Particles
from partikel.streams import Streams
from partikel.training.ema import averaged_model
from partikel.training.phases import Phase


@dataclass(frozen=True)
class Iteration:
    """What one iteration did.

    Attributes:
        step: number of iterations done, this one included.
        metrics: detached scalars by "loss name/metric" (the last of a phase's repeats).
    """

    step: int
    metrics: dict[str, Tensor]


class Trainer:
    """State of a training run: model, optimisers, average, random streams, counter.

    The one counter of progress is ``step``, the number of iterations done; an iteration runs every
    phase once, with its repeats. ``cpu_seconds`` is the process time spent in iterations alone.

    Args:
        model: a carrier with its field.
        dataset: the data.
        phases: what an iteration does, in order.
        iterations: length of the run, which decaying learning rates refer to.
        seed: of all random streams.
        ema: decay of the average of the sampled weights; None keeps none.
        accelerator: devices and precision; the CPU's or the one accelerator's unless given.

    Raises:
        ConfigError: if a phase names a loss the model lacks, or no phase trains anything.
    """

    def __init__(
        self,
        model: Carrier,
        dataset: Dataset,
        phases: Sequence[Phase],
        *,
        iterations: int,
        seed: int = 0,
        ema: float | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or Accelerator()
        self.model = model.to(self.accelerator.device)
        self.dataset = dataset
        self.phases = tuple(phases)
        self.iterations = iterations
        self.step = 0
        self.cpu_seconds = 0.0
        device = self.accelerator.device
        self.streams = Streams(seed, self.accelerator.process_index, device)
        self._losses = _losses_of(model, self.phases)
        self._drops_out = any(
            isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules()
        )
        self.average = None if ema is None else averaged_model(model.sampled, ema)
        self.optimizers: list[torch.optim.Adam] = []
        self.batches: list[BatchStream | None] = []
        for phase, loss in zip(self.phases, self._losses, strict=True):
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
            if needs_real or ("particles" in loss.needs and "real" in model.field.requires):
                stream = dataset.batches(
                    phase.batch,
                    generator=self.streams.data,
                    device=device,
                    dtype=next(model.parameters()).dtype,
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
            if self.average is not None:
                self.average.update_parameters(self.model.sampled)
            self.cpu_seconds += time.process_time() - started
            yield Iteration(self.step, metrics)

    def _run_phase(self, index: int, phase: Phase) -> dict[str, Tensor]:
        loss, optimizer, stream = self._losses[index], self.optimizers[index], self.batches[index]
        rate = phase.optimizer.rate(self.step, self.iterations)
        for group in optimizer.param_groups:
            group["lr"] = rate
        draw: Particles | None = None
        metrics: dict[str, Tensor] = {}
        for repeat in range(phase.repeats):
            real = None if stream is None else self._strip(next(stream))
            particles = None
            if "particles" in loss.needs:
                place = repeat % phase.reuse
                if place == 0:
                    updates = 1 if phase.same else min(phase.reuse, phase.repeats - repeat)
                    draw = self._draw(phase.batch * updates, real, updates)
                    if "moved" in loss.needs:
                        draw = self.model.move(draw, self.streams, real and real.x)
                assert draw is not None
                part = slice(place * phase.batch, (place + 1) * phase.batch)
                particles = draw if phase.same else draw[part]
            metrics = self._update(
                TrainingBatch(real, particles, phase.batch, self.streams), loss, phase, optimizer
            )
        return {f"{loss.name}/{name}": value for name, value in metrics.items()}

    def _draw(self, n: int, real: Batch | None, updates: int) -> Particles:
        cond = None
        if self.model.conditional and real is not None and real.cond is not None:
            cond = real.cond.repeat(updates)
        context = None if real is None else real.x
        particles = self.model.particles(n, self.streams, cond=cond, real=context)
        if updates == 1:
            return particles
        shuffle = torch.randperm(n, generator=self.streams.time, device=self.accelerator.device)
        return particles[shuffle]

    def _update(
        self, batch: TrainingBatch, loss: Loss, phase: Phase, optimizer: torch.optim.Adam
    ) -> dict[str, Tensor]:
        if self._drops_out:
            with self.streams.dropout(), self.accelerator.autocast():
                value = loss.compute(batch)
        else:
            with self.accelerator.autocast():
                value = loss.compute(batch)
        mean = value.loss.mean()
        if not torch.isfinite(mean):
            raise NumericsError(
                f"the loss '{loss.name}' became {mean.item()} at iteration {self.step + 1}: "
                "lower its learning rate, clip its gradients (optimizer.clip), or check the data."
            )
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(mean)
        parameters = optimizer.param_groups[0]["params"]
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        metrics = {"loss": mean.detach(), **value.metrics}
        if phase.optimizer.clip is not None:
            norm = nn.utils.clip_grad_norm_(parameters, phase.optimizer.clip)
            if not torch.isfinite(norm):
                raise NumericsError(
                    f"the gradient of '{loss.name}' became {norm.item()} at iteration "
                    f"{self.step + 1}: lower its learning rate or check the data."
                )
            metrics["gradient_norm"] = norm.detach()
        optimizer.step()
        return metrics

    def _strip(self, batch: Batch) -> Batch:
        return batch if self.model.conditional else Batch(batch.x, None)


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
