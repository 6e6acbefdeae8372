"""Image classifiers of torchvision and transformers, in random files."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import classifiers
from PIL import Image
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
    path = write(
        tmp_path / "any.safetensors", net, architecture="shufflenet_v2_x0_5", labels='["a", "b", "c"]', size="64"
    )
    made = classifiers.load_image_classifier(path)
    image = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(made(image), net((image - mean) / std))
    assert made.labels == ["a", "b", "c"] and not any(p.requires_grad or p.is_inference() for p in made.parameters())
    assert made(torch.rand(1, 3, 100, 90)).shape == (1, 3)


def test_a_torchvision_file_by_its_name_and_a_list_of_labels(tmp_path):
    path = write(tmp_path / "shufflenet_v2_x0_5-mine.safetensors", shufflenet(2))
    with pytest.raises(ValueError, match="2 classes but 1000 labels"):
        classifiers.load_image_classifier(path)
    path.with_suffix(".txt").write_text("ja\nnein\n", encoding="utf-8")
    assert classifiers.load_image_classifier(path).labels == ["ja", "nein"]
    assert (
        len(
            classifiers.load_image_classifier(
                write(tmp_path / "shufflenet_v2_x0_5.safetensors", shufflenet(1000))
            ).labels
        )
        == 1000
    )


def test_a_transformers_file(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        id2label={0: "x", 1: "y"},
        label2id={"x": 0, "y": 1},
    )
    net = transformers.ViTForImageClassification(config).eval()
    config.save_pretrained(tmp_path)
    path = write(tmp_path / "model.safetensors", net)
    made = classifiers.load_image_classifier(path)
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    assert made.labels == ["x", "y"] and made.size == 32
    out = made(image)
    torch.testing.assert_close(out, net((image - made.mean) / made.std).logits)
    assert torch.autograd.grad(out.sum(), image)[0].abs().max() > 0
    broken = {k: v for k, v in net.state_dict().items() if "classifier" not in k}
    save_file({k: v.contiguous() for k, v in broken.items()}, path)
    with pytest.raises(ValueError, match="doesn't hold"):
        classifiers.load_image_classifier(path)


def test_files_that_do_not_fit(tmp_path):
    path = write(tmp_path / "thing.safetensors", shufflenet(3))
    with pytest.raises(ValueError, match="can't be told"):
        classifiers.load_image_classifier(path)
    with pytest.raises(ValueError, match="doesn't hold a torchvision resnet18"):
        classifiers.load_image_classifier(path, "resnet18")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="can't be read"):
        classifiers.load_image_classifier(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="not a latent classifier"):
        classifiers.load_latent_classifier(path)


def test_a_vae_that_draws_gives_the_same_latents_again_and_each_picture_its_own_noise(make_model, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.new("RGB", (64, 64), "red").save(path)
    vae = SimpleNamespace(device="cpu", encode=lambda pixels: torch.randn(1, 4, 8, 8))
    model, progress = make_model(), SimpleNamespace(tick=lambda n: None)
    before = torch.get_rng_state()
    first, again = (classifiers.encode_pictures(model, vae, paths, 64, progress) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])
    assert torch.equal(before, torch.get_rng_state())
