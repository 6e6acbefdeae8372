"""SDG's objective F by hand, on embeddings and feature maps small enough to work out on paper."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.guidance.semantic import Semantics

TEXT = torch.tensor([0.0, 2.0])
EMBEDDINGS = torch.tensor([[3.0, 4.0], [1.0, 0.0]])  # cosines with TEXT .8 and 0
REFERENCE = torch.tensor([[1.0, 0.0]])  # cosines .6 and 1
#: one channel of two cells per layer: fine, coarse
FINE, COARSE = torch.tensor([[[[1.0, 3.0]]], [[[2.0, 2.0]]]]), torch.tensor([[[[0.0, 2.0]]], [[[2.0, 0.0]]]])
MAPS = [FINE, COARSE]
REFERENCE_MAPS = [torch.tensor([[[[2.0, 2.0]]]]), torch.tensor([[[[0.0, 2.0]]]])]
# relative squared distances: fine (1 + 1)/8 and 0; coarse 0 and (4 + 4)/4
STRUCTURE = {(0,): [0.25, 0.0], (1,): [0.0, 2.0], (0, 1): [0.125, 1.0]}
# Gram matrices (sum of squares / 2 cells): fine 5 and 4 against 4; coarse 2 and 2 against 2
STYLE = {(0,): [1 / 16, 0.0], (1,): [0.0, 0.0], (0, 1): [1 / 32, 0.0]}


def value(layers=(0, 1), **weights):
    return Semantics(TEXT, layers=layers, **weights).value(EMBEDDINGS, MAPS, REFERENCE, REFERENCE_MAPS)


def test_text_and_content_are_weighted_cosines():
    torch.testing.assert_close(value(text_weight=3.0), torch.tensor([2.4, 0.0]))
    torch.testing.assert_close(value(content_weight=-2.0), torch.tensor([-1.2, -2.0]))


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1), (0, 1, 7)])
def test_structure_and_style_are_weighted_distances_over_the_chosen_layers(layers):
    known = tuple(i for i in layers if i < 2)  # a layer that the tower hasn't is left out
    torch.testing.assert_close(value(layers, structure_weight=4.0), -4 * torch.tensor(STRUCTURE[known]))
    torch.testing.assert_close(value(layers, style_weight=8.0), -8 * torch.tensor(STYLE[known]))


def test_the_parts_add_up_and_weights_of_0_ask_for_nothing():
    whole = value(text_weight=3.0, content_weight=1.0, structure_weight=4.0, style_weight=8.0)
    torch.testing.assert_close(whole, torch.tensor([2.4 + 0.6 - 0.5 - 0.25, 0.0 + 1.0 - 4.0 - 0.0]))
    assert torch.equal(value(), torch.zeros(2))
    text_alone = Semantics(TEXT, text_weight=3.0)
    assert not text_alone.needs_reference
    torch.testing.assert_close(text_alone.value(EMBEDDINGS, MAPS, None, []), torch.tensor([2.4, 0.0]))


@pytest.mark.parametrize("weight", ["content_weight", "structure_weight", "style_weight"])
def test_each_part_of_a_reference_needs_one(weight):
    goal = Semantics(**{weight: 1.0})
    assert goal.needs_reference
    for make in (lambda: goal.of_estimate(None, None, None, None), lambda: goal.of_noisy(None, None, None, VE)):
        with pytest.raises(ValueError, match="reference picture"):
            make()


def test_a_text_weight_needs_a_text():
    with pytest.raises(ValueError, match="needs a text"):
        Semantics(text_weight=1.0)


def test_the_estimate_is_decoded_and_a_reference_is_looked_at_once():
    asked = []

    def embed(pictures):
        asked.append(len(pictures))
        return pictures.flatten(1)

    goal = Semantics(content_weight=1.0)
    likelihood = goal.of_estimate(lambda d: 2 * d, embed, lambda x: [], torch.tensor([[[[6.0, 8.0]]]]))
    d = torch.tensor([[[[3.0, 4.0]]], [[[4.0, -3.0]]]])
    for _ in range(3):
        torch.testing.assert_close(likelihood(None, 1.0, d), torch.tensor([1.0, 0.0]))
    assert sorted(asked) == [1, 2, 2, 2]


@pytest.mark.parametrize("process", [VE, FLOW])
def test_a_noise_aware_tower_is_shown_the_reference_at_the_pictures_own_level(process):
    clean, x = torch.full((1, 1, 40, 40), 3.0), torch.zeros(2, 1, 40, 40)
    shown = []

    def tower(at, sigma):
        shown.append((at, float(sigma)))
        return at.flatten(1)[:, :2] + 1

    def likelihood(seed):
        return Semantics(content_weight=1.0).of_noisy(tower, lambda *_: [], clean, process, seed)

    for sigma, seed in ((0.5, 1), (0.25, 1), (0.5, 1), (0.5, 2)):
        likelihood(seed)(x, torch.tensor([sigma, sigma]).max(), None)
    noise = [(at - process.signal(sigma) * 3.0) / sigma for at, sigma in shown[::2]]
    assert all(abs(float(n.mean())) < 0.1 and 0.9 < float(n.std()) < 1.1 for n in noise)
    assert torch.equal(noise[0], noise[2])  # of one level and seed the same
    assert not torch.allclose(noise[0], noise[1], atol=0.1) and not torch.allclose(noise[0], noise[3], atol=0.1)
    assert all(at is x for at, _ in shown[1::2])


def test_a_reference_of_another_size_is_brought_to_the_pictures_once(monkeypatch):
    shown, made = [], []
    resize = torch.nn.functional.interpolate
    monkeypatch.setattr(torch.nn.functional, "interpolate", lambda *a, **k: made.append(1) or resize(*a, **k))

    def tower(at, _sigma):
        shown.append(tuple(at.shape))
        return at.flatten(1)[:, :2] + 1

    features = lambda at, sigma: [at]
    goal = Semantics(content_weight=1.0, structure_weight=1.0, layers=(0,))
    likelihood = goal.of_noisy(tower, features, torch.rand(1, 4, 32, 24), VE)
    for sigma in (2.0, 1.0):
        assert torch.isfinite(likelihood(torch.rand(2, 4, 8, 8), torch.tensor(sigma), None)).all()
    assert shown == [(1, 4, 8, 8), (2, 4, 8, 8)] * 2 and len(made) == 1
