"""Guidance nodes with what else this pack offers: inversions, masked sampling, other samplers."""

import pytest
import torch
from nulltext.engine import terms
from nulltext.engine.guider import guider_class
from nulltext.engine.noise import model_notes, source_latent
from nulltext.engine.sampler import core_sampler
from nulltext.nodes import NODE_CLASS_MAPPINGS as NODES
from nulltext.samplers.core import PROCESSES
from nulltext.samplers.guidance.terms import Guidance
from nulltext.samplers.inversion.record import Inversion


def run(node, **inputs):
    """A node's outputs, under inference mode as the engine runs it."""
    with torch.inference_mode():
        made = NODES[f"NullText_{node}"]()
        return getattr(made, made.FUNCTION)(**inputs)["result"]


def likes_ones(model):
    """The model with a guidance that pulls every estimate towards 1."""
    term = Guidance(lambda x, s, d: -(d - 1).pow(2).flatten(1).sum(1), "decoder", 0.5, name="ones")
    return terms.attach(model, [terms.Term(term)])


def walk(model, make_condition, noise, latent, sigmas, sampler="euler", mask=None):
    guider = guider_class()(model)
    guider.set_conds(make_condition(1), make_condition(2))
    guider.set_cfg(1.0)
    with torch.inference_mode():
        return guider.sample(
            noise, latent, core_sampler(sampler), sigmas, denoise_mask=mask, disable_pbar=True, seed=0
        ).clone()


@pytest.mark.parametrize("kind,levels", [("EPS", [4.0, 2.0, 1.0, 0.0]), ("FLOW", [0.9, 0.6, 0.3, 0.0])])
def test_start_noise_from_an_inversion(make_model, make_condition, kind, levels):
    model, sigmas = make_model(kind), torch.tensor(levels)
    process = "flow" if kind == "FLOW" else "ve"
    draws = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    path = torch.stack([PROCESSES[process].noised(draws[0], s, draws[1]) for s in sigmas])
    inversion = Inversion(sigmas, path, process=process, metadata=model_notes(model, levels[0]))
    inputs = {
        "positive": make_condition(1),
        "negative": make_condition(2),
        "seed": 4,
        "steps": 7,
        "cfg": 1.0,
        "scheduler": "karras",
        "iterations": 5,
        "learning_rate": 0.05,
        "prior": 1.0,
        "inversion": inversion,
        "latent": {"samples": torch.zeros(3, 4, 4, 4)},
    }
    latent, noise, told, _ = run("OptimiseStartNoise", model=likes_ones(model), **inputs)
    assert torch.equal(told, sigmas) and latent["samples"].shape == (1, 4, 8, 8)
    moved = (noise.start - path[0]).pow(2).mean().sqrt() / path[0].pow(2).mean().sqrt()
    assert 0.01 < moved < 0.3  # from x_T of the picture, not from other noise
    source = source_latent(inversion)
    for given in (source, torch.zeros_like(source)):
        again = walk(model, make_condition, noise.generate_noise({"samples": given}), given, sigmas)
        torch.testing.assert_close(again, latent["samples"], rtol=2e-3, atol=5e-3)


def test_guidance_under_a_noise_mask_is_the_guided_half_of_blended_diffusion(engine, tiny, make_condition):
    noise, latent = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sigmas, mask = engine.sigmas_of(tiny, "karras", 4), torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    guided, plain = (walk(m, make_condition, noise, latent, sigmas, mask=mask) for m in (likes_ones(tiny), tiny))
    inside = mask.expand_as(latent) > 0
    torch.testing.assert_close(guided[~inside], latent[~inside], rtol=1e-3, atol=1e-3)
    assert (guided - plain)[inside].abs().mean() > 0.01
    inputs = {
        "positive": make_condition(1),
        "negative": make_condition(2),
        "latent": {"samples": latent},
        "seed": 3,
        "mask": mask[0],
        "cfg": 1.0,
        "steps": 5,
        "t0": 0.9,
        "start": "noise",
        "shrink": 0,
        "noise": "fresh",
        "hold": "blend (Algorithm 2)",
        "weight": 1.0,
    }
    out, same = (run("BlendedDiffusion", model=m, **inputs)[0]["samples"] for m in (likes_ones(tiny), tiny))
    assert torch.equal(out[~inside], latent[~inside]) and (out - same)[inside].abs().mean() > 0.01


@pytest.mark.parametrize("sampler", ["heun", "euler_ancestral", "dpmpp_2m", "uni_pc"])
def test_any_sampler_leaves_a_trace(engine, tiny, make_condition, sampler):
    noise, sigmas = (
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        engine.sigmas_of(tiny, "karras", 4),
    )
    model = likes_ones(tiny)
    out = walk(model, make_condition, noise, torch.zeros_like(noise), sigmas, sampler)
    assert (out - walk(tiny, make_condition, noise, torch.zeros_like(noise), sigmas, sampler)).abs().mean() > 0.01
    steps = terms.trace_of(model).steps
    seen = [s["sigma"] for s in steps]
    assert seen == sorted(seen, reverse=True) and abs(seen[0] - float(sigmas[0])) < 0.02 * seen[0]
    assert len(steps) >= 4 and all("ones" in s["terms"] for s in steps)
