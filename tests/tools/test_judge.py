"""The judge of shipped pictures, on scenes whose content is known."""

from __future__ import annotations

import pytest
import torch
from nulltext.batch.client import Result
from nulltext.demo import scenes
from nulltext.samplers.measure.charts import to_picture
from nulltext.tools import judge
from PIL import Image

SHOWN = "red circle, striped blue background"


def drawn(**changes):
    scene = judge.inputs.scene("demo_scene")
    for kind, value in changes.items():
        scene = scene.changed(kind, value)
    return to_picture(scenes.draw(scene)[0].movedim(1, -1))


@pytest.mark.parametrize(
    "text, found",
    [
        ("green circle", {"colour": "green", "shape": "circle"}),
        ("nothing, striped blue background", {"object": "nothing", "background": "blue", "texture": "striped"}),
        ("a pink background", {"background": "pink"}),
        ("red circle on the right", {"colour": "red", "shape": "circle", "place": "right"}),
        ("star on a plain blue background", {"shape": "star", "texture": "plain", "background": "blue"}),
    ],
)
def test_what_a_picture_must_show_is_read_from_its_words(text, found):
    assert judge.wanted(text) == found


@pytest.mark.parametrize("text", ["", "a cat", "green cat", "circle green", "large red circle"])
def test_words_that_no_probe_reads_are_refused(text):
    with pytest.raises(ValueError, match="probes can't read"):
        judge.wanted(text)


def test_it_sees_the_object_and_what_is_wrong_with_it():
    picture = drawn()
    assert judge.seen(picture) == "red circle"
    assert judge.wrong(picture, SHOWN) == []
    assert judge.wrong(picture, "green circle") == ["colour red, not green"]
    assert judge.wrong(picture, "nothing") == ["object something, not nothing"]
    striped = drawn(texture=scenes.TEXTURES.index("checkered"))
    assert judge.wrong(striped, SHOWN) == ["texture checkered, not striped"]


def test_the_two_probes_vote_together(monkeypatch):
    """One that is sure outvotes one that is not; alone, the unsure one would read a green circle as a square."""
    monkeypatch.setattr(judge, "probes", lambda: (Says("square", 0.3), Says("circle", 3.0)))
    assert judge.seen(drawn()) == "green circle"
    monkeypatch.setattr(judge, "probes", lambda: (Says("square", 3.0), Says("circle", 0.3)))
    assert judge.seen(drawn()) == "green square"


class Says:
    """A probe that reads a green object of that shape in the middle, as sure as told."""

    def __init__(self, shape, sure):
        self.shape, self.sure = scenes.SHAPES.index(shape), sure

    def __call__(self, image):
        logits = {"present": torch.zeros(5, 2), "colour": torch.zeros(5, 8), "shape": torch.zeros(5, 6)}
        logits |= {"size": torch.zeros(5, 3)}
        logits["present"][4, 1], logits["colour"][4, scenes.COLOURS.index("green")] = 5.0, 5.0
        logits["shape"][4, self.shape] = self.sure
        slots = torch.cat([part.flatten() for part in logits.values()])
        return torch.cat([slots, torch.zeros(12 + 4 + 2)])[None]


def test_only_what_lies_outside_the_object_counts_as_background():
    green = drawn(colour=scenes.COLOURS.index("green"))
    assert judge.background("demo_scene.png", drawn(), green) > 60
    pink = drawn(background=scenes.BACKGROUNDS.index("pink"))
    assert judge.background("demo_scene.png", drawn(), pink) < 12
    assert judge.background("my_photo.png", drawn(), green) is None


def test_a_batch_passes_when_three_of_four_are_right():
    right, other = drawn(), drawn(colour=scenes.COLOURS.index("green"))
    meta = {"shows": SHOWN}
    assert judge.verdict(meta, [right, right, other, right], "", None) == ""
    said = judge.verdict(meta, [right, other, other, right], "", None)
    assert said.startswith("2 of 4 pictures show") and "colour green, not red" in said


def test_a_list_of_texts_divides_a_batch():
    """As a grid of edits: two pictures of each, and none of them may be another's."""
    red, green = drawn(), drawn(colour=scenes.COLOURS.index("green"))
    meta = {"shows": ["red circle", "green circle"]}
    assert judge.verdict(meta, [red, red, green, green], "", None) == ""
    assert judge.verdict(meta, [red, green, green, green], "", None).startswith("1 of 2 pictures show 'red circle'")
    assert judge.verdict(meta, [red], "", None), "a text without a picture fails"


def test_where_the_object_stands_is_read_too():
    right = drawn(place=scenes.PLACES.index("right"))
    assert judge.wrong(right, "red circle on the right, striped blue background") == []
    assert judge.wrong(drawn(), "red circle on the right") == ["place middle, not right"]


def test_a_picture_that_lost_its_background_fails():
    green, pink = drawn(colour=scenes.COLOURS.index("green")), drawn(background=scenes.BACKGROUNDS.index("pink"))
    meta = {"shows": "circle", "keeps": 30}
    assert judge.verdict(meta, [green], "demo_scene.png", drawn()) == ""
    assert "dB are asked for" in judge.verdict(meta, [pink], "demo_scene.png", drawn())
    assert "can't be measured" in judge.verdict(meta, [green], "demo_scene.png", None)
    assert judge.verdict({"title": "Heat map"}, [pink], "", None) == ""


def test_a_result_is_measured_against_the_autoencoders_picture_else_the_source():
    red, green, source = (Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue"))
    titles = {"1": "Reconstruction", "2": judge.AUTOENCODER}
    flow = {key: {"class_type": "SaveImage", "inputs": {}, "_meta": {"title": said}} for key, said in titles.items()}
    result = Result()
    result._read = {"1": [red], "2": [green]}
    result.files = {key: [] for key in result._read}
    assert judge.compared(flow, result, [source]) is green
    flow["2"]["_meta"]["title"] = "Result"
    assert judge.compared(flow, result, [source]) is source
    assert judge.compared(flow, result, []) is None
