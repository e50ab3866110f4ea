"""Train the network on pictures of emoji that are named by their code points.

    python -m emoji_features.train --data emoji64.zip

Writes the weights (half precision) and a card that says how they came about and how many of the pictures that
were held out are classified rightly, as read again from the file. The same command on the same machine writes
the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time

import torch
from torch import Tensor, nn

from emoji_features import KINDS, SIDE, WEIGHTS, EmojiFeatures, emoji
from partikel.data.folder import find
from partikel.data.pictures import decoded, opened
from partikel.data.settings import DataSettings
from partikel.files import replacing
from partikel.networks.weights import write_tensors

EPOCHS, BATCH, RATE, DECAY, SHIFT = 40, 128, 5e-3, 0.05, 2
BLOCKS = {0x1F3: 4, 0x1F4: 5, 0x1F5: 6, 0x1F6: 7, 0x1F7: 7, 0x1F9: 8, 0x1FA: 9}


def kind_of(name: str) -> int:
    """The class of a picture: flags, people with a skin tone, other joined ones, signs, blocks of Unicode."""
    points = [int(part, 16) for part in name.rpartition("/")[2].partition(".")[0].split("-")]
    if 0x1F1E6 <= points[0] <= 0x1F1FF:
        return 0
    if any(0x1F3FB <= point <= 0x1F3FF for point in points[1:]):
        return 1
    if 0x200D in points:
        return 2
    return BLOCKS.get(points[0] >> 8, 3)


def held_out(name: str) -> bool:
    """A tenth of the pictures, whatever others there are."""
    return hashlib.sha256(name.rpartition("/")[2].encode()).digest()[0] % 10 == 0


def pictures(path: str) -> tuple[list[str], Tensor, Tensor]:
    """Names, images (n, 3, 32, 32) in [-1, 1], and kinds."""
    limits = DataSettings("folder", path=path).limits
    with opened(find(path), limits) as (names, read):
        found = []
        for name in names:
            picture = decoded(read(name), limits).convert("RGB")
            values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            image = values.view(picture.height, picture.width, 3).permute(2, 0, 1).float()
            found.append(nn.functional.adaptive_avg_pool2d(image, SIDE) / 127.5 - 1)
        kinds = torch.tensor([kind_of(name) for name in names])
    return list(names), torch.stack(found), kinds


def train(network: EmojiFeatures, x: Tensor, kinds: Tensor, generator: torch.Generator) -> None:
    """Cross-entropy with AdamW and a one-cycle rate; batches are moved and mirrored."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    steps = EPOCHS * (len(x) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: len(x) // BATCH * BATCH].split(BATCH):
            down, right, mirrored = torch.randint(2 * SHIFT + 1, (3,), generator=generator).tolist()
            padded = nn.functional.pad(x[rows], (SHIFT,) * 4, mode="replicate")
            images = padded[..., down : down + SIDE, right : right + SIDE]
            logits = network.logits(images.flip(-1) if mirrored % 2 else images)
            loss = nn.functional.cross_entropy(logits, kinds[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    network.eval()


@torch.no_grad()
def accuracy(network: EmojiFeatures, x: Tensor, kinds: Tensor) -> float:
    """Share of pictures that are classified rightly."""
    return float((network.logits(x).argmax(1) == kinds).float().mean())


def main() -> None:
    """Train, and write the weights with their card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", default="emoji64.zip", help="a zip file or folder, also below $PARTIKEL_DATA"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    names, x, kinds = pictures(given.data)
    held = torch.tensor([held_out(name) for name in names])
    generator = torch.Generator().manual_seed(given.seed)
    network = EmojiFeatures()
    train(network, x[~held], kinds[~held], generator)
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    with replacing(WEIGHTS) as part:
        write_tensors(part, state)
    read = emoji((3, SIDE, SIDE), "cpu")
    assert isinstance(read, EmojiFeatures)
    card = {
        "trained_on": int((~held).sum()),
        "held_out": int(held.sum()),
        "accuracy": round(accuracy(read, x[held], kinds[held]), 3),
        "accuracy_in_training": round(accuracy(read, x[~held], kinds[~held]), 3),
        "most_frequent_kind": round(
            float(kinds[held].bincount(minlength=KINDS).max() / held.sum()), 3
        ),
        "parameters": sum(p.numel() for p in read.parameters()),
        "epochs": EPOCHS,
        "seed": given.seed,
        "cpu_seconds": round(time.process_time() - started),
        "command": f"python -m emoji_features.train --data {given.data} --seed {given.seed}",
    }
    text = json.dumps(card, indent=1) + "\n"
    WEIGHTS.with_suffix(".json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
