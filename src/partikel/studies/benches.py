"""The models that items share, by scale: presets, what is changed in them, and how many seeds.

=====  ===========================================================================================
smoke  a few iterations on points and 8x8 digits: does every item run?
cpu    tuned presets: the five Gaussians and 8x8 digits with five seeds, 16x16 MNIST with three
paper  the papers' settings: Gaussians, MNIST at 32x32, CelebA
=====  ===========================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Scale: TypeAlias = Literal["smoke", "cpu", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "paper")

EDM, FLOW, GAN, SCORE_GAN = "EDM", "Discriminator Flow", "GAN", "Score GAN"
FOUR = (EDM, FLOW, GAN, SCORE_GAN)
"""The models of GPM's experiments, as its tables order them."""

FIVE, THREE = (0, 1, 2, 3, 4), (0, 1, 2)
"""Seeds of training: of points and 8x8 digits, and of larger images."""
EVALUATIONS = 3
"""Evaluations of each trained run, whose means are taken before anything is judged."""


def on(data: str, seeds: Sequence[object]) -> str:
    """Where a finding was measured: "8x8 digits, 3 seeds"."""
    count = len(seeds)
    return f"{data}, {'one seed' if count == 1 else f'{count} seeds'}"


@dataclass(frozen=True)
class Training:
    """A preset with changes: what one training makes.

    Attributes:
        preset: its name.
        changes: settings that differ from the preset's.
        variant: what the changes are called in the folder's name.
        score: the EDM that it takes its data score from, if it does.
    """

    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    score: Training | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.preset}-{self.variant}" if self.variant else self.preset

    def but(self, variant: str, **changes: Any) -> Training:
        """The model with further changes, under a name of its own."""
        both = f"{self.variant}-{variant}" if self.variant else variant
        return dataclasses.replace(self, changes={**self.changes, **changes}, variant=both)


@dataclass(frozen=True)
class Bench:
    """Models of one data set.

    Attributes:
        key: of the data, for files.
        data: what the data are called.
        models: by the name that the paper gives them.
        seeds: each model is trained with each of them.
        samples: of an evaluation; images are at most as many as the test split has.
        curve_samples: of each point of a curve.
        evaluations: with seeds of their own, whose means figures are.
    """

    key: str
    data: str
    models: Mapping[str, Training]
    seeds: tuple[int, ...]
    samples: int
    curve_samples: int
    evaluations: int

    @property
    def where(self) -> str:
        """For findings: "8x8 digits, 3 seeds"."""
        return on(self.data, self.seeds)


def _bench(
    key: str,
    data: str,
    suffix: str,
    seeds: tuple[int, ...],
    samples: int,
    curve_samples: int,
    evaluations: int = EVALUATIONS,
    **changes: Any,
) -> Bench:
    edm = Training(f"edm-{suffix}", changes)
    models = {
        EDM: edm,
        FLOW: Training(f"discriminator-flow-{suffix}", changes),
        GAN: Training(f"gan-{suffix}", changes),
        SCORE_GAN: Training(f"score-gan-{suffix}", changes, score=edm),
    }
    return Bench(key, data, models, seeds, samples, curve_samples, evaluations)


_SMOKE = {"iterations": 6, "batch": 32, "evaluate_every": 3, "evaluate_samples": 50}
_LIST: dict[Scale, tuple[Bench, ...]] = {
    "smoke": (
        _bench("gaussians", "five Gaussians", "gaussians", (0,), 200, 100, 1, **_SMOKE),
        _bench("digits", "8x8 digits", "digits", (0,), 200, 100, 1, **_SMOKE),
    ),
    "cpu": (
        _bench("gaussians", "five Gaussians", "gaussians", FIVE, 10_000, 10_000),
        _bench("digits", "8x8 digits", "digits", FIVE, 10_000, 10_000, evaluate_every=None),
        _bench("mnist", "MNIST 16x16", "mnist-fast", THREE, 10_000, 2_000),
    ),
    "paper": (
        _bench("gaussians", "five Gaussians", "gaussians-paper", FIVE, 10_000, 10_000),
        _bench("mnist", "MNIST 32x32", "mnist-paper", THREE, 10_000, 10_000),
        _bench("celeba", "CelebA 64x64", "celeba-paper", (0,), 10_000, 10_000),
    ),
}
BENCHES: dict[Scale, dict[str, Bench]] = {
    scale: {bench.key: bench for bench in those} for scale, those in _LIST.items()
}
"""The four models of GPM's experiments on each data set, by scale."""


def score_flow(bench: Bench) -> Training:
    """Score GAN's field carried by free particles: a Score Flow on the bench's data score."""
    edm = bench.models[EDM]
    return Training(f"score-flow-{bench.key}", edm.changes, score=edm)


def benches(scale: Scale, *keys: str) -> tuple[Bench, ...]:
    """The benches of a scale among the named data sets."""
    return tuple(BENCHES[scale][key] for key in keys if key in BENCHES[scale])
