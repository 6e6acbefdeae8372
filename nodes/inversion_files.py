"""Save Inversion and Load Inversion: safetensors inside ComfyUI's own folders."""

from __future__ import annotations

from ..engine import files, record
from .base import INVERSION, MODEL, Boolean, Box, Output, Text
from .report import text_result

_NAME = "inversions/scene"


def _describe(inversion) -> str:
    words = f", prompt {inversion.text!r}" if inversion.text else ""
    return (
        f"{inversion.pivot.replace('_', ' ')} pivot, correction {inversion.correction.replace('_', ' ')}, "
        f"{inversion.steps} steps, cfg {inversion.cfg:g}, {inversion.shape[0]} image(s) of latent shape "
        f"{list(inversion.shape[1:])}{words}"
    )


class SaveInversion(Box):
    ID, TITLE, CATEGORY = "NullText_SaveInversion", "Save Inversion", "NullText/inversion"
    SEARCH_ALIASES = ["save trajectory", "export inversion", "unsampler file"]
    DESCRIPTION = (
        "Writes an inversion to ComfyUI's output folder as one safetensors file: trajectory, schedule, null "
        "embeddings, source prompt, model fingerprint."
    )
    OUTPUT_NODE = True
    INPUTS = (
        INVERSION("The inversion to keep."),
        Text("name", _NAME, "File name inside ComfyUI's output folder; sub-folders are made, '..' is refused."),
        Boolean(
            "overwrite",
            False,
            "Replace a file of that name. Off: a number is added to the name, so that of a list each is kept.",
        ),
    )
    OUTPUTS = (Output("STRING", "The file's name inside the output folder, for Load Inversion.", "name"),)

    def run(self, inversion, name, overwrite):
        name, report = files.save_record(inversion, name, overwrite, _describe(inversion))
        return text_result(report, name)


class LoadInversion(Box):
    ID, TITLE, CATEGORY = "NullText_LoadInversion", "Load Inversion", "NullText/inversion"
    SEARCH_ALIASES = ["load trajectory", "import inversion", "unsampler file"]
    DESCRIPTION = (
        "Reads an inversion that Save Inversion wrote, from ComfyUI's output or input folder. With a model wired it "
        "says at once whether the inversion belongs to it."
    )
    INPUTS = (
        Text("name", _NAME, "File name inside ComfyUI's output folder, else inside its input folder."),
        MODEL("Checked at once against the model the inversion was made with.").optional(),
    )
    OUTPUTS = (
        Output("INVERSION", "The inversion.", "inversion"),
        Output("STRING", "The source prompt it was made with, if it was known.", "prompt"),
    )

    @classmethod
    def IS_CHANGED(cls, name=None, model=None):
        if name is None:  # wired: the node before it decides
            return ""
        return files.state_of(lambda: files.find_named(name))

    def run(self, name, model=None):
        inversion = record.loaded(files.find_named(name))
        if model is not None:
            record.check_belongs(inversion, model)
        return text_result(f"Loaded {name}: {_describe(inversion)}", inversion, inversion.text)


NODES = (SaveInversion, LoadInversion)
