"""Edit Score: identities, a mask, and CLIP vision."""

import json

import pytest
import torch
from nulltext.tests.running import run


def score(source, edit, mask=None, **inputs):
    return run("EditScore", source=source, edit=edit, mask=mask, **inputs)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_edit_score():
    image = torch.rand(2, 32, 48, 3)
    same = score(image, image)
    assert same[1:] == (100.0, pytest.approx(1.0), 0.0, pytest.approx(0.0, abs=1e-9))
    changed = image.clone()
    changed[:, :16] = 1 - changed[:, :16]
    mask = torch.zeros(1, 32, 48)
    mask[:, :16] = 1
    whole, outside = score(image, changed), score(image, changed, mask)
    assert outside[1] == 100.0
    assert whole[1] < 20
    assert whole[4] > 0
    assert "outside the mask" in outside[0]
    assert "whole picture: PSNR" in outside[0]
    with pytest.raises(ValueError, match="resize one of them"):
        score(image, changed[:, :16])
    everything = score(image, changed, torch.ones(1, 32, 48))  # an edit of the background: a workflow goes on
    assert everything[1:] == whole[1:] and "Notice: the mask covers the whole picture" in everything[0]
    with pytest.raises(ValueError, match="needs a CLIP vision model"):
        score(image, changed, prompt=[[torch.zeros(1, 77, 8), {}]])


def test_edit_score_with_clip_vision():
    class Vision:
        def encode_image(self, image):
            tokens = image[:, ::8, ::8].flatten(1, 2).repeat(1, 1, 2)
            return {"penultimate_hidden_states": tokens, "image_embeds": image.mean((1, 2))}

    image = torch.rand(1, 32, 32, 3)
    text = [[torch.zeros(1, 77, 8), {"pooled_output": image.mean((1, 2))}]]
    report = score(image, image, clip_vision=Vision(), prompt=text)[0]
    assert "similarity to the prompt 100.00" in report
    assert "CLIP vision" in report
    narrow = [[torch.zeros(1, 77, 8), {"pooled_output": torch.zeros(1, 5)}]]
    with pytest.raises(ValueError, match=r"does not belong to this CLIP vision model \(3 numbers\)"):
        score(image, image, clip_vision=Vision(), prompt=narrow)


def test_edit_score_with_the_engines_own_clip_vision(engine, tmp_path):
    """A random tower in the engine's class: what its `encode_image` returns is what is read."""
    sizes = {"hidden_size": 16, "image_size": 224, "intermediate_size": 16, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 2, "num_channels": 3, "patch_size": 56, "projection_dim": 12}
    tower = {"hidden_act": "quick_gelu", "model_type": "clip_vision_model", **sizes}
    (tmp_path / "vision.json").write_text(json.dumps(tower))
    image = torch.rand(2, 64, 64, 3)
    edit = image.clone()
    edit[1, 16:48, 16:48] = 0
    with torch.inference_mode():
        vision = engine.get("clip_vision").ClipVisionModel(str(tmp_path / "vision.json"))
        generator = torch.Generator().manual_seed(0)
        for p in vision.model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        embedded = vision.encode_image(edit)["image_embeds"].float().cpu()
        pooled = embedded[1:] - embedded[:1]  # near to the second picture's, far from the first's
        text = [[torch.zeros(1, 77, 8), {"pooled_output": pooled}]]
        report, *_, structure = score(image, edit, clip_vision=vision, prompt=text)
        alone = score(image[:1], edit[:1], clip_vision=vision, prompt=text)
    assert structure > 0
    assert alone[-1] == pytest.approx(0, abs=1e-6)
    similar = 100 * torch.cosine_similarity(embedded, pooled).clamp(min=0)
    assert 0 <= float(similar[0]) < float(similar[1])
    for said, value in ((report, similar.mean()), (alone[0], similar[0])):
        assert float(said.split("similarity to the prompt ")[1].split()[0]) == pytest.approx(float(value), abs=0.1)
