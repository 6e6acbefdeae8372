"""Rows of different captions in one call, on the engine at hand."""

import pytest
import torch
from nulltext.engine import weights
from nulltext.engine.gradients import normal
from nulltext.engine.run import sample_with
from nulltext.engine.training import loss_scale
from nulltext.engine.tuning import Caption, caption_net, training, with_trained_text
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.loop import Loop, Settings
from nulltext.samplers.tuning.objective import Examples, FixedLoss, Levels, Objective, denoising_step
from nulltext.tests import stand_ins

SIGMAS = torch.tensor([5.0, 1.0, 0.0])


def run_in(model, conds, latent, body):
    with torch.inference_mode():
        return sample_with(model, conds, latent, SIGMAS, body)


@pytest.fixture(params=["EPS", "FLOW", "adm"])
def model(request, make_model):
    """adm: class conditions y beside the text, as SDXL has them."""
    if request.param != "adm":
        return make_model(request.param)
    made = make_model(adm=96)
    made.model.encode_adm = lambda **kw: torch.cat(
        [kw["pooled_output"], torch.full((1, 32), float(kw["width"]) / 64)], 1
    )
    return made


@pytest.fixture
def conds(make_condition):
    out = {}
    for i, (name, tokens) in enumerate((("a", 77), ("b", 77), ("long", 154))):
        cond = make_condition(i, tokens)
        with torch.inference_mode():
            cond[0][1]["pooled_output"] = torch.full((1, 64), 0.3 * i)
        cond[0][1].update(width=64 * (i + 1))
        out[name] = cond
    return out


def test_each_row_is_what_its_own_caption_gives(model, conds, latent):
    def body(run):
        sigma = torch.tensor([0.7, 0.7])
        alone = {name: run.predictions(run.latent, 0.7, [name])[0] for name in conds}
        for pair in (("a", "b"), ("b", "a"), ("a", "long"), ("b", "b")):
            rows = caption_net(run)(run.latent, sigma, pair)
            want = torch.stack([alone[name][i] for i, name in enumerate(pair)])
            torch.testing.assert_close(rows, want, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(alone["a"], alone["b"], atol=1e-3)

    run_in(model, conds, latent, body)


def test_equal_rows_of_a_batch_are_equal(model, conds, latent):
    def body(run):
        x = run.latent[:1].expand(3, -1, -1, -1)
        out = caption_net(run)(x, torch.tensor([0.7] * 3), ["a", "a", "a"])
        torch.testing.assert_close(out[1:], out[:1].expand(2, -1, -1, -1), rtol=1e-6, atol=1e-6)

    run_in(model, conds, latent, body)


def test_a_replaced_caption_is_the_one_it_was_replaced_by(model, conds, latent):
    def body(run):
        net, sigma = caption_net(run), torch.tensor([0.7, 0.7])
        text, extra = conds["b"][0]
        got = net(run.latent, sigma, [Caption("a", text, extra["pooled_output"])] * 2)
        if "y" in run.guider.conds["a"][0]["model_conds"]:  # the sizes are a's own: only the text was replaced
            y = run.guider.conds["b"][0]["model_conds"]["y"]
            y.cond = torch.cat([y.cond[:, :64], run.guider.conds["a"][0]["model_conds"]["y"].cond[:, 64:]], 1)
        torch.testing.assert_close(got, net(run.latent, sigma, ["b", "b"]), rtol=1e-5, atol=1e-5)

    run_in(model, conds, latent, body)


def test_a_gradient_reaches_the_embedding_and_the_pooled_vector(model, conds, latent):
    def body(run):
        net = caption_net(run)
        with training(run):
            text, pooled = (
                normal(t).float().requires_grad_() for t in (conds["a"][0][0], conds["a"][0][1]["pooled_output"])
            )
            net(run.latent, torch.tensor([0.7, 0.7]), [Caption("a", text, pooled), "b"]).square().sum().backward()
            assert float(text.grad.abs().max()) > 0
            has_y = "y" in run.guider.conds["a"][0]["model_conds"]
            assert (pooled.grad is not None and float(pooled.grad.abs().max()) > 0) == has_y

    run_in(model, conds, latent, body)


def test_texts_are_encoded_once_each_in_the_order_of_the_rows():
    """The order of a set of strings is another one in every process, and with it that of the gradients' sum."""
    asked, captions = [], [f"caption {i % 9}" for i in range(20)]

    def encoded(text):
        asked.append(text)
        return torch.zeros(1, 2, 3), None

    net = with_trained_text(lambda x, sigma, rows: torch.tensor([int(row.name[-1]) for row in rows]), encoded)
    assert net(torch.zeros(20, 1), torch.ones(20), captions).tolist() == [i % 9 for i in range(20)]
    assert asked == [f"caption {i}" for i in range(9)]


def test_every_row_tells_the_size_of_its_own_pictures(engine):
    """SDXL is told the pictures' size beside the pooled text: as in core's own run on pictures of that size."""
    unet, clip = stand_ins.xl(engine)
    texts, seen = {name: engine.encode(clip, name) for name in ("a cat", "a dog")}, []
    watch = unet.model.diffusion_model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["y"].detach().clone()), with_kwargs=True
    )
    sizes, core = ((4, 8, 8), (4, 8, 12), (4, 16, 8)), {}
    sample = engine.get("nodes").KSampler().sample
    for shape in sizes:
        for name, positive in texts.items():
            seen.clear()
            with torch.inference_mode():
                sample(unet, 0, 1, 1.0, "euler", "normal", positive, positive, {"samples": torch.ones(1, *shape)}, 1.0)
            core[shape, name] = seen[0][:1]
    assert not torch.equal(core[sizes[0], "a cat"], core[sizes[1], "a cat"])

    def body(run):
        net = caption_net(run)
        other = Caption("a dog", *texts["a cat"][0][:1], texts["a cat"][0][1]["pooled_output"])
        with training(run):
            for shape in sizes:
                seen.clear()
                net(torch.ones(3, *shape), torch.ones(3), ["a cat", "a dog", other])
                want = torch.cat([core[shape, name] for name in ("a cat", "a dog", "a cat")])
                torch.testing.assert_close(seen[0], want, rtol=0.0, atol=0.0)

    try:
        run_in(unet, texts, torch.zeros(1, *sizes[0]), body)
    finally:
        watch.remove()


def test_training_on_captions_lowers_the_fixed_loss(model, conds, latent):
    """Pictures of two sizes with captions of two lengths, one of them dropped now and then."""

    def body(run):
        net, process = caption_net(run), run.process
        g = torch.Generator().manual_seed(0)
        latents = [
            torch.randn(4, 8, 8, generator=g),
            torch.randn(4, 8, 8, generator=g),
            torch.randn(4, 8, 12, generator=g),
        ]
        examples = Examples(latents, ["a", "long", "b"], empty="b")
        objective = Objective(process, "flow" if process is FLOW else "eps")
        levels = Levels() if process is FLOW else Levels(table=torch.tensor([0.5, 2.0]))
        where = weights.layers(run.patcher)
        factors = lora.low_rank_all(where.items(), 4, seed=0)
        loop = Loop(lora.parameters(factors), Settings(steps=15, lr=0.02, loss_scale=loss_scale(model)))
        held = FixedLoss.of(examples, levels, count=6)
        with training(run), weights.attached(where, factors):
            step = denoising_step(net, examples, objective, levels, 2, dropout=0.2)
            loop.run(step, fixed_loss=lambda: held.loss(net, objective))
        assert loop.fixed[15] < 0.97 * loop.fixed[0] and process in (VE, FLOW)

    run_in(model, conds, latent, body)


def test_refusals(tiny, make_condition, latent):
    def regional(run):
        with pytest.raises(ValueError, match="'two' must be one plain prompt"):
            caption_net(run)

    run_in(tiny, {"one": make_condition(), "two": make_condition() + make_condition(2)}, latent, regional)
    area = make_condition(area=(4, 4, 0, 0))
    run_in(tiny, {"two": area}, latent, regional)
