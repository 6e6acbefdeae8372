"""The family registered in a real engine, without a server; random checkpoints; the core nodes that the tests call."""

from types import SimpleNamespace

import pytest
import torch
from nulltext.demo import captions, nets, weights
from nulltext.demo.autoencoder import AutoEncoder
from nulltext.demo.text_encoder import TextEncoder
from nulltext.tests import stand_ins


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A random checkpoint of the family, and a flow model, in a folder that the engine searches."""
    path = tmp_path_factory.mktemp("checkpoints")
    stand_ins.random_checkpoint(path / "demo.safetensors", seed=1)
    stand_ins.random_flow_checkpoint(path / "flow.safetensors", seed=2)
    return path


class Core:
    """The core nodes' classes by name, and short ways to call the usual ones."""

    def __init__(self, nodes: dict):
        self.nodes = nodes

    def load(self, name):
        with torch.inference_mode():
            model, clip, vae = self.nodes["CheckpointLoaderSimple"]().load_checkpoint(name)[:3]
        return SimpleNamespace(model=model, clip=clip, vae=vae)

    def encode(self, clip, text):
        with torch.inference_mode():
            return self.nodes["CLIPTextEncode"]().encode(clip, text)[0]

    def sample(self, model, positive, negative, channels=4, steps=2, cfg=3.0, sampler="euler", scheduler="normal"):
        with torch.inference_mode():
            latent = {"samples": torch.zeros(1, channels, 16, 16)}
            out = self.nodes["KSampler"]().sample(model, 7, steps, cfg, sampler, scheduler, positive, negative, latent)
        return out[0]["samples"]

    def rows_of(self, *token_ids):
        """Rows [1, 77] of a prompt, by the table alone."""
        row = {t: i for i, t in enumerate(captions.VOCABULARY) if t >= 0}
        ids = [captions.BOS, *token_ids]
        return torch.tensor([[row.get(t, 0) for t in ids + [captions.EOS] * (77 - len(ids))]])

    def close(self, a, b, tolerance=1e-4):
        assert a.shape == b.shape
        scale = max(1.0, b.abs().max().item())
        assert (a.float() - b.float()).abs().max().item() <= tolerance * scale


@pytest.fixture(scope="session")
def core(engine, folder):
    """The family is registered, and the folder searched for every kind of file."""
    import nulltext.engine.demo_family as family

    family.register()
    paths = engine.get("folder_paths")
    for kind in ("checkpoints", "loras", "controlnet", "embeddings"):
        paths.add_model_folder_path(kind, str(folder))
    return Core(engine.get("nodes").NODE_CLASS_MAPPINGS)


@pytest.fixture(scope="session")
def demo(core):
    return core.load("demo.safetensors")


@pytest.fixture(scope="session")
def trainer_nets(folder):
    """The trainer's nets with the weights of the file (rounded to fp16, as the file holds them)."""
    made = {"unet": nets.UNet(), "text": TextEncoder(), "autoencoder": AutoEncoder()}
    for part, net in made.items():
        net.load_state_dict(weights.read_part(folder / "demo.safetensors", part))
        net.eval().requires_grad_(False)
    return SimpleNamespace(**made)


@pytest.fixture(scope="session")
def controlnet():
    """controlnet(UNet, zero) -> a ControlNet file of the family."""
    return lambda unet, zero: stand_ins.controlnet(unet.state_dict(), zero)
