"""The rule of judgement on constructed effects, floors against draws of the data, and stale pages."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import t as student

from partikel.data import DataSettings, open_dataset
from partikel.errors import ConfigError
from partikel.metrics import energy_distance, frechet_distance
from partikel.metrics.chance import LEVEL, energy_quantile, floor
from partikel.metrics.evaluation import choose_features
from partikel.metrics.features import FeatureSet
from partikel.metrics.measures import ENERGY, FRECHET, MEASURES, main_measure
from partikel.studies import provenance
from partikel.studies.item import log_ratios, spread
from partikel.studies.judgement import (
    FAILS,
    HOLDS,
    INDICATED,
    LOG,
    NOT_INDICATED,
    OPEN,
    Claim,
    by_chance,
    detectable,
    interval_of,
    judge,
)
from partikel.studies.page import labelled

BETTER = Claim("A is nearer than B.", "§1", "log of B's distance over A's", 0.1, LOG)
SAME = replace(BETTER, kind="same")
EXACT = replace(BETTER, kind="exact", least=0.0)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([0.30, 0.32, 0.31], HOLDS),
        ([-0.30, -0.32, -0.31], FAILS),
        ([0.05, 0.06, 0.055], OPEN),  # surely positive, but smaller than what is of interest
        ([-0.05, -0.06, -0.055], OPEN),
        ([0.9, 0.2, 0.5], OPEN),  # every seed is beyond, their interval is not
        ([0.3, -0.2, 0.1], OPEN),
        ([0.3], INDICATED),
        ([0.05], NOT_INDICATED),
        ([-0.3], NOT_INDICATED),
        ([], OPEN),
        ([0.3, math.inf, 0.3], OPEN),
        ([0.3, math.nan], OPEN),
    ],
)
def test_a_claim_is_judged_by_the_interval_of_its_effects(
    effects: list[float], verdict: str
) -> None:
    assert judge(BETTER, effects).verdict == verdict


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([0.01, -0.01, 0.0], HOLDS),
        ([0.05, 0.055, 0.06], HOLDS),  # different, but by less than is of interest
        ([0.3, 0.31, 0.32], FAILS),
        ([-0.3, -0.31, -0.32], FAILS),
        ([0.09, 0.11, 0.10], OPEN),  # astride the limit
        ([0.5, -0.5, 0.0], OPEN),  # a wide interval is no evidence of sameness
        ([0.05], INDICATED),
        ([0.5], NOT_INDICATED),
    ],
)
def test_sameness_is_judged_by_a_region_of_equivalence(effects: list[float], verdict: str) -> None:
    assert judge(SAME, effects).verdict == verdict


def test_sameness_takes_a_narrower_interval_than_difference() -> None:
    effects = [0.0, 0.03, -0.03]
    for confidence, least in ((0.90, 0.0516), (0.95, 0.0756)):
        low, high = interval_of(effects, confidence)
        assert -low == pytest.approx(high)
        assert high == pytest.approx(least, abs=2e-3)
    assert judge(replace(SAME, least=0.06), effects).verdict == HOLDS  # by 90 %, not by 95 %


def test_what_is_exact_holds_or_does_not() -> None:
    assert judge(EXACT, [0.1]).verdict == HOLDS
    assert judge(EXACT, [0.0]).verdict == FAILS
    assert judge(EXACT, [0.1, -0.1]).verdict == FAILS  # the worst of several decides
    assert judge(EXACT, [0.1]).interval is None


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)) + 1.0
    for confidence in (0.9, 0.95):
        inside = [
            low < 1.0 < high for low, high in (interval_of(r, confidence) for r in draws.tolist())
        ]
        share = sum(inside) / len(inside)
        assert abs(share - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / len(inside))


def test_the_detectable_effect_is_found_in_four_of_five_repetitions() -> None:
    effect = 2.9  # of unit spread and 5 seeds: between what is found rarely and what is always
    draws = torch.randn(4000, 5, generator=torch.Generator().manual_seed(1))
    reach = sum(detectable(replace(BETTER, least=0.5), row) for row in draws.tolist()) / len(draws)
    draws = draws + reach
    holds = sum(judge(replace(BETTER, least=0.5), row).verdict == HOLDS for row in draws.tolist())
    assert 0.7 < holds / len(draws) < 0.9
    assert 0.5 < reach < effect
    quantiles = float(student.ppf(0.975, 4) + student.ppf(0.8, 4))
    error = math.sqrt(0.625) / math.sqrt(5)
    row = [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert detectable(replace(BETTER, least=0.3), row) == pytest.approx(0.3 + quantiles * error)


def test_chance_holds_few_claims() -> None:
    assert by_chance([BETTER] * 40) == pytest.approx(1.0)
    assert by_chance([SAME] * 20) == pytest.approx(1.0)
    assert by_chance([EXACT] * 20) == 0
    # true effects that are just the smallest one hold as often as is said
    draws = torch.randn(8000, 5, generator=torch.Generator().manual_seed(2)) * 0.2 + BETTER.least
    held = sum(judge(BETTER, row).verdict == HOLDS for row in draws.tolist())
    assert abs(held / len(draws) - 0.025) < 4 * math.sqrt(0.025 * 0.975 / len(draws))


def test_log_ratios_take_distances_below_the_floor_for_it() -> None:
    assert log_ratios([-1.0], [0.001], 0.001) == [0]
    assert log_ratios([2.0, 0.1], [1.0, 0.2], 0.1) == pytest.approx([math.log(2), -math.log(2)])
    assert spread([2.0]) == "2"
    assert spread([1.0, 3.0]) == "2 (1 to 3)"


def test_points_go_by_the_energy_distance_and_images_by_frechets() -> None:
    assert main_measure((2,)) is ENERGY
    assert main_measure((1, 8, 8)) is FRECHET
    assert all(key == measure.key for key, measure in MEASURES.items())


def test_the_floor_of_points_is_exceeded_by_one_draw_in_twenty() -> None:
    gaussians = open_dataset(DataSettings("gaussians"))
    n, limit = 500, floor(open_dataset(DataSettings("gaussians")), 500)
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(300):
        x, y = gaussians.draw(2 * n, generator=generator).x.chunk(2)
        found.append(energy_distance(x, y) > limit)
    share = sum(found) / len(found)
    assert abs(share - (1 - LEVEL)) < 4 * math.sqrt(LEVEL * (1 - LEVEL) / len(found))
    assert floor(gaussians, 4 * n) == pytest.approx(limit / 4, rel=1e-6)
    assert energy_quantile(torch.randn(50, 2), n, n, 0.5) < 0  # the median of an unbiased distance


def test_the_floor_of_images_is_what_halves_of_the_data_differ_by() -> None:
    digits = open_dataset(DataSettings("digits"))
    n = 200
    low, high = (floor(digits, n, level=level) for level in (0.2, 0.95))
    network = choose_features(None, digits)
    generator = torch.Generator().manual_seed(4)
    found = []
    for _ in range(10):
        pair = digits.draw(2 * n, generator=generator).x.split(n)
        found.append(frechet_distance(*(FeatureSet.of(network, network(each)) for each in pair)))
    assert sorted(found)[5] > low
    assert sorted(found)[5] < high
    scaled = floor(digits, 2000)  # more than there are: halves, scaled by their number
    assert 0 < scaled < high / 5


def test_a_page_says_that_it_is_stale_once_and_no_longer_than_it_is() -> None:
    text = "# A page\n\nSome text.\n"
    old = labelled(text, ["rule", "measuring"])
    assert old.startswith("> **Stale**: made with another rule and measuring than today's")
    assert labelled(old, ["rule"]).count("Stale") == 1
    assert labelled(old, []) == text


SOURCE = '''"""A module."""
from partikel.metrics import distances
LIMIT = 2
"""What it is."""

def measured(x: float) -> float:
    """What it does."""
    return 2 * x  # twice
'''


def test_source_counts_without_comments_and_docstrings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))

    def of(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return provenance.fingerprint(provenance._meaning(name))

    first = of("counted_a", SOURCE)
    assert (
        of("counted_b", SOURCE.replace("twice", "doubled").replace("What it", "That it")) == first
    )
    assert of("counted_c", SOURCE.replace("2 * x", "3 * x")) != first
    assert of("counted_d", SOURCE.replace("return 2", "return -2")) != first


def test_an_items_fingerprints_change_with_what_it_depends_on() -> None:
    trained = {"edm-gaussians/seed-1": {"preset": "edm-gaussians", "changes": {"batch": 32}}}
    known = provenance.settings(trained)
    assert known == provenance.settings(dict(trained))
    for other in ("seed-2", "seed-1"):
        changes = {"batch": 32 if other == "seed-2" else 33}
        changed = {f"edm-gaussians/{other}": {"preset": "edm-gaussians", "changes": changes}}
        assert provenance.settings(changed) != known
    with pytest.raises(ConfigError):
        provenance.settings({"a/seed-0": {"preset": "no-such-preset", "changes": {}}})
    item = "partikel.studies.items.table3"
    assert provenance.measuring(item) != provenance.measuring("partikel.studies.items.fig2")
    assert provenance.measuring(item) != provenance.metrics()
