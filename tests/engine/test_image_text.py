"""A CLIP vision model with its text encoder, random."""

import json

import pytest
import torch
from nulltext.engine.gradients import grad_mode
from nulltext.engine.image_text import ClipPair, modules_of

VISION = {
    "hidden_act": "quick_gelu",
    "hidden_size": 16,
    "image_size": 32,
    "intermediate_size": 16,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 8,
    "projection_dim": 12,
}


@pytest.fixture
def vision(engine, tmp_path):
    path = tmp_path / "vision.json"
    path.write_text(json.dumps(VISION))
    with torch.inference_mode():
        made = engine.get("clip_vision").ClipVisionModel(str(path))
        generator = torch.Generator().manual_seed(0)
        for p in made.model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        made.image_size = 32  # one engine takes 224 for granted
        return made


class Text:
    """The parts of a CLIP that the pair reads: a text projection, tokens, pooled output."""

    def __init__(self, projection):
        transformer = torch.nn.Module()
        transformer.text_projection = torch.nn.Linear(*projection.shape[::-1], bias=False)
        transformer.text_projection.weight = torch.nn.Parameter(projection)
        self.cond_stage_model = torch.nn.Module()
        self.cond_stage_model.clip = "clip_l"
        self.cond_stage_model.clip_l = torch.nn.Module()
        self.cond_stage_model.clip_l.transformer = transformer
        self.width = projection.shape[0]

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens, return_pooled=False):
        row = torch.randn(1, self.width, generator=torch.Generator().manual_seed(len(tokens)))
        return row[None], row


def test_a_pair_embeds_pictures_as_the_engine_does_and_with_gradients(vision):
    pair = ClipPair(vision, Text(torch.randn(12, 12)))
    pixels = (torch.rand(2, 32, 32, 3) * 255).round() / 255
    with torch.inference_mode():
        want = vision.encode_image(pixels)["image_embeds"] if hasattr(vision, "return_all_hidden_states") else None
    with grad_mode(*modules_of(pair)):
        image = pixels.movedim(-1, 1).clone().requires_grad_()
        out = pair.embed_image(image)
        assert torch.autograd.grad(out.pow(2).sum(), image)[0].abs().max() > 0
    assert out.shape == (2, 12) and pair.embed_text(["a", "bb"]).shape == (2, 12)
    if want is not None:
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


def test_pairs_that_do_not_belong_together(engine, vision):
    with pytest.raises(ValueError, match="12 numbers, the text encoder 16"):
        ClipPair(vision, Text(torch.randn(16, 16)))
    with pytest.raises(ValueError, match="no projection into the space it shares with pictures"):
        ClipPair(vision, Text(torch.eye(12)))
    vision.model.visual_projection = torch.nn.Identity()
    with pytest.raises(ValueError, match="no projection into the space it shares with texts"):
        ClipPair(vision, Text(torch.randn(12, 12)))
