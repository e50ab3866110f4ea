"""The Sinkhorn field beside geomloss, at equal accuracy.

    python benchmarks/sinkhorn.py          # with geomloss installed (pip install geomloss)

Particles N(0, I) and as many samples of the five Gaussians, in two dimensions, float32, one thread. The
error of a gradient is its root mean square distance to the converged field, relative to that field's. Each
of geomloss's settings (``scaling``, tensorised) is met by the fastest of ours (``tolerance``) that errs no
more; process times are medians of runs in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import one_thread, save  # isort: skip
import torch
from torch import Tensor

from partikel.data import DataSettings, open_dataset
from partikel.fields import At, Context
from partikel.fields.samples.transport import SinkhornField
from partikel.studies.units import in_turns

SIZES = {1000: 5, 2000: 3}
"""Points, and how often each setting runs."""
BLUR = 0.3
SCALINGS = (0.5, 0.7, 0.9, 0.97)
TOLERANCES = (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3)


def points(n: int) -> tuple[Tensor, Tensor]:
    """Particles and real samples."""
    target = open_dataset(DataSettings("gaussians")).target
    assert target is not None
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, generator=generator), target.sample(n, generator=generator).float()


def field(x: Tensor, real: Tensor, **settings: Any) -> Tensor:
    """Ours."""
    bound = SinkhornField(BLUR, **settings).bind(Context(real=real))
    return bound(x, At(torch.zeros(())))


def peer(x: Tensor, real: Tensor, scaling: float) -> Tensor:
    """-P times the gradient of geomloss's divergence."""
    from geomloss import SamplesLoss  # type: ignore[import-not-found]  # pyright: ignore

    loss = SamplesLoss("sinkhorn", p=2, blur=BLUR, scaling=scaling, backend="tensorized")
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(point, real), point)
    return -len(x) * slope


def compare(n: int, rounds: int) -> dict[str, Any]:
    """One size."""
    x, real = points(n)
    exact = field(x.double(), real.double(), tolerance=1e-4, iterations=1000)
    works: dict[str, Callable[[], Tensor]] = {}
    works |= {f"tolerance {t:g}": lambda t=t: field(x, real, tolerance=t) for t in TOLERANCES}
    works |= {f"scaling {s:g}": lambda s=s: peer(x, real, s) for s in SCALINGS}
    norm = exact.square().mean().sqrt()
    errors = {
        k: float((w().double() - exact).square().mean().sqrt() / norm) for k, w in works.items()
    }
    seconds = in_turns(works, rounds)
    ratios = {}
    for s in (f"scaling {each:g}" for each in SCALINGS):
        as_good = [seconds[t] for t in works if t[0] == "t" and errors[t] <= errors[s]]
        ratios[s] = min(as_good) / seconds[s] if as_good else None
    return {"errors": errors, "seconds": seconds, "ours_over_theirs_at_equal_accuracy": ratios}


def main() -> None:
    """Run the benchmark."""
    one_thread()
    results = {n: compare(n, rounds) for n, rounds in SIZES.items()}
    for n, found in results.items():
        for name, error in found["errors"].items():
            print(f"{n:6d}  {name:16s} error {error:.1e}  {found['seconds'][name]:.3f} s")
        print(f"{n:6d}  {found['ours_over_theirs_at_equal_accuracy']}")
    print(save("sinkhorn", {"blur": BLUR, "points": results}))


if __name__ == "__main__":
    main()
