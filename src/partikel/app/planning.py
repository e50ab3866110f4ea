"""What a training is going to do, before it does: settings, folder, what was chosen, how long it takes.

``partikel train edm --data PICTURES`` names a recipe and pictures, and the rest is chosen for them
(:mod:`partikel.app.choices`); with a preset, the pictures take the place of its data.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from partikel.app.choices import choose
from partikel.app.config import load_preset, make_recipe, settings_of
from partikel.app.continuing import started
from partikel.app.runs import context_for, draw_samples
from partikel.data import DATASETS, Dataset, open_dataset
from partikel.data.folder import find
from partikel.data.looking import look
from partikel.errors import ConfigError, DataError, nearest
from partikel.models import Carrier
from partikel.recipes import RECIPES, Recipe
from partikel.streams import seeded
from partikel.training import Initial, Trainer
from partikel.training.engine import processes

TIMED = 8
"""Iterations that are timed."""
PATIENCE = 6.0
"""Seconds after which fewer of them are enough."""
BUSY = 0.8
"""Share of the time in which a CPU computes, below which other programs are taken to keep it from that."""
PAGE = 10_000
"""Samples that a run's page measures, at most as many as there are test pictures."""
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Plan:
    """A training, before it begins.

    Attributes:
        recipe: its settings.
        label: what it is started from, for the record.
        folder: of the run.
        given: where somebody chose settings, see :func:`partikel.app.runs.train_run`.
        said: what was chosen, and why; lines for whoever starts it.
        chosen: whether settings were chosen for pictures.
        initial: the run whose weights it begins with.
    """

    recipe: Recipe
    label: str
    folder: Path
    given: tuple[Mapping[str, Any], ...]
    said: tuple[str, ...] = ()
    chosen: bool = False
    initial: Initial | None = None

    def __post_init__(self) -> None:
        data, out = self.recipe.data, self.folder.resolve()
        if data.path is None or (out / "config.yaml").exists():
            return
        place = find(data.path, data.root).resolve()
        if place.is_dir() and place in (out, *out.parents):
            raise ConfigError(
                f"{self.folder} lies in {data.path}, the folder of the data, among which the run's own "
                "pictures would be: choose another --out."
            )


def plan_training(
    start: str | None,
    settings: Mapping[str, Any],
    data: str | None = None,
    out: str | None = None,
    initial: Initial | None = None,
) -> Plan:
    """What a command is going to train.

    Args:
        start: a preset, a .yaml file, or a recipe, whose settings are then chosen for the data; see
            :func:`partikel.app.continuing.started` for None.
        settings: those that were given.
        data: a folder or a zip file of pictures, a data set's name, or a name on the Hugging Face Hub.
        out: the run's folder; runs/ and its label unless given.
        initial: the run whose weights it begins with.

    Raises:
        ConfigError, DataError: for what cannot be trained, or data that are not there.
    """
    loaded, initial, place = started(start, initial, out)
    settings = dict(settings)
    own = settings.get("data")
    own = dict(own) if isinstance(own, Mapping) else {} if own is None else own
    if data is not None:
        settings["data"] = own = {**source_of(data), **own}
    if loaded.settings or loaded.name not in RECIPES:
        recipe = make_recipe(loaded.recipe, loaded.settings, settings)
        label, said = loaded.name, ()
        if data is not None:
            label += f"-{_word(recipe.data.title)}"
            said = (_kept(loaded.name, recipe, loaded.settings, data),)
        folder = place or Path(f"runs/{label}")
        return Plan(recipe, label, folder, (loaded.given, settings), said, initial=initial)
    plan = _chosen(loaded.recipe, settings, own, place)
    return dataclasses.replace(plan, initial=initial)


def source_of(data: str) -> dict[str, Any]:
    """The settings of data that a text names: a data set, a folder, a zip file, or a name on the Hub.

    Raises:
        DataError: for what is none of these.
    """
    name = data.removeprefix("hub:")
    if data in DATASETS.others() or data in DATASETS and not DATASETS[data].needs_path:
        return {"name": data}
    if name != data:
        return {"name": "hub", "path": name}
    place = find(data)
    if place.is_dir():
        saved = any((place / file).is_file() for file in ("state.json", "dataset_dict.json"))
        return {"name": "hub" if saved else "folder", "path": data}
    if place.exists():
        if place.suffix.lower() != ".zip":
            raise DataError(
                f"{data} is neither a folder nor a .zip file: --data names one of these."
            )
        return {"name": "folder", "path": data}
    if _HUB.fullmatch(data) and data[0] not in ".~" and not place.suffix:
        return {"name": "hub", "path": data}
    named = [name for name, entry in DATASETS.items() if not entry.needs_path]
    raise DataError(
        f"there is no folder or zip file {data}, and no data set of that name ({nearest(data, named)}); "
        "a name on the Hugging Face Hub is written OWNER/NAME, or hub:NAME."
    )


def _chosen(name: str, settings: dict[str, Any], own: Any, place: Path | None) -> Plan:
    """The plan of a recipe whose settings are chosen for the data."""
    base: dict[str, Any] = {}
    score = _data_score(settings.get("data_score"))
    if score is not None and isinstance(own, Mapping):
        base = {"data": settings_of(score)["data"], "conditional": score.conditional}
        own = {k: v for k, v in own.items() if not _same(k, v, getattr(score.data, k, None))}
        settings["data"] = own
    if not isinstance(own, Mapping) or not ({"name"} & {*own, *base.get("data", {})}):
        raise ConfigError(
            f"'{name}' is a recipe, and needs data: add --data PICTURES (a folder or a zip file), or name "
            f"a preset such as {name}-gaussians ('partikel presets' lists them)."
        )
    data = make_recipe(name, base, {"data": own}).data
    label = f"{name}-{_word(data.title)}"
    folder = place or Path(f"runs/{label}")
    stored = _stored(folder, name)
    if stored is not None:
        known = make_recipe(name, stored).data
        own = {k: v for k, v in own.items() if not _same(k, v, getattr(known, k, None))}
        recipe = make_recipe(name, stored, {**settings, "data": own})
        said = (f"{folder} goes on with what was chosen when it began",)
        return Plan(recipe, label, folder, (stored, settings), said)
    cuda = torch.cuda.is_available()
    typed = {key: getattr(data, key) for key in {*own, *base.get("data", {})}}
    try:
        seen = look(data)
    except (ConfigError, DataError) as error:
        if data.name != "hub" or Path(data.path or "").exists():
            raise
        raise DataError(
            f"there is no folder or zip file {data.path} here, and as a name on the Hugging Face Hub: {error}"
        ) from error
    choice = choose(name, seen, {**base, **settings, "data": typed}, cuda=cuda)
    recipe = make_recipe(name, choice.settings, {**settings, "data": own})
    first, *others = choice.reasons
    said = (f"{label}: {first}", *(f"  {each}" for each in others))
    return Plan(recipe, label, folder, (settings,), said, True)


def _data_score(named: Any) -> Recipe | None:
    """The recipe of the run that a data score is taken from; None where there is none to read yet."""
    file = Path(str(named)) / "config.yaml"
    if not isinstance(named, str) or not file.is_file():
        return None
    loaded = load_preset(file)
    return make_recipe(loaded.recipe, loaded.settings)


def _stored(folder: Path, name: str) -> dict[str, Any] | None:
    """The settings of a run of the recipe that is in the folder; None where there is none."""
    file = folder / "config.yaml"
    if not file.is_file():
        return None
    loaded = load_preset(file)
    return loaded.settings if loaded.recipe == name else None


def _same(key: str, value: Any, known: Any) -> bool:
    """Whether a setting of data names the place that is known already, in other words."""
    if key != "path" or not isinstance(value, str) or not isinstance(known, str):
        return False
    return find(value).resolve() == find(known).resolve()


def _kept(name: str, recipe: Recipe, settings: Mapping[str, Any], data: str) -> str:
    """A sentence about a preset whose data are others than it was made for."""
    inherited = {k: v for k, v in (settings.get("data") or {}).items() if k != "name"}
    shown = [f"data.{key} {str(value).lower()}" for key, value in inherited.items()]
    shown += [f"{recipe.iterations} iterations"]
    return (
        f"{name} keeps its own settings ({', '.join(shown)}, ...): 'partikel train {recipe.name} --data "
        f"{data}' chooses them for these pictures"
    )


def _word(title: str) -> str:
    """A title as a part of a folder's name."""
    return re.sub(r"[^\w.-]+", "-", title).strip("-.") or "pictures"


# --- how long it takes


def estimate(recipe: Recipe) -> str:
    """How long a training takes, from a few of its own iterations and samples, which are thrown away."""
    dataset = open_dataset(recipe.data)
    first, parts = recipe.required, []
    required: Carrier | None = None
    if first is not None:
        required = first.system(dataset).model
        if getattr(recipe, recipe.builds_on[0], None) is None:
            parts.append((f"{first.title} first", _seconds(first, dataset, None)))
    parts.append(("" if not parts else "then itself", _seconds(recipe, dataset, required)))
    total = sum(train + more for _, (train, more, _, _) in parts)
    alone = sum((train + more) * share for _, (train, more, _, share) in parts)
    told = [
        f"{name + ': ' if name else ''}{duration(train)} of training ({pace:.2g} s an iteration), "
        f"{duration(more)} of evaluations"
        for name, (train, more, pace, _) in parts
    ]
    busy = f" while others use the processor ({duration(alone)} if none did)"
    return f"takes about {duration(total)} here{busy * (alone < BUSY * total)}: {'; '.join(told)}"


def _seconds(
    recipe: Recipe, dataset: Dataset, required: Carrier | None
) -> tuple[float, float, float, float]:
    """Seconds of training, of evaluations, of an iteration, and the share in which a processor computed."""
    system = recipe.system(dataset, required)
    options = {**recipe.training, "iterations": TIMED}
    trainer = Trainer(system.model, dataset, system.phases, **options)
    begun = last = time.monotonic()
    computed, spent = time.process_time(), list[float]()
    for _ in trainer.run():
        now = time.monotonic()
        spent.append(now - last)
        last = now
        if now - begun > PATIENCE and len(spent) > 1:
            break
    pace = sorted(spent[1:] or spent)[len(spent[1:]) // 2]
    device = next(system.model.parameters()).device
    share = (time.process_time() - computed) / (last - begun) if device.type == "cpu" else 1.0
    few = 8
    begun = time.monotonic()
    system.model.eval()
    draw_samples(
        system.model,
        few,
        seeded(recipe.seed, "timing", device=device),
        context_for(system.model, dataset),
    )
    each = (time.monotonic() - begun) / few
    drawn = dataset.at_most(PAGE, "test") + 200
    if recipe.evaluate_every is not None:
        watched = dataset.at_most(recipe.evaluate_samples, "validation") + 64
        drawn += (recipe.iterations // recipe.evaluate_every + 1) * watched
    return pace * recipe.iterations, each * drawn, pace, share


def duration(seconds: float) -> str:
    """A length of time, as one says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def may_estimate() -> bool:
    """Whether this process trains alone: several would have to be timed together."""
    return processes().num_processes == 1
