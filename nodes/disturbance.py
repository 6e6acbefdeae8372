"""Null-text disturbance: the cartoon patch, and the sampler in one box."""

from __future__ import annotations

from ..engine.comfy import is_empty, process_of, sigma_range, sigma_to_time, time_to_sigma, to_model_space, window
from ..engine.null_branch import patch_null_branch
from ..engine.sampler import core_sampler, sample_latent
from ..samplers.picture.disturbance import MATCH_PICTURE, MATCH_ROLLBACK
from ..samplers.picture.disturbance import Disturbance as OtherLatent
from ..samplers.picture.disturbance_schedules import gains, stable_strength
from ..samplers.window import SigmaWindow
from .base import (
    CFG,
    LATENT,
    MODEL,
    NEGATIVE,
    POSITIVE,
    SEED,
    SIGMAS,
    Boolean,
    Box,
    Choice,
    Float,
    Int,
    Output,
    optional,
)
from .disturbance_schedule import SPAN, picture_sigmas, stability
from .masked import check_picture
from .report import model_unchanged, text_result, unchanged
from .shown import SEEN, EditBox

ROLLBACK, PICTURE, ITSELF = "rollback (Back-D)", "picture (Image-D)", "itself, bounded (no disturbance)"
ALIASES = [
    "cartoon",
    "null-text disturbance",
    "rollback disturbance",
    "image disturbance",
    "cartoonise",
    "stylise",
    "flat colours",
]
_CFG = CFG(
    "The same cfg as in the sampler: for the report, and for the first step, before the sampler's own is seen.",
    default=10.0,
)
_LOOK = (
    Choice(
        "look",
        [ROLLBACK, PICTURE, ITSELF],
        "What the negative side of the guidance looks at. Rollback: the run's own latent from an earlier, noisier "
        "step; changes more. Picture: the latent of a finished picture; stays closer to it. Itself, bounded: no "
        "disturbance, only the smoothing of `match`, which is our own.",
    ),
    Float(
        "strength",
        1.0,
        "0: ordinary guidance. 1: the paper's formula, as long as `match` is off. Steps that are too long for the cfg "
        "get less, and the report says so.",
    ),
    Float(
        "rollback",
        0.3,
        "How far back the rollback goes, as a fraction of the diffusion's time (0.3 is the paper's b = 300 of 1000). "
        "0 is off.",
    ),
)
_MATCH = Boolean(
    "match",
    False,
    "Off: the paper's formula. On: an addition of our own that limits the noise which the null branch predicts. Turn "
    "it on where the picture becomes noise. It also smooths by itself, and its limits were chosen on the demo model.",
)
_MATCHED = "match is on: our own smoothing beside the paper's formula."


def disturb(model, look, strength, rollback, start_percent, end_percent, cfg, reference=None, match=False, sigmas=None):
    """(patched MODEL, None), or (the MODEL itself, why nothing changes). ValueError where no result is defined."""
    if look == PICTURE and reference is None:
        raise ValueError("Image-D needs a picture: connect its LATENT to `picture`, or choose rollback (Back-D).")
    if look == PICTURE:
        check_picture(reference, "Image-D needs a picture", "encode an image, or choose rollback (Back-D)")
    if strength == 0:
        return model, "strength is 0"
    if start_percent >= end_percent:
        return model, f"the window from {start_percent:g} to {end_percent:g} is empty"
    if look == ROLLBACK and rollback == 0:
        return model, "rollback is 0"
    kept = None if reference is None or is_empty(reference) or look == ITSELF else to_model_space(model, reference)
    sigma_at, time_of = time_to_sigma(model), sigma_to_time(model)
    other = OtherLatent(
        process_of(model),
        *window(model, start_percent, end_percent),
        older=(lambda s: sigma_at(min(1.0, time_of(s) + rollback))) if look == ROLLBACK else None,
        reference=kept,
        itself=look == ITSELF,
    )
    bounds = MATCH_PICTURE if look == PICTURE else MATCH_ROLLBACK
    return patch_null_branch(model, other, strength, cfg, bounds if match or look == ITSELF else None, sigmas), None


def least_strength(model, sigmas, cfg, strength, start_percent, end_percent=1.0):
    """The smallest strength that the window's steps of this schedule are left with; the last step to 0, which fades on
    every schedule, does not count."""
    inside, levels = SigmaWindow(*window(model, start_percent, end_percent)), sigmas.tolist()
    steps = zip(levels, levels[1:], stable_strength(sigmas, cfg, strength))
    return min((f for s, low, f in steps if s in inside and low > 0), default=strength)


class Disturbance(Box):
    ID, TITLE, CATEGORY = "NullText_Disturbance", "Null-Text Disturbance", "NullText/cartoon"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = (
        "Makes cartoons without training: late in sampling, the null branch of classifier-free guidance is given "
        "another latent (arXiv 2305.06710). Patches a MODEL for any sampler with cfg above 1; no extra network calls. "
        "Use a Disturbance Schedule with it."
    )
    INPUTS = (
        MODEL,
        *_LOOK,
        *SPAN,
        _CFG,
        *optional(
            LATENT(
                "Image-D: the latent that the null branch is given; any latent of the sampled size. Rollback of a run "
                "that starts from a picture: that picture, so that there is something to roll back to.",
                name="picture",
            ),
            SIGMAS(
                "The sampler's schedule. Wire it: the report can then say whether it is stable, and older versions of "
                "ComfyUI need it so that the last step fades."
            ),
            _MATCH,
        ),
    )
    OUTPUTS = (Output("MODEL", "The patched clone; the model itself where nothing would change."),)

    def run(
        self, model, look, strength, rollback, start_percent, end_percent, cfg, picture=None, sigmas=None, match=False
    ):
        patched, nothing = disturb(
            model, look, strength, rollback, start_percent, end_percent, cfg, picture, match, sigmas
        )
        if nothing:
            return model_unchanged(nothing, patched)
        lines = [f"{look} from {start_percent:g} to {end_percent:g}, strength {strength:g}. No extra network calls."]
        lines += [_MATCHED] if match and look != ITSELF else []
        if cfg <= 1:
            lines.append("Notice: at cfg 1 there is no null branch and nothing changes; sample with cfg above 1.")
        if sigmas is not None and look != ITSELF:
            low = least_strength(model, sigmas, cfg, strength, start_percent, end_percent)
            lines.append(
                "This schedule keeps the full strength."
                if low >= strength
                else f"Notice: on this schedule the strength fades to {low:.2f}, or noise would grow; a Disturbance "
                f"Schedule keeps it."
            )
        return text_result("\n".join(lines), patched)


class DisturbanceSampler(EditBox):
    ID, TITLE, CATEGORY = "NullText_DisturbanceSampler", "Cartoon (Null-Text Disturbance)", "NullText/cartoon"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = (
        "A cartoon in one box: patch, stable schedule and Euler sampler. Free generation from an empty latent, or a "
        "picture's cartoon with denoise below 1 (arXiv 2305.06710)."
    )
    INPUTS = (
        MODEL,
        POSITIVE,
        NEGATIVE,
        LATENT("The picture to redraw, or an empty latent for free generation."),
        SEED,
        CFG("The paper takes 10 and finds 8 to 12 good. More cfg makes more steps.", default=10.0),
        *_LOOK,
        SPAN[0],
        Float(
            "denoise",
            1.0,
            "1: from noise. Below: from the picture, noised to this fraction of the diffusion's time; 0.3 with the "
            "start at 0.7 is the paper's way with real pictures. 0: the picture as it is.",
        ),
        Int("steps_above", 12, "Steps before the window."),
        Int(
            "steps_below", 0, "Steps inside the window; 0: as many as cfg needs. Cost: one network call each.", 0, 1000
        ),
        *optional(
            LATENT("Image-D: what the null branch is given, if not the latent itself.", name="picture"), _MATCH, SEEN
        ),
    )
    OUTPUTS = (Output("LATENT", "The cartoon."),)
    AFTER = "cartoon"
    READS_MASK = True

    def run(
        self,
        model,
        positive,
        negative,
        latent,
        seed,
        cfg,
        look,
        strength,
        rollback,
        start_percent,
        denoise,
        steps_above,
        steps_below,
        picture=None,
        match=False,
    ):
        if denoise == 0:
            return text_result(unchanged("denoise is 0"), latent)
        if denoise < 1:
            check_picture(
                latent, "With denoise below 1 the run starts from a picture", "encode one, or set denoise to 1"
            )
        reference = latent if picture is None and not is_empty(latent) else picture
        steps = {"above": steps_above, "below": steps_below or None}
        sigmas = picture_sigmas(time_to_sigma(model), sigma_range(model)[0], denoise, cfg, start_percent, **steps)
        patched, nothing = disturb(model, look, strength, rollback, start_percent, 1.0, cfg, reference, match, sigmas)
        out = sample_latent(
            patched, positive, negative, cfg, core_sampler("euler"), sigmas, latent, seed, latent.get("noise_mask")
        )
        worst = max(gains(sigmas, cfg, window(model, start_percent, 1.0)[0]))
        text = f"{len(sigmas) - 1} network calls, {stability(worst)}."
        if nothing is None and cfg <= 1:
            nothing = "at cfg 1 there is no null branch"
        if nothing:
            return text_result(f"Notice: {nothing}, so this is ordinary sampling. {text}", out)
        text += f" {_MATCHED}" if match and look != ITSELF else ""
        least = least_strength(model, sigmas, cfg, strength, start_percent)
        if look != ITSELF and least < strength:
            text += f"\nNotice: strength fades to {least:.2f}, or noise would grow; raise steps_below."
        return text_result(text, out)


NODES = (Disturbance, DisturbanceSampler)
