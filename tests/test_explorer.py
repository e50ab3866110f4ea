"""The explorer: its numbers are the library's, its page needs nobody, its controls do what they say."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import randn, seeded, tensor
from partikel.app.cli import main
from partikel.app.explorer import joined_script, write_explorer
from partikel.app.explorer.runs import told
from partikel.app.export import load
from partikel.app.runs import Run
from partikel.data import Batch, DataSettings, open_dataset
from partikel.errors import ConfigError
from partikel.fields import (
    At,
    Context,
    DiscriminatorField,
    DriftField,
    ExactScoreField,
    Field,
    MMDField,
    ScoreField,
    SlicedWassersteinField,
    SteinField,
    TrainingBatch,
)
from partikel.fields.particles import Particles
from partikel.fields.ratio import kernel_density
from partikel.kernels import (
    IMQKernel,
    Kernel,
    LaplaceKernel,
    MultiRBFKernel,
    RBFKernel,
    RieszKernel,
    median_distance,
)
from partikel.metrics import energy_distance
from partikel.metrics.chance import energy_quantile
from partikel.models import ParticleModel
from partikel.models.generator import surrogate_loss
from partikel.models.ntk import ntk_operator
from partikel.networks import MLP, Conditioning
from partikel.networks.conditions import UNCONDITIONAL
from partikel.objectives import OBJECTIVES, GradientPenalty
from partikel.priors import GaussianPrior
from partikel.schedules import GeometricGrid, VESchedule
from partikel.solvers import SOLVERS, Dynamics, Step
from partikel.solvers.noise import BrownianMotion
from partikel.streams import Streams
from partikel.studies import plane
from partikel.studies.catalogue import CATALOGUE, Kit
from partikel.targets import GaussianMixture, Target

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
MIXTURES = ("gaussians", "unequal")
LAWS = ("gaussians", "unequal", "moons", "spiral", "checkerboard")
PATH = VESchedule(*plane.SIGMAS)


# --- what needs no browser


def test_the_page_is_whole_and_small(tmp_path: Path) -> None:
    page = write_explorer(tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 1e6
    assert not re.search(r"https?://|@import|\burl\(|\bfetch\(|XMLHttpRequest", page)
    assert not re.search(r"^(?:import|export) ", joined_script(), re.MULTILINE)
    assert page.count("<script") == page.count("</script>")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "page.pdf"], "use .html"),
        (["--out", "FILE/page.html"], "name another file with --out"),
        (["--out", "FOLDER.html"], "name another file with --out"),
        (["--out", "/proc/page.html"], "name another file with --out"),
        (["nowhere"], "nowhere"),
        (["FOLDER.html"], "FOLDER.html"),
    ],
)
def test_what_cannot_be_explored_is_said(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    Path("FOLDER.html").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["explore", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_without_a_screen_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    main(["explore"])
    assert capsys.readouterr().out == "explorer.html\n"
    assert Path("explorer.html").stat().st_size > 10_000


def test_a_run_of_neither_points_nor_images_is_refused() -> None:
    run = SimpleNamespace(
        path=Path("run"),
        title="vectors: EDM",
        data=SimpleNamespace(shape=(3,)),
        recipe=SimpleNamespace(data=SimpleNamespace(title="vectors")),
    )
    with pytest.raises(ConfigError, match="neither points of the plane nor images"):
        told(run)  # type: ignore[arg-type]


# --- in a browser


class Page:
    """The explorer in a headless browser."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, fragment: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(self.address + fragment)
        for _ in range(600):  # a busy machine hands the page over before its script has run
            if self.driver.execute_script("return typeof explorer !== 'undefined'"):
                break
            time.sleep(0.1)
        self.run("explorer.page.play(false)")

    def run(self, script: str, *values: Any) -> Any:
        """The value of an expression of `explorer` and of `given`, tensors as lists."""
        given = [v.tolist() if isinstance(v, Tensor) else v for v in values]
        return self.driver.execute_script(f"const given = arguments; return ({script});", *given)

    def points(self, script: str, *values: Any) -> Tensor:
        """An interleaved array as points (n, 2)."""
        found = self.run(f"Array.from({script})", *values)
        return torch.tensor(found, dtype=torch.float64).view(-1, 2)

    @property
    def faults(self) -> list[str]:
        """What the console was told since the last call."""
        return [each["message"] for each in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        pytest.skip("there is no browser: install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    driver.set_script_timeout(300)
    address = write_explorer(tmp_path_factory.mktemp("explorer") / "page.html").as_uri()
    page = Page(driver, address)
    page.open()
    yield page
    driver.quit()


class Board(Target):
    """The checkerboard's law, from the normal distribution's own logarithm."""

    shape = (2,)

    def sample(self, n: int, **_: Any) -> Tensor:
        raise NotImplementedError

    def log_density(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        assert sigma is not None
        ends = torch.arange(-4, 5, 2, dtype=x.dtype)
        z = (ends - x[..., None]) / sigma[:, None, None]
        low, high = z[..., :-1], z[..., 1:]
        right = low > 0  # the tail that keeps its digits
        low, high = torch.where(right, -high, low), torch.where(right, -low, high)
        top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        mass = top + torch.log(-torch.expm1(bottom - top))  # (B, 2, 4)
        even = mass[:, :, [0, 2]].logsumexp(2).sum(1)
        odd = mass[:, :, [1, 3]].logsumexp(2).sum(1)
        return torch.logaddexp(even, odd) - math.log(32)

    def score(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        point = x.clone().requires_grad_()
        return torch.autograd.grad(self.log_density(point, sigma).sum(), point)[0]


def target_of(page: Page, name: str) -> Target:
    """The law of a name, as the library has it; of a curve, along the page's own nodes."""
    if name in MIXTURES:
        target = open_dataset(DataSettings(name)).target
        assert target is not None
        return target
    if name == "checkerboard":
        return Board()
    means = page.points(f"explorer.openTarget('{name}').means")
    return GaussianMixture(means, std=page.run(f"explorer.openTarget('{name}').stds[0]"))


class Ratio(Field):
    """∇log(p/ρ), both smoothed by h, ρ that of the points asked about."""

    def __init__(self, target: Target, h: float) -> None:
        super().__init__()
        self.target, self.h = target, h

    def forward(self, x: Tensor, at: At) -> Tensor:
        assert at.sigma is not None
        own = kernel_density(x, x, torch.full_like(x[:, 0], self.h**2))[1]
        return self.target.score(x, (at.sigma**2 + self.h**2).sqrt().expand(len(x))) - own


class Moved(Field):
    """A score that believes the data to lie further to the right."""

    def __init__(self, target: Target, error: float) -> None:
        super().__init__()
        self.target, self.error = target, error

    def forward(self, x: Tensor, at: At) -> Tensor:
        assert at.sigma is not None
        return self.target.score(x - x.new_tensor([self.error, 0.0]), at.sigma.expand(len(x)))


class Given(BrownianMotion):
    """The noise of one step, from the page's normal numbers."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second

    def __call__(self, x: Tensor, t: float, t_next: float) -> Tensor:
        return math.sqrt(t_next - t) * self.first

    def with_area(self, x: Tensor, t: float, t_next: float) -> tuple[Tensor, Tensor]:
        step = t_next - t
        increment = self(x, t, t_next)
        return increment, step * (increment / 2 + math.sqrt(step / 12) * self.second)

    def kick(self, x: Tensor, t: float, index: int = 0) -> Tensor:
        raise NotImplementedError


NEW_FLOW = """new explorer.PlaneFlow(
    explorer.openTarget(given[0]),
    new explorer.Path(10),
    {error: 0, discriminator: 'ideal', exactStart: true, ...given[1]}
)"""


def at_noise(t: float) -> At:
    time = torch.tensor(t, dtype=torch.float64)
    return At(time, PATH.sigma(time))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("sigma", [0.02, 0.7, 12.0])
def test_densities_and_scores_are_the_librarys(browser: Page, name: str, sigma: float) -> None:
    x = torch.cat(
        [(sigma + 2) * randn(60, 2), torch.tensor([[9.0, -7.0], [0.0, 0.0], [-5.0, 2.5]])]
    )
    target, noise = target_of(browser, name), torch.full((len(x),), sigma, dtype=torch.float64)
    asked = "explorer.openTarget(given[0])"
    flat, n = x.flatten(), len(x)
    scores = browser.points(
        f"{asked}.score(given[1], {n}, given[2], new Float64Array({2 * n}))", name, flat, sigma
    )
    assert_close(scores, target.score(x, noise), **CLOSE)
    logs = browser.run(
        f"Array.from({asked}.logDensity(given[1], {n}, given[2], new Float64Array({n})))",
        *(name, flat, sigma),
    )
    assert_close(torch.tensor(logs, dtype=torch.float64), target.log_density(x, noise), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_the_data_are_the_librarys(browser: Page, name: str) -> None:
    asked = "explorer.openTarget(given[0])"
    drawn = browser.points(
        f"{asked}.sample(new explorer.Stream(3), 4000, new Float64Array(8000))", name
    )
    dataset = open_dataset(DataSettings(name))
    real = dataset.draw(5000, generator=seeded()).x.double()
    floor = energy_quantile(real[4000:], 4000, 4000, 0.999)
    assert energy_distance(drawn, real[:4000]) < floor
    spread = browser.run(f"{asked}.spread", name)
    variance = dataset.draw(10**5, generator=seeded(1)).x.var(0).mean()
    assert spread == pytest.approx(math.sqrt(float(variance)), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("h", [0.15, 3.0])
def test_the_kernel_score_is_the_librarys(browser: Page, h: float) -> None:
    x = 2 * randn(300, 2)
    found = browser.points(
        "explorer.kernelScore(given[0], 300, given[1], new Float64Array(600))", x.flatten(), h
    )
    assert_close(found, kernel_density(x, x, torch.full_like(x[:, 0], h * h))[1], **CLOSE)


@pytest.mark.slow
def test_the_plane_is_the_maps(browser: Page) -> None:
    for g2, lambda2 in (*plane.POINTS, (0.5, 0.25), (2.7, 0.125), (2.0, 0.02)):
        assert browser.run("explorer.modelName(...given)", g2, lambda2) == plane.model_name(
            g2, lambda2
        )
        c = plane.flow_at(PATH, g2, lambda2)
        for t in (0.0, 0.3, 1.0):
            said = f"(f => [f.sigma({t}), f.beta({t}), f.noise({t})])({NEW_FLOW})"
            found = browser.run(said, "gaussians", {"g2": g2, "lambda2": lambda2})
            time = torch.tensor(t, dtype=torch.float64)
            here = [PATH.sigma(time), c.coefficients(time).beta, c.noise(time)]
            assert_close(torch.tensor(found, dtype=torch.float64), torch.stack(here), **CLOSE)
    levels = browser.run("Array.from(new explorer.Path(10).nodes(12, 0))")
    assert_close(torch.tensor(levels, dtype=torch.float64), GeometricGrid(PATH).nodes(12), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("g2", "lambda2", "error", "critic"),
    [
        (2.0, 1.0, 0.0, "ideal"),
        (0.5, 0.5, 0.0, "ideal"),  # the ideal discriminator is constant
        (1.0, -0.5, 0.0, "ideal"),
        (0.0, 0.0, 0.0, "kernel"),
        (1.5, 1.0, 0.8, "ideal"),
        (3.0, 1.0, 0.8, "none"),
    ],
)
def test_the_drift_is_the_librarys(
    browser: Page, g2: float, lambda2: float, error: float, critic: str
) -> None:
    x, t = 3 * randn(200, 2), 0.55
    target = target_of(browser, "unequal")
    h = browser.run("explorer.bandwidth(given[0])", float(PATH.sigma(torch.tensor(t))))
    score, nothing = Moved(target, error), 0.0 * ExactScoreField(target)
    known = lambda2 > 0 and error == 0
    constant = critic == "none" or (critic == "ideal" and known)
    field = plane.flow_at(PATH, g2, lambda2).field(score, nothing if constant else Ratio(target, h))
    at = {"g2": g2, "lambda2": lambda2, "error": error, "discriminator": critic}
    found = browser.points(
        f"{NEW_FLOW}.velocity(given[2], 200, given[3], new Float64Array(400))",
        *("unequal", at, x.flatten(), t),
    )
    assert_close(found, field(x, at_noise(t)), **CLOSE)


NAMES = {
    "euler": "euler-maruyama",
    "heun": "stochastic-heun",
    "ddim": "ddim",
    "dpmpp-2m": "dpmpp-2m",
    "sra1": "sra1",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_steps_of_solvers_are_the_librarys(browser: Page, name: str) -> None:
    deterministic = name in ("ddim", "dpmpp-2m")
    x, g2 = 4 * randn(50, 2), 1.0 if deterministic else 2.0
    target = target_of(browser, "unequal")
    flow = plane.flow_at(PATH, g2, 1.0)
    field = flow.field(ExactScoreField(target), 0.0 * ExactScoreField(target))
    dynamics = Dynamics(
        lambda x, t: field(x, At(t, PATH.sigma(t))), flow.diffusion, PATH, defined_at_end=True
    )
    solver, memory, moved = SOLVERS[NAMES[name]](), None, x
    nodes, noise = (0.3, 0.36, 0.45), [randn(50, 2, seed=k) for k in range(4)]
    for k in range(2):  # a multistep method looks back
        step = Step(nodes[k], nodes[k + 1], k, 9, Given(noise[2 * k], noise[2 * k + 1]))
        moved, memory = solver.advance(dynamics, moved, step, memory)
    script = f"""(() => {{
        const flow = {NEW_FLOW}, work = new explorer.Workspace(50), x = Float64Array.from(given[2]);
        for (const k of [0, 1]) {{
            const draw = (index, out) => out.set(given[5][2 * k + index]);
            explorer.SOLVERS[given[4]].step(flow, x, work, given[3][k], given[3][k + 1], draw);
        }}
        return x;
    }})()"""
    at, drawn = {"g2": g2, "lambda2": 1.0}, [each.flatten().tolist() for each in noise]
    found = browser.points(script, "unequal", at, x.flatten(), list(nodes), name, drawn)
    assert_close(found, moved, **CLOSE)


def ended(browser: Page, **settings: Any) -> Tensor:
    """Where 2,000 particles of the page end."""
    script = """(() => {
        const state = {...explorer.fromFragment(''), ...given[0]};
        const flow = explorer.simulate(state, explorer.openTarget(state.data), 2000);
        while (!flow.finished) flow.step();
        return flow.x;
    })()"""
    return browser.points(script, settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "g2", "lambda2", "solver"),
    [
        ("gaussians", 2.0, 2.0, "dpmpp-2m"),
        ("unequal", 2.0, 1.0, "heun"),
        ("unequal", 1.0, 1.0, "heun"),
        ("moons", 3.0, 1.0, "sra1"),
        ("checkerboard", 2.0, 2.0, "heun"),
        ("spiral", 0.5, 0.25, "euler"),
    ],
)
def test_particles_end_in_the_data(
    browser: Page, data: str, g2: float, lambda2: float, solver: str
) -> None:
    x = ended(browser, data=data, g2=g2, lambda2=lambda2, solver=solver, steps=200)
    real = open_dataset(DataSettings(data)).draw(4000, generator=seeded()).x.double()
    assert energy_distance(x, real[:2000]) < energy_quantile(real[2000:], 2000, 2000, 0.999)


@pytest.mark.slow
@pytest.mark.parametrize("lambda2", [0.0, -1.0])
def test_other_laws_are_the_librarys_too(browser: Page, lambda2: float) -> None:
    flow = plane.flow_at(PATH, 2.0, lambda2)
    target = target_of(browser, "unequal")
    model = ParticleModel(
        flow.field(ExactScoreField(target)),
        flow.prior((2,)),
        steps=240,
        schedule=PATH,
        grid=GeometricGrid(PATH),
        diffusion=flow.diffusion,
        solver=SOLVERS["stochastic-heun"](),
    )
    first = target.sample(4000, generator=seeded(), dtype=torch.float64)
    start = first + 10 * randn(4000, 2, seed=1)
    theirs = model.sample(4000, generator=seeded(2), start=start)
    ours = ended(browser, data="unequal", g2=2.0, lambda2=lambda2, steps=240)
    floor = energy_quantile(theirs[2000:], 2000, 2000, 0.999)
    assert energy_distance(ours, theirs[:2000]) < floor
    if lambda2 < 0:  # flatter than the data, so that the law is another one
        assert energy_distance(ours, first[:2000]) > floor


# --- fields of samples

KERNELS: dict[str, Any] = {
    "energy": lambda h: RieszKernel(),
    "rbf": RBFKernel,
    "multi-rbf": MultiRBFKernel,
    "laplace": LaplaceKernel,
    "imq": IMQKernel,
}
USUAL = {"energy": None, "rbf": "median", "multi-rbf": 1.0, "laplace": 2.0, "imq": 1.0}


class AtNoise(Field):
    """A target's score at one noise level, whatever it is asked at."""

    def __init__(self, target: Target, sigma: float) -> None:
        super().__init__()
        self.target, self.sigma = target, sigma

    def forward(self, x: Tensor, at: At) -> Tensor:
        return self.target.score(x, torch.full_like(x[:, 0], self.sigma))


def kernel_of(state: dict[str, Any]) -> Kernel:
    """The library's kernel of a state."""
    usual = USUAL[state["kernel"]] if state["field"] == "mmd" else 0.5
    h = state.get("bandwidth", "own")
    return KERNELS[state["kernel"]](usual if h == "own" else h)


def sample_field(state: dict[str, Any], target: Target) -> Field:
    """The library's field of a state."""
    if state["field"] == "sliced":
        return SlicedWassersteinField(state.get("lines", 32))
    if state["field"] == "drift":
        return DriftField(state.get("temperature", 0.5))
    if state["field"] == "mmd":
        return MMDField(kernel_of(state))
    return SteinField(AtNoise(target, state.get("noise", 0.1)), kernel_of(state))


SAMPLED = [
    *({"field": "mmd", "kernel": kernel} for kernel in KERNELS),
    *({"field": "mmd", "kernel": kernel, "bandwidth": 0.25} for kernel in KERNELS),
    *({"field": "stein", "kernel": kernel} for kernel in KERNELS if kernel != "energy"),
    {"field": "stein", "kernel": "rbf", "bandwidth": "median", "noise": 0.6},
    {"field": "drift"},
    {"field": "drift", "temperature": 0.2},
    {"field": "sliced"},
    {"field": "sliced", "lines": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "state"),
    [
        *((f"mmd-{kernel}", {"field": "mmd", "kernel": kernel}) for kernel in KERNELS),
        ("svgd", {"field": "stein", "kernel": "rbf"}),
        ("drifting", {"field": "drift"}),
        ("sliced", {"field": "sliced"}),
    ],
)
def test_flows_of_samples_are_those_of_the_matrix(
    browser: Page, row: str, state: dict[str, Any]
) -> None:
    """The same field, start, strength and steps; the RBF's steps, six hundred there, are twice as long."""
    script = """(state => {
        const all = {...explorer.fromFragment(''), ...state};
        const one = explorer.simulate(all, explorer.openTarget('gaussians'), 2000);
        const begun = one.x.slice();
        one.step();
        const length = one.eta / one.steps;
        const moved = Math.max(...one.x.map((v, i) => Math.abs(v - begun[i] - length * one.arrows[i])));
        const spread = Math.sqrt(begun.reduce((sum, v) => sum + v * v, 0) / begun.length);
        return [one.eta, one.steps, spread, moved, one.field.count ?? 0];
    })(given[0])"""
    eta, steps, spread, moved, count = browser.run(script, state)
    dataset = open_dataset(DataSettings("gaussians"))
    kit = Kit(dataset, "particles", 0, lambda: None)  # type: ignore[arg-type,return-value]
    model = CATALOGUE[row].particles(kit).model
    assert isinstance(model, ParticleModel)
    assert isinstance(model.prior, GaussianPrior)
    slow = row == "mmd-rbf"
    assert steps == model.steps / (2 if slow else 1)
    assert eta == pytest.approx(model.eta, rel=0.1 if slow else 1e-9)
    assert spread == pytest.approx(model.prior.std, rel=0.05)
    assert moved < 1e-12
    assert count == 1000
    ours = sample_field(state, target_of(browser, "gaussians"))
    kernels = [repr(getattr(each, "kernel", each)) for each in (ours, model.field)]
    if row not in ("sliced", "drifting"):
        assert kernels[0] == kernels[1]


@pytest.mark.slow
@pytest.mark.parametrize("state", SAMPLED, ids=lambda each: "-".join(map(str, each.values())))
@pytest.mark.parametrize(("n", "count"), [(200, 80), (70, 210), (90, 90)])
def test_fields_of_samples_are_the_librarys(
    browser: Page, state: dict[str, Any], n: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, real = 2 * randn(n, 2) + tensor([1.0, -0.5]), 1.5 * randn(count, 2, seed=1)
    x[7] = x[3]  # two particles that coincide
    x[5] = real[4]
    found = browser.run(
        """(([state, x, real]) => {
            const all = {...explorer.fromFragment(''), ...state}, n = x.length / 2;
            const field = explorer.sampleField(all, explorer.openTarget('unequal'));
            field.bind(real, real.length / 2);
            const out = field.at(x, n, new Float64Array(2 * n), new explorer.Stream(3));
            return [Array.from(out), Array.from(field.lines ?? [])];
        })([given[0], Float64Array.from(given[1]), Float64Array.from(given[2])])""",
        *(state, x.flatten(), real.flatten()),
    )
    lines = tensor(found[1]).view(-1, 2)
    monkeypatch.setattr("partikel.fields.samples.transport.normal", lambda *_, **__: lines)
    field = sample_field(state, target_of(browser, "unequal"))
    bound = field.bind(Context(real=real, generator=seeded()))
    ours, theirs = tensor(found[0]).view(-1, 2), bound(x, At(tensor(0.0)))
    if state["field"] == "sliced":  # which of two that coincide goes where is nobody's choice
        ours[[3, 7]], theirs[[3, 7]] = ours[[3, 7]].mean(0), theirs[[3, 7]].mean(0)
    assert_close(ours, theirs, rtol=1e-9, atol=2e-10)  # which approximate exponentials keep


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 999, 1000, 1001, 2000])
def test_median_distances_are_the_librarys(browser: Page, n: int) -> None:
    x = randn(n, 2)
    found = browser.run(f"explorer.medianDistance(given[0], {n})", x.flatten())
    assert found == pytest.approx(median_distance(x), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "state"),
    [
        ("unequal", {"field": "mmd", "kernel": "energy"}),
        ("moons", {"field": "mmd", "kernel": "multi-rbf"}),
        ("spiral", {"field": "sliced"}),
        ("gaussians", {"field": "stein", "kernel": "rbf"}),
        ("checkerboard", {"field": "drift"}),
    ],
    ids=lambda each: each if isinstance(each, str) else each["field"],
)
def test_flows_of_samples_end_as_the_librarys(
    browser: Page, data: str, state: dict[str, Any]
) -> None:
    """The law of 2,000 particles, from another start; toward the same points of the data."""
    ours = ended(browser, data=data, **state)
    script = """(state => {
        const all = {...explorer.fromFragment(''), ...state};
        const one = explorer.simulate(all, explorer.openTarget(all.data), 2000);
        return [one.eta, one.steps, one.field.start, Array.from(one.field.real)];
    })(given[0])"""
    eta, steps, start, real = browser.run(script, {"data": data, **state})
    field = sample_field(state, target_of(browser, data))
    model = ParticleModel(field, GaussianPrior((2,), std=start), steps=steps, eta=eta)
    points = tensor(real).float().view(-1, 2)
    theirs = model.sample(2000, generator=seeded(), real=points).double()
    assert energy_distance(ours, theirs) < energy_quantile(theirs, 2000, 2000, 0.999)


@pytest.mark.slow
@pytest.mark.parametrize(
    "state",
    [
        {"field": "mmd", "kernel": "imq"},
        {"field": "stein", "kernel": "laplace", "bandwidth": "median"},
        {"field": "drift"},
    ],
    ids=lambda each: each["field"],
)
def test_a_generator_follows_fields_of_samples(browser: Page, state: dict[str, Any]) -> None:
    """ρ is all outputs that are asked about, p the batch of the iteration."""
    script = """(state => {
        const all = {...explorer.fromFragment(''), ...state, carrier: 'generator'};
        const one = explorer.simulate(all, explorer.openTarget('moons'), 120);
        one.train();
        one.generator.optimiser.step = () => {};
        one.train();
        const own = [...one.generator.outputs, ...one.field];
        one.show();
        const spread = Math.sqrt(one.x.reduce((sum, v) => sum + v * v, 0) / one.x.length);
        return [own, Array.from(one.real), spread];
    })(given[0])"""
    own, real, spread = browser.run(script, state)
    x, found = tensor(own).view(-1, 2).chunk(2)
    points = tensor(real).view(-1, 2)
    assert len(points) == 256
    assert spread == pytest.approx(2 if state["field"] == "stein" else 1, rel=0.1)
    bound = sample_field(state, target_of(browser, "moons")).bind(Context(real=points))
    assert_close(found, bound(x, At(tensor(0.0))), **CLOSE)


@pytest.mark.slow
def test_the_page_says_which_field_of_samples_runs(browser: Page) -> None:
    browser.open("#field=stein&kernel=energy")  # which is not definite
    assert browser.run("explorer.page.state.kernel") == "rbf"
    assert browser.run(
        "[...document.getElementById('set-kernel').options].find(o => o.value === 'energy').disabled"
    )
    for field in browser.run("Object.keys(explorer.SAMPLE_FIELDS)"):
        for carrier, other in (("particles", "walk"), ("generator", "surrogate")):
            browser.run("explorer.page.set(given[0])", {"field": field, "carrier": carrier})
            assert browser.run("explorer.fromFragment(location.hash).field") == field
            shown = browser.run(
                "[...document.getElementById('formulas').children].filter(e => !e.hidden).map(e => e.id)"
            )
            assert shown == [f"formula-{field}", f"formula-{other}"]
            assert browser.run("document.getElementById('map').hidden")
            law = browser.run("document.getElementById('law').textContent")
            eta, steps, count = browser.run(
                "(one => [one.eta ?? 0, one.steps, (one.follows ?? one.field).count])"
                "(explorer.page.simulation)"
            )
            if field != "stein":
                assert f"{count} points of the data" in law
            if other == "walk":
                said = browser.run(
                    "['walk-eta', 'walk-steps'].map(id => Number(document.getElementById(id).textContent))"
                )
                assert said == pytest.approx([eta, steps], rel=1e-3)
                time = "getComputedStyle(document.getElementById('walk-time')).display"
                assert browser.run(time) == "none"  # the field has none
            browser.run("(one => one.train ? one.train() : one.step())(explorer.page.simulation)")
            browser.run("explorer.page.measure()")
    browser.run("explorer.page.set({field: 'plane'})")
    assert not browser.run("document.getElementById('map').hidden")
    assert browser.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("given", [0.03, 0.0899])
def test_no_place_asks_for_steps_that_none_can_make(browser: Page, given: float) -> None:
    browser.open(f"#g2=2&lambda2={given}")
    assert browser.run("explorer.page.state.lambda2") == 0
    x = ended(browser, data="unequal", g2=2.0, lambda2=0.09, solver="heun", steps=100)
    real = open_dataset(DataSettings("unequal")).draw(4000, generator=seeded()).x.double()
    assert energy_distance(x, real[:2000]) < energy_quantile(real[2000:], 2000, 2000, 0.999)


# --- runs

TINY = ["--iterations", "3", "--evaluate-samples", "50", "--evaluate-every", "1"]
NARROW = ["--network.width", "20", "--network.depth", "2"]
GAN = ["--discriminator.width", "8", "--generator.width", "20", "--latent", "5"]
TRAINED = {
    "edm-gaussians": NARROW,
    "discriminator-flow-gaussians": [*NARROW, "--steps", "7"],
    "gan-gaussians": GAN,
    "mean-flow-gaussians": NARROW,
    "edm-digits": [],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    for name, options in TRAINED.items():
        main(["train", name, *TINY, *options, "--out", str(folder / name)])
    return {name: load(folder / name) for name in TRAINED}


@pytest.fixture(scope="module")
def with_runs(
    browser: Page, trained: dict[str, Run], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("with-runs") / "page.html"
    names = [str(run.path) for run in trained.values()]
    main(["explore", *names, "--out", str(path)])
    page = Page(browser.driver, path.as_uri())
    page.open()
    yield page
    browser.open()


@pytest.mark.slow
def test_runs_are_evaluated_as_the_library_does(with_runs: Page, trained: dict[str, Run]) -> None:
    kinds = with_runs.run("explorer.RUNS.map(run => run.kind)")
    assert kinds == ["score", "critic", "generator", "map", "sheets"]
    x = 3 * randn(40, 2)
    for sigma in (0.05, 1.3, 20.0):
        made = "new explorer.TrainedScore(explorer.RUNS[0])"
        script = f"{made}.score(given[0], 40, given[1], new Float64Array(80))"
        found = with_runs.points(script, x.flatten(), sigma)
        model = trained["edm-gaussians"].model.double()
        score = next(part for part in model.field.modules() if isinstance(part, ScoreField))
        at = At(tensor(0.0), tensor(sigma))
        assert_close(found, score(x, at).detach(), rtol=1e-5, atol=1e-5 / sigma)
    for number, name in ((1, "discriminator-flow-gaussians"), (3, "mean-flow-gaussians")):
        ended = """(run => {
            const one = explorer.showRun(run, 3), start = Array.from(one.x);
            while (!one.finished) one.step();
            return [...start, ...one.x];
        })(explorer.RUNS[given[0]])"""
        start, end = with_runs.points(ended, number).chunk(2)
        theirs = trained[name].model.double().sample(len(start), generator=seeded(), start=start)
        assert_close(end, theirs, rtol=1e-5, atol=1e-5)
        assert 0.9 < float(start.std()) < 1.1
    walked = """(one => {
        one.step();
        return [...one.x, ...one.z];
    })(explorer.showRun(explorer.RUNS[2], 3))"""
    numbers = torch.tensor(with_runs.run(walked), dtype=torch.float64)
    outputs, latents = numbers[:4000].view(-1, 2), numbers[4000:].view(2000, -1)
    theirs = trained["gan-gaussians"].model.double().sample(2000, generator=seeded(), start=latents)
    assert_close(outputs, theirs, **CLOSE)
    assert float(latents.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_runs_are_shown(with_runs: Page, trained: dict[str, Run]) -> None:
    for number, kind in enumerate(("score", "field", "field", "field", "field"), start=1):
        with_runs.open(f"#{kind}=run{number}")
        assert with_runs.run("explorer.page.state")[kind] == f"run{number}"
        with_runs.run("explorer.page.goTo(explorer.page.simulation.steps)")
        with_runs.run("explorer.page.goTo(0)")
        with_runs.run("explorer.page.measure()")
        assert with_runs.run("document.getElementById('energy').hidden") == (number == 5)
        assert with_runs.run("document.getElementById('map').hidden") == (kind == "field")
    assert with_runs.run("explorer.page.simulation.labels.length") > 1
    picture = "explorer.page.simulation.pictures.every(each => each.naturalWidth > 100)"
    assert with_runs.run(picture)
    assert with_runs.faults == []
    record = told(trained["edm-digits"])
    assert record["size"] == sum(map(len, record["pictures"]))


@pytest.mark.slow
def test_what_the_page_cannot_evaluate_it_shows_in_moments(
    browser: Page, trained: dict[str, Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("partikel.app.explorer.runs._live", lambda model: None)
    path = write_explorer(
        tmp_path / "page.html", [trained["edm-gaussians"], trained["gan-gaussians"]]
    )
    page = Page(browser.driver, path.as_uri())
    page.open("#field=run1")
    for number in (1, 2):
        page.run(f"explorer.page.set({{field: 'run{number}'}})")
        moments = page.run("explorer.page.simulation.labels")
        page.run(f"explorer.page.goTo({len(moments) - 1})")
        assert len(page.points("explorer.page.simulation.x")) == page.run(
            "explorer.page.simulation.n"
        )
        assert page.run("document.getElementById('moment-label').value") in moments
    assert page.faults == []
    browser.open()


# --- networks


def network_of(page: Page, script: str, inputs: int, outputs: int, activation: str) -> MLP:
    """The page's network, as one of the library's."""
    conditions = (
        UNCONDITIONAL if inputs < 4 or outputs else Conditioning(1, None, "fourier", inputs - 2)
    )
    network = MLP(
        (inputs if conditions.scalars == 0 else 2,),
        (outputs,) if outputs else (),
        width=page.run(f"{script}.sizes[1]"),
        depth=page.run(f"{script}.depth") - 1,
        activation=activation,
        conditions=conditions,
    ).double()
    given = page.run(f"{script}.parameters.map(p => Array.from(p))")
    with torch.no_grad():
        for kept, values in zip(network.parameters(), given, strict=True):
            kept.copy_(torch.tensor(values, dtype=torch.float64).view_as(kept))
        if conditions.scalars:
            network.conditions.embed.frequencies.copy_(tensor([0.25, 0.5, 1.0, 2.0]))  # type: ignore[union-attr]
    return network


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["silu", "leaky_relu", "relu", "tanh", "softplus"])
def test_outputs_and_gradients_of_networks(browser: Page, activation: str) -> None:
    made = f"new explorer.Network([3, 18, 18, 1], '{activation}', new explorer.Stream(5))"
    browser.run(f"void (window.net = {made})")
    network = network_of(browser, "window.net", 3, 0, activation)
    x, weights = randn(30, 3).requires_grad_(), randn(30, seed=1)
    found = browser.run(
        """((net, x, weights) => {
            const output = Array.from(net.forward(x, 30));
            net.clear();
            const input = Array.from(net.backward(weights, 30));
            const gradients = net.gradients.map(g => Array.from(g));
            net.clear();
            net.slopeGradients(x, 0.7, 30);
            const slopes = net.gradients.map(g => Array.from(g));
            return [output.slice(0, 30), input.slice(0, 90), gradients, slopes];
        })(window.net, Float64Array.from(given[0]), Float64Array.from(given[1]))""",
        *(x.flatten(), weights),
    )
    output = network(x)
    parameters = list(network.parameters())
    first = torch.autograd.grad(output @ weights, [x, *parameters], create_graph=True)
    assert_close(tensor(found[0]), output.detach(), **CLOSE)
    assert_close(tensor(found[1]).view(30, 3), first[0].detach(), **CLOSE)
    for ours, theirs in zip(found[2], first[1:], strict=True):
        assert_close(tensor(ours).view_as(theirs), theirs.detach(), **CLOSE)
    (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    along = 0.7 * (slope * x.detach()).sum()
    second = torch.autograd.grad(along, parameters, allow_unused=True)
    for ours, theirs in zip(found[3], second, strict=True):
        theirs = torch.zeros(len(ours)).double() if theirs is None else theirs
        assert_close(tensor(ours).view_as(theirs), theirs, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("timed", [False, True])
def test_a_discriminators_field_and_step_are_the_librarys(browser: Page, timed: bool) -> None:
    """Every objective: ∇c(d), and the gradient of the loss with its penalty, on the same batches."""
    names = browser.run("Object.keys(explorer.OBJECTIVES)")
    assert set(names) <= set(OBJECTIVES)
    x, times = 2 * randn(256, 2), torch.rand(256, generator=seeded(), dtype=torch.float64)
    for name in names:
        script = "window.critic"
        found = browser.run(
            """(([name, timed, x, times]) => {
                const stream = new explorer.Stream(8);
                const critic = window.critic = new explorer.Discriminator(name, timed, stream);
                const field = Array.from(critic.field(x, 256, times, new Float64Array(512)));
                const c = Array.from(critic.potential(x, 256, times, new Float64Array(256)));
                critic.optimiser.step = () => {};
                critic.train(explorer.openTarget('moons'), x, times);
                const gradients = critic.network.gradients.map(g => Array.from(g));
                return [field, c, gradients, Array.from(critic.real)];
            })([given[0], given[1], Float64Array.from(given[2]), Float64Array.from(given[3])])""",
            *(name, timed, x.flatten(), times),
        )
        inputs = browser.run(f"{script}.inputs")
        network = network_of(browser, f"{script}.network", inputs, 0, "silu")
        critic = DiscriminatorField(
            network,
            name,
            conditions=("t",) if timed else (),
            penalties=(GradientPenalty(0.05, at="real"),),
        )
        at = At(times, None)
        assert_close(tensor(found[0]).view(-1, 2), critic(x, at), **CLOSE)
        potential = critic.potential(x, at).detach()
        assert_close(tensor(found[1]), potential, **CLOSE)
        real = tensor(found[3]).view(-1, 2)
        loss = critic.own_losses()[0].compute(
            TrainingBatch(Batch(real, None), Particles(x, times), 256, Streams(0))
        )
        gradients = torch.autograd.grad(loss.loss.mean(), list(network.parameters()))
        for ours, theirs in zip(found[2], gradients, strict=True):
            assert_close(tensor(ours).view_as(theirs), theirs, **CLOSE)


@pytest.mark.slow
def test_what_a_generator_makes_of_a_field_is_the_librarys(browser: Page) -> None:
    made = """(() => {
        const one = window.maker = new explorer.Generator(150, new explorer.Stream(4), 2);
        const x = Array.from(one.draw()), field = Float64Array.from(x, v => Math.sin(3 * v) - v);
        one.optimiser.step = () => {};
        one.follow(field, true);
        const gradients = one.network.gradients.map(g => Array.from(g));
        return [x, Array.from(one.batch), Array.from(one.moved), gradients];
    })()"""
    x, z, moved, gradients = browser.run(made)
    network = network_of(browser, "window.maker.network", 8, 2, "silu")
    latents, outputs = tensor(z).view(-1, 8), tensor(x).view(-1, 2)
    batch, shown = latents[:256], latents[256:]
    assert_close(network(latents).detach(), outputs, **CLOSE)
    velocity = (3 * outputs).sin() - outputs
    theirs = ntk_operator(network, batch, velocity[:256], at=shown)
    assert_close(tensor(moved).view(-1, 2), theirs, **CLOSE)
    loss = surrogate_loss(network(batch), velocity[:256]).mean()
    for ours, grad in zip(
        gradients, torch.autograd.grad(loss, list(network.parameters())), strict=True
    ):
        assert_close(tensor(ours).view_as(grad), grad, **CLOSE)


@pytest.mark.slow
def test_a_generator_follows_the_planes_velocity(browser: Page) -> None:
    """In units of β, all laws smoothed by one kernel; lengths are those of 1/σ."""
    script = """(() => {
        const state = {...explorer.fromFragment(''), carrier: 'generator', g2: 1, lambda2: 0.5, error: 0.4};
        const one = explorer.simulate(state, explorer.openTarget('gaussians'), 120);
        one.generator.optimiser.step = () => {};
        one.train();
        return [...one.generator.outputs, ...one.field];
    })()"""
    x, found = browser.points(script).chunk(2)
    target, sigma = target_of(browser, "gaussians"), 3.0
    level = math.hypot(sigma, browser.run("explorer.bandwidth(3)"))
    at = At(tensor(0.0), tensor(level))
    score, own = (
        Moved(target, 0.4)(x, at),
        kernel_density(x, x, torch.full_like(x[:, 0], level**2))[1],
    )
    ratio = target.score(x, torch.full_like(x[:, 0], level)) - own
    assert_close(found, level**2 * (0.75 * ratio + 0.25 * score), **CLOSE)


@pytest.mark.slow
def test_adam_is_torchs(browser: Page) -> None:
    values = browser.run("""(() => {
        const net = new explorer.Network([1, 1], 'identity');
        const adam = new explorer.Adam(net, {rate: 0.1, beta1: 0.5});
        for (const g of [1, -0.3, 0.02]) { net.gradients[0][0] = g; adam.step(); }
        return net.weights[0][0];
    })()""")
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weight], 0.1, betas=(0.5, 0.99))
    for g in (1.0, -0.3, 0.02):
        weight.grad = tensor([g])
        adam.step()
    assert values == pytest.approx(float(weight.detach()), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "iterations", "most"),
    [
        ({"field": "critic"}, 250, 0.2),
        ({"field": "critic", "carrier": "generator"}, 300, 0.6),
        ({"carrier": "generator", "g2": 0.0, "lambda2": 0.0}, 500, 0.15),
    ],
)
def test_what_is_trained_comes_near_the_data(
    browser: Page, settings: dict[str, Any], iterations: int, most: float
) -> None:
    script = """((settings, iterations) => {
        const state = {...explorer.fromFragment(''), data: 'moons', ...settings};
        const one = explorer.simulate(state, explorer.openTarget(state.data), 2000);
        for (let k = 0; k < iterations; k++) one.train();
        one.show();
        while (one.step && !one.finished) one.step();
        return one.x;
    })(given[0], given[1])"""
    x = browser.points(script, settings, iterations)
    real = open_dataset(DataSettings("moons")).draw(2000, generator=seeded()).x.double()
    start = energy_distance(randn(2000, 2), real)
    assert energy_distance(x, real) < most * start


@pytest.mark.slow
def test_every_control_does_what_it_says(browser: Page) -> None:
    browser.open()
    assert browser.run("explorer.page.controls.inputs.size") > 12
    for key, kind in browser.run(
        "[...explorer.page.controls.inputs].map(([key, {setting}]) => [key, setting.kind])"
        ".filter(([key]) => key !== 'score')"  # which is a choice where there are runs
    ):
        before = browser.run("explorer.page.state")[key]
        browser.run(
            """(input => {
            if (given[1] === 'switch') input.click();
            else {
                const values = [...(input.options ?? [])].map(o => o.value);
                const other = input.value === input.max ? input.min : input.max;
                input.value = values.find(v => v !== input.value) ?? other;
                input.dispatchEvent(new Event(given[1] === 'choice' ? 'change' : 'input', {bubbles: true}));
            }
            })(document.getElementById('set-' + given[0]))""",
            *(key, kind),
        )
        state = browser.run("explorer.page.state")
        assert state[key] != before, key
        assert key in browser.run("location.hash"), key
        assert browser.run("explorer.fromFragment(location.hash)") == state
        assert browser.run("explorer.page.simulation.progress") == 0 or kind == "switch"
    browser.run("document.getElementById('reset').click()")
    assert browser.run("location.hash") == ""
    assert browser.run("explorer.page.state") == browser.run("explorer.fromFragment('')")
    for button, seen in (
        ("play", "explorer.page.playing"),
        ("theme", "document.documentElement.dataset.theme"),
    ):
        first = browser.run(seen)
        browser.run(f"document.getElementById('{button}').click()")
        assert browser.run(seen) != first
    assert browser.faults == []


@pytest.mark.slow
def test_keys_and_pointers_move_the_point(browser: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    browser.open("#g2=1&lambda2=0.5")
    keys = ActionChains(browser.driver)
    keys.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP, " ").perform()
    state = browser.run("explorer.page.state")
    assert (state["g2"], state["lambda2"]) == pytest.approx((1.2, 0.6))
    assert browser.run("explorer.page.playing")
    keys.send_keys(" ", *[Keys.ARROW_LEFT] * 9).perform()  # against the border: along the diagonal
    state = browser.run("explorer.page.state")
    assert state["g2"] >= max(0, state["lambda2"])
    drag = """(map => {
        const [x, y] = explorer.page.map.place(given[0], given[1]), box = map.getBoundingClientRect();
        const at = {clientX: box.left + x, clientY: box.top + y, pointerId: 1, bubbles: true};
        map.setPointerCapture = () => {};
        for (const kind of ['down', 'move', 'up']) map.dispatchEvent(new PointerEvent('pointer' + kind, at));
        return [explorer.page.state.g2, explorer.page.state.lambda2];
    })(document.getElementById('map'))"""
    assert browser.run(drag, 1.97, 0.04) == [2, 0]  # drawn to a model that stands there
    assert browser.run(drag, 1.43, -0.52) == pytest.approx([1.43, -0.52], abs=0.02)
    g2, lambda2 = browser.run(drag, 0.2, 1.4)  # impossible
    assert g2 == lambda2 > 0
    assert browser.faults == []


@pytest.mark.slow
def test_data_drawn_by_hand_are_the_law(browser: Page) -> None:
    browser.open("#data=hand")
    browser.run("""(stage => {
        stage.setPointerCapture = () => {};
        const box = stage.getBoundingClientRect();
        const middle = [box.left + box.width / 2, box.top + box.height / 2];
        const send = (kind, k) => stage.dispatchEvent(new PointerEvent('pointer' + kind,
            {clientX: middle[0] + 8 * k, clientY: middle[1], pointerId: 1}));
        send('down', 0); for (let k = 1; k < 12; k++) send('move', k); send('up', 11);
    })(document.getElementById('stage'))""")
    means = browser.points("explorer.page.target.means")
    assert len(means) == 12
    assert means[:, 1].abs().max() < 0.05
    assert means[:, 0].diff().min() > 0.05
    assert browser.run("explorer.fromFragment(location.hash).hand") != ""
    browser.run("document.getElementById('erase').click()")
    assert len(browser.points("explorer.page.target.means")) > 12
    assert browser.faults == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "fragment",
    [
        "#g2=-3&lambda2=9",
        "#data=nothing&steps=x&sigma=-1",
        "#%E0%A4%A&=&&x",
        "#hand=zz!!&data=hand",
    ],
)
def test_an_address_that_is_none_is_mended(browser: Page, fragment: str) -> None:
    browser.open(fragment)
    state = browser.run("explorer.page.state")
    assert state["g2"] >= max(0, state["lambda2"])
    browser.run("explorer.page.simulation.step()")
    assert browser.points("explorer.page.simulation.x").isfinite().all()
    assert browser.faults == []


@pytest.mark.slow
def test_the_tour_restores_its_states(browser: Page) -> None:
    browser.open()
    assert browser.run("explorer.TOUR.length") == 8
    for index in range(8):
        browser.run(f"explorer.page.tourTo({index})")
        link = browser.run(
            f"document.querySelectorAll('#tour-steps a')[{index}].getAttribute('href')"
        )
        state = browser.run("explorer.page.state")
        assert link.removeprefix("#") == browser.run("location.hash.slice(1)")
        assert state == browser.run("explorer.fromFragment(given[0])", link)
        browser.run("(one => one.train ? one.train() : one.step())(explorer.page.simulation)")
    assert browser.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280, 2560])
def test_the_page_fits_and_asks_nobody(browser: Page, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open()
        assert browser.run("document.documentElement.scrollWidth") <= width
        for canvas in ("stage", "map", "curve"):
            box = browser.run(
                f"document.getElementById('{canvas}').getBoundingClientRect().toJSON()"
            )
            assert min(box["width"] / 150, box["height"] / 40) > 1
        painted = """(canvas => new Set(canvas.getContext('2d')
            .getImageData(0, 0, canvas.width, canvas.height).data).size)(document.getElementById('stage'))"""
        browser.driver.execute_async_script("requestAnimationFrame(() => arguments[0]())")
        assert browser.run(painted) > 20
        assert browser.run("performance.getEntriesByType('resource').length") == 0
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.faults == []


@pytest.mark.slow
def test_who_wants_no_motion_sees_the_end(browser: Page) -> None:
    media = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        browser.driver.get("about:blank")
        browser.driver.get(browser.address)
        browser.driver.execute_async_script(
            """const done = arguments[0], look = () =>
            explorer.page.simulation.finished ? done() : setTimeout(look, 50); look();"""
        )
        assert not browser.run("explorer.page.playing")
        assert browser.run("explorer.page.frames") == 0  # nothing moved
        browser.run("explorer.page.measure()")
        assert "NaN" not in browser.run("document.body.innerText")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
