"""What computing in half precision changes in the boxes' latents, beside what it changes in plain sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from .timed import Wide, lab, size_of

PRECISIONS = ("bfloat16", "float16")
#: a box of each kind of work: inversions, gradients, two prompts at once, masks, low-pass, noise of its own
BOXES = ("InvertImage", "Optimise", "Guider", "DirectEdit", "RFInversion", "SDEdit", "RePaintSampler", "DiffEdit")
BOXES += ("ILVRSampler", "BlendedDiffusion", "CLIPGuidance", "DisturbanceSampler", "PromptToPrompt", "MasaCtrl")
PLAIN = "KSampler"


class Recorded(Wide):
    """A family in this process; `latents` are those that its graphs have saved."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.latents: list[Tensor] = []

    def left(self, graph, seconds: float = 0):
        found = super().left(graph, seconds)
        self.latents += [made["latent"] for made in found.result.outputs.values() if "latent" in made]
        return found


def drawn(size: int, width: int, weights: str, boxes: tuple[str, ...] = BOXES) -> dict[str, list[Tensor]]:
    """What plain sampling and the boxes' cells save, all with the same seeds."""
    here, found = lab(size, width, Recorded, weights=weights), {}
    for box in (PLAIN, *boxes):
        here.latents, here.size = [], size_of(box, size)
        if box == PLAIN:
            graph = here.graph()
            graph.drawn()
            here.left(graph)
        else:
            here.run(f"NullText_{box}")  # a law to the bit is broken by rounding, and what was saved counts
        found[box] = here.latents
    return found


def apart(exact: list[Tensor], found: list[Tensor]) -> float:
    """The root mean square difference over the exact one's, of the latents that differ most."""
    if len(exact) != len(found) or not exact:
        raise RuntimeError(f"{len(found)} latents beside {len(exact)} in fp32")
    return max(float((a - b).square().mean().sqrt() / a.square().mean().sqrt()) for a, b in zip(exact, found))


@torch.no_grad()
def errors(size: int, width: int, boxes: tuple[str, ...] = BOXES) -> dict[str, dict[str, float]]:
    """{box: {precision: error}}"""
    exact, found = drawn(size, width, "float32", boxes), {}
    for precision in PRECISIONS:
        half = drawn(size, width, f"{precision} throughout", boxes)
        for box, latents in exact.items():
            found.setdefault(box, {})[precision] = apart(latents, half[box])
    return found
