"""The shipped flow twin: a rectified flow that follows captions, judged by a probe."""

import pytest
import torch
from nulltext.demo import captions, probe, scenes, train
from nulltext.demo.model import TextToImage, generate, load

CAPTIONS = {"split": "held_out", "two": 0.0}


def truth(n, seed=77):
    return scenes.sample(n, torch.Generator().manual_seed(seed), **CAPTIONS)


@torch.no_grad()
def test_the_twin_draws_what_its_caption_says():
    wanted = truth(8)
    reading = probe.read(probe.load("conv"), generate(*load(flow=True), wanted, 12, 5.0, 3, flow=True))
    right = (reading.at_place("colour") == wanted.colour[:, 0]) & (reading.background == wanted.background)
    assert int(right.sum()) >= 7


@pytest.mark.parametrize("s", [0.3, 0.7, 0.95])
@torch.no_grad()
def test_the_twin_predicts_the_velocity_and_the_other_unet_does_not(s):
    """n - x0 at (1 - s) x0 + s n, timestep 1000 s."""
    some = truth(16, 78)
    x0 = load()[1].encode(scenes.draw(some)[0])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    rows, _ = captions.token_rows(*captions.phrases(some))

    def error(net):
        out = net.unet((1 - s) * x0 + s * noise, torch.full((len(x0),), 1000 * s), net.text(rows))
        return float((out - (noise - x0)).square().mean())

    assert error(load(flow=True)[0]) < 0.6 * error(load()[0])


def test_training_goes_on_from_the_shipped_twin():
    net = TextToImage()
    state, samples = train.committed_twin(net)
    twin = load(flow=True)[0]
    assert samples > 0 and all(torch.equal(state[f"unet.{k}"], v) for k, v in twin.unet.state_dict().items())
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items() if k.startswith("text."))
