"""Cost of a training step in units of a fixed network, and of sampling in its network calls.

    python benchmarks/step_cost.py [--presets PRESET ...]

The unit is forward and backward of a 130-512x4-1 MLP on 128 rows, timed in turns with the steps so
that a busy machine slows both alike. The steps are those of the paper's presets. With --presets, what
their whole trainings take instead, of a Score GAN without its teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from common import one_thread, save, system_of  # isort: skip
import torch

from partikel.app.config import load_preset, make_recipe
from partikel.data import open_dataset
from partikel.fields import Scaled, ScoreField
from partikel.models import ParticleModel
from partikel.studies.units import in_turns, unit
from partikel.training import Trainer

LIMITS = {"edm-gaussians-paper": 1.5, "gan-gaussians-paper": 4.8}
"""What a step may cost, in units."""

ROUNDS = 40


def step_of(preset: str, **settings: Any) -> Callable[[], Any]:
    """One training iteration of a preset."""
    _, dataset, system = system_of(preset, {"iterations": 10**6, **settings})
    iterations = Trainer(system.model, dataset, system.phases, iterations=10**6).run()
    return lambda: next(iterations)


def sampling_overhead(points: int = 4096) -> dict[str, float]:
    """EDM, Heun 28: sampling against its 55 network calls alone."""
    recipe = make_recipe("edm", load_preset("edm-gaussians").settings)
    model = recipe.compose(open_dataset(recipe.data)).model
    assert isinstance(model, ParticleModel)
    field = model.field
    assert isinstance(field, Scaled)
    score = field.field
    assert isinstance(score, ScoreField)
    network = score.denoiser.network
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(points, 2, generator=generator), torch.zeros(1, 1)

    def calls() -> None:
        with torch.no_grad():
            for _ in range(2 * recipe.steps - 1):  # type: ignore[attr-defined]
                network(x, c, None)

    works = {"calls": calls, "sample": lambda: model.sample(points, generator=generator)}
    seconds = in_turns(works, ROUNDS)
    return {**seconds, "ratio": seconds["sample"] / seconds["calls"]}


def trainings(presets: list[str]) -> dict[str, Any]:
    """Units of the trainings of presets, each timed by its steps."""
    found: dict[str, Any] = {}
    for preset in presets:
        loaded = load_preset(preset)
        works = {"unit": unit(), "step": step_of(preset)}
        seconds = in_turns(works, ROUNDS, {"unit": 5})
        step = seconds["step"] / seconds["unit"]
        iterations = make_recipe(loaded.recipe, loaded.settings).iterations
        found[preset] = {"step": step, "iterations": iterations, "units": step * iterations}
        print(f"{preset}: {found[preset]['units']:.0f} units", flush=True)
    return found


def main() -> None:
    """Run the benchmark and hold it against its limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+")
    given = parser.parse_args().presets
    one_thread()
    if given is not None:
        print(save("training-units", {"presets": trainings(given)}))
        return
    presets = [
        "edm-gaussians-paper",
        "gan-gaussians-paper",
        "score-gan-gaussians-paper",
        "discriminator-flow-gaussians-paper",
    ]
    work = {"unit": unit(), **{preset: step_of(preset) for preset in presets}}
    truncated = "discriminator-flow-gaussians-paper, only the steps a particle needs"
    work[truncated] = step_of("discriminator-flow-gaussians-paper", truncate=True)
    presets.append(truncated)
    seconds = in_turns(
        work, ROUNDS, {"unit": 5, "edm-gaussians-paper": 5, "gan-gaussians-paper": 3}
    )
    units = {preset: seconds[preset] / seconds["unit"] for preset in presets}
    sampling = sampling_overhead()
    within = {preset: units[preset] <= limit for preset, limit in LIMITS.items()}
    within["sampling within 1.2 of its calls"] = sampling["ratio"] <= 1.2
    path = save(
        "step-cost",
        {
            "unit_milliseconds": seconds["unit"] * 1e3,
            "step_in_units": units,
            "limits": LIMITS,
            "sampling_4096_points_heun_28": sampling,
            "within": within,
        },
    )
    for preset, value in units.items():
        print(f"{preset}: {value:.2f} units (limit {LIMITS.get(preset, '-')})")
    print(f"sampling: {sampling['ratio']:.3f} of its network calls (limit 1.2)\n{path}")
    if not all(within.values()):
        raise SystemExit(f"beyond the limits: {[k for k, v in within.items() if not v]}")


if __name__ == "__main__":
    main()
