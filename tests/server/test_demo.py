"""`make demo` as a person runs it: its own server, pictures, contact sheet, figures, a plain word when one fails."""

import json
import os
import re
import subprocess
import sys

import pytest
from nulltext.batch import engines
from nulltext.demo import weights
from nulltext.tests.stand_ins import random_checkpoint
from PIL import Image


@pytest.fixture
def demo(tmp_path):
    """Runs the command; a checkpoint with random weights stands in where the trained one is not there."""

    def run(*arguments):
        more = []
        if not weights.CHECKPOINT.exists():
            made = random_checkpoint(tmp_path / weights.CHECKPOINT.name)
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
    lines = ended.stdout.splitlines()
    assert re.fullmatch(r"1 of 2 direct-edit: \d+ s", lines[0]), lines
    assert lines[1] == "2 of 2 no-such-workflow: failed"
    assert len(lines) == 3, "the nodes' reports go into a file"
    figures = json.loads((out / "figures.json").read_text())["direct_edit"]
    assert figures["steps"] > 10
    assert figures["seconds"] > 0
    assert all(text in (out / "reports.txt").read_text() for text in figures["reports"])
    with Image.open(out / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 200
    made = list(out.glob("direct_edit_*.png"))
    assert len(made) >= 3
    for path in made:
        with Image.open(path) as picture:
            assert picture.size == (128, 128)
            graph = json.loads(picture.info["workflow"])  # what the page opens when the file is dropped on it
            prompts = [value for node in graph["nodes"] for value in node["widgets_values"]]
            assert "a photo of a red square" in prompts
