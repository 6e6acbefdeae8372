"""docs/api.md's script edits a folder of pictures through a running server."""

import asyncio
import json
import os
import subprocess
import sys
import threading

import pytest
from aiohttp import web
from nulltext.tools import workflows
from PIL import Image

SCRIPT = workflows.FOLDER.parent / "docs" / "edit_folder.py"


def edit_folder(address, *arguments, workflow=workflows.API / "edit_photo.api.json"):
    environment = {**os.environ, "COMFYUI_SERVER": address, "NO_PROXY": "*"}
    command = [sys.executable, str(SCRIPT), str(workflow), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_the_script_edits_a_folder(comfy, tmp_path):
    photos, edited = tmp_path / "photos", tmp_path / "edited"
    photos.mkdir()
    for name in ("one.png", "two.JPEG", "three.webp"):
        Image.new("RGB", (128, 128), "red").save(photos / name)
    words = ("Edit Photo.source_prompt=a red square", "Edit Photo.edited_prompt=a green square")
    done = edit_folder(comfy.client.address.removeprefix("http://"), photos, edited, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["one.png done", "three.webp done", "two.JPEG done"]
    assert {path.name for path in edited.iterdir()} >= {"one Edit.png", "two Edit.png", "three Edit.png"}
    with Image.open(edited / "one Edit.png") as picture:
        assert picture.size == (128, 128)


def test_the_script_says_what_the_server_refuses(comfy, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    done = edit_folder(comfy.client.address, tmp_path, tmp_path, "Checkpoint.ckpt_name=gone.safetensors")
    assert done.returncode == 1
    assert "one.png was refused" in done.stderr and "gone.safetensors" in done.stderr


def test_the_script_says_how_it_is_called():
    done = edit_folder("127.0.0.1:1")
    assert done.returncode == 1 and "WORKFLOW PHOTOS EDITED" in done.stderr and "Traceback" not in done.stderr


class Fake:
    """A server that shows two pictures for every workflow, fails where the picture is called bad, takes no upload of
    one called large, and loses one called lost out of its queue."""

    def __init__(self):
        self.sent, self.address, ready = [], "", threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.serve, args=(ready,))
        self.thread.start()
        ready.wait(20)

    def serve(self, ready):
        app = web.Application()
        app.add_routes([web.post("/upload/image", self.upload), web.post("/prompt", self.prompt)])
        app.add_routes([web.get("/history/{number}", self.history), web.get("/view", self.view)])
        app.add_routes([web.get("/queue", self.queue)])
        runner = web.AppRunner(app, shutdown_timeout=0)
        self.loop.run_until_complete(runner.setup())
        self.loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.address = "http://{}:{}".format(*runner.addresses[0])
        ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(runner.cleanup())

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    async def upload(self, request):
        name = (await request.post())["image"].filename
        if name.startswith("large"):
            raise web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2)
        return web.json_response({"name": name})

    async def prompt(self, request):
        self.sent.append((await request.json())["prompt"])
        return web.json_response({"prompt_id": str(len(self.sent))})

    async def history(self, request):
        number, messages = request.match_info["number"], [["execution_start", {}]]
        picture = self.sent[int(number) - 1]["1"]["inputs"]["image"]
        if picture.startswith("lost"):
            return web.json_response({})
        bad = picture.startswith("bad")
        if bad:
            messages.append(["execution_error", {"exception_message": "no memory", "traceback": ["File x"]}])
        shown = {"2": {"images": [{"filename": f"{number}_{i}.webp"} for i in (1, 2)]}}
        status = {"status_str": "error" if bad else "success", "messages": messages}
        return web.json_response({number: {"status": status, "outputs": {} if bad else shown}})

    async def view(self, request):
        return web.Response(text=request.query["filename"])

    async def queue(self, request):
        return web.json_response({"queue_running": [], "queue_pending": []})


@pytest.fixture
def fake():
    server = Fake()
    yield server
    server.stop()


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "cat.png"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    inputs = {"images": ["1", 0], "on": True, "size": 3, "part": 0.5, "text": "a"}
    flow = {"1": {"class_type": "LoadImage", "inputs": {"image": ""}}}
    flow["2"] = {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": "Edit: a/b"}}
    (tmp_path / "flow.json").write_text(json.dumps(flow))
    return tmp_path / "photos", tmp_path / "edited"


def test_no_result_of_the_script_takes_anothers_place(fake, photos):
    done = edit_folder(fake.address, *photos, workflow=photos[0].parent / "flow.json")
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_text() for path in photos[1].iterdir()}
    assert found == {
        "cat.jpg Edit_ a_b.webp": "1_1.webp",
        "cat.jpg Edit_ a_b 2.webp": "1_2.webp",
        "cat.png Edit_ a_b.webp": "2_1.webp",
        "cat.png Edit_ a_b 2.webp": "2_2.webp",
    }


def test_the_script_sets_values_of_the_workflows_own_types(fake, photos):
    said = {"on": "False", "size": "4", "part": "0,25", "text": "7,5"}
    settings = [f"Edit: a/b.{name}={value}" for name, value in said.items()]
    edit_folder(fake.address, *photos, *settings, workflow=photos[0].parent / "flow.json")
    now = {"on": False, "size": 4, "part": 0.25, "text": "7,5"}
    assert {name: fake.sent[0]["2"]["inputs"][name] for name in said} == now


def test_the_script_tells_what_failed_and_goes_on(fake, photos):
    for name in ("bad.png", "large.png", "lost.png"):
        (photos[0] / name).write_bytes(b"x")
    (photos[0] / "folder.png").mkdir()
    done = edit_folder(fake.address, *photos, workflow=photos[0].parent / "flow.json")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        "bad.png no memory",
        "cat.jpg done",
        "cat.png done",
        "large.png could not be uploaded: Request Entity Too Large",
        "lost.png was interrupted, or taken out of the queue",
    ]


def test_the_script_replaces_its_own_uploads_alone(fake, photos):
    for _ in range(2):
        edit_folder(fake.address, *photos, workflow=photos[0].parent / "flow.json")
    (photos[0] / "cat.png").write_bytes(b"another")
    edit_folder(fake.address, *photos, workflow=photos[0].parent / "flow.json")
    jpg, png = ([flow["1"]["inputs"]["image"] for flow in fake.sent[i::2]] for i in (0, 1))
    assert len(set(jpg)) == 1 and png[0] == png[1] != png[2]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"address": "127.0.0.1:1"}, "asking http://127.0.0.1:1 about cat.jpg"),
        ({"settings": ["Edit: a/b.size=abc"]}, "setting Edit: a/b.size=abc"),
        ({"settings": ["Twice.on=1"]}, "has 2 Twice.on"),
        ({"flow": {"nodes": [], "version": 1}}, "API format"),
        ({"flow": {"1": {"class_type": "KSampler", "inputs": {}}}}, "loads no picture"),
        ({"photos": "nowhere"}, "reading the folders nowhere"),
    ],
)
def test_the_script_says_in_a_sentence_what_is_wrong(photos, wrong, said):
    twice = {i: {"class_type": "A", "inputs": {"on": 0}, "_meta": {"title": "Twice"}} for i in "34"}
    file = photos[0].parent / "flow.json"
    file.write_text(json.dumps(wrong.get("flow") or json.loads(file.read_text()) | twice))
    settings = wrong.get("settings", ())
    folder = wrong.get("photos", photos[0])
    done = edit_folder(wrong.get("address", "127.0.0.1:1"), folder, photos[1], *settings, workflow=file)
    assert done.returncode == 1 and "Traceback" not in done.stderr and said in done.stderr, done.stderr


def test_the_script_tells_what_can_be_set(photos):
    done = edit_folder("nowhere", *photos, "Nobody.on=1", workflow=photos[0].parent / "flow.json")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no Nobody.on" in done.stderr and "Edit: a/b.size" in done.stderr


def test_the_script_is_one_page():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 72
    assert SCRIPT.name in (SCRIPT.parent / "api.md").read_text(encoding="utf-8")
