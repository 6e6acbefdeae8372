"""Guidance nodes with what else this pack offers: inversions, masked sampling, other samplers."""

import pytest
import torch
from nulltext.engine import terms
from nulltext.engine.noise import model_notes, source_latent
from nulltext.nodes.blended import LOSS
from nulltext.samplers.core import PROCESSES
from nulltext.samplers.inversion.record import Inversion
from nulltext.tests.running import block_patched, likes_ones, normal, run, walk


@pytest.mark.parametrize("kind,levels", [("EPS", [4.0, 2.0, 1.0, 0.0]), ("FLOW", [0.9, 0.6, 0.3, 0.0])])
def test_start_noise_from_an_inversion(make_model, ends, kind, levels):
    model, sigmas = make_model(kind), torch.tensor(levels)
    process, draws = "flow" if kind == "FLOW" else "ve", normal(2, 1, 4, 8, 8)
    path = torch.stack([PROCESSES[process].noised(draws[0], s, draws[1]) for s in sigmas])
    inversion = Inversion(sigmas, path, process=process, metadata=model_notes(model, levels[0]))
    inputs = {"positive": ends[0], "negative": ends[1], "latent": torch.zeros(3, 4, 4, 4), "inversion": inversion}
    inputs |= {"seed": 4, "steps": 7, "cfg": 1.0, "scheduler": "karras", "iterations": 5, "learning_rate": 0.05}
    latent, noise, told, _ = run("OptimiseStartNoise", model=likes_ones(model), prior=1.0, **inputs)
    assert torch.equal(told, sigmas) and latent["samples"].shape == (1, 4, 8, 8)
    moved = (noise.start - path[0]).pow(2).mean().sqrt() / path[0].pow(2).mean().sqrt()
    assert 0.01 < moved < 0.3  # from x_T of the picture, not from other noise
    source = source_latent(inversion)
    for given in (source, torch.zeros_like(source)):
        again = walk(model, ends, 1.0, noise.generate_noise({"samples": given}), sigmas, given)
        torch.testing.assert_close(again, latent["samples"], rtol=2e-3, atol=5e-3)


def test_start_noise_refuses_an_inversion_of_another_model(make_model, ends):
    inversion = Inversion(torch.tensor([4.0, 0.0]), torch.zeros(2, 1, 4, 8, 8), process="ve")
    more = {"positive": ends[0], "negative": ends[1], "latent": torch.zeros(1, 4, 8, 8)}
    with pytest.raises(ValueError, match="made with a ve model"):
        run("OptimiseStartNoise", model=likes_ones(make_model("FLOW")), inversion=inversion, **more)


def test_guidance_under_a_noise_mask_is_the_guided_half_of_blended_diffusion(engine, tiny, ends):
    noise, latent = normal(2, 1, 4, 8, 8, seed=1)
    sigmas, mask = engine.sigmas_of(tiny, "karras", 4), torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 1
    guided, plain = (walk(m, ends, 1.0, noise, sigmas, latent, mask=mask) for m in (likes_ones(tiny), tiny))
    inside = mask.expand_as(latent) > 0
    torch.testing.assert_close(guided[~inside], latent[~inside], rtol=1e-3, atol=1e-3)
    assert (guided - plain)[inside].abs().mean() > 0.01
    inputs = {"positive": ends[0], "negative": ends[1], "latent": latent, "mask": mask[0], "seed": 3, "cfg": 1.0}
    inputs |= {"steps": 5, "shrink": 0}
    out, same = (run("BlendedDiffusion", model=m, **inputs).samples for m in (likes_ones(tiny), tiny))
    assert torch.equal(out[~inside], latent[~inside]) and (out - same)[inside].abs().mean() > 0.01


def test_through_the_network_beside_a_block_patch_that_writes_into_its_input(engine, tiny, ends):
    noise, sigmas = normal(1, 4, 8, 8, seed=1), engine.sigmas_of(tiny, "karras", 3)
    ours, theirs = (likes_ones(block_patched(tiny, writes), "network") for writes in (True, False))
    out, expected = (walk(model, ends, 1.0, noise, sigmas) for model in (ours, theirs))
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    assert (out - walk(block_patched(tiny, True), ends, 1.0, noise, sigmas)).abs().max() > 0.01
    inputs = {"positive": ends[0], "negative": ends[1], "latent": noise, "steps": 2, "shrink": 0, "cfg": 1.0, "seed": 3}
    mask = torch.zeros(1, 8, 8)
    mask[..., 2:6] = 1
    inputs |= {"mask": mask, "hold": LOSS}
    out, expected = (run("BlendedDiffusion", model=model, **inputs).samples for model in (ours, theirs))
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["heun", "euler_ancestral", "dpmpp_2m", "uni_pc"])
def test_any_sampler_leaves_a_trace(engine, tiny, ends, sampler):
    noise, sigmas, model = normal(1, 4, 8, 8, seed=1), engine.sigmas_of(tiny, "karras", 4), likes_ones(tiny)
    guided, plain = (walk(m, ends, 1.0, noise, sigmas, sampler=sampler) for m in (model, tiny))
    assert (guided - plain).abs().mean() > 0.01
    steps = terms.trace_of(model).steps
    seen = [s["sigma"] for s in steps]
    assert seen == sorted(seen, reverse=True) and abs(seen[0] - float(sigmas[0])) < 0.02 * seen[0]
    assert len(steps) >= 4 and all("ones" in s["terms"] for s in steps)


@pytest.mark.parametrize("told", [False, True])
def test_to_other_hooks_guidance_through_the_network_is_part_of_its_run(engine, tiny, prompt, ends, told):
    """The gradient asks the network itself, outside inference mode; a newer engine tells hooks the run's schedule."""
    worded, sigmas = prompt("a red ring"), engine.sigmas_of(tiny, "karras", 4)
    model, maps = run("AttentionRecord", model=likes_ones(tiny, "network"), positive=worded, words="red")
    if told:
        with torch.inference_mode():
            model.model_options["transformer_options"]["sample_sigmas"] = sigmas.clone()
    walk(model, (worded, ends[1]), 3.0, normal(1, 4, 8, 8), sigmas)
    assert maps["record"].maps.sigmas() == pytest.approx(sigmas[:-1].tolist())


def test_guidance_of_every_third_step_counts_anew_after_an_interrupted_run(engine, tiny, ends):
    model, sigmas, noise = likes_ones(tiny, every=3), engine.sigmas_of(tiny, "karras", 8), normal(1, 4, 8, 8)
    fresh = walk(model, ends, 1.0, noise, sigmas[5:])
    walk(model, ends, 1.0, noise, sigmas[:3])  # ends high, as if interrupted there
    assert torch.equal(walk(model, ends, 1.0, noise, sigmas[5:]), fresh)
