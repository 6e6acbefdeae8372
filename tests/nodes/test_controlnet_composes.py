"""What composes with a ControlNet: every technique runs with one in its conditionings, an untrained one changes
nothing, one that lets the hint through does. The same table stands on Make ControlNet's help page."""

from types import SimpleNamespace

import pytest
import torch
from nulltext import NODE_CLASS_MAPPINGS as NODES
from nulltext.engine import comfy as bridge
from nulltext.engine import controlnet, weights
from nulltext.nodes.guidance import NETWORK
from nulltext.samplers.inversion.table import PIVOTS
from nulltext.samplers.tuning import lora
from nulltext.tests import stand_ins
from nulltext.tests.running import sample

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    """A random model, and in either form an untrained control net and one whose weights are all shaken."""
    folder = tmp_path_factory.mktemp("composes")
    made, g = stand_ins.demo_parts(engine, folder, seed=4), torch.Generator().manual_seed(5)
    made.controls = {}
    with torch.inference_mode():
        for kind in ("small", "full"):
            form = controlnet.fresh(made.model, kind, rank=4)
            shaken = {k: v + 0.03 * torch.randn(v.shape, generator=g) for k, v in form.items()}
            made.controls[kind] = [controlnet.control_of(f, folder) for f in (form, shaken)]
    return made


HINT = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
LATENT = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6))
MASK = torch.zeros(1, 64, 64)
MASK[:, 16:48, 16:48] = 1
SHORT = {"steps": 3, "cfg": 3.0, "levels": 6, "jump": 2, "resamples": 2, "steps_above": 2, "steps_below": 2}
SHORT |= {"schedule": "custom", "inner_steps": 2, "use_cache": False, "strip": "", "maps": 2, "plain_steps": 1}


def run(box, **own):
    """The node at its defaults, made short, with these inputs."""
    given, taken = {}, NODES[box].INPUT_TYPES()
    for name, spec in taken["required"].items():
        words = spec[0] if isinstance(spec[0], list) else None
        given[name] = spec[1].get("default", words[0] if words else None)
    given |= {name: value for name, value in SHORT.items() if type(given.get(name)) is type(value)}
    made = NODES[box]().run(**(given | own))
    return made["result"] if isinstance(made, dict) else made


def invert(model, source, negative, **own):
    return run("NullText_Inverter", model=model, positive=source, negative=negative, latent={"samples": LATENT}, **own)


def inversion(m, p, n):
    return invert(m, p, n, correction="none")[0].trajectory[0]


def null_text(m, p, n):
    return torch.stack(list(invert(m, p, n)[0].null_embeddings))


def repaint(m, p, n):
    return run("NullText_RePaintSampler", model=m, positive=p, negative=n, latent={"samples": LATENT}, mask=MASK)[0]


def disturbance(m, p, n):
    return run("NullText_DisturbanceSampler", model=m, positive=p, negative=n, latent={"samples": LATENT * 0})[0]


def sdedit(m, p, n):
    return run("NullText_SDEdit", model=m, positive=p, negative=n, latent={"samples": LATENT})[0]


def ilvr(m, p, n):
    return run("NullText_ILVRSampler", model=m, positive=p, negative=n, reference={"samples": LATENT})[0]


def blended(m, p, n):
    return run("NullText_BlendedDiffusion", model=m, positive=p, negative=n, latent={"samples": LATENT}, mask=MASK)[0]


def direct_edit(m, p, n):
    return run(
        "NullText_DirectEdit", model=m, source=p, target=p, negative=n, latent={"samples": LATENT}, source_cfg=1.5
    )[0]


def prompt_to_prompt(m, p, n):
    return run("NullText_PromptToPrompt", model=m, source=p, edited=p, negative=n, latent={"samples": LATENT * 0})[0]


def walked(guider, model):
    """LATENT samples by a GUIDER, from noise."""
    return sample(guider, 3 * LATENT, bridge.sigmas_of(model, "normal", 3))


def cores_guider(m, p, n, cfg=3.0):
    guider = bridge.get("samplers").CFGGuider(m)
    guider.set_conds(p, n)
    guider.set_cfg(cfg)
    return guider


def drawn(m, p, n):
    """core's KSampler on a patched MODEL"""
    nodes = bridge.get("nodes")
    return nodes.KSampler().sample(m, 3, 3, 3.0, "euler", "normal", p, n, {"samples": LATENT * 0}, 1.0)[0]


def replay_with_an_edit(m, p, n):
    record = invert(m, p, n, correction="none")[0]
    return run("NullText_Sampler", model=m, inversion=record, positive=p, negative=n)[0]


def exact_pairs(m, p, n):
    given = {
        "model": m,
        "positive": p,
        "latent": {"samples": LATENT},
        "pivot": PIVOTS["exact_pair"].title,
        "negative": n,
    }
    return run("NullText_InvertImage", **given)[0].trajectory[0]


def diffedit(m, p, n):
    record = invert(m, p, n, correction="none")[0]
    return run("NullText_DiffEdit", model=m, positive=p, negative=n, inversion=record, mask=MASK)[0]


def diffedit_mask(m, p, n):
    # the mask is the same two prompts' difference: a control in one of them alone shows in it
    given = {"model": m, "source": p, "target": n, "latent": {"samples": LATENT}, "threshold": 0.0}
    return run("NullText_DiffEditMask", **given)[1]


def repaint_on_cores_guider(m, p, n):
    sigmas, mask = bridge.sigmas_of(m, "normal", 3), MASK[:, None, ::8, ::8]
    return sample(cores_guider(m, p, n), 3 * LATENT, sigmas, LATENT, run("NullText_RePaint")[0], mask=mask)


def prompt_to_prompt_guider(m, p, n):
    guider = run("NullText_PromptToPromptGuider", model=m, source=p, edited=p, negative=n)[0]
    return walked(guider, m)


def null_text_guider(m, p, n):
    record = invert(m, p, n, correction="none")[0]
    guider = run("NullText_Guider", model=m, inversion=record, positive=p, negative=n)[0]
    return sample(guider, record.trajectory[0], record.sigmas)


def lora_of(m):
    """Factors of every attention layer, well away from 0."""
    factors = lora.low_rank_all(weights.layers(m).items(), 2, seed=0)
    with torch.no_grad():
        for factor in factors.values():
            factor.up.fill_(0.05)
    return weights.to_lora_model(factors)


def a_lora(m, p, n):
    return drawn(weights.applied(m, None, lora_of(m))[0], p, n)


def imagic_guider(m, p, n):
    guider = run("NullText_ImagicGuider", model=m, target=p, negative=n, optimised=p, lora=lora_of(m))[0]
    return walked(guider, m)


def mix_models(m, p, n):
    guider = run("NullText_MixModels", model=m, positive=p, negative=n, lora_model=lora_of(m), weight=0.5)[0]
    return walked(guider, m)


def diffusion_clip_edit(m, p, n):
    given = {"model": m, "positive": p, "latent": {"samples": LATENT}, "lora_model": lora_of(m)}
    return run("NullText_DiffusionCLIPEdit", **given, inversion_steps=3)[0]


def directed(m, p):
    given = {"model": m, "positive": p, "latent": {"samples": LATENT}, "target_latent": {"samples": -LATENT}}
    return run("NullText_HSpaceDirection", **given, samples=2)[0]


def h_space_direction(m, p, n):
    return directed(m, p).shifts


def asyrp(m, p, n):
    sampler, sigmas = run("NullText_AsyrpSampler", model=m, direction=directed(m, p))
    return sample(cores_guider(m, p, n, 1.0), 3 * LATENT, sigmas, sampler=sampler)


def on_the_model(box, words=False, **own):
    """A technique that patches a MODEL, under core's KSampler."""

    def technique(m, p, n):
        given = own | ({"positive": p} if words else {})
        return drawn(run(box, model=m, **given)[0], p, n)

    technique.__name__ = box
    return technique


TECHNIQUES = (inversion, null_text, repaint, disturbance, sdedit, ilvr, blended, direct_edit, prompt_to_prompt)
#: these need not know in which form the control net is kept: one form each
OTHERS = (
    replay_with_an_edit,
    exact_pairs,
    null_text_guider,
    prompt_to_prompt_guider,
    diffedit,
    diffedit_mask,
    repaint_on_cores_guider,
    a_lora,
    imagic_guider,
    mix_models,
    diffusion_clip_edit,
    h_space_direction,
    asyrp,
    on_the_model("NullText_AttentionReweight", words=True, weights="red: 2"),
    on_the_model("NullText_AttentionRecord", words=True),
    on_the_model("NullText_CFGConvention"),
    on_the_model("NullText_Disturbance", start_percent=0.0),
    on_the_model("NullText_ProximalGuidance"),
    on_the_model("NullText_ILVR", reference={"samples": LATENT}),
)
CELLS = [(t, kind) for t in TECHNIQUES for kind in ("small", "full")] + [(t, "small") for t in OTHERS]


def tensor(value):
    return value["samples"] if isinstance(value, dict) else value


@pytest.mark.parametrize(("technique", "kind"), CELLS, ids=lambda t: getattr(t, "__name__", t))
def test_it_composes(parts, technique, kind):
    # Adam divides by a gradient's own size, so the rounding of weak gradients shows in null embeddings
    check(parts, kind, technique, 1e-3 if technique is null_text else 1e-5)


def check(parts, kind, technique, near):
    """An untrained control net changes nothing, to `near` of the largest value; a shaken one does."""
    prompt = NODES["NullText_Prompt"]()
    positive, negative = (prompt.run(parts.clip, text) for text in ("a red circle", ""))
    positive, negative = (c["result"][0] if isinstance(c, dict) else c[0] for c in (positive, negative))
    apply = bridge.get("nodes").ControlNetApplyAdvanced().apply_controlnet
    plain = tensor(technique(parts.model, positive, negative))
    untrained, led = (
        tensor(technique(parts.model, *apply(positive, negative, control, HINT, 1.0, 0.0, 1.0)[:2]))
        for control in parts.controls[kind]
    )
    scale = float(plain.abs().max())
    torch.testing.assert_close(untrained, plain, rtol=0, atol=near * scale)
    assert torch.isfinite(led).all()
    assert float((led - plain).abs().max()) > 1e-4 * scale


@pytest.fixture
def towers(vae, image_text, classifier):
    return SimpleNamespace(vae=vae, image_text=image_text, classifier=classifier)


def guided_by(box, m, towers, **own):
    """The node on a MODEL; its gradient passes through the network where there are towers of pictures."""
    kinds = NODES[box].INPUT_TYPES()
    given = {"vae": towers.vae, "image_text": towers.image_text, "classifier": towers.classifier}
    given = {k: v for k, v in given.items() if any(k in group for group in kinds.values())}
    if "image_text" in given:
        own = own | {"gradient_mode": NETWORK}
    return run(box, model=m, **given, **own)[0]


GUIDANCE = {
    "NullText_ClassifierGuidance": {"class_name": "cat", "scale": 5.0},
    "NullText_CLIPGuidance": {"cutouts": 1},
    "NullText_SemanticGuidance": {"text": "a red circle", "text_weight": 50.0, "content_weight": 0.0},
}


@pytest.mark.parametrize("box", GUIDANCE)
def test_guidance_composes(parts, towers, box):
    """The gradient passes through the network and its control net."""
    check(parts, "small", lambda m, p, n: drawn(guided_by(box, m, towers, **GUIDANCE[box]), p, n), 1e-3)


def test_a_start_noise_is_optimised_under_a_control_net(parts, towers):
    def technique(m, p, n):
        guided = guided_by("NullText_ClassifierGuidance", m, towers, **GUIDANCE["NullText_ClassifierGuidance"])
        given = {"model": guided, "positive": p, "negative": n, "latent": {"samples": LATENT * 0}}
        return run("NullText_OptimiseStartNoise", **given, iterations=2)[0]

    check(parts, "small", technique, 1e-3)


def test_a_caption_with_a_control_net_is_not_trained_on(parts):
    words = bridge.encode(parts.clip, "a red circle")
    apply = bridge.get("nodes").ControlNetApplyAdvanced().apply_controlnet
    led = apply(words, words, parts.controls["small"][1], HINT, 1.0, 0.0, 1.0)[0]
    given = {"model": parts.model, "target": led, "negative": words, "latent": {"samples": LATENT}}
    given |= {"levels": "the model's own"}
    with pytest.raises(ValueError, match="not combined, regional or with ControlNet"):
        run("NullText_ImagicOptimise", **given)
