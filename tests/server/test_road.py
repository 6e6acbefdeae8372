"""The road itself: the pack loads in a real ComfyUI, a graph of core nodes runs, pictures and errors come back."""

import pytest
from nulltext.demo import weights

GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 2, "color": 0xFF8000}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "road"}},
}


def test_images_come_back_as_the_graph_says(comfy):
    result = comfy.run(GRAPH).check()
    assert [picture.size for picture in result.images] == [(32, 16)] * 2
    assert result.images[0].getpixel((5, 5)) == (255, 128, 0)
    assert list(result.outputs) == ["2"]
    assert len(list((comfy.tree / "output").glob("road*.png"))) >= 2


def test_a_bad_value_is_refused_in_one_sentence_and_the_next_prompt_works(comfy):
    wide = {**GRAPH["1"]["inputs"], "width": "wide"}
    comfy.refuses({**GRAPH, "1": {"class_type": "EmptyImage", "inputs": wide}}, "width", seconds=5)


def test_an_error_inside_a_node_names_the_node(comfy, temporary_file):
    flow = {
        "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "2": {"class_type": "LatentFromBatch", "inputs": {"samples": ["1", 0], "batch_index": 0, "length": 1}},
        "3": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "empty.safetensors"}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["3", 2]}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }
    temporary_file("models/checkpoints/empty.safetensors", b"not a checkpoint")
    result = comfy.run(flow)
    assert result.where == "CheckpointLoaderSimple" and result.error_type not in (None, "validation")
    with pytest.raises(RuntimeError, match="CheckpointLoaderSimple"):
        result.check()
    assert comfy.run(GRAPH).ok


def test_the_pack_is_loaded_under_its_own_name(comfy):
    from nulltext import NODE_CLASS_MAPPINGS

    known = comfy.object_info
    assert set(NODE_CLASS_MAPPINGS) <= set(known)
    log = comfy.server.log.read_text()
    assert "custom_nodes/ComfyUI-NullText" in log
    assert f"Cannot import {comfy.tree}" not in log


def test_the_demo_checkpoint_is_offered_and_draws(comfy):
    flow = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nulltext_demo.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red circle"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 1,
                "steps": 4,
                "cfg": 3.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }
    seen = []
    result = comfy.run(flow, lambda node, value, total: seen.append((node, value, total))).check()
    assert result.images[0].size == (128, 128)
    assert [entry for entry in seen if entry[0] == "5"][-1] == ("5", 4, 4)
    if weights.CHECKPOINT.exists():  # the random stand-in has no factors to preview with
        assert result.previews >= 1


def test_a_run_can_be_interrupted_and_the_next_one_works(comfy):
    flow = comfy.workflow("sdedit")
    long = {key: dict(node) for key, node in flow.items()}
    long["6"] = {**flow["6"], "inputs": {**flow["6"]["inputs"], "steps": 400, "t0": 0.9, "more_levels": ""}}
    seen = []

    def stop(node, value, total):
        seen.append(value)
        if value == 3:
            comfy.interrupt()

    result = comfy.run(long, stop)
    assert result.interrupted
    assert not result.ok
    assert max(seen) < 100
    assert comfy.run(GRAPH).ok


def test_a_client_without_its_websocket_still_gets_the_result(comfy, monkeypatch):
    import websocket

    monkeypatch.setattr(websocket.WebSocket, "recv_data", lambda self: (_ for _ in ()).throw(OSError("cut")))
    assert comfy.run(GRAPH).check().images
