"""Runs that go on: what may differ, longer ones bit for bit, new ones from the weights of others."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import seeded
from partikel.app.cli import main
from partikel.app.config import make_recipe
from partikel.app.continuing import may_differ
from partikel.app.planning import plan_training
from partikel.app.runs import load, train_run
from partikel.data import open_dataset
from partikel.errors import CheckpointError, ConfigError
from partikel.recipes import GAN, RECIPES, Recipe, ScoreGAN
from partikel.training import Initial, fit, latest_checkpoint
from test_training import TINY, small

QUIET = {"evaluate_every": None, "evaluate_samples": 50}


def quick(name: str, **settings: object) -> Recipe:
    """A small recipe that evaluates nothing, nor does the model that it builds on."""
    for built_on in {"score", "teacher"} & {*RECIPES[name].__dataclass_fields__}:
        settings = {built_on: {**QUIET, "iterations": 2}, **settings}
    return small(name, **{**QUIET, **settings})


def last(folder: Path, part: str = "model") -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    return load_file(checkpoint / f"{part}.safetensors")


def config(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- longer ones ---


@pytest.mark.parametrize("name", list(RECIPES))
def test_more_iterations_are_the_longer_run_bit_for_bit_or_are_refused(
    name: str, tmp_path: Path
) -> None:
    """Where no setting says that it refers to their number, nothing that is trained does."""
    recipe = quick(name, ema={"sigma_rel": 0.1}, iterations=8)
    longer = dataclasses.replace(recipe, iterations=12)
    train_run(recipe, tmp_path / "run")
    if recipe.of_length:
        assert name == "diffode-gan"
        with pytest.raises(ConfigError, match=r"8 iterations.* staged .*--from"):
            train_run(longer, tmp_path / "run")
        return
    train_run(longer, tmp_path / "run")
    train_run(longer, tmp_path / "straight")
    for part in ("model", "average", "optimizers", "streams"):
        assert same(last(tmp_path / "run", part), last(tmp_path / "straight", part))
    assert config(tmp_path / "run")["history"] == [{"until": 8, "settings": {"iterations": 8}}]


@pytest.mark.parametrize(
    ("name", "settings", "tied"),
    [
        ("gan", {"sigma_max": 1.0}, "annealed"),
        ("gan", {"generator_optimizer": {"decay": "cosine"}}, "generator_optimizer.decay"),
        ("diffflow", {"score": {"optimizer": {"decay": "linear"}}}, "score.optimizer.decay"),
    ],
)
def test_what_refers_to_the_number_of_iterations_is_named(
    name: str, settings: dict, tied: str, tmp_path: Path
) -> None:
    recipe = quick(name, **settings, iterations=2)
    run = train_run(recipe, tmp_path / "run")
    before = (run.path / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=f"whose number {tied} depends.*--from") as told:
        train_run(dataclasses.replace(recipe, iterations=3), run.path)
    assert "\n" not in str(told.value)
    assert (run.path / "config.yaml").read_text() == before


def test_fit_refuses_what_a_falling_rate_does_not_allow(tmp_path: Path) -> None:
    falling = small("gan", generator_optimizer={"decay": "linear"})
    for recipe, longer in ((falling, False), (small("gan"), True)):
        folder = tmp_path / str(longer)

        def trained(iterations: int, recipe: Recipe = recipe, folder: Path = folder) -> int:
            data = open_dataset(recipe.data)
            system = recipe.system(data)
            options = {"iterations": iterations, "folder": folder}
            return fit(system.model, data, system.phases, **options).step

        assert trained(2) == 2
        with pytest.raises(ConfigError, match="has done 2 iterations, and 1 are asked for"):
            trained(1)
        if longer:
            assert trained(3) == 3
        else:
            with pytest.raises(ConfigError, match="the rate of 'generator' depends"):
                trained(3)


# --- other settings ---


def test_what_may_differ() -> None:
    free = {"evaluate_every", "evaluate_samples", "checkpoint_every", "engine"}
    names = {each.name for each in dataclasses.fields(ScoreGAN)}
    assert {name for name in names if may_differ(ScoreGAN, (name,))} == free
    assert may_differ(ScoreGAN, ("score", "evaluate_every"))
    assert may_differ(GAN, ("engine", "precision"))
    assert may_differ(GAN, ("data", "root"))
    assert may_differ(GAN, ("data", "path"))  # other data there are refused
    for path in (("score", "iterations"), ("data", "flip"), ("data", "name"), ("younger",)):
        assert not may_differ(ScoreGAN, path)


def test_settings_that_touch_nothing_differ_and_are_recorded(tmp_path: Path) -> None:
    recipe = quick("gan", iterations=4, checkpoint_every=2)
    train_run(recipe, tmp_path / "straight")
    train_run(dataclasses.replace(recipe, iterations=2), tmp_path / "run")
    other = dataclasses.replace(recipe, evaluate_every=1, checkpoint_every=3)
    run = train_run(other, tmp_path / "run")
    assert same(last(tmp_path / "run"), last(tmp_path / "straight"))
    assert [line["step"] for line in run.log if "energy" in line] == [3, 4]
    were = {"iterations": 2, "evaluate_every": None, "checkpoint_every": 2}
    assert config(run.path)["history"] == [{"until": 2, "settings": were}]
    assert config(run.path)["settings"]["evaluate_every"] == 1
    train_run(other, tmp_path / "run")
    assert len(config(run.path)["history"]) == 1
    with pytest.raises(ConfigError, match=r"latent: 3 there, 5 now.*--from .* starts a new run"):
        train_run(dataclasses.replace(other, latent=5), tmp_path / "run")


# --- new ones ---


@pytest.mark.parametrize("name", [n for n in RECIPES if n != "score-flow"])
def test_a_new_run_begins_with_weights_and_averages(name: str, tmp_path: Path) -> None:
    pooled = {"pool": 50, "times_per_path": 1} if name == "discriminator-flow" else {}
    first = train_run(quick(name, **pooled, iterations=3), tmp_path / "first")
    recipe = quick(name, **pooled, iterations=4, seed=5, batch=4)
    shutil.rmtree(tmp_path / "first" / "required", ignore_errors=True)  # nor is it trained again
    initial = Initial(str(first.path), optimizers=True)
    wider = dataclasses.replace(recipe, **_wider(name))
    with pytest.raises(CheckpointError, match="do not fit"):
        train_run(wider, tmp_path / "wider", initial=initial)
    assert not (tmp_path / "wider").exists()
    new = train_run(recipe, tmp_path / "new", initial=initial)
    begun = load_file(new.path / "checkpoints" / "step-00000000" / "model.safetensors")
    theirs = last(first.path)
    networks = {k for k in begun if "." in k and "augmentation" not in k}
    assert networks
    assert all(torch.equal(begun[k], theirs[k]) for k in networks)
    assert not {k: v for k, v in begun.items() if k in ("stage", "turn")} or (
        (begun.get("stage", begun.get("turn")) == -1).all()  # a pool begins anew
    )
    averages = load_file(new.path / "checkpoints" / "step-00000000" / "average.safetensors")
    assert same(averages, last(first.path, "average"))
    moments = load_file(new.path / "checkpoints" / "step-00000000" / "optimizers.safetensors")
    assert same(moments, last(first.path, "optimizers"))
    record = config(new.path)["from"]
    assert (record["run"], record["iteration"]) == (str(first.path), 3)


def _wider(name: str) -> dict:
    wide = make_recipe("edm", {"network": {**TINY, "width": 12}}).network  # type: ignore[attr-defined]
    names = ("generator", "discriminator", "network", "own_score")
    kind = RECIPES[name].__dataclass_fields__
    return {next(n for n in names if n in kind): wide}


def test_the_same_command_resumes_whatever_became_of_the_other_run(tmp_path: Path) -> None:
    recipe = quick("gan", iterations=4)
    first, new = tmp_path / "first", tmp_path / "new"
    train_run(recipe, first)
    straight = train_run(recipe, tmp_path / "straight", initial=first)
    train_run(dataclasses.replace(recipe, iterations=2), new, initial=first)
    record = config(new)["from"]
    train_run(dataclasses.replace(recipe, iterations=9), first)  # it moves on
    train_run(recipe, new, initial=first)
    assert config(new)["from"] == record
    assert same(last(new), last(straight.path))
    shutil.rmtree(first)  # it is gone
    train_run(recipe, new, initial=first)
    said = {None: "repeat --from", tmp_path / "other": "was started from"}
    for other, sentence in said.items():
        with pytest.raises(ConfigError, match=sentence):
            train_run(recipe, new, initial=other)
    with pytest.raises(ConfigError, match="not started from another: leave out --from"):
        train_run(recipe, tmp_path / "straight-2", initial=_begun(recipe, tmp_path / "straight-2"))
    with pytest.raises(CheckpointError, match="no checkpoint to start from"):
        train_run(recipe, tmp_path / "newer", initial=first)
    assert new.exists()
    newer = train_run(recipe, tmp_path / "newer", initial=new)
    assert config(newer.path)["from"]["earlier"] == record


def _begun(recipe: Recipe, folder: Path) -> Path:
    return train_run(recipe, folder).path


def test_fit_begins_with_another_run(tmp_path: Path) -> None:
    recipe = small("gan")
    data = open_dataset(recipe.data)

    def trained(initial: Path | None, iterations: int, folder: Path | None = None) -> dict:
        system = recipe.system(data)
        options = {"iterations": iterations, "initial": initial, "folder": folder}
        return fit(system.model, data, system.phases, **options).model.state_dict()

    theirs = trained(None, 2, tmp_path / "first")
    assert same(trained(tmp_path / "first", 0), theirs)
    assert not same(trained(tmp_path / "first", 1), theirs)
    with pytest.raises(CheckpointError, match="no checkpoint to start from"):
        trained(tmp_path / "nowhere", 1)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_run(quick("gan", iterations=2), tmp_path / "run", preset="tiny")
    main(["train", "--from", str(run.path), "--iterations", "3"])
    assert load(tmp_path / "run-2").step == 3
    assert load(tmp_path / "run-2").preset == "tiny"
    capsys.readouterr()
    main(["train", "--from", str(run.path), "--batch", "5", "--out", "NEW", "--dry-run"])
    planned = yaml.safe_load(capsys.readouterr().out)
    assert planned["settings"]["batch"] == 5
    assert planned["from"]["iteration"] == 2
    with pytest.raises(SystemExit):
        main(["train", "--from", str(run.path), "--batch", "7", "--help"])
    told = "".join(capsys.readouterr().out.split())
    assert "default:7]" in told
    assert "Networkof" not in told
    assert "--from-optimizers" in told
    refusals = {
        ("--from-optimizers",): "give it with --from RUN",
        (): "name a preset",
        (
            "gan-digits",
            "--from",
            str(run.path),
            "--out",
            str(tmp_path / "x"),
        ): "do not fit this model",
        ("--from", str(run.path), "--out", str(run.path)): "was not started from another",
    }
    for line, said in refusals.items():
        with pytest.raises(SystemExit) as stopped:
            main(["train", *line])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_a_configuration_names_the_run_it_begins_with(tmp_path: Path) -> None:
    run = train_run(quick("gan", iterations=2), tmp_path / "run")
    new = train_run(quick("gan", iterations=3), tmp_path / "new", initial=run.path)
    plan = plan_training(str(new.path / "config.yaml"), {})
    recipe, initial = plan.recipe, plan.initial
    again = train_run(recipe, tmp_path / "again", initial=initial)
    assert same(last(again.path), last(new.path))
    for longer in (4, 9):  # two checkpoints are kept
        train_run(quick("gan", iterations=longer), run.path)
    with pytest.raises(CheckpointError, match="are gone, as that run has gone on"):
        train_run(recipe, tmp_path / "late", initial=initial)
    assert load(again.path).sample(2, generator=seeded()).shape == (2, 2)
