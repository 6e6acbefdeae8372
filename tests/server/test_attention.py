"""Attention edits through a real server: identities in the pictures, maps that feed other nodes, refusals,
interrupts."""

import pytest
import torch
from nulltext.tests.server.graph import far, pixels
from nulltext.tests.stand_ins import random_flow_checkpoint

SOURCE = "a photo of a large red circle in the middle, striped blue background"
EDIT = "a photo of a large green circle in the middle, striped blue background"


@pytest.fixture
def graph(comfy):
    """Source, edited and empty prompt wired, the first two by the node that keeps words; an empty latent."""
    graph = comfy.graph()
    graph.source, graph.target, graph.nothing = (graph.prompt(t, words=True) for t in (SOURCE, EDIT, ""))
    graph.latent = graph.empty()
    graph.wire(positive=graph.source, edited=graph.target, negative=graph.nothing, latent_image=graph.latent)
    return graph


@pytest.fixture
def wordless(graph):
    """The same, and the source prompt is one of core's."""
    graph.source = graph.prompt(SOURCE)
    return graph.wire(positive=graph.source)


def p2p(graph, kind="NullText_PromptToPrompt", **inputs):
    values = {"cfg": 5.0, "source": graph.source, "blend_threshold": 0.3, "blend_start": 0.2}
    if kind == "NullText_PromptToPrompt":
        values |= {"seed": 3, "steps": 4, "scheduler": "normal"}
    return graph.add(kind, **{**values, **inputs})


def reweight(graph, weights, **inputs):
    return graph.add("NullText_AttentionReweight", weights=weights, **inputs)


def shown(graph, *latents):
    return [graph.picture_of(latent) for latent in latents]


def test_reweight_by_one_and_a_word_turned_up(comfy, graph):
    models = graph.model, reweight(graph, "red: 1"), reweight(graph, "red: 4, striped: -1")
    nodes = shown(graph, *(graph.draw(model=model) for model in models))
    result = comfy.run(graph).check()
    plain, same, changed = (pixels(result, node) for node in nodes)
    assert torch.equal(plain, same) and not torch.equal(plain, changed)
    assert any("goes through as it is" in text for text in result.texts)


def test_equal_prompts_give_the_source_and_an_edit_does_not(comfy, graph):
    same, other = p2p(graph, edited=graph.source, latent=graph.latent), p2p(graph, latent=graph.latent)
    nodes = shown(graph, same, same[1], other, other[1])
    result = comfy.run(graph).check()
    same, source, edit, kept = (pixels(result, node) for node in nodes)
    assert torch.equal(same, source) and not torch.equal(edit, kept)
    assert far(source, kept) <= 2
    assert any("16 network rows" in text for text in result.texts)


def test_the_guider_under_the_core_sampler_is_the_all_in_one_node(comfy, graph):
    options = {"blend_words": "circle", "weights": "green: 2"}
    whole = p2p(graph, latent=graph.latent, **options)
    guider = p2p(graph, "NullText_PromptToPromptGuider", keep_source=True, **options)
    sigmas = graph.add("BasicScheduler", scheduler="normal", steps=4, denoise=1.0)
    both = graph.sample(graph.add("RandomNoise", noise_seed=3), guider, "euler", sigmas, graph.latent)
    saved = [graph.save(latent) for latent in (whole, whole[1], both)]
    result = comfy.run(graph).check()
    edit, source, both = (comfy.latent(result, node) for node in saved)
    assert both.shape == (2, *edit.shape[1:])
    assert not torch.equal(edit, source)
    assert torch.equal(both, torch.cat([source, edit]))


def inverted(graph, pivot="DDIM", cfg=1.0, **inputs):
    graph.real = graph.encode(graph.picture("demo_scene.png"))
    values = {"steps": 4, "scheduler": "normal", "use_cache": False, **inputs}
    return graph.add("NullText_InvertImage", latent=graph.real, pivot=pivot, cfg=cfg, **values)


def test_a_real_picture_in_three_rows_a_step(comfy, graph):
    inversion = inverted(graph)
    edits = (
        p2p(graph, inversion=inversion, **more) for more in ({}, {"blend_words": "circle", "blend_threshold": 1.0})
    )
    nodes = shown(graph, *edits, graph.real)
    result = comfy.run(graph).check()
    edit, empty, picture = (pixels(result, node) for node in nodes)
    assert any("12 network rows" in text for text in result.texts)
    assert far(empty, picture) <= 2  # a blend that lets nothing through
    assert far(edit, picture) > 8


def test_maps_feed_other_nodes(comfy, graph):
    recorded = graph.add("NullText_AttentionRecord", words="circle, striped")
    drawn = graph.draw(model=recorded)
    maps = graph.add("NullText_AttentionMap", maps=recorded[1], image=graph.decode(drawn))
    nodes = [graph.show(images) for images in (maps, graph.add("MaskToImage", mask=maps[1]), maps[2])]
    result = comfy.run(graph).check()
    assert [len(pixels(result, node)) for node in nodes] == [2, 2, 2]
    assert pixels(result, nodes[2]).shape[1:3] == (128, 4 * 128)
    assert any("mean of 4 steps" in text for text in result.texts)
    graph[drawn.key]["inputs"]["seed"] = 4  # another run on the same model: its maps start anew
    again = comfy.run(graph).check()
    assert any("mean of 4 steps" in text for text in again.texts)
    assert not torch.equal(pixels(result, nodes[0]), pixels(again, nodes[0]))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"weights": "fox: 2"}, ("fox", "its words are", "green")),
        ({"keep_words": "fox"}, ("fox", "none of the prompts")),
        ({"blend_words": "red, circle", "keep_words": "circle"}, ("circle", "blend_words and in keep_words")),
        ({"word_windows": "green: 2"}, ("window", "within 0 and 1")),
        ({"blend_words": "circle", "blend_layers": "front"}, ("front", "names no layers")),
        ({"latent": None}, ("wire an empty latent",)),
    ],
)
def test_bad_fields_are_refused(comfy, graph, inputs, words):
    shown(graph, p2p(graph, steps=1000, **{"latent": graph.latent, **inputs}))
    comfy.refuses(graph, *words, seconds=60)


@pytest.mark.parametrize("node", ["prompt to prompt", "re-weight"])
def test_prompts_without_words_are_refused(comfy, wordless, node):
    if node == "re-weight":
        shown(wordless, wordless.draw(model=reweight(wordless, "red: 2")))
    else:
        shown(wordless, p2p(wordless, latent=wordless.latent))
    comfy.refuses(wordless, "NullText_Prompt", "Prompt (with words)")


def test_edit_friendly_noise_inverted_at_one_cfg_and_edited_at_another(comfy, graph):
    inversion = inverted(graph, "edit-friendly DDPM", 3.5, negative=graph.nothing)
    own, edited = (
        p2p(graph, inversion=inversion, edited=graph.source, cfg=0.0),
        p2p(graph, inversion=inversion, cfg=9.0),
    )
    nodes = shown(graph, own, own[1], edited)
    result = comfy.run(graph).check()
    own, source, edited = (pixels(result, node) for node in nodes)
    assert far(own, source) <= 2  # its own words at its own cfg
    assert not torch.equal(edited, source)
    assert any("at cfg 3.5" in text for text in result.texts) and any("at cfg 9" in text for text in result.texts)


def test_joint_attention_is_edited_or_refused(comfy, graph, temporary_file):
    """A tiny SD3 file: a word turned up by 1 is the plain run, by 6 it is not, and equal prompts give the source;
    the 2024 engine says what it can't do."""
    random_flow_checkpoint(temporary_file("models/checkpoints/joint.safetensors"))
    model = graph.add("CheckpointLoaderSimple", ckpt_name="joint.safetensors")
    empty = graph.empty(kind="EmptySD3LatentImage")
    models = model, reweight(graph, "red: 1", model=model), reweight(graph, "red: 6", model=model)
    saved = [graph.save(graph.draw(model=m, latent_image=empty, steps=2)) for m in models]
    equal = p2p(graph, model=model, latent=empty, edited=graph.source, steps=2)
    saved += [graph.save(equal), graph.save(equal[1])]
    if comfy.engine == "embedded":
        comfy.refuses(graph, "Lumina 2 and Z-Image closed", "SD1, SD2 and SDXL")
        return
    result = comfy.run(graph).check()
    plain, same, changed, edit, source = (comfy.latent(result, node) for node in saved)
    assert torch.equal(plain, same) and far(plain, changed) > 1e-3
    assert torch.equal(edit, source) and edit.shape == plain.shape


def test_an_interrupt_leaves_the_model_as_it_was(comfy, graph):
    plain = graph.draw()
    (node,) = shown(graph, plain)
    before = pixels(comfy.run(graph).check(), node)
    long = comfy.graph()
    prompts = [long.prompt(text, words=True) for text in (SOURCE, EDIT, "")]
    long.wire(**dict(zip(("source", "edited", "negative"), prompts)))
    made = long.add("NullText_PromptToPrompt", steps=400, cfg=5.0, latent=long.empty(), source=prompts[0])
    shown(long, made)
    assert not comfy.interrupted(long, made).pictures
    anew = comfy.graph()  # newer engines keep what was made before: other words, the same tokens
    anew.wire(positive=anew.prompt(SOURCE + " ", words=True), negative=anew.prompt(" ", words=True))
    plain = anew.draw(latent_image=anew.empty())
    (node,) = shown(anew, plain)
    again = comfy.run(anew).check()
    assert plain.key not in again.cached, "the picture from before was shown again"
    assert torch.equal(pixels(again, node), before)
