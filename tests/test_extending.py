"""Another package's recipe, data, network, field and measure, from the command line; and none unnamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import partikel
from partikel import CheckpointError, ConfigError, extensions
from partikel.app import arguments
from partikel.app.cli import main
from partikel.extensions import VARIABLE, naming
from partikel.recipes import RECIPES

PACKAGE = Path(__file__).parent / "own_package"
SOURCE = Path(partikel.__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, built and installed offline."""
    place = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source")
    for name in ("own_package.py", "pyproject.toml"):
        shutil.copy(PACKAGE / name, source)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--target", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(autouse=True)
def visible(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package can be imported, and is not imported yet."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.delitem(sys.modules, "own_package", raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_package", None)


@pytest.fixture(scope="module")
def run(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the package's recipe, network and data, trained from the command line."""
    out = tmp_path_factory.mktemp("run") / "own"
    line = f"train own-flow --data.name lumps --iterations 3 --out {out}"
    path = os.pathsep.join(map(str, (SOURCE, installed)))
    command = [sys.executable, "-m", "partikel", *line.split()]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return out


def said(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command refuses with."""
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    captured = capsys.readouterr().err.strip()
    assert captured.count("\n") == 0
    return captured


def test_it_is_used_as_ours_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"sample {run} -n 5 --out x.npz --allow own_package".split())
    main(f"evaluate {run} -n 50 --measures mean-shift --json".split())  # which names the package
    result = json.loads(capsys.readouterr().out.partition("{")[2].join(("{", "")))
    assert result["metrics"]["mean-shift"] > 0
    assert result["reference"]["mean-shift"] < 0.6  # 100 points of 100, standard deviation 1


def test_its_field_is_a_row_of_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    main(["matrix", "--rows", "[shift]", "--cap", "3", "--out", "m"])
    assert {cell["row"] for cell in json.loads(Path("m/matrix.json").read_text())["cells"]} == {
        "shift"
    }


@pytest.mark.parametrize(
    "line", ["presets", "train --help", "train edm-digits --help", "presets own"]
)
def test_lists_name_it_without_importing_it(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments._about.cache_clear()  # the package came when the process had begun
    with contextlib.suppress(SystemExit):
        main(line.split())
    shown = capsys.readouterr().out
    assert "lumps" in shown if "edm" in line else "own-flow" in shown or line == "train --help"
    assert "own_package" not in sys.modules


def test_a_run_imports_nothing_that_was_not_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (f"sample {run}", f"train {run}/config.yaml --out other"):
        assert "--allow own-package" in said(line, capsys)
    with pytest.raises(CheckpointError, match="own-flow.*allow={'own-package'}"):
        partikel.load(run)
    assert "own_package" not in sys.modules
    loaded = partikel.load(run, allow={"own_package"})
    assert loaded.sample(3, generator=torch.Generator().manual_seed(0)).shape == (3, 2)
    assert (
        loaded.dataset.name == "lumps"
    )  # opened later, by who was allowed when the run was loaded


def test_the_variable_allows_for_good(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "Own.Package")
    assert partikel.load(run).recipe.name == "own-flow"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("recipe: own-flow", "recipe: os"),
        ("recipe: own-flow", "recipe: own_package:Flow"),
        ("kind: layered", "kind: subprocess"),
        ("name: lumps", "name: own_package:lumps"),
    ],
)
def test_a_configuration_names_no_modules(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text("utf-8")
    assert old in text
    Path("evil").mkdir()
    for each in run.iterdir():
        if each.name not in ("config.yaml", "data.json"):
            Path("evil", each.name).symlink_to(each)
    Path("evil/config.yaml").write_text(text.replace(old, new), "utf-8")
    with pytest.raises(CheckpointError) as refused:
        partikel.load("evil")
    assert "own_package" not in sys.modules
    assert "\n" not in str(refused.value)


def test_a_word_that_is_a_folder_names_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own-flow").symlink_to(run)
    assert "--allow" in said("sample own-flow", capsys)
    assert "--allow" in said(f"sample {run} --out own-flow", capsys)


def test_unknown_packages_are_no_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'own-package'" in said("sample x --allow own_packages", capsys)
    assert "write --allow PACKAGE" in said("sample x --allow", capsys)


def test_ours_win_and_two_of_a_name_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        about = tmp_path / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "[partikel.recipes]\nedm = nowhere:X\nboth = nowhere:X\n"
        lines += f"{name} = {name}:X\n"
        (about / "entry_points.txt").write_text(lines)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert RECIPES.find("edm").title == "EDM"
    assert "edm" not in RECIPES.others()
    with pytest.raises(ConfigError, match="registered 2 times, by one and two"):
        RECIPES.find("both")
    with pytest.raises(ConfigError, match="of the package one cannot be imported .ModuleNotFound"):
        RECIPES.find("one")


def test_what_no_distribution_registers_is_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", "my_package.part:Mine", "partikel.recipes")
    monkeypatch.setattr(extensions, "entry_points", lambda group: [entry])
    assert extensions.entries("recipes") == {"mine": "my-package"}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("X = 3", "must be a subclass of partikel.recipes.Recipe"),
        ("raise RuntimeError('boom')", "cannot be imported .RuntimeError: boom"),
        ("raise SystemExit(3)", "cannot be imported .SystemExit: 3"),
        (
            "from partikel.recipes import GAN\nclass X(GAN): name = 'wrong'",
            "must be decorated by @dataclass",
        ),
        (
            "from dataclasses import dataclass\nfrom partikel.recipes import GAN\n"
            "@dataclass(frozen=True, kw_only=True)\nclass X(GAN): name = 'wrong'",
            "must have a name, 'wrong-one'",
        ),
    ],
)
def test_what_is_no_recipe_is_a_sentence(
    content: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "wrong-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[partikel.recipes]\nwrong-one = wrong_module:X\n")
    (tmp_path / "wrong_module.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=match):
        RECIPES.find("wrong-one")
    sys.modules.pop("wrong_module", None)


def test_blocks_add_to_what_is_named() -> None:
    find: Callable[[], Any] = lambda: RECIPES.find("own-flow")  # noqa: E731
    with naming():
        with pytest.raises(ConfigError, match="--allow"):
            find()
        with naming(words=["shift"]), naming():  # a part of the same package
            assert find().name == "own-flow"
        with pytest.raises(ConfigError, match="--allow"):
            find()
    assert find().name == "own-flow"  # in Python code
