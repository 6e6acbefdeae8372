"""Inversion, correction and editing through a real server: results, refusals, and what an interrupt leaves."""

import pytest
import torch
from nulltext.tests.server.graph import far, pixels
from nulltext.tests.stand_ins import controlnet, lora, random_flow_checkpoint
from safetensors.torch import load_file, save_file

SOURCE = "a photo of a large red circle in the middle, striped blue background"
EDIT = "a photo of a large green circle in the middle, striped blue background"


@pytest.fixture
def start(comfy):
    """start() -> a graph whose picture is encoded, with the source prompt, the edited one and the empty one wired."""

    def start(text=SOURCE):
        graph = comfy.graph()
        graph.source, graph.target, graph.nothing = (graph.prompt(t, words=True) for t in (text, EDIT, ""))
        graph.latent = graph.encode(graph.picture("demo_scene.png"))
        return graph.wire(
            positive=graph.source, source=graph.source, target=graph.target, negative=graph.nothing, latent=graph.latent
        )

    return start


@pytest.fixture
def graph(start):
    return start()


def invert(graph, pivot="exact pair", steps=4, cfg=1.0, **inputs):
    values = {"scheduler": "normal", "use_cache": False, **inputs}
    return graph.add("NullText_InvertImage", pivot=pivot, steps=steps, cfg=cfg, **values)


def inverter(graph, correction="null-text", **inputs):
    values = {"steps": 4, "scheduler": "normal", "cfg": 7.5, "inner_steps": 3, "pivot": "DDIM", "use_cache": False}
    return graph.add("NullText_Inverter", correction=correction, **{**values, **inputs})


def sampler(graph, inversion, **inputs):
    return graph.add("NullText_Sampler", inversion=inversion, **{"strength": 1.0, **inputs})


def parts(graph, inversion, sampler=None, latent=None, **inputs):
    """Core's sampling node with a sampler's name, or None for that of Inversion Parts."""
    made = graph.add("NullText_InversionParts", inversion=inversion, strength=1.0)
    guider = graph.add("NullText_Guider", inversion=inversion, **inputs)
    return graph.sample(made[0], guider, sampler or made[3], made[1], latent or made[2])


@pytest.mark.parametrize(("pivot", "cfg"), [("exact pair", 1.0), ("exact pair", 5.0), ("edit-friendly DDPM", 3.5)])
def test_exact_pivots_give_the_picture_back(comfy, graph, pivot, cfg):
    made = invert(graph, pivot, cfg=cfg, negative=graph.nothing)
    back, picture = graph.picture_of(made[1]), graph.picture_of(graph.latent)
    result = comfy.run(graph).check()
    assert far(pixels(result, back), pixels(result, picture)) <= 2
    report = "\n".join(result.texts)
    assert "latent rms error" in report and "network calls" in report and "noise quality" in report


def test_null_text_road(comfy, graph):
    """Optimise, reconstruct from the inversion, edit; core's SamplerCustomAdvanced with Parts and Guider agrees."""
    made = inverter(graph, inner_steps=4)
    edited = sampler(graph, made, positive=graph.target, strength=0.75)
    latents = made[1], sampler(graph, made), parts(graph, made, "euler"), parts(graph, made), edited
    shown = [graph.picture_of(latent) for latent in latents]
    result = comfy.run(graph).check()
    there, own, core, ours, edited = (pixels(result, node) for node in shown)
    assert max(far(own, other) for other in (there, core, ours)) <= 2
    assert far(own, edited) > 8
    assert any("forwards" in text and "backwards" in text for text in result.texts)


def test_a_batch_of_images(comfy, graph):
    """Two images through null-text at once."""
    two = graph.add("RepeatLatentBatch", samples=graph.latent, amount=2)
    shown = graph.picture_of(inverter(graph, latent=two)[1])
    first, second = pixels(comfy.run(graph).check(), shown)
    assert far(first, second) <= 1


@pytest.mark.parametrize("correction", ["negative prompt", "direct overwrite"])
def test_negative_prompt_and_overwrite(comfy, graph, correction):
    made = inverter(graph, correction)
    latents = made[1], sampler(graph, made, negative=graph.nothing), graph.latent
    shown = [graph.picture_of(latent) for latent in latents]
    result = comfy.run(graph).check()
    there, back, picture = (pixels(result, node) for node in shown)
    assert far(there, back) <= 2
    if correction == "direct overwrite":
        assert far(there, picture) <= 1
        assert any("Nothing to change" in text for text in result.texts)


@pytest.mark.parametrize("method", ["FlowEdit", "InfEdit"])
def test_direct_edit(comfy, start, method):
    def edit(asks=False, **inputs):
        graph = start()
        inputs = {"target": graph.source, "target_cfg": 1.5} if asks else inputs
        values = {"steps": 4, "scheduler": "normal", "strength": 0.75, "source_cfg": 1.5, "target_cfg": 5.0, "seed": 1}
        values |= {"average": 1, "plain_steps": 0, "negative": graph.nothing, "method": method, **inputs}
        shown = graph.picture_of(graph.add("NullText_DirectEdit", **values)), graph.picture_of(graph.latent)
        result = comfy.run(graph).check()
        return far(*(pixels(result, node) for node in shown)), "\n".join(result.texts)

    change, said = edit(asks=True)
    assert change == 0 and "ask for the same" in said
    change, said = edit(strength=0.0)
    assert change == 0 and "samples no step" in said
    change, said = edit()
    assert change > 8 and "network calls" in said


def test_one_inversion_many_edits(comfy, graph):
    inversion = invert(graph, cfg=2.0, negative=graph.nothing)
    prompts = f"{EDIT}\n\n{SOURCE.replace('circle', 'star')}"
    grid = graph.add(
        "NullText_EditGrid", inversion=inversion, strengths="0, 0.5, 1", prompts=prompts, negative=graph.nothing
    )
    sheet, edits = graph.show(grid), graph.show(grid[1])
    result = comfy.run(graph).check()
    ((height, width, _),) = (picture.shape for picture in pixels(result, sheet))
    assert len(pixels(result, edits)) == 6 and width == 4 * 128 and height > 2 * 128
    assert any("2 prompts x 3 strengths x 1 image" in text for text in result.texts)


def test_save_load_and_use(comfy, start):
    graph = start()
    made = invert(graph)
    graph.add("NullText_SaveInversion", inversion=made, name="inversions/t", overwrite=True)
    shown = graph.picture_of(made[1])
    first = pixels(comfy.run(graph).check(), shown)
    path = comfy.tree / "output" / "inversions" / "t.safetensors"
    assert path.is_file() and "trajectory" in load_file(path)
    graph = start()
    loaded = graph.add("NullText_LoadInversion", name="inversions/t", model=graph.model)
    shown = graph.picture_of(sampler(graph, loaded))
    again = comfy.run(graph).check()
    assert far(first, pixels(again, shown)) <= 2
    assert any(SOURCE in text for text in again.texts)
    path.unlink()


def test_inversions_are_found_again(comfy, graph):
    made = inverter(graph, use_cache=True, inner_steps=2)
    shown = graph.picture_of(made[1])
    first = pixels(comfy.run(graph).check(), shown)
    comfy.free()
    # no part of a DDIM inversion, but the engine's own cache can't answer now
    graph[made.key]["inputs"]["iterations"] = 9
    again = comfy.run(graph).check()
    assert any("found in the cache" in text for text in again.texts)
    assert far(first, pixels(again, shown)) <= 2
    folder = comfy.tree / "user" / "nulltext" / "inversions"
    assert any(folder.glob("*.safetensors"))


def optimised(graph):
    inputs = {"cfg": 7.5, "inner_steps": 2, "use_cache": False}
    return graph.add("NullText_Optimise", inversion=invert(graph), **inputs)


def loaded(graph, name):
    return sampler(graph, graph.add("NullText_LoadInversion", name=name))


def nonsense(graph):
    return graph.add("NullText_EditGrid", inversion=invert(graph), prompts="x", strengths="much")


#: case: (what makes the last node, the place of its LATENT or IMAGE, words of the refusal)
BAD = {
    "one step": (lambda g: invert(g, steps=1), 1, ("at least 2 steps",)),
    "empty prompt": (lambda g: invert(g, positive=g.prompt("  ", words=True)), 1, ("source prompt is empty",)),
    "cfg without a null branch": (lambda g: invert(g, cfg=3.0), 1, ("negative",)),
    "cfg 1 for null-text": (lambda g: inverter(g, cfg=1.0), 1, ("cfg 1", "no null branch")),
    "an exact pair has nothing to optimise": (optimised, 1, ("exact pair",)),
    "empty latent": (lambda g: invert(g, latent=g.empty()), 1, ("latent is empty",)),
    "a core sampler": (lambda g: parts(g, invert(g, "DDIM"), "euler_ancestral"), 0, ("euler_ancestral",)),
    "another shape": (lambda g: parts(g, invert(g, "DDIM"), latent=g.empty(width=64)), 0, ("shape",)),
    "a path with ..": (lambda g: loaded(g, "../../secrets"), 0, ("..",)),
    "no such file": (lambda g: loaded(g, "inversions/none"), 0, ("no inversion file",)),
    "nonsense strengths": (nonsense, None, ("numbers from 0 to 1",)),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(comfy, graph, case):
    make, slot, words = BAD[case]
    last = make(graph)
    graph.show(last) if slot is None else graph.picture_of(last[slot])
    comfy.refuses(graph, *words)


def test_foreign_and_truncated_files(comfy, start, temporary_file):
    graph = start()
    graph.add("NullText_SaveInversion", inversion=invert(graph), name="whole", overwrite=True)
    assert comfy.run(graph).check().texts
    content = (comfy.tree / "output" / "whole.safetensors").read_bytes()
    temporary_file("output/cut.safetensors", content[: len(content) // 2])
    save_file({"a": torch.zeros(1)}, temporary_file("input/foreign.safetensors"))
    for name, words in (("cut", "cut"), ("foreign", "not an inversion")):
        graph = start()
        graph.picture_of(loaded(graph, name))
        comfy.refuses(graph, words)


@pytest.mark.parametrize("nothing, words", [("strength 0", "samples no step"), ("empty mask", "mask is empty")])
def test_strength_zero_and_empty_mask_return_the_source(comfy, graph, nothing, words):
    mask = graph.add("SolidMask", value=0.0, width=128, height=128)
    inputs = {"strength": 0.0} if nothing == "strength 0" else {"mask": mask}
    edited = sampler(graph, invert(graph), positive=graph.target, **inputs)
    shown = graph.picture_of(edited), graph.picture_of(graph.latent)
    result = comfy.run(graph).check()
    assert far(*(pixels(result, node) for node in shown)) <= 1
    assert any("Nothing to change" in text and words in text for text in result.texts)


def test_interrupt_in_an_inner_loop_leaves_the_model_as_it_was(comfy, start):
    """Stopped in the middle of an optimisation; the same seed then draws the same picture as before."""

    def draw(again=False):
        graph = comfy.graph()
        if again:  # a node that is not needed moves the ids on: the engine's cache can't answer, the model stays
            graph.add("EmptyImage")
        drawn = graph.draw(positive=graph.prompt(EDIT), negative=graph.prompt(), latent_image=graph.empty(), steps=3)
        saved = graph.save(drawn)
        result = comfy.run(graph).check()
        assert drawn.key not in result.cached
        return comfy.latent(result, saved)

    before = draw()
    long = start()
    made = inverter(long, steps=50, inner_steps=50, tolerance=0.0)
    long.picture_of(made[1])
    comfy.interrupted(long, made, ticks=60, seconds=100)
    assert torch.equal(before, draw(again=True))


def test_lora_and_controlnet_compose_with_null_text(comfy, start, temporary_file):
    """Gradients pass through both; what an inversion can't keep is asked for; another LoRA strength is refused."""
    save_file(controlnet(comfy.unet, zero=False), temporary_file("models/controlnet/null_text.safetensors"))
    layer = lora("lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v", 128, 128)
    save_file(layer, temporary_file("models/loras/null_text.safetensors"))

    def flow(strength=0.5, control=True):
        """Inverted with both; sampled with this strength, with or without the ControlNet; (graph, inverted, back)"""
        graph = start()
        one, other = (
            graph.add("LoraLoaderModelOnly", lora_name="null_text.safetensors", strength_model=s)
            for s in (0.5, strength)
        )
        net = graph.add("ControlNetLoader", control_net_name="null_text.safetensors")
        more = {"conditioning": graph.source, "control_net": net, "image": graph.picture("demo_scene.png")}
        held = graph.add("ControlNetApply", strength=1.0, **more)
        made = inverter(graph, model=one, positive=held, inner_steps=4)
        back = graph.picture_of(sampler(graph, made, model=other, positive=held if control else None))
        return graph, made, back

    graph, made, back = flow()
    there = graph.picture_of(made[1])
    result = comfy.run(graph).check()
    assert far(pixels(result, there), pixels(result, back)) <= 2
    comfy.refuses(flow(strength=0.9)[0], "LoRA")
    comfy.refuses(flow(control=False)[0], "control")


@pytest.mark.parametrize("pivot", ["exact pair", "edit-friendly DDPM"])
def test_flow_models_from_sigma_one(comfy, graph, temporary_file, pivot):
    """A tiny SD3 with random weights: sigma 1 is where the engine's own scaling loses the latent."""
    random_flow_checkpoint(temporary_file("models/checkpoints/flow.safetensors"))
    graph.wire(model=graph.add("CheckpointLoaderSimple", ckpt_name="flow.safetensors"))
    drawn = graph.draw(latent_image=graph.empty(batch=2, kind="EmptySD3LatentImage"), steps=2, cfg=1.0)
    made = invert(graph, pivot, steps=5, latent=drawn)
    inputs = {"method": "FlowEdit", "steps": 4, "scheduler": "normal", "strength": 1.0, "source_cfg": 1.0}
    inputs |= {"target_cfg": 1.0, "average": 1, "plain_steps": 0, "seed": 1}
    direct = graph.add("NullText_DirectEdit", latent=drawn, **inputs)
    saved = [graph.save(latent) for latent in (drawn, made[1], sampler(graph, made), direct)]
    result = comfy.run(graph).check()
    source, there, back, changed = (comfy.latent(result, node) for node in saved)
    assert source.shape == (2, 16, 16, 16) and source.std() > 0.1
    scale = float(source.abs().max())
    assert max(far(there, source), far(back, source)) < 1e-3 * scale < far(changed, source)
