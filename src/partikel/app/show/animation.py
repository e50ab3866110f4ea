"""Moving pictures of a field and what it carries (GPM Figures 8-12).

A :class:`Frame` is one moment: the particles, the field's arrows at them, and, where the field is a
discriminator's, its potential c(d) as a background of level sets, darker where it is higher (where
the generator's loss is lower). For free particles the moments are nodes of a sampling path
(:func:`generation_frames`), for a generator they are moments of its training
(:func:`training_frame`). A flow map's particles are shown where it jumps to from t = 0, against the
paths on which its flow takes the same ones there. Arrows and potentials are scaled anew in every
frame: they show directions and shapes, not magnitudes.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from partikel.app.show import plots
from partikel.app.show.plots import Extent
from partikel.errors import CheckpointError, ConfigError, optional
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    Field,
    Guided,
    LabelDropout,
    Perturbed,
    Scaled,
    ScoreField,
    Sum,
)
from partikel.files import plain_file, replacing
from partikel.models import Carrier
from partikel.solvers import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = 64
"""Points along each side of the grid that a potential is evaluated on."""
ARROWS = 90
"""Particles with arrows: more of them would hide one another."""
DRAWS = 64
"""Random draws that the arrows of a stochastic field are averaged over."""

_ARROWS = {"data score": "#17507f", "− own score": "#b3500a"}
_FORMAT = "partikel frame 1"
_SHADES = ["#ffffff", "#eceef1", "#bcc2cc"]


@dataclass(frozen=True)
class Frame:
    """One moment.

    Attributes:
        label: what moment it is.
        x: (n, 2) particles, or (n, C, H, W) images in [-1, 1]; float32, on the CPU.
        arrows: name -> (m, 2) vectors at the first m <= n particles.
        potential: (G, G) what particles ascend, over ``extent``; rows go upwards.
        extent: the part of the plane to show; None for images.
        paths: (m, k, 2) how the flow that a map has learned took the first m particles to here.
    """

    label: str
    x: Tensor
    arrows: Mapping[str, Tensor] = dataclass_field(default_factory=dict)
    potential: Tensor | None = None
    extent: Extent | None = None
    paths: Tensor | None = None


# --- from models to frames


def generation_frames(
    model: Carrier,
    data: Tensor,
    *,
    generator: torch.Generator,
    frames: int = 40,
    n: int | None = None,
    steps: int | None = None,
    real: Tensor | None = None,
    cond: Tensor | None = None,
) -> list[Frame]:
    """Sampling as a sequence of frames: nodes of the path, chosen so that motion looks even.

    The view is the data's; while the particles are far outside of it, as those of a diffusion model
    are at first, it is wider and closes in with them. Noise of images beyond [-1, 1] is scaled down
    to be seen.

    Args:
        model: the particle model.
        data: (m, 2) samples of the data, which set the view; not used for images.
        generator: source of all randomness.
        frames: how many at most; a path of N steps has N + 1.
        n: number of particles; 400 points or 36 images where None.
        steps: steps of the solver; the model's own where None.
        real: samples of the data, for a field that compares with them.
        cond: (n,) labels, for a conditional model.

    Returns:
        Frames in the order of generation. The last one of a score's path has no arrows, as the
        score does not exist there.

    Raises:
        ConfigError: if the particles are neither points of the plane nor images.
    """
    images = len(model.prior.shape) == 3
    if not images and model.prior.shape != (2,):
        raise ConfigError(
            f"only points of the plane and images can be animated, not points of shape "
            f"{model.prior.shape}: draw samples instead."
        )
    view = None if images else plots.view_of(data)
    path = _Path(model, generator, frames, view, steps, real, cond)
    result: list[Frame] = []
    with _evaluating(model), torch.no_grad():
        if view is None:
            for label, state, _, flowed in path.moments(n):
                x = visible(state.x)
                if flowed:
                    x = torch.stack([x[: len(flowed[-1])], visible(flowed[-1])], 1).flatten(0, 1)
                    label = f"pairs of map and flow · {label}"
                result.append(Frame(label, _kept(x)))
            return result
        bound = model.field.bind(Context(real=real, generator=generator))
        for label, state, at, flowed in path.moments(n):
            extent = _extent(state.x, view)
            if flowed is not None:
                paths = _kept(torch.stack(flowed, 1)) if flowed else None
                result.append(Frame(label, _kept(state.x), extent=extent, paths=paths))
                continue
            exists = at.sigma is None or at.sigma > 0
            arrows = {"field": _kept(_field_at(bound, state.x[:ARROWS], at))} if exists else {}
            potential = _potential(bound, extent, at)
            result.append(Frame(label, _kept(state.x), arrows, potential, extent))
    return result


def training_frame(
    model: Carrier,
    z: Tensor,
    *,
    step: int,
    generator: torch.Generator,
    view: Extent | Tensor | None = None,
    real: Tensor | None = None,
    sigma: float | None = None,
    cond: Tensor | None = None,
) -> Frame:
    """A generator's outputs for fixed latents at one moment of training, and the field at them.

    A stochastic field's arrows are its mean over some draws. Given ``sigma``, a perturbed field is
    shown from inside, as in GPM Figure 12: the outputs are perturbed by noise of that level, and
    each term of the inner field has arrows of its own (data score, − own score).

    Args:
        model: a model whose samples move in training, as it stands.
        z: (n, ...) where samples start, the same for every frame.
        step: iterations done.
        generator: source of noise; seeded alike for every frame, the noise stands still.
        view: the part of the plane to show, or (m, 2) data that set it; the outputs' where None.
        real: samples of the data, for a field that compares with them.
        sigma: noise level σ > 0 to look at a perturbed field.
        cond: (n,) labels, for a conditional model.

    Raises:
        ConfigError: if ``sigma`` is given for a field that is not perturbed, or outputs are neither
            points of the plane nor images.
    """
    label = f"iteration {step}"
    with _evaluating(model), torch.no_grad():
        x = model.sample(len(z), generator=generator, start=z, cond=cond)
        if plots.is_images(x):
            return Frame(label, _kept(x))
        if not plots.is_planar(x):
            raise ConfigError(
                f"only points of the plane and images can be animated, not outputs of shape "
                f"{tuple(x.shape[1:])}: draw samples instead."
            )
        bound = model.field.bind(Context(real=real, generator=generator))
        at = At(x.new_tensor(model.horizon), cond=cond)
        if sigma is None:
            arrows = {"field": _field_at(bound, x[:ARROWS], at)}
        else:
            if not isinstance(bound, Perturbed) or not sigma > 0:
                raise ConfigError(
                    f"a noise level to look at (here {sigma}) must be positive, and the field "
                    "perturbed: leave sigma out."
                )
            bound, at = bound.field, at._replace(sigma=x.new_tensor(sigma))
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + sigma * noise
            label = f"{label} · σ = {sigma:.3g}"
            arrows = {}
            for term in bound.terms if isinstance(bound, Sum) else [bound]:
                if isinstance(term, Field) and not term.draws:
                    arrow = _field_at(term, x[:ARROWS], at)
                    arrows[_name(term)] = arrows.get(_name(term), 0) + arrow
        if view is None or isinstance(view, Tensor):
            view = plots.view_of(x if view is None else view)
        shown = {name: _kept(arrow) for name, arrow in arrows.items()}
        return Frame(label, _kept(x), shown, _potential(bound, view, at), view)


# --- files of frames


def save_frame(frame: Frame, path: str | Path) -> None:
    """Write a frame to an .npz file, whole or not at all."""
    arrays = {
        "format": np.array(_FORMAT),
        "label": np.array(frame.label),
        "x": frame.x.numpy(),
        "names": np.array(list(frame.arrows), dtype=np.str_),
        **{f"arrow{i}": arrow.numpy() for i, arrow in enumerate(frame.arrows.values())},
    }
    if frame.potential is not None:
        arrays["potential"] = frame.potential.numpy()
    if frame.paths is not None:
        arrays["paths"] = frame.paths.numpy()
    if frame.extent is not None:
        arrays["extent"] = np.array(frame.extent)
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_frame(path: str | Path) -> Frame:
    """Read what :func:`save_frame` wrote; executes nothing.

    Raises:
        CheckpointError: where the file is missing, truncated or of another kind.
    """
    try:
        plain_file(path)
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["format"]) != _FORMAT:
                raise ValueError
            extent = None
            if "extent" in arrays:
                left, right, bottom, top = arrays["extent"].tolist()
                extent = (left, right, bottom, top)
            return Frame(
                str(arrays["label"]),
                torch.from_numpy(arrays["x"]),
                {
                    str(name): torch.from_numpy(arrays[f"arrow{i}"])
                    for i, name in enumerate(arrays["names"])
                },
                torch.from_numpy(arrays["potential"]) if "potential" in arrays else None,
                extent,
                torch.from_numpy(arrays["paths"]) if "paths" in arrays else None,
            )
    except FileNotFoundError:
        raise CheckpointError(f"there is no frame {path}.") from None
    except (ValueError, KeyError, OSError, EOFError, BadZipFile, zlib.error):
        raise CheckpointError(
            f"{path} is no frame of this version of partikel, or it is damaged: delete it."
        ) from None


# --- from frames to pictures


def render(
    frames: Sequence[Frame],
    path: str | Path,
    data: Tensor | None = None,
    title: str | None = None,
    *,
    fps: int = 10,
    size: int = 360,
    hold: float = 1.5,
) -> None:
    """Write an animation to a .gif or .mp4 file, whole or not at all.

    Args:
        frames: at least one.
        path: the file.
        data: (m, 2) samples of the data to draw under particles.
        title: over the picture.
        fps: frames a second, in [1, 50].
        size: width in pixels.
        hold: seconds for which the last frame stands still.

    Raises:
        ConfigError: for no frames, another suffix, or values out of range.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise ConfigError(f"an animation cannot be written to '{path.name}': use .gif or .mp4")
    if suffix == ".mp4":  # before anything is drawn
        _imageio()
    if not frames:
        raise ConfigError("there is nothing to animate: no frames.")
    if not 1 <= fps <= 50 or size < 64:
        raise ConfigError(
            f"an animation has 1 to 50 frames a second and 64 pixels or more, got {fps} and {size}."
        )
    pictures = [_pixels(frame_figure(frame, data, title), size) for frame in frames]
    with replacing(path) as part:
        if suffix == ".gif":
            grey = all(frame.x.ndim == 4 and frame.x.shape[1] == 1 for frame in frames)
            _write_gif(pictures, part, 1 / fps, hold, colors=32 if grey else 96)
        else:
            _write_mp4(pictures, part, fps, hold)


def frame_figure(
    frame: Frame, data: Tensor | None = None, title: str | None = None, *, inches: float = 3.6
) -> Figure:
    """One frame as a still.

    Args:
        frame: the moment.
        data: (m, 2) samples of the data to draw under particles.
        title: before the frame's label.
        inches: width.
    """
    figure = plots.new_figure(inches, inches + plots.HEAD)
    axes = plots.add_panel(figure, (0, 0), inches, title or frame.label)
    if title:
        right, y = inches - plots.MARGIN, inches + 0.03
        plots.write_at(figure, right, y, frame.label, 7.5, ha="right")
    _draw(axes, frame, data, inches)
    return figure


def film_strip(
    frames: Sequence[Frame],
    data: Tensor | None = None,
    columns: int = 6,
    rows: int = 1,
    *,
    inches: float = 2.0,
) -> Figure:
    """A few evenly chosen frames side by side, the first and the last among them.

    Args:
        frames: at least one.
        data: (m, 2) samples of the data to draw under particles.
        columns: how many in a row.
        rows: how many rows.
        inches: width of each.

    Raises:
        ConfigError: for no frames.
    """
    if not frames:
        raise ConfigError("there is nothing to show: no frames.")
    count = min(columns * rows, len(frames))
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]
    figure, panels = plots.new_panels([frame.label for frame in chosen], inches, columns)
    for axes, frame in zip(panels, chosen, strict=True):
        _draw(axes, frame, data, inches)
    return figure


# --- parts


@contextlib.contextmanager
def _evaluating(model: Carrier) -> Iterator[None]:
    """Everything in evaluation mode; afterwards each module in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _kept(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float32).clone()


def _extent(x: Tensor, view: Extent) -> Extent:
    """The view, or while the cloud is far outside of it a wider one, through which it closes in."""
    left, right, bottom, top = view
    center = x.new_tensor([(left + right) / 2, (bottom + top) / 2])
    reach = float((x - center).abs().amax(1).double().quantile(0.9))
    # slower than the cloud, which is seen to move
    wider = max(1.0, reach / ((right - left) / 2)) ** 0.75
    half = wider * (right - left) / 2
    h, v = center.tolist()
    return (h - half, h + half, v - half, v + half)


def visible(x: Tensor) -> Tensor:
    """Images scaled as a whole so that nearly all pixels lie in [-1, 1]."""
    sizes = x.abs().flatten()
    sizes = sizes[:: max(1, len(sizes) // 2**16)]
    return x / sizes.double().quantile(0.98).clamp(min=1).to(x.dtype)


@dataclass(frozen=True)
class _Path:
    """Sampling that frames are taken of; ``view`` is None for images."""

    model: Carrier
    generator: torch.Generator
    frames: int
    view: Extent | None
    steps: int | None
    real: Tensor | None
    cond: Tensor | None

    def states(self, n: int, generator: torch.Generator, cond: Tensor | None) -> Iterator[State]:
        """All nodes of a path of n particles."""
        model = self.model
        start = model.start(n, generator)
        return model.stream(start, generator=generator, steps=self.steps, cond=cond, real=self.real)

    def moments(self, n: int | None) -> Iterator[tuple[str, State, At, list[Tensor] | None]]:
        """The chosen nodes: what to call them, the particles, where on the path, and a map's flow so far.

        That of some particles; None of a model whose particles follow the field themselves.
        """
        nodes, schedule = self.even_nodes(), self.model.schedule
        total = max(nodes)
        count = n or (36 if self.view is None else 400)
        some = (count + 1) // 2 if self.view is None else ARROWS
        flow, flowed = None, []
        for state in self.states(count, self.generator, self.cond):
            if state.step == 0:
                cond = None if self.cond is None else self.cond[:some]
                asked = {"generator": self.generator, "cond": cond, "steps": self.steps}
                flow = self.model.paths(state.x[:some], **asked)
            if flow is not None:
                flowed.extend(each.x for each in islice(flow, 1))
            if state.step not in nodes:
                continue
            if flow is not None:
                label = f"t = {state.t / self.model.horizon:.2f}"
                yield label, state, At(state.x.new_tensor(state.t)), flowed
                continue
            label, at = (
                f"step {state.step} of {total}",
                At(state.x.new_tensor(state.t), cond=self.cond),
            )
            if schedule is not None:
                sigma = schedule.sigma(at.t)
                label, at = f"{label} · σ = {float(sigma):.3g}", at._replace(sigma=sigma)
            yield label, state, at, None

    def even_nodes(self) -> set[int]:
        """At most so many nodes between which pictures change by about as much.

        Measured on a few particles moved by a copy of the generator, so that no path need be kept.
        """
        frames, view, cond = self.frames, self.view, self.cond
        if frames < 2:
            raise ConfigError(f"an animation of a path needs at least 2 frames, got {frames}.")
        pilot = torch.Generator(self.generator.device)
        pilot.set_state(self.generator.get_state())
        count = 64 if view is not None else 8
        count = count if cond is None else min(count, len(cond))
        changes: list[float] = []
        last: tuple[Tensor, float] | None = None
        for state in self.states(count, pilot, None if cond is None else cond[:count]):
            if view is None:
                shown, zoom = visible(state.x).clamp(-1, 1), 0.0
            else:
                left, right, bottom, top = _extent(state.x, view)
                center = state.x.new_tensor([(left + right) / 2, (bottom + top) / 2])
                shown, zoom = 2 * (state.x - center) / (right - left), math.log(right - left)
            if last is not None:
                changes.append(float((shown - last[0]).abs().mean()) + abs(zoom - last[1]))
            last = (shown, zoom)
        way = np.cumsum([0.0, *changes])
        least = max(way[-1] / (4 * frames), 1e-12)  # less change than this is not worth a frame
        while len(nodes := _apart(way, least)) > frames:
            least *= 1.05
        return nodes


def _apart(way: np.ndarray, least: float) -> set[int]:
    """Indices, the first and the last among them, with at least this way between neighbours."""
    kept = [0]
    for node in range(1, len(way)):
        if way[node] - way[kept[-1]] >= least:
            kept.append(node)
    return {*kept[: max(1, len(kept) - (kept[-1] != len(way) - 1))], len(way) - 1}


def _field_at(field: Field, x: Tensor, at: At) -> Tensor:
    """The field at points of one moment; a stochastic one's mean over draws."""
    draws = DRAWS if field.draws else 1
    at = at._replace(cond=None if at.cond is None else at.cond[: len(x)])
    return torch.stack([field(x, at) for _ in range(draws)]).mean(0)


def _potential(field: Field, extent: Extent, at: At) -> Tensor | None:
    """(GRID, GRID) the potential of the field's discriminator; None without exactly one."""
    found = _discriminators(field, at.t)
    if len(found) != 1 or at.cond is not None:  # with labels there are as many potentials
        return None
    critic, weight = found[0]
    left, right, bottom, top = extent
    horizontal = torch.linspace(left, right, GRID, dtype=at.t.dtype, device=at.t.device)
    vertical = torch.linspace(bottom, top, GRID, dtype=at.t.dtype, device=at.t.device)
    points = torch.cartesian_prod(vertical, horizontal).flip(1)
    return _kept(weight * critic.potential(points, at).view(GRID, GRID))


def _discriminators(field: Field, t: Tensor) -> list[tuple[DiscriminatorField, float]]:
    """The discriminators that act at a point itself, with their weights at time t."""
    if isinstance(field, DiscriminatorField):
        return [(field, 1.0)]
    if isinstance(field, Scaled):
        weight = field.weight(t) if callable(field.weight) else field.weight
        inner = _discriminators(field.field, t)
        return [(critic, float(weight) * factor) for critic, factor in inner]
    if isinstance(field, Sum):
        terms = [term for term in field.terms if isinstance(term, Field)]
        return [pair for term in terms for pair in _discriminators(term, t)]
    return []


def _name(term: Field) -> str:
    """What a term of a sum is called in pictures."""
    if isinstance(term, Scaled):
        negative = not callable(term.weight) and term.weight < 0
        return f"− {_name(term.field)}" if negative else _name(term.field)
    if isinstance(term, (Guided, LabelDropout)):
        return _name(term.field)
    if isinstance(term, ScoreField):
        return "data score" if term.of == "data" else "own score"
    if isinstance(term, DiscriminatorField):
        return "discriminator"
    return type(term).__name__


def _draw(axes: Axes, frame: Frame, data: Tensor | None, inches: float) -> None:
    if not plots.is_planar(frame.x):
        plots.draw_images(axes, frame.x)
        return
    extent = frame.extent or plots.view_of(frame.x if data is None else data)
    plots.frame_axes(axes, extent)
    if frame.potential is not None:
        _draw_potential(axes, frame.potential, extent)
    if data is not None:
        data = data[: len(frame.x)]  # as many as particles, so that densities compare
    width = extent[1] - extent[0]
    usual = plots.view_of(frame.x if data is None else data)
    plots.draw_clouds(axes, frame.x, data, inches, min(1.0, (usual[1] - usual[0]) / width))
    if frame.paths is not None:
        _draw_paths(axes, frame.x, frame.paths)
    _draw_arrows(axes, frame, width)
    if len(frame.arrows) > 1:
        _write_arrow_key(axes, tuple(frame.arrows), inches)


def _draw_paths(axes: Axes, x: Tensor, paths: Tensor) -> None:
    """Lines along a flow, rings where it has come to, and a line from each to where its map has jumped."""
    for path, jumped in zip(paths.numpy(), x.numpy(), strict=False):
        axes.plot(*path.T, color=plots.INK, lw=0.5, alpha=0.35, zorder=2)
        axes.plot(
            *np.stack([path[-1], jumped]).T, color=plots.GENERATED, lw=0.6, alpha=0.7, zorder=5
        )
    ends = paths[:, -1].numpy()
    axes.scatter(*ends.T, s=9, facecolors="none", edgecolors=plots.INK, linewidths=0.5, zorder=7)
    plots.write_beside(axes, "points: the map, rings: its flow", (0.0, 0.045), 5, plots.MUTED)


def _draw_potential(axes: Axes, potential: Tensor, extent: Extent) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    values = potential.double().numpy()
    low, high = np.quantile(values, [0.02, 0.98])
    if not high > low:
        return
    levels = np.linspace(low, high, 10)
    axes.contourf(
        np.linspace(extent[0], extent[1], values.shape[1]),
        np.linspace(extent[2], extent[3], values.shape[0]),
        values,
        levels=levels,
        cmap=LinearSegmentedColormap.from_list("potential", _SHADES),
        extend="both",
        zorder=1,
    )


def _draw_arrows(axes: Axes, frame: Frame, width: float) -> None:
    """Arrows on one scale: nearly the longest of all spans a fixed part of the picture."""
    vectors = [arrow.double().numpy() for arrow in frame.arrows.values()]
    lengths = np.concatenate([np.hypot(*v.T) for v in vectors]) if vectors else np.zeros(0)
    lengths = lengths[np.isfinite(lengths)]
    longest = np.quantile(lengths, 0.9) if len(lengths) else 0.0
    if not longest > 0:
        return
    for name, vector in zip(frame.arrows, vectors, strict=True):
        size = np.hypot(*vector.T)[:, None] / longest
        shown = vector / longest * (0.085 * width) / np.maximum(1, size / 1.3)
        plots.draw_arrows(
            axes,
            frame.x,
            torch.from_numpy(shown),
            width=0.0042,
            headwidth=4.2,
            headlength=4.6,
            headaxislength=4.2,
            minlength=0.6,
            color=_ARROWS.get(name, plots.INK),
            alpha=0.85,
            linewidths=0,
            zorder=6,
        )


def _write_arrow_key(axes: Axes, names: Sequence[str], inches: float) -> None:
    for place, name in enumerate(reversed(names)):
        color, y = _ARROWS.get(name, plots.INK), 0.045 + place * 0.14 / inches
        axes.plot([0.03, 0.07], [y, y], color=color, lw=1.4, transform=axes.transAxes, zorder=9)
        box = {"facecolor": plots.PAPER, "alpha": 0.75, "linewidth": 0, "pad": 0.6}
        plots.write_beside(axes, name, (0.07, y), 4, color, bbox=box)


def _pixels(figure: Figure, size: int) -> np.ndarray:
    """(H, W, 3) bytes, ``size`` wide and even in both directions, as video asks."""
    figure.set_dpi(size / figure.get_figwidth())
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    array = np.asarray(canvas.buffer_rgba())[..., :3]
    return array[: array.shape[0] // 2 * 2, : array.shape[1] // 2 * 2].copy()


def _write_gif(
    pictures: list[np.ndarray], path: Path, seconds: float, hold: float, colors: int
) -> None:
    # one palette for all frames and no dithering: what stands still costs nothing
    some = pictures[:: max(1, len(pictures) // 8)] + [pictures[-1]]
    sample = Image.fromarray(np.concatenate(some)).quantize(colors=colors)
    palette = np.array(sample.getpalette()).reshape(-1, 3)
    palette[palette.sum(1).argmax()] = 255  # paper stays white
    images = [_indexed(picture, palette) for picture in pictures]
    pause = max(20, 10 * round(100 * seconds))  # GIF counts in hundredths of a second
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[pause] * (len(images) - 1) + [pause + round(1000 * hold)],
        loop=0,
        optimize=True,
    )


def _indexed(picture: np.ndarray, palette: np.ndarray) -> Image.Image:
    """The picture in the nearest colours of the palette (Pillow's own search is approximate)."""
    codes = picture.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    found, place = np.unique(codes, return_inverse=True)
    colors = np.stack([found >> 16, found >> 8 & 255, found & 255], 1)
    # |c - p|² without |c|², in float32: exact for bytes
    cost = (palette**2).sum(1) - 2 * colors.astype(np.float32) @ palette.T.astype(np.float32)
    image = Image.fromarray(cost.argmin(1).astype(np.uint8)[place].reshape(codes.shape), "P")
    image.putpalette(palette.flatten().tolist())
    return image


def _imageio() -> Any:
    """What writes films, with the package that brings its ffmpeg."""
    need = "an .mp4 needs imageio with its ffmpeg"
    optional("imageio_ffmpeg", "video", need)
    return optional("imageio.v2", "video", need)


def _write_mp4(pictures: list[np.ndarray], path: Path, fps: int, hold: float) -> None:
    imageio = _imageio()
    video: list[Any] = pictures + [pictures[-1]] * round(hold * fps)
    imageio.mimwrite(
        path,
        video,
        format="FFMPEG",  # type: ignore[arg-type]
        fps=fps,
        codec="libx264",
        quality=8,
        macro_block_size=2,
    )
