"""`make demo` as a person runs it: its own server, pictures, contact sheet, figures, a plain word when one fails."""

import json
import os
import subprocess
import sys

import pytest
from nulltext.batch import engines
from nulltext.demo import weights
from PIL import Image


@pytest.fixture
def demo(tmp_path):
    """Runs the command; a checkpoint with random weights stands in where the trained one is not there."""

    def run(*arguments):
        more = []
        if not weights.CHECKPOINT.exists():
            made = weights.random_checkpoint(tmp_path / weights.CHECKPOINT.name)
            more = ["--checkpoint", str(made), "--size", "128"]
        out = tmp_path / "out"
        command = [sys.executable, str(engines.ROOT / "tools"), "run", *arguments, *more, "--output", str(out)]
        environment = {**os.environ, "NULLTEXT_DEVICE": "cpu"}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment), out

    return run


def test_a_photo_of_ones_own_is_edited_and_a_failure_is_told(demo, tmp_path):
    Image.new("RGB", (90, 60), "green").save(tmp_path / "photo.jpg")
    prompts = ["--prompt", "a photo of a green square", "--edit", "a photo of a red square"]
    ended, out = demo("direct_edit", "no_such_workflow", "--image", str(tmp_path / "photo.jpg"), *prompts)
    assert ended.returncode == 1
    assert "FAILED: no_such_workflow" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "direct_edit                  done" in ended.stderr
    figures = json.loads((out / "figures.json").read_text())["direct_edit"]
    assert figures["steps"] > 10
    assert figures["seconds"] > 0
    assert figures["reports"]
    with Image.open(out / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 200
    made = list(out.glob("direct_edit_*.png"))
    assert len(made) >= 3
    assert all(Image.open(path).size == (128, 128) for path in made)
