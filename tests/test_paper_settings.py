"""The presets `-paper` are the GPM paper's Tables 4 to 7: every value of the table is held here."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from partikel.app.config import load_preset, make_recipe, preset_names
from partikel.networks import MLP as MultilayerPerceptron
from partikel.networks import UNet, build_network
from partikel.objectives import GradientPenalty
from partikel.recipes import Recipe

ADAM = {"lr": 2e-4, "beta2": 0.999, "eps": 1e-8, "clip": None, "warmup": 0, "decay": "constant"}
ADVERSARIAL = {**ADAM, "beta1": 0.5}
DIFFUSION = {**ADAM, "beta1": 0.9}
PLAIN = {"ema": None, "conditional": False}  # no average, no labels, no mixed precision
FOURIER = {"embedding": "fourier", "embedding_features": 128, "fourier_scale": 16.0}
MLP = {"kind": "mlp", "width": 512, "depth": 4}
TIMED = {**MLP, **FOURIER, "activation": "leaky_relu"}
SMALL_UNET = {
    "kind": "unet",
    "channels": 16,
    "multipliers": (1, 2, 2),
    "blocks": 1,
    "attention_resolutions": (16,),
    "dropout": 0.13,
    "embedding": "positional",
    "embedding_features": 256,
}
LARGE_UNET = {**SMALL_UNET, "channels": 128, "blocks": 2, "dropout": 0.1}
DCGAN = {"kind": "dcgan", "width": 64, "norm": "batch", "init": "normal0.02"}
FASTGAN = {**DCGAN, "kind": "fastgan", "width": 32}


def both(network: dict[str, Any]) -> dict[str, Any]:
    return {"discriminator": network, "generator": network}


def interpolated(weight: float) -> tuple[GradientPenalty, ...]:
    return (GradientPenalty(weight, centre=0.0, at="interpolated"),)


FLOW = {
    **PLAIN,
    "optimizer": ADVERSARIAL,
    "prior_std": 1.0,
    "temperature": 0.0,
    "updates": 1,
    "reuse": 1,
    "times_per_path": 1,
    "truncate": False,
    "augment": None,
}
FLOW_MNIST = {
    **FLOW,
    "data": {"name": "mnist", "size": 32},
    "objective": "ipm",
    "steps": 64,
    "eta": 2.0,
    "penalties": interpolated(0.04),
    "batch": 128,
    "iterations": 200_000,
    "network": {**DCGAN, **FOURIER, "norm": "none", "init": "orthogonal"},
}
GAN = {
    **PLAIN,
    "discriminator_optimizer": ADVERSARIAL,
    "generator_optimizer": ADVERSARIAL,
    "discriminator_steps": 1,
    "penalties": (),
    "latent": 128,
    "sigma_max": 0.0,
    "augment": None,
}
EDM = {
    **PLAIN,
    "optimizer": DIFFUSION,
    "sigma_data": 0.5,
    "sigma_min": 0.002,
    "sigma_max": 40.0,
    "law_mean": -1.2,
    "law_std": 1.2,
    "rho": 7.0,
    "solver": "heun",
    "churn": 0.0,
    "weighting": "edm",
}
EDM_GAUSSIANS = {
    **EDM,
    "data": {"name": "gaussians"},
    "network": {**TIMED, "init": "default"},
    "batch": 128,
    "iterations": 10_000,
    "steps": 28,
}
EDM_MNIST = {
    **EDM,
    "data": {"name": "mnist", "size": 32},
    "network": {**SMALL_UNET, "init": "default"},
    "batch": 128,
    "iterations": 500_000,
    "steps": 32,
}
EDM_CELEBA = {
    **EDM,
    "data": {"name": "celeba", "size": 64},
    "network": {**LARGE_UNET, "init": "default"},
    "batch": 64,
    "iterations": 100_000,
    "steps": 25,
}
SCORE_GAN = {
    **PLAIN,
    "alpha": 1.0,
    "beta_own": 1.0,
    "rho": 3.0,
    "own_sigma_data": 0.5,
    "weighting": "none",
    "latent": 128,
    "gamma": 0.0,
    "guidance": 1.0,
    "generator_optimizer": DIFFUSION,
}
SCORE_GAN_MNIST = {
    **SCORE_GAN,
    "score": EDM_MNIST,
    "sigma_min": 0.32,
    "sigma_max": 40.0,
    "score_steps": 1,
    "own_score": {**SMALL_UNET, "channels": 64, "blocks": 2, "init": "default"},
    "generator": DCGAN,
    "score_optimizer": {**DIFFUSION, "lr": 1e-3},
    "batch": 256,
    "iterations": 100_000,
}
TABLE: dict[str, dict[str, Any]] = {
    "discriminator-flow-gaussians-paper": {
        **FLOW,
        "data": {"name": "gaussians"},
        "objective": "non-saturating",
        "steps": 56,
        "eta": 20.0,
        "penalties": (),
        "batch": 128,
        "iterations": 4000,
        "network": {**TIMED, "init": "normal0.02"},
    },
    "discriminator-flow-mnist-paper": FLOW_MNIST,
    "discriminator-flow-mnist-paper-128": {**FLOW_MNIST, "steps": 128, "eta": 1.0},
    "discriminator-flow-celeba-paper": {
        **FLOW_MNIST,
        "data": {"name": "celeba", "size": 64},
        "steps": 25,
        "eta": 2.0,
        "penalties": interpolated(0.05),
        "batch": 64,
        "network": {
            **FOURIER,
            "kind": "resnet",
            "width": 64,
            "norm": "none",
            "attention_resolutions": (),
            "init": "normal0.02",
        },
    },
    "gan-gaussians-paper": {
        **GAN,
        "data": {"name": "gaussians"},
        "objective": "non-saturating",
        **both({**MLP, "activation": "leaky_relu", "init": "normal0.02"}),
        "batch": 128,
        "iterations": 1900,
    },
    "gan-mnist-paper": {
        **GAN,
        "data": {"name": "mnist", "size": 32},
        "objective": "non-saturating",
        **both(DCGAN),
        "batch": 128,
        "iterations": 10_000,
    },
    "gan-celeba-paper": {
        **GAN,
        "data": {"name": "celeba", "size": 64},
        "objective": "hinge",
        **both(FASTGAN),
        "batch": 64,
        "iterations": 100_000,
    },
    "edm-gaussians-paper": EDM_GAUSSIANS,
    "edm-mnist-paper": EDM_MNIST,
    "edm-celeba-paper": EDM_CELEBA,
    "score-gan-gaussians-paper": {
        **SCORE_GAN,
        "score": EDM_GAUSSIANS,
        "sigma_min": 0.1,
        "sigma_max": 10.0,
        "score_steps": 10,
        "own_score": {**TIMED, "init": "default"},
        "generator": {**MLP, "activation": "relu", "init": "default"},
        "score_optimizer": DIFFUSION,
        "batch": 128,
        "iterations": 3150,  # of 10 score steps: 31.5k
    },
    "score-gan-mnist-paper": SCORE_GAN_MNIST,
    "score-gan-mnist-collapse": {**SCORE_GAN_MNIST, "alpha": 2.0},
    "score-gan-celeba-paper": {
        **SCORE_GAN,
        "score": EDM_CELEBA,
        "sigma_min": 0.32,
        "sigma_max": 40.0,
        "score_steps": 4,
        "own_score": {**LARGE_UNET, "dropout": 0.0, "init": "default"},
        "generator": {**FASTGAN, "init": "orthogonal"},
        "score_optimizer": {**DIFFUSION, "lr": 4e-4},
        "batch": 32,
        "iterations": 150_000,  # of 4 score steps: 600k
    },
}

MILLIONS = {
    "discriminator-flow-gaussians-paper": {"network": 0.86},
    "discriminator-flow-mnist-paper": {"network": 3.36},
    "discriminator-flow-celeba-paper": {"network": 22.7},
    "gan-gaussians-paper": {"discriminator": 0.79, "generator": 0.86},
    "gan-mnist-paper": {"discriminator": 2.76, "generator": 3.80},
    "gan-celeba-paper": {"discriminator": 7.16, "generator": 7.06},
    "edm-gaussians-paper": {"network": 0.86},
    "edm-mnist-paper": {"network": 0.33},
    "edm-celeba-paper": {"network": 28.0},
}
SHAPES = {"gaussians": (2,), "mnist": (1, 32, 32), "celeba": (3, 64, 64)}

DEFAULTS = {**FOURIER, "dropout": 0.0}


def preset(name: str) -> Recipe:
    loaded = load_preset(name)
    return make_recipe(loaded.recipe, loaded.settings)


def differing(settings: object, table: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for key, expected in table.items():
        value, here = getattr(settings, key), f"{path}{key}"
        value = DEFAULTS.get(key) if value is None else value  # null leaves it to the network
        if isinstance(expected, dict):
            found += differing(value, expected, f"{here}.")
        elif (tuple(value) if isinstance(value, list) else value) != expected:
            found.append(f"{here} is {value}, the table says {expected}")
    return found


def test_what_null_leaves_to_the_networks() -> None:
    conditions = inspect.signature(MultilayerPerceptron).parameters["conditions"].default
    left = {name: getattr(conditions, name) for name in DEFAULTS.keys() - {"dropout"}}
    left["dropout"] = inspect.signature(UNet).parameters["dropout"].default
    assert left == DEFAULTS


@pytest.mark.parametrize("name", list(TABLE))
def test_a_preset_is_the_papers(name: str) -> None:
    recipe = preset(name)
    assert not differing(recipe, TABLE[name])
    assert recipe.engine.precision == "fp32"
    assert recipe.engine.accumulate == 1


@pytest.mark.parametrize("name", list(MILLIONS))
def test_a_presets_networks_have_the_papers_size(name: str) -> None:
    recipe = preset(name)
    for part, millions in MILLIONS[name].items():
        timed = part == "network"
        role = {"edm": "denoiser"}.get(recipe.name, "generator" if part == "generator" else "logit")
        with torch.device("meta"):
            network = build_network(
                getattr(recipe, part),
                role,  # type: ignore[arg-type]
                shape=SHAPES[recipe.data.name],
                latent=128,
                scalars=int(timed),
                generator=torch.Generator(),
            )
        count = sum(p.numel() for p in network.parameters()) / 1e6
        assert count == pytest.approx(millions, rel=0.05)


def test_every_paper_preset_is_in_the_table_or_extends_one() -> None:
    named = {name for name in preset_names() if "paper" in name or "collapse" in name}
    others = named - set(TABLE)  # of other data, or a quicker simulation of the same
    assert {name for name in others if "fashion" not in name and "cifar10" not in name} == {
        "discriminator-flow-mnist-paper-quick"
    }
    for name in others:
        twin = name.replace("fashion-mnist", "mnist").replace("cifar10", "celeba")
        twin = twin.replace("-quick", "")
        expected = {k: v for k, v in TABLE[twin].items() if k not in ("data", "score")}
        changed = ("truncate", "times_per_path") if name.endswith("quick") else ()
        assert not [d for d in differing(preset(name), expected) if d.split(" ")[0] not in changed]
