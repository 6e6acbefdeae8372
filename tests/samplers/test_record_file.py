"""A record's file is whole or it is not there, and what can't be read is said in one sentence."""

import os

import pytest
import torch
from nulltext.samplers import record_file


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    record_file.write(path, {"x": torch.arange(3.0)}, {"k": "old"})

    def fail(tensors, where, metadata):
        with open(where, "wb") as file:
            file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(record_file, "save_file", fail)
    with pytest.raises(OSError, match="full"):
        record_file.write(path, {"x": torch.zeros(3)}, {"k": "new"})
    tensors, metadata = record_file.read(path, "record")
    assert torch.equal(tensors["x"], torch.arange(3.0)) and metadata == {"k": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no record file named none\."):
        record_file.read(tmp_path / "none.safetensors", "record")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match=r"bad\.safetensors .* make the record again"):
        record_file.read(tmp_path / "bad.safetensors", "record")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="asks Linux which files are mapped")
def test_what_was_read_holds_on_to_no_file(tmp_path):
    """Windows lets nobody replace or remove a file while a tensor is a part of it."""
    path = tmp_path / "a.safetensors"
    record_file.write(path, {"x": torch.arange(3.0)}, None)
    tensors, _ = record_file.read(path, "record")
    with open("/proc/self/maps") as maps:
        assert str(path) not in maps.read()
    assert tensors["x"].tolist() == [0, 1, 2]


def test_a_full_disk_is_an_oserror_whatever_writes(tmp_path):
    with pytest.raises(OSError, match="writing failed"), record_file.whole_file(tmp_path / "a.safetensors"):
        raise record_file.SafetensorError("I/O error")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(5, "Access is denied"), PermissionError),
        (MemoryError(), OSError),
        (RuntimeError("unable to mmap 9 bytes"), OSError),
    ],
)
def test_a_file_that_is_locked_or_finds_no_memory_is_not_called_damaged(tmp_path, monkeypatch, error, kind):
    def fail(*args, **options):
        raise error

    record_file.write(tmp_path / "a.safetensors", {"x": torch.arange(3.0)}, None)
    monkeypatch.setattr(record_file, "safe_open", fail)
    with pytest.raises(kind, match="denied" if kind is PermissionError else "not enough memory"):
        record_file.read(tmp_path / "a.safetensors", "record")
