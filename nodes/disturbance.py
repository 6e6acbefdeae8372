"""Null-text disturbance: the cartoon patch, its schedule, and the sampler in one box."""

from __future__ import annotations

from ..engine.comfy import process_of, sigma_range
from ..engine.guide import window
from ..engine.null_branch import patch_null_branch
from ..engine.sampler import core_sampler
from ..engine.sampling import is_empty, sample_latent, sigma_to_time, time_to_sigma, to_model_space
from ..samplers.picture.disturbance import MATCH_PICTURE, MATCH_ROLLBACK, disturbance_schedule, gains, stable_strength
from ..samplers.picture.disturbance import Disturbance as Looks
from ..samplers.window import SigmaWindow
from . import fields as base
from .report import text_result
from .schedules import picture_sigmas

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
_LOOK = base.choice(
    [ROLLBACK, PICTURE, ITSELF],
    "Where the null branch looks. Rollback: at the run's own latent from earlier, for free generation and pictures. "
    "Picture: at a clean latent, nearer to that picture. Itself, bounded: no disturbance, only the bound of `match`, a "
    "smoothing filter of our own.",
)
_STRENGTH = base.share(
    1.0,
    "0: ordinary guidance, the model comes back unpatched. 1: the null branch looks at the other latent alone; with "
    "`match` off that is the paper's formula, in every step that is short enough for cfg (in others it fades, and the "
    "report or the log says so). Costs nothing extra.",
)
_ROLLBACK = base.share(
    0.3,
    "How far back the null branch looks, as a share of the diffusion's time (0.3 is the paper's b = 300 of "
    "1000). 0 is off.",
)
_START = base.share(
    0.7,
    "Where the disturbance begins, as ComfyUI counts: 0 is noise, 1 the finished picture. 0.7 is the paper's "
    "s = 300; earlier changes more.",
)
_MATCH = (
    "BOOLEAN",
    {
        "default": False,
        "tooltip": "Off: the paper's formula. On: our own smoothing beside it: the noise that the null branch sees is "
        "bounded by the positive branch's, about as much at first and less near the end. It acts without any "
        "disturbance too, and its bounds were chosen on the demo model. Keeps a far rollback from turning into noise; "
        "costs nothing.",
    },
)
_MATCHED = "match is on: our own smoothing beside the paper's formula."
_END = base.share(1.0, "Where the disturbance ends (1: at the finished picture).")


def disturb(model, look, strength, rollback, start_percent, end_percent, cfg, reference=None, match=False, sigmas=None):
    """(patched MODEL, None), or (the MODEL itself, why nothing changes). ValueError where no result is defined."""
    if look == PICTURE and reference is None:
        raise ValueError("Image-D looks at a picture: connect its LATENT to `picture`, or choose rollback (Back-D).")
    if look == PICTURE and is_empty(reference):
        raise ValueError(
            "Image-D looks at a picture, but this latent is empty: encode an image, or choose rollback (Back-D)."
        )
    if strength == 0:
        return model, "strength is 0"
    if start_percent >= end_percent:
        return model, f"the window from {start_percent:g} to {end_percent:g} is empty"
    if look == ROLLBACK and rollback == 0:
        return model, "rollback is 0"
    kept = None if reference is None or is_empty(reference) or look == ITSELF else to_model_space(model, reference)
    sigma_at, time_of = time_to_sigma(model), sigma_to_time(model)
    looks = Looks(
        process_of(model),
        *window(model, start_percent, end_percent),
        older=(lambda s: sigma_at(min(1.0, time_of(s) + rollback))) if look == ROLLBACK else None,
        reference=kept,
        itself=look == ITSELF,
    )
    bounds = MATCH_PICTURE if look == PICTURE else MATCH_ROLLBACK
    return patch_null_branch(model, looks, strength, cfg, bounds if match or look == ITSELF else None, sigmas), None


def least_strength(model, sigmas, cfg, strength, start_percent, end_percent=1.0):
    """The smallest strength that the window's steps of this schedule are left with; the last step to 0, which fades on
    every schedule, does not count."""
    span, levels = SigmaWindow(*window(model, start_percent, end_percent)), sigmas.tolist()
    steps = zip(levels, levels[1:], stable_strength(sigmas, cfg, strength))
    return min((f for s, low, f in steps if s in span and low > 0), default=strength)


class DisturbanceSchedule:
    ID = "NullText_DisturbanceSchedule"
    TITLE = "Disturbance Schedule"
    CATEGORY = "NullText/cartoon"
    SEARCH_ALIASES = ["cartoon sigmas", "null-text disturbance", "stable schedule"]
    DESCRIPTION = base.describe(
        "Gives the window of a null-text disturbance enough steps: few above it, evenly spaced (in log sigma) ones "
        "below, so that the disturbed guidance makes a cartoon and not noise.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("The schedule, from the same first to the same last sigma.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "sigmas": ("SIGMAS", {"tooltip": "Any scheduler's schedule; its first and last sigma are kept."}),
                "cfg": base.cfg(
                    10.0,
                    "The cfg that the sampler uses. More cfg needs more steps: the error of a step is multiplied by "
                    "1 - cfg (1 - r), r being the ratio of neighbouring sigmas.",
                ),
                "start_percent": _START,
                "steps_above": base.whole(12, 0, 1000, "Steps before the window. 0 keeps the given ones."),
                "steps_below": base.whole(
                    0, 0, 1000, "Steps inside the window. 0: as many as cfg needs, 32 for cfg 10 on Stable Diffusion 1."
                ),
            }
        }

    def run(self, model, sigmas, cfg, start_percent, steps_above, steps_below):
        start = window(model, start_percent, 1.0)[0]
        out = disturbance_schedule(sigmas, cfg, start, above=steps_above or None, below=steps_below or None)
        before, after = (max(gains(s, cfg, start), default=0.0) for s in (sigmas, out))
        inside = sum(s > 0 and s in SigmaWindow(start, 0.0) for s in out.tolist())
        word = "stable" if after < 2 else "NOT stable: give it more steps below"
        return text_result(
            f"{len(out) - 1} steps (was {len(sigmas) - 1}), {inside} of them in the window. Largest cfg (1 - r): "
            f"{after:.2f} (was {before:.2f}), {word}; the border is 2.",
            out,
        )


class Disturbance:
    ID = "NullText_Disturbance"
    TITLE = "Null-Text Disturbance"
    CATEGORY = "NullText/cartoon"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = base.describe(
        "Makes cartoons without training: late in sampling, the null branch of classifier-free guidance looks at "
        "another latent (arXiv 2305.06710). Patches a MODEL for any sampler with cfg above 1; no extra network calls. "
        "Use a Disturbance Schedule with it.",
        ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The patched clone; the model itself where nothing would change.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "look": _LOOK,
                "strength": _STRENGTH,
                "rollback": _ROLLBACK,
                "start_percent": _START,
                "end_percent": _END,
                "cfg": base.cfg(
                    10.0,
                    "The cfg that the sampler uses, for the report and until the first step has shown the true one.",
                ),
            },
            "optional": {
                "picture": base.latent(
                    "Image-D: the latent to look at; any latent of the sampled size. Rollback of a run that starts "
                    "from a picture: that picture, so that there is something to roll back to."
                ),
                "sigmas": (
                    "SIGMAS",
                    {
                        "tooltip": "The sampler's schedule: the report can say at once whether it is stable, and an "
                        "engine that doesn't tell it to patches fades the last step too."
                    },
                ),
                "match": _MATCH,
            },
        }

    def run(
        self, model, look, strength, rollback, start_percent, end_percent, cfg, picture=None, sigmas=None, match=False
    ):
        patched, nothing = disturb(
            model, look, strength, rollback, start_percent, end_percent, cfg, picture, match, sigmas
        )
        if nothing:
            return text_result(f"Notice: {nothing}, so the model is passed on unchanged.", patched)
        said = [f"{look} from {start_percent:g} to {end_percent:g}, strength {strength:g}. No extra network calls."]
        said += [_MATCHED] if match and look != ITSELF else []
        if cfg <= 1:
            said.append("Notice: at cfg 1 there is no null branch and nothing changes; sample with cfg above 1.")
        if sigmas is not None and look != ITSELF:
            low = least_strength(model, sigmas, cfg, strength, start_percent, end_percent)
            said.append(
                "This schedule keeps the full strength."
                if low >= strength
                else f"Notice: on this schedule the strength fades to {low:.2f}, or noise would grow; a Disturbance "
                f"Schedule keeps it."
            )
        return text_result("\n".join(said), patched)


class DisturbanceSampler:
    ID = "NullText_DisturbanceSampler"
    TITLE = "Null-Text Disturbance Sampler"
    CATEGORY = "NullText/cartoon"
    SEARCH_ALIASES = ALIASES
    DESCRIPTION = base.describe(
        "A cartoon in one box: patch, stable schedule and Euler sampler. Free generation from an empty latent, or a "
        "picture's cartoon with denoise below 1 (arXiv 2305.06710).",
        ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The cartoon.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "positive": base.POSITIVE,
                "negative": base.NEGATIVE,
                "latent": base.latent("The picture to redraw, or an empty latent for free generation."),
                "seed": base.SEED,
                "cfg": base.cfg(10.0, "The paper takes 10 and finds 8 to 12 good. More cfg makes more steps."),
                "look": _LOOK,
                "strength": _STRENGTH,
                "rollback": _ROLLBACK,
                "start_percent": _START,
                "denoise": base.share(
                    1.0,
                    "1: from noise. Below: from the picture, noised to this share of the time; 0.3 with the start "
                    "at 0.7 is the paper's way with real pictures. 0: the picture as it is.",
                ),
                "steps_above": base.whole(12, 1, 1000, "Steps before the window."),
                "steps_below": base.whole(
                    0, 0, 1000, "Steps inside the window; 0: as many as cfg needs. Cost: one network call each."
                ),
            },
            "optional": {
                "picture": base.latent("Image-D: what the null branch looks at, if not the latent itself."),
                "match": _MATCH,
            },
        }

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
            return text_result("Notice: denoise is 0, so the latent comes back as it is.", latent)
        if denoise < 1 and is_empty(latent):
            raise ValueError(
                "With denoise below 1 the run starts from a picture, but the latent is empty: encode one, or set "
                "denoise to 1."
            )
        reference = picture if picture is not None else None if is_empty(latent) else latent
        sigma_at, low = time_to_sigma(model), sigma_range(model)[0]
        sigmas = picture_sigmas(sigma_at, low, denoise, cfg, start_percent, steps_above, steps_below or None)
        patched, nothing = disturb(model, look, strength, rollback, start_percent, 1.0, cfg, reference, match, sigmas)
        out = sample_latent(
            patched, positive, negative, cfg, core_sampler("euler"), sigmas, latent, seed, latent.get("noise_mask")
        )
        worst = max(gains(sigmas, cfg, window(model, start_percent, 1.0)[0]))
        said = f"{len(sigmas) - 1} network calls, largest cfg (1 - r) {worst:.2f} (border: 2)."
        said += f" {_MATCHED}" if match and look != ITSELF and nothing is None else ""
        if nothing is None and cfg <= 1:
            nothing = "at cfg 1 there is no null branch"
        least = least_strength(model, sigmas, cfg, strength, start_percent)
        if nothing is None and look != ITSELF and least < strength:
            said += f"\nNotice: strength fades to {least:.2f}, or noise would grow; raise steps_below."
        return text_result(said if nothing is None else f"Notice: {nothing}, so this is ordinary sampling. {said}", out)


NODES = (Disturbance, DisturbanceSchedule, DisturbanceSampler)
