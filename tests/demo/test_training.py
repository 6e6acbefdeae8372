import fcntl
import re
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from nulltext.demo import packing, scenes, train, train_autoencoder, training, weights
from safetensors import safe_open
from safetensors.torch import save_file


def fit(folder, minutes=0.02):
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 1)
    trainer = training.Trainer("line", net, minutes, lr=0.05, folder=folder, warmup=1)

    def step(_):
        x = torch.randn(8, 2)
        return {"loss": (net(x) - x.sum(1, keepdim=True)).square().mean()}

    return trainer, trainer.run(step, 8)


def test_goes_on_from_what_was_saved(tmp_path):
    first, _ = fit(tmp_path)
    second, net = fit(tmp_path)
    assert second.samples > first.samples > 0
    assert (net.weight - 1).abs().max() < 0.2


@pytest.mark.parametrize("stage", ["autoencoder", "decoder"])
def test_a_piece_of_the_autoencoders_training_ends_in_its_decibels(tmp_path, monkeypatch, capsys, stage):
    few, cpu = scenes.sample, torch.device("cpu")
    monkeypatch.setattr(scenes, "sample", lambda n, *more: few(min(n, 16), *more))
    if stage == "decoder":
        train_autoencoder.train_decoder(cpu, 1e-5, 2, 1e-3, tmp_path)
    else:
        train_autoencoder.train_autoencoder(cpu, 1e-5, 2, slim=True, folder=tmp_path)
    said = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"done, 2 samples, \d+\.\d\d dB on held-out scenes", said), said


def test_the_second_unet_goes_on_from_the_committed_one_and_its_skips_stay_closed(tmp_path):
    shipped, samples = weights.committed_network(weights.BOTTLENECK)
    train.train_bottleneck(torch.device("cpu"), 1e-5, 2, 8, 1e-3, folder=tmp_path)
    with safe_open(tmp_path / "bottleneck.safetensors", "pt") as f:
        assert int(f.metadata()["samples"]) == samples + 2 and samples > 300_000
        changed = {k: f.get_tensor(k) for k in shipped}
    assert any(not torch.equal(v, shipped[k]) for k, v in changed.items())
    assert max(float((v - shipped[k]).abs().max()) for k, v in changed.items()) < 1e-3
    closed = "output_blocks.0.0.in_layers.2.weight"
    width = int((shipped[closed].abs().sum((0, 2, 3)) > 0).sum())
    assert 0 < width < shipped[closed].shape[1] and not changed[closed][:, width:].any()


def test_waits_while_the_lock_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STATE", tmp_path)
    monkeypatch.delenv(training.turn.HELD, raising=False)
    done = []
    with open(tmp_path / "compute.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: (training.wait_for_turn(), done.append(1)))
        thread.start()
        time.sleep(0.15)
        assert not done
    thread.join(5)
    assert done


def test_measured_figures_go_into_the_metadata_and_nothing_else_changes(tmp_path):
    file, measured = tmp_path / "a.safetensors", tmp_path / "figures.json"
    save_file({"w": torch.arange(6.0).half()}, file, {"samples_seen": "7", "figures": "{}"})
    measured.write_text('{"shape": 0.5}\n')
    packing.write_figures(file, measured)
    with safe_open(file, "pt") as f:
        assert f.metadata() == {"samples_seen": "7", "figures": '{"shape": 0.5}'}
        assert torch.equal(f.get_tensor("w"), torch.arange(6.0).half())
    with pytest.raises(SystemExit):
        packing.write_figures(file, tmp_path / "missing.json")


def test_a_stage_is_as_large_as_asked_else_as_its_machine_allows():
    def found(device, minutes=None, batch=None, pool=None):
        args = SimpleNamespace(device=torch.device(device), minutes=minutes, batch=batch, pool=pool)
        return train.amounts("controlnet", args)

    assert found("cuda") == [5, 256, 20_000] and found("cpu") == [60, 32, 1024]
    assert found("cpu", minutes=0.5, pool=7) == [0.5, 32, 7]


def test_from_nothing_begins_anew_and_loses_nothing(tmp_path, monkeypatch):
    """An old decoder would be read before the new autoencoder, an old UNet would go on under its name."""
    for name in ("autoencoder_slim", "decoder", "diffusion", "flow"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    found = {}

    def stage(name):
        return lambda *_, **__: found.setdefault(name, sorted(path.name for path in tmp_path.iterdir()))

    for name in ("train_autoencoder", "train_diffusion", "pack"):
        monkeypatch.setattr(train, name, stage(name))
    monkeypatch.setattr(train, "STATE", tmp_path)
    monkeypatch.setattr("sys.argv", ["train", "all", "--from-nothing", "--device", "cpu"])
    train.main()
    assert list(found) == ["train_autoencoder", "train_diffusion", "pack"]
    old = ["autoencoder_slim.old", "decoder.old", "diffusion.old", "flow.safetensors"]
    assert found["train_autoencoder"] == old
    assert (tmp_path / "diffusion.old").read_text() == "diffusion"
