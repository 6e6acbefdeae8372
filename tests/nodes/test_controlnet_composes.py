"""What composes with a ControlNet: every technique runs with one in its conditionings, an untrained one changes
nothing, one that lets the hint through does. The same table stands on Make ControlNet's help page."""

from types import SimpleNamespace

import pytest
import torch
from nulltext import NODE_CLASS_MAPPINGS as NODES
from nulltext.demo import weights as demo_weights
from nulltext.engine import controlnet, terms
from nulltext.engine.comfy import get
from nulltext.samplers.guidance.terms import Guidance


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():  # as nodes run
        yield


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    """A random model, and in either form an untrained control net and one whose weights are all shaken."""
    import nulltext.engine.demo_family as family

    family.register()
    folder = tmp_path_factory.mktemp("composes")
    demo_weights.random_checkpoint(folder / "model.safetensors", seed=4)
    g, controls = torch.Generator().manual_seed(5), {}
    with torch.inference_mode():
        model, clip = engine.get("sd").load_checkpoint_guess_config(str(folder / "model.safetensors"))[:2]
        for kind in ("small", "full"):
            form = controlnet.fresh(model, kind, rank=4)
            shaken = {k: v + 0.03 * torch.randn(v.shape, generator=g) for k, v in form.items()}
            controls[kind] = [controlnet.control_of(f, folder) for f in (form, shaken)]
    return SimpleNamespace(model=model, clip=clip, controls=controls)


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
    given |= {name: value for name, value in SHORT.items() if name in given}
    return NODES[box]().run(**(given | own))["result"]


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


def guided_through_the_network(m, p, n):
    """Under core's KSampler, which works in inference mode: the control net's weights are in the graph too."""
    darker = Guidance(lambda x, sigma, denoised: -denoised.square().flatten(1).mean(1), "network", scale=3.0)
    model = terms.attach(m, [terms.Term(darker)])
    return get("nodes").common_ksampler(model, 3, 2, 3.0, "euler", "normal", p, n, {"samples": LATENT})[0]


TECHNIQUES = (inversion, null_text, repaint, disturbance, sdedit, ilvr, blended, direct_edit, prompt_to_prompt)
TECHNIQUES += (guided_through_the_network,)


def tensor(value):
    return value["samples"] if isinstance(value, dict) else value


@pytest.mark.parametrize("kind", ["small", "full"])
@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda t: t.__name__)
def test_it_composes(engine, parts, technique, kind):
    prompt = NODES["NullText_Prompt"]()
    positive, negative = (prompt.run(parts.clip, text) for text in ("a red circle", ""))
    positive, negative = (c["result"][0] if isinstance(c, dict) else c[0] for c in (positive, negative))
    apply = engine.get("nodes").ControlNetApplyAdvanced().apply_controlnet
    plain = tensor(technique(parts.model, positive, negative))
    untrained, led = (
        tensor(technique(parts.model, *apply(positive, negative, control, HINT, 1.0, 0.0, 1.0)[:2]))
        for control in parts.controls[kind]
    )
    scale = float(plain.abs().max())
    # Adam divides by a gradient's own size, so the rounding of weak gradients shows in null embeddings
    near = 1e-3 if technique is null_text else 1e-5
    torch.testing.assert_close(untrained, plain, rtol=0, atol=near * scale)
    assert torch.isfinite(led).all()
    assert float((led - plain).abs().max()) > 1e-4 * scale
