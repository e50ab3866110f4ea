"""Pictures of one's own: what is seen of them, what is chosen for them, what is said, what the page shows."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from partikel.app import planning
from partikel.app.choices import RULES, choose
from partikel.app.cli import main
from partikel.app.config import load_preset, make_recipe
from partikel.app.export import load_generator
from partikel.app.planning import duration, plan_training, source_of
from partikel.app.reading import load_yaml
from partikel.app.runs import classes_in, load
from partikel.data import DataSettings, FiniteDataset, open_dataset
from partikel.data.looking import LOOKED_AT, Seen, _seen, look
from partikel.data.prepared import Listing
from partikel.errors import ConfigError, DataError
from partikel.metrics import PixelFeatures, evaluation
from partikel.metrics.features import _factor
from partikel.recipes import RECIPES
from test_small_data import pictures, seeded

PHOTOS = Seen(5000, (200, 300, 400, 400), None, changes={})


def paint(path: Path, size: tuple[int, int] = (40, 40), mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], bands), np.uint8)
    Image.fromarray(values.squeeze(), mode).save(path)


def seen_in(path: Path, **options: Any) -> Seen:
    return look(DataSettings("folder", path=str(path), **options))


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTIKEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        evaluation, "default_feature_network", lambda name, shape, _: PixelFeatures(shape)
    )


# --- looking


def test_sizes_colours_and_transparency_are_seen(tmp_path: Path) -> None:
    for i, size in enumerate([(40, 50), (90, 30), (64, 64)]):
        paint(tmp_path / "own" / f"{i}.png", size, "L", i)
    grey = seen_in(tmp_path / "own")
    assert (grey.count, grey.sides, grey.side) == (3, (30, 40, 64), None)
    assert not grey.colour
    assert grey.transparent == 0
    assert grey.classes == ()
    Image.open(tmp_path / "own" / "0.png").convert("RGB").save(tmp_path / "own" / "3.png")
    assert not seen_in(tmp_path / "own").colour  # grey, though its file has three channels
    paint(tmp_path / "own" / "4.png", (40, 40), "RGBA")
    seen = seen_in(tmp_path / "own")
    assert seen.colour
    assert seen.transparent == 1 / 5


def test_squares_of_one_size_are_seen(tmp_path: Path) -> None:
    assert seen_in(pictures(tmp_path / "own", 3)).side == 18


def test_classes_are_counted(tmp_path: Path) -> None:
    for i in range(3):
        paint(tmp_path / "own" / "dogs" / f"{i}.png")
    paint(tmp_path / "own" / "cats" / "0.png")
    seen = seen_in(tmp_path / "own")
    assert (seen.classes, seen.counts) == (("cats", "dogs"), (1, 3))
    assert seen_in(tmp_path / "own" / "dogs").classes == ()


def test_of_thirty_thousand_names_few_are_opened() -> None:
    opened: list[int] = []

    def read(i: int) -> Image.Image:
        opened.append(i)
        return Image.new("RGB", (50, 60), (250, 0, 0))

    seen = _seen(Listing([f"{i}.png" for i in range(30_000)], read), "here")
    assert seen.count == 30_000
    assert len(opened) == len(set(opened)) == LOOKED_AT
    assert (min(opened), max(opened)) == (0, 29_999)
    assert max(np.diff(opened)) < 2 * 30_000 / LOOKED_AT


def test_what_cannot_be_read_is_told_apart(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 3)
    (tmp_path / "own" / "bad.png").write_bytes(b"no picture")
    assert list(seen_in(tmp_path / "own").unreadable or ()) == ["bad.png"]
    for path in (tmp_path / "own").glob("0*.png"):
        path.write_bytes(b"nor this")
    with pytest.raises(DataError, match=r"no picture in .*own can be used \(000\.png: "):
        seen_in(tmp_path / "own")


def test_names_of_files_may_be_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No UTF-8, or a line break: a class by a name that can be written, and one line of each remark."""
    monkeypatch.setattr(planning, "estimate", lambda recipe: "a moment")
    (tmp_path / "own").mkdir()
    for name in ("caf\udce9", "on", "a\nb"):
        pictures(tmp_path / "own" / name, 3)
    (tmp_path / "own" / "on" / "\udcff\nx.png").write_bytes(b"no picture")
    settings = DataSettings("folder", path="own", size=16, on_error="skip")
    with pytest.warns(UserWarning, match="1 of 10 pictures"):
        assert open_dataset(settings).class_names == ("a\nb", r"caf\xe9", "on")
    main(["train", "edm", "--data", "own", "--dry-run"])
    text = capsys.readouterr().out
    assert "x.png cannot be read" in text
    assert load_yaml(text, "printed")["recipe"] == "edm"


def test_points_are_no_pictures() -> None:
    with pytest.raises(ConfigError, match="'moons' holds points, not pictures"):
        look(DataSettings("moons"))
    assert look(DataSettings("digits")).sizes == (8,)


# --- choosing


@pytest.mark.parametrize(
    ("seen", "cuda", "size"),
    [
        (PHOTOS, False, 32),
        (PHOTOS, True, 64),
        (replace(PHOTOS, sides=(20, 24, 24, 40)), False, 16),
        (replace(PHOTOS, sides=(20, 40, 40, 40, 40, 40, 40)), False, 32),
        (replace(PHOTOS, sides=(9, 9)), False, 16),
        (replace(PHOTOS, sides=(28,), side=28), False, 28),
        (replace(PHOTOS, sides=(30,), side=30), False, 16),
        (replace(PHOTOS, sides=(64,), side=64), False, 32),
        (replace(PHOTOS, sides=(64,), side=64), True, 64),
        (replace(PHOTOS, sides=(8,), side=8, sizes=(8,)), False, 8),
    ],
)
def test_sizes(seen: Seen, cuda: bool, size: int) -> None:
    assert choose("edm", seen, {}, cuda=cuda).settings["data"]["size"] == size


def test_colours_and_labels() -> None:
    grey = choose("gan", replace(PHOTOS, colour=False), {})
    assert grey.settings["data"]["channels"] == 1
    assert "channels 1: all are grey" in grey.reasons
    assert choose("gan", PHOTOS, {}).settings["data"]["channels"] == 3
    classed = replace(PHOTOS, classes=("cats", "dogs"), counts=(40, 60))
    choice = choose("gan", classed, {})
    assert choice.settings["conditional"]
    assert "conditional true: a class can be asked for (cats, dogs)" in choice.reasons
    parts = choose("gan", replace(classed, classes=("Test", "train")), {})
    assert not parts.settings["conditional"]
    assert any("look like parts of a data set" in reason for reason in parts.reasons)
    few = replace(classed, count=12, counts=(4, 8))
    assert not choose("gan", few, {}).settings["conditional"]
    assert not choose("gan", replace(PHOTOS, classes=("all",), counts=(60,)), {}).settings[
        "conditional"
    ]


@pytest.mark.parametrize(
    ("count", "held"), [(3, 0.0), (60, 0.0), (70, None), (5000, None), (30_000, 0.037)]
)
def test_splits(count: int, held: float | None) -> None:
    data = choose("edm", replace(PHOTOS, count=count), {}).settings["data"]
    assert data.get("validation") == held
    assert data.get("flip") is None  # which no data set leaves behind


def test_few_pictures_have_small_batches_and_are_augmented() -> None:
    few, many = (choose("gan", replace(PHOTOS, count=n), {}).settings for n in (10, 5000))
    assert few["batch"] == 9
    assert many["batch"] == 64
    lost = replace(PHOTOS, count=10, unreadable=dict.fromkeys("abcd", "why"))
    assert choose("gan", lost, {}).settings["batch"] == 4
    assert few["augment"] is not None
    assert many["augment"] is None


def test_what_is_given_stays_and_the_rest_follows() -> None:
    given = {"data": {"size": 16, "channels": 1}, "conditional": True, "iterations": 50}
    choice = choose("edm", PHOTOS, given)
    small = choose("edm", replace(PHOTOS, sides=(16,), side=16), {})
    assert choice.settings["data"] == {"size": 16, "channels": 1, "on_error": "skip"}
    assert choice.settings["network"] == small.settings["network"]
    assert choice.settings["conditional"] is True
    assert choice.settings["evaluate_every"] == 10
    brief = choose("edm", PHOTOS, {"iterations": 6}).settings  # never at each of few iterations
    assert (brief["evaluate_every"], brief["checkpoint_every"]) == (2, 1)
    assert not any(reason.startswith(("size", "channels")) for reason in choice.reasons)
    assert "network, batch 64: what suits edm at 16x16 on a CPU" in choice.reasons


def test_unreadable_pictures_are_left_out_and_said() -> None:
    bad = replace(PHOTOS, unreadable={"bad.png": "why"})
    choice = choose("edm", bad, {})
    assert choice.settings["data"]["on_error"] == "skip"
    assert any("bad.png cannot be read" in reason for reason in choice.reasons)
    stopped = choose("edm", bad, {"data": {"on_error": "stop"}})
    assert stopped.settings["data"]["on_error"] == "stop"


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "distillation"])
@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("side", [16, 28, 32])
def test_every_recipe_has_a_choice_that_composes(name: str, cuda: bool, side: int) -> None:
    assert name in RULES
    seen = replace(PHOTOS, sides=(side,), side=side, colour=False)
    settings = choose(name, seen, {"data": {"name": "folder", "path": "x"}}, cuda=cuda).settings
    recipe = make_recipe(name, settings)
    points = torch.zeros(4, 1, side, side, dtype=torch.uint8)
    points[::2] = 255
    data = FiniteDataset("four", dict.fromkeys(("train", "validation", "test"), points))
    system = recipe.system(data)
    x = system.model.sample(
        2,
        generator=seeded(),
        steps=1 if system.model.steps else None,
        real=data.take(torch.arange(4)).x,
    )
    assert x.shape == (2, 1, side, side)


# --- naming


def test_sources(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 1)
    with zipfile.ZipFile("own.zip", "w") as archive:
        archive.write("own/000.png")
    (tmp_path / "mnist").mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    assert source_of("own") == {"name": "folder", "path": "own"}
    assert source_of("own.zip") == {"name": "folder", "path": "own.zip"}
    assert source_of("mnist") == {"name": "mnist"}
    assert source_of("./mnist") == {"name": "folder", "path": "./mnist"}
    assert source_of("saved") == {"name": "hub", "path": "saved"}
    assert source_of("somebody/cats") == {"name": "hub", "path": "somebody/cats"}
    assert source_of("hub:beans") == {"name": "hub", "path": "beans"}
    with pytest.raises(DataError, match="no folder or zip file minst.*did you mean 'mnist'"):
        source_of("minst")
    for wrong in ("../x", "~/no/such", "a/b.zip"):
        with pytest.raises(DataError, match="there is no folder or zip file"):
            source_of(wrong)
    with pytest.raises(DataError, match="neither a folder nor a .zip file"):
        source_of("own/000.png")


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        (DataSettings("mnist"), "mnist"),
        (DataSettings("folder", path="a/My cats"), "My cats"),
        (DataSettings("folder", path="a/cats.zip"), "cats"),
        (DataSettings("folder", path="a/v1.5"), "v1.5"),
        (DataSettings("hub", path="somebody/cats"), "cats"),
    ],
)
def test_titles(settings: DataSettings, title: str) -> None:
    assert settings.title == title
    here = replace(settings, name="folder", path=".").title
    assert here == Path.cwd().name


def test_lengths_of_time() -> None:
    said = [duration(seconds) for seconds in (0.1, 30, 600, 3600 * 3)]
    assert said == ["1 s", "30 s", "10 min", "3.0 h"]


# --- plans


def test_a_preset_keeps_its_settings_and_says_so(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 30)
    plan = plan_training("edm-celeba-fast", {}, "own")
    assert plan.recipe == make_recipe(
        "edm", load_preset("edm-celeba-fast").settings, {"data": source_of("own")}
    )
    assert plan.folder == Path("runs/edm-celeba-fast-own")
    assert "data.flip true" in plan.said[0]
    assert "'partikel train edm --data own' chooses them" in plan.said[0]
    assert not plan.chosen
    assert plan_training("edm-celeba-fast", {}).said == ()


def test_a_run_goes_on_with_what_was_chosen(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 30)
    first = plan_training("edm", {}, "own")
    first.folder.mkdir(parents=True)
    from partikel.app.config import dump_config

    text = dump_config(first.recipe, first.label)
    (first.folder / "config.yaml").write_text(text, encoding="utf-8")
    for i in range(30):
        paint(tmp_path / "own" / f"more-{i}.png", (100, 100), "L", i)
    again = plan_training("edm", {}, str(tmp_path / "own"))  # the same place, in other words
    assert again.recipe == first.recipe
    assert "goes on with what was chosen" in again.said[0]
    other = plan_training("edm", {}, "own", "elsewhere")
    assert other.recipe != first.recipe


def test_a_score_gan_takes_the_data_of_its_score(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 30)
    edm = plan_training("edm", {"data": {"size": 20}}, "own")
    from partikel.app.config import dump_config

    Path("score").mkdir()
    Path("score/config.yaml").write_text(dump_config(edm.recipe, "edm"), encoding="utf-8")
    for data in (None, str(tmp_path / "own")):
        plan = plan_training("score-gan", {"data_score": "score"}, data)
        assert plan.recipe.data == edm.recipe.data
        assert plan.label == "score-gan-own"
    both: Any = plan_training("score-gan", {}, "own").recipe
    alone: Any = plan_training("edm", {}, "own").recipe
    for key in ("network", "data", "conditional", "batch", "iterations", "optimizer"):
        assert getattr(both.score, key) == getattr(alone, key)


# --- labels by name


def test_labels_by_name() -> None:
    settings = {"conditional": True}
    model = make_recipe("edm", settings).system(open_dataset(DataSettings())).model
    names = ("cat", "dog", "a, b", "fish", "bird")
    assert classes_in(model, "dog", names) == classes_in(model, "1", names) == [1]
    assert classes_in(model, "dog, cat,4", names) == [1, 0, 4]
    assert classes_in(model, "a, b", names) == [2]
    assert classes_in(model, "dog,a, b, 4", names) == [1, 2, 4]
    with pytest.raises(ConfigError, match="there is no class 'b': valid: 'a, b', bird, cat"):
        classes_in(model, "b", names)
    with pytest.raises(ConfigError, match="there is no class ''"):
        classes_in(model, "", names)
    assert classes_in(model, ["fish", 0], names) == [3, 0]
    assert classes_in(model, "all", names) == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="there is no class 'dgo': did you mean 'dog'"):
        classes_in(model, "dgo", names)
    numbers = ("4", "2", "1", "8", "9")  # texts are names, whole numbers are numbers
    assert classes_in(model, "4", numbers) == classes_in(model, 0, numbers) == [0]
    with pytest.raises(ConfigError, match="there is no class '0'"):
        classes_in(model, "0", numbers)


# --- few images


def test_covariances_of_few_images_have_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 40, generator=seeded(), dtype=torch.float64)
    matrix = x.T.cov()
    expected = _factor(matrix)

    def fail(*_: Any) -> None:
        raise errors.LinAlgError("did not converge")

    errors: Any = torch.linalg
    monkeypatch.setattr(torch.linalg, "eigh", fail)
    for factor in (expected, _factor(matrix)):
        torch.testing.assert_close(factor @ factor.T, matrix)


@pytest.mark.parametrize(
    ("share", "said"), [(1.3, ":"), (0.25, " while others use the processor (3 min if none did):")]
)
def test_a_busy_machine_is_told(share: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_seconds", lambda *_: (600.0, 60.0, 0.5, share))
    sentence = "10 min of training (0.5 s an iteration), 60 s of evaluations"
    gan = make_recipe("gan", {"data": {"name": "digits"}})
    assert planning.estimate(gan) == f"takes about 11 min here{said} {sentence}"


# --- whole commands


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/partikel", *arguments])
    main()


def test_own_pictures_in_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "TIMED", 2)
    for i in range(24):
        paint(
            tmp_path / "zoo" / ("wild cats" if i % 2 else "dogs") / f"{i}.png", (18, 18), "RGB", i
        )
    small = ["--data.size", "16", "--discriminator.width", "4", "--generator.width", "4"]
    line = ["train", "gan", "--data", "zoo", *small, "--iterations", "2"]
    run([*line, "--dry-run"], monkeypatch)
    shown = capsys.readouterr().out
    assert "# gan-zoo: 24 pictures in 2 classes, 18 pixels on the shorter side" in shown
    assert "# " in shown
    assert "takes about" in shown
    assert not Path("runs").exists()
    run(line, monkeypatch)
    said = " ".join(capsys.readouterr().err.split())
    for part in ("conditional true", "validation 0:", "takes about", "say otherwise by name"):
        assert part in said
    trained = load("runs/gan-zoo")
    assert trained.data.class_names == ("dogs", "wild cats")
    assert trained.data.shape == (3, 16, 16)
    page = Path("runs/gan-zoo/report.html").read_text(encoding="utf-8")
    assert "<title>zoo: GAN</title>" in page
    assert "partikel train gan --data zoo --data.size 16" in page.split("Made by")[1]
    assert "<figcaption>wild cats</figcaption>" in page
    assert "<figcaption>real</figcaption>" in page
    assert "nearest training images" in page
    assert page.count("data:image/png") == 6  # generated, real, two classes, neighbours twice
    run(["sample", "runs/gan-zoo", "--label", "wild cats", "-n", "4"], monkeypatch)
    run(["sample", "runs/gan-zoo", "--label", "all", "-n", "4", "--out", "all.png"], monkeypatch)
    Path("zoo").rename("moved")  # names are kept by the run
    run(["sample", "runs/gan-zoo", "--label", "dogs", "--out", "dogs.npz"], monkeypatch)
    with np.load("dogs.npz") as found:
        assert set(found["cond"]) == {0}
    run(["export", "runs/gan-zoo", "--out", "exported"], monkeypatch)
    assert "classes: dogs, wild cats" in Path("exported/README.md").read_text(encoding="utf-8")
    generator = load_generator("exported")
    named = generator.sample(4, label="wild cats", generator=seeded())
    ones = torch.ones(4, dtype=torch.int64)
    torch.testing.assert_close(named, generator.sample(4, cond=ones, generator=seeded()))
    run(["sample", "exported", "--label", "dogs", "-n", "2", "--out", "two.npz"], monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        run(["sample", "runs/gan-zoo", "--label", "dgos"], monkeypatch)
    assert stopped.value.code == 2
    assert "there is no class 'dgos': did you mean 'dogs'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["edm"], "'edm' is a recipe, and needs data"),
        (["edm", "--data"], "--data needs a value"),
        (["edm", "--data", ""], "--data needs a value"),
        (["edm", "--data", "digts"], "no data set of that name (did you mean 'digits'?)"),
        (["edm", "--data.name", "digts"], "no data set 'digts': did you mean 'digits'?"),
        (["edm", "--data", "nowhere"], "there is no folder or zip file nowhere"),
        (
            ["edm", "--data", "no/where"],
            "there is no folder or zip file no/where here, and as a name",
        ),
        (["edm", "--data", "empty"], "empty holds no pictures"),
        (["edm", "--data", "moons"], "'moons' holds points"),
        (["edm", "--data", "broken.zip"], "broken.zip is damaged or no zip file"),
        (["edm", "--data", "text.txt"], "neither a folder nor a .zip file"),
        (["edm", "--data", "own", "--out", "own"], "own lies in own, the folder of the data"),
        (["edm-mnist-fast", "--data", "own", "--out", "./own/run"], "choose another --out"),
        (["edm", "--data", "own", "--data.size", "9"], "cannot be 9"),
        (["edm", "--data", "own", "--data.size", "x"], "'data.size' must be"),
        (["edm", "--data", "own", "--data.labels", "true"], "has no labels"),
        (["edm", "--data", "own", "--conditional", "true"], "has no labels"),
        (["edm", "--data", "own", "--batch", "64"], "a batch of 64 is larger"),
        (["edm-mnist-fast", "--data", "nowhere"], "there is no folder or zip file nowhere"),
    ],
)
def test_wrong_inputs_are_sentences(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(Path("own"), 3)
    Path("empty").mkdir()
    Path("broken.zip").write_bytes(b"PK no")
    Path("text.txt").write_text("x", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments, "--dry-run"])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert sentence in errors[-1]
    assert not any("Traceback" in line for line in errors)


def test_a_run_learns_where_its_pictures_lie_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*command: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(list(command), monkeypatch)
        assert stopped.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    pictures(Path("own"), 24)
    place = str(Path("own").absolute())
    few = ["--discriminator.width", "4", "--generator.width", "4"]
    settings = ["--data", place, "--data.size", "16", "--iterations", "2", "--batch", "4", *few]
    run(["train", "gan", *settings, "--out", "run"], monkeypatch)
    Path("own").rename("moved")
    told = refusal("evaluate", "run")
    assert "'partikel train run/config.yaml --out run --data.path PLACE'" in told
    again = ["train", "run/config.yaml", "--out", "run", "--data.path", "moved"]
    run(again, monkeypatch)
    run(["evaluate", "run"], monkeypatch)
    settings_now = yaml.safe_load(Path("run/config.yaml").read_text())
    assert settings_now["settings"]["data"]["path"] == "moved"
    assert settings_now["history"] == [{"until": 2, "settings": {"data.path": place}}]
    paint(next(Path("moved").rglob("*.png")), (18, 18), seed=99)  # another picture of the name
    assert "run was trained on other data" in refusal(*again)
