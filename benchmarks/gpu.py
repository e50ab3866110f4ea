"""What only a GPU can tell, in one command of at most eight minutes; it has never run on one yet.

    python benchmarks/gpu.py --data FOLDER [--budget 450] [--only train speed] [--out FILE]
    python benchmarks/gpu.py --device cpu --smoke       # all of it at a tiny size, where there is none

FOLDER contains mnist/ ($PARTIKEL_DATA unless given). Sections, in order of value:

* checks: every line that only runs on an accelerator, as named checks (gpu_checks.py);
* train: EDM, GAN, Discriminator Flow and Score GAN at the paper's MNIST settings, each for a share of the
  time and not to the end; then 10,000 samples against the test split, and a sheet of 64;
* speed: seconds of an iteration and peak memory with each option of the engine and without it;
* compile: the same with torch.compile, four processes that compile at once and measure one after another;
* processes: NCCL with one process, two processes of gloo on the one device, the command line.

A section runs in a process of its own with a time limit, and time that one leaves over goes to the next.
The record is written after each row, so that whatever ends the command leaves what was measured: the same
command measures what is missing (--fresh measures all). A row that fails holds its error. Exit code 1 if
any did.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, machine, system_of  # isort: skip
import torch
from filelock import FileLock

from gpu_checks import (  # isort: skip
    CHECKS,
    SMALL,
    Place,
    Skipped,
    command_line,
    mapped,
    need_cuda,
    noise_images,
    not_fused,
    worker,
)

from partikel.app.runs import draw_samples
from partikel.app.show.plots import save_picture
from partikel.data import DataSettings, FiniteDataset, open_dataset
from partikel.files import write_json
from partikel.metrics.evaluation import evaluate
from partikel.models import Carrier
from partikel.training import Engine, Trainer, latest_checkpoint, save_checkpoint
from partikel.training.checkpoint import load_weights
from partikel.training.ema import swapped_in
from partikel.training.engine import processes

SECTIONS = {"checks": 70, "train": 200, "speed": 80, "compile": 60, "processes": 40}
"""Seconds of each: shares of the budget, where that is another."""

SEED = 0
SAMPLES = 10_000
WARM = 3
"""Iterations before those that are timed."""

PROTOCOL = (
    "seconds of an iteration: median, wall clock, device waited for after each; images a second: an "
    "update's batch over that; peak memory: largest that tensors took on the device (of the process, on "
    "a CPU); speed and compile: from untrained weights; Fréchet distances: class features, against the "
    "test split"
)


class Clock:
    """Seconds that are left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Until the end; below 0 beyond it."""
        return self.end - time.monotonic()


class Record:
    """The JSON file, written whole after each row.

    Args:
        path: the file.
        settings: rows of others are not kept.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.rows = path, {name: {} for name in SECTIONS}
        self._one = threading.Lock()
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(path.read_text())
            if found["settings"] == settings:
                self.rows |= found["sections"]
        self.settings = settings

    def keep(self, section: str, name: str, row: dict[str, Any]) -> None:
        """Write a row."""
        with self._one:
            self.rows[section][name] = row
            head = {"machine": machine(), "settings": self.settings, "protocol": PROTOCOL}
            write_json(self.path, {**head, "sections": self.rows})
            print(f"{section} | {name} | {json.dumps(row)[:300]}", flush=True)

    def attempt(
        self, section: str, name: str, work: Callable[[], dict[str, Any]], clock: Clock
    ) -> None:
        """Measure a row that is not there yet, if there is time; an error is its row."""
        if "seconds" in self.rows[section].get(name, {}) or clock.left <= 0:
            return
        started = time.monotonic()
        try:
            row = work()
            row["seconds"] = round(time.monotonic() - started, 3)
        except Skipped as reason:
            row = {"skipped": str(reason)}
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-4:]
            at = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in where]
            row = {"error": f"{type(error).__name__}: {error}"[:2000], "at": at}
        self.keep(section, name, row)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all sections share."""

    place: Place
    smoke: bool
    folder: Path
    """Checkpoints of what was trained."""
    sheets: Path
    """Pictures."""
    command: list[str]
    """This script with what all its processes are told."""

    def trainer(
        self,
        model: str,
        engine: Engine | None = None,
        data: FiniteDataset | None = None,
        required: Carrier | None = None,
        preset: str = "",
        **settings: Any,
    ) -> Trainer:
        """A paper preset's trainer with changes; tiny where this is smoke."""
        data = self.place.data if data is None else data
        recipe, _, system = system_of(
            preset or f"{model}-mnist-paper",
            *(SMALL[model] if self.smoke else {}, settings, {"seed": SEED}),
            dataset=data,
            required=required,
        )
        return Trainer(
            *(system.model, data, system.phases),
            iterations=recipe.iterations,
            seed=SEED,
            ema=recipe.ema,
            engine=engine,
        )

    def wait(self) -> None:
        """Until the device has done what it was asked."""
        if self.place.cuda:
            torch.cuda.synchronize(self.place.device)

    def timed(
        self,
        trainer: Trainer,
        seconds: float,
        most: int = sys.maxsize,
        turn: contextlib.AbstractContextManager[Any] | None = None,
    ) -> dict[str, Any]:
        """Iterations for so many seconds, or so many of them; what they cost.

        Args:
            trainer: what is trained.
            seconds: after the first :data:`WARM` iterations.
            most: iterations after those.
            turn: entered for the timing.
        """
        iterations, losses, times = trainer.run(), {}, []

        def one() -> float:
            nonlocal losses
            started = time.perf_counter()
            losses = next(iterations).metrics
            self.wait()
            return time.perf_counter() - started

        begun = sum(one() for _ in range(1 if self.smoke else WARM))
        with turn or contextlib.nullcontext():
            if self.place.cuda:
                torch.cuda.reset_peak_memory_stats(self.place.device)
            clock = Clock(seconds)
            while len(times) < most and (not times or clock.left > 0):
                times.append(one())
        each, batch = statistics.median(times), trainer.phases[0].batch
        return {
            "seconds_an_iteration": each,
            "images_per_second": batch / each,
            "batch": batch,
            "iterations_timed": len(times),
            "seconds_of_the_first": begun,
            "peak_gigabytes": self.peak(),
            "losses": {name: float(value) for name, value in losses.items()},
        }

    def peak(self) -> float:
        """Gigabytes that tensors took at most; on a CPU, that the process did."""
        if self.place.cuda:
            return torch.cuda.max_memory_allocated(self.place.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# --- train ------------------------------------------------------------------------------------------------


def train(bench: Bench, model: str, seconds: float) -> dict[str, Any]:
    """Train a paper preset for a time; figures, samples a second and a sheet of what it became."""
    required = trained_edm(bench) if model == "score-gan" else None
    trainer = bench.trainer(model, required=required)
    figures = bench.timed(trainer, seconds)
    save_checkpoint(trainer, bench.folder / model)
    carrier, device = trainer.model, bench.place.device
    n = 30 if bench.smoke else SAMPLES
    with swapped_in(carrier.sampled, trainer.average):
        sampler = partial(_drawn, carrier)
        started = time.perf_counter()
        sampler(n // 10, torch.Generator(device).manual_seed(1))
        bench.wait()
        sampling = n // 10 / (time.perf_counter() - started)
        found = evaluate(sampler, trainer.dataset, n=n, seed=SEED, device=device)
        images = sampler(64, torch.Generator(device).manual_seed(1))
    save_picture(images, bench.sheets / f"gpu-{model}.png")
    return {
        "iterations": trainer.step,
        "of": trainer.iterations,
        **figures,
        "samples_per_second": sampling,
        "evaluations_a_sample": 1 if carrier.steps is None else carrier.steps,
        **found.as_dict(),
    }


def _drawn(model: Carrier, n: int, generator: torch.Generator) -> torch.Tensor:
    return draw_samples(model, n, generator)


def trained_edm(bench: Bench) -> Carrier:
    """The EDM of this section's first row, which the Score GAN's data score comes from."""
    checkpoint = latest_checkpoint(bench.folder / "edm")
    if checkpoint is None:
        raise Skipped(
            "there is no EDM to take the data's score from: run the section from its start"
        )
    changes = SMALL["edm"] if bench.smoke else {}
    _, _, system = system_of("edm-mnist-paper", changes, dataset=bench.place.data)
    load_weights(system.model, checkpoint, "model")
    return system.model


def run_train(bench: Bench, record: Record, clock: Clock) -> None:
    """The four models; each gets its part of what is left, a fifth of which is for its figures."""
    models = list(SMALL)
    for number, model in enumerate(models):
        part = clock.left / (len(models) - number)
        work = partial(train, bench, model, 0.0 if bench.smoke else 0.65 * part)
        record.attempt("train", model, work, clock)


# --- speed ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def flags(**settings: Any) -> Iterator[None]:
    """PyTorch's own switches, put back afterwards."""
    places: dict[str, tuple[Any, str]] = {
        "tf32_convolutions": (torch.backends.cudnn, "allow_tf32"),
        "tf32_products": (torch.backends.cuda.matmul, "allow_tf32"),
        "tuned_convolutions": (torch.backends.cudnn, "benchmark"),
    }
    before = []
    try:
        for name, value in settings.items():
            owner, switch = places[name]
            before.append((owner, switch, getattr(owner, switch)))
            setattr(owner, switch, value)
        yield
    finally:
        for owner, switch, value in before:
            setattr(owner, switch, value)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to compute the same training."""

    engine: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)
    models: tuple[str, ...] = tuple(SMALL)
    preset: str = ""
    fused: bool = True
    mapped: bool = False


HALF = {"precision": "bf16", "channels_last": True}
VARIANTS = {
    "as set": Variant(),
    "bf16": Variant({"precision": "bf16"}),
    "bf16, channels last": Variant(HALF),
    "fp16": Variant({"precision": "fp16"}),
    "channels last": Variant({"channels_last": True}),
    "eight particles of each path": Variant(
        models=("discriminator-flow",), preset="discriminator-flow-mnist-paper-quick"
    ),
    "blocks recomputed": Variant(settings={"network": {"recompute": True}}, models=("edm",)),
    "blocks not recomputed": Variant(
        settings={"own_score": {"recompute": False}}, models=("score-gan",)
    ),
    "4 micro-batches": Variant({"accumulate": 4}),
    "Adam not fused": Variant(fused=False),
    "mapped data": Variant(models=("edm", "gan"), mapped=True),
    "convolutions without TF32": Variant(flags={"tf32_convolutions": False}),
    "products in TF32": Variant(flags={"tf32_products": True}),
    "tuned convolutions": Variant(flags={"tuned_convolutions": True}),
}
COMPILED = {
    "compiled": Variant({"compile": True}),
    "compiled, bf16, channels last": Variant({"compile": True, **HALF}),
}
"""Each beside "as set", its before."""


def measure(bench: Bench, model: str, variant: Variant, seconds: float) -> dict[str, Any]:
    """Seconds, images a second and memory of an iteration of a variant, from untrained weights."""
    if variant.flags:
        need_cuda(bench.place)
    if bench.place.cuda:
        torch.cuda.empty_cache()
    with flags(**variant.flags):
        data = mapped(bench.place.data, str(bench.folder)) if variant.mapped else None
        trainer = bench.trainer(
            *(model, Engine(**variant.engine), data), preset=variant.preset, **variant.settings
        )
        if not variant.fused:
            not_fused(trainer)
        turn = FileLock(bench.folder.parent / ".turn") if trainer.engine.compile else None
        return bench.timed(trainer, seconds, 1 if bench.smoke else 100, turn)


def run_speed(bench: Bench, record: Record, clock: Clock) -> None:
    """Every model in every variant that it has, a second each."""
    for name, variant in VARIANTS.items():
        for model in variant.models:
            work = partial(measure, bench, model, variant, 1.0)
            record.attempt("speed", f"{model}, {name}", work, clock)


# --- checks, compile, processes ---------------------------------------------------------------------------


def run_checks(bench: Bench, record: Record, clock: Clock) -> None:
    """All checks of one process."""
    chosen = list(CHECKS.items())
    if bench.smoke:  # the tests train every preset
        chosen = [each for each in chosen if not each[0].startswith("trains")] + chosen[-1:]
    for name, check in chosen:
        record.attempt("checks", name, partial(check, bench.place), clock)


def run_compile(bench: Bench, record: Record, clock: Clock) -> None:
    """One process for each model, which measures its variants; smoke does so for one, not compiled."""
    wanted = list(SMALL)[1:2] if bench.smoke else list(SMALL)
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    if bench.smoke:  # the tests compile
        environment["TORCHDYNAMO_DISABLE"] = "1"
    found: dict[str, Path] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}
    for model in wanted:
        if any("seconds" not in record.rows["compile"].get(f"{model}, {n}", {}) for n in COMPILED):
            found[model] = bench.folder / f"compiled-{model}.json"
            command = [*bench.command, "--compiled", model, "--out", str(found[model])]
            running[model] = subprocess.Popen(command, env=environment)
    for model, process in running.items():
        ended = f"it took longer than was left ({max(clock.left, 0):.0f} s when it was waited for)"
        try:
            ended = f"ended with exit code {process.wait(max(clock.left, 1))}"
        except subprocess.TimeoutExpired:
            process.kill()
        with contextlib.suppress(OSError, ValueError):
            for name, row in json.loads(found[model].read_text())["sections"]["compile"].items():
                record.keep("compile", name, row)
        for name in COMPILED:
            if f"{model}, {name}" not in record.rows["compile"]:
                record.keep("compile", f"{model}, {name}", {"error": ended})


def run_processes(bench: Bench, record: Record, clock: Clock) -> None:
    """Collectives, and the command line."""
    backends = {"nccl, one process": ("nccl", 1), "gloo, two processes on one device": ("gloo", 2)}

    def launched(backend: str, count: int) -> dict[str, Any]:
        if backend == "nccl":
            need_cuda(bench.place)
        path = bench.folder / f"{backend}.json"
        path.unlink(missing_ok=True)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launch, "--nproc_per_node", str(count), *bench.command[1:], "--worker", backend]
        done = subprocess.run(
            [*command, "--out", str(path)], capture_output=True, text=True, timeout=clock.left
        )
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-1500:]}")
        return json.loads(path.read_text())

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as together:
        work = {name: partial(launched, *arguments) for name, arguments in backends.items()}
        work["command line"] = partial(command_line, Path(folder), clock.left)
        for name, each in work.items():
            together.submit(record.attempt, "processes", name, each, clock)


RUN: dict[str, Callable[[Bench, Record, Clock], None]] = {
    "checks": run_checks,
    "train": run_train,
    "speed": run_speed,
    "compile": run_compile,
    "processes": run_processes,
}


# --- the command ------------------------------------------------------------------------------------------


def bench_of(arguments: argparse.Namespace) -> Bench:
    """What a section works with, in its own process."""
    device = processes().device
    assert device is not None
    if device.type != arguments.device:
        raise SystemExit(f"PyTorch finds no {arguments.device} here, only {device.type}.")
    if arguments.smoke:
        data = noise_images()
    else:
        data = open_dataset(DataSettings(name="mnist", size=32))
        assert isinstance(data, FiniteDataset)
    folder = arguments.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--device", arguments.device]
    command += ["--smoke"] if arguments.smoke else []
    return Bench(Place(device, data), arguments.smoke, folder, arguments.out.parent, command)


def record_of(arguments: argparse.Namespace) -> Record:
    """The record, begun anew where it is of another device, PyTorch or size."""
    settings = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "smoke": arguments.smoke,
        "seed": SEED,
        "presets": [f"{model}-mnist-paper" for model in SMALL],
    }
    return Record(arguments.out, settings)


def run_section(arguments: argparse.Namespace) -> None:
    """One section, in this process."""
    clock = Clock(arguments.until - time.time())
    bench, record = bench_of(arguments), record_of(arguments)
    RUN[arguments.section](bench, record, clock)


def run_sections(arguments: argparse.Namespace) -> int:
    """All sections that are asked for, each in its process; how many rows failed."""
    clock, spent = Clock(arguments.budget), 0.0
    total = sum(SECTIONS[name] for name in arguments.only)
    for name in arguments.only:
        spent += SECTIONS[name]
        end = clock.left - arguments.budget * (1 - spent / total)
        if end < 5:
            print(f"{name}: no time is left", flush=True)
            continue
        command = [sys.executable, __file__, "--section", name, "--until", str(time.time() + end)]
        command += ["--device", arguments.device, "--out", str(arguments.out)]
        command += ["--smoke"] if arguments.smoke else []
        started = time.monotonic()
        process = subprocess.Popen(command, start_new_session=True)
        try:
            code = process.wait(end + SECTIONS[name] / 4)
            ended = {"error": f"ended with exit code {code}"} if code else {}
        except subprocess.TimeoutExpired:
            ended = {"error": "did not end in its time"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
        took = {"seconds": round(time.monotonic() - started, 1)}
        record_of(arguments).keep(name, "the whole section", ended or took)
    rows = record_of(arguments).rows
    failed = [f"{name} | {row}" for name in rows for row, it in rows[name].items() if "error" in it]
    print(f"{len(failed)} rows failed: {arguments.out}", *failed, sep="\n")
    return len(failed)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, help="the folder that contains mnist/")
    parser.add_argument(
        "--budget", type=float, help="seconds of everything: 450, or an hour of smoke"
    )
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, random images")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    for hidden in ("--section", "--compiled", "--worker"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    arguments.budget = arguments.budget or (3600.0 if arguments.smoke else sum(SECTIONS.values()))
    if arguments.data:
        os.environ["PARTIKEL_DATA"] = str(arguments.data.absolute())
    if arguments.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA here: --device cpu --smoke tries all sections.")
    if arguments.worker:
        figures = worker(arguments.worker)
        if os.environ.get("RANK", "0") == "0":
            write_json(arguments.out, figures)
    elif arguments.compiled:
        bench, record = bench_of(arguments), record_of(arguments)
        for name, variant in COMPILED.items():
            work = partial(measure, bench, arguments.compiled, variant, 1.0)
            record.attempt("compile", f"{arguments.compiled}, {name}", work, Clock(600))
    elif arguments.section:
        run_section(arguments)
    else:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        if arguments.fresh:
            arguments.out.unlink(missing_ok=True)
            shutil.rmtree(arguments.out.with_suffix(""), ignore_errors=True)
        raise SystemExit(run_sections(arguments) > 0)


if __name__ == "__main__":
    main()
