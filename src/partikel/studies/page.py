"""Pages of results: what the paper says, what was measured and the verdict, beside each other.

``page.md`` and ``index.md`` say how they look, this says what stands there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template

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
_STALE = "> **Stale**: "


def page(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result, as :func:`partikel.studies.reproduce.reproduce` writes it.

    Args:
        result: content of an item's JSON file.
    """
    counted = _counted([result])
    return _template("page.md").render(
        result=result,
        counted=counted,
        replaced=[f for f in result["findings"] if f["claim"]["replaced"]],
        effects=[_effect(number, f) for number, f in enumerate(counted, start=1)],
    )


def league(results: Sequence[Mapping[str, Any]]) -> str:
    """The page of the league, of all data sets together.

    Args:
        results: contents of its JSON files, as :func:`partikel.studies.league.run_league` writes them.
    """
    judged = [
        {**r, "effects": [_effect(number, f) for number, f in enumerate(r["findings"], start=1)]}
        for r in results
    ]
    return _template("league.md").render(results=judged, overview=_overview(results))


def _overview(results: Sequence[Mapping[str, Any]]) -> list[tuple[Sequence[str], list[Any]]]:
    """Tables of verdicts and ranks on several data sets: columns and rows, of those with all methods."""
    sizes = [len(r["values"]["trainings"]) for r in results]
    shown = [r for r, size in zip(results, sizes, strict=True) if size == max(sizes)]
    if len(shown) < 2:
        return []
    names = [r["data"] for r in shown]
    verdicts: dict[str, list[str]] = {}
    for place, r in enumerate(shown):
        for f in r["findings"]:
            row = verdicts.setdefault(f["claim"]["text"], [""] * len(shown))
            row[place] = f["judgement"]["verdict"]
    tables: list[Any] = [(("hypothesis", *names), [(text, *row) for text, row in verdicts.items()])]
    for few, head in enumerate(("one call", "more calls")):
        ranks = [r["ranks"][few] for r in shown]
        rows = [
            (place, *(each.get(place) for each in ranks))
            for place in dict.fromkeys(p for r in ranks for p in r)
        ]
        last = len(rows) + 1  # of what has no distance there
        rows.sort(key=lambda row: sum(rank or last for rank in row[1:]))
        tables.append(((f"rank, {head}", *names), rows))
    return [(columns, rows) for columns, rows in tables if rows]


def _template(name: str) -> Template:
    """A template beside this file, with what writes its tables."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, keep_trailing_newline=True)
    environment.globals["table"] = table
    environment.filters |= {"row": _row, "replaced": _replaced, "training": _training}
    environment.filters["pairs"] = _pairs
    return environment.get_template(name)


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
    runs = {run: each for r in results for run, each in r["trained"].items()}
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
    return _template("index.md").render(
        scale=scale,
        runs=runs,
        training=sum(each["cpu_seconds"] for each in runs.values()),
        measuring=sum(r["cpu_seconds"]["measuring"] for r in results),
        confidence=CONFIDENCE,
        equivalence=EQUIVALENCE,
        power=_power(fresh),
        verdicts=VERDICTS,
        rows=rows,
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


def _replaced(f: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a rule that was replaced after a first look, which counts nowhere."""
    return (*_row(f), f["claim"]["replaced"])


def _training(named: tuple[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    run, each = named
    preset, changes = f"`{each['preset']}`", _pairs(each["changes"]) or "none"
    return run, preset, changes, each["iterations"], each["cpu_seconds"]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in values.items())


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
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
