"""Nodes for few steps that are known of a run: placed for it, shipped with its preset, or by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partikel.app.config import load_preset, make_recipe, preset_names
from partikel.errors import CheckpointError, ConfigError
from partikel.files import read_json, reading, sealed, write_json
from partikel.models import Carrier, Sampling
from partikel.models.placing import few_steps, may_be_of
from partikel.recipes import Recipe
from partikel.schedules import Nodes
from partikel.solvers import SOLVERS

PLACED = "placed.json"
"""The file in the folder of a run, or of an export."""
_SHAPING = ("sigma_max", "churn", "path", "source", "conditional")
"""Settings, besides the data, that a run shares with its preset if its nodes are to be its own."""


def with_nodes(
    sampling: Sampling,
    *,
    path: Path | None,
    step: int,
    preset: str,
    recipe: Recipe,
    model: Carrier,
    sigma_data: float,
) -> Sampling:
    """How samples of so many steps are drawn, where neither nodes nor a path are given.

    At nodes that were placed beside the run for as many at this iteration, the latest for any solver; else at
    those that its preset ships, if the run has the data and levels of its preset; else by
    :func:`partikel.models.placing.few_steps`.

    Args:
        sampling: that asks for a number of steps, and nothing else of nodes.
        path: of the run; None leaves out what was placed beside it.
        step: its iterations: after more of them it is another model.
        preset: what it was started from.
        recipe: its settings.
        model: its carrier.
        sigma_data: standard deviation of its data.

    Raises:
        CheckpointError: where the file beside the run is damaged, or of another run.
    """
    grid = sampling.grid
    assert grid is not None
    asked = grid.steps, sampling.guidance, step
    placed = [] if path is None else beside(path)
    for entry in (*reversed(placed), *_shipped(preset, recipe)):
        solver = None if entry["solver"] is None else SOLVERS[entry["solver"]]()
        if (entry["steps"], entry["guidance"], entry.get("step", step)) == asked and (
            sampling.solver in (None, solver)
        ):
            nodes = Nodes(times=tuple(entry["times"]))
            if len(entry["times"]) != entry["steps"] + 1 or not may_be_of(model, nodes):
                raise CheckpointError(
                    f"{PLACED} in {path} is of another run: remove it, and 'partikel tune' places nodes anew."
                )
            return Sampling(nodes, sampling.stop, solver, sampling.guidance)
    return few_steps(model, sampling, sigma_data)


def beside(path: Path) -> list[dict[str, Any]]:
    """What was placed beside a run, the latest last.

    Raises:
        CheckpointError: where the file is damaged.
    """
    file = path / PLACED
    if not file.exists():
        return []
    with reading(file, "holds no placed nodes: remove it, and 'partikel tune' places them anew."):
        try:
            return checked_entries(read_json(file, must_be_sealed=True)["placed"])
        except ConfigError as error:
            raise ValueError(error) from error


def write_beside(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Keep placed nodes beside a run, whole or not at all.

    Raises:
        OSError: where they cannot be written.
    """
    write_json(path / PLACED, sealed({"placed": entries}))


def checked_entries(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Placed nodes as they were read.

    Raises:
        ValueError, TypeError, KeyError, ConfigError: where they are none.
    """
    for entry in entries:
        Nodes(times=tuple(map(float, entry["times"])))
        if {"steps", "guidance"} - entry.keys() or entry["solver"] not in (None, *SOLVERS):
            raise ValueError("no number of steps, or an unknown solver")
    return [dict(entry) for entry in entries]


def _shipped(preset: str, recipe: Recipe) -> list[dict[str, Any]]:
    """What a preset ships, for runs of its data and levels; nodes hold for any training of them."""
    loaded = load_preset(preset) if preset in preset_names() else None
    if loaded is None or not loaded.placed:
        return []
    own = make_recipe(loaded.recipe, loaded.settings)
    data = [(each.data.name, each.data.size, each.data.path) for each in (own, recipe)]
    alike = type(own) is type(recipe) and data[0] == data[1]
    if not alike or any(getattr(own, k, None) != getattr(recipe, k, None) for k in _SHAPING):
        return []
    return checked_entries(loaded.placed)
