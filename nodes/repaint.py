"""RePaint: as a SAMPLER for the custom samplers, in one box, and the pixel composite that ends any local edit."""

from __future__ import annotations

import functools
import logging

import torch

from ..engine.comfy import process_of, sigma_range, sigmas_of
from ..engine.sampler import own_sampler
from ..engine.sampling import is_empty, sample_latent, to_model_space
from ..samplers.core import VE
from ..samplers.masks import composite, to_grid
from ..samplers.masks import feather as feathered
from ..samplers.picture.particles import sample_particles
from ..samplers.picture.repaint import describe
from ..samplers.picture.repaint_schedules import CUSTOM, PRESETS, Schedule, data_scale, sample_repaint_scheduled
from ..samplers.walk import network_calls
from . import fields as base
from .report import shown, text_result

RESAMPLING, EXACT = "resampling (RePaint)", "exact-leaning (particles)"
RENEWED, POSTERIOR = "renewed (ours, for few levels)", "posterior (the paper's)"
_MODE = base.choice(
    [RESAMPLING, EXACT],
    "Resampling: the paper's, jumps back up in noise so that the fill agrees with what is known. Exact-leaning: "
    "several fills per picture compete by how well they agree; nearer to the true conditional, and the levels are "
    "walked once; a mask counts there from 0.5 on, softer values are kept as known.",
)
SOFT = "the mask nowhere reaches 0.5, from where on exact-leaning counts it, so the latent comes back as it is."
_READ = "Read only with schedule custom. "
_PRESET = base.choice(
    [*PRESETS, CUSTOM],
    "What a run costs and how near it comes. On fourteen test mixtures that nothing was tuned by, the worst error over "
    "that of the paper's 2410 calls: 2.2 times with 230 calls, 3.4 with 105, 1.7 with ours, which is not the paper's "
    "way. Custom reads the numbers below.",
)
_CUSTOM = {
    "jump": base.whole(5, 1, 100, _READ + "Levels that one jump goes back up."),
    "resamples": base.whole(5, 1, 1000, _READ + "How often each stretch is walked; 1 makes no jumps (the naive fill)."),
    "low": base.number(
        0.0,
        0.0,
        1000.0,
        0.01,
        _READ + "Resample only at levels of at least this noise: noise over signal, in units of the spread of the "
        "known part's latent, which is about 1 for most models.",
    ),
    "high": base.number(
        1000.0, 0.0, 1000.0, 0.01, _READ + "Resample only at levels of at most this noise, in the same units."
    ),
    "noise": base.choice(
        [POSTERIOR, RENEWED],
        _READ + "Posterior: the paper's ancestral steps. Renewed: above the range each step draws all of its noise "
        "anew, below it none; for few levels.",
    ),
}
_WAY = {
    "mode": _MODE,
    "particles": base.whole(
        8, 1, 256, "Exact-leaning only: fills per picture, each a row of the batch. More agree better and cost more."
    ),
}


def chosen(name, jump, resamples, low, high, noise, levels=0) -> Schedule:
    """The preset of that name, or the one that the number widgets make."""
    return PRESETS.get(name) or Schedule(levels, jump, resamples, low, high, noise == RENEWED)


def _path(schedule, mode, sigmas, process, scale):
    return list(range(len(sigmas))) if mode == EXACT else schedule.path(sigmas, process, scale)


def make_sampler(schedule, mode, particles, scale=None, say=True):
    """SAMPLER of RePaint; its progress bar counts network calls. scale: of the data (None: read from the latent).
    say: the log tells the cost as the run begins."""
    log = logging.getLogger("nulltext")

    def calls(sigmas, process, source, mask):
        spread = data_scale(source, mask) if scale is None else scale
        if say:
            log.info("RePaint: %s", said_before(schedule, mode, particles, sigmas, process, spread))
        return network_calls(_path(schedule, mode, sigmas, process, spread))

    def warned(sample):
        @functools.wraps(sample)
        def run(*args, mask, **options):
            if mask is None:
                log.warning("RePaint: the latent has no noise mask, so everything is repainted: set one before it.")
            elif mode == EXACT and nothing_hard(mask):
                log.warning("RePaint: %s", SOFT)
            return sample(*args, mask=mask, **options)

        return run

    if mode == EXACT:
        return own_sampler(warned(sample_particles), calls=calls, holds_mask=True, particles=particles)
    return own_sampler(warned(sample_repaint_scheduled), calls=calls, holds_mask=True, schedule=schedule, scale=scale)


def said_before(schedule, mode, particles, sigmas, process, scale):
    """What a run will cost."""
    text = describe(sigmas, _path(schedule, mode, sigmas, process, scale))
    return text + (f", each on {particles} rows per picture" if mode == EXACT else "")


def nothing_hard(mask) -> bool:
    """Whether exact-leaning, which counts a mask from 0.5 on, finds nothing to fill."""
    return not bool((mask >= 0.5).any())


class RePaint:
    ID = "NullText_RePaint"
    TITLE = "RePaint (sampler)"
    CATEGORY = "NullText/inpaint"
    SEARCH_ALIASES = ["repaint", "inpaint", "resampling", "time travel", "harmonize fill"]
    DESCRIPTION = base.describe(
        "RePaint (arXiv 2201.09865) as a SAMPLER for SamplerCustom and SamplerCustomAdvanced: fills the latent's "
        "noise mask by travelling up and down in noise; outside it the source stays exact.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("For SamplerCustom or SamplerCustomAdvanced, with a latent that carries a noise mask.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"schedule": _PRESET, **_CUSTOM, **_WAY},
            "optional": {
                "model": (
                    "MODEL",
                    {"tooltip": "With sigmas: only so that the report tells the network calls before the run."},
                ),
                "sigmas": (
                    "SIGMAS",
                    {"tooltip": "With model: only so that the report tells the network calls before the run."},
                ),
            },
        }

    def run(self, schedule, jump, resamples, low, high, noise, mode, particles, model=None, sigmas=None):
        plan = chosen(schedule, jump, resamples, low, high, noise)
        sampler = make_sampler(plan, mode, particles)
        if sigmas is None:
            return text_result(
                "Network calls follow from the sigmas; connect model and sigmas to read them here.", sampler
            )
        process = VE if model is None else process_of(model)
        said, wired = said_before(plan, mode, particles, sigmas, process, 1.0), len(sigmas) - 1
        if mode == RESAMPLING and plan.levels not in (0, wired):
            said += f". Notice: this schedule is made for {plan.levels} levels, and {wired} are wired"
        return text_result(said + ".", sampler)


class RePaintSampler:
    ID = "NullText_RePaintSampler"
    TITLE = "RePaint Sampler"
    CATEGORY = "NullText/inpaint"
    SEARCH_ALIASES = ["repaint", "inpaint", "outpaint", "fill", "remove object"]
    DESCRIPTION = base.describe(
        "Fills a mask so that it agrees with the rest, with any model (RePaint, arXiv 2201.09865): the paper's "
        "schedule or a cheaper one. The latent outside the mask comes back as it was.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The filled latent; outside the mask it is the given one to the bit.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "positive": base.POSITIVE,
                "negative": base.NEGATIVE,
                "latent": base.latent("The picture. What lies under the mask has no influence at full noise."),
                "mask": base.MASK,
                "seed": base.SEED,
                "cfg": base.cfg(3.0),
                "schedule": _PRESET,
                "levels": base.whole(
                    50,
                    2,
                    1000,
                    _READ + "Noise levels: evenly spaced in the model's time; with renewed noise even in log sigma, "
                    "closer from low to high.",
                ),
                **_CUSTOM,
                **_WAY,
                "grow": base.whole(
                    1, 0, 64, "Latent cells by which the mask grows, so that no mixed cell is taken for known."
                ),
            }
        }

    def run(
        self,
        model,
        positive,
        negative,
        latent,
        mask,
        seed,
        cfg,
        schedule,
        levels,
        jump,
        resamples,
        low,
        high,
        noise,
        mode,
        particles,
        grow,
    ):
        if is_empty(latent):
            raise ValueError("RePaint needs a picture around the mask, but the latent is empty: encode an image first.")
        source = latent["samples"]
        grid = to_grid(mask, source.shape[-2:], grow, len(source))
        if not bool((grid > 0).any()):
            return text_result("Notice: the mask is empty, so the latent comes back as it is.", latent)
        if mode == EXACT and nothing_hard(grid):
            return text_result(f"Notice: {SOFT}", latent)
        plan, process = chosen(schedule, jump, resamples, low, high, noise, levels), process_of(model)
        scale = data_scale(to_model_space(model, latent), grid)
        sigmas = plan.sigmas(*sigma_range(model), process, scale)
        sigmas = sigmas_of(model, "normal", plan.levels) if sigmas is None else sigmas.float()
        said = said_before(plan, mode, particles, sigmas, process, scale)
        said += "." if bool((grid == 0).any()) else ". Notice: the mask covers everything, so nothing is held."
        logging.getLogger("nulltext").info("RePaint Sampler: %s", said)
        sampler = make_sampler(plan, mode, particles, scale, say=False)
        out = sample_latent(model, positive, negative, cfg, sampler, sigmas, latent, seed, grid)
        known = grid < 0.5 if mode == EXACT else grid == 0
        keep = known.reshape(grid.shape[0], 1, *(1,) * (source.ndim - 4), *grid.shape[-2:])
        out["samples"] = torch.where(keep, source, out["samples"].to(source))
        return shown(said, out)


class PixelComposite:
    ID = "NullText_PixelComposite"
    TITLE = "Pixel Composite (feathered)"
    CATEGORY = "NullText/inpaint"
    SEARCH_ALIASES = ["paste back", "feather", "blend edit", "keep original pixels"]
    DESCRIPTION = base.describe(
        "Puts the original's pixels back outside a feathered mask, so that a local edit changes nothing elsewhere, "
        "not even by the autoencoder.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("image", "feathered_mask")
    OUTPUT_TOOLTIPS = ("The edit inside, the original to the bit outside.", "The mask that was used.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "original": ("IMAGE", {"tooltip": "The picture before the edit."}),
                "edited": ("IMAGE", {"tooltip": "The picture after the edit, of the same size."}),
                "mask": base.MASK,
                "feather": base.whole(4, 0, 256, "Pixels over which the edit fades out, outside of the mask."),
            }
        }

    def run(self, original, edited, mask, feather):
        if original.shape[1:3] != edited.shape[1:3]:
            raise ValueError(
                f"The original is {original.shape[2]} x {original.shape[1]} pixels and the edit {edited.shape[2]} x "
                f"{edited.shape[1]}: resize one of them first."
            )
        if len(original) not in (1, len(edited)):
            raise ValueError(f"{len(edited)} edits need one original or as many; got {len(original)}.")
        soft = feathered(to_grid(mask, original.shape[1:3], batch=len(edited), of="edit")[:, 0], feather)
        out = composite(original.expand_as(edited), edited, soft)
        if not bool((soft > 0).any()):
            return text_result("Notice: the mask is empty, so the original comes back.", out, soft)
        return text_result(f"{float((soft > 0).float().mean()):.0%} of the pixels come from the edit.", out, soft)


NODES = (RePaint, RePaintSampler, PixelComposite)
