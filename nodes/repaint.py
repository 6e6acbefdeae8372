"""RePaint: as a SAMPLER for the custom samplers, in one box, and the pixel composite that ends any local edit."""

from __future__ import annotations

import functools
import logging

from ..engine.comfy import check_interrupt, fitted, process_of, sigma_range, sigmas_of, to_model_space, with_room_for
from ..engine.sampler import own_sampler, sample_latent
from ..samplers.core import VE
from ..samplers.masks import composite, to_grid
from ..samplers.masks import feather as feathered
from ..samplers.picture.particles import sample_particles
from ..samplers.picture.repaint import describe
from ..samplers.picture.repaint_schedules import CUSTOM, PRESETS, Schedule, data_scale, sample_repaint_scheduled
from ..samplers.walk import network_calls
from .base import (
    CFG,
    LATENT,
    MASK,
    MODEL,
    NEGATIVE,
    POSITIVE,
    SEED,
    SIGMAS,
    Box,
    Choice,
    Float,
    Int,
    Output,
    Socket,
    optional,
)
from .masked import MaskedEdit, check_pair, check_picture
from .report import text_result, unchanged
from .shown import SEEN, EditBox

RESAMPLING, EXACT = "resampling (RePaint)", "exact-leaning (particles)"
RENEWED, POSTERIOR = "renewed (ours, for few levels)", "posterior (the paper's)"
SOFT = "the mask nowhere reaches 0.5, from where on exact-leaning counts it"
_CUSTOM = "Read only with schedule custom."
_SCHEDULE = Choice(
    "schedule",
    [*PRESETS, CUSTOM],
    "How many network calls a run takes: with fewer the fill agrees less with its surroundings. paper: RePaint as "
    "published, and two smaller ones of its kind. ours: another kind, for few calls. custom: the numbers below. On "
    "fourteen test problems whose right answer is known, the worst error was 2.2 times that of 2410 calls with 230, "
    "3.4 times with 105, 1.7 times with ours.",
)
_NUMBERS = (
    Int("jump", 5, f"{_CUSTOM} How many noise levels one jump goes back up.", 1, 100),
    Int("resamples", 5, f"{_CUSTOM} How often each stretch is sampled; 1 makes no jumps (the naive fill)."),
    Float(
        "low",
        0.0,
        f"{_CUSTOM} Resample only where there is at least this much noise: noise over signal, in units of the known "
        "part's standard deviation, which is about 1 for most models.",
        0.0,
        1000.0,
    ),
    Float("high", 1000.0, f"{_CUSTOM} Resample only where there is at most this much noise.", 0.0, 1000.0),
    Choice(
        "noise",
        [POSTERIOR, RENEWED],
        f"{_CUSTOM} Posterior: the paper's ancestral steps, each of which draws part of its noise anew. Renewed: above "
        "`high` each step draws all of it anew, below `low` none; choose it where there are few levels.",
    ),
    Choice(
        "mode",
        [RESAMPLING, EXACT],
        "Resampling: as published; goes back up in noise again and again, so that the fill agrees with its "
        "surroundings. The usual choice. Exact-leaning: draws several fills side by side and keeps those that agree "
        "best, without going back; nearer to the right answer in small problems, worse in large holes. It fills where "
        "the mask is 0.5 or more.",
    ),
    Int(
        "particles",
        8,
        "Exact-leaning only: fills for each picture, each a row of the batch. More agree better and cost more.",
        1,
        256,
    ),
)


def chosen(schedule, jump, resamples, low, high, noise, levels=0) -> Schedule:
    """The preset of that name, or the one that the number widgets make."""
    return PRESETS.get(schedule) or Schedule(levels, jump, resamples, low, high, noise == RENEWED)


def visits(schedule, mode, sigmas, process=VE, scale=1.0) -> list[int]:
    """The numbers of the sigmas in the order in which a run visits them."""
    return list(range(len(sigmas))) if mode == EXACT else schedule.path(sigmas, process, scale)


def make_sampler(schedule, mode, particles, scale=None, log_cost=True):
    """SAMPLER of RePaint; its progress bar counts network calls. scale: of the data (None: read from the latent).
    log_cost: the log tells the cost as the run begins."""
    log = logging.getLogger("nulltext")

    def calls(sigmas, process, source, mask):
        spread = data_scale(source, mask) if scale is None else scale
        if log_cost:
            log.info("RePaint: %s", cost(schedule, mode, particles, sigmas, process, spread))
        return network_calls(visits(schedule, mode, sigmas, process, spread))

    def warned(sample):
        @functools.wraps(sample)
        def run(*args, mask, **options):
            if mask is None:
                log.warning("RePaint: the latent has no noise mask, so everything is repainted: set one before it.")
            elif mode == EXACT and nothing_hard(mask):
                log.warning("RePaint: %s", unchanged(SOFT))
            return sample(*args, mask=mask, **options)

        return run

    own = functools.partial(own_sampler, calls=calls, holds_mask=True, from_noise=True)
    if mode == EXACT:
        return own(warned(sample_particles), particles=particles)
    return own(warned(sample_repaint_scheduled), schedule=schedule, scale=scale)


def cost(schedule, mode, particles, sigmas, process=VE, scale=1.0) -> str:
    """What a run will cost."""
    text = describe(sigmas, visits(schedule, mode, sigmas, process, scale))
    return text + (f", each on {particles} rows per picture" if mode == EXACT else "")


def nothing_hard(mask) -> bool:
    """Whether exact-leaning, which counts a mask from 0.5 on, finds nothing to fill."""
    return not bool((mask >= 0.5).any())


class RePaint(Box):
    ID, TITLE, CATEGORY = "NullText_RePaint", "RePaint as SAMPLER", "NullText/inpaint"
    SEARCH_ALIASES = ["repaint", "inpaint", "resampling", "time travel", "harmonize fill"]
    DESCRIPTION = (
        "RePaint (arXiv 2201.09865) as a SAMPLER for SamplerCustom and SamplerCustomAdvanced: fills the latent's "
        "noise mask by going up and down in noise; outside it the source stays exact."
    )
    INPUTS = (
        _SCHEDULE,
        *_NUMBERS,
        *optional(
            MODEL("With sigmas: only so that the report can tell the network calls before the run."),
            SIGMAS("With model: only so that the report can tell the network calls before the run."),
        ),
    )
    OUTPUTS = (
        Output("SAMPLER", "For SamplerCustom or SamplerCustomAdvanced, with a latent that carries a noise mask."),
    )

    def run(self, schedule, jump, resamples, low, high, noise, mode, particles, model=None, sigmas=None):
        plan = chosen(schedule, jump, resamples, low, high, noise)
        sampler = make_sampler(plan, mode, particles)
        if sigmas is None:
            return text_result(
                "Network calls follow from the sigmas; connect model and sigmas to read them here.", sampler
            )
        process = VE if model is None else process_of(model)
        text, wired = cost(plan, mode, particles, sigmas, process, 1.0), len(sigmas) - 1
        if mode == RESAMPLING and plan.levels not in (0, wired):
            text += f". Notice: this schedule is made for {plan.levels} levels, and {wired} are wired"
        return text_result(text + ".", sampler)


class RePaintSampler(EditBox):
    ID, TITLE, CATEGORY = "NullText_RePaintSampler", "RePaint Inpaint", "NullText/inpaint"
    SEARCH_ALIASES = ["repaint", "inpaint", "outpaint", "fill", "remove object"]
    DESCRIPTION = (
        "Fills a mask so that it agrees with the rest, with any model (RePaint, arXiv 2201.09865): the paper's "
        "schedule or a cheaper one. The latent outside the mask comes back as it was."
    )
    INPUTS = (
        MODEL,
        POSITIVE,
        NEGATIVE,
        LATENT("The picture. What lies under the mask has no influence at full noise."),
        MASK,
        SEED,
        CFG(default=3.0),
        _SCHEDULE,
        Int(
            "levels",
            50,
            f"{_CUSTOM} Noise levels: evenly spaced in the model's time. With renewed noise: evenly in log sigma, but "
            "closer together between `low` and `high`.",
            2,
            1000,
        ),
        *_NUMBERS,
        Int("grow", 1, "Latent cells by which the mask grows, so that no mixed cell is taken for known.", 0, 64),
        SEEN,
    )
    AFTER = "filled"
    OUTPUTS = (Output("LATENT", "The filled latent; outside the mask it is the given one to the bit."),)

    def run(self, model, positive, negative, latent, mask, seed, cfg, mode, particles, grow, **schedule):
        check_picture(latent, "RePaint needs a picture around the mask")
        latent = fitted(model, latent)
        edit = MaskedEdit(latent["samples"], mask, grow)
        if edit.empty or (mode == EXACT and nothing_hard(edit.grid)):
            return text_result(unchanged("the mask is empty" if edit.empty else SOFT), latent)
        plan, process = chosen(**schedule), process_of(model)
        scale = data_scale(to_model_space(model, latent), edit.grid)
        sigmas = plan.sigmas(*sigma_range(model), process, scale)
        sigmas = sigmas_of(model, "normal", plan.levels) if sigmas is None else sigmas.float()
        text = f"{cost(plan, mode, particles, sigmas, process, scale)}.{edit.notice()}"
        logging.getLogger("nulltext").info("RePaint: %s", text)
        sampler = make_sampler(plan, mode, particles, scale, log_cost=False)
        if mode == EXACT:
            model = with_room_for(model, lambda rows: particles * rows * (1 if cfg == 1 else 2))
        out = sample_latent(model, positive, negative, cfg, sampler, sigmas, latent, seed, edit.grid)
        out["samples"] = edit.put_back(out["samples"], below=0.5 if mode == EXACT else None)
        return text_result(text, out, log=False)


class PixelComposite(Box):
    ID, TITLE, CATEGORY = "NullText_PixelComposite", "Pixel Composite (feathered)", "NullText/inpaint"
    SEARCH_ALIASES = ["paste back", "feather", "blend edit", "keep original pixels"]
    DESCRIPTION = (
        "Puts the original's pixels back outside a feathered mask, so that a local edit changes nothing elsewhere, "
        "not even by the autoencoder."
    )
    INPUTS = (
        Socket("original", "IMAGE", "The picture before the edit."),
        Socket("edited", "IMAGE", "The picture after the edit, of the same size."),
        MASK,
        Int("feather", 4, "Pixels over which the edit fades out, outside of the mask.", 0, 256),
    )
    OUTPUTS = (
        Output("IMAGE", "The edit inside, the original to the bit outside.", "image"),
        Output("MASK", "The mask that was used.", "feathered_mask"),
    )

    def run(self, original, edited, mask, feather):
        check_pair(original, edited)
        soft = feathered(
            to_grid(mask, original.shape[1:3], batch=len(edited), of="edit")[:, 0], feather, check_interrupt
        )
        out = composite(original.expand_as(edited), edited, soft)
        if not bool((soft > 0).any()):
            return text_result(unchanged("the mask is empty", "original"), out, soft)
        return text_result(f"{float((soft > 0).float().mean()):.0%} of the pixels come from the edit.", out, soft)


NODES = (RePaint, RePaintSampler, PixelComposite)
