"""The command line, made from typed functions.

Every command is a function of this module; its signature gives the options, its docstring the help.
What a user can mend ends in one sentence on standard error and exit code 2.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeAlias

from partikel import __version__
from partikel.app.terminal import degrade
from partikel.errors import ConfigError, PartikelError, nearest, one_line
from partikel.errors.checks import Count, Level, Positive, Range, Seed, Size, Width

if TYPE_CHECKING:
    from partikel.app.arguments import Option
    from partikel.app.runs import Run
    from partikel.models import Sampling
    from partikel.training import Initial

Split: TypeAlias = Literal["test", "validation", "train"]
SolverName: TypeAlias = Literal[
    "euler",
    "heun",
    "midpoint",
    "rk4",
    "ddim",
    "dpmpp-2m",
    "unipc-2",
    "unipc-3",
    "dpmpp-2m-sde",
    "adaptive",
    "euler-maruyama",
    "stochastic-heun",
    "sra1",
    "predictor-corrector",
]
"""The keys of :data:`partikel.solvers.SOLVERS`, which this module does not import: it loads PyTorch."""


@dataclass(frozen=True)
class Drawn:
    """How samples are drawn, where not as the run says (free particles; a flow map's steps are jumps).

    Attributes:
        steps: sampling steps instead of the run's own, at the nodes that were placed for as many
            (docs/few-steps.md).
        levels: the noise levels that sampling passes through instead, as in [10,1,0.1].
        stop: stop after so many steps.
        solver: another solver.
        guidance: weight of the labels: 0 ignores them, 1 takes them as trained, more makes samples more
            typical of their class.
        path: follow the probability flow of a model of noised data along another path, on as many even
            steps of its time unless levels are given.
    """

    steps: Count | None = None
    levels: list[Level] | None = None
    stop: Annotated[int, Range(0, 10**5)] | None = None
    solver: SolverName | None = None
    guidance: float | None = None
    path: Literal["linear", "trigonometric", "vp"] | None = None

    def by(self, run: Run) -> Sampling:
        """The record for a run."""
        from partikel.models import nodes_at
        from partikel.schedules import PATHS
        from partikel.solvers import SOLVERS

        path = None if self.path is None else PATHS[self.path]()
        return run.sampling(
            steps=self.steps,
            grid=None if self.levels is None else nodes_at(run.model, self.levels, path),
            stop=self.stop,
            solver=None if self.solver is None else SOLVERS[self.solver](),
            guidance=self.guidance,
            path=path,
        )


_AS_TRAINED = Drawn()


def train(
    preset: str | None = None,
    /,
    own_data: str | None = None,
    out: str | None = None,
    from_: str | None = None,
    from_optimizers: bool = False,
    dry_run: bool = False,
    **settings: Any,
) -> None:
    """Train a preset, a YAML configuration, or a recipe on pictures of your own; the same command resumes.

    'partikel train edm --data PICTURES' looks at them and chooses size, network, batch and length; edm may
    be any recipe (gan, discriminator-flow, score-gan, ...).

    A run goes on with another --evaluate-every, --evaluate-samples, --checkpoint-every, engine or place of
    its data, and with more --iterations where nothing refers to their number. For any other change,
    --from RUN --out NEW starts a new run from its weights (docs/training.md).

    With several processes, start 'accelerate launch -m partikel train PRESET' (docs/cluster.md). Any
    setting of the recipe can be given as --key value, nested ones as --optimizer.lr 1e-3;
    'partikel train PRESET --help' lists them.

    Args:
        preset: name of a preset ('partikel presets' lists them) or of a recipe, or path to a .yaml file;
            with --from, the run's own settings unless given.
        own_data: your own pictures: a folder (its sub-folders are classes), a .zip file, a data set's name,
            or OWNER/NAME on the Hugging Face Hub.
        out: the run's folder; runs/PRESET, with the data's name where --data is given, or RUN-2 with
            --from RUN, unless given.
        from_: folder of a run whose weights and averages the new run begins with.
        from_optimizers: take the state of that run's optimisers too.
        dry_run: print what was chosen and the resolved configuration, and stop.
        settings: the recipe's settings.
    """
    from partikel.app import gallery
    from partikel.app.reading import given

    if own_data is not None and own_data.lstrip().startswith("{"):  # settings, as of any group
        settings["data"], own_data = given(own_data, "--data"), None
    line = (preset, settings, own_data, out, _initial(from_, from_optimizers))
    if dry_run:
        print(gallery.plan_preset(*line), end="")
        return
    _say_trained(gallery.train_preset(*line, _console()))


def distil(run: str, /, out: str | None = None, **settings: Any) -> None:
    """Learn where the particles of a run end up: a flow map, which makes samples in one call.

    Any run of free particles can be distilled: a diffusion or flow matching, a point of the plane (its
    probability flow), a Discriminator Flow (its own N steps). The same command resumes.

    Args:
        run: folder of the run to distil.
        out: the new run's folder; RUN-distilled unless given.
        settings: those of the recipe 'distillation': --iterations 4000, --network.width 512.
    """
    from partikel.app import gallery

    _say_trained(gallery.distil_run(_load(run), settings, out, _console()))


def _say_trained(trained: tuple[Run, Path] | None) -> None:
    if trained is not None:
        run, page = trained
        spent = f"{run.cpu_seconds:.0f} CPU seconds"
        print(f"trained {run.preset} for {run.step} iterations in {spent}")
        print(f"run: {run.path}   page: {page}")


def _initial(run: str | None, optimizers: bool) -> Initial | None:
    """The run that a training begins with."""
    from partikel.training import Initial

    if run is None and optimizers:
        raise ConfigError("--from-optimizers is of a run to start from: give it with --from RUN.")
    return None if run is None else Initial(run, optimizers)


def sample(
    run: str,
    /,
    n: Size | None = None,
    out: str | None = None,
    label: str | None = None,
    drawn: Drawn = _AS_TRAINED,
    seed: Seed = 0,
) -> None:
    """Draw samples of a run into a .npz or .png file.

    Args:
        run: folder of a run, or of an export.
        n: number of samples, at most what 4 GiB hold; 64 unless given, or 8 of each of several
            labels.
        out: file to write; RUN/samples.png unless given.
        label: class of the samples of a conditional model, by name or number; several (0,3,7), or all,
            in equal shares and a row of images for each. Drawn at the data's frequencies unless given.
        drawn: how.
        seed: of the samples.
    """
    from partikel.app import gallery

    loaded = _load(run)
    path = Path(out) if out else loaded.made / "samples.png"
    gallery.sample_run(loaded, path, n=n, label=label, sampling=drawn.by(loaded), seed=seed)
    print(path)


def tune(
    run: str,
    /,
    steps: Count = 4,
    solver: SolverName | None = None,
    criterion: Literal["path", "data"] | None = None,
    guidance: float | None = None,
    seed: Seed = 0,
    json: bool = False,
) -> None:
    """Place the nodes of few steps, so that samples of as many are as good as they can be.

    They are kept in RUN/placed.json and taken from then on wherever --steps asks for as many. Half of the
    particles decide that did not take part in the search.

    Args:
        run: folder of a run of free particles, or of its export.
        steps: how many.
        solver: a deterministic one; unipc-2 for a model of noised data, the run's own for others, unless
            given.
        criterion: path, how far paths end from where converged ones do, or data, the distance of samples to
            training data, where validation data decide; data for images, path for points, unless given.
        guidance: weight of the labels that samples will be drawn with.
        seed: of the particles.
        json: print JSON instead of a table.
    """
    from partikel.app import tables
    from partikel.app.progress import progress_of
    from partikel.app.tuning import tune_run

    loaded = _load(run)
    with progress_of("placing nodes", None if json else _console()) as told:
        found = tune_run(
            loaded,
            steps,
            solver=solver,
            criterion=criterion,
            guidance=guidance,
            seed=seed,
            told=told,
        )
    _show(tables.placed, found, f"{loaded.preset}, iteration {loaded.step}", json)


def evaluate(
    run: str,
    /,
    n: Size = 10_000,
    split: Split = "test",
    features: str | None = None,
    measures: str | None = None,
    baselines: bool = False,
    curve: Literal["nfe", "stop"] | None = None,
    at: list[Count] | None = None,
    drawn: Drawn = _AS_TRAINED,
    seed: Seed = 0,
    json: bool = False,
) -> None:
    """Measure a run's samples against the test data, beside the data against themselves.

    Under 'accelerate launch -m partikel evaluate RUN' the processes share the work.

    Args:
        run: folder of a run.
        n: samples, and reference points; images are at most as many as the split has.
        split: the reference; train is the convention of FID on 50,000 images.
        features: feature network for images: mnist, digits, pixels, efficientnet-lite0 to -lite2,
            inception, inception:FILE, dinov2, timm:MODEL or timm:MODEL@SIDE; what suits the data
            unless given.
        measures: further ones to add, by name, several with commas: mind and fdr of images
            (docs/evaluation.md), and those of other packages (docs/extending.md).
        baselines: measure noise and the mean image too (images only).
        curve: measure along the number of steps (nfe) or of early stopping (stop) instead, into
            RUN/curve-NAME.json and .png (free particles and flow maps).
        at: the numbers of steps of the curve, as in [4,8,16].
        drawn: how samples are drawn.
        seed: of samples and reference.
        json: print JSON instead of a table.
    """
    from partikel.app import gallery, tables
    from partikel.files import read_json

    loaded = _load(run)
    accelerator = gallery.launched()
    quiet = accelerator is not None and not accelerator.is_main_process
    title = f"{loaded.preset}, iteration {loaded.step}"
    options: dict[str, Any] = {"n": n, "seed": seed, "split": split, "features": features}
    options |= {
        "accelerator": accelerator,
        "sampling": drawn.by(loaded),
        "measures": [each.strip() for each in measures.split(",")] if measures else (),
    }
    if curve is None and at is not None:
        raise ConfigError("--at names the numbers of steps of a curve: add --curve nfe or stop.")
    if curve is None:
        result = gallery.evaluate_run(loaded, baselines=baselines, **options)
        if not quiet:
            _show(tables.evaluation, result.as_dict(), title, json)
        return
    if baselines or drawn.steps is not None or drawn.stop is not None or drawn.levels is not None:
        raise ConfigError(
            "a curve sets the steps itself: leave out --baselines, --steps, --levels and --stop."
        )
    path = gallery.curve_run(loaded, curve, at=at, **options)
    if not quiet:
        _show(tables.curve, read_json(path), title, json)
        print(path.with_suffix(".png"), file=sys.stderr if json else sys.stdout)


def neighbours(
    run: str,
    /,
    n: Size = 500,
    k: Count | None = None,
    rows: Count = 8,
    out: str | None = None,
    features: str | None = None,
    drawn: Drawn = _AS_TRAINED,
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
        drawn: how samples are drawn.
        seed: of the samples.
        json: print JSON instead of a table.
    """
    from partikel.app import gallery, tables

    loaded = _load(run)
    path = Path(out) if out else loaded.made / "neighbours.png"
    options: dict[str, Any] = {"n": n, "k": k, "rows": rows, "seed": seed, "features": features}
    found = gallery.neighbours_run(loaded, path, sampling=drawn.by(loaded), **options)
    title = f"{loaded.preset}, iteration {loaded.step}: nearest training images"
    record = {"figures": found.figures, "protocol": found.protocol}
    _show(tables.neighbours, record, title, json)
    if not json:
        print(path)


def interpolate(
    run: str,
    /,
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
    from partikel.app import gallery

    loaded = _load(run)
    path = Path(out) if out else loaded.made / f"interpolation-{method}.png"
    gallery.interpolate_run(loaded, path, method=method, pairs=pairs, points=points, seed=seed)
    print(path)


def animate(
    run: str,
    /,
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
    from partikel.app import gallery

    loaded = _load(run)
    path = Path(out) if out else loaded.made / "animation.gif"
    gallery.animate_run(loaded, path, frames=frames, fps=fps, n=n, parts=parts, seed=seed)
    print(path)


def compare(runs: list[str], /, out: str = "comparison", n: Size = 10_000, seed: Seed = 0) -> None:
    """Put runs side by side: a table, one picture, one page.

    Args:
        runs: folders of runs of the same data.
        out: folder for comparison.png, comparison.json and index.html.
        n: samples of the evaluation.
        seed: of samples and reference.
    """
    from partikel.app import gallery, tables

    rows, page = gallery.compare_runs([_load(run) for run in runs], Path(out), n=n, seed=seed)
    tables.comparison(rows)
    print(page)


def export(
    run: str,
    /,
    out: str | None = None,
    format: Literal["partikel", "diffusers", "onnx"] = "partikel",
    steps: Count | None = None,
) -> None:
    """Write what a run has learned into a folder to publish: weights, configuration, model card, picture.

    'partikel sample FOLDER' and partikel.load(FOLDER) read it back, without the run and its data.

    Args:
        run: folder of a run, or of an export in another format.
        out: folder to write, new or empty; RUN/export, or RUN/export-FORMAT, unless given.
        format: partikel, for any run; diffusers, a pipeline's folder of an EDM whose network is a
            unet2d; onnx, the file of a generator or of a flow map that runs without PyTorch.
        steps: jumps of a flow map's ONNX file; as the run says unless given.
    """
    from partikel.app.export import export_run

    loaded = _load(run)
    name = "export" if format == "partikel" else f"export-{format}"
    print(export_run(loaded, Path(out) if out else loaded.made / name, format, steps=steps))


def push(
    folder: str, repo: str, /, private: bool = False, dry_run: bool = False, message: str = ""
) -> None:
    """Upload an exported folder to the Hugging Face Hub: the files that 'partikel export' wrote.

    Log in before, by 'hf auth login' or with HF_TOKEN in the environment. Read the card and fill in its
    licence first.

    Args:
        folder: what 'partikel export' wrote, in any format.
        repo: of the Hub, USER/NAME; it is made where there is none.
        private: make a new repository private.
        dry_run: show what would be uploaded and stop.
        message: of the commit.
    """
    from partikel.app.hub import push_folder, to_push

    files = to_push(Path(folder))
    for path, size in files.items():
        print(f"{size:>12,}  {path}")
    print(f"{sum(files.values()):>12,}  bytes to {repo}")
    if not dry_run:
        print(push_folder(Path(folder), repo, files, private=private, message=message))


def presets(name: str | None = None, /, json: bool = False) -> None:
    """List the presets with their measured results, or show one whole.

    Args:
        name: a preset to show, or a part of those to list (mnist, score-gan, paper).
        json: print what the presets' files say as JSON, measured results among it.
    """
    from partikel.app import tables
    from partikel.app.reading import foreign_recipes, shipped_presets
    from partikel.files import json_text

    listed = shipped_presets(name or "")
    ours = {each.get("recipe") for each in shipped_presets().values()} | {*listed}
    listed |= {k: about for k, about in foreign_recipes(name or "").items() if k not in ours}
    if json and listed:
        print(json_text({name: listed[name]} if name in listed else listed))
        return
    if name is not None and (name in listed or not listed):
        from partikel.app.config import shown_preset

        print(shown_preset(name), end="")
        return
    tables.presets(listed)


def verify(out: str = "verify", samples: Size = 10_000, seed: Seed = 0) -> None:
    """Check DiffFlow's theory by measurement: invariances, convergence rates, equivalences.

    Args:
        out: folder for verify.json and kl.png.
        samples: particles of each simulation.
        seed: of all random draws.
    """
    from partikel.app.tables import number, table
    from partikel.studies.theory import verify as run_checks

    checks = run_checks(Path(out), samples=samples, seed=seed)
    rows = [
        [c.claim, number(c.measured), c.relation, number(c.expected), "yes" if c.holds else "NO"]
        for c in checks
    ]
    table("DiffFlow's theory", ["claim", "measured", "", "expected", "holds"], rows)
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
    from partikel.studies.plane import draw_map_of

    options: dict[str, Any] = {"samples": samples, "steps": steps, "seed": seed}
    if run is None:
        print(run_map(Path(out or "map"), **options))
    else:
        loaded = _load(run)
        print(draw_map_of(loaded, Path(out) if out else loaded.made / "map", **options))


def explore(runs: list[str] | None = None, /, out: str | None = None) -> None:
    """Open a page on which particles move: the plane from GANs to diffusion, alive in a browser.

    The page is one file, which needs no network and can be sent. Without a screen it is written only.

    Args:
        runs: folders of runs to look at on it.
        out: .html file to write, and not to open; explorer.html, opened, unless given.
    """
    from partikel.app import explorer

    path = explorer.write_explorer(out or "explorer.html", [_load(run) for run in runs or ()])
    print(path)
    if out is None and not explorer.opened(path):
        print("open it in a browser: there is no screen to show it on.", file=sys.stderr)


def draw_matrix(
    out: str = "matrix",
    target: str = "gaussians",
    rows: Annotated[list[str], Range(1, 100)] | None = None,
    seeds: list[Seed] | None = None,
    cap: Count | None = None,
) -> None:
    """Run every field with free particles, a generator and a flow map: pictures, measures, CPU seconds.

    The same command continues: cells that are in OUT/matrix.json already are not run again.

    Args:
        out: folder for matrix.json, matrix.png and the samples.
        target: two-dimensional data with a density: gaussians, unequal, ring, grid25.
        rows: as in [svgd,sliced], of :data:`partikel.studies.catalogue.CATALOGUE`; all of them unless given.
        seeds: as in [0,1,2]; 0 unless given. Measures are the worst over seeds, seconds their mean.
        cap: iterations of any training, at most; the catalogue's own unless given.
    """
    from partikel.app import tables
    from partikel.studies import catalogue

    cells = catalogue.run_matrix(
        Path(out), target=target, rows=rows, seeds=seeds or [0], cap=cap, console=_console()
    )
    title = f"Fields and carriers on {target} (SW2: sliced Wasserstein-2)"
    tables.table(title, catalogue.HEADER, catalogue.table(cells, target))
    for (row, carrier), reason in catalogue.reasons(cells).items():
        print(f"{row}, {carrier}: {reason}")
    print(Path(out) / "matrix.png")


def league(
    data: str = "gaussians",
    size: Width | None = None,
    budget: Annotated[float, Range(above=0, most=1e9)] = 4000.0,
    seeds: Count = 3,
    out: str = "league",
    runs: str = "runs/league",
    methods: list[str] | None = None,
    features: str | None = None,
) -> None:
    """Compare what makes samples in one call, or in a few, on equal terms: one network, data and budget.

    GANs, distillations, fields of samples, flow maps, and beside them flows by 2, 4 and 8 calls. Interrupted,
    the same command goes on; other data add to the page.

    Args:
        data: a data set's name (gaussians, unequal, digits, ...), or your own pictures: a folder, a .zip
            file, or OWNER/NAME on the Hugging Face Hub.
        size: edge length of the images; as published unless given.
        budget: units of each training, those of a teacher included; a unit is about 10 ms on one core,
            and the whole league takes about 28 budgets a seed.
        seeds: how many.
        out: folder for league.md, league-DATA.json and pictures.
        runs: folder of what was measured already.
        methods: some of them, as in [GAN,MeanFlow,EDM]; all unless given.
        features: the network that images are measured by; one that suits them unless given.
    """
    from partikel.app import tables
    from partikel.app.planning import source_of
    from partikel.data import DataSettings
    from partikel.studies.league import run_league

    options: dict[str, Any] = {"units": budget, "seeds": seeds, "names": methods}
    options["features"] = features
    settings = DataSettings(**source_of(data), size=size)
    found = run_league(settings, out=Path(out), runs=Path(runs), console=_console(), **options)
    for each in found["tables"]:
        kept = [
            i for i, column in enumerate(each["columns"]) if column not in ("from", "iterations")
        ]
        rows = [[tables.number(row[i]) for i in kept] for row in each["rows"]]
        tables.table(each["title"], [each["columns"][i] for i in kept], rows)
    for finding in found["findings"]:
        print(f"{finding['claim']['text']}\n  {finding['measured']}")
        print(f"  {finding['judgement']['verdict']}")
    print(Path(out) / "league.md")


def demo(out: str = "demo", seed: Seed = 0) -> None:
    """Train the four models on Gaussians and one on digits, and make a page of them (5 minutes).

    Args:
        out: folder for the runs and the page.
        seed: of all runs.
    """
    from partikel.app import tables
    from partikel.app.demo import run_demo

    rows, page = run_demo(Path(out), seed=seed, console=_console())
    tables.comparison(rows)
    print(f"\nOpen this page: {page.resolve()}")


def likelihood(
    run: str,
    /,
    data: Split = "test",
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
    from partikel.app import gallery, tables
    from partikel.likelihood import Elbo, Integrator, Map, Method, Ode, Points

    ways: dict[str, Method] = {
        "ode": Ode(divergence, probes, Integrator(solver, tolerance, steps)),
        "elbo": Elbo(inference, draws, steps=steps),
        "map": Map(),
    }
    points, loaded = Points(data, n, seed, batch, labels, bits or None), _load(run)
    record, path = gallery.likelihood_run(
        loaded, ways[method], points, agree=agree, console=_console()
    )
    _show(tables.likelihood, record, f"{loaded.preset}, iteration {loaded.step}", json)
    if not json:
        print(path)


def reproduce(
    items: list[str] | None = None,
    /,
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
        items: names of items, or all; --check needs none.
        scale: smoke runs in seconds and decides nothing; cpu takes minutes to an hour an item; paper
            has the papers' settings, for a GPU.
        out: folder of results, with README.md as their list; reproduce/SCALE unless given.
        runs: folder of trained runs, which items share.
        again: measure items that have a result too.
        check: measure nothing, but say on the pages in --out which of them are stale: made with other
            settings, another rule of judgement or other code that measures than today's.
    """
    from partikel.app import tables
    from partikel.studies.items import ITEMS
    from partikel.studies.reproduce import check as check_pages
    from partikel.studies.reproduce import reproduce as run_items

    if items == ["list"]:
        listed = [[name, item.source, item.title] for name, item in ITEMS.items()]
        tables.table("The papers' items", ["item", "paper", "what"], listed)
        return
    folder = Path(out or f"reproduce/{scale}")
    if check:
        for name, old in check_pages(folder).items():
            said = f"stale ({', '.join(old)})" if old else "fresh"
            print(f"{name}: {said}")
        return
    if not items:
        raise ConfigError("name items to reproduce, or all: 'partikel reproduce list' lists them.")
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
    *(train, distil, tune, sample, evaluate, neighbours, interpolate, animate, compare, likelihood),
    *(export, push),
    *(presets, verify, draw_map, explore, draw_matrix, league, reproduce, demo),
)
COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.removeprefix("draw_"): command for command in _COMMANDS
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, with 2 after a mistake, with 130 or 143 when stopped."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    # before PyTorch is imported: threads that spin slow a busy machine down many times
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    degrade(sys.stdout, sys.stderr)
    warnings.formatwarning = lambda message, *_, **__: f"partikel: {one_line(str(message))}\n"
    try:
        _run(tokens)
    except PartikelError as error:
        _stop(str(error), getattr(error, "exit_code", 2))
    except KeyboardInterrupt:
        _stop("interrupted.", 130)
    except BrokenPipeError:  # the reader of our output left; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        why = error.strerror or error
        mend = "check the path, its rights, and that there is space"
        _stop(f"{error.filename or 'a file'} cannot be read or written ({why}): {mend}.")
    except RecursionError:
        _stop("what was given nests too deeply: make it flatter.")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        _stop("there is not enough memory: ask for fewer at once (batch, n, width, steps).")


_OUT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory", re.IGNORECASE)


def _stop(sentence: str, code: int = 2) -> NoReturn:
    """End with a sentence, on one line whatever the names in it hold."""
    print(f"partikel: {one_line(sentence)}", file=sys.stderr)
    sys.exit(code)


def _run(tokens: list[str]) -> None:
    if not tokens or tokens[0] in ("-h", "--help"):
        _overview()
        return
    if tokens[0] == "--version":
        print(f"partikel {__version__}")
        return
    name, rest = tokens[0], tokens[1:]
    if name not in COMMANDS:
        raise ConfigError(f"there is no command '{name}': {nearest(name, list(COMMANDS))}")
    from partikel.app.arguments import Option, parse, print_help
    from partikel.extensions import naming

    packages, rest = _allowed(rest)
    if not {"-h", "--help"} & set(rest):
        places, values = parse(name, COMMANDS[name], rest)
        with naming(packages, _words([places if name in _NAMING else (), values])):
            COMMANDS[name](*places, **values)
        return
    more = [Option("allow", str | None, None, ALLOW)]
    with naming(packages, _words(rest)):
        more += _settings(name, rest)
    print_help(name, COMMANDS[name], more)
    sys.exit(0)


ALLOW = (
    "packages whose parts a run or a file may name, with commas between (or $PARTIKEL_ALLOW): their code "
    "is run. What the command itself names is allowed."
)
_NAMING = ("train", "presets")
"""Commands whose first word is a name, not a folder."""
_PLACES = ("out", "run", "runs", "data_score")
"""Options that are folders."""


def _allowed(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """The packages that a line allows, and the rest of it."""
    packages: list[str] = []
    rest: list[str] = []
    words = iter(tokens)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--allow":
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value.strip("[], ") or value.startswith("-"):
            raise ConfigError("--allow needs a value: write --allow PACKAGE.")
        packages += [each.strip() for each in value.strip("[]").split(",") if each.strip()]
    return packages, rest


def _words(given: Any) -> set[str]:
    """The words in the arguments of a command."""
    if isinstance(given, dict):
        given = [value for key, value in given.items() if key not in _PLACES]
    if isinstance(given, (list, tuple)):
        return set().union(*map(_words, given))
    return set(re.findall(r"[^\s,:=\[\]{}]+", str(given)))


def _settings(command: str, tokens: list[str]) -> list[Option]:
    """The settings of the preset that a line of 'train' names, with the values that it gives them."""
    from partikel.app.arguments import options_in, parse

    if command == "distil":
        from partikel.recipes import Distillation

        every = options_in(Distillation, group="Settings of the recipe 'distillation'")
        return [option for option in every if option.key.split(".")[0] not in ("run", "teacher")]
    if command != "train":
        return []
    places, values = parse("train", train, [t for t in tokens if t not in ("-h", "--help")])
    own = {option.key: values.pop(option.key, None) for option in options_in(train, told=False)}
    if not places and own["from_"] is None:
        print("Name a preset to see its settings: partikel train edm-gaussians --help\n")
        return []
    from partikel.app.config import make_recipe
    from partikel.app.continuing import started

    loaded, *_ = started(places[0] if places else None, _initial(own["from_"], False), own["out"])
    recipe = make_recipe(loaded.recipe, loaded.settings, values)
    return options_in(type(recipe), recipe, group=f"Settings of the recipe '{loaded.recipe}'")


def _overview() -> None:
    print("usage: partikel COMMAND [options]\n")
    print("A generative model is a field and something that carries it: free particles,")
    print("a generator, or a flow map. Partikel trains, samples, measures and shows such")
    print("models.\n\ncommands:")
    for name, command in COMMANDS.items():
        said = textwrap.wrap(_summary(command).split("\n\n")[0], 65)
        print(f"  {name:<12} " + f"\n{' ' * 15}".join(said))
    print("\n'partikel COMMAND --help' tells more. Start with 'partikel demo'.")


def _summary(command: Callable[..., None]) -> str:
    return (command.__doc__ or "").split("Args:")[0].strip()


def _load(run: str) -> Run:
    from partikel.app.export import load

    return load(run)


def _show(table: Callable[[str, Any], None], record: Any, title: str, json: bool) -> None:
    from partikel.files import json_text

    print(json_text(record)) if json else table(title, record)


def _console() -> Any:
    from partikel.app.tables import console

    return console(stderr=True)


if __name__ == "__main__":
    main()
