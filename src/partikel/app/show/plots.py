"""Still pictures of samples: one palette, one look.

Data are always blue diamonds, generated points orange dots, in every picture of the project. The
two colours differ in lightness as well as in hue, so that they stay apart for colour-blind readers
and in print. Figures are matplotlib's objects without its global state; they are drawn with Agg.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from partikel.errors import ConfigError
from partikel.files import replacing

if TYPE_CHECKING:  # matplotlib takes long to import: whoever draws does
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DATA = "#2b6ca3"
GENERATED = "#ee7a1c"
INK = "#22272e"
MUTED = "#737b87"
HAIRLINE = "#d9dde3"
PAPER = "#ffffff"
SERIES = ("#d1495b", "#0e8a7d", "#7a5cc0", "#b8860b", "#3f86c6", "#8a6d5b")
"""Colours of curves, in the order of use; each is readable on white and on near-black."""

DPI = 200
MARGIN = 0.06
"""Inches of paper around a panel."""
HEAD = 0.26
"""Inches over a panel for its title."""
IMAGE = 0.62
"""Inches of an image in a row of them."""
MOST_POINTS = 4000
"""Points of a cloud that a scatter draws; more of them only make a blot."""

_DOTTED: Any = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (1, 2.4))}
"""Of lines that mark a level."""

Extent = tuple[float, float, float, float]
"""(left, right, bottom, top)."""


@dataclass(frozen=True)
class Stroke:
    """How a curve is drawn.

    Attributes:
        color: any colour of matplotlib's.
        dashed: whether the line is dashed.
    """

    color: str
    dashed: bool = False


# --- files


def save_figure(figure: Figure, path: str | Path, dpi: int = DPI) -> None:
    """Write a figure to a .png, .svg or .pdf file, whole or not at all.

    Raises:
        ConfigError: for another suffix.
    """
    kind = _kind_of(path, "figure", ".png", ".svg", ".pdf")
    with replacing(path) as part:
        figure.savefig(part, format=kind.removeprefix("."), dpi=dpi)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a picture to a .png file, whole or not at all.

    Raises:
        ConfigError: for another suffix.
    """
    _kind_of(path, "picture", ".png")
    with replacing(path) as part:
        image.save(part, format="PNG", optimize=True)


def save_picture(
    x: Tensor, path: str | Path, data: Tensor | None = None, title: str | None = None
) -> None:
    """Draw samples in the way that suits their shape, into a PNG file.

    Args:
        x: (n, 2) points (a scatter), (n, C, H, W) images in [-1, 1] (a grid of up to 100), or other
            (n, ...) vectors (histograms and pairs of their first entries).
        path: the file.
        data: samples of the data to compare points and vectors with.
        title: over the picture; images have none.

    Raises:
        ConfigError: for a suffix other than .png, or samples without entries.
    """
    _kind_of(path, "picture", ".png")
    if is_planar(x):
        save_figure(scatter_figure(x, data, title), path)
    elif is_images(x):
        save_image(image_grid(x[:100]), path)
    else:
        save_figure(pairs_figure(x, data, title), path)


def _kind_of(path: str | Path, what: str, *kinds: str) -> str:
    """The suffix of a file, which must be one of a few."""
    path = Path(path)
    if path.suffix.lower() not in kinds:
        use = " or ".join(", ".join(kinds).rsplit(", ", 1))
        raise ConfigError(f"a {what} cannot be written to '{path.name}': use {use}")
    return path.suffix.lower()


def is_planar(x: Tensor) -> bool:
    """Whether these are points of the plane, (n, 2)."""
    return x.ndim == 2 and x.shape[1] == 2


def is_images(x: Tensor) -> bool:
    """Whether these are grey or colour images, (n, 1 | 3, H, W)."""
    return x.ndim == 4 and x.shape[1] in (1, 3)


# --- figures


def scatter_figure(samples: Tensor, data: Tensor | None = None, title: str | None = None) -> Figure:
    """Points of the plane over those of the data, with equal axes.

    The view is the data's; how many samples lie outside is said in a corner.

    Args:
        samples: (n, 2).
        data: (m, 2).
        title: over the picture.
    """
    inches = 3.6
    figure = new_figure(inches, inches + (HEAD if title else 0))
    axes = add_panel(figure, (0, 0), inches, title)
    _draw_points(axes, samples, data, view_of(samples if data is None else data), inches)
    if data is not None:
        write_key(axes, inches)
    return figure


def comparison_figure(
    panels: Mapping[str, Tensor],
    data: Tensor | None = None,
    *,
    inches: float = 2.6,
    columns: int = 5,
    most: int = 36,
) -> Figure:
    """Samples of several models side by side, in one view.

    Args:
        panels: name -> (n, 2) points, or (n, C, H, W) images in [-1, 1], all of one kind.
        data: samples of the data; points lie under each panel, images are a panel of their own.
        inches: width of a panel.
        columns: at most so many panels side by side.
        most: images that a panel shows.

    Raises:
        ConfigError: for nothing to draw, kinds that differ, or vectors that cannot be drawn so.
    """
    if not panels:
        raise ConfigError("there is nothing to compare: give at least one model's samples.")
    shown = dict(panels)
    planar = all(is_planar(x) for x in shown.values())
    if not planar and not all(is_images(x) for x in shown.values()):
        raise ConfigError(
            "models are compared side by side where all of them make points of the plane, or all "
            "of them images: compare the others by their measures."
        )
    if not planar and data is not None:
        shown = {"data": data, **shown}
    figure, axes = new_panels(list(shown), inches, columns)
    cloud = data if planar and data is not None else next(iter(shown.values()))
    for panel, x in zip(axes, shown.values(), strict=True):
        if planar:
            _draw_points(panel, x, data, view_of(cloud), inches)
        else:
            draw_images(panel, x[:most])
    if planar and data is not None:
        write_key(axes[0], inches)
    return figure


def pairs_figure(
    x: Tensor, data: Tensor | None = None, title: str | None = None, *, most: int = 4
) -> Figure:
    """Histograms of the first entries of vectors, and scatters of their pairs.

    Args:
        x: (n, ...), flattened.
        data: (m, ...) likewise.
        title: over the picture.
        most: entries to show.

    Raises:
        ConfigError: for vectors without entries.
    """
    x = x.flatten(1)
    data = None if data is None else data.flatten(1)
    count = min(most, x.shape[1])
    if count == 0 or len(x) == 0:
        raise ConfigError("there is nothing to draw: the samples have no entries.")
    side = 3.6 if count == 1 else 1.8
    figure = new_figure(count * side, count * side + (HEAD if title else 0))
    extents = [view_of((x if data is None else data)[:, [i, i]]) for i in range(count)]
    for row in range(count):
        for column in range(row + 1):
            heading = title if row == column == 0 else None
            axes = add_panel(figure, (column * side, (count - 1 - row) * side), side, heading)
            horizontal, vertical = extents[column][:2], extents[row][:2]
            frame_axes(axes, (*horizontal, *vertical), equal=False)
            if row == column:
                axes.set_ylim(auto=True)
                bins = list(np.linspace(*horizontal, 41))
                if data is not None:
                    _histogram(axes, data[:, row], bins, "stepfilled", color=DATA, alpha=0.3, lw=0)
                _histogram(axes, x[:, row], bins, "step", color=GENERATED, lw=1.4)
            else:
                pair = [column, row]
                draw_clouds(axes, x[:, pair], None if data is None else data[:, pair], side)
    return figure


def curves_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
    level: tuple[str, float] | None = None,
    floor: float | None = None,
    strokes: Mapping[str, Stroke] | None = None,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    ticks: Sequence[float] | None = None,
    marked: bool = False,
    size: tuple[float, float] = (7.2, 3.4),
) -> Figure:
    """Curves, each with its name at its end: losses, or quality against CPU seconds.

    Args:
        curves: name -> points (x, y); values that are not finite are gaps.
        xlabel: under the horizontal axis.
        ylabel: over the vertical axis.
        log: whether the vertical axis is logarithmic.
        level: a named horizontal line, such as the value that data reach.
        floor: of a logarithmic axis, where lower values are drawn; the smallest positive value
            where None.
        strokes: colours and dashes by name; :data:`SERIES` in turn where a name has none.
        bands: name -> (x, lowest, highest), shaded around a curve: its range over seeds, say.
        ticks: what is marked on a horizontal axis that is then logarithmic; linear where None.
        marked: whether every point has a dot, where they are few.
        size: inches.
    """
    figure = new_figure(*size)
    longest = max([len(name) for name in curves] + [len(level[0]) if level else 0] + [0])
    margin = 0.2 + 0.075 * longest
    axes = place_axes(figure, (0.62, 0.5), (size[0] - 0.62 - margin, size[1] - 0.86))
    axes.set_facecolor("none")
    ends: list[tuple[float, str, str]] = []
    given = strokes or {}
    heights = [y for points in curves.values() for _, y in points]
    heights += [y for band in (bands or {}).values() for _, low, high in band for y in (low, high)]
    positive = [y for y in heights if 0 < y < math.inf]
    lowest = floor or min(positive, default=1.0)
    for place, (name, points) in enumerate(curves.items()):
        stroke = given.get(name, Stroke(series(place)))
        values = np.asarray(points, dtype=float).reshape(-1, 2)
        keep = np.isfinite(values).all(1)
        values[~keep] = np.nan
        if log:
            values[:, 1] = np.maximum(values[:, 1], lowest)
        style = (0, (4, 1.6)) if stroke.dashed else "solid"
        axes.plot(*values.T, color=stroke.color, linestyle=style, linewidth=1.8)
        if marked:
            axes.plot(*values.T, "o", color=stroke.color, markersize=3)
        if keep.any():
            last = values[keep][-1]
            axes.plot(*last, "o", color=stroke.color, markersize=4)
            ends.append((last[1], name, stroke.color))
        if bands and name in bands:
            x, low, high = np.asarray(bands[name], dtype=float).T
            low, high = (np.maximum(each, lowest) if log else each for each in (low, high))
            axes.fill_between(x, low, high, color=stroke.color, alpha=0.16, linewidth=0)
    if log:
        axes.set_yscale("log")
        if max(heights, default=1.0) < 300 * lowest:  # else powers of ten are enough
            _tick_at_1_2_5(axes.yaxis)
    if ticks is not None:
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    if level is not None and not (log and level[1] <= 0):
        axes.axhline(level[1], **_DOTTED)
        ends.append((level[1], level[0], MUTED))
    axes.margins(x=0.01, y=0.06)
    _quiet(axes, 8.5)
    axes.tick_params(which="minor", left=False)
    axes.grid(axis="y", color=HAIRLINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, color=MUTED, size=9)
    axes.set_title(ylabel, loc="left", color=INK, size=10, pad=10)
    _write_ends(axes, ends, size[1] - 0.86)
    return figure


def image_grid(images: Tensor, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """Images in rows, with a thin gap between them.

    Args:
        images: (n, C, H, W) in [-1, 1], with one or three channels; values outside are clamped, and
            those that are not numbers are mid-grey.
        columns: images in a row; about as many as rows where None.
        scale: pixels per pixel; as many as make a picture of about 640 pixels where None.

    Raises:
        ConfigError: for no images, or another number of channels.
    """
    if not is_images(images) or len(images) == 0:
        raise ConfigError(
            f"a grid shows images (n, 1 or 3, height, width), not {tuple(images.shape)}."
        )
    n, channels, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    if scale is None:
        scale = max(1, round(640 / (columns * width)))
    pixels = images.detach().cpu().float().nan_to_num(nan=0.0).clamp(-1, 1)
    pixels = ((pixels + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    gap = max(1, round(0.08 * width * scale))
    high, wide = height * scale + gap, width * scale + gap
    canvas = torch.full((channels, rows * high - gap, columns * wide - gap), 255, dtype=torch.uint8)
    for place, picture in enumerate(pixels):
        row, column = divmod(place, columns)
        top, left = row * high, column * wide
        canvas[:, top : top + height * scale, left : left + width * scale] = picture
    array = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array)


# --- what figures are made of


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _tick_at_1_2_5(axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def series(place: int) -> str:
    """The colour of the curve at a place; there are as many as :data:`SERIES` has."""
    return SERIES[place % len(SERIES)]


def place_axes(
    figure: Figure, corner: tuple[float, float], size: tuple[float, float], **options: Any
) -> Axes:
    """Axes at a corner and of a size in inches, from the lower left of the figure."""
    width, height = figure.get_size_inches()
    place = (corner[0] / width, corner[1] / height, size[0] / width, size[1] / height)
    return figure.add_axes(place, **options)


def write_at(
    figure: Figure, x: float, y: float, text: str, size: float, color: str = MUTED, **options: Any
) -> None:
    """Text at a place in inches, from the lower left of the figure."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, color=color, size=size, **options)


def new_panels(titles: Sequence[str], inches: float, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title, row by row.

    Args:
        titles: at least one.
        inches: width of a panel.
        columns: at most so many panels side by side.
    """
    columns = min(len(titles), columns)
    rows, high = math.ceil(len(titles) / columns), inches + HEAD
    figure = new_figure(columns * inches, rows * high)
    panels = []
    for place, title in enumerate(titles):
        row, column = divmod(place, columns)
        corner = (column * inches, (rows - 1 - row) * high)
        panels.append(add_panel(figure, corner, inches, title))
    return figure, panels


def add_panel(
    figure: Figure, corner: tuple[float, float], side: float, title: str | None = None
) -> Axes:
    """Square axes, all in inches: ``side`` wide with a margin inside, and a title above."""
    left, bottom, inner = corner[0] + MARGIN, corner[1] + MARGIN, side - 2 * MARGIN
    axes = place_axes(figure, (left, bottom), (inner, inner))
    if title:
        write_at(figure, left, bottom + inner + 0.09, title, 9.5, INK)
    return axes


def view_of(cloud: Tensor) -> Extent:
    """A square around nearly all points of a cloud (n, 2), with a margin."""
    points = cloud.detach().cpu().double()
    points = points[points.isfinite().all(1)]
    if len(points) == 0:
        return (-1.0, 1.0, -1.0, 1.0)
    low, high = np.quantile(points.numpy(), [0.002, 0.998], axis=0)
    center, half = (low + high) / 2, 0.58 * float((high - low).max()) or 1.0
    x, y = center.tolist()
    return (x - half, x + half, y - half, y + half)


def frame_axes(axes: Axes, extent: Extent, *, equal: bool = True) -> None:
    """Axes without ticks in a hairline frame, over exactly this part of the plane."""
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_xticks([])
    axes.set_yticks([])
    if equal:
        axes.set_aspect("equal", adjustable="box")
    for spine in axes.spines.values():
        spine.set_color(HAIRLINE)
        spine.set_linewidth(1.0)


def draw_clouds(
    axes: Axes, samples: Tensor, data: Tensor | None, inches: float, data_scale: float = 1.0
) -> None:
    """Data as diamonds under generated points as dots, sized to their number.

    Args:
        axes: where.
        samples: (n, 2).
        data: (m, 2).
        inches: width of the axes.
        data_scale: factor on the diamonds' area, for views much wider than the data.
    """
    if data is not None:
        points = _numpy(data[:MOST_POINTS])
        size = _area(len(points), inches) * 0.8 * data_scale
        axes.scatter(*points.T, s=size, marker="D", color=DATA, alpha=0.35, linewidths=0, zorder=2)
    points = _numpy(samples[:MOST_POINTS])
    size = _area(len(points), inches)
    alpha = 0.85 if len(points) <= 600 else 0.6
    axes.scatter(*points.T, s=size, color=GENERATED, alpha=alpha, linewidths=0, zorder=4)


def draw_arrows(axes: Axes, x: Tensor, arrows: Tensor, **look: Any) -> None:
    """Arrows (m, 2) in units of the axes, at the first m of the points (n, 2)."""
    places = _numpy(x[: len(arrows)])
    axes.quiver(*places.T, *_numpy(arrows).T, angles="xy", scale_units="xy", scale=1, **look)


def draw_images(
    axes: Axes,
    images: Tensor,
    columns: int | None = None,
    aspect: Literal["equal", "auto"] = "equal",
) -> None:
    """A grid of images (see :func:`image_grid`) that fills the axes, exactly where "auto"."""
    grid = image_grid(images, columns)
    axes.imshow(grid.convert("RGB"), interpolation="antialiased", aspect=aspect)
    axes.axis("off")


def _draw_points(
    axes: Axes, samples: Tensor, data: Tensor | None, extent: Extent, inches: float
) -> None:
    frame_axes(axes, extent)
    draw_clouds(axes, samples, data, inches)
    note_outside(axes, samples, extent)


def write_beside(
    axes: Axes, text: str, at: tuple[float, float], points: float, color: str, **options: Any
) -> None:
    """Small text so many points to the right of a place, in units of the axes."""
    options = {"size": 7, **options, "textcoords": "offset points", "color": color, "zorder": 9}
    axes.annotate(text, at, xycoords=axes.transAxes, xytext=(points, -2.5), **options)


def note_outside(axes: Axes, samples: Tensor, extent: Extent) -> None:
    """Say how many samples the view leaves out, in the emptiest corner but the key's."""
    left, right, bottom, top = extent
    x, y = samples.detach().cpu().unbind(1)
    x, y = (x - left) / (right - left), (y - bottom) / (top - bottom)
    share = float((~((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1))).double().mean())
    if share < 0.0005:
        return

    def hidden(corner: tuple[int, int]) -> int:
        near = ((x - corner[0]).abs() < 0.5) & ((y - corner[1]).abs() < 0.12)
        return int(near.sum())

    across, up = min(((1, 0), (1, 1), (0, 1)), key=hidden)
    options = {"ha": "right" if across else "left", "va": "top" if up else "bottom", "size": 7}
    options |= {"bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}}
    place = (0.03 + 0.94 * across, 0.03 + 0.94 * up)
    axes.text(
        *place, f"{share:.1%} outside", transform=axes.transAxes, color=MUTED, zorder=9, **options
    )


def write_key(axes: Axes, inches: float) -> None:
    """What the two kinds of points are, at the lower left."""
    size = 8.5 if inches > 3 else 7  # a picture by itself may be as wide as a phone
    at, line = axes.transAxes, 0.0186 * size / inches
    kinds = [("generated", GENERATED, "o"), ("data", DATA, "D")]
    for place, (name, color, marker) in enumerate(kinds):
        y = 0.042 + place * line
        axes.plot(0.036, y, marker, color=color, markersize=3.2, transform=at, zorder=9)
        write_beside(axes, name, (0.036, y), 6, MUTED, size=size)


def themed_svg(figure: Figure) -> str:
    """The figure as an <svg> element whose ink follows the page around it.

    Its neutral colours become the CSS variables --ink, --muted and --hairline, its background none,
    and its text the page's.
    """
    import matplotlib

    figure.set_facecolor("none")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "partikel"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for color, variable in ((INK, "--ink"), (MUTED, "--muted"), (HAIRLINE, "--hairline")):
        text = text.replace(color, f"var({variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'font: ([\d.]+)px [^;"]*', r"font-size: \1px; font-family: inherit", text)
    opening, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", opening) + ">" + rest


def _quiet(axes: Axes, size: float, **ticks: Any) -> None:
    """Axes of which little more than the labels is seen."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(HAIRLINE)
    axes.tick_params(length=0, labelsize=size, labelcolor=MUTED, **ticks)


def _write_ends(axes: Axes, ends: list[tuple[float, str, str]], inches: float) -> None:
    """Names beside the last values, moved apart where they would overlap."""
    axes.autoscale_view()
    pixels = axes.transData
    low, high = axes.get_window_extent().y0, axes.get_window_extent().y1
    x = axes.get_xlim()[1]
    heights = [float((pixels.transform((x, y))[1] - low) / (high - low)) for y, _, _ in ends]
    for height, (_, name, color) in zip(_apart(heights, 0.17 / inches), ends, strict=True):
        axes.text(1.015, height, name, transform=axes.transAxes, color=color, size=9, va="center")


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Heights moved as little as need be for neighbours to be ``least`` apart."""
    order = np.argsort(heights, kind="stable")
    # without the spacing this is the closest increasing sequence: pool neighbours that violate it
    blocks: list[list[float]] = []
    for rank, place in enumerate(order):
        blocks.append([heights[place] - rank * least])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [float(np.mean(block)) for block in blocks for _ in block]
    moved = [0.0] * len(heights)
    for rank, place in enumerate(order):
        moved[place] = level[rank] + rank * least
    return moved


def _histogram(
    axes: Axes, values: Tensor, bins: list[float], kind: Literal["step", "stepfilled"], **look: Any
) -> None:
    axes.hist(_numpy(values), bins, density=True, histtype=kind, **look)


def _area(count: int, inches: float) -> float:
    """Area of a marker in points², so that clouds of any size stay clouds."""
    return float(np.clip(54 / math.sqrt(max(count, 1)), 1.0, 4.0)) * inches


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


# --- figures of evaluations


def quality_figure(
    name: str,
    points: Sequence[tuple[float, float]],
    xlabel: str,
    ylabel: str,
    *,
    level: tuple[str, float] | None = None,
    doubling: bool = False,
) -> Figure:
    """A measure of quality along an option of sampling, marked where it was measured.

    Args:
        name: of the curve.
        points: (value, measure), in the order of the values, which are positive.
        xlabel: under the horizontal axis.
        ylabel: over the vertical axis.
        level: what data reach.
        doubling: whether the values are better seen on a logarithmic axis.
    """
    places = [x for x, _ in points]
    ticks = places if doubling else None
    figure = curves_figure(
        {name: points}, xlabel, ylabel, log=True, level=level, ticks=ticks, marked=True
    )
    if not doubling:
        figure.axes[0].set_xticks(places, [f"{x:g}" for x in places])
    return figure


def neighbours_figure(samples: Tensor, neighbours: Tensor, notes: Sequence[str]) -> Figure:
    """Samples, each beside its nearest training images.

    Args:
        samples: (n, C, H, W) in [-1, 1].
        neighbours: (n, k, C, H, W), nearest first.
        notes: for each row, its distances from the first two.
    """
    rows, columns = neighbours.shape[:2]
    gap, note, high = 0.16, 1.0, rows * IMAGE
    figure = new_figure((columns + 1) * IMAGE + 2 * gap + note + MARGIN, high + HEAD + MARGIN)
    at, above = MARGIN, MARGIN + high + 0.08
    for title, color, images, count in (
        ("sample", GENERATED, samples, 1),
        ("nearest training images", DATA, neighbours.flatten(0, 1), columns),
    ):
        wide = IMAGE * count
        draw_images(place_axes(figure, (at, MARGIN), (wide, high)), images, count, "auto")
        write_at(figure, at, above, title, 9, color)
        at += wide + gap
    write_at(figure, at, above, "distances", 9)
    for row, text in enumerate(notes):
        write_at(figure, at, MARGIN + high - (row + 0.5) * IMAGE, text, 7.5, va="center")
    return figure


def dots_figure(
    rows: Mapping[str, Sequence[float]],
    title: str,
    *,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Positive values on a logarithmic axis, a row for each name: distances of models, say.

    Args:
        rows: name -> values, one for each seed; those that are not positive are left out.
        title: what the values are.
        levels: named vertical lines, such as the distance of data or of noise.

    Raises:
        ConfigError: for nothing to draw.
    """
    shown = {name: [v for v in values if 0 < v < math.inf] for name, values in rows.items()}
    marks = {name: value for name, value in (levels or {}).items() if 0 < value < math.inf}
    every = [v for values in shown.values() for v in values] + list(marks.values())
    if not every:
        raise ConfigError("there is nothing to draw: give at least one positive value.")
    row, top, bottom, width = 0.3, 0.62, 0.36, 7.2
    height = top + row * len(shown) + bottom
    figure = new_figure(width, height)
    left = 0.2 + 0.075 * max(map(len, shown))
    inner = width - left - 0.35
    axes = place_axes(figure, (left, bottom), (inner, row * len(shown)))
    axes.set_facecolor("none")
    axes.set_xscale("log")
    low, high = math.log10(min(every)), math.log10(max(every))
    margin = 0.05 * (high - low) + 0.02
    axes.set_xlim(10 ** (low - margin), 10 ** (high + margin))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    for place, values in enumerate(shown.values()):
        axes.plot(axes.get_xlim(), [place, place], color=HAIRLINE, linewidth=0.7, zorder=1)
        dots = {"color": series(place), "markersize": 6, "alpha": 0.75}
        axes.plot(values, [place] * len(values), "o", **dots)
    places = [(math.log10(v) - low + margin) / (high - low + 2 * margin) for v in marks.values()]
    apart = _apart(places, 1.0 / inner)
    for (name, value), x in zip(marks.items(), apart, strict=True):
        axes.axvline(value, zorder=1, **_DOTTED)
        y = 1 + 0.07 / (row * len(shown))
        side = "left" if x < 0.06 else "right" if x > 0.94 else "center"
        axes.text(x, y, name, transform=axes.transAxes, color=MUTED, size=8.5, ha=side)
    axes.set_yticks(range(len(shown)), list(shown))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
    axes.tick_params(axis="x", which="both", labelsize=8.5, labelcolor=MUTED)
    _tick_at_1_2_5(axes.xaxis)
    write_at(figure, 0.2, height - 0.24, title, 10, INK)
    return figure


def bars_figure(
    groups: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    title: str,
    *,
    level: tuple[str, float] | None = None,
) -> Figure:
    """Bars of several groups, a small panel for each, on one scale: histograms over classes, say.

    The group called "data" is blue, the others orange.

    Args:
        groups: name -> a value, not negative, for each label.
        labels: under the bars.
        title: what the values are.
        level: a named horizontal line in every panel.
    """
    columns, side, inches = min(3, len(groups)), 2.5, 0.95
    rows = math.ceil(len(groups) / columns)
    head, gap, name, foot = 0.36, 0.22, 0.24, 0.2
    height = head + rows * (name + inches + foot) + 0.06
    figure = new_figure(columns * (side + gap) + gap, height)
    title += f" (dotted: {level[0]})" if level else ""
    write_at(figure, gap, height - 0.22, title, 10, INK)
    top = 1.06 * max([v for values in groups.values() for v in values] + [level[1] if level else 0])
    for place, (group, values) in enumerate(groups.items()):
        row, column = divmod(place, columns)
        bottom = height - head - (row + 1) * (name + inches + foot) + foot
        axes = place_axes(figure, (gap + column * (side + gap), bottom), (side, inches))
        color = DATA if group == "data" else GENERATED
        axes.bar(range(len(values)), list(values), color=color, width=0.72)
        axes.set_ylim(0, top or 1)
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.set_xticks(range(len(labels)), list(labels))
        axes.set_yticks([])
        _quiet(axes, 8, pad=2)
        axes.set_title(group, loc="left", color=INK, size=9, pad=4)
        if level is not None:
            axes.axhline(level[1], **_DOTTED)
    return figure


def strips_figure(
    strips: Mapping[str, Tensor], captions: Mapping[str, Sequence[str]], *, inches: float = IMAGE
) -> Figure:
    """Images as they come into being, from left to right; below each other, for several models.

    Args:
        strips: name -> (rows, columns, C, H, W) in [-1, 1], all of as many columns.
        captions: name -> what moment each column is, or nothing.
        inches: width of an image.
    """
    columns = max(strip.shape[1] for strip in strips.values())
    head, foot = (0.42, 0.14) if any(captions.values()) else (0.27, 0.05)
    top = sum(strip.shape[0] * inches + head + foot for strip in strips.values())
    figure = new_figure(columns * inches + 2 * MARGIN, top)
    for name, strip in strips.items():
        high, wide = strip.shape[0] * inches, strip.shape[1] * inches
        bottom = top - head - high
        axes = place_axes(figure, (MARGIN, bottom), (wide, high))
        draw_images(axes, strip.flatten(0, 1), strip.shape[1], "auto")
        write_at(figure, MARGIN, top - 0.17, name, 9.5, INK)
        for column, caption in enumerate(captions[name]):
            x = MARGIN + (column + 0.48) * inches
            write_at(figure, x, top - head + 0.06, caption, 7.5, ha="center")
        top = bottom - foot
    return figure
