"""From one data set to another: moons to Gaussians, and threes to eights, by flow matching.

The source of a flow may be any data. How its points are paired with those of the data makes paths crooked
or straight: independently, by optimal transport within each batch, or by where a trained flow takes them
(reflow).

    python examples/data_to_data.py [FOLDER]     # writes both pictures, in about four minutes
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from partikel import ParticleModel, fit
from partikel.app.show import plots
from partikel.data import DataPrior, Dataset, DataSettings, one_class, open_dataset
from partikel.denoising import VelocityDenoiser
from partikel.fields import Coupling, Independent, OptimalTransport, VelocityField
from partikel.metrics import energy_distance
from partikel.models import Reflow
from partikel.networks import NetworkSettings, build_network
from partikel.schedules import LinearSchedule, UniformTimeLaw
from partikel.solvers import Heun
from partikel.streams import seeded
from partikel.training import AdamSettings, Phase

PATH = LinearSchedule()
SHOWN = 70


def matched(
    data: Dataset, coupling: Coupling, source: Dataset, iterations: int, batch: int = 256
) -> ParticleModel:
    """A flow from the source to the data, whose pairs a coupling makes."""
    settings = NetworkSettings(
        "mlp", width=256, depth=3, activation="silu", fourier_scale=1.0, embedding_features=16
    )
    network = build_network(settings, "denoiser", shape=data.shape, scalars=1, generator=seeded(0))
    field = VelocityField(VelocityDenoiser(network, PATH), UniformTimeLaw(), coupling)
    model = ParticleModel(field, DataPrior(source), steps=14, schedule=PATH, solver=Heun())
    phase = Phase("velocity", AdamSettings(lr=1e-3, decay="cosine"), batch)
    fit(model, data, [phase], iterations=iterations)
    return model.eval()


def paths(model: ParticleModel, n: int, steps: int) -> Tensor:
    """(n, steps + 1, ...) the ways of n particles."""
    start = model.start(n, seeded(1))
    return torch.stack([s.x for s in model.stream(start, generator=seeded(1), steps=steps)], 1)


def bend(ways: Tensor) -> float:
    """How much longer paths are than straight ones, on average."""
    length = ways.diff(dim=1).norm(dim=-1).sum(1)
    return float((length / (ways[:, -1] - ways[:, 0]).norm(dim=-1)).mean() - 1)


def moons_to_gaussians(path: Path, iterations: int = 3000) -> None:
    """Three pairings of the same ends, and what few steps make of each."""
    source, data = (open_dataset(DataSettings(name)) for name in ("moons", "gaussians"))
    start, real = DataPrior(source), data.draw(5000, generator=seeded(2)).x
    flows = {"independent": matched(data, Independent(start), source, iterations)}
    flows["optimal transport"] = matched(data, OptimalTransport(start), source, iterations)
    flows["reflow"] = matched(data, Reflow(flows["independent"], 20_000), source, iterations)
    figure, panels = plots.new_panels(list(flows), 2.4, 3)
    for axes, (name, model) in zip(panels, flows.items(), strict=True):
        ways = paths(model, 400, 40)
        plots.frame_axes(axes, plots.view_of(real))
        for way in ways[:SHOWN]:
            axes.plot(*way.T, color=plots.INK, linewidth=0.5, alpha=0.5, zorder=2)
        axes.scatter(*ways[:, 0].T, s=2, color=plots.MUTED, zorder=1)
        plots.draw_clouds(axes, ways[:, -1], real[:400], 2.4)
        said = [f"paths {bend(ways):.1%} longer than straight ones"]
        for steps in (1, 14):
            x = model.sample(5000, generator=seeded(3), steps=steps)
            said.append(f"energy {energy_distance(x, real):.3f} after {steps} of Heun's steps")
        print(f"{name}: {', '.join(said)}")
    plots.save_figure(figure, path)


def threes_to_eights(path: Path, iterations: int = 3000) -> None:
    """Each row is a handwritten three on its way to an eight."""
    digits = open_dataset(DataSettings("digits"))
    source, data = one_class(digits, 3), one_class(digits, 8)
    start, times = DataPrior(source), 7
    strips = {}
    for name, coupling in {
        "3 to 8, paired independently": Independent(start),
        "3 to 8, paired by optimal transport": OptimalTransport(start),
    }.items():
        ways = paths(matched(data, coupling, source, iterations, 100), 6, 24)
        strips[name] = ways[:, torch.linspace(0, 24, times).round().long()]
    captions = [f"t = {t:.2f}" for t in torch.linspace(0, 1, times)]
    plots.save_figure(plots.strips_figure(strips, dict.fromkeys(strips, captions)), path)


def main(folder: str = ".") -> None:
    """Write both pictures."""
    moons_to_gaussians(Path(folder) / "moons-to-gaussians.png")
    threes_to_eights(Path(folder) / "digits-to-digits.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
