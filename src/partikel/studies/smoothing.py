"""What a generator makes of a field, shown: ∇h before and after A_θ, its spectrum, its kernel's drift.

A generator does not follow a field but A_θ[∇h], the field averaged with the neural tangent kernel (GPM
eq. 13). Where the eigenvalues of A_θ fall fast, only the smooth part of the field arrives. In the
kernel regime K_θ stays as it was at the start; :class:`KernelDrift` measures how far training leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from partikel.app.show import plots
from partikel.errors import ConfigError
from partikel.models import Carrier, generate, ntk_matrix


@dataclass(frozen=True)
class Smoothing:
    """A field at a generator's outputs, before and after A_θ.

    Attributes:
        x: (B, ...) outputs g(z).
        velocity: (B, ...) ∇h(g(z)).
        smoothed: (B, ...) A_θ[∇h](z), the mean over the same latents.
        spectrum: (B D,) eigenvalues of A_θ, descending.
        energy: (B D,) share of ‖∇h‖² along each of its eigenvectors, in the same order.
    """

    x: Tensor
    velocity: Tensor
    smoothed: Tensor
    spectrum: Tensor
    energy: Tensor


def smoothing(generator: nn.Module, z: Tensor, velocity: Callable[[Tensor], Tensor]) -> Smoothing:
    """Measure what A_θ makes of a field, through the dense kernel of a few latents.

    Args:
        generator: g_θ, without batch statistics.
        z: (B, ...) latents.
        velocity: ∇h as a function of points (B, ...); asked once, about all of them.

    Raises:
        ConfigError: if the kernel is too large to build, see :func:`~partikel.models.ntk.ntk_matrix`.
    """
    x = generate(generator, z)
    field = velocity(x).detach()
    values, vectors = torch.linalg.eigh(ntk_matrix(generator, z) / len(z))
    along = vectors.T @ field.flatten()
    smoothed = (vectors @ (values * along)).view_as(x)
    energy = along.square() / along.square().sum()
    return Smoothing(x, field, smoothed, values.flip(0).clamp(min=0), energy.flip(0))


class KernelDrift:
    """‖K_t - K_0‖/‖K_0‖ (Frobenius) of a generator's tangent kernel along its training.

    As ``evaluate`` of :func:`~partikel.training.fit` it logs the drift and keeps it; with an average of
    the weights, it is the average's.

    Args:
        generator: as it stands at the start.
        z: (B, ...) latents at which kernels are compared.

    Attributes:
        curve: (iteration, drift) of every call.
    """

    def __init__(self, generator: nn.Module, z: Tensor) -> None:
        self._z = z
        self._start = ntk_matrix(generator, z)
        self.curve: list[tuple[int, float]] = []

    def __call__(self, model: Carrier, iteration: int) -> dict[str, float]:
        """The drift of a generator model's kernel, by name."""
        change = ntk_matrix(model.sampled, self._z) - self._start
        drift = float(change.norm() / self._start.norm())
        self.curve.append((iteration, drift))
        return {"kernel_drift": drift}


def show_smoothing(
    shown: Smoothing, drift: Sequence[tuple[float, float]] = (), *, inches: float = 2.6
) -> Figure:
    """The field, A_θ of it, the spectrum and, if there is one, the kernel's drift, side by side.

    Arrows of either field are drawn to its own scale, their root mean square 8 % of the view.

    Args:
        shown: of a generator with outputs in the plane.
        drift: (iteration, ‖K_t - K_0‖/‖K_0‖), such as ``KernelDrift.curve``.
        inches: width of a panel.

    Raises:
        ConfigError: for outputs that are not points of the plane.
    """
    if not plots.is_planar(shown.x):
        raise ConfigError(
            "fields are drawn as arrows in the plane, and these points have the shape "
            f"{tuple(shown.x.shape[1:])}: show the spectrum by plots.curves_figure instead."
        )
    panels = 4 if drift else 3
    figure = plots.new_figure(panels * inches, inches + plots.HEAD)
    extent = plots.view_of(shown.x)
    fields = {"∇h": shown.velocity, "$A_\\theta[\\nabla h]$": shown.smoothed}
    for place, (title, velocity) in enumerate(fields.items()):
        axes = plots.add_panel(figure, (place * inches, 0), inches, title)
        plots.frame_axes(axes, extent)
        size = velocity.square().sum(1).mean().sqrt().clamp(min=1e-30)
        arrows = velocity / size * 0.08 * (extent[1] - extent[0])
        axes.scatter(*shown.x.cpu().double().T, s=4, color=plots.MUTED, linewidths=0, zorder=2)
        plots.draw_arrows(axes, shown.x, arrows, width=0.006, color=plots.DATA, zorder=3)
    axes = _chart(figure, 2, inches, "spectrum of $A_\\theta$")
    spectrum, energy = shown.spectrum.cpu().double(), shown.energy.cpu().double()
    positive = spectrum > 1e-12 * spectrum[0]
    values = (spectrum / spectrum[0])[positive]
    beyond = (energy.sum() - energy.cumsum(0) + energy)[positive]  # along this and lower ones
    rank = 1 + torch.arange(len(spectrum))[positive]
    for height, name, color, curve, dashes in (
        (0.06, "eigenvalues λ/λ₁", plots.SERIES[0], values, "solid"),
        (0.15, "∇h beyond, share of energy", plots.SERIES[1], beyond, (0, (4, 1.6))),
    ):
        axes.loglog(rank, curve.clamp(min=1e-12), color=color, linewidth=1.8, linestyle=dashes)
        axes.text(0.04, height, name, color=color, size=7.5, transform=axes.transAxes)
    axes.set_ylim(max(1e-9, 0.5 * float(values.min())), 2)
    if drift:
        axes = _chart(figure, 3, inches, "$\\|K_t - K_0\\|/\\|K_0\\|$ in training")
        axes.plot(*np.asarray(drift, dtype=float).T, color=plots.SERIES[2], linewidth=1.8)
        axes.set_ylim(bottom=0)
    return figure


def _chart(figure: Figure, place: int, inches: float, title: str) -> Axes:
    """Axes with ticks inside of a panel's place."""
    margin = 0.46
    corner, size = (place * inches + margin, 0.28), (inches - margin - 0.08, inches - 0.34)
    axes = plots.place_axes(figure, corner, size)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(length=2, labelsize=7, labelcolor=plots.MUTED, color=plots.HAIRLINE)
    for spine in axes.spines.values():
        spine.set_color(plots.HAIRLINE)
    axes.set_title(title, loc="left", color=plots.INK, size=8.5, pad=4)
    return axes
