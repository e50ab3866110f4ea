"""Settings become typed recipes: merging, types, round trips."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from partikel.app.arguments import parse
from partikel.app.cli import COMMANDS
from partikel.app.config import (
    dump_config,
    load_preset,
    make_recipe,
    preset_names,
    settings_of,
)
from partikel.errors import ConfigError
from partikel.networks import NetworkSettings
from partikel.objectives import GradientPenalty
from partikel.recipes import EDM, GAN, RECIPES, Recipe, ScoreGAN


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


def settings_from(tokens: list[str]) -> dict[str, Any]:
    return parse("train", COMMANDS["train"], ["edm-gaussians", *tokens])[1]


def test_overrides() -> None:
    tokens = ["--a.b-c", "2e-4", "--d=null", "--e", "[1, 2]", "--a.f=true", "--g", "-1.5"]
    assert settings_from(tokens) == {
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
        settings_from(tokens)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("settings: {}", "needs a line 'recipe: NAME'"),
        ("recipe: edm\nseting: {}", "did you mean 'settings'"),
        ("recipe: edm\nschema: 9", "schema 9"),
        ("- 1", "no configuration"),
        ("a: [", "not valid YAML, line 1"),
        ("recipe: gan\nsettings: {seed: 1\nb: ]", "not valid YAML, line 3"),
        ("recipe: gan\x07", "not valid YAML: special characters are not allowed"),
    ],
)
def test_files_that_are_no_configurations(tmp_path, content: str, said: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_preset(file)


BOMB = "a: &a [1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"recipe: [gan]", "'recipe' in .* must be a word"),
        (b"recipe: gan\nsettings: [1]", "'settings' in .* must be a mapping or null"),
        (b"recipe: gan\nabout: {a: 1}", "'about' in .* must be a word or null"),
        (b"extends: [gan-digits]", "'extends' in .* must be a word"),
        (b"recipe: gan\nmeasured: 3", "'measured' in"),
        (b"recipe: gan\nrecipe: edm", "line 2: the key 'recipe' stands there twice"),
        (b"recipe: gan\nsettings:\n  batch: 3\n  batch: 4", "line 4: the key 'batch'"),
        (b"recipe: gan\nabout: caf\xe9", "no text in UTF-8 .line 2"),
        (b"\xff\xfer\x00e", "no text in UTF-8|no configuration"),
        (b"\x89PNG\r\n\x1a\n\x00", "no text in UTF-8|not valid YAML"),
        (b"recipe: gan\nsettings: !!int foo", "'settings' in|not valid YAML"),
        (b"recipe: gan\nsettings: !!python/object/apply:os.getcwd []", "not valid YAML, line 2"),
        (b"recipe: gan\nsettings: {latent: !!float x}", "not valid YAML, line 2: 'x' is no number"),
        (b"recipe: gan\nsettings: !!map [1]", "not valid YAML"),
        (b"recipe: gan\nsettings: {? [a] : b}", "a key is a word"),
        (b"recipe: gan\nsettings: " + b"[" * 1500, "nests more than"),
        (b"recipe: gan\nsettings: " + b"{a: " * 1500, "nests more than"),
        (b"recipe: gan\nsettings: &x {a: *x}", "repeats itself without an end"),
        (BOMB.encode() + b"recipe: gan", "more than 20000 entries"),
        (b"recipe: gan\n# " + b"x" * 10**6, "more than 200,000 bytes"),
        (b"recipe: gan\nsettings: {score: SELF}", "is its own score"),
        (b"recipe: gan\nsettings: {seed: 2001-99-99}", "'seed' must be a whole number"),
        (b"recipe: gan\nsettings: {seed: 0x_}", "'seed' must be a whole number"),
        (b"recipe: gan\nsettings: {seed: " + b"9" * 5000 + b"}", "'seed' must be a whole number"),
        (b"recipe: gan\nsettings: {iterations: ~}", "'iterations' must be .*, got null"),
        (b"recipe: gan\nsettings: {objective: ~}", "'objective' must be a word, got null"),
        (b"recipe: gan\nsettings: {data: {name: null}}", "'data.name' must be a word, got null"),
        (b"recipe: gan\nsettings: {generator: null}", "'generator' holds several settings"),
        (b"recipe: gan\nsettings: {penalties: [{weight: .nan}]}", "'penalties.weight' must be"),
        (b"recipe: gan\nsettings: {penalties: [3]}", "'penalties' must be"),
        (b"recipe: gan\nsettings: {batch: true}", "'batch' must be .*, got true"),
        (b"recipe: gan\nschema: one", "'schema' in .* must be a whole number"),
    ],
)
def test_hostile_files(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content.replace(b"SELF", str(file).encode()))
    with pytest.raises(ConfigError, match=said) as refused:
        read(file)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def read(file: Path) -> Recipe:
    preset = load_preset(file)
    return make_recipe(preset.recipe, preset.settings)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_at_the_beginning_of_a_file(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("recipe: edm\nabout: σ\nsettings: {steps: 5}", encoding=encoding)
    loaded = load_preset(file)
    assert (loaded.about, loaded.settings) == ("σ", {"steps": 5})


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    kinds = {
        "pipe.yaml": "a pipe",
        "folder.yaml": "a folder",
        "missing.yaml": "no configuration file",
    }
    for name, said in kinds.items():
        with pytest.raises(ConfigError, match=said):
            load_preset(tmp_path / name)


def test_a_file_builds_on_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "base.yaml").write_text("extends: score-gan-digits\nsettings: {seed: 5}")
    (tmp_path / "conf" / "deep" / "edm.yml").write_text("extends: edm-digits\nsettings: {steps: 7}")
    (tmp_path / "conf" / "child.yaml").write_text(
        "extends: base.yaml\nsettings: {score: deep/edm.yml, data: {name: digits}}"
    )
    recipe = read(Path("conf/child.yaml"))
    assert isinstance(recipe, ScoreGAN)
    assert (recipe.seed, recipe.score.steps) == (5, 7)
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml")
    with pytest.raises(ConfigError, match="that build on others"):
        load_preset("0.yaml")
    (tmp_path / "a.yaml").write_text("extends: conf/b.yaml")
    (tmp_path / "conf" / "b.yaml").write_text("extends: ../a.yaml")
    with pytest.raises(ConfigError, match="build on others|extends itself"):
        load_preset("a.yaml")


def test_words_in_files_stay_words(tmp_path: Path) -> None:
    words = ["2024-05-01", "1e3", "on", "nan", "12:30", "0x1F", "007", "1_000", "true", "5", "2.50"]
    for word in words:
        file = tmp_path / "x.yaml"
        file.write_text(f"recipe: edm\nsettings: {{data: {{path: {word}, split: '{word}'}}}}")
        recipe = read(file)
        assert (recipe.data.path, recipe.data.split) == (word, word)
        file.write_text(dump_config(recipe, word))
        assert read(file) == recipe


def test_numbers_are_read_as_they_are_meant() -> None:
    text = {
        "iterations": "1e4",
        "--sigma-max": "8e1",
        "batch": "0x10",
        "seed": "-3",
        "conditional": "no",
    }
    recipe = make_recipe("edm", settings_from([f"--{k.strip('-')}={v}" for k, v in text.items()]))
    assert (recipe.iterations, recipe.seed, recipe.conditional) == (10_000, -3, False)
    assert isinstance(recipe, EDM)
    assert (recipe.sigma_max, recipe.batch) == (80.0, 16)
    with pytest.raises(ConfigError, match="'iterations' must be a whole number"):
        make_recipe("edm", {"iterations": 1.5})


def test_relative_paths_of_a_file_are_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is read from; a run's own file keeps what it was given."""
    (tmp_path / "own" / "pictures").mkdir(parents=True)
    (tmp_path / "own" / "network").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    beside = Path("../own")

    def read(data: str, more: str = "", head: str = "") -> dict[str, Any]:
        text = f"{head}recipe: score-gan\nsettings: {{data: {{name: folder, {data}}}{more}}}\n"
        (tmp_path / "own" / "mine.yaml").write_text(text)
        return load_preset(beside / "mine.yaml").settings

    found = read("path: pictures, root: all, cache: kept", ", data_score: diffusers:network")
    assert found["data"] == {
        "name": "folder",
        "path": str(beside / "pictures"),
        "root": str(beside / "all"),
        "cache": str(beside / "kept"),
    }
    assert found["data_score"] == f"diffusers:{beside / 'network'}"
    # a name of the Hub, or one under the root; the user's home; absolute ones
    assert read("path: other, root: ~/all")["data"] == {
        "name": "folder",
        "path": "other",
        "root": "~/all",
    }
    absolute = str(tmp_path / "own" / "pictures")
    assert read(f"path: {absolute}")["data"]["path"] == absolute
    assert read("path: pictures", head="schema: 1\n")["data"]["path"] == "pictures"
    for odd in ("path: [1]", "path: null", 'path: ""', "path: 3"):
        assert read(odd)["data"]["path"] in ([1], None, "", "3", 3)
