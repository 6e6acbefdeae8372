"""Prompt-to-Prompt: the guider for SamplerCustomAdvanced, and the all-in-one node."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine import record
from ..engine.attention import as_read, prompts_of
from ..engine.comfy import picture_size, sigmas_of
from ..engine.pair_guider import prompt_to_prompt_guider, run_guider, source_of
from ..samplers.attention.alignment import normal_word
from ..samplers.attention.maps import LayerChoice, MaskBlend
from ..samplers.attention.plan import WEIGHTS_ACT, plan
from ..samplers.inversion.replay import cfg_of
from ..samplers.masks import to_grid, to_pixels
from .attention import LAYERS
from .base import (
    CFG,
    INVERSION,
    LATENT,
    MODEL,
    NEGATIVE,
    POSITIVE,
    SCHEDULER,
    SEED,
    STEPS,
    Boolean,
    Box,
    Choice,
    Float,
    Output,
    Text,
    advanced,
    optional,
)
from .early import early
from .report import text_result
from .shown import SEEN, EditBox
from .words import edit_plan

ALIASES = ["prompt2prompt", "p2p", "attention edit", "attention control", "word swap", "masactrl", "edit real image"]
_ENDS = (
    POSITIVE(
        "The edited prompt, from Prompt (with words). Equal word counts: words are replaced one by one; otherwise "
        "words are added (refined), and the report says so.",
        name="edited",
    ),
    NEGATIVE("The negative or empty prompt. An inversion's null embeddings stand in for it."),
    CFG(
        "Guidance scale of the edit, whatever the inversion was made at; 0: the inversion's own. Null embeddings fit "
        "the cfg they were optimised for, and another is refused."
    ),
)
_SOURCES = optional(
    POSITIVE(
        "The source prompt, from Prompt (with words). May stay open with an inversion that knows its prompt.",
        name="source",
    ),
    INVERSION(
        "Edit a real picture: the source branch is its stored path (Direct Inversion), N x 3 network rows. An exact "
        "pair or edit-friendly noise is sampled back its own way. With null embeddings (Null-Text Optimise) they are "
        "the negative prompt. Open: edit a generated picture, N x 4 rows."
    ),
    POSITIVE("A second edit of the same source, in the same run.", name="edited_2"),
    POSITIVE("A third edit of the same source, in the same run.", name="edited_3"),
)
_EDIT = (
    *advanced(
        Choice(
            "edit",
            ["auto", "replace", "refine"],
            "How the prompts are matched. replace: word by word, for as many words; refine: what both say is kept, new "
            "words are free. auto: replace where the word counts are equal, else refine.",
        )
    ),
    Float(
        "cross_steps",
        0.8,
        "Cross-attention follows the source for this fraction of the steps (the paper's count: of N + 1). Less: freer.",
    ),
    Float(
        "self_steps",
        0.4,
        "Self-attention follows the source for this fraction of the steps: layout and shapes. 0 for changes of shape.",
    ),
    *advanced(
        Choice(
            "self_attention",
            ["replace", "mutual (MasaCtrl)"],
            "replace: the source's self-attention until self_steps. mutual: from 8 % of the steps on, the later layers "
            "attend to the source's contents instead, for changes of pose; self_steps is not read.",
        ),
        Text(
            "word_windows",
            "",
            "Windows of single words of the edited prompt in place of cross_steps, as fractions of the steps: "
            "cat: 0.4, red: 0.2-0.8 .",
        ),
        Text("weights", "", "Words of the edited prompt that count more or less: red: 2, car: 0.5 (negative allowed)."),
        Choice(
            "weights_act",
            WEIGHTS_ACT,
            "in the cross window: as in the authors' code, a weight multiplies the source's attention while the word's "
            "cross-attention follows it. at every step: it multiplies the attention that the word has, to the end.",
        ),
    ),
    Text(
        "blend_words",
        "",
        "Local blend: only the regions that these words of either prompt attend to may change (with commas; several "
        "words in a row count as one). auto: the words that differ, with what they describe. Empty: no blend. Exact "
        "with the euler sampler; with others it acts on the denoised prediction.",
    ),
    *advanced(
        Text(
            "keep_words",
            "",
            "Words whose regions may not change (written as blend_words); without blend_words everything else may.",
        ),
        Float(
            "blend_threshold",
            0.3,
            "The fraction of a word's largest attention above which a place is in its region. Lower: larger regions, "
            "of blend_words and of keep_words.",
        ),
        Float(
            "blend_start",
            0.2,
            "The blend begins at this fraction of the steps. Before it the whole picture may change: higher gives the "
            "edit more freedom.",
        ),
        LAYERS(name="blend_layers"),
    ),
)


def check_texts(word_windows: str, weights: str, blend_words: str, keep_words: str, blend_layers: str) -> None:
    """ValueError for a text that can't be read, and for a word that shall change and shall not."""
    given = {"word_windows": word_windows, "weights": weights, "blend_layers": blend_layers}
    read = edit_plan({**given, "blend_words": blend_words, "keep_words": keep_words})
    LayerChoice(*read["blend_layers"])
    both = {normal_word(word) for word in read["blend_words"]} & {normal_word(word) for word in read["keep_words"]}
    if both:
        raise ValueError(
            f'The word "{sorted(both)[0]}" stands in blend_words and in keep_words: take it out of one of them.'
        )


_TEXTS = ("word_windows", "weights", "blend_words", "keep_words", "blend_layers")


def prepare(
    title: str,
    model,
    edited,
    negative,
    cfg,
    *,
    source=None,
    inversion=None,
    edited_2=None,
    edited_3=None,
    keep_source=False,
    mask=None,
    **widgets,
):
    """The guider, its blend (or None), the sentences for the report, and the cfg in force. title: of the node;
    mask: a MASK [B or 1, H, W] in place of the words' own regions; widgets: those of `_EDIT`, as written."""
    if inversion is not None:
        record.check_belongs(inversion, model)
    cfg = cfg_of(inversion, cfg)
    if source is None:
        if inversion is None:
            raise ValueError(f"{title} needs the source prompt: wire source, or an inversion that knows its prompt.")
        source = source_of(inversion)
    source, *edits = (as_read(model, c) for c in (source, edited, edited_2, edited_3) if c is not None)
    prompts = [prompts_of(c, title)[0] for c in (source, *edits)]
    check_texts(**{name: widgets.get(name, "") for name in _TEXTS})
    controllers, blend, notes = plan(prompts[0], prompts[1:], **edit_plan(widgets))
    if mask is not None:
        blend = MaskBlend((to_grid(mask, inversion.shape[-2:])[:, 0] > 0).float())
        controllers.append(blend)
    guider = prompt_to_prompt_guider(
        model, source, edits, negative, cfg, controllers, inversion=inversion, keep_source=keep_source
    )
    return guider, blend, notes, cfg


def mask_of(model, blend, result) -> Tensor:
    """MASK [edits * B, H, W]: where the local blend let the edit through; all ones without a blend."""
    mask = torch.ones(len(result.edits), *result.edits.shape[-2:])
    if blend is not None and blend.target.counts:
        mask = torch.stack([blend.mask(e, b, tuple(mask.shape[-2:])) for e, b in result.pairs])
    return to_pixels(mask, picture_size(model, result.edits))


class _TextsReadEarly:
    """A box with the inputs `_EDIT`: their texts are read when a workflow is queued."""

    @classmethod
    def VALIDATE_INPUTS(cls, word_windows=None, weights=None, blend_words=None, keep_words=None, blend_layers=None):
        return early(
            cls,
            check_texts,
            word_windows=word_windows,
            weights=weights,
            blend_words=blend_words,
            keep_words=keep_words,
            blend_layers=blend_layers,
        )


class PromptToPromptGuider(_TextsReadEarly, Box):
    ID, TITLE, CATEGORY = "NullText_PromptToPromptGuider", "Prompt-to-Prompt Guider", "NullText/attention"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = (
        "A guider for SamplerCustomAdvanced that edits a picture by its prompt and keeps the rest through attention "
        "(arXiv 2208.01626). From noise, source and edit share it; from an inversion wire SIGMAS, LATENT and SAMPLER "
        "of Inversion Parts (any noise: the stored path is followed). Cost per step: 4 network rows from noise, 3 "
        "from an inversion."
    )
    INPUTS = (
        MODEL,
        *_ENDS,
        *_EDIT,
        Boolean("keep_source", False, "Return the source in front of its edits (edits from noise only)."),
        *_SOURCES,
    )
    OUTPUTS = (Output("GUIDER", "The guider: returns the edits (and the sources in front, if asked)."),)

    def run(self, model, edited, negative, cfg, keep_source, inversion=None, **options):
        options |= {"keep_source": keep_source, "inversion": inversion}
        guider, _, notes, _ = prepare(self.TITLE, model, edited, negative, cfg, **options)
        if keep_source and inversion is not None:
            notes.append("Notice: keep_source is not read with an inversion, whose source is its stored path")
        return text_result("; ".join(notes), guider)


class PromptToPrompt(_TextsReadEarly, EditBox):
    ID, TITLE, CATEGORY = "NullText_PromptToPrompt", "Prompt-to-Prompt (prompt2prompt)", "NullText/attention"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = (
        "Edits a picture by changing words of its prompt; everything else is kept through attention (arXiv "
        "2208.01626). With an inversion it edits a real picture in N x 3 network rows (the fast way; an inversion "
        "with null embeddings is the thorough one); without, it makes source and edit from one seed in N x 4."
    )
    INPUTS = (
        MODEL,
        *_ENDS,
        SEED,
        STEPS("Steps N from noise; an inversion brings its own. Cost: N x 4 network rows, from an inversion N x 3."),
        *advanced(SCHEDULER("How the steps are spaced; an inversion brings its own.")),
        *_EDIT,
        LATENT("An empty latent that sets size and count. Not needed with an inversion.").optional(),
        *_SOURCES,
        SEEN,
    )
    OUTPUTS = (
        Output("LATENT", "The edited latents: all images of the first edit, then of the second, ...", "edit"),
        Output("LATENT", "The source latents.", "source"),
        Output("MASK", "Where local blend let the edit through (all ones without a blend).", "mask"),
        Output("STRING", "What was matched how, and what it cost.", "report"),
    )

    def before(self, inputs, outputs):
        return outputs[1]["samples"]

    def mask(self, inputs, outputs):
        return outputs[2]

    def run(self, model, edited, negative, cfg, seed, steps, scheduler, latent=None, inversion=None, **options):
        if inversion is None and latent is None:
            raise ValueError("Prompt-to-Prompt needs a picture to start from: wire an empty latent, or an inversion.")
        options |= {"keep_source": inversion is None, "inversion": inversion}
        guider, blend, notes, cfg = prepare(self.TITLE, model, edited, negative, cfg, **options)
        if inversion is not None and latent is not None:
            notes.append("Notice: latent is not read with an inversion, which brings its own")
        sigmas = sigmas_of(model, scheduler, steps) if inversion is None else inversion.sigmas
        result = run_guider(guider, latent, sigmas, seed)
        mask = mask_of(model, blend, result)
        notes.append(f"{len(sigmas) - 1} steps at cfg {cfg:g}, {result.rows} network rows, {result.seconds:.1f} s")
        if blend is not None:
            notes.append(f"local blend lets {100 * float(mask.mean()):.0f} % through")
        text = "; ".join(notes[:-1]) + "\n" + notes[-1] if len(notes) > 1 else notes[0]
        return text_result(text, {"samples": result.edits}, {"samples": result.source}, mask, text)


NODES = (PromptToPromptGuider, PromptToPrompt)
