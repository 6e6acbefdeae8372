"""The road itself: the pack loads in a real ComfyUI, a graph of core nodes runs, pictures and errors come back."""

import pytest
from nulltext.batch import client
from nulltext.demo import weights
from nulltext.tests.server.graph import Node
from websocket import ABNF


@pytest.fixture
def graph(comfy):
    graph = comfy.graph()
    graph.orange = graph.add("EmptyImage", width=32, height=16, batch_size=2, color=0xFF8000)
    graph.saved = graph.add("SaveImage", images=graph.orange, filename_prefix="road")
    return graph


def test_images_come_back_as_the_graph_says(comfy, graph):
    result = comfy.run(graph).check()
    assert [picture.size for picture in result.images] == [(32, 16)] * 2
    assert result.images[0].getpixel((5, 5)) == (255, 128, 0)
    assert list(result.outputs) == [graph.saved.key]
    assert len(list((comfy.tree / "output").glob("road*.png"))) >= 2


def test_a_bad_value_is_refused_in_one_sentence_and_the_next_prompt_works(comfy, graph):
    graph[graph.orange.key]["inputs"]["width"] = "wide"
    comfy.refuses(graph, "width", seconds=5)


def test_an_error_inside_a_node_names_the_node(comfy, graph, temporary_file):
    temporary_file("models/checkpoints/empty.safetensors", b"not a checkpoint")
    flow = comfy.graph("empty.safetensors")
    flow.picture_of(flow.empty(64, 64))
    result = comfy.run(flow)
    assert result.where == "CheckpointLoaderSimple" and result.error_type not in (None, "validation")
    with pytest.raises(RuntimeError, match="CheckpointLoaderSimple"):
        result.check()
    assert comfy.run(graph).ok


def test_the_pack_is_loaded_under_its_own_name(comfy):
    from nulltext import NODE_CLASS_MAPPINGS

    known = comfy.object_info
    assert set(NODE_CLASS_MAPPINGS) <= set(known)
    log = comfy.server.log.read_text()
    assert "custom_nodes/ComfyUI-NullText" in log
    assert f"Cannot import {comfy.tree}" not in log


def test_the_demo_checkpoint_is_offered_and_draws(comfy, monkeypatch):
    graph, seen, messages, take = comfy.graph(), [], [], client._Messages.take
    monkeypatch.setattr(
        client._Messages, "take", lambda own, kind, data: messages.append(kind) or take(own, kind, data)
    )
    drawn = graph.draw(positive=graph.prompt("a red circle"), negative=graph.prompt(), latent_image=graph.empty())
    graph.picture_of(drawn)
    result = comfy.run(graph, lambda node, value, total: seen.append((node, value, total))).check()
    assert result.images[0].size == (128, 128)
    assert [entry for entry in seen if entry[0] == drawn.key][-1] == (drawn.key, 4, 4)
    if weights.CHECKPOINT.exists():  # the random stand-in has no factors to preview with
        assert ABNF.OPCODE_BINARY in messages


def test_a_run_can_be_interrupted_and_the_next_one_works(comfy, graph):
    flow = comfy.workflow("sdedit")
    flow["6"]["inputs"] |= {"steps": 400, "t0": 0.9, "more_levels": ""}
    result = comfy.interrupted(flow, Node("6"))
    assert result.steps < 100
    assert comfy.run(graph).ok


def test_a_client_without_its_websocket_still_gets_the_result(comfy, graph, monkeypatch):
    import websocket

    monkeypatch.setattr(websocket.WebSocket, "recv_data", lambda self: (_ for _ in ()).throw(OSError("cut")))
    assert comfy.run(graph).check().images
