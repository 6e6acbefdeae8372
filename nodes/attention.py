"""Attention Re-weight, and attention maps: recorded in any run, then looked at."""

from __future__ import annotations

import torch

from ..engine.attention import attach, prompts_of
from ..engine.guide import window
from ..engine.rows import Capture, WordEdit
from ..samplers.attention.alignment import factor_columns, in_some_prompt, parse_factors, words_in
from ..samplers.attention.controllers import Reweight
from ..samplers.attention.heat import colours, heat, overlay, soft_mask, spread, strip
from ..samplers.attention.layers import SigmaWindow
from ..samplers.attention.maps import LayerChoice, Record
from . import fields as base
from .report import temporary, text_result

LAYERS = (
    "STRING",
    {
        "default": "auto",
        "tooltip": "The cross-attention layers that maps are read from. auto: the up blocks on the coarsest grid that "
        "is at least a quarter of the latent's side and 16 tokens (16x16 for SD1 at 512, 32x32 for SDXL at "
        "1024). Or up, down, mid, all, or names such as output.3, input.4.1.",
    },
)
_START = base.share(0.0, "Where it begins, as a share of the noise schedule like ControlNet's (0: pure noise).")
_END = base.share(1.0, "Where it ends, as a share of the noise schedule like ControlNet's (1: the finished picture).")


class AttentionReweight:
    ID = "NullText_AttentionReweight"
    TITLE = "Attention Re-weight"
    CATEGORY = "NullText/attention"
    SEARCH_ALIASES = ["prompt weight", "prompt2prompt", "attention weight", "token weight", "equalizer"]
    DESCRIPTION = base.describe(
        "Makes words count more or less by scaling their cross-attention (prompt-to-prompt's re-weighting; a prompt's "
        "(word:1.2) scales the embedding instead). Works with any sampler, LoRA, ControlNet, masks and batches. "
        "Cost: no network calls; the cross-attention layers run with explicit probabilities.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the words re-weighted, for any sampler. The model given stays as it was.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "The prompt, from Prompt (with words); wire the same one to the sampler."},
                ),
                "weights": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "word: factor, separated by commas or new lines, for example  red: 3, small car: "
                        "0.5  . 1 leaves a word as it is, 0 takes it out, negative turns against it. "
                        "Typical: -2 to 5.",
                    },
                ),
                "start_percent": _START,
                "end_percent": _END,
            }
        }

    def run(self, model, positive, weights, start_percent, end_percent):
        factors = parse_factors(weights)
        columns = factor_columns(prompts_of(positive, self.TITLE), factors)
        span = window(model, start_percent, end_percent)
        if all(value == 1 for value in factors.values()) or start_percent == end_percent:
            return text_result("Nothing to re-weight: the model goes through as it is", model)
        edit = WordEdit(Reweight(columns, SigmaWindow(*span)), positive)
        said = "Re-weighted: " + ", ".join(f"{word} x {value:g}" for word, value in factors.items())
        return text_result(said, attach(model, [edit]))


class AttentionRecord:
    ID = "NullText_AttentionRecord"
    TITLE = "Record Attention Maps"
    CATEGORY = "NullText/attention"
    SEARCH_ALIASES = ["attention map", "daam", "cross attention", "heat map"]
    DESCRIPTION = base.describe(
        "Keeps what chosen words look at while a picture is sampled with the model, by any sampler and beside the "
        "other attention nodes; Attention Map shows it. The maps start anew with every run. Cost: no network calls; "
        "the chosen layers run with explicit probabilities.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL", "ATTENTION_MAPS")
    RETURN_NAMES = ("model", "maps")
    OUTPUT_TOOLTIPS = (
        "The model to sample with. The model given stays as it was.",
        "For Attention Map: filled by the latest run of that model.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "The prompt, from Prompt (with words); wire the same one to the sampler."},
                ),
                "words": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "The words to look for, separated by commas; several words in a row count as one. "
                        "Empty: every word of the prompt.",
                    },
                ),
                "layers": LAYERS,
                "start_percent": _START,
                "end_percent": _END,
            }
        }

    def run(self, model, positive, words, layers, start_percent, end_percent):
        if start_percent == end_percent:
            raise ValueError(
                f"Nothing would be recorded, as start_percent and end_percent are both {start_percent:g}: set "
                "start_percent below end_percent."
            )
        prompts = prompts_of(positive, self.TITLE)
        chosen = [word.strip() for word in words.split(",") if word.strip()] or words_in(prompts[0])
        if not chosen:
            raise ValueError("The prompt has no words to look for: write what the picture shows.")
        columns = in_some_prompt(prompts, chosen)
        record = Record(columns, LayerChoice(layers), SigmaWindow(*window(model, start_percent, end_percent)))
        return attach(model, [Capture(record, positive)]), {"record": record, "words": chosen}


class AttentionMap:
    ID = "NullText_AttentionMap"
    TITLE = "Attention Map"
    CATEGORY = "NullText/attention"
    SEARCH_ALIASES = ["attention map", "daam", "heat map", "cross attention", "mask from word"]
    DESCRIPTION = base.describe(
        "Shows where words look, as a heat map over the picture, as a mask for any other node, and as a strip over the "
        "steps. Wire the finished picture, so that the run that fills the maps comes first. No network calls.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "MASK", "IMAGE")
    RETURN_NAMES = ("heat_map", "mask", "strip")
    OUTPUT_TOOLTIPS = (
        "One picture per word (and per image of the batch): the heat map over it.",
        "One mask per word (and per image): 1 where the word looks.",
        "One row of heat maps per word (and per image), from the noisiest step to the last.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "maps": ("ATTENTION_MAPS", {"tooltip": "From Record Attention Maps, whose model made the picture."}),
                "image": ("IMAGE", {"tooltip": "The picture that was sampled with that model."}),
                "words": (
                    "STRING",
                    {"default": "", "tooltip": "Which of the recorded words to show, with commas. Empty: all of them."},
                ),
                "threshold": base.share(0.4, "The mask is 1 where the heat, from 0 to 1, is above this."),
                "blur": base.number(2.0, 0.0, 256.0, 0.5, "How soft the mask's edge is, in pixels."),
                "opacity": base.share(0.6, "How much the heat map covers the picture."),
                "strip_steps": base.whole(8, 1, 50, "The most steps that the strip shows."),
            }
        }

    def run(self, maps, image, words, threshold, blur, opacity, strip_steps):
        recorded, names = maps["record"].maps, maps["words"]
        chosen = [word.strip() for word in words.split(",") if word.strip()] or names
        missing = [word for word in chosen if word not in names]
        if missing:
            raise ValueError(f'"{missing[0]}" was not recorded; recorded are: {", ".join(names)}.')
        index, size = [names.index(word) for word in chosen], tuple(image.shape[1:3])
        pictures, masks, strips, shown = [], [], [], []
        for i, picture in enumerate(image[..., :3].float().cpu()):
            at = min(i, max(recorded.images(), default=0))
            for heat_map in heat(recorded.maps(at)[index], size):
                pictures.append(overlay(picture, heat_map, opacity))
                masks.append(soft_mask(heat_map, threshold, blur))
                shown.append(colours(heat_map))
            steps = [recorded.maps(at, sigma)[index] for sigma in spread(recorded.sigmas(at), strip_steps)]
            strips.append(strip(picture, steps, opacity))
        count = len(recorded.sigmas(0))
        said = f"{', '.join(chosen)}: mean of {count} step{'s' if count > 1 else ''}"
        heat_maps = {
            "words": chosen,
            "opacity": opacity,
            "base": temporary(image),
            "heat": temporary(torch.stack(shown)),
        }
        return text_result(
            said, torch.stack(pictures), torch.stack(masks), torch.cat(strips), nulltext_heat=[heat_maps]
        )


NODES = (AttentionReweight, AttentionRecord, AttentionMap)
