"""The note of a shipped workflow: what it shows, and what to change for a model and a picture of one's own."""

from __future__ import annotations

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
    "Prompt": "write what the result shall show into {}",
    "Edited prompt": "the same sentence with one change into {}",
    "What it shall become": "the same sentence with one change into {}",
    "Prompt of the fill": "write what shall fill the hole into {}",
}
#: the same of a widget
WIDGETS = {
    "source_prompt": "write what it shows into source_prompt",
    "edited_prompt": "the same sentence with one change into edited_prompt",
    "prompts": "the same sentence with one change a line into prompts of {}",
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
#: what trains: set for the demo model in its workflows, where real models take the nodes' defaults
TRAINS = (
    "NullText_TrainLora",
    "NullText_TrainEmbedding",
    "NullText_ImagicOptimise",
    "NullText_TrainControlNet",
    "NullText_DiffusionCLIPTune",
    "NullText_HSpaceTrain",
)
#: widgets of these nodes that are a matter of taste, not of the model
TASTE = ("training_seed", "sample_every", "batch", "rank", "layers", "targets", "preset")
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
        drawn, said_prompts = workflows.drawn_by(name), ", and ".join(_prompts(workflow))
        lines += [
            f"1. Pick a checkpoint of the Stable Diffusion 1.5 family in {on_screen(workflow, *loaders)}.",
            f"2. Choose your photo in {on_screen(workflow, *pictures)}.",
            f"3. {said_prompts[:1].upper()}{said_prompts[1:]}.",
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
    return "\n".join(lines)


def _prompts(workflow: Workflow) -> list[str]:
    """What to write where, the source before the edit."""
    titled = {node.get("_meta", {}).get("title"): key for key, node in workflow.items() if "text" in node["inputs"]}
    found = [said.format(f"“{title}”") for title, said in PROMPTS.items() if title in titled]
    for key, node in workflow.items():
        found += [said.format(on_screen(workflow, key)) for widget, said in WIDGETS.items() if widget in node["inputs"]]
    if found and found[0].startswith("the same sentence"):  # a way that is told only what the picture shall become
        found[0] = found[0].replace("the same sentence with one change", "write what the result shall show")
    return found


def _model(workflow: Workflow, loaders: list[str]) -> str:
    """Where a model of one's own goes, and the sizes that follow it."""
    networks, sizes = of_class(workflow, "UNETLoader"), SIZES
    said = f"pick a Stable Diffusion checkpoint in {on_screen(workflow, *loaders)}"
    if networks:
        bottleneck = workflow[networks[0]]["inputs"]["unet_name"] == weights.BOTTLENECK.name
        kind = "Stable Diffusion 1, 2 or SDXL" if bottleneck else "flow model's"
        said = (
            f"pick a {kind} checkpoint {'' if bottleneck else '(SD3 for example) '}in {on_screen(workflow, *loaders)}, "
            f"and wire its MODEL where that of {on_screen(workflow, *networks)} goes"
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
    for key in of_class(workflow, *TRAINS):
        own = NODE_CLASS_MAPPINGS[workflow[key]["class_type"]].INPUTS
        moved = [
            f"{i.name} {default if isinstance(default, str) else format(default, 'g')}"
            for i in own
            if i.kind not in ("STRING", "BOOLEAN")
            and i.name not in TASTE
            and (default := i.v1()[1].get("default")) != workflow[key]["inputs"].get(i.name, default)
            and default is not None
        ]
        if moved:
            preset = " (0: as the preset)" if any(each.endswith(" 0") for each in moved) else ""
            lines.append(f"In {on_screen(workflow, key)} set what real models take: {', '.join(moved)}{preset}.")
    return lines


def _picture(workflow: Workflow, pictures: list[str]) -> str:
    text = ", and ".join([f"choose it in {on_screen(workflow, *pictures[:1])}", *_prompts(workflow)]) + "."
    wired = [value for node in workflow.values() for value in node["inputs"].values()]
    masks = [key for key in pictures if [key, 1] in wired]
    if masks:
        text += (
            f" What is transparent in {on_screen(workflow, *masks)} is the mask: erase it in an image editor and save "
            "as PNG, or wire another MASK in its place, Word Mask's for example."
        )
    return text
