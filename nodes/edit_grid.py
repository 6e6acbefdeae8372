"""One inversion, many edits: a list of prompts times a range of strengths, as a captioned grid."""

from __future__ import annotations

import torch

from ..engine import record
from ..engine.comfy import decode
from ..engine.noise import source_latent
from ..samplers.inversion.replay import calls_back, cfg_of, first_step
from ..samplers.measure.charts import captioned_grid
from . import words
from .base import INVERSION, TARGET_CFG, VAE, Box, Output, Socket, Text, optional
from .early import early
from .inversion_sampling import NULL, SAME_MODEL, STORED_OUTSIDE
from .masked import MaskedEdit
from .prompt import worded
from .replay import replay
from .report import nothing_to_change, text_result


def check_lists(prompts: str, strengths: str) -> tuple[list[str], list[float]]:
    """The prompts and strengths of the two texts. ValueError where one is missing or can't be read."""
    texts, values = words.lines(prompts), words.fractions(strengths, "strengths")
    if not texts or not values:
        raise ValueError(f"There is no {'strength' if texts else 'edited prompt'}: write one at least.")
    return texts, values


class EditGrid(Box):
    ID, TITLE, CATEGORY = "NullText_EditGrid", "One Inversion, Many Edits", "NullText/edit"
    SEARCH_ALIASES = ["xy plot", "prompt list", "edit sweep", "compare edits"]
    DESCRIPTION = (
        "Samples one inversion with every prompt of a list at every strength of a range, and lays the pictures out in "
        "a captioned grid beside the source. Cost: prompts x the sum of N x strength calls."
    )
    INPUTS = (
        SAME_MODEL,
        Socket("clip", "CLIP", "Encodes the edited prompts."),
        VAE("Decodes the edits."),
        INVERSION,
        Text("prompts", "", "One edited prompt per line; empty lines are skipped.", multiline=True),
        Text(
            "strengths",
            "0.6, 0.8, 1.0",
            "Fractions of the steps that are sampled anew, from 0 (the source) to 1, with commas between.",
        ),
        *optional(NULL, STORED_OUTSIDE, TARGET_CFG),
    )
    OUTPUTS = (
        Output(
            "IMAGE",
            "One captioned grid per inverted image: a row per prompt, a column per strength, the source first.",
            "grid",
        ),
        Output("IMAGE", "The edits alone, prompt by prompt, strength by strength.", "edits"),
        Output("LATENT", "Their latents in the same order.", "latents"),
    )

    @classmethod
    def VALIDATE_INPUTS(cls, prompts=None, strengths=None):
        return early(cls, check_lists, prompts=prompts, strengths=strengths)

    def run(self, model, clip, vae, inversion, prompts, strengths, negative=None, mask=None, target_cfg=0.0):
        record.check_belongs(inversion, model)
        texts, values = check_lists(prompts, strengths)
        cfg = cfg_of(inversion, target_cfg)
        record.prompts(inversion, [], negative, cfg)  # refuses a missing negative before any work
        source, edits, captions = source_latent(inversion), [], []
        inside = MaskedEdit(source, mask)
        calls = seconds = 0
        for text in texts:
            positive = worded(clip, text)
            for strength in values:
                first = first_step(strength, inversion.steps)
                if first == inversion.steps or inside.empty:
                    edits.append(source)
                else:
                    result = replay(model, inversion, positive, negative, cfg=cfg, first=first, mask=inside.grid)
                    edits.append(inside.put_back(result.samples))
                    calls, seconds = calls + calls_back(inversion, first), seconds + result.seconds
                captions.append(f"{strength:g}: {text}")
        original, pictures = decode(vae, source), [decode(vae, edit) for edit in edits]
        name = f"source: {inversion.text}" if inversion.text else "source"
        grids = []
        for image in range(inversion.shape[0]):
            cells, names = [], []
            for row in range(len(texts)):
                own = slice(row * len(values), (row + 1) * len(values))
                cells += [original[image], *(p[image] for p in pictures[own])]
                names += [name, *captions[own]]
            grids.append(captioned_grid(torch.stack(cells), names, 1 + len(values)))
        report = (
            f"{len(texts)} prompts x {len(values)} strengths x {inversion.shape[0]} image(s) at cfg {cfg:g}: "
            f"{calls} network calls in {seconds:.1f} s"
        )
        if not calls:
            report = nothing_to_change("the mask is empty" if inside.empty else "no strength samples a step")
        return text_result(report, torch.cat(grids), torch.cat(pictures), {"samples": torch.cat(edits)})


NODES = (EditGrid,)
