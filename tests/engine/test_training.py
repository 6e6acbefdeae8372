"""The training run's own parts: levels, weights and the memory that is said before the start."""

import pytest
import torch
from nulltext.engine import training, training_memory, tuning, weights
from nulltext.engine.run import sample_with
from nulltext.samplers.tuning import lora

SIGMAS = torch.tensor([5.0, 1.0, 0.0])


@pytest.mark.parametrize(("kind", "weight"), [("EPS", "eps"), ("V_PREDICTION", "v"), ("FLOW", "flow")])
def test_levels_and_weight_are_the_models_own(make_model, kind, weight):
    model = make_model(kind)
    assert training.own_weight(model) == weight
    levels = training.levels_of(model)
    if kind == "FLOW":
        assert levels.name == "logit-normal" and levels.table is None
    else:
        table = model.get_model_object("model_sampling").sigmas
        assert levels.name == "uniform" and len(levels.table) == 1000
        torch.testing.assert_close(levels.table.max(), table.max().double())
    assert training.levels_of(model, "uniform").name == "uniform"
    assert training.loss_scale(model) == 1
    assert training.loss_scale(make_model(kind, dtype=torch.float16)) == 1  # stored in fp16, computed in fp32


@pytest.mark.parametrize("adm", [None, 96])
def test_the_memory_said_before_is_what_a_step_keeps(make_model, make_condition, latent, adm):
    model = make_model(adm=adm)
    if adm:
        model.model.encode_adm = lambda **kw: torch.cat([kw["pooled_output"], torch.ones(1, 32)], 1)
    where = weights.layers(model)
    factors = lora.low_rank_all(where.items(), 4, seed=0)
    network, found = model.model.diffusion_model, {}

    def body(run):
        with tuning.training(run):
            told = training_memory.needed(
                run, "a", 2, lora.parameters(factors), lambda: training.on_meta(where, factors), False
            )
            less = training_memory.needed(
                run, "a", 2, lora.parameters(factors), lambda: training.on_meta(where, factors), True
            )
            own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
            own |= {t.untyped_storage()._cdata for t in lora.parameters(factors).values()}
            net, x = tuning.caption_net(run), torch.randn(run.latent.shape)
            with weights.attached(where, factors), training_memory.counted(network, own) as kept:
                net(x, torch.ones(2), ["a", "a"])
            found.update(told=told, less=less, kept=kept.bytes(False))

    with torch.inference_mode():
        sample_with(model, {"a": make_condition(1)}, latent, SIGMAS, body)
    fixed = sum(p.nbytes for p in model.model.parameters()) + 16 * sum(
        p.numel() for p in lora.parameters(factors).values()
    )
    activations = (found["told"] - fixed) / training_memory._SLACK
    assert activations == pytest.approx(found["kept"], rel=0.1)
    assert fixed < found["less"] < found["told"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_duration_reads_as_one():
    assert [training.duration(s) for s in (8.6, 75, 3909)] == ["9 s", "1:15", "1:05:09"]
