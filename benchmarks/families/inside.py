"""The cells in this process, without a server: the same graphs, the nodes called one after another."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import torch
from PIL import Image

from ...batch.client import Result
from ...nodes import NODE_CLASS_MAPPINGS
from ..lab import loaded
from . import stand_ins
from .graphs import FamilyGraph, Left
from .run import Lab, Stopped

#: what later graphs may take from earlier ones: it reads no file that a graph writes, and draws nothing at random
KEPT = {"KSampler", "NullText_Prompt", "NullText_LoadPicture", "NullText_LoadImageText", *stand_ins.NODE_CLASS_MAPPINGS}


class Checkpoint:
    """The demo checkpoint, loaded once."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"ckpt_name": ("STRING", {"default": ""})}}

    FUNCTION, OUTPUT_NODE = "load", False

    def load(self, ckpt_name):
        return loaded()


class Latents:
    """Takes SaveLatent's place: the samples stay in memory."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "filename_prefix": ("STRING", {"default": ""})}}

    FUNCTION, OUTPUT_NODE = "take", True

    def take(self, samples, filename_prefix):
        return {"latent": samples["samples"].detach().float().clone()}


class Pictures:
    """Takes PreviewImage's place."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    FUNCTION, OUTPUT_NODE = "take", True

    def take(self, images):
        files = []
        for picture in (images.clamp(0, 1) * 255).round().byte():
            Image.fromarray(picture.numpy()).save(file := io.BytesIO(), "PNG")
            files.append(file.getvalue())
        return {"files": files}


@functools.cache
def classes() -> dict[str, type]:
    """The nodes that the cells are made of, by name: the embedded engine's, the pack's and the stand-ins'."""
    loaded()
    from comfy.nodes import base_nodes
    from comfy_extras.nodes import nodes_custom_sampler, nodes_latent, nodes_mask

    found: dict[str, type] = {}
    for module in (base_nodes, nodes_custom_sampler, nodes_latent, nodes_mask, stand_ins):
        found |= module.NODE_CLASS_MAPPINGS
    own = {"CheckpointLoaderSimple": Checkpoint, "SaveLatent": Latents, "PreviewImage": Pictures}
    return {**found, **NODE_CLASS_MAPPINGS, **own}


class Infos(dict):
    """What /object_info would tell of a class, found when it is asked for."""

    def __missing__(self, name: str) -> dict:
        self[name] = {"name": name, "input": classes()[name].INPUT_TYPES()}
        return self[name]


class Inside(Lab):
    """One family in this process, with the embedded engine's own nodes."""

    own: dict[str, type] = {}  #: nodes in place of those of `classes`, by name

    def __init__(self, family: str, folder: Path | None, size: int = 16, **options):
        """folder: where the stand-ins' files are written; None where none is. size: latent cells a side. options: of
        `FamilyGraph`."""
        self.size = size
        stand_ins.Model.folder = folder and str(folder)
        self.made: dict[str, tuple] = {}
        super().__init__(None, Infos(), family, **options)

    def graph(self) -> FamilyGraph:
        Lab.number += 1
        return FamilyGraph(self.infos, self.family, self.size, Lab.number, **self.options)

    def left(self, graph: FamilyGraph, seconds: float = 0) -> Left:
        outputs: dict[str, dict] = {}
        keys: dict[str, str] = {}
        values: dict[str, tuple] = {}

        def key(node: str) -> str:
            """What the node is made of, all the way up."""
            if node not in keys:
                inputs = {name: [key(v[0]), v[1]] if linked(v) else v for name, v in graph[node]["inputs"].items()}
                keys[node] = json.dumps([graph[node]["class_type"], inputs], sort_keys=True)
            return keys[node]

        def value(node: str) -> tuple:
            kind = graph[node]["class_type"]
            if kind in KEPT and key(node) in self.made:
                return self.made[key(node)]
            if node not in values:
                given = {n: value(v[0])[v[1]] if linked(v) else v for n, v in graph[node]["inputs"].items()}
                values[node] = self.called(node, kind, given, outputs)
                if kind in KEPT:
                    self.made[key(node)] = values[node]
            return values[node]

        for node in graph:
            if getattr(classes()[graph[node]["class_type"]], "OUTPUT_NODE", False):
                value(node)
        shown = {node: made["files"] for node, made in outputs.items() if "files" in made}
        return Left(Result(outputs=outputs, files=shown), lambda node: outputs[node.key]["latent"])

    def called(self, node: str, kind: str, given: dict, outputs: dict) -> tuple:
        """A node's outputs; what it shows goes into `outputs`. `Stopped` where it raises."""
        made = self.own.get(kind) or classes()[kind]
        hidden = made.INPUT_TYPES().get("hidden", {})
        try:
            with torch.inference_mode():
                result = getattr(made(), made.FUNCTION)(**given, **dict.fromkeys(hidden))
        except Exception as error:
            raise Stopped(Result(error=str(error), where=kind, error_type=type(error).__name__)) from error
        if not isinstance(result, dict):
            return tuple(result)
        outputs[node] = result if made in (Latents, Pictures) else result.get("ui", {})
        return tuple(result.get("result", ()))


def linked(value) -> bool:
    """Whether an input's value is another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
