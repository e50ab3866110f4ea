"""'partikel distil RUN': any run of free particles as a flow map, and scores of flow-matching runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from conftest import randn, seeded
from partikel.app import gallery
from partikel.app.config import dump_config, make_recipe
from partikel.app.export import export_run, load_export
from partikel.app.reading import load_yaml
from partikel.app.runs import load, train_run
from partikel.data import open_dataset
from partikel.errors import ConfigError
from partikel.fields import At
from partikel.models import Endpoints, FlowMapModel, Lagrangian, Semigroup
from partikel.priors import GaussianPrior
from partikel.recipes import Distillation, FlowMatching, Recipe
from partikel.recipes.flow_map import deterministic, network_like
from partikel.schedules import LinearSchedule

SMALL: dict[str, Any] = {"iterations": 2, "batch": 16, "evaluate_every": None}
TINY = {"kind": "mlp", "width": 8, "depth": 1, "embedding_features": 8}
EDM = {**SMALL, "network": TINY, "steps": 4}
TEACHERS: dict[str, dict[str, Any]] = {
    "edm": EDM,
    "flow-matching": EDM,
    "discriminator-flow": EDM,
    "diffflow": {**SMALL, "discriminator": TINY, "steps": 4, "score": EDM},
    "diffode-gan": {**SMALL, "discriminator": TINY, "steps": 4},
    "score-flow": {**SMALL, "own_score": TINY, "steps": 4, "score": EDM},
}


def distillation(name: str, **settings: Any) -> Recipe:
    teacher = {"recipe": name, **TEACHERS[name]}
    return make_recipe("distillation", {**SMALL, "network": TINY, "teacher": teacher, **settings})


@pytest.mark.parametrize("name", [name for name in TEACHERS if name != "score-flow"])
def test_every_flow_of_particles_is_distilled(name: str) -> None:
    """Along the linear path where it is one of noised data; where it is not, its ends, or its own nodes."""
    recipe = distillation(name)
    assert isinstance(recipe, Distillation)
    again = load_yaml(dump_config(recipe, "x"), "x")
    assert make_recipe("distillation", again["settings"]) == recipe
    data = open_dataset(recipe.data)
    system = recipe.system(data)
    model = system.model
    assert isinstance(model, FlowMapModel)
    noised = name in ("edm", "flow-matching", "diffflow")
    alone = name in (
        "edm",
        "flow-matching",
    )  # a discriminator learned at particles of its own steps
    assert isinstance(model.loss, Lagrangian if alone else Endpoints)
    further = distillation(name, steps=2).system(data).model
    assert isinstance(further, FlowMapModel)
    assert isinstance(further.loss, Lagrangian if noised else Semigroup)
    assert (further.schedule == LinearSchedule()) is noised
    assert model.flow.diffusion is None
    assert model.field.frozen
    assert [loss.name for loss in model.losses()] == ["map"]
    assert model.sample(3, generator=seeded()).shape == (3, 2)


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_ends_are_those_of_the_teacher_s_own_steps(path: str) -> None:
    """Along another path as well: from the same noise to the same points, by as many steps."""
    recipe = distillation("diffflow", path=path)
    assert isinstance(recipe, Distillation)
    data = open_dataset(recipe.data)
    teacher = recipe.teacher.system(data).model.double()
    model = recipe.compose(data, teacher).model
    assert isinstance(model, FlowMapModel)
    z, ends = randn(50, 2), []
    for flow in (deterministic(teacher), model.flow):
        assert isinstance(flow.prior, GaussianPrior)
        ends.append(flow.sample(50, generator=seeded(), start=flow.prior.std * z))
    assert float((ends[0] - 20 * z).norm()) > 10.0
    assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-6)


def test_the_probability_flow_of_the_plane_is_what_is_distilled() -> None:
    """All g share it: the SDE's teacher has the velocity of the ODE with the same networks."""
    recipe = make_recipe("diffflow", {**TEACHERS["diffflow"], "g2": 2.0, "lambda2": 1.0})
    data = open_dataset(recipe.data)
    noisy = recipe.system(data).model
    flow = deterministic(noisy)
    ode = make_recipe("diffflow", {**TEACHERS["diffflow"], "g2": 2.0, "lambda2": 2.0})
    same = ode.system(data).model
    x, t = 5 * randn(4, 2).float(), torch.tensor([1.0, 20.0, 35.0, 39.0])
    assert flow.schedule is not None
    at = At(t, flow.schedule.sigma(t))
    assert_close(flow.field(x, at), same.field(x, at), rtol=1e-4, atol=1e-4)


def test_what_has_no_map_is_said() -> None:
    data = open_dataset(make_recipe("edm").data)
    hot = make_recipe("discriminator-flow", {**EDM, "temperature": 0.5}).system(data).model
    with pytest.raises(ConfigError, match="temperature 0"):
        deterministic(hot)
    gan = make_recipe("gan", {**SMALL, "discriminator": TINY, "generator": TINY})
    with pytest.raises(ConfigError, match="random draws"):
        distillation("score-flow").system(data)
    with pytest.raises(ConfigError, match="one call"):
        deterministic(gan.system(data).model)


@pytest.mark.parametrize("name", ["flow-matching", "discriminator-flow"])
def test_a_run_is_distilled_and_read_back(name: str, tmp_path: Path) -> None:
    train_run(make_recipe(name, TEACHERS[name]), tmp_path / "flow")
    made = gallery.distil_run(
        load(tmp_path / "flow"), {**SMALL, "network": TINY}, str(tmp_path / "map"), None
    )
    assert made is not None
    run = load(tmp_path / "map")
    assert isinstance(run.model, FlowMapModel)
    assert run.model.loss == made[0].model.loss
    x = run.sample(5, generator=seeded())
    assert_close(x, made[0].sample(5, generator=seeded()))
    assert (tmp_path / "map" / "animation.gif").exists()
    with pytest.raises(ConfigError, match="is an export"):
        gallery.distillation_of(load_export(export_run(run, tmp_path / "export")), {})
    with pytest.raises(ConfigError, match="leave out --teacher"):
        gallery.distillation_of(load(tmp_path / "flow"), {"teacher": {"batch": 3}})
    wide = gallery.distillation_of(load(tmp_path / "flow"), {"network": {"width": 24}})
    assert isinstance(wide, Distillation)
    assert wide.network == replace(network_like(wide.teacher), width=24)
    (tmp_path / "flow" / "config.yaml").rename(tmp_path / "gone.yaml")  # its teacher is in it
    assert_close(load(tmp_path / "map").sample(5, generator=seeded()), x)


def test_a_flow_matching_run_is_the_score_of_a_score_gan(tmp_path: Path) -> None:
    train_run(make_recipe("flow-matching", EDM), tmp_path / "flow")
    score = {"data_score": str(tmp_path / "flow"), **SMALL, "own_score": TINY, "generator": TINY}
    gan = train_run(make_recipe("score-gan", score), tmp_path / "gan")
    assert isinstance(gan.recipe.score, FlowMatching)  # type: ignore[attr-defined]
    assert gan.sample(3, generator=seeded()).shape == (3, 2)
