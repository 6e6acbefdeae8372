"""The demo model's text encoder in plain torch, with the parameter names of a CLIP text model: 0.3M parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .captions import ROWS
from .nets import CONTEXT


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (p(x).view(b, t, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(out.transpose(1, 2).reshape(b, t, c))


class TextLayer(nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class TextEncoder(nn.Module):
    """Rows of the embedding table [B, 77] -> context [B, 77, 128]. Keys as `text_model.*` of a CLIP text model."""

    def __init__(self, width=CONTEXT, layers=2, heads=4, inner=256):
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {"token_embedding": nn.Embedding(ROWS, width), "position_embedding": nn.Embedding(77, width)}
        )
        for table in self.embeddings.values():
            nn.init.normal_(table.weight, std=0.3)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([TextLayer(width, heads, inner) for _ in range(layers)])})
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.embeddings["token_embedding"](rows) + self.embeddings["position_embedding"].weight
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.final_layer_norm(x)
