"""The likelihood of a data set: batch by batch, each with a seed of its own, resumed where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partikel.data import Dataset
from partikel.errors import ConfigError, DataError
from partikel.errors.checks import Checked, checked
from partikel.files import read_text, write_whole, writing_to
from partikel.likelihood.images import bits_per_dim, byte_width, dequantised
from partikel.likelihood.method import Densities, Method
from partikel.streams import seeded

Progress = Callable[[int, int], None]
"""(points done, points in all)."""


@dataclass(frozen=True)
class Report:
    """Mean log-likelihood of a data set.

    Attributes:
        log_prob: mean of log ρ(x) in nats, or of its lower bound.
        standard_error: of that mean: over the points, and with them over probes, times and noise.
        bits_per_dim: of bytes; None where the data are no bytes.
        bits_error: its standard error.
        solver_error: mean distance from half the work, in nats; None for a bound.
        converged: whether that is within the limit.
        points: how many.
        protocol: data, method, seed and settings.
    """

    log_prob: float
    standard_error: float
    bits_per_dim: float | None
    bits_error: float | None
    solver_error: float | None
    converged: bool
    points: int
    protocol: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Points(Checked):
    """Which points of a data set are measured.

    Attributes:
        split: of the data.
        n: points; all of a finite split, or 1000 fresh ones, unless given.
        seed: of the points' draw, noise and probes.
        batch: points at once.
        labels: give the model the data's labels: log ρ(x | label).
        bits: bits per dimension as well; where the data are bytes, unless given.
        device: where it is computed.
        dtype: of the points, which is that of the model's weights.
    """

    split: str = "test"
    n: int | None = None
    seed: int = 0
    batch: int = 100
    labels: bool = False
    bits: bool | None = None
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def counted(self, dataset: Dataset) -> int:
        """How many of a data set.

        Raises:
            ConfigError: for too few, or bits of data that are no bytes.
            DataError: where the split has too few.
        """
        if self.bits and getattr(dataset, "top", None) is None:
            raise ConfigError(
                f"bits per dimension are of bytes, and '{dataset.name}' draws points from a density: "
                "leave out bits."
            )
        size = dataset.size(self.split)
        if size is not None and size < 2:
            raise DataError(
                f"the {self.split} split of '{dataset.name}' has {size} points, and a likelihood is of "
                "at least 2: choose another split"
            )
        n = self.n if self.n is not None else (1000 if size is None else size)
        if n < 2 or self.batch < 1:
            raise ConfigError(
                f"a likelihood is of at least 2 points, in batches of at least 1, got {n} and "
                f"{self.batch}."
            )
        return n


TEST = Points()
"""The whole test split."""


@checked
def dataset_likelihood(
    method: Method,
    model: Any,
    dataset: Dataset,
    points: Points = TEST,
    *,
    real: Tensor | None = None,
    about: str = "",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Mean log-likelihood of a data set, batch by batch.

    Args:
        method: :class:`Ode`, :class:`Elbo` or :class:`Map`, with its settings.
        model: what gives densities, see :meth:`Method.law`.
        dataset: points or images; its bytes are dequantised.
        points: which of them.
        real: samples of the data, where a carrier's field compares with them (relativistic objectives).
        about: what the model is (a checkpoint's name and step): figures of another one are not resumed.
        folder: where finished batches are kept, so that the same call goes on after an interruption.
        progress: called after each batch.

    Raises:
        ConfigError: for settings that cannot be, or bits of data that are no bytes.
        DataError: for more points than there are, or images out of range.
        NumericsError: where the densities are worth nothing (if the method is strict).
    """
    n, seed, device = points.counted(dataset), points.seed, points.device
    top: int | None = getattr(dataset, "top", None)
    width = None if top is None else byte_width(top)
    protocol: dict[str, Any] = {
        "data": dataset.name,
        "fingerprint": dataset.fingerprint(points.split),
        "split": points.split,
        "points": n,
        "seed": seed,
        "batch": points.batch,
        "labels": points.labels,
        "dequantised": width is not None,
        "dtype": str(points.dtype).removeprefix("torch."),
        "about": about,
        **method.protocol,
    }
    law, kept = method.law(model, real), _Kept(folder, protocol)
    drawn = seeded(seed, "likelihood", "points")
    everything = dataset.draw(n, points.split, generator=drawn, dtype=torch.float64)
    for start in range(0, n, points.batch):
        if start in kept.done:
            continue
        rows = slice(start, start + points.batch)
        x, cond = everything.x[rows].to(device), None
        if points.labels and everything.cond is not None:
            cond = everything.cond[rows].to(device)
        generator = seeded(seed, "likelihood", "batch", start, device=device)
        if width is not None:
            x = dequantised(x, width, generator=generator)
        x = x.to(points.dtype)
        if not kept.done:
            looking = seeded(seed, "likelihood", "check", device=device)
            method.check(law, x, cond, generator=looking)
        kept.add(start, method.densities(law, x, cond, generator=generator))
        if progress is not None:
            progress(min(start + points.batch, n), n)
    log_prob, flaws = kept.all()
    dim = math.prod(dataset.shape)
    worth = method.worth(log_prob, flaws, dim)
    mean, error = float(log_prob.mean()), float(log_prob.std()) / n**0.5
    per_dim = per_dim_error = None
    if width is not None and points.bits is not False:
        per_dim = float(bits_per_dim(log_prob.mean(), dim, width))
        per_dim_error = error / dim / math.log(2)
    solver, converged, found = worth
    return Report(mean, error, per_dim, per_dim_error, solver, converged, n, protocol | found)


class _Kept:
    """Finished batches, in memory and as lines of a file that names their protocol first."""

    def __init__(self, folder: Path | None, protocol: dict[str, Any]) -> None:
        self.done: dict[int, dict[str, Any]] = {}
        self.path: Path | None = None
        if folder is None:
            return
        text = json.dumps(protocol, sort_keys=True)
        # not files.fingerprint: files of earlier versions are to be found again
        name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.path = folder / f"likelihood-{name}.jsonl"
        lines = read_text(self.path, DataError).splitlines() if self.path.exists() else []
        whole = [text]
        for line in lines[1:]:
            with contextlib.suppress(json.JSONDecodeError):  # cut short as it was written
                record = json.loads(line)
                self.done[record["start"]] = record
                whole.append(line)
        with writing_to(folder, "free some space or choose another folder", DataError):
            write_whole(self.path, "\n".join(whole) + "\n")

    def add(self, start: int, found: Densities) -> None:
        """Keep a batch."""
        log_prob, flaws = found.log_prob.tolist(), found.flaws.tolist()
        record = {"start": start, "log_prob": log_prob, "solver_error": flaws}
        self.done[start] = record
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def all(self) -> tuple[Tensor, Tensor]:
        """All log-densities and flaws, in the order of the points."""
        rows = [self.done[start] for start in sorted(self.done)]
        log_prob = torch.tensor([v for row in rows for v in row["log_prob"]], dtype=torch.float64)
        flaws = [v for row in rows for v in row["solver_error"] or ()]  # none of a bound, in 0.1
        return log_prob, torch.tensor(flaws, dtype=torch.float64)
