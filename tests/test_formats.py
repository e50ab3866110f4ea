"""Out to others: pipelines of diffusers and back, ONNX, the Hugging Face Hub."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import partikel
from conftest import MIXTURE, randn, seeded, tensor
from partikel.app import cli
from partikel.app.config import make_recipe
from partikel.app.export import export_run
from partikel.app.hub import push_folder, to_push
from partikel.app.onnx import write_onnx
from partikel.app.runs import Run, train_run
from partikel.denoising.diffusers import load_diffusers
from partikel.errors import CheckpointError, ConfigError, NumericsError
from partikel.fields import At, ExactScoreField, Linear
from partikel.files import read_json, sealed, write_json
from partikel.models import GeneratorModel
from partikel.networks import NetworkSettings, build_network
from partikel.networks.foreign import as_unet2d
from partikel.priors import GaussianPrior
from partikel.schedules import EDMSchedule
from partikel.solvers import DPMSolver2M, DPMSolver2MSDE, Dynamics, UniPC

UNET = {"kind": "unet2d", "channels": 8, "multipliers": (1, 2), "attention_resolutions": (4,)}
MLP = {"kind": "mlp", "width": 8, "depth": 1}


def trained(recipe: str, out: Path, **settings: Any) -> Run:
    brief = {"iterations": 3, "batch": 16, "evaluate_every": None, "ema": 0.5}
    return train_run(make_recipe(recipe, {**brief, **settings}), out, preset="tiny")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder, digits = tmp_path_factory.mktemp("runs"), {"name": "digits"}
    network = {**UNET, "init": "orthogonal"}  # whose output is not zero at first
    edm = {"data": digits, "network": network, "steps": 6, "sigma_max": 20.0}
    gan = {"generator": MLP, "discriminator": MLP, "latent": 4}
    return {
        "heun": trained("edm", folder / "heun", **edm),
        "euler": trained("edm", folder / "euler", **edm, solver="euler"),
        "classes": trained("edm", folder / "classes", **edm, conditional=True),
        "mlp": trained("edm", folder / "mlp", data=digits, network=MLP, steps=2),
        "points": trained("gan", folder / "points", **gan),
        "labels": trained("gan", folder / "labels", **gan, data=digits, conditional=True),
        "map": trained(
            "mean-flow", folder / "map", network=MLP, data=digits, conditional=True, steps=3
        ),
        "to the end": trained("consistency", folder / "to the end", network=MLP),
    }


def card(out: Path) -> dict[str, Any]:
    """What the card's example makes."""
    values: dict[str, Any] = {}
    exec((out / "README.md").read_text().split("```python\n")[1].split("```")[0], values)
    return values


# --- diffusers


@pytest.fixture
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="needs the extra 'diffusers'")


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 16, 16), {}),
        ((1, 8, 8), {"multipliers": (1,), "attention_resolutions": ()}),
        ((2, 16, 16), {"multipliers": (1, 2, 3), "blocks": 2, "attention_resolutions": (16, 4)}),
    ],
)
def test_a_unet2d_is_the_network_of_diffusers(
    shape: tuple[int, ...], options: dict[str, Any], diffusers: Any
) -> None:
    settings = NetworkSettings("unet2d", channels=12, init="orthogonal", **options)
    network = build_network(settings, "denoiser", shape=shape, scalars=1, generator=seeded())
    network.eval()
    state = torch.get_rng_state()
    unet = as_unet2d(network, shape[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for p in unet.parameters()) == sum(p.numel() for p in network.parameters())
    x, c = torch.randn(4, *shape, generator=seeded()), torch.tensor([[-1.5], [-0.2], [0.3], [0.9]])
    with torch.no_grad():
        expected = network(x, c)
        assert_close(unet(x, c[:, 0]).sample, expected, rtol=1e-4, atol=1e-5)
        assert expected.abs().max() > 0.1
        assert not torch.allclose(network(x, c.flip(0)), expected, atol=1e-3)


def test_a_unet2d_with_labels_is_the_network_of_diffusers(diffusers: Any) -> None:
    settings = NetworkSettings("unet2d", channels=12, init="orthogonal")
    options = {"shape": (1, 8, 8), "scalars": 1, "classes": 3, "generator": seeded()}
    network = build_network(settings, "denoiser", **options).eval()
    unet = as_unet2d(network, 8)
    assert sum(p.numel() for p in unet.parameters()) == sum(p.numel() for p in network.parameters())
    x, c = torch.randn(4, 1, 8, 8, generator=seeded()), torch.tensor([[-1.5], [-0.2], [0.3], [0.9]])
    cond = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        expected = network(x, c, cond)
        assert_close(unet(x, c[:, 0], cond).sample, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(network(x, c, cond.flip(0)), expected, atol=1e-3)
        assert_close(network(x, c), network(x, c, torch.full((4,), 3)))


SAMPLERS = {
    "UniPC-1": (UniPC(1), "UniPCMultistepScheduler", {"solver_order": 1}),
    "UniPC-2": (UniPC(2), "UniPCMultistepScheduler", {"solver_order": 2}),
    "UniPC-3": (UniPC(3), "UniPCMultistepScheduler", {"solver_order": 3}),
    "UniP-3": (
        UniPC(3, corrector=False),
        "UniPCMultistepScheduler",
        {"solver_order": 3, "disable_corrector": [*range(99)]},
    ),
    "2M": (DPMSolver2M(), "DPMSolverMultistepScheduler", {}),
    "2M SDE": (
        DPMSolver2MSDE(),
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
}


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_those_of_diffusers(name: str, to_zero: bool, diffusers: Any) -> None:
    """On one denoiser and one set of levels, through x̃ = x/√(1 + σ²)."""
    solver, kind, options = SAMPLERS[name]
    levels = tensor([9.0, 4.0, 2.1, 0.9, 0.35, 0.1, 0.0 if to_zero else 0.02])
    steps = len(levels) - 1
    scheduler = getattr(diffusers, kind)(
        prediction_type="sample",
        lower_order_final=to_zero,
        final_sigmas_type="zero" if to_zero else "sigma_min",
        **options,
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = levels
    scheduler.set_begin_index(0)
    start, noise = 9 * randn(20, 2), randn(steps, 20, 2, seed=1)
    theirs = start / (1 + levels[0] ** 2).sqrt()
    for i, t in enumerate(scheduler.timesteps):
        denoised = MIXTURE.denoiser(theirs * (1 + levels[i] ** 2).sqrt(), levels[i].expand(20))
        given = {"variance_noise": noise[i]} if name == "2M SDE" else {}
        theirs = scheduler.step(denoised, t, theirs, **given).prev_sample
    path = EDMSchedule(9.0, float(levels[-1]))
    field = path.half_rate * ExactScoreField(MIXTURE)
    dynamics = Dynamics(lambda x, t: field(x, At(t, path.sigma(t))), schedule=path)
    times = path.time(levels)
    drawn = {float(t): z for t, z in zip(times, noise, strict=False)}
    ours = solver.solve(
        dynamics, start, times, brownian=lambda x, t, t_next: drawn[t] * (t_next - t) ** 0.5
    )
    theirs = (
        theirs * (1 + levels[-1] ** 2).sqrt()
    )  # DPM-Solver's steps are in single precision there
    assert_close(ours.x, theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["heun", "euler"])
def test_a_pipeline_of_diffusers_makes_our_samples_and_comes_back(
    name: str, diffusers: Any, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs[name]
    out = export_run(run, tmp_path / "pipe", "diffusers")
    monkeypatch.chdir(tmp_path)
    assert len(card(Path("pipe"))["images"]) == 8
    pipeline = diffusers.DiffusionPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=5, num_inference_steps=6, generator=seeded(3), output_type="pt"
    ).images
    noise = torch.randn(5, 1, 8, 8, generator=seeded(3)) * pipeline.scheduler.init_noise_sigma
    ours = "dpmpp-2m" if name == "heun" else "euler"
    x = run.model.sample(5, generator=seeded(), start=noise, solver=partikel_solver(ours))
    assert_close(images, (x / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=2e-5)
    assert images.std() > 0.05
    assert json.loads((out / "config.json").read_text())["difference"] < 1e-4

    again = trained(
        "score-gan",
        tmp_path / "again",
        data={"name": "digits"},
        data_score=f"diffusers:{out}",
        own_score=None,
        generator=MLP,
    )
    sigma, at = (
        torch.tensor([0.1, 1.0, 5.0, 9.0, 15.0]),
        torch.randn(5, 1, 8, 8, generator=seeded()),
    )
    denoiser = load_diffusers(out, (1, 8, 8))
    own = next(m for m in run.model.modules() if type(m).__name__ == "EDMDenoiser")
    with torch.no_grad():
        assert_close(denoiser(at, sigma), own(at, sigma), rtol=1e-4, atol=1e-4)
    assert again.step == 3
    with pytest.raises(CheckpointError, match="other programs"):
        partikel.load(out)


def test_a_pipeline_with_labels_makes_our_samples_and_comes_back(
    diffusers: Any, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cond = runs["classes"], torch.tensor([9, 0, 4, 4, 2])
    out = export_run(run, tmp_path / "pipe", "diffusers")
    monkeypatch.chdir(tmp_path)
    assert len(card(Path("pipe"))["images"]) == 8
    pipeline = diffusers.DiffusionPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    told = {"num_inference_steps": 6, "output_type": "pt", "class_labels": cond}
    images = pipeline(batch_size=5, generator=seeded(3), **told).images
    noise = torch.randn(5, 1, 8, 8, generator=seeded(3)) * pipeline.scheduler.init_noise_sigma
    solver = partikel_solver("dpmpp-2m")
    x = run.model.sample(5, generator=seeded(), start=noise, solver=solver, cond=cond)
    assert_close(images, (x / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=2e-5)
    assert json.loads((out / "config.json").read_text())["difference"] < 1e-4
    back = load_diffusers(out, (1, 8, 8), classes=10)
    own = next(m for m in run.model.modules() if type(m).__name__ == "EDMDenoiser")
    sigma = torch.tensor([0.1, 1.0, 5.0, 9.0, 15.0])
    with torch.no_grad():
        for each in (cond, None):  # None: the row after the classes
            assert_close(back(x, sigma, cond=each), own(x, sigma, cond=each), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(own(x, sigma, cond=cond), own(x, sigma), atol=1e-3)
    with pytest.raises(ConfigError, match="knows 11 labels, the model has none"):
        load_diffusers(out, (1, 8, 8))


def partikel_solver(name: str) -> Any:
    from partikel.solvers import SOLVERS

    return SOLVERS[name]()


def test_what_differs_from_diffusers_is_named(
    diffusers: Any, runs: dict[str, Run], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no U-Net.*unet2d"):
        export_run(runs["mlp"], tmp_path / "out", "diffusers")
    with pytest.raises(ConfigError, match="GAN has no pipeline"):
        export_run(runs["points"], tmp_path / "out", "diffusers")
    assert not any(tmp_path.iterdir())

    def unet(**options: Any) -> Any:
        classes, embedding = options.pop("classes", None), options.pop("features", 8)
        settings = {"channels": 8, "embedding_features": embedding, **options}
        made = NetworkSettings("unet", **settings)
        return build_network(
            made, "denoiser", shape=(1, 8, 8), scalars=1, classes=classes, generator=seeded()
        )

    for options, message in (
        ({"classes": 3}, "labels"),
        ({"embedding": "fourier"}, "fourier"),
        ({"features": 16}, "16 features"),
        ({}, "group norms have 2 to 8 groups"),
        ({"channels": 4, "features": 4, "multipliers": (2,)}, "groups|begin with 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            as_unet2d(unet(**options), 8)
    for options, message in (
        ({"embedding_features": 64}, "are its channels"),
        ({"multipliers": (2, 2)}, "begin with 1"),
        ({"channels": 7}, "even"),
    ):
        settings = NetworkSettings("unet2d", **{"channels": 8, **options})
        with pytest.raises(ConfigError, match=message):
            build_network(settings, "denoiser", shape=(1, 8, 8), scalars=1, generator=seeded())


# --- ONNX


@pytest.fixture
def runtime() -> Any:
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    return pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")


@pytest.mark.parametrize("name", ["points", "labels", "map", "to the end"])
def test_onnx_gives_the_samples_of_the_run(
    name: str, runtime: Any, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs[name]
    exported = partikel.load(export_run(run, tmp_path / "ours"))
    out = export_run(exported, tmp_path / "onnx", "onnx")  # of an export as of the run
    monkeypatch.chdir(tmp_path)
    assert card(Path("onnx"))["x"].shape == (8, *run.data.shape)
    session = runtime.InferenceSession(str(out / "model.onnx"))
    for n in (1, 3, 50):
        z = run.model.start(n, seeded(n))
        cond = None if run.model.label_weights is None else torch.arange(n) % 10
        expected = run.model.sample(n, generator=seeded(), start=z, cond=cond)
        fed = {"z": z.numpy()} | ({} if cond is None else {"label": cond.numpy()})
        assert_close(torch.from_numpy(session.run(None, fed)[0]), expected, rtol=1e-4, atol=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert 0 <= config["difference"] < 1e-4
    assert f"{config['difference']:.1g} at most" in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "side", "options"),
    [
        ("small", 8, {"norm": "spectral"}),
        ("dcgan", 16, {}),
        ("resnet", 16, {"width": 4, "attention_resolutions": (8,)}),
        ("fastgan", 64, {"width": 1}),
        ("r3gan", 16, {"width": 8, "blocks": 1}),
    ],
)
def test_every_generator_has_its_onnx(
    kind: str, side: int, options: dict[str, Any], runtime: Any, tmp_path: Path
) -> None:
    settings = NetworkSettings(kind, **options)
    network = build_network(
        settings, "generator", shape=(3, side, side), latent=5, classes=4, generator=seeded()
    )
    model = GeneratorModel(
        Linear(0.0), network, GaussianPrior((5,)), label_weights=torch.full((4,), 0.25)
    )
    assert write_onnx(model.eval(), tmp_path / "g.onnx")["difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("kind", ["dit", "edm2"])
def test_networks_of_images_to_images_have_theirs(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = {"width": 8, "depth": 1} if kind == "dit" else {"channels": 4, "multipliers": (1, 2)}
    network = build_network(
        NetworkSettings(kind, **size), "denoiser", shape=(1, 8, 8), generator=seeded()
    )
    for number, weight in enumerate(network.parameters()):  # whose output is zero at first
        weight.data += 0.1 * randn(1, *weight.shape, seed=number)[0].float()
    model = GeneratorModel(Linear(0.0), network, GaussianPrior((1, 8, 8)))
    assert write_onnx(model.eval(), tmp_path / "g.onnx")["difference"] < 1e-4
    assert not [r for r in caplog.records if r.name.startswith(("torch.onnx", "onnxscript"))]


@pytest.mark.usefixtures("runtime")
def test_onnx_is_refused_where_it_cannot_be(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="step by step.*distil"):
        export_run(runs["mlp"], tmp_path / "out", "onnx")
    with pytest.raises(ConfigError, match="one call: leave out steps"):
        export_run(runs["points"], tmp_path / "out", "onnx", steps=2)
    with pytest.raises(ConfigError, match="draws noise between its jumps"):
        export_run(runs["to the end"], tmp_path / "out", "onnx", steps=2)
    with pytest.raises(ConfigError, match="leave out steps"):
        export_run(runs["map"], tmp_path / "out", steps=2)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            with pytest.raises(ConfigError, match=rf"{package}.*partikel\[onnx\]"):
                export_run(runs["points"], tmp_path / "out", "onnx")
    assert not any(tmp_path.iterdir())


def test_onnx_of_other_samples_is_not_handed_out(
    runtime: Any, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(runtime.InferenceSession):
        def run(self, *args: Any) -> Any:
            return [super().run(*args)[0] + 0.1]

    monkeypatch.setattr(runtime, "InferenceSession", Wrong)
    with pytest.raises(NumericsError, match="other samples"):
        export_run(runs["points"], tmp_path / "out", "onnx")
    assert not any(tmp_path.iterdir())


# --- the Hub


class Hub(BaseHTTPRequestHandler):
    """What of the Hub's API an upload asks for; a stand-in on this machine."""

    files: dict[str, bytes]
    asked: list[tuple[str, Any]]
    refuse: int | None

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_GET(self) -> None:
        self._answer({"error": "not here"}, 404)

    def do_POST(self) -> None:
        body, kind = self._body(), type(self)
        here = f"http://{self.headers['Host']}"
        if kind.refuse is not None:
            self._answer({"error": "no"}, kind.refuse)
        elif self.path == "/api/repos/create":
            kind.asked.append((self.headers["Authorization"], json.loads(body)))
            self._answer({"url": f"{here}/me/digits", "name": "me/digits"})
        elif "/preupload/" in self.path:
            sent = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": each["path"], **modes} for each in sent]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    kind.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{here}/me/digits/commit/abc", "commitOid": "abc"})
        else:
            self._answer({})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
    constants = import_module("huggingface_hub.constants")
    Hub.files, Hub.asked, Hub.refuse = {}, [], None
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield Hub
    server.shutdown()
    server.server_close()


def test_push_uploads_what_was_exported_and_nothing_else(
    hub: type[Hub], runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export_run(runs["points"], tmp_path / "out")
    (out / "README.md").write_text("# mine\n")  # a card is edited
    (out / "secret.txt").write_text("not yours")
    cli.main(["push", str(out), "me/digits", "--dry-run"])
    assert hub.asked == []
    shown = capsys.readouterr().out
    assert "generator.safetensors" in shown
    assert "secret" not in shown
    cli.main(["push", str(out), "me/digits", "--private"])
    assert "/me/digits" in capsys.readouterr().out.splitlines()[-1]
    names = ["README.md", "config.json", "generator.safetensors", "samples.png"]
    assert sorted(hub.files) == names
    assert all(hub.files[name] == (out / name).read_bytes() for name in names)
    ((token, wanted),) = hub.asked
    assert token == "Bearer hf_of_a_test"
    assert wanted["name"] == "digits"
    assert wanted.get("private") or wanted.get("visibility") == "private"


def test_push_takes_whole_exports_only(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no exported model"):
        to_push(runs["points"].path)
    out = export_run(runs["points"], tmp_path / "out")
    assert set(to_push(out)) == {path.name for path in out.iterdir()}
    weights = out / "generator.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="was changed"):
        to_push(out)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        to_push(out)
    config = {k: v for k, v in read_json(out / "config.json").items() if k != "checksum"}
    write_json(out / "config.json", sealed({**config, "files": ["generator.safetensors"]}))
    with pytest.raises(CheckpointError, match="was changed"):
        to_push(out)


def test_push_says_what_is_missing(
    hub: type[Hub],
    runs: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = export_run(runs["points"], tmp_path / "out")

    def said(repo: str = "me/digits") -> str:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["push", str(out), repo])
        assert stopped.value.code == 2
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("part")]
        return line

    assert "write USER/NAME" in said("me/digits and more")
    for code, words in ((401, "log in"), (403, "that may write"), (422, "refused")):
        hub.refuse = code
        assert words in said()
    constants = import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in said()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "hf auth login" in said()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"partikel\[hub\]"):
        push_folder(out, "me/digits", [])
