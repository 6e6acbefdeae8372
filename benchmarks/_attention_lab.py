"""The runs that the attention benchmark compares: the demo checkpoint in the embedded engine, and per kind of edit the
prompt-to-prompt settings."""

from __future__ import annotations

import hashlib

import torch

from ..samplers.core import euler_step
from . import _engine as engine
from . import harness
from ._scene_edits import Edit

CFG = 5.0
#: per kind of edit, chosen on training scenes. Colour: prompt-to-prompt's defaults. Shape: the source's attention would
#: draw its shape again, so local blend alone keeps the rest, its mask wide enough for the corners of the new shape.
#: Background and texture: everything but the object may change.
PLANS = {
    "colour": {"cross_steps": 0.8, "self_steps": 0.4, "blend": True, "blend_threshold": 0.2},
    "shape": {"cross_steps": 0.1, "self_steps": 0.0, "blend": True, "blend_threshold": 0.1},
    "background": {"cross_steps": 0.4, "self_steps": 0.2, "keep": True, "blend_threshold": 0.1},
    "texture": {"cross_steps": 0.2, "self_steps": 0.0, "keep": True, "blend_threshold": 0.1},
}


class Lab:
    """Model, prompts and the runs that are compared."""

    def __init__(self, steps: int, inner: int):
        from ..engine.comfy import sigmas_of

        self.model, self.clip, self.vae = engine.load()
        self.steps, self.inner = steps, inner
        self.sigmas = sigmas_of(self.model, "normal", steps)
        self.empty = self.prompt("")
        self.mark = marked(steps)

    def prompt(self, text: str) -> list:
        return engine.prompt(self.clip, text)

    def invert(self, edit: Edit):
        from ..nodes.inversion import invert

        latent = {"samples": engine.encode(self.vae, edit.image)}
        return invert(self.model, {"positive": self.prompt(edit.source)}, latent, self.sigmas, "ddim", cache=False)[0]

    def optimise(self, inversion):
        from ..nodes.null_text import optimise

        return optimise(self.model, inversion, None, self.empty, CFG, inner=self.inner, cache=False)[0]

    def plain(self, edit: Edit, inversion):
        """The edited prompt from the inverted noise."""
        from ..engine.run import sample_with

        def body(run):
            denoise, x = run.guided("positive", "negative", CFG), inversion.x_T.clone()
            for s, s_next in zip(self.sigmas[:-1], self.sigmas[1:]):
                x = euler_step(x, denoise(x, s), s, s_next)
            return x

        conds = {"positive": self.prompt(edit.edited), "negative": self.empty}
        x = sample_with(self.model, conds, torch.zeros(inversion.shape), self.sigmas, body)
        return engine.decode(self.vae, self.model.get_model_object("latent_format").process_out(x))

    def guider(self, edit: Edit, inversion, **changes):
        from ..nodes.prompt_to_prompt import prepare

        options = {"edit": "auto", **PLANS[edit.kind], **changes}
        blend, keep = options.pop("blend", False), options.pop("keep", False)
        if blend:
            options["blend_words"] = ", ".join(dict.fromkeys(edit.words))
        if keep:
            options["keep_words"] = edit.words[0]
        edited = self.prompt(edit.edited)
        return prepare("bench", self.model, edited, self.empty, CFG, inversion=inversion, **options)[0]

    def p2p(self, edit: Edit, inversion, **changes):
        """(image, calls per step)"""
        from ..engine.pair_guider import run_guider

        result = run_guider(self.guider(edit, inversion, **changes), None, inversion.sigmas, 0)
        return engine.decode(self.vae, result.edits), result.rows / self.steps


def marked(steps: int) -> str:
    """What results hang on (weights, settings, steps) in 8 digits: kept results of another mark do not count."""
    return hashlib.sha256(repr((harness.weights(), PLANS, CFG, steps)).encode()).hexdigest()[:8]
