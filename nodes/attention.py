"""Attention Re-weight, and attention maps: recorded in any run, then looked at."""

from __future__ import annotations

import torch

from ..engine.attention import as_read, attach, prompts_of
from ..engine.comfy import window
from ..engine.joint_attention import JOINT_FAMILIES
from ..engine.rows import Capture, WordEdit
from ..samplers.attention.alignment import factor_columns, in_some_prompt, words_in
from ..samplers.attention.controllers import Reweight
from ..samplers.attention.heat import colours, heat, overlay, soft_mask, spread, strip
from ..samplers.attention.layers import SigmaWindow
from ..samplers.attention.maps import LayerChoice, MapRecorder
from .base import IMAGE, MODEL, POSITIVE, Box, Float, Int, Output, Socket, Text, span
from .early import early
from .report import temporary, text_result
from .words import factors as factors_of
from .words import items

WORDED = POSITIVE("The prompt, from Prompt (with words); wire the same one to the sampler.")
LAYERS = Text(
    "layers",
    "auto",
    "The cross-attention layers that maps are read from. auto: the up blocks on the coarsest grid that is at least a "
    "quarter of the latent's side and 16 tokens (16x16 for SD1 at 512, 32x32 for SDXL at 1024). Or up, down, mid, "
    f"all, or names such as output.3, input.4.1. {JOINT_FAMILIES}: auto reads all blocks; names such as double.3, "
    "single.7.",
)


class AttentionReweight(Box):
    ID, TITLE, CATEGORY = "NullText_AttentionReweight", "Attention Re-weight", "NullText/attention"
    SEARCH_ALIASES = ["prompt weight", "prompt2prompt", "attention weight", "token weight", "equalizer"]
    DESCRIPTION = (
        "Makes words count more or less by scaling their cross-attention (prompt-to-prompt's re-weighting; a prompt's "
        "(word:1.2) scales the embedding instead). Works with any sampler, LoRA, ControlNet, masks and batches. Cost: "
        "no network calls; the cross-attention layers run with explicit probabilities."
    )
    INPUTS = (
        MODEL,
        WORDED,
        Text(
            "weights",
            "",
            "word: factor, separated by commas or new lines, for example  red: 3, small car: 0.5  . 1 leaves a word "
            "as it is, 0 takes it out, negative turns against it. Typical: -2 to 5.",
            multiline=True,
        ),
        *span("the re-weighting"),
    )
    OUTPUTS = (
        Output("MODEL", "The model with the words re-weighted, for any sampler. The model given stays as it was."),
    )

    @classmethod
    def VALIDATE_INPUTS(cls, weights=None):
        return early(cls, lambda weights: factors_of(weights), weights=weights)

    def run(self, model, positive, weights, start_percent, end_percent):
        factors, positive = factors_of(weights), as_read(model, positive)
        columns = factor_columns(prompts_of(positive, self.TITLE), factors)
        acts = SigmaWindow(*window(model, start_percent, end_percent))
        if all(value == 1 for value in factors.values()) or start_percent == end_percent:
            return text_result("Nothing to re-weight: the model goes through as it is", model)
        text = "Re-weighted: " + ", ".join(f"{word} x {value:g}" for word, value in factors.items())
        return text_result(text, attach(model, [WordEdit(Reweight(columns, acts), positive)]))


class AttentionRecord(Box):
    ID, TITLE, CATEGORY = "NullText_AttentionRecord", "Record Attention Maps", "NullText/attention"
    SEARCH_ALIASES = ["attention map", "daam", "cross attention", "heat map"]
    DESCRIPTION = (
        "Records where chosen words have attention while a picture is sampled with the model, by any sampler and "
        "beside the other attention nodes; Attention Map shows it. The maps start anew with every run. Cost: no "
        "network calls; the chosen layers run with explicit probabilities."
    )
    INPUTS = (
        MODEL,
        WORDED,
        Text(
            "words",
            "",
            "The words to look for, separated by commas; several words in a row count as one. Empty: every word of "
            "the prompt.",
        ),
        LAYERS,
        *span("the recording"),
    )
    OUTPUTS = (
        Output("MODEL", "The model to sample with. The model given stays as it was.", "model"),
        Output("ATTENTION_MAPS", "For Attention Map: filled by the latest run of that model.", "maps"),
    )

    def run(self, model, positive, words, layers, start_percent, end_percent):
        if start_percent == end_percent:
            raise ValueError(
                f"Nothing would be recorded, as start_percent and end_percent are both {start_percent:g}: set "
                "start_percent below end_percent."
            )
        positive = as_read(model, positive)
        prompts = prompts_of(positive, self.TITLE)
        chosen = items(words) or words_in(prompts[0])
        if not chosen:
            raise ValueError("The prompt has no words to look for: write what the picture shows.")
        columns = in_some_prompt(prompts, chosen)
        record = MapRecorder(
            columns, LayerChoice(*items(layers)), SigmaWindow(*window(model, start_percent, end_percent))
        )
        return attach(model, [Capture(record, positive)]), {"record": record, "words": chosen}


class AttentionMap(Box):
    ID, TITLE, CATEGORY = "NullText_AttentionMap", "Attention Map", "NullText/attention"
    SEARCH_ALIASES = ["attention map", "daam", "heat map", "cross attention", "mask from word"]
    DESCRIPTION = (
        "Shows where words have attention, as a heat map over the picture, as a mask for any other node, and as a "
        "strip over the steps. Wire the finished picture, so that the run that fills the maps comes first. No network "
        "calls."
    )
    INPUTS = (
        Socket("maps", "ATTENTION_MAPS", "From Record Attention Maps, whose model made the picture."),
        IMAGE("The picture that was sampled with that model."),
        Text("words", "", "Which of the recorded words to show, with commas. Empty, or none of them recorded: all."),
        Float("threshold", 0.4, "The mask is 1 where the heat, from 0 to 1, is above this."),
        Float("blur", 2.0, "How soft the mask's edge is, in pixels.", 0.0, 256.0, 0.5),
        Float("opacity", 0.6, "How much the heat map covers the picture."),
        Int("strip_steps", 8, "The most steps that the strip shows.", 1, 50),
    )
    OUTPUTS = (
        Output("IMAGE", "One picture per word (and per image of the batch): the heat map over it.", "heat_map"),
        Output("MASK", "One mask per word (and per image): 1 where the word has attention.", "mask"),
        Output("IMAGE", "One row of heat maps per word (and per image), from the noisiest step to the last.", "strip"),
    )

    def run(self, maps, image, words, threshold, blur, opacity, strip_steps):
        recorded, names = maps["record"].maps, maps["words"]
        wanted = items(words)
        missing = [word for word in wanted if word not in names]
        chosen = [word for word in wanted if word in names] or names
        index, size = [names.index(word) for word in chosen], tuple(image.shape[1:3])
        pictures, masks, strips, heats, seen = [], [], [], [], max(len(recorded.images()), 1)
        if seen != len(image) and seen > 1:
            raise ValueError(
                f"The run that was recorded had {seen} pictures, and {len(image)} are wired: wire those {seen} as one "
                "batch, in their order."
            )
        for i, picture in enumerate(image[..., :3].float().cpu()):
            at = min(i, seen - 1)
            for heat_map in heat(recorded.maps(at)[index], size):
                pictures.append(overlay(picture, heat_map, opacity))
                masks.append(soft_mask(heat_map, threshold, blur))
                heats.append(colours(heat_map))
            steps = [recorded.maps(at, sigma)[index] for sigma in spread(recorded.sigmas(at), strip_steps)]
            strips.append(strip(picture, steps, opacity))
        count = len(recorded.sigmas(0))
        text = f"{', '.join(chosen)}: mean of {count} step{'s' if count > 1 else ''}"
        if missing:
            text += f'\nNotice: "{missing[0]}" was not recorded; recorded are: {", ".join(names)}.'
        if (runs := maps["record"].shown()) > 1:
            text += (
                f"\nNotice: {runs} runs of the model filled these maps in turn, and they are the latest one's. Where "
                "two samplers use the model, give each a Record Attention Maps of its own."
            )
        heat_maps = {
            "words": chosen,
            "opacity": opacity,
            "base": temporary(image),
            "heat": temporary(torch.stack(heats)),
        }
        return text_result(
            text, torch.stack(pictures), torch.stack(masks), torch.cat(strips), nulltext_heat=[heat_maps]
        )


NODES = (AttentionReweight, AttentionRecord, AttentionMap)
