"""Peak memory of an evaluation of 50,000 images 32x32x1 on 128 features: below 2 GB.

    python benchmarks/evaluation_memory.py [--images 50000]

Protocol: a process of its own, on the CPU, with random images as data and as samples, a random
convolution as feature network, nothing cached. What is measured is the maximum resident size of the
process, and beside it that before the evaluation (PyTorch, and the data as bytes).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from common import one_thread, save  # isort: skip
import torch
from torch import Tensor, nn

from partikel.data import FiniteDataset
from partikel.metrics import evaluation

CEILING_GB = 2.0


class RandomFeatures(nn.Module):
    """A random convolution, 128 features."""

    name = "random"
    dimension = 128

    def __init__(self) -> None:
        super().__init__()
        shape, generator = (self.dimension, 1, 8, 8), torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(shape, generator=generator) / 8)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 32, 32) -> (B, 128)."""
        assert isinstance(self.weight, Tensor)
        return nn.functional.conv2d(images, self.weight, stride=4).relu().mean((2, 3))


def peak_gb() -> float:
    """Maximum resident size of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size * (1 if sys.platform == "darwin" else 1024) / 1e9


def measure(images: int) -> dict[str, Any]:
    """Evaluate in this process."""
    one_thread()
    generator = torch.Generator().manual_seed(0)

    def points(count: int) -> Tensor:
        return torch.randint(256, (count, 1, 32, 32), generator=generator, dtype=torch.uint8)

    train = points(images)
    data = FiniteDataset("random", {"train": train, "validation": train[:100], "test": train})
    evaluation.choose_features = lambda *arguments: RandomFeatures()
    before, started = peak_gb(), time.perf_counter()
    result = evaluation.evaluate(
        lambda n, g: torch.rand(n, 1, 32, 32, generator=g) * 2 - 1, data, n=images, split="train"
    )
    return {
        "images": images,
        "peak_gb": round(peak_gb(), 3),
        "before_gb": round(before, 3),
        "seconds": round(time.perf_counter() - started, 1),
        "metrics": result.metrics,
        "protocol": result.protocol,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(measure(arguments.images)))
        return
    with tempfile.TemporaryDirectory() as cache:
        answer = subprocess.run(
            [sys.executable, __file__, "--images", str(arguments.images), "--inside"],
            env={**os.environ, "PARTIKEL_CACHE": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    record = json.loads(answer.stdout)
    save("evaluation-memory", {"ceiling_gb": CEILING_GB, **record})
    print(json.dumps(record, indent=1))
    assert record["peak_gb"] < CEILING_GB, "an evaluation takes too much memory"


if __name__ == "__main__":
    main()
