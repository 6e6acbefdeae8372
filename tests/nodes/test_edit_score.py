"""Edit Score: identities, a mask, and CLIP vision."""

import json

import pytest
import torch
from nulltext.tests.nodes.text_pair import Tower
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
    with pytest.raises(ValueError, match="needs a sentence"):
        score(image, changed, image_text=Tower(), prompt=" ")


def test_edit_score_with_clip_vision():
    class Vision:
        def encode_image(self, image):
            tokens = image[:, ::8, ::8].flatten(1, 2).repeat(1, 1, 2)
            return {"penultimate_hidden_states": tokens}

    image = torch.rand(1, 32, 32, 3)
    report = score(image, image, clip_vision=Vision())[0]
    assert "CLIP vision" in report and "similarity" not in report


def test_the_similarity_is_that_of_the_edit_and_the_sentence():
    """Of the two colours that the tower reads."""
    red, blue = (torch.zeros(1, 32, 32, 3) for _ in range(2))
    red[..., 0], blue[..., 2] = 1, 1

    def told(edit, prompt):
        report = score(red, edit, image_text=Tower(), prompt=prompt)[0]
        return float(report.split("similarity to the prompt ")[1].split()[0])

    assert told(red, "red") == pytest.approx(100) == told(blue, "blue")
    assert told(red, "blue") == pytest.approx(100 * 0.09 / 1.09, abs=0.01) == told(blue, "red")

    class Small(Tower):
        def unknown(self, text):
            return [word for word in text.split() if word != "red"]

    assert (
        "Notice: unknown to this image-text model: shiny." in score(red, red, image_text=Small(), prompt="shiny red")[0]
    )
    with pytest.raises(ValueError, match="knows no word of 'shiny'"):
        score(red, red, image_text=Small(), prompt="shiny")


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
        *_, structure = score(image, edit, clip_vision=vision)
        alone = score(image[:1], edit[:1], clip_vision=vision)
    assert structure > 0
    assert alone[-1] == pytest.approx(0, abs=1e-6)
