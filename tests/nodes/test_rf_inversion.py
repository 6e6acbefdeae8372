"""RF-Inversion through ComfyUI's own sampling, on the small flow model."""

import pytest
import torch
from nulltext.tests.running import normal, run

LATENT = normal(2, 4, 8, 8, seed=4)


@pytest.fixture
def edit(make_model, ends):
    model = make_model("FLOW")

    def edit(**more):
        given = {"model": model, "positive": ends[0], "negative": ends[1], "latent": LATENT, "steps": 4}
        return run("RFInversion", **{**given, "scheduler": "simple", **more})

    return edit


def test_what_eta_does(edit):
    away = [float((edit(eta=eta, stop=1.0).samples - LATENT).norm()) for eta in (0.0, 0.5, 0.9, 1.0)]
    assert away[0] > away[1] > away[2] > away[3]
    assert away[3] <= 1e-4 * float(LATENT.norm())  # held to the end it is the picture


def test_two_calls_a_step_and_the_report_says_it(edit):
    out = edit(stop=0.5)
    assert "8 network calls" in out.text and "eta in 2 of 4 steps" in out.text
    assert torch.isfinite(out.samples).all() and out.samples.shape == LATENT.shape


def test_a_noise_mask_that_is_not_read_is_told(edit):
    masked = edit(latent={"samples": LATENT, "noise_mask": torch.zeros(1, 1, 8, 8)})
    assert "noise mask is not read" in masked.text and "Notice" not in edit().text
    assert torch.equal(masked.samples, edit().samples)


def test_the_seed_matters_only_where_gamma_draws_to_its_noise(edit):
    assert torch.equal(edit(gamma=0.0, seed=1).samples, edit(gamma=0.0, seed=2).samples)
    assert not torch.equal(edit(gamma=0.5, seed=1).samples, edit(gamma=0.5, seed=2).samples)


def test_what_it_was_given_stays(edit):
    before = LATENT.clone()
    edit()
    assert torch.equal(LATENT, before)


def test_refusals(edit):
    with pytest.raises(ValueError, match="from a start to a stop"):
        edit(start=0.5, stop=0.25)
    with pytest.raises(ValueError, match="needs a picture"):
        edit(latent=torch.zeros(1, 4, 8, 8))


def test_the_empty_prompt_may_be_named_as_such(edit, prompt):
    assert torch.isfinite(edit(negative=prompt("")).samples).all()


def test_one_step_is_refused_by_its_own_name(edit):
    with pytest.raises(ValueError, match="RF-Inversion needs at least 2 steps"):
        edit(steps=1)
