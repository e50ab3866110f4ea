"""Verdicts on constructed values: where a claim holds, where it is reversed, where it is open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest
import torch

from partikel.metrics.measures import FRECHET
from partikel.studies import sheets
from partikel.studies.benches import BENCHES, EDM, FLOW, FOUR, GAN, SCORE_GAN, Training
from partikel.studies.items import (
    fig1,
    fig4,
    fig5,
    fig6,
    fig7a,
    fig7b,
    findings6_7,
    speed,
    table3,
)
from partikel.studies.judgement import FAILS, HOLDS, OPEN, Claim, Finding
from partikel.studies.panel import END, Panel

BENCH = BENCHES["cpu"]["digits"]
SHIFTS = (-0.02, -0.01, 0.0, 0.01, 0.02)
"""By which five seeds differ."""


def seeds(value: float) -> list[float]:
    return [value * (1 + shift) for shift in SHIFTS]


def panel(rows: Mapping[str, Mapping[float, Sequence[float]]], floor: float = 0.01) -> Panel:
    kept = {
        name: {place: [{"frechet": v} for v in values] for place, values in each.items()}
        for name, each in rows.items()
    }
    return Panel(BENCH, FRECHET, floor, {}, kept, {"frechet": floor}, {})


def verdicts(claims: Mapping[str, Claim], findings: Iterable[Finding]) -> dict[str, str]:
    names = {claim: key for key, claim in claims.items()}
    return {names[finding.claim]: finding.judgement.verdict for finding in findings}


@pytest.mark.parametrize(
    ("flow", "edm", "verdict"),
    [
        (seeds(1), seeds(2), HOLDS),
        (seeds(2), seeds(1), FAILS),
        (seeds(1), seeds(1.2), OPEN),  # nearer, but by less than a quarter
        ([1, 1, 1, 1, 5], seeds(2), OPEN),  # seeds disagree
        (seeds(1e-4), seeds(5e-3), OPEN),  # two draws of the data differ by more
    ],
)
def test_what_is_stopped_early(flow: list[float], edm: list[float], verdict: str) -> None:
    rows = {
        EDM: {50.0: edm, 100.0: flow},
        fig7a.DENOISED: {50.0: edm},
        FLOW: {50.0: flow, 100.0: edm},
    }
    assert fig7a.finding(panel(rows)).judgement.verdict == verdict


# distances of Euler, Heun and Discriminator Flow at few and at many evaluations
@pytest.mark.parametrize(
    ("few", "many", "expected"),
    [
        ((1, 2, 2), (1, 2, 2), {"efficient, few": HOLDS, "outperformed, few": HOLDS}),
        ((2, 1, 1), (2, 1, 1), {"efficient, few": FAILS, "outperformed, few": FAILS}),
        ((2, 1, 4), (1, 1, 1), {"outperformed, few": FAILS, "outperformed, many": OPEN}),
        ((2, 4, 1), (1, 3, 2), {"outperformed, few": FAILS, "outperformed, many": HOLDS}),
        ((1, 8, 4.5), (1, 1, 4), {"comparable, few": HOLDS, "comparable, many": FAILS}),
        ((1, 10, 1), (1, 1, 5), {"comparable, few": FAILS, "comparable, many": FAILS}),
        # far nearer at few, far farther at many: not comparable at either, but so by the first rule
        ((1, 10, 1), (1, 1, 10), {"comparable, many": FAILS, "comparable, all": HOLDS}),
        ((1, 2, 1), (1, 1.1, 1), {"comparable, few": OPEN, "comparable, many": HOLDS}),
    ],
)
def test_few_and_many_evaluations_are_judged_apart(
    few: Sequence[float], many: Sequence[float], expected: dict[str, str]
) -> None:
    names = (fig7b.EULER, fig7b.HEUN, fig7b.STOPPED)
    rows = {
        name: {3.0: seeds(a), 11.0: seeds(a), 15.0: seeds(b), 35.0: seeds(b)}
        for name, a, b in zip(names, few, many, strict=True)
    }
    # a flow has fewer steps, and counts with all of them
    rows[fig7b.STOPPED] = {
        20.0 if place == 35 else place: values for place, values in rows[fig7b.STOPPED].items()
    }
    rows[fig7b.COARSER] = {place: seeds(100) for place in rows[fig7b.STOPPED]}  # the worse way
    found = verdicts(fig7b.CLAIMS, fig7b.findings(panel(rows)))
    assert {key: found[key] for key in expected} == expected
    assert {key for key, claim in fig7b.CLAIMS.items() if claim.replaced} == {
        "comparable, all",
        "outperformed, all",
    }


def formation(*moments: float) -> dict[str, list[float]]:
    """Of as many images, which are formed at these shares of the evaluations."""
    share = [k / 20 for k in range(21)]
    return {"share": share, "formed": [sum(m <= s for m in moments) / len(moments) for s in share]}


@pytest.mark.parametrize(
    ("flow", "edm", "expected"),
    [
        ((0.2, 0.3), (0.7, 0.7), (HOLDS, HOLDS, HOLDS, HOLDS)),
        ((0.7, 0.8), (0.5, 0.5), (FAILS, FAILS, FAILS, FAILS)),
        ((0.45, 0.5), (0.5, 0.5), (OPEN, OPEN, OPEN, OPEN)),
        # most are formed at once, the last ones late: the first rule asks for these
        ((0.1, 0.1, 0.1, 0.9), (0.7, 0.7, 0.7, 0.7), (HOLDS, HOLDS, FAILS, FAILS)),
    ],
)
def test_how_early_images_are_formed(
    flow: Sequence[float], edm: Sequence[float], expected: tuple[str, ...]
) -> None:
    formed = {EDM: [formation(*edm)] * 5, FLOW: [formation(*flow)] * 5}
    found = fig1.findings(BENCH, formed)
    assert [finding.judgement.verdict for finding in found] == list(expected)
    assert [bool(finding.claim.replaced) for finding in found] == [False, False, True, True]


@pytest.mark.parametrize(
    ("particles", "generators", "verdict"),
    [((2, 4), (1, 1.5), HOLDS), ((1, 4), (2, 3), FAILS), ((2, 4), (1, 1.8), OPEN)],
)
def test_the_roughest_generator_beside_the_smoothest_particle_model(
    particles: tuple[float, float], generators: tuple[float, float], verdict: str
) -> None:
    edm, flow = particles
    values = dict(zip(FOUR, (edm, flow, *generators), strict=True))
    found = {
        name: {
            method: [dict.fromkeys(fig5.SMOOTHNESS, v) for v in seeds(value)]
            for method in fig5.METHODS
        }
        for name, value in values.items()
    }
    assert {f.judgement.verdict for f in fig5.findings(BENCH, 100, found)} == {verdict}
    # one method by which it is not so is enough
    found[FLOW][[*fig5.METHODS][-1]] = [dict.fromkeys(fig5.SMOOTHNESS, 0.1)] * 5
    assert HOLDS not in {f.judgement.verdict for f in fig5.findings(BENCH, 100, found)}


@pytest.mark.parametrize(
    ("early", "late", "expected"),
    [
        ((2.0, 1.2, 1.0, 1.0), (1.02, 1.0, 1.0, 1.0), (HOLDS, HOLDS)),
        ((1.04, 1.0, 1.0, 1.0), (1.2, 1.0, 1.0, 1.0), (FAILS, FAILS)),
        # it comes near, leaves again, and needs four updates of K = 2
        ((2.0, 1.0, 1.2, 1.0), (1.02, 1.0, 1.0, 1.0), (HOLDS, HOLDS)),
    ],
)
def test_how_far_the_own_score_is_from_its_optimum(
    early: Sequence[float], late: Sequence[float], expected: tuple[str, str]
) -> None:
    case = fig6.Case(BENCH, Training("score-gan-digits"), 9, (0, 2, 3, 4), 8, ())
    held = [
        {moment: [(1 + shift) * loss for loss in losses] for moment, losses in those.items()}
        for shift in SHIFTS
        for those in [{"early": early, "late": late}]
    ]
    found = fig6.convergence(case, {"early": 5, "late": 9}, 2, held)
    assert tuple(finding.judgement.verdict for finding in found) == expected


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ((1.0, 1.3, 1.6), (HOLDS, HOLDS)),
        ((1.0, 3.0, 1.0), (FAILS, HOLDS)),
        ((3.0, 1.0, 1.0), (FAILS, FAILS)),
        ((2.0, 1.0, 1.0), (OPEN, OPEN)),
        ((0.009, 0.001, 0.001), (HOLDS, HOLDS)),  # below what two draws of the data differ by
    ],
)
def test_results_with_other_numbers_of_score_updates(
    distances: Sequence[float], expected: tuple[str, str]
) -> None:
    wobble = [1.0, 1.1, 0.9, 1.2, 0.8]
    rows = {f"K = {k}": {END: seeds(far)} for k, far in zip((1, 4, 8), distances, strict=True)}
    rows["K = 1"][END] = [distances[0] * each for each in wobble]
    found = verdicts(fig6.CLAIMS, fig6.quality(panel(rows), "equal rates"))
    assert (found["similar"], found["small"]) == expected


MEASURES = ("effective classes", "recall", "coverage")


def coverage(classes: float, recall: float, near: float) -> list[fig4.Coverage]:
    return [
        fig4.Coverage(
            (0.5, 0.5),
            dict(zip(MEASURES, (classes, (1 + s) * recall, (1 + s) * near), strict=True)),
            2,
        )
        for s in SHIFTS
    ]


FULL, COLLAPSED = (2.0, 0.9, 0.9), (1.9, 0.1, 0.8)


@pytest.mark.parametrize(
    ("changed", "free", "flow", "expected"),
    [
        (COLLAPSED, FULL, FULL, (HOLDS, HOLDS, HOLDS, HOLDS)),
        (COLLAPSED, COLLAPSED, COLLAPSED, (HOLDS, FAILS, FAILS, FAILS)),
        (FULL, FULL, FULL, (FAILS, HOLDS, HOLDS, OPEN)),  # nothing collapses, nothing is caused
        (COLLAPSED, FULL, (1.9, 0.8, 0.2), (HOLDS, FAILS, HOLDS, HOLDS)),  # coverage decides
    ],
)
def test_who_collapses(
    changed: tuple[float, float, float],
    free: tuple[float, float, float],
    flow: tuple[float, float, float],
    expected: tuple[str, ...],
) -> None:
    covered = {
        EDM: coverage(*FULL),
        FLOW: coverage(*flow),
        SCORE_GAN: coverage(*FULL),
        fig4.CHANGED: coverage(*changed),
        fig4.FREE: coverage(*FULL),
        fig4.FREE_CHANGED: coverage(*free),
    }
    rows = {SCORE_GAN: {END: seeds(1)}, fig4.CHANGED: {END: seeds(9)}}
    data = fig4.Coverage((0.5, 0.5), dict(zip(MEASURES, FULL, strict=True)), 2)
    found = verdicts(fig4.CLAIMS, fig4.findings(panel(rows), covered, data))
    keys = ("collapse", "absent", "absent, first", "generator")
    assert tuple(found[key] for key in keys) == expected
    assert found["better"] == HOLDS


# distances of EDM, Discriminator Flow, GAN and Score GAN, classes held of ten, noise's distance
@pytest.mark.parametrize(
    ("far", "held", "expected"),
    [
        ((1, 1.5, 1.2, 3), 10, {"reasonable": HOLDS, FLOW: OPEN, SCORE_GAN: HOLDS, "good": HOLDS}),
        ((1, 3, 1.2, 30), 10, {"reasonable": FAILS, FLOW: HOLDS, "good": FAILS}),
        ((1, 1.5, 1.2, 3), 9, {"reasonable": FAILS}),  # a class is missing
        ((2, 1, 2, 1), 10, {FLOW: FAILS, SCORE_GAN: FAILS, "good": HOLDS}),
        # below what two draws of the data differ by nothing is nearer
        ((0.001, 0.009, 0.001, 0.009), 10, {"reasonable": HOLDS, FLOW: OPEN, SCORE_GAN: OPEN}),
    ],
)
def test_distances_of_the_four_models(
    far: Sequence[float], held: int, expected: dict[str, str]
) -> None:
    rows = {name: {END: seeds(value)} for name, value in zip(FOUR, far, strict=True)}
    present = {name: [(held, 10)] * len(SHIFTS) for name in FOUR}
    found = table3.findings(panel(rows), {"noise": 100.0, "mean": 60.0}, present, judged=True)
    decided = verdicts(table3.CLAIMS, found)
    assert {key: decided[key] for key in expected} == expected
    apart = table3.findings(panel(rows), {"noise": 100.0, "mean": 60.0}, present, judged=False)
    assert "good" not in verdicts(table3.CLAIMS, apart)


@pytest.mark.parametrize(
    ("seconds", "far", "expected"),
    [
        ((50, 20, 1, 1, 20), (1, 2), {"orders": HOLDS, "slower": HOLDS, "between": HOLDS}),
        ((5, 20, 1, 1, 20), (1, 2), {"orders": FAILS, "slower": HOLDS, "between": FAILS}),
        ((50, 1, 1, 3, 20), (2, 1), {"slower": FAILS, "between": FAILS}),
        ((0.01, 1, 1, 1, 1), (1, 2), {"orders": FAILS, "slower": OPEN, "between": FAILS}),
    ],
)
def test_speed(
    seconds: Sequence[float], far: tuple[float, float], expected: dict[str, str]
) -> None:
    between = speed.DIFFUSION_GAN
    names = (EDM, FLOW, GAN, SCORE_GAN, between)
    taken = {name: seeds(value) for name, value in zip(names, seconds, strict=True)}
    rows = {name: {END: seeds(1)} for name in names}
    rows |= {between: {END: seeds(far[0])}, GAN: {END: seeds(far[1])}}
    each = {FLOW: seeds(2), GAN: seeds(1)}
    decided = verdicts(speed.CLAIMS, speed.findings(panel(rows), taken, each))
    decided["between"] = decided.pop(between)
    assert decided["training"] == HOLDS
    assert {key: decided[key] for key in expected} == expected


def test_what_findings_6_and_7_say() -> None:
    plan = findings6_7.Plan(widths=(8, 64))

    def decided(cosine: float, step: float, wide: float, apart: float) -> dict[str, str]:
        near = {"8": 1.0, "64": wide}
        found = {
            "f": [{"logit": 1.0, "saturating": cosine + shift} for shift in SHIFTS],
            "ipm": [{"step": step, "trained": near} for _ in SHIFTS],
            "stein": [near for _ in SHIFTS],
            "invertible": [apart * (1 + shift) for shift in SHIFTS],
        }
        return verdicts(findings6_7.CLAIMS, findings6_7.findings(plan, found))

    assert set(decided(0.97, 1e-3, 0.2, 0.01).values()) == {HOLDS}
    assert set(decided(0.80, 1e-1, 2.1, 0.2).values()) == {FAILS}
    astride = decided(0.90, 1e-3, 0.6, 0.05)
    assert {key for key, verdict in astride.items() if verdict == OPEN} == {
        *("f", "lazy", "stein", "invertible")
    }


@pytest.mark.parametrize(
    ("near", "sure", "seen", "verdicts_of"),
    [
        (0.6, 0.2, 10, (HOLDS, FAILS)),
        (0.2, 0.6, 10, (FAILS, HOLDS)),
        (0.6, 0.6, 9, (FAILS, FAILS)),  # a class is missing
    ],
)
def test_sheets_are_reasonable_by_what_is_near_the_data(
    near: float, sure: float, seen: int, verdicts_of: tuple[str, str]
) -> None:
    def reading(sure: float, seen: int = 10) -> sheets.Reading:
        return sheets.Reading(64, sure, (0.1,) * 10, 10.0, seen, seen)

    names = (*FOUR, sheets.TEST, sheets.NOISE)
    readings = {
        name: [reading(sure, seen) for _ in SHIFTS] if name in FOUR else [reading(0.8)]
        for name in names
    }
    shares = {name: seeds(near) if name in FOUR else [0.8] for name in names}
    found = sheets.Sheet({}, torch.zeros(64, 1, 8, 8), readings, shares)
    claims = sheets.claims("§1")
    decided = verdicts(claims, sheets.sheet_findings(BENCH, found, claims))
    assert (decided["near"], decided["sure"]) == verdicts_of
    assert claims["sure"].replaced
    assert not claims["near"].replaced
