"""Networks of other libraries: a UNet2DModel of diffusers, read from a folder, or made of a U-Net of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from partikel.errors import CheckpointError, ConfigError, optional
from partikel.files import TEXT, read_plain, reading
from partikel.networks.unet import Attention, Resample, UNet, not_unet2d

_CHAINS = (
    *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "PNDM", "LMSDiscrete", "HeunDiscrete"),
    *("EulerDiscrete", "EulerAncestralDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
    *("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep"),
)
CHAINS = tuple(f"{name}Scheduler" for name in _CHAINS)
"""Schedulers of diffusers that sample from networks of a variance-preserving chain."""

EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
"""Those of networks with EDM's preconditioning."""

VE = ("ScoreSdeVeScheduler",)
"""Those of scores of a VE process."""


FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""Those of velocities of the linear path, from data to noise."""


class Foreign(NamedTuple):
    """A network, and what its scheduler says of it.

    Attributes:
        network: called as ``network(x, c, cond)``, c (B, 1) or (1, 1) being the time that it is told.
        kind: class of its scheduler, of :data:`CHAINS`, :data:`EDM`, :data:`VE` or :data:`FLOW`.
        prediction: what it predicts, as diffusers calls it.
        scheduler: the scheduler.
    """

    network: nn.Module
    kind: str
    prediction: Any
    scheduler: Any


class _UNet(nn.Module):
    """A diffusers UNet2DModel that is called as our networks are; a label after the last is none."""

    def __init__(self, unet: Any, classes: int | None) -> None:
        super().__init__()
        self.unet = unet
        self.none = classes if (unet.config.num_class_embeds or 0) > (classes or 0) else None

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None and self.none is not None:
            cond = torch.full((len(x),), self.none, device=x.device)
        return self.unet(x, c[:, 0].expand(len(x)), class_labels=cond).sample


def read_diffusers(path: Path | str, shape: tuple[int, ...], classes: int | None) -> Foreign:
    """What is in a local folder of diffusers, see :func:`~partikel.denoising.diffusers.load_diffusers`.

    Raises:
        ConfigError: if diffusers is not installed, or the network is not for such images, or it or its
            scheduler is of a kind that cannot be adapted.
        CheckpointError: if files are missing or damaged, or weights are no safetensors.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}: data_score names a local folder.")
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _read(home / "config.json")
    places = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    place = next((place for place in places if place.is_file()), places[-1])
    chain = _read(place)
    kind = _known(chain, place)
    _check(config, shape, classes, home, of_score=kind in VE)
    if not any(home.glob("*.safetensors")):
        raise CheckpointError(
            f"{home} has no weights as safetensors, and others (pickles) are not read: save the "
            "network again with save_pretrained(..., safe_serialization=True)."
        )
    diffusers = the_package()
    try:
        with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
            unet, report = diffusers.UNet2DModel.from_pretrained(
                str(home),
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=torch.get_default_dtype(),
                output_loading_info=True,
            )
        scheduler = getattr(diffusers, kind).from_config(chain)
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
    return Foreign(_UNet(unet, classes), kind, _predicted(chain), scheduler)


def the_package() -> Any:
    """The package diffusers.

    Raises:
        ConfigError: where it is not installed.
    """
    return optional("diffusers", "diffusers", "its networks need the package diffusers")


def as_unet2d(network: nn.Module, side: int) -> Any:
    """The UNet2DModel of diffusers that computes what a U-Net of ours does, with its weights.

    Args:
        network: the U-Net, called as ``network(x, c, cond)``; its c (B, 1) is the other's timestep. Where
            it knows labels, the last of the other's is "no label".
        side: of the images, which are square.

    Raises:
        ConfigError: if diffusers is not installed, or no UNet2DModel is the same function, with what
            differs.
    """
    wrong = not_unet2d(network) if isinstance(network, UNet) else "it is no U-Net"
    if wrong is not None:
        raise ConfigError(
            f"this network cannot be one of diffusers: {wrong}; train it with --network.kind unet2d, "
            "which is one."
        )
    assert isinstance(network, UNet)
    conditions: Any = network.conditions
    table = conditions.label
    down, up = _levels(network.down), _levels(network.up)
    attend = [isinstance(blocks[0].attention, Attention) for blocks, _ in down]
    with torch.random.fork_rng(devices=[]):
        unet = the_package().UNet2DModel(
            sample_size=side,
            in_channels=network.first.in_channels,
            out_channels=network.last.out_channels,
            layers_per_block=len(down[0][0]),
            block_out_channels=[blocks[-1].conv2.out_channels for blocks, _ in down],
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attend],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attend)],
            attention_head_dim=None,  # one head
            norm_num_groups=network.norm.num_groups,
            attn_norm_num_groups=network.norm.num_groups,
            norm_eps=network.norm.eps,
            resnet_time_scale_shift="scale_shift",
            dropout=down[0][0][0].dropout.p,
            num_class_embeds=None if table is None else table.num_embeddings,
        )
    if table is not None:
        unet.class_embedding.load_state_dict(table.state_dict())
    first, second = conditions.layers
    pairs = [
        (network.first, unet.conv_in),
        (first, unet.time_embedding.linear_1),
        (second, unet.time_embedding.linear_2),
        (network.norm, unet.conv_norm_out),
        (network.last, unet.conv_out),
    ]
    middle = (list(network.middle), None)
    levels = [*zip(down, unet.down_blocks, strict=True), *zip(up, unet.up_blocks, strict=True)]
    for (blocks, resample), theirs in [*levels, (middle, unet.mid_block)]:
        for block, resnet in zip(blocks, theirs.resnets, strict=True):
            pairs += [(getattr(block, k), getattr(resnet, k)) for k in ("norm1", "conv1", "norm2")]
            pairs += [(block.modulation.head, resnet.time_emb_proj), (block.conv2, resnet.conv2)]
            if resnet.conv_shortcut is not None:
                pairs.append((block.skip, resnet.conv_shortcut))
        attentions: list[Any] = [b.attention for b in blocks if isinstance(b.attention, Attention)]
        for ours, attention in zip(attentions, getattr(theirs, "attentions", ()), strict=True):
            pairs += [(ours.norm, attention.group_norm), (ours.out, attention.to_out[0])]
            parts = (attention.to_q, attention.to_k, attention.to_v)
            for part, weight, bias in zip(
                parts, ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3), strict=True
            ):
                _fill(part, weight, bias)
        if resample is not None:
            samplers = getattr(theirs, "downsamplers", None) or theirs.upsamplers
            pairs.append((resample.conv, samplers[0].conv))
    for ours, theirs in pairs:
        _fill(theirs, ours.weight, ours.bias)
    return unet.eval()


def _levels(layers: nn.ModuleList) -> list[tuple[list[Any], Any]]:
    """The blocks of each resolution, with what leads to the next one."""
    found: list[tuple[list[Any], Any]] = [([], None)]
    for layer in layers:
        if isinstance(layer, Resample):
            found[-1] = (found[-1][0], layer)
            found.append(([], None))
        else:
            found[-1][0].append(layer)
    return found


@torch.no_grad()
def _fill(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Give a layer the weights of another; linear ones take those of 1x1 convolutions."""
    layer.weight.copy_(weight.view_as(layer.weight))
    layer.bias.copy_(bias)


def _predicted(chain: dict[str, Any]) -> Any:
    return chain.get("prediction_type", "epsilon")


def _known(chain: dict[str, Any], place: Path) -> str:
    """The scheduler's class, if what its networks predict is known here.

    Raises:
        ConfigError: naming the class, or the setting that makes it another one.
    """
    kind = chain.get("_class_name", "DDPMScheduler")
    if kind not in (*CHAINS, *EDM, *VE, *FLOW):
        raise ConfigError(
            f"the network in {place.parent} is of a {kind} ({place.name}, _class_name), and what it predicts "
            "is not known here: only networks of DDPM's chains (DDPMScheduler and its like), of EDM "
            "(EDMEulerScheduler), of VE (ScoreSdeVeScheduler) and of flow matching "
            "(FlowMatchEulerDiscreteScheduler) can give the data's score."
        )
    continuous = chain.get("timestep_type", "discrete") != "discrete"
    if kind in CHAINS and (continuous or chain.get("use_flow_sigmas")):
        name = "timestep_type" if continuous else "use_flow_sigmas"
        raise ConfigError(
            f"the {kind} in {place} has {name} {chain[name]}, so that its network is not of DDPM's "
            "chain: only those can be read with it."
        )
    if kind in EDM and _predicted(chain) not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"a network of EDM that predicts '{_predicted(chain)}' is not known here: it must predict "
            "epsilon or v_prediction."
        )
    return kind


def _read(path: Path) -> dict[str, Any]:
    wanted = "is missing or no JSON: name a folder that diffusers' save_pretrained wrote."
    with reading(path, wanted):
        content = json.loads(read_plain(path, TEXT).decode("utf-8-sig"))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no settings: name a folder that diffusers wrote.")
    return content


def _check(
    config: dict[str, Any],
    shape: tuple[int, ...],
    classes: int | None,
    home: Path,
    *,
    of_score: bool,
) -> None:
    """Refuse networks that are not for such images, or cannot be asked between steps."""
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise ConfigError(f"{home} holds a {kind}: only a UNet2DModel can give the data's score.")
    embedded = ("positional", "fourier") if of_score else ("positional",)
    if config.get("time_embedding_type", "positional") not in embedded:
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
