"""One self-contained page about one run or several: pictures, measures, protocol, settings.

Everything is inside the file (images as data URIs, inline CSS and SVG, no scripts), so that it can
be sent, archived and opened offline. Runs of several models are laid out as what they are, a field
and what carries it: a column for each carrier, a row for each field that several carry.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from partikel.app.show import plots
from partikel.errors import DataError
from partikel.files import write_whole


@dataclass(frozen=True)
class RunSummary:
    """What a page tells about a run.

    Attributes:
        name: of the run, for links; made unique on a page.
        title: of the model, as readers know it.
        field: what moves, in words; runs with equal words share a row.
        carrier: "particles" or "generator".
        metrics: measures by name; texts such as "5/5" count as fractions.
        protocol: how they were measured. Known keys: "data" (only runs of equal data are compared)
            and "reference" (the measures of data against data).
        curve: (CPU seconds, value) during training.
        curve_name: the metric that the curve shows.
        cpu_seconds: of training.
        iterations: done.
        parameters: number of trained weights.
        samples: a .png picture.
        animation: a .gif picture.
        settings: the resolved configuration, as YAML.
        left_out: by name, why a measure could not be taken; it stands in its place.
        planar: whether the pictures show points of the plane, whose colours need a key.
    """

    name: str
    title: str
    field: str
    carrier: str
    metrics: Mapping[str, float | str]
    protocol: Mapping[str, Any] = dataclass_field(default_factory=dict)
    curve: Sequence[tuple[float, float]] = ()
    curve_name: str = ""
    cpu_seconds: float = 0.0
    iterations: int = 0
    parameters: int = 0
    samples: Path | None = None
    animation: Path | None = None
    settings: str = ""
    left_out: Mapping[str, str] = dataclass_field(default_factory=dict)
    planar: bool = True


@dataclass(frozen=True)
class Measure:
    """How a metric is written, and what is better.

    Attributes:
        label: in HTML.
        better: "lower", "higher", or "like data": as near as can be to what data themselves have,
            where that is known, else ``fallback``.
        fallback: the direction without a reference.
    """

    label: str
    better: Literal["lower", "higher", "like data"]
    fallback: Literal["lower", "higher"] = "lower"


MEASURES: dict[str, Measure] = {
    "energy": Measure("energy", "lower"),
    "mmd2": Measure("MMD²", "lower"),
    "sliced_w2": Measure("sliced W₂", "lower"),
    "w2": Measure("W₂", "lower"),
    "within_3sigma": Measure("within 3σ", "like data", "higher"),
    "modes_covered": Measure("modes", "higher"),
    "modes": Measure("modes", "higher"),
    "mode_tv": Measure("mode TV", "lower"),
    "nll": Measure("NLL", "like data", "lower"),
    "frechet": Measure("Fréchet", "lower"),
    "kid": Measure("KID", "lower"),
    "precision": Measure("precision", "higher"),
    "recall": Measure("recall", "higher"),
    "density": Measure("density", "higher"),
    "coverage": Measure("coverage", "higher"),
}
"""Metrics whose direction is known; others are shown without one.

Points crowded on the modes have a *lower* negative log-likelihood and a *larger* share within 3σ
than data have: there the best is what comes nearest to data.
"""

CARRIERS = {
    "particles": ("Free particles", "integrate the field from noise to a sample"),
    "generator": ("A generator", "is trained so that its outputs follow the field"),
}


def write_page(
    path: str | Path,
    title: str,
    runs: Sequence[RunSummary],
    intro: str = "",
    command: str = "",
) -> None:
    """Write a page about runs, whole or not at all.

    Args:
        path: the .html file.
        title: of the page.
        runs: at least one; with several, those of equal data are compared.
        intro: text; blank lines separate paragraphs, <b>, <i> and <code> mean what they do in HTML.
        command: what makes this page again.

    Raises:
        DataError: if a picture is missing.
        ValueError: for no runs.
    """
    if not runs:
        raise ValueError("a page needs at least one run")
    groups: dict[str, list[RunSummary]] = {}
    for run in _distinct(runs):
        groups.setdefault(str(run.protocol.get("data", "")), []).append(run)
    body = [_group(data, group, len(groups) > 1) for data, group in groups.items()]
    paragraphs = "".join(f"<p>{_prose(text)}</p>" for text in intro.split("\n\n") if text.strip())
    key = _KEY if any(run.planar and (run.samples or run.animation) for run in runs) else ""
    made = f"<footer><p>Made by</p><pre>{escape(command)}</pre></footer>" if command else ""
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><div class="lead">{paragraphs}</div>{key}</header>\n'
        f"<main>\n{''.join(body)}</main>\n{made}\n</body>\n</html>\n"
    )
    write_whole(path, page)


# --- parts of the page


def _group(data: str, runs: list[RunSummary], titled: bool) -> str:
    heading = f"<h2>{escape(data)}</h2>" if titled and data else ""
    strokes = _strokes(runs)
    if len(runs) == 1:
        (run,) = runs
        parts = [_card(run, strokes[run.name], alone=True)]
    else:
        parts = [_matrix(runs, strokes), _table(runs, strokes)]
    return f"<section>{heading}{''.join(parts)}{_curves(runs, strokes)}</section>\n"


def _matrix(runs: list[RunSummary], strokes: Mapping[str, plots.Stroke]) -> str:
    """A column for each carrier; a row for each field with several, then the other fields."""
    carriers = [name for name in CARRIERS if any(run.carrier == name for run in runs)]
    carriers += sorted({run.carrier for run in runs} - set(CARRIERS))
    cells = []
    for name in carriers:
        heading, about = CARRIERS.get(name, (name, ""))
        cells.append(f'<div class="carrier"><b>{escape(heading)}</b> {escape(about)}</div>')

    def heading_of(moved: str) -> str:
        return f'<h3 class="field"><span>field</span> {_formula(moved)}</h3>'

    def cell(here: list[RunSummary], heading: str = "") -> str:
        cards = "".join(_card(run, strokes[run.name]) for run in here)
        return f'<div class="cell">{heading}{cards}</div>'

    single: dict[str, list[str]] = {name: [] for name in carriers}
    for moved in dict.fromkeys(run.field for run in runs):
        row = {
            name: [run for run in runs if run.field == moved and run.carrier == name]
            for name in carriers
        }
        taken = [name for name in carriers if row[name]]
        if len(taken) == 1:
            single[taken[0]].append(cell(row[taken[0]], heading_of(moved)))
        else:
            cells.append(f'<div class="shared">{heading_of(moved)}</div>')
            cells += [cell(row[name]) for name in carriers]
    for row in zip_longest(*single.values(), fillvalue='<div class="cell"></div>'):
        cells += row
    return f'<div class="matrix" style="--columns:{len(carriers)}">{"".join(cells)}</div>'


def _card(run: RunSummary, stroke: plots.Stroke, alone: bool = False) -> str:
    pictures = []
    for path, caption in ((run.animation, _motion(run)), (run.samples, "samples")):
        if path is not None:
            image = f'<img src="{_data_uri(path, run)}" alt="{escape(run.title)}: {caption}">'
            pictures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    facts = [
        f"{_count(run.parameters)} parameters",
        f"{run.iterations:,} iterations".replace(",", " "),
        f"{_duration(run.cpu_seconds)} CPU",
    ]
    level = "h3" if alone else "h4"
    return (
        f'<article id="{escape(run.name)}"><{level} class="model">{_swatch(stroke)}'
        f"{escape(run.title)}</{level}>"
        f'<p class="facts">{_structure(run)}</p>'
        f'<div class="pictures">{"".join(pictures)}</div>'
        f'<p class="facts">{" · ".join(facts)}</p>'
        f"{_measures(run) if alone else ''}"
        f"{_details('Protocol', _pairs(run.protocol))}"
        f"{_details('Settings', f'<pre>{escape(run.settings)}</pre>' if run.settings else '')}"
        "</article>"
    )


def _motion(run: RunSummary) -> str:
    return "over training" if run.carrier == "generator" else "over generation"


def _measures(run: RunSummary) -> str:
    """The measures of a run by itself, beside what data have."""
    reference = run.protocol.get("reference") or {}
    head = '<th></th><th class="n">model</th>' + ('<th class="n">data</th>' if reference else "")
    rows = []
    for name, value in _shown(run).items():
        data = f'<td class="n">{_number(reference.get(name))}</td>' if reference else ""
        rows.append(
            f'<tr><th scope="row">{_label(name, bool(reference))}</th>'
            f'<td class="n">{_number(value)}</td>{data}</tr>'
        )
    if not rows:
        return ""
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _shown(run: RunSummary) -> dict[str, Any]:
    """What stands in the place of each measure."""
    return {**run.metrics, **run.left_out}


def _table(runs: list[RunSummary], strokes: Mapping[str, plots.Stroke]) -> str:
    """All runs against all measures, the best of each marked."""
    names = list(dict.fromkeys(name for run in runs for name in _shown(run)))
    names.sort(key=lambda name: list(MEASURES).index(name) if name in MEASURES else len(MEASURES))
    reference = next((r.protocol["reference"] for r in runs if r.protocol.get("reference")), {})
    best = {name: _best(name, runs, reference.get(name)) for name in names}
    head = "".join(f'<th class="n">{_label(name, name in reference)}</th>' for name in names)
    rows = []
    for run in runs:
        cells = "".join(
            f'<td class="n{" best" if run.name in best[name] else ""}">'
            f"{_number(_shown(run).get(name))}</td>"
            for name in names
        )
        rows.append(
            f'<tr><th scope="row"><a href="#{escape(run.name)}">{_swatch(strokes[run.name])}'
            f"{escape(run.title)}</a><small>{_structure(run)}</small></th>"
            f'{cells}<td class="n">{_count(run.parameters)}</td>'
            f'<td class="n">{_duration(run.cpu_seconds)}</td></tr>'
        )
    if reference:
        cells = "".join(f'<td class="n">{_number(reference.get(name))}</td>' for name in names)
        rows.append(
            f'<tr class="reference"><th scope="row">data against data</th>{cells}'
            "<td></td><td></td></tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}<th class="n">parameters</th>'
        f'<th class="n">CPU</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        '<p class="note">↓ lower is better, ↑ higher is better, ≈ best is what data themselves '
        "have; the best of a column is marked. CPU is the time of training.</p>"
    )


def _curves(runs: list[RunSummary], strokes: Mapping[str, plots.Stroke]) -> str:
    """Quality against CPU seconds, one figure for each metric that curves show."""
    figures = []
    for name in dict.fromkeys(run.curve_name for run in runs if len(run.curve) > 1):
        several = [run for run in runs if run.curve_name == name and len(run.curve) > 1]
        titles = [run.title for run in several]
        here = {
            run.title if titles.count(run.title) == 1 else f"{run.title} ({run.name})": run
            for run in several
        }
        values = [y for run in here.values() for _, y in run.curve if y > 0]
        log = bool(values) and max(values) > 10 * min(values)
        reference = next((r.protocol.get("reference") or {} for r in here.values()), {})
        noise = _value(reference.get(name))
        figure = plots.curves_figure(
            {title: run.curve for title, run in here.items()},
            "CPU seconds",
            f"{_plain(name)} during training",
            log=log,
            level=None if noise is None else ("data against data", noise),
            floor=abs(noise) if noise else None,  # an unbiased estimate of 0 is as often negative
            strokes={title: strokes[run.name] for title, run in here.items()},
        )
        caption = ""
        if log and noise and any(y < abs(noise) for run in here.values() for _, y in run.curve):
            caption = f"<figcaption>Values below {_number(abs(noise))}, as data have them among "
            caption += "themselves, are drawn at the bottom.</figcaption>"
        figures.append(f'<figure class="curves">{plots.themed_svg(figure)}{caption}</figure>')
    if figures and len(runs) > 1 and {run.carrier for run in runs} >= set(CARRIERS):
        figures.append(
            '<p class="note">A colour for each field; solid lines are free particles, dashed lines '
            "generators.</p>"
        )
    return "".join(figures)


# --- small things


def _distinct(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The runs, with a number after a name that occurred before."""
    result: list[RunSummary] = []
    for run in runs:
        name, count = run.name, 1
        while any(other.name == name for other in result):
            count += 1
            name = f"{run.name}-{count}"
        result.append(replace(run, name=name))
    return result


def _prose(text: str) -> str:
    return re.sub(r"&lt;(b|i|code)&gt;(.*?)&lt;/\1&gt;", r"<\1>\2</\1>", escape(text, quote=False))


def _strokes(runs: Sequence[RunSummary]) -> dict[str, plots.Stroke]:
    """A colour for each field (further runs of it take others), dashes for generators."""
    taken: dict[tuple[str, int], int] = {}
    seen: dict[tuple[str, str], int] = {}
    strokes = {}
    for run in runs:
        again = seen.get((run.field, run.carrier), 0)
        seen[run.field, run.carrier] = again + 1
        color = taken.setdefault((run.field, again), len(taken))
        strokes[run.name] = plots.Stroke(
            plots.SERIES[color % len(plots.SERIES)], run.carrier == "generator"
        )
    return strokes


def _best(name: str, runs: Sequence[RunSummary], reference: Any) -> set[str]:
    """Names of the runs that are best; none where the direction is unknown or all are equal."""
    values = {run.name: _value(run.metrics.get(name)) for run in runs}
    known = {run: value for run, value in values.items() if value is not None}
    if name not in MEASURES or len(known) < 2 or len(set(known.values())) == 1:
        return set()
    measure, target = MEASURES[name], _value(reference)
    better = measure.better
    if better == "like data" and target is None:
        better = measure.fallback
    if better == "like data" and target is not None:
        known = {run: abs(value - target) for run, value in known.items()}
    first = max(known.values()) if better == "higher" else min(known.values())
    return {run for run, value in known.items() if value == first}


def _value(value: Any) -> float | None:
    """A number, or a text "5/5" as a fraction; None for what is neither, or not finite."""
    try:
        if isinstance(value, str) and "/" in value:
            part, whole = value.split("/")
            value = float(part) / float(whole)
        value = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return value if abs(value) < float("inf") else None


def _number(value: Any) -> str:
    """Three significant digits, in HTML."""
    if value is None:
        return '<span class="none">–</span>'
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    if isinstance(value, int) or abs(value) >= 1000:
        text = f"{value:,.0f}".replace(",", " ")
    else:
        text = f"{value:.3g}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        text = f"{mantissa}·10<sup>{int(exponent)}</sup>"
    return text.replace("-", "−")


def _label(name: str, has_reference: bool) -> str:
    if name not in MEASURES:
        return escape(_plain(name))
    measure = MEASURES[name]
    better = measure.better
    if better == "like data" and not has_reference:
        better = measure.fallback
    arrow = {"lower": "↓", "higher": "↑", "like data": "≈"}[better]
    return f'{measure.label}&nbsp;<span class="arrow">{arrow}</span>'


def _structure(run: RunSummary) -> str:
    carrier = CARRIERS.get(run.carrier, (run.carrier, ""))[0].lower().removeprefix("a ")
    return f"{_formula(run.field)} × {escape(carrier)}"


def _formula(text: str) -> str:
    """Text in HTML, with "x_y" as x and a subscript y."""
    return re.sub(r"(?<=\w)_(\w+)", r"<sub>\1</sub>", escape(text))


def _plain(name: str) -> str:
    return MEASURES[name].label if name in MEASURES else name.replace("_", " ")


def _count(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n >= 1e5 else f"{n / 1e3:.1f} k" if n >= 1e3 else str(n)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _swatch(stroke: plots.Stroke) -> str:
    dash = ' stroke-dasharray="5 3"' if stroke.dashed else ""
    return (
        '<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true">'
        f'<path d="M1 4H21" stroke="{stroke.color}" stroke-width="3"{dash}/></svg>'
    )


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>" if content else ""


def _pairs(values: Mapping[str, Any]) -> str:
    """A description list of what is not shown elsewhere."""
    rows = []
    for key, value in values.items():
        if key == "reference":
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        rows.append(f"<dt>{escape(_plain(str(key)))}</dt><dd>{escape(str(value))}</dd>")
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def _data_uri(path: Path, run: RunSummary) -> str:
    kinds = {".png": "image/png", ".gif": "image/gif"}
    path = Path(path)
    if path.suffix.lower() not in kinds:
        raise DataError(
            f"{path} of the run '{run.name}' cannot be shown on a page: use .png or .gif"
        )
    try:
        content = path.read_bytes()
    except OSError:
        raise DataError(
            f"the picture {path} of the run '{run.name}' cannot be read: make it again."
        ) from None
    return f"data:{kinds[path.suffix.lower()]};base64,{base64.b64encode(content).decode()}"


_KEY = (
    '<p class="note">In pictures of points, <span style="color:var(--data)">◆</span> are data and '
    '<span style="color:var(--generated)">●</span> are generated. Arrows are the field at some of '
    "the points; a grey background is the potential that a discriminator's field ascends, darker "
    "where it is higher. Both are scaled anew in every frame.</p>"
)

_SHEET = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_STYLE = "\n" + _SHEET.split("\n", 1)[1]  # without the sheet's own remark
_STYLE = _STYLE.replace("@data", plots.DATA).replace("@generated", plots.GENERATED)
