"""Edit-friendly noises: back to the bit, strong and independent, and edits from there."""

import pytest
import torch
from nulltext.samplers.core import gaussian
from nulltext.samplers.inversion.edit_friendly import invert_edit_friendly, sample_edit_friendly
from nulltext.tests.samplers.inversion.on_mixture import (
    MIX,
    STEPS,
    cfgs,
    denoiser,
    dtypes,
    grid,
    processes,
    source,
    worst,
)


@processes
@dtypes
@cfgs
def test_edit_friendly_returns_the_source_to_the_bit(process, dtype, cfg):
    x0, s, denoise = source(dtype), grid(process, dtype), denoiser(process, cfg)
    pivot = invert_edit_friendly(denoise, x0, s, process=process, noise=gaussian(x0, 5))
    assert worst(pivot.trajectory[-1], x0) < 1e-6
    for skip in (0, 20):
        back = sample_edit_friendly(
            denoise, pivot.trajectory[skip], s[skip:], process=process, residuals=pivot.residuals[skip:]
        )
        assert torch.equal(back, pivot.trajectory[-1])
    cut = pivot.residuals.clone()
    cut[-1] = 0  # the authors' way
    assert worst(sample_edit_friendly(denoise, pivot.trajectory[0], s, process=process, residuals=cut), x0) > 1e-3


@processes
def test_edit_friendly_noises_are_independent_and_strong(process):
    x0, s = MIX.of(0).sample(64, torch.Generator().manual_seed(1)), grid(process)
    pivot = invert_edit_friendly(denoiser(process), x0, s, process=process, noise=gaussian(x0, 5))
    noise = torch.stack([(pivot.trajectory[i] - process.signal(s[i]) * x0) / s[i] for i in range(STEPS)]).flatten(1)
    off = torch.corrcoef(noise) - torch.eye(STEPS)
    assert float(off.abs().max()) < 0.1
    i = STEPS // 2
    _, std = process.transition(x0, x0, s[i], s[i + 1], 1.0)
    assert float(pivot.residuals[i].std() / std) > 1.2  # the paper's fig. 5: more variance than DDPM's own noise


@processes
def test_edit_friendly_edits(process):
    """Replayed under the other class the result leaves the source's class for the other."""
    x0, s = source(), grid(process)
    pivot = invert_edit_friendly(denoiser(process), x0, s, process=process, noise=gaussian(x0, 5))
    edit = sample_edit_friendly(
        denoiser(process, label=1), pivot.trajectory[0], s, process=process, residuals=pivot.residuals
    )
    assert float(MIX.log_prob_class(edit)[:, 1].exp().min()) > 0.99
    near = sample_edit_friendly(
        denoiser(process, label=1), pivot.trajectory[40], s[40:], process=process, residuals=pivot.residuals[40:]
    )
    assert worst(near, x0) < worst(edit, x0)
    with pytest.raises(ValueError, match="as many residuals"):
        sample_edit_friendly(denoiser(process), x0, s, process=process, residuals=pivot.residuals[1:])
