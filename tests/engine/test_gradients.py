"""Gradients through the whole UNet in the engine at hand, and the model exactly as it was afterwards."""

import sys
from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import gradients, h_space, tuning, weights
from nulltext.engine.comfy import each_module
from nulltext.engine.gradients import check_differentiable, grad_mode, normal
from nulltext.engine.run import sample_with
from nulltext.samplers.tuning import lora
from nulltext.tests.running import block_patched

SIGMAS = torch.tensor([5.0, 1.0, 0.0])


def state(model):
    """Identity and content of everything that must not change."""
    tables = [
        (m, n, v)
        for m in model.model.modules()
        for t in (m._parameters, m._buffers)
        for n, v in t.items()
        if v is not None
    ]
    return [(id(m), n, id(v), v.data_ptr(), v.requires_grad, v.clone()) for m, n, v in tables]


def same(a, b):
    return len(a) == len(b) and all(x[:5] == y[:5] and torch.equal(x[5], y[5]) for x, y in zip(a, b, strict=True))


def embedding_gradient(model, positive, latent, checkpoint=False, fail=None):
    def body(run):
        net = run.embedding_net("negative")
        start = run.guider.conds["negative"][0]["model_conds"]["c_crossattn"].cond
        with run.gradients(checkpoint=checkpoint):
            embedding = normal(start).float().requires_grad_()
            assert all(not p.is_inference() and not p.requires_grad for p in run.model.parameters())
            loss = (net(run.latent, 1.0, embedding) - normal(run.latent)).square().mean()
            loss.backward()
            if fail:
                raise fail
            return embedding.grad.clone(), float(loss.detach())

    return sample_with(model, {"positive": positive, "negative": positive}, latent, SIGMAS, body)


def test_gradient_is_the_finite_difference(tiny, make_condition, latent):
    cond = make_condition()
    before = state(tiny)
    with torch.inference_mode():
        grad, _loss = embedding_gradient(tiny, cond, latent)
        step = torch.randn(grad.shape, generator=torch.Generator().manual_seed(0))
        h = 0.02
        up = embedding_gradient(tiny, [[cond[0][0] + h * step, cond[0][1]]], latent)[1]
        down = embedding_gradient(tiny, [[cond[0][0] - h * step, cond[0][1]]], latent)[1]
    assert grad.abs().max() > 0
    assert (up - down) / (2 * h) == pytest.approx(float((grad * step).sum()), rel=0.02)
    assert same(before, state(tiny))
    assert all(p.grad is None for p in tiny.model.parameters())


def test_checkpointing_changes_memory_not_the_gradient(tiny, make_condition, latent):
    with torch.inference_mode():
        plain, _ = embedding_gradient(tiny, make_condition(), latent)
        lean, _ = embedding_gradient(tiny, make_condition(), latent, checkpoint=True)
    assert torch.allclose(plain, lean, rtol=1e-4, atol=1e-7)
    assert not any("forward" in m.__dict__ for m in tiny.model.modules())


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_block_patch_may_write_into_what_backward_needs(tiny, make_condition, latent, checkpoint):
    with torch.inference_mode():
        plain, ours, theirs = (
            embedding_gradient(model, make_condition(), latent, checkpoint=checkpoint)[0]
            for model in (tiny, block_patched(tiny, True), block_patched(tiny, False))
        )
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7) and not torch.allclose(ours, plain, rtol=1e-2)


@pytest.mark.parametrize("error", ["error", "interrupt"])
def test_model_is_put_back_when_the_body_fails(engine, tiny, make_condition, latent, error):
    kind = engine.Interrupted() if error == "interrupt" else ZeroDivisionError
    before = state(tiny)
    with torch.inference_mode(), pytest.raises(kind):
        embedding_gradient(tiny, make_condition(), latent, fail=kind())
    assert same(before, state(tiny))
    assert not any(m._forward_pre_hooks for m in tiny.model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(make_model, make_condition, latent, dtype):
    model = make_model(dtype=dtype)
    before = state(model)
    with torch.inference_mode():
        grad, _ = embedding_gradient(model, make_condition(), latent)
        full, _ = embedding_gradient(make_model(), make_condition(), latent)
    assert grad.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(grad.flatten(), full.flatten(), dim=0) > 0.98
    assert same(before, state(model))


def test_small_gradients_survive_fp16(make_model, make_condition, latent):
    """Computing in fp16, as on a GPU: a loss as small as null-text's gives the direction that fp32 gives."""
    model, full = make_model(dtype=torch.float16), make_model()
    model.model.manual_cast_dtype = None
    for m in model.model.modules():
        if hasattr(m, "comfy_cast_weights"):
            m.comfy_cast_weights = False
    cond = make_condition()

    def body(run):
        net = run.embedding_net("negative")
        with run.gradients():
            embedding = normal(cond[0][0]).float().requires_grad_()
            loss = (net(run.latent, 1.0, embedding) - normal(run.latent)).square().mean() * 1e-6
            return torch.autograd.grad(loss, embedding)[0]

    with torch.inference_mode():
        conds = {"positive": cond, "negative": cond}
        half, single = (sample_with(m, conds, latent, SIGMAS, body) for m in (model, full))
    assert torch.isfinite(half).all()
    assert torch.nn.functional.cosine_similarity(half.flatten(), single.flatten(), dim=0) > 0.97
    assert float(half.norm() / single.norm()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("way", ["a LoRA through a chain", "a shift of h"])
def test_small_gradients_of_what_is_trained_inside_survive_fp16(make_model, make_condition, latent, way):
    """The two trainings through a sampling chain, with a loss as small as one over a picture's numbers."""
    model, full = make_model(dtype=torch.float16), make_model()
    model.model.manual_cast_dtype = None
    for m in model.model.modules():
        if hasattr(m, "comfy_cast_weights"):
            m.comfy_cast_weights = False

    def body(run):
        where = weights.layers(run.patcher)
        factors, place = lora.low_rank_all(where.items(), 2, seed=0), h_space.Site()
        with torch.inference_mode(False):
            values = {k: v for k, v in lora.parameters(factors).items() if k.endswith("up")}
            shift = torch.zeros(64, 4, 4).requires_grad_()
        if way[-1] == "h":
            values = {"shift": shift}
        with (
            run.gradients(),
            weights.attached(where, factors),
            run.kept_from_underflow(values.values()) as wrap,
            run.patched(h_space.PATCH, place.patch),
        ):
            x, net = normal(run.latent), wrap(tuning.caption_net(run))
            pair = h_space.training_pair(run, place, "positive", wrap)
            if way[-1] == "h":
                x = pair(x, torch.tensor(1.0), lambda h: shift)[1]
            else:
                for sigma in (2.0, 1.0):
                    x = x + 0.3 * (net(x, torch.tensor([sigma] * 2), ["positive"] * 2) - x)
            loss = (x - normal(run.latent)).square().mean() * 1e-6
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(values.values()))])

    with torch.inference_mode():
        conds = {"positive": make_condition()}
        half, single = (sample_with(m, conds, latent, SIGMAS, body) for m in (model, full))
    assert torch.isfinite(half).all()
    assert float((half - single).norm() / single.norm()) < 0.2


def test_weight_patches(tiny, make_condition, latent):
    """A LoRA-like patch: its weights are made anew, in inference mode, when the model loads."""
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    patched = tiny.clone()
    with torch.inference_mode():
        weight = dict(tiny.model.named_parameters())[name]
        base = weight.clone()
        assert patched.add_patches({name: (torch.randn_like(base),)}, 1.0) == [name]
        plain, _ = embedding_gradient(tiny, make_condition(), latent)
        other, _ = embedding_gradient(patched, make_condition(), latent)
        import comfy.model_management

        comfy.model_management.unload_all_models()
    assert not torch.allclose(plain, other)
    assert torch.equal(dict(tiny.model.named_parameters())[name], base)


def test_weights_cast_on_the_fly(engine, tiny, make_condition, latent):
    """Low memory mode: a module casts its weight at every call and applies the patch there."""
    with torch.inference_mode():
        plain, _ = embedding_gradient(tiny, make_condition(), latent)
        delta = torch.zeros(1)
        for m in tiny.model.modules():
            if hasattr(m, "comfy_cast_weights"):
                m.comfy_cast_weights = True
                function = lambda w: w + delta.to(w)
                m.weight_function = [function] if isinstance(type(m).weight_function, list) else function
        cast, _ = embedding_gradient(tiny, make_condition(), latent)
    assert torch.allclose(plain, cast, rtol=1e-4, atol=1e-8)


def test_attention_without_backward_steps_aside(tiny, make_condition, latent, monkeypatch):
    from comfy.ldm.modules import attention

    def attention_sage(q, k, v, heads, *args, **kwargs):
        return attention.attention_pytorch(q, k, v, heads).detach()

    with torch.inference_mode():
        want, _ = embedding_gradient(tiny, make_condition(), latent)
        monkeypatch.setattr(attention, "optimized_attention", attention_sage)
        got, _ = embedding_gradient(tiny, make_condition(), latent)
    assert attention.optimized_attention is attention_sage
    assert torch.allclose(want, got, rtol=1e-3, atol=1e-6)


def test_attention_steps_aside_in_the_files_that_hold_it_by_its_name(engine, monkeypatch):
    """As those of most transformers do; other functions of that name stay."""
    from comfy.ldm.cascade import common as holder
    from comfy.ldm.modules import attention

    other = SimpleNamespace(optimized_attention=min)
    monkeypatch.setitem(sys.modules, "comfy.ldm.other", other)
    monkeypatch.setattr(attention, "optimized_attention", max)
    monkeypatch.setattr(holder, "optimized_attention", max)
    with grad_mode():
        assert holder.optimized_attention is attention.attention_pytorch and other.optimized_attention is min
    assert holder.optimized_attention is max and attention.optimized_attention is max


def test_a_module_that_another_thread_imports_meanwhile_is_no_matter(engine, monkeypatch):
    class Name(str):
        def __getitem__(self, where):
            monkeypatch.setitem(sys.modules, "nulltext_imported_meanwhile", SimpleNamespace())
            return super().__getitem__(where)

    monkeypatch.setitem(sys.modules, Name("nulltext_imported_before"), SimpleNamespace())
    attention = engine.get("ldm.modules.attention")
    with gradients.attention_by(print):
        assert attention.optimized_attention is print
    assert attention.optimized_attention is not print


def test_quantised_weights_are_refused():
    layer = torch.nn.Linear(2, 2)
    layer.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised.*fp16"):
        check_differentiable(layer)
    with pytest.raises(ValueError, match="quantised"), grad_mode(layer):
        pass


def test_fp8_storage_differentiates(tiny, make_condition, latent):
    """fp8 is a form of storage: the layer casts, so gradients exist."""
    if not hasattr(torch, "float8_e4m3fn"):
        pytest.skip("this torch has no fp8")
    with torch.inference_mode():
        for m in tiny.model.modules():
            if hasattr(m, "comfy_cast_weights") and isinstance(m, torch.nn.Linear):
                m.comfy_cast_weights = True
                m.weight.data = m.weight.data.to(torch.float8_e4m3fn)
        grad, _ = embedding_gradient(tiny, make_condition(), latent)
    assert torch.isfinite(grad).all() and grad.abs().max() > 0


def test_tied_weights_stay_tied():
    with torch.inference_mode():
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net[1].weight = net[0].weight
    original = net[0].weight
    with grad_mode(net):
        assert net[0].weight is net[1].weight and net[0].weight is not original
        assert net[0].weight.data_ptr() == original.data_ptr()
    assert net[0].weight is original and net[1].weight is original


def test_normal_copies_only_inference_tensors():
    plain = torch.ones(1)
    with torch.inference_mode():
        made = torch.ones(1)
    with torch.inference_mode(False):
        out = gradients.normal({"a": [plain, made], "b": "text"})
    assert out["a"][0] is plain and out["b"] == "text"
    assert not out["a"][1].is_inference() and made.is_inference()


class DoubleStreamBlock(torch.nn.Module):
    """Called by keyword alone and writing into its input, as Flux's and HunyuanVideo's blocks are."""

    def __init__(self):
        super().__init__()
        self.turn = torch.nn.Linear(4, 4)
        self.calls = 0

    def forward(self, img, txt, vec=None):
        self.calls += 1
        mixed = torch.tanh(self.turn(img) + txt)
        img += mixed * vec
        return img, txt * mixed


@pytest.mark.parametrize("checkpoint", [False, True])
def test_blocks_called_by_keyword_are_recomputed_and_give_the_same_gradient(engine, checkpoint):
    from nulltext.engine.gradients import grad_mode

    torch.manual_seed(0)
    block = DoubleStreamBlock()
    x, txt = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    with grad_mode(block, checkpoint=checkpoint):
        leaf = x.clone().requires_grad_()
        img, text = block(img=leaf * 1, txt=txt, vec=torch.ones(1))
        (gradient,) = torch.autograd.grad((img * text).sum(), leaf)
    assert block.calls == 1 + checkpoint and "forward" not in block.__dict__
    turned = torch.tanh(block.turn(x.requires_grad_()) + txt)
    (expected,) = torch.autograd.grad(((x + turned) * txt * turned).sum(), x)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_entering_and_leaving_takes_a_few_calls_for_each_weight(tiny):
    """A guided run enters at every step."""
    calls = []

    def note(frame, event, arg):
        calls.append(event in ("call", "c_call"))

    with torch.inference_mode():
        sys.setprofile(note)
        try:
            with grad_mode(tiny.model):
                pass
        finally:
            sys.setprofile(None)
    each = sum(calls) / len(list(tiny.model.parameters()))
    assert each < 70


def test_each_module_is_found_once_and_in_order(tiny):
    shared = torch.nn.Linear(1, 1)
    net = torch.nn.Sequential(shared, torch.nn.Sequential(torch.nn.ReLU(), shared))
    net.register_module("none", None)
    assert each_module(net) == list(net.modules())
    assert each_module(tiny.model, net) == [*tiny.model.modules(), *net.modules()]


def test_a_module_that_fails_halfway_leaves_every_weight_as_it_was(engine, monkeypatch):
    net, alias, seen = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3))), gradients._alias, []
    before = list(net.parameters())

    def fails(t):
        seen.append(t)
        if len(seen) == 4:
            raise ZeroDivisionError
        return alias(t)

    monkeypatch.setattr(gradients, "_alias", fails)
    with pytest.raises(ZeroDivisionError), grad_mode(net):
        pass
    assert all(a is b for a, b in zip(net.parameters(), before, strict=True))
