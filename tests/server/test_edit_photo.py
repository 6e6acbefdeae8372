"""The front door over HTTP: pictures that nothing here has seen, only picture and prompts changed in the workflow."""

import torch
from nulltext.demo import captions, probe, scenes
from nulltext.samplers.measure.charts import from_picture, to_picture
from nulltext.tests.workflows import short
from nulltext.tools import workflows
from PIL import Image, ImageDraw


def flat(kind: str, colour: str, ground: str, side: int) -> Image.Image:
    """A flat drawing, not a scene of the training: one colour, one shape, hard edges."""
    paint = {name: tuple(round(255 * value) for value in rgb) for name, rgb in scenes.RGB.items()}
    picture = Image.new("RGB", (side, side), paint[ground])
    getattr(ImageDraw.Draw(picture), kind)([side * 0.28, side * 0.28, side * 0.72, side * 0.72], fill=paint[colour])
    return picture


def scene(seed: int, **wanted) -> tuple[Image.Image, str]:
    """A scene of the held-out split with one object, and its caption."""
    pool = scenes.sample(2000, torch.Generator().manual_seed(seed), "held_out", two=0.0)
    keep = torch.ones(len(pool), dtype=torch.bool)
    for name, value in wanted.items():
        column = getattr(pool, name)
        keep &= (column[:, 0] if column.ndim == 2 else column) == value
    one = pool[int(keep.nonzero()[0, 0])]
    return to_picture(scenes.draw(one)[0].movedim(1, -1)), captions.captions(one)[0]


def pairs() -> list[tuple[str, Image.Image, str, str, str, str]]:
    """(name, picture, what it shows, what it shall show, attribute, value that the probe must read)."""
    at = scenes.COLOURS.index
    ball, ball_says = scene(11, colour=at("blue"), shape=scenes.SHAPES.index("circle"), size=2)
    cross, cross_says = scene(12, colour=at("purple"), shape=scenes.SHAPES.index("cross"), size=2)
    wall, wall_says = scene(13, background=scenes.BACKGROUNDS.index("teal"), texture=0)
    disc, disc_says = (
        flat("ellipse", "green", "white", 300),
        "a drawing of a large green circle, plain white background",
    )
    box, box_says = flat("rectangle", "blue", "yellow", 96), "a drawing of a large blue square, plain yellow background"
    return [
        ("ball", ball, ball_says, ball_says.replace("blue circle", "yellow circle"), "colour", "yellow"),
        ("cross", cross, cross_says, cross_says.replace("purple cross", "green cross"), "colour", "green"),
        ("wall", wall, wall_says, wall_says.replace("teal background", "brown background"), "background", "brown"),
        ("disc", disc, disc_says, disc_says.replace("green", "purple"), "colour", "purple"),
        ("box", box, box_says, box_says.replace("blue square", "red square"), "colour", "red"),
    ]


def seen(picture: Image.Image, attribute: str) -> str:
    reading = probe.read(probe.load("conv"), from_picture(picture.resize((128, 128))).movedim(-1, 1))
    if attribute == "colour":
        return scenes.COLOURS[int(reading.at_place("colour"))]
    return scenes.BACKGROUNDS[int(reading.background)]


def test_five_foreign_pictures_with_five_prompt_pairs_are_edited(comfy):
    found = {}
    for name, picture, source, edited, attribute, value in pairs():
        assert source != edited, name
        uploaded = comfy.upload(picture, f"foreign_{name}.png")
        try:
            flow = workflows.load("edit_photo")
            flow["2"]["inputs"]["image"] = uploaded
            flow["3"]["inputs"].update(source_prompt=source, edited_prompt=edited)
            result = comfy.run(flow).check()
            (picture,) = result.pictures["4"]
            found[name] = (seen(picture, attribute), value)
        finally:
            (comfy.tree / "input" / uploaded).unlink()
    assert len(found) == 5 and all(read == value for read, value in found.values()), found


def test_a_picture_and_prompts_of_ones_own_are_all_that_prompt_to_prompt_needs(comfy):
    """Nothing in the workflow names a word of the shipped picture; a word that is nowhere is said, not refused."""
    name, picture, source, edited, *_ = pairs()[3]
    uploaded = comfy.upload(picture.resize((128, 128)), f"foreign_{name}_128.png")
    try:
        for workflow in ("prompt_to_prompt_photo", "edit_photo_sd"):
            flow = short(workflows.on_demo(workflows.load(workflow)), 3)
            for node in flow.values():
                if node["class_type"] in workflows.PICTURES:
                    node["inputs"]["image"] = uploaded
                for key, text in node["inputs"].items():
                    if isinstance(text, str) and "red circle" in text:
                        node["inputs"][key] = source
                    if isinstance(text, str) and "green circle" in text:
                        node["inputs"][key] = edited
            said = "\n".join(comfy.run(flow).check().texts)
            assert "green" in said and "Notice" not in said, said
            for node in flow.values():
                if "blend_words" in node["inputs"]:
                    node["inputs"]["blend_words"] = "zebra"
                    said = "\n".join(comfy.run(flow).check().texts)
                    assert 'Notice: blend_words names "zebra"' in said
    finally:
        (comfy.tree / "input" / uploaded).unlink()


def test_an_empty_prompt_is_refused_when_it_is_queued(comfy):
    flow = workflows.load("edit_photo")
    flow["3"]["inputs"]["edited_prompt"] = " "
    answer = comfy.client.post("/prompt", {"prompt": flow})
    assert answer.status_code == 400 and "what it shall show" in answer.text


def test_the_page_is_served_the_samples_and_nothing_else(comfy):
    got = comfy.client.get("/nulltext/sample", name="demo_scene.png [sample]")
    assert got.status_code == 200 and got.content[:8] == b"\x89PNG\r\n\x1a\n"
    for name in ("demo_scene.png", "../../README.md [sample]", "captions.json [sample]", ""):
        assert comfy.client.get("/nulltext/sample", name=name).status_code == 404, name
