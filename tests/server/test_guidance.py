"""Guidance through a real server: it changes what it should, leaves what it shouldn't, refuses in one sentence."""

import threading
import time
from pathlib import Path

import pytest
import torch
from nulltext.demo.image_text import IMAGE, NOISY, TEXT, WORDS
from nulltext.samplers.networks.image_text import ImageText
from nulltext.samplers.networks.latent_classifier import LatentClassifier
from safetensors import safe_open
from safetensors.torch import save_file

DECODER, EXACT, LATENT = "through decoder only", "through network and decoder (exact)", "on the latent (no decoder)"
SPAN = {"start_percent": 0.0, "end_percent": 1.0, "bound": 0.5, "every": 1}


@pytest.fixture(scope="module", autouse=True)
def files(comfy):
    """Random stand-ins under names of their own: these tests ask whether things happen, not how well."""
    torch.manual_seed(0)
    classifier = LatentClassifier.new(["cat", "dog"], 4, 16, width=16)
    for p in classifier.parameters():
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.05)
    towers = ImageText(WORDS, IMAGE, TEXT, NOISY)
    for kind, name, model in (
        ("classifiers", "test_cats.safetensors", classifier),
        ("image_text", "test_towers.safetensors", towers),
    ):
        path = comfy.tree / "models" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path, model.metadata())


def graph(seed=3, cfg=1.0, steps=3, sampler="euler", model=("5", 0), **nodes):
    """Checkpoint 1, empty prompt 2, latent 3, loader 4, guidance 5, sampler 8, decode 9, preview 10."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nulltext_demo.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 2}},
        "8": {
            "class_type": "KSampler",
            "inputs": {
                "model": list(model),
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
                "seed": seed,
                "steps": steps,
                "cfg": cfg,
                "sampler_name": sampler,
                "scheduler": "karras",
                "denoise": 1.0,
            },
        },
        "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}},
        "10": {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}},
        **nodes,
    }


def by_class(scale=5.0, label="dog", **inputs):
    return {
        "4": {"class_type": "NullText_LoadClassifier", "inputs": {"file": "test_cats.safetensors"}},
        "5": {
            "class_type": "NullText_ClassifierGuidance",
            "inputs": {
                "model": ["1", 0],
                "classifier": ["4", 0],
                "class_name": label,
                "scale": scale,
                "gradient_mode": "automatic",
                **SPAN,
                **inputs,
            },
        },
    }


def by_text(**inputs):
    return {
        "4": {"class_type": "NullText_LoadImageText", "inputs": {"file": "test_towers.safetensors"}},
        "5": {
            "class_type": "NullText_CLIPGuidance",
            "inputs": {
                "model": ["1", 0],
                "vae": ["1", 2],
                "image_text": ["4", 0],
                "text": "a red circle",
                "loss": "contrastive",
                "distractors": "a blue square",
                "scale": 20.0,
                "gradient_mode": DECODER,
                "cutouts": 2,
                "cut_power": 1.0,
                "smallest_cut": 0.7,
                "augment": True,
                "seed": 0,
                **SPAN,
                **inputs,
            },
        },
    }


def pixels(result, key="10"):
    return torch.stack(
        [
            torch.frombuffer(bytearray(p.convert("RGB").tobytes()), dtype=torch.uint8).float()
            for p in result.pictures[key]
        ]
    )


def plain(comfy, **kwargs):
    return pixels(comfy.run(graph(model=("1", 0), **kwargs)).check())


@pytest.mark.parametrize("mode", [DECODER, EXACT, LATENT])
def test_each_gradient_mode_changes_the_picture_and_the_model_stays(comfy, mode):
    before = plain(comfy, seed=11)
    guided = comfy.run(graph(seed=11, **by_text(gradient_mode=mode))).check()
    again = comfy.run(graph(seed=11, **by_text(gradient_mode=mode))).check()
    assert (pixels(guided) - before).abs().mean() > 0.5
    assert torch.equal(pixels(guided), pixels(again))
    comfy.free()
    assert torch.equal(plain(comfy, seed=11), before)


@pytest.mark.parametrize("sampler", ["heun", "euler_ancestral", "dpmpp_2m"])
def test_any_sampler_at_any_cfg(comfy, sampler):
    for guidance in (by_class(), by_text()):
        result = comfy.run(graph(sampler=sampler, cfg=3.0, **guidance)).check()
        assert (pixels(result) - plain(comfy, sampler=sampler, cfg=3.0)).abs().mean() > 0.1


def test_scale_0_is_the_unguided_picture(comfy):
    for guidance in (by_class(scale=0.0), by_text(scale=0.0), by_class(start_percent=1.0)):
        result = comfy.run(graph(seed=5, **guidance)).check()
        assert torch.equal(pixels(result), plain(comfy, seed=5))


def test_training_writes_a_file_that_guides(comfy):
    train = {
        "class_type": "NullText_TrainLatentClassifier",
        "inputs": {
            "model": ["1", 0],
            "vae": ["1", 2],
            "folder": "classes",
            "size": 128,
            "train_steps": 6,
            "batch": 8,
            "learning_rate": 0.001,
            "mirror": True,
            "seed": 1,
            "file_name": "from_test",
        },
    }
    guide = by_class(label="red circle")
    guide["5"]["inputs"]["classifier"] = ["6", 0]
    flow = graph(**{"6": train, "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 1]}}, "5": guide["5"]})
    result = comfy.run(flow).check()
    said = next(text for text in result.texts if "Saved as" in text)
    path = Path(said.split("Saved as ")[1].split(": 2 classes")[0])
    assert path.is_file() and path.is_relative_to(comfy.tree / "output") and len(result.pictures["7"]) == 1
    with safe_open(path, "pt") as f:
        assert f.metadata()["labels"] == '["blue square", "red circle"]' and f.metadata()["fingerprint"]
    loaded = graph(**by_class(label="red circle"))
    loaded["4"]["inputs"]["file"] = "from_test.safetensors"
    assert torch.equal(pixels(comfy.run(loaded).check()), pixels(result))


def test_an_interrupt_in_training_writes_nothing_and_the_server_lives(comfy):
    train = {
        "class_type": "NullText_TrainLatentClassifier",
        "inputs": {
            "model": ["1", 0],
            "vae": ["1", 2],
            "folder": "classes",
            "size": 128,
            "train_steps": 5000,
            "batch": 32,
            "learning_rate": 0.001,
            "mirror": False,
            "seed": 1,
            "file_name": "interrupted",
        },
    }
    flow = {"1": graph()["1"], "6": train, "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 1]}}}
    ticks, stop = [], threading.Event()

    def progress(node, i, n):
        ticks.append(i)
        if len(ticks) > 20:
            stop.set()

    def interrupt():
        stop.wait(60)
        comfy.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    start = time.time()
    result = comfy.run(flow, on_progress=progress)
    thread.join()
    assert result.interrupted and time.time() - start < 60
    assert not (comfy.tree / "output" / "classifiers" / "interrupted.safetensors").exists()
    assert comfy.run(graph(seed=9, model=("1", 0))).check().images


def test_trace_and_rank(comfy):
    flow = graph(
        **by_class(),
        **{
            "11": {
                "class_type": "NullText_GuidanceTrace",
                "inputs": {"model": ["5", 0], "latent": ["8", 0], "vae": ["1", 2], "pictures": 3, "item": 2},
            },
            "12": {"class_type": "PreviewImage", "inputs": {"images": ["11", 0]}},
            "13": {"class_type": "NullText_LoadImageText", "inputs": {"file": "test_towers.safetensors"}},
            "14": {
                "class_type": "NullText_CLIPRank",
                "inputs": {"images": ["9", 0], "image_text": ["13", 0], "text": "a red circle", "keep": 1},
            },
            "15": {"class_type": "PreviewImage", "inputs": {"images": ["14", 0]}},
        },
    )
    result = comfy.run(flow).check()
    text = "\n".join(result.texts)
    assert "class dog" in text and "3 steps" in text and "The best 1 of 2" in text
    assert len(result.pictures["12"]) == 1 and result.pictures["12"][0].width >= 512
    best = pixels(result, "15")[0]
    assert any(torch.equal(best, row) for row in pixels(result))


def test_start_noise_again_by_the_core_sampler(comfy):
    flow = graph(
        **by_class(),
        **{
            "6": {
                "class_type": "NullText_OptimiseStartNoise",
                "inputs": {
                    "model": ["5", 0],
                    "positive": ["2", 0],
                    "negative": ["2", 0],
                    "latent": ["3", 0],
                    "seed": 4,
                    "steps": 3,
                    "scheduler": "karras",
                    "cfg": 1.0,
                    "iterations": 3,
                    "learning_rate": 0.05,
                    "prior": 1.0,
                },
            },
            "11": {"class_type": "BasicGuider", "inputs": {"model": ["1", 0], "conditioning": ["2", 0]}},
            "12": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
            "13": {
                "class_type": "SamplerCustomAdvanced",
                "inputs": {
                    "noise": ["6", 1],
                    "guider": ["11", 0],
                    "sampler": ["12", 0],
                    "sigmas": ["6", 2],
                    "latent_image": ["3", 0],
                },
            },
            "14": {"class_type": "VAEDecode", "inputs": {"samples": ["13", 0], "vae": ["1", 2]}},
            "15": {"class_type": "PreviewImage", "inputs": {"images": ["14", 0]}},
        },
    )
    flow["9"]["inputs"]["samples"] = ["6", 0]
    del flow["8"]
    result = comfy.run(flow).check()
    assert (pixels(result) - pixels(result, "15")).abs().max() <= 2
    said = next(text for text in result.texts if text.startswith("Loss"))
    first, best = (float(v) for v in said.split("Loss ")[1].split(" (")[0].split(" -> "))
    assert best <= first


def test_the_papers_w(comfy):
    node = {
        "class_type": "NullText_CFGConvention",
        "inputs": {
            "model": ["1", 0],
            "w": 2.0,
            "shape": "constant",
            "w_end": 0.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
        },
    }
    result = comfy.run(graph(cfg=1.0, seed=6, **{"5": node})).check()
    assert "cfg 3" in "\n".join(result.texts)
    assert (pixels(result) - plain(comfy, cfg=3.0, seed=6)).abs().max() <= 2


def test_refusals(comfy):
    def image_classifier(**inputs):
        return {
            "4": {
                "class_type": "NullText_LoadImageClassifier",
                "inputs": {"file": "nulltext_colours.safetensors", "architecture": "auto"},
            },
            "5": {
                "class_type": "NullText_ClassifierGuidance",
                "inputs": {
                    "model": ["1", 0],
                    "classifier": ["4", 0],
                    "class_name": "red",
                    "scale": 2.0,
                    **SPAN,
                    **inputs,
                },
            },
        }

    comfy.refuses(graph(**by_class(label="horse")), "no class 'horse'", "cat, dog")
    comfy.refuses(graph(**image_classifier(gradient_mode=LATENT)), "clean pictures", "not latents")
    comfy.refuses(graph(**image_classifier(gradient_mode="automatic")), "wire the VAE")
    comfy.refuses(graph(**by_text(distractors="")), "distractor")
    comfy.refuses(graph(**by_text(text="zebra")), "knows no word")
    pair = by_text()
    pair["4"]["inputs"]["clip"] = ["1", 1]
    comfy.refuses(graph(**pair), "two halves")
    missing = by_class()
    missing["4"]["inputs"]["file"] = "gone.safetensors"
    comfy.refuses(graph(**missing), "no file")
    outside = by_class()
    outside["4"]["inputs"]["file"] = "../../x.safetensors"
    comfy.refuses(graph(**outside), "'..'")


def test_a_truncated_or_foreign_file(comfy, temporary_file):
    temporary_file("models/classifiers/broken.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    for name, words in (
        ("broken.safetensors", "can't be read"),
        ("nulltext_colours.safetensors", "not a latent classifier"),
    ):
        flow = graph(**by_class())
        flow["4"]["inputs"]["file"] = name
        comfy.refuses(flow, words)
