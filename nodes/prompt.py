"""Prompt (with words): the conditioning that later nodes can ask for its words."""

from __future__ import annotations

from ..engine.comfy import encode
from ..engine.words import with_words, words_of
from .report import text_result


class Prompt:
    ID = "NullText_Prompt"
    TITLE = "Prompt (with words)"
    CATEGORY = "NullText"
    DESCRIPTION = (
        "Encodes a text like CLIP Text Encode and remembers its words, so that inversion, prompt-to-prompt, attention "
        "re-weight and attention maps can speak of them. Search: text encode, tokens, words, prompt2prompt."
    )
    SEARCH_ALIASES = ["text encode", "tokens", "words", "prompt2prompt"]
    FUNCTION = "run"
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("The ordinary conditioning; it also carries the text, its words and their token positions.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "clip": (
                    "CLIP",
                    {"tooltip": "The text encoder, from the checkpoint loader (LoRA loaders may stand between)."},
                ),
                "text": (
                    "STRING",
                    {
                        "multiline": True,
                        "dynamicPrompts": True,
                        "default": "",
                        "tooltip": "What the picture shows, or shall show. Emphasis like (word:1.2) works as "
                        "everywhere. "
                        "An empty text gives the empty prompt that null-text optimisation starts from.",
                    },
                ),
            }
        }

    def run(self, clip, text):
        conditioning = with_words(encode(clip, text), clip, text)
        record = words_of(conditioning)[0]
        names = ", ".join(word["text"] for word in record["words"]) or "none"
        tokens = sum(len(word["tokens"]) for word in record["words"])
        said = f"Words: {names} ({tokens} tokens in {record['chunks']} window{'s' if record['chunks'] > 1 else ''})"
        return text_result(said, conditioning)


NODES = (Prompt,)
