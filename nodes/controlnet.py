"""ControlNet: hints from pictures, a copy of the model's encoder, its training, and the file that core loads."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from ..engine import comfy, controlnet, folders, training, tuning_set
from ..engine.streamed import settled
from ..engine.training_store import Store
from ..samplers.picture import hints
from ..samplers.tuning.controlnet import Hinted, control_step, is_small
from ..samplers.tuning.loop import Loop, Settings
from ..samplers.tuning.objective import FixedLoss
from .base import IMAGE, MODEL, TRAINING_SEED, Box, Choice, Float, Int, Output, Socket
from .report import text_result
from .tuning_inputs import (
    CATEGORY,
    CHECKPOINT,
    CLIP,
    FIXED_DRAWS,
    LEVELS,
    LOOK_EVERY,
    LOSS_OUTPUTS,
    PICTURES,
    VAE,
    WEIGHT,
    file_name,
    free_path,
    loss_figure,
    loss_map,
    metadata,
    objective_of,
    preview,
    shown,
    training_key,
    training_line,
    unkept,
)

SMALL, FULL = "small (Control-LoRA)", "full (the paper's)"
ZERO, ORDINARY = "zero convolutions (the paper's)", "ordinary convolutions"
POOLED = ("_shuffle", "_shuffle_fp16")  # core's loader averages outputs over the picture where a file's name ends so
CONTROL = Socket("control_net", "CONTROL_NET", "From Make ControlNet, or a file of core's Load ControlNet Model.")


class HintMaker(Box):
    ID, TITLE, CATEGORY = "NullText_HintMaker", "Hint Maker", CATEGORY
    SEARCH_ALIASES = ["controlnet preprocessor", "canny", "edge map", "scribble", "segmentation mask", "depth"]
    DESCRIPTION = (
        "Makes hints for a ControlNet from pictures by well-known filters: Canny edges, a scribble, a mask, or the "
        "picture's large-scale shading (which is no measured depth)."
    )
    INPUTS = (
        IMAGE("The pictures; one hint is made of each."),
        Choice(
            "kind",
            list(hints.KINDS),
            "Edges: Canny's thin lines. Scribble: thick soft lines. Mask: white where bright. Shading: blurred "
            "brightness. All read brightness alone: red beside an equally bright green gives no edge, as in core's "
            "Canny.",
        ),
        Float(
            "threshold",
            0.0,
            "0: the kind's own. Edges (0.1): how steep brightness must be, per pixel. Scribble (0.1): four times the "
            "difference of two blurs that makes a line. Mask (0.5): the brightness above which it is white. Shading "
            "has none.",
        ),
        Float(
            "blur",
            0.0,
            "In pixels; 0: the kind's own. Edges (1): blur before the filter, so that small things vanish; 0.1 is as "
            "good as none. Scribble (2): the smaller of its two blurs, which sets how thick lines are. Shading (4): "
            "how much detail vanishes. The mask has none.",
            0.0,
            64.0,
            0.1,
        ),
        Socket(
            "mask", "MASK", "With the kind 'mask': these masks are the hints, and the pictures are not read."
        ).optional(),
    )
    OUTPUTS = (
        Output("IMAGE", "The hints, as large as the pictures; with mask as large and as many as its masks.", "hints"),
    )

    def run(self, image, kind, threshold, blur, mask=None):
        if mask is not None and kind == "mask":
            return (mask.float().reshape(-1, 1, *mask.shape[-2:]).movedim(1, -1).repeat(1, 1, 1, 3).clamp(0, 1),)
        made, progress = torch.zeros(*image.shape[:3], 3, device=image.device), comfy.Progress(len(image))
        for i, one in enumerate(image[..., :3].split(1)):  # a thousand pictures' gradients fill any memory
            made[i] = hints.hint(one.float().movedim(-1, 1), kind, threshold, blur)[0].movedim(0, -1)
            progress.tick()
        return (made,)


class MakeControlNet(Box):
    ID, TITLE, CATEGORY = "NullText_MakeControlNet", "Make ControlNet", CATEGORY
    SEARCH_ALIASES = ["controlnet training", "zero convolution", "control lora", "new controlnet"]
    DESCRIPTION = (
        "Begins a ControlNet for the loaded UNet (arXiv 2302.05543): a copy of its encoder and middle block, a hint "
        "encoder, and convolutions that begin at zero. Untrained, it changes nothing; Train ControlNet teaches it."
    )
    INPUTS = (
        MODEL(
            tooltip="The UNet that shall be steered: SD 1, SD 2 or SDXL, but no inpainting model. Its weights never "
            "change."
        ),
        Choice(
            "form",
            [SMALL, FULL],
            "Small: the copy is stored as low-rank changes of the model's own weights, for this model alone. Full: "
            "every weight, as the paper has it.",
            default=FULL,
        ),
        Int(
            "rank",
            128,
            "Small form: how much the copy can differ from the model. It is lowered where it can't fit.",
            1,
            1024,
        ),
        Choice(
            "start",
            [ZERO, ORDINARY],
            "Zero convolutions leave the model as it is at the first step. Ordinary ones, for comparison, break it.",
        ),
        TRAINING_SEED,
    )
    OUTPUTS = (Output("CONTROL_NET", "The untrained ControlNet."), Output("STRING", "What was made.", "report"))

    def run(self, model, form, rank, start, training_seed):
        made = controlnet.fresh(
            settled(model), "small" if form == SMALL else "full", rank, training_seed, start == ZERO
        )
        report = f"{sum(v.numel() for v in made.values()) / 1e6:.2f} million weights to train, {form}, {start}."
        return text_result(report, controlnet.control_of(made, folders.folder("temp")), report)


class TrainControlNet(Box):
    ID, TITLE, CATEGORY = "NullText_TrainControlNet", "Train ControlNet", CATEGORY
    SEARCH_ALIASES = ["controlnet training", "fine-tune controlnet", "sudden convergence", "hint"]
    DESCRIPTION = (
        "Teaches a ControlNet what its hints mean (arXiv 2302.05543): from pictures and a hint for each, while the "
        "model stays locked. For long nothing is seen, then the hint is followed within a few hundred steps."
    )
    INPUTS = (
        MODEL(tooltip="The model that the ControlNet was made from. Its weights never change."),
        CLIP,
        CONTROL,
        PICTURES,
        Socket("hints", "IMAGE", "One hint for each picture, in their order, from Hint Maker."),
        Int(
            "steps",
            4000,
            "Optimiser steps in all. The authors' training guide: 3000 to 7000 until the hint is followed.",
            1,
            1_000_000,
        ),
        Float(
            "learning_rate",
            1e-5,
            "Higher learns faster, too high spoils the pictures. The published rate, 0.00001, is the full form's; the "
            "small form moves slower at it, the more so the higher its rank.",
            1e-7,
            1.0,
            1e-6,
        ),
        Int("batch", 4, "Pictures of one network call.", 1, 64),
        Int("accumulate", 1, "Batches whose mean gradient makes one step: a larger batch for the same memory.", 1, 256),
        Float("caption_dropout", 0.5, "Share of captions left out, so that the hint alone must tell. The paper: 0.5."),
        LEVELS,
        WEIGHT,
        CHECKPOINT,
        TRAINING_SEED,
        file_name("nulltext/control", "controlnet"),
        LOOK_EVERY,
        VAE,
    )
    OUTPUTS = (Output("CONTROL_NET", "The trained ControlNet, for Apply ControlNet."), *LOSS_OUTPUTS)
    OUTPUT_NODE = True

    def run(
        self,
        model,
        clip,
        control_net,
        pictures,
        hints,
        steps,
        learning_rate,
        batch,
        accumulate,
        caption_dropout,
        levels,
        loss_weight,
        checkpointing,
        training_seed,
        file_name,
        sample_every,
        vae=None,
    ):
        model = settled(model)
        controlnet.check_unet(model)
        begun = controlnet.form_for(model, control_net)
        shown_hints = tuning_set.hints_for(pictures, hints)
        folders.model_file("controlnet", file_name)  # refused before any work
        captions = {text: comfy.encode(clip, text) for text in pictures.texts()}
        scale = training.loss_scale(model)
        settings = Settings(steps=steps, lr=learning_rate, accumulate=accumulate, loss_scale=scale)
        objective = objective_of(model, loss_weight)
        drawn = training.levels_of(model, levels)
        told = {k: v for k, v in asdict(settings).items() if k != "steps"}
        key = training_key(
            model,
            [told, training_seed, batch, caption_dropout, objective.weight, levels, "controlnet"],
            [begun, pictures.content(), list(shown_hints), captions],
        )
        with torch.inference_mode(False):
            form = {name: value.to(model.load_device, copy=True) for name, value in begun.items()}
        loop, store = Loop(form, replace(settings, fixed_every=sample_every), training_seed), Store(key)
        began_at = store.resume(loop)
        examples = pictures.examples(model)
        examples = replace(examples, conditions=[Hinted(c, h) for c, h in zip(examples.conditions, shown_hints)])
        controlled = controlnet.Controlled(model, form)
        path = free_path("controlnet", file_name, key, settings.steps)

        def written():
            made = loop.result()
            more = {"nulltext_form": "small" if is_small(made) else "full"}
            controlnet.save(made, path, metadata(model, key, pictures.captions, loop, **more))
            return made

        outcome, made = training.train_to_file(
            written,
            model,
            loop,
            lambda net, device: control_step(net, examples, objective, drawn, batch, caption_dropout, device),
            captions,
            pictures.latents[0].shape,
            attached=controlled.attached,
            wrap=controlled.wrap,
            fixed_loss=FixedLoss.of(examples, drawn, FIXED_DRAWS),
            objective=objective,
            look=training.Look(examples.conditions[0], sample_every, training_seed, empty=Hinted("", shown_hints[0])),
            draw=preview(loop, vae),
            checkpoint=checkpointing,
            store=store,
            rows=batch,
            measured=controlled.measured,
        )
        figure, size = loss_figure(loop), path.stat().st_size / 1e6
        said = [training_line(loop, outcome, began_at), f"Saved as {path.name} ({size:.2f} MB) in {path.parent}."]
        said += [*tuning_set.hint_notices(pictures, hints), *unkept(key)]
        report = "\n".join(said)
        trained = controlnet.control_of(made, folders.folder("temp"))
        return text_result(report, trained, loss_map(loop), figure, report, **shown(vae, outcome, figure))


class SaveControlNet(Box):
    ID, TITLE, CATEGORY = "NullText_SaveControlNet", "Save ControlNet", CATEGORY
    SEARCH_ALIASES = ["save controlnet", "export controlnet", "controlnet file"]
    DESCRIPTION = "Writes a ControlNet into models/controlnet, as core's Load ControlNet Model reads it."
    INPUTS = (
        CONTROL(tooltip="From Make ControlNet, Train ControlNet or a file."),
        file_name("nulltext/control_copy", "controlnet"),
        Choice("precision", ["fp16", "fp32"], "fp16 halves the file."),
    )
    OUTPUTS = (Output("STRING", "The file's name, as ControlNet loaders list it.", "name"),)
    OUTPUT_NODE = True

    def run(self, control_net, file_name, precision):
        form, path = controlnet.form_of(control_net), free_path("controlnet", file_name, None)
        told = {"nulltext_form": "small" if is_small(form) else "full"}
        controlnet.save(form, path, told, precision == "fp16")
        name = folders.model_name("controlnet", path) + ".safetensors"
        report = f"Saved {name} ({path.stat().st_size / 1e6:.2f} MB)."
        if control_net.global_average_pooling and not path.stem.endswith(POOLED):
            report += (
                " Notice: ComfyUI averages the outputs of this net over the picture by its file's name: rename the new "
                "file so that it ends in _shuffle too."
            )
        return text_result(report, name)


NODES = (HintMaker, MakeControlNet, TrainControlNet, SaveControlNet)
