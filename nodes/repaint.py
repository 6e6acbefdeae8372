"""RePaint: as a SAMPLER for the custom samplers, in one box, and the pixel composite that ends any local edit."""

from __future__ import annotations

import functools
import logging

import torch

from ..samplers.core import VE
from ..samplers.masks import composite, to_grid
from ..samplers.masks import feather as feathered
from ..samplers.particles import sample_particles
from ..samplers.repaint import (
    HIGH,
    JUMP,
    LEVELS,
    LOW,
    RESAMPLES,
    describe,
    ranged_path,
    repaint_sigmas,
    sample_repaint_ranged,
)
from ..samplers.walk import network_calls
from . import fields
from .bridge.engine import process_of, sigma_range
from .bridge.report import shown, text_result
from .bridge.sampler import own_sampler
from .bridge.sampling import is_empty, sample_latent

RESAMPLING, EXACT = "resampling (RePaint)", "exact-leaning (particles)"
RENEWED, POSTERIOR = "renewed (for few calls)", "posterior (the paper's)"
_MODE = fields.choice(
    [RESAMPLING, EXACT],
    "Resampling: the paper's, jumps back up in noise so that the fill agrees with what is known. Exact-leaning: "
    "several fills per picture compete by how well they agree; nearer to the true conditional, and the levels are "
    "walked once; a mask counts there from 0.5 on, softer values are kept as known.",
)
SOFT = "the mask nowhere reaches 0.5, from where on exact-leaning counts it, so the latent comes back as it is."
_SCHEDULE = {
    "jump": fields.whole(JUMP, 1, 100, "Levels that one jump goes back up."),
    "resamples": fields.whole(
        RESAMPLES, 1, 1000, "How often each stretch is walked; 1 makes no jumps (the naive fill)."
    ),
    "low": fields.number(
        LOW, 0.0, 1000.0, 0.01, "Resample only at levels of at least this noise (noise / signal; sigma for SD models)."
    ),
    "high": fields.number(
        HIGH, 0.0, 1000.0, 0.01, "Resample only at levels of at most this noise. Wider ranges cost more calls."
    ),
    "noise": fields.choice(
        [RENEWED, POSTERIOR],
        "Renewed: above the range each step draws all of its noise anew, below it none; on our two test mixtures 100 "
        "calls so have the error of the paper's 2410. Posterior: the paper's ancestral steps, for its own schedules "
        "(250 levels, jump 10, resamples 10).",
    ),
    "mode": _MODE,
    "particles": fields.whole(
        8, 1, 256, "Exact-leaning only: fills per picture, each a row of the batch. More agree better and cost more."
    ),
}


def _path(jump, resamples, low, high, mode):
    def path(sigmas, process):
        return list(range(len(sigmas))) if mode == EXACT else ranged_path(sigmas, jump, resamples, low, high, process)

    return path


def make_sampler(jump, resamples, low, high, noise, mode, particles, say=True):
    """SAMPLER of RePaint; its progress bar counts network calls. say: the log tells the cost as the run begins."""
    log = logging.getLogger("nulltext")
    schedule = {"jump": jump, "resamples": resamples, "low": low, "high": high}
    path = _path(**schedule, mode=mode)

    def calls(sigmas, process):
        if say:
            log.info("RePaint: %s", said_before(sigmas, process, **schedule, mode=mode, particles=particles))
        return network_calls(path(sigmas, process))

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
    eta = 1.0 if noise == POSTERIOR else None
    return own_sampler(warned(sample_repaint_ranged), calls=calls, holds_mask=True, eta=eta, **schedule)


def said_before(sigmas, process, jump, resamples, low, high, mode, particles):
    """What a run will cost."""
    text = describe(sigmas, _path(jump, resamples, low, high, mode)(sigmas, process))
    return text + (f", each on {particles} rows per picture" if mode == EXACT else "")


def nothing_hard(mask) -> bool:
    """Whether exact-leaning, which counts a mask from 0.5 on, finds nothing to fill."""
    return not bool((mask >= 0.5).any())


class RePaint:
    ID = "NullText_RePaint"
    TITLE = "RePaint (sampler)"
    CATEGORY = "NullText/inpaint"
    SEARCH_ALIASES = ["repaint", "inpaint", "resampling", "time travel", "harmonize fill"]
    DESCRIPTION = fields.describe(
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
            "required": _SCHEDULE,
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

    def run(self, jump, resamples, low, high, noise, mode, particles, model=None, sigmas=None):
        sampler = make_sampler(jump, resamples, low, high, noise, mode, particles)
        if sigmas is None:
            return text_result(
                "Network calls follow from the sigmas; connect model and sigmas to read them here.", sampler
            )
        process = VE if model is None else process_of(model)
        return text_result(said_before(sigmas, process, jump, resamples, low, high, mode, particles) + ".", sampler)


class RePaintSampler:
    ID = "NullText_RePaintSampler"
    TITLE = "RePaint Sampler"
    CATEGORY = "NullText/inpaint"
    SEARCH_ALIASES = ["repaint", "inpaint", "outpaint", "fill", "remove object"]
    DESCRIPTION = fields.describe(
        "Fills a mask so that it agrees with the rest, with any model (RePaint, arXiv 2201.09865): levels, jumps and "
        "range in one box. The latent outside the mask comes back as it was.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The filled latent; outside the mask it is the given one to the bit.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": fields.MODEL,
                "positive": fields.POSITIVE,
                "negative": fields.NEGATIVE,
                "latent": fields.latent("The picture. What lies under the mask has no influence at full noise."),
                "mask": fields.MASK,
                "seed": fields.SEED,
                "cfg": fields.cfg(3.0),
                "levels": fields.whole(
                    LEVELS,
                    2,
                    1000,
                    "Noise levels, even in log sigma over the model's range, twice as close from low to high. With "
                    "resamples this makes the cost: the report names the network calls.",
                ),
                **_SCHEDULE,
                "grow": fields.whole(
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
        process, (smallest, largest) = process_of(model), sigma_range(model)
        sigmas = repaint_sigmas(levels, smallest, largest, process, low, high).float()
        said = said_before(sigmas, process, jump, resamples, low, high, mode, particles)
        said += "." if bool((grid == 0).any()) else ". Notice: the mask covers everything, so nothing is held."
        logging.getLogger("nulltext").info("RePaint Sampler: %s", said)
        sampler = make_sampler(jump, resamples, low, high, noise, mode, particles, say=False)
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
    DESCRIPTION = fields.describe(
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
                "mask": fields.MASK,
                "feather": fields.whole(4, 0, 256, "Pixels over which the edit fades out, outside of the mask."),
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
