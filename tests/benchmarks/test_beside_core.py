"""The figure beside core's Train LoRA: null with a reason where there is no such node; what a step's time is."""

import time
from types import SimpleNamespace

import torch
from nulltext.benchmarks.beside_core import __main__ as bench


def test_without_cores_node_the_figure_is_null_with_a_reason(monkeypatch, capsys):
    monkeypatch.setattr(bench, "loaded", lambda: None)
    monkeypatch.setattr(bench, "core_node", lambda: None)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    bench.main([])
    said, line = capsys.readouterr().out.splitlines()
    assert "set COMFYUI_PATH" in said and '"seconds_per_step_over_core": null' in line


def test_a_step_is_the_time_between_two_calls_with_gradients():
    net = torch.nn.Linear(2, 2)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=net))

    def train():
        for pause in (0.2, 0.02, 0.02):
            net(torch.zeros(1, 2))
            with torch.no_grad():  # a held-out loss is no step
                net(torch.zeros(1, 2))
            time.sleep(pause)
        net(torch.zeros(1, 2))

    assert 0.015 < bench.step_seconds(model, train) < 0.15
    assert not net._forward_pre_hooks
