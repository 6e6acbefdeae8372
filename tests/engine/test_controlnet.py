"""ControlNets in ComfyUI: what trains is what core draws, gradients in their order, and what composes with them."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from nulltext.engine import controlnet, training, training_memory, tuning
from nulltext.engine.comfy import process_of, sigmas_of
from nulltext.engine.run import sample_with
from nulltext.samplers.tuning import controlnet as forms
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.samplers.tuning.objective import Examples, Objective
from nulltext.tests import stand_ins
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    made = stand_ins.demo_parts(engine, tmp_path_factory.mktemp("checkpoints"), seed=2)
    with torch.inference_mode():
        made.conds = {"a": engine.encode(made.clip, "a red circle"), "": engine.encode(made.clip, "")}
    return made


HINTS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))


def shaken(form):
    """A form as after some training: nothing at zero."""
    g = torch.Generator().manual_seed(5)
    with torch.inference_mode(False):
        return {k: v.clone() + 0.02 * torch.randn(v.shape, generator=g) for k, v in form.items()}


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("kind", ["small", "full"])
def test_what_trains_is_what_core_computes_from_the_file(engine, parts, tmp_path, kind):
    form = shaken(controlnet.fresh(parts.model, kind, rank=4))
    live = controlnet.Controlled(parts.model, form)
    sigma, before = torch.tensor([2.0, 2.0]), hooks(parts.model.model.diffusion_model)
    out = {}

    def body(run):
        from nulltext.engine.tuning import caption_net
        from nulltext.engine.tuning import training as differentiable

        with differentiable(run), live.attached(), torch.no_grad():
            told = [forms.Hinted("a", h) for h in HINTS]
            out["live"] = live.wrap(caption_net(run))(LATENTS, sigma, told)
            out["bare"] = caption_net(run)(LATENTS, sigma, ["a", "a"])

    sample_with(parts.model, parts.conds, torch.zeros(1, 4, 8, 8), sigmas_of(parts.model, "normal", 2), body)
    assert live.live is None and hooks(parts.model.model.diffusion_model) == before
    control = controlnet.control_of(form, tmp_path)
    assert not list(tmp_path.iterdir())
    apply = engine.get("nodes").ControlNetApplyAdvanced().apply_controlnet
    positive = apply(parts.conds["a"], parts.conds[""], control, HINTS.movedim(1, -1), 1.0, 0.0, 1.0)[0]

    def by_core(run):
        out["core"] = run.predictions(LATENTS, sigma, ["positive"])[0]

    sample_with(
        parts.model, {"positive": positive}, torch.zeros(1, 4, 8, 8), sigmas_of(parts.model, "normal", 2), by_core
    )
    change = float((out["core"] - out["bare"]).norm())
    assert change > 0.01 * float(out["bare"].norm())
    assert float((out["live"] - out["core"]).norm()) <= 1e-4 * change


def test_a_training_has_no_weights_beside_its_form(parts):
    live = controlnet.Controlled(parts.model, controlnet.fresh(parts.model, "full"))
    with live.attached():
        assert all(p.is_meta for p in live.live.module.parameters())


def test_a_step_does_not_walk_through_the_network_once_for_each_weight(parts, monkeypatch):
    live = controlnet.Controlled(parts.model, controlnet.fresh(parts.model, "small", rank=4))
    walks, names = [], torch.nn.Module.named_parameters
    with live.attached(), torch.no_grad():
        monkeypatch.setattr(torch.nn.Module, "named_parameters", lambda *a, **k: walks.append(a) or names(*a, **k))
        live.live(x=LATENTS, hint=HINTS, timesteps=torch.ones(2), context=parts.conds["a"][0][0].expand(2, -1, -1))
    assert len(walks) < 10


def test_a_small_one_copies_nothing_of_the_network(parts, monkeypatch):
    network = parts.model.model.diffusion_model
    monkeypatch.setattr(
        controlnet, "_network", lambda model: {k: v.to("meta") for k, v in network.state_dict().items()}
    )
    form = controlnet.fresh(parts.model, "small", rank=4)
    assert not any(v.is_meta for v in form.values())


def test_calls_without_gradients_merge_once_until_the_form_changes(parts, monkeypatch):
    with torch.inference_mode(False):
        form = {k: v.clone().requires_grad_() for k, v in controlnet.fresh(parts.model, "small", rank=4).items()}
    live, merged, whole = controlnet.Controlled(parts.model, form), [], forms.merged
    monkeypatch.setattr(controlnet.forms, "merged", lambda *args: merged.append(args) or whole(*args))
    told = {"hint": HINTS, "timesteps": torch.ones(2), "context": parts.conds["a"][0][0].expand(2, -1, -1)}

    def first():
        made = live.live(x=LATENTS, **told)
        return (made["output"] if isinstance(made, dict) else made)[0]

    with torch.inference_mode(False), live.attached(), torch.no_grad():
        before, again = first(), first()
        assert len(merged) == 1 and torch.equal(before, again)
        form["time_embed.0.up"] += 1
        layer = live.live.weights()["time_embed.0.weight"]
        assert len(merged) == 2 and live.live.weights()["time_embed.0.weight"] is layer
        assert torch.allclose(layer - live.live.own["time_embed.0.weight"], form["time_embed.0.down"].sum(0), atol=1e-5)
        with torch.enable_grad():
            assert live.live.weights()["time_embed.0.weight"].requires_grad


@pytest.mark.parametrize("kind", ["small", "full"])
def test_gradients_arrive_in_their_order_through_cores_path(parts, kind):
    with torch.inference_mode(False):
        form = {k: v.clone().requires_grad_() for k, v in controlnet.fresh(parts.model, kind, rank=4).items()}
    live, arrived = controlnet.Controlled(parts.model, form), []
    told = tuple(forms.Hinted("a", h) for h in HINTS)
    examples = Examples(tuple(LATENTS), told, empty="")
    objective = Objective(process_of(parts.model), training.own_weight(parts.model))

    def make_step(net, device):
        inner = forms.control_step(net, examples, objective, training.levels_of(parts.model), 2, 0.5, device)

        def step(generator):
            losses = inner(generator)
            for name, p in form.items():
                p.register_hook(lambda g, name=name: seen.add(forms.part(name)) if bool((g != 0).any()) else None)
            return losses

        return step

    seen: set[str] = set()

    def on_step_end():
        arrived.append(set(seen))
        seen.clear()

    loop = Loop(form, Settings(steps=3, lr=1e-3))
    whole = loop._one
    loop._one = lambda *args: (whole(*args), on_step_end())[0]
    training.train(parts.model, loop, make_step, parts.conds, (4, 8, 8), attached=live.attached, wrap=live.wrap)
    zero, copy, last, rest = forms.PARTS
    assert arrived == [{zero}, {zero, copy, last}, {zero, copy, last, rest}]
    assert all(torch.isfinite(v).all() for v in loop.result().values())


@pytest.mark.parametrize("kind", ["small", "full"])
def test_the_memory_said_before_counts_the_copy(parts, kind):
    with torch.inference_mode(False):
        form = {k: v.clone().requires_grad_() for k, v in controlnet.fresh(parts.model, kind, rank=4).items()}
    live, found, held = controlnet.Controlled(parts.model, form), {}, Loop(form, Settings()).memory()
    network, before = parts.model.model.diffusion_model, hooks(parts.model.model.diffusion_model)

    def told(run, attached):
        return training_memory.needed(run, training_memory.kept_for(run, "a", 2, attached, True), held, False)

    def body(run):
        with tuning.training(run):
            found["told"] = told(run, live.measured)
            found["without"] = told(run, contextlib.nullcontext)
        own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers(), *form.values())}
        with tuning.training(run), live.attached(), training_memory.counted(network, own) as kept:
            hinted = [forms.Hinted("a", h) for h in HINTS]
            live.wrap(tuning.caption_net(run))(torch.randn(2, 4, 8, 8), torch.ones(2), hinted)
        found["kept"] = kept.bytes(False)

    sample_with(parts.model, parts.conds, torch.zeros(1, 4, 8, 8), sigmas_of(parts.model, "normal", 2), body)
    fixed = sum(p.nbytes for p in parts.model.model.parameters()) + held
    assert (found["told"] - fixed) / training_memory._SLACK == pytest.approx(found["kept"], rel=0.15)
    assert found["told"] - fixed > 1.3 * (found["without"] - fixed)
    assert hooks(network) == before


def test_an_adapter_is_no_form():
    with pytest.raises(ValueError, match="no copy of a UNet"):
        controlnet.form_of(SimpleNamespace(control_model=torch.nn.Linear(2, 2)))


def test_the_small_form_is_handed_on_in_main_memory():
    """Trained on a GPU, whose memory it would hold for as long as ComfyUI keeps the node's output."""
    with FakeTensorMode():
        form = {"zero_convs.0.0.weight": torch.empty(2, device="cuda"), "a.up": torch.empty(2, device="cuda")}
        control = controlnet.control_of(form, None)
    assert {value.device.type for value in control.control_weights.values()} == {"cpu"}
