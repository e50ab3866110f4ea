"""What must hold on a GPU, as named checks: each passes with its figures or fails by itself.

`gpu.py` runs them; those that need CUDA say so elsewhere. They go through every line that only runs on an
accelerator: generators and their states, dropout's stream, loss scaling, mapped data, collectives.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import system_of  # isort: skip
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from partikel.app.config import preset_names
from partikel.data import SPLITS, FiniteDataset, MappedDataset
from partikel.data.prepared import Listing, Source, prepare
from partikel.errors import NumericsError
from partikel.likelihood import Integrator, Ode
from partikel.metrics import pairwise_distances_report, sliced_wasserstein2
from partikel.metrics.evaluation import evaluate
from partikel.models import ParticleModel
from partikel.networks.weights import misfit
from partikel.streams import Streams
from partikel.training import Engine, Trainer, latest_checkpoint, load_checkpoint, save_checkpoint
from partikel.training.engine import all_done, networks_of, on_main, processes, start_alike

SMALL: dict[str, dict[str, Any]] = {
    "edm": {"network": {"channels": 8}, "steps": 2, "batch": 8},
    "gan": {"discriminator": {"width": 4}, "generator": {"width": 4}, "batch": 8},
    "discriminator-flow": {"network": {"width": 4}, "steps": 8, "batch": 8},
    "score-gan": {
        "own_score": {"channels": 8, "blocks": 1},
        "generator": {"width": 4},
        "score": {"network": {"channels": 8}},
        "batch": 8,
    },
}
"""The papers' MNIST systems with networks of the same kinds that take no time."""


class Skipped(Exception):
    """A check does not apply here; says why."""


@dataclass(frozen=True)
class Place:
    """Where checks run."""

    device: torch.device
    """Of all work."""
    data: FiniteDataset
    """Images of the shape of MNIST's, 32x32."""

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU of NVIDIA's or AMD's."""
        return self.device.type == "cuda"


Check = Callable[[Place], dict[str, Any]]


def must(holds: bool, sentence: str) -> None:
    """Fail a check that does not hold."""
    if not holds:
        raise AssertionError(sentence)


def need_cuda(place: Place) -> None:
    """Skip a check elsewhere."""
    if not place.cuda:
        raise Skipped("needs CUDA")


def noise_images(count: int = 64) -> FiniteDataset:
    """Labelled bytes at random in the place of MNIST."""
    source = torch.Generator().manual_seed(0)
    points = torch.randint(0, 256, (count, 1, 32, 32), generator=source).to(torch.uint8)
    labels = torch.arange(count) % 10
    return FiniteDataset(
        "mnist", dict.fromkeys(SPLITS, points), dict.fromkeys(SPLITS, labels), classes=10
    )


def mapped(data: FiniteDataset, cache: str, count: int = 4000) -> MappedDataset:
    """The first training images of a data set, prepared: bytes in a file."""
    images = data.stored("train")[0][:count, 0].numpy()

    @contextmanager
    def opened() -> Iterator[Listing]:
        yield Listing([str(i) for i in range(len(images))], lambda i: Image.fromarray(images[i]))

    name = f"{data.fingerprint('train')}-{count}"
    source = Source("mapped", "the training images", name, opened)
    prepared = prepare(source, size=images.shape[-1], channels=1, on_error="stop", cache=cache)
    rows = torch.arange(len(images))
    return MappedDataset("mnist", prepared, dict.fromkeys(SPLITS, rows), flip=True)


def small(
    place: Place, model: str, engine: Engine | None = None, data: Any = None, **settings: Any
) -> Trainer:
    """A trainer of a small system, the same at every call."""
    data = place.data if data is None else data
    recipe, _, system = system_of(f"{model}-mnist-paper", SMALL[model], settings, dataset=data)
    return Trainer(
        system.model, data, system.phases, iterations=1000, ema=recipe.ema, engine=engine
    )


def advance(trainer: Trainer, iterations: int) -> dict[str, float]:
    """Some iterations; the figures of the last."""
    iterator = trainer.run()
    metrics: dict[str, Tensor] = {}
    for _ in range(iterations):
        metrics = next(iterator).metrics
    figures = {name: float(value) for name, value in metrics.items()}
    must(all(np.isfinite(v) for v in figures.values()), f"not finite: {figures}")
    return figures


def weights(trainer: Trainer) -> Tensor:
    """All weights and buffers as one vector, in float64 on the CPU."""
    values = trainer.model.state_dict().values()
    return torch.cat([value.detach().double().cpu().flatten() for value in values])


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


# --- randomness -------------------------------------------------------------------------------------------


def generators(place: Place) -> dict[str, Any]:
    """Streams live on the device, and their states are kept and restored."""
    first, second = (Streams(3, device=place.device) for _ in range(2))
    must(first.noise.device.type == place.device.type, f"noise lives on {first.noise.device}")

    def draws(streams: Streams) -> Tensor:
        sources = (streams.data, streams.latent, streams.noise, streams.time)
        rows = [torch.randn(64, generator=g, device=g.device) for g in sources]
        return torch.stack(rows).cpu()

    one = draws(first)
    must(torch.equal(one, draws(second)), "one seed gave two streams")
    state = first.state_dict()
    must(all(value.device.type == "cpu" for value in state.values()), "a state is not on the CPU")
    must(misfit(second.state_dict(), state) is None, "states of one device do not fit")
    then = draws(first)
    second.load_state_dict(state)
    must(torch.equal(then, draws(second)), "a restored stream draws other numbers")
    permuted = torch.randperm(1000, generator=first.data, device=first.data.device)
    must(torch.equal(permuted.sort()[0].cpu(), torch.arange(1000)), "no permutation")
    shares = torch.ones(10, device=place.device)
    labels = torch.multinomial(shares, 1000, replacement=True, generator=first.latent)
    must(labels.device.type == place.device.type, "labels were drawn elsewhere")
    return {"state_bytes": len(state["noise"])}


def dropout_stream(place: Place) -> dict[str, Any]:
    """Dropout draws from its own stream and leaves the global state of the device alone."""
    x = torch.ones(10_000, device=place.device)
    outside = _global_states(place)
    first, second = (Streams(5, device=place.device) for _ in range(2))

    def masks(streams: Streams) -> Tensor:
        with streams.dropout():
            return nn.functional.dropout(x, 0.5).cpu()

    one, two = masks(first), masks(first)
    must(not torch.equal(one, two), "two losses had one mask")
    must(torch.equal(one, masks(second)), "one seed gave two masks")
    must(
        all(map(torch.equal, outside, _global_states(place))), "the global random state was changed"
    )
    state = first.state_dict()
    then = masks(first)
    second.load_state_dict(state)
    must(torch.equal(then, masks(second)), "a restored stream has other masks")
    return {"kept": float((one > 0).double().mean())}


def _global_states(place: Place) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if place.cuda:
        states.append(torch.cuda.get_rng_state(place.device))
    return states


def recomputed(place: Place) -> dict[str, Any]:
    """Blocks computed again in the backward pass have the same dropout and gradients."""
    found = []
    for recompute in (False, True):
        trainer = small(place, "edm", network={"recompute": recompute})
        advance(trainer, 2)
        found.append(weights(trainer))
    difference = apart(*found)
    must(difference < 1e-3, f"weights differ by {difference:.1e}")
    return {"relative_difference": difference}


# --- the engine -------------------------------------------------------------------------------------------


def engine_agrees(
    place: Place, *, model: str, engine: dict[str, Any], most: float
) -> dict[str, Any]:
    """The first gradient of the first phase under an engine is that of the engine that does nothing."""
    found = []
    for chosen in (Engine(), Engine(**engine)):
        trainer = small(place, model, chosen)
        if chosen.precision == "fp16":  # the first scale of a training, 65536, may be too large
            kind = place.device.type
            trainer.scalers[0] = torch.amp.GradScaler(kind, init_scale=4096.0)
        advance(trainer, 1)
        weights = trainer.optimizers[0].param_groups[0]["params"]
        parts = [p.grad.flatten() for p in weights if p.grad is not None]
        found.append(torch.cat(parts).double().cpu())
    plain, other = found
    difference = float((other - plain).norm() / plain.norm())
    must(difference < most, f"gradients differ by {difference:.1e} of their length")
    return {"relative_difference": difference}


def loss_scaling(place: Place) -> dict[str, Any]:
    """In fp16 a gradient that overflows is not stepped on, the scale halves and is checkpointed."""
    trainer = small(place, "edm", Engine(precision="fp16"))
    advance(trainer, 2)
    (scaler,) = trainer.scalers
    must(scaler is not None and scaler.is_enabled(), "there is no loss scaling")
    assert scaler is not None
    scaler.update(2.0**120)
    before = weights(trainer)
    advance(trainer, 1)
    must(torch.equal(before, weights(trainer)), "an overflow was stepped on")
    must(scaler.get_scale() == 2.0**119, f"the scale is {scaler.get_scale()}")
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(trainer, Path(folder))
        again = small(place, "edm", Engine(precision="fp16"))
        load_checkpoint(again, _newest(folder))
    (restored,) = again.scalers
    assert restored is not None
    must(restored.get_scale() == 2.0**119, "the scale was not restored")
    scaler.update(2.0**16)
    advance(trainer, 1)
    must(not torch.equal(before, weights(trainer)), "no step was made")
    scaler.update(1.0)
    try:
        for p in trainer.optimizers[0].param_groups[0]["params"]:
            p.register_hook(lambda gradient: gradient * torch.inf)
        advance(trainer, 1)
    except NumericsError as error:
        return {"refused": str(error)}
    raise AssertionError("a gradient that never fits was not refused")


def fused_adam(place: Place) -> dict[str, Any]:
    """The fused steps are Adam's, and a non-finite gradient is noticed in one pass."""
    fused, plain = small(place, "gan"), small(place, "gan")
    not_fused(plain)
    advance(fused, 2)
    advance(plain, 2)
    difference = apart(weights(fused), weights(plain))
    must(difference < 1e-3, f"weights differ by {difference:.1e}")
    trainer = small(place, "gan")
    weight = trainer.optimizers[0].param_groups[0]["params"][0]
    weight.register_hook(lambda gradient: gradient * torch.nan)
    before = weight.detach().clone()
    try:
        advance(trainer, 1)
    except NumericsError as error:
        must(torch.equal(weight, before), "weights were changed by a gradient that is nan")
        return {"relative_difference": difference, "refused": str(error)}
    raise AssertionError("a gradient that is nan was not noticed")


def not_fused(trainer: Trainer) -> None:
    """Give a trainer PyTorch's other steps of Adam."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = False, True


def like_the_cpu(place: Place, *, tf32: bool, most: float) -> dict[str, Any]:
    """Networks and input gradients are those of the CPU, to the rounding of convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    figures: dict[str, float] = {}
    try:
        for model in ("edm", "discriminator-flow"):
            changes = (SMALL[model], {"network": {"init": "he"}})
            _, _, system = system_of(f"{model}-mnist-paper", *changes, dataset=place.data)
            (network,) = networks_of(system.model)
            network.eval()
            source = torch.Generator().manual_seed(0)
            x = torch.randn(16, 1, 32, 32, generator=source)
            c = torch.zeros(1, 1)
            answers = []
            for device in (torch.device("cpu"), place.device):
                network.to(device)
                points = x.detach().to(device).requires_grad_()
                y = network(points, c.to(device), None)
                (slope,) = torch.autograd.grad(y.square().sum(), points)
                answers.append((y, slope))
            (y, slope), (here, slope_here) = answers
            figures |= {model: apart(here, y), f"{model}, input gradient": apart(slope_here, slope)}
    finally:
        torch.backends.cudnn.allow_tf32 = before
    must(max(figures.values()) < most, f"relative differences: {figures}")
    return {"relative_differences": figures, "convolutions_in_tf32": tf32 and place.cuda}


def penalty_in_float32(place: Place) -> dict[str, Any]:
    """A gradient penalty under bf16 is that of float32: its forward is not the engine's."""
    seen: set[torch.dtype] = set()
    trainer = small(place, "discriminator-flow", Engine(precision="bf16"))
    (network,) = networks_of(trainer.model)
    layer = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    layer.register_forward_hook(lambda module, given, y: seen.add(y.dtype))
    advance(trainer, 1)
    must(seen == {torch.float32, torch.bfloat16}, f"the network ran in {seen}")
    return {"dtypes": sorted(map(str, seen))}


# --- data, checkpoints, measures --------------------------------------------------------------------------


def mapped_batches(place: Place) -> dict[str, Any]:
    """Batches of mapped images, mirrored at random, are those that are read on the CPU."""
    with tempfile.TemporaryDirectory() as cache:
        data = mapped(place.data, cache, 64)
        order = {"order": torch.arange(64).flip(0), "position": torch.tensor(0)}
        found = []
        for device in (torch.device("cpu"), place.device):
            stream = data.batches(
                16, generator=torch.Generator().manual_seed(1), device=device, dtype=torch.float32
            )
            stream.load_state_dict(order)
            batch = next(stream)
            must(batch.x.device.type == device.type, f"a batch lies on {batch.x.device}")
            found.append(batch.x.cpu())
        must(torch.equal(*found), "mapped images differ between devices")
        own = Streams(0, device=place.device)
        stream = data.batches(16, generator=own.data, device=place.device)
        batches = [next(stream).x for _ in range(8)]
        held = torch.cat(batches).cpu()  # every copy has to have arrived
        must(bool((held.abs() <= 1).all()), "images are beyond [-1, 1]")
        trainer = small(place, "gan", data=data)
        return {"losses": advance(trainer, 2)}


def resumed(place: Place, *, model: str) -> dict[str, Any]:
    """A resumed training goes on as one that was not stopped, as closely as two trainings agree."""
    whole, twin, again = (small(place, model) for _ in range(3))
    advance(whole, 2)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(whole, Path(folder))
        load_checkpoint(again, _newest(folder))
    advance(whole, 2)
    advance(twin, 4)
    advance(again, 2)
    figures = {
        "two_trainings_of_one_seed_differ_by": apart(weights(twin), weights(whole)),
        "resumed_differs_by": apart(weights(again), weights(whole)),
    }
    must(
        figures["resumed_differs_by"] <= 10 * figures["two_trainings_of_one_seed_differ_by"],
        f"a resumed training differs: {figures}",
    )
    return figures


def _newest(folder: str) -> Path:
    found = latest_checkpoint(Path(folder))
    assert found is not None
    return found


def measures(place: Place) -> dict[str, Any]:
    """Distances and figures of images are those of the CPU."""
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(500, 2, generator=source), torch.randn(400, 2, generator=source) + 0.5

    def distances(device: torch.device) -> Tensor:
        a, b = x.to(device), y.to(device)
        report = pairwise_distances_report(a, b)
        return torch.tensor([report.energy, report.mmd2, sliced_wasserstein2(a, b)])

    def sampler(n: int, generator: torch.Generator) -> Tensor:
        g = torch.Generator().manual_seed(generator.initial_seed() % 2**31)
        return torch.rand(n, 1, 32, 32, generator=g).to(generator.device) * 2 - 1

    def figures(device: torch.device) -> dict[str, float]:
        return evaluate(sampler, place.data, n=40, device=device).metrics

    cpu = torch.device("cpu")
    points = apart(distances(place.device), distances(cpu))
    here, there = figures(place.device), figures(cpu)
    images = {k: abs(here[k] - v) / max(abs(v), 1e-6) for k, v in there.items()}
    must(points < 1e-3, f"distances of points differ by {points:.1e}")
    must(max(images.values()) < 0.05, f"figures differ: {here} and {there}")
    return {"points": points, "images": images}


def likelihood(place: Place) -> dict[str, Any]:
    """The ODE's likelihood of an untrained EDM is that of the CPU."""
    _, data, system = system_of("edm-gaussians")
    x = data.draw(8, generator=torch.Generator().manual_seed(0)).x
    answers = []
    for device in (torch.device("cpu"), place.device):
        model = system.model.to(device)
        assert isinstance(model, ParticleModel)
        source = torch.Generator(device).manual_seed(0)
        way = Ode(integrator=Integrator("heun", steps=8), strict=False)
        found = way.log_prob(model, x.to(device), generator=source)
        answers.append(found.log_prob)
    difference = apart(answers[1], answers[0])
    must(difference < 1e-3, f"log-likelihoods differ by {difference:.1e}")
    return {"relative_difference": difference}


def trains(place: Place, *, preset: str, **settings: Any) -> dict[str, Any]:
    """Two iterations of a preset on small data, a checkpoint, samples, another trainer from there."""
    recipe, data, system = system_of(preset, {"batch": 16, **settings})

    def trainer() -> Trainer:
        return Trainer(system.model, data, system.phases, iterations=4, ema=recipe.ema)

    first = trainer()
    figures = advance(first, 2)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(first, Path(folder))
        second = trainer()
        load_checkpoint(second, _newest(folder))
    advance(second, 1)
    model = second.model.eval()
    source = torch.Generator(place.device).manual_seed(0)
    real = data.draw(64, generator=source, device=place.device).x
    real = real if "real" in model.field.needs else None
    options: dict[str, Any] = {} if model.steps is None else {"steps": 3}
    x = model.sample(16, generator=source, real=real, **options)
    must(x.device.type == place.device.type, f"samples lie on {x.device}")
    return {"losses": figures}


def augmented(place: Place) -> dict[str, Any]:
    """Images are augmented on the device, adaptively, in the loss and where the field is asked."""
    adaptive = {"adaptive": True, "p": 0.5}
    return {"losses": advance(small(place, "gan", augment=adaptive), 2)}


def _checks() -> dict[str, Check]:
    engines = {
        "bf16": ({"precision": "bf16"}, 0.3),
        "fp16": ({"precision": "fp16"}, 0.3),
        "channels-last": ({"channels_last": True}, 0.01),
        "micro-batches": ({"accumulate": 2}, 0.01),
    }
    found: dict[str, Check] = {
        "generators on the device": generators,
        "dropout has its own stream": dropout_stream,
        "recomputed blocks": recomputed,
        "loss scaling of fp16": loss_scaling,
        "fused Adam": fused_adam,
        "penalties in float32": penalty_in_float32,
        "mapped images": mapped_batches,
        "augmented images": augmented,
        "measures": measures,
        "likelihood": likelihood,
        "as on the CPU, without TF32": partial(like_the_cpu, tf32=False, most=1e-3),
        "as on the CPU, convolutions in TF32": partial(like_the_cpu, tf32=True, most=0.05),
    }
    found |= {f"resumed: {model}": partial(resumed, model=model) for model in SMALL}
    found |= {
        f"{name}: {model}": partial(engine_agrees, model=model, engine=engine, most=most)
        for name, (engine, most) in engines.items()
        for model in SMALL
        if not (name == "micro-batches" and model in ("gan", "score-gan"))  # batch norm sees fewer
    }
    small_data = [n for n in preset_names() if n.endswith(("-gaussians", "-digits"))]
    found |= {f"trains: {name}": partial(trains, preset=name) for name in small_data}
    found |= {
        f"trains: {name}, with labels": partial(trains, preset=name, conditional=True)
        for name in ("edm-digits", "gan-digits", "discriminator-flow-digits", "score-gan-digits")
    }
    return found


CHECKS = _checks()
"""Every check of one process by its name, in order of value."""


# --- processes --------------------------------------------------------------------------------------------


def collectives(place: Place) -> dict[str, Any]:
    """What the library asks of the processes: weights, gradients, objects, batch statistics, a step."""
    state, trainer = processes(), small(place, "gan")
    start_alike(trainer.model)
    accelerator = trainer.accelerator
    total = accelerator.reduce(torch.ones(3, device=accelerator.device), "sum")
    must(float(total[0]) == state.num_processes, f"a sum over processes is {total}")  # type: ignore[index]
    gathered = accelerator.gather(torch.full((2,), state.process_index, device=accelerator.device))
    must(len(gathered) == 2 * state.num_processes, f"gathered {gathered}")  # type: ignore[arg-type]
    must(on_main(lambda: 7) == 7, "an object did not reach all processes")
    losses = advance(trainer, 2)
    mine = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    everyone = accelerator.gather(mine[None])
    assert isinstance(everyone, Tensor)
    must(
        bool((everyone == everyone[:1]).all()), "processes have other weights after two iterations"
    )
    synchronised = sum(isinstance(m, nn.SyncBatchNorm) for m in trainer.model.modules())
    if place.cuda and state.num_processes > 1:
        must(synchronised > 0, "no batch norm takes its statistics over all processes")
    with tempfile.TemporaryDirectory() as own:
        folder = Path(on_main(lambda: own))
        save_checkpoint(trainer, folder)
        again = small(place, "gan")
        load_checkpoint(again, _newest(str(folder)))
        accelerator.wait_for_everyone()
    difference = apart(weights(again), weights(trainer))
    must(difference == 0, f"a checkpoint of {state.num_processes} process(es) differs")
    backend = torch.distributed.get_backend()
    return {"backend": backend, "synchronised_batch_norms": synchronised, "losses": losses}


def worker(backend: str) -> dict[str, Any]:
    """One of several processes, all of them on the first device."""
    from accelerate import PartialState

    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true":
        os.environ["LOCAL_RANK"] = "0"
        PartialState(backend=backend)
    device = processes().device
    assert device is not None
    place = Place(device, noise_images())
    if place.cuda:
        torch.cuda.set_device(device)
    figures = collectives(place)
    all_done()
    return figures


def command_line(folder: Path, seconds: float) -> dict[str, Any]:
    """``partikel train``, ``evaluate`` and ``sample`` on the device, in fp16."""
    run = str(folder / "run")
    settings = ["--iterations", "4", "--evaluate_every", "2", "--evaluate_samples", "50"]
    commands = [
        ["train", "gan-digits", "--out", run, "--engine.precision", "fp16", *settings],
        ["evaluate", run, "--n", "100"],
        ["sample", run, "--n", "16"],
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "partikel", *command],
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        must(
            done.returncode == 0, f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-1500:]}"
        )
    return {"commands": [" ".join(command[:1]) for command in commands]}
