"""Save Inversion and Load Inversion: safetensors inside ComfyUI's own folders."""

from __future__ import annotations

from ..engine import files, record
from .report import text_result

_NAME = "inversions/scene"


def _describe(inversion) -> str:
    words = f", prompt {inversion.text!r}" if inversion.text else ""
    return (
        f"{inversion.pivot.replace('_', ' ')} pivot, correction {inversion.correction.replace('_', ' ')}, "
        f"{inversion.steps} steps, cfg {inversion.cfg:g}, {inversion.shape[0]} image(s) of latent shape "
        f"{list(inversion.shape[1:])}{words}"
    )


class SaveInversion:
    ID = "NullText_SaveInversion"
    TITLE = "Save Inversion"
    CATEGORY = "NullText/inversion"
    DESCRIPTION = (
        "Writes an inversion to ComfyUI's output folder as one safetensors file: trajectory, schedule, null "
        "embeddings, source prompt, model fingerprint. Search: save trajectory, export inversion, unsampler file."
    )
    SEARCH_ALIASES = ["save trajectory", "export inversion", "unsampler file"]
    FUNCTION = "run"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("name",)
    OUTPUT_TOOLTIPS = ("The file's name inside the output folder, for Load Inversion.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "inversion": ("INVERSION", {"tooltip": "The inversion to keep."}),
                "name": (
                    "STRING",
                    {
                        "default": _NAME,
                        "tooltip": "File name inside ComfyUI's output folder; sub-folders are made, '..' is refused.",
                    },
                ),
                "overwrite": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Replace a file of that name; off: a number is added to the name."},
                ),
            }
        }

    def run(self, inversion, name, overwrite):
        path = files.new_file(name, overwrite)
        inversion.save(path)
        name = files.relative("output", path)
        return text_result(f"Saved {name} ({path.stat().st_size / 2**20:.1f} MB): {_describe(inversion)}", name)


class LoadInversion:
    ID = "NullText_LoadInversion"
    TITLE = "Load Inversion"
    CATEGORY = "NullText/inversion"
    DESCRIPTION = (
        "Reads an inversion that Save Inversion wrote, from ComfyUI's output or input folder. With a model wired it "
        "says at once whether the inversion belongs to it. Search: load trajectory, import inversion, unsampler file."
    )
    SEARCH_ALIASES = ["load trajectory", "import inversion", "unsampler file"]
    FUNCTION = "run"
    RETURN_TYPES = ("INVERSION", "STRING")
    RETURN_NAMES = ("inversion", "prompt")
    OUTPUT_TOOLTIPS = ("The inversion.", "The source prompt it was made with, if it was known.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "name": (
                    "STRING",
                    {
                        "default": _NAME,
                        "tooltip": "File name inside ComfyUI's output folder, else inside its input folder.",
                    },
                )
            },
            "optional": {
                "model": ("MODEL", {"tooltip": "Checked at once against the model the inversion was made with."})
            },
        }

    @classmethod
    def IS_CHANGED(cls, name=None, model=None):
        if name is None:  # wired: the node before it decides
            return ""
        return files.state_of(lambda: files.find_file(name))

    def run(self, name, model=None):
        inversion = files.read(files.find_file(name))
        if model is not None:
            record.check_belongs(inversion, model)
        return text_result(f"Loaded {name}: {_describe(inversion)}", inversion, inversion.text)


NODES = (SaveInversion, LoadInversion)
