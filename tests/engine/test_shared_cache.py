"""Servers of one machine may share the cache's folder: a file may be dropped by another one at any moment."""

import os

import pytest
from nulltext.engine import files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "cache_folder", lambda kind="inversions": tmp_path)
    return tmp_path


def test_trimming_goes_on_over_a_file_that_has_just_gone(cache):
    (cache / "gone.safetensors").symlink_to(cache / "nowhere")  # listed, but no longer there
    for i in range(3):
        (cache / f"{i}.safetensors").write_bytes(b"x" * 10)
        os.utime(cache / f"{i}.safetensors", (i, i))
    files.trim(cache, 20)
    assert {p.name for p in cache.glob("[0-9]*")} == {"1.safetensors", "2.safetensors"}


def test_a_file_larger_than_the_limit_stays_and_drives_nothing_out_until_another_such_comes(cache):
    def made(i, size):
        (cache / f"{i}.safetensors").write_bytes(b"x" * size)
        os.utime(cache / f"{i}.safetensors", (i, i))
        files.trim(cache, 20)
        return sorted(path.stem for path in cache.iterdir())

    assert [made(i, size) for i, size in enumerate((10, 10, 30))][-1] == ["0", "1", "2"]
    assert made(3, 1) == ["1", "2", "3"]
    assert made(4, 20) == ["2", "4"]
    assert made(5, 21) == ["4", "5"]


def test_an_inversion_that_is_dropped_while_it_is_read_is_none(cache, monkeypatch):
    def load(path):
        raise FileNotFoundError(path)

    (cache / "a.safetensors").write_bytes(b"x")
    monkeypatch.setattr(files.Inversion, "load", load)
    assert files.find("a") is None
    monkeypatch.setattr(files.Inversion, "load", lambda path: path.unlink())
    assert files.find("a") is None, "gone after it was read, before its time was set"


def test_an_inversion_that_cannot_be_opened_now_is_kept(cache, monkeypatch):
    """Windows: a virus scanner reads it, or there is no memory left to map it."""

    def load(path):
        raise PermissionError(5, "Access is denied")

    (cache / "a.safetensors").write_bytes(b"x")
    monkeypatch.setattr(files.Inversion, "load", load)
    assert files.find("a") is None and (cache / "a.safetensors").exists()
