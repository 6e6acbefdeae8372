"""Load Picture: a picture of one's own or one that the pack brings."""

from __future__ import annotations

import hashlib

from ..engine import samples
from .base import Box, Choice, Int, Output
from .early import early
from .report import text_result

FIRST = "demo_scene.png" + samples.MARK


class LoadPicture(Box):
    ID, TITLE, CATEGORY = "NullText_LoadPicture", "Load Picture (with samples)", "NullText"
    SEARCH_ALIASES = ["load image", "load picture", "upload photo", "sample picture", "open file"]
    DESCRIPTION = (
        "Loads a picture from ComfyUI's input folder, or one of the samples that come with this pack. Upload your own "
        "with the button under it, by dropping a file on the node, or by pasting."
    )
    INPUTS = (
        Choice("image", samples.listed, "The picture; names with [sample] belong to the pack.", FIRST),
        Int(
            "size",
            0,
            "Resize to about size x size pixels, keeping the picture's shape: 512 for Stable Diffusion 1.5, 1024 for "
            "SDXL and SD3, 128 for the demo model. 0 leaves it as it is.",
            0,
            8192,
        ).optional(),
    )
    OUTPUTS = (
        Output("IMAGE", "The picture."),
        Output("MASK", "1 where the picture is transparent; empty for a picture without transparency."),
    )

    @classmethod
    def VALIDATE_INPUTS(cls, image=None):
        return early(cls, lambda image: samples.picture_path(image), image=image)

    @classmethod
    def IS_CHANGED(cls, image=None, **_):
        try:
            return hashlib.sha256(samples.picture_path(image or "").read_bytes()).hexdigest()
        except (ValueError, OSError) as error:
            return str(error)

    def run(self, image, size=0):
        images, masks = samples.load_picture(samples.picture_path(image))
        height, width = images.shape[1:3]
        if size:
            images, masks = samples.filling(images, masks, *samples.fitting(width, height, size))
        now = images.shape[1:3]
        text = f"{width} x {height} pixels" + ("" if now == (height, width) else f", resized to {now[1]} x {now[0]}")
        return text_result(text, images, masks, log=False)


NODES = (LoadPicture,)
