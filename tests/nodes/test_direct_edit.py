"""Direct Edit on a tiny random model: how few steps it takes, and what it says of other sigmas."""

import pytest
import torch
from nulltext.tests.running import run


@pytest.fixture
def edit(tiny, latent, ends):
    """edit(**inputs) -> Out, without guidance."""

    def made(**inputs):
        given = {"model": tiny, "source": ends[0], "target": ends[1], "latent": latent, "negative": ends[1], **inputs}
        return run("DirectEdit", source_cfg=1.0, target_cfg=1.0, **given)

    return made


@pytest.mark.parametrize("method", ["FlowEdit", "InfEdit"])
def test_one_step_is_enough(edit, latent, method):
    out = edit(method=method, steps=1)
    assert "2 network calls" in out.text
    assert torch.isfinite(out.samples).all() and (out.samples - latent).abs().max() > 0.1


def test_bad_sigmas_are_told_by_its_own_name(edit):
    with pytest.raises(ValueError, match="don't split them before Direct Edit"):
        edit(sigmas=torch.tensor([3.0, 1.0]))
