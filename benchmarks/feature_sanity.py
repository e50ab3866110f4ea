"""Do distances of images rise where images become worse? Each distance, on each feature network for colour.

    python benchmarks/feature_sanity.py [--data emoji64.zip] [--draws 5]
    python benchmarks/feature_sanity.py --only emoji # this network, beside those of the stored result
    python benchmarks/feature_sanity.py --picture    # draws that of the stored result again

'emoji' is the network of examples/emoji-features, which has to be installed; it was trained on nine tenths
of these very pictures.

Emoji at 32x32 (a zip file below PARTIKEL_DATA, of pictures named by their code points), of four kinds in
equal shares. 200 of them beside a reference of 240 others, at four levels of each damage, the first of
which is none:

- blur: a Gaussian of 0.5, 1, 2 pixels;
- noise: normal, of deviation 0.1, 0.3, 0.9 where values are in [-1, 1], clipped;
- dropped kinds: one, two, three of the four are missing, the others take their place;
- mixed-in kind: a tenth, a quarter, a half are flags, which the reference has none of.

Distances: Fréchet, KID (of all 200), MIND, and FDr, the mean over the networks of the Fréchet distance over
that of undamaged images. A draw chooses the 200 anew from a pool; steps are compared within draws. All
draws share the reference and the noise, so that the standard errors are those of the choice alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import RESULTS, one_thread, save  # isort: skip
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from partikel.app.show.plots import INK, MUTED, SERIES
from partikel.data.folder import find
from partikel.data.pictures import decoded, opened
from partikel.data.settings import DataSettings
from partikel.metrics import FeatureSet, extract_features, frechet_distance, kid
from partikel.metrics.choice import feature_network
from partikel.metrics.features import FeatureNetwork
from partikel.metrics.several import fd_ratio, mind
from partikel.streams import derive_seed

PICTURE = RESULTS.parents[1] / "docs" / "feature-sanity.png"
SIDE, N, REFERENCE = 32, 200, 240
KINDS = ("people", "pictographs", "signs", "things")
DROPPED = ("people", "signs", "things")
"""In this order; what is left last has the largest pool."""
POOL = {"people": 120, "pictographs": 300, "signs": 110, "things": 160, "flags": 140}
DAMAGES: dict[str, tuple[float, float, float]] = {
    "blur": (0.5, 1.0, 2.0),
    "noise": (0.1, 0.3, 0.9),
    "dropped": (1, 2, 3),
    "mixed": (0.1, 0.25, 0.5),
}
NETWORKS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "pixels")
"""Those of FDr."""
ALL = (*NETWORKS, "emoji")
DISTANCES = ("frechet", "kid", "mind")


def generator(*path: object) -> torch.Generator:
    """A stream for one purpose."""
    return torch.Generator().manual_seed(derive_seed(0, "feature sanity", *path))


def kind_of(name: str) -> str | None:
    """The kind of an emoji by its code points; None of those that are left out."""
    points = [int(part, 16) for part in name.rpartition("/")[2].removesuffix(".png").split("-")]
    first = points[0]
    if 0x1F1E6 <= first <= 0x1F1FF:
        return "flags"
    if any(0x1F3FB <= point <= 0x1F3FF for point in points[1:]):
        return "people"
    if 0x200D in points:
        return None
    if first < 0x1F300:
        return "signs"
    return "pictographs" if first < 0x1F600 else "things"


def pictures(path: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Images (n, 3, 32, 32) in [-1, 1] of each kind: of the reference, and of the pool."""
    limits = DataSettings("folder", path=path).limits
    found: dict[str, list[Tensor]] = {}
    with opened(find(path), limits) as (names, read):
        of_kind: dict[str, list[str]] = {}
        for name in names:
            of_kind.setdefault(kind_of(name) or "", []).append(name)
        for kind, count in POOL.items():
            own = 0 if kind == "flags" else REFERENCE // len(KINDS)
            known = of_kind[kind]
            order = torch.randperm(len(known), generator=generator(kind))[: own + count]
            images = [as_tensor(decoded(read(known[i]), limits)) for i in order.tolist()]
            found[kind] = images
    parts = {kind: len(images) - POOL[kind] for kind, images in found.items()}
    return {
        kind: (torch.stack(images[: parts[kind]] or images[:1]), torch.stack(images[parts[kind] :]))
        for kind, images in found.items()
    }


def as_tensor(picture: Any) -> Tensor:
    """An image of Pillow at 32x32, averaged over squares, (3, 32, 32) in [-1, 1]."""
    rgb = picture.convert("RGB")
    values = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    image = values.view(rgb.height, rgb.width, 3).permute(2, 0, 1).float()
    return functional.adaptive_avg_pool2d(image, SIDE) / 127.5 - 1


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Convolved with a Gaussian, the border repeated."""
    radius = math.ceil(3 * sigma)
    places = torch.arange(-radius, radius + 1.0)
    line = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = torch.outer(line, line).div(line.sum() ** 2).expand(3, 1, -1, -1)
    padded = functional.pad(x, (radius,) * 4, mode="replicate")
    return functional.conv2d(padded, kernel, groups=3)


def noised(x: Tensor, sigma: float) -> Tensor:
    """With normal noise, clipped."""
    return (x + sigma * torch.randn(x.shape, generator=generator("noise", sigma))).clamp(-1, 1)


def shares(damage: str, level: int) -> dict[str, int]:
    """How many images of each kind a draw has."""
    if damage == "dropped":
        kinds = [kind for kind in KINDS if kind not in DROPPED[:level]]
    else:
        kinds = list(KINDS)
    flags = round(N * DAMAGES["mixed"][level - 1]) if damage == "mixed" and level else 0
    count, more = divmod(N - flags, len(kinds))
    return {**{kind: count + (i < more) for i, kind in enumerate(kinds)}, "flags": flags}


def distances(x: Tensor, reference: Tensor) -> dict[str, float]:
    """Of features to those of the reference."""
    return {
        "frechet": frechet(x, reference),
        "kid": kid(x, reference, 8, N, generator=generator("kid")).mean,
        "mind": mind(x, reference[torch.randperm(REFERENCE, generator=generator("mind"))]),
    }


def frechet(x: Tensor, y: Tensor) -> float:
    """The Fréchet distance, in the space that the few features span, where it is the same and quick."""
    both = torch.cat([x, y]).double()
    if len(both) < both.shape[1]:
        both = both @ torch.linalg.qr(both.T)[0]
    sets = [FeatureSet("of this file", both.shape[1]) for _ in range(2)]
    for features, part in zip(sets, both.split([len(x), len(y)]), strict=True):
        features.update(part)
    return frechet_distance(*sets)


def measured(network: FeatureNetwork, known: dict[str, tuple[Tensor, Tensor]], draws: int) -> Any:
    """Damage -> distance -> for each level the values of all draws."""
    reference = extract_features(network, torch.cat([known[kind][0] for kind in KINDS]))
    changes: dict[tuple[str, int], Callable[[Tensor], Tensor]] = {("", 0): lambda x: x}
    for level in (1, 2, 3):
        changes["blur", level] = lambda x, s=DAMAGES["blur"][level - 1]: blurred(x, s)
        changes["noise", level] = lambda x, s=DAMAGES["noise"][level - 1]: noised(x, s)
    few = N // len(KINDS) + 10  # of a kind, where no other is missing
    features = {
        key: {
            kind: extract_features(network, change(pool if not key[1] else pool[:few]))
            for kind, (_, pool) in known.items()
            if not key[1] or kind in KINDS
        }
        for key, change in changes.items()
    }
    found: dict[str, dict[str, list[list[float]]]] = {}
    for damage in DAMAGES:
        levels = []
        for level in range(4):
            of_images = features[
                (damage, level) if damage in ("blur", "noise") and level else ("", 0)
            ]
            rows = []
            for draw in range(draws):
                parts = []
                for kind, count in shares(damage, level).items():
                    whole = kind == "flags" or (damage == "dropped" and level > 0)
                    limit = POOL[kind] if whole else few
                    order = torch.randperm(limit, generator=generator(draw, kind))[:count]
                    parts.append(of_images[kind][order] if count else reference[:0])
                rows.append(distances(torch.cat(parts), reference))
            levels.append(rows)
        found[damage] = {key: [[row[key] for row in rows] for rows in levels] for key in DISTANCES}
    return found


def verdict(levels: list[list[float]]) -> str:
    """Whether values rise from level to level, by more than twice the standard error of the steps."""
    worst = "rises"
    for before, after in zip(levels, levels[1:], strict=False):
        steps = [b - a for a, b in zip(before, after, strict=True)]
        mean = statistics.fmean(steps)
        error = statistics.stdev(steps) / math.sqrt(len(steps))
        if mean < -2 * error:
            return "falls"
        if mean < 2 * error:
            worst = "undecided"
    return worst


def picture(known: dict[str, tuple[Tensor, Tensor]], found: dict[str, Any]) -> Figure:
    """What the damages look like, and the Fréchet ratio of each network under them."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(DAMAGES))
    across = 8
    shown = torch.cat([known[kind][1][:2] for kind in KINDS])[:across]
    flags = known["flags"][1]
    for column, (damage, strengths) in enumerate(DAMAGES.items()):
        rows = []
        for level in range(4):
            row = shown.clone()
            if damage == "blur" and level:
                row = blurred(row, strengths[level - 1])
            elif damage == "noise" and level:
                row = noised(row, strengths[level - 1])
            elif level:
                parts = [
                    (flags if kind == "flags" else known[kind][1])[: round(across * count / N)]
                    for kind, count in shares(damage, level).items()
                ]
                row = torch.cat(parts)[:across]
            rows.append(functional.pad(row, (1,) * 4, value=1.0).permute(1, 2, 0, 3).flatten(2))
        sheet = torch.cat(rows, 1).add(1).div(2).clamp(0, 1).permute(1, 2, 0)
        top, below = axes[0][column], axes[1][column]
        top.imshow(sheet.numpy(), interpolation="nearest")
        top.set_axis_off()
        top.set_title(TITLES[damage], fontsize=8, color=INK)
        for name, colour in zip(ALL, SERIES, strict=False):
            levels = [statistics.fmean(v) for v in found[name][damage]["frechet"]]
            ratios = [value / levels[0] for value in levels]
            below.plot(range(4), ratios, color=colour, marker="o", markersize=3, label=name)
        below.set_xticks(range(4), ["none", *map(str, strengths)], fontsize=6)
        below.tick_params(axis="y", labelsize=6, colors=MUTED)
        below.spines[["top", "right"]].set_visible(False)
    axes[1][0].set_ylabel("Fréchet, over that of none", fontsize=6, color=INK)
    axes[1][0].legend(fontsize=5, frameon=False)
    return figure


TITLES = {"blur": "blur", "noise": "noise", "dropped": "dropped kinds", "mixed": "a mixed-in kind"}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="emoji64.zip")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ALL, help="networks that are measured now")
    parser.add_argument("--picture", action="store_true")
    chosen = parser.parse_args()
    one_thread()
    started = time.process_time()
    known = pictures(chosen.data)
    found, names, spent = {}, {}, 0
    if chosen.picture or chosen.only:
        stored = json.loads((RESULTS / "feature-sanity.json").read_text())
        found, names, spent = stored["values"], stored["networks"], stored["cpu_seconds"]
    if chosen.picture:
        picture(known, found).savefig(PICTURE, dpi=200)
        return
    for name in chosen.only or ALL:
        network = feature_network(name, (3, SIDE, SIDE))
        found[name] = measured(network, known, chosen.draws)
        names[name] = network.name
        print(name, f"{time.process_time() - started:.0f} s", flush=True)
    ratios: dict[str, list[list[float]]] = {}
    for damage in DAMAGES:
        values = [found[name][damage]["frechet"] for name in NETWORKS]
        clean = [statistics.fmean(levels[0]) for levels in values]
        ratios[damage] = [
            [
                fd_ratio([levels[k][draw] for levels in values], clean)
                for draw in range(chosen.draws)
            ]
            for k in range(4)
        ]
    every = {
        **{name: found[name] for name in ALL},
        "all networks": {damage: {"fdr": ratios[damage]} for damage in DAMAGES},
    }
    verdicts = {
        name: {
            damage: {key: verdict(levels) for key, levels in values.items()}
            for damage, values in of.items()
        }
        for name, of in every.items()
    }
    record = {
        "what": f"{N} emoji of 32x32 beside {REFERENCE} others, {chosen.draws} draws; see the script",
        "networks": names,
        "levels": DAMAGES,
        "values": every,
        "verdicts": verdicts,
        "cpu_seconds": spent + round(time.process_time() - started),
    }
    print(save("feature-sanity", record))
    picture(known, found).savefig(PICTURE, dpi=200)


if __name__ == "__main__":
    main()
