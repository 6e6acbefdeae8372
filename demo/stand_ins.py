"""Random weights under the names of shipped models, for tests that ask whether things happen, not how well."""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ..samplers.image_text import ImageText
from ..samplers.latent_classifier import LatentClassifier
from . import checkpoint, engines, scenes
from . import image_text as towers


def write(tree: Path) -> None:
    """Into a server's tree, each file that the pack's own models/ does not hold."""
    shipped = engines.ROOT / "models"
    torch.manual_seed(0)
    if not checkpoint.CHECKPOINT.exists():
        checkpoint.random_checkpoint(tree / "models" / "checkpoints" / checkpoint.CHECKPOINT.name)
    pairs = [f"{colour} {shape}" for colour in scenes.COLOURS for shape in scenes.SHAPES]
    for kind, name, make in (
            ("image_text", "nulltext_image_text",
             lambda: ImageText(towers.WORDS, towers.IMAGE, towers.TEXT, towers.NOISY)),
            ("classifiers", "nulltext_pairs", lambda: LatentClassifier.new(pairs, 4, 16, width=16))):
        path = tree / "models" / kind / f"{name}.safetensors"
        if not (shipped / path.name).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            model = make()
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path, model.metadata())
