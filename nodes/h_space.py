"""h-space: directions without training, and the sampler that edits along them (Asyrp)."""

from __future__ import annotations

import torch

from ..engine import h_space
from ..engine.comfy import check_latent, is_empty, latent_in, process_of, schedulers, sigmas_of, time_to_sigma
from ..engine.fingerprint import fingerprint
from ..engine.record import check_belongs as check_inversion
from ..engine.run import sample_with
from ..samplers.core import gaussian
from ..samplers.tuning.h_direction import (
    Direction,
    h_of_pictures,
    h_of_walk,
    mean_difference,
    principal_components,
    relative_size,
)
from ..samplers.window import SigmaWindow
from .base import LATENT, MODEL, SEED, Boolean, Box, Choice, Float, Int, Output, Socket
from .report import text_result

CATEGORY = "NullText/h-space"
PROMPTS, PICTURES, COMPONENT = "two prompts", "two sets of pictures", "principal component"
ASYMMETRIC, SYMMETRIC = "asymmetric (the paper's)", "symmetric"
ONE_CALL, TWO_CALLS = "one call of two rows", "two calls"
_ROWS = 8  # of one call while h is read

DIRECTION = Socket("direction", "H_DIRECTION", "From h-Space Direction, h-Space Train or Load h-Space Direction.")
SITE = Int(
    "site",
    0,
    "Where in the UNet: 0 the middle block (the paper's h), 1 and more what a later output block is given. A UNet "
    "whose middle block matters little can be edited there.",
    0,
    30,
)
SCHEDULER = Choice("scheduler", schedulers, "Where the steps lie; 'normal' is DDIM's spacing.", "normal")


class HSpaceDirection(Box):
    ID, TITLE, CATEGORY = "NullText_HSpaceDirection", "h-Space Direction", CATEGORY
    SEARCH_ALIASES = ["asyrp", "h-space", "latent direction", "bottleneck", "semantic direction", "pca"]
    DESCRIPTION = (
        "Finds a direction in a UNet's bottleneck without training: the mean difference between two prompts or two "
        "sets of pictures, or a principal component (arXiv 2303.11073). Asyrp Sampler edits along it."
    )
    INPUTS = (
        MODEL,
        Socket("positive", "CONDITIONING", "The source prompt; for pictures and components the prompt of all of them."),
        LATENT(tooltip="Two sets of pictures: those to start from. Otherwise an empty latent of the size to work at."),
        Choice(
            "way",
            [PICTURES, PROMPTS, COMPONENT],
            "Two sets of pictures: target_latent less latent, noised alike. Two prompts: target less positive, along "
            "walks from the same noise. Principal component: what varies most between random pictures.",
        ),
        Int("steps", 40, "Levels at which the direction is read.", 2),
        SCHEDULER,
        Int("samples", 16, "Random pictures for prompts and components; one walk of `steps` calls each.", 2, 4096),
        Int("component", 1, "Which principal component, the largest first.", 1, 64),
        SITE,
        SEED,
        Socket("target", "CONDITIONING", "Two prompts: what the direction leads to.").optional(),
        Socket("target_latent", "LATENT", "Two sets of pictures: those that the direction leads to.").optional(),
    )
    OUTPUTS = (
        Output("H_DIRECTION", "The direction, one shift for each level.", "direction"),
        Output("STRING", "How large it is beside h.", "report"),
    )

    def run(
        self,
        model,
        positive,
        latent,
        way,
        steps,
        scheduler,
        samples,
        component,
        site,
        seed,
        target=None,
        target_latent=None,
    ):
        h_space.check_site(model, site)
        conds = {"positive": positive}
        if way == PROMPTS:
            if target is None:
                raise ValueError("A direction between two prompts needs the second one: wire target.")
            conds["target"] = target
        if way == PICTURES and (target_latent is None or is_empty(latent) or is_empty(target_latent)):
            raise ValueError(
                "A direction between two sets of pictures needs both: encode them and wire latent and target_latent."
            )
        if way == COMPONENT and component >= samples:
            raise ValueError(
                f"{samples} samples have {samples - 1} components: ask for one of those, or raise samples."
            )
        sigmas = sigmas_of(model, scheduler, steps)
        given, towards = check_latent(model, latent), None
        if way == PICTURES:
            towards = check_latent(model, target_latent)
            if towards.shape[1:] != given.shape[1:]:
                raise ValueError("The two sets of pictures have different sizes: scale them to one size first.")
        else:
            given = torch.zeros((samples, *given.shape[1:]))
        names = ["positive", "target"] if way == PROMPTS else ["positive"]
        sets = 2 if way == PICTURES else len(names)
        most = max(len(given), len(towards)) if way == PICTURES else samples
        total = sets * steps * -(-most // _ROWS)

        def body(run):
            place = h_space.Place(site)

            def reader(name):
                def read(x, sigma):
                    run.tick()
                    return h_space.read(run, place, x, sigma, name)

                return read

            def pictures(x0):
                noise = gaussian(x0, seed)()  # both sets are noised alike
                parts = zip(x0.split(_ROWS), noise.split(_ROWS))
                return torch.cat(
                    [h_of_pictures(reader("positive"), x, run.sigmas, run.process, lambda n=n: n) for x, n in parts]
                )

            def walks(name):
                start = run.process.noised(run.latent * 0, run.sigmas[0], gaussian(run.latent, seed)())
                return torch.cat([h_of_walk(reader(name), x, run.sigmas) for x in start.split(_ROWS)])

            if way == PICTURES:
                return [pictures(run.latent), pictures(latent_in(model, towards).to(run.latent))]
            return [walks(name) for name in names]

        found = sample_with(model, conds, given, sigmas, body, total=total, seed=seed)
        if way == COMPONENT:
            components, shares = principal_components(found[0], component)
            shifts, said = components[-1], f"component {component} of {len(found[0])} samples"
            said += f", {float(shares[-1]):.0%} of the variance"
        else:
            shifts = mean_difference(*found)
            said = f"mean difference of {len(found[0])} and {len(found[1])} samples"
        direction = Direction(
            sigmas,
            shifts,
            process=process_of(model).name,
            site=site,
            made_by=f"{way}: {said}",
            fingerprint=fingerprint(model),
        )
        sizes = relative_size(shifts, found[0])
        text = "\n".join(
            [
                f"{way}: {said}, {steps} levels, {total} network calls.",
                f"|dh| / |h|: {float(sizes[0]):.3f} at sigma {float(sigmas[0]):.3g}, "
                f"{float(sizes[steps // 2]):.3f} at {float(sigmas[steps // 2]):.3g}, "
                f"{float(sizes[-1]):.3f} at {float(sigmas[-2]):.3g}.",
            ]
        )
        return text_result(text, direction, text)


def sampler_of(
    model,
    directions,
    way=ASYMMETRIC,
    t_edit=0.5,
    t_boost=0.0,
    null_branch=True,
    rescale=True,
    calls=ONE_CALL,
    inversion=None,
):
    """SAMPLER along (direction, strength) pairs, each checked against the MODEL. t_edit, t_boost: share of the time."""
    for direction, _ in directions:
        h_space.check_belongs(direction, model)
    if inversion is not None:
        check_inversion(inversion, model)
    sigma = time_to_sigma(model)
    return h_space.asyrp_sampler(
        directions,
        inversion=inversion,
        window=SigmaWindow(float("inf"), sigma(t_edit)),
        boost=sigma(t_boost),
        symmetric=way == SYMMETRIC,
        null_branch=null_branch,
        two_calls=calls == TWO_CALLS,
        rescale=rescale,
    )


STRENGTH = Float(
    "strength", 1.0, "How far along the direction; below 0 the other way. 0 is plain Euler.", -20.0, 20.0, 0.05
)


class AsyrpSampler(Box):
    ID, TITLE, CATEGORY = "NullText_AsyrpSampler", "Asyrp Sampler", CATEGORY
    SEARCH_ALIASES = ["asyrp", "h-space", "latent edit", "bottleneck", "attribute slider"]
    DESCRIPTION = (
        "A sampler that edits in the UNet's bottleneck while the net stays frozen (Asyrp, arXiv 2210.10960): the "
        "prediction is shifted along a direction, the noise is not. From noise, or from an inversion. Cost: twice the "
        "rows down to t_edit."
    )
    INPUTS = (
        MODEL(tooltip="The model that will be sampled with this sampler: the direction is checked against it."),
        DIRECTION,
        STRENGTH,
        Choice("way", [ASYMMETRIC, SYMMETRIC], "Symmetric shifts the noise too, which nearly undoes the edit."),
        Float(
            "t_edit",
            0.5,
            "The direction acts from pure noise (time 1) down to this time. The authors take 0.5 by hand, or the time "
            "that h-Space Train finds; 0: to the end.",
        ),
        Float(
            "t_boost",
            0.2,
            "Below this time each step adds fresh noise, which mends small faults (the authors take 0.2). 0: never, "
            "and an inversion comes back most faithfully.",
        ),
        Boolean("null_branch", True, "With cfg: shift the negative prompt's h too, not the positive's alone."),
        Boolean(
            "rescale",
            True,
            "With fewer steps than the direction was made with, shift further in each, as the authors do.",
        ),
        Choice("calls", [ONE_CALL, TWO_CALLS], "Two calls need less memory, and suit guiders that count their rows."),
        Socket("inversion", "INVERSION", "Start from its noise instead of the sampling node's.").optional(),
        Socket("direction_2", "H_DIRECTION", "A second direction; the sum of n is divided by sqrt(n).").optional(),
        STRENGTH(name="strength_2").optional(),
        Socket("direction_3", "H_DIRECTION", "A third direction.").optional(),
        STRENGTH(name="strength_3").optional(),
    )
    OUTPUTS = (
        Output("SAMPLER", "For SamplerCustom and SamplerCustomAdvanced."),
        Output("SIGMAS", "The inversion's schedule; without one the direction's own, for a walk from noise."),
    )

    def run(
        self,
        model,
        direction,
        strength,
        way,
        t_edit,
        t_boost,
        null_branch,
        rescale,
        calls,
        inversion=None,
        direction_2=None,
        strength_2=1.0,
        direction_3=None,
        strength_3=1.0,
    ):
        pairs = [(direction, strength), (direction_2, strength_2), (direction_3, strength_3)]
        pairs = [(d, s) for d, s in pairs if d is not None]
        sampler = sampler_of(model, pairs, way, t_edit, t_boost, null_branch, rescale, calls, inversion)
        said = f"{len(pairs)} direction(s), {way}."
        if not any(s for _, s in pairs):
            said += " Notice: every strength is 0, so that this is plain Euler."
        if inversion is not None and inversion.kind.needs:
            said += " Notice: this inversion's own way back is not Euler's, so that it will not come back exactly."
        return text_result(said, sampler, direction.sigmas if inversion is None else inversion.sigmas)


NODES = (HSpaceDirection, AsyrpSampler)
