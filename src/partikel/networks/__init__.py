"""Networks: functions of x under conditions, which know nothing of fields, noise or losses.

All have the signature ``forward(x, c=None, cond=None)`` described in
``partikel.networks.conditions``. What a network is for is its role: a "logit" maps x to (B,), a
"denoiser" to the shape of x, a "generator" maps latents (B, latent) to (B, *shape).
``build_network`` makes any of them from ``NetworkSettings``; a new kind is a new line in
``NETWORKS``, its options and their defaults are read from its class's signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from partikel.errors import ConfigError, nearest
from partikel.errors.checks import Checked, Depth, Part, Positive, Range, Width
from partikel.extensions import Registry
from partikel.networks.activations import ACTIVATIONS
from partikel.networks.bank import Bank
from partikel.networks.conditions import Conditioning
from partikel.networks.conv import NORMS
from partikel.networks.dcgan import SMALL, ConvDiscriminator, ConvGenerator
from partikel.networks.dit import DiT
from partikel.networks.edm2 import EDM2UNet, force_weights
from partikel.networks.embeddings import EMBEDDINGS
from partikel.networks.fastgan import FastGANDiscriminator, FastGANGenerator
from partikel.networks.initialise import SCHEMES, initialise
from partikel.networks.mlp import MLP
from partikel.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from partikel.networks.resnet import ResNetDiscriminator, ResNetGenerator
from partikel.networks.unet import UNet, UNet2D

__all__ = [
    "MLP",
    "NETWORKS",
    "Bank",
    "Conditioning",
    "ConvDiscriminator",
    "ConvGenerator",
    "DiT",
    "EDM2UNet",
    "FastGANDiscriminator",
    "FastGANGenerator",
    "NetworkSettings",
    "R3GANDiscriminator",
    "R3GANGenerator",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "Role",
    "UNet",
    "UNet2D",
    "build_network",
    "force_weights",
    "initialise",
]

Role = Literal["logit", "denoiser", "generator"]
"""What a network is for: a discriminator's d, a denoiser's F, or a generator."""

Roles: TypeAlias = Mapping[Role, Callable[..., nn.Module]]

_OURS: dict[str, Roles] = {
    "mlp": {"logit": MLP, "denoiser": MLP, "generator": MLP},
    "small": {
        "logit": partial(ConvDiscriminator, strides=SMALL, width=32, norm="none"),
        "generator": partial(ConvGenerator, strides=SMALL, width=32),
    },
    "dcgan": {"logit": ConvDiscriminator, "generator": ConvGenerator},
    "resnet": {"logit": ResNetDiscriminator, "generator": ResNetGenerator},
    "fastgan": {"logit": FastGANDiscriminator, "generator": FastGANGenerator},
    "r3gan": {"logit": R3GANDiscriminator, "generator": R3GANGenerator},
    "unet": {"denoiser": UNet},
    "unet2d": {"denoiser": UNet2D},
    "dit": {"denoiser": DiT},
    "edm2": {"denoiser": EDM2UNet},
}


def _roles(name: str, found: Any) -> Roles:
    """What another package has under the name of a network: a class for each role, or one for all."""
    roles = found if isinstance(found, Mapping) else dict.fromkeys(get_args(Role), found)
    if not roles or not set(roles) <= set(get_args(Role)):
        raise TypeError(f"its roles must be of {', '.join(get_args(Role))}")
    for made in roles.values():
        told = inspect.signature(made).parameters.get("conditions") if callable(made) else None
        if told is None or not isinstance(told.default, Conditioning):
            raise TypeError(
                "it must be a class (or a function, or one for each role) whose signature ends in "
                "conditions: Conditioning = Conditioning(), as that of partikel.networks.MLP does"
            )
    return roles


NETWORKS: Registry[Roles] = Registry("network kind", "networks", _OURS, _roles)
"""Kind -> role -> class, with its defaults."""


@dataclass(frozen=True)
class NetworkSettings(Checked):
    """What a user may choose about a network; None is the default in its class's signature.

    Attributes:
        kind: "mlp" (any shape), "small" (images with sides divisible by 4), "dcgan", "resnet",
            "fastgan", "r3gan" (square images of 16, 32, 64, 128 or 256), "unet" (images; denoiser only),
            "unet2d" (a unet that diffusers computes too), "dit" (square images; denoiser only), "edm2"
            (images; denoiser only).
        width: mlp: units of a hidden layer; small, dcgan, resnet: channels at (about) full
            resolution; fastgan: a sixteenth of those at 4x4; r3gan: those up to 32x32; dit: features of
            a patch. At least 1.
        depth: mlp: hidden layers; dit: blocks. At least 1.
        activation: mlp, small, dcgan, resnet, r3gan, and fastgan's discriminator: "leaky_relu", "relu",
            "silu", "softplus", "tanh" or "identity".
        final_activation: mlp, and all generators of images: of the output, same names.
        norm: small, dcgan, resnet, fastgan: "none", "batch", "group", "spectral" or
            "spectral+batch"; mlp: "none" or "spectral".
        channels: unet, unet2d, edm2: channels at full resolution. At least 1.
        multipliers: unet, unet2d, edm2: channels at each resolution, in units of ``channels``.
        blocks: unet, unet2d, edm2, r3gan: residual blocks per resolution. At least 1.
        attention_resolutions: resnet, unet, unet2d, edm2: heights with self-attention, in unets beside the
            middle's.
        dropout: unet, unet2d, edm2: probability, in [0, 1).
        recompute: unet, unet2d, edm2: compute blocks again in the backward pass instead of keeping them in
            memory.
        embedding: all: of real conditions, "fourier" or "positional". This and the next two matter
            only where there are conditions.
        embedding_features: all: size of the embedding of each condition. Even.
        fourier_scale: all, with "fourier": standard deviation of the frequencies. Positive.
        init: all: initial weights, "default", "normal0.02", "he" or "orthogonal".
    """

    kind: str
    width: Width | None = None
    depth: Depth | None = None
    activation: str | None = None
    final_activation: str | None = None
    norm: str | None = None
    channels: Width | None = None
    multipliers: Annotated[tuple[Annotated[int, Range(1, 64)], ...], Range(1, 16)] | None = None
    blocks: Depth | None = None
    attention_resolutions: tuple[Width, ...] | None = None
    dropout: Part | None = None
    recompute: bool | None = None
    embedding: str | None = None
    embedding_features: Annotated[int, Range(2, 2**16, even=True)] | None = None
    fourier_scale: Positive | None = None
    init: str = "default"


_NAMES: dict[str, Sequence[str]] = {
    "activation": tuple(ACTIVATIONS),
    "final_activation": tuple(ACTIVATIONS),
    "norm": NORMS,
    "embedding": EMBEDDINGS,
    "init": tuple(SCHEMES),
}


def build_network(
    settings: NetworkSettings,
    role: Role,
    *,
    shape: tuple[int, ...],
    latent: int | None = None,
    scalars: int = 0,
    classes: int | None = None,
    generator: torch.Generator,
) -> nn.Module:
    """Build and initialise a network.

    The result depends on the arguments and the generator alone; the global random state is left as
    it was.

    Args:
        settings: what the user chose.
        role: "logit", "denoiser" or "generator".
        shape: of one data point, (D,) or (C, H, W).
        latent: size of z; needed by generators, ignored by others.
        scalars: S, the number of real conditions.
        classes: number of labels, or None.
        generator: draws the initial weights.

    Returns:
        The network, in training mode, on the CPU and in torch's default dtype.

    Raises:
        ConfigError: an unknown name, an option that does not apply to this kind in this role, a
            number out of range, or data that the kind cannot take.
        ValueError: a generator without ``latent``.
    """
    kind = settings.kind
    roles = NETWORKS.find(kind)
    if role not in roles:
        able = ", ".join(k for k, theirs in NETWORKS.items() if role in theirs)
        raise ConfigError(f"network kind '{kind}' cannot be a {role}; kinds that can: {able}")
    if role == "generator":
        if latent is None:
            raise ValueError("a generator needs the size of its latents")
        if latent < 1:
            raise ConfigError(f"the size of a generator's latents must be at least 1, not {latent}")
    network = roles[role]
    signature = inspect.signature(network).parameters
    told: Conditioning = signature["conditions"].default
    known = {*signature, *(field.name for field in fields(told))}
    asked = {name: value for name, value in vars(settings).items() if value is not None}
    asked.pop("kind")
    for name, value in asked.items():
        if name != "init" and name not in known:
            takes = ", ".join(f.name for f in fields(settings) if f.name in known)
            raise ConfigError(
                f"network option '{name}' does not apply to kind '{kind}' as {role}, "
                f"which takes: {takes}"
            )
        if name in _NAMES and value not in _NAMES[name]:
            raise ConfigError(
                f"unknown {name} '{value}' of a network; {nearest(value, tuple(_NAMES[name]))}"
            )
    embedding = asked.get("embedding", told.embedding)
    if "fourier_scale" in asked and embedding != "fourier":
        raise ConfigError(
            f"network option 'fourier_scale' does not apply to the embedding '{embedding}'; "
            "set embedding to 'fourier' or leave the scale out"
        )
    asked |= {"scalars": scalars, "classes": classes}
    of_conditions = {name: asked[name] for name in asked if name not in (*signature, "init")}
    options = {name: asked[name] for name in asked if name in signature}
    sizes: dict[str, Any] = {
        "shape": tuple(shape),
        "latent": latent,
        "in_shape": (latent,) if role == "generator" else tuple(shape),
        "out_shape": () if role == "logit" else tuple(shape),
    }
    sizes = {name: size for name, size in sizes.items() if name in signature}
    # The constructors draw from the global state what ``initialise`` draws again.
    with torch.random.fork_rng(devices=[]):
        if (
            foreign := kind not in NETWORKS
        ):  # whose own initial weights stay, drawn from the generator's seed
            seed = torch.randint(2**62, (), generator=generator, device=generator.device)
            torch.default_generator.manual_seed(int(seed))
        try:
            told = replace(told, **of_conditions)
            built = network(**sizes, **options, conditions=told)
        except ValueError as error:
            raise ConfigError(f"network kind '{kind}' as {role}: {error}") from error
    if torch.empty(0).device.type == "meta":  # only its sizes are asked for
        return built
    if foreign and settings.init == "default":
        return built
    return initialise(built, settings.init, generator=generator)
