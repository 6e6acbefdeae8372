"""Graphs for the tests (tools/graph.py), and what tests read from their results."""

from __future__ import annotations

import torch
from nulltext.tools import graph
from nulltext.tools.graph import Node

__all__ = ["Graph", "Node", "far", "pixels"]


class Graph(graph.Graph):
    def picture_of(self, latent) -> Node:
        """The latent decoded and shown."""
        return self.show(self.decode(latent))


def pixels(result, node: Node) -> torch.Tensor:
    """[B, H, W, 3], 0 to 255, of the pictures that a node shows."""
    pictures = [picture.convert("RGB") for picture in result.pictures[node.key]]
    flat = [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float() for picture in pictures]
    return torch.stack([f.view(picture.height, picture.width, 3) for f, picture in zip(flat, pictures)])


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference."""
    return float((a - b).abs().max())
