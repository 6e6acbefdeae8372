"""Sampling from a picture on a real server: the shipped workflows, identities over HTTP, refusals, interrupt."""

import time

import numpy as np
import pytest

WORKFLOWS = [
    "disturbance",
    "disturbance_picture",
    "repaint",
    "repaint_sampler",
    "ilvr",
    "sdedit",
    "diffedit",
    "blended_diffusion",
]
QUICK = {
    "steps_above": 2,
    "steps_below": 3,
    "levels": 3,
    "resamples": 2,
    "maps": 1,
    "particles": 2,
    "strip": "4@0.5",
    "more_levels": "0.6",
}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_shipped_workflow(comfy, name):
    result = comfy.run(comfy.workflow(name, steps=3, **QUICK)).check()
    assert result.images and all(picture.size[0] >= 128 for picture in result.images)
    assert result.texts and all(len(text) > 10 for text in result.texts)


def graph(node: str, inputs: dict, latent="5", output=0) -> dict:
    """Checkpoint, two prompts, a picture; node "9" under test, decoded; the untouched latent decoded beside it as
    "12"."""
    flow = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nulltext_demo.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red circle"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "LoadImage", "inputs": {"image": "demo_scene_masked.png"}},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "7": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}},
        "9": {"class_type": node, "inputs": {"model": ["1", 0], **inputs}},
        "10": {"class_type": "VAEDecode", "inputs": {"samples": ["9", output], "vae": ["1", 2]}},
        "11": {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": "from_image"}},
        "12": {"class_type": "VAEDecode", "inputs": {"samples": [latent, 0], "vae": ["1", 2]}},
        "13": {"class_type": "SaveImage", "inputs": {"images": ["12", 0], "filename_prefix": "untouched"}},
    }
    return flow


PROMPTS = {"positive": ["2", 0], "negative": ["3", 0]}
REPAINT = {
    **PROMPTS,
    "latent": ["5", 0],
    "mask": ["4", 1],
    "seed": 1,
    "cfg": 3.0,
    "schedule": "custom",
    "levels": 4,
    "jump": 1,
    "resamples": 3,
    "low": 0.0,
    "high": 50.0,
    "noise": "renewed (ours, for few levels)",
    "mode": "resampling (RePaint)",
    "particles": 2,
    "grow": 1,
}
BLEND = {
    **PROMPTS,
    "latent": ["5", 0],
    "mask": ["4", 1],
    "seed": 1,
    "cfg": 3.0,
    "steps": 4,
    "t0": 0.9,
    "start": "noise",
    "shrink": 2,
    "noise": "fresh",
    "hold": "blend (Algorithm 2)",
    "weight": 1.0,
}
SDEDIT = {
    **PROMPTS,
    "latent": ["5", 0],
    "seed": 1,
    "cfg": 3.0,
    "t0": 0.5,
    "steps": 4,
    "noise": "stochastic (the paper's)",
    "more_levels": "",
}
CARTOON = {
    **PROMPTS,
    "latent": ["5", 0],
    "seed": 1,
    "cfg": 10.0,
    "look": "picture (Image-D)",
    "strength": 1.0,
    "rollback": 0.3,
    "start_percent": 0.7,
    "denoise": 0.3,
    "steps_above": 2,
    "steps_below": 4,
}
ILVR = {
    **PROMPTS,
    "reference": ["5", 0],
    "seed": 1,
    "cfg": 3.0,
    "steps": 4,
    "scheduler": "normal",
    "factor": 4.0,
    "filter": "bicubic (the paper's)",
    "stop": 1.0,
    "strip": "",
}
MASK = {
    "source": ["2", 0],
    "target": ["3", 0],
    "latent": ["5", 0],
    "seed": 0,
    "maps": 1,
    "strength": 0.5,
    "threshold": 0.5,
    "clamp": 3.0,
    "smooth": 0,
    "grow": 0,
}


@pytest.mark.parametrize(
    "node, inputs",
    [
        ("NullText_RePaintSampler", {**REPAINT, "mask": ["7", 0]}),
        ("NullText_BlendedDiffusion", {**BLEND, "mask": ["7", 0]}),
        ("NullText_BlendedDiffusion", {**BLEND, "t0": 0.0}),
        ("NullText_SDEdit", {**SDEDIT, "t0": 0.0}),
        ("NullText_SDEdit", {**SDEDIT, "mask": ["7", 0]}),
        ("NullText_DisturbanceSampler", {**CARTOON, "denoise": 0.0}),
    ],
)
def test_nothing_to_change_gives_the_untouched_picture_and_a_notice(comfy, node, inputs):
    result = comfy.run(graph(node, inputs)).check()
    ours, plain = result.pictures["11"][0], result.pictures["13"][0]
    assert np.array_equal(np.asarray(ours), np.asarray(plain))
    assert any(text.startswith("Notice") for text in result.texts)


@pytest.mark.parametrize("strength, start, end", [(0.0, 0.7, 1.0), (1.0, 0.7, 0.7)])
def test_disturbance_that_is_off_is_the_ordinary_run(comfy, strength, start, end):
    flow = graph(
        "NullText_Disturbance",
        {
            "look": "rollback (Back-D)",
            "strength": strength,
            "rollback": 0.3,
            "start_percent": start,
            "end_percent": end,
            "cfg": 6.0,
        },
    )
    sampler = {
        **PROMPTS,
        "latent_image": ["6", 0],
        "seed": 3,
        "steps": 4,
        "cfg": 6.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    flow["20"] = {"class_type": "KSampler", "inputs": {"model": ["9", 0], **sampler}}
    flow["21"] = {"class_type": "KSampler", "inputs": {"model": ["1", 0], **sampler}}
    flow["10"]["inputs"]["samples"], flow["12"]["inputs"]["samples"] = ["20", 0], ["21", 0]
    result = comfy.run(flow).check()
    assert np.array_equal(*(np.asarray(result.pictures[key][0]) for key in ("11", "13")))
    assert any(text.startswith("Notice") for text in result.texts)


def test_a_fill_changes_the_hole_only(comfy):
    flow = graph("NullText_RePaintSampler", REPAINT)
    flow["14"] = {
        "class_type": "NullText_PixelComposite",
        "inputs": {"original": ["4", 0], "edited": ["10", 0], "mask": ["4", 1], "feather": 4},
    }
    flow["15"] = {"class_type": "SaveImage", "inputs": {"images": ["14", 0], "filename_prefix": "composite"}}
    flow["16"] = {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "original"}}
    result = comfy.run(flow).check()
    filled, original = (np.asarray(result.pictures[key][0]).astype(int) for key in ("15", "16"))
    changed = np.abs(filled - original).max(2) > 0
    assert changed.any()
    rows, columns = np.nonzero(changed)
    assert rows.min() > 8 and columns.min() > 8 and not changed[:8].any()
    assert any("network calls over 4 levels" in text for text in result.texts)


def test_progress_counts_network_calls(comfy):
    seen = []
    result = comfy.run(
        graph("NullText_RePaintSampler", {**REPAINT, "seed": 77}), lambda n, i, total: seen.append((n, i, total))
    ).check()
    calls = int(next(text for text in result.texts if "network calls over" in text).split()[0])
    assert [(i, total) for n, i, total in seen if n == "9"][-1] == (calls, calls)


@pytest.mark.parametrize(
    "node, inputs, words",
    [
        ("NullText_RePaintSampler", {**REPAINT, "latent": ["6", 0]}, ["latent is empty"]),
        ("NullText_BlendedDiffusion", {**BLEND, "latent": ["6", 0]}, ["latent is empty"]),
        ("NullText_SDEdit", {**SDEDIT, "latent": ["6", 0]}, ["latent is empty"]),
        ("NullText_SDEdit", {**SDEDIT, "more_levels": "0.2 0.4"}, ["noise levels are numbers from 0 to 1"]),
        ("NullText_DisturbanceSampler", {**CARTOON, "latent": ["6", 0]}, ["latent is empty"]),
        ("NullText_ILVRSampler", {**ILVR, "reference": ["6", 0]}, ["latent is empty"]),
        ("NullText_ILVRSampler", {**ILVR, "strip": "4"}, ["factor@stop"]),
    ],
)
def test_refusals(comfy, node, inputs, words):
    comfy.refuses(graph(node, inputs), *words, seconds=20)


def test_diffedit_refusals(comfy):
    flow = graph("NullText_DiffEditMask", {**MASK, "latent": ["6", 0]}, output=1)
    flow["11"]["inputs"]["images"] = ["9", 1]
    flow.pop("10")
    comfy.refuses(flow, "latent is empty")
    flow["9"]["inputs"] |= {"latent": ["5", 0], "strength": 0.0}
    comfy.refuses(flow, "strength 0")


def test_a_picture_of_another_size_is_refused(comfy):
    flow = graph(
        "NullText_ILVR",
        {
            "reference": ["5", 0],
            "factor": 4.0,
            "filter": "cosines (exact)",
            "strength": 1.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
        },
    )
    flow["6"]["inputs"]["width"] = 64
    flow["20"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["9", 0],
            **PROMPTS,
            "latent_image": ["6", 0],
            "seed": 3,
            "steps": 4,
            "cfg": 6.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    }
    flow["10"]["inputs"]["samples"] = ["20", 0]
    comfy.refuses(flow, "resize the reference")


def test_interrupt_ends_a_long_fill_and_the_next_prompt_works(comfy):
    inputs = {**REPAINT, "levels": 40, "resamples": 200, "seed": int(time.time())}
    asked = []

    def stop(node, value, total):
        if value >= 3 and not asked:
            asked.append(value)
            comfy.interrupt()

    result = comfy.run(graph("NullText_RePaintSampler", inputs), stop)
    assert asked and result.interrupted
    comfy.run(graph("NullText_RePaintSampler", {**REPAINT, "seed": int(time.time())})).check()
