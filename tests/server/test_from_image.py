"""Sampling from a picture on a real server: the shipped workflows, identities over HTTP, refusals, interrupt."""

import time

import pytest
import torch
from nulltext.tests.server.graph import pixels

WORKFLOWS = [
    *("disturbance", "disturbance_picture", "repaint", "repaint_sampler"),
    *("ilvr", "sdedit", "diffedit", "blended_diffusion"),
]
QUICK = {"steps_above": 2, "steps_below": 3, "levels": 3, "resamples": 2, "maps": 1, "particles": 2}
QUICK |= {"strip": "4@0.5", "more_levels": "0.6"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_shipped_workflow(comfy, name):
    result = comfy.run(comfy.workflow(name, steps=3, **QUICK)).check()
    assert result.images and all(picture.size[0] >= 128 for picture in result.images)
    assert result.texts and all(len(text) > 10 for text in result.texts)


@pytest.fixture
def graph(comfy):
    """A picture encoded, its mask, two prompts; an empty latent and an empty mask for what needs them."""
    graph = comfy.graph()
    graph.picture_node = graph.picture("demo_scene_masked.png")
    graph.latent, graph.nothing = graph.encode(graph.picture_node), graph.empty()
    graph.no_mask = graph.add("SolidMask", value=0.0, width=128, height=128)
    positive, negative = graph.prompt("a red circle"), graph.prompt()
    more = {"latent": graph.latent, "mask": graph.picture_node[1], "source": positive, "target": negative}
    return graph.wire(positive=positive, negative=negative, latent_image=graph.nothing, **more)


COMMON = {"seed": 1, "cfg": 3.0, "steps": 4}


def repaint(graph, **inputs):
    values = {"seed": 1, "schedule": "custom", "levels": 4, "jump": 1, "resamples": 3, "low": 0.0, "high": 50.0}
    values |= {"noise": "renewed (ours, for few levels)", "mode": "resampling (RePaint)", "grow": 1}
    return graph.add("NullText_RePaintSampler", **{**values, **inputs})


def blend(graph, **inputs):
    return graph.add("NullText_BlendedDiffusion", **{**COMMON, "t0": 0.9, "start": "noise", "shrink": 2, **inputs})


def sdedit(graph, **inputs):
    return graph.add("NullText_SDEdit", **{**COMMON, "t0": 0.5, "more_levels": "", **inputs})


def cartoon(graph, **inputs):
    values = {"seed": 1, "cfg": 10.0, "look": "picture (Image-D)", "denoise": 0.3, "steps_above": 2, "steps_below": 4}
    return graph.add("NullText_DisturbanceSampler", **{**values, **inputs})


def ilvr(graph, **inputs):
    return graph.add("NullText_ILVRSampler", **{**COMMON, "reference": graph.latent, "strip": "", **inputs})


def diffedit_mask(graph, **inputs):
    return graph.add("NullText_DiffEditMask", **{"maps": 1, "strength": 0.5, **inputs})


@pytest.mark.parametrize(
    "make",
    [
        lambda g: repaint(g, mask=g.no_mask),
        lambda g: blend(g, mask=g.no_mask),
        lambda g: blend(g, t0=0.0),
        lambda g: sdedit(g, t0=0.0),
        lambda g: sdedit(g, mask=g.no_mask),
        lambda g: cartoon(g, denoise=0.0),
    ],
)
def test_nothing_to_change_gives_the_untouched_picture_and_a_notice(comfy, graph, make):
    nodes = [graph.picture_of(latent) for latent in (make(graph), graph.latent)]
    result = comfy.run(graph).check()
    assert torch.equal(*(pixels(result, node) for node in nodes))
    assert any(text.startswith("Notice") for text in result.texts)


@pytest.mark.parametrize("strength, start, end", [(0.0, 0.7, 1.0), (1.0, 0.7, 0.7)])
def test_disturbance_that_is_off_is_the_ordinary_run(comfy, graph, strength, start, end):
    inputs = {"look": "rollback (Back-D)", "strength": strength, "start_percent": start, "end_percent": end, "cfg": 6.0}
    off = graph.add("NullText_Disturbance", **inputs)
    nodes = [graph.picture_of(graph.draw(model=model, cfg=6.0)) for model in (off, graph.model)]
    result = comfy.run(graph).check()
    assert torch.equal(*(pixels(result, node) for node in nodes))
    assert any(text.startswith("Notice") for text in result.texts)


def test_a_fill_changes_the_hole_only(comfy, graph):
    edited, original = graph.decode(repaint(graph)), graph.picture_node
    pasted = graph.add("NullText_PixelComposite", original=original, edited=edited, mask=original[1], feather=4)
    nodes = graph.show(pasted), graph.show(original)
    result = comfy.run(graph).check()
    filled, picture = (pixels(result, node)[0] for node in nodes)
    rows, columns = (filled != picture).any(2).nonzero(as_tuple=True)
    assert len(rows) and rows.min() > 8 and columns.min() > 8
    assert any("network calls over 4 levels" in text for text in result.texts)


def test_progress_counts_network_calls(comfy, graph):
    seen, made = [], repaint(graph, seed=77)
    graph.picture_of(made)
    result = comfy.run(graph, lambda node, i, total: seen.append((node, i, total))).check()
    calls = int(next(text for text in result.texts if "network calls over" in text).split()[0])
    assert [(i, total) for node, i, total in seen if node == made.key][-1] == (calls, calls)


def drawn(graph, **inputs):
    held = graph.add("NullText_ILVR", reference=graph.latent, **inputs)
    return graph.draw(model=held, latent_image=graph.empty(width=64))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda g: repaint(g, latent=g.nothing), "latent is empty"),
        (lambda g: blend(g, latent=g.nothing), "latent is empty"),
        (lambda g: sdedit(g, latent=g.nothing), "latent is empty"),
        (lambda g: sdedit(g, more_levels="0.2 0.4"), "noise levels are numbers from 0 to 1"),
        (lambda g: cartoon(g, latent=g.nothing), "latent is empty"),
        (lambda g: ilvr(g, reference=g.nothing), "latent is empty"),
        (lambda g: ilvr(g, strip="4"), "factor@stop"),
        (drawn, "resize the reference"),
    ],
)
def test_refusals(comfy, graph, make, words):
    graph.picture_of(make(graph))
    comfy.refuses(graph, words, seconds=20)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda g: diffedit_mask(g, latent=g.nothing), "latent is empty"),
        (lambda g: diffedit_mask(g, strength=0.0), "strength 0"),
    ],
)
def test_diffedit_refusals(comfy, graph, make, words):
    graph.show(make(graph)[1])
    comfy.refuses(graph, words)


def test_interrupt_ends_a_long_fill_and_the_next_prompt_works(comfy, graph):
    made = repaint(graph, levels=40, resamples=200, seed=int(time.time()))
    graph.picture_of(made)
    comfy.interrupted(graph, made)
    graph[made.key]["inputs"] |= {"levels": 4, "resamples": 3}
    comfy.run(graph).check()
