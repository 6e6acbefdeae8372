"""Nothing is computed that nobody reads: an inversion is walked back only where its reconstruction goes somewhere."""

import torch
from nulltext.tests.server.graph import Graph


def inverted(graph: Graph, **inputs):
    graph.wire(positive=graph.prompt("a red circle"), latent=graph.encode(graph.picture("demo_scene.png")))
    made = graph.add("NullText_InvertImage", steps=3, use_cache=False, **inputs)
    graph.add("NullText_SaveInversion", inversion=made, name="inversions/readers")
    return made


def said(result) -> str:
    return next(text for text in result.texts if text.startswith("Inverted with"))


def test_the_way_back_is_walked_once_its_output_is_wired(comfy):
    graph = comfy.graph()
    made = inverted(graph)
    alone = comfy.run(graph).check()
    assert "not walked back" in said(alone) and "network calls 3 (3 there, 0 back)" in said(alone)
    back, there = graph.save(made[1]), graph.save(graph.wires["latent"])
    wired = comfy.run(graph).check()
    assert made.key not in wired.cached and "network calls 6 (3 there, 3 back)" in said(wired)
    assert not torch.equal(comfy.latent(wired, back), comfy.latent(wired, there))


def test_a_wired_vae_draws_the_way_back(comfy):
    graph = comfy.graph()
    inverted(graph, vae=graph.vae)
    told = said(comfy.run(graph).check())
    assert "network calls 6 (3 there, 3 back)" in told and "PSNR" in told


def test_an_inversion_climbs_no_further_than_asked_and_gives_the_same_edit(comfy):
    """DiffEdit at depth 0.5 from an inversion of the whole way and from one of half of it."""
    graph = comfy.graph()
    graph.wire(positive=graph.prompt("a red circle"), negative=graph.prompt(), latent=graph.empty())
    graph.wire(latent=graph.encode(graph.picture("demo_scene.png")))
    graph.wire(mask=graph.add("SolidMask", value=1.0, width=128, height=128))
    whole, half = (graph.add("NullText_InvertImage", steps=4, use_cache=False, depth=depth) for depth in (1.0, 0.5))
    edits = [graph.save(graph.add("NullText_DiffEdit", inversion=made, depth=0.5)) for made in (whole, half)]
    result = comfy.run(graph).check()
    assert sum("network calls 2 (2 there, 0 back)" in text for text in result.texts) == 1
    assert torch.equal(*(comfy.latent(result, edit) for edit in edits))
    deeper = graph.save(graph.add("NullText_DiffEdit", inversion=half, depth=0.8))
    comfy.refuses(
        {key: node for key, node in graph.items() if key not in {e.key for e in edits}}, "climbed to depth 0.5"
    )
    assert deeper.key in graph
