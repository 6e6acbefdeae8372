"""Direct Edit: FlowEdit and InfEdit, from a picture and two prompts, without inversion."""

from __future__ import annotations

from ..engine.comfy import schedulers, sigmas_of
from . import direct
from .report import text_result


class DirectEdit:
    ID = "NullText_DirectEdit"
    TITLE = "Direct Edit (FlowEdit, InfEdit)"
    CATEGORY = "NullText/edit"
    DESCRIPTION = (
        "Edits a picture by the difference of two prompts, without inversion and without optimisation; equal prompts "
        "give the source back exactly. Works for eps, v-prediction and flow models. Cost: 2 x average x steps x "
        "strength calls. Search: FlowEdit, InfEdit, inversion free editing, image edit, DDCM."
    )
    SEARCH_ALIASES = ["FlowEdit", "InfEdit", "inversion free editing", "image edit", "DDCM"]
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    OUTPUT_TOOLTIPS = ("The edited latent, for VAE Decode.", "What it cost and how far it lies from the source.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model."}),
                "source": ("CONDITIONING", {"tooltip": "What the picture shows."}),
                "target": ("CONDITIONING", {"tooltip": "What it shall show."}),
                "latent": ("LATENT", {"tooltip": "The picture, from VAE Encode; a batch is edited at once."}),
                "method": (
                    list(direct.METHODS),
                    {
                        "default": "FlowEdit",
                        "tooltip": "FlowEdit: moves the picture by the difference of the two velocities. InfEdit: "
                        "replaces its noise at every step; made for few steps and consistency models.",
                    },
                ),
                "steps": ("INT", {"default": 50, "min": 1, "max": 1000, "tooltip": "Steps of the whole schedule."}),
                "scheduler": (schedulers(), {"default": "normal", "tooltip": "Where the steps lie."}),
                "strength": (
                    "FLOAT",
                    {
                        "default": 0.66,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "The share of the schedule that is walked (the paper's n_max / T): more "
                        "changes more. "
                        "0 is the source.",
                    },
                ),
                "source_cfg": (
                    "FLOAT",
                    {
                        "default": 3.5,
                        "min": 1.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "Guidance of the source prompt (3.5 in the paper for SD3, 1.5 for Flux).",
                    },
                ),
                "target_cfg": (
                    "FLOAT",
                    {
                        "default": 7.5,
                        "min": 1.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "Guidance of the target prompt (13.5 in the paper for SD3, 5.5 for Flux).",
                    },
                ),
                "average": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 32,
                        "tooltip": "FlowEdit: noise draws per step (n_avg). The cost grows with it.",
                    },
                ),
                "plain_steps": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1000,
                        "tooltip": "FlowEdit: last steps that sample the target plainly (n_min): more style, "
                        "less source.",
                    },
                ),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1, "tooltip": "Noise of the edit."}),
            },
            "optional": {
                "negative": (
                    "CONDITIONING",
                    {"tooltip": "The negative (empty) prompt; needed where a scale is above 1."},
                ),
                "mask": (
                    "MASK",
                    {"tooltip": "Change only here (1 = change); outside the source's latent is kept exactly."},
                ),
                "sigmas": ("SIGMAS", {"tooltip": "Instead of steps and scheduler: a schedule that falls to 0."}),
            },
        }

    def run(
        self,
        model,
        source,
        target,
        latent,
        method,
        steps,
        scheduler,
        strength,
        source_cfg,
        target_cfg,
        average,
        plain_steps,
        seed,
        negative=None,
        mask=None,
        sigmas=None,
    ):
        sigmas = sigmas_of(model, scheduler, steps) if sigmas is None else sigmas
        conds = {"source": source, "target": target, "negative": negative}
        result, nothing = direct.edit(
            model,
            conds,
            latent,
            sigmas,
            method,
            source_cfg=source_cfg,
            target_cfg=target_cfg,
            strength=strength,
            average=average,
            plain_steps=plain_steps,
            seed=seed,
            mask=mask,
        )
        if nothing:
            said = f"Nothing to change: {nothing}; the source comes back as it is"
            return text_result(said, {"samples": result.samples}, said)
        moved = ", ".join(f"{float(e):.2g}" for e in result.error)
        said = (
            f"{method}: {result.calls} network calls in {result.seconds:.1f} s; latent rms distance from the source"
            f" {moved}"
        )
        return text_result(said, {"samples": result.samples}, said)


NODES = (DirectEdit,)
