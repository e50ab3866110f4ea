"""Evaluation: figures with their protocol, beside those of the data against itself.

For points: energy distance, MMD², sliced and exact W2, and for mixtures the modes. For images: a
Fréchet distance, KID and precision/recall/density/coverage on a named feature network.

Images are drawn and measured in chunks of a fixed size, each with a seed of its own, so that memory
does not grow with their number and several processes, which take the chunks in turn, arrive at the
numbers of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partikel.data import Dataset, FiniteDataset
from partikel.data.files import user_path
from partikel.errors import ConfigError, DataError, NumericsError, installed, mend_of
from partikel.files import fingerprint
from partikel.metrics import (
    BANDWIDTHS,
    KEPT,
    PRDC,
    FeatureNetwork,
    FeatureSet,
    ModeStatistics,
    Neighbours,
    PhotographFeatures,
    default_feature_network,
    feature_network,
    frechet_distance,
    kid,
    memorised,
    mode_statistics,
    nearest_neighbours,
    negative_log_likelihood,
    pairwise_distances_report,
    prdc,
    sliced_wasserstein2,
    wasserstein2,
)
from partikel.streams import normal, seeded
from partikel.targets import GaussianMixture
from partikel.tensors import check_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

Sampler = Callable[[int, torch.Generator], Tensor]
"""(n, generator) -> (n, ...) samples."""

EXACT_W2_POINTS = 2000
"""Points of each cloud for the exact W2, whose cost grows as the cube of their number."""

NEIGHBOUR = 5
"""Which neighbour sets the radius of precision, recall, density and coverage."""

QUICK_PHOTOGRAPHS = 500
"""Most images of a quick evaluation on a large feature network."""

LEAST = {"frechet": 2, "kid": 2, **dict.fromkeys(PRDC._fields, NEIGHBOUR + 1)}
"""Images that a measure of images takes, of each side."""

EXACT = 1e-4
"""Distance of an image from its copy, in standard deviations of the features: rounding."""


@dataclass(frozen=True)
class Evaluation:
    """Figures and what they mean.

    Attributes:
        metrics: name -> value for the model's samples.
        reference: the same figures for a second, independent draw of the data.
        protocol: number of samples, seed, reference split, features.
        baselines: the same figures for what is no model, by name.
        left_out: figures that could not be measured, and why.
    """

    metrics: dict[str, float]
    reference: dict[str, float]
    protocol: dict[str, Any]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def choose_features(
    name: str | None, dataset: Dataset, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """The feature network for a data set's images.

    Args:
        name: of a network, see :func:`partikel.metrics.feature_network`; None for the one that
            suits the data set, see :func:`partikel.metrics.default_feature_network`.
        dataset: images.
        device: where it runs.

    Raises:
        ConfigError: for an unknown name, a missing package, or images that the network cannot see.
    """
    if name is None:
        return default_feature_network(dataset.name, dataset.shape, device)
    return feature_network(name, dataset.shape, device)


def evaluate(
    sampler: Sampler,
    dataset: Dataset,
    *,
    n: int = 10_000,
    seed: int = 0,
    split: str = "test",
    features: str | None = None,
    baselines: bool = False,
    device: torch.device | str = "cpu",
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Measure samples against a split of the data, and the data against themselves.

    Args:
        sampler: draws the model's samples.
        dataset: points or images.
        n: samples, and reference points; images are capped by the size of the split.
        seed: of samples and reference.
        split: reference split; the data-vs-data row compares it with as many training points, or
            the training points with as many of the test split.
        features: a feature network for images; None chooses one.
        baselines: measure what is no model too (images only): Gaussian noise, the mean training
            image, and copies of training images where they are not the data-vs-data row.
        device: where samples are drawn, and images measured.
        accelerator: several processes that share the chunks; all of them get the figures.

    Returns:
        The figures; of few images those that so few allow.

    Raises:
        ConfigError: for impossible numbers or features.
        DataError: where a split has too few points.
    """
    if n < 2:
        raise ConfigError(f"an evaluation compares at least 2 samples, got n = {n}.")
    if len(dataset.shape) > 1 and n <= NEIGHBOUR < dataset.at_most(NEIGHBOUR + 1, split):
        raise ConfigError(
            f"images are measured by their {NEIGHBOUR} nearest neighbours, which takes more than {n} of "
            "them: ask for more."
        )
    n = dataset.at_most(n, split)
    other_split = "test" if split == "train" else "train"
    m = dataset.at_most(n, other_split)
    protocol: dict[str, Any] = {
        "data": dataset.name,
        "samples": n,
        "split": split,
        "seed": seed,
        "reference": f"{m} points of the data ({other_split}) in the samples' place",
    }
    work = _Work(dataset, seed, device, accelerator)
    if len(dataset.shape) == 1:
        _check_points(dataset, {split: n, other_split: m}, features, baselines)
        protocol |= {
            "mmd2": f"unbiased, mean of RBF kernels of σ in {list(BANDWIDTHS)}",
            "energy": "2E|x-y| - E|x-x'| - E|y-y'|, unbiased",
            "sliced_w2": "root of the mean squared W2 over 512 fixed projections",
            "w2": f"exact, {min(n, EXACT_W2_POINTS)} points",
        }
        reference = work.held(n, split, "reference")
        second = work.held(m, other_split, "second")
        samples = torch.cat([x.cpu() for x in work.samples(sampler, n)])
        return Evaluation(
            point_metrics(samples, reference, dataset),
            point_metrics(second, reference, dataset),
            protocol,
            left_out={} if installed("ot") else {"w2": f"needs POT: {mend_of('transport')}"},
        )
    left_out = {
        name: f"needs {least} {split} images, there are {n}"
        for name, least in LEAST.items()
        if n < least
    }
    network = choose_features(features, dataset, device)
    protocol |= {
        "features": network.name,
        "dimension": network.dimension,
    }
    kept = min(n, KEPT)
    if "kid" not in left_out:
        size = min(1000, n, m)
        protocol["kid"] = f"cubic kernel, unbiased, 100 subsets of {size} of {kept} images"
    if "precision" not in left_out:
        protocol["prdc"] = f"neighbourhoods of k = {NEIGHBOUR}, of {kept} images"
    real = work.of_data(network, n, split, "reference")

    def figures(some: FeatureSet) -> dict[str, float]:
        return image_metrics(some, real, seed, device)

    metrics = figures(work.of_samples(network, n, sampler, "samples"))
    rows: dict[str, dict[str, float]] = {}
    if baselines:
        rows["noise"] = figures(work.of_samples(network, n, _noise(dataset), "noise"))
        rows["mean image"] = figures(work.of_mean(network, n))
        if split == "train":
            rows["training copies"] = figures(work.of_data(network, n, "train", "copies"))
    second = figures(work.of_data(network, m, other_split, "second"))
    return Evaluation(metrics, second, protocol, rows, left_out)


def _check_points(
    dataset: Dataset, splits: Mapping[str, int], features: str | None, baselines: bool
) -> None:
    """Refuse what points are not measured with, and too few of them."""
    if baselines:
        raise ConfigError("baselines are measured for images: leave them out for points.")
    if features is not None:
        raise ConfigError(f"'{features}' sees images only: leave out features for points.")
    least = min(splits.values())
    if least < 2:
        raise DataError(
            f"points are measured against at least 2 others, but of the {' and '.join(splits)} "
            f"splits of '{dataset.name}' one has {least}: give it more"
        )


def quick_evaluation(
    sampler: Sampler,
    dataset: Dataset,
    *,
    n: int,
    seed: int = 0,
    split: str = "validation",
    device: torch.device | str = "cpu",
    unbiased: bool = False,
) -> dict[str, float]:
    """The one or two figures worth watching during training, on the validation split.

    The distance of points is unbiased. That of images, Fréchet's, is not: of few images it is large even
    for data. KID is 0 on average for data, however few.

    Args:
        sampler: draws the model's samples.
        dataset: points or images.
        n: samples; fewer of images that take a large feature network.
        seed: of samples and reference; the same at each call, so that curves are smooth.
        split: the reference.
        device: where samples are drawn, and images measured.
        unbiased: measure images by KID too, on the same features.

    Returns:
        "energy" (and "modes" for mixtures) of points, "frechet" (and "kid") of images; nothing where
        the split has fewer than two.
    """
    n = dataset.at_most(n, split)
    if n < 2:
        return {}
    work = _Work(dataset, seed, device)
    if len(dataset.shape) > 1:
        network = choose_features(None, dataset, device)
        if isinstance(network, PhotographFeatures):
            n = min(n, QUICK_PHOTOGRAPHS)
        real = work.of_data(network, n, split, "watched reference")
        fake = work.of_samples(network, n, sampler, "watched samples")
        found = {"frechet": frechet_distance(fake, real)}
        if unbiased:
            x, y, source = fake.kept.cpu(), real.kept.cpu(), _generator(seed, "watched kid")
            found["kid"] = kid(x, y, subset_size=min(1000, n), generator=source).mean
        return found
    reference = dataset.draw(n, split, generator=_generator(seed, "watched reference")).x
    samples = sampler(n, _generator(seed, "watched samples", device=device)).cpu()
    report = pairwise_distances_report(samples, reference)
    figures = {"energy": report.energy}
    if isinstance(dataset.target, GaussianMixture):
        figures["modes"] = _modes(samples, dataset.target).covered
    return figures


def point_metrics(samples: Tensor, reference: Tensor, dataset: Dataset) -> dict[str, float]:
    """All figures of points (n, D) against a reference (m, D); "w2" where POT is installed."""
    distances = pairwise_distances_report(samples, reference)
    few = slice(None, EXACT_W2_POINTS)
    figures = {
        "energy": distances.energy,
        "mmd2": distances.mmd2,
        "sliced_w2": sliced_wasserstein2(samples, reference),
    }
    if installed("ot"):
        figures["w2"] = wasserstein2(samples[few], reference[few])
    target = dataset.target
    if isinstance(target, GaussianMixture):
        modes = _modes(samples, target)
        figures |= {
            "modes": modes.covered,
            "within_3sigma": modes.within_3sigma,
            "mode_tv": modes.total_variation,
        }
    if target is not None:
        figures["nll"] = negative_log_likelihood(samples, target)
    return figures


def _modes(samples: Tensor, target: GaussianMixture) -> ModeStatistics:
    return mode_statistics(samples, target.means, target.stds, target.weights)


def image_metrics(
    fake: FeatureSet, real: FeatureSet, seed: int, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """All figures of the features of images against those of a reference.

    The Fréchet distance is of all features, the others of those that are kept. Those for which there are
    fewer than :data:`LEAST` are left out.
    """
    fast = device if torch.device(device).type == "cuda" else "cpu"  # others lack float64
    x, y = fake.kept.to(fast), real.kept.to(fast)
    few, figures = min(len(x), len(y)), {}
    if few >= LEAST["kid"]:
        figures["frechet"] = frechet_distance(fake, real)
        source = _generator(seed, "kid")
        figures["kid"] = kid(x, y, subset_size=min(1000, few), generator=source).mean
    if few > NEIGHBOUR:
        figures |= prdc(y, x, NEIGHBOUR)._asdict()
    return figures


@dataclass(frozen=True)
class Memorisation:
    """Nearest training images of samples, and of held-out images beside them.

    Attributes:
        samples: (n, ...) the samples.
        neighbours: their nearest training images.
        held_out: nearest training images of as many test images, which nothing has memorised.
        exact: distance below which an image is a copy.
        protocol: numbers, seed, features.
    """

    samples: Tensor
    neighbours: Neighbours
    held_out: Neighbours
    exact: float
    protocol: dict[str, Any]

    @property
    def figures(self) -> dict[str, float]:
        """Shares of images that :func:`partikel.metrics.memorised` says are copies, and distances.

        Those of test images are left out where there are none.
        """
        figures: dict[str, float] = {}
        for name, found in (("samples", self.neighbours), ("test images", self.held_out)):
            distances = found.distances
            if len(distances) == 0:
                continue
            figures[f"memorised {name}"] = memorised(distances, self.exact).double().mean().item()
            figures[f"distance of {name}"] = distances[:, 0].median().item()
        return figures


def find_memorised(
    sampler: Sampler,
    dataset: Dataset,
    *,
    n: int = 500,
    k: int | None = None,
    seed: int = 0,
    features: str | None = None,
    device: torch.device | str = "cpu",
) -> Memorisation:
    """Look for samples that copy training images.

    Args:
        sampler: draws the model's samples.
        dataset: images.
        n: samples; as many test images are looked at, if there are.
        k: neighbours, at least 2; 5, or all training images where they are fewer, where None.
        seed: of samples and test images.
        features: the feature network in whose space images are near; None chooses one, "pixels"
            compares the images themselves.
        device: where samples are drawn, and images measured.

    Raises:
        ConfigError: for data without a finite set of training images, or impossible numbers.
        DataError: where there are fewer than two training images.
    """
    size, held_out = dataset.size("train"), dataset.size("test")
    if size is None or held_out is None or len(dataset.shape) == 1:
        raise ConfigError(
            f"'{dataset.name}' is no finite set of images: there is nothing to memorise in it."
        )
    if size < 2:
        raise DataError(f"'{dataset.name}' has {size} training images: neighbours need at least 2")
    k = min(NEIGHBOUR, size) if k is None else k
    check_memory(n, dataset.shape)
    if n < 1 or not 2 <= k <= size:
        raise ConfigError(
            f"neighbours need n >= 1 and 2 <= k <= {size} (the training images), got n = {n} and "
            f"k = {k}."
        )
    network = choose_features(features, dataset, device)
    work = _Work(dataset, seed, device)
    training = work.of_data(network, size, "train", None, limit=size)
    others = work.of_data(network, min(n, held_out), "test", "held out", limit=n)
    samples, own = [], FeatureSet(network.name, network.dimension, limit=n)
    for chunk in work.samples(sampler, n, "neighbours"):
        own.update(_features(network, chunk))
        samples.append(chunk.cpu())
    spread = training.covariance.trace().sqrt().item()
    return Memorisation(
        torch.cat(samples),
        nearest_neighbours(own.kept.to(device), training.kept, k),
        nearest_neighbours(others.kept.to(device), training.kept, k),
        EXACT * spread,
        {
            "data": dataset.name,
            "samples": n,
            "test images": min(n, held_out),
            "training images": size,
            "neighbours": k,
            "seed": seed,
            "features": network.name,
        },
    )


def chunk_size(shape: tuple[int, ...]) -> int:
    """How many points or images are drawn at once: fixed, so that it cannot change the numbers."""
    if len(shape) == 1:
        return 10_000
    return min(1000, max(16, 2**18 // (shape[-1] * shape[-2])))


def in_chunks(
    make: Callable[[int, int], Tensor],
    n: int,
    chunk: int,
    shape: tuple[int, ...],
    accelerator: Accelerator | None = None,
) -> Iterator[Tensor]:
    """Rows in chunks, each made by one process, and handed out in their order by all.

    Args:
        make: (number of the chunk, rows) -> (rows, *shape), float32.
        n: rows.
        chunk: rows of a chunk; the last one may have fewer.
        shape: of a row.
        accelerator: the processes; chunk i is made by process i modulo their number.

    Yields:
        (rows, *shape), the same in every process.
    """
    sizes = [min(chunk, n - start) for start in range(0, n, chunk)]
    if accelerator is None or accelerator.num_processes == 1:
        for number, rows in enumerate(sizes):
            yield make(number, rows)
        return
    rank, world = accelerator.process_index, accelerator.num_processes
    for first in range(0, len(sizes), world):
        turn = sizes[first : first + world]
        # Gathering takes tensors of one shape, from every process.
        padded = torch.zeros(chunk, *shape, device=accelerator.device)
        if rank < len(turn):
            padded[: turn[rank]] = make(first + rank, turn[rank]).to(accelerator.device)
        gathered = accelerator.gather(padded)
        assert isinstance(gathered, Tensor)
        for part, rows in zip(gathered.split(chunk), turn, strict=False):
            yield part[:rows]


def statistics_folder() -> Path:
    """Where features of data are kept: ``statistics`` in $PARTIKEL_CACHE, else ~/.cache/partikel."""
    return user_path(os.environ.get("PARTIKEL_CACHE") or "~/.cache/partikel") / "statistics"


@dataclass(frozen=True)
class _Work:
    """What all rows of an evaluation share: data, seed, device, processes."""

    dataset: Dataset
    seed: int
    device: torch.device | str
    accelerator: Accelerator | None = None

    @property
    def chunk(self) -> int:
        return chunk_size(self.dataset.shape)

    def samples(self, sampler: Sampler, n: int, purpose: str = "samples") -> Iterator[Tensor]:
        """Samples in chunks, each from a generator of its own."""
        return in_chunks(
            self._drawn(sampler, purpose), n, self.chunk, self.dataset.shape, self.accelerator
        )

    def held(self, n: int, split: str, purpose: str) -> Tensor:
        """(n, ...) points of the data, those that figures are measured against, on the CPU."""
        if len(self.dataset.shape) == 1:
            return self.dataset.draw(n, split, generator=_generator(self.seed, purpose)).x
        chunks = in_chunks(self._images(split, purpose), n, self.chunk, self.dataset.shape)
        return torch.cat([x.cpu() for x in chunks])

    def of_samples(
        self, network: FeatureNetwork, n: int, sampler: Sampler, purpose: str
    ) -> FeatureSet:
        """Features of samples."""
        return self._gather(network, n, self._drawn(sampler, purpose))

    def of_data(
        self, network: FeatureNetwork, n: int, split: str, purpose: str | None, limit: int = KEPT
    ) -> FeatureSet:
        """Features of n images of a split, in random order (in their own without a purpose).

        They are kept on disk under the data's fingerprint and all that the features depend on.
        """
        dataset, seed = self.dataset, self.seed
        about = {
            "data": dataset.fingerprint(split),
            "split": split,
            "features": network.name,
            "images": n,
            "order": "stored" if purpose is None else f"{purpose}, seed {seed}",
            "kept": limit,
        }
        text = json.dumps(about, sort_keys=True)
        name = re.sub(r"\W+", "-", dataset.name)
        path = statistics_folder() / f"{name}-{split}-{fingerprint(about, 16)}.safetensors"
        found = None
        with contextlib.suppress(DataError):  # missing or damaged: computed again
            found = FeatureSet.load(path, text, limit)
        if self._everywhere(found is not None):
            assert found is not None
            return found
        made = self._gather(network, n, self._images(split, purpose), limit)
        if self.accelerator is None or self.accelerator.is_main_process:
            # without room for it only time is lost, and what is not finite is not kept
            with contextlib.suppress(OSError, NumericsError):
                made.save(path, text)
        return made

    def of_mean(self, network: FeatureNetwork, n: int) -> FeatureSet:
        """Features of the mean training image, n times."""
        size = self.dataset.size("train") or KEPT
        total = torch.zeros(self.dataset.shape, dtype=torch.float64)
        make = self._images("train", None)
        for number, start in enumerate(range(0, size, self.chunk)):
            total += make(number, min(self.chunk, size - start)).double().sum(0).cpu()
        mean = (total / size).float()[None].to(self.device)
        features = _features(network, mean)
        made = FeatureSet(network.name, network.dimension)
        for start in range(0, n, self.chunk):
            made.update(features.expand(min(self.chunk, n - start), -1))
        return made

    def _images(self, split: str, purpose: str | None) -> Callable[[int, int], Tensor]:
        """(number of the chunk, images) -> images."""
        dataset, chunk = self.dataset, self.chunk
        if isinstance(dataset, FiniteDataset):
            size = dataset.size(split)
            order = torch.arange(size)
            if purpose is not None:
                order = torch.randperm(size, generator=_generator(self.seed, purpose))

            def take(number: int, images: int) -> Tensor:
                index = order[number * chunk :][:images]
                return dataset.take(index, split).x.to(self.device)

            return take

        def draw(number: int, images: int) -> Tensor:
            generator = _generator(self.seed, purpose or "data", number)
            return dataset.draw(images, split, generator=generator, device=self.device).x

        return draw

    def _drawn(self, sampler: Sampler, purpose: str) -> Callable[[int, int], Tensor]:
        """(number of the chunk, rows) -> samples."""

        def draw(number: int, rows: int) -> Tensor:
            generator = _generator(self.seed, purpose, number, device=self.device)
            return sampler(rows, generator).to(self.device)

        return draw

    def _gather(
        self,
        network: FeatureNetwork,
        n: int,
        images: Callable[[int, int], Tensor],
        limit: int = KEPT,
    ) -> FeatureSet:
        """Features of n images, which are made chunk by chunk."""

        def make(number: int, rows: int) -> Tensor:
            return _features(network, images(number, rows))

        made = FeatureSet(network.name, network.dimension, limit)
        for features in in_chunks(make, n, self.chunk, (network.dimension,), self.accelerator):
            made.update(features)
        return made

    def _everywhere(self, here: bool) -> bool:
        """Whether it holds in every process: what they do next has to be the same."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return here
        flags = self.accelerator.gather(torch.tensor([here], device=self.accelerator.device))
        assert isinstance(flags, Tensor)
        return bool(flags.all())


@torch.no_grad()
def _features(network: FeatureNetwork, images: Tensor) -> Tensor:
    return network(images)


def _noise(dataset: Dataset) -> Sampler:
    def sampler(n: int, generator: torch.Generator) -> Tensor:
        return normal(n, *dataset.shape, generator=generator).clamp_(-1, 1)

    return sampler


def _generator(
    seed: int, purpose: str, chunk: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    # The first chunk's seed is that of samples which were drawn all at once, as they used to be.
    path = (purpose, chunk) if chunk else (purpose,)
    return seeded(seed, "evaluation", *path, device=device)
