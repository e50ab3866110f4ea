"""Verdicts on values made by hand: a claim holds, its opposite does not, what is near the limit is open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from partikel.metrics.measures import ENERGY
from partikel.studies.benches import BENCHES
from partikel.studies.catalogue import LIMIT, Cell
from partikel.studies.items import (
    a1,
    claim1,
    diffflow_fig1,
    diffflow_improved_gan,
    diffflow_theory,
    fig8_12,
    table1,
    table2,
)
from partikel.studies.judgement import FAILS, HOLDS, OPEN, Claim, Finding
from partikel.studies.lab import Lab
from partikel.studies.panel import END, Panel
from partikel.studies.theory import Check

SEEDS = (0.95, 1.0, 1.02, 1.05, 0.98)
"""What five seeds have of their mean."""
FLOOR = 0.001


def near(value: float) -> list[float]:
    return [value * share for share in SEEDS]


def panel(energies: dict[str, float]) -> Panel:
    """Of five seeds near these energy distances."""
    rows = {name: {END: [{"energy": e} for e in near(mean)]} for name, mean in energies.items()}
    return Panel(BENCHES["cpu"]["gaussians"], ENERGY, FLOOR, {}, rows, {"energy": 0.0}, {})


def verdicts(claims: dict[str, Claim], findings: Sequence[Finding]) -> dict[str, str]:
    keys = {claim: key for key, claim in claims.items()}
    return {keys[each.claim]: each.judgement.verdict for each in findings}


def cells(energy: float | None, modes: int | None, carrier: Any = "generator") -> list[Cell]:
    more: dict[str, Any] = {"modes": modes, "cpu_seconds": 1.0, "score_seconds": 0.0}
    more |= {"sliced_w2": 0.1, "iterations": 1, "stopped": False, "reason": None}
    energies = [None] * len(SEEDS) if energy is None else near(energy)
    return [Cell("svgd", carrier, seed, each, **more) for seed, each in enumerate(energies)]


def test_table1_judges_its_rows_on_their_seeds_and_the_catalogue_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def matrix(folder: Path, rows: Sequence[str], seeds: Sequence[int], **_: Any) -> list[Cell]:
        Image.new("RGB", (4, 4)).save(folder / "matrix.png")
        one = cells(0.002, 5)[0]
        every = product(rows, ("particles", "generator"), seeds)
        return [replace(one, row=row, carrier=of, seed=seed) for row, of, seed in every]

    monkeypatch.setattr(table1, "run_matrix", matrix)
    monkeypatch.setattr(Lab, "floor", lambda *_: FLOOR)
    lab = Lab("table1", "smoke", {}, out=tmp_path, runs=tmp_path)
    plan = table1.Plan(seeds=(0, 1), rows=("svgd",), row_seeds=(0, 1, 2))
    outcome = table1.measure(plan, lab)
    taxonomy, ran, reached = outcome.findings
    assert "14 of 14 cells (7 pairs" in taxonomy.measured
    assert "2 of 2 pairs (1 fields" in ran.measured
    assert "1 of 1 fields" in reached.measured
    assert len(outcome.values["cells"]) == 2 * (2 * len(table1.ROWS) + 3)


@pytest.mark.parametrize(
    ("energy", "modes", "expected"),
    [
        (0.002, 5, HOLDS),
        (-0.001, 5, HOLDS),
        (LIMIT, 5, OPEN),
        (0.08, 5, FAILS),
        (0.002, 4, FAILS),
        (None, None, FAILS),
    ],
)
def test_table1(energy: float | None, modes: int | None, expected: str) -> None:
    good = cells(0.002, 5, "particles")
    both = [*good, *cells(energy, modes)]
    assert table1._taxonomy_finding(both, 5, FLOOR).judgement.verdict == expected
    ran, reached = table1._catalogue_findings(both, 5, FLOOR)
    assert reached.judgement.verdict == expected  # of the worst pair
    assert ran.judgement.verdict == (FAILS if energy is None else HOLDS)


@pytest.mark.parametrize(
    ("slopes", "course", "expected"),
    [
        ((1.0001, 0.9999), (1.0, 0.5, 0.4), HOLDS),
        ((1.0, -1.0), (1.0, 0.5, 0.4), FAILS),  # the other sign
        ((1.0, 1.01), (1.0, 0.5, 0.4), FAILS),
        ((1.0, 1.0), (1.0, 0.5, 0.6), FAILS),  # F rises
    ],
)
def test_table2(slopes: tuple[float, ...], course: tuple[float, ...], expected: str) -> None:
    flows = [{"F": course, "predicted": [0.0, 0.5, 0.6]}] * 2
    found = table2._finding(
        "entropy", table2.Plan((0, 1)), {"entropy": list(slopes)}, {"entropy": flows}
    )
    assert found.judgement.verdict == expected


@pytest.mark.parametrize(
    ("edm", "flow", "expected"),
    [
        (near(50), near(10), HOLDS),
        (near(10), near(50), FAILS),
        (near(15), near(10), OPEN),
        ([float("inf")] * 5, near(10), HOLDS),  # EDM never gets there
        (near(50), [float("inf")] * 5, FAILS),
    ],
)
def test_fig8_12(edm: list[float], flow: list[float], expected: str) -> None:
    found = fig8_12.CLAIMS["faster"].found("", "", fig8_12.lead(edm, flow))
    assert found.judgement.verdict == expected
    assert fig8_12.arrival([(0, 1.0), (50, 0.01), (75, 0.2), (100, 0.02)]) == 100
    assert fig8_12.arrival([(0, 1.0), (100, 0.2)]) == float("inf")


@pytest.mark.parametrize(
    ("energy", "error", "laws", "moments"),
    [
        (0.0002, 1e-12, HOLDS, HOLDS),
        (0.001, 1e-12, OPEN, HOLDS),
        (0.004, 1e-3, FAILS, FAILS),
    ],
)
def test_a1_of_particles(energy: float, error: float, laws: str, moments: str) -> None:
    values = {"energy": {"0": near(0.0), "1": near(energy)}, "limit": 0.001}
    found = a1.particles_findings("", {**values, "covariance": {"0": 1e-12, "1": error}})
    assert verdicts(a1.CLAIMS, found) == {"moments": moments, "laws": laws}


@pytest.mark.parametrize(
    ("noisy", "expected"),
    [((0.02, 0.5), HOLDS), ((0.0025, 0.0025), OPEN), ((0.001, 0.001), FAILS)],
)
def test_a1_of_generators(noisy: tuple[float, float], expected: str) -> None:
    models = panel({"0": 0.002, "0.1": noisy[0], "1": noisy[1]})
    for by in (a1.ADAM, a1.DESCENT):
        assert verdicts(a1.CLAIMS, [a1.verdict(models, by)]) == {by: expected}


@pytest.mark.parametrize(
    ("untrained", "trained", "expected"),
    [(1.0, 0.002, HOLDS), (0.02, 0.002, OPEN), (1e-5, 0.002, OPEN), (0.002, 0.05, FAILS)],
)
def test_claim1_against_chance(untrained: float, trained: float, expected: str) -> None:
    models = panel(dict.fromkeys(claim1.LEARNED, trained))
    found = claim1.chance_findings(models, dict.fromkeys(claim1.LEARNED, near(untrained)))
    assert verdicts(claim1.CLAIMS, found) == dict.fromkeys(claim1.LEARNED, expected)


@pytest.mark.parametrize(
    ("cosine", "chance", "expected"),
    [(0.5, 0.1, HOLDS), (0.1, 0.5, FAILS), (0.5, 0.5, OPEN)],
)
def test_claim1_of_motion(cosine: float, chance: float, expected: str) -> None:
    def field(number: int) -> dict[str, float]:
        return {"cosine": near(cosine)[number], "chance": near(chance)[-number]}

    def moments(number: int) -> dict[str, Any]:
        fields = {name: field(number) for name in claim1.FIELDS}
        good = {name: {"cosine": 0.9, "chance": 0.0} for name in claim1.FIELDS}
        return {"1": {claim1.MOTIONS[0]: good}, "2": {claim1.MOTIONS[0]: fields}}

    found = claim1.motion_findings("", [moments(number) for number in range(5)])
    assert set(verdicts(claim1.CLAIMS, found).values()) == {expected}


@pytest.mark.parametrize(
    ("both", "to_data", "one", "nearer"),
    [
        (0.0008, 0.01, HOLDS, HOLDS),
        (0.0008, 0.0009, HOLDS, OPEN),  # all are draws of the data
        (0.01, 0.0005, FAILS, FAILS),
        (0.01, 0.1, FAILS, HOLDS),
        (0.002, 0.0025, OPEN, OPEN),
    ],
)
def test_claim1_of_laws(both: float, to_data: float, one: str, nearer: str) -> None:
    names = [f"{a} to {b}" for a, b in claim1.PAIRS]
    far = dict(zip(names, map(near, (both, to_data, 1.0, 1.0)), strict=True))
    found = claim1.law_findings("", far, FLOOR)
    assert verdicts(claim1.CLAIMS, found) == {
        "one law": one,
        "nearer": nearer,
        "far from chance": HOLDS,  # the first rule lets all of them pass
    }
    assert [bool(each.claim.replaced) for each in found] == [False, False, True]


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        (0.001, {"exact": HOLDS, "exact, first": HOLDS}),
        (0.004, {"exact": HOLDS, "exact, first": FAILS}),
        (0.005, {"exact": OPEN, "exact, first": FAILS}),
        (0.03, {"exact": FAILS, "exact, first": FAILS}),
    ],
)
def test_diffflow_fig1(energy: float, expected: dict[str, str]) -> None:
    def point(energy: float, lambda2: float, g2: float) -> dict[str, Any]:
        return {"name": "", "energy": energy, "lambda2": lambda2, "g2": g2}

    places = ((e, [point(e, 1, 1), point(0, 1, 2), point(0, 0, 1)]) for e in near(energy))
    maps = [
        {"points": [*points, point(0.5, -1, 1)], "between_g2": [{"largest_energy": e}]}
        for e, points in places
    ]
    found = diffflow_fig1.reach_findings("exact", "", maps, 0.0005)
    assert verdicts(diffflow_fig1.CLAIMS, found) == expected
    assert diffflow_fig1.pairs(maps[0]) == 1
    for floor, same in ((2 * energy, HOLDS), (energy, OPEN), (energy / 2, FAILS)):
        found = diffflow_fig1.same_finding("learned", "", maps, floor)
        assert found.judgement.verdict == same


@pytest.mark.parametrize(
    ("off", "drawn", "expected"),
    [(0.5, True, HOLDS), (1.0, True, OPEN), (-2.0, True, FAILS), (-2.0, False, FAILS)],
)
def test_diffflow_theory(off: float, drawn: bool, expected: str) -> None:
    def check(off: float, drawn: bool) -> Check:
        source = "DiffFlow Proposition 2, Lemma 1"
        return Check("", source, 1 + off, "=", 1.0, 1.0, drawn)

    seeds = [[check(1e-9, False), check(0.1, True), check(each, drawn)] for each in near(off)]
    found = verdicts(diffflow_theory.CLAIMS, diffflow_theory.findings(seeds))
    wrong = "invariance, simulated" if drawn else "invariance"
    assert found == {"invariance": HOLDS, "invariance, simulated": HOLDS, wrong: expected}
    bound = Check("", "", 0.5, "<=", 1.0, 0.0)
    assert bound.margin == pytest.approx(0.5)


def test_diffflow_improved_gan() -> None:
    item = diffflow_improved_gan
    names = item.variants()
    energies = dict.fromkeys(names, 0.06) | {
        item.UNIT: 0.17,
        item.TIMED: 0.014,
        f"{item.TIMED}, {item.ANNEALED}": 0.004,
        item.ALL: 0.0108,
        item.USUAL: 0.8,
        f"{item.UNIT}, {item.TIMED}": 0.0108,
    }
    field = dict.fromkeys(names, near(0.6)) | {item.UNIT: near(1.5), item.ANNEALED: near(0.2)}
    aside = {
        "field": field,
        "worst late": {item.VANILLA: near(0.05), item.ANNEALED: near(0.1)},
        "motion": {item.VANILLA: near(0.4), item.TIMED: near(0.9)},
    }
    assert verdicts(item.CLAIMS, item.findings(panel(energies), aside)) == {
        "unit field": HOLDS,
        "usual field": OPEN,
        "annealed field": FAILS,
        "smoother": FAILS,
        "follows": HOLDS,
        "follows, first": HOLDS,
        "timed": HOLDS,
        "unit": FAILS,
        "all": HOLDS,
        "than usual": HOLDS,
        "annealing adds": OPEN,
        "unit adds": FAILS,
    }
    other = {**aside, "motion": {item.VANILLA: near(0.9), item.TIMED: near(0.4)}}
    assert verdicts(item.CLAIMS, item.findings(panel(energies), other))["follows"] == FAILS
