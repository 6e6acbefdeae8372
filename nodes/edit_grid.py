"""One inversion, many edits: a list of prompts times a range of strengths, as a captioned grid."""

from __future__ import annotations

import torch

from ..engine import record
from ..engine.comfy import decode, encode
from ..engine.noise import source_latent
from ..engine.words import with_words
from ..samplers.inversion.replay import calls_back, cfg_of, first_step
from . import fields as base
from . import inverting
from .pictures import captioned_grid
from .report import text_result


def _strengths(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or any(not 0 <= v <= 1 for v in values):
        raise ValueError(
            f"The strengths are numbers from 0 to 1 with commas between them, like 0.6, 0.8, 1; got {text!r}."
        )
    return values


class EditGrid:
    ID = "NullText_EditGrid"
    TITLE = "One Inversion, Many Edits"
    CATEGORY = "NullText/edit"
    DESCRIPTION = (
        "Samples one inversion with every prompt of a list at every strength of a range, and lays the pictures out in "
        "a captioned grid beside the source. Cost: prompts x the sum of N x strength calls. Search: xy plot, prompt "
        "list, edit sweep, compare edits."
    )
    SEARCH_ALIASES = ["xy plot", "prompt list", "edit sweep", "compare edits"]
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "IMAGE", "LATENT")
    RETURN_NAMES = ("grid", "edits", "latents")
    OUTPUT_TOOLTIPS = (
        "One captioned grid per inverted image: a row per prompt, a column per strength, the source first.",
        "The edits alone, prompt by prompt, strength by strength.",
        "Their latents in the same order.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that the inversion was made with; another is refused."}),
                "clip": ("CLIP", {"tooltip": "Encodes the edited prompts."}),
                "vae": ("VAE", {"tooltip": "Decodes the edits."}),
                "inversion": (
                    "INVERSION",
                    {"tooltip": "From Null-Text Inverter, Optimise, Invert Image or Load Inversion."},
                ),
                "prompts": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "One edited prompt per line; empty lines are skipped.",
                    },
                ),
                "strengths": (
                    "STRING",
                    {
                        "default": "0.6, 0.8, 1.0",
                        "tooltip": "Shares of the steps that are walked anew, from 0 (the source) to 1, with commas "
                        "between.",
                    },
                ),
            },
            "optional": {
                "negative": (
                    "CONDITIONING",
                    {
                        "tooltip": "Only for an inversion without null embeddings and cfg above 1: the "
                        "negative (empty) "
                        "prompt."
                    },
                ),
                "mask": ("MASK", {"tooltip": "Change only here (1 = change); the rest stays on the stored path."}),
                "target_cfg": base.TARGET_CFG,
            },
        }

    def run(self, model, clip, vae, inversion, prompts, strengths, negative=None, mask=None, target_cfg=0.0):
        record.check_belongs(inversion, model)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise ValueError("There is no edited prompt: write one per line.")
        values = _strengths(strengths)
        cfg = cfg_of(inversion, target_cfg)
        record.prompts(inversion, [], negative, cfg)  # refuses a missing negative before any work
        source, edits, captions = source_latent(inversion), [], []
        calls = seconds = 0
        for text in lines:
            positive = with_words(encode(clip, text), clip, text)
            for strength in values:
                first = first_step(strength, inversion.steps)
                if first == inversion.steps:
                    edits.append(source)
                else:
                    result = inverting.replay(model, inversion, positive, negative, cfg=cfg, first=first, mask=mask)
                    edits.append(result.samples)
                    calls, seconds = calls + calls_back(inversion, first), seconds + result.seconds
                captions.append(f"{strength:g}: {text}")
        shown, pictures = decode(vae, source), [decode(vae, edit) for edit in edits]
        name = f"source: {inversion.text}" if inversion.text else "source"
        grids = []
        for image in range(inversion.shape[0]):
            cells, texts = [], []
            for row in range(len(lines)):
                own = slice(row * len(values), (row + 1) * len(values))
                cells += [shown[image], *(p[image] for p in pictures[own])]
                texts += [name, *captions[own]]
            grids.append(captioned_grid(torch.stack(cells), texts, 1 + len(values)))
        said = (
            f"{len(lines)} prompts x {len(values)} strengths x {inversion.shape[0]} image(s) at cfg {cfg:g}: "
            f"{calls} network calls in {seconds:.1f} s"
        )
        return text_result(said, torch.cat(grids), torch.cat(pictures), {"samples": torch.cat(edits)})


NODES = (EditGrid,)
