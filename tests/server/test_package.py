"""The pack as an installed package: the pip engine finds its entry point; with the folder beside it, it loads once."""

import os
import subprocess
import sys

import pytest
import tomllib
from nulltext import NODE_CLASS_MAPPINGS
from nulltext.batch import engines


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder for PYTHONPATH that looks like an installation: the package and its metadata, as pyproject.toml says."""
    settings = tomllib.loads((engines.ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    site = tmp_path_factory.mktemp("site")
    ((package, folder),) = settings["tool"]["setuptools"]["package-dir"].items()
    (site / package).symlink_to((engines.ROOT / folder).resolve(), target_is_directory=True)
    metadata = site / f"{package}-{project['version']}.dist-info"
    metadata.mkdir()
    said = f"Metadata-Version: 2.1\nName: {package}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(said)
    (metadata / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for group, entries in project["entry-points"].items()
        )
    )
    return site


@pytest.mark.parametrize("link", [False, True], ids=["package", "folder_and_package"])
def test_it_loads_once(installed, link):
    with engines.running(engines.embedded(), link=link, variables={"PYTHONPATH": str(installed)}) as server:
        known = server.client.object_info()
        assert set(NODE_CLASS_MAPPINGS) <= set(known)
        scripts = [path.split("/")[2] for path in server.client.get("/extensions").json()]
        assert engines.PACK not in scripts or not link, "the page's scripts would load twice"
        log = server.log.read_text()
        assert "IMPORT FAILED" not in "".join(line for line in log.splitlines() if "nulltext" in line.lower())
        listed = set(known["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0])
        models = engines.ROOT / "models"
        assert {path.name for path in models.glob("checkpoints/*.safetensors")} <= listed
        assert not {path.name for path in models.glob("*.safetensors")} & listed, "they are no checkpoints"


def test_batches_start_from_the_installed_package(installed):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    run = [sys.executable, "-m", "nulltext.batch", "--help"]
    said = subprocess.run(run, env=env, cwd=installed, capture_output=True, text=True)
    assert said.returncode == 0 and "--servers" in said.stdout, said.stderr


def test_every_package_is_listed():
    """A module that pyproject.toml forgets is missing from the wheel."""
    listed = set(tomllib.loads((engines.ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {
        path.parent
        for top in ("nodes", "engine", "samplers", "batch")
        for path in (engines.ROOT / top).rglob("__init__.py")
    }
    there = {".".join(("nulltext", *folder.relative_to(engines.ROOT).parts)) for folder in folders}
    assert {"nulltext"} | there == listed
