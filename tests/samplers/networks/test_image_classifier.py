"""Image classifiers built from tensors: what the network is shown, and where its labels come from."""

import pytest
import torch
from nulltext.samplers.networks.image_classifier import ImageClassifier, build

NAME = "shufflenet_v2_x0_5"


def state(classes):
    from torchvision.models import get_model

    torch.manual_seed(0)
    return get_model(NAME, weights=None, num_classes=classes).state_dict()


def test_pictures_are_normalised_and_brought_to_the_networks_size():
    seen = []
    made = ImageClassifier(
        lambda x: seen.append(x) or x.mean((2, 3)), ["a", "b", "c"], 4, [0.5, 0.25, 0.0], [0.5, 1.0, 2.0]
    )
    assert made(torch.ones(2, 3, 4, 4)).tolist() == [[1.0, 0.75, 0.5]] * 2
    assert made(torch.ones(1, 3, 9, 6)).shape == (1, 3) and seen[-1].shape == (1, 3, 4, 4)


def test_labels_are_the_metadatas_a_files_or_refused_where_they_are_not_as_many(tmp_path):
    path = tmp_path / f"{NAME}-mine.safetensors"
    made = build(path, state(2), {"labels": '["a", "b"]', "size": "64"})
    assert made.labels == ["a", "b"] and made.size == 64 and not any(p.requires_grad for p in made.parameters())
    with pytest.raises(ValueError, match="2 classes but 3 labels"):
        build(path, state(2), {"labels": '["a", "b", "c"]'})
    with pytest.raises(ValueError, match="2 classes but 1000 labels"):
        build(path, state(2), {})
    path.with_suffix(".txt").write_text("ja\nnein\n", encoding="utf-8")
    assert build(path, state(2), {}).labels == ["ja", "nein"]
