"""docs/api.md's script edits a folder of pictures through a running server."""

import os
import subprocess
import sys

from nulltext.tools import workflows
from PIL import Image

SCRIPT = workflows.FOLDER.parent / "docs" / "edit_folder.py"


def edit_folder(comfy, *arguments):
    environment = {**os.environ, "COMFYUI_SERVER": comfy.client.address.removeprefix("http://"), "NO_PROXY": "*"}
    command = [sys.executable, str(SCRIPT), str(workflows.API / "edit_photo.api.json"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_the_script_edits_a_folder(comfy, tmp_path):
    photos, edited = tmp_path / "photos", tmp_path / "edited"
    photos.mkdir()
    for name in ("one.png", "two.JPEG", "three.webp"):
        Image.new("RGB", (128, 128), "red").save(photos / name)
    words = ("Edit Photo.source_prompt=a red square", "Edit Photo.edited_prompt=a green square")
    done = edit_folder(comfy, photos, edited, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["one.png done", "three.webp done", "two.JPEG done"]
    assert {path.name for path in edited.iterdir()} >= {"one Edit.png", "two Edit.png", "three Edit.png"}
    with Image.open(edited / "one Edit.png") as picture:
        assert picture.size == (128, 128)


def test_the_script_says_what_the_server_refuses(comfy, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    done = edit_folder(comfy, tmp_path, tmp_path, "Checkpoint.ckpt_name=gone.safetensors")
    assert done.returncode == 1
    assert "one.png was refused" in done.stderr and "gone.safetensors" in done.stderr


def test_the_script_is_short():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 40
    assert SCRIPT.name in (SCRIPT.parent / "api.md").read_text(encoding="utf-8")
