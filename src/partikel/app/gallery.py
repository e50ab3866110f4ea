"""What is made of trained runs: figures, pictures, animations, pages."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from partikel.app.config import dump_config, make_recipe, read_configuration, settings_of
from partikel.app.continuing import origin_of, where_they_lie, with_its_score
from partikel.app.planning import Plan, estimate, may_estimate, plan_training
from partikel.app.progress import progress_of
from partikel.app.runs import (
    Run,
    classes_in,
    draw_samples,
    fit_batches,
    shown_data,
    train_run,
)
from partikel.app.show import plots
from partikel.app.show.animation import Frame, generation_frames, load_frame, render
from partikel.app.show.latent_paths import interpolate
from partikel.app.show.pages import RunSummary, write_page
from partikel.data import Dataset, FiniteDataset, open_dataset
from partikel.errors import CheckpointError, ConfigError, DataError, PartikelError, one_line
from partikel.files import replacing, write_json
from partikel.likelihood import (
    Elbo,
    Method,
    Ode,
    Points,
    agreement,
    dataset_likelihood,
    generative_sde,
    probability_flow,
)
from partikel.metrics import memorised, nearest_neighbours
from partikel.metrics.evaluation import (
    EXACT,
    NEIGHBOUR,
    Evaluation,
    Memorisation,
    Sampler,
    evaluate,
    find_memorised,
)
from partikel.metrics.measures import main_measure
from partikel.metrics.own import add_own
from partikel.models import Sampling
from partikel.recipes import Recipe
from partikel.recipes.flow_map import network_like
from partikel.schedules import Nodes
from partikel.streams import seeded
from partikel.tensors import check_memory
from partikel.training import Initial, latest_checkpoint
from partikel.training.engine import all_done, processes

Measured = TypeVar("Measured", Evaluation, Memorisation)


def plan_preset(
    preset: str | None,
    settings: Mapping[str, Any],
    data: str | None = None,
    out: str | None = None,
    initial: Initial | None = None,
) -> str:
    """What training would do: what was chosen, the resolved configuration, remarks about the system.

    Args:
        preset: see :func:`partikel.app.planning.plan_training`, as the next two.
        settings: those that were given.
        data: of one's own.
        out: the run's folder.
        initial: the run to begin with.
    """
    plan = plan_training(preset, settings, data, out, initial)
    origin = None if plan.initial is None else origin_of(plan.initial, plan.folder)
    recipe, said = plan.recipe, list(plan.said)
    if origin is not None:
        recipe = with_its_score(recipe, origin, plan.folder)
    dataset = open_dataset(recipe.data)
    recipe = fit_batches(recipe, dataset, plan.given, said.append)
    if plan.chosen:
        said.append(f"  {estimate(recipe)}")
    system = recipe.system(dataset)
    if origin is not None and latest_checkpoint(plan.folder / "checkpoints") is None:
        origin.weights_for(system.model)
    count = sum(p.numel() for p in system.model.parameters())
    phases = ", ".join(f"{p.loss} x{p.repeats}" for p in system.phases) or "nothing"
    kind = type(system.model).__name__
    said = [f"# {one_line(text)}\n" for text in said]
    said.append(dump_config(recipe, plan.label, origin and {"from": origin.record}))
    return "".join(said) + f"# {kind}, {count:,} weights; an iteration runs {phases}\n"


def train_preset(
    preset: str | None,
    settings: Mapping[str, Any],
    data: str | None,
    out: str | None,
    initial: Initial | None,
    console: Console | None,
) -> tuple[Run, Path] | None:
    """Train, or go on where it stopped, and write the run's page.

    Args:
        preset: see :func:`partikel.app.planning.plan_training`, as the next four.
        settings: those that were given.
        data: of one's own.
        out: the run's folder.
        initial: the run to begin with.
        console: where progress is shown.

    Returns:
        The run and its page; None in all processes but the main one.
    """
    with _said_by_main():
        plan = plan_training(preset, settings, data, out, initial)
        if console is not None and processes().is_main_process:
            _tell(plan, console)
    named = {"preset": plan.label, "given": plan.given, "initial": plan.initial}
    return _train(plan.recipe, plan.folder, console=console, **named)


def distil_run(
    run: Run, settings: Mapping[str, Any], out: str | None, console: Console | None
) -> tuple[Run, Path] | None:
    """Train a flow map of a run of free particles, or go on where that stopped, and write its page.

    Args:
        run: the teacher's.
        settings: those of the recipe 'distillation' that were given.
        out: the new run's folder; RUN-distilled unless given.
        console: where progress is shown.

    Returns:
        The map's run and its page; None in all processes but the main one.
    """
    recipe, name = distillation_of(run, settings), f"{run.preset}-distilled"
    folder = Path(out or f"{run.path}-distilled")
    return _train(recipe, folder, preset=name, console=console, given=(settings,))


def distillation_of(run: Run, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a run's distillation, with those of its settings that were given.

    Raises:
        ConfigError: for settings of the teacher, or others that cannot work.
    """
    if not (run.path / "config.yaml").exists():
        raise ConfigError(f"{run.path} is an export: distil the run that it was made of.")
    for part in ("run", "teacher"):
        if part in settings:
            raise ConfigError(f"the teacher is {run.path} as it was trained: leave out --{part}.")
    taken: dict[str, Any] = {"run": str(run.path), "conditional": run.recipe.conditional}
    taken["data"] = where_they_lie(run.path, settings_of(run.recipe)["data"])
    taken["teacher"] = {"recipe": run.recipe.name, **settings_of(run.recipe)}
    network = settings.get("network")
    if isinstance(network, Mapping) and "kind" not in network:  # the usual one, changed
        taken["network"] = asdict(network_like(run.recipe))
    return make_recipe("distillation", taken, settings)


def _train(recipe: Recipe, folder: Path, **options: Any) -> tuple[Run, Path] | None:
    """Train a run and write its page."""
    with _said_by_main():
        run = train_run(recipe, folder, **options)
    all_done()
    return (run, write_run_page(run)) if processes().is_main_process else None


@contextlib.contextmanager
def _said_by_main() -> Iterator[None]:
    """A block of all processes, of whose failures the main one says why."""
    try:
        yield
    except PartikelError as error:
        # data may be missing on one node only
        if processes().is_main_process or isinstance(error, DataError):
            raise
        sys.exit(getattr(error, "exit_code", 2))


def _tell(plan: Plan, console: Console) -> None:
    """Say what was chosen, and how long it will take."""
    said = list(plan.said)
    if plan.chosen:
        if may_estimate():
            recipe = fit_batches(plan.recipe, open_dataset(plan.recipe.data), plan.given)
            said.append(f"  {estimate(recipe)}")
        said.append(
            "  say otherwise by name (--data.size 64, --iterations 1000): 'partikel train "
            f"{plan.recipe.name} --help'"
        )
    for line in said:
        console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)


def sample_run(
    run: Run,
    path: Path,
    *,
    n: int | None = None,
    label: str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> None:
    """Draw samples into a file.

    Args:
        run: a trained run.
        path: .npz or .png file to write; a picture shows points beside the data.
        n: how many; 64 unless given, or 8 of each of several labels.
        label: see :meth:`partikel.app.runs.Run.labels`.
        sampling: how; as the run says unless given.
        seed: of the samples.
    """
    kind = path.suffix.lower()
    if kind not in (".npz", ".png"):
        raise ConfigError(f"samples are written to .npz or .png files, not '{path.suffix}'.")
    generator = torch.Generator().manual_seed(seed)
    chosen = [] if label is None else classes_in(run.model, label, run.data.class_names)
    rows = max(1, len(chosen))
    if n is None:
        n = 64 if rows == 1 else 8 * rows
    cond = None if n < 1 else run.labels(n, label, generator=generator)
    x = run.sample(n, generator=generator, cond=cond, sampling=sampling)
    if kind == ".npz":
        with replacing(path) as part:
            if cond is None:
                np.savez_compressed(part, x=x.numpy())
            else:
                np.savez_compressed(part, x=x.numpy(), cond=cond.numpy())
    elif rows > 1 and plots.is_images(x):
        names = run.data.class_names
        if names is None:
            plots.save_image(plots.image_grid(x, columns=n // rows), path)
        else:
            strips = x.unflatten(0, (rows, n // rows))
            named = {names[k]: strip[None] for k, strip in zip(chosen, strips, strict=True)}
            plots.save_figure(plots.strips_figure(named, dict.fromkeys(named, ())), path)
    else:
        data = run.beside(min(n, 1000), generator)
        plots.save_picture(x, path, data=data, title=f"{run.preset}: {n} samples")


def likelihood_run(
    run: Run,
    method: Method,
    points: Points,
    *,
    agree: int | None = None,
    console: Console | None = None,
) -> tuple[dict[str, Any], Path]:
    """Measure the log-likelihood of data under free particles, and keep it in the run's folder.

    Args:
        run: a trained run.
        method: one of the three.
        points: of the run's data; in float64 where they are no images.
        agree: samples by which the ODE and the run's own sampler are compared; 1000 for points, 0 for
            images, unless given.
        console: where progress is shown.

    Returns:
        The figures, and likelihood-METHOD.json.

    Raises:
        ConfigError, DataError, NumericsError: as :func:`partikel.likelihood.dataset_likelihood`.
    """
    if points.labels and run.model.label_weights is None:
        raise ConfigError("this model was trained without labels: leave out --labels.")
    planar = len(run.data.shape) == 1
    points = replace(points, dtype=torch.float64 if planar else torch.float32)
    model, context = run.model.to(points.dtype), run.context()
    real = None if context is None else context.to(points.dtype)
    flow = probability_flow(model, real=real)
    asked: Any = model
    if isinstance(method, Ode):
        asked = flow
    elif isinstance(method, Elbo):
        at = getattr(run.recipe, "flow", None)
        asked = generative_sde(model, at, sigma_data=run.data.sigma_data)
    with progress_of("likelihood", console) as progress:
        report = dataset_likelihood(
            method,
            asked,
            run.dataset,
            points,
            real=real,
            about=f"{run.preset} at iteration {run.step}",
            folder=run.made / "likelihood",
            progress=progress,
        )
        record = report.as_dict()
        agree = (1000 if planar else 0) if agree is None else agree
        if isinstance(method, Ode) and agree:
            generator = torch.Generator().manual_seed(points.seed)
            cond = run.labels(agree, generator=generator)
            own = run.sample(agree, generator=generator, cond=cond)
            found = agreement(
                flow, own, generator=generator, cond=cond, integrator=method.integrator
            )
            record |= {"ode_to_sampler": found.distance, "same_law_quantile": found.quantile}
            record["agrees"] = found.agrees
    path = run.made / f"likelihood-{method.protocol['method']}.json"
    write_json(path, record)
    return record, path


def evaluate_run(
    run: Run,
    *,
    n: int = 10_000,
    seed: int = 0,
    split: str = "test",
    features: str | None = None,
    baselines: bool = False,
    accelerator: Accelerator | None = None,
    sampling: Sampling | None = None,
    measures: Sequence[str] = (),
    **options: Any,
) -> Evaluation:
    """Measure a run's samples; see :func:`partikel.metrics.evaluation.evaluate`.

    The protocol also names the iteration, the number of function evaluations of a sample, and how
    sampling departed from the run's settings. It runs on the accelerator where there is one.
    Samples are drawn as ``sampling``, or options by name, say (see :meth:`partikel.app.runs.Run.sampling`).
    ``measures`` that not every evaluation has are added by name (see :func:`partikel.metrics.own.add_own`).
    """
    sampling = run.sampling(sampling, **options)
    measure = partial(evaluate, n=n, seed=seed, split=split, features=features, baselines=baselines)

    def measured(sampler: Sampler, dataset: Dataset, **place: Any) -> Evaluation:
        result = measure(sampler, dataset, **place)
        add_own(result, measures, sampler, dataset, place["device"], features)
        return result

    result = _measured(run, sampling, measured, accelerator)
    result.protocol["nfe"] = run.model.evaluations(real=run.context(), sampling=sampling)
    return result


def _measured(
    run: Run,
    sampling: Sampling,
    measure: Callable[..., Measured],
    accelerator: Accelerator | None = None,
) -> Measured:
    """What is measured of a run's samples and data, on its device; its protocol says of what."""
    shared = {} if accelerator is None else {"accelerator": accelerator}

    def sampler(count: int, generator: torch.Generator) -> Tensor:
        return run.sample(count, generator=generator, sampling=sampling)

    with on_device(run, accelerator) as device:
        result = measure(sampler, run.dataset, device=device, **shared)
    result.protocol.update(sampling.protocol)
    result.protocol["iteration"] = run.step
    return result


def launched() -> Accelerator | None:
    """The processes that ``accelerate launch`` started, to share an evaluation; None for one."""
    return Accelerator() if processes().num_processes > 1 else None


def curve_run(
    run: Run,
    along: Literal["nfe", "stop"],
    *,
    at: Sequence[int] | None = None,
    accelerator: Accelerator | None = None,
    sampling: Sampling | None = None,
    **options: Any,
) -> Path:
    """Measure free particles at several numbers of steps, or stopped early after several.

    Args:
        run: a trained run.
        along: "nfe" for the number of steps, "stop" for early stopping.
        at: the numbers; a sixteenth to twice the run's own steps, or eighths of them, unless given.
        accelerator: several processes that share the work.
        sampling: how samples are drawn, but for what the curve goes along.
        options: of :func:`evaluate_run`: n, seed, split, features.

    Returns:
        ``curve-nfe.json`` or ``curve-stop.json`` in the run's folder; its picture is beside it.

    Raises:
        ConfigError: for a generator, which has no steps, or impossible numbers.
    """
    own = run.model.steps
    if own is None:
        raise ConfigError(
            "a generator makes samples in one call: only free particles and flow maps have a curve of "
            f"quality against {'their number of steps' if along == 'nfe' else 'early stopping'}."
        )
    if at is None:
        shares = [2.0**k for k in range(-4, 2)] if along == "nfe" else [k / 8 for k in range(1, 9)]
        at = [max(1, round(own * share)) for share in shares]
    values = sorted(set(at))
    most = own if along == "stop" else None
    if not values or values[0] < 1 or (most is not None and values[-1] > most):
        raise ConfigError(
            f"a curve along {along} is measured at numbers of steps of at least 1"
            f"{f' and at most {most}' if most else ''}, got {', '.join(map(str, at)) or 'none'}."
        )
    measured: list[dict[str, Any]] = []
    result: Evaluation | None = None
    for value in values:
        changed: dict[str, Any] = {"grid": Nodes(value)} if along == "nfe" else {"stop": value}
        drawn = replace(sampling or Sampling(), **changed)
        result = evaluate_run(run, accelerator=accelerator, sampling=drawn, **options)
        point = {k: result.protocol[k] for k in ("steps", "stop", "nfe") if k in result.protocol}
        measured.append({**point, "metrics": result.metrics})
    assert result is not None
    measure = main_measure(run.data.shape)
    key = measure.key
    if key in result.left_out:
        raise DataError(f"there is no curve of the {key}, which {result.left_out[key]}.")
    path = run.made / f"curve-{along}.json"
    if accelerator is not None and not accelerator.is_main_process:
        return path
    common = {k: v for k, v in result.protocol.items() if k not in ("steps", "stop", "nfe")}
    reference = result.reference
    record = {"along": along, "points": measured, "reference": reference, "protocol": common}
    write_json(path, record)
    features = common.get("features")
    figure = plots.quality_figure(
        run.recipe.title,
        [(p["nfe" if along == "nfe" else "stop"], p["metrics"][key]) for p in measured],
        "function evaluations per sample" if along == "nfe" else f"steps taken, of {own}",
        measure.label if features is None else f"{measure.label} on {features}",
        level=("data vs data", reference.get(key, math.nan)),
        doubling=along == "nfe",
    )
    plots.save_figure(figure, path.with_suffix(".png"))
    return path


def neighbours_run(
    run: Run,
    path: Path,
    *,
    n: int = 500,
    k: int | None = None,
    rows: int = 8,
    seed: int = 0,
    features: str | None = None,
    sampling: Sampling | None = None,
    **options: Any,
) -> Memorisation:
    """Draw samples beside their nearest training images, and count copies.

    Args:
        run: a trained run of images.
        path: picture to write; the figures go into a .json file beside it. It shows the samples
            that look most like copies.
        n: samples to look at.
        k: neighbours, at least 2; 5, or as many as there are, unless given.
        rows: samples to show.
        seed: of the samples.
        features: see :func:`partikel.metrics.evaluation.find_memorised`.
        sampling: how samples are drawn; as the run says unless given.
        options: or what of it departs, by name.

    Returns:
        Neighbours and figures.
    """
    if rows < 1:
        raise ConfigError(f"a picture of neighbours needs rows >= 1, got {rows}.")
    measure = partial(find_memorised, n=n, k=k, seed=seed, features=features)
    found = _measured(run, run.sampling(sampling, **options), measure)
    assert isinstance(run.dataset, FiniteDataset)
    distances = found.neighbours.distances
    nearness = distances[:, 0] / distances[:, 1].clamp(min=1e-30)
    shown = nearness.argsort()[:rows].cpu()
    near = found.neighbours.indices.cpu()[shown]
    images = run.dataset.take(near.flatten()).x.unflatten(0, near.shape)
    notes = [f"{first:.3g}, {second:.3g}" for first, second in distances[shown, :2].tolist()]
    plots.save_figure(plots.neighbours_figure(found.samples[shown], images, notes), path)
    record = {"figures": found.figures, "protocol": found.protocol}
    write_json(path.with_suffix(".json"), record)
    return found


@contextlib.contextmanager
def on_device(run: Run, accelerator: Accelerator | None = None) -> Iterator[torch.device]:
    """Moves a run's model to the accelerator, or the one device, for the time of a measurement."""
    weights = next(iter(run.model.parameters()), None)
    home = torch.device("cpu") if weights is None else weights.device
    device = processes().device if accelerator is None else accelerator.device
    assert device is not None
    try:
        run.model.to(device)
        yield device
    finally:
        run.model.to(home)


def interpolate_run(
    run: Run,
    path: Path,
    *,
    method: str = "spherical-cauchy-linear",
    pairs: int = 8,
    points: int = 9,
    seed: int = 0,
) -> Tensor:
    """Interpolate between latents or prior points, and draw the samples row by row.

    Args:
        run: a trained run.
        path: picture to write.
        method: see :func:`partikel.app.show.latent_paths.interpolate`.
        pairs: rows.
        points: points of a row, ends included; at least 2.
        seed: of the latents.

    Returns:
        (pairs · points, ...) samples, row by row.
    """
    if pairs < 1 or points < 2:
        raise ConfigError(
            f"an interpolation needs pairs >= 1 and points >= 2, got {pairs} and {points}."
        )
    generator = seeded(seed, "interpolation")
    samples = interpolated(run, method, pairs, points, generator=generator).flatten(0, 1)
    title = f"{run.preset}: {method}"
    if plots.is_images(samples):
        plots.save_image(plots.image_grid(samples, columns=points), path)
    elif plots.is_planar(samples):
        data = run.beside(1000, generator)
        figure = plots.scatter_figure(samples, data, title)
        for row in samples.view(pairs, points, 2).cpu().unbind():
            figure.axes[0].plot(*row.unbind(1), color=plots.GENERATED, linewidth=0.8)
        plots.save_figure(figure, path)
    else:
        plots.save_picture(samples, path, title=title)
    return samples


def interpolated(
    run: Run, method: str, pairs: int, points: int, *, generator: torch.Generator
) -> Tensor:
    """Samples between pairs of latents, or of points of the prior where there is no generator.

    Args:
        run: a trained run.
        method: see :func:`partikel.app.show.latent_paths.interpolate`.
        pairs: how many paths.
        points: points of a path at even fractions, ends included.
        generator: of the ends, on the CPU.

    Returns:
        (pairs, points, ...) samples, on the model's device.
    """
    model = run.model
    check_memory(pairs * points, run.data.shape)
    a, b = (
        model.prior.sample(pairs, generator=generator),
        model.prior.sample(pairs, generator=generator),
    )
    between = interpolate(a, b, torch.linspace(0, 1, points), method, std=model.prior.std)
    cond = model.labels(pairs, generator=generator)  # one for each path
    cond = None if cond is None else cond.repeat_interleave(points)
    device = next(model.parameters()).device
    if device.type != "cpu":  # samplers with noise draw it where the points are
        generator = torch.Generator(device).manual_seed(generator.initial_seed())
    start = between.flatten(0, 1).to(device)
    cond = None if cond is None else cond.to(device)
    made = draw_samples(model, len(start), generator, run.context(), cond=cond, start=start)
    return made.unflatten(0, (pairs, points))


def animate_run(
    run: Run,
    path: Path,
    *,
    frames: int = 40,
    fps: int = 12,
    n: int | None = None,
    parts: bool = False,
    size: int | None = None,
    seed: int = 0,
) -> None:
    """Animate generation (free particles) or training (a generator) as .gif or .mp4.

    Args:
        run: a trained run of points in the plane or of images.
        path: file to write.
        frames: at most so many.
        fps: frames a second.
        n: particles; 400 points or 64 images unless given.
        parts: show a Score GAN's field from inside, its two scores at perturbed points (GPM Figure
            12).
        size: width in pixels, of a picture without a title; 360 unless given, and the preset above.
        seed: of the particles.
    """
    if frames < 2 or fps < 1:
        raise ConfigError(f"an animation needs frames >= 2 and fps >= 1, got {frames} and {fps}.")
    generator = seeded(seed, "animation")
    data = run.beside(1000, generator) if _planar(run) else None
    made = run_frames(run, generator=generator, frames=frames, n=n, parts=parts)
    title = run.preset if size is None else None
    render(made, path, data=data, title=title, fps=fps, size=size or 360)


def run_frames(
    run: Run,
    *,
    generator: torch.Generator,
    frames: int = 40,
    n: int | None = None,
    parts: bool = False,
) -> list[Frame]:
    """Moments of generation (free particles), or those recorded in training (a generator).

    Args:
        run: a trained run of points in the plane or of images.
        generator: of the particles.
        frames: at most so many.
        n: particles; 400 points or 64 images unless given.
        parts: a Score GAN's field from inside.

    Raises:
        CheckpointError: where training recorded no such frames.
    """
    model = run.model
    if n is not None and n < 1:
        raise ConfigError(f"an animation needs n >= 1 particles, got {n}.")
    if model.steps is not None:
        count = n or (400 if _planar(run) else 64)
        check_memory(count * frames, run.data.shape)
        data = run.beside(1000, generator)  # which set the view of points
        return generation_frames(
            model,
            torch.zeros(0, *run.data.shape) if data is None else data,
            generator=generator,
            frames=frames,
            n=count,
            real=run.context(),
            cond=model.labels(count, generator=generator),
        )
    kind = "parts" if parts else "step"
    recorded = sorted((run.path / "frames").glob(f"{kind}-*.npz"))
    if not recorded:
        raise CheckpointError(
            f"the run {run.path} recorded no such frames of its training: train it with "
            "evaluate_every set (and use --parts for a Score GAN on points only)."
        )
    stride = math.ceil(len(recorded) / frames)
    chosen = recorded[::-1][::stride][::-1]
    return [load_frame(path) for path in chosen]


def summarise(
    run: Run, *, out: Path | None = None, n: int = 10_000, seed: int = 0, animation: bool = True
) -> RunSummary:
    """Everything a page shows of a run: measures it and makes its picture and animation.

    Args:
        run: a trained run.
        out: folder for evaluation.json, samples.png and animation.gif; the run's own unless given.
        n: samples of the evaluation.
        seed: of samples and reference.
        animation: whether to make the animation.
    """
    out = out or run.path
    out.mkdir(parents=True, exist_ok=True)
    result = evaluate_run(run, n=n, seed=seed)
    write_json(out / "evaluation.json", result.as_dict())
    generator = seeded(seed, "picture")
    images = len(run.data.shape) == 3
    samples = run.sample(100 if images else 1000, generator=generator)
    pictures = _beside(run, out, samples, generator) if images else {}
    picture = out / "samples.png"
    data = None if images else run.beside(len(samples), generator)
    plots.save_picture(samples, picture, data=data)
    moving = out / "animation.gif"
    drawable = _planar(run) or len(run.data.shape) == 3
    moves = run.model.steps is not None or any((run.path / "frames").glob("step-*"))
    if animation and drawable and moves:
        animate_run(run, moving, size=480)
    curve_name = main_measure(run.data.shape).key
    courses = {
        name: [(float(e["cpu_seconds"]), float(e[name])) for e in run.log if name in e]
        for name in (curve_name, "kid", "field")
    }
    file = run.path / "config.yaml"  # an export has none
    config = read_configuration(file) if file.exists() else {}
    known = {key: config[key] for key in ("from", "history") if key in config}
    return RunSummary(
        name=run.path.name,
        title=run.recipe.title,
        field=run.recipe.symbol,
        carrier=run.model.kind,
        metrics=result.metrics,
        left_out=result.left_out,
        protocol={**result.protocol, "reference": result.reference},
        courses={name: course for name, course in courses.items() if course},
        cpu_seconds=run.cpu_seconds,
        iterations=run.step,
        parameters=sum(p.numel() for p in run.model.parameters()),
        samples=picture,
        animation=moving if moving.exists() else None,
        planar=_planar(run),
        settings=yaml.safe_dump(settings_of(run.recipe) | known, sort_keys=False),
        **pictures,
    )


STRIP = 8
"""Images of a class on a page."""
MOST_CLASSES = 24
"""Classes that a page shows, the most frequent ones."""
ROWS = 6
"""Samples that a page shows beside their nearest training images."""
SEARCHED = 10**8
"""Numbers of all training images, in which a page looks for neighbours; of more it leaves them out."""


def _beside(run: Run, out: Path, samples: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """What stands beside samples of images: real ones, classes, nearest training images."""
    data, count = run.dataset, run.dataset.size("train") or 0
    channels, height, width = run.data.shape
    names = data.class_names or tuple(map(str, range(data.classes or 0)))
    listed = ", ".join(names) if len(names) <= MOST_CLASSES else f"{len(names)} classes"
    kind = "grey" if channels == 1 else "in colour"
    about = f"{run.recipe.data.title}: {count:,} training images, {height}x{width}, {kind}"
    found: dict[str, Any] = {"data": f"{about}; {listed}" if names else about}
    some = data.draw(data.at_most(2000), generator=generator)
    found["real"] = out / "real.png"
    plots.save_picture(some.x[: len(samples)], found["real"])
    shares = run.model.label_weights
    if shares is not None:
        order = shares.argsort(descending=True, stable=True)[:MOST_CLASSES].sort().values.tolist()
        assert some.cond is not None
        made = run.sample(STRIP * len(order), generator=generator, label=order)
        strips = {}
        for place, label in enumerate(order):
            strip = made[place * STRIP : (place + 1) * STRIP]
            known = some.x[some.cond == label][:STRIP]
            strips[names[label]] = out / "classes" / f"{label}.png"
            sheet = plots.image_grid(torch.cat([strip, known]), columns=STRIP)
            plots.save_image(sheet, strips[names[label]])
        found["classes"] = strips
    if count >= 2 and count * math.prod(run.data.shape) <= SEARCHED:
        found |= _nearest(run, out, samples)
    return found


def _nearest(run: Run, out: Path, samples: Tensor) -> dict[str, Any]:
    """Samples beside their nearest training images, by pixels, which need no network."""
    data = run.dataset
    assert isinstance(data, FiniteDataset)
    count = data.size("train")
    training = data.take(torch.arange(count)).x.flatten(1)
    distances, indices = nearest_neighbours(
        samples.cpu().flatten(1), training, min(NEIGHBOUR, count)
    )
    near = indices[:ROWS]
    images = training[near.flatten()].unflatten(1, data.shape)
    paths = out / "nearest-samples.png", out / "nearest.png"
    plots.save_image(plots.image_grid(samples[:ROWS], columns=1, scale=2), paths[0])
    plots.save_image(plots.image_grid(images, columns=near.shape[1], scale=2), paths[1])
    copies = int(memorised(distances, EXACT).sum())
    said = f"{copies} of {len(samples)} samples look like copies"
    return {
        "nearest": paths,
        "copies": f"{said}: their nearest training image is less than a third as far as the next one.",
    }


def write_run_page(run: Run, *, n: int = 10_000, seed: int = 0) -> Path:
    """Evaluate a run, draw it, and write ``report.html`` in its folder."""
    summary = summarise(run, n=n, seed=seed)
    path = run.path / "report.html"
    write_page(path, run.title, [summary], command=run.command)
    return path


def compare_runs(
    runs: Sequence[Run], out: Path, *, n: int = 10_000, seed: int = 0
) -> tuple[list[RunSummary], Path]:
    """Measure runs of the same data alike and put them side by side.

    Args:
        runs: trained runs.
        out: folder for comparison.png, comparison.json and index.html.
        n: samples of the evaluation.
        seed: of samples and reference.

    Returns:
        The runs' summaries, and the page.

    Raises:
        ConfigError: if the runs are of different data, or there are none.
    """
    data = {run.recipe.data.title for run in runs}
    if len(data) != 1:
        raise ConfigError(
            f"only runs of the same data compare, these are of {', '.join(sorted(data)) or 'none'}."
        )
    with _removed_unless_done(out):
        return _compare(runs, out, n, seed), out / "index.html"


@contextlib.contextmanager
def _removed_unless_done(out: Path) -> Iterator[None]:
    """A block that makes a folder; where it fails, nothing of a new one stays."""
    there = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not there:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _compare(runs: Sequence[Run], out: Path, n: int, seed: int) -> list[RunSummary]:
    names = [run.path.name for run in runs]
    folders = [x if names.count(x) == 1 else f"{i}-{x}" for i, x in enumerate(names, start=1)]
    summaries = [
        summarise(run, out=out / folder, n=n, seed=seed)
        for run, folder in zip(runs, folders, strict=True)
    ]
    draw_comparison(runs, out / "comparison.png", seed=seed)
    record = {
        folder: {
            "recipe": s.title,
            "metrics": s.metrics,
            "left_out": s.left_out,
            "protocol": s.protocol,
        }
        for folder, s in zip(folders, summaries, strict=True)
    }
    write_json(out / "comparison.json", record)
    command = "partikel compare " + " ".join(str(run.path) for run in runs)
    title = f"Comparison on {runs[0].recipe.data.title}"
    write_page(out / "index.html", title, summaries, command=command)
    return summaries


def draw_comparison(runs: Sequence[Run], path: Path, *, seed: int = 0) -> None:
    """One picture of all runs' samples."""
    panels: dict[str, Tensor] = {}
    count = 1000 if len(runs[0].data.shape) == 1 else 64
    for run in runs:
        generator = seeded(seed, "comparison")
        label = run.recipe.title if run.recipe.title not in panels else run.path.name
        panels[label] = run.sample(count, generator=generator)
    generator = seeded(seed, "comparison data")
    data = shown_data(runs[0].dataset, count, generator)
    plots.save_figure(plots.comparison_figure(panels, data), path)


def _planar(run: Run) -> bool:
    return run.data.shape == (2,)
