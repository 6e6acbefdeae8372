"""LoRA by hooks on the engine at hand: the bare model where it adds nothing, core's loader where it adds something, and
nothing left behind."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import weights
from nulltext.engine.gradients import normal
from nulltext.engine.run import sample_with
from nulltext.samplers.core import VE
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.samplers.tuning.objective import Examples, Levels, Objective, denoising_step
from torch import nn

SIGMAS = torch.tensor([5.0, 1.0, 0.0])


def state(model):
    """Identity and content of everything that must not change."""
    return [
        (id(m), n, id(p), p.clone()) for m in model.model.modules() for n, p in m._parameters.items() if p is not None
    ]


def same(a, b):
    return len(a) == len(b) and all(x[:3] == y[:3] and torch.equal(x[3], y[3]) for x, y in zip(a, b, strict=True))


def hooks(model):
    return sum(len(m._forward_hooks) for m in model.model.modules())


def predicted(model, cond, latent):
    with torch.inference_mode():
        body = lambda run: run.predictions(run.latent, 1.5, ["positive"])[0]
        return sample_with(model, {"positive": cond}, latent, SIGMAS, body)


def moved(model, targets="attention", rank=2, seed=0):
    """(layers, factors that do something)."""
    where = weights.layers(model, targets)
    factors = lora.low_rank_all(where.items(), rank, alpha=3.0, seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for factor in factors.values():
            factor.up.copy_(0.05 * torch.randn(factor.up.shape, generator=g))
    return where, factors


def train(model, cond, latent, factors, where, steps=3, tick=None, checkpoint=False):
    """A short training inside the engine's own run, as a node does it; the loop."""

    def body(run):
        net = run.embedding_net("positive")
        with run.gradients(checkpoint=checkpoint), weights.attached(where, factors):
            text = normal(cond[0][0])
            step = denoising_step(
                lambda x, sigma, conditions: net(x, sigma, text),
                Examples(normal(run.latent), [None] * len(latent)),
                Objective(VE),
                Levels(table=torch.tensor([0.5, 2.0])),
            )
            loop = Loop(lora.parameters(factors), Settings(steps=steps, lr=0.02), seed=3)
            loop.run(step, tick=tick)
            return loop

    with torch.inference_mode():
        return sample_with(model, {"positive": cond}, latent, SIGMAS, body)


@pytest.mark.parametrize("targets", weights.TARGETS)
def test_fresh_factors_and_strength_0_are_the_bare_model_to_the_bit(tiny, make_condition, latent, targets):
    bare = predicted(tiny, make_condition(), latent)
    where = weights.layers(tiny, targets)
    with weights.attached(where, lora.low_rank_all(where.items(), 2, seed=0)):
        assert torch.equal(predicted(tiny, make_condition(), latent), bare)
    where, factors = moved(tiny, targets)
    with weights.attached(where, factors, strength=lambda: 0.0):
        assert torch.equal(predicted(tiny, make_condition(), latent), bare)
    with weights.attached(where, factors):
        assert not torch.allclose(predicted(tiny, make_condition(), latent), bare, atol=1e-2)
    assert torch.equal(predicted(tiny, make_condition(), latent), bare) and not hooks(tiny)


def test_choices_of_layers(tiny):
    chosen = {name: set(weights.layers(tiny, name)) for name in weights.TARGETS}
    attention = chosen["attention"]
    one = "lora_unet_middle_block_1_transformer_blocks_0_attn"
    assert {f"{one}{n}_to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out_0")} <= attention
    ends = ("_to_q", "_to_k", "_to_v", "_to_out_0")
    assert len(attention) % 8 == 0 and all(name.endswith(ends) for name in attention)
    assert {n.split("_transformer_blocks_0_")[1] for n in chosen["attention+ff"] - attention} == {
        "ff_net_0_proj",
        "ff_net_2",
    }
    rest = chosen["transformers"] - chosen["attention+ff"]
    assert rest and all(name.endswith(("_proj_in", "_proj_out")) for name in rest)
    everything = chosen["all linear and conv"]
    assert chosen["transformers"] < everything and "lora_unet_input_blocks_1_0_in_layers_2" in everything
    outside = ("time_embed", "out_2", "input_blocks_0_0")
    assert not any(name.startswith(tuple(f"lora_unet_{part}" for part in outside)) for name in everything)


#: layers of SD3, Flux, AuraFlow, Wan and Lumina, and of a UNet, by the smallest choice they belong to; diffusers'
#: scripts train q, k and v of Flux's single blocks, sd-scripts every Linear of all its blocks
FURTHER = {
    "attention": "joint_blocks.0.x_block.attn.qkv double_blocks.1.img_attn.proj single_layers.0.attn.w1q "
    "blocks.2.self_attn.q layers.0.attention.out single_blocks.0.linear1",
    "attention+ff": "joint_blocks.0.x_block.mlp.fc1 double_blocks.1.txt_mlp.2 blocks.2.ffn.0 layers.0.feed_forward.w1 "
    "single_blocks.0.linear2",
    "transformers": "joint_blocks.0.x_block.adaLN_modulation.1 double_blocks.1.img_mod.lin "
    "single_blocks.0.modulation.lin",
    "all linear and conv": "input_blocks.1.0.emb_layers.1",
    "none": "t_embedder.mlp.0 x_embedder.proj final_layer.linear img_in",
}


def test_choices_of_layers_of_transformers():
    network = nn.Module()
    for path in " ".join(FURTHER.values()).split():
        at = network
        *parents, last = path.split(".")
        for name in parents:
            if not hasattr(at, name):
                at.add_module(name, nn.Module())
            at = getattr(at, name)
        at.add_module(last, nn.Linear(2, 2))
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=network))
    want = set()
    for targets in weights.TARGETS:
        want |= {f"lora_unet_{path.replace('.', '_')}" for path in FURTHER[targets].split()}
        assert set(weights.layers(model, targets)) == want
    model.model.diffusion_model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no layers of the choice 'attention'"):
        weights.layers(model)


@pytest.mark.parametrize("targets", ["attention", "all linear and conv"])
def test_cores_loader_gives_what_the_hooks_gave(tiny, make_condition, latent, targets):
    cond = make_condition()
    bare = predicted(tiny, cond, latent)
    where, factors = moved(tiny, targets)
    for strength in (1.0, 0.5):
        with weights.attached(where, factors, strength):
            hooked = predicted(tiny, cond, latent)
        patched, _ = weights.applied(tiny, None, weights.to_lora_model(factors), strength)
        loaded = predicted(patched, cond, latent)
        assert float((loaded - hooked).norm() / (hooked - bare).norm()) < 1e-5
        assert len(patched.patches) == len(factors) and not tiny.patches
    assert torch.equal(predicted(tiny, cond, latent), bare)
    assert weights.applied(tiny, None, weights.to_lora_model(factors), 0.0) == (tiny, None)


def test_training_moves_the_factors_and_no_weight(tiny, make_condition, latent):
    cond, before = make_condition(), state(tiny)
    where = weights.layers(tiny)
    factors = lora.low_rank_all(where.items(), 2, seed=0)
    loop = train(tiny, cond, latent, factors, where)
    assert all(float(f.up.detach().abs().max()) > 0 for f in factors.values())
    assert loop.step == 3 and all(torch.isfinite(torch.tensor(loss)) for _, loss in loop.curve)
    assert same(before, state(tiny)) and not hooks(tiny)
    assert all(p.grad is None for p in tiny.model.parameters())


def test_checkpointing_trains_the_same(tiny, make_condition, latent):
    where = weights.layers(tiny)
    plain, lean = (lora.low_rank_all(where.items(), 2, seed=0) for _ in range(2))
    train(tiny, make_condition(), latent, plain, where)
    train(tiny, make_condition(), latent, lean, where, checkpoint=True)
    for name in plain:
        assert torch.allclose(plain[name].up, lean[name].up, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("error", ["error", "interrupt"])
def test_nothing_is_left_when_training_fails(engine, tiny, make_condition, latent, error):
    kind = engine.Interrupted() if error == "interrupt" else ZeroDivisionError
    where, before, calls = weights.layers(tiny), state(tiny), []
    factors = lora.low_rank_all(where.items(), 2, seed=0)

    def tick():
        calls.append(1)
        if len(calls) == 3:
            raise kind()

    with pytest.raises(kind):
        train(tiny, make_condition(), latent, factors, where, tick=tick)
    assert same(before, state(tiny)) and not hooks(tiny)
    kept = weights.to_lora_model(factors)  # what two steps trained is a valid file
    assert len(kept) == 3 * len(where) and all(torch.isfinite(v).all() for v in kept.values())
    assert not any(m._forward_pre_hooks for m in tiny.model.modules())


def test_weights_cast_on_the_fly(tiny, make_condition, latent):
    """Low memory mode: a module casts its weight at every call and applies a patch there."""
    where, factors = moved(tiny)
    with weights.attached(where, factors):
        plain = predicted(tiny, make_condition(), latent)
        for m in tiny.model.modules():
            if hasattr(m, "comfy_cast_weights"):
                m.comfy_cast_weights = True
                function = lambda w: w + torch.zeros(1).to(w)
                m.weight_function = [function] if isinstance(type(m).weight_function, list) else function
        cast = predicted(tiny, make_condition(), latent)
    assert torch.allclose(plain, cast, rtol=1e-4, atol=1e-5)
    fresh = lora.low_rank_all(where.items(), 2, seed=0)
    train(tiny, make_condition(), latent, fresh, where)
    assert all(float(f.up.detach().abs().max()) > 0 for f in fresh.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_stay_fp32_over_half_precision_weights(make_model, make_condition, latent, dtype):
    model = make_model(dtype=dtype)
    where, factors = moved(model)
    train(model, make_condition(), latent, factors, where)
    assert all(f.up.dtype == torch.float32 and torch.isfinite(f.up).all() for f in factors.values())


def test_a_flow_model_and_a_model_with_class_conditions_train(make_model, make_condition, latent):
    for model in (make_model("FLOW"), make_model("V_PREDICTION")):
        where = weights.layers(model)
        factors = lora.low_rank_all(where.items(), 2, seed=0)
        train(model, make_condition(), latent, factors, where)
        assert all(float(f.up.detach().abs().max()) > 0 for f in factors.values())


def test_a_lora_through_a_file(tiny, tmp_path):
    where, factors = moved(tiny, "all linear and conv")
    made = weights.to_lora_model(factors, {**weights.base_of(tiny), "ss_network_dim": "2"})
    weights.save(made, tmp_path / "loras" / "subject.safetensors", {"steps": "3"})
    found = weights.load(tmp_path / "loras" / "subject.safetensors")
    assert found.keys() == made.keys() and all(torch.equal(found[k], made[k]) for k in made)
    assert found.metadata["steps"] == "3" and found.metadata["ss_network_dim"] == "2"
    weights.check_base(found.metadata, tiny)
    again = weights.from_lora_model(found, where)
    for name, factor in factors.items():
        assert torch.equal(factor.weight(), again[name].weight()) and again[name].stride == factor.stride
    assert all(p.requires_grad and p.is_leaf for p in lora.parameters(again).values())
    only = weights.from_lora_model(found, weights.layers(tiny, "attention"))
    assert set(only) == set(weights.layers(tiny, "attention")) < set(again)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("layer, rest", [(nn.Linear(6, 5), (1, 1)), (nn.Conv2d(6, 5, 1), ())], ids=["linear", "1x1"])
def test_factors_of_a_1x1_convolution_are_read_for_a_linear_and_the_other_way_round(layer, rest):
    up, down = torch.randn(5, 2), torch.randn(2, 6)
    file = {"a.lora_up.weight": up.reshape(5, 2, *rest), "a.lora_down.weight": down.reshape(2, 6, *rest)}
    found = weights.from_lora_model(file, {"a": layer})["a"]
    assert torch.equal(found.weight(), (up @ down).reshape(layer.weight.shape))


def test_refusals(tiny, make_model, tmp_path):
    where, factors = moved(tiny)
    with pytest.raises(ValueError, match="no choice of layers"):
        weights.layers(tiny, "everything")
    with pytest.raises(ValueError, match="Rank 33 does not fit lora_unet_.*rank 32"):
        lora.low_rank_all(where.items(), 33, seed=0)
    before = hooks(tiny)
    with pytest.raises(ValueError, match="no layer"), weights.attached({}, factors):
        pass
    assert hooks(tiny) == before
    other = make_model("V_PREDICTION")
    with pytest.raises(ValueError, match=r"This LoRA was made with.*prediction type.*train anew"):
        weights.check_base(weights.base_of(tiny), other)
    weights.check_base({}, other)
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a.safetensors can't be read"):
        weights.load(tmp_path / "a.safetensors")
    weights.save({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="holds no LoRA"):
        weights.load(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="no layer of this model"):
        weights.from_lora_model({}, where)
    wrong = {k: v[..., :-1] if k.endswith("down.weight") else v for k, v in weights.to_lora_model(factors).items()}
    with pytest.raises(ValueError, match="another shape"):
        weights.from_lora_model(wrong, where)
    layer = next(iter(where.values()))
    layer.weight = nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised"):
        weights.layers(tiny)


def test_quantised_layers_of_a_class_of_their_own_are_said_to_be_quantised(tiny):
    from nulltext.benchmarks.families.stand_ins import quantise

    quantise(tiny.model.diffusion_model)
    with pytest.raises(ValueError, match="quantised .* load the model in fp16"):
        weights.layers(tiny, "attention")


def test_the_base_in_the_metadata_is_the_fingerprint(tiny):
    from nulltext.engine.fingerprint import fingerprint

    assert json.loads(weights.base_of(tiny)[weights.BASE]) == fingerprint(tiny)


def test_what_may_differ_from_the_training_is_a_notice(tiny, make_model):
    then = weights.base_of(tiny)
    assert weights.check_base(then, tiny) == weights.check_base({}, tiny) == []
    (told,) = weights.check_base(then, make_model(dtype=torch.float16))
    assert "was trained on weights in float32, and this model's are in float16" in told
    (told,) = weights.check_base(then, weights.applied(tiny, None, weights.to_lora_model(moved(tiny)[1]))[0])
    assert "other LoRAs on the model" in told
    other, sampling = tiny.clone(), copy.deepcopy(tiny.get_model_object("model_sampling"))
    sampling.sigmas = sampling.sigmas * 1.1
    other.add_object_patch("model_sampling", sampling)
    (told,) = weights.check_base(then, other)
    assert "another noise schedule" in told
    clip = SimpleNamespace(patcher=SimpleNamespace(patches={}))
    over = SimpleNamespace(patcher=SimpleNamespace(patches={"a": [(1.0, torch.ones(2))]}))
    assert not weights.check_base(weights.text_base_of(clip), tiny, clip)
    assert not weights.check_base(then, tiny, over)
    (told,) = weights.check_base(weights.text_base_of(over), tiny, clip)
    assert "other LoRAs on the text encoder" in told


def test_another_checkpoint_is_refused_and_the_switch_named(tiny, make_model):
    other = make_model()
    with torch.inference_mode():
        for p in other.model.parameters():
            p.mul_(1.1)
    with pytest.raises(ValueError, match=r"other weights \(another checkpoint\).*switch off same_model in Load LoRA"):
        weights.check_base(weights.base_of(tiny), other)
    then = json.loads(weights.base_of(tiny)[weights.BASE]) | {"structure": "x", "precision": "bfloat16"}
    with pytest.raises(ValueError, match="another architecture"):  # in another precision too
        weights.check_base({weights.BASE: json.dumps(then)}, tiny)


def test_lora_files_of_every_kind_pass_and_damaged_ones_do_not(tmp_path):
    def saved(**tensors):
        made = {name.replace("__", "."): value.clone() for name, value in tensors.items()}
        weights.save(made, tmp_path / "x.safetensors")
        return weights.load(tmp_path / "x.safetensors")

    one = torch.ones(2, 2)
    saved(lycoris_down_blocks_0__lokr_w1=one, lycoris_down_blocks_0__lokr_w2=one)
    saved(diffusion_model__a__hada_w1_a=one)
    saved(unet__a__lora_A__weight=one, unet__a__lora_B__weight=one)
    for part in ("A", "B"):
        with pytest.raises(ValueError, match="has no (up|down) factor"):
            saved(**{f"unet__a__lora_{part}__weight": one})
