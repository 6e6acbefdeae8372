"""MasaCtrl by its name, on a tiny UNet of the engine."""

import pytest
import torch
from nulltext.tests.running import run

EMPTY = torch.zeros(1, 4, 8, 8)


@pytest.fixture
def masactrl(tiny, prompt):
    def made(edited="a red dog", **inputs):
        given = {"source": prompt("a red cat"), "latent": EMPTY, "steps": 3, "seed": 5, **inputs}
        return run("MasaCtrl", model=tiny, edited=prompt(edited), negative=prompt(""), **given)

    return made


def test_equal_prompts_give_the_source_to_the_bit_and_another_does_not(masactrl):
    same, other = masactrl("a red cat"), masactrl()
    assert torch.equal(same[0]["samples"], same[1]["samples"])
    assert torch.equal(other[1]["samples"], same[1]["samples"])
    assert not torch.equal(other[0]["samples"], other[1]["samples"])
    assert "12 network rows" in other.text


def test_it_is_prompt_to_prompts_mutual_attention_with_the_word_edits_closed(tiny, prompt, masactrl):
    whole = run(
        "PromptToPrompt",
        model=tiny,
        edited=prompt("a red dog"),
        negative=prompt(""),
        source=prompt("a red cat"),
        latent=EMPTY,
        steps=3,
        seed=5,
        cross_steps=0.0,
        self_attention="mutual (MasaCtrl)",
        blend_words="",
    )
    assert torch.equal(masactrl()[0]["samples"], whole[0]["samples"])


def test_a_later_step_and_layer_share_less(masactrl):
    plain, shared = masactrl(start=1.0), masactrl(start=0.0, first_layer=0.0)
    assert "plain prompt change" in plain.text and "Notice" not in shared.text
    assert not torch.equal(plain[0]["samples"], shared[0]["samples"])
    assert torch.equal(plain[0]["samples"], masactrl(first_layer=1.0)[0]["samples"])


def test_without_a_source_it_is_refused(masactrl):
    with pytest.raises(ValueError, match="wire source and an empty latent"):
        masactrl(source=None)
