"""Every field in the three carriers on the paper's Gaussians: measures and CPU seconds, over seeds.

    python benchmarks/matrix.py [--seeds 0 1 2] [--cap 1000] [--out runs/matrix]

Runs ``partikel matrix`` in one thread (an interrupted run continues), and writes results/matrix.json, the
picture and the table of docs/matrix.md. Takes about twenty CPU minutes a seed.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from pathlib import Path

from common import one_thread, save  # isort: skip
from PIL import Image
from rich.console import Console

from partikel.studies.catalogue import (
    CARRIERS,
    CATALOGUE,
    LIMIT,
    REFERENCE,
    SAMPLES,
    Cell,
    reasons,
    run_matrix,
    table,
)

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
DATA, MODES = "gaussians", 5


def markdown(cells: list[Cell]) -> str:
    """A line for each field, with its carriers."""
    header = ["field", "∇h(x)", "source", "learns", *CARRIERS]
    rows = [header, ["---"] * len(header)]
    lines = table(cells, DATA)
    for name in dict.fromkeys(line[0] for line in lines):
        row = CATALOGUE[name]
        carried = [
            note
            if note.startswith("no map")
            else f"{energy}, {modes}, {seconds} s" + (f": {note}" if note else "")
            for each, _, energy, _, modes, seconds, note in lines
            if each == name
        ]
        rows.append([name, row.formula, row.paper, row.learns, *carried])
    text = ["| " + " | ".join(each.replace("|", "\\|") for each in row) + " |" for row in rows]
    text.append("")
    text += [f"- {row}, {carrier}: {why}." for (row, carrier), why in reasons(cells).items()]
    seeds = ", ".join(map(str, sorted({cell.seed for cell in cells})))
    return "\n".join([f"Seeds: {seeds}.", "", *text])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cap", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/matrix"))
    arguments = parser.parse_args()
    one_thread()
    cells = run_matrix(
        arguments.out, seeds=arguments.seeds, cap=arguments.cap, console=Console(width=120)
    )
    run = [cell for cell in cells if not cell.has_no_map]
    pairs = {(cell.row, cell.carrier) for cell in run}
    missed = {(cell.row, cell.carrier) for cell in run if not cell.reaches(MODES)}
    record = {
        "data": DATA,
        "cap of iterations": arguments.cap,
        "samples": SAMPLES,
        "reference": REFERENCE,
        "limit": LIMIT,
        "pairs": len(pairs),
        "all modes and energy within the limit, every seed": len(pairs - missed),
        "cpu_seconds of a whole matrix": round(
            sum(c.cpu_seconds for c in cells) / len(arguments.seeds)
        ),
        "cpu_seconds of the data scores": {
            seed: max(c.score_seconds for c in cells if c.seed == seed) for seed in arguments.seeds
        },
        "cells": [asdict(cell) for cell in cells],
    }
    print(save("matrix", record))
    with Image.open(arguments.out / "matrix.png") as picture:  # few colours: a third of the size
        few = picture.convert("RGB").quantize(
            200, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        few.save(DOCS / "matrix.png", optimize=True)
    path = DOCS / "matrix.md"
    between = f"{BEGIN}\n{markdown(cells)}\n{END}"
    text = re.sub(f"{BEGIN}.*{END}", lambda _: between, path.read_text(), flags=re.DOTALL)
    path.write_text(text)


if __name__ == "__main__":
    main()
