"""Guess mode: a ControlNet that speaks for itself where the prompt says nothing."""

from __future__ import annotations

from ..engine import controlnet
from ..samplers.tuning.controlnet import GUESS_WEIGHTS
from .base import IMAGE, POSITIVE, Box, Choice, Float, Output
from .controlnet import CONTROL
from .tuning_inputs import CATEGORY


class ApplyGuessMode(Box):
    ID, TITLE, CATEGORY = "NullText_ControlNetGuessMode", "Apply ControlNet (Guess Mode)", CATEGORY
    SEARCH_ALIASES = ["guess mode", "controlnet without prompt", "resolution weighting", "soft weights"]
    DESCRIPTION = (
        "Applies a ControlNet to the positive prompt alone and weighs its layers, so that the hint guides a picture "
        "without a prompt (guess mode, arXiv 2302.05543). Leave the prompt empty and take a cfg of 3 to 5."
    )
    INPUTS = (
        POSITIVE("The positive prompt, often an empty one. The negative prompt goes to the sampler as it is."),
        CONTROL(tooltip="A ControlNet: from core's loader, Make ControlNet or Train ControlNet."),
        IMAGE("The hint: white lines or areas on black, from Hint Maker or drawn by hand."),
        Choice(
            "weights",
            list(GUESS_WEIGHTS),
            "By resolution: coarse layers count more, in the middle of SD 1 and SD 2 8 times, of SDXL 4 times. 0.825 a "
            "layer: each finer layer counts less, at most 1. All alike: the hint in the positive prompt and nothing "
            "else.",
        ),
        Float("strength", 1.0, "How much the ControlNet counts in all; 0: not at all.", 0.0, 10.0),
        Float("start_percent", 0.0, "It acts from this part of the run on."),
        Float("end_percent", 1.0, "It acts up to this part of the run."),
    )
    OUTPUTS = (Output("CONDITIONING", "The positive prompt with the ControlNet.", "positive"),)

    def run(self, positive, control_net, image, weights, strength, start_percent, end_percent):
        weighed = controlnet.guessing(control_net, weights)
        return (controlnet.in_positive(weighed, positive, image, strength, start_percent, end_percent),)


NODES = (ApplyGuessMode,)
