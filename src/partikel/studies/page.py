"""Pages of results: what the paper says, what was measured and the verdict, beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from partikel.studies.judgement import (
    CONFIDENCE,
    EQUIVALENCE,
    FAILS,
    HOLDS,
    INDICATED,
    LOG,
    NOT_INDICATED,
    OPEN,
    Claim,
    by_chance,
)

VERDICTS = (HOLDS, FAILS, OPEN, INDICATED, NOT_INDICATED)
RULE = (
    "Interrupted, the same command goes on. One rule judges all claims. A claim is an effect with a "
    "direction and a smallest effect of interest, both fixed beforehand. Each training seed gives one "
    f"effect, from means over evaluations. It **holds** where the whole {CONFIDENCE:.0%} interval over "
    "training seeds lies beyond the smallest effect, **does not hold** where it lies beyond it on the "
    f"other side, and is **open** else. That two things are the same holds where the {EQUIVALENCE:.0%} "
    "interval lies inside the region of equivalence. One seed only **indicates**; such claims have columns "
    "of their own. What involves neither training nor chance holds or does not."
)
_STALE = "> **Stale**: "


def page(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result, as :func:`partikel.studies.reproduce.reproduce` writes it.

    Args:
        result: content of an item's JSON file.
    """
    name, scale = result["item"], result["scale"]
    counted = [f for f in result["findings"] if not f["claim"]["replaced"]]
    parts = [
        f"# {result['title']}",
        f"{result['source']} · `partikel reproduce {name} --scale {scale}`",
        result["about"],
        "## Claims",
        table(("the paper", "on", "measured", "verdict"), list(map(_row, counted))),
        *_replaced([f for f in result["findings"] if f["claim"]["replaced"]]),
        "## Effects",
        table(
            ("claim", "on", "effect", "smallest", "measured", "95 % interval", "detectable"),
            [_effect(number, f) for number, f in enumerate(counted, start=1)],
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


def labelled(text: str, old: Sequence[str]) -> str:
    """A page with, or without, the line that says that it is stale.

    Args:
        text: a page.
        old: what it depends on and is no longer today's.
    """
    if text.startswith(_STALE):
        text = text.partition("\n\n")[2]
    if not old:
        return text
    *most, last = old
    what = f"{', '.join(most)} and {last}" if most else last
    made = f"{_STALE}made with another {what} than today's; the same command measures again."
    return f"{made}\n\n{text}"


def index(
    results: Sequence[Mapping[str, Any]],
    missing: Sequence[tuple[str, str]],
    stale: Mapping[str, Sequence[str]],
) -> str:
    """The page that lists results.

    Args:
        results: contents of JSON files, in order.
        missing: names and titles of items without a result.
        stale: what each result depends on and is no longer today's; such verdicts are not counted.
    """
    scale = results[0]["scale"] if results else "cpu"
    fresh = [r for r in results if not stale[r["item"]]]
    seconds = sum(r["cpu_seconds"]["measuring"] for r in results)
    runs = {run: each for r in results for run, each in r["trained"].items()}
    training = sum(each["cpu_seconds"] for each in runs.values())
    rows: list[tuple[str, ...]] = []
    for r in results:
        head = (f"[{r['item']}]({r['item']}.md)", r["title"], r["source"])
        if r not in fresh:
            rows.append((*head, f"stale ({', '.join(stale[r['item']])})", *[""] * len(VERDICTS)))
            continue
        verdicts = [f["judgement"]["verdict"] for f in _counted([r])]
        counts = [str(verdicts.count(v)) if v in verdicts else "" for v in VERDICTS]
        rows.append((*head, "fresh", *counts))
    rows += [(name, title, "not run yet", *[""] * (len(VERDICTS) + 1)) for name, title in missing]
    return (
        "\n\n".join(
            [
                f"# The papers, reproduced at the scale `{scale}`",
                f"`partikel reproduce all --scale {scale}` wrote these pages: {len(runs)} trained models "
                f"({training / 60:.0f} CPU minutes) and {seconds / 60:.0f} CPU minutes of measuring. "
                "`partikel reproduce all --check` says which are stale: made with other settings, another "
                "rule or other code that measures than today's. Their verdicts are not counted.",
                RULE,
                _power(fresh),
                table(("item", "what", "paper", "page", *VERDICTS), rows),
            ]
        )
        + "\n"
    )


def _counted(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [f for r in results for f in r["findings"] if not f["claim"]["replaced"]]


def _power(fresh: Sequence[Mapping[str, Any]]) -> str:
    """How many claims there are, what could have been found, and what chance alone would hold."""
    found = _counted(fresh)
    over_seeds = [f for f in found if f["judgement"]["interval"] is not None]
    reach = sorted(f["judgement"]["detectable"] for f in over_seeds if f["claim"]["unit"] == LOG)
    said = f"Fresh pages hold {len(found)} claims, {len(over_seeds)} of them over two seeds or more"
    if over_seeds:
        chance = by_chance(Claim(**f["claim"]) for f in over_seeds)
        said += f"; were every true effect just the smallest one, {chance:.1f} of these would hold by chance"
    if reach:
        middle = math.exp(reach[len(reach) // 2])
        said += (
            f". Of {len(reach)} ratios of distances the median detectable effect (found in four of five "
            f"repetitions) is a factor of {middle:.2g}, the largest {math.exp(reach[-1]):.2g}"
        )
    return said + "."


def _row(f: Mapping[str, Any]) -> tuple[str, ...]:
    claim, verdict = f["claim"], f["judgement"]["verdict"]
    return (f"{claim['text']} ({claim['source']})", f["where"], f["measured"], f"**{verdict}**")


def _effect(number: int, f: Mapping[str, Any]) -> tuple[Any, ...]:
    claim, found = f["claim"], f["judgement"]
    interval, least = found["interval"], f"{claim['least']:.3g}"
    return (
        number,
        f["where"],
        claim["effect"] + (f" ({claim['unit']})" if claim["unit"] else ""),
        f"within ±{least}" if claim["kind"] == "same" else f"above {least}",
        found["mean"],
        None if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}",
        found["detectable"],
    )


def _replaced(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Verdicts of rules that were replaced after a first look, which count nowhere."""
    if not findings:
        return []
    rows = [(*_row(f), f["claim"]["replaced"]) for f in findings]
    heads = ("the paper", "on", "measured", "verdict", "why it was replaced")
    return ["### By the first rules", table(heads, rows)]


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
