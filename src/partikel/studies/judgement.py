"""The rule by which claims are judged: one for all items.

A claim is an effect with a direction and a smallest effect of interest. Both are fixed in the item, before
anything is measured, and so is the measure that the effect is of. Each training seed gives one effect,
after the noise of its evaluations has been averaged; the verdict follows from their interval:

===============  =====================================================================================
holds            the whole 95 % interval lies beyond the smallest effect, in the claimed direction
does not hold    it lies beyond the smallest effect in the other direction
open             neither
indicated        one seed only, and its effect lies beyond the smallest one; counted apart
not indicated    one seed only, and it does not
===============  =====================================================================================

That two things are *the same* holds where the 90 % interval lies inside the region of equivalence,
between plus and minus the smallest effect (two one-sided tests at 5 %), and does not where the 95 % interval
lies outside of it. What involves neither training nor chance (an identity, whether something can be composed)
is *exact*: it holds or does not. Intervals are Student's, over training seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from scipy.stats import t as student

HOLDS, FAILS, OPEN = "holds", "does not hold", "open"
INDICATED, NOT_INDICATED = "indicated", "not indicated"
Verdict: TypeAlias = Literal["holds", "does not hold", "open", "indicated", "not indicated"]

CONFIDENCE = 0.95
"""Of the interval that decides."""
EQUIVALENCE = 0.90
"""Of the interval that decides that two things are the same."""
LOG = "log ratio"
"""Unit of effects that are logarithms of ratios."""
QUARTER = math.log(1.25)
"""Smallest effect of interest of most ratios of distances: what is nearer is nearer by a quarter."""
POWER = 0.8
"""Share of repetitions in which the detectable effect would be found."""


@dataclass(frozen=True)
class Claim:
    """What a paper says, as an effect that can be measured.

    Attributes:
        text: the claim, in one sentence.
        source: where the paper says so.
        effect: what is measured, positive where the claim holds, such as "log of EDM's distance over
            Discriminator Flow's".
        least: the smallest effect of interest, not negative.
        unit: of the effect: :data:`LOG` for the logarithm of a ratio.
        kind: "greater": the effect is larger than the smallest one; "same": it is nearer to zero;
            "exact": as "greater", of something that neither training nor chance touches.
        replaced: of a rule that another one replaced after a first look: why. Such a claim is shown
            beside the other and counted nowhere.
    """

    text: str
    source: str
    effect: str
    least: float
    unit: str = ""
    kind: Literal["greater", "same", "exact"] = "greater"
    replaced: str = ""

    def found(self, where: str, measured: str, effects: Sequence[float]) -> Finding:
        """The claim beside what was measured.

        Args:
            where: on what data and how many seeds.
            measured: one sentence with the numbers.
            effects: one for each training seed; one value where ``kind`` is "exact".
        """
        return Finding(self, where, measured, judge(self, effects))


@dataclass(frozen=True)
class Judgement:
    """What effects say of a claim.

    Attributes:
        verdict: by the rule of this module.
        effects: one for each training seed.
        mean: of the effects; None where one is not finite or there is none.
        interval: at 95 %, over training seeds; None for fewer than two.
        detectable: the effect that four of five repetitions would find, at this spread; None for
            fewer than two seeds, and for what is exact.
    """

    verdict: Verdict
    effects: tuple[float, ...] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    detectable: float | None = None


@dataclass(frozen=True)
class Finding:
    """A claim beside what was measured.

    Attributes:
        claim: what the paper says.
        where: on what data and how many seeds it was measured.
        measured: one sentence with the numbers.
        judgement: the verdict, with effects and interval.
    """

    claim: Claim
    where: str
    measured: str
    judgement: Judgement = field(default_factory=lambda: Judgement(OPEN))


def judge(claim: Claim, effects: Sequence[float]) -> Judgement:
    """The judgement of a claim by its effects, see the module.

    Args:
        claim: with its smallest effect.
        effects: one for each training seed.
    """
    effects = tuple(float(effect) for effect in effects)
    if not effects or not all(map(math.isfinite, effects)):
        return Judgement(OPEN, effects)
    mean = statistics.fmean(effects)
    if claim.kind == "exact":
        return Judgement(HOLDS if min(effects) > claim.least else FAILS, effects, mean)
    if len(effects) == 1:
        beyond = mean > claim.least if claim.kind == "greater" else abs(mean) < claim.least
        return Judgement(INDICATED if beyond else NOT_INDICATED, effects, mean)
    low, high = interval = interval_of(effects, CONFIDENCE)
    found = detectable(claim, effects)
    if claim.kind == "same":
        inner = interval_of(effects, EQUIVALENCE)
        if -claim.least < inner[0] and inner[1] < claim.least:
            return Judgement(HOLDS, effects, mean, interval, found)
        other = low > claim.least or high < -claim.least
        return Judgement(FAILS if other else OPEN, effects, mean, interval, found)
    verdict = HOLDS if low > claim.least else FAILS if high < -claim.least else OPEN
    return Judgement(verdict, effects, mean, interval, found)


def interval_of(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Student's interval of the mean of two values or more, taken for independent and normal."""
    reach = float(student.ppf((1 + confidence) / 2, len(values) - 1)) * _error(values)
    mean = statistics.fmean(values)
    return mean - reach, mean + reach


def detectable(claim: Claim, effects: Sequence[float]) -> float:
    """The true effect that would be found in a share :data:`POWER` of repetitions, at this spread.

    By the usual sum of two quantiles: the smallest effect, and so many standard errors beyond it. For
    "same" it is the width of the region of equivalence that would do for two equal things.
    """
    freedom = len(effects) - 1
    first, second = (CONFIDENCE + 1) / 2, POWER
    if claim.kind == "same":
        first, second = (EQUIVALENCE + 1) / 2, (1 + POWER) / 2
    quantiles = float(student.ppf(first, freedom)) + float(student.ppf(second, freedom))
    beyond = quantiles * _error(effects)
    return beyond if claim.kind == "same" else claim.least + beyond


def by_chance(claims: Iterable[Claim]) -> float:
    """How many claims would be expected to hold if every true effect were the smallest one."""
    beyond = {"greater": (1 - CONFIDENCE) / 2, "same": (1 - EQUIVALENCE) / 2, "exact": 0.0}
    return sum(beyond[claim.kind] for claim in claims)


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
