"""Named random streams: each purpose draws from its own generator, so that one cannot shift another.

A stream's seed is derived from the run's seed, the stream's name and the process's rank; only ``data``
is the same on all processes, which agree on the order of the data and each take their part of it.
``dropout`` is special: PyTorch's dropout only knows the global generators, so its stream is swapped in
for the duration of a loss and the caller's global state is put back afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from partikel.errors.checks import Checked

NAMES = ("data", "latent", "noise", "time", "dropout")


def derive_seed(seed: int, *path: object) -> int:
    """A 63-bit seed that is a fixed function of ``seed`` and ``path`` (names, ranks)."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded(seed: int, *path: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one use of randomness, which ``path`` names (see :func:`derive_seed`)."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *path))


def normal(*shape: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
    """Standard normal numbers, drawn where the generator lives; of torch's default dtype where None."""
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape, dtype and place of x, drawn where the generator lives."""
    return normal(*x.shape, generator=generator, dtype=x.dtype).to(x.device)


class Streams(Checked):
    """One ``torch.Generator`` for each purpose of training.

    Args:
        seed: the run's seed.
        rank: index of the process; other ranks draw other numbers, but for ``data``.
        device: where the generators live.

    Attributes:
        data: order of the data, fresh synthetic points.
        latent: priors of particles and latents of generators.
        noise: Gaussian perturbations, Brownian increments, interpolation points of penalties.
        time: generation times and noise levels.
    """

    def __init__(self, seed: int, rank: int = 0, device: torch.device | str = "cpu") -> None:
        self._generators = {
            name: seeded(
                *(seed, name, 0 if name == "data" else rank),
                device="cpu" if name == "dropout" else device,
            )
            for name in NAMES
        }
        self.data = self._generators["data"]
        self.latent = self._generators["latent"]
        self.noise = self._generators["noise"]
        self.time = self._generators["time"]
        self._dropout = self._generators["dropout"]

    @contextlib.contextmanager
    def dropout(self) -> Iterator[None]:
        """Run a block with PyTorch's global generators in this stream's state.

        An accelerator's generator is seeded from the stream; the CPU's continues it.
        """
        outside = torch.get_rng_state()
        torch.set_rng_state(self._dropout.get_state())
        device = self.latent.device
        try:
            if device.type == "cuda":
                before = torch.cuda.get_rng_state(device)
                torch.cuda.set_rng_state(_fresh_state(device), device)
                try:
                    yield
                finally:
                    torch.cuda.set_rng_state(before, device)
            else:
                yield
        finally:
            self._dropout.set_state(torch.get_rng_state())
            torch.set_rng_state(outside)

    def state_dict(self) -> dict[str, Tensor]:
        """States as uint8 tensors, one for each stream."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue every stream where :meth:`state_dict` left it."""
        for name, generator in self._generators.items():
            generator.set_state(state[name].cpu())


def _fresh_state(device: torch.device) -> Tensor:
    """A state of ``device``'s generator, seeded by PyTorch's global CPU generator."""
    seed = int(torch.randint(2**63 - 1, ()))
    return torch.Generator(device).manual_seed(seed).get_state()
