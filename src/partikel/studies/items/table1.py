"""GPM Table 1: the taxonomy of particle models, made from the package's own registry, and run.

The six rows are three flows, each with and without a generator. Their formulas come from the recipes and
from the catalogue of ``partikel matrix``, whose cells are what is measured: every field in both carriers,
on five Gaussians.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import partikel
from partikel.app.config import load_preset, make_recipe, preset_names
from partikel.data import DataSettings, open_dataset
from partikel.fields import (
    DiscriminatorField,
    FDivergenceField,
    Field,
    MMDField,
    Perturbed,
    ScoreField,
    SteinField,
)
from partikel.models import Carrier
from partikel.recipes import RECIPES
from partikel.studies.benches import on
from partikel.studies.catalogue import (
    CARRIERS,
    CATALOGUE,
    LIMIT,
    SAMPLES,
    CarrierName,
    Cell,
    modes_of,
    run_matrix,
)
from partikel.studies.item import Finding, Item, Outcome, Table, spread
from partikel.studies.lab import Lab

DATA = "gaussians"
SOURCES = "../../src/partikel"
"""From a page in docs/reproduce."""


@dataclass(frozen=True)
class Entry:
    """A row of the paper's table.

    Attributes:
        model: what the paper calls it.
        carrier: "particles" or "generator".
        flow: of the paper's three flow types.
        fields: that are it.
        rows: of the catalogue, in this carrier.
        recipe: of whole models, where there is one.
    """

    model: str
    carrier: CarrierName
    flow: str
    fields: tuple[type[Field], ...]
    rows: tuple[str, ...]
    recipe: str | None = None


WASSERSTEIN, DIFFUSION, POTENTIAL = "Wasserstein gradient", "score difference", "discriminator"
TAXONOMY = (
    Entry(
        "Wasserstein gradient flows",
        "particles",
        WASSERSTEIN,
        (FDivergenceField, MMDField),
        ("kl-kernels",),
    ),
    Entry(
        "Stein gradient flows",
        "generator",
        WASSERSTEIN,
        (FDivergenceField, MMDField, SteinField),
        ("kl-kernels",),
    ),
    Entry(
        "Score-based diffusion models",
        "particles",
        DIFFUSION,
        (ScoreField,),
        ("score", "score-difference"),
        "edm",
    ),
    Entry(
        "Score GANs",
        "generator",
        DIFFUSION,
        (ScoreField, Perturbed),
        ("score-difference",),
        "score-gan",
    ),
    Entry(
        "Discriminator Flows",
        "particles",
        POTENTIAL,
        (DiscriminatorField,),
        ("non-saturating",),
        "discriminator-flow",
    ),
    Entry("GANs", "generator", POTENTIAL, (DiscriminatorField,), ("non-saturating",), "gan"),
)
ROWS = tuple(dict.fromkeys(name for entry in TAXONOMY for name in entry.rows))


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        seeds: of the taxonomy's rows.
        rows: of the catalogue, which are run with the first seed.
        cap: CPU seconds at which the training of a cell stops.
    """

    seeds: tuple[int, ...]
    rows: tuple[str, ...]
    cap: float


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Run the catalogue's cells and set them in the paper's table."""
    options: dict[str, Any] = {"target": DATA, "cap": plan.cap, "console": lab.console}

    def run(folder: Path) -> None:
        run_matrix(folder, rows=plan.rows, seeds=plan.seeds[:1], **options)
        run_matrix(folder, rows=ROWS, seeds=plan.seeds, **options)  # whose picture stays

    folder = lab.folder("matrix", run)
    cells = run_matrix(folder, rows=plan.rows, seeds=plan.seeds[:1], **options)
    own = run_matrix(folder, rows=ROWS, seeds=plan.seeds, **options)
    lab.draw(
        Image.open(folder / "matrix.png"),
        f"The taxonomy's fields, with free particles and with a generator; seed {plan.seeds[0]}.",
    )
    findings = [
        _taxonomy_finding(own, plan, on("five Gaussians", plan.seeds)),
        *_catalogue_findings(cells, "five Gaussians, one seed"),
    ]
    tables = [_taxonomy(own), _recipes(), _catalogue(cells)]
    notes = (
        "[fields](../fields.md) explains every field, [matrix](../matrix.md) the settings. "
        f"Rows of the catalogue are defined in [matrix.py]({SOURCES}/matrix.py).",
        "A Stein gradient flow is a Wasserstein gradient smoothed by a kernel. With a generator the "
        "kernel is the generator's NTK, on its latents (GPM eq. 18): so the same fields stand in both "
        "first rows. `svgd` has a kernel on the data, and needs no generator.",
        f"Measured: energy distance of {SAMPLES} samples to fresh data, and modes covered of five. A cell "
        f"reaches the data with all modes and at most {LIMIT:g}; training stops after {plan.cap:g} CPU "
        "seconds.",
    )
    distinct = {(cell.row, cell.carrier, cell.seed): vars(cell) for cell in (*cells, *own)}
    values = {"cells": list(distinct.values())}
    protocol = {"data": DATA, "samples": SAMPLES, "cap": f"{plan.cap:g} CPU seconds a cell"}
    return Outcome(findings, tables, values, protocol, notes)


# --- findings


def _taxonomy_finding(cells: Sequence[Cell], plan: Plan, where: str) -> Finding:
    """Whether every row of the paper's table reaches the data, on every seed."""
    modes = _modes()
    named = {(name, entry.carrier) for entry in TAXONOMY for name in entry.rows}
    own = [cell for cell in cells if (cell.row, cell.carrier) in named]
    effects = [
        1.0 if all(cell.reaches(modes) for cell in own if cell.seed == seed) else -1.0
        for seed in plan.seeds
    ]
    reached = sum(cell.reaches(modes) for cell in own)
    energies = [cell.energy for cell in own if cell.energy is not None]
    return Finding.of(
        "Gradient flows, diffusion models and GANs are one kind of model, which differ in their flow and in "
        "whether a generator carries it: the six rows of the table.",
        "GPM §1, Table 1",
        where,
        f"{reached} of {len(own)} cells ({len(named)} pairs of a field and a carrier) cover all modes with "
        f"an energy distance of at most {LIMIT:g}; the largest is {max(energies, default=float('nan')):.3g}.",
        effects,
    )


def _catalogue_findings(cells: Sequence[Cell], where: str) -> tuple[Finding, Finding]:
    """Whether every field goes into both carriers, and reaches the data in both."""
    modes = _modes()
    names = list(dict.fromkeys(cell.row for cell in cells))
    ran = sum(cell.energy is not None for cell in cells)
    first = Finding.of(
        "The existence of a generator and the flow that particles follow can be decoupled.",
        "GPM §1, §4",
        where,
        f"{ran} of {len(cells)} pairs ({len(names)} fields, two carriers) are composed, trained where they "
        "learn, and sampled by the same code.",
        [1.0 if ran == len(cells) else -1.0],
    )
    missed: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if not cell.reaches(modes):
            why = cell.reason or f"above {LIMIT:g}, or a mode is missing"
            missed.setdefault((cell.carrier, why), []).append(cell.row)
    both = [name for name in names if not any(name in rows for rows in missed.values())]
    lacking = [
        f" {', '.join(rows)} with {'a generator' if carrier == 'generator' else 'free particles'}: {why}."
        for (carrier, why), rows in missed.items()
    ]
    second = Finding.of(
        "A generator is an optional addition to any such generative model.",
        "GPM abstract, §4",
        where,
        f"{len(both)} of {len(names)} fields reach the data in both carriers, at the catalogue's settings."
        f"{' Not so:' if lacking else ''}{''.join(lacking)}",
        [-1.0 if lacking else 1.0],
    )
    return first, second


def _modes() -> int | None:
    return modes_of(open_dataset(DataSettings(DATA)).target)


# --- tables


def _taxonomy(cells: Sequence[Cell]) -> Table:
    def formula(entry: Entry) -> str:
        if entry.recipe is not None:
            return RECIPES[entry.recipe].symbol
        return "; ".join(CATALOGUE[name].formula for name in entry.rows)

    def links(entry: Entry) -> str:
        own = [_link(field.__name__, field) for field in entry.fields]
        if entry.recipe is not None:
            recipe = RECIPES[entry.recipe]
            own = [_link(f"recipe {recipe.name}", recipe), _preset(recipe.name), *own]
        return ", ".join(own)

    def energies(entry: Entry) -> str:
        return "; ".join(f"`{name}` {_energies(name, entry, cells)}" for name in entry.rows)

    return Table.of(
        "The taxonomy",
        TAXONOMY,
        {
            "model": lambda entry: entry.model,
            "generator": lambda entry: _tick(entry.carrier == "generator"),
            "flow type, ∇h": lambda entry: f"{entry.flow}, {formula(entry)}",
            "in the package": links,
            "energy distance to the data": energies,
        },
    )


def _tick(generator: bool) -> str:
    return "✓" if generator else "✗"


def _energies(name: str, entry: Entry, cells: Sequence[Cell]) -> str:
    own = [cell.energy for cell in cells if (cell.row, cell.carrier) == (name, entry.carrier)]
    known = [energy for energy in own if energy is not None]
    return spread(known) if len(known) == len(own) else "no samples"


def _recipes() -> Table:
    """Every recipe with its carrier, which is found by composing it."""
    dataset = open_dataset(DataSettings(DATA))

    def composed(name: str) -> Carrier:
        preset = load_preset(_planar_preset(name))
        recipe = make_recipe(preset.recipe, preset.settings)
        return recipe.system(dataset).model

    models = {name: composed(name) for name in RECIPES}
    return Table.of(
        "Recipes, as they are composed",
        RECIPES,
        {
            "model": lambda name: RECIPES[name].title,
            "generator": lambda name: _tick(models[name].kind == "generator"),
            "∇h": lambda name: RECIPES[name].symbol,
            "losses": lambda name: ", ".join(loss.name for loss in models[name].losses()),
            "file": lambda name: _link(f"recipe {name}", RECIPES[name]),
            "preset": _preset,
        },
    )


def _catalogue(cells: Sequence[Cell]) -> Table:
    pairs = {(cell.row, cell.carrier): cell for cell in cells}

    def why(name: str) -> str:
        known = ((carrier, pairs[name, carrier].reason) for carrier in CARRIERS)
        return "; ".join(f"{carrier}: {reason}" for carrier, reason in known if reason)

    return Table.of(
        "Every field of the catalogue in both carriers: energy distance, modes",
        dict.fromkeys(cell.row for cell in cells),
        {
            "row": "`{}`".format,
            "∇h": lambda name: CATALOGUE[name].formula,
            "source": lambda name: CATALOGUE[name].paper,
            "learns": lambda name: CATALOGUE[name].learns,
            "✗ free particles": lambda name: _figures(pairs[name, "particles"]),
            "✓ generator": lambda name: _figures(pairs[name, "generator"]),
            "where it cannot": why,
        },
    )


def _figures(cell: Cell) -> str:
    if cell.energy is None:
        return "no samples"
    return f"{cell.energy:.3f}, {cell.modes}" + (", capped" if cell.stopped else "")


# --- links


def _link(text: str, kind: type) -> str:
    """To the file that defines a class."""
    path = Path(inspect.getfile(kind)).relative_to(Path(partikel.__file__).parent)
    return f"[{text}]({SOURCES}/{path.as_posix()})"


def _preset(recipe: str) -> str:
    name = _planar_preset(recipe)
    return f"[{name}]({SOURCES}/recipes/presets/{name}.yaml)"


def _planar_preset(recipe: str) -> str:
    """The tuned preset of a recipe for the data that are measured."""
    presets = (load_preset(name) for name in preset_names() if name.endswith(f"-{DATA}"))
    return next(preset.name for preset in presets if preset.recipe == recipe)


ITEM = Item(
    "table1",
    "GPM Table 1",
    "Taxonomy of particle models",
    "Models by their flow type, and by whether they have a generator: Wasserstein and Stein gradient flows, "
    "score-based diffusion and Score GANs, Discriminator Flows and GANs.",
    {
        "smoke": Plan((0,), ("kl-kernels", "svgd"), 0.05),
        "cpu": Plan((0, 1, 2), tuple(CATALOGUE), 12.0),
        "paper": Plan((0, 1, 2), tuple(CATALOGUE), 60.0),
    },
    measure,
)
