"""The loop on a linear net: the same bits whether stopped or not, the last good state on NaN, torch's optimisers."""

import dataclasses

import pytest
import torch
from nulltext.samplers.tuning import loop as loop_module
from nulltext.samplers.tuning.loop import Loop, NotFinite, Settings
from torch.utils._python_dispatch import TorchDispatchMode

PLAN = Settings(steps=12, lr=0.05, warmup=3, schedule="cosine", ema=0.9, accumulate=2, fixed_every=4)


def weights():
    g = torch.Generator().manual_seed(7)
    return {"a": torch.randn(3, 3, generator=g), "b": torch.randn(3, generator=g)}


def make(settings=PLAN, seed=5, **extra):
    return Loop(weights(), settings, seed, **extra)


def step_of(loop):
    def step(generator):
        x = torch.randn(4, 3, generator=generator)
        y = x @ loop.parameters["a"].T + loop.parameters["b"]
        loss = (y - x.sin()).square().mean()
        return {"loss": loss, "size": y.abs().mean()}

    return step


def overflowing(step, change):
    """The step with `change` in the way of its loss's gradient, where fp16 overflows."""

    def changed(generator):
        loss = step(generator)["loss"].clone()
        loss.register_hook(change)
        return {"loss": loss}

    return changed


def held(loop):
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    return lambda: float((x @ loop.parameters["a"].T + loop.parameters["b"] - x.sin()).square().mean().detach())


def everything(loop):
    tensors, strings = loop.state()
    return {**tensors}, strings


def assert_same(one, other):
    (a, m), (b, n) = everything(one), everything(other)
    assert a.keys() == b.keys() and m == n
    assert all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]


@pytest.mark.parametrize("optimiser", ["AdamW", "Adam", "SGD"])
@pytest.mark.parametrize("stop", [1, 5])
def test_stop_and_resume_give_the_bits_of_an_uninterrupted_run(tmp_path, optimiser, stop):
    plan = dataclasses.replace(PLAN, optimiser=optimiser)
    whole, first, second = make(plan), make(plan), make(plan, seed=99)
    whole.run(step_of(whole), fixed_loss=held(whole))
    first.run(step_of(first), until=stop, fixed_loss=held(first))
    first.save(tmp_path / "state.safetensors", note="five pictures")
    with torch.inference_mode():  # as a node would
        assert second.load(tmp_path / "state.safetensors")["note"] == "five pictures"
    second.run(step_of(second), fixed_loss=held(second))
    assert_same(whole, second)
    assert whole.step == 12 and sorted(whole.fixed) == [0, 4, 8, 12] and len(whole.curve) == 12


@pytest.mark.parametrize("call", [1, 2, 4, 5])
def test_an_interrupt_leaves_a_state_to_go_on_from(call):
    """In the middle of a step too: with two batches a step, calls 2 and 4 are between them."""

    class Interrupt(BaseException):
        pass

    calls = iter(range(1, 100))

    def tick():
        if next(calls) == call:
            raise Interrupt

    whole, broken = make(), make()
    whole.run(step_of(whole), fixed_loss=held(whole))
    with pytest.raises(Interrupt):
        broken.run(step_of(broken), fixed_loss=held(broken), tick=tick)
    assert broken.step == (call - 1) // 2
    assert all(p.grad is None for p in broken.parameters.values())
    broken.run(step_of(broken), fixed_loss=held(broken))
    assert_same(whole, broken)


def test_an_interrupt_in_the_fixed_loss_loses_nothing():
    whole, broken = make(), make()
    whole.run(step_of(whole), fixed_loss=held(whole))
    seen = []

    def failing():
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return held(broken)()

    with pytest.raises(KeyboardInterrupt):
        broken.run(step_of(broken), fixed_loss=failing)
    broken.run(step_of(broken), fixed_loss=held(broken))
    assert_same(whole, broken)


def test_nan_stops_with_the_last_good_state():
    good, loop = make(), make()
    good.run(step_of(good), until=5)
    inner, count = step_of(loop), []

    def step(generator):
        count.append(1)
        losses = inner(generator)
        return {**losses, "loss": losses["loss"] * (torch.nan if len(count) > 12 else 1)}  # the seventh step

    with pytest.raises(NotFinite, match="lower the learning rate"):
        loop.run(step)
    assert_same(good, loop)  # six updates were made; the loss of the state after the sixth was never finite
    assert all(torch.isfinite(v).all() for v in loop.result().values())


def test_a_nan_gradient_changes_nothing():
    good, loop = make(), make()
    good.run(step_of(good), until=2)
    inner = step_of(loop)

    def step(generator):
        losses = inner(generator)
        if loop.step == 2:
            losses["loss"] = losses["loss"] + (loop.parameters["b"] * 0).sqrt().sum() * 0
        return losses

    with pytest.raises(NotFinite):
        loop.run(step)
    assert_same(good, loop)


def test_a_second_loss_that_is_not_finite_leaves_the_state_where_the_first_one_put_it():
    """The copies that were gone back to are the optimiser's own from then on, and no later step writes into them."""
    good, loop = make(), make()
    good.run(step_of(good), until=5)
    inner, bad = step_of(loop), [7, 6, 8]  # what was seen in the seventh step breaks the sixth; then 6 and 8

    def step(generator):
        losses = inner(generator)
        return {**losses, "loss": losses["loss"] * (torch.nan if bad and loop.step + 1 == bad[0] else 1)}

    for _ in range(2):
        with pytest.raises(NotFinite):
            loop.run(step)
        bad.pop(0)
        assert_same(good, loop)
    good.run(step_of(good), until=6)
    with pytest.raises(NotFinite):  # the eighth breaks the seventh
        loop.run(step)
    assert_same(good, loop)
    bad.pop(0)
    good.run(step_of(good), fixed_loss=None)
    loop.run(step)
    assert_same(good, loop)


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("where", ["half a step of the optimiser", "the copies"])
def test_out_of_memory_in_the_update_leaves_a_state_to_go_on_from(monkeypatch, where, at):
    whole, broken = make(), make()
    whole.run(step_of(whole))
    own, copy = broken.optimiser.step, broken._tensors

    def half():
        """One tensor has its new value and its moments, the other has neither."""
        broken.parameters["a"].grad = None
        own()
        raise MemoryError

    def halfway():
        found = copy()
        return {**dict(list(found.items())[:2]), "value/b": None}  # the third one can't be copied

    def fail(generator):
        if broken.step == at:
            monkeypatch.setattr(broken.optimiser, "step", half) if "half" in where else monkeypatch.setattr(
                broken, "_tensors", halfway
            )
        return step_of(broken)(generator)

    with pytest.raises((MemoryError, AttributeError, TypeError)):
        broken.run(fail)
    monkeypatch.undo()
    assert broken.step == at and all(p.grad is None for p in broken.parameters.values())
    stopped = make()
    stopped.run(step_of(stopped), until=at)
    assert_same(stopped, broken)
    with pytest.raises(NotFinite):  # which goes back to nothing half copied
        broken.run(lambda g: {"loss": step_of(broken)(g)["loss"] * torch.nan})
    assert_same(stopped, broken)
    broken.run(step_of(broken))
    assert_same(whole, broken)


@pytest.mark.parametrize(("pause", "kept"), [(0, 5), (1e9, 0)], ids=["at every step", "at the first alone"])
def test_a_large_state_is_copied_seldom_and_gone_back_to(monkeypatch, pause, kept):
    """And going on from it gives the bits of a run that never broke."""
    monkeypatch.setattr(loop_module, "_BESIDE_BYTES", 0)
    monkeypatch.setattr(loop_module, "PAUSE", pause)
    whole, loop, copied = make(), make(), []
    whole.run(step_of(whole))
    remember, inner, broken = loop._remember, step_of(loop), [7]
    monkeypatch.setattr(loop, "_remember", lambda state: copied.append(loop.step) or remember(state))

    def step(generator):
        losses = inner(generator)
        return {**losses, "loss": losses["loss"] * (torch.nan if loop.step + 1 in broken else 1)}

    with pytest.raises(NotFinite, match=f"by step {kept} is kept"):
        loop.run(step)
    assert copied == list(range(6 if pause == 0 else 1)) and loop.step == len(loop.curve) == kept
    broken.clear()
    loop.run(step)
    assert_same(whole, loop)


def test_a_large_state_is_not_counted_as_the_devices(monkeypatch):
    def held(limit, optimiser="AdamW"):
        monkeypatch.setattr(loop_module, "_BESIDE_BYTES", limit)
        return Loop({"a": torch.empty(1000, device="meta")}, Settings(optimiser=optimiser)).memory()

    assert [held(12_000), held(11_999)] == [28_000, 16_000]  # values, two moments; the gradient is in no copy
    assert [held(4000, "SGD"), held(3999, "SGD")] == [12_000, 8000]


def test_what_a_step_changes_is_copied_in_one_go():
    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.__name__)
            return function(*args, **(kwargs or {}))

    loop, seen = Loop({str(i): torch.ones(3) for i in range(50)}, Settings(steps=3)), []
    loop.run(lambda g: {"loss": sum(p.sum() for p in loop.parameters.values())})
    with Copies():
        loop._remember(loop.generator.get_state())
    assert [name for name in seen if "copy" in name or "clone" in name] == ["_foreach_copy_.default"]
    assert all(torch.equal(loop._good.tensors[name], value) for name, value in loop._tensors().items())


@pytest.mark.parametrize(("optimiser", "ema"), [("AdamW", 0.0), ("Adam", 0.9), ("SGD", 0.0)])
def test_a_run_holds_what_it_says(optimiser, ema):
    """By the allocator's own count over four steps, with room for two of the tensors while one is worked on."""
    values = {str(i): torch.randn(100, 100) for i in range(40)}
    loop = Loop(values, Settings(steps=4, optimiser=optimiser, ema=ema, weight_decay=0.0))
    each = 4 * 100 * 100
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as told:
        loop.run(lambda g: {"loss": sum(p.sum() for p in loop.parameters.values())})
    held = most = 0
    for event in told.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    there = (2 if ema else 1) * 40 * each  # what was made before the run
    assert loop.memory() - 2 * each < there + most < loop.memory() + 4 * each


def test_the_step_is_torchs_own_on_the_mean_gradient():
    plan = Settings(steps=3, lr=0.05, accumulate=2, clip=0.1, warmup=2)
    loop, g = make(plan), torch.Generator().manual_seed(5)
    values = [v.requires_grad_() for v in weights().values()]
    optimiser = torch.optim.AdamW(values, lr=0.05, weight_decay=0.01)
    for i in range(3):
        optimiser.param_groups[0]["lr"] = 0.05 * min((i + 1) / 2, 1)
        x = torch.cat([torch.randn(4, 3, generator=g) for _ in range(2)])
        (x @ values[0].T + values[1] - x.sin()).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(values, 0.1)
        optimiser.step()
        optimiser.zero_grad()
    loop.run(step_of(loop))
    for got, want in zip(loop.result().values(), values):
        torch.testing.assert_close(got, want.detach())


def test_rates_by_name_and_over_the_run():
    plan = Settings(steps=10, lr=1.0, warmup=2, schedule="cosine")
    assert [plan.rate(i) for i in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert plan.rate(10) == pytest.approx(0)
    loop = make(Settings(steps=1, lr=0.05, optimiser="SGD", weight_decay=0.0, clip=0.0), rates={"b": 0.0})
    loop.run(step_of(loop))
    assert torch.equal(loop.parameters["b"], weights()["b"]) and not torch.equal(loop.parameters["a"], weights()["a"])


def test_the_running_mean():
    plan = Settings(steps=2, lr=0.05, ema=0.15)
    loop, values = make(plan), []
    loop.run(step_of(loop), on_step=lambda report: values.append(loop.parameters["b"].detach().clone()))
    first = torch.lerp(weights()["b"], values[0], 0.9)  # decay 1/10, then 2/11 > .15
    torch.testing.assert_close(loop.result()["b"], torch.lerp(first, values[1], 0.85))


def test_reports_and_an_early_end():
    loop, reports = make(), []

    def on_step(report):
        reports.append(report)
        return report.step == 5

    loop.run(step_of(loop), fixed_loss=held(loop), on_step=on_step)
    assert [r.step for r in reports] == [1, 2, 3, 4, 5] and loop.step == 5
    assert reports[0].fixed_loss == loop.fixed[0] and reports[4].fixed_loss == loop.fixed[4] == pytest.approx(
        loop.fixed[4]
    )
    assert [(r.step, r.loss) for r in reports] == loop.curve and reports[0].losses.keys() == {"loss", "size"}


def test_an_overflow_under_loss_scaling_is_tried_again_smaller():
    plan = Settings(steps=4, lr=0.05, loss_scale=2.0**16)
    loop = make(plan)
    loop.run(overflowing(step_of(loop), lambda g: torch.where(g.abs() > 4096, torch.inf, g)))
    assert loop.scale == 4096 and loop.step == 4
    assert loop.state()[1]["loss_scale"] == "4096.0"


def test_a_lowered_loss_scale_is_doubled_again_after_many_good_steps(monkeypatch):
    """One overflow at the first step; no more. The count outlives a stop, and the scale ends where it began."""
    monkeypatch.setattr("nulltext.samplers.tuning.loop.GROWTH", 5)
    bad = [True, True]

    def go(loop, until):
        loop.run(overflowing(step_of(loop), lambda g: g * torch.inf if bad and bad.pop() else g), until=until)

    plan = Settings(steps=20, lr=0.05, loss_scale=64.0)
    loop = make(plan)
    go(loop, 4)
    assert loop.scale == 16 and loop.since == 4
    again = make(plan)
    again.restore(*loop.state())
    go(again, 5)
    assert again.scale == 32 and again.since == 0
    go(again, 20)
    assert again.scale == 64


def test_a_gradient_that_is_never_finite_is_told_from_a_loss():
    loop = make(Settings(steps=2, lr=0.05))
    with pytest.raises(NotFinite, match="The gradient of step 1 is not finite"):
        loop.run(overflowing(step_of(loop), lambda g: g * torch.inf))


def test_the_global_generator_is_not_touched():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loop = make()
    loop.run(step_of(loop))
    assert torch.equal(before, torch.get_rng_state())


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        Loop({}, PLAN)
    with torch.inference_mode():
        made = torch.zeros(2)
    with pytest.raises(ValueError, match="can't be trained"):
        Loop({"a": made}, PLAN)
    for wrong in ({"optimiser": "Lion"}, {"schedule": "linear"}, {"lr": 0.0}, {"accumulate": 0}, {"ema": 1.0}):
        with pytest.raises(ValueError):
            dataclasses.replace(PLAN, **wrong)
    state = make().state()
    other = Loop({"a": torch.zeros(3, 4), "b": torch.zeros(3)}, PLAN)
    with pytest.raises(ValueError, match="other layers or another rank"):
        other.restore(*state)
    assert not other.parameters["a"].any()
    with pytest.raises(ValueError, match="another optimiser"):
        make(dataclasses.replace(PLAN, optimiser="SGD")).restore(*state)
    with pytest.raises(ValueError, match="no saved training"):
        make().restore(state[0], {})
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken.safetensors can't be read"):
        make().load(tmp_path / "broken.safetensors")


def test_a_geometric_rate_is_multiplied_after_every_so_many_steps():
    rates = Settings(steps=9, lr=0.5, schedule="geometric", factor=0.1, every=3)
    assert [rates.rate(i) for i in range(9)] == pytest.approx([0.5] * 3 + [0.05] * 3 + [0.005] * 3)
    with pytest.raises(ValueError, match="factor"):
        Settings(schedule="geometric", factor=0.0)


@pytest.mark.parametrize(
    "more", [{"accumulate": 2}, {"loss_scale": 1024.0}, {"accumulate": 4, "loss_scale": 8.0}], ids=str
)
def test_one_step_goes_along_the_mean_gradient_whatever_is_accumulated_or_scaled(more):
    """SGD without clipping and decay: x - lr times the mean of the gradients, which are 1, 2, 3, 4 in turn."""
    x = torch.zeros(3, dtype=torch.float64)
    loop = Loop({"x": x}, Settings(steps=1, lr=0.5, optimiser="SGD", weight_decay=0.0, clip=0.0, **more))
    slopes = iter((1.0, 2.0, 3.0, 4.0))
    loop.run(lambda generator: {"loss": next(slopes) * x.sum()})
    mean = sum(range(1, loop.settings.accumulate + 1)) / loop.settings.accumulate
    torch.testing.assert_close(x.detach(), torch.full_like(x.detach(), -0.5 * mean))
    assert loop.curve == [(1, 0.0)]
