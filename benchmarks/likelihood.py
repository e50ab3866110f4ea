"""Likelihood: what an ODE's costs, and what training by the bound buys, on the five Gaussians and digits.

    python benchmarks/likelihood.py [--parts cost weighting joint row digits] [--seeds 0 1 2]

1. cost: seconds and error of the ODE's log-likelihood against its evaluations, of exact fields in 2-D and
   of a trained network on digits (D = 64), where peak memory is measured against the steps too.
2. weighting: denoising score matching with EDM's weights against likelihood weights, at the same
   learning rate and length. Held-out log-likelihood of the ODE, ELBO of the SDE, energy
   distance of samples, and the exact error of the score by noise level, which tells why. Each arm's
   best setting is chosen by the ELBO of other points.
3. joint: a Diffusion-GAN at (1.5, 1): its discriminator trained against particles, its discriminator by
   the ELBO, score and discriminator jointly by the ELBO; and ("row") the same at (1.5, 0.75), on the
   row g² = 2λ² where the bound is tight.
4. digits: EDM's weights against likelihood weights in bits/dim, and the samples' Fréchet distance.

All arms of a comparison see the same held-out points, noise and probes; differences are paired. Parts and
seeds that are not asked for stay as they are in the result. Takes about an hour of one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, one_thread, save  # isort: skip
import torch
from torch import Tensor

from partikel.app.config import load_preset, make_recipe
from partikel.app.gallery import evaluate_run
from partikel.app.runs import Run, train_run
from partikel.data import open_dataset
from partikel.denoising import Weighting
from partikel.diffflow import DiffFlow
from partikel.fields import At, AtScale, ExactScoreField, ScoreField
from partikel.likelihood import (
    Elbo,
    Integrator,
    Ode,
    ProbabilityFlow,
    byte_width,
    dequantised,
    generative_sde,
    probability_flow,
)
from partikel.metrics import energy_distance
from partikel.models import ParticleModel
from partikel.recipes import EDM, PlanePoint, Recipe
from partikel.schedules import VESchedule
from partikel.targets import GaussianMixture

SIGMA_MIN = 0.02
DIGITS_SIGMA_MIN = 0.05
POINTS = 2000
SETTINGS = ((1e-3, 2500),)
"""Learning rates and iterations on the Gaussians, for all arms."""

DIGITS_SETTINGS = ((1e-3, 1500), (1e-3, 6000))
STEPS = (8, 32, 128)
"""Of the runs whose memory is compared."""

Measure = Callable[[Run], dict[str, Any]]


def trained(recipe: Recipe, folder: Path) -> Run:
    """Train, evaluations left out."""
    return train_run(dataclasses.replace(recipe, evaluate_every=None), folder)


def preset(name: str) -> Any:
    """The recipe of a preset."""
    loaded = load_preset(name)
    return make_recipe(loaded.recipe, loaded.settings)


# --- measures: figures of a run, and under "each" the points' own for pairing


def of_points(run: Run) -> dict[str, Any]:
    """Log-likelihood, ELBO and samples on the Gaussians."""
    model = run.model.double()

    def data(n: int, split: str, seed: int) -> Tensor:
        return run.dataset.draw(n, split, generator=_generator(seed), dtype=torch.float64).x

    x = data(POINTS, "test", 7)
    ode = Ode(integrator=Integrator("rk4", steps=100), strict=False).log_prob(
        probability_flow(model, sigma_min=SIGMA_MIN), x, generator=_generator()
    )
    flow = run.recipe.flow if isinstance(run.recipe, PlanePoint) else None
    sde = generative_sde(model, flow, sigma_min=SIGMA_MIN, sigma_data=run.dataset.sigma_data)
    bound = Elbo(draws=64).log_prob(sde, x, generator=_generator())
    own = run.sample(10_000, generator=_generator(3))
    return {
        "ode": _mean(ode.log_prob),
        "converged": ode.converged,
        "elbo": _mean(bound.log_prob),
        "energy": energy_distance(own, data(10_000, "test", 4)),
        "each": {"ode": ode.log_prob, "elbo": bound.log_prob},
    }


def with_score_error(run: Run, levels: int = 10, bands: int = 4) -> dict[str, Any]:
    """:func:`of_points`, and ∫ σ² E‖s_p - ∇log p_σ‖² d ln σ: what the bound loses, by noise level."""
    figures = of_points(run)
    model = run.model
    sde = generative_sde(model, sigma_min=SIGMA_MIN, sigma_data=run.dataset.sigma_data)
    others = run.dataset.draw(POINTS, "validation", generator=_generator(8), dtype=torch.float64).x
    figures["selection"] = float(
        Elbo().log_prob(sde, others, generator=_generator(1)).log_prob.mean()
    )
    (score,) = (part for part in model.field.modules() if isinstance(part, ScoreField))
    target = run.dataset.target
    assert isinstance(target, GaussianMixture)
    data = run.dataset.draw(2000, "test", generator=_generator(11), dtype=torch.float64).x
    places = torch.linspace(math.log(SIGMA_MIN), math.log(40.0), levels * bands + 1).double()
    noise, rates = _generator(5), []
    for sigma in places.exp():
        y = data + sigma * torch.randn(data.shape, generator=noise, dtype=torch.float64)
        with torch.no_grad():
            error = score(y, At(torch.zeros_like(sigma), sigma)) - target.score(y, sigma)
        rates.append(float(error.square().sum(1).mean() * sigma**2))
    rate = torch.tensor(rates, dtype=torch.float64)
    figures["score_error"] = {}
    for k in range(bands):
        part = slice(k * levels, (k + 1) * levels + 1)
        low, high = places[part][[0, -1]].exp().tolist()
        loss = torch.trapezoid(rate[part], places[part])
        figures["score_error"][f"{low:.2g} < σ < {high:.2g}"] = float(loss)
    return figures


def of_digits(run: Run) -> dict[str, Any]:
    """Log-likelihood, ELBO and samples of digits; bits/dim is (gain of nats)/(D log 2) apart."""
    width = byte_width(16)

    def held_out(split: str) -> Tensor:
        images = run.dataset.draw(run.dataset.size(split) or 0, split, generator=_generator(7)).x
        return dequantised(images, width, generator=_generator(8))

    test, others = held_out("test"), held_out("validation")
    ode = Ode(probes=4, integrator=Integrator("rk4", steps=24), strict=False).log_prob(
        probability_flow(run.model, sigma_min=DIGITS_SIGMA_MIN), test, generator=_generator()
    )
    sde = generative_sde(run.model, sigma_min=DIGITS_SIGMA_MIN, sigma_data=run.dataset.sigma_data)
    bound = Elbo(draws=128).log_prob(sde, test, generator=_generator())
    each = {"ode": ode.log_prob, "elbo": bound.log_prob}
    bits = {f"{k} bits": -(v / 64 + math.log(width)) / math.log(2) for k, v in each.items()}
    quality = evaluate_run(run)
    return {
        **{name: _mean(values) for name, values in (each | bits).items()},
        "converged": ode.converged,
        "frechet": quality.metrics["frechet"],
        "frechet_of_data": quality.reference["frechet"],
        "selection": float(
            Elbo(draws=128).log_prob(sde, others, generator=_generator(1)).log_prob.mean()
        ),
        "each": each | bits,
    }


# --- parts


def contest(
    base: EDM,
    arms: tuple[Weighting, ...],
    settings: tuple[tuple[float, int], ...],
    measure: Measure,
    folder: Path,
) -> dict[str, Any]:
    """All arms at each of the settings; what the last arm gains over the others, and best over best."""
    runs: list[dict[str, Any]] = []
    for rate, iterations in settings:
        for arm in arms:
            recipe = dataclasses.replace(
                base,
                weighting=arm,
                iterations=iterations,
                checkpoint_every=iterations,
                optimizer=dataclasses.replace(base.optimizer, lr=rate),
            )
            named: dict[str, Any] = {"weighting": arm, "lr": rate, "iterations": iterations}
            runs.append(named | measure(trained(recipe, folder / f"{arm}-{rate}-{iterations}")))
            print({k: v for k, v in runs[-1].items() if k != "each"}, flush=True)
    each = [run.pop("each") for run in runs]
    own = arms[-1]

    def best(arm: str) -> int:
        those = [k for k, run in enumerate(runs) if run["weighting"] == arm]
        return max(those, key=lambda k: runs[k]["selection"])

    gains: dict[str, Any] = {}
    for place, arm in enumerate(arms[:-1]):
        for k, (rate, iterations) in enumerate(settings):
            last = k * len(arms) + len(arms) - 1
            name = f"{own} over {arm}, lr {rate:g}, {iterations} iterations"
            gains[name] = _gain(each[last], each[k * len(arms) + place])
        gains[f"{own} over {arm}, each at its best"] = _gain(each[best(own)], each[best(arm)])
    chosen = {arm: [runs[best(arm)]["lr"], runs[best(arm)]["iterations"]] for arm in arms}
    return {"runs": runs, "best": chosen, "gains": gains}


def weighting(seed: int, folder: Path) -> dict[str, Any]:
    """EDM's weights against likelihood weights on the Gaussians."""
    base = dataclasses.replace(preset("edm-gaussians"), seed=seed, sigma_min=SIGMA_MIN)
    return contest(base, ("edm", "likelihood"), SETTINGS, with_score_error, folder)


def digits(seed: int, folder: Path) -> dict[str, Any]:
    """The same on digits."""
    base = dataclasses.replace(preset("edm-digits"), seed=seed, sigma_min=DIGITS_SIGMA_MIN)
    return contest(base, ("edm", "likelihood"), DIGITS_SETTINGS, of_digits, folder)


def joint(seed: int, folder: Path) -> dict[str, Any]:
    """Diffusion-GANs at (1.5, 1), where the linear bound is loose even for exact networks."""
    ways: dict[str, dict[str, Any]] = {
        "adversarial": {},
        "elbo, discriminator alone": {"objective": "elbo"},
        "elbo, jointly": {"objective": "elbo", "joint": True},
        "elbo, score alone at g2 = 2": {"objective": "elbo", "joint": True, "g2": 2.0},
    }
    return diffusion_gans(1.0, ways, seed, folder)


def row(seed: int, folder: Path) -> dict[str, Any]:
    """Diffusion-GANs at (1.5, 0.75), on the row g² = 2λ² where the bound is tight."""
    ways: dict[str, dict[str, Any]] = {
        "adversarial": {},
        "elbo, discriminator alone": {"objective": "elbo"},
        "elbo, jointly": {"objective": "elbo", "joint": True},
    }
    return diffusion_gans(0.75, ways, seed, folder)


def diffusion_gans(
    lambda2: float, ways: dict[str, dict[str, Any]], seed: int, folder: Path
) -> dict[str, Any]:
    """Ways to train a Diffusion-GAN of g²/β = 1.5 from one score, compared with the first."""
    score = dataclasses.replace(
        preset("edm-gaussians"), seed=seed, iterations=2500, sigma_min=SIGMA_MIN
    )
    first = trained(score, folder / "score").path
    base: PlanePoint = preset("diffusion-gan-gaussians")
    base = dataclasses.replace(
        base,
        seed=seed,
        iterations=625,
        g2=1.5,
        lambda2=lambda2,
        sigma_min=SIGMA_MIN,
        discriminator=dataclasses.replace(base.discriminator, activation="silu"),
    )
    inner = dataclasses.replace(base.score, iterations=2500, sigma_min=SIGMA_MIN)
    rows: dict[str, dict[str, Any]] = {}
    for name, changes in ways.items():
        recipe = dataclasses.replace(base, score=inner, **changes)
        if not recipe.joint:
            recipe = dataclasses.replace(recipe, data_score=str(first))
        else:  # from scratch: as many updates as score and discriminator have together
            recipe = dataclasses.replace(
                recipe, iterations=3125, optimizer=inner.optimizer, batch=inner.batch
            )
        rows[name] = of_points(trained(recipe, folder / name.replace(" ", "-")))
        print(name, {k: v for k, v in rows[name].items() if k != "each"}, flush=True)
    base_each = next(iter(rows.values()))["each"]
    for figures in rows.values():
        figures["gain"] = _gain(figures.pop("each"), base_each)
    return rows


def cost(seed: int, folder: Path) -> dict[str, Any]:
    """Error and seconds of a point against evaluations, and memory against steps."""
    return {
        "exact fields, D = 2": exact_cost(),
        "digits, D = 64": digits_cost(seed, folder),
        "memory": memory(),
    }


def exact_cost() -> list[dict[str, Any]]:
    """On the exact mixture, from its closed-form law at σ_max."""
    angle = torch.arange(5, dtype=torch.float64) * (2 * torch.pi / 5)
    target = GaussianMixture(3 * torch.stack([angle.cos(), angle.sin()], 1), std=0.5)
    path = VESchedule(40.0, SIGMA_MIN)
    flow, score = DiffFlow.reverse(path), ExactScoreField(target)
    model = ParticleModel(
        flow.field(score),
        flow.prior((2,)),
        steps=10,
        schedule=path,
        diffusion=flow.diffusion,
        score=AtScale(score, path),
    )
    wide = GaussianMixture(target.means, std=(0.25 + 40.0**2) ** 0.5)
    end = GaussianMixture(target.means, std=(0.25 + SIGMA_MIN**2) ** 0.5)
    ode = probability_flow(model, prior=wide)
    x = target.sample(500, generator=_generator(), dtype=torch.float64)
    ways = [Integrator(m, steps=n) for m in ("heun", "rk4") for n in (8, 16, 32, 64, 128)]
    ways += [Integrator("dopri5", tolerance=10.0**-k) for k in (3, 4, 5, 6, 7)]
    return timed(ode, x, ways, lambda: end.log_density(x))


def digits_cost(seed: int, folder: Path) -> list[dict[str, Any]]:
    """With one of Hutchinson's probes on a trained network; the truth is rk4's with 256 steps."""
    base = dataclasses.replace(preset("edm-digits"), seed=seed, sigma_min=DIGITS_SIGMA_MIN)
    run = trained(dataclasses.replace(base, iterations=1500), folder / "cost")
    ode = probability_flow(run.model, sigma_min=DIGITS_SIGMA_MIN)
    x = dequantised(
        run.dataset.draw(100, "test", generator=_generator(7)).x,
        byte_width(16),
        generator=_generator(8),
    )
    ways = [Integrator(m, steps=n) for m in ("heun", "rk4") for n in (8, 16, 32, 64)]
    ways += [Integrator("dopri5", tolerance=10.0**-k) for k in (2, 3, 4, 5)]
    fine = Integrator("rk4", steps=256)
    return timed(
        ode,
        x,
        ways,
        lambda: (
            Ode(integrator=fine, checked=False).log_prob(ode, x, generator=_generator()).log_prob
        ),
    )


def timed(
    ode: ProbabilityFlow, x: Tensor, ways: list[Integrator], truth: Callable[[], Tensor]
) -> list[dict[str, Any]]:
    """One row for each way of integrating; the same probes for all."""
    exact, rows = truth(), []
    for how in ways:
        started = time.process_time()
        found = Ode(integrator=how, strict=False, checked=False).log_prob(
            ode, x, generator=_generator()
        )
        seconds = time.process_time() - started
        rows.append(
            {
                **how.protocol,
                "evaluations": found.evaluations,
                "error": float((found.log_prob - exact).abs().mean()),
                "stated_error": float(found.flaws.mean()),
                "converged": found.converged,
                "ms_per_point": 1000 * seconds / len(x),
            }
        )
        print(rows[-1], flush=True)
    return rows


def memory() -> list[dict[str, Any]]:
    """Peak memory of processes that take different numbers of steps."""
    rows = []
    for steps in (0, *STEPS):
        command = [sys.executable, __file__, "--measure-memory", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    return rows


def peak(steps: int) -> dict[str, Any]:
    """Peak memory of this process: 200 digits along ``steps`` of rk4, or nothing at 0."""
    recipe = preset("edm-digits")
    dataset = open_dataset(recipe.data)
    model = recipe.compose(dataset).model
    ode = probability_flow(model, sigma_min=DIGITS_SIGMA_MIN)
    x = dataset.draw(200, "train", generator=_generator()).x
    evaluations = 0
    if steps:
        how = Integrator("rk4", steps=steps)
        found = Ode(integrator=how, strict=False, checked=False).log_prob(
            ode, x, generator=_generator()
        )
        evaluations = found.evaluations
    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"steps": steps, "evaluations": evaluations, "megabytes": round(top / 1e6)}


# --- the record


def over_seeds(seeds: dict[str, Any]) -> dict[str, Any]:
    """Mean gains over seeds, with the standard error between them."""
    found: dict[str, list[float]] = {}
    for one in seeds.values():
        gains = one.get("gains") or {name: row["gain"] for name, row in one.items()}
        for name, gain in gains.items():
            for measure, (value, _) in gain.items():
                found.setdefault(f"{name}: {measure}", []).append(value)
    return {name: _mean(torch.tensor(v).double()) for name, v in found.items() if len(v) > 1}


def keep(part: str, figures: dict[str, Any]) -> Path:
    """Put a part's figures into the result beside the others."""
    path = RESULTS / "likelihood.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record.pop("machine", None)
    if "seeds" in figures:
        seeds = record.get(part, {}).get("seeds", {}) | figures["seeds"]
        figures = {**figures, "seeds": seeds, "gain over seeds": over_seeds(seeds)}
    return save("likelihood", record | {part: figures})


def _gain(each: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: _mean(each[name] - base[name]) for name in each}


def _mean(values: Tensor) -> list[float]:
    """Mean and standard error."""
    return [float(values.mean()), float(values.std()) / len(values) ** 0.5]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PARTS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "cost": cost,
    "weighting": weighting,
    "joint": joint,
    "row": row,
    "digits": digits,
}
ON_POINTS = {"points": POINTS, "sigma_min": SIGMA_MIN, "ode": "rk4, 100 steps"}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "weighting": ON_POINTS,
    "joint": ON_POINTS,
    "row": ON_POINTS,
    "digits": {"points": 359, "sigma_min": DIGITS_SIGMA_MIN, "ode": "rk4, 24 steps, 4 probes"},
}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--measure-memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_thread()
    if options.measure_memory is not None:
        print(json.dumps(peak(options.measure_memory)))
        return
    for part in options.parts:
        for seed in options.seeds if part in PROTOCOLS else options.seeds[:1]:
            with tempfile.TemporaryDirectory() as folder:
                figures = PARTS[part](seed, Path(folder))
            if part in PROTOCOLS:
                figures = {**PROTOCOLS[part], "seeds": {str(seed): figures}}
            print(keep(part, figures), flush=True)


if __name__ == "__main__":
    main()
