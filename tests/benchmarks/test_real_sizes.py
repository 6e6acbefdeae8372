"""The bench at a real model's width: what counts as the network's time, and a call's cost by its rows."""

import pytest
import torch
from nulltext.benchmarks.real_sizes import __main__ as bench
from nulltext.benchmarks.real_sizes import precision
from nulltext.benchmarks.real_sizes.timed import Plain, Spent, Timed
from torch import nn
from torch.utils.checkpoint import checkpoint


class Clock:
    """Time that passes where it is told to."""

    now = 0.0

    def __call__(self):
        return self.now


class Slow(nn.Module):
    """A network whose calls take as many seconds as `took` says."""

    def __init__(self, clock, took, inner=None):
        super().__init__()
        self.clock, self.took, self.inner = clock, took, inner
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        self.clock.now += self.took
        return (self.inner(x) if self.inner else x) * self.weight


class Other(Slow):
    """A network that is neither the MODEL's nor the VAE's nor the text encoder's."""


@pytest.fixture
def here(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("nulltext.benchmarks.real_sizes.timed.time.thread_time", clock)
    here = Timed.__new__(Timed)
    here.clock = clock
    inner = Slow(clock, 1.0)
    vae = nn.Sequential(Slow(clock, 2.0))  # its parts are called by themselves, as a decoder is
    here.outside = {"network": Slow(clock, 4.0, inner), "vae": vae, "clip": inner}
    return here


def test_a_cell_s_time_is_parted(here):
    network, x = here.outside["network"], torch.ones(3, 2)
    with here.watched() as spent:
        with torch.no_grad():
            network(x)
            here.outside["vae"][0](x)
            Other(here.clock, 3.0, inner=network)(x)
        loss = network(x).sum()
        loss.backward()
        torch.autograd.grad(network(x).sum(), network.weight)
    assert spent.rows == [3] and spent.recorded_calls == 2
    assert spent.beside == 2 and spent.recorded == 10, "a module inside the network counts as the network"
    assert spent.others == {"Other": 8}, "another network counts with what it asks"
    spent.whole = 26.0
    assert spent.asked == 5 and spent.outside() == 24 / 23
    with torch.no_grad():
        network(x)
    assert spent.rows == [3], "the hooks are gone"


def test_a_backward_pass_is_the_network_s(here):
    def slow(gradient):
        here.clock.now += 7

    leaf = torch.ones(2, requires_grad=True)
    leaf.register_hook(slow)
    with here.watched() as spent:
        torch.autograd.grad((leaf * 2).sum(), leaf)
        (leaf * 2).sum().backward()
    assert spent.recorded == 14
    with here.watched() as spent:
        made = checkpoint(here.outside["network"], torch.ones(2, requires_grad=True), use_reentrant=True)
        made.sum().backward()
    assert spent.recorded == 5 and not spent.recorded_calls, "asked again inside the pass, it counts as the pass"
    backward = torch.Tensor.backward
    assert backward.__module__ == "torch._tensor", "as it was"


def test_rows_cost_what_the_line_says():
    plain = Plain(None, 8)
    plain.times = {1: [1.0], 2: [1.5], 4: [3.5]}
    assert [plain.seconds(n) for n in (1, 2, 3, 4, 5)] == [1.0, 1.5, 2.5, 3.5, 4.5]
    assert Spent(whole=9.0, beside=1.0, recorded=2.0, rows=[1, 3]).ratio(plain) == 8.0 / 5.5
    assert Spent(whole=9.0, beside=1.0, others={"A": 1.5, "B": 0.5}, rows=[1, 3]).ratio(plain) == 8.0 / 5.5


def test_the_dearest_box_stands_first():
    rows = {
        name: {"rows": 2, "recorded": 0, "seconds": 1.0, "outside": 1.25, "ratio": ratio}
        for name, ratio in (("NullText_A", 1.0), ("NullText_B", 1.3), ("NullText_C", None))
    }
    needs = {"plain": {"added": 2.0, "weights": 1.0, "seconds": 5.0}}
    far = {"KSampler": {"bfloat16": 0.25, "float16": 0.125}}
    shown, figures = bench.result({"SD1.5": {"cells": rows, "memory": needs, "parameters": 10}}, far)
    assert shown.splitlines()[2].startswith("B ") and "C" not in shown.split("null-text")[0].split("\n", 1)[1]
    assert (
        figures["SD1.5 ratio A"] == 1.0
        and figures["SD1.5 outside B"] == 1.25
        and figures["SD1.5 null_text_added plain"] == 2.0
    )
    assert "SD1.5 ratio C" not in figures and figures["error KSampler float16"] == 0.125
    assert "SDXL: not measured" in shown


def test_an_error_is_that_of_the_latents_that_differ_most():
    exact, close = torch.full((2, 3), 2.0), torch.full((2, 3), 2.5)
    assert precision.apart([exact, exact], [exact, close]) == 0.25
    for fewer in ([exact], []):
        with pytest.raises(RuntimeError, match="beside"):
            precision.apart(fewer and [exact, exact], fewer)


def test_a_family_in_half_precision_computes_in_it_and_keeps_what_its_boxes_save(engine):
    """Its errors are those of fp16's and of bf16's digits: more than nothing, and eight times apart."""
    far = precision.errors(8, 32, ("SDEdit",))
    assert set(far) == {"KSampler", "SDEdit"}
    for row in far.values():
        assert 1e-4 < row["float16"] < 5e-3 and 3 < row["bfloat16"] / row["float16"] < 20
