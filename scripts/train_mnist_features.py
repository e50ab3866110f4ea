"""Train the feature networks that ship with partikel.metrics: MNIST, and scikit-learn's digits.

    python scripts/train_mnist_features.py               # MNIST, from $PARTIKEL_DATA or --root
    python scripts/train_mnist_features.py --data digits

Writes the weights (half precision) and a JSON file beside them that says how they came about, and
how many held-out images they classify rightly, as loaded again from the file. The same command on
the same machine writes the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor, nn

from partikel.data import DataSettings, FiniteDataset, open_dataset
from partikel.metrics.classifier import NETWORKS, WEIGHTS, ClassifierFeatures


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int
    batch: int
    lr: float
    shift: int
    """Batches are moved by up to so many pixels along each axis."""
    weight_decay: float = 0.01


RECIPES = {
    "mnist": Recipe(epochs=8, batch=128, lr=5e-3, shift=2),
    "digits": Recipe(epochs=60, batch=64, lr=5e-3, shift=1),
}


def initialise(network: nn.Module, *, generator: torch.Generator) -> None:
    """He initialisation (He et al. 2015) of convolutions and linear layers."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def moved(images: Tensor, by: int, *, generator: torch.Generator) -> Tensor:
    """All images moved by one random offset; what comes in is background."""
    side = images.shape[-1]
    top, left = torch.randint(2 * by + 1, (2,), generator=generator).tolist()
    padded = nn.functional.pad(images, (by, by, by, by), value=-1.0)
    return padded[..., top : top + side, left : left + side]


def train(
    network: ClassifierFeatures, data: FiniteDataset, recipe: Recipe, *, generator: torch.Generator
) -> None:
    """Cross-entropy with AdamW and a one-cycle learning rate, on the training split."""
    per_epoch = data.size("train") // recipe.batch
    steps = per_epoch * recipe.epochs
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=steps)
    batches = data.batches(recipe.batch, "train", generator=generator)
    network.train()
    started, seen = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        batch = next(batches)
        assert batch.cond is not None
        logits = network.logits(moved(batch.x, recipe.shift, generator=generator))
        loss = nn.functional.cross_entropy(logits, batch.cond)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        seen += loss.item()
        if step % per_epoch == 0:
            seconds = time.perf_counter() - started
            print(f"epoch {step // per_epoch:3d}  loss {seen / per_epoch:.4f}  {seconds:.0f} s")
            seen = 0.0
    network.eval()


@torch.no_grad()
def accuracy(network: ClassifierFeatures, data: FiniteDataset, split: str) -> float:
    """Share of a split's images that are classified rightly."""
    right = 0
    for index in torch.arange(data.size(split)).split(1000):
        batch = data.take(index, split)
        right += int((network.logits(batch.x).argmax(1) == batch.cond).sum())
    return right / data.size(split)


def digest(data: FiniteDataset, split: str) -> str:
    """MD5 sum of a split's images and labels, as they are stored."""
    images, labels = data.stored(split)
    assert labels is not None
    content = images.numpy().tobytes() + labels.numpy().tobytes()
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def main() -> None:
    """Train one network and write its weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", choices=sorted(NETWORKS), default="mnist")
    parser.add_argument("--root", help="folder of the data; $PARTIKEL_DATA where left out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)
    recipe = RECIPES[args.data]
    # Nothing is chosen by validation, so its share is trained on too; the test split never is.
    settings = DataSettings(name=args.data, root=args.root, validation=0.0)
    data = open_dataset(settings)
    assert isinstance(data, FiniteDataset)
    generator = torch.Generator().manual_seed(args.seed)
    network = NETWORKS[args.data]()
    initialise(network, generator=generator)
    started = time.process_time()
    train(network, data, recipe, generator=generator)
    seconds = time.process_time() - started

    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    WEIGHTS.mkdir(exist_ok=True)
    (WEIGHTS / f"{args.data}_features.safetensors").write_bytes(save(state))
    loaded = NETWORKS[args.data].pretrained()
    card = {
        "network": args.data,
        "dimension": loaded.dimension,
        "parameters": sum(p.numel() for p in loaded.parameters()),
        "test_accuracy": round(accuracy(loaded, data, "test"), 5),
        "test_images": data.size("test"),
        "train_images": data.size("train"),
        "split_seed": settings.split_seed,
        "seed": args.seed,
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "learning_rate": recipe.lr,
        "weight_decay": recipe.weight_decay,
        "shift": recipe.shift,
        "train_md5": digest(data, "train"),
        "test_md5": digest(data, "test"),
        "cpu_seconds": round(seconds),
        "torch": torch.__version__,
        "command": f"python scripts/train_mnist_features.py --data {args.data} --seed {args.seed}",
    }
    text = json.dumps(card, indent=2) + "\n"
    (WEIGHTS / f"{args.data}_features.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
