"""Distances between sets of images, measured on the features of a network.

- :func:`frechet_distance`: between Gaussians fitted to the features (Heusel et al. 2017, "FID").
- :func:`kid`: unbiased MMD² with a cubic kernel (Bińkowski et al. 2018).
- :func:`prdc`: precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al.
  2020).

The numbers depend on the network, on the reference set and on the number of images: only figures of
one protocol compare.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from partikel.errors import ConfigError, DataError
from partikel.errors.checks import Checked, checked
from partikel.files import reading, replacing
from partikel.kernels import squared_distances
from partikel.networks.weights import read_tensors, write_tensors


class FeatureNetwork(Protocol):
    """Maps images to vectors; its answer for an image depends on nothing else."""

    @property
    def name(self) -> str:
        """Names the network in protocols and in stored statistics."""
        ...

    @property
    def dimension(self) -> int:
        """Number of features."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Images in [-1, 1], (B, C, H, W) -> features (B, dimension)."""
        ...


@torch.no_grad()
@checked
def extract_features(network: FeatureNetwork, images: Tensor, chunk: int = 500) -> Tensor:
    """Features of many images, without gradients, a chunk at a time.

    Args:
        network: the feature network, on the device of ``images``.
        images: (n, C, H, W) in [-1, 1].
        chunk: images a call.

    Returns:
        (n, dimension).
    """
    return torch.cat([network(some) for some in images.split(chunk)])


KEPT = 10_000
"""Features of a set that are kept for what mean and covariance cannot tell: KID, precision and recall."""


class FeatureSet(Checked):
    """Features of a set of images: mean and covariance of all of them, and the first ones themselves.

    They are gathered batch by batch in float64 and constant memory. Batches are merged by the update of
    Chan, Golub & LeVeque 1979, so that neither their sizes nor their order changes the result beyond
    rounding.

    Args:
        network: name of the feature network.
        dimension: number of features D.
        limit: of the features that are kept.

    Attributes:
        n: features seen so far.
        mean: (D,) float64, on the CPU.
        scatter: (D, D) float64, Σ (f - mean)(f - mean)ᵀ.
    """

    def __init__(self, network: str, dimension: int, limit: int = KEPT) -> None:
        self.network, self.dimension, self.limit, self.n = network, dimension, limit, 0
        self.mean = torch.zeros(dimension, dtype=torch.float64)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64)
        self._kept: list[Tensor] = []

    @classmethod
    def of(cls, network: FeatureNetwork, features: Tensor) -> FeatureSet:
        """The features (n, D) that a network has of images, as a set."""
        made = cls(network.name, network.dimension)
        made.update(features)
        return made

    def update(self, features: Tensor) -> None:
        """Take in a batch of features, (B, D).

        Raises:
            ValueError: for features of another dimension.
        """
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise ValueError(f"features must be (B, {self.dimension}), not {tuple(features.shape)}")
        if len(features) == 0:
            return
        if room := max(0, self.limit - self.n):  # a copy, so that a larger batch need not stay
            self._kept.append(features.detach()[:room].to("cpu", torch.float32, copy=True))
        features = features.detach().cpu().double()
        mean, total = features.mean(0), self.n + len(features)
        centred, gap = features - mean, mean - self.mean
        self.scatter += centred.T @ centred
        self.scatter += torch.outer(gap, gap) * (self.n * len(features) / total)
        self.mean += gap * (len(features) / total)
        self.n = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (D, D) float64.

        Raises:
            ValueError: for fewer than two features.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least two features, not {self.n}")
        return self.scatter / (self.n - 1)

    @property
    def kept(self) -> Tensor:
        """The first features, (min(n, limit), D) float32 on the CPU."""
        if len(self._kept) != 1:
            empty = torch.zeros(0, self.dimension)
            self._kept = [torch.cat(self._kept) if self._kept else empty]
        return self._kept[0]

    def save(self, path: str | Path, about: str) -> None:
        """Write to a safetensors file, whole or not at all.

        Args:
            path: the file.
            about: what :meth:`load` has to be asked for.

        Raises:
            NumericsError: where a feature was not finite.
        """
        metadata = {"format": _FORMAT, "network": self.network, "n": str(self.n), "about": about}
        tensors = {"mean": self.mean, "scatter": self.scatter, "kept": self.kept}
        with replacing(path) as part:
            write_tensors(part, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, about: str, limit: int = KEPT) -> FeatureSet:
        """Read what :meth:`save` wrote; executes nothing.

        Raises:
            DataError: where the file is missing, truncated, of another kind, or not what it is
                asked for.
        """
        mend = "delete the file to compute the feature statistics again."
        tensors, metadata = read_tensors(Path(path), mend, error=DataError)
        with reading(Path(path), f"holds no feature statistics of this version: {mend}", DataError):
            made = cls(metadata["network"], len(tensors["mean"]), limit)
            made.n, kept = int(metadata["n"]), tensors["kept"]
            shapes = made.mean.shape, made.scatter.shape, (len(kept), made.dimension)
            made.mean, made.scatter, made._kept = tensors["mean"], tensors["scatter"], [kept]
            right = shapes == (made.mean.shape, made.scatter.shape, kept.shape)
            if metadata["format"] != _FORMAT or made.n < 0 or not right:
                raise ValueError
        if metadata.get("about") != about:
            raise DataError(f"{path} holds the features of other images: delete it")
        return made


_FORMAT = "partikel.feature_set/1"


@checked
def frechet_distance(a: FeatureSet, b: FeatureSet) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½): the squared W2 between two fitted Gaussians.

    Dowson & Landau 1982; Heusel et al. 2017. tr (C_a C_b)^½ is the sum of the singular values of
    F_aᵀ F_b, C = F Fᵀ: with factors of the matrices only, singular covariances do no harm. Biased
    upwards by the finite number of images, the more the fewer there are. NaN where a feature was
    not finite.

    Raises:
        ConfigError: where the features are of different networks.
        ValueError: for fewer than two features.
    """
    if (a.network, a.dimension) != (b.network, b.dimension):
        raise ConfigError(
            f"features of '{a.network}' ({a.dimension}) do not compare with those of '{b.network}' "
            f"({b.dimension}): measure both sets of images with one feature network"
        )
    of_a, of_b = a.covariance, b.covariance
    if not (of_a.isfinite().all() and of_b.isfinite().all()):
        return torch.nan
    overlap = torch.linalg.svdvals(_factor(of_a).T @ _factor(of_b)).sum()
    distance = (a.mean - b.mean).square().sum() + of_a.trace() + of_b.trace() - 2 * overlap
    return max(0.0, distance.item())


def _factor(matrix: Tensor) -> Tensor:
    """F with F Fᵀ = C, a positive semi-definite matrix."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:  # of few images; QR does what divide and conquer gives up on
        import scipy.linalg  # a tenth of a second

        found = scipy.linalg.eigh(matrix.cpu().numpy(), driver="ev")
        values, vectors = (torch.from_numpy(each).to(matrix) for each in found)
    # Rounding makes eigenvalues that are zero slightly negative.
    return vectors * values.clamp(min=0).sqrt()


class KernelDistance(NamedTuple):
    """:func:`kid` over its subsets."""

    mean: float
    std: float
    """Standard deviation between subsets (not the standard error of the mean)."""


@checked
def kid(
    x: Tensor,
    y: Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    *,
    generator: torch.Generator,
) -> KernelDistance:
    """Kernel distance: unbiased MMD² with k(f, g) = (f·g / D + 1)³, averaged over random subsets.

    Bińkowski et al. 2018. Unlike the Fréchet distance it has no bias at few images.

    Args:
        x: (n, D) features.
        y: (m, D) features of the reference.
        subsets: how many pairs of subsets, drawn without replacement within each.
        subset_size: features in a subset, at least 2, at most n and m.
        generator: draws the subsets.

    Raises:
        ValueError: for unlike shapes or a subset size that does not fit.
    """
    _check_features(x, y)
    if subsets < 1 or not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(
            f"subset_size must be between 2 and the number of features ({len(x)} and {len(y)}) and "
            f"subsets positive, not {subset_size} and {subsets}"
        )
    x, y = x.detach().double(), y.detach().to(x.device, torch.float64)
    pairs = subset_size * (subset_size - 1)

    def draw(features: Tensor) -> Tensor:
        order = torch.randperm(len(features), generator=generator, device=generator.device)
        return features[order[:subset_size].to(features.device)]

    def kernel(f: Tensor, g: Tensor) -> Tensor:
        return (f @ g.T).div_(f.shape[1]).add_(1).pow_(3)

    values = []
    for _ in range(subsets):
        f, g = draw(x), draw(y)
        within = [(k := kernel(h, h)).sum() - k.trace() for h in (f, g)]
        values.append((within[0] + within[1]) / pairs - 2 * kernel(f, g).mean())
    of_subsets = torch.stack(values)
    return KernelDistance(of_subsets.mean().item(), of_subsets.std(correction=0).item())


class PRDC(NamedTuple):
    """Quality and variety, apart. Density may exceed 1; the others lie in [0, 1]."""

    precision: float
    """Share of generated images that lie in the neighbourhood of some real one."""
    recall: float
    """Share of real images that lie in the neighbourhood of some generated one."""
    density: float
    """Mean number of real neighbourhoods that hold a generated image, over k; 1 for equal laws."""
    coverage: float
    """Share of real images whose neighbourhood holds a generated one."""


@checked
def prdc(real: Tensor, fake: Tensor, k: int = 5) -> PRDC:
    """Precision, recall, density and coverage.

    The neighbourhood of a point is the closed ball that reaches its k-th nearest other point of the
    same set: Kynkäänniemi et al. 2019, eqs. 1-3 (precision, recall); Naeem et al. 2020, eqs. 4-5
    (density, coverage). Distances are computed in float64, in tiles of rows.

    Args:
        real: (n, D) features of the reference.
        fake: (m, D) features of generated images.
        k: which neighbour sets the radius; less than n and m.

    Raises:
        ValueError: for unlike shapes or a k that does not fit.
    """
    _check_features(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"k must be at least 1 and less than the number of features ({len(real)} and "
            f"{len(fake)}), not {k}"
        )
    real = real.detach().double()
    centre = real.mean(0)
    real, fake = real - centre, fake.detach().to(real.device, torch.float64) - centre
    real_radii, fake_radii = _squared_radii(real, k), _squared_radii(fake, k)
    holding = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    recalled = covered = 0
    for some, radii in zip(real.split(_ROWS), real_radii.split(_ROWS), strict=True):
        squared = squared_distances(some, fake, exact=False)
        inside = squared <= radii[:, None]
        holding += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((squared <= fake_radii).any(1).sum())
    return PRDC(
        precision=(holding > 0).double().mean().item(),
        recall=recalled / len(real),
        density=holding.double().mean().item() / k,
        coverage=covered / len(real),
    )


_ROWS = 512


def _squared_radii(points: Tensor, k: int) -> Tensor:
    """Squared distance of each point from its k-th nearest other point: (n, D) -> (n,)."""
    radii = []
    for start in range(0, len(points), _ROWS):
        squared = squared_distances(points[start : start + _ROWS], points, exact=False)
        squared.diagonal(start).fill_(torch.inf)
        radii.append(squared.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)


def _check_features(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features must be (n, D) and (m, D), not {tuple(x.shape)} and {tuple(y.shape)}"
        )
