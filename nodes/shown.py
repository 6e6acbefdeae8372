"""What boxes that edit a picture have in common: with a VAE wired they show source and edit under one divider."""

from __future__ import annotations

from torch import Tensor

from ..engine.comfy import is_empty
from ..engine.noise import source_latent
from .base import VAE, Box
from .masked import by_frame, own_mask
from .report import BEFORE_AFTER, before_after

SEEN = VAE("Shows source and edit in the node under a divider, at full size. Left open: no pictures.").optional()


class EditBox(Box):
    """A Box that edits a picture: INPUTS hold `SEEN`, which `run` does not take; the first output is a LATENT."""

    FUNCTION = "shown"
    AFTER = "edit"  #: what the result is called on the page
    READS_MASK = False  #: whether the latent's own noise mask stands in for the mask; an inversion comes without

    def before(self, inputs: dict, outputs: tuple) -> Tensor | None:
        """LATENT samples of the source: of the inversion, else of `latent`; None for an empty latent."""
        if inputs.get("inversion") is not None:
            return source_latent(inputs["inversion"])
        latent = inputs.get("latent")
        return None if latent is None or is_empty(latent) else latent["samples"]

    def mask(self, inputs: dict, outputs: tuple) -> Tensor | None:
        """Where the picture may change, for `by_frame`: the mask that is wired, else the latent's own where that is
        read."""
        mask = inputs.get("mask")
        if mask is None and self.READS_MASK and inputs.get("inversion") is None:
            return own_mask(inputs["latent"])
        return None if mask is None else mask.reshape(-1, *mask.shape[-2:])

    def shown(self, vae=None, **inputs) -> dict:
        made = self.run(**inputs)
        outputs = made["result"]
        before = None if vae is None else self.before(inputs, outputs)
        if before is None:  # a list run takes the keys of its first item for all
            nothing = {} if vae is None else {key: [] for key in BEFORE_AFTER}
            return {**made, "ui": {**made["ui"], **nothing}}
        after, mask = outputs[0]["samples"], self.mask(inputs, outputs)
        mask = None if mask is None else by_frame(mask, before)
        line, pictures = before_after(vae, before, after, mask, self.AFTER)
        text = [f"{made['ui']['text'][0]}\n{line}"]
        return {"ui": {**made["ui"], **pictures, "text": text}, "result": outputs}
