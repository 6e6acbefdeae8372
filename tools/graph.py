"""Workflows in API format, built node by node."""

from __future__ import annotations

from . import litegraph, workflows


class Node:
    """A node of a graph. As an input's value it stands for its first output; node[i] is another one."""

    def __init__(self, key: str):
        self.key = key

    def __getitem__(self, slot: int) -> list:
        return [self.key, slot]


class Graph(dict):
    """Begins with the demo checkpoint. Required inputs that `add` is not given come from `wires`, by their names;
    widgets have the defaults that `infos`, the server's /object_info, tells."""

    def __init__(self, infos: dict, checkpoint: str = workflows.DEMO_CHECKPOINT):
        self.infos, self.wires = infos, {}
        loaded = self.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
        self.model, self.clip, self.vae = (loaded[slot] for slot in range(3))
        self.wire(model=self.model, clip=self.clip, vae=self.vae)

    def wire(self, **links) -> Graph:
        """From now on, required inputs of these names are these outputs."""
        self.wires.update(links)
        return self

    def add(self, kind: str, /, **inputs) -> Node:
        """A node of the class; an input that is None stays open. The same node again is the one that is there."""
        required = self.infos[kind]["input"].get("required", {})
        given = {**{name: link for name, link in self.wires.items() if name in required}, **inputs}
        links = {name: value[0] if isinstance(value, Node) else value for name, value in given.items()}
        node = {"class_type": kind, "inputs": {name: value for name, value in links.items() if value is not None}}
        made = litegraph.filled({"": node}, self.infos)[""]
        for key, known in self.items():
            if known == made:
                return Node(key)
        key = self.key(kind)
        self[key] = made
        return Node(key)

    def key(self, kind: str) -> str:
        """The id of the next node."""
        return str(len(self) + 1)

    def prompt(self, text: str = "", words: bool = False) -> Node:
        """A prompt; with `words`, by the pack's node that keeps them."""
        return self.add("NullText_Prompt" if words else "CLIPTextEncode", text=text)

    def picture(self, name: str) -> Node:
        """A picture of the pack; the server's input folder is empty."""
        return self.add("NullText_LoadPicture", image=f"{name} [sample]")

    def encode(self, picture) -> Node:
        return self.add("VAEEncode", pixels=picture)

    def empty(self, width: int = 128, height: int = 128, batch: int = 1, kind: str = "EmptyLatentImage") -> Node:
        return self.add(kind, width=width, height=height, batch_size=batch)

    def draw(self, **inputs) -> Node:
        """Core's KSampler: four Euler steps at cfg 5, seed 3, unless `inputs` say otherwise."""
        return self.add("KSampler", **{"seed": 3, "steps": 4, "cfg": 5.0, "scheduler": "normal", **inputs})

    def sample(self, noise, guider, sampler, sigmas, latent) -> Node:
        sampler = self.add("KSamplerSelect", sampler_name=sampler) if isinstance(sampler, str) else sampler
        more = {"sampler": sampler, "sigmas": sigmas, "latent_image": latent}
        return self.add("SamplerCustomAdvanced", noise=noise, guider=guider, **more)

    def decode(self, latent) -> Node:
        return self.add("VAEDecode", samples=latent)

    def show(self, images) -> Node:
        return self.add("PreviewImage", images=images)

    def save(self, latent, name: str = "test") -> Node:
        return self.add("SaveLatent", samples=latent, filename_prefix=name)
