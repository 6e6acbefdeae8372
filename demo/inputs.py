"""The input pictures of the shipped workflows: scenes of known content, with their captions.

    python demo inputs        writes workflows/inputs/*.png and captions.json
"""
from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from . import captions, scenes

FOLDER = Path(__file__).resolve().parent.parent / "workflows" / "inputs"

#: name -> (colour, shape, size, place) of each object, background, texture, style
PICTURES = {
    "demo_scene": ([("red", "circle", "large", "middle")], "blue", "striped", "photo"),
    "demo_scene_two": ([("yellow", "star", "medium", "left"), ("purple", "ring", "medium", "right")],
                       "gray", "plain", "photo"),
    "demo_scene_square": ([("green", "square", "large", "left")], "pink", "checkered", "photo"),
    "demo_drawing": ([("orange", "triangle", "large", "right")], "teal", "plain", "drawing"),
}


def scene(name: str) -> scenes.Scenes:
    """The scene of a picture in PICTURES; its fine detail (exact place, light) follows from the name."""
    objects, background, texture, style = PICTURES[name]
    table = {"colour": scenes.COLOURS, "shape": scenes.SHAPES, "size": scenes.SIZES, "place": scenes.PLACES}
    columns = [[table[key].index(each[i]) for each in (objects * 2)[:2]] for i, key in enumerate(table)]
    colour, shape, size, place = (torch.tensor([column]) for column in columns)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    nuisance = torch.rand(1, scenes.NUISANCES, generator=generator)
    kinds = ((scenes.BACKGROUNDS, background), (scenes.TEXTURES, texture), (scenes.STYLES, style))
    return scenes.Scenes(shape, colour, size, place, torch.tensor([len(objects)]),
                         *(torch.tensor([values.index(value)]) for values, value in kinds), nuisance)


def write(folder: Path = FOLDER) -> dict[str, str]:
    """Draw every picture, and demo_scene once more with its object cut out (alpha 0 there: LoadImage's mask).

    The captions, by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {}
    for name in PICTURES:
        one = scene(name)
        image, masks = scenes.draw(one)
        rgb = (image[0].permute(1, 2, 0) * 255).round().byte()
        Image.fromarray(rgb.numpy()).save(folder / f"{name}.png", optimize=True)
        said[f"{name}.png"] = captions.captions(one)[0]
        if name == "demo_scene":
            hole = torch.nn.functional.max_pool2d(masks[:, :1], 9, 1, 4)[0, 0]  # half a latent cell of room around it
            rgba = torch.cat([rgb, ((hole < .5) * 255).byte()[..., None]], 2)
            Image.fromarray(rgba.numpy()).save(folder / f"{name}_masked.png", optimize=True)
            said[f"{name}_masked.png"] = said[f"{name}.png"]
    (folder / "captions.json").write_text(json.dumps(said, indent=1) + "\n")
    return said


if __name__ == "__main__":
    for _name, _caption in write().items():
        print(f"{_name}: {_caption}")
