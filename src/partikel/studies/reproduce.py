"""The papers' tables, figures and claims, each by one command.

    partikel reproduce fig7a --scale cpu
    partikel reproduce all --scale cpu

An item is a file of :mod:`partikel.studies.items`: a plan for each scale, a measurement, and findings
that set the paper's claim beside what was measured. A result is ``ITEM.json`` with its pictures and a page.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console

from partikel import __version__
from partikel.errors import ConfigError, PartikelError, nearest
from partikel.files import (
    TEXT,
    plain,
    read_json,
    read_plain,
    reading,
    write_json,
    write_whole,
    writing_to,
)
from partikel.studies.benches import SCALES, Scale
from partikel.studies.item import Item
from partikel.studies.items import ITEMS
from partikel.studies.judgement import OPEN
from partikel.studies.lab import Lab
from partikel.studies.page import index, labelled, page
from partikel.studies.provenance import measuring, stamps
from partikel.training.engine import one_thread
from partikel.training.fit import Interrupted

MEND = "free some space or choose another --out; the same command goes on from what is kept"


def reproduce(
    names: Sequence[str],
    scale: Scale = "cpu",
    *,
    out: Path,
    runs: Path,
    again: bool = False,
    console: Console | None = None,
) -> tuple[list[dict[str, Any]], dict[str, PartikelError]]:
    """Measure items, or read what was measured with the same plan.

    Args:
        names: of :data:`ITEMS`.
        scale: "smoke" shows that an item runs, "cpu" takes minutes to an hour, "paper" a GPU.
        out: folder of results; ``README.md`` there lists them.
        runs: folder of trained runs and of parts of measurements, which all items share; an
            interrupted call goes on from there.
        again: measure what has a result too. Trained runs and kept parts stay: remove them from
            ``runs`` to train again.
        console: where progress is shown.

    Returns:
        The results of all items that could be measured, and the errors of the others by name.

    Raises:
        ConfigError: for an unknown item or scale.
    """
    for name in names:
        if name not in ITEMS:
            raise ConfigError(f"there is no item '{name}': {nearest(name, list(ITEMS))}")
    if scale not in SCALES:
        raise ConfigError(f"there is no scale '{scale}': {nearest(scale, list(SCALES))}")
    results, errors = [], {}
    for name in dict.fromkeys(names):
        item = ITEMS[name]
        if scale not in item.plans:
            errors[name] = ConfigError(
                f"'{name}' has no plan at the scale '{scale}': take {' or '.join(item.plans)}."
            )
            continue
        found = None if again else _finished(item, scale, out)
        if found is not None:
            results.append(found)
            continue
        if console is not None:
            console.print(f"[bold]{name}[/]: {item.title}", highlight=False)
        with writing_to(out, MEND):
            try:
                results.append(_measured(item, scale, out, runs, console))
            except Interrupted:
                raise
            except PartikelError as error:  # such as data that are not there: others may go on
                errors[name] = error
    _write_index(out, scale)
    return results, errors


def _measured(
    item: Item[Any], scale: Scale, out: Path, runs: Path, console: Console | None
) -> dict[str, Any]:
    """Measure an item and write its files, the JSON last: it says that all are there."""
    plan = item.plans[scale]
    code = measuring(item.measure.__module__)
    lab = Lab(item.name, scale, plan, out=out, runs=runs, code=code, console=console)
    with one_thread(scale != "paper"):  # the papers' settings may use all of them
        outcome = item.measure(plan, lab)
        threads = torch.get_num_threads()
    trained = {
        key: {
            "preset": training.preset,
            "changes": training.changes,
            "iterations": run.step,
            "cpu_seconds": round(run.cpu_seconds, 1),
        }
        for key, (training, run) in sorted(lab.trained.items())
    }
    findings = outcome.findings
    if scale == "smoke":  # a few iterations decide nothing
        findings = [replace(f, judgement=replace(f.judgement, verdict=OPEN)) for f in findings]
    value = {
        "item": item.name,
        "title": item.title,
        "source": item.source,
        "about": item.about,
        "scale": scale,
        "made of": stamps([plan, item.claims], trained, item.measure.__module__),
        "findings": findings,
        "tables": outcome.tables,
        "pictures": lab.pictures,
        "notes": outcome.notes,
        "protocol": outcome.protocol,
        "trained": trained,
        "cpu_seconds": {
            "training": round(sum(each["cpu_seconds"] for each in trained.values()), 1),
            "measuring": round(lab.seconds, 1),
        },
        "machine": machine(threads),
        "values": outcome.values,
    }
    result = plain(value)
    write_whole(out / f"{item.name}.md", page(result))
    return write_json(out / f"{item.name}.json", result)


def machine(threads: int) -> dict[str, Any]:
    """What a result was made on, for its page."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "partikel": __version__,
    }


def _finished(item: Item[Any], scale: Scale, out: Path) -> dict[str, Any] | None:
    """The result that is there, if it is of the same scale and not stale."""
    result, old = _read(out / f"{item.name}.json") or ({}, [])
    return result if result and result["scale"] == scale and not old else None


def changed(result: Mapping[str, Any]) -> list[str]:
    """What a result depends on and is no longer today's: plan, settings, rule, measuring.

    Args:
        result: content of an item's JSON file; one of an earlier version, which has no fingerprints,
            differs in all.
    """
    item = ITEMS[result["item"]]
    today = stamps(
        [item.plans[result["scale"]], item.claims], result["trained"], item.measure.__module__
    )
    made = result.get("made of", {})
    return [key for key, stamp in today.items() if made.get(key) != stamp]


def check(out: Path) -> dict[str, list[str]]:
    """Say on every page of a folder of results whether it is stale, and write their list again.

    Args:
        out: folder of results.

    Returns:
        For each result what it depends on and is no longer today's; nothing where it is fresh.

    Raises:
        CheckpointError: for a file that is no result.
        ConfigError: for a folder without results.
    """
    found = _results(out)
    if not found:
        raise ConfigError(f"{out} has no results: 'partikel reproduce all --out {out}' makes them.")
    with writing_to(out, MEND):
        for name, (_, old) in found.items():
            path = out / f"{name}.md"
            with reading(
                path, f"cannot be read: 'partikel reproduce {name} --again' makes it anew."
            ):
                text = read_plain(path, TEXT).decode("utf-8")
            write_whole(path, labelled(text, old))
        _write_index(out, next(iter(found.values()))[0]["scale"])
    return {name: old for name, (_, old) in found.items()}


def _write_index(out: Path, scale: Scale) -> None:
    found = {name: each for name, each in _results(out).items() if each[0]["scale"] == scale}
    missing = [(n, i.title) for n, i in ITEMS.items() if n not in found and scale in i.plans]
    if found:
        results, stale = [r for r, _ in found.values()], {n: old for n, (_, old) in found.items()}
        write_whole(out / "README.md", index(results, missing, stale))


_Result: TypeAlias = tuple[dict[str, Any], list[str]]
"""Content of an item's JSON file, and what it depends on that is no longer today's."""


def _results(out: Path) -> dict[str, _Result]:
    read = {name: _read(out / f"{name}.json") for name in ITEMS}
    return {name: each for name, each in read.items() if each is not None}


def _read(path: Path) -> _Result | None:
    """The result in a file, None where there is none; whatever reads it further can."""
    if not path.exists():
        return None
    with reading(path, "is no result of 'partikel reproduce': remove it, or choose another --out."):
        result = read_json(path)
        if result["item"] != path.stem:
            raise ValueError("it is another item's")
        old = changed(result)
        index([result], [], {path.stem: old})
    return result, old
