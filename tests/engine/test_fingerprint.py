"""What tells one model from another, and one nested value from another."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from nulltext.benchmarks.families import stand_ins
from nulltext.engine.fingerprint import _places, _sample, difference, feed, fingerprint
from nulltext.tests.running import Traffic


def fed(value):
    """(what the hash says, whether the content was told whole)."""
    digest = hashlib.sha256()
    known = feed(digest, value, lambda t: b"t" + repr(t.tolist()).encode())
    return digest.hexdigest(), known


def test_equal_nested_values_feed_a_hash_equally_whatever_the_order_of_keys():
    one = {"a": [1, (2.5, None)], "b": {"c": torch.arange(3)}}
    other = {"b": {"c": torch.arange(3)}, "a": [1, (2.5, None)]}
    assert fed(one) == fed(other) and fed(one)[1]


@pytest.mark.parametrize(
    "other",
    [[[1, 2], 3], [1, [2, 3]], [12, 3], [1, 2, 4], [1, 2, "3"], {"1": 2}, [1, 2, torch.tensor(3)], [1, 2, True]],
    ids=str,
)
def test_other_nestings_and_values_feed_it_otherwise(other):
    assert fed(other)[0] != fed([1, 2, 3])[0]


def test_an_object_is_never_told_whole_but_its_weights_count():
    one, two = (SimpleNamespace(weights=[torch.full((2,), v)]) for v in (1.0, 2.0))
    assert not fed([1, one])[1] and not fed({"a": object()})[1]
    assert fed(one)[0] != fed(two)[0]


@pytest.mark.parametrize("size", [0, 1, 5, 16, 1000, 1280 * 1280 * 9, 2**24, 2**24 + 1, 3072 * 9216, 5 * 2**32 + 3])
def test_places_lie_inside_a_tensor_of_any_size_from_end_to_end(size):
    places = _places(size)
    assert places.dtype == torch.int64 and len(places) == min(16, size)
    if size:
        assert int(places[0]) == 0 and int(places[-1]) == size - 1
        exact = [i * (size - 1) // max(len(places) - 1, 1) for i in range(len(places))]
        assert places.tolist() == exact


def test_places_of_older_files_stay():
    """Where float32 rounds between 2^20 and 2^24, its indices stay: a file on a disk was fingerprinted with them."""
    size = 13_107_203
    assert _places(size).tolist() == torch.linspace(0, size - 1, 16).long().tolist()
    assert _places(size).tolist() != [i * (size - 1) // 15 for i in range(16)]


def test_a_weight_of_more_than_two_to_the_24_numbers_is_sampled():
    """Flux's first weight of 3072 x 9216; expanded, so that it takes no memory."""
    assert _sample(torch.ones(1).expand(3072, 9216)) != _sample(torch.zeros(1).expand(3072, 9216))


def test_fingerprint_tells_what_differs(engine, tiny, make_model):
    base = fingerprint(tiny)
    assert difference(base, fingerprint(tiny.clone())) is None
    other = make_model()
    with torch.inference_mode():
        for p in other.model.parameters():
            p.mul_(1.01)
    assert "other weights" in difference(base, fingerprint(other))
    assert "prediction type" in difference(base, fingerprint(make_model("V_PREDICTION")))
    half = make_model(dtype=torch.float16)
    assert "precision (float32 then, float16 now)" in difference(base, fingerprint(half))
    with torch.inference_mode():
        half.model.float()
    assert difference(fingerprint(make_model(dtype=torch.float16)), fingerprint(half)) is None
    assert "architecture" in difference(base, fingerprint(make_model(adm=64)))


def test_one_kind_of_matrix_changed_in_all_blocks_is_another_checkpoint(engine, tmp_path, monkeypatch):
    """With Stable Diffusion 1.5's own names: samples at even distances fall in step with its blocks."""
    monkeypatch.setattr(stand_ins.Model, "folder", str(tmp_path), raising=False)
    (model,) = stand_ins.Model().load("SD1.5", stand_ins.WEIGHTS[0])
    before, matrices = fingerprint(model), {n: p for n, p in model.model.named_parameters() if p.ndim > 1}
    kinds = {}
    for name, p in matrices.items():
        kinds.setdefault(".".join(part for part in name.split(".")[2:] if not part.isdigit()), []).append(p)
    assert len(kinds) > 15 and any("attn2.to_k" in kind for kind in kinds)
    for kind, own in kinds.items():
        with torch.inference_mode():
            torch._foreach_add_(own, 0.01)
            assert difference(before, fingerprint(model)) is not None, kind
            torch._foreach_sub_(own, 0.01)


def test_a_file_of_before_that_knows_no_matrices_is_not_refused(tiny):
    now = fingerprint(tiny)
    before = {key: value for key, value in now.items() if key != "matrices"}
    assert difference(before, now) is None
    assert "merged" in difference({**now, "matrices": "other"}, now)


def test_fingerprint_counts_patches_and_sees_through_loaded_ones(engine, tiny):
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    base, shape = fingerprint(tiny), dict(tiny.model.named_parameters())[name].shape
    patched, stronger = tiny.clone(), tiny.clone()
    patch = torch.randn(shape)
    patched.add_patches({name: (patch,)}, 0.5)
    stronger.add_patches({name: (patch,)}, 1.0)
    assert "LoRA" in difference(base, fingerprint(patched))
    assert "LoRA" in difference(fingerprint(stronger), fingerprint(patched))
    all_names = {n: (torch.ones_like(p),) for n, p in tiny.model.named_parameters()}
    merged = tiny.clone()
    merged.add_patches(all_names, 1.0)
    with torch.inference_mode():
        engine.load_models([merged])
        assert difference(base, fingerprint(tiny)) is None  # its weights lie patched in memory now
        import comfy.model_management

        comfy.model_management.unload_all_models()


def test_a_network_that_is_compiled_is_the_same_model(engine, tiny):
    before = fingerprint(tiny)
    compiled = tiny.clone()
    compiled.add_object_patch("diffusion_model", torch.compile(tiny.get_model_object("diffusion_model")))
    compiled.patch_model()
    try:
        assert any("_orig_mod" in name for name, _ in compiled.model.named_parameters())
        assert fingerprint(compiled) == before
    finally:
        compiled.unpatch_model()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_noise_schedule_is_told_as_older_files_tell_it_and_is_read_in_one_go(dtype):
    table = torch.logspace(-2, 1.2, 1000, dtype=dtype)
    sampling = SimpleNamespace(sigmas=table)
    model = SimpleNamespace(model=torch.nn.Module(), backup={}, patches={}, get_model_object=lambda name: sampling)
    with Traffic() as traffic:
        told = fingerprint(model)["sigmas"]
    one_by_one = repr([f"{float(s):.4g}" for s in table])
    assert told == hashlib.sha256(one_by_one.encode()).hexdigest()[:32]
    assert traffic.of("fingerprint.py") == 1
