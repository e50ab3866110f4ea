"""Distillation and export: diffusers' networks as denoisers, one-step generators as folders."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

import partikel
from conftest import randn, seeded, tensor
from partikel.app import cli, gallery
from partikel.app.config import make_recipe
from partikel.app.export import KIND, export_run, load_generator
from partikel.app.runs import Run, load, train_run
from partikel.denoising import VelocityDenoiser
from partikel.denoising.diffusers import DDPMDenoiser, load_diffusers
from partikel.errors import CheckpointError, ConfigError, DataError
from partikel.fields import At, ScoreField, VelocityField
from partikel.files import sealed
from partikel.models import ParticleModel
from partikel.networks.foreign import CHAINS, EDM, FLOW, VE
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule, LinearSchedule, Nodes, TimeGrid
from partikel.solvers import Euler
from partikel.tensors import expand_like

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHAS = (1 - BETAS).cumprod(0)  # DDPM's (Ho et al. 2020)
MADE = Path(__file__).parent / "made_by_0.1"
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def level(alphas: Tensor) -> Tensor:
    return ((1 - alphas) / alphas).sqrt()


class GaussianNetwork(nn.Module):
    """The exact ε, v or x₀ of data N(mean, std²) under the chain ``alphas``, at real steps t.

    Between steps ᾱ is that of a smooth curve through log σ (a cubic through four neighbours).
    """

    def __init__(
        self, alphas: Tensor, prediction: str, mean: float = 0.7, std: float = 0.5
    ) -> None:
        super().__init__()
        self.levels = level(alphas).log()
        self.prediction, self.mean, self.std = prediction, mean, std

    def level(self, t: Tensor) -> Tensor:
        start = (t.floor().long() - 1).clamp(0, len(self.levels) - 4)
        nodes = start[:, None] + torch.arange(4)
        value = torch.zeros_like(t)
        for i in range(4):  # Lagrange's formula
            weight = torch.ones_like(t)
            for j in range(4):
                if i != j:
                    weight = weight * (t - nodes[:, j]) / (nodes[:, i] - nodes[:, j])
            value = value + weight * self.levels[nodes[:, i]]
        return value.exp()

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        sigma = expand_like(self.level(c[:, 0].to(x.dtype)), x)
        scale = (1 + sigma**2).rsqrt()  # √ᾱ
        clean = posterior(x / scale, sigma, self.mean, self.std)
        noise = (x - scale * clean) / (scale * sigma)
        if self.prediction == "epsilon":
            return noise
        return clean if self.prediction == "sample" else scale * (noise - sigma * clean)


def posterior(x: Tensor, sigma: Tensor, mean: float = 0.7, std: float = 0.5) -> Tensor:
    """E[clean | x] of data N(mean, std²)."""
    return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)


# --- D(x; σ) of a DDPM chain ---


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_on_the_steps_the_denoiser_is_exact(prediction: Any) -> None:
    denoiser = DDPMDenoiser(GaussianNetwork(ALPHAS, prediction), ALPHAS, prediction)
    steps = torch.tensor([0, 1, 7, 100, 500, 998, 999])
    sigma = level(ALPHAS)[steps]
    assert_close(denoiser.step(sigma), steps.double(), rtol=0, atol=1e-9)
    x = randn(7, 2, 3, 3) * expand_like(sigma, randn(1, 1, 1, 1))
    expected = posterior(x, sigma.view(-1, 1, 1, 1))
    assert_close(denoiser(x, sigma), expected, rtol=1e-7, atol=1e-7)
    one = denoiser(x, sigma[3].expand(7))  # one σ for all
    assert_close(one, posterior(x, sigma[3]), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_between_steps_interpolation_beats_the_nearest_step(prediction: Any) -> None:
    class Rounded(DDPMDenoiser):
        def step(self, sigma: Tensor) -> Tensor:
            return super().step(sigma).round()

    network = GaussianNetwork(ALPHAS, prediction)
    sigma = torch.logspace(-1, 1, 400, dtype=torch.float64)  # Score GAN's levels
    x = randn(400, 3) * (1 + sigma[:, None])
    expected = posterior(x, sigma[:, None])

    def error(kind: type[DDPMDenoiser]) -> float:
        return float((kind(network, ALPHAS, prediction)(x, sigma) - expected).abs().max())

    assert error(DDPMDenoiser) < 1e-4
    assert error(Rounded) > 30 * error(DDPMDenoiser)


def test_where_log_sigma_is_linear_in_t_the_interpolation_is_exact() -> None:
    sigma = torch.logspace(-2, 2, 50, dtype=torch.float64)
    alphas = 1 / (1 + sigma**2)
    denoiser = DDPMDenoiser(GaussianNetwork(alphas, "epsilon"), alphas)
    levels = torch.logspace(-2, 2, 333, dtype=torch.float64)
    x = randn(333, 3)
    assert_close(denoiser(x, levels), posterior(x, levels[:, None]), rtol=1e-9, atol=1e-9)
    assert_close(denoiser.loss_weight(levels), 1 + levels**-2)  # 1/c_out² at σ_d = 1


def test_beyond_the_chain_the_step_stays_at_its_ends() -> None:
    denoiser = DDPMDenoiser(nn.Identity(), ALPHAS)
    assert_close(denoiser.step(tensor([1e-5, 1e5])), tensor([0.0, 999.0]))
    with pytest.raises(ConfigError, match="grow"):
        DDPMDenoiser(nn.Identity(), ALPHAS.flip(0))
    with pytest.raises(ConfigError, match="'flow'"):
        DDPMDenoiser(nn.Identity(), ALPHAS, "flow")  # type: ignore[arg-type]
    ending = torch.cat([ALPHAS, torch.zeros(1, dtype=torch.float64)])  # σ_T = ∞ is left out
    assert_close(DDPMDenoiser(nn.Identity(), ending).levels, denoiser.levels)
    assert not denoiser.state_dict()  # a chain comes with its network, weights do not hold it


# --- diffusers ---


@pytest.fixture
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="needs the extra 'diffusers'")


def unet(diffusers: Any, **options: Any) -> Any:
    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return diffusers.UNet2DModel(**{**settings, **options}).eval()


def saved(diffusers: Any, path: Path, network: Any = None, **chain: Any) -> Path:
    network = unet(diffusers) if network is None else network
    scheduler = diffusers.DDPMScheduler(**chain)
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(path)
    return path


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_folder_of_diffusers_is_the_formula(
    prediction: str, diffusers: Any, tmp_path: Path
) -> None:
    network = unet(diffusers)
    path = saved(diffusers, tmp_path, network, prediction_type=prediction)
    state = torch.get_rng_state()
    denoiser = load_diffusers(path, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction)
    steps = torch.tensor([3, 200, 700, 980])
    alpha = scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
    shown = randn(4, 1, 8, 8).float()  # x̃, what the network sees
    x = shown / alpha.sqrt()
    with torch.no_grad():
        out = network(shown, steps).sample
        denoised = denoiser(x, level(alpha).flatten())
    clean = {
        "epsilon": (shown - (1 - alpha).sqrt() * out) / alpha.sqrt(),
        "v_prediction": alpha.sqrt() * shown - (1 - alpha).sqrt() * out,
        "sample": out,
    }[prediction]
    assert_close(denoised, clean, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


class Levels(TimeGrid):
    """The levels of a chain at given steps, then 0."""

    def __init__(self, schedule: EDMSchedule, levels: Tensor) -> None:
        self.schedule, self.levels = schedule, levels

    def nodes(self, steps: int) -> Tensor:
        times = self.schedule.time(torch.cat([self.levels, torch.zeros(1, dtype=torch.float64)]))
        times[0] = 0.0
        return times


def flow(denoiser: DDPMDenoiser, levels: Tensor, shape: tuple[int, ...]) -> ParticleModel:
    """The VE probability flow of a denoiser by Euler's steps through the levels."""
    schedule = EDMSchedule(float(levels[0]))
    return ParticleModel(
        schedule.half_rate * ScoreField(denoiser).freeze(),
        GaussianPrior(shape),
        steps=len(levels),
        schedule=schedule,
        grid=Levels(schedule, levels),
        solver=Euler(),
    )


def ddim(diffusers: Any, steps: int) -> Any:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [4, 20])
def test_ddim_of_diffusers_is_our_euler_on_the_ve_flow(
    steps: int, diffusers: Any, tmp_path: Path
) -> None:
    """In x = x̃/√ᾱ a DDIM step is an Euler step in σ, of a real network as of any other."""
    network = unet(diffusers).double()
    denoiser = load_diffusers(saved(diffusers, tmp_path), (1, 8, 8)).double()
    scheduler = ddim(diffusers, steps)
    alphas = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    start = randn(3, 1, 8, 8)
    shown = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            shown = scheduler.step(network(shown, t).sample, t, shown).prev_sample
    model = flow(denoiser, level(alphas), (1, 8, 8))
    x = model.sample(3, generator=seeded(), start=start / alphas[0].sqrt())
    assert_close(x, shown, rtol=1e-4, atol=1e-4)


def test_both_samplers_approach_the_exact_flow_of_a_gaussian(diffusers: Any) -> None:
    """x(0) - mean = (x(σ) - mean) std/√(std² + σ²), with errors of order 1/N."""
    scheduler = ddim(diffusers, 10)
    alphas = scheduler.alphas_cumprod.double()
    network = GaussianNetwork(alphas, "epsilon")
    errors = []
    for steps in (100, 500):
        scheduler = ddim(diffusers, steps)
        levels = level(alphas[scheduler.timesteps])
        x = 0.7 + randn(50, 2) * float(levels[0])
        expected = 0.7 + (x - 0.7) * 0.5 / (0.25 + levels[0] ** 2).sqrt()
        model = flow(DDPMDenoiser(network, alphas), levels, (2,))
        ours = model.sample(50, generator=seeded(), start=x)
        shown = x * alphas[scheduler.timesteps[0]].sqrt()
        for t in scheduler.timesteps:
            noise = network(shown, t.expand(50)[:, None])
            shown = scheduler.step(noise, t, shown).prev_sample
        assert_close(ours, shown, rtol=1e-5, atol=1e-5)
        errors.append(float((ours - expected).abs().max()))
    assert errors[1] < 0.01
    assert 3 < errors[0] / errors[1] < 8


def test_what_cannot_be_adapted_is_refused(diffusers: Any, tmp_path: Path) -> None:
    good = saved(diffusers, tmp_path / "good")
    load_diffusers(good, (1, 8, 8))
    flat = tmp_path / "flat"  # older repositories keep all files side by side
    flat.mkdir()
    for file in (*(good / "unet").iterdir(), *(good / "scheduler").iterdir()):
        shutil.copy(file, flat)
    load_diffusers(flat, (1, 8, 8))

    def variant(name: str, **config: Any) -> Path:
        path = tmp_path / name
        shutil.copytree(good, path)
        file = path / "unet" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        return path

    refused = [
        (good, (3, 8, 8), "1 channels"),
        (good, (1, 16, 16), "at size 8"),
        (good, (2,), "shape"),
        (variant("other", _class_name="UNet2DConditionModel"), (1, 8, 8), "only a UNet2DModel"),
        (variant("fourier", time_embedding_type="fourier"), (1, 8, 8), "'positional'"),
        (variant("variance", out_channels=2), (1, 8, 8), "2 channels"),
        (variant("class", num_class_embeds=10), (1, 8, 8), "knows 10 labels"),
        (variant("timestep", class_embed_type="timestep"), (1, 8, 8), "num_class_embeds"),
    ]
    for path, shape, message in refused:
        with pytest.raises(ConfigError, match=message):
            load_diffusers(path, shape)
    with pytest.raises(ConfigError, match="knows no labels"):
        load_diffusers(good, (1, 8, 8), classes=10)

    with pytest.raises(CheckpointError, match="no folder"):
        load_diffusers(tmp_path / "absent", (1, 8, 8))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_diffusers(variant("wider", block_out_channels=[16, 32]), (1, 8, 8))
    weights = flat / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    for wrong in (
        {k: v for k, v in tensors.items() if k != "conv_in.bias"},
        {**tensors, "colour": torch.zeros(1)},
    ):
        save_file(wrong, weights)
        with pytest.raises(CheckpointError, match="missing or unknown"):
            load_diffusers(flat, (1, 8, 8))
    save_file(tensors, weights)
    load_diffusers(flat, (1, 8, 8))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_diffusers(flat, (1, 8, 8))
    weights.rename(flat / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickles"):
        load_diffusers(flat, (1, 8, 8))
    (flat / "scheduler_config.json").unlink()
    with pytest.raises(CheckpointError, match="scheduler_config"):
        load_diffusers(flat, (1, 8, 8))


def folder_of(
    diffusers: Any, path: Path, scheduler: Any, network: Any = None, **changes: Any
) -> Path:
    """Network and scheduler as save_pretrained leaves them, side by side."""
    (unet(diffusers) if network is None else network).save_pretrained(path)
    scheduler.save_pretrained(path)
    file = path / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_a_network_of_edm_is_its_scheduler_s_own_prediction(
    kind: str, prediction: str, diffusers: Any, tmp_path: Path
) -> None:
    scheduler = getattr(diffusers, kind)(sigma_data=0.7, prediction_type=prediction)
    network = unet(diffusers)
    denoiser = load_diffusers(folder_of(diffusers, tmp_path, scheduler, network), (1, 8, 8))
    scheduler.set_timesteps(5)
    x = randn(3, 1, 8, 8).float()
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        noisy = x * (1 + sigma)
        with torch.no_grad():
            out = network(scheduler.precondition_inputs(noisy, sigma), t.expand(3)).sample
            denoised = denoiser(noisy, sigma)
        clean = scheduler.precondition_outputs(noisy, out, sigma)
        assert_close(denoised, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("embedding", ["fourier", "positional"])
def test_a_network_of_ve_is_its_scheduler_s_score(
    embedding: str, diffusers: Any, tmp_path: Path
) -> None:
    """Its corrector takes what the network returns for the score: D is x + σ² s."""
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=50.0)
    network = unet(diffusers, time_embedding_type=embedding)
    denoiser = load_diffusers(folder_of(diffusers, tmp_path, scheduler, network), (1, 8, 8))
    sigma = torch.tensor([0.02, 1.0, 40.0])
    x = randn(3, 1, 8, 8).float() * (1 + sigma).view(-1, 1, 1, 1)
    with torch.no_grad():
        score = network(x, sigma).sample
        denoised, shared = denoiser(x, sigma), denoiser(x, sigma[1])
    assert_close(denoised, x + sigma.view(-1, 1, 1, 1) ** 2 * score)
    assert_close(shared[1], denoised[1], rtol=1e-4, atol=1e-4)


def test_a_flow_matching_network_samples_as_its_scheduler_does(
    diffusers: Any, tmp_path: Path
) -> None:
    """Euler's steps at its levels, and its x_1; both along EDM's path too."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    network = unet(diffusers)
    denoiser = load_diffusers(folder_of(diffusers, tmp_path, scheduler, network), (1, 8, 8))
    assert isinstance(denoiser, VelocityDenoiser)
    scheduler.set_timesteps(6)
    start = shown = randn(3, 1, 8, 8).float()
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        with torch.no_grad():
            out = network(shown, t.expand(3)).sample
            clean = denoiser(shown / (1 - sigma).clamp(min=1e-4), sigma / (1 - sigma))
        if sigma < 0.999:
            assert_close(clean, shown - sigma * out, rtol=1e-3, atol=1e-3)
        shown = scheduler.step(out, t, shown).prev_sample
    path = LinearSchedule()
    model = ParticleModel(
        VelocityField(denoiser), GaussianPrior((1, 8, 8)), steps=6, schedule=path, solver=Euler()
    )
    grid = Nodes(times=tuple((1 - scheduler.sigmas.double()).tolist()))
    ours = model.sample(3, generator=seeded(), start=start, grid=grid)
    assert_close(ours, shown, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "kind", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "PNDMScheduler"]
)
def test_every_chain_is_its_scheduler_s_own_prediction(
    kind: str, prediction: str, diffusers: Any, tmp_path: Path
) -> None:
    if kind == "PNDMScheduler" and prediction == "sample":
        pytest.skip("PNDM has none")
    scheduler = getattr(diffusers, kind)(prediction_type=prediction)
    network = unet(diffusers)
    denoiser = load_diffusers(folder_of(diffusers, tmp_path, scheduler, network), (1, 8, 8))
    assert isinstance(denoiser, DDPMDenoiser)
    alphas = scheduler.alphas_cumprod
    assert_close(denoiser.levels.exp(), ((1 - alphas) / alphas).sqrt(), rtol=1e-4, atol=1e-6)
    scheduler.set_timesteps(10)
    if kind != "DDIMScheduler":
        return
    t = scheduler.timesteps[4]
    shown = randn(2, 1, 8, 8).float()
    scheduler.register_to_config(clip_sample=False)
    with torch.no_grad():
        clean = scheduler.step(network(shown, t).sample, t, shown).pred_original_sample
        denoised = denoiser(shown / alphas[t].sqrt(), denoiser.levels[t].exp())
    assert_close(denoised, clean, rtol=1e-3, atol=1e-3)


def test_schedulers_that_are_not_known_are_refused_by_name(diffusers: Any, tmp_path: Path) -> None:
    known = (*CHAINS, *EDM, *VE, *FLOW)
    others = {name for name in dir(diffusers) if name.endswith("Scheduler")} - set(known)
    assert {"FlowMatchLCMScheduler", "CMStochasticIterativeScheduler"} <= others
    path = folder_of(diffusers, tmp_path, diffusers.DDPMScheduler())
    load_diffusers(path, (1, 8, 8))
    file = path / "scheduler_config.json"
    config = json.loads(file.read_text())
    for name in (*sorted(others), "Unheard", None):
        file.write_text(json.dumps({**config, "_class_name": name}))
        with pytest.raises(ConfigError, match=str(name)):
            load_diffusers(path, (1, 8, 8))
    for kind, key, value in (
        ("EulerDiscreteScheduler", "timestep_type", "continuous"),
        ("UniPCMultistepScheduler", "use_flow_sigmas", True),
        ("EDMEulerScheduler", "prediction_type", "sample"),
        ("DDPMScheduler", "prediction_type", "flow_prediction"),
    ):
        file.write_text(json.dumps({**config, "_class_name": kind, key: value}))
        with pytest.raises(ConfigError, match=str(value)):
            load_diffusers(path, (1, 8, 8))


def test_a_conditional_network_is_asked_for_labels(diffusers: Any, tmp_path: Path) -> None:
    network = unet(diffusers, num_class_embeds=10)
    denoiser = load_diffusers(saved(diffusers, tmp_path, network), (1, 8, 8), classes=10)
    x, sigma, cond = randn(2, 1, 8, 8).float(), torch.tensor([0.5, 2.0]), torch.tensor([3, 8])
    with torch.no_grad():
        expected = network(
            x / (1 + sigma**2).sqrt().view(-1, 1, 1, 1), denoiser.step(sigma), class_labels=cond
        ).sample
        assert_close(denoiser(x, sigma, None, cond), x - sigma.view(-1, 1, 1, 1) * expected)


# --- export ---


TINY = {"kind": "mlp", "width": 16, "depth": 1, "embedding_features": 8}
SMALL = {"kind": "mlp", "width": 8, "depth": 1}
SHORT = {"iterations": 2, "batch": 16}
BRIEF = {"iterations": 4, "batch": 16, "evaluate_every": None, "ema": 0.5, "latent": 4}


def trained(recipe: str, out: Path, **settings: Any) -> Run:
    brief = {k: v for k, v in BRIEF.items() if k != "latent" or "latent" in fields_of(recipe)}
    return train_run(make_recipe(recipe, {**brief, **settings}), out, preset="tiny")


def fields_of(recipe: str) -> set[str]:
    return set(type(make_recipe(recipe)).__dataclass_fields__)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each kind that is exported."""
    folder = tmp_path_factory.mktemp("runs")
    digits = {"name": "digits"}
    critic = {"network": TINY, "steps": 3}
    edm = {"network": TINY, "iterations": 2, "batch": 16, "steps": 3}
    plane = {"discriminator": TINY, "steps": 4, "score": edm}
    staged = {"discriminator": SMALL, "steps": 3, "staged": True, "discriminators": "independent"}
    flow = {"recipe": "discriminator-flow", "network": TINY, "steps": 3, "iterations": 2}
    moons = {"recipe": "flow-matching", "network": TINY, "source": {"name": "moons"}, **SHORT}
    labels = {"data": digits, "conditional": True}
    return {
        "edm": trained("edm", folder / "edm", network=TINY, steps=4),
        "edm-labels": trained(
            "edm", folder / "edm-labels", network=TINY, steps=3, data=digits, conditional=True
        ),
        "pool": trained("discriminator-flow", folder / "pool", **critic, pool=64),
        "real": trained("discriminator-flow", folder / "real", **critic, objective="relativistic"),
        "score-flow": trained("score-flow", folder / "sf", own_score=TINY, steps=3, score=edm),
        "plane": trained("diffflow", folder / "plane", **plane),
        "elbo": trained("diffflow", folder / "elbo", **plane, g2=1.5, objective="elbo", joint=True),
        "staged": trained("diffode-gan", folder / "staged", **staged, pool=64),
        "points": trained("gan", folder / "points", generator=TINY, discriminator=SMALL),
        "images": trained(
            "gan", folder / "images", data=digits, generator=TINY, discriminator=SMALL
        ),
        "labels": trained(
            "gan",
            folder / "labels",
            data=digits,
            conditional=True,
            generator=TINY,
            discriminator=TINY,
        ),
        "particles": trained("discriminator-flow", folder / "particles", network=TINY, steps=3),
        "map": trained("mean-flow", folder / "map", network=TINY, average=0.5, **labels),
        "to the end": trained("consistency", folder / "to the end", network=TINY),
        "distilled": trained("distillation", folder / "d", network=TINY, teacher=edm, **labels),
        "of nodes": trained(
            "distillation", folder / "nodes", network=TINY, teacher=flow, loss="semigroup"
        ),
        "of ends": trained("distillation", folder / "ends", network=TINY, teacher=flow),
        "of moons": trained("distillation", folder / "moons", network=TINY, teacher=moons),
    }


EXPORTED = ["points", "images", "labels"]


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_generator_is_the_runs_average_bit_for_bit(
    name: str, runs: dict[str, Run], tmp_path: Path
) -> None:
    run = runs[name]
    out = export_run(run, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        "generator.safetensors",
        "config.json",
        "README.md",
        "samples.png",
    }
    state = torch.get_rng_state()
    exported = load_generator(out)
    assert torch.equal(torch.get_rng_state(), state)
    assert exported.shape == run.dataset.shape
    assert exported.classes == (10 if name == "labels" else None)
    assert not exported.training
    samples = exported.sample(12_345, generator=seeded(4))
    assert torch.equal(samples, run.sample(12_345, generator=seeded(4)))
    assert not samples.requires_grad
    z = torch.randn(5, 4, generator=seeded())
    cond = torch.arange(5) if name == "labels" else None
    x = exported(z, cond)
    assert torch.equal(x, run.model.sample(5, generator=seeded(), start=z, cond=cond))  # type: ignore[call-arg]
    if cond is not None:
        assert torch.equal(
            exported.sample(5, generator=seeded(), cond=cond),
            run.sample(5, generator=seeded(), cond=cond),
        )
        with pytest.raises(ConfigError, match="0 to 9"):
            exported.sample(1, generator=seeded(), cond=torch.tensor([11]))
    else:
        with pytest.raises(ConfigError, match="no labels"):
            exported.sample(2, generator=seeded(), cond=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="at least 1"):
        exported.sample(0, generator=seeded())


def test_the_export_is_the_average_not_the_raw_weights(runs: dict[str, Run]) -> None:
    run = runs["images"]
    (checkpoint,) = (run.path / "checkpoints").glob("step-*")
    raw = load_file(checkpoint / "model.safetensors")
    average = run.model.generator.state_dict()  # type: ignore[union-attr]
    assert any(not torch.equal(raw[f"generator.{k}"], v) for k, v in average.items())


def test_the_card_tells_what_it_is(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["images"]
    card = (export_run(run, tmp_path / "mine") / "README.md").read_text()
    for line in (
        "# mine",
        "1 x 8 x 8 images in [-1, 1]",
        "Not measured",
        "Licence:",
        "data: digits",
    ):
        assert line in card
    assert 'load_generator("mine")' in card
    evaluation = {
        "metrics": {"frechet": 1.234, "kid": float("nan")},
        "reference": {"frechet": 0.1},
        "protocol": {"iteration": run.step, "samples": 50},
    }
    (run.path / "evaluation.json").write_text(json.dumps(evaluation))
    card = (export_run(run, tmp_path / "measured") / "README.md").read_text()
    assert "| frechet | 1.23 | 0.1 |" in card
    assert "| kid | - | - |" in card
    assert "samples 50" in card
    evaluation["protocol"]["iteration"] = run.step + 1  # figures of other weights
    (run.path / "evaluation.json").write_text(json.dumps(evaluation))
    assert "Not measured" in (export_run(run, tmp_path / "other") / "README.md").read_text()
    (run.path / "evaluation.json").unlink()


def test_the_cards_example_runs(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import partikel.app.export

    monkeypatch.setattr(
        partikel, "load_generator", partikel.app.export.load_generator, raising=False
    )
    monkeypatch.chdir(tmp_path)
    for name in EXPORTED:
        export_run(runs[name], Path(name))
        code = Path(name, "README.md").read_text().split("```python\n")[1].split("```")[0]
        values: dict[str, Any] = {}
        exec(code, values)
        generator, model = values["generator"], runs[name].model
        z = model.start(8, seeded(3))
        cond = None if generator.classes is None else torch.arange(8) % generator.classes
        assert_close(generator(z, cond), model.sample(8, generator=seeded(), start=z, cond=cond))
        assert values["x"].shape == (8, *runs[name].dataset.shape)
        images = len(runs[name].dataset.shape) == 3
        assert generator.config["range"] == ([-1, 1] if images else None)


def test_places_on_this_machine_stay_out_of_the_card() -> None:
    from partikel.app.export import _public

    data = {"name": "folder", "root": "/home/me", "cache": "/home/me", "path": "/home/me/cats"}
    settings = {"data": data, "data_score": "/home/me/runs/edm", "ema": None}
    data = {"name": "folder", "path": "cats"}
    assert _public(settings) == {"data": data, "data_score": "edm", "ema": None}
    assert _public({"data_score": "diffusers:/a/b"}) == {"data_score": "diffusers:b"}


MAPS = ["map", "to the end", "distilled", "of nodes", "of ends", "of moons"]
PARTICLES = [
    *MAPS,
    "edm",
    "edm-labels",
    "particles",
    "pool",
    "real",
    "score-flow",
    "plane",
    "elbo",
    "staged",
]


@pytest.mark.parametrize("name", PARTICLES)
def test_exported_particles_are_the_run_bit_for_bit(
    name: str, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs[name]
    out = export_run(run, tmp_path / "out")
    monkeypatch.setattr("partikel.app.export.open_dataset", lambda *_: pytest.fail("data opened"))
    exported = partikel.load(out)
    assert (exported.step, exported.preset, exported.data.shape) == (4, "tiny", run.data.shape)
    assert not any(
        p.requires_grad or m.training for m in exported.model.modules() for p in m.parameters()
    )
    x = exported.sample(1_234, generator=seeded(4))
    assert torch.equal(x, run.sample(1_234, generator=seeded(4)))
    few = {} if name == "of ends" else {"steps": 2}
    assert torch.equal(
        exported.sample(5, generator=seeded(), **few), run.sample(5, generator=seeded(), **few)
    )
    if name == "edm-labels":
        asked: dict[str, Any] = {"label": "0,3", "guidance": 2.0}
        x = exported.sample(6, generator=seeded(), **asked)
        assert torch.equal(x, run.sample(6, generator=seeded(), **asked))
    assert (out / "context.safetensors").exists() == (name == "real")
    assert (out / "map.safetensors").exists() == (name in MAPS)
    with pytest.raises(CheckpointError, match="partikel.load"):
        load_generator(out)
    values: dict[str, Any] = {}  # the card's example
    monkeypatch.chdir(tmp_path)
    exec((out / "README.md").read_text().split("```python\n")[1].split("```")[0], values)
    assert values["x"].shape == (8, *run.data.shape)


def test_a_map_goes_without_its_teacher(runs: dict[str, Run], tmp_path: Path) -> None:
    out = export_run(runs["distilled"], tmp_path / "out")
    exported = partikel.load(out).model
    weights = sum(p.numel() for p in exported.parameters())
    assert weights == sum(p.numel() for p in exported.sampled.parameters())
    for refused in (exported.field, exported.flow.field):  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match="without the flow"):
            refused(randn(2, 1, 8, 8), At(tensor(0.5)))
    card = (out / "README.md").read_text()
    assert "A flow map of 1 x 8 x 8 images" in card
    assert "1 call of it" in card
    assert "teacher: EDM" in card
    used = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["teacher"]
    assert "network" in used
    assert "engine" not in used
    assert (
        "start from moons"
        in (export_run(runs["of moons"], tmp_path / "m") / "README.md").read_text()
    )


def test_data_that_samples_start_from_are_not_published(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for k in range(40):
        Image.new("L", (16, 16), 6 * k).save(tmp_path / "pictures" / f"{k}.png")
    source = {"name": "folder", "path": str(tmp_path / "pictures"), "size": 16, "channels": 1}
    run = trained(
        "flow-matching",
        tmp_path / "run",
        network=SMALL,
        data={**source, "labels": False},
        source=source,
    )
    with pytest.raises(ConfigError, match="start from the data 'pictures'"):
        export_run(run, tmp_path / "out")


def test_an_export_is_used_like_a_run(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export_run(runs["edm"], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    cli.main(["sample", str(out), "-n", "9", "--solver", "euler"])
    cli.main(["interpolate", str(out), "--pairs", "2", "--points", "3"])
    cli.main(["evaluate", str(out), "-n", "50"])
    summary = gallery.summarise(partikel.load(out), out=tmp_path, n=50, animation=False)
    assert summary.iterations == runs["edm"].step  # as "compare" shows it
    assert str(out / "made" / "samples.png") in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    gone = trained("gan", tmp_path / "gan", generator=TINY, discriminator=SMALL)
    exported = partikel.load(export_run(gone, tmp_path / "generator"))
    assert exported.dataset.name == "gaussians"
    with pytest.raises(DataError, match="measure its run"):
        _ = partikel.load(MADE / "export").dataset


def test_a_score_flow_of_a_network_of_diffusers_takes_it_along(
    diffusers: Any, tmp_path: Path
) -> None:
    path = saved(diffusers, tmp_path / "teacher")
    settings = {"data": {"name": "digits"}, "data_score": f"diffusers:{path}", "own_score": TINY}
    run = trained("score-flow", tmp_path / "run", **settings, score_steps=2, steps=2)
    out = export_run(run, tmp_path / "out")
    x = run.sample(5, generator=seeded())
    shutil.rmtree(path)
    shutil.rmtree(run.path)
    assert torch.equal(partikel.load(out).sample(5, generator=seeded()), x)
    card = (out / "README.md").read_text()
    assert "data_score: diffusers:teacher" in card
    assert "law_mean" not in card  # of an EDM, which there is none of
    shutil.rmtree(out / "teacher")
    with pytest.raises(CheckpointError):
        partikel.load(out)


def test_cards_show_what_was_used_and_nothing_else(runs: dict[str, Run], tmp_path: Path) -> None:
    def shown(run: Run) -> dict[str, Any]:
        card = (export_run(run, tmp_path / run.path.name) / "README.md").read_text()
        return yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])

    common = {"seed", "iterations", "ema", "conditional", "data"}
    found = shown(runs["edm"])
    assert found["data"] == {"name": "gaussians"}
    assert not {"label_dropout", "evaluate_every", "engine", "sigma_data"} & set(found)
    assert common | {"network", "solver", "law_mean", "optimizer"} <= set(found)
    assert "label_dropout" in shown(runs["edm-labels"])
    assert "pool" in shown(runs["pool"])
    assert not {"data", "conditional", "label_dropout"} & set(shown(runs["score-flow"])["score"])
    assert not {"annealed", "sigma_max", "label_dropout"} & set(shown(runs["points"]))
    assert "discriminator" in shown(runs["plane"])
    score = {"network": TINY, "iterations": 1, "batch": 16, "steps": 2}
    alone = trained("diffflow", tmp_path / "runs" / "alone", g2=2.0, steps=2, score=score)
    assert not {"discriminator", "penalties", "optimizer", "batch"} & set(shown(alone))
    copied = trained(
        "score-gan", tmp_path / "runs" / "copied", own_score=None, generator=TINY, score=score
    )
    assert shown(copied)["own_score"] is None  # chosen, and not the default


@pytest.mark.parametrize("name", ["edm", "real"])
def test_damaged_particles_are_refused(name: str, runs: dict[str, Run], tmp_path: Path) -> None:
    good = export_run(runs[name], tmp_path / "good")
    config = json.loads((good / "config.json").read_text())
    del config["checksum"]
    (good / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="was changed"):  # it must have one
        partikel.load(good)
    settings = {**config["settings"], "network": {**config["settings"]["network"], "width": 17}}
    for changes in (
        {"schema": 99},
        {"kind": "other"},
        {"recipe": "none"},
        {"settings": {"colour": 1}},
        {"settings": settings},
        {"shape": [3]},
        {"iteration": "many"},
        {"label_weights": [1.0]},
        {"weights": "0" * 32},
    ):
        (good / "config.json").write_text(json.dumps(sealed({**config, **changes})))
        with pytest.raises(CheckpointError) as error:
            partikel.load(good)
        assert "\n" not in str(error.value)
    (good / "config.json").write_text(json.dumps(sealed(config)))
    partikel.load(good)
    for file in good.glob("*.safetensors"):
        whole = file.read_bytes()
        file.write_bytes(whole[:-3] + b"abc")
        with pytest.raises(CheckpointError, match="damaged"):
            partikel.load(good)
        file.write_bytes(whole)


def test_an_export_is_whole_or_not_there(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_run(runs["points"], out)  # an empty folder is as good as none
    before = (out / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        export_run(runs["images"], out)
    assert (out / "config.json").read_bytes() == before

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("partikel.app.show.plots.save_picture", full)
    with pytest.raises(CheckpointError, match="No space"):
        export_run(runs["points"], tmp_path / "second")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_damaged_exports_are_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    good = export_run(runs["points"], tmp_path / "good")
    config = json.loads((good / "config.json").read_text())
    assert config["kind"] == KIND
    del config["checksum"]
    assert config["network"] == {k: v for k, v in {**TINY, "init": "default"}.items()}

    def damaged(**changes: Any) -> Path:
        path = tmp_path / f"bad-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(good, path)
        (path / "config.json").write_text(json.dumps(sealed({**config, **changes})))
        return path

    with pytest.raises(CheckpointError, match="no exported model"):
        load_generator(tmp_path)
    with pytest.raises(CheckpointError, match="schema 99"):
        load_generator(damaged(schema=99))
    for changes in (
        {"network": {**config["network"], "width": 32}},
        {"network": {**config["network"], "colour": 1}},
        {"network": None},
        {"shape": [3]},
    ):
        with pytest.raises(CheckpointError, match="damaged"):
            load_generator(damaged(**changes))
    path = damaged()
    weights = path / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        load_generator(path)


@pytest.fixture
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("quiet")
def test_the_command_exports(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cli.main(["export", str(runs["images"].path), "-o", str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    assert load_generator(out).shape == (1, 8, 8)
    with pytest.raises(SystemExit):
        cli.main(["export", str(out)])
    assert "an export already" in capsys.readouterr().err


def test_a_network_of_diffusers_is_distilled_and_exported(diffusers: Any, tmp_path: Path) -> None:
    """diffusers -> Score GAN -> folder; the score stays as it was, and the run resumes exactly."""
    path = saved(diffusers, tmp_path / "teacher")
    settings = {
        "data": {"name": "digits"},
        "data_score": f"diffusers:{path}",
        "own_score": TINY,
        "generator": TINY,
        "score_steps": 2,
    }
    run = trained("score-gan", tmp_path / "run", **settings)
    teacher = unet(diffusers).state_dict()
    prefix = "denoiser.network.unet."
    found = {
        name.split(prefix)[1]: value
        for name, value in run.model.state_dict().items()
        if prefix in name
    }
    assert set(found) == set(teacher)
    assert all(torch.equal(found[name], value) for name, value in teacher.items())
    assert not (run.path / "required").exists()
    exported = load_generator(export_run(run, tmp_path / "out"))
    x = exported.sample(9, generator=seeded())
    assert torch.equal(x, load(run.path).sample(9, generator=seeded()))
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()

    with pytest.raises(ConfigError, match="guidance"):
        make_recipe("score-gan", {**settings, "conditional": True, "guidance": 2.0})
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="no folder"):
        load(run.path)


def test_without_diffusers_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"_class_name": "UNet2DModel", "in_channels": 1, "out_channels": 1, "sample_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "scheduler_config.json").write_text("{}")
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"partikel\[diffusers\]"):
        load_diffusers(tmp_path, (1, 8, 8))


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_the_tutorial_runs_as_it_stands_there(
    diffusers: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All commands and all code of docs/distillation.md, with few iterations."""
    import partikel.app.export

    monkeypatch.setattr(
        partikel, "load_generator", partikel.app.export.load_generator, raising=False
    )
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "distillation.md").read_text()
    values: dict[str, Any] = {}
    done = []
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            exec(block, values)
            continue
        for command in block.splitlines():
            words = shlex.split(command)
            assert words.pop(0) == "partikel"
            brief = ["--iterations", "2", "--evaluate_every", "2"] if words[0] == "train" else []
            if words[0] == "compare":
                brief = ["--n", "100"]
            cli.main([*words, *brief])
            done.append(words[0])
    exports = ["export", "export", "sample", "train", "export", "export", "push"]
    assert done == ["train", "train", "compare", "train", *exports]
    capsys.readouterr()
    assert values["x"].shape == (4, 1, 8, 8)
    assert Path("runs/from-diffusers/checkpoints/step-00000002").is_dir()
    for run in ("one-step", "from-diffusers"):
        assert not Path("runs", run, "required").exists()
