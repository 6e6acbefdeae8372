"""Save h-Space Direction and Load h-Space Direction: safetensors inside ComfyUI's own folders."""

from __future__ import annotations

from ..engine import files, h_space
from ..samplers.tuning.h_direction import Direction
from .base import MODEL, Boolean, Box, Output, Text
from .h_space import CATEGORY, DIRECTION
from .report import text_result

_NAME = "h_directions/direction"
_WHERE = ("direction", "Save h-Space Direction")


def _describe(direction: Direction) -> str:
    words = f", {direction.source!r} -> {direction.target!r}" if direction.target else ""
    return f"{direction.made_by or direction.kind}, {direction.steps} levels, site {direction.site}{words}"


class SaveDirection(Box):
    ID, TITLE, CATEGORY = "NullText_SaveDirection", "Save h-Space Direction", CATEGORY
    SEARCH_ALIASES = ["save direction", "export h-space", "asyrp file"]
    DESCRIPTION = (
        "Writes a direction to ComfyUI's output folder as one safetensors file: shifts or network, schedule, words, "
        "model fingerprint."
    )
    OUTPUT_NODE = True
    INPUTS = (
        DIRECTION,
        Text("name", _NAME, "File name inside ComfyUI's output folder; sub-folders are made, '..' is refused."),
        Boolean(
            "overwrite",
            False,
            "Replace a file of that name. Off: a number is added to the name, so that of a list each is kept.",
        ),
    )
    OUTPUTS = (Output("STRING", "The file's name inside the output folder, for Load h-Space Direction.", "name"),)

    def run(self, direction, name, overwrite):
        name, report = files.save_record(direction, name, overwrite, _describe(direction))
        return text_result(report, name)


class LoadDirection(Box):
    ID, TITLE, CATEGORY = "NullText_LoadDirection", "Load h-Space Direction", CATEGORY
    SEARCH_ALIASES = ["load direction", "import h-space", "asyrp file"]
    DESCRIPTION = (
        "Reads a direction that Save h-Space Direction wrote, from ComfyUI's output or input folder. With a model "
        "wired it says at once whether the direction belongs to it."
    )
    INPUTS = (
        Text("name", _NAME, "File name inside ComfyUI's output folder, else inside its input folder."),
        MODEL(tooltip="Checked at once against the model the direction was made with.").optional(),
    )
    OUTPUTS = (Output("H_DIRECTION", "The direction.", "direction"),)

    @classmethod
    def IS_CHANGED(cls, name=None, model=None):
        return "" if name is None else files.state_of(lambda: files.find_named(name, *_WHERE))

    def run(self, name, model=None):
        direction = files.of_file(files.find_named(name, *_WHERE), Direction.from_tensors, "direction")
        if model is not None:
            h_space.check_belongs(direction, model)
        return text_result(f"Loaded {name}: {_describe(direction)}", direction)


NODES = (SaveDirection, LoadDirection)
