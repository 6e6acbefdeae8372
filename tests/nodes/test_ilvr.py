"""ILVR's two nodes on tiny random models: what is held, the filter that is asked for, refusals."""

import pytest
import torch
from nulltext.nodes import ilvr
from nulltext.samplers.picture.lowpass import LOW_PASSES, bicubic_low_pass, dct_low_pass
from nulltext.tests.running import SCALE, run

BICUBIC, COSINES = LOW_PASSES  # the paper's first: what both nodes start at
pytestmark = pytest.mark.usefixtures("inference")


def patched(model, reference, filter=COSINES, **inputs):
    return run("ILVR", model=model, reference=reference, filter=filter, **{"factor": 2.0, "end_percent": 1.0, **inputs})


@pytest.fixture
def box(ends):
    def made(model, reference, **inputs):
        values = {"seed": 3, "cfg": 2.0, "factor": 2.0, "stop": 1.0, **inputs}
        return run("ILVRSampler", model=model, positive=ends[0], negative=ends[1], reference=reference, **values)

    return made


def test_ilvr_patch_holds_the_coarse_content(tiny, engine, euler, latent):
    phi, reference = dct_low_pass(2), latent.flip(0) + 1
    out = euler(patched(tiny, reference)[0], latent)
    torch.testing.assert_close(phi(out) * SCALE, phi(reference) * SCALE, rtol=0, atol=1e-4)
    assert (out - reference).abs().max() > 0.5
    late, above = patched(tiny, reference, start_percent=0.99999)[0], engine.sigmas_of(tiny, "normal", 8)[:6]
    assert torch.equal(euler(late, latent, sigmas=above), euler(tiny, latent, sigmas=above))


def test_ilvr_off_and_refusals(tiny, euler, latent):
    for off in ({"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5}):
        result = patched(tiny, latent, BICUBIC, **off)
        assert result[0] is tiny and result.text.startswith("Notice")
    with pytest.raises(ValueError, match="latent is empty"):
        patched(tiny, latent * 0)
    other = patched(tiny, latent[..., :4])[0]
    with pytest.raises(ValueError, match="resize the reference"):
        euler(other, latent)


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_ilvr_sampler_and_its_strip(make_model, box, latent, kind):
    result = box(make_model(kind), latent, steps=6, filter=COSINES, strip="4@0.5, 2@0")
    out, phi = result.samples, dct_low_pass(2)
    assert out.shape[0] == 3 * latent.shape[0]
    torch.testing.assert_close(phi(out[:2]) * SCALE, phi(latent) * SCALE, rtol=0, atol=1e-4)
    assert (phi(out[4:]) - phi(latent)).abs().max() > 0.1
    assert "18 network calls" in result.text and "no step is conditioned" in result.text
    assert "2 in latent cells = 16 in pixels" in result.text


def test_each_picture_of_a_strip_has_its_index_in_the_larger_batch(tiny, box, latent):
    """Samplers behind it draw as many noises as there are indices."""
    picked = {"samples": latent[1:], "batch_index": [1]}
    whole, own = (box(tiny, given, steps=2, factor=4.0, strip="2@0")[0] for given in (latent, picked))
    assert own["batch_index"] == [1, 1] and len(own["samples"]) == 2 and "batch_index" not in whole


def test_both_nodes_start_at_the_authors_filter():
    for node in (ilvr.ILVR, ilvr.ILVRSampler):
        options, more = node.INPUT_TYPES()["required"]["filter"]
        assert options == [BICUBIC, COSINES] and more["default"] == BICUBIC == "bicubic (the paper's)"
    assert {BICUBIC: bicubic_low_pass, COSINES: dct_low_pass} == LOW_PASSES


@pytest.mark.parametrize("name", LOW_PASSES)
def test_held_to_the_end_cosines_are_exact_and_bicubic_is_not(tiny, box, euler, latent, name):
    reference, phi = latent.flip(0) + 1, dct_low_pass(2)
    by_patch, by_box = (
        euler(patched(tiny, reference, name)[0], latent, steps=4),
        box(tiny, latent, steps=4, filter=name),
    )
    for made, held in ((by_patch, reference), (by_box.samples, latent)):
        gap = float((phi(made) - phi(held)).abs().max())
        assert gap < 1e-3 if name == COSINES else gap > 0.1
