"""Load Image Classifier: what makes ComfyUI read the file again."""

import pytest
from nulltext.engine import files
from nulltext.nodes.loaders import LoadImageClassifier


@pytest.mark.parametrize("beside", ["mine.txt", "config.json", "preprocessor_config.json", "mine.safetensors"])
def test_a_file_that_is_read_with_it_counts(tmp_path, monkeypatch, beside):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"weights")
    monkeypatch.setattr(files, "find_file", lambda *_: path)
    before = LoadImageClassifier.IS_CHANGED("mine.safetensors")
    (tmp_path / "other.txt").write_text("labels")
    assert LoadImageClassifier.IS_CHANGED("mine.safetensors") == before
    (tmp_path / beside).write_text("something else")
    assert LoadImageClassifier.IS_CHANGED("mine.safetensors") != before
