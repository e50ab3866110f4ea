"""The operator A_θ, dense and streamed, its spectrum, and what it does to a field."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from conftest import MIXTURE, randn, seeded, tensor
from partikel.app.show.plots import save_figure
from partikel.data.synthetic import gaussians
from partikel.errors import ConfigError
from partikel.fields import At, Context, ExactScoreField
from partikel.fields.ratio import DensityRatioField, KernelScoreField
from partikel.models import GeneratorModel
from partikel.models import ntk as generators
from partikel.models.ntk import ntk_matrix, ntk_operator, ntk_spectrum
from partikel.networks import NetworkSettings, build_network
from partikel.priors import GaussianPrior
from partikel.studies.smoothing import KernelDrift, show_smoothing, smoothing
from partikel.training import AdamSettings, Phase, fit


def network(shape: tuple[int, ...] = (2,), width: int = 8) -> nn.Module:
    settings = NetworkSettings(kind="mlp", width=width, depth=2, activation="tanh")
    built = build_network(settings, "generator", shape=shape, latent=3, generator=seeded())
    return built.double()


def jacobian(of: nn.Module, z: Tensor) -> Tensor:
    """J_θ g(z) of all latents at once, (B D, parameters): another way than the package's."""
    weights = {name: p.detach() for name, p in of.named_parameters() if p.requires_grad}
    rows = jacrev(lambda w: functional_call(of, w, (z,)).flatten())(weights)
    return torch.cat([row.flatten(1) for row in rows.values()], 1)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
def test_the_dense_kernel(shape: tuple[int, ...]) -> None:
    g, z, other = network(shape), randn(5, 3), randn(4, 3, seed=1)
    j, k = jacobian(g, z), jacobian(g, other)
    assert_close(ntk_matrix(g, z), j @ j.T)
    assert_close(ntk_matrix(g, z, other), j @ k.T)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_streamed_and_dense_forms_agree(shape: tuple[int, ...], chunk: int | None) -> None:
    g, z, elsewhere = network(shape), randn(7, 3), randn(4, 3, seed=1)
    v = randn(7, *shape, seed=2)
    dense = ntk_matrix(g, z) @ v.flatten() / 7
    assert_close(ntk_operator(g, z, v, chunk=chunk), dense.view(7, *shape))
    dense = ntk_matrix(g, elsewhere, z) @ v.flatten() / 7
    assert_close(ntk_operator(g, z, v, at=elsewhere, chunk=chunk), dense.view(4, *shape))


def test_a_field_of_the_whole_cloud_is_asked_once() -> None:
    g, z, real = network(), randn(7, 3), randn(6, 2, seed=1)
    field = DensityRatioField(KernelScoreField(0.5, "data"), KernelScoreField(0.5))
    bound = field.bind(Context(real=real))  # the points are the cloud: chunks would change it
    asked: list[int] = []

    def velocity(x: Tensor) -> Tensor:
        asked.append(len(x))
        return bound(x, At(torch.ones(len(x), dtype=x.dtype)))

    whole = ntk_operator(g, z, velocity)
    assert_close(ntk_operator(g, z, velocity, chunk=2), whole)
    assert asked == [7, 7]


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_operator_is_linear_symmetric_and_positive(chunk: int | None) -> None:
    g, z, v, w = network(), randn(7, 3), randn(7, 2, seed=1), randn(7, 2, seed=2)

    def a(values: Tensor) -> Tensor:
        return ntk_operator(g, z, values, chunk=chunk)

    assert_close(a(2 * v - 3 * w), 2 * a(v) - 3 * a(w))
    assert_close((w * a(v)).sum(), (v * a(w)).sum())
    assert (torch.linalg.eigvalsh(ntk_matrix(g, z)) > -1e-10).all()
    assert (v * a(v)).sum() > 0


def test_the_spectrum_is_the_operators() -> None:
    g, z = network(), randn(6, 3)
    spectrum = ntk_spectrum(g, z)
    assert spectrum.shape == (12,)
    assert (spectrum.diff() <= 0).all()
    assert (spectrum >= 0).all()
    basis = torch.eye(12, dtype=torch.float64).view(12, 6, 2)
    dense = torch.stack([ntk_operator(g, z, v).flatten() for v in basis])
    assert_close(dense.trace(), spectrum.sum())
    assert_close((dense @ dense).trace(), spectrum.square().sum())
    top = torch.linalg.eigh(dense).eigenvectors[:, -1].view(6, 2)
    assert_close(ntk_operator(g, z, top), spectrum[0] * top)


def test_only_what_trains_has_a_kernel() -> None:
    g, z = network(), randn(5, 3)
    whole = ntk_matrix(g, z)
    next(g.parameters()).requires_grad_(False)
    j = jacobian(g, z)
    assert_close(ntk_matrix(g, z), j @ j.T)
    assert ntk_matrix(g, z).trace() < whole.trace()


def test_kernels_beyond_a_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "MOST_ENTRIES", 100)
    with pytest.raises(ConfigError, match="take fewer latents, or ntk_operator"):
        ntk_spectrum(network(), randn(5, 3))


# --- smoothing ---


def score(x: Tensor) -> Tensor:
    return ExactScoreField(MIXTURE)(x, At(torch.ones(len(x), dtype=x.dtype)))


def test_smoothing_is_the_operator() -> None:
    g, z = network(), randn(9, 3)
    shown = smoothing(g, z, score)
    assert_close(shown.x, g(z).detach())
    assert_close(shown.velocity, score(shown.x))
    assert_close(shown.smoothed, ntk_operator(g, z, score))
    assert_close(shown.spectrum, ntk_spectrum(g, z))
    assert_close(shown.energy.sum(), tensor(1.0))
    power = (shown.spectrum.square() * shown.energy).sum() * shown.velocity.square().sum()
    assert_close(power, shown.smoothed.square().sum())


def test_smooth_fields_pass_and_rough_ones_do_not() -> None:
    """A constant field keeps its size, alternating signs of neighbouring latents are averaged away."""
    g = network()
    z = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None].expand(20, 3)
    sign = 1 - 2 * (torch.arange(20) % 2).double()
    constant = torch.ones(20, 2, dtype=torch.float64)
    smooth = ntk_operator(g, z, constant).norm()
    rough = ntk_operator(g, z, sign[:, None] * constant).norm()
    assert rough < 0.05 * smooth


class LinearGenerator(nn.Module):
    """Linear in its weights: its kernel never moves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, z: Tensor, c: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        return self.linear(torch.cat([z, z.square()], 1))


def test_the_kernels_drift_in_training() -> None:
    z = randn(6, 3).float()
    drifts = {}
    for name, g in {"linear": LinearGenerator(), "mlp": network().float()}.items():
        drift = KernelDrift(g, z)
        start = ntk_matrix(g, z)
        field = DensityRatioField(KernelScoreField(1.0, "data"), KernelScoreField(1.0))
        model = GeneratorModel(field, g, GaussianPrior((3,)))
        phase = Phase("generator", AdamSettings(lr=1e-2), 32)
        fit(model, gaussians(), [phase], iterations=20, evaluate=drift, evaluate_every=10)
        assert [iteration for iteration, _ in drift.curve] == [0, 10, 20]
        assert drift.curve[0][1] == 0
        expected = (ntk_matrix(g, z) - start).norm() / start.norm()
        assert_close(torch.tensor(drift.curve[-1][1]), expected)
        drifts[name] = drift.curve[-1][1]
    assert drifts["linear"] == 0
    assert drifts["mlp"] > 0.01


def test_smoothing_is_drawn(tmp_path: Path) -> None:
    shown = smoothing(network(), randn(30, 3), score)
    for drift, panels in (((), 3), (((0, 0.0), (10, 0.2), (20, 0.3)), 4)):
        figure = show_smoothing(shown, drift)
        assert len(figure.axes) == panels
        save_figure(figure, tmp_path / "smoothing.png")
        assert (tmp_path / "smoothing.png").stat().st_size > 5000
    arrows = [axes.collections[-1].get_offsets() for axes in figure.axes[:2]]  # type: ignore[union-attr]
    assert_close(torch.as_tensor(arrows[0]), shown.x)
    with pytest.raises(ConfigError, match="arrows in the plane"):
        show_smoothing(smoothing(network((1, 2, 2)), randn(3, 3), lambda x: -x))
