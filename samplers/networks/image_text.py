"""A tiny image-text model (CLIP 2103.00020 in the small): an image tower and a text tower that share one space, and a
noise-aware image tower on latents after SDG (2112.05744, section 3.3), trained to say of x_s what the first says of
x_0.

Embeddings are rows [B, D]; only their directions mean something. The image tower looks at pictures in [0, 1] at
`image_size`; the noise-aware tower at latents in model space, scaled by the noise process's c_in here.
"""

from __future__ import annotations

import json
import re

import torch
import torch.nn as nn
from torch import Tensor

from ..core import VE, NoiseProcess, Sigma
from ..guidance.cutouts import resize
from ..record_file import Fields, Unsound, check_state, parsed
from .encoder import Encoder, noisy_input

FORMAT = "nulltext-image-text-1"


class TextLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # written out: rows are short, and the fused kernel with a mask takes twice as long on a CPU
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float()
        h = weights.masked_fill(~there[:, None, None, :], -torch.inf).softmax(-1).to(v.dtype) @ v
        x = x + self.out(h.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class TextTower(nn.Module):
    """Token rows [B, T] (0 = unknown, 1 = padding) -> embeddings [B, D]; a transformer, averaged over what isn't
    padding."""

    PAD = 1

    def __init__(self, rows: int, out: int, width: int = 128, layers: int = 2, heads: int = 4, length: int = 32):
        super().__init__()
        self.config = {"rows": rows, "out": out, "width": width, "layers": layers, "heads": heads, "length": length}
        self.token, self.place = nn.Embedding(rows, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.ModuleList(TextLayer(width, heads) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, out)

    @staticmethod
    def checked(fields: Fields) -> dict:
        """The arguments in a file's table. ValueError that names the field where one is no size of a text tower."""
        heads = fields.whole("heads", 1, 64)
        width = fields.whole("width", 1, 4096)
        if width % heads:
            raise Unsound(f"the field {fields.name}.width ({width}) is no multiple of its heads ({heads})")
        return {
            "rows": fields.whole("rows", 2, 200_000),
            "out": fields.whole("out", 1, 100_000),
            "width": width,
            "layers": fields.whole("layers", 1, 64),
            "heads": heads,
            "length": fields.whole("length", 1, 4096),
        }

    def forward(self, rows: Tensor) -> Tensor:
        there = rows != self.PAD
        there[:, 0] = True  # an empty text is one padding token, not nothing
        x = self.token(rows) + self.place[: rows.shape[1]]
        for layer in self.layers:
            x = layer(x, there)
        weight = there[..., None].to(x)
        return self.out(self.norm((x * weight).sum(1) / weight.sum(1)))


class ImageText(nn.Module):
    """The towers with their word list. `noisy` is None until it has been trained for a latent space."""

    def __init__(
        self, words: dict[str, int], image: dict, text: dict, noisy: dict | None = None, *, image_size: int = 64
    ):
        super().__init__()
        self.words, self.image_size = dict(words), image_size
        self.image, self.text = Encoder(**image), TextTower(**text)
        self.noisy = Encoder(**noisy) if noisy else None
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())  # the temperature learned in training

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    def rows(self, texts: list[str]) -> Tensor:
        """Token rows [N, T] of texts, word by word, padded; unknown words are row 0."""
        length = self.text.config["length"]
        split = [[self.words.get(word, 0) for word in re.findall(r"[a-z]+|,", text.lower())][:length] for text in texts]
        out = torch.full((len(texts), max(1, max(map(len, split)))), TextTower.PAD, dtype=torch.long)
        for i, row in enumerate(split):
            out[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        return out.to(self.device)

    def unknown(self, text: str) -> list[str]:
        """The words of a text that this model was never shown."""
        return [word for word in re.findall(r"[a-z]+", text.lower()) if word not in self.words]

    def embed_text(self, texts: list[str]) -> Tensor:
        return self.text(self.rows(texts))

    def embed_image(self, image: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> [B, D]."""
        return self.image(self._centred(image))

    def image_features(self, image: Tensor) -> list[Tensor]:
        return self.image.features(self._centred(image))

    def _centred(self, image: Tensor) -> Tensor:
        return 2 * (image if image.shape[-2:] == (self.image_size,) * 2 else resize(image, self.image_size)) - 1

    def embed_noisy(self, x: Tensor, sigma: Sigma, process: NoiseProcess = VE) -> Tensor:
        """x_s [B, C, H, W] in model space at noise level s -> [B, D], in the image tower's space."""
        return self._noisy()(*noisy_input(x, sigma, process))

    def noisy_features(self, x: Tensor, sigma: Sigma, process: NoiseProcess = VE) -> list[Tensor]:
        return self._noisy().features(*noisy_input(x, sigma, process))

    def _noisy(self) -> Encoder:
        if self.noisy is None:
            raise ValueError("This image-text model has no noise-aware tower: guide on the decoded estimate instead.")
        return self.noisy

    def metadata(self) -> dict[str, str]:
        """What a safetensors file needs beside the weights to build the model again."""
        config = {
            "image": self.image.config,
            "text": self.text.config,
            "image_size": self.image_size,
            "noisy": self.noisy.config if self.noisy is not None else None,
            "words": self.words,
        }
        return {"format": FORMAT, "config": json.dumps(config)}

    @classmethod
    def build(cls, state: dict[str, Tensor], metadata: dict[str, str]) -> ImageText:
        """The model of a file's tensors and metadata, in fp32, frozen. ValueError if the file is of another kind."""
        if (metadata or {}).get("format") != FORMAT:
            raise ValueError("This file is not an image-text model of this pack (its metadata lacks the format).")
        fields = Fields(parsed(metadata.get("config"), "config"), "config")
        image, text = Encoder.checked(fields.part("image")), TextTower.checked(fields.part("text"))
        noisy = None if fields.values.get("noisy") is None else Encoder.checked(fields.part("noisy"))
        words = fields.table("words", lambda row: isinstance(row, int) and 0 <= row < text["rows"], "rows of words")
        size = fields.whole("image_size", 1, 4096)
        if {tower["out"] for tower in (image, text, noisy) if tower} != {text["out"]}:
            raise Unsound("the field config.text.out is another than the image encoder's")
        check_state(lambda: cls(words, image, text, noisy, image_size=size), state)
        model = cls(words, image, text, noisy, image_size=size)
        model.load_state_dict({k: v.float() for k, v in state.items()})
        return model.eval().requires_grad_(False)
