"""What a model is trained with where somebody gives pictures and nothing else: plain rules, in one place.

:func:`choose` maps what was seen of the pictures (:mod:`partikel.data.looking`) and the kind of machine to
settings of a recipe, and says why. The same pictures on the same kind of machine get the same settings; what
was given is kept, and the rest follows it. On a CPU a training at 32x32 is meant to take about twenty minutes
of one core; what it takes here is timed and said (:func:`partikel.app.planning.estimate`). The settings of a
preset are never looked at.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from partikel.data.looking import Seen
from partikel.errors import enumerated

CONDITIONAL = 100
"""Classes that a model is told of at most."""
EACH = 10
"""Pictures that half of the classes must have for that."""
FEW = 1000
"""Pictures below which a discriminator sees them augmented, or it would remember them."""
PARTS = frozenset({"train", "training", "test", "val", "valid", "validation", "dev"})
"""What folders are called that hold parts of a data set, not classes."""
LEAST_HELD = 6
"""Pictures of a validation split, or there is none: fewer measure nothing."""
MOST_HELD = 1000
"""Pictures of a validation split are no more than that."""


@dataclass(frozen=True)
class Choice:
    """Settings, and why they are so.

    Attributes:
        settings: of the recipe; what was given is in them.
        reasons: a sentence for each decision.
    """

    settings: dict[str, Any]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Case:
    """What the rules of a recipe go by."""

    side: int
    cuda: bool
    batch: int
    few: bool

    def of(self, small: Any, middle: Any, large: Any) -> Any:
        """What suits images of up to 16 pixels on a CPU, larger ones, and a GPU."""
        return large if self.cuda else small if self.side <= 16 else middle


def choose(recipe: str, seen: Seen, given: Mapping[str, Any], *, cuda: bool = False) -> Choice:
    """Settings of a recipe for pictures.

    Args:
        recipe: its name; one without rules of its own gets what concerns the data only.
        seen: of the pictures.
        given: settings that somebody chose, with ``data`` as a mapping; they stay, and others follow.
        cuda: whether a GPU trains.
    """
    data = dict(given.get("data") or {})
    reasons = [_described(seen)]
    side = data.get("size")
    if side is None:
        side, why = _side(seen, cuda)
        data["size"] = side
        reasons.append(f"size {side}: {why}")
    prepared = seen.changes is not None
    if prepared:
        data |= {key: value for key, value in seen.changes.items() if key not in data}  # type: ignore[union-attr]
        if "channels" not in data:
            data["channels"] = 3 if seen.colour else 1
            reasons.append("channels 3: in colour" if seen.colour else "channels 1: all are grey")
        if "on_error" not in data:
            data["on_error"] = "skip"
    bad = seen.unreadable or {}
    if bad and data.get("on_error") == "skip":
        name = next(iter(bad))
        reasons.append(f"on_error skip: {name} cannot be read, and such pictures are left out")
    if seen.transparent:
        reasons.append("transparent parts are laid on white")
    settings: dict[str, Any] = {"conditional": _labelled(seen)}
    if "conditional" in given:
        settings["conditional"] = given["conditional"]
    elif seen.classes:
        names = _named(seen.classes)
        said = f"too few of each to tell {len(seen.classes)} classes apart ({names})"
        if settings["conditional"]:
            said = f"conditional true: a class can be asked for ({names})"
        elif _parts(seen):
            said = f"{names} look like parts of a data set, not like classes: --data may name one of them"
        reasons.append(said)
    if prepared and "validation" not in data:
        held = _validation(round(0.9 * seen.count))
        if held != 0.1:
            data["validation"] = held
            why = "too few to spare any" if held == 0 else f"{MOST_HELD} pictures are enough"
            reasons.append(f"validation {held:g}: {why}")
    held = data.get("validation", 0.1)
    held = float(held) if isinstance(held, (int, float)) else 0.1
    usable = round(seen.count * len(seen.sides) / (len(seen.sides) + len(bad)))
    count = max(1, round(0.9 * usable * (1 - held)))
    case = _Case(side if isinstance(side, int) else 32, cuda, min(count, 64), count < FEW)
    rule = RULES.get(recipe)
    if rule is not None:
        chosen = rule(case)
        settings = {**chosen, **settings}
        length = given.get("iterations", chosen["iterations"])
        if isinstance(length, int):
            settings["evaluate_every"] = max(1, math.ceil(length / (5 if recipe in SLOW else 10)))
            settings["checkpoint_every"] = max(1, math.ceil(length / 10))
        settings["evaluate_samples"] = 1000 if cuda else 256
        device = "a GPU" if cuda else "a CPU"
        said = {"batch": "batch {}", "iterations": "{} iterations"}
        free = [text.format(chosen[key]) for key, text in said.items() if key not in given]
        more = ", augmented, as there are few" if chosen.get("augment") is not None else ""
        reasons.append(
            f"{', '.join(['network', *free])}: what suits {recipe} at {side}x{side} on {device}{more}"
        )
    if not data.get("flip"):
        reasons.append("not mirrored: --data.flip true where left and right are alike")
    return Choice({**settings, "data": data}, tuple(reasons))


def _described(seen: Seen) -> str:
    small, large = seen.sides[0], seen.sides[-1]
    edges = f"{small}" if small == large else f"{small} to {large}"
    kinds = f" in {len(seen.classes)} classes" if seen.classes else ""
    pictures = "1 picture" if seen.count == 1 else f"{seen.count:,} pictures"
    return f"{pictures}{kinds}, {edges} pixels on the shorter side"


def _side(seen: Seen, cuda: bool) -> tuple[int, str]:
    """An edge length, and why: as they are where that is small enough, else a power of two."""
    most, device = (64, "a GPU") if cuda else (32, "a CPU")
    fitting = [side for side in seen.sizes if side <= most]
    if seen.side in fitting and seen.side % 4 == 0:
        return seen.side, "as they are"
    usual = statistics.quantiles([*seen.sides, *seen.sides], n=4)[0]
    powers = [side for side in (8, 16, 32, 64) if side in fitting]
    reached = [side for side in powers if side <= usual]
    if not reached:
        return powers[0], "the smallest there is"
    if reached[-1] == powers[-1]:
        return reached[-1], f"quick enough on {device}"
    return reached[-1], "no larger than most of them"


def _labelled(seen: Seen) -> bool:
    known = 2 <= len(seen.classes) <= CONDITIONAL and not _parts(seen)
    return known and statistics.median(seen.counts) >= EACH


def _parts(seen: Seen) -> bool:
    return {name.lower() for name in seen.classes} <= PARTS


def _named(classes: tuple[str, ...]) -> str:
    shown = enumerated(classes[:4])
    return shown if len(classes) <= 4 else f"{shown}, ..."


def _validation(count: int) -> float:
    """Share of so many pictures."""
    if count * 0.1 < LEAST_HELD:
        return 0.0
    return min(0.1, float(f"{MOST_HELD / count:.2g}"))


# --- the rules of the recipes


def _unet(case: _Case) -> dict[str, Any]:
    common = {"kind": "unet", "embedding": "positional", "embedding_features": 64}
    if case.cuda:
        return {
            **common,
            "channels": 64,
            "multipliers": (1, 2, 2),
            "blocks": 2,
            "attention_resolutions": (16,),
            "dropout": 0.1,
        }
    multipliers = (1, 2, 2) if case.side <= 16 else (1, 2, 3)
    return {
        **common,
        "channels": 16,
        "multipliers": multipliers,
        "blocks": 1,
        "attention_resolutions": (),
    }


def _critic(case: _Case, middle: int = 16, **more: Any) -> dict[str, Any]:
    return {
        "kind": "small",
        "width": case.of(32, middle, 64),
        "norm": "none",
        "init": "he",
        **more,
    }


def _generator(case: _Case) -> dict[str, Any]:
    return {
        "kind": "small",
        "width": case.of(32, 24, 64),
        "norm": "batch",
        "init": "normal0.02",
    }


def _timed(case: _Case) -> dict[str, Any]:
    return _critic(case, 24, fourier_scale=1.0, embedding_features=64)


def _adam(lr: float, **more: Any) -> dict[str, Any]:
    return {"lr": lr, "decay": "cosine", **more}


_GAN_ADAM = _adam(2e-4, beta1=0.5, beta2=0.99)


def _edm(case: _Case) -> dict[str, Any]:
    return {
        "network": _unet(case),
        "sigma_max": 40.0,
        "law_mean": -0.8,
        "law_std": 1.2,
        "steps": 18,
        "batch": case.batch,
        "iterations": case.of(6000, 2200, 20_000),
        "ema": 0.999 if case.cuda else 0.998,
        "optimizer": _adam(1e-3 if not case.cuda else 4e-4),
    }


def _flow_matching(case: _Case) -> dict[str, Any]:
    edm = _edm(case)
    shared = ("network", "batch", "iterations", "ema", "optimizer")
    return {**{name: edm[name] for name in shared}, "steps": 14}


def _flow_map(case: _Case) -> dict[str, Any]:
    """An update costs about two of an EDM's; times enter smoothly, as they are differentiated."""
    flow = {key: value for key, value in _flow_matching(case).items() if key != "steps"}
    smooth = {**flow["network"], "embedding": "fourier", "fourier_scale": 1.0}
    return {**flow, "network": smooth, "iterations": flow["iterations"] // 2}


def _gan(case: _Case) -> dict[str, Any]:
    return {
        "discriminator": _critic(case),
        "generator": _generator(case),
        "latent": 64,
        "penalties": ({"weight": 0.1, "centre": 0.0, "at": "real"},),
        "augment": {} if case.few else None,
        "batch": case.batch,
        "iterations": case.of(6000, 4500, 20_000),
        "ema": 0.998,
        "discriminator_optimizer": _GAN_ADAM,
        "generator_optimizer": _GAN_ADAM,
    }


def _discriminator_flow(case: _Case) -> dict[str, Any]:
    return {
        "objective": "ipm",
        "network": _timed(case),
        "penalties": ({"weight": ((0.0, 0.1), (0.3, 0.05)), "centre": 0.0, "at": "interpolated"},),
        "steps": 16,
        "eta": 1.3,
        "pool": 64,
        "batch": case.batch,
        "iterations": case.of(4500, 3500, 20_000),
        "ema": 0.998,
        "optimizer": _adam(3e-3, beta1=0.5),
    }


def _difference(case: _Case) -> dict[str, Any]:
    """What both carriers of a score difference share: the EDM, whose copy becomes the own score."""
    return {
        "score": _edm(case),
        "sigma_min": 0.2,
        "sigma_max": 5.0,
        "weighting": "edm",
        "score_steps": 1,
        "batch": case.batch,
        "ema": 0.998,
        "score_optimizer": _adam(1e-3),
    }


def _score_gan(case: _Case) -> dict[str, Any]:
    return {
        **_difference(case),
        "own_score": None,
        "generator": _generator(case),
        "latent": 64,
        "iterations": case.of(2700, 1300, 20_000),
        "generator_optimizer": _GAN_ADAM,
    }


def _score_flow(case: _Case) -> dict[str, Any]:
    return {
        **_difference(case),
        "own_score": _unet(case),
        "steps": 16,
        "iterations": case.of(1000, 400, 10_000),
    }


def _diffflow(case: _Case) -> dict[str, Any]:
    return {
        "score": _edm(case),
        "sigma_min": 0.02,
        "steps": 14,
        "discriminator": _timed(case),
        "penalties": ({"weight": 0.25, "centre": 0.0, "at": "real"},),
        "batch": case.batch,
        "iterations": case.of(600, 200, 5000),
        "ema": 0.998,
        "optimizer": _adam(5e-4, beta1=0.5),
    }


def _diffode_gan(case: _Case) -> dict[str, Any]:
    return {
        "sigma_max": 0.5,
        "sigma_end": 0.02,
        "steps": 16,
        "eta": 40.0,
        "discriminator": _timed(case),
        "penalties": ({"weight": 0.25, "centre": 0.0, "at": "real"},),
        "batch": case.batch,
        "iterations": case.of(1200, 400, 10_000),
        "ema": 0.998,
        "optimizer": _adam(5e-4, beta1=0.5),
    }


def _diffflow_gan(case: _Case) -> dict[str, Any]:
    return {**_gan(case), "eta": 2.0, "fit_steps": 3, "iterations": case.of(3000, 1500, 10_000)}


RULES: dict[str, Callable[[_Case], dict[str, Any]]] = {
    "edm": _edm,
    "flow-matching": _flow_matching,
    "mean-flow": _flow_map,
    "consistency": _flow_map,
    "gan": _gan,
    "discriminator-flow": _discriminator_flow,
    "score-gan": _score_gan,
    "score-flow": _score_flow,
    "diffflow": _diffflow,
    "diffode-gan": _diffode_gan,
    "diffflow-gan": _diffflow_gan,
}
"""What a recipe is trained with, by what there is to see; a distillation goes by its teacher."""

SLOW = frozenset({"edm", "flow-matching", "score-flow", "diffflow"})
"""Recipes whose samples take long, so that they are measured less often on the way."""
