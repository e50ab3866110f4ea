"""The loop, checkpoints and resuming: same weights bit for bit, nothing half-written."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import hand_written
from partikel.app.config import make_recipe
from partikel.app.moments import Moment
from partikel.app.runs import load, train_run
from partikel.data import open_dataset
from partikel.errors import CheckpointError, ConfigError, NumericsError
from partikel.fields import Loss, LossValue
from partikel.models import GeneratorModel
from partikel.networks import force_weights
from partikel.networks.edm2 import Forced
from partikel.objectives import GradientPenalty, exact
from partikel.recipes import RECIPES, Recipe
from partikel.training import (
    EMA,
    AdamSettings,
    Engine,
    Interrupted,
    Phase,
    Trainer,
    engine,
    fit,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from partikel.training.checkpoint import load_weights
from partikel.training.ema import averaged_model, decay_rule, power_of_width, swapped_in
from partikel.training.engine import networks_of

TINY = {"kind": "mlp", "width": 8, "depth": 2, "embedding_features": 4}
SMOOTH = {**TINY, "activation": "silu", "fourier_scale": 1.0}
FORCED = {
    "kind": "edm2",
    "channels": 4,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention_resolutions": [],
}
SETTINGS: dict[str, dict] = {
    "edm": {"network": TINY, "data": {"name": "digits"}},
    "flow-matching": {"network": TINY, "steps": 4, "source": {"name": "moons"}},
    "mean-flow": {"network": SMOOTH},
    "consistency": {"network": SMOOTH},
    "distillation": {
        "network": SMOOTH,
        "teacher": {"network": TINY},
        "optimizer": {"decay": "constant"},
    },
    "gan": {
        "discriminator": TINY,
        "generator": TINY,
        "latent": 3,
        "discriminator_steps": 2,
        "penalties": [{"weight": 0.1, "at": "interpolated"}],
    },
    "score-gan": {
        "own_score": TINY,
        "generator": TINY,
        "score": {"network": TINY},
        "score_steps": 2,
        "gamma": 0.5,
    },
    "score-flow": {"own_score": TINY, "score": {"network": TINY}, "score_steps": 2, "steps": 4},
    "diffflow": {"discriminator": TINY, "score": {"network": TINY}, "steps": 4, "joint": True},
    "diffode-gan": {
        "discriminator": {"kind": "mlp", "width": 8, "depth": 2},
        "discriminators": "independent",
        "staged": True,
        "pool": 20,
        "steps": 4,
    },
    "diffflow-gan": {"discriminator": TINY, "generator": TINY, "latent": 3, "fit_steps": 3},
    "discriminator-flow": {
        "network": TINY,
        "steps": 4,
        "updates": 4,
        "reuse": 2,
        "times_per_path": 2,
        "temperature": 0.1,
    },
}


def small(name: str, **settings: object) -> Recipe:
    return make_recipe(
        name, {"iterations": 12, "batch": 8, "ema": 0.9}, SETTINGS[name], dict(settings)
    )


def trainer_of(recipe: Recipe, dtype: torch.dtype = torch.float32) -> Trainer:
    dataset = open_dataset(recipe.data)
    system = recipe.system(dataset)
    return Trainer(
        system.model.to(dtype),
        dataset,
        system.phases,
        iterations=recipe.iterations,
        seed=recipe.seed,
        ema=recipe.ema,
        engine=recipe.engine,
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    found = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    assert trainer.average is not None
    return found | {f"ema {k}": v.clone() for k, v in trainer.average.state_dict().items()}


def advance(trainer: Trainer, steps: int) -> None:
    run = trainer.run()
    for _ in range(steps):
        next(run)


POOL = {"pool": 50, "times_per_path": 1}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in RECIPES),
        ("discriminator-flow", POOL),
        ("score-gan", {"own_score": None}),
        ("mean-flow", {"network": FORCED, "data": {"name": "digits"}}),
    ],
)
def test_resuming_continues_bit_for_bit(
    name: str, changes: dict[str, object], tmp_path: Path
) -> None:
    straight = trainer_of(small(name, **changes))
    advance(straight, 12)
    first = trainer_of(small(name, **changes))
    advance(first, 5)
    path = save_checkpoint(first, tmp_path)
    torch.manual_seed(123)  # nothing may depend on the global state
    second = trainer_of(small(name, **changes))
    load_checkpoint(second, path)
    assert second.step == 5
    advance(second, 7)
    expected, got = weights(straight), weights(second)
    assert expected.keys() == got.keys()
    for key in expected:
        assert torch.equal(expected[key], got[key]), key
    changed = trainer_of(small(name, **changes))
    assert any(not torch.equal(a, b) for a, b in zip(
        changed.model.state_dict().values(), straight.model.state_dict().values(), strict=True
    ))  # fmt: skip


def test_resuming_with_dropout_continues_bit_for_bit(tmp_path: Path) -> None:
    unet = {
        "kind": "unet",
        "channels": 8,
        "multipliers": [1],
        "dropout": 0.3,
        "attention_resolutions": [],
    }
    recipe = make_recipe(
        "edm", {"network": unet, "data": {"name": "digits"}, "batch": 4, "ema": 0.9}
    )
    straight = trainer_of(recipe)
    advance(straight, 4)
    first = trainer_of(recipe)
    advance(first, 2)
    second = trainer_of(recipe)
    load_checkpoint(second, save_checkpoint(first, tmp_path))
    outside = torch.get_rng_state()
    advance(second, 2)
    assert torch.equal(outside, torch.get_rng_state())
    for a, b in zip(weights(straight).values(), weights(second).values(), strict=True):
        assert torch.equal(a, b)


def test_weights_that_are_forced_have_unit_magnitude_after_every_update() -> None:
    """Those of the average do not, and make the same network of unit weights all the same."""
    trainer = trainer_of(small("edm", network=FORCED, optimizer={"lr": 0.1}, ema=0.9))
    found = {k: m for k, m in trainer.model.named_modules() if isinstance(m, Forced)}
    start = {name: layer.weight.detach().clone() for name, layer in found.items()}
    for _ in trainer.run():
        for layer in found.values():
            size = layer.weight.square().flatten(1).mean(1)
            torch.testing.assert_close(size, torch.ones_like(size))
    assert all((layer.weight - start[name]).abs().max() > 0.1 for name, layer in found.items())
    assert trainer.average is not None
    average = trainer.average.module
    assert isinstance(average, nn.Module)
    layers = [m for m in average.modules() if isinstance(m, Forced)]
    assert any(m.weight.square().flatten(1).mean(1).min() < 0.999 for m in layers)
    network = next(networks_of(average))
    x, c = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 1)
    before = network(x, c)
    force_weights(network)
    torch.testing.assert_close(network(x, c), before)


def test_another_seed_gives_other_weights() -> None:
    a, b = trainer_of(small("gan", seed=0)), trainer_of(small("gan", seed=1))
    advance(a, 2)
    advance(b, 2)
    assert any(not torch.equal(x, y) for x, y in zip(
        weights(a).values(), weights(b).values(), strict=True
    ))  # fmt: skip


def test_fit_resumes_and_logs_once(tmp_path: Path) -> None:
    recipe = small("gan")
    dataset = open_dataset(recipe.data)

    def go(iterations: int, folder: Path | None) -> Trainer:
        system = recipe.compose(dataset)
        return fit(
            system.model,
            dataset,
            system.phases,
            iterations=iterations,
            ema=0.9,
            folder=folder,
            checkpoint_every=3,
            evaluate=lambda model, step: {"figure": float(step)},
            evaluate_every=2,
        )

    go(6, tmp_path)
    resumed = go(12, tmp_path)
    for a, b in zip(weights(go(12, None)).values(), weights(resumed).values(), strict=True):
        assert torch.equal(a, b)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 8, 10, 12]
    assert all(line["figure"] == line["step"] for line in lines)
    seconds = [line["cpu_seconds"] for line in lines]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_trains_through_the_same_fit(name: str, tmp_path: Path) -> None:
    recipe = small(name)
    dataset = open_dataset(recipe.data)
    system = recipe.system(dataset)
    before = {k: v.clone() for k, v in system.model.named_parameters()}
    trainer = fit(
        system.model,
        dataset,
        system.phases,
        iterations=12,
        folder=tmp_path,
        evaluate=lambda model, step: {
            "finite": float(model.sample(4, generator=torch.Generator()).isfinite().all())
        },
        evaluate_every=4,
    )
    after = dict(trainer.model.named_parameters())
    trained = {k for k in before if not torch.equal(before[k], after[k])}
    assert trained == {k for k in before if after[k].requires_grad}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["finite"] for line in lines] == [1.0] * 4


def test_log_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    recipe = small("gan")
    dataset = open_dataset(recipe.data)
    system = recipe.compose(dataset)
    fit(system.model, dataset, system.phases, iterations=4, folder=tmp_path, checkpoint_every=2)
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 400, "cpu_seconds": 9}\n{"step": 5, "cp')
    system = recipe.compose(dataset)
    fit(system.model, dataset, system.phases, iterations=6, folder=tmp_path, checkpoint_every=2)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [4, 6]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resuming_gives_the_same(tmp_path: Path, number: int) -> None:
    recipe = small("discriminator-flow")
    dataset = open_dataset(recipe.data)

    def stop_at_5(model: nn.Module, step: int) -> dict[str, float]:
        if step == 5:
            os.kill(os.getpid(), number)
        return {}

    def go(evaluate: object) -> Trainer:
        system = recipe.compose(dataset)
        return fit(
            system.model,
            dataset,
            system.phases,
            iterations=12,
            ema=0.9,
            folder=tmp_path,
            checkpoint_every=100,
            evaluate=evaluate,  # type: ignore[arg-type]
            evaluate_every=5,
        )

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after iteration 5 of 12") as stopped:
        go(stop_at_5)
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    resumed = go(None)
    straight = trainer_of(recipe)
    advance(straight, 12)
    for a, b in zip(weights(straight).values(), weights(resumed).values(), strict=True):
        assert torch.equal(a, b)


def test_a_nan_stops_before_it_spoils_weights(tmp_path: Path) -> None:
    recipe = small("edm")
    trainer = trainer_of(recipe)
    advance(trainer, 2)
    save_checkpoint(trainer, tmp_path)
    good = weights(trainer)
    loss = trainer._losses[0]

    def compute(batch: object) -> LossValue:
        value = loss.compute(batch)  # type: ignore[arg-type]
        return LossValue(value.loss * math.nan)

    trainer._losses[0] = Loss(loss.name, loss.module, loss.needs, compute)
    with pytest.raises(NumericsError, match="'score' became nan at iteration 3"):
        advance(trainer, 1)
    for key, value in weights(trainer).items():
        assert torch.equal(value, good[key])
    trainer._losses[0] = loss
    advance(trainer, 1)  # what was met is forgotten
    next(trainer.model.parameters()).data.fill_(math.nan)
    with pytest.raises(NumericsError, match="not saved"):
        save_checkpoint(trainer, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("preset", hand_written.PRESETS)
def test_a_step_calls_little_more_than_a_loop_by_hand(preset: str) -> None:
    """Counted, so that it is the same on a busy machine; the times are benchmarks/hand_written.py's."""
    ours, theirs = map(hand_written.operations, hand_written.steps_of(preset))
    assert ours / theirs <= hand_written.LIMITS["operations"]


def test_clipping_bounds_the_gradient() -> None:
    trainer = trainer_of(small("edm", optimizer={"clip": 1e-3}))
    advance(trainer, 1)
    parameters = trainer.optimizers[0].param_groups[0]["params"]
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_old_checkpoints_go_after_the_new_one_is_whole(tmp_path: Path) -> None:
    trainer = trainer_of(small("gan"))
    for _ in range(4):
        advance(trainer, 1)
        save_checkpoint(trainer, tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(small("gan"))
    advance(trainer, 1)
    save_checkpoint(trainer, tmp_path)
    advance(trainer, 1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("partikel.training.checkpoint.write_tensors", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(trainer, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_truncated_checkpoint_says_so(tmp_path: Path) -> None:
    trainer = trainer_of(small("gan"))
    advance(trainer, 1)
    path = save_checkpoint(trainer, tmp_path)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(trainer_of(small("gan")), path)


def test_a_foreign_checkpoint_says_so(tmp_path: Path) -> None:
    trainer = trainer_of(small("gan"))
    advance(trainer, 1)
    path = save_checkpoint(trainer, tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        load_checkpoint(trainer_of(small("edm")), path)
    wider = small("gan", generator={"width": 9})
    with pytest.raises(CheckpointError, match="another model"):
        load_checkpoint(trainer_of(wider), path)


def test_a_checkpoint_of_another_kind_of_device_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(small("gan"))
    advance(trainer, 1)
    states = {name: state[:16].clone() for name, state in trainer.streams.state_dict().items()}
    monkeypatch.setattr(trainer.streams, "state_dict", lambda: states)  # as large as a GPU's are
    path = save_checkpoint(trainer, tmp_path)
    with pytest.raises(CheckpointError, match=r"another kind of device.*\(cpu\)"):
        load_checkpoint(trainer_of(small("gan")), path)
    finished = trainer_of(small("gan", iterations=1))  # which draws nothing any more
    load_checkpoint(finished, path)
    assert finished.step == 1


def test_an_unfinished_checkpoint_is_not_found(tmp_path: Path) -> None:
    trainer = trainer_of(small("gan"))
    advance(trainer, 1)
    save_checkpoint(trainer, tmp_path)
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / ".writing-step-00000010").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "step-00000001"


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    trainer = trainer_of(small("gan"))
    advance(trainer, 1)
    path = save_checkpoint(trainer, tmp_path)
    suffixes = {file.suffix for file in path.iterdir()}
    assert suffixes == {".safetensors", ".json"}


def test_ema_follows_its_recursion() -> None:
    module = nn.Linear(2, 1)
    average = averaged_model(module, 0.95)
    expected = module.weight.detach().clone()
    for n in range(40):
        with torch.no_grad():
            module.weight.add_(torch.tensor([[1.0, -2.0]]))
        average.update_parameters(module)
        decay = min(0.95, (1 + n) / (10 + n))
        if n == 0:
            expected = module.weight.detach().clone()
        else:
            expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(average.module.weight, expected)
    raw = module.weight.detach().clone()
    with swapped_in(module, average):
        torch.testing.assert_close(module.weight.detach(), expected)
        assert not module.training
    assert torch.equal(module.weight, raw)
    assert module.training


def test_the_average_keeps_buffers() -> None:
    module = nn.BatchNorm1d(2)
    average = averaged_model(module, 0.5)
    for _ in range(3):
        module(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) + 5)
        average.update_parameters(module)
    assert average.module.running_mean.abs().min() > 0.1
    assert int(average.module.num_batches_tracked) == 3


class EveryBuffer(nn.Module):
    """A buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.new = spectral_norm(nn.Linear(5, 7))
        self.old = nn.utils.spectral_norm(nn.Linear(7, 4))
        self.batch = nn.BatchNorm1d(4)
        self.instance = nn.InstanceNorm1d(4, track_running_stats=True)
        self.register_buffer("probability", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.instance(self.batch(self.old(self.new(x))).T[None])[0]


def largest(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach(), 2))


def wander(module: nn.Module, step: int) -> None:
    """Move the weights far, and let the module see other points."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    module(step + torch.randn(32, 5, generator=generator))


def test_what_an_average_keeps_of_every_kind_of_buffer() -> None:
    """Statistics are averaged, power iterations are of the averaged weights, the rest is copied."""
    module = EveryBuffer()
    average = averaged_model(module, 0.9)
    means: dict[str, Tensor] = {}
    for n in range(120):
        wander(module, n)
        module.probability.fill_(n / 7)
        module.seen = torch.tensor(n)  # in another place each time
        average.update_parameters(module)
        decay = 0.0 if n == 0 else min(0.9, (1 + n) / (10 + n))
        for name, value in module.state_dict().items():
            if "running" in name:
                means[name] = decay * means.get(name, 0.0) + (1 - decay) * value
    kept = average.module
    assert isinstance(kept, EveryBuffer)
    assert len(means) == 4
    for name, value in means.items():
        torch.testing.assert_close(kept.state_dict()[name], value)
    assert not torch.equal(kept.batch.running_mean, module.batch.running_mean)
    assert torch.equal(kept.probability, module.probability)
    assert int(kept.seen) == 119
    assert int(kept.batch.num_batches_tracked) == 120
    kept.eval()(torch.zeros(2, 5))  # the older norm sets its weight in a forward
    for layer in (kept.new, kept.old):
        assert largest(layer.weight) == pytest.approx(1, rel=0.02)


def test_averages_of_earlier_versions_are_settled_when_they_are_loaded() -> None:
    """They averaged the vectors of power iterations, so that weights came out too large."""
    module = EveryBuffer()
    average = averaged_model(module, 0.9)
    good = copy.deepcopy(average.state_dict())
    average.load_state_dict(good)
    for name, value in average.state_dict().items():
        assert torch.equal(value, good[name])  # what is right stays
    spoilt = {
        name: 0.05 * value if name.endswith(("._u", "._v", "_u", "_v")) else value
        for name, value in good.items()
    }
    average.load_state_dict(spoilt)
    kept = average.module.eval()
    assert isinstance(kept, EveryBuffer)
    kept(torch.zeros(2, 5))
    for layer in (kept.new, kept.old):
        assert largest(layer.weight) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("decay", "expected"), [("constant", [1, 1]), ("linear", [1, 0.5]), ("cosine", [1, 0.5])]
)
def test_learning_rates(decay: str, expected: list[float]) -> None:
    settings = AdamSettings(lr=1.0, decay=decay)  # type: ignore[arg-type]
    got = [settings.rate(0, 100), settings.rate(50, 100)]
    assert got == pytest.approx(expected)
    warm = dataclasses.replace(settings, warmup=10)
    assert [warm.rate(0, 100), warm.rate(9, 100), warm.rate(10, 100)] == pytest.approx([0.1, 1, 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdamSettings(lr=0.0),
        lambda: AdamSettings(beta1=1.0),
        lambda: AdamSettings(clip=0.0),
        lambda: AdamSettings(warmup=-1),
        lambda: Phase("x", batch=0),
        lambda: Phase("x", repeats=0),
    ],
)
def test_impossible_settings(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


def test_a_phase_without_its_loss() -> None:
    system = small("gan").compose(open_dataset(small("gan").data))
    with pytest.raises(ConfigError, match="did you mean 'generator'"):
        Trainer(system.model, open_dataset(small("gan").data), [Phase("generater")], iterations=1)


IMAGES = {"data": {"name": "digits"}, "batch": 16}
CONVOLUTIONS = {
    "discriminator": {"kind": "small", "width": 4},
    "generator": {"kind": "small", "width": 4, "norm": "none"},
}


def losses(trainer: Trainer, steps: int) -> torch.Tensor:
    """The losses of the first iterations, of all phases."""
    run = trainer.run()
    done = [next(run).metrics for _ in range(steps)]
    return torch.tensor([[float(v) for k, v in m.items() if "/loss" in k] for m in done])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("edm", {}),
        ("gan", {}),
        ("gan", {"objective": "relativistic"}),
        ("diffflow-gan", {}),
        ("discriminator-flow", {"temperature": 0.0}),
        ("discriminator-flow", {"temperature": 0.0, "objective": "relativistic"}),
    ],
)
def test_micro_batches_have_the_gradient_of_the_batch(name: str, settings: dict) -> None:
    # batches of 16 numbers and more are drawn from a CPU's stream as their parts would be
    whole, parts = (
        trainer_of(small(name, batch=64, engine={"accumulate": n}, **settings), torch.float64)
        for n in (1, 4)
    )
    expected, got = losses(whole, 3), losses(parts, 3)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    for a, b in zip(weights(parts).values(), weights(whole).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(
        ConfigError, match=r"a batch of 8 \('score'\).* 3 micro-batch.*multiple of 3"
    ):
        trainer_of(small("edm", engine={"accumulate": 3}))
    with pytest.raises(ConfigError, match="multiple of 16"):
        Engine(accumulate=4).share(8, 4, "score")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_changes_losses_by_its_rounding(precision: str) -> None:
    settings = {**IMAGES, **CONVOLUTIONS, "penalties": [{"weight": 1.0, "at": "real"}]}
    plain, half = (
        trainer_of(make_recipe("gan", settings, {"engine": {"precision": p}}))
        for p in ("fp32", precision)
    )
    expected, got = losses(plain, 4), losses(half, 4)
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert isinstance(half.model, GeneratorModel)
    particles = half.model.particles(4, half.streams)
    assert particles.x.dtype == torch.float32
    field = half.model.field(particles.x, particles.at)
    assert field.dtype == torch.float32


def test_penalties_are_those_of_full_precision() -> None:
    settings = {**IMAGES, **CONVOLUTIONS, "penalties": [{"weight": 1.0, "at": "real"}]}
    found = []
    for precision in ("fp32", "bf16"):
        trainer = trainer_of(make_recipe("gan", settings, {"engine": {"precision": precision}}))
        metrics = next(trainer.run()).metrics
        found.append((metrics["discriminator/penalty_real"], metrics["discriminator/d_real"]))
    (penalty, logit), (half_penalty, half_logit) = found
    assert torch.equal(penalty, half_penalty)
    assert not torch.equal(logit, half_logit)
    value = GradientPenalty(at="real").value(torch.full((2, 300), 60.0).half(), torch.zeros(2))
    torch.testing.assert_close(value, torch.full((2,), 10 * 300 * 3600.0))  # beyond fp16's 65504


def test_an_overflow_in_fp16_skips_the_step_and_scales_less(tmp_path: Path) -> None:
    trainer = trainer_of(small("edm", engine={"precision": "fp16"}, optimizer={"clip": 1.0}))
    advance(trainer, 2)
    (scaler,) = trainer.scalers
    assert scaler is not None
    before = [p.detach().clone() for p in trainer.model.parameters()]
    scaler.update(2.0**120)
    advance(trainer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**119
    scaler.update(2.0**11)  # not the one that a scaler starts with
    path = save_checkpoint(trainer, tmp_path)
    again = trainer_of(small("edm", engine={"precision": "fp16"}, optimizer={"clip": 1.0}))
    load_checkpoint(again, path)
    assert again.scalers[0].get_scale() == 2.0**11
    for each in (trainer, again):
        advance(each, 2)
    for a, b in zip(weights(trainer).values(), weights(again).values(), strict=True):
        assert torch.equal(a, b)
    loss = trainer._losses[0]

    def compute(batch: object) -> LossValue:
        value = loss.compute(batch)  # type: ignore[arg-type]
        return LossValue((value.loss - value.loss.detach()).sqrt())  # of infinite slope at 0

    trainer._losses[0] = Loss(loss.name, loss.module, loss.needs, compute)
    scaler.update(1.0)
    with pytest.raises(NumericsError, match=r"fp16.*engine.precision bf16"):
        advance(trainer, 1)


def test_what_is_clipped_in_fp16_is_the_gradient_itself() -> None:
    """Not the gradient of the scaled loss, 65536 times as long."""
    norms = []
    for precision in ("fp32", "fp16"):
        settings = {"engine": {"precision": precision}, "optimizer": {"clip": 0.01}}
        trainer = trainer_of(small("edm", **settings))
        norms.append(float(next(trainer.run()).metrics["score/gradient_norm"]))
        kept = [p.grad.norm() for p in trainer.optimizers[0].param_groups[0]["params"]]
        assert float(torch.stack(kept).norm()) == pytest.approx(0.01, rel=1e-3)
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_a_run_is_read_with_its_averaged_weights(tmp_path: Path) -> None:
    run = train_run(small("edm", optimizer={"lr": 0.01}, evaluate_every=None), tmp_path / "run")
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    model = load(tmp_path / "run").model.sampled
    kept = [p.detach().clone() for p in model.parameters()]
    average = averaged_model(model, 0.5)
    load_weights(average, checkpoint, "average")
    for a, b, c in zip(kept, average.module.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    load_weights(run.model, checkpoint, "model")
    assert not any(torch.equal(a, b) for a, b in zip(kept, run.model.parameters(), strict=True))


def test_compiled_networks_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.compile
    compiled = []

    def compile_traced(network: object, **options: object) -> object:
        compiled.append(network)
        return original(network, backend="aot_eager", **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", compile_traced)
    settings = {"penalties": [{"weight": 1.0, "at": "interpolated"}], "batch": 16}
    plain, fast = (
        trainer_of(small("gan", engine={"compile": c}, **settings)) for c in (False, True)
    )
    assert len(compiled) == 2
    torch.testing.assert_close(losses(fast, 3), losses(plain, 3), rtol=1e-4, atol=1e-5)
    expected, got = weights(plain), weights(fast)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_inductor_compiles_what_is_trained() -> None:
    settings = {"batch": 16, "steps": 4, "updates": 1, "reuse": 1}
    plain, fast = (
        trainer_of(small("discriminator-flow", engine={"compile": c}, **settings))
        for c in (False, True)
    )
    torch.testing.assert_close(losses(fast, 4), losses(plain, 4), rtol=1e-3, atol=1e-4)


def test_channels_last_computes_the_same_and_resumes(tmp_path: Path) -> None:
    recipe = make_recipe(
        "gan", {**IMAGES, **CONVOLUTIONS}, {"ema": 0.9, "engine": {"channels_last": True}}
    )
    plain = trainer_of(dataclasses.replace(recipe, engine=Engine()))
    other = trainer_of(recipe)
    torch.testing.assert_close(losses(other, 3), losses(plain, 3), rtol=1e-4, atol=1e-5)
    kernels = [p for p in other.model.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    again = trainer_of(recipe)
    load_checkpoint(again, save_checkpoint(other, tmp_path))
    for each in (other, again):
        advance(each, 2)
    for a, b in zip(weights(other).values(), weights(again).values(), strict=True):
        assert torch.equal(a, b)


def test_an_engine_is_put_on_networks_and_taken_off() -> None:
    trainer = trainer_of(small("score-gan", engine={"precision": "bf16"}))
    found = list(networks_of(trainer.model))
    assert len(found) == 3  # both scores and the generator
    x, c = torch.randn(2, 2, generator=torch.Generator()), torch.zeros(2, 1)
    half = found[0](x, c)
    assert half.dtype == torch.float32
    with exact():
        full = found[0](x, c)
    assert not torch.equal(half, full)
    Engine().install(trainer.model, torch.device("cpu"))
    assert torch.equal(found[0](x, c), full)
    assert not any("forward" in vars(network) for network in found)


def test_a_run_goes_on_with_another_engine_but_no_other_settings(tmp_path: Path) -> None:
    settings = {"iterations": 2, "evaluate_every": None}
    train_run(small("gan", **settings), tmp_path / "run")
    half = small("gan", engine={"precision": "bf16", "accumulate": 2}, **settings)
    train_run(half, tmp_path / "run")
    assert "precision: bf16" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="batch: 8 there, 4 now"):
        train_run(small("gan", batch=4, **settings), tmp_path / "run")


def test_a_run_is_computed_as_its_engine_says(tmp_path: Path) -> None:
    settings = {"iterations": 2, "evaluate_every": None}
    plain, half = (
        train_run(small("edm", engine={"precision": p}, **settings), tmp_path / p).model
        for p in ("fp32", "bf16")
    )
    pairs = zip(plain.parameters(), half.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_a_launcher_that_asks_for_another_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="pass --engine.precision bf16"):
        trainer_of(small("gan"))
    trainer_of(small("gan", engine={"precision": "bf16"}))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP cannot be used"):
        trainer_of(small("gan", engine={"precision": "bf16"}))


def test_a_launcher_without_accelerators_is_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are left to accelerate, which finds what this module does not ask for (Apple's)."""
    on_cpu: list[bool] = []
    for kind in ("cuda", "xpu"):
        monkeypatch.setattr(f"torch.{kind}.is_available", lambda: False)
    monkeypatch.setattr(engine, "PartialState", lambda cpu, timeout: on_cpu.append(cpu))
    for rank in (None, "-1", "0"):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", rank)
        engine.processes()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    engine.processes()
    assert on_cpu == [False, False, True, False]


def averaging_weights(ema: float | EMA, count: int) -> torch.Tensor:
    """What each of ``count`` successive weights counts in the average."""
    row = nn.ParameterList([torch.zeros(count, dtype=torch.float64)])
    average = averaged_model(row, ema)
    for k in range(count):
        with torch.no_grad():
            row[0].zero_()
            row[0][k] = 1
        average.update_parameters(row)
    return average.module[0].detach()  # type: ignore[index]


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_a_power_function_average_has_its_width(sigma_rel: float) -> None:
    count = 400
    profile = averaging_weights(EMA(sigma_rel=sigma_rel), count)
    place = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    torch.testing.assert_close(profile.sum(), torch.tensor(1.0, dtype=torch.float64))
    mean = (profile * place).sum()
    width = (profile * (place - mean).square()).sum().sqrt()
    assert float(width) == pytest.approx(sigma_rel, rel=0.02)
    gamma = power_of_width(sigma_rel)
    assert float(mean) == pytest.approx((gamma + 1) / (gamma + 2), rel=0.01)


def test_a_half_life_halves() -> None:
    rule = decay_rule(EMA(half_life=10))
    assert rule(1000) ** 10 == pytest.approx(0.5)
    assert rule(20) == pytest.approx(0.5)  # 5% of the training so far
    profile = averaging_weights(EMA(half_life=10), 300)
    torch.testing.assert_close(profile[-11] / profile[-1], torch.tensor(0.5, dtype=torch.float64))


@pytest.mark.parametrize(
    "ema",
    [
        {},
        {"half_life": 0},
        {"sigma_rel": 0.3},
        {"sigma_rel": 0},
        {"half_life": 9, "sigma_rel": 0.1},
        1.0,
    ],
)
def test_impossible_averages(ema: object) -> None:
    with pytest.raises(ConfigError, match="half_life|sigma_rel|ema"):
        small("edm", ema=ema)


def test_training_hands_what_it_looks_like_to_whoever_shows_it(tmp_path: Path) -> None:
    moments: list[Moment] = []
    recipe = small("gan", iterations=2, evaluate_every=1)
    run = train_run(recipe, tmp_path / "run", show=moments.append)
    assert [moment.step for moment in moments] == [0, 1, 2]
    assert not [*run.path.glob("samples/*"), *run.path.glob("frames/*")]
    last = moments[-1]
    made = run.model.sample(len(last.samples), generator=torch.Generator(), start=last.start)
    torch.testing.assert_close(made, last.samples)
