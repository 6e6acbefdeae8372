"""The runs that the attention table compares, and per kind of edit the prompt-to-prompt settings."""

from __future__ import annotations

import torch

from ...samplers.core import euler_step
from ..edits import Edit
from ..lab import InEngine

CFG = 5.0
#: per kind of edit, chosen on training scenes for directly overwritten steps at CFG; no other way has any. Colour:
#: prompt-to-prompt's default shares of the steps, with local blend. Shape: the source's attention would draw its shape
#: again, so local blend alone keeps the rest, its mask wide enough for the corners of the new shape. Background and
#: texture: everything but the object may change.
PLANS = {
    "colour": {"cross_steps": 0.8, "self_steps": 0.4, "blend": True, "blend_threshold": 0.2},
    "shape": {"cross_steps": 0.1, "self_steps": 0.0, "blend": True, "blend_threshold": 0.1},
    "background": {"cross_steps": 0.4, "self_steps": 0.2, "keep": True, "blend_threshold": 0.1},
    "texture": {"cross_steps": 0.2, "self_steps": 0.0, "keep": True, "blend_threshold": 0.1},
}


def options_of(edit: Edit, **changes) -> dict:
    """Prompt-to-prompt's inputs for an edit."""
    options = {"edit": "auto", **PLANS[edit.kind], **changes}
    if options.pop("blend", False):
        options["blend_words"] = ", ".join(dict.fromkeys(edit.words))
    if options.pop("keep", False):
        options["keep_words"] = edit.words[0]
    return options


class Runs(InEngine):
    """The ways that are compared, over `steps` steps; null-text with `inner` updates a step."""

    def __init__(self, steps: int, inner: int):
        super().__init__(steps)
        self.inner = inner

    def optimise(self, inversion):
        from ...nodes.null_text import optimise

        return optimise(self.model, inversion, None, self.nothing, CFG, inner=self.inner, cache=False)[0]

    def plain(self, edit: Edit, inversion):
        """The edited prompt from the inverted noise."""
        from ...engine.run import sample_with

        def body(run):
            denoise, x = run.guided("positive", "negative", CFG), inversion.x_T.clone()
            for s, s_next in zip(self.sigmas[:-1], self.sigmas[1:]):
                x = euler_step(x, denoise(x, s), s, s_next)
            return x

        conds = {"positive": self.prompt(edit.edited), "negative": self.nothing}
        x = sample_with(self.model, conds, torch.zeros(inversion.shape), self.sigmas, body)
        return self.decode(self.model.get_model_object("latent_format").process_out(x))

    def p2p(self, edit: Edit, inversion):
        """(image, calls per step)"""
        image, rows = self.edited(edit.edited, inversion, CFG, **options_of(edit))
        return image, rows / self.steps
