"""Export: what a run has learned as a folder that can be published, and read back without the run.

FOLDER/
config.json             what it is: kind, settings, shape, labels, range; checksums of what it is made of
README.md               the model card: what, data, training, measured figures, how to use
samples.png             samples
generator.safetensors   kind "partikel one-step generator": weights, the moving average where there is one
map.safetensors         kind "partikel flow map": likewise of the map, without the flow that it has learned
model.safetensors       kind "partikel particles": likewise of the field that moves them
context.safetensors     and real samples, if the field compares particles with the data
teacher/                and the diffusers network, if the field builds on one
model.onnx              kinds "onnx generator" and "onnx flow map" (:mod:`partikel.app.onnx`)
unet/, scheduler/, ...  kind "diffusers pipeline" (:mod:`partikel.denoising.diffusers`)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Callable, Collection, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import yaml
from torch import Tensor, nn

from partikel import __version__
from partikel.app import runs
from partikel.app.config import make_recipe, settings_of
from partikel.app.onnx import write_onnx
from partikel.app.placed import beside, write_beside
from partikel.app.runs import Labels, Run, draw_samples, labels_of
from partikel.data import DATASETS, DataSettings, open_dataset
from partikel.data.known import KnownData
from partikel.denoising import EDMDenoiser
from partikel.denoising.diffusers import load_diffusers, save_diffusers
from partikel.errors import CheckpointError, ConfigError, DataError, enumerated
from partikel.errors.checks import checked
from partikel.extensions import NotNamedError, naming
from partikel.fields import Linear
from partikel.files import (
    fingerprint,
    read_json,
    reading,
    replacing,
    sealed,
    write_json,
    write_whole,
    writing_to,
)
from partikel.models import Carrier, GeneratorModel, Sampling
from partikel.networks import NetworkSettings, build_network
from partikel.networks.weights import misfit, read_tensors, write_tensors
from partikel.priors import GaussianPrior
from partikel.recipes import Recipe, System
from partikel.recipes.edm import EDM
from partikel.recipes.score_gan import DIFFUSERS
from partikel.solvers import SOLVERS
from partikel.streams import seeded

Format: TypeAlias = Literal["partikel", "diffusers", "onnx"]
"""What a run can be written as."""

SCHEMA = 1
KIND = "partikel one-step generator"
FLOW_MAP = "partikel flow map"
PARTICLES = "partikel particles"
CONFIG, CARD, PICTURE = "config.json", "README.md", "samples.png"
_CONTEXT, _TEACHER, _ONNX = "context.safetensors", "teacher", "model.onnx"
_AGAIN = "name a folder that 'partikel export' made, or export it again."


@dataclass(frozen=True)
class Exported(Run):
    """An exported model, which does what a run does; its data are opened where they can be found.

    Attributes:
        config: what ``config.json`` holds.
        real: the real samples that came with it, for a field that compares particles with data.
    """

    config: Mapping[str, Any]
    real: Tensor | None = None

    @property
    def made(self) -> Path:
        """See :attr:`Run.made`; beside what was published."""
        return self.path / "made"

    @property
    def log(self) -> list[dict[str, Any]]:
        """None: training is over."""
        return []

    @property
    def cpu_seconds(self) -> float:
        """See :attr:`Run.cpu_seconds`."""
        return float(self.config.get("cpu_seconds", 0.0))

    def context(self, seed: int = 0) -> Tensor | None:
        """See :meth:`Run.context`."""
        return super().context(seed) if seed or self.real is None else self.real


class OneStepGenerator(nn.Module):
    """x = g(z): an exported generator as a module.

    Args:
        model: its carrier.
        config: what ``config.json`` holds.

    Attributes:
        shape: of a sample; images are (C, H, W) in [-1, 1].
        classes: number of labels, or None.
        config: as passed.
    """

    def __init__(self, model: Carrier, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.shape = tuple(config["shape"])
        self.classes: int | None = config["classes"]
        self.config = config

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Latents (B, latent), and labels (B,) of a conditional model -> samples (B, ...)."""
        return self.model.sampled(z, None, cond)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator,
        label: Labels | None = None,
        cond: Tensor | None = None,
    ) -> Tensor:
        """Draw samples: those that the run itself draws.

        Args:
            n: how many, at least 1.
            generator: source of all randomness, on the weights' device.
            label: class of a conditional model, by name or number, see
                :meth:`partikel.app.runs.Run.labels`.
            cond: (n,) labels instead; drawn as often as in its data unless either is given.

        Returns:
            (n, ...) samples, without gradients.

        Raises:
            ConfigError: for an impossible n, or labels that the model does not know.
        """
        if cond is not None and self.classes is None:
            raise ConfigError("this generator knows no labels: leave out cond.")
        if label is not None:
            cond = labels_of(self.model, n, label, _names(self.config), generator.device)
        return draw_samples(self.model, n, generator, cond=cond)


# --- out


def export_run(
    run: Run, out: Path | str, form: Format = "partikel", *, steps: int | None = None
) -> Path:
    """Write what a run has learned into a new folder, whole or not at all.

    Args:
        run: a trained run.
        out: the folder; it must not exist yet, or be empty.
        form: "partikel" for any run; "onnx" for generators and flow maps; "diffusers" for an EDM whose
            network is one of diffusers (see :class:`~partikel.networks.UNet2D`).
        steps: jumps of a flow map that is written as ONNX; as the run says unless given.

    Returns:
        The folder.

    Raises:
        ConfigError: for a run that cannot take this form, a package that is not installed, or a folder
            that holds something.
        CheckpointError: if the folder cannot be written.
        NumericsError: if the weights are not finite, or make samples that are not, or another format
            gives other samples.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: choose another --out.")
    if steps is not None and form != "onnx":
        raise ConfigError(
            "how many steps samples take is said when they are drawn: leave out steps."
        )
    from partikel.app.show.plots import save_picture  # loading draws nothing

    with writing_to(out), replacing(out) as part:
        part.mkdir()
        config, sampling = _FORMS[form](run, part, steps)
        config["files"] = {
            each.relative_to(part).as_posix(): fingerprint(each.read_bytes(), 32)
            for each in sorted(part.rglob("*"))
            if each.is_file()
        }
        if form == "partikel" and (placed := beside(run.path)):  # not listed: may be tuned anew
            write_beside(part, placed)
        write_json(part / CONFIG, sealed(config))
        # what cannot be read back is not handed out
        exported = load_export(part) if form == "partikel" else run
        n = 64 if len(run.data.shape) == 3 else 1000
        samples = exported.sample(n, generator=seeded(0, "export"), sampling=sampling)
        save_picture(samples, part / PICTURE)
        write_whole(part / CARD, _card(run, out.name, config))
        if out.exists():
            out.rmdir()  # still empty
    return out


Written: TypeAlias = tuple[dict[str, Any], Sampling]
"""What stands in the configuration, and how the samples beside it are drawn."""


def _as_partikel(run: Run, part: Path, steps: int | None) -> Written:
    if isinstance(run, Exported):
        raise ConfigError(f"{run.path} is an export already: copy it, or choose another --format.")
    source = _source(run.recipe)
    if source is not None and {"root", "path"} & set(DATASETS.find(source.name).options):
        raise ConfigError(
            f"samples of this model start from the data '{source.title}', whose files an export does not "
            "hold: only data that need no files can be started from without the run."
        )
    kind = _OF_CARRIERS[run.model.kind]
    config = {"kind": kind, **_config(run)}
    config["weights"] = write_tensors(part / _KINDS[kind].weights, run.model.sampled.state_dict())
    if kind != KIND:
        real, foreign = run.context(), getattr(run.recipe, "foreign", None)
        if real is not None:
            config["context"] = write_tensors(part / _CONTEXT, {"x": real})
        if foreign is not None:
            shutil.copytree(foreign, part / _TEACHER, ignore=_no_network)
        # with what has no effect, since the model is composed of all of it
        config["settings"] = _public(settings_of(run.recipe))
    return config, Sampling()


def _no_network(folder: str, names: list[str]) -> set[str]:
    """What lies beside a network of diffusers and its scheduler."""
    if "unet" in names:
        return {*names} - {"unet", "scheduler"}
    files = ("config.json", "scheduler_config.json")
    return {n for n in names if n not in files and not n.endswith(".safetensors")}


def _as_diffusers(run: Run, part: Path, steps: int | None) -> Written:
    recipe = run.recipe
    if not isinstance(recipe, EDM):
        raise ConfigError(
            f"{recipe.title} has no pipeline of diffusers: it samples from EDMs. Export it as partikel's."
        )
    denoiser = next(each for each in run.model.modules() if isinstance(each, EDMDenoiser))
    levels = {name: getattr(recipe, name) for name in ("sigma_min", "sigma_max", "rho")}
    kind = save_diffusers(denoiser, part, run.data.shape, **levels, solver=recipe.solver)
    shares = run.model.label_weights
    back = load_diffusers(part, run.data.shape, None if shares is None else len(shares))
    x, sigma = run.model.start(16, seeded(0, "diffusers")), torch.logspace(-2, 1, 16)
    cond = None if shares is None else torch.arange(16) % len(shares)
    with torch.no_grad():
        theirs, ours = (each(x, sigma, cond=cond) for each in (back, denoiser))
    difference = float((theirs - ours).abs().max())
    solver = "dpmpp-2m" if "DPM" in kind else "euler"
    config = {"kind": "diffusers pipeline", **_config(run), "scheduler": kind, "solver": solver}
    return {**config, "difference": difference}, Sampling(solver=SOLVERS[solver]())


def _as_onnx(run: Run, part: Path, steps: int | None) -> Written:
    if run.model.kind == "particles":
        raise ConfigError(
            f"samples of {run.recipe.title} follow a field step by step, and only what makes them in a call "
            "or a few is written as ONNX: export it as partikel's, or learn its flow map (partikel distil "
            "RUN) and export that."
        )
    sampling = Sampling.of(steps=steps)
    written = write_onnx(run.model, part / _ONNX, sampling)
    calls = run.model.evaluations(sampling=sampling)
    return {"kind": f"onnx {run.model.kind}", **_config(run), **written, "calls": calls}, sampling


_FORMS: dict[str, Callable[[Run, Path, int | None], Written]] = {
    "partikel": _as_partikel,
    "diffusers": _as_diffusers,
    "onnx": _as_onnx,
}


def _config(run: Run) -> dict[str, Any]:
    """What every format says of a run."""
    shares, shape = run.model.label_weights, run.data.shape
    config = {
        "schema": SCHEMA,
        "partikel": __version__,
        "shape": list(shape),
        "range": [-1, 1] if len(shape) == 3 else None,
        "classes": None if shares is None else len(shares),
        "label_weights": None if shares is None else shares.tolist(),
        "recipe": run.recipe.name,
        "preset": run.preset,
        "data": run.data.name,
        "data_classes": run.data.classes,
        "class_names": None if run.data.class_names is None else list(run.data.class_names),
        "sigma_data": run.data.sigma_data,
        "iteration": run.step,
        "cpu_seconds": run.cpu_seconds,
    }
    if _knows_settings(run):
        config["settings"] = _used(run.recipe)
    if run.model.kind != "particles":
        prior, source = run.model.prior, _source(run.recipe)
        law = "normal" if source is None else source.title
        config["start"] = {"law": law, "shape": list(prior.shape), "std": prior.std}
    if run.model.kind == "generator":
        network: NetworkSettings = run.recipe.generator  # type: ignore[attr-defined]
        config["network"] = {k: v for k, v in dataclasses.asdict(network).items() if v is not None}
        (size,) = run.model.prior.shape
        config["latent"] = {"law": "normal", "size": size, "std": run.model.prior.std}
    return config


def _source(recipe: Recipe) -> DataSettings | None:
    """The data that particles start from; None for a Gaussian."""
    return getattr(recipe, "source", None) or getattr(recipe.required, "source", None)


def _knows_settings(run: Run) -> bool:
    """Exports of 0.1 do not say how they were trained."""
    return not isinstance(run, Exported) or "settings" in run.config


# --- back in


@checked
def load(path: Path | str, allow: str | Collection[str] = ()) -> Run:
    """Load what was trained: the folder of a run, or of an export.

    Args:
        path: what 'partikel train' or 'partikel export' made.
        allow: packages whose recipes, networks and data it may name (see docs/extending.md); nothing else
            is imported.

    Returns:
        The run, or the export, which is used like one; weights are read without executing code.

    Raises:
        CheckpointError: if the folder is neither, or is damaged.
        ConfigError: if it names parts of a package that was not allowed.
    """
    path = Path(path)
    exported = (path / CONFIG).exists() and not (path / "config.yaml").exists()
    return load_export(path, allow) if exported else runs.load(path, allow)


@checked
def load_generator(path: Path | str, allow: str | Collection[str] = ()) -> OneStepGenerator:
    """Load an exported generator as a module; no code is run, and the run is not needed.

    Args:
        path: the folder that 'partikel export' wrote.
        allow: packages whose networks it may name; nothing else is imported.

    Returns:
        The generator, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if the folder is no export of a generator, is damaged, or of another version.
    """
    exported = load_export(Path(path), allow)
    if exported.model.kind != "generator":
        raise CheckpointError(
            f"{path} holds no exported generator but {exported.config['kind'].removeprefix('partikel ')}"
            ": load it with partikel.load."
        )
    return OneStepGenerator(exported.model, exported.config).eval()


def load_export(path: Path, allow: str | Collection[str] = ()) -> Exported:
    """Load an exported model, in evaluation mode, on the CPU; see :func:`load`.

    Raises:
        CheckpointError: if the folder is no export, is damaged, or of another version or program.
    """
    config = read_config(path)
    kind = config["kind"]
    if kind not in _KINDS:
        raise CheckpointError(
            f"{path} holds a '{kind}', for other programs: load the run that it was made of, or an export "
            "of it without --format."
        )
    weights = read_tensors(path / _KINDS[kind].weights, _AGAIN, seal=config.get("weights"))[0]
    real = None
    if config.get("context") is not None:
        kept = read_tensors(path / _CONTEXT, _AGAIN, seal=config["context"])
        real = kept[0].get("x")
    try:
        with naming(allow):
            return _exported(path, config, weights, real)
    except NotNamedError:
        raise
    except (
        RuntimeError, LookupError, AttributeError, TypeError, ValueError, OverflowError, ConfigError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the export in {path} is damaged, or of another version of partikel ({reason[:200]}): "
            "export it again."
        ) from error


def _exported(
    path: Path, config: Mapping[str, Any], weights: dict[str, Tensor], real: Tensor | None
) -> Exported:
    """The model of a configuration with its weights."""
    shape, shares = tuple(config["shape"]), config["label_weights"]
    _check_labels(config["classes"], shares)
    shares = None if shares is None else torch.tensor(shares)
    recipe, named = _recipe(path, config), copy_context()
    data = KnownData(
        config["data"],
        shape,
        config.get("data_classes"),
        float(config.get("sigma_data", 1.0)),  # that of 0.1 is not known, nor asked for
        shares,
        lambda: named.run(_opened, path, recipe, config),
        _names(config),
    )
    model = _KINDS[config["kind"]].build(recipe, data, config, weights)
    _check(misfit(model.sampled.state_dict(), weights))
    model.sampled.load_state_dict(weights)
    model.eval().requires_grad_(False)
    step, preset = int(config["iteration"]), str(config["preset"])
    return Exported(path, preset, recipe, data, System(model, ()), step, dict(config), real)


def _names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What the labels are called; exports of earlier versions do not say."""
    names = config.get("class_names")
    return None if names is None else tuple(map(str, names))


def read_config(path: Path) -> dict[str, Any]:
    """What an exported folder says of itself, whatever its kind.

    Raises:
        CheckpointError: if the folder is no export, or its configuration was changed or is of another
            version.
    """
    with reading(
        path,
        f"holds no exported model, or a damaged one ({CONFIG} cannot be read, or was changed): {_AGAIN}",
    ):
        config = read_json(path / CONFIG)
        kind, schema = config["kind"], config["schema"]
        if kind != KIND:  # those of 0.1 have no checksum
            read_json(path / CONFIG, must_be_sealed=True)
    if schema != SCHEMA:
        raise CheckpointError(
            f"{path} holds a '{kind}' of schema {schema}, this version reads schema {SCHEMA}: use the "
            "version of partikel that wrote it."
        )
    return config


def _recipe(path: Path, config: Mapping[str, Any]) -> Recipe:
    """The settings of an export; those of 0.1 name the network only."""
    settings = config.get("settings")
    if settings is None:
        settings = {"generator": config["network"], "latent": config["latent"]["size"]}
    if (path / _TEACHER).is_dir():
        settings = {**settings, "data_score": f"{DIFFUSERS}{path / _TEACHER}"}
    return make_recipe(config["recipe"], settings)


def _opened(path: Path, recipe: Recipe, config: Mapping[str, Any]) -> Any:
    if "settings" not in config:
        raise DataError(f"the export in {path} does not say which data it is of: measure its run.")
    return open_dataset(recipe.data)


def _generator(
    recipe: Recipe, data: KnownData, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> Carrier:
    """A generator alone: what moved it in training is not needed any more."""
    settings: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in config["network"].items()
    }
    size = config["latent"]["size"]
    latent = GaussianPrior((size,), std=float(config["latent"]["std"]))
    build = functools.partial(
        build_network,
        NetworkSettings(**settings),
        "generator",
        shape=data.shape,
        latent=size,
        classes=config["classes"],
        generator=seeded(0),
    )
    with torch.device("meta"):  # nothing is made of impossible sizes
        _check(misfit(build().state_dict(), weights))
    network = build()
    return GeneratorModel(Linear(0.0), network, latent, label_weights=data.shares)


def _composed(recipe: Recipe, data: KnownData, *_: Any) -> Carrier:
    """All that samples are made of; a map goes without the flow that it has learned."""
    return recipe.system(data).model.alone()


class _Kind(NamedTuple):
    """A kind of export that is read back: its file of weights, and what builds the model."""

    weights: str
    build: Callable[[Recipe, KnownData, Mapping[str, Any], Mapping[str, Tensor]], Carrier]


_KINDS = {
    KIND: _Kind("generator.safetensors", _generator),
    FLOW_MAP: _Kind("map.safetensors", _composed),
    PARTICLES: _Kind("model.safetensors", _composed),
}
_OF_CARRIERS = {"generator": KIND, "flow map": FLOW_MAP, "particles": PARTICLES}


def _check(wrong: str | None) -> None:
    if wrong is not None:
        raise ValueError(wrong)


def _check_labels(classes: Any, shares: Any) -> None:
    """Refuse shares that are not those of the classes."""
    if (classes is None) != (shares is None) or (shares is not None and len(shares) != classes):
        raise ValueError("label_weights are not as many as classes")
    if shares is not None and not (all(0 <= s <= 1 for s in shares) and 0.99 < sum(shares) < 1.01):
        raise ValueError("label_weights are no shares")


# --- the card


def _card(run: Run, name: str, config: Mapping[str, Any]) -> str:
    """The model card, in Markdown."""
    from jinja2 import Environment

    shape, model = " x ".join(map(str, run.data.shape)), run.model
    nfe = model.evaluations(real=run.context())
    environment = Environment(keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "enumerated": enumerated}
    return environment.from_string((Path(__file__).parent / "card.md").read_text("utf-8")).render(
        name=name,
        run=run,
        recipe=run.recipe,
        config=config,
        shape=shape,
        image=config["range"] is not None,
        what=f"{shape} images in [-1, 1]" if config["range"] else f"points of {shape} numbers",
        onnx=config["kind"].startswith("onnx"),
        start=", ".join(map(str, model.prior.shape)),
        calls=config.get("calls", nfe),
        weights=sum(p.numel() for p in model.sampled.parameters()),
        nfe=nfe,
        prior=f"N(0, {model.prior.std:g}²)"
        if (source := _source(run.recipe)) is None
        else source.title,
        picture=PICTURE,
        settings=yaml.safe_dump(_used(run.recipe), sort_keys=False).strip()
        if _knows_settings(run)
        else None,
        measured=_measured(run),
    )


def _used(recipe: Recipe) -> dict[str, Any]:
    """The settings that made a model what it is: those that had an effect, without places."""
    own, unset = _public(settings_of(recipe)), type(recipe).__dataclass_fields__
    for key in {*recipe.unused, *_OF_THE_RUN}:
        own.pop(key, None)
    own = {k: _given(v) for k, v in own.items() if not (v is unset[k].default is None)}
    for key in ("data", "engine"):  # most of which is for other data or machines
        value = getattr(recipe, key)
        usual = dataclasses.asdict(type(value)())
        own[key] = {k: v for k, v in own[key].items() if k == "name" or usual.get(k) != v}
        if not own[key]:
            del own[key]
    first = recipe.builds_on[1]
    built_on = getattr(recipe, first, None)
    if isinstance(built_on, Recipe) and first in own:
        used = {k: v for k, v in _used(built_on).items() if k not in ("data", "conditional")}
        named = {k: v for k, v in own[first].items() if k == "recipe"}
        own[first] = named | used
    return own


def _given(value: Any) -> Any:
    """A value, settings within it without what nobody chose."""
    if not isinstance(value, Mapping):
        return value
    return {key: _given(each) for key, each in value.items() if each is not None}


_OF_THE_RUN = ("evaluate_every", "evaluate_samples", "checkpoint_every")
"""Settings of how a training was watched."""


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without where files lie on this machine."""
    shown: dict[str, Any] = {}
    for key, value in settings.items():
        if key in ("root", "cache"):
            continue
        if isinstance(value, Mapping):
            value = _public(value)
        elif key in ("data_score", "run", "path") and value is not None:
            kind = DIFFUSERS if value.startswith(DIFFUSERS) else ""
            value = kind + Path(value.removeprefix(kind)).name
        shown[key] = value
    return shown


def _measured(run: Run) -> dict[str, Any] | None:
    """The run's evaluation of this iteration, if it has one."""
    try:
        result = read_json(run.made / "evaluation.json")
        whole = all(isinstance(result[key], dict) for key in ("metrics", "reference"))
        return result if whole and result["protocol"]["iteration"] == run.step else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _number(value: Any) -> str:
    finite = isinstance(value, (int, float)) and math.isfinite(value)
    return f"{value:.3g}" if finite else "-"
