"""What a page holds of a run: its networks, where the page can evaluate them, and moments of it else."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partikel.app.gallery import run_frames
from partikel.app.runs import Run
from partikel.app.show import plots
from partikel.denoising import EDMDenoiser
from partikel.errors import CheckpointError, ConfigError
from partikel.fields import DiscriminatorField, ScoreField
from partikel.metrics.chance import energy_quantile
from partikel.models import Carrier, FlowMapModel, GeneratorModel, ParticleModel
from partikel.models.map_losses import Consistency
from partikel.networks import MLP
from partikel.networks.activations import ACTIVATIONS
from partikel.networks.conditions import ScalarConditions
from partikel.networks.embeddings import FourierEmbedding
from partikel.objectives import objective_name
from partikel.priors import GaussianPrior
from partikel.schedules import UniformGrid
from partikel.solvers import Euler
from partikel.streams import seeded

MOMENTS, SHEETS = 40, 24
"""Moments of a run of points, and of one of images."""
FEW, MANY = 200, 2000
"""Particles of a page: few where a network has more than :data:`HEAVY` weights, or paths are precomputed."""
HEAVY = 100_000
IMAGES = 16
REFERENCE = 1000


def told(run: Run) -> dict[str, Any]:
    """A run as the page takes it, in words, numbers and texts of base64.

    Args:
        run: of points of the plane, or of images.

    Raises:
        ConfigError: for a run of anything else.
    """
    generator = seeded(0, "explorer")
    about = {"label": f"{run.title} ({run.path.resolve().name})", "data": run.recipe.data.title}
    shape = tuple(run.data.shape)
    if shape == (2,):
        return {**about, **_points(run, generator)}
    if len(shape) == 3 and shape[0] in (1, 3):
        return {**about, "kind": "sheets", **_sheets(run, generator)}
    raise ConfigError(
        f"{run.path} cannot be explored: its samples are neither points of the plane nor images, but of "
        f"shape {shape}."
    )


def _points(run: Run, generator: torch.Generator) -> dict[str, Any]:
    """Points: reference data with the null level, and a network or moments."""
    cloud = run.beside(REFERENCE, generator)
    live = None if run.model.conditional else _live(run.model)
    count = FEW if live is None or live["heavy"] else MANY
    known = {"n": count, "reference": "", "level": None}
    if cloud is not None:
        level = energy_quantile(cloud, min(count, 500), 500, 0.95)
        known |= {"reference": _packed(cloud), "level": level}
    if live is not None:
        return {**known, **live}
    frames = run_frames(run, generator=generator, frames=MOMENTS, n=FEW)
    n = min(len(frame.x) for frame in frames)
    halves = [max(map(abs, frame.extent)) if frame.extent else 5.0 for frame in frames]
    return {
        **known,
        "kind": "film",
        "n": n,
        "moments": [frame.label for frame in frames],
        "halves": halves,
        "points": _packed(torch.stack([frame.x[:n] for frame in frames])),
    }


def _sheets(run: Run, generator: torch.Generator) -> dict[str, Any]:
    """Moments of images as pictures."""
    try:
        frames = run_frames(run, generator=generator, frames=SHEETS, n=IMAGES)
        shown = [(frame.label, frame.x[:IMAGES]) for frame in frames]
    except CheckpointError:  # a training that recorded none
        shown = [("samples", run.sample(IMAGES, generator=generator))]
    pictures = [_png(x) for _, x in shown]
    size = sum(map(len, pictures))
    return {"moments": [label for label, _ in shown], "pictures": pictures, "size": size}


def _png(x: Tensor) -> str:
    scale = max(1, 48 // x.shape[-1])
    stream = io.BytesIO()
    plots.image_grid(x, scale=scale).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _live(model: Carrier) -> dict[str, Any] | None:
    """What the page evaluates by itself; None where it cannot."""
    if isinstance(model, GeneratorModel):
        standard = isinstance(model.prior, GaussianPrior) and model.prior.std == 1
        network = _network(model.generator, 0)
        return {"kind": "generator", **network} if network and standard else None
    if isinstance(model, FlowMapModel):
        network = _network(model.network, 2) if model.guidance == 1 else None
        noised = isinstance(model.loss, Consistency) and model.steps > 1  # between its jumps
        if network is None or model.horizon != 1 or model.schedule is None or noised:
            return None
        return {"kind": "map", "prior": model.schedule.prior_std, "jumps": model.steps, **network}
    if not isinstance(model, ParticleModel) or not isinstance(model.prior, GaussianPrior):
        return None
    field = model.field
    scores = [
        part for part in field.modules() if isinstance(part, ScoreField) and part.of == "data"
    ]
    if len(scores) == 1 and not any(isinstance(p, DiscriminatorField) for p in field.modules()):
        denoiser = scores[0].denoiser
        if type(denoiser) is EDMDenoiser and not denoiser.timed:
            network = _network(denoiser.network, 1)
            return (
                {"kind": "score", "std": float(denoiser.sigma_data), **network} if network else None
            )
    if not isinstance(field, DiscriminatorField):
        return None
    plain = field.conditions == ("t",)
    steady = type(model.solver) is Euler and type(model.grid) is UniformGrid
    if plain and steady and model.diffusion is None and field.schedule is None:
        network = _network(field.network, 1)
        if network is None or field.objective.paired or model.horizon != 1:
            return None
        walk = {"steps": model.steps, "eta": model.eta, "prior": model.prior.std}
        return {"kind": "critic", "objective": objective_name(field.objective), **walk, **network}
    return None


def _network(network: nn.Module, scalars: int) -> dict[str, Any] | None:
    """A multilayer perceptron that is told so many numbers; None for any other network."""
    if type(network) is not MLP:
        return None
    assert isinstance(network.conditions, ScalarConditions)
    if network.conditions.told.scalars != scalars:
        return None
    embed = network.conditions.embed
    names = [name for name, each in ACTIVATIONS.items() if each is network.activation]
    plain = network.final_activation is ACTIVATIONS["identity"] and not network.conditions.label
    if not names or not plain or not (embed is None or isinstance(embed, FourierEmbedding)):
        return None
    layers = [network.first, *network.rest]
    weights = torch.cat([part.flatten() for each in layers for part in (each.weight, each.bias)])
    return {
        "sizes": [layers[0].in_features, *(each.out_features for each in layers)],
        "activation": names[0],
        "weights": _packed(weights),
        "frequencies": [] if embed is None else embed.frequencies.tolist(),
        "heavy": weights.numel() > HEAVY,
    }


def _packed(values: Tensor) -> str:
    """Numbers in float32, little-endian, as base64."""
    array = values.detach().cpu().contiguous().numpy().astype(np.dtype("<f4"))
    return base64.b64encode(array.tobytes()).decode()
