"""An interrupt is heard inside a network, on the way there and back."""

import pytest
import torch
from nulltext.engine import interrupts
from torch import nn


class Stop(Exception):
    pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def asked(monkeypatch):
    """How often the engine was asked; from `at` on it says stop."""
    state = {"n": 0, "at": 10**9}

    def check():
        state["n"] += 1
        if state["n"] >= state["at"]:
            raise Stop

    monkeypatch.setattr(interrupts, "check_interrupt", check)
    return state


def test_before_each_block_and_in_the_backward_pass(asked):
    net = Net()
    with interrupts.heard(net):
        out = net(torch.rand(2, 4, requires_grad=True))
        assert asked["n"] == 5
        asked["at"] = 8
        with pytest.raises(Stop):
            out.sum().backward()
        assert asked["n"] == 8
        asked.update(n=0, at=3)
        with pytest.raises(Stop):
            net(torch.rand(2, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_run_of_the_engine_hears_inside_a_call(tiny, ends, monkeypatch, engine):
    """The network of SD 1 has its blocks in lists, as every network that ComfyUI samples."""
    from nulltext.engine.sampler import core_sampler, sample_latent

    asked = []
    monkeypatch.setattr(interrupts, "check_interrupt", lambda: asked.append(1))
    latent = {"samples": torch.randn(1, 4, 8, 8)}
    with torch.inference_mode():
        sample_latent(tiny, *ends, 1.0, core_sampler("euler"), engine.sigmas_of(tiny, "normal", 2), latent, 1)
    assert len(asked) >= 2 * 5
