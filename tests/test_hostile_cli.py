"""Every command with every option at bad values ends in what was asked for, or in one sentence."""

from __future__ import annotations

import inspect
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partikel.app import cli
from partikel.app.arguments import options_in
from partikel.app.cli import COMMANDS, main
from partikel.app.terminal import degrade
from partikel.files import json_text, write_json

TINY = ["--iterations", "2", "--evaluate-samples", "50", "--evaluate-every", "1"]
NARROW = ["--network.width", "8", "--network.depth", "2", "--steps", "3"]
GAN = ["--discriminator.width", "8", "--generator.width", "8", "--latent", "4"]

BAD = (
    *("", "x", "nan", "inf", "-1", "0", "1.5", "1e400", "9" * 23, "9" * 5000, "null", "true", "on"),
    *("[", "{}", "[1, x]", "2024-05-01", "a\nb", "\udcff", "~nouser/x", "--", "%s"),
)

SMALL: dict[str, list[str]] = {
    "sample": ["FLOW", "-n", "4"],
    "evaluate": ["FLOW", "-n", "20"],
    "interpolate": ["FLOW", "--pairs", "2", "--points", "2"],
    "animate": ["GAN", "--frames", "2"],
    "export": ["GAN"],
    "likelihood": ["FLOW", "-n", "4", "--agree", "0", "--method", "map"],
    "neighbours": ["FLOW"],
    "tune": ["FLOW", "--steps", "2"],
    "presets": [],
}
"""Commands that run in a moment, with what makes them; the others are stood in for."""

STOOD_IN = (
    *("train", "distil", "compare", "verify", "map", "explore", "matrix", "league", "reproduce"),
    *("push", "demo"),
)
NEEDED = {
    "train": ["edm-gaussians"],
    **dict.fromkeys(("distil", "compare"), ["FLOW"]),
    "reproduce": ["list"],
    "push": ["FLOW", "me/x"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    main(["train", "discriminator-flow-gaussians", *TINY, *NARROW, "--out", str(folder / "flow")])
    main(["train", "gan-gaussians", *TINY, *GAN, "--out", str(folder / "gan")])
    return {"FLOW": str(folder / "flow"), "GAN": str(folder / "gan")}


def cases() -> list[list[str]]:
    found = []
    for name, command in COMMANDS.items():
        start = [name, *SMALL.get(name, NEEDED.get(name, []))]
        for option in (each.name for each in options_in(command) if not each.place):
            for bad in BAD:
                found += [[*start, option, bad], [*start, f"{option}={bad}"]]
            found.append([*start, option])
        for bad in BAD:
            found += [[name, bad], [*start, bad], [*start, f"--{bad}", "1"]]
    return found


def ended(
    arguments: list[str], capsys: pytest.CaptureFixture[str], where: dict[str, str] | None = None
) -> tuple[int, str]:
    """How a command ended: its code and standard error; a traceback is a failure of the test."""
    capsys.readouterr()
    try:
        main([(where or {}).get(each, each) for each in arguments])
    except SystemExit as stopped:
        code = 0 if stopped.code is None else int(stopped.code)
    else:
        code = 0
    return code, capsys.readouterr().err


@pytest.fixture
def walk(
    runs: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[list[str]], None]:
    monkeypatch.chdir(tmp_path)
    for name in STOOD_IN:
        original = COMMANDS[name]

        def stand_in(*_: Any, **__: Any) -> None: ...

        stand_in.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        stand_in.__annotations__ = dict(original.__annotations__)
        stand_in.__wrapped__ = original  # type: ignore[attr-defined]
        monkeypatch.setitem(COMMANDS, name, stand_in)

    def take(arguments: list[str]) -> None:
        code, said = ended(arguments, capsys, runs)
        assert code in (0, 2), (arguments, said)
        if code == 2:
            assert said.startswith("partikel: ") or "\npartikel: " in said, (arguments, said)
            assert len(said.strip().splitlines()[-1]) < 700, arguments
            assert "Traceback" not in said, arguments

    return take


def test_some_bad_values_of_options(walk: Callable[[list[str]], None]) -> None:
    for case in random.Random(3).sample(cases(), 150):
        walk(case)


@pytest.mark.slow
def test_every_option_of_every_command_at_its_bad_values(walk: Callable[[list[str]], None]) -> None:
    every = cases()
    assert len(every) > 2500
    for case in every:
        walk(case)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["sample", "FLOW", "--seed", "9" * 23],
            "--seed' of 'partikel sample' must be a whole number",
        ),
        (["sample", "FLOW", "--steps", "9" * 23], "--steps"),
        (["animate", "FLOW", "--n", "-1"], "of at least 1"),
        (["animate", "FLOW", "--n", "0"], "of at least 1"),
        (["likelihood", "FLOW", "--labels"], "trained without labels"),
        (["evaluate", "FLOW", "--features", "mnist"], "leave out features"),
        (["evaluate", "FLOW", "--json=maybe"], "true or false"),
        (["export", "GAN", "--out", "."], "names nothing|no name for something new|is not empty"),
        (["sample", "a\nb"], r"a\\nb is no run folder"),
        (["sample", "FLOW", "--out", "\udcff.npz"], "no file can hold"),
        (["sample", "FLOW", "extra"], "'extra' belongs to no setting"),
        (["sample", "FLOW", "-x", "1"], "has no option -x"),
        (["sample"], "needs more"),
        (["train", "edm-gaussians", "--batch", "1" + "0" * 18], "at most 16777216"),
        (["train", "edm-gaussians", "--seed", "9" * 5000], "'seed' must be a whole number"),
        (["train", "edm-gaussians", "--iterations"], "write --iterations VALUE"),
        (["distil", "FLOW", "--network.width"], "write --network.width VALUE"),
        (["distil", "FLOW", "--teacher.batch", "3"], "leave out --teacher"),
        (["distil", "FLOW", "--data.name", "ring"], "name: gaussians there, ring now"),
        (["distil", "FLOW", "--loss", "endpoints", "--steps", "3"], "in one call"),
        (["tune", "FLOW", "--steps", "4"], "at most 3 steps"),
        (["sample", "FLOW", "--levels", str([1.0] * 1001)], "1001 entries"),
        (["matrix", "--rows", "[]"], "at least 1"),
        (["league", "--budget", "1e30"], "1e.09"),
        (["reproduce"], "name items"),
        (["reproduce", "--check", "--out", "nothing"], "has no results"),
    ],
)
def test_refusals(
    arguments: list[str],
    said: str,
    runs: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    code, err = ended(arguments, capsys, runs)
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(said, err), err
    assert not list(tmp_path.iterdir())


def test_options_keep_their_values_and_stand_anywhere(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["sample", "--out=my-samples.npz", "-n", "1e1", "--seed=-1", runs["FLOW"]])
    assert np.load("my-samples.npz")["x"].shape == (10, 2)
    main(["sample", runs["FLOW"], "--out", "X.PNG"])
    assert Path("X.PNG").read_bytes().startswith(b"\x89PNG")
    for line in (
        ["--dry-run", "edm-gaussians"],
        ["edm-gaussians", "--dry-run", "true"],
        ["--out", "r", "--iterations", "1e4", "edm-gaussians", "--dry-run"],
        ["--dry-run=true", "--data.name", "moons", "edm-gaussians"],
    ):
        capsys.readouterr()
        main(["train", *line])
        assert "preset: edm-gaussians" in capsys.readouterr().out
    main(["evaluate", runs["FLOW"], "-n", "20", "--json", "true"])
    assert json.loads(capsys.readouterr().out)["metrics"]


@pytest.mark.parametrize(
    "word", ["2024-05-01", "1e3", "on", "nan", "12:30", "0x1F", "a: b", "[x", "NULL"]
)
def test_words_are_taken_as_given(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    from partikel.app.arguments import parse
    from partikel.app.config import dump_config, load_preset, make_recipe
    from partikel.app.reading import load_yaml

    line = ["edm-digits", "--data.path", word, f"--data.root={word}"]
    settings = parse("train", COMMANDS["train"], line)[1]
    recipe = make_recipe("edm", settings)
    assert recipe.data.path == recipe.data.root == word
    again = load_yaml(dump_config(recipe, "x"), "x")
    assert make_recipe("edm", again["settings"]) == recipe
    assert load_preset("edm-digits").recipe == "edm"


def test_what_a_terminal_cannot_write_is_written_in_other_letters() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", newline="\n")
    degrade(stream)
    print("σ λ² − é θ̄ Δ … ┃ 漢 x_\udcff", file=stream)
    stream.flush()
    raw = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert raw == b"sigma lambda^2 - e theta Delta ... | ? x_\\xff\n"


@pytest.mark.parametrize(
    ("changed", "arguments", "printed"),
    [
        (
            {"MPLBACKEND": "module://no_such.backend"},
            ["sample", "FLOW", "--out", "x.png"],
            b"x.png",
        ),
        ({"PYTHONIOENCODING": "ascii"}, ["likelihood", "--help"], b"2lambda^2"),
    ],
)
def test_a_launchers_variables_do_not_matter(
    changed: dict[str, str],
    arguments: list[str],
    printed: bytes,
    runs: dict[str, str],
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "partikel", *(runs.get(each, each) for each in arguments)]
    done = subprocess.run(
        command, env={**os.environ, **changed}, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_json_has_no_numbers_that_are_not_finite(tmp_path: Path) -> None:
    value = {
        "a": float("nan"),
        "b": [1.5, float("-inf")],
        "c": {"d": (float("inf"), True, None, 3)},
    }
    finite = {"a": None, "b": [1.5, None], "c": {"d": [None, True, None, 3]}}
    assert json.loads(json_text(value)) == finite
    assert write_json(tmp_path / "x.json", value) == finite
    assert "NaN" not in (tmp_path / "x.json").read_text()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RecursionError(), RuntimeError("not enough memory: you tried to allocate")],
)
def test_no_memory_ends_in_a_sentence(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(tokens: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", failing)
    code, said = ended(["presets"], capsys)
    assert code == 2
    assert said.count("\n") == 1


def test_the_phase_that_exploded_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*TINY, *GAN, "--iterations", "40", "--discriminator-optimizer.lr", "1e10"]
    code, said = ended(["train", "gan-gaussians", *options, "--out", str(tmp_path / "r")], capsys)
    assert code == 2
    assert "lower the 'discriminator' phase's learning rate" in said or "'discriminator'" in said
