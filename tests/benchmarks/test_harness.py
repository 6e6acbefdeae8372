import atexit
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from nulltext.benchmarks import harness
from nulltext.benchmarks.lab import engine_folders
from safetensors.torch import save_file


def test_new_weights_begin_anew_and_new_metadata_does_not(tmp_path, monkeypatch):
    models = tmp_path / "models" / "checkpoints"
    models.mkdir(parents=True)
    monkeypatch.setattr(harness, "OUTPUT", tmp_path)
    hashed = harness.weights
    monkeypatch.setattr(harness, "weights", lambda read: hashed(tmp_path / "models", read))

    def measured(value, **more):
        return harness.Bench("x", "", [], **more).once("figure", lambda: value)

    save_file({"w": torch.zeros(3)}, models / "a.safetensors")
    assert measured(1) == 1
    save_file({"w": torch.zeros(3)}, models / "a.safetensors", {"figures": "{}"})
    assert measured(2) == 1
    save_file({"w": torch.ones(3)}, models / "a.safetensors")
    assert measured(3) == 3
    other = tmp_path / "models" / "diffusion_models"
    other.mkdir()
    save_file({"w": torch.ones(3)}, other / "b.safetensors")
    assert measured(4) == 3  # a network that this table does not read
    assert measured(5, read=(*harness.READ, "diffusion_models/*.safetensors")) == 5


def test_changed_code_begins_anew_and_a_comment_does_not(tmp_path, monkeypatch):
    """A setting of the bench, of another bench that it imports, of the lab; not of one that it does not import."""
    monkeypatch.setattr(harness, "OUTPUT", tmp_path)
    monkeypatch.setattr(harness, "weights", lambda read: "these")
    hashed = harness.code
    monkeypatch.setattr(harness, "code", lambda name: hashed(name, tmp_path))
    for name in ("kinds", "inversion/cells", "flow"):
        (tmp_path / name).mkdir(parents=True)
    files = {
        "kinds/__main__.py": "from ..inversion import ways",
        "inversion/ways.py": "from ..lab import Demo\nCFG = 7.5",
        "inversion/cells/one.py": "STEPS = 4",
        "lab.py": "STEPS = 20",
        "flow/ways.py": "CFG = 5.0",
    }

    def measured(value, **changed):
        for path, text in {**files, **changed}.items():
            (tmp_path / path).write_text(text)
        return harness.Bench("kinds", "", []).once("figure", lambda: value)

    assert measured(1) == 1
    assert measured(2, **{"lab.py": "STEPS = 20  # a comment", "flow/ways.py": "CFG = 7.5"}) == 1
    assert measured(3, **{"kinds/__main__.py": "from ..inversion import ways\nSEED = 2"}) == 3
    assert measured(4) == 4
    assert measured(5, **{"inversion/ways.py": "from ..lab import Demo\nCFG = 5.0"}) == 5
    assert measured(6, **{"inversion/ways.py": "from ..lab import Demo\nCFG = 5.0", "lab.py": "STEPS = 30"}) == 6
    assert measured(7) == 7
    assert measured(8, **{"inversion/cells/one.py": "STEPS = 5"}) == 8


def test_the_engines_folders_go_when_the_process_ends(monkeypatch):
    at_the_end = []
    monkeypatch.setattr(atexit, "register", lambda *call, **named: at_the_end.append(partial(*call, **named)))
    args = SimpleNamespace()
    engine_folders(args)
    (Path(args.cwd) / "output").mkdir()
    assert args.base_directory == args.cwd
    (end,) = at_the_end
    end()
    assert not Path(args.cwd).exists()
