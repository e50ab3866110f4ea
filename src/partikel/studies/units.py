"""What training costs, in units that depend little on how busy a machine is: process times, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from partikel.networks import MLP


def unit() -> Callable[[], None]:
    """Forward and backward of a 130-512x4-1 MLP on 128 rows: one unit of cost."""
    network = MLP((130,), (), width=512, depth=4)
    rows = torch.randn(128, 130, generator=torch.Generator().manual_seed(0))

    def work() -> None:
        network.zero_grad(set_to_none=True)
        network(rows).sum().backward()

    return work


def in_turns(
    works: Mapping[str, Callable[[], Any]], rounds: int, calls: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Median process times of one call, a round of all after another, so that a busy machine slows all alike.

    Args:
        works: by name; each is called once before.
        rounds: how many.
        calls: of a work in a round, by its name; 1 unless given.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            count, started = (calls or {}).get(name, 1), time.process_time()
            for _ in range(count):
                work()
            times[name].append((time.process_time() - started) / count)
    return {name: statistics.median(each) for name, each in times.items()}
