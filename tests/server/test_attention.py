"""Attention edits through a real server: identities in the pictures, maps that feed other nodes, refusals,
interrupts."""

import threading
import time

import pytest
import torch
from nulltext.demo import weights as checkpoint
from safetensors.torch import load_file

SOURCE = "a photo of a large red circle in the middle, striped blue background"
EDIT = "a photo of a large green circle in the middle, striped blue background"
PLAN = {
    "edit": "auto",
    "cross_steps": 0.8,
    "self_steps": 0.4,
    "self_attention": "replace",
    "word_windows": "",
    "weights": "",
    "weights_act": "in the cross window",
    "blend_words": "",
    "keep_words": "",
    "blend_threshold": 0.3,
    "blend_start": 0.2,
    "blend_layers": "auto",
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(prompt="NullText_Prompt", ckpt="nulltext_demo.safetensors", **extra):
    """Checkpoint 1, source prompt 2, edited prompt 3, empty prompt 4, empty latent 5."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=ckpt),
        "2": node(prompt, clip=["1", 1], text=SOURCE),
        "3": node("NullText_Prompt", clip=["1", 1], text=EDIT),
        "4": node("NullText_Prompt", clip=["1", 1], text=""),
        "5": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        **extra,
    }


def sampled(model, positive=("2", 0), steps=4, key=20, cfg=5.0):
    inputs = {"seed": 3, "steps": steps, "cfg": cfg, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    made = node("KSampler", model=model, positive=list(positive), negative=["4", 0], latent_image=["5", 0], **inputs)
    return {str(key): made, **shown([str(key), 0], key + 1)}


def shown(latent, key):
    return {
        str(key): node("VAEDecode", samples=latent, vae=["1", 2]),
        str(key + 1): node("PreviewImage", images=[str(key), 0]),
    }


def reweight(weights, **inputs):
    values = {"model": ["1", 0], "positive": ["2", 0], "start_percent": 0.0, "end_percent": 1.0, **inputs}
    return node("NullText_AttentionReweight", weights=weights, **values)


def p2p(steps=4, **inputs):
    values = {"model": ["1", 0], "edited": ["3", 0], "negative": ["4", 0], "cfg": 5.0, "seed": 3, "steps": steps}
    return node("NullText_PromptToPrompt", scheduler="normal", **{**values, **PLAN, "source": ["2", 0], **inputs})


def pixels(result, key, index=0):
    picture = result.pictures[str(key)][index].convert("RGB")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int().view(picture.height, -1, 3)


def test_reweight_by_one_and_a_word_turned_up(comfy):
    flow = graph(**{"10": reweight("red: 1"), "11": reweight("red: 4, striped: -1")})
    flow |= {**sampled(["1", 0]), **sampled(["10", 0], key=30), **sampled(["11", 0], key=40)}
    result = comfy.run(flow).check()
    assert torch.equal(pixels(result, 22), pixels(result, 32))
    assert not torch.equal(pixels(result, 22), pixels(result, 42))
    assert any("goes through as it is" in text for text in result.texts)


def test_equal_prompts_give_the_source_and_an_edit_does_not(comfy):
    flow = graph(**{"10": p2p(edited=["2", 0], latent=["5", 0]), "11": p2p(latent=["5", 0])})
    flow |= {**shown(["10", 0], 20), **shown(["10", 1], 22), **shown(["11", 0], 24), **shown(["11", 1], 26)}
    result = comfy.run(flow).check()
    assert torch.equal(pixels(result, 21), pixels(result, 23))
    assert not torch.equal(pixels(result, 25), pixels(result, 27))
    assert (pixels(result, 23) - pixels(result, 27)).abs().max() <= 2
    assert any("16 network rows" in text for text in result.texts)


def saved(comfy, result, key):
    """The samples that a SaveLatent wrote."""
    where = result.outputs[key]["latents"][0]
    return load_file(comfy.tree / "output" / where["subfolder"] / where["filename"])["latent_tensor"]


def test_the_guider_under_the_core_sampler_is_the_all_in_one_node(comfy):
    options = {"blend_words": "circle", "weights": "green: 2"}
    guider = node(
        "NullText_PromptToPromptGuider",
        **{**PLAN, **options, "model": ["1", 0], "edited": ["3", 0], "negative": ["4", 0], "source": ["2", 0]},
        cfg=5.0,
        keep_source=True,
    )
    flow = graph(
        **{
            "10": p2p(latent=["5", 0], **options),
            "11": guider,
            "12": node("RandomNoise", noise_seed=3),
            "13": node("KSamplerSelect", sampler_name="euler"),
            "14": node("BasicScheduler", model=["1", 0], scheduler="normal", steps=4, denoise=1.0),
            "15": node(
                "SamplerCustomAdvanced",
                noise=["12", 0],
                guider=["11", 0],
                sampler=["13", 0],
                sigmas=["14", 0],
                latent_image=["5", 0],
            ),
            "20": node("SaveLatent", samples=["10", 0], filename_prefix="edit"),
            "21": node("SaveLatent", samples=["10", 1], filename_prefix="source"),
            "22": node("SaveLatent", samples=["15", 0], filename_prefix="both"),
        }
    )
    result = comfy.run(flow).check()
    edit, source, both = (saved(comfy, result, key) for key in ("20", "21", "22"))
    assert both.shape == (2, *edit.shape[1:])
    assert not torch.equal(edit, source)
    assert torch.equal(both, torch.cat([source, edit]))


def inverted(steps=4, **inputs):
    values = {"positive": ["2", 0], "pivot": "DDIM", "scheduler": "normal", "cfg": 1.0, "iterations": 5, "seed": 0}
    return {
        "6": node("LoadImage", image="demo_scene.png"),
        "7": node("VAEEncode", pixels=["6", 0], vae=["1", 2]),
        "8": node(
            "NullText_InvertImage",
            model=["1", 0],
            latent=["7", 0],
            steps=steps,
            use_cache=False,
            **{**values, **inputs},
        ),
    }


def test_a_real_picture_in_three_rows_a_step(comfy):
    empty = p2p(inversion=["8", 0], blend_words="circle", blend_threshold=1.0)
    flow = graph(**inverted(), **{"10": p2p(inversion=["8", 0]), "11": empty})
    flow |= {**shown(["10", 0], 20), **shown(["11", 0], 22), **shown(["7", 0], 24)}
    result = comfy.run(flow).check()
    assert any("12 network rows" in text for text in result.texts)
    assert (pixels(result, 23) - pixels(result, 25)).abs().max() <= 2  # a blend that lets nothing through
    assert (pixels(result, 21) - pixels(result, 25)).abs().max() > 8


def test_maps_feed_other_nodes(comfy):
    flow = graph(
        **{
            "10": node(
                "NullText_AttentionRecord",
                model=["1", 0],
                positive=["2", 0],
                words="circle, striped",
                layers="auto",
                start_percent=0.0,
                end_percent=1.0,
            ),
            **sampled(["10", 0]),
            "30": node(
                "NullText_AttentionMap",
                maps=["10", 1],
                image=["21", 0],
                words="",
                threshold=0.4,
                blur=2.0,
                opacity=0.6,
                strip_steps=8,
            ),
            "31": node("PreviewImage", images=["30", 0]),
            "32": node("MaskToImage", mask=["30", 1]),
            "33": node("PreviewImage", images=["32", 0]),
            "34": node("PreviewImage", images=["30", 2]),
        }
    )
    result = comfy.run(flow).check()
    assert [len(result.pictures[key]) for key in ("31", "33", "34")] == [2, 2, 2]
    assert result.pictures["34"][0].size == (4 * 128, 128)
    assert any("mean of 4 steps" in text for text in result.texts)
    flow["20"]["inputs"]["seed"] = 4  # another run on the same model: its maps start anew
    again = comfy.run(flow).check()
    assert any("mean of 4 steps" in text for text in again.texts)
    assert not torch.equal(pixels(result, 31), pixels(again, 31))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"weights": "fox: 2"}, ("fox", "its words are", "green")),
        ({"blend_words": "fox"}, ("fox", "none of the prompts")),
        ({"word_windows": "green: 2"}, ("window", "within 0 and 1")),
        ({"blend_words": "circle", "blend_layers": "front"}, ("front", "names no layers")),
        ({"latent": None}, ("wire an empty latent",)),
    ],
)
def test_bad_fields_are_refused(comfy, inputs, words):
    values = {"latent": ["5", 0], **inputs}
    made = p2p(steps=1000, **{key: value for key, value in values.items() if value is not None})
    comfy.refuses(graph(**{"10": made, **shown(["10", 0], 20)}), *words, seconds=60)


def test_prompts_without_words_are_refused(comfy):
    flow = graph("CLIPTextEncode", **{"10": p2p(latent=["5", 0]), **shown(["10", 0], 20)})
    comfy.refuses(flow, "NullText_Prompt", "Prompt (with words)")
    flow = graph("CLIPTextEncode", **{"10": reweight("red: 2"), **sampled(["10", 0])})
    comfy.refuses(flow, "NullText_Prompt")


def test_edit_friendly_noise_inverted_at_one_cfg_and_edited_at_another(comfy):
    noise = inverted(pivot="edit-friendly DDPM", cfg=3.5, negative=["4", 0])
    own, edited = p2p(inversion=["8", 0], edited=["2", 0], cfg=0.0), p2p(inversion=["8", 0], cfg=9.0)
    flow = graph(
        **noise, **{"10": own, "11": edited}, **shown(["10", 0], 20), **shown(["10", 1], 22), **shown(["11", 0], 24)
    )
    result = comfy.run(flow).check()
    assert int((pixels(result, 21) - pixels(result, 23)).abs().max()) <= 2  # its own words at its own cfg
    assert not torch.equal(pixels(result, 25), pixels(result, 23))
    assert any("at cfg 3.5" in text for text in result.texts) and any("at cfg 9" in text for text in result.texts)


def test_a_joint_attention_model_is_refused(comfy):
    folder = comfy.tree / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.random_flow_checkpoint(folder / "joint.safetensors", context=128)
    flow = graph(
        **{"6": node("CheckpointLoaderSimple", ckpt_name="joint.safetensors"), "10": reweight("red: 2", model=["6", 0])}
    )
    flow |= sampled(["10", 0])
    comfy.refuses(flow, "joint-attention models such as SD3 and Flux")


def test_an_interrupt_leaves_the_model_as_it_was(comfy):
    plain = comfy.run(graph(**sampled(["1", 0]))).check()
    flow = graph(**{"10": p2p(steps=400, latent=["5", 0]), **shown(["10", 0], 30)})
    seen = threading.Event()

    def stop():
        if seen.wait(60):
            time.sleep(0.3)
            comfy.interrupt()

    thread = threading.Thread(target=stop)
    thread.start()
    result = comfy.run(flow, on_progress=lambda key, i, n: seen.set())
    thread.join()
    assert not result.pictures.get("31")
    assert seen.is_set()
    again = comfy.run(graph(**sampled(["1", 0]))).check()
    assert "20" not in again.cached, "the picture from before was shown again"
    assert torch.equal(pixels(again, 22), pixels(plain, 22))
