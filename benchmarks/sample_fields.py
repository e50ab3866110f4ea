"""Time and peak memory of the fields of samples against the number of particles, beside POT.

    python benchmarks/sample_fields.py

As many real samples as particles, in two dimensions, one thread, float32. Each figure comes from a
process of its own: median process time of one call, and how far the first call raised the peak of
resident memory (Linux). "pot" is the same sliced field by POT's distance and autograd on the same
number of lines; "dense" is the same MMD field by matrices of all pairs and autograd, as far as memory
should go. POT has no MMD. Slopes are exponents of n by least squares of logarithms, from 5000 on.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import cpu_seconds, one_thread, save  # isort: skip
import torch
from torch import Tensor

SIZES = (1000, 2000, 5000, 10_000, 20_000, 50_000)
LINES = 50
DENSE_LIMIT = 5000
METHODS = ("mmd rbf", "mmd energy", "mmd rbf dense", "sliced", "sliced pot")


def points(n: int) -> tuple[Tensor, Tensor]:
    """Particles and real samples."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, generator=generator), 2 * torch.randn(n, 2, generator=generator) + 1


def ours(name: str, x: Tensor, real: Tensor) -> Tensor:
    """One call of the field."""
    from partikel.fields import At, Context
    from partikel.fields.samples.mmd import MMDField
    from partikel.fields.samples.transport import SlicedWassersteinField
    from partikel.kernels import RBFKernel, RieszKernel

    fields = {
        "mmd rbf": lambda: MMDField(RBFKernel(1.0)),
        "mmd energy": lambda: MMDField(RieszKernel()),
        "sliced": lambda: SlicedWassersteinField(LINES),
    }
    generator = torch.Generator().manual_seed(1)
    bound = fields[name]().bind(Context(real=real, generator=generator))
    return bound(x, At(torch.zeros(())))


def dense(x: Tensor, real: Tensor) -> Tensor:
    """-P ∇ ½ MMD² through the matrices of all pairs."""
    point = x.clone().requires_grad_()

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b).square() / 2).exp().mean()

    half = mean(point, point) / 2 - mean(point, real)
    return -len(x) * torch.autograd.grad(half, point)[0]


def pot(x: Tensor, real: Tensor) -> Tensor:
    """-P ∇ ½ SW2² by POT, on the lines that the field draws."""
    import ot

    lines = torch.randn(LINES, 2, generator=torch.Generator().manual_seed(1))
    lines = lines / lines.norm(dim=1, keepdim=True)
    point = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of memory layouts
        distance: Any = ot.sliced_wasserstein_distance(point, real, projections=lines.T)
    return -len(x) * torch.autograd.grad(distance.square() / 2, point)[0]


def status(key: str) -> int:
    """What Linux says of this process's memory, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(method: str, n: int) -> dict[str, float]:
    """Process seconds of one call and the rise of the peak of memory, in MB."""
    one_thread()
    work: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mmd rbf dense": dense,
        "sliced pot": pot,
    }
    call = work.get(method) or (lambda x, real: ours(method, x, real))
    small = points(100)
    call(*small)  # imports and first calls
    x, real = points(n)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = status("VmRSS")
    call(x, real)
    after = status("VmHWM")
    repeats = 5 if n <= 5000 else 3 if n <= 20_000 else 1
    seconds = cpu_seconds(lambda: call(x, real), repeats)
    return {"seconds": seconds, "megabytes": (after - before) / 1024}


def slope(sizes: list[int], values: list[float]) -> float:
    """Exponent of the power law."""
    u, v = [math.log(n) for n in sizes], [math.log(value) for value in values]
    a, b = sum(u) / len(u), sum(v) / len(v)
    return sum((p - a) * (q - b) for p, q in zip(u, v, strict=True)) / sum((p - a) ** 2 for p in u)


def main() -> None:
    """Run the benchmark."""
    one_thread()
    x, real = points(2000)
    torch.testing.assert_close(ours("mmd rbf", x, real), dense(x, real), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours("sliced", x, real), pot(x, real), rtol=1e-3, atol=1e-4)
    results: dict[str, dict[int, dict[str, float]]] = {method: {} for method in METHODS}
    for method in METHODS:
        for n in SIZES:
            if method == "mmd rbf dense" and n > DENSE_LIMIT:
                continue
            command = [sys.executable, __file__, method, str(n)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[method][n] = json.loads(output)
            print(method, n, results[method][n], flush=True)
    upper = {method: [n for n in rows if n >= 5000] for method, rows in results.items()}
    record: dict[str, Any] = {
        "dimension": 2,
        "lines": LINES,
        "results": results,
        "slope of seconds": {
            method: slope(sizes, [results[method][n]["seconds"] for n in sizes])
            for method, sizes in upper.items()
            if len(sizes) > 1
        },
        "pot / ours, sliced": {
            n: row["seconds"] / results["sliced"][n]["seconds"]
            for n, row in results["sliced pot"].items()
        },
        "dense / ours, mmd rbf": {
            n: row["seconds"] / results["mmd rbf"][n]["seconds"]
            for n, row in results["mmd rbf dense"].items()
        },
    }
    print(save("sample-fields", record))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
