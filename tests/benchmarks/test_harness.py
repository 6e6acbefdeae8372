import torch
from nulltext.benchmarks import harness
from safetensors.torch import save_file


def test_new_weights_begin_anew_and_new_metadata_does_not(tmp_path, monkeypatch):
    models = tmp_path / "models" / "checkpoints"
    models.mkdir(parents=True)
    monkeypatch.setattr(harness, "OUTPUT", tmp_path)
    hashed = harness.weights
    monkeypatch.setattr(harness, "weights", lambda read: hashed(tmp_path / "models", read))

    def measured(value, **more):
        return harness.Bench("x", "", [], **more).once("figure", lambda: value)

    save_file({"w": torch.zeros(3)}, models / "a.safetensors")
    assert measured(1) == 1
    save_file({"w": torch.zeros(3)}, models / "a.safetensors", {"figures": "{}"})
    assert measured(2) == 1
    save_file({"w": torch.ones(3)}, models / "a.safetensors")
    assert measured(3) == 3
    other = tmp_path / "models" / "diffusion_models"
    other.mkdir()
    save_file({"w": torch.ones(3)}, other / "b.safetensors")
    assert measured(4) == 3  # a network that this table does not read
    assert measured(5, read=(*harness.READ, "diffusion_models/*.safetensors")) == 5
