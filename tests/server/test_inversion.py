"""Inversion, correction and editing through a real server: results, refusals, and what an interrupt leaves."""

import threading
import time

import pytest
import torch
from nulltext.demo import weights
from safetensors.torch import load_file, save_file

SOURCE = "a photo of a large red circle in the middle, striped blue background"
EDIT = "a photo of a large green circle in the middle, striped blue background"
PREVIEW = {"class_type": "PreviewImage"}


def graph(comfy, text=SOURCE, edit=EDIT, **extra):
    """Checkpoint 1, picture 2, latent 3, source prompt 4, edited prompt 5, empty prompt 6."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nulltext_demo.safetensors"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "demo_scene.png"}},
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
        "4": {"class_type": "NullText_Prompt", "inputs": {"clip": ["1", 1], "text": text}},
        "5": {"class_type": "NullText_Prompt", "inputs": {"clip": ["1", 1], "text": edit}},
        "6": {"class_type": "NullText_Prompt", "inputs": {"clip": ["1", 1], "text": ""}},
        **extra,
    }


def invert(pivot="exact pair", steps=4, cfg=1.0, **inputs):
    return {
        "class_type": "NullText_InvertImage",
        "inputs": {
            "model": ["1", 0],
            "positive": ["4", 0],
            "latent": ["3", 0],
            "pivot": pivot,
            "steps": steps,
            "scheduler": "normal",
            "cfg": cfg,
            "iterations": 5,
            "seed": 0,
            "use_cache": False,
            **inputs,
        },
    }


def inverter(correction="null-text", steps=4, **inputs):
    return {
        "class_type": "NullText_Inverter",
        "inputs": {
            "model": ["1", 0],
            "positive": ["4", 0],
            "negative": ["6", 0],
            "latent": ["3", 0],
            "correction": correction,
            "steps": steps,
            "scheduler": "normal",
            "cfg": 7.5,
            "inner_steps": 3,
            "tolerance": 1e-5,
            "pivot": "DDIM",
            "iterations": 5,
            "checkpointing": False,
            "use_cache": False,
            **inputs,
        },
    }


def sampler(inversion="7", **inputs):
    return {
        "class_type": "NullText_Sampler",
        "inputs": {"model": ["1", 0], "inversion": [inversion, 0], "strength": 1.0, **inputs},
    }


def shown(latent, key=20):
    return {
        str(key): {"class_type": "VAEDecode", "inputs": {"samples": latent, "vae": ["1", 2]}},
        str(key + 1): {"class_type": "PreviewImage", "inputs": {"images": [str(key), 0]}},
    }


def pixels(result, key="21", index=0):
    picture = result.pictures[key][index].convert("RGB")
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.float().view(picture.height, picture.width, 3)


def far(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize(("pivot", "cfg"), [("exact pair", 1.0), ("exact pair", 5.0), ("edit-friendly DDPM", 3.5)])
def test_exact_pivots_give_the_picture_back(comfy, pivot, cfg):
    flow = graph(comfy, **{"7": invert(pivot, cfg=cfg, negative=["6", 0])}, **shown(["7", 1]), **shown(["3", 0], 30))
    result = comfy.run(flow).check()
    assert far(pixels(result), pixels(result, "31")) <= 2
    report = "\n".join(result.texts)
    assert "latent rms error" in report and "network calls" in report and "noise quality" in report


def test_null_text_road(comfy):
    """Optimise, reconstruct from the inversion, edit; core's SamplerCustomAdvanced with Parts and Guider agrees."""
    flow = graph(
        comfy,
        **{
            "7": inverter(inner_steps=4),
            "8": sampler(),
            "9": sampler(positive=["5", 0], strength=0.75),
            "10": {"class_type": "NullText_Guider", "inputs": {"model": ["1", 0], "inversion": ["7", 0]}},
            "11": {"class_type": "NullText_InversionParts", "inputs": {"inversion": ["7", 0], "strength": 1.0}},
            "12": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
            "13": {
                "class_type": "SamplerCustomAdvanced",
                "inputs": {
                    "noise": ["11", 0],
                    "guider": ["10", 0],
                    "sampler": ["12", 0],
                    "sigmas": ["11", 1],
                    "latent_image": ["11", 2],
                },
            },
            "14": {
                "class_type": "SamplerCustomAdvanced",
                "inputs": {
                    "noise": ["11", 0],
                    "guider": ["10", 0],
                    "sampler": ["11", 3],
                    "sigmas": ["11", 1],
                    "latent_image": ["11", 2],
                },
            },
        },
        **shown(["7", 1]),
        **shown(["8", 0], 30),
        **shown(["9", 0], 40),
        **shown(["13", 0], 50),
        **shown(["14", 0], 60),
    )
    result = comfy.run(flow).check()
    own = pixels(result, "31")
    assert far(own, pixels(result, "21")) <= 2
    assert far(own, pixels(result, "51")) <= 2 and far(own, pixels(result, "61")) <= 2
    assert far(own, pixels(result, "41")) > 8
    assert any("forwards" in text and "backwards" in text for text in result.texts)


def test_a_batch_of_images(comfy):
    """Two images through null-text at once."""
    batch = {"15": {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["3", 0], "amount": 2}}}
    flow = graph(comfy, **batch, **{"7": inverter(latent=["15", 0])}, **shown(["7", 1]))
    result = comfy.run(flow).check()
    assert far(pixels(result, index=0), pixels(result, index=1)) <= 1
    assert len(result.pictures["21"]) == 2


def test_negative_prompt_and_overwrite(comfy):
    for correction in ("negative prompt", "direct overwrite"):
        flow = graph(
            comfy,
            **{"7": inverter(correction), "8": sampler(negative=["6", 0])},
            **shown(["7", 1]),
            **shown(["8", 0], 30),
            **shown(["3", 0], 40),
        )
        result = comfy.run(flow).check()
        assert far(pixels(result), pixels(result, "31")) <= 2
        if correction == "direct overwrite":
            assert far(pixels(result), pixels(result, "41")) <= 1
            assert any("Nothing to change" in text for text in result.texts)


@pytest.mark.parametrize("method", ["FlowEdit", "InfEdit"])
def test_direct_edit(comfy, method):
    def edit(**inputs):
        node = {
            "class_type": "NullText_DirectEdit",
            "inputs": {
                "model": ["1", 0],
                "source": ["4", 0],
                "target": ["5", 0],
                "latent": ["3", 0],
                "method": method,
                "steps": 4,
                "scheduler": "normal",
                "strength": 0.75,
                "source_cfg": 1.5,
                "target_cfg": 5.0,
                "average": 1,
                "plain_steps": 0,
                "seed": 1,
                "negative": ["6", 0],
                **inputs,
            },
        }
        return comfy.run(graph(comfy, **{"7": node}, **shown(["7", 0]), **shown(["3", 0], 30))).check()

    same = edit(target=["4", 0], target_cfg=1.5)
    assert far(pixels(same), pixels(same, "31")) == 0 and any("ask for the same" in t for t in same.texts)
    none = edit(strength=0.0)
    assert far(pixels(none), pixels(none, "31")) == 0 and any("samples no step" in t for t in none.texts)
    changed = edit()
    assert far(pixels(changed), pixels(changed, "31")) > 8 and any("network calls" in t for t in changed.texts)


def test_one_inversion_many_edits(comfy):
    node = {
        "class_type": "NullText_EditGrid",
        "inputs": {
            "model": ["1", 0],
            "clip": ["1", 1],
            "vae": ["1", 2],
            "inversion": ["7", 0],
            "strengths": "0, 0.5, 1",
            "prompts": f"{EDIT}\n\n{SOURCE.replace('circle', 'star')}",
            "negative": ["6", 0],
        },
    }
    show = {
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
        "10": {"class_type": "PreviewImage", "inputs": {"images": ["8", 1]}},
    }
    result = comfy.run(graph(comfy, **{"7": invert(cfg=2.0, negative=["6", 0]), "8": node}, **show)).check()
    (grid,), edits = result.pictures["9"], result.pictures["10"]
    assert len(edits) == 6 and grid.width == 4 * 128 and grid.height > 2 * 128
    assert any("2 prompts x 3 strengths x 1 image" in text for text in result.texts)


def test_save_load_and_use(comfy):
    save = {
        "class_type": "NullText_SaveInversion",
        "inputs": {"inversion": ["7", 0], "name": "inversions/t", "overwrite": True},
    }
    first = comfy.run(graph(comfy, **{"7": invert(), "8": save}, **shown(["7", 1]))).check()
    path = comfy.tree / "output" / "inversions" / "t.safetensors"
    assert path.is_file() and "trajectory" in load_file(path)
    load = {"class_type": "NullText_LoadInversion", "inputs": {"name": "inversions/t", "model": ["1", 0]}}
    again = comfy.run(graph(comfy, **{"8": load, "9": sampler("8")}, **shown(["9", 0]))).check()
    assert far(pixels(first), pixels(again)) <= 2
    assert any(SOURCE in text for text in again.texts)
    path.unlink()


def test_inversions_are_found_again(comfy):
    flow = graph(comfy, **{"7": inverter("null-text", use_cache=True, inner_steps=2)}, **shown(["7", 1]))
    first = comfy.run(flow).check()
    comfy.free()
    flow["7"]["inputs"]["iterations"] = 9  # no part of a DDIM inversion, but the engine's own cache can't answer now
    again = comfy.run(flow).check()
    assert any("found in the cache" in text for text in again.texts)
    assert far(pixels(first), pixels(again)) <= 2
    folder = comfy.tree / "user" / "nulltext" / "inversions"
    assert any(folder.glob("*.safetensors"))


BAD = {
    "one step": ({"7": invert(steps=1)}, ("at least 2 steps",)),
    "empty prompt": (
        {"4": {"class_type": "NullText_Prompt", "inputs": {"clip": ["1", 1], "text": "  "}}, "7": invert()},
        ("source prompt is empty",),
    ),
    "cfg without a null branch": ({"7": invert(cfg=3.0)}, ("negative",)),
    "cfg 1 for null-text": ({"7": inverter(cfg=1.0)}, ("cfg 1", "no null branch")),
    "an exact pair has nothing to optimise": (
        {
            "30": invert(),
            "7": {
                "class_type": "NullText_Optimise",
                "inputs": {
                    "model": ["1", 0],
                    "inversion": ["30", 0],
                    "negative": ["6", 0],
                    "cfg": 7.5,
                    "inner_steps": 2,
                    "tolerance": 1e-5,
                    "checkpointing": False,
                    "use_cache": False,
                },
            },
        },
        ("exact pair",),
    ),
    "empty latent": (
        {
            "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
            "7": invert(),
        },
        ("latent is empty",),
    ),
    "a core sampler": (
        {
            "7": invert("DDIM"),
            "30": {"class_type": "NullText_Guider", "inputs": {"model": ["1", 0], "inversion": ["7", 0]}},
            "31": {"class_type": "NullText_InversionParts", "inputs": {"inversion": ["7", 0], "strength": 1.0}},
            "32": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler_ancestral"}},
            "33": {
                "class_type": "SamplerCustomAdvanced",
                "inputs": {
                    "noise": ["31", 0],
                    "guider": ["30", 0],
                    "sampler": ["32", 0],
                    "sigmas": ["31", 1],
                    "latent_image": ["31", 2],
                },
            },
        },
        ("euler_ancestral",),
    ),
    "a path with ..": ({"7": {"class_type": "NullText_LoadInversion", "inputs": {"name": "../../secrets"}}}, ("..",)),
    "no such file": (
        {"7": {"class_type": "NullText_LoadInversion", "inputs": {"name": "inversions/none"}}},
        ("no inversion file",),
    ),
    "nonsense strengths": (
        {
            "30": invert(),
            "7": {
                "class_type": "NullText_EditGrid",
                "inputs": {
                    "model": ["1", 0],
                    "clip": ["1", 1],
                    "vae": ["1", 2],
                    "inversion": ["30", 0],
                    "prompts": "x",
                    "strengths": "much",
                },
            },
        },
        ("numbers from 0 to 1",),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(comfy, case):
    nodes, words = BAD[case]
    flow = graph(comfy, **nodes)
    last = "33" if "33" in nodes else "7"
    if flow[last]["class_type"] == "SamplerCustomAdvanced":
        flow.update(shown([last, 0]))
    elif flow[last]["class_type"] == "NullText_EditGrid":
        flow["21"] = {**PREVIEW, "inputs": {"images": [last, 0]}}
    else:
        loads = flow[last]["class_type"] == "NullText_LoadInversion"
        flow["29"] = sampler(last)
        flow.update(shown(["29", 0] if loads else [last, 1]))
    comfy.refuses(flow, *words)


def test_foreign_and_truncated_files(comfy, temporary_file):
    whole = comfy.run(
        graph(
            comfy,
            **{
                "7": invert(),
                "8": {
                    "class_type": "NullText_SaveInversion",
                    "inputs": {"inversion": ["7", 0], "name": "whole", "overwrite": True},
                },
            },
        )
    ).check()
    assert whole.texts
    content = (comfy.tree / "output" / "whole.safetensors").read_bytes()
    temporary_file("output/cut.safetensors", content[: len(content) // 2])
    foreign = temporary_file("input/foreign.safetensors", b"")
    save_file({"a": torch.zeros(1)}, str(foreign))
    for name, words in (("cut", ("cut",)), ("foreign", ("not an inversion",))):
        load = {"class_type": "NullText_LoadInversion", "inputs": {"name": name}}
        comfy.refuses(graph(comfy, **{"7": load, "8": sampler("7")}, **shown(["8", 0])), *words)


def test_another_latent_shape_is_refused(comfy):
    parts = {
        "7": invert("DDIM"),
        "8": {"class_type": "NullText_InversionParts", "inputs": {"inversion": ["7", 0], "strength": 1.0}},
        "9": {"class_type": "NullText_Guider", "inputs": {"model": ["1", 0], "inversion": ["7", 0]}},
        "10": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 128, "batch_size": 1}},
        "11": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["8", 0],
                "guider": ["9", 0],
                "sampler": ["8", 3],
                "sigmas": ["8", 1],
                "latent_image": ["10", 0],
            },
        },
    }
    comfy.refuses(graph(comfy, **parts, **shown(["11", 0])), "shape")


def test_strength_zero_and_empty_mask_return_the_source(comfy):
    mask = {"12": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}}}
    for inputs, words in (({"strength": 0.0}, "samples no step"), ({"mask": ["12", 0]}, "mask is empty")):
        flow = graph(
            comfy,
            **mask,
            **{"7": invert(), "8": sampler(positive=["5", 0], **inputs)},
            **shown(["8", 0]),
            **shown(["3", 0], 30),
        )
        result = comfy.run(flow).check()
        assert far(pixels(result), pixels(result, "31")) <= 1
        assert any("Nothing to change" in text and words in text for text in result.texts)


def test_interrupt_in_an_inner_loop_leaves_the_model_as_it_was(comfy):
    """Stopped in the middle of an optimisation; the same seed then draws the same picture as before."""
    drawn = {
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": EDIT}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "40": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    }

    def draw(key):
        node = {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["5", 0],
                "negative": ["6", 0],
                "latent_image": ["40", 0],
                "seed": 7,
                "steps": 3,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        }
        return pixels(comfy.run({**graph(comfy), **drawn, key: node, **shown([key, 0])}).check())

    before = draw("41")
    long = graph(comfy, **{"7": inverter(steps=50, inner_steps=50, tolerance=0.0)}, **shown(["7", 1]))
    seen = threading.Event()
    stopper = threading.Thread(target=lambda: (seen.wait(60), comfy.connect().interrupt()))
    stopper.start()
    began = time.monotonic()
    result = comfy.run(long, lambda node, value, total: seen.set() if node == "7" and value > 60 else None, timeout=120)
    seen.set()
    stopper.join()
    assert not result.ok and time.monotonic() - began < 100
    assert torch.equal(before, draw("42"))


def control_net(comfy, path):
    """A control net of the demo family with random weights that do have an effect."""
    trained = weights.CHECKPOINT
    used = trained if trained.exists() else comfy.tree / "models/checkpoints" / trained.name
    generator = torch.Generator().manual_seed(0)
    parts = ("time_embed.", "input_blocks.", "middle_block.")
    control = {key: value for key, value in weights.read_part(used, "unet").items() if key.startswith(parts)}
    widths = [3, 16, 16, 32, 32, 96, 96, 256, 64]
    for i, (n_in, n_out) in enumerate(zip(widths, widths[1:])):
        weight = torch.randn(n_out, n_in, 3, 3, generator=generator) * n_in**-0.5
        control |= {f"input_hint_block.{2 * i}.weight": weight, f"input_hint_block.{2 * i}.bias": torch.zeros(n_out)}
    for name, n in [(f"zero_convs.{i}.0", 64 if i < 3 else 128) for i in range(6)] + [("middle_block_out.0", 128)]:
        weight = 0.05 * torch.randn(n, n, 1, 1, generator=generator)
        control |= {f"{name}.weight": weight, f"{name}.bias": torch.zeros(n)}
    save_file(control, path)


def test_lora_and_controlnet_compose_with_null_text(comfy, temporary_file):
    """Gradients pass through both; what an inversion can't keep is asked for; another LoRA strength is refused."""
    control_net(comfy, temporary_file("models/controlnet/null_text.safetensors"))
    lora, generator = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v", torch.Generator().manual_seed(1)
    save_file(
        {
            f"{lora}.lora_down.weight": torch.randn(2, 128, generator=generator),
            f"{lora}.lora_up.weight": torch.randn(128, 2, generator=generator),
        },
        temporary_file("models/loras/null_text.safetensors"),
    )
    loaded = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": "null_text.safetensors", "strength_model": 0.5},
    }
    flow = graph(
        comfy,
        **{
            "50": loaded,
            "53": {**loaded, "inputs": {**loaded["inputs"], "strength_model": 0.9}},
            "51": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "null_text.safetensors"}},
            "52": {
                "class_type": "ControlNetApply",
                "inputs": {"conditioning": ["4", 0], "control_net": ["51", 0], "image": ["2", 0], "strength": 1.0},
            },
            "7": inverter(model=["50", 0], positive=["52", 0], inner_steps=4),
            "8": sampler(model=["50", 0], positive=["52", 0]),
        },
        **shown(["7", 1]),
        **shown(["8", 0], 30),
    )
    result = comfy.run(flow).check()
    assert far(pixels(result), pixels(result, "31")) <= 2
    for change, words in (
        ({"model": ["53", 0], "positive": ["52", 0]}, ("LoRA",)),
        ({"model": ["50", 0]}, ("control",)),
    ):
        wrong = {key: node for key, node in flow.items() if key not in ("20", "21")} | {"8": sampler(**change)}
        comfy.refuses(wrong, *words)


@pytest.mark.parametrize("pivot", ["exact pair", "edit-friendly DDPM"])
def test_flow_models_from_sigma_one(comfy, temporary_file, pivot):
    """A tiny SD3 with random weights: sigma 1 is where the engine's own scaling loses the latent."""
    weights.random_flow_checkpoint(temporary_file("models/checkpoints/flow.safetensors"))
    model = {"model": ["60", 0]}
    flow = graph(
        comfy,
        **{
            "60": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "flow.safetensors"}},
            "61": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 2}},
            "62": {
                "class_type": "KSampler",
                "inputs": {
                    **model,
                    "positive": ["4", 0],
                    "negative": ["6", 0],
                    "latent_image": ["61", 0],
                    "seed": 3,
                    "steps": 2,
                    "cfg": 1.0,
                    "sampler_name": "euler",
                    "scheduler": "normal",
                    "denoise": 1.0,
                },
            },
            "7": invert(pivot, steps=5, latent=["62", 0], **model),
            "8": sampler(**model),
            "63": {
                "class_type": "NullText_DirectEdit",
                "inputs": {
                    **model,
                    "source": ["4", 0],
                    "target": ["5", 0],
                    "latent": ["62", 0],
                    "method": "FlowEdit",
                    "steps": 4,
                    "scheduler": "normal",
                    "strength": 1.0,
                    "source_cfg": 1.0,
                    "target_cfg": 1.0,
                    "average": 1,
                    "plain_steps": 0,
                    "seed": 1,
                },
            },
            **{
                str(70 + i): {
                    "class_type": "SaveLatent",
                    "inputs": {"samples": [key, slot], "filename_prefix": f"flow_{i}"},
                }
                for i, (key, slot) in enumerate((("62", 0), ("7", 1), ("8", 0), ("63", 0)))
            },
        },
    )
    comfy.run(flow).check()
    saved = [sorted((comfy.tree / "output").glob(f"flow_{i}_*.latent"))[-1] for i in range(4)]
    source, there, back, changed = (load_file(path)["latent_tensor"].float() for path in saved)
    assert source.shape == (2, 16, 16, 16) and source.std() > 0.1
    scale = float(source.abs().max())
    assert far(there, source) < 1e-3 * scale and far(back, source) < 1e-3 * scale
    assert torch.isfinite(changed).all() and far(changed, source) > 1e-3 * scale
