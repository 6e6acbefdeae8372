import torch
from nulltext.benchmarks import harness
from safetensors.torch import save_file


def test_new_weights_begin_anew_and_new_metadata_does_not(tmp_path, monkeypatch):
    models = tmp_path / "models" / "inner"
    models.mkdir(parents=True)
    monkeypatch.setattr(harness, "OUTPUT", tmp_path)
    monkeypatch.setattr(harness, "weights", lambda hashed=harness.weights: hashed(tmp_path / "models"))

    def measured(value):
        return harness.Bench("x", "", []).once("figure", lambda: value)

    save_file({"w": torch.zeros(3)}, models / "a.safetensors")
    assert measured(1) == 1
    save_file({"w": torch.zeros(3)}, models / "a.safetensors", {"figures": "{}"})
    assert measured(2) == 1
    save_file({"w": torch.ones(3)}, models / "a.safetensors")
    assert measured(3) == 3
