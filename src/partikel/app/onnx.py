"""Generators and flow maps as ONNX files, which need neither Partikel nor PyTorch to run."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from partikel.errors import ConfigError, NumericsError, optional
from partikel.fields import Context
from partikel.models import Carrier, Sampling
from partikel.streams import seeded

OPSET = 18
TOLERANCE = 1e-3
"""Most that outputs may differ from PyTorch's, of the largest of them."""


class _Called(nn.Module):
    """Samples of starts, and of labels, by place, as an exporter asks."""

    def __init__(self, model: Carrier, sampling: Sampling) -> None:
        super().__init__()
        self.model, self.sampling = model, sampling

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.model._sampled(z, label, Context(), self.sampling)


def write_onnx(model: Carrier, path: Path, sampling: Sampling | None = None) -> dict[str, Any]:
    """Write a carrier that calls its network once, or a few times, for batches of any size.

    Args:
        model: the carrier; nothing is drawn between the calls.
        path: of the file, which takes ``z`` (B, ...), where samples start, in float32, and ``label``
            (B,) in int64 of a conditional model, and gives ``x``.
        sampling: how often it is called; as the model says unless given.

    Returns:
        What the file is: "opset", "inputs", and "difference", the largest absolute one of outputs between
        onnxruntime and PyTorch, over batches of 1, 2 and 7.

    Raises:
        ConfigError: if the packages are not installed, or a layer has no ONNX.
        NumericsError: if the outputs are not PyTorch's.
    """
    _, _, runtime = (
        optional(each, "onnx", f"ONNX needs the package {each}")
        for each in ("onnx", "onnxscript", "onnxruntime")
    )
    network = _Called(model, sampling or Sampling())
    given = _inputs(model, 3)
    network(*given)  # what it refuses is said before an exporter hides it
    batch = torch.export.Dim("batch")
    names = ["z"] if model.label_weights is None else ["z", "label"]
    # of what it does not have to export, and of what it leaves as it is
    with warnings.catch_warnings(), _silent("torch.onnx"), _silent("onnxscript"):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                given,
                str(path),
                input_names=names,
                output_names=["x"],
                dynamic_shapes={name: {0: batch} for name in names},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds
            reason = " ".join(str(error).split()).split(". ")[0]
            raise ConfigError(
                f"this {model.kind} cannot be written as ONNX ({reason[:200]}): export it as partikel's."
            ) from error
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference, size = 0.0, 0.0
    for count in (1, 2, 7):
        given = _inputs(model, count)
        with torch.no_grad():
            expected = network(*given)
        fed = {name: each.numpy() for name, each in zip(names, given, strict=True)}
        (x,) = session.run(None, fed)
        difference = max(difference, float((torch.from_numpy(x) - expected).abs().max()))
        size = max(size, float(expected.abs().max()))
    if not difference <= TOLERANCE * max(size, 1.0):
        raise NumericsError(
            f"the ONNX file gives other samples than PyTorch (they differ by {difference:.2g}): export it "
            "as partikel's."
        )
    return {"opset": OPSET, "inputs": names, "difference": difference}


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _inputs(model: Carrier, n: int) -> tuple[Tensor, ...]:
    generator = seeded(n, "onnx")
    z, labels = model.start(n, generator).float(), model.labels(n, generator=generator)
    return (z,) if labels is None else (z, labels)
