"""Pages of results: what the paper says, what was measured and the verdict, beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from partikel.studies.item import FAILS, HOLDS, OPEN

VERDICTS = (HOLDS, FAILS, OPEN)
RULE = """\
Interrupted, the same command goes on. A claim **holds** where it does on every seed of a data set, and
**does not hold** where it does on none; effects within the stated noise, and seeds that disagree, leave
it undecided."""


def page(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result, as :func:`partikel.studies.reproduce.reproduce` writes it.

    Args:
        result: content of an item's JSON file.
    """
    name, scale = result["item"], result["scale"]
    parts = [
        f"# {result['title']}",
        f"{result['source']} · `partikel reproduce {name} --scale {scale}`",
        result["about"],
        "## Claims",
        table(
            ("the paper", "on", "measured", "verdict"),
            [
                (f"{f['claim']} ({f['source']})", f["where"], f["measured"], f"**{f['verdict']}**")
                for f in result["findings"]
            ],
        ),
        *(f"![{caption}]({file})\n\n*{caption}*" for file, caption in result["pictures"].items()),
    ]
    for each in result["tables"]:
        parts += [f"## {each['title']}", table(each["columns"], each["rows"])]
    if result["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in result["notes"])]
    if result["trained"]:
        parts += [
            "## What was trained",
            table(
                ("run", "preset", "changes", "iterations", "CPU s"),
                [
                    (
                        run,
                        f"`{each['preset']}`",
                        ", ".join(f"{k} {_plain(v)}" for k, v in each["changes"].items()) or "none",
                        each["iterations"],
                        each["cpu_seconds"],
                    )
                    for run, each in result["trained"].items()
                ],
            ),
        ]
    protocol = ", ".join(f"{key} {_plain(value)}" for key, value in result["protocol"].items())
    machine = result["machine"]
    parts += [
        "## Protocol",
        (f"{protocol}. " if protocol else "")
        + f"{machine['device']}, {machine['threads']} thread(s), torch {machine['torch']}; "
        f"{result['cpu_seconds']['training']:.0f} CPU seconds of training (shared with other items) and "
        f"{result['cpu_seconds']['measuring']:.0f} of measuring. Values of each seed: [{name}.json]"
        f"({name}.json).",
    ]
    return "\n\n".join(parts) + "\n"


def index(results: Sequence[Mapping[str, Any]], missing: Sequence[tuple[str, str]]) -> str:
    """The page that lists results.

    Args:
        results: contents of JSON files, in order.
        missing: names and titles of items without a result.
    """
    scale = results[0]["scale"] if results else "cpu"
    seconds = sum(r["cpu_seconds"]["measuring"] for r in results)
    runs = {run: each for r in results for run, each in r["trained"].items()}
    training = sum(each["cpu_seconds"] for each in runs.values())
    rows = []
    for r in results:
        verdicts = [f["verdict"] for f in r["findings"]]
        counts = [str(verdicts.count(v)) if v in verdicts else "" for v in VERDICTS]
        rows.append((f"[{r['item']}]({r['item']}.md)", r["title"], r["source"], *counts))
    rows += [(name, title, "not run yet", "", "", "") for name, title in missing]
    return (
        "\n\n".join(
            [
                f"# The papers, reproduced at the scale `{scale}`",
                f"`partikel reproduce all --scale {scale}` wrote these pages: {len(runs)} trained models "
                f"({training / 60:.0f} CPU minutes) and {seconds / 60:.0f} CPU minutes of measuring.",
                RULE,
                table(("item", "what", "paper", *VERDICTS), rows),
            ]
        )
        + "\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(each) for each in line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
