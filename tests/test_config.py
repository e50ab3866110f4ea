"""Settings become typed recipes: merging, types, round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from partikel.app.config import (
    dump_config,
    load_preset,
    make_recipe,
    parse_overrides,
    preset_names,
    settings_of,
)
from partikel.errors import ConfigError
from partikel.networks import NetworkSettings
from partikel.objectives import GradientPenalty
from partikel.recipes import EDM, GAN, RECIPES, ScoreGAN


def test_later_settings_win_and_the_rest_keeps_its_default() -> None:
    recipe = make_recipe("edm", {"network": {"width": 8, "depth": 2}}, {"network": {"width": 9}})
    assert isinstance(recipe, EDM)
    assert (recipe.network.kind, recipe.network.width, recipe.network.depth) == ("mlp", 9, 2)
    assert recipe.steps == EDM().steps


def test_another_kind_of_network_forgets_the_old_kind() -> None:
    recipe = make_recipe(
        "edm",
        {"network": {"kind": "mlp", "width": 8}},
        {"network": {"kind": "unet", "channels": 4}},
    )
    assert isinstance(recipe, EDM)
    assert (recipe.network.kind, recipe.network.width, recipe.network.channels) == ("unet", None, 4)


def test_another_kind_of_network_forgets_the_recipes_default() -> None:
    recipe = make_recipe("score-gan", {"generator": {"kind": "fastgan", "width": 8}})
    assert isinstance(recipe, ScoreGAN)
    assert recipe.generator == NetworkSettings(kind="fastgan", width=8)


def test_lists_of_records() -> None:
    given = [{"weight": 0.5, "at": "real"}, {"weight": [[0.0, 1.0], [0.5, 2.0]], "at": "fake"}]
    recipe = make_recipe("gan", {"penalties": given})
    assert isinstance(recipe, GAN)
    assert recipe.penalties == (
        GradientPenalty(0.5, at="real"),
        GradientPenalty(((0.0, 1.0), (0.5, 2.0)), at="fake"),
    )


def test_labels_are_for_the_data_score_too() -> None:
    made = make_recipe("score-gan", {"conditional": True})
    assert isinstance(made, ScoreGAN)
    assert made.score.conditional
    with pytest.raises(ConfigError, match="must agree on labels"):
        make_recipe("score-gan", {"conditional": True, "score": {"conditional": False}})


def test_a_configuration_extends_another(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: edm-digits\nsettings: {network: {width: 7}, data: {name: mnist}}")
    base, loaded = load_preset("edm-digits"), load_preset(child)
    assert loaded.recipe == "edm"
    expected = {
        **base.settings,
        "network": {**base.settings["network"], "width": 7},
        "data": {"name": "mnist"},
    }
    assert loaded.settings == expected
    assert loaded.measured == {}  # another configuration's figures are not its own


def test_a_data_score_is_named_by_its_preset(tmp_path: Path) -> None:
    edm = load_preset("edm-digits").settings
    made = make_recipe(
        "score-gan", {"data": {"name": "mnist"}, "score": "edm-digits"}, {"score": {"steps": 3}}
    )
    assert isinstance(made, ScoreGAN)
    expected = make_recipe("edm", edm, {"steps": 3, "data": {"name": "mnist"}})
    assert made.score == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: edm-digit", "there is no preset 'edm-digit'"),
        ("extends: edm-digits\nrecipe: gan", "is of the recipe 'gan' but extends"),
        ("extends: FILE", "extends itself"),
        ("recipe: score-gan\nsettings: {score: gan-digits}", "name one of 'edm'"),
    ],
)
def test_what_cannot_be_built_on(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text.replace("FILE", str(file)))
    with pytest.raises(ConfigError, match=message):
        load_preset(file)


def test_the_data_score_is_of_the_same_data() -> None:
    recipe = make_recipe("score-gan", {"data": {"name": "moons"}})
    assert isinstance(recipe, ScoreGAN)
    assert recipe.score.data.name == "moons"
    with pytest.raises(ConfigError, match="set score.data to the same"):
        make_recipe("score-gan", {"data": {"name": "moons"}, "score": {"data": {"name": "spiral"}}})


@pytest.mark.parametrize("name", [*RECIPES])
def test_defaults_round_trip(name: str) -> None:
    recipe = RECIPES[name]()
    assert make_recipe(name, settings_of(recipe)) == recipe


@pytest.mark.parametrize("name", preset_names())
def test_presets_round_trip(name: str) -> None:
    preset = load_preset(name)
    recipe = make_recipe(preset.recipe, preset.settings)
    written = yaml.safe_load(dump_config(recipe, name))
    assert make_recipe(written["recipe"], written["settings"]) == recipe


def test_overrides() -> None:
    tokens = ["--a.b-c", "2e-4", "--d=null", "--e", "[1, 2]", "--a.f=true", "--g", "-1.5"]
    assert parse_overrides(tokens) == {
        "a": {"b_c": 2e-4, "f": True},
        "d": None,
        "e": [1, 2],
        "g": -1.5,
    }


@pytest.mark.parametrize(
    "tokens", [["x"], ["--x"], ["--x", "--y", "1"], ["--a", "1", "--a.b", "2"]]
)
def test_overrides_that_cannot_be_read(tokens: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_overrides(tokens)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("settings: {}", "needs a line 'recipe: NAME'"),
        ("recipe: edm\nseting: {}", "did you mean 'settings'"),
        ("recipe: edm\nschema: 9", "schema 9"),
        ("- 1", "no configuration"),
        ("a: [", "not valid YAML"),
    ],
)
def test_files_that_are_no_configurations(tmp_path, content: str, said: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_preset(file)
