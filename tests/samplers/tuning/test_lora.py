"""Low-rank factors: the change of the output is the change of the weight, and training finds the best of its rank."""

import pytest
import torch
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.loop import Loop, Settings
from torch import nn

F64 = torch.float64


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def factors(layer, rank=2, seed=0, **extra):
    made = lora.low_rank(layer, rank, generator=torch.Generator().manual_seed(seed), dtype=F64, **extra)
    with torch.no_grad():
        made.up.copy_(rows(*made.up.shape, seed=9))
    return made


LAYERS = {
    "linear": (nn.Linear(6, 5), (3, 7, 6)),
    "conv": (nn.Conv2d(4, 5, 3, stride=2, padding=1), (2, 4, 9, 9)),
    "1x1": (nn.Conv2d(4, 5, 1), (2, 4, 5, 5)),
    "dilated": (nn.Conv2d(4, 5, 3, padding=2, dilation=2), (2, 4, 9, 9)),
    "1d": (nn.Conv1d(4, 5, 3, padding=1), (2, 4, 9)),
    "3d": (nn.Conv3d(4, 5, 3, padding=1), (2, 4, 5, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_adding_to_the_output_is_adding_to_the_weight(name):
    layer, shape = LAYERS[name]
    layer = layer.double()
    made, x = factors(layer, alpha=3.0), rows(*shape, seed=4)
    with torch.no_grad():
        got = layer(x) + made.delta(x)
        merged = layer.weight + made.weight()
        want = torch.func.functional_call(layer, {"weight": merged}, (x,))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert made.scale == 1.5 and torch.linalg.matrix_rank(made.weight().flatten(1)) == 2


def test_starts_of_the_published_codes():
    wide = nn.Linear(4000, 64)
    g = lambda: torch.Generator().manual_seed(0)
    peft, kohya = (lora.low_rank(wide, 8, init=init, generator=g()) for init in ("diffusers", "kohya"))
    assert float(peft.down.detach().std()) == pytest.approx(1 / 8, rel=0.02) and peft.scale == 1
    want = torch.empty(8, 4000)
    nn.init.kaiming_uniform_(want, a=5**0.5)
    assert float(kohya.down.detach().std()) == pytest.approx(float(want.std()), rel=0.02)
    assert float(kohya.down.detach().abs().max()) <= 4000**-0.5
    for made in (peft, kohya):
        assert not made.up.any() and not made.delta(torch.randn(2, 4000)).any()
    assert torch.equal(peft.down, lora.low_rank(wide, 8, generator=g()).down)


def test_half_precision_inputs_get_their_own_dtype_back():
    made = lora.low_rank(nn.Linear(6, 5), 2, generator=torch.Generator().manual_seed(0))
    assert (
        made.delta(torch.ones(1, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16 and made.down.dtype == torch.float32
    )


@pytest.mark.parametrize("name", LAYERS)
def test_backward_keeps_a_half_precision_input_once_and_as_it_came(name, monkeypatch):
    """Three layers of one input; the gradients are autograd's own to the bit."""
    layer, shape = LAYERS[name]
    made = [lora.low_rank(layer, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for seed, f in enumerate(made):
        with torch.no_grad():
            f.up.copy_(rows(*f.up.shape, seed=seed))
    factors = list(lora.parameters(dict(zip("qkv", made))).values())
    half = rows(*shape, seed=4).to(torch.bfloat16).requires_grad_()
    kept = {}

    def pack(t):
        kept[t.untyped_storage()._cdata] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = sum(f.delta(half).float() for f in made)
    inside = 3 * 2 * 4 * out.numel() // out.shape[-1 if name == "linear" else 1]  # down x, in fp32
    assert sum(s.nbytes() for s in kept.values()) == half.nbytes + inside + sum(f.nbytes for f in factors)
    found = torch.autograd.grad(out.square().sum(), [half, *factors])
    monkeypatch.setattr(lora._Recast, "apply", lambda x, weight, function: function(x.to(weight.dtype), weight))
    out = sum(f.delta(half).float() for f in made)
    want = torch.autograd.grad(out.square().sum(), [half, *factors])
    assert all(g.any() and torch.equal(g, w) for g, w in zip(found, want))


def test_backward_of_linear_layers_computes_nothing_of_forward_again(monkeypatch):
    made = lora.low_rank(nn.Linear(6, 5), 2, generator=torch.Generator().manual_seed(0))
    out = made.delta(rows(3, 6, seed=1).to(torch.bfloat16).requires_grad_()).float().sum()
    monkeypatch.setattr(torch.autograd, "grad", None)
    out.backward()


def test_training_finds_eckart_youngs_optimum_in_the_inputs_metric():
    """min |(W* - W - BA) x|^2 over rank r: BA = [ (W* - W) C^(1/2) ]_r C^(-1/2), C = E x x^T."""
    x = rows(400, 6) @ torch.diag(torch.tensor([3.0, 2, 1.5, 1, 0.7, 0.4], dtype=F64)) @ rows(6, 6, seed=3)
    layer = nn.Linear(6, 5, bias=False).double().requires_grad_(False)
    layer.weight.copy_(rows(5, 6, seed=7))
    change = rows(5, 6, seed=2)
    target = x @ (layer.weight + change).T
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    root, inverse = (vectors @ torch.diag(values**p) @ vectors.T for p in (0.5, -0.5))
    u, s, v = torch.linalg.svd(change @ root)
    best = u[:, :2] @ torch.diag(s[:2]) @ v[:2] @ inverse

    made = lora.low_rank(layer, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    named = lora.parameters({"layer": made})
    assert list(named) == ["layer.down", "layer.up"]
    loop = Loop(named, Settings(steps=2000, lr=0.1, schedule="cosine", weight_decay=0.0, clip=0.0))
    step = lambda _: {"loss": (layer(x) + made.delta(x) - target).square().sum(1).mean()}
    loop.run(step)
    assert loop.curve[-1][1] == pytest.approx(float((s[2:] ** 2).sum()), rel=1e-8)
    torch.testing.assert_close(made.weight().detach(), best, rtol=0, atol=1e-4)


def test_setting_factors_by_name():
    layers = [("a", nn.Linear(4, 4)), ("b", nn.Conv2d(4, 4, 3))]
    one, other = (lora.low_rank_all(layers, 2, seed=s) for s in (0, 1))
    values = {n: p.detach().clone() for n, p in lora.parameters(one).items()}
    down = other["b"].down
    lora.put(other, values)
    assert other["b"].down is down and all(torch.equal(p, values[n]) for n, p in lora.parameters(other).items())


@pytest.mark.parametrize(
    "layer, rank, init, said",
    [
        (nn.Linear(6, 3), 4, "diffusers", "Rank 4 does not fit x, whose weight has rank 3"),
        (nn.Conv2d(2, 16, 3), 17, "diffusers", "weight has rank 16"),
        (nn.Linear(6, 3), 0, "diffusers", "Rank 0"),
        (nn.Linear(6, 3), 2, "zeros", "no start"),
        (nn.LayerNorm(4), 2, "kohya", "x .LayerNorm. is not defined"),
        (nn.Conv2d(4, 4, 3, groups=2), 1, "kohya", "not defined"),
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), 1, "kohya", "not defined"),
    ],
)
def test_refusals(layer, rank, init, said):
    with pytest.raises(ValueError, match=said):
        lora.low_rank(layer, rank, init=init, generator=torch.Generator(), name="x")


def test_factors_hold_nothing_of_the_layer():
    layer = nn.Conv2d(4, 4, 3)
    made = factors(layer.double())
    assert not any(v is layer for v in vars(made).values())
    assert not isinstance(made, nn.Module)
