"""The command line, made from typed functions.

Every command is a function of this module; its signature gives the options, its docstring the help.
What a user can mend ends in one sentence on standard error and exit code 2.
"""

from __future__ import annotations

import inspect
import json as jsonlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeAlias

from partikel.app.terminal import degrade
from partikel.errors import ConfigError, DataError, PartikelError, nearest
from partikel.errors.checks import (
    Count,
    Positive,
    Range,
    Seed,
    Size,
    check,
    fits,
    shown,
    types_of,
    words_of,
)
from partikel.files import json_text, replacing, write_json

if TYPE_CHECKING:
    from partikel.app.runs import Run

Steps: TypeAlias = Annotated[int, Range(0, 10**5)]

SolverName: TypeAlias = Literal[
    "euler",
    "heun",
    "midpoint",
    "rk4",
    "ddim",
    "dpmpp-2m",
    "adaptive",
    "euler-maruyama",
    "stochastic-heun",
    "sra1",
    "predictor-corrector",
]
"""The keys of :data:`partikel.solvers.SOLVERS`, which this module does not import: it loads PyTorch."""


def train(preset: str, out: str | None = None, dry_run: bool = False, **settings: Any) -> None:
    """Train a preset or a YAML configuration; the same command resumes.

    With several processes, start 'accelerate launch -m partikel train PRESET' (docs/cluster.md). Any
    setting of the recipe can be given as --key value, nested ones as --optimizer.lr 1e-3;
    'partikel train PRESET --help' lists them.

    Args:
        preset: name of a preset ('partikel presets' lists them), or path to a .yaml file.
        out: the run's folder; runs/PRESET unless given.
        dry_run: print the resolved configuration and stop.
        settings: the recipe's settings.
    """
    from partikel.app.config import dump_config, load_preset, make_recipe
    from partikel.app.runs import fit_batches, train_run
    from partikel.data import open_dataset

    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings, settings)
    given = (loaded.given, settings)
    if dry_run:
        dataset = open_dataset(recipe.data)
        recipe = fit_batches(recipe, dataset, given, lambda text: print(f"# {text}"))
        required = None if recipe.required is None else recipe.required.compose(dataset).model
        system = recipe.compose(dataset, required)
        print(dump_config(recipe, loaded.name), end="")
        count = sum(p.numel() for p in system.model.parameters())
        phases = ", ".join(f"{p.loss} x{p.repeats}" for p in system.phases) or "nothing"
        print(f"# {type(system.model).__name__}, {count:,} weights; an iteration runs {phases}")
        return
    from partikel.app.gallery import write_run_page
    from partikel.training.engine import all_done, processes

    folder = Path(out or f"runs/{loaded.name}")
    main_process = processes().is_main_process
    try:
        run = train_run(recipe, folder, preset=loaded.name, console=_console(), given=given)
    except PartikelError as error:
        if main_process or isinstance(error, DataError):  # data may be missing on one node only
            raise
        sys.exit(getattr(error, "exit_code", 2))  # the main process says why
    all_done()
    if not main_process:
        return
    page = write_run_page(run)
    print(f"trained {run.preset} for {run.step} iterations in {run.cpu_seconds:.0f} CPU seconds")
    print(f"run: {run.path}   page: {page}")


def sample(
    run: str,
    n: Size | None = None,
    out: str | None = None,
    label: str | None = None,
    guidance: float | None = None,
    steps: Count | None = None,
    stop: Steps | None = None,
    solver: SolverName | None = None,
    seed: Seed = 0,
) -> None:
    """Draw samples of a run into a .npz or .png file.

    Args:
        run: folder of a run.
        n: number of samples, at most what 4 GiB hold; 64 unless given, or 8 of each of several
            labels.
        out: file to write; RUN/samples.png unless given.
        label: class of the samples of a conditional model; several (0,3,7), or all, in equal shares
            and a row of images for each. Drawn at the data's frequencies unless given.
        guidance: weight of the labels (free particles only): 0 ignores them, 1 takes them as
            trained, more makes samples more typical of their class.
        steps: sampling steps instead of the run's own (free particles only).
        stop: stop after so many steps (free particles only).
        solver: another solver (free particles only).
        seed: of the samples.
    """
    import torch

    from partikel.app.runs import classes_in
    from partikel.app.show.plots import image_grid, is_images, save_image, save_picture

    loaded = _load(run)
    path = Path(out) if out else loaded.path / "samples.png"
    if path.suffix.lower() not in (".npz", ".png"):
        raise ConfigError(f"samples are written to .npz or .png files, not '{path.suffix}'.")
    sampling = _sampling(steps, stop, solver, guidance)
    generator = torch.Generator().manual_seed(seed)
    rows = 1 if label is None else len(classes_in(loaded.model, label))
    if n is None:
        n = 64 if rows == 1 else 8 * rows
    cond = None if n < 1 else loaded.labels(n, label, generator=generator)
    x = loaded.sample(n, generator=generator, cond=cond, **sampling)
    if path.suffix.lower() == ".npz":
        _save_npz(path, x=x.numpy(), **({} if cond is None else {"cond": cond.numpy()}))
    elif rows > 1 and is_images(x):
        save_image(image_grid(x, columns=n // rows), path)
    else:
        data = loaded.beside(min(n, 1000), generator)
        save_picture(x, path, data=data, title=f"{loaded.preset}: {n} samples")
    print(path)


def evaluate(
    run: str,
    n: Size = 10_000,
    split: Literal["test", "validation", "train"] = "test",
    features: str | None = None,
    baselines: bool = False,
    curve: Literal["nfe", "stop"] | None = None,
    at: list[Count] | None = None,
    steps: Count | None = None,
    stop: Steps | None = None,
    solver: SolverName | None = None,
    guidance: float | None = None,
    seed: Seed = 0,
    json: bool = False,
) -> None:
    """Measure a run's samples against the test data, beside the data against themselves.

    Under 'accelerate launch -m partikel evaluate RUN' the processes share the work.

    Args:
        run: folder of a run.
        n: samples, and reference points; images are at most as many as the split has.
        split: the reference; train is the convention of FID on 50,000 images.
        features: feature network for images: mnist, digits, pixels, efficientnet-lite0, inception,
            inception:FILE, dinov2, timm:MODEL or timm:MODEL@SIDE; what suits the data unless given.
        baselines: measure noise and the mean image too (images only).
        curve: measure along the number of steps (nfe) or of early stopping (stop) instead, into
            RUN/curve-NAME.json and .png (free particles only).
        at: the numbers of steps of the curve, as in [4,8,16].
        steps: sampling steps instead of the run's own (free particles only).
        stop: stop after so many steps (free particles only).
        solver: another solver (free particles only).
        guidance: weight of the labels (free particles only).
        seed: of samples and reference.
        json: print JSON instead of a table.
    """
    from partikel.app.gallery import curve_run, evaluate_run, launched

    loaded = _load(run)
    accelerator = launched()
    quiet = accelerator is not None and not accelerator.is_main_process
    options: dict[str, Any] = {"n": n, "seed": seed, "split": split, "features": features}
    options |= {"accelerator": accelerator, **_sampling(steps, stop, solver, guidance)}
    title = f"{loaded.preset}, iteration {loaded.step}"
    if curve is None:
        if at is not None:
            raise ConfigError(
                "--at names the numbers of steps of a curve: add --curve nfe or stop."
            )
        result = evaluate_run(loaded, baselines=baselines, **options)
        if not quiet:
            _show_evaluation(title, result, json)
        return
    if baselines or steps is not None or stop is not None:
        raise ConfigError(
            "a curve sets the steps itself: leave out --baselines, --steps and --stop."
        )
    path = curve_run(loaded, curve, at=at, **options)
    if not quiet:
        _show_curve(title, jsonlib.loads(path.read_text(encoding="utf-8")), json)
        print(path.with_suffix(".png"), file=sys.stderr if json else sys.stdout)


def neighbours(
    run: str,
    n: Size = 500,
    k: Count | None = None,
    rows: Count = 8,
    out: str | None = None,
    features: str | None = None,
    steps: Count | None = None,
    stop: Steps | None = None,
    solver: SolverName | None = None,
    guidance: float | None = None,
    seed: Seed = 0,
    json: bool = False,
) -> None:
    """Draw samples beside their nearest training images, and count those that are copies.

    A sample is memorised if its nearest training image is less than a third as far as the next one;
    the same share of test images stands beside it.

    Args:
        run: folder of a run of images.
        n: samples to look at.
        k: neighbours of each; 5, or all training images where they are fewer, unless given.
        rows: samples to show, those that look most like copies.
        out: picture to write, with a .json file beside it; RUN/neighbours.png unless given.
        features: feature network in whose space images are near, see 'partikel evaluate --help';
            pixels compares the images themselves.
        steps: sampling steps instead of the run's own (free particles only).
        stop: stop after so many steps (free particles only).
        solver: another solver (free particles only).
        guidance: weight of the labels (free particles only).
        seed: of the samples.
        json: print JSON instead of a table.
    """
    from partikel.app.gallery import neighbours_run

    loaded = _load(run)
    path = Path(out) if out else loaded.path / "neighbours.png"
    sampling = _sampling(steps, stop, solver, guidance)
    found = neighbours_run(
        loaded, path, n=n, k=k, rows=rows, seed=seed, features=features, **sampling
    )
    if json:
        print(json_text({"figures": found.figures, "protocol": found.protocol}))
        return
    title = f"{loaded.preset}, iteration {loaded.step}: nearest training images"
    kinds = [name.removeprefix("memorised ") for name in found.figures if "memorised" in name]
    shares = [
        [name, *(_number(found.figures[f"{key} {kind}"]) for kind in kinds)]
        for name, key in {"memorised": "memorised", "median distance": "distance of"}.items()
    ]
    _table(title, ["measure", *kinds], shares)
    print(", ".join(f"{k}: {v}" for k, v in found.protocol.items()))
    print(path)


def interpolate(
    run: str,
    method: Literal[
        "linear", "spherical", "cauchy-linear", "spherical-cauchy-linear"
    ] = "spherical-cauchy-linear",
    pairs: Count = 8,
    points: Count = 9,
    out: str | None = None,
    seed: Seed = 0,
) -> None:
    """Draw what lies between pairs of latents (generators) or of prior points (particles).

    Args:
        run: folder of a run.
        method: path between the latents.
        pairs: number of rows.
        points: points of a row, ends included.
        out: picture to write; RUN/interpolation-METHOD.png unless given.
        seed: of the latents.
    """
    from partikel.app.gallery import interpolate_run

    loaded = _load(run)
    path = Path(out) if out else loaded.path / f"interpolation-{method}.png"
    interpolate_run(loaded, path, method=method, pairs=pairs, points=points, seed=seed)
    print(path)


def animate(
    run: str,
    out: str | None = None,
    frames: Count = 40,
    fps: Annotated[int, Range(1, 1000)] = 12,
    n: Size | None = None,
    parts: bool = False,
    seed: Seed = 0,
) -> None:
    """Animate a run: particles along generation, or a generator along its training.

    Shows particles, the field's arrows, and a discriminator's potential as the background.

    Args:
        run: folder of a run.
        out: .gif or .mp4 file; RUN/animation.gif unless given.
        frames: number of frames, at most (a generator has those recorded in training).
        fps: frames a second.
        n: number of particles.
        parts: show the two scores of a Score GAN apart, at perturbed points.
        seed: of the particles.
    """
    from partikel.app.gallery import animate_run

    loaded = _load(run)
    path = Path(out) if out else loaded.path / "animation.gif"
    animate_run(loaded, path, frames=frames, fps=fps, n=n, parts=parts, seed=seed)
    print(path)


def compare(runs: list[str], out: str = "comparison", n: Size = 10_000, seed: Seed = 0) -> None:
    """Put runs side by side: a table, one picture, one page.

    Args:
        runs: folders of runs of the same data.
        out: folder for comparison.png, comparison.json and index.html.
        n: samples of the evaluation.
        seed: of samples and reference.
    """
    from partikel.app.gallery import compare_runs

    rows, page = compare_runs([_load(run) for run in runs], Path(out), n=n, seed=seed)
    _comparison_table(rows)
    print(page)


def export(run: str, out: str | None = None) -> None:
    """Write a run's generator into a folder to publish: weights, configuration, model card, picture.

    partikel.load_generator(FOLDER) reads it back, without the run. Free particles have no generator:
    a Score GAN distils them.

    Args:
        run: folder of a run of a generator model.
        out: folder to write, new or empty; RUN/export unless given.
    """
    from partikel.app.export import export_run

    loaded = _load(run)
    print(export_run(loaded, Path(out) if out else loaded.path / "export"))


def presets(name: str | None = None) -> None:
    """List the presets with their measured results, or show one whole.

    Args:
        name: a preset to show, or a part of those to list (mnist, score-gan, paper).
    """
    import yaml

    # the list is read by itself, as recipes take seconds to import
    files = resources.files("partikel") / "recipes" / "presets"
    shipped = sorted(file.name[:-5] for file in files.iterdir() if file.name.endswith(".yaml"))
    listed = [each for each in shipped if name is None or name in each]
    if name is not None and (name in listed or not listed):
        from partikel.app.config import dump_config, load_preset, make_recipe

        loaded = load_preset(name)
        print(f"# {loaded.about}")
        print(dump_config(make_recipe(loaded.recipe, loaded.settings), loaded.name), end="")
        if loaded.measured:
            print(f"# measured: {jsonlib.dumps(loaded.measured)}")
        return
    rows = []
    for each in listed:
        loaded = yaml.safe_load((files / f"{each}.yaml").read_text(encoding="utf-8"))
        rows.append([each, _measured(loaded.get("measured") or {}), loaded.get("about", "")])
    _table("presets", ["name", "measured", "about"], rows, cut=True)


def verify(out: str = "verify", samples: Size = 10_000, seed: Seed = 0) -> None:
    """Check DiffFlow's theory by measurement: invariances, convergence rates, equivalences.

    Args:
        out: folder for verify.json and kl.png.
        samples: particles of each simulation.
        seed: of all random draws.
    """
    from partikel.studies.theory import verify as run_checks

    checks = run_checks(Path(out), samples=samples, seed=seed)
    rows = [
        [c.claim, _number(c.measured), c.relation, _number(c.expected), "yes" if c.holds else "NO"]
        for c in checks
    ]
    _table("DiffFlow's theory", ["claim", "measured", "", "expected", "holds"], rows)
    failed = [c.claim for c in checks if not c.holds]
    print(f"{len(checks) - len(failed)} of {len(checks)} claims hold; see {out}/kl.png")
    if failed:
        raise SystemExit(1)


def draw_map(
    out: str | None = None,
    run: str | None = None,
    samples: Size = 10_000,
    steps: Count | None = None,
    seed: Seed = 0,
) -> None:
    """Draw the plane from GANs to diffusion (DiffFlow's Figure 1), with samples at its points.

    With exact fields; with --run with what a run has learned, at the points that its networks reach.

    Args:
        out: folder for map.png and map.json; map, or RUN/map, unless given.
        run: folder of a run of edm or diffflow on points of the plane.
        samples: particles at each point.
        steps: of the solver; 240, or 120 with a run, unless given.
        seed: of all random draws.
    """
    from partikel.studies.plane import draw_map as run_map
    from partikel.studies.plane import learned_fields

    options: dict[str, Any] = {"samples": samples, "steps": steps, "seed": seed}
    folder = Path(out or "map")
    if run is not None:
        from partikel.recipes import PlanePoint

        loaded = _load(run)
        folder = Path(out) if out else loaded.path / "map"
        score, critic, path = learned_fields(loaded.model)
        label = f"Learned: the score of '{loaded.preset}', iteration {loaded.step}"
        if critic is not None and isinstance(loaded.recipe, PlanePoint):
            place, n = f"({loaded.recipe.g2:g}, {loaded.recipe.lambda2:g})", loaded.recipe.steps
            label += f"; the discriminator, trained on particles of {n} steps at {place}"
        fields = {"score": score, "critic": critic, "schedule": path, "label": label}
        options |= {"dataset": loaded.dataset, **fields}
    print(run_map(folder, **options))


def draw_matrix(
    out: str = "matrix",
    target: str = "gaussians",
    rows: list[str] | None = None,
    seeds: list[Seed] | None = None,
    cap: Count | None = None,
) -> None:
    """Run every field with free particles and with a generator: pictures, measures, CPU seconds.

    The same command continues: cells that are in OUT/matrix.json already are not run again.

    Args:
        out: folder for matrix.json, matrix.png and the samples.
        target: two-dimensional data with a density: gaussians, unequal, ring, grid25.
        rows: the fields, as in [svgd,sliced]; all of them unless given.
        seeds: as in [0,1,2]; 0 unless given. Measures are the worst over seeds, seconds their mean.
        cap: iterations of any training, at most; the catalogue's own unless given.
    """
    from partikel.studies.catalogue import HEADER, reasons, run_matrix, table

    cells = run_matrix(
        Path(out), target=target, rows=rows, seeds=seeds or [0], cap=cap, console=_console()
    )
    _table(
        f"Fields and carriers on {target} (SW2: sliced Wasserstein-2)", HEADER, table(cells, target)
    )
    for (row, carrier), reason in reasons(cells).items():
        print(f"{row}, {carrier}: {reason}")
    print(Path(out) / "matrix.png")


def demo(out: str = "demo", seed: Seed = 0) -> None:
    """Train the four models on Gaussians and one on digits, and make a page of them (5 minutes).

    Args:
        out: folder for the runs and the page.
        seed: of all runs.
    """
    from partikel.app.demo import run_demo

    rows, page = run_demo(Path(out), seed=seed, console=_console())
    _comparison_table(rows)
    print(f"\nOpen this page: {page.resolve()}")


def likelihood(
    run: str,
    data: Literal["test", "validation", "train"] = "test",
    method: Literal["ode", "elbo", "map"] = "ode",
    bits: bool = False,
    n: Size | None = None,
    labels: bool = False,
    divergence: Literal["auto", "exact", "rademacher", "gaussian"] = "auto",
    probes: Count = 1,
    solver: Literal["dopri5", "dopri8", "rk4", "heun"] = "dopri5",
    tolerance: Positive = 1e-5,
    steps: Count = 100,
    draws: Count = 32,
    inference: Literal["linear", "tight"] = "linear",
    batch: Size = 100,
    agree: Annotated[int, Range(0, 2**24)] | None = None,
    seed: Seed = 0,
    json: bool = False,
) -> None:
    """Measure the log-likelihood of data under a run of free particles; the same command resumes.

    Exact for the probability-flow ODE (ode), a lower bound for the SDE (elbo), or exact for the steps of
    Euler's method that a Discriminator Flow takes (map). A figure that has not converged is refused, and
    one of an ODE whose samples are not the run's is marked.

    Args:
        run: folder of a run.
        data: the split that is measured.
        method: ode, elbo or map.
        bits: bits per dimension of bytes; an error where the data are none.
        n: points; all of the split, or 1000 fresh ones, unless given.
        labels: give a conditional model the labels of the data.
        divergence: exact, or by Hutchinson's rademacher or gaussian probes; what suits D unless given.
        probes: of Hutchinson's estimator.
        solver: of the ODE; dopri5 and dopri8 follow the tolerance, rk4 and heun take steps.
        tolerance: of an adaptive solver.
        steps: of a fixed solver, or of tight inference.
        draws: times for each point (elbo).
        inference: linear, which is tight on the rows g² = 2λ², or tight, which simulates (elbo).
        batch: points at once.
        agree: samples by which the ODE and the run's own sampler are compared; 1000 for points, 0 for
            images, unless given.
        seed: of points, noise and probes.
        json: print JSON instead of a table.
    """
    import torch
    from rich.progress import Progress

    from partikel.likelihood import (
        Integrator,
        agreement,
        dataset_likelihood,
        generative_sde,
        probability_flow,
    )

    loaded = _load(run)
    if labels and loaded.model.label_weights is None:
        raise ConfigError("this model was trained without labels: leave out --labels.")
    points = len(loaded.data.shape) == 1
    dtype = torch.float64 if points else torch.float32
    model = loaded.model.to(dtype)
    integrator = Integrator(solver, tolerance, steps)
    context = loaded.context()
    real = None if context is None else context.to(dtype)
    flow = probability_flow(model, real=real)
    asked: Any = flow
    if method == "elbo":
        at = getattr(loaded.recipe, "flow", None)
        asked = generative_sde(model, at, sigma_data=loaded.data.sigma_data)
    elif method == "map":
        asked = model
    with Progress(console=_console(), transient=True) as shown:
        task = shown.add_task("likelihood", total=None)
        report = dataset_likelihood(
            asked,
            loaded.dataset,
            n=n,
            split=data,
            seed=seed,
            batch=batch,
            bits=bits or None,
            labels=labels,
            divergence=divergence,
            probes=probes,
            integrator=integrator,
            draws=draws,
            inference=inference,
            steps=steps,
            real=real,
            dtype=dtype,
            about=f"{loaded.preset} at iteration {loaded.step}",
            folder=loaded.path / "likelihood",
            progress=lambda done, total: shown.update(task, completed=done, total=total),
        )
        record = report.as_dict()
        agree = (1000 if points else 0) if agree is None else agree
        if method == "ode" and agree:
            generator = torch.Generator().manual_seed(seed)
            cond = loaded.labels(agree, generator=generator)
            own = loaded.sample(agree, generator=generator, cond=cond)
            found = agreement(flow, own, generator=generator, cond=cond, integrator=integrator)
            record |= {
                "ode_to_sampler": found.distance,
                "same_law_quantile": found.quantile,
                "agrees": found.agrees,
            }
    path = loaded.path / f"likelihood-{method}.json"
    write_json(path, record)
    if json:
        print(json_text(record))
        return
    title = {"ode": "log-likelihood of the ODE", "elbo": "lower bound (ELBO) of the SDE"}
    rows = [["nats per point", _number(report.log_prob), _number(report.standard_error)]]
    if report.bits_per_dim is not None:
        rows.append(["bits/dim", f"{report.bits_per_dim:.4f}", _number(report.bits_error)])
    if report.solver_error is not None:
        rows.append(["error of the solver", _number(report.solver_error), "-"])
    if "agrees" in record:
        limit = _number(record["same_law_quantile"])
        rows.append(["ODE to sampler", _number(record["ode_to_sampler"]), f"limit {limit}"])
    name = title.get(method, "log-likelihood of the sampler's own steps")
    _table(f"{loaded.preset}, iteration {loaded.step}: {name}", ["", "value", "±"], rows)
    print(", ".join(f"{k}: {v}" for k, v in report.protocol.items() if k in _SHORT_LIKELIHOOD))
    if record.get("agrees") is False:
        print(
            "NOTE: the ODE's samples are not those of this run's sampler, so that this is the "
            "likelihood of another model; --method map is that of a sampler by Euler's method."
        )
    print(path)


def reproduce(
    items: list[str],
    scale: Literal["smoke", "cpu", "paper"] = "cpu",
    out: str | None = None,
    runs: str = "runs/reproduce",
    again: bool = False,
    check: bool = False,
) -> None:
    """Reproduce tables, figures and claims of the papers, and set them beside what was measured.

    'partikel reproduce list' names the items; all stands for every one. Interrupted, the same command goes
    on; what has a result of the same plan is not measured again.

    Args:
        items: names of items, or all.
        scale: smoke runs in seconds and decides nothing; cpu takes minutes to an hour an item; paper
            has the papers' settings, for a GPU.
        out: folder of results, with README.md as their list; reproduce/SCALE unless given.
        runs: folder of trained runs, which items share.
        again: measure items that have a result too.
        check: measure nothing, but say on the pages in --out which of them are stale: made with other
            settings, another rule of judgement or other code that measures than today's.
    """
    from partikel.studies.items import ITEMS
    from partikel.studies.reproduce import check as check_pages
    from partikel.studies.reproduce import reproduce as run_items

    if items == ["list"]:
        listed = [[name, item.source, item.title] for name, item in ITEMS.items()]
        _table("The papers' items", ["item", "paper", "what"], listed)
        return
    folder = Path(out or f"reproduce/{scale}")
    if check:
        for name, old in check_pages(folder).items():
            said = f"stale ({', '.join(old)})" if old else "fresh"
            print(f"{name}: {said}")
        return
    names = list(ITEMS) if items == ["all"] else items
    results, errors = run_items(
        names, scale, out=folder, runs=Path(runs), again=again, console=_console()
    )
    for result in results:
        print(f"{result['item']}: {result['title']}")
        for finding in result["findings"]:
            print(f"  {finding['claim']['text']} ({finding['claim']['source']})")
            print(f"    {finding['where']}: {finding['measured']}")
            print(f"    {finding['judgement']['verdict']}")
    if results:
        print(f"pages: {folder}/README.md")
    if errors:
        raise ConfigError("; ".join(f"{name}: {error}" for name, error in errors.items()))


_COMMANDS = (
    *(train, sample, evaluate, neighbours, interpolate, animate, compare, export, likelihood),
    *(presets, verify, draw_map, draw_matrix, reproduce, demo),
)
COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.removeprefix("draw_"): command for command in _COMMANDS
}

_ALIASES = {"-n": "--n", "-o": "--out"}
_LISTED = {
    "compare": ("runs", "folders of runs of the same data"),
    "reproduce": ("items", "names of items, or all"),
}
"""Commands with a list of words: the parameter's name, and its help."""
_SHORT_LIKELIHOOD = (
    *("data", "points", "split", "seed", "method", "divergence", "inference", "draws"),
)
_SHORT_PROTOCOL = (
    *("data", "samples", "split", "seed", "features"),
    *("steps", "stop", "solver", "guidance", "nfe"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, with 2 after a mistake, with 130 or 143 when stopped."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    # before PyTorch is imported: threads that spin slow a busy machine down many times
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    degrade(sys.stdout, sys.stderr)
    try:
        _run(tokens)
    except PartikelError as error:
        _stop(str(error), getattr(error, "exit_code", 2))
    except KeyboardInterrupt:
        _stop("interrupted.", 130)
    except BrokenPipeError:  # the reader of our output left; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _stop(f"{error.strerror or error}: {error.filename or ''}")
    except RecursionError:
        _stop("what was given nests too deeply: make it flatter.")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        _stop("there is not enough memory: ask for fewer at once (batch, n, width, steps).")


_OUT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory", re.IGNORECASE)


def _stop(sentence: str, code: int = 2) -> NoReturn:
    """End with a sentence, on one line whatever the names in it hold."""
    print(f"partikel: {PartikelError(sentence)}", file=sys.stderr)
    sys.exit(code)


def _run(tokens: list[str]) -> None:
    if not tokens or tokens[0] in ("-h", "--help"):
        _overview()
        return
    if tokens[0] == "--version":
        from importlib.metadata import version

        print(f"partikel {version('partikel')}")
        return
    name, rest = tokens[0], tokens[1:]
    if name not in COMMANDS:
        raise ConfigError(f"there is no command '{name}': {nearest(name, list(COMMANDS))}")
    if {"-h", "--help"} & set(rest):
        _help(name, rest)
        sys.exit(0)
    values, settings = _parse(name, rest)
    if name == "train":
        from partikel.app.config import parse_overrides

        values |= parse_overrides(settings)
    COMMANDS[name](**values)


def _parse(name: str, tokens: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a command, each of its type and in its range, and the settings beside them.

    Options stand anywhere on the line. What is true or false needs no value.

    Raises:
        ConfigError: for an option that there is not, a value that is missing, or one that is wrong.
    """
    command = COMMANDS[name]
    hints = types_of(command)
    parameters = inspect.signature(command).parameters.values()
    own = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
    optional = {key for key, p in own.items() if p.default is not p.empty}
    places = [key for key in own if key not in optional or (name, key) == ("presets", "name")]
    values: dict[str, Any] = {}
    settings: list[str] = []
    words: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        option, equals, text = token.partition("=")
        if not token.startswith("-") or token == "-":
            words.append(token)
            continue
        key = _ALIASES.get(option, option)[2:].replace("-", "_")
        flag = key in optional and own[key].default is False
        if not option.startswith("--") and option not in _ALIASES:
            raise _no_option(name, option, optional)
        if key not in optional and name != "train":
            raise _no_option(name, option, optional)
        if not equals and not (flag and (not rest or rest[0].lower() not in ("true", "false"))):
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{option} needs a value: write {option} VALUE.")
            text = rest.pop(0)
        elif not equals:
            text = "true"
        if key in optional:
            values[key] = _value(name, option, text, hints[key])
        else:
            settings.append(f"{option}={text}")
    for key in places:
        listed = name in _LISTED
        if not words and key not in optional:
            raise ConfigError(f"'partikel {name}' needs more: see 'partikel {name} --help'.")
        if words:
            text, words = (words, []) if listed else (words[0], words[1:])
            check(text, hints[key], f"'{key}' of 'partikel {name}'")
            values[key] = text
    if words:
        hint = "write --key value" if name == "train" else f"see 'partikel {name} --help'"
        raise ConfigError(f"'{words[0]}' belongs to no setting: {hint}.")
    return values, settings


def _value(name: str, option: str, text: str, hint: Any) -> Any:
    """The value of an option, from its text."""
    from partikel.app.reading import given, typed

    value = typed(given(text, option), hint)
    if not fits(value, hint):
        check(text, str, f"the option '{option}'")
        said = f"the option '{option}' of 'partikel {name}' must be {words_of(hint)}"
        raise ConfigError(f"{said}, got {shown(text)}.")
    return value


def _no_option(name: str, option: str, known: set[str]) -> ConfigError:
    names = [f"--{each.replace('_', '-')}" for each in known]
    return ConfigError(f"'partikel {name}' has no option {option}: {nearest(option, names)}")


def _help(name: str, tokens: list[str]) -> None:
    from jsonargparse import ArgumentParser

    command = COMMANDS[name]
    parser = ArgumentParser(prog=f"partikel {name}", description=_summary(command))
    skip: set[str | int] = {"settings"}
    if name in _LISTED:
        listed, about = _LISTED[name]
        parser.add_argument(listed, nargs="+", type=str, help=about)
        skip = {listed}
    parser.add_function_arguments(command, as_positional=True, skip=skip, fail_untyped=False)
    for group in parser._action_groups:  # titled by the docstring's first line, which stands above
        if group.title and group.title.startswith(_summary(command).splitlines()[0].rstrip(".")):
            group.title = "arguments"
    print(_dashed(parser.format_help()))
    if name == "train":
        _train_help(tokens)


def _train_help(tokens: list[str]) -> None:
    from partikel.app.config import load_preset, recipe_parser
    from partikel.recipes import RECIPES

    try:
        values, _ = _parse("train", [token for token in tokens if token not in ("-h", "--help")])
    except ConfigError:
        print("Name a preset to see its recipe's settings: partikel train edm-gaussians --help")
        return
    loaded = load_preset(values["preset"])
    print(f"Settings of the recipe '{loaded.recipe}':\n")
    print(recipe_parser(RECIPES[loaded.recipe], prog="").format_help().split("\n\n", 1)[-1])


def _overview() -> None:
    print("usage: partikel COMMAND [options]\n")
    print("A generative model is a field and something that carries it: free particles, or a")
    print("generator. Partikel trains, samples, measures and shows such models.\n\ncommands:")
    for name, command in COMMANDS.items():
        print(f"  {name:<12} {_summary(command).splitlines()[0]}")
    print("\n'partikel COMMAND --help' tells more. Start with 'partikel demo'.")


def _summary(command: Callable[..., None]) -> str:
    return (command.__doc__ or "").split("Args:")[0].strip()


def _dashed(text: str) -> str:
    return re.sub(r"--\w+", lambda option: option[0].replace("_", "-"), text)


def _sampling(
    steps: int | None, stop: int | None, solver: SolverName | None, guidance: float | None
) -> dict[str, Any]:
    """What is given of a command's options of sampling."""
    from partikel.models import Sampling
    from partikel.solvers import SOLVERS

    chosen = None if solver is None else SOLVERS[solver]()
    return Sampling(steps, stop, chosen, guidance).given


def _load(run: str) -> Run:
    from partikel.app.runs import load

    return load(run)


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _save_npz(path: Path, **arrays: Any) -> None:
    import numpy as np

    with replacing(path) as part:
        np.savez_compressed(part, **arrays)


def _measured(measured: dict[str, Any]) -> str:
    if not measured:
        return "-"
    name, value = next(iter(measured.items()))
    return f"{name} {_number(value)}, {measured['cpu_seconds']} s"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(title: str, header: list[str], rows: list[list[str]], cut: bool = False) -> None:
    """Print a table; sentences in it wrap, or are ``cut`` to one line where the terminal is narrow."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    names = max((len(row[0]) for row in rows), default=0) <= 44  # names stay whole, sentences wrap
    table.add_column(header[0], no_wrap=names)
    for column in header[1:]:
        table.add_column(column, no_wrap=cut or not names)
    if cut:  # what is cut is the last column
        for column, cells in zip(table.columns[:-1], zip(*rows, strict=True), strict=False):
            column.min_width = max(map(len, cells))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _comparison_table(summaries: Sequence[Any]) -> None:
    """A table for each data set: a column for each run, and one for the data themselves."""
    for data in dict.fromkeys(s.protocol["data"] for s in summaries):
        those = [s for s in summaries if s.protocol["data"] == data]
        rows = [
            ["field", *(s.field for s in those), ""],
            ["carrier", *(s.carrier for s in those), ""],
            ["CPU seconds", *(f"{s.cpu_seconds:.0f}" for s in those), ""],
        ]
        for name in dict.fromkeys(key for s in those for key in (*s.metrics, *s.left_out)):
            values = [s.metrics.get(name, s.left_out.get(name)) for s in those]
            values.append(those[0].protocol["reference"].get(name))
            rows.append([name, *(_number(value) for value in values)])
        titles = [s.title for s in those]
        names = [s.title if titles.count(s.title) == 1 else s.name for s in those]
        _table(data, ["", *names, "data vs data"], rows)


def _show_evaluation(title: str, result: Any, json: bool) -> None:
    if json:
        print(json_text(result.as_dict()))
        return
    columns = {"model": result.metrics, "data vs data": result.reference, **result.baselines}
    columns["model"] = {**result.metrics, **result.left_out}
    rows = [[k, *(_number(row.get(k)) for row in columns.values())] for k in columns["model"]]
    _table(title, ["measure", *columns], rows)
    print(", ".join(f"{k}: {v}" for k, v in result.protocol.items() if k in _SHORT_PROTOCOL))


def _show_curve(title: str, record: dict[str, Any], json: bool) -> None:
    if json:
        print(json_text(record))
        return
    along, names = record["along"], list(record["reference"])
    value = {"nfe": "steps", "stop": "stop"}[along]
    rows = [
        [f"{p[value]}", f"{p['nfe']}", *(_number(p["metrics"][k]) for k in names)]
        for p in record["points"]
    ]
    rows.append(["data", "", *(_number(record["reference"][k]) for k in names)])
    _table(title, [value, "nfe", *names], rows)
    print(", ".join(f"{k}: {v}" for k, v in record["protocol"].items() if k in _SHORT_PROTOCOL))


if __name__ == "__main__":
    main()
