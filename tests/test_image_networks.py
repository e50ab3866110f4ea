"""Laws of the image networks by size and layout; ``test_networks.py`` has those of every network."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import randn, seeded
from partikel.errors import ConfigError
from partikel.networks import (
    Conditioning,
    ConvDiscriminator,
    ConvGenerator,
    DiT,
    EDM2UNet,
    FastGANDiscriminator,
    FastGANGenerator,
    NetworkSettings,
    R3GANDiscriminator,
    R3GANGenerator,
    ResNetDiscriminator,
    ResNetGenerator,
    Role,
    UNet,
    build_network,
    initialise,
)
from partikel.networks.conv import NORMS, SIDES, Stage
from partikel.networks.fastgan import SkipLayerExcitation, _DownBlock, _UpBlock
from partikel.networks.initialise import SCHEMES, Gain
from partikel.networks.resnet import SelfAttention

LATENT = 6
PAIRS = ("dcgan", "resnet", "fastgan")
NETWORKS: list[tuple[str, Role]] = [
    *((kind, role) for kind in (*PAIRS, "r3gan") for role in ("logit", "generator")),
    ("unet", "denoiser"),
    ("dit", "denoiser"),
    ("edm2", "denoiser"),
]
NORMLESS = ("r3gan", "unet", "dit", "edm2")
SMALL: dict[str, dict[str, Any]] = {
    "dcgan": {"width": 2},
    "resnet": {"width": 2},
    "fastgan": {"width": 2},
    "unet": {"channels": 4},
    "dit": {"width": 8, "depth": 2},
    "edm2": {"channels": 4, "blocks": 1},
    "r3gan": {"width": 8, "blocks": 1},
}
every = pytest.mark.parametrize(("kind", "role"), NETWORKS)


def build(kind: str, role: Role, side: int, channels: int = 1, **options: Any) -> nn.Module:
    """A narrow network; ``scalars`` and ``classes`` are conditions, all else are settings."""
    conditions = {name: options.pop(name) for name in ("scalars", "classes") if name in options}
    return build_network(
        NetworkSettings(kind, **{**SMALL[kind], "embedding_features": 8, **options}),
        role,
        shape=(channels, side, side),
        latent=LATENT,
        generator=seeded(),
        **conditions,
    )


def gains_on(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, Gain):
            nn.init.ones_(module.weight)


def inputs(role: Role, rows: int, side: int, channels: int = 1) -> Tensor:
    return randn(rows, *((LATENT,) if role == "generator" else (channels, side, side)), seed=3)


def shape(role: Role, rows: int, side: int, channels: int = 1) -> tuple[int, ...]:
    return (rows,) if role == "logit" else (rows, channels, side, side)


# Sizes.


@every
@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_and_colour(kind, role, side, channels):
    network = build(kind, role, side, channels, scalars=1, classes=2)
    out = network(
        inputs(role, 2, side, channels).float(), torch.full((2, 1), 0.3), torch.tensor([0, 1])
    )
    assert out.shape == shape(role, 2, side, channels)
    assert out.isfinite().all()


@every
@pytest.mark.parametrize("side", SIDES)
def test_sizes_to_256_with_the_widths_of_the_papers(kind, role, side):
    classes = {
        "dcgan": {"logit": ConvDiscriminator, "generator": ConvGenerator},
        "resnet": {"logit": ResNetDiscriminator, "generator": ResNetGenerator},
        "fastgan": {"logit": FastGANDiscriminator, "generator": FastGANGenerator},
        "unet": {"denoiser": UNet},
        "dit": {"denoiser": DiT},
        "edm2": {"denoiser": EDM2UNet},
        "r3gan": {"logit": R3GANDiscriminator, "generator": R3GANGenerator},
    }
    latent = {"latent": 128} if role == "generator" else {}
    c = {"c": torch.zeros(1, 1, device="meta")}
    with torch.device("meta"):
        network = classes[kind][role](shape=(3, side, side), conditions=Conditioning(1), **latent)
        x = torch.empty(2, *((128,) if role == "generator" else (3, side, side)))
        assert network(x, **c).shape == shape(role, 2, side, 3)


@pytest.mark.parametrize(
    ("network", "count", "published"),
    [
        (
            lambda: ResNetDiscriminator(
                (3, 64, 64), norm="none", attention_resolutions=(), conditions=Conditioning(1)
            ),
            22_695_041,
            22.7e6,
        ),
        (lambda: FastGANDiscriminator((3, 64, 64)), 7_157_249, 7.16e6),
        (lambda: FastGANGenerator(128, (3, 64, 64)), 7_056_323, 7.06e6),
    ],
    ids=["flow-resnet", "fastgan-d", "fastgan-g"],
)
def test_parameter_counts_of_the_paper(network, count, published):
    """Table 4 to 7 of the GPM paper, to the last digit that it prints."""
    with torch.device("meta"):
        assert sum(p.numel() for p in network().parameters()) == count
    assert float(f"{count:.3g}") == published


@pytest.mark.parametrize(
    ("side", "channels", "kernels"),
    [
        (16, [1, 2, 4], [3, 4, 4]),
        (32, [1, 2, 4, 8], [3, 4, 4, 4]),
        (64, [1, 2, 4, 8], [4, 4, 4, 4]),
        (128, [1, 2, 4, 8, 8], [4] * 5),
        (256, [1, 2, 4, 8, 8, 8], [4] * 6),
    ],
)
def test_dcgan_ends_at_four_pixels_and_eight_widths(side, channels, kernels):
    with torch.device("meta"):
        down = ConvDiscriminator((3, side, side), width=5, norm="none")
        up = ConvGenerator(7, (3, side, side), width=5, norm="none")
    outs = [5 * channel for channel in channels]
    convs = [m.weight.shape for m in down.modules() if isinstance(m, nn.Conv2d)]
    assert [tuple(s) for s in convs] == [
        (o, i, k, k) for o, i, k in zip(outs, [3, *outs], kernels, strict=False)
    ]
    lasts = [m.weight for m in down.modules() if isinstance(m, nn.Linear)]
    assert [tuple(w.shape) for w in lasts] == [(1, 16 * outs[-1])]
    mirrored = [
        m.weight.shape[:2] if isinstance(m, nn.ConvTranspose2d) else m.weight.shape[1::-1]
        for m in up.modules()
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    assert [tuple(s) for s in mirrored] == [tuple(s[:2]) for s in reversed(convs)]


@pytest.mark.parametrize("kind", [*PAIRS, "r3gan"])
@pytest.mark.parametrize("role", ["logit", "generator"])
@pytest.mark.parametrize("wrong", [(1, 28, 28), (3, 32, 64), (1, 8, 8), (3, 512, 512)])
def test_other_sizes_are_refused_with_those_that_can_be_had(kind, role, wrong):
    able = "16x16, 32x32, 64x64, 128x128, 256x256, not {}x{}".format(*wrong[1:])
    with pytest.raises(ConfigError, match=able):
        build_network(NetworkSettings(kind), role, shape=wrong, latent=4, generator=seeded())


# At initialisation.


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("role", ["logit", "generator"])
@pytest.mark.parametrize("init", SCHEMES)
@pytest.mark.parametrize("norm", ["batch", "group", "spectral+batch"])
def test_normalised_networks_start_of_order_one(kind, role, init, norm):
    free = {"final_activation": "identity"} if role == "generator" else {}
    network = build(kind, role, 32, 3, width=4, init=init, norm=norm, **free)
    size = network(inputs(role, 16, 32, 3).float()).square().mean().sqrt()
    assert 0.03 < size < 30


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_where_they_are_asked(kind, norm):
    for role in ("logit", "generator"):
        kinds = {type(m) for m in build(kind, role, 16, norm=norm).modules()}
        assert (nn.BatchNorm2d in kinds) == ("batch" in norm)
        assert (nn.GroupNorm in kinds) == (norm == "group")
        weights = [
            m
            for m in build(kind, role, 16, norm=norm).modules()
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
        ]
        spectral = {nn.utils.parametrize.is_parametrized(m, "weight") for m in weights}
        assert spectral == {"spectral" in norm}


# Self-attention.


def attention(norm: str = "none") -> SelfAttention:
    return initialise(SelfAttention(16, norm), "orthogonal", generator=seeded()).double()


@pytest.mark.parametrize("init", SCHEMES)
def test_attention_starts_as_the_identity_and_can_leave_it(init):
    layer = initialise(SelfAttention(16, "spectral"), init, generator=seeded()).double()
    x = randn(2, 16, 3, 5)
    out = layer(x)
    assert_close(out, x, rtol=0, atol=0)
    (slope,) = torch.autograd.grad(out.square().sum(), [layer.gain.weight])
    assert slope.abs() > 1e-9


def test_attention_is_the_softmax_mean_of_the_papers():
    """y_j = x_j + γ W_v Σ_i β_ji W_h x_i with β_ji ∝ exp⟨W_f x_i, W_g x_j⟩, pixel by pixel."""
    layer = attention()
    nn.init.constant_(layer.gain.weight, 0.7)
    assert [p.shape[0] for p in (layer.keys.weight, layer.out.weight)] == [2, 16]
    x = randn(2, 16, 2, 3)
    f, g, h, v = (
        m.weight[:, :, 0, 0] for m in (layer.keys, layer.queries, layer.values, layer.out)
    )
    expected = x.flatten(2).clone()
    for b, image in enumerate(x.flatten(2)):
        for j in range(6):
            energies = torch.stack([(f @ image[:, i]) @ (g @ image[:, j]) for i in range(6)])
            weights = energies.exp() / energies.exp().sum()
            mean = torch.stack([weights[i] * (h @ image[:, i]) for i in range(6)]).sum(0)
            expected[b, :, j] += 0.7 * (v @ mean)
    assert_close(layer(x), expected.view_as(x))


def test_attention_does_not_know_the_order_of_pixels():
    layer = attention("spectral").eval()
    nn.init.ones_(layer.gain.weight)
    x = randn(2, 16, 4, 4)
    order = torch.randperm(16, generator=seeded())

    def shuffled(images: Tensor) -> Tensor:
        return images.flatten(2)[:, :, order].view_as(images)

    assert_close(layer(shuffled(x)), shuffled(layer(x)))


@pytest.mark.parametrize("role", ["logit", "generator"])
def test_resnet_attends_where_asked(role):
    def heights(side: int, *asked: int) -> list[int]:
        network, seen = build("resnet", role, side, norm="none", attention_resolutions=asked), []
        for module in network.modules():
            if isinstance(module, SelfAttention):
                module.register_forward_hook(lambda _, args, out: seen.append(out.shape[-1]))
        network(inputs(role, 1, side).float())
        return sorted(seen)

    assert heights(64) == []
    assert heights(64, 32) == [32]
    assert heights(64, 8, 16, 7) == [8, 16]
    assert heights(16, 32) == []
    # Two blocks of the discriminator end at 4x4, none of the generator.
    assert heights(16, 4) == ([4, 4] if role == "logit" else [])


@pytest.mark.parametrize("role", ["logit", "generator"])
def test_attention_at_the_start_leaves_the_network_as_it_is(role):
    attending = build("resnet", role, 32, norm="batch", attention_resolutions=(16,)).eval()
    plain = build("resnet", role, 32, norm="batch", attention_resolutions=()).eval()
    extra = plain.load_state_dict(attending.state_dict(), strict=False)
    assert not extra.missing_keys
    assert extra.unexpected_keys
    x = inputs(role, 2, 32).float()
    before = plain(x)
    assert_close(attending(x), before, rtol=0, atol=0)
    gains_on(attending)
    assert (attending(x) - before).abs().max() > 1e-6


# FastGAN.


@pytest.mark.parametrize("side", [4, 8, 32])
def test_skip_layer_excitation_scales_channels(side):
    layer = initialise(
        SkipLayerExcitation(3, 5, side, "none"), "orthogonal", generator=seeded()
    ).double()
    h, source = randn(2, 5, 6, 6), randn(2, 3, side, side, seed=1)
    out = layer(h, source)
    factors = out / h
    assert_close(factors, factors[..., :1, :1].expand_as(factors))
    pooled = source.unflatten(3, (4, -1)).unflatten(2, (4, -1)).mean((3, 5))
    squeezed = torch.einsum("oihw,bihw->bo", layer.squeeze.weight, pooled)
    squeezed = torch.where(squeezed > 0, squeezed, 0.2 * squeezed)
    gates = (squeezed @ layer.excite.weight[:, :, 0, 0].T).sigmoid()
    assert_close(factors[..., 0, 0], gates)
    # A source that says nothing halves.
    assert_close(layer(h, torch.zeros_like(source)), h / 2)


def test_generator_blocks_are_gated():
    network = build("fastgan", "generator", 16, norm="none", init="orthogonal").double()
    block = network.get_submodule("blocks.0")
    assert isinstance(block, _UpBlock)
    x = randn(2, 32, 4, 4)
    h = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for stage in block.stages:
        assert isinstance(stage, Stage)
        a, b = stage.layer(h).chunk(2, 1)
        h = a * torch.sigmoid(b)
    assert len(block.stages) == 2
    assert_close(block(x, None), h)


def test_discriminator_blocks_are_means_of_two_paths():
    network = build("fastgan", "logit", 16, norm="none", init="orthogonal").double()
    block = network.get_submodule("blocks.0")
    assert isinstance(block, _DownBlock)
    x = randn(2, 8, 16, 16)
    both = 2 * block(x, None)
    pooled = x.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5))
    direct = nn.functional.leaky_relu(block.direct.layer(pooled), 0.2)
    main = x
    for stage in block.main:
        assert isinstance(stage, Stage)
        main = nn.functional.leaky_relu(stage.layer(main), 0.2)
    assert_close(both, main + direct)


@pytest.mark.parametrize(
    ("side", "down", "up"),
    [
        (16, {4: 8}, {16: 4}),
        (32, {4: 16}, {32: 4}),
        (64, {4: 32}, {64: 4}),
        (128, {8: 64, 4: 32}, {64: 4, 128: 8}),
        (256, {16: 128, 8: 64, 4: 32}, {64: 4, 128: 8, 256: 16}),
    ],
)
def test_fastgan_excites_across_scales(side, down, up):
    """Which features excite which, as the shapes that the layers see tell."""

    def sizes(role: Role) -> dict[int, int]:
        network, seen = build("fastgan", role, side, width=1, norm="none"), {}
        for module in network.modules():
            if isinstance(module, SkipLayerExcitation):
                module.register_forward_hook(
                    lambda _, args, out: seen.update({args[0].shape[-1]: args[1].shape[-1]})
                )
        network(inputs(role, 1, side).float())
        return seen

    assert sizes("logit") == down
    assert sizes("generator") == up


# Derivatives.


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives_in_x(kind, norm):
    """uᵀ(∂²/∂x²)w by double backward against central differences of the input gradient."""
    attend: dict[str, Any] = {"attention_resolutions": (8,)} if kind == "resnet" else {}
    network = build(
        kind, "logit", 16, 2, activation="silu", norm=norm, init="orthogonal", scalars=1, **attend
    ).double()
    # One power iteration per forward would make spectral normalisation a moving target.
    network.train("spectral" not in norm)
    for module in network.modules():
        if isinstance(module, Gain):
            nn.init.constant_(module.weight, 0.5)
    x, u, w = (randn(3, 2, 16, 16, seed=seed) for seed in (1, 2, 3))
    c = randn(3, 1, seed=4)

    def slope(points: Tensor) -> tuple[Tensor, Tensor]:
        """wᵀ∇(u·∇ Σ d²), and u·∇ Σ d²."""
        points = points.detach().requires_grad_()
        logits = network(points, c).square().sum()
        (gradient,) = torch.autograd.grad(logits, points, create_graph=True)
        along = (gradient * u).sum()
        return (torch.autograd.grad(along, points)[0] * w).sum(), along.detach()

    step = 1e-5
    expected = (slope(x + step * w)[1] - slope(x - step * w)[1]) / (2 * step)
    assert expected.abs() > 1e-8
    assert_close(slope(x)[0], expected, rtol=1e-4, atol=1e-9)


# Compilation and layout.


def with_norms(*norms: str, quick: Collection[str] | None = None) -> pytest.MarkDecorator:
    """Every network, under each of the norms if it has a choice; slow, but for ``quick`` ids."""
    cases = [
        (kind, role, {} if kind in NORMLESS else {"norm": norm})
        for kind, role in NETWORKS
        for norm in (norms if kind not in NORMLESS else ("",))
    ]
    ids = [f"{kind}-{role}-{options.get('norm')}" for kind, role, options in cases]
    marked = [
        pytest.param(
            *case, id=name, marks=[] if quick is None or name in quick else pytest.mark.slow
        )
        for case, name in zip(cases, ids, strict=True)
    ]
    return pytest.mark.parametrize(("kind", "role", "options"), marked)


@with_norms("batch", "spectral", quick=("dcgan-logit-spectral", "dcgan-generator-batch"))
def test_compiles_as_one_graph(kind, role, options):
    """The same outputs, gradients and (in training) running statistics as without compilation."""
    attend: dict[str, Any] = {"attention_resolutions": (8,)} if kind == "resnet" else {}
    network = build(kind, role, 16, init="orthogonal", scalars=1, classes=2, **options, **attend)
    gains_on(network)
    twin = copy.deepcopy(network)
    torch.compiler.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = inputs(role, 2, 16).float().requires_grad_()
    given = {"c": torch.tensor([[0.2], [0.7]]), "cond": torch.tensor([1, 0])}
    results = []
    for f in (network, compiled):
        out = f(x, **given)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for eager, graph in zip(*results, strict=True):
        assert_close(graph, eager)
    assert_close(dict(twin.named_buffers()), dict(network.named_buffers()))


def channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@with_norms("none", "batch", "group", "spectral")
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_gives_the_same_values(kind, role, options, channels):
    attend: dict[str, Any] = {"attention_resolutions": (16,)} if kind == "resnet" else {}
    network = build(
        kind, role, 32, channels, init="orthogonal", scalars=1, **options, **attend
    ).double()
    gains_on(network.eval())
    x, c = inputs(role, 2, 32, channels), randn(1, 1)
    expected = network(x, c)
    if role != "generator":
        x = x.to(memory_format=torch.channels_last)
    out = channels_last(network)(x, c)
    assert_close(out, expected)
    if role != "logit" and kind != "dit":  # which ends in a shuffle of pixels
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", PAIRS)
def test_features_stay_channels_last(kind):
    """No layer falls back to the other layout, which would cost a copy at each convolution."""
    network = channels_last(build(kind, "logit", 32, 3, norm="batch", scalars=1))
    kept = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept.append(args[0].is_contiguous(memory_format=torch.channels_last))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(note)
    x = inputs("logit", 2, 32, 3).float().to(memory_format=torch.channels_last)
    network(x, torch.zeros(1, 1))
    assert len(kept) > 3
    assert all(kept)


@pytest.mark.parametrize("kind", [UNet, EDM2UNet])
def test_recomputed_blocks_have_the_same_gradients(kind: type[UNet | EDM2UNet]) -> None:
    """With dropout, whose masks have to be drawn alike both times."""
    made = [
        kind((1, 16, 16), channels=8, blocks=1, dropout=0.5, recompute=recompute)
        for recompute in (False, True)
    ]
    made[1].load_state_dict(made[0].state_dict())
    x, c = randn(3, 1, 16, 16).float(), randn(3, 1).float()
    gradients = []
    for network in made:
        torch.nn.init.ones_(network.last.weight)
        gains_on(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network(x, c).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert_close(gradients[0], gradients[1])
