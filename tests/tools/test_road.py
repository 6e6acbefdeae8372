"""The demo's own parts, without a server: engines found, refusals in words, the lock, pictures and captions."""

import fcntl
import io
import json
import os
import subprocess
import sys

import pytest
from nulltext.batch import client, engines
from nulltext.demo import turn
from nulltext.tools import inputs, results, run, serve, sheet, workflows
from PIL import Image

# ------------------------------------------------------------------------------------------------ engines


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "9.8.7"\n')
    return tmp_path


def python_in(folder, *parts):
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True)
    path.touch()
    return str(path)


def test_a_checkout_runs_on_its_own_interpreter(comfyui, monkeypatch):
    hidden = python_in(comfyui, ".venv", "bin", "python")
    assert engines.checkout(comfyui).command[0] == hidden
    plain = python_in(comfyui, "venv", "bin", "python")
    assert engines.checkout(comfyui).command[0] == plain
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    found = engines.checkout(comfyui)
    assert found.command == (sys.executable, str(comfyui / "main.py"))
    assert "9.8.7" in found.title


def test_a_checkout_without_an_interpreter_is_refused_with_advice(comfyui):
    with pytest.raises(engines.EngineError, match="COMFYUI_PYTHON"):
        engines.checkout(comfyui)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(engines.EngineError, match=r"main\.py"):
        engines.checkout(tmp_path)


def test_a_named_interpreter_that_is_not_there_is_refused(comfyui, monkeypatch):
    python_in(comfyui, "venv", "bin", "python")
    monkeypatch.setenv("COMFYUI_PYTHON", str(comfyui / "gone"))
    with pytest.raises(engines.EngineError, match="COMFYUI_PYTHON"):
        engines.checkout(comfyui)


def test_the_tree_holds_one_link_under_the_packs_own_name(tmp_path):
    extra = tmp_path / "mine.safetensors"
    extra.touch()
    tree = engines.plant(tmp_path / "tree", extra)
    assert [path.name for path in (tree / "custom_nodes").iterdir()] == ["ComfyUI-NullText"]
    assert (tree / "custom_nodes" / "ComfyUI-NullText" / "samplers" / "core.py").is_file()
    assert (tree / "models" / "checkpoints" / "mine.safetensors").resolve() == extra
    engines.plant(tree, extra)  # again: nothing is in the way


def test_a_server_that_ends_at_once_is_reported_with_its_log(tmp_path):
    ends = "print('no such thing'); raise SystemExit(3)"
    broken = engines.Engine("embedded", "a broken one", (sys.executable, "-c", ends), "--cwd")
    with pytest.raises(engines.EngineError, match=r"(?s)code 3.*no such thing"), engines.running(broken, tmp_path):
        pass


# ------------------------------------------------------------------------------------------------- client


def test_a_refusal_becomes_one_sentence_that_names_the_node():
    wrong = {"type": "value_bigger_than_max", "message": "Value 9 bigger than max of 1", "details": "denoise"}
    body = {
        "error": {"type": "failed", "message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {"4": {"class_type": "KSampler", "errors": [wrong]}},
    }
    assert client._refusal(body) == ("Value 9 bigger than max of 1: denoise", "KSampler")
    body["node_errors"] = []  # the pip engine sends a list when no node is to blame
    assert client._refusal(body) == ("Prompt outputs failed validation", None)
    assert client._refusal({"error": "no prompt", "node_errors": []}) == ("no prompt", None)
    assert client._refusal({"prompt_id": "x", "node_errors": {}}) == (None, None)


def test_results_come_in_the_order_of_node_ids():
    result = client.Result(outputs={"10": {"text": ["ten"]}, "9": {"text": ["nine"]}, "9-A": {"text": ["last"]}})
    assert result.texts == ["nine", "ten", "last"]


def test_a_failed_result_says_where():
    with pytest.raises(RuntimeError, match="KSampler: too far"):
        client.Result(error="too far", where="KSampler").check()
    with pytest.raises(RuntimeError, match="interrupted"):
        client.Result(interrupted=True).check()


# ------------------------------------------------------------------------------------------------ the lock


def test_the_lock_keeps_others_out_and_lets_children_in(tmp_path, monkeypatch):
    monkeypatch.setattr(turn, "LOCK", tmp_path / "sub" / "lock")
    monkeypatch.delenv(turn.HELD, raising=False)
    with turn.compute():
        with open(turn.LOCK) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert os.environ[turn.HELD]
        with turn.compute():
            pass
    assert turn.HELD not in os.environ
    with open(turn.LOCK) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ------------------------------------------------------------------------------------------------ the demo

FLOW = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nulltext_demo.safetensors"}},
    "2": {"class_type": "NullText_Prompt", "inputs": {"text": "a cat"}, "_meta": {"title": "Source prompt"}},
    "3": {"class_type": "NullText_Prompt", "inputs": {"text": "a dog"}, "_meta": {"title": "Edited prompt"}},
    "4": {"class_type": "NullText_LoadPicture", "inputs": {"image": "demo_scene.png [sample]"}},
    "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}, "_meta": {"title": "Reconstruction"}},
}


def test_a_result_carries_the_workflows_own_title_and_the_bar_its_place(monkeypatch):
    class Server:
        def run(self, workflow, progress, timeout, graph):
            self.bar, self.note = progress.name, graph
            return client.Result()

    monkeypatch.setattr(run.litegraph, "to_ui", lambda workflow, infos, note: note)
    for label, shown in (("2 of 5 sdedit", "2 of 5 sdedit"), ("", "sdedit")):
        server = Server()
        run.queue(server, "sdedit", workflows.load("sdedit"), {}, label)
        assert server.bar == shown and server.note.splitlines()[0] == workflows.title("sdedit")


def test_a_picture_of_ones_own_takes_every_place():
    mine = run.own(FLOW, "x", "own.png", "a boat", "a ship", "sd.safetensors")
    assert [mine[key]["inputs"] for key in "1234"] == [
        {"ckpt_name": "sd.safetensors"},
        {"text": "a boat"},
        {"text": "a ship"},
        {"image": "own.png"},
    ]
    assert FLOW["2"]["inputs"]["text"] == "a cat"
    box = {"1": {"class_type": "NullText_EditPhoto", "inputs": {"source_prompt": "a cat", "edited_prompt": "a dog"}}}
    assert run.own(box, "x", None, "a boat", "a ship", None)["1"]["inputs"] == {
        "source_prompt": "a boat",
        "edited_prompt": "a ship",
    }
    with pytest.raises(ValueError, match="Edited prompt"):
        run.own({"2": FLOW["2"]}, "x", None, None, "a ship", None)


def test_a_picture_is_cut_to_its_middle(tmp_path):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    wide.save(tmp_path / "wide.png")
    middle = run.prepared(tmp_path / "wide.png", 64)
    assert middle.size == (64, 64)
    assert middle.crop((4, 0, 60, 64)).getcolors() == [(56 * 64, (0, 0, 255))]  # the rest: the filter's ringing
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(ValueError, match="picture"):
        run.prepared(tmp_path / "no.png", 64)


def test_pictures_are_kept_and_measured(tmp_path):
    source = [Image.new("RGB", (8, 8), (110, 100, 100))]
    data = saved(Image.new("RGB", (8, 8), (100, 100, 100)))
    result = client.Result(outputs={"5": {"text": ["calls: 3"]}}, files={"5": [data]}, steps=3, seconds=1.234)
    results.keep(tmp_path, "road", FLOW, result)
    assert [path.name for path in tmp_path.iterdir()] == ["road_5_reconstruction.png"]
    assert (tmp_path / "road_5_reconstruction.png").read_bytes() == data
    found = results.figures(FLOW, result, source)
    assert found == {"steps": 3, "seconds": 1.23, "reconstruction_db": 32.9, "reports": ["calls: 3"]}
    assert results.said(found) == "32.9 dB, 1 s"
    row = results.row("road", FLOW, result, source)
    assert [caption for caption, _ in row.cells] == ["source", "Reconstruction"]
    kept = results.Kept(tmp_path)
    kept.rows, kept.figures = [row, row], {"road": found}
    with Image.open(kept.write()) as page:
        assert min(page.size) > 2 * sheet.CELL
    assert "calls: 3" in (tmp_path / results.REPORTS).read_text()
    assert json.loads((tmp_path / "figures.json").read_text()) == {"road": found}


def saved(picture):
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def demo(*arguments, **variables):
    command, variables = [sys.executable, str(engines.ROOT / "tools"), "run", *arguments], {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)


def test_the_command_ends_with_a_readable_reason(tmp_path):
    ended = demo("--engine", "checkout", "--output", str(tmp_path), "x", COMFYUI_PATH=str(tmp_path))
    assert ended.returncode == 1
    assert "is not a ComfyUI checkout" in ended.stderr
    assert "Traceback" not in ended.stderr
    ended = demo("--image", str(tmp_path / "gone.jpg"))
    assert ended.returncode == 2
    assert "gone.jpg" in ended.stderr


def test_the_demo_names_workflows_that_ship():
    assert 1 <= len(run.DEMO) <= 5
    assert set(run.DEMO) | set(run.OWN) <= set(workflows.names())
    for name in run.OWN:
        said = json.dumps(run.own(workflows.load(name), name, "own.png", "a boat", "a ship", "c.safetensors"))
        assert all(f'"{value}"' in said for value in ("own.png", "a boat", "a ship", "c.safetensors")), name


def test_make_serve_opens_at_edit_a_photo():
    """And says so in a title that a person reads."""
    assert serve.FIRST[0] in workflows.names()
    assert workflows.title(serve.FIRST[0]) == "Edit a photo with words"
    assert (workflows.FOLDER / f"{serve.FIRST[0]}.json").is_file()


def test_the_folder_of_two_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "FOLDER", tmp_path)
    inputs.write_classes(2)
    assert sorted(p.parent.name for p in tmp_path.rglob("*.png")) == ["blue square"] * 2 + ["red circle"] * 2
