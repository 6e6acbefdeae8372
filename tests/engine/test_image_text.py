"""A CLIP vision model with its text encoder, random."""

import json

import pytest
import torch
import torch.nn.functional as F
from nulltext.engine.gradients import grad_mode
from nulltext.engine.image_text import COLOURS, ClipPair, modules_of
from nulltext.tests.running import run
from safetensors.torch import save_file

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
        self.width = projection.shape[1]

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens, return_pooled=False):
        assert return_pooled == "unprojected"
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
    nothing = torch.zeros(12, 12)
    for not_trained in (torch.eye(12), nothing, 1e-4 * torch.randn(12, 12), nothing / nothing):
        with pytest.raises(ValueError, match="no projection into the space it shares with pictures"):
            ClipPair(vision, Text(not_trained))
    several = Text(torch.randn(12, 12))
    several.width = 20  # as of two encoders side by side
    with pytest.raises(ValueError, match="20 numbers of a whole text, which fit none of its projections"):
        ClipPair(vision, several)
    vision.model.visual_projection = torch.nn.Identity()
    with pytest.raises(ValueError, match="no projection into the space it shares with texts"):
        ClipPair(vision, Text(torch.randn(12, 12)))


def whole_clip(engine, path, projection):
    """The engine's CLIP of a ViT-L text model's file, whose blocks add nothing."""
    embeddings = {"token_embedding": (49408, 768), "position_embedding": (77, 768)}
    generator, state = torch.Generator().manual_seed(2), {}
    for name, shape in embeddings.items():
        state[f"text_model.embeddings.{name}.weight"] = torch.randn(shape, generator=generator).half()
    block = {"self_attn.q_proj": (768, 768), "self_attn.k_proj": (768, 768), "self_attn.v_proj": (768, 768)}
    block |= {"self_attn.out_proj": (768, 768), "mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
    for i in range(12):
        for name, shape in block.items():
            state[f"text_model.encoder.layers.{i}.{name}.weight"] = torch.zeros(shape, dtype=torch.half)
            state[f"text_model.encoder.layers.{i}.{name}.bias"] = torch.zeros(shape[:1], dtype=torch.half)
    norms = [f"encoder.layers.{i}.layer_norm{k}" for i in range(12) for k in (1, 2)] + ["final_layer_norm"]
    for name in norms:
        state[f"text_model.{name}.weight"] = torch.ones(768, dtype=torch.half)
        state[f"text_model.{name}.bias"] = torch.zeros(768, dtype=torch.half)
    if projection is not None:
        state["text_projection.weight"] = projection.half()
    save_file(state, path)
    with torch.inference_mode():
        return engine.get("sd").load_clip([str(path)])


class Wide:
    """A CLIP_VISION whose pictures are 768 numbers."""

    def __init__(self):
        self.model = torch.nn.Module()
        self.model.visual_projection = torch.nn.Linear(4, 768, bias=False)


def test_texts_go_through_the_projection_of_a_whole_clip(engine, tmp_path):
    """Whatever the engine says of a prompt: for Stable Diffusion 1 most of them tell it before the projection."""
    projection = torch.randn(768, 768, generator=torch.Generator().manual_seed(1)) * 768**-0.5
    clip = whole_clip(engine, tmp_path / "clip_l.safetensors", projection)
    pair = ClipPair(Wide(), clip)
    with torch.inference_mode():
        text = clip.tokenize("a photo of a cat")
        pooled = clip.encode_from_tokens(text, return_pooled="unprojected")[1].float().cpu()
    found = pair.embed_text(["a photo of a cat", "a dog"])
    assert found.shape == (2, 768) and pair.width == 768
    torch.testing.assert_close(found[:1], F.linear(pooled, projection.half().float()), rtol=1e-2, atol=1e-2)
    assert F.cosine_similarity(found[:1], pooled).abs() < 0.2


def test_a_clip_whose_file_has_no_projection_is_refused(engine, tmp_path):
    clip = whole_clip(engine, tmp_path / "clip_l.safetensors", None)
    left = clip.cond_stage_model.clip_l.transformer.text_projection.weight
    if not torch.equal(left.float(), torch.eye(768)):
        pytest.skip("this engine leaves memory there that nobody wrote, which may hold anything")
    with pytest.raises(ValueError, match="no projection into the space it shares with pictures"):
        ClipPair(Wide(), clip)


def test_halves_that_belong_together_name_plain_colours(vision, monkeypatch):
    pair = ClipPair(vision, Text(torch.randn(12, 12)))
    monkeypatch.setattr(pair, "embed_image", lambda image: F.pad(image.mean((2, 3)), (0, 1), value=3.0))
    rows = {f"a plain {name} picture": [*rgb, 1.0] for name, rgb in COLOURS.items()}
    monkeypatch.setattr(pair, "embed_text", lambda texts: torch.tensor([rows[text] for text in texts]))
    assert pair.colours_named() == len(COLOURS)
    turned = [*rows.values()]
    monkeypatch.setattr(pair, "embed_text", lambda texts: torch.tensor(turned[1:] + turned[:1]))
    assert pair.colours_named() == 0


def test_a_random_pair_is_told_to_name_hardly_any(vision):
    clip = Text(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))
    told = run("LoadImageText", file="nulltext_image_text.safetensors", clip_vision=vision, clip=clip)
    assert told.text.count("Notice: of 6 plain colours it names") == 1
