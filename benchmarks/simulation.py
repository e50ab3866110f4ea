"""What makes an input gradient cheap: one step of a Discriminator Flow's simulation, in several ways.

    python benchmarks/simulation.py

Median process time of one evaluation of the field of the paper's network (and of the tuned one) at 128
particles, in turns, relative to how Partikel does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import one_thread, save  # isort: skip
import torch

from partikel.app.config import load_preset, make_recipe
from partikel.data import open_dataset
from partikel.fields import At, DiscriminatorField
from partikel.studies.units import in_turns

ROWS = 128


def ways(preset: str) -> dict[str, Callable[[], Any]]:
    """The same field, evaluated in several ways."""
    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings)
    field = recipe.compose(open_dataset(recipe.data)).model.field
    assert isinstance(field, DiscriminatorField)
    network = field.network
    x = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
    once, each = At(torch.tensor(0.3)), At(torch.full((ROWS,), 0.3))

    def with_weights() -> torch.Tensor:
        network.zero_grad(set_to_none=True)
        point = x.detach().requires_grad_()
        field.potential(point, once).sum().backward()
        assert point.grad is not None
        return point.grad

    compiled = torch.compile(field.potential)

    def compiled_field() -> torch.Tensor:
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(compiled(point, once).sum(), point)
        return gradient

    torch.testing.assert_close(with_weights(), field(x, once))
    return {
        "input gradient, time embedded once": lambda: field(x, once),
        "time embedded for each particle": lambda: field(x, each),
        "with weight gradients": with_weights,
        "compiled": compiled_field,
    }


def main() -> None:
    """Run the benchmark."""
    one_thread()
    results: dict[str, Any] = {}
    for preset in ("discriminator-flow-gaussians-paper", "discriminator-flow-gaussians"):
        work = ways(preset)
        seconds = in_turns(work, 20, dict.fromkeys(work, 5))
        base = seconds["input gradient, time embedded once"]
        results[preset] = {
            "milliseconds": {name: value * 1e3 for name, value in seconds.items()},
            "relative": {name: value / base for name, value in seconds.items()},
        }
        print(preset, results[preset])
    print(save("simulation", {"rows": ROWS, "results": results}))


if __name__ == "__main__":
    main()
