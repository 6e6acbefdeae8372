"""The INVERSION record: what goes in comes out, what doesn't belong is refused in one sentence."""

import dataclasses
import pickle

import pytest
import torch
from nulltext.samplers.core import FLOW, VE
from nulltext.samplers.inversion.record import Inversion
from safetensors.torch import save_file


def record(**changes):
    g = torch.Generator().manual_seed(0)
    trajectory = torch.randn(4, 2, 3, 4, 4, generator=g)
    fields = {
        "sigmas": torch.tensor([5.0, 2.0, 0.5, 0.0]),
        "trajectory": trajectory,
        "pair": trajectory[:2],
        "cfg": 7.5,
    }
    fields |= {
        "pivot": "exact_pair",
        "correction": "null_text",
        "null_embeddings": torch.randn(3, 2, 5, 6, generator=g),
    }
    fields |= {"pooled": torch.randn(2, 6, generator=g), "conditioning": torch.randn(1, 5, 6, generator=g)}
    fields |= {"text": "a „red“ circle", "words": [{"text": "a", "tokens": [1]}], "fingerprint": {"structure": "abc"}}
    fields |= {"metadata": {"seconds": 1.5, "calls": [1, 2]}}
    return Inversion(**{**fields, **changes})


def same(a, b):
    for f in dataclasses.fields(Inversion):
        left, right = getattr(a, f.name), getattr(b, f.name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, f.name


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 300, text


def test_round_trips(tmp_path):
    inversion = record()
    same(inversion, Inversion.from_tensors(*inversion.to_tensors()))
    path = tmp_path / "one.safetensors"
    inversion.save(path)
    same(inversion, Inversion.load(path))
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]
    # the format refuses tensors that share memory
    shared = inversion.replace(pivot="edit_friendly", residuals=inversion.trajectory[1:])
    shared.save(path)
    same(shared, Inversion.load(path))
    bare = Inversion(torch.tensor([1.0, 0.0]), torch.zeros(2, 1, 3), process="flow")
    same(bare, Inversion.from_tensors(*bare.to_tensors()))


def test_properties_and_replace():
    inversion = record()
    assert inversion.steps == 3 and inversion.shape == (2, 3, 4, 4)
    assert torch.equal(inversion.x_T, inversion.trajectory[0])
    assert torch.equal(inversion.source, inversion.trajectory[3])
    other = inversion.replace(cfg=3.0)
    assert (other.cfg, inversion.cfg) == (3.0, 7.5) and torch.equal(other.trajectory, inversion.trajectory)
    with pytest.raises(dataclasses.FrozenInstanceError):
        inversion.cfg = 1.0


def test_tensors_become_plain_fp32_on_the_cpu():
    with torch.inference_mode():
        odd = torch.ones(2, 1, 2, 3, dtype=torch.float64).transpose(2, 3)
        inversion = Inversion(torch.tensor([1.0, 0.0], dtype=torch.float64), odd)
        assert not Inversion(torch.tensor([1.0, 0.0]), torch.ones(2, 1, 2)).trajectory.is_inference()
    leaf = torch.ones(1, 1, 2, 2, requires_grad=True)
    inversion = inversion.replace(null_embeddings=leaf * 2, cfg=2.0)
    for t in (inversion.trajectory, inversion.sigmas, inversion.null_embeddings):
        assert t.dtype == torch.float32 and not t.is_inference() and not t.requires_grad and t.is_contiguous()
    wide = torch.full((2, 2, 3, 4, 4), 1 / 3, dtype=torch.float64)  # a pair keeps its bits
    assert torch.equal(record(pair=wide).pair, wide)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"sigmas": torch.tensor([5.0, 2.0, 2.0, 0.0])}, "fall strictly"),
        ({"sigmas": torch.tensor([5.0, 0.0])}, "trajectory should have shape"),
        ({"trajectory": torch.zeros(4, 2)}, "A trajectory has shape"),
        ({"trajectory": torch.full((4, 2, 3, 4, 4), float("nan"))}, "trajectory holds NaN"),
        ({"trajectory": torch.zeros(4, 2, 3, 4, 4, dtype=torch.int64)}, "floating point"),
        ({"pair": None}, "by exact pair needs its pair"),
        ({"pair": torch.zeros(2, 1, 3, 4, 4)}, "pair should have shape"),
        ({"pivot": "edit_friendly"}, "residuals"),
        ({"residuals": torch.zeros(4, 2, 3, 4, 4)}, "residuals should have shape"),
        ({"null_embeddings": None}, "needs null embeddings"),
        ({"null_embeddings": torch.zeros(2, 2, 5, 6)}, "null_embeddings should have shape"),
        ({"null_embeddings": torch.zeros(3, 2, 5)}, "Null embeddings have shape"),
        ({"pivot": "magic"}, "pivot of an inversion is one of"),
        ({"correction": "magic"}, "correction of an inversion is one of"),
        ({"process": "vp"}, "process of an inversion is one of"),
        ({"process": "flow"}, "between 1 and 0"),
        ({"version": 2}, "format version 2"),
    ],
)
def test_refuses_what_does_not_belong_together(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        record(**changes)
    one_sentence(error)


def test_one_broken_number_is_enough_to_be_refused():
    for broken in (float("nan"), float("inf")):
        trajectory = torch.zeros(4, 2, 3, 4, 4)
        trajectory[1, 0, 2, 3, 3] = broken
        with pytest.raises(ValueError, match="trajectory holds NaN"):
            record(trajectory=trajectory)


def test_refuses_another_latent_or_process():
    inversion = record()
    inversion.check_latent(torch.Size((2, 3, 4, 4)))
    inversion.check_process(VE)
    for call in (lambda: inversion.check_latent((1, 3, 4, 4)), lambda: inversion.check_process(FLOW)):
        with pytest.raises(ValueError, match="invert again") as error:
            call()
        one_sentence(error)


def test_refuses_foreign_and_damaged_files(tmp_path):
    good = tmp_path / "good.safetensors"
    record().save(good)
    whole = good.read_bytes()
    tensors, metadata = record().to_tensors()
    files = {"cut": whole[:-100], "head": whole[:40], "empty": b"", "pickle": pickle.dumps({"sigmas": [1, 2]})}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="cut short or not a safetensors file") as error:
            Inversion.load(tmp_path / name)
        one_sentence(error)
    torch.save({"sigmas": torch.ones(2)}, tmp_path / "torch.pt")
    with pytest.raises(ValueError, match="not a safetensors file"):
        Inversion.load(tmp_path / "torch.pt")
    with pytest.raises(FileNotFoundError, match=r"no inversion file named gone\."):
        Inversion.load(tmp_path / "gone")
    foreign = {
        "not an inversion": (tensors, {}),
        "format version 7": ({**tensors, "later": torch.ones(1)}, {**metadata, "version": "7"}),
        "header is damaged": (tensors, {**metadata, "cfg": "{"}),
        "missing trajectory": ({k: v for k, v in tensors.items() if k != "trajectory"}, metadata),
        "unknown extra": ({**tensors, "extra": torch.ones(1)}, metadata),
    }
    for words, (content, header) in foreign.items():
        save_file(content, tmp_path / "foreign", header)
        with pytest.raises(ValueError, match=words) as error:
            Inversion.load(tmp_path / "foreign")
        one_sentence(error)
