"""GPM Table 1: the taxonomy of particle models, made from the package's own registry, and run.

The six rows are three flows, each with and without a generator. Their formulas come from the recipes and
from the catalogue of ``partikel matrix``, whose cells are what is measured: every field in both carriers,
on five Gaussians.
"""

from __future__ import annotations

import inspect
import math
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
from partikel.studies.benches import FIVE, THREE, on
from partikel.studies.catalogue import (
    CATALOGUE,
    LIMIT,
    SAMPLES,
    CarrierName,
    Cell,
    modes_of,
    pairs,
    run_matrix,
)
from partikel.studies.item import Item, Outcome, Table, spread
from partikel.studies.judgement import Claim, Finding
from partikel.studies.lab import Lab

DATA = "gaussians"
CARRIERS: tuple[CarrierName, ...] = ("particles", "generator")
"""The paper's."""
SOURCES = "../../src/partikel"
"""From a page in docs/reproduce."""
REACHED = (
    f"log of {LIMIT:g} over the energy distance of the worst of these pairs; where it misses modes, minus "
    "the share that it misses"
)
"""The effect of a claim that pairs of a field and a carrier reach the data."""
CLAIMS = {
    "taxonomy": Claim(
        "Gradient flows, diffusion models and GANs are one kind of model, which differ in their flow and in "
        "whether a generator carries it: the six rows of the table.",
        "GPM §1, Table 1",
        REACHED,
        0.0,
    ),
    "decoupled": Claim(
        "The existence of a generator and the flow that particles follow can be decoupled.",
        "GPM §1, §4",
        "half a pair less the number of those that cannot be composed, trained and sampled",
        0.0,
        "pairs",
        "exact",
    ),
    "optional": Claim(
        "A generator is an optional addition to any such generative model.",
        "GPM abstract, §4",
        REACHED,
        0.0,
    ),
}


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
        rows: of the catalogue.
        row_seeds: of these.
        cap: iterations of any training, at most; None for the catalogue's.
    """

    seeds: tuple[int, ...] = FIVE
    rows: tuple[str, ...] = tuple(CATALOGUE)
    row_seeds: tuple[int, ...] = THREE
    cap: int | None = None


def measure(plan: Plan, lab: Lab) -> Outcome:
    """Run the catalogue's cells and set them in the paper's table."""

    def run(folder: Path) -> tuple[list[Cell], list[Cell]]:
        options: dict[str, Any] = {"target": DATA, "cap": plan.cap, "console": lab.console}
        options["carriers"] = CARRIERS
        cells = run_matrix(folder, rows=plan.rows, seeds=plan.row_seeds, **options)
        return cells, run_matrix(
            folder, rows=ROWS, seeds=plan.seeds, **options
        )  # its picture stays

    folder = lab.folder("matrix", run)
    cells, own = run(folder)
    lab.draw(
        Image.open(folder / "matrix.png"),
        f"The taxonomy's fields, with free particles and with a generator; seed {plan.seeds[0]}.",
    )
    dataset = open_dataset(DataSettings(DATA))
    modes, floor = modes_of(dataset.target), lab.floor(dataset, SAMPLES)
    assert modes is not None
    named = {(name, entry.carrier) for entry in TAXONOMY for name in entry.rows}
    rows = [cell for cell in own if (cell.row, cell.carrier) in named]
    findings = [_taxonomy_finding(rows, modes, floor), *_catalogue_findings(cells, modes, floor)]
    length = "the catalogue's" if plan.cap is None else f"at most {plan.cap}"
    notes = (
        "[fields](../fields.md) explains every field, [matrix](../matrix.md) the settings. "
        f"Rows are defined in {_link('catalogue.py', Cell)}.",
        "A Stein gradient flow is a Wasserstein gradient smoothed by a kernel. With a generator the "
        "kernel is the generator's NTK, on its latents (GPM eq. 18): so the same fields stand in both "
        "first rows. `svgd` has a kernel on the data, and needs no generator.",
        f"Measured: energy distance of {SAMPLES} samples to fresh data, and modes covered of {modes}. A cell "
        f"reaches the data with all modes and at most {LIMIT:g}. Trainings are counted in iterations, so "
        "that rows do not depend on the machine's speed.",
    )
    distinct = {(cell.row, cell.carrier, cell.seed): vars(cell) for cell in (*cells, *own)}
    protocol = {"data": DATA, "samples": SAMPLES, "iterations": length, "floor": f"{floor:.2g}"}
    tables = [_taxonomy(own), _recipes(), _catalogue(cells)]
    return Outcome(findings, tables, {"cells": list(distinct.values())}, protocol, notes)


# --- findings


def _reach(cell: Cell, modes: int, floor: float) -> float:
    """How far a cell is within reach of the data, see :data:`REACHED`."""
    if cell.energy is None or cell.modes is None or cell.modes < modes:
        return (cell.modes or 0) / modes - 1
    return math.log(LIMIT / max(cell.energy, floor))


def _worst(cells: Sequence[Cell], modes: int, floor: float) -> list[float]:
    """The reach of the worst cell, seed by seed."""
    by_seed: dict[int, list[float]] = {}
    for cell in cells:
        by_seed.setdefault(cell.seed, []).append(_reach(cell, modes, floor))
    return [min(each) for each in by_seed.values()]


def _on(cells: Sequence[Cell]) -> str:
    return on("five Gaussians", sorted({cell.seed for cell in cells}))


def _taxonomy_finding(cells: Sequence[Cell], modes: int, floor: float) -> Finding:
    """Whether every row of the paper's table reaches the data."""
    reached = sum(cell.reaches(modes) for cell in cells)
    energies = [cell.energy for cell in cells if cell.energy is not None]
    return CLAIMS["taxonomy"].found(
        _on(cells),
        f"{reached} of {len(cells)} cells ({len({(cell.row, cell.carrier) for cell in cells})} pairs of a "
        f"field and a carrier) cover all modes with an energy distance of at most {LIMIT:g}; the largest is "
        f"{max(energies, default=math.nan):.3g}.",
        _worst(cells, modes, floor),
    )


def _catalogue_findings(cells: Sequence[Cell], modes: int, floor: float) -> tuple[Finding, Finding]:
    """Whether every field goes into both carriers, and reaches the data in both."""
    found = pairs(cells)
    ran = sum(all(cell.energy is not None for cell in those) for those in found.values())
    names = {name for name, _ in found}
    first = CLAIMS["decoupled"].found(
        _on(cells),
        f"{ran} of {len(found)} pairs ({len(names)} fields, two carriers) are composed, trained where they "
        "learn, and sampled by the same code.",
        [0.5 - (len(found) - ran)],
    )
    missed: dict[tuple[CarrierName, str], list[str]] = {}
    for (name, carrier), those in found.items():
        if not all(cell.reaches(modes) for cell in those):
            why = those[0].reason or f"above {LIMIT:g}, or a mode is missing, on some seed"
            missed.setdefault((carrier, why), []).append(name)
    lacking = [
        f" {', '.join(rows)} with {'a generator' if carrier == 'generator' else 'free particles'}: {why}."
        for (carrier, why), rows in missed.items()
    ]
    both = names.difference(*missed.values())
    second = CLAIMS["optional"].found(
        _on(cells),
        f"{len(both)} of {len(names)} fields reach the data in both carriers, at the catalogue's settings."
        f"{' Not so:' if lacking else ''}{''.join(lacking)}",
        _worst(cells, modes, floor),
    )
    return first, second


# --- tables


def _taxonomy(cells: Sequence[Cell]) -> Table:
    found = pairs(cells)

    def formula(entry: Entry) -> str:
        if entry.recipe is not None:
            return RECIPES[entry.recipe].symbol
        return "; ".join(CATALOGUE[name].formula for name in entry.rows)

    def links(entry: Entry) -> str:
        own = [_link(field.__name__, field) for field in entry.fields]
        if entry.recipe is not None:
            recipe = RECIPES[entry.recipe]
            own = [
                _link(f"recipe {recipe.name}", recipe),
                _preset(_planar_presets()[recipe.name]),
                *own,
            ]
        return ", ".join(own)

    def energies(entry: Entry) -> str:
        return "; ".join(f"`{name}` {_energies(found[name, entry.carrier])}" for name in entry.rows)

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


def _energies(cells: Sequence[Cell]) -> str:
    known = [cell.energy for cell in cells if cell.energy is not None]
    return spread(known) if len(known) == len(cells) else "no samples"


def _recipes() -> Table:
    """Every recipe with its carrier, which is found by composing it."""
    dataset = open_dataset(DataSettings(DATA))
    presets = _planar_presets()

    def composed(name: str) -> Carrier:
        preset = load_preset(presets[name])
        recipe = make_recipe(preset.recipe, preset.settings)
        return recipe.system(dataset).model

    models = {name: composed(name) for name in RECIPES if name in presets}
    return Table.of(
        "Recipes, as they are composed",
        models,
        {
            "model": lambda name: RECIPES[name].title,
            "generator": lambda name: _tick(models[name].kind == "generator"),
            "∇h": lambda name: RECIPES[name].symbol,
            "losses": lambda name: ", ".join(loss.name for loss in models[name].losses()),
            "file": lambda name: _link(f"recipe {name}", RECIPES[name]),
            "preset": lambda name: _preset(presets[name]),
        },
    )


def _catalogue(cells: Sequence[Cell]) -> Table:
    found = pairs(cells)

    def why(name: str) -> str:
        known = ((carrier, found[name, carrier][0].reason) for carrier in CARRIERS)
        return "; ".join(f"{carrier}: {reason}" for carrier, reason in known if reason)

    return Table.of(
        f"Every field of the catalogue in both carriers, {_on(cells)}: energy distance, modes at worst",
        dict.fromkeys(cell.row for cell in cells),
        {
            "row": "`{}`".format,
            "∇h": lambda name: CATALOGUE[name].formula,
            "source": lambda name: CATALOGUE[name].paper,
            "learns": lambda name: CATALOGUE[name].learns,
            "✗ free particles": lambda name: _figures(found[name, "particles"]),
            "✓ generator": lambda name: _figures(found[name, "generator"]),
            "where it cannot": why,
        },
    )


def _figures(cells: Sequence[Cell]) -> str:
    modes = min(cell.modes or 0 for cell in cells)
    return f"{_energies(cells)}, {modes}" + (", capped" if cells[0].stopped else "")


# --- links


def _link(text: str, kind: type) -> str:
    """To the file that defines a class."""
    path = Path(inspect.getfile(kind)).relative_to(Path(partikel.__file__).parent)
    return f"[{text}]({SOURCES}/{path.as_posix()})"


def _preset(name: str) -> str:
    return f"[{name}]({SOURCES}/recipes/presets/{name}.yaml)"


def _planar_presets() -> dict[str, str]:
    """The first preset of each recipe for the data that are measured; a distillation goes by its teacher."""
    presets = [load_preset(name) for name in preset_names() if name.endswith(f"-{DATA}")]
    return {preset.recipe: preset.name for preset in reversed(presets)}


ITEM = Item(
    "table1",
    "GPM Table 1",
    "Taxonomy of particle models",
    "Models by their flow type, and by whether they have a generator: Wasserstein and Stein gradient flows, "
    "score-based diffusion and Score GANs, Discriminator Flows and GANs.",
    {
        "smoke": Plan((0,), ("kl-kernels", "langevin"), (0,), 3),
        "cpu": Plan(),
        "paper": Plan(row_seeds=FIVE),
    },
    measure,
    CLAIMS,
)
