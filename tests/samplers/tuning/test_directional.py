"""The directional loss: both forms, the text direction over templates, what L1 holds on to."""

import math

import pytest
import torch
from nulltext.samplers.tuning.directional import EditLoss, agreement, directional, phrases, text_cosine, text_direction

TEXTS = {"a": [1.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0], "big a": [1.0, 0.0, 1.0], "big b": [0.0, 2.0, 2.0]}


def embed_text(texts):
    return torch.tensor([TEXTS[t] for t in texts])


def embed(pictures):
    return pictures.flatten(1)[:, :3]


def test_the_text_direction_is_the_mean_over_templates_at_length_one():
    found = text_direction(embed_text, "a", "b", ("{}", "big {}"))
    r = math.sqrt(0.5)
    expected = torch.tensor([-1 - r, 1 + r, 0.0])  # unit embeddings: the size of "big b" does not count
    assert torch.allclose(found, expected / expected.norm())
    assert text_cosine(embed_text, "a", "big a") == pytest.approx(r)


def test_what_has_no_direction_is_refused():
    with pytest.raises(ValueError, match="tells apart"):
        text_direction(embed_text, "a", "a")
    with pytest.raises(ValueError, match="template"):
        phrases("a", ("a photo",))
    with pytest.raises(ValueError, match="template"):
        phrases("a", ())


def test_both_forms_of_the_loss():
    cosine = torch.tensor([-0.5, 0.0, 0.8, 1.0])
    assert torch.allclose(directional(cosine, "printed"), 1 - cosine)
    # the code: -log((2 - L_dir)/2) with L_dir = 1 - cos
    assert torch.allclose(directional(cosine, "log"), -((2 - (1 - cosine)) / 2).log())
    assert torch.isfinite(directional(torch.tensor([-1.0]), "log")).all()
    with pytest.raises(ValueError, match="printed"):
        directional(cosine, "other")


def test_the_agreement_reads_unit_embeddings():
    e = torch.tensor([[3.0, 4.0, 0.0]])
    source = torch.tensor([[5.0, 0.0, 0.0]])
    direction = torch.tensor([0.0, 2.0, 0.0])
    change = torch.tensor([0.6 - 1, 0.8, 0.0])
    assert torch.allclose(agreement(e, source, direction), change[1:2] / change.norm())


def test_the_parts_are_weighed_and_l1_holds_on_to_what_it_is_told():
    g = torch.Generator().manual_seed(0)
    edited, source, kept = (torch.rand(2, 3, 2, 2, generator=g) for _ in range(3))
    direction = torch.tensor([1.0, -1.0, 0.5])
    loss = EditLoss(embed, direction, clip=3.0, l1=0.5, identity=0.25)
    found = loss(edited, source, kept)
    cosine = agreement(embed(edited), embed(source), direction)
    l1 = (2 * edited - 1 - (2 * kept - 1)).abs().mean()  # as in the authors' -1..1
    identity = (1 - torch.cosine_similarity(embed(edited), embed(kept))).mean()
    expected = 3 * (-((1 + cosine) / 2).log()).mean() + 0.5 * l1 + 0.25 * identity
    assert torch.allclose(found["loss"], expected)
    assert torch.allclose(found["l1"], l1) and torch.allclose(found["cosine"], cosine.mean())
    without = EditLoss(embed, direction, clip=3.0)(edited, source)
    assert set(without) == {"loss", "clip", "cosine"} and torch.allclose(without["loss"], 3 * without["clip"])
    assert torch.allclose(loss(edited, source)["l1"], 2 * (edited - source).abs().mean())
    with pytest.raises(ValueError, match="weights"):
        EditLoss(embed, direction, clip=0.0)


def test_the_gradient_turns_the_picture_towards_the_words():
    source = torch.full((1, 3, 1, 1), 0.5)
    picture = source.clone() + torch.tensor([0.01, 0.0, 0.0]).view(1, 3, 1, 1)
    picture.requires_grad_()
    loss = EditLoss(embed, torch.tensor([-1.0, 2.0, -1.0]), clip=1.0, form="printed")
    before = loss(picture, source)["cosine"]
    for _ in range(200):
        (grad,) = torch.autograd.grad(loss(picture, source)["loss"], picture)
        picture = (picture - 1e-3 * grad).detach().requires_grad_()
    assert before < 0 and loss(picture, source)["cosine"] > 0.99


def test_a_source_that_comes_again_is_embedded_once_by_each_tower_and_forgotten_with_the_picture():
    g, asked = torch.Generator().manual_seed(0), []
    edited, source, other = (torch.rand(1, 3, 2, 2, generator=g) for _ in range(3))

    def tower(scale):
        return lambda pictures: asked.append(id(pictures)) or scale * embed(pictures) ** scale

    loss = EditLoss(tower(1), torch.tensor([1.0, -1.0, 0.5]), identity=0.25, identity_embed=tower(2))
    first = loss(edited, source)
    again, elsewhere = loss(edited, source), loss(edited, other)
    assert asked.count(id(source)) == asked.count(id(other)) == 2 and asked.count(id(edited)) == 6
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["loss"], elsewhere["loss"])
    del other
    assert len(loss._known) == 1
