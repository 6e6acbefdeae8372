"""Whole weights on the engine at hand: what was trained by hooks is what core's loader makes of the file."""

import pytest
import torch
from nulltext.engine import mixing, weights
from nulltext.engine.run import sample_with
from nulltext.engine.sampler import own_sampler
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.tuning import lora
from nulltext.samplers.tuning.mixing import Share
from nulltext.samplers.tuning.whole import unchanged_all

SIGMAS = torch.tensor([5.0, 1.0, 0.0])


def predicted(model, cond, latent):
    with torch.inference_mode():
        body = lambda run: run.predictions(run.latent, 1.5, ["positive"])[0]
        return sample_with(model, {"positive": cond}, latent, SIGMAS, body)


def moved(model, seed=1, scale=0.02):
    """(layers, changes that do something)."""
    where = weights.whole_layers(model)
    changes, g = unchanged_all(where.items()), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in lora.parameters(changes).values():
            value.copy_(scale * torch.randn(value.shape, generator=g))
    return where, changes


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_cores_loader_makes_the_trained_net_of_the_file(engine, make_model, make_condition, latent, tmp_path, kind):
    model, cond = make_model(kind), make_condition()
    bare = predicted(model, cond, latent)
    where, changes = moved(model)
    # every weight of the network is there, the norms' and all biases too
    parameters = {p.data_ptr() for p in model.model.diffusion_model.parameters()}
    assert {p.data_ptr() for layer in where.values() for p in layer.parameters()} == parameters
    with weights.attached(where, changes):
        trained = predicted(model, cond, latent)
    path = tmp_path / "whole.safetensors"
    weights.save(weights.to_lora_model(changes, weights.base_of(model)), path)
    file = engine.get("utils").load_torch_file(str(path), safe_load=True)  # as LoraLoader reads it
    patched, _ = engine.get("sd").load_lora_for_models(model, None, file, 1.0, 0.0)
    assert len(patched.patches) == len(file) == len(parameters)
    loaded = predicted(patched, cond, latent)
    assert not torch.allclose(trained, bare, rtol=1e-2)
    assert float((loaded - trained).norm() / (trained - bare).norm()) <= 1e-5
    assert torch.equal(predicted(model, cond, latent), bare)


def test_whole_weights_and_factors_of_one_file_are_mixed_together(tiny, make_condition, latent):
    cond = make_condition()
    where, changes = moved(tiny)
    factors = lora.low_rank_all(weights.layers(tiny).items(), 2, seed=0)
    with torch.no_grad():
        for f in factors.values():
            f.up.fill_(0.05)
    both = weights.to_lora_model(changes) | weights.to_lora_model(factors)
    one = torch.tensor([2.0, 0.0])

    def mix(tensors, degree):
        with torch.inference_mode():
            guider = mixing.mix_guider(tiny, [(tensors, Share(degree))], cond, None, 1.0)
            sampler = own_sampler(sample_euler, start=3 * latent)
            return guider.sample(torch.zeros_like(latent), latent, sampler, one, disable_pbar=True, seed=1)

    bare, first, second, made = (
        mix(both, 0.0),
        *(mix(weights.to_lora_model(c), 1.0) for c in (changes, factors)),
        mix(both, 1.0),
    )
    with weights.attached(where, changes), weights.attached(weights.layers(tiny), factors):
        expected = mix(both, 0.0)
    assert float((made - expected).norm() / (made - bare).norm()) < 1e-5  # the sums are rounded in another order
    assert all(not torch.allclose(made, other, rtol=1e-2) for other in (bare, first, second))


def test_a_change_of_another_shape_is_refused(tiny, make_condition):
    tensors = weights.to_lora_model(moved(tiny)[1])
    name = next(key for key in tensors if key.endswith(".diff"))
    tensors[name] = tensors[name][:1]
    with pytest.raises(ValueError, match="another shape"):
        mixing.mix_guider(tiny, [(tensors, Share(1.0))], make_condition(), None, 1.0)
