"""Prompt-to-Prompt: the guider for SamplerCustomAdvanced, and the all-in-one node."""

from __future__ import annotations

import torch

from ..engine import record
from ..engine.attention import prompts_of
from ..engine.comfy import schedulers, sigmas_of
from ..engine.pair_guider import prompt_to_prompt_guider, run_guider, source_of
from ..samplers.attention.heat import enlarged
from ..samplers.attention.plan import WEIGHTS_ACT, plan
from ..samplers.inversion.replay import cfg_of
from . import fields as base
from .attention import LAYERS
from .report import text_result

_WORDS = "with commas; several words in a row count as one"
_ALIASES = ["prompt2prompt", "p2p", "attention edit", "attention control", "word swap", "masactrl", "edit real image"]
_EDITED = (
    "CONDITIONING",
    {
        "tooltip": "The edited prompt, from Prompt (with words). Equal word counts: words are replaced one by one; "
        "otherwise words are added (refined), and the report says so."
    },
)
_NEGATIVE = (
    "CONDITIONING",
    {"tooltip": "The negative or empty prompt. An inversion's null embeddings stand in for it."},
)
_CFG = base.cfg(
    7.5,
    "Guidance scale of the edit, whatever the inversion was made at; 0: the inversion's own. Null embeddings fit the "
    "cfg they were optimised for, and another is refused.",
)
_OPTIONAL = {
    "source": (
        "CONDITIONING",
        {
            "tooltip": "The source prompt, from Prompt (with words). May stay open with an inversion that knows its "
            "prompt."
        },
    ),
    "inversion": (
        "INVERSION",
        {
            "tooltip": "Edit a real picture: the source branch is its stored path (Direct Inversion), N x 3 network "
            "rows. An exact pair or edit-friendly noise is walked back its own way. With null embeddings "
            "(Null-Text Optimise) they are the negative prompt. Open: edit a generated picture, N x 4 rows."
        },
    ),
    "edited_2": ("CONDITIONING", {"tooltip": "A second edit of the same source, in the same run."}),
    "edited_3": ("CONDITIONING", {"tooltip": "A third edit of the same source, in the same run."}),
}
_EDIT = {
    "edit": (
        ["auto", "replace", "refine"],
        {
            "default": "auto",
            "tooltip": "How the prompts are matched. replace: word by word, for as many words; refine: what both say "
            "is kept, new words are free. auto: replace where the word counts are equal, else refine.",
        },
    ),
    "cross_steps": base.share(
        0.8,
        "Cross-attention follows the source for this fraction of the steps (the paper's count: of N + 1). Less: freer.",
    ),
    "self_steps": base.share(
        0.4,
        "Self-attention follows the source for this fraction of the steps: layout and shapes. 0 for changes of shape.",
    ),
    "self_attention": (
        ["replace", "mutual (MasaCtrl)"],
        {
            "default": "replace",
            "tooltip": "replace: the source's self-attention until self_steps. mutual: from 8 % of the steps on, the "
            "later layers look at the source's contents instead, for changes of pose; self_steps is not "
            "read.",
        },
    ),
    "word_windows": (
        "STRING",
        {
            "default": "",
            "tooltip": "Windows of single words of the edited prompt in place of cross_steps, as fractions of the "
            "steps: cat: 0.4, red: 0.2-0.8 .",
        },
    ),
    "weights": (
        "STRING",
        {
            "default": "",
            "tooltip": "Words of the edited prompt that count more or less: red: 2, car: 0.5 (negative allowed).",
        },
    ),
    "weights_act": base.choice(
        list(WEIGHTS_ACT),
        "in the cross window: as in the authors' code, a weight multiplies the source's attention while the word's "
        "cross-attention follows it. at every step: it multiplies the attention that the word has, to the end.",
    ),
    "blend_words": (
        "STRING",
        {
            "default": "",
            "tooltip": f"Local blend: outside of what these words of either prompt look at the source stays "
            f"({_WORDS}). "
            "Empty: no blend. Exact with the euler sampler; with others it acts on the denoised prediction.",
        },
    ),
    "keep_words": (
        "STRING",
        {
            "default": "",
            "tooltip": f"Words whose region stays the source's ({_WORDS}); without blend_words "
            "everything else may change.",
        },
    ),
    "blend_threshold": base.share(0.3, "How much of a word's largest heat counts as its region."),
    "blend_start": base.share(0.2, "The blend begins at this fraction of the steps."),
    "blend_layers": LAYERS,
}


def prepare(title: str, model, edited, negative, cfg, source, inversion, more, keep_source, **options):
    """The guider, its blend (or None), the sentences, and the cfg in force."""
    if inversion is not None:
        record.check_belongs(inversion, model)
    cfg = cfg_of(inversion, cfg)
    if source is None:
        if inversion is None:
            raise ValueError(f"{title} needs the source prompt: wire source, or an inversion that knows its prompt.")
        source = source_of(inversion)
    edits = [edited, *(e for e in more if e is not None)]
    prompts = [prompts_of(c, title)[0] for c in (source, *edits)]
    controllers, blend, said = plan(prompts[0], prompts[1:], **options)
    guider = prompt_to_prompt_guider(
        model, source, edits, negative, cfg, controllers, inversion=inversion, keep_source=keep_source
    )
    return guider, blend, said, cfg


class PromptToPromptGuider:
    ID = "NullText_PromptToPromptGuider"
    TITLE = "Prompt-to-Prompt Guider"
    CATEGORY = "NullText/attention"
    SEARCH_ALIASES = _ALIASES
    DESCRIPTION = base.describe(
        "A guider for SamplerCustomAdvanced that edits a picture by its prompt and keeps the rest through attention "
        "(arXiv 2208.01626). From noise, source and edit share it; from an inversion wire SIGMAS, LATENT and SAMPLER "
        "of Inversion Parts (any noise: the stored path is followed). Cost per step: 4 network rows from noise, 3 from "
        "an inversion.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("GUIDER",)
    OUTPUT_TOOLTIPS = ("The guider: returns the edits (and the sources in front, if asked).",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "edited": _EDITED,
                "negative": _NEGATIVE,
                "cfg": _CFG,
                **_EDIT,
                "keep_source": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Return the source in front of its edits (edits from noise only)."},
                ),
            },
            "optional": _OPTIONAL,
        }

    def run(
        self,
        model,
        edited,
        negative,
        cfg,
        keep_source,
        source=None,
        inversion=None,
        edited_2=None,
        edited_3=None,
        **options,
    ):
        guider, _, said, _ = prepare(
            self.TITLE, model, edited, negative, cfg, source, inversion, (edited_2, edited_3), keep_source, **options
        )
        if keep_source and inversion is not None:
            said.append("Notice: keep_source is not read with an inversion, whose source is its stored path")
        return text_result("; ".join(said), guider)


class PromptToPrompt:
    ID = "NullText_PromptToPrompt"
    TITLE = "Prompt-to-Prompt"
    CATEGORY = "NullText/attention"
    SEARCH_ALIASES = _ALIASES
    DESCRIPTION = base.describe(
        "Edits a picture by changing words of its prompt; everything the words do not speak of stays through "
        "attention (arXiv 2208.01626). With an inversion it edits a real picture in N x 3 network rows (the fast way; "
        "an inversion with null embeddings is the thorough one); without, it makes source and edit from one seed in N "
        "x 4.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT", "LATENT", "MASK", "STRING")
    RETURN_NAMES = ("edit", "source", "mask", "report")
    OUTPUT_TOOLTIPS = (
        "The edited latents: all images of the first edit, then of the second, ...",
        "The source latents.",
        "Where local blend let the edit through (all ones without a blend).",
        "What was matched how, and what it cost.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "edited": _EDITED,
                "negative": _NEGATIVE,
                "cfg": _CFG,
                "seed": base.SEED,
                "steps": base.steps(
                    50,
                    "Steps N from noise; an inversion brings its own. Cost: N x 4 network rows, from an inversion N x "
                    "3.",
                ),
                "scheduler": (
                    schedulers(),
                    {"default": "normal", "tooltip": "Where the steps lie; an inversion brings its own."},
                ),
                **_EDIT,
            },
            "optional": {
                "latent": base.latent("An empty latent that says size and count. Not needed with an inversion."),
                **_OPTIONAL,
            },
        }

    def run(
        self,
        model,
        edited,
        negative,
        cfg,
        seed,
        steps,
        scheduler,
        latent=None,
        source=None,
        inversion=None,
        edited_2=None,
        edited_3=None,
        **options,
    ):
        if inversion is None and latent is None:
            raise ValueError("Prompt-to-Prompt needs a picture to start from: wire an empty latent, or an inversion.")
        guider, blend, said, cfg = prepare(
            self.TITLE,
            model,
            edited,
            negative,
            cfg,
            source,
            inversion,
            (edited_2, edited_3),
            inversion is None,
            **options,
        )
        if inversion is not None and latent is not None:
            said.append("Notice: latent is not read with an inversion, which brings its own")
        sigmas = sigmas_of(model, scheduler, steps) if inversion is None else inversion.sigmas
        result = run_guider(guider, latent, sigmas, seed)
        mask = torch.ones(len(result.edits), *result.edits.shape[-2:])
        if blend is not None and blend.target.sums:
            mask = torch.stack([blend.mask(e, b, tuple(mask.shape[-2:])) for e, b in result.pairs])
        mask = enlarged(mask)
        said.append(f"{len(sigmas) - 1} steps at cfg {cfg:g}, {result.rows} network rows, {result.seconds:.1f} s")
        if blend is not None:
            said.append(f"local blend lets {100 * float(mask.mean()):.0f} % through")
        text = "; ".join(said[:-1]) + "\n" + said[-1] if len(said) > 1 else said[0]
        return text_result(text, {"samples": result.edits}, {"samples": result.source}, mask, text)


NODES = (PromptToPromptGuider, PromptToPrompt)
