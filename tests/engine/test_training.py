"""The training run's own parts: levels, weights and the memory that is said before the start."""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import comfy as engine
from nulltext.engine import training, training_memory, tuning, weights
from nulltext.engine.run import sample_with
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.loop import Loop, Report, Settings
from nulltext.samplers.tuning.objective import Examples, FixedLoss, Objective, denoising_step

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


@pytest.mark.parametrize("name", ["ModelSamplingDiscreteFlow", "ModelSamplingFlux"])
@pytest.mark.parametrize("shift", [1.0, 1.15, 3.0])
def test_a_flows_levels_are_the_engines_own_map(engine, make_model, name, shift):
    """Flux's `shift` is the logarithm of the factor."""
    kinds, model = engine.get("model_sampling"), make_model("FLOW")
    if not hasattr(kinds, name):
        pytest.skip(f"this engine has no {name}")
    sampling = type("Flow", (getattr(kinds, name), kinds.CONST), {})(model.model.model_config)
    sampling.set_parameters(shift=shift)
    model.add_object_patch("model_sampling", sampling)
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    want = sampling.sigma(u * float(sampling.timestep(torch.tensor(1.0))))
    torch.testing.assert_close(training.levels_of(model).at(u), want, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(sampling.sigmas.double().quantile(u), want, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("adm", [None, 96])
def test_the_memory_said_before_is_what_a_step_keeps(make_model, make_condition, latent, adm):
    model = make_model(adm=adm)
    if adm:
        model.model.encode_adm = lambda **kw: torch.cat([kw["pooled_output"], torch.ones(1, 32)], 1)
    where = weights.layers(model)
    factors = lora.low_rank_all(where.items(), 4, seed=0)
    network, found = model.model.diffusion_model, {}
    held = Loop(lora.parameters(factors), Settings()).memory()

    def body(run):
        with tuning.training(run):
            before = training_memory.kept_for(run, "a", 2, lambda: training.on_meta(where, factors))
            told, less = (training_memory.needed(run, before, held, again) for again in (False, True))
            own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
            own |= {t.untyped_storage()._cdata for t in lora.parameters(factors).values()}
            net, x = tuning.caption_net(run), torch.randn(run.latent.shape)
            with weights.attached(where, factors), training_memory.counted(network, own) as kept:
                net(x, torch.ones(2), ["a", "a"])
            found.update(told=told, less=less, kept=kept.bytes(False))

    with torch.inference_mode():
        sample_with(model, {"a": make_condition(1)}, latent, SIGMAS, body)
    fixed = sum(p.nbytes for p in model.model.parameters()) + held
    activations = (found["told"] - fixed) / training_memory._SLACK
    assert activations == pytest.approx(found["kept"], rel=0.1)
    assert fixed < found["less"] < found["told"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_counting_the_memory_leaves_no_tensor_behind():
    """A hook that hands a saved result back closes a circle in autograd's own graph, which no collector sees."""

    def count():
        net, results = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid(), torch.nn.Softmax(-1)), []
        net[1].register_forward_hook(lambda module, args, out: results.append(weakref.ref(out)))
        values, weights_ = training_memory.on_meta(net)
        with training_memory.counted(net, weights_) as kept:
            torch.func.functional_call(net, values, (torch.empty(2, 4, device="meta", requires_grad=True),))
        return kept.outside, results[0]

    kept, result = count()
    gc.collect()
    assert kept == 64 and result() is None


def test_a_large_training_is_saved_the_more_seldom_the_longer_a_save_takes(monkeypatch):
    clock, saved = [0.0], []

    class Slow:
        def save(self, loop):
            saved.append(clock[0])
            clock[0] += 30.0

    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    run, loop = SimpleNamespace(tick=lambda n: None), Loop({"a": torch.zeros(1)}, Settings(steps=2000))
    watch = training._Watch(run, loop, training.Outcome(), None, None, None, Slow())
    for step in range(1, 1501):
        clock[0] += 1.0
        watch.step(Report(step, 2000, {"loss": 1.0}, None, 0.1, 1.0, 1.0))
    assert saved == [121.0, 121.0 + 30 + 600 + 1, 121.0 + 2 * (30 + 600 + 1)]


def test_a_duration_reads_as_one():
    assert [training.duration(s) for s in (8.6, 75, 3909)] == ["9 s", "1:15", "1:05:09"]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("kind", ["EPS", "FLOW", "adm"])
def test_a_run_trains_factors_and_nothing_else(make_model, make_condition, kind, checkpoint):
    model = make_model(adm=96) if kind == "adm" else make_model(kind)
    if kind == "adm":
        model.model.encode_adm = lambda **kw: torch.cat([kw["pooled_output"], torch.ones(1, 32)], 1)
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    where = weights.layers(model, "all linear and conv")
    factors = lora.low_rank_all(where.items(), 2, seed=0)
    loop = Loop(lora.parameters(factors), Settings(steps=2, lr=1e-2), 3)
    generator = torch.Generator().manual_seed(4)
    sizes = ((4, 8, 8), (4, 8, 4))  # two buckets
    examples = Examples(tuple(torch.randn(s, generator=generator) for s in sizes), ("a", "b"), empty="")
    objective = Objective(engine.process_of(model), training.own_weight(model))
    levels = training.levels_of(model)
    conds = {name: make_condition(i) for i, name in enumerate(("", "a", "b"))}
    with torch.inference_mode():
        out = training.train(
            model,
            loop,
            lambda net, device: denoising_step(net, examples, objective, levels, 2, 0.3, device),
            conds,
            sizes[0],
            attached=lambda: weights.attached(where, factors),
            fixed_loss=FixedLoss.of(examples, levels, 4),
            objective=objective,
            look=training.Look("a", 1, steps=2),
            checkpoint=checkpoint,
        )
    assert out.made == 2 and not out.stopped and set(loop.fixed) == {0, 2}
    assert loop.fixed[0] != loop.fixed[2] and [step for step, _ in out.looks] == [1, 2]
    assert not torch.equal(out.looks[0][1], out.looks[1][1])
    moved = [name for name, f in factors.items() if f.up.abs().max() > 0]
    assert len(moved) >= 0.9 * len(factors)
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    assert not any(m._forward_hooks for m in model.model.diffusion_model.modules())


@pytest.mark.parametrize("checkpoint, advice", [(False, "turn checkpointing on"), (True, "take a smaller batch or")])
def test_a_device_without_room_for_a_step_says_what_to_do(make_model, make_condition, checkpoint, advice):
    model = make_model()
    where = weights.layers(model, "attention")
    loop = Loop(lora.parameters(lora.low_rank_all(where.items(), 2, seed=0)), Settings(steps=1))

    def step(generator):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    conds = {name: make_condition(i) for i, name in enumerate(("", "a"))}
    with torch.inference_mode(), pytest.raises(ValueError, match=f"Not enough GPU memory for the training: {advice}"):
        training.train(
            model, loop, lambda *_: step, conds, (4, 8, 8), attached=contextlib.nullcontext, checkpoint=checkpoint
        )


@pytest.fixture
def memory(engine, monkeypatch):
    """memory(free, freed): the engine tells `free` bytes, and `freed` more once it was asked for room. What it
    was asked for: [(bytes, how many loaded models stay)]."""
    management, asked = engine.get("model_management"), []
    monkeypatch.setattr(training_memory, "on_cpu", lambda device: False)

    def told(free, freed=0):
        def free_memory(wanted, device, keep_loaded=()):
            asked.append((wanted, len(keep_loaded)))

        monkeypatch.setattr(management, "free_memory", free_memory)
        monkeypatch.setattr(management, "get_free_memory", lambda *_: free + freed * len(asked))
        return asked

    return told


@pytest.mark.parametrize(
    ("free", "freed", "asks", "again"), [(1e9, 0, False, False), (0, 1e9, True, False), (0, 10, True, True)]
)
def test_room_is_made_for_a_gradients_activations_and_blocks_computed_again_where_there_is_none(
    tiny, make_condition, latent, memory, free, freed, asks, again
):
    found = {}

    def body(run):
        asked = memory(free, freed)
        with run.gradients():
            found["kept"] = training_memory.kept_for(run, "a", 2, of_text=True)
        found["again"] = training_memory.room_for(run, "a", 2)
        found["asked"] = list(asked)
        assert training_memory.room_for(run, "a", 2, checkpoint=True)

    with torch.inference_mode():
        sample_with(tiny, {"a": make_condition(1)}, latent, SIGMAS, body)
    wanted = int(training_memory._SLACK * found["kept"].bytes(False))
    assert wanted > 10_000 and found["again"] is again
    assert found["asked"] == ([(wanted, 1)] if asks else [])  # the network itself stays
