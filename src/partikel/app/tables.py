"""Results as tables on a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len

_SAMPLES = (
    *("data", "samples", "split", "seed", "features"),
    *("steps", "times", "stop", "solver", "guidance", "nfe"),
)
_LIKELIHOOD = ("data", "points", "split", "seed", "method", "divergence", "inference", "draws")
_OF = {"ode": "log-likelihood of the ODE", "elbo": "lower bound (ELBO) of the SDE"}

SENTENCE = 12
"""Letters to which a column of sentences may shrink."""


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, of which nothing is cut.

    What is no terminal gets a line for each row. In a terminal sentences wrap, and where it is too narrow
    for columns, each row is a paragraph.
    """
    head, lines = _drawn(header, rows, _room())
    rule = "─" * max(map(cell_len, [*head, *lines]), default=0)
    print("\n".join([title, "", *head, *([rule] if head else []), *lines, ""]))


def _drawn(
    header: Sequence[str], rows: Sequence[Sequence[str]], room: int | None
) -> tuple[list[str], list[str]]:
    """The lines of a header, none where rows are paragraphs, and those of the rows."""
    columns = [*zip(header, *rows, strict=True)]
    widths = [max(map(cell_len, column)) for column in columns]
    least = [
        max([min(SENTENCE, width), *(cell_len(word) for cell in column for word in cell.split())])
        for width, column in zip(widths, columns, strict=True)
    ]
    while room is not None and sum(widths) + 2 * (len(widths) - 1) > room:
        wide = [width if width > few else 0 for width, few in zip(widths, least, strict=True)]
        if not any(wide):
            return [], [line for row in rows for line in _paragraph(header, row, room)]
        widths[wide.index(max(wide))] -= 1

    def lines(row: Sequence[str]) -> list[str]:
        cells = map(_wrapped, row, widths)
        return [
            "  ".join(
                f"{part}{' ' * (width - cell_len(part))}"
                for part, width in zip(parts, widths, strict=True)
            ).rstrip()
            for parts in zip_longest(*cells, fillvalue="")
        ]

    return lines(header), [line for row in rows for line in lines(row)]


def _room() -> int | None:
    """Letters on a line of the terminal; None where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _paragraph(header: Sequence[str], row: Sequence[str], room: int) -> list[str]:
    """A row by itself, its first cell above the others, each after the name of its column."""
    others = zip(header[1:], row[1:], strict=True)
    said = "; ".join(f"{name}: {cell}" if name else cell for name, cell in others if cell)
    return [*_wrapped(row[0], room), *_wrapped(said, room, "  ")]


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """A text in lines, of whose words none is broken."""
    if cell_len(indent + text) <= width:
        return [indent + text]
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, **whole)


def number(value: Any) -> str:
    """A figure with three digits, a word as it is."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def placed(title: str, found: Mapping[str, Any]) -> None:
    """What placed nodes are worth, beside the model's own grid."""
    what = {
        "path": "root mean square distance from the end of converged paths",
        "data": "distance to validation data",
    }[found["criterion"]]
    rows = [
        ["own grid", number(found["before"])],
        ["placed", number(found["error"])],
        ["solver", found["solver"] or "the run's own"],
        ["evaluations", number(found["evaluations"])],
        ["times", " ".join(f"{t:.6g}" for t in found["times"])],
    ]
    table(f"{title}: {found['steps']} steps", ["nodes", what], rows)


def presets(contents: Mapping[str, Mapping[str, Any]]) -> None:
    """A line for each preset: its name, what was measured first, and what it is.

    A terminal too narrow for sentences gets none; what is no terminal gets them whole.
    """
    header, rows = ("preset", "measured", "about"), []
    for name, content in contents.items():
        measured, said = content.get("measured") or {}, "-"
        if measured:
            first = next(iter(measured))
            said = f"{first} {number(measured[first])}, {measured['cpu_seconds']} s"
        rows.append((name, said, content.get("about", "")))
    room = _room()
    head, lines = _drawn(header, rows, None)
    narrow = room is not None and max(map(cell_len, lines)) > room
    if narrow:
        head, lines = _drawn(header[:2], [row[:2] for row in rows], room)
    print("\n".join(head + lines))
    if narrow:
        print("\n'partikel presets NAME' shows one whole, 'partikel presets mnist' lists some.")


def comparison(summaries: Sequence[Any]) -> None:
    """A table for each data set: a column for each run, and one for the data themselves."""
    for data in dict.fromkeys(s.protocol["data"] for s in summaries):
        those = [s for s in summaries if s.protocol["data"] == data]
        rows = [
            ["field", *(s.field for s in those), ""],
            ["carrier", *(s.carrier for s in those), ""],
            ["CPU seconds", *(f"{s.cpu_seconds:.0f}" for s in those), ""],
        ]
        for name in dict.fromkeys(key for s in those for key in s.shown):
            values = [s.shown.get(name) for s in those]
            values.append(those[0].protocol["reference"].get(name))
            rows.append([name, *(number(value) for value in values)])
        titles = [s.title for s in those]
        names = [s.title if titles.count(s.title) == 1 else s.name for s in those]
        table(data, ["", *names, "data vs data"], rows)


def evaluation(title: str, result: Mapping[str, Any]) -> None:
    """The measures of a model beside those of the data and of baselines."""
    model = {**result["metrics"], **result["left_out"]}
    columns = {"model": model, "data vs data": result["reference"], **result["baselines"]}
    rows = [[k, *(number(row.get(k)) for row in columns.values())] for k in model]
    table(title, ["measure", *columns], rows)
    _protocol(result["protocol"], _SAMPLES)


def curve(title: str, record: Mapping[str, Any]) -> None:
    """The measures of a model along its number of steps."""
    names = list(record["reference"])
    value = {"nfe": "steps", "stop": "stop"}[record["along"]]
    rows = [
        [f"{p[value]}", f"{p['nfe']}", *(number(p["metrics"][k]) for k in names)]
        for p in record["points"]
    ]
    rows.append(["data", "", *(number(record["reference"][k]) for k in names)])
    table(title, [value, "nfe", *names], rows)
    _protocol(record["protocol"], _SAMPLES)


def neighbours(title: str, record: Mapping[str, Any]) -> None:
    """The shares of samples, and of test images, that are copies, and how near they are."""
    figures, protocol = record["figures"], record["protocol"]
    kinds = [name.removeprefix("memorised ") for name in figures if "memorised" in name]
    rows = [
        [name, *(number(figures[f"{key} {kind}"]) for kind in kinds)]
        for name, key in {"memorised": "memorised", "median distance": "distance of"}.items()
    ]
    table(title, ["measure", *kinds], rows)
    _protocol(protocol, tuple(protocol))


def likelihood(title: str, record: Mapping[str, Any]) -> None:
    """A likelihood with its errors, and whether it is that of the run's own sampler."""
    rows = [["nats per point", number(record["log_prob"]), number(record["standard_error"])]]
    if record["bits_per_dim"] is not None:
        rows.append(["bits/dim", f"{record['bits_per_dim']:.4f}", number(record["bits_error"])])
    if record["solver_error"] is not None:
        rows.append(["error of the solver", number(record["solver_error"]), "-"])
    if "agrees" in record:
        limit = number(record["same_law_quantile"])
        rows.append(["ODE to sampler", number(record["ode_to_sampler"]), f"limit {limit}"])
    what = _OF.get(record["protocol"]["method"], "log-likelihood of the sampler's own steps")
    table(f"{title}: {what}", ["", "value", "±"], rows)
    _protocol(record["protocol"], _LIKELIHOOD)
    if record.get("agrees") is False:
        print(
            "NOTE: the ODE's samples are not those of this run's sampler, so that this is the "
            "likelihood of another model; --method map is that of a sampler by Euler's method."
        )


def _protocol(protocol: Mapping[str, Any], keys: Sequence[str]) -> None:
    print(", ".join(f"{key}: {value}" for key, value in protocol.items() if key in keys))
