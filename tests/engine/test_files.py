"""Files by the names that users give."""

from nulltext.engine import files, folders


def test_a_name_as_windows_writes_it_is_found(engine, tmp_path, monkeypatch):
    path = tmp_path / "loras" / "sub" / "a.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    paths = engine.get("folder_paths")
    monkeypatch.setattr(paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(paths, "get_full_path", lambda kind, name: str(tmp_path / kind / name))
    for name in ("sub/a.safetensors", "sub\\a.safetensors"):
        assert files.find_file("loras", name) == folders.found_model("loras", name) == path
