"""A pretended accelerator: tensors that compute on the CPU, say that they are elsewhere, and do not mix.

Run as a program, it asks the checks of ``benchmarks/gpu_checks.py`` that are named on such a device, and
prints what each found as JSON. It is a process of its own, since a device cannot be taken back.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXING |= {aten._index_put_impl_.default}


def is_away(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


class Away(Tensor):
    """A tensor that says it lies on the pretended device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Away:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None  # so that modules take such weights in another's place

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the CPU, if a GPU would do it: tensors mix only where they are single numbers."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    away = {id(t.held): t for t in tensors if isinstance(t, Away)}
    out = bool(away)
    if kwargs.get("device") is not None:
        out = is_away(kwargs["device"])
    elif func is aten.copy_.default:
        out = isinstance(args[0], Away)
    if func not in CROSSING:
        asked = tensors
        if func in INDEXING and isinstance(args[0], Away):  # which may lie on the CPU
            asked = [t for t in args[2:] if isinstance(t, Tensor)]
        here = [t for t in asked if not isinstance(t, Away) and t.ndim]
        if away and here:
            raise RuntimeError(f"{func} of {tuple(here[0].shape)} on the CPU and others elsewhere")
    args, kwargs = tree_map(lambda t: t.held if isinstance(t, Away) else t, (args, dict(kwargs)))
    if is_away(kwargs.get("device")):
        kwargs["device"] = torch.device("cpu")
    result = func(*args, **kwargs)

    def put(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        return away[id(t)] if id(t) in away else Away(t) if out else t

    return tree_map(put, result)


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Calls(TorchFunctionMode):
    """What PyTorch does below its dispatcher, and that numbers are drawn where their generator lives."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if func is Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
            func, args = torch.tensor, args[1:]
        if func in (torch.tensor, torch.as_tensor) and is_away(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.tolist and isinstance(first, Away):
            return first.held.tolist()
        generator = kwargs.get("generator")
        if generator is not None:
            where = kwargs.get("device") or ("cpu" if first is None else first.device)
            if torch.device(where).type != generator.device.type:
                raise RuntimeError(f"{func.__name__} on {where} from a generator elsewhere")
        return func(*args, **kwargs)


class Generator(torch.Generator):
    home: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls)
        made.home = DEVICE if is_away(device) else torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:
        return self.home


def runs_are_used() -> None:
    """Free particles are trained, evaluated and sampled as a run, and know how often they are asked."""
    from partikel.app import gallery
    from partikel.app.config import load_preset, make_recipe
    from partikel.app.runs import train_run

    preset = load_preset("discriminator-flow-gaussians")
    few = {"iterations": 2, "evaluate_every": 1, "evaluate_samples": 50, "batch": 16, "steps": 3}
    recipe = make_recipe(preset.recipe, preset.settings, {**few, "objective": "relativistic"})
    with tempfile.TemporaryDirectory() as folder:
        run = train_run(recipe, Path(folder) / "run")
        gallery.evaluate_run(run, n=50)
        gallery.interpolate_run(run, Path(folder) / "between.png", pairs=2, points=3)
        gallery.animate_run(run, Path(folder) / "run.gif", frames=2, n=20)
        with gallery.on_device(run) as device:
            x = run.sample(10, generator=torch.Generator(device).manual_seed(0))
            assert x.device == DEVICE
            assert run.model.evaluations(real=run.context()) == 3


def mixes() -> None:
    """What a GPU refuses is refused, or these checks would say nothing."""
    x, generator = torch.ones(3, device=DEVICE), torch.Generator().manual_seed(0)
    wrong: list[Callable[[], Any]] = [
        lambda: x + torch.ones(3),
        lambda: torch.cat([x, torch.ones(3)]),
        lambda: torch.ones(3)[x.long()],
        lambda: torch.randn(3, generator=generator, device=DEVICE),
        lambda: x.numpy(),
    ]
    for number, each in enumerate(wrong):
        try:
            each()
        except (RuntimeError, TypeError):
            continue
        raise AssertionError(f"mixture {number} was not refused")
    assert (x + torch.tensor(1.0)).device == DEVICE


def main(names: list[str]) -> None:
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(DEVICE)
    torch.Generator = Generator  # type: ignore[misc]
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from gpu_checks import CHECKS, Place, noise_images

    place = Place(DEVICE, noise_images())
    work = {name: lambda check=check: check(place) for name, check in CHECKS.items()}
    work |= {"mixtures are refused": mixes, "runs are used": runs_are_used}
    found = {}
    for name in names:
        try:
            with Calls(), Operations():
                work[name]()
            found[name] = "passed"
        except Exception:
            found[name] = traceback.format_exc()[-3000:]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
