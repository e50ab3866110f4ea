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
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup, escape

from partikel.app.show import plots
from partikel.errors import DataError
from partikel.files import TEXT, read_plain, write_whole
from partikel.metrics.measures import MEASURES


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
        courses: what was watched during training, by name: (CPU seconds, value).
        cpu_seconds: of training.
        iterations: done.
        parameters: number of trained weights.
        samples: a .png picture.
        animation: a .gif picture.
        real: a .png picture of the data, to show beside images.
        data: what they are, in a line.
        classes: name -> a .png picture of samples of the class, over real ones.
        nearest: .png pictures of samples and of their nearest training images, row by row.
        copies: how many samples look like copies of those, in words.
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
    courses: Mapping[str, Sequence[tuple[float, float]]] = dataclass_field(default_factory=dict)
    cpu_seconds: float = 0.0
    iterations: int = 0
    parameters: int = 0
    samples: Path | None = None
    animation: Path | None = None
    real: Path | None = None
    data: str = ""
    classes: Mapping[str, Path] = dataclass_field(default_factory=dict)
    nearest: tuple[Path, Path] | None = None
    copies: str = ""
    settings: str = ""
    left_out: Mapping[str, str] = dataclass_field(default_factory=dict)
    planar: bool = True

    @property
    def shown(self) -> dict[str, Any]:
        """What stands in the place of each measure."""
        return {**self.metrics, **self.left_out}


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
    page = _template().render(
        title=title,
        intro=[text for text in intro.split("\n\n") if text.strip()],
        command=command,
        style=Markup(_STYLE),
        groups=[_Group(data, those) for data, those in groups.items()],
        planar=any(run.planar and (run.samples or run.animation) for run in runs),
    )
    write_whole(path, page)


class _Group:
    """The runs of one data set, as the template shows them."""

    def __init__(self, data: str, runs: list[RunSummary]) -> None:
        self.data, self.runs, self.strokes = data, runs, _strokes(runs)
        self.carriers = [name for name in CARRIERS if any(run.carrier == name for run in runs)]
        self.carriers += sorted({run.carrier for run in runs} - set(CARRIERS))
        names = list(dict.fromkeys(name for run in runs for name in run.shown))
        order = list(MEASURES)
        self.names = sorted(names, key=lambda n: order.index(n) if n in MEASURES else len(order))
        given = (run.protocol.get("reference") for run in runs)
        self.reference = next((each for each in given if each), {})
        self.best = {name: _best(name, runs, self.reference.get(name)) for name in names}
        self.curves = _curves(runs, self.strokes)
        self.keyed = bool(self.curves and len(runs) > 1 and set(CARRIERS) <= set(self.carriers))

    @property
    def cells(self) -> list[tuple[str, str, list[RunSummary]]]:
        """Row by row: a row for each field with several carriers, then the other fields."""
        cells: list[tuple[str, str, list[RunSummary]]] = []
        single: dict[str, list[tuple[str, str, list[RunSummary]]]] = {k: [] for k in self.carriers}
        for moved in dict.fromkeys(run.field for run in self.runs):
            row = {
                name: [run for run in self.runs if (run.field, run.carrier) == (moved, name)]
                for name in self.carriers
            }
            taken = [name for name in self.carriers if row[name]]
            if len(taken) == 1:
                single[taken[0]].append(("cell", moved, row[taken[0]]))
            else:
                cells.append(("shared", moved, []))
                cells += [("cell", "", row[name]) for name in self.carriers]
        for those in zip_longest(*single.values(), fillvalue=("cell", "", [])):
            cells += those
        return cells


COURSES = {"field": "field at samples, its norm,"}
"""What is watched that is no measure."""
SIZES = {"wide": (7.2, 3.4), "narrow": (4.2, 3.0)}
"""Inches of a curve's figure on a screen and on a phone, whose text is then as large as the page's."""
SPAN = 4
"""Values that differ by more than this factor are drawn on a logarithmic axis, if they are positive."""


def _curves(
    runs: list[RunSummary], strokes: Mapping[str, plots.Stroke]
) -> list[tuple[dict[str, Markup], float | None]]:
    """Quality against CPU seconds: a figure for each metric in two sizes, with the level it is cut at."""
    figures = []
    for name in dict.fromkeys(name for run in runs for name in run.courses):
        several = [run for run in runs if len(run.courses.get(name, ())) > 1]
        if not several:
            continue
        titles = [run.title for run in several]
        here = {
            run.title if titles.count(run.title) == 1 else f"{run.title} ({run.name})": run
            for run in several
        }
        reference = next((run.protocol.get("reference") or {} for run in several), {})
        noise = _value(reference.get(name))
        values = [y for run in several for _, y in run.courses[name] if y > 0]
        span = [*values, noise] if noise and noise > 0 else values
        log = bool(values) and max(span) > SPAN * min(span)
        floor = abs(noise) if noise else None  # an unbiased estimate of 0 is as often negative
        drawn = {
            kind: plots.curves_figure(
                {title: run.courses[name] for title, run in here.items()},
                "CPU seconds",
                f"{COURSES.get(name) or _plain(name)} during training",
                log=log,
                level=None if noise is None else ("data", noise),
                floor=floor,
                strokes={title: strokes[run.name] for title, run in here.items()},
                size=size,
            )
            for kind, size in SIZES.items()
        }
        cut = log and floor and any(y < floor for run in several for _, y in run.courses[name])
        svgs = {kind: Markup(plots.themed_svg(figure)) for kind, figure in drawn.items()}
        figures.append((svgs, floor if cut else None))
    return figures


def _template() -> Template:
    """The page, with what writes its figures and names."""
    environment = Environment(autoescape=True, loader=FileSystemLoader(Path(__file__).parent))
    environment.filters |= {
        "carrier": _carrier,
        "carrier_about": lambda name: CARRIERS.get(name, ("", ""))[1],
        "count": _count,
        "data_uri": _data_uri,
        "duration": _duration,
        "formula": _formula,
        "label": _label,
        "number": _number,
        "pairs": _pairs,
        "prose": _prose,
    }
    return environment.get_template("page.html")


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


def _prose(text: str) -> Markup:
    marked = re.sub(r"&lt;(b|i|code)&gt;(.*?)&lt;/\1&gt;", r"<\1>\2</\1>", str(escape(text)))
    return Markup(marked)


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


def _number(value: Any) -> Markup | str:
    """Three significant digits, in HTML."""
    if value is None:
        return Markup('<span class="none">–</span>')
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        text = f"{value:,.0f}".replace(",", " ")
    else:
        text = f"{value:.3g}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        text = f"{mantissa}·10<sup>{int(exponent)}</sup>"
    return Markup(text.replace("-", "−"))


def _label(name: str, has_reference: bool) -> Markup | str:
    if name not in MEASURES:
        return _plain(name)
    measure = MEASURES[name]
    better = measure.better
    if better == "like data" and not has_reference:
        better = measure.fallback
    arrow = {"lower": "↓", "higher": "↑", "like data": "≈"}[better]
    return Markup(f'{measure.head}&nbsp;<span class="arrow">{arrow}</span>')


def _carrier(name: str, heading: bool = False) -> str:
    said = CARRIERS.get(name, (name, ""))[0]
    return said if heading else said.lower().removeprefix("a ")


def _formula(text: str) -> Markup:
    """Text in HTML, with "x_y" as x and a subscript y."""
    return Markup(re.sub(r"(?<=\w)_(\w+)", r"<sub>\1</sub>", str(escape(text))))


def _plain(name: str) -> str:
    return MEASURES[name].head if name in MEASURES else name.replace("_", " ")


def _count(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n >= 1e5 else f"{n / 1e3:.1f} k" if n >= 1e3 else str(n)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is not shown elsewhere, in words."""
    pairs = []
    for key, value in values.items():
        if key == "reference":
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        pairs.append((_plain(str(key)), str(value)))
    return pairs


def _data_uri(path: Path, run: RunSummary) -> str:
    kinds = {".png": "image/png", ".gif": "image/gif"}
    path = Path(path)
    if path.suffix.lower() not in kinds:
        raise DataError(
            f"{path} of the run '{run.name}' cannot be shown on a page: use .png or .gif"
        )
    try:
        content = read_plain(path, TEXT)
    except OSError:
        raise DataError(
            f"the picture {path} of the run '{run.name}' cannot be read: make it again."
        ) from None
    return f"data:{kinds[path.suffix.lower()]};base64,{base64.b64encode(content).decode()}"


_SHEET = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_STYLE = _SHEET.split("\n", 1)[1]  # without the sheet's own remark
_STYLE = _STYLE.replace("@data", plots.DATA).replace("@generated", plots.GENERATED)


def colours() -> tuple[str, str]:
    """The declarations of the page's colours, in light and in dark."""
    light, dark = re.findall(r":root \{(.*?)\}", _STYLE, re.DOTALL)
    return light.strip(), dark.strip()
