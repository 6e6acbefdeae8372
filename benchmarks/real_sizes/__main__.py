"""What the boxes cost at a real model's width: `make bench NAME=real_sizes [ARGS="--quick --fresh"]`.

A UNet of SD1.5's widths and depths with random weights (its text is 128 wide, the demo text encoder's), pictures of
128 px (256 where attention is edited), fp32, one thread. Per box: the time of its cell of `make families` over that of
the network calls which the cell makes, as plain ones and as they ran (timed.py says how that is measured). Then
null-text on 512 px, in a process of its own: what the optimisation adds to the memory in use, and what checkpointing
saves and costs. The same for a box of each kind of work on a UNet of SDXL's size (2.2 billion weights), where the
machine has the memory. Last how far some boxes' latents are from fp32's where SD1.5's UNet computes in bf16 or fp16,
beside plain sampling's. Linux; 10 GB, with SDXL 20.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial

import torch

from ..families.cells import CELLS
from ..families.run import WORKS
from ..harness import Bench, table
from . import precision
from .memory import apart
from .timed import FAMILIES, Timed, lab, size_of

WIDTH, SIZE, LARGE = 320, 16, 64  #: channels of the first level; latent cells a side
NEEDED = {"SD1.5": 0, "SDXL": 20e9}  #: bytes of memory below which a family is left out


def measured(here: Timed, size: int, name: str) -> dict[str, float | None]:
    """One cell."""
    here.size = size_of(name, size)
    plain = here.plain()
    plain.measure()
    with here.watched() as spent:
        outcome = here.run(name)
    plain.measure()
    if outcome.kind != WORKS:
        raise RuntimeError(f"{name} on {here.family}: {outcome.says}")
    found = {"rows": sum(spent.rows), "recorded": spent.recorded_calls, "seconds": spent.whole, "others": spent.others}
    asked = spent.rows or spent.recorded_calls
    return {**found, "ratio": spent.ratio(plain) if asked else None, "outside": spent.outside() if asked else None}


def of_family(bench: Bench, family: str, folder: str) -> dict[str, dict]:
    """What is measured of one family: "cells", "memory", "parameters"."""
    width, size, large = (32, 8, 16) if bench.quick else (WIDTH, SIZE, LARGE)
    names = list(CELLS) if family == "SD1.5" else [f"NullText_{box}" for box in precision.BOXES]
    needs = {  # before this process loads the network, too
        kind: bench.once(
            f"{family} null-text, {kind}", partial(apart, folder, large, width, kind == "checkpointing", family)
        )
        for kind in ("plain", "checkpointing")
    }
    here = lab(size, width, family=family)
    here.load()
    cells = {
        name: bench.once(f"{family} {name}", partial(measured, here, size, name))
        for name in (names[:6] if bench.quick else names)
    }
    parameters = sum(p.numel() for p in here.outside["network"].parameters())
    return {"cells": cells, "memory": needs, "parameters": parameters}


def main(argv: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    bench = Bench("real_sizes", __doc__.splitlines()[0], argv)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    chosen = [family for family in FAMILIES if bench.quick or memory >= NEEDED[family]]
    with tempfile.TemporaryDirectory() as folder:
        found = {family: of_family(bench, family, folder) for family in chosen}
    width, size, boxes = (32, 8, precision.BOXES[:2]) if bench.quick else (WIDTH, SIZE, precision.BOXES)
    far = bench.once("half precision", partial(precision.errors, size, width, boxes))
    bench.finish(*result(found, far))


def result(found: dict[str, dict], far: dict[str, dict[str, float]]) -> tuple[str, dict]:
    """The tables, the dearest box first, and the figures."""
    shown, figures = "", {}
    for family, of in found.items():
        rows = {name.removeprefix("NullText_"): row for name, row in of["cells"].items() if row["ratio"] is not None}
        header = [
            f"{family}: box",
            "plain rows",
            "calls with gradients",
            "seconds",
            "over as they ran",
            "over plain ones",
        ]
        keys = ("rows", "recorded", "seconds", "outside", "ratio")
        lines = [[name, *(row[key] for key in keys)] for name, row in rows.items()]
        shown += table(header, sorted(lines, key=lambda line: -line[-1]))
        figures |= {f"{family} parameters": of["parameters"]}
        figures |= {f"{family} {key} {name}": row[key] for key in keys[-2:] for name, row in rows.items()}
        for kind, row in of["memory"].items():
            shown += f"\nnull-text, {kind}: {row['added']:.2f} GB beside {row['weights']:.2f} GB of weights, "
            shown += f"{row['seconds']:.0f} s in gradients"
            figures |= {f"{family} null_text_{key} {kind}": value for key, value in row.items()}
        shown += "\n\n"
    for family in FAMILIES.keys() - found:
        shown += f"{family}: not measured, for it needs {NEEDED[family] / 1e9:.0f} GB of memory.\n\n"
    errors = [[name, *row.values()] for name, row in far.items()]
    shown += table(["latents' distance from fp32's", *precision.PRECISIONS], errors)
    figures |= {f"error {name} {kind}": error for name, row in far.items() for kind, error in row.items()}
    return shown, figures


if __name__ == "__main__":
    main(sys.argv[1:])
