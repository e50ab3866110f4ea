"""The engine: how training is computed, on how many processes and in what precision.

It changes no mathematics. Networks run in half precision and compiled, if asked to, and hand out
float32; everything outside of them (losses, objectives, norms, solvers, particles) stays in float32, and
so does a network whose gradient is differentiated again (:func:`partikel.objectives.exact`). Processes
come from ``accelerate launch`` or torchrun; each holds whole networks and works on its share of a batch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn

from partikel.denoising import EDMDenoiser, PreconditionedLogit
from partikel.errors import ConfigError, PartikelError
from partikel.errors.checks import Checked, Count
from partikel.fields import DiscriminatorField, Field
from partikel.files import locked
from partikel.models import Carrier
from partikel.networks import Bank
from partikel.objectives import is_exact

PATIENCE = timedelta(hours=2)
"""How long processes wait for one that evaluates or prepares data."""

VARIANTS = 64
"""Compiled variants of a forward that are kept."""

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_AROUND_NETWORKS = (Carrier, Field, EDMDenoiser, PreconditionedLogit, Bank, nn.ModuleList)

T = TypeVar("T")


@dataclass(frozen=True)
class Engine(Checked):
    """How training is computed; a run may be resumed with another engine.

    Attributes:
        precision: of the networks in training: "fp32" (as their weights), "bf16", or "fp16" with loss
            scaling. Weights, losses, penalties and evaluation stay in float32.
        accumulate: micro-batches of an update. Particles are drawn once for all of them.
        compile: whether torch.compile compiles the networks for training.
        channels_last: whether images and convolutions lie in memory pixel by pixel.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Count = 1
    compile: bool = False
    channels_last: bool = False

    def share(self, batch: int, world: int, name: str) -> int:
        """Rows of a global batch that one of ``world`` processes works on.

        Raises:
            ConfigError: where they are not the same for all processes and micro-batches.
        """
        if batch % (world * self.accumulate):
            raise ConfigError(
                f"a batch of {batch} ('{name}') cannot be shared by {world} process(es) in "
                f"{self.accumulate} micro-batch(es) each: make it a multiple of "
                f"{world * self.accumulate}."
            )
        return batch // world

    def install(self, model: nn.Module, device: torch.device) -> None:
        """Make every network of a model run this way, in place; its state keeps its names."""
        if self.compile:
            _allow_variants()
        for network in networks_of(model):
            written = network.forward
            if isinstance(written, _Forward):
                written = written.written
            if self.channels_last:
                cast(Any, network).to(memory_format=torch.channels_last)
            if self.compile or self.channels_last or self.precision != "fp32":
                network.forward = _Forward(written, self, device.type)
            else:
                vars(network).pop("forward", None)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """The loss scaling of one phase, which fp16 needs."""
        return torch.amp.GradScaler(device.type) if self.precision == "fp16" else None


def _allow_variants() -> None:
    """Let PyTorch keep more compiled variants of one forward than its 8.

    All networks of a class share them, each needs several (with and without gradients of its weights or
    its input, shared or several conditions), and beyond the limit nothing is compiled any more.
    """
    import torch._dynamo.config as config

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, max(VARIANTS, getattr(config, name)))


class _Forward:
    """A network's forward under an engine.

    Args:
        written: the forward as it is written.
        engine: how to run it.
        device: kind of device.
    """

    def __init__(self, written: Callable[..., Any], engine: Engine, device: str) -> None:
        self.written = written
        self._run = torch.compile(written) if engine.compile else written
        self._dtype = _HALF.get(engine.precision)
        self._device = device
        self._channels_last = engine.channels_last

    def __call__(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        if is_exact():
            return self.written(x, *others, **named)
        if self._channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self._dtype is None:
            return self._run(x, *others, **named)
        with torch.autocast(self._device, self._dtype):
            y = self._run(x, *others, **named)
        return y.float() if y.dtype == self._dtype else y


def networks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The networks inside of carriers, fields and preconditionings, each once."""
    seen: set[int] = set()

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        if isinstance(module, _AROUND_NETWORKS):
            for child in module.children():
                yield from walk(child)
        elif id(module) not in seen and next(module.parameters(), None) is not None:
            seen.add(id(module))
            yield module

    return walk(model)


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """One thread, in which small networks are fastest; the number from before afterwards."""
    threads = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def processes() -> PartialState:
    """The processes of this run, started at the first call: one, unless a launcher made more.

    Raises:
        ConfigError: for a launcher that shards networks, which this loop cannot step.
    """
    launched = os.environ.get("LOCAL_RANK", "-1") != "-1"
    accelerated = torch.cuda.is_available() or torch.xpu.is_available()
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    for strategy in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{strategy}", "").lower() == "true":
            raise ConfigError(
                f"every process holds whole networks here, so {strategy} cannot be used: start with "
                "accelerate launch --multi_gpu (docs/cluster.md tells how to save memory)."
            )
    try:
        return PartialState(cpu=on_cpu or (launched and not accelerated), timeout=PATIENCE)
    except ValueError as error:
        said = "a launcher's variables do not fit: unset them (RANK, LOCAL_RANK), or use accelerate launch"
        raise ConfigError(f"{said} ({error}).") from error


def accelerator_for(engine: Engine, **options: Any) -> Accelerator:
    """Accelerate's view of the processes and devices; ``options`` go to :class:`Accelerator`.

    Raises:
        ConfigError: if the launcher asks for another precision than the engine.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", engine.precision):
        raise ConfigError(
            f"the launcher asks for {asked}, the run for engine.precision {engine.precision}: "
            f"leave out --mixed_precision and pass --engine.precision {asked} to the command."
        )
    processes()
    return Accelerator(mixed_precision="no", **options)


def all_done() -> None:
    """Wait for all processes and part from them: what follows is the main one's alone."""
    state = processes()
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()


def on_main(work: Callable[[], T]) -> T:
    """What ``work`` returns on the main process, on all of them; what it raises is raised by all."""
    state = processes()
    if state.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = work()
        except PartikelError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


@contextlib.contextmanager
def holding(folder: Path | None) -> Iterator[None]:
    """The main process holds a run's folder (see :func:`partikel.files.locked`) for all of them."""
    with contextlib.ExitStack() as held:
        if folder is not None:
            on_main(lambda: held.enter_context(locked(folder)))
        yield


def start_alike(model: nn.Module) -> None:
    """Give all processes the main one's weights and buffers, once."""
    tensors = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in same])
            torch.distributed.broadcast(flat, 0)
            for tensor, value in zip(same, flat.split([t.numel() for t in same]), strict=True):
                tensor.copy_(value.view_as(tensor))


def synchronise_batch_norm(model: Carrier) -> None:
    """Take batch statistics over all processes, where that can be done, in place.

    It can on CUDA, in networks that every process calls equally often (free particles are simulated
    for as many steps as their times ask for) and whose gradient is not penalised (the collective
    operation has no second derivative). Elsewhere each process has its own statistics, of which the
    main process's are those that sampling uses.
    """
    if processes().distributed_type != DistributedType.MULTI_GPU:
        return
    if not model.shared_calls:
        return
    penalised = {
        id(module)
        for field in model.modules()
        if isinstance(field, DiscriminatorField) and field.penalties
        for module in field.network.modules()
    }
    for network in networks_of(model):
        if id(network) not in penalised:
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
