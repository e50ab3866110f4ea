"""What a GPU needs of the code, asked of a pretended one; and the GPU benchmark itself, tried on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

ROOT = Path(__file__).parents[1]
CHECKS = [
    "mixtures are refused",
    "generators on the device",
    "mapped images",
    "augmented images",
    "likelihood",
    "resumed: gan",
    "channels-last: discriminator-flow",
    "trains: diffode-gan-digits",
    "trains: diffusion-gan-joint-gaussians",
    "trains: edm-digits, with labels",
    "trains: score-gan-gaussians",
    "runs are used",
]


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch has no devices that are written in Python")
    command = [sys.executable, str(ROOT / "tests" / "pretended.py"), *CHECKS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CHECKS)
def test_tensors_of_a_device_and_of_the_cpu_do_not_mix(name: str, found: dict[str, str]) -> None:
    assert found[name] == "passed", found[name]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_all_sections_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--smoke"]
    command += ["--out", str(out)]
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads(out.read_text())
    sections = record["sections"]
    rows = {f"{s}: {name}": row for s, named in sections.items() for name, row in named.items()}
    assert {s for s, named in sections.items() if len(named) > 1} == set(sections)
    assert all("seconds" in row or row["skipped"] == "needs CUDA" for row in rows.values())
    assert record["machine"]["torch"] == torch.__version__
    assert record["settings"]["device"] == "cpu"
    for model in ("edm", "gan", "discriminator-flow", "score-gan"):
        row = sections["train"][model]
        assert row["iterations"] < row["of"]
        assert {"frechet", "kid"} <= row["metrics"].keys()
        assert (tmp_path / f"gpu-{model}.png").exists()
        assert sections["speed"][f"{model}, as set"]["images_per_second"] > 0
    again = subprocess.run([*command, "--only", "speed"], capture_output=True, text=True)
    kept = json.loads(out.read_text())["sections"]
    assert again.returncode == 0
    assert kept["speed"]["gan, fp16"] == sections["speed"]["gan, fp16"]  # measured once
