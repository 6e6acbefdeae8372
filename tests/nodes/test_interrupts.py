"""An interrupt in the middle of a run stops every sampler that starts from a picture; the next run works."""

import pytest
import torch
from nulltext.engine.comfy import to_model_space
from nulltext.engine.noise import model_notes
from nulltext.nodes import diffedit, disturbance, ilvr, repaint, sdedit
from nulltext.samplers.inversion.record import Inversion


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():  # as nodes run
        yield


PLAN = ("schedule", "levels", "jump", "resamples", "low", "high", "noise")


def inversion(model, engine, latent):
    sigmas, clean = engine.sigmas_of(model, "normal", 10), to_model_space(model, {"samples": latent})
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    return Inversion(sigmas, torch.stack([clean + s * noise for s in sigmas]), metadata=model_notes(model, sigmas[0]))


def runs(model, engine, positive, negative, latent):
    """name -> a run of that node, each of at least 8 network calls."""
    ends, picture = (model, positive, negative), {"samples": latent}
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:40] = 1
    return {
        "disturbance": lambda: disturbance.DisturbanceSampler().run(
            *ends, picture, 5, 4.0, disturbance.ROLLBACK, 1.0, 0.3, 0.7, 1.0, 4, 6
        ),
        "ilvr": lambda: ilvr.ILVRSampler().run(
            *ends, picture, 3, 2.0, 10, "normal", 2.0, "bicubic (the paper's)", 1.0, "4@0.5"
        ),
        "sdedit": lambda: sdedit.SDEdit().run(*ends, picture, 1, 3.0, 0.8, 10, sdedit.STOCHASTIC, "", None),
        "diffedit mask": lambda: diffedit.DiffEditMask().run(*ends, picture, 0, 10, 0.5, 0.5, 3.0, 0, 0),
        "diffedit": lambda: diffedit.DiffEdit().run(*ends, inversion(model, engine, latent), mask, 3.0, 0.9),
        "repaint exact": lambda: repaint.RePaintSampler().run(
            *ends,
            picture,
            mask,
            7,
            3.0,
            repaint.EXACT,
            3,
            1,
            **dict(zip(PLAN, (repaint.CUSTOM, 10, 1, 1, 0.0, 2.0, repaint.RENEWED))),
        ),
    }


@pytest.mark.parametrize("name", ["disturbance", "ilvr", "sdedit", "diffedit mask", "diffedit", "repaint exact"])
def test_interrupt_in_mid_run_stops_and_the_next_run_works(tiny, engine, make_condition, latent, monkeypatch, name):
    run, calls = runs(tiny, engine, make_condition(1), make_condition(2), latent)[name], []
    manage = engine.get("model_management")
    monkeypatch.setattr(  # a server's hook stands in the progress bar: where core samplers notice
        engine.get("utils").ProgressBar,
        "update_absolute",
        lambda *a, **k: manage.throw_exception_if_processing_interrupted(),
    )

    def count(module, args):
        calls.append(1)
        if len(calls) == 2:
            manage.interrupt_current_processing(True)

    hook = tiny.model.diffusion_model.register_forward_pre_hook(count)
    try:
        with pytest.raises(engine.Interrupted()):
            run()
        stopped = len(calls)
    finally:
        hook.remove()
        manage.interrupt_current_processing(False)
    assert 2 <= stopped <= 4
    result = run()["result"][0]
    assert torch.isfinite(result["samples"] if isinstance(result, dict) else result).all()
