"""Stores: a file is there whole or not at all."""

import contextlib
import os
import time
import uuid

from nulltext.batch import progress, store


def test_what_fails_half_way_leaves_nothing(tmp_path):
    there = store.Store(str(tmp_path / "out"))
    there.write("a/b.txt", b"first")
    with contextlib.suppress(RuntimeError), there.file("a/b.txt") as part:
        part.write_bytes(b"sec")
        raise RuntimeError
    assert there.read("a/b.txt") == b"first"
    assert there.names("a") == {"b.txt"} and there.names(store.PARTS) == set()


def test_a_reader_never_sees_a_part(tmp_path, monkeypatch):
    there, seen = store.Store(str(tmp_path / "out")), []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(there.there("a.bin")), replace(a, b)))
    there.write("a.bin", b"x" * 10_000)
    assert seen == [False] and len(there.read("a.bin")) == 10_000


def test_parts_of_killed_processes_are_swept_and_young_ones_stay(tmp_path):
    there = store.Store(str(tmp_path / "out"))
    there.write("a", b"")
    parts = tmp_path / "out" / store.PARTS
    for name, age in (("old.part", 2 * store.OLD_SECONDS), ("young.part", 0)):
        (parts / name).write_bytes(b"x")
        os.utime(parts / name, (time.time() - age,) * 2)
    there.sweep()
    assert there.names(store.PARTS) == {"young.part"}


def test_a_remote_folder_is_read_and_written_the_same_way():
    there = store.Store(f"memory://{uuid.uuid4().hex}/out")
    there.write("a/b.txt", b"first")
    there.write("a/b.txt", b"second")
    with there.file("a/c.txt") as part:
        part.write_bytes(b"third")
    assert there.names("a") == {"b.txt", "c.txt"} and there.read("a/b.txt") == b"second"
    there.remove("a/b.txt")
    there.remove("a/b.txt")
    assert not there.there("a/b.txt") and there.names("none") == set()


def test_names_of_files_are_plain():
    assert store.plain("../a b/ü?.png") == "a_b_ü_.png"
    assert store.plain("...") == "_" and len(store.plain("x" * 500)) == 60


def test_the_bar_tells_what_is_done_failed_and_left(capsys):
    bar = progress.Bar(4)
    bar.start -= 60
    bar.add(False)
    bar.add(True)
    assert "1/4 done, 1 failed, 2.0 rows a minute, 60 s left" in bar.text()
    assert "1/4" in capsys.readouterr().err
    assert progress.span(3600 * 3 + 60 * 20) == "3 h 20 min"


def test_a_lasting_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    there, seen = store.Store(str(tmp_path / "out")), []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append("disk"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append("name"), replace(a, b)))
    there.write("a", b"x")
    there.write("b", b"x", lasting=False)
    assert seen == ["disk", "name", "name"]
