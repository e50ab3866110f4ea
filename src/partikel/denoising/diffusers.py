"""Networks of other libraries as denoisers: DDPM's, EDM's, VE's, flow matching's, from diffusers' folders.

EDMs of ours go the other way, into the folder of a pipeline (:func:`save_diffusers`).

A network of a variance-preserving chain sees x̃ = √ᾱ_t x₀ + √(1-ᾱ_t) ε at a step t and predicts ε, x₀
or v = √ᾱ ε - √(1-ᾱ) x₀. As x = x̃/√ᾱ_t has noise of level σ_t = √((1-ᾱ_t)/ᾱ_t) and √ᾱ_t =
1/√(1+σ_t²), it is a preconditioned denoiser D(x; σ) with σ_d = 1 (Karras et al. 2022, Table 1). What
else a network is asked and predicts is written in the class of its scheduler: EDM's preconditioning with
its σ_d, the score of a VE process, or the velocity of the linear path. Each is a D(x; σ) too; classes that
are not known are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from partikel.denoising import EDMDenoiser, VelocityDenoiser, denoiser_from_score
from partikel.errors import ConfigError
from partikel.networks.foreign import EDM, FLOW, VE, as_unet2d, read_diffusers, the_package
from partikel.schedules import LinearSchedule
from partikel.tensors import columns, expand_like

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
        out = self.network(x * scale, columns(self.step(sigma).to(x.dtype)), cond)
        if self.prediction == "epsilon":
            return x - level * out
        if self.prediction == "v_prediction":
            return scale**2 * x - level * scale * out
        return out


class VEDenoiser(EDMDenoiser):
    """D(x; σ) = x + σ² s(x, σ) of a network of the score itself, as Song et al. 2021 train it.

    Args:
        network: called as ``network(x, σ, cond)`` with σ (B, 1) or (1, 1).
        sigma_data: not used.
    """

    def forward(
        self, x: Tensor, sigma: Tensor, t: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        """Denoise; see :meth:`EDMDenoiser.forward`."""
        score = self.network(x, columns(sigma.to(x.dtype)), cond)
        return denoiser_from_score(score, x, sigma)


class _Negated(nn.Module):
    """-F: EDM's networks of "v", whose c_out has the other sign."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return -self.network(x, c, cond)


class _FromDataToNoise(nn.Module):
    """v(x, t) of a network of d(x)/dσ on (1-σ) x_1 + σ ε, which is told σ in steps of its training."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return -self.network(x, (1 - c) * self.steps, cond)


def load_diffusers(
    path: Path | str, shape: tuple[int, ...], classes: int | None = None
) -> EDMDenoiser:
    """The denoiser in a local folder that diffusers wrote: a UNet2DModel and its scheduler.

    The folder is a pipeline's (``unet/`` and ``scheduler/`` in it) or holds the network's files and
    ``scheduler_config.json`` side by side. The scheduler's class says what the network predicts (see
    :mod:`partikel.networks.foreign`; DDPM's where it names none); others are refused by name.
    Weights are read from safetensors files only, no code of the folder is run, and nothing is downloaded.

    Args:
        path: the folder.
        shape: (C, H, W) of the images.
        classes: number of labels that the network is asked for, or None.

    Returns:
        The denoiser, in evaluation mode, in torch's default dtype.

    Raises:
        ConfigError: if diffusers is not installed, or the network is not for such images, or it or its
            scheduler is of a kind that cannot be adapted.
        CheckpointError: if files are missing or damaged, or weights are no safetensors.
    """
    network, kind, prediction, scheduler = read_diffusers(path, shape, classes)
    if kind in VE:
        return VEDenoiser(network).eval()
    if kind in FLOW:
        steps = int(scheduler.config.num_train_timesteps)
        return VelocityDenoiser(_FromDataToNoise(network, steps), LinearSchedule()).eval()
    if kind in EDM:
        network = network if prediction == "epsilon" else _Negated(network)
        return EDMDenoiser(network, float(scheduler.config.sigma_data)).eval()
    return DDPMDenoiser(network, scheduler.alphas_cumprod, prediction).eval()


def save_diffusers(
    denoiser: EDMDenoiser,
    path: Path | str,
    shape: tuple[int, ...],
    *,
    sigma_min: float,
    sigma_max: float,
    rho: float,
    solver: str,
) -> str:
    """Write a denoiser as the folder of a pipeline of diffusers: a UNet2DModel and a scheduler of EDM's.

    The pipeline is the one of diffusers that scales noise and inputs as a scheduler asks, that of
    consistency models. :func:`load_diffusers` reads the folder back.

    Args:
        denoiser: of a U-Net that is a UNet2DModel.
        path: the folder.
        shape: (C, H, W) of the images.
        sigma_min: lowest level of Karras's nodes.
        sigma_max: highest.
        rho: their exponent.
        solver: "euler" and "ddim" become Euler's, others DPM-Solver++(2M), as diffusers has no Heun and no
            UniPC for EDMs.

    Returns:
        The scheduler's class.

    Raises:
        ConfigError: if diffusers is not installed, or it has no such network, with what differs.
    """
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ConfigError(
            "pipelines of diffusers make square images only: export it as partikel's."
        )
    kind = EDM[solver not in ("euler", "ddim")]
    unet, diffusers = as_unet2d(denoiser.network, shape[1]), the_package()
    scheduler = getattr(diffusers, kind)(
        sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=denoiser.sigma_data, rho=rho
    )
    pipeline = diffusers.ConsistencyModelPipeline(unet, scheduler)
    pipeline.save_pretrained(path, safe_serialization=True)
    return kind
