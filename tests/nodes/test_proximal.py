"""Proximal Guidance through ComfyUI's own sampling."""

import pytest
import torch
from nulltext.engine.guider import guider_class, set_cfg_scale
from nulltext.engine.sampler import core_sampler, sample_latent
from nulltext.nodes import NODE_CLASS_MAPPINGS as NODES
from nulltext.samplers.guidance.proximal import proximal
from nulltext.tests.running import normal, run
from nulltext.tests.running import sample as by

NODE = NODES["NullText_ProximalGuidance"]
SIGMAS, CFG = torch.tensor([3.0, 1.5, 0.5, 0.0]), 6.0


@pytest.fixture
def sample(engine, make_condition):
    def run(model, positive=1, negative=2, cfg=CFG):
        conditions = (make_condition(seed) for seed in (positive, negative))
        latent = {"samples": torch.zeros(2, 4, 8, 8)}
        with torch.inference_mode():
            return sample_latent(model, *conditions, cfg, core_sampler("euler"), SIGMAS, latent, 5)["samples"]

    return run


@pytest.mark.parametrize("norm", ["hard (l0)", "soft (l1)"])
def test_a_step_of_the_engine_is_the_papers_formula(engine, tiny, sample, norm):
    """One Euler step from SIGMAS[0]: what the patch hands on, against the branches as the engine computed them."""
    seen = []

    def watch(args):
        seen.append({k: args[k].clone() for k in ("input", "cond_denoised", "uncond_denoised", "denoised")})
        return args["denoised"]

    model = NODE().run(tiny, 0.7, norm)[0]
    model = model.clone()
    model.set_model_sampler_post_cfg_function(watch)
    sample(model)
    assert len(seen) == 3
    for step in seen:
        gap = step["cond_denoised"] - step["uncond_denoised"]
        wanted = step["uncond_denoised"] + CFG * proximal(gap, 0.7, norm[6:8])
        torch.testing.assert_close(step["denoised"], wanted, rtol=1e-4, atol=1e-4)


def test_quantile_0_gives_the_model_itself_and_no_call_changes_it(tiny):
    assert NODE().run(tiny, 0.0, "hard (l0)") == (tiny,)
    before = dict(tiny.model_options)
    patched = NODE().run(tiny, 0.7, "hard (l0)")[0]
    assert patched is not tiny and tiny.model_options == before


def test_with_one_prompt_for_both_branches_any_cfg_is_cfg_1(engine, tiny, sample):
    patched = NODE().run(tiny, 0.7, "hard (l0)")[0]
    torch.testing.assert_close(sample(patched, 1, 1), sample(tiny, 1, 1, cfg=1.0), rtol=1e-4, atol=1e-4)


def test_more_of_the_difference_is_kept_out_at_a_higher_quantile(engine, tiny, sample):
    source = sample(tiny, 2, 2, cfg=1.0)
    patched = [NODE().run(tiny, quantile, "hard (l0)")[0] for quantile in (0.0, 0.5, 0.7, 0.95)]
    far = [float((sample(model) - source).norm()) for model in patched]
    assert far == sorted(far, reverse=True) and far[-1] < 0.8 * far[0]


def test_a_scale_that_stands_on_the_model_already_still_acts(engine, tiny, sample):
    """Another node's cfg function gets the thresholded branch, and this node's patch that node's scale."""
    patch = lambda model: NODE().run(model, 0.7, "hard (l0)")[0]
    wanted = sample(patch(tiny), cfg=2.5)
    scaled = patch(set_cfg_scale(tiny, lambda sigma: 2.5))
    torch.testing.assert_close(sample(scaled), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample(set_cfg_scale(patch(tiny), lambda sigma: 2.5)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nodes", [["ProximalGuidance"], ["CFGConvention"], ["CFGConvention", "ProximalGuidance"]])
def test_a_run_without_a_negative_prompt_asks_for_the_prompt_alone(tiny, make_condition, nodes):
    """As Invert Image at cfg 1 and ComfyUI's BasicGuider ask."""

    def sampled(model):
        guider = guider_class()(model)
        guider.inner_set_conds({"positive": make_condition(1)})
        return by(guider, normal(1, 4, 8, 8), SIGMAS)

    model = tiny
    for node in nodes:
        model = run(node, model=model)[0]
    torch.testing.assert_close(sampled(model), sampled(tiny), rtol=1e-4, atol=1e-4)
