"""What is installed: five packages are enough for the library, extras are named where they are missed."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import partikel
from partikel.app.cli import main
from partikel.app.show.animation import Frame, render
from partikel.data import DataSettings, open_dataset
from partikel.errors import ConfigError, optional
from partikel.fields import OptimalTransport
from partikel.metrics import wasserstein2
from partikel.metrics.evaluation import evaluate
from partikel.priors import GaussianPrior

ROOT = Path(__file__).parents[1]
LEAN = """
import builtins, sys
from importlib.metadata import PackageNotFoundError, distributions, requires
from packaging.requirements import Requirement

FIVE = {"torch", "numpy", "scipy", "accelerate", "safetensors"}
known, waiting = set(), set(FIVE)
while waiting:
    name = waiting.pop().lower().replace("_", "-")
    if name in known:
        continue
    known.add(name)
    try:
        needs = [Requirement(each) for each in requires(name) or []]
    except PackageNotFoundError:
        continue
    waiting |= {n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})}
homes = {}  # of the modules at the top
for each in distributions():
    for path in each.files or ():
        if path.suffix in {".py", ".so"}:
            top = path.parts[0].partition(".")[0]
            homes.setdefault(top, set()).add(each.metadata["Name"].lower().replace("_", "-"))
hidden = {module for module, names in homes.items() if module != "partikel" and not names & known}
assert {"sklearn", "cyclopts", "PIL", "matplotlib", "rich", "torchdiffeq"} <= hidden


class Only:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, *rest)


sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
plain, strange = builtins.__import__, set()


def watched(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and (globals or {}).get("__name__", "").partition(".")[0] == "partikel":
        strange.update({name.partition(".")[0]} - FIVE - {"partikel"} - sys.stdlib_module_names)
    return plain(name, globals, locals, fromlist, level)


builtins.__import__ = watched

import importlib, pathlib, pkgutil
import torch
import partikel

torch.set_num_threads(1)
for room in pkgutil.iter_modules(partikel.__path__, "partikel."):
    if room.name not in {"partikel.app", "partikel.studies", "partikel.__main__"}:
        importlib.import_module(room.name)
        inside = getattr(sys.modules[room.name], "__path__", ())
        for module in pkgutil.iter_modules(inside, room.name + "."):
            importlib.import_module(module.name)

from partikel import DiscriminatorField, GaussianPrior, GeneratorModel, ParticleModel, Phase, fit
from partikel.data import DataSettings, open_dataset
from partikel.metrics.evaluation import evaluate
from partikel.networks import MLP, Conditioning

gaussians, out = open_dataset(DataSettings("gaussians")), pathlib.Path(sys.argv[1])
critic = DiscriminatorField(MLP((2,), (), conditions=Conditioning(scalars=1)), conditions=("t",))
flow = ParticleModel(critic, GaussianPrior((2,)), steps=3, eta=3.0)
gan = GeneratorModel(critic, MLP((4,), (2,)), GaussianPrior((4,)))
fit(flow, gaussians, [Phase("discriminator")], iterations=3, folder=out / "flow")
fit(gan, gaussians, [Phase("discriminator"), Phase("generator")], iterations=3, folder=out / "gan")
for model in (flow, gan):
    x = model.sample(50, generator=torch.Generator().manual_seed(0))
    assert x.shape == (50, 2) and x.isfinite().all()
found = evaluate(lambda n, generator: gan.sample(n, generator=generator), gaussians, n=200)
assert "w2" not in found.metrics and "partikel[transport]" in found.left_out["w2"]
assert not strange, strange
"""


def test_the_library_imports_five_packages(tmp_path: Path) -> None:
    """All others are hidden; ours is watched too, as those five bring more than it may import."""
    command = [sys.executable, "-c", LEAN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for run in ("flow", "gan"):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 3
        assert list((tmp_path / run / "checkpoints").glob("*/*.safetensors"))
        assert not (tmp_path / run / "tensorboard").exists()


SLOW_TO_IMPORT = {"matplotlib", "scipy", "sklearn", "rich", "jinja2", "cyclopts", "PIL", "imageio"}


@pytest.mark.parametrize(
    ("what", "absent"),
    [
        ("import partikel; partikel.load; partikel.load_generator; partikel.Run", SLOW_TO_IMPORT),
        ("from partikel.app.cli import main; main(['presets'])", {"torch", "accelerate"}),
        ("from partikel.app.cli import main; main(['sample', '/x'])", {"matplotlib", "scipy"}),
        ("from partikel.app.cli import main; main(['--help'])", {"torch", "cyclopts", "rich"}),
    ],
)
def test_nothing_slow_is_imported_before_it_is_used(what: str, absent: set[str]) -> None:
    """To load a run takes little longer than to import PyTorch, and lists do without it."""
    script = (
        f"import sys\ntry:\n    {what.replace('; ', chr(10) + '    ')}\nexcept SystemExit: pass\n"
    )
    script += f"found = {absent!r} & sys.modules.keys()\nassert not found, found"
    # a launcher's backend is looked at by matplotlib itself (partikel.app.show)
    plain = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    assert done.returncode == 0, done.stderr


# --- extras


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_the_exact_distance_needs_an_extra_and_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "ot")
    mend = r'pip install "partikel\[transport\]"'
    with pytest.raises(ConfigError, match=rf"^the exact W2 needs POT, which is not .*: {mend}\.$"):
        wasserstein2(torch.randn(5, 2), torch.randn(5, 2))
    data = open_dataset(DataSettings("gaussians"))
    found = evaluate(lambda n, generator: torch.randn(n, 2, generator=generator), data, n=50)
    assert "w2" not in found.metrics | found.reference
    assert re.search(mend, found.left_out["w2"])
    pairing, points = OptimalTransport(GaussianPrior((2,))), torch.randn(5, 2)
    with pytest.raises(ConfigError, match=rf"^optimal transport needs POT, which .*: {mend}\.$"):
        pairing.partners(points, points, generator=torch.Generator())


@pytest.mark.parametrize("module", ["imageio.v2", "imageio_ffmpeg"])
def test_films_need_an_extra(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, module)
    frames = [Frame(f"step {i}", torch.randn(9, 1, 8, 8).clamp(-1, 1)) for i in range(2)]
    with pytest.raises(
        ConfigError, match=r'^an .mp4 needs imageio.*pip install "partikel\[video\]"'
    ):
        render(frames, tmp_path / "x.mp4")
    render(frames, tmp_path / "x.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]


def test_what_is_there_but_broken_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libfoo.so.1: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ConfigError, match=r"cannot be imported \(libfoo.*partikel\[x\]"):
        optional("json", "x", "this needs json")


def extras() -> dict[str, str]:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[project.")[0]
    return dict(re.findall(r"^(\w+) = (\[.*?\])$", section, re.MULTILINE | re.DOTALL))


def test_extras_that_messages_and_pages_name_exist() -> None:
    places = [*(ROOT / "src").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(path.read_text("utf-8") for path in places)
    named = {one for group in re.findall(r"partikel\[([\w,]+)\]", text) for one in group.split(",")}
    named |= set(re.findall(r'optional\(\s*"[\w.]+",\s*"(\w+)"', text))
    assert named <= set(extras())
    assert {"transport", "video"} <= named


# --- what an index shows


def test_there_is_one_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", partikel.__version__)
    main(["--version"])
    assert capsys.readouterr().out == f"partikel {partikel.__version__}\n"
    assert partikel.__version__ not in (ROOT / "pyproject.toml").read_text()


RELATIVE = re.compile(r"\]\((?!https?:|#)")


def test_the_readme_of_an_index_has_no_relative_links() -> None:
    of = runpy.run_path(str(ROOT / "setup.py"))
    text = (ROOT / "README.md").read_text("utf-8")
    assert RELATIVE.search(text)
    for repository in ("", "https://example.org/x"):
        assert not RELATIVE.search(of["readme"](text, repository))
        assert all(link.startswith("https://") for link in of["urls"](repository).values())
    small = "see [a](docs/a.md#b), [c](https://d.org) and ![e](f.png)"
    there = "https://example.org/x"
    assert of["readme"](small, there) == (
        f"see [a]({there}/blob/main/docs/a.md#b), [c](https://d.org) and ![e]({there}/raw/main/f.png)"
    )
    assert of["readme"](small, "") == "see a, [c](https://d.org) and "


# --- what is built


def run(*command: str | Path, cwd: Path) -> str:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def sources() -> list[str]:
    """The files that git would give; an unpacked archive has no git, and tests of archives skip."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout: archives are built of what git knows")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the source archive, of what git would give."""
    folder = tmp_path_factory.mktemp("built")
    for name in sources():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    said = run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist"),
        cwd=folder / "tree",
    )
    assert not re.search("warning|deprecat", said, re.IGNORECASE), said
    return folder / "dist"


@pytest.mark.slow
def test_archives_are_as_an_index_wants_them(built: Path) -> None:
    archives = sorted(built.iterdir())
    assert len(archives) == 2
    said = run(sys.executable, "-m", "twine", "check", "--strict", *archives, cwd=built)
    assert said.count("PASSED") == 2
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"partikel"}
    kinds = {Path(name).suffix for name in names if name.startswith("partikel/")}
    assert kinds == {
        ".py",
        ".typed",
        ".md",
        ".css",
        ".html",
        ".js",
        ".yaml",
        ".json",
        ".safetensors",
    }
    assert sum(each.stat().st_size for each in built.glob("*.whl")) < 2e6
    assert f"Version: {partikel.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert not RELATIVE.search(metadata)
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    # all that the tests read, as they run from it too
    assert {name for name in sources() if not name.startswith(".")} <= inside
    assert not {name for name in inside if name.endswith(".pyc")}


DEMO = """
import functools, sys
from partikel.app import demo
from partikel.app.cli import main

assert "site-packages" in demo.__file__, demo.__file__
demo.LENGTHS = dict.fromkeys(demo.LENGTHS, 2)
demo.summarise = functools.partial(demo.summarise, n=300)
main(["demo", "--out", sys.argv[1]])
"""


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(built: Path, tmp_path: Path) -> None:
    """In an environment with nothing but the wheel and the dependencies: with few iterations."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python = next(iter(home.glob("bin/python")), home / "Scripts" / "python.exe")
    (site,) = home.glob("lib/*/site-packages")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    dependencies = Path(torch.__file__).parents[1]
    (site / "dependencies.pth").write_text(f"{dependencies}\n")  # .pth files there are not read
    said = run(python, "-c", DEMO, tmp_path / "demo", cwd=tmp_path)
    assert "Open this page" in said
    assert (tmp_path / "demo" / "index.html").stat().st_size > 10_000
