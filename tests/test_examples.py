"""The examples run as they stand in their folder."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from partikel.errors import ConfigError

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("model", "iterations"), [("gan", 250), ("discriminator_flow", 250), ("edm", 1000)]
)
def test_a_loop_of_ones_own_trains(model: str, iterations: int) -> None:
    names = runpy.run_path(str(EXAMPLES / "plain_loop.py"))
    before, after = (names["distance"](names[model](k), n=1000) for k in (0, iterations))
    assert after < before / 3


def test_the_readme_shows_the_plain_loop() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    example = (EXAMPLES / "plain_loop.py").read_text(encoding="utf-8")
    block = readme.split("## A loop of your own")[1].split("```python\n")[1].split("```")[0]
    shown = [line.strip() for line in block.splitlines() if line.strip()]
    written = [line.strip() for line in example.splitlines()]
    assert len(shown) >= 8
    assert not [line for line in shown if line not in written and not line.startswith("#")]


def test_the_feature_network_of_emoji_measures_colour_images_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "emoji-features"))
    from emoji_features import emoji  # pyright: ignore

    network = emoji((3, 32, 32), "cpu")
    colours = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images, large = (
        torch.nn.functional.interpolate(colours, size=n, mode="bilinear") for n in (32, 64)
    )
    features = network(images)
    assert features.shape == (6, network.dimension) == (6, 64)
    assert torch.allclose(network(images[2:4]), features[2:4], atol=1e-5)  # of an image alone
    assert torch.cosine_similarity(network(large), features).min() > 0.99
    assert emoji((3, 64, 64), "cpu").dimension == 64
    for shape in ((1, 32, 32), (3, 32, 48), (2,)):
        with pytest.raises(ConfigError, match="square colour images"):
            emoji(shape, "cpu")


def test_the_card_of_the_feature_network_of_emoji_is_true(
    monkeypatch: pytest.MonkeyPatch, real_data: Callable[[str], Path]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "emoji-features"))
    from emoji_features import emoji, train  # pyright: ignore

    card = json.loads(train.WEIGHTS.with_suffix(".json").read_text())
    names, x, kinds = train.pictures(str(real_data("emoji64.zip")))
    held = torch.tensor([train.held_out(name) for name in names])
    assert (int(held.sum()), int((~held).sum())) == (card["held_out"], card["trained_on"])
    found = train.accuracy(emoji(None, "cpu"), x[held], kinds[held])
    assert found == pytest.approx(card["accuracy"], abs=0.01)
    assert found > card["most_frequent_kind"] + 0.15
