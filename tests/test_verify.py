"""The theory that users run: that it holds, that it would not hold of another SDE, and its own tools."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from conftest import GAUSSIAN, MIXTURE, OTHER, randn, seeded, tensor
from partikel.diffflow import DiffFlow
from partikel.errors import ConfigError
from partikel.fields import At, Field
from partikel.fields.terms import LogRatioField
from partikel.metrics import energy_distance
from partikel.metrics.chance import energy_quantile
from partikel.schedules import VESchedule
from partikel.studies import theory as room
from partikel.studies.gaussian_laws import Convergence, gaussian_fisher, stationary_law
from partikel.studies.theory import Check, OwnScore, propagated, verify
from partikel.targets import Gaussian, gaussian_kl


@pytest.fixture(scope="module")
def runs() -> dict[str, Convergence]:
    return room.convergence_runs()


def assert_holds_and_is_written(folder: Path, checks: list[Check], samples: int, seed: int) -> None:
    assert [check for check in checks if not check.holds] == []
    assert len({check.claim for check in checks}) == len(checks)
    found = json.loads((folder / "verify.json").read_text(encoding="utf-8"))
    assert found["holds"] is True
    assert (found["samples"], found["seed"]) == (samples, seed)
    expected = [{**dataclasses.asdict(check), "holds": True} for check in checks]
    assert found["checks"] == expected
    for run in found["kl"].values():
        assert len(run["times"]) == len(run["kl"]) == len(run["bound"])
    with Image.open(folder / "kl.png") as image:
        assert min(image.size) > 700
    assert len(list(folder.iterdir())) == 2


@pytest.mark.slow
def test_the_theory_holds(tmp_path: Path) -> None:
    checks = verify(tmp_path / "theory", samples=3000, seed=5)
    sources = " ".join(check.source for check in checks)
    for claim in ("eqs. 4, 28", "eqs. 20, 22", "eqs. 23-25", "eqs. 26-27", "Algorithm 1",
                  "Proposition 2", "Lemma 1", "Theorem 1", "Theorem 2", "stationary law"):  # fmt: skip
        assert claim in sources
    assert_holds_and_is_written(tmp_path / "theory", checks, 3000, 5)


def test_the_theory_holds_in_closed_form(
    runs: dict[str, Convergence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no particles, but for those of the picture."""
    monkeypatch.setattr(room, "PARTS", ("forms", "gan", "invariance", "convergence"))
    monkeypatch.setattr(room, "convergence_runs", lambda: runs)
    checks = verify(tmp_path / "theory", samples=500, seed=5)
    assert len(checks) == 1 + 7 + 7 + 13
    assert_holds_and_is_written(tmp_path / "theory", checks, 500, 5)


def test_parts_of_the_theory_are_parts_of_the_whole() -> None:
    checks = {part: room.measured({}, samples=500, parts=(part,)) for part in ("forms", "gan")}
    assert [check.source for check in checks["forms"]] == ["DiffFlow eqs. 4, 28"]
    assert len(checks["gan"]) == 7
    assert room.measured({}, samples=500, parts=("gan", "forms")) == [
        check for part in checks.values() for check in part
    ]


def test_too_few_particles(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="samples >= 500, got 100"):
        verify(tmp_path, samples=100)
    assert not any(tmp_path.iterdir())


# --- what would not hold


FEW = {
    "VP, g² = 1.5β, λ² = β",
    "Langevin, λ² = 0, g² = β",
    "Langevin, λ² = 0.6β, g² = 1.2β",
    "continuation, λ² = -0.5β, g² = β",
}


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_wrong_noise_is_found(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """√g² for √(g² - λ²): every flow with λ² ≠ 0 ends elsewhere."""
    if few:
        simulations = []
        for each in room._simulations():
            name = each.name.split(": ")[1]
            flows = {place: f for place, f in each.flows.items() if f"{name}, {place}" in FEW}
            simulations += [dataclasses.replace(each, flows=flows)] if flows else []
        monkeypatch.setattr(room, "_simulations", lambda: simulations)

    def noise(self: DiffFlow, t: Tensor) -> Tensor:
        return self.coefficients(t).g2.clamp(min=0).sqrt()

    monkeypatch.setattr(DiffFlow, "noise", noise)
    monkeypatch.setattr(DiffFlow, "diffusion", property(lambda self: self.noise))
    held: dict[str, bool] = {}
    for check in room._simulated(4000, 0):
        flow = check.claim.split(": ")[1]
        held[flow] = held.get(flow, True) and check.holds
    assert len(held) == (len(FEW) if few else 25)
    blind = {"continuation, λ² = -0.5β, g² = 3β"}  # 7% less noise is too little for 4000 particles
    right = {flow for flow in held if "λ² = 0," in flow}
    assert len(right) == (1 if few else 4)
    assert {flow for flow, holds in held.items() if holds} - blind == right


def test_a_wrong_weight_of_the_discriminator_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """β - g² for β - ½g²: the same only where d is constant, or its weight is 0."""
    right = DiffFlow._mixture

    def mixture(self: DiffFlow, score: Field, log_ratio: Field, k: float) -> Field:
        return right(self, score, log_ratio, k) - 0.5 * self.g2 * self._log_ratio(log_ratio)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffFlow, "_mixture", mixture)
    langevin = DiffFlow.langevin(0.3, 0.8)
    simulation = room._unmatched("", langevin, (1.0,))
    (flow,) = simulation.flows.values()
    ends, reference = simulation.run(flow, 4000, 1), simulation.trial.end(4000, seeded(2))
    bound = energy_quantile(reference[:800], 4000, 4000, 0.9999)
    assert energy_distance(ends, reference) > 2 * bound
    monkeypatch.undo()
    assert energy_distance(simulation.run(flow, 4000, 1), reference) < bound


def test_a_wrong_beta_of_d_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = LogRatioField.forward
    monkeypatch.setattr(LogRatioField, "forward", lambda *args: (1 + 1e-6) * right(*args))
    failed = [check.holds for check in room._gan(0) if "20, 22" not in check.source]
    assert len(failed) == 6
    assert not any(failed)


def test_a_wrong_schedule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = VESchedule.sigma_rate
    monkeypatch.setattr(VESchedule, "sigma_rate", lambda self, t: 1.001 * right(self, t))
    held = {check.claim.split(": ")[-1]: check.holds for check in room._matched_in_closed_form()}
    assert held == {"VE": False, "Karras": True, "VP": True, "sub-VP": True}


def test_a_wrong_lemma_is_found(runs: dict[str, Convergence]) -> None:
    wrong = {
        name: dataclasses.replace(run, slope=1.001 * run.slope, bound=0.999 * run.bound)
        for name, run in runs.items()
    }
    for check in room._convergence(wrong):
        assert check.holds == ("over I/(2C)" in check.claim or "t = 40" in check.claim), check


def test_both_relations() -> None:
    holds: list[tuple[Callable[[], Check], bool]] = [
        (lambda: room._equal("", "", 1.1, 1.0, 0.2), True),
        (lambda: room._equal("", "", 0.7, 1.0, 0.2), False),
        (lambda: room._equal("", "", float("nan"), 1.0, 0.2), False),
        (lambda: room._at_most("", "", 0.3, 1.0), True),
        (lambda: room._at_most("", "", 1.1, 1.0), False),
        (lambda: room._at_most("", "", float("nan"), 1.0), False),
    ]
    assert [check().holds for check, _ in holds] == [expected for _, expected in holds]


# --- its tools


def test_the_quantile_of_the_energy_distance() -> None:
    """A share of 1 - level of data-vs-data distances lies above, for unequal sizes too."""
    n, m, pairs = 300, 200, 600
    x = MIXTURE.sample(pairs * (n + m), generator=seeded(), dtype=torch.float64)
    found = tensor([energy_distance(z[:n], z[n:]) for z in x.view(pairs, n + m, 2).unbind()])
    cloud = MIXTURE.sample(800, generator=seeded(1), dtype=torch.float64)
    for level in (0.5, 0.9, 0.98):
        share = float((found > energy_quantile(cloud, n, m, level)).double().mean())
        error = (level * (1 - level) / pairs) ** 0.5
        assert abs(share - (1 - level)) < 4.5 * error + 0.01


@pytest.mark.parametrize("g2", [0.5, 2.0, 3.0])
def test_a_mixture_moves_as_its_components(g2: float) -> None:
    """At a fixed level each is an Ornstein-Uhlenbeck process, whatever g."""
    beta, sigma, lambda2 = 0.8, 0.5, 0.4
    flow = DiffFlow.langevin(sigma, beta).at(g2, lambda2)
    times = tensor([0.3, 1.0])
    laws = propagated(flow, GAUSSIAN, MIXTURE, times)
    settled = stationary_law(flow, GAUSSIAN).covariance
    smoothed = GAUSSIAN.covariance + sigma**2 * torch.eye(2).double()
    for law, t in zip(laws, times.tolist(), strict=True):
        decay = torch.linalg.matrix_exp(-beta * t * torch.linalg.inv(smoothed))
        assert_close(law.means, GAUSSIAN.mean + (MIXTURE.means - GAUSSIAN.mean) @ decay)
        spread = settled + decay @ (MIXTURE.covariances - settled) @ decay
        assert_close(law.covariances, spread, rtol=1e-9, atol=1e-11)
        assert_close(law.weights, MIXTURE.weights)


def test_own_scores_are_those_of_the_nearest_node() -> None:
    x, own = randn(5, 2), OwnScore([GAUSSIAN, OTHER], tensor([0.0, 1.0]))
    for t, law in ((0.0, GAUSSIAN), (0.1, GAUSSIAN), (1.0, OTHER)):
        assert_close(own(x, At(tensor(t))), law.score(x))
    assert_close(own(x, At(tensor(1.0), tensor(0.7))), OTHER.score(x))


def test_divergences_by_quadrature() -> None:
    laws = OTHER.mean, OTHER.covariance, GAUSSIAN.mean, GAUSSIAN.covariance
    kl, fisher = room._divergences(OTHER, GAUSSIAN)
    assert_close(kl, float(gaussian_kl(*laws)), rtol=1e-9, atol=0)
    assert_close(fisher, float(gaussian_fisher(*laws)), rtol=1e-9, atol=0)
    assert_close(room._divergences(Gaussian(OTHER.mean, OTHER.covariance), OTHER), (0.0, 0.0))
