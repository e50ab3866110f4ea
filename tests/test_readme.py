"""What the README shows works as it stands there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from partikel import GaussianPrior
from partikel.app.config import load_preset, preset_names
from partikel.networks import MLP, Conditioning

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BLOCKS = [block for block in BLOCKS if "for x in batches" not in block]  # see test_examples.py


def test_the_same_field_in_both_carriers() -> None:
    code = BLOCKS[0].replace("iterations=500", "iterations=3")
    names: dict[str, object] = {}
    exec(code, names)
    x = names["x"]
    assert isinstance(x, torch.Tensor)
    assert x.shape == (1000, 2)
    assert names["flow"].field is names["gan"].field  # type: ignore[attr-defined]


def test_the_same_score_difference_in_both_carriers() -> None:
    names: dict[str, object] = {
        "data_network": MLP((2,), (2,), width=8, conditions=Conditioning(1)),
        "own_network": MLP((2,), (2,), width=8, conditions=Conditioning(2)),
        "generator": MLP((4,), (2,), width=8),
        "latent": GaussianPrior((4,)),
        "prior": GaussianPrior((2,)),
    }
    code = BLOCKS[1].replace("GeneratorModel(h", "gan = GeneratorModel(h")
    code = code.replace("ParticleModel(h", "flow = ParticleModel(h")
    exec("from partikel import GeneratorModel, ParticleModel\n" + code, names)
    from partikel import Phase, fit
    from partikel.data import DataSettings, open_dataset

    data = open_dataset(DataSettings("gaussians"))
    own = Phase("own score", batch=8)
    fit(names["gan"], data, [own, Phase("generator", batch=8)], iterations=2)  # type: ignore[arg-type]
    fit(names["flow"], data, [own], iterations=2)  # type: ignore[arg-type]
    for model in (names["gan"], names["flow"]):
        x = model.sample(5, generator=torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
        assert x.isfinite().all()


def test_figures_are_those_of_the_result_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python benchmarks/record.py`` writes them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    record = importlib.import_module("record")
    for path, text in record.pages().items():
        assert path.read_text() == text, path.name


def test_the_readme_names_presets_that_exist() -> None:
    named = set(re.findall(r"partikel train ([a-z-]+-[a-z-]+)", README))
    assert named
    assert named <= set(preset_names())
    assert all(load_preset(name).about for name in preset_names())


def test_a_point_of_the_plane() -> None:
    from partikel import At, DiscriminatorField, ParticleModel, ScoreField
    from partikel.denoising import EDMDenoiser

    names: dict[str, object] = {
        "ParticleModel": ParticleModel,
        "s_p": ScoreField(
            EDMDenoiser(MLP((2,), (2,), width=8, conditions=Conditioning(1)))
        ).freeze(),
        "critic": DiscriminatorField(
            MLP((2,), (), width=8, conditions=Conditioning(1)), conditions=("t",)
        ),
    }
    exec(BLOCKS[2], names)
    model, s_p, critic = (names[name] for name in ("model", "s_p", "critic"))
    assert isinstance(model, ParticleModel)
    assert isinstance(s_p, ScoreField)
    assert isinstance(critic, DiscriminatorField)
    t = torch.tensor([1.0, 39.0])
    x, at = torch.tensor([[30.0, -9.0], [2.0, 1.0]]), At(t, 40 - t)
    drift = (40 - t)[:, None] * (critic.estimate(x, at)[1] + s_p(x, at))  # ½β (∇d + s_p), β = 2σ
    torch.testing.assert_close(model.field(x, at), drift)
    assert model.diffusion is None  # g² = λ²
