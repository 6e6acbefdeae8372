"""Mixing predictions: r = (1, 0) is the model to the bit, weights sum to one, no hook stays."""

import math
import weakref

import pytest
import torch
from nulltext.engine import imagic, lora_names, mixing, weights
from nulltext.engine.comfy import sigmas_of
from nulltext.engine.sampler import core_sampler, own_sampler, sample_latent
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.mixing import Share
from nulltext.samplers.tuning.whole import changeable
from nulltext.samplers.window import SigmaWindow
from nulltext.tests.running import fails_and_is_interrupted


def a_lora(model, seed, scale=0.4, layers="attention"):
    factors = lora.low_rank_all(weights.layers(model, layers).items(), 2, seed=seed)
    g = torch.Generator().manual_seed(seed)
    for f in factors.values():
        with torch.no_grad():
            f.up.copy_(scale * torch.randn(f.up.shape, generator=g))
    return weights.to_lora_model(factors, weights.base_of(model))


@pytest.fixture
def sigmas(tiny, engine):
    return engine.sigmas_of(tiny, "normal", 3)


def mix(model, tuned, ends, latent, sigmas, cfg=3.0):
    with torch.inference_mode():
        guider = mixing.mix_guider(model, tuned, *ends, cfg)
        return guider.sample(
            torch.zeros_like(latent),
            latent,
            own_sampler(sample_euler, start=3 * latent),
            sigmas,
            disable_pbar=True,
            seed=1,
        )


def plain(model, ends, latent, sigmas, cfg=3.0):
    with torch.inference_mode():
        sampler = own_sampler(sample_euler, start=3 * latent)
        return sample_latent(model, *ends, cfg, sampler, sigmas, {"samples": latent}, 1)["samples"]


def test_weight_0_is_the_model_and_weight_1_the_lora_alone(tiny, ends, latent, sigmas):
    a, args = a_lora(tiny, 1, 0.1), (ends, latent, sigmas[-2:])
    bare = plain(tiny, *args)
    assert torch.equal(mix(tiny, [(a, Share(0.0))], *args), bare)
    loaded = plain(weights.applied(tiny, None, a)[0], *args)  # core's loader: the product is in the weights
    made = mix(tiny, [(a, Share(1.0))], *args)
    assert not torch.allclose(bare, loaded, rtol=1e-2)
    assert float((made - loaded).norm() / (bare - loaded).norm()) < 1e-4
    assert torch.equal(plain(tiny, *args), bare)


def test_half_and_half_is_the_mean_of_the_predictions(tiny, ends, latent, sigmas):
    """One step to 0 gives D itself."""
    a, b, one = a_lora(tiny, 1), a_lora(tiny, 2), sigmas[-2:]
    args = (ends, latent, one)
    bare, first, second = plain(tiny, *args), *(mix(tiny, [(x, Share(1.0))], *args) for x in (a, b))
    found = mix(tiny, [(a, Share(0.3))], *args)
    assert torch.allclose(found, 0.7 * bare + 0.3 * first, atol=1e-4)
    both = mix(tiny, [(a, Share(1.0)), (b, Share(1.0))], *args)
    assert torch.allclose(both, (first + second) / 2, atol=1e-4)
    assert not torch.allclose(first, second, rtol=1e-2)


def test_a_window_is_where_the_lora_counts(tiny, ends, latent, sigmas):
    a = a_lora(tiny, 1)
    early = SigmaWindow(float("inf"), float(sigmas[1]) + 1e-3)
    rows = []
    tiny.model.diffusion_model.register_forward_pre_hook(lambda m, args: rows.append(1))
    found = mix(tiny, [(a, Share(0.5, early))], ends, latent, sigmas)
    assert len(rows) == 4  # two predictions at the first level, one at the others
    assert not torch.allclose(found, mix(tiny, [(a, Share(0.5))], ends, latent, sigmas), rtol=1e-3)


def test_no_hook_stays_after_success_error_and_interrupt(tiny, engine, ends, latent, sigmas):
    a, args = a_lora(tiny, 1), (ends, latent, sigmas)
    bare, net = plain(tiny, *args), tiny.model.diffusion_model

    def hooks():
        return sum(len(m._forward_hooks) for m in net.modules())

    before = hooks()
    mix(tiny, [(a, Share(0.5))], *args)
    assert hooks() == before

    fails_and_is_interrupted(engine, net, lambda: mix(tiny, [(a, Share(0.5))], *args))
    assert hooks() == before and torch.equal(plain(tiny, *args), bare)


def test_the_changes_lie_on_the_device_only_while_they_are_used(tiny, ends, latent, sigmas, monkeypatch):
    """There in the dtype that computes; the guider, which stays with the graph, holds what it was given."""
    moved, to = [], lora.LowRank.to
    monkeypatch.setattr(
        lora.LowRank, "to", lambda self, *where: moved.append((where, weakref.ref(made := to(self, *where)))) or made
    )
    monkeypatch.setattr(mixing, "compute_dtype", lambda model: torch.bfloat16)
    a, args = a_lora(tiny, 1, 0.1), (ends, latent, sigmas[-2:])
    guider = mixing.mix_guider(tiny, [(a, Share(0.5))], *ends, 3.0)
    assert not moved
    with torch.inference_mode():
        sampler = own_sampler(sample_euler, start=3 * latent)
        found = guider.sample(torch.zeros_like(latent), latent, sampler, sigmas[-2:], disable_pbar=True, seed=1)
    assert {where for where, _ in moved} == {(tiny.load_device, torch.bfloat16)}
    assert not any(change() for _, change in moved)
    monkeypatch.undo()
    bare = plain(tiny, *args)
    whole = mix(tiny, [(a, Share(0.5))], *args)
    assert float((found - whole).norm() / (whole - bare).norm()) < 0.02


def test_a_lora_of_another_model_is_refused(tiny, make_model, ends):
    other = a_lora(make_model("V_PREDICTION"), 1)
    with pytest.raises(ValueError, match="LoRA"):
        mixing.mix_guider(tiny, [(other, Share(1.0))], *ends, 1.0)


# -- files of other tools, in both guiders


def guiders(model, tensors, ends):
    """Imagic Guider and Mix Models with this LoRA at full strength."""
    yield imagic.imagic_guider(model, tensors, ends[0], None, ends[1], 3.0, [1.0])
    yield mixing.mix_guider(model, [(tensors, Share(1.0))], *ends, 3.0)


def check_like_core(model, tensors, loaded, ends, latent):
    """Both guiders with `tensors` sample what the MODEL `loaded` does, to a part of what the LoRA changes."""
    sigmas = torch.tensor([2.0, 0.0])
    bare, args = plain(model, ends, latent, sigmas), (torch.zeros_like(latent), latent)
    wanted = plain(loaded, ends, latent, sigmas)
    for guider in guiders(model, tensors, ends):
        with torch.inference_mode():
            sampler = own_sampler(sample_euler, start=3 * latent)
            made = guider.sample(*args, sampler, sigmas, disable_pbar=True, seed=1)
        assert float((made - wanted).norm() / (wanted - bare).norm()) < 1e-4


def with_layer(model, name, scale=0.1):
    """A LoRA of the attention layers and of one layer more."""
    layer = {name: weights.whole_layers(model)[name]}
    factors = lora.low_rank_all(layer.items(), 2, seed=3)
    with torch.no_grad():
        factors[name].up.copy_(scale * torch.randn(factors[name].up.shape, generator=torch.Generator().manual_seed(4)))
    return weights.LoraModel(a_lora(model, 1, scale) | weights.to_lora_model(factors))


@pytest.mark.parametrize("name", ["time_embed_0", "input_blocks_0_0", "out_2"])
def test_layers_outside_the_blocks_count_as_in_cores_loader(tiny, ends, latent, name):
    tensors = with_layer(tiny, f"lora_unet_{name}")
    check_like_core(tiny, tensors, weights.applied(tiny, None, tensors)[0], ends, latent)


def renamed(model, engine, tensors, kind):
    """The same LoRA as another tool names it."""
    known = engine.get("utils").unet_to_diffusers(model.model.model_config.unet_config)
    theirs = {to.removesuffix(".weight"): name.removesuffix(".weight") for name, to in known.items()}
    paths = {f"lora_unet_{p.replace('.', '_')}": p for p, _ in model.model.diffusion_model.named_modules()}
    out = {}
    for key, value in tensors.items():
        layer, part = key.split(".", 1)
        path = paths[layer]
        if kind == "kohya":
            out[f"lora_unet_{theirs[path].replace('.', '_')}.{part}"] = value
        elif kind == "core's trainer":
            out[f"diffusion_model.{path}.{part}"] = value
        elif part != "alpha":  # the factors of a_lora have alpha = rank
            path = f"unet.{theirs[path].replace('.to_', '.processor.to_')}".removesuffix(".0")
            out[f"{path}_lora.{part.removeprefix('lora_')}"] = value
    return out


@pytest.mark.parametrize("kind", ["kohya", "core's trainer", "diffusers"])
def test_names_of_other_tools_are_read(tiny, engine, ends, latent, kind):
    own = a_lora(tiny, 1, 0.1)
    theirs = renamed(tiny, engine, own, kind)
    assert len(theirs) == len(own) * (2 / 3 if kind == "diffusers" else 1)
    check_like_core(tiny, theirs, weights.applied(tiny, None, own)[0], ends, latent)


def test_what_cores_own_trainer_makes_counts_as_in_cores_loader(tiny, ends, latent):
    """Flat factors of rank 8 for every matrix, of a convolution to 4 channels too; whole norms; biases, which take no
    room for the weights beside them."""
    g, tensors = torch.Generator().manual_seed(1), {}
    for path, layer in tiny.model.diffusion_model.named_modules(prefix="diffusion_model"):
        if changeable(layer):
            out, *inside = layer.weight.shape
            parts = {"lora_up.weight": (out, 8), "lora_down.weight": (8, math.prod(inside))} if inside else {}
            shapes = (parts or {"diff": (out,)}) | ({} if layer.bias is None else {"diff_b": (out,)})
            tensors |= {f"{path}.{part}": 0.02 * torch.randn(shape, generator=g) for part, shape in shapes.items()}
            tensors |= {f"{path}.alpha": torch.tensor(1.0)} if parts else {}
    assert tensors["diffusion_model.out.2.lora_up.weight"].shape == (4, 8)
    loaded = weights.applied(tiny, None, lora_names.standard(tiny, tensors))[0]  # June 2024's loader knows only those
    check_like_core(tiny, tensors, loaded, ends, latent)
    changes, _ = mixing.changes_to(tiny, tensors)
    held = [value for each in changes for c in each.values() for value in c.trained().values()]
    assert sum(value.nbytes for value in held) <= sum(value.nbytes for value in tensors.values())


@pytest.mark.parametrize("part", ["dora_scale", "lora_mid.weight", "hada_w1_a", "diff_b"])
def test_a_part_that_can_not_be_switched_is_refused_by_name(tiny, ends, part):
    own = a_lora(tiny, 1)
    name = f"{next(key for key in own if 'to_q' in key).split('.')[0]}.{part}"  # a layer without a bias
    told = rf"{name} \(1 such\) .*Load LoRA"
    for make in (
        lambda lora: mixing.mix_guider(tiny, [(lora, Share(1.0))], *ends, 1.0),
        lambda lora: imagic.imagic_guider(tiny, lora, ends[0], None, ends[1], 1.0, [1.0]),
    ):
        with pytest.raises(ValueError, match=told):
            make({**own, name: torch.ones(32)})
        make({**own, name.replace("lora_unet", "lora_te"): torch.ones(32)})  # a text encoder's part is not asked


def test_a_lora_of_another_family_is_refused(tiny, ends):
    theirs = {f"lora_unet_double_blocks_0_img_attn_qkv.lora_{part}.weight": torch.ones(2, 2) for part in ("up", "down")}
    with pytest.raises(ValueError, match="no layer of this model: take one"):
        mixing.mix_guider(tiny, [(theirs, Share(1.0))], *ends, 1.0)


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_sde"])
def test_an_imagic_strip_has_the_same_noise_in_every_row(tiny, ends, name):
    guider = imagic.imagic_guider(tiny, None, ends[0], ends[1], ends[1], 2.0, [0.5, 0.5, 1.0])
    latent = torch.zeros(1, 4, 8, 8)
    with torch.inference_mode():
        out = guider.sample(
            torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)),
            latent,
            core_sampler(name),
            sigmas_of(tiny, "normal", 4),
            seed=5,
            disable_pbar=True,
        )
    torch.testing.assert_close(out[0], out[1], rtol=1e-4, atol=1e-4)
    assert (out[0] - out[2]).abs().max() > 1e-3
