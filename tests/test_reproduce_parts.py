"""What items of ``partikel reproduce`` measure with: trainings that are followed, and interpolations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from partikel.app.config import load_preset, make_recipe
from partikel.app.gallery import interpolated
from partikel.app.runs import Run
from partikel.app.show.latent_paths import interpolate
from partikel.data import open_dataset
from partikel.studies.benches import BENCHES, SCALES, SCORE_GAN, Scale, score_flow
from partikel.studies.items import a1, claim1, fig4, fig6, findings6_7
from partikel.studies.items.fig6 import held_losses
from partikel.studies.lab import Lab
from partikel.training.checkpoint import latest_checkpoint, load_weights


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab")
    return Lab("parts", "smoke", {}, out=root / "out", runs=root / "runs")


def test_a_followed_training_is_the_runs_to_the_last_bit_whatever_is_measured(lab: Lab) -> None:
    model = BENCHES["smoke"]["gaussians"].models[SCORE_GAN]
    run = lab.run(model, 0)
    trainer = lab.trainer(model, 0)
    losses: list[list[float]] = []
    for done in trainer.run():
        if done.step == 3:  # leaves no trace
            losses = [held_losses(trainer, (0, 1, 4), 64, 0) for _ in range(2)]
    assert trainer.step == run.step
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
    checkpoint = latest_checkpoint(run.path / "checkpoints")
    assert checkpoint is not None
    load_weights(run.model, checkpoint, "model")  # the raw weights, not their average
    assert_close(trainer.model.state_dict(), run.model.state_dict(), rtol=0, atol=0)


def test_updates_of_the_own_score_lower_its_loss_on_held_particles(lab: Lab) -> None:
    trainer = lab.trainer(BENCHES["smoke"]["gaussians"].models[SCORE_GAN], 0)
    next(trainer.run())
    before, *_, after = held_losses(trainer, (0, 20, 60), 256, 0)
    assert after < 0.9 * before


def test_a_score_flow_has_the_field_of_the_score_gan(lab: Lab) -> None:
    bench = BENCHES["smoke"]["gaussians"]
    free, gan = (lab.recipe(m, 0) for m in (score_flow(bench), bench.models[SCORE_GAN]))
    for key in ("alpha", "beta_own", "sigma_min", "sigma_max", "rho", "score", "weighting", "data"):
        assert getattr(free, key) == getattr(gan, key), key


@pytest.mark.parametrize("scale", SCALES)
def test_all_variants_are_settings_that_exist(scale: Scale) -> None:
    plans = {module: module.ITEM.plans[scale] for module in (a1, claim1, fig4, fig6)}
    own = [bench.models[SCORE_GAN] for bench in plans[fig4].benches]
    models = [model.but("alpha-2", alpha=fig4.ALPHA) for model in own]
    models += [free.but("alpha-2", alpha=fig4.ALPHA) for free in plans[fig4].free.values()]
    models += [plans[claim1].free]
    for bench in plans[a1].benches:
        models += [bench.models[SCORE_GAN].but("g", gamma=g) for g in plans[a1].gammas[bench.key]]
    for case in plans[fig6].cases:
        models += [case.model.but("k", score_steps=k) for k in case.ks]
        preset = load_preset(case.model.preset)
        recipe = make_recipe(preset.recipe, preset.settings, case.model.changes)
        assert plans[fig6].early < case.late <= recipe.iterations
        assert case.at[0] == 0
        assert list(case.at) == sorted(set(case.at))
    for model in models:
        preset = load_preset(model.preset)
        make_recipe(preset.recipe, preset.settings, model.changes)


def untrained(name: str, **settings: object) -> Run:
    recipe = make_recipe(name, {"data": {"name": "gaussians"}, **settings})
    dataset = open_dataset(recipe.data)
    return Run(Path(), name, recipe, dataset, recipe.compose(dataset), 0)


@pytest.mark.parametrize("run", [untrained("gan", latent=3), untrained("edm", steps=3)])
def test_interpolations_are_samples_at_interpolated_latents(run: Run) -> None:
    generator = torch.Generator().manual_seed(4)
    found = interpolated(run, "spherical", 5, 7, generator=generator)
    model = run.model
    law = model.prior
    generator.manual_seed(4)
    a, b = (law.sample(5, generator=generator) for _ in range(2))
    latents = interpolate(a, b, torch.linspace(0, 1, 7), "spherical", std=law.std)
    for column, z in enumerate(latents.unbind(1)):
        assert_close(found[:, column], model.sample(5, generator=generator, start=z))


def test_a_small_step_of_an_ipm_discriminator_is_the_mmds(lab: Lab) -> None:
    plan = findings6_7.Plan((0,), 1, 8, (4, 16), steps=1, particles=8, clouds=2)
    (found,) = findings6_7.measure(plan, lab).values["ipm"]
    assert found["step"] < findings6_7.EXACT
