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

from partikel.data import Dataset, FiniteDataset
from partikel.errors import ConfigError, DataError, NumericsError
from partikel.errors.checks import checked
from partikel.files import read_text, write_whole, writing_to
from partikel.likelihood.bound import GenerativeSDE, Trace, elbo
from partikel.likelihood.flow import ProbabilityFlow, check_derivative
from partikel.likelihood.images import bits_per_dim, byte_width, dequantised
from partikel.likelihood.maps import map_density
from partikel.likelihood.ode import Divergence, Integrator, log_likelihood
from partikel.models import Carrier
from partikel.streams import seeded

INVERTIBLE = 0.99
"""Share of points at which a map has to be invertible for its density to be given."""

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


@checked
def dataset_likelihood(
    model: ProbabilityFlow | GenerativeSDE | Carrier,
    dataset: Dataset,
    *,
    n: int | None = None,
    split: str = "test",
    seed: int = 0,
    batch: int = 100,
    bits: bool | None = None,
    labels: bool = False,
    divergence: Divergence = "auto",
    probes: int = 1,
    integrator: Integrator | None = None,
    draws: int = 32,
    trace: Trace = "free",
    inference: Any = "linear",
    steps: int = 256,
    limit: float = 0.01,
    strict: bool = True,
    real: Tensor | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    about: str = "",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Mean log-likelihood of a probability flow or of a carrier's own map, or ELBO of an SDE.

    Args:
        model: what gives densities.
        dataset: points or images; its bytes are dequantised.
        n: points; all of a finite split, or 1000 fresh ones, unless given.
        split: of the data.
        seed: of the points' draw, noise and probes.
        batch: points at once.
        bits: bits per dimension as well; where the data are bytes, unless given.
        labels: give the model the data's labels: log ρ(x | label).
        divergence: see :func:`~partikel.likelihood.ode.log_likelihood`.
        probes: likewise.
        integrator: likewise.
        draws: see :func:`~partikel.likelihood.bound.elbo`.
        trace: likewise.
        inference: likewise.
        steps: likewise.
        limit: largest mean error of the solver, in nats per dimension.
        strict: refuse an unconverged result; False flags it.
        real: samples of the data, where a carrier's field compares with them (relativistic objectives).
        device: where it is computed.
        dtype: of the points, which is that of the model's weights.
        about: what the model is (a checkpoint's name and step): figures of another one are not resumed.
        folder: where finished batches are kept, so that the same call goes on after an interruption.
        progress: called after each batch.

    Raises:
        ConfigError: for settings that cannot be, or bits of data that are no bytes.
        DataError: for more points than there are, or images out of range.
        NumericsError: where the solver has not converged (if strict).
    """
    top = dataset.top if isinstance(dataset, FiniteDataset) else None
    if bits and top is None:
        raise ConfigError(
            f"bits per dimension are of bytes, and '{dataset.name}' draws points from a density: leave "
            "out bits."
        )
    size = dataset.size(split)
    if size is not None and size < 2:
        raise DataError(
            f"the {split} split of '{dataset.name}' has {size} points, and a likelihood is of at least 2: "
            "choose another split"
        )
    n = n if n is not None else (1000 if size is None else size)
    if n < 2 or batch < 1:
        raise ConfigError(
            f"a likelihood is of at least 2 points, in batches of at least 1, got {n} and {batch}."
        )
    bound = isinstance(model, GenerativeSDE)
    protocol: dict[str, Any] = {
        "data": dataset.name,
        "fingerprint": dataset.fingerprint(split),
        "split": split,
        "points": n,
        "seed": seed,
        "batch": batch,
        "labels": labels,
        "dequantised": top is not None,
        "dtype": str(dtype).removeprefix("torch."),
        "about": about,
    }
    if isinstance(model, Carrier):
        protocol |= {"method": "map"}
    elif bound:
        protocol |= {"method": "elbo", "inference": inference, "draws": draws}
        protocol |= {"trace": trace} if inference == "linear" else {"steps": steps}
    else:
        protocol |= {"method": "ode", "divergence": divergence, "probes": probes}
        protocol |= (integrator or Integrator()).protocol
    kept = _Kept(folder, protocol)
    everything = dataset.draw(
        n, split, generator=seeded(seed, "likelihood", "points"), dtype=torch.float64
    )
    shape_dim = math.prod(dataset.shape)
    context = None if real is None else real.to(device, dtype)
    for start in range(0, n, batch):
        if start in kept.done:
            continue
        x = everything.x[start : start + batch].to(device)
        cond = everything.cond
        cond = None if not labels or cond is None else cond[start : start + batch].to(device)
        generator = seeded(seed, "likelihood", "batch", start, device=device)
        if top is not None:
            x = dequantised(x, byte_width(top), generator=generator)
        x = x.to(dtype)
        if isinstance(model, GenerativeSDE):
            found = elbo(
                model,
                x,
                generator=generator,
                cond=cond,
                inference=inference,
                draws=draws,
                trace=trace,
                steps=steps,
            )
            kept.add(start, found.bound, None)
        elif isinstance(model, Carrier):
            density = map_density(model, x, cond=cond, real=context)
            kept.add(start, density.log_prob, (~density.invertible).double())
        else:
            if not kept.checked:
                check_derivative(
                    model, x, cond, generator=seeded(seed, "likelihood", "check", device=device)
                )
                kept.checked = True
            result = log_likelihood(
                model,
                x,
                generator=generator,
                cond=cond,
                divergence=divergence,
                probes=probes,
                integrator=integrator,
                strict=False,
                checked=False,
            )
            kept.add(start, result.log_prob, result.solver_error)
        if progress is not None:
            progress(min(start + batch, n), n)
    log_prob, error = kept.all()
    if isinstance(model, Carrier):
        assert error is not None
        share = 1 - float(error.mean())
        protocol |= {"invertible": share}
        if strict and (share < INVERTIBLE or not log_prob.isfinite().all()):
            raise NumericsError(
                f"the model's steps can be inverted at {share:.1%} of the points only, so that change of "
                "variables is no density: train it with smaller steps (more of them, or a smaller eta) "
                "and a smooth activation."
            )
        error = None
    solver = None if error is None else float(error.mean())
    converged = solver is None or solver / shape_dim <= limit
    if strict and solver is not None and not converged:
        raise NumericsError(
            f"the likelihood has not converged: half the work changes it by {solver / shape_dim:.3g} nats "
            f"per dimension, more than {limit:g}; take more steps or a smaller tolerance."
        )
    mean, standard = float(log_prob.mean()), float(log_prob.std()) / n**0.5
    per_dim = per_dim_error = None
    if top is not None and bits is not False:
        per_dim = float(bits_per_dim(log_prob.mean(), shape_dim, byte_width(top)))
        per_dim_error = standard / shape_dim / math.log(2)
    return Report(mean, standard, per_dim, per_dim_error, solver, converged, n, protocol)


class _Kept:
    """Finished batches, in memory and as lines of a file that names their protocol first."""

    def __init__(self, folder: Path | None, protocol: dict[str, Any]) -> None:
        self.done: dict[int, tuple[list[float], list[float] | None]] = {}
        self.checked = False
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
                self.done[record["start"]] = record["log_prob"], record["solver_error"]
                whole.append(line)
        self.checked = bool(self.done)
        with writing_to(folder, "free some space or choose another folder", DataError):
            write_whole(self.path, "\n".join(whole) + "\n")

    def add(self, start: int, log_prob: Tensor, solver_error: Tensor | None) -> None:
        """Keep a batch."""
        errors = None if solver_error is None else solver_error.tolist()
        self.done[start] = log_prob.tolist(), errors
        if self.path is not None:
            record = {"start": start, "log_prob": self.done[start][0], "solver_error": errors}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def all(self) -> tuple[Tensor, Tensor | None]:
        """All log-densities and solver errors, in the order of the points."""
        rows = [self.done[start] for start in sorted(self.done)]
        log_prob = torch.tensor([value for row, _ in rows for value in row], dtype=torch.float64)
        errors = [value for _, row in rows if row is not None for value in row]
        return log_prob, torch.tensor(errors, dtype=torch.float64) if errors else None
