"""h-Space Train: a direction in the bottleneck trained by two texts, the net frozen (Asyrp)."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..engine import h_space
from ..engine.comfy import process_of, sigmas_of, time_to_sigma
from ..engine.fingerprint import fingerprint
from ..engine.noise import source_latent
from ..engine.run import sample_with
from ..engine.streamed import settled
from ..engine.training import check_trainable
from ..samplers.tuning.directional import EditLoss
from ..samplers.tuning.h_direction import Direction, free_shifts, new_block
from ..samplers.tuning.h_space import training_step
from ..samplers.tuning.loop import Loop, Settings
from ..samplers.window import SigmaWindow
from .base import LATENT, MODEL, POSITIVE, TRAINING_SEED, Box, Choice, Float, Int, Output, Socket
from .guidance import IMAGE_TEXT
from .h_space import CATEGORY, SCHEDULER, SITE
from .report import text_result
from .tuning_chain import (
    FORM,
    SOURCE,
    TARGET,
    TEMPLATES_INPUT,
    check_one_prompt,
    curve_line,
    curve_shown,
    differentiable,
    direction_of,
    inverted,
    pictures_of,
    resume_key,
    trained,
)
from .tuning_inputs import unkept

NETWORK, FREE = "network f (the paper's)", "one free shift a step"


class HSpaceTrain(Box):
    ID, TITLE, CATEGORY = "NullText_HSpaceTrain", "h-Space Train", CATEGORY
    SEARCH_ALIASES = ["asyrp", "h-space", "train direction", "delta block", "text direction"]
    DESCRIPTION = (
        "Trains a direction in a UNet's bottleneck that turns what pictures show from one text into another, the net "
        "frozen (Asyrp, arXiv 2210.10960). Cost: pictures x passes x levels above t_edit, two calls and one backward "
        "each, and a third call for a picture's first pass."
    )
    INPUTS = (
        MODEL,
        POSITIVE(tooltip="The prompt the model is given with every picture, usually empty."),
        LATENT(tooltip="The pictures, encoded, as one batch; the authors take 100."),
        Socket("vae", "VAE", "The VAE that belongs to the model: the loss is taken on pictures."),
        IMAGE_TEXT,
        SOURCE,
        TARGET,
        Choice("what", [NETWORK, FREE], "A small network of h and the level, which fits every size; or plain numbers."),
        Int("steps", 50, "Levels of the inversion and of the edit.", 2),
        SCHEDULER,
        Float(
            "t_edit",
            0.5,
            "The direction acts, and is trained, from pure noise (time 1) down to this time. 0: measured on the "
            "pictures, as in the paper: down to where the prediction differs from its picture by 0.33 x cos(texts), in "
            "LPIPS's units.",
        ),
        Int("passes", 5, "Passes over the pictures; every level of every picture is one optimiser step.", 1, 1000),
        Choice("optimiser", ["SGD", "Adam"], "The authors take SGD."),
        Float(
            "lr", 0.5, "Learning rate; a tenth of it after every three passes. The authors' script: 0.5.", 1e-6, 10.0
        ),
        Float("clip_weight", 1.0, "Weight of the directional loss.", 0.0, 100.0, 0.1),
        Float(
            "l1_weight",
            3.0,
            "Weight of the distance to the unedited prediction, times the cosine of the two texts.",
            0.0,
            100.0,
            0.1,
        ),
        FORM,
        SITE,
        TRAINING_SEED,
        TEMPLATES_INPUT,
    )
    OUTPUTS = (
        Output("H_DIRECTION", "The trained direction.", "direction"),
        Output("STRING", "Losses, times, levels.", "report"),
    )

    def run(
        self,
        model,
        positive,
        latent,
        vae,
        image_text,
        source,
        target,
        what,
        steps,
        scheduler,
        t_edit,
        passes,
        optimiser,
        lr,
        clip_weight,
        l1_weight,
        form,
        site,
        training_seed,
        templates,
    ):
        model = settled(model)
        check_trainable(model)
        h_space.check_site(model, site)
        check_one_prompt(positive)
        direction, cosine, notices = direction_of(image_text, source, target, templates)
        kept = max(l1_weight * cosine, 0.0)
        loss = EditLoss(image_text.embed_image, direction, clip_weight, kept, form=form)  # refuses before the inversion
        sigmas, process = sigmas_of(model, scheduler, steps), process_of(model)
        low, boost = time_to_sigma(model)(t_edit), {}
        if low > float(sigmas[0]):
            raise ValueError("The schedule begins below t_edit, so that nothing would be trained: lower t_edit.")
        inversion, said = inverted(model, positive, latent, sigmas)
        n = inversion.shape[0]
        if t_edit == 0:
            low, boost["boost"] = h_space.measured_levels(model, vae, inversion, cosine)
        levels = sum(float(sigma) in SigmaWindow(float("inf"), low) for sigma in sigmas[:-1])
        numbers = [what, t_edit, passes, optimiser, lr, clip_weight, l1_weight * cosine, form, site, training_seed]
        key = resume_key(model, vae, [image_text], inversion.trajectory, direction, sigmas, numbers)

        def body(run):
            place, walked = h_space.Site(site), run.sigmas[: levels + 1].clone()
            with differentiable(run, model, vae, image_text) as decode:
                pictures = pictures_of(inversion, decode, run.device)
                h, _ = h_space.read(run, place, pictures.starts[0], walked[0])
                if what == NETWORK:
                    net = new_block(h.shape[1], training_seed).to(run.device)
                    values = dict(net.named_parameters())
                    changes = lambda s: lambda h: net(h.float(), s, process.name)  # noqa: E731
                else:
                    shifts = free_shifts(levels, h.shape[1:], training_seed).to(run.device)
                    values = {"shifts": shifts}
                    table = [float(s) for s in walked]
                    changes = lambda s: lambda h: shifts[table.index(float(s))]  # noqa: E731
                here = replace(loss, direction=direction.to(run.device))
                with run.patched(h_space.PATCH, place.patch), run.kept_from_underflow(values.values()) as kept_large:
                    pair = lambda name: h_space.training_pair(run, place, name, kept_large)  # noqa: E731
                    step = training_step(pair, pictures, walked, changes, decode, here, process, lambda: run.tick(3))
                    settings = Settings(
                        steps=n * passes * levels,
                        lr=lr,
                        optimiser=optimiser,
                        weight_decay=0.0,
                        clip=0.0,
                        schedule="geometric",
                        factor=0.1,
                        every=3 * n * levels,
                    )
                    loop = Loop(values, settings, training_seed)
                    curve = trained(loop, step, key, run.progress.show)
                return loop.result(), curve

        total = 3 * n * passes * levels
        found, curve = sample_with(
            model, {"positive": positive}, source_latent(inversion)[:1], sigmas, body, total=total
        )
        parts = {"block": found}
        if what == FREE:
            rest = torch.zeros((steps - len(found["shifts"]), *found["shifts"].shape[1:]))
            parts = {"shifts": torch.cat([found["shifts"].cpu(), rest])}
        made = Direction(
            sigmas,
            process=process.name,
            site=site,
            edit=low,
            source=source,
            target=target,
            made_by=f"trained, {what}",
            fingerprint=fingerprint(model),
            metadata={"text_cosine": cosine, "pictures": n, "passes": passes, **boost},
            **parts,
        )
        lines = [
            f"{source!r} -> {target!r}: {curve_line(*curve)}",
            said,
            f"It acts down to sigma {low:.3g}; the cosine of the two texts is {cosine:.2f}.",
            *notices,
            *unkept(key),
        ]
        text = "\n".join(lines)
        return text_result(text, made, text, **curve_shown(curve[0]))


NODES = (HSpaceTrain,)
