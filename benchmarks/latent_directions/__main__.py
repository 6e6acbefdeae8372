"""Editing by tuned directions: DiffusionCLIP on the demo model, Asyrp on its second UNet: `make bench
NAME=latent_directions`.

Tuned on training scenes; judged on held-out ones (other places, backgrounds, seeds) by two probes, neither of which is
the image-text tower that trained. "reached": share that reads as the target; "kept": mean share of the other attributes
that still read as they were.
"""

from __future__ import annotations

import sys

from ...demo.weights import BOTTLENECK
from ..harness import READ, Bench, table
from . import asyrp, dclip, two_wishes


def main(argv: list[str] | None = None) -> None:
    bench = Bench("latent_directions", __doc__.split(":")[0], argv, read=(*READ, "diffusion_models/*.safetensors"))
    figures, rows = dclip.measure(bench)
    more, lines = two_wishes.measure(bench, figures["dclip_seed"])
    figures, rows = figures | more, rows + lines
    if BOTTLENECK.exists():
        more, lines = asyrp.measure(bench, BOTTLENECK)
        figures |= more
        rows += lines
    else:
        print(f"  {BOTTLENECK.name} is not there: Asyrp's rows are left out.", flush=True)
    bench.finish(table(["way", "judge", "reached", "kept"], rows), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
