"""Export: a run's generator as a folder that can be published, and read back without the run.

FOLDER/
generator.safetensors   weights, the moving average where the run keeps one
config.json             what builds the network: its settings, latents, shape, labels, range
README.md               the model card: what, data, training, measured figures, how to use
samples.png             samples
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment
from torch import Tensor, nn

from partikel.app.config import settings_of
from partikel.app.runs import Run, draw_samples
from partikel.app.show.plots import save_picture
from partikel.errors import CheckpointError, ConfigError
from partikel.errors.checks import checked
from partikel.extensions import naming
from partikel.fields import Linear
from partikel.files import (
    read_json,
    reading,
    replacing,
    sealed,
    write_json,
    write_whole,
    writing_to,
)
from partikel.models import Carrier, GeneratorModel
from partikel.networks import NetworkSettings, build_network
from partikel.networks.weights import misfit, read_tensors, write_tensors
from partikel.priors import GaussianPrior
from partikel.streams import seeded

SCHEMA = 1
KIND = "partikel one-step generator"
_WEIGHTS, _CONFIG = "generator.safetensors", "config.json"
_CARD, _PICTURE = "README.md", "samples.png"


class OneStepGenerator(nn.Module):
    """x = g(z): an exported generator, ready to use.

    Args:
        network: g, called as ``network(z, None, cond)``.
        latent: the law of z.
        config: what ``config.json`` holds.

    Attributes:
        shape: of a sample; images are (C, H, W) in [-1, 1].
        classes: number of labels, or None.
        config: as passed.
    """

    def __init__(self, network: nn.Module, latent: GaussianPrior, config: dict[str, Any]) -> None:
        super().__init__()
        shares = config["label_weights"]
        still = Linear(0.0)  # the field that moved it is not needed any more
        self.model = GeneratorModel(
            still,
            network,
            latent,
            label_weights=None if shares is None else torch.tensor(shares),
        )
        self.shape = tuple(config["shape"])
        self.classes: int | None = config["classes"]
        self.config = config

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Latents (B, latent), and labels (B,) of a conditional model -> samples (B, ...)."""
        return self.model.generator(z, None, cond)

    def sample(self, n: int, *, generator: torch.Generator, cond: Tensor | None = None) -> Tensor:
        """Draw samples: those that the run itself draws.

        Args:
            n: how many, at least 1.
            generator: source of all randomness, on the weights' device.
            cond: (n,) labels of a conditional model; drawn as often as in its data unless given.

        Returns:
            (n, ...) samples, without gradients.

        Raises:
            ConfigError: for an impossible n, or labels that the model does not know.
        """
        if cond is not None and self.classes is None:
            raise ConfigError("this generator knows no labels: leave out cond.")
        return draw_samples(self.model, n, generator, cond=cond)


def export_run(run: Run, out: Path | str) -> Path:
    """Write a generator model's generator into a new folder, whole or not at all.

    Args:
        run: a trained run of a generator model.
        out: the folder; it must not exist yet, or be empty.

    Returns:
        The folder.

    Raises:
        ConfigError: for a run of free particles, or a folder that holds something.
        CheckpointError: if the folder cannot be written.
        NumericsError: if the weights are not finite, or make samples that are not.
    """
    out, model = Path(out), run.model
    if model.steps is not None:
        raise ConfigError(
            f"the run {run.path} ({run.recipe.title}) is of free particles, which follow a field step "
            "by step, and only generators are exported: distil an EDM into one with a Score GAN "
            "(partikel train SCORE-GAN-PRESET --data-score RUN), and export that."
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: choose another --out.")
    config = _config(run, model)
    with writing_to(out), replacing(out) as part:
        part.mkdir()
        config["weights"] = write_tensors(part / _WEIGHTS, model.sampled.state_dict())
        write_json(part / _CONFIG, sealed(config))
        exported = load_generator(part)  # what cannot be read back is not handed out
        images = len(run.data.shape) == 3
        samples = exported.sample(64 if images else 1000, generator=seeded(0, "export"))
        save_picture(samples, part / _PICTURE)
        write_whole(part / _CARD, _card(run, out.name, config))
        if out.exists():
            out.rmdir()  # still empty
    return out


@checked
def load_generator(path: Path | str, allow: str | Collection[str] = ()) -> OneStepGenerator:
    """Load an exported generator; no code is run, and the run is not needed.

    Args:
        path: the folder that 'partikel export' wrote.
        allow: packages whose networks it may name; nothing else is imported.

    Returns:
        The generator, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if the folder is no export, is damaged, or of another version.
    """
    path = Path(path)
    again = "name a folder that 'partikel export' made, or export it again."
    with reading(
        path,
        f"holds no exported generator, or a damaged one ({_CONFIG} cannot be read, or was changed): "
        + again,
    ):
        config = read_json(path / _CONFIG)
        kind, schema = config["kind"], config["schema"]
    if (kind, schema) != (KIND, SCHEMA):
        raise CheckpointError(
            f"{path} holds a '{kind}' of schema {schema}, this version reads a '{KIND}' of schema "
            f"{SCHEMA}: use the version of partikel that wrote it."
        )
    weights = read_tensors(path / _WEIGHTS, "it is damaged: " + again, seal=config.get("weights"))[
        0
    ]
    try:
        with naming(allow):
            with torch.device("meta"):  # nothing is made of impossible sizes
                _check(misfit(_network(config).state_dict(), weights))
            network = _network(config)
        network.load_state_dict(weights)
        latent = GaussianPrior((config["latent"]["size"],), std=float(config["latent"]["std"]))
        _check_labels(config["classes"], config["label_weights"])
        exported = OneStepGenerator(network, latent, config)
    except (
        RuntimeError, LookupError, AttributeError, TypeError, ValueError, OverflowError, ConfigError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the exported generator in {path} is damaged, or of another version of partikel "
            f"({reason[:200]}): export it again."
        ) from error
    return exported.eval().requires_grad_(False)


def _network(config: Mapping[str, Any]) -> nn.Module:
    """The generator that a configuration describes, untrained."""
    settings: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in config["network"].items()
    }
    return build_network(
        NetworkSettings(**settings),
        "generator",
        shape=tuple(config["shape"]),
        latent=config["latent"]["size"],
        classes=config["classes"],
        generator=torch.Generator().manual_seed(0),
    )


def _check(wrong: str | None) -> None:
    if wrong is not None:
        raise ValueError(wrong)


def _check_labels(classes: Any, shares: Any) -> None:
    """Refuse shares that are not those of the classes."""
    if (classes is None) != (shares is None) or (shares is not None and len(shares) != classes):
        raise ValueError("label_weights are not as many as classes")
    if shares is not None and not (all(0 <= s <= 1 for s in shares) and 0.99 < sum(shares) < 1.01):
        raise ValueError("label_weights are no shares")


def _config(run: Run, model: Carrier) -> dict[str, Any]:
    network: NetworkSettings = run.recipe.generator  # type: ignore[attr-defined]
    chosen = {k: v for k, v in dataclasses.asdict(network).items() if v is not None}
    shares = model.label_weights
    (size,) = model.prior.shape
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "partikel": metadata.version("partikel"),
        "network": chosen,
        "latent": {"law": "normal", "size": size, "std": model.prior.std},
        "shape": list(run.data.shape),
        "range": [-1, 1] if len(run.data.shape) == 3 else None,
        "classes": None if shares is None else len(shares),
        "label_weights": None if shares is None else shares.tolist(),
        "recipe": run.recipe.name,
        "preset": run.preset,
        "data": run.data.name,
        "iteration": run.step,
    }


def _card(run: Run, name: str, config: Mapping[str, Any]) -> str:
    """The model card, in Markdown."""
    shape = " x ".join(map(str, run.data.shape))
    environment = Environment(keep_trailing_newline=True)
    environment.filters["number"] = _number
    return environment.from_string((Path(__file__).parent / "card.md").read_text("utf-8")).render(
        name=name,
        run=run,
        recipe=run.recipe,
        config=config,
        shape=shape,
        what=f"{shape} images in [-1, 1]" if config["range"] else f"points of {shape} numbers",
        weights=sum(p.numel() for p in run.model.sampled.parameters()),
        picture=_PICTURE,
        settings=yaml.safe_dump(_public(settings_of(run.recipe)), sort_keys=False).strip(),
        measured=_measured(run),
    )


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was set, without where files lie on this machine."""
    shown: dict[str, Any] = {}
    for key, value in settings.items():
        if value is None or key in ("root", "cache"):
            continue
        if isinstance(value, Mapping):
            value = _public(value)
        elif key in ("data_score", "path"):
            value = Path(value).name
        shown[key] = value
    return shown


def _measured(run: Run) -> dict[str, Any] | None:
    """The run's evaluation of this iteration, if it has one."""
    try:
        result = read_json(run.path / "evaluation.json")
        whole = all(isinstance(result[key], dict) for key in ("metrics", "reference"))
        return result if whole and result["protocol"]["iteration"] == run.step else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _number(value: Any) -> str:
    finite = isinstance(value, (int, float)) and math.isfinite(value)
    return f"{value:.3g}" if finite else "-"
