"""The page's pure helpers, under node; and what holds for every script of the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "web").rglob("*.js"))
NODE = shutil.which("node")

each = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)


@pytest.mark.skipif(NODE is None, reason="node is not installed: the page's helpers were NOT tested")
@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("*.test.mjs")), ids=lambda path: path.name)
def test_under_node(path):
    done = subprocess.run([NODE, "--test", str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@each
def test_only_the_adapter_knows_the_front_end(path):
    text = path.read_text(encoding="utf-8")
    imported = re.findall(r"""from\s+["']([^"']+)["']""", text)
    assert all(name.startswith("./") for name in imported) or path.name == "adapter.js", imported
    assert not re.search(r"\.prototype\b|https?://(?!www\.w3\.org)|\beval\(|new Function", text)
    assert path.stat().st_size <= 24 * 1024


def test_the_page_is_served_as_modules():
    assert len(SCRIPTS) >= 8
    assert json.loads((ROOT / "web" / "package.json").read_text())["type"] == "module"
