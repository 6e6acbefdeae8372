"""The input pictures of the shipped workflows: scenes of known content, with their captions.

python tools inputs        writes workflows/inputs/*.png, captions.json and classes/
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ..demo import captions, scenes, subjects
from ..samplers.measure.charts import to_picture

FOLDER = Path(__file__).resolve().parent.parent / "workflows" / "inputs"

#: name -> (colour, shape, size, place) of each object, background, texture, style
PICTURES = {
    "demo_scene": ([("red", "circle", "large", "middle")], "blue", "striped", "photo"),
    "demo_scene_two": (
        [("yellow", "star", "medium", "left"), ("purple", "ring", "medium", "right")],
        "gray",
        "plain",
        "photo",
    ),
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
    return scenes.Scenes(
        shape,
        colour,
        size,
        place,
        torch.tensor([len(objects)]),
        *(torch.tensor([values.index(value)]) for values, value in kinds),
        nuisance,
    )


def scribble(image: Image.Image) -> Image.Image:
    """A few flat strokes over the picture, as someone would dab a yellow ball into its right half."""
    pen = ImageDraw.Draw(image)
    for y, left, right in ((50, 86, 108), (57, 79, 116), (64, 76, 119), (71, 78, 117), (78, 84, 111)):
        pen.line((left, y + 2, (left + right) // 2, y - 2, right, y + 1), (250, 214, 20), 8)
    return image


def hint() -> Image.Image:
    """A star as a hand would paint it, white on black: a mask for the demo's ControlNet."""
    image = Image.new("RGB", (128, 128), "black")
    corners = (38, 14), (47, 35), (69, 37), (52, 52), (58, 75), (39, 63), (19, 74), (25, 51), (9, 36), (31, 35)
    ImageDraw.Draw(image).polygon([(x + 4, y + 22) for x, y in corners], fill="white")
    return image


#: the folder of a subject's pictures: five scenes whose object is something that the demo model never saw
SUBJECT, SUBJECT_NAME, SUBJECT_SEED = "cyan_crescent", "cyan crescent", 11


def write_subject(folder: Path) -> dict[str, str]:
    """The subject's pictures with their captions beside them as .txt, which `sks` stands in; captions by file name."""
    place = folder / SUBJECT
    place.mkdir(parents=True, exist_ok=True)
    drawn = subjects.sample(SUBJECT_NAME, 5, torch.Generator().manual_seed(SUBJECT_SEED))
    images, _ = subjects.draw(SUBJECT_NAME, drawn)
    said = {}
    for i, (image, text) in enumerate(zip(images, subjects.caption(SUBJECT_NAME, drawn, "sks")), 1):
        rgb = (image.permute(1, 2, 0) * 255).round().byte()
        Image.fromarray(rgb.numpy()).save(place / f"{i}.png", optimize=True)
        (place / f"{i}.txt").write_text(text + "\n")
        said[f"{SUBJECT}/{i}.png"] = text
    return said


def write(folder: Path = FOLDER) -> dict[str, str]:
    """Draw every picture, demo_scene once more with its object cut out (alpha 0 there: LoadImage's mask),
    demo_scene_square with a scribble on it, and a hint.

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
            rgba = torch.cat([rgb, ((hole < 0.5) * 255).byte()[..., None]], 2)
            Image.fromarray(rgba.numpy()).save(folder / f"{name}_masked.png", optimize=True)
            said[f"{name}_masked.png"] = said[f"{name}.png"]
    scribbled = Image.open(folder / "demo_scene_square.png").convert("RGB")
    scribble(scribbled).save(folder / "demo_scribble.png", optimize=True)
    both = "on the left and a large yellow circle on the right"
    said["demo_scribble.png"] = said["demo_scene_square.png"].replace("on the left", both)
    hint().save(folder / "demo_hint.png", optimize=True)
    said["demo_hint.png"] = "a photo of a yellow star, striped blue background"
    said.update(write_subject(folder))
    (folder / "captions.json").write_text(json.dumps(said, indent=1) + "\n")
    return said


def write_classes(each: int = 8) -> None:
    """Red circles and blue squares, `each` of either, as small drawings: two classes for Train Latent Classifier."""
    draws = torch.Generator().manual_seed(41)
    for name, colour, shape in (("red circle", "red", "circle"), ("blue square", "blue", "square")):
        made = scenes.sample(each, draws, two=0).changed("style", 1).changed("texture", 0)
        made = made.changed("colour", scenes.COLOURS.index(colour)).changed("shape", scenes.SHAPES.index(shape))
        made = made.changed("background", torch.randint(6, 12, (each,), generator=draws))
        place = FOLDER / "classes" / name
        place.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(scenes.draw(made)[0]):
            to_picture(image[None].movedim(1, -1)).save(place / f"{i + 1}.png", optimize=True)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python tools inputs", description=__doc__.split("\n\n")[0]).parse_args()
    for _name, _caption in write().items():
        print(f"{_name}: {_caption}")
    write_classes()
