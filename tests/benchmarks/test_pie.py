"""The PIE-Bench runner: its files, its networks (random stand-ins), a row of its table, the command."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nulltext.benchmarks.pie import __main__ as pie
from nulltext.benchmarks.pie import judges
from nulltext.demo.weights import CHECKPOINT
from nulltext.samplers.measure import metrics
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]

ITEM = {"mask": [10 * 512 + 100, 50], "editing_prompt": "a [green] cat", "blended_word": "cat cat"}


def test_masks_are_run_lengths_with_the_border_set():
    mask = pie.read_mask(ITEM["mask"])[0, 0]
    assert mask[10, 100:150].all()
    assert mask[10, 90:100].sum() == mask[10, 150:160].sum() == 0
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[:, -1].all()
    assert float(mask.sum()) == 50 + 4 * 512 - 4


def test_a_strip_of_pictures_is_cut_at_its_right(tmp_path):
    strip = Image.new("RGB", (1024, 512), "red")
    strip.paste("blue", (512, 0, 1024, 512))
    strip.save(tmp_path / "strip.png")
    assert pie.read_image(tmp_path / "strip.png").mean((0, 2, 3)).tolist() == [0, 0, 1]


def test_settings_are_pie_benchs():
    assert pie.settings(ITEM) == {"cross_steps": 0.4, "self_steps": 0.6, "blend_words": "cat", "weights": "cat: 2"}
    assert pie.settings({}) == {"cross_steps": 0.4, "self_steps": 0.6}
    assert pie.plain(ITEM["editing_prompt"]) == "a green cat"


def test_a_row():
    source = torch.full((1, 3, 512, 512), 0.5)
    row = pie.measure(ITEM, source, source + 0.1, pie.Judges())
    background = 1 - float(pie.read_mask(ITEM["mask"]).mean())
    assert row["mse"] == pytest.approx(1e4 * 0.01 * background, rel=1e-4)  # zeros under the mask count
    assert row["structure"] is None and row["clip_whole"] is None
    whole = pie.measure({**ITEM, "mask": [0, 512 * 512]}, source, source, pie.Judges())
    assert whole["psnr"] is None  # no background
    assert pie.measure(ITEM, source, source, pie.Judges())["psnr"] == 100.0


def test_edits_that_are_refused_with_local_blend_are_made_without_it_and_counted(tmp_path, monkeypatch, capsys):
    def edited(text, inversion, cfg, **options):
        if "blend_words" in options:
            raise ValueError("There is no word 'feline'.")
        return torch.zeros(1, 3, 8, 8), 0

    lab = SimpleNamespace(edited=edited, invert=lambda text, picture: None)
    monkeypatch.setattr(pie, "InEngine", lambda steps, checkpoint: lab)
    folder, made = pie_folder(tmp_path / "pie"), tmp_path / "edits"
    items = json.loads((folder / "mapping_file.json").read_text())
    items["1"]["blended_word"] = ""
    for _ in range(2):  # the second run makes nothing, and the count is still there
        pie.make_edits(tmp_path / "any.safetensors", folder, items, made, 64, 2)
        assert pie.without_blend(items, made) == 1 and (made / "0" / "0.png").exists()
    assert "0/0.png is made without local blend: There is no word 'feline'." in capsys.readouterr().out


def images(*seeds):
    return [torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


@pytest.fixture
def lpips_file(tmp_path):
    """torchmetrics' squeeze network with random weights, and its state dict as a file."""
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    torch.manual_seed(0)
    net = lpips._LPIPS(pretrained=True, net="squeeze", pnet_rand=True, eval_mode=True)
    for p in net.parameters():
        p.data.abs_() if p.shape[0] == 1 else p.data.mul_(1.5)  # weights of channels are never negative
    save_file({k: v.clone() for k, v in net.state_dict().items()}, tmp_path / "lpips.safetensors")
    return net, tmp_path / "lpips.safetensors"


def test_lpips_is_the_published_one(lpips_file):
    net, path = lpips_file
    a, b = images(1, 2)
    ours = judges.Lpips(path)
    with torch.no_grad():
        theirs = net(2 * a - 1, 2 * b - 1).flatten()
    torch.testing.assert_close(ours(a, b), theirs, rtol=1e-4, atol=0)
    assert float(ours(a, a)) == 0 < float(ours(a, b))
    item = {"mask": [0, 96 * 48], "editing_prompt": "a cat"}
    with pytest.MonkeyPatch.context() as patch:
        upper = torch.cat([torch.ones(1, 1, 48, 96), torch.zeros(1, 1, 48, 96)], 2)
        patch.setattr(pie, "read_mask", lambda runs, size: upper)
        row = pie.measure(item, a, torch.cat([b[..., :48, :], a[..., 48:, :]], 2), pie.Judges(lpips=str(path)))
    assert row["lpips"] == 0  # it differs under the mask only
    save_file({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not LPIPS on SqueezeNet"):
        judges.Lpips(path)


def test_dino_compares_the_last_layers_keys(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=224, patch_size=56
    )
    net = transformers.ViTModel(config, add_pooling_layer=False).eval()
    net.save_pretrained(tmp_path)
    judges = pie.Judges(dino=str(tmp_path))
    a, b = images(1, 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    resized = torch.nn.functional.interpolate(a, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        before_last = net((resized - mean) / std, output_hidden_states=True).hidden_states[1]
        last = net.encoder.layer[-1]
        expected = last.attention.attention.key(last.layernorm_before(before_last))
    torch.testing.assert_close(judges.keys(a), expected)
    assert expected.shape == (1, 17, 16)
    row = pie.measure(ITEM | {"mask": [0, 1]}, a, b, judges)
    assert row["structure"] == pytest.approx(1e3 * float(metrics.structure_distance(judges.keys(a), judges.keys(b))))
    assert row["structure"] > 0 == pie.measure(ITEM | {"mask": [0, 1]}, a, a, judges)["structure"]


def test_clip_reads_the_picture_and_the_part_under_the_mask(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    letters = "agrenct"
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config={**tower, **ids}, vision_config=vision, projection_dim=8)
    net = transformers.CLIPModel(config).eval()
    net.save_pretrained(tmp_path)
    judges = pie.Judges(clip=str(tmp_path))
    assert judges.tokenizer("a cat")["input_ids"][1] == words.index("a</w>")
    picture, other = images(1, 2)
    values = [judges.similarity(image, text) for image in (picture, other) for text in ("a green cat", "a rat")]
    assert all(0 <= v <= 100 for v in values)
    assert len(set(values)) > 1
    seen = []
    judges.similarity = lambda image, text: seen.append((image, text)) or 1.0
    row = pie.measure(ITEM | {"mask": [0, 96 * 48]}, picture, other, judges)
    assert row["clip_whole"] == row["clip_edited"] == 1.0
    assert [text for _, text in seen] == ["a green cat"] * 2  # without the brackets
    mask = pie.read_mask([0, 96 * 48], 96)
    assert torch.equal(seen[0][0], other)
    assert torch.equal(seen[1][0], other * mask)


def test_networks_that_are_not_there_are_named():
    for name in ("dino", "clip", "lpips"):
        with pytest.raises(FileNotFoundError, match=f"--{name} nowhere is not there"):
            pie.Judges(**{name: "nowhere"})


def pie_folder(path, shade=100):
    """Two items in PIE-Bench's layout: one with a mask of 100 pixels, one whose mask covers everything."""
    items = {}
    for i, run in enumerate(([512, 100], [0, 512 * 512])):
        items[str(i)] = {
            "image_path": f"0/{i}.png",
            "original_prompt": "a red circle, plain blue background",
            "editing_prompt": "a [green] circle, plain blue background",
            "mask": run,
            "blended_word": "circle circle",
        }
        picture = path / "annotation_images" / "0" / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (512, 512), (shade, shade, shade)).save(picture)
    (path / "mapping_file.json").write_text(json.dumps(items))
    return path


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.pie", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"NULLTEXT_COMPUTE_LOCK": "1"} | environment,
    )


def test_the_command_runs_from_the_folder_of_the_pack(tmp_path):
    folder, results = pie_folder(tmp_path / "pie"), pie_folder(tmp_path / "edited", shade=110) / "annotation_images"
    done = command(folder, "--results", f"mine={results}")
    assert done.returncode == 0, done.stderr
    *_, row, line = done.stdout.strip().splitlines()
    assert row.split()[:4] == ["mine", "2", "1", "-"]  # two images, one with a background, no DINO
    background = 1 - float(pie.read_mask([512, 100]).mean())
    assert json.loads(line)["mine"]["mse"] == pytest.approx(1e4 * (10 / 255) ** 2 * background, rel=1e-3)
    # at its end the folder is not on the path, where its `nodes` would hide ComfyUI's
    (tmp_path / "sitecustomize.py").write_text("import atexit, sys; atexit.register(lambda: print('PATH', sys.path))")
    missing = command(folder, "--results", f"mine={tmp_path / 'none'}", PYTHONPATH=str(tmp_path))
    path = next(line for line in missing.stdout.splitlines() if line.startswith("PATH"))
    assert str(tmp_path) in path
    assert repr(str(ROOT)) not in path
    assert missing.returncode == 2
    assert "mine has no edit of 0/0.png" in missing.stderr


def test_edits_are_kept_by_the_checkpoint_that_made_them(tmp_path, capsys):
    """Figures of photos that the small demo model edited would be nobody's."""
    folder, found = pie_folder(tmp_path / "pie"), []
    for value in (0.0, 1.0):
        save_file({"w": torch.full((2,), value)}, tmp_path / "sd[15].safetensors")
        found.append(pie.arguments([str(folder), "--checkpoint", str(tmp_path / "sd[15].safetensors")])[0].edits)
    assert found[0] != found[1]
    for wrong, said in (((), "name the checkpoint that edits"), (("--checkpoint", "none"), "there is no file none")):
        with pytest.raises(SystemExit):
            pie.arguments([str(folder), *wrong])
        assert said in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("comfy") is None, reason="the embedded engine makes the edits")
def test_the_command_makes_the_checkpoints_own_edits(tmp_path):
    edits = tmp_path / "edits"
    amount = "--size", "128", "--steps", "2", "--limit", "1"
    done = command(pie_folder(tmp_path / "pie"), "--checkpoint", CHECKPOINT, "--edits", edits, *amount)
    assert done.returncode == 0, done.stderr
    with Image.open(edits / "0" / "0.png") as made:
        assert made.size == (128, 128)
        assert len(made.getcolors(128 * 128)) > 10
    ((name, row),) = json.loads(done.stdout.strip().splitlines()[-1]).items()
    assert name.startswith(f"Direct + P2P, {CHECKPOINT.name} ") and name in done.stdout.splitlines()[-2]
    assert 0 < row["psnr"] < 100
