"""Laws of the networks: conditions, initial laws, derivatives, and what settings refuse."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import fields
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from partikel.errors import ConfigError
from partikel.networks import (
    MLP,
    NETWORKS,
    Bank,
    Conditioning,
    ConvDiscriminator,
    ConvGenerator,
    DiT,
    EDM2UNet,
    NetworkSettings,
    R3GANDiscriminator,
    R3GANGenerator,
    Role,
    UNet,
    build_network,
    force_weights,
    initialise,
)
from partikel.networks.conditions import Modulation, ScalarConditions
from partikel.networks.edm2 import (
    Forced,
    ForcedConv2d,
    ForcedLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    pixel_norm,
)
from partikel.networks.embeddings import EMBEDDINGS, FourierEmbedding, PositionalEmbedding
from partikel.networks.initialise import SCHEMES, Gain, ZeroInit
from partikel.networks.unet import Attention

ROWS = 3
LATENT = 5


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Case(NamedTuple):
    """A small network of one kind in one role."""

    name: str
    role: Role
    shape: tuple[int, ...]
    settings: dict[str, Any]
    mixes_rows: bool = False

    def build(
        self, *, seed: int = 0, scalars: int = 0, classes: int | None = None, gain: float = 1.0
    ) -> nn.Module:
        """With all its gains, which start at zero, at ``gain``."""
        small = {"embedding": "fourier", "embedding_features": 8, "init": "orthogonal"}
        network = build_network(
            NetworkSettings(**{**small, **self.settings}),
            self.role,
            shape=self.shape,
            latent=LATENT,
            scalars=scalars,
            classes=classes,
            generator=rng(seed),
        ).double()
        for module in network.modules():
            if isinstance(module, Gain):
                nn.init.constant_(module.weight, gain)
        # One power iteration per forward would make spectral normalisation a moving target.
        return network.eval() if "spectral" in self.settings.get("norm", "") else network

    def input(self, rows: int = ROWS, *, seed: int = 7) -> Tensor:
        shape = (LATENT,) if self.role == "generator" else self.shape
        return torch.randn(rows, *shape, generator=rng(seed), dtype=torch.float64)

    def output_shape(self, rows: int = ROWS) -> tuple[int, ...]:
        return (rows,) if self.role == "logit" else (rows, *self.shape)


def _cases() -> list[Case]:
    mlp = {"kind": "mlp", "width": 16, "depth": 2}
    small, image = {"kind": "small", "width": 4}, (2, 8, 8)
    dcgan = {"kind": "dcgan", "width": 2}
    resnet = {"kind": "resnet", "width": 2, "attention_resolutions": (8,)}
    fastgan = {"kind": "fastgan", "width": 1}
    unet = {"kind": "unet", "channels": 8}
    edm2 = {"kind": "edm2", "channels": 8, "multipliers": (1, 2), "blocks": 1}
    edm2 |= {"attention_resolutions": (4,), "fourier_scale": 1.0}
    r3gan = {"kind": "r3gan", "width": 8, "blocks": 1}
    return [
        Case("mlp", "logit", (2,), mlp),
        Case("mlp-softplus", "logit", (2,), {**mlp, "activation": "softplus"}),
        Case("mlp-spectral", "logit", (2,), {**mlp, "norm": "spectral"}),
        Case("mlp-image", "denoiser", (1, 3, 2), {**mlp, "activation": "silu"}),
        Case("mlp-tanh", "generator", (2,), {**mlp, "final_activation": "tanh"}),
        Case("mlp-positional", "denoiser", (2,), {**mlp, "embedding": "positional"}),
        Case("small", "logit", image, small),
        Case("small-batch", "logit", image, {**small, "norm": "batch"}, mixes_rows=True),
        Case("small-spectral", "logit", image, {**small, "norm": "spectral"}),
        Case("small-both", "logit", image, {**small, "norm": "spectral+batch"}),
        Case("small", "generator", image, small, mixes_rows=True),
        Case("small-plain", "generator", (1, 8, 12), {**small, "norm": "none"}),
        Case("small-spectral", "generator", image, {**small, "norm": "spectral"}),
        Case("dcgan", "logit", (1, 32, 32), dcgan, mixes_rows=True),
        Case("dcgan-plain", "logit", (1, 32, 32), {**dcgan, "norm": "none"}),
        Case("dcgan-64", "logit", (3, 64, 64), {**dcgan, "norm": "none", "width": 1}),
        Case("dcgan", "generator", (1, 32, 32), dcgan, mixes_rows=True),
        Case("dcgan-64", "generator", (3, 64, 64), {**dcgan, "norm": "none"}),
        Case("dcgan-group", "logit", (1, 16, 16), {**dcgan, "norm": "group"}),
        Case("dcgan-group", "generator", (1, 16, 16), {**dcgan, "norm": "group"}),
        Case("resnet-spectral", "logit", (1, 16, 16), {**resnet, "norm": "spectral"}),
        Case("resnet-plain", "logit", (3, 32, 32), {**resnet, "norm": "none"}),
        Case("resnet-batch", "logit", (1, 16, 16), {**resnet, "norm": "batch"}, mixes_rows=True),
        Case("resnet-spectral", "generator", (1, 16, 16), {**resnet, "norm": "spectral"}),
        Case("resnet-plain", "generator", (3, 32, 32), {**resnet, "norm": "none"}),
        Case(
            "resnet-batch", "generator", (1, 16, 16), {**resnet, "norm": "batch"}, mixes_rows=True
        ),
        Case("fastgan", "logit", (1, 16, 16), fastgan, mixes_rows=True),
        Case("fastgan-64", "logit", (3, 64, 64), {**fastgan, "norm": "spectral"}),
        Case("fastgan-group", "logit", (1, 32, 32), {**fastgan, "norm": "group"}),
        Case("fastgan", "generator", (1, 16, 16), fastgan, mixes_rows=True),
        Case("fastgan-gated", "generator", (3, 64, 64), {**fastgan, "norm": "group"}),
        Case("unet", "denoiser", (1, 16, 16), unet),
        Case(
            "unet-8",
            "denoiser",
            image,
            {**unet, "embedding": "positional", "multipliers": (1, 2), "attention_resolutions": ()},
        ),
        Case("dit", "denoiser", image, {"kind": "dit", "width": 8, "depth": 2}),
        Case("edm2", "denoiser", image, edm2),
        Case("r3gan", "logit", (1, 16, 16), {**r3gan, "activation": "silu"}),
        Case("r3gan", "generator", (3, 32, 32), {**r3gan, "final_activation": "tanh"}),
    ]


CASES = _cases()


def find(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


every = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.role}")
every_logit = pytest.mark.parametrize(
    "case", [case for case in CASES if case.role == "logit"], ids=lambda case: case.name
)
# The random conditions of these tests: two scalars and three classes.
KNOWN = {"scalars": 2, "classes": 3}


def conditions(rows: int = ROWS) -> dict[str, Tensor]:
    c = torch.rand(rows, 2, generator=rng(8), dtype=torch.float64)
    return {"c": c, "cond": torch.arange(rows) % 3}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# The sizes of the paper's networks.


@pytest.mark.parametrize(
    ("network", "count", "published"),
    [
        (lambda: MLP((2,), (), conditions=Conditioning(1)), 855_553, 0.86e6),
        (lambda: MLP((2,), ()), 790_017, 0.79e6),
        (lambda: MLP((128,), (2,)), 855_042, 0.86e6),
        (lambda: ConvDiscriminator((1, 32, 32)), 2_763_137, 2.76e6),
        (lambda: ConvGenerator(128, (1, 32, 32)), 3_803_585, 3.80e6),
        (
            lambda: ConvDiscriminator((1, 32, 32), norm="none", conditions=Conditioning(1)),
            3_353_601,
            3.36e6,
        ),
        (lambda: UNet((1, 32, 32)), 315_297, 0.33e6),
        (lambda: UNet((3, 64, 64), channels=128, blocks=2), 27_808_387, 28.0e6),
    ],
    ids=["critic", "discriminator", "generator", "dcgan-d", "dcgan-g", "flow-d", "unet", "celeba"],
)
def test_parameter_counts(network, count, published):
    with torch.device("meta"):
        built = network()
    assert parameters(built) == count
    assert abs(count - published) < 0.05 * published


# What every network does.


@every
def test_conditions_matter_row_by_row(case):
    network, x = case.build(**KNOWN).eval(), case.input()
    given = conditions()
    out = network(x, **given)
    assert out.shape == case.output_shape()
    assert out.dtype == torch.float64
    for scalar in range(2):
        c = given["c"].clone()
        c[0, scalar] += 0.3
        changed = (network(x, c, given["cond"]) - out).abs().flatten(1 if out.ndim > 1 else 0)
        changed = changed.amax(1) if out.ndim > 1 else changed
        assert changed[0] > 1e-6
        assert_close(changed[1:], torch.zeros(ROWS - 1, dtype=out.dtype), atol=1e-12, rtol=0)
    unlabelled = network(x, given["c"])
    assert_close(unlabelled, network(x, given["c"], torch.full((ROWS,), 3)))
    for label in range(3):
        labelled = network(x, given["c"], torch.full((ROWS,), label))
        assert (labelled - unlabelled).abs().max() > 1e-6


@every
@pytest.mark.parametrize("cond", [None, torch.tensor([2, 0, 1])], ids=["unlabelled", "labelled"])
def test_one_row_of_conditions_stands_for_all(case, cond):
    network, x = case.build(**KNOWN), case.input()
    c = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    assert_close(network(x, c, cond), network(x, c.expand(ROWS, 2).contiguous(), cond))
    unlabelled = case.build(scalars=2)
    assert_close(unlabelled(x, c), unlabelled(x, c.repeat(ROWS, 1)))


@every
def test_one_row_of_conditions_has_the_same_gradients(case):
    network, x = case.build(scalars=2), case.input().requires_grad_()
    c = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    wanted = [x, *network.parameters()]
    one = torch.autograd.grad(network(x, c).square().sum(), wanted)
    all_rows = torch.autograd.grad(network(x, c.repeat(ROWS, 1)).square().sum(), wanted)
    for a, b in zip(one, all_rows, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-9)


@every
def test_rows_are_independent(case):
    network = case.build(**KNOWN)
    if case.mixes_rows:
        network.eval()
    x, given = case.input(), conditions()
    out = network(x, **given)
    for i in range(ROWS):
        row = {name: value[i : i + 1] for name, value in given.items()}
        assert_close(network(x[i : i + 1], **row)[0], out[i])


@pytest.mark.parametrize("case", [c for c in CASES if c.mixes_rows], ids=lambda case: case.name)
def test_batch_normalisation_mixes_rows_in_training(case):
    network, x = case.build(), case.input()
    moved = x.clone()
    moved[0] += 1
    assert (network(x)[1] - network(moved)[1]).abs().max() > 1e-6


@every
def test_single_and_double_precision_agree(case):
    network, x, given = case.build(**KNOWN).eval(), case.input(), conditions()
    single = copy.deepcopy(network).float()(x.float(), given["c"].float(), given["cond"])
    assert single.dtype == torch.float32
    assert_close(single.double(), network(x, **given), rtol=1e-3, atol=1e-4)


@every
def test_state_dict_round_trip(case):
    source, other = case.build(seed=0, **KNOWN).eval(), case.build(seed=1, **KNOWN).eval()
    x, given = case.input(), conditions()
    assert (source(x, **given) - other(x, **given)).abs().max() > 1e-6
    other.load_state_dict(source.state_dict())
    assert_close(other(x, **given), source(x, **given), rtol=0, atol=0)


@every
def test_unconditional_networks_refuse_conditions(case):
    network, x, given = case.build(), case.input(), conditions()
    network(x)
    with pytest.raises(ValueError, match="scalars=0"):
        network(x, given["c"])
    with pytest.raises(ValueError, match="without classes"):
        network(x, None, given["cond"])


@every
def test_conditional_networks_refuse_other_conditions(case):
    network, x, given = case.build(**KNOWN), case.input(), conditions()
    c, cond = given["c"], given["cond"]
    for wrong in (None, c[:, :1], c[:2], c[:, 0]):
        with pytest.raises(ValueError, match="c must have shape"):
            network(x, wrong, cond)
    for wrong in (cond[:2], cond[:, None], cond.double()):
        with pytest.raises(ValueError, match="cond must be"):
            network(x, c, wrong)


# Derivatives.


@every_logit
def test_gradient_penalty_has_the_right_gradient(case):
    """d/dθ of Σ‖∇_x d‖² against central differences along a random direction."""
    network, x, given = case.build(**KNOWN), case.input(), conditions()
    weights = list(network.parameters())

    def penalty() -> Tensor:
        points = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(points, **given).sum(), points, create_graph=True)
        return slope.square().sum()

    gradient = torch.autograd.grad(penalty(), weights, materialize_grads=True)
    # A step so small that no unit passes its kink, where the penalty jumps.
    source, step = rng(3), 1e-8
    direction = [torch.randn(w.shape, generator=source, dtype=w.dtype) for w in weights]
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight += sign * step * d
        values.append(penalty().detach())
    expected = (values[0] - values[1]) / (2 * step)
    along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    assert abs(expected) > 1e-3
    assert_close(along, expected, rtol=1e-4, atol=1e-6)


def test_mlp_second_derivatives():
    case = find("mlp-softplus")
    network, c = case.build(scalars=2), conditions()["c"]
    x = case.input().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: network(x, c), (x,))


@pytest.mark.parametrize(
    "name",
    ["mlp", "small", "resnet-plain", "fastgan-gated", "unet", "dit", "edm2", "r3gan"],
)
def test_forward_and_reverse_derivatives_agree(name):
    case = find(name)
    network, x, c = case.build(scalars=2), case.input(), conditions()["c"]
    u = torch.randn(x.shape, generator=rng(1), dtype=x.dtype)
    out, forward = torch.func.jvp(lambda x: network(x, c), (x,), (u,))[:2]
    w = torch.randn(out.shape, generator=rng(2), dtype=x.dtype)
    points = x.clone().requires_grad_()
    (backward,) = torch.autograd.grad((network(points, c) * w).sum(), points)
    assert_close((forward * w).sum(), (backward * u).sum())


# Each network.


def test_mlp_is_the_chain_of_its_layers():
    network = MLP((2,), (3,), width=6, depth=3, conditions=Conditioning(1, embedding_features=4))
    network.double()
    x, t = torch.randn(4, 2, generator=rng(), dtype=torch.float64), torch.linspace(0, 1, 4)
    t = t.double()[:, None]
    angles = 2 * math.pi * t * network.conditions.get_buffer("embed.frequencies")
    h = network.first(torch.cat([x, angles.cos(), angles.sin()], 1))
    assert len(network.rest) == 3
    for layer in network.rest:
        h = layer(torch.where(h > 0, h, 0.2 * h))
    assert_close(network(x, t), h)


def test_generators_end_in_tanh_or_what_is_asked():
    case = Case("dcgan", "generator", (1, 32, 32), {"kind": "dcgan", "width": 2})
    free = case._replace(settings={**case.settings, "final_activation": "identity"})
    assert_close(case.build()(case.input()), free.build()(case.input()).tanh())


def test_modulation_scales_and_shifts_channels():
    layer = initialise(Modulation(3, 2), "orthogonal", generator=rng()).double()
    h = torch.randn(4, 2, 5, 5, generator=rng(), dtype=torch.float64)
    e = torch.randn(4, 3, generator=rng(1), dtype=torch.float64)
    assert layer.head is not None
    scale, shift = layer.head(e).split(2, 1)
    expected = torch.stack(
        [torch.stack([(1 + scale[b, k]) * h[b, k] + shift[b, k] for k in (0, 1)]) for b in range(4)]
    )
    assert_close(layer(h, e), expected)


@every
def test_default_init_makes_modulations_the_identity(case):
    case = case._replace(settings={**case.settings, "init": "default"})
    network, x, given = case.build(**KNOWN, gain=0), case.input(), conditions()
    modulated = any(isinstance(m, (Modulation, DiT, EDM2UNet)) for m in network.modules())
    spread = (network(x, **given) - network(x, given["c"] + 0.3, given["cond"].flip(0))).abs().max()
    assert (spread == 0) == modulated


def test_unet_starts_at_zero_and_its_blocks_as_identities():
    case = find("unet")
    network = case._replace(settings={**case.settings, "init": "default"}).build(scalars=1)
    x = case.input()
    c = torch.ones(1, 1, dtype=torch.float64)
    assert_close(network(x, c), torch.zeros_like(x), rtol=0, atol=0)
    middle = network.get_submodule("middle.0")
    h = torch.randn(2, 16, 4, 4, generator=rng(), dtype=torch.float64)
    e = torch.randn(2, 32, generator=rng(), dtype=torch.float64)
    assert_close(middle(h, e), h, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("width", "depth", "published"), [(384, 12, 33e6), (768, 12, 130e6), (1152, 28, 675e6)]
)
def test_dit_has_the_sizes_of_the_paper(width, depth, published):
    """S/2, B/2 and XL/2, whose output has the variance beside the mean, and whose embeddings are summed."""
    told = Conditioning(1, 1000, embedding="positional", embedding_features=256)
    with torch.device("meta"):
        network = DiT((4, 32, 32), width, depth, told)
    twice = (width + 1) * 16  # for the variance
    apart = 1001 * (width - 256) - 256 * width  # a label's embedding is as wide as the network
    assert parameters(network) + twice + apart == pytest.approx(published, rel=0.01)


def test_dit_starts_at_zero_and_its_blocks_as_identities():
    case = find("dit")
    network = case._replace(settings={**case.settings, "init": "default"}).build(scalars=1)
    x, c = case.input(), torch.ones(1, 1, dtype=torch.float64)
    assert_close(network(x, c), torch.zeros_like(x), rtol=0, atol=0)
    h, e = torch.randn(2, 16, 8, generator=rng()).double(), torch.randn(2, 8).double()
    assert_close(network.get_submodule("blocks.0")(h, e), h, rtol=0, atol=0)


def test_dit_sees_a_patch_as_a_token_in_its_place():
    """Without places a permutation of patches would commute with it; with them it does not."""
    case = find("dit")
    network, x = case.build(), case.input()
    assert isinstance(network, DiT)

    def moved(x: Tensor) -> Tensor:
        return torch.cat([x[..., 2:], x[..., :2]], -1)  # by one patch to the left

    assert (network(moved(x)) - moved(network(x))).abs().max() > 1e-3
    network.get_buffer("places").zero_()
    assert_close(network(moved(x)), moved(network(x)))
    pixel = torch.cat([x[..., 1:], x[..., :1]], -1)
    assert (network(pixel) - network(x).roll(-1, -1)).abs().max() > 1e-3


def test_dit_attends_with_several_heads():
    network = DiT((1, 4, 4), width=128, depth=1).double()
    block = network.get_submodule("blocks.0")
    h = torch.randn(3, 4, 128, generator=rng(), dtype=torch.float64)
    q, k, v = (p.unflatten(2, (2, 64)).transpose(1, 2) for p in block.qkv(h).chunk(3, -1))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert_close(block.attention(h), block.out(mixed))


@pytest.mark.parametrize(
    ("shape", "width", "said"),
    [
        ((1, 8, 16), 8, "square"),
        ((1, 7, 7), 8, "even side"),
        ((1, 40, 40), 8, "divisible by 16 beyond 32"),
        ((2,), 8, "images of shape"),
        ((1, 8, 8), 6, "multiple of 4"),
    ],
)
def test_dit_refuses_what_it_cannot_take(shape, width, said):
    settings = NetworkSettings("dit", width=width, depth=1)
    with pytest.raises(ConfigError, match=said):
        build_network(settings, "denoiser", shape=shape, generator=rng())


# EDM2.


@pytest.mark.parametrize(
    ("channels", "published"),
    [(128, 124.7), (192, 280.2), (256, 497.8), (320, 777.5), (384, 1119.3), (448, 1523.2)],
)
def test_edm2_has_the_sizes_of_the_paper(channels, published):
    """XS to XXL on latents of ImageNet-512; ours has one more row, of no label."""
    told = Conditioning(1, 1000, embedding_features=0)
    with torch.device("meta"):
        network = EDM2UNet((4, 64, 64), channels, conditions=told)
    assert f"{(parameters(network) - 4 * channels) / 1e6:.1f}" == str(published)


def magnitude(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_layers_of_edm2_keep_the_variance_of_normal_signals(share):
    """Of rows of white noise, to five standard errors of a mean of squares."""
    rows, a, b = 20_000, 12, 36
    x, y = (torch.randn(rows, n, generator=rng(n), dtype=torch.float64) for n in (a, b))
    error = 5 * math.sqrt(2 / rows)  # of a channel's variance
    layer = initialise(ForcedLinear(a, 9), generator=rng()).double()
    assert ((layer(x).square().mean(0) - 1).abs() < error).all()
    conv = initialise(ForcedConv2d(a, 9, 3), generator=rng()).double()
    patches = torch.randn(rows // 4, a, 3, 3, generator=rng(1), dtype=torch.float64)
    inner = conv(patches)[:, :, 1, 1]  # no border, and pixels of other rows only
    assert ((inner.square().mean(0) - 1).abs() < 2 * error).all()
    assert ((mp_sum(x, y[:, :a], share).square().mean(0) - 1).abs() < error).all()
    silu = mp_silu(y).square()
    assert (silu.mean() - 1).abs() < 1e-3 + 5 * silu.std() / math.sqrt(silu.numel())
    both = mp_cat(x, y, share)
    weighed = (both[:, :a].square().mean() * a, both[:, a:].square().mean() * b)
    of_all = 5 * math.sqrt(2 / (rows * a))
    assert abs(sum(weighed) / (a + b) - 1) < of_all
    assert abs(weighed[1] / weighed[0] / (share / (1 - share)) ** 2 - 1) < 2 * of_all
    assert_close(magnitude(pixel_norm(7 * x)[3]), torch.ones((), dtype=x.dtype))


def test_edm2_keeps_magnitudes_through_all_its_blocks():
    """At first every block hands on a signal of about unit variance."""
    network = build_network(
        NetworkSettings("edm2", channels=32, blocks=2),
        *("denoiser",),
        shape=(3, 32, 32),
        scalars=1,
        classes=5,
        generator=rng(),
    )
    assert isinstance(network, EDM2UNet)
    seen = []
    for layer in [network.conditions, *network.down, *network.up, network.last]:
        layer.register_forward_hook(lambda _, __, out: seen.append(float(magnitude(out))))
    x, c = torch.randn(4, 3, 32, 32, generator=rng(1)), torch.randn(4, 1, generator=rng(2))
    with torch.no_grad():
        assert not network(x, c, torch.arange(4)).any()
    assert len(seen) == 1 + (2 + 3 * 3) + (2 + 3 + 3 * 4) + 1
    assert all(0.7 < size < 1.3 for size in seen), seen


def test_weights_of_edm2_are_used_with_length_one():
    """Stored lengths change nothing, gradients are orthogonal to them, and forcing them is no change."""
    case = find("edm2")
    network, x, given = case.build(**KNOWN), case.input(), conditions()
    layers = [m for m in network.modules() if isinstance(m, Forced)]
    expected = network(x, **given)
    expected.square().sum().backward()
    for layer in layers:
        assert layer.weight.grad is not None
        along = (layer.weight.grad * layer.weight).flatten(1)
        assert_close(along.sum(1), torch.zeros_like(along[:, 0]), atol=1e-9, rtol=0)
        with torch.no_grad():
            layer.weight *= torch.rand(len(layer.weight), generator=rng())[
                (..., *[None] * (layer.weight.ndim - 1))
            ]
    assert_close(network(x, **given), expected)
    force_weights(network)
    assert_close(network(x, **given), expected)
    for layer in layers:
        assert_close(
            layer.weight.square().flatten(1).mean(1), torch.ones(len(layer.weight)).double()
        )
    assert {
        type(m) for m in network.modules() if any(True for _ in m.parameters(recurse=False))
    } == {
        ForcedConv2d,
        ForcedLinear,
        Gain,
    }


def test_attention_of_edm2_is_by_cosines():
    layer = find("edm2").build().get_submodule("up.0.attention")
    x = torch.randn(2, 16, 3, 4, generator=rng(), dtype=torch.float64)
    q, k, v = (p.mT for p in pixel_norm(layer.qkv(x).flatten(2).unflatten(1, (3, 16)), 2).unbind(1))
    cosines = F.normalize(q, dim=2) @ F.normalize(k, dim=2).mT
    mixed = ((cosines * math.sqrt(16)).softmax(2) @ v).mT.reshape(x.shape)
    assert_close(layer(x), mp_sum(x, layer.out(mixed), 0.3), rtol=1e-6, atol=1e-6)


# R3GAN.


def test_r3gan_has_the_sizes_of_the_paper():
    """Config E on images of 256x256: 23.058 and 23.010 million weights."""
    with torch.device("meta"):
        assert parameters(R3GANGenerator(64, (3, 256, 256))) == 23_057_952
        assert parameters(R3GANDiscriminator((3, 256, 256))) == 23_009_568


@pytest.mark.parametrize("role", ["logit", "generator"])
def test_r3gan_starts_linear(role):
    """Fix-up: all branches are zero at first, and there are no biases outside of them."""
    settings = {"kind": "r3gan", "width": 16}
    case = Case("", role, (3, 32, 32), {**settings, "init": "default"})
    network = case.build()
    x, y = case.input(seed=1), case.input(seed=2)
    assert_close(network(2 * x - 3 * y), 2 * network(x) - 3 * network(y))
    other = case._replace(settings={**settings, "init": "orthogonal"}).build()
    assert (other(2 * x - 3 * y) - 2 * other(x) + 3 * other(y)).abs().max() > 1e-3


def test_r3gan_has_blocks_of_grouped_convolutions_which_fix_up_starts():
    """He's law times L^(-1/4) of the network's L blocks, in groups of 16 channels and twice the width."""
    network = initialise(R3GANDiscriminator((1, 64, 64), width=64), generator=rng())
    blocks = [m for name, m in network.named_modules() if name.split(".")[-2:-1] == ["blocks"]]
    assert len(blocks) == 10
    scale = 2 * 10**-0.5  # of the variance
    for block in blocks:
        first, grouped, last = block.conv1, block.conv2, block.conv3
        assert first.out_channels == grouped.out_channels == 2 * last.out_channels
        assert grouped.weight.shape[1] == 16
        assert not last.weight.any()
        assert last.bias is None
        for conv in (first, grouped):
            _moments(conv.weight.detach(), 0, math.sqrt(scale / conv.weight[0].numel()), 3)
            assert not conv.bias.any()


def test_generators_of_r3gan_scale_learned_maps_and_resample_bilinearly():
    case = Case("", "generator", (1, 16, 16), {"kind": "r3gan", "width": 4, "init": "default"})
    network, z = case.build(), case.input()
    maps = network.maps.weight[:, 0]
    h = (z @ network.scale.weight.T)[:, :, None, None] * maps
    for _ in range(2):
        h = F.interpolate(h, scale_factor=2, mode="bilinear")
    expected = torch.einsum("oc,bchw->bohw", network.leave.weight[:, :, 0, 0], h)
    assert_close(network(z), expected)


def test_attention_is_scaled_dot_product_attention():
    layer = initialise(Attention(8), "orthogonal", generator=rng()).double()
    x = torch.randn(2, 8, 3, 4, generator=rng(), dtype=torch.float64)
    q, k, v = (part.mT for part in layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1))
    mixed = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)
    assert_close(layer(x), x + layer.out(mixed))


def test_unet_attends_where_asked():
    def count(**options) -> int:
        unet = UNet((1, 32, 32), channels=4, **options)
        return sum(isinstance(m, Attention) for m in unet.modules())

    assert count(attention_resolutions=()) == 1  # the middle
    assert count() == 1 + 1 + 2  # at 16: one block down, two up
    assert count(attention_resolutions=(32, 8), blocks=2) == 1 + 2 * (2 + 3)


def test_unet_drops_out_in_training_only():
    case = find("unet")
    network = case._replace(settings={**case.settings, "dropout": 0.5}).build(scalars=1)
    x, c = case.input(), torch.ones(1, 1, dtype=torch.float64)
    assert (network(x, c) - network(x, c)).abs().max() > 1e-6
    network.eval()
    assert_close(network(x, c), network(x, c), rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "count"), [("small", 4), ("mlp", 5)])
def test_spectral_normalisation_bounds_the_slope(kind, count):
    case = Case("", "logit", (1, 8, 8), {"kind": kind, "width": 4, "norm": "spectral"})
    network = case._replace(settings={**case.settings, "init": "default"}).build()
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == count
    one = torch.ones((), dtype=torch.float64)
    for layer in layers:
        top = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        assert_close(top, one, rtol=0.1, atol=0)  # 15 power iterations at the start
    network.train()
    for _ in range(200):
        network(case.input())
    for layer in layers:
        assert_close(
            torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2), one, rtol=1e-3, atol=0
        )


def test_spectral_normalisation_in_training_allows_a_gradient_penalty():
    """Its buffers change with each forward; earlier graphs must survive that."""
    case = find("small-spectral")
    network = case.build().train()
    x = case.input().requires_grad_()
    real, fake = network(case.input(seed=8)), network(x)
    (slope,) = torch.autograd.grad(fake.sum(), x, create_graph=True)
    (fake.mean() - real.mean() + slope.square().sum()).backward()
    for weight in network.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert weight.grad.any() or weight.ndim == 1


# Embeddings.


def test_fourier_features_approximate_the_gaussian_kernel():
    """⟨φ(s), φ(t)⟩ is a mean of cos 2πf(s-t), whose expectation is exp(-2π²scale²(s-t)²)."""
    features, scale = 4096, 2.0
    embed = FourierEmbedding(features, scale, generator=rng(4)).double()
    gaps = torch.tensor([0.0, 0.02, 0.05, 0.1, 0.5], dtype=torch.float64)
    vectors = embed(0.3 + gaps)
    assert vectors.shape == (5, features)
    kernel = vectors @ vectors[0] / (features / 2)
    expected = torch.exp(-2 * (math.pi * scale * gaps) ** 2)
    # Var cos(g) ≤ 1/2 for every gap.
    assert (kernel - expected).abs().max() < 4 * math.sqrt(0.5 / (features / 2))


def test_fourier_frequencies_come_from_the_generator_and_are_saved():
    a, b = (FourierEmbedding(16, 3.0, generator=rng(1)) for _ in range(2))
    assert_close(a.frequencies, b.frequencies, rtol=0, atol=0)
    assert_close(FourierEmbedding(16).frequencies, FourierEmbedding(16).frequencies)
    assert list(a.state_dict()) == ["frequencies"]
    assert not list(a.parameters())
    b.redraw(generator=rng(2))
    assert (a.frequencies - b.frequencies).abs().max() > 0.1


def test_positional_embedding_is_a_rotation_in_t():
    embed = PositionalEmbedding(10, max_period=100.0).double()
    t = torch.linspace(-3, 3, 7, dtype=torch.float64)
    cos, sin = embed(t).chunk(2, -1)
    assert_close(cos**2 + sin**2, torch.ones_like(cos))
    assert_close(embed.frequencies[[0]], torch.ones(1, dtype=torch.float64))
    ratio = embed.frequencies[1:] / embed.frequencies[:-1]
    assert_close(ratio, torch.full_like(ratio, 100 ** (-1 / 5)), rtol=1e-6, atol=0)
    assert_close(torch.atan2(sin, cos)[:, 0], t)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_each_scalar_and_the_label_have_their_own_part(embedding):
    join = ScalarConditions(Conditioning(2, 3, embedding, embedding_features=6)).double()
    given = conditions()
    vector = join(ROWS, **given)
    assert vector is not None
    assert join.dim == 18
    assert join.embed is not None
    assert join.label is not None
    first, second, label = vector.split(6, 1)
    assert_close(first, join.embed(given["c"][:, 0]))
    assert_close(second, join.embed(given["c"][:, 1]))
    assert_close(label, join.label.weight[given["cond"]])


@pytest.mark.parametrize("features", [0, 7])
def test_embeddings_refuse_odd_sizes(features):
    with pytest.raises(ValueError, match="even"):
        FourierEmbedding(features)
    with pytest.raises(ValueError, match="even"):
        PositionalEmbedding(features)


# Initial laws.


@every
def test_building_depends_on_the_generator_alone(case):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = case.build(seed=0, **KNOWN).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (
        case.build(seed=0, **KNOWN).state_dict(),
        case.build(seed=1, **KNOWN).state_dict(),
    )
    for name, value in first.items():
        assert_close(again[name], value, rtol=0, atol=0)
        if value.ndim > 1:  # every weight is drawn
            assert (other[name] - value).abs().max() > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_reinitialising_forgets_everything(scheme):
    """No parameter or buffer of any network escapes ``initialise``."""
    for case in CASES:
        network = case._replace(settings={**case.settings, "init": scheme}).build(**KNOWN, gain=0)
        fresh = copy.deepcopy(network.state_dict())
        with torch.no_grad():
            for name, value in network.state_dict().items():
                if value.is_floating_point() and "frequencies" not in name:
                    value.add_(1)
                elif "num_batches" in name:
                    value.fill_(3)
            for module in network.modules():
                if isinstance(module, FourierEmbedding):
                    module.frequencies.add_(1)
        initialise(network.float(), scheme, generator=rng())
        for name, value in network.state_dict().items():
            assert_close(value.to(fresh[name].dtype), fresh[name], rtol=1e-4, atol=1e-4)


def _moments(values: Tensor, mean: float, std: float, kurtosis: float) -> None:
    """Mean and variance within five standard errors of those of the law."""
    n = values.numel()
    assert abs(values.mean() - mean) < 5 * std / math.sqrt(n)
    error = std**2 * math.sqrt((kurtosis - 1) / n)
    assert abs((values - mean).square().mean() - std**2) < 5 * error


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(50, 400), 50),
        (nn.Conv2d(20, 64, 3), 20 * 9),
        (nn.ConvTranspose2d(64, 20, 4), 20 * 16),
    ],
    ids=["linear", "conv", "transposed"],
)
def test_default_is_the_law_of_pytorch(layer, fan_in):
    bound = 1 / math.sqrt(fan_in)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer.reset_parameters()
    own = layer.weight.detach().abs().max()  # of thousands of draws
    initialise(layer, generator=rng())
    assert_close(own, torch.tensor(bound), rtol=1e-2, atol=0)
    for values in (layer.weight, layer.bias):
        assert values.abs().max() <= bound
        _moments(values.detach(), 0, bound / math.sqrt(3), 9 / 5)


def test_normal_scheme():
    network = initialise(ConvGenerator(32, (1, 32, 32), width=16), "normal0.02", generator=rng())
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.ConvTranspose2d, nn.Conv2d)):
            _moments(module.weight.detach(), 0, 0.02, 3)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            _moments(module.weight.detach(), 1, 0.02, 3)
            assert not module.bias.any()


def test_orthogonal_scheme():
    for layer in (nn.Linear(30, 10), nn.Linear(10, 30), nn.Conv2d(3, 8, 3)):
        matrix = initialise(layer, "orthogonal", generator=rng()).weight.detach().flatten(1)
        gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        assert_close(gram, 1.41**2 * torch.eye(len(gram)), rtol=1e-5, atol=1e-5)
        assert layer.bias is not None
        assert not layer.bias.any()


@pytest.mark.parametrize("scheme", ["normal0.02", "orthogonal"])
def test_only_the_default_leaves_marked_layers_at_zero(scheme):
    for name in ("default", scheme):
        unet = initialise(UNet((1, 8, 8), channels=8), name, generator=rng())
        marked = [m for m in unet.modules() if isinstance(m, ZeroInit)]
        assert marked
        for module in marked:
            assert isinstance(module, (nn.Linear, nn.Conv2d))
            assert bool(module.weight.any()) == (name != "default")


def test_initialise_refuses_what_it_does_not_know():
    with pytest.raises(TypeError, match="PReLU"):
        initialise(nn.PReLU(), generator=rng())
    with pytest.raises(ValueError, match="init must be one of"):
        initialise(nn.Linear(1, 1), "kaiming", generator=rng())


# Settings.


def test_settings_and_signatures_have_the_same_options():
    options = {field.name for field in fields(NetworkSettings)} - {"kind", "init"}
    given = {"shape", "latent", "in_shape", "out_shape", "scalars", "classes"}
    given |= {"strides", "groups", "late"}  # of a kind
    taken = set()
    for roles in NETWORKS.values():
        for network in roles.values():
            names = set(inspect.signature(network).parameters) - {"conditions"}
            names |= {field.name for field in fields(Conditioning)}
            assert names <= options | given
            taken |= names
    assert options <= taken


def test_none_is_the_default_of_the_class():
    built = build_network(
        NetworkSettings("small"), "logit", shape=(1, 8, 8), scalars=1, generator=rng()
    )
    same = ConvDiscriminator(
        (1, 8, 8), width=32, strides=(1, 2, 2), norm="none", conditions=Conditioning(1)
    )
    initialise(same, generator=rng())
    for name, value in same.state_dict().items():
        assert_close(built.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "role", "shape", "message"),
    [
        ({"kind": "mpl"}, "logit", (2,), "did you mean 'mlp'"),
        (
            {"kind": "unet"},
            "logit",
            (1, 8, 8),
            "kinds that can: mlp, small, dcgan, resnet, fastgan, r3gan",
        ),
        ({"kind": "small"}, "denoiser", (1, 8, 8), "kinds that can: mlp, unet"),
        ({"kind": "unet", "norm": "batch"}, "denoiser", (1, 8, 8), "'norm' does not apply"),
        ({"kind": "mlp", "norm": "batch"}, "logit", (2,), "none or spectral"),
        ({"kind": "unet", "width": 8}, "denoiser", (1, 8, 8), "'width' does not apply"),
        ({"kind": "small", "dropout": 0.1}, "logit", (1, 8, 8), "'dropout' does not apply"),
        ({"kind": "dcgan", "final_activation": "tanh"}, "logit", (1, 32, 32), "does not apply"),
        ({"kind": "mlp", "activation": "leakyrelu"}, "logit", (2,), "mean 'leaky_relu'"),
        ({"kind": "mlp", "embedding": "furier"}, "logit", (2,), "mean 'fourier'"),
        ({"kind": "mlp", "init": "ortogonal"}, "logit", (2,), "mean 'orthogonal'"),
        ({"kind": "small", "norm": "bach"}, "logit", (1, 8, 8), "mean 'batch'"),
        ({"kind": "mlp", "width": 0}, "logit", (2,), "width of .* of at least 1"),
        ({"kind": "mlp", "depth": -1}, "logit", (2,), "depth of .* of at least 1"),
        ({"kind": "mlp", "embedding_features": 7}, "logit", (2,), "even"),
        ({"kind": "mlp", "fourier_scale": 0.0}, "logit", (2,), "above 0"),
        ({"kind": "unet", "fourier_scale": 1.0}, "denoiser", (1, 8, 8), "'positional'"),
        ({"kind": "unet", "dropout": 1.0}, "denoiser", (1, 8, 8), r"in \[0, 1\)"),
        ({"kind": "unet", "multipliers": ()}, "denoiser", (1, 8, 8), "at least 1"),
        ({"kind": "unet", "blocks": 0}, "denoiser", (1, 8, 8), "blocks of"),
        ({"kind": "unet", "channels": 0}, "denoiser", (1, 8, 8), "channels of"),
        ({"kind": "unet", "attention_resolutions": (0,)}, "denoiser", (1, 8, 8), "at least 1"),
        ({"kind": "unet"}, "denoiser", (1, 10, 10), "divisible by 4"),
        ({"kind": "edm2"}, "denoiser", (1, 12, 12), "divisible by 8 for 4 multipliers"),
        ({"kind": "edm2", "norm": "batch"}, "denoiser", (1, 16, 16), "'norm' does not apply"),
        ({"kind": "r3gan"}, "denoiser", (1, 16, 16), "'r3gan' cannot be a denoiser"),
        ({"kind": "r3gan", "norm": "batch"}, "logit", (1, 16, 16), "'norm' does not apply"),
        ({"kind": "small"}, "generator", (1, 10, 8), "divisible by 4"),
        ({"kind": "dcgan"}, "logit", (1, 8, 8), "sizes 16x16, 32x32, 64x64"),
        ({"kind": "dcgan"}, "generator", (1, 28, 28), "sizes 16x16, 32x32, 64x64"),
        ({"kind": "unet"}, "denoiser", (2,), r"images of shape \(C, H, W\)"),
        ({"kind": "small"}, "logit", (64,), r"images of shape \(C, H, W\)"),
    ],
)
def test_settings_that_cannot_work(settings, role, shape, message):
    with pytest.raises(ConfigError, match=message):
        build_network(NetworkSettings(**settings), role, shape=shape, latent=4, generator=rng())


def test_a_generator_needs_latents():
    with pytest.raises(ConfigError, match="at least 1"):
        build_network(NetworkSettings("mlp"), "generator", shape=(2,), latent=0, generator=rng())
    with pytest.raises(ValueError, match="latents"):
        build_network(NetworkSettings("mlp"), "generator", shape=(2,), generator=rng())


def test_a_bank_asks_each_row_of_its_own_network():
    networks = [build_network(
        NetworkSettings("mlp", width=4, depth=1), "logit", shape=(2,), generator=rng(k)
    ).double() for k in range(4)]  # fmt: skip
    bank = Bank(networks)
    x = torch.randn(9, 2, generator=rng(), dtype=torch.float64)
    c = torch.tensor([0.0, 0.24, 0.25, 0.5, 0.74, 0.75, 0.99, 1.0, 0.5], dtype=torch.float64)
    chosen = [0, 0, 1, 2, 2, 3, 3, 3, 2]
    expected = torch.stack([networks[k](row[None])[0] for k, row in zip(chosen, x, strict=True)])
    assert_close(bank(x, c[:, None]), expected)
    assert_close(bank(x, c[3:4, None]), networks[2](x))
    nodes = torch.arange(4, dtype=torch.float32) / 4 * 0.9999999  # rounded nodes stay their own
    assert_close(bank(x[:4], nodes[:, None]), torch.stack([
        networks[k](x[k : k + 1])[0] for k in range(4)
    ]))  # fmt: skip
    bank(x, c[:, None]).sum().backward()
    assert all(p.grad is not None for p in bank.parameters())
    with pytest.raises(ValueError, match="condition"):
        bank(x)
