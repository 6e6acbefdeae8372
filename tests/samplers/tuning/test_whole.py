"""Changes of whole weights: the layer with them added on is the layer of the summed weights, for every kind of it."""

import copy

import pytest
import torch
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.samplers.tuning.whole import changeable, unchanged, unchanged_all, unshifted
from torch import nn

LAYERS = {
    "linear": (nn.Linear(6, 5), (3, 6)),
    "no bias": (nn.Linear(6, 5, bias=False), (3, 6)),
    "convolution": (nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 8, 8)),
    "1d": (nn.Conv1d(6, 4, 3, dilation=2), (2, 6, 9)),
    "3d": (nn.Conv3d(6, 4, 1), (2, 6, 2, 3, 3)),
    "group norm": (nn.GroupNorm(3, 6, eps=1e-2), (2, 6, 4, 4)),
    "layer norm": (nn.LayerNorm(6, eps=1e-2), (3, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_layer_plus_its_change_is_the_layer_of_the_summed_weights(kind):
    layer, shape = LAYERS[kind]
    g = torch.Generator().manual_seed(1)
    x, change = torch.randn(shape, generator=g), unchanged(layer)
    with torch.no_grad():
        assert torch.equal(layer(x) + change.delta(x), layer(x))
        for value in change.trained().values():
            value.copy_(0.3 * torch.randn(value.shape, generator=g))
        made = layer(x) + change.delta(x)
        kept = {name: p.clone() for name, p in layer.named_parameters()}
        for name, value in change.trained().items():
            getattr(layer, name).add_(value)
        summed = layer(x)
        layer.load_state_dict(kept)
    assert torch.allclose(made, summed, atol=1e-5) and not torch.allclose(made, layer(x), atol=1e-2)
    assert set(change.stored()) == ({"diff"} if layer.bias is None else {"diff", "diff_b"})


@pytest.mark.parametrize("kind", [kind for kind, (layer, _) in LAYERS.items() if layer.bias is not None])
def test_the_layer_plus_the_change_of_its_bias_is_the_layer_of_the_summed_bias(kind):
    layer, shape = copy.deepcopy(LAYERS[kind][0]), LAYERS[kind][1]
    g = torch.Generator().manual_seed(1)
    x, change = torch.randn(shape, generator=g), unshifted(layer)
    with torch.no_grad():
        change.bias.copy_(torch.randn(layer.bias.shape, generator=g))
        made = layer(x) + change.delta(x)
        layer.bias.add_(change.bias)
        assert torch.allclose(made, layer(x), atol=1e-5)


def test_what_has_no_weights_of_its_own_is_left_out():
    plain = nn.LayerNorm(4, elementwise_affine=False)
    grouped = nn.Conv2d(4, 4, 3, groups=2)
    assert not any(changeable(layer) for layer in (plain, grouped, nn.SiLU(), nn.Embedding(3, 4)))
    with pytest.raises(ValueError, match="LayerNorm.*not defined"):
        unchanged(plain)


def test_the_loop_trains_them_to_the_layer_that_is_asked_for():
    torch.manual_seed(0)
    layer, wanted = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [p.clone() for p in layer.parameters()]
    changes = unchanged_all([("a", layer)])
    assert set(lora.parameters(changes)) == {"a.weight", "a.bias"}

    def step(generator):
        x = torch.randn(16, 3, generator=generator)
        with torch.no_grad():
            own, right = layer(x), wanted(x)
        return {"loss": (own + changes["a"].delta(x) - right).square().mean()}

    Loop(lora.parameters(changes), Settings(steps=400, lr=0.05, weight_decay=0)).run(step)
    with torch.no_grad():
        assert torch.allclose(layer.weight + changes["a"].weight, wanted.weight, atol=1e-3)
        assert torch.allclose(layer.bias + changes["a"].bias, wanted.bias, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters()))
