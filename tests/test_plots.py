"""Pictures, animations and pages: geometry, laws of frames, files, and what a reader can check."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from partikel.app.show import animation, plots
from partikel.app.show.animation import Frame
from partikel.app.show.pages import RunSummary, write_page
from partikel.denoising import EDMDenoiser
from partikel.errors import CheckpointError, ConfigError, DataError
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    ExactScoreField,
    Field,
    Perturbed,
    ScoreField,
    WhiteNoise,
)
from partikel.models import FlowMapModel, GeneratorModel, ParticleModel, own_flow
from partikel.networks import NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, KarrasGrid, KarrasLaw, LinearSchedule
from partikel.solvers import Heun
from partikel.targets import GaussianMixture

TARGET = GaussianMixture([[2.0, 0.5], [-1.0, 1.0], [0.0, -2.0]], std=0.4)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(n: int = 500, seed: int = 0) -> Tensor:
    return TARGET.sample(n, generator=rng(seed))


def network(role: str, *, scalars: int = 0, latent: int = 0) -> nn.Module:
    settings = NetworkSettings(kind="mlp", width=16, depth=2, fourier_scale=1.0, activation="tanh")
    options = {"latent": latent} if latent else {"scalars": scalars}
    return build_network(settings, role, shape=(2,), generator=rng(7), **options)  # type: ignore[arg-type]


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def where(picture: np.ndarray, color: str, tolerance: int = 40) -> np.ndarray:
    """(k, 2) places (x, y from the bottom) of the pixels of about this colour."""
    distance = np.abs(picture - 255 * np.array(to_rgb(color))).max(-1)
    rows, columns = np.nonzero(distance < tolerance)
    return np.stack([columns, len(picture) - 1 - rows], 1).astype(float)


# --- files


@pytest.mark.parametrize(
    ("shape", "size"),
    [((40, 2), (720, 720)), ((9, 1, 8, 8), None), ((40, 3), (1080, 1080)), ((40, 1), (720, 720))],
)
def test_pictures_are_drawn_by_shape(
    tmp_path: Path, shape: tuple[int, ...], size: tuple[int, int] | None
) -> None:
    x = torch.randn(shape, generator=rng()).clamp(-1, 1)
    path = tmp_path / "x.png"
    plots.save_picture(x, path, data=x)
    with Image.open(path) as image:
        if size is None:
            assert np.array_equal(np.asarray(image), np.asarray(plots.image_grid(x)))
        else:
            assert image.size == size


def test_pictures_need_a_known_suffix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png"):
        plots.save_picture(cloud(), tmp_path / "x.jpg")
    with pytest.raises(ConfigError, match=r"\.svg"):
        plots.save_figure(plots.scatter_figure(cloud()), tmp_path / "x.bmp")
    assert list(tmp_path.iterdir()) == []


# --- stills


def test_image_grid_puts_every_pixel_in_its_place() -> None:
    x = torch.linspace(-1.2, 1.2, 5 * 3 * 2 * 4).view(5, 3, 2, 4)
    x[0, 0, 0, 0] = float("nan")
    grid = np.asarray(plots.image_grid(x, columns=3, scale=2))
    gap = 1  # 8 % of 8 pixels
    assert grid.shape == (2 * 4 + gap, 3 * 8 + 2 * gap, 3)
    for place in range(5):
        row, column = divmod(place, 3)
        top, left = row * (4 + gap), column * (8 + gap)
        expected = ((x[place].nan_to_num(0.0).clamp(-1, 1) + 1) * 127.5).round()
        expected = expected.repeat_interleave(2, 1).repeat_interleave(2, 2).permute(1, 2, 0)
        assert np.array_equal(grid[top : top + 4, left : left + 8], expected.numpy())
    assert (grid[4] == 255).all()
    assert (grid[5:, 2 * (8 + gap) :] == 255).all()  # the missing sixth image
    with pytest.raises(ConfigError, match="images"):
        plots.image_grid(torch.zeros(0, 1, 4, 4))
    with pytest.raises(ConfigError, match="images"):
        plots.image_grid(torch.zeros(3, 2, 4, 4))


def test_the_view_moves_with_the_data_and_holds_it() -> None:
    x = cloud(2000)
    left, right, bottom, top = plots.view_of(x)
    assert right - left == pytest.approx(top - bottom)
    inside = (x[:, 0] > left) & (x[:, 0] < right) & (x[:, 1] > bottom) & (x[:, 1] < top)
    assert inside.float().mean() > 0.99
    moved = plots.view_of(3 * x + torch.tensor([10.0, -5.0]))
    assert moved == pytest.approx((3 * left + 10, 3 * right + 10, 3 * bottom - 5, 3 * top - 5))
    assert plots.view_of(torch.full((3, 2), float("nan"))) == (-1, 1, -1, 1)


def test_points_are_drawn_where_they_are() -> None:
    data = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    left, right, bottom, top = plots.view_of(data)
    picture = pixels(plots.scatter_figure(torch.tensor([[3.0, 0.5]]), data))
    key = 0.16 * len(picture)  # the key at the lower left has the same colours
    dots = where(picture, plots.GENERATED)
    dots = dots[dots[:, 0] > key]
    margin, inner = plots.MARGIN * 100, (3.6 - 2 * plots.MARGIN) * 100  # 100 dots per inch
    expected = [
        margin + inner * (3.0 - left) / (right - left),
        margin + inner * (0.5 - bottom) / (top - bottom),
    ]
    assert dots.mean(0) == pytest.approx(expected, abs=1.5)


def test_a_scatter_says_how_much_it_does_not_show() -> None:
    data = cloud()
    samples = data.clone()
    samples[:50] = 1000.0
    texts = [t.get_text() for t in plots.scatter_figure(samples, data).axes[0].texts]
    inside = [t.get_text() for t in plots.scatter_figure(data[:5], data).axes[0].texts]
    assert any("outside" in text and float(text.split("%")[0]) > 9.9 for text in texts)
    assert not any("outside" in text for text in inside)


def test_how_much_is_not_shown_hides_few_samples() -> None:
    data = cloud()
    (left, right), (bottom, top) = ((float(v.min()), float(v.max())) for v in data.unbind(1))
    extent = (left, right, bottom, top)
    for corner in ((right, bottom), (right, top), (left, top)):
        crowd = torch.tensor(corner, dtype=data.dtype).expand(900, 2)
        away = torch.full((20, 2), 1000.0, dtype=data.dtype)
        axes = Figure().subplots()
        plots.note_outside(axes, torch.cat([crowd, away]), extent)
        (note,) = axes.texts
        said = (note.get_position()[0] > 0.5, note.get_position()[1] > 0.5)
        assert said != (corner[0] == right, corner[1] == top)
        assert said != (False, False)  # where the key is


def test_curves_name_their_ends_without_overlap() -> None:
    curves = {name: [(0.0, 1.0), (1.0, 0.5 + 1e-4 * i)] for i, name in enumerate("abcd")}
    curves["e"] = [(0.0, -1.0), (1.0, float("nan"))]
    figure = plots.curves_figure(curves, "x", "y", log=True, level=("data", 0.5))
    axes = figure.axes[0]
    names = {text.get_text(): text for text in axes.texts}
    assert set(names) == {"a", "b", "c", "d", "data"} | {"e"}
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in names.values()]
    boxes.sort(key=lambda box: box.y0)
    for below, above in zip(boxes, boxes[1:], strict=False):
        assert below.y1 <= above.y0 + 1
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    assert np.nanmin(drawn) == 0.5  # the negative value lies at the lowest positive one


def test_curves_have_bands_and_a_doubling_axis() -> None:
    curves = {"a": [(2.0, 1.0), (8.0, 0.5)], "b": [(2.0, 3.0), (8.0, 2.0)]}
    bands = {"a": [(2.0, -1.0, 1.5), (8.0, 0.4, 0.7)]}
    figure = plots.curves_figure(curves, "x", "y", log=True, bands=bands, ticks=(2, 4, 8))
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "4", "8"]
    (band,) = axes.collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == (0.4, 1.5)
    marked = plots.curves_figure(curves, "x", "y", marked=True).axes[0]
    assert len(marked.lines) == len(plots.curves_figure(curves, "x", "y").axes[0].lines) + 2


def test_dots_lie_at_their_values_and_levels_are_named() -> None:
    rows = {"a": [1.0, 2.0], "b": [30.0, -1.0]}
    figure = plots.dots_figure(rows, "distance", levels={"data": 0.5, "noise": 0.52, "none": 0.0})
    axes = figure.axes[0]
    dots = {
        tuple(np.asarray(point).tolist())
        for line in axes.lines
        if line.get_marker() == "o"
        for point in line.get_xydata()  # type: ignore[union-attr]
    }
    assert dots == {(1.0, 0.0), (2.0, 0.0), (30.0, 1.0)}  # what is not positive has no logarithm
    names = {text.get_text(): text for text in axes.texts}
    assert set(names) == {"data", "noise"}
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    left, right = (names[name].get_window_extent(canvas.get_renderer()) for name in names)
    assert left.x1 <= right.x0
    low, high = axes.get_xlim()
    assert low < 0.5
    assert high > 30
    with pytest.raises(ConfigError, match="nothing to draw"):
        plots.dots_figure({"a": [-1.0]}, "distance")


def test_strips_have_a_caption_for_every_column() -> None:
    strips = {"a": torch.zeros(2, 5, 1, 8, 8), "b": torch.zeros(1, 3, 1, 8, 8)}
    figure = plots.strips_figure(strips, {"a": "01234", "b": "012"})
    assert [text.get_text() for text in figure.texts] == ["a", *"01234", "b", *"012"]
    first, second = (axes.get_position() for axes in figure.axes)
    assert second.y1 < first.y0
    assert second.width == pytest.approx(first.width * 3 / 5)
    columns = [text.get_position()[0] for text in figure.texts if text.get_text() == "2"]
    assert columns[0] == columns[1]


def test_names_move_as_little_as_need_be() -> None:
    assert plots._apart([0.1, 0.9, 0.5], 0.2) == pytest.approx([0.1, 0.9, 0.5])
    assert plots._apart([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    heights = np.random.default_rng(0).uniform(size=9).tolist()
    moved = plots._apart(heights, 0.1)
    assert np.diff(np.sort(moved)).min() >= 0.1 - 1e-12
    assert np.argsort(moved).tolist() == np.argsort(heights).tolist()
    assert np.mean(moved) == pytest.approx(np.mean(heights))


def test_comparisons_show_one_kind() -> None:
    images = torch.zeros(4, 1, 8, 8)
    assert len(plots.comparison_figure({"a": cloud(), "b": cloud()}, cloud()).axes) == 2
    assert len(plots.comparison_figure({"a": images}, images).axes) == 2  # and the data
    below = plots.comparison_figure({"a": images, "b": images}, columns=1, most=1)
    assert below.axes[0].get_position().x0 == below.axes[1].get_position().x0
    shown = np.asarray(below.axes[0].images[0].get_array())
    assert shown.shape[0] == shown.shape[1]  # one image, without its gap
    with pytest.raises(ConfigError, match="side by side"):
        plots.comparison_figure({"a": cloud(), "b": images})
    with pytest.raises(ConfigError, match="nothing"):
        plots.comparison_figure({})


def test_svg_takes_the_ink_of_its_page() -> None:
    figure = plots.curves_figure({"a": [(0.0, 1.0), (1.0, 2.0)]}, "x", "y")
    text = plots.themed_svg(figure)
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert "var(--ink)" in text
    assert plots.INK not in text
    assert plots.SERIES[0] in text


# --- frames of particle models


def edm(steps: int = 12) -> ParticleModel:
    schedule = EDMSchedule(20.0)
    return ParticleModel(
        schedule.half_rate * ExactScoreField(TARGET),
        GaussianPrior((2,), 20.0),
        steps=steps,
        schedule=schedule,
        grid=KarrasGrid(schedule),
        solver=Heun(),
    )


def flow(objective: str = "non-saturating", weight: float = 1.0) -> ParticleModel:
    critic = DiscriminatorField(network("logit", scalars=1), objective, conditions=("t",))
    field: Field = weight * critic if weight != 1 else critic
    return ParticleModel(field, GaussianPrior((2,)), steps=10, eta=0.5).double()


def test_frames_are_nodes_of_the_sampling_path() -> None:
    model, data = edm(), cloud()
    frames = animation.generation_frames(model, data, generator=rng(3), frames=8, n=100)
    assert 2 <= len(frames) <= 8
    start = model.prior.sample(100, generator=rng(3))
    assert_close(frames[0].x, start)
    assert_close(frames[-1].x, model.sample(100, generator=rng(3)))
    nodes = {int(frame.label.split()[1]): frame for frame in frames}
    assert min(nodes) == 0
    assert max(nodes) == 12
    for state in model.stream(start, generator=rng(0)):
        frame = nodes.get(state.step)
        if frame is not None and state.step < 12:
            t = start.new_tensor(state.t).expand(len(frame.arrows["field"]))
            score = model.velocity(state.x[: len(t)], t)
            assert_close(frame.arrows["field"], score, rtol=1e-4, atol=1e-5)
    assert frames[-1].arrows == {}  # no score at σ = 0
    views = [frame.extent[1] - frame.extent[0] for frame in frames if frame.extent]
    assert views == sorted(views, reverse=True)
    assert frames[-1].extent == pytest.approx(plots.view_of(data), rel=1e-5)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_a_map_stands_against_the_paths_of_its_flow(shape: tuple[int, ...]) -> None:
    told = NetworkSettings(kind="mlp", width=8, depth=1, init="he")
    network = build_network(told, "denoiser", shape=shape, scalars=2, generator=rng())
    flow = own_flow(network, GaussianPrior(shape), LinearSchedule())
    model = FlowMapModel(flow, network)
    frames = animation.generation_frames(model, cloud(), generator=rng(3), frames=30, n=100)
    start = model.prior.sample(100, generator=rng(3))
    paths = list(model.paths(start, generator=rng()))
    jumped = list(model.stream(start, generator=rng()))
    by_time = {f"t = {state.t:.2f}": k for k, state in enumerate(paths)}
    assert len(frames) > 5
    for frame in frames:
        k = by_time[frame.label.split(" · ")[-1]]
        if len(shape) == 1:
            assert frame.paths is not None
            seen = torch.stack([state.x for state in paths[: k + 1]], 1)
            assert_close(frame.paths, seen[: animation.ARROWS])
            assert_close(frame.x, jumped[k].x)
            assert frame.arrows == {}
        else:
            first, second = animation.visible(jumped[k].x)[:50], animation.visible(paths[k].x[:50])
            assert_close(frame.x, torch.stack([first, second], 1).flatten(0, 1))
    animation.film_strip(frames, cloud())


def test_all_nodes_are_kept_where_all_of_them_move() -> None:
    way = np.arange(6.0)
    assert animation._apart(way, 0.5) == {0, 1, 2, 3, 4, 5}
    assert animation._apart(way, 2.0) == {0, 2, 5}  # 4 is too near the last
    assert animation._apart(way, 100.0) == {0, 5}
    assert animation._apart(np.zeros(4), 1e-12) == {0, 3}


@pytest.mark.parametrize("weight", [1.0, -2.0])
@pytest.mark.parametrize("objective", ["non-saturating", "relativistic"])
def test_the_background_is_what_particles_ascend(objective: str, weight: float) -> None:
    model, data = flow(objective, weight), cloud().double()
    real = data[:50] if objective == "relativistic" else None
    (*_, frame) = animation.generation_frames(
        model, data, generator=rng(), frames=4, n=20, real=real
    )
    potential, extent = frame.potential, frame.extent
    assert potential is not None
    assert extent is not None
    grid = animation.GRID
    step = (extent[1] - extent[0]) / (grid - 1)
    rows, columns = torch.tensor([10, 30, 50, 20]), torch.tensor([40, 12, 25, 20])
    slope = torch.stack(
        [
            potential[rows, columns + 1] - potential[rows, columns - 1],
            potential[rows + 1, columns] - potential[rows - 1, columns],
        ],
        1,
    ) / (2 * step)
    points = torch.stack([extent[0] + columns * step, extent[2] + rows * step], 1).double()
    t = torch.ones(4, dtype=torch.float64)
    field = model.field.bind(Context(real=real, generator=rng()))(points, At(t))
    assert_close(slope.double(), field, rtol=0.02, atol=0.01 * float(field.abs().max()))


def test_two_discriminators_have_no_common_background() -> None:
    critics = [DiscriminatorField(network("logit"), "ipm", name=name) for name in "ab"]
    model = ParticleModel(critics[0] + critics[1], GaussianPrior((2,)), steps=4)
    frames = animation.generation_frames(model, cloud(), generator=rng(), frames=3, n=10)
    assert all(frame.potential is None for frame in frames)


def test_frames_leave_the_model_as_it_was() -> None:
    model = flow()
    model.train()
    model.field.eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    animation.generation_frames(model, cloud(), generator=rng(), frames=4, n=10)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_of_images_is_scaled_to_be_seen() -> None:
    schedule = EDMSchedule(20.0)

    class Shrink(Field):
        def forward(self, x: Tensor, at: At) -> Tensor:
            return -x / 20

    model = ParticleModel(Shrink(), GaussianPrior((1, 4, 4), 20.0), steps=20, schedule=schedule)
    frames = animation.generation_frames(model, torch.empty(0), generator=rng(), frames=5)
    assert frames[0].x.shape == (36, 1, 4, 4)
    assert len(frames) <= 5
    assert (frames[0].x.abs() <= 1).float().mean() >= 0.97
    start = model.prior.sample(36, generator=rng())
    assert_close(frames[0].x / frames[0].x.std(), start / start.std())


def test_only_points_and_images_can_be_animated() -> None:
    model = ParticleModel(WhiteNoise(1.0), GaussianPrior((3,)), steps=4)
    with pytest.raises(ConfigError, match="plane"):
        animation.generation_frames(model, cloud(), generator=rng())
    with pytest.raises(ConfigError, match="at least 2 frames"):
        animation.generation_frames(edm(), cloud(), generator=rng(), frames=1)


# --- frames of generator models


def gan() -> GeneratorModel:
    generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = generator

        def forward(self, z: Tensor, c: Tensor | None, cond: Tensor | None) -> Tensor:
            return self.inner(z)

    critic = DiscriminatorField(network("logit"), "ipm")
    return GeneratorModel(critic, Takes(), GaussianPrior((4,)))


def test_training_frames_show_outputs_and_field() -> None:
    model = gan().train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    z = torch.randn(30, 4, generator=rng())
    frame = animation.training_frame(model, z, step=12, generator=rng(), view=cloud())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    model.eval()
    x = model.sample(30, generator=rng(), start=z)
    assert_close(frame.x, x)
    assert_close(frame.arrows["field"], model.field(x, At(torch.ones(30))))
    assert frame.potential is not None
    assert frame.extent == plots.view_of(cloud())
    assert "12" in frame.label
    with pytest.raises(ConfigError, match="leave sigma out"):
        animation.training_frame(model, z, step=0, generator=rng(), sigma=0.5)


def score_gan() -> GeneratorModel:
    denoiser = EDMDenoiser(network("denoiser", scalars=1), 1.0)
    own = ScoreField(denoiser, KarrasLaw(), of="particles", name="own score")
    data = ScoreField(EDMDenoiser(network("denoiser", scalars=1), 2.0))
    difference = 1.5 * data - own + WhiteNoise(lambda sigma: sigma)
    return GeneratorModel(
        Perturbed(difference, KarrasLaw()), network("generator", latent=4), GaussianPrior((4,))
    )


def test_perturbed_fields_are_shown_term_by_term() -> None:
    model = score_gan().double()
    z = torch.randn(20, 4, generator=rng(), dtype=torch.float64)
    frame = animation.training_frame(model, z, step=3, generator=rng(5), sigma=0.7)
    x = model.sample(20, generator=rng(), start=z)
    noise = torch.randn(20, 2, generator=rng(5), dtype=torch.float64)
    assert_close(frame.x, (x + 0.7 * noise).float())
    assert set(frame.arrows) == {"data score", "− own score"}
    assert isinstance(model.field, Perturbed)
    data, own, _ = model.field.field.terms  # type: ignore[union-attr, misc]
    at = At(torch.ones(20).double(), torch.full((20,), 0.7).double())
    noised = x + 0.7 * noise
    assert_close(frame.arrows["data score"], data(noised, at).float())
    assert_close(frame.arrows["− own score"], own(noised, at).float())
    again = animation.training_frame(model, z, step=3, generator=rng(5), sigma=0.7)
    assert torch.equal(again.x, frame.x)


def test_arrows_of_a_stochastic_field_are_a_mean() -> None:
    model = GeneratorModel(
        WhiteNoise(1.0), network("generator", latent=4), GaussianPrior((4,))
    ).double()
    z = torch.randn(90, 4, generator=rng(), dtype=torch.float64)
    frame = animation.training_frame(model, z, step=0, generator=rng())
    mean = frame.arrows["field"].double()
    # 180 independent means of DRAWS normals: their squares' sum is chi² with 180 degrees of freedom
    statistic = float(mean.square().sum()) * animation.DRAWS
    assert abs(statistic - 180) < 5 * (2 * 180) ** 0.5


# --- files of frames, and films


def planar_frames(count: int = 5) -> list[Frame]:
    model = flow()
    return animation.generation_frames(model, cloud().double(), generator=rng(), frames=count, n=40)


@pytest.mark.parametrize("kind", ["planar", "images"])
def test_frames_come_back_as_they_were_saved(tmp_path: Path, kind: str) -> None:
    paths = torch.randn(3, 2, 2, generator=rng())
    frame = (
        replace(planar_frames()[0], paths=paths)
        if kind == "planar"
        else Frame("σ = 1", torch.zeros(2, 1, 4, 4))
    )
    path = tmp_path / "frame.npz"
    animation.save_frame(frame, path)
    back = animation.load_frame(path)
    assert back.label == frame.label
    assert back.extent == frame.extent
    assert torch.equal(back.x, frame.x)
    assert list(back.arrows) == list(frame.arrows)
    assert all(torch.equal(back.arrows[name], frame.arrows[name]) for name in frame.arrows)
    assert (back.potential is None) == (frame.potential is None)
    assert back.paths is None if frame.paths is None else torch.equal(back.paths, paths)
    if back.potential is not None and frame.potential is not None:
        assert torch.equal(back.potential, frame.potential)


def test_foreign_frames_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "frame.npz"
    with pytest.raises(CheckpointError, match="there is no frame"):
        animation.load_frame(path)
    animation.save_frame(planar_frames()[0], path)
    whole = path.read_bytes()
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 255
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, format=np.array([{}], dtype=object))
    for content in (
        whole[: len(whole) // 2],
        b"",
        b"foreign",
        bytes(spoiled),
        pickled.read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            animation.load_frame(path)


@pytest.mark.parametrize("kind", ["planar", "images"])
def test_gifs_hold_every_frame(tmp_path: Path, kind: str) -> None:
    frames = (
        planar_frames()
        if kind == "planar"
        else [
            Frame(str(i), torch.randn(4, 1, 8, 8, generator=rng(i)).clamp(-1, 1)) for i in range(5)
        ]
    )
    path = tmp_path / "film.gif"
    animation.render(frames, path, cloud(), "title", fps=20, size=120, hold=1.0)
    with Image.open(path) as image:
        assert image.n_frames == len(frames)  # type: ignore[attr-defined]
        assert image.size[0] == 120
        durations = []
        for index in range(len(frames)):
            image.seek(index)
            durations.append(image.info["duration"])
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert durations == [50] * (len(frames) - 1) + [1050]
    assert list(tmp_path.iterdir()) == [path]


def test_videos_hold_every_frame_and_then_stand_still(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2", reason="needs the extra 'video'")
    frames = planar_frames()
    path = tmp_path / "film.mp4"
    animation.render(frames, path, cloud(), fps=10, size=121, hold=0.5)
    film: list[np.ndarray] = imageio.mimread(path)
    assert len(film) == len(frames) + 5
    assert film[0].shape[1] == 120  # even
    still = animation._pixels(animation.frame_figure(frames[-1], cloud()), 121)
    assert np.abs(film[-1].astype(int) - still.astype(int)).mean() < 4
    assert list(tmp_path.iterdir()) == [path]


def test_films_that_cannot_be_made(tmp_path: Path) -> None:
    frames = [Frame("", torch.zeros(3, 2))]
    calls: list[Callable[[], object]] = [
        lambda: animation.render(frames, tmp_path / "film.avi"),
        lambda: animation.render([], tmp_path / "film.gif"),
        lambda: animation.render(frames, tmp_path / "film.gif", fps=0),
        lambda: animation.render(frames, tmp_path / "film.gif", size=10),
        lambda: animation.film_strip([]),
    ]
    for call in calls:
        with pytest.raises(ConfigError):
            call()
    assert list(tmp_path.iterdir()) == []


def test_film_strips_begin_and_end_with_the_film() -> None:
    frames = [Frame(str(i), torch.randn(5, 2, generator=rng(i))) for i in range(20)]
    figure = animation.film_strip(frames, cloud(), columns=4)
    assert [text.get_text() for text in figure.texts] == ["0", "6", "13", "19"]
    assert len(animation.film_strip(frames[:2], columns=4).axes) == 2
    both = animation.film_strip(frames, columns=3, rows=2)
    assert [text.get_text() for text in both.texts] == ["0", "4", "8", "11", "15", "19"]
    tops = [axes.get_position().y1 for axes in both.axes]
    assert tops[0] == tops[2] > tops[3] == tops[5]  # in reading order
    assert both.get_figheight() == 2 * animation.film_strip(frames, columns=3).get_figheight()


def test_arrows_point_along_the_field() -> None:
    x = torch.tensor([[0.0, 0.0]])
    frame = Frame("", x, {"field": torch.tensor([[3.0, 4.0]])}, None, (-1.0, 1.0, -1.0, 1.0))
    picture = pixels(animation.frame_figure(frame, inches=4.0))
    dark = where(picture, plots.INK, 70)
    center = np.array([200.0, 200.0])
    dark = dark[np.abs(dark - center).max(1) < 100]
    way = dark.mean(0) - center
    assert way / np.hypot(*way) == pytest.approx([0.6, 0.8], abs=0.06)


# --- pages


class Page(HTMLParser):
    """Checks that elements are closed in order; collects text, attributes and marked cells."""

    void = frozenset({"meta", "img", "path", "use", "line"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.best: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.references += [attributes[n] for n in ("src", "href", "xlink:href") if n in attributes]
        if tag == "article":
            self.ids.append(attributes["id"])
        if tag not in self.void:
            self.open.append((tag, attributes))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [v or "" for n, v in attrs if n in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.void:
            return
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and "best" in self.open[-1][1].get("class", "").split():
            self.best.append(data)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    still, film = tmp_path / "samples.png", tmp_path / "film.gif"
    plots.save_picture(cloud(50), still)
    animation.render([Frame("", cloud(20))], film, size=64)
    return still, film


REFERENCE = {"energy": -0.0004, "within_3sigma": 0.989, "nll": 3.0, "modes": "5/5"}


def run(
    name: str, energy: float, within: float, modes: str, nll: float, **changes: object
) -> RunSummary:
    values: dict[str, object] = {
        "name": name,
        "title": f"Model <{name}>",
        "field": "score of p_σ",
        "carrier": "particles",
        "metrics": {
            "energy": energy,
            "within_3sigma": within,
            "modes": modes,
            "nll": nll,
            "unknown": energy,
        },
        "protocol": {"data": "gaussians", "samples": 10_000, "reference": REFERENCE},
        "courses": {"energy": [(1.0, 1.0), (2.0, energy)], "field": [(1.0, 3.0), (2.0, 0.5)]},
        "cpu_seconds": 130.0,
        "iterations": 1000,
        "parameters": 123_456,
        "settings": "a: <b>\n",
    }
    return RunSummary(**(values | changes))  # type: ignore[arg-type]


def test_pages_are_whole_and_need_nothing_else(tmp_path: Path, pictures: tuple[Path, Path]) -> None:
    still, film = pictures
    path = tmp_path / "page.html"
    runs = [
        run("a", 0.01, 0.95, "5/5", 3.2, samples=still, animation=film),
        run("b", 0.02, 0.999, "4/5", 2.1, carrier="generator", samples=still),
        run("c", -0.001, 0.5, "5/5", 3.5, field="other"),
    ]
    texts = ("First.\n\nSecond <b>one</b> <u>.", "make demo")
    write_page(path, "Title & <title>", runs, *texts)
    text = path.read_text()
    page = Page(text)
    assert page.ids == ["a", "b", "c"]  # row by row of the fields
    local = [r for r in page.references if not r.startswith("#")]
    assert len(local) == 3
    assert all(r.startswith(("data:image/png;base64,", "data:image/gif;base64,")) for r in local)
    assert not re.search(r"""(src|href)=["']?https?:|url\((?!#)|@import|<script""", text)
    assert "Title &amp; &lt;title&gt;" in text
    assert "Model &lt;a&gt;" in text
    assert "Second <b>one</b> &lt;u&gt;." in text
    assert "a: &lt;b&gt;" in text
    words = " ".join(page.text)
    for word in ("First.", "make demo", "data against data", "2 min 10 s", "0.12 M"):
        assert word in words
    write_page(tmp_path / "again.html", "Title & <title>", runs, *texts)
    assert (tmp_path / "again.html").read_text() == text


def test_the_best_of_each_measure_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    runs = [
        run("a", 0.01, 0.95, "5/5", 3.2),
        run("b", 0.02, 0.999, "4/5", 2.1),
        run("c", 0.005, 0.5, "5/5", 3.5),
    ]
    write_page(path, "Title", runs)
    # b has more points within 3σ and a lower NLL than data have: it is nearest in the first only
    assert Page(path.read_text()).best == ["5/5", "3.2", "0.999", "0.005", "5/5"]
    without = [
        run("a", 0.01, 0.95, "5/5", 3.2, protocol={}),
        run("b", 0.01, float("nan"), "5/5", 2.1, protocol={}),
    ]
    write_page(path, "Title", without)
    # no reference: the plain direction; all equal, or only one number: nothing to mark
    assert Page(path.read_text()).best == ["2.1"]


def test_runs_of_different_data_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    other = run("b", 0.001, 0.9, "1/5", 3.0, protocol={"data": "moons"})
    write_page(path, "Title", [run("a", 0.01, 0.95, "5/5", 3.2), other])
    page = Page(path.read_text())
    assert page.best == []
    assert {"gaussians", "moons"} <= set(page.text)


def test_runs_of_one_name_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, "Title", [run("a", 0.1 * i, 0.9, "5/5", 3.0) for i in (1, 2, 3)])
    page = Page(path.read_text())
    assert page.ids == ["a", "a-2", "a-3"]
    assert {"#a", "#a-2", "#a-3"} <= set(page.references)
    assert {f"Model <a> ({name})" for name in page.ids} <= set(page.text)  # the curves' names


def test_one_run_has_a_page_of_its_own(tmp_path: Path, pictures: tuple[Path, Path]) -> None:
    path = tmp_path / "page.html"
    write_page(path, "Title", [run("a", 1.06e-5, 0.95, "5/5", 1234.0, samples=pictures[0])])
    page = Page(path.read_text())
    assert page.ids == ["a"]
    words = "".join(page.text)
    assert "1.06·10−5" in words
    assert "1 234" in words
    assert "energy during training" in words


def test_pages_that_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    missing = run("a", 0.1, 0.9, "5/5", 3.0, samples=tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be read"):
        write_page(path, "Title", [missing])
    with pytest.raises(DataError, match=r"\.png or \.gif"):
        write_page(path, "Title", [run("a", 0.1, 0.9, "5/5", 3.0, samples=tmp_path / "x.bmp")])
    with pytest.raises(ValueError, match="at least one run"):
        write_page(path, "Title", [])
    assert not path.exists()
