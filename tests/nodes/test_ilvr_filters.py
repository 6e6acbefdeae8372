"""ILVR's nodes use the filter that is asked for, and start at the authors' own."""

import torch
from nulltext.engine.sampler import core_sampler, sample_latent
from nulltext.nodes import ilvr
from nulltext.samplers.picture.lowpass import LOW_PASSES, bicubic_low_pass, dct_low_pass

BICUBIC, COSINES = LOW_PASSES


def test_both_nodes_start_at_the_authors_filter():
    for node in (ilvr.ILVR, ilvr.ILVRSampler):
        options, more = node.INPUT_TYPES()["required"]["filter"]
        assert options == [BICUBIC, COSINES] and more["default"] == BICUBIC == "bicubic (the paper's)"
    assert {BICUBIC: bicubic_low_pass, COSINES: dct_low_pass} == LOW_PASSES


@torch.inference_mode()
def test_held_to_the_end_cosines_are_exact_and_bicubic_is_not(tiny, engine, make_condition, latent):
    reference, phi, ends = latent.flip(0) + 1, dct_low_pass(2), (make_condition(1), make_condition(2))
    for name in LOW_PASSES:
        model = ilvr.ILVR().run(tiny, {"samples": reference}, 2.0, name, 1.0, 0.0, 1.0)["result"][0]
        patched = sample_latent(
            model, *ends, 5.0, core_sampler("euler"), engine.sigmas_of(tiny, "normal", 4), {"samples": latent}, 3
        )
        box = ilvr.ILVRSampler().run(tiny, *ends, {"samples": latent}, 3, 2.0, 4, "normal", 2.0, name, 1.0, "")
        for made, held in ((patched["samples"], reference), (box["result"][0]["samples"], latent)):
            gap = float((phi(made) - phi(held)).abs().max())
            assert gap < 1e-3 if name == COSINES else gap > 0.1
