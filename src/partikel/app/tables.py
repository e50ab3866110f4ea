"""Results as tables on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_SAMPLES = (
    *("data", "samples", "split", "seed", "features"),
    *("steps", "times", "stop", "solver", "guidance", "nfe"),
)
_LIKELIHOOD = ("data", "points", "split", "seed", "method", "divergence", "inference", "draws")
_OF = {"ode": "log-likelihood of the ODE", "elbo": "lower bound (ELBO) of the SDE"}

WIDE = 10_000
"""Letters on a line of what is no terminal."""


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, of which nothing is cut.

    What is no terminal gets a line for each row. In a terminal sentences wrap, and where it is too narrow
    for columns of whole words, each row is a paragraph.
    """
    screen = console()
    drawn = _columns(screen, header, rows, SIMPLE_HEAD)
    if drawn is None:
        paragraphs = Table(box=None, show_header=False, pad_edge=False)
        for first, *others in rows:
            named = zip(header[1:], others, strict=True)
            said = "; ".join(f"{name}: {cell}" if name else cell for name, cell in named if cell)
            paragraphs.add_row(Text(first, overflow="fold"))
            paragraphs.add_row(Padding(Text(said, overflow="fold"), (0, 0, 0, 2)))
        drawn = _text(screen, paragraphs)
    print(f"{title}\n\n{drawn}\n")


def _columns(
    screen: Console, header: Sequence[str], rows: Sequence[Sequence[str]], box: Box | None
) -> str | None:
    """Rows under their header, or None where the console is too narrow for whole words."""
    made = Table(box=box, show_edge=False, pad_edge=False, header_style="")
    for column in zip(header, *rows, strict=True):
        sentences = any(" " in cell for cell in column[1:])
        made.add_column(Text(column[0]), no_wrap=not sentences, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    drawn = _text(screen, made)
    whole = all(word in drawn for row in (header, *rows) for cell in row for word in cell.split())
    return drawn if whole else None


def console(stderr: bool = False) -> Console:
    """As wide as the terminal; where there is none, no line is broken.

    Args:
        stderr: whether it writes there, instead of to stdout.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDE)


def _text(screen: Console, drawn: Table) -> str:
    with screen.capture() as captured:
        screen.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines())


def number(value: Any) -> str:
    """A figure with three digits, a word as it is."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def placed(title: str, found: Mapping[str, Any]) -> None:
    """What placed nodes are worth, beside the model's own grid."""
    what = {
        "path": "root mean square distance from the end of converged paths",
        "data": "distance to data",
    }[found["criterion"]]
    rows = [
        ["own grid", number(found["before"])],
        ["placed", number(found["error"])],
        ["solver", found["solver"] or "the run's own"],
        ["evaluations", number(found["evaluations"])],
        ["times", " ".join(f"{t:.6g}" for t in found["times"])],
    ]
    table(f"{title}: {found['steps']} step{'s' * (found['steps'] > 1)}", ["nodes", what], rows)


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
    names, figures, about = (max(map(len, column)) for column in zip(*rows, strict=True))
    screen = console()
    narrow = screen.width < names + figures + about + 4
    shown = 2 if narrow else 3
    drawn = _columns(screen, header[:shown], [row[:shown] for row in rows], None)
    print(drawn or "\n".join(row[0] for row in rows))
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
