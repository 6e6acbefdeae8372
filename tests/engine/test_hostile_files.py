"""Files that somebody else made: every field of every kind of ours, of another type and range, is refused in a sentence
before anything is built of it; pictures of every mode open, and what is none is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import time
from pathlib import Path

import pytest
import torch
from nulltext.engine import classifiers, files, image_text, record, weights
from nulltext.engine.fingerprint import ASPECTS
from nulltext.samplers.inversion.record import Inversion
from nulltext.samplers.record_file import whole_file, write
from nulltext.samplers.tuning.h_direction import Direction, new_block
from PIL import Image
from safetensors.torch import save_file

DEEP = "[" * 100_000 + "]" * 100_000
#: values that no field of ours may have
WRONG = (None, True, -1, 10**9, 10**400, 1e308, "x", "", [], {}, [3000] * 3, [1] * 10_000, {"a": {}}, [[]], "a\\b")


@pytest.fixture(scope="module")
def sound(engine, image_text, classifier):
    """By kind: (tensors, metadata, load(path))."""
    sigmas = torch.tensor([3.0, 1.0, 0.0])
    words = [{"text": "a cat", "words": [{"text": "a", "tokens": [1]}], "ids": [1, 2], "chunks": 1}]
    notes = {
        "extras": {"width": 64},
        "needs": [],
        "latent_gain": [1.0] * 4,
        "latent_offset": [0.0] * 4,
        "full_gain": 3.0,
    }
    inversion = Inversion(
        *(sigmas, torch.randn(3, 1, 4, 8, 8)),
        null_embeddings=torch.randn(2, 1, 5, 6),
        conditioning=torch.randn(1, 5, 6),
        pooled=torch.randn(1, 6),
        words=words,
        fingerprint=dict.fromkeys(ASPECTS, "known"),
        metadata=notes,
    )
    direction = Direction(sigmas, block=new_block(8, 1).state_dict(), fingerprint={"structure": "known"})
    lora = {"a.lora_up.weight": torch.ones(4, 2), "a.lora_down.weight": torch.ones(2, 3), "a.alpha": torch.tensor(2.0)}
    state = lambda net: {k: v.detach().contiguous().clone() for k, v in net.state_dict().items()}
    return {
        "classifier": (state(classifier), classifier.metadata(), classifiers.load_latent_classifier),
        "image_text": (state(image_text), image_text.metadata(), _image_text),
        "inversion": (*inversion.to_tensors(), record.loaded),
        "direction": (*direction.to_tensors(), lambda path: files.of_file(path, Direction.from_tensors, "direction")),
        "lora": (lora, {weights.BASE: json.dumps({"structure": "known"})}, weights.load),
    }


def _image_text(path):
    return image_text.load_image_text(path)


def spots(value, at=()):
    """The places of a nested header, each a path of keys."""
    yield at
    if isinstance(value, dict):
        for key, each in list(value.items())[:20]:
            yield from spots(each, (*at, key))
    elif isinstance(value, list) and value:
        yield from spots(value[0], (*at, 0))


def changed(value, at, new):
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(value[at[0]], at[1:], new)
    return copy


def mutations(metadata):
    for name, text in metadata.items():
        yield {**metadata, name: DEEP}
        yield {**metadata, name: "{"}
        yield {**metadata, name: "NaN"}
        yield {k: v for k, v in metadata.items() if k != name}
        try:
            value = json.loads(text)
        except ValueError:
            continue
        for at in spots(value):
            for new in WRONG:
                yield {**metadata, name: json.dumps(changed(value, at, new))}


@pytest.mark.parametrize("kind", ["classifier", "image_text", "inversion", "direction", "lora"])
def test_every_field_is_typed_and_ranged_before_anything_is_built(kind, sound, tmp_path):
    """No mutation raises anything but a sentence, none takes long; those that load are as good as the sound one."""
    tensors, metadata, load = sound[kind]
    path = tmp_path / f"{kind}.safetensors"
    save_file(tensors, path, metadata)
    load(path)
    refused, began = 0, time.monotonic()
    every = 13 if len(tensors) > 20 else 1  # the larger files are written so often only here
    for number, strings in enumerate(list(mutations(metadata))[::every]):
        save_file(tensors, path, strings)
        try:
            load(path)
        except ValueError as error:
            said = str(error)
            assert "\n" not in said and 20 < len(said) <= 500, (number, said)
            assert str(tmp_path) not in said
            refused += 1
    assert refused >= (9 if kind != "lora" else 4), refused
    assert (time.monotonic() - began) / (number + 1) < 1


@pytest.mark.parametrize("kind", ["classifier", "image_text", "inversion", "direction", "lora"])
def test_tensors_of_another_shape_or_number_are_refused(kind, sound, tmp_path):
    tensors, metadata, load = sound[kind]
    path = tmp_path / f"{kind}.safetensors"
    for name in list(tensors)[:: max(1, len(tensors) // 5)]:
        value = tensors[name]
        nan = value.float().clone().flatten()
        nan[:1] = float("nan")
        for new in (None, value[None].contiguous().clone(), nan.reshape(value.shape), torch.zeros(0)):
            other = {k: v for k, v in tensors.items() if k != name} | ({} if new is None else {name: new})
            save_file(other, path, metadata)
            if name == "a.alpha" and (new is None or new.numel() == 1 and not new.isnan()):
                continue
            if new is None and name in ("pooled", "conditioning", "null_embeddings"):
                continue
            with pytest.raises(ValueError) as error:
                load(path)
            assert "\n" not in str(error.value) and len(str(error.value)) <= 500


def test_a_network_that_the_header_promises_is_never_built(sound, tmp_path, monkeypatch):
    tensors, metadata, load = sound["classifier"]
    config = json.loads(metadata["encoder"])
    for wrong in ({"widths": [3000, 3000, 3000]}, {"blocks": 3000}, {"size": 10**6}, {"widths": [48, 96]}):
        save_file(tensors, tmp_path / "x.safetensors", {**metadata, "encoder": json.dumps(config | wrong)})
        began = time.monotonic()
        with pytest.raises(ValueError, match="x.safetensors"):
            load(tmp_path / "x.safetensors")
        assert time.monotonic() - began < 2


def test_headers_that_lie(sound, tmp_path):
    load = sound["inversion"][2]
    path = tmp_path / "lie.safetensors"
    for header, size in (
        (b"{}", 2**40),
        (b"{" * 1000, 1000),
        (b"[]", 2),
        (b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', 54),
    ):
        path.write_bytes(struct.pack("<Q", size) + header)
        with pytest.raises(ValueError, match=r"lie\.safetensors"):
            load(path)
    for content in (b"", b"\0" * 7, os.urandom(5000)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"lie\.safetensors"):
            load(path)


def test_the_last_of_two_writers_wins_whole_and_strays_are_swept(tmp_path):
    path = tmp_path / "sub" / "one.safetensors"
    with whole_file(path) as first:
        first.write_bytes(b"first")
        write(path, {"x": torch.ones(2)}, {"by": "second"})
        second = path.read_bytes()
        assert b"second" in second
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["one.safetensors"]
    stray = path.parent / ".nulltext-0.part"
    stray.write_bytes(b"killed")
    fresh = path.parent / ".nulltext-1.part"
    fresh.write_bytes(b"at work")
    os.utime(stray, (1, 1))
    write(path, {"x": torch.ones(2)}, None)
    assert not stray.exists() and fresh.exists()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x/" * 3000 + "y", "file/inside", "loop/inside"])
def test_names_that_no_disk_takes_are_refused_without_the_servers_path(engine, tmp_path, monkeypatch, name):
    monkeypatch.setattr("nulltext.engine.folders.folder", lambda kind: tmp_path)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    try:
        with pytest.raises((ValueError, OSError)) as error:
            write(files.new_record(name, True), {"x": torch.ones(2)}, None)
    finally:
        (tmp_path / "loop").unlink()
    if isinstance(error.value, ValueError):
        assert str(tmp_path) not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr"])
def test_pictures_of_every_mode_are_rgb(mode, tmp_path):
    made = Image.new("RGB", (8, 6), (200, 100, 50)) if mode not in ("I;16", "I", "F") else None
    picture = made.convert(mode) if made else Image.new(mode, (8, 6), 30000 if mode != "F" else 0.5)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "F", "YCbCr", "I") else "x.png")
    picture.save(path)
    read = files.read_picture(path)
    assert read.mode == "RGB" and read.size == (8, 6)
    if mode in ("I;16", "I"):
        assert abs(read.getpixel((0, 0))[0] - 30000 / 257) <= 1
    if mode in ("RGB", "RGBA", "CMYK"):
        assert max(abs(a - b) for a, b in zip(read.getpixel((0, 0)), (200, 100, 50))) <= 2


def test_turned_cut_and_monstrous_pictures(tmp_path):
    made = Image.new("RGB", (8, 6))
    exif = made.getexif()
    exif[0x0112] = 6  # turned by a quarter
    made.save(tmp_path / "turned.jpg", exif=exif)
    assert files.read_picture(tmp_path / "turned.jpg").size == (6, 8)
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 90).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:600])
    (tmp_path / "text.png").write_text("no picture")
    bomb = bytearray(whole.read_bytes())
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    (tmp_path / "bomb.png").write_bytes(bomb)
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    for name in ("cut", "text", "bomb", "one"):
        with pytest.raises(ValueError, match=f"The picture {name}.png") as error:
            files.read_picture(tmp_path / f"{name}.png")
        assert str(tmp_path) not in str(error.value)


def test_a_config_json_that_lies(tmp_path):
    pytest.importorskip("transformers")
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    vit = [{"hidden_size": 100_000}, {"num_hidden_layers": 100_000}, {"hidden_size": "x"}, {"image_size": -1}]
    for text in (
        "",
        "{",
        DEEP,
        "[]",
        "{}",
        '{"model_type": "none"}',
        *(json.dumps({"model_type": "vit"} | v) for v in vit),
    ):
        Path(tmp_path / "config.json").write_text(text)
        began = time.monotonic()
        with pytest.raises(ValueError) as error:
            classifiers.load_image_classifier(path)
        assert "\n" not in str(error.value) and 20 < len(str(error.value)) <= 500 and time.monotonic() - began < 60


def test_the_lora_is_of_the_models_shapes(tiny):
    from nulltext.samplers.tuning.lora import low_rank_all

    layers = weights.layers(tiny, "attention")
    made = weights.to_lora_model(low_rank_all(layers.items(), 2, seed=0))
    weights.check_fits(tiny, made)
    name = next(k for k in made if k.endswith("lora_up.weight"))
    for key in (name, name.replace("_up", "_down")):
        other = dict(made)
        other[key] = torch.ones(made[key].shape[0] + (key == name), made[key].shape[1] + (key != name))
        with pytest.raises(ValueError, match="made for another model"):
            weights.check_fits(tiny, other)
    path = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_out.0"
    for part in ("diff", "diff_b"):  # core's loader has a second name for each layer
        with pytest.raises(ValueError, match="made for another model"):
            weights.check_fits(tiny, {f"{path}.{part}": torch.ones(3, 3)})
    factors = {f"{path}.lora_A.weight": torch.ones(2, 3), f"{path}.lora_B.weight": torch.ones(3, 2)}
    with pytest.raises(ValueError, match="made for another model"):
        weights.check_fits(tiny, factors)


def test_dataclasses_know_their_fields():
    assert {f.name for f in dataclasses.fields(Inversion)} >= {"fingerprint", "metadata", "words"}
