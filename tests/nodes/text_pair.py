"""What the tests of DiffusionCLIP and h-Space Train train with: an image-text model of two colours, a small VAE and two
latents for it."""

import torch
from nulltext.demo.autoencoder import SLIM_SIZE, AutoEncoder, widened


class Tower(torch.nn.Module):
    """Reads the mean red and blue of a picture."""

    image_size = 8

    def embed_image(self, pictures):
        return torch.stack(
            [pictures[:, 0].mean((1, 2)), pictures[:, 2].mean((1, 2)), 0.3 + 0 * pictures[:, 0, 0, 0]], 1
        )

    def embed_text(self, texts):
        return torch.tensor([[1.0, 0.0, 0.3] if "red" in t else [0.0, 1.0, 0.3] for t in texts])

    def unknown(self, text):
        return []


def small_vae(engine):
    torch.manual_seed(0)
    sd = dict(AutoEncoder(SLIM_SIZE).state_dict())
    sd = widened(sd) | {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
    with torch.inference_mode():
        return engine.get("sd").VAE(sd=sd)


def small_pictures():
    with torch.inference_mode():
        return {"samples": torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3)) / 0.18215}
