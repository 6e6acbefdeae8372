"""Save LoRA and Load LoRA: LORA_MODEL to and from files, on engines whose core has no such nodes too."""

from __future__ import annotations

from dataclasses import replace

from ..engine import files, folders, weights
from ..engine.lora_names import layers_of, left_out, of_text, split
from .base import Boolean, Box, Float, Output, Socket, Text
from .report import text_result
from .tuning_inputs import CATEGORY, CLIP, free_path


def _describe(lora) -> str:
    ranks = sorted({v.shape[0] for k, v in lora.items() if split(k)[1] == "lora_down.weight"})
    told = {k.removeprefix("nulltext_"): v for k, v in getattr(lora, "metadata", {}).items()}
    said = [f"{len(layers_of(lora))} layers"]
    said += [f"rank {', '.join(map(str, ranks))}"] if ranks else []
    said += [f"word {told['word']!r}"] if told.get("word") else []
    said += [f"{told['ss_steps']} steps"] if told.get("ss_steps") else []
    return ", ".join(said)


def _added(before, after) -> int:
    """How many weights of a patcher have more patches than before."""
    return sum(len(found) > len(before.patches.get(name, ())) for name, found in after.patches.items())


def _laid_on(file, lora, model, patched, clip, text) -> list[str]:
    """What core's loader did with the LoRA's layers, in sentences. ValueError where it took none of them."""
    patchers = [(model, patched), *([] if clip is None else [(clip.patcher, text.patcher)])]
    counts = [_added(*each) for each in patchers]
    left = left_out(lora, *(after for _, after in patchers))
    unwired = [layer for layer in left if clip is None and of_text(layer)]
    foreign = [layer for layer in left if layer not in unwired]
    if not any(counts):
        wire = "" if not unwired else "wire a text encoder for its own layers, or "
        raise ValueError(
            f"None of the {len(layers_of(lora))} layers of {file} is known here ({layers_of(lora)[0][:80]} for one): "
            f"{wire}load a LoRA of this model's family."
        )
    said = [f"Laid on {counts[0]} weights of the model" + (f" and {counts[1]} of the text encoder." if clip else ".")]
    if unwired:
        said.append(f"Notice: its {len(unwired)} layers of the text encoder are not used, for no CLIP is wired.")
    if foreign:
        said.append(f"Notice: {len(foreign)} layers are not known here and were left out, {foreign[0][:80]} for one.")
    return said


class SaveLora(Box):
    ID, TITLE, CATEGORY = "NullText_SaveLora", "Save LoRA", CATEGORY
    SEARCH_ALIASES = ["save lora", "export lora", "lora file"]
    DESCRIPTION = (
        "Writes a LORA_MODEL into models/loras, under the names it has. Those of this pack's training are kohya's, "
        "which every ComfyUI and other tools read."
    )
    INPUTS = (
        Socket("lora", "LORA_MODEL", "The LoRA, from Train LoRA, Imagic Optimise or core's trainer."),
        Text(
            "file_name",
            "nulltext/copy",
            "Name of the file in models/loras; sub-folders are made. A number is added if taken.",
        ),
    )
    OUTPUTS = (Output("STRING", "The file's name, as LoRA loaders list it.", "name"),)
    OUTPUT_NODE = True

    def run(self, lora, file_name):
        path = free_path("loras", file_name, None)
        weights.save(lora, path)
        name = folders.model_name("loras", path) + ".safetensors"
        return text_result(f"Saved {name} ({path.stat().st_size / 1000:.0f} kB): {_describe(lora)}.", name)


class LoadLora(Box):
    ID, TITLE, CATEGORY = "NullText_LoadLora", "Load LoRA (tuned)", CATEGORY
    SEARCH_ALIASES = ["load lora", "lora model", "apply lora"]
    DESCRIPTION = (
        "Reads a LoRA file of any tool as LORA_MODEL, and lays it on the model. Refuses a LoRA of another checkpoint, "
        "where the file tells (same_model switches that off)."
    )
    INPUTS = (
        Socket("model", "MODEL", "The model it is laid on; it is cloned, never changed."),
        replace(CLIP(tooltip="The text encoder it is laid on, if it has a part for it."), none_too=True),
        Text("file", "nulltext/subject", "Name of a file in models/loras, as Save LoRA tells it."),
        Float("strength", 1.0, "How much it counts; 0: not at all.", -10.0, 10.0),
        Boolean(
            "same_model",
            True,
            "Refuse a LoRA that was trained on another checkpoint, where the file says so. Off: it is loaded anyway, "
            "and the guiders that it is wired to as LORA_MODEL accept it.",
        ),
    )
    OUTPUTS = (
        Output("MODEL", "The model with the LoRA."),
        Output("CLIP", "The text encoder with the LoRA."),
        Output("LORA_MODEL", "The LoRA alone.", "lora"),
    )

    @classmethod
    def IS_CHANGED(cls, file=None, **_):
        return files.state_of(lambda: folders.found_model("loras", file or ""))

    def run(self, model, clip, file, strength, same_model):
        lora = weights.load(folders.found_model("loras", file))
        said = [f"Loaded {file}: {_describe(lora)}."]
        if same_model:
            notices = weights.check_base(lora.metadata, model, clip)
        else:
            notices = []
            lora.metadata.pop(weights.BASE, None)  # so that no guider refuses it either
        weights.check_fits(model, lora)
        patched, text = weights.applied(model, clip, lora, strength)
        said += _laid_on(file, lora, model, patched, clip, text) if strength else ["At strength 0 nothing is laid on."]
        return text_result("\n".join([*said, *notices]), patched, text, lora)


NODES = (SaveLora, LoadLora)
