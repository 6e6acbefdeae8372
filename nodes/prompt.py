"""Prompt (with words): the conditioning that later nodes can ask for its words."""

from __future__ import annotations

from ..engine.comfy import encode
from ..engine.words import with_words, words_of
from .base import Box, Output, Socket, Text
from .report import text_result


def worded(clip, text: str) -> list:
    """The CONDITIONING of a text, with its words."""
    return with_words(encode(clip, text), clip, text)


class Prompt(Box):
    ID, TITLE, CATEGORY = "NullText_Prompt", "Prompt (with words)", "NullText"
    SEARCH_ALIASES = ["text encode", "tokens", "words", "prompt2prompt"]
    DESCRIPTION = (
        "Encodes a text like CLIP Text Encode and remembers its words, so that inversion, prompt-to-prompt, attention "
        "re-weight and attention maps can refer to them."
    )
    INPUTS = (
        Socket("clip", "CLIP", "The text encoder, from the checkpoint loader (LoRA loaders may stand between)."),
        Text(
            "text",
            "",
            "What the picture shows, or shall show. Emphasis like (word:1.2) works as everywhere. An empty text gives "
            "the empty prompt that null-text optimisation starts from.",
            multiline=True,
            dynamicPrompts=True,
        ),
    )
    OUTPUTS = (
        Output(
            "CONDITIONING", "The ordinary conditioning; it also carries the text, its words and their token positions."
        ),
    )

    def run(self, clip, text):
        conditioning = worded(clip, text)
        record = words_of(conditioning)[0]
        names = ", ".join(word["text"] for word in record["words"]) or "none"
        tokens = sum(len(word["tokens"]) for word in record["words"])
        report = f"Words: {names} ({tokens} tokens in {record['chunks']} window{'s' if record['chunks'] > 1 else ''})"
        return text_result(report, conditioning)


NODES = (Prompt,)
