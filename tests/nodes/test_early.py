"""What the widgets alone tell is refused when a workflow is queued: VALIDATE_INPUTS of the nodes."""

from __future__ import annotations

import inspect

import pytest
from nulltext.nodes import NODE_CLASS_MAPPINGS as NODES

TEXTS = {"word_windows": "", "weights": "", "blend_words": "", "keep_words": "", "blend_layers": "auto"}


def check(name, **widgets):
    return NODES[f"NullText_{name}"].VALIDATE_INPUTS(**widgets)


@pytest.mark.parametrize(
    ("name", "good", "bad", "said"),
    [
        ("SDEdit", {"more_levels": "0.2, 0.4"}, {"more_levels": "0.2, 4"}, "numbers from 0 to 1"),
        ("ILVRSampler", {"strip": "4@0.8"}, {"strip": "4"}, "factor@stop"),
        ("EditGrid", {"prompts": "a cat", "strengths": "0.5"}, {"prompts": " ", "strengths": "0.5"}, "edited prompt"),
        ("EditGrid", {"prompts": "a cat", "strengths": "0.5"}, {"prompts": "a", "strengths": "x"}, "numbers from 0"),
        ("AttentionReweight", {"weights": "red: 2"}, {"weights": "red"}, '"word: value"'),
        ("Inverter", {"correction": "none", "cfg": 1.0}, {"correction": "null-text", "cfg": 1.0}, "no null branch"),
        ("Optimise", {"cfg": 7.5}, {"cfg": 1.0}, "no null branch"),
        ("WordMask", {"words": "cat"}, {"words": " , "}, "click one"),
        (
            "EditPhoto",
            {"source_prompt": "a cat", "edited_prompt": "a dog"},
            {"source_prompt": "a cat", "edited_prompt": ""},
            "what it shall show",
        ),
        ("PromptToPrompt", TEXTS, {**TEXTS, "blend_words": "cat, Dog", "keep_words": "dog"}, '"dog" stands in'),
        ("PromptToPromptGuider", TEXTS, {**TEXTS, "weights": "red: much"}, '"much"'),
        ("PromptToPrompt", TEXTS, {**TEXTS, "blend_layers": "attic"}, '"attic"'),
    ],
)
def test_a_mistake_is_said_in_one_sentence(engine, name, good, bad, said):
    assert check(name, **good) is True
    sentence = check(name, **bad)
    assert isinstance(sentence, str) and said in sentence and "\n" not in sentence
    first = next(iter(bad))
    assert check(name, **{**bad, first: None}) is True, "a value that comes through a wire is not known yet"


def test_what_the_engine_no_longer_checks_is_checked(engine):
    assert "from 1 to 30" in check("Optimise", cfg=31.0)
    assert "got 'magic'" in check("Inverter", correction="magic", cfg=7.5)
    assert check("Optimise", cfg=float("nan")) is not True


def test_only_inputs_that_there_are_are_named(engine):
    """The engine leaves its own checks out for every input that is named, and for all of them with **names."""
    for key, node in NODES.items():
        if hasattr(node, "VALIDATE_INPUTS"):
            known = inspect.getfullargspec(node.VALIDATE_INPUTS)
            assert known.varkw is None and set(known.args) - {"cls"} <= {i.name for i in node.INPUTS}, key
