"""A real ComfyUI for the tests: the fixture `comfy` is a running server with the pack linked into its custom_nodes/.

Every test that asks for `comfy` runs once per engine: on the embedded one, and on the checkout that COMFYUI_PATH names.
    result = comfy.run({"1": {"class_type": "EmptyImage", "inputs": {...}}, ...})
    result.images, result.texts, result.outputs["1"], result.error, result.where
    comfy.refuses(workflow, "words that the sentence must hold")      # one clear sentence, the server lives on
    comfy.workflow("null_text", steps=4)                               # a shipped workflow, made short
    graph = comfy.graph()                                              # one built node by node, see graph.py
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
from nulltext.batch import engines
from nulltext.batch.client import Result
from nulltext.benchmarks.families.run import plant_stand_ins
from nulltext.demo import weights
from nulltext.tests.server.graph import Graph, Node
from nulltext.tests.workflows import renamed, short
from nulltext.tools import workflows
from safetensors.torch import load_file

PROBE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 255}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def _engines() -> dict[str, engines.Engine | str]:
    """Engine, or the reason why it can't run, by name."""
    found: dict[str, engines.Engine | str] = {}
    for name, make in (("embedded", engines.embedded), ("checkout", engines.checkout)):
        if name == "embedded" or os.environ.get("COMFYUI_PATH"):
            try:
                found[name] = make()
            except engines.EngineError as error:
                found[name] = str(error)
    return found


ENGINES = _engines()
_ran: dict[str, int] = {}


class Comfy:
    """The client with what tests need on top. Attributes: engine ("embedded" or "checkout"), tree (Path), address."""

    def __init__(self, server: engines.Server):
        self.server, self.client = server, server.client
        self.engine, self.tree, self.address = server.engine.name, server.tree, server.address
        self.upload = self.client.upload
        self._info: dict | None = None

    def free(self) -> None:
        """Ask the server to unload its models and forget its cached results."""
        self.client.post("/free", {"unload_models": True, "free_memory": True})

    @property
    def object_info(self) -> dict:
        self._info = self._info or self.client.object_info()
        return self._info

    def graph(self, *checkpoint: str) -> Graph:
        return Graph(self.object_info, *checkpoint)

    def run(self, workflow: dict, on_progress=None, timeout: float = 240) -> Result:
        """Queue a workflow in API format and wait. The node ids that the server sees carry the class: the embedded
        engine keys its cache by id and inputs alone, so another test's node under the same id would answer."""
        alias = {key: f"{key}-{node['class_type']}" for key, node in workflow.items()}
        back = {new: key for key, new in alias.items()}
        progress = None if on_progress is None else lambda node, i, n: on_progress(back.get(node, node), i, n)
        result = self.client.run(renamed(workflow, alias), progress, timeout)
        result.outputs = {back.get(key, key): value for key, value in result.outputs.items()}
        result.files = {back.get(key, key): value for key, value in result.files.items()}
        result.cached = tuple(back.get(key, key) for key in result.cached)
        result.ran = {back.get(key, key) for key in result.ran}
        if not self.server.alive():
            pytest.exit(f"The server ended. The end of its log:\n{self.server.tail()}", returncode=1)
        return result

    def interrupted(self, workflow: dict, node: Node, ticks: int = 3, seconds: float = 60) -> Result:
        """The workflow, interrupted once a node's bar stands at so many steps: it ends soon. Newer engines tell of few
        steps only, so what is told is read and not counted."""
        reached = []

        def stop(key, value, total):
            if key == node.key and value >= ticks and not reached:
                reached.append(value)
                self.client.post("/interrupt")

        result = self.run(workflow, stop)
        assert reached, f"it ended before: {result.error}"
        assert result.interrupted and not result.ok and result.seconds < seconds
        return result

    def latent(self, result: Result, node: Node) -> torch.Tensor:
        """The finite samples that a SaveLatent wrote."""
        (where,) = result.outputs[node.key]["latents"]
        out = load_file(self.tree / "output" / where["subfolder"] / where["filename"])["latent_tensor"].float()
        assert torch.isfinite(out).all()
        return out

    @property
    def unet(self) -> dict[str, torch.Tensor]:
        """The weights of the demo checkpoint's UNet."""
        trained = weights.CHECKPOINT
        used = trained if trained.exists() else self.tree / "models" / "checkpoints" / trained.name
        return weights.read_part(used, "unet")

    def refuses(self, workflow: dict, *words: str, seconds: float | None = None) -> Result:
        """The workflow fails with one clear sentence that holds all `words` (case aside), and the next prompt works."""
        result = self.run(workflow)
        assert result.error, f"nothing was refused; texts: {result.texts}"
        sentence = result.error
        for word in words:
            assert word.lower() in sentence.lower(), f"{word!r} is not in the refusal: {sentence}"
        assert result.error_type in ("validation", "ValueError"), f"{result.error_type}: {sentence}"
        assert "\n" not in sentence, f"more than one line: {sentence}"
        assert 20 <= len(sentence) <= 500, f"not one sentence a person reads: {sentence}"
        assert "Traceback" not in sentence
        assert seconds is None or result.seconds <= seconds, f"refused only after {result.seconds:.1f} s"
        assert self.run(PROBE).check().images, "the next prompt does not work"
        return result

    def workflow(self, name: str, steps: int = 3, **inputs) -> dict:
        """A shipped workflow in API format, made short; `inputs` override every node's input of that name."""
        flow = short(workflows.load(name), steps)
        for node in flow.values():
            node["inputs"].update({key: value for key, value in inputs.items() if key in node["inputs"]})
        return flow


@pytest.fixture(scope="session", params=list(ENGINES))
def comfy(request):
    engine = ENGINES[request.param]
    if isinstance(engine, str):
        pytest.skip(engine)  # said again, in red, in the summary
    with tempfile.TemporaryDirectory(prefix="nulltext-") as folder:
        tree = Path(folder)
        plant_stand_ins(tree)  # nodes that only test_families asks for
        # nothing lies in the input folder: the shipped workflows run in anybody's ComfyUI
        with engines.running(engine, tree, extra=["--preview-method", "latent2rgb"]) as server:
            yield Comfy(server)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_logreport(report):
    yield
    if report.when == "call" and "[" in report.nodeid:
        for name in ENGINES:
            if f"[{name}" in report.nodeid or f"-{name}" in report.nodeid:
                _ran[name] = _ran.get(name, 0) + 1


def pytest_terminal_summary(terminalreporter):
    for name, engine in ENGINES.items():
        if isinstance(engine, str):
            terminalreporter.write_line(f"engine {name}: NOT RUN. {engine}", red=True)
        else:
            terminalreporter.write_line(f"engine {name} ({engine.title}): {_ran.get(name, 0)} tests ran on it")
    if "checkout" not in ENGINES:
        terminalreporter.write_line("engine checkout: not asked for (COMFYUI_PATH names no ComfyUI)", yellow=True)


@pytest.fixture
def temporary_file(comfy):
    """Makes files in the server's tree and removes them afterwards: temporary_file("input/x.png", bytes) -> Path."""
    made = []

    def make(name: str, content: bytes = b"") -> Path:
        path = comfy.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        made.append(path)
        return path

    yield make
    for path in made:
        with contextlib.suppress(OSError):
            path.unlink()
