"""Commands as a newcomer runs them: results, refusals in one sentence, nothing half-written."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

import partikel
from partikel.app.arguments import options_in
from partikel.app.cli import COMMANDS, SolverName, main
from partikel.app.config import load_preset, make_recipe, preset_names
from partikel.app.progress import progress_bar
from partikel.app.runs import load
from partikel.data import SPLITS, Dataset, DataSettings, FiniteDataset, open_dataset
from partikel.fields import At, Context, ScoreField
from partikel.solvers import SOLVERS

TINY = [
    "--discriminator.width", "16", "--discriminator.depth", "2",
    "--generator.width", "16", "--generator.depth", "2",
    "--iterations", "6", "--evaluate-every", "2", "--evaluate-samples", "50",
]  # fmt: skip


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "gan"
    main(["train", "gan-gaussians", *TINY, "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "flow"
    options = ["--network.width", "16", "--network.depth", "2", "--steps", "4"]
    options += ["--iterations", "4", "--evaluate-every", "2", "--evaluate-samples", "50"]
    main(["train", "discriminator-flow-gaussians", *options, "--out", str(folder)])
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which a command is refused."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    *progress, said = err.splitlines()
    assert said.startswith("partikel: ")
    assert all(re.search("it/s|s/it", line) for line in progress)
    return err


def sampled(run: Path, *arguments: str) -> torch.Tensor:
    """Points that the command writes."""
    main(["sample", str(run), *arguments, "--out", str(run / "x.npz")])
    return torch.from_numpy(np.load(run / "x.npz")["x"])


def test_a_run_explains_itself(gan: Path) -> None:
    config = yaml.safe_load((gan / "config.yaml").read_text())
    assert config["recipe"] == "gan"
    assert config["settings"]["generator"]["width"] == 16
    environment = json.loads((gan / "environment.json").read_text())
    assert environment["packages"]["partikel"] == partikel.__version__
    steps = [json.loads(line)["step"] for line in (gan / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 2, 4, 6]
    assert len(list((gan / "frames").glob("step-*.npz"))) == 4
    assert "<html" in (gan / "report.html").read_text()
    if importlib.util.find_spec("tensorboard"):  # an extra
        assert list((gan / "tensorboard").rglob("events.*"))


def test_sample_writes_points(flow: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "x.npz"
    main(["sample", str(flow), "-n", "7", "--out", str(out)])
    first = np.load(out)["x"]
    assert first.shape == (7, 2)
    main(["sample", str(flow), "-n", "7", "--out", str(out)])
    np.testing.assert_array_equal(np.load(out)["x"], first)
    main(["sample", str(flow), "-n", "7", "--seed", "1", "--out", str(out)])
    assert np.abs(np.load(out)["x"] - first).max() > 0.01
    main(["sample", str(flow), "-n", "7", "--stop", "0", "--out", str(out)])
    start = np.load(out)["x"]
    main(["sample", str(flow), "-n", "7", "--stop", "2", "--steps", "8", "--out", str(out)])
    assert np.abs(np.load(out)["x"] - start).max() > 0
    main(["sample", str(flow), "-n", "30", "--out", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_prints_json(gan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["evaluate", str(gan), "-n", "200", "--json"])
    result = json.loads(capsys.readouterr().out)
    expected = {"energy", "mmd2", "sliced_w2", "modes", "nll"}
    assert expected | ({"w2"} if importlib.util.find_spec("ot") else set()) <= set(
        result["metrics"]
    )
    assert result["protocol"]["samples"] == 200
    assert abs(result["reference"]["energy"]) < result["metrics"]["energy"]


def test_pictures(gan: Path, flow: Path, tmp_path: Path) -> None:
    for run in (gan, flow):
        for method in ("linear", "spherical", "cauchy-linear", "spherical-cauchy-linear"):
            out = tmp_path / f"{run.name}-{method}.png"
            main(["interpolate", str(run), "--method", method, "--out", str(out), "--pairs", "3"])
            assert out.stat().st_size > 1000
        out = tmp_path / f"{run.name}.gif"
        main(["animate", str(run), "--out", str(out), "--frames", "3", "-n", "20"])
        assert out.read_bytes().startswith(b"GIF8")
    main(["compare", str(gan), str(flow), "--out", str(tmp_path / "both"), "-n", "100"])
    record = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert set(record) == {"gan", "flow"}
    assert (tmp_path / "both" / "comparison.png").exists()


def test_evaluations_are_counted(
    flow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edm = tmp_path / "edm"
    tiny = ["--network.width", "8", "--iterations", "2", "--evaluate-every", "2"]
    main(["train", "edm-gaussians", *tiny, "--evaluate-samples", "20", "--out", str(edm)])

    def nfe(*arguments: str) -> int:
        capsys.readouterr()
        main(["evaluate", *arguments, "-n", "50", "--json"])
        return json.loads(capsys.readouterr().out)["protocol"]["nfe"]

    assert nfe(str(edm)) == 55
    assert nfe(str(edm), "--steps", "7") == 7  # by the rule of few steps
    assert nfe(str(edm), "--steps", "7", "--stop", "3") == 3
    assert nfe(str(edm), "--steps", "7", "--solver", "heun") == 13
    assert nfe(str(edm), "--steps", "20") == 39
    assert nfe(str(edm), "--solver", "euler") == 28
    assert nfe(str(edm), "--levels", "[10,1,0.1]") == 7  # Heun's on 4 steps, the last one Euler's
    assert "fall from" in refused(capsys, "sample", str(edm), "--levels", "[1,10]")
    assert "leave out steps" in refused(capsys, "sample", str(edm), "--levels=[1]", "--steps", "3")
    assert "no path of noise levels" in refused(capsys, "sample", str(flow), "--levels", "[1]")
    assert nfe(str(edm), "--solver", "dpmpp-2m", "--steps", "9") == 9
    assert nfe(str(edm), "--solver", "predictor-corrector", "--steps", "5") == 9
    assert nfe(str(flow)) == 4


def test_a_relativistic_flow_finds_its_real_samples(tmp_path: Path) -> None:
    out = tmp_path / "flow"
    options = ["--objective", "relativistic", "--network.width", "8", "--steps", "3"]
    options += ["--iterations", "2", "--evaluate-every", "1", "--evaluate-samples", "20"]
    main(["train", "discriminator-flow-gaussians", *options, "--out", str(out)])
    start, moved = (sampled(out, "-n", "6", "--stop", str(steps)) for steps in (0, 1))
    run = load(out)
    real = run.context()
    assert real is not None
    assert len(real) > 1
    field = run.model.field.bind(Context(real=real))
    torch.testing.assert_close(moved, start + 20 / 3 * field(start, At(torch.zeros(()))))
    fewer = run.model.field.bind(Context(real=real[:1]))
    assert not torch.allclose(moved, start + 20 / 3 * fewer(start, At(torch.zeros(()))))


def stand_in(settings: DataSettings) -> Dataset:
    """Black images in the shape of a data set whose files are not at hand."""
    grey = settings.name.endswith("mnist")
    if not grey and settings.name not in ("cifar10", "celeba"):
        return open_dataset(settings)
    shape = (1 if grey else 3, settings.size or 32, settings.size or 32)
    images = {split: torch.zeros(4, *shape, dtype=torch.uint8) for split in SPLITS}
    return FiniteDataset(settings.name, images, sigma_data=0.5)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_resolves(
    preset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partikel.app.gallery.open_dataset", stand_in)
    main(["train", preset, "--dry-run"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["preset"] == preset


def test_a_resolved_configuration_makes_the_same_run(
    gan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main(["train", str(gan / "config.yaml"), "--dry-run"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["settings"] == yaml.safe_load((gan / "config.yaml").read_text())["settings"]


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert not stopped.value.code
    return capsys.readouterr().out


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    overview = capsys.readouterr().out
    for command, function in COMMANDS.items():
        assert command in overview
        told = helped(capsys, command)
        assert told.count("Usage: partikel") == 1
        assert told.count("Options") <= 1
        assert not re.search(r":\w+:`|``|true,false", told)
        for option in options_in(function):
            assert option.about
            assert option.name in told or option.key.upper() in told


def test_lists_read_well(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 81
    main(["presets"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["preset", "measured", "about"]
    assert [line.split()[0] for line in lines] == preset_names()
    assert all(load_preset(line.split()[0]).about in line for line in lines)  # nothing is cut
    main(["presets", "gan-mnist", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {name for name in preset_names() if "gan-mnist" in name}
    main(["presets", "gan-mnist-fast", "--json"])
    assert json.loads(capsys.readouterr().out)["gan-mnist-fast"] == found["gan-mnist-fast"]


def test_a_narrow_terminal_has_a_line_for_each_preset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(["presets"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(preset_names()) + 3  # a head, and a sentence after a gap
    assert max(map(len, lines)) <= 80


def test_near_names_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", "edm-mnst")
    assert "did you mean 'edm-mnist-fast', 'edm-mnist-paper'" in said
    assert said.count("'") <= 2 * (1 + 4 + 1)
    for part in ("mnst", "MNIST"):  # a word of theirs
        said = refused(capsys, "train", part)
        assert "'edm-mnist-fast'" in said
        assert said.count("mnist-") == 4
    for name in ("edm-mnst", "zzz"):
        assert "'partikel presets' lists them all" in refused(capsys, "train", name)


def test_a_pipe_is_told_rate_time_and_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Some:
        step, iterations = 100, 300

    clock = iter([0.0, 5.0, 20.0, 400.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    out = io.StringIO()
    shown = progress_bar(Console(file=out, width=40), "gan")
    assert shown is not None
    trainer: Any = Some()
    with shown(trainer) as show:
        for step, figures in ((110, {"energy": 0.5}), (200, {}), (300, {"energy": 0.25})):
            trainer.step = step
            loss = torch.tensor(step / 100)
            show({"generator/loss": loss, "generator/gradient_norm": loss, **figures})
    assert out.getvalue().splitlines() == [
        "gan: 200/300  0:00:20 left  5.0 it/s  energy 0.5  generator loss 2",
        "gan: 300/300  0:00:00 left  2.0 s/it  energy 0.25  generator loss 3",
    ]


@pytest.mark.parametrize("preset", ["edm-gaussians", "score-gan-digits"])
def test_help_of_a_preset_has_its_values(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = re.sub(r"\s+", "", helped(capsys, "train", preset, "--batch", "77"))
    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings)
    assert not re.search(r":\w+:`|``", told)
    assert f"default:{recipe.iterations}]" in told
    assert recipe.iterations != type(recipe).iterations
    assert "default:77]" in told
    assert "[trueorfalse;default:false]" in told  # settings have values, as --dry-run need not
    assert re.search("--data.name(VALUE)?oneofgaussians,ring", told)  # a setting's choices
    assert ("--score.optimizer.lr" in told) == (recipe.required is not None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "edm-gausians", "--out", "OUT"], "did you mean 'edm-gaussians'"),
        (["train", "missing.yaml", "--out", "OUT"], "no configuration file"),
        (["train", "edm-gaussians", "--netwrk.width", "3"], "did you mean 'network'"),
        (["train", "edm-gaussians", "--network.widht", "3"], "did you mean 'width'"),
        (["train", "edm-gaussians", "--lr", "3"], "did you mean 'optimizer.lr'"),
        (
            ["train", "edm-gaussians", "--iterations", "many"],
            "must be a whole number of at least 1, got 'many'",
        ),
        (["train", "edm-gaussians", "--solver", "hein"], "'heun' or 'euler'"),
        (["train", "edm-gaussians", "--iterations", "0"], "at least 1"),
        (["train", "edm-gaussians", "--optimizer.lr", "-1"], "finite number above 0, got -1."),
        (["train", "edm-gaussians", "--ema", "1.5"], "(0, 1)"),
        (["train", "edm-gaussians", "--sigma-min", "90"], "must lie between"),
        (["train", "edm-gaussians", "--steps", "0"], "of at least 1"),
        (["train", "edm-gaussians", "--steps"], "needs a value"),
        (["train", "edm-gaussians", "--network.kind", "dcgan"], ""),
        (["train", "edm-gaussians", "--data.name", "gausians"], "did you mean 'gaussians'"),
        (["train", "edm-gaussians", "--data.name", "mnist", "--data.root", "/none"], ""),
        (["train", "gan-gaussians", "--objective", "hing"], "did you mean 'hinge'"),
        (["train", "discriminator-flow-gaussians", "--times-per-path", "99"], "times_per_path"),
        (["train", "score-gan-gaussians", "--data-score", "nowhere"], "no run folder"),
        (["train", "edm-gaussians", "--data.name", "digits", "--batch", "2000"], "larger than"),
        (["sample", "nowhere"], "no run folder"),
        (["evaluate", "nowhere", "--jsn"], "did you mean '--json'"),
        (["sample", "RUN", "-n", "0"], "at least 1"),
        (["sample", "RUN", "--label", ""], "--label needs a value"),
        (["sample", "RUN", "--out", " "], "--out needs a value"),
        (["train", "edm-gaussians", "--data.path", ""], "--data.path needs a value"),
        (["sample", "RUN", "--out", "/dev/null/x.png"], "/dev/null cannot be read or written"),
        (["sample", "RUN", "-n", "x"], "must be a whole number"),
        (["sample", "RUN", "--steps", "4"], "leave out steps"),
        (["sample", "RUN", "--out", "x.jpeg"], ".npz or .png"),
        (["animate", "RUN", "--out", "x.webm"], ".gif or .mp4"),
        (["interpolate", "RUN", "--points", "1"], "points >= 2"),
        (["evaluate", "RUN", "-n", "1"], "at least 2"),
        (["compare", "RUN", "nowhere"], "no run folder"),
        (["presets", "nothing"], "there is no preset"),
    ],
)
def test_refusals(
    arguments: list[str],
    said: str,
    gan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    arguments = [{"RUN": str(gan), "OUT": str(tmp_path / "out")}.get(a, a) for a in arguments]
    assert said in refused(capsys, *arguments)
    assert not list(tmp_path.rglob("*"))


def test_one_step_is_enough(tmp_path: Path) -> None:
    """From the highest noise level to what the denoiser makes of it; η ∇(c∘d) from the prior."""
    options = ["--network.width", "8", "--network.depth", "2", "--iterations", "2"]
    options += ["--evaluate-samples", "50"]
    for preset in ("edm-gaussians", "discriminator-flow-gaussians"):
        out = tmp_path / preset
        main(["train", preset, *options, "--steps", "1", "--out", str(out)])
        start, end = sampled(out, "-n", "3", "--stop", "0"), sampled(out, "-n", "3")
        model = load(out).model
        if preset == "edm-gaussians":
            (score,) = (part for part in model.field.modules() if isinstance(part, ScoreField))
            expected = score.denoiser(start, torch.tensor(model.prior.std))
        else:
            expected = start + model.eta * model.field(start, At(torch.zeros(())))  # type: ignore[attr-defined]
        torch.testing.assert_close(end, expected)


def test_a_folder_of_another_run_is_left_alone(
    gan: Path, flow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (gan / "config.yaml").read_text()
    said = refused(capsys, "train", "edm-gaussians", "--out", str(gan))
    assert "holds a run of 'gan'" in said
    said = refused(capsys, "train", "gan-gaussians", *TINY, "--batch", "9", "--out", str(gan))
    assert "batch: 128 there, 9 now" in said
    assert (gan / "config.yaml").read_text() == before
    said = refused(capsys, "sample", str(flow), "--stop", "99")
    assert "cannot stop after 99 steps" in said


def test_damaged_runs(gan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(gan, copy)
    file = next(copy.glob("checkpoints/*/model.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    assert "truncated" in refused(capsys, "sample", str(copy))
    shutil.rmtree(copy / "checkpoints")
    assert "no checkpoint yet" in refused(capsys, "sample", str(copy))
    (copy / "config.yaml").write_text("recipe: [")
    assert "not valid YAML" in refused(capsys, "sample", str(copy))


def test_runs_of_other_data_do_not_compare(
    gan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "moons"
    main(["train", "gan-gaussians", *TINY, "--data.name", "moons", "--out", str(out)])
    assert "of the same data" in refused(capsys, "compare", str(gan), str(out))


def test_score_gan_trains_or_loads_its_data_score(tmp_path: Path) -> None:
    tiny = ["--iterations", "2", "--evaluate-every", "2", "--evaluate-samples", "50"]
    narrow = ["--own-score.width", "8", "--generator.width", "8"]
    score = ["--score.iterations", "2", "--score.network.width", "8"]
    trained = tmp_path / "trained"
    main(["train", "score-gan-gaussians", *tiny, *narrow, *score, "--out", str(trained)])
    assert (trained / "required" / "checkpoints").is_dir()
    loaded = tmp_path / "loaded"
    given = ["--data-score", str(trained / "required")]
    main(["train", "score-gan-gaussians", *tiny, *narrow, *given, "--out", str(loaded)])
    assert not (loaded / "required").exists()
    for run in (trained, loaded):
        main(["sample", str(run), "-n", "5", "--out", str(run / "x.npz")])
        assert np.load(run / "x.npz")["x"].shape == (5, 2)
    one, other = (np.load(run / "x.npz")["x"] for run in (trained, loaded))
    np.testing.assert_array_equal(one, other)
    parts = tmp_path / "parts.gif"
    main(["animate", str(trained), "--parts", "--out", str(parts)])
    assert parts.read_bytes().startswith(b"GIF8")


@pytest.mark.slow
def test_killed_runs_resume(tmp_path: Path) -> None:
    """SIGTERM and kill -9 in a real process; the same command ends with the same weights."""
    options = ["--discriminator.width", "16", "--generator.width", "16", "--iterations", "400"]
    options += ["--evaluate-every", "null", "--checkpoint-every", "20"]

    def command(out: Path) -> list[str]:
        script = "import sys; from partikel.app.cli import main; main(sys.argv[1:])"
        return [sys.executable, "-c", script, "train", "gan-gaussians", *options, "--out", str(out)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    subprocess.run(command(straight), check=True, env=environment, capture_output=True)
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        process = subprocess.Popen(
            command(broken), env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        known = set(broken.glob("checkpoints/step-*"))
        deadline = time.monotonic() + 600
        while set(broken.glob("checkpoints/step-*")) <= known and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate()
        assert process.returncode == code
    subprocess.run(command(broken), check=True, env=environment, capture_output=True)
    last = "checkpoints/step-00000400/model.safetensors"
    assert (straight / last).read_bytes() == (broken / last).read_bytes()
    page = json.loads((broken / "evaluation.json").read_text())  # small_pages is not for processes
    assert page["protocol"]["samples"] == 10_000


def test_every_solver_can_be_named() -> None:
    assert set(get_args(SolverName)) == set(SOLVERS)


@pytest.mark.parametrize("columns", [None, 20, 40, 60, 80, 200])
def test_a_table_loses_nothing(
    columns: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe a row is a line; in a terminal lines are no longer than it is wide, and words whole."""
    from partikel.app.tables import table

    names = ("", "GAN", "Discriminator Flow", "Score GAN", "data vs data")
    rows = [
        ["field", "∇(c∘d)", "∇(c∘d)", "σ(α s_p - β s_ρ)", ""],
        ["energy", "0.0592", "-0.000175", "1.01e-15", "-2.1e-05"],
        ["within_3sigma", "0.88", "0.985", "0.92", "0.99"],
    ]
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table("gaussians", names, rows)
    title, gap, *lines, end = capsys.readouterr().out.splitlines()
    assert (title, gap, end) == ("gaussians", "", "")
    words = " ".join(lines).replace(";", "").split()
    assert {word for row in rows for cell in row for word in cell.split()} <= set(words)
    if columns is None or columns == 200:
        assert [line.split()[0] for line in lines[2:]] == [row[0] for row in rows]
    if columns is not None:
        assert max(map(len, lines)) <= columns
    table("none", ("a", "b"), [])
    assert capsys.readouterr().out.split()[:3] == ["none", "a", "b"]


def test_lines_of_progress_are_whole_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from partikel.app.tables import console

    monkeypatch.setenv("COLUMNS", "80")
    said = " ".join(["measured"] * 40)
    console(stderr=True).print(said)
    assert capsys.readouterr().err == f"{said}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console(stderr=True).print(said)
    assert max(map(len, capsys.readouterr().err.splitlines())) <= 80


def test_brackets_in_a_table_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """A formula or a folder may have them."""
    from partikel.app.tables import table

    table("[red]", ["[bold]", "field"], [["[x]", "E[a'x_1 + b'x_0 | x]"]])
    said = capsys.readouterr().out
    assert all(word in said for word in ("[red]", "[bold]", "[x]", "E[a'x_1 + b'x_0 | x]"))
