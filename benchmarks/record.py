"""Put measured results where users read them: into the presets, the README and pages of docs.

    python benchmarks/record.py

Reads results/*.json; writes the ``measured`` line of each preset and what stands between the marks of the
pages. Run it after the benchmarks; it invents nothing and rounds to three digits.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from common import RESULTS
from partikel.metrics.measures import ENERGY, FRECHET
from partikel.studies.benches import BENCHES, FOUR
from partikel.studies.item import spread

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "src" / "partikel" / "recipes" / "presets"
DISTILLED = ("edm-distilled", "discriminator-flow-distilled", "diffusion-gan-distilled")
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def rounded(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.3g}")


def load(name: str) -> dict[str, Any] | None:
    """A result, if it has been measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def record_presets() -> None:
    """Write the measured line of each preset."""
    for path in sorted(PRESETS.glob("*.yaml")):
        result = load(f"gaussians-{path.stem}") or load(path.stem)
        text = re.sub(r"^measured:.*\n", "", path.read_text(), flags=re.MULTILINE)
        if result is not None:
            summary = dict(result["summary"])
            seconds = round(summary.pop("cpu_seconds"))
            label, figures = next(iter(summary.items()))
            if "mean" in figures:  # images: figures are not nested under a way of sampling
                label, figures = "as set", summary
            means = {key: rounded(value["mean"]) for key, value in figures.items()}
            seeds = len(result["seeds"])
            measured = {**means, "cpu_seconds": seconds, "seeds": seeds, "sampling": label}
            text = text.rstrip() + f"\nmeasured: {json.dumps(measured)}\n"
        path.write_text(text)


def table() -> str:
    """The table of results on the paper's Gaussians."""
    lines = [
        "| preset | seeds | sampling | energy | sliced W2 | mode TV | within 3σ | modes | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    spread = load("gaussians-data")
    if spread is not None:
        row = spread["data vs data"]
        lines.append(
            f"| data vs data | | - | {row['energy']['mean']:.2g} ± {row['energy']['sd']:.2g} | "
            f"{row['sliced_w2']['mean']:.3f} ± {row['sliced_w2']['sd']:.3f} | "
            f"{row['mode_tv']['mean']:.3f} | {row['within_3sigma']['mean']:.3f} | 5 | - |"
        )
    for path in sorted(RESULTS.glob("gaussians-*.json")):
        result = json.loads(path.read_text())
        if "summary" not in result:
            continue
        summary = dict(result["summary"])
        seconds = summary.pop("cpu_seconds")
        for label, f in summary.items():
            count = len(result["seeds"])
            energy = f"{f['energy']['mean']:.4f}"
            if count > 1:
                energy += f" (worst {f['energy']['worst']:.4f})"
            lines.append(
                f"| {result['preset']} | {count} | {label} | {energy} | {f['sliced_w2']['mean']:.3f} | "
                f"{f['mode_tv']['mean']:.3f} | {f['within_3sigma']['mean']:.3f} | "
                f"{f['modes']['worst']:g} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def image_table() -> str:
    """The table of image presets, each data set with its floor and baselines."""
    figures = ("frechet", "kid", "precision", "recall", "density", "coverage")
    lines = [
        "| data | model | seeds | Fréchet | KID | precision | recall | density | coverage | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def line(data: str, model: str, row: dict[str, float], seeds: str = "", cpu: str = "-") -> str:
        cells = " | ".join(f"{row[key]:.3g}" for key in figures)
        return f"| {data} | {model} | {seeds} | {cells} | {cpu} |"

    sets: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if not isinstance(result, dict) or not {"preset", "seeds"} <= set(result):
            continue  # of another benchmark
        rows = result["seeds"]
        if "frechet" in rows[0].get("metrics", {}):
            sets.setdefault(rows[0]["protocol"]["data"], []).append(result)
    for data, results in sets.items():
        first = results[0]["seeds"][0]
        lines.append(line(data, "data vs data", first["reference"]))
        lines += [line(data, name, row) for name, row in first.get("baselines", {}).items()]
        for result in results:
            means = {key: result["summary"][key]["mean"] for key in figures}
            seconds = f"{result['summary']['cpu_seconds']:.0f}"
            count = str(len(result["seeds"]))
            lines.append(line(data, f"`{result['preset']}`", means, count, seconds))
    return "\n".join(lines)


def four_models() -> str:
    """The four models of the GPM paper on three data sets: means and ranges over training seeds."""
    lines = [
        "| | particles | | generator | | data |",
        "|---|---|---|---|---|---|",
        "| | **EDM** | **Discriminator Flow** | **GAN** | **Score GAN** | against data |",
    ]
    known = load("gaussians-data")
    assert known is not None
    for bench in BENCHES["cpu"].values():
        points = bench.key == "gaussians"
        measure = ENERGY if points else FRECHET
        data, cells = known["data vs data"]["energy"]["mean"] if points else 0.0, []
        for name in FOUR:
            preset = bench.models[name].preset
            result = load(f"gaussians-{preset}" if points else preset)
            assert result is not None, f"{preset} has no result"
            rows = result["seeds"]
            if points:
                figures = [next(iter(row["samplings"].values())) for row in rows]
            else:
                figures, data = [row["metrics"] for row in rows], rows[0]["reference"]["frechet"]
            values = spread([each[measure.key] for each in figures])
            count = f"{len(rows)} seeds" if len(rows) > 1 else "one seed"
            seconds = statistics.median(row["cpu_seconds"] for row in rows)
            cells.append(f"{values}, {count}, {seconds:.0f} s")
        lines.append(f"| {bench.data}: {measure.label} | {' | '.join(cells)} | {data:.2g} |")
    return "\n".join(lines)


def few_steps() -> str:
    """The tables of placed nodes beside fixed grids, and beside peers."""
    grids, ways = ("own", "best fixed", "placed"), ("default", "rule")
    lines = [
        "| run | evaluations | solver | own grid | best fixed | placed for the run | default | by the rule "
        "| CPU s to place |",
        f"|{'---|' * 9}",
    ]
    for preset in (
        *("edm-gaussians", "edm-digits", "edm-mnist-fast"),
        *("flow-matching-gaussians", "flow-matching-digits"),
    ):
        result = load(f"few-steps-{preset}") or {"cells": [], "runs": []}
        for steps, solver in result["cells"]:
            runs, of = result["runs"], f"{steps} {solver}"

            def cell(key: str, runs: list[dict[str, Any]] = runs) -> str:
                return spread([each[key] for each in runs]) if key in runs[0] else "-"

            told = [*(f"{of} {grid}" for grid in grids), *(f"{of} {way}" for way in ways)]
            seconds = [each[f"{of} seconds"] for each in runs if f"{of} seconds" in each]
            spent = f"{statistics.mean(seconds):.2g}" if seconds else "-"
            calls = 2 * steps - 1 if solver == "heun" else steps
            cells = [f"`{preset}`", str(calls), f"`{solver}`", *map(cell, told), spent]
            lines.append(f"| {' | '.join(cells)} |")
    for preset in ("edm-gaussians", "edm-digits", "edm-mnist-fast"):
        result = load(f"few-steps-peers-{preset}")
        if result is None:
            continue
        counts = result["evaluations"]
        lines += [
            f"\n`{preset}`, beside peers' recommended levels, at evaluations:\n",
            f"| sampler and levels | {' | '.join(map(str, counts))} |",
            f"|{'---|' * (1 + len(counts))}",
        ]
        for name in result["runs"][0]:
            columns = zip(*(each[name] for each in result["runs"]), strict=True)
            cells = ["-" if None in each else spread(list(each)) for each in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def flow_maps() -> str:
    """The table of flow matching and flow maps: means and ranges over training seeds."""
    lines = [
        "| data, measure | preset | seeds | units | one call | 4 calls | as a flow |",
        "|---|---|---|---|---|---|---|",
    ]
    costs = (load("training-units") or {"presets": {}})["presets"]
    for data in ("gaussians", "digits", "mnist-fast"):
        points = data == "gaussians"
        measure = ENERGY if points else FRECHET
        for name in (
            "mean-flow",
            "consistency",
            *DISTILLED,
            "flow-matching",
            "flow-matching-transport",
        ):
            stem, distilled = name.removesuffix("-distilled"), name.endswith("-distilled")
            preset = f"{stem}-{data}{'-distilled' * distilled}"
            result = load(f"gaussians-{preset}" if points else preset)
            if result is None:
                continue
            rows = result["seeds"]
            found = {
                label: spread([row["samplings"][label][measure.key] for row in rows])
                for label in (rows[0]["samplings"] if points else ())
            }
            if not points:
                label = "one call" if name in ("mean-flow", "consistency") else "as set"
                found = {label: spread([row["metrics"][measure.key] for row in rows])}
            one, _, four = (found.pop(each, "") for each in ("one call", "2 calls", "4 calls"))
            flow = "; ".join(f"{label}: {value}" for label, value in list(found.items())[:1])
            took = [row["units"] for row in rows if "units" in row]
            took = took or [costs[name]["units"] for name in (preset,) if name in costs]
            units = f"{rounded(statistics.median(took)):,.0f}" if took else ""
            cells = [
                f"{data.replace('mnist-fast', 'MNIST 16x16')}, {measure.label}",
                f"`{preset}`",
                str(len(rows)),
                units,
                one,
                four,
                flow,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


NAMED = {
    "edm": "EDM",
    "slcd": "SLCD",
    "gan": "GAN",
    "score-gan": "Score GAN",
    "mean-flow": "MeanFlow",
    "consistency": "consistency",
    "flow-matching": "flow matching",
    "discriminator-flow": "Discriminator Flow, trained for so many",
    "diffode-gan": "DiffODE-GAN, trained for so many",
    "diffusion-gan": "Diffusion-GAN, trained for so many",
}
"""What tables call the plane's models."""


def plane() -> str:
    """Every model at 1 to 28 passes: means and ranges over seeds, the nearest of a column in bold."""
    tables = []
    for data, measure in (("gaussians", ENERGY), ("digits", FRECHET), ("mnist", FRECHET)):
        rows = (load(f"plane-{data}") or {"rows": []})["rows"]
        found: dict[str, dict[int, list[float]]] = {}
        for row in rows:
            if measure.key in row:
                at = found.setdefault(row["model"], {}).setdefault(row["passes"], [])
                at.append(row[measure.key])
        counts = sorted({passes for cells in found.values() for passes in cells})
        least = {
            passes: min(statistics.fmean(c[passes]) for c in found.values() if passes in c)
            for passes in counts
        }
        lines = [
            f"{data.capitalize().replace('Mnist', 'MNIST 16x16')}, {measure.label}:\n",
            f"| model | {' | '.join(map(str, counts))} |",
            f"|{'---|' * (1 + len(counts))}",
        ]
        for model, cells in found.items():
            told = [spread(cells[passes]) if passes in cells else "-" for passes in counts]
            nearest = [
                passes in cells and statistics.fmean(cells[passes]) == least[passes]
                for passes in counts
            ]
            marked = (f"**{cell}**" if n else cell for cell, n in zip(told, nearest, strict=True))
            first, _, rest = model.partition(",")
            name = NAMED[model] if not rest else f"{first.replace('-', ' ').title()},{rest}"
            lines.append(f"| {name} | {' | '.join(marked)} |")
        if found:
            tables.append("\n".join(lines))
    return "\n\n".join(tables)


def own_pictures() -> str:
    """The table of four recipes on a folder of pictures."""
    result = load("emoji")
    assert result is not None
    lines = ["| recipe | Fréchet | precision | recall | the sheet |", "|---|---|---|---|---|"]
    for name, found in result["recipes"].items():
        m = found["metrics"]
        figures = f"{m['frechet']:.3g} | {m['precision']:.2g} | {m['recall']:.2g}"
        lines.append(f"| `{name}` | {figures} | {found['sheet']} |")
    return "\n".join(lines)


def evaluation() -> str:
    """Whether distances rise with damage, and whether few samples rank models as many do."""
    names = {"frechet": "Fréchet", "kid": "KID", "mind": "MIND", "fdr": "FDr"}
    sanity, ranks = load("feature-sanity"), load("rank-agreement")
    assert sanity is not None
    lines = [
        f"| network | distance | {' | '.join(sanity['levels'])} |",
        f"|{'---|' * (2 + len(sanity['levels']))}",
    ]
    marks = {"rises": "", "undecided": " ?", "falls": " **falls**"}
    for network, damages in sanity["values"].items():
        for key in next(iter(damages.values())):
            cells = []
            for damage, values in damages.items():
                figures = map(statistics.fmean, values[key])
                means = (f"{each:.3g}" if each >= 1 else f"{each:.2g}" for each in figures)
                said = marks[sanity["verdicts"][network][damage][key]]
                cells.append(" → ".join(means) + said)
            lines.append(f"| {network} | {names[key]} | {' | '.join(cells)} |")
    lines += [
        "",
        "![What the damages look like, and Fréchet distances under them](feature-sanity.png)",
    ]
    if ranks is None:
        return "\n".join(lines)
    lines += [
        "",
        "| model | Fréchet at 10,000 | MIND at 1,000 | KID at 1,000 | Fréchet at 1,000 |",
        "|---|---|---|---|---|",
    ]
    for model, row in sorted(ranks["models"].items(), key=lambda each: each[1]["frechet of all"]):
        parts = (spread(row["parts"][key]) for key in ("mind", "kid", "frechet"))
        lines.append(f"| {model} | {row['frechet of all']:.3g} | {' | '.join(parts)} |")
    taus = (
        f"{t['tau']:.2f} [{t['low']:.2f}, {t['high']:.2f}]" for t in ranks["agreement"].values()
    )
    lines.append(f"| Kendall's τ with the first column | | {' | '.join(taus)} |")
    return "\n".join(lines)


def explorer() -> str:
    """What the explorer's page weighs, and what its frames cost."""
    result = load("explorer")
    assert result is not None
    states = result["states"]
    first = max(row["first_motion_ms"] for row in states.values()) / 1000
    runs = "one run" if result["attempts"] == 1 else f"the best of {result['attempts']} runs"
    lines = [
        f"The page has {result['page_bytes'] / 1000:.0f} kB without runs; particles first move within "
        f"{first:.1f} s. Milliseconds of a frame, computed and drawn with all that goes on beside it, "
        f"in Chromium {result['browser'].split('.')[0]}, {runs}: the median by the clock, "
        f"what nine of ten frames stay below, and the main thread's processor time, a mean over frames, "
        f"and its ratio to the first row's.",
        "",
        "| field and carrier | target | median | nine of ten | processor time | relative |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in states.items():
        figures = [row[key] for key in ("median_ms", "slow_ms", "cpu_ms", "cpu_ratio")]
        cells = " | ".join(f"{value:.1f}" for value in figures)
        lines.append(f"| {name} | {row['target_ms']} | {cells} |")
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """Pages as they should be: what stands between a page's pairs of marks are tables of results."""
    tables = {
        "README.md": [four_models],
        "docs/measurements.md": [table, plane],
        "docs/images.md": [image_table],
        "docs/few-steps.md": [few_steps],
        "docs/flow-maps.md": [flow_maps],
        "docs/data.md": [own_pictures],
        "docs/explorer.md": [explorer],
        "docs/evaluation.md": [evaluation],
    }
    found = {}
    for name, contents in tables.items():
        parts = iter(contents)
        found[ROOT / name] = re.sub(
            f"{BEGIN}.*?{END}",
            lambda _, parts=parts: f"{BEGIN}\n{next(parts)()}\n{END}",
            (ROOT / name).read_text(),
            flags=re.DOTALL,
        )
    return found


def main() -> None:
    """Record all results."""
    record_presets()
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
