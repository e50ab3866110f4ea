"""Few pictures: whatever nobody asked for takes what there is, and what cannot be measured says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from partikel.app.cli import main
from partikel.app.config import load_preset, make_recipe
from partikel.app.runs import draw_samples, fit_batches, load, shown_data
from partikel.data import SPLITS, DataSettings, FiniteDataset, open_dataset
from partikel.errors import ConfigError, DataError
from partikel.metrics import PixelFeatures, evaluation
from partikel.metrics.evaluation import LEAST, evaluate, find_memorised, quick_evaluation
from partikel.models import GeneratorModel
from partikel.recipes import Recipe
from partikel.tensors import MOST, check_memory
from partikel.training import Engine

PRESET = "edm-celeba-fast"

TINY = """
recipe: edm
settings:
  network: {kind: unet, channels: 4, multipliers: [1], blocks: 1, attention_resolutions: []}
  sigma_max: 2.0
  steps: 2
  iterations: 2
  evaluate_every: 1
"""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        values = np.random.RandomState(i).randint(0, 256, (18, 18, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{i:03}.png")
    return folder


def small(train: int, validation: int, test: int) -> FiniteDataset:
    """So many 4 x 4 images in the splits."""
    counts = dict(zip(SPLITS, (train, validation, test), strict=True))
    images = {
        split: torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=seeded(i))
        for i, (split, n) in enumerate(counts.items())
    }
    return FiniteDataset("small", images)


def noise(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 1, 4, 4, generator=generator)


# --- measures


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 40])
def test_measures_that_need_more_images_say_so(count: int) -> None:
    result = evaluate(noise, small(50, count, count), features="pixels")
    fitting = {name for name, least in LEAST.items() if count >= least}
    assert set(result.metrics) == set(result.reference) == fitting
    assert set(result.left_out) == set(LEAST) - fitting
    assert len(fitting) == {0: 0, 1: 0, 2: 2, 5: 2, 6: 6, 40: 6}[count]
    for name, reason in result.left_out.items():
        assert reason == f"needs {LEAST[name]} test images, there are {count}"
    assert all(np.isfinite(value) for value in result.metrics.values())
    assert ("prdc" in result.protocol) == (count >= 6)
    watched = quick_evaluation(noise, small(50, count, count), n=2000)
    assert set(watched) == ({"frechet"} if count >= 2 else set())


def test_few_images_of_the_other_split_leave_out_the_reference_only() -> None:
    result = evaluate(noise, small(50, 0, 1), split="train", features="pixels", baselines=True)
    assert set(result.metrics) == set(LEAST)
    assert result.reference == result.left_out == {}
    assert set(result.baselines["noise"]) == set(LEAST)


def test_too_few_samples_that_were_asked_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes more than 5 of them"):
        evaluate(noise, small(50, 40, 40), n=5)
    with pytest.raises(ConfigError, match=r"2 <= k <= 3 .*k = 5"):
        find_memorised(noise, small(3, 0, 0), n=4, k=5, features="pixels")


def test_neighbours_of_few_images() -> None:
    found = find_memorised(noise, small(3, 0, 0), n=4, features="pixels")
    assert found.neighbours.distances.shape == (4, 3)
    assert set(found.figures) == {"memorised samples", "distance of samples"}
    assert find_memorised(noise, small(9, 0, 1), n=4, features="pixels").protocol["neighbours"] == 5
    with pytest.raises(DataError, match="has 1 training images: neighbours need at least 2"):
        find_memorised(noise, small(1, 0, 0), features="pixels")


def test_pictures_show_what_there_is() -> None:
    assert shown_data(small(9, 7, 1), 64, seeded()).shape == (7, 1, 4, 4)
    assert shown_data(small(9, 7, 1), 3, seeded()).shape == (3, 1, 4, 4)
    nothing_held_out = small(9, 0, 0)
    shown = shown_data(nothing_held_out, 64, seeded())
    assert torch.equal(
        shown.sort(0).values, nothing_held_out.take(torch.arange(9)).x.sort(0).values
    )
    assert small(9, 7, 1).at_most(8) == 8
    assert small(9, 7, 1).at_most(8, "validation") == 7
    assert open_dataset(DataSettings("moons")).at_most(10**9) == 10**9


# --- batches


def edm(**settings: Any) -> Recipe:
    return make_recipe("edm", settings)


def test_a_batch_that_nobody_chose_gives_way() -> None:
    data, said = small(10, 1, 1), []
    chosen = ({}, {"seed": 3})
    assert fit_batches(edm(batch=128), data, chosen, said.append).batch == 10  # type: ignore[attr-defined]
    assert said == [
        "batch: 10 instead of 128, as that is larger than the training split of 'small' (10 points)"
    ]
    accumulating = edm(batch=128, engine={"accumulate": 4})
    assert fit_batches(accumulating, data, chosen).batch == 8  # type: ignore[attr-defined]
    assert fit_batches(edm(batch=10), data, chosen, said.append) == edm(batch=10)
    assert len(said) == 1
    fresh = open_dataset(DataSettings("moons"))
    assert fit_batches(edm(), fresh, chosen) == edm()


@pytest.mark.parametrize("given", [None, ({"batch": 128}, {}), ({}, {"batch": 128})])
def test_a_batch_that_was_chosen_is_refused(given: Any) -> None:
    with pytest.raises(DataError, match=r"a batch of 128 is larger .*\(10 points\): lower batch"):
        fit_batches(edm(batch=128), small(10, 1, 1), given)


def test_a_split_that_fills_no_batch_is_refused() -> None:
    many = edm(engine={"accumulate": 16})
    assert many.engine == Engine(accumulate=16)
    for recipe, data in ((many, small(10, 1, 1)), (edm(), small(0, 1, 1))):
        with pytest.raises(DataError, match="fills no batch: give it more points"):
            fit_batches(recipe, data, ({},))


def test_the_batch_of_a_data_score_gives_way_by_itself() -> None:
    recipe = make_recipe("score-gan", {"batch": 4, "score": {"batch": 64}})
    said: list[str] = []
    fitted = fit_batches(recipe, small(10, 1, 1), ({"batch": 4},), said.append)
    assert (fitted.batch, fitted.score.batch) == (4, 10)  # type: ignore[attr-defined]
    assert said[0].startswith("score.batch: 10 instead of 64")
    with pytest.raises(DataError, match="lower score.batch"):
        fit_batches(recipe, small(10, 1, 1), ({}, {"score": {"batch": 64}}))


def test_only_the_users_own_files_choose(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: {PRESET}\nsettings: {{batch: 40}}\n", encoding="utf-8")
    assert load_preset(path).given == {"batch": 40}
    assert load_preset(PRESET).given == {}
    assert load_preset(PRESET).settings["batch"] == 128


# --- whole commands


@pytest.mark.parametrize(
    "count", [3, 40, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 10, 300))]
)
def test_few_pictures_train_and_get_their_page(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTIKEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(  # as the network for photographs takes seconds
        evaluation, "default_feature_network", lambda name, shape, _: PixelFeatures(shape)
    )
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    data = ["--data.name", "folder", "--data.path", str(pictures(tmp_path / "own", count))]
    data += ["--data.size", "16"]
    every = ["--evaluate_every", "null"] if count == 40 else []
    main(["train", "tiny.yaml", "--out", "run", *data, *every])
    page = Path("run/report.html").read_text(encoding="utf-8")
    test = round(count / 10)
    for name, least in LEAST.items():
        reason = f"needs {least} test images, there are {test}"
        assert (name in json.loads(Path("run/evaluation.json").read_text())["left_out"]) == (
            reason in page and test < least
        )
    assert ("needs 6 test images" in page) == (test < 6)
    run = load("run")
    assert run.step == 2
    assert run.recipe.batch == min(128, run.dataset.size() or 0)  # type: ignore[attr-defined]
    if count == 40:
        return
    capsys.readouterr()
    main(["compare", "run", "--out", "both"])
    assert Path("both/index.html").exists()
    assert "data vs data" in capsys.readouterr().out
    main(["sample", "run", "-n", "8"])
    if count > 1:
        main(["neighbours", "run", "-n", "4", "--features", "pixels"])
    if count > 3:
        main(["train", "tiny.yaml", "--out", "run", *data])  # the same command resumes


# --- memory


def test_samples_that_fill_the_memory_are_refused() -> None:
    most = MOST // 8
    check_memory(most, (2,))
    with pytest.raises(ConfigError, match=rf"take 4.3 GB, .*at most {most:,}, and for more"):
        check_memory(most + 1, (2,))
    data = open_dataset(DataSettings("gaussians"))
    with pytest.raises(ConfigError, match="1,000,000,000 samples take 8.0 GB"):
        data.draw(10**9, generator=seeded())
    with pytest.raises(ConfigError, match="samples take"):
        evaluate(lambda n, g: data.draw(n, generator=g).x, data, n=10**9)
    with pytest.raises(ConfigError, match="samples take"):
        find_memorised(noise, small(9, 0, 1), n=10**9, features="pixels")


@pytest.mark.parametrize("preset", ["edm-gaussians", "gan-gaussians", "gan-digits"])
@pytest.mark.parametrize("conditional", [False, True])
def test_a_billion_samples_of_a_model_are_refused(preset: str, conditional: bool) -> None:
    loaded = load_preset(preset)
    recipe = make_recipe(loaded.recipe, loaded.settings, {"conditional": conditional})
    model = recipe.compose(open_dataset(recipe.data)).model
    with pytest.raises(ConfigError, match="samples take .* GB, more than the 4.3 GB"):
        draw_samples(model, 10**9, seeded())


def test_a_generator_learns_the_size_of_its_samples_from_the_first_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe(load_preset("gan-digits").recipe, load_preset("gan-digits").settings)
    model = recipe.compose(open_dataset(recipe.data)).model
    assert isinstance(model, GeneratorModel)
    drawn: list[int] = []
    sample = model.sample

    def counted(n: int, **options: Any) -> torch.Tensor:
        drawn.append(n)
        return sample(n, **options)

    monkeypatch.setattr(model, "sample", counted)
    n = 10**8  # labels or points of the plane would fit, images of 256 bytes do not
    with pytest.raises(ConfigError, match=r"100,000,000 samples take 25\.6 GB"):
        draw_samples(model, n, seeded())
    assert drawn == [1000]
