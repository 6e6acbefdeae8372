"""From the description of an edit to controllers."""

import pytest
from nulltext.samplers.attention.controllers import MutualSelf, ReplaceCross, ReplaceSelf, Reweight
from nulltext.samplers.attention.layers import StepWindow
from nulltext.samplers.attention.maps import LocalBlend
from nulltext.samplers.attention.plan import plan


def prompt(text):
    words = text.split()
    ids = [900, *(sum(map(ord, w)) for w in words)] + [901] * (11 - len(words))
    return {
        "text": text,
        "words": [{"text": w, "tokens": [i + 1]} for i, w in enumerate(words)],
        "ids": ids,
        "chunks": 1,
    }


CAT, DOG, BIG = prompt("a red cat"), prompt("a red dog"), prompt("a big red cat")


def kinds(controllers):
    return [type(c) for c in controllers]


def test_the_papers_edit_is_the_default():
    controllers, blend, said = plan(CAT, [DOG])
    assert kinds(controllers) == [ReplaceCross, ReplaceSelf]
    assert controllers[0].window == StepWindow(0, 0.8, points=1)
    assert controllers[1].window == StepWindow(0, 0.4, points=0)
    assert blend is None
    assert said == ["replace"]


def test_the_blends_fields_reach_it():
    blend = plan(
        CAT, [DOG], blend_words=["cat", "dog"], blend_start=0.5, blend_threshold=0.4, blend_layers=["up", "down"]
    )[1]
    assert (blend.start, blend.threshold, blend.without_threshold) == (0.5, 0.4, 0.4)
    assert blend.layers.names == ["up", "down"]


def test_nothing_asked_gives_no_controllers():
    assert plan(CAT, [DOG], cross_steps=0.0, self_steps=0.0, weights={"dog": 1.0})[0] == []


def test_everything_in_its_order():
    controllers, blend, said = plan(
        CAT,
        [DOG, BIG],
        self_attention="mutual (MasaCtrl)",
        word_windows={"red": (0.2, 0.4)},
        weights={"red": 2.0},
        blend_words=["cat", "dog"],
        keep_words=["red"],
        blend_threshold=0.5,
    )
    assert kinds(controllers) == [ReplaceCross, MutualSelf, LocalBlend]
    assert controllers[0].windows == [{2: StepWindow(0.2, 0.4)}, {3: StepWindow(0.2, 0.4)}]
    assert controllers[0].factors == [{2: 2.0}, {3: 2.0}]
    assert blend.source_columns == [[[3], [2]]] * 2
    assert blend.target_columns == [[[3], [2]], [[4], [3]]]
    assert blend.threshold == 0.5
    assert said == ["edit 1: replace", "edit 2: refine (3 and 4 words)"]


def test_weights_at_every_step_are_a_controller_of_their_own():
    controllers, _, _ = plan(CAT, [DOG, BIG], weights={"red": 2.0}, weights_act="at every step")
    assert kinds(controllers) == [ReplaceCross, ReplaceSelf, Reweight]
    assert controllers[0].factors == [{}, {}]
    assert controllers[2].factors == [{2: 2.0}, {3: 2.0}]


def test_words_that_are_nowhere_are_refused():
    for options in ({"word_windows": {"fox": (0, 0.4)}}, {"weights": {"fox": 2}}, {"keep_words": ["fox"]}):
        with pytest.raises(ValueError, match='"fox"'):
            plan(CAT, [DOG], **options)
    plan(CAT, [DOG], blend_words=["cat"])  # of the source alone is enough for a blend
    with pytest.raises(ValueError, match='"cat" is not in the prompt "a red dog"'):
        plan(CAT, [DOG], weights={"cat": 2.0})  # but a weight is the edit's
    assert plan(CAT, [DOG], keep_words=["cat"])[1].target_columns == [[[], []]]


@pytest.mark.parametrize("written", [["auto"], ["fox"], ["fox", "wolf"]])
def test_the_words_that_differ_stand_in_for_blend_words_that_are_nowhere(written):
    _, blend, said = plan(CAT, [DOG], blend_words=written)
    named = plan(CAT, [DOG], blend_words=["cat", "dog"])[1]
    assert blend.source_columns == named.source_columns and blend.target_columns == named.target_columns
    assert said[-1] == "local blend where these look: cat/dog"
    noticed = [line for line in said if "in no prompt" in line]
    assert len(noticed) == (written != ["auto"]) and all('"fox"' in line and "dog" in line for line in noticed)


def test_each_edit_blends_by_its_own_words():
    _, blend, said = plan(CAT, [DOG, prompt("a blue cat")], blend_words=["auto"])
    assert [columns[0] for columns in blend.source_columns] == [[3], [2, 3]]
    assert [columns[0] for columns in blend.target_columns] == [[3], [2, 3]]
    assert said[-1] == "local blend where these look: cat/dog, red cat/blue cat"


EQUAL = "Notice: edit {} equals the source prompt, so its words change nothing"
CLOSED = "Notice: every window is closed, so this is the plain prompt change"


def test_an_edit_with_the_sources_own_words_is_noticed():
    assert plan(CAT, [CAT])[2] == ["replace", EQUAL.format(1)]
    assert plan(CAT, [prompt("a red  cat")], weights={"red": 1.0})[2] == ["replace", EQUAL.format(1)]
    assert plan(CAT, [DOG, CAT])[2] == ["edit 1: replace", "edit 2: replace", EQUAL.format(2)]
    assert plan(CAT, [CAT], weights={"red": 2.0})[2] == ["replace"]  # re-weighting needs no other words
    assert plan(CAT, [DOG, CAT], weights={"dog": 2.0})[2][-1] == EQUAL.format(2)  # a weight of the other edit
    louder = {**CAT, "text": "a (red:1.3) cat"}  # emphasis: the same ids, another embedding
    assert plan(CAT, [louder])[2] == ["replace"]


def test_closed_windows_are_noticed():
    closed = {"cross_steps": 0.0, "self_steps": 0.0}
    assert plan(CAT, [DOG], **closed)[2] == ["replace", CLOSED]
    assert plan(CAT, [DOG], word_windows={"dog": (0.0, 0.0), "red": (0.5, 0.5)}, **closed) == (
        [],
        None,
        ["replace", CLOSED],
    )
    assert plan(CAT, [CAT], **closed)[2] == ["replace", EQUAL.format(1), CLOSED]
    every = {"weights": {"dog": 2}, "weights_act": "at every step"}
    for open_ in ({"word_windows": {"dog": (0, 0.5)}}, every, {"blend_words": ["dog"]}, {"self_steps": 0.1}):
        controllers, _, said = plan(CAT, [DOG], **{**closed, **open_})
        assert len(controllers) == 1
        assert said == ["replace"]
    assert plan(CAT, [DOG], self_attention="mutual (MasaCtrl)", **closed)[2] == ["replace"]


def test_a_weight_without_a_window_is_noticed():
    def noticed(**options):
        return [text for text in plan(CAT, [DOG], weights={"dog": 2.0}, **options)[2] if "a word's weight acts" in text]

    assert noticed(cross_steps=0.0)
    assert noticed(word_windows={"dog": (0.0, 0.0)})
    assert not noticed()
    assert not noticed(cross_steps=0.0, word_windows={"dog": (0.0, 0.3)})
    assert not noticed(cross_steps=0.0, weights_act="at every step")
    assert not [text for text in plan(CAT, [DOG], weights={"dog": 1.0}, cross_steps=0.0)[2] if "weight" in text]
