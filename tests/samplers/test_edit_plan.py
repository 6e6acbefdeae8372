"""From fields of a node to controllers."""
import pytest
from nulltext.samplers.attention import StepWindow
from nulltext.samplers.controllers import MutualSelf, ReplaceCross, ReplaceSelf, Reweight
from nulltext.samplers.edit_plan import plan
from nulltext.samplers.maps import LocalBlend


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


def test_nothing_asked_gives_no_controllers():
    assert plan(CAT, [DOG], cross_steps=0.0, self_steps=0.0, weights="dog: 1")[0] == []


def test_everything_in_its_order():
    controllers, blend, said = plan(
        CAT,
        [DOG, BIG],
        self_attention="mutual (MasaCtrl)",
        word_windows="red: 0.2-0.4",
        weights="red: 2",
        blend_words="cat, dog",
        keep_words="red",
        blend_threshold=0.5,
    )
    assert kinds(controllers) == [ReplaceCross, MutualSelf, Reweight, LocalBlend]
    assert controllers[0].windows == [{2: StepWindow(0.2, 0.4)}, {3: StepWindow(0.2, 0.4)}]
    assert controllers[2].factors == [{2: 2.0}, {3: 2.0}]
    assert blend.source_columns == [[[3], [2]]] * 2
    assert blend.target_columns == [[[3], [2]], [[4], [3]]]
    assert blend.threshold == 0.5
    assert said == ["edit 1: replace", "edit 2: refine (3 and 4 words)"]


def test_words_that_are_nowhere_are_refused():
    for options in ({"word_windows": "fox: 0.4"}, {"weights": "fox: 2"}, {"blend_words": "fox"}):
        with pytest.raises(ValueError, match='"fox"'):
            plan(CAT, [DOG], **options)
    plan(CAT, [DOG], blend_words="cat")  # of the source alone is enough for a blend
    with pytest.raises(ValueError, match='"cat" is not in the prompt "a red dog"'):
        plan(CAT, [DOG], weights="cat: 2")  # but a weight is the edit's
    assert plan(CAT, [DOG], keep_words="cat")[1].target_columns == [[[], []]]
