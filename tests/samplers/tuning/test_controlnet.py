"""ControlNet's laws on the demo's own UNet: nothing at the start, and gradients in their order."""

import pytest
import torch
from nulltext.demo import nets
from nulltext.demo.control import ControlNet
from nulltext.samplers.core import VE
from nulltext.samplers.tuning import controlnet
from nulltext.samplers.tuning.objective import Examples, Levels, Objective


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    net = nets.UNet(channels=32, mult=(1, 2), attention=(1,))
    for p in net.parameters():  # no branch at zero: the locked network is a trained one
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return net.eval().requires_grad_(False)


def start(unet, kind="full", **own):
    shapes = {k: v.shape for k, v in ControlNet(unet).state_dict().items()}
    form = controlnet.initial(shapes, unet.state_dict(), rank=4 if kind == "small" else None, **own)
    return {k: v.requires_grad_() for k, v in form.items()}


def outputs(unet, form, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, hint = torch.randn(2, 4, 8, 8, generator=g), torch.rand(2, 3, 64, 64, generator=g)
    context, t = torch.randn(2, 7, nets.CONTEXT, generator=g), torch.tensor([100, 800])
    weights = controlnet.merged(form, unet.state_dict())
    control = torch.func.functional_call(ControlNet(unet), weights, (x, hint, t, context))
    return unet(x, t, context, control=control), unet(x, t, context)


@pytest.mark.parametrize("kind", ["full", "small"])
def test_at_the_start_the_locked_network_is_as_it_was(unet, kind):
    controlled, bare = outputs(unet, start(unet, kind))
    assert torch.equal(controlled, bare)


def test_an_ordinary_start_breaks_the_locked_network(unet):
    """The ablation: the loss of the locked network at step 1."""
    controlled, bare = outputs(unet, start(unet, zero_conv=False))
    assert float((controlled - bare).detach().norm() / bare.norm()) > 0.02


@pytest.mark.parametrize("kind", ["full", "small"])
def test_gradients_arrive_in_their_order(unet, kind):
    """Zero convolutions; then the copy and the hint's last layer; then the rest of the hint encoder."""
    form = start(unet, kind)
    optimiser = torch.optim.AdamW(form.values(), lr=1e-3)
    arrived = []
    for i in range(3):
        optimiser.zero_grad()
        outputs(unet, form, i)[0].square().mean().backward()
        moved = [name for name, p in form.items() if p.grad is not None and bool(p.grad.any())]
        arrived.append({controlnet.part(name, controlnet.last_hint_layer(form)) for name in moved})
        optimiser.step()
    zero, copy, last, rest = controlnet.PARTS
    assert arrived == [{zero}, {zero, copy, last}, {zero, copy, last, rest}]


def test_the_small_form_is_the_full_one_with_low_rank_changes(unet):
    form = start(unet, "small")
    g = torch.Generator().manual_seed(5)
    form = {k: v.detach() + 0.1 * torch.randn(v.shape, generator=g) for k, v in form.items()}
    network, weights = unet.state_dict(), controlnet.merged(form, unet.state_dict())
    name = "input_blocks.1.0.in_layers.2"
    change = torch.einsum("or,rikl->oikl", form[f"{name}.up"], form[f"{name}.down"])
    torch.testing.assert_close(weights[f"{name}.weight"], network[f"{name}.weight"] + change)
    assert int(torch.linalg.matrix_rank(change.flatten(1))) == 4
    assert torch.equal(weights["zero_convs.0.0.weight"], form["zero_convs.0.0.weight"])
    assert "input_blocks.1.0.in_layers.0.weight" not in weights  # norms stay the network's


def test_a_file_has_a_marker_in_the_small_form_alone(unet):
    small, full = (controlnet.file_of(start(unet, kind)) for kind in ("small", "full"))
    assert controlnet.MARKER in small and controlnet.MARKER not in full
    assert all(v.dtype == torch.float16 for k, v in small.items() if k != controlnet.MARKER)
    assert sum(v.numel() for v in small.values()) < 0.9 * sum(v.numel() for v in full.values())


def test_a_dropped_caption_leaves_the_hint():
    seen = []

    def net(x, sigma, conditions):
        seen.extend(conditions)
        return x

    hints = [torch.full((3, 16, 16), float(i)) for i in range(3)]
    told = tuple(controlnet.Hinted(f"caption {i}", h) for i, h in enumerate(hints))
    examples = Examples(tuple(torch.full((4, 2, 2), float(i)) for i in range(3)), told, empty="")
    levels = Levels(table=torch.tensor([1.0, 2.0]))
    step = controlnet.control_step(net, examples, Objective(VE), levels, size=64, dropout=0.5)
    step(torch.Generator().manual_seed(0))
    dropped = [c for c in seen if c.caption == ""]
    assert 20 <= len(dropped) <= 44
    assert {float(c.hint.mean()) for c in dropped} == {0.0, 1.0, 2.0}
    assert all(c.caption == f"caption {int(c.hint.mean())}" for c in seen if c.caption)


def test_refusals(unet):
    with pytest.raises(ValueError, match="no ControlNet's"):
        controlnet.last_hint_layer(unet.state_dict())
    shapes = {k: v.shape for k, v in ControlNet(unet).state_dict().items()}
    with pytest.raises(ValueError, match="no weight input_blocks"):
        controlnet.initial(shapes, {k: v for k, v in unet.state_dict().items() if "input_blocks.0" not in k})
    with pytest.raises(ValueError, match="at least 1"):
        controlnet.initial(shapes, unet.state_dict(), rank=0)


def test_guess_modes_weights_are_the_papers_and_the_codes():
    """Stable Diffusion 1 at 64: twelve skips and the middle; h_1 = 64 here, 8 at the middle."""
    sizes = [64] * 3 + [32] * 3 + [16] * 3 + [8] * 4
    paper, code, alike = (controlnet.guess_weights(sizes, way) for way in controlnet.GUESS_WEIGHTS)
    assert paper == [1] * 3 + [2] * 3 + [4] * 3 + [8] * 4
    assert code == pytest.approx([0.825 ** float(12 - i) for i in range(13)]) and code[-1] == 1
    assert alike == [1] * 13
    with pytest.raises(ValueError, match="no way 'soft'"):
        controlnet.guess_weights(sizes, "soft")
