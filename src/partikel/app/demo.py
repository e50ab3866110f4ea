"""The demonstration: four models on the paper's Gaussians, one on digits, and a page of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from partikel.app.config import load_preset, make_recipe
from partikel.app.gallery import draw_comparison, summarise
from partikel.app.runs import Run, train_run
from partikel.app.show.pages import RunSummary, write_page
from partikel.training.engine import one_thread

INTRO = """
A generative model is a <b>field</b> and something that <b>carries</b> it: free particles, which
follow the field as they are sampled, or a generator, whose outputs follow it while it is trained. EDM
and Score GAN carry scores, Discriminator Flow and GAN carry the gradient of a discriminator. The
arrows are the field; the shading behind a discriminator's particles is the potential that they
ascend.
"""

LENGTHS = {
    "edm-gaussians": 4000,
    "discriminator-flow-gaussians": 1500,
    "score-gan-gaussians": 2500,
    "gan-gaussians": 5000,
    "edm-digits": 5000,
}
"""The demo's presets and how many iterations of each it spends; the presets themselves take more."""


def run_demo(
    out: Path, *, seed: int = 0, console: Console | None = None
) -> tuple[list[RunSummary], Path]:
    """Train the demonstration's models (resuming what is there) and write its page.

    Args:
        out: folder for the runs, ``comparison.png`` and ``index.html``.
        seed: of all runs.
        console: where progress is shown.

    Returns:
        The runs' summaries, and the page.
    """
    with one_thread():
        runs = _train(out, seed, console)
        summaries = []
        for run in runs:
            if console is not None:
                console.print(f"measuring and drawing {run.preset}")
            summaries.append(summarise(run, seed=seed))
    planar = [run for run in runs if run.data.shape == (2,)]
    draw_comparison(planar, out / "comparison.png", seed=seed)
    page = out / "index.html"
    write_page(
        page,
        "Partikel: one field, two carriers",
        summaries,
        intro=INTRO,
        command=f"partikel demo --out {out}",
    )
    return summaries, page


def _train(out: Path, seed: int, console: Console | None) -> list[Run]:
    runs: dict[str, Run] = {}
    for name, iterations in LENGTHS.items():
        preset = load_preset(name)
        recipe = make_recipe(
            preset.recipe, preset.settings, {"iterations": iterations, "seed": seed}
        )
        recipe = dataclasses.replace(
            recipe, evaluate_every=max(1, iterations // 40), checkpoint_every=iterations
        )
        if recipe.required is not None:
            score = runs["edm-gaussians"].path
            recipe = dataclasses.replace(recipe, data_score=str(score))  # type: ignore[call-arg]
        runs[name] = train_run(recipe, out / name, preset=name, console=console)
    return list(runs.values())
