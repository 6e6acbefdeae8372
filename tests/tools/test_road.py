"""The demo's own parts, without a server: engines found, refusals in words, the lock, pictures and captions."""

import contextlib
import fcntl
import io
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from nulltext.batch import client, engines
from nulltext.demo import turn
from nulltext.tools import inputs, notes, results, run, serve, sheet, workflows
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


def test_a_checkout_that_nothing_names_is_asked_for(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    with pytest.raises(engines.EngineError, match="Set COMFYUI_PATH"):
        engines.checkout()


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


def test_a_tree_of_another_clone_gets_this_clones_code(tmp_path):
    (tmp_path / "other").mkdir()
    for target in ("gone", "other"):
        pack = tmp_path / target / "tree" / "custom_nodes" / engines.PACK
        pack.parent.mkdir(parents=True)
        pack.symlink_to(tmp_path / target / "clone")
        if target == "other":
            (tmp_path / target / "clone").mkdir()
        engines.plant(tmp_path / target / "tree")
        assert pack.resolve() == engines.pack_folder()
    own = tmp_path / "own" / "custom_nodes" / engines.PACK
    own.mkdir(parents=True)
    assert not engines.plant(tmp_path / "own").joinpath("custom_nodes", engines.PACK).is_symlink()  # a user's copy


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
        {"image": "own.png", "size": 0},
    ]
    assert FLOW["2"]["inputs"]["text"] == "a cat"
    box = {"1": {"class_type": "NullText_EditPhoto", "inputs": {"source_prompt": "a cat", "edited_prompt": "a dog"}}}
    assert run.own(box, "x", None, "a boat", "a ship", None)["1"]["inputs"] == {
        "source_prompt": "a boat",
        "edited_prompt": "a ship",
    }
    with pytest.raises(ValueError, match="Edited prompt"):
        run.own({"2": FLOW["2"]}, "x", None, None, "a ship", None)


def test_a_checkpoint_of_ones_own_runs_at_its_size_and_the_nodes_defaults():
    """The demo model's cfg of 4 and its 128 pixels would make a poor picture of a real one."""
    for name in run.OWN_REAL:
        flow = run.own(workflows.load(name), name, None, None, None, "sd.safetensors", 640)
        (picture,) = workflows.of_class(flow, "NullText_LoadPicture")
        assert flow[picture]["inputs"]["size"] == 640, name
        assert (name == "edit_photo_sd") or not any(map(notes.defaults, flow.values())), name
    (key,) = workflows.of_class(flow := workflows.load("edit_photo_sd"), "NullText_EditPhoto")
    mine = run.own(flow, "edit_photo_sd", "own.png", "a", "b", "sd.safetensors")
    assert mine[key]["inputs"] == flow[key]["inputs"] | {"source_prompt": "a", "edited_prompt": "b"}
    drawn = run.own(workflows.load("masactrl"), "masactrl", None, None, None, "sd.safetensors", 512)
    assert [drawn[k]["inputs"]["width"] for k in workflows.of_class(drawn, "EmptyLatentImage")] == [512]


def test_a_photo_is_read_as_load_picture_reads_it(tmp_path):
    """Turned as the camera noted, 16 bits as 8: else one edits another picture than one sees."""
    photo = Image.new("RGB", (64, 64), "red")
    photo.paste((0, 0, 255), (0, 0, 32, 64))
    noted = photo.getexif()
    noted[0x0112] = 6  # turn by 90 degrees
    photo.save(tmp_path / "turned.png", exif=noted)
    left, right = (run.prepared(tmp_path / "turned.png", 64).getpixel(at) for at in ((32, 4), (32, 60)))
    assert left == (0, 0, 255) and right == (255, 0, 0)
    Image.fromarray(np.full((64, 64), 30000, np.uint16)).save(tmp_path / "grey.png")
    assert 110 < run.prepared(tmp_path / "grey.png", 64).getpixel((9, 9))[0] < 125


def test_what_cannot_run_is_said_before_a_server_starts(tmp_path, monkeypatch, capsys):
    def started(*_, **__):
        raise AssertionError("a server was started")

    monkeypatch.setattr(run.engines, "running", started)
    monkeypatch.setattr(run.engines, "end_like_ctrl_c", lambda: None)
    (tmp_path / "no.png").write_text("no picture")
    words = ["--prompt", "a cat", "--edit", "a dog"]
    assert run.main(["--image", str(tmp_path / "no.png"), *words]) == 1
    assert "no.png can't be read" in capsys.readouterr().err
    assert run.main(["--output", str(tmp_path / "no.png" / "out")]) == 1
    assert "FAILED" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run.parse(["--image", "~/no.png", *words]).image == tmp_path / "no.png"


def test_a_checkpoint_has_all_threads_and_no_limit(tmp_path, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def running(engine, checkpoint=None, variables=None):
        seen.append(variables)
        yield SimpleNamespace(client=SimpleNamespace(object_info=dict), alive=lambda: True)

    monkeypatch.setattr(run.engines, "running", running)
    monkeypatch.setattr(run.engines, "end_like_ctrl_c", lambda: None)
    monkeypatch.setattr(run.engines, "embedded", lambda: SimpleNamespace(title="x"))
    monkeypatch.setattr(run.os, "cpu_count", lambda: 16)

    def queue(client, name, flow, infos, label, limit):
        seen.append((name, limit))
        raise RuntimeError("far enough")

    monkeypatch.setattr(run, "queue", queue)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    checkpoint = tmp_path / "sd.safetensors"
    checkpoint.touch()
    run.main(["--output", str(tmp_path / "out"), "--checkpoint", str(checkpoint)])
    assert seen == [{"OMP_NUM_THREADS": "16"}, *((name, math.inf) for name in run.OWN_REAL)]
    seen.clear()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # a wish of the user's own
    run.main(["--output", str(tmp_path / "out"), "--checkpoint", str(checkpoint)])
    assert seen[0] is None
    seen.clear()
    run.main(["--output", str(tmp_path / "out"), "--edit", "a dog"])  # words alone: where they have a place
    assert seen == [None, *((name, run.LIMIT) for name in run.OWN)]


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
    for name in {*run.OWN, *run.OWN_REAL}:
        said = json.dumps(run.own(workflows.load(name), name, "own.png", "a boat", "a ship", "c.safetensors"))
        assert all(f'"{value}"' in said for value in ("own.png", "a boat", "a ship", "c.safetensors")), name


def test_make_serve_opens_at_edit_a_photo():
    """And says so in a title that a person reads."""
    assert serve.FIRST[0] in workflows.names()
    assert workflows.title(serve.FIRST[0]) == "Edit a photo with words"
    assert (workflows.FOLDER / f"{serve.FIRST[0]}.json").is_file()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_takes_its_options_from_the_command_line_alone():
    """A NAME (WSL exports one), PORT or IMAGE of the environment is not meant; ARGS is."""

    ours = {k: v for k, v in os.environ.items() if k not in ("ARGS", "MFLAGS") and not k.startswith("MAKE")}

    def line(*arguments, **environment):
        run = subprocess.run(
            ["make", "-n", *arguments], cwd=engines.ROOT, env=ours | environment, capture_output=True, text=True
        )
        return run.stdout.strip().split("tools ")[-1].split()

    stray = {"NAME": "me", "PORT": "1", "IMAGE": "a.png", "OUT": "x", "ENGINE": "y"}
    for target, said in (("bench", ["bench"]), ("serve", ["serve"]), ("demo", ["run"]), ("batch", ["batch"])):
        assert [word for word in line(target, **stray) if word != "\\"] == said
    assert line("bench", "NAME=pie", ARGS="FOLDER") == ["bench", "pie", "FOLDER"]
    assert line("serve", "PORT=80", **stray) == ["serve", "--port", "'80'"]


def test_make_serve_leaves_what_the_user_saved(tmp_path):
    page, shelf, record = tmp_path / "a.json", tmp_path / "shelf", tmp_path / "put.json"
    for said, saved, left in (("1", None, "1"), ("2", None, "2"), ("3", "mine", "mine"), ("4", None, "mine")):
        page.write_text(said)
        if saved:
            (shelf / "a.json").write_text(saved)
        serve.put([page], shelf, record)
        assert (shelf / "a.json").read_text() == left


def test_a_port_that_there_cannot_be_is_refused_in_a_line(capsys):
    with pytest.raises(SystemExit):
        serve.main(["--port", "99999"])
    assert "from 1 to 65535" in capsys.readouterr().err


def test_the_folder_of_two_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "FOLDER", tmp_path)
    inputs.write_classes(2)
    assert sorted(p.parent.name for p in tmp_path.rglob("*.png")) == ["blue square"] * 2 + ["red circle"] * 2


@pytest.mark.parametrize("name", ["graph", "weights", "harness", "__main__"])
def test_what_does_nothing_is_no_command_of_tools(name):
    main = runpy.run_path(str(engines.ROOT / "tools" / "__main__.py"), run_name="commands")["main"]
    with pytest.raises(SystemExit, match="usage: python tools NAME") as refused:
        main([name])
    listed = str(refused.value).rpartition(": ")[2].split(", ")
    assert name not in listed and {"run", "publish", "train", "probe", "families", "batch"} <= set(listed)
