"""h-Space Direction: directions in the bottleneck without training."""

from __future__ import annotations

import torch

from ..engine import h_space
from ..engine.comfy import check_latent, is_empty, latent_in, process_of, sigmas_of
from ..engine.fingerprint import fingerprint
from ..engine.rows import check_single
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
from .base import LATENT, MODEL, SEED, Box, Choice, Int, Output, Socket
from .base import SCHEDULER as ANY_SCHEDULER
from .report import text_result
from .tuning_chain import ROWS

CATEGORY = "NullText/h-space"
PROMPTS, PICTURES, COMPONENT = "two prompts", "two sets of pictures", "principal component"

DIRECTION = Socket("direction", "H_DIRECTION", "From h-Space Direction, h-Space Train or Load h-Space Direction.")
SITE = Int(
    "site",
    0,
    "Where in the UNet: 0 the middle block (the paper's h), 1 and more what a later output block is given. A UNet "
    "whose middle block matters little can be edited there.",
    0,
    30,
)
SCHEDULER = ANY_SCHEDULER(
    "Where the steps lie: 'normal' from the model's noisiest level on, 'ddim_uniform' as the papers' code.",
    default="normal",
)


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
            "Two sets of pictures: target_latent less latent, noised alike. Two prompts: target less positive, "
            "sampled from the same noise. Principal component: what varies most between random pictures.",
        ),
        Int("steps", 40, "Levels at which the direction is read.", 2),
        SCHEDULER,
        Int(
            "samples",
            16,
            "Random pictures for prompts and components, 8 in a call: `steps` calls for every 8 and each prompt.",
            2,
            4096,
        ),
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
        for what, prompt in conds.items():
            check_single(prompt, what, "a direction is read under each prompt alone")
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
        counts = [len(given), len(towards)] if way == PICTURES else [samples] * len(names)
        total = steps * sum(-(-count // ROWS) for count in counts)

        def body(run):
            place = h_space.Site(site)

            def reader(name):
                def read(x, sigma):
                    run.tick()
                    return h_space.read(run, place, x, sigma, name)

                return read

            def pictures(x0):
                noise = gaussian(x0, seed)()  # both sets are noised alike
                parts = zip(x0.split(ROWS), noise.split(ROWS))
                return torch.cat(
                    [h_of_pictures(reader("positive"), x, run.sigmas, run.process, lambda n=n: n) for x, n in parts]
                )

            def walks(name):
                start = run.process.noised(run.latent * 0, run.sigmas[0], gaussian(run.latent, seed)())
                return torch.cat([h_of_walk(reader(name), x, run.sigmas) for x in start.split(ROWS)])

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


NODES = (HSpaceDirection,)
