"""The note of a shipped workflow: what it shows, and what to change for a model and a picture of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..demo import weights
from ..nodes import NODE_CLASS_MAPPINGS
from ..nodes.guidance import DECODER, LATENT
from . import workflows
from .workflows import PICTURES, Workflow, of_class

#: titles that the page gives to core's nodes without one of their own
SCREEN = {
    "CheckpointLoaderSimple": "Load Checkpoint",
    "ControlNetLoader": "Load ControlNet Model",
    "EmptyLatentImage": "Empty Latent Image",
    "LoadImage": "Load Image",
    "UNETLoader": "Load Diffusion Model",
}
#: what a prompt of the workflow, by its title, must say of a picture of one's own
PROMPTS = {
    "Source prompt": "write what it shows into {}",
    "What the pictures show": "write which part of its looks is to change into {}",
    "What they shall show": "what shall be there instead into {}",
    "Prompt": "write what the result shall show into {}",
    "Prompt: no place, no size": "write what shall be drawn there into {}",
    "Edited prompt": "the same sentence with one change into {}",
    "Another background": "the same sentence with another change into {}",
    "What it shall become": "the same sentence with one change into {}",
    "What the scribble shall be": "write what your scribble shall become into {}",
    "The word and the edit": "write the rare word and what the result shall show into {}",
    "The word in a new place": "write a sentence with the rare word into {}",
    "The learned word in a new place": "write a sentence with the learned word into {}",
    "Prompt of the fill": "write what shall fill the hole into {}",
}
#: the same of a widget
WIDGETS = {
    "source_prompt": "write what it shows into source_prompt",
    "edited_prompt": "the same sentence with one change into edited_prompt",
    "prompts": "the same sentence with one change a line into prompts of {}",
    "prompt": "write what it shows into prompt of {}",
    "words": "the words whose place is the mask into words of {}",
    "source": "the same into source of {}",
    "target": "what it shall become into target of {}",
    "attributes": "the looks to compare into attributes of {}",
    "captions": "what your picture shows into captions of {}",
    "start_word": "write a plain word for the subject into start_word of {}",
    "sample_prompt": "a sentence with the rare word into sample_prompt of {}",
}
#: what the shipped workflow brings that belongs to the demo model alone, by the node that brings it
DEMO_ONLY = {
    "NullText_LoadClassifier": "The classifier in {} judges the demo's latents only: train one for your model first, "
    "with Train Latent Classifier.",
    "NullText_LoadImageClassifier": "The classifier in {} knows the demo's pictures only: choose one of photos.",
    "NullText_LoadImageText": "The model in {} knows the demo's pictures only: wire Load CLIP Vision and the text "
    "encoder of the same CLIP into it.",
    "ControlNetLoader": "The file in {} is a ControlNet of the demo model: choose one that was made for yours.",
    "NullText_TuningPictures": "Put your pictures into a folder inside ComfyUI's input folder, write its name into {}, "
    "and under captions a sentence for them, with the rare word where there is one (“a photo of sks dog”).",
    "NullText_PriorPictures": "Replace the class prompts in {} by a sentence without the rare word (“a photo of a "
    "dog”).",
}
#: what trains, whose choices were set for the demo model too, not its numbers alone
TRAINS = (
    "NullText_TrainLora",
    "NullText_TrainEmbedding",
    "NullText_ImagicOptimise",
    "NullText_MakeControlNet",
    "NullText_TrainControlNet",
    "NullText_DiffusionCLIPTune",
    "NullText_HSpaceTrain",
)
#: widgets that are a matter of taste, not of the model
TASTE = ("training_seed", "seed", "sample_every", "layers", "preset", "size", "width", "height", "overwrite")
#: what a workflow sets for what it shows, on any model: the widgets of a node's class, or of its title where its like
#: is set for the demo model
MEANT = {
    "NullText_AsyrpSampler": ("strength", "t_edit", "t_boost"),
    "NullText_CFGConvention": ("w", "w_end"),
    "NullText_CLIPRank": ("keep",),
    "NullText_DisturbanceSampler": ("strength", "denoise"),
    "NullText_ImagicGuider": ("eta",),
    "NullText_InversionParts": ("strength",),
    "NullText_InvertImage": ("cfg", "depth"),
    "NullText_MixModels": ("weight",),
    "NullText_PixelComposite": ("feather",),
    "NullText_PriorPictures": ("batch",),
    "NullText_PromptToPromptGuider": ("keep_source",),
    "NullText_Sampler": ("strength", "target_cfg"),
    "NullText_SDEdit": ("t0",),
    "NullText_SemanticGuidance": ("content_weight", "structure_weight", "style_weight"),
    "Direct Edit: InfEdit": ("steps", "strength", "source_cfg", "target_cfg"),
    "LoRA down to 0.4 of the time": ("cfg", "lora_to"),
}
#: {title of a node: {widget: value}}: what the paper sets on the kind of model that the workflow asks for, where the
#: node's default is another
PAPER = {"FlowEdit: colour": {"target_cfg": 13.5}, "FlowEdit: background": {"target_cfg": 13.5}}
SIZES = "512 for Stable Diffusion 1.x, 1024 for SDXL"


def on_screen(workflow: Workflow, *keys: str) -> str:
    """Nodes by the titles that the page shows, each once: “Load Checkpoint” and “Empty prompt”."""
    *shown, last = dict.fromkeys(f"“{title_on_screen(workflow[key])}”" for key in keys)
    return f"{', '.join(shown)} and {last}" if shown else last


def title_on_screen(node: dict[str, Any]) -> str:
    """The title that the page shows above a workflow's node."""
    name = node["class_type"]
    ours = NODE_CLASS_MAPPINGS.get(name)
    known = ours.TITLE if ours else SCREEN.get(name, name.removeprefix("NullText_"))
    return node.get("_meta", {}).get("title") or known


def note(name: str, workflow: Workflow) -> str:
    """What the file says of itself, then which widgets to change."""
    said = [node["_meta"]["note"] for _, node in workflows.by_id(workflow) if node.get("_meta", {}).get("note")]
    lines = [workflows.title(name) if name in workflows.names() else name, *said, ""]
    loaders = sorted((key for key, node in workflow.items() if "ckpt_name" in node["inputs"]), key=int)[:1]
    pictures = of_class(workflow, *PICTURES)
    if not workflows.runs_here(name):
        drawn = workflows.drawn_by(name)
        lines += [
            f"1. Pick a checkpoint of the Stable Diffusion 1.5 family in {on_screen(workflow, *loaders)}.",
            f"2. Choose your photo in {on_screen(workflow, *pictures)}.",
            f"3. {_sentence(_prompts(workflow))}",
            "4. Queue.",
            "",
            f"Its thumbnail: {drawn[0].lower()}{drawn[1:]}",
        ]
        return "\n".join(lines)
    if loaders:
        lines.append("It runs as it opens, on the small demo checkpoint (128 x 128 scenes of shapes).")
        lines += ["", f"With your own model: {_model(workflow, loaders)}", *_settings(workflow)]
    if pictures:
        lines += ["", f"With your own picture: {_picture(workflow, pictures)}"]
    elif of_class(workflow, "NullText_TuningPictures"):
        lines += ["", f"With your own pictures: {_sentence(_prompts(workflow), first=str)}"]
    return "\n".join(lines)


def _sentence(parts: list[str], first: Callable[[str], str] = str.upper) -> str:
    """The parts in a row, each said in words that go on from the one before."""
    text = ", and ".join(parts)
    return f"{first(text[:1])}{text[1:]}."


def _prompts(workflow: Workflow) -> list[str]:
    """What to write where, the source before the edit."""
    titled = {node.get("_meta", {}).get("title"): key for key, node in workflow.items() if "text" in node["inputs"]}
    found = [said.format(f"“{title}”") for title, said in PROMPTS.items() if title in titled]
    rare = {node["inputs"].get("word") for node in workflow.values()}  # as a caption it stands for any picture
    for key, node in workflow.items():
        given = {widget: value for widget, value in node["inputs"].items() if isinstance(value, str)}
        texts = [widget for widget, value in given.items() if value.strip() and value not in rare]
        found += [said.format(on_screen(workflow, key)) for widget, said in WIDGETS.items() if widget in texts]
    if found and found[0].startswith("the same sentence"):  # a way that is told only what the picture shall become
        found[0] = found[0].replace("the same sentence with one change", "write what the result shall show")
    return found


def _model(workflow: Workflow, loaders: list[str]) -> str:
    """Where a model of one's own goes, and the sizes that follow it."""
    networks, sizes = of_class(workflow, "UNETLoader"), SIZES
    # a real checkpoint brings its own shift and its own scale of time
    sampled = [key for key, node in workflow.items() if "shift" in node["inputs"]][:1]
    said = f"pick a Stable Diffusion checkpoint in {on_screen(workflow, *loaders)}"
    if networks:
        bottleneck = workflow[networks[0]]["inputs"]["unet_name"] == weights.BOTTLENECK.name
        kind = "Stable Diffusion 1, 2 or SDXL" if bottleneck else "flow model's"
        said = (
            f"pick a {kind} checkpoint {'' if bottleneck else '(SD3 for example) '}in {on_screen(workflow, *loaders)}, "
            f"and wire its MODEL where that of {on_screen(workflow, *(sampled or networks))} goes"
            f"{f'; leave that node and {on_screen(workflow, *networks)} out' if sampled else ''}"
        )
        if bottleneck:
            said += "; SD3 and Flux have no bottleneck and are refused"
        else:
            sizes = "1024 for SD3"
    sized = [key for key in sorted(workflow, key=int) if {"width", "size"} & workflow[key]["inputs"].keys()]
    sized += [key for key in of_class(workflow, *PICTURES[:1]) if key not in sized]  # whose size is optional
    return f"{said}." + (f" Set the size to your model's ({sizes}) in {on_screen(workflow, *sized)}." if sized else "")


def _settings(workflow: Workflow) -> list[str]:
    """What else was set for the demo model."""
    lines = []
    for name, said in DEMO_ONLY.items():
        keys = [key for key in of_class(workflow, name) if workflow[key]["inputs"].get("folder", name)]
        lines += [said.format(on_screen(workflow, *keys))] if keys else []
    on_latents = [key for key, node in workflow.items() if node["inputs"].get("gradient_mode") == LATENT]
    if on_latents and of_class(workflow, "NullText_LoadImageText"):  # a CLIP reads no noisy latents
        lines.append(f"Then set gradient_mode to “{DECODER}” in {on_screen(workflow, *on_latents)}.")
    same: dict[str, list[str]] = {}
    for key, _ in workflows.by_id(workflow):
        moved = defaults(workflow[key])
        preset = " (0: as the preset)" if 0 in moved.values() and "preset" in workflow[key]["inputs"] else ""
        same.setdefault(", ".join(f"{name} {_shown(value)}" for name, value in moved.items()) + preset, []).append(key)
    same.pop("", None)
    return lines + [
        f"In {on_screen(workflow, *keys)} set what real models take: {said}." for said, keys in same.items()
    ]


def defaults(node: dict[str, Any]) -> dict[str, Any]:
    """{widget: its default}, the published value, of what a workflow's node sets otherwise for the demo model."""
    name = node["class_type"]
    title = node.get("_meta", {}).get("title", "")
    meant, paper = MEANT.get(name, ()) + MEANT.get(title, ()), PAPER.get(title, {})
    found = {}
    for box in NODE_CLASS_MAPPINGS[name].INPUTS if name in NODE_CLASS_MAPPINGS else ():
        own = node["inputs"].get(box.name)
        known = box.kind in ("INT", "FLOAT", "BOOLEAN") or name in TRAINS and box.kind != "STRING"
        if own is None or not known or box.name in (*TASTE, *meant):
            continue
        default = paper.get(box.name, box.v1()[1].get("default"))  # asked last: some choices are ComfyUI's own lists
        if default not in (None, own):
            found[box.name] = default
    return found


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else format(value, "g")


def _picture(workflow: Workflow, pictures: list[str]) -> str:
    text = _sentence([f"choose it in {on_screen(workflow, *pictures[:1])}", *_prompts(workflow)], first=str)
    wired = [value for node in workflow.values() for value in node["inputs"].values()]
    masks = [key for key in pictures if [key, 1] in wired]
    if masks:
        text += (
            f" What is transparent in {on_screen(workflow, *masks)} is the mask: erase it in an image editor and save "
            "as PNG, or wire another MASK in its place, Word Mask's for example."
        )
    return text
