"""Exact laws: densities, scores and samplers in closed form at every noise level.

For a law p and a noise level σ, everything is about p_σ = p ⋆ N(0, σ² I): the data smoothed by
Gaussian noise, which is what a denoiser learns. Gaussians and their mixtures stay in their family,

    p_σ = Σ_k w_k N(m_k, C_k + σ² I),

so the same few lines answer for every σ, and tests and measurements have something exact to hold
on to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from partikel.errors.checks import Checked, Natural, checked
from partikel.streams import normal
from partikel.tensors import expand_like


class Target(Checked, ABC):
    """A law on R^D that is known exactly.

    Results follow the dtype and the device of ``x``; ``sigma`` is (B,), one noise level a sample,
    or None for the law itself. All functions of ``x`` are differentiable.
    """

    shape: tuple[int, ...]

    @property
    def dim(self) -> int:
        """Number of coordinates D."""
        return math.prod(self.shape)

    @abstractmethod
    def sample(
        self,
        n: Natural,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw ``n`` independent points of the law itself (σ = 0).

        Args:
            n: number of points.
            generator: source of randomness; the numbers are drawn on its device.
            dtype: torch's default where None.
            device: where the result goes; the generator's device where None.

        Returns:
            (n, D).
        """

    @abstractmethod
    def log_density(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Natural logarithm of p_σ(x): (B, D) -> (B,)."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """s_p(x, σ) = ∇ log p_σ(x): (B, D) -> (B, D)."""

    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_0 + σε = x] = x + σ² s_p(x, σ), by Tweedie's formula: (B, D) -> (B, D)."""
        return x + expand_like(sigma, x) ** 2 * self.score(x, sigma)


class _Constants(NamedTuple):
    """A mixture's numbers in one dtype on one device."""

    means: Tensor  # (K, D)
    variances: Tensor  # (K, D), along the axes
    axes: Tensor | None  # (K, D, D), columns are the axes; None: the coordinate axes
    log_weights: Tensor  # (K,)
    scales: Tensor  # (K, D), square roots of the variances; (1, D) where all have the same
    boundaries: Tensor  # (K - 1,), of the cumulative weights

    def to(self, dtype: torch.dtype, device: torch.device) -> _Constants:
        return self._make(part if part is None else part.to(device, dtype) for part in self)


class GaussianMixture(Target):
    """Σ_k w_k N(m_k, C_k).

    The covariances are diagonalised once, in float64; after that every σ only shifts the variances
    along the axes.

    Args:
        means: (K, D).
        covariances: (K, D, D), symmetric positive definite; or give ``std``.
        std: standard deviation of isotropic components, one number or (K,), positive.
        weights: (K,), positive, normalised to sum to one; equal where None.

    Raises:
        ValueError: where shapes disagree, a covariance is not symmetric positive definite, a std
            or a weight is not positive, or not exactly one of ``covariances`` and ``std`` is given.
    """

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        covariances: Tensor | Sequence[Sequence[Sequence[float]]] | None = None,
        *,
        std: float | Tensor | Sequence[float] | None = None,
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        self.means: Tensor = torch.as_tensor(means, dtype=torch.float64)
        """(K, D), float64."""
        if self.means.ndim != 2:
            raise ValueError(f"means must be (K, D), not {tuple(self.means.shape)}")
        count, dim = self.means.shape
        self.shape = (dim,)

        def numbers(values: object) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float64, device=self.means.device)

        if (covariances is None) == (std is None):
            raise ValueError("give either covariances or std")
        if std is not None:
            stds = numbers(std)
            if stds.shape not in ((), (count,)) or not (stds > 0).all():
                raise ValueError(f"std must be one positive number or {count} of them")
            variances, axes = stds.expand(count)[:, None].expand(count, dim) ** 2, None
        else:
            matrices = numbers(covariances)
            if matrices.shape != (count, dim, dim):
                raise ValueError(
                    f"covariances must be {(count, dim, dim)}, not {tuple(matrices.shape)}"
                )
            # Covariances computed in float32 are symmetric to its rounding only.
            if (matrices - matrices.mT).abs().amax() > 1e-5 * matrices.abs().amax():
                raise ValueError("covariances must be symmetric")
            variances, axes = torch.linalg.eigh((matrices + matrices.mT) / 2)
            # Rounding gives a singular matrix eigenvalues of about eps times its largest.
            if not (variances > 1e-14 * variances.amax(1, keepdim=True)).all():
                raise ValueError("covariances must be positive definite")

        shares = numbers([1.0] * count if weights is None else weights)
        if shares.shape != (count,) or not (shares > 0).all():
            raise ValueError(f"weights must be {count} positive numbers")
        self._equal = bool((shares == shares[0]).all())
        self.weights: Tensor = shares / shares.sum()
        """(K,), float64, summing to one."""
        self._exact = _Constants(
            self.means,
            variances,
            axes,
            self.weights.log(),
            variances.sqrt() if (variances != variances[0]).any() else variances[:1].sqrt(),
            self.weights.cumsum(0)[:-1],
        )
        self._constants: dict[tuple[torch.dtype, torch.device], _Constants] = {}

    @property
    def covariances(self) -> Tensor:
        """Covariance of each component, (K, D, D), float64."""
        variances, axes = self._exact.variances, self._exact.axes
        if axes is None:
            return torch.diag_embed(variances)
        return (axes * variances[:, None]) @ axes.mT

    @property
    def stds(self) -> Tensor:
        """Standard deviation of each component, (K,), float64: root mean square over its axes."""
        return self._exact.variances.mean(1).sqrt()

    @property
    def mean(self) -> Tensor:
        """Mean of the whole mixture, (D,), float64."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """Covariance of the whole mixture, (D, D), float64."""
        spread = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + torch.einsum(
            "k,ki,kj->ij", self.weights, spread, spread
        )

    @property
    def sigma_data(self) -> float:
        """Standard deviation of all coordinates of all points, taken as one list of numbers."""
        mean = self.mean
        second = self.covariance.diagonal() + mean**2
        return math.sqrt(float(second.mean() - mean.mean() ** 2))

    def sample(
        self,
        n: Natural,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """See :meth:`Target.sample`."""
        return self.sample_labelled(n, generator=generator, dtype=dtype, device=device)[0]

    def sample_labelled(
        self,
        n: Natural,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw points together with the components they came from.

        Args:
            n: number of points.
            generator: source of randomness; the numbers are drawn on its device.
            dtype: torch's default where None.
            device: where the results go; the generator's device where None.

        Returns:
            The points (n, D) and their components (n,), int64.
        """
        home = generator.device
        own = self._on(dtype or torch.get_default_dtype(), home)
        if self._equal:
            labels = torch.randint(len(self.weights), (n,), generator=generator, device=home)
        else:
            uniform = torch.rand(n, generator=generator, dtype=own.means.dtype, device=home)
            labels = torch.bucketize(uniform, own.boundaries, right=True)
        noise = normal(n, self.dim, generator=generator, dtype=own.means.dtype)
        alike = len(own.scales) == 1
        noise = noise.mul_(own.scales if alike else own.scales.index_select(0, labels))
        if own.axes is not None:
            noise = (own.axes.index_select(0, labels) @ noise[..., None])[..., 0]
        x = noise.add_(own.means.index_select(0, labels))
        return x.to(device or home), labels.to(device or home)

    def log_density(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """See :meth:`Target.log_density`."""
        return self._joint(*self._whiten(x, sigma)).logsumexp(1)

    def responsibilities(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Probability of each component given x = x_0 + σε: (B, D) -> (B, K)."""
        return self._joint(*self._whiten(x, sigma)).softmax(1)

    def score(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """See :meth:`Target.score`."""
        offsets, variances = self._whiten(x, sigma)
        posterior = self._joint(offsets, variances).softmax(1)
        return -self._average(posterior, offsets / variances)

    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See :meth:`Target.denoiser`; computed as a mean of posterior means.

        Tweedie's sum x + σ² s_p cancels to nothing at large σ; this form keeps its digits.
        """
        offsets, variances = self._whiten(x, sigma)
        own = self._on(x.dtype, x.device)
        posterior = self._joint(offsets, variances).softmax(1)
        return posterior @ own.means + self._average(
            posterior, offsets * (own.variances / variances)
        )

    def _on(self, dtype: torch.dtype, device: torch.device) -> _Constants:
        """The mixture's numbers as ``dtype`` on ``device``, copied there once."""
        if (dtype, device) not in self._constants:
            # A copy made inside inference mode could never take part in a gradient later.
            with torch.inference_mode(False):
                self._constants[dtype, device] = self._exact.to(dtype, device)
        return self._constants[dtype, device]

    def _whiten(self, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
        """Offsets of x from each mean along its axes, and the variances of p_σ there: (B, K, D)."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"this law is of points (B, {self.dim}), got {tuple(x.shape)}")
        own = self._on(x.dtype, x.device)
        offsets = x[:, None] - own.means
        if own.axes is not None:
            offsets = torch.einsum("bki,kij->bkj", offsets, own.axes)
        variances = own.variances
        if sigma is not None:
            variances = variances + expand_like(sigma, offsets) ** 2
        return offsets, variances

    def _joint(self, offsets: Tensor, variances: Tensor) -> Tensor:
        """Logarithm of w_k N(x; m_k, C_k + σ² I): (B, K)."""
        own = self._on(offsets.dtype, offsets.device)
        exponents = (offsets**2 / variances + variances.log()).sum(-1)
        return own.log_weights - 0.5 * (exponents + self.dim * math.log(2 * math.pi))

    def _average(self, posterior: Tensor, along: Tensor) -> Tensor:
        """Posterior mean of vectors given along each component's axes: (B, K, D) -> (B, D)."""
        own = self._on(along.dtype, along.device)
        weighted = posterior[..., None] * along
        if own.axes is None:
            return weighted.sum(1)
        return torch.einsum("bkj,kij->bi", weighted, own.axes)


class Gaussian(GaussianMixture):
    """N(mean, covariance).

    Args:
        mean: (D,).
        covariance: (D, D), symmetric positive definite; or give ``std``.
        std: standard deviation of every coordinate, positive.

    Raises:
        ValueError: see :class:`GaussianMixture`.
    """

    def __init__(
        self,
        mean: Tensor | Sequence[float],
        covariance: Tensor | Sequence[Sequence[float]] | None = None,
        *,
        std: float | None = None,
    ) -> None:
        means = torch.as_tensor(mean, dtype=torch.float64)[None]
        matrix = None if covariance is None else torch.as_tensor(covariance, dtype=torch.float64)
        super().__init__(means, None if matrix is None else matrix[None], std=std)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self ‖ other), a float64 scalar."""
        return gaussian_kl(self.mean, self.covariance, other.mean, other.covariance)


@checked
def gaussian_kl(mean: Tensor, covariance: Tensor, to_mean: Tensor, to_covariance: Tensor) -> Tensor:
    """KL( N(mean, covariance) ‖ N(to_mean, to_covariance) ) in nats.

    Args:
        mean: (..., D).
        covariance: (..., D, D), positive definite.
        to_mean: (..., D).
        to_covariance: (..., D, D), positive definite.

    Returns:
        (...), the leading dimensions broadcast together.
    """
    lower, to_lower = torch.linalg.cholesky(covariance), torch.linalg.cholesky(to_covariance)
    # With S = L Lᵀ and S' = L' L'ᵀ: tr(S'⁻¹ S) = ‖L'⁻¹ L‖², and the offset adds ‖L'⁻¹ (m' - m)‖².
    offset = (to_mean - mean)[..., None]
    ratio = torch.linalg.solve_triangular(to_lower, lower, upper=False)
    shift = torch.linalg.solve_triangular(to_lower, offset, upper=False)
    log_det = ratio.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    squares = ratio.square().sum((-2, -1)) + shift.square().sum((-2, -1))
    return 0.5 * (squares - mean.shape[-1]) - log_det
