"""DDPM's networks as denoisers, and those of diffusers read from a folder.

A network of a variance-preserving chain sees x̃ = √ᾱ_t x₀ + √(1-ᾱ_t) ε at a step t and predicts ε, x₀
or v = √ᾱ ε - √(1-ᾱ) x₀. As x = x̃/√ᾱ_t has noise of level σ_t = √((1-ᾱ_t)/ᾱ_t) and √ᾱ_t =
1/√(1+σ_t²), it is a preconditioned denoiser D(x; σ) with σ_d = 1 (Karras et al. 2022, Table 1).
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from partikel.denoising import EDMDenoiser
from partikel.errors import CheckpointError, ConfigError
from partikel.tensors import expand_like

Prediction = Literal["epsilon", "v_prediction", "sample"]
"""What a network predicts, as diffusers calls it: ε, v or x₀."""


class DDPMDenoiser(EDMDenoiser):
    """D(x; σ) = x - σ ε(x/√(1+σ²), t(σ)), or the like for predictions of v and x₀.

    t(σ) inverts σ_t. Between two steps of the chain it is interpolated in log σ, which is much more
    accurate than the nearest step: the network's level and the caller's stay the same. Below σ_0 and
    above σ_{T-1} it stays at the chain's ends.

    Args:
        network: called as ``network(x̃, t, cond)`` with t (B, 1) or (1, 1), real numbers in [0, T-1].
        alphas_cumprod: (T,) ᾱ_t, falling.
        prediction: what the network predicts.
    """

    levels: Tensor

    def __init__(
        self, network: nn.Module, alphas_cumprod: Tensor, prediction: Prediction = "epsilon"
    ) -> None:
        super().__init__(network, sigma_data=1.0)
        if prediction not in get_args(Prediction):
            raise ConfigError(
                f"a network that predicts '{prediction}' is not known here: it must predict "
                f"{', '.join(get_args(Prediction))}."
            )
        self.prediction: Prediction = prediction
        kept = alphas_cumprod[alphas_cumprod > 0].double()  # a chain may end at σ = ∞
        levels = ((1 - kept) / kept).log() / 2
        if len(levels) < 2 or not (levels.isfinite().all() and (levels.diff() > 0).all()):
            raise ConfigError("the noise of a DDPM chain must grow from a level above 0.")
        # not saved: it comes with the network
        self.register_buffer("levels", levels.to(alphas_cumprod.dtype), persistent=False)

    def step(self, sigma: Tensor) -> Tensor:
        """t(σ), real, in [0, T-1]; shaped like ``sigma``."""
        level = sigma.log().to(self.levels.dtype)
        above = torch.searchsorted(self.levels, level.contiguous()).clamp(1, len(self.levels) - 1)
        low, high = self.levels[above - 1], self.levels[above]
        share = ((level - low) / (high - low)).clamp(0, 1)
        return (above - 1) + share

    def forward(
        self, x: Tensor, sigma: Tensor, t: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """Denoise; see :meth:`EDMDenoiser.forward`."""
        level = expand_like(sigma, x)
        scale = (level**2 + 1).rsqrt()
        step = self.step(torch.atleast_1d(sigma)).to(x.dtype)
        out = self.network(x * scale, step[:, None], cond)
        if self.prediction == "epsilon":
            return x - level * out
        if self.prediction == "v_prediction":
            return scale**2 * x - level * scale * out
        return out


class _UNet(nn.Module):
    """A diffusers UNet2DModel that is called as our networks are."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.unet(x, c[:, 0], class_labels=cond).sample


def load_diffusers(
    path: Path | str, shape: tuple[int, ...], classes: int | None = None
) -> DDPMDenoiser:
    """The denoiser in a local folder that diffusers wrote: a UNet2DModel and its scheduler.

    The folder is a pipeline's (``unet/`` and ``scheduler/`` in it) or holds the network's files and
    ``scheduler_config.json`` side by side. Weights are read from safetensors files only, no code of
    the folder is run, and nothing is downloaded.

    Args:
        path: the folder.
        shape: (C, H, W) of the images.
        classes: number of labels that the network is asked for, or None.

    Returns:
        The denoiser, in evaluation mode, in torch's default dtype.

    Raises:
        ConfigError: if diffusers is not installed, or the network is not for such images or not of a
            kind that can be adapted.
        CheckpointError: if files are missing or damaged, or weights are no safetensors.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}: data_score names a local folder.")
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _read(home / "config.json")
    places = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    chain = _read(next((place for place in places if place.is_file()), places[-1]))
    _check(config, shape, classes, home)
    if not any(home.glob("*.safetensors")):
        raise CheckpointError(
            f"{home} has no weights as safetensors, and others (pickles) are not read: save the "
            "network again with save_pretrained(..., safe_serialization=True)."
        )
    try:
        diffusers: Any = import_module("diffusers")
    except ImportError as error:
        raise ConfigError(
            "networks of diffusers need the package: pip install 'partikel[diffusers]'."
        ) from error
    try:
        with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
            unet, report = diffusers.UNet2DModel.from_pretrained(
                str(home),
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=torch.get_default_dtype(),
                output_loading_info=True,
            )
        scheduler = diffusers.DDPMScheduler.from_config(chain)
    except Exception as error:  # diffusers, safetensors and json raise many kinds
        reason = " ".join(str(error).split()).split(". ")[0]
        raise CheckpointError(
            f"{home} cannot be read as a UNet2DModel ({reason}): download or save it again."
        ) from error
    missing = [*report["missing_keys"], *report["unexpected_keys"]]
    if missing:
        raise CheckpointError(
            f"the weights in {home} are not those of its config.json: '{missing[0]}' "
            f"({len(missing)} in all) is missing or unknown; download or save it again."
        )
    prediction = chain.get("prediction_type", "epsilon")
    return DDPMDenoiser(_UNet(unet), scheduler.alphas_cumprod, prediction).eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is missing or no JSON: name a folder that diffusers' save_pretrained wrote."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no settings: name a folder that diffusers wrote.")
    return content


def _check(config: dict[str, Any], shape: tuple[int, ...], classes: int | None, home: Path) -> None:
    """Refuse networks that are not for such images, or cannot be asked between steps."""
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise ConfigError(f"{home} holds a {kind}: only a UNet2DModel can give the data's score.")
    if config.get("time_embedding_type", "positional") != "positional":
        raise ConfigError(
            f"the network in {home} embeds time as '{config['time_embedding_type']}': only a "
            "'positional' embedding can be asked between steps."
        )
    if config.get("class_embed_type") is not None:
        raise ConfigError(
            f"the network in {home} embeds labels as '{config['class_embed_type']}': only tables "
            "(num_class_embeds) can be asked for labels."
        )
    channels = config.get("in_channels", 3), config.get("out_channels", 3)
    size = config.get("sample_size")
    sides = (size, size) if isinstance(size, int) else size
    fits = len(shape) == 3 and channels == (shape[0], shape[0])
    if not fits or (sides is not None and tuple(sides) != shape[1:]):
        raise ConfigError(
            f"the network in {home} maps {channels[0]} to {channels[1]} channels at size {size}, "
            f"the data have the shape {tuple(shape)}: choose data that it was trained on."
        )
    known = config.get("num_class_embeds")
    if (known is None) != (classes is None) or (known or 0) < (classes or 0):
        raise ConfigError(
            f"the network in {home} knows {known or 'no'} labels, the model has {classes or 'none'}: "
            "set conditional to what the network is."
        )
