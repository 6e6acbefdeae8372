"""Image classifiers of torchvision and transformers, and a CLIP vision model with its text encoder: random files."""

import json

import pytest
import torch
from nulltext.engine import towers
from safetensors.torch import save_file


def write(path, net, **metadata):
    state = {k: v.contiguous().clone() for k, v in net.state_dict().items()}
    save_file(state, path, metadata or None)
    return path


def shufflenet(classes):
    import torchvision.models

    torch.manual_seed(0)
    return torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=classes).eval()


def test_a_torchvision_file_with_metadata(tmp_path):
    net = shufflenet(3)
    notes = {"architecture": "shufflenet_v2_x0_5", "labels": '["a", "b", "c"]', "size": "64"}
    path = write(tmp_path / "any.safetensors", net, **notes)
    made = towers.load_image_classifier(path)
    image = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(made(image), net((image - mean) / std))
    assert made.labels == ["a", "b", "c"] and not any(p.requires_grad or p.is_inference() for p in made.parameters())
    assert made(torch.rand(1, 3, 100, 90)).shape == (1, 3)


def test_a_torchvision_file_by_its_name_and_a_list_of_labels(tmp_path):
    path = write(tmp_path / "shufflenet_v2_x0_5-mine.safetensors", shufflenet(2))
    with pytest.raises(ValueError, match="2 classes but 1000 labels"):
        towers.load_image_classifier(path)
    path.with_suffix(".txt").write_text("ja\nnein\n", encoding="utf-8")
    assert towers.load_image_classifier(path).labels == ["ja", "nein"]
    thousand = write(tmp_path / "shufflenet_v2_x0_5.safetensors", shufflenet(1000))
    assert len(towers.load_image_classifier(thousand).labels) == 1000


def test_a_transformers_file(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    names = {"id2label": {0: "x", 1: "y"}, "label2id": {"x": 0, "y": 1}}
    config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes, **names)
    net = transformers.ViTForImageClassification(config).eval()
    config.save_pretrained(tmp_path)
    path = write(tmp_path / "model.safetensors", net)
    made = towers.load_image_classifier(path)
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    assert made.labels == ["x", "y"] and made.size == 32
    out = made(image)
    torch.testing.assert_close(out, net((image - made.mean) / made.std).logits)
    assert torch.autograd.grad(out.sum(), image)[0].abs().max() > 0
    broken = {k: v for k, v in net.state_dict().items() if "classifier" not in k}
    save_file({k: v.contiguous() for k, v in broken.items()}, path)
    with pytest.raises(ValueError, match="doesn't hold"):
        towers.load_image_classifier(path)


def test_files_that_do_not_fit(tmp_path):
    path = write(tmp_path / "thing.safetensors", shufflenet(3))
    with pytest.raises(ValueError, match="can't be told"):
        towers.load_image_classifier(path)
    with pytest.raises(ValueError, match="doesn't hold a torchvision resnet18"):
        towers.load_image_classifier(path, "resnet18")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="can't be read"):
        towers.load_image_classifier(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="not a latent classifier"):
        towers.load_latent_classifier(path)


# --------------------------------------------------------------------------------------------------- CLIP pair

VISION = {"hidden_act": "quick_gelu", "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16}
VISION |= {"image_size": 32, "patch_size": 8, "num_attention_heads": 2, "num_channels": 3, "num_hidden_layers": 2}
VISION |= {"projection_dim": 12}


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
    pair = towers.ClipPair(vision, Text(torch.randn(12, 12)))
    pixels = (torch.rand(2, 32, 32, 3) * 255).round() / 255
    with torch.inference_mode():
        want = vision.encode_image(pixels)["image_embeds"] if hasattr(vision, "return_all_hidden_states") else None
    from nulltext.engine.gradients import grad_mode

    with grad_mode(*towers.modules_of(pair)):
        image = pixels.movedim(-1, 1).clone().requires_grad_()
        out = pair.embed_image(image)
        assert torch.autograd.grad(out.pow(2).sum(), image)[0].abs().max() > 0
    assert out.shape == (2, 12) and pair.embed_text(["a", "bb"]).shape == (2, 12)
    if want is not None:
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


def test_pairs_that_do_not_belong_together(engine, vision):
    with pytest.raises(ValueError, match="12 numbers, the text encoder 16"):
        towers.ClipPair(vision, Text(torch.randn(16, 16)))
    with pytest.raises(ValueError, match="no projection into the space it shares with pictures"):
        towers.ClipPair(vision, Text(torch.eye(12)))
    vision.model.visual_projection = torch.nn.Identity()
    with pytest.raises(ValueError, match="no projection into the space it shares with texts"):
        towers.ClipPair(vision, Text(torch.randn(12, 12)))
